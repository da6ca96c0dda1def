// The passes over slices whose classes are contiguous. Rows are measured (the maximum, then the sum of the
// exponentials), then written; meanwhile exponentials wait in the row of the output. Short rows go together, up to as
// many as a pack has lanes, so that what happens once a slice happens for all of them at once.
#pragma once

#include "../losses.hpp"

namespace {

// Calls f(pack, position) for classes [begin, end); lanes beyond the end hold `fill`.
template <class E, class F>
FASTSOFTMAX_INLINE void for_packs(const E* x, std::ptrdiff_t begin, std::ptrdiff_t end, Compute<E> fill, F f) {
    constexpr int lanes = Pack<Compute<E>>::lanes;
    std::ptrdiff_t i = begin;
    for (; i + lanes <= end; i += lanes) f(load(x + i), i);
    if (i < end) f(load_first(x + i, end - i, fill), i);
}

// To where there is room for whole packs, and back.
template <class E>
FASTSOFTMAX_ONCE void read_elements(const E* from, std::ptrdiff_t count, Compute<E>* to) {
    for_packs(from, 0, count, Compute<E>(0),
              [&](auto v, std::ptrdiff_t i) __attribute__((always_inline)) { store_pack(to + i, v); });
}
template <class E>
FASTSOFTMAX_ONCE void write_elements(const Compute<E>* from, std::ptrdiff_t count, E* to) {
    constexpr int lanes = Pack<Compute<E>>::lanes;
    for (std::ptrdiff_t i = 0; i < count; i += lanes) {
        const auto v = load_pack<Compute<E>>(from + i);
        if (i + lanes <= count)
            store(to + i, v);
        else
            store_first(to + i, v, count - i);
    }
}

template <class T>
FASTSOFTMAX_INLINE void store_in(T* out, std::ptrdiff_t i, std::ptrdiff_t end, Pack<T> value) {
    if (i + Pack<T>::lanes <= end)
        store(out + i, value);
    else
        store_first(out + i, value, end - i);
}

template <class T>
FASTSOFTMAX_INLINE Pack<T> load_in(const T* x, std::ptrdiff_t i, std::ptrdiff_t end, T fill = 0) {
    return i + Pack<T>::lanes <= end ? load(x + i) : load_first(x + i, end - i, fill);
}

template <class T>
FASTSOFTMAX_INLINE T row_max(const T* x, std::ptrdiff_t begin, std::ptrdiff_t end) {
    constexpr T lowest = -__builtin_inf();
    constexpr int step = Pack<T>::lanes;
    Pack<T> m[4] = {broadcast(lowest), broadcast(lowest), broadcast(lowest), broadcast(lowest)};
    std::ptrdiff_t i = begin;
    for (; i + 4 * step <= end; i += 4 * step)
        for (int k = 0; k < 4; ++k) m[k] = max(load(x + i + k * step), m[k]);
    for_packs(x, i, end, lowest,
              [&](Pack<T> v, std::ptrdiff_t) __attribute__((always_inline)) { m[0] = max(v, m[0]); });
    return fold_max(max(max(m[0], m[1]), max(m[2], m[3])));
}

template <class T>
FASTSOFTMAX_ONCE bool has_nan(const T* x, std::ptrdiff_t begin, std::ptrdiff_t end) {
    constexpr auto all = static_cast<std::uint32_t>((1ull << Pack<T>::lanes) - 1);
    bool found = false;
    for_packs(x, begin, end, T(0),
              [&](auto v, std::ptrdiff_t) __attribute__((always_inline)) { found |= equal_bits(v, v) != all; });
    return found;
}

// The sum of the exponentials of [begin, end) without those of the largest score; all of them are kept in `out` if
// asked. Meanwhile the row `next` is fetched, since rows are too short for the machine to see one coming, and the row
// of the output, null if there is none, unless it is written now.
template <bool keep, class T, class Exp>
FASTSOFTMAX_INLINE OthersSum<T> sum_others(const T* x, std::ptrdiff_t begin, std::ptrdiff_t end, Pack<T> largest,
                                           T* out, const T* next, Exp exp) {
    const T* written = out ? out : next;
    constexpr int lanes = Pack<T>::lanes;
    OthersSum<T> sum;
    const auto add = [&](auto count, std::ptrdiff_t i) __attribute__((always_inline)) {
        constexpr int packs = decltype(count)::value;
        Pack<T, packs> scores;
        for (int k = 0; k < packs; ++k) {
            const std::ptrdiff_t at = i + k * lanes;
            set_part(scores, k, load(x + at));
            __builtin_prefetch(next + at);
            if constexpr (!keep) __builtin_prefetch(written + at, 1);
        }
        const Growth<T, packs> e = exp(scores);
        const Pack<T, packs> rounded = e.rounded();
        for (int k = 0; k < packs; ++k) {
            if constexpr (keep) store(out + i + k * lanes, part(rounded, k));
            sum.add(equal(part(scores, k), largest), part(e.power, k), part(e.growth, k));
        }
    };
    std::ptrdiff_t i = begin;
    for (; i + terms_to_carry * lanes <= end; sum.carry())
        for (const std::ptrdiff_t stop = i + terms_to_carry * lanes; i < stop; i += packs_at_once * lanes)
            add(std::integral_constant<int, packs_at_once>{}, i);
    for (; i + lanes <= end; i += lanes) add(std::integral_constant<int, 1>{}, i);
    if (i < end) {
        const Pack<T> scores = load_first(x + i, end - i, T(-infinity));
        const Growth<T, 1> e = exp(scores);
        if constexpr (keep) store_first(out + i, e.rounded(), end - i);
        // Where the largest is -infinity, how often there is one does not count.
        sum.add(equal(scores, largest), e.power, e.growth);
    }
    return sum;
}

// Measures a block for everything that is made of exponentials. The largest is left out of the sum, so that what the
// others make up is exact however small it is.
template <bool keep, class T>
FASTSOFTMAX_ONCE Measured<T> measure_exponentials(const Rows<T>& rows, std::ptrdiff_t begin, std::ptrdiff_t end) {
    constexpr int lanes = Pack<T>::lanes;
    Measured<T> m;
    T maxima[lanes] = {};
    for (int i = 0; i < rows.count; ++i) maxima[i] = row_max(rows.x(i), begin, end);
    set_maxima(m, load_pack<T>(maxima), rows.run.temperature);

    Wide<T> others[lanes] = {};
    T times[lanes] = {};
    with_exponential(m, rows.run.temperature, [&](auto exp) __attribute__((always_inline)) {
        for (int i = 0; i < rows.count; ++i) {
            const OthersSum<T> sum =
                sum_others<keep>(rows.x(i), begin, end, broadcast(maxima[i]), rows.run.out.data ? rows.out(i) : nullptr,
                                 rows.x(i + rows.count), exp.of_lane(i));
            others[i] = sum.wide();
            times[i] = fold_sum(sum.times);
        }
        set_top(m, exp);
    });
    set_rest(m, folded(others), load_pack<T>(times));
    if (fold_max(m.max) != T(infinity)) return m;
    // In a row whose largest entry is +inf, `rest` tells whether there is a NaN.
    T high[lanes], low[lanes];
    store_pack(high, m.rest.high);
    store_pack(low, m.rest.low);
    for (int i = 0; i < rows.count; ++i) {
        if (maxima[i] != T(infinity)) continue;
        high[i] = keep || has_nan(rows.x(i), begin, end) ? T(__builtin_nan("")) : T(0);
        low[i] = 0;
    }
    m.rest = {load_pack<T>(high), load_pack<T>(low)};
    return m;
}

template <Operation op, bool keep, class T>
FASTSOFTMAX_INLINE Measured<T> measure(const Rows<T>& rows, std::ptrdiff_t begin, std::ptrdiff_t end) {
    return measure_exponentials<keep>(rows, begin, end);
}

// Stores f(x) of `count` classes.
template <class T, class F>
FASTSOFTMAX_INLINE void transform(const T* x, T* out, std::ptrdiff_t count, F f) {
    for_packs(x, 0, count, T(0),
              [&](auto v, std::ptrdiff_t i) __attribute__((always_inline)) { store_in(out, i, count, f(v, i)); });
}

// Calls body(i, from, exp) for each row: where the scores, or the exponentials kept in the output, are read and what
// makes exponentials of them. The kept ones are still to be multiplied by `scale`.
template <bool kept, class T, class Body>
FASTSOFTMAX_INLINE void with_exponentials(const Rows<T>& rows, const Measured<T>& m, T scale, Body body) {
    if constexpr (kept) {
        for (int i = 0; i < rows.count; ++i)
            body(i, static_cast<const T*>(rows.out(i)),
                 [=](Pack<T> e) __attribute__((always_inline)) { return e * broadcast(scale); });
    } else {
        with_exponential(m, rows.run.temperature, [&](auto exp) __attribute__((always_inline)) {
            for (int i = 0; i < rows.count; ++i)
                body(i, rows.x(i),
                     [one = exp.of_lane(i)](Pack<T> v) __attribute__((always_inline)) { return one(v).rounded(); });
        });
    }
}

template <bool kept, class T>
FASTSOFTMAX_ONCE void write_softmax(const Rows<T>& rows, const Measured<T>& m, std::ptrdiff_t count, T scale) {
    const GeneralSoftmax<T> all(m);
    with_exponentials<kept>(rows, m, scale, [&](int i, const T* from, auto exp) __attribute__((always_inline)) {
        const Probability<T> probability(all.probability, i);
        if (lane(all.dominates, i)) {
            const Pack<T> largest = spread(m.top.high, i), result = spread(all.largest, i);
            transform(from, rows.out(i), count, [&](Pack<T> v, std::ptrdiff_t) __attribute__((always_inline)) {
                const Pack<T> e = exp(v);
                return select(equal(e, largest), result, probability(e));
            });
        } else {
            transform(from, rows.out(i), count,
                      [&](Pack<T> v, std::ptrdiff_t) __attribute__((always_inline)) { return probability(exp(v)); });
        }
    });
}

template <class T>
FASTSOFTMAX_ONCE void write_log_softmax(const Rows<T>& rows, const Measured<T>& m, std::ptrdiff_t count) {
    const LogTotal<T> log(m);
    const Dominance<T> dominances(m, log);
    with_log_probability(m, log, rows.run.temperature, [&](auto all) __attribute__((always_inline)) {
        for (int i = 0; i < rows.count; ++i) {
            const auto log_probability = all.of_lane(i);
            const Dominance<T> dominance(dominances, i);
            transform(rows.x(i), rows.out(i), count, [&](Pack<T> v, std::ptrdiff_t) __attribute__((always_inline)) {
                return dominance(v, log_probability(v));
            });
        }
    });
}

// The terms of row i: each its own, or one row for all; null: none.
template <class T>
FASTSOFTMAX_INLINE const T* terms_of(const Rows<T>& rows, int i) {
    const auto* terms = static_cast<const T*>(rows.run.terms);
    return terms && rows.run.own_terms ? terms + (rows.first + i) * rows.run.classes : terms;
}

template <class T>
FASTSOFTMAX_ONCE Pack<T> label_scores(const Rows<T>& rows, const Labels<T>& labels) {
    T scores[Pack<T>::lanes] = {};
    if (rows.run.label)
        for (int i = 0; i < rows.count; ++i) scores[i] = rows.x(i)[labels.ignored(i) ? 0 : labels.index[i]];
    return load_pack<T>(scores);
}

// The losses of rows, before anything is written.
template <class T>
FASTSOFTMAX_ONCE void write_losses(const Rows<T>& rows, const Measured<T>& m, const Labels<T>& labels, Pack<T> scores) {
    const Run& run = rows.run;
    const LogTotal<T> log(m);
    double from_terms[Pack<T>::lanes];
    if (run.terms) {
        with_minus_log(m, log, run.temperature, [&](auto all) __attribute__((always_inline)) {
            for (int r = 0; r < rows.count; ++r) {
                const auto minus_log = all.of_lane(r);
                const T* terms = terms_of(rows, r);
                Accumulator<T> sum;
                for_packs(rows.x(r), 0, run.classes, T(0),
                          [&](Pack<T> v, std::ptrdiff_t i) __attribute__((always_inline)) {
                              const Pack<T> term = load_in(terms, i, run.classes);
                              sum.add_product(term, minus_log(v, term));
                          });
                const Two<double> total = sum.total();
                from_terms[r] = total.high + total.low;
            }
        });
    }
    conclude_losses(run, rows.first, rows.count, m, log, labels, scores, run.terms ? from_terms : nullptr);
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

template <class T>
FASTSOFTMAX_ONCE Pack<T> exponentials_of(const Measured<T>& m, double temperature, Pack<T> scores) {
    Pack<T> e;
    with_exponential(m, temperature, [&](auto exp) __attribute__((always_inline)) { e = exp(scores).rounded(); });
    return e;
}

template <class T>
FASTSOFTMAX_ONCE void raise_row(const Rows<T>& rows, int r, std::ptrdiff_t count) {
    const Doubles<T> exponent = doubles<T>(rows.run.exponent[rows.first + r]);
    transform(rows.out(r), rows.out(r), count,
              [=](Pack<T> v, std::ptrdiff_t) __attribute__((always_inline)) { return raised(v, exponent); });
}

template <bool kept, class T>
FASTSOFTMAX_ONCE void write_loss_gradients(const Rows<T>& rows, const Measured<T>& m, const Labels<T>& labels,
                                           Pack<T> scores, std::ptrdiff_t count, T scale) {
    const bool own = rows.run.own_terms;
    const Entries<T> entries = {terms_of(rows, 0), own ? rows.run.classes : 0, 1,
                                rows.x(0),         rows.run.x.slice_stride,    1};
    const LossGradient<T> all(rows.run, rows.first, rows.count, m, labels, scores,
                              exponentials_of<T>(m, rows.run.temperature, scores), sums_of_terms(rows), entries);
    with_exponentials<kept>(rows, m, scale, [&](int r, const T* from, auto exp) __attribute__((always_inline)) {
        T* out = rows.out(r);
        if (labels.ignored(r))
            return transform(from, out, count,
                             [](Pack<T>, std::ptrdiff_t) __attribute__((always_inline)) { return broadcast(T(0)); });
        const typename LossGradient<T>::Row gradient(all, r);
        if constexpr (!kept) {
            if (const T* terms = terms_of(rows, r))
                transform(from, out, count, [&](Pack<T> v, std::ptrdiff_t i) __attribute__((always_inline)) {
                    return gradient(exp(v), load_in(terms, i, count));
                });
        }
        if (kept || !rows.run.terms)
            transform(from, out, count,
                      [&](Pack<T> v, std::ptrdiff_t) __attribute__((always_inline)) { return gradient(exp(v)); });
        rows.put(r, labels.index[r], count, lane(all.label_value, r));
        if (all.largest[r] >= 0) rows.put(r, all.largest[r], count, lane(all.max_value, r));
        if (rows.run.exponent) raise_row(rows, r, count);
    });
}

// The numbers of a slice itself.
template <Operation op, class T>
FASTSOFTMAX_INLINE void conclude(const Rows<T>& rows, const Measured<T>& measured, const Labels<T>& labels,
                                 Pack<T> scores) {
    if constexpr (op == Operation::logsumexp) {
        conclude_logsumexp(rows.run, rows.first, rows.count, measured);
    } else if constexpr (is_loss<op>) {
        write_losses(rows, measured, labels, scores);
    }
}

// The first `count` classes of the arrays: all of them, or a block's.
template <Operation op, bool kept, class T>
FASTSOFTMAX_INLINE void write(const Rows<T>& rows, const Measured<T>& measured, const Labels<T>& labels, Pack<T> scores,
                              std::ptrdiff_t count, T scale) {
    if constexpr (op == Operation::softmax)
        write_softmax<kept>(rows, measured, count, scale);
    else if constexpr (op == Operation::log_softmax)
        write_log_softmax(rows, measured, count);
    else if constexpr (op == Operation::cross_entropy_grad)
        write_loss_gradients<kept>(rows, measured, labels, scores, count, scale);
}

template <Operation op, bool keep, class T>
void compute_rows(const Rows<T>& rows) {
    const Run& run = rows.run;
    const Labels<T> labels(is_loss<op>, run, rows.first, rows.count);
    // Before exponentials take the place of scores.
    const Pack<T> scores = is_loss<op> ? label_scores(rows, labels) : broadcast(T(0));
    const Measured<T> measured = measure_blocks<op, T>(
        run, rows.count, [&](std::ptrdiff_t begin, std::ptrdiff_t end) { return measure<op, keep>(rows, begin, end); });
    conclude<op>(rows, measured, labels, scores);
    write<op, keep>(rows, measured, labels, scores, run.classes, T(1));
}

template <Operation op, class T>
void general_rows(const Run& run) {
    // Together, with the results if those are written later, they stay in the first-level cache.
    constexpr std::ptrdiff_t bytes_together = op == Operation::log_softmax ? 8192 : 16384;
    const std::ptrdiff_t fit = bytes_together / (run.classes * static_cast<std::ptrdiff_t>(sizeof(T)) + 1);
    const std::ptrdiff_t together = fit < 1 ? 1 : fit < Pack<T>::lanes ? fit : Pack<T>::lanes;
    for (std::ptrdiff_t first = 0; first < run.slices; first += together) {
        const std::ptrdiff_t left = run.slices - first;
        const Rows<T> some = {run, first, static_cast<int>(left < together ? left : together)};
        if (may_keep<op> && run.classes <= fastsoftmax::block_classes && !run.terms)
            compute_rows<op, may_keep<op>>(some);
        else
            compute_rows<op, false>(some);
    }
}

// The run's only row, in blocks.

template <Operation op>
FASTSOFTMAX_INLINE bool keeps(const Run& run) {
    return may_keep<op> && run.out.data != run.x.data;
}

template <Operation op, class T>
Statistics measure_row(const Run& run, std::ptrdiff_t count) {
    const Rows<T> row = {run, 0, 1};
    Statistics s = statistics_of<op>(
        keeps<op>(run) ? measure<op, may_keep<op>>(row, 0, count) : measure<op, false>(row, 0, count), 0);
    return s;
}

// Whether the exponentials stored while measuring can be reused when writing. They must equal recomputed ones up to a
// power of two, so none that matters may have become subnormal.
template <Operation op, class T>
bool kept_serve(const Run& run, const Statistics& all, const Statistics& of_block) {
    constexpr double lowest = 1 - ExpConstants<T>::ieee_bias;
    const double distance = of_block.reference - all.reference;
    const double factor = op == Operation::cross_entropy_grad ? run.chosen[0] * run.scale[0] : 1;
    return keeps<op>(run) && of_block.shift == all.shift && lowest <= distance && distance <= 0 && 0 <= factor &&
           factor < 0x1p30;
}

template <Operation op, class T>
void conclude_row(const Run& run, const Statistics& s) {
    const Rows<T> rows = {run, 0, 1};
    const Labels<T> labels(is_loss<op>, run, 0, 1);
    conclude<op>(rows, measured_of<op, T>(&s, 1), labels, broadcast(static_cast<T>(s.label_score)));
}

template <Operation op, class T>
void write_row(const Run& run, const Statistics& all, const Statistics& of_block, std::ptrdiff_t count) {
    const Rows<T> row = {run, 0, 1};
    const Measured<T> measured = measured_of<op, T>(&all, 1);
    const Labels<T> labels(is_loss<op>, run, 0, 1);
    const Pack<T> scores = broadcast(static_cast<T>(all.label_score));
    if (kept_serve<op, T>(run, all, of_block)) {
        const T scale = static_cast<T>(lane(power_of_two(broadcast(of_block.reference - all.reference)), 0));
        write<op, may_keep<op>>(row, measured, labels, scores, count, scale);
    } else {
        write<op, false>(row, measured, labels, scores, count, T(1));
    }
}

}  // namespace
