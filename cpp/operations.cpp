#include "operations.hpp"

#include "batch.hpp"
#include "targets.hpp"

namespace fastsoftmax {

void compute(Operation operation, const Slices& slices, double temperature) {
    const Kernel& kernel = kernels().of[operation];
    const Batch batch(kernel.signature, slices, {.temperature = temperature});
    const Plan& plan = batch.plan;
    if (plan.classes == 0 && kernel.signature.output) return;
    const int threads = batch.threads_for(plan.count);
    if (batch.shares_slices(threads)) {
        batch.for_units(threads, [&](const Offsets& first, std::ptrdiff_t length, double* memory) {
            Run run;
            batch.apply_blocks(kernel, run, first, length, threads, memory);
            batch.scatter_results(first, length, memory);
        });
        return;
    }
    Scratch memory = batch.memory_for_runs(threads);
    batch.for_runs(0, plan.units, threads, plan.at_once, memory,
                   [&](const Offsets& first, std::ptrdiff_t, std::ptrdiff_t length, double* own) {
                       Run run;
                       batch.apply(kernel, run, first, length, own);
                       batch.scatter_results(first, length, own);
                   });
}

}  // namespace fastsoftmax
