// AVX-512 (F, BW, DQ and VL): a pack is one register.
#pragma once

#include <immintrin.h>

#include "../half.hpp"
#include "avx.hpp"

namespace {

constexpr int register_bytes = 64;
template <class T>
using Register = Vector<T, register_bytes>;
template <class T, int packs = 1>
using Pack = BasicPack<T, packs, register_bytes>;

constexpr bool has_fma = true;
#define FASTSOFTMAX_LONG FASTSOFTMAX_INLINE

FASTSOFTMAX_INLINE Register<float> fma(Register<float> a, Register<float> b, Register<float> c) {
    return _mm512_fmadd_ps(a, b, c);
}
FASTSOFTMAX_INLINE Register<double> fma(Register<double> a, Register<double> b, Register<double> c) {
    return _mm512_fmadd_pd(a, b, c);
}

FASTSOFTMAX_INLINE Register<float> max(Register<float> a, Register<float> b) { return _mm512_max_ps(a, b); }
FASTSOFTMAX_INLINE Register<double> max(Register<double> a, Register<double> b) { return _mm512_max_pd(a, b); }
FASTSOFTMAX_INLINE Register<float> min(Register<float> a, Register<float> b) { return _mm512_min_ps(a, b); }
FASTSOFTMAX_INLINE Register<double> min(Register<double> a, Register<double> b) { return _mm512_min_pd(a, b); }

template <class T>
FASTSOFTMAX_INLINE Register<T> look_up(const T (&table)[8], Register<Integer<T>> index) {
    if constexpr (sizeof(T) == 4) {
        const __m512i twice = _mm512_broadcast_i32x8(_mm256_loadu_si256((const __m256i*)table));
        return (Register<T>)_mm512_permutexvar_epi32((__m512i)index, twice);
    } else {
        return (Register<T>)_mm512_permutexvar_epi64((__m512i)index, _mm512_loadu_si512(table));
    }
}

constexpr bool has_scaling = true;
// a * 2^floor(n) and a * b + c; 0 where n is below `least`.
FASTSOFTMAX_INLINE Register<float> scaled(Register<float> a, Register<float> n, float least) {
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(n, _mm512_set1_ps(least), _CMP_NLT_UQ), a, n);
}
FASTSOFTMAX_INLINE Register<double> scaled(Register<double> a, Register<double> n, double least) {
    return _mm512_maskz_scalef_pd(_mm512_cmp_pd_mask(n, _mm512_set1_pd(least), _CMP_NLT_UQ), a, n);
}
FASTSOFTMAX_INLINE Register<float> fma_or_zero(Register<float> a, Register<float> b, Register<float> c,
                                               Register<float> n, float least) {
    return _mm512_maskz_fmadd_ps(_mm512_cmp_ps_mask(n, _mm512_set1_ps(least), _CMP_NLT_UQ), a, b, c);
}
FASTSOFTMAX_INLINE Register<double> fma_or_zero(Register<double> a, Register<double> b, Register<double> c,
                                                Register<double> n, double least) {
    return _mm512_maskz_fmadd_pd(_mm512_cmp_pd_mask(n, _mm512_set1_pd(least), _CMP_NLT_UQ), a, b, c);
}

// Stores a whole cache line past the caches; finish_streams orders such stores before later ones.
FASTSOFTMAX_INLINE void stream_pack(float* p, Pack<float> a) { _mm512_stream_ps(p, a.r[0]); }
FASTSOFTMAX_INLINE void stream_pack(double* p, Pack<double> a) { _mm512_stream_pd(p, a.r[0]); }
FASTSOFTMAX_INLINE void finish_streams() { _mm_sfence(); }

FASTSOFTMAX_INLINE Pack<float> permuted(const Pack<float>& table, Pack<std::int32_t> index) {
    return {{_mm512_permutexvar_ps((__m512i)index.r[0], table.r[0])}};
}

FASTSOFTMAX_INLINE Register<double> first_to_double(Register<float> a) {
    return _mm512_cvtps_pd(_mm512_castps512_ps256(a));
}
FASTSOFTMAX_INLINE Register<double> second_to_double(Register<float> a) {
    return _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
}
FASTSOFTMAX_INLINE Register<float> to_float(Register<double> first, Register<double> second) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(first)), _mm512_cvtpd_ps(second), 1);
}

FASTSOFTMAX_INLINE std::uint32_t lane_bits(Register<std::int32_t> mask) { return _mm512_movepi32_mask((__m512i)mask); }
FASTSOFTMAX_INLINE std::uint32_t lane_bits(Register<std::int64_t> mask) { return _mm512_movepi64_mask((__m512i)mask); }

FASTSOFTMAX_INLINE Pack<float> load_first_lanes(const float* p, std::ptrdiff_t count, float fill) {
    return {{_mm512_mask_loadu_ps(_mm512_set1_ps(fill), static_cast<__mmask16>((1u << count) - 1), p)}};
}
FASTSOFTMAX_INLINE Pack<double> load_first_lanes(const double* p, std::ptrdiff_t count, double fill) {
    return {{_mm512_mask_loadu_pd(_mm512_set1_pd(fill), static_cast<__mmask8>((1u << count) - 1), p)}};
}
FASTSOFTMAX_INLINE Pack<std::uint16_t> load_first_lanes(const std::uint16_t* p, std::ptrdiff_t count,
                                                        std::uint16_t fill) {
    const __m512i others = _mm512_set1_epi16(static_cast<short>(fill));
    return {{(Register<std::uint16_t>)_mm512_mask_loadu_epi16(others, static_cast<__mmask32>((1u << count) - 1), p)}};
}
FASTSOFTMAX_INLINE void store_first_lanes(float* p, Pack<float> a, std::ptrdiff_t count) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), a.r[0]);
}
FASTSOFTMAX_INLINE void store_first_lanes(double* p, Pack<double> a, std::ptrdiff_t count) {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << count) - 1), a.r[0]);
}

FASTSOFTMAX_INLINE Pack<float> load_halves(const Half* p) {
    return {{_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}};
}
FASTSOFTMAX_INLINE Pack<float> load_halves(const BFloat16* p) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {{_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))}};
}
FASTSOFTMAX_INLINE void store_halves(Half* p, Pack<float> a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.r[0], _MM_FROUND_TO_NEAREST_INT));
}
FASTSOFTMAX_INLINE void store_upper_halves(BFloat16* p, Pack<std::int32_t> a) {
    const __m512i upper = _mm512_srli_epi32((__m512i)a.r[0], 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(upper));
}

FASTSOFTMAX_INLINE Pack<double, 2> joined(const Four (&fours)[4]) {
    return {{_mm512_insertf64x4(_mm512_castpd256_pd512(fours[0]), fours[1], 1),
             _mm512_insertf64x4(_mm512_castpd256_pd512(fours[2]), fours[3], 1)}};
}

}  // namespace
