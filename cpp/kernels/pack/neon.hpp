// NEON, which every 64-bit ARM processor has.
#pragma once

#include <arm_neon.h>

#include "plain.hpp"

namespace {

constexpr bool has_fma = true;
#define FASTSOFTMAX_LONG FASTSOFTMAX_INLINE

FASTSOFTMAX_INLINE Register<float> fma(Register<float> a, Register<float> b, Register<float> c) {
    return vfmaq_f32(c, a, b);
}
FASTSOFTMAX_INLINE Register<double> fma(Register<double> a, Register<double> b, Register<double> c) {
    return vfmaq_f64(c, a, b);
}

// NEON's own instructions give NaN if either is NaN.
FASTSOFTMAX_INLINE Register<float> max(Register<float> a, Register<float> b) { return a > b ? a : b; }
FASTSOFTMAX_INLINE Register<double> max(Register<double> a, Register<double> b) { return a > b ? a : b; }
FASTSOFTMAX_INLINE Register<float> min(Register<float> a, Register<float> b) { return a < b ? a : b; }
FASTSOFTMAX_INLINE Register<double> min(Register<double> a, Register<double> b) { return a < b ? a : b; }

// Where the bytes of entry i are in a table of `entries` entries, for the integer i of each lane, modulo `entries`.
template <class I, int entries>
FASTSOFTMAX_INLINE uint8x16_t bytes_of_entries(uint8x16_t index) {
    constexpr bool small = sizeof(I) == 4;
    const uint64x2_t last_bytes = {small ? 0x0404040400000000 : 0, small ? 0x0c0c0c0c08080808 : 0x0808080808080808};
    const uint64x2_t bytes = vdupq_n_u64(small ? 0x0302010003020100 : 0x0706050403020100);
    const uint8x16_t entry = vandq_u8(vqtbl1q_u8(index, (uint8x16_t)last_bytes), vdupq_n_u8(entries - 1));
    return vsliq_n_u8((uint8x16_t)bytes, entry, small ? 2 : 3);
}

template <class T>
FASTSOFTMAX_INLINE Register<T> look_up(const T (&table)[8], Register<Integer<T>> index) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(table);
    const uint8x16_t wanted = bytes_of_entries<Integer<T>, 8>((uint8x16_t)index);
    if constexpr (sizeof(T) == 4)
        return (Register<T>)vqtbl2q_u8(vld1q_u8_x2(bytes), wanted);
    else
        return (Register<T>)vqtbl4q_u8(vld1q_u8_x4(bytes), wanted);
}

FASTSOFTMAX_INLINE Pack<float> permuted(const Pack<float>& table, Pack<std::int32_t> index) {
    Pack<float> a;
    const uint8x16x4_t bytes = {
        {(uint8x16_t)table.r[0], (uint8x16_t)table.r[1], (uint8x16_t)table.r[2], (uint8x16_t)table.r[3]}};
    for (int i = 0; i < 4; ++i)
        a.r[i] = (float32x4_t)vqtbl4q_u8(bytes, bytes_of_entries<std::int32_t, 16>((uint8x16_t)index.r[i]));
    return a;
}

FASTSOFTMAX_INLINE Register<double> first_to_double(Register<float> a) { return vcvt_f64_f32(vget_low_f32(a)); }
FASTSOFTMAX_INLINE Register<double> second_to_double(Register<float> a) { return vcvt_high_f64_f32(a); }
FASTSOFTMAX_INLINE Register<float> to_float(Register<double> first, Register<double> second) {
    return vcvt_high_f32_f64(vcvt_f32_f64(first), second);
}

FASTSOFTMAX_INLINE std::uint32_t lane_bits(Register<std::int32_t> mask) {
    return vaddvq_u32(vandq_u32((uint32x4_t)mask, uint32x4_t{1, 2, 4, 8}));
}
FASTSOFTMAX_INLINE std::uint32_t lane_bits(Register<std::int64_t> mask) {
    return static_cast<std::uint32_t>(vaddvq_u64(vandq_u64((uint64x2_t)mask, uint64x2_t{1, 2})));
}

FASTSOFTMAX_INLINE Pack<float> load_halves(const Half* p) {
    Pack<float> a;
    for (int i = 0; i < 4; ++i)
        a.r[i] = vcvt_f32_f16((float16x4_t)vld1_u8(reinterpret_cast<const std::uint8_t*>(p + 4 * i)));
    return a;
}
FASTSOFTMAX_INLINE Pack<float> load_halves(const BFloat16* p) {
    Pack<float> a;
    for (int i = 0; i < 4; ++i) {
        const auto halves = (uint16x4_t)vld1_u8(reinterpret_cast<const std::uint8_t*>(p + 4 * i));
        a.r[i] = (float32x4_t)vshll_n_u16(halves, 16);
    }
    return a;
}
FASTSOFTMAX_INLINE void store_halves(Half* p, Pack<float> a) {
    for (int i = 0; i < 4; ++i) vst1_u8(reinterpret_cast<std::uint8_t*>(p + 4 * i), (uint8x8_t)vcvt_f16_f32(a.r[i]));
}
FASTSOFTMAX_INLINE void store_upper_halves(BFloat16* p, Pack<std::int32_t> a) {
    for (int i = 0; i < 4; ++i)
        vst1_u8(reinterpret_cast<std::uint8_t*>(p + 4 * i), (uint8x8_t)vshrn_n_u32((uint32x4_t)a.r[i], 16));
}

}  // namespace
