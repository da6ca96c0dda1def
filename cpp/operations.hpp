// The operations on a batch of slices.
#pragma once

#include <cstdint>
#include <optional>

#include "slices.hpp"

namespace fastsoftmax {

// softmax, log_softmax (scores to output) and their gradients (scores, second to output); a mask is optional.
void transform(Operation operation, Slices& slices, double temperature);

// To `value` and, if present, `sign`; `second` holds weights, if any.
void reduce(Slices& slices);

enum class Reduction { none, mean, sum };

struct Loss {
    bool probabilities = false;      // `second` holds class probabilities; else `target` class indices
    const double* weight = nullptr;  // one a class
    std::optional<std::int64_t> ignore_index;
    double label_smoothing = 0;
    double temperature = 1;
    Reduction reduction = Reduction::mean;
    double upstream = 1;  // unless there is an `upstream` array
};

// The loss to `value` (one element for mean and sum) and the gradient to `output`: whichever is present.
void cross_entropy_loss(Slices& slices, const Loss& loss);

// The first target, in C order, outside [0, classes) and not `ignore_index`; -1: none. Reads the batch axes and
// `target`.
std::ptrdiff_t find_invalid_target(Slices& slices, std::ptrdiff_t classes, std::optional<std::int64_t> ignore_index);

}  // namespace fastsoftmax
