// SPDX-License-Identifier: Apache-2.0
//
// The per-channel arrays that a call works with: coefficients in the tensor's type, and doubles for partial sums.
// Internal to kernels/.
#ifndef NORMD_KERNELS_COEFFICIENTS_H
#define NORMD_KERNELS_COEFFICIENTS_H

#include <stdbool.h>
#include <stddef.h>

#include "bn.h"
#include "tiers.h"

enum {
    BN_ROOM_DOUBLES = 320,
    BN_COEFFICIENT_ROWS = 5, // that coefficients take of a room
};

// Scratch memory of one call, rows of at least `channels` doubles in one piece: inside the struct where that suffices,
// so that small calls allocate nothing.
struct bn_room {
    double *doubles;
    size_t stride;   // doubles from row to row
    void *allocated; // NULL where `here` suffices
    double here[BN_ROOM_DOUBLES];
};

// Makes room for `rows` rows of `channels` doubles, not initialized. False where memory cannot be had or the size
// overflows; nothing needs freeing then. The room must not be copied.
BN_MUST_CHECK bool bn_room_take(struct bn_room *room, size_t rows, size_t channels);

void bn_room_free(struct bn_room *room);

// Lays the coefficient arrays over the first BN_COEFFICIENT_ROWS rows.
struct bn_coefficients bn_room_coefficients(const struct bn_room *room);

// Entry of an optional array.
static inline double bn_entry_or(const double *array, size_t c, double absent) {
    return array ? array[c] : absent;
}

// 1 / sqrt(var + eps) of channel c.
double bn_invstd(const struct bn_norm *norm, size_t c);

// gamma * invstd of channel c as a double that dtype can hold where the variance is 0.
double bn_scale(const struct bn_norm *norm, size_t c);

#endif
