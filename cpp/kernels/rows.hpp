// The passes over slices whose classes are contiguous. A row is measured (its maximum, then the sum of its exponentials),
// then written. Where float or double come out, the exponentials wait in the row of the output, else they are computed twice.
#pragma once

#include "results.hpp"

namespace {

template <class E>
struct Row {
    const E* x;
    const E* dy;
    E* out;

    Row(const Run& run, std::ptrdiff_t slice)
        : x(reinterpret_cast<const E*>(run.x.data + slice * run.x.slice_stride)),
          dy(reinterpret_cast<const E*>(run.dy.data + slice * run.dy.slice_stride)),
          out(reinterpret_cast<E*>(run.out.data + slice * run.out.slice_stride)) {}
};

// Calls f(pack, position) for classes [begin, end); lanes beyond the end hold `fill`.
template <class E, class F>
FASTSOFTMAX_INLINE void for_packs(const E* x, std::ptrdiff_t begin, std::ptrdiff_t end, Compute<E> fill, F f) {
    std::ptrdiff_t i = begin;
    for (; i + pack_lanes<E> <= end; i += pack_lanes<E>) f(load(x + i), i);
    if (i < end) f(load_first(x + i, end - i, fill), i);
}

template <class E>
FASTSOFTMAX_INLINE void store_in(E* out, std::ptrdiff_t i, std::ptrdiff_t end, Pack<Compute<E>> value) {
    if (i + pack_lanes<E> <= end)
        store(out + i, value);
    else
        store_first(out + i, value, end - i);
}

template <class E>
FASTSOFTMAX_INLINE Pack<Compute<E>> load_in(const E* x, std::ptrdiff_t i, std::ptrdiff_t end) {
    return i + pack_lanes<E> <= end ? load(x + i) : load_first(x + i, end - i, Compute<E>(0));
}

template <class E>
FASTSOFTMAX_INLINE Compute<E> row_max(const E* x, std::ptrdiff_t begin, std::ptrdiff_t end) {
    using T = Compute<E>;
    constexpr T lowest = -__builtin_inf();
    constexpr int step = pack_lanes<E>;
    Pack<T> m[4] = {broadcast(lowest), broadcast(lowest), broadcast(lowest), broadcast(lowest)};
    std::ptrdiff_t i = begin;
    for (; i + 4 * step <= end; i += 4 * step)
        for (int k = 0; k < 4; ++k) m[k] = max(load(x + i + k * step), m[k]);
    for_packs(x, i, end, lowest, [&](Pack<T> v, std::ptrdiff_t) __attribute__((always_inline)) { m[0] = max(v, m[0]); });
    return fold_max(max(max(m[0], m[1]), max(m[2], m[3])));
}

template <class E>
FASTSOFTMAX_ONCE std::ptrdiff_t first_equal(const E* x, std::ptrdiff_t begin, std::ptrdiff_t end, Compute<E> value) {
    const auto wanted = broadcast(value);
    std::ptrdiff_t i = begin;
    for (; i + pack_lanes<E> <= end; i += pack_lanes<E>)
        if (const std::uint32_t bits = equal_bits(load(x + i), wanted)) return i + __builtin_ctz(bits);
    const std::uint32_t bits = equal_bits(load_first(x + i, end - i, Compute<E>(__builtin_nan(""))), wanted);
    return i + __builtin_ctz(bits);
}

template <class E>
FASTSOFTMAX_ONCE bool has_nan(const E* x, std::ptrdiff_t begin, std::ptrdiff_t end) {
    constexpr std::uint32_t all = static_cast<std::uint32_t>((1ull << pack_lanes<E>)-1);
    bool found = false;
    for_packs(x, begin, end, Compute<E>(0),
              [&](auto v, std::ptrdiff_t) __attribute__((always_inline)) { found |= equal_bits(v, v) != all; });
    return found;
}

// Lanes of the pack at `i` other than that of class `index`.
template <class T>
FASTSOFTMAX_INLINE Pack<T> without(Pack<T> value, std::ptrdiff_t i, std::ptrdiff_t index) {
    using I = Integer<T>;
    return select(equal(iota<I>(), broadcast(static_cast<I>(index - i))), broadcast(T(0)), value);
}

// The sum of the exponentials of [begin, end) except that of `apart` (none: -1), all of them kept at `kept` if asked.
template <bool keep, class E, class Exp>
FASTSOFTMAX_INLINE Two<double> sum_exponentials(const E* x, std::ptrdiff_t begin, std::ptrdiff_t end, std::ptrdiff_t apart,
                                                Compute<E>* kept, Exp exp) {
    using T = Compute<E>;
    constexpr T lowest = -__builtin_inf();
    Accumulator<T> sum;
    const auto visit = [&](Pack<T> v, std::ptrdiff_t i) __attribute__((always_inline)) {
        const Pack<T> e = exp(v);
        if constexpr (keep) store_in(kept, i, end, e);
        sum.add(e);
    };
    std::ptrdiff_t i = begin;
    if (apart >= 0) {
        const std::ptrdiff_t pack = apart - (apart - begin) % pack_lanes<E>;
        for_packs(x, begin, pack, lowest, visit);
        const std::ptrdiff_t next = pack + pack_lanes<E>;
        i = next < end ? next : end;
        for_packs(x, pack, i, lowest, [&](Pack<T> v, std::ptrdiff_t at) __attribute__((always_inline)) {
            const Pack<T> e = exp(v);
            if constexpr (keep) store_in(kept, at, end, e);
            sum.add(without(e, at, apart));
        });
    }
    for_packs(x, i, end, lowest, visit);
    return sum.total();
}

// Measures a block for everything that is made of exponentials. With `apart` the largest is left out of the sum, so that
// what the others make up is exact however small it is; without, it is taken out again (softmax has no use for more).
template <bool apart, bool keep, class E>
FASTSOFTMAX_ONCE Statistics measure_exponentials(const E* x, std::ptrdiff_t begin, std::ptrdiff_t end, double temperature,
                                                   Compute<E>* kept) {
    using T = Compute<E>;
    Statistics s;
    s.max = row_max(x, begin, end);
    s.argmax = begin;
    if (!(s.max > -infinity && s.max < infinity)) {
        s.top[0] = __builtin_nan("");
        s.rest[0] = has_nan(x, begin, end) ? __builtin_nan("") : 0;
        return s;
    }
    const Pack<double> max = broadcast(s.max), shift = shift_for<T>(max, temperature);
    const Double2 scaled = scaled_max<T>(max, shift, temperature);
    const Pack<double> reference = reference_for(scaled.high);
    s.shift = lane(shift, 0);
    s.reference = lane(reference, 0);
    set(s.top, exp_of_max<T>(scaled, reference));
    if constexpr (apart) s.argmax = first_equal(x, begin, end, static_cast<T>(s.max));

    Two<double> rest;
    with_exponential(groups_of<T>(s), s.shift != 0, temperature, [&](auto exp) __attribute__((always_inline)) {
        rest = sum_exponentials<keep>(x, begin, end, apart ? s.argmax : -1, kept, exp);
        if constexpr (!apart) {
            const double largest = lane(exp(broadcast(static_cast<T>(s.max))), 0);
            rest = add(rest, {-largest, 0.0});
        }
    });
    s.rest[0] = rest.high;
    s.rest[1] = rest.low;
    return s;
}

// Sum of y * dy, or of dy, over a block.
template <Operation op, class E>
FASTSOFTMAX_ONCE Statistics measure_gradient(const Row<E>& row, std::ptrdiff_t begin, std::ptrdiff_t end) {
    using T = Compute<E>;
    Accumulator<T> sum;
    for_packs(row.dy, begin, end, T(0), [&](Pack<T> dy, std::ptrdiff_t i) __attribute__((always_inline)) {
        if constexpr (op == fastsoftmax::log_softmax_grad) {
            sum.add(dy);
        } else {
            sum.add_product(load_in(row.x, i, end), dy);
        }
    });
    const Two<double> total = sum.total();
    Statistics s;
    s.rest[0] = total.high;
    s.rest[1] = total.low;
    return s;
}

template <Operation op, class E>
FASTSOFTMAX_INLINE Statistics measure_block(const Run& run, const Row<E>& row, std::ptrdiff_t begin, std::ptrdiff_t end) {
    if constexpr (op == fastsoftmax::softmax_grad || op == fastsoftmax::log_softmax_grad)
        return measure_gradient<op>(row, begin, end);
    else
        return measure_exponentials<op != fastsoftmax::softmax, false>(row.x, begin, end, run.temperature,
                                                                       static_cast<Compute<E>*>(nullptr));
}

inline void merge_blocks(Operation op, const Run& run, Statistics& left, const Statistics& right) {
    if (op == fastsoftmax::softmax_grad || op == fastsoftmax::log_softmax_grad)
        merge_sums(run, left, right);
    else
        merge_exponentials(run, left, right);
}

// Stores f(x) of [begin, end).
template <class E, class F>
FASTSOFTMAX_INLINE void transform(const E* x, E* out, std::ptrdiff_t begin, std::ptrdiff_t end, F f) {
    for_packs(x, begin, end, Compute<E>(0), [&](auto v, std::ptrdiff_t i) __attribute__((always_inline)) {
        store_in(out, i, end, f(v, i));
    });
}

template <class E>
FASTSOFTMAX_ONCE void write_softmax(const Run& run, const Row<E>& row, const Statistics& s, std::ptrdiff_t begin,
                                      std::ptrdiff_t end, bool kept) {
    using T = Compute<E>;
    const Groups<T> g = groups_of<T>(s);
    const Probability<T> probability(g);
    if constexpr (std::is_same_v<E, T>) {
        if (kept)
            return transform(row.out, row.out, begin, end, [&](Pack<T> e, std::ptrdiff_t) __attribute__((always_inline)) {
                return probability(e);
            });
    }
    with_exponential(g, s.shift != 0, run.temperature, [&](auto exp) __attribute__((always_inline)) {
        transform(row.x, row.out, begin, end, [&](Pack<T> v, std::ptrdiff_t) __attribute__((always_inline)) {
            return probability(exp(v));
        });
    });
}

template <class E>
FASTSOFTMAX_ONCE void write_log_softmax(const Run& run, const Row<E>& row, const Statistics& s, std::ptrdiff_t begin,
                                          std::ptrdiff_t end) {
    using T = Compute<E>;
    const Groups<T> g = groups_of<T>(s);
    const LogProbability<T> log_probability(g, run.temperature);
    if (run.temperature == 1)
        transform(row.x, row.out, begin, end, [&](Pack<T> v, std::ptrdiff_t) __attribute__((always_inline)) {
            return log_probability.plain(v);
        });
    else
        transform(row.x, row.out, begin, end, [&](Pack<T> v, std::ptrdiff_t) __attribute__((always_inline)) {
            return log_probability.scaled(v);
        });
    const Dominance<T> dominance(g);
    if (begin <= s.argmax && s.argmax < end && lane(dominance.mask, 0))
        row.out[s.argmax] = from_compute<E>(lane(dominance.log_probability, 0));
}

template <Operation op, class E>
FASTSOFTMAX_ONCE void write_transform_gradient(const Run& run, const Row<E>& row, const Statistics& s,
                                                 std::ptrdiff_t begin, std::ptrdiff_t end) {
    using T = Compute<E>;
    const TransformGradient<op, T> gradient(groups_of<T>(s), run.temperature);
    transform(row.dy, row.out, begin, end, [&](Pack<T> dy, std::ptrdiff_t i) __attribute__((always_inline)) {
        return gradient(load_in(row.x, i, end), dy);
    });
}

// The row of what multiplies each -log p in the loss; null: none.
template <class T>
FASTSOFTMAX_INLINE const T* terms_of(const Run& run, std::ptrdiff_t slice) {
    if (!run.terms) return nullptr;
    return static_cast<const T*>(run.terms) + (run.own_terms ? slice * run.classes : 0);
}

FASTSOFTMAX_INLINE bool ignored(const Run& run, std::ptrdiff_t slice) { return run.target && run.target[slice] < 0; }

template <class T>
FASTSOFTMAX_ONCE double sum_of(const T* terms, std::ptrdiff_t classes) {
    Accumulator<T> sum;
    for_packs(terms, 0, classes, T(0), [&](Pack<T> u, std::ptrdiff_t) __attribute__((always_inline)) { sum.add(u); });
    const Two<double> total = sum.total();
    return total.high + total.low;
}

// Sum of terms * -log p over a row; a term of 0 counts as nothing whatever the score.
template <class E>
FASTSOFTMAX_ONCE double weighed_loss(const Run& run, const Row<E>& row, const Groups<Compute<E>>& g,
                                       const Compute<E>* terms) {
    using T = Compute<E>;
    const LogProbability<T> log_probability(g, run.temperature);
    const Dominance<T> dominance(g);
    const Pack<T> max = part(g, [](const Group& s) __attribute__((always_inline)) { return s.max; });
    Accumulator<T> sum;
    for_packs(row.x, 0, run.classes, T(0), [&](Pack<T> v, std::ptrdiff_t i) __attribute__((always_inline)) {
        const Pack<T> u = load_in(terms, i, run.classes);
        const Pack<T> general = run.temperature == 1 ? log_probability.plain(v) : log_probability.scaled(v);
        const Pack<T> log = select(equal(v, max) & dominance.mask, dominance.log_probability, general);
        const Mask<T> absent = equal(u, broadcast(T(0)));
        sum.add_product(u, select(absent, broadcast(T(0)), -log));
    });
    const Two<double> total = sum.total();
    return total.high + total.low;
}

// The loss of one slice, before the exponentials may overwrite its scores.
template <class E>
FASTSOFTMAX_ONCE double loss_of(const Run& run, const Row<E>& row, std::ptrdiff_t slice, const Statistics& s,
                                  Compute<E> target_score) {
    using T = Compute<E>;
    const Groups<T> g = groups_of<T>(s);
    double loss = 0;
    if (run.target && run.chosen[slice] != 0)
        loss = run.chosen[slice] *
               lane(minus_log_probability<T>(g.group[0], broadcast<double>(target_score), run.temperature), 0);
    if (const T* terms = terms_of<T>(run, slice)) loss += weighed_loss(run, row, g, terms);
    return loss;
}

template <class E>
FASTSOFTMAX_ONCE void write_cross_entropy_grad(const Run& run, const Row<E>& row, std::ptrdiff_t slice, const Statistics& s,
                                                 std::ptrdiff_t begin, std::ptrdiff_t end, bool kept) {
    using T = Compute<E>;
    const Groups<T> g = groups_of<T>(s);
    const T* terms = terms_of<T>(run, slice);
    const double chosen = run.target ? run.chosen[slice] : 0, scale = run.scale[slice];
    const double total = chosen + (run.own_terms ? sum_of(terms, run.classes) : run.spread);
    const std::ptrdiff_t target = run.target ? run.target[slice] : -1;
    const bool target_here = begin <= target && target < end, max_here = begin <= s.argmax && s.argmax < end;

    const Probability<T> probability(g, PerSlice<T>::all(total * scale));
    double target_weight = chosen, max_weight = target == s.argmax ? chosen : 0;
    if (terms && target_here) target_weight += static_cast<double>(terms[target]);
    if (terms && max_here) max_weight += static_cast<double>(terms[s.argmax]);
    // Read before the row is overwritten.
    Pack<T> target_exponential = broadcast(T(0));
    const auto write = [&](const E* from, auto exp) __attribute__((always_inline)) {
        if (target_here) target_exponential = exp(broadcast(to_compute(from[target])));
        if (probability.wide || (terms && !fits_float(scale))) {
            transform(from, row.out, begin, end, [&](Pack<T> v, std::ptrdiff_t i) __attribute__((always_inline)) {
                PerSlice<T> value = probability.widely(exp(v));
                if (terms) {
                    const PerSlice<T> u = exactly(load_in(terms, i, end));
                    for (int k = 0; k < groups<T>; ++k) value.group[k] = value.group[k] - u.group[k] * broadcast(scale);
                }
                return rounded(value);
            });
        } else if (terms) {
            const Pack<T> factor = broadcast(static_cast<T>(scale));
            transform(from, row.out, begin, end, [&](Pack<T> v, std::ptrdiff_t i) __attribute__((always_inline)) {
                return probability(exp(v), load_in(terms, i, end) * factor);
            });
        } else {
            transform(from, row.out, begin, end, [&](Pack<T> v, std::ptrdiff_t) __attribute__((always_inline)) {
                return probability(exp(v));
            });
        }
    };
    bool written = false;
    if constexpr (std::is_same_v<E, T>) {
        if (kept) {
            write(row.out, [](Pack<T> e) __attribute__((always_inline)) { return e; });
            written = true;
        }
    }
    if (!written)
        with_exponential(g, s.shift != 0, run.temperature, [&](auto exp) __attribute__((always_inline)) { write(row.x, exp); });

    const auto all = [](double value) { return PerSlice<T>::all(value); };
    const GradientEnds<T> ends(g, target_exponential, all(total), all(target_weight), all(max_weight), all(scale));
    if (target_here) row.out[target] = from_compute<E>(lane(rounded(ends.at_target), 0));
    if (max_here && max_weight != 0) row.out[s.argmax] = from_compute<E>(lane(rounded(ends.at_max), 0));
}

template <Operation op, class E>
inline void write_block(const Run& run, const Row<E>& row, std::ptrdiff_t slice, const Statistics& s, std::ptrdiff_t begin,
                        std::ptrdiff_t end, bool kept) {
    if constexpr (op == fastsoftmax::softmax)
        write_softmax(run, row, s, begin, end, kept);
    else if constexpr (op == fastsoftmax::log_softmax)
        write_log_softmax(run, row, s, begin, end);
    else if constexpr (op == fastsoftmax::softmax_grad || op == fastsoftmax::log_softmax_grad)
        write_transform_gradient<op>(run, row, s, begin, end);
    else if constexpr (op == fastsoftmax::cross_entropy_grad)
        write_cross_entropy_grad(run, row, slice, s, begin, end, kept);
}

// What is one value a slice.
template <Operation op, class E>
inline void conclude_row(const Run& run, const Row<E>& row, std::ptrdiff_t slice, const Statistics& s,
                         Compute<E> target_score) {
    using T = Compute<E>;
    if constexpr (op == fastsoftmax::logsumexp)
        run.value[slice] = lane(log_sum_exp<T>(groups_of<T>(s).group[0]), 0);
    else if constexpr (op == fastsoftmax::cross_entropy || op == fastsoftmax::cross_entropy_grad)
        run.value[slice] = loss_of(run, row, slice, s, target_score);
}

template <class E>
FASTSOFTMAX_INLINE Compute<E> target_score(const Run& run, const Row<E>& row, std::ptrdiff_t slice) {
    return run.target ? to_compute(row.x[run.target[slice]]) : 0;
}

template <Operation op, class E>
void rows(const Run& run) {
    using T = Compute<E>;
    constexpr bool loss = op == fastsoftmax::cross_entropy || op == fastsoftmax::cross_entropy_grad;
    constexpr bool may_keep =
        (op == fastsoftmax::softmax || op == fastsoftmax::cross_entropy_grad) && std::is_same_v<E, T>;
    for (std::ptrdiff_t slice = 0; slice < run.slices; ++slice) {
        const Row<E> row(run, slice);
        if constexpr (loss) {
            if (ignored(run, slice)) {
                run.value[slice] = 0;
                if constexpr (op == fastsoftmax::cross_entropy_grad)
                    for (std::ptrdiff_t c = 0; c < run.classes; ++c) row.out[c] = from_compute<E>(T(0));
                continue;
            }
        }
        T score = 0;
        if constexpr (loss) score = target_score(run, row, slice);
        const bool keep = may_keep && run.classes <= fastsoftmax::block_classes && !run.terms;
        Statistics s;
        if constexpr (may_keep) {
            if (keep)
                s = measure_exponentials<op != fastsoftmax::softmax, true>(row.x, 0, run.classes, run.temperature, row.out);
        }
        if (!keep) {
            constexpr std::ptrdiff_t block = fastsoftmax::block_classes;
            s = measure_block<op>(run, row, 0, run.classes < block ? run.classes : block);
            for (std::ptrdiff_t begin = block; begin < run.classes; begin += block) {
                const std::ptrdiff_t end = run.classes - begin < block ? run.classes : begin + block;
                merge_blocks(op, run, s, measure_block<op>(run, row, begin, end));
            }
        }
        conclude_row<op>(run, row, slice, s, score);
        write_block<op>(run, row, slice, s, 0, run.classes, keep);
    }
}

template <Operation op, class E>
Statistics measure_row(const Run& run, std::ptrdiff_t begin, std::ptrdiff_t end) {
    return measure_block<op>(run, Row<E>(run, 0), begin, end);
}

template <Operation op>
void merge_row(const Run& run, Statistics& left, const Statistics& right) {
    merge_blocks(op, run, left, right);
}

template <Operation op, class E>
void conclude_long_row(const Run& run, const Statistics& s) {
    const Row<E> row(run, 0);
    Compute<E> score = 0;
    if constexpr (op == fastsoftmax::cross_entropy || op == fastsoftmax::cross_entropy_grad)
        score = target_score(run, row, 0);
    conclude_row<op>(run, row, 0, s, score);
}

template <Operation op, class E>
void write_row(const Run& run, const Statistics& s, std::ptrdiff_t begin, std::ptrdiff_t end) {
    write_block<op>(run, Row<E>(run, 0), 0, s, begin, end, false);
}

}  // namespace
