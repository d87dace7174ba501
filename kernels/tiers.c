// SPDX-License-Identifier: Apache-2.0
#include "tiers.h"

#include <pthread.h>

#include "avx2.h"
#include "avx512.h"
#include "cpu.h"
#include "neon.h"
#include "scalar.h"

static void fill_scalar(struct bn_slots slots[BN_DTYPES]) {
    scalar_fill_f32(&slots[BN_F32]);
    scalar_fill_f64(&slots[BN_F64]);
    scalar_fill_f16(&slots[BN_F16]);
    scalar_fill_bf16(&slots[BN_BF16]);
}

#if defined(__x86_64__)

static void fill_avx2(struct bn_slots slots[BN_DTYPES]) {
    avx2_fill_f32(&slots[BN_F32]);
    avx2_fill_f64(&slots[BN_F64]);
    avx2_fill_f16(&slots[BN_F16]);
    avx2_fill_bf16(&slots[BN_BF16]);
}

static void fill_avx512(struct bn_slots slots[BN_DTYPES]) {
    avx512_fill_f32(&slots[BN_F32]);
    avx512_fill_f64(&slots[BN_F64]);
    avx512_fill_f16(&slots[BN_F16]);
    avx512_fill_bf16(&slots[BN_BF16]);
}

#elif defined(__aarch64__)

static void fill_neon(struct bn_slots slots[BN_DTYPES]) {
    neon_fill_f32(&slots[BN_F32]);
    neon_fill_f64(&slots[BN_F64]);
    neon_fill_f16(&slots[BN_F16]);
    neon_fill_bf16(&slots[BN_BF16]);
}

#endif

const struct bn_tier bn_tiers[] = {
    {"scalar", 0, fill_scalar},
#if defined(__x86_64__)
    {"avx2", CPU_AVX2, fill_avx2},
    {"avx512", CPU_AVX2 | CPU_AVX512, fill_avx512},
#elif defined(__aarch64__)
    {"neon", CPU_NEON, fill_neon},
#endif
};
const size_t bn_tier_count = sizeof bn_tiers / sizeof bn_tiers[0];

static pthread_once_t once = PTHREAD_ONCE_INIT;
static size_t chosen;
static struct bn_slots chosen_slots[BN_DTYPES];

static bool reachable(size_t tier) {
    return (bn_tiers[tier].features & ~cpu_features()) == 0;
}

bool tier_fill(size_t tier, struct bn_slots slots[BN_DTYPES]) {
    if (tier >= bn_tier_count || !reachable(tier)) return false;
    for (size_t i = 0; i <= tier; i++) {
        if (reachable(i)) bn_tiers[i].fill(slots);
    }
    return true;
}

static void choose(void) {
    chosen = bn_tier_count - 1;
    while (!tier_fill(chosen, chosen_slots)) // ends: the row of scalar asks for nothing
        chosen--;
}

const struct bn_slots *tier_slots(enum bn_dtype dtype) {
    pthread_once(&once, choose);
    return &chosen_slots[dtype];
}

const char *bn_cpu_tier(void) {
    pthread_once(&once, choose);
    return bn_tiers[chosen].name;
}
