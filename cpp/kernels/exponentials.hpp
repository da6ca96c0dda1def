// The two exponentials. FixedExponential has one reference for all slices, so nothing has to be known in advance; the
// sum tells whether it was right. Slices that are far from it, few in practice, are computed again with OwnExponential:
// a slice's own reference needs the largest score first. With a temperature, all slices have their own.
#pragma once

#include "statistics.hpp"

namespace {

template <class T>
struct FixedRange;

// Probabilities are right if the sum is between `least` and `most`. Exponentials below 2^-126 become 0; over a sum of
// 2^25 they would be probabilities below 2^-151, which round to 0. Both parts of the reciprocal of 2^114 are normal
// enough: the second loses 2^-12 ULP.
template <>
struct FixedRange<float> {
    static constexpr float least = 0x1p25f, most = 0x1p114f;
    // Exponentials are 2^bias times their size, so log-sum-exps from -21 to 40 are in range: networks give large scores
    // more often than small ones.
    static constexpr int bias = 56;
    // Logarithms need a sum above this for each class: exponentials that became 0 are then together below 2^-153 of it.
    static constexpr float least_of_logs = 0x1p27f;
    // For losses, which may be multiplied or added up, the sum without the label's exponential must be above this for
    // each class: exponentials that became 0 are nothing beside it.
    static constexpr float least_rest = 0x1p-100f;
    // Without has_scaling, scores are clamped to these, whose exponentials are 0 and a finite number that is out of
    // range.
    static constexpr float lowest = -300, highest = 44;
    // A slice whose first score has a size between these two is hardly ever in range.
    static constexpr float far = 60, masked = 9000;
};

// As for float: exponentials below 2^-1022 become 0; over 2^54 they would be below 2^-1076.
template <>
struct FixedRange<double> {
    static constexpr double least = 0x1p54, most = 0x1p900;
    static constexpr int bias = 200;
    static constexpr double least_of_logs = 0x1p56;
    static constexpr double least_rest = 0x1p-960;
    static constexpr double lowest = -1500, highest = 560;
    static constexpr double far = 110, masked = 9000;
};

// Which slices, to judge by their first scores, are far without being tried. A first score whose size is above `masked`
// says nothing about the others: it stands for a masked class.
template <class T>
FASTSOFTMAX_INLINE std::uint32_t begins_far(Pack<T> first) {
    const Pack<T> size = max(first, -first);
    return lane_bits(less(broadcast(FixedRange<T>::far), size) & less(size, broadcast(FixedRange<T>::masked)));
}
template <class T>
FASTSOFTMAX_INLINE bool begins_far(T first) {
    const T size = first < 0 ? -first : first;
    return FixedRange<T>::far < size && size < FixedRange<T>::masked;
}

// Computes factor * exp(x) * 2^bias; 0 where that would be subnormal, and for -inf; NaN for NaN. Errors are those of
// Exponential.
template <class T>
struct FixedExponential {
    using C = ExpConstants<T>;
    static constexpr bool is_fixed = true;

    FASTSOFTMAX_INLINE FixedExponential of_lane(int) const { return {}; }

    template <int packs>
    FASTSOFTMAX_LONG Growth<T, packs> operator()(Pack<T, packs> x) const {
        if constexpr (!has_scaling)
            x = min(broadcast<T, packs>(FixedRange<T>::highest), max(broadcast<T, packs>(FixedRange<T>::lowest), x));
        const Pack<T, packs> shift = broadcast<T, packs>(rounder);
        const Pack<T, packs> shifted = multiply_add(x, broadcast<T, packs>(C::log2e), shift);
        const Pack<T, packs> n = shifted - shift;
        const Pack<T, packs> first = fma(n, broadcast<T, packs>(-C::ln2_high), x);
        const Pack<T, packs> r = multiply_add(n, broadcast<T, packs>(-C::ln2_low), first);
        const auto field = bit_cast<Integer<T>>(shifted);
        if constexpr (has_scaling) {
            static constexpr Powers table = powers();
            const Pack<T, packs> entry = look_up(table.of, field), square = r * r, q = polynomial(r, C::q);
            Growth<T, packs> e;
            unrolled<n.registers>([&](int i) __attribute__((always_inline)) {
                e.power.r[i] = scaled(entry.r[i], n.r[i], least);
                e.growth.r[i] = fma_or_zero(square.r[i], q.r[i], r.r[i], n.r[i], least);
            });
            return e;
        } else {
            const auto bits = look_up<Integer<T>>(C::powers, field) + shift_left(field, C::mantissa_bits - 3);
            const auto largest_subnormal = broadcast<Integer<T>, packs>((Integer<T>{1} << C::mantissa_bits) - 1);
            const auto power = select(less(largest_subnormal, bits), bits, broadcast<Integer<T>, packs>(0));
            return {bit_cast<T>(power), multiply_add(r * r, polynomial(r, C::q), r)};
        }
    }

    // The sum for the results: that of a slice in range needs no change.
    FASTSOFTMAX_INLINE Two<Pack<T>> defined(Two<Pack<T>> sum) const { return sum; }

    // The argument of the exponential in two parts, for logarithms.
    struct Argument {
        FASTSOFTMAX_INLINE Argument of_lane(int) const { return {}; }
        FASTSOFTMAX_INLINE Two<Pack<T>> operator()(Pack<T> x) const { return {x, broadcast(T(0))}; }
    };
    FASTSOFTMAX_INLINE Argument argument() const { return {}; }

  private:
    // The exponent of the smallest normal power.
    static constexpr T least = 1 - C::ieee_bias - FixedRange<T>::bias;
    // Adding it rounds to eighths.
    static constexpr T rounder = C::rounder / 8 + (has_scaling ? 0 : FixedRange<T>::bias + C::ieee_bias);

    struct Powers {
        T of[8];
    };
    static constexpr Powers powers() {
        Powers p = {};
        for (int i = 0; i < 8; ++i)
            p.of[i] = __builtin_bit_cast(T, C::powers[i] + (Integer<T>{i} << (C::mantissa_bits - 3)) +
                                                (Integer<T>{FixedRange<T>::bias + C::ieee_bias} << C::mantissa_bits));
        return p;
    }
};

// Computes the argument of the exponential, (x - shift) / temperature, in two parts because it is rounded.
template <class T>
struct Scaling {
    Pack<T> before, shift, after, inverse_high, inverse_low;
    Pack<T> floor;  // in the second part, lower differences count as this, so that it stays finite

    Scaling() = default;
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

    FASTSOFTMAX_INLINE Pack<T> distance(Pack<T> from, Pack<T> x) const {
        const Pack<T> difference = (from * before - x * before) * after;
        return fma(difference, inverse_high, difference * inverse_low);
    }

    FASTSOFTMAX_LONG Two<Pack<T>> operator()(Pack<T> x) const {
        const Pack<T> difference = (x * before - shift) * after;
        const Pack<T> bounded = max(floor, difference);
        return {difference * inverse_high,
                fma(bounded, inverse_high, -(bounded * inverse_high)) + bounded * inverse_low};
    }
};

// Computes factor * exp((x - shift) / temperature) * 2^(exponent_bias - reference), one slice a lane. Scores above
// `highest` count as that. Errors are those of Exponential.
template <class T>
class ScaledExponential {
  public:
    FASTSOFTMAX_INLINE ScaledExponential of_lane(int i) const { return {*this, i}; }

    template <int packs>
    FASTSOFTMAX_INLINE Growth<T, packs> operator()(Pack<T, packs> x) const {
        x = min(repeat<packs>(highest_), x);
        if (!scales_) return exp_(x);
        Pack<T, packs> high, low;
        unrolled<packs>([&](int k) __attribute__((always_inline)) {
            const Two<Pack<T>> y = scaling_(part(x, k));
            set_part(high, k, y.high);
            set_part(low, k, y.low);
        });
        return exp_(high, low);
    }

    // (highest - x) / temperature, rounded twice; it may be less where the exponential is 0.
    template <int packs>
    FASTSOFTMAX_INLINE Pack<T, packs> distance(Pack<T, packs> x) const {
        const Pack<T, packs> most = broadcast<T, packs>(T(-4) * FixedRange<T>::lowest);
        if (!scales_) return min(repeat<packs>(highest_) - x, most);
        Pack<T, packs> d;
        unrolled<packs>(
            [&](int k) __attribute__((always_inline)) { set_part(d, k, scaling_.distance(highest_, part(x, k))); });
        // A distance that overflows may have any sign, or be NaN.
        return min(max(d, broadcast<T, packs>(T(0))), most);
    }

  protected:
    FASTSOFTMAX_INLINE ScaledExponential(Pack<T> highest, Pack<T> shift, Pack<T> reference, double temperature,
                                         bool scales)
        : highest_(highest),
          exp_(reference),
          scales_(scales),
          scaling_(shift, temperature, exp_.lowest - broadcast(T(2))) {}

    Pack<T> highest_;

  private:
    Exponential<T> exp_;
    bool scales_;
    Scaling<T> scaling_;

    FASTSOFTMAX_INLINE ScaledExponential(const ScaledExponential& all, int i)
        : highest_(spread(all.highest_, i)), exp_(all.exp_, i), scales_(all.scales_) {
        if (scales_) scaling_ = {all.scaling_, i};
    }
};

// The exponential with a shift and reference of each slice's own, which put the largest score's exponential near
// 2^exponent_bias.
template <class T>
class OwnExponential : public ScaledExponential<T> {
  public:
    static constexpr bool is_fixed = false;

    // The shift and reference for a largest score, and what follows if that is infinite.
    struct Place {
        Pack<T> shift, reference, highest, undefined;
        bool scales;

        FASTSOFTMAX_ONCE Place(Pack<T> largest, double temperature) {
            const Pack<T> zero = broadcast(T(0)), limit = broadcast(ExpConstants<T>::largest_unshifted);
            const Pack<T> scaled = temperature == 1 ? largest : largest / broadcast(static_cast<T>(temperature));
            const Mask<T> within = less(scaled, limit) & less(-limit, scaled);
            const Mask<T> finite = equal(largest - largest, zero);
            shift = select(within, zero, select(finite, largest, zero));
            reference = select(within, round_to_integer(scaled * broadcast(ExpConstants<T>::log2e)), zero);
            // In a slice with +inf no exponential counts; this bound keeps +inf out of them.
            highest = select(finite, largest, zero);
            undefined = select(finite, zero, broadcast(T(__builtin_nan(""))));
            constexpr auto all = static_cast<std::uint32_t>((1ull << Pack<T>::lanes) - 1);
            scales = temperature != 1 || equal_bits(shift, zero) != all;
        }
    };

    // `largest`: for each slice, its largest score that is not NaN.
    FASTSOFTMAX_INLINE OwnExponential(Pack<T> largest, double temperature)
        : OwnExponential(Place(largest, temperature), temperature) {}

    // The largest score, 0 where that is infinite.
    FASTSOFTMAX_INLINE Pack<T> largest() const { return this->highest_; }

    // The sum for the results: NaN where the largest score is infinite.
    FASTSOFTMAX_INLINE Two<Pack<T>> defined(Two<Pack<T>> sum) const { return {sum.high + undefined_, sum.low}; }

    class Argument {
      public:
        Argument() = default;
        FASTSOFTMAX_INLINE Argument(Pack<T> shift, double temperature)
            : scales_(temperature != 1), scaling_(shift, temperature, broadcast(-far)) {}
        FASTSOFTMAX_INLINE Argument of_lane(int i) const {
            Argument one;
            one.scales_ = scales_;
            if (scales_) one.scaling_ = {scaling_, i};
            return one;
        }
        FASTSOFTMAX_INLINE Two<Pack<T>> operator()(Pack<T> x) const {
            return scales_ ? scaling_(x) : Two<Pack<T>>{x, broadcast(T(0))};
        }

      private:
        // The size of a quotient whose second part does not matter, and which does not overflow.
        static constexpr T far = sizeof(T) == 4 ? T(0x1p20) : T(0x1p60);
        bool scales_;
        Scaling<T> scaling_;
    };
    FASTSOFTMAX_INLINE Argument argument() const { return {shift_, temperature_}; }

  private:
    Pack<T> shift_, undefined_;
    double temperature_;

    FASTSOFTMAX_INLINE OwnExponential(const Place& place, double temperature)
        : ScaledExponential<T>(place.highest, place.shift, place.reference, temperature, place.scales),
          shift_(place.shift),
          undefined_(place.undefined),
          temperature_(temperature) {}
};

// Which slices have a sum in range: all, if their references are their own.
template <class Exp, class T>
FASTSOFTMAX_INLINE std::uint32_t lanes_within(Pack<T> sum, T least) {
    if constexpr (Exp::is_fixed)
        return lane_bits(less(broadcast(least), sum) & less(sum, broadcast(FixedRange<T>::most)));
    else
        return ~std::uint32_t{0};
}

// Calls f with a factor in two parts. Without FMA, the error of a product is lost where it is subnormal: then the
// factor is scaled up, unless it is large, and the result scaled back.
template <class T, class F>
FASTSOFTMAX_INLINE Pack<T> with_factor(Two<Pack<T>> factor, F f) {
    if constexpr (sizeof(T) == 8 && !has_fma) {
        const Mask<T> large = less(broadcast(T(0x1p200)), max(factor.high, -factor.high));
        const Pack<T> one = broadcast(T(1)), up = select(large, one, broadcast(T(0x1p300))),
                      down = select(large, one, broadcast(T(0x1p-300)));
        return f(Two<Pack<T>>{factor.high * up, factor.low * up}) * down;
    } else {
        return f(factor);
    }
}

// An exponential, or a sum of them, times a factor.
template <class T>
FASTSOFTMAX_INLINE Pack<T> product(Pack<T> e, Two<Pack<T>> factor) {
    return with_factor(factor,
                       [&](Two<Pack<T>> f) __attribute__((always_inline)) { return fma(e, f.high, e * f.low); });
}
template <class T>
FASTSOFTMAX_INLINE Pack<T> product(Two<Pack<T>> e, Two<Pack<T>> factor) {
    return with_factor(factor, [&](Two<Pack<T>> f) __attribute__((always_inline)) {
        return fma(e.high, f.high, fma(e.high, f.low, e.low * f.high));
    });
}

// The power of two that scales e, an exponential or a sum, to near 2^exponent_bias, as a slice's own reference would.
template <class T>
FASTSOFTMAX_INLINE Pack<T> own_scale(Pack<T> e) {
    using C = ExpConstants<T>;
    constexpr auto mask = Integer<T>{2 * C::ieee_bias + 1} << C::mantissa_bits;
    constexpr auto fields = Integer<T>{2 * C::ieee_bias + C::exponent_bias} << C::mantissa_bits;
    return bit_cast<T>(broadcast<Integer<T>>(fields) - (bit_cast<Integer<T>>(e) & broadcast<Integer<T>>(mask)));
}

template <class T>
FASTSOFTMAX_INLINE Two<Pack<T>> scaled(Two<Pack<T>> a, Pack<T> scale) {
    return {a.high * scale, a.low * scale};
}

}  // namespace
