// Cross-entropy by labels and by terms, which weigh the log-probability of each class: class weights with label
// smoothing, or probabilities. Slices are taken whole, and read three times, and once more for each of gradient and
// Hessian.
#pragma once

#include "../loops/tile.hpp"
#include "cross_entropy.hpp"
#include "logs.hpp"

namespace {

// The sums of slices: the largest score, its exponential and the sum of all others.
struct Exponentials {
    template <class T, class Exp>
    struct Results {
        Measured<T> m;

        FASTSOFTMAX_INLINE Results(const Group<T>&, const Exp& exp, Pack<T> largest, Two<Pack<T>> rest)
            : m(measured(exp, largest, rest)) {}
    };
};

// Stores the losses of slices to run.value: `scores` are those of the labels, `from_terms` is what the terms add. In an
// undefined slice every log-probability is NaN, and so is its product with any coefficient. Without labels, the largest
// score takes part only for that, because the difference from any other number could overflow.
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

// Minus the log-probabilities, which the terms weigh, of one class of each slice or of a pack of classes of one slice.
template <class T>
struct MinusLog {
    LogProbability<T, typename OwnExponential<T>::Argument> log_probability;
    Dominance<T> dominance;

    FASTSOFTMAX_INLINE MinusLog of_lane(int i) const { return {{log_probability, i}, {dominance, i}}; }

    // 0 where the term is 0: such a class does not count, whatever its score.
    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> x, Pack<T> term) const {
        const Pack<T> log = dominance(x, log_probability(x));
        return select(equal(term, broadcast(T(0))), broadcast(T(0)), -log);
    }
};

// The first position of `value`, which is the largest score; 0 if another thread has changed it since it was found.
template <class T>
FASTSOFTMAX_INLINE std::ptrdiff_t first_equal(const T* x, std::ptrdiff_t count, T value) {
    const auto wanted = broadcast(value);
    std::ptrdiff_t i = 0;
    for (; i + Pack<T>::lanes <= count; i += Pack<T>::lanes)
        if (const std::uint32_t bits = equal_bits(load(x + i), wanted)) return i + __builtin_ctz(bits);
    const std::uint32_t bits = equal_bits(load_first(x + i, count - i, T(__builtin_nan(""))), wanted);
    return bits ? i + __builtin_ctz(bits) : 0;
}

// The classes whose gradient is computed apart, and their terms: the label, and the class of the largest score if it
// dominates; negative: none.
template <class T>
struct Apart {
    Pack<Integer<T>> label, largest;
    Pack<T> label_term, largest_term;
};

// The gradient of up to a pack of slices: scale * (total p - term), at the label scale * (total p - term - chosen). At
// the label and at a class that dominates this cancels; there it is computed apart, to 1 ULP plus the error of the
// exponential.
template <class T>
class LossGradient {
    static constexpr int lanes = Pack<T>::lanes;

  public:
    Pack<T> label_value, max_value;

    FASTSOFTMAX_LONG LossGradient(const Run& run, std::ptrdiff_t first, int count, const Measured<T>& m,
                                  Doubles<T> chosen, Pack<T> label_exponentials, Doubles<T> sum_of_terms,
                                  const Apart<T>& apart)
        : total_(chosen + sum_of_terms),
          scale_(load_doubles<T>(run.scale + first, count)),
          unscaled_(m.top + m.rest),
          weight_(product_in_two(total_, scale_)),
          probability_(unscaled_, weight_),
          factor_(narrow(scale_)),
          wide_(wide_lanes(total_ * scale_, probability_.factor.high)) {
        wide_ = wide_ | wide_lanes(scale_, factor_);
        const Mask<T> same = equal(apart.label, apart.largest);
        const Doubles<T> label_weights = chosen + to_doubles(apart.label_term);
        const Doubles<T> max_weights =
            to_doubles(apart.largest_term) + to_doubles(select(same, widen(chosen), widen(broadcast(T(0)))));
        const Two<Pack<T>> at_label = product_in_two(label_weights, scale_),
                           left = product_in_two(total_ - max_weights, scale_);
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

    // The gradient of one class of slices, one a lane.
    FASTSOFTMAX_LONG Pack<T> operator()(Pack<T> e, Pack<T> term) const {
        const Pack<T> value = probability_(e, term * factor_);
        return any_wide_ ? select(wide_, wide_gradient(e, term, total_, scale_, unscaled_), value) : value;
    }

    // The gradient of slice i, a pack of classes at a time.
    class Row {
      public:
        FASTSOFTMAX_INLINE Row(const LossGradient& all, int i)
            : all_(all),
              i_(i),
              probability_(all.probability_, i),
              factor_(spread(all.factor_, i)),
              wide_(lane(all.wide_, i) != 0) {}

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
            return wide_gradient(e, term, spread(all_.total_, i_), spread(all_.scale_, i_), {all_.unscaled_, i_});
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
};

// The terms of row i: its own, or those of all rows; null: none.
template <class T>
FASTSOFTMAX_INLINE const T* terms_of(const Rows<T>& rows, int i) {
    const auto* terms = static_cast<const T*>(rows.run.terms);
    return terms && rows.run.own_terms ? terms + (rows.first + i) * rows.run.classes : terms;
}

// Stores f(x) of `count` classes.
template <class T, class F>
FASTSOFTMAX_INLINE void transform(const T* x, T* out, std::ptrdiff_t count, F f) {
    for_packs(x, 0, count, T(0),
              [&](auto v, std::ptrdiff_t i) __attribute__((always_inline)) { store_in(out, i, count, f(v, i)); });
}

// The second output of slices in which the largest class may dominate.
template <class T>
FASTSOFTMAX_INLINE Curvature<T, true> curvature_of(const Run& run, std::ptrdiff_t first, int count,
                                                   const Labels<T>& labels, Doubles<T> sum_of_terms,
                                                   const Measured<T>& m) {
    return {run, first, count, labels, labels.chosen + sum_of_terms, m.top + m.rest, m.rest.high};
}

template <class T>
FASTSOFTMAX_ONCE void raise_row(const Rows<T>& rows, int r, std::ptrdiff_t count) {
    const Doubles<T> exponent = doubles<T>(rows.run.exponent[rows.first + r]);
    transform(rows.out(r), rows.out(r), count,
              [=](Pack<T> v, std::ptrdiff_t) __attribute__((always_inline)) { return raised(v, exponent); });
}

template <class T>
FASTSOFTMAX_ONCE Doubles<T> sums_of_terms(const Rows<T>& rows) {
    if (!rows.run.own_terms) return doubles<T>(rows.run.sum_of_terms);
    double sums[Pack<T>::lanes];
    for (int i = 0; i < rows.count; ++i) {
        Accumulator<T> sum;
        for_packs(terms_of(rows, i), 0, rows.run.classes, T(0),
                  [&](Pack<T> u, std::ptrdiff_t) __attribute__((always_inline)) { sum.add(u); });
        const Two<double> total = sum.total();
        sums[i] = total.high + total.low;
    }
    return load_doubles<T>(sums, rows.count);
}

// Computes the losses of rows, and their gradients.
template <bool with_gradient, class T>
FASTSOFTMAX_ONCE void weigh_rows(const Rows<T>& rows) {
    using Sum = SortedSum<T, false>;
    constexpr int lanes = Pack<T>::lanes;
    const Run& run = rows.run;
    const std::ptrdiff_t classes = run.classes;
    const Group<T> group = {
        run, rows.first, rows.count, reinterpret_cast<const std::byte*>(rows.x(0)), run.x.slice_stride, sizeof(T)};
    const Labels<T> labels(run, rows.first, rows.count);
    const Pack<T> scores = group.scores(labels);
    const auto exp = exponential_of<OwnExponential<T>>(rows);
    RowSums<Sum, T> sums;
    for (int i = 0; i < rows.count; ++i) {
        const auto one = exp.of_lane(i);
        const T* x = rows.x(i);
        sums.set(i,
                 sum_long_row<Sum, false>(group, i, one, x, classes, static_cast<T*>(nullptr), false,
                                          rows.x(i + rows.count), with_gradient ? rows.out(i) : x),
                 one, x, classes);
    }
    const Measured<T> m = sums.template results<Exponentials>(group, exp).m;
    const LogTotal<T> log(m);
    const MinusLog<T> minus_logs = {{exp.argument(), m, log}, {m, log}};
    double from_terms[lanes];
    for (int i = 0; i < rows.count; ++i) {
        const MinusLog<T> minus_log = minus_logs.of_lane(i);
        const T* terms = terms_of(rows, i);
        Accumulator<T> sum;
        for_packs(rows.x(i), 0, classes, T(0), [&](Pack<T> v, std::ptrdiff_t c) __attribute__((always_inline)) {
            const Pack<T> term = load_in(terms, c, classes);
            sum.add_product(term, minus_log(v, term));
        });
        const Two<double> total = sum.total();
        from_terms[i] = total.high + total.low;
    }
    conclude_losses(run, rows.first, rows.count, m, log, labels, scores, from_terms);
    if constexpr (with_gradient) {
        std::int64_t largest[lanes];
        T label_term[lanes] = {}, largest_term[lanes] = {};
        const std::uint32_t dominates = lane_bits(dominant(m));
        for (int i = 0; i < lanes; ++i) {
            largest[i] = -1;
            if (i >= rows.count || labels.ignored(i)) continue;
            const T* terms = terms_of(rows, i);
            if (labels.given) label_term[i] = terms[labels.index[i]];
            if (!(dominates >> i & 1)) continue;
            largest[i] = first_equal(rows.x(i), classes, lane(m.max, i));
            largest_term[i] = terms[largest[i]];
        }
        const Apart<T> apart = {Classes<T>(labels.index).few(), Classes<T>(largest).few(), load_pack<T>(label_term),
                                load_pack<T>(largest_term)};
        const Doubles<T> sum_of_terms = sums_of_terms(rows);
        const LossGradient<T> all(run, rows.first, rows.count, m, labels.chosen, exp(scores).rounded(), sum_of_terms,
                                  apart);
        if (run.second_out.data) {
            const Curvature<T, true> curvatures = curvature_of(run, rows.first, rows.count, labels, sum_of_terms, m);
            for (int i = 0; i < rows.count; ++i) {
                const auto one = exp.of_lane(i);
                const Curvature<T, true> curvature = curvatures.of_lane(i);
                transform(rows.x(i), rows.second_out(i), classes,
                          [&](Pack<T> v, std::ptrdiff_t)
                              __attribute__((always_inline)) { return curvature(one(v).rounded()); });
            }
        }
        for (int i = 0; i < rows.count; ++i) {
            const T* x = rows.x(i);
            T* out = rows.out(i);
            const typename LossGradient<T>::Row gradient(all, i);
            const auto one = exp.of_lane(i);
            const T* terms = terms_of(rows, i);
            if (labels.ignored(i)) {
                transform(x, out, classes,
                          [](Pack<T>, std::ptrdiff_t) __attribute__((always_inline)) { return broadcast(T(0)); });
                continue;
            }
            transform(x, out, classes, [&](Pack<T> v, std::ptrdiff_t c) __attribute__((always_inline)) {
                return gradient(one(v).rounded(), load_in(terms, c, classes));
            });
            if (labels.index[i] >= 0) out[labels.index[i]] = lane(all.label_value, i);
            if (largest[i] >= 0) out[largest[i]] = lane(all.max_value, i);
            if (run.exponent) raise_row(rows, i, classes);
        }
    }
}

template <bool with_gradient, class T>
void weighed_rows(const Run& run) {
    // As many rows as stay in the first-level cache together.
    const std::ptrdiff_t fit = fastsoftmax::rows_room / (run.classes * static_cast<std::ptrdiff_t>(sizeof(T)) + 1);
    const std::ptrdiff_t together = fit < 1 ? 1 : fit < Pack<T>::lanes ? fit : Pack<T>::lanes;
    for (std::ptrdiff_t first = 0; first < run.slices; first += together) {
        const std::ptrdiff_t left = run.slices - first;
        weigh_rows<with_gradient, T>(Rows<T>{run, first, static_cast<int>(left < together ? left : together)});
    }
}

// As weigh_rows, for a tile: results take the place of scores.
template <bool with_gradient, bool few, class T>
FASTSOFTMAX_ONCE void weigh_tile(const Run& run, std::ptrdiff_t first, int count, T* tile, T* second) {
    using Sum = SortedSum<T, few>;
    constexpr int lanes = Pack<T>::lanes;
    const std::ptrdiff_t classes = run.classes;
    const Group<T> group = {run, first, count, reinterpret_cast<const std::byte*>(tile), sizeof(T), pack_bytes};
    const Labels<T> labels(run, first, count);
    const Pack<T> scores = group.scores(labels);
    const auto score = [=](std::ptrdiff_t c) __attribute__((always_inline)) { return load_pack<T>(tile + c * lanes); };
    const T* terms = static_cast<const T*>(run.terms) + (run.own_terms ? first * classes : 0);
    const auto term = [&](std::ptrdiff_t c) __attribute__((always_inline)) {
        return run.own_terms ? load_pack<T>(terms + c * lanes) : broadcast(terms[c]);
    };
    const OwnExponential<T> exp = exponential_of_tile(run, tile);
    Sum sums[few ? 1 : lanes];
    sum_group<false, few>(group, sums, exp, score);
    const Measured<T> m = results_of<Exponentials>(group, exp, sums).m;
    const LogTotal<T> log(m);
    const MinusLog<T> minus_log = {{exp.argument(), m, log}, {m, log}};
    const Pack<Integer<T>> none = broadcast(Integer<T>(-1));
    const Pack<T> zero = broadcast(T(0));
    Apart<T> apart = {Classes<T>(labels.index).few(), none, zero, zero};
    const Mask<T> dominates = dominant(m);
    TileSum<T> sum(classes), sum_of_terms(classes);
    for (std::ptrdiff_t c = 0; c < classes; ++c) {
        const Pack<T> x = score(c), weight = term(c);
        sum.add_product(c, weight, minus_log(x, weight));
        if (run.own_terms) sum_of_terms.add(c, weight);
        if constexpr (with_gradient) {
            const Pack<Integer<T>> at = broadcast(static_cast<Integer<T>>(c));
            const Mask<T> first_largest = dominates & equal(x, m.max) & equal(apart.largest, none);
            apart.largest = select(first_largest, at, apart.largest);
            apart.largest_term = select(first_largest, weight, apart.largest_term);
            apart.label_term = select(equal(apart.label, at), weight, apart.label_term);
        }
    }
    double from_terms[lanes];
    store_doubles(from_terms, to_doubles(sum.total()));
    conclude_losses(run, first, count, m, log, labels, scores, from_terms);
    if constexpr (with_gradient) {
        const Doubles<T> total = run.own_terms ? to_doubles(sum_of_terms.total()) : doubles<T>(run.sum_of_terms);
        const LossGradient<T> gradient(run, first, count, m, labels.chosen, exp(scores).rounded(), total, apart);
        if (second) {
            const Curvature<T, true> curvature = curvature_of(run, first, count, labels, total, m);
            for (std::ptrdiff_t c = 0; c < classes; ++c)
                store_pack(second + c * lanes, curvature(exp(score(c)).rounded()));
        }
        for (std::ptrdiff_t c = 0; c < classes; ++c) {
            const Pack<Integer<T>> at = broadcast(static_cast<Integer<T>>(c));
            const Pack<T> value = gradient(exp(score(c)).rounded(), term(c));
            const Pack<T> at_label = select(equal(apart.label, at), gradient.label_value, value);
            store_pack(tile + c * lanes, select(equal(apart.largest, at), gradient.max_value, at_label));
        }
        if (run.exponent) {
            const Doubles<T> exponent = load_doubles<T>(run.exponent + first, count);
            for (std::ptrdiff_t c = 0; c < classes; ++c) store_pack(tile + c * lanes, raised(score(c), exponent));
        }
        if (labels.any_ignored)
            for (int i = 0; i < count; ++i)
                for (std::ptrdiff_t c = 0; labels.ignored(i) && c < classes; ++c) tile[c * lanes + i] = 0;
    }
}

template <bool with_gradient, class T>
void weighed_tiles(const Run& run) {
    constexpr std::ptrdiff_t lanes = Pack<T>::lanes;
    for (std::ptrdiff_t first = 0; first < run.slices; first += lanes) {
        const std::ptrdiff_t left = run.slices - first;
        const int count = static_cast<int>(left < lanes ? left : lanes);
        T* const tile = reinterpret_cast<T*>(run.x.data + first * run.x.slice_stride);
        T* const second = run.second_out.data
                              ? reinterpret_cast<T*>(run.second_out.data + first * run.second_out.slice_stride)
                              : nullptr;
        if (run.classes <= few_classes)
            weigh_tile<with_gradient, true>(run, first, count, tile, second);
        else
            weigh_tile<with_gradient, false>(run, first, count, tile, second);
    }
}

}  // namespace
