// SPDX-License-Identifier: Apache-2.0
#include "avx2.h"

#ifdef __AVX2__

#include "vector_bf16.inc"

void avx2_fill_bf16(struct bn_slots *slots) {
    *slots = vector_slots;
}

#endif
