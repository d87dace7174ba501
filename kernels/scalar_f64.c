// SPDX-License-Identifier: Apache-2.0
#include "scalar.h"

typedef double real;

#include "scalar.inc"

void scalar_fill_f64(struct bn_slots *slots) {
    *slots = scalar_slots;
}
