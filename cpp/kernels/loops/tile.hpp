// A tile in memory: one class of as many slices as a pack has lanes, then the next class.
#pragma once

#include "rows.hpp"

namespace {

using fastsoftmax::few_classes;

// Where only one exponential is not 0, it takes the place of the sum, so that its class has exactly 1. Class c has
// exponential(c).
template <class T, class F>
FASTSOFTMAX_INLINE Two<Pack<T>> with_only(Two<Pack<T>> sum, std::ptrdiff_t classes, F exponential) {
    Pack<T> filled = broadcast(T(0)), only = broadcast(T(0));
    for (std::ptrdiff_t c = 0; c < classes; ++c) {
        const Pack<T> v = exponential(c);
        only = max(only, v);
        filled = filled + select(equal(v, broadcast(T(0))), broadcast(T(0)), broadcast(T(1)));
    }
    const Mask<T> single = equal(filled, broadcast(T(1)));
    return {select(single, only, sum.high), select(single, broadcast(T(0)), sum.low)};
}
template <class T>
FASTSOFTMAX_ONCE Two<Pack<T>> with_only_of(const Group<T>& group, Two<Pack<T>> sum) {
    return with_only<T>(sum, group.run.classes, [&](std::ptrdiff_t c) __attribute__((always_inline)) {
        return load_pack<T>(group.kept + c * group.kept_class_stride);
    });
}

// Whether a slice may have only one exponential that is not 0: the smallest is 0 then, unless there is only one class.
template <class T>
FASTSOFTMAX_INLINE bool any_may_be_only(const KeptSum<T, true>& sum, std::ptrdiff_t classes) {
    return classes == 1 || equal_bits(sum.smallest, broadcast(T(0))) != 0;
}

// The results of a group from its sums, a slice a lane: one sum for few classes, as many as a pack has lanes for more.

template <class Op, class T, class Exp>
FASTSOFTMAX_INLINE typename Op::template Results<T, Exp> results_of(const Group<T>& group, const Exp& exp,
                                                                    const KeptSum<T, true>* sum) {
    Two<Pack<T>> all = sum->sum.in_two();
    if (any_may_be_only(*sum, group.run.classes)) all = with_only_of(group, all);
    return {group, exp, all};
}

template <class Op, class T, bool keep, class Exp>
FASTSOFTMAX_INLINE typename Op::template Results<T, Exp> results_of(const Group<T>& group, const Exp& exp,
                                                                    const LabelSum<T, true, keep>* sum) {
    return {group, exp, sum->of_label, sum->sum.in_two()};
}

template <class Op, class T, class Exp>
FASTSOFTMAX_INLINE typename Op::template Results<T, Exp> results_of(const Group<T>& group, const Exp& exp,
                                                                    const SortedSum<T, true>* sum) {
    return {group, exp, sum->largest, sum->sum.in_two()};
}

// Folds one member of the sums of a group.
template <class T, class Sum, class Of>
FASTSOFTMAX_INLINE Two<Pack<T>> folded_sums(const Sum* sums, PowerSum<T> Of::* of) {
    Wide<T> partial[Pack<T>::lanes];
    for (int k = 0; k < Pack<T>::lanes; ++k) partial[k] = (sums[k].*of).wide();
    return in_two(folded(partial, Pack<T>::lanes));
}
template <class T, class Sum>
FASTSOFTMAX_INLINE Two<Pack<T>> folded_sums(const Sum* sums) {
    return folded_sums<T>(sums, &Sum::sum);
}

template <class Op, class T, class Exp>
FASTSOFTMAX_ONCE typename Op::template Results<T, Exp> results_of(const Group<T>& group, const Exp& exp,
                                                                  const KeptSum<T, false>* sums) {
    Pack<T> filled = broadcast(T(0));
    for (int k = 0; k < Pack<T>::lanes; ++k)
        filled = filled + select(equal(sums[k].sum.sum, broadcast(T(0))), broadcast(T(0)), broadcast(T(1)));
    Two<Pack<T>> all = folded_sums<T>(sums);
    if (equal_bits(filled, broadcast(T(1))) != 0) all = with_only_of(group, all);
    return results_from<Op>(group, exp, all);
}

template <class Op, class T, bool keep, class Exp>
FASTSOFTMAX_ONCE typename Op::template Results<T, Exp> results_of(const Group<T>& group, const Exp& exp,
                                                                  const LabelSum<T, false, keep>* sums) {
    return results_from<Op>(group, exp, folded_sums<T>(sums));
}

template <class Op, class T, class Exp>
FASTSOFTMAX_ONCE typename Op::template Results<T, Exp> results_of(const Group<T>& group, const Exp& exp,
                                                                  SortedSum<T, false>* sums) {
    join_sums(exp, sums);
    return results_from<Op>(group, exp, sums[0].largest, folded_sums<T>(sums));
}

// Sums a group, whose scores are score(c), and stores the kept numbers if `keep`.
template <bool keep, bool few, class Exp, class Sum, class T, class Score>
FASTSOFTMAX_INLINE void sum_group(const Group<T>& group, Sum* sums, const Exp& exp, Score score) {
    // A sum is carried after every terms_to_carry terms; where a slice has several sums, all at once.
    constexpr int partial = few ? 1 : Pack<T>::lanes;
    constexpr std::ptrdiff_t together = terms_to_carry * partial;
    const std::ptrdiff_t classes = group.run.classes, grouped = classes / together * together;
    for (int k = 0; k < partial; ++k) {
        Sum sum = group.template sum<Sum>();
        for (std::ptrdiff_t c = k; c < classes; c += partial) {
            const Pack<T> of_class = sum.add(exp, score(c), c);
            if constexpr (keep) store_pack(group.kept + c * group.kept_class_stride, of_class);
            if (c % together >= together - partial && c < grouped) sum.carry();
        }
        sums[k] = sum;
    }
}

template <class T>
FASTSOFTMAX_INLINE OwnExponential<T> exponential_of_tile(const Run& run, const T* tile) {
    Pack<T> largest = broadcast(T(-infinity));
    for (std::ptrdiff_t c = 0; c < run.classes; ++c) largest = max(load_pack<T>(tile + c * Pack<T>::lanes), largest);
    return {largest, run.temperature};
}

// Computes the slices of a tile, from `first` of the run on, by references of their own. Results take the place of the
// scores, those of a second output the place of the kept numbers; `kept` has room for a tile.
template <class Op, bool few, class T>
FASTSOFTMAX_ONCE void own_tile_of(const Run& run, std::ptrdiff_t first, int count, T* tile, T* kept) {
    using Sum = typename Op::template Sum<T, few>;
    constexpr int lanes = Pack<T>::lanes;
    const std::ptrdiff_t classes = run.classes;
    const auto score = [=](std::ptrdiff_t c) __attribute__((always_inline)) { return load_pack<T>(tile + c * lanes); };
    const auto exp = exponential_of_tile(run, tile);
    const Group<T> group = {run,       first,      count, reinterpret_cast<const std::byte*>(tile),
                            sizeof(T), pack_bytes, kept,  lanes};
    Sum sums[few ? 1 : lanes];
    sum_group<Op::writes, few>(group, sums, exp, score);
    auto results = results_of<Op>(group, exp, sums);
    if constexpr (Op::writes) {
        const auto value = results.columns();
        for (std::ptrdiff_t c = 0; c < classes; ++c)
            store_pack(tile + c * lanes, value(load_pack<T>(kept + c * lanes), c));
    }
    if constexpr (may_write_second<Op>)
        if (run.second_out.data) {
            results.see_classes(group);
            const auto value = results.second_columns();
            for (std::ptrdiff_t c = 0; c < classes; ++c)
                store_pack(kept + c * lanes, value(load_pack<T>(kept + c * lanes)));
        }
}

template <class Op, class T>
void own_tile(const Run& run, std::ptrdiff_t first, int count, T* tile, T* kept) {
    if (run.classes <= few_classes)
        own_tile_of<Op, true>(run, first, count, tile, kept);
    else
        own_tile_of<Op, false>(run, first, count, tile, kept);
}

// Computes tiles in memory by references of their own; results take the place of scores.
template <class Op, class T>
void own_tiles(const Run& run) {
    constexpr std::ptrdiff_t lanes = Pack<T>::lanes;
    for (std::ptrdiff_t first = 0; first < run.slices; first += lanes) {
        const std::ptrdiff_t left = run.slices - first;
        T* const kept = static_cast<T*>(run.kept);
        own_tile<Op>(run, first, static_cast<int>(left < lanes ? left : lanes),
                     reinterpret_cast<T*>(run.x.data + first * run.x.slice_stride), kept);
        if (run.second_out.data)
            __builtin_memcpy(run.second_out.data + first * run.second_out.slice_stride, kept,
                             static_cast<std::size_t>(run.classes) * pack_bytes);
    }
}

// Computes slices at any strides, in bytes, by way of copies in tiles.
template <class Op, class E>
void copied_tiles(const Run& run, std::ptrdiff_t x_class_stride, std::ptrdiff_t out_class_stride,
                  std::ptrdiff_t second_class_stride, Compute<E>* tile, Compute<E>* kept) {
    using T = Compute<E>;
    constexpr std::ptrdiff_t lanes = Pack<T>::lanes;
    const auto write = [&](const T* from, const Strided& to, std::ptrdiff_t class_stride, std::ptrdiff_t first,
                           int count) {
        for (std::ptrdiff_t c = 0; c < run.classes; ++c)
            for (int i = 0; i < count; ++i)
                *reinterpret_cast<E*>(to.data + (first + i) * to.slice_stride + c * class_stride) =
                    from_compute<E>(from[c * lanes + i]);
    };
    for (std::ptrdiff_t first = 0; first < run.slices; first += lanes) {
        const int count = static_cast<int>(run.slices - first < lanes ? run.slices - first : lanes);
        const std::byte* x = run.x.data + first * run.x.slice_stride;
        for (std::ptrdiff_t c = 0; c < run.classes; ++c, x += x_class_stride)
            for (int i = 0; i < count; ++i)
                tile[c * lanes + i] = to_compute(*reinterpret_cast<const E*>(x + i * run.x.slice_stride));
        for (std::ptrdiff_t c = 0; c < run.classes; ++c)
            for (int i = count; i < lanes; ++i) tile[c * lanes + i] = 0;
        own_tile<Op>(run, first, count, tile, kept);
        if constexpr (Op::writes) write(tile, run.out, out_class_stride, first, count);
        if (run.second_out.data) write(kept, run.second_out, second_class_stride, first, count);
    }
}

// Collects far slices, from anywhere in a run, in a tile. When it is full, and at the end, computes their results,
// which replace those by the fixed reference.
template <class T>
class FarSlices {
    static constexpr int lanes = Pack<T>::lanes;

  public:
    // Computes a tile of slices, from `first` of a run on, as own_tile does.
    using OwnTile = void (*)(const Run&, std::ptrdiff_t first, int count, T* tile, T* kept);

    // Arrays begin with slice `first` of the run, and their strides are in bytes; those of results may be null. `tile`
    // and `kept` have room for a tile each.
    FASTSOFTMAX_INLINE FarSlices(OwnTile own_tile, const Run& run, std::ptrdiff_t first, Strided x, Strided out,
                                 Strided second_out, T* tile, T* kept)
        : own_tile_(own_tile),
          run_(run),
          first_(first),
          x_(x),
          out_(out),
          second_out_(second_out),
          tile_(tile),
          kept_(kept) {}

    // Takes the scores of the slices from `from` on whose bits are set. Those with bits in `values` keep the run's
    // value. Meanwhile, results of slices taken before may be written.
    FASTSOFTMAX_ONCE void add(std::ptrdiff_t from, std::uint32_t bits, std::uint32_t values) {
        if (count_ + __builtin_popcount(bits) > lanes) compute();
        for (; bits != 0; bits &= bits - 1) {
            const int i = __builtin_ctz(bits);
            const std::byte* x = x_.data + (from + i - first_) * x_.slice_stride;
            for (std::ptrdiff_t c = 0; c < run_.classes; ++c)
                tile_[c * lanes + count_] = *reinterpret_cast<const T*>(x + c * x_.class_stride);
            slice_[count_] = from + i;
            value_stays_[count_] = values >> i & 1;
            ++count_;
        }
    }

    // Computes a whole tile at once: load(tile) fills it with scores, store(tile, second) takes its results and second
    // ones.
    template <class Load, class Store>
    FASTSOFTMAX_INLINE void compute_tile(std::ptrdiff_t from, int count, Load load, Store store) {
        finish();
        load(tile_);
        own_tile_(run_, from, count, tile_, kept_);
        store(tile_, kept_);
    }

    FASTSOFTMAX_INLINE void finish() {
        if (count_ > 0) compute();
    }

  private:
    OwnTile own_tile_;
    const Run& run_;
    std::ptrdiff_t first_;
    Strided x_, out_, second_out_;
    T *tile_, *kept_;
    int count_ = 0;
    std::ptrdiff_t slice_[lanes];
    bool value_stays_[lanes];

    FASTSOFTMAX_ONCE void compute() {
        std::int64_t label[lanes];
        double chosen[lanes], scale[lanes], exponent[lanes], value[lanes], sign[lanes];
        T sums[fastsoftmax::parts_of_sums][lanes];
        double second_scale[lanes], second_exponent[lanes];
        for (int i = 0; i < count_; ++i) {
            const std::ptrdiff_t slice = slice_[i];
            if (run_.label) label[i] = run_.label[slice];
            if (run_.chosen) chosen[i] = run_.chosen[slice];
            if (run_.scale) scale[i] = run_.scale[slice];
            if (run_.exponent) exponent[i] = run_.exponent[slice];
            if (run_.second_scale) second_scale[i] = run_.second_scale[slice];
            if (run_.second_exponent) second_exponent[i] = run_.second_exponent[slice];
        }
        for (int i = count_; i < lanes; ++i)
            for (std::ptrdiff_t c = 0; c < run_.classes; ++c) tile_[c * lanes + i] = 0;
        Run run = run_;
        run.slices = count_;
        run.label = run_.label ? label : nullptr;
        run.chosen = run_.chosen ? chosen : nullptr;
        run.scale = run_.scale ? scale : nullptr;
        run.exponent = run_.exponent ? exponent : nullptr;
        run.second_scale = run_.second_scale ? second_scale : nullptr;
        run.second_exponent = run_.second_exponent ? second_exponent : nullptr;
        run.value = run_.value ? value : nullptr;
        run.sign = run_.sign ? sign : nullptr;
        if (run_.sums.data) run.sums = {reinterpret_cast<std::byte*>(sums), sizeof(T), sizeof sums[0]};
        own_tile_(run, 0, count_, tile_, kept_);
        for (int i = 0; i < count_; ++i) {
            const std::ptrdiff_t slice = slice_[i];
            if (run_.value && !value_stays_[i]) run_.value[slice] = value[i];
            if (run_.sign) run_.sign[slice] = sign[i];
            if (run_.sums.data)
                for (int k = 0; k < fastsoftmax::parts_of_sums; ++k)
                    *reinterpret_cast<T*>(run_.sums.data + slice * run_.sums.slice_stride +
                                          k * run_.sums.class_stride) = sums[k][i];
            if (out_.data) scatter(tile_ + i, out_, slice);
            if (second_out_.data) scatter(kept_ + i, second_out_, slice);
        }
        count_ = 0;
    }

    FASTSOFTMAX_INLINE void scatter(const T* from, const Strided& to, std::ptrdiff_t slice) const {
        std::byte* out = to.data + (slice - first_) * to.slice_stride;
        for (std::ptrdiff_t c = 0; c < run_.classes; ++c)
            *reinterpret_cast<T*>(out + c * to.class_stride) = from[c * lanes];
    }
};

}  // namespace
