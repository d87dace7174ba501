// SPDX-License-Identifier: Apache-2.0
#include "tiers.h"

#include <pthread.h>

#include "cpu.h"
#include "scalar.h"

static void fill_scalar(struct bn_slots *f32, struct bn_slots *f64) {
    scalar_fill_f32(f32);
    scalar_fill_f64(f64);
}

const struct bn_tier bn_tiers[] = {
    {"scalar", 0, fill_scalar},
};
const size_t bn_tier_count = sizeof bn_tiers / sizeof bn_tiers[0];

static pthread_once_t once = PTHREAD_ONCE_INIT;
static size_t chosen;
static struct bn_slots slots_f32;
static struct bn_slots slots_f64;

static bool reachable(size_t tier) {
    return (bn_tiers[tier].features & ~cpu_features()) == 0;
}

bool tier_fill(size_t tier, struct bn_slots *f32, struct bn_slots *f64) {
    if (tier >= bn_tier_count || !reachable(tier)) return false;
    for (size_t i = 0; i <= tier; i++) {
        if (reachable(i)) bn_tiers[i].fill(f32, f64);
    }
    return true;
}

static void choose(void) {
    chosen = bn_tier_count - 1;
    while (!tier_fill(chosen, &slots_f32, &slots_f64)) // ends: the row of scalar asks for nothing
        chosen--;
}

const struct bn_slots *tier_slots(enum bn_dtype dtype) {
    pthread_once(&once, choose);
    return dtype == BN_F32 ? &slots_f32 : &slots_f64;
}

const char *bn_cpu_tier(void) {
    pthread_once(&once, choose);
    return bn_tiers[chosen].name;
}
