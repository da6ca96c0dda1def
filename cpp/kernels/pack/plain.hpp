// Registers of 16 bytes, four to a pack, and the primitives that SSE2 and NEON share.
#pragma once

#include "../half.hpp"

namespace {

constexpr int register_bytes = 16;
template <class T>
using Register = Vector<T, register_bytes>;
template <class T, int packs = 1>
using Pack = BasicPack<T, packs, register_bytes>;

constexpr bool has_scaling = false;

template <class T>
FASTSOFTMAX_INLINE Pack<T> load_first_lanes(const T* p, std::ptrdiff_t count, T fill) {
    Pack<T> a;
    for (auto& r : a.r) r = fill - Register<T>{};
    copy_elements(reinterpret_cast<T*>(&a), p, count);
    return a;
}
template <class T>
FASTSOFTMAX_INLINE void store_first_lanes(T* p, Pack<T> a, std::ptrdiff_t count) {
    copy_elements(p, reinterpret_cast<const T*>(&a), count);
}

// Other targets store past the caches; these do not.
template <class T>
FASTSOFTMAX_INLINE void stream_pack(T* p, const Pack<T>& a) {
    copy_elements(p, reinterpret_cast<const T*>(&a), Pack<T>::lanes);
}
FASTSOFTMAX_INLINE void finish_streams() {}

struct Four {
    double lanes[4];
    FASTSOFTMAX_INLINE void operator+=(const Four& a) {
        for (int i = 0; i < 4; ++i) lanes[i] += a.lanes[i];
    }
};

FASTSOFTMAX_INLINE Four load_four(const float* x) { return {x[0], x[1], x[2], x[3]}; }

FASTSOFTMAX_INLINE Four load_first_of_four(const float* x, std::ptrdiff_t count) {
    return {x[0], count > 1 ? x[1] : 0, count > 2 ? x[2] : 0, count > 3 ? x[3] : 0};
}

FASTSOFTMAX_INLINE Four multiply_add(const Four& a, const Four& b, Four c) {
    for (int i = 0; i < 4; ++i) c.lanes[i] += a.lanes[i] * b.lanes[i];
    return c;
}

FASTSOFTMAX_INLINE Pack<double, 2> joined(const Four (&fours)[4]) {
    Pack<double, 2> a;
    for (int i = 0; i < a.registers; ++i) a.r[i] = load_vector<double, register_bytes>(fours[i / 2].lanes + i % 2 * 2);
    return a;
}

}  // namespace
