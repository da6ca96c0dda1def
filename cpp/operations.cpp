#include "operations.hpp"

#include <algorithm>

#include "batch.hpp"
#include "ordered_sum.hpp"
#include "targets.hpp"

namespace fastsoftmax {

void compute(Operation operation, const Slices& slices, double temperature) {
    const Kernel& kernel = kernels().of[operation];
    const Batch batch(kernel.signature, slices, {.temperature = temperature});
    const Plan& plan = batch.plan;
    if (plan.classes == 0 && kernel.signature.output) return;
    batch.for_slices(plan.at_once, 0,
                     [&](const Offsets& first, std::ptrdiff_t length, int threads, double* memory, double*) {
                         Run run;
                         batch.apply(kernel, run, first, length, memory, threads);
                         batch.scatter_results(first, length, memory);
                     });
}

bool compute_few(Operation operation, const FewRows& rows) {
    const Kernel& kernel = kernels().of[operation];
    const Signature& signature = kernel.signature;
    if (keeps_rows(signature, rows.classes, lanes_of(rows.type), rows.output == rows.scores)) return false;
    const std::ptrdiff_t bytes = bytes_of(rows.type), stride = rows.classes * bytes;
    const double divisor = rows.reduction == Reduction::mean ? static_cast<double>(rows.count) : 1;
    std::int64_t labels[FewRows::most];
    double values[FewRows::most], chosen[FewRows::most], scale[FewRows::most];
    Run run;
    run.slices = rows.count;
    run.classes = rows.classes;
    run.x = {rows.scores, stride, bytes};
    run.out = {rows.output, stride, bytes};
    if (rows.value) run.value = values;
    if (signature.labels != PerSlice::none) {
        read_indices(rows.label, 0, bytes_of(rows.label.type), rows.count, labels);
        if (find_invalid_label(labels, rows.count, rows.classes, {}) >= 0) return false;
        std::fill(chosen, chosen + rows.count, 1);
        std::fill(scale, scale + rows.count, 1 / divisor);
        run.label = labels;
        run.chosen = chosen;
        run.scale = scale;
    }
    kernel.rows[rows.type](run);
    if (!rows.value) return true;
    std::ptrdiff_t numbers = rows.count;
    if (rows.reduction != Reduction::none) {
        OrderedSum sum;
        sum.add(values, rows.count);
        values[0] = sum.total().x / divisor;
        numbers = 1;
    }
    kernels().to_double.scatter_row[rows.type](values, numbers, rows.value, bytes);
    return true;
}

}  // namespace fastsoftmax
