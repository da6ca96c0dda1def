// From exponentials, scores and the statistics of their slices to results, a pack at a time. Rows and tiles share
// these.
#pragma once

#include "elements.hpp"
#include "statistics.hpp"

namespace {

// One double a slice, as the groups have them.
template <class T>
struct PerSlice {
    Pack<double> group[groups<T>];

    // The same for every lane.
    FASTSOFTMAX_INLINE static PerSlice all(double value) {
        PerSlice p;
        for (auto& g : p.group) g = broadcast(value);
        return p;
    }
    FASTSOFTMAX_INLINE double at(int i) const { return lane(group[i / Pack<double>::lanes], i % Pack<double>::lanes); }
    // Of `count` neighbouring slices; 0 in the lanes beyond.
    FASTSOFTMAX_ONCE static PerSlice of(const double* values, std::ptrdiff_t count) {
        double padded[Pack<T>::lanes] = {};
        for (std::ptrdiff_t i = 0; i < count; ++i) padded[i] = values[i];
        PerSlice p;
        for (int i = 0; i < groups<T>; ++i) p.group[i] = load_pack<double>(padded + i * Pack<double>::lanes);
        return p;
    }
};

template <class T>
FASTSOFTMAX_INLINE Pack<T> rounded(const PerSlice<T>& values) {
    if constexpr (sizeof(T) == 4)
        return to_float({values.group[0], values.group[1]});
    else
        return values.group[0];
}

template <class T>
FASTSOFTMAX_INLINE PerSlice<T> exactly(Pack<T> values) {
    if constexpr (sizeof(T) == 4) {
        const DoublePair d = to_double(values);
        return {{d.low, d.high}};
    } else {
        return {{values}};
    }
}

// Exponentials of scores, one slice a lane; of lane i alone for rows.
template <class T>
struct PlainExp {
    Exponential<T> exp;
    FASTSOFTMAX_INLINE PlainExp of_lane(int i) const { return {{exp, i}}; }
    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> x) const { return exp(x); }
    FASTSOFTMAX_INLINE Two<Pack<T>> exactly(Pack<T> x) const { return exp.exactly(x); }
};

template <class T>
struct ScaledExp {
    Exponential<T> exp;
    Scaling<T> scale;
    FASTSOFTMAX_INLINE ScaledExp of_lane(int i) const { return {{exp, i}, {scale, i}}; }
    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> x) const {
        const Two<Pack<T>> y = scale(x);
        return exp(y.high, y.low);
    }
    FASTSOFTMAX_INLINE Two<Pack<T>> exactly(Pack<T> x) const {
        const Two<Pack<T>> y = scale(x);
        return exp.exactly(y.high, y.low);
    }
};

// One of these in two parts.
template <class Exp>
struct Exactly {
    Exp exp;
    template <class V>
    FASTSOFTMAX_INLINE Two<V> operator()(V x) const {
        return exp.exactly(x);
    }
};

// Calls body(exp) with the one of these that the slices need.
template <class T, class Body>
FASTSOFTMAX_INLINE void with_exponential(const Groups<T>& g, double temperature, Body body) {
    const Exponential<T> exp = exponential(g);
    if (temperature == 1 && !any_shift(g))
        body(PlainExp<T>{exp});
    else
        body(ScaledExp<T>{exp, scaling(g, exp, temperature)});
}

// Whether both parts of a factor are normal numbers of T, with room for what they multiply, or it is 0.
template <class T>
FASTSOFTMAX_INLINE bool fits(double x) {
    constexpr double least = sizeof(T) == 4 ? 0x1p-100 : 0x1p-900, most = sizeof(T) == 4 ? 0x1p100 : 0x1p830;
    const double size = x < 0 ? -x : x;
    return (least < size && size < most) || size == 0;
}

// e -> numerator * e / sum, by a reciprocal in two parts: as good as dividing, to 2^-46 (double 2^-100) before
// rounding.
template <class T>
struct Probability {
    Two<Pack<T>> factor;

    FASTSOFTMAX_INLINE explicit Probability(const Groups<T>& g) {
        factor = parts(g, [](const Group& s)
                              __attribute__((always_inline)) { return over_total<T>(broadcast(1.0), s.top, s.rest); });
    }
    FASTSOFTMAX_ONCE Probability(const Groups<T>& g, const PerSlice<T>& numerator) {
        Double2 over[groups<T>];
        for (int i = 0; i < groups<T>; ++i)
            over[i] = over_total<T>(numerator.group[i], g.group[i].top, g.group[i].rest);
        if constexpr (sizeof(T) == 4) {
            factor.high = to_float({over[0].high, over[1].high});
            const DoublePair kept = to_double(factor.high);
            factor.low = to_float({over[0].high - kept.low, over[1].high - kept.high});
        } else {
            factor = {over[0].high, over[0].low};
        }
    }
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

// Slices whose largest entry has a probability above 2/3. What would cancel is computed apart for that entry; below,
// the general formulas are as good, and give equal entries equal results.
template <class T>
FASTSOFTMAX_INLINE Mask<T> dominant(const Groups<T>& g) {
    const Pack<T> excess = part(
        g, [](const Group& s) __attribute__((always_inline)) { return s.rest.high - broadcast(0.5) * s.top.high; });
    return less(excess, broadcast(T(0)));
}

// The log-probability of an entry that dominates: minus the log of 1 + rest / top.
template <class T>
struct Dominance {
    Mask<T> mask;
    Pack<T> log_probability;

    FASTSOFTMAX_INLINE Dominance(const Dominance& all, int i)
        : mask(spread(all.mask, i)), log_probability(spread(all.log_probability, i)) {}

    FASTSOFTMAX_ONCE explicit Dominance(const Groups<T>& g) : mask(dominant(g)) {
        log_probability = -part(g, [](const Group& s) __attribute__((always_inline)) {
            const Double2 log = log_total<T>(s.top, s.rest);
            return log.high + log.low;
        });
    }
};

// Probabilities from exponentials. Error: 1.6 ULP. Of an entry that dominates, top / (top + rest): at most 1, and 1
// where nothing else counts.
template <class T>
struct Softmax {
    Probability<T> probability;
    Mask<T> mask;
    bool any_dominates;
    Pack<T> largest_exponential, largest_probability;

    FASTSOFTMAX_ONCE Softmax(const Groups<T>& g, double temperature) : probability(g), mask(dominant(g)) {
        any_dominates = lane_bits(mask) != 0;
        if (!any_dominates) return;
        const Pack<T> max = part(g, [](const Group& s) __attribute__((always_inline)) { return s.max; });
        with_exponential(g, temperature,
                         [&](auto exp) __attribute__((always_inline)) { largest_exponential = exp(max); });
        largest_probability = part(g, [](const Group& s) __attribute__((always_inline)) {
            const Double2 over = over_total<T>(broadcast(1.0), s.top, s.rest);
            if constexpr (sizeof(T) == 4) return s.top.high * over.high;
            const Double2 p = multiply(s.top, over);
            return p.high + p.low;
        });
    }
    FASTSOFTMAX_INLINE Softmax(const Softmax& all, int i)
        : probability(all.probability, i),
          mask(spread(all.mask, i)),
          any_dominates(lane(all.mask, i) != 0),
          largest_exponential(spread(all.largest_exponential, i)),
          largest_probability(spread(all.largest_probability, i)) {}

    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> e) const {
        const Pack<T> p = probability(e);
        return any_dominates ? select(equal(e, largest_exponential) & mask, largest_probability, p) : p;
    }
};

// x -> (x - shift) / temperature - log-sum-exp. Error: 1.6 ULP, for entries that do not dominate.
template <class T>
struct LogProbability {
    Scaling<T> scale;
    Two<Pack<T>> offset;

    FASTSOFTMAX_ONCE LogProbability(const Groups<T>& g, double temperature)
        : scale(shift(g), temperature, broadcast(T(-far))), offset(log_offset(g, temperature, temperature != 1)) {}

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
FASTSOFTMAX_ONCE Pack<double> log_sum_exp(const Group& g) {
    const Double2 log = log_total<T>(g.top, g.rest);
    const Double2 sum = two_sum(g.max, log.high);
    const Pack<double> finite = sum.high + (sum.low + log.low);
    const Mask<double> none = equal(g.max, broadcast(-infinity)), infinite = equal(g.max, broadcast(infinity));
    // An infinite maximum is the result, unless there is a NaN, which `rest` then holds.
    return select(none | infinite, g.max + g.rest.high, finite);
}

// -log p of an entry with score x.
template <class T>
FASTSOFTMAX_ONCE Pack<double> minus_log_probability(const Group& g, Pack<double> x, double temperature) {
    const Double2 log = log_total<T>(g.top, g.rest);
    const Temperature split(temperature);
    const Pack<double> before = broadcast(split.before), after = broadcast(split.after), t = broadcast(split.rest);
    const Pack<double> quotient = (g.max * before - x * before) * after / t;
    if constexpr (sizeof(T) == 4) {
        return quotient + log.high;
    } else {
        Double2 exact = two_sum(g.max * before, -(x * before));
        exact = {exact.high * after, exact.low * after};
        const Double2 sum = add(temperature == 1 ? exact : divide(exact, {t, broadcast(0.0)}), log);
        return select(less(quotient, broadcast(infinity)), sum.high + sum.low, quotient + log.high);
    }
}

// What the gradient subtracts from total * p, at the target and at the largest entry, where that would cancel.
template <class T>
struct GradientEnds {
    PerSlice<T> at_target, at_max;

    // `total`: weight of the whole slice; `target`, `largest`: what is subtracted there; all times `scale`.
    FASTSOFTMAX_ONCE GradientEnds(const Groups<T>& g, Pack<T> target_exponential, const PerSlice<T>& total,
                                  const PerSlice<T>& target, const PerSlice<T>& largest, const PerSlice<T>& scale) {
        const PerSlice<T> e = exactly(target_exponential);
        for (int i = 0; i < groups<T>; ++i) {
            const Group& s = g.group[i];
            const Double2 over = over_total<T>(total.group[i], s.top, s.rest);
            at_target.group[i] = scale.group[i] * (fma(e.group[i], over.high, e.group[i] * over.low) - target.group[i]);
            // total p - largest = (total - largest) - total (1 - p)
            const Double2 others = sizeof(T) == 4 ? Double2{s.rest.high / (s.top.high + s.rest.high), broadcast(0.0)}
                                                  : divide(s.rest, add(s.top, s.rest));
            const Pack<double> excess = total.group[i] - largest.group[i];
            at_max.group[i] = scale.group[i] * (excess - fma(total.group[i], others.high, total.group[i] * others.low));
        }
    }
};

// The vector-Jacobian products of the transforms, from the sum over the slice: y (dy - sum) / temperature with y =
// softmax(x), (dy - exp(logp) sum) / temperature with logp = log_softmax(x). Where float is computed, in double,
// rounded once.
template <Operation op, class T>
struct TransformGradient {
    PerSlice<T> high, low;
    double inverse;

    FASTSOFTMAX_INLINE TransformGradient(const Groups<T>& g, double temperature) : inverse(1 / temperature) {
        constexpr double unscale = op == fastsoftmax::softmax_grad ? 1 : sizeof(T) == 4 ? 0x1p-64 : 0x1p-200;
        for (int i = 0; i < groups<T>; ++i) {
            high.group[i] = g.group[i].rest.high * broadcast(unscale);
            low.group[i] = g.group[i].rest.low * broadcast(unscale);
        }
    }

    FASTSOFTMAX_INLINE TransformGradient(const TransformGradient& all, int i)
        : high(PerSlice<T>::all(all.high.at(i))), low(PerSlice<T>::all(all.low.at(i))), inverse(all.inverse) {}

    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> x, Pack<T> dy) const {
        if constexpr (op == fastsoftmax::log_softmax_grad) {
            // No log-probability is above 0; what is passed as one may be, and must not leave the exponent's range.
            constexpr T highest = 40;
            const Exponential<T> exp(broadcast(T(0)));
            x = exp(-max(broadcast(-highest), -x));
        }
        const PerSlice<T> a = exactly(x), b = exactly(dy);
        PerSlice<T> value;
        for (int i = 0; i < groups<T>; ++i) {
            if constexpr (op == fastsoftmax::log_softmax_grad)
                value.group[i] = fma(-a.group[i], high.group[i], b.group[i]) - a.group[i] * low.group[i];
            else
                value.group[i] = a.group[i] * ((b.group[i] - high.group[i]) - low.group[i]);
            if (inverse != 1) value.group[i] = value.group[i] * broadcast(inverse);
        }
        return rounded(value);
    }
};

}  // namespace
