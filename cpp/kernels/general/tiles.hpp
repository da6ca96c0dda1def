// The same passes over a tile: one class of as many slices as a pack has lanes, then the next class. Slices with few
// classes and slices whose classes are apart in memory come this way. Sums keep the order of rows (class c to partial
// sum c mod 16 or 8, folded in halves), so the bits are theirs; few classes, which are never rows, are added one after
// another. Results replace scores.
#pragma once

#include "../losses.hpp"

namespace {

template <class T>
struct Tile {
    T* x;
    fastsoftmax::Ahead scores_ahead, results_ahead;

    // Neighbouring slices of one class are followed, far away, by those of the next: no prefetcher of the machine's
    // sees that after these the same class of other slices will be wanted.
    FASTSOFTMAX_INLINE void fetch(std::ptrdiff_t c) const {
        __builtin_prefetch(scores_ahead.data + c * scores_ahead.class_stride);
        __builtin_prefetch(results_ahead.data + c * results_ahead.class_stride, 1);
    }

    FASTSOFTMAX_INLINE Pack<T> score(std::ptrdiff_t c) const { return load_pack<T>(x + c * Pack<T>::lanes); }
    FASTSOFTMAX_INLINE void write(std::ptrdiff_t c, Pack<T> value) const { store_pack(x + c * Pack<T>::lanes, value); }

    // One class of each slice: that of lane i is wanted[i], or any if that is negative.
    FASTSOFTMAX_INLINE Pack<T> pick(const std::int64_t* wanted, std::ptrdiff_t classes) const {
        if (classes <= fastsoftmax::few_classes) {
            const Positions<T> positions(wanted);
            Pack<T> picked = score(0);
            for (std::ptrdiff_t c = 1; c < classes; ++c) picked = select(positions.at(c), score(c), picked);
            return picked;
        }
        T values[Pack<T>::lanes];
        for (int i = 0; i < Pack<T>::lanes; ++i) values[i] = x[(wanted[i] < 0 ? 0 : wanted[i]) * Pack<T>::lanes + i];
        return load_pack<T>(values);
    }
    // Negative: none.
    FASTSOFTMAX_ONCE void put(const std::int64_t* classes, Pack<T> value) const {
        T values[Pack<T>::lanes];
        store_pack(values, value);
        for (int i = 0; i < Pack<T>::lanes; ++i)
            if (classes[i] >= 0) x[classes[i] * Pack<T>::lanes + i] = values[i];
    }
};

template <bool keep, class T>
FASTSOFTMAX_ONCE Measured<T> measure_tile_exponentials(const Run& run, const Tile<T>& tile, std::ptrdiff_t begin,
                                                       std::ptrdiff_t end) {
    Measured<T> m;

    Pack<T> largest = broadcast(T(-infinity));
    for (std::ptrdiff_t c = begin; c < end; ++c) largest = max(tile.score(c), largest);
    set_maxima(m, largest, run.temperature);

    const int sums = partial_sums<T>(run.classes);
    Wide<T> partial[Pack<T>::lanes];
    Pack<T> times = broadcast(T(0));
    with_exponential(m, run.temperature, [&](auto exp) __attribute__((always_inline)) {
        // Classes c, c + sums, ... of one partial sum.
        const auto add = [&](OthersSum<T>& sum, auto count, std::ptrdiff_t c) __attribute__((always_inline)) {
            constexpr int packs = decltype(count)::value;
            Pack<T, packs> scores;
            for (int k = 0; k < packs; ++k) {
                tile.fetch(c + k * sums);
                set_part(scores, k, tile.score(c + k * sums));
            }
            const Growth<T, packs> e = exp(scores);
            const Pack<T, packs> rounded = e.rounded();
            for (int k = 0; k < packs; ++k) {
                if constexpr (keep) tile.write(c + k * sums, part(rounded, k));
                sum.add(equal(part(scores, k), largest), part(e.power, k), part(e.growth, k));
            }
        };
        const std::ptrdiff_t group = terms_to_carry * sums, grouped = begin + (end - begin) / group * group;
        for (int k = 0; k < sums; ++k) {
            OthersSum<T> sum;
            std::ptrdiff_t c = begin + k;
            for (; c < grouped; sum.carry())
                for (const std::ptrdiff_t stop = c + group; c < stop; c += packs_at_once * sums)
                    add(sum, std::integral_constant<int, packs_at_once>{}, c);
            for (; c < end; c += sums) add(sum, std::integral_constant<int, 1>{}, c);
            partial[k] = sum.wide();
            times = times + sum.times;
        }
        set_top(m, exp);
    });
    set_rest(m, folded(partial, sums), times);
    if (fold_max(largest) == T(infinity)) {
        // As in rows: where +inf is the largest, `rest` tells whether there is a NaN.
        Pack<T> nan = broadcast(T(0));
        for (std::ptrdiff_t c = begin; c < end; ++c) {
            const Pack<T> v = tile.score(c);
            nan = select(equal(v, v), nan, v);
        }
        const Mask<T> infinite = equal(largest, broadcast(T(infinity)));
        m.rest = {select(infinite, nan, m.rest.high), select(infinite, broadcast(T(0)), m.rest.low)};
    }
    return m;
}

template <Operation op, class T, bool keep>
inline Measured<T> measure_tile_block(const Run& run, const Tile<T>& tile, std::ptrdiff_t begin, std::ptrdiff_t end) {
    return measure_tile_exponentials<keep>(run, tile, begin, end);
}

template <class T>
FASTSOFTMAX_ONCE void write_tile_log_softmax(const Run& run, const Tile<T>& tile, const Measured<T>& measured) {
    const LogTotal<T> log(measured);
    const Dominance<T> dominance(measured, log);
    with_log_probability(measured, log, run.temperature, [&](auto log_probability) __attribute__((always_inline)) {
        for (std::ptrdiff_t c = 0; c < run.classes; ++c) {
            const Pack<T> v = tile.score(c);
            tile.write(c, dominance(v, log_probability(v)));
        }
    });
}

// Loss and, with op cross_entropy_grad, gradient of a tile whose slices, from `first` of the run on, are measured.
template <Operation op, class T, bool kept>
FASTSOFTMAX_ONCE void write_tile_losses(const Run& run, const Tile<T>& tile, std::ptrdiff_t first, int count,
                                        const Measured<T>& measured, const Labels<T>& labels, Pack<T> scores) {
    constexpr int lanes = Pack<T>::lanes;
    const LogTotal<T> log(measured);
    const T* terms = static_cast<const T*>(run.terms) + (run.own_terms ? first * run.classes : 0);
    const auto term = [&](std::ptrdiff_t c) __attribute__((always_inline)) {
        return run.own_terms ? load_pack<T>(terms + c * lanes) : broadcast(terms[c]);
    };
    double from_terms[lanes];
    Doubles<T> sum_of_all_terms = doubles<T>(run.sum_of_terms);
    if (run.terms) {
        TileSum<T> sum(run.classes), sum_of_terms(run.classes);
        with_minus_log(measured, log, run.temperature, [&](auto minus_log) __attribute__((always_inline)) {
            for (std::ptrdiff_t c = 0; c < run.classes; ++c) {
                sum.add_product(c, term(c), minus_log(tile.score(c), term(c)));
                if (run.own_terms) sum_of_terms.add(c, term(c));
            }
        });
        store_doubles(from_terms, to_doubles(sum.total()));
        if (run.own_terms) sum_of_all_terms = to_doubles(sum_of_terms.total());
    }
    conclude_losses(run, first, count, measured, log, labels, scores, run.terms ? from_terms : nullptr);
    if constexpr (op == Operation::cross_entropy_grad) {
        with_exponential(measured, run.temperature, [&](auto exp) __attribute__((always_inline)) {
            const Entries<T> entries = {terms, run.own_terms ? 1 : 0, run.own_terms ? lanes : 1, tile.x, sizeof(T),
                                        lanes};
            const LossGradient<T> gradient(run, first, count, measured, labels, scores, exp(scores).rounded(),
                                           sum_of_all_terms, entries);
            const auto value = [&](std::ptrdiff_t c) __attribute__((always_inline)) {
                if constexpr (kept) return gradient(tile.score(c));
                const Pack<T> e = exp(tile.score(c)).rounded();
                return run.terms ? gradient(e, term(c)) : gradient(e);
            };
            if (run.classes <= fastsoftmax::few_classes) {
                const Positions<T> at_label(labels.index), at_max(gradient.largest);
                for (std::ptrdiff_t c = 0; c < run.classes; ++c) {
                    const Pack<T> general = select(at_label.at(c), gradient.label_value, value(c));
                    tile.write(c, select(at_max.at(c), gradient.max_value, general));
                }
            } else {
                for (std::ptrdiff_t c = 0; c < run.classes; ++c) tile.write(c, value(c));
                tile.put(labels.index, gradient.label_value);
                tile.put(gradient.largest, gradient.max_value);
            }
        });
        if (run.exponent) {
            const Doubles<T> exponent = load_doubles<T>(run.exponent + first, count);
            for (std::ptrdiff_t c = 0; c < run.classes; ++c) tile.write(c, raised(tile.score(c), exponent));
        }
        if (labels.any_ignored)
            for (int i = 0; i < count; ++i)
                for (std::ptrdiff_t c = 0; labels.ignored(i) && c < run.classes; ++c) tile.x[c * lanes + i] = 0;
    }
}

template <Operation op, class T, bool keep>
FASTSOFTMAX_ONCE void compute_tile(const Run& run, const Tile<T>& tile, std::ptrdiff_t first, int count) {
    constexpr bool loss = is_loss<op>;
    const Labels<T> labels(loss, run, first, count);
    const Pack<T> scores = loss && run.label ? tile.pick(labels.index, run.classes) : broadcast(T(0));
    const Measured<T> measured = measure_blocks<op, T>(run, count, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        return measure_tile_block<op, T, keep>(run, tile, begin, end);
    });
    if constexpr (op == Operation::softmax) {
        const GeneralSoftmax<T> probability(measured);
        if constexpr (keep) {
            for (std::ptrdiff_t c = 0; c < run.classes; ++c) tile.write(c, probability(tile.score(c)));
        } else {
            with_exponential(measured, run.temperature, [&](auto exp) __attribute__((always_inline)) {
                for (std::ptrdiff_t c = 0; c < run.classes; ++c)
                    tile.write(c, probability(exp(tile.score(c)).rounded()));
            });
        }
    } else if constexpr (op == Operation::log_softmax) {
        write_tile_log_softmax(run, tile, measured);
    } else if constexpr (op == Operation::logsumexp) {
        conclude_logsumexp(run, first, count, measured);
    } else if constexpr (loss) {
        write_tile_losses<op, T, keep>(run, tile, first, count, measured, labels, scores);
    }
}

template <Operation op, class T>
void general_tiles(const Run& run) {
    constexpr int lanes = Pack<T>::lanes;
    for (std::ptrdiff_t first = 0; first < run.slices; first += lanes) {
        const std::ptrdiff_t offset = first * run.classes, left = run.slices - first;
        const auto of_tile = [&](fastsoftmax::Ahead ahead) {
            ahead.data += first / lanes * ahead.tile_stride;
            return ahead;
        };
        const Tile<T> tile = {reinterpret_cast<T*>(run.x.data) + offset, of_tile(run.scores_ahead),
                              of_tile(run.results_ahead)};
        const int count = static_cast<int>(left < lanes ? left : lanes);
        if (may_keep<op> && run.classes <= fastsoftmax::block_classes && !run.terms)
            compute_tile<op, T, may_keep<op>>(run, tile, first, count);
        else
            compute_tile<op, T, false>(run, tile, first, count);
    }
}

}  // namespace
