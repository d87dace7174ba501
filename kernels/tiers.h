// SPDX-License-Identifier: Apache-2.0
//
// The table of kernel tiers and the contracts of their slots. A slot works on one block on the calling thread; how a
// tensor is cut into blocks, and in which order their results are merged, is bn.c's alone and the same for every tier.
//
// Every tier gives the same bits. So a slot states its order of operations, and none uses a fused multiply-add (the
// project compiles with -ffp-contract=off).
//
// "real" is the tensor's type, float or double: a tier has one set of slots for each.
#ifndef NORMD_KERNELS_TIERS_H
#define NORMD_KERNELS_TIERS_H

#include <stddef.h>

#include "bn.h"

// Sums in double are kept in this many lanes: element i of a run goes to lane i % BN_LANES, and the lanes are added up
// as a tree (lane j + lane j+8, then j+4, j+2, j+1).
#define BN_LANES 16

// A run: `planes` stretches of `length` contiguous reals, `stride` reals apart, all of one channel.
struct bn_run {
    size_t planes;
    size_t length;
    size_t stride;
};

// Coefficients of one channel as the tensor's type holds them; arrays of real, [channels].
struct bn_coefficients {
    void *mean_hi;
    void *mean_lo;
    void *scale; // gamma * invstd
    void *shift; // normalize: beta; gradients: mean of dy
    void *slope; // gradients: invstd^2 * mean of dy * (x - mean); normalize: unused
};

struct bn_slots {
    // out[0] = sum of d, out[1] = sum of d*d, over the run, d = (double)x - pivot; lanes as above, by position in plane
    // (every plane starts at lane 0; the lanes are added up once, at the end).
    void (*sums_run)(double out[2], const void *x, struct bn_run run, double pivot);
    // The same for `columns` channels that lie side by side, over `rows` rows `stride` reals apart, in row order, one
    // accumulator per column: sum[j], sumsq[j], which are overwritten; pivot is row 0.
    void (*sums_columns)(double *sum, double *sumsq, const void *x, size_t rows, size_t columns, size_t stride);

    // Fills entry c of the coefficient arrays, all of them, from doubles: mean_hi = (real)mean,
    // mean_lo = (real)((mean - mean_hi) + mean_lo).
    void (*set_coefficients)(const struct bn_coefficients *k, size_t c, double mean, double mean_lo, double scale,
                             double shift, double slope);

    // y = ((x - mean_hi[c]) - mean_lo[c]) * scale[c] + shift[c], all in real. y may be x.
    void (*normalize_run)(void *y, const void *x, struct bn_run run, const struct bn_coefficients *k, size_t c);
    // The same for rows of `columns` channels, the first being channel c.
    void (*normalize_columns)(void *y, const void *x, size_t rows, size_t columns, size_t stride,
                              const struct bn_coefficients *k, size_t c);

    // out[0] = sum of dy, out[1] = sum of dy * d, d = ((double)x - mean) - mean_lo, in double; lanes as for sums_run.
    void (*grad_sums_run)(double out[2], const void *dy, const void *x, struct bn_run run, double mean, double mean_lo);
    void (*grad_sums_columns)(double *sum, double *sum_d, const void *dy, const void *x, size_t rows, size_t columns,
                              size_t stride, const double *mean, const double *mean_lo);

    // dx = ((dy - shift[c]) - ((x - mean_hi[c]) - mean_lo[c]) * slope[c]) * scale[c], all in real. dx may be dy or x.
    void (*grad_run)(void *dx, const void *dy, const void *x, struct bn_run run, const struct bn_coefficients *k,
                     size_t c);
    void (*grad_columns)(void *dx, const void *dy, const void *x, size_t rows, size_t columns, size_t stride,
                         const struct bn_coefficients *k, size_t c);

    // y = x * scale[c] in real: the frozen gradient. y may be x.
    void (*scale_run)(void *y, const void *x, struct bn_run run, const struct bn_coefficients *k, size_t c);
    void (*scale_columns)(void *y, const void *x, size_t rows, size_t columns, size_t stride,
                          const struct bn_coefficients *k, size_t c);

    // As bn_first_nonfinite.
    size_t (*first_nonfinite)(const void *x, size_t n);
};

struct bn_tier {
    const char *name;
    unsigned features;                                        // enum cpu_feature that it needs; 0 for scalar
    void (*fill)(struct bn_slots *f32, struct bn_slots *f64); // overrides slots; the row of scalar sets every one
};

// Rows from the plainest to the widest, scalar first. The tier in use is the last whose features the CPU has; its slots
// are those of all rows up to it, each overriding the ones before.
extern const struct bn_tier bn_tiers[];
extern const size_t bn_tier_count;

// The slots of the tier in use, chosen on first call. Any thread.
const struct bn_slots *tier_slots(enum bn_dtype dtype);

// Fills f32 and f64 with the slots of row `tier` and those below it. Returns false where this CPU lacks its features.
bool tier_fill(size_t tier, struct bn_slots *f32, struct bn_slots *f64);

#endif
