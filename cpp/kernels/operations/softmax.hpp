// softmax: each exponential divided by the sum of all.
#pragma once

#include "../group.hpp"

namespace {

struct Softmax {
    static constexpr auto operation = Operation::softmax;
    static constexpr bool writes = true;
    // Shorter rows take an eighth less time together; rows of 1000 classes took longer, so they go one after another.
    static constexpr std::ptrdiff_t bytes_together = 7168;
    template <class T, bool few>
    using Sum = KeptSum<T, few>;

    // Error: 1.60 ULP seen, 1.74 by its parts: 1.06 from the exponential, where the result's significand is nearly 2,
    // 0.18 from the sum and 0.5 from the rounding.
    template <class T, class Exp>
    struct Results {
        struct Value {
            Two<Pack<T>> factor;

            FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> e, std::ptrdiff_t = 0) const {
                return min(broadcast(T(1)), product(e, factor));
            }
        };

        std::uint32_t near;
        Value value;

        Results() = default;
        FASTSOFTMAX_INLINE Results(const Group<T>&, const Exp& exp, Two<Pack<T>> sum)
            : near(lanes_within<Exp>(sum.high, FixedRange<T>::least)), value{reciprocal<T>(exp.defined(sum))} {}

        FASTSOFTMAX_INLINE Value columns() const { return value; }
        FASTSOFTMAX_INLINE Value row(int i) const {
            return {{spread(value.factor.high, i), spread(value.factor.low, i)}};
        }
        template <class Put>
        FASTSOFTMAX_INLINE void finish_row(int, Put) const {}
    };
};

}  // namespace
