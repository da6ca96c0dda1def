// Moves numbers from arrays of any layout, type and mask to a kernel, and its results back: those with the class axis
// and those that are per slice.
#pragma once

#include "plan.hpp"

namespace fastsoftmax {

class Transport {
  public:
    Transport(const Plan& plan, const Signature& signature) : plan_(plan), signature_(signature) {}

    // Move `length` neighbouring slices, from `first` on, in the form that the plan's loop takes: rows one after
    // another, or tiles.
    void gather(Role role, const Offsets& first, std::ptrdiff_t length, void* to) const;
    void scatter(Role role, const Offsets& first, std::ptrdiff_t length, void* from) const;

    // Move classes [begin, end) of one slice.
    void gather_block(Role role, const Offsets& at, std::ptrdiff_t begin, std::ptrdiff_t end, void* to) const;
    void scatter_block(Role role, const Offsets& at, std::ptrdiff_t begin, std::ptrdiff_t end, void* from) const;
    void gather_doubles(Role role, const Offsets& at, std::ptrdiff_t begin, std::ptrdiff_t end, double* to) const;

    // Move the numbers that neighbouring slices have in an array without the class axis: one for each slice, or all
    // numbers along the own axes of one slice, then those of the next.
    void gather_numbers(Role role, const Offsets& first, std::ptrdiff_t length, double* to) const;
    void scatter_numbers(Role role, const Offsets& first, std::ptrdiff_t length, const double* from) const;
    // Replaces NaN by the signature's `value_of_none` for slices in which no entry takes part. `values` has one number
    // a slice.
    void set_values_of_none(const Offsets& first, std::ptrdiff_t length, double* values) const;
    void gather_labels(const Offsets& first, std::ptrdiff_t length, std::int64_t* to) const;

    // The same for `numbers` numbers of each slice, from `first` on along its own axis, of which there is at most one.
    void gather_labels(const Offsets& first, std::ptrdiff_t length, std::ptrdiff_t numbers, std::int64_t* to) const;
    void scatter_numbers(Role role, const Offsets& first, std::ptrdiff_t length, std::ptrdiff_t numbers,
                         const double* from) const;
    // Gathers the scores at `numbers` labels of each slice, masked or not. Where a label is no class, the score is NaN
    // and the function returns false.
    bool gather_scores_at(const Offsets& first, std::ptrdiff_t length, std::ptrdiff_t numbers,
                          const std::int64_t* labels, double* to) const;
    // Writes labels to an array of NumPy's intp.
    void scatter_labels(const Offsets& first, std::ptrdiff_t length, std::ptrdiff_t numbers,
                        const std::int64_t* labels) const;
    // Whether any entry of a slice takes part; and for each of the classes [begin, end), whether it does.
    bool any_present(const Offsets& at) const;
    void gather_presence(const Offsets& at, std::ptrdiff_t begin, std::ptrdiff_t end, bool* present) const;
    // Sets the results at masked labels to the signature's `masked_output`.
    void mask_results_at(const Offsets& first, std::ptrdiff_t length, std::ptrdiff_t numbers,
                         const std::int64_t* labels, double* results) const;

  private:
    const Plan& plan_;
    const Signature& signature_;

    const Slices& slices() const { return plan_.slices; }
    const Array& array(Role role) const { return slices().arrays[role]; }
    bool one_after_another(Role role) const;
    // The value that stands for a masked entry.
    double masked(Role role) const {
        return role == Role::scores   ? signature_.masked_scores
               : role == Role::second ? signature_.masked_second
               : role == Role::output ? signature_.masked_output
                                      : 0;
    }

    template <class T>
    void gather_row(Role role, const Offsets& at, std::ptrdiff_t begin, std::ptrdiff_t end, T* to) const;
    template <class T>
    void scatter_row(Role role, const Offsets& at, std::ptrdiff_t begin, std::ptrdiff_t end, T* from) const;
    template <class T>
    void gather_tiles(Role role, const Offsets& first, std::ptrdiff_t length, T* to) const;
    template <class T>
    void scatter_tiles(Role role, const Offsets& first, std::ptrdiff_t length, T* from) const;
    template <class T>
    void mask_tiles(const Offsets& first, std::ptrdiff_t length, double value, T* tiles) const;
    std::ptrdiff_t numbers_in(Role role) const;
    template <class F>
    void for_numbers(Role role, const Offsets& first, std::ptrdiff_t length, std::ptrdiff_t numbers, F f) const;
};

// Reads integers of any type, `stride` bytes apart. A uint64 beyond the range of int64 wraps.
void read_indices(const Array& array, std::ptrdiff_t offset, std::ptrdiff_t stride, std::ptrdiff_t count,
                  std::int64_t* to);

}  // namespace fastsoftmax
