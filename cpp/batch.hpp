// One operation on one batch: the shape of its loop, the share of a thread, and the way of slices to a kernel and back.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "slices.hpp"
#include "threads.hpp"

namespace fastsoftmax {

// How a loop goes over slices.
enum class Loop {
    rows,           // in place: classes are contiguous
    gathered_rows,  // through a row of the thread's own: any strides, types and masks
    tiles,          // through tiles of the thread's own: few classes, or neighbouring slices contiguous
};

// Memory of one call, so much for each part of its work: on the stack where it is little, because to allocate takes
// longer than the work on a few numbers. It is taken before anything is written.
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
    // With `in_order` slices are met in C order; else in the order of their memory.
    // `whole_rows`: a kernel needs all classes of a slice at once, however many.
    Batch(Operation operation, Slices& slices, double temperature, bool in_order, bool whole_rows = false);

    std::ptrdiff_t count() const { return count_; }
    std::ptrdiff_t classes() const { return classes_; }
    Loop loop() const { return loop_; }
    bool in_float() const { return in_float_; }
    bool has_output() const { return slices_.has(output); }

    // Calls f with a null pointer to the type computed in.
    template <class F>
    void in_type(F f) const {
        if (in_float_)
            f(static_cast<float*>(nullptr));
        else
            f(static_cast<double*>(nullptr));
    }

    // Work is dealt out in units of neighbouring slices along the last batch axis; the first slice of a unit.
    std::ptrdiff_t units() const { return units_; }
    std::ptrdiff_t unit_slices() const { return unit_; }
    std::ptrdiff_t slice_of(std::ptrdiff_t unit) const {
        return unit == units_ ? count_ : unit / units_along_ * along_ + unit % units_along_ * unit_;
    }

    // The most slices that `apply` takes at once.
    std::ptrdiff_t slices_at_once() const { return at_once_; }

    // How many threads are worth waking for so many slices, and whether they should share each slice: there are too
    // few.
    int threads_for(std::ptrdiff_t slices) const;
    bool shares_slices(int threads) const;

    // Doubles of memory that each thread needs.
    std::ptrdiff_t scratch_size() const;

    // Memory for `for_runs` on so many threads. `extra`: doubles that the body needs behind what `apply` does.
    Scratch memory_for_runs(int threads, std::ptrdiff_t extra = 0) const {
        return Scratch(scratch_size() + extra, at_most_a_thread_each(threads, units_));
    }

    // Calls body(offsets, first, length, scratch) for runs of neighbouring slices that make up the units [begin, end),
    // on so many threads; each has a part of the memory.
    template <class Body>
    void for_runs(std::ptrdiff_t begin, std::ptrdiff_t end, int threads, std::ptrdiff_t most, Scratch& memory,
                  Body body) const {
        const int parts = at_most_a_thread_each(threads, end - begin);
        parallel_for(end - begin, units_per_chunk(end - begin, parts), parts,
                     [&](std::ptrdiff_t from, std::ptrdiff_t to, int thread) {
                         const std::ptrdiff_t stop = begin + to;
                         for (std::ptrdiff_t unit = begin + from; unit < stop;) {
                             const std::ptrdiff_t in_line = units_along_ - unit % units_along_;
                             const std::ptrdiff_t taken =
                                 std::min({stop - unit, in_line, std::max<std::ptrdiff_t>(most / unit_, 1)});
                             const std::ptrdiff_t first = slice_of(unit);
                             const std::ptrdiff_t last =
                                 taken == in_line ? (unit / units_along_ + 1) * along_ : slice_of(unit + taken);
                             body(slices_.batch.at(first), first, last - first, memory.get(thread));
                             unit += taken;
                         }
                     });
    }

    // Applies the kernel to up to `slices_at_once` neighbours. The run brings what is one value a slice.
    void apply(Run run, const Offsets& offsets, std::ptrdiff_t length, double* scratch) const;

    // The slices of one unit, in blocks, on so many threads. The scratch is for all of them.
    void apply_blocks(Run run, const Offsets& offsets, std::ptrdiff_t length, int threads, double* scratch) const;

    // Calls body(offsets, length, scratch) for each unit in turn: for `apply_blocks`.
    template <class Body>
    void for_units(int threads, Body body) const {
        Scratch scratch(scratch_size(), threads);
        for (std::ptrdiff_t unit = 0; unit < units_; ++unit) {
            const std::ptrdiff_t first = slice_of(unit), rest = along_ - first % along_;
            body(slices_.batch.at(first), std::min(unit_, rest), scratch.get());
        }
    }

    // Neighbouring slices of the array in `role` as the kernel wants them: rows one after another, or tiles.
    void gather(Role role, const Offsets& offsets, std::ptrdiff_t length, double* to) const;

    // Of one slice: classes [begin, end) as doubles.
    void gather_doubles(Role role, const Offsets& offsets, std::ptrdiff_t begin, std::ptrdiff_t end, double* to) const;

  private:
    const Operation operation_;
    Slices& slices_;
    const double temperature_;
    std::ptrdiff_t classes_, count_ = 0;
    bool in_float_;
    Loop loop_ = Loop::gathered_rows;
    bool in_blocks_ = false;  // slices too long to be measured, or gathered, whole
    std::ptrdiff_t unit_ = 1, along_ = 1, units_along_ = 1, units_ = 0, at_once_ = 1;

    static int at_most_a_thread_each(int threads, std::ptrdiff_t units) {
        return static_cast<int>(std::clamp<std::ptrdiff_t>(units, 1, threads));
    }
    bool has_dy() const { return operation_ == softmax_grad || operation_ == log_softmax_grad; }
    std::ptrdiff_t units_per_chunk(std::ptrdiff_t units, int threads) const;
    std::ptrdiff_t arrays_size() const;
    std::ptrdiff_t blocks_of_slice() const { return (classes_ + block_classes - 1) / block_classes; }
    static Run advanced(Run run, std::ptrdiff_t i);
    int lanes() const { return in_float_ ? 16 : 8; }
    std::ptrdiff_t width() const { return in_float_ ? 4 : 8; }
    std::ptrdiff_t in_doubles(std::ptrdiff_t elements) const;
    std::ptrdiff_t operand_size() const;

    void choose_loop(bool in_order, bool whole_rows);
    bool rows_in_place() const;
    bool takes_rows() const;
    bool one_after_another(Role role) const;
    bool keeps_exponentials() const;
    std::ptrdiff_t statistics_size() const;
    void sort_batch();
    Strided strided(Role role, const Offsets& offsets) const;
    Ahead ahead(Role role, const Offsets& offsets, std::ptrdiff_t slices) const;
    void set_arrays(Run& run, const Offsets& offsets, double* scratch) const;
    double target_score(const Run& run, const Offsets& offsets, std::ptrdiff_t i) const;
    double fill_of(Role role) const;
    template <class T>
    void gather_row(Role role, const Offsets& offsets, std::ptrdiff_t begin, std::ptrdiff_t end, T* to) const;
    template <class T>
    void scatter_row(const Offsets& offsets, std::ptrdiff_t begin, std::ptrdiff_t end, T* from) const;
    template <class T>
    void gather_tiles(Role role, const Offsets& offsets, std::ptrdiff_t length, T* to) const;
    template <class T>
    void scatter_tiles(const Offsets& offsets, std::ptrdiff_t length, T* from) const;
    template <class T>
    void fill_tiles(const Offsets& offsets, std::ptrdiff_t length, double fill, T* tiles) const;
};

}  // namespace fastsoftmax
