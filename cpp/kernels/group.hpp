// Up to a pack of neighbouring slices, as operations see them: single scores, and the kept numbers.
#pragma once

#include "exponential_sums.hpp"

namespace {

// The run from its slice i on.
FASTSOFTMAX_INLINE Run slices_from(Run run, std::ptrdiff_t i) {
    Strided* const arrays[] = {&run.x, &run.dy, &run.out, &run.second_out, &run.sums};
    for (Strided* array : arrays)
        if (array->data) array->data += i * array->slice_stride;
    double** const results[] = {&run.value, &run.sign};
    for (double** numbers : results)
        if (*numbers) *numbers += i;
    const double** const given[] = {&run.chosen, &run.scale, &run.exponent, &run.second_scale, &run.second_exponent};
    for (const double** numbers : given)
        if (*numbers) *numbers += i;
    if (run.label) run.label += i;
    return run;
}

// Slices whose value is right, even where their other results are not.
template <class Results>
FASTSOFTMAX_INLINE std::uint32_t near_values(const Results& results) {
    if constexpr (requires { results.near_values; })
        return results.near_values;
    else
        return 0;
}

// Marks the slices in `bits` as far.
template <class Results>
FASTSOFTMAX_INLINE void set_far(Results& results, std::uint32_t bits) {
    results.near &= ~bits;
    if constexpr (requires { results.near_values; }) results.near_values &= ~bits;
}
template <class Results>
FASTSOFTMAX_INLINE void set_all_far(Results& results) {
    results.near = 0;
    if constexpr (requires { results.near_values; }) results.near_values = 0;
}

// The bits of the first `count` slices of a group.
FASTSOFTMAX_INLINE std::uint32_t bits_of(int count) { return static_cast<std::uint32_t>((1ull << count) - 1); }

template <class T>
struct Group {
    const Run& run;
    std::ptrdiff_t first;  // slice of the run
    int count;
    const std::byte* x;  // scores, with strides in bytes
    std::ptrdiff_t slice_stride, class_stride;
    T* kept = nullptr;                     // the kept numbers, of which results are made
    std::ptrdiff_t kept_class_stride = 0;  // in elements
    const double* label_score = nullptr;   // of a slice in blocks, whose scores are not at hand
    ElementType type = element_type<T>;    // of the scores

    FASTSOFTMAX_INLINE T score(int i, std::ptrdiff_t c) const {
        const std::byte* place = x + i * slice_stride + c * class_stride;
        if constexpr (sizeof(T) == 4) {
            if (type == ElementType::float16) return to_compute(*reinterpret_cast<const Half*>(place));
            if (type == ElementType::bfloat16) return to_compute(*reinterpret_cast<const BFloat16*>(place));
        }
        return *reinterpret_cast<const T*>(place);
    }

    // The labels of slices in the lanes; for ignored ones, and lanes without a slice, a number that is no class.
    FASTSOFTMAX_INLINE Pack<Integer<T>> labels() const {
        constexpr int lanes = Pack<T>::lanes;
        if (count == lanes) return Classes<T>(run.label + first).few();
        std::int64_t some[lanes];
        for (int i = 0; i < lanes; ++i) some[i] = i < count ? run.label[first + i] : -1;
        return Classes<T>(some).few();
    }

    // Empty sums: of slices in the lanes, and of slice i in all lanes.
    template <class Sum>
    FASTSOFTMAX_INLINE Sum sum() const {
        if constexpr (requires { Sum::label; })
            return Sum(labels());
        else
            return Sum();
    }
    template <class Sum>
    FASTSOFTMAX_INLINE Sum sum_of(int i) const {
        if constexpr (requires { Sum::label; }) {
            // If the label is not among these classes, every lane is negative and equals no class.
            const std::int64_t c = run.label[first + i];
            const bool among = run.origin <= c && c - run.origin < fastsoftmax::block_classes;
            return Sum(broadcast(static_cast<Integer<T>>(among ? c - run.origin : -1)) - iota<Integer<T>>());
        } else {
            return Sum();
        }
    }

    // The scores of the labels; 0 for a slice without one.
    FASTSOFTMAX_ONCE Pack<T> scores(const Labels<T>& labels) const {
        if (label_score) return broadcast(static_cast<T>(*label_score));
        T scores[Pack<T>::lanes] = {};
        for (int i = 0; i < count; ++i)
            if (labels.index[i] >= 0) scores[i] = score(i, labels.index[i]);
        return load_pack<T>(scores);
    }
};

template <class Op, class T, class Exp, class... Sums>
FASTSOFTMAX_ONCE typename Op::template Results<T, Exp> own_results(const Group<T>& group, const Exp& exp,
                                                                   const Sums&... sums) {
    return {group, exp, sums...};
}

// The results of a group of more than few classes, from its sums. They are inlined in each loop only for the fixed
// reference.
template <class Op, class T, class Exp, class... Sums>
FASTSOFTMAX_INLINE typename Op::template Results<T, Exp> results_from(const Group<T>& group, const Exp& exp,
                                                                      Sums... sums) {
    if constexpr (Exp::is_fixed)
        return {group, exp, sums...};
    else
        return own_results<Op>(group, exp, sums...);
}

}  // namespace
