#include "operations.hpp"

#include <cmath>
#include <limits>
#include <memory>

#include "batch.hpp"
#include "elements.hpp"
#include "targets.hpp"

namespace fastsoftmax {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

void write_to(const Slices& slices, Role role, const Offsets& first, std::ptrdiff_t length, const double* values) {
    write_doubles(slices.arrays[role], first[role], slices.batch.last().strides[role], length, values);
}

// Logs of sums of exponentials, and their signs if asked for.
void write_logs(const Slices& slices, const Offsets& first, std::ptrdiff_t length, const double* logs) {
    write_to(slices, value, first, length, logs);
    if (!slices.has(sign)) return;
    double signs[slices_per_call];
    for (std::ptrdiff_t i = 0; i < length; ++i) signs[i] = std::isnan(logs[i]) ? nan : logs[i] == -infinity ? 0 : 1;
    write_to(slices, sign, first, length, signs);
}

// Whether a sum of so many terms, the largest of them near 1, lacks digits that cancelled.
bool cancels(const WeighedSum& sum, std::ptrdiff_t terms) {
    const bool finite = sum.some && !sum.undefined && !sum.positive && !sum.negative;
    return finite && std::fabs(sum.sum[0]) < 0x1p-40 * static_cast<double>(terms);
}

void reduce_weighed(Slices& slices) {
    const Batch batch(logsumexp, slices, 1, false);
    const std::ptrdiff_t classes = batch.classes(), block = std::min(classes, block_classes);
    const int threads = batch.threads_for(batch.count());
    Scratch memory = batch.memory_for_runs(threads, 2 * block);
    batch.for_runs(
        0, batch.units(), threads, batch.count(), memory,
        [&](const Offsets& first, std::ptrdiff_t, std::ptrdiff_t length, double* scratch) {
            double* x = scratch + batch.scratch_size();
            double* weights = x + block;
            for (std::ptrdiff_t i = 0; i < length; ++i) {
                const Offsets at = slices.batch.moved(first, i);
                const auto for_blocks = [&](const auto& body) {
                    for (std::ptrdiff_t begin = 0; begin < classes; begin += block) {
                        const std::ptrdiff_t end = std::min(begin + block, classes);
                        batch.gather_doubles(scores, at, begin, end, x);
                        batch.gather_doubles(second, at, begin, end, weights);
                        body(end - begin);
                    }
                };
                WeighedSum sum = {};
                for_blocks([&](std::ptrdiff_t count) {
                    kernels().merge_weighed(sum, kernels().measure_weighed(x, weights, count));
                });
                if (cancels(sum, classes)) {
                    ExactSum exact = {sum.shift, sum.reference, {}};
                    for_blocks([&](std::ptrdiff_t count) { kernels().add_exactly(exact, x, weights, count); });
                    sum = kernels().round_exact(exact);
                }
                double log, sign_;
                kernels().conclude_weighed(sum, &log, &sign_);
                if (sign_ < 0 && !slices.has(sign)) log = nan;
                write_to(slices, value, at, 1, &log);
                if (slices.has(sign)) write_to(slices, sign, at, 1, &sign_);
            }
        });
}

}  // namespace

void transform(Operation operation, Slices& slices, double temperature) {
    const Batch batch(operation, slices, temperature, false);
    if (batch.count() == 0 || batch.classes() == 0) return;
    const int threads = batch.threads_for(batch.count());
    if (batch.shares_slices(threads)) {
        batch.for_units(threads, [&](const Offsets& at, std::ptrdiff_t length, double* scratch) {
            batch.apply_blocks(Run{}, at, length, threads, scratch);
        });
        return;
    }
    Scratch memory = batch.memory_for_runs(threads);
    batch.for_runs(0, batch.units(), threads, batch.slices_at_once(), memory,
                   [&](const Offsets& at, std::ptrdiff_t, std::ptrdiff_t length, double* scratch) {
                       batch.apply(Run{}, at, length, scratch);
                   });
}

void reduce(Slices& slices) {
    if (slices.has(second)) return reduce_weighed(slices);
    const Batch batch(logsumexp, slices, 1, false);
    const int threads = batch.threads_for(batch.count());
    const auto reduce_run = [&](const Offsets& first, std::ptrdiff_t length, const auto& apply) {
        double logs[slices_per_call];
        Run run;
        run.value = logs;
        apply(run);
        write_logs(slices, first, length, logs);
    };
    if (batch.shares_slices(threads)) {
        batch.for_units(threads, [&](const Offsets& first, std::ptrdiff_t length, double* scratch) {
            reduce_run(first, length,
                       [&](const Run& run) { batch.apply_blocks(run, first, length, threads, scratch); });
        });
        return;
    }
    const std::ptrdiff_t most = std::min(batch.slices_at_once(), slices_per_call);
    Scratch memory = batch.memory_for_runs(threads);
    batch.for_runs(0, batch.units(), threads, most, memory,
                   [&](const Offsets& first, std::ptrdiff_t, std::ptrdiff_t length, double* scratch) {
                       reduce_run(first, length, [&](const Run& run) { batch.apply(run, first, length, scratch); });
                   });
}

}  // namespace fastsoftmax
