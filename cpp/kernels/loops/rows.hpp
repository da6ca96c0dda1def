// Rows of many classes, which are contiguous.
#pragma once

#include "../group.hpp"

namespace {

template <class T>
FASTSOFTMAX_INLINE T row_max(const T* x, std::ptrdiff_t classes) {
    constexpr int lanes = Pack<T>::lanes;
    Pack<T> m[4] = {broadcast(T(-infinity)), broadcast(T(-infinity)), broadcast(T(-infinity)), broadcast(T(-infinity))};
    std::ptrdiff_t i = 0;
    for (; i + 4 * lanes <= classes; i += 4 * lanes)
        unrolled<4>([&](int k) __attribute__((always_inline)) { m[k] = max(load(x + i + k * lanes), m[k]); });
    for_packs(x, i, classes, T(-infinity),
              [&](Pack<T> v, std::ptrdiff_t) __attribute__((always_inline)) { m[0] = max(v, m[0]); });
    return fold_max(max(max(m[0], m[1]), max(m[2], m[3])));
}

// The functor that makes the exponentials of some rows, a row a lane.
template <class Exp, class T>
FASTSOFTMAX_INLINE Exp exponential_of(const Rows<T>& rows) {
    if constexpr (Exp::is_fixed) {
        return {};
    } else {
        T largest[Pack<T>::lanes] = {};
        for (int i = 0; i < rows.count; ++i) largest[i] = row_max(rows.x(i), rows.run.classes);
        return {load_pack<T>(largest), rows.run.temperature};
    }
}

// Adds a row to a sum, each lane by itself. If `keep`, stores the kept numbers at `to`, which has room for whole packs
// if `padded`; if `may_be_null`, only if `to` is not null. If `fetches`, prefetches `next` for reading and `written`
// for writing meanwhile.
template <bool keep, bool fetches, bool may_be_null = false, class Exp, class Sum, class E, class T = Compute<E>>
FASTSOFTMAX_INLINE Sum sum_row(Sum sum, const Exp& exp, const E* x, std::ptrdiff_t classes, T* to, bool padded,
                               const E* next, const E* written) {
    constexpr int lanes = Pack<T>::lanes, packs = packs_at_once;
    const auto add = [&](auto count, std::ptrdiff_t i) __attribute__((always_inline)) {
        constexpr int n = decltype(count)::value;
        Pack<T, n> scores;
        unrolled<n>([&](int k) __attribute__((always_inline)) {
            set_part(scores, k, load(x + i + k * lanes));
            if constexpr (fetches) {
                __builtin_prefetch(next + i + k * lanes);
                __builtin_prefetch(written + i + k * lanes, 1);
            }
        });
        const Pack<T, n> kept = sum.add(exp, scores, i, lanes);
        if constexpr (keep)
            if (!may_be_null || to) store_pack(to + i, kept);
    };
    std::ptrdiff_t i = 0;
    for (; i + terms_to_carry * lanes <= classes; sum.carry())
        for (const std::ptrdiff_t end = i + terms_to_carry * lanes; i < end; i += packs * lanes)
            add(std::integral_constant<int, packs>{}, i);
    for (; i + packs * lanes <= classes; i += packs * lanes) add(std::integral_constant<int, packs>{}, i);
    if constexpr (packs > 1)
        for (; i + lanes <= classes; i += lanes) add(std::integral_constant<int, 1>{}, i);
    if (i < classes) {
        const Pack<T> kept = sum.add(exp, load_first(x + i, classes - i, T(-infinity)), i, lanes);
        if (keep && padded) store_pack(to + i, kept);
        if (keep && !padded && (!may_be_null || to)) store_first(to + i, kept, classes - i);
    }
    return sum;
}

// sum_row for row i of a group, compiled once, for rows beside which a call costs little. (It makes the sum itself: a
// sum handed over would be copied through general registers in each step by GCC.)
template <class Sum, bool keep, class Exp, class E, class T = Compute<E>>
FASTSOFTMAX_ONCE Sum sum_long_row(const Group<T>& group, int i, const Exp& exp, const E* x, std::ptrdiff_t classes,
                                  T* to, bool padded, const E* next, const E* written) {
    constexpr bool is_fixed = std::is_same_v<Exp, FixedExponential<T>>;
    return sum_row<keep, !(keep && is_fixed), true>(group.template sum_of<Sum>(i), exp, x, classes, to, padded, next,
                                                    written);
}

// `a` in lane 0, and 0 in the others.
template <class T>
FASTSOFTMAX_INLINE Pack<T> first_lane(T a) {
    return select(equal(iota<Integer<T>>(), broadcast(Integer<T>(0))), broadcast(a), broadcast(T(0)));
}

// Whether several exponentials of a row are not 0, or else the only one.
template <class T>
struct Only {
    bool several;
    T exponential;  // the only one, unless there are several

    // From the sums of a row whose class c has exponential(c).
    template <class F>
    FASTSOFTMAX_INLINE static Only of(const KeptSum<T, false>& sum, std::ptrdiff_t classes, F exponential) {
        // If no more than one lane has a nonzero sum, there may be only one.
        constexpr auto lanes = static_cast<std::uint32_t>((1ull << Pack<T>::lanes) - 1);
        const std::uint32_t filled = ~equal_bits(sum.sum.sum, broadcast(T(0))) & lanes;
        Only only = {(filled & (filled - 1)) != 0, T(0)};
        for (std::ptrdiff_t c = 0; c < classes && !only.several; ++c) {
            const T e = exponential(c);
            if (e == 0) continue;
            only.several = only.exponential != 0;
            only.exponential = e;
        }
        return only;
    }
};

// The total of each of `count` rows, a row a lane.
template <class T>
FASTSOFTMAX_INLINE Two<Pack<T>> folded_rows(Wide<T> (&partial)[Pack<T>::lanes], int count) {
    if (count == 1) return in_two(in_all_lanes<T>(folded(partial[0])));
    for (int i = count; i < Pack<T>::lanes; ++i) partial[i] = widen(broadcast(T(0)));
    return in_two(folded(partial));
}

template <class T>
FASTSOFTMAX_INLINE double largest_part(const Wide<T>& partial) {
    if constexpr (sizeof(T) == 4)
        return fold_max(max(part(partial, 0), part(partial, 1)));
    else
        return fold_max(partial.high);
}

// The sums of up to a pack of rows, as operations take them: a slice a lane.
template <class Sum, class T>
class RowSums;

template <class T>
class RowSums<KeptSum<T, false>, T> {
  public:
    // Leaves out row i, which is not summed.
    FASTSOFTMAX_INLINE void drop(int i) { partial_[i] = widen(broadcast(T(0))); }
    template <class Exp>
    FASTSOFTMAX_INLINE void set(int i, const KeptSum<T, false>& sum, const Exp&, const T* e, std::ptrdiff_t classes) {
        const auto only = Only<T>::of(sum, classes, [=](std::ptrdiff_t c) { return e[c]; });
        // If there is only one, its class has exactly 1.
        partial_[i] = only.several ? sum.sum.wide() : widen(first_lane(only.exponential));
    }
    template <class Op, class Exp>
    FASTSOFTMAX_INLINE typename Op::template Results<T, Exp> results(const Group<T>& group, const Exp& exp) {
        return results_from<Op>(group, exp, folded_rows<T>(partial_, group.count));
    }

  private:
    Wide<T> partial_[Pack<T>::lanes];
};

template <class T, bool keep>
class RowSums<LabelSum<T, false, keep>, T> {
  public:
    FASTSOFTMAX_INLINE void drop(int i) { partial_[i] = widen(broadcast(T(0))); }
    template <class Exp>
    FASTSOFTMAX_INLINE void set(int i, const LabelSum<T, false, keep>& sum, const Exp&, const T*, std::ptrdiff_t) {
        partial_[i] = sum.sum.wide();
    }
    template <class Op, class Exp>
    FASTSOFTMAX_INLINE typename Op::template Results<T, Exp> results(const Group<T>& group, const Exp& exp) {
        return results_from<Op>(group, exp, folded_rows<T>(partial_, group.count));
    }
    // The largest of row i's partial sums.
    FASTSOFTMAX_INLINE double largest_part(int i) const { return ::largest_part<T>(partial_[i]); }

  private:
    Wide<T> partial_[Pack<T>::lanes];
};

template <class T>
class RowSums<SortedSum<T, false>, T> {
  public:
    FASTSOFTMAX_INLINE void drop(int i) {
        partial_[i] = widen(broadcast(T(0)));
        largest_[i] = -infinity;
    }
    template <class Exp>
    FASTSOFTMAX_INLINE void set(int i, SortedSum<T, false> sum, const Exp& exp, const T*, std::ptrdiff_t) {
        sum.add_smaller(exp, sum.smaller_lanes());
        partial_[i] = sum.sum.wide();
        largest_[i] = lane(sum.largest, 0);
    }
    template <class Op, class Exp>
    FASTSOFTMAX_INLINE typename Op::template Results<T, Exp> results(const Group<T>& group, const Exp& exp) {
        return results_from<Op>(group, exp, load_pack<T>(largest_), folded_rows<T>(partial_, group.count));
    }

  private:
    Wide<T> partial_[Pack<T>::lanes];
    T largest_[Pack<T>::lanes] = {};
};

// Stores row(v) for the packs v at `from`. If `whole`, the last pack is loaded and stored whole.
template <class From, class E, class Row>
FASTSOFTMAX_INLINE void write_packs_of(const From* from, E* out, std::ptrdiff_t classes, const Row& row, bool whole) {
    using T = Compute<E>;
    constexpr int lanes = Pack<T>::lanes, packs = packs_at_once;
    std::ptrdiff_t i = 0;
    for (; i + packs * lanes <= classes; i += packs * lanes)
        unrolled<packs>(
            [&](int k) __attribute__((always_inline)) { store(out + i + k * lanes, row(load(from + i + k * lanes))); });
    if constexpr (packs > 1)
        for (; i + lanes <= classes; i += lanes) store(out + i, row(load(from + i)));
    if (i < classes) {
        const Pack<T> last = row(whole ? load(from + i) : load_first(from + i, classes - i, T(0)));
        if (whole)
            store(out + i, last);
        else
            store_first(out + i, last, classes - i);
    }
}

// Stores row(v) and second(v) for the packs v at `from`.
template <class From, class E, class Row, class Second>
FASTSOFTMAX_INLINE void write_both_of(const From* from, E* out, E* second_out, std::ptrdiff_t classes, const Row& row,
                                      const Second& second, bool whole) {
    constexpr int lanes = Pack<Compute<E>>::lanes;
    std::ptrdiff_t i = 0;
    for (; i + lanes <= classes; i += lanes) {
        const auto v = load(from + i);
        store(second_out + i, second(v));
        store(out + i, row(v));
    }
    if (i == classes) return;
    if (whole) {
        const auto v = load(from + i);
        store(second_out + i, second(v));
        store(out + i, row(v));
    } else {
        const auto v = load_first(from + i, classes - i, Compute<E>(0));
        store_first(second_out + i, second(v), classes - i);
        store_first(out + i, row(v), classes - i);
    }
}

template <class Op, class E>
void own_rows_of(const Run& run);

// Computes the rows of a run, some at a time: sums these, then writes their results.
template <class Op, class E, class Exp>
class RowLoop {
    using T = Compute<E>;
    using Sum = typename Op::template Sum<T, false>;
    using Results = typename Op::template Results<T, Exp>;
    static constexpr int lanes = Pack<T>::lanes;
    static constexpr std::ptrdiff_t most_padded = fastsoftmax::most_padded_packs * lanes;
    // With prefetching, rows of 300 classes took a sixth longer, rows of 1000 a tenth less.
    static constexpr std::ptrdiff_t least_fetched = 2048;
    static constexpr bool as_they_are = std::is_same_v<E, T>;

  public:
    FASTSOFTMAX_INLINE explicit RowLoop(const Run& run)
        : run_(run),
          width_((run.classes + lanes - 1) / lanes * lanes),
          padded_(run.classes <= most_padded),
          // If so, the end of a result may reach into the next row, which is written later.
          dense_(padded_ && run.x.data != run.out.data &&
                 run.out.slice_stride == run.classes * static_cast<std::ptrdiff_t>(sizeof(E))),
          second_dense_(run.second_out.slice_stride == run.out.slice_stride) {
        const std::ptrdiff_t bytes = width_ * static_cast<std::ptrdiff_t>(sizeof(T));
        const std::ptrdiff_t fit = padded_ ? lanes : Op::bytes_together / bytes;
        together_ = fit < 1 ? 1 : fit < lanes ? fit : lanes;
        if (Exp::is_fixed)
            fetches_ = Op::writes && run.stream && bytes > least_fetched;
        else
            fetches_ = !Sum::keeps || (!padded_ && together_ > 1);
    }

    FASTSOFTMAX_INLINE void compute() {
        for (std::ptrdiff_t first = 0; first < run_.slices;) {
            std::ptrdiff_t far = first;
            while (far < run_.slices && begins_far_at(far)) ++far;
            if (far > first) compute_far(first, far - first);
            first = far;
            const std::ptrdiff_t left = run_.slices - first;
            if (left == 0) break;
            const Rows<E> some = {run_, first, static_cast<int>(left < together_ ? left : together_)};
            write(some, sum(some));
            first += some.count;
        }
    }

  private:
    const Run& run_;
    std::ptrdiff_t width_;
    bool padded_, dense_, second_dense_, fetches_;
    std::ptrdiff_t together_;
    alignas(pack_bytes) T scratch_[Sum::keeps ? lanes * most_padded : 1];

    FASTSOFTMAX_INLINE bool begins_far_at(std::ptrdiff_t row) const {
        if constexpr (!Exp::is_fixed) return false;
        return begins_far(to_compute(*reinterpret_cast<const E*>(run_.x.data + row * run_.x.slice_stride)));
    }

    // Where the exponentials of row i of `some` are kept.
    FASTSOFTMAX_INLINE T* kept(const Rows<E>& some, int i) {
        if constexpr (!Sum::keeps) return nullptr;
        if (padded_) return scratch_ + i * width_;
        if constexpr (as_they_are)
            if (run_.x.data != run_.out.data) return some.out(i);
        return own_row() + (as_they_are ? 0 : width_) + i * width_;
    }
    // For halves, this begins with room for a row as floats.
    FASTSOFTMAX_INLINE T* own_row() const { return static_cast<T*>(run_.kept); }

    FASTSOFTMAX_INLINE Results sum(const Rows<E>& some) {
        const Group<T> group = {run_,
                                some.first,
                                some.count,
                                reinterpret_cast<const std::byte*>(some.x(0)),
                                run_.x.slice_stride,
                                sizeof(E),
                                nullptr,
                                0,
                                nullptr,
                                element_type<E>};
        const Exp exp = exponential_of<Exp>(some);
        RowSums<Sum, T> sums;
        std::uint32_t far = 0;
        for (int i = 0; i < some.count; ++i) {
            if (begins_far_at(some.first + i)) {
                sums.drop(i);
                far |= 1u << i;
                continue;
            }
            const E* const x = some.x(i);
            T* const e = kept(some, i);
            const E* const next = fetches_ ? some.x(i + static_cast<int>(together_)) : x;
            const E* const written = Op::writes && fetches_ ? some.out(i) : x;
            const auto one = exp.of_lane(i);
            if constexpr (as_they_are && Exp::is_fixed)
                sums.set(i,
                         sum_row<Sum::keeps, !Sum::keeps>(group.template sum_of<Sum>(i), one, x, run_.classes, e,
                                                          padded_, next, written),
                         one, e, run_.classes);
            else
                sums.set(i, sum_long_row<Sum, Sum::keeps>(group, i, one, x, run_.classes, e, padded_, next, written),
                         one, e, run_.classes);
        }
        Results results = sums.template results<Op>(group, exp);
        if constexpr (Exp::is_fixed) set_far(results, far);
        if constexpr (may_write_second<Op>)
            if (run_.second_out.data)
                for (int i = 0; i < some.count; ++i)
                    if (results.near >> i & 1) results.see_row(i, sums.largest_part(i), kept(some, i), run_.classes);
        return results;
    }

    FASTSOFTMAX_INLINE void write(const Rows<E>& some, const Results& results) {
        if constexpr (Op::writes) {
            for (int i = 0; i < some.count; ++i) {
                if (!(results.near >> i & 1)) continue;
                const auto row = results.row(i);
                E* const to = some.out(i);
                const bool whole = dense_ && i + 1 < some.count;
                if constexpr (!Sum::keeps)
                    write_packs_of(some.x(i), to, run_.classes, row, false);
                else if (!write_both(results, some, i, row, whole))
                    write_packs_of(kept(some, i), to, run_.classes, row, whole);
                results.finish_row(
                    i, [&](std::int64_t c, T value) __attribute__((always_inline)) { to[c] = from_compute<E>(value); });
            }
        }
        for (std::uint32_t far = ~results.near & bits_of(some.count); far != 0; far &= far - 1) {
            const int i = __builtin_ctz(far);
            // A loss that is near keeps the value that it has when no gradient is asked for.
            const bool value_is_near = near_values(results) >> i & 1;
            const double value = value_is_near ? run_.value[some.first + i] : 0;
            compute_far(some.first + i, 1);
            if (value_is_near) run_.value[some.first + i] = value;
        }
    }

    // Writes row i if there is a second output; returns whether there is.
    template <class Row>
    FASTSOFTMAX_INLINE bool write_both(const Results& results, const Rows<E>& some, int i, const Row& row, bool whole) {
        if constexpr (may_write_second<Op>)
            if (run_.second_out.data) {
                write_both_of(kept(some, i), some.out(i), some.second_out(i), run_.classes, row, results.second_row(i),
                              whole && second_dense_);
                return true;
            }
        return false;
    }

    FASTSOFTMAX_ONCE void compute_far(std::ptrdiff_t first, std::ptrdiff_t count) const {
        if constexpr (Exp::is_fixed) {
            Run far = slices_from(run_, first);
            far.slices = count;
            own_rows_of<Op, E>(far);
        }
    }
};

template <class Op, class E>
void near_rows(const Run& run) {
    RowLoop<Op, E, FixedExponential<Compute<E>>>(run).compute();
}

template <class Op, class T>
FASTSOFTMAX_ONCE void own_rows(const Run& run) {
    RowLoop<Op, T, OwnExponential<T>>(run).compute();
}

// Computes rows by references of their own; halves by way of a row of floats, for which run.kept has room.
template <class Op, class E>
void own_rows_of(const Run& run) {
    using T = Compute<E>;
    if constexpr (std::is_same_v<E, T>) {
        own_rows<Op, T>(run);
    } else {
        constexpr int lanes = Pack<T>::lanes;
        T* const floats = static_cast<T*>(run.kept);
        for (std::ptrdiff_t i = 0; i < run.slices; ++i) {
            Run row = slices_from(run, i);
            const E* x = reinterpret_cast<const E*>(row.x.data);
            E* out = reinterpret_cast<E*>(row.out.data);
            row.slices = 1;
            row.x.data = row.out.data = reinterpret_cast<std::byte*>(floats);
            const std::ptrdiff_t width = (run.classes + lanes - 1) / lanes * lanes;
            row.kept = floats + width;
            E* const second_out = reinterpret_cast<E*>(row.second_out.data);
            if (second_out) {
                row.second_out.data = reinterpret_cast<std::byte*>(floats + width);
                row.kept = floats + 2 * width;
            }
            read_elements(x, run.classes, floats);
            own_rows<Op, T>(row);
            if constexpr (Op::writes) write_elements(floats, run.classes, out);
            if (second_out) write_elements(floats + width, run.classes, second_out);
        }
    }
}

// The functions below compute the only row of a run in blocks. OwnExponential needs `reference`, the largest score of
// the row; FixedExponential ignores it.

template <class Exp, class T>
FASTSOFTMAX_INLINE Exp exponential_of_block(const Run& run, double reference) {
    if constexpr (Exp::is_fixed)
        return {};
    else
        return {broadcast(static_cast<T>(reference)), run.temperature};
}

template <class T>
double largest_of_block(const Run& run, std::ptrdiff_t count) {
    return static_cast<double>(row_max(reinterpret_cast<const T*>(run.x.data), count));
}

template <class T, class Exp, class E>
FASTSOFTMAX_INLINE Statistics statistics_of(const KeptSum<T, false>& sum, const Exp& exp, const E* x,
                                            std::ptrdiff_t count) {
    Statistics s = {};
    set(s.rest, folded(sum.sum.wide()));
    const auto only =
        Only<T>::of(sum, count, [&](std::ptrdiff_t c) { return lane(exp(broadcast(to_compute(x[c]))).rounded(), 0); });
    s.several = only.several;
    s.only = static_cast<double>(only.exponential);
    return s;
}

template <class T, bool keep, class Exp, class E>
FASTSOFTMAX_INLINE Statistics statistics_of(const LabelSum<T, false, keep>& sum, const Exp&, const E*, std::ptrdiff_t) {
    Statistics s = {};
    set(s.rest, folded(sum.sum.wide()));
    return s;
}

template <class T, class Exp, class E>
FASTSOFTMAX_INLINE Statistics statistics_of(SortedSum<T, false> sum, const Exp& exp, const E*, std::ptrdiff_t) {
    Statistics s = {};
    sum.add_smaller(exp, sum.smaller_lanes());
    set(s.rest, folded(sum.sum.wide()));
    s.max = static_cast<double>(lane(sum.largest, 0));
    return s;
}

// Where the exponentials of a block are kept: for halves, apart from the results; null: nowhere.
template <class Op, class E>
FASTSOFTMAX_INLINE Compute<E>* kept_of_block(const Run& run) {
    if (!Op::template Sum<Compute<E>, false>::keeps || !run.measured)
        return nullptr;
    else if constexpr (std::is_same_v<E, Compute<E>>)
        return run.out.data == run.x.data ? nullptr : reinterpret_cast<E*>(run.out.data);
    else
        return static_cast<Compute<E>*>(run.kept);
}

// Adds what a second output needs of a block. If the largest exponential may be above half of the sum: its score, and
// the sum of all others. Else: -inf, and the sum of all.
template <class T, class Exp, class E>
FASTSOFTMAX_ONCE void see_block(const Group<T>& group, const Exp& exp, const E* x, std::ptrdiff_t count,
                                const Wide<T>& partial, Statistics& s) {
    const std::int64_t label = group.run.label[group.first] - group.run.origin;
    const bool has_label = 0 <= label && label < count;
    const T label_score = has_label ? to_compute(x[label]) : T(-infinity);
    const double of_label = static_cast<double>(lane(exp(broadcast(label_score)).rounded(), 0));
    s.max = -infinity;
    s.others[0] = s.rest[0] + of_label;
    s.others[1] = s.rest[1];
    if (of_label > s.rest[0]) {
        // It is the label's.
        s.max = static_cast<double>(label_score);
        s.others[0] = s.rest[0];
    } else if (2.25 * ::largest_part<T>(partial) > s.others[0]) {
        using Sum = SortedSum<T, false>;
        Sum sum = sum_long_row<Sum, false>(group, 0, exp, x, count, static_cast<T*>(nullptr), false, x, x);
        sum.add_smaller(exp, sum.smaller_lanes());
        s.max = static_cast<double>(lane(sum.largest, 0));
        set(s.others, folded(sum.sum.wide()));
    }
}

template <class Op, class E, class Exp>
Statistics measure_block(const Run& run, double reference, std::ptrdiff_t count) {
    using T = Compute<E>;
    using Sum = typename Op::template Sum<T, false>;
    const Exp exp = exponential_of_block<Exp, T>(run, reference);
    const E* x = reinterpret_cast<const E*>(run.x.data);
    const E* const written = Op::writes && run.stream ? reinterpret_cast<const E*>(run.out.data) : x;
    T* const kept = kept_of_block<Op, E>(run);
    const Group<T> group = {run, 0, 1, nullptr, 0, 0};
    const E* const next = Sum::keeps ? x : x + count;
    const auto one = exp.of_lane(0);
    const Sum sum = sum_long_row<Sum, Sum::keeps>(group, 0, one, x, count, kept, false, next, written);
    Statistics s = statistics_of(sum, one, x, count);
    s.reference = reference;
    if constexpr (may_write_second<Op>)
        if (run.second_out.data) see_block(group, one, x, count, sum.sum.wide(), s);
    return s;
}

// Merges the statistics of blocks, for each kind of sum.
template <class T, bool few, class Exp>
FASTSOFTMAX_INLINE void merge_states(const KeptSum<T, few>*, const Exp&, Statistics& left, const Statistics& right) {
    left.several = left.several || right.several || (left.only != 0 && right.only != 0);
    left.only = left.only + right.only;
    set(left.rest, broadcast2(left.rest) + broadcast2(right.rest));
}
// Keeps the larger one of two largest scores; returns the smaller one, whose exponential joins the sum of the others.
template <class T>
FASTSOFTMAX_INLINE Pack<T> smaller_joins(Statistics& left, const Statistics& right) {
    const bool right_wins = right.max > left.max;
    const double smaller = right_wins ? left.max : right.max;
    if (right_wins) left.max = right.max;
    return broadcast(static_cast<T>(smaller));
}
template <class T>
FASTSOFTMAX_INLINE Wide<double> in_doubles(const Growth<T, 1>& e) {
    return {broadcast(static_cast<double>(lane(e.rounded(), 0))), broadcast(static_cast<double>(lane(e.lost(), 0)))};
}
template <class T, bool few, bool keep, class Exp>
FASTSOFTMAX_INLINE void merge_states(const LabelSum<T, few, keep>*, const Exp& exp, Statistics& left,
                                     const Statistics& right) {
    set(left.rest, broadcast2(left.rest) + broadcast2(right.rest));
    if constexpr (keep) {
        const Growth<T, 1> e = exp(smaller_joins<T>(left, right));
        set(left.others, broadcast2(left.others) + broadcast2(right.others) + in_doubles<T>(e));
    }
}
template <class T, bool few, class Exp>
FASTSOFTMAX_INLINE void merge_states(const SortedSum<T, few>*, const Exp& exp, Statistics& left,
                                     const Statistics& right) {
    const Growth<T, 1> e = exp(smaller_joins<T>(left, right));
    set(left.rest, broadcast2(left.rest) + broadcast2(right.rest) + in_doubles<T>(e));
}

template <class Op, class T, class Exp>
void merge_blocks(const Run& run, Statistics& left, const Statistics& right) {
    constexpr const typename Op::template Sum<T, false>* kind = nullptr;
    merge_states(kind, exponential_of_block<Exp, T>(run, left.reference), left, right);
}

template <class T>
FASTSOFTMAX_INLINE Two<Pack<T>> sum_of(const double (&parts)[2]) {
    if constexpr (sizeof(T) == 4)
        return in_two(doubles<T>(parts[0] + parts[1]));
    else
        return broadcast2(parts);
}

// The results of a slice from the merged statistics of its blocks, for each kind of sum.
template <class Op, class T, bool few, class Exp>
FASTSOFTMAX_INLINE auto results_of_state(const SortedSum<T, few>*, const Group<T>& group, const Exp& exp,
                                         const Statistics& s) {
    return results_from<Op>(group, exp, broadcast(static_cast<T>(s.max)), sum_of<T>(s.rest));
}
template <class Op, class T, bool few, class Exp>
FASTSOFTMAX_INLINE auto results_of_state(const KeptSum<T, few>*, const Group<T>& group, const Exp& exp,
                                         const Statistics& s) {
    const Two<Pack<T>> only = {broadcast(static_cast<T>(s.only)), broadcast(T(0))};
    return results_from<Op>(group, exp, s.several ? sum_of<T>(s.rest) : only);
}
template <class Op, class T, bool few, bool keep, class Exp>
FASTSOFTMAX_INLINE auto results_of_state(const LabelSum<T, few, keep>*, const Group<T>& group, const Exp& exp,
                                         const Statistics& s) {
    auto results = results_from<Op>(group, exp, sum_of<T>(s.rest));
    if constexpr (may_write_second<Op>)
        if (group.run.second_out.data)
            results.see_largest(exp(broadcast(static_cast<T>(s.max))).rounded(), sum_of<T>(s.others).high);
    return results;
}

template <class Op, class T, class Exp>
FASTSOFTMAX_ONCE typename Op::template Results<T, Exp> results_of_blocks(const Run& run, const Exp& exp,
                                                                         const Statistics& s) {
    constexpr const typename Op::template Sum<T, false>* kind = nullptr;
    Group<T> group = {run, 0, 1, nullptr, 0, 0};
    group.label_score = &s.label_score;
    return results_of_state<Op>(kind, group, exp, s);
}

template <class Op, class T, class Exp>
void conclude_blocks(const Run& run, Statistics& s) {
    const auto results = results_of_blocks<Op, T>(run, exponential_of_block<Exp, T>(run, s.reference), s);
    s.near = results.near & 1;
    s.value_near = near_values(results) & 1;
}

// Writes the classes of a block that are computed apart.
template <class Results, class E>
FASTSOFTMAX_INLINE void finish_block(const Run& run, const Results& results, E* out, std::ptrdiff_t count) {
    results.finish_row(0, [&](std::int64_t c, auto value) __attribute__((always_inline)) {
        if (run.origin <= c && c < run.origin + count) out[c - run.origin] = from_compute<E>(value);
    });
}

// Writes a block with its second output.
template <class Op, class E, class Exp, class Results>
FASTSOFTMAX_INLINE void write_both_blocks(const Run& run, const Exp& exp, const Results& results, const E* x, E* out,
                                          E* second_out, std::ptrdiff_t count) {
    using T = Compute<E>;
    const auto row = results.row(0);
    const auto second = results.second_row(0);
    if (const T* kept = kept_of_block<Op, E>(run))
        write_both_of(kept, out, second_out, count, row, second, false);
    else
        write_both_of(
            x, out, second_out, count, [&](Pack<T> v) __attribute__((always_inline)) { return row(exp(v).rounded()); },
            [&](Pack<T> v) __attribute__((always_inline)) { return second(exp(v).rounded()); }, false);
    finish_block(run, results, out, count);
}

template <class Op, class E, class Exp>
void write_block(const Run& run, const Statistics& s, std::ptrdiff_t count) {
    using T = Compute<E>;
    if constexpr (Op::writes) {
        // Making results also stores the slice's value. That is written already, and several threads are here at once.
        double value;
        Run block = run;
        block.value = &value;
        const Exp exp = exponential_of_block<Exp, T>(run, s.reference);
        const auto results = results_of_blocks<Op, T>(block, exp, s);
        const auto row = results.row(0);
        const E* x = reinterpret_cast<const E*>(run.x.data);
        E* out = reinterpret_cast<E*>(run.out.data);
        if constexpr (may_write_second<Op>)
            if (E* second_out = reinterpret_cast<E*>(run.second_out.data))
                return write_both_blocks<Op>(run, exp, results, x, out, second_out, count);
        if constexpr (!Op::template Sum<T, false>::keeps) {
            write_packs_of(x, out, count, row, false);
        } else if (const T* kept = kept_of_block<Op, E>(run)) {
            write_packs_of(kept, out, count, row, false);
        } else {
            const auto value = [&](Pack<T> v) __attribute__((always_inline)) { return row(exp(v).rounded()); };
            write_packs_of(x, out, count, value, false);
        }
        finish_block(run, results, out, count);
    }
}

}  // namespace
