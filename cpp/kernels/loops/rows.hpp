// Rows of many classes, which are contiguous.
#pragma once

#include "../general/rows.hpp"
#include "../group.hpp"

namespace {

// The sums of a row's lanes. Exponentials are stored at `to` if asked, where there is room for whole packs if `padded`.
template <bool keep, class Sum, class T>
FASTSOFTMAX_INLINE Sum sum_row(Sum sum, const T* x, std::ptrdiff_t classes, T* to, bool padded) {
    constexpr int lanes = Pack<T>::lanes, packs = packs_at_once;
    const auto add = [&](auto count, std::ptrdiff_t i) __attribute__((always_inline)) {
        constexpr int n = decltype(count)::value;
        const Pack<T, n> kept = sum.add(load_pack<T, n>(x + i), i, lanes);
        if constexpr (keep) store_pack(to + i, kept);
    };
    std::ptrdiff_t i = 0;
    for (; i + terms_to_carry * lanes <= classes; sum.sum.carry())
        for (const std::ptrdiff_t end = i + terms_to_carry * lanes; i < end; i += packs * lanes)
            add(std::integral_constant<int, packs>{}, i);
    for (; i + packs * lanes <= classes; i += packs * lanes) add(std::integral_constant<int, packs>{}, i);
    if constexpr (packs > 1)
        for (; i + lanes <= classes; i += lanes) add(std::integral_constant<int, 1>{}, i);
    if (i < classes) {
        const Pack<T> kept = sum.add(load_first(x + i, classes - i, T(-infinity)), i, lanes);
        if (keep && padded) store_pack(to + i, kept);
        if (keep && !padded) store_first(to + i, kept, classes - i);
    }
    return sum;
}

// Lane 0; the others are 0.
template <class T>
FASTSOFTMAX_INLINE Pack<T> first_lane(T a) {
    return select(equal(iota<Integer<T>>(), broadcast(Integer<T>(0))), broadcast(a), broadcast(T(0)));
}

// What a row's sums tell of its exponentials that are not 0.
template <class T>
struct Only {
    bool several;
    T exponential;  // the only one, unless there are several

    // Of class c, exponential(c).
    template <class F>
    FASTSOFTMAX_INLINE static Only of(const KeptSum<T, false>& sum, std::ptrdiff_t classes, F exponential) {
        // If all other lanes are empty, there may be only one.
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
    if (count == 1) {
        const Two<double> total = folded(partial[0]);
        if constexpr (sizeof(T) == 4)
            return in_two(doubles<T>(total.high));
        else
            return {broadcast(total.high), broadcast(total.low)};
    }
    for (int i = count; i < Pack<T>::lanes; ++i) partial[i] = widen(broadcast(T(0)));
    return in_two(folded(partial));
}

// The sums of up to a pack of rows, as operations take them: a slice a lane.
template <class Sum, class T>
class RowSums;

template <class T>
class RowSums<KeptSum<T, false>, T> {
  public:
    // A row that is not summed.
    FASTSOFTMAX_INLINE void drop(int i) { partial_[i] = widen(broadcast(T(0))); }
    FASTSOFTMAX_INLINE void set(int i, const KeptSum<T, false>& sum, const T* e, std::ptrdiff_t classes) {
        const auto only = Only<T>::of(sum, classes, [=](std::ptrdiff_t c) { return e[c]; });
        // An only class has exactly 1.
        partial_[i] = only.several ? sum.sum.wide() : widen(first_lane(only.exponential));
    }
    template <class Op>
    FASTSOFTMAX_INLINE typename Op::template Results<T> results(const Group<T>& group) {
        return {group, folded_rows<T>(partial_, group.count)};
    }

  private:
    Wide<T> partial_[Pack<T>::lanes];
};

template <class T, bool keep>
class RowSums<LabelSum<T, false, keep>, T> {
  public:
    FASTSOFTMAX_INLINE void drop(int i) { partial_[i] = widen(broadcast(T(0))); }
    FASTSOFTMAX_INLINE void set(int i, const LabelSum<T, false, keep>& sum, const T*, std::ptrdiff_t) {
        partial_[i] = sum.sum.wide();
    }
    template <class Op>
    FASTSOFTMAX_INLINE typename Op::template Results<T> results(const Group<T>& group) {
        return {group, folded_rows<T>(partial_, group.count)};
    }

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
    FASTSOFTMAX_INLINE void set(int i, SortedSum<T, false> sum, const T*, std::ptrdiff_t) {
        sum.join_lanes();
        partial_[i] = sum.sum.wide();
        largest_[i] = lane(sum.largest, 0);
    }
    template <class Op>
    FASTSOFTMAX_INLINE typename Op::template Results<T> results(const Group<T>& group) {
        return {group, load_pack<T>(largest_), folded_rows<T>(partial_, group.count)};
    }

  private:
    Wide<T> partial_[Pack<T>::lanes];
    T largest_[Pack<T>::lanes] = {};
};

// Stores row(what is at `from`). If `whole`, the last pack is loaded and stored whole.
template <class T, class Row>
FASTSOFTMAX_INLINE void write_packs_of(const T* from, T* out, std::ptrdiff_t classes, const Row& row, bool whole) {
    constexpr int lanes = Pack<T>::lanes;
    std::ptrdiff_t i = 0;
    for (; i + 4 * lanes <= classes; i += 4 * lanes)
        for (int k = 0; k < 4; ++k) store_pack(out + i + k * lanes, row(load_pack<T>(from + i + k * lanes)));
    for (; i + lanes <= classes; i += lanes) store_pack(out + i, row(load_pack<T>(from + i)));
    if (i < classes) {
        if (whole)
            store_pack(out + i, row(load_pack<T>(from + i)));
        else
            store_first(out + i, row(load_first(from + i, classes - i, T(0))), classes - i);
    }
}

template <class T, class Row>
FASTSOFTMAX_INLINE void write_row_of(const T* from, T* out, std::ptrdiff_t classes, const Row& row, bool whole) {
    write_packs_of(from, out, classes, row, whole);
    row.finish([&](std::int64_t c, T value) __attribute__((always_inline)) { out[c] = value; });
}

template <class Op, class T>
void near_rows(const Run& run) {
    using Sum = typename Op::template Sum<T, false>;
    constexpr int lanes = Pack<T>::lanes;
    constexpr std::ptrdiff_t most_padded = fastsoftmax::most_padded_packs * lanes, bytes = sizeof(T);
    const std::ptrdiff_t classes = run.classes, width = (classes + lanes - 1) / lanes * lanes;
    const bool padded = classes <= most_padded, in_place = run.x.data == run.out.data;
    const std::ptrdiff_t fit = padded ? lanes : Op::bytes_together / (width * bytes);
    const std::ptrdiff_t together = fit < 1 ? 1 : fit < lanes ? fit : lanes;
    // Where the end of a result may reach into the next row, which is written later.
    const bool dense = padded && !in_place && run.out.slice_stride == classes * bytes;
    alignas(pack_bytes) T scratch[Sum::keeps ? lanes * most_padded : 1];
    const auto is_far = [&](std::ptrdiff_t row) __attribute__((always_inline)) {
        const T* x = reinterpret_cast<const T*>(run.x.data + row * run.x.slice_stride);
        return begins_far(x[0]);
    };
    const auto general = [&](std::ptrdiff_t first, std::ptrdiff_t count) {
        Run far = slices_from(run, first);
        far.slices = count;
        general_rows<Op::operation, T>(far);
    };
    for (std::ptrdiff_t first = 0; first < run.slices; first += together) {
        const std::ptrdiff_t before = first;
        while (first < run.slices && is_far(first)) ++first;
        if (first > before) general(before, first - before);
        const std::ptrdiff_t left = run.slices - first;
        if (left == 0) break;
        const Rows<T> rows = {run, first, static_cast<int>(left < together ? left : together)};
        const Group<T> group = {
            run, first, rows.count, run.x.data + first * run.x.slice_stride, run.x.slice_stride, sizeof(T)};
        const auto kept = [&](int i) __attribute__((always_inline)) -> T* {
            if (!Sum::keeps) return nullptr;
            return padded ? scratch + i * width : in_place ? static_cast<T*>(run.kept) + i * width : rows.out(i);
        };
        RowSums<Sum, T> sums;
        std::uint32_t far = 0;
        for (int i = 0; i < rows.count; ++i) {
            const T* x = rows.x(i);
            T* e = kept(i);
            if (is_far(first + i)) {
                sums.drop(i);
                far |= 1u << i;
                continue;
            }
            sums.set(i, sum_row<Sum::keeps>(group.template sum_of<Sum>(i), x, classes, e, padded), e, classes);
        }
        auto results = sums.template results<Op>(group);
        set_far(results, far);
        for (int i = 0; i < rows.count; ++i) {
            if (!(results.near >> i & 1)) continue;
            if constexpr (Op::writes) {
                const typename Op::template Results<T>::Row row(results, i);
                write_row_of<T>(Sum::keeps ? kept(i) : rows.x(i), rows.out(i), classes, row,
                                Sum::keeps && dense && i + 1 < rows.count);
            }
        }
        for (int i = 0; i < rows.count; ++i) {
            if (results.near >> i & 1) continue;
            // A loss that is near stays what it is without a gradient.
            const double value = run.value ? run.value[first + i] : 0;
            general(first + i, 1);
            if (near_values(results) >> i & 1) run.value[first + i] = value;
        }
    }
}

// The run's only row, in blocks.

template <class T>
FASTSOFTMAX_INLINE Statistics near_statistics(const KeptSum<T, false>& sum, const T* x, std::ptrdiff_t count) {
    Statistics s = {};
    const Two<double> total = folded(sum.sum.wide());
    s.rest[0] = total.high;
    s.rest[1] = total.low;
    const auto only = Only<T>::of(
        sum, count, [=](std::ptrdiff_t c) { return lane(FixedExponential<T>()(broadcast(x[c])).rounded(), 0); });
    s.several = only.several;
    s.top[0] = static_cast<double>(only.exponential);
    return s;
}

template <class T, bool keep>
FASTSOFTMAX_INLINE Statistics near_statistics(const LabelSum<T, false, keep>& sum, const T*, std::ptrdiff_t) {
    Statistics s = {};
    const Two<double> total = folded(sum.sum.wide());
    s.rest[0] = total.high;
    s.rest[1] = total.low;
    s.several = true;
    return s;
}

template <class T>
FASTSOFTMAX_INLINE Statistics near_statistics(SortedSum<T, false> sum, const T*, std::ptrdiff_t) {
    Statistics s = {};
    sum.join_lanes();
    const Two<double> total = folded(sum.sum.wide());
    s.rest[0] = total.high;
    s.rest[1] = total.low;
    s.max = static_cast<double>(lane(sum.largest, 0));
    return s;
}

template <class Op, class T>
Statistics measure_near(const Run& run, std::ptrdiff_t count) {
    using Sum = typename Op::template Sum<T, false>;
    const T* x = reinterpret_cast<const T*>(run.x.data);
    T* out = reinterpret_cast<T*>(run.out.data);
    const auto sum = Group<T>{run, 0, 1, nullptr, 0, 0}.template sum_of<Sum>(0);
    if constexpr (Sum::keeps)
        if (out != x) return near_statistics(sum_row<true>(sum, x, count, out, false), x, count);
    return near_statistics(sum_row<false>(sum, x, count, out, false), x, count);
}

template <class Op, class T>
void merge_near(Statistics& left, const Statistics& right) {
    Wide<double> sum = broadcast2(left.rest) + broadcast2(right.rest);
    if constexpr (!std::is_same_v<typename Op::template Sum<T, false>, SortedSum<T, false>>) {
        left.several = left.several || right.several || (left.top[0] != 0 && right.top[0] != 0);
        left.top[0] = left.top[0] + right.top[0];
    } else {
        const bool right_wins = right.max > left.max;
        const T smaller = static_cast<T>(right_wins ? left.max : right.max);
        if (right_wins) left.max = right.max;
        const Growth<T, 1> e = FixedExponential<T>()(broadcast(smaller));
        sum = sum + Wide<double>{broadcast(static_cast<double>(lane(e.rounded(), 0))),
                                 broadcast(static_cast<double>(lane(e.lost(), 0)))};
    }
    set(left.rest, sum);
}

template <class T>
FASTSOFTMAX_INLINE Two<Pack<T>> sum_of(const double (&parts)[2]) {
    if constexpr (sizeof(T) == 4)
        return in_two(doubles<T>(parts[0] + parts[1]));
    else
        return broadcast2(parts);
}

template <class Op, class T>
FASTSOFTMAX_INLINE typename Op::template Results<T> near_results(const Run& run, const Statistics& s) {
    Group<T> group = {run, 0, 1, nullptr, 0, 0};
    group.label_score = &s.label_score;
    if constexpr (std::is_same_v<typename Op::template Sum<T, false>, SortedSum<T, false>>)
        return {group, broadcast(static_cast<T>(s.max)), sum_of<T>(s.rest)};
    else if (s.several)
        return {group, sum_of<T>(s.rest)};
    else
        return {group, Two<Pack<T>>{broadcast(static_cast<T>(s.top[0])), broadcast(T(0))}};
}

template <class Op, class T>
void conclude_near(const Run& run, Statistics& s) {
    const auto results = near_results<Op, T>(run, s);
    s.near = results.near & 1;
    s.value_near = near_values(results) & 1;
}

template <class Op, class T>
void write_near(const Run& run, const Statistics& s, std::ptrdiff_t count) {
    if constexpr (Op::writes) {
        // The slice's own number is written already, and not by several threads at once.
        double value;
        Run block = run;
        block.value = &value;
        const auto results = near_results<Op, T>(block, s);
        const typename Op::template Results<T>::Row row(results, 0);
        const T* x = reinterpret_cast<const T*>(run.x.data);
        T* out = reinterpret_cast<T*>(run.out.data);
        if (!Op::template Sum<T, false>::keeps)
            write_packs_of(x, out, count, row, false);
        else if (x != out)
            write_packs_of<T>(out, out, count, row, false);
        else
            transform(x, out, count, [&](Pack<T> v, std::ptrdiff_t) __attribute__((always_inline)) {
                return row(FixedExponential<T>()(v).rounded());
            });
        row.finish([&](std::int64_t c, T value) __attribute__((always_inline)) {
            if (run.origin <= c && c < run.origin + count) out[c - run.origin] = value;
        });
    }
}

}  // namespace
