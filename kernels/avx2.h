// SPDX-License-Identifier: Apache-2.0
//
// Vectors of the avx2 tier, under the names that vector.inc uses. Needs AVX2 and F16C.
#ifndef NORMD_KERNELS_AVX2_H
#define NORMD_KERNELS_AVX2_H

#include "tiers.h"

// Each sets every slot for one type of tensor.
void avx2_fill_f32(struct bn_slots *slots);
void avx2_fill_f64(struct bn_slots *slots);
void avx2_fill_f16(struct bn_slots *slots);
void avx2_fill_bf16(struct bn_slots *slots);

#ifdef __AVX2__

#include <immintrin.h>
#include <stdint.h>

enum { VECTOR_BYTES = 32, DOUBLES = 4, FLOATS = 8 };

typedef __m256d doubles;
typedef __m256 floats;

static inline doubles doubles_load(const double *from) {
    return _mm256_loadu_pd(from);
}

static inline void doubles_store(double *to, doubles v) {
    _mm256_storeu_pd(to, v);
}

static inline doubles doubles_all(double v) {
    return _mm256_set1_pd(v);
}

static inline floats floats_load(const float *from) {
    return _mm256_loadu_ps(from);
}

static inline void floats_store(float *to, floats v) {
    _mm256_storeu_ps(to, v);
}

static inline floats floats_all(float v) {
    return _mm256_set1_ps(v);
}

// DOUBLES floats from memory.
static inline doubles widen(const float *from) {
    return _mm256_cvtps_pd(_mm_loadu_ps(from));
}

static inline doubles widen_low(floats v) {
    return _mm256_cvtps_pd(_mm256_castps256_ps128(v));
}

static inline doubles widen_high(floats v) {
    return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
}

// keep, or +0 where v <= 0; NaN is not.
static inline floats floats_unless_flat(floats keep, floats v) {
    return _mm256_andnot_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_LE_OQ), keep);
}

static inline doubles doubles_unless_flat(doubles keep, doubles v) {
    return _mm256_andnot_pd(_mm256_cmp_pd(v, _mm256_setzero_pd(), _CMP_LE_OQ), keep);
}

static inline floats f16_load(const uint16_t *from) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)from));
}

static inline __m128i f16_pack(floats v) {
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline floats bf16_load(const uint16_t *from) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

static inline __m128i bf16_pack(floats v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    return _mm256_castsi256_si128(packed);
}

static inline void f16_store(uint16_t *to, floats v) {
    _mm_storeu_si128((__m128i *)(void *)to, f16_pack(v));
}

static inline void bf16_store(uint16_t *to, floats v) {
    _mm_storeu_si128((__m128i *)(void *)to, bf16_pack(v));
}

// Past the caches; the address is a multiple of what is written.
static inline void doubles_stream(double *to, doubles v) {
    _mm256_stream_pd(to, v);
}

static inline void floats_stream(float *to, floats v) {
    _mm256_stream_ps(to, v);
}

static inline void f16_stream(uint16_t *to, floats v) {
    _mm_stream_si128((__m128i *)(void *)to, f16_pack(v));
}

static inline void bf16_stream(uint16_t *to, floats v) {
    _mm_stream_si128((__m128i *)(void *)to, bf16_pack(v));
}

// Streamed stores are weakly ordered: before another thread is told of them.
static inline void stream_end(void) {
    _mm_sfence();
}

#endif

#endif
