// log_softmax and logsumexp: logarithms of 1 + rest / top.
#pragma once

#include "../group.hpp"

namespace {

// The largest exponentials of slices, one a lane, and the sums of all others, on the scale of a reference of their own.
template <class T, class Exp>
FASTSOFTMAX_INLINE Measured<T> measured(const Exp& exp, Pack<T> largest, Two<Pack<T>> rest) {
    const Growth<T, 1> e = exp(largest);
    const Two<Pack<T>> top = {e.rounded(), e.lost()};
    if constexpr (Exp::is_fixed) {
        const Pack<T> scale = own_scale(top.high);
        return {largest, scaled(top, scale), scaled(rest, scale)};
    } else {
        return {largest, exp.defined(top), rest};
    }
}

// The slices whose sums are in the range in which logarithms keep all digits.
template <class T, class Exp>
FASTSOFTMAX_INLINE std::uint32_t lanes_of_logs(const Exp& exp, std::ptrdiff_t classes, Pack<T> largest,
                                               Two<Pack<T>> rest) {
    const T least = FixedRange<T>::least_of_logs * static_cast<T>(classes);
    return lanes_within<Exp>(exp(largest).rounded() + rest.high, least);
}

struct LogSoftmax {
    static constexpr auto operation = Operation::log_softmax;
    static constexpr bool writes = true;
    static constexpr std::ptrdiff_t bytes_together = 8192;
    template <class T, bool few>
    using Sum = SortedSum<T, few>;

    template <class T, class Exp>
    struct Results {
        struct Value {
            LogProbability<T, typename Exp::Argument> log_probability;
            Dominance<T> dominance;

            FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> x, std::ptrdiff_t = 0) const {
                return dominance(x, log_probability(x));
            }
        };

        std::uint32_t near;
        Value value;

        Results() = default;
        FASTSOFTMAX_INLINE Results(const Group<T>& group, const Exp& exp, Pack<T> largest, Two<Pack<T>> rest)
            : Results(exp, measured(exp, largest, rest), lanes_of_logs(exp, group.run.classes, largest, rest)) {}

        FASTSOFTMAX_INLINE Value columns() const { return value; }
        FASTSOFTMAX_INLINE Value row(int i) const { return {{value.log_probability, i}, {value.dominance, i}}; }
        template <class Put>
        FASTSOFTMAX_INLINE void finish_row(int, Put) const {}

      private:
        FASTSOFTMAX_INLINE Results(const Exp& exp, const Measured<T>& m, std::uint32_t near_)
            : Results(exp, m, LogTotal<T>(m), near_) {}
        FASTSOFTMAX_INLINE Results(const Exp& exp, const Measured<T>& m, const LogTotal<T>& log, std::uint32_t near_)
            : near(near_), value{{exp.argument(), m, log}, {m, log}} {}
    };
};

template <class T>
FASTSOFTMAX_INLINE T* part_of_sums(const Run& run, std::ptrdiff_t first, int part) {
    return reinterpret_cast<T*>(run.sums.data + first * run.sums.slice_stride + part * run.sums.class_stride);
}
template <class T>
FASTSOFTMAX_INLINE void store_sums(const Run& run, std::ptrdiff_t first, int count, const Measured<T>& m) {
    const Pack<T> parts[fastsoftmax::parts_of_sums] = {m.max, m.top.high, m.top.low, m.rest.high, m.rest.low};
    for (int k = 0; k < fastsoftmax::parts_of_sums; ++k) store_in(part_of_sums<T>(run, first, k), 0, count, parts[k]);
}

struct LogSumExp {
    static constexpr auto operation = Operation::logsumexp;
    static constexpr bool writes = false;
    static constexpr std::ptrdiff_t bytes_together = 16384;
    template <class T, bool few>
    using Sum = SortedSum<T, few>;

    template <class T, class Exp>
    struct Results {
        std::uint32_t near;

        Results() = default;
        FASTSOFTMAX_INLINE Results(const Group<T>& group, const Exp& exp, Pack<T> largest, Two<Pack<T>> rest)
            : near(lanes_of_logs(exp, group.run.classes, largest, rest)) {
            const Measured<T> m = measured(exp, largest, rest);
            if (group.run.sums.data)
                store_sums(group.run, group.first, group.count, m);
            else
                conclude_logsumexp(group.run, group.first, group.count, m);
        }
    };
};

}  // namespace
