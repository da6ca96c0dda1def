// Converts elements of any type, stride and byte order to rows and tiles of the type computed in, and back.
#pragma once

#include "elements.hpp"
#include "transpose.hpp"

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
    if constexpr (std::is_same_v<E, bool>) return bits != 0;  // a byte may hold anything, a bool may not
    const E element = same_bits<E>(bits);
    if constexpr (std::is_same_v<E, Half> || std::is_same_v<E, BFloat16>)
        return static_cast<T>(to_compute(element));
    else if constexpr (std::is_same_v<E, double> && std::is_same_v<T, float>)
        // A float64 probability given with float32 logits: if it is not 0, it must not become 0.
        return element != 0 && static_cast<T>(element) == 0 ? T(0x1p-149f) : static_cast<T>(element);
    else
        return static_cast<T>(element);
}

// A half computed in double is rounded to float first; both roundings together stay within 0.5001 ULP.
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

template <class E>
bool gather_at(const std::byte* from, std::ptrdiff_t slice_stride, std::ptrdiff_t class_stride, bool swapped,
               std::ptrdiff_t slices, std::ptrdiff_t classes, const std::int64_t* labels, std::ptrdiff_t numbers,
               double* to) {
    bool all = true;
    const auto score = [&](const std::byte* slice, std::int64_t label) __attribute__((always_inline)) {
        const bool is_class = static_cast<std::uint64_t>(label) < static_cast<std::uint64_t>(classes);
        all &= is_class;
        return is_class ? read<E, double>(slice + label * class_stride, swapped) : __builtin_nan("");
    };
    if (numbers == 1) {
        for (std::ptrdiff_t s = 0; s < slices; ++s) to[s] = score(from + s * slice_stride, labels[s]);
        return all;
    }
    for (std::ptrdiff_t s = 0; s < slices; ++s, from += slice_stride, labels += numbers, to += numbers)
        for (std::ptrdiff_t j = 0; j < numbers; ++j) to[j] = score(from, labels[j]);
    return all;
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

// Gathers one tile of slices of few classes, which are contiguous. `slices` are left; they may be too few to fill it.
template <class E, class T>
FASTSOFTMAX_INLINE void gather_dense(const std::byte* from, std::ptrdiff_t slice_stride, std::ptrdiff_t slices,
                                     std::ptrdiff_t classes, T* to) {
    constexpr int lanes = Pack<T>::lanes;
    const std::ptrdiff_t bytes = classes * static_cast<std::ptrdiff_t>(sizeof(E));
    if constexpr (std::is_same_v<E, T>) {
        if (slice_stride == bytes && slices * classes >= lanes * classes + read_behind<T>)
            return rows_to_tile(reinterpret_cast<const T*>(from), classes, to);
    }
    T rows[lanes * fastsoftmax::few_classes + read_behind<T>];
    const std::ptrdiff_t some = slices < lanes ? slices : lanes;
    if (slice_stride == bytes) {
        gather_row<E, T>(from, sizeof(E), false, some * classes, rows);
    } else {
        for (std::ptrdiff_t i = 0; i < some; ++i)
            gather_row<E, T>(from + i * slice_stride, sizeof(E), false, classes, rows + i * classes);
    }
    for (std::ptrdiff_t i = some * classes; i < lanes * classes + read_behind<T>; ++i) rows[i] = 0;
    rows_to_tile(rows, classes, to);
}

template <class E, class T>
FASTSOFTMAX_INLINE void scatter_dense(const T* from, std::ptrdiff_t slices, std::ptrdiff_t classes, std::byte* to,
                                      std::ptrdiff_t slice_stride) {
    constexpr int lanes = Pack<T>::lanes;
    const std::ptrdiff_t bytes = classes * static_cast<std::ptrdiff_t>(sizeof(E));
    if constexpr (std::is_same_v<E, T>) {
        if (slice_stride == bytes && slices == lanes) return tile_to_rows(from, classes, reinterpret_cast<T*>(to));
    }
    T rows[lanes * fastsoftmax::few_classes];
    tile_to_rows(from, classes, rows);
    if (slice_stride == bytes) return scatter_row<E, T>(rows, slices * classes, to, sizeof(E));
    for (std::ptrdiff_t i = 0; i < slices; ++i)
        scatter_row<E, T>(rows + i * classes, classes, to + i * slice_stride, sizeof(E));
}

// Gathers `classes` classes of `slices` slices to tiles that have `tile_classes`; lanes without a slice hold 0.
template <class E, class T>
void gather_tiles(const std::byte* from, std::ptrdiff_t slice_stride, std::ptrdiff_t class_stride, bool swapped,
                  std::ptrdiff_t slices, std::ptrdiff_t classes, std::ptrdiff_t tile_classes, T* to) {
    constexpr int lanes = Pack<T>::lanes;
    if constexpr (has_packs<E, T>) {
        if (slice_stride == static_cast<std::ptrdiff_t>(sizeof(E)) && !swapped) {
            // All slices of a class before the next class: the order in memory.
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
    for (std::ptrdiff_t s = 0; s < slices; s += lanes, from += lanes * slice_stride, to += tile_classes * lanes) {
        const std::ptrdiff_t some = slices - s < lanes ? slices - s : lanes;
        if constexpr (has_packs<E, T>) {
            if (class_stride == static_cast<std::ptrdiff_t>(sizeof(E)) && !swapped &&
                classes <= fastsoftmax::few_classes) {
                gather_dense<E>(from, slice_stride, slices - s, classes, to);
                continue;
            }
        }
        for (int i = 0; i < lanes; ++i) {
            const std::byte* slice = from + i * slice_stride;
            for (std::ptrdiff_t c = 0; c < classes; ++c)
                to[c * lanes + i] = i < some ? read<E, T>(slice + c * class_stride, swapped) : 0;
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
                std::ptrdiff_t s = 0;
                for (; s + lanes <= slices; s += lanes, tile += tile_classes * lanes) store(p + s, load_pack<T>(tile));
                if (s < slices) store_first(p + s, load_pack<T>(tile), slices - s);
            }
            return;
        }
    }
    for (std::ptrdiff_t s = 0; s < slices; s += lanes, to += lanes * slice_stride, from += tile_classes * lanes) {
        const std::ptrdiff_t some = slices - s < lanes ? slices - s : lanes;
        if constexpr (has_packs<E, T>) {
            if (class_stride == static_cast<std::ptrdiff_t>(sizeof(E)) && classes <= fastsoftmax::few_classes) {
                scatter_dense<E>(from, some, classes, to, slice_stride);
                continue;
            }
        }
        for (std::ptrdiff_t i = 0; i < some; ++i)
            for (std::ptrdiff_t c = 0; c < classes; ++c)
                write<E, T>(to + i * slice_stride + c * class_stride, from[c * lanes + i]);
    }
}

}  // namespace
