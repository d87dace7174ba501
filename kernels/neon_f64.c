// SPDX-License-Identifier: Apache-2.0
#include "neon.h"

#ifdef __aarch64__

#include "vector_f64.inc"

void neon_fill_f64(struct bn_slots *slots) {
    *slots = vector_slots;
}

#endif
