// SPDX-License-Identifier: Apache-2.0
#include "avx512.h"

#ifdef __AVX512F__

#include "vector_bf16.inc"

void avx512_fill_bf16(struct bn_slots *slots) {
    *slots = vector_slots;
}

#endif
