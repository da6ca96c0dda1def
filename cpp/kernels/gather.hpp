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
    else if constexpr (std::is_same_v<E, double> && std::is_same_v<T, float>)
        // A probability beside float32 logits: one that is not 0 does not become 0.
        return element != 0 && static_cast<T>(element) == 0 ? T(0x1p-149f) : static_cast<T>(element);
    else
        return static_cast<T>(element);
}

// Where a half is to hold what was computed as double, float comes between: both roundings together stay within 0.5001
// ULP.
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

// Four floats in a row; 4 x 4 of them transposed in eight shuffles.
typedef float Four __attribute__((vector_size(16)));
typedef float FourInMemory __attribute__((vector_size(16), aligned(1), may_alias));

FASTSOFTMAX_INLINE void transpose(Four (&rows)[4]) {
    const Four low01 = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5);
    const Four high01 = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
    const Four low23 = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5);
    const Four high23 = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
    rows[0] = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
    rows[1] = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
    rows[2] = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
    rows[3] = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
}

// The first `count` rows, `stride` bytes apart, the others 0, transposed.
FASTSOFTMAX_INLINE void load_transposed(const std::byte* from, std::ptrdiff_t stride, std::ptrdiff_t count,
                                        Four (&rows)[4]) {
    for (int k = 0; k < 4; ++k)
        rows[k] = k < count ? *reinterpret_cast<const FourInMemory*>(from + k * stride) : Four{};
    transpose(rows);
}

// Four slices of a tile to four rows.
FASTSOFTMAX_INLINE void scatter_four(const float* from, int lanes, std::ptrdiff_t classes, std::byte* to,
                                     std::ptrdiff_t stride) {
    Four rows[4];
    const auto* tile = reinterpret_cast<const std::byte*>(from);
    std::ptrdiff_t c = 0;
    for (; c + 4 <= classes; c += 4) {
        load_transposed(tile + c * lanes * 4, lanes * 4, 4, rows);
        for (int k = 0; k < 4; ++k) *reinterpret_cast<FourInMemory*>(to + k * stride + c * 4) = rows[k];
    }
    const std::ptrdiff_t left = classes - c;
    if (left == 0) return;
    load_transposed(tile + c * lanes * 4, lanes * 4, left, rows);
    for (int k = 0; k < 4; ++k) {
        std::byte* end = to + k * stride + c * 4;
        if (left == 1) __builtin_memcpy(end, &rows[k], 4);
        if (left == 2) __builtin_memcpy(end, &rows[k], 8);
        if (left == 3) __builtin_memcpy(end, &rows[k], 12);
    }
}

// Neighbouring slices of one class are followed, far away, by those of the next: no prefetcher of the machine's sees
// that after these the same class of the next slices will be wanted.
template <class E>
FASTSOFTMAX_INLINE void prefetch_next(const E* p, std::ptrdiff_t slices) {
    for (std::ptrdiff_t i = slices; i < 2 * slices; i += 64 / static_cast<std::ptrdiff_t>(sizeof(E)))
        __builtin_prefetch(p + i);
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
                prefetch_next(p, slices);
                std::ptrdiff_t s = 0;
                for (; s + lanes <= slices; s += lanes, tile += tile_classes * lanes) store_pack(tile, load(p + s));
                if (s < slices) store_pack(tile, load_first(p + s, slices - s, T(0)));
            }
            return;
        }
    }
    for (std::ptrdiff_t s = 0; s < slices; s += lanes, to += tile_classes * lanes) {
        int i = 0;
        if constexpr (std::is_same_v<E, float> && std::is_same_v<T, float>) {
            // Four slices at a time, while reading four of their last classes stays within the slices.
            if (class_stride == 4 && !swapped && slice_stride >= 0) {
                const std::byte* end = from + (slices - 1) * slice_stride + classes * 4;
                for (; i < lanes && s + i + 4 <= slices; i += 4) {
                    const std::byte* four = from + (s + i) * slice_stride;
                    if (four + 3 * slice_stride + (classes + 3) / 4 * 16 > end) break;
                    Four rows[4];
                    for (std::ptrdiff_t c = 0; c < classes; c += 4) {
                        load_transposed(four + c * 4, slice_stride, 4, rows);
                        for (int k = 0; k < 4 && c + k < classes; ++k)
                            *reinterpret_cast<FourInMemory*>(to + (c + k) * lanes + i) = rows[k];
                    }
                }
            }
        }
        for (; i < lanes; ++i) {
            if (s + i < slices) {
                const std::byte* slice = from + (s + i) * slice_stride;
                for (std::ptrdiff_t c = 0; c < classes; ++c)
                    to[c * lanes + i] = read<E, T>(slice + c * class_stride, swapped);
            } else {
                for (std::ptrdiff_t c = 0; c < classes; ++c) to[c * lanes + i] = 0;
            }
        }
    }
}

template <class E, class T>
void scatter_tiles(const T* from, std::ptrdiff_t slices, std::ptrdiff_t classes, std::ptrdiff_t tile_classes,
                   std::byte* to, std::ptrdiff_t slice_stride, std::ptrdiff_t class_stride) {
    constexpr int lanes = Pack<T>::lanes;
    if constexpr (has_packs<E, T>) {
        if (slice_stride == static_cast<std::ptrdiff_t>(sizeof(E))) {
            for (std::ptrdiff_t c = 0; c < classes; ++c) {
                E* p = reinterpret_cast<E*>(to + c * class_stride);
                const T* tile = from + c * lanes;
                prefetch_next(p, slices);
                std::ptrdiff_t s = 0;
                for (; s + lanes <= slices; s += lanes, tile += tile_classes * lanes) store(p + s, load_pack<T>(tile));
                if (s < slices) store_first(p + s, load_pack<T>(tile), slices - s);
            }
            return;
        }
    }
    for (std::ptrdiff_t s = 0; s < slices; s += lanes, from += tile_classes * lanes) {
        int i = 0;
        if constexpr (std::is_same_v<E, float> && std::is_same_v<T, float>) {
            for (; class_stride == 4 && i < lanes && s + i + 4 <= slices; i += 4)
                scatter_four(from + i, lanes, classes, to + (s + i) * slice_stride, slice_stride);
        }
        for (; i < lanes && s + i < slices; ++i) {
            std::byte* slice = to + (s + i) * slice_stride;
            for (std::ptrdiff_t c = 0; c < classes; ++c) write<E, T>(slice + c * class_stride, from[c * lanes + i]);
        }
    }
}

}  // namespace
