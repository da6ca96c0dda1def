// Converts totals of pieces from one reference to another. In unshifted slices, exponentials by two references differ
// by a power of two, so nothing is rounded.
#pragma once

#include "../exponentials.hpp"

namespace {

using fastsoftmax::Total;

template <class F>
FASTSOFTMAX_INLINE void for_sums(Total& total, F f) {
    f(total.rest);
    f(total.sum);
    f(total.weighed);
}

// Turns sums of exponentials in From, by the reference of `from_largest`, into those of exponentials in To, by the
// reference of `to_largest`.
template <class From, class To>
FASTSOFTMAX_INLINE void rescale(Total& total, double from_largest, double to_largest, double temperature) {
    const typename OwnExponential<From>::Place from(broadcast(static_cast<From>(from_largest)), temperature);
    const typename OwnExponential<To>::Place to(broadcast(static_cast<To>(to_largest)), temperature);
    const double exponent = (ExpConstants<To>::exponent_bias - static_cast<double>(lane(to.reference, 0))) -
                            (ExpConstants<From>::exponent_bias - static_cast<double>(lane(from.reference, 0)));
    const Temperature t(temperature);
    const Pack<double> before = broadcast(t.before), after = broadcast(t.after);
    Wide<double> shift = two_sum(broadcast(static_cast<double>(lane(from.shift, 0))) * before,
                                 -broadcast(static_cast<double>(lane(to.shift, 0))) * before);
    if (lane(shift.high, 0) != 0)
        shift = Wide<double>{shift.high * after, shift.low * after} / widen(broadcast(t.rest));
    for_sums(total, [&](double (&sum)[2]) { set(sum, rescaled(broadcast2(sum), shift, exponent)); });
}

template <class T>
void raise_total(Total& total, double largest, double temperature) {
    if (total.max == largest) return;
    const OwnExponential<T> exp(broadcast(static_cast<T>(largest)), temperature);
    const Pack<T> max = broadcast(static_cast<T>(total.max));
    if (!(lane(exp(max).rounded(), 0) > 0) || largest == infinity) {
        // Beside the new largest score this total is 0, unless it is NaN.
        for_sums(total, [](double (&sum)[2]) {
            sum[0] *= 0;
            sum[1] = 0;
        });
        total.nonzero = 0;
        return;
    }
    const double distance = static_cast<double>(lane(exp.distance(max), 0));
    set(total.weighed, broadcast2(total.weighed) + broadcast2(total.rest) * widen(broadcast(distance)));
    rescale<T, T>(total, total.max, largest, temperature);
}

void widen_total(Total& total, double temperature) {
    if (!(total.max - total.max == 0)) return;
    constexpr double ratio = ExpConstants<double>::factor / ExpConstants<float>::factor;
    rescale<float, double>(total, total.max, total.max, temperature);
    for_sums(total, [](double (&sum)[2]) {
        for (double& part : sum) part *= ratio;
    });
}

template <class T>
Statistics own_state(const Total& total, bool all, double temperature) {
    Statistics s = {};
    s.max = s.reference = total.max == total.max ? total.max : -infinity;
    const double* const sum = all ? total.sum : total.rest;
    for (int k = 0; k < 2; ++k) {
        s.rest[k] = sum[k];
        s.weighed[k] = total.weighed[k];
    }
    const OwnExponential<T> exp(broadcast(static_cast<T>(s.max)), temperature);
    s.several = total.nonzero > 1;
    // If the only exponential is NaN, it stays NaN.
    if (total.nonzero == 1) s.only = static_cast<double>(lane(exp(exp.largest()).rounded(), 0)) + sum[0] * 0;
    return s;
}

template <class T>
Statistics near_state(const Total& total, bool all, double) {
    Statistics s = own_state<T>(total, all, 1);
    const typename OwnExponential<T>::Place place(broadcast(static_cast<T>(s.max)), 1);
    const double exponent =
        FixedRange<T>::bias - ExpConstants<T>::exponent_bias + static_cast<double>(lane(place.reference, 0));
    set(s.rest, rescaled(broadcast2(s.rest), widen(broadcast(0.0)), exponent));
    s.several = total.near_nonzero > 1;
    s.only = 0;
    if (total.near_nonzero == 1)
        s.only = static_cast<double>(lane(FixedExponential<T>()(broadcast(static_cast<T>(s.max))).rounded(), 0)) +
                 total.sum[0] * 0;
    // A shifted slice is out of range, and so is an infinite score.
    if (lane(place.shift, 0) != 0 || s.max == infinity) s.rest[0] = s.only = __builtin_nan("");
    return s;
}

}  // namespace
