// SPDX-License-Identifier: Apache-2.0
//
// Per-channel numbers of a call: scratch memory for doubles, and the table of coefficients in the type that is computed
// in. Internal to kernels/.
#ifndef NORMD_KERNELS_COEFFICIENTS_H
#define NORMD_KERNELS_COEFFICIENTS_H

#include <stdbool.h>
#include <stddef.h>

#include "blocks.h"
#include "bn.h"
#include "tiers.h"

enum { BN_ROOM_DOUBLES = 320 };

// Scratch memory of one call, rows of at least `channels` doubles in one piece: inside the struct where that suffices,
// so that small calls allocate nothing.
struct bn_room {
    double *doubles;
    size_t stride;   // doubles from row to row
    void *allocated; // NULL where `here` suffices
    union {          // a table holds floats there, unless it is wide
        double doubles[BN_ROOM_DOUBLES];
        float floats[2 * BN_ROOM_DOUBLES];
    } here;
};

// Makes room for `rows` rows of `channels` doubles, not initialized. False where memory cannot be had or the size
// overflows; nothing needs freeing then. The room must not be copied.
BN_MUST_CHECK bool bn_room_take(struct bn_room *room, size_t rows, size_t channels);

void bn_room_free(struct bn_room *room);

enum bn_coefficient { BN_MEAN_HI, BN_MEAN_LO, BN_SCALE, BN_BETA, BN_SHIFT, BN_SLOPE, BN_COEFFICIENTS };

// Coefficients of every channel, rows of real in a room.
struct bn_table {
    bool wide; // real is double
    struct bn_room room;
};

BN_MUST_CHECK bool bn_table_take(struct bn_table *table, enum bn_dtype dtype, size_t channels);
void bn_table_free(struct bn_table *table);

// Sets an entry to a double, rounded once.
void bn_table_set(struct bn_table *table, enum bn_coefficient row, size_t channel, double value);

// Sets BN_MEAN_HI and BN_MEAN_LO to the mean in two parts: mean_hi = (real)mean, mean_lo = (real)((mean - mean_hi) +
// mean_lo).
void bn_table_set_mean(struct bn_table *table, size_t channel, double mean, double mean_lo);

// Sets what channel c is normalized with, from BN_MEAN_HI to BN_BETA: mean, mean_lo and var take the place of those in
// norm. Forward and backward must agree on it to the bit, for the backward asks where the activation was flat.
// `constant`: var is a batch's own, and 0.
void bn_table_set_forward(struct bn_table *table, enum bn_dtype dtype, const struct bn_norm *norm, size_t c,
                          double mean, double mean_lo, double var, bool constant);

// The same with norm's own.
void bn_table_set_norm(struct bn_table *table, enum bn_dtype dtype, const struct bn_norm *norm, size_t c);

// Memory for coefficients spread over the columns of a block, in the type that is computed in.
struct bn_spread {
    _Alignas(64) union {
        double wide[BN_SPREAD_COLUMNS];
        float narrow[BN_SPREAD_COLUMNS];
    } row[BN_COEFFICIENTS];
};

// The first `count` coefficients of a block as its slots take them, the others NULL: in the table, or
// spread where the cut spreads.
struct bn_coefficients bn_table_of_block(const struct bn_table *table, unsigned count, const struct bn_cut *cut,
                                         const struct bn_block *block, struct bn_spread *spread);

// Whether an output of so many elements is to be written past the caches.
bool bn_streams(size_t elements, enum bn_dtype dtype);

// Entry of an optional array.
static inline double bn_entry_or(const double *array, size_t c, double absent) {
    return array ? array[c] : absent;
}

// 1 / sqrt(var + eps).
double bn_invstd(double var, double eps);

// gamma * invstd as dtype's real can hold it where a batch's own variance is 0 (`constant`).
double bn_scale(double gamma, double invstd, bool constant, enum bn_dtype dtype);

// Element `index` of a tensor.
double bn_value(const void *x, enum bn_dtype dtype, size_t index);

// Address of element `index` of a tensor; NULL stays NULL.
static inline const void *bn_element(const void *x, enum bn_dtype dtype, size_t index) {
    return x ? (const char *)x + index * bn_dtype_size(dtype) : NULL;
}

// The tensors of a call, given those at their first elements, at element `index`.
struct bn_operands bn_operands_at(const struct bn_operands *whole, enum bn_dtype dtype, size_t index);

// Sets what follows the normalization; post may be NULL.
void bn_operands_set_post(struct bn_operands *whole, const struct bn_post *post);

#endif
