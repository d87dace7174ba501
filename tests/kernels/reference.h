// SPDX-License-Identifier: Apache-2.0
//
// The slots as plain loops over their contracts in tiers.h, for any type: operands are doubles, and each operation
// rounds to the type that is computed in. (double)a op (double)b rounded to float is a op b in float for +, - and *.
#ifndef NORMD_TESTS_KERNELS_REFERENCE_H
#define NORMD_TESTS_KERNELS_REFERENCE_H

#include "../../kernels/tiers.h"
#include "cases.h"

static inline double to_real(enum bn_dtype dtype, double v) {
    return dtype == BN_F64 ? v : (double)(float)v;
}

// One channel's or column's coefficients. Those that a slot does not use are absent.
struct reference_k {
    double mean_hi, mean_lo, scale, beta, shift, slope;
};

static inline double coefficient(const void *array, enum bn_dtype dtype, size_t j) {
    return array ? get(array, real_of(dtype), j) : (double)NAN;
}

static inline struct reference_k reference_k(const struct bn_coefficients *k, enum bn_dtype dtype, size_t j) {
    return (struct reference_k){coefficient(k->mean_hi, dtype, j), coefficient(k->mean_lo, dtype, j),
                                coefficient(k->scale, dtype, j),   coefficient(k->beta, dtype, j),
                                coefficient(k->shift, dtype, j),   coefficient(k->slope, dtype, j)};
}

static inline double reference_d(const struct reference_k *k, enum bn_dtype dtype, double x) {
    return to_real(dtype, to_real(dtype, x - k->mean_hi) - k->mean_lo);
}

static inline double reference_v(const struct bn_operands *op, const struct reference_k *k, enum bn_dtype dtype,
                                 size_t i) {
    const double d = reference_d(k, dtype, get(op->x, dtype, i));
    const double v = to_real(dtype, to_real(dtype, d * k->scale) + k->beta);
    return op->z ? to_real(dtype, v + get(op->z, dtype, i)) : v;
}

static inline double reference_g(const struct bn_operands *op, const struct reference_k *k, enum bn_dtype dtype,
                                 size_t i) {
    return op->relu && reference_v(op, k, dtype, i) <= 0 ? 0 : get(op->dy, dtype, i);
}

static inline double reference_y(const struct bn_operands *op, const struct reference_k *k, enum bn_dtype dtype,
                                 size_t i) {
    const double v = reference_v(op, k, dtype, i);
    return op->relu && !(v > 0 || isnan(v)) ? 0 : v;
}

static inline double reference_dx(const struct bn_operands *op, const struct reference_k *k, enum bn_dtype dtype,
                                  size_t i) {
    const double g = reference_g(op, k, dtype, i);
    if (op->frozen) return to_real(dtype, g * k->scale);
    const double d = reference_d(k, dtype, get(op->x, dtype, i));
    const double first = to_real(dtype, g - k->shift), second = to_real(dtype, d * k->slope);
    return to_real(dtype, to_real(dtype, first - second) * k->scale);
}

// A term of the first sum and its factor in the second one: of grad_sums, or of sums where op->dy is NULL.
struct reference_term {
    double a, b;
};

static inline struct reference_term reference_term(const struct bn_operands *op, const struct reference_k *k,
                                                   enum bn_dtype dtype, size_t i, double mean) {
    const double d = get(op->x, dtype, i) - mean;
    return (struct reference_term){op->dy ? reference_g(op, k, dtype, i) : d, d};
}

static inline double reference_tree(double lanes[BN_LANES]) {
    for (size_t width = BN_LANES / 2; width > 0; width /= 2) {
        for (size_t j = 0; j < width; j++) lanes[j] += lanes[j + width];
    }
    return lanes[0];
}

static inline void reference_sums_run(double out[2], const struct bn_operands *op, enum bn_dtype dtype,
                                      struct bn_rows block, double mean, const struct bn_coefficients *k) {
    double sum[BN_LANES] = {0}, product[BN_LANES] = {0};
    const struct reference_k own = reference_k(k, dtype, 0);
    for (size_t chunk = 0; chunk < block.length; chunk += BN_CHUNK) {
        for (size_t r = 0; r < block.rows; r++) {
            for (size_t i = chunk; i < block.length && i < chunk + BN_CHUNK; i++) {
                const struct reference_term t = reference_term(op, &own, dtype, r * block.stride + i, mean);
                sum[i % BN_LANES] += t.a;
                product[i % BN_LANES] += t.a * t.b;
            }
        }
    }
    out[0] = reference_tree(sum);
    out[1] = reference_tree(product);
}

// The row that comes k-th in the order of sums in columns, where rows are read as `streams` of them and a rest.
static inline size_t reference_row(size_t k, size_t rows, size_t streams) {
    const size_t n = rows / streams;
    return k < n * streams ? k % streams * n + k / streams : k;
}

static inline void reference_sums_columns(double *sum, double *product, const struct bn_operands *op,
                                          enum bn_dtype dtype, struct bn_rows block, const double *mean,
                                          const struct bn_coefficients *k) {
    for (size_t j = 0; j < block.length; j++) {
        const struct reference_k own = reference_k(k, dtype, j);
        sum[j] = product[j] = 0;
        for (size_t turn = 0; turn < block.rows; turn++) {
            const size_t r = reference_row(turn, block.rows, op->dy ? BN_GRADIENT_STREAMS : BN_STREAMS);
            const struct reference_term t = reference_term(op, &own, dtype, r * block.stride + j, mean[j]);
            sum[j] += t.a;
            product[j] += t.a * t.b;
        }
    }
}

// y, or dx and dz where op->dy is there; nothing of op overlaps.
static inline void reference_elements(const struct bn_operands *op, enum bn_dtype dtype, struct bn_rows block,
                                      const struct bn_coefficients *k, bool columns) {
    for (size_t j = 0; j < block.length; j++) {
        const struct reference_k own = reference_k(k, dtype, columns ? j : 0);
        for (size_t r = 0; r < block.rows; r++) {
            const size_t i = r * block.stride + j;
            if (!op->dy) put(op->y, dtype, i, reference_y(op, &own, dtype, i));
            if (op->dy) put(op->dx, dtype, i, reference_dx(op, &own, dtype, i));
            if (op->dz) put(op->dz, dtype, i, reference_g(op, &own, dtype, i));
        }
    }
}

static inline size_t reference_first_nonfinite(const void *x, enum bn_dtype dtype, size_t n) {
    size_t i = 0;
    while (i < n && isfinite(get(x, dtype, i))) i++;
    return i;
}

#endif
