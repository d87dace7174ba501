// SPDX-License-Identifier: Apache-2.0
//
// Vectors of the neon tier, under the names that vector.inc uses. Every aarch64 has what it needs.
#ifndef NORMD_KERNELS_NEON_H
#define NORMD_KERNELS_NEON_H

#include "tiers.h"

// Each sets every slot for one type of tensor.
void neon_fill_f32(struct bn_slots *slots);
void neon_fill_f64(struct bn_slots *slots);
void neon_fill_f16(struct bn_slots *slots);
void neon_fill_bf16(struct bn_slots *slots);

#ifdef __aarch64__

#include <arm_neon.h>
#include <stdint.h>

enum { VECTOR_BYTES = 16, DOUBLES = 2, FLOATS = 4 };

typedef float64x2_t doubles;
typedef float32x4_t floats;

static inline doubles doubles_load(const double *from) {
    return vld1q_f64(from);
}

static inline void doubles_store(double *to, doubles v) {
    vst1q_f64(to, v);
}

static inline doubles doubles_all(double v) {
    return vdupq_n_f64(v);
}

static inline floats floats_load(const float *from) {
    return vld1q_f32(from);
}

static inline void floats_store(float *to, floats v) {
    vst1q_f32(to, v);
}

static inline floats floats_all(float v) {
    return vdupq_n_f32(v);
}

// DOUBLES floats from memory.
static inline doubles widen(const float *from) {
    return vcvt_f64_f32(vld1_f32(from));
}

static inline doubles widen_low(floats v) {
    return vcvt_f64_f32(vget_low_f32(v));
}

static inline doubles widen_high(floats v) {
    return vcvt_high_f64_f32(v);
}

// keep, or +0 where v <= 0; NaN is not.
static inline floats floats_unless_flat(floats keep, floats v) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(keep), vclezq_f32(v)));
}

static inline doubles doubles_unless_flat(doubles keep, doubles v) {
    return vreinterpretq_f64_u64(vbicq_u64(vreinterpretq_u64_f64(keep), vclezq_f64(v)));
}

static inline floats f16_load(const uint16_t *from) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
}

static inline void f16_store(uint16_t *to, floats v) {
    vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(v)));
}

static inline floats bf16_load(const uint16_t *from) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from), 16));
}

static inline void bf16_store(uint16_t *to, floats v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    vst1_u16(to, vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet), 16));
}

// There is no store past the caches that a compiler offers; a plain one gives the same result.
static inline void doubles_stream(double *to, doubles v) {
    doubles_store(to, v);
}

static inline void floats_stream(float *to, floats v) {
    floats_store(to, v);
}

static inline void f16_stream(uint16_t *to, floats v) {
    f16_store(to, v);
}

static inline void bf16_stream(uint16_t *to, floats v) {
    bf16_store(to, v);
}

static inline void stream_end(void) {}

#endif

#endif
