// Numbers of twice the precision of T, with a slice in each lane, for computations that run once a slice.
#pragma once

#include <type_traits>

#include "pack.hpp"

namespace {

// A sum of two parts, the second within half an ULP of the first: of numbers or of packs of them.
template <class V>
struct Two {
    V high, low;
};

// As many doubles as a pack of T has lanes.
template <class T>
using Doubles = Pack<double, sizeof(double) / sizeof(T)>;

// As many numbers of twice the precision of T as a pack of T has lanes.
template <class T>
using Wide = std::conditional_t<sizeof(T) == 4, Doubles<float>, Two<Pack<double>>>;

// Exact: high + low = a + b (Knuth).
template <class V>
FASTSOFTMAX_INLINE Two<V> two_sum(V a, V b) {
    const V sum = a + b, back = sum - a;
    return {sum, (a - (sum - back)) + (b - back)};
}

// The same if |a| >= |b| (Dekker).
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

template <class V>
FASTSOFTMAX_INLINE Two<V> operator-(Two<V> a, Two<V> b) {
    return a + -b;
}

template <class V>
FASTSOFTMAX_INLINE Two<V> operator*(Two<V> a, Two<V> b) {
    const V product = a.high * b.high;
    return fast_two_sum(product, fma(a.high, b.high, -product) + (a.high * b.low + a.low * b.high));
}

FASTSOFTMAX_ONCE Wide<double> operator/(Wide<double> a, Wide<double> b) {
    const Pack<double> quotient = a.high / b.high;
    const Pack<double> remainder = fma(-quotient, b.high, a.high) + (a.low - quotient * b.low);
    return fast_two_sum(quotient, remainder / b.high);
}

template <int packs>
FASTSOFTMAX_INLINE Pack<double, packs> to_doubles(Pack<double, packs> a) {
    return a;
}
FASTSOFTMAX_INLINE Doubles<float> to_doubles(Pack<float> a) { return to_double(a); }
FASTSOFTMAX_INLINE Doubles<double> to_doubles(Wide<double> a) { return a.high + a.low; }

FASTSOFTMAX_INLINE Wide<float> widen(Wide<float> a) { return a; }
FASTSOFTMAX_INLINE Wide<float> widen(Pack<float> a) { return to_double(a); }
FASTSOFTMAX_INLINE Wide<float> widen(Two<Pack<float>> a) { return to_double(a.high) + to_double(a.low); }
FASTSOFTMAX_INLINE Wide<double> widen(Pack<double> a) { return {a, broadcast(0.0)}; }
FASTSOFTMAX_INLINE Wide<double> widen(Wide<double> a) { return a; }

// To T, rounded once.
FASTSOFTMAX_INLINE Pack<float> narrow(Doubles<float> a) { return to_float(a); }
FASTSOFTMAX_INLINE Pack<double> narrow(Doubles<double> a) { return a; }
FASTSOFTMAX_INLINE Pack<double> narrow(Wide<double> a) { return a.high + a.low; }

template <class T>
FASTSOFTMAX_INLINE Doubles<T> doubles(double value) {
    return broadcast<double, Doubles<T>::lanes / Pack<double>::lanes>(value);
}

FASTSOFTMAX_INLINE Wide<float> select(Mask<float> mask, Wide<float> a, Wide<float> b) {
    // Converted as numbers, the mask becomes one of doubles.
    const Doubles<float> chosen = to_double(select(mask, broadcast(1.0f), broadcast(0.0f)));
    return select(equal(chosen, doubles<float>(1)), a, b);
}
FASTSOFTMAX_INLINE Wide<double> select(Mask<double> mask, Wide<double> a, Wide<double> b) {
    return {select(mask, a.high, b.high), select(mask, a.low, b.low)};
}

FASTSOFTMAX_INLINE Mask<float> is_zero(Doubles<float> a) { return to_int32(equal(a, doubles<float>(0))); }
FASTSOFTMAX_INLINE Mask<double> is_zero(Doubles<double> a) { return equal(a, doubles<double>(0)); }

// As two parts of T.
FASTSOFTMAX_INLINE Two<Pack<float>> in_two(Wide<float> a) {
    const Pack<float> high = to_float(a);
    return {high, to_float(a - to_double(high))};
}
FASTSOFTMAX_INLINE Two<Pack<double>> in_two(Wide<double> a) { return a; }

// a * b as two parts of T.
FASTSOFTMAX_INLINE Two<Pack<float>> product_in_two(Doubles<float> a, Doubles<float> b) { return in_two(a * b); }
FASTSOFTMAX_INLINE Two<Pack<double>> product_in_two(Doubles<double> a, Doubles<double> b) {
    return {a * b, fma(a, b, -(a * b))};
}

// a * b, but 0 where a is 0, even if b is infinite; NaN where either is.
template <int packs>
FASTSOFTMAX_INLINE Pack<double, packs> product_or_zero(Pack<double, packs> a, Pack<double, packs> b) {
    const Pack<double, packs> zero = broadcast<double, packs>(0);
    return select(equal(a, zero) & equal(b, b), zero, a * b);
}

template <class T>
FASTSOFTMAX_INLINE Doubles<T> load_doubles(const double* values) {
    return load_pack<double, Doubles<T>::lanes / Pack<double>::lanes>(values);
}

// Loads the first `count` lanes; the others are 0.
template <class T>
FASTSOFTMAX_INLINE Doubles<T> load_doubles(const double* values, std::ptrdiff_t count) {
    if (count == Pack<T>::lanes) return load_doubles<T>(values);
    double padded[Pack<T>::lanes] = {};
    for (std::ptrdiff_t i = 0; i < count; ++i) padded[i] = values[i];
    return load_doubles<T>(padded);
}

template <int packs>
FASTSOFTMAX_INLINE void store_doubles(double* to, Pack<double, packs> a) {
    store_pack(to, a);
}

// Stores the first `count` lanes.
template <class T>
FASTSOFTMAX_INLINE void store_doubles(double* to, Doubles<T> a, std::ptrdiff_t count) {
    if (count == Pack<T>::lanes) return store_doubles(to, a);
    double values[Pack<T>::lanes];
    store_doubles(values, a);
    for (std::ptrdiff_t i = 0; i < count; ++i) to[i] = values[i];
}

// 1 / a in two parts, the second with the precision of T. Error: 2^-46 (double 2^-104).
template <class T>
FASTSOFTMAX_INLINE Two<Pack<T>> reciprocal(Two<Pack<T>> a) {
    const Pack<T> one = broadcast(T(1)), high = one / a.high;
    return {high, (fma(-a.high, high, one) - a.low * high) * high};
}

}  // namespace
