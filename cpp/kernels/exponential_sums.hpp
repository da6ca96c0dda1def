// The three sums of exponentials. They are added up alike: in rows, a slice in all lanes, in tiles and lines, a slice a
// lane.
#pragma once

#include "losses.hpp"

namespace {

// Lane i of the result is lane i ^ distance.
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

// The ways to sum exponentials. Each takes what makes them and scores, of classes from c on that are `step` apart, and
// returns what the results are made of.

// Kept: sums all; the exponentials are kept. `few`: of few classes, a slice in each lane.
template <class T, bool few>
struct KeptSum {
    static constexpr bool keeps = true;
    static constexpr int packs_of_state = few ? 3 : 2;
    PowerSum<T> sum;
    Pack<T> smallest = broadcast(T(infinity));  // of the exponentials

    template <class Exp, int packs>
    FASTSOFTMAX_LONG Pack<T, packs> add(const Exp& exp, Pack<T, packs> x, std::ptrdiff_t = 0, std::ptrdiff_t = 1) {
        const Growth<T, packs> e = exp(x);
        const Pack<T, packs> rounded = e.rounded();
        unrolled<packs>([&](int k) __attribute__((always_inline)) {
            take({part(e.power, k), part(e.growth, k)}, part(rounded, k), 0);
        });
        return rounded;
    }
    // Of one class, the exponential itself.
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

// Kept, without the exponential of a label: what the others sum up to has all its digits. Lane i is of the class of the
// pack plus `label` less that: of slices in the lanes, the label of each; of one slice in all lanes, its label less i.
template <class T, bool few, bool keep>
struct LabelSum {
    static constexpr bool keeps = keep;
    static constexpr int packs_of_state = few ? 5 : 3;
    PowerSum<T> sum;
    Pack<Integer<T>> label;
    Growth<T, 1> of_label = {broadcast(T(0)), broadcast(T(0))};  // of few classes

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

// Each lane holds back its largest score so far.
template <class T>
struct Largest {
    Pack<T> largest = broadcast(T(-infinity));

    // The other one of each pair.
    template <int packs>
    FASTSOFTMAX_INLINE Pack<T, packs> held_back(Pack<T, packs> x) {
        Pack<T, packs> smaller;
        unrolled<packs>([&](int k) __attribute__((always_inline)) {
            // A NaN is summed, and is not the largest.
            set_part(smaller, k, min(largest, part(x, k)));
            largest = max(part(x, k), largest);
        });
        return smaller;
    }

    // Of one slice in all lanes: the largest of the lanes' largest ends up in each of them, these are the others.
    FASTSOFTMAX_INLINE Pack<T> smaller_lanes() {
        Pack<T> others = broadcast(T(-infinity));
        join<Pack<T>::lanes / 2>(others);
        return others;
    }

  private:
    // Pairs that are `distance` lanes apart, then their halves: the smaller ones go to the lanes of `others` from
    // 0, then from lanes / 2 on, ...
    template <int distance>
    FASTSOFTMAX_INLINE void join(Pack<T>& others) {
        const Pack<T> other = swapped<distance>(largest), smaller = min(largest, other);
        largest = max(largest, other);
        if constexpr (distance > 1) join<distance / 2>(others);
        const auto end = static_cast<Integer<T>>(Pack<T>::lanes - distance);
        others = select(less(iota<Integer<T>>(), broadcast(end)), smaller, others);
    }
};

// Of slices in the lanes, each in `lanes` sums: the largest ends up in the first, the others are summed.
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

// Sorted: sums the exponentials of all scores but the largest, which nothing keeps. So the largest of a slice and the
// rest end up apart, with all their digits, in one pass.
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

// Takes the scores of n classes from c on.
template <int n, class Exp, class Sum, class T>
FASTSOFTMAX_INLINE Pack<T, n> add_packs(Sum& sum, const Exp& exp, const Pack<T>* classes, std::ptrdiff_t c) {
    Pack<T, n> scores;
    unrolled<n>([&](int k) __attribute__((always_inline)) { set_part(scores, k, classes[k]); });
    return sum.add(exp, scores, c);
}

}  // namespace
