#include "batch.hpp"

#include "targets.hpp"

namespace fastsoftmax {

namespace {

// Lines store larger results past the caches, because they and their scores would not fit there. This took a fifth off
// the time for (1000, 4096), 16 MB. Long rows prefetch the memory of such results.
constexpr std::ptrdiff_t cached_bytes = 12582912;

// How a pass computes a slice in blocks: not at all, by the fixed reference, or by the slice's own.
enum class Way { none, near, own };

// Returns the run with its per-slice pointers advanced to slice i.
Run advanced(Run run, std::ptrdiff_t i) {
    if (run.value) run.value += i;
    if (run.sign) run.sign += i;
    if (run.label) run.label += i;
    if (run.chosen) run.chosen += i;
    if (run.scale) run.scale += i;
    if (run.exponent) run.exponent += i;
    if (run.sums.data) run.sums.data += i * run.sums.slice_stride;
    if (run.second_scale) run.second_scale += i;
    if (run.second_exponent) run.second_exponent += i;
    return run;
}

}  // namespace

int Batch::threads_for(std::ptrdiff_t slices) const {
    return fastsoftmax::threads_for(slices * std::max<std::ptrdiff_t>(plan.classes, 1));
}

// How many units a thread takes at a time: an eighth of its share, so that the others do not wait long for a thread
// that is held up. They are rounded up to whole groups of slices that a kernel takes at once, unless that leaves too
// few for all threads.
std::ptrdiff_t Batch::units_per_chunk(std::ptrdiff_t units, int threads) const {
    const std::ptrdiff_t elements = plan.unit * std::max<std::ptrdiff_t>(plan.classes, 1);
    const bool gathered = plan.loop == Loop::gathered_rows || plan.loop == Loop::tiles;
    const std::ptrdiff_t group = gathered ? plan.at_once / plan.unit : 1;
    const auto chunk = std::max<std::ptrdiff_t>({elements_per_chunk / elements, units / (8 * threads), 1});
    return std::min((chunk + group - 1) / group * group, (units + threads - 1) / threads);
}

// With no more than two blocks for each thread, the slower thread has too large a share of the work: slices of 40,000
// classes lost time, and calls then kept to one thread for a while.
bool Batch::shares_slices(int threads) const {
    return threads > 1 && plan.in_blocks && plan.units < 4 * static_cast<std::ptrdiff_t>(threads) &&
           plan.blocks() > 2 * static_cast<std::ptrdiff_t>(threads);
}

Strided Batch::strided(Role role, const Offsets& at, std::ptrdiff_t origin) const {
    const Array& array = plan.slices.arrays[role];
    return {array.data + at[role] + origin * bytes_of(array.type), plan.slices.batch.last().strides[role],
            plan.slices.classes.last().strides[role]};
}

// The tiles of the array in `role` that begin `slices` slices after `first`, to be fetched by a kernel.
Ahead Batch::ahead(Role role, const Offsets& first, std::ptrdiff_t slices) const {
    const Array& array = plan.slices.arrays[role];
    const std::ptrdiff_t slice_stride = plan.slices.batch.last().strides[role];
    const std::ptrdiff_t line = plan.lanes() * bytes_of(array.type);
    const bool neighbours = slice_stride == bytes_of(array.type);
    return {array.data + first[role] + slices * slice_stride, plan.lanes() * slice_stride,
            neighbours ? plan.slices.classes.last().strides[role] : line};
}

void Batch::prepare(Run& run, const Workspace& workspace) const {
    run.classes = plan.classes;
    run.temperature = temperature_;
    run.stream = plan.count * plan.classes > cached_bytes / plan.width();
    if (!run.value) run.value = workspace.value;
    run.sign = workspace.sign;
}

void Batch::apply(const Kernel& kernel, Run& run, const Offsets& first, std::ptrdiff_t length, double* memory,
                  int threads) const {
    if (plan.in_blocks) return apply_blocks(kernel, run, first, length, threads, memory);
    const Workspace workspace = plan.workspace(memory);
    prepare(run, workspace);
    run.slices = length;
    run.kept = workspace.kept;
    if (plan.loop == Loop::rows || plan.loop == Loop::lines) {
        run.x = strided(Role::scores, first, 0);
        if (signature_.second) run.dy = strided(Role::second, first, 0);
        if (signature_.output) run.out = strided(Role::output, first, 0);
        if (plan.slices.has(Role::second_output)) run.second_out = strided(Role::second_output, first, 0);
        return (plan.loop == Loop::rows ? kernel.rows : kernel.lines)[plan.type()](run);
    }
    const std::ptrdiff_t stride = plan.classes * plan.width();
    run.x = run.out = {workspace.x, stride};
    run.dy = {workspace.second, stride};
    run.second_out = {workspace.second_output, stride};
    transport.gather(Role::scores, first, length, workspace.x);
    if (signature_.second) transport.gather(Role::second, first, length, workspace.second);
    if (plan.loop == Loop::tiles) {
        run.scores_ahead = ahead(Role::scores, first, length);
        if (signature_.second) run.dy_ahead = ahead(Role::second, first, length);
        run.results_ahead = signature_.output ? ahead(Role::output, first, 0) : run.scores_ahead;
        kernel.tiles[plan.computed()](run);
    } else {
        kernel.rows[plan.computed()](run);
    }
    if (signature_.output) transport.scatter(Role::output, first, length, workspace.x);
    if (run.second_out.data) transport.scatter(Role::second_output, first, length, workspace.second_output);
}

// The score of slice i's label; 0 if it has none.
double Batch::label_score(const Run& run, const Offsets& first, std::ptrdiff_t i) const {
    double score = 0;
    const std::int64_t label = run.label ? run.label[i] : -1;
    if (is_class(label, plan.classes))
        transport.gather_doubles(Role::scores, plan.slices.batch.moved(first, i), label, label + 1, &score);
    return score;
}

void Batch::apply_blocks(const Kernel& kernel, Run& run, const Offsets& first, std::ptrdiff_t length, int threads,
                         double* memory) const {
    const std::ptrdiff_t blocks = plan.blocks(), stride = blocks + 1;
    const Workspace shared = plan.workspace(memory);
    prepare(run, shared);
    run.slices = 1;
    const Blocks& near = kernel.near_blocks[plan.loop == Loop::rows ? plan.type() : plan.computed()];
    const Blocks& own = kernel.blocks[plan.computed()];
    // Calls body(way, run, at, statistics, block, count) for each block of each slice that `way_of` gives a way. The
    // run has the block's arrays; `statistics` points to those of the slice, followed by those of its blocks. Block b
    // of all slices comes before block b + 1, because neighbouring slices share cache lines.
    const auto for_blocks = [&](bool writes, const auto& way_of, const auto& body) {
        parallel_for(blocks, 1, threads, [&](std::ptrdiff_t first_block, std::ptrdiff_t last_block, int thread) {
            const Workspace workspace = plan.workspace(memory + thread * plan.workspace_size());
            for (std::ptrdiff_t b = first_block; b < last_block; ++b) {
                const std::ptrdiff_t begin = b * block_classes, end = std::min(begin + block_classes, plan.classes);
                for (std::ptrdiff_t i = 0; i < length; ++i) {
                    Statistics* const statistics = shared.statistics + i * stride;
                    const Way way = way_of(*statistics);
                    if (way == Way::none) continue;
                    const Offsets at = plan.slices.batch.moved(first, i);
                    std::byte* const kept = shared.kept ? shared.kept + begin * plan.width() : nullptr;
                    Run block = advanced(run, i);
                    block.origin = begin;
                    if (plan.has_blocks_in_place(way == Way::near)) {
                        block.x = strided(Role::scores, at, begin);
                        if (signature_.second) block.dy = strided(Role::second, at, begin);
                        if (signature_.output) block.out = strided(Role::output, at, begin);
                        if (plan.slices.has(Role::second_output))
                            block.second_out = strided(Role::second_output, at, begin);
                        block.kept = kept;
                    } else {
                        block.x.data = workspace.x;
                        block.out.data = kept ? kept : workspace.x;
                        block.dy.data = workspace.second;
                        block.second_out.data = workspace.second_output;
                        if (!(writes && kept)) transport.gather_block(Role::scores, at, begin, end, workspace.x);
                        if (signature_.second) transport.gather_block(Role::second, at, begin, end, workspace.second);
                    }
                    body(way, block, at, statistics, b, end - begin);
                }
            }
        });
    };
    const auto merge = [&](const Run& slice, const Blocks& k, Statistics* statistics, std::ptrdiff_t i) {
        Statistics& all = statistics[0] = statistics[1];
        for (std::ptrdiff_t b = 1; b < blocks; ++b) k.merge(slice, all, statistics[1 + b]);
        all.label_score = label_score(run, first, i);
    };
    // First by the fixed reference, where it may suit; then again, by their own, the slices that turn out to be far.
    const bool may_be_near = run.temperature == 1 && near.measure;
    bool any_far = !may_be_near;
    if (may_be_near) {
        for_blocks(
            false, [](const Statistics&) { return Way::near; },
            [&](Way, const Run& block, const Offsets&, Statistics* statistics, std::ptrdiff_t b, std::ptrdiff_t count) {
                statistics[1 + b] = near.measure(block, 0, count);
            });
        for (std::ptrdiff_t i = 0; i < length; ++i) {
            Statistics* const statistics = shared.statistics + i * stride;
            const Run slice = advanced(run, i);
            merge(slice, near, statistics, i);
            near.conclude(slice, *statistics);
            any_far |= !statistics->near;
        }
    }
    const auto is_near = [&](const Statistics& slice) { return may_be_near && slice.near; };
    const auto far_ones = [&](const Statistics& slice) { return is_near(slice) ? Way::none : Way::own; };
    if (any_far) {
        if (own.largest)
            for_blocks(false, far_ones,
                       [&](Way, const Run& block, const Offsets&, Statistics* statistics, std::ptrdiff_t b,
                           std::ptrdiff_t count) { statistics[1 + b].max = own.largest(block, count); });
        for (std::ptrdiff_t i = 0; i < length; ++i) {
            Statistics* const statistics = shared.statistics + i * stride;
            if (is_near(*statistics)) continue;
            statistics->reference = 0;
            if (own.largest) {
                statistics->reference = statistics[1].max;
                for (std::ptrdiff_t b = 1; b < blocks; ++b)
                    statistics->reference = std::max(statistics->reference, statistics[1 + b].max);
            }
        }
        for_blocks(false, far_ones,
                   [&](Way, const Run& block, const Offsets&, Statistics* statistics, std::ptrdiff_t b,
                       std::ptrdiff_t count) { statistics[1 + b] = own.measure(block, statistics->reference, count); });
        for (std::ptrdiff_t i = 0; i < length; ++i) {
            Statistics* const statistics = shared.statistics + i * stride;
            if (is_near(*statistics)) continue;
            const Run slice = advanced(run, i);
            const bool value_near = may_be_near && statistics->value_near;
            const double value = value_near ? *slice.value : 0;
            merge(slice, own, statistics, i);
            own.conclude(slice, *statistics);
            statistics->near = false;
            if (value_near) *slice.value = value;
        }
    }
    if (!signature_.output) return;
    for_blocks(
        true, [&](const Statistics& slice) { return is_near(slice) ? Way::near : Way::own; },
        [&](Way way, const Run& block, const Offsets& at, Statistics* statistics, std::ptrdiff_t,
            std::ptrdiff_t count) {
            (way == Way::near ? near : own).write(block, *statistics, count);
            if (plan.has_blocks_in_place(way == Way::near)) return;
            const std::ptrdiff_t begin = block.origin, end = begin + count;
            transport.scatter_block(Role::output, at, begin, end, block.out.data);
            if (block.second_out.data)
                transport.scatter_block(Role::second_output, at, begin, end, block.second_out.data);
        });
}

void Batch::scatter_results(const Offsets& first, std::ptrdiff_t length, double* memory) const {
    const Workspace workspace = plan.workspace(memory);
    if (plan.slices.has(Role::value)) {
        if (plan.classes == 0 || plan.slices.has(Role::mask))
            transport.set_values_of_none(first, length, workspace.value);
        transport.scatter_numbers(Role::value, first, length, workspace.value);
    }
    if (workspace.sign) transport.scatter_numbers(Role::sign, first, length, workspace.sign);
}

}  // namespace fastsoftmax
