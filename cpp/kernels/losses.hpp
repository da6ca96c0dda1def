// Cross-entropy: what rows and tiles do alike once their slices are measured.
#pragma once

#include "results.hpp"

namespace {

// A class of each slice of a pack.
template <class T>
class Classes {
  public:
    FASTSOFTMAX_INLINE explicit Classes(const std::int64_t* index) {
        for (int i = 0; i < parts; ++i) part_[i] = load_pack<std::int64_t>(index + i * Pack<std::int64_t>::lanes);
    }

    // Where there are so few that a lane of T holds one.
    FASTSOFTMAX_INLINE Pack<Integer<T>> few() const {
        if constexpr (parts == 2)
            return to_int32(joined(part_[0], part_[1]));
        else
            return part_[0];
    }

  private:
    static constexpr int parts = Pack<T>::lanes / Pack<std::int64_t>::lanes;
    Pack<std::int64_t> part_[parts];
};

// A class of each slice, of which there are few.
template <class T>
class Positions {
  public:
    FASTSOFTMAX_INLINE explicit Positions(const std::int64_t* classes) : positions_(Classes<T>(classes).few()) {}
    // The slices of which it is class c.
    FASTSOFTMAX_INLINE Mask<T> at(std::ptrdiff_t c) const {
        return equal(positions_, broadcast(static_cast<Integer<T>>(c)));
    }

  private:
    Pack<Integer<T>> positions_;
};

// The labels of up to a pack of slices, from `first` of the run on.
template <class T>
struct Labels {
    static constexpr int lanes = Pack<T>::lanes;
    std::int64_t index[lanes];  // negative: none
    bool given;                 // otherwise none is an ignored slice
    bool any_ignored;
    Doubles<T> chosen;

    // It holds nothing unless a loss is wanted.
    FASTSOFTMAX_INLINE Labels(bool wanted, const Run& run, std::ptrdiff_t first, int count) {
        if (wanted) read(run, first, count);
    }

    FASTSOFTMAX_INLINE bool ignored(int i) const { return given && index[i] < 0; }

  private:
    FASTSOFTMAX_INLINE void read(const Run& run, std::ptrdiff_t first, int count) {
        given = run.label != nullptr;
        any_ignored = false;
        chosen = doubles<T>(0);
        if (given && count == lanes) {
            __builtin_memcpy(index, run.label + first, sizeof index);
            chosen = load_doubles<T>(run.chosen + first);
        } else {
            for (auto& none : index) none = -1;
            if (!given) return;
            for (int i = 0; i < count; ++i) index[i] = run.label[first + i];
            chosen = load_doubles<T>(run.chosen + first, count);
        }
        // The sign of an index, or of what the last class has over it.
        std::uint64_t signs = 0;
        const auto last = static_cast<std::uint64_t>(run.classes - 1);
        for (int i = 0; i < count; ++i) {
            const auto c = static_cast<std::uint64_t>(index[i]);
            signs |= c | (last - c);
        }
        any_ignored = signs >> 63;
        if (!any_ignored) return;
        for (auto& c : index)
            if (c >= run.classes) c = -1;
    }
};

// Losses of slices whose labels have the scores `scores`, with what the terms add: to run.value. Of an undefined slice
// every log-probability is NaN, and so is the product, whatever it is multiplied by. Without labels, that of the
// largest entry shows it: the difference from any other number could overflow.
template <class T>
FASTSOFTMAX_INLINE void conclude_losses(const Run& run, std::ptrdiff_t first, int count, const Measured<T>& m,
                                        const LogTotal<T>& log, const Labels<T>& labels, Pack<T> scores,
                                        const double* from_terms) {
    double* losses = run.value + first;
    const Doubles<T> minus_log =
        minus_log_probability<T>(m, labels.given ? scores : m.max, log.wide(), run.temperature);
    store_doubles<T>(losses, product_or_zero(labels.chosen, minus_log), count);
    if (from_terms)
        for (int i = 0; i < count; ++i) losses[i] = losses[i] + from_terms[i];
    if (labels.any_ignored)
        for (int i = 0; i < count; ++i)
            if (labels.ignored(i)) losses[i] = 0;
}

// minus the log-probabilities of one class, or of a pack of classes: what terms weigh.
template <class T, class LogProbability>
struct MinusLog {
    LogProbability log_probability;
    Dominance<T> dominance;

    FASTSOFTMAX_INLINE MinusLog of_lane(int i) const { return {log_probability.of_lane(i), {dominance, i}}; }

    // 0 where the term is: such a class counts as nothing, whatever its score.
    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> x, Pack<T> term) const {
        const Pack<T> log = dominance(x, log_probability(x));
        return select(equal(term, broadcast(T(0))), broadcast(T(0)), -log);
    }
};

// Calls body(minus_log).
template <class T, class Body>
FASTSOFTMAX_INLINE void with_minus_log(const Measured<T>& m, const LogTotal<T>& log, double temperature, Body body) {
    with_log_probability(m, log, temperature, [&](auto log_probability) __attribute__((always_inline)) {
        body(MinusLog<T, decltype(log_probability)>{log_probability, {m, log}});
    });
}

// Gradients times the power of two that their factor lacks.
template <class T>
FASTSOFTMAX_INLINE Pack<T> raised(Pack<T> gradient, Doubles<T> exponent) {
    return narrow(times_power(to_doubles(gradient), exponent));
}

// 0 where there is none: another thread has changed it since it was found to be the largest.
template <class T>
FASTSOFTMAX_INLINE std::ptrdiff_t first_equal(const T* x, std::ptrdiff_t count, T value) {
    const auto wanted = broadcast(value);
    std::ptrdiff_t i = 0;
    for (; i + Pack<T>::lanes <= count; i += Pack<T>::lanes)
        if (const std::uint32_t bits = equal_bits(load(x + i), wanted)) return i + __builtin_ctz(bits);
    const std::uint32_t bits = equal_bits(load_first(x + i, count - i, T(__builtin_nan(""))), wanted);
    return bits ? i + __builtin_ctz(bits) : 0;
}

// Single terms and scores of up to a pack of slices. Strides in elements, except that of scores from slice to slice.
template <class T>
struct Entries {
    const T* terms;
    std::ptrdiff_t term_slice_stride, term_class_stride;
    const T* x;
    std::ptrdiff_t x_slice_stride, x_class_stride;

    double term(int i, std::ptrdiff_t c) const {
        return static_cast<double>(terms[i * term_slice_stride + c * term_class_stride]);
    }
    // The class of the largest score.
    FASTSOFTMAX_ONCE std::ptrdiff_t largest(int i, std::ptrdiff_t classes, T score) const {
        const T* slice = reinterpret_cast<const T*>(reinterpret_cast<const std::byte*>(x) + i * x_slice_stride);
        if (x_class_stride == 1) return first_equal(slice, classes, score);
        std::ptrdiff_t c = 0;
        while (c + 1 < classes && slice[c * x_class_stride] != score) ++c;
        return c;
    }
};

// The gradient of up to a pack of slices: scale * (total p - terms - chosen at the label). At the label and at a
// class that dominates this cancels; there it is computed apart, to 1 ULP and what the exponential adds.
template <class T>
class LossGradient {
    static constexpr int lanes = Pack<T>::lanes;

  public:
    Pack<T> label_value, max_value;
    std::int64_t largest[lanes];  // the class that max_value is for; negative: none

    FASTSOFTMAX_LONG LossGradient(const Run& run, std::ptrdiff_t first, int count, const Measured<T>& m,
                                  const Labels<T>& labels, Pack<T> scores, Pack<T> label_exponentials,
                                  Doubles<T> sum_of_terms, const Entries<T>& entries)
        : total_(labels.chosen + sum_of_terms),
          scale_(load_doubles<T>(run.scale + first, count)),
          unscaled_(m.top + m.rest),
          weight_(product_in_two(total_, scale_)),
          probability_(unscaled_, weight_),
          factor_(broadcast(T(0))),
          wide_(wide_lanes(total_ * scale_, probability_.factor.high)) {
        Two<Pack<T>> at_label = weight_, left = {broadcast(T(0)), broadcast(T(0))};
        Doubles<T> label_weights = labels.chosen, max_weights = total_;
        const Mask<T> apart = dominant(m);
        if (run.terms) {
            factor_ = narrow(scale_);
            wide_ = wide_ | wide_lanes(scale_, factor_);
            double at_labels[lanes], at_max[lanes] = {};
            store_doubles(at_labels, labels.chosen);
            for (int i = 0; i < lanes; ++i) {
                largest[i] = -1;
                if (i >= count || labels.ignored(i)) continue;
                if (lane(apart, i)) {
                    const std::int64_t c = largest[i] = entries.largest(i, run.classes, lane(m.max, i));
                    at_max[i] = (labels.index[i] == c ? at_labels[i] : 0) + entries.term(i, c);
                }
                if (labels.given) at_labels[i] += entries.term(i, labels.index[i]);
            }
            label_weights = load_doubles<T>(at_labels);
            max_weights = load_doubles<T>(at_max);
            at_label = product_in_two(label_weights, scale_);
            left = product_in_two(total_ - max_weights, scale_);
        } else {
            // Another class than the label has nothing subtracted that would cancel.
            const std::uint32_t at_label = lane_bits(apart & equal(scores, m.max));
            for (int i = 0; i < lanes; ++i) largest[i] = at_label >> i & 1 ? labels.index[i] : -1;
        }
        const Two<Pack<T>> factor = probability_.factor;
        const Pack<T> e = label_exponentials;
        label_value = fma(e, factor.high, -at_label.high) + multiply_add(e, factor.low, -at_label.low);
        // total p - largest = (total - largest) - total (1 - p)
        max_value = left.high - (probability_(m.rest.high) + (m.rest.low * factor.high - left.low));
        any_wide_ = lane_bits(wide_) != 0;
        if (any_wide_) {
            const GradientEnds<T> ends = wide_ends(m, unscaled_, e, total_, label_weights, max_weights, scale_);
            label_value = select(wide_, ends.at_label, label_value);
            max_value = select(wide_, ends.at_max, max_value);
        }
    }

    // One slice a lane.
    FASTSOFTMAX_LONG Pack<T> operator()(Pack<T> e) const {
        const Pack<T> value = probability_(e);
        return any_wide_ ? select(wide_, widely(e, broadcast(T(0)), total_, scale_, unscaled_), value) : value;
    }
    FASTSOFTMAX_LONG Pack<T> operator()(Pack<T> e, Pack<T> term) const {
        const Pack<T> value = probability_(e, term * factor_);
        return any_wide_ ? select(wide_, widely(e, term, total_, scale_, unscaled_), value) : value;
    }

    // Slice i in all lanes.
    class Row {
      public:
        FASTSOFTMAX_INLINE Row(const LossGradient& all, int i)
            : all_(all),
              i_(i),
              probability_(all.probability_, i),
              factor_(spread(all.factor_, i)),
              wide_(lane(all.wide_, i) != 0) {}

        FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> e) const {
            return wide_ ? widely_row(e, broadcast(T(0))) : probability_(e);
        }
        FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> e, Pack<T> term) const {
            return wide_ ? widely_row(e, term) : probability_(e, term * factor_);
        }

      private:
        const LossGradient& all_;
        int i_;
        Probability<T> probability_;
        Pack<T> factor_;
        bool wide_;

        FASTSOFTMAX_ONCE Pack<T> widely_row(Pack<T> e, Pack<T> term) const {
            return widely(e, term, spread(all_.total_, i_), spread(all_.scale_, i_), {all_.unscaled_, i_});
        }
    };

  private:
    Doubles<T> total_, scale_;
    Probability<T> unscaled_;
    Two<Pack<T>> weight_;  // total * scale
    Probability<T> probability_;
    Pack<T> factor_;  // of the terms
    Mask<T> wide_;    // slices whose factors two numbers of T do not hold
    bool any_wide_;

    // Where both parts of a factor are no normal numbers of T with room for what they multiply; but 0 stays 0.
    FASTSOFTMAX_INLINE static Mask<T> wide_lanes(Doubles<T> exact, Pack<T> factor) {
        constexpr T least = sizeof(T) == 4 ? T(0x1p-100) : T(0x1p-900), most = sizeof(T) == 4 ? T(0x1p100) : T(0x1p830);
        const Pack<T> size = max(factor, -factor);
        const Mask<T> fits = less(broadcast(least), size) & less(size, broadcast(most));
        const Mask<T> none = broadcast(Integer<T>(0)), others = select(fits, none, broadcast(Integer<T>(-1)));
        return lane_bits(others) == 0 ? none : select(is_zero(exact), none, others);
    }

    // All by value, so that what is in registers stays there.
    FASTSOFTMAX_ONCE static GradientEnds<T> wide_ends(const Measured<T>& m, Probability<T> unscaled, Pack<T> e,
                                                      Doubles<T> total, Doubles<T> label, Doubles<T> largest,
                                                      Doubles<T> scale) {
        return {m, unscaled, e, total, label, largest, scale};
    }

    // By way of a probability in double, with a rounding of its own.
    FASTSOFTMAX_INLINE static Pack<T> widely(Pack<T> e, Pack<T> term, Doubles<T> total, Doubles<T> scale,
                                             const Probability<T>& unscaled) {
        return narrow(scale * (total * to_doubles(unscaled(e)) - to_doubles(term)));
    }
};

}  // namespace
