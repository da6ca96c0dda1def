// The rows of a run, and the sums that are known of slices.
#pragma once

#include "signatures.hpp"
#include "sums.hpp"

namespace {

using fastsoftmax::Run;
using fastsoftmax::Statistics;
using fastsoftmax::Strided;

// Some neighbouring rows of a run.
template <class T>
struct Rows {
    const Run& run;
    std::ptrdiff_t first;
    int count;

    FASTSOFTMAX_INLINE const T* x(int i) const { return at(run.x, i); }
    FASTSOFTMAX_INLINE const T* dy(int i) const { return at(run.dy, i); }
    FASTSOFTMAX_INLINE T* out(int i) const { return at(run.out, i); }
    FASTSOFTMAX_INLINE T* second_out(int i) const { return at(run.second_out, i); }

  private:
    FASTSOFTMAX_INLINE T* at(const Strided& array, int i) const {
        return reinterpret_cast<T*>(array.data + (first + i) * array.slice_stride);
    }
};

// Divides by the temperature in steps, so that nothing overflows unless the quotient does: scores times `before`, their
// difference times `after` (powers of two, one of them 1), over `rest`, whose reciprocal is a normal number.
struct Temperature {
    double before = 1, after = 1, rest = 1;

    FASTSOFTMAX_ONCE explicit Temperature(double temperature) {
        if (temperature > 1) {
            const std::int64_t exponent = same_bits<std::int64_t>(temperature) >> 52 << 52;  // a power of two's bits
            before = temperature < 2 ? 0.5 : 1 / same_bits<double>(exponent);
        } else if (temperature < 0x1p-1000) {
            after = 0x1p60;  // makes a subnormal normal
        }
        rest = temperature * before * after;
    }
};

FASTSOFTMAX_INLINE Wide<double> broadcast2(const double (&parts)[2]) {
    return {broadcast(parts[0]), broadcast(parts[1])};
}

// 2^k for integers k in [-1022, 1023].
template <int packs>
FASTSOFTMAX_INLINE Pack<double, packs> power_of_two(Pack<double, packs> k) {
    const Pack<double, packs> field = k + broadcast<double, packs>(ExpConstants<double>::rounder + 1023);
    return bit_cast<double>(shift_left(bit_cast<std::int64_t>(field), 52));
}

// a * 2^k for integers k, rounded once: k is split into three steps, whose powers are multiplied in the order of the
// steps' sizes, the smallest first. A k beyond 3000 counts as 3000, one below -3000 as -3000.
template <int packs>
FASTSOFTMAX_INLINE Pack<double, packs> times_power(Pack<double, packs> a, Pack<double, packs> k) {
    const Pack<double, packs> most = broadcast<double, packs>(1000);
    Pack<double, packs> steps[3];
    for (auto& step : steps) {
        step = max(-most, min(most, k));
        k = k - step;
    }
    return a * power_of_two(steps[2]) * power_of_two(steps[1]) * power_of_two(steps[0]);
}

FASTSOFTMAX_INLINE void set(double (&parts)[2], Two<double> value) {
    parts[0] = value.high;
    parts[1] = value.low;
}
FASTSOFTMAX_INLINE void set(double (&parts)[2], Wide<double> value) {
    set(parts, Two<double>{lane(value.high, 0), lane(value.low, 0)});
}

// sum * exp(difference) * 2^exponent: one block's sum on the scale of another. 0 where the factor is below 2^-1500.
FASTSOFTMAX_ONCE Wide<double> rescaled(Wide<double> sum, Wide<double> difference, double exponent) {
    const Pack<double> n = round_to_integer(difference.high * broadcast(ExpConstants<double>::log2e));
    double power = lane(n, 0) + exponent;
    // Out of reach; only a NaN stays.
    if (!(power > -1500)) return {sum.high * broadcast(0.0), broadcast(0.0)};
    if (power > 1000) power = 1000;
    const Wide<double> product = sum * exp_reduced(difference, n);
    // In two steps: sums are kept well above 1, so that the first leaves a normal number.
    const double first = power < -750 ? -750 : power;
    const Pack<double> scale = power_of_two(broadcast(first)), rest = power_of_two(broadcast(power - first));
    return {product.high * scale * rest, product.low * scale * rest};
}

// The exponentials of as many slices as a pack has lanes.
template <class T>
struct Measured {
    Pack<T> max;        // the largest score
    Two<Pack<T>> top;   // its exponential; NaN where that is infinite
    Two<Pack<T>> rest;  // the sum of all others
};

template <class T, class V>
inline void get_lane(double (&to)[2], const V& value, int i) {
    if constexpr (sizeof(T) == 4) {
        to[0] = lane(value, i);
        to[1] = 0;
    } else {
        to[0] = lane(value.high, i);
        to[1] = lane(value.low, i);
    }
}

template <class T>
FASTSOFTMAX_INLINE Wide<T> load_wide(const double* high, const double* low) {
    if constexpr (sizeof(T) == 4)
        return load_doubles<T>(high);
    else
        return {load_doubles<T>(high), load_doubles<T>(low)};
}

template <Operation op>
constexpr bool is_loss = signature<op>.labels != fastsoftmax::PerSlice::none;

template <class Op>
constexpr bool may_write_second = signature<Op::operation>.second_output;

}  // namespace
