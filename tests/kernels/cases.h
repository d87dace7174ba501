// SPDX-License-Identifier: Apache-2.0
//
// What kernel tests run on: random numbers, tensors of any type, fills, and how a case is named when it fails.
// Everything is static inline; each test binary includes what it needs.
#ifndef NORMD_TESTS_KERNELS_CASES_H
#define NORMD_TESTS_KERNELS_CASES_H

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../kernels/bn.h"
#include "guarded.h"
#include "half.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

enum { DTYPES = BN_BF16 + 1 };

static const char *const dtype_names[DTYPES] = {"f32", "f64", "f16", "bf16"};

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

// Standard normal, one of 65536 made Box and Muller's way: the logarithms would take most of the time of tests.
static inline double random_normal(uint64_t *state) {
    static double normals[0x10000];
    uint64_t own = 1;
    for (size_t i = 0; normals[0] == 0 && i < COUNT(normals); i++) {
        double *const next = &normals[COUNT(normals) - 1 - i];
        *next = sqrt(-2 * log(random_unit(&own))) * cos(6.283185307179586 * random_unit(&own));
    }
    return normals[random_bits(state) >> 48];
}

static inline size_t elements(struct bn_shape shape) {
    return shape.outer * shape.channels * shape.inner;
}

// Whether to run case number i, which would work on so many elements: of cases larger than `budget` only a part runs,
// and in sanitizer builds a part of all, always the same.
static inline bool chosen(uint64_t i, size_t elements, size_t budget) {
    static double scale = -1;
    if (scale < 0) scale = getenv("NORMD_TEST_SCALE") ? atof(getenv("NORMD_TEST_SCALE")) : 1;
    return random_unit(&i) * (double)elements < scale * (double)(elements < budget ? elements : budget);
}

static inline size_t index_of(struct bn_shape shape, size_t o, size_t c, size_t i) {
    return (o * shape.channels + c) * shape.inner + i;
}

// The index of value number k of a channel.
static inline size_t channel_index(struct bn_shape shape, size_t c, size_t k) {
    return index_of(shape, k / shape.inner, c, k % shape.inner);
}

static inline size_t dtype_size(enum bn_dtype dtype) {
    const size_t sizes[DTYPES] = {4, 8, 2, 2};
    return sizes[dtype];
}

static inline double get(const void *x, enum bn_dtype dtype, size_t i) {
    switch (dtype) {
    case BN_F32: return (double)((const float *)x)[i];
    case BN_F16: return (double)half_value(f16_format, ((const uint16_t *)x)[i]);
    case BN_BF16: return (double)half_value(bf16_format, ((const uint16_t *)x)[i]);
    case BN_F64: break;
    }
    return ((const double *)x)[i];
}

static inline void put(void *x, enum bn_dtype dtype, size_t i, double value) {
    switch (dtype) {
    case BN_F32: ((float *)x)[i] = (float)value; return;
    case BN_F16: ((uint16_t *)x)[i] = half_round(f16_format, (float)value); return;
    case BN_BF16: ((uint16_t *)x)[i] = half_round(bf16_format, (float)value); return;
    case BN_F64: break;
    }
    ((double *)x)[i] = value;
}

// The type that elements of dtype are computed in.
static inline enum bn_dtype real_of(enum bn_dtype dtype) {
    return dtype == BN_F64 ? BN_F64 : BN_F32;
}

static inline double round_to(enum bn_dtype dtype, double value) {
    double memory;
    put(&memory, dtype, 0, value);
    return get(&memory, dtype, 0);
}

static inline const void *at(const void *x, enum bn_dtype dtype, size_t i) {
    return (const char *)x + i * dtype_size(dtype);
}

// The first of n values that differs other than as a NaN does from a NaN, or n.
static inline size_t first_difference(const void *a, const void *b, enum bn_dtype dtype, size_t n) {
    if (memcmp(a, b, n * dtype_size(dtype)) == 0) return n;
    for (size_t i = 0; i < n; i++) {
        const bool same = memcmp(at(a, dtype, i), at(b, dtype, i), dtype_size(dtype)) == 0;
        if (!same && !(isnan(get(a, dtype, i)) && isnan(get(b, dtype, i)))) return i;
    }
    return n;
}

enum fill {
    FILL_NORMAL,
    FILL_NORMAL_1E3,
    FILL_NORMAL_1E6,
    FILL_NARROW_1E3,
    FILL_NARROW_1E6,
    FILL_COARSE, // sigma is a few units in the last place
    FILL_CONSTANT,
    FILL_OUTLIER_FIRST,
    FILL_SORTED,
    FILL_ALTERNATING,
    FILL_1E18,
    FILL_LARGE,
    FILL_SMALL,
    FILL_SUBNORMAL,
    FILL_NEGATIVE_ZERO,
    FILL_WHOLE,
    FILL_COUNT,
};

static const char *const fill_names[FILL_COUNT] = {
    "normal",       "normal at 1e3", "normal at 1e6", "sigma 0.1 at 1e3", "sigma 0.1 at 1e6",
    "coarse",       "constant",      "outlier first", "sorted",           "alternating",
    "1e18",         "large",         "small",         "subnormal",        "-0",
    "-1, -0, 0, 1",
};

// What the fills are made of, by type: f16 ends at 65504.
struct magnitudes {
    double offset, sigma, coarse, outlier, large, small, subnormal;
};

static const struct magnitudes magnitudes[DTYPES] = {
    [BN_F32] = {1e6, 1, 1.6e7, 1e8, 1e30, 1e-20, 1e-41},
    [BN_F64] = {1e6, 1, 1e15, 1e8, 1e140, 1e-140, 1e-314},
    [BN_F16] = {2e4, 20, 2000, 6e4, 1e4, 1e-6, 2e-7},
    [BN_BF16] = {1e6, 1e4, 250, 1e8, 1e30, 1e-20, 1e-39},
};

// Value number k of a channel.
static inline double fill_value(enum fill fill, enum bn_dtype dtype, size_t c, size_t k, uint64_t *random) {
    static const double whole[] = {-1, -0.0, 0, 1};
    const struct magnitudes *const m = &magnitudes[dtype];
    switch (fill) {
    case FILL_NORMAL: return random_normal(random);
    case FILL_NORMAL_1E3: return 1e3 + random_normal(random);
    case FILL_NORMAL_1E6: return m->offset + m->sigma * random_normal(random);
    case FILL_NARROW_1E3: return 1e3 + 0.1 * random_normal(random);
    case FILL_NARROW_1E6: return m->offset + 0.1 * m->sigma * random_normal(random);
    case FILL_COARSE: return m->coarse + 4 * random_normal(random);
    case FILL_CONSTANT: return 1234.567 * ((double)(c % 40) - 1.5);
    case FILL_OUTLIER_FIRST: return k == 0 ? m->outlier : random_normal(random);
    case FILL_SORTED: return (double)(k % 100000) * 0.37 - 11;
    case FILL_ALTERNATING: return k % 2 ? 1000.1 : -1000.1;
    case FILL_1E18: return (dtype == BN_F16 ? 1e3 : 1e18) * random_normal(random);
    case FILL_LARGE: return m->large * random_normal(random);
    case FILL_SMALL: return m->small * random_normal(random);
    case FILL_SUBNORMAL: return m->subnormal * random_normal(random);
    case FILL_NEGATIVE_ZERO: return -0.0;
    case FILL_WHOLE: return whole[random_bits(random) % COUNT(whole)];
    case FILL_COUNT: break;
    }
    return 0;
}

static inline void fill_tensor(void *x, enum bn_dtype dtype, struct bn_shape shape, enum fill fill, uint64_t seed) {
    for (size_t o = 0; o < shape.outer; o++) {
        for (size_t c = 0; c < shape.channels; c++) {
            for (size_t i = 0; i < shape.inner; i++)
                put(x, dtype, index_of(shape, o, c, i), fill_value(fill, dtype, c, o * shape.inner + i, &seed));
        }
    }
}

// A new tensor; every one lies at another place in its room than the one before.
static inline struct guarded guarded_values(enum bn_dtype dtype, size_t n) {
    static size_t place;
    struct guarded g = guarded_room(n * dtype_size(dtype));
    guarded_place(&g, n, dtype_size(dtype), place++ % 5);
    return g;
}

static inline struct guarded guarded_tensor(enum bn_dtype dtype, struct bn_shape shape) {
    return guarded_values(dtype, elements(shape));
}

static inline struct guarded guarded_doubles(size_t n) {
    return guarded_values(BN_F64, n);
}

static inline struct guarded guarded_copy(const struct guarded *of, enum bn_dtype dtype) {
    struct guarded g = guarded_values(dtype, of->bytes / dtype_size(dtype));
    memcpy(g.data, of->data, of->bytes);
    return g;
}

// Some of every kind that is not plain: 0 and -0, the ends of the range, NaN and both infinities.
static inline void sprinkle(void *x, enum bn_dtype dtype, size_t n, uint64_t seed) {
    const double large[DTYPES] = {3.4028234663852886e38, 1.7976931348623157e308, 65504, 3.3895313892515355e38};
    const double least[DTYPES] = {0x1p-149, 0x1p-1074, 0x1p-24, 0x1p-133};
    const double odd[] = {0, -0.0, NAN, INFINITY, -INFINITY, large[dtype], -large[dtype], least[dtype], -least[dtype]};
    for (size_t i = 0; i < 1 + n / 8; i++) put(x, dtype, random_bits(&seed) % n, odd[random_bits(&seed) % COUNT(odd)]);
}

// The four kinds of what follows a normalization.
enum post_kind { POST_NONE, POST_RELU, POST_RESIDUAL, POST_BOTH, POST_COUNT };

static const char *const post_names[POST_COUNT] = {"", " relu", " residual", " residual relu"};

static inline struct bn_post post_of(enum post_kind kind, const void *residual) {
    return (struct bn_post){
        .activation = kind & POST_RELU ? BN_RELU : BN_IDENTITY,
        .residual = kind & POST_RESIDUAL ? residual : NULL,
    };
}

// One case, for the message of its failure.
struct test_case {
    struct bn_shape shape;
    enum bn_dtype dtype;
    enum fill fill;
    uint64_t seed;
    double eps;
    enum post_kind post;
    bool affine, frozen;
};

static inline void assert_near(double value, double expected, double tolerance) {
    if (!(fabs(value - expected) <= tolerance)) fail_msg("%.17g is not within %g of %.17g", value, tolerance, expected);
}

#define fail_case(t, ...)                                                                                              \
    do {                                                                                                               \
        print_error("%s [%zu][%zu][%zu] fill \"%s\" seed %llu eps %g%s%s%s: ", dtype_names[(t)->dtype],                \
                    (t)->shape.outer, (t)->shape.channels, (t)->shape.inner, fill_names[(t)->fill],                    \
                    (unsigned long long)(t)->seed, (t)->eps, post_names[(t)->post], (t)->affine ? " affine" : "",      \
                    (t)->frozen ? " frozen" : "");                                                                     \
        fail_msg(__VA_ARGS__);                                                                                         \
    } while (0)

#endif
