// SPDX-License-Identifier: Apache-2.0
#include "avx2.h"

#ifdef __AVX2__

#include "vector_f32.inc"

void avx2_fill_f32(struct bn_slots *slots) {
    *slots = vector_slots;
}

#endif
