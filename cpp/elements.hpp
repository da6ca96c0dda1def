// Single elements of any type: targets, upstream gradients, losses.
#pragma once

#include <cstdint>

#include "slices.hpp"

namespace fastsoftmax {

// A kernel call takes up to this many slices where each needs values of its own.
constexpr std::ptrdiff_t slices_per_call = 256;

double read_double(const Array& array, std::ptrdiff_t offset);
void write_double(const Array& array, std::ptrdiff_t offset, double element);

// Of an integer type; a uint64 beyond the range of int64 wraps.
std::int64_t read_index(const Array& array, std::ptrdiff_t offset);

}  // namespace fastsoftmax
