// The passes of the gradients of the transforms over rows and tiles: each slice is summed, then written.
#pragma once

#include "gradients.hpp"

namespace {

// Sums up to a pack of slices of any length; sum(begin, end) returns the sums of a block.
template <class T, class Sum>
FASTSOFTMAX_INLINE GradientSums<T> sum_blocks(const Run& run, int count, Sum sum) {
    constexpr std::ptrdiff_t block = fastsoftmax::block_classes;
    if (run.classes <= block) return sum(std::ptrdiff_t{0}, run.classes);
    Statistics merged[Pack<T>::lanes] = {};
    for (std::ptrdiff_t begin = 0; begin < run.classes; begin += block) {
        const GradientSums<T> sums = sum(begin, run.classes - begin < block ? run.classes : begin + block);
        for (int i = 0; i < count; ++i) {
            const Statistics s = statistics_of(sums, i);
            if (begin == 0)
                merged[i] = s;
            else
                merge_sums(run, merged[i], s);
        }
    }
    return sums_of<T>(merged, count);
}

// Rows of at least this length are prefetched, which makes them 1.2 times as fast from memory. Shorter rows are faster
// without; so are rows in blocks, except that softmax_grad prefetches the place of its results.
constexpr std::ptrdiff_t long_row = 2048;

FASTSOFTMAX_INLINE bool is_long(std::ptrdiff_t classes) {
    return long_row <= classes && classes <= fastsoftmax::block_classes;
}

// `fetch`: also prefetches the memory of the results.
template <Operation op, bool far, bool fetch, class E>
FASTSOFTMAX_INLINE Wide<Compute<E>> sum_row(const Rows<E>& rows, int r, std::ptrdiff_t begin, std::ptrdiff_t end) {
    constexpr int step = Step<E>::lanes;
    const E *x = rows.x(r), *dy = rows.dy(r), *out = rows.out(r);
    TermSums<op, E, far> sum;
    std::ptrdiff_t i = begin;
    for (; i + step <= end; i += step) {
        if constexpr (fetch) __builtin_prefetch(out + i, 1);
        sum.add(x + i, dy + i);
    }
    if (i < end) sum.add(x + i, dy + i, end - i);
    return sum.total();
}

template <Operation op, bool far, class E>
FASTSOFTMAX_INLINE Wide<Compute<E>> sum_each_row(const Rows<E>& rows, std::ptrdiff_t begin, std::ptrdiff_t end) {
    using T = Compute<E>;
    constexpr int lanes = Pack<T>::lanes;
    if (rows.count == 1) {
        const std::ptrdiff_t classes = rows.run.classes;
        const bool fetch = !far && (op == Operation::softmax_grad ? classes >= 2 * long_row : is_long(classes));
        const Two<double> sum =
            folded(fetch ? sum_row<op, far, !far>(rows, 0, begin, end) : sum_row<op, far, false>(rows, 0, begin, end));
        return in_all_lanes<T>(sum);
    }
    Wide<T> partial[lanes];
    for (int r = 0; r < rows.count; ++r) partial[r] = sum_row<op, far, false>(rows, r, begin, end);
    if (rows.count == lanes) return folded(partial);
    double high[lanes] = {}, low[lanes] = {};
    for (int r = 0; r < rows.count; ++r) {
        const Two<double> sum = folded(partial[r]);
        high[r] = sum.high;
        low[r] = sum.low;
    }
    return load_wide<T>(high, low);
}

template <Operation op, class E>
FASTSOFTMAX_ONCE auto sum_rows(const Rows<E>& rows, std::ptrdiff_t begin, std::ptrdiff_t end) {
    GradientSums<Compute<E>> sums = {sum_each_row<op, false>(rows, begin, end), broadcast(Compute<E>(0))};
    if constexpr (std::is_same_v<E, double> || (std::is_same_v<E, BFloat16> && op == Operation::softmax_grad))
        if (!all_finite(sums.sum)) set_far_sums(sums, sum_each_row<op, true>(rows, begin, end));
    return sums;
}

// Stores f(x, dy, position) of `count` classes; rows of halves fill at least a step. The last step may overlap the one
// before it, and is computed before anything is written, because the results may take the place of x or dy. So is the
// first step, if there are many: the others then write whole cache lines, wherever the array begins.
template <bool may_be_nan, class E, class F>
FASTSOFTMAX_INLINE void map(const E* x, const E* dy, E* out, std::ptrdiff_t count, F f) {
    constexpr int step = Step<E>::lanes;
    if constexpr (std::is_same_v<E, Compute<E>>)
        if (count < step)
            return store_first(out, f(load_first_of_step(x, count), load_first_of_step(dy, count), 0), count);
    const auto store_at = [&](E* to, std::ptrdiff_t i) __attribute__((always_inline)) {
        store_step<may_be_nan>(to, f(load_step(x + i), load_step(dy + i), i));
    };
    const std::ptrdiff_t last = count - step;
    const bool many = count > 16 * step;
    E ends[2][step];
    for (int k = many ? 0 : 1; k < 2; ++k) store_at(ends[k], k * last);
    std::ptrdiff_t i = many ? step - (reinterpret_cast<std::uintptr_t>(out) & 63) / sizeof(E) % step : 0;
    for (; i < last; i += step) store_at(out + i, i);
    if (many) copy_elements(out, ends[0], step);
    copy_elements(out + last, ends[1], step);
}

// `fetch`: also prefetches the next row, to the second-level cache.
template <bool may_be_nan, bool fetch, class E, class Gradient>
FASTSOFTMAX_INLINE void write_row(const Rows<E>& rows, int r, std::ptrdiff_t count, const Gradient& gradient) {
    const E *next_x = rows.x(r + 1), *next_dy = rows.dy(r + 1);
    map<may_be_nan>(rows.x(r), rows.dy(r), rows.out(r), count,
                    [&](Step<E> x, Step<E> dy, std::ptrdiff_t i) __attribute__((always_inline)) {
                        if constexpr (fetch) {
                            __builtin_prefetch(next_x + i, 0, 2);
                            __builtin_prefetch(next_dy + i, 0, 2);
                        }
                        Step<E> values;
                        unrolled<Step<E>::lanes / Pack<Compute<E>>::lanes>([&](int k) __attribute__((always_inline)) {
                            set_part(values, k, gradient(part(x, k), part(dy, k)));
                        });
                        return values;
                    });
}

// Whether writing a long row also prefetches the next one: computing exponentials leaves the time for it.
template <class E, class Gradient>
constexpr bool fetches_next = false;
template <>
constexpr bool fetches_next<float, PlainTransformGradient<Operation::log_softmax_grad>> = true;

template <bool may_be_nan, class E, class Gradient>
FASTSOFTMAX_INLINE void write_each_row(const Rows<E>& rows, std::ptrdiff_t count, const Gradient& all) {
    if constexpr (fetches_next<E, Gradient>)
        if (is_long(rows.run.classes) && rows.first + 1 < rows.run.slices)
            return write_row<may_be_nan, true>(rows, 0, count, Gradient(all, 0));
    for (int r = 0; r < rows.count; ++r) write_row<may_be_nan, false>(rows, r, count, Gradient(all, r));
}

// Writes the first `count` classes of the arrays: all of them, or those of a block.
template <Operation op, class E>
FASTSOFTMAX_ONCE void write_rows(const Rows<E>& rows, const GradientSums<Compute<E>>& sums, std::ptrdiff_t count) {
    with_transform_gradient<op>(sums, rows.run.temperature, [&](auto all) __attribute__((always_inline)) {
        constexpr bool plain = std::is_same_v<decltype(all), PlainTransformGradient<Operation::softmax_grad>>;
        if constexpr (std::is_same_v<E, BFloat16> && plain)
            // If the sum of y dy is finite, so are all y and dy, and the formula gives no NaN.
            if (all_finite(sums.sum)) return write_each_row<false>(rows, count, all);
        write_each_row<true>(rows, count, all);
    });
}

// Rows of at most this many floats are faster with dense_gradients.
constexpr std::ptrdiff_t most_dense = 32;

// Computes rows of few floats that follow each other in memory, at temperature 1. Each row is summed in `spans` spans
// of 16 bytes; for the results, a pack holds numbers of several rows.
template <Operation op, int spans = 1>
FASTSOFTMAX_ONCE void dense_gradients(const Run& run) {
    if constexpr (4 * spans < most_dense)
        if (run.classes > 4 * spans) return dense_gradients<op, spans + 1>(run);
    using Position = Pack<std::int32_t>;
    constexpr int lanes = Pack<float>::lanes;
    const std::ptrdiff_t classes = run.classes, last = classes - 4 * (spans - 1);
    // position / classes as position * reciprocal / 2^16: exact below 2^10.
    const auto reciprocal = static_cast<std::int32_t>(0x10000 / classes + 1);
    for (std::ptrdiff_t first = 0; first < run.slices; first += lanes) {
        const std::ptrdiff_t left = run.slices - first;
        const Rows<float> rows = {run, first, static_cast<int>(left < lanes ? left : lanes)};
        const float *x = rows.x(0), *dy = rows.dy(0);
        Pack<double> partial[lanes];
        for (int r = 0; r < lanes; ++r) {
            TermSums<op, float> sum;
            if (r < rows.count) sum.template add_row<spans>(x + r * classes, dy + r * classes, last);
            const Wide<float> total = sum.total();
            partial[r] = spans > 2 ? part(total, 0) + part(total, 1) : part(total, 0);
        }
        const Wide<float> sum = joined(fold_sums(partial), fold_sums(partial + lanes / 2));
        if (any_far<op, float>(sum, 1)) {
            write_rows<op>(rows, GradientSums<float>{sum, broadcast(0.0f)}, classes);
            continue;
        }
        const PlainTransformGradient<op> all(sum);
        Position scaled = iota<std::int32_t>() * broadcast(reciprocal);
        const auto value = [&](Pack<float> v, Pack<float> dv) __attribute__((always_inline)) {
            const PlainTransformGradient<op> gradient(all, shift_right(scaled, 16));
            scaled = scaled + broadcast(lanes * reciprocal);
            return gradient(v, dv);
        };
        float* out = rows.out(0);
        const std::ptrdiff_t count = rows.count * classes;
        std::ptrdiff_t i = 0;
        for (; i + lanes <= count; i += lanes) store(out + i, value(load(x + i), load(dy + i)));
        if (i < count)
            store_first(out + i, value(load_first(x + i, count - i, 0.0f), load_first(dy + i, count - i, 0.0f)),
                        count - i);
    }
}

template <Operation op, class E>
void gradient_rows(const Run& run) {
    using T = Compute<E>;
    if constexpr (std::is_same_v<E, float>)
        if (run.classes <= most_dense) return dense_gradients<op>(run);
    // As many rows as stay in the first-level cache together.
    const std::ptrdiff_t fit =
        (op == Operation::softmax_grad ? 4096 : 8192) / (run.classes * static_cast<std::ptrdiff_t>(sizeof(E)) + 1);
    const std::ptrdiff_t together = fit < 1 ? 1 : fit < Pack<T>::lanes ? fit : Pack<T>::lanes;
    for (std::ptrdiff_t first = 0; first < run.slices; first += together) {
        const std::ptrdiff_t left = run.slices - first;
        const Rows<E> rows = {run, first, static_cast<int>(left < together ? left : together)};
        const GradientSums<T> sums = sum_blocks<T>(
            run, rows.count, [&](std::ptrdiff_t begin, std::ptrdiff_t end) { return sum_rows<op>(rows, begin, end); });
        write_rows<op>(rows, sums, run.classes);
    }
}

// A tile and where the next ones come from. Results take the place of x.
template <class T>
struct GradientTile {
    T* x;
    const T* dy;
    fastsoftmax::Ahead x_ahead, dy_ahead, results_ahead;

    // The same class of other slices is too far away for the hardware prefetcher.
    FASTSOFTMAX_INLINE void fetch(std::ptrdiff_t c) const {
        __builtin_prefetch(x_ahead.data + c * x_ahead.class_stride);
        __builtin_prefetch(results_ahead.data + c * results_ahead.class_stride, 1);
        __builtin_prefetch(dy_ahead.data + c * dy_ahead.class_stride);
    }
};

// How many partial sums a slice has in a tile: as many as a pack has lanes. But slices of few doubles have one; slices
// of few floats, which may also be rows, have one for each class, rounded up to a power of two, at most 16.
template <class T>
FASTSOFTMAX_INLINE int partial_gradient_sums(std::ptrdiff_t classes) {
    int sums = partial_sums<T>(classes);
    if constexpr (sizeof(T) == 4)
        while (sums < classes && sums < Pack<T>::lanes) sums *= 2;
    return sums;
}

template <Operation op, bool far, class T>
FASTSOFTMAX_INLINE Wide<T> sum_tile_in(const GradientTile<T>& tile, int sums, std::ptrdiff_t begin,
                                       std::ptrdiff_t end) {
    Wide<T> partial[Pack<T>::lanes];
    for (int k = 0; k < sums; ++k) {
        TermSums<op, T, far> sum;
        for (std::ptrdiff_t c = begin + k; c < end; c += sums) {
            tile.fetch(c);
            sum.add(tile.x + c * Pack<T>::lanes, tile.dy + c * Pack<T>::lanes);
        }
        partial[k] = sum.total();
    }
    return folded(partial, sums);
}

template <Operation op, class T>
FASTSOFTMAX_ONCE GradientSums<T> sum_tile(const Run& run, const GradientTile<T>& tile, std::ptrdiff_t begin,
                                          std::ptrdiff_t end) {
    const int partial = partial_gradient_sums<T>(run.classes);
    GradientSums<T> sums = {sum_tile_in<op, false>(tile, partial, begin, end), broadcast(T(0))};
    if constexpr (sizeof(T) == 8)
        if (!all_finite(sums.sum)) set_far_sums(sums, sum_tile_in<op, true>(tile, partial, begin, end));
    return sums;
}

template <Operation op, class T>
void gradient_tiles(const Run& run) {
    constexpr int lanes = Pack<T>::lanes;
    for (std::ptrdiff_t first = 0; first < run.slices; first += lanes) {
        const std::ptrdiff_t offset = first * run.classes, left = run.slices - first;
        const auto of_tile = [&](fastsoftmax::Ahead ahead) {
            ahead.data += first / lanes * ahead.tile_stride;
            return ahead;
        };
        const GradientTile<T> tile = {reinterpret_cast<T*>(run.x.data) + offset,
                                      reinterpret_cast<const T*>(run.dy.data) + offset, of_tile(run.scores_ahead),
                                      of_tile(run.dy_ahead), of_tile(run.results_ahead)};
        const GradientSums<T> sums = sum_blocks<T>(
            run, static_cast<int>(left < lanes ? left : lanes),
            [&](std::ptrdiff_t begin, std::ptrdiff_t end) { return sum_tile<op>(run, tile, begin, end); });
        with_transform_gradient<op>(sums, run.temperature, [&](auto gradient) __attribute__((always_inline)) {
            for (std::ptrdiff_t c = 0; c < run.classes; ++c) {
                T* x = tile.x + c * lanes;
                store(x, gradient(load(x), load(tile.dy + c * lanes)));
            }
        });
    }
}

// The functions below compute the only row of a run in blocks.

template <Operation op, class T>
Statistics measure_gradient_row(const Run& run, double, std::ptrdiff_t count) {
    return statistics_of(sum_rows<op>(Rows<T>{run, 0, 1}, 0, count), 0);
}

template <Operation op, class T>
void write_gradient_row(const Run& run, const Statistics& all, std::ptrdiff_t count) {
    write_rows<op>(Rows<T>{run, 0, 1}, sums_of<T>(&all, 1), count);
}

// Gradients have no result that is one number a slice.
void conclude_gradient_row(const Run&, Statistics&) {}

}  // namespace
