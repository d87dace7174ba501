// SPDX-License-Identifier: Apache-2.0
//
// The scalar tier: every slot in plain C, the readable truth that other tiers must equal bit for bit.
#ifndef NORMD_KERNELS_SCALAR_H
#define NORMD_KERNELS_SCALAR_H

#include "tiers.h"

// Each sets every slot for one type of tensor.
void scalar_fill_f32(struct bn_slots *slots);
void scalar_fill_f64(struct bn_slots *slots);
void scalar_fill_f16(struct bn_slots *slots);
void scalar_fill_bf16(struct bn_slots *slots);

#endif
