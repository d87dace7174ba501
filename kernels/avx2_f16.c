// SPDX-License-Identifier: Apache-2.0
#include "avx2.h"

#ifdef __AVX2__

#include "vector_f16.inc"

void avx2_fill_f16(struct bn_slots *slots) {
    *slots = vector_slots;
}

#endif
