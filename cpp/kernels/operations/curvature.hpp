// The diagonal of the Hessian of cross-entropy with respect to the scores: a p (1 - p), where a is the sum of a slice's
// coefficients.
#pragma once

#include "../loops/rows.hpp"

namespace {

// If a class dominates, its 1 - p would cancel. But p (1 - p) is symmetric in p and 1 - p, so the sum of all other
// exponentials takes the place of its own. `any_weight`: also for weights beyond those of near slices, and for ignored
// slices; without it, float computes the gradient times 1 - p. Error: 2.58 ULP seen.
template <class T, bool any_weight>
class Curvature {
    static constexpr int lanes = Pack<T>::lanes;
    // If two classes have probability 1/2, rounding may raise both above it, but neither dominates.
    static constexpr T above_half = T(sizeof(T) == 4 ? 0x1.0001p-1 : 0x1.00000000001p-1);

  public:
    Curvature() = default;
    // `total`: the sum of the coefficients; `all`: that of the exponentials; `rest`: that of all exponentials except
    // the label's or the largest, used only if this class dominates.
    FASTSOFTMAX_INLINE Curvature(const Run& run, std::ptrdiff_t first, int count, const Labels<T>& labels,
                                 Doubles<T> total, Two<Pack<T>> all, Pack<T> rest)
        : half_(all.high * broadcast(above_half)), rest_(rest), scale_(own_scale(all.high)) {
        const Doubles<T> scale = load_doubles<T>(run.second_scale + first, count);
        const Probability<T> unscaled(scaled(all, scale_));
        inverse_ = unscaled.factor;
        factor_ = Probability<T>(unscaled, product_in_two(total, scale)).factor;
        if constexpr (any_weight) {
            weight_ = total * scale;
            exponent_ = run.second_exponent ? load_doubles<T>(run.second_exponent + first, count) : doubles<T>(0);
            raises_ = run.second_exponent != nullptr;
            wide_ = wide_lanes(weight_, factor_.high);
            Integer<T> ignored[lanes];
            for (int i = 0; i < lanes; ++i) ignored[i] = labels.ignored(i) ? -1 : 0;
            ignored_ = load_pack<Integer<T>>(ignored);
        }
        set_dominant();
    }

    // Looks for classes that dominate in the slices in `bits`. Class c has the exponentials e(c), one slice a lane.
    template <class E>
    FASTSOFTMAX_INLINE void see_classes(std::uint32_t bits, std::ptrdiff_t classes, E e) {
        if (bits == 0) return;
        Pack<T> largest = broadcast(T(0));
        for (std::ptrdiff_t c = 0; c < classes; ++c) largest = max(e(c), largest);
        const std::uint32_t dominated = lane_bits(less(half_, largest)) & bits;
        if (dominated == 0) return;
        TileSum<T> sum(classes);
        for (std::ptrdiff_t c = 0; c < classes; ++c) sum.add(c, without_dominant(e(c), half_));
        const Pack<T> rest = narrow(sum.total());
        T rests[lanes];
        store_pack(rests, rest_);
        for (int i = 0; i < lanes; ++i)
            if (dominated >> i & 1) rests[i] = lane(rest, i);
        set_rest(load_pack<T>(rests));
    }
    // Looks for a class that dominates in slice i, whose exponentials are at e.
    FASTSOFTMAX_ONCE void see_row(int i, const T* e, std::ptrdiff_t classes) {
        if (!(lane(half_, i) < row_max(e, classes))) return;
        const Pack<T> half = spread(half_, i);
        Accumulator<T> sum;
        for_packs(e, 0, classes, T(0), [&](Pack<T> v, std::ptrdiff_t) __attribute__((always_inline)) {
            sum.add(without_dominant(v, half));
        });
        const Two<double> total = sum.total();
        T rests[lanes];
        store_pack(rests, rest_);
        rests[i] = static_cast<T>(total.high + total.low);
        set_rest(load_pack<T>(rests));
    }
    // Whether one of the exponentials that add up to `part` may dominate slice i.
    FASTSOFTMAX_INLINE bool may_dominate(int i, double part) const {
        return part > 0.99 * static_cast<double>(lane(half_, i));
    }
    // Takes the largest exponential of a slice in blocks, and the sum of all others.
    FASTSOFTMAX_INLINE void see_largest(Pack<T> largest, Pack<T> rest) {
        set_rest(select(less(half_, largest), rest, rest_));
    }

    FASTSOFTMAX_INLINE Curvature of_lane(int i) const {
        Curvature one;
        one.half_ = spread(half_, i);
        one.rest_ = spread(rest_, i);
        one.dominant_ = spread(dominant_, i);
        one.scale_ = spread(scale_, i);
        one.inverse_ = {spread(inverse_.high, i), spread(inverse_.low, i)};
        one.factor_ = {spread(factor_.high, i), spread(factor_.low, i)};
        if constexpr (any_weight) {
            one.weight_ = spread(weight_, i);
            one.exponent_ = spread(exponent_, i);
            one.raises_ = raises_;
            one.wide_ = spread(wide_, i);
            one.ignored_ = spread(ignored_, i);
        }
        return one;
    }

    // The Hessian of a class with exponential e; `weighed` is total * scale * p.
    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> e, Pack<T> weighed) const {
        if constexpr (any_weight || sizeof(T) == 8) return (*this)(e);
        const Pack<T> value = weighed * fma(-e, inverse_.high * scale_, broadcast(T(1)));
        return select(less(half_, e), dominant_, value);
    }
    // The Hessian of a class with exponential e.
    FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> e) const {
        const Pack<T> u = select(less(half_, e), rest_, e) * scale_;
        const Pack<T> other = fma(-u, inverse_.high, broadcast(T(1))), high = u * other;
        const Pack<T> low = fma(u, other, -high) + u * lost(u, other);
        const Pack<T> value = product(Two<Pack<T>>{high, low}, factor_);
        if constexpr (any_weight)
            return mended(u, value);
        else
            return value;
    }

  private:
    Pack<T> half_, rest_, scale_, dominant_;
    Two<Pack<T>> inverse_, factor_;
    Doubles<T> weight_, exponent_;
    Mask<T> wide_, ignored_;
    bool raises_;

    // The rounding error of 1 - u / sum.
    FASTSOFTMAX_INLINE Pack<T> lost(Pack<T> u, Pack<T> other) const {
        return fma(-u, inverse_.high, broadcast(T(1)) - other) - u * inverse_.low;
    }
    FASTSOFTMAX_INLINE static Pack<T> without_dominant(Pack<T> e, Pack<T> half) {
        return select(less(half, e), broadcast(T(0)), e);
    }
    FASTSOFTMAX_INLINE void set_rest(Pack<T> rest) {
        rest_ = rest;
        set_dominant();
    }
    FASTSOFTMAX_INLINE void set_dominant() {
        if constexpr (!any_weight && sizeof(T) == 4) dominant_ = (*this)(half_ + half_);
    }

    // Applies the exponent, sets ignored slices to 0, and goes through p in double where two numbers of T cannot hold
    // the factor.
    FASTSOFTMAX_INLINE Pack<T> mended(Pack<T> u, Pack<T> value) const {
        if (!raises_ && lane_bits(wide_ | ignored_) == 0) return value;
        return mended_of(u, value);
    }
    FASTSOFTMAX_ONCE Pack<T> mended_of(Pack<T> u, Pack<T> value) const {
        Doubles<T> p;
        if constexpr (sizeof(T) == 4)
            p = to_doubles(u) * widen(inverse_);
        else
            p = product(u, inverse_);
        value = select(wide_, narrow(weight_ * (p * (doubles<T>(1) - p))), value);
        if (raises_) value = raised(value, exponent_);
        return select(ignored_, broadcast(T(0)), value);
    }
};

}  // namespace
