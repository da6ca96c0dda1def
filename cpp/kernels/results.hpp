// From exponentials, scores and the statistics of their slices to results, a pack at a time. Rows and tiles share
// these.
#pragma once

#include "elements.hpp"
#include "statistics.hpp"

namespace {

// Of a pack of slices: minus the log-probability of the largest entry.
template <class T>
FASTSOFTMAX_INLINE Wide<T> log_total(const Measured<T>& m) {
    return log1p(m.rest / widen(m.top));
}

// e -> numerator * e / sum, by a reciprocal in two parts: as good as dividing, to 2^-46 (double 2^-100) before
// rounding.
template <class T>
struct Probability {
    Two<Pack<T>> factor;

    FASTSOFTMAX_INLINE explicit Probability(Two<Pack<T>> sum) : factor(reciprocal<T>(sum)) {}

    FASTSOFTMAX_INLINE Probability(const Probability& one, Doubles<T> numerator)
        : factor(in_two(widen(numerator) * widen(one.factor))) {}

    FASTSOFTMAX_INLINE Probability(const Probability& all, int i)
        : factor{spread(all.factor.high, i), spread(all.factor.low, i)} {}

    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> e) const {
        // Dekker's product loses its error where that is subnormal.
        if constexpr (sizeof(T) == 8 && !has_fma) {
            const Mask<T> large = less(broadcast(T(0x1p200)), max(factor.high, -factor.high));
            const Pack<T> raised = e * select(large, broadcast(T(1)), broadcast(T(0x1p300)));
            return fma(raised, factor.high, raised * factor.low) *
                   select(large, broadcast(T(1)), broadcast(T(0x1p-300)));
        }
        return fma(e, factor.high, e * factor.low);
    }

    // Less a term.
    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> e, Pack<T> term) const {
        return fma(e, factor.high, fma(e, factor.low, -term));
    }
};

// Slices whose largest entry has a probability above 1/2. What would cancel is computed apart for that entry; below,
// the general formulas are as good, and give equal entries equal results.
template <class T>
FASTSOFTMAX_INLINE Mask<T> dominant(const Measured<T>& m) {
    return less(narrow(m.rest), m.top.high);
}

// Probabilities from exponentials. Error: where the result's digits are nearly 2, that of the exponential, 1.06 ULP
// (double 1.15), of the sum, 0.15 (0.24), and the rounding: 1.71 ULP (double 1.89). Of an entry above 2/3, top / sum:
// at most 1, and 1 where nothing else counts.
template <class T>
struct Softmax {
    Probability<T> probability;
    Mask<T> dominates;
    Pack<T> top, largest;  // the largest exponential and its probability

    FASTSOFTMAX_INLINE explicit Softmax(const Measured<T>& m)
        : probability(m.all),
          dominates(less(broadcast(T(2)) * m.all.high, broadcast(T(3)) * m.top.high)),
          top(m.top.high) {
        const Two<Pack<T>> factor = probability.factor;
        largest = fma(top, factor.high, fma(top, factor.low, m.top.low * factor.high));
    }

    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> e) const {
        return select(equal(e, top) & dominates, largest, probability(e));
    }
};

// The log-probability of an entry that dominates: minus the log of 1 + rest / top.
template <class T>
struct Dominance {
    Mask<T> mask;
    Pack<T> log_probability;

    FASTSOFTMAX_INLINE Dominance(const Dominance& all, int i)
        : mask(spread(all.mask, i)), log_probability(spread(all.log_probability, i)) {}

    // `log`: that of the total.
    FASTSOFTMAX_INLINE Dominance(const Measured<T>& m, Wide<T> log)
        : mask(dominant(m)), log_probability(-narrow(log)) {}
};

// x -> (x - shift) / temperature - log-sum-exp. Error: 1.6 ULP, for entries that do not dominate.
template <class T>
struct LogProbability {
    Scaling<T> scale;
    Two<Pack<T>> offset;

    // `log`: that of the total.
    FASTSOFTMAX_INLINE LogProbability(const Measured<T>& m, Wide<T> log, double temperature)
        : scale(m.shift, temperature, broadcast(T(-far))),
          offset(sum_in_two(temperature == 1 ? widen(m.max) : widen(scale(m.max)), log)) {}

    FASTSOFTMAX_INLINE LogProbability(const LogProbability& all, int i)
        : scale(all.scale, i), offset{spread(all.offset.high, i), spread(all.offset.low, i)} {}

    // Temperature 1: no shift.
    FASTSOFTMAX_INLINE Pack<T> plain(Pack<T> x) const { return (x - offset.high) - offset.low; }

    FASTSOFTMAX_INLINE Pack<T> scaled(Pack<T> x) const {
        const Two<Pack<T>> y = scale(x);
        return (y.high - offset.high) + (y.low - offset.low);
    }

  private:
    // A quotient so low that the second part of it is of no weight, and so high that it does not overflow.
    static constexpr double far = sizeof(T) == 4 ? 0x1p20 : 0x1p60;
};

// log-sum-exp of each slice.
template <class T>
FASTSOFTMAX_ONCE Doubles<T> log_sum_exp(const Measured<T>& m) {
    const Mask<T> infinite = equal(max(m.max, -m.max), broadcast(T(infinity)));
    // An infinite maximum is the result, unless there is a NaN, which `rest` then holds.
    return select(infinite, to_doubles(m.max) + to_doubles(m.rest), to_doubles(widen(m.max) + log_total(m)));
}

// -log p of an entry with score x; `log`: that of the total.
template <class T>
FASTSOFTMAX_ONCE Doubles<T> minus_log_probability(const Measured<T>& m, Pack<T> x, Wide<T> log, double temperature) {
    const Temperature split(temperature);
    const Doubles<T> before = doubles<T>(split.before), after = doubles<T>(split.after), t = doubles<T>(split.rest);
    const Doubles<T> largest = to_doubles(m.max) * before, score = to_doubles(x) * before;
    const Doubles<T> quotient = (largest - score) * after / t;
    if constexpr (sizeof(T) == 4) {
        return quotient + log;
    } else {
        Double2 exact = two_sum(largest, -score);
        exact = {exact.high * after, exact.low * after};
        const Double2 sum = (temperature == 1 ? exact : exact / widen(t)) + log;
        return select(less(quotient, broadcast(infinity)), sum.high + sum.low, quotient + log.high);
    }
}

// The gradient at the target and at the largest entry, where total * p and what is subtracted from it would cancel.
template <class T>
struct GradientEnds {
    Pack<T> at_target, at_max;

    // `total`: weight of the whole slice; `target`, `largest`: what is subtracted there; all times `scale`.
    FASTSOFTMAX_INLINE GradientEnds(const Measured<T>& m, const Probability<T>& probability, Pack<T> target_exponential,
                                    Doubles<T> total, Doubles<T> target, Doubles<T> largest, Doubles<T> scale) {
        const Wide<T> inverse = widen(probability.factor);
        const Wide<T> p = widen(total) * (widen(target_exponential) * inverse);
        at_target = narrow(scale * to_doubles(p - widen(target)));
        // total p - largest = (total - largest) - total (1 - p), where 1 - p may be too small for a number that the
        // scale makes large again: a small sum is scaled first, a large one, which that might take too far, last.
        const Doubles<T> scaled = total * scale;
        const Wide<T> weight = widen(scaled);
        const Mask<T> large = less(broadcast(T(1)), narrow(m.rest));
        const Wide<T> first = select(large, inverse, weight), last = select(large, weight, inverse);
        Doubles<T> others;
        if constexpr (sizeof(T) == 4) {
            others = m.rest * first * last;
        } else {
            // What is subnormal in the end is rounded there, once.
            const Mask<T> may_rise = less(max(scaled, -scaled), broadcast(0x1p500));
            const Pack<double> one = broadcast(1.0),
                               raise = select(large, one, select(may_rise, broadcast(0x1p300), one));
            others = to_doubles(Double2{m.rest.high * raise, m.rest.low * raise} * first * last) / raise;
        }
        at_max = narrow(scale * (total - largest) - others);
    }
};

// The vector-Jacobian products of the transforms, from the sum over the slice: y (dy - sum) / temperature with y =
// softmax(x), (dy - exp(logp) sum) / temperature with logp = log_softmax(x). Where float is computed, in double,
// rounded once.
template <Operation op, class T>
struct TransformGradient {
    Doubles<T> high, low;
    double inverse;

    FASTSOFTMAX_INLINE TransformGradient(const Measured<T>& m, double temperature) : inverse(1 / temperature) {
        constexpr double unscale =
            op == fastsoftmax::softmax_grad ? 1 : 1 / ((sizeof(T) == 4 ? 0x1p64 : 0x1p200) * ExpConstants<T>::factor);
        const Doubles<T> factor = doubles<T>(unscale);
        if constexpr (sizeof(T) == 4) {
            high = m.rest * factor;
            low = doubles<T>(0);
        } else {
            high = m.rest.high * factor;
            low = m.rest.low * factor;
        }
    }

    FASTSOFTMAX_INLINE TransformGradient(const TransformGradient& all, int i)
        : high(spread(all.high, i)), low(spread(all.low, i)), inverse(all.inverse) {}

    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> x, Pack<T> dy) const {
        if constexpr (op == fastsoftmax::log_softmax_grad) {
            // No log-probability is above 0; what is passed as one may be, and must not leave the exponent's range.
            constexpr T highest = 40;
            const Exponential<T> exp(broadcast(T(0)));
            x = exp(-max(broadcast(-highest), -x)).rounded();
        }
        const Doubles<T> a = to_doubles(x), b = to_doubles(dy);
        Doubles<T> value;
        if constexpr (op == fastsoftmax::log_softmax_grad)
            value = fma(-a, high, b) - a * low;
        else
            value = a * ((b - high) - low);
        return narrow(inverse == 1 ? value : value * doubles<T>(inverse));
    }
};

}  // namespace
