// The Kullback-Leibler divergence of two slices of scores, also with its gradient with respect to the second. It is the
// sum of p (exp(-d) - 1 + d) with d = log p - log q, because p and q each add up to 1. No term is negative, so nothing
// cancels, even where the distributions nearly agree.
#pragma once

#include "../loops/tile.hpp"
#include "logs.hpp"

namespace {

// Sums numbers of one sign: a few at a time in T, and these sums in twice its precision. The error is at most 2^-22
// (double 2^-51), and far less if there are many. (Sums of exponentials need not be better, because their error is
// found afterwards.)
template <class T>
struct CarriedSum {
    Pack<T> recent = broadcast(T(0));
    Wide<T> total = widen(broadcast(T(0)));

    FASTSOFTMAX_INLINE void add(Pack<T> x) { recent = recent + x; }
    FASTSOFTMAX_INLINE void carry() {
        add_to(total, to_doubles(recent));
        recent = broadcast(T(0));
    }
    FASTSOFTMAX_INLINE Wide<T> wide() {
        carry();
        return total;
    }
};

// Sums rounded exponentials, which are kept.
template <class T>
struct RoundedSum : CarriedSum<T> {
    template <class Exp, int packs>
    FASTSOFTMAX_LONG Pack<T, packs> add(const Exp& exp, Pack<T, packs> x, std::ptrdiff_t = 0, std::ptrdiff_t = 1) {
        const Pack<T, packs> e = exp(x).rounded();
        unrolled<packs>([&](int k) __attribute__((always_inline)) { this->recent = this->recent + part(e, k); });
        return e;
    }
};

// exp(-d) - 1 + d = d^2 q(d) on |d| <= 1; error of the polynomial 2^-26.6, double 2^-54.2.
template <class T>
struct DivergenceConstants;
template <>
struct DivergenceConstants<float> {
    static constexpr float q[] = {0x1p-1f,        -0x1.555556p-3f,  0x1.55557ap-5f,  -0x1.1110ep-7f,
                                  0x1.6bffbp-10f, -0x1.a028cap-13f, 0x1.a9622ap-16f, -0x1.7416fp-19f};
};
template <>
struct DivergenceConstants<double> {
    static constexpr double q[] = {0x1p-1,
                                   -0x1.5555555555555p-3,
                                   0x1.5555555555506p-5,
                                   -0x1.111111111124bp-7,
                                   0x1.6c16c16c20d89p-10,
                                   -0x1.a01a019ff4f05p-13,
                                   0x1.a01a0190d4ce3p-16,
                                   -0x1.71de3a723803cp-19,
                                   0x1.27e50672be15dp-22,
                                   -0x1.ae6442c0da104p-26,
                                   0x1.1ee57747e0d35p-29,
                                   -0x1.6128d3dd66e95p-33,
                                   0x1.997e1f3551016p-37,
                                   -0x1.b0547b921e9fdp-41};
};

// The normalisers of the two distributions of each slice, a slice a lane: the sums of exponentials `p` and `q`, and the
// difference of their logarithms. `shift` is as much of this difference as two numbers hold, in the unit of the scores;
// `log` is the rest, divided by the temperature.
template <class T>
struct Normalisers {
    Two<Pack<T>> p, q, shift;
    Pack<T> log;

    // From sums by the fixed reference, which p and q share. They are right only for near slices.
    FASTSOFTMAX_INLINE static Normalisers fixed(Two<Pack<T>> p, Two<Pack<T>> q) {
        const Mask<T> q_is_less = less(q.high, p.high);
        const auto chosen = [=](Two<Pack<T>> a, Two<Pack<T>> b) {
            return Two<Pack<T>>{select(q_is_less, a.high, b.high), select(q_is_less, a.low, b.low)};
        };
        const Two<Pack<T>> smaller = chosen(q, p), difference = chosen(p, q) - smaller;
        const Pack<T> scale = own_scale(smaller.high);
        const Measured<T> m = {broadcast(T(0)), scaled(smaller, scale), scaled(difference, scale)};
        const Two<Pack<T>> parts = LogTotal<T>(m).in_two(), ratio = fast_two_sum(parts.high, parts.low);
        return {p, q, chosen(ratio, -ratio), broadcast(T(0))};
    }
    // From sums by references of their own.
    FASTSOFTMAX_INLINE static Normalisers own(const Measured<T>& p, const Measured<T>& q, double temperature) {
        const Two<Pack<T>> log = LogTotal<T>(p).in_two() - LogTotal<T>(q).in_two(), shift = two_sum(p.max, -q.max);
        const Two<Pack<T>> p_sum = p.top + p.rest, q_sum = q.top + q.rest;
        if (!(temperature > 0x1p-900 && temperature < 0x1p900)) return {p_sum, q_sum, shift, log.high + log.low};
        const Two<Pack<T>> more = scaled_by(log, temperature);
        const Two<Pack<T>> high = two_sum(shift.high, more.high), low = two_sum(shift.low, high.low);
        const Pack<T> left = (low.low + more.low) / broadcast(static_cast<T>(temperature));
        return {p_sum, q_sum, {high.high, low.high}, left};
    }
    // Takes `other` where the mask is set.
    FASTSOFTMAX_INLINE void replace(Mask<T> mask, const Normalisers& other) {
        const auto chosen = [=](Two<Pack<T>> a, Two<Pack<T>> b) {
            return Two<Pack<T>>{select(mask, a.high, b.high), select(mask, a.low, b.low)};
        };
        *this = {chosen(other.p, p), chosen(other.q, q), chosen(other.shift, shift), select(mask, other.log, log)};
    }
    FASTSOFTMAX_INLINE std::uint32_t near(std::ptrdiff_t classes) const {
        const T least = FixedRange<T>::least_of_logs * static_cast<T>(classes);
        // The quotient whose logarithm is taken has to be below 2^60.
        const Pack<T> most = broadcast(T(0x1p59));
        return lanes_within<FixedExponential<T>>(p.high, least) & lanes_within<FixedExponential<T>>(q.high, least) &
               lane_bits(less(p.high, q.high * most) & less(q.high, p.high * most));
    }

  private:
    FASTSOFTMAX_INLINE static Two<Pack<float>> scaled_by(Two<Pack<float>> a, double factor) {
        return in_two(widen(a) * doubles<float>(factor));
    }
    FASTSOFTMAX_INLINE static Two<Pack<double>> scaled_by(Two<Pack<double>> a, double factor) {
        return a * Two<Pack<double>>{broadcast(factor), broadcast(0.0)};
    }
};

// Splits a sum into its largest term and the rest, which is 0 if rounding has made it negative.
template <class T>
FASTSOFTMAX_INLINE Measured<T> measured_of_sum(const OwnExponential<T>& exp, Pack<T> largest, Two<Pack<T>> sum) {
    const Measured<T> m = measured(exp, largest, sum);
    const Two<Pack<T>> rest = sum - Two<Pack<T>>{exp(largest).rounded(), broadcast(T(0))};
    const Mask<T> negative = less(rest.high, broadcast(T(0)));
    return {m.max,
            {m.top.high, broadcast(T(0))},
            {select(negative, broadcast(T(0)), rest.high), select(negative, broadcast(T(0)), rest.low)}};
}

// Computes the terms and gradients of slices, one a lane, or of one slice in all lanes.
template <class T>
class Divergence {
    using C = DivergenceConstants<T>;
    static constexpr int lanes = Pack<T>::lanes;

  public:
    Divergence() = default;
    FASTSOFTMAX_ONCE Divergence(const Run& run, std::ptrdiff_t first, int count, const Normalisers<T>& n)
        : shift_(finite(n.shift)),
          log_(n.log),
          ratio_(narrow(widen(n.p) / widen(n.q))),
          scales_(run.temperature != 1),
          scale_(run.scale ? load_doubles<T>(run.scale + first, count) : doubles<T>(0)),
          p_(n.p),
          q_(n.q) {
        const Temperature t(run.temperature);
        const double inverse = 1 / t.rest;
        scaling_ = broadcast(static_cast<T>(t.before * t.after));
        inverse_high_ = broadcast(static_cast<T>(inverse));
        if constexpr (sizeof(T) == 4) {
            inverse_low_ = broadcast(static_cast<T>(inverse - static_cast<T>(inverse)));
        } else {
            const Pack<double> rest = broadcast(t.rest);
            inverse_low_ = fma(-inverse_high_, rest, broadcast(1.0)) / rest;
        }
        any_wide_ = false;
        if (!run.scale) return;
        const Two<Pack<T>> weight = product_in_two(scale_, doubles<T>(1));
        factor_ = Probability<T>(Probability<T>(p_), weight).factor;
        wide_ = wide_lanes(scale_, factor_.high);
        any_wide_ = lane_bits(wide_) != 0;
    }

    // Slice i in all lanes, with the members that the terms need.
    FASTSOFTMAX_INLINE Divergence of_lane(int i) const {
        Divergence one;
        one.shift_ = two(shift_, i);
        one.log_ = spread(log_, i);
        one.ratio_ = spread(ratio_, i);
        one.scaling_ = scaling_;
        one.inverse_high_ = inverse_high_;
        one.inverse_low_ = inverse_low_;
        one.scales_ = scales_;
        return one;
    }
    // The same, with the members that gradients need as well.
    FASTSOFTMAX_INLINE Divergence gradient_of_lane(int i) const {
        Divergence one = of_lane(i);
        one.factor_ = two(factor_, i);
        one.any_wide_ = any_wide_ && lane(wide_, i) != 0;
        if (one.any_wide_) {
            one.scale_ = spread(scale_, i);
            one.p_ = two(p_, i);
            one.wide_ = spread(wide_, i);
        }
        return one;
    }

    // Sums of the terms, and of p d, both times the sum of p's exponentials. They are carried after every two packs,
    // because a slice may have only a few large terms.
    static constexpr std::ptrdiff_t to_carry = 2;
    struct Sums {
        CarriedSum<T> terms, slopes;

        FASTSOFTMAX_INLINE void carry() {
            terms.carry();
            slopes.carry();
        }
    };

    // Adds a class with scores x, y and exponentials p, q. If d is infinite, the sums become NaN.
    FASTSOFTMAX_LONG void add(Sums& sums, Pack<T> x, Pack<T> y, Pack<T> p, Pack<T> q) const {
        // If x is -inf, so that p is 0, the class adds q: with any d above 1, `large` is just that.
        const Mask<T> absent = equal(x, broadcast(T(-infinity)));
        const Pack<T> d = select(absent, broadcast(T(2)), difference(two_sum(x, -y))), square = d * d;
        const Pack<T> small = p * (square * polynomial(d, C::q)), large = fma(p, d, fma(q, ratio_, -p));
        sums.terms.add(select(less(square, broadcast(T(1))), small, large));
        sums.slopes.recent = multiply_add(p, d, sums.slopes.recent);
    }

    // As `add`, but in twice the precision, for slices in which a d or a sum was infinite.
    FASTSOFTMAX_ONCE void add_far(Sums& sums, Pack<T> x, Pack<T> y, Pack<T> p, Pack<T> q) const {
        const Pack<T> zero = broadcast(T(0)), two = broadcast(T(2)), infinite = broadcast(T(infinity));
        const Two<Pack<T>> scores = finite(two_sum(x, -y));
        const Pack<T> found = difference(scores);
        // For a distance that exceeds the largest number.
        const Pack<T> beyond = select(less(shift_.high, scores.high), infinite, broadcast(-most));
        const Pack<T> apart = select(equal(found - found, zero), found, beyond);
        const Pack<T> present = select(equal(y, -infinite), infinite, select(equal(p, zero), two, apart));
        const Pack<T> d = select(equal(x, -infinite), two, present);
        const Pack<T> square = d * d, tiny = broadcast(least), own = p * broadcast(far_unit);
        // If d is infinite, so is the sum, even where the exponential of p became 0.
        const Pack<T> of_p = select(equal(d, infinite), max(tiny, own), own);
        const Mask<T> is_small = less(square, broadcast(T(1)));
        const Pack<T> bend = square * polynomial(d, C::q);
        add_product_to(sums.terms.total, to_doubles(of_p), to_doubles(select(is_small, bend, d - broadcast(T(1)))));
        add_to(sums.terms.total, to_doubles(select(is_small, zero, q * ratio_ * broadcast(far_unit))));
        const Pack<T> finite_d = max(broadcast(-largest), min(broadcast(largest), d));
        add_product_to(sums.slopes.total, to_doubles(of_p), to_doubles(finite_d));
    }

    // The slices to be summed again: those whose sums are not finite, and those in which the square of the error of the
    // normalisers' logarithms is not small beside the divergence. `conclude` has then corrected that error.
    struct Again {
        std::uint32_t far, drifted;
    };
    // Stores the divergences of the slices in `bits`, from the sums of their terms.
    FASTSOFTMAX_INLINE Again conclude(bool far, const Run& run, std::ptrdiff_t first, int count, std::uint32_t bits,
                                      Wide<T> terms, Wide<T> slopes) {
        const Pack<T> unit = broadcast(far ? far_unit : T(1));
        const Wide<T> all = widen(scaled(p_, unit));
        const Doubles<T> sum = quotient(terms, all), zero = doubles<T>(0);
        // sum of p d - sum of terms = sum of (p - q), which would be 0 without errors of the normalisers.
        Doubles<T> off = quotient(slopes - terms, all);
        // A large error cannot be corrected, nor can a NaN.
        off = select(less(off * off, doubles<T>(1)), off, zero);
        // If all q add up to 1 - `off`, the sum of p (exp(-d) - 1 + d) is too large by half of the square of `off`.
        const Doubles<T> square = off * off, divergence = max(zero, sum - square * doubles<T>(0.5));
        const Doubles<T> undefined = to_doubles((all - all) + (widen(q_) - widen(q_)));
        double values[lanes], squares[lanes], sums[lanes];
        store_doubles(values, divergence + undefined);
        store_doubles(squares, square);
        store_doubles(sums, sum);
        T log[lanes], more[lanes];
        store_pack(log, log_);
        store_pack(more, narrow(off));
        Again again = {0, 0};
        for (int i = 0; i < count; ++i) {
            if (!(bits >> i & 1)) continue;
            run.value[first + i] = values[i];
            // In larger divergences, `off` is only their own rounding error.
            if (sums[i] < 0x1p-6) log[i] = log[i] + more[i];
            if (!(sums[i] - sums[i] == 0)) again.far |= 1u << i;
            if (squares[i] > sums[i] * 0x1p-8) again.drifted |= 1u << i;
        }
        log_ = load_pack<T>(log);
        return again;
    }

    // scale * (q - p)
    FASTSOFTMAX_LONG Pack<T> gradient(Pack<T> x, Pack<T> y, Pack<T> p, Pack<T> q) const {
        const Pack<T> d = difference(two_sum(x, -y)), square = d * d;
        const Pack<T> growth = square * polynomial(d, C::q) - d;
        const Pack<T> apart = select(less(square, broadcast(T(1))), p * growth, fma(q, ratio_, -p));
        return any_wide_ ? widely(apart) : product(apart, factor_);
    }

  private:
    static constexpr T least = sizeof(T) == 4 ? T(0x1p-126) : T(0x1p-1022);  // normal
    static constexpr T far_unit = sizeof(T) == 4 ? T(1) : T(0x1p-240);       // makes room for many large d
    static constexpr T most = sizeof(T) == 4 ? T(0x1.fffffep127) : T(0x1.fffffffffffffp1023);
    static constexpr T largest = sizeof(T) == 4 ? T(0x1p127) : T(0x1p1000);
    Two<Pack<T>> shift_;
    Pack<T> log_, ratio_, scaling_, inverse_high_, inverse_low_;
    bool scales_, any_wide_;
    Two<Pack<T>> factor_;
    Doubles<T> scale_;
    Two<Pack<T>> p_, q_;
    Mask<T> wide_;

    FASTSOFTMAX_INLINE static Two<Pack<T>> two(Two<Pack<T>> a, int i) { return {spread(a.high, i), spread(a.low, i)}; }
    FASTSOFTMAX_INLINE static Two<Pack<T>> finite(Two<Pack<T>> a) {
        return {a.high, select(equal(a.high - a.high, broadcast(T(0))), a.low, broadcast(T(0)))};
    }
    FASTSOFTMAX_INLINE static Doubles<float> quotient(Wide<float> a, Wide<float> b) { return a / b; }
    // An infinite number has no second part.
    FASTSOFTMAX_INLINE static Doubles<double> quotient(Wide<double> a, Wide<double> b) {
        const Mask<double> is_finite = equal(a.high - a.high, broadcast(0.0));
        return select(is_finite, to_doubles(a / b), a.high / b.high);
    }

    // log p - log q: the difference `apart` of two scores, less that of the normalisers, both with digits beyond T.
    FASTSOFTMAX_INLINE Pack<T> difference(Two<Pack<T>> apart) const {
        const Pack<T> low = apart.low - shift_.low;
        if (!scales_) return (apart.high - shift_.high) + (low - log_);
        const Two<Pack<T>> d = two_sum(apart.high, -shift_.high);
        const Pack<T> scaled = d.high * scaling_, rest = (d.low + low) * scaling_;
        return fma(scaled, inverse_high_, multiply_add(scaled, inverse_low_, multiply_add(rest, inverse_high_, -log_)));
    }

    // Goes through p, in double, where two numbers of T cannot hold the factor.
    FASTSOFTMAX_ONCE Pack<T> widely(Pack<T> apart) const {
        const Probability<T> share(p_);
        Doubles<T> value;
        if constexpr (sizeof(T) == 4)
            value = to_doubles(apart) * widen(share.factor);
        else
            value = share(apart);
        return select(wide_, narrow(scale_ * value), product(apart, factor_));
    }
};

// The passes over rows and tiles. They write the gradient if the run has a scale for it.
struct Diverge {
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
    static constexpr int most_repeats = 3;

    static bool may_be_near(const Run& run) { return has_fma && run.temperature == 1; }

    // Calls body(x, y, p, q, c) for the packs of row i, and carry() after every `to_carry` whole packs.
    template <class T, class Kept, class Body, class Carry>
    FASTSOFTMAX_INLINE static void for_row(const Rows<T>& p, const Rows<T>& q, const Kept& kept, int i, Body body,
                                           Carry carry) {
        constexpr std::ptrdiff_t lanes = Pack<T>::lanes;
        const std::ptrdiff_t classes = p.run.classes;
        const T *x = p.x(i), *y = q.x(i), *of_x = kept(i, 0), *of_y = kept(i, 1);
        std::ptrdiff_t c = 0;
        for (; c + Divergence<T>::to_carry * lanes <= classes; carry())
            for (const std::ptrdiff_t end = c + Divergence<T>::to_carry * lanes; c < end; c += lanes)
                body(load(x + c), load(y + c), load(of_x + c), load(of_y + c), c);
        for (; c + lanes <= classes; c += lanes) body(load(x + c), load(y + c), load(of_x + c), load(of_y + c), c);
        if (c < classes)
            body(load_first(x + c, classes - c, T(-infinity)), load_first(y + c, classes - c, T(-infinity)),
                 load(of_x + c), load(of_y + c), c);
    }

    template <bool far, class T, class Kept>
    FASTSOFTMAX_ONCE static void sum_terms(const Divergence<T>& all, const Rows<T>& p, const Rows<T>& q,
                                           const Kept& kept, int i, double (&terms)[2][Pack<T>::lanes],
                                           double (&slopes)[2][Pack<T>::lanes]) {
        const Divergence<T> one = all.of_lane(i);
        typename Divergence<T>::Sums sums;
        for_row(
            p, q, kept, i,
            [&](Pack<T> x, Pack<T> y, Pack<T> e, Pack<T> f, std::ptrdiff_t) __attribute__((always_inline)) {
                if constexpr (far)
                    one.add_far(sums, x, y, e, f);
                else
                    one.add(sums, x, y, e, f);
            },
            [&]() __attribute__((always_inline)) { sums.carry(); });
        const Two<double> of_terms = folded(sums.terms.wide()), of_slopes = folded(sums.slopes.wide());
        terms[0][i] = of_terms.high;
        terms[1][i] = of_terms.low;
        slopes[0][i] = of_slopes.high;
        slopes[1][i] = of_slopes.low;
    }

    // Sums the exponentials of the rows in `bits`, and keeps them.
    template <class T, class Exp, class Kept>
    FASTSOFTMAX_ONCE static Two<Pack<T>> sum_rows_of(const Rows<T>& rows, const Exp& exp, std::uint32_t bits,
                                                     const Kept& kept, int which) {
        Wide<T> partial[Pack<T>::lanes];
        for (int i = 0; i < rows.count; ++i) {
            partial[i] = widen(broadcast(T(0)));
            if (!(bits >> i & 1)) continue;
            const T* x = rows.x(i);
            RoundedSum<T> sum = sum_row<true, true>(RoundedSum<T>(), exp.of_lane(i), x, rows.run.classes,
                                                    kept(i, which), true, rows.x(i + rows.count), x);
            partial[i] = sum.wide();
        }
        return folded_rows<T>(partial, rows.count);
    }

    template <class T>
    FASTSOFTMAX_ONCE static void some_rows(const Rows<T>& p, const Rows<T>& q) {
        constexpr int lanes = Pack<T>::lanes;
        const Run& run = p.run;
        const std::ptrdiff_t width = (run.classes + lanes - 1) / lanes * lanes;
        T* const own = static_cast<T*>(run.kept);
        const auto kept = [=](int i, int which)
                              __attribute__((always_inline)) { return own + (2 * i + which) * width; };
        const std::uint32_t every = bits_of(p.count);
        std::uint32_t far = every;
        Normalisers<T> n = {};
        if (may_be_near(run)) {
            const FixedExponential<T> exp;
            n = Normalisers<T>::fixed(sum_rows_of(p, exp, every, kept, 0), sum_rows_of(q, exp, every, kept, 1));
            far = ~n.near(run.classes) & every;
        }
        if (far != 0) {
            const auto measure = [&](const Rows<T>& rows, int which) {
                const auto exp = exponential_of<OwnExponential<T>>(rows);
                return measured_of_sum(exp, exp.largest(), sum_rows_of(rows, exp, far, kept, which));
            };
            n.replace(mask_of<T>(far), Normalisers<T>::own(measure(p, 0), measure(q, 1), run.temperature));
        }
        Divergence<T> all(run, p.first, p.count, n);
        double terms[2][lanes] = {}, slopes[2][lanes] = {};
        typename Divergence<T>::Again again = {0, every};
        for (int k = 0; k < most_repeats && (again.far | again.drifted) != 0; ++k) {
            const auto before = again;
            again = {0, 0};
            for (int i = 0; i < p.count; ++i) {
                if (before.far >> i & 1)
                    sum_terms<true>(all, p, q, kept, i, terms, slopes);
                else if (before.drifted >> i & 1)
                    sum_terms<false>(all, p, q, kept, i, terms, slopes);
            }
            const auto conclude = [&](bool is_far, std::uint32_t bits) __attribute__((always_inline)) {
                return all.conclude(is_far, run, p.first, p.count, bits, load_wide<T>(terms[0], terms[1]),
                                    load_wide<T>(slopes[0], slopes[1]));
            };
            if (const std::uint32_t bits = before.drifted & ~before.far) again = conclude(false, bits);
            if (before.far) conclude(true, before.far);
        }
        if (run.scale)
            for (int i = 0; i < p.count; ++i) {
                const Divergence<T> one = all.gradient_of_lane(i);
                T* const out = p.out(i);
                for_row(
                    p, q, kept, i,
                    [&](Pack<T> x, Pack<T> y, Pack<T> e, Pack<T> f, std::ptrdiff_t c)
                        __attribute__((always_inline)) { store_in(out, c, run.classes, one.gradient(x, y, e, f)); },
                    [] {});
            }
    }

    template <class T>
    FASTSOFTMAX_INLINE static Mask<T> mask_of(std::uint32_t bits) {
        Integer<T> lanes[Pack<T>::lanes];
        for (int i = 0; i < Pack<T>::lanes; ++i) lanes[i] = bits >> i & 1 ? -1 : 0;
        return load_pack<Integer<T>>(lanes);
    }

    // Sums the exponentials of a tile, and keeps those of the slices in the mask.
    template <class T, class Exp>
    FASTSOFTMAX_ONCE static Two<Pack<T>> sum_tile_of(const Run& run, const Exp& exp, Mask<T> mask, const T* tile,
                                                     T* kept) {
        constexpr int lanes = Pack<T>::lanes;
        const int sums = partial_sums<T>(run.classes);
        Wide<T> partial[lanes];
        for (int k = 0; k < sums; ++k) {
            RoundedSum<T> sum;
            for_classes<terms_to_carry>(
                run.classes, k, sums,
                [&](std::ptrdiff_t c) __attribute__((always_inline)) {
                    const Pack<T> e = sum.add(exp, load_pack<T>(tile + c * lanes));
                    store_pack(kept + c * lanes, select(mask, e, load_pack<T>(kept + c * lanes)));
                },
                [&]() __attribute__((always_inline)) { sum.carry(); });
            partial[k] = sum.wide();
        }
        return in_two(folded(partial, sums));
    }

    // Calls body(c) for the classes k, k + sums, ..., and carry() after every `to_carry` of them.
    template <std::ptrdiff_t to_carry, class Body, class Carry>
    FASTSOFTMAX_INLINE static void for_classes(std::ptrdiff_t classes, int k, int sums, Body body, Carry carry) {
        const std::ptrdiff_t together = to_carry * sums, grouped = classes / together * together;
        for (std::ptrdiff_t c = k; c < classes; c += sums) {
            body(c);
            if (c % together >= together - sums && c < grouped) carry();
        }
    }

    template <class T>
    FASTSOFTMAX_INLINE static Pack<T> largest_of(const Run& run, const T* tile) {
        Pack<T> largest = broadcast(T(-infinity));
        for (std::ptrdiff_t c = 0; c < run.classes; ++c)
            largest = max(load_pack<T>(tile + c * Pack<T>::lanes), largest);
        return largest;
    }

    // Gradients take the place of x.
    template <class T>
    FASTSOFTMAX_ONCE static void one_tile(const Run& run, std::ptrdiff_t first, int count, T* x, const T* y) {
        constexpr int lanes = Pack<T>::lanes;
        const std::ptrdiff_t classes = run.classes;
        T *const of_x = static_cast<T*>(run.kept), *const of_y = of_x + classes * lanes;
        const std::uint32_t every = bits_of(count);
        std::uint32_t far = every;
        Normalisers<T> n = {};
        if (may_be_near(run)) {
            const FixedExponential<T> exp;
            const Mask<T> all = mask_of<T>(bits_of(lanes));
            n = Normalisers<T>::fixed(sum_tile_of(run, exp, all, x, of_x), sum_tile_of(run, exp, all, y, of_y));
            far = ~n.near(classes) & every;
        }
        if (far != 0) {
            const Mask<T> mask = mask_of<T>(far);
            const auto measure = [&](const T* tile, T* kept) {
                const OwnExponential<T> exp(largest_of(run, tile), run.temperature);
                return measured_of_sum(exp, exp.largest(), sum_tile_of(run, exp, mask, tile, kept));
            };
            n.replace(mask, Normalisers<T>::own(measure(x, of_x), measure(y, of_y), run.temperature));
        }
        Divergence<T> all(run, first, count, n);
        const int sums = partial_sums<T>(classes);
        typename Divergence<T>::Again again = {0, every};
        for (int k = 0; k < most_repeats && (again.far | again.drifted) != 0; ++k) {
            const auto before = again;
            again = {0, 0};
            if (before.drifted & ~before.far) {
                const auto next =
                    sum_tile_terms<false>(run, first, count, all, before.drifted & ~before.far, sums, x, y, of_x, of_y);
                again = next;
            }
            if (before.far) sum_tile_terms<true>(run, first, count, all, before.far, sums, x, y, of_x, of_y);
        }
        if (run.scale)
            for (std::ptrdiff_t c = 0; c < classes; ++c) {
                const std::ptrdiff_t at = c * lanes;
                store_pack(x + at, all.gradient(load(x + at), load(y + at), load(of_x + at), load(of_y + at)));
            }
    }

    template <bool far, class T>
    FASTSOFTMAX_ONCE static typename Divergence<T>::Again sum_tile_terms(const Run& run, std::ptrdiff_t first,
                                                                         int count, Divergence<T>& all,
                                                                         std::uint32_t bits, int sums, const T* x,
                                                                         const T* y, const T* of_x, const T* of_y) {
        constexpr int lanes = Pack<T>::lanes;
        Wide<T> terms[lanes], slopes[lanes];
        for (int k = 0; k < sums; ++k) {
            typename Divergence<T>::Sums sum;
            for_classes<Divergence<T>::to_carry>(
                run.classes, k, sums,
                [&](std::ptrdiff_t c) __attribute__((always_inline)) {
                    const std::ptrdiff_t at = c * lanes;
                    if constexpr (far)
                        all.add_far(sum, load(x + at), load(y + at), load(of_x + at), load(of_y + at));
                    else
                        all.add(sum, load(x + at), load(y + at), load(of_x + at), load(of_y + at));
                },
                [&]() __attribute__((always_inline)) { sum.carry(); });
            terms[k] = sum.terms.wide();
            slopes[k] = sum.slopes.wide();
        }
        return all.conclude(far, run, first, count, bits, folded(terms, sums), folded(slopes, sums));
    }
};

}  // namespace
