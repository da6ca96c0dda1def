// Finds the largest scores of a slice. The scores seen so far give a threshold that few of the others pass. Groups of
// packs are first folded to the largest score of each lane, and only groups in which one of these passes are read
// again.
#pragma once

#include "../elements.hpp"

namespace {

using fastsoftmax::Pick;
using fastsoftmax::Picks;

// Stores the largest score of each lane in each group of `group` packs, a pack a group. NaNs are passed over.
template <class E>
void largest_of_groups(const void* from, std::ptrdiff_t count, std::ptrdiff_t group, void* to) {
    using T = Compute<E>;
    const E* x = static_cast<const E*>(from);
    T* largest = static_cast<T*>(to);
    const std::ptrdiff_t step = group * Pack<T>::lanes;
    for (std::ptrdiff_t i = 0; i < count; i += step, largest += Pack<T>::lanes) {
        Pack<T> m = broadcast(T(-__builtin_inf()));
        for_packs(x, i, i + step < count ? i + step : count, T(-__builtin_inf()),
                  [&](Pack<T> v, std::ptrdiff_t) __attribute__((always_inline)) { m = max(v, m); });
        store_pack(largest, m);
    }
}

template <class T>
std::ptrdiff_t count_above(const T* x, std::ptrdiff_t packs, T threshold) {
    Pack<Integer<T>> count = broadcast(Integer<T>(0));
    for (std::ptrdiff_t i = 0; i < packs; ++i)
        count = count - less(broadcast(threshold), load_pack<T>(x + i * Pack<T>::lanes));
    return fold_sum(count);
}

// Maps the bits of numbers to integers in the same order as the numbers, and back.
template <class T>
FASTSOFTMAX_INLINE Integer<T> in_order(Integer<T> bits) {
    constexpr auto least = Integer<T>{1} << (8 * sizeof(T) - 2) << 1;
    return bits < 0 ? least - bits : bits;
}
template <class T>
FASTSOFTMAX_INLINE T halfway(T low, T high) {
    const Integer<T> a = in_order<T>(same_bits<Integer<T>>(low)), b = in_order<T>(same_bits<Integer<T>>(high));
    return same_bits<T>(in_order<T>((a >> 1) + (b >> 1) + (a & b & 1)));
}
template <class T>
FASTSOFTMAX_INLINE T next_below(T x) {
    return same_bits<T>(in_order<T>(in_order<T>(same_bits<Integer<T>>(x)) - 1));
}

// The largest number that at least k lanes exceed; -inf if there is none.
template <class T>
FASTSOFTMAX_INLINE T passed_by(Pack<T> x, std::ptrdiff_t k) {
    T lanes[Pack<T>::lanes];
    store_pack(lanes, x);
    Pack<Integer<T>> above = broadcast(Integer<T>(0));
    for (const T other : lanes) above = above - less(x, broadcast(other));
    // The least of the lanes that fewer than k others exceed.
    const Mask<T> among = less(above, broadcast(static_cast<Integer<T>>(k)));
    const T least = -fold_max(select(among, -x, broadcast(T(-__builtin_inf()))));
    return least == T(-__builtin_inf()) ? least : next_below(least);
}

// Returns the threshold, raised as far as is worthwhile such that at least k of the numbers in `packs` packs pass it;
// unchanged if fewer pass already.
template <class T>
double raised(const void* from, std::ptrdiff_t packs, std::ptrdiff_t k, double threshold) {
    constexpr int lanes = Pack<T>::lanes;
    const T* x = static_cast<const T*>(from);
    T low = static_cast<T>(threshold);
    Pack<T> largest = load_pack<T>(x), smallest = largest;
    for (std::ptrdiff_t i = 1; i < packs; ++i) {
        largest = max(load_pack<T>(x + i * lanes), largest);
        smallest = min(load_pack<T>(x + i * lanes), smallest);
    }
    if (k <= lanes / 2) {
        const T passed = passed_by(largest, k);
        return static_cast<double>(low < passed ? passed : low);
    }
    if (count_above(x, packs, low) < k) return threshold;
    T high = fold_max(largest), middle = -fold_max(-smallest);
    // At least k are above `low`, fewer above `high`. Halving the distance soon narrows this down, unless the numbers
    // are of very different sizes; halving the count of floating-point numbers in between always does.
    for (int step = 0;; ++step) {
        if (!(low < middle && middle < high)) middle = halfway(low, high);
        if (!(low < middle && middle < high)) return static_cast<double>(low);
        const std::ptrdiff_t count = count_above(x, packs, middle);
        (count < k ? high : low) = middle;
        if (count >= k && count <= k + k / 8) return static_cast<double>(low);
        middle = step < 8 ? low + (high - low) / 2 : halfway(low, high);
    }
}

// Adds the scores of a block that pass the threshold to `picks`, class after class, from group g on. Returns the group
// for which there was no room, or the number of groups.
template <class E>
std::ptrdiff_t pick(const void* from, std::ptrdiff_t count, std::ptrdiff_t group, const void* largest_of_group,
                    std::ptrdiff_t origin, std::ptrdiff_t g, Picks& picks) {
    using T = Compute<E>;
    constexpr int lanes = Pack<T>::lanes;
    const E* x = static_cast<const E*>(from);
    const T* largest = static_cast<const T*>(largest_of_group);
    const Pack<T> threshold = broadcast(static_cast<T>(picks.threshold));
    const std::ptrdiff_t step = group * lanes, groups = (count + step - 1) / step;
    Pick* next = picks.begin + picks.count;
    const auto finish = [&](std::ptrdiff_t at) __attribute__((always_inline)) {
        for (Pick* p = picks.begin + picks.count; p < next; ++p) {
            const T score = to_compute(x[p->label - origin]);
            // Another thread may have written a NaN meanwhile, which could not be sorted.
            p->score = static_cast<double>(score == score ? score : T(-__builtin_inf()));
        }
        picks.count = next - picks.begin;
        return at;
    };
    // These loops avoid unpredictable branches: bits tell which groups pass, and the first class of a pack that passes
    // is always stored, but counted only if there is one.
    for (constexpr std::ptrdiff_t together = 64; g < groups; g += together) {
        std::uint64_t hot = 0;
        for (std::ptrdiff_t i = 0; i < together && g + i < groups; ++i)
            hot |= std::uint64_t{lane_bits(less(threshold, load_pack<T>(largest + (g + i) * lanes))) != 0} << i;
        for (; hot != 0; hot &= hot - 1) {
            const std::ptrdiff_t one = g + __builtin_ctzll(hot), end = (one + 1) * step;
            if (picks.begin + picks.room - next < step) return finish(one);
            for_packs(x, one * step, end < count ? end : count, T(-__builtin_inf()),
                      [&](Pack<T> v, std::ptrdiff_t i) __attribute__((always_inline)) {
                          std::uint32_t bits = lane_bits(less(threshold, v));
                          next->label = origin + i + __builtin_ctz(bits | 1u << 31);
                          next += bits != 0;
                          for (bits &= bits - 1; bits != 0; bits &= bits - 1)
                              (next++)->label = origin + i + __builtin_ctz(bits);
                      });
        }
    }
    return finish(groups);
}

// Finds the k largest scores of the slices of a tile and their labels: largest first, equal ones by rising label. The
// j-th of slice i goes to place j * step + i. If fewer than k scores are above -inf, the others are -inf.
template <class T>
void largest_of_tile(const void* from, std::ptrdiff_t classes, int count, std::ptrdiff_t k, std::ptrdiff_t step,
                     double* scores, std::int64_t* labels) {
    constexpr int lanes = Pack<T>::lanes;
    const Pack<T> none = broadcast(T(-__builtin_inf()));
    alignas(64) T left[fastsoftmax::few_classes * lanes], chosen[lanes];
    for (std::ptrdiff_t c = 0; c < classes; ++c) {
        const Pack<T> x = load_pack<T>(static_cast<const T*>(from) + c * lanes);
        store_pack(left + c * lanes, select(equal(x, x), x, none));
    }
    Pack<T> last = broadcast(T(-1));
    for (std::ptrdiff_t j = 0; j < k; ++j, scores += step, labels += step) {
        // Searches both halves of the classes side by side, because each comparison waits for the one before it.
        const std::ptrdiff_t half = (classes + 1) / 2;
        Pack<T> best[2] = {none, none}, label[2] = {broadcast(T(0)), broadcast(T(0))};
        const auto see = [&](int h, std::ptrdiff_t c) __attribute__((always_inline)) {
            const Pack<T> own = broadcast(static_cast<T>(c));
            const Pack<T> x = select(equal(own, last), none, load_pack<T>(left + c * lanes));
            store_pack(left + c * lanes, x);
            label[h] = select(less(best[h], x), own, label[h]);
            best[h] = max(best[h], x);
        };
        for (std::ptrdiff_t c = 0; c < half; ++c) {
            see(0, c);
            if (c + half < classes) see(1, c + half);
        }
        last = select(less(best[0], best[1]), label[1], label[0]);
        store_doubles<T>(scores, to_doubles(max(best[0], best[1])), count);
        store_pack(chosen, last);
        for (int i = 0; i < count; ++i) labels[i] = static_cast<std::int64_t>(chosen[i]);
    }
}

// Stores the labels of the k largest of at most `most_ranked` picks: largest first, equal ones in their present order.
// The place of each is the number of picks that come before it.
template <class T>
void rank(const Picks& picks, std::ptrdiff_t k, std::int64_t* labels) {
    constexpr int lanes = Pack<T>::lanes;
    using I = Integer<T>;
    const std::ptrdiff_t count = picks.count;
    T scores[fastsoftmax::most_ranked + lanes];
    for (std::ptrdiff_t i = 0; i < count; ++i) scores[i] = static_cast<T>(picks.begin[i].score);
    for (int i = 0; i < lanes; ++i) scores[count + i] = 0;
    for (std::ptrdiff_t first = 0; first < count; first += lanes) {
        const Pack<T> x = load_pack<T>(scores + first);
        const std::ptrdiff_t end = first + lanes < count ? first + lanes : count;
        Pack<I> place = broadcast(static_cast<I>(first));
        for (std::ptrdiff_t j = 0; j < first; ++j) place = place + less(broadcast(scores[j]), x);
        for (std::ptrdiff_t j = first; j < end; ++j) {
            const Pack<T> other = broadcast(scores[j]);
            const Mask<T> behind = less(broadcast(static_cast<I>(j - first)), iota<I>());
            place = place - (less(x, other) | (behind & equal(x, other)));
        }
        for (std::ptrdiff_t j = end; j < count; ++j) place = place - less(x, broadcast(scores[j]));
        I places[lanes];
        store_pack(places, place);
        for (std::ptrdiff_t i = first; i < end; ++i)
            if (places[i - first] < k) labels[places[i - first]] = picks.begin[i].label;
    }
}

}  // namespace
