// Running sums. Class c goes to partial sum c mod 16 (double: c mod 8), and partial sums are folded in halves: in rows
// they are the lanes of one pack, in tiles packs with a slice in each lane, so that both get the same bits.
#pragma once

#include "elements.hpp"
#include "exp_log.hpp"

namespace {

// Adds terms of any size and sign. Exact to 2^-50 (double 2^-100) of the sum of their magnitudes.
FASTSOFTMAX_INLINE void add_to(Wide<float>& sum, Doubles<float> x) { sum = sum + x; }
FASTSOFTMAX_INLINE void add_product_to(Wide<float>& sum, Doubles<float> x, Doubles<float> y) {
    sum = multiply_add(x, y, sum);  // the product of two floats is exact
}
FASTSOFTMAX_INLINE void add_to(Wide<double>& sum, Doubles<double> x) {
    const Wide<double> next = two_sum(sum.high, x);
    sum = {next.high, sum.low + next.low};
}
FASTSOFTMAX_INLINE void add_product_to(Wide<double>& sum, Doubles<double> x, Doubles<double> y) {
    const Pack<double> product = x * y;
    add_to(sum, product);
    sum.low = sum.low + fma(x, y, -product);
}

// Folds the partial sums of one slice.
FASTSOFTMAX_INLINE Two<double> folded(Wide<float> partial) {
    return {fold_sum(part(partial, 0) + part(partial, 1)), 0};
}

FASTSOFTMAX_ONCE Two<double> folded(Wide<double> partial) {
    constexpr int lanes = Pack<double>::lanes;
    Two<double> parts[lanes];
    for (int i = 0; i < lanes; ++i) parts[i] = {lane(partial.high, i), lane(partial.low, i)};
    for (int count = lanes / 2; count > 0; count /= 2)
        for (int i = 0; i < count; ++i) parts[i] = parts[i] + parts[i + count];
    // The error of an infinite sum is NaN; the sum itself is right.
    if (!(parts[0].high - parts[0].high == 0)) return {fold_sum(partial.high), 0};
    return parts[0];
}

// Puts the sum of one slice into every lane.
template <class T>
FASTSOFTMAX_INLINE Wide<T> in_all_lanes(Two<double> sum) {
    if constexpr (sizeof(T) == 4)
        return doubles<T>(sum.high);
    else
        return {broadcast(sum.high), broadcast(sum.low)};
}

// Folds the partial sums of as many slices as a pack has lanes: `partial[i]` has those of slice i.
FASTSOFTMAX_ONCE Wide<float> folded(const Wide<float> (&partial)[Pack<float>::lanes]) {
    constexpr int lanes = Pack<float>::lanes;
    Pack<double> sums[lanes];
    for (int i = 0; i < lanes; ++i) sums[i] = part(partial[i], 0) + part(partial[i], 1);
    return joined(fold_sums(sums), fold_sums(sums + lanes / 2));
}

FASTSOFTMAX_ONCE Wide<double> folded(const Wide<double> (&partial)[Pack<double>::lanes]) {
    constexpr int lanes = Pack<double>::lanes;
    double high[lanes], low[lanes];
    for (int i = 0; i < lanes; ++i) {
        const Two<double> sum = folded(partial[i]);
        high[i] = sum.high;
        low[i] = sum.low;
    }
    return {load_pack<double>(high), load_pack<double>(low)};
}

// Folds `count` partial sums of as many slices as a pack has lanes: each pack has one of every slice.
FASTSOFTMAX_ONCE Wide<float> folded(Wide<float>* partial, int count) {
    for (count /= 2; count > 0; count /= 2)
        for (int i = 0; i < count; ++i) partial[i] = partial[i] + partial[i + count];
    return partial[0];
}

FASTSOFTMAX_ONCE Wide<double> folded(Wide<double>* partial, int count) {
    Pack<double> plain[Pack<double>::lanes];
    for (int i = 0; i < count; ++i) plain[i] = partial[i].high;
    for (count /= 2; count > 0; count /= 2)
        for (int i = 0; i < count; ++i) {
            partial[i] = partial[i] + partial[i + count];
            plain[i] = plain[i] + plain[i + count];
        }
    // As above: if the sum is infinite, the plain one is right.
    const Pack<double> zero = broadcast(0.0);
    const Mask<double> finite = equal(partial[0].high - partial[0].high, zero);
    return select(finite, partial[0], Wide<double>{plain[0], zero});
}

// How many partial sums a slice has in a tile. A slice of few classes, which is never a row, has one.
template <class T>
FASTSOFTMAX_INLINE int partial_sums(std::ptrdiff_t classes) {
    return classes <= fastsoftmax::few_classes ? 1 : Pack<T>::lanes;
}

// Sums a row, or the products of two rows.
template <class T>
struct Accumulator {
    Wide<T> sum = widen(broadcast(T(0)));

    FASTSOFTMAX_INLINE void add(Pack<T> x) { add_to(sum, to_doubles(x)); }
    FASTSOFTMAX_INLINE void add_product(Pack<T> x, Pack<T> y) { add_product_to(sum, to_doubles(x), to_doubles(y)); }
    FASTSOFTMAX_INLINE Two<double> total() const { return folded(sum); }
};

// Sums the slices of a tile in the same way.
template <class T>
class TileSum {
  public:
    FASTSOFTMAX_INLINE explicit TileSum(std::ptrdiff_t classes) : count_(partial_sums<T>(classes)) {
        for (int i = 0; i < count_; ++i) partial_[i] = widen(broadcast(T(0)));
    }
    FASTSOFTMAX_INLINE void add(std::ptrdiff_t c, Pack<T> x) { add_to(partial_[c & (count_ - 1)], to_doubles(x)); }
    FASTSOFTMAX_INLINE void add_product(std::ptrdiff_t c, Pack<T> x, Pack<T> y) {
        add_product_to(partial_[c & (count_ - 1)], to_doubles(x), to_doubles(y));
    }
    FASTSOFTMAX_INLINE Wide<T> total() { return folded(partial_, count_); }

  private:
    Wide<T> partial_[Pack<T>::lanes];
    int count_;
};

// How many terms are added to a lane of a sum before its errors are carried over.
constexpr std::ptrdiff_t terms_to_carry = 8;

// A sum of exponentials, in the same order but cheaper. `sum` adds the powers by Knuth's two-sum. `low` adds the errors
// of that and the products power * growth, and is carried over before its own rounding counts. Error: 0.18 * 2^-24
// (double 2^-53) of the sum, from adding eight growths of 0.044.
template <class T>
struct PowerSum {
    Pack<T> sum = broadcast(T(0)), low = broadcast(T(0));

    FASTSOFTMAX_LONG void add(Pack<T> power, Pack<T> growth) {
        const Pack<T> next = sum + power, back = next - sum;
        low = low + multiply_add(power, growth, (sum - (next - back)) + (power - back));
        sum = next;
    }
    FASTSOFTMAX_INLINE void carry() {
        const Pack<T> next = sum + low;
        low = low - (next - sum);
        sum = next;
    }
    FASTSOFTMAX_INLINE Two<Pack<T>> in_two() const { return fast_two_sum(sum, low); }
    FASTSOFTMAX_INLINE Wide<T> wide() const {
        if constexpr (sizeof(T) == 4)
            return widen(sum) + widen(low);
        else
            return in_two();
    }
};

}  // namespace
