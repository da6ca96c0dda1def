// The same passes over a tile: one class of as many slices as a pack has lanes, then the next class. Slices with few
// classes and slices whose classes are apart in memory come this way. Sums keep the order of rows (class c to partial
// sum c mod 16 or 8, folded in halves), so the bits are theirs. Results replace scores.
#pragma once

#include "losses.hpp"

namespace {

template <class T>
struct Tile {
    T* x;
    const T* dy;

    FASTSOFTMAX_INLINE Pack<T> score(std::ptrdiff_t c) const { return load_pack<T>(x + c * Pack<T>::lanes); }
    FASTSOFTMAX_INLINE Pack<T> gradient(std::ptrdiff_t c) const { return load_pack<T>(dy + c * Pack<T>::lanes); }
    FASTSOFTMAX_INLINE void write(std::ptrdiff_t c, Pack<T> value) const { store_pack(x + c * Pack<T>::lanes, value); }

    // One class of each slice: that of lane i is classes[i].
    FASTSOFTMAX_ONCE Pack<T> pick(const std::int64_t* classes) const {
        T values[Pack<T>::lanes];
        for (int i = 0; i < Pack<T>::lanes; ++i) values[i] = x[classes[i] * Pack<T>::lanes + i];
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

// Accumulator's sums, a slice a lane.
template <class T>
struct TileSum;

template <>
struct TileSum<float> {
    Pack<double> low[16], high[16];
    int width;

    // Partial sums that no class falls to are 0 and may be left out; the first class of each begins it.
    FASTSOFTMAX_INLINE explicit TileSum(std::ptrdiff_t classes) : width(1) {
        while (width < 16 && width < classes) width *= 2;
        for (std::ptrdiff_t i = classes; i < width; ++i) low[i] = high[i] = broadcast(0.0);
    }
    FASTSOFTMAX_INLINE void add(std::ptrdiff_t c, DoublePair x) {
        const Pack<double> zero = broadcast(0.0);
        low[c & 15] = (c < 16 ? zero : low[c & 15]) + x.low;
        high[c & 15] = (c < 16 ? zero : high[c & 15]) + x.high;
    }
    FASTSOFTMAX_INLINE void add(std::ptrdiff_t c, Pack<float> x) { add(c, to_double(x)); }
    FASTSOFTMAX_INLINE void add(std::ptrdiff_t c, Two<Pack<float>> x) {
        const DoublePair a = to_double(x.high), b = to_double(x.low);
        add(c, DoublePair{a.low + b.low, a.high + b.high});
    }
    FASTSOFTMAX_INLINE void add_product(std::ptrdiff_t c, Pack<float> x, Pack<float> y) {
        const DoublePair a = to_double(x), b = to_double(y);
        add(c, DoublePair{a.low * b.low, a.high * b.high});
    }
    FASTSOFTMAX_ONCE Two<PerSlice<float>> total() {
        for (int count = width / 2; count > 0; count /= 2)
            for (int i = 0; i < count; ++i) {
                low[i] = low[i] + low[i + count];
                high[i] = high[i] + high[i + count];
            }
        return {{{low[0], high[0]}}, PerSlice<float>::all(0)};
    }
};

template <>
struct TileSum<double> {
    Double2 parts[8];

    FASTSOFTMAX_INLINE explicit TileSum(std::ptrdiff_t) {
        for (auto& p : parts) p = {broadcast(0.0), broadcast(0.0)};
    }
    FASTSOFTMAX_INLINE void add(std::ptrdiff_t c, Pack<double> x) {
        Double2& p = parts[c & 7];
        const Double2 next = two_sum(p.high, x);
        p = {next.high, p.low + next.low};
    }
    FASTSOFTMAX_INLINE void add(std::ptrdiff_t c, Two<Pack<double>> x) {
        add(c, x.high);
        parts[c & 7].low = parts[c & 7].low + x.low;
    }
    FASTSOFTMAX_INLINE void add_product(std::ptrdiff_t c, Pack<double> x, Pack<double> y) {
        const Pack<double> product = x * y;
        add(c, product);
        parts[c & 7].low = parts[c & 7].low + fma(x, y, -product);
    }
    FASTSOFTMAX_ONCE Two<PerSlice<double>> total() {
        Pack<double> plain[8];
        for (int i = 0; i < 8; ++i) plain[i] = parts[i].high;
        for (int count = 4; count > 0; count /= 2)
            for (int i = 0; i < count; ++i) {
                parts[i] = ::add(parts[i], parts[i + count]);
                plain[i] = plain[i] + plain[i + count];
            }
        // As in Accumulator: an infinite sum is the plain one.
        const Pack<double> zero = broadcast(0.0);
        const Mask<double> finite = equal(parts[0].high - parts[0].high, zero);
        return {{{select(finite, parts[0].high, plain[0])}}, {{select(finite, parts[0].low, zero)}}};
    }
};

template <Operation op, bool keep, class T>
FASTSOFTMAX_ONCE Measured<T> measure_tile_exponentials(const Tile<T>& tile, std::ptrdiff_t begin, std::ptrdiff_t end,
                                                       double temperature) {
    using I = Integer<T>;
    constexpr T lowest = -__builtin_inf();
    constexpr bool apart = op != fastsoftmax::softmax;
    Measured<T> measured;
    Groups<T>& g = measured.groups;

    // Positions are relative to `begin`: a block has fewer classes than an int32 counts. Where nothing is finite,
    // nothing is largest.
    Pack<T> largest = broadcast(lowest);
    Pack<I> position = broadcast(I(-1));
    for (std::ptrdiff_t c = begin; c < end; ++c) {
        const Pack<T> v = tile.score(c);
        if constexpr (apart) position = select(less(largest, v), broadcast(static_cast<I>(c - begin)), position);
        largest = max(v, largest);
    }
    set_maxima(g, exactly(largest).group, temperature);

    TileSum<T> sum(end - begin);
    Pack<T> largest_exponential = broadcast(T(0));
    with_exponential(g, temperature, [&](auto exp) __attribute__((always_inline)) {
        for (std::ptrdiff_t c = begin; c < end; ++c) {
            if constexpr (op == fastsoftmax::logsumexp) {
                Two<Pack<T>> e = exp.exactly(tile.score(c));
                const Mask<T> largest_here = equal(position, broadcast(static_cast<I>(c - begin)));
                e = {select(largest_here, broadcast(T(0)), e.high), select(largest_here, broadcast(T(0)), e.low)};
                sum.add(c - begin, e);
                continue;
            }
            const Pack<T> e = exp(tile.score(c));
            if constexpr (keep) tile.write(c, e);
            if constexpr (apart)
                sum.add(c - begin, select(equal(position, broadcast(static_cast<I>(c - begin))), broadcast(T(0)), e));
            else
                sum.add(c - begin, e);
        }
        if constexpr (!apart) largest_exponential = exp(largest);
    });
    const Two<PerSlice<T>> total = sum.total();
    const PerSlice<T> again = exactly(largest_exponential);
    for (int i = 0; i < groups<T>; ++i) {
        Double2 rest = {total.high.group[i], total.low.group[i]};
        if constexpr (!apart) rest = add(rest, {-again.group[i], broadcast(0.0)});
        g.group[i].rest = rest;
    }
    if (op == fastsoftmax::logsumexp && fold_max(largest) == T(infinity)) {
        // As in rows: where +inf is the largest, `rest` tells whether there is a NaN.
        Pack<T> nan = broadcast(T(0));
        for (std::ptrdiff_t c = begin; c < end; ++c) {
            const Pack<T> v = tile.score(c);
            nan = select(equal(v, v), nan, v);
        }
        const PerSlice<T> found = exactly(nan);
        for (int i = 0; i < groups<T>; ++i) {
            Group& s = g.group[i];
            const Mask<double> top = equal(s.max, broadcast(infinity));
            s.rest = {select(top, found.group[i], s.rest.high), select(top, broadcast(0.0), s.rest.low)};
        }
    }
    I positions[Pack<T>::lanes];
    store_pack(positions, position);
    for (int i = 0; i < Pack<T>::lanes; ++i) measured.argmax[i] = begin + (positions[i] < 0 ? 0 : positions[i]);
    return measured;
}

template <Operation op, class T>
FASTSOFTMAX_ONCE Measured<T> measure_tile_gradient(const Tile<T>& tile, std::ptrdiff_t begin, std::ptrdiff_t end) {
    TileSum<T> sum(end - begin);
    for (std::ptrdiff_t c = begin; c < end; ++c) {
        if constexpr (op == fastsoftmax::softmax_grad)
            sum.add_product(c - begin, tile.score(c), tile.gradient(c));
        else
            sum.add(c - begin, tile.gradient(c));
    }
    const Two<PerSlice<T>> total = sum.total();
    Measured<T> measured = {};
    for (int i = 0; i < groups<T>; ++i) measured.groups.group[i].rest = {total.high.group[i], total.low.group[i]};
    return measured;
}

template <Operation op, class T, bool keep>
inline Measured<T> measure_tile_block(const Run& run, const Tile<T>& tile, std::ptrdiff_t begin, std::ptrdiff_t end) {
    if constexpr (op == fastsoftmax::softmax_grad || op == fastsoftmax::log_softmax_grad)
        return measure_tile_gradient<op>(tile, begin, end);
    else
        return measure_tile_exponentials<sums_as<op>, keep>(tile, begin, end, run.temperature);
}

template <class T>
FASTSOFTMAX_ONCE void write_tile_log_softmax(const Run& run, const Tile<T>& tile, const Measured<T>& measured) {
    const LogProbability<T> log_probability(measured.groups, run.temperature);
    const Dominance<T> dominance(measured.groups);
    for (std::ptrdiff_t c = 0; c < run.classes; ++c) {
        const Pack<T> v = tile.score(c);
        tile.write(c, run.temperature == 1 ? log_probability.plain(v) : log_probability.scaled(v));
    }
    std::int64_t dominant[Pack<T>::lanes];
    Integer<T> mask[Pack<T>::lanes];
    store_pack(mask, dominance.mask);
    for (int i = 0; i < Pack<T>::lanes; ++i) dominant[i] = mask[i] ? measured.argmax[i] : -1;
    tile.put(dominant, dominance.log_probability);
}

// Loss and, with op cross_entropy_grad, gradient of a tile whose slices, from `first` of the run on, are measured.
template <Operation op, class T, bool kept>
FASTSOFTMAX_ONCE void write_tile_losses(const Run& run, const Tile<T>& tile, std::ptrdiff_t first, int count,
                                        const Measured<T>& measured, const Targets<T>& targets, Pack<T> scores) {
    constexpr int lanes = Pack<T>::lanes;
    const Groups<T>& g = measured.groups;
    const T* terms = static_cast<const T*>(run.terms) + (run.own_terms ? first * run.classes : 0);
    const auto term = [&](std::ptrdiff_t c) __attribute__((always_inline)) {
        return run.own_terms ? load_pack<T>(terms + c * lanes) : broadcast(terms[c]);
    };
    double from_terms[lanes];
    PerSlice<T> spread = PerSlice<T>::all(run.spread);
    if (run.terms) {
        const MinusLog<T> minus_log(g, run.temperature);
        TileSum<T> sum(run.classes), sum_of_terms(run.classes);
        for (std::ptrdiff_t c = 0; c < run.classes; ++c) {
            sum.add_product(c, term(c), minus_log(tile.score(c), term(c)));
            if (run.own_terms) sum_of_terms.add(c, term(c));
        }
        const Two<PerSlice<T>> total = sum.total(), total_of_terms = sum_of_terms.total();
        for (int i = 0; i < groups<T>; ++i) {
            store_pack(from_terms + i * Pack<double>::lanes, total.high.group[i] + total.low.group[i]);
            if (run.own_terms) spread.group[i] = total_of_terms.high.group[i] + total_of_terms.low.group[i];
        }
    }
    conclude_losses(run, first, count, g, targets, scores, run.terms ? from_terms : nullptr);
    if constexpr (op == fastsoftmax::cross_entropy_grad) {
        with_exponential(g, run.temperature, [&](auto exp) __attribute__((always_inline)) {
            const LossGradient<T> gradient(
                run, first, count, measured, targets, exp(scores), spread,
                [&](std::int64_t c, int i) { return static_cast<double>(terms[run.own_terms ? c * lanes + i : c]); });
            for (std::ptrdiff_t c = 0; c < run.classes; ++c) {
                const Pack<T> e = kept ? tile.score(c) : exp(tile.score(c));
                if constexpr (kept)
                    tile.write(c, gradient(e));
                else
                    tile.write(c, run.terms ? gradient(e, term(c)) : gradient(e));
            }
            tile.put(gradient.at_target, gradient.target_value);
            tile.put(gradient.at_max, gradient.max_value);
        });
        if (targets.any_ignored)
            for (int i = 0; i < count; ++i)
                for (std::ptrdiff_t c = 0; targets.ignored[i] && c < run.classes; ++c) tile.x[c * lanes + i] = 0;
    }
}

template <Operation op, class T, bool keep>
FASTSOFTMAX_ONCE void compute_tile(const Run& run, const Tile<T>& tile, std::ptrdiff_t first, int count) {
    constexpr bool loss = op == fastsoftmax::cross_entropy || op == fastsoftmax::cross_entropy_grad;
    const Targets<T> targets(run, first, loss ? count : 0);
    const Pack<T> scores = loss && run.target ? tile.pick(targets.index) : broadcast(T(0));
    const Measured<T> measured = measure_blocks<op, T>(run, count, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        return measure_tile_block<op, T, keep>(run, tile, begin, end);
    });
    if constexpr (op == fastsoftmax::softmax) {
        const Softmax<T> probability(measured.groups, run.temperature);
        if constexpr (keep) {
            for (std::ptrdiff_t c = 0; c < run.classes; ++c) tile.write(c, probability(tile.score(c)));
        } else {
            with_exponential(measured.groups, run.temperature, [&](auto exp) __attribute__((always_inline)) {
                for (std::ptrdiff_t c = 0; c < run.classes; ++c) tile.write(c, probability(exp(tile.score(c))));
            });
        }
    } else if constexpr (op == fastsoftmax::log_softmax) {
        write_tile_log_softmax(run, tile, measured);
    } else if constexpr (op == fastsoftmax::logsumexp) {
        double values[Pack<T>::lanes];
        for (int i = 0; i < groups<T>; ++i)
            store_pack(values + i * Pack<double>::lanes, log_sum_exp<T>(measured.groups.group[i]));
        for (int i = 0; i < count; ++i) run.value[first + i] = values[i];
    } else if constexpr (loss) {
        write_tile_losses<op, T, keep>(run, tile, first, count, measured, targets, scores);
    } else {
        const TransformGradient<op, T> gradient(measured.groups, run.temperature);
        for (std::ptrdiff_t c = 0; c < run.classes; ++c) tile.write(c, gradient(tile.score(c), tile.gradient(c)));
    }
}

template <Operation op, class T>
void tiles(const Run& run) {
    constexpr int lanes = Pack<T>::lanes;
    constexpr bool may_keep = op == fastsoftmax::softmax || op == fastsoftmax::cross_entropy_grad;
    for (std::ptrdiff_t first = 0; first < run.slices; first += lanes) {
        const std::ptrdiff_t offset = first * run.classes, left = run.slices - first;
        const Tile<T> tile = {reinterpret_cast<T*>(run.x.data) + offset,
                              reinterpret_cast<const T*>(run.dy.data) + offset};
        const int count = static_cast<int>(left < lanes ? left : lanes);
        if (may_keep && run.classes <= fastsoftmax::block_classes && !run.terms)
            compute_tile<op, T, may_keep>(run, tile, first, count);
        else
            compute_tile<op, T, false>(run, tile, first, count);
    }
}

}  // namespace
