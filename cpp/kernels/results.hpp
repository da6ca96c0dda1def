// Makes results from exponentials, scores and the statistics of their slices, a pack at a time. All loops share these.
#pragma once

#include "exponentials.hpp"

namespace {

// Minus the log-probability of the largest entry, for each slice of a pack.
template <class T>
class LogTotal {
  public:
    FASTSOFTMAX_INLINE explicit LogTotal(const Measured<T>& m) : log_(log1p_ratio(m.rest, m.top)) {}

    FASTSOFTMAX_INLINE Pack<T> rounded() const { return (log_.high + log_.low) * unit(); }
    FASTSOFTMAX_INLINE Two<Pack<T>> in_two() const { return {log_.high * unit(), log_.low * unit()}; }
    FASTSOFTMAX_INLINE Wide<T> wide() const {
        if constexpr (sizeof(T) == 4)
            return widen(log_) * doubles<T>(log_unit<T>);
        else
            return log_;
    }

  private:
    Two<Pack<T>> log_;  // in units of log_unit

    FASTSOFTMAX_INLINE static Pack<T> unit() { return broadcast(log_unit<T>); }
};

// Maps e to numerator * e / sum, by a reciprocal in two parts. This is as good as a division: the error before rounding
// is 2^-46 (double 2^-100).
template <class T>
struct Probability {
    Two<Pack<T>> factor;

    Probability() = default;
    FASTSOFTMAX_INLINE explicit Probability(Two<Pack<T>> sum) : factor(reciprocal<T>(sum)) {}

    FASTSOFTMAX_INLINE Probability(const Probability& one, Two<Pack<T>> numerator) : factor(numerator * one.factor) {}

    FASTSOFTMAX_INLINE Probability(const Probability& all, int i)
        : factor{spread(all.factor.high, i), spread(all.factor.low, i)} {}

    FASTSOFTMAX_LONG Pack<T> operator()(Pack<T> e) const { return product(e, factor); }

    // numerator * e / sum - term.
    FASTSOFTMAX_LONG Pack<T> operator()(Pack<T> e, Pack<T> term) const {
        return fma(e, factor.high, fma(e, factor.low, -term));
    }
};

// Which slices have a largest entry whose probability is above 1/2. For that entry, the difference that would cancel is
// computed in another way. Below 1/2 the general formulas are as good, and give equal entries equal results.
template <class T>
FASTSOFTMAX_INLINE Mask<T> dominant(const Measured<T>& m) {
    return less(m.rest.high, m.top.high);
}

// The log-probability of an entry that dominates: minus the log of 1 + rest / top.
template <class T>
struct Dominance {
    Pack<T> max;  // its score; NaN: none dominates
    Pack<T> log_probability;

    Dominance() = default;
    FASTSOFTMAX_INLINE Dominance(const Measured<T>& m, const LogTotal<T>& log)
        : max(select(dominant(m), m.max, broadcast(T(__builtin_nan(""))))), log_probability(-log.rounded()) {}

    FASTSOFTMAX_INLINE Dominance(const Dominance& all, int i)
        : max(spread(all.max, i)), log_probability(spread(all.log_probability, i)) {}

    // The log-probability of score x; `general`: what it is if x does not dominate.
    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> x, Pack<T> general) const {
        return select(equal(x, max), log_probability, general);
    }
};

// Maps x to (x - shift) / temperature - log-sum-exp, one slice a lane. Error: 1.6 ULP, unless the entry dominates.
template <class T, class Argument>
struct LogProbability {
    Argument argument;
    Two<Pack<T>> offset;

    LogProbability() = default;
    FASTSOFTMAX_INLINE LogProbability(const Argument& argument_, const Measured<T>& m, const LogTotal<T>& log)
        : argument(argument_), offset(argument(m.max) + log.in_two()) {}
    FASTSOFTMAX_INLINE LogProbability(const LogProbability& all, int i)
        : argument(all.argument.of_lane(i)), offset{spread(all.offset.high, i), spread(all.offset.low, i)} {}

    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> x) const {
        const Two<Pack<T>> y = argument(x);
        return (y.high - offset.high) + (y.low - offset.low);
    }
};

// log-sum-exp of each slice.
template <class T>
FASTSOFTMAX_ONCE Doubles<T> log_sum_exp(const Measured<T>& m) {
    const Mask<T> infinite = equal(max(m.max, -m.max), broadcast(T(infinity)));
    const LogTotal<T> log(m);
    Two<Pack<T>> finite = Two<Pack<T>>{m.max, broadcast(T(0))} + log.in_two();
    // Both parts of a subnormal logarithm are rounded, which would show if the largest entry is 0.
    const Mask<T> zero = equal(m.max, broadcast(T(0)));
    finite = {select(zero, log.rounded(), finite.high), select(zero, broadcast(T(0)), finite.low)};
    // An infinite maximum is the result, unless there is a NaN, which `rest` then holds.
    return to_doubles(widen(Two<Pack<T>>{select(infinite, m.max + m.rest.high, finite.high),
                                         select(infinite, broadcast(T(0)), finite.low)}));
}

// Stores the log-sum-exp of slices from `first` of the run on, and the signs of the sums.
template <class T>
FASTSOFTMAX_INLINE void conclude_logsumexp(const Run& run, std::ptrdiff_t first, int count, const Measured<T>& m) {
    double* logs = run.value + first;
    store_doubles<T>(logs, log_sum_exp(m), count);
    if (run.sign)
        for (int i = 0; i < count; ++i)
            run.sign[first + i] = logs[i] != logs[i] ? __builtin_nan("") : logs[i] == -infinity ? 0 : 1;
}

// -log p of an entry with score x; `log`: -log p of the largest entry.
template <class T>
FASTSOFTMAX_INLINE Doubles<T> minus_log_probability(const Measured<T>& m, Pack<T> x, Wide<T> log, double temperature) {
    if constexpr (sizeof(T) == 4)
        if (temperature == 1) return (to_doubles(m.max) - to_doubles(x)) + log;
    const Temperature split(temperature);
    const Doubles<T> before = doubles<T>(split.before), after = doubles<T>(split.after), t = doubles<T>(split.rest);
    const Doubles<T> largest = to_doubles(m.max) * before, score = to_doubles(x) * before;
    const Doubles<T> quotient = (largest - score) * after / t;
    if constexpr (sizeof(T) == 4) {
        return quotient + log;
    } else {
        Wide<double> exact = two_sum(largest, -score);
        exact = {exact.high * after, exact.low * after};
        const Wide<double> sum = (temperature == 1 ? exact : exact / widen(t)) + log;
        return select(less(quotient, broadcast(infinity)), sum.high + sum.low, quotient + log.high);
    }
}

// The gradient at the label and at the largest entry, where total * p and the weight subtracted from it would cancel.
// The scale may be any.
template <class T>
struct GradientEnds {
    Pack<T> at_label, at_max;

    // `total`: weight of the whole slice; `label`, `largest`: weights subtracted at these; all are times `scale`.
    FASTSOFTMAX_INLINE GradientEnds(const Measured<T>& m, const Probability<T>& probability, Pack<T> label_exponential,
                                    Doubles<T> total, Doubles<T> label, Doubles<T> largest, Doubles<T> scale) {
        const Wide<T> inverse = widen(probability.factor);
        const Wide<T> p = widen(total) * (widen(label_exponential) * inverse);
        at_label = narrow(scale * to_doubles(p - widen(label)));
        // total p - largest = (total - largest) - total (1 - p), where 1 - p may be too small a number until the scale
        // makes it large again. So a small sum of the others is scaled first. A large one, which might then overflow,
        // is scaled last.
        const Doubles<T> scaled = total * scale;
        const Wide<T> weight = widen(scaled);
        const Mask<T> large = less(broadcast(T(1)), m.rest.high);
        const Wide<T> first = select(large, inverse, weight), last = select(large, weight, inverse);
        Doubles<T> others;
        if constexpr (sizeof(T) == 4) {
            others = widen(m.rest) * first * last;
        } else {
            // Raised meanwhile, so that a result that is subnormal in the end is rounded once, there.
            const Mask<T> may_rise = less(max(scaled, -scaled), broadcast(0x1p500));
            const Pack<double> one = broadcast(1.0),
                               raise = select(large, one, select(may_rise, broadcast(0x1p300), one));
            others = to_doubles(Wide<double>{m.rest.high * raise, m.rest.low * raise} * first * last) / raise;
        }
        at_max = narrow(scale * (total - largest) - others);
    }
};

// Multiplies gradients by the power of two that their factor lacks.
template <class T>
FASTSOFTMAX_INLINE Pack<T> raised(Pack<T> gradient, Doubles<T> exponent) {
    return narrow(times_power(to_doubles(gradient), exponent));
}

// Which slices have a factor that two numbers of T cannot hold: it, or its products, would leave the range of normal
// numbers. A factor of exactly 0 is not among these.
template <class T>
FASTSOFTMAX_INLINE Mask<T> wide_lanes(Doubles<T> exact, Pack<T> factor) {
    constexpr T least = sizeof(T) == 4 ? T(0x1p-100) : T(0x1p-900), most = sizeof(T) == 4 ? T(0x1p100) : T(0x1p830);
    const Pack<T> size = max(factor, -factor);
    const Mask<T> fits = less(broadcast(least), size) & less(size, broadcast(most));
    const Mask<T> none = broadcast(Integer<T>(0)), others = select(fits, none, broadcast(Integer<T>(-1)));
    return lane_bits(others) == 0 ? none : select(is_zero(exact), none, others);
}

// GradientEnds, compiled once. All arguments but `m` go by value, so that what is in registers stays there.
template <class T>
FASTSOFTMAX_ONCE GradientEnds<T> wide_ends(const Measured<T>& m, Probability<T> unscaled, Pack<T> e, Doubles<T> total,
                                           Doubles<T> label, Doubles<T> largest, Doubles<T> scale) {
    return {m, unscaled, e, total, label, largest, scale};
}

// The gradient of a slice in wide_lanes, by way of a probability in double, which is rounded first.
template <class T>
FASTSOFTMAX_INLINE Pack<T> wide_gradient(Pack<T> e, Pack<T> term, Doubles<T> total, Doubles<T> scale,
                                         const Probability<T>& unscaled) {
    Doubles<T> p;
    if constexpr (sizeof(T) == 4)
        p = to_doubles(e) * widen(unscaled.factor);
    else
        p = unscaled(e);
    return narrow(scale * (total * p - to_doubles(term)));
}

}  // namespace
