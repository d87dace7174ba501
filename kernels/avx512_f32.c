// SPDX-License-Identifier: Apache-2.0
#include "avx512.h"

#ifdef __AVX512F__

#include "vector_f32.inc"

void avx512_fill_f32(struct bn_slots *slots) {
    *slots = vector_slots;
}

#endif
