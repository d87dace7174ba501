// SPDX-License-Identifier: Apache-2.0
#include "scalar.h"

typedef double elem;
typedef double real;

static inline real load_one(elem value) {
    return value;
}

static inline void store_one(elem *to, real value) {
    *to = value;
}

#include "scalar.inc"

void scalar_fill_f64(struct bn_slots *slots) {
    *slots = scalar_slots;
}
