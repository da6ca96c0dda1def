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

// A running sum: 16 doubles for float (lane c mod 16), 8 pairs for double (lane c mod 8). Exact to 2^-50 of the sum.
template <class T>
struct Accumulator;

template <>
struct Accumulator<float> {
    Pack<double> low = broadcast(0.0), high = broadcast(0.0);

    FASTSOFTMAX_INLINE void add(Pack<float> x) { add(to_double(x)); }
    FASTSOFTMAX_INLINE void add(DoublePair x) {
        low = low + x.low;
        high = high + x.high;
    }
    FASTSOFTMAX_INLINE void add(Two<Pack<float>> x) {
        const DoublePair a = to_double(x.high), b = to_double(x.low);
        add(DoublePair{a.low + b.low, a.high + b.high});
    }
    FASTSOFTMAX_INLINE void add_product(Pack<float> x, Pack<float> y) {
        const DoublePair a = to_double(x), b = to_double(y);
        add({a.low * b.low, a.high * b.high});
    }
    FASTSOFTMAX_INLINE Two<double> total() const { return {fold_sum(low + high), 0}; }
};

template <>
struct Accumulator<double> {
    Pack<double> sum = broadcast(0.0), error = broadcast(0.0);

    FASTSOFTMAX_INLINE void add(Pack<double> x) {
        const Double2 next = two_sum(sum, x);
        sum = next.high;
        error = error + next.low;
    }
    FASTSOFTMAX_INLINE void add(Two<Pack<double>> x) {
        add(x.high);
        error = error + x.low;
    }
    FASTSOFTMAX_INLINE void add_product(Pack<double> x, Pack<double> y) {
        const Pack<double> product = x * y;
        add(product);
        error = error + fma(x, y, -product);
    }
    FASTSOFTMAX_ONCE Two<double> total() const {
        constexpr int lanes = Pack<double>::lanes;
        Two<double> parts[lanes];
        for (int i = 0; i < lanes; ++i) parts[i] = {lane(sum, i), lane(error, i)};
        for (int count = lanes / 2; count > 0; count /= 2)
            for (int i = 0; i < count; ++i) parts[i] = ::add(parts[i], parts[i + count]);
        // The error of an infinite sum is NaN; the sum itself is right.
        if (!(parts[0].high - parts[0].high == 0)) return {fold_sum(sum), 0};
        return parts[0];
    }
};

// Division by the temperature in steps, so that nothing overflows that the quotient does not: scores times `before`,
// their difference times `after` (powers of two, one of them 1), over `rest`, whose reciprocal is a normal number.
struct Temperature {
    double before = 1, after = 1, rest = 1;

    FASTSOFTMAX_ONCE explicit Temperature(double temperature) {
        if (temperature >= 2) {
            const std::int64_t exponent = same_bits<std::int64_t>(temperature) >> 52 << 52;  // a power of two's bits
            before = 1 / same_bits<double>(exponent);
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

// (max - shift) / temperature: shift is 0 or max, so the difference is exact.
template <class T>
FASTSOFTMAX_INLINE Double2 scaled_max(Pack<double> max, Pack<double> shift, double temperature) {
    if (temperature == 1) return {max - shift, broadcast(0.0)};
    const Pack<double> t = broadcast(temperature);
    if constexpr (sizeof(T) == 4) return {(max - shift) / t, broadcast(0.0)};
    return divide({max - shift, broadcast(0.0)}, {t, broadcast(0.0)});
}

// log of the sum of a slice relative to its largest exponential: minus the log-probability of the largest entry.
template <class T>
FASTSOFTMAX_INLINE Double2 log_total(Double2 top, Double2 rest) {
    if constexpr (sizeof(T) == 4) return {log1p_short(rest.high / top.high), broadcast(0.0)};
    return log1p_long(divide(rest, top));
}

// factor / (top + rest).
template <class T>
FASTSOFTMAX_INLINE Double2 over_total(Pack<double> factor, Double2 top, Double2 rest) {
    if constexpr (sizeof(T) == 4) return {factor / (top.high + rest.high), broadcast(0.0)};
    return divide({factor, broadcast(0.0)}, add(top, rest));
}

FASTSOFTMAX_INLINE Double2 broadcast2(const double (&parts)[2]) { return {broadcast(parts[0]), broadcast(parts[1])}; }

// Whether max is so large that it is subtracted, and the integer next to the largest exponent. Infinite: neither.
template <class T>
FASTSOFTMAX_INLINE Pack<double> shift_for(Pack<double> max, double temperature) {
    const Pack<double> scaled = temperature == 1 ? max : max / broadcast(temperature);
    const Pack<double> limit = broadcast<double>(ExpConstants<T>::largest_unshifted);
    const Mask<double> within = less(scaled, limit) & less(-limit, scaled);
    const Mask<double> finite = less(max, broadcast(infinity)) & less(broadcast(-infinity), max);
    return select(within, broadcast(0.0), select(finite, max, broadcast(0.0)));
}

FASTSOFTMAX_INLINE Pack<double> reference_for(Pack<double> scaled) {
    const Mask<double> finite = less(scaled, broadcast(infinity)) & less(broadcast(-infinity), scaled);
    return select(finite, round_to_integer(scaled * broadcast(ExpConstants<double>::log2e)), broadcast(0.0));
}

// The exponential of the largest entry, on the slice's scale, to 2^-52 (float) and 2^-56 (double).
template <class T>
FASTSOFTMAX_INLINE Double2 exp_of_max(Double2 scaled, Pack<double> reference) {
    using C = ExpConstants<double>;
    if constexpr (sizeof(T) == 4) {
        const Pack<double> part = fma(reference, broadcast(-C::ln2_high), scaled.high);
        const Pack<double> r = multiply_add(reference, broadcast(-C::ln2_low), part);
        const Pack<double> value = multiply_add(r * r, polynomial(r, C::q), r) + broadcast(1.0);
        return {value * broadcast(0x1p64), broadcast(0.0)};
    } else {
        const Double2 value = exp_reduced(scaled, reference);
        return {value.high * broadcast(0x1p200), value.low * broadcast(0x1p200)};
    }
}

// 2^k for integers k in [-1000, 1000].
FASTSOFTMAX_INLINE Pack<double> power_of_two(Pack<double> k) {
    const Pack<double> rounder = broadcast(ExpConstants<double>::rounder);
    const Pack<double> field = k + (rounder + broadcast(1023.0));
    return bit_cast<double>(shift_left(bit_cast<std::int64_t>(field), 52));
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
    const Double2 product = multiply(sum, exp_reduced(difference, n));
    // In two steps: sums are kept well above 1, so that the first leaves a normal number.
    const double first = power < -750 ? -750 : power;
    const Pack<double> scale = power_of_two(broadcast(first)), rest = power_of_two(broadcast(power - first));
    return {product.high * scale * rest, product.low * scale * rest};
}

// Two blocks of one slice as one, left before right.
FASTSOFTMAX_ONCE void merge_exponentials(const Run& run, Statistics& left, const Statistics& right) {
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
    const Double2 difference = divide(two_sum(broadcast(low.shift), broadcast(-high.shift)), {t, broadcast(0.0)});
    Double2 loser = broadcast2(low.rest);
    if (low.max > -infinity) loser = add(loser, broadcast2(low.top));
    Statistics merged = high;
    set(merged.rest, add(broadcast2(high.rest), rescaled(loser, difference, low.reference - high.reference)));
    left = merged;
}

inline void merge_sums(Statistics& left, const Statistics& right) {
    set(left.rest, add(broadcast2(left.rest), broadcast2(right.rest)));
}

// The statistics of 8 slices, one a lane.
struct Group {
    Pack<double> max, shift, reference;
    Double2 top, rest;
};

// As many groups as a pack of T has lanes for.
template <class T>
constexpr int groups = Pack<T>::lanes / Pack<double>::lanes;

template <class T>
struct Groups {
    Group group[groups<T>];
};

// The statistics of as many slices as a pack has lanes, over a block of classes.
template <class T>
struct Measured {
    Groups<T> groups;
    std::int64_t argmax[Pack<T>::lanes];
};

// Two parts of T from a pair of doubles for each lane.
template <class T, class F>
FASTSOFTMAX_INLINE Two<Pack<T>> parts(const Groups<T>& groups, F value) {
    if constexpr (sizeof(T) == 4) {
        const Double2 low = value(groups.group[0]), high = value(groups.group[1]);
        const Pack<float> first = to_float({low.high, high.high});
        const DoublePair kept = to_double(first);
        return {first, to_float({(low.high - kept.low) + low.low, (high.high - kept.high) + high.low})};
    } else {
        const Double2 both = value(groups.group[0]);
        return {both.high, both.low};
    }
}

template <class T, class F>
FASTSOFTMAX_INLINE Pack<T> part(const Groups<T>& groups, F value) {
    if constexpr (sizeof(T) == 4)
        return to_float({value(groups.group[0]), value(groups.group[1])});
    else
        return value(groups.group[0]);
}

template <class T>
FASTSOFTMAX_INLINE Exponential<T> exponential(const Groups<T>& groups) {
    return Exponential<T>(part(groups, [](const Group& g) __attribute__((always_inline)) { return g.reference; }));
}

template <class T>
FASTSOFTMAX_INLINE Pack<T> shift(const Groups<T>& groups) {
    return part(groups, [](const Group& g) __attribute__((always_inline)) { return g.shift; });
}

// The scaling of slices before their exponential.
template <class T>
FASTSOFTMAX_INLINE Scaling<T> scaling(const Groups<T>& groups, const Exponential<T>& exponential, double temperature) {
    return Scaling<T>(shift(groups), temperature, exponential.lowest - broadcast(T(2)));
}

// What log_softmax subtracts from a score (less its shift): log-sum-exp in two parts.
template <class T>
FASTSOFTMAX_ONCE Two<Pack<T>> log_offset(const Groups<T>& groups, double temperature, bool shifted) {
    return parts(groups, [&](const Group& g) __attribute__((always_inline)) {
        const Double2 scaled = scaled_max<T>(g.max, shifted ? g.shift : broadcast(0.0), temperature);
        const Double2 log = log_total<T>(g.top, g.rest);
        const Double2 sum = two_sum(scaled.high, log.high);
        return Double2{sum.high, sum.low + (scaled.low + log.low)};
    });
}

// What follows from the maxima of slices.
template <class T>
FASTSOFTMAX_ONCE void set_maxima(Groups<T>& g, const Pack<double> (&maxima)[groups<T>], double temperature) {
    for (int i = 0; i < groups<T>; ++i) {
        Group& s = g.group[i];
        s.max = maxima[i];
        s.shift = shift_for<T>(s.max, temperature);
        const Double2 scaled = scaled_max<T>(s.max, s.shift, temperature);
        s.reference = reference_for(scaled.high);
        s.top = exp_of_max<T>(scaled, s.reference);
        const Mask<double> infinite = equal(max(s.max, -s.max), broadcast(infinity));
        s.top.high = select(infinite, broadcast(__builtin_nan("")), s.top.high);
    }
}

template <class T>
FASTSOFTMAX_INLINE bool any_shift(const Groups<T>& g) {
    std::uint32_t none = ~0u;
    for (const Group& s : g.group) none &= equal_bits(s.shift, broadcast(0.0));
    return none != (1u << Pack<double>::lanes) - 1;
}

template <class T>
inline Statistics statistics_of(const Measured<T>& measured, int slice) {
    const Group& g = measured.groups.group[slice / Pack<double>::lanes];
    const int i = slice % Pack<double>::lanes;
    Statistics s;
    s.max = lane(g.max, i);
    s.argmax = measured.argmax[slice];
    s.shift = lane(g.shift, i);
    s.reference = lane(g.reference, i);
    s.top[0] = lane(g.top.high, i);
    s.top[1] = lane(g.top.low, i);
    s.rest[0] = lane(g.rest.high, i);
    s.rest[1] = lane(g.rest.low, i);
    return s;
}

template <class T>
inline Measured<T> measured_of(const Statistics* slices, int count) {
    constexpr int lanes = Pack<T>::lanes;
    double fields[7][lanes] = {};
    Measured<T> measured = {};
    for (int i = 0; i < count; ++i) {
        const Statistics& s = slices[i];
        const double values[] = {s.max, s.shift, s.reference, s.top[0], s.top[1], s.rest[0], s.rest[1]};
        for (int k = 0; k < 7; ++k) fields[k][i] = values[k];
        measured.argmax[i] = s.argmax;
    }
    for (int i = 0; i < groups<T>; ++i) {
        const auto field = [&](int k) { return load_pack<double>(fields[k] + i * Pack<double>::lanes); };
        measured.groups.group[i] = {field(0), field(1), field(2), {field(3), field(4)}, {field(5), field(6)}};
    }
    return measured;
}

// The operation whose exponentials another sums alike: what is compiled once for all of them.
template <Operation op>
constexpr Operation sums_as =
    op == fastsoftmax::softmax || op == fastsoftmax::logsumexp ? op : fastsoftmax::cross_entropy;

inline void merge(Operation op, const Run& run, Statistics& left, const Statistics& right) {
    if (op == fastsoftmax::softmax_grad || op == fastsoftmax::log_softmax_grad)
        merge_sums(left, right);
    else
        merge_exponentials(run, left, right);
}

// Measures slices of any length: measure(begin, end) does so for a block of up to `lanes` slices.
template <Operation op, class T, class Measure>
FASTSOFTMAX_INLINE Measured<T> measure_blocks(const Run& run, int count, Measure measure) {
    constexpr std::ptrdiff_t block = fastsoftmax::block_classes;
    if (run.classes <= block) return measure(std::ptrdiff_t{0}, run.classes);
    Statistics merged[Pack<T>::lanes];
    for (std::ptrdiff_t begin = 0; begin < run.classes; begin += block) {
        const Measured<T> measured = measure(begin, run.classes - begin < block ? run.classes : begin + block);
        for (int i = 0; i < count; ++i) {
            const Statistics s = statistics_of(measured, i);
            if (begin == 0)
                merged[i] = s;
            else
                merge(op, run, merged[i], s);
        }
    }
    return measured_of<T>(merged, count);
}

}  // namespace
