// exp and log: reduction without subtracting the maximum, polynomials from coefficients.py.
#pragma once

#include "wide.hpp"

namespace {

template <class T>
struct ExpConstants;

// exp(x) = 2^(n / parts) (1 + r + r^2 q(r)), n = round(x parts / ln2), |r| <= ln2 / (2 parts). Coefficients of q,
// constant first; error of the polynomial 2^-34.5.
template <>
struct ExpConstants<float> {
    static constexpr int parts = 4;  // powers of two that a permutation within 16 bytes finds
    static constexpr float log2e = 0x1.715476p+0f;
    static constexpr float ln2_high = 0x1.62e43p-1f, ln2_low = -0x1.05c61p-29f;
    static constexpr float rounder = 0x1.8p23f;  // adding it leaves an integer in the last bits
    static constexpr int mantissa_bits = 23, ieee_bias = 127;
    // Exponentials of a slice are kept at 2^64 times their size relative to the largest: terms of 2^-149 of it stay
    // normal, and so do both parts of the reciprocal of the sum.
    static constexpr int exponent_bias = 64;
    static constexpr float above_all = 0x1p65f;  // no exponential is larger
    // From |max| = 512 on, x - max is exact wherever exp(x - max) > 2^-190 (Sterbenz), so such a slice subtracts.
    static constexpr float largest_unshifted = 512;
    static constexpr float q[] = {0x1.fffffep-2f, 0x1.555558p-3f, 0x1.557394p-5f, 0x1.11084ap-7f};
    // 2^(i/4), the second part of each behind its first.
    static constexpr float powers[] = {1, 0x1.306fe0p+0f, 0x1.6a09e6p+0f, 0x1.ae89fap+0f};
    static constexpr float powers_low[] = {0, 0x1.4636e2p-25f, 0x1.9fcef4p-26f, -0x1.a94b14p-26f};
};

// The same; error of the polynomial 2^-56.5.
template <>
struct ExpConstants<double> {
    static constexpr int parts = 1;
    static constexpr double log2e = 0x1.71547652b82fep+0;
    static constexpr double ln2_high = 0x1.62e42fefa39efp-1, ln2_low = 0x1.abc9e3b39803fp-56;
    static constexpr double rounder = 0x1.8p52;
    static constexpr int mantissa_bits = 52, ieee_bias = 1023;
    static constexpr int exponent_bias = 200;          // terms of 2^-1223 of the largest stay
    static constexpr double above_all = 0x1p201;       // no exponential is larger
    static constexpr double largest_unshifted = 2048;  // as above, for exp(x - max) > 2^-1223
    static constexpr double q[] = {0x1.000000000000ap-1,  0x1.55555555554f9p-3,  0x1.55555555507f4p-5,
                                   0x1.1111111127e72p-7,  0x1.6c16c1844a254p-10, 0x1.a01a0129b8a3cp-13,
                                   0x1.a01999b043a9ap-16, 0x1.71df262697c1cp-19, 0x1.28adcc0f2c9fp-22,
                                   0x1.ad7f05798ec76p-26};
};

template <class T, int n>
FASTSOFTMAX_INLINE Pack<T> polynomial(Pack<T> x, const T (&coefficients)[n]) {
    Pack<T> sum = broadcast(coefficients[n - 1]);
    for (int k = n - 2; k >= 0; --k) sum = multiply_add(sum, x, broadcast(coefficients[k]));
    return sum;
}

// exp(x) * 2^(exponent_bias - reference), reference an integer, per lane. 0 where that is below 2^-126 (float; double
// 2^-1022): then exp(x) is below 2^-190 (2^-1222) of the largest. NaN stays NaN; x may not be +inf.
template <class T>
struct Exponential {
    using C = ExpConstants<T>;
    // Leaves (n / parts - reference + exponent_bias + ieee_bias) * parts in the last bits: a power of two's exponent
    // field, and for float the quarter of a power that follows.
    Pack<T> rounder;
    Pack<T> lowest;  // whose exponent field is 0: the power is +0

    FASTSOFTMAX_INLINE explicit Exponential(Pack<T> reference) {
        const Pack<T> offset = broadcast(T(C::exponent_bias + C::ieee_bias)) - reference;
        rounder = broadcast(C::rounder) + offset * broadcast(T(C::parts));
        lowest = -(offset * broadcast(C::ln2_high));
    }

    // Lane i of another in every lane.
    FASTSOFTMAX_INLINE Exponential(const Exponential& all, int i)
        : rounder(spread(all.rounder, i)), lowest(spread(all.lowest, i)) {}

    // Error: 0.73 ULP, at 0x1.143852p+6 without FMA, with it 0.69, at -0x1.6f61ap+4; relative 0.572 * 2^-23, at
    // -0x1.4c8c7ap+0: every float is swept in tests/test_exp_log.py. Double: 0.75 ULP, relative 0.51 * 2^-52, of a
    // million at random and those where the reduction changes.
    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> x) const { return with_parts(x, as_it_is, rounded); }

    // Of x + low, |low| within an ULP of x.
    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> x, Pack<T> low) const {
        return with_parts(x, [&](Pack<T> r) __attribute__((always_inline)) { return r + low; }, rounded);
    }

    // f(e, lost, power): the same, and what its rounding lost as lost * power, so that e + lost * power is right to 0.2
    // ULP (double 0.05).
    template <class F>
    FASTSOFTMAX_INLINE auto unrounded(Pack<T> x, F f) const {
        return with_parts(x, as_it_is, with_lost(f));
    }
    template <class F>
    FASTSOFTMAX_INLINE auto unrounded(Pack<T> x, Pack<T> low, F f) const {
        return with_parts(x, [&](Pack<T> r) __attribute__((always_inline)) { return r + low; }, with_lost(f));
    }

  private:
    FASTSOFTMAX_INLINE static Pack<T> as_it_is(Pack<T> r) { return r; }
    FASTSOFTMAX_INLINE static Pack<T> rounded(Pack<T> high, Pack<T> low, Pack<T> power) { return (high + low) * power; }
    template <class F>
    FASTSOFTMAX_INLINE static auto with_lost(F f) {
        return [f](Pack<T> high, Pack<T> low, Pack<T> power) __attribute__((always_inline)) {
            const Pack<T> sum = high + low;
            return f(sum * power, low - (sum - high), power);
        };
    }

    // combine(high, low, power): the exponential is (high + low) * power.
    template <class Correct, class Combine>
    FASTSOFTMAX_INLINE auto with_parts(Pack<T> x, Correct correct, Combine combine) const {
        constexpr T step_high = C::ln2_high / C::parts, step_low = C::ln2_low / C::parts;
        x = max(lowest, x);
        const Pack<T> shifted = multiply_add(x, broadcast(C::log2e * C::parts), rounder);
        const Pack<T> n = shifted - rounder;
        // Exact: a multiple of the last bit of step_high, below 1.
        const Pack<T> first = fma(n, broadcast(-step_high), x);
        const Pack<T> r = correct(multiply_add(n, broadcast(-step_low), first));
        const Pack<Integer<T>> bits = bit_cast<Integer<T>>(shifted);
        if constexpr (C::parts == 4) {
            // |r| < 0.09: what rounding it and its powers loses is little beside the 1 that they are added to.
            const Pack<T> power = look_up(C::powers, bits);
            const Pack<T> grown = multiply_add(r * r, polynomial(r, C::q), r);
            return combine(power, multiply_add(power, grown, look_up(C::powers_low, bits)),
                           bit_cast<T>(shift_left(shift_right(bits, 2), C::mantissa_bits)));
        } else {
            // What n ln2 has besides goes to the low part of 1 + r.
            const Pack<T> high = broadcast(T(1)) + first;
            const Pack<T> low = correct(multiply_add(n, broadcast(-step_low), first - (high - broadcast(T(1)))));
            return combine(high, multiply_add(r * r, polynomial(r, C::q), low),
                           bit_cast<T>(shift_left(bits, C::mantissa_bits)));
        }
    }
};

template <class T>
FASTSOFTMAX_INLINE Pack<T> round_to_integer(Pack<T> x) {
    const Pack<T> rounder = broadcast(ExpConstants<T>::rounder);
    return (x + rounder) - rounder;
}

// exp(x) * 2^-n for |x - n ln2| < 0.35, to 2^-56: what the float and double exponentials are short of their own
// rounding.
FASTSOFTMAX_ONCE Double2 exp_reduced(Double2 x, Pack<double> n) {
    using C = ExpConstants<double>;
    const Double2 r = two_sum(fma(n, broadcast(-C::ln2_high), x.high), x.low - n * broadcast(C::ln2_low));
    const Double2 sum = fast_two_sum(broadcast(1.0), r.high);
    const Pack<double> tail = r.high * r.high * polynomial(r.high, C::q);
    return fast_two_sum(sum.high, sum.low + (multiply_add(r.low, r.high, r.low) + tail));
}

struct LogConstants {
    // log(m) = 2 s + s^3 q(s^2), s = (m - 1) / (m + 1), m in [sqrt(1/2), sqrt(2)]; error of the polynomial 2^-44.9.
    static constexpr double short_q[] = {0x1.555555561e2d3p-1, 0x1.999996a98e179p-2, 0x1.249411ce98189p-2,
                                         0x1.c62b200803042p-3, 0x1.9114dc8fe3b1bp-3};
    // The same; 2^-60.7.
    static constexpr double long_q[] = {0x1.5555555555555p-1, 0x1.999999999999ap-2, 0x1.2492492492493p-2,
                                        0x1.c71c71c71c516p-3, 0x1.745d1745ea77ep-3, 0x1.3b13b12ef1087p-3,
                                        0x1.111114eb6c804p-3, 0x1.e1e042101acd7p-4, 0x1.af62049343485p-4,
                                        0x1.8112ee3b6b45cp-4, 0x1.a3818e09555ddp-4};
    static constexpr std::uint64_t sqrt_half = 0x3fe6a09e667f3bcd;
};

// w = 2^exponent * m, m in [sqrt(1/2), sqrt(2)), w >= 1.
struct Binade {
    Pack<double> exponent, m, power;  // power = 2^-exponent
};

FASTSOFTMAX_INLINE Binade binade(Pack<double> w) {
    const Pack<std::uint64_t> bits = bit_cast<std::uint64_t>(w);
    const Pack<std::uint64_t> k = shift_right(bits - broadcast(LogConstants::sqrt_half), 52);
    const Pack<double> rounder = broadcast(ExpConstants<double>::rounder);
    return {bit_cast<double>(k + bit_cast<std::uint64_t>(rounder)) - rounder,
            bit_cast<double>(bits - shift_left(k, 52)),
            bit_cast<double>(shift_left(broadcast<std::uint64_t>(1023) - k, 52))};
}

// log(1 + u), u >= 0, to 2^-44: a hundredth of an ULP where float is computed. NaN where u is not finite.
FASTSOFTMAX_ONCE Pack<double> log1p_short(Pack<double> u) {
    const Binade b = binade(broadcast(1.0) + u);
    const Pack<double> f = select(equal(b.exponent, broadcast(0.0)), u, b.m - broadcast(1.0));
    const Pack<double> s = f / (broadcast(2.0) + f);
    const Pack<double> z = s * s;
    const Pack<double> tail = s * z * polynomial(z, LogConstants::short_q);
    const Pack<double> not_finite = u - u;
    return multiply_add(b.exponent, broadcast(ExpConstants<double>::ln2_high), (s + s) + tail) + not_finite;
}

// The same for two doubles, to 2^-59.
FASTSOFTMAX_ONCE Double2 log1p_long(Double2 u) {
    Double2 w = two_sum(broadcast(1.0), u.high);
    w.low = w.low + u.low;
    const Binade b = binade(w.high);
    const Mask<double> small = equal(b.exponent, broadcast(0.0));
    const Double2 f = {select(small, u.high, b.m - broadcast(1.0)), select(small, u.low, w.low * b.power)};
    Double2 denominator = two_sum(broadcast(2.0), f.high);
    denominator.low = denominator.low + f.low;
    const Double2 s = f / denominator;
    const Pack<double> z = s.high * s.high;
    const Pack<double> tail = s.high * z * polynomial(z, LogConstants::long_q);
    const Pack<double> not_finite = u.high - u.high;
    const Pack<double> ln2 = broadcast(ExpConstants<double>::ln2_high);
    const Pack<double> whole = b.exponent * ln2;
    const Pack<double> part = fma(b.exponent, ln2, -whole) + b.exponent * broadcast(ExpConstants<double>::ln2_low);
    const Double2 sum = two_sum(whole, s.high + s.high);
    const Double2 log = fast_two_sum(sum.high, sum.low + ((s.low + s.low) + (part + tail)) + not_finite);
    // As small as this, log(1 + u) is u, and what is subnormal must not be rounded again.
    const Mask<double> tiny = less(u.high, broadcast(0x1p-110)) & less(broadcast(-0x1p-110), u.high);
    return {select(tiny, u.high, log.high), select(tiny, u.low, log.low)};
}

FASTSOFTMAX_INLINE DoublePair log1p(DoublePair u) { return {log1p_short(u.low), log1p_short(u.high)}; }
FASTSOFTMAX_INLINE Double2 log1p(Double2 u) { return log1p_long(u); }

}  // namespace
