// Sampling: the exponentials of blocks, their sums, and histograms by which classes are selected. Every sum has one
// order, and weights are integers, so that no result depends on which thread computes a block.
#pragma once

#include "../exponentials.hpp"

namespace {

using fastsoftmax::Bin;
using fastsoftmax::Bracket;
using fastsoftmax::key_of;
using fastsoftmax::score_of;
using fastsoftmax::sums_reach;
using fastsoftmax::Truncation;

constexpr int packs_summed = 4;

// Calls f(packs, position) for all elements, as many packs at a time as possible; lanes beyond the end hold -inf.
template <class T, class F>
FASTSOFTMAX_INLINE void for_groups(const T* x, std::ptrdiff_t count, F f) {
    constexpr std::ptrdiff_t group = packs_summed * Pack<T>::lanes;
    std::ptrdiff_t i = 0;
    for (; i + group <= count; i += group) f(load_pack<T, packs_summed>(x + i), i);
    for_packs(x, i, count, T(-infinity), f);
}

// The rounded exponentials; as many packs side by side as registers allow.
template <class Exp, class T, int packs>
FASTSOFTMAX_INLINE Pack<T, packs> rounded_exponentials(const Exp& exp, Pack<T, packs> x) {
    if constexpr (packs == packs_at_once || packs == 1) {
        return exp(x).rounded();
    } else {
        // A loop, so that the code exists once: it may be long where a pack takes several registers.
        constexpr int lanes = Pack<T>::lanes;
        T e[packs * lanes];
        store_pack(e, x);
        for (int k = 0; k < packs; ++k) store_pack(e + k * lanes, exp(load_pack<T>(e + k * lanes)).rounded());
        return load_pack<T, packs>(e);
    }
}

template <class T>
FASTSOFTMAX_INLINE Pack<T> sum_of_packs(Pack<T, packs_summed> a) {
    return (part(a, 0) + part(a, 1)) + (part(a, 2) + part(a, 3));
}
template <class T>
FASTSOFTMAX_INLINE Pack<T> sum_of_packs(Pack<T> a) {
    return a;
}

template <class T>
FASTSOFTMAX_INLINE Pack<T> max_of_packs(Pack<T, packs_summed> a) {
    return max(max(part(a, 0), part(a, 1)), max(part(a, 2), part(a, 3)));
}
template <class T>
FASTSOFTMAX_INLINE Pack<T> max_of_packs(Pack<T> a) {
    return a;
}

template <class T>
FASTSOFTMAX_INLINE double folded_doubles(Doubles<T> sum) {
    if constexpr (sizeof(T) == 4)
        return fold_sum(part(sum, 0) + part(sum, 1));
    else
        return fold_sum(sum);
}

template <class T>
double largest_score(const T* x, std::ptrdiff_t count) {
    Pack<T> m[packs_summed];
    for (auto& one : m) one = broadcast(T(-infinity));
    for_groups(x, count, [&]<int packs>(Pack<T, packs> v, std::ptrdiff_t) __attribute__((always_inline)) {
        unrolled<packs>([&](int k) __attribute__((always_inline)) { m[k] = max(part(v, k), m[k]); });
    });
    return static_cast<double>(fold_max(max(max(m[0], m[1]), max(m[2], m[3]))));
}

// The sum of exp((x - max) / temperature) over the scores whose key is at least `least`; NaN if one of them is NaN. No
// score exceeds `max`. Error: 1.7 * 2^-23 (double 2^-52), from an exponential, that of `max`, and adding four. Unless
// `to` is null, it receives the exponentials, in any unit, and 0 for the other scores; it has room for whole packs.
// Unless `next` is null, the memory there is prefetched meanwhile, `next_bytes` for each score.
template <class T>
double mass_of_block(const T* x, std::ptrdiff_t count, double max, double temperature, std::int64_t least, T* to,
                     const std::byte* next, std::ptrdiff_t next_bytes) {
    const Pack<T> largest = broadcast(static_cast<T>(max)), lowest = broadcast(score_of<T>(least));
    const OwnExponential<T> exp(largest, temperature);
    constexpr std::uint32_t all = (1ull << Pack<T>::lanes) - 1;
    Doubles<T> sum = doubles<T>(0);
    const auto add = [&]<int packs>(Pack<T, packs> e, std::ptrdiff_t i) __attribute__((always_inline)) {
        sum = sum + to_doubles(sum_of_packs(e));
        if (to) store_pack(to + i, e);
    };
    if (least == key_of(T(-infinity))) {
        for_groups(x, count, [&]<int packs>(Pack<T, packs> v, std::ptrdiff_t i) __attribute__((always_inline)) {
            if (next)
                unrolled<packs>([&](int k) __attribute__((always_inline)) {
                    __builtin_prefetch(next + (i + k * Pack<T>::lanes) * next_bytes);
                });
            add(rounded_exponentials(exp, v), i);
        });
    } else {
        for_groups(x, count, [&]<int packs>(Pack<T, packs> v, std::ptrdiff_t i) __attribute__((always_inline)) {
            const Pack<T, packs> zero = broadcast<T, packs>(T(0));
            if (lane_bits(less(max_of_packs(v), lowest)) != all)
                add(select(less(v, repeat<packs>(lowest)), zero, rounded_exponentials(exp, v)), i);
            else if (to)
                store_pack(to + i, zero);
        });
    }
    const double total = folded_doubles<T>(sum);
    return total == 0 ? 0 : total / static_cast<double>(lane(exp(largest).rounded(), 0));
}

// Stores the scores within the bracket and their places. Returns how many there are, or a number beyond `most` if there
// are more. Unless `above` is null, it receives the sum over the scores above the bracket, as mass_of_block gives it.
template <class T>
std::ptrdiff_t collect_scores(const T* x, std::ptrdiff_t count, double max, double temperature, const Bracket& bracket,
                              std::ptrdiff_t most, T* scores, std::uint16_t* places, double* above) {
    constexpr int lanes = Pack<T>::lanes;
    constexpr std::uint32_t all = (1ull << lanes) - 1;
    const Pack<T> largest = broadcast(static_cast<T>(max));
    const Pack<T> low = broadcast(score_of<T>(bracket.low)), high = broadcast(score_of<T>(bracket.high));
    const OwnExponential<T> exp(largest, temperature);
    Doubles<T> sum = doubles<T>(0);
    std::ptrdiff_t found = 0;
    for_groups(x, count, [&]<int packs>(Pack<T, packs> v, std::ptrdiff_t i) __attribute__((always_inline)) {
        if (found > most || lane_bits(less(max_of_packs(v), low)) == all) return;
        std::uint64_t within = 0, beyond = 0;
        unrolled<packs>([&](int k) __attribute__((always_inline)) {
            const std::uint32_t bits = lane_bits(less(high, part(v, k)));
            beyond |= std::uint64_t{bits} << (k * lanes);
            within |= std::uint64_t{all & ~(lane_bits(less(part(v, k), low)) | bits)} << (k * lanes);
        });
        if (above && beyond != 0) {
            const Pack<T, packs> zero = broadcast<T, packs>(T(0)), e = rounded_exponentials(exp, v);
            sum = sum + to_doubles(sum_of_packs(select(less(repeat<packs>(high), v), e, zero)));
        }
        for (; within != 0; within &= within - 1, ++found) {
            if (found >= most) {
                found = most + 1;
                return;
            }
            const std::ptrdiff_t place = i + __builtin_ctzll(within);
            scores[found] = x[place];
            places[found] = static_cast<std::uint16_t>(place);
        }
    });
    if (above) *above = folded_doubles<T>(sum) / static_cast<double>(lane(exp(largest).rounded(), 0));
    return found;
}

// Adds the weight of each score in the bracket to the bin of its key, except for keys below `least`. If `above`,
// returns the weight of all scores above the bracket. A score weighs 1 or, by mass, its exponential relative to that of
// `max`, in units of about 2^-weight_bits.
template <class T, bool by_mass>
std::int64_t weigh_block(const T* x, std::ptrdiff_t count, double max, double temperature, const Bracket& bracket,
                         std::int64_t least, bool above, Bin* bins) {
    constexpr int lanes = Pack<T>::lanes;
    constexpr std::uint32_t all = (1ull << lanes) - 1;
    const Pack<T> low = broadcast(score_of<T>(least > bracket.low ? least : bracket.low));
    const Pack<T> high = broadcast(score_of<T>(bracket.high));
    const OwnExponential<T> exp(broadcast(static_cast<T>(max)), temperature);
    // The largest exponential is below 2^(exponent_bias + 1).
    const double unit =
        lane(power_of_two(broadcast(double(bracket.weight_bits - ExpConstants<T>::exponent_bias - 1))), 0);
    // Scores are read twice, and another thread may change them in between: the bin has to exist in any case.
    const auto bin_of = [&](T score) __attribute__((always_inline)) {
        const std::uint64_t keys = fastsoftmax::keys_between(bracket.low, key_of(score));
        const std::uint64_t most = fastsoftmax::keys_between(bracket.low, bracket.high);
        return (keys < most ? keys : most) >> bracket.shift;
    };
    Doubles<T> mass = doubles<T>(0);
    std::int64_t others = 0;
    for_groups(x, count, [&]<int packs>(Pack<T, packs> v, std::ptrdiff_t i) __attribute__((always_inline)) {
        if (lane_bits(less(max_of_packs(v), low)) == all) return;
        std::uint64_t within = 0, beyond = 0;
        unrolled<packs>([&](int k) __attribute__((always_inline)) {
            const std::uint32_t bits = lane_bits(less(high, part(v, k)));
            beyond |= std::uint64_t{bits} << (k * lanes);
            within |= std::uint64_t{all & ~(lane_bits(less(part(v, k), low)) | bits)} << (k * lanes);
        });
        if (within == 0 && !above) return;
        T exponentials[packs * lanes];
        if constexpr (by_mass) {
            const Pack<T, packs> e = rounded_exponentials(exp, v);
            const Pack<T, packs> e_beyond = select(less(repeat<packs>(high), v), e, broadcast<T, packs>(T(0)));
            mass = mass + to_doubles(sum_of_packs(e_beyond));
            store_pack(exponentials, e);
        } else {
            others += __builtin_popcountll(beyond);
        }
        for (; within != 0; within &= within - 1) {
            const int k = __builtin_ctzll(within);
            Bin& bin = bins[bin_of(x[i + k])];
            ++bin.count;
            if constexpr (by_mass)
                bin.weight += static_cast<std::int64_t>(static_cast<double>(exponentials[k]) * unit);
            else
                ++bin.weight;
        }
    });
    return by_mass ? static_cast<std::int64_t>(folded_doubles<T>(mass) * unit) : others;
}

// Slices of few classes, in tiles: a slice a lane.

FASTSOFTMAX_INLINE Mask<float> narrow_mask(Mask<double, 2> mask) { return to_int32(mask); }
FASTSOFTMAX_INLINE Mask<double> narrow_mask(Mask<double> mask) { return mask; }

// The slices of a tile that have no probabilities.
template <class T>
std::uint32_t undefined_in_tile(const T* tile, std::ptrdiff_t classes) {
    Pack<T> largest = broadcast(T(-infinity));
    Mask<T> numbers = equal(largest, largest);
    for (std::ptrdiff_t c = 0; c < classes; ++c) {
        const Pack<T> x = load_pack<T>(tile + c * Pack<T>::lanes);
        largest = max(x, largest);
        numbers = numbers & equal(x, x);
    }
    const Pack<T> end = broadcast(T(infinity));
    return ~lane_bits(numbers & less(-end, largest) & less(largest, end));
}

// Sets the exponentials of all classes that truncation excludes to 0. `top`: the largest exponential of each slice.
template <class T>
FASTSOFTMAX_INLINE void truncate_tile(const T* tile, T* kept, std::ptrdiff_t classes, Pack<T> top,
                                      const Truncation& truncation) {
    constexpr int lanes = Pack<T>::lanes;
    const Pack<T> zero = broadcast(T(0));
    // Calls f(j, mask) for every class j. The mask has the lanes in which j is more probable than c, or equally
    // probable and j < c.
    const auto for_before = [&](std::ptrdiff_t c, auto f) __attribute__((always_inline)) {
        const Pack<T> x = load_pack<T>(tile + c * lanes);
        for (std::ptrdiff_t j = 0; j < classes; ++j) {
            const Pack<T> other = load_pack<T>(tile + j * lanes);
            const Mask<T> larger = less(x, other);
            f(j, j < c ? larger | equal(x, other) : larger);
        }
    };
    if (truncation.top_k < classes)
        for (std::ptrdiff_t c = 0; c < classes; ++c) {
            Mask<T> rank = broadcast(Integer<T>(0));
            for_before(c, [&](std::ptrdiff_t, Mask<T> before) __attribute__((always_inline)) { rank = rank - before; });
            const Mask<T> left = less(rank, broadcast(static_cast<Integer<T>>(truncation.top_k)));
            store_pack(kept + c * lanes, select(left, load_pack<T>(kept + c * lanes), zero));
        }
    if (truncation.top_p < 1) {
        Doubles<T> sum = doubles<T>(0);
        for (std::ptrdiff_t c = 0; c < classes; ++c) sum = sum + to_doubles(load_pack<T>(kept + c * lanes));
        const Doubles<T> wanted = sum * doubles<T>(truncation.top_p * sums_reach<T>);
        T part[lanes * fastsoftmax::few_classes];
        for (std::ptrdiff_t c = 0; c < classes; ++c) {
            Doubles<T> before = doubles<T>(0);
            for_before(c, [&](std::ptrdiff_t j, Mask<T> more) __attribute__((always_inline)) {
                before = before + to_doubles(select(more, load_pack<T>(kept + j * lanes), zero));
            });
            const Mask<T> left = narrow_mask(less(before, wanted));
            store_pack(part + c * lanes, select(left, load_pack<T>(kept + c * lanes), zero));
        }
        copy_elements(kept, part, classes * lanes);
    }
    if (truncation.min_p > 0)
        for (std::ptrdiff_t c = 0; c < classes; ++c) {
            const Pack<T> e = load_pack<T>(kept + c * lanes);
            store_pack(kept + c * lanes, select(less(e, top * broadcast(static_cast<T>(truncation.min_p))), zero, e));
        }
}

// Draws classes of the first `count` slices of a tile, which all have probabilities: one for each random number of a
// slice.
template <class T>
void draw_from_tile(const T* tile, std::ptrdiff_t classes, int count, double temperature, const Truncation& truncation,
                    const double* uniform, std::ptrdiff_t draws, std::int64_t* to) {
    constexpr int lanes = Pack<T>::lanes;
    Pack<T> largest = broadcast(T(-infinity));
    for (std::ptrdiff_t c = 0; c < classes; ++c) largest = max(load_pack<T>(tile + c * lanes), largest);
    const OwnExponential<T> exp(largest, temperature);
    T kept[lanes * fastsoftmax::few_classes];
    for (std::ptrdiff_t c = 0; c < classes; ++c)
        store_pack(kept + c * lanes, exp(load_pack<T>(tile + c * lanes)).rounded());
    truncate_tile(tile, kept, classes, exp(largest).rounded(), truncation);
    Doubles<T> total = doubles<T>(0);
    for (std::ptrdiff_t c = 0; c < classes; ++c) total = total + to_doubles(load_pack<T>(kept + c * lanes));
    const Mask<T> one = broadcast(Integer<T>(1));
    for (std::ptrdiff_t d = 0; d < draws; ++d) {
        double numbers[lanes] = {};
        for (int i = 0; i < count; ++i) numbers[i] = uniform[i * draws + d];
        const Doubles<T> limit = load_doubles<T>(numbers) * total;
        Doubles<T> sum = doubles<T>(0);
        Mask<T> found = broadcast(Integer<T>(0));
        for (std::ptrdiff_t c = 0; c < classes; ++c) {
            sum = sum + to_doubles(load_pack<T>(kept + c * lanes));
            found = found + (one + narrow_mask(less(limit, sum)));
        }
        Integer<T> drawn[lanes];
        store_pack(drawn, found);
        for (int i = 0; i < count; ++i) {
            std::ptrdiff_t c = drawn[i];
            // A random number that rounding raises to the whole sum draws the last class that is left.
            if (c == classes)
                for (--c; c > 0 && !(kept[c * lanes + i] > 0);) --c;
            to[i * draws + d] = c;
        }
    }
}

}  // namespace
