// SSE2, which every x86-64 processor has.
#pragma once

#include <emmintrin.h>

#include "plain.hpp"

namespace {

FASTSOFTMAX_INLINE Register<float> max(Register<float> a, Register<float> b) { return _mm_max_ps(a, b); }
FASTSOFTMAX_INLINE Register<double> max(Register<double> a, Register<double> b) { return _mm_max_pd(a, b); }
FASTSOFTMAX_INLINE Register<float> min(Register<float> a, Register<float> b) { return _mm_min_ps(a, b); }
FASTSOFTMAX_INLINE Register<double> min(Register<double> a, Register<double> b) { return _mm_min_pd(a, b); }

FASTSOFTMAX_INLINE Register<double> first_to_double(Register<float> a) { return _mm_cvtps_pd(a); }
FASTSOFTMAX_INLINE Register<double> second_to_double(Register<float> a) { return _mm_cvtps_pd(_mm_movehl_ps(a, a)); }
FASTSOFTMAX_INLINE Register<float> to_float(Register<double> first, Register<double> second) {
    return _mm_movelh_ps(_mm_cvtpd_ps(first), _mm_cvtpd_ps(second));
}

constexpr bool has_fma = false;
#define FASTSOFTMAX_LONG FASTSOFTMAX_ONCE

// Computed in double; rounded twice in rare cases.
FASTSOFTMAX_INLINE Register<float> fma(Register<float> a, Register<float> b, Register<float> c) {
    return to_float(first_to_double(a) * first_to_double(b) + first_to_double(c),
                    second_to_double(a) * second_to_double(b) + second_to_double(c));
}

// Computed with Dekker's exact product; rounded twice from 2^996 on, where its splitter overflows.
FASTSOFTMAX_INLINE Register<double> fma(Register<double> a, Register<double> b, Register<double> c) {
    constexpr double splitter = 0x1p27 + 1;  // Veltkamp: halves of 26 bits
    const Register<double> a_split = a * splitter, b_split = b * splitter;
    const Register<double> a_high = a_split - (a_split - a), b_high = b_split - (b_split - b);
    const Register<double> a_low = a - a_high, b_low = b - b_high;
    const Register<double> product = a * b;
    const Register<double> error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
    const Register<double> sum = product + c;
    const Register<double> back = sum - product;
    const Register<double> lost = (product - (sum - back)) + (c - back);
    const Register<double> fused = sum + (lost + error);
    return fused == fused ? fused : sum;
}

template <class T>
FASTSOFTMAX_INLINE Register<T> look_up(const T (&table)[8], Register<Integer<T>> index) {
    constexpr int width = register_bytes / static_cast<int>(sizeof(T));
    T values[width];
    for (int k = 0; k < width; ++k) values[k] = table[index[k] & 7];
    return load_vector<T, register_bytes>(values);
}

FASTSOFTMAX_INLINE Pack<float> permuted(const Pack<float>& table, Pack<std::int32_t> index) {
    float from[16], to[16];
    std::int32_t at[16];
    __builtin_memcpy(from, &table, sizeof from);
    __builtin_memcpy(at, &index, sizeof at);
    for (int i = 0; i < 16; ++i) to[i] = from[at[i]];
    Pack<float> a;
    __builtin_memcpy(&a, to, sizeof a);
    return a;
}

FASTSOFTMAX_INLINE std::uint32_t lane_bits(Register<std::int32_t> mask) {
    return static_cast<std::uint32_t>(_mm_movemask_ps((__m128)mask));
}
FASTSOFTMAX_INLINE std::uint32_t lane_bits(Register<std::int64_t> mask) {
    return static_cast<std::uint32_t>(_mm_movemask_pd((__m128d)mask));
}

FASTSOFTMAX_INLINE Pack<float> load_halves(const Half* p) {
    float values[16];
    for (int i = 0; i < 16; ++i) {
        Half half;
        copy_elements(&half, p + i, 1);
        values[i] = to_compute(half);
    }
    Pack<float> a;
    __builtin_memcpy(&a, values, sizeof a);
    return a;
}
FASTSOFTMAX_INLINE Pack<float> load_halves(const BFloat16* p) {
    Pack<float> a;
    for (int i = 0; i < 2; ++i) {
        const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + i), zero = _mm_setzero_si128();
        a.r[2 * i] = _mm_castsi128_ps(_mm_unpacklo_epi16(zero, halves));
        a.r[2 * i + 1] = _mm_castsi128_ps(_mm_unpackhi_epi16(zero, halves));
    }
    return a;
}
FASTSOFTMAX_INLINE void store_halves(Half* p, Pack<float> a) {
    float values[16];
    __builtin_memcpy(values, &a, sizeof values);
    for (int i = 0; i < 16; ++i) {
        const Half half = from_compute<Half>(values[i]);
        copy_elements(p + i, &half, 1);
    }
}
FASTSOFTMAX_INLINE void store_upper_halves(BFloat16* p, Pack<std::int32_t> a) {
    for (int i = 0; i < 2; ++i) {
        // Shifted with their sign, so that packing, which saturates, leaves them as they are.
        const __m128i first = _mm_srai_epi32((__m128i)a.r[2 * i], 16);
        const __m128i second = _mm_srai_epi32((__m128i)a.r[2 * i + 1], 16);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p) + i, _mm_packs_epi32(first, second));
    }
}

}  // namespace
