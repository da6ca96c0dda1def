// The element types in memory, to and from packs.
#pragma once

#include "half.hpp"
#include "pack.hpp"

namespace {

template <class E>
FASTSOFTMAX_INLINE Pack<Compute<E>> load(const E* p) {
    if constexpr (std::is_same_v<E, Compute<E>>)
        return load_pack<E>(p);
    else
        return load_halves(p);
}

template <class E>
FASTSOFTMAX_INLINE void store(E* p, Pack<Compute<E>> a) {
    if constexpr (std::is_same_v<E, Compute<E>>) {
        store_pack(p, a);
    } else if constexpr (std::is_same_v<E, Half>) {
        store_halves(p, a);
    } else {
        using Bits = Pack<std::int32_t>;
        const Bits bits = bit_cast<std::int32_t>(a);
        const Bits odd = shift_right(bits, 16) & broadcast<std::int32_t>(1);
        const Bits rounded = bits + broadcast<std::int32_t>(0x7fff) + odd;
        store_upper_halves(p, select(equal(a, a), rounded, bits | broadcast<std::int32_t>(0x400000)));
    }
}

// The first `count` (less than a pack) elements; the other lanes are `fill`. Nothing beyond is read.
template <class E>
FASTSOFTMAX_INLINE Pack<Compute<E>> load_first(const E* p, std::ptrdiff_t count, Compute<E> fill) {
    if constexpr (std::is_same_v<E, Compute<E>>) {
        return load_first_lanes(p, count, fill);
    } else {
        E elements[Pack<Compute<E>>::lanes];
        for (E& element : elements) element = from_compute<E>(fill);
        copy_elements(elements, p, count);
        return load(elements);
    }
}

template <class E>
FASTSOFTMAX_INLINE void store_first(E* p, Pack<Compute<E>> a, std::ptrdiff_t count) {
    if constexpr (std::is_same_v<E, Compute<E>>) {
        store_first_lanes(p, a, count);
    } else {
        E elements[Pack<Compute<E>>::lanes];
        store(elements, a);
        copy_elements(p, elements, count);
    }
}

}  // namespace
