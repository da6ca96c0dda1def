// Cross-entropy by labels, also with gradient and Hessian. The sum of the exponentials leaves out the label's, so that
// nothing cancels, and the largest class need not be known.
#pragma once

#include "../group.hpp"
#include "curvature.hpp"

namespace {

// Weights of moderate size, the only ones that near slices have: no gradient needs mending.
template <class T>
struct ModerateWeight {
    ModerateWeight() = default;
    FASTSOFTMAX_INLINE ModerateWeight(const Run&, std::ptrdiff_t, int, const Labels<T>&, Two<Pack<T>>, Pack<T>) {}
    FASTSOFTMAX_INLINE ModerateWeight of_lane(int) const { return {}; }
    FASTSOFTMAX_INLINE Pack<T> mended(Pack<T>, Pack<T> gradient) const { return gradient; }
    FASTSOFTMAX_INLINE Pack<T> mended_label(const Measured<T>&, Pack<T> gradient) const { return gradient; }
};

// Weights of any size. Also sets the gradients of ignored slices to 0, whatever the scores are.
template <class T>
class AnyWeight {
  public:
    AnyWeight() = default;
    // `sum`: of the exponentials; `factor`: by which the gradient multiplies them.
    FASTSOFTMAX_INLINE AnyWeight(const Run& run, std::ptrdiff_t first, int count, const Labels<T>& labels,
                                 Two<Pack<T>> sum, Pack<T> factor)
        : unscaled_(sum),
          total_(labels.chosen),
          scale_(load_doubles<T>(run.scale + first, count)),
          exponent_(run.exponent ? load_doubles<T>(run.exponent + first, count) : doubles<T>(0)),
          wide_(wide_lanes(total_ * scale_, factor)),
          raises_(run.exponent != nullptr) {
        Integer<T> ignored[Pack<T>::lanes];
        for (int i = 0; i < Pack<T>::lanes; ++i) ignored[i] = labels.ignored(i) ? -1 : 0;
        ignored_ = load_pack<Integer<T>>(ignored);
        any_ = raises_ || lane_bits(wide_ | ignored_) != 0;
    }

    FASTSOFTMAX_INLINE AnyWeight of_lane(int i) const {
        AnyWeight one;
        one.any_ = raises_ || lane(wide_ | ignored_, i) != 0;
        one.raises_ = raises_;
        if (!one.any_) return one;
        one.unscaled_ = {unscaled_, i};
        one.total_ = spread(total_, i);
        one.scale_ = spread(scale_, i);
        one.exponent_ = spread(exponent_, i);
        one.wide_ = spread(wide_, i);
        one.ignored_ = spread(ignored_, i);
        return one;
    }

    // The gradient of a class with exponential e: `gradient`, unless it has to be mended.
    FASTSOFTMAX_INLINE Pack<T> mended(Pack<T> e, Pack<T> gradient) const {
        return any_ ? mended_of(e, gradient) : gradient;
    }
    FASTSOFTMAX_INLINE Pack<T> mended_label(const Measured<T>& m, Pack<T> gradient) const {
        return any_ ? finished(select(wide_, wide_ends(m, unscaled_, m.top.high, total_, total_, total_, scale_).at_max,
                                      gradient))
                    : gradient;
    }

  private:
    Probability<T> unscaled_;
    Doubles<T> total_, scale_, exponent_;
    Mask<T> wide_, ignored_;
    bool raises_, any_;

    FASTSOFTMAX_ONCE Pack<T> mended_of(Pack<T> e, Pack<T> gradient) const {
        return finished(select(wide_, wide_gradient(e, broadcast(T(0)), total_, scale_, unscaled_), gradient));
    }
    FASTSOFTMAX_INLINE Pack<T> finished(Pack<T> gradient) const {
        if (raises_) gradient = raised(gradient, exponent_);
        return select(ignored_, broadcast(T(0)), gradient);
    }
};

struct Nothing {};

template <bool with_gradient>
struct CrossEntropy {
    static constexpr auto operation = with_gradient ? Operation::cross_entropy_grad : Operation::cross_entropy;
    static constexpr bool writes = with_gradient;
    static constexpr std::ptrdiff_t bytes_together = fastsoftmax::rows_room;
    template <class T, bool few>
    using Sum = LabelSum<T, few, with_gradient>;

    // The gradient: weight * e / S, except at the label, where it is -weight * (S - its e) / S.
    template <class T, class Exp>
    struct Results {
        using Weight = std::conditional_t<Exp::is_fixed, ModerateWeight<T>, AnyWeight<T>>;
        using Second = std::conditional_t<with_gradient, Curvature<T, !Exp::is_fixed>, Nothing>;

        struct Value {
            Pack<T> scale;  // a power of two for the exponentials, to make room for the weight
            Two<Pack<T>> factor;
            Weight weight;

            FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> e) const {
                const Pack<T> scaled = e * scale;
                return weight.mended(scaled, product(scaled, factor));
            }
        };

        // The gradients of class c of the slices in the lanes.
        class Columns {
          public:
            FASTSOFTMAX_INLINE explicit Columns(const Results& all)
                : value_(all.value), label_value_(all.label_value), at_label_(all.label) {}
            FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> e, std::ptrdiff_t c) const {
                return select(at_label_.at(c), label_value_, value_(e));
            }

          private:
            Value value_;
            Pack<T> label_value_;
            Positions<T> at_label_;
        };

        std::uint32_t near, near_values;
        Value value;
        Pack<T> label_value;
        std::int64_t label[Pack<T>::lanes];
        std::uint32_t unlikely;  // slices in which another class than the label may dominate
        Second second;

        Results() = default;
        // From the exponentials of the labels and the sums of all others.
        FASTSOFTMAX_INLINE Results(const Group<T>& group, const Exp& exp, Growth<T, 1> e, Two<Pack<T>> rest) {
            set(group, exp, Labels<T>(group.run, group.first, group.count), e, rest);
        }
        FASTSOFTMAX_INLINE Results(const Group<T>& group, const Exp& exp, Two<Pack<T>> rest) {
            const Labels<T> labels(group.run, group.first, group.count);
            set(group, exp, labels, exp(group.scores(labels)), rest);
        }

        FASTSOFTMAX_INLINE Columns columns() const { return Columns(*this); }
        FASTSOFTMAX_INLINE Value row(int i) const {
            return {spread(value.scale, i),
                    {spread(value.factor.high, i), spread(value.factor.low, i)},
                    value.weight.of_lane(i)};
        }
        // Calls put(c, value) for the label, whose gradient is computed apart.
        template <class Put>
        FASTSOFTMAX_INLINE void finish_row(int i, Put put) const {
            if (label[i] >= 0) put(label[i], lane(label_value, i));
        }

        // Before the second output is written, these look for classes other than the label that dominate: in the slices
        // in the lanes, in row i, or in a slice in blocks.
        FASTSOFTMAX_INLINE void see_classes(const Group<T>& group) {
            second.see_classes(unlikely & near, group.run.classes,
                               [&](std::ptrdiff_t c) __attribute__((always_inline)) {
                                   return load_pack<T>(group.kept + c * group.kept_class_stride);
                               });
        }
        FASTSOFTMAX_INLINE void see_row(int i, double largest_part, const T* e, std::ptrdiff_t classes) {
            if ((unlikely >> i & 1) && second.may_dominate(i, largest_part)) second.see_row(i, e, classes);
        }
        FASTSOFTMAX_INLINE void see_largest(Pack<T> largest, Pack<T> rest) {
            if (unlikely & 1) second.see_largest(largest, rest);
        }
        struct SecondValue {
            Value value;
            Second second;

            FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> e) const {
                if constexpr (Exp::is_fixed)
                    return second(e, value(e));
                else
                    return second(e);
            }
        };
        FASTSOFTMAX_INLINE SecondValue second_columns() const { return {value, second}; }
        FASTSOFTMAX_INLINE SecondValue second_row(int i) const { return {row(i), second.of_lane(i)}; }

      private:
        FASTSOFTMAX_INLINE void set(const Group<T>& group, const Exp& exp, const Labels<T>& labels, Growth<T, 1> e,
                                    Two<Pack<T>> rest) {
            const Run& run = group.run;
            const Two<Pack<T>> top = {e.rounded(), e.lost()};
            const Pack<T> sum = top.high + rest.high;
            const T classes = static_cast<T>(run.classes);
            const Pack<T> least = broadcast(FixedRange<T>::least_of_logs * classes);
            // Labels of a probability above 2^-60. Below that, the ratio of the others to the label might overflow.
            const Mask<T> some = less(sum * broadcast(T(0x1p-60)), top.high);
            // Here, the label takes the place of the largest class.
            const Pack<T> to_label = own_scale(top.high);
            const Measured<T> m = {broadcast(T(0)), exp.defined(scaled(top, to_label)), scaled(rest, to_label)};
            Doubles<T> minus_log = to_doubles(LogTotal<T>(m).wide());
            if constexpr (Exp::is_fixed)
                near_values = lanes_within<Exp>(sum, FixedRange<T>::least_of_logs * classes) &
                              lane_bits(some & less(broadcast(FixedRange<T>::least_rest * classes), rest.high));
            else
                near_values = ~std::uint32_t{0};
            if constexpr (!Exp::is_fixed)
                if (~lane_bits(some) & bits_of(group.count))
                    minus_log = select(some, minus_log, minus_log_of_little(group, exp, labels, top, rest));
            store_doubles<T>(run.value + group.first, product_or_zero(labels.chosen, minus_log), group.count);
            if (labels.any_ignored)
                for (int i = 0; i < group.count; ++i)
                    if (labels.ignored(i)) run.value[group.first + i] = 0;
            if constexpr (!with_gradient) {
                near = near_values;
            } else {
                const Doubles<T> scales = load_doubles<T>(run.scale + group.first, group.count);
                near = near_values;
                if constexpr (Exp::is_fixed) {
                    const Pack<T> weight = narrow(labels.chosen * scales), size = max(weight, -weight);
                    // With such a weight, two numbers of T hold the factor, and exponentials that became 0 do not
                    // count.
                    const Mask<T> moderate =
                        less(broadcast(T(0x1p-34)), size) & less(size, broadcast(T(0x1p34))) & less(least * size, sum);
                    near &= lane_bits(moderate) | equal_bits(weight, broadcast(T(0)));
                    if (run.exponent)
                        near &= lane_bits(is_zero(load_doubles<T>(run.exponent + group.first, group.count)));
                }
                value.scale = own_scale(sum);
                const Two<Pack<T>> scaled_rest = scaled(rest, value.scale), scaled_top = scaled(top, value.scale);
                const Two<Pack<T>> all = exp.defined(scaled_top + scaled_rest);
                const Probability<T> probability(all);
                value.factor = Probability<T>(probability, product_in_two(labels.chosen, scales)).factor;
                value.weight = Weight(run, group.first, group.count, labels, all, value.factor.high);
                label_value = value.weight.mended_label({broadcast(T(0)), scaled_top, scaled_rest},
                                                        broadcast(T(0)) - product(scaled_rest, value.factor));
                __builtin_memcpy(label, labels.index, sizeof label);
                if (run.second_out.data) {
                    unlikely = ~lane_bits(less(rest.high, top.high)) & bits_of(group.count);
                    second = Second(run, group.first, group.count, labels, labels.chosen, exp.defined(top + rest),
                                    rest.high);
                }
            }
        }

        // Minus the log-probability of labels whose probability is not above 2^-60, from the distance of their scores
        // to the largest.
        FASTSOFTMAX_ONCE static Doubles<T> minus_log_of_little(const Group<T>& group, const Exp& exp,
                                                               const Labels<T>& labels, Two<Pack<T>> label,
                                                               Two<Pack<T>> rest) {
            const Growth<T, 1> e = exp(exp.largest());
            const Two<Pack<T>> top = {e.rounded(), e.lost()};
            Two<Pack<T>> others = (label + rest) - top;
            const Mask<T> negative = less(others.high, broadcast(T(0)));
            others = {select(negative, broadcast(T(0)), others.high), select(negative, broadcast(T(0)), others.low)};
            const Measured<T> m = {exp.largest(), exp.defined(top), others};
            return minus_log_probability<T>(m, group.scores(labels), LogTotal<T>(m).wide(), group.run.temperature);
        }
    };
};

}  // namespace
