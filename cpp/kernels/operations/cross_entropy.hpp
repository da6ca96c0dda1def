// The cross-entropy of labels, also with its gradient. Nothing has to be known of the largest class: exponentials are
// summed without the label's, so that nothing cancels.
#pragma once

#include "../group.hpp"

namespace {

template <bool with_gradient>
struct CrossEntropy {
    static constexpr auto operation = with_gradient ? Operation::cross_entropy_grad : Operation::cross_entropy;
    static constexpr bool writes = with_gradient;
    static constexpr std::ptrdiff_t bytes_together = fastsoftmax::rows_room;
    template <class T, bool few>
    using Sum = LabelSum<T, few, with_gradient>;

    // The gradient: weight * e / S, except at the label, where it is -weight * (S - its e) / S.
    template <class T>
    struct Results {
        std::uint32_t near, near_values;
        Pack<T> scale;  // of the exponentials, a power of two that makes room for the weight
        Two<Pack<T>> factor;
        Pack<T> label_value;
        std::int64_t label[Pack<T>::lanes];

        Results() = default;

        // From the exponentials of labels and the sums of the others'.
        FASTSOFTMAX_INLINE Results(const Group<T>& group, Growth<T, 1> e, Two<Pack<T>> rest) {
            set(group, Labels<T>(true, group.run, group.first, group.count), e, rest);
        }
        FASTSOFTMAX_INLINE Results(const Group<T>& group, Two<Pack<T>> rest) {
            const Labels<T> labels(true, group.run, group.first, group.count);
            set(group, labels, FixedExponential<T>()(group.scores(labels)), rest);
        }

        // Of slices in the lanes.
        class Columns {
          public:
            FASTSOFTMAX_INLINE explicit Columns(const Results& all)
                : scale_(all.scale), factor_(all.factor), label_value_(all.label_value), at_label_(all.label) {}
            FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> e, std::ptrdiff_t c) const {
                return select(at_label_.at(c), label_value_, product(e * scale_, factor_));
            }

          private:
            Pack<T> scale_;
            Two<Pack<T>> factor_;
            Pack<T> label_value_;
            Positions<T> at_label_;
        };

        // Of slice i.
        class Row {
          public:
            FASTSOFTMAX_INLINE Row(const Results& all, int i)
                : scale_(spread(all.scale, i)),
                  factor_{spread(all.factor.high, i), spread(all.factor.low, i)},
                  label_(all.label[i]),
                  label_value_(lane(all.label_value, i)) {}
            FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> e) const { return product(e * scale_, factor_); }
            // Calls put(c, value) for what is computed apart.
            template <class Put>
            FASTSOFTMAX_INLINE void finish(Put put) const {
                if (label_ >= 0) put(label_, label_value_);
            }

          private:
            Pack<T> scale_;
            Two<Pack<T>> factor_;
            std::int64_t label_;
            T label_value_;
        };

      private:
        FASTSOFTMAX_INLINE void set(const Group<T>& group, const Labels<T>& labels, Growth<T, 1> e, Two<Pack<T>> rest) {
            const Run& run = group.run;
            const Two<Pack<T>> top = {e.rounded(), e.lost()};
            const Pack<T> sum = top.high + rest.high;
            const T classes = static_cast<T>(run.classes);
            const Pack<T> least = broadcast(FixedRange<T>::least_of_logs * classes);
            // Of a label below 2^-60 the ratio of the others to it might overflow.
            near_values = lane_bits(less(least, sum) & less(sum, broadcast(FixedRange<T>::most)) &
                                    less(sum * broadcast(T(0x1p-60)), top.high) &
                                    less(broadcast(FixedRange<T>::least_rest * classes), rest.high));
            // The label stands for the largest class.
            Measured<T> m;
            const Pack<T> to_label = own_scale(top.high);
            m.top = scaled(top, to_label);
            m.rest = scaled(rest, to_label);
            store_doubles<T>(run.value + group.first, product_or_zero(labels.chosen, to_doubles(LogTotal<T>(m).wide())),
                             group.count);
            if (labels.any_ignored)
                for (int i = 0; i < group.count; ++i)
                    if (labels.ignored(i)) run.value[group.first + i] = 0;
            if constexpr (!with_gradient) {
                near = near_values;
            } else {
                const Doubles<T> scales = load_doubles<T>(run.scale + group.first, group.count);
                const Pack<T> weight = narrow(labels.chosen * scales), size = max(weight, -weight);
                // Two numbers of T hold the factor, and exponentials that became 0 do not count.
                const Mask<T> moderate =
                    less(broadcast(T(0x1p-34)), size) & less(size, broadcast(T(0x1p34))) & less(least * size, sum);
                near = near_values & (lane_bits(moderate) | equal_bits(weight, broadcast(T(0))));
                if (run.exponent) near &= lane_bits(is_zero(load_doubles<T>(run.exponent + group.first, group.count)));
                scale = own_scale(sum);
                const Probability<T> probability(scaled(top, scale) + scaled(rest, scale));
                factor = Probability<T>(probability, product_in_two(labels.chosen, scales)).factor;
                label_value = -product(scaled(rest, scale), factor);
                __builtin_memcpy(label, labels.index, sizeof label);
            }
        }
    };
};

}  // namespace
