// SPDX-License-Identifier: Apache-2.0
//
// Vectors of the avx512 tier, under the names that vector.inc uses. Needs AVX-512 F, BW, DQ and VL.
#ifndef NORMD_KERNELS_AVX512_H
#define NORMD_KERNELS_AVX512_H

#include "tiers.h"

// Each sets every slot for one type of tensor.
void avx512_fill_f32(struct bn_slots *slots);
void avx512_fill_f64(struct bn_slots *slots);
void avx512_fill_f16(struct bn_slots *slots);
void avx512_fill_bf16(struct bn_slots *slots);

#ifdef __AVX512F__

#include <immintrin.h>
#include <stdint.h>

enum { VECTOR_BYTES = 64, DOUBLES = 8, FLOATS = 16 };

typedef __m512d doubles;
typedef __m512 floats;

static inline doubles doubles_load(const double *from) {
    return _mm512_loadu_pd(from);
}

static inline void doubles_store(double *to, doubles v) {
    _mm512_storeu_pd(to, v);
}

static inline doubles doubles_all(double v) {
    return _mm512_set1_pd(v);
}

static inline floats floats_load(const float *from) {
    return _mm512_loadu_ps(from);
}

static inline void floats_store(float *to, floats v) {
    _mm512_storeu_ps(to, v);
}

static inline floats floats_all(float v) {
    return _mm512_set1_ps(v);
}

// DOUBLES floats from memory.
static inline doubles widen(const float *from) {
    return _mm512_cvtps_pd(_mm256_loadu_ps(from));
}

static inline doubles widen_low(floats v) {
    return _mm512_cvtps_pd(_mm512_castps512_ps256(v));
}

static inline doubles widen_high(floats v) {
    return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
}

// keep, or +0 where v <= 0; NaN is not.
static inline floats floats_unless_flat(floats keep, floats v) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NLE_UQ), keep);
}

static inline doubles doubles_unless_flat(doubles keep, doubles v) {
    return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(v, _mm512_setzero_pd(), _CMP_NLE_UQ), keep);
}

static inline floats f16_load(const uint16_t *from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)from));
}

static inline __m256i f16_pack(floats v) {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline floats bf16_load(const uint16_t *from) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

// AVX512_BF16's own conversion takes subnormals for 0, so it is not used.
static inline __m256i bf16_pack(floats v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i high = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(high, 16));
}

static inline void f16_store(uint16_t *to, floats v) {
    _mm256_storeu_si256((__m256i *)(void *)to, f16_pack(v));
}

static inline void bf16_store(uint16_t *to, floats v) {
    _mm256_storeu_si256((__m256i *)(void *)to, bf16_pack(v));
}

// Past the caches; the address is a multiple of what is written.
static inline void doubles_stream(double *to, doubles v) {
    _mm512_stream_pd(to, v);
}

static inline void floats_stream(float *to, floats v) {
    _mm512_stream_ps(to, v);
}

static inline void f16_stream(uint16_t *to, floats v) {
    _mm256_stream_si256((__m256i *)(void *)to, f16_pack(v));
}

static inline void bf16_stream(uint16_t *to, floats v) {
    _mm256_stream_si256((__m256i *)(void *)to, bf16_pack(v));
}

// Streamed stores are weakly ordered: before another thread is told of them.
static inline void stream_end(void) {
    _mm_sfence();
}

#endif

#endif
