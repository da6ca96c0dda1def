// Scores as integers in the same order: what selection by histogram counts in. Plain, for kernels and the layers above.
#pragma once

#include <cstdint>

namespace fastsoftmax {

// Equal scores, 0 and -0 among them, have equal keys. Not of NaN.
[[gnu::always_inline]] constexpr std::int64_t key_of(float x) {
    const auto bits = __builtin_bit_cast(std::int32_t, x + 0.0f);
    return bits ^ (bits >> 31 & INT32_MAX);
}
[[gnu::always_inline]] constexpr std::int64_t key_of(double x) {
    const auto bits = __builtin_bit_cast(std::int64_t, x + 0.0);
    return bits ^ (bits >> 63 & INT64_MAX);
}

// The score that has a key.
template <class T>
[[gnu::always_inline]] constexpr T score_of(std::int64_t key) {
    if constexpr (sizeof(T) == 4) {
        const auto bits = static_cast<std::int32_t>(key);
        return __builtin_bit_cast(float, bits ^ (bits >> 31 & INT32_MAX));
    } else {
        return __builtin_bit_cast(double, key ^ (key >> 63 & INT64_MAX));
    }
}

// Of keys that may be further apart than int64 holds.
[[gnu::always_inline]] constexpr std::uint64_t keys_between(std::int64_t from, std::int64_t to) {
    return static_cast<std::uint64_t>(to) - static_cast<std::uint64_t>(from);
}
[[gnu::always_inline]] constexpr std::int64_t advanced(std::int64_t key, std::uint64_t keys) {
    return static_cast<std::int64_t>(static_cast<std::uint64_t>(key) + keys);
}

}  // namespace fastsoftmax
