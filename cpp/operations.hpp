// The operations on a batch of slices.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "slices.hpp"

namespace fastsoftmax {

// Computes an operation that has no options but the temperature: reads the arrays in the roles that its signature
// reads, and writes to those in the roles that it writes. A mask is optional.
void compute(Operation operation, const Slices& slices, double temperature);

enum class Reduction { none, mean, sum };

// Dense rows of float32 or float64: classes are contiguous, and rows follow each other. They are so few that one thread
// computes them in a single kernel call, and a plan and its memory would only add to the time.
struct FewRows {
    static constexpr std::ptrdiff_t most = 256, most_elements = 4096;  // about 10 us of work

    ElementType type;
    std::ptrdiff_t count, classes;  // at least one row and two classes
    std::byte* scores;
    std::byte* output = nullptr;  // may be that of the scores
    std::byte* value = nullptr;   // one number a row; with a reduction, one for all
    Array label = {};             // contiguous
    Reduction reduction = Reduction::none;
};

// Does what `compute` and `compute_loss` do without options, but without a plan. Returns false, without writing
// anything, if a label is no class or the rows need memory.
bool compute_few(Operation operation, const FewRows& rows);

// Writes log|sum of b exp(x)| to `value` and the sum's sign to `sign`, if that is present; b is in `second`.
void compute_weighed(const Slices& slices);

// Writes the log-probabilities at the labels of each slice (one, or as many as the own axis has) to `value`. A mask is
// optional. Returns false if a label is no class.
bool compute_at(Operation operation, const Slices& slices, double temperature);
// Writes the log-probabilities of the k largest scores of each slice to `value` and their classes, as NumPy's intp, to
// `label`, where k is the size of the own axis. A mask is optional.
void compute_top(Operation operation, const Slices& slices, double temperature);

// Slices in pieces. `value` holds the total of each slice; its type is the one computed in. `update_totals` adds the
// next piece of each slice, in `scores`; `compute_part` writes the results for any classes of each slice. A mask is
// optional.
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

// Writes the loss to `value` (one element for mean and sum), the gradient to `output` and the Hessian to
// `second_output`, whichever are present. The operation is one that reads labels.
void compute_loss(Operation operation, const Slices& slices, const Loss& loss);

struct Divergence {
    double temperature = 1;
    Reduction reduction = Reduction::mean;
    double upstream = 1;  // unless there is an `upstream` array
};

// Writes KL(softmax(scores / T) || softmax(second / T)) to `value` (one element for mean and sum) and its gradient by
// `second` to `output`, if that is present.
void compute_divergence(Operation operation, const Slices& slices, const Divergence& given);

// Returns the position, in C order, of the first label that is neither in [0, classes) nor `ignore_index`; -1 if there
// is none. Uses only the batch axes and `label`.
std::ptrdiff_t find_invalid_label(const Slices& slices, std::ptrdiff_t classes,
                                  std::optional<std::int64_t> ignore_index);
// The same for contiguous labels.
std::ptrdiff_t find_invalid_label(const std::int64_t* labels, std::ptrdiff_t count, std::ptrdiff_t classes,
                                  const std::optional<std::int64_t>& ignore_index);

// Draws classes by their probabilities. The constructor visits every slice and keeps only what a draw needs: a few
// numbers for each block of classes.
class Sampler {
  public:
    Sampler(const Slices& slices, double temperature, const Truncation& truncation);
    ~Sampler();

    // Returns the first slice, in C order, that has no probabilities, because it holds NaN or +inf or nothing but -inf
    // and masked entries; -1 if there is none.
    std::ptrdiff_t find_undefined() const;

    // Draws `draws` classes of each slice, in C order, each with a number in [0, 1) of its own.
    void draw(const double* uniform, std::ptrdiff_t draws, std::int64_t* to) const;

  private:
    class Work;
    class OfBlocks;
    class OfFewClasses;
    const std::unique_ptr<const Work> work_;
};

}  // namespace fastsoftmax
