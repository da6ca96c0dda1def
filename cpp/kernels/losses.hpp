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
        for (int i = 0; i < lanes; ++i) {
            index[i] = 0;
            ignored[i] = false;
        }
        if (!run.target) return;
        for (int i = 0; i < count; ++i) {
            ignored[i] = run.target[first + i] < 0;
            any_ignored |= ignored[i];
            index[i] = ignored[i] ? 0 : run.target[first + i];
        }
        chosen = load_doubles<T>(run.chosen + first, count);
    }
};

// Losses of slices whose targets have the scores `scores`, with what the terms add: to run.value.
template <class T>
FASTSOFTMAX_ONCE void conclude_losses(const Run& run, std::ptrdiff_t first, int count, const Measured<T>& m,
                                      Wide<T> log, const Targets<T>& targets, Pack<T> scores,
                                      const double* from_terms) {
    double minus_log[Pack<T>::lanes];
    store_doubles(minus_log, minus_log_probability<T>(m, scores, log, run.temperature));
    for (int i = 0; i < count; ++i) {
        const double chosen = run.target ? run.chosen[first + i] : 0;
        const double loss = (chosen == 0 ? 0 : chosen * minus_log[i]) + (from_terms ? from_terms[i] : 0);
        run.value[first + i] = targets.ignored[i] ? 0 : loss;
    }
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
          factor_(narrow(scale_)) {
        double target_weights[lanes] = {}, max_weights[lanes] = {};
        Integer<T> is_wide[lanes] = {};
        const Mask<T> dominates = dominant(m);
        for (int i = 0; i < lanes; ++i) {
            at_target[i] = at_max[i] = -1;
            if (i >= count || targets.ignored[i]) continue;
            const std::int64_t largest = m.argmax[i];
            if (run.target) {
                at_target[i] = targets.index[i];
                target_weights[i] = run.chosen[first + i] + (run.terms ? term_at(targets.index[i], i) : 0);
                if (targets.index[i] == largest) max_weights[i] = run.chosen[first + i];
            }
            if (run.terms) max_weights[i] += term_at(largest, i);
            if (max_weights[i] != 0 && lane(dominates, i)) at_max[i] = largest;
            const double factor = static_cast<double>(lane(probability_.factor.high, i));
            if (!fits<T>(factor) || (run.terms && !fits<T>(lane(scale_, i))) ||
                (factor == 0 && lane(total_, i) * lane(scale_, i) != 0)) {
                is_wide[i] = -1;
                any_wide_ = true;
            }
        }
        wide_ = load_pack<Integer<T>>(is_wide);
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
    bool any_wide_ = false;

    // By way of a probability in double, with a rounding of its own.
    FASTSOFTMAX_INLINE static Pack<T> widely(Pack<T> e, Pack<T> term, Doubles<T> total, Doubles<T> scale,
                                             const Probability<T>& unscaled) {
        return narrow(scale * (total * to_doubles(unscaled(e)) - to_doubles(term)));
    }
};

}  // namespace
