// The gradients of the transforms with respect to their input. They need one sum over each slice: of y dy for softmax,
// of dy for log_softmax. Rows and tiles share this code, so that both get the same bits.
#pragma once

#include "../statistics.hpp"

namespace {

// The sums of slices, one a lane, in units of 2^reference.
template <class T>
struct GradientSums {
    Wide<T> sum;
    Pack<T> reference;
};

template <class T>
inline Statistics statistics_of(const GradientSums<T>& sums, int i) {
    Statistics s = {};
    s.reference = static_cast<double>(lane(sums.reference, i));
    get_lane<T>(s.rest, sums.sum, i);
    return s;
}

template <class T>
inline GradientSums<T> sums_of(const Statistics* slices, int count) {
    constexpr int lanes = Pack<T>::lanes;
    T reference[lanes] = {};
    double rest[2][lanes] = {};
    for (int i = 0; i < count; ++i) {
        reference[i] = static_cast<T>(slices[i].reference);
        for (int k = 0; k < 2; ++k) rest[k][i] = slices[i].rest[k];
    }
    return {load_wide<T>(rest[0], rest[1]), load_pack<T>(reference)};
}

// The exponent of a: floor(log2|a|) if a is normal, -1023 if it is 0, 1024 if it is not finite.
template <int packs>
FASTSOFTMAX_INLINE Pack<double, packs> exponent_of(Pack<double, packs> a) {
    using Bits = Pack<std::int64_t, packs>;
    const Bits field = shift_right(bit_cast<std::int64_t>(a), 52) & broadcast<std::int64_t, packs>(0x7ff);
    return bit_cast<double>(field | bit_cast<std::int64_t>(broadcast<double, packs>(0x1p52))) -
           broadcast<double, packs>(0x1p52 + 1023);
}

// If a sum of finite numbers is not finite, it is summed anew in units of 2^`far_unit`, where it cannot overflow.
constexpr double far_unit = 64;

template <int packs>
FASTSOFTMAX_INLINE Mask<double, packs> finite(Pack<double, packs> a) {
    return equal(a - a, broadcast<double, packs>(0));
}
FASTSOFTMAX_INLINE bool all_finite(Pack<double> a) { return lane_bits(finite(a)) == (1u << Pack<double>::lanes) - 1; }
FASTSOFTMAX_INLINE bool all_finite(Wide<float> a) { return all_finite(part(a, 0)) && all_finite(part(a, 1)); }
FASTSOFTMAX_INLINE bool all_finite(Wide<double> a) { return all_finite(a.high); }

// Converts sums, one slice a lane, from units of 2^`reference` to units of 2^`unit`.
FASTSOFTMAX_INLINE Wide<double> in_unit(Wide<double> sum, double reference, double unit) {
    const Pack<double> scale = power_of_two(broadcast(reference - unit));
    return {sum.high * scale, sum.low * scale};
}

// Replaces sums that are not finite by `far`, the same sums computed without overflow.
FASTSOFTMAX_INLINE void set_far_sums(GradientSums<float>& sums, Wide<float> far) { sums.sum = far; }
FASTSOFTMAX_INLINE void set_far_sums(GradientSums<double>& sums, Wide<double> far) {
    const Mask<double> mended = select(finite(sums.sum.high), broadcast<std::int64_t>(0), finite(far.high));
    sums.sum = select(mended, far, sums.sum);
    sums.reference = select(mended, broadcast(far_unit), sums.reference);
}

// Adds the sum of a block of a slice to that of the blocks before it.
FASTSOFTMAX_ONCE void merge_sums(const Run&, Statistics& left, const Statistics& right) {
    double unit = left.reference < right.reference ? right.reference : left.reference;
    const auto sum = [&](double in) {
        return in_unit(broadcast2(left.rest), left.reference, in) +
               in_unit(broadcast2(right.rest), right.reference, in);
    };
    Wide<double> total = sum(unit);
    if (unit == 0 && !all_finite(total.high)) {
        // The error of an infinite sum is NaN; the sum itself is right.
        total = widen(broadcast(left.rest[0] + right.rest[0]));
        const Wide<double> far = sum(far_unit);
        if (all_finite(far.high)) {
            unit = far_unit;
            total = far;
        }
    }
    set(left.rest, total);
    left.reference = unit;
}

// Partial sums of the terms: y dy, or dy. With `far` they cannot overflow; those of doubles are then in units of
// 2^far_unit.
template <Operation op, class E, bool far = false>
class TermSums {
  public:
    FASTSOFTMAX_INLINE void add(const E* x, const E* dy) { add_terms(load_step(x), load_step(dy)); }

    // Adds the first `count` elements of a step.
    FASTSOFTMAX_INLINE void add(const E* x, const E* dy, std::ptrdiff_t count) {
        add_terms(load_first_of_step(x, count), load_first_of_step(dy, count));
    }

    FASTSOFTMAX_INLINE Wide<Compute<E>> total() const { return sum_; }

  private:
    Wide<Compute<E>> sum_ = widen(broadcast(Compute<E>(0)));

    FASTSOFTMAX_INLINE void add_terms(Pack<double> x, Pack<double> dy) {
        if constexpr (far) dy = dy * power_of_two(broadcast(-far_unit));
        if constexpr (op == Operation::softmax_grad)
            add_product_to(sum_, x, dy);
        else
            add_to(sum_, dy);
    }
    // For float16, whose products are exact in float.
    FASTSOFTMAX_INLINE void add_terms(Pack<float> x, Pack<float> dy) {
        add_to(sum_, to_doubles(op == Operation::softmax_grad ? x * dy : dy));
    }
};

// Class c goes to partial sum c mod 16. The sums of even and of odd classes are in packs of their own.
template <Operation op, bool far>
class TermSums<op, BFloat16, far> {
  public:
    FASTSOFTMAX_INLINE void add(const BFloat16* x, const BFloat16* dy) { add_terms(load_step(x), load_step(dy)); }
    FASTSOFTMAX_INLINE void add(const BFloat16* x, const BFloat16* dy, std::ptrdiff_t count) {
        add_terms(load_first_of_step(x, count), load_first_of_step(dy, count));
    }

    FASTSOFTMAX_INLINE Wide<float> total() const {
        const Wide<float> sum = interleaved(sums_[0], sums_[1]);
        return in_float ? sum * doubles<float>(1 / double{scale}) : sum;
    }

  private:
    static constexpr bool in_float = op == Operation::softmax_grad && !far;
    // A product in float is exact if it does not overflow and is a multiple of 2^-149. With y multiplied by this, all
    // products are such multiples.
    static constexpr float scale = 0x1p117f;
    Pack<double> sums_[2] = {broadcast(0.0), broadcast(0.0)};

    FASTSOFTMAX_INLINE void add_terms(Step<BFloat16> x, Step<BFloat16> dy) {
        unrolled<2>([&](int k) __attribute__((always_inline)) {
            const Pack<float> a = part(x, k), b = part(dy, k);
            Doubles<float> terms;
            if constexpr (op == Operation::log_softmax_grad)
                terms = to_doubles(b);
            else if constexpr (in_float)
                terms = to_doubles(a * broadcast(scale) * b);
            else
                terms = to_doubles(a) * to_doubles(b);
            sums_[k] = (sums_[k] + part(terms, 0)) + part(terms, 1);
        });
    }
};

// In spans of four floats on every target, because Zen 4 converts to 32 bytes twice in less time than to 64 bytes once.
template <Operation op>
class TermSums<op, float> {
  public:
    FASTSOFTMAX_INLINE void add(const float* x, const float* dy) {
        unrolled<4>([&](int k) __attribute__((always_inline)) { add_span(k, x + 4 * k, dy + 4 * k); });
    }

    // Adds the first `count` elements of a pack.
    FASTSOFTMAX_INLINE void add(const float* x, const float* dy, std::ptrdiff_t count) {
        for (int k = 0; k < 4; ++k, count -= 4) {
            if (count <= 0) return;
            if (count < 4)
                add_first_of_span(k, x + 4 * k, dy + 4 * k, count);
            else
                add_span(k, x + 4 * k, dy + 4 * k);
        }
    }

    // Adds a row of `spans` spans, the last of which has `last` numbers.
    template <int spans>
    FASTSOFTMAX_INLINE void add_row(const float* x, const float* dy, std::ptrdiff_t last) {
        constexpr int k = spans - 1;
        unrolled<k>([&](int i) __attribute__((always_inline)) { add_span(i % 4, x + 4 * i, dy + 4 * i); });
        add_first_of_span(k % 4, x + 4 * k, dy + 4 * k, last);
    }

    FASTSOFTMAX_INLINE Wide<float> total() const { return joined(sums_); }

  private:
    Four sums_[4] = {};

    FASTSOFTMAX_INLINE void add_span(int k, const float* x, const float* dy) {
        if constexpr (op == Operation::softmax_grad)
            sums_[k] = multiply_add(load_four(x), load_four(dy), sums_[k]);
        else
            sums_[k] += load_four(dy);
    }
    FASTSOFTMAX_INLINE void add_first_of_span(int k, const float* x, const float* dy, std::ptrdiff_t count) {
        if constexpr (op == Operation::softmax_grad)
            sums_[k] = multiply_add(load_first_of_four(x, count), load_first_of_four(dy, count), sums_[k]);
        else
            sums_[k] += load_first_of_four(dy, count);
    }
};

// No log-probability is above 0, but the numbers that a caller passes may be. Bounded, they stay in the exponent's
// range.
template <class T>
FASTSOFTMAX_INLINE Pack<T> bounded_log_probability(Pack<T> x) {
    constexpr T highest = 40;
    return min(broadcast(highest), x);
}

// The vector-Jacobian products of the transforms, from the sum over the slice: y (dy - sum) / temperature with y =
// softmax(x), (dy - exp(logp) sum) / temperature with logp = log_softmax(x). Floats are computed in double and rounded
// once. Error of doubles, for softmax: 3 ULP of |y| (|dy| + |sum|), up to 1 from each of three roundings where the
// significand of this number is nearly 2 (2.22 seen, with three classes of similar size); for log_softmax: 2 ULP of
// |dy| + exp(logp) |sum| (1.6 seen), 3 with a temperature.
template <Operation op, class T>
struct TransformGradient {
    Doubles<T> high, low;
    double temperature;
    Exponential<T, true> exp;

    FASTSOFTMAX_INLINE TransformGradient(const GradientSums<T>& sums, double temperature_)
        : temperature(temperature_), exp(broadcast(T(0))) {
        constexpr double unscale =
            op == Operation::softmax_grad ? 1 : 1 / (sizeof(T) == 4 ? 0x1p64 : 0x1p200);  // 2^-bias
        if constexpr (sizeof(T) == 4) {
            high = sums.sum * doubles<T>(unscale);
            low = doubles<T>(0);
        } else {
            Pack<double> factor = broadcast(unscale);
            if constexpr (op == Operation::log_softmax_grad) {
                // Small sums, which this factor could make subnormal, stay as they are; their exponentials have no
                // bias.
                const Mask<double> little = less(max(sums.sum.high, -sums.sum.high), broadcast(0x1p-500));
                factor = select(little, broadcast(1.0), factor);
                exp = Exponential<double, true>(
                    select(little, broadcast(double{ExpConstants<double>::exponent_bias}), broadcast(0.0)));
            }
            high = sums.sum.high * factor;
            low = sums.sum.low * factor;
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
    // Multiplying by the reciprocal would cost doubles a rounding; after rounding to float it does not show.
    FASTSOFTMAX_INLINE Pack<T> over_temperature(Doubles<T> value) const {
        if constexpr (sizeof(T) == 8)
            return value / broadcast(temperature);
        else
            return narrow(value * doubles<T>(1 / temperature));
    }
};

// A sum as two floats, to 2^-46. The first is near `part` times the sum and always finite: if the sum is infinite, so
// is the second.
FASTSOFTMAX_INLINE Two<Pack<float>> finite_in_two(Wide<float> sum, double part) {
    const Doubles<float> largest = doubles<float>(0x1.fffffep127);
    const Pack<float> high = to_float(max(-largest, min(largest, sum * doubles<float>(part))));
    return {high, to_float(sum - to_double(high))};
}

// The vector-Jacobian products computed in float, at temperature 1.
template <Operation op>
struct PlainTransformGradient;

// y (dy - sum). Error: 2 ULP of |y| (|dy| + |sum|). Where the significand of this number is nearly 2, up to 1 comes
// from subtracting sum.high; up to 0.5 from subtracting sum.low, which rounds by no more than about 2^-24 times the
// smaller of |dy| and |sum|; and 0.5 from the final rounding.
template <>
struct PlainTransformGradient<Operation::softmax_grad> {
    Two<Pack<float>> sum;

    FASTSOFTMAX_INLINE explicit PlainTransformGradient(Wide<float> total) : sum(in_two(total)) {}

    FASTSOFTMAX_INLINE PlainTransformGradient(const PlainTransformGradient& all, int i)
        : sum{spread(all.sum.high, i), spread(all.sum.low, i)} {}

    FASTSOFTMAX_INLINE PlainTransformGradient(const PlainTransformGradient& all, Pack<std::int32_t> slices)
        : sum{permuted(all.sum.high, slices), permuted(all.sum.low, slices)} {}

    // Each argument is used once, because compilers load an operand that is used twice from memory twice.
    FASTSOFTMAX_INLINE Pack<float> operator()(Pack<float> y, Pack<float> dy) const {
        return y * ((dy - sum.low) - sum.high);
    }
};

// dy - exp(logp) sum. Error: 1.56 ULP of |dy| + exp(logp) |sum|. The exponential contributes 1.06 * 2^-24 exp(logp)
// |sum|, and adding the low part to dy no more than about 2^-24 |dy|: together at most 1.06, where the significand of
// |dy| + exp(logp) |sum| is nearly 2 and dy is small. The final rounding contributes 0.5.
template <>
struct PlainTransformGradient<Operation::log_softmax_grad> {
    Exponential<float, true> exp;  // times a power of two
    Two<Pack<float>> minus;        // minus the sum, divided by that power

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

    // Exponentials may vanish only where their products with the sum would, so their power of two is 2^26 times that of
    // the sum; but at most 2^64, so that they do not overflow.
    FASTSOFTMAX_INLINE static Doubles<float> reference(Wide<float> sum) {
        const Doubles<float> most = doubles<float>(bias - 26);
        return most - max(doubles<float>(-149), min(most, exponent_of(sum)));
    }

    FASTSOFTMAX_INLINE PlainTransformGradient(Wide<float> total, Doubles<float> reference) : exp(to_float(reference)) {
        const Doubles<float> scale = power_of_two(reference - doubles<float>(bias));
        // Both parts have the same sign, so that dy plus the low part overflows only where the result does.
        minus = finite_in_two(-total * scale, 1 - 0x1p-23);
    }
};

FASTSOFTMAX_INLINE bool all_below(Pack<double> size, double limit) {
    return lane_bits(less(size, broadcast(limit))) == (1u << Pack<double>::lanes) - 1;
}

// The size of a sum from which on the formulas above may fail: dy - sum may overflow, or exponentials vanish whose
// product with the sum, divided by the temperature, does not.
template <Operation op, class T>
constexpr double far_from(double temperature) {
    if (op == Operation::softmax_grad) return sizeof(T) == 4 ? 0x1p100 : 0x1p960;
    return (sizeof(T) == 4 ? 0x1p38 : 0x1p140) * (temperature < 1 ? temperature : 1);
}

template <Operation op, class T>
FASTSOFTMAX_INLINE bool any_far(Wide<T> sum, double temperature) {
    // Floats with a temperature are computed in double, which holds all of this.
    if (op == Operation::softmax_grad && sizeof(T) == 4 && temperature != 1) return false;
    const double least = far_from<op, T>(temperature);
    // A NaN may be passed over here, because it makes its whole slice NaN in any case.
    if constexpr (sizeof(T) == 4)
        return !all_below(max(max(part(sum, 0), -part(sum, 0)), max(part(sum, 1), -part(sum, 1))), least);
    else
        return !all_below(max(sum.high, -sum.high), least);
}

// The products for packs in which a slice has such a sum. The other slices of the pack keep their bits.
template <Operation op, class T>
struct FarTransformGradient;

// value * back / temperature, where `value` was computed from numbers multiplied by 1 / `back`.
FASTSOFTMAX_INLINE Pack<double> over_temperature(Pack<double> value, Pack<double> back, double temperature) {
    if (temperature < 4) return value / broadcast(temperature) * back;
    return value / (broadcast(temperature) / back);
}

// 4 y (dy / 4 - sum / 4): since y is a probability, dy - sum may overflow where the result does not.
template <class T>
struct FarTransformGradient<Operation::softmax_grad, T> {
    Pack<T> scale, back;
    Two<Pack<T>> sum;  // scaled
    double temperature;

    FASTSOFTMAX_INLINE FarTransformGradient(const GradientSums<T>& sums, double temperature_)
        : temperature(temperature_) {
        const Pack<T> size = max(narrow(sums.sum), -narrow(sums.sum)), one = broadcast(T(1));
        const Mask<T> near =
            less(size, broadcast(sizeof(T) == 4 ? T(0x1p100) : T(0x1p960))) & equal(sums.reference, broadcast(T(0)));
        scale = select(near, one, broadcast(T(0.25)));
        back = select(near, one, broadcast(T(4)));
        if constexpr (sizeof(T) == 4) {
            sum = finite_in_two(sums.sum * to_doubles(scale), 1);
        } else {
            const Pack<double> unit = scale * power_of_two(sums.reference);
            sum = {sums.sum.high * unit, sums.sum.low * unit};
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

// dy - exp(logp) sum. Where exponentials vanish, their exponent is kept apart. Where the product or the difference
// would overflow, dy and the sum are scaled down first.
template <class T>
struct FarTransformGradient<Operation::log_softmax_grad, T> {
    static constexpr auto op = Operation::log_softmax_grad;
    TransformGradient<op, T> gradient;
    Wide<T> sum;
    Pack<T> reference;
    Mask<T> far;

    FASTSOFTMAX_INLINE FarTransformGradient(const GradientSums<T>& sums, double temperature)
        : gradient(sums, temperature), sum(sums.sum), reference(sums.reference) {
        const Doubles<T> least = doubles<T>(far_from<op, T>(temperature));
        if constexpr (sizeof(T) == 4) {
            far = to_int32(less(least, max(sum, -sum)) & finite(sum));
        } else {
            far = (less(least, max(sum.high, -sum.high)) & finite(sum.high)) | less(broadcast(0.0), sums.reference);
            gradient.high = gradient.high * power_of_two(sums.reference);
            gradient.low = gradient.low * power_of_two(sums.reference);
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
        // If the value vanishes even so, the other formula gives the zero its sign.
        return select(vanishing & less(broadcast(T(0)), max(value, -value)), value, near);
    }

  private:
    FASTSOFTMAX_INLINE Pack<float> nearly(Pack<float> logp, Pack<float> dy) const {
        if (gradient.temperature == 1) return PlainTransformGradient<op>(sum)(logp, dy);
        return gradient(logp, dy);
    }

    FASTSOFTMAX_INLINE Pack<double> nearly(Pack<double> logp, Pack<double> dy) const {
        const Pack<double> e = gradient.exp(bounded_log_probability(logp)).rounded();
        // Scaled down, numbers as small as this might lose digits.
        const Pack<double> one = broadcast(1.0), little = broadcast(0x1p-900), subtracted = e * gradient.high;
        const Mask<double> small = less(max(dy, -dy), little) & less(max(subtracted, -subtracted), little);
        const Mask<double> in_unit = less(broadcast(0.0), reference);
        const Pack<double> part = select(in_unit, broadcast(0x1p-66), broadcast(0.25));
        const Pack<double> scale = select(far, select(small, one, part), one), back = one / scale;
        const Pack<double> value = fma(-e, gradient.high * scale, dy * scale) - e * (gradient.low * scale);
        return gradient.temperature == 1 ? value * back : over_temperature(value, back, gradient.temperature);
    }

    // exp(logp) * sum * 2^raise; a logp below -4000 counts as that.
    FASTSOFTMAX_INLINE static Pack<double> product(Pack<double> logp, Pack<double> sum, Pack<double> raise) {
        logp = max(broadcast(-4000.0), logp);
        const Pack<double> n = round_to_integer(logp * broadcast(ExpConstants<double>::log2e));
        // Half of the sum, because the exponential's mantissa may be above 1 and the product must not overflow.
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

    // Both terms are multiplied by 2^1060, so that neither is subnormal before it is divided by the temperature. Beside
    // a dy of 2^-60 or more the other term does not count: 0 leaves the result to `nearly`.
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

// Wraps a gradient so that it is called, not inlined: few rows need it, and so it is compiled only once.
template <class Gradient>
struct Rare {
    Gradient gradient;

    FASTSOFTMAX_INLINE explicit Rare(const Gradient& one) : gradient(one) {}
    FASTSOFTMAX_INLINE Rare(const Rare& all, int i) : gradient(all.gradient, i) {}

    template <class P>
    FASTSOFTMAX_ONCE P operator()(P x, P dy) const {
        return gradient(x, dy);
    }
};

// Calls body(gradient) with the one of these structures that the sums need.
template <Operation op, class T, class Body>
FASTSOFTMAX_INLINE void with_transform_gradient(const GradientSums<T>& sums, double temperature, Body body) {
    bool far = any_far<op, T>(sums.sum, temperature);
    if constexpr (sizeof(T) == 8) far = far || fold_max(sums.reference) > 0;
    if (far) return body(Rare(FarTransformGradient<op, T>(sums, temperature)));
    if constexpr (sizeof(T) == 4)
        if (temperature == 1) return body(PlainTransformGradient<op>(sums.sum));
    body(TransformGradient<op, T>(sums, temperature));
}

}  // namespace
