// Neighbouring slices that are contiguous: a line is one class of all of them, so a pack loaded from it holds one class
// of neighbours. Tiles in memory are lines of one pack.
#pragma once

#include "tile.hpp"

namespace {

// How many neighbours are computed together: their sums stay in the first-level cache.
template <class Sum, class T>
constexpr std::ptrdiff_t most_neighbours(bool few) {
    constexpr std::ptrdiff_t bytes = 16384, pack = pack_bytes;
    const std::ptrdiff_t sums = few ? 1 : Pack<T>::lanes;
    return bytes / (sums * Sum::packs_of_state * pack) * Pack<T>::lanes;
}

// Some neighbours of a run, no more than LineSums has room for.
template <class T>
struct Lines {
    const Run& run;
    std::ptrdiff_t first, count;
    std::byte* scores;
    std::byte* results;
    std::byte* second_results;
    std::ptrdiff_t scores_stride, results_stride, second_stride;  // from class to class, in bytes
    T* kept;                                                      // the kept numbers, class after class

    static constexpr int lanes = Pack<T>::lanes;
    FASTSOFTMAX_INLINE std::ptrdiff_t width() const { return (count + lanes - 1) / lanes * lanes; }
    FASTSOFTMAX_INLINE const T* x(std::ptrdiff_t c) const {
        return reinterpret_cast<const T*>(scores + c * scores_stride);
    }
    FASTSOFTMAX_INLINE T* out(std::ptrdiff_t c) const { return reinterpret_cast<T*>(results + c * results_stride); }
    FASTSOFTMAX_INLINE T* second_out(std::ptrdiff_t c) const {
        return reinterpret_cast<T*>(second_results + c * second_stride);
    }
    // Stores the results of a pack of neighbours from i on, past the caches if `stream`.
    FASTSOFTMAX_INLINE void store(T* out, std::ptrdiff_t i, Pack<T> values, bool stream) const {
        if (stream)
            stream_pack(out + i, values);
        else if (i + lanes <= count)
            store_pack(out + i, values);
        else
            store_first(out + i, values, count - i);
    }
    FASTSOFTMAX_INLINE Pack<T> score(std::ptrdiff_t c, std::ptrdiff_t i) const {
        return i + lanes <= count ? load_pack<T>(x(c) + i) : load_first(x(c) + i, count - i, T(0));
    }
    FASTSOFTMAX_INLINE Group<T> group(std::ptrdiff_t i) const {
        return {run,
                first + i,
                static_cast<int>(count - i < lanes ? count - i : lanes),
                reinterpret_cast<const std::byte*>(x(0) + i),
                sizeof(T),
                scores_stride,
                kept + i,
                width()};
    }
};

// The sums of `width` neighbours, in whole packs. Each neighbour has one sum, or as many as a pack has lanes.
template <class Sum, bool few, class T>
class LineSums {
  public:
    static constexpr int sums = few ? 1 : Pack<T>::lanes, lanes = Pack<T>::lanes;
    static constexpr std::ptrdiff_t most = most_neighbours<Sum, T>(few);

    FASTSOFTMAX_INLINE LineSums(const Lines<T>& lines, std::ptrdiff_t width) : width_(width) {
        for (std::ptrdiff_t i = 0; i < width; i += lanes)
            for (int k = 0; k < sums; ++k) lines.group(i).template sum<Sum>().store(at(k, i), width_);
    }
    FASTSOFTMAX_INLINE Sum load(int k, std::ptrdiff_t i) {
        Sum sum;
        sum.load(at(k, i), width_);
        return sum;
    }
    FASTSOFTMAX_INLINE void store(int k, std::ptrdiff_t i, const Sum& sum) { sum.store(at(k, i), width_); }

  private:
    std::ptrdiff_t width_;
    alignas(pack_bytes) T state_[Sum::packs_of_state * sums * most];

    FASTSOFTMAX_INLINE T* at(int k, std::ptrdiff_t i) { return state_ + Sum::packs_of_state * k * width_ + i; }
};

// Adds n classes from c on, for whole packs of neighbours.
template <bool keep, int n, bool few, class Sum, class T>
FASTSOFTMAX_INLINE void add_lines(LineSums<Sum, few, T>& sums, const Lines<T>& lines, std::ptrdiff_t c, bool carry) {
    constexpr int lanes = Pack<T>::lanes, packs = few && n >= packs_at_once ? packs_at_once : 1;
    const std::ptrdiff_t width = lines.width();
    const int first = few ? 0 : static_cast<int>(c % lanes);
    const T* x[n];
    unrolled<n>([&](int j) __attribute__((always_inline)) { x[j] = lines.x(c + j); });
    T* const kept = lines.kept + c * width;
    for (std::ptrdiff_t i = 0; i < width; i += lanes) {
        Sum sum = sums.load(first, i);
        unrolled<n / packs>([&](int step) __attribute__((always_inline)) {
            const int j = step * packs;
            if (!few && j > 0) sum = sums.load(first + j, i);
            Pack<T, packs> scores;
            unrolled<packs>([&](int k)
                                __attribute__((always_inline)) { set_part(scores, k, load_pack<T>(x[j + k] + i)); });
            const Pack<T, packs> of_class = sum.add(FixedExponential<T>(), scores, c + j);
            if constexpr (keep)
                unrolled<packs>([&](int k) __attribute__((always_inline)) {
                    store_pack(kept + (j + k) * width + i, part(of_class, k));
                });
            if (!few) {
                if (carry) sum.carry();
                sums.store(first + j, i, sum);
            }
        });
        if (few) {
            if (carry) sum.carry();
            sums.store(0, i, sum);
        }
    }
}

template <bool keep, bool few, class Sum, class T>
FASTSOFTMAX_ONCE void sum_lines(LineSums<Sum, few, T>& sums, const Lines<T>& lines) {
    // A sum is carried after every terms_to_carry terms; where a slice has several sums, all at once.
    constexpr std::ptrdiff_t lanes = Pack<T>::lanes, group = few ? terms_to_carry : terms_to_carry * lanes;
    const std::ptrdiff_t classes = lines.run.classes, grouped = classes / group * group;
    std::ptrdiff_t c = 0;
    for (; c + 4 <= classes; c += 4) {
        const std::ptrdiff_t last = few ? group - 4 : group - lanes;
        add_lines<keep, 4>(sums, lines, c, c < grouped && c % group >= last);
    }
    for (; c < classes; ++c) add_lines<keep, 1>(sums, lines, c, false);
}

// Sums neighbours, and makes the results of one pack of them after another.
template <class Op, bool few, class T>
FASTSOFTMAX_ONCE void sum_neighbours(const Lines<T>& lines,
                                     typename Op::template Results<T, FixedExponential<T>>* results) {
    using Exp = FixedExponential<T>;
    using Sum = typename Op::template Sum<T, few>;
    constexpr int lanes = Pack<T>::lanes;
    const std::ptrdiff_t width = lines.width();
    const auto is_far = [&](std::ptrdiff_t i) __attribute__((always_inline)) { return begins_far(lines.score(0, i)); };
    bool all_far = true;
    for (std::ptrdiff_t i = 0; i < width; i += lanes) {
        set_all_far(results[i / lanes]);
        all_far = all_far && (~is_far(i) & bits_of(lines.group(i).count)) == 0;
    }
    if (all_far) return;
    const bool single = width == lanes;
    LineSums<Sum, few, T> sums(lines, single ? 0 : width);
    if (!single) sum_lines<Op::writes, few>(sums, lines);
    for (std::ptrdiff_t i = 0; i < width; i += lanes) {
        const Group<T> group = lines.group(i);
        Sum partial[few ? 1 : lanes];
        if (single) {
            sum_group<Op::writes, few>(group, partial, Exp(), [&](std::ptrdiff_t c) __attribute__((always_inline)) {
                return lines.score(c, 0);
            });
        } else {
            for (int k = 0; k < (few ? 1 : lanes); ++k) partial[k] = sums.load(k, i);
        }
        results[i / lanes] = results_of<Op>(group, Exp(), partial);
        set_far(results[i / lanes], is_far(i));
        if constexpr (may_write_second<Op>)
            if (lines.second_results) results[i / lanes].see_classes(group);
    }
}

template <class Op, bool few, class T>
FASTSOFTMAX_ONCE void near_lines_of(const Lines<T>& lines, bool stream, bool second_stream, FarSlices<T> far_slices) {
    constexpr int lanes = Pack<T>::lanes;
    constexpr std::ptrdiff_t most = LineSums<typename Op::template Sum<T, few>, few, T>::most / lanes;
    const std::ptrdiff_t width = lines.width();
    typename Op::template Results<T, FixedExponential<T>> results[most];
    sum_neighbours<Op, few>(lines, results);
    // In a pack with far slices, all results take the place of the kept numbers.
    bool any_far[most];
    for (std::ptrdiff_t i = 0; i < width; i += lanes) {
        const auto& of_pack = results[i / lanes];
        const Group<T> group = lines.group(i);
        const std::uint32_t far = ~of_pack.near & bits_of(group.count);
        any_far[i / lanes] = far != 0;
        if (far == 0) continue;
        const std::ptrdiff_t classes = lines.run.classes;
        if (far == bits_of(group.count) && near_values(of_pack) == 0) {
            far_slices.compute_tile(
                group.first, group.count,
                [&](T* to) __attribute__((always_inline)) {
                    for (std::ptrdiff_t c = 0; c < classes; ++c) store_pack(to + c * lanes, lines.score(c, i));
                },
                [&](const T* from, const T* second) __attribute__((always_inline)) {
                    if constexpr (Op::writes)
                        for (std::ptrdiff_t c = 0; c < classes; ++c)
                            store_pack(group.kept + c * width, load_pack<T>(from + c * lanes));
                    for (std::ptrdiff_t c = 0; lines.second_results && c < classes; ++c)
                        lines.store(lines.second_out(c), i, load_pack<T>(second + c * lanes), false);
                });
            continue;
        }
        if constexpr (Op::writes) {
            const auto value = of_pack.columns();
            for (std::ptrdiff_t c = 0; c < classes; ++c) {
                T* const place = group.kept + c * width;
                const Pack<T> v = load_pack<T>(place);
                // The second results of far slices are written later.
                if constexpr (may_write_second<Op>)
                    if (lines.second_results) lines.store(lines.second_out(c), i, of_pack.second_columns()(v), false);
                store_pack(place, value(v, c));
            }
        }
        far_slices.add(group.first, far, near_values(of_pack));
    }
    far_slices.finish();
    if constexpr (Op::writes) {
        for (std::ptrdiff_t c = 0; c < lines.run.classes; ++c) {
            T* out = lines.out(c);
            const T* kept = lines.kept + c * width;
            for (std::ptrdiff_t i = 0; i < width; i += lanes) {
                Pack<T> v = load_pack<T>(kept + i);
                if (!any_far[i / lanes]) {
                    if constexpr (may_write_second<Op>)
                        if (lines.second_results)
                            lines.store(lines.second_out(c), i, results[i / lanes].second_columns()(v), second_stream);
                    v = results[i / lanes].columns()(v, c);
                }
                lines.store(out, i, v, stream);
            }
        }
    }
}

// A collector of the far slices of neighbours. Results take the place of the kept numbers; `tile` has room for two
// tiles.
template <class Op, class T>
FASTSOFTMAX_INLINE FarSlices<T> far_slices_of(const Lines<T>& lines, T* tile) {
    const std::ptrdiff_t element = sizeof(T);
    return {own_tile<Op, T>,
            lines.run,
            lines.first,
            {lines.scores, element, lines.scores_stride},
            {Op::writes ? reinterpret_cast<std::byte*>(lines.kept) : nullptr, element, lines.width() * element},
            {lines.second_results, element, lines.second_stride},
            tile,
            tile + Pack<T>::lanes * lines.run.classes};
}

template <class Op, class T>
void near_lines(const Run& run) {
    constexpr std::ptrdiff_t lanes = Pack<T>::lanes, width = sizeof(T);
    const bool few = run.classes <= few_classes;
    const std::ptrdiff_t most = few ? LineSums<typename Op::template Sum<T, true>, true, T>::most
                                    : LineSums<typename Op::template Sum<T, false>, false, T>::most;
    // The kept numbers of this many neighbours stay in the second-level cache.
    const std::ptrdiff_t fit = fastsoftmax::lines_room / (run.classes * static_cast<std::ptrdiff_t>(sizeof(T)));
    std::ptrdiff_t step = (fit < most ? fit : most) / lanes * lanes;
    if (step > run.slices) step = (run.slices + lanes - 1) / lanes * lanes;
    if (step < lanes) step = lanes;
    T* const kept = static_cast<T*>(run.kept);
    // Results too large for the caches are stored past them: then no line is read from memory only to be overwritten.
    // That takes whole cache lines.
    const auto place = reinterpret_cast<std::uintptr_t>(run.out.data);
    const bool aligned = Op::writes && run.stream && place % sizeof(T) == 0 && run.out.class_stride % pack_bytes == 0;
    const auto second_place = reinterpret_cast<std::uintptr_t>(run.second_out.data);
    const bool second_aligned =
        second_place % pack_bytes == place % pack_bytes && run.second_out.class_stride % pack_bytes == 0;
    const std::ptrdiff_t before = aligned ? (pack_bytes - place % pack_bytes) % pack_bytes / sizeof(T) : 0;
    for (std::ptrdiff_t first = 0, count; first < run.slices; first += count) {
        const std::ptrdiff_t left = run.slices - first;
        count = left < step ? left : step;
        if (first < before)
            count = left < before ? left : before;
        else if (count > lanes)
            count = count / lanes * lanes;
        const Lines<T> lines = {run,
                                first,
                                count,
                                run.x.data + first * width,
                                run.out.data ? run.out.data + first * width : nullptr,
                                run.second_out.data ? run.second_out.data + first * width : nullptr,
                                run.x.class_stride,
                                run.out.class_stride,
                                run.second_out.class_stride,
                                kept};
        const bool stream = aligned && first >= before && count % lanes == 0;
        const bool second_stream = stream && second_aligned;
        const auto far_slices = far_slices_of<Op>(lines, Op::writes ? kept + step * run.classes : kept);
        if (few)
            near_lines_of<Op, true>(lines, stream, second_stream, far_slices);
        else
            near_lines_of<Op, false>(lines, stream, second_stream, far_slices);
    }
    if (aligned) finish_streams();
}

// Computes tiles in memory; results take the place of scores.
template <class Op, class T>
void near_gathered_tiles(const Run& run) {
    constexpr std::ptrdiff_t lanes = Pack<T>::lanes;
    T* const kept = static_cast<T*>(run.kept);
    for (std::ptrdiff_t first = 0; first < run.slices; first += lanes) {
        std::byte* const tile = run.x.data + first * run.x.slice_stride;
        const std::ptrdiff_t left = run.slices - first;
        std::byte* const second =
            run.second_out.data ? run.second_out.data + first * run.second_out.slice_stride : nullptr;
        const Lines<T> lines = {
            run, first, left < lanes ? left : lanes, tile, tile, second, pack_bytes, pack_bytes, pack_bytes, kept};
        const auto far_slices = far_slices_of<Op>(lines, Op::writes ? kept + lanes * run.classes : kept);
        if (run.classes <= few_classes)
            near_lines_of<Op, true>(lines, false, false, far_slices);
        else
            near_lines_of<Op, false>(lines, false, false, far_slices);
    }
}

}  // namespace
