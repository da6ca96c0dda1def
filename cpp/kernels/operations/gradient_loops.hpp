// The passes of the gradients of the transforms over rows and tiles: each slice is summed, then written.
#pragma once

#include "gradients.hpp"

namespace {

// Some neighbouring rows of a run.
template <class T>
struct GradientRows {
    const Run& run;
    std::ptrdiff_t first;
    int count;

    FASTSOFTMAX_INLINE const T* x(int r) const { return at(run.x, r); }
    FASTSOFTMAX_INLINE const T* dy(int r) const { return at(run.dy, r); }
    FASTSOFTMAX_INLINE T* out(int r) const { return at(run.out, r); }

  private:
    FASTSOFTMAX_INLINE T* at(const Strided& array, int r) const {
        return reinterpret_cast<T*>(array.data + (first + r) * array.slice_stride);
    }
};

// Up to a pack of slices of any length: sum(begin, end) gives the sums of a block.
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

template <Operation op, bool far, class T>
FASTSOFTMAX_INLINE Wide<T> sum_row(const GradientRows<T>& rows, int r, std::ptrdiff_t begin, std::ptrdiff_t end) {
    constexpr int lanes = Pack<T>::lanes;
    const T *x = rows.x(r), *dy = rows.dy(r), *out = rows.out(r);
    const T *next_x = rows.x(r + rows.count), *next_dy = rows.dy(r + rows.count);
    TermSums<op, T, far> sum;
    std::ptrdiff_t i = begin;
    for (; i + lanes <= end; i += lanes) {
        // Where the results go, which are written next; and, in the pass that leaves time for it, the next rows.
        __builtin_prefetch(out + i, 1);
        if constexpr (op == Operation::softmax_grad) {
            __builtin_prefetch(next_x + i);
            __builtin_prefetch(next_dy + i);
        }
        sum.add(x + i, dy + i);
    }
    if (i < end) sum.add(x + i, dy + i, end - i);
    return sum.total();
}

template <Operation op, class T>
FASTSOFTMAX_ONCE GradientSums<T> sum_rows(const GradientRows<T>& rows, std::ptrdiff_t begin, std::ptrdiff_t end) {
    Wide<T> partial[Pack<T>::lanes] = {};
    for (int r = 0; r < rows.count; ++r) partial[r] = sum_row<op, false>(rows, r, begin, end);
    GradientSums<T> sums = {folded(partial), broadcast(T(0))};
    if constexpr (sizeof(T) == 8) {
        if (all_finite(sums.sum.high)) return sums;
        for (int r = 0; r < rows.count; ++r) partial[r] = sum_row<op, true>(rows, r, begin, end);
        set_far_sums(sums, folded(partial));
    }
    return sums;
}

// Stores f(x, dy) of `count` classes.
template <class T, class F>
FASTSOFTMAX_INLINE void map(const T* x, const T* dy, T* out, std::ptrdiff_t count, F f) {
    constexpr int lanes = Pack<T>::lanes;
    std::ptrdiff_t i = 0;
    for (; i + lanes <= count; i += lanes) store(out + i, f(load(x + i), load(dy + i), i));
    if (i < count)
        store_first(out + i, f(load_first(x + i, count - i, T(0)), load_first(dy + i, count - i, T(0)), i), count - i);
}

// The first `count` classes of the arrays: all of them, or a block's.
template <Operation op, class T>
FASTSOFTMAX_ONCE void write_rows(const GradientRows<T>& rows, const GradientSums<T>& sums, std::ptrdiff_t count) {
    with_transform_gradient<op>(sums, rows.run.temperature, [&](auto all) __attribute__((always_inline)) {
        for (int r = 0; r < rows.count; ++r) {
            const decltype(all) gradient(all, r);
            const T *next_x = rows.x(r + rows.count), *next_dy = rows.dy(r + rows.count);
            map(rows.x(r), rows.dy(r), rows.out(r), count,
                [&](Pack<T> x, Pack<T> dy, std::ptrdiff_t i) __attribute__((always_inline)) {
                    if constexpr (op == Operation::log_softmax_grad) {
                        __builtin_prefetch(next_x + i);
                        __builtin_prefetch(next_dy + i);
                    }
                    return gradient(x, dy);
                });
        }
    });
}

// Rows of few floats that follow each other in memory, at temperature 1. Each has `spans` spans of 16 bytes for its
// sum; for the results, packs hold the numbers of several.
template <Operation op, int spans = 1>
FASTSOFTMAX_ONCE void dense_gradients(const Run& run) {
    if constexpr (4 * spans < fastsoftmax::few_classes)
        if (run.classes > 4 * spans) return dense_gradients<op, spans + 1>(run);
    using Position = Pack<std::int32_t>;
    constexpr int lanes = Pack<float>::lanes;
    const std::ptrdiff_t classes = run.classes, last = classes - 4 * (spans - 1);
    // position / classes as position * reciprocal / 2^16: exact below 2^10.
    const Position reciprocal = broadcast(static_cast<std::int32_t>(0x10000 / classes + 1));
    for (std::ptrdiff_t first = 0; first < run.slices; first += lanes) {
        const std::ptrdiff_t left = run.slices - first;
        const GradientRows<float> rows = {run, first, static_cast<int>(left < lanes ? left : lanes)};
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
        Position position = iota<std::int32_t>();
        map(x, dy, rows.out(0), rows.count * classes,
            [&](Pack<float> v, Pack<float> dv, std::ptrdiff_t) __attribute__((always_inline)) {
                const PlainTransformGradient<op> gradient(all, shift_right(position * reciprocal, 16));
                position = position + broadcast<std::int32_t>(lanes);
                return gradient(v, dv);
            });
    }
}

template <Operation op, class T>
void gradient_rows(const Run& run) {
    if constexpr (sizeof(T) == 4)
        if (run.classes <= fastsoftmax::few_classes) return dense_gradients<op>(run);
    // Together they stay in the first-level cache.
    const std::ptrdiff_t fit = 8192 / (run.classes * static_cast<std::ptrdiff_t>(sizeof(T)) + 1);
    const std::ptrdiff_t together = fit < 1 ? 1 : fit < Pack<T>::lanes ? fit : Pack<T>::lanes;
    for (std::ptrdiff_t first = 0; first < run.slices; first += together) {
        const std::ptrdiff_t left = run.slices - first;
        const GradientRows<T> rows = {run, first, static_cast<int>(left < together ? left : together)};
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

    // A class of other slices is far away, where no prefetcher of the machine's sees it coming.
    FASTSOFTMAX_INLINE void fetch(std::ptrdiff_t c) const {
        __builtin_prefetch(x_ahead.data + c * x_ahead.class_stride);
        __builtin_prefetch(results_ahead.data + c * results_ahead.class_stride, 1);
        __builtin_prefetch(dy_ahead.data + c * dy_ahead.class_stride);
    }
};

// How many partial sums a slice has in a tile. Slices of few classes have one; but those of floats may be rows, too.
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
        if (!all_finite(sums.sum.high)) set_far_sums(sums, sum_tile_in<op, true>(tile, partial, begin, end));
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

// The run's only row, in blocks.

template <Operation op, class T>
Statistics measure_gradient_row(const Run& run, std::ptrdiff_t count) {
    return statistics_of(sum_rows<op>(GradientRows<T>{run, 0, 1}, 0, count), 0);
}

template <Operation op, class T>
void write_gradient_row(const Run& run, const Statistics& all, const Statistics&, std::ptrdiff_t count) {
    write_rows<op>(GradientRows<T>{run, 0, 1}, sums_of<T>(&all, 1), count);
}

// A slice has no number of its own.
void conclude_gradient_row(const Run&, const Statistics&) {}

}  // namespace
