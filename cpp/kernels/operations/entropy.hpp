// The entropy of the probabilities: log(1 + rest / top) plus the sum of e (max - x) / T divided by the sum of e.
// Neither is negative, so nothing cancels, even where the entropy is near 0. The largest score is searched first,
// because the distances need it.
#pragma once

#include "../loops/tile.hpp"
#include "logs.hpp"

namespace {

// The sorted sum, and beside it the sum of each exponential times the distance of its score from the largest. Error of
// the latter: 1.6 * 2^-24 (double 2^-53), of which 1 comes from the distance, 0.5 from the product, and the rest from
// adding the growths.
template <class T, bool few>
struct EntropySum : SortedSum<T, few> {
    PowerSum<T> weighed;

    template <class Exp, int packs>
    FASTSOFTMAX_LONG Pack<T, packs> add(const Exp& exp, Pack<T, packs> x, std::ptrdiff_t = 0, std::ptrdiff_t = 1) {
        add_smaller(exp, this->held_back(x));
        return x;
    }
    template <class Exp, int packs>
    FASTSOFTMAX_LONG void add_smaller(const Exp& exp, Pack<T, packs> x) {
        const Growth<T, packs> e = exp(x);
        const Pack<T, packs> power = e.power * exp.distance(x);
        unrolled<packs>([&](int k) __attribute__((always_inline)) {
            this->sum.add(part(e.power, k), part(e.growth, k));
            weighed.add(part(power, k), part(e.growth, k));
        });
    }
    FASTSOFTMAX_INLINE void carry() {
        this->sum.carry();
        weighed.carry();
    }
};

// The entropy; NaN where the largest score is infinite, because its exponential is NaN then.
FASTSOFTMAX_INLINE Doubles<float> entropy_of(const Measured<float>& m, Wide<float> weighed) {
    return LogTotal<float>(m).wide() + weighed / widen(m.top + m.rest);
}
FASTSOFTMAX_ONCE Doubles<double> entropy_of(const Measured<double>& m, Wide<double> weighed) {
    const Doubles<double> general = to_doubles(LogTotal<double>(m).wide() + weighed / (m.top + m.rest));
    // Below this ratio, `rest` adds nothing to the sum of all exponentials. The two terms are added before the
    // division, because the result may be subnormal and must not be rounded twice.
    const Pack<double> up = broadcast(0x1p400), down = broadcast(0x1p-400);
    const Wide<double> both = m.rest + weighed;
    const Doubles<double> small = to_doubles(Wide<double>{both.high * up, both.low * up} / m.top) * down;
    return select(less(m.rest.high, m.top.high * broadcast(0x1p-110)), small, general);
}

struct Entropy {
    static constexpr auto operation = Operation::entropy;
    static constexpr bool writes = false;
    static constexpr bool searches_largest = true;
    static constexpr std::ptrdiff_t bytes_together = 16384;
    template <class T, bool few>
    using Sum = EntropySum<T, few>;

    template <class T, class Exp>
    struct Results {
        static constexpr auto near = ~std::uint32_t{0};

        FASTSOFTMAX_INLINE Results(const Group<T>& group, const Exp& exp, Pack<T> largest, Two<Pack<T>> rest,
                                   Two<Pack<T>> weighed) {
            store_doubles<T>(group.run.value + group.first, entropy_of(measured(exp, largest, rest), widen(weighed)),
                             group.count);
        }
    };
};

// The functions that the loops call with this sum: in rows, in groups with a slice a lane, and in blocks.

template <class T>
class RowSums<EntropySum<T, false>, T> {
  public:
    template <class Exp>
    FASTSOFTMAX_INLINE void set(int i, EntropySum<T, false> sum, const Exp& exp, const T*, std::ptrdiff_t) {
        sum.add_smaller(exp, sum.smaller_lanes());
        rest_[i] = sum.sum.wide();
        weighed_[i] = sum.weighed.wide();
        largest_[i] = lane(sum.largest, 0);
    }
    FASTSOFTMAX_INLINE void drop(int) {}
    template <class Op, class Exp>
    FASTSOFTMAX_INLINE typename Op::template Results<T, Exp> results(const Group<T>& group, const Exp& exp) {
        return results_from<Op>(group, exp, load_pack<T>(largest_), folded_rows<T>(rest_, group.count),
                                folded_rows<T>(weighed_, group.count));
    }

  private:
    Wide<T> rest_[Pack<T>::lanes], weighed_[Pack<T>::lanes];
    T largest_[Pack<T>::lanes] = {};
};

template <class Op, class T, class Exp>
FASTSOFTMAX_INLINE typename Op::template Results<T, Exp> results_of(const Group<T>& group, const Exp& exp,
                                                                    const EntropySum<T, true>* sum) {
    return {group, exp, sum->largest, sum->sum.in_two(), sum->weighed.in_two()};
}
template <class Op, class T, class Exp>
FASTSOFTMAX_ONCE typename Op::template Results<T, Exp> results_of(const Group<T>& group, const Exp& exp,
                                                                  EntropySum<T, false>* sums) {
    join_sums(exp, sums);
    return results_from<Op>(group, exp, sums[0].largest, folded_sums<T>(sums),
                            folded_sums<T>(sums, &EntropySum<T, false>::weighed));
}

template <class T, class Exp, class E>
FASTSOFTMAX_INLINE Statistics statistics_of(EntropySum<T, false> sum, const Exp& exp, const E*, std::ptrdiff_t) {
    sum.add_smaller(exp, sum.smaller_lanes());
    Statistics s = {};
    s.max = static_cast<double>(lane(sum.largest, 0));
    set(s.rest, folded(sum.sum.wide()));
    set(s.weighed, folded(sum.weighed.wide()));
    return s;
}
template <class T, bool few, class Exp>
FASTSOFTMAX_INLINE void merge_states(const EntropySum<T, few>*, const Exp& exp, Statistics& left,
                                     const Statistics& right) {
    const Pack<T> smaller = smaller_joins<T>(left, right);
    const Wide<double> e = in_doubles<T>(exp(smaller));
    const Wide<double> distance = widen(broadcast(static_cast<double>(lane(exp.distance(smaller), 0))));
    set(left.rest, broadcast2(left.rest) + broadcast2(right.rest) + e);
    set(left.weighed, broadcast2(left.weighed) + broadcast2(right.weighed) + e * distance);
}
template <class Op, class T, bool few, class Exp>
FASTSOFTMAX_INLINE auto results_of_state(const EntropySum<T, few>*, const Group<T>& group, const Exp& exp,
                                         const Statistics& s) {
    return results_from<Op>(group, exp, broadcast(static_cast<T>(s.max)), sum_of<T>(s.rest), sum_of<T>(s.weighed));
}

}  // namespace
