// Log-probabilities of single scores, from the sums of their slices that logsumexp stores. Bits are those of
// log_softmax.
#pragma once

#include "logs.hpp"

namespace {

template <class T, class Exp>
void log_probabilities_by(const Run& run, std::ptrdiff_t numbers, std::ptrdiff_t step, const double* scores,
                          double* results) {
    using Value = typename LogSoftmax::Results<T, Exp>::Value;
    constexpr int lanes = Pack<T>::lanes;
    // Stores whole packs: the numbers after the last one are overwritten later, or are in the room after all results.
    const auto compute = [&](const Value& value, std::ptrdiff_t i) __attribute__((always_inline)) {
        store_doubles(results + i, to_doubles(value(narrow(load_doubles<T>(scores + i)))));
    };
    for (std::ptrdiff_t first = 0; first < run.slices; first += lanes) {
        const std::ptrdiff_t left = run.slices - first, count = left < lanes ? left : lanes;
        const auto part = [&](int k) __attribute__((always_inline)) {
            return load_in(part_of_sums<T>(run, first, k), 0, count, T(1));
        };
        const Measured<T> m = {part(0), {part(1), part(2)}, {part(3), part(4)}};
        const LogTotal<T> log(m);
        const auto argument = [&]() __attribute__((always_inline)) {
            if constexpr (Exp::is_fixed)
                return Exp().argument();
            else
                return Exp(m.max, run.temperature).argument();
        };
        const Value all = {{argument(), m, log}, {m, log}};
        if (numbers == 1 || step != 0) {
            for (std::ptrdiff_t j = 0; j < numbers; ++j) compute(all, j * step + first);
            continue;
        }
        for (int i = 0; i < count; ++i) {
            const Value one = {{all.log_probability, i}, {all.dominance, i}};
            for (std::ptrdiff_t j = 0; j < numbers; j += lanes) compute(one, (first + i) * numbers + j);
        }
    }
}

// At temperature 1 no score is divided, whichever reference its slice has.
template <class T>
void log_probabilities(const Run& run, std::ptrdiff_t numbers, std::ptrdiff_t step, const double* scores,
                       double* results) {
    if (run.temperature == 1) return log_probabilities_by<T, FixedExponential<T>>(run, numbers, step, scores, results);
    log_probabilities_by<T, OwnExponential<T>>(run, numbers, step, scores, results);
}

}  // namespace
