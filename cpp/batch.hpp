// Applies one operation to one batch: deals the plan's units out to threads, and takes them through a kernel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "plan.hpp"
#include "threads.hpp"
#include "transport.hpp"

namespace fastsoftmax {

// Memory for one call, in parts of equal size, one for each thread. If they are small they are on the stack, because an
// allocation takes longer than the work on a few numbers. Memory is taken before anything is written.
class Scratch {
  public:
    explicit Scratch(std::ptrdiff_t doubles, int parts = 1)
        : doubles_(doubles), large_(doubles > few / parts ? allocate(doubles, parts) : nullptr) {}

    double* get(int part = 0) { return (large_ ? large_.get() : small_) + part * doubles_; }

  private:
    static constexpr std::ptrdiff_t few = 1024;  // 8 KiB

    static double* allocate(std::ptrdiff_t doubles, int parts) {
        if (doubles > PTRDIFF_MAX / parts) throw std::bad_alloc();
        return new double[parts * doubles];
    }

    const std::ptrdiff_t doubles_;
    const std::unique_ptr<double[]> large_;
    alignas(64) double small_[few];
};

class Batch {
  public:
    Batch(const Signature& signature, const Slices& slices, const Demands& demands)
        : plan(signature, slices, demands),
          transport(plan, signature),
          signature_(signature),
          temperature_(demands.temperature) {}
    Batch(const Batch&) = delete;

    const Plan plan;
    const Transport transport;

    // How many threads should work on this many slices; and whether that many threads should share each slice, because
    // there are too few slices for them.
    int threads_for(std::ptrdiff_t slices) const;
    bool shares_slices(int threads) const;

    // Memory for `for_runs` on `threads` threads. Each also gets `extra` doubles for the body's own use.
    Scratch memory_for_runs(int threads, std::ptrdiff_t extra = 0) const {
        return Scratch(plan.workspace_size() + extra, at_most_a_thread_each(threads, plan.units));
    }

    // Calls body(offsets, first, length, memory), on up to `threads` threads, for runs of up to `most` neighbouring
    // slices that together make up the units [begin, end). Each thread has its own part of the memory.
    template <class Body>
    void for_runs(std::ptrdiff_t begin, std::ptrdiff_t end, int threads, std::ptrdiff_t most, Scratch& memory,
                  Body body) const {
        const int parts = at_most_a_thread_each(threads, end - begin);
        const std::ptrdiff_t chunk = parts > 1 ? units_per_chunk(end - begin, parts) : end - begin;
        const std::ptrdiff_t most_units = std::max<std::ptrdiff_t>(most / plan.unit, 1);
        parallel_for(end - begin, chunk, parts, [&](std::ptrdiff_t from, std::ptrdiff_t to, int thread) {
            const std::ptrdiff_t stop = begin + to;
            for (std::ptrdiff_t unit = begin + from; unit < stop;) {
                const std::ptrdiff_t line = unit / plan.units_along, in_line = unit % plan.units_along;
                const std::ptrdiff_t left = plan.units_along - in_line;
                const std::ptrdiff_t taken = std::min({stop - unit, left, most_units});
                const std::ptrdiff_t first = line * plan.along + in_line * plan.unit;
                const std::ptrdiff_t last = taken == left ? (line + 1) * plan.along : first + taken * plan.unit;
                body(plan.slices.batch.at(first), first, last - first, memory.get(thread));
                unit += taken;
            }
        });
    }

    // Calls body(offsets, length, memory) for one unit after the other; the memory has a workspace for each of
    // `threads` threads.
    template <class Body>
    void for_units(int threads, Body body) const {
        Scratch scratch(plan.workspace_size(), threads);
        for (std::ptrdiff_t unit = 0; unit < plan.units; ++unit) {
            const std::ptrdiff_t first = plan.slice_of(unit), rest = plan.along - first % plan.along;
            body(plan.slices.batch.at(first), std::min(plan.unit, rest), scratch.get());
        }
    }

    // Calls body(offsets, length, threads, memory, extra) for all slices: for runs of up to `most` neighbours, each on
    // one thread; or, if `shares_slices`, for one unit after the other, which the body shares among `threads` threads.
    // The parameter `extra` is the number of doubles that the body needs for itself; it gets a pointer to them.
    template <class Body>
    void for_slices(std::ptrdiff_t most, std::ptrdiff_t extra, const Body& body) const {
        const int threads = threads_for(plan.count);
        if (shares_slices(threads)) {
            Scratch of_body(extra);
            return for_units(threads, [&](const Offsets& first, std::ptrdiff_t length, double* memory) {
                body(first, length, threads, memory, of_body.get());
            });
        }
        Scratch memory = memory_for_runs(threads, extra);
        for_runs(0, plan.units, threads, most, memory,
                 [&](const Offsets& first, std::ptrdiff_t, std::ptrdiff_t length, double* own) {
                     body(first, length, 1, own, own + plan.workspace_size());
                 });
    }

    // Applies a kernel with this batch's signature to up to `at_once` neighbouring slices. The caller sets the run's
    // per-slice arrays, this function all the rest; results for which the run has no array go to the workspace. If
    // there are several threads, they share the blocks of a unit, and the memory has a workspace for each.
    void apply(const Kernel& kernel, Run& run, const Offsets& first, std::ptrdiff_t length, double* memory,
               int threads = 1) const;

    // The array in `role` as a kernel walks it, from class `origin` on.
    Strided strided(Role role, const Offsets& at, std::ptrdiff_t origin) const;

    // Moves per-slice results from the workspace to their arrays.
    void scatter_results(const Offsets& first, std::ptrdiff_t length, double* memory) const;

  private:
    const Signature& signature_;
    const double temperature_;

    static int at_most_a_thread_each(int threads, std::ptrdiff_t units) {
        return static_cast<int>(std::clamp<std::ptrdiff_t>(units, 1, threads));
    }
    std::ptrdiff_t units_per_chunk(std::ptrdiff_t units, int threads) const;
    void apply_blocks(const Kernel& kernel, Run& run, const Offsets& first, std::ptrdiff_t length, int threads,
                      double* memory) const;
    Ahead ahead(Role role, const Offsets& first, std::ptrdiff_t slices) const;
    void prepare(Run& run, const Workspace& workspace) const;
    double label_score(const Run& run, const Offsets& first, std::ptrdiff_t i) const;
};

}  // namespace fastsoftmax
