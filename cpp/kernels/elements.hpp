// Loads and stores packs of any floating element type.
#pragma once

#include "half.hpp"
#include "pack.hpp"

namespace {

using fastsoftmax::ElementType;

// The ElementType of a floating type.
template <class E>
constexpr ElementType element_type = std::is_same_v<E, Half>       ? ElementType::float16
                                     : std::is_same_v<E, BFloat16> ? ElementType::bfloat16
                                     : std::is_same_v<E, float>    ? ElementType::float32
                                                                   : ElementType::float64;

template <class E>
FASTSOFTMAX_INLINE Pack<Compute<E>> load(const E* p) {
    if constexpr (std::is_same_v<E, Compute<E>>)
        return load_pack<E>(p);
    else
        return load_halves(p);
}

// Rounds to bfloat16, which is in the upper half of each lane.
template <bool may_be_nan = true>
FASTSOFTMAX_INLINE Pack<std::int32_t> rounded_to_bfloat16(Pack<float> a) {
    using Bits = Pack<std::int32_t>;
    const Bits bits = bit_cast<std::int32_t>(a);
    const Bits odd = shift_right(bits, 16) & broadcast<std::int32_t>(1);
    const Bits rounded = bits + broadcast<std::int32_t>(0x7fff) + odd;
    if constexpr (!may_be_nan) return rounded;
    return select(equal(a, a), rounded, bits | broadcast<std::int32_t>(0x400000));
}

template <class E>
FASTSOFTMAX_INLINE void store(E* p, Pack<Compute<E>> a) {
    if constexpr (std::is_same_v<E, Compute<E>>) {
        store_pack(p, a);
    } else if constexpr (std::is_same_v<E, Half>) {
        store_halves(p, a);
    } else {
        store_upper_halves(p, rounded_to_bfloat16(a));
    }
}

// Loads the first `count` elements (fewer than a pack; of halves at least one), and `fill` in the other lanes. Reads
// nothing beyond them.
template <class E>
FASTSOFTMAX_INLINE Pack<Compute<E>> load_first(const E* p, std::ptrdiff_t count, Compute<E> fill) {
    if constexpr (std::is_same_v<E, Compute<E>>) {
        return load_first_lanes(p, count, fill);
    } else {
        E elements[Pack<std::uint16_t>::lanes];
        const auto* bits = reinterpret_cast<const std::uint16_t*>(p);
        store_pack(elements, load_first_lanes(bits, count, from_compute<E>(fill).bits));
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

// The elements that a loop takes at a time if their order does not matter: a pack, or two packs of bfloat16, one of the
// even positions and one of the odd ones, because each takes only one operation to convert.
template <class E>
using Step = Pack<Compute<E>, std::is_same_v<E, BFloat16> ? 2 : 1>;

template <class E>
FASTSOFTMAX_INLINE Step<E> load_step(const E* p) {
    if constexpr (std::is_same_v<E, BFloat16>) {
        const Pack<std::uint32_t> bits = load_pack<std::uint32_t>(p);
        return joined(bit_cast<float>(shift_left(bits, 16)), bit_cast<float>(bits & broadcast(0xffff0000u)));
    } else {
        return load(p);
    }
}

// Loads the first `count` elements, at least one and not all; the others are 0. Reads nothing beyond them.
template <class E>
FASTSOFTMAX_INLINE Step<E> load_first_of_step(const E* p, std::ptrdiff_t count) {
    if constexpr (std::is_same_v<E, BFloat16>) {
        E elements[Step<E>::lanes];
        store_pack(elements, load_first_lanes(reinterpret_cast<const std::uint16_t*>(p), count, std::uint16_t{0}));
        return load_step(elements);
    } else {
        return load_first(p, count, Compute<E>(0));
    }
}

template <bool may_be_nan, class E>
FASTSOFTMAX_INLINE void store_step(E* p, Step<E> a) {
    if constexpr (std::is_same_v<E, BFloat16>) {
        const auto even = bit_cast<std::uint32_t>(rounded_to_bfloat16<may_be_nan>(part(a, 0)));
        const auto odd = bit_cast<std::uint32_t>(rounded_to_bfloat16<may_be_nan>(part(a, 1)));
        store_pack(p, shift_right(even, 16) | (odd & broadcast(0xffff0000u)));
    } else {
        store(p, a);
    }
}

// Calls f(pack, position) for elements [begin, end); lanes beyond the end hold `fill`.
template <class E, class F>
FASTSOFTMAX_INLINE void for_packs(const E* x, std::ptrdiff_t begin, std::ptrdiff_t end, Compute<E> fill, F f) {
    constexpr int lanes = Pack<Compute<E>>::lanes;
    std::ptrdiff_t i = begin;
    for (; i + lanes <= end; i += lanes) f(load(x + i), i);
    if (i < end) f(load_first(x + i, end - i, fill), i);
}

// Converts elements to the type computed in, at `to`, which has room for whole packs; and back.
template <class E>
FASTSOFTMAX_ONCE void read_elements(const E* from, std::ptrdiff_t count, Compute<E>* to) {
    for_packs(from, 0, count, Compute<E>(0),
              [&](auto v, std::ptrdiff_t i) __attribute__((always_inline)) { store_pack(to + i, v); });
}
template <class E>
FASTSOFTMAX_ONCE void write_elements(const Compute<E>* from, std::ptrdiff_t count, E* to) {
    constexpr int lanes = Pack<Compute<E>>::lanes;
    for (std::ptrdiff_t i = 0; i < count; i += lanes) {
        const auto v = load_pack<Compute<E>>(from + i);
        if (i + lanes <= count)
            store(to + i, v);
        else
            store_first(to + i, v, count - i);
    }
}

template <class T>
FASTSOFTMAX_INLINE void store_in(T* out, std::ptrdiff_t i, std::ptrdiff_t end, Pack<T> value) {
    if (i + Pack<T>::lanes <= end)
        store(out + i, value);
    else
        store_first(out + i, value, end - i);
}

template <class T>
FASTSOFTMAX_INLINE Pack<T> load_in(const T* x, std::ptrdiff_t i, std::ptrdiff_t end, T fill = 0) {
    return i + Pack<T>::lanes <= end ? load(x + i) : load_first(x + i, end - i, fill);
}

}  // namespace
