// What is one element a slice, of any type: targets, upstream gradients, losses.
#pragma once

#include <cstdint>

#include "slices.hpp"

namespace fastsoftmax {

// A kernel call takes up to this many slices where each needs values of its own.
constexpr std::ptrdiff_t slices_per_call = 256;

// `count` elements, `stride` bytes apart.
void read_doubles(const Array& array, std::ptrdiff_t offset, std::ptrdiff_t stride, std::ptrdiff_t count, double* to);
void write_doubles(const Array& array, std::ptrdiff_t offset, std::ptrdiff_t stride, std::ptrdiff_t count,
                   const double* from);

// Of an integer type; a uint64 beyond the range of int64 wraps.
void read_indices(const Array& array, std::ptrdiff_t offset, std::ptrdiff_t stride, std::ptrdiff_t count,
                  std::int64_t* to);

}  // namespace fastsoftmax
