// log|sum of b exp(x)| and its sign, in double, for weights of any size and sign.
#pragma once

#include "results.hpp"

namespace {

// b = mantissa * 2^exponent, |mantissa| in [1, 2); not for 0, infinities and NaN.
struct Split {
    Pack<double> mantissa, exponent;
};

FASTSOFTMAX_INLINE Split split(Pack<double> b) {
    const Pack<double> size = max(b, -b);
    const Mask<double> tiny = less(size, broadcast(0x1p-1000));  // subnormal, or nearly
    const Pack<double> scaled = select(tiny, b * broadcast(0x1p100), b);
    const Pack<std::uint64_t> bits = bit_cast<std::uint64_t>(scaled);
    const Pack<std::uint64_t> field = shift_right(bits, 52) & broadcast<std::uint64_t>(0x7ff);
    const Pack<double> rounder = broadcast(ExpConstants<double>::rounder);
    const Pack<double> biased = bit_cast<double>(field + bit_cast<std::uint64_t>(rounder)) - rounder;
    const Pack<std::uint64_t> kept = bits & broadcast<std::uint64_t>(0x800fffffffffffff);
    return {bit_cast<double>(kept | broadcast<std::uint64_t>(0x3ff0000000000000)),
            biased - select(tiny, broadcast(1123.0), broadcast(1023.0))};
}

template <class F>
FASTSOFTMAX_INLINE void for_weighed(const double* x, const double* b, std::ptrdiff_t count, F f) {
    constexpr int lanes = Pack<double>::lanes;
    std::ptrdiff_t i = 0;
    for (; i + lanes <= count; i += lanes) f(load(x + i), load(b + i));
    if (i < count) f(load_first(x + i, count - i, -infinity), load_first(b + i, count - i, 0.0));
}

// Each term is split into a mantissa, exact to 2^-56, and its own exponent, so that neither can overflow. Error of the
// result: 2^-55 (1 + sum |b| exp(x) / |sum b exp(x)|), and its rounding. A sum below 2^-40 of the largest term times
// the number of terms is added exactly; there, terms of equal x count as one, with the sum of their b.
fastsoftmax::WeighedSum measure_weighed(const double* x, const double* b, std::ptrdiff_t count) {
    const Pack<double> zero = broadcast(0.0), one = broadcast(1.0), none = broadcast(-infinity),
                       top = broadcast(infinity);
    fastsoftmax::WeighedSum s = {};
    // A term takes part if its weight is not 0; if its score is +inf or its weight infinite, the weight's sign decides.
    Pack<double> largest = none, positive = zero, negative = zero, undefined = zero;
    for_weighed(x, b, count, [&](Pack<double> v, Pack<double> w) __attribute__((always_inline)) {
        const Pack<double> score = select(equal(w, zero), none, v);
        largest = max(score, largest);
        undefined = select(equal(score, score) & equal(w, w), undefined, one);
        const Mask<double> infinite_weight = equal(max(w, -w), top);
        undefined = select(infinite_weight & equal(score, none), one, undefined);
        const Mask<double> infinite = equal(score, top) | infinite_weight;
        positive = select(infinite & less(zero, w), one, positive);
        negative = select(infinite & less(w, zero), one, negative);
    });
    s.undefined = fold_max(undefined) > 0;
    s.positive = fold_max(positive) > 0;
    s.negative = fold_max(negative) > 0;
    const double max_score = fold_max(largest);
    s.some = max_score > -infinity;
    if (!s.some || s.undefined || s.positive || s.negative) return s;

    // Beyond 8192, the difference from the largest score is exact wherever a term is more than 2^-800 of the whole
    // (Sterbenz), since weights differ by a factor of at most 2^2100.
    if (max_score > 8192 || max_score < -8192) s.shift = max_score;
    const Pack<double> shift = broadcast(s.shift), log2e = broadcast(ExpConstants<double>::log2e);
    // Scores even further down count as this one, which makes no difference; so their exponents are exact.
    const Pack<double> lowest = broadcast(-0x1p20);
    Pack<double> exponent = none;
    for_weighed(x, b, count, [&](Pack<double> v, Pack<double> w) __attribute__((always_inline)) {
        const Pack<double> n = round_to_integer(max(lowest, v - shift) * log2e) + split(w).exponent;
        exponent = max(select(equal(w, zero) | equal(v, none), none, n), exponent);
    });
    s.reference = fold_max(exponent);

    const Pack<double> reference = broadcast(s.reference);
    Accumulator<double> sum;
    for_weighed(x, b, count, [&](Pack<double> v, Pack<double> w) __attribute__((always_inline)) {
        const Split weight = split(w);
        const Mask<double> absent = equal(w, zero) | equal(v, none);
        const Pack<double> score = select(absent, zero, max(lowest, v - shift));
        const Pack<double> n = round_to_integer(score * log2e);
        const Wide<double> value = exp_reduced({score, zero}, n);
        const Pack<double> k = n + weight.exponent - reference;
        const Pack<double> power = power_of_two(max(broadcast(-800.0), k)) * weight.mantissa;
        const Pack<double> factor = select(absent, zero, select(less(broadcast(-800.0), k), power, zero));
        sum.add_product(value.high, factor);
        sum.add(value.low * factor);
    });
    const Two<double> total = sum.total();
    s.sum[0] = total.high;
    s.sum[1] = total.low;
    return s;
}

void merge_weighed(fastsoftmax::WeighedSum& left, const fastsoftmax::WeighedSum& right) {
    const bool right_wins =
        (right.shift - left.shift) * ExpConstants<double>::log2e + (right.reference - left.reference) > 0;
    const bool take_right = !left.some || (right.some && right_wins);
    const fastsoftmax::WeighedSum& winner = take_right ? right : left;
    const fastsoftmax::WeighedSum& loser = take_right ? left : right;
    fastsoftmax::WeighedSum merged = winner;
    if (loser.some) {
        const Wide<double> difference = two_sum(broadcast(loser.shift), broadcast(-winner.shift));
        const Wide<double> scaled = rescaled(broadcast2(loser.sum), difference, loser.reference - winner.reference);
        set(merged.sum, broadcast2(winner.sum) + scaled);
    }
    merged.undefined = left.undefined || right.undefined;
    merged.positive = left.positive || right.positive;
    merged.negative = left.negative || right.negative;
    left = merged;
}

// Carries: then all digits except the last, which keeps the sign, are in [0, 2^32).
FASTSOFTMAX_ONCE void carry(fastsoftmax::ExactSum& sum) {
    for (int i = 0; i + 1 < fastsoftmax::exact_digits; ++i) {
        const std::int64_t carried = sum.digits[i] >> 32;
        sum.digits[i] -= carried * (std::int64_t{1} << 32);
        sum.digits[i + 1] += carried;
    }
}

// Adds value * 2^exponent.
FASTSOFTMAX_INLINE void add_exactly(fastsoftmax::ExactSum& sum, double value, std::int64_t exponent) {
    const auto bits = same_bits<std::uint64_t>(value);
    const std::uint64_t field = bits >> 52 & 0x7ff, mantissa = (bits & 0xfffffffffffff) | std::uint64_t{1} << 52;
    const std::int64_t place = static_cast<std::int64_t>(field) - 1075 + exponent + fastsoftmax::exact_bits;
    // Another thread may have changed the numbers since they were measured.
    if (field == 0 || place < 0 || place > fastsoftmax::exact_bits + 64) return;
    const std::uint64_t low = (mantissa & 0xffffffff) << place % 32, high = (mantissa >> 32) << place % 32;
    const std::int64_t sign = bits >> 63 ? -1 : 1;
    std::int64_t* digits = sum.digits + place / 32;
    digits[0] += sign * static_cast<std::int64_t>(low & 0xffffffff);
    digits[1] += sign * static_cast<std::int64_t>((low >> 32) + (high & 0xffffffff));
    digits[2] += sign * static_cast<std::int64_t>(high >> 32);
}

// Adds a block. Equal scores have equal exponentials, and products are exact, so terms that cancel leave nothing.
void add_exactly(fastsoftmax::ExactSum& sum, const double* x, const double* b, std::ptrdiff_t count) {
    constexpr int lanes = Pack<double>::lanes;
    const Pack<double> zero = broadcast(0.0), none = broadcast(-infinity);
    for_weighed(x, b, count, [&](Pack<double> v, Pack<double> w) __attribute__((always_inline)) {
        const Split weight = split(w);
        const Mask<double> absent = equal(w, zero) | equal(v, none);
        const Pack<double> score = select(absent, zero, max(broadcast(-0x1p20), v - broadcast(sum.shift)));
        const Pack<double> n = round_to_integer(score * broadcast(ExpConstants<double>::log2e));
        const Wide<double> value = exp_reduced({score, zero}, n);
        const Pack<double> mantissa = select(absent, zero, weight.mantissa);
        const Pack<double> high = value.high * mantissa, low = value.low * mantissa;
        const Pack<double> parts[] = {high, fma(value.high, mantissa, -high), low, fma(value.low, mantissa, -low)};
        // The reference is the largest exponent, or nearly.
        const Pack<double> k = min(n + weight.exponent - broadcast(sum.reference), broadcast(16.0));
        for (int i = 0; i < lanes; ++i)
            for (const auto& part : parts) add_exactly(sum, lane(part, i), static_cast<std::int64_t>(lane(k, i)));
    });
    carry(sum);
}

fastsoftmax::WeighedSum round_exact(fastsoftmax::ExactSum& sum) {
    const auto first = [&] {
        int i = fastsoftmax::exact_digits - 1;
        while (i > 0 && sum.digits[i] == 0) --i;
        return i;
    };
    int i = first();
    const bool negative = sum.digits[i] < 0;
    if (negative) {
        for (auto& digit : sum.digits) digit = -digit;
        carry(sum);
        i = first();
    }
    fastsoftmax::WeighedSum s = {};
    s.some = true;
    s.shift = sum.shift;
    s.reference = sum.reference + (32 * i - fastsoftmax::exact_bits);
    Wide<double> rounded = widen(broadcast(0.0));
    double unit = negative ? -1 : 1;
    for (int k = i; k >= 0 && k > i - 5; --k, unit *= 0x1p-32)
        rounded = rounded + widen(broadcast(static_cast<double>(sum.digits[k]) * unit));
    set(s.sum, rounded);
    return s;
}

void conclude_weighed(const fastsoftmax::WeighedSum& s, double* log, double* sign) {
    if (s.undefined || (s.positive && s.negative)) {
        *log = *sign = __builtin_nan("");
        return;
    }
    if (s.positive || s.negative) {
        *log = infinity;
        *sign = s.positive ? 1 : -1;
        return;
    }
    if (!s.some || s.sum[0] == 0) {
        *log = -infinity;
        *sign = 0;
        return;
    }
    const double direction = s.sum[0] < 0 ? -1 : 1;
    const Split whole = split(broadcast(direction * s.sum[0]));
    const Pack<double> scale = power_of_two(-whole.exponent);
    const Wide<double> excess = two_sum(whole.mantissa - broadcast(1.0), broadcast(direction * s.sum[1]) * scale);
    const Pack<double> exponent = broadcast(s.reference) + whole.exponent;
    const Pack<double> ln2 = broadcast(ExpConstants<double>::ln2_high);
    const Pack<double> product = exponent * ln2;
    const Wide<double> rest = {product,
                               fma(exponent, ln2, -product) + exponent * broadcast(ExpConstants<double>::ln2_low)};
    const Wide<double> result = widen(broadcast(s.shift)) + rest + log1p(excess);
    *log = lane(result.high + result.low, 0);
    *sign = direction;
}

}  // namespace
