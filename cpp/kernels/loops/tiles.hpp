// Dense rows of few classes. As many rows as a pack has lanes are a tile: transposed in registers on the way in and
// out, so that a pack holds one class of each.
#pragma once

#include "../general/tiles.hpp"
#include "../group.hpp"
#include "../transpose.hpp"
#include "rows.hpp"

namespace {

using fastsoftmax::few_classes;

template <class T>
FASTSOFTMAX_INLINE void load_square(const T* rows, std::ptrdiff_t classes, Pack<T> (&square)[quarter_lanes<T>]) {
    for (int j = 0; j < quarter_lanes<T>; ++j)
        square[j] = load_quarters(rows + j * classes, quarter_lanes<T> * classes);
    transpose(square);
}

// The sums of a tile's rows; what results are made of goes to `to`, if asked, class after class, and the scores of the
// first class to `first`.
template <class Sum, bool keep, class T>
FASTSOFTMAX_INLINE Sum sum_tile(const Group<T>& group, const T* rows, std::ptrdiff_t classes, T* to, Pack<T>& first) {
    constexpr int n = quarter_lanes<T>, lanes = Pack<T>::lanes, packs = packs_at_once < n ? packs_at_once : n;
    Sum sum = group.template sum<Sum>();
    Pack<T> square[n];
    first = broadcast(T(0));
    const auto add = [&](auto count, int j, std::ptrdiff_t c) __attribute__((always_inline)) {
        const auto kept = add_packs<decltype(count)::value>(sum, square + j, c + j);
        if constexpr (keep) store_pack(to + (c + j) * lanes, kept);
    };
    std::ptrdiff_t c = 0;
    for (; c + n <= classes;) {
        load_square(rows + c, classes, square);
        if (c == 0) first = square[0];
        for (int j = 0; j < n; j += packs) add(std::integral_constant<int, packs>{}, j, c);
        c += n;
        if (c % terms_to_carry == 0) sum.sum.carry();
    }
    if (const std::ptrdiff_t left = classes - c) {
        load_square(rows + c, classes, square);
        if (c == 0) first = square[0];
        int j = 0;
        if constexpr (n > 2)
            if (left >= 2) {
                add(std::integral_constant<int, 2>{}, 0, c);
                j = 2;
            }
        if (left % 2) add(std::integral_constant<int, 1>{}, j, c);
    }
    return sum;
}

// Whether all of `count` rows take the general way without being tried.
template <class T>
FASTSOFTMAX_INLINE bool all_are_far(const T* rows, std::ptrdiff_t classes, int count) {
    int i = 0;
    while (i < count && begins_far(rows[i * classes])) ++i;
    return i == count;
}

template <class T, class Value>
FASTSOFTMAX_INLINE void write_tile(T* rows, std::ptrdiff_t classes, Value value) {
    constexpr int n = quarter_lanes<T>, lanes = Pack<T>::lanes;
    const std::ptrdiff_t left = classes % n;
    Pack<T> square[n];
    if (left > 0) {
        // First, because its quarters reach into the next rows.
        const std::ptrdiff_t c = classes - left;
        for (int j = 0; j < n; ++j) square[j] = j < left ? value(c + j) : broadcast(T(0));
        transpose(square);
        T* row = rows + c;
        row = store_quarters<0>(row, square, classes);
        row = store_quarters<1>(row, square, classes);
        row = store_quarters<2>(row, square, classes);
        const T* end = rows + lanes * classes;
        for (int j = 0; j < n; ++j, row += classes)
            store_some<T>(row, quarter<3>(square[j]), row + n <= end ? n : left);
    }
    for (std::ptrdiff_t c = 0; c + n <= classes; c += n) {
        for (int j = 0; j < n; ++j) square[j] = value(c + j);
        transpose(square);
        T* row = rows + c;
        row = store_quarters<0>(row, square, classes);
        row = store_quarters<1>(row, square, classes);
        row = store_quarters<2>(row, square, classes);
        store_quarters<3>(row, square, classes);
    }
}

// The sums of slices of few classes, a slice a lane, as operations take them.

// Where all exponentials but one are 0, that one stands for the sum: its class then has exactly 1. `e`: the
// exponentials, class after class, `step` elements apart.
template <class T>
FASTSOFTMAX_ONCE Two<Pack<T>> with_only(Two<Pack<T>> sum, const T* e, std::ptrdiff_t step, std::ptrdiff_t classes) {
    Pack<T> filled = broadcast(T(0)), only = broadcast(T(0));
    for (std::ptrdiff_t c = 0; c < classes; ++c) {
        const Pack<T> v = load_pack<T>(e + c * step);
        only = max(only, v);
        filled = filled + select(equal(v, broadcast(T(0))), broadcast(T(0)), broadcast(T(1)));
    }
    const Mask<T> single = equal(filled, broadcast(T(1)));
    return {select(single, only, sum.high), select(single, broadcast(T(0)), sum.low)};
}

// Slices with an only exponential are among these, unless there is one class only.
template <class T>
FASTSOFTMAX_INLINE std::uint32_t may_be_only(const KeptSum<T, true>& sum) {
    return equal_bits(sum.smallest, broadcast(T(0)));
}

template <class Op, class T>
FASTSOFTMAX_INLINE typename Op::template Results<T> results_of(const Group<T>& group, const KeptSum<T, true>& sum) {
    Two<Pack<T>> all = sum.sum.in_two();
    if (may_be_only(sum) != 0 || group.run.classes == 1)
        all = with_only(all, group.kept, group.kept_class_stride, group.run.classes);
    return {group, all};
}

template <class Op, class T, bool keep>
FASTSOFTMAX_INLINE typename Op::template Results<T> results_of(const Group<T>& group,
                                                               const LabelSum<T, true, keep>& sum) {
    return {group, sum.of_label, sum.sum.in_two()};
}

template <class Op, class T>
FASTSOFTMAX_INLINE typename Op::template Results<T> results_of(const Group<T>& group, const SortedSum<T, true>& sum) {
    return {group, sum.largest, sum.sum.in_two()};
}

// Slices with an only exponential are passed over here.
template <class Op, class T, class Sum>
FASTSOFTMAX_INLINE typename Op::template Results<T> results_in_registers(const Group<T>& group, const Sum& sum) {
    if constexpr (std::is_same_v<Sum, KeptSum<T, true>>) {
        typename Op::template Results<T> results(group, sum.sum.in_two());
        results.near &= ~may_be_only(sum);
        return results;
    } else {
        return results_of<Op>(group, sum);
    }
}

// Of the slices of a group those that are far, the general way: `tile` has their scores, and gets their results. Their
// own numbers go where the run has them, unless those are near.
template <class Op, class T>
FASTSOFTMAX_ONCE void general_tile_of(const Group<T>& group, std::uint32_t near, T* tile) {
    constexpr int lanes = Pack<T>::lanes;
    Run run = slices_from(group.run, group.first);
    double* const values = run.value;
    double* const signs = run.sign;
    double value[lanes], sign[lanes];
    if (values) run.value = value;
    if (signs) run.sign = sign;
    run.slices = group.count;
    run.x.data = run.out.data = reinterpret_cast<std::byte*>(tile);
    run.scores_ahead = run.results_ahead = {reinterpret_cast<std::byte*>(tile), 0, 0};
    general_tiles<Op::operation, T>(run);
    for (int i = 0; i < group.count; ++i) {
        if (near >> i & 1) continue;
        if (values) values[i] = value[i];
        if (signs) signs[i] = sign[i];
    }
}

// Lanes set in `bits`.
template <class T>
FASTSOFTMAX_ONCE Mask<T> lanes_of(std::uint32_t bits) {
    Integer<T> mask[Pack<T>::lanes];
    for (int i = 0; i < Pack<T>::lanes; ++i) mask[i] = bits >> i & 1 ? Integer<T>(-1) : Integer<T>(0);
    return load_pack<Integer<T>>(mask);
}

// How many tiles go together, so that their chains of operations overlap: few enough for the first-level cache.
constexpr std::ptrdiff_t tiles_together = 4;

// Results of a tile some slices of which are far: `e` gets them all.
template <class Op, class T>
FASTSOFTMAX_ONCE void far_tile(const Group<T>& group, const typename Op::template Results<T>& results, T* e) {
    constexpr int lanes = Pack<T>::lanes;
    T far[lanes * few_classes];
    rows_to_tile(reinterpret_cast<const T*>(group.x), group.run.classes, far);
    general_tile_of<Op>(group, results.near | near_values(results), far);
    if constexpr (Op::writes) {
        const Mask<T> near = lanes_of<T>(results.near);
        const typename Op::template Results<T>::Columns value(results);
        for (std::ptrdiff_t c = 0; c < group.run.classes; ++c) {
            T* place = e + c * lanes;
            store_pack(place, select(near, value(load_pack<T>(place), c), load_pack<T>(far + c * lanes)));
        }
    }
}

// `count` tiles of dense rows, at x and out, from `first` of the run on; the last one has `last` rows.
template <class Op, class T>
FASTSOFTMAX_ONCE void near_tiles_of(const Run& run, const T* x, T* out, std::ptrdiff_t first, int count, int last) {
    using Sum = typename Op::template Sum<T, true>;
    using Results = typename Op::template Results<T>;
    constexpr int lanes = Pack<T>::lanes;
    alignas(pack_bytes) T scratch[tiles_together * lanes * few_classes];
    Results results[tiles_together];
    const std::ptrdiff_t size = lanes * run.classes, stride = run.classes * static_cast<std::ptrdiff_t>(sizeof(T));
    const auto group = [&](int k) __attribute__((always_inline)) {
        return Group<T>{
            run,    first + k * lanes, k + 1 < count ? lanes : last, reinterpret_cast<const std::byte*>(x + k * size),
            stride, sizeof(T),         scratch + k * size,           lanes};
    };
    for (int k = 0; k < count; ++k) {
        if constexpr (Op::writes)
            for (std::ptrdiff_t i = 0; i < size; i += lanes) __builtin_prefetch(out + k * size + i, 1);
        const Group<T> tile = group(k);
        set_all_far(results[k]);
        if (all_are_far(x + k * size, run.classes, tile.count)) continue;
        Pack<T> scores;
        const Sum sum = sum_tile<Sum, Op::writes>(tile, x + k * size, run.classes, scratch + k * size, scores);
        results[k] = results_of<Op>(tile, sum);
        set_far(results[k], begins_far(scores));
    }
    for (int k = 0; k < count; ++k) {
        const T* next = x + (tiles_together + k) * size;
        for (std::ptrdiff_t i = 0; i < size; i += lanes) __builtin_prefetch(next + i);
        T* e = scratch + k * size;
        const Group<T> tile = group(k);
        const std::uint32_t far = ~results[k].near & static_cast<std::uint32_t>((1ull << tile.count) - 1);
        if (far != 0) far_tile<Op>(tile, results[k], e);
        if constexpr (Op::writes) {
            const auto write = [&](auto value) __attribute__((always_inline)) {
                write_tile(out + k * size, run.classes, [&](std::ptrdiff_t c) __attribute__((always_inline)) {
                    return value(load_pack<T>(e + c * lanes), c);
                });
            };
            if (far == 0)
                write(typename Results::Columns(results[k]));
            else
                write([](Pack<T> v, std::ptrdiff_t) __attribute__((always_inline)) { return v; });
        }
    }
}

// Up to tiles_together tiles of dense rows by way of copies, because their loads reach beyond the last row, or because
// their elements are of another type.
template <class Op, class E>
FASTSOFTMAX_ONCE void near_copies_of(const Run& run, const E* x, E* out, std::ptrdiff_t first, std::ptrdiff_t rows) {
    using T = Compute<E>;
    constexpr std::ptrdiff_t lanes = Pack<T>::lanes, most = tiles_together * lanes * few_classes;
    T own[most + read_behind<T>], results[most];
    const std::ptrdiff_t count = (rows + lanes - 1) / lanes, elements = rows * run.classes;
    read_elements(x, elements, own);
    for (std::ptrdiff_t i = elements; i < count * lanes * run.classes + read_behind<T>; ++i) own[i] = 0;
    near_tiles_of<Op>(run, static_cast<const T*>(own), results, first, static_cast<int>(count),
                      static_cast<int>(rows - (count - 1) * lanes));
    if constexpr (Op::writes) write_elements(results, elements, out);
}

// `count` tiles of dense rows of two classes, or of as many as 16 bytes hold: they stay in registers. The latter way
// changes the order of rows, which must not matter.
template <class Op, int classes, class T>
FASTSOFTMAX_ONCE void near_registers(const Run& run, const T* x, T* out, std::ptrdiff_t count) {
    using Results = typename Op::template Results<T>;
    constexpr int lanes = Pack<T>::lanes;
    constexpr std::ptrdiff_t size = lanes * classes;
    for (std::ptrdiff_t tile = 0; tile < count; ++tile, x += size, out += Op::writes ? size : 0) {
        const Group<T> group = {
            run, tile * lanes, lanes, reinterpret_cast<const std::byte*>(x), classes * sizeof(T), sizeof(T)};
        Pack<T> packs[classes];
        for (int c = 0; c < classes; ++c) packs[c] = load_pack<T>(x + c * lanes);
        if constexpr (classes == 2)
            split_pairs(packs);
        else
            transpose(packs);
        auto sum = group.template sum<typename Op::template Sum<T, true>>();
        const std::uint32_t far = begins_far(packs[0]);
        const auto kept = add_packs<classes>(sum, packs, 0);
        const Results results = results_in_registers<Op>(group, sum);
        if ((far | ~results.near) & ((1u << lanes) - 1)) {
            near_copies_of<Op>(run, x, out, tile * lanes, lanes);
            continue;
        }
        if constexpr (Op::writes) {
            const typename Results::Columns value(results);
            for (int c = 0; c < classes; ++c) packs[c] = value(part(kept, c), c);
            if constexpr (classes == 2)
                join_pairs(packs);
            else
                transpose(packs);
            for (int c = 0; c < classes; ++c) store_pack(out + c * lanes, packs[c]);
        }
    }
}

template <class Op, class E>
void near_tiles(const Run& run) {
    using T = Compute<E>;
    constexpr bool as_they_are = std::is_same_v<E, T>;
    constexpr int lanes = Pack<T>::lanes;
    const std::ptrdiff_t size = lanes * run.classes;
    const E* x = reinterpret_cast<const E*>(run.x.data);
    E* out = reinterpret_cast<E*>(run.out.data);
    std::ptrdiff_t first = 0;
    if constexpr (as_they_are) {
        // Loads of a partial square reach beyond the last row: into further rows, except at the end.
        const std::ptrdiff_t behind =
            run.classes % quarter_lanes<T> ? (read_behind<T> + run.classes - 1) / run.classes : 0;
        std::ptrdiff_t whole = run.slices > behind ? (run.slices - behind) / lanes : 0;
        constexpr bool any_order = Op::writes && signature<Op::operation>.value == fastsoftmax::PerSlice::none;
        if (run.classes == 2 || (any_order && run.classes == quarter_lanes<T>)) {
            whole = run.slices / lanes;
            if (run.classes == 2)
                near_registers<Op, 2>(run, x, out, whole);
            else if constexpr (any_order)
                near_registers<Op, quarter_lanes<T>>(run, x, out, whole);
            first = whole * lanes;
            whole = 0;
        }
        for (std::ptrdiff_t tile = 0; tile < whole; tile += tiles_together) {
            const int count = static_cast<int>(whole - tile < tiles_together ? whole - tile : tiles_together);
            near_tiles_of<Op>(run, x + tile * size, out ? out + tile * size : out, tile * lanes, count, lanes);
        }
        if (first == 0) first = whole * lanes;
    }
    constexpr std::ptrdiff_t together = as_they_are ? lanes : tiles_together * lanes;
    for (; first < run.slices; first += together) {
        const std::ptrdiff_t left = run.slices - first;
        near_copies_of<Op>(run, x + first * run.classes, out ? out + first * run.classes : out, first,
                           left < together ? left : together);
    }
}

}  // namespace
