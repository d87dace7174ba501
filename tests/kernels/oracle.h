// SPDX-License-Identifier: Apache-2.0
//
// Batch normalization in long double, over the elements in index order: independent of the code under test in
// arithmetic, order and formulas. And the one place where a result depends on rounding: whether the activation is flat.
#ifndef NORMD_TESTS_KERNELS_ORACLE_H
#define NORMD_TESTS_KERNELS_ORACLE_H

#include <float.h>

#include "cases.h"

// A channel's mean is x0 + delta; apart, they keep what a long double mean would round away.
struct truth {
    double x0;
    long double delta;
    long double var; // biased
};

static inline long double distance(const struct truth *truth, double x) {
    return ((long double)x - truth->x0) - truth->delta;
}

// Two passes, the second of which corrects the first.
static inline struct truth truth_of(const void *x, enum bn_dtype dtype, struct bn_shape shape, size_t c) {
    const size_t n = shape.outer * shape.inner;
    struct truth truth = {.x0 = get(x, dtype, channel_index(shape, c, 0))};
    for (size_t o = 0; o < shape.outer; o++) {
        for (size_t i = 0; i < shape.inner; i++)
            truth.delta += (long double)get(x, dtype, index_of(shape, o, c, i)) - truth.x0;
    }
    truth.delta /= (long double)n;
    long double sum = 0, squares = 0;
    for (size_t o = 0; o < shape.outer; o++) {
        for (size_t i = 0; i < shape.inner; i++) {
            const long double d = distance(&truth, get(x, dtype, index_of(shape, o, c, i)));
            sum += d;
            squares += d * d;
        }
    }
    truth.delta += sum / (long double)n;
    truth.var = (squares - sum * (sum / (long double)n)) / (long double)n;
    return truth;
}

// The truth in the doubles that a caller passes on.
static inline double truth_mean(const struct truth *truth) {
    return (double)(truth->x0 + truth->delta);
}

static inline double truth_mean_lo(const struct truth *truth) {
    return (double)(((long double)truth->x0 - truth_mean(truth)) + truth->delta);
}

// The distance between neighbours of dtype at the magnitude of v.
static inline long double ulp(long double v, enum bn_dtype dtype) {
    const int digits = dtype == BN_F64 ? DBL_MANT_DIG : FLT_MANT_DIG;
    const int least = (dtype == BN_F64 ? DBL_MIN_EXP : FLT_MIN_EXP) - digits;
    const int exponent = v == 0 ? least : ilogbl(v) + 1 - digits;
    return ldexpl(1, exponent > least ? exponent : least);
}

static inline long double max3(long double a, long double b, long double c) {
    return fmaxl(fabsl(a), fmaxl(fabsl(b), fabsl(c)));
}

// The relative error of a variance: the bound, and the one where every pivot lies within a few sigmas of the mean.
static inline double variance_bound(enum fill fill) {
    return fill == FILL_OUTLIER_FIRST ? 1e-9 : 1e-12;
}

// Entry c of an array that may be absent.
static inline double entry_or(const double *array, size_t c, double otherwise) {
    return array ? array[c] : otherwise;
}

// A channel's coefficients as bn.h defines them, in the type that is computed in.
struct rounded {
    double mean_hi, mean_lo, scale, beta;
};

static inline struct rounded rounded_of(const struct bn_norm *norm, enum bn_dtype dtype, size_t c) {
    const enum bn_dtype real = real_of(dtype);
    struct rounded r = {.mean_hi = round_to(real, norm->mean[c]), .beta = round_to(real, entry_or(norm->beta, c, 0))};
    r.mean_lo = round_to(real, (norm->mean[c] - r.mean_hi) + entry_or(norm->mean_lo, c, 0));
    r.scale = round_to(real, entry_or(norm->gamma, c, 1) / sqrt(norm->var[c] + norm->eps));
    return r;
}

// v before the activation, rounded after each operation.
static inline double rounded_v(const struct rounded *r, enum bn_dtype dtype, double x, const void *z, size_t i) {
    const enum bn_dtype real = real_of(dtype);
    const double d = round_to(real, round_to(real, x - r->mean_hi) - r->mean_lo);
    const double v = round_to(real, round_to(real, d * r->scale) + r->beta);
    return z ? round_to(real, v + get(z, dtype, i)) : v;
}

#endif
