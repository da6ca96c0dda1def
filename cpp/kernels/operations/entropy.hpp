// The entropy of the probabilities: log(1 + rest / top), and the sum of e (max - x) / T over that of all e. Neither is
// negative, so nothing cancels, even where the entropy is near 0. Scores are read thrice, the general way.
#pragma once

#include "../general/rows.hpp"
#include "../general/tiles.hpp"

namespace {

template <class T>
struct Entropies {
    Measured<T> m;
    Wide<T> weighed;  // sum of e (max - x) / T
};

// (max - x) / T, one slice a lane; not below 0.
template <class T>
struct Distance {
    Temperature temperature;
    Pack<T> max;

    FASTSOFTMAX_INLINE Distance(const Measured<T>& m, double t) : temperature(t), max(m.max) {}
    FASTSOFTMAX_INLINE Distance(const Distance& all, int i) : temperature(all.temperature), max(spread(all.max, i)) {}

    FASTSOFTMAX_INLINE Wide<T> operator()(Pack<T> x) const {
        const Doubles<T> before = doubles<T>(temperature.before), after = doubles<T>(temperature.after);
        const Doubles<T> rest = doubles<T>(temperature.rest);
        const Doubles<T> top = to_doubles(max) * before, score = to_doubles(x) * before;
        if constexpr (sizeof(T) == 4) {
            return (top - score) * after / rest;
        } else {
            const Wide<double> exact = two_sum(top, -score);
            return Wide<double>{exact.high * after, exact.low * after} / widen(rest);
        }
    }
};

// Adds e * distance. An exponential that is 0 adds nothing, however far it is.
FASTSOFTMAX_INLINE void add_weighed(Wide<float>& sum, const Growth<float, 1>& e, Doubles<float> distance) {
    const Doubles<float> power = to_doubles(e.power), exact = multiply_add(power, to_doubles(e.growth), power);
    const Doubles<float> zero = doubles<float>(0);
    sum = sum + select(equal(exact, zero), zero, exact * distance);
}

FASTSOFTMAX_INLINE void add_weighed(Wide<double>& sum, const Growth<double, 1>& e, Wide<double> distance) {
    const Pack<double> zero = broadcast(0.0);
    const Wide<double> exact = {e.rounded(), e.lost()};
    const Wide<double> term = select(equal(exact.high, zero), widen(zero), exact * distance);
    add_to(sum, term.high);
    sum.low = sum.low + term.low;
}

template <class T>
FASTSOFTMAX_ONCE Entropies<T> measure_entropies(const Rows<T>& rows, std::ptrdiff_t begin, std::ptrdiff_t end) {
    const Measured<T> m = measure_exponentials<false>(rows, begin, end);
    const Distance<T> distances(m, rows.run.temperature);
    Wide<T> partial[Pack<T>::lanes] = {};
    with_exponential(m, rows.run.temperature, [&](auto exp) __attribute__((always_inline)) {
        for (int i = 0; i < rows.count; ++i) {
            const auto one = exp.of_lane(i);
            const Distance<T> distance(distances, i);
            partial[i] = widen(broadcast(T(0)));
            for_packs(rows.x(i), begin, end, T(-infinity),
                      [&](Pack<T> x, std::ptrdiff_t)
                          __attribute__((always_inline)) { add_weighed(partial[i], one(x), distance(x)); });
        }
    });
    return {m, folded(partial)};
}

template <class T>
FASTSOFTMAX_ONCE Entropies<T> measure_entropies(const Run& run, const Tile<T>& tile, std::ptrdiff_t begin,
                                                std::ptrdiff_t end) {
    const Measured<T> m = measure_tile_exponentials<false>(run, tile, begin, end);
    const Distance<T> distance(m, run.temperature);
    const int sums = partial_sums<T>(run.classes);
    Wide<T> partial[Pack<T>::lanes];
    for (int k = 0; k < sums; ++k) partial[k] = widen(broadcast(T(0)));
    with_exponential(m, run.temperature, [&](auto exp) __attribute__((always_inline)) {
        for (std::ptrdiff_t c = begin; c < end; ++c)
            add_weighed(partial[c & (sums - 1)], exp(tile.score(c)), distance(tile.score(c)));
    });
    return {m, folded(partial, sums)};
}

// NaN where the largest score is infinite, as its exponential is.
FASTSOFTMAX_INLINE Doubles<float> entropy_of(const Entropies<float>& all) {
    return LogTotal<float>(all.m).wide() + all.weighed / widen(all.m.top + all.m.rest);
}

// Error: 0.64 ULP seen, of the exponentials, 0.15, and the rounding.
FASTSOFTMAX_ONCE Doubles<double> entropy_of(const Entropies<double>& all) {
    const Wide<double> top = all.m.top, rest = all.m.rest;
    const Doubles<double> general = to_doubles(LogTotal<double>(all.m).wide() + all.weighed / (top + rest));
    // So far down all others are nothing in the total. Both terms as one, since the result may be subnormal and must
    // not be rounded twice.
    const Pack<double> up = broadcast(0x1p400), down = broadcast(0x1p-400);
    const Wide<double> both = rest + all.weighed;
    const Doubles<double> small = to_doubles(Wide<double>{both.high * up, both.low * up} / top) * down;
    return select(less(rest.high, top.high * broadcast(0x1p-110)), small, general);
}

template <class T>
FASTSOFTMAX_ONCE void conclude_entropies(const Run& run, std::ptrdiff_t first, int count, const Entropies<T>& all) {
    store_doubles<T>(run.value + first, entropy_of(all), count);
}

template <class T>
inline Statistics entropy_statistics(const Entropies<T>& all, int i) {
    Statistics s = statistics_of<Operation::entropy>(all.m, i);
    get_lane<T>(s.weighed, all.weighed, i);
    return s;
}

template <class T>
inline Entropies<T> entropies_of(const Statistics* slices, int count) {
    double weighed[2][Pack<T>::lanes] = {};
    for (int i = 0; i < count; ++i)
        for (int k = 0; k < 2; ++k) weighed[k][i] = slices[i].weighed[k];
    return {measured_of<Operation::entropy, T>(slices, count), load_wide<T>(weighed[0], weighed[1])};
}

// Two blocks of one slice as one: where the maximum rises, every distance of the other block grows by as much.
FASTSOFTMAX_ONCE void merge_entropies(const Run& run, Statistics& left, const Statistics& right) {
    const bool right_wins = right.max > left.max;
    const Statistics winner = right_wins ? right : left, loser = right_wins ? left : right;
    merge_exponentials(run, left, right);
    set(left.weighed, broadcast2(winner.weighed));
    if (winner.max == infinity) return;
    const Wide<double> zero = widen(broadcast(0.0));
    const bool some = loser.max > -infinity;
    const Pack<double> t = broadcast(run.temperature);
    const Wide<double> shift =
        two_sum(broadcast(some ? loser.shift : winner.shift), broadcast(-winner.shift)) / widen(t);
    const auto moved = [&](Wide<double> sum) { return rescaled(sum, shift, loser.reference - winner.reference); };
    Wide<double> sum = moved(broadcast2(loser.weighed));
    if (some) {
        const Wide<double> all = moved(broadcast2(loser.rest) + broadcast2(loser.top));
        Measured<double> m = {};
        m.max = broadcast(winner.max);
        const Wide<double> rise = Distance<double>(m, run.temperature)(broadcast(loser.max));
        sum = sum + select(equal(all.high, zero.high), zero, all * rise);
    }
    set(left.weighed, broadcast2(winner.weighed) + sum);
}

// Slices of any length: measure(begin, end) measures a block.
template <class T, class Measure>
FASTSOFTMAX_INLINE void compute_entropies(const Run& run, std::ptrdiff_t first, int count, Measure measure) {
    constexpr std::ptrdiff_t block = fastsoftmax::block_classes;
    if (run.classes <= block) return conclude_entropies<T>(run, first, count, measure(std::ptrdiff_t{0}, run.classes));
    Statistics merged[Pack<T>::lanes] = {};
    for (std::ptrdiff_t begin = 0; begin < run.classes; begin += block) {
        const Entropies<T> all = measure(begin, run.classes - begin < block ? run.classes : begin + block);
        for (int i = 0; i < count; ++i) {
            const Statistics s = entropy_statistics(all, i);
            if (begin == 0)
                merged[i] = s;
            else
                merge_entropies(run, merged[i], s);
        }
    }
    conclude_entropies<T>(run, first, count, entropies_of<T>(merged, count));
}

template <class T>
void entropy_rows(const Run& run) {
    constexpr int lanes = Pack<T>::lanes;
    for (std::ptrdiff_t first = 0; first < run.slices; first += lanes) {
        const std::ptrdiff_t left = run.slices - first;
        const Rows<T> rows = {run, first, static_cast<int>(left < lanes ? left : lanes)};
        compute_entropies<T>(run, first, rows.count, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
            return measure_entropies(rows, begin, end);
        });
    }
}

template <class T>
void entropy_tiles(const Run& run) {
    constexpr int lanes = Pack<T>::lanes;
    for (std::ptrdiff_t first = 0; first < run.slices; first += lanes) {
        const std::ptrdiff_t left = run.slices - first;
        const Tile<T> tile = {reinterpret_cast<T*>(run.x.data) + first * run.classes, {}, {}};
        compute_entropies<T>(
            run, first, static_cast<int>(left < lanes ? left : lanes),
            [&](std::ptrdiff_t begin, std::ptrdiff_t end) { return measure_entropies(run, tile, begin, end); });
    }
}

// The run's only row, in blocks.

template <class T>
Statistics measure_entropy_row(const Run& run, std::ptrdiff_t count) {
    return entropy_statistics(measure_entropies(Rows<T>{run, 0, 1}, 0, count), 0);
}

template <class T>
void conclude_entropy_row(const Run& run, const Statistics& s) {
    conclude_entropies<T>(run, 0, 1, entropies_of<T>(&s, 1));
}

}  // namespace
