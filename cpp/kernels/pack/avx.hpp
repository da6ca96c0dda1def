// The primitives that AVX2 and AVX-512 share: four numbers at a time.
#pragma once

#include <immintrin.h>

#include "vector.hpp"

namespace {

using Four = __m256d;

FASTSOFTMAX_INLINE Four load_four(const float* x) { return _mm256_cvtps_pd(_mm_loadu_ps(x)); }

FASTSOFTMAX_INLINE Four load_first_of_four(const float* x, std::ptrdiff_t count) {
    const __m128i mask = _mm_cmpgt_epi32(_mm_set1_epi32(static_cast<int>(count)), _mm_setr_epi32(0, 1, 2, 3));
    return _mm256_cvtps_pd(_mm_maskload_ps(x, mask));
}

FASTSOFTMAX_INLINE Four multiply_add(Four a, Four b, Four c) { return _mm256_fmadd_pd(a, b, c); }

}  // namespace
