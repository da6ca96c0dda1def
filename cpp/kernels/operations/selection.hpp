// The largest scores of a slice. What has been met so far gives a threshold that few of the others pass: groups of packs
// are first folded to the largest score of each lane, and only those groups are looked at whose largest pass.
#pragma once

#include "../elements.hpp"

namespace {

using fastsoftmax::Pick;
using fastsoftmax::Picks;

// The largest score of each lane in each group of `group` packs, a pack a group. A NaN is not the largest.
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

// Halfway between two numbers in the order of all numbers.
template <class T>
T halfway(T low, T high) {
    constexpr auto least = Integer<T>{1} << (8 * sizeof(T) - 2) << 1;
    const auto turned = [](Integer<T> bits) { return bits < 0 ? least - bits : bits; };
    const Integer<T> a = turned(same_bits<Integer<T>>(low)), b = turned(same_bits<Integer<T>>(high));
    return same_bits<T>(turned((a >> 1) + (b >> 1) + (a & b & 1)));
}

// The threshold, raised as far as is worth while if at least k of the numbers in `packs` packs pass: at least k still do.
template <class T>
double raised(const void* from, std::ptrdiff_t packs, std::ptrdiff_t k, double threshold) {
    constexpr int lanes = Pack<T>::lanes;
    const T* x = static_cast<const T*>(from);
    T low = static_cast<T>(threshold);
    if (count_above(x, packs, low) < k) return threshold;
    Pack<T> largest = load_pack<T>(x), smallest = largest;
    for (std::ptrdiff_t i = 1; i < packs; ++i) {
        largest = max(load_pack<T>(x + i * lanes), largest);
        smallest = min(load_pack<T>(x + i * lanes), smallest);
    }
    T high = fold_max(largest), middle = -fold_max(-smallest);
    // At least k are above `low`, fewer above `high`. Halves of the distance are soon there; if numbers are of very
    // different sizes, halves of the order are, whatever they are.
    for (int step = 0;; ++step) {
        if (!(low < middle && middle < high)) middle = halfway(low, high);
        if (!(low < middle && middle < high)) return static_cast<double>(low);
        const std::ptrdiff_t count = count_above(x, packs, middle);
        (count < k ? high : low) = middle;
        if (count >= k && count <= k + k / 8) return static_cast<double>(low);
        middle = step < 8 ? low + (high - low) / 2 : halfway(low, high);
    }
}

// Adds the scores of a block that pass the threshold, class after class, from a group on; returns the group for which
// there was no room, or how many there are.
template <class E>
std::ptrdiff_t pick(const void* from, std::ptrdiff_t count, std::ptrdiff_t group, const void* largest_of_group,
                    std::ptrdiff_t origin, std::ptrdiff_t g, Picks& picks) {
    using T = Compute<E>;
    constexpr int lanes = Pack<T>::lanes;
    const E* x = static_cast<const E*>(from);
    const T* largest = static_cast<const T*>(largest_of_group);
    const Pack<T> threshold = broadcast(static_cast<T>(picks.threshold));
    const std::ptrdiff_t step = group * lanes;
    for (; g * step < count; ++g) {
        if (lane_bits(less(threshold, load_pack<T>(largest + g * lanes))) == 0) continue;
        if (picks.room - picks.count < step) return g;
        const std::ptrdiff_t end = (g + 1) * step;
        for_packs(x, g * step, end < count ? end : count, T(-__builtin_inf()),
                  [&](Pack<T> v, std::ptrdiff_t i) __attribute__((always_inline)) {
                      for (std::uint32_t bits = lane_bits(less(threshold, v)); bits != 0; bits &= bits - 1) {
                          const std::ptrdiff_t c = i + __builtin_ctz(bits);
                          picks.begin[picks.count++] = {static_cast<double>(to_compute(x[c])), origin + c};
                      }
                  });
    }
    return g;
}

}  // namespace
