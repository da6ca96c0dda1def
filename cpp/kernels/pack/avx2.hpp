// AVX2 with FMA and F16C: a pack is two registers.
#pragma once

#include <immintrin.h>

#include "../half.hpp"
#include "avx.hpp"

namespace {

constexpr int register_bytes = 32;
template <class T>
using Register = Vector<T, register_bytes>;
template <class T, int packs = 1>
using Pack = BasicPack<T, packs, register_bytes>;

constexpr bool has_scaling = false;

constexpr bool has_fma = true;
#define FASTSOFTMAX_LONG FASTSOFTMAX_INLINE

FASTSOFTMAX_INLINE Register<float> fma(Register<float> a, Register<float> b, Register<float> c) {
    return _mm256_fmadd_ps(a, b, c);
}
FASTSOFTMAX_INLINE Register<double> fma(Register<double> a, Register<double> b, Register<double> c) {
    return _mm256_fmadd_pd(a, b, c);
}

FASTSOFTMAX_INLINE Register<float> max(Register<float> a, Register<float> b) { return _mm256_max_ps(a, b); }
FASTSOFTMAX_INLINE Register<double> max(Register<double> a, Register<double> b) { return _mm256_max_pd(a, b); }
FASTSOFTMAX_INLINE Register<float> min(Register<float> a, Register<float> b) { return _mm256_min_ps(a, b); }
FASTSOFTMAX_INLINE Register<double> min(Register<double> a, Register<double> b) { return _mm256_min_pd(a, b); }

template <class T>
FASTSOFTMAX_INLINE Register<T> look_up(const T (&table)[8], Register<Integer<T>> index) {
    const __m256i first = _mm256_loadu_si256((const __m256i*)table);
    if constexpr (sizeof(T) == 4) {
        return (Register<T>)_mm256_permutevar8x32_epi32(first, (__m256i)index);
    } else {
        // Finds the entry in each half of the table, as two neighbouring 32-bit numbers.
        const __m256i second = _mm256_loadu_si256((const __m256i*)table + 1);
        const __m256i doubled = _mm256_slli_epi32(_mm256_shuffle_epi32((__m256i)index, 0xa0), 1);
        const __m256i entry = _mm256_or_si256(doubled, _mm256_set1_epi64x(std::int64_t{1} << 32));
        const auto in_second = (__m256d)_mm256_slli_epi64((__m256i)index, 61);
        return (Register<T>)_mm256_blendv_pd((__m256d)_mm256_permutevar8x32_epi32(first, entry),
                                             (__m256d)_mm256_permutevar8x32_epi32(second, entry), in_second);
    }
}

// Stores a whole cache line past the caches; finish_streams orders such stores before later ones.
FASTSOFTMAX_INLINE void stream_pack(float* p, Pack<float> a) {
    for (int i = 0; i < 2; ++i) _mm256_stream_ps(p + 8 * i, a.r[i]);
}
FASTSOFTMAX_INLINE void stream_pack(double* p, Pack<double> a) {
    for (int i = 0; i < 2; ++i) _mm256_stream_pd(p + 4 * i, a.r[i]);
}
FASTSOFTMAX_INLINE void finish_streams() { _mm_sfence(); }

FASTSOFTMAX_INLINE Pack<float> permuted(const Pack<float>& table, Pack<std::int32_t> index) {
    Pack<float> a;
    for (int i = 0; i < 2; ++i) {
        const auto lanes = (__m256i)index.r[i];
        a.r[i] = _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.r[0], lanes),
                                  _mm256_permutevar8x32_ps(table.r[1], lanes), (__m256)_mm256_slli_epi32(lanes, 28));
    }
    return a;
}

FASTSOFTMAX_INLINE Register<double> first_to_double(Register<float> a) {
    return _mm256_cvtps_pd(_mm256_castps256_ps128(a));
}
FASTSOFTMAX_INLINE Register<double> second_to_double(Register<float> a) {
    return _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
}
FASTSOFTMAX_INLINE Register<float> to_float(Register<double> first, Register<double> second) {
    return _mm256_set_m128(_mm256_cvtpd_ps(second), _mm256_cvtpd_ps(first));
}

FASTSOFTMAX_INLINE std::uint32_t lane_bits(Register<std::int32_t> mask) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps((__m256)mask));
}
FASTSOFTMAX_INLINE std::uint32_t lane_bits(Register<std::int64_t> mask) {
    return static_cast<std::uint32_t>(_mm256_movemask_pd((__m256d)mask));
}

// A mask for register i of a pack: set in the lanes that are among the first `count` of the pack.
FASTSOFTMAX_INLINE __m256i first_floats(std::ptrdiff_t count, int i) {
    const __m256i lanes =
        i == 0 ? _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7) : _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes);
}
FASTSOFTMAX_INLINE __m256i first_doubles(std::ptrdiff_t count, int i) {
    const __m256i lanes = i == 0 ? _mm256_setr_epi64x(0, 1, 2, 3) : _mm256_setr_epi64x(4, 5, 6, 7);
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), lanes);
}

FASTSOFTMAX_INLINE Pack<float> load_first_lanes(const float* p, std::ptrdiff_t count, float fill) {
    Pack<float> a;
    for (int i = 0; i < 2; ++i) {
        const __m256i mask = first_floats(count, i);
        a.r[i] = _mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p + 8 * i, mask), (__m256)mask);
    }
    return a;
}
FASTSOFTMAX_INLINE Pack<double> load_first_lanes(const double* p, std::ptrdiff_t count, double fill) {
    Pack<double> a;
    for (int i = 0; i < 2; ++i) {
        const __m256i mask = first_doubles(count, i);
        a.r[i] = _mm256_blendv_pd(_mm256_set1_pd(fill), _mm256_maskload_pd(p + 4 * i, mask), (__m256d)mask);
    }
    return a;
}
// Loads pairs, then puts the last element in its place, which changes nothing if a pair had it.
FASTSOFTMAX_INLINE Pack<std::uint16_t> load_first_lanes(const std::uint16_t* p, std::ptrdiff_t count,
                                                        std::uint16_t fill) {
    std::uint16_t last;
    copy_elements(&last, p + count - 1, 1);
    const __m256i end = _mm256_set1_epi16(static_cast<short>(count));
    Pack<std::uint16_t> a;
    for (int i = 0; i < 2; ++i) {
        __m256i lanes = _mm256_setr_epi16(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16);
        if (i == 1) lanes = _mm256_add_epi16(lanes, _mm256_set1_epi16(16));
        const __m256i twos =
            _mm256_maskload_epi32(reinterpret_cast<const int*>(p + 16 * i), first_floats(count / 2, i));
        const __m256i all =
            _mm256_blendv_epi8(twos, _mm256_set1_epi16(static_cast<short>(last)), _mm256_cmpeq_epi16(lanes, end));
        a.r[i] = (Register<std::uint16_t>)_mm256_blendv_epi8(all, _mm256_set1_epi16(static_cast<short>(fill)),
                                                             _mm256_cmpgt_epi16(lanes, end));
    }
    return a;
}
FASTSOFTMAX_INLINE void store_first_lanes(float* p, Pack<float> a, std::ptrdiff_t count) {
    for (int i = 0; i < 2; ++i) _mm256_maskstore_ps(p + 8 * i, first_floats(count, i), a.r[i]);
}
FASTSOFTMAX_INLINE void store_first_lanes(double* p, Pack<double> a, std::ptrdiff_t count) {
    for (int i = 0; i < 2; ++i) _mm256_maskstore_pd(p + 4 * i, first_doubles(count, i), a.r[i]);
}

FASTSOFTMAX_INLINE Pack<float> load_halves(const Half* p) {
    Pack<float> a;
    for (int i = 0; i < 2; ++i) a.r[i] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + i));
    return a;
}
FASTSOFTMAX_INLINE Pack<float> load_halves(const BFloat16* p) {
    Pack<float> a;
    for (int i = 0; i < 2; ++i) {
        const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + i);
        a.r[i] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    }
    return a;
}
FASTSOFTMAX_INLINE void store_halves(Half* p, Pack<float> a) {
    for (int i = 0; i < 2; ++i)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p) + i, _mm256_cvtps_ph(a.r[i], _MM_FROUND_TO_NEAREST_INT));
}
FASTSOFTMAX_INLINE void store_upper_halves(BFloat16* p, Pack<std::int32_t> a) {
    const __m256i mixed =
        _mm256_packus_epi32(_mm256_srli_epi32((__m256i)a.r[0], 16), _mm256_srli_epi32((__m256i)a.r[1], 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(mixed, 0xd8));
}

FASTSOFTMAX_INLINE Pack<double, 2> joined(const Four (&fours)[4]) { return {{fours[0], fours[1], fours[2], fours[3]}}; }

}  // namespace
