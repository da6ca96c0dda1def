// The loops of limits.py. Each reads and writes the memory that a case has to, and computes only what no softmax can
// leave out.
//
// The polynomials of the exponentials have the fewest terms with an error below one ULP of the dtype. There is no check
// for overflow or NaN. -ffast-math is not used: it would optimise their rounding away and, in a shared library, switch
// off subnormals in the whole process.

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __F16C__
#include <immintrin.h>
#endif

#define PRAGMA(text) _Pragma(#text)
#define SHARED(clauses) PRAGMA(omp parallel for clauses schedule(static) num_threads(threads) if (parallel : threads > 1))
#define SHARED_SUM SHARED(simd reduction(+ : sum))

// exp(x) = 2^n 2^f with n + f = x log2(e). Adding 1.5 * 2^23 (float64: 1.5 * 2^52) rounds to n and leaves it in the
// lowest bits, from where it is shifted into the exponent. The polynomials have the least relative error on
// [-0.5, 0.5].
#define EXPONENTIAL(name, number, bits, digits, polynomial)                                         \
    static inline number name(number x) {                                                           \
        const number log2e = (number)1.4426950408889634, magic = (number)((bits)3 << (digits - 2)); \
        const number shifted = x * log2e + magic;                                                   \
        const number f = x * log2e - (shifted - magic);                                             \
        number power = polynomial;                                                                  \
        bits n, sum;                                                                                \
        memcpy(&n, &shifted, sizeof n);                                                             \
        memcpy(&sum, &power, sizeof sum);                                                           \
        sum += n << (digits - 1);                                                                   \
        memcpy(&power, &sum, sizeof power);                                                         \
        return power;                                                                               \
    }

EXPONENTIAL(exp_of_float32, float, uint32_t, 24,
            1.00000007f + f * (0.693146967f +
                               f * (0.240221197f + f * (0.0555071327f + f * (0.00967554134f + f * 0.00132764726f)))))
EXPONENTIAL(exp_of_float16, float, uint32_t, 24,
            0.999928074f + f * (0.693260985f + f * (0.242611122f + f * 0.0551716723f)))
EXPONENTIAL(exp_of_bfloat16, float, uint32_t, 24, 1.00044314f + f * (0.703448006f + f * 0.238428936f))
EXPONENTIAL(
    exp_of_float64, double, uint64_t, 53,
    1.0 + f * (0.693147180559949775 +
               f * (0.240226506959087678 +
                    f * (0.0555041086644588332 +
                         f * (0.00961812910803458869 +
                              f * (0.00133335582285614755 +
                                   f * (0.000154035299611359555 +
                                        f * (0.0000152526581165613843 +
                                             f * (1.32156628318461028e-6 +
                                                  f * (1.02085379045521639e-7 + f * 7.03727953058280352e-9))))))))))

#define LOOPS(dtype, number)                                                     \
    void exp_##dtype(const number* x, number* y, ptrdiff_t count, int threads) { \
        SHARED(simd)                                                             \
        for (ptrdiff_t i = 0; i < count; ++i) y[i] = exp_of_##dtype(x[i]);       \
    }                                                                            \
    number exp_sum_##dtype(const number* x, ptrdiff_t count, int threads) {      \
        number sum = 0;                                                          \
        SHARED_SUM                                                               \
        for (ptrdiff_t i = 0; i < count; ++i) sum += exp_of_##dtype(x[i]);       \
        return sum;                                                              \
    }

LOOPS(float32, float)
LOOPS(float64, double)

#ifdef __F16C__
// Compilers convert half precision one number at a time or round it in integers, so these are written by hand.
enum { LANES = 16 };

static inline void widen_float16(const uint16_t* x, float* wide) {
#ifdef __AVX512F__
    _mm512_storeu_ps(wide, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)x)));
#else
    for (int i = 0; i < LANES; i += 8)
        _mm256_storeu_ps(wide + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(x + i))));
#endif
}

static inline void narrow_float16(const float* wide, uint16_t* y) {
#ifdef __AVX512F__
    _mm256_storeu_si256((__m256i*)y, _mm512_cvtps_ph(_mm512_loadu_ps(wide), _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < LANES; i += 8)
        _mm_storeu_si128((__m128i*)(y + i), _mm256_cvtps_ph(_mm256_loadu_ps(wide + i), _MM_FROUND_TO_NEAREST_INT));
#endif
}

static inline void widen_bfloat16(const uint16_t* x, float* wide) {
    for (int i = 0; i < LANES; ++i) {
        const uint32_t bits = (uint32_t)x[i] << 16;
        memcpy(wide + i, &bits, sizeof bits);
    }
}

static inline void narrow_bfloat16(const float* wide, uint16_t* y) {
#ifdef __AVX512BF16__
    const __m256bh half = _mm512_cvtneps_pbh(_mm512_loadu_ps(wide));
    memcpy(y, &half, sizeof half);
#else
    for (int i = 0; i < LANES; ++i) {
        uint32_t bits;
        memcpy(&bits, wide + i, sizeof bits);
        y[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
#endif
}

// These compute whole groups of lanes. The few numbers left at the end of a case make no difference to its time.
#define HALF_LOOPS(dtype)                                                                          \
    void exp_##dtype(const uint16_t* x, uint16_t* y, ptrdiff_t count, int threads) {               \
        SHARED()                                                                                   \
        for (ptrdiff_t i = 0; i <= count - LANES; i += LANES) {                                    \
            float wide[LANES];                                                                     \
            widen_##dtype(x + i, wide);                                                            \
            for (int lane = 0; lane < LANES; ++lane) wide[lane] = exp_of_##dtype(wide[lane]);      \
            narrow_##dtype(wide, y + i);                                                           \
        }                                                                                          \
    }                                                                                              \
    float exp_sum_##dtype(const uint16_t* x, ptrdiff_t count, int threads) {                       \
        float total = 0;                                                                           \
        PRAGMA(omp parallel num_threads(threads) if (threads > 1) reduction(+ : total)) {          \
            float sums[LANES] = {0};                                                               \
            PRAGMA(omp for schedule(static))                                                       \
            for (ptrdiff_t i = 0; i <= count - LANES; i += LANES) {                                \
                float wide[LANES];                                                                 \
                widen_##dtype(x + i, wide);                                                        \
                for (int lane = 0; lane < LANES; ++lane) sums[lane] += exp_of_##dtype(wide[lane]); \
            }                                                                                      \
            for (int lane = 0; lane < LANES; ++lane) total += sums[lane];                          \
        }                                                                                          \
        return total;                                                                              \
    }

HALF_LOOPS(float16)
HALF_LOOPS(bfloat16)
#endif

// Loops that move memory, in words. They change each word, because compilers turn a plain copy into a call of memcpy,
// whose stores bypass the cache if the array is large. That can be slower.
uint32_t move_1_to_0(const uint32_t* x, ptrdiff_t count, int threads) {
    uint32_t sum = 0;
    SHARED_SUM
    for (ptrdiff_t i = 0; i < count; ++i) sum += x[i];
    return sum;
}

uint32_t move_2_to_0(const uint32_t* a, const uint32_t* b, ptrdiff_t count, int threads) {
    uint32_t sum = 0;
    SHARED_SUM
    for (ptrdiff_t i = 0; i < count; ++i) sum += a[i] ^ b[i];
    return sum;
}
void move_1_to_1(const uint32_t* x, uint32_t* y, ptrdiff_t count, int threads) {
    SHARED(simd)
    for (ptrdiff_t i = 0; i < count; ++i) y[i] = ~x[i];
}

void move_1_to_2(const uint32_t* x, uint32_t* y, uint32_t* z, ptrdiff_t count, int threads) {
    SHARED(simd)
    for (ptrdiff_t i = 0; i < count; ++i) {
        y[i] = ~x[i];
        z[i] = -x[i];
    }
}
void move_2_to_1(const uint32_t* a, const uint32_t* b, uint32_t* y, ptrdiff_t count, int threads) {
    SHARED(simd)
    for (ptrdiff_t i = 0; i < count; ++i) y[i] = a[i] ^ b[i];
}
