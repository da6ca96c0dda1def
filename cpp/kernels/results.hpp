// From exponentials, scores and the statistics of their slices to results, a pack at a time. Rows and tiles share
// these.
#pragma once

#include "elements.hpp"
#include "statistics.hpp"

namespace {

// Of a pack of slices: minus the log-probability of the largest entry.
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

// e -> numerator * e / sum, by a reciprocal in two parts: as good as dividing, to 2^-46 (double 2^-100) before
// rounding.
template <class T>
struct Probability {
    Two<Pack<T>> factor;

    FASTSOFTMAX_INLINE explicit Probability(Two<Pack<T>> sum) : factor(reciprocal<T>(sum)) {}

    FASTSOFTMAX_INLINE Probability(const Probability& one, Two<Pack<T>> numerator) : factor(numerator * one.factor) {}

    FASTSOFTMAX_INLINE Probability(const Probability& all, int i)
        : factor{spread(all.factor.high, i), spread(all.factor.low, i)} {}

    FASTSOFTMAX_LONG Pack<T> operator()(Pack<T> e) const {
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
    FASTSOFTMAX_LONG Pack<T> operator()(Pack<T> e, Pack<T> term) const {
        return fma(e, factor.high, fma(e, factor.low, -term));
    }
};

// Slices whose largest entry has a probability above 1/2. What would cancel is computed apart for that entry; below,
// the general formulas are as good, and give equal entries equal results.
template <class T>
FASTSOFTMAX_INLINE Mask<T> dominant(const Measured<T>& m) {
    return less(m.rest.high, m.top.high);
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
    Pack<T> max;  // its score; NaN: none dominates
    Pack<T> log_probability;

    FASTSOFTMAX_INLINE Dominance(const Measured<T>& m, const LogTotal<T>& log)
        : max(select(dominant(m), m.max, broadcast(T(__builtin_nan(""))))), log_probability(-log.rounded()) {}

    FASTSOFTMAX_INLINE Dominance(const Dominance& all, int i)
        : max(spread(all.max, i)), log_probability(spread(all.log_probability, i)) {}

    // Of score x; `general`: what it is otherwise.
    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> x, Pack<T> general) const {
        return select(equal(x, max), log_probability, general);
    }
};

// x -> (x - shift) / temperature - log-sum-exp, one slice a lane; of lane i alone for rows. Error: 1.6 ULP, for entries
// that do not dominate.
template <class T>
struct PlainLogProbability {
    Two<Pack<T>> offset;

    FASTSOFTMAX_INLINE PlainLogProbability of_lane(int i) const {
        return {{spread(offset.high, i), spread(offset.low, i)}};
    }
    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> x) const { return (x - offset.high) - offset.low; }
};

template <class T>
struct ScaledLogProbability {
    Scaling<T> scale;
    Two<Pack<T>> offset;

    FASTSOFTMAX_INLINE ScaledLogProbability of_lane(int i) const {
        return {{scale, i}, {spread(offset.high, i), spread(offset.low, i)}};
    }
    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> x) const {
        const Two<Pack<T>> y = scale(x);
        return (y.high - offset.high) + (y.low - offset.low);
    }
};

// Calls body(log_probability) with the one of these that the slices need.
template <class T, class Body>
FASTSOFTMAX_INLINE void with_log_probability(const Measured<T>& m, const LogTotal<T>& log, double temperature,
                                             Body body) {
    // A quotient so low that the second part of it is of no weight, and so high that it does not overflow.
    constexpr T far = sizeof(T) == 4 ? T(0x1p20) : T(0x1p60);
    if (temperature == 1) {
        // No shift.
        body(PlainLogProbability<T>{Two<Pack<T>>{m.max, broadcast(T(0))} + log.in_two()});
    } else {
        const Scaling<T> scale(m.shift, temperature, broadcast(-far));
        body(ScaledLogProbability<T>{scale, scale(m.max) + log.in_two()});
    }
}

// log-sum-exp of each slice.
template <class T>
FASTSOFTMAX_ONCE Doubles<T> log_sum_exp(const Measured<T>& m) {
    const Mask<T> infinite = equal(max(m.max, -m.max), broadcast(T(infinity)));
    const Two<Pack<T>> finite = Two<Pack<T>>{m.max, broadcast(T(0))} + LogTotal<T>(m).in_two();
    // An infinite maximum is the result, unless there is a NaN, which `rest` then holds.
    return to_doubles(widen(Two<Pack<T>>{select(infinite, m.max + m.rest.high, finite.high),
                                         select(infinite, broadcast(T(0)), finite.low)}));
}

// log-sum-exp of slices from `first` of the run on, and the signs of the sums.
template <class T>
FASTSOFTMAX_INLINE void conclude_logsumexp(const Run& run, std::ptrdiff_t first, int count, const Measured<T>& m) {
    double* logs = run.value + first;
    store_doubles<T>(logs, log_sum_exp(m), count);
    if (run.sign)
        for (int i = 0; i < count; ++i)
            run.sign[first + i] = logs[i] != logs[i] ? __builtin_nan("") : logs[i] == -infinity ? 0 : 1;
}

// -log p of an entry with score x; `log`: that of the total.
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

// The gradient at the label and at the largest entry, where total * p and what is subtracted from it would cancel, of
// any scale.
template <class T>
struct GradientEnds {
    Pack<T> at_label, at_max;

    // `total`: weight of the whole slice; `label`, `largest`: what is subtracted there; all times `scale`.
    FASTSOFTMAX_INLINE GradientEnds(const Measured<T>& m, const Probability<T>& probability, Pack<T> label_exponential,
                                    Doubles<T> total, Doubles<T> label, Doubles<T> largest, Doubles<T> scale) {
        const Wide<T> inverse = widen(probability.factor);
        const Wide<T> p = widen(total) * (widen(label_exponential) * inverse);
        at_label = narrow(scale * to_doubles(p - widen(label)));
        // total p - largest = (total - largest) - total (1 - p), where 1 - p may be too small for a number that the
        // scale makes large again: a small sum is scaled first, a large one, which that might take too far, last.
        const Doubles<T> scaled = total * scale;
        const Wide<T> weight = widen(scaled);
        const Mask<T> large = less(broadcast(T(1)), m.rest.high);
        const Wide<T> first = select(large, inverse, weight), last = select(large, weight, inverse);
        Doubles<T> others;
        if constexpr (sizeof(T) == 4) {
            others = widen(m.rest) * first * last;
        } else {
            // What is subnormal in the end is rounded there, once.
            const Mask<T> may_rise = less(max(scaled, -scaled), broadcast(0x1p500));
            const Pack<double> one = broadcast(1.0),
                               raise = select(large, one, select(may_rise, broadcast(0x1p300), one));
            others = to_doubles(Wide<double>{m.rest.high * raise, m.rest.low * raise} * first * last) / raise;
        }
        at_max = narrow(scale * (total - largest) - others);
    }
};

// No log-probability is above 0; what is passed as one may be, and must not leave the exponent's range.
template <class T>
FASTSOFTMAX_INLINE Pack<T> bounded_log_probability(Pack<T> x) {
    constexpr T highest = 40;
    return min(broadcast(highest), x);
}

// The vector-Jacobian products of the transforms, from the sum over the slice: y (dy - sum) / temperature with y =
// softmax(x), (dy - exp(logp) sum) / temperature with logp = log_softmax(x). Where float is computed, in double,
// rounded once. Error of doubles: 3 ULP of |y| (|dy| + |sum|), of the three roundings up to 1 each where the result's
// digits are nearly 2 (2.22 seen, three classes of like size); 2 ULP of |dy| + exp(logp) |sum| (1.6 seen), 3 with a
// temperature.
template <Operation op, class T>
struct TransformGradient {
    Doubles<T> high, low;
    double temperature;
    Exponential<T, true> exp;

    FASTSOFTMAX_INLINE TransformGradient(const Measured<T>& m, double temperature)
        : temperature(temperature), exp(broadcast(T(0))) {
        constexpr double unscale =
            op == Operation::softmax_grad ? 1 : 1 / (sizeof(T) == 4 ? 0x1p64 : 0x1p200);  // 2^-bias
        if constexpr (sizeof(T) == 4) {
            high = m.sum * doubles<T>(unscale);
            low = doubles<T>(0);
        } else {
            Pack<double> factor = broadcast(unscale);
            if constexpr (op == Operation::log_softmax_grad) {
                // A sum that this would make subnormal stays as it is, and its exponentials go without the bias.
                const Mask<double> little = less(max(m.sum.high, -m.sum.high), broadcast(0x1p-500));
                factor = select(little, broadcast(1.0), factor);
                exp = Exponential<double, true>(
                    select(little, broadcast(double{ExpConstants<double>::exponent_bias}), broadcast(0.0)));
            }
            high = m.sum.high * factor;
            low = m.sum.low * factor;
        }
    }

    FASTSOFTMAX_INLINE TransformGradient(const TransformGradient& all, int i)
        : high(spread(all.high, i)), low(spread(all.low, i)), temperature(all.temperature), exp(all.exp, i) {}

    FASTSOFTMAX_LONG Pack<T> operator()(Pack<T> x, Pack<T> dy) const {
        if constexpr (op == Operation::log_softmax_grad) x = exp(bounded_log_probability(x)).rounded();
        const Doubles<T> a = to_doubles(x), b = to_doubles(dy);
        Doubles<T> value;
        if constexpr (op == Operation::log_softmax_grad)
            value = fma(-a, high, b) - a * low;
        else
            value = a * ((b - high) - low);
        return temperature == 1 ? narrow(value) : over_temperature(value);
    }

  private:
    // A reciprocal would cost doubles a rounding; in float's digits it does not show.
    FASTSOFTMAX_INLINE Pack<T> over_temperature(Doubles<T> value) const {
        if constexpr (sizeof(T) == 8)
            return value / broadcast(temperature);
        else
            return narrow(value * doubles<T>(1 / temperature));
    }
};

// A sum in two floats, to 2^-46, the first of them near `part` of it. That stays finite; an infinite sum is so in the
// second.
FASTSOFTMAX_INLINE Two<Pack<float>> finite_in_two(Wide<float> sum, double part) {
    const Doubles<float> largest = doubles<float>(0x1.fffffep127);
    const Pack<float> high = to_float(max(-largest, min(largest, sum * doubles<float>(part))));
    return {high, to_float(sum - to_double(high))};
}

// The same in float, at temperature 1.
template <Operation op>
struct PlainTransformGradient;

// y (dy - sum). Error: 2 ULP of |y| (|dy| + |sum|), where the result's digits are nearly 2: up to 1 of the difference,
// to which the low part has added no more than half of that, and the rounding.
template <>
struct PlainTransformGradient<Operation::softmax_grad> {
    Two<Pack<float>> sum;

    FASTSOFTMAX_INLINE explicit PlainTransformGradient(Wide<float> sum) : sum(in_two(sum)) {}

    FASTSOFTMAX_INLINE PlainTransformGradient(const PlainTransformGradient& all, int i)
        : sum{spread(all.sum.high, i), spread(all.sum.low, i)} {}

    FASTSOFTMAX_INLINE PlainTransformGradient(const PlainTransformGradient& all, Pack<std::int32_t> slices)
        : sum{permuted(all.sum.high, slices), permuted(all.sum.low, slices)} {}

    // Each argument is used once: compilers load what is used twice from memory twice.
    FASTSOFTMAX_INLINE Pack<float> operator()(Pack<float> y, Pack<float> dy) const {
        return y * ((dy - sum.low) - sum.high);
    }
};

// dy - exp(logp) sum. Error: 1.56 ULP of |dy| + exp(logp) |sum|: 1.06 of the exponential, where the result's digits are
// nearly 2 and dy is little, and the rounding; adding the low part to dy loses less than the exponential does of as
// much.
template <>
struct PlainTransformGradient<Operation::log_softmax_grad> {
    Exponential<float, true> exp;  // times a power of two
    Two<Pack<float>> minus;        // the sum, over the same

    FASTSOFTMAX_INLINE explicit PlainTransformGradient(Wide<float> sum) : PlainTransformGradient(sum, reference(sum)) {}

    FASTSOFTMAX_INLINE PlainTransformGradient(const PlainTransformGradient& all, int i)
        : exp(all.exp, i), minus{spread(all.minus.high, i), spread(all.minus.low, i)} {}

    FASTSOFTMAX_INLINE PlainTransformGradient(const PlainTransformGradient& all, Pack<std::int32_t> slices)
        : exp(all.exp, slices), minus{permuted(all.minus.high, slices), permuted(all.minus.low, slices)} {}

    FASTSOFTMAX_LONG Pack<float> operator()(Pack<float> logp, Pack<float> dy) const {
        const Pack<float> e = exp(bounded_log_probability(logp)).rounded();
        return fma(e, minus.high, fma(e, minus.low, dy));
    }

  private:
    static constexpr double bias = ExpConstants<float>::exponent_bias;

    // Exponentials that vanish are to be those whose product with the sum would: 2^26 over the sum is their power of
    // two, if not above 2^64, so that they do not overflow.
    FASTSOFTMAX_INLINE static Doubles<float> reference(Wide<float> sum) {
        const Doubles<float> most = doubles<float>(bias - 26);
        return most - max(doubles<float>(-149), min(most, exponent_of(sum)));
    }

    FASTSOFTMAX_INLINE PlainTransformGradient(Wide<float> total, Doubles<float> reference) : exp(to_float(reference)) {
        const Doubles<float> scale = power_of_two(reference - doubles<float>(bias));
        // Of one sign, so that dy with the low part overflows only where the result does.
        minus = finite_in_two(-total * scale, 1 - 0x1p-23);
    }
};

FASTSOFTMAX_INLINE bool all_below(Pack<double> size, double limit) {
    return lane_bits(less(size, broadcast(limit))) == (1u << Pack<double>::lanes) - 1;
}

// From which sum on those formulas fall short: dy - sum overflows, or exponentials vanish whose product with the sum,
// over the temperature, does not.
template <Operation op, class T>
constexpr double far_from(double temperature) {
    if (op == Operation::softmax_grad) return sizeof(T) == 4 ? 0x1p100 : 0x1p960;
    return (sizeof(T) == 4 ? 0x1p38 : 0x1p140) * (temperature < 1 ? temperature : 1);
}

template <Operation op, class T>
FASTSOFTMAX_INLINE bool any_far(Wide<T> sum, double temperature) {
    // Double holds all of this that is float.
    if (op == Operation::softmax_grad && sizeof(T) == 4 && temperature != 1) return false;
    const double least = far_from<op, T>(temperature);
    // A NaN, which makes all of its slice one, may be passed over.
    if constexpr (sizeof(T) == 4)
        return !all_below(max(max(part(sum, 0), -part(sum, 0)), max(part(sum, 1), -part(sum, 1))), least);
    else
        return !all_below(max(sum.high, -sum.high), least);
}

// The same for slices with such sums; other slices beside them keep their bits.
template <Operation op, class T>
struct FarTransformGradient;

// What is computed of a part, 1 / `back`, over a temperature.
FASTSOFTMAX_INLINE Pack<double> over_temperature(Pack<double> value, Pack<double> back, double temperature) {
    if (temperature < 4) return value / broadcast(temperature) * back;
    return value / (broadcast(temperature) / back);
}

// 4 y (dy / 4 - sum / 4): where dy - sum overflows, the result, of a probability y, need not.
template <class T>
struct FarTransformGradient<Operation::softmax_grad, T> {
    Pack<T> scale, back;
    Two<Pack<T>> sum;  // scaled
    double temperature;

    FASTSOFTMAX_INLINE FarTransformGradient(const Measured<T>& m, double temperature) : temperature(temperature) {
        const Pack<T> size = max(narrow(m.sum), -narrow(m.sum)), one = broadcast(T(1));
        const Mask<T> near =
            less(size, broadcast(sizeof(T) == 4 ? T(0x1p100) : T(0x1p960))) & equal(m.reference, broadcast(T(0)));
        scale = select(near, one, broadcast(T(0.25)));
        back = select(near, one, broadcast(T(4)));
        if constexpr (sizeof(T) == 4) {
            sum = finite_in_two(m.sum * to_doubles(scale), 1);
        } else {
            const Pack<double> unit = scale * power_of_two(m.reference);
            sum = {m.sum.high * unit, m.sum.low * unit};
        }
    }

    FASTSOFTMAX_INLINE FarTransformGradient(const FarTransformGradient& all, int i)
        : scale(spread(all.scale, i)),
          back(spread(all.back, i)),
          sum{spread(all.sum.high, i), spread(all.sum.low, i)},
          temperature(all.temperature) {}

    FASTSOFTMAX_LONG Pack<T> operator()(Pack<T> y, Pack<T> dy) const {
        if constexpr (sizeof(T) == 4) {
            return y * back * ((dy * scale - sum.low) - sum.high);
        } else {
            const Pack<double> value = y * ((dy * scale - sum.high) - sum.low);
            return temperature == 1 ? value * back : over_temperature(value, back, temperature);
        }
    }
};

// Where exponentials vanish, dy - exp(logp) sum with the exponent apart; where what is subtracted, or the difference,
// overflows, of a part of both.
template <class T>
struct FarTransformGradient<Operation::log_softmax_grad, T> {
    static constexpr auto op = Operation::log_softmax_grad;
    TransformGradient<op, T> gradient;
    Wide<T> sum;
    Pack<T> reference;
    Mask<T> far;

    FASTSOFTMAX_INLINE FarTransformGradient(const Measured<T>& m, double temperature)
        : gradient(m, temperature), sum(m.sum), reference(m.reference) {
        const Doubles<T> least = doubles<T>(far_from<op, T>(temperature));
        if constexpr (sizeof(T) == 4) {
            far = to_int32(less(least, max(sum, -sum)) & finite(sum));
        } else {
            far = (less(least, max(sum.high, -sum.high)) & finite(sum.high)) | less(broadcast(0.0), m.reference);
            gradient.high = gradient.high * power_of_two(m.reference);
            gradient.low = gradient.low * power_of_two(m.reference);
        }
    }

    FASTSOFTMAX_INLINE FarTransformGradient(const FarTransformGradient& all, int i)
        : gradient(all.gradient, i), reference(spread(all.reference, i)), far(spread(all.far, i)) {
        if constexpr (sizeof(T) == 4)
            sum = spread(all.sum, i);
        else
            sum = {spread(all.sum.high, i), spread(all.sum.low, i)};
    }

    FASTSOFTMAX_LONG Pack<T> operator()(Pack<T> logp, Pack<T> dy) const {
        const Pack<T> near = nearly(logp, dy);
        const Mask<T> vanishing = far & less(logp, broadcast(T(sizeof(T) == 4 ? -130 : -840)));
        if (lane_bits(vanishing) == 0) return near;
        const Pack<T> value = farther(logp, dy);
        // Of what vanishes all the same, the sign is that of the rest.
        return select(vanishing & less(broadcast(T(0)), max(value, -value)), value, near);
    }

  private:
    FASTSOFTMAX_INLINE Pack<float> nearly(Pack<float> logp, Pack<float> dy) const {
        if (gradient.temperature == 1) return PlainTransformGradient<op>(sum)(logp, dy);
        return gradient(logp, dy);
    }

    FASTSOFTMAX_INLINE Pack<double> nearly(Pack<double> logp, Pack<double> dy) const {
        const Pack<double> e = gradient.exp(bounded_log_probability(logp)).rounded();
        // Of numbers as small as this a part might lose digits.
        const Pack<double> one = broadcast(1.0), little = broadcast(0x1p-900), subtracted = e * gradient.high;
        const Mask<double> small = less(max(dy, -dy), little) & less(max(subtracted, -subtracted), little);
        const Mask<double> in_unit = less(broadcast(0.0), reference);
        const Pack<double> part = select(in_unit, broadcast(0x1p-66), broadcast(0.25));
        const Pack<double> scale = select(far, select(small, one, part), one), back = one / scale;
        const Pack<double> value = fma(-e, gradient.high * scale, dy * scale) - e * (gradient.low * scale);
        return gradient.temperature == 1 ? value * back : over_temperature(value, back, gradient.temperature);
    }

    // exp(logp) sum 2^raise, logp not below -4000.
    FASTSOFTMAX_INLINE static Pack<double> product(Pack<double> logp, Pack<double> sum, Pack<double> raise) {
        logp = max(broadcast(-4000.0), logp);
        const Pack<double> n = round_to_integer(logp * broadcast(ExpConstants<double>::log2e));
        // Half of the sum, since the exponential's mantissa may be above 1.
        const Pack<double> mantissa = exp_reduced(widen(logp), n).high * (sum * broadcast(0.5));
        return times_power(mantissa, n + raise + broadcast(1.0));
    }

    FASTSOFTMAX_INLINE Pack<float> farther(Pack<float> logp, Pack<float> dy) const {
        const auto half = [&](Pack<double> x, Pack<double> d, Pack<double> s) __attribute__((always_inline)) {
            return (d - product(x, s, broadcast(0.0))) / broadcast(gradient.temperature);
        };
        const Doubles<float> x = to_double(logp), d = to_double(dy);
        return to_float(joined(half(part(x, 0), part(d, 0), part(sum, 0)), half(part(x, 1), part(d, 1), part(sum, 1))));
    }

    // Both terms are raised by 2^1060, so that neither is subnormal before it is divided by the temperature. Beside a
    // larger dy the other term is nothing.
    FASTSOFTMAX_INLINE Pack<double> farther(Pack<double> logp, Pack<double> dy) const {
        const Pack<double> raise = broadcast(1060.0);
        const Pack<double> difference = times_power(dy, raise) - product(logp, sum.high, reference + raise);
        const Pack<double> whole = broadcast(gradient.temperature);
        const Mask<double> tiny = less(whole, broadcast(0x1p-1000));
        const Pack<double> normal = select(tiny, whole * broadcast(0x1p100), whole);
        const Pack<double> exponent = exponent_of(normal);
        const Pack<double> quotient = difference / times_power(normal, -exponent);
        const Pack<double> lowered = select(tiny, broadcast(100.0), broadcast(0.0)) - exponent - raise;
        const Pack<double> value = times_power(quotient, lowered);
        return select(less(max(dy, -dy), broadcast(0x1p-60)), value, broadcast(0.0));
    }
};

// Calls body(gradient) with the one of these that is needed.
template <Operation op, class T, class Body>
FASTSOFTMAX_INLINE void with_transform_gradient(const Measured<T>& m, double temperature, Body body) {
    bool far = any_far<op, T>(m.sum, temperature);
    if constexpr (sizeof(T) == 8) far = far || fold_max(m.reference) > 0;
    if (far) return body(FarTransformGradient<op, T>(m, temperature));
    if constexpr (sizeof(T) == 4)
        if (temperature == 1) return body(PlainTransformGradient<op>(m.sum));
    body(TransformGradient<op, T>(m, temperature));
}

}  // namespace
