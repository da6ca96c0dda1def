// Exponentials and their sums without a look at the largest score. The reference is the same for every slice, so that
// nothing has to be known before; whether it was right, the sum tells. Slices out of range, few in practice, are
// computed again the general way.
#pragma once

#include "losses.hpp"

namespace {

template <class T>
struct FixedRange;

// Probabilities are right if the sum is within least and most. Exponentials below 2^-126 are 0; over 2^25 they would be
// probabilities below 2^-151, which round to 0. Both parts of the reciprocal of 2^114 are normal enough: the second
// loses 2^-12 ULP.
template <>
struct FixedRange<float> {
    static constexpr float least = 0x1p25f, most = 0x1p114f;
    // A logarithm needs more for each class: exponentials that became 0 are below 2^-153 of the largest together.
    static constexpr float least_of_logs = 0x1p27f;
    // And a loss, which may be multiplied or summed up: beside a rest of this for each class they are nothing.
    static constexpr float least_rest = 0x1p-100f;
    // Scores beyond these count as these: their exponentials are 0, or a finite number that is out of range.
    static constexpr float lowest = -300, highest = 44;
    // Slices that begin with a score beyond the first of these are hardly in range, if it is below the second.
    static constexpr float far = 60, masked = 9000;
};

// As for float: exponentials below 2^-1022 are 0, over 2^54 below 2^-1076.
template <>
struct FixedRange<double> {
    static constexpr double least = 0x1p54, most = 0x1p900;
    static constexpr double least_of_logs = 0x1p56;
    static constexpr double least_rest = 0x1p-960;
    static constexpr double lowest = -1500, highest = 560;
    static constexpr double far = 110, masked = 9000;
};

// Slices, with these first scores, that take the general way without being tried. Scores of a larger size are no
// measure of the others: they stand for masked classes.
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

// factor * exp(x) * 2^exponent_bias, 0 where that is below the normal numbers, as with -inf; NaN for NaN. Errors are
// those of Exponential.
template <class T>
struct FixedExponential {
    using C = ExpConstants<T>;

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
            for (int i = 0; i < n.registers; ++i) {
                e.power.r[i] = scaled(entry.r[i], n.r[i], least);
                e.growth.r[i] = fma_or_zero(square.r[i], q.r[i], r.r[i], n.r[i], least);
            }
            return e;
        } else {
            const auto bits = look_up<Integer<T>>(C::powers, field) + shift_left(field, C::mantissa_bits - 3);
            const auto largest_subnormal = broadcast<Integer<T>, packs>((Integer<T>{1} << C::mantissa_bits) - 1);
            const auto power = select(less(largest_subnormal, bits), bits, broadcast<Integer<T>, packs>(0));
            return {bit_cast<T>(power), multiply_add(r * r, polynomial(r, C::q), r)};
        }
    }

  private:
    // The exponent of the smallest normal power.
    static constexpr T least = 1 - C::ieee_bias - C::exponent_bias;
    // Adding it leaves eighths.
    static constexpr T rounder = C::rounder / 8 + (has_scaling ? 0 : C::exponent_bias + C::ieee_bias);

    struct Powers {
        T of[8];
    };
    static constexpr Powers powers() {
        Powers p = {};
        for (int i = 0; i < 8; ++i)
            p.of[i] = __builtin_bit_cast(T, C::powers[i] + (Integer<T>{i} << (C::mantissa_bits - 3)) +
                                                (Integer<T>{C::exponent_bias + C::ieee_bias} << C::mantissa_bits));
        return p;
    }
};

// Which slices have a sum in range.
template <class T>
FASTSOFTMAX_INLINE std::uint32_t lanes_within(Pack<T> sum, T least) {
    return lane_bits(less(broadcast(least), sum) & less(sum, broadcast(FixedRange<T>::most)));
}

// Calls f with a factor in two parts. Without FMA the error of a product is lost where that is subnormal: then the
// factor is larger, and the result brought back.
template <class T, class F>
FASTSOFTMAX_INLINE Pack<T> with_factor(Two<Pack<T>> factor, F f) {
    if constexpr (sizeof(T) == 8 && !has_fma) {
        const Pack<T> up = broadcast(T(0x1p300)), down = broadcast(T(0x1p-300));
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

// The power of two that takes a sum or an exponential to where the largest is with a reference of its own.
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
