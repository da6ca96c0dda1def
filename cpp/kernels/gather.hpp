// Elements of any type, stride and byte order to rows and tiles of what a kernel computes in, and back.
#pragma once

#include "elements.hpp"

namespace {

template <std::size_t size>
struct BitsOf;
template <>
struct BitsOf<1> {
    using type = std::uint8_t;
};
template <>
struct BitsOf<2> {
    using type = std::uint16_t;
};
template <>
struct BitsOf<4> {
    using type = std::uint32_t;
};
template <>
struct BitsOf<8> {
    using type = std::uint64_t;
};

template <class I>
FASTSOFTMAX_INLINE I bytes_reversed(I bits) {
    if constexpr (sizeof(I) == 2) return static_cast<I>(__builtin_bswap16(bits));
    if constexpr (sizeof(I) == 4) return __builtin_bswap32(bits);
    if constexpr (sizeof(I) == 8) return __builtin_bswap64(bits);
    return bits;
}

template <class E, class T>
FASTSOFTMAX_INLINE T read(const std::byte* p, bool swapped) {
    typename BitsOf<sizeof(E)>::type bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    if (swapped) bits = bytes_reversed(bits);
    const E element = same_bits<E>(bits);
    if constexpr (std::is_same_v<E, Half> || std::is_same_v<E, BFloat16>)
        return static_cast<T>(to_compute(element));
    else
        return static_cast<T>(element);
}

// Where a half is to hold what was computed as double, float comes between: both roundings together stay within 0.5001 ULP.
template <class E, class T>
FASTSOFTMAX_INLINE void write(std::byte* p, T value) {
    const E element = from_compute<E>(static_cast<Compute<E>>(value));
    __builtin_memcpy(p, &element, sizeof element);
}

// Whether packs of E are loaded and stored as packs of T.
template <class E, class T>
constexpr bool has_packs = false;
template <>
constexpr bool has_packs<Half, float> = true;
template <>
constexpr bool has_packs<BFloat16, float> = true;
template <>
constexpr bool has_packs<float, float> = true;
template <>
constexpr bool has_packs<double, double> = true;

template <class E, class T>
void gather_row(const std::byte* from, std::ptrdiff_t stride, bool swapped, std::ptrdiff_t count, T* to) {
    std::ptrdiff_t i = 0;
    if constexpr (has_packs<E, T>) {
        const E* p = reinterpret_cast<const E*>(from);
        if (stride == static_cast<std::ptrdiff_t>(sizeof(E)) && !swapped)
            for (; i + Pack<T>::lanes <= count; i += Pack<T>::lanes) store_pack(to + i, load(p + i));
    }
    for (; i < count; ++i) to[i] = read<E, T>(from + i * stride, swapped);
}

template <class E, class T>
void scatter_row(const T* from, std::ptrdiff_t count, std::byte* to, std::ptrdiff_t stride) {
    std::ptrdiff_t i = 0;
    if constexpr (has_packs<E, T>) {
        E* p = reinterpret_cast<E*>(to);
        if (stride == static_cast<std::ptrdiff_t>(sizeof(E)))
            for (; i + Pack<T>::lanes <= count; i += Pack<T>::lanes) store(p + i, load_pack<T>(from + i));
    }
    for (; i < count; ++i) write<E, T>(to + i * stride, from[i]);
}

// `classes` classes of `slices` slices to tiles that have `tile_classes`; lanes without a slice hold 0.
template <class E, class T>
void gather_tiles(const std::byte* from, std::ptrdiff_t slice_stride, std::ptrdiff_t class_stride, bool swapped,
                  std::ptrdiff_t slices, std::ptrdiff_t classes, std::ptrdiff_t tile_classes, T* to) {
    constexpr int lanes = Pack<T>::lanes;
    if constexpr (has_packs<E, T>) {
        if (slice_stride == static_cast<std::ptrdiff_t>(sizeof(E)) && !swapped) {
            // All slices of a class before the next class: what is contiguous in memory is read so.
            for (std::ptrdiff_t c = 0; c < classes; ++c) {
                const E* p = reinterpret_cast<const E*>(from + c * class_stride);
                T* tile = to + c * lanes;
                std::ptrdiff_t s = 0;
                for (; s + lanes <= slices; s += lanes, tile += tile_classes * lanes) store_pack(tile, load(p + s));
                if (s < slices) store_pack(tile, load_first(p + s, slices - s, T(0)));
            }
            return;
        }
    }
    for (std::ptrdiff_t s = 0; s < slices; s += lanes, to += tile_classes * lanes) {
        for (int i = 0; i < lanes; ++i) {
            if (s + i < slices) {
                const std::byte* slice = from + (s + i) * slice_stride;
                for (std::ptrdiff_t c = 0; c < classes; ++c) to[c * lanes + i] = read<E, T>(slice + c * class_stride, swapped);
            } else {
                for (std::ptrdiff_t c = 0; c < classes; ++c) to[c * lanes + i] = 0;
            }
        }
    }
}

template <class E, class T>
void scatter_tiles(const T* from, std::ptrdiff_t slices, std::ptrdiff_t classes, std::ptrdiff_t tile_classes, std::byte* to,
                   std::ptrdiff_t slice_stride, std::ptrdiff_t class_stride) {
    constexpr int lanes = Pack<T>::lanes;
    if constexpr (has_packs<E, T>) {
        if (slice_stride == static_cast<std::ptrdiff_t>(sizeof(E))) {
            for (std::ptrdiff_t c = 0; c < classes; ++c) {
                E* p = reinterpret_cast<E*>(to + c * class_stride);
                const T* tile = from + c * lanes;
                std::ptrdiff_t s = 0;
                for (; s + lanes <= slices; s += lanes, tile += tile_classes * lanes) store(p + s, load_pack<T>(tile));
                if (s < slices) store_first(p + s, load_pack<T>(tile), slices - s);
            }
            return;
        }
    }
    for (std::ptrdiff_t s = 0; s < slices; s += lanes, from += tile_classes * lanes)
        for (int i = 0; i < lanes && s + i < slices; ++i) {
            std::byte* slice = to + (s + i) * slice_stride;
            for (std::ptrdiff_t c = 0; c < classes; ++c) write<E, T>(slice + c * class_stride, from[c * lanes + i]);
        }
}

}  // namespace
