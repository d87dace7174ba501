// SPDX-License-Identifier: Apache-2.0
//
// The table of kernel tiers and the contracts of their slots. A slot works on one block on the calling thread; how a
// tensor is cut into blocks, and in which order their results are merged, is the business of blocks.c and the same for
// every tier.
//
// Every tier gives the same bits. So a slot states its order of operations, and none uses a fused multiply-add (the
// project compiles with -ffp-contract=off).
//
// "elem" is the type in memory, "real" the one that is computed in: double for BN_F64, float for the others. A tier
// has one set of slots for each type of tensor. An element is converted to real when it is read, exactly, and a result
// is rounded to elem, to nearest even, when it is written.
#ifndef NORMD_KERNELS_TIERS_H
#define NORMD_KERNELS_TIERS_H

#include <stdbool.h>
#include <stddef.h>

#include "bn.h"

// Sums in double are kept in this many lanes: element i of a row goes to lane i % BN_LANES.
#define BN_LANES 16

// Several streams read memory faster than one, so rows are not taken one by one; what follows is part of the order of
// sums. In runs, the rows of a block are taken in turn, BN_CHUNK elements of each at a time: chunk after chunk, in each
// row after row, in each element after element.
#define BN_CHUNK 64

// In columns, the rows of a block are BN_STREAMS parts of n = rows / BN_STREAMS rows each, and a rest: row 0 of each
// part in turn, then row 1 of each, up to n - 1, then the rest. Gradients read two tensors and make half as many parts.
#define BN_STREAMS 8
#define BN_GRADIENT_STREAMS 4

enum { BN_DTYPES = BN_BF16 + 1 };

// A block, not empty: `rows` stretches of `length` contiguous elements, `stride` elements apart.
struct bn_rows {
    size_t rows;
    size_t length;
    size_t stride;
};

// The tensors of a block, each at its first element; all have the same rows.
struct bn_operands {
    const void *x;
    const void *z;  // residual, or NULL
    const void *dy; // gradients only
    void *y;        // forward
    void *dx;       // gradients
    void *dz;       // gradients; NULL: not wanted
    bool relu;
    bool frozen; // gradients: shift and slope are 0, and the statistics constants
    bool stream; // write past the caches
};

// Coefficients as real: in a "run" one of each, for the whole block; in "columns" one for each of its columns.
// What a slot does not use may be NULL.
struct bn_coefficients {
    const void *mean_hi;
    const void *mean_lo;
    const void *scale; // gamma * invstd
    const void *beta;
    const void *shift; // gradients: mean of g
    const void *slope; // gradients: invstd^2 * mean of g * (x - mean)
};

struct bn_slots {
    // out[0] = sum of d, out[1] = sum of d*d over the block, d = (double)x - pivot, in lanes and order as above; the
    // lanes are then added up as a tree: lane j + lane j+8, then j+4, j+2, j+1.
    void (*sums_run)(double out[2], const void *x, struct bn_rows block, double pivot);
    // The same for each column by itself, in the order of streams: sum[j], sumsq[j], overwritten; pivot[j] is real.
    void (*sums_columns)(double *sum, double *sumsq, const void *x, struct bn_rows block, const void *pivot);

    // out[0] = sum of g, out[1] = sum of g * d, d = (double)x - mean, in the order of sums_run. g is dy, or with
    // op->relu 0 where v <= 0; v as in normalize, before the activation.
    void (*grad_sums_run)(double out[2], const struct bn_operands *op, struct bn_rows block, double mean,
                          const struct bn_coefficients *k);
    void (*grad_sums_columns)(double *sum, double *sum_d, const struct bn_operands *op, struct bn_rows block,
                              const double *mean, const struct bn_coefficients *k);

    // y = v, or with op->relu v where v > 0 or v is NaN and else +0;
    // v = (((x - mean_hi) - mean_lo) * scale + beta) + z, all in real, without z where that is NULL. y may be x or z.
    void (*normalize_run)(const struct bn_operands *op, struct bn_rows block, const struct bn_coefficients *k);
    void (*normalize_columns)(const struct bn_operands *op, struct bn_rows block, const struct bn_coefficients *k);

    // dx = ((g - shift) - ((x - mean_hi) - mean_lo) * slope) * scale, or with op->frozen g * scale; dz = g; all in
    // real. dx may be dy or x, dz may be dy or z.
    void (*grad_run)(const struct bn_operands *op, struct bn_rows block, const struct bn_coefficients *k);
    void (*grad_columns)(const struct bn_operands *op, struct bn_rows block, const struct bn_coefficients *k);

    // As bn_first_nonfinite.
    size_t (*first_nonfinite)(const void *x, size_t n);
};

struct bn_tier {
    const char *name;
    unsigned features;                              // enum cpu_feature that it needs; 0 for scalar
    void (*fill)(struct bn_slots slots[BN_DTYPES]); // overrides slots; the row of scalar sets every one
};

// Rows from the plainest to the widest, scalar first. The tier in use is the last whose features the CPU has; its slots
// are those of all rows up to it, each overriding the ones before.
extern const struct bn_tier bn_tiers[];
extern const size_t bn_tier_count;

// The slots of the tier in use, chosen on first call. Any thread.
const struct bn_slots *tier_slots(enum bn_dtype dtype);

// Fills slots, indexed by enum bn_dtype, with those of row `tier` and the rows below it. Returns false where this CPU
// lacks its features.
bool tier_fill(size_t tier, struct bn_slots slots[BN_DTYPES]);

#endif
