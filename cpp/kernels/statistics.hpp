// From the statistics of slices to the numbers that their results are made of. One slice a lane: rows fill every lane
// with the same one, tiles each with another, so both get the same bits.
#pragma once

#include "signatures.hpp"
#include "sums.hpp"

namespace {

using fastsoftmax::Run;
using fastsoftmax::Statistics;
using fastsoftmax::Strided;

// Some neighbouring rows of a run.
template <class T>
struct Rows {
    const Run& run;
    std::ptrdiff_t first;
    int count;

    FASTSOFTMAX_INLINE const T* x(int i) const { return at(run.x, i); }
    FASTSOFTMAX_INLINE const T* dy(int i) const { return at(run.dy, i); }
    FASTSOFTMAX_INLINE T* out(int i) const { return at(run.out, i); }

    // The result of class `c`, where it is one of the `classes` that the arrays hold.
    FASTSOFTMAX_INLINE void put(int i, std::int64_t c, std::ptrdiff_t classes, T value) const {
        const std::int64_t position = c - run.origin;
        if (0 <= position && position < classes) out(i)[position] = value;
    }

  private:
    FASTSOFTMAX_INLINE T* at(const Strided& array, int i) const {
        return reinterpret_cast<T*>(array.data + (first + i) * array.slice_stride);
    }
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

    FASTSOFTMAX_LONG Two<Pack<T>> operator()(Pack<T> x) const {
        const Pack<T> difference = (x * before - shift) * after;
        const Pack<T> bounded = max(floor, difference);
        return {difference * inverse_high,
                fma(bounded, inverse_high, -(bounded * inverse_high)) + bounded * inverse_low};
    }
};

FASTSOFTMAX_INLINE Wide<double> broadcast2(const double (&parts)[2]) {
    return {broadcast(parts[0]), broadcast(parts[1])};
}

// 2^k for integers k in [-1022, 1023].
template <int packs>
FASTSOFTMAX_INLINE Pack<double, packs> power_of_two(Pack<double, packs> k) {
    const Pack<double, packs> field = k + broadcast<double, packs>(ExpConstants<double>::rounder + 1023);
    return bit_cast<double>(shift_left(bit_cast<std::int64_t>(field), 52));
}

// a * 2^k for integers k, rounded once: by three powers of two, the smallest steps first. A k beyond 3000 counts as
// 3000.
template <int packs>
FASTSOFTMAX_INLINE Pack<double, packs> times_power(Pack<double, packs> a, Pack<double, packs> k) {
    const Pack<double, packs> most = broadcast<double, packs>(1000);
    Pack<double, packs> steps[3];
    for (auto& step : steps) {
        step = max(-most, min(most, k));
        k = k - step;
    }
    return a * power_of_two(steps[2]) * power_of_two(steps[1]) * power_of_two(steps[0]);
}

FASTSOFTMAX_INLINE void set(double (&parts)[2], Wide<double> value) {
    parts[0] = lane(value.high, 0);
    parts[1] = lane(value.low, 0);
}

// sum * exp(difference) * 2^exponent: one block's sum on the scale of another. 0 where the factor is below 2^-1500.
FASTSOFTMAX_ONCE Wide<double> rescaled(Wide<double> sum, Wide<double> difference, double exponent) {
    const Pack<double> n = round_to_integer(difference.high * broadcast(ExpConstants<double>::log2e));
    double power = lane(n, 0) + exponent;
    // Out of reach; only a NaN stays.
    if (!(power > -1500)) return {sum.high * broadcast(0.0), broadcast(0.0)};
    if (power > 1000) power = 1000;
    const Wide<double> product = sum * exp_reduced(difference, n);
    // In two steps: sums are kept well above 1, so that the first leaves a normal number.
    const double first = power < -750 ? -750 : power;
    const Pack<double> scale = power_of_two(broadcast(first)), rest = power_of_two(broadcast(power - first));
    return {product.high * scale * rest, product.low * scale * rest};
}

// Two blocks of one slice as one, left before right.
FASTSOFTMAX_ONCE void merge_exponentials(const Run& run, Statistics& left, const Statistics& right) {
    const bool right_wins = right.max > left.max;
    const Statistics& winner = right_wins ? right : left;
    const Statistics& loser = right_wins ? left : right;
    if (winner.max == infinity) {
        // All that `rest` tells then is whether there is a NaN.
        Statistics merged = winner;
        merged.rest[0] = loser.rest[0] == loser.rest[0] ? winner.rest[0] : loser.rest[0];
        left = merged;
        return;
    }
    const Pack<double> t = broadcast(run.temperature);
    // A block of nothing but -inf has no shift of its own and no largest exponential: it adds 0, or a NaN.
    const bool some = loser.max > -infinity;
    const Wide<double> difference =
        two_sum(broadcast(some ? loser.shift : winner.shift), broadcast(-winner.shift)) / widen(t);
    Wide<double> sum = broadcast2(loser.rest);
    if (some) sum = sum + broadcast2(loser.top);
    Statistics merged = winner;
    set(merged.rest, broadcast2(winner.rest) + rescaled(sum, difference, loser.reference - winner.reference));
    left = merged;
}

// The statistics of as many slices as a pack has lanes, over a block of classes.
template <class T>
struct Measured {
    Pack<T> max, shift, reference;
    Two<Pack<T>> top;   // the exponential of the largest entry; NaN where that is infinite
    Two<Pack<T>> rest;  // the sum of all others
};

// Sets what follows from the maxima of slices.
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
    constexpr auto all = static_cast<std::uint32_t>((1ull << Pack<T>::lanes) - 1);
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

// The rest: the others' sum, and the largest as often as it comes again.
template <class T>
FASTSOFTMAX_INLINE void set_rest(Measured<T>& m, Wide<T> others, Pack<T> times) {
    const Pack<T> again = times - broadcast(T(1));
    const Mask<T> ties = less(broadcast(T(0)), again) & equal(m.max - m.max, broadcast(T(0)));
    m.rest = in_two(others);
    if (lane_bits(ties) == 0) return;
    const Two<Pack<T>> tied = {
        select(ties, m.top.high * again, broadcast(T(0))),
        select(ties, fma(m.top.high, again, -(m.top.high * again)) + m.top.low * again, broadcast(T(0)))};
    m.rest = m.rest + fast_two_sum(tied.high, tied.low);
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

template <Operation op>
constexpr bool is_loss = signature<op>.labels != fastsoftmax::PerSlice::none;

// Whose results are made of exponentials, which may wait where the results will stand.
template <Operation op>
constexpr bool may_keep = signature<op>.keeps_exponentials;

template <Operation op, class T>
inline Statistics statistics_of(const Measured<T>& m, int i) {
    Statistics s = {};
    s.max = static_cast<double>(lane(m.max, i));
    s.shift = static_cast<double>(lane(m.shift, i));
    s.reference = static_cast<double>(lane(m.reference, i));
    get_lane<T>(s.top, widen(m.top), i);
    get_lane<T>(s.rest, widen(m.rest), i);
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
    }
    m.max = load_pack<T>(max);
    m.shift = load_pack<T>(shift);
    m.reference = load_pack<T>(reference);
    m.top = in_two(load_wide<T>(top[0], top[1]));
    m.rest = in_two(load_wide<T>(rest[0], rest[1]));
    return m;
}

template <Operation op>
void merge(const Run& run, Statistics& left, const Statistics& right) {
    merge_exponentials(run, left, right);
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
                merge<op>(run, merged[i], s);
        }
    }
    return measured_of<op, T>(merged, count);
}

}  // namespace
