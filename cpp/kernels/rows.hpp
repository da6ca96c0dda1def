// The passes over slices whose classes are contiguous. Rows are measured (the maximum, then the sum of the
// exponentials), then written; meanwhile exponentials wait in the row of the output. Short rows go together, up to as
// many as a pack has lanes, so that what happens once a slice happens for all of them at once.
#pragma once

#include "losses.hpp"

namespace {

// Some neighbouring rows of a run.
template <class T>
struct Rows {
    const Run& run;
    std::ptrdiff_t first;
    int count;

    FASTSOFTMAX_INLINE const T* x(int i) const { return at(run.x, i); }
    FASTSOFTMAX_INLINE T* out(int i) const { return at(run.out, i); }

    // The result of class `c`, where it is one of the `classes` that the arrays hold.
    FASTSOFTMAX_INLINE void put(int i, std::int64_t c, std::ptrdiff_t classes, T value) const {
        const std::int64_t position = c - run.origin;
        if (0 <= position && position < classes) out(i)[position] = value;
    }

  private:
    FASTSOFTMAX_INLINE T* at(const Strided& array, int i) const {
        return reinterpret_cast<T*>(array.data + (first + i) * array.slice_stride);
    }
};

// Calls f(pack, position) for classes [begin, end); lanes beyond the end hold `fill`.
template <class T, class F>
FASTSOFTMAX_INLINE void for_packs(const T* x, std::ptrdiff_t begin, std::ptrdiff_t end, T fill, F f) {
    std::ptrdiff_t i = begin;
    for (; i + Pack<T>::lanes <= end; i += Pack<T>::lanes) f(load(x + i), i);
    if (i < end) f(load_first(x + i, end - i, fill), i);
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

// `begin` where there is none: another thread has changed it since it was found to be the largest.
template <class T>
FASTSOFTMAX_INLINE std::ptrdiff_t first_equal(const T* x, std::ptrdiff_t begin, std::ptrdiff_t end, T value) {
    const auto wanted = broadcast(value);
    std::ptrdiff_t i = begin;
    for (; i + Pack<T>::lanes <= end; i += Pack<T>::lanes)
        if (const std::uint32_t bits = equal_bits(load(x + i), wanted)) return i + __builtin_ctz(bits);
    const std::uint32_t bits = equal_bits(load_first(x + i, end - i, T(__builtin_nan(""))), wanted);
    return bits ? i + __builtin_ctz(bits) : begin;
}

template <class T>
FASTSOFTMAX_ONCE bool has_nan(const T* x, std::ptrdiff_t begin, std::ptrdiff_t end) {
    constexpr auto all = static_cast<std::uint32_t>((1ull << Pack<T>::lanes) - 1);
    bool found = false;
    for_packs(x, begin, end, T(0),
              [&](auto v, std::ptrdiff_t) __attribute__((always_inline)) { found |= equal_bits(v, v) != all; });
    return found;
}

// Lanes of the pack at `i` other than that of class `index`.
template <class T>
FASTSOFTMAX_INLINE Pack<T> without(Pack<T> value, std::ptrdiff_t i, std::ptrdiff_t index) {
    using I = Integer<T>;
    return select(equal(iota<I>(), broadcast(static_cast<I>(index - i))), broadcast(T(0)), value);
}

// The sum of the exponentials of [begin, end), all of them kept in `out` if asked; without that of class `apart` unless
// it is to be the `whole` sum. Meanwhile the row `next` is fetched, since rows are too short for the machine to see one
// coming, and the row of the output, null if there is none, unless it is written now.
template <bool whole, bool keep, class T, class Exp>
FASTSOFTMAX_INLINE Two<double> sum_exponentials(const T* x, std::ptrdiff_t begin, std::ptrdiff_t end,
                                                std::ptrdiff_t apart, T* out, const T* next, Exp exp) {
    const T* written = out ? out : next;
    using Sum = ExponentialSum<T, whole>;
    constexpr int lanes = Pack<T>::lanes;
    constexpr std::ptrdiff_t group = Sum::terms * lanes;
    Sum sum;
    const auto add_packs = [&](auto count, std::ptrdiff_t i) __attribute__((always_inline)) {
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
            sum.add(part(e.power, k), part(e.growth, k));
        }
    };
    for (std::ptrdiff_t i = begin; i < end; i += group) {
        const bool has_apart = !whole && i <= apart && apart < i + group;
        if (i + group <= end && !has_apart) {
            for (int k = 0; k < Sum::terms; k += packs_at_once)
                add_packs(std::integral_constant<int, packs_at_once>{}, i + k * lanes);
        } else {
            for (std::ptrdiff_t k = i; k < i + group && k < end; k += lanes) {
                const Growth<T, 1> e = exp(load_in(x, k, end, T(-infinity)));
                if constexpr (keep) store_in(out, k, end, e.rounded());
                sum.add(whole ? e.power : without(e.power, k, apart), e.growth);
            }
        }
        sum.carry();
    }
    return folded(sum.total());
}

// Measures a block for everything that is made of exponentials. The largest is left out of the sum, so that what the
// others make up is exact however small it is; but softmax has no use for more than the sum of all.
template <Operation op, bool keep, class T>
FASTSOFTMAX_ONCE Measured<T> measure_exponentials(const Rows<T>& rows, std::ptrdiff_t begin, std::ptrdiff_t end) {
    constexpr int lanes = Pack<T>::lanes;
    constexpr bool whole = op == Operation::softmax;
    Measured<T> m;
    T maxima[lanes] = {};
    for (int i = 0; i < rows.count; ++i) maxima[i] = row_max(rows.x(i), begin, end);
    set_maxima(m, load_pack<T>(maxima), rows.run.temperature);

    double high[lanes] = {}, low[lanes] = {};
    with_exponential(m, rows.run.temperature, [&](auto exp) __attribute__((always_inline)) {
        for (int i = 0; i < rows.count; ++i) {
            m.argmax[i] = begin;
            std::ptrdiff_t apart = -1;
            // Where nothing is finite, nothing is largest.
            if (!whole && maxima[i] - maxima[i] == 0)
                m.argmax[i] = apart = first_equal(rows.x(i), begin, end, maxima[i]);
            const Two<double> sum =
                sum_exponentials<whole, keep>(rows.x(i), begin, end, apart, rows.run.out.data ? rows.out(i) : nullptr,
                                              rows.x(i + rows.count), exp.of_lane(i));
            high[i] = sum.high;
            low[i] = sum.low;
        }
        set_top(m, exp);
    });
    (whole ? m.all : m.rest) = in_two(load_wide<T>(high, low));
    if (op != Operation::logsumexp || fold_max(m.max) != T(infinity)) return m;
    // In a row whose largest entry is +inf, `rest` tells whether there is a NaN.
    for (int i = 0; i < rows.count; ++i) {
        if (maxima[i] != T(infinity)) continue;
        high[i] = has_nan(rows.x(i), begin, end) ? __builtin_nan("") : 0;
        low[i] = 0;
    }
    m.rest = in_two(load_wide<T>(high, low));
    return m;
}

template <Operation op, bool keep, class T>
FASTSOFTMAX_INLINE Measured<T> measure(const Rows<T>& rows, std::ptrdiff_t begin, std::ptrdiff_t end) {
    return measure_exponentials<sums_as<op>, keep>(rows, begin, end);
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
    const Softmax<T> all(m);
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
    const Mask<T> dominates = dominant(m);
    const Pack<T> dominant_value = -log.rounded();
    with_log_probability(m, log, rows.run.temperature, [&](auto all) __attribute__((always_inline)) {
        for (int i = 0; i < rows.count; ++i) {
            const auto log_probability = all.of_lane(i);
            transform(rows.x(i), rows.out(i), count,
                      [&](Pack<T> v, std::ptrdiff_t) __attribute__((always_inline)) { return log_probability(v); });
            if (lane(dominates, i)) rows.put(i, m.argmax[i], count, lane(dominant_value, i));
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
    const LossGradient<T> all(rows.run, rows.first, rows.count, m, labels,
                              exponentials_of<T>(m, rows.run.temperature, scores), sums_of_terms(rows),
                              [&](std::int64_t c, int i) { return static_cast<double>(terms_of(rows, i)[c]); });
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
        if (lane(all.max_apart, r)) rows.put(r, m.argmax[r], count, lane(all.max_value, r));
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
void rows(const Run& run) {
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
    s.argmax += run.origin;
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
