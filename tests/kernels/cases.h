// SPDX-License-Identifier: Apache-2.0
//
// What kernel tests run on: random numbers, shapes, fills, and buffers that notice a write outside. Everything is
// static inline; each test binary includes what it needs.
#ifndef NORMD_TESTS_KERNELS_CASES_H
#define NORMD_TESTS_KERNELS_CASES_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../kernels/bn.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

// splitmix64.
static inline uint64_t random_bits(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

// In (0, 1).
static inline double random_unit(uint64_t *state) {
    return ((double)(random_bits(state) >> 12) + 0.5) * 0x1p-52;
}

// Standard normal, Box and Muller's way.
static inline double random_normal(uint64_t *state) {
    const double radius = sqrt(-2 * log(random_unit(state)));
    return radius * cos(6.283185307179586 * random_unit(state));
}

static inline size_t elements(struct bn_shape shape) {
    return shape.outer * shape.channels * shape.inner;
}

static inline size_t index_of(struct bn_shape shape, size_t o, size_t c, size_t i) {
    return (o * shape.channels + c) * shape.inner + i;
}

static inline double get(const void *x, enum bn_dtype dtype, size_t i) {
    return dtype == BN_F32 ? (double)((const float *)x)[i] : ((const double *)x)[i];
}

static inline void put(void *x, enum bn_dtype dtype, size_t i, double value) {
    if (dtype == BN_F32)
        ((float *)x)[i] = (float)value;
    else
        ((double *)x)[i] = value;
}

enum fill {
    FILL_NORMAL,
    FILL_NORMAL_1E3,
    FILL_NORMAL_1E6,
    FILL_NARROW_1E3,
    FILL_NARROW_1E6,
    FILL_CONSTANT,
    FILL_OUTLIER_FIRST,
    FILL_SORTED,
    FILL_ALTERNATING,
    FILL_1E18,
    FILL_1E30,
    FILL_1E_20,
    FILL_SUBNORMAL,
    FILL_COUNT,
};

static const char *const fill_names[FILL_COUNT] = {
    "normal", "normal at 1e3", "normal at 1e6", "sigma 0.1 at 1e3", "sigma 0.1 at 1e6", "constant",  "outlier first",
    "sorted", "alternating",   "scale 1e18",    "scale 1e30",       "scale 1e-20",      "subnormal",
};

// Value number k of a channel.
static inline double fill_value(enum fill fill, enum bn_dtype dtype, size_t c, size_t k, uint64_t *random) {
    const double normal = random_normal(random);
    switch (fill) {
    case FILL_NORMAL_1E3: return 1e3 + normal;
    case FILL_NORMAL_1E6: return 1e6 + normal;
    case FILL_NARROW_1E3: return 1e3 + 0.1 * normal;
    case FILL_NARROW_1E6: return 1e6 + 0.1 * normal;
    case FILL_CONSTANT: return 1234.567 * ((double)c - 1.5);
    case FILL_OUTLIER_FIRST: return k == 0 ? 1e8 : normal;
    case FILL_SORTED: return (double)k * 0.37 - 11;
    case FILL_ALTERNATING: return k % 2 ? 1000.1 : -1000.1;
    case FILL_1E18: return 1e18 * normal;
    case FILL_1E30: return 1e30 * normal;
    case FILL_1E_20: return 1e-20 * normal;
    case FILL_SUBNORMAL: return (dtype == BN_F32 ? 1e-41 : 1e-314) * normal;
    case FILL_NORMAL:
    case FILL_COUNT: break;
    }
    return normal;
}

static inline void fill_tensor(void *x, enum bn_dtype dtype, struct bn_shape shape, enum fill fill, uint64_t seed) {
    for (size_t o = 0; o < shape.outer; o++) {
        for (size_t c = 0; c < shape.channels; c++) {
            for (size_t i = 0; i < shape.inner; i++)
                put(x, dtype, index_of(shape, o, c, i), fill_value(fill, dtype, c, o * shape.inner + i, &seed));
        }
    }
}

// A buffer whose data lie between guard bands, aligned to their element (`align` bytes) and to nothing more.
struct guarded {
    unsigned char *base;
    void *data;
    size_t bytes;
};

enum { GUARD_BYTES = 64, GUARD_BYTE = 0xa5 };

static inline struct guarded guarded_new(size_t bytes, size_t align) {
    struct guarded g = {.base = aligned_alloc(64, (bytes + align + 2 * GUARD_BYTES + 63) / 64 * 64), .bytes = bytes};
    assert_non_null(g.base);
    memset(g.base, GUARD_BYTE, bytes + align + 2 * GUARD_BYTES);
    g.data = g.base + GUARD_BYTES + align;
    return g;
}

static inline struct guarded guarded_tensor(enum bn_dtype dtype, struct bn_shape shape) {
    return guarded_new(elements(shape) * bn_dtype_size(dtype), bn_dtype_size(dtype));
}

static inline struct guarded guarded_doubles(size_t n) {
    return guarded_new(n * sizeof(double), sizeof(double));
}

// Whether nothing was written outside.
static inline bool guarded_intact(const struct guarded *g) {
    const unsigned char *const data = g->data;
    for (const unsigned char *p = g->base; p < data; p++) {
        if (*p != GUARD_BYTE) return false;
    }
    for (size_t i = 0; i < GUARD_BYTES; i++) {
        if (data[g->bytes + i] != GUARD_BYTE) return false;
    }
    return true;
}

static inline void guarded_free(struct guarded *g) {
    assert_true(guarded_intact(g));
    free(g->base);
    g->base = NULL;
}

// One case, for the message of its failure.
struct test_case {
    struct bn_shape shape;
    enum bn_dtype dtype;
    enum fill fill;
    uint64_t seed;
    double eps;
};

static inline void assert_near(double value, double expected, double tolerance) {
    if (!(fabs(value - expected) <= tolerance)) fail_msg("%.17g is not within %g of %.17g", value, tolerance, expected);
}

#define fail_case(t, ...)                                                                                              \
    do {                                                                                                               \
        print_error("f%zu [%zu][%zu][%zu] fill \"%s\" seed %llu eps %g: ", 8 * bn_dtype_size((t)->dtype),              \
                    (t)->shape.outer, (t)->shape.channels, (t)->shape.inner, fill_names[(t)->fill],                    \
                    (unsigned long long)(t)->seed, (t)->eps);                                                          \
        fail_msg(__VA_ARGS__);                                                                                         \
    } while (0)

// Edges of lanes (16), blocks (4096 elements, 512 rows, tiles of 128 columns), and shapes of PyTorch's and benchdnn's
// own tests.
static const struct bn_shape shapes[] = {
    {1, 1, 1},     {2, 1, 1},     {1, 8, 1},    {1, 1, 7},     {1, 1, 16},    {1, 1, 17},    {3, 1, 15},
    {2, 3, 16},    {2, 3, 17},    {2, 3, 31},   {2, 3, 33},    {5, 3, 49},    {90, 3, 49},   {200, 5, 49},
    {2, 2, 4095},  {2, 2, 4096},  {2, 2, 4097}, {3, 2, 12544}, {1, 3, 2},     {3000, 2, 2},  {4, 10, 1},
    {511, 3, 1},   {512, 3, 1},   {513, 3, 1},  {1025, 16, 1}, {700, 127, 1}, {600, 128, 1}, {600, 129, 1},
    {2, 300, 1},   {3, 17, 1},    {30, 15, 1},  {1200, 1, 1},  {10000, 1, 1}, {5000, 2, 1},  {4, 5, 3},
    {2, 3, 36},    {2, 3, 64},    {5, 5, 5},    {3, 2, 4},     {3, 1, 1},     {3, 2, 12},    {1, 2, 3},
    {4, 8, 100},   {4, 1, 81},    {4, 9, 1},    {4, 8, 200},   {2, 8, 8},     {2, 64, 2500}, {8, 6, 20},
    {2, 23, 7},    {2, 32, 32},   {5, 33, 33},  {4, 200, 272}, {2, 16, 12},   {1, 19, 144},  {1, 16, 1},
    {1, 32, 30},   {32, 128, 10}, {32, 27, 7},  {9, 128, 1},   {16, 256, 1},  {16, 512, 1},  {1, 2, 1},
    {2, 128, 512}, {1, 3, 1},     {1, 24, 196}, {2, 128, 4},   {12, 4, 64},   {2, 257, 16},  {3, 7, 5000},
};

#endif
