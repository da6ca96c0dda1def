// The three sums of exponentials. All loops use them: rows with one slice in all lanes, tiles and lines with a slice in
// each lane.
#pragma once

#include "losses.hpp"

namespace {

// Lane i of the result is lane i ^ distance of a.
template <int distance, class T>
FASTSOFTMAX_INLINE Pack<T> swapped(Pack<T> a) {
    constexpr int width = register_bytes / static_cast<int>(sizeof(T));
    return from_registers<Pack<T>>([&]<int i>() __attribute__((always_inline)) {
        if constexpr (distance >= width)
            return a.r[i ^ (distance / width)];
        else
            return swap_lanes<distance>(a.r[i], std::make_index_sequence<width>());
    });
}

// The ways to sum exponentials. `add` takes the functor that makes them and packs of scores, whose classes begin with
// c, c + step, ...; it returns the kept numbers, of which results are made: exponentials or, if sorted, the scores.

// Kept: adds all exponentials, which are kept for the results. `few`: slices of few classes, one in each lane.
template <class T, bool few>
struct KeptSum {
    static constexpr bool keeps = true;
    static constexpr int packs_of_state = few ? 3 : 2;
    PowerSum<T> sum;
    Pack<T> smallest = broadcast(T(infinity));  // exponential, if `few`

    template <class Exp, int packs>
    FASTSOFTMAX_LONG Pack<T, packs> add(const Exp& exp, Pack<T, packs> x, std::ptrdiff_t = 0, std::ptrdiff_t = 1) {
        const Growth<T, packs> e = exp(x);
        const Pack<T, packs> rounded = e.rounded();
        unrolled<packs>([&](int k) __attribute__((always_inline)) {
            take({part(e.power, k), part(e.growth, k)}, part(rounded, k), 0);
        });
        return rounded;
    }
    // Takes the exponential of one class.
    FASTSOFTMAX_LONG void take(Growth<T, 1> e, Pack<T> rounded, std::ptrdiff_t) {
        sum.add(e.power, e.growth);
        if constexpr (few) smallest = min(rounded, smallest);
    }

    FASTSOFTMAX_INLINE void carry() { sum.carry(); }

    FASTSOFTMAX_INLINE void load(const T* state, std::ptrdiff_t step) {
        sum = {load_pack<T>(state), load_pack<T>(state + step)};
        if constexpr (few) smallest = load_pack<T>(state + 2 * step);
    }
    FASTSOFTMAX_INLINE void store(T* state, std::ptrdiff_t step) const {
        store_pack(state, sum.sum);
        store_pack(state + step, sum.low);
        if constexpr (few) store_pack(state + 2 * step, smallest);
    }
};

// Label: adds all exponentials except the label's, so that this sum has all its digits; `keep` also keeps them. A lane
// holds the label's exponential where `label` equals c. With a slice in each lane, that is its label; with one slice in
// all lanes, where lane i is of class c + i, it is the slice's label less i.
template <class T, bool few, bool keep>
struct LabelSum {
    static constexpr bool keeps = keep;
    static constexpr int packs_of_state = few ? 5 : 3;
    PowerSum<T> sum;
    Pack<Integer<T>> label;
    Growth<T, 1> of_label = {broadcast(T(0)), broadcast(T(0))};  // the label's exponential, if classes are few

    LabelSum() = default;
    FASTSOFTMAX_INLINE explicit LabelSum(Pack<Integer<T>> label_) : label(label_) {}

    template <class Exp, int packs>
    FASTSOFTMAX_LONG Pack<T, packs> add(const Exp& exp, Pack<T, packs> x, std::ptrdiff_t c, std::ptrdiff_t step = 1) {
        const Growth<T, packs> e = exp(x);
        unrolled<packs>([&](int k) __attribute__((always_inline)) {
            take({part(e.power, k), part(e.growth, k)}, part(e.power, k), c + k * step);
        });
        return e.rounded();
    }
    FASTSOFTMAX_LONG void take(Growth<T, 1> e, Pack<T>, std::ptrdiff_t c) {
        const Mask<T> at_label = equal(label, broadcast(static_cast<Integer<T>>(c)));
        if constexpr (few)
            of_label = {select(at_label, e.power, of_label.power), select(at_label, e.growth, of_label.growth)};
        sum.add(select(at_label, broadcast(T(0)), e.power), e.growth);
    }
    FASTSOFTMAX_INLINE void carry() { sum.carry(); }

    FASTSOFTMAX_INLINE void load(const T* state, std::ptrdiff_t step) {
        sum = {load_pack<T>(state), load_pack<T>(state + step)};
        label = bit_cast<Integer<T>>(load_pack<T>(state + 2 * step));
        if constexpr (few) of_label = {load_pack<T>(state + 3 * step), load_pack<T>(state + 4 * step)};
    }
    FASTSOFTMAX_INLINE void store(T* state, std::ptrdiff_t step) const {
        store_pack(state, sum.sum);
        store_pack(state + step, sum.low);
        store_pack(state + 2 * step, bit_cast<T>(label));
        if constexpr (few) {
            store_pack(state + 3 * step, of_label.power);
            store_pack(state + 4 * step, of_label.growth);
        }
    }
};

// Holds back the largest score so far in each lane.
template <class T>
struct Largest {
    Pack<T> largest = broadcast(T(-infinity));

    // Returns the smaller of each score and the one held back; holds back the larger.
    template <int packs>
    FASTSOFTMAX_INLINE Pack<T, packs> held_back(Pack<T, packs> x) {
        Pack<T, packs> smaller;
        unrolled<packs>([&](int k) __attribute__((always_inline)) {
            // A NaN is summed, never held back.
            set_part(smaller, k, min(largest, part(x, k)));
            largest = max(part(x, k), largest);
        });
        return smaller;
    }

    // For one slice in all lanes: puts its largest score into every lane, and returns the others that were held back.
    FASTSOFTMAX_INLINE Pack<T> smaller_lanes() {
        Pack<T> others = broadcast(T(-infinity));
        join<Pack<T>::lanes / 2>(others);
        return others;
    }

  private:
    // Compares lanes that are `distance` apart, then half as far, and so on. The smaller scores of the first step go to
    // the lanes of `others` from 0 on, those of the second from lanes / 2 on, ...
    template <int distance>
    FASTSOFTMAX_INLINE void join(Pack<T>& others) {
        const Pack<T> other = swapped<distance>(largest), smaller = min(largest, other);
        largest = max(largest, other);
        if constexpr (distance > 1) join<distance / 2>(others);
        const auto end = static_cast<Integer<T>>(Pack<T>::lanes - distance);
        others = select(less(iota<Integer<T>>(), broadcast(end)), smaller, others);
    }
};

// For slices in the lanes, each with as many sums as a pack has lanes: puts the largest score into the first sum, and
// adds the exponentials of the others that were held back.
template <class Exp, class Sum>
FASTSOFTMAX_INLINE void join_sums(const Exp& exp, Sum* sums) {
    int to = 0;
    for (int count = decltype(sums->largest)::lanes / 2; count > 0; count /= 2)
        for (int k = 0; k < count; ++k, ++to) {
            const auto a = sums[k].largest, b = sums[k + count].largest;
            sums[k].largest = max(a, b);
            sums[to].add_smaller(exp, min(a, b));
        }
}

// Sorted: adds the exponentials of all scores except the largest, and keeps none. So one pass gives the largest score
// of a slice and the sum of the rest, with all its digits.
template <class T, bool few>
struct SortedSum : Largest<T> {
    static constexpr bool keeps = false;
    static constexpr int packs_of_state = 3;
    PowerSum<T> sum;

    template <class Exp, int packs>
    FASTSOFTMAX_LONG Pack<T, packs> add(const Exp& exp, Pack<T, packs> x, std::ptrdiff_t = 0, std::ptrdiff_t = 1) {
        add_smaller(exp, this->held_back(x));
        return x;
    }
    template <class Exp, int packs>
    FASTSOFTMAX_LONG void add_smaller(const Exp& exp, Pack<T, packs> x) {
        const Growth<T, packs> e = exp(x);
        unrolled<packs>([&](int k) __attribute__((always_inline)) { sum.add(part(e.power, k), part(e.growth, k)); });
    }
    FASTSOFTMAX_INLINE void carry() { sum.carry(); }

    FASTSOFTMAX_INLINE void load(const T* state, std::ptrdiff_t step) {
        sum = {load_pack<T>(state), load_pack<T>(state + step)};
        this->largest = load_pack<T>(state + 2 * step);
    }
    FASTSOFTMAX_INLINE void store(T* state, std::ptrdiff_t step) const {
        store_pack(state, sum.sum);
        store_pack(state + step, sum.low);
        store_pack(state + 2 * step, this->largest);
    }
};

// Adds the exponentials of n classes from c on, whose scores are a pack for each class. Returns the kept numbers.
template <int n, class Exp, class Sum, class T>
FASTSOFTMAX_INLINE Pack<T, n> add_packs(Sum& sum, const Exp& exp, const Pack<T>* classes, std::ptrdiff_t c) {
    Pack<T, n> scores;
    unrolled<n>([&](int k) __attribute__((always_inline)) { set_part(scores, k, classes[k]); });
    return sum.add(exp, scores, c);
}

}  // namespace
