// The Kullback-Leibler divergence of two rows of scores, also with its gradient by the second. With d the difference of
// two log-probabilities it is the sum of p (exp(-d) - 1 + d), since the probabilities of either add up to 1: no term is
// negative, so nothing cancels, also where the distributions nearly agree.
#pragma once

#include "../loops/tile.hpp"
#include "logs.hpp"

namespace {

// Sums the exponentials of scores below the largest one, and counts those that equal it.
template <class T>
struct BelowSum {
    Pack<T> largest;
    PowerSum<T> sum = {};
    Pack<T> ties = broadcast(T(0));

    template <class Exp, int packs>
    FASTSOFTMAX_LONG Pack<T, packs> add(const Exp& exp, Pack<T, packs> x, std::ptrdiff_t = 0, std::ptrdiff_t = 1) {
        const Growth<T, packs> e = exp(x);
        const Pack<T, packs> zero = broadcast<T, packs>(T(0));
        const Mask<T, packs> at_largest = equal(x, repeat<packs>(largest));
        const Pack<T, packs> power = select(at_largest, zero, e.power);
        const Pack<T, packs> one = select(at_largest, broadcast<T, packs>(T(1)), zero);
        unrolled<packs>([&](int k) __attribute__((always_inline)) {
            sum.add(part(power, k), part(e.growth, k));
            ties = ties + part(one, k);
        });
        return e.rounded();
    }
    FASTSOFTMAX_INLINE void carry() { sum.carry(); }
};

// The exponentials of slices from what is below the largest scores, and from how many are equal to them.
template <class T, class Exp>
FASTSOFTMAX_INLINE Measured<T> measured_below(const Exp& exp, Pack<T> largest, Two<Pack<T>> below, Pack<T> ties) {
    Measured<T> m = measured(exp, largest, below);
    const Pack<T> more = ties - broadcast(T(1));
    if (equal_bits(more, broadcast(T(0))) != bits_of(Pack<T>::lanes))
        m.rest = m.rest + Two<Pack<T>>{more, broadcast(T(0))} * m.top;
    return m;
}

// exp(-d) - 1 + d = d^2 series(d) for |d| <= 1, to 2^-27 (double 2^-55).
template <class T>
struct DivergenceSeries {
    static constexpr int count = sizeof(T) == 4 ? 10 : 17;
    T of[count];

    constexpr DivergenceSeries() : of() {
        double term = 0.5;
        for (int k = 0; k < count; ++k) {
            of[k] = static_cast<T>(term);
            term = -term / (k + 3);
        }
    }
};

// The terms of slices, one a lane, or of one slice in all lanes. Exponentials are those of the slices' own references.
template <class T>
class Divergence {
    static constexpr int lanes = Pack<T>::lanes;

  public:
    Divergence() = default;
    FASTSOFTMAX_ONCE Divergence(const Run& run, std::ptrdiff_t first, int count, const Measured<T>& p,
                                const Measured<T>& q)
        : scale_(run.scale ? load_doubles<T>(run.scale + first, count) : doubles<T>(0)),
          all_(p.top + p.rest),
          all_of_q_(q.top + q.rest) {
        const Two<Pack<T>> shift = two_sum(p.max, -q.max), log = LogTotal<T>(p).in_two() - LogTotal<T>(q).in_two();
        shift_ = finite(shift);
        log_ = log.high + log.low;
        const Temperature t(run.temperature);
        scaling_ = broadcast(static_cast<T>(t.before * t.after));
        inverse_ = {broadcast(static_cast<T>(1 / t.rest)), broadcast(T(0))};
        inverse_.low = fma(-inverse_.high, broadcast(static_cast<T>(t.rest)), broadcast(T(1)));
        if constexpr (sizeof(T) == 4)
            inverse_.low = broadcast(static_cast<T>(1 / t.rest - static_cast<T>(1 / t.rest)));
        else
            inverse_.low = inverse_.low * inverse_.high;
        ratio_ = narrow(widen(all_) / widen(all_of_q_));
        const Two<Pack<T>> weight = product_in_two(scale_, doubles<T>(1));
        p_factor_ = Probability<T>(Probability<T>(all_), weight).factor;
        q_factor_ = Probability<T>(Probability<T>(all_of_q_), weight).factor;
        wide_ = wide_lanes(scale_, p_factor_.high) | wide_lanes(scale_, q_factor_.high);
        any_wide_ = lane_bits(wide_) != 0;
    }

    FASTSOFTMAX_INLINE Divergence of_lane(int i) const {
        const auto two = [=](Two<Pack<T>> a) { return Two<Pack<T>>{spread(a.high, i), spread(a.low, i)}; };
        Divergence one = *this;
        one.shift_ = two(shift_);
        one.log_ = spread(log_, i);
        one.ratio_ = spread(ratio_, i);
        one.p_factor_ = two(p_factor_);
        one.q_factor_ = two(q_factor_);
        one.any_wide_ = lane(wide_, i) != 0;
        if (one.any_wide_) {
            one.scale_ = spread(scale_, i);
            one.all_ = two(all_);
            one.all_of_q_ = two(all_of_q_);
            one.wide_ = spread(wide_, i);
        }
        return one;
    }

    // What a class adds: weight * share + more to the divergence, `drift` to the sum of p - q; all times that of p's
    // exponentials.
    struct Term {
        Pack<T> weight, share, more, drift;
    };

    FASTSOFTMAX_LONG Term operator()(Pack<T> x, Pack<T> y, Pack<T> p, Pack<T> q) const {
        const Pack<T> zero = broadcast(T(0)), d = difference(x, y), square = d * d, in_p = q * ratio_;
        const Mask<T> small = is_small(d);
        const Pack<T> bend = square * polynomial(d, series.of);
        // No class of p has d = -inf. One whose exponential became 0 must not hide an infinite d.
        const Mask<T> absent = equal(x, broadcast(T(-infinity)));
        return {max(broadcast(least), p), select(absent, zero, select(small, bend, d - broadcast(T(1)))),
                select(small, zero, in_p), select(small, p * (d - bend), p - in_p)};
    }

    // Of sums of the terms: divergences to run.value, and the logarithms mended by what the sums of p and q differ.
    FASTSOFTMAX_INLINE void conclude(const Run& run, std::ptrdiff_t first, int count, Wide<T> terms, Wide<T> drift) {
        const Wide<T> all = widen(all_);
        const Doubles<T> sum = quotient(terms, all), off = quotient(drift, all), zero = doubles<T>(0);
        // Where the sum of all q is less than 1 by `off`, exp(-d) - 1 + d is too large by half of its square.
        const Doubles<T> divergence = max(zero, sum - off * off * doubles<T>(0.5));
        const Doubles<T> undefined = to_doubles((all - all) + (widen(all_of_q_) - widen(all_of_q_)));
        store_doubles<T>(run.value + first, divergence + undefined, count);
        log_ = log_ + narrow(off);
    }

    // weight * (q - p)
    FASTSOFTMAX_LONG Pack<T> gradient(Pack<T> x, Pack<T> y, Pack<T> p, Pack<T> q) const {
        const Pack<T> d = difference(x, y), less_than_one = d * d * polynomial(d, series.of) - d;
        const Pack<T> one = product(p, p_factor_), near = one * less_than_one, far = product(q, q_factor_) - one;
        const Pack<T> value = select(is_small(d), near, far);
        return any_wide_ ? widely(d, less_than_one, p, q, value) : value;
    }

  private:
    static constexpr DivergenceSeries<T> series = {};
    static constexpr T least = sizeof(T) == 4 ? T(0x1p-126) : T(0x1p-1022);  // normal
    Two<Pack<T>> shift_;
    Pack<T> log_, scaling_, ratio_;
    Two<Pack<T>> inverse_, p_factor_, q_factor_;
    Doubles<T> scale_;
    Two<Pack<T>> all_, all_of_q_;
    Mask<T> wide_;
    bool any_wide_;

    FASTSOFTMAX_INLINE static Two<Pack<T>> finite(Two<Pack<T>> a) {
        return {a.high, select(equal(a.high - a.high, broadcast(T(0))), a.low, broadcast(T(0)))};
    }
    FASTSOFTMAX_INLINE static Doubles<float> quotient(Wide<float> a, Wide<float> b) { return a / b; }
    // An infinite one has no second part.
    FASTSOFTMAX_INLINE static Doubles<double> quotient(Wide<double> a, Wide<double> b) {
        const Mask<double> finite = equal(a.high - a.high, broadcast(0.0));
        return select(finite, to_doubles(a / b), a.high / b.high);
    }
    FASTSOFTMAX_INLINE static Mask<T> is_small(Pack<T> d) { return less(max(-d, d), broadcast(T(1))); }

    // log p - log q of scores x and y: their difference is taken less that of the largest ones, as digits beyond T.
    FASTSOFTMAX_INLINE Pack<T> difference(Pack<T> x, Pack<T> y) const {
        const Two<Pack<T>> apart = finite(two_sum(x, -y));
        const Pack<T> d = (apart.high - shift_.high) + (apart.low - shift_.low);
        const Pack<T> scaled = d * scaling_;
        return fma(scaled, inverse_.high, multiply_add(scaled, inverse_.low, -log_));
    }

    // By way of double where two numbers of T do not hold the factors.
    FASTSOFTMAX_ONCE Pack<T> widely(Pack<T> d, Pack<T> less_than_one, Pack<T> p, Pack<T> q, Pack<T> value) const {
        const auto share = [](Pack<T> e, const Two<Pack<T>>& all) {
            const Probability<T> one(all);
            if constexpr (sizeof(T) == 4)
                return to_doubles(e) * widen(one.factor);
            else
                return one(e);
        };
        const Doubles<T> of_p = share(p, all_), near = of_p * to_doubles(less_than_one),
                         far = share(q, all_of_q_) - of_p;
        return select(wide_, select(is_small(d), narrow(scale_ * near), narrow(scale_ * far)), value);
    }
};

template <bool with_gradient>
struct Diverge {
    static constexpr auto operation = with_gradient ? Operation::kl_divergence_grad : Operation::kl_divergence;

    template <class T>
    FASTSOFTMAX_ONCE static void some_rows(const Rows<T>& p, const Rows<T>& q) {
        constexpr int lanes = Pack<T>::lanes;
        const Run& run = p.run;
        const std::ptrdiff_t classes = run.classes, width = (classes + lanes - 1) / lanes * lanes;
        T* const kept = static_cast<T*>(run.kept);
        const auto kept_row = [=](int i, int which) { return kept + (2 * i + which) * width; };
        const Measured<T> of_p = measure_rows(p, kept_row, 0), of_q = measure_rows(q, kept_row, 1);
        Divergence<T> all(run, p.first, p.count, of_p, of_q);
        double terms[2][lanes] = {}, drifts[2][lanes] = {};
        for (int i = 0; i < p.count; ++i) {
            const T *x = p.x(i), *y = q.x(i), *of_x = kept_row(i, 0), *of_y = kept_row(i, 1);
            const Divergence<T> one = all.of_lane(i);
            Accumulator<T> sum, drift;
            for_packs(x, 0, classes, T(-infinity), [&](Pack<T> v, std::ptrdiff_t c) __attribute__((always_inline)) {
                const auto term = one(v, load_in(y, c, classes, T(-infinity)), load(of_x + c), load(of_y + c));
                sum.add_product(term.weight, term.share);
                sum.add(term.more);
                drift.add(term.drift);
            });
            const Two<double> of_terms = sum.total(), of_drifts = drift.total();
            terms[0][i] = of_terms.high;
            terms[1][i] = of_terms.low;
            drifts[0][i] = of_drifts.high;
            drifts[1][i] = of_drifts.low;
        }
        all.conclude(run, p.first, p.count, load_wide<T>(terms[0], terms[1]), load_wide<T>(drifts[0], drifts[1]));
        if constexpr (with_gradient)
            for (int i = 0; i < p.count; ++i) {
                const T *x = p.x(i), *y = q.x(i), *of_x = kept_row(i, 0), *of_y = kept_row(i, 1);
                const Divergence<T> one = all.of_lane(i);
                for_packs(x, 0, classes, T(-infinity), [&](Pack<T> v, std::ptrdiff_t c) __attribute__((always_inline)) {
                    const Pack<T> w = load_in(y, c, classes, T(-infinity));
                    store_in(p.out(i), c, classes, one.gradient(v, w, load(of_x + c), load(of_y + c)));
                });
            }
    }

    template <class T>
    static void rows(const Run& run) {
        Run q_run = run;
        q_run.x = run.dy;
        const std::ptrdiff_t together = fastsoftmax::rows_of_both(run.classes, Pack<T>::lanes, sizeof(T));
        for (std::ptrdiff_t first = 0; first < run.slices; first += together) {
            const std::ptrdiff_t left = run.slices - first;
            const int count = static_cast<int>(left < together ? left : together);
            some_rows(Rows<T>{run, first, count}, Rows<T>{q_run, first, count});
        }
    }

    template <class T>
    static void tiles(const Run& run) {
        constexpr std::ptrdiff_t lanes = Pack<T>::lanes;
        for (std::ptrdiff_t first = 0; first < run.slices; first += lanes) {
            const std::ptrdiff_t left = run.slices - first;
            one_tile(run, first, static_cast<int>(left < lanes ? left : lanes),
                     reinterpret_cast<T*>(run.x.data + first * run.x.slice_stride),
                     reinterpret_cast<const T*>(run.dy.data + first * run.dy.slice_stride));
        }
    }

  private:
    template <class T, class Kept>
    FASTSOFTMAX_INLINE static Measured<T> measure_rows(const Rows<T>& rows, const Kept& kept, int which) {
        constexpr int lanes = Pack<T>::lanes;
        const auto exp = exponential_of<OwnExponential<T>>(rows);
        Wide<T> partial[lanes];
        T largest[lanes] = {}, ties[lanes] = {};
        for (int i = 0; i < rows.count; ++i) {
            const T* x = rows.x(i);
            largest[i] = row_max(x, rows.run.classes);
            const BelowSum<T> sum = sum_row<true, false>(BelowSum<T>{broadcast(largest[i])}, exp.of_lane(i), x,
                                                         rows.run.classes, kept(i, which), true, x, x);
            partial[i] = sum.sum.wide();
            ties[i] = fold_sum(sum.ties);
        }
        return measured_below(exp, load_pack<T>(largest), folded_rows<T>(partial, rows.count), load_pack<T>(ties));
    }

    template <class T>
    FASTSOFTMAX_INLINE static Measured<T> measure_tile(const Run& run, const T* tile, T* kept) {
        constexpr int lanes = Pack<T>::lanes;
        const std::ptrdiff_t classes = run.classes;
        Pack<T> largest = broadcast(T(-infinity));
        for (std::ptrdiff_t c = 0; c < classes; ++c) largest = max(load_pack<T>(tile + c * lanes), largest);
        const OwnExponential<T> exp(largest, run.temperature);
        const int sums = partial_sums<T>(classes);
        const std::ptrdiff_t together = terms_to_carry * sums, grouped = classes / together * together;
        Wide<T> partial[lanes];
        Pack<T> ties = broadcast(T(0));
        for (int k = 0; k < sums; ++k) {
            BelowSum<T> sum = {largest};
            for (std::ptrdiff_t c = k; c < classes; c += sums) {
                store_pack(kept + c * lanes, sum.add(exp, load_pack<T>(tile + c * lanes)));
                if (c % together >= together - sums && c < grouped) sum.carry();
            }
            partial[k] = sum.sum.wide();
            ties = ties + sum.ties;
        }
        return measured_below(exp, largest, in_two(folded(partial, sums)), ties);
    }

    // Results take the place of x.
    template <class T>
    FASTSOFTMAX_ONCE static void one_tile(const Run& run, std::ptrdiff_t first, int count, T* x, const T* y) {
        constexpr int lanes = Pack<T>::lanes;
        const std::ptrdiff_t classes = run.classes;
        T *const of_x = static_cast<T*>(run.kept), *const of_y = of_x + classes * lanes;
        const Measured<T> p = measure_tile(run, x, of_x), q = measure_tile(run, y, of_y);
        Divergence<T> all(run, first, count, p, q);
        TileSum<T> terms(classes), drift(classes);
        for (std::ptrdiff_t c = 0; c < classes; ++c) {
            const std::ptrdiff_t at = c * lanes;
            const auto term = all(load(x + at), load(y + at), load(of_x + at), load(of_y + at));
            terms.add_product(c, term.weight, term.share);
            terms.add(c, term.more);
            drift.add(c, term.drift);
        }
        all.conclude(run, first, count, terms.total(), drift.total());
        if constexpr (with_gradient)
            for (std::ptrdiff_t c = 0; c < classes; ++c) {
                const std::ptrdiff_t at = c * lanes;
                store_pack(x + at, all.gradient(load(x + at), load(y + at), load(of_x + at), load(of_y + at)));
            }
    }
};

}  // namespace
