// Vectors of any size, an extension of GCC and Clang, and packs of them. All instruction sets are built on these.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

// Code that runs for each pack is inlined. Code that runs once a slice is called, so that it is compiled once.
#define FASTSOFTMAX_INLINE [[gnu::always_inline]] inline
#define FASTSOFTMAX_ONCE [[gnu::noinline]] inline

namespace {

template <class T, int bytes>
struct VectorOf {
    using type __attribute__((vector_size(bytes))) = T;
    // For loads and stores, which may be at any address and over any type.
    using memory __attribute__((vector_size(bytes), aligned(1), may_alias)) = T;
};
template <class T, int bytes>
using Vector = typename VectorOf<T, bytes>::type;

template <class T, int bytes>
FASTSOFTMAX_INLINE Vector<T, bytes> load_vector(const void* p) {
    return *reinterpret_cast<const typename VectorOf<T, bytes>::memory*>(p);
}

template <class T, int bytes>
FASTSOFTMAX_INLINE void store_vector(void* p, Vector<T, bytes> value) {
    *reinterpret_cast<typename VectorOf<T, bytes>::memory*>(p) = value;
}

// An integer as wide as T.
template <class T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
    using type = std::int32_t;
};
template <>
struct IntegerOf<double> {
    using type = std::int64_t;
};
template <>
struct IntegerOf<std::int32_t> {
    using type = std::int32_t;
};
template <>
struct IntegerOf<std::int64_t> {
    using type = std::int64_t;
};
template <class T>
using Integer = typename IntegerOf<T>::type;

constexpr int pack_bytes = 64;

template <class T, int packs, int register_bytes>
struct BasicPack {
    using Register = Vector<T, register_bytes>;
    static constexpr int registers = packs * pack_bytes / register_bytes;
    static constexpr int lanes = packs * pack_bytes / static_cast<int>(sizeof(T));
    Register r[registers];
};

// Calls f(0), f(1), ..., f(n - 1). This is no loop, nor is the next function, because GCC unrolls loops over packs and
// registers only after its first passes, which see an array in memory, and not at all at -O2.
template <int n, class F>
FASTSOFTMAX_INLINE void unrolled(F f) {
    [&]<int... i>(std::integer_sequence<int, i...>)
        __attribute__((always_inline)) { (f(i), ...); }(std::make_integer_sequence<int, n>{});
}

// The pack whose register i is f(i).
template <class P, class F>
FASTSOFTMAX_INLINE P from_registers(F f) {
    return [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
        return P{{f.template operator()<i>()...}};
    }(std::make_integer_sequence<int, P::registers>{});
}

// Copies elements as bytes: they may lie at any address, and a T* would promise multiples of their size.
template <class T>
FASTSOFTMAX_INLINE void copy_elements(T* to, const T* from, std::ptrdiff_t count) {
    __builtin_memcpy(reinterpret_cast<std::byte*>(to), reinterpret_cast<const std::byte*>(from),
                     static_cast<std::size_t>(count) * sizeof(T));
}

}  // namespace
