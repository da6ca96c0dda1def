// Pack<T>: 64 bytes of T (16 floats, 8 doubles) in as many native registers as that takes. Pack<T, n>: n of them, for
// what takes so long that one would wait for itself.
//
// The only file with instruction sets in it, besides elements.hpp. A kernel is written once for this width, so each
// target does the same arithmetic in the same order and, where it has FMA, gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// What happens for each pack is inlined; what happens once a slice is called, so that it is compiled once.
#define FASTSOFTMAX_INLINE [[gnu::always_inline]] inline
#define FASTSOFTMAX_ONCE [[gnu::noinline]] inline

namespace {

#if defined(__AVX512F__)
constexpr int register_bytes = 64;
#elif defined(__AVX2__)
constexpr int register_bytes = 32;
#else
constexpr int register_bytes = 16;
#endif

constexpr int pack_bytes = 64;
constexpr int pack_registers = pack_bytes / register_bytes;

#if defined(__FMA__) || defined(__aarch64__)
constexpr bool has_fma = true;
#define FASTSOFTMAX_FMA FASTSOFTMAX_INLINE
#else
constexpr bool has_fma = false;
#define FASTSOFTMAX_FMA FASTSOFTMAX_ONCE  // too long to be repeated
#endif

template <class T>
struct RegisterOf {
    typedef T type __attribute__((vector_size(register_bytes)));
    // The same at any address and over any type: how registers meet memory.
    typedef T memory __attribute__((vector_size(register_bytes), aligned(1), may_alias));
};

template <class T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
    using type = std::int32_t;
};
template <>
struct IntegerOf<double> {
    using type = std::int64_t;
};
template <>
struct IntegerOf<std::int32_t> {
    using type = std::int32_t;
};
template <>
struct IntegerOf<std::int64_t> {
    using type = std::int64_t;
};
template <class T>
using Integer = typename IntegerOf<T>::type;

template <class T, int packs = 1>
struct Pack {
    using Register = typename RegisterOf<T>::type;
    static constexpr int registers = packs * pack_registers;
    static constexpr int lanes = packs * pack_bytes / static_cast<int>(sizeof(T));
    Register r[registers];
};

// As many as the registers have room for.
constexpr int packs_at_once = register_bytes == 64 ? 4 : 1;

// What a comparison gives: all bits of a lane set, or none.
template <class T>
using Mask = Pack<Integer<T>>;

template <class T, int packs = 1>
FASTSOFTMAX_INLINE Pack<T, packs> broadcast(T value) {
    Pack<T, packs> a;
    for (auto& r : a.r) r = value - typename Pack<T>::Register{};  // subtracting zero keeps -0 and NaN
    return a;
}

// The same pack `packs` times.
template <int packs, class T>
FASTSOFTMAX_INLINE Pack<T, packs> repeat(Pack<T> a) {
    Pack<T, packs> b;
    for (int i = 0; i < b.registers; ++i) b.r[i] = a.r[i % pack_registers];
    return b;
}

// The pack `k` of several.
template <class T, int packs>
FASTSOFTMAX_INLINE Pack<T> part(const Pack<T, packs>& a, int k) {
    Pack<T> b;
    for (int i = 0; i < pack_registers; ++i) b.r[i] = a.r[k * pack_registers + i];
    return b;
}

template <class T, int packs>
FASTSOFTMAX_INLINE void set_part(Pack<T, packs>& a, int k, Pack<T> value) {
    for (int i = 0; i < pack_registers; ++i) a.r[k * pack_registers + i] = value.r[i];
}

// As bytes: the elements of an array may lie anywhere, and a T* would promise that they lie at multiples of their size.
template <class T>
FASTSOFTMAX_INLINE void copy_elements(T* to, const T* from, std::ptrdiff_t count) {
    __builtin_memcpy(reinterpret_cast<std::byte*>(to), reinterpret_cast<const std::byte*>(from),
                     static_cast<std::size_t>(count) * sizeof(T));
}

template <class T>
FASTSOFTMAX_INLINE Pack<T> load_pack(const void* p) {
    Pack<T> a;
    for (int i = 0; i < pack_registers; ++i) a.r[i] = reinterpret_cast<const typename RegisterOf<T>::memory*>(p)[i];
    return a;
}

template <class T>
FASTSOFTMAX_INLINE void store_pack(void* p, Pack<T> a) {
    for (int i = 0; i < pack_registers; ++i) reinterpret_cast<typename RegisterOf<T>::memory*>(p)[i] = a.r[i];
}

#define FASTSOFTMAX_LANEWISE(op)                                                        \
    template <class T, int packs>                                                       \
    FASTSOFTMAX_INLINE Pack<T, packs> operator op(Pack<T, packs> a, Pack<T, packs> b) { \
        for (int i = 0; i < a.registers; ++i) a.r[i] = a.r[i] op b.r[i];                \
        return a;                                                                       \
    }
FASTSOFTMAX_LANEWISE(+)
FASTSOFTMAX_LANEWISE(-)
FASTSOFTMAX_LANEWISE(*)
FASTSOFTMAX_LANEWISE(/)
FASTSOFTMAX_LANEWISE(&)
FASTSOFTMAX_LANEWISE(|)
#undef FASTSOFTMAX_LANEWISE

template <class T, int packs>
FASTSOFTMAX_INLINE Pack<T, packs> operator-(Pack<T, packs> a) {
    for (auto& r : a.r) r = -r;
    return a;
}

template <class T, int packs>
FASTSOFTMAX_INLINE Pack<T, packs> shift_left(Pack<T, packs> a, int bits) {
    for (auto& r : a.r) r = r << bits;
    return a;
}

template <class T, int packs>
FASTSOFTMAX_INLINE Pack<T, packs> shift_right(Pack<T, packs> a, int bits) {
    for (auto& r : a.r) r = r >> bits;
    return a;
}

template <class To, class From, int packs>
FASTSOFTMAX_INLINE Pack<To, packs> bit_cast(Pack<From, packs> a) {
    Pack<To, packs> b;
    for (int i = 0; i < b.registers; ++i) b.r[i] = (typename Pack<To>::Register)a.r[i];
    return b;
}

#define FASTSOFTMAX_COMPARISON(name, op)                                                                  \
    template <class T>                                                                                    \
    FASTSOFTMAX_INLINE Mask<T> name(Pack<T> a, Pack<T> b) {                                               \
        Mask<T> m;                                                                                        \
        for (int i = 0; i < pack_registers; ++i) m.r[i] = (typename Mask<T>::Register)(a.r[i] op b.r[i]); \
        return m;                                                                                         \
    }
FASTSOFTMAX_COMPARISON(less, <)
FASTSOFTMAX_COMPARISON(equal, ==)
#undef FASTSOFTMAX_COMPARISON

template <class T, class I>
FASTSOFTMAX_INLINE Pack<T> select(Pack<I> mask, Pack<T> a, Pack<T> b) {
    static_assert(sizeof(T) == sizeof(I));
    for (int i = 0; i < pack_registers; ++i) a.r[i] = mask.r[i] ? a.r[i] : b.r[i];
    return a;
}

// a where it is positive, else 0.
template <class I, int packs>
FASTSOFTMAX_INLINE Pack<I, packs> positive(Pack<I, packs> a) {
    const typename Pack<I>::Register zero = {};
    for (auto& r : a.r) r = r > zero ? r : zero;
    return a;
}

#if defined(__aarch64__)
// Where in a table of so many entries the bytes of entry i are, for the integer i of each lane, modulo `entries`.
template <class I, int entries>
FASTSOFTMAX_INLINE uint8x16_t bytes_of_entries(uint8x16_t index) {
    constexpr bool small = sizeof(I) == 4;
    const uint64x2_t last_bytes = {small ? 0x0404040400000000 : 0, small ? 0x0c0c0c0c08080808 : 0x0808080808080808};
    const uint64x2_t bytes = vdupq_n_u64(small ? 0x0302010003020100 : 0x0706050403020100);
    const uint8x16_t entry = vandq_u8(vqtbl1q_u8(index, (uint8x16_t)last_bytes), vdupq_n_u8(entries - 1));
    return vsliq_n_u8((uint8x16_t)bytes, entry, small ? 2 : 3);
}
#endif

// table[i mod 8] for the integer i of each lane.
template <class T, int packs>
FASTSOFTMAX_INLINE Pack<T, packs> look_up(const T (&table)[8], Pack<Integer<T>, packs> index) {
    using Register = typename Pack<T>::Register;
    Pack<T, packs> found;
    for (int i = 0; i < found.registers; ++i) {
        const auto at = index.r[i];
#if defined(__AVX512F__)
        if constexpr (sizeof(T) == 4) {
            const __m512i all = _mm512_broadcast_i32x8(_mm256_loadu_si256((const __m256i*)table));
            found.r[i] = (Register)_mm512_permutexvar_epi32((__m512i)at, all);
        } else {
            found.r[i] = (Register)_mm512_permutexvar_epi64((__m512i)at, _mm512_loadu_si512(table));
        }
#elif defined(__AVX2__)
        const __m256i first = _mm256_loadu_si256((const __m256i*)table);
        if constexpr (sizeof(T) == 4) {
            found.r[i] = (Register)_mm256_permutevar8x32_epi32(first, (__m256i)at);
        } else {
            // Halves of four, each found as two neighbouring halves of an entry.
            const __m256i second = _mm256_loadu_si256((const __m256i*)table + 1);
            const __m256i doubled = _mm256_slli_epi32(_mm256_shuffle_epi32((__m256i)at, 0xa0), 1);
            const __m256i entry = _mm256_or_si256(doubled, _mm256_set1_epi64x(std::int64_t{1} << 32));
            const __m256d upper = (__m256d)_mm256_slli_epi64((__m256i)at, 61);
            found.r[i] = (Register)_mm256_blendv_pd((__m256d)_mm256_permutevar8x32_epi32(first, entry),
                                                    (__m256d)_mm256_permutevar8x32_epi32(second, entry), upper);
        }
#elif defined(__aarch64__)
        const auto* bytes = reinterpret_cast<const std::uint8_t*>(table);
        const uint8x16_t wanted = bytes_of_entries<Integer<T>, 8>((uint8x16_t)at);
        if constexpr (sizeof(T) == 4)
            found.r[i] = (Register)vqtbl2q_u8(vld1q_u8_x2(bytes), wanted);
        else
            found.r[i] = (Register)vqtbl4q_u8(vld1q_u8_x4(bytes), wanted);
#else
        T values[register_bytes / sizeof(T)];
        for (std::size_t k = 0; k < register_bytes / sizeof(T); ++k) values[k] = table[at[k] & 7];
        found.r[i] = (Register) * reinterpret_cast<const typename RegisterOf<T>::memory*>(values);
#endif
    }
    return found;
}

// 0, 1, 2, ...
template <class I>
FASTSOFTMAX_INLINE Pack<I> iota() {
    alignas(pack_bytes) I values[Pack<I>::lanes];
    for (int i = 0; i < Pack<I>::lanes; ++i) values[i] = static_cast<I>(i);
    return load_pack<I>(values);
}

// The larger, or smaller, of each lane; b where either is NaN. So max(x, m) passes over a NaN in x, and max(low, x)
// keeps it.
#if defined(__AVX512F__)
#define FASTSOFTMAX_EXTREME_OF(name, op, suffix, a, b) _mm512_##name##_##suffix(a, b)
#elif defined(__AVX2__)
#define FASTSOFTMAX_EXTREME_OF(name, op, suffix, a, b) _mm256_##name##_##suffix(a, b)
#elif defined(__SSE2__)
#define FASTSOFTMAX_EXTREME_OF(name, op, suffix, a, b) _mm_##name##_##suffix(a, b)
#else
#define FASTSOFTMAX_EXTREME_OF(name, op, suffix, a, b) (a op b ? a : b)
#endif
#define FASTSOFTMAX_EXTREME(name, op, T, suffix)                                                                 \
    template <int packs>                                                                                         \
    FASTSOFTMAX_INLINE Pack<T, packs> name(Pack<T, packs> a, Pack<T, packs> b) {                                 \
        for (int i = 0; i < a.registers; ++i) a.r[i] = FASTSOFTMAX_EXTREME_OF(name, op, suffix, a.r[i], b.r[i]); \
        return a;                                                                                                \
    }
FASTSOFTMAX_EXTREME(max, >, float, ps)
FASTSOFTMAX_EXTREME(max, >, double, pd)
FASTSOFTMAX_EXTREME(min, <, float, ps)
FASTSOFTMAX_EXTREME(min, <, double, pd)
#undef FASTSOFTMAX_EXTREME
#undef FASTSOFTMAX_EXTREME_OF

// Every other lane of a, then of b.
template <class R, std::size_t... i>
FASTSOFTMAX_INLINE R even_lanes(R a, R b, std::index_sequence<i...>) {
    return __builtin_shufflevector(a, b, static_cast<int>(2 * i)...);
}

// 16 floats as twice 8 doubles, exactly, and back, rounding once.
struct DoublePair {
    Pack<double> low, high;
};

FASTSOFTMAX_INLINE DoublePair to_double(Pack<float> a) {
#if defined(__AVX512F__)
    return {{{_mm512_cvtps_pd(_mm512_castps512_ps256(a.r[0]))}},
            {{_mm512_cvtps_pd(_mm512_extractf32x8_ps(a.r[0], 1))}}};
#elif defined(__AVX2__)
    return {{{_mm256_cvtps_pd(_mm256_castps256_ps128(a.r[0])), _mm256_cvtps_pd(_mm256_extractf128_ps(a.r[0], 1))}},
            {{_mm256_cvtps_pd(_mm256_castps256_ps128(a.r[1])), _mm256_cvtps_pd(_mm256_extractf128_ps(a.r[1], 1))}}};
#elif defined(__SSE2__)
    DoublePair d;
    for (int i = 0; i < 2; ++i) {
        d.low.r[2 * i] = _mm_cvtps_pd(a.r[i]);
        d.low.r[2 * i + 1] = _mm_cvtps_pd(_mm_movehl_ps(a.r[i], a.r[i]));
        d.high.r[2 * i] = _mm_cvtps_pd(a.r[i + 2]);
        d.high.r[2 * i + 1] = _mm_cvtps_pd(_mm_movehl_ps(a.r[i + 2], a.r[i + 2]));
    }
    return d;
#else
    DoublePair d;
    for (int i = 0; i < 2; ++i) {
        d.low.r[2 * i] = vcvt_f64_f32(vget_low_f32(a.r[i]));
        d.low.r[2 * i + 1] = vcvt_high_f64_f32(a.r[i]);
        d.high.r[2 * i] = vcvt_f64_f32(vget_low_f32(a.r[i + 2]));
        d.high.r[2 * i + 1] = vcvt_high_f64_f32(a.r[i + 2]);
    }
    return d;
#endif
}

FASTSOFTMAX_INLINE Pack<float> to_float(DoublePair d) {
#if defined(__AVX512F__)
    return {{_mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(d.low.r[0])), _mm512_cvtpd_ps(d.high.r[0]), 1)}};
#elif defined(__AVX2__)
    return {{_mm256_set_m128(_mm256_cvtpd_ps(d.low.r[1]), _mm256_cvtpd_ps(d.low.r[0])),
             _mm256_set_m128(_mm256_cvtpd_ps(d.high.r[1]), _mm256_cvtpd_ps(d.high.r[0]))}};
#elif defined(__SSE2__)
    Pack<float> a;
    for (int i = 0; i < 2; ++i) {
        a.r[i] = _mm_movelh_ps(_mm_cvtpd_ps(d.low.r[2 * i]), _mm_cvtpd_ps(d.low.r[2 * i + 1]));
        a.r[i + 2] = _mm_movelh_ps(_mm_cvtpd_ps(d.high.r[2 * i]), _mm_cvtpd_ps(d.high.r[2 * i + 1]));
    }
    return a;
#else
    Pack<float> a;
    for (int i = 0; i < 2; ++i) {
        a.r[i] = vcvt_high_f32_f64(vcvt_f32_f64(d.low.r[2 * i]), d.low.r[2 * i + 1]);
        a.r[i + 2] = vcvt_high_f32_f64(vcvt_f32_f64(d.high.r[2 * i]), d.high.r[2 * i + 1]);
    }
    return a;
#endif
}

// Twice 8 integers as 16: the last bits of each.
FASTSOFTMAX_INLINE Pack<std::int32_t> to_int32(Pack<std::int64_t> low, Pack<std::int64_t> high) {
    const Pack<std::int32_t> halves[] = {bit_cast<std::int32_t>(low), bit_cast<std::int32_t>(high)};
    Pack<std::int32_t> a;
    for (int i = 0; i < pack_registers; ++i) {
        const int first = 2 * i, second = 2 * i + 1;
        a.r[i] = even_lanes(halves[first / pack_registers].r[first % pack_registers],
                            halves[second / pack_registers].r[second % pack_registers],
                            std::make_index_sequence<register_bytes / sizeof(std::int32_t)>{});
    }
    return a;
}

// a * b + c, rounded once. Without FMA: float by way of double (a double rounding in rare cases), double by Dekker's
// exact product (beyond 2^996 rounded twice).
template <int packs>
FASTSOFTMAX_FMA Pack<double, packs> fma(Pack<double, packs> a, Pack<double, packs> b, Pack<double, packs> c) {
    for (int i = 0; i < a.registers; ++i) {
#if defined(__AVX512F__)
        c.r[i] = _mm512_fmadd_pd(a.r[i], b.r[i], c.r[i]);
#elif defined(__AVX2__)
        c.r[i] = _mm256_fmadd_pd(a.r[i], b.r[i], c.r[i]);
#elif defined(__aarch64__)
        c.r[i] = vfmaq_f64(c.r[i], a.r[i], b.r[i]);
#else
        using Register = Pack<double>::Register;
        constexpr double splitter = 0x1p27 + 1;  // Veltkamp: halves of 26 bits
        const Register as = a.r[i] * splitter, bs = b.r[i] * splitter;
        const Register ah = as - (as - a.r[i]), bh = bs - (bs - b.r[i]);
        const Register al = a.r[i] - ah, bl = b.r[i] - bh;
        const Register product = a.r[i] * b.r[i];
        const Register error = ((ah * bh - product) + ah * bl + al * bh) + al * bl;
        const Register sum = product + c.r[i];
        const Register back = sum - product;
        const Register lost = (product - (sum - back)) + (c.r[i] - back);
        const Register fused = sum + (lost + error), plain = a.r[i] * b.r[i] + c.r[i];
        c.r[i] = fused == fused ? fused : plain;  // the splitter overflows from 2^996 on
#endif
    }
    return c;
}

template <int packs>
FASTSOFTMAX_FMA Pack<float, packs> fma(Pack<float, packs> a, Pack<float, packs> b, Pack<float, packs> c) {
#if defined(__AVX512F__)
    for (int i = 0; i < a.registers; ++i) c.r[i] = _mm512_fmadd_ps(a.r[i], b.r[i], c.r[i]);
    return c;
#elif defined(__AVX2__)
    for (int i = 0; i < a.registers; ++i) c.r[i] = _mm256_fmadd_ps(a.r[i], b.r[i], c.r[i]);
    return c;
#elif defined(__aarch64__)
    for (int i = 0; i < a.registers; ++i) c.r[i] = vfmaq_f32(c.r[i], a.r[i], b.r[i]);
    return c;
#else
    static_assert(packs == 1);
    const DoublePair ad = to_double(a), bd = to_double(b), cd = to_double(c);
    return to_float({ad.low * bd.low + cd.low, ad.high * bd.high + cd.high});
#endif
}

// Running sums, in double, of 16 floats in memory or of their products, which are exact. In spans of 32 bytes on every
// target: two such conversions take Zen 4 less time than one to 64 bytes.
class DoubleSums {
  public:
    FASTSOFTMAX_INLINE void add(const float* x) {
        for (int k = 0; k < 4; ++k) sums_[k] += four(x + 4 * k);
    }
    FASTSOFTMAX_INLINE void add_product(const float* x, const float* y) {
        for (int k = 0; k < 4; ++k) sums_[k] = sum_of(four(x + 4 * k), four(y + 4 * k), sums_[k]);
    }

    // Of the first `count`.
    FASTSOFTMAX_INLINE void add(const float* x, std::ptrdiff_t count) {
        for (int k = 0; k < 4; ++k, x += 4, count -= 4) {
            if (count <= 0) return;
            sums_[k] += count < 4 ? some(x, count) : four(x);
        }
    }
    FASTSOFTMAX_INLINE void add_product(const float* x, const float* y, std::ptrdiff_t count) {
        for (int k = 0; k < 4; ++k, x += 4, y += 4, count -= 4) {
            if (count <= 0) return;
            if (count < 4)
                sums_[k] = sum_of(some(x, count), some(y, count), sums_[k]);
            else
                sums_[k] = sum_of(four(x), four(y), sums_[k]);
        }
    }

    // Of a row of so many spans, `last` numbers in the last of them.
    template <int spans>
    FASTSOFTMAX_INLINE void add_row(const float* x, std::ptrdiff_t last) {
        constexpr int k = spans - 1;
        for (int i = 0; i < k; ++i) sums_[i % 4] += four(x + 4 * i);
        sums_[k % 4] += some(x + 4 * k, last);
    }
    template <int spans>
    FASTSOFTMAX_INLINE void add_row_product(const float* x, const float* y, std::ptrdiff_t last) {
        constexpr int k = spans - 1;
        for (int i = 0; i < k; ++i) sums_[i % 4] = sum_of(four(x + 4 * i), four(y + 4 * i), sums_[i % 4]);
        sums_[k % 4] = sum_of(some(x + 4 * k, last), some(y + 4 * k, last), sums_[k % 4]);
    }

    FASTSOFTMAX_INLINE DoublePair total() const {
#if defined(__AVX512F__)
        return {{{_mm512_insertf64x4(_mm512_castpd256_pd512(sums_[0]), sums_[1], 1)}},
                {{_mm512_insertf64x4(_mm512_castpd256_pd512(sums_[2]), sums_[3], 1)}}};
#else
        return {load_pack<double>(sums_), load_pack<double>(sums_ + 2)};
#endif
    }

  private:
#if defined(__AVX2__)
    using Four = __m256d;
    FASTSOFTMAX_INLINE static Four four(const float* x) { return _mm256_cvtps_pd(_mm_loadu_ps(x)); }
    FASTSOFTMAX_INLINE static Four some(const float* x, std::ptrdiff_t count) {
        const __m128i mask = _mm_cmpgt_epi32(_mm_set1_epi32(static_cast<int>(count)), _mm_setr_epi32(0, 1, 2, 3));
        return _mm256_cvtps_pd(_mm_maskload_ps(x, mask));
    }
    FASTSOFTMAX_INLINE static Four sum_of(Four a, Four b, Four c) { return _mm256_fmadd_pd(a, b, c); }
#else
    struct Four {
        double lanes[4];
        FASTSOFTMAX_INLINE void operator+=(const Four& a) {
            for (int i = 0; i < 4; ++i) lanes[i] += a.lanes[i];
        }
    };
    FASTSOFTMAX_INLINE static Four four(const float* x) { return {x[0], x[1], x[2], x[3]}; }
    FASTSOFTMAX_INLINE static Four some(const float* x, std::ptrdiff_t count) {
        return {x[0], count > 1 ? x[1] : 0, count > 2 ? x[2] : 0, count > 3 ? x[3] : 0};
    }
    FASTSOFTMAX_INLINE static Four sum_of(const Four& a, const Four& b, Four c) {
        for (int i = 0; i < 4; ++i) c.lanes[i] += a.lanes[i] * b.lanes[i];
        return c;
    }
#endif

    Four sums_[4] = {};
};

// table[i] for the integer i of each lane, from 0 to 15.
FASTSOFTMAX_INLINE Pack<float> permuted(const Pack<float>& table, Pack<std::int32_t> index) {
#if defined(__AVX512F__)
    return {{_mm512_permutexvar_ps((__m512i)index.r[0], table.r[0])}};
#elif defined(__AVX2__)
    Pack<float> a;
    for (int i = 0; i < 2; ++i) {
        const __m256i lanes = (__m256i)index.r[i];
        a.r[i] = _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.r[0], lanes),
                                  _mm256_permutevar8x32_ps(table.r[1], lanes), (__m256)_mm256_slli_epi32(lanes, 28));
    }
    return a;
#elif defined(__aarch64__)
    Pack<float> a;
    const uint8x16x4_t bytes = {
        {(uint8x16_t)table.r[0], (uint8x16_t)table.r[1], (uint8x16_t)table.r[2], (uint8x16_t)table.r[3]}};
    for (int i = 0; i < 4; ++i)
        a.r[i] = (float32x4_t)vqtbl4q_u8(bytes, bytes_of_entries<std::int32_t, 16>((uint8x16_t)index.r[i]));
    return a;
#else
    float from[16], to[16];
    std::int32_t at[16];
    store_pack(from, table);
    store_pack(at, index);
    for (int i = 0; i < 16; ++i) to[i] = from[at[i]];
    return load_pack<float>(to);
#endif
}

// a * b + c, rounded once where that is free: for polynomials.
template <class T, int packs>
FASTSOFTMAX_INLINE Pack<T, packs> multiply_add(Pack<T, packs> a, Pack<T, packs> b, Pack<T, packs> c) {
    if constexpr (has_fma)
        return fma(a, b, c);
    else
        return a * b + c;
}

template <int distance, class R, std::size_t... i>
FASTSOFTMAX_INLINE R swap_lanes(R r, std::index_sequence<i...>) {
    return __builtin_shufflevector(r, r, static_cast<int>(i ^ distance)...);
}

// Folds in halves: lane i with lane i + lanes/2, and so on. The order is that of the logical lanes on every target.
template <class T, class Combine>
FASTSOFTMAX_INLINE T fold(Pack<T> a, Combine combine) {
    int count = pack_registers;
    while (count > 1) {
        count /= 2;
        for (int i = 0; i < count; ++i) a.r[i] = combine(a.r[i], a.r[i + count]);
    }
    constexpr int width = register_bytes / static_cast<int>(sizeof(T));
    using Lanes = std::make_index_sequence<width>;
    auto r = a.r[0];
    if constexpr (width >= 16) r = combine(r, swap_lanes<8>(r, Lanes{}));
    if constexpr (width >= 8) r = combine(r, swap_lanes<4>(r, Lanes{}));
    if constexpr (width >= 4) r = combine(r, swap_lanes<2>(r, Lanes{}));
    r = combine(r, swap_lanes<1>(r, Lanes{}));
    return r[0];
}

template <class T>
FASTSOFTMAX_INLINE T fold_sum(Pack<T> a) {
    return fold(a, [](auto x, auto y) __attribute__((always_inline)) { return x + y; });
}

// Of each 2 * span lanes of a and of b, the lower half added to the upper; those of a and of b in turn.
template <int span, class R, std::size_t... i>
FASTSOFTMAX_INLINE R halves_added(R a, R b, std::index_sequence<i...>) {
    constexpr int width = sizeof...(i);
    return __builtin_shufflevector(a, b, static_cast<int>(i ^ (i & span ? width + span : 0))...) +
           __builtin_shufflevector(a, b, static_cast<int>((i | span) + (i & span ? width : 0))...);
}

// fold_sum of as many packs as each has lanes: lane i is that of pack i.
FASTSOFTMAX_INLINE Pack<double> fold_sums(const Pack<double>* packs) {
    constexpr int width = register_bytes / 8;
    using Lanes = std::make_index_sequence<width>;
    Pack<double> sums;
    for (int k = 0; k < pack_registers; ++k) {
        Pack<double>::Register rows[width];
        for (int i = 0; i < width; ++i) {
            Pack<double> a = packs[k * width + i];
            for (int count = pack_registers / 2; count > 0; count /= 2)
                for (int j = 0; j < count; ++j) a.r[j] = a.r[j] + a.r[j + count];
            rows[i] = a.r[0];
        }
        if constexpr (width >= 8)
            for (int i = 0; i < 4; ++i) rows[i] = halves_added<4>(rows[i], rows[i + 4], Lanes{});
        if constexpr (width >= 4)
            for (int i = 0; i < 2; ++i) rows[i] = halves_added<2>(rows[i], rows[i + 2], Lanes{});
        sums.r[k] = halves_added<1>(rows[0], rows[1], Lanes{});
    }
    return sums;
}

template <class T>
FASTSOFTMAX_INLINE T fold_max(Pack<T> a) {
    return fold(a, [](auto x, auto y) __attribute__((always_inline)) { return x > y ? x : y; });
}

// Bit i is set where lane i of the mask is.
template <class I>
FASTSOFTMAX_INLINE std::uint32_t lane_bits(Pack<I> mask) {
    std::uint32_t bits = 0;
    constexpr int width = register_bytes / static_cast<int>(sizeof(I));
    for (int i = 0; i < pack_registers; ++i) {
        std::uint32_t part = 0;
#if defined(__AVX512F__)
        if constexpr (sizeof(I) == 4)
            part = _mm512_movepi32_mask((__m512i)mask.r[i]);
        else
            part = _mm512_movepi64_mask((__m512i)mask.r[i]);
#elif defined(__AVX2__)
        if constexpr (sizeof(I) == 4)
            part = static_cast<std::uint32_t>(_mm256_movemask_ps((__m256)mask.r[i]));
        else
            part = static_cast<std::uint32_t>(_mm256_movemask_pd((__m256d)mask.r[i]));
#elif defined(__SSE2__)
        if constexpr (sizeof(I) == 4)
            part = static_cast<std::uint32_t>(_mm_movemask_ps((__m128)mask.r[i]));
        else
            part = static_cast<std::uint32_t>(_mm_movemask_pd((__m128d)mask.r[i]));
#else
        if constexpr (sizeof(I) == 4)
            part = vaddvq_u32(vandq_u32((uint32x4_t)mask.r[i], uint32x4_t{1, 2, 4, 8}));
        else
            part = static_cast<std::uint32_t>(vaddvq_u64(vandq_u64((uint64x2_t)mask.r[i], uint64x2_t{1, 2})));
#endif
        bits |= part << (i * width);
    }
    return bits;
}

template <class T>
FASTSOFTMAX_INLINE std::uint32_t equal_bits(Pack<T> a, Pack<T> b) {
    return lane_bits(equal(a, b));
}

// Lane by lane: for what happens once a slice.
template <class T>
FASTSOFTMAX_INLINE T lane(const Pack<T>& a, int i) {
    constexpr int width = register_bytes / static_cast<int>(sizeof(T));
    return a.r[i / width][i % width];
}

// Lane i in every lane.
template <class T>
FASTSOFTMAX_INLINE Pack<T> spread(const Pack<T>& a, int i) {
    return broadcast(lane(a, i));
}

}  // namespace
