// The same passes over neighbouring slices whose same class is contiguous: a pack holds one class of as many slices as it
// has lanes. Sums keep the order of rows (class c to partial sum c mod 16 or 8, folded in halves), so the bits are theirs.
#pragma once

#include <limits>

#include "results.hpp"

namespace {

// Up to a pack of neighbouring slices.
template <class E>
struct Column {
    const std::byte* x;
    const std::byte* dy;
    std::byte* out;
    std::ptrdiff_t x_stride, dy_stride, out_stride;
    std::ptrdiff_t count;

    Column(const Run& run, std::ptrdiff_t slice, std::ptrdiff_t count_)
        : x(run.x.data + slice * static_cast<std::ptrdiff_t>(sizeof(E))),
          dy(run.dy.data + slice * static_cast<std::ptrdiff_t>(sizeof(E))),
          out(run.out.data + slice * static_cast<std::ptrdiff_t>(sizeof(E))),
          x_stride(run.x.class_stride),
          dy_stride(run.dy.class_stride),
          out_stride(run.out.class_stride),
          count(count_) {}

    FASTSOFTMAX_INLINE Pack<Compute<E>> load_class(const std::byte* from, std::ptrdiff_t stride, std::ptrdiff_t c) const {
        const E* p = reinterpret_cast<const E*>(from + c * stride);
        return count == pack_lanes<E> ? load(p) : load_first(p, count, Compute<E>(0));
    }
    FASTSOFTMAX_INLINE Pack<Compute<E>> score(std::ptrdiff_t c) const { return load_class(x, x_stride, c); }
    FASTSOFTMAX_INLINE Pack<Compute<E>> upstream(std::ptrdiff_t c) const { return load_class(dy, dy_stride, c); }
    FASTSOFTMAX_INLINE Pack<Compute<E>> written(std::ptrdiff_t c) const { return load_class(out, out_stride, c); }
    FASTSOFTMAX_INLINE void write(std::ptrdiff_t c, Pack<Compute<E>> value) const {
        E* p = reinterpret_cast<E*>(out + c * out_stride);
        if (count == pack_lanes<E>)
            store(p, value);
        else
            store_first(p, value, count);
    }
    // One class of each slice: that of lane i is classes[i]; negative: 0.
    FASTSOFTMAX_ONCE Pack<Compute<E>> pick(const std::byte* from, std::ptrdiff_t stride,
                                             const std::int64_t* classes) const {
        Compute<E> values[pack_lanes<E>] = {};
        for (std::ptrdiff_t i = 0; i < count; ++i) {
            if (classes[i] < 0) continue;
            E element;
            __builtin_memcpy(&element, from + classes[i] * stride + i * static_cast<std::ptrdiff_t>(sizeof(E)),
                             sizeof element);
            values[i] = to_compute(element);
        }
        return load_pack<Compute<E>>(values);
    }
    FASTSOFTMAX_ONCE void put(const std::int64_t* classes, Pack<Compute<E>> value) const {
        for (std::ptrdiff_t i = 0; i < count; ++i) {
            if (classes[i] < 0) continue;
            const E element = from_compute<E>(lane(value, static_cast<int>(i)));
            __builtin_memcpy(out + classes[i] * out_stride + i * static_cast<std::ptrdiff_t>(sizeof(E)), &element,
                             sizeof element);
        }
    }
};

// Accumulator's sums, a slice a lane.
template <class T>
struct ColumnSum;

template <>
struct ColumnSum<float> {
    Pack<double> low[16], high[16];
    int width;

    // Partial sums that no class falls to are 0 and may be left out.
    FASTSOFTMAX_INLINE explicit ColumnSum(std::ptrdiff_t classes) : width(1) {
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
struct ColumnSum<double> {
    Double2 parts[8];

    FASTSOFTMAX_INLINE explicit ColumnSum(std::ptrdiff_t) {
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

// The statistics of a column's slices over a block of classes.
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

template <bool apart, bool keep, class E>
FASTSOFTMAX_ONCE Measured<Compute<E>> measure_column_exponentials(const Column<E>& column, std::ptrdiff_t begin,
                                                                    std::ptrdiff_t end, double temperature) {
    using T = Compute<E>;
    using I = Integer<T>;
    constexpr T lowest = -__builtin_inf();
    Measured<T> measured;
    Groups<T>& g = measured.groups;

    // Positions are relative to `begin`: a block has fewer classes than an int32 counts.
    Pack<T> largest = broadcast(lowest);
    Pack<I> position = broadcast(I(0));
    for (std::ptrdiff_t c = begin; c < end; ++c) {
        const Pack<T> v = column.score(c);
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

    ColumnSum<T> sum(end - begin);
    Pack<T> largest_exponential = broadcast(T(0));
    with_exponential(g, any_shift(g), temperature, [&](auto exp) __attribute__((always_inline)) {
        for (std::ptrdiff_t c = begin; c < end; ++c) {
            const Pack<T> e = exp(column.score(c));
            if constexpr (keep) column.write(c, e);
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
            const Pack<T> v = column.score(c);
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

template <Operation op, class E>
FASTSOFTMAX_ONCE Measured<Compute<E>> measure_column_gradient(const Column<E>& column, std::ptrdiff_t begin,
                                                                std::ptrdiff_t end) {
    using T = Compute<E>;
    ColumnSum<T> sum(end - begin);
    for (std::ptrdiff_t c = begin; c < end; ++c) {
        if constexpr (op == fastsoftmax::softmax_grad)
            sum.add_product(c - begin, column.score(c), column.upstream(c));
        else
            sum.add(c - begin, column.upstream(c));
    }
    const Two<PerSlice<T>> total = sum.total();
    Measured<T> measured = {};
    for (int i = 0; i < groups<T>; ++i) measured.groups.group[i].rest = {total.high.group[i], total.low.group[i]};
    return measured;
}

template <Operation op, class E, bool keep>
inline Measured<Compute<E>> measure_column_block(const Run& run, const Column<E>& column, std::ptrdiff_t begin,
                                                 std::ptrdiff_t end) {
    if constexpr (op == fastsoftmax::softmax_grad || op == fastsoftmax::log_softmax_grad)
        return measure_column_gradient<op>(column, begin, end);
    else
        return measure_column_exponentials<op != fastsoftmax::softmax, keep>(column, begin, end, run.temperature);
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

template <Operation op, class E, bool keep>
inline Measured<Compute<E>> measure_column(const Run& run, const Column<E>& column) {
    using T = Compute<E>;
    constexpr std::ptrdiff_t block = fastsoftmax::block_classes;
    if (run.classes <= block) return measure_column_block<op, E, keep>(run, column, 0, run.classes);
    Statistics merged[Pack<T>::lanes];
    for (std::ptrdiff_t begin = 0; begin < run.classes; begin += block) {
        const std::ptrdiff_t end = run.classes - begin < block ? run.classes : begin + block;
        const Measured<T> measured = measure_column_block<op, E, false>(run, column, begin, end);
        for (int i = 0; i < static_cast<int>(column.count); ++i) {
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

template <class E>
FASTSOFTMAX_ONCE void write_column_log_softmax(const Run& run, const Column<E>& column,
                                                 const Measured<Compute<E>>& measured) {
    using T = Compute<E>;
    const LogProbability<T> log_probability(measured.groups, run.temperature);
    const Dominance<T> dominance(measured.groups);
    for (std::ptrdiff_t c = 0; c < run.classes; ++c) {
        const Pack<T> v = column.score(c);
        column.write(c, run.temperature == 1 ? log_probability.plain(v) : log_probability.scaled(v));
    }
    std::int64_t dominant[Pack<T>::lanes];
    Integer<T> mask[Pack<T>::lanes];
    store_pack(mask, dominance.mask);
    for (int i = 0; i < Pack<T>::lanes; ++i) dominant[i] = mask[i] ? measured.argmax[i] : -1;
    column.put(dominant, dominance.log_probability);
}

// Loss and, with op cross_entropy_grad, gradient of a column whose slices are measured.
template <Operation op, class E, bool kept>
FASTSOFTMAX_ONCE void conclude_column_loss(const Run& run, const Column<E>& column, std::ptrdiff_t slice,
                                             const Measured<Compute<E>>& measured, Pack<Compute<E>> target_scores) {
    using T = Compute<E>;
    constexpr int lanes = Pack<T>::lanes;
    const Groups<T>& g = measured.groups;
    const T* terms = static_cast<const T*>(run.terms);
    const auto term = [&](std::ptrdiff_t c) __attribute__((always_inline)) {
        return run.terms_tiled ? load_pack<T>(terms + c * lanes) : broadcast(terms[c]);
    };
    const auto term_of_slice = [&](std::int64_t c, std::ptrdiff_t i) {
        return static_cast<double>(terms[run.terms_tiled ? c * lanes + i : c]);
    };
    // Without targets there is none to ignore, and none apart.
    constexpr std::int64_t no_class = std::numeric_limits<std::int64_t>::max();
    std::int64_t target[lanes];
    double chosen_weights[lanes] = {};
    for (std::ptrdiff_t i = 0; i < column.count; ++i) {
        target[i] = run.target ? run.target[slice + i] : no_class;
        if (run.target) chosen_weights[i] = run.chosen[slice + i];
    }
    const PerSlice<T> chosen = PerSlice<T>::of(chosen_weights, column.count);
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
        ColumnSum<T> sum(run.classes);
        for (std::ptrdiff_t c = 0; c < run.classes; ++c) {
            const Pack<T> v = column.score(c);
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
    for (std::ptrdiff_t i = 0; i < column.count; ++i) {
        const bool is_ignored = target[i] < 0;
        any_ignored |= is_ignored;
        ignored_lanes[i] = is_ignored ? -1 : 0;
        run.value[slice + i] = is_ignored ? 0 : lane(loss.group[i / Pack<double>::lanes], static_cast<int>(i) % Pack<double>::lanes);
    }
    if constexpr (op == fastsoftmax::cross_entropy_grad) {
        const PerSlice<T> scale = PerSlice<T>::of(run.scale + slice, column.count);
        const PerSlice<T> spread = terms ? PerSlice<T>::of(run.spread + slice, column.count) : PerSlice<T>::all(0);
        PerSlice<T> total, numerator;
        for (int i = 0; i < groups<T>; ++i) {
            total.group[i] = chosen.group[i] + spread.group[i];
            numerator.group[i] = total.group[i] * scale.group[i];
        }
        double target_weights[lanes] = {}, max_weights[lanes] = {};
        std::int64_t largest[lanes];
        bool scales_fit = true;
        for (std::ptrdiff_t i = 0; i < column.count; ++i) {
            largest[i] = -1;
            if (target[i] < 0) continue;
            const std::int64_t argmax = measured.argmax[i];
            max_weights[i] = (target[i] == argmax ? chosen_weights[i] : 0) + (terms ? term_of_slice(argmax, i) : 0);
            if (max_weights[i] != 0) largest[i] = argmax;
            if (run.target) target_weights[i] = chosen_weights[i] + (terms ? term_of_slice(target[i], i) : 0);
            scales_fit = scales_fit && (!terms || fits_float(run.scale[slice + i]));
        }
        const Probability<T> probability(g, numerator);
        const Pack<T> factor = rounded(scale);
        const Mask<T> ignored = load_pack<Integer<T>>(ignored_lanes);
        Pack<T> target_exponentials = broadcast(T(0));
        with_exponential(g, any_shift(g), run.temperature, [&](auto exp) __attribute__((always_inline)) {
            target_exponentials = exp(target_scores);
            for (std::ptrdiff_t c = 0; c < run.classes; ++c) {
                const Pack<T> e = kept ? column.written(c) : exp(column.score(c));
                Pack<T> value;
                if (probability.wide || !scales_fit) {
                    PerSlice<T> exact = probability.widely(e);
                    const PerSlice<T> u = terms ? exactly(term(c)) : PerSlice<T>::all(0);
                    if (terms)
                        for (int i = 0; i < groups<T>; ++i)
                            exact.group[i] = exact.group[i] - u.group[i] * scale.group[i];
                    value = rounded(exact);
                } else {
                    value = terms ? probability(e, term(c) * factor) : probability(e);
                }
                column.write(c, any_ignored ? select(ignored, broadcast(T(0)), value) : value);
            }
        });
        const GradientEnds<T> ends(g, target_exponentials, total, PerSlice<T>::of(target_weights, column.count),
                                   PerSlice<T>::of(max_weights, column.count), scale);
        if (run.target) column.put(target, rounded(ends.at_target));
        column.put(largest, rounded(ends.at_max));
    }
}

template <Operation op, class E>
void columns(const Run& run) {
    using T = Compute<E>;
    constexpr bool loss = op == fastsoftmax::cross_entropy || op == fastsoftmax::cross_entropy_grad;
    constexpr bool may_keep =
        (op == fastsoftmax::softmax || op == fastsoftmax::cross_entropy_grad) && std::is_same_v<E, T>;
    for (std::ptrdiff_t slice = 0; slice < run.slices; slice += pack_lanes<E>) {
        const std::ptrdiff_t left = run.slices - slice;
        const Column<E> column(run, slice, left < pack_lanes<E> ? left : pack_lanes<E>);
        const auto finish = [&](auto keeps) __attribute__((always_inline)) {
            constexpr bool keep = decltype(keeps)::value;
            Pack<T> target_scores = broadcast(T(0));
            if constexpr (loss)
                if (run.target) target_scores = column.pick(column.x, column.x_stride, run.target + slice);
            const Measured<T> measured = measure_column<op, E, keep>(run, column);
            if constexpr (op == fastsoftmax::softmax) {
                const Probability<T> probability(measured.groups);
                with_exponential(measured.groups, any_shift(measured.groups), run.temperature, [&](auto exp) __attribute__((always_inline)) {
                    for (std::ptrdiff_t c = 0; c < run.classes; ++c)
                        column.write(c, probability(keep ? column.written(c) : exp(column.score(c))));
                });
            } else if constexpr (op == fastsoftmax::log_softmax) {
                write_column_log_softmax(run, column, measured);
            } else if constexpr (op == fastsoftmax::logsumexp) {
                for (std::ptrdiff_t i = 0; i < column.count; ++i)
                    run.value[slice + i] = 0;
                for (int k = 0; k < groups<T>; ++k) {
                    const Pack<double> value = log_sum_exp<T>(measured.groups.group[k]);
                    for (int i = 0; i < Pack<double>::lanes && k * Pack<double>::lanes + i < column.count; ++i)
                        run.value[slice + k * Pack<double>::lanes + i] = lane(value, i);
                }
            } else if constexpr (loss) {
                conclude_column_loss<op, E, keep>(run, column, slice, measured, target_scores);
            } else {
                const TransformGradient<op, T> gradient(measured.groups, run.temperature);
                for (std::ptrdiff_t c = 0; c < run.classes; ++c)
                    column.write(c, gradient(column.score(c), column.upstream(c)));
            }
        };
        if constexpr (may_keep) {
            if (run.classes <= fastsoftmax::block_classes && !run.terms) {
                finish(std::true_type{});
                continue;
            }
        }
        finish(std::false_type{});
    }
}

}  // namespace
