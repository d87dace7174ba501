// SPDX-License-Identifier: Apache-2.0
#include "coefficients.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

// Doubles between rows, so that with a power of two of channels the coefficients, x and y do not all fall into the same
// cache sets.
enum { PADDING = 24 };

bool bn_room_take(struct bn_room *room, size_t rows, size_t channels) {
    size_t bytes;
    if (__builtin_add_overflow(channels, PADDING, &room->stride) ||
        __builtin_mul_overflow(room->stride, sizeof(double), &bytes) || __builtin_mul_overflow(bytes, rows, &bytes))
        return false;
    room->doubles = room->here;
    room->allocated = NULL;
    if (bytes <= sizeof room->here) return true;
    room->doubles = room->allocated = malloc(bytes);
    return room->allocated;
}

void bn_room_free(struct bn_room *room) {
    free(room->allocated);
}

struct bn_coefficients bn_room_coefficients(const struct bn_room *room) {
    return (struct bn_coefficients){
        .mean_hi = room->doubles,
        .mean_lo = room->doubles + room->stride,
        .scale = room->doubles + 2 * room->stride,
        .shift = room->doubles + 3 * room->stride,
        .slope = room->doubles + 4 * room->stride,
    };
}

double bn_invstd(const struct bn_norm *norm, size_t c) {
    return 1 / sqrt(norm->var[c] + norm->eps);
}

double bn_scale(const struct bn_norm *norm, size_t c) {
    return bn_entry_or(norm->gamma, c, 1) * bn_invstd(norm, c);
}
