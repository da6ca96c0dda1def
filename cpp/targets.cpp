#include "targets.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#ifdef __x86_64__
#include <cpuid.h>
#endif

namespace fastsoftmax {

Kernels neon_kernels();
Kernels baseline_kernels();
Kernels avx2_kernels();
Kernels avx512_kernels();

namespace {

struct Target {
    const char* name;
    bool (*usable)();
    const Kernels& (*kernels)();
};

// Makes a target's table when it is first wanted, because the function that makes it needs a machine with that target.
template <Kernels (*make)()>
const Kernels& table() {
    static const Kernels kernels = make();
    return kernels;
}

#ifdef __x86_64__
// Asks the processor itself, because __builtin_cpu_supports of Clang 16 and older does not know "f16c".
bool has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

[[maybe_unused]] bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

[[maybe_unused]] bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// The targets that were compiled.
const Target targets[] = {
#ifdef FASTSOFTMAX_TARGET_NEON
    {"neon", [] { return true; }, table<neon_kernels>},
#endif
#ifdef FASTSOFTMAX_TARGET_BASELINE
    {"baseline", [] { return true; }, table<baseline_kernels>},
#endif
#ifdef FASTSOFTMAX_TARGET_AVX2
    {"avx2", has_avx2, table<avx2_kernels>},
#endif
#ifdef FASTSOFTMAX_TARGET_AVX512
    {"avx512", has_avx512, table<avx512_kernels>},
#endif
};

std::atomic<const Kernels*> chosen{nullptr};

std::string joined(const std::vector<std::string>& names) {
    std::string text;
    for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
}

}  // namespace

std::vector<std::string> targets_built() {
    std::vector<std::string> names;
    for (const auto& target : targets) names.emplace_back(target.name);
    return names;
}

std::vector<std::string> targets_usable() {
    std::vector<std::string> names;
    for (const auto& target : targets)
        if (target.usable()) names.emplace_back(target.name);
    return names;
}

const Kernels* kernels_of(const std::string& name) {
    for (const auto& target : targets)
        if (name == target.name && target.usable()) return &target.kernels();
    return nullptr;
}

void choose_target() {
    const std::vector<std::string> usable = targets_usable();
    const char* forced = std::getenv("FASTSOFTMAX_TARGET");
    if (usable.empty())
        throw std::runtime_error("this machine can run none of the SIMD targets built: " + joined(targets_built()));
    const std::string name = forced && *forced ? forced : usable.back();
    const Kernels* found = kernels_of(name);
    if (!found)
        throw std::runtime_error("FASTSOFTMAX_TARGET is '" + name + "', but this build and machine have: " +
                                 joined(usable) + " (built: " + joined(targets_built()) + ")");
    chosen = found;
}

const Kernels& kernels() { return *chosen.load(std::memory_order_relaxed); }

}  // namespace fastsoftmax
