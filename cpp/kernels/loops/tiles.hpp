// Dense rows of few classes. As many rows as a pack has lanes make a tile. They are transposed in registers on the way
// in and out, so that a pack holds one class of each.
#pragma once

#include "../transpose.hpp"
#include "tile.hpp"

namespace {

template <class T>
FASTSOFTMAX_INLINE void load_square(const T* rows, std::ptrdiff_t classes, Pack<T> (&square)[quarter_lanes<T>]) {
    constexpr int n = quarter_lanes<T>;
    const auto load = [&](int j) __attribute__((always_inline)) {
        square[j] = load_quarters(rows + j * classes, n * classes);
    };
    // With a loop, GCC's code takes 0.88 to 0.97 of the time if a pack is one register, but 1.08 of it if it is two.
    if constexpr (pack_registers == 1)
        for (int j = 0; j < n; ++j) load(j);
    else
        unrolled<n>(load);
    transpose(square);
}

// Sums the rows of a tile. If `keep`, stores the kept numbers at `to`, class after class. `first` receives the scores
// of the first class.
template <class Sum, bool keep, class T>
FASTSOFTMAX_INLINE Sum sum_tile(const Group<T>& group, const T* rows, std::ptrdiff_t classes, T* to, Pack<T>& first) {
    constexpr int n = quarter_lanes<T>, lanes = Pack<T>::lanes, packs = packs_at_once < n ? packs_at_once : n;
    Sum sum = group.template sum<Sum>();
    Pack<T> square[n];
    first = broadcast(T(0));
    const auto add = [&](auto count, int j, std::ptrdiff_t c) __attribute__((always_inline)) {
        const auto kept = add_packs<decltype(count)::value>(sum, FixedExponential<T>(), square + j, c + j);
        if constexpr (keep) store_pack(to + (c + j) * lanes, kept);
    };
    std::ptrdiff_t c = 0;
    for (; c + n <= classes;) {
        load_square(rows + c, classes, square);
        if (c == 0) first = square[0];
        unrolled<n / packs>(
            [&](int i) __attribute__((always_inline)) { add(std::integral_constant<int, packs>{}, i * packs, c); });
        c += n;
        if (c % terms_to_carry == 0) sum.carry();
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

// Whether all of `count` rows are far without being tried.
template <class T>
FASTSOFTMAX_INLINE bool all_are_far(const T* rows, std::ptrdiff_t classes, int count) {
    int i = 0;
    while (i < count && begins_far(rows[i * classes])) ++i;
    return i == count;
}

// How many tiles go together, so that their chains of operations overlap: few enough for the first-level cache.
constexpr std::ptrdiff_t tiles_together = 4;

// Computes `count` tiles of dense rows, at x and out, from `first` of the run on. The last one has `last` rows.
// `second` is null if there is no second output.
template <class Op, class T>
FASTSOFTMAX_ONCE void near_tiles_of(const Run& run, const T* x, T* out, T* second, std::ptrdiff_t first, int count,
                                    int last, FarSlices<T>& far_slices) {
    using Exp = FixedExponential<T>;
    using Sum = typename Op::template Sum<T, true>;
    constexpr int lanes = Pack<T>::lanes;
    alignas(pack_bytes) T scratch[tiles_together * lanes * few_classes];
    typename Op::template Results<T, Exp> results[tiles_together];
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
        results[k] = results_of<Op>(tile, Exp(), &sum);
        set_far(results[k], begins_far(scores));
        if constexpr (may_write_second<Op>)
            if (second) results[k].see_classes(tile);
    }
    for (int k = 0; k < count; ++k) {
        const T* next = x + (tiles_together + k) * size;
        for (std::ptrdiff_t i = 0; i < size; i += lanes) __builtin_prefetch(next + i);
        const Group<T> tile = group(k);
        const std::uint32_t far = ~results[k].near & bits_of(tile.count);
        if (far == bits_of(lanes) && near_values(results[k]) == 0) {
            far_slices.compute_tile(
                tile.first, lanes,
                [&](T* to) __attribute__((always_inline)) { rows_to_tile(x + k * size, run.classes, to); },
                [&](const T* from, const T* from_second) __attribute__((always_inline)) {
                    if constexpr (Op::writes) tile_to_rows(from, run.classes, out + k * size);
                    if constexpr (may_write_second<Op>)
                        if (second) tile_to_rows(from_second, run.classes, second + k * size);
                });
            continue;
        }
        if (far != 0) far_slices.add(tile.first, far, near_values(results[k]));
        if constexpr (Op::writes) {
            if (far == bits_of(tile.count)) continue;
            const auto value = results[k].columns();
            const auto of_class = [&](std::ptrdiff_t c) __attribute__((always_inline)) {
                return value(load_pack<T>(tile.kept + c * lanes), c);
            };
            tile_to_rows(of_class, run.classes, out + k * size);
        }
        if constexpr (may_write_second<Op>)
            if (second) {
                const auto value = results[k].second_columns();
                const auto of_class = [&](std::ptrdiff_t c) __attribute__((always_inline)) {
                    return value(load_pack<T>(tile.kept + c * lanes));
                };
                tile_to_rows(of_class, run.classes, second + k * size);
            }
    }
}

// Computes up to tiles_together tiles of dense rows by way of copies, because loads would reach beyond the last row, or
// because elements are of another type.
template <class Op, class E>
FASTSOFTMAX_ONCE void near_copies_of(const Run& run, const E* x, E* out, E* second, std::ptrdiff_t first,
                                     std::ptrdiff_t rows) {
    using T = Compute<E>;
    constexpr std::ptrdiff_t lanes = Pack<T>::lanes, most = tiles_together * lanes * few_classes;
    T own[most + read_behind<T>], results[most], second_results[may_write_second<Op> ? most : 1];
    const std::ptrdiff_t count = (rows + lanes - 1) / lanes, elements = rows * run.classes;
    read_elements(x, elements, own);
    for (std::ptrdiff_t i = elements; i < count * lanes * run.classes + read_behind<T>; ++i) own[i] = 0;
    T tile[lanes * few_classes], kept[lanes * few_classes];
    const std::ptrdiff_t row = run.classes * static_cast<std::ptrdiff_t>(sizeof(T)), element = sizeof(T);
    FarSlices<T> far_slices(own_tile<Op, T>, run, first, {reinterpret_cast<std::byte*>(own), row, element},
                            {Op::writes ? reinterpret_cast<std::byte*>(results) : nullptr, row, element},
                            {second ? reinterpret_cast<std::byte*>(second_results) : nullptr, row, element}, tile,
                            kept);
    near_tiles_of<Op>(run, static_cast<const T*>(own), results, second ? second_results : nullptr, first,
                      static_cast<int>(count), static_cast<int>(rows - (count - 1) * lanes), far_slices);
    far_slices.finish();
    if constexpr (Op::writes) write_elements(results, elements, out);
    if constexpr (may_write_second<Op>)
        if (second) write_elements(second_results, elements, second);
}

// Which rows the lanes in `bits` are: near_registers changes the order of rows of four classes. (Operations with
// numbers of the slices' own do not use it for such rows.)
FASTSOFTMAX_INLINE std::uint32_t rows_of_lanes(std::uint32_t bits) {
    std::uint32_t rows = 0;
    for (int i = 0; i < 16; ++i) rows |= (bits >> i & 1) << (i % 4 * 4 + i / 4);
    return rows;
}

// Computes `count` tiles of dense rows of two classes, or of as many as 16 bytes hold, in registers. The latter changes
// the order of rows, which must not matter.
template <class Op, int classes, class T>
FASTSOFTMAX_ONCE void near_registers(const Run& run, const T* x, T* out, [[maybe_unused]] T* second,
                                     std::ptrdiff_t count, FarSlices<T>& far_slices) {
    using Exp = FixedExponential<T>;
    using Sum = typename Op::template Sum<T, true>;
    constexpr int lanes = Pack<T>::lanes;
    constexpr std::ptrdiff_t size = lanes * classes;
    for (std::ptrdiff_t tile = 0; tile < count; ++tile, x += size, out += Op::writes ? size : 0) {
        T own[may_write_second<Op> ? size : 1];
        const Group<T> group = {
            run,       tile * lanes, lanes, reinterpret_cast<const std::byte*>(x), classes * sizeof(T),
            sizeof(T), own,          lanes};
        Pack<T> packs[classes];
        unrolled<classes>([&](int c) __attribute__((always_inline)) { packs[c] = load_pack<T>(x + c * lanes); });
        if constexpr (classes == 2)
            split_pairs(packs);
        else
            transpose(packs);
        Sum sum = group.template sum<Sum>();
        const std::uint32_t begin_far = begins_far(packs[0]);
        const auto kept = add_packs<classes>(sum, Exp(), packs, 0);
        auto results = [&]() __attribute__((always_inline)) {
            if constexpr (std::is_same_v<Sum, KeptSum<T, true>>) {
                Two<Pack<T>> all = sum.sum.in_two();
                if (any_may_be_only(sum, classes))
                    all = with_only<T>(all, classes, [&](std::ptrdiff_t c) __attribute__((always_inline)) {
                        return part(kept, static_cast<int>(c));
                    });
                return typename Op::template Results<T, Exp>(group, Exp(), all);
            } else {
                return results_of<Op>(group, Exp(), &sum);
            }
        }();
        set_far(results, begin_far);
        const std::uint32_t far = ~results.near & bits_of(lanes);
        if (far != 0) far_slices.add(tile * lanes, classes == 2 ? far : rows_of_lanes(far), near_values(results));
        if constexpr (may_write_second<Op> && classes == 2)
            if (second) {
                for (int c = 0; c < classes; ++c) store_pack(own + c * lanes, part(kept, c));
                results.see_classes(group);
                const auto value = results.second_columns();
                for (int c = 0; c < classes; ++c) packs[c] = value(part(kept, c));
                join_pairs(packs);
                for (int c = 0; c < classes; ++c) store_pack(second + tile * size + c * lanes, packs[c]);
            }
        if constexpr (Op::writes) {
            const auto value = results.columns();
            unrolled<classes>([&](int c) __attribute__((always_inline)) { packs[c] = value(part(kept, c), c); });
            if constexpr (classes == 2)
                join_pairs(packs);
            else
                transpose(packs);
            unrolled<classes>([&](int c) __attribute__((always_inline)) { store_pack(out + c * lanes, packs[c]); });
        }
    }
}

// Computes a single row: its exponentials a pack at a time, then their sum in the order of tiles, in the first lane.
template <class Op, class T>
FASTSOFTMAX_ONCE void near_single(const Run& run) {
    using Exp = FixedExponential<T>;
    using Sum = typename Op::template Sum<T, true>;
    constexpr int lanes = Pack<T>::lanes;
    constexpr std::ptrdiff_t most = few_classes + 2 * lanes;
    const std::ptrdiff_t classes = run.classes;
    const T* x = reinterpret_cast<const T*>(run.x.data);
    T power[most], growth[most], kept[most];
    std::ptrdiff_t i = 0;
    for (; i < classes; i += lanes) {
        const Growth<T, 1> e = Exp()(load_in(x, i, classes, T(-infinity)));
        store_pack(power + i, e.power);
        store_pack(growth + i, e.growth);
        store_pack(kept + i, e.rounded());
    }
    // The loads below read these, in lanes that do not count.
    store_pack(power + i, broadcast(T(0)));
    store_pack(growth + i, broadcast(T(0)));
    store_pack(kept + i, broadcast(T(0)));
    const Group<T> group = {run, 0, 1, run.x.data, 0, sizeof(T), kept, 1};
    Sum sum = group.template sum<Sum>();
    for (std::ptrdiff_t c = 0; c < classes; ++c) {
        sum.take({load_pack<T>(power + c), load_pack<T>(growth + c)}, load_pack<T>(kept + c), c);
        if ((c + 1) % terms_to_carry == 0) sum.carry();
    }
    auto results = results_of<Op>(group, Exp(), &sum);
    set_far(results, begins_far(x[0]) ? 1 : 0);
    if (!(results.near & 1)) {
        T tile[lanes * few_classes], of_tile[lanes * few_classes];
        const std::ptrdiff_t element = sizeof(T);
        FarSlices<T> far_slices(own_tile<Op, T>, run, 0, {run.x.data, 0, element}, {run.out.data, 0, element},
                                {run.second_out.data, 0, element}, tile, of_tile);
        far_slices.add(0, 1, near_values(results));
        far_slices.finish();
    } else if constexpr (Op::writes) {
        T* out = reinterpret_cast<T*>(run.out.data);
        if constexpr (may_write_second<Op>)
            if (T* second = reinterpret_cast<T*>(run.second_out.data)) {
                results.see_classes(group);
                write_packs_of(kept, second, classes, results.second_row(0), false);
            }
        write_packs_of(kept, out, classes, results.row(0), false);
        results.finish_row(0, [&](std::int64_t c, T value) __attribute__((always_inline)) { out[c] = value; });
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
    E* second = reinterpret_cast<E*>(run.second_out.data);
    if constexpr (as_they_are &&
                  requires(typename Op::template Sum<T, true> sum, Pack<T> e) { sum.take({e, e}, e, 0); })
        if (run.slices == 1) return near_single<Op, T>(run);
    std::ptrdiff_t first = 0;
    if constexpr (as_they_are) {
        T tile[lanes * few_classes], kept[lanes * few_classes];
        const std::ptrdiff_t row = run.classes * static_cast<std::ptrdiff_t>(sizeof(T)), element = sizeof(T);
        FarSlices<T> far_slices(own_tile<Op, T>, run, 0, {run.x.data, row, element}, {run.out.data, row, element},
                                {run.second_out.data, row, element}, tile, kept);
        // Loads of a partial square reach beyond the last row of a tile: into further rows, except at the end.
        const std::ptrdiff_t behind =
            run.classes % quarter_lanes<T> ? (read_behind<T> + run.classes - 1) / run.classes : 0;
        std::ptrdiff_t whole = run.slices > behind ? (run.slices - behind) / lanes : 0;
        constexpr bool any_order = Op::writes && signature<Op::operation>.value == fastsoftmax::PerSlice::none;
        if (run.classes == 2 || (any_order && run.classes == quarter_lanes<T>)) {
            whole = run.slices / lanes;
            if (run.classes == 2)
                near_registers<Op, 2>(run, x, out, second, whole, far_slices);
            else if constexpr (any_order)
                near_registers<Op, quarter_lanes<T>>(run, x, out, second, whole, far_slices);
            first = whole * lanes;
            whole = 0;
        }
        for (std::ptrdiff_t k = 0; k < whole; k += tiles_together) {
            const int count = static_cast<int>(whole - k < tiles_together ? whole - k : tiles_together);
            near_tiles_of<Op>(run, x + k * size, out ? out + k * size : out, second ? second + k * size : second,
                              k * lanes, count, lanes, far_slices);
        }
        far_slices.finish();
        if (first == 0) first = whole * lanes;
    }
    constexpr std::ptrdiff_t together = as_they_are ? lanes : tiles_together * lanes;
    for (; first < run.slices; first += together) {
        const std::ptrdiff_t left = run.slices - first;
        near_copies_of<Op>(run, x + first * run.classes, out ? out + first * run.classes : out,
                           second ? second + first * run.classes : second, first, left < together ? left : together);
    }
}

}  // namespace
