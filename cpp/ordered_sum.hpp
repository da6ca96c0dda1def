// Sums of one number for each slice, with bits that do not depend on how the slices were dealt out.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace fastsoftmax {

// x * 2^exponent, which may be beyond the range of a double.
struct Scaled {
    double x;
    int exponent;
};

// A sum in an order that depends only on positions. It has eight partial sums of two doubles each, so that it is right
// to the last digit.
class OrderedSum {
  public:
    void add(const double* values, std::ptrdiff_t count) {
        std::ptrdiff_t i = 0;
        for (; i < count && (position_ + i) % 8 != 0; ++i) add_to((position_ + i) % 8, values[i]);
        // Eight at a time, with the sums in registers.
        Pair high[4], low[4];
        __builtin_memcpy(high, high_, sizeof high);
        __builtin_memcpy(low, low_, sizeof low);
        for (; i + 8 <= count; i += 8)
            for (int k = 0; k < 4; ++k) {
                Pair x;
                __builtin_memcpy(&x, values + i + 2 * k, sizeof x);
                add_to(high[k], low[k], x);
            }
        __builtin_memcpy(high_, high, sizeof high);
        __builtin_memcpy(low_, low, sizeof low);
        for (; i < count; ++i) add_to((position_ + i) % 8, values[i]);
        position_ += count;
    }
    void add(double value) { add(&value, 1); }

    // Adds values[i] * 2^units[i]. The sum is then held in units of the largest so far.
    void add(const double* values, const double* units, std::ptrdiff_t count) {
        int largest = exponent_;
        for (std::ptrdiff_t i = 0; i < count; ++i)
            if (values[i] != 0 && std::isfinite(values[i]))
                largest = std::max(largest, std::ilogb(values[i]) + static_cast<int>(units[i]));
        for (int k = 0; k < 8; ++k) {
            high_[k] = std::ldexp(high_[k], exponent_ - largest);
            low_[k] = std::ldexp(low_[k], exponent_ - largest);
        }
        exponent_ = largest;
        for (std::ptrdiff_t i = 0; i < count; ++i) add(std::ldexp(values[i], static_cast<int>(units[i]) - exponent_));
    }

    // An empty sum to which only values in units are added.
    static OrderedSum in_units() {
        OrderedSum none;
        none.exponent_ = -100'000;  // below all
        return none;
    }

    Scaled total() const {
        OrderedSum all;
        double plain = 0;
        for (int k = 0; k < 8; ++k) {
            all.add_to(0, high_[k]);
            all.low_[0] += low_[k];
            plain += high_[k];
        }
        // If the sum is infinite, its low part is NaN; the high part is right.
        return {std::isfinite(plain) ? all.high_[0] + all.low_[0] : plain, exponent_};
    }

  private:
    using Pair __attribute__((vector_size(16))) = double;

    double high_[8] = {}, low_[8] = {};
    std::ptrdiff_t position_ = 0;
    int exponent_ = 0;

    void add_to(std::ptrdiff_t k, double x) { add_to(high_[k], low_[k], x); }

    template <class V>
    static void add_to(V& high, V& low, V x) {
        const V sum = high + x, back = sum - high;
        low += (high - (sum - back)) + (x - back);
        high = sum;
    }
};

}  // namespace fastsoftmax
