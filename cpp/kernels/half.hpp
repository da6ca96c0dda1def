// Converts single elements to the type that they are computed in, and back: float16 and bfloat16 are computed as float
// and rounded once when stored.
#pragma once

#include <type_traits>

#include "kernels.hpp"
#include "pack/vector.hpp"

namespace {

using fastsoftmax::BFloat16;
using fastsoftmax::Half;

template <class E>
struct ComputeOf {
    using type = float;
};
template <>
struct ComputeOf<double> {
    using type = double;
};
// The type that a slice of E is computed in.
template <class E>
using Compute = typename ComputeOf<E>::type;

template <class To, class From>
FASTSOFTMAX_INLINE To same_bits(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &value, sizeof to);
    return to;
}

FASTSOFTMAX_INLINE float to_compute(float x) { return x; }
FASTSOFTMAX_INLINE double to_compute(double x) { return x; }
FASTSOFTMAX_INLINE float to_compute(BFloat16 x) { return same_bits<float>(static_cast<std::uint32_t>(x.bits) << 16); }

FASTSOFTMAX_INLINE float to_compute(Half x) {
    const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
    const std::uint32_t magnitude = x.bits & 0x7fffu;
    // As a float whose exponent is too small by 112. The product corrects that, for subnormals too.
    const float scaled = same_bits<float>(magnitude << 13) * 0x1p112f;
    const std::uint32_t special =
        magnitude >= 0x7c00u ? 0x7f800000u | (magnitude << 13) : same_bits<std::uint32_t>(scaled);
    return same_bits<float>(sign | special);
}

template <class E>
FASTSOFTMAX_INLINE E from_compute(Compute<E> x) {
    if constexpr (std::is_same_v<E, BFloat16>) {
        const auto bits = same_bits<std::uint32_t>(x);
        if (x != x) return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
        return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
    } else if constexpr (std::is_same_v<E, Half>) {
        const auto bits = same_bits<std::uint32_t>(x);
        const std::uint32_t sign = (bits >> 16) & 0x8000u;
        const std::uint32_t magnitude = bits & 0x7fffffffu;
        std::uint32_t half;
        if (magnitude > 0x7f800000u)
            half = 0x7e00u | ((magnitude >> 13) & 0x1ffu);
        else if (magnitude >= 0x477ff000u)  // 65520 and more round to infinity
            half = 0x7c00u;
        else if (magnitude <
                 0x38800000u)  // below 2^-14: adding 1/2 leaves units of 2^-24 in the last bits, rounded to even
            half = same_bits<std::uint32_t>(same_bits<float>(magnitude) + 0.5f) - 0x3f000000u;
        else
            half = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
        return {static_cast<std::uint16_t>(sign | half)};
    } else {
        return x;
    }
}

}  // namespace
