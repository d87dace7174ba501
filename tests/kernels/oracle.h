// SPDX-License-Identifier: Apache-2.0
//
// Batch normalization in long double, two passes over the elements in index order: independent of the code under test
// in arithmetic, order and formulas.
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

static inline size_t channel_index(struct bn_shape shape, size_t c, size_t k) {
    return index_of(shape, k / shape.inner, c, k % shape.inner);
}

static inline struct truth truth_of(const void *x, enum bn_dtype dtype, struct bn_shape shape, size_t c) {
    const size_t n = shape.outer * shape.inner;
    struct truth truth = {.x0 = get(x, dtype, channel_index(shape, c, 0))};
    for (size_t k = 0; k < n; k++) truth.delta += (long double)get(x, dtype, channel_index(shape, c, k)) - truth.x0;
    truth.delta /= (long double)n;
    for (size_t k = 0; k < n; k++) {
        const long double d = ((long double)get(x, dtype, channel_index(shape, c, k)) - truth.x0) - truth.delta;
        truth.var += d * d;
    }
    truth.var /= (long double)n;
    return truth;
}

static inline long double distance(const struct truth *truth, double x) {
    return ((long double)x - truth->x0) - truth->delta;
}

// The distance between neighbours of dtype at the magnitude of v.
static inline long double ulp(long double v, enum bn_dtype dtype) {
    const int digits = dtype == BN_F32 ? FLT_MANT_DIG : DBL_MANT_DIG;
    const int least = (dtype == BN_F32 ? FLT_MIN_EXP : DBL_MIN_EXP) - digits;
    const int exponent = v == 0 ? least : ilogbl(v) + 1 - digits;
    return ldexpl(1, exponent > least ? exponent : least);
}

static inline long double max3(long double a, long double b, long double c) {
    return fmaxl(fabsl(a), fmaxl(fabsl(b), fabsl(c)));
}

#endif
