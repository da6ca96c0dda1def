// Slices in pieces. Each block is measured and merged into the total of its slice, in the same order as in a call on
// the whole slice, so that both have the same sums.
#include <algorithm>
#include <cmath>
#include <limits>

#include "batch.hpp"
#include "operations.hpp"
#include "targets.hpp"

namespace fastsoftmax {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

Run run_at(double temperature) {
    Run run;
    run.slices = 1;
    run.temperature = temperature;
    return run;
}

std::int64_t nonzero(const Statistics& all) { return all.several ? 2 : all.only != 0 ? 1 : 0; }

// Measures a block of `count` classes, which is a row.
Total measured(ElementType type, std::byte* row, std::ptrdiff_t count, double temperature) {
    Run block = run_at(temperature);
    block.classes = count;
    block.x.data = row;
    const double largest = kernels().pieces.rest[type].largest(block, count);
    const Statistics rest = kernels().pieces.rest[type].measure(block, largest, count);
    const Statistics all = kernels().pieces.all[type].measure(block, largest, count);
    // If so, another exponential is above 2^-84 (double 2^-220) of the largest, and the largest is above exp(-60): by
    // the fixed reference, neither becomes 0.
    const bool several = rest.rest[0] > 0x1p-20 * static_cast<double>(count) && largest > -60;
    const auto near = temperature == 1 && !several ? kernels().pieces.near_all[type].measure : nullptr;
    return {.max = rest.max,
            .rest = {rest.rest[0], rest.rest[1]},
            .sum = {all.rest[0], all.rest[1]},
            .weighed = {rest.weighed[0], rest.weighed[1]},
            .nonzero = nonzero(all),
            .near_nonzero = near ? nonzero(near(block, 0, count)) : 2,
            .classes = 0};
}

void merge(ElementType type, Total& left, Total right, double temperature) {
    const std::int64_t classes = left.classes + right.classes;
    if (std::isnan(left.max)) {
        left = right;
    } else if (!std::isnan(right.max)) {
        const auto raise = kernels().pieces.raise[type];
        const double largest = std::max(left.max, right.max);
        raise(left, largest, temperature);
        raise(right, largest, temperature);
        const Run run = run_at(temperature);
        const auto state = [&](const Total& total, const double (&sum)[2]) {
            Statistics s = {};
            s.reference = largest;
            s.max = total.max;
            std::copy(sum, sum + 2, s.rest);
            std::copy(total.weighed, total.weighed + 2, s.weighed);
            return s;
        };
        Statistics rest = state(left, left.rest), all = state(left, left.sum);
        kernels().pieces.rest[type].merge(run, rest, state(right, right.rest));
        kernels().pieces.all[type].merge(run, all, state(right, right.sum));
        left.max = largest;
        std::copy(rest.rest, rest.rest + 2, left.rest);
        std::copy(rest.weighed, rest.weighed + 2, left.weighed);
        std::copy(all.rest, all.rest + 2, left.sum);
        left.nonzero = std::min<std::int64_t>(left.nonzero + right.nonzero, 2);
        left.near_nonzero = std::min<std::int64_t>(left.near_nonzero + right.near_nonzero, 2);
    }
    left.classes = classes;
}

// Returns the statistics with which the kernel writes or concludes a slice, by the reference that a call on the whole
// slice would use. The slice's own number goes to run.value.
Statistics concluded(const Kernel& kernel, ElementType type, const Total& total, Run run) {
    const bool all = kernel.signature.keeps_exponentials;
    run.classes = total.classes;
    if (run.temperature == 1 && kernel.near_blocks[type].conclude) {
        Statistics state = kernels().pieces.near[type](total, all, 1);
        kernel.near_blocks[type].conclude(run, state);
        if (state.near) return state;
    }
    Statistics state = kernels().pieces.own[type](total, all, run.temperature);
    kernel.blocks[type].conclude(run, state);
    state.near = false;
    return state;
}

// The logsumexp of scores divided by a temperature: minus the log-probability of a score of 0.
double scaled_logsumexp(const Kernel& kernel, ElementType type, const Total& total, double temperature) {
    if (std::isnan(total.rest[0])) return total.rest[0];
    if (std::isnan(total.max)) return -infinity;
    if (std::isinf(total.max)) return total.max;
    alignas(64) double sums[parts_of_sums];  // in the type computed in
    Run run = run_at(temperature);
    run.sums = {reinterpret_cast<std::byte*>(sums), bytes_of(type), bytes_of(type)};
    concluded(kernel, type, total, run);
    constexpr int pack = 16;
    const double score[1 + pack] = {};
    double log_probability[1 + pack];
    kernels().log_probabilities[type](run, 1, 0, score, log_probability);
    return -log_probability[0];
}

// The logsumexp or the entropy of a slice, from its total.
double value_of(const Kernel& kernel, ElementType type, const Total& total, double temperature) {
    if (kernel.signature.sign == PerSlice::one && temperature != 1)
        return scaled_logsumexp(kernel, type, total, temperature);
    double value;
    Run run = run_at(temperature);
    run.value = &value;
    concluded(kernel, type, total, run);
    return std::isnan(value) && std::isnan(total.max) ? kernel.signature.value_of_none : value;
}

Total* totals_at(const Plan& plan, const Offsets& at) {
    return reinterpret_cast<Total*>(plan.slices.arrays[Role::value].data + at[Role::value]);
}

// Calls body(block, slice, begin, end, workspace) for each block of `length` neighbouring slices: block b of all of
// them before block b + 1.
template <class Body>
void for_blocks(const Plan& plan, std::ptrdiff_t length, int threads, double* memory, const Body& body) {
    parallel_for(plan.blocks(), 1, threads, [&](std::ptrdiff_t first, std::ptrdiff_t last, int thread) {
        const Workspace workspace = plan.workspace(memory + thread * plan.workspace_size());
        for (std::ptrdiff_t b = first; b < last; ++b) {
            const std::ptrdiff_t begin = b * block_classes, end = std::min(begin + block_classes, plan.classes);
            for (std::ptrdiff_t i = 0; i < length; ++i) body(b, i, begin, end, workspace);
        }
    });
}

constexpr std::ptrdiff_t totals_at_once = 256;

ElementType computed_in(const Totals& totals) {
    return totals.in_double || !suits_float(totals.temperature) ? ElementType::float64 : ElementType::float32;
}

// Calls body(begin, end) for ranges of totals, each of which costs as much as some hundred elements.
template <class Body>
void for_totals(const Totals& totals, const Body& body) {
    const int threads = threads_for(totals.count * 256);
    parallel_for(totals.count, totals_at_once, threads,
                 [&](std::ptrdiff_t begin, std::ptrdiff_t end, int) { body(begin, end); });
}

}  // namespace

void update_totals(const Slices& slices, double temperature) {
    const Batch batch(kernels().pieces.signature, slices, {.temperature = temperature, .in_blocks = true});
    const Plan& plan = batch.plan;
    const ElementType type = plan.computed();
    const auto update = [&](const Offsets& first, std::ptrdiff_t length, int threads, double* memory, double*) {
        const std::ptrdiff_t blocks = plan.blocks();
        auto* const parts = reinterpret_cast<Total*>(plan.workspace(memory).statistics);
        for_blocks(plan, length, threads, memory,
                   [&](std::ptrdiff_t b, std::ptrdiff_t i, std::ptrdiff_t begin, std::ptrdiff_t end,
                       const Workspace& workspace) {
                       const Offsets at = plan.slices.batch.moved(first, i);
                       std::byte* row = workspace.x;
                       if (plan.has_blocks_in_place(false))
                           row = batch.strided(Role::scores, at, begin).data;
                       else
                           batch.transport.gather_block(Role::scores, at, begin, end, row);
                       parts[i * blocks + b] = measured(type, row, end - begin, temperature);
                   });
        for (std::ptrdiff_t i = 0; i < length; ++i) {
            const Offsets at = plan.slices.batch.moved(first, i);
            Total& total = *totals_at(plan, at);
            if (batch.transport.any_present(at))
                for (std::ptrdiff_t b = 0; b < blocks; ++b) merge(type, total, parts[i * blocks + b], temperature);
            total.classes += plan.classes;
        }
    };
    batch.for_slices(plan.at_once, 0, update);
}

void compute_part(Operation operation, const Slices& slices, double temperature) {
    const Kernel& kernel = kernels().of[operation];
    const Batch batch(kernel.signature, slices, {.temperature = temperature, .in_blocks = true});
    const Plan& plan = batch.plan;
    const ElementType type = plan.computed();
    if (plan.classes == 0) return;
    const auto write = [&](const Offsets& first, std::ptrdiff_t length, int threads, double* memory, double*) {
        auto* const states = plan.workspace(memory).statistics;
        for (std::ptrdiff_t i = 0; i < length; ++i)
            states[i] =
                concluded(kernel, type, *totals_at(plan, plan.slices.batch.moved(first, i)), run_at(temperature));
        for_blocks(plan, length, threads, memory,
                   [&](std::ptrdiff_t, std::ptrdiff_t i, std::ptrdiff_t begin, std::ptrdiff_t end,
                       const Workspace& workspace) {
                       const Offsets at = plan.slices.batch.moved(first, i);
                       const bool near = states[i].near, in_place = plan.has_blocks_in_place(near);
                       Run block = run_at(temperature);
                       block.classes = end - begin;
                       block.measured = false;
                       block.x.data = block.out.data = workspace.x;
                       if (in_place) {
                           block.x = batch.strided(Role::scores, at, begin);
                           block.out = batch.strided(Role::output, at, begin);
                       } else {
                           batch.transport.gather_block(Role::scores, at, begin, end, workspace.x);
                       }
                       const Table<ElementType, Blocks, floating_types>& blocks =
                           near ? kernel.near_blocks : kernel.blocks;
                       blocks[in_place ? plan.type() : type].write(block, states[i], end - begin);
                       if (!in_place) batch.transport.scatter_block(Role::output, at, begin, end, workspace.x);
                   });
    };
    batch.for_slices(plan.at_once, 0, write);
}

void merge_totals(const Totals& totals, const Total* others) {
    for_totals(totals, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        for (std::ptrdiff_t i = begin; i < end; ++i)
            merge(computed_in(totals), totals.begin[i], others[i], totals.temperature);
    });
}

void widen_totals(const Totals& totals) {
    if (computed_in(totals) == ElementType::float64) return;
    for_totals(totals, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        for (std::ptrdiff_t i = begin; i < end; ++i) kernels().pieces.widen(totals.begin[i], totals.temperature);
    });
}

void conclude_totals(Operation operation, const Totals& totals, const Array& values) {
    const Kernel& kernel = kernels().of[operation];
    const ElementType type = computed_in(totals);
    for_totals(totals, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        double results[totals_at_once];
        for (std::ptrdiff_t first = begin; first < end; first += totals_at_once) {
            const std::ptrdiff_t count = std::min(end - first, totals_at_once), bytes = bytes_of(values.type);
            for (std::ptrdiff_t i = 0; i < count; ++i)
                results[i] = value_of(kernel, type, totals.begin[first + i], totals.temperature);
            kernels().to_double.scatter_row[values.type](results, count, values.data + first * bytes, bytes);
        }
    });
}

}  // namespace fastsoftmax
