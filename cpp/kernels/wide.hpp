// Numbers of twice the precision of T: what belongs to a slice as a whole, one a lane, is computed in them.
#pragma once

#include <type_traits>

#include "pack.hpp"

namespace {

// A sum of two parts, the second within half an ULP of the first: of numbers or of packs of them.
template <class V>
struct Two {
    V high, low;
};
using Double2 = Two<Pack<double>>;

// Exact: high + low = a + b (Knuth).
template <class V>
FASTSOFTMAX_INLINE Two<V> two_sum(V a, V b) {
    const V sum = a + b, back = sum - a;
    return {sum, (a - (sum - back)) + (b - back)};
}

// The same where |a| >= |b| (Dekker).
template <class V>
FASTSOFTMAX_INLINE Two<V> fast_two_sum(V a, V b) {
    const V sum = a + b;
    return {sum, b - (sum - a)};
}

template <class V>
FASTSOFTMAX_INLINE Two<V> operator-(Two<V> a) {
    return {-a.high, -a.low};
}

template <class V>
FASTSOFTMAX_INLINE Two<V> operator+(Two<V> a, Two<V> b) {
    const Two<V> sum = two_sum(a.high, b.high);
    return fast_two_sum(sum.high, sum.low + (a.low + b.low));
}

FASTSOFTMAX_INLINE Double2 operator-(Double2 a, Double2 b) { return a + -b; }

template <class V>
FASTSOFTMAX_INLINE Two<V> operator*(Two<V> a, Two<V> b) {
    const V product = a.high * b.high;
    return fast_two_sum(product, fma(a.high, b.high, -product) + (a.high * b.low + a.low * b.high));
}

FASTSOFTMAX_ONCE Double2 operator/(Double2 a, Double2 b) {
    const Pack<double> quotient = a.high / b.high;
    const Pack<double> remainder = fma(-quotient, b.high, a.high) + (a.low - quotient * b.low);
    return fast_two_sum(quotient, remainder / b.high);
}

FASTSOFTMAX_INLINE DoublePair operator-(DoublePair a) { return {-a.low, -a.high}; }

#define FASTSOFTMAX_LANEWISE(op) \
    FASTSOFTMAX_INLINE DoublePair operator op(DoublePair a, DoublePair b) { return {a.low op b.low, a.high op b.high}; }
FASTSOFTMAX_LANEWISE(+)
FASTSOFTMAX_LANEWISE(-)
FASTSOFTMAX_LANEWISE(*)
FASTSOFTMAX_LANEWISE(/)
#undef FASTSOFTMAX_LANEWISE

FASTSOFTMAX_INLINE DoublePair max(DoublePair a, DoublePair b) { return {max(a.low, b.low), max(a.high, b.high)}; }
FASTSOFTMAX_INLINE DoublePair min(DoublePair a, DoublePair b) { return {min(a.low, b.low), min(a.high, b.high)}; }

FASTSOFTMAX_INLINE DoublePair fma(DoublePair a, DoublePair b, DoublePair c) {
    return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)};
}

// As many numbers as a pack of T has lanes: in twice the precision, and as doubles, which is the same for float.
template <class T>
using Wide = std::conditional_t<sizeof(T) == 4, DoublePair, Double2>;
template <class T>
using Doubles = std::conditional_t<sizeof(T) == 4, DoublePair, Pack<double>>;

FASTSOFTMAX_INLINE DoublePair to_doubles(Pack<float> a) { return to_double(a); }
FASTSOFTMAX_INLINE Pack<double> to_doubles(Pack<double> a) { return a; }
FASTSOFTMAX_INLINE DoublePair to_doubles(DoublePair a) { return a; }
FASTSOFTMAX_INLINE Pack<double> to_doubles(Double2 a) { return a.high + a.low; }

FASTSOFTMAX_INLINE DoublePair widen(DoublePair a) { return a; }
FASTSOFTMAX_INLINE DoublePair widen(Pack<float> a) { return to_double(a); }
FASTSOFTMAX_INLINE DoublePair widen(Two<Pack<float>> a) { return to_double(a.high) + to_double(a.low); }
FASTSOFTMAX_INLINE Double2 widen(Pack<double> a) { return {a, broadcast(0.0)}; }
FASTSOFTMAX_INLINE Double2 widen(Double2 a) { return a; }

// Rounded once.
FASTSOFTMAX_INLINE Pack<float> narrow(DoublePair a) { return to_float(a); }
FASTSOFTMAX_INLINE Pack<double> narrow(Double2 a) { return a.high + a.low; }
FASTSOFTMAX_INLINE Pack<double> narrow(Pack<double> a) { return a; }

FASTSOFTMAX_INLINE DoublePair select(Mask<float> mask, DoublePair a, DoublePair b) {
    // Both halves of the mask as masks of doubles: what they hold is converted like numbers.
    const DoublePair m = to_double(select(mask, broadcast(1.0f), broadcast(0.0f)));
    const Pack<double> one = broadcast(1.0);
    return {select(equal(m.low, one), a.low, b.low), select(equal(m.high, one), a.high, b.high)};
}
FASTSOFTMAX_INLINE Double2 select(Mask<double> mask, Double2 a, Double2 b) {
    return {select(mask, a.high, b.high), select(mask, a.low, b.low)};
}

FASTSOFTMAX_INLINE Mask<float> is_zero(DoublePair a) {
    const Pack<double> zero = broadcast(0.0), one = broadcast(1.0);
    return equal(to_float({select(equal(a.low, zero), zero, one), select(equal(a.high, zero), zero, one)}),
                 broadcast(0.0f));
}
FASTSOFTMAX_INLINE Mask<double> is_zero(Pack<double> a) { return equal(a, broadcast(0.0)); }

// As two parts of T.
FASTSOFTMAX_INLINE Two<Pack<float>> in_two(DoublePair a) {
    const Pack<float> high = to_float(a);
    return {high, to_float(a - to_double(high))};
}
FASTSOFTMAX_INLINE Double2 in_two(Double2 a) { return a; }

// a * b as two parts of T.
FASTSOFTMAX_INLINE Two<Pack<float>> product_in_two(DoublePair a, DoublePair b) { return in_two(a * b); }
FASTSOFTMAX_INLINE Double2 product_in_two(Pack<double> a, Pack<double> b) { return {a * b, fma(a, b, -(a * b))}; }

// a * b, and 0 where a is, though b be infinite; NaN where either is.
FASTSOFTMAX_INLINE Pack<double> product_or_zero(Pack<double> a, Pack<double> b) {
    return select(equal(a, broadcast(0.0)) & equal(b, b), broadcast(0.0), a * b);
}
FASTSOFTMAX_INLINE DoublePair product_or_zero(DoublePair a, DoublePair b) {
    return {product_or_zero(a.low, b.low), product_or_zero(a.high, b.high)};
}

template <class T>
FASTSOFTMAX_INLINE Doubles<T> doubles(double value) {
    if constexpr (sizeof(T) == 4)
        return {broadcast(value), broadcast(value)};
    else
        return broadcast(value);
}

template <class T>
FASTSOFTMAX_INLINE Doubles<T> load_doubles(const double* values) {
    const Pack<double> first = load_pack<double>(values);
    if constexpr (sizeof(T) == 4)
        return {first, load_pack<double>(values + Pack<double>::lanes)};
    else
        return first;
}

// Of the first `count` lanes; 0 in those beyond.
template <class T>
FASTSOFTMAX_INLINE Doubles<T> load_doubles(const double* values, std::ptrdiff_t count) {
    if (count == Pack<T>::lanes) return load_doubles<T>(values);
    double padded[Pack<T>::lanes] = {};
    for (std::ptrdiff_t i = 0; i < count; ++i) padded[i] = values[i];
    return load_doubles<T>(padded);
}

FASTSOFTMAX_INLINE void store_doubles(double* to, DoublePair a) {
    store_pack(to, a.low);
    store_pack(to + Pack<double>::lanes, a.high);
}
FASTSOFTMAX_INLINE void store_doubles(double* to, Pack<double> a) { store_pack(to, a); }

// The first `count` lanes.
template <class T>
FASTSOFTMAX_INLINE void store_doubles(double* to, Doubles<T> a, std::ptrdiff_t count) {
    if (count == Pack<T>::lanes) return store_doubles(to, a);
    double values[Pack<T>::lanes];
    store_doubles(values, a);
    for (std::ptrdiff_t i = 0; i < count; ++i) to[i] = values[i];
}

FASTSOFTMAX_INLINE double lane(const DoublePair& a, int i) {
    constexpr int half = Pack<double>::lanes;
    return i < half ? lane(a.low, i) : lane(a.high, i - half);
}

FASTSOFTMAX_INLINE DoublePair spread(const DoublePair& a, int i) { return doubles<float>(lane(a, i)); }

// 1 / a in two parts, the second as good as T: to 2^-46 (double 2^-104).
template <class T>
FASTSOFTMAX_INLINE Two<Pack<T>> reciprocal(Two<Pack<T>> a) {
    const Pack<T> one = broadcast(T(1)), high = one / a.high;
    return {high, (fma(-a.high, high, one) - a.low * high) * high};
}

}  // namespace
