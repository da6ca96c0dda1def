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
    PerSlice<T> chosen;

    // Of no slices (no loss is wanted) it holds nothing.
    FASTSOFTMAX_INLINE Targets(const Run& run, std::ptrdiff_t first, int count) {
        if (count > 0) read(run, first, count);
    }

  private:
    FASTSOFTMAX_ONCE void read(const Run& run, std::ptrdiff_t first, int count) {
        any_ignored = false;
        chosen = PerSlice<T>::all(0);
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
        chosen = PerSlice<T>::of(run.chosen + first, count);
    }
};

// Losses of slices whose targets have the scores `scores`, with what the terms add: to run.value.
template <class T>
FASTSOFTMAX_ONCE void conclude_losses(const Run& run, std::ptrdiff_t first, int count, const Groups<T>& g,
                                      const Targets<T>& targets, Pack<T> scores, const double* from_terms) {
    const PerSlice<T> exact = exactly(scores);
    const Pack<double> zero = broadcast(0.0);
    double losses[Pack<T>::lanes];
    for (int i = 0; i < groups<T>; ++i) {
        const Pack<double> minus_log = minus_log_probability<T>(g.group[i], exact.group[i], run.temperature);
        const Pack<double> chosen = targets.chosen.group[i];
        store_pack(losses + i * Pack<double>::lanes, select(equal(chosen, zero), zero, chosen * minus_log));
    }
    for (int i = 0; i < count; ++i)
        run.value[first + i] = targets.ignored[i] ? 0 : losses[i] + (from_terms ? from_terms[i] : 0);
}

// minus the log-probabilities of one class, or of a pack of classes: what terms weigh.
template <class T>
struct MinusLog {
    LogProbability<T> log_probability;
    Dominance<T> dominance;
    Pack<T> max;
    bool plain;

    FASTSOFTMAX_INLINE MinusLog(const Groups<T>& g, double temperature)
        : log_probability(g, temperature),
          dominance(g),
          max(part(g, [](const Group& s) __attribute__((always_inline)) { return s.max; })),
          plain(temperature == 1) {}

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
struct LossGradient {
    static constexpr int lanes = Pack<T>::lanes;
    PerSlice<T> total, scale;
    Probability<T> probability, unscaled;
    Pack<T> factor;                                // of the terms
    std::int64_t at_target[lanes], at_max[lanes];  // -1: nothing apart
    Pack<T> target_value, max_value;
    Mask<T> wide;  // slices whose factors two numbers of T do not hold
    bool any_wide = false;

    // term_at(c, i): the term of class c of slice i.
    template <class TermAt>
    FASTSOFTMAX_INLINE LossGradient(const Run& run, std::ptrdiff_t first, int count, const Measured<T>& measured,
                                    const Targets<T>& targets, Pack<T> target_exponentials, const PerSlice<T>& spread,
                                    TermAt term_at)
        : total(combined(targets.chosen, spread, [](auto a, auto b) { return a + b; })),
          scale(PerSlice<T>::of(run.scale + first, count)),
          probability(measured.groups, combined(total, scale, [](auto a, auto b) { return a * b; })),
          unscaled(measured.groups),
          factor(rounded(scale)) {
        double target_weights[lanes] = {}, max_weights[lanes] = {};
        Integer<T> is_wide[lanes] = {};
        const Mask<T> dominates = dominant(measured.groups);
        for (int i = 0; i < lanes; ++i) {
            at_target[i] = at_max[i] = -1;
            if (i >= count || targets.ignored[i]) continue;
            const std::int64_t largest = measured.argmax[i];
            if (run.target) {
                at_target[i] = targets.index[i];
                target_weights[i] = run.chosen[first + i] + (run.terms ? term_at(targets.index[i], i) : 0);
                if (targets.index[i] == largest) max_weights[i] = run.chosen[first + i];
            }
            if (run.terms) max_weights[i] += term_at(largest, i);
            if (max_weights[i] != 0 && lane(dominates, i)) at_max[i] = largest;
            const double factor_of_slice = static_cast<double>(lane(probability.factor.high, i));
            if (!fits<T>(factor_of_slice) || (run.terms && !fits<T>(scale.at(i))) ||
                (factor_of_slice == 0 && total.at(i) * scale.at(i) != 0)) {
                is_wide[i] = -1;
                any_wide = true;
            }
        }
        wide = load_pack<Integer<T>>(is_wide);
        const GradientEnds<T> ends(measured.groups, target_exponentials, total, PerSlice<T>::of(target_weights, lanes),
                                   PerSlice<T>::of(max_weights, lanes), scale);
        target_value = rounded(ends.at_target);
        max_value = rounded(ends.at_max);
    }

    FASTSOFTMAX_INLINE LossGradient(const LossGradient& all, int i) : LossGradient(all) {
        probability = Probability<T>(all.probability, i);
        scale = PerSlice<T>::all(all.scale.at(i));
        unscaled = Probability<T>(all.unscaled, i);
        total = PerSlice<T>::all(all.total.at(i));
        factor = ::spread(all.factor, i);
        wide = ::spread(all.wide, i);
        any_wide = lane(all.wide, i) != 0;
    }

    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> e) const {
        const Pack<T> value = probability(e);
        return any_wide ? select(wide, widely(e, broadcast(T(0))), value) : value;
    }

    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> e, Pack<T> term) const {
        const Pack<T> value = probability(e, term * factor);
        if (!any_wide) return value;
        return select(wide, widely(e, term), value);
    }

  private:
    // By way of a probability in double, with a rounding of its own.
    FASTSOFTMAX_INLINE Pack<T> widely(Pack<T> e, Pack<T> term) const {
        PerSlice<T> value = exactly(unscaled(e));
        const PerSlice<T> u = exactly(term);
        for (int i = 0; i < groups<T>; ++i)
            value.group[i] = scale.group[i] * (total.group[i] * value.group[i] - u.group[i]);
        return rounded(value);
    }

    template <class F>
    static PerSlice<T> combined(PerSlice<T> a, const PerSlice<T>& b, F f) {
        for (int i = 0; i < groups<T>; ++i) a.group[i] = f(a.group[i], b.group[i]);
        return a;
    }
};

}  // namespace
