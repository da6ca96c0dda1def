// Cross-entropy: what rows and tiles do alike once their slices are measured.
#pragma once

#include "results.hpp"

namespace {

// The targets of up to a pack of slices, from `first` of the run on.
template <class T>
struct Targets {
    static constexpr int lanes = Pack<T>::lanes;
    std::int64_t index[lanes];  // 0 where there is none
    bool ignored[lanes];
    bool any_ignored;
    Doubles<T> chosen;

    // Of no slices (no loss is wanted) it holds nothing.
    FASTSOFTMAX_INLINE Targets(const Run& run, std::ptrdiff_t first, int count) {
        if (count > 0) read(run, first, count);
    }

  private:
    FASTSOFTMAX_ONCE void read(const Run& run, std::ptrdiff_t first, int count) {
        any_ignored = false;
        chosen = doubles<T>(0);
        std::int64_t targets[lanes] = {};
        if (run.target) {
            for (int i = 0; i < count; ++i) targets[i] = run.target[first + i];
            chosen = load_doubles<T>(run.chosen + first, count);
        }
        for (int i = 0; i < lanes; ++i) {
            ignored[i] = targets[i] < 0;
            any_ignored |= ignored[i];
            index[i] = targets[i] < 0 ? 0 : targets[i];
        }
    }
};

// Losses of slices whose targets have the scores `scores`, with what the terms add: to run.value.
template <class T>
FASTSOFTMAX_ONCE void conclude_losses(const Run& run, std::ptrdiff_t first, int count, const Measured<T>& m,
                                      Wide<T> log, const Targets<T>& targets, Pack<T> scores,
                                      const double* from_terms) {
    double chosen[Pack<T>::lanes], losses[Pack<T>::lanes];
    store_doubles(chosen, targets.chosen);
    store_doubles(losses, minus_log_probability<T>(m, scores, log, run.temperature));
    for (int i = 0; i < Pack<T>::lanes; ++i) losses[i] = chosen[i] == 0 ? 0 : chosen[i] * losses[i];
    if (from_terms)
        for (int i = 0; i < count; ++i) losses[i] = targets.ignored[i] ? 0 : losses[i] + from_terms[i];
    for (int i = 0; i < count; ++i) run.value[first + i] = losses[i];
}

// minus the log-probabilities of one class, or of a pack of classes: what terms weigh.
template <class T>
struct MinusLog {
    LogProbability<T> log_probability;
    Dominance<T> dominance;
    Pack<T> max;
    bool plain;

    FASTSOFTMAX_INLINE MinusLog(const Measured<T>& m, Wide<T> log, double temperature)
        : log_probability(m, log, temperature), dominance(m, log), max(m.max), plain(temperature == 1) {}

    FASTSOFTMAX_INLINE MinusLog(const MinusLog& all, int i)
        : log_probability(all.log_probability, i),
          dominance(all.dominance, i),
          max(spread(all.max, i)),
          plain(all.plain) {}

    // 0 where the term is: such a class counts as nothing, whatever its score.
    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> x, Pack<T> term) const {
        const Pack<T> general = plain ? log_probability.plain(x) : log_probability.scaled(x);
        const Pack<T> log = select(equal(x, max) & dominance.mask, dominance.log_probability, general);
        return select(equal(term, broadcast(T(0))), broadcast(T(0)), -log);
    }
};

// The gradient of up to a pack of slices: scale * (total p - terms - chosen at the target). At the target and at a
// class that dominates this cancels; there it is computed apart.
template <class T>
class LossGradient {
    static constexpr int lanes = Pack<T>::lanes;

  public:
    std::int64_t at_target[lanes], at_max[lanes];  // -1: nothing apart
    Pack<T> target_value, max_value;

    // term_at(c, i): the term of class c of slice i.
    template <class TermAt>
    FASTSOFTMAX_INLINE LossGradient(const Run& run, std::ptrdiff_t first, int count, const Measured<T>& m,
                                    const Targets<T>& targets, Pack<T> target_exponentials, Doubles<T> spread,
                                    TermAt term_at)
        : total_(targets.chosen + spread),
          scale_(load_doubles<T>(run.scale + first, count)),
          unscaled_(in_two(widen(m.top) + m.rest)),
          probability_(unscaled_, total_ * scale_),
          factor_(narrow(scale_)),
          wide_(wide_lanes(total_ * scale_, probability_.factor.high)) {
        double target_weights[lanes], max_weights[lanes];
        Integer<T> dominates[lanes];
        store_doubles(target_weights, targets.chosen);
        store_pack(dominates, dominant(m));
        for (int i = 0; i < lanes; ++i) {
            at_target[i] = run.target && !targets.ignored[i] ? targets.index[i] : -1;
            max_weights[i] = at_target[i] == m.argmax[i] ? target_weights[i] : 0;
        }
        if (run.terms) {
            wide_ = wide_ | wide_lanes(scale_, factor_);
            for (int i = 0; i < count; ++i) {
                if (targets.ignored[i]) continue;
                if (run.target) target_weights[i] += term_at(targets.index[i], i);
                max_weights[i] += term_at(m.argmax[i], i);
            }
        }
        for (int i = 0; i < lanes; ++i) at_max[i] = dominates[i] != 0 && max_weights[i] != 0 ? m.argmax[i] : -1;
        any_wide_ = lane_bits(wide_) != 0;
        const GradientEnds<T> ends(m, unscaled_, target_exponentials, total_, load_doubles<T>(target_weights),
                                   load_doubles<T>(max_weights), scale_);
        target_value = ends.at_target;
        max_value = ends.at_max;
    }

    // One slice a lane.
    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> e) const {
        const Pack<T> value = probability_(e);
        return any_wide_ ? select(wide_, widely(e, broadcast(T(0)), total_, scale_, unscaled_), value) : value;
    }
    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> e, Pack<T> term) const {
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
              factor_(::spread(all.factor_, i)),
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
            return widely(e, term, ::spread(all_.total_, i_), ::spread(all_.scale_, i_), {all_.unscaled_, i_});
        }
    };

  private:
    Doubles<T> total_, scale_;
    Probability<T> unscaled_, probability_;
    Pack<T> factor_;  // of the terms
    Mask<T> wide_;    // slices whose factors two numbers of T do not hold
    bool any_wide_;

    // Where both parts of a factor are no normal numbers of T with room for what they multiply; but 0 stays 0.
    FASTSOFTMAX_INLINE static Mask<T> wide_lanes(Doubles<T> exact, Pack<T> factor) {
        constexpr T least = sizeof(T) == 4 ? T(0x1p-100) : T(0x1p-900), most = sizeof(T) == 4 ? T(0x1p100) : T(0x1p830);
        const Pack<T> size = max(factor, -factor);
        const Mask<T> fits = less(broadcast(least), size) & less(size, broadcast(most));
        return select(fits | is_zero(exact), broadcast(Integer<T>(0)), broadcast(Integer<T>(-1)));
    }

    // By way of a probability in double, with a rounding of its own.
    FASTSOFTMAX_INLINE static Pack<T> widely(Pack<T> e, Pack<T> term, Doubles<T> total, Doubles<T> scale,
                                             const Probability<T>& unscaled) {
        return narrow(scale * (total * to_doubles(unscaled(e)) - to_doubles(term)));
    }
};

}  // namespace
