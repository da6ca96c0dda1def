// From the statistics of slices to the numbers that their results are made of. One slice a lane: rows fill every lane
// with the same one, tiles each with another, so both get the same bits.
#pragma once

#include "elements.hpp"
#include "exp_log.hpp"

namespace {

using fastsoftmax::Operation;
using fastsoftmax::Run;
using fastsoftmax::Statistics;
using fastsoftmax::Strided;

constexpr double infinity = __builtin_inf();

// The sum of a pack of partial sums, folded in halves.
FASTSOFTMAX_INLINE Two<double> folded(DoublePair partial) { return {fold_sum(partial.low + partial.high), 0}; }

FASTSOFTMAX_ONCE Two<double> folded(Double2 partial) {
    constexpr int lanes = Pack<double>::lanes;
    Two<double> parts[lanes];
    for (int i = 0; i < lanes; ++i) parts[i] = {lane(partial.high, i), lane(partial.low, i)};
    for (int count = lanes / 2; count > 0; count /= 2)
        for (int i = 0; i < count; ++i) parts[i] = parts[i] + parts[i + count];
    // The error of an infinite sum is NaN; the sum itself is right.
    if (!(parts[0].high - parts[0].high == 0)) return {fold_sum(partial.high), 0};
    return parts[0];
}

// Those of as many slices as a pack has lanes.
FASTSOFTMAX_ONCE DoublePair folded(const DoublePair (&partial)[Pack<float>::lanes]) {
    constexpr int lanes = Pack<float>::lanes;
    Pack<double> sums[lanes];
    for (int i = 0; i < lanes; ++i) sums[i] = partial[i].low + partial[i].high;
    return {fold_sums(sums), fold_sums(sums + lanes / 2)};
}

FASTSOFTMAX_ONCE Double2 folded(const Double2 (&partial)[Pack<double>::lanes]) {
    constexpr int lanes = Pack<double>::lanes;
    double high[lanes], low[lanes];
    for (int i = 0; i < lanes; ++i) {
        const Two<double> sum = folded(partial[i]);
        high[i] = sum.high;
        low[i] = sum.low;
    }
    return {load_pack<double>(high), load_pack<double>(low)};
}

// Terms of running sums of any numbers. Exact to 2^-50 (double 2^-100) of the sum of their magnitudes.
FASTSOFTMAX_INLINE void add_to(DoublePair& sum, DoublePair x) { sum = sum + x; }
FASTSOFTMAX_INLINE void add_product_to(DoublePair& sum, DoublePair x, DoublePair y) {
    // The product is exact.
    sum = {multiply_add(x.low, y.low, sum.low), multiply_add(x.high, y.high, sum.high)};
}
FASTSOFTMAX_INLINE void add_to(Double2& sum, Pack<double> x) {
    const Double2 next = two_sum(sum.high, x);
    sum = {next.high, sum.low + next.low};
}
FASTSOFTMAX_INLINE void add_product_to(Double2& sum, Pack<double> x, Pack<double> y) {
    const Pack<double> product = x * y;
    add_to(sum, product);
    sum.low = sum.low + fma(x, y, -product);
}

// The same of packs in memory.
class Double2Sums {
  public:
    FASTSOFTMAX_INLINE void add(const double* x) { add_to(sum_, load_pack<double>(x)); }
    FASTSOFTMAX_INLINE void add_product(const double* x, const double* y) {
        add_product_to(sum_, load_pack<double>(x), load_pack<double>(y));
    }
    FASTSOFTMAX_INLINE void add(const double* x, std::ptrdiff_t count) { add_to(sum_, load_first(x, count, 0.0)); }
    FASTSOFTMAX_INLINE void add_product(const double* x, const double* y, std::ptrdiff_t count) {
        add_product_to(sum_, load_first(x, count, 0.0), load_first(y, count, 0.0));
    }
    FASTSOFTMAX_INLINE Double2 total() const { return sum_; }

  private:
    Double2 sum_ = widen(broadcast(0.0));
};
template <class T>
using MemorySums = std::conditional_t<sizeof(T) == 4, DoubleSums, Double2Sums>;

// The same in rows, class c in lane c mod 16 (double: c mod 8).
template <class T>
struct Accumulator {
    Wide<T> sum = widen(broadcast(T(0)));

    FASTSOFTMAX_INLINE void add(Pack<T> x) { add_to(sum, to_doubles(x)); }
    FASTSOFTMAX_INLINE void add_product(Pack<T> x, Pack<T> y) { add_product_to(sum, to_doubles(x), to_doubles(y)); }
    FASTSOFTMAX_INLINE Two<double> total() const { return folded(sum); }
};

// A running sum of exponentials in the same order, which costs less: in T, the powers on one side, what they grow by
// and the errors of their additions on the other. After `terms` of a lane the latter is carried over, one group late,
// so that the next group need not wait for it. With `whole` the sum begins at a number that no exponential exceeds:
// then the larger of two terms is known (Dekker). Without, it is right relative to its own size, however small (Knuth).
// Error: 0.09 * 2^-24 (double 2^-53) of the sum, from adding four growths of 0.044 before they are carried, and with
// `whole` 2^-45 (2^-103) of the largest exponential.
template <class T, bool whole>
struct ExponentialSum {
    static constexpr std::ptrdiff_t terms = 4;
    static constexpr T start = whole ? ExpConstants<T>::above_all : T(0);

    FASTSOFTMAX_INLINE void add(Pack<T> power, Pack<T> growth) {
        const Pack<T> next = sum + power, back = next - sum;
        // The larger of both is `sum`, or unknown.
        group = group + (whole ? power - back : (sum - (next - back)) + (power - back));
        group = multiply_add(power, growth, group);
        sum = next;
    }
    FASTSOFTMAX_INLINE void carry() {
        const Pack<T> next = sum + error;
        error = (error - (next - sum)) + group;
        group = broadcast(T(0));
        sum = next;
    }
    FASTSOFTMAX_INLINE Two<Pack<T>> in_two() const { return two_sum(sum - broadcast(start), error); }
    FASTSOFTMAX_INLINE Wide<T> total() const {
        if constexpr (sizeof(T) == 4)
            return widen(sum - broadcast(start)) + widen(error);
        else
            return in_two();
    }

  private:
    Pack<T> sum = broadcast(start), error = broadcast(T(0)), group = broadcast(T(0));
};

// Division by the temperature in steps, so that nothing overflows that the quotient does not: scores times `before`,
// their difference times `after` (powers of two, one of them 1), over `rest`, whose reciprocal is a normal number.
struct Temperature {
    double before = 1, after = 1, rest = 1;

    FASTSOFTMAX_ONCE explicit Temperature(double temperature) {
        if (temperature > 1) {
            const std::int64_t exponent = same_bits<std::int64_t>(temperature) >> 52 << 52;  // a power of two's bits
            before = temperature < 2 ? 0.5 : 1 / same_bits<double>(exponent);
        } else if (temperature < 0x1p-1000) {
            after = 0x1p60;  // makes a subnormal normal
        }
        rest = temperature * before * after;
    }
};

// How a score enters the exponential: (x - shift) / temperature, as two parts where that rounds.
template <class T>
struct Scaling {
    Pack<T> before, shift, after, inverse_high, inverse_low;
    Pack<T> floor;  // differences below count as this in the second part, so that it stays finite

    FASTSOFTMAX_ONCE Scaling(Pack<T> shift_, double temperature, Pack<T> lowest) {
        const Temperature t(temperature);
        before = broadcast(static_cast<T>(t.before));
        after = broadcast(static_cast<T>(t.after));
        shift = shift_ * before;
        const double inverse = 1 / t.rest;
        inverse_high = broadcast(static_cast<T>(inverse));
        if constexpr (sizeof(T) == 4) {
            inverse_low = broadcast(static_cast<T>(inverse - static_cast<T>(inverse)));
        } else {
            const Pack<double> rest = broadcast(t.rest);
            inverse_low = fma(-inverse_high, rest, broadcast(1.0)) / rest;
        }
        floor = lowest / inverse_high;
    }
    FASTSOFTMAX_INLINE Scaling(const Scaling& all, int i)
        : before(all.before),
          shift(spread(all.shift, i)),
          after(all.after),
          inverse_high(all.inverse_high),
          inverse_low(all.inverse_low),
          floor(spread(all.floor, i)) {}

    FASTSOFTMAX_INLINE Two<Pack<T>> operator()(Pack<T> x) const {
        const Pack<T> difference = (x * before - shift) * after;
        const Pack<T> bounded = max(floor, difference);
        return {difference * inverse_high,
                fma(bounded, inverse_high, -(bounded * inverse_high)) + bounded * inverse_low};
    }
};

FASTSOFTMAX_INLINE Double2 broadcast2(const double (&parts)[2]) { return {broadcast(parts[0]), broadcast(parts[1])}; }

// 2^k for integers k in [-1022, 1023].
FASTSOFTMAX_INLINE Pack<double> power_of_two(Pack<double> k) {
    const Pack<double> rounder = broadcast(ExpConstants<double>::rounder);
    const Pack<double> field = k + (rounder + broadcast(1023.0));
    return bit_cast<double>(shift_left(bit_cast<std::int64_t>(field), 52));
}

// a * 2^k for integers k, rounded once: by three powers of two, the smallest steps first. Beyond 2^3000 as that.
FASTSOFTMAX_INLINE Pack<double> times_power(Pack<double> a, Pack<double> k) {
    const Pack<double> most = broadcast(1000.0);
    Pack<double> steps[3];
    for (auto& step : steps) {
        step = max(-most, min(most, k));
        k = k - step;
    }
    return a * power_of_two(steps[2]) * power_of_two(steps[1]) * power_of_two(steps[0]);
}

FASTSOFTMAX_INLINE DoublePair times_power(DoublePair a, DoublePair k) {
    return {times_power(a.low, k.low), times_power(a.high, k.high)};
}

// floor(log2|a|) of normal numbers, -1023 of 0, 1024 of what is not finite.
FASTSOFTMAX_INLINE Pack<double> exponent_of(Pack<double> a) {
    using Bits = Pack<std::int64_t>;
    const Bits field = shift_right(bit_cast<std::int64_t>(a), 52) & broadcast<std::int64_t>(0x7ff);
    return bit_cast<double>(field | bit_cast<std::int64_t>(broadcast(0x1p52))) - broadcast(0x1p52 + 1023);
}

FASTSOFTMAX_INLINE void set(double (&parts)[2], Double2 value) {
    parts[0] = lane(value.high, 0);
    parts[1] = lane(value.low, 0);
}

// sum * exp(difference) * 2^exponent: one block's sum on the scale of another. 0 where the factor is below 2^-1500.
FASTSOFTMAX_ONCE Double2 rescaled(Double2 sum, Double2 difference, double exponent) {
    const Pack<double> n = round_to_integer(difference.high * broadcast(ExpConstants<double>::log2e));
    double power = lane(n, 0) + exponent;
    // Out of reach, but for a NaN, which stays.
    if (!(power > -1500)) return {sum.high * broadcast(0.0), broadcast(0.0)};
    if (power > 1000) power = 1000;
    const Double2 product = sum * exp_reduced(difference, n);
    // In two steps: sums are kept well above 1, so that the first leaves a normal number.
    const double first = power < -750 ? -750 : power;
    const Pack<double> scale = power_of_two(broadcast(first)), rest = power_of_two(broadcast(power - first));
    return {product.high * scale * rest, product.low * scale * rest};
}

// Two blocks of one slice as one, left before right.
FASTSOFTMAX_ONCE void merge_exponentials(const Run& run, Statistics& left, const Statistics& right, bool whole) {
    const bool right_wins = right.max > left.max;
    const Statistics& high = right_wins ? right : left;
    const Statistics& low = right_wins ? left : right;
    if (high.max == infinity) {
        // All that `rest` tells then is whether there is a NaN.
        Statistics merged = high;
        merged.rest[0] = low.rest[0] == low.rest[0] ? high.rest[0] : low.rest[0];
        left = merged;
        return;
    }
    const Pack<double> t = broadcast(run.temperature);
    // A block of nothing but -inf has no shift of its own and no largest exponential: it adds 0, or a NaN.
    const bool some = low.max > -infinity;
    const Double2 difference = two_sum(broadcast(some ? low.shift : high.shift), broadcast(-high.shift)) / widen(t);
    Double2 loser = broadcast2(low.rest);
    if (!whole && some) loser = loser + broadcast2(low.top);
    Statistics merged = high;
    set(merged.rest, broadcast2(high.rest) + rescaled(loser, difference, low.reference - high.reference));
    left = merged;
}

// Of finite numbers a sum that is not finite is made anew in units of 2^`far_unit`: any number of them has one then.
constexpr double far_unit = 64;

FASTSOFTMAX_INLINE Mask<double> finite(Pack<double> a) { return equal(a - a, broadcast(0.0)); }
FASTSOFTMAX_INLINE bool all_finite(Pack<double> a) { return lane_bits(finite(a)) == (1u << Pack<double>::lanes) - 1; }

// A sum in units of 2^reference, one slice a lane: in units of 2^`unit`.
FASTSOFTMAX_INLINE Double2 in_unit(Double2 sum, double reference, double unit) {
    const Pack<double> scale = power_of_two(broadcast(reference - unit));
    return {sum.high * scale, sum.low * scale};
}

// As one sum; lanes are alike.
FASTSOFTMAX_ONCE void merge_sums(Statistics& left, const Statistics& right) {
    double unit = left.reference < right.reference ? right.reference : left.reference;
    const auto sum = [&](double in) {
        return in_unit(broadcast2(left.rest), left.reference, in) +
               in_unit(broadcast2(right.rest), right.reference, in);
    };
    Double2 total = sum(unit);
    if (unit == 0 && !all_finite(total.high)) {
        // The error of an infinite sum is NaN; the sum itself is right.
        total = widen(broadcast(left.rest[0] + right.rest[0]));
        const Double2 far = sum(far_unit);
        if (all_finite(far.high)) {
            unit = far_unit;
            total = far;
        }
    }
    set(left.rest, total);
    left.reference = unit;
}

// The statistics of as many slices as a pack has lanes, over a block of classes.
template <class T>
struct Measured {
    Pack<T> max, shift, reference;
    Two<Pack<T>> top;   // the exponential of the largest entry; NaN where that is infinite
    Two<Pack<T>> all;   // the sum of all exponentials: of softmax
    Two<Pack<T>> rest;  // that of all but the largest: of the others that sum exponentials
    Wide<T> sum;        // of the gradients of the transforms: their sum, in units of 2^reference
    std::int64_t argmax[Pack<T>::lanes];
};

// The sums of gradients that are not finite, from the same ones in units of 2^far_unit, where those are.
FASTSOFTMAX_INLINE void set_far_sums(Measured<double>& m, Double2 far) {
    const Mask<double> mended = select(finite(m.sum.high), broadcast<std::int64_t>(0), finite(far.high));
    m.sum = select(mended, far, m.sum);
    m.reference = select(mended, broadcast(far_unit), m.reference);
}

// What follows from the maxima of slices alone.
template <class T>
FASTSOFTMAX_INLINE void set_maxima(Measured<T>& m, Pack<T> max, double temperature) {
    const Pack<T> zero = broadcast(T(0)), limit = broadcast(ExpConstants<T>::largest_unshifted);
    const Pack<T> scaled = temperature == 1 ? max : max / broadcast(static_cast<T>(temperature));
    const Mask<T> within = less(scaled, limit) & less(-limit, scaled);
    const Mask<T> finite = equal(max - max, zero);
    m.max = max;
    m.shift = select(within, zero, select(finite, max, zero));
    m.reference = select(within, round_to_integer(scaled * broadcast(ExpConstants<T>::log2e)), zero);
}

template <class T>
FASTSOFTMAX_INLINE bool any_shift(const Measured<T>& m) {
    constexpr std::uint32_t all = static_cast<std::uint32_t>((1ull << Pack<T>::lanes) - 1);
    return equal_bits(m.shift, broadcast(T(0))) != all;
}

// Exponentials of scores, one slice a lane; of lane i alone for rows.
template <class T>
struct PlainExp {
    Exponential<T> exp;
    FASTSOFTMAX_INLINE PlainExp of_lane(int i) const { return {{exp, i}}; }
    template <int packs>
    FASTSOFTMAX_INLINE Growth<T, packs> operator()(Pack<T, packs> x) const {
        return exp(x);
    }
};

template <class T>
struct ScaledExp {
    Exponential<T> exp;
    Scaling<T> scale;
    FASTSOFTMAX_INLINE ScaledExp of_lane(int i) const { return {{exp, i}, {scale, i}}; }
    template <int packs>
    FASTSOFTMAX_INLINE Growth<T, packs> operator()(Pack<T, packs> x) const {
        Pack<T, packs> high, low;
        for (int k = 0; k < packs; ++k) {
            const Two<Pack<T>> y = scale(part(x, k));
            set_part(high, k, y.high);
            set_part(low, k, y.low);
        }
        return exp(high, low);
    }
};

// Calls body(exp) with the one of these that the slices need.
template <class T, class Body>
FASTSOFTMAX_INLINE void with_exponential(const Measured<T>& m, double temperature, Body body) {
    const Exponential<T> exp(m.reference);
    if (temperature == 1 && !any_shift(m))
        body(PlainExp<T>{exp});
    else
        body(ScaledExp<T>{exp, Scaling<T>(m.shift, temperature, exp.lowest - broadcast(T(2)))});
}

// The exponential of the largest entry, before it is rounded.
template <class T, class Exp>
FASTSOFTMAX_INLINE void set_top(Measured<T>& m, const Exp& exp) {
    const Growth<T, 1> top = exp(m.max);
    m.top = {select(equal(m.max - m.max, broadcast(T(0))), top.rounded(), broadcast(T(__builtin_nan("")))), top.lost()};
}

template <class T, class V>
inline void get_lane(double (&to)[2], const V& value, int i) {
    if constexpr (sizeof(T) == 4) {
        to[0] = lane(value, i);
        to[1] = 0;
    } else {
        to[0] = lane(value.high, i);
        to[1] = lane(value.low, i);
    }
}

template <class T>
FASTSOFTMAX_INLINE Wide<T> load_wide(const double* high, const double* low) {
    if constexpr (sizeof(T) == 4)
        return load_doubles<T>(high);
    else
        return {load_doubles<T>(high), load_doubles<T>(low)};
}

// The gradients of the transforms, which sum no exponentials.
template <Operation op>
constexpr bool is_gradient = op == fastsoftmax::softmax_grad || op == fastsoftmax::log_softmax_grad;

template <Operation op>
constexpr bool is_loss = op == fastsoftmax::cross_entropy || op == fastsoftmax::cross_entropy_grad;

// Whose results are made of exponentials, which may wait where the results will stand.
template <Operation op>
constexpr bool may_keep = op == fastsoftmax::softmax || op == fastsoftmax::cross_entropy_grad;

template <Operation op, class T>
inline Statistics statistics_of(const Measured<T>& m, int i) {
    Statistics s = {};
    s.max = static_cast<double>(lane(m.max, i));
    s.argmax = m.argmax[i];
    s.shift = static_cast<double>(lane(m.shift, i));
    s.reference = static_cast<double>(lane(m.reference, i));
    get_lane<T>(s.top, widen(m.top), i);
    get_lane<T>(s.rest, is_gradient<op> ? m.sum : widen(op == fastsoftmax::softmax ? m.all : m.rest), i);
    return s;
}

template <Operation op, class T>
inline Measured<T> measured_of(const Statistics* slices, int count) {
    constexpr int lanes = Pack<T>::lanes;
    T max[lanes] = {}, shift[lanes] = {}, reference[lanes] = {};
    double top[2][lanes] = {}, rest[2][lanes] = {};
    Measured<T> m = {};
    for (int i = 0; i < count; ++i) {
        const Statistics& s = slices[i];
        max[i] = static_cast<T>(s.max);
        shift[i] = static_cast<T>(s.shift);
        reference[i] = static_cast<T>(s.reference);
        for (int k = 0; k < 2; ++k) {
            top[k][i] = s.top[k];
            rest[k][i] = s.rest[k];
        }
        m.argmax[i] = s.argmax;
    }
    m.max = load_pack<T>(max);
    m.shift = load_pack<T>(shift);
    m.reference = load_pack<T>(reference);
    m.top = in_two(load_wide<T>(top[0], top[1]));
    m.sum = load_wide<T>(rest[0], rest[1]);
    m.rest = m.all = in_two(m.sum);
    return m;
}

// The operation whose exponentials another sums alike: what is compiled once for all of them.
template <Operation op>
constexpr Operation sums_as =
    op == fastsoftmax::softmax || op == fastsoftmax::logsumexp ? op : fastsoftmax::cross_entropy;

inline void merge(Operation op, const Run& run, Statistics& left, const Statistics& right) {
    if (op == fastsoftmax::softmax_grad || op == fastsoftmax::log_softmax_grad)
        merge_sums(left, right);
    else
        merge_exponentials(run, left, right, op == fastsoftmax::softmax);
}

// Measures slices of any length: measure(begin, end) does so for a block of up to `lanes` slices.
template <Operation op, class T, class Measure>
FASTSOFTMAX_INLINE Measured<T> measure_blocks(const Run& run, int count, Measure measure) {
    constexpr std::ptrdiff_t block = fastsoftmax::block_classes;
    if (run.classes <= block) return measure(std::ptrdiff_t{0}, run.classes);
    Statistics merged[Pack<T>::lanes] = {};
    for (std::ptrdiff_t begin = 0; begin < run.classes; begin += block) {
        const Measured<T> measured = measure(begin, run.classes - begin < block ? run.classes : begin + block);
        for (int i = 0; i < count; ++i) {
            const Statistics s = statistics_of<op>(measured, i);
            if (begin == 0)
                merged[i] = s;
            else
                merge(op, run, merged[i], s);
        }
    }
    return measured_of<op, T>(merged, count);
}

}  // namespace
