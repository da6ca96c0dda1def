// log_softmax and logsumexp: logarithms of 1 + rest / top.
#pragma once

#include "../group.hpp"

namespace {

// From the sums of slices, one a lane.
template <class T>
struct Logarithms {
    Measured<T> m;
    std::uint32_t near;

    FASTSOFTMAX_INLINE Logarithms(std::ptrdiff_t classes, Pack<T> largest, Two<Pack<T>> rest) {
        const Growth<T, 1> top = FixedExponential<T>()(largest);
        m.max = largest;
        const Pack<T> scale = own_scale(top.rounded());
        m.top = scaled(Two<Pack<T>>{top.rounded(), top.lost()}, scale);
        m.rest = scaled(rest, scale);
        near = lanes_within(top.rounded() + rest.high, FixedRange<T>::least_of_logs * static_cast<T>(classes));
    }
};

struct LogSoftmax {
    static constexpr auto operation = Operation::log_softmax;
    static constexpr bool writes = true;
    static constexpr std::ptrdiff_t bytes_together = 8192;
    template <class T, bool few>
    using Sum = SortedSum<T, few>;

    template <class T>
    struct Results {
        std::uint32_t near;
        Two<Pack<T>> offset;
        Pack<T> max, log_probability;  // of the largest class

        Results() = default;
        FASTSOFTMAX_INLINE Results(const Group<T>& group, Pack<T> largest, Two<Pack<T>> rest) {
            const Logarithms<T> logs(group.run.classes, largest, rest);
            const LogTotal<T> log(logs.m);
            const Dominance<T> dominance(logs.m, log);
            near = logs.near;
            offset = Two<Pack<T>>{largest, broadcast(T(0))} + log.in_two();
            max = dominance.max;
            log_probability = dominance.log_probability;
        }

        struct Columns {
            Two<Pack<T>> offset;
            Pack<T> max, log_probability;
            FASTSOFTMAX_INLINE explicit Columns(const Results& all)
                : offset(all.offset), max(all.max), log_probability(all.log_probability) {}
            FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> x, std::ptrdiff_t) const {
                return select(equal(x, max), log_probability, (x - offset.high) - offset.low);
            }
        };

        struct Row {
            Two<Pack<T>> offset;
            Pack<T> max, log_probability;
            FASTSOFTMAX_INLINE Row(const Results& all, int i)
                : offset{spread(all.offset.high, i), spread(all.offset.low, i)},
                  max(spread(all.max, i)),
                  log_probability(spread(all.log_probability, i)) {}
            FASTSOFTMAX_INLINE Pack<T> operator()(Pack<T> x) const {
                return select(equal(x, max), log_probability, (x - offset.high) - offset.low);
            }
            template <class Put>
            FASTSOFTMAX_INLINE void finish(Put) const {}
        };
    };
};

struct LogSumExp {
    static constexpr auto operation = Operation::logsumexp;
    static constexpr bool writes = false;
    static constexpr std::ptrdiff_t bytes_together = 16384;
    template <class T, bool few>
    using Sum = SortedSum<T, few>;

    template <class T>
    struct Results {
        std::uint32_t near;

        Results() = default;
        FASTSOFTMAX_INLINE Results(const Group<T>& group, Pack<T> largest, Two<Pack<T>> rest) {
            const Logarithms<T> logs(group.run.classes, largest, rest);
            near = logs.near;
            conclude_logsumexp(group.run, group.first, group.count, logs.m);
        }
    };
};

}  // namespace
