// Transposes dense rows of few classes to a tile, one class after another with a slice in each lane, and back: in
// squares of 16 bytes, four to a pack.
#pragma once

#include "pack.hpp"

namespace {

template <class T>
using Quarter = Vector<T, 16>;
template <class T>
constexpr int quarter_lanes = 16 / static_cast<int>(sizeof(T));

template <class T>
FASTSOFTMAX_INLINE Quarter<T> load_quarter(const T* p) {
    return load_vector<T, 16>(p);
}
template <class T>
FASTSOFTMAX_INLINE void store_quarter(T* p, Quarter<T> q) {
    store_vector<T, 16>(p, q);
}

template <class V, std::size_t... i>
FASTSOFTMAX_INLINE auto joined(V a, V b, std::index_sequence<i...>) {
    return __builtin_shufflevector(a, b, static_cast<int>(i)...);
}

// Loads the quarters at p, p + step, p + 2 step, p + 3 step.
template <class T>
FASTSOFTMAX_INLINE Pack<T> load_quarters(const T* p, std::ptrdiff_t step) {
    constexpr int n = quarter_lanes<T>;
    const Quarter<T> q[4] = {load_quarter(p), load_quarter(p + step), load_quarter(p + 2 * step),
                             load_quarter(p + 3 * step)};
    Pack<T> a;
    if constexpr (pack_registers == 4) {
        unrolled<4>([&](int k) __attribute__((always_inline)) { a.r[k] = q[k]; });
    } else {
        const auto first = joined(q[0], q[1], std::make_index_sequence<2 * n>());
        const auto second = joined(q[2], q[3], std::make_index_sequence<2 * n>());
        if constexpr (pack_registers == 2) {
            a.r[0] = first;
            a.r[1] = second;
        } else {
            a.r[0] = joined(first, second, std::make_index_sequence<4 * n>());
        }
    }
    return a;
}

template <int first, class R, std::size_t... i>
FASTSOFTMAX_INLINE auto lanes_from(R r, std::index_sequence<i...>) {
    return __builtin_shufflevector(r, r, static_cast<int>(first + i)...);
}

template <int k, class T>
FASTSOFTMAX_INLINE Quarter<T> quarter(const Pack<T>& a) {
    constexpr int n = quarter_lanes<T>, in_register = 4 / pack_registers;
    return lanes_from<k % in_register * n>(a.r[k / in_register], std::make_index_sequence<n>());
}

// Makes spans of a and b take turns in each quarter: the spans of its lower half, or of its upper one.
template <int span, bool upper, class R, std::size_t... i>
FASTSOFTMAX_INLINE R interleaved(R a, R b, std::index_sequence<i...>) {
    constexpr int width = sizeof...(i), n = width * 16 / static_cast<int>(sizeof(R));
    return __builtin_shufflevector(a, b,
                                   static_cast<int>(i / n * n + (i % n / span / 2 * span + i % span) +
                                                    (upper ? n / 2 : 0) + (i / span % 2 ? width : 0))...);
}

template <int span, bool upper, class T>
FASTSOFTMAX_INLINE Pack<T> interleaved(Pack<T> a, const Pack<T>& b) {
    constexpr int width = register_bytes / static_cast<int>(sizeof(T));
    return from_registers<Pack<T>>([&]<int i>() __attribute__((always_inline)) {
        return interleaved<span, upper>(a.r[i], b.r[i], std::make_index_sequence<width>());
    });
}

// Quarter k of all rows is a square; transposes the four squares.
FASTSOFTMAX_INLINE void transpose(Pack<double> (&rows)[2]) {
    const Pack<double> lower = interleaved<1, false>(rows[0], rows[1]);
    rows[1] = interleaved<1, true>(rows[0], rows[1]);
    rows[0] = lower;
}

FASTSOFTMAX_INLINE void transpose(Pack<float> (&rows)[4]) {
    const Pack<float> lower01 = interleaved<1, false>(rows[0], rows[1]),
                      upper01 = interleaved<1, true>(rows[0], rows[1]);
    const Pack<float> lower23 = interleaved<1, false>(rows[2], rows[3]),
                      upper23 = interleaved<1, true>(rows[2], rows[3]);
    rows[0] = interleaved<2, false>(lower01, lower23);
    rows[1] = interleaved<2, true>(lower01, lower23);
    rows[2] = interleaved<2, false>(upper01, upper23);
    rows[3] = interleaved<2, true>(upper01, upper23);
}

// Every other lane of a, then of b, from `first` on; and the inverse, for the lower or the upper halves of a and b.
template <int first, class R, std::size_t... i>
FASTSOFTMAX_INLINE R every_other(R a, R b, std::index_sequence<i...>) {
    return __builtin_shufflevector(a, b, static_cast<int>(2 * i + first)...);
}
template <bool upper, class R, std::size_t... i>
FASTSOFTMAX_INLINE R taking_turns(R a, R b, std::index_sequence<i...>) {
    constexpr int width = sizeof...(i);
    return __builtin_shufflevector(a, b, static_cast<int>(i / 2 + (i % 2 ? width : 0) + (upper ? width / 2 : 0))...);
}

// Turns as many rows of two classes as a pack has lanes, which are two packs, into one pack for each class, and back.
template <class T>
FASTSOFTMAX_INLINE void split_pairs(Pack<T> (&packs)[2]) {
    using Lanes = std::make_index_sequence<register_bytes / sizeof(T)>;
    const Pack<T, 2> both = joined(packs[0], packs[1]);
    packs[0] = from_registers<Pack<T>>([&]<int i>() __attribute__((always_inline)) {
        return every_other<0>(both.r[2 * i], both.r[2 * i + 1], Lanes{});
    });
    packs[1] = from_registers<Pack<T>>([&]<int i>() __attribute__((always_inline)) {
        return every_other<1>(both.r[2 * i], both.r[2 * i + 1], Lanes{});
    });
}
template <class T>
FASTSOFTMAX_INLINE void join_pairs(Pack<T> (&packs)[2]) {
    using Lanes = std::make_index_sequence<register_bytes / sizeof(T)>;
    const auto both = from_registers<Pack<T, 2>>([&]<int i>() __attribute__((always_inline)) {
        return taking_turns<i % 2 == 1>(packs[0].r[i / 2], packs[1].r[i / 2], Lanes{});
    });
    packs[0] = part(both, 0);
    packs[1] = part(both, 1);
}

// How many elements beyond the last row of a tile `rows_to_tile` may read.
template <class T>
constexpr std::ptrdiff_t read_behind = quarter_lanes<T> - 1;

// Makes a tile of as many rows as a pack has lanes, which follow each other.
template <class T>
FASTSOFTMAX_INLINE void rows_to_tile(const T* rows, std::ptrdiff_t classes, T* tile) {
    constexpr int n = quarter_lanes<T>, lanes = Pack<T>::lanes;
    for (std::ptrdiff_t c = 0; c < classes; c += n) {
        Pack<T> square[n];
        unrolled<n>([&](int j) __attribute__((always_inline)) {
            square[j] = load_quarters(rows + j * classes + c, n * classes);
        });
        transpose(square);
        unrolled<n>([&](int j) __attribute__((always_inline)) {
            if (c + j < classes) store_pack(tile + (c + j) * lanes, square[j]);
        });
    }
}

// Stores the first `count` elements. Each copy has a constant size, so that the quarter need not be in memory first.
template <class T>
FASTSOFTMAX_INLINE void store_some(T* to, const Quarter<T>& q, std::ptrdiff_t count) {
    const T* from = reinterpret_cast<const T*>(&q);
    if (count == 1) copy_elements(to, from, 1);
    if (count == 2) copy_elements(to, from, 2);
    if constexpr (quarter_lanes<T> == 4)
        if (count == 3) copy_elements(to, from, 3);
}

// Stores quarter k of the first `count` packs as parts of successive rows; returns the row after the last one.
template <int k, int count, class T>
FASTSOFTMAX_INLINE T* store_quarters(T* row, const Pack<T> (&square)[quarter_lanes<T>], std::ptrdiff_t classes) {
    unrolled<count>([&](int j) __attribute__((always_inline)) {
        store_quarter(row, quarter<k>(square[j]));
        row += classes;
    });
    return row;
}

// Stores a tile, whose classes are value(c), as rows.
template <class T, class Value>
FASTSOFTMAX_INLINE void tile_to_rows(Value value, std::ptrdiff_t classes, T* rows) {
    constexpr int n = quarter_lanes<T>;
    if (classes == 1) return store_pack(rows, value(0));
    Pack<T> square[n];
    if (const std::ptrdiff_t left = classes % n) {
        // The last, partial quarter of each row reaches into the next row, which is stored later. In the last row, only
        // its own elements are stored.
        const std::ptrdiff_t c = classes - left;
        unrolled<n>([&](int j)
                        __attribute__((always_inline)) { square[j] = j < left ? value(c + j) : broadcast(T(0)); });
        transpose(square);
        T* row = store_quarters<0, n>(rows + c, square, classes);
        row = store_quarters<1, n>(row, square, classes);
        row = store_quarters<2, n>(row, square, classes);
        row = store_quarters<3, n - 1>(row, square, classes);
        store_some<T>(row, quarter<3>(square[n - 1]), left);
    }
    for (std::ptrdiff_t c = 0; c + n <= classes; c += n) {
        unrolled<n>([&](int j) __attribute__((always_inline)) { square[j] = value(c + j); });
        transpose(square);
        T* row = store_quarters<0, n>(rows + c, square, classes);
        row = store_quarters<1, n>(row, square, classes);
        row = store_quarters<2, n>(row, square, classes);
        store_quarters<3, n>(row, square, classes);
    }
}
template <class T>
FASTSOFTMAX_INLINE void tile_to_rows(const T* tile, std::ptrdiff_t classes, T* rows) {
    tile_to_rows([=](std::ptrdiff_t c)
                     __attribute__((always_inline)) { return load_pack<T>(tile + c * Pack<T>::lanes); },
                 classes, rows);
}

}  // namespace
