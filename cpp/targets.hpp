// The SIMD targets in the module: which were built, which the machine can run, which is in use.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.hpp"

namespace fastsoftmax {

// The names of targets, from the least to the most capable.
std::vector<std::string> targets_built();
std::vector<std::string> targets_usable();

// Chooses the best target, or the one that FASTSOFTMAX_TARGET names; throws std::runtime_error if this build or machine
// lacks it.
void choose_target();

// The kernels in use; and the kernels of a target by name, null if this build or machine lacks it.
const Kernels& kernels();
const Kernels* kernels_of(const std::string& name);

}  // namespace fastsoftmax
