// exp and log: reduction without subtracting the maximum, polynomials from coefficients.py.
#pragma once

#include "wide.hpp"

namespace {

template <class T>
struct ExpConstants;

// exp(x) = 2^(n/8) (1 + r + r^2 q(r)), n = round(8 x / ln2), |r| <= ln2 / 16. Coefficients of q, constant first; error
// of the polynomial 2^-32.3.
template <>
struct ExpConstants<float> {
    static constexpr float log2e = 0x1.715476p+0f;
    static constexpr float ln2_high = 0x1.62e43p-1f, ln2_low = -0x1.05c61p-29f;
    static constexpr float rounder = 0x1.8p23f;  // adding it leaves an integer in the last bits
    static constexpr int mantissa_bits = 23, ieee_bias = 127;
    // Exponentials of a slice are kept at 2^64 times their size relative to the largest: terms of 2^-149 of it stay
    // normal, and so do both parts of the reciprocal of the sum.
    static constexpr int exponent_bias = 64;
    // From |max| = 512 on, x - max is exact wherever exp(x - max) > 2^-190 (Sterbenz), so such a slice subtracts.
    static constexpr float largest_unshifted = 512;
    static constexpr float q[] = {0x1p-1f, 0x1.555c7ap-3f, 0x1.55483cp-5f};
    // The table holds the powers times `factor`. Their relative rounding errors are within 0.093 * 2^-24 of each other,
    // those of the powers themselves within 1.06 * 2^-24. So exponentials are `factor` times too large, which cancels
    // in ratios.
    static constexpr double factor = 0x1.16747bf7c5b82p+0;
    // factor * 2^(i/8): its mantissa bits, less i in the three highest.
    static constexpr std::int32_t powers[] = {0xb3a3e, 0x7d424, 0x59202, 0x48e45, 0x4e5be, 0x6b7da, 0xa26de, 0xf5829};
    // The powers themselves, and what each lacks relative to its size: for results that are not ratios.
    static constexpr std::int32_t plain_powers[] = {0,        -0x46a3e, -0x7c810, -0xa0129,
                                                    -0xafb0d, -0xa98d6, -0x8bb03, -0x53f39};
    static constexpr float plain_lacks[] = {0,
                                            -0x1.9c0c22p-27f,
                                            0x1.125002p-25f,
                                            -0x1.0a3550p-25f,
                                            0x1.26055cp-26f,
                                            0x1.67a1cap-28f,
                                            -0x1.f9c304p-27f,
                                            -0x1.a5217cp-28f};
};

// As for float. Error of the polynomial 2^-58.3, of the powers 0.049 * 2^-53.
template <>
struct ExpConstants<double> {
    static constexpr double log2e = 0x1.71547652b82fep+0;
    static constexpr double ln2_high = 0x1.62e42fefa39efp-1, ln2_low = 0x1.abc9e3b39803fp-56;
    static constexpr double rounder = 0x1.8p52;
    static constexpr int mantissa_bits = 52, ieee_bias = 1023;
    static constexpr int exponent_bias = 200;          // terms of about 2^-1222 of the largest stay
    static constexpr double largest_unshifted = 2048;  // as above, for exp(x - max) > 2^-1222
    static constexpr double q[] = {0x1.000000000010cp-1, 0x1.555555555512cp-3,  0x1.5555554802dbfp-5,
                                   0x1.11111125eace3p-7, 0x1.6c1cc02d9c73fp-10, 0x1.a016383dc054p-13};
    static constexpr double factor = 0x1.113cc3434ccc5p+0;
    static constexpr std::int64_t powers[] = {0x113cc3434ccc5, 0x9f7aaaa8698a, 0x4ef90fbd7368, 0x25852840dbd8,
                                              0x26a7d2b92fdd,  0x563bd37a3ff4, 0xb8753e365324, 0x151e98b4df1d7};
    static constexpr std::int64_t plain_powers[] = {0,
                                                    -0x8d47c382ae85,
                                                    -0xf901f5ce48eb,
                                                    -0x140252ac9d5d9,
                                                    -0x15f619980c433,
                                                    -0x1531abdd55f25,
                                                    -0x1176066a52c53,
                                                    -0xa7e723045b79};
    static constexpr double plain_lacks[] = {0,
                                             -0x1.01b15eaa59348p-55,
                                             0x1.34d754db0abb6p-55,
                                             0x1.690cebb7aafb0p-56,
                                             -0x1.3b3efbf5e2228p-54,
                                             0x1.db72fc1f0eab4p-55,
                                             0x1.c1a7792cb3387p-55,
                                             0x1.4a385a63d07a7p-56};
};

template <class T, int packs, int n>
FASTSOFTMAX_INLINE Pack<T, packs> polynomial(Pack<T, packs> x, const T (&coefficients)[n]) {
    Pack<T, packs> sum = broadcast<T, packs>(coefficients[n - 1]);
    unrolled<n - 1>([&](int k) __attribute__((always_inline)) {
        sum = multiply_add(sum, x, broadcast<T, packs>(coefficients[n - 2 - k]));
    });
    return sum;
}

// An exponential before it is rounded: power * (1 + growth), |growth| < 0.045.
template <class T, int packs>
struct Growth {
    Pack<T, packs> power, growth;

    FASTSOFTMAX_INLINE Pack<T, packs> rounded() const { return multiply_add(power, growth, power); }
    // The part that rounding loses.
    FASTSOFTMAX_INLINE Pack<T, packs> lost() const { return multiply_add(power, growth, power - rounded()); }
};

// Computes factor * exp(x) * 2^(exponent_bias - reference), with an integer reference in each lane; if `plain`, without
// the factor. A result below 2^-126 (double 2^-1022), which is about 2^-190 (2^-1222) of the largest, has no correct
// digit, but its error is smaller than that bound. -inf gives 0 and NaN gives NaN; x may not be +inf.
template <class T, bool plain = false>
struct Exponential {
    using C = ExpConstants<T>;
    static constexpr int parts = 8;
    // Adding it leaves (n / 8 - reference + exponent_bias + ieee_bias) * 8 in the last bits: the exponent field of a
    // power of two, then three bits that say which entry of the table it is multiplied by.
    Pack<T> rounder;
    Pack<T> lowest;  // smaller x count as this one, whose exponent field is negative: the result is 0

    FASTSOFTMAX_INLINE explicit Exponential(Pack<T> reference) {
        const Pack<T> offset = broadcast(T(C::exponent_bias + C::ieee_bias)) - reference;
        rounder = broadcast(C::rounder) + offset * broadcast(T(parts));
        lowest = -((offset + broadcast(T(1))) * broadcast(C::ln2_high));
    }

    // Lane i of `all` in every lane.
    FASTSOFTMAX_INLINE Exponential(const Exponential& all, int i)
        : rounder(spread(all.rounder, i)), lowest(spread(all.lowest, i)) {}

    // In each lane, the lane of `all` that `lanes` names.
    FASTSOFTMAX_INLINE Exponential(const Exponential& all, Pack<Integer<T>> lanes)
        : rounder(permuted(all.rounder, lanes)), lowest(permuted(all.lowest, lanes)) {}

    // Error after rounding: 1.06 * 2^-24, at 0x1.14d248p+5 (tests/test_exp_log.py tries every float); without FMA
    // 1.09 * 2^-24, at 0x1.b49b86p+1, and up to 2^-149 more for results below 2^-120. Double: 1.15 * 2^-53, among a
    // million random arguments and those where the reduction changes. Before rounding: 0.06 * 2^-24, double
    // 0.15 * 2^-53.
    template <int packs>
    FASTSOFTMAX_INLINE Growth<T, packs> operator()(Pack<T, packs> x) const {
        return corrected(x, [](Pack<T, packs> r) __attribute__((always_inline)) { return r; });
    }

    // The exponential of x + low, |low| within an ULP of x.
    template <int packs>
    FASTSOFTMAX_INLINE Growth<T, packs> operator()(Pack<T, packs> x, Pack<T, packs> low) const {
        return corrected(x, [&](Pack<T, packs> r) __attribute__((always_inline)) { return r + low; });
    }

  private:
    template <int packs, class Correct>
    FASTSOFTMAX_LONG Growth<T, packs> corrected(Pack<T, packs> x, Correct correct) const {
        constexpr T step_high = C::ln2_high / parts, step_low = C::ln2_low / parts;
        x = max(repeat<packs>(lowest), x);
        const Pack<T, packs> shift = repeat<packs>(rounder);
        const Pack<T, packs> shifted = multiply_add(x, broadcast<T, packs>(C::log2e * parts), shift);
        const Pack<T, packs> n = shifted - shift;
        // Exact: a multiple of the last bit of step_high, below 1.
        const Pack<T, packs> first = fma(n, broadcast<T, packs>(-step_high), x);
        const Pack<T, packs> r = correct(multiply_add(n, broadcast<T, packs>(-step_low), first));
        const auto field = bit_cast<Integer<T>>(shifted);
        // The last three bits of n end up in the mantissa, which the table allows for.
        const auto entry = look_up<Integer<T>>(plain ? C::plain_powers : C::powers, field);
        const auto power = positive(entry + shift_left(field, C::mantissa_bits - 3));
        const Pack<T, packs> grown = plain ? r + look_up<T>(C::plain_lacks, field) : r;
        return {bit_cast<T>(power), multiply_add(r * r, polynomial(r, C::q), grown)};
    }
};

template <class T>
FASTSOFTMAX_INLINE Pack<T> round_to_integer(Pack<T> x) {
    const Pack<T> rounder = broadcast(ExpConstants<T>::rounder);
    return (x + rounder) - rounder;
}

// exp(x) * 2^-n for |x - n ln2| < 0.35, to 2^-56: 1 + r + r^2 q(r), error of the polynomial 2^-56.5.
FASTSOFTMAX_ONCE Wide<double> exp_reduced(Wide<double> x, Pack<double> n) {
    using C = ExpConstants<double>;
    constexpr double q[] = {0x1.000000000000ap-1,  0x1.55555555554f9p-3,  0x1.55555555507f4p-5,  0x1.1111111127e72p-7,
                            0x1.6c16c1844a254p-10, 0x1.a01a0129b8a3cp-13, 0x1.a01999b043a9ap-16, 0x1.71df262697c1cp-19,
                            0x1.28adcc0f2c9fp-22,  0x1.ad7f05798ec76p-26};
    const Wide<double> r = two_sum(fma(n, broadcast(-C::ln2_high), x.high), x.low - n * broadcast(C::ln2_low));
    const Wide<double> sum = fast_two_sum(broadcast(1.0), r.high);
    const Pack<double> tail = r.high * r.high * polynomial(r.high, q);
    return fast_two_sum(sum.high, sum.low + (multiply_add(r.low, r.high, r.low) + tail));
}

struct LogConstants {
    // log(m) = t + t z q(z), t = 2 (m - 1) / (m + 1), z = t^2 / 4, |log2 m| < 0.587; error of the polynomial 2^-33.6.
    static constexpr float short_q[] = {0x1.555554p-2f, 0x1.999be8p-3f, 0x1.23e758p-3f, 0x1.edd056p-4f};
    // ln2 in two floats; the product of the first with an exponent is exact.
    static constexpr float ln2_short = 0x1.62e4p-1f, ln2_rest = 0x1.7f7d1cp-20f;
    // log(m) = 2 s + s^3 q(s^2), s = (m - 1) / (m + 1), m in [sqrt(1/2), sqrt(2)]; error of the polynomial 2^-60.7.
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

// log(1 + u), u >= 0, to 2^-59. NaN where u is not finite.
FASTSOFTMAX_ONCE Wide<double> log1p(Wide<double> u) {
    Wide<double> w = two_sum(broadcast(1.0), u.high);
    w.low = w.low + u.low;
    const Binade b = binade(w.high);
    const Mask<double> small = equal(b.exponent, broadcast(0.0));
    const Wide<double> f = {select(small, u.high, b.m - broadcast(1.0)), select(small, u.low, w.low * b.power)};
    Wide<double> denominator = two_sum(broadcast(2.0), f.high);
    denominator.low = denominator.low + f.low;
    const Wide<double> s = f / denominator;
    const Pack<double> z = s.high * s.high;
    const Pack<double> tail = s.high * z * polynomial(z, LogConstants::long_q);
    const Pack<double> not_finite = u.high - u.high;
    const Pack<double> ln2 = broadcast(ExpConstants<double>::ln2_high);
    const Pack<double> whole = b.exponent * ln2;
    const Pack<double> part = fma(b.exponent, ln2, -whole) + b.exponent * broadcast(ExpConstants<double>::ln2_low);
    const Wide<double> sum = two_sum(whole, s.high + s.high);
    const Wide<double> log = fast_two_sum(sum.high, sum.low + ((s.low + s.low) + (part + tail)) + not_finite);
    // For u this small log(1 + u) is u, and a subnormal result must not be rounded again.
    const Mask<double> tiny = less(u.high, broadcast(0x1p-110)) & less(broadcast(-0x1p-110), u.high);
    return {select(tiny, u.high, log.high), select(tiny, u.low, log.low)};
}

// The unit of logarithms of ratios. In this unit, float keeps digits that would be lost if the result is subnormal.
template <class T>
constexpr T log_unit = sizeof(T) == 4 ? T(0x1p-64) : T(1);

// log(1 + rest / top) / log_unit, where rest >= 0 and top is an exponential by its own reference. Error: 2^-27.9 where
// rest / top is above 2^-166, else the last bit of a float. The second part is below 1/50 of the first. NaN where
// either is NaN.
FASTSOFTMAX_INLINE Two<Pack<float>> log1p_ratio(Two<Pack<float>> rest, Two<Pack<float>> top) {
    using C = LogConstants;
    constexpr float unit = log_unit<float>;
    const auto bits = [](Pack<float> x) __attribute__((always_inline)) { return bit_cast<std::int32_t>(x); };
    Two<Pack<float>> sum = two_sum(top.high, rest.high);
    sum.low = sum.low + (top.low + rest.low);
    // sum = 2^k top m. The bits of two floats, read as integers, differ by 2^23 times the difference of the floats'
    // logarithms to base 2, with an error of 0.087 * 2^23.
    const Pack<std::int32_t> k = shift_right(bits(sum.high) - bits(top.high) + broadcast<std::int32_t>(1 << 22),
                                             ExpConstants<float>::mantissa_bits);
    const Pack<std::int32_t> field = shift_left(k, ExpConstants<float>::mantissa_bits);
    const Pack<float> power = bit_cast<float>(field + bits(broadcast(1.0f)));
    const Two<Pack<float>> base = {bit_cast<float>(bits(top.high) + field), top.low * power};
    // t = 2 (sum - base) / (sum + base), the difference exact (Sterbenz).
    const Mask<float> same = equal(k, broadcast<std::int32_t>(0));
    const Two<Pack<float>> difference = {select(same, rest.high, sum.high - base.high),
                                         select(same, rest.low, sum.low - base.low)};
    Two<Pack<float>> both = fast_two_sum(base.high + base.high, difference.high);
    both.low = both.low + ((base.low + base.low) + difference.low);
    const Pack<float> inverse = broadcast(2 / unit) / both.high;
    const Two<Pack<float>> half = {both.high * broadcast(unit / 2), both.low * broadcast(unit / 2)};
    const Pack<float> t = difference.high * inverse;
    const Pack<float> t_low = (fma(-t, half.high, difference.high) + (difference.low - t * half.low)) * inverse;
    const Pack<float> s = t * broadcast(unit / 2), z = s * s;
    // The rest of the series in t is nearly t^3 / 12, whose derivative z is near enough for t_low.
    const Pack<float> tail = multiply_add(t_low, z, (t * z) * polynomial(z, C::short_q));
    const Pack<float> rounder = broadcast(ExpConstants<float>::rounder);
    const Pack<float> exponent = bit_cast<float>(k + bits(rounder)) - rounder;
    const Two<Pack<float>> log = fast_two_sum(exponent * broadcast(C::ln2_short / unit), t);
    return {log.high, log.low + (multiply_add(exponent, broadcast(C::ln2_rest / unit), t_low) + tail)};
}

FASTSOFTMAX_INLINE Wide<double> log1p_ratio(Wide<double> rest, Wide<double> top) { return log1p(rest / top); }

}  // namespace
