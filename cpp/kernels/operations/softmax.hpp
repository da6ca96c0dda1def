// softmax: each exponential over the sum of all.
#pragma once

#include "../group.hpp"

namespace {

struct Softmax {
    static constexpr auto operation = Operation::softmax;
    static constexpr bool writes = true;
    // Rows of 1000 go one after another: together they took longer, while shorter ones took an eighth less.
    static constexpr std::ptrdiff_t bytes_together = 7168;
    template <class T, bool few>
    using Sum = KeptSum<T, few>;

    // Error: 1.60 ULP seen, 1.74 by the parts: the exponential 1.06 where the result's digits are nearly 2, the sum
    // 0.18 and the rounding.
    template <class T>
    struct Results {
        Two<Pack<T>> factor;
        std::uint32_t near;

        Results() = default;
        FASTSOFTMAX_INLINE Results(const Group<T>&, Two<Pack<T>> sum)
            : factor(reciprocal<T>(sum)), near(lanes_within(sum.high, FixedRange<T>::least)) {}

        struct Columns {
            Two<Pack<T>> factor;
            FASTSOFTMAX_INLINE explicit Columns(const Results& all) : factor(all.factor) {}
            FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> e, std::ptrdiff_t) const { return scaled(e, factor); }
        };

        struct Row {
            Two<Pack<T>> factor;
            FASTSOFTMAX_INLINE Row(const Results& all, int i)
                : factor{spread(all.factor.high, i), spread(all.factor.low, i)} {}
            FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> e) const { return scaled(e, factor); }
            template <class Put>
            FASTSOFTMAX_INLINE void finish(Put) const {}
        };

      private:
        FASTSOFTMAX_INLINE static Pack<T> scaled(Pack<T> e, Two<Pack<T>> factor) {
            return min(broadcast(T(1)), product(e, factor));
        }
    };
};

}  // namespace
