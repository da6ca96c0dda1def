// The Kullback-Leibler divergence: prepares the scales of gradients for the kernels, and reduces the divergences.
#include <algorithm>
#include <limits>

#include "batch.hpp"
#include "operations.hpp"
#include "ordered_sum.hpp"
#include "targets.hpp"

namespace fastsoftmax {

namespace {

// Divergences to be reduced are held for this many slices at a time.
constexpr std::ptrdiff_t held_at_once = 65536;

}  // namespace

void compute_divergence(Operation operation, const Slices& slices, const Divergence& given) {
    const Kernel& kernel = kernels().of[operation];
    const bool reduced = given.reduction != Reduction::none;
    const Batch batch(kernel.signature, slices,
                      {.temperature = given.temperature, .in_order = reduced, .whole_slices = true});
    const Plan& plan = batch.plan;
    const double divisor = given.reduction == Reduction::mean ? static_cast<double>(plan.count) : 1;
    const int threads = batch.threads_for(std::min(plan.count, held_at_once));
    Scratch memory = batch.memory_for_runs(threads);
    Scratch held(reduced ? std::min(plan.count, held_at_once) : 0);
    OrderedSum sum;
    const std::ptrdiff_t step = reduced ? held_at_once / plan.unit : plan.units;
    for (std::ptrdiff_t begin = 0; begin < plan.units; begin += step) {
        const std::ptrdiff_t end = std::min(begin + step, plan.units), origin = plan.slice_of(begin);
        batch.for_runs(begin, end, threads, plan.at_once, memory,
                       [&](const Offsets& at, std::ptrdiff_t first, std::ptrdiff_t length, double* own) {
                           double scale[slices_per_call];
                           Run run;
                           if (reduced) run.value = held.get() + (first - origin);
                           if (slices.has(Role::output)) {
                               run.scale = scale;
                               if (slices.has(Role::upstream))
                                   batch.transport.gather_numbers(Role::upstream, at, length, scale);
                               else
                                   std::fill(scale, scale + length, given.upstream);
                               for (std::ptrdiff_t i = 0; i < length; ++i)
                                   scale[i] = scale[i] / divisor / given.temperature;
                           }
                           batch.apply(kernel, run, at, length, own);
                           if (!reduced) return batch.scatter_results(at, length, own);
                           if (plan.slices.has(Role::mask)) batch.transport.set_values_of_none(at, length, run.value);
                       });
        if (reduced) sum.add(held.get(), plan.slice_of(end) - origin);
    }
    if (!reduced || !slices.has(Role::value)) return;
    const double result = sum.total().x;
    const double mean = plan.count > 0 ? result / divisor : std::numeric_limits<double>::quiet_NaN();
    batch.transport.scatter_numbers(Role::value, {}, 1, given.reduction == Reduction::mean ? &mean : &result);
}

}  // namespace fastsoftmax
