// The operations on a batch of slices.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "slices.hpp"

namespace fastsoftmax {

// An operation that needs nothing but its arrays: from those in the roles that its signature reads to those that it
// writes; a mask is optional.
void compute(Operation operation, const Slices& slices, double temperature);

enum class Reduction { none, mean, sum };

// Dense rows of float32 or float64: classes are contiguous, and rows follow each other. They are so few that one thread
// computes them at once, in less time than a plan and its memory would take.
struct FewRows {
    static constexpr std::ptrdiff_t most = 256, most_elements = 4096;  // in the order of 10 us

    ElementType type;
    std::ptrdiff_t count, classes;  // at least one row and two classes
    std::byte* scores;
    std::byte* output = nullptr;  // in the place of the scores or elsewhere
    std::byte* value = nullptr;   // one a row, or one for all by a reduction
    Array label = {};             // one after another
    Reduction reduction = Reduction::none;
};

// What `compute` and `compute_loss` do without options, and without a plan. False, and nothing is written: a label is
// no class, or the rows need memory.
bool compute_few(Operation operation, const FewRows& rows);

// log|sum of b exp(x)| to `value` and, if present, its sign to `sign`; `second` holds b.
void compute_weighed(const Slices& slices);

// The log-probabilities at the labels of each slice, along its own axis or one, to `value`; a mask is optional. False:
// a label is no class.
bool compute_at(Operation operation, const Slices& slices, double temperature);
// Those of the largest scores of each slice, as many as its own axis has elements, to `value`, and their classes, as
// NumPy's intp, to `label`; a mask is optional.
void compute_top(Operation operation, const Slices& slices, double temperature);

// Slices in pieces. `value` holds the total of each slice; its type is the one computed in. `scores` is the next piece
// of each slice, or, for `compute_part`, any of its classes. A mask is optional.
void update_totals(const Slices& slices, double temperature);
void compute_part(Operation operation, const Slices& slices, double temperature);

// An array of totals.
struct Totals {
    Total* begin;
    std::ptrdiff_t count;
    bool in_double;
    double temperature;
};
// Merges the totals of later pieces into these.
void merge_totals(const Totals& totals, const Total* others);
// Converts totals computed in float, so that they can be continued in double.
void widen_totals(const Totals& totals);
// Writes the logsumexp or the entropy of each to an array.
void conclude_totals(Operation operation, const Totals& totals, const Array& values);

struct Loss {
    bool probabilities = false;      // `second` holds class probabilities; else `label` class indices
    const double* weight = nullptr;  // one a class
    std::optional<std::int64_t> ignore_index;
    double label_smoothing = 0;
    double temperature = 1;
    Reduction reduction = Reduction::mean;
    double upstream = 1;  // unless there is an `upstream` array
};

// The loss to `value` (one element for mean and sum) and the gradient to `output`: whichever is present. The operation
// reads labels.
void compute_loss(Operation operation, const Slices& slices, const Loss& loss);

struct Divergence {
    double temperature = 1;
    Reduction reduction = Reduction::mean;
    double upstream = 1;  // unless there is an `upstream` array
};

// The divergence of the softmax of `scores` from that of `second` to `value` (one element for mean and sum), and its
// gradient by `second` to `output`, if present.
void compute_divergence(Operation operation, const Slices& slices, const Divergence& given);

// The first label, in C order, outside [0, classes) and not `ignore_index`; -1: none. Reads the batch axes and `label`.
std::ptrdiff_t find_invalid_label(const Slices& slices, std::ptrdiff_t classes,
                                  std::optional<std::int64_t> ignore_index);
// The same of labels one after another.
std::ptrdiff_t find_invalid_label(const std::int64_t* labels, std::ptrdiff_t count, std::ptrdiff_t classes,
                                  const std::optional<std::int64_t>& ignore_index);

// Draws classes by their probabilities. Made, it has visited every slice, and knows what a draw needs of each: a few
// numbers for each block of classes.
class Sampler {
  public:
    Sampler(const Slices& slices, double temperature, const Truncation& truncation);
    ~Sampler();

    // The first slice, in C order, that has no probabilities: a NaN, +inf, or nothing that takes part; -1: none.
    std::ptrdiff_t find_undefined() const;

    // `draws` classes of each slice, in C order, from as many numbers in [0, 1).
    void draw(const double* uniform, std::ptrdiff_t draws, std::int64_t* to) const;

  private:
    class Work;
    class OfBlocks;
    class OfFewClasses;
    const std::unique_ptr<const Work> work_;
};

}  // namespace fastsoftmax
