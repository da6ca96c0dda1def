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

// The sign of a sum of exponentials, from its log.
double sign_of_sum(double log) { return std::isnan(log) ? nan : log == -infinity ? 0 : 1; }

void write_sum(const Slices& slices, const Offsets& at, double log, double sign_) {
    write_double(slices.arrays[value], at[value], log);
    if (slices.has(sign)) write_double(slices.arrays[sign], at[sign], sign_);
}

void reduce_weighed(Slices& slices) {
    const Batch batch(logsumexp, slices, 1, false);
    const std::ptrdiff_t classes = batch.classes(), block = std::min(classes, block_classes);
    const int threads = batch.threads_for(batch.count());
    batch.for_runs(0, batch.units(), threads, batch.count(), 2 * block,
                   [&](const Offsets& first, std::ptrdiff_t, std::ptrdiff_t length, double* scratch) {
                       double* x = scratch + batch.scratch_size();
                       double* weights = x + block;
                       for (std::ptrdiff_t i = 0; i < length; ++i) {
                           const Offsets at = slices.batch.moved(first, i);
                           WeighedSum sum;
                           for (std::ptrdiff_t begin = 0; begin < classes; begin += block) {
                               const std::ptrdiff_t end = std::min(begin + block, classes);
                               batch.gather_doubles(scores, at, begin, end, x);
                               batch.gather_doubles(second, at, begin, end, weights);
                               kernels().merge_weighed(sum, kernels().measure_weighed(x, weights, end - begin));
                           }
                           double log, sign_;
                           kernels().conclude_weighed(sum, &log, &sign_);
                           write_sum(slices, at, sign_ < 0 && !slices.has(sign) ? nan : log, sign_);
                       }
                   });
}

}  // namespace

void transform(Operation operation, Slices& slices, double temperature) {
    const Batch batch(operation, slices, temperature, false);
    if (batch.count() == 0 || batch.classes() == 0) return;
    const int threads = batch.threads_for(batch.count());
    if (batch.shares_slices(threads)) {
        const std::unique_ptr<double[]> scratch(new double[threads * batch.scratch_size()]);
        for (std::ptrdiff_t s = 0; s < batch.count(); ++s)
            batch.apply_blocks(Run{}, slices.batch.at(s), threads, scratch.get());
        return;
    }
    batch.for_runs(0, batch.units(), threads, batch.slices_at_once(), 0,
                   [&](const Offsets& at, std::ptrdiff_t, std::ptrdiff_t length, double* scratch) {
                       batch.apply(Run{}, at, length, scratch);
                   });
}

void reduce(Slices& slices) {
    if (slices.has(second)) return reduce_weighed(slices);
    const Batch batch(logsumexp, slices, 1, false);
    const int threads = batch.threads_for(batch.count());
    Run run;
    if (batch.shares_slices(threads)) {
        const std::unique_ptr<double[]> scratch(new double[threads * batch.scratch_size()]);
        double log;
        run.value = &log;
        for (std::ptrdiff_t s = 0; s < batch.count(); ++s) {
            const Offsets at = slices.batch.at(s);
            batch.apply_blocks(run, at, threads, scratch.get());
            write_sum(slices, at, log, sign_of_sum(log));
        }
        return;
    }
    const std::ptrdiff_t most = std::min(batch.slices_at_once(), slices_per_call);
    batch.for_runs(0, batch.units(), threads, most, 0,
                   [&](const Offsets& first, std::ptrdiff_t, std::ptrdiff_t length, double* scratch) {
                       double logs[slices_per_call];
                       Run part;
                       part.value = logs;
                       batch.apply(part, first, length, scratch);
                       for (std::ptrdiff_t i = 0; i < length; ++i)
                           write_sum(slices, slices.batch.moved(first, i), logs[i], sign_of_sum(logs[i]));
                   });
}

}  // namespace fastsoftmax
