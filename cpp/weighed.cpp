// Logsumexp with weights. It has a loop of its own over scores and weights, because float cannot hold their products.
#include <algorithm>
#include <cmath>
#include <limits>

#include "batch.hpp"
#include "operations.hpp"
#include "targets.hpp"

namespace fastsoftmax {

namespace {

// Whether a sum of `terms` terms, the largest of them near 1, has lost digits because terms cancelled.
bool cancels(const WeighedSum& sum, std::ptrdiff_t terms) {
    const bool finite = sum.some && !sum.undefined && !sum.positive && !sum.negative;
    return finite && std::fabs(sum.sum[0]) < 0x1p-40 * static_cast<double>(terms);
}

}  // namespace

void compute_weighed(const Slices& slices) {
    const WeighedKernel& kernel = kernels().weighed;
    const Batch batch(kernel.signature, slices, {});
    const Plan& plan = batch.plan;
    const bool with_sign = slices.has(Role::sign);
    const std::ptrdiff_t block = std::min(plan.classes, block_classes);
    const int threads = batch.threads_for(plan.count);
    Scratch memory = batch.memory_for_runs(threads, 2 * block);
    const auto compute_run = [&](const Offsets& first, std::ptrdiff_t, std::ptrdiff_t length, double* own) {
        const Workspace workspace = plan.workspace(own);
        double *x = workspace.extra, *weights = x + block;
        for (std::ptrdiff_t i = 0; i < length; ++i) {
            const Offsets at = plan.slices.batch.moved(first, i);
            const auto for_blocks = [&](const auto& body) {
                for (std::ptrdiff_t begin = 0; begin < plan.classes; begin += block) {
                    const std::ptrdiff_t end = std::min(begin + block, plan.classes);
                    batch.transport.gather_doubles(Role::scores, at, begin, end, x);
                    batch.transport.gather_doubles(Role::second, at, begin, end, weights);
                    body(end - begin);
                }
            };
            WeighedSum sum = {};
            for_blocks([&](std::ptrdiff_t count) { kernel.merge(sum, kernel.measure(x, weights, count)); });
            if (cancels(sum, plan.classes)) {
                ExactSum exact = {sum.shift, sum.reference, {}};
                for_blocks([&](std::ptrdiff_t count) { kernel.add_exactly(exact, x, weights, count); });
                sum = kernel.round_exact(exact);
            }
            double sign;
            double& log = workspace.value[i];
            kernel.conclude(sum, &log, &sign);
            if (with_sign)
                workspace.sign[i] = sign;
            else if (sign < 0)
                log = std::numeric_limits<double>::quiet_NaN();
        }
        batch.scatter_results(first, length, own);
    };
    batch.for_runs(0, plan.units, threads, plan.at_once, memory, compute_run);
}

}  // namespace fastsoftmax
