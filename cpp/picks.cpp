// Log-probabilities of picked classes. Slices are summed as for logsumexp; the log-probability of any score follows
// from these sums.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "batch.hpp"
#include "operations.hpp"
#include "targets.hpp"

namespace fastsoftmax {

namespace {

// Picks that are taken at a time.
constexpr std::ptrdiff_t picks_at_once = 1024;
constexpr std::ptrdiff_t most_lanes = 16;
// Bytes of scores that are summed before the largest are selected from them, in a second pass, which finds them in a
// cache.
constexpr std::ptrdiff_t selected_at_once = 131072;

// The sums of the slices of a run, in the type computed in.
struct Sums {
    alignas(64) double numbers[parts_of_sums * slices_per_call];

    Strided of(const Plan& plan) {
        return {reinterpret_cast<std::byte*>(numbers), plan.width(), slices_per_call * plan.width()};
    }
};

// Sums all slices, and calls body(run, first, workspace) for runs of up to `most` neighbouring ones. The run has their
// sums, workspace.extra has `extra` doubles for the body.
template <class Body>
void for_summed(const Batch& batch, const Kernel& kernel, std::ptrdiff_t most, std::ptrdiff_t extra, Body body) {
    batch.for_slices(std::min(most, batch.plan.at_once), extra,
                     [&](const Offsets& first, std::ptrdiff_t length, int threads, double* memory, double* of_body) {
                         Sums sums;
                         Run run;
                         run.sums = sums.of(batch.plan);
                         batch.apply(kernel, run, first, length, memory, threads);
                         run.slices = length;
                         Workspace workspace = batch.plan.workspace(memory);
                         workspace.extra = of_body;
                         body(run, first, workspace);
                     });
}

// Computes the log-probabilities at `numbers` labels of each of `count` slices, from the run's slice i on. `scores` and
// `results` need room for a pack more. Returns false if a label is no class.
bool log_probabilities_at(const Batch& batch, Run run, const Offsets& at, std::ptrdiff_t i, std::ptrdiff_t count,
                          std::ptrdiff_t numbers, const std::int64_t* labels, double* scores, double* results) {
    const bool all_are_classes = batch.transport.gather_scores_at(at, count, numbers, labels, scores);
    std::fill_n(scores + count * numbers, most_lanes, 0);
    run.sums.data += i * run.sums.slice_stride;
    run.slices = count;
    kernels().log_probabilities[batch.plan.computed()](run, numbers, 0, scores, results);
    batch.transport.mask_results_at(at, count, numbers, labels, results);
    return all_are_classes;
}

// Selects the k largest scores of a slice, which it takes block by block.
class Selector {
  public:
    Selector(const Plan& plan, std::ptrdiff_t k, double* memory)
        : selection_(kernels().selection), computed_(plan.computed()), lanes_(plan.lanes()), k_(k), largest_(memory) {
        picks_.begin = reinterpret_cast<Pick*>(memory + size_of_largest(plan));
        picks_.room = room(plan, k);
    }

    // The memory that it needs, in doubles.
    static std::ptrdiff_t memory(const Plan& plan, std::ptrdiff_t k) {
        return size_of_largest(plan) + (room(plan, k) + 1) * static_cast<std::ptrdiff_t>(sizeof(Pick) / sizeof(double));
    }

    void begin() {
        picks_.count = 0;
        in_order_ = true;
        picks_.threshold = -std::numeric_limits<double>::infinity();
    }

    // Takes `count` classes, from `origin` on, as a row.
    void take(ElementType type, const void* row, std::ptrdiff_t count, std::ptrdiff_t origin) {
        const std::ptrdiff_t packs = (count + lanes_ - 1) / lanes_;
        const std::ptrdiff_t group =
            std::clamp<std::ptrdiff_t>(std::min(4 * packs / k_, packs / 8), 1, most_packs_of_group);
        const std::ptrdiff_t groups = (packs + group - 1) / group;
        selection_.largest_of_groups[type](row, count, group, largest_);
        picks_.threshold = selection_.raised[type](largest_, groups, k_, picks_.threshold);
        for (std::ptrdiff_t g = 0;;) {
            g = selection_.pick[type](row, count, group, largest_, origin, g, picks_);
            if (g == groups) return;
            keep_largest();
        }
    }

    // Writes the labels by falling score, those of equal scores by rising label, and none of -inf or NaN. Returns how
    // many there are, at most k.
    std::ptrdiff_t finish(std::int64_t* labels) {
        if (in_order_ && picks_.count <= most_ranked) {
            selection_.rank[computed_](picks_, k_, labels);
            return std::min(picks_.count, k_);
        }
        if (picks_.count > k_) keep_largest();
        std::sort(picks_.begin, picks_.begin + picks_.count, precedes);
        for (std::ptrdiff_t j = 0; j < picks_.count; ++j) labels[j] = picks_.begin[j].label;
        return picks_.count;
    }

  private:
    static constexpr std::ptrdiff_t most_packs_of_group = 16;

    const Selection& selection_;
    const ElementType computed_;
    const std::ptrdiff_t lanes_, k_;
    double* const largest_;
    Picks picks_;
    bool in_order_;  // whether picks are in the order of their labels

    // In doubles: a pack for each pack of a block, since a group has at least one.
    static std::ptrdiff_t size_of_largest(const Plan& plan) {
        const std::ptrdiff_t classes = std::min(plan.classes, block_classes);
        return (classes + plan.lanes() - 1) / plan.lanes() * 8;
    }
    // In picks: for a group, and for twice as many as are kept, so that keep_largest drops enough to be worth its work.
    static std::ptrdiff_t room(const Plan& plan, std::ptrdiff_t k) {
        const std::ptrdiff_t packs = (plan.classes + plan.lanes() - 1) / plan.lanes();
        return std::min(2 * k, plan.classes) + std::min(most_packs_of_group, packs) * plan.lanes();
    }

    static bool precedes(const Pick& a, const Pick& b) {
        return a.score > b.score || (a.score == b.score && a.label < b.label);
    }

    void keep_largest() {
        Pick* const last = picks_.begin + k_ - 1;
        std::nth_element(picks_.begin, last, picks_.begin + picks_.count, precedes);
        picks_.count = k_;
        in_order_ = false;
        picks_.threshold = std::max(picks_.threshold, last->score);
    }
};

// Fills up `labels`, which has n, to k: first with classes that take part (all, or only those with a score of -inf or
// NaN), then with masked ones, both in the order of classes.
void fill_up(const Transport& transport, const Offsets& at, std::ptrdiff_t classes, bool all, std::ptrdiff_t n,
             std::ptrdiff_t k, std::int64_t* labels) {
    std::int64_t some[picks_at_once];
    double scores[picks_at_once];
    bool present[picks_at_once];
    for (const bool wanted : {true, false})
        for (std::ptrdiff_t begin = 0; begin < classes && n < k; begin += picks_at_once) {
            const std::ptrdiff_t count = std::min(classes - begin, picks_at_once);
            for (std::ptrdiff_t i = 0; i < count; ++i) some[i] = begin + i;
            transport.gather_presence(at, begin, begin + count, present);
            transport.gather_scores_at(at, 1, count, some, scores);
            for (std::ptrdiff_t i = 0; i < count && n < k; ++i) {
                const bool left = !wanted || all || !(scores[i] > -std::numeric_limits<double>::infinity());
                if (present[i] == wanted && left) labels[n++] = begin + i;
            }
        }
}

}  // namespace

bool compute_at(Operation operation, const Slices& slices, double temperature) {
    const Kernel& kernel = kernels().of[operation];
    const Batch batch(kernel.signature, slices, {.temperature = temperature});
    const Plan& plan = batch.plan;
    const std::ptrdiff_t numbers = plan.slices.own.size();
    if (numbers == 0 || plan.count == 0) return true;
    if (plan.classes == 0) return false;
    // Takes the labels of whole slices at a time, or some of one slice.
    const std::ptrdiff_t most = std::min(numbers, picks_at_once), together = picks_at_once / most;
    std::atomic<bool> all_are_classes = true;
    for_summed(batch, kernel, plan.at_once, 0, [&](const Run& run, const Offsets& first, const Workspace&) {
        std::int64_t labels[picks_at_once];
        double scores[picks_at_once + most_lanes], results[picks_at_once + most_lanes];
        for (std::ptrdiff_t i = 0; i < run.slices; i += together)
            for (std::ptrdiff_t j = 0; j < numbers; j += most) {
                const std::ptrdiff_t count = std::min(run.slices - i, together), some = std::min(numbers - j, most);
                const Offsets at = plan.slices.own.moved(plan.slices.batch.moved(first, i), j);
                batch.transport.gather_labels(at, count, some, labels);
                if (!log_probabilities_at(batch, run, at, i, count, some, labels, scores, results))
                    all_are_classes.store(false, std::memory_order_relaxed);
                batch.transport.scatter_numbers(Role::value, at, count, some, results);
            }
    });
    return all_are_classes;
}

void compute_top(Operation operation, const Slices& slices, double temperature) {
    const Kernel& kernel = kernels().of[operation];
    const Batch batch(kernel.signature, slices, {.temperature = temperature, .as_rows = true});
    const Plan& plan = batch.plan;
    const Transport& transport = batch.transport;
    const std::ptrdiff_t k = plan.slices.own.size(), classes = plan.classes, lanes = plan.lanes();
    const bool few = plan.loop == Loop::tiles && classes <= few_classes;
    const std::ptrdiff_t unit = few ? lanes : 1;
    const std::ptrdiff_t together = std::clamp(picks_at_once / k / unit * unit, unit, plan.at_once);
    const std::ptrdiff_t row_bytes = classes * bytes_of(plan.loop == Loop::rows ? plan.type() : plan.computed());
    const std::ptrdiff_t of_row = (std::min(classes, block_classes) * plan.width() + 7) / 8;
    const std::ptrdiff_t of_picks = together * k + most_lanes;
    // Gives the selector the run's slice i, which is at `at`; `row` has room for a block.
    const auto select = [&](Selector& selector, const Workspace& workspace, std::ptrdiff_t i, const Offsets& at,
                            double* row) {
        selector.begin();
        if (plan.loop == Loop::tiles) {
            plan.in_type([&]<class T> {
                const T* from = reinterpret_cast<const T*>(workspace.x) + i / lanes * classes * lanes + i % lanes;
                T* to = reinterpret_cast<T*>(row);
                for (std::ptrdiff_t c = 0; c < classes; ++c) to[c] = from[c * lanes];
            });
            return selector.take(plan.computed(), row, classes, 0);
        }
        if (plan.loop == Loop::gathered_rows && !plan.in_blocks)
            return selector.take(plan.computed(), workspace.x + i * row_bytes, classes, 0);
        for (std::ptrdiff_t begin = 0; begin < classes; begin += block_classes) {
            const std::ptrdiff_t end = std::min(begin + block_classes, classes);
            if (plan.loop == Loop::rows) {
                const Array& scores = plan.slices.arrays[Role::scores];
                const std::byte* from = scores.data + at[Role::scores] + begin * bytes_of(scores.type);
                selector.take(scores.type, from, end - begin, begin);
            } else {
                transport.gather_block(Role::scores, at, begin, end, row);
                selector.take(plan.computed(), row, end - begin, begin);
            }
        }
    };
    const std::ptrdiff_t most = std::max<std::ptrdiff_t>(selected_at_once / row_bytes, 1);
    const std::ptrdiff_t extra = 3 * of_picks + of_row + Selector::memory(plan, k);
    for_summed(batch, kernel, most, extra, [&](const Run& run, const Offsets& first, const Workspace& workspace) {
        double *const results = workspace.extra, *const scores = results + of_picks;
        auto* const labels = reinterpret_cast<std::int64_t*>(scores + of_picks);
        double* const row = scores + 2 * of_picks;
        Selector selector(plan, k, row + of_row);
        const auto take_some = [&](std::ptrdiff_t i, std::ptrdiff_t count) {
            const auto slice = [&](std::ptrdiff_t s) { return plan.slices.batch.moved(first, i + s); };
            std::fill_n(labels, count * k, 0);  // where another thread changes the scores, some may not be found
            for (std::ptrdiff_t s = 0; s < count; ++s) {
                select(selector, workspace, i + s, slice(s), row);
                const std::ptrdiff_t n = selector.finish(labels + s * k);
                if (n < k) fill_up(transport, slice(s), classes, false, n, k, labels + s * k);
            }
            log_probabilities_at(batch, run, slice(0), i, count, k, labels, scores, results);
            for (std::ptrdiff_t s = 0; s < count; ++s) {
                if (!std::isnan(results[s * k])) continue;
                fill_up(transport, slice(s), classes, true, 0, k, labels + s * k);
                // Writes to `scores` first, because whole packs are stored.
                log_probabilities_at(batch, run, slice(s), i + s, 1, k, labels + s * k, scores, scores);
                std::copy(scores, scores + k, results + s * k);
            }
            transport.scatter_labels(slice(0), count, k, labels);
            transport.scatter_numbers(Role::value, slice(0), count, k, results);
        };
        // Takes slices of few classes, in tiles. Results begin with the first picks of all slices, then come the second
        // ones, and so on. Slices with fewer than k finite scores are then done again one by one.
        const auto take_tiles = [&](std::ptrdiff_t i, std::ptrdiff_t count) {
            for (std::ptrdiff_t t = 0; t < count; t += lanes)
                kernels().selection.largest_of_tile[plan.computed()](workspace.x + (i + t) * row_bytes, classes,
                                                                     static_cast<int>(std::min(count - t, lanes)), k,
                                                                     together, scores + t, labels + t);
            Run some = run;
            some.sums.data += i * run.sums.slice_stride;
            some.slices = count;
            kernels().log_probabilities[plan.computed()](some, k, together, scores, results);
            const Offsets at = plan.slices.batch.moved(first, i);
            for (std::ptrdiff_t j = 0; j < k; ++j) {
                transport.scatter_labels(plan.slices.own.moved(at, j), count, 1, labels + j * together);
                transport.scatter_numbers(Role::value, plan.slices.own.moved(at, j), count, 1, results + j * together);
            }
            bool lacks[picks_at_once];
            for (std::ptrdiff_t s = 0; s < count; ++s)
                lacks[s] = std::isnan(results[s]) || std::isinf(scores[(k - 1) * together + s]);
            for (std::ptrdiff_t s = 0; s < count; ++s)
                if (lacks[s]) take_some(i + s, 1);
        };
        for (std::ptrdiff_t i = 0; i < run.slices; i += together) {
            const std::ptrdiff_t count = std::min(run.slices - i, together);
            if (few)
                take_tiles(i, count);
            else
                take_some(i, count);
        }
    });
}

}  // namespace fastsoftmax
