// SPDX-License-Identifier: Apache-2.0
#include "scalar.h"

typedef float elem;
typedef float real;

static inline real load_one(elem value) {
    return value;
}

static inline void store_one(elem *to, real value) {
    *to = value;
}

#include "scalar.inc"

void scalar_fill_f32(struct bn_slots *slots) {
    *slots = scalar_slots;
}
