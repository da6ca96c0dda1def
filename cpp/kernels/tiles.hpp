// The same passes over a tile: one class of as many slices as a pack has lanes, then the next class. Slices with few classes
// and slices whose classes are apart in memory come this way. Sums keep the order of rows (class c to partial sum c mod 16
// or 8, folded in halves), so the bits are theirs. Results replace scores.
#pragma once

#include <limits>

#include "results.hpp"

namespace {

template <class T>
struct Tile {
    T* x;
    const T* dy;

    FASTSOFTMAX_INLINE Pack<T> score(std::ptrdiff_t c) const { return load_pack<T>(x + c * Pack<T>::lanes); }
    FASTSOFTMAX_INLINE Pack<T> upstream(std::ptrdiff_t c) const { return load_pack<T>(dy + c * Pack<T>::lanes); }
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

    // Partial sums that no class falls to are 0 and may be left out.
    FASTSOFTMAX_INLINE explicit TileSum(std::ptrdiff_t classes) : width(1) {
        while (width < 16 && width < classes) width *= 2;
        for (int i = 0; i < width; ++i) low[i] = high[i] = broadcast(0.0);
    }
    FASTSOFTMAX_INLINE void add(std::ptrdiff_t c, DoublePair x) {
        low[c % 16] = low[c % 16] + x.low;
        high[c % 16] = high[c % 16] + x.high;
    }
    FASTSOFTMAX_INLINE void add(std::ptrdiff_t c, Pack<float> x) { add(c, to_double(x)); }
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
        Double2& p = parts[c % 8];
        const Double2 next = two_sum(p.high, x);
        p = {next.high, p.low + next.low};
    }
    FASTSOFTMAX_INLINE void add_product(std::ptrdiff_t c, Pack<double> x, Pack<double> y) {
        const Pack<double> product = x * y;
        add(c, product);
        parts[c % 8].low = parts[c % 8].low + fma(x, y, -product);
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

// The statistics of a tile's slices over a block of classes.
template <class T>
struct Measured {
    Groups<T> groups;
    std::int64_t argmax[Pack<T>::lanes];
};

template <class T>
FASTSOFTMAX_ONCE bool any_shift(const Groups<T>& g) {
    bool any = false;
    for (const Group& s : g.group) any |= fold_max(max(s.shift, -s.shift)) > 0;
    return any;
}

template <bool apart, bool keep, class T>
FASTSOFTMAX_ONCE Measured<T> measure_tile_exponentials(const Tile<T>& tile, std::ptrdiff_t begin,
                                                                    std::ptrdiff_t end, double temperature) {
    using I = Integer<T>;
    constexpr T lowest = -__builtin_inf();
    Measured<T> measured;
    Groups<T>& g = measured.groups;

    // Positions are relative to `begin`: a block has fewer classes than an int32 counts.
    Pack<T> largest = broadcast(lowest);
    Pack<I> position = broadcast(I(0));
    for (std::ptrdiff_t c = begin; c < end; ++c) {
        const Pack<T> v = tile.score(c);
        if constexpr (apart) position = select(less(largest, v), broadcast(static_cast<I>(c - begin)), position);
        largest = max(v, largest);
    }
    const PerSlice<T> exact = exactly(largest);
    Mask<double> infinite = less(broadcast(0.0), broadcast(0.0));
    for (int i = 0; i < groups<T>; ++i) {
        Group& s = g.group[i];
        s.max = exact.group[i];
        s.shift = shift_for<T>(s.max, temperature);
        const Double2 scaled = scaled_max<T>(s.max, s.shift, temperature);
        s.reference = reference_for(scaled.high);
        s.top = exp_of_max<T>(scaled, s.reference);
        const Pack<double> size = max(s.max, -s.max);
        const Mask<double> out_of_range = equal(size, broadcast(infinity));
        s.top.high = select(out_of_range, broadcast(__builtin_nan("")), s.top.high);
        infinite = infinite | equal(s.max, broadcast(infinity));
    }

    TileSum<T> sum(end - begin);
    Pack<T> largest_exponential = broadcast(T(0));
    with_exponential(g, any_shift(g), temperature, [&](auto exp) __attribute__((always_inline)) {
        for (std::ptrdiff_t c = begin; c < end; ++c) {
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
    if (fold_max(select(infinite, broadcast(1.0), broadcast(0.0))) > 0) {
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
    for (int i = 0; i < Pack<T>::lanes; ++i) measured.argmax[i] = begin + static_cast<std::int64_t>(positions[i]);
    return measured;
}

template <Operation op, class T>
FASTSOFTMAX_ONCE Measured<T> measure_tile_gradient(const Tile<T>& tile, std::ptrdiff_t begin,
                                                                std::ptrdiff_t end) {
    TileSum<T> sum(end - begin);
    for (std::ptrdiff_t c = begin; c < end; ++c) {
        if constexpr (op == fastsoftmax::softmax_grad)
            sum.add_product(c - begin, tile.score(c), tile.upstream(c));
        else
            sum.add(c - begin, tile.upstream(c));
    }
    const Two<PerSlice<T>> total = sum.total();
    Measured<T> measured = {};
    for (int i = 0; i < groups<T>; ++i) measured.groups.group[i].rest = {total.high.group[i], total.low.group[i]};
    return measured;
}

template <Operation op, class T, bool keep>
inline Measured<T> measure_tile_block(const Run& run, const Tile<T>& tile, std::ptrdiff_t begin,
                                                 std::ptrdiff_t end) {
    if constexpr (op == fastsoftmax::softmax_grad || op == fastsoftmax::log_softmax_grad)
        return measure_tile_gradient<op>(tile, begin, end);
    else
        return measure_tile_exponentials<op != fastsoftmax::softmax, keep>(tile, begin, end, run.temperature);
}

template <class T>
inline Statistics statistics_of(const Measured<T>& measured, int slice) {
    const Group& g = measured.groups.group[slice / Pack<double>::lanes];
    const int i = slice % Pack<double>::lanes;
    Statistics s;
    s.max = lane(g.max, i);
    s.argmax = measured.argmax[slice];
    s.shift = lane(g.shift, i);
    s.reference = lane(g.reference, i);
    s.top[0] = lane(g.top.high, i);
    s.top[1] = lane(g.top.low, i);
    s.rest[0] = lane(g.rest.high, i);
    s.rest[1] = lane(g.rest.low, i);
    return s;
}

template <class T>
inline Measured<T> measured_of(const Statistics* slices) {
    constexpr int lanes = Pack<T>::lanes;
    double fields[8][lanes];
    Measured<T> measured;
    for (int i = 0; i < lanes; ++i) {
        const Statistics& s = slices[i];
        const double values[] = {s.max, s.shift, s.reference, s.top[0], s.top[1], s.rest[0], s.rest[1]};
        for (int k = 0; k < 7; ++k) fields[k][i] = values[k];
        measured.argmax[i] = s.argmax;
    }
    for (int i = 0; i < groups<T>; ++i) {
        const auto field = [&](int k) { return load_pack<double>(fields[k] + i * Pack<double>::lanes); };
        measured.groups.group[i] = {field(0), field(1), field(2), {field(3), field(4)}, {field(5), field(6)}};
    }
    return measured;
}

template <Operation op, class T, bool keep>
inline Measured<T> measure_tile(const Run& run, const Tile<T>& tile) {
    constexpr std::ptrdiff_t block = fastsoftmax::block_classes;
    if (run.classes <= block) return measure_tile_block<op, T, keep>(run, tile, 0, run.classes);
    Statistics merged[Pack<T>::lanes];
    for (std::ptrdiff_t begin = 0; begin < run.classes; begin += block) {
        const std::ptrdiff_t end = run.classes - begin < block ? run.classes : begin + block;
        const Measured<T> measured = measure_tile_block<op, T, false>(run, tile, begin, end);
        for (int i = 0; i < Pack<T>::lanes; ++i) {
            const Statistics s = statistics_of(measured, i);
            if (begin == 0)
                merged[i] = s;
            else if constexpr (op == fastsoftmax::softmax_grad || op == fastsoftmax::log_softmax_grad)
                merge_sums(run, merged[i], s);
            else
                merge_exponentials(run, merged[i], s);
        }
    }
    return measured_of<T>(merged);
}

template <class T>
FASTSOFTMAX_ONCE void write_tile_log_softmax(const Run& run, const Tile<T>& tile,
                                                 const Measured<T>& measured) {
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

// Loss and, with op cross_entropy_grad, gradient of a tile whose `count` slices, from `slice` of the run on, are measured.
template <Operation op, class T, bool kept>
FASTSOFTMAX_ONCE void conclude_tile_loss(const Run& run, const Tile<T>& tile, std::ptrdiff_t slice, std::ptrdiff_t count,
                                         const Measured<T>& measured, const std::int64_t* target, Pack<T> target_scores) {
    constexpr int lanes = Pack<T>::lanes;
    const Groups<T>& g = measured.groups;
    const T* terms = static_cast<const T*>(run.terms);
    const auto term = [&](std::ptrdiff_t c) __attribute__((always_inline)) {
        return run.own_terms ? load_pack<T>(terms + (slice * run.classes + c * lanes)) : broadcast(terms[c]);
    };
    const auto term_of_slice = [&](std::int64_t c, int i) {
        return static_cast<double>(terms[run.own_terms ? slice * run.classes + c * lanes + i : c]);
    };
    const PerSlice<T> chosen = run.target ? PerSlice<T>::of(run.chosen + slice, count) : PerSlice<T>::all(0);
    const PerSlice<T> scores = exactly(target_scores);
    const Pack<double> zero = broadcast(0.0);

    PerSlice<T> loss;
    for (int i = 0; i < groups<T>; ++i) {
        const Pack<double> minus_log = minus_log_probability<T>(g.group[i], scores.group[i], run.temperature);
        loss.group[i] = select(equal(chosen.group[i], zero), zero, chosen.group[i] * minus_log);
    }
    if (terms) {
        const LogProbability<T> log_probability(g, run.temperature);
        const Dominance<T> dominance(g);
        const Pack<T> largest = part(g, [](const Group& s) __attribute__((always_inline)) { return s.max; });
        TileSum<T> sum(run.classes);
        for (std::ptrdiff_t c = 0; c < run.classes; ++c) {
            const Pack<T> v = tile.score(c);
            const Pack<T> general = run.temperature == 1 ? log_probability.plain(v) : log_probability.scaled(v);
            const Pack<T> log = select(equal(v, largest) & dominance.mask, dominance.log_probability, general);
            const Pack<T> u = term(c);
            sum.add_product(c, u, select(equal(u, broadcast(T(0))), broadcast(T(0)), -log));
        }
        const Two<PerSlice<T>> total = sum.total();
        for (int i = 0; i < groups<T>; ++i) loss.group[i] = loss.group[i] + (total.high.group[i] + total.low.group[i]);
    }
    bool any_ignored = false;
    Integer<T> ignored_lanes[lanes] = {};
    double losses[lanes];
    for (int i = 0; i < groups<T>; ++i) store_pack(losses + i * Pack<double>::lanes, loss.group[i]);
    for (int i = 0; i < count; ++i) {
        const bool is_ignored = run.target && run.target[slice + i] < 0;
        any_ignored |= is_ignored;
        ignored_lanes[i] = is_ignored ? -1 : 0;
        run.value[slice + i] = is_ignored ? 0 : losses[i];
    }
    if constexpr (op == fastsoftmax::cross_entropy_grad) {
        const PerSlice<T> scale = PerSlice<T>::of(run.scale + slice, count);
        PerSlice<T> spread = PerSlice<T>::all(run.spread);
        if (run.own_terms) {
            TileSum<T> sum(run.classes);
            for (std::ptrdiff_t c = 0; c < run.classes; ++c) sum.add(c, term(c));
            const Two<PerSlice<T>> both = sum.total();
            for (int i = 0; i < groups<T>; ++i) spread.group[i] = both.high.group[i] + both.low.group[i];
        }
        PerSlice<T> total, numerator;
        for (int i = 0; i < groups<T>; ++i) {
            total.group[i] = chosen.group[i] + spread.group[i];
            numerator.group[i] = total.group[i] * scale.group[i];
        }
        double target_weights[lanes] = {}, max_weights[lanes] = {};
        std::int64_t at_target[lanes], at_max[lanes];
        bool scales_fit = true;
        for (int i = 0; i < lanes; ++i) {
            at_target[i] = at_max[i] = -1;
            if (i >= count || ignored_lanes[i]) continue;
            const std::int64_t largest = measured.argmax[i];
            if (run.target) {
                at_target[i] = target[i];
                target_weights[i] = run.chosen[slice + i] + (terms ? term_of_slice(target[i], i) : 0);
                if (target[i] == largest) max_weights[i] = run.chosen[slice + i];
            }
            if (terms) {
                max_weights[i] += term_of_slice(largest, i);
                scales_fit = scales_fit && fits_float(run.scale[slice + i]);
            }
            if (max_weights[i] != 0) at_max[i] = largest;
        }
        const Probability<T> probability(g, numerator);
        const Pack<T> factor = rounded(scale);
        const Mask<T> ignored = load_pack<Integer<T>>(ignored_lanes);
        Pack<T> target_exponentials = broadcast(T(0));
        with_exponential(g, any_shift(g), run.temperature, [&](auto exp) __attribute__((always_inline)) {
            target_exponentials = exp(target_scores);
            for (std::ptrdiff_t c = 0; c < run.classes; ++c) {
                const Pack<T> e = kept ? tile.score(c) : exp(tile.score(c));
                Pack<T> value;
                if (probability.wide || !scales_fit) {
                    PerSlice<T> exact = probability.widely(e);
                    if (terms) {
                        const PerSlice<T> u = exactly(term(c));
                        for (int i = 0; i < groups<T>; ++i) exact.group[i] = exact.group[i] - u.group[i] * scale.group[i];
                    }
                    value = rounded(exact);
                } else {
                    value = terms ? probability(e, term(c) * factor) : probability(e);
                }
                tile.write(c, any_ignored ? select(ignored, broadcast(T(0)), value) : value);
            }
        });
        const GradientEnds<T> ends(g, target_exponentials, total, PerSlice<T>::of(target_weights, lanes),
                                   PerSlice<T>::of(max_weights, lanes), scale);
        tile.put(at_target, rounded(ends.at_target));
        tile.put(at_max, rounded(ends.at_max));
    }
}

template <Operation op, class T, bool keep>
FASTSOFTMAX_ONCE void compute_tile(const Run& run, const Tile<T>& tile, std::ptrdiff_t slice, std::ptrdiff_t count) {
    constexpr int lanes = Pack<T>::lanes;
    constexpr bool loss = op == fastsoftmax::cross_entropy || op == fastsoftmax::cross_entropy_grad;
    std::int64_t target[lanes] = {};
    Pack<T> target_scores = broadcast(T(0));
    if constexpr (loss) {
        if (run.target) {
            for (int i = 0; i < count; ++i) target[i] = run.target[slice + i] < 0 ? 0 : run.target[slice + i];
            target_scores = tile.pick(target);
        }
    }
    const Measured<T> measured = measure_tile<op, T, keep>(run, tile);
    if constexpr (op == fastsoftmax::softmax) {
        const Probability<T> probability(measured.groups);
        if constexpr (keep) {
            for (std::ptrdiff_t c = 0; c < run.classes; ++c) tile.write(c, probability(tile.score(c)));
        } else {
            with_exponential(measured.groups, any_shift(measured.groups), run.temperature,
                             [&](auto exp) __attribute__((always_inline)) {
                                 for (std::ptrdiff_t c = 0; c < run.classes; ++c)
                                     tile.write(c, probability(exp(tile.score(c))));
                             });
        }
    } else if constexpr (op == fastsoftmax::log_softmax) {
        write_tile_log_softmax(run, tile, measured);
    } else if constexpr (op == fastsoftmax::logsumexp) {
        double values[lanes];
        for (int i = 0; i < groups<T>; ++i)
            store_pack(values + i * Pack<double>::lanes, log_sum_exp<T>(measured.groups.group[i]));
        for (int i = 0; i < count; ++i) run.value[slice + i] = values[i];
    } else if constexpr (loss) {
        conclude_tile_loss<op, T, keep>(run, tile, slice, count, measured, target, target_scores);
    } else {
        const TransformGradient<op, T> gradient(measured.groups, run.temperature);
        for (std::ptrdiff_t c = 0; c < run.classes; ++c) tile.write(c, gradient(tile.score(c), tile.upstream(c)));
    }
}

template <Operation op, class T>
void tiles(const Run& run) {
    constexpr int lanes = Pack<T>::lanes;
    constexpr bool may_keep = op == fastsoftmax::softmax || op == fastsoftmax::cross_entropy_grad;
    for (std::ptrdiff_t slice = 0; slice < run.slices; slice += lanes) {
        const std::ptrdiff_t offset = slice * run.classes, left = run.slices - slice;
        const Tile<T> tile = {reinterpret_cast<T*>(run.x.data) + offset, reinterpret_cast<const T*>(run.dy.data) + offset};
        const std::ptrdiff_t count = left < lanes ? left : lanes;
        if (may_keep && run.classes <= fastsoftmax::block_classes && !run.terms)
            compute_tile<op, T, may_keep>(run, tile, slice, count);
        else
            compute_tile<op, T, false>(run, tile, slice, count);
    }
}

}  // namespace
