// SPDX-License-Identifier: Apache-2.0
#include "scalar.h"
#include "half.h"

typedef uint16_t elem;
typedef float real;

static inline real load_one(elem value) {
    return bf16_to_float(value);
}

static inline void store_one(elem *to, real value) {
    *to = float_to_bf16(value);
}

#include "scalar.inc"

void scalar_fill_bf16(struct bn_slots *slots) {
    *slots = scalar_slots;
}
