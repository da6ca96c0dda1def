// Pack<T>: 64 bytes of T (16 floats, 8 doubles) in as many native registers as that takes. Pack<T, n>: n packs,
// computed side by side to hide the latency of a long chain of operations.
//
// A kernel is written once for this width, so each target does the same arithmetic in the same order and, where it has
// FMA, gives the same bits. The folder pack/ has a file for each instruction set, with the same primitives in each:
//
//   Register<T>, register_bytes, Pack<T, n>; has_fma; has_scaling, and if it is true scaled, fma_or_zero
//   FASTSOFTMAX_LONG: before functions that are inlined only where an fma is one instruction
//   fma, max, min, look_up, lane_bits, first_to_double, second_to_double, to_float: of a register
//   permuted; load_first_lanes (of 16-bit numbers, too), store_first_lanes; stream_pack, finish_streams; load_halves,
//   store_halves, store_upper_halves: of a pack
//   Four, load_four, load_first_of_four, multiply_add, joined: four numbers at a time, for sums
//
// Everything else is written once, here, on top of these.
#pragma once

#if defined(__AVX512F__)
#include "pack/avx512.hpp"
#elif defined(__AVX2__)
#include "pack/avx2.hpp"
#elif defined(__SSE2__)
#include "pack/sse2.hpp"
#else
#include "pack/neon.hpp"
#endif

namespace {

constexpr int pack_registers = pack_bytes / register_bytes;

// How many packs are computed side by side: as many as there are registers for.
constexpr int packs_at_once = register_bytes == 64 ? 4 : 1;

// The result of a comparison: all bits of a lane set, or none.
template <class T, int packs = 1>
using Mask = Pack<Integer<T>, packs>;

template <class T, int packs = 1>
FASTSOFTMAX_INLINE Pack<T, packs> broadcast(T value) {
    // Subtracting zero keeps -0 and NaN.
    return from_registers<Pack<T, packs>>([&]<int>() __attribute__((always_inline)) { return value - Register<T>{}; });
}

// The same pack `packs` times.
template <int packs, class T>
FASTSOFTMAX_INLINE Pack<T, packs> repeat(Pack<T> a) {
    return from_registers<Pack<T, packs>>([&]<int i>()
                                              __attribute__((always_inline)) { return a.r[i % pack_registers]; });
}

// Pack k of several.
template <class T, int packs>
FASTSOFTMAX_INLINE Pack<T> part(const Pack<T, packs>& a, int k) {
    return from_registers<Pack<T>>([&]<int i>() __attribute__((always_inline)) { return a.r[k * pack_registers + i]; });
}

template <class T, int packs>
FASTSOFTMAX_INLINE void set_part(Pack<T, packs>& a, int k, Pack<T> value) {
    unrolled<pack_registers>([&](int i) __attribute__((always_inline)) { a.r[k * pack_registers + i] = value.r[i]; });
}

// Two packs as one.
template <class T>
FASTSOFTMAX_INLINE Pack<T, 2> joined(Pack<T> first, Pack<T> second) {
    Pack<T, 2> a;
    set_part(a, 0, first);
    set_part(a, 1, second);
    return a;
}

template <class T, int packs = 1>
FASTSOFTMAX_INLINE Pack<T, packs> load_pack(const void* p) {
    const auto* bytes = static_cast<const std::byte*>(p);
    return from_registers<Pack<T, packs>>([&]<int i>() __attribute__((always_inline)) {
        return load_vector<T, register_bytes>(bytes + i * register_bytes);
    });
}

template <class T, int packs>
FASTSOFTMAX_INLINE void store_pack(void* p, Pack<T, packs> a) {
    auto* bytes = static_cast<std::byte*>(p);
    unrolled<a.registers>([&](int i) __attribute__((always_inline)) {
        store_vector<T, register_bytes>(bytes + i * register_bytes, a.r[i]);
    });
}

#define FASTSOFTMAX_LANEWISE(op)                                                                                \
    template <class T, int packs>                                                                               \
    FASTSOFTMAX_INLINE Pack<T, packs> operator op(Pack<T, packs> a, Pack<T, packs> b) {                         \
        return from_registers<Pack<T, packs>>([&]<int i>()                                                      \
                                                  __attribute__((always_inline)) { return a.r[i] op b.r[i]; }); \
    }
FASTSOFTMAX_LANEWISE(+)
FASTSOFTMAX_LANEWISE(-)
FASTSOFTMAX_LANEWISE(*)
FASTSOFTMAX_LANEWISE(/)
FASTSOFTMAX_LANEWISE(&)
FASTSOFTMAX_LANEWISE(|)
#undef FASTSOFTMAX_LANEWISE

template <class T, int packs>
FASTSOFTMAX_INLINE Pack<T, packs> operator-(Pack<T, packs> a) {
    return from_registers<Pack<T, packs>>([&]<int i>() __attribute__((always_inline)) { return -a.r[i]; });
}

template <class T, int packs>
FASTSOFTMAX_INLINE Pack<T, packs> shift_left(Pack<T, packs> a, int bits) {
    return from_registers<Pack<T, packs>>([&]<int i>() __attribute__((always_inline)) { return a.r[i] << bits; });
}

template <class T, int packs>
FASTSOFTMAX_INLINE Pack<T, packs> shift_right(Pack<T, packs> a, int bits) {
    return from_registers<Pack<T, packs>>([&]<int i>() __attribute__((always_inline)) { return a.r[i] >> bits; });
}

template <class To, class From, int packs>
FASTSOFTMAX_INLINE Pack<To, packs> bit_cast(Pack<From, packs> a) {
    return from_registers<Pack<To, packs>>([&]<int i>()
                                               __attribute__((always_inline)) { return (Register<To>)a.r[i]; });
}

#define FASTSOFTMAX_COMPARISON(name, op)                                                                       \
    template <class T, int packs>                                                                              \
    FASTSOFTMAX_INLINE Mask<T, packs> name(Pack<T, packs> a, Pack<T, packs> b) {                               \
        return from_registers<Mask<T, packs>>(                                                                 \
            [&]<int i>() __attribute__((always_inline)) { return (Register<Integer<T>>)(a.r[i] op b.r[i]); }); \
    }
FASTSOFTMAX_COMPARISON(less, <)
FASTSOFTMAX_COMPARISON(equal, ==)
#undef FASTSOFTMAX_COMPARISON

// a where the mask is set, else b.
template <class T, class I, int packs>
FASTSOFTMAX_INLINE Pack<T, packs> select(Pack<I, packs> mask, Pack<T, packs> a, Pack<T, packs> b) {
    static_assert(sizeof(T) == sizeof(I));
    return from_registers<Pack<T, packs>>([&]<int i>()
                                              __attribute__((always_inline)) { return mask.r[i] ? a.r[i] : b.r[i]; });
}

// a where it is positive, else 0.
template <class I, int packs>
FASTSOFTMAX_INLINE Pack<I, packs> positive(Pack<I, packs> a) {
    const Register<I> zero = {};
    return from_registers<Pack<I, packs>>([&]<int i>()
                                              __attribute__((always_inline)) { return a.r[i] > zero ? a.r[i] : zero; });
}

// table[i mod 8] for the integer i of each lane.
template <class T, int packs>
FASTSOFTMAX_INLINE Pack<T, packs> look_up(const T (&table)[8], Pack<Integer<T>, packs> index) {
    return from_registers<Pack<T, packs>>([&]<int i>()
                                              __attribute__((always_inline)) { return look_up(table, index.r[i]); });
}

// 0, 1, 2, ...
template <class I>
FASTSOFTMAX_INLINE Pack<I> iota() {
    alignas(pack_bytes) I values[Pack<I>::lanes];
    for (int i = 0; i < Pack<I>::lanes; ++i) values[i] = static_cast<I>(i);
    return load_pack<I>(values);
}

// The larger, or smaller, of each lane; b where either is NaN. So max(x, m) ignores a NaN in x, and max(lowest, x)
// keeps it.
template <class T, int packs>
FASTSOFTMAX_INLINE Pack<T, packs> max(Pack<T, packs> a, Pack<T, packs> b) {
    return from_registers<Pack<T, packs>>([&]<int i>() __attribute__((always_inline)) { return max(a.r[i], b.r[i]); });
}

template <class T, int packs>
FASTSOFTMAX_INLINE Pack<T, packs> min(Pack<T, packs> a, Pack<T, packs> b) {
    return from_registers<Pack<T, packs>>([&]<int i>() __attribute__((always_inline)) { return min(a.r[i], b.r[i]); });
}

// Every other lane of a, then of b.
template <class R, std::size_t... i>
FASTSOFTMAX_INLINE R even_lanes(R a, R b, std::index_sequence<i...>) {
    return __builtin_shufflevector(a, b, static_cast<int>(2 * i)...);
}

template <int first, class R, std::size_t... i>
FASTSOFTMAX_INLINE R in_turn(R a, R b, std::index_sequence<i...>) {
    return __builtin_shufflevector(a, b, static_cast<int>(first + i / 2 + (i % 2) * sizeof...(i))...);
}

// Lane i of a, then of b, for each i.
template <class T>
FASTSOFTMAX_INLINE Pack<T, 2> interleaved(Pack<T> a, Pack<T> b) {
    constexpr int width = register_bytes / static_cast<int>(sizeof(T));
    using Lanes = std::make_index_sequence<width>;
    return from_registers<Pack<T, 2>>([&]<int i>() __attribute__((always_inline)) {
        return in_turn<i % 2 * width / 2>(a.r[i / 2], b.r[i / 2], Lanes{});
    });
}

// Floats as doubles, exactly, and back, rounding once.
FASTSOFTMAX_INLINE Pack<double, 2> to_double(Pack<float> a) {
    return from_registers<Pack<double, 2>>([&]<int i>() __attribute__((always_inline)) {
        return i % 2 ? second_to_double(a.r[i / 2]) : first_to_double(a.r[i / 2]);
    });
}

FASTSOFTMAX_INLINE Pack<float> to_float(Pack<double, 2> d) {
    return from_registers<Pack<float>>(
        [&]<int i>() __attribute__((always_inline)) { return to_float(d.r[2 * i], d.r[2 * i + 1]); });
}

// The lower half of each integer. A mask remains a mask.
FASTSOFTMAX_INLINE Pack<std::int32_t> to_int32(Pack<std::int64_t, 2> a) {
    const Pack<std::int32_t, 2> halves = bit_cast<std::int32_t>(a);
    using Lanes = std::make_index_sequence<register_bytes / sizeof(std::int32_t)>;
    return from_registers<Pack<std::int32_t>>([&]<int i>() __attribute__((always_inline)) {
        return even_lanes(halves.r[2 * i], halves.r[2 * i + 1], Lanes{});
    });
}

// a * b + c, rounded once, or nearly so without FMA.
template <class T, int packs>
FASTSOFTMAX_LONG Pack<T, packs> fma(Pack<T, packs> a, Pack<T, packs> b, Pack<T, packs> c) {
    return from_registers<Pack<T, packs>>([&]<int i>()
                                              __attribute__((always_inline)) { return fma(a.r[i], b.r[i], c.r[i]); });
}

// a * b + c, rounded once if that costs nothing: for polynomials.
template <class T, int packs>
FASTSOFTMAX_INLINE Pack<T, packs> multiply_add(Pack<T, packs> a, Pack<T, packs> b, Pack<T, packs> c) {
    if constexpr (has_fma)
        return fma(a, b, c);
    else
        return a * b + c;
}

template <int distance, class R, std::size_t... i>
FASTSOFTMAX_INLINE R swap_lanes(R r, std::index_sequence<i...>) {
    return __builtin_shufflevector(r, r, static_cast<int>(i ^ distance)...);
}

// Folds in halves: lane i with lane i + lanes/2, and so on, in the same order on every target.
template <class T, class Combine>
FASTSOFTMAX_INLINE T fold(Pack<T> a, Combine combine) {
    int count = pack_registers;
    while (count > 1) {
        count /= 2;
        for (int i = 0; i < count; ++i) a.r[i] = combine(a.r[i], a.r[i + count]);
    }
    constexpr int width = register_bytes / static_cast<int>(sizeof(T));
    using Lanes = std::make_index_sequence<width>;
    auto r = a.r[0];
    if constexpr (width >= 16) r = combine(r, swap_lanes<8>(r, Lanes{}));
    if constexpr (width >= 8) r = combine(r, swap_lanes<4>(r, Lanes{}));
    if constexpr (width >= 4) r = combine(r, swap_lanes<2>(r, Lanes{}));
    r = combine(r, swap_lanes<1>(r, Lanes{}));
    return r[0];
}

template <class T>
FASTSOFTMAX_INLINE T fold_sum(Pack<T> a) {
    return fold(a, [](auto x, auto y) __attribute__((always_inline)) { return x + y; });
}

// Adds the halves of each 2 * span lanes, in a and in b. In the result, spans of a's and b's sums take turns.
template <int span, class R, std::size_t... i>
FASTSOFTMAX_INLINE R halves_added(R a, R b, std::index_sequence<i...>) {
    constexpr int width = sizeof...(i);
    return __builtin_shufflevector(a, b, static_cast<int>(i ^ (i & span ? width + span : 0))...) +
           __builtin_shufflevector(a, b, static_cast<int>((i | span) + (i & span ? width : 0))...);
}

// Folds as many packs as each has lanes: lane i is fold_sum of pack i.
FASTSOFTMAX_INLINE Pack<double> fold_sums(const Pack<double>* packs) {
    constexpr int width = register_bytes / 8;
    using Lanes = std::make_index_sequence<width>;
    Pack<double> sums;
    for (int k = 0; k < pack_registers; ++k) {
        Register<double> rows[width];
        for (int i = 0; i < width; ++i) {
            Pack<double> a = packs[k * width + i];
            for (int count = pack_registers / 2; count > 0; count /= 2)
                for (int j = 0; j < count; ++j) a.r[j] = a.r[j] + a.r[j + count];
            rows[i] = a.r[0];
        }
        if constexpr (width >= 8)
            for (int i = 0; i < 4; ++i) rows[i] = halves_added<4>(rows[i], rows[i + 4], Lanes{});
        if constexpr (width >= 4)
            for (int i = 0; i < 2; ++i) rows[i] = halves_added<2>(rows[i], rows[i + 2], Lanes{});
        sums.r[k] = halves_added<1>(rows[0], rows[1], Lanes{});
    }
    return sums;
}

template <class T>
FASTSOFTMAX_INLINE T fold_max(Pack<T> a) {
    return fold(a, [](auto x, auto y) __attribute__((always_inline)) { return x > y ? x : y; });
}

// Bit i is set where lane i of the mask is.
template <class I>
FASTSOFTMAX_INLINE std::uint32_t lane_bits(Pack<I> mask) {
    constexpr int width = register_bytes / static_cast<int>(sizeof(I));
    std::uint32_t bits = 0;
    unrolled<pack_registers>([&](int i)
                                 __attribute__((always_inline)) { bits |= lane_bits(mask.r[i]) << (i * width); });
    return bits;
}

template <class T>
FASTSOFTMAX_INLINE std::uint32_t equal_bits(Pack<T> a, Pack<T> b) {
    return lane_bits(equal(a, b));
}

// Lane i of a; for code that runs only once a slice.
template <class T, int packs>
FASTSOFTMAX_INLINE T lane(const Pack<T, packs>& a, int i) {
    constexpr int width = register_bytes / static_cast<int>(sizeof(T));
    return a.r[i / width][i % width];
}

// Lane i in every lane.
template <class T, int packs>
FASTSOFTMAX_INLINE Pack<T, packs> spread(const Pack<T, packs>& a, int i) {
    return broadcast<T, packs>(lane(a, i));
}

}  // namespace
