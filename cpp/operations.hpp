// The operations on a batch of slices.
#pragma once

#include <cstdint>
#include <optional>

#include "slices.hpp"

namespace fastsoftmax {

// An operation that needs nothing but its arrays: from those in the roles that its signature reads to those that it
// writes; a mask is optional.
void compute(Operation operation, const Slices& slices, double temperature);

// log|sum of b exp(x)| to `value` and, if present, its sign to `sign`; `second` holds b.
void compute_weighed(const Slices& slices);

enum class Reduction { none, mean, sum };

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

// The first label, in C order, outside [0, classes) and not `ignore_index`; -1: none. Reads the batch axes and `label`.
std::ptrdiff_t find_invalid_label(const Slices& slices, std::ptrdiff_t classes,
                                  std::optional<std::int64_t> ignore_index);

}  // namespace fastsoftmax
