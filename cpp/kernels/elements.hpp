// The element types in memory, to and from packs: float16 and bfloat16 are computed as float, rounded once on store.
#pragma once

#include <type_traits>

#include "kernels.hpp"
#include "pack.hpp"

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
// What a slice of E is computed in.
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
    // As a float with the exponent too small by 112; the product puts that right for subnormals too.
    const float scaled = same_bits<float>(magnitude << 13) * 0x1p112f;
    const std::uint32_t special =
        magnitude >= 0x7c00u ? 0x7f800000u | (magnitude << 13) : same_bits<std::uint32_t>(scaled);
    return same_bits<float>(sign | special);
}

template <class E>
FASTSOFTMAX_INLINE E from_compute(Compute<E> x) {
    if constexpr (std::is_same_v<E, BFloat16>) {
        const std::uint32_t bits = same_bits<std::uint32_t>(x);
        if (x != x) return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
        return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
    } else if constexpr (std::is_same_v<E, Half>) {
        const std::uint32_t bits = same_bits<std::uint32_t>(x);
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

template <class E>
constexpr int pack_lanes = Pack<Compute<E>>::lanes;

template <class E>
FASTSOFTMAX_INLINE Pack<Compute<E>> load(const E* p) {
    if constexpr (std::is_same_v<E, Compute<E>>) {
        return load_pack<E>(p);
    } else {
        Pack<float> a;
#if defined(__AVX512F__)
        const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        if constexpr (std::is_same_v<E, Half>)
            a.r[0] = _mm512_cvtph_ps(half);
        else
            a.r[0] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
#elif defined(__AVX2__)
        for (int i = 0; i < 2; ++i) {
            const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + i);
            if constexpr (std::is_same_v<E, Half>)
                a.r[i] = _mm256_cvtph_ps(half);
            else
                a.r[i] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
        }
#elif defined(__aarch64__)
        for (int i = 0; i < 4; ++i) {
            const uint16x4_t half = (uint16x4_t)vld1_u8(reinterpret_cast<const std::uint8_t*>(p + 4 * i));
            if constexpr (std::is_same_v<E, Half>)
                a.r[i] = vcvt_f32_f16((float16x4_t)half);
            else
                a.r[i] = (float32x4_t)vshll_n_u16(half, 16);
        }
#else
        float values[16];
        for (int i = 0; i < 16; ++i) {
            E element;
            copy_elements(&element, p + i, 1);
            values[i] = to_compute(element);
        }
        a = load_pack<float>(values);
#endif
        return a;
    }
}

template <class E>
FASTSOFTMAX_INLINE void store(E* p, Pack<Compute<E>> a) {
    if constexpr (std::is_same_v<E, Compute<E>>) {
        store_pack(p, a);
    } else {
#if defined(__AVX2__) || defined(__aarch64__)
        if constexpr (std::is_same_v<E, Half>) {
#if defined(__aarch64__)
            for (int i = 0; i < 4; ++i)
                vst1_u8(reinterpret_cast<std::uint8_t*>(p + 4 * i), (uint8x8_t)vcvt_f16_f32(a.r[i]));
#elif defined(__AVX512F__)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.r[0], _MM_FROUND_TO_NEAREST_INT));
#else
            for (int i = 0; i < 2; ++i)
                _mm_storeu_si128(reinterpret_cast<__m128i*>(p) + i, _mm256_cvtps_ph(a.r[i], _MM_FROUND_TO_NEAREST_INT));
#endif
        } else {
            using Bits = Pack<std::int32_t>;
            const Bits bits = bit_cast<std::int32_t>(a);
            const Bits odd = shift_right(bits, 16) & broadcast<std::int32_t>(1);
            const Bits rounded = bits + broadcast<std::int32_t>(0x7fff) + odd;
            const Bits chosen = select(equal(a, a), rounded, bits | broadcast<std::int32_t>(0x400000));
#if defined(__aarch64__)
            for (int i = 0; i < 4; ++i)
                vst1_u8(reinterpret_cast<std::uint8_t*>(p + 4 * i),
                        (uint8x8_t)vshrn_n_u32((uint32x4_t)chosen.r[i], 16));
#elif defined(__AVX512F__)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                                _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)chosen.r[0], 16)));
#else
            const __m256i words = _mm256_packus_epi32(_mm256_srli_epi32((__m256i)chosen.r[0], 16),
                                                      _mm256_srli_epi32((__m256i)chosen.r[1], 16));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(words, 0xd8));
#endif
        }
#else
        float values[16];
        store_pack(values, a);
        for (int i = 0; i < 16; ++i) {
            const E element = from_compute<E>(values[i]);
            copy_elements(p + i, &element, 1);
        }
#endif
    }
}

// The first `count` (less than a pack) elements; the other lanes are `fill`. Nothing beyond is read.
template <class E>
FASTSOFTMAX_INLINE Pack<Compute<E>> load_first(const E* p, std::ptrdiff_t count, Compute<E> fill) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<E, float>)
        return {{_mm512_mask_loadu_ps(_mm512_set1_ps(fill), static_cast<__mmask16>((1u << count) - 1), p)}};
    else if constexpr (std::is_same_v<E, double>)
        return {{_mm512_mask_loadu_pd(_mm512_set1_pd(fill), static_cast<__mmask8>((1u << count) - 1), p)}};
#elif defined(__AVX2__)
    using I = Integer<Compute<E>>;
    const Pack<I> mask = less(iota<I>(), broadcast<I>(static_cast<I>(count)));
    if constexpr (std::is_same_v<E, float>) {
        Pack<float> a;
        for (int i = 0; i < 2; ++i) a.r[i] = _mm256_maskload_ps(p + 8 * i, (__m256i)mask.r[i]);
        return select(mask, a, broadcast(fill));
    } else if constexpr (std::is_same_v<E, double>) {
        Pack<double> a;
        for (int i = 0; i < 2; ++i) a.r[i] = _mm256_maskload_pd(p + 4 * i, (__m256i)mask.r[i]);
        return select(mask, a, broadcast(fill));
    }
#endif
    using T = Compute<E>;
    T values[pack_lanes<E>];
    for (int i = 0; i < pack_lanes<E>; ++i) {
        values[i] = fill;
        if (i < count) {
            E element;
            copy_elements(&element, p + i, 1);
            values[i] = to_compute(element);
        }
    }
    return load_pack<T>(values);
}

template <class E>
FASTSOFTMAX_INLINE void store_first(E* p, Pack<Compute<E>> a, std::ptrdiff_t count) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<E, float>)
        return _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), a.r[0]);
    else if constexpr (std::is_same_v<E, double>)
        return _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << count) - 1), a.r[0]);
#elif defined(__AVX2__)
    using I = Integer<Compute<E>>;
    const Pack<I> mask = less(iota<I>(), broadcast<I>(static_cast<I>(count)));
    if constexpr (std::is_same_v<E, float>) {
        for (int i = 0; i < 2; ++i) _mm256_maskstore_ps(p + 8 * i, (__m256i)mask.r[i], a.r[i]);
        return;
    } else if constexpr (std::is_same_v<E, double>) {
        for (int i = 0; i < 2; ++i) _mm256_maskstore_pd(p + 4 * i, (__m256i)mask.r[i], a.r[i]);
        return;
    }
#endif
    E elements[pack_lanes<E>];
    store(elements, a);
    copy_elements(p, elements, count);
}

}  // namespace
