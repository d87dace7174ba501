// SPDX-License-Identifier: Apache-2.0
//
// Statistics and normalization against the oracle, to the bounds that kernels/README.md states.
#include "cases.h"
#include "oracle.h"

// Relative error of the variance: the proven bound, and one for fills whose pivots lie within a few sigmas.
static double variance_bound(enum fill fill) {
    return fill == FILL_OUTLIER_FIRST ? 1e-9 : 1e-12;
}

// Error of the mean in sigmas, and of y beside its ulps in sigmas of y. What underflows adds a few times the smallest
// subnormal to the mean, and |scale| times that to y.
static const double mean_bound = 1e-12;
static const long double y_ulps = 4.5L;

struct worst {
    long double variance[2][FILL_COUNT], mean[2][FILL_COUNT], y[2][FILL_COUNT];
};
static struct worst worst;

struct outputs {
    struct guarded mean, mean_lo, m2, var, y;
};

static struct outputs outputs_new(const struct test_case *t) {
    const size_t channels = t->shape.channels;
    return (struct outputs){
        .mean = guarded_doubles(channels),
        .mean_lo = guarded_doubles(channels),
        .m2 = guarded_doubles(channels),
        .var = guarded_doubles(channels),
        .y = guarded_tensor(t->dtype, t->shape),
    };
}

static void outputs_free(struct outputs *out) {
    guarded_free(&out->mean);
    guarded_free(&out->mean_lo);
    guarded_free(&out->m2);
    guarded_free(&out->var);
    guarded_free(&out->y);
}

static struct bn_norm compute_statistics(const struct test_case *t, const void *x, struct outputs *out) {
    struct bn_stats stats = {.mean = out->mean.data, .mean_lo = out->mean_lo.data, .m2 = out->m2.data};
    assert_int_equal(bn_statistics(&stats, x, t->dtype, t->shape, NULL), BN_OK);
    assert_int_equal(stats.count, t->shape.outer * t->shape.inner);
    for (size_t c = 0; c < t->shape.channels; c++) ((double *)out->var.data)[c] = stats.m2[c] / (double)stats.count;
    return (struct bn_norm){.mean = stats.mean, .mean_lo = stats.mean_lo, .var = out->var.data, .eps = t->eps};
}

static void check_statistics(const struct test_case *t, const struct truth *truth, const struct bn_norm *norm,
                             size_t c) {
    const long double sigma = sqrtl(truth->var);
    const long double off = fabsl(distance(truth, norm->mean[c]) + norm->mean_lo[c]);
    if (!(off <= mean_bound * sigma + 8 * DBL_TRUE_MIN))
        fail_case(t, "channel %zu: mean off by %Lg of sigma %Lg", c, off, sigma);
    const long double error = fabsl(norm->var[c] - truth->var);
    if (!(error <= variance_bound(t->fill) * truth->var + DBL_TRUE_MIN))
        fail_case(t, "channel %zu: variance %.17g, is %.20Lg", c, norm->var[c], truth->var);
    if (sigma > 0) {
        worst.mean[t->dtype][t->fill] = fmaxl(worst.mean[t->dtype][t->fill], off / sigma);
        if (truth->var > DBL_MIN)
            worst.variance[t->dtype][t->fill] = fmaxl(worst.variance[t->dtype][t->fill], error / truth->var);
    }
}

static void check_y(const struct test_case *t, const void *x, const struct truth *truth, const struct bn_norm *norm,
                    const void *y, size_t c) {
    const size_t n = t->shape.outer * t->shape.inner;
    const double gamma = norm->gamma ? norm->gamma[c] : 1;
    const double beta = norm->beta ? norm->beta[c] : 0;
    const long double scale = gamma / sqrtl(truth->var + (long double)t->eps);
    const long double sigma_y = fabsl(scale) * sqrtl(truth->var);
    for (size_t k = 0; k < n; k++) {
        const size_t i = channel_index(t->shape, c, k);
        const long double apart = distance(truth, get(x, t->dtype, i)) * scale;
        const long double error = fabsl(get(y, t->dtype, i) - (apart + beta));
        const long double unit = ulp(max3(apart + beta, apart, beta), t->dtype);
        const long double slack = mean_bound * sigma_y + 8 * fabsl(scale) * ulp(0, t->dtype) +
                                  (t->dtype == BN_F64 ? variance_bound(t->fill) / 2 * fabsl(apart) : 0);
        if (!(error <= y_ulps * unit + slack))
            fail_case(t, "y[%zu] of channel %zu is %.17g, not %.20Lg: %Lg ulp", i, c, get(y, t->dtype, i), apart + beta,
                      error / unit);
        worst.y[t->dtype][t->fill] = fmaxl(worst.y[t->dtype][t->fill], (error - slack) / unit);
    }
}

static void random_array(double *array, size_t n, uint64_t seed) {
    for (size_t i = 0; i < n; i++) array[i] = i % 7 == 3 ? 0 : random_normal(&seed);
}

static void check_case(const struct test_case *t, bool affine) {
    struct outputs out = outputs_new(t);
    struct guarded x = guarded_tensor(t->dtype, t->shape);
    struct guarded gamma = guarded_doubles(t->shape.channels);
    struct guarded beta = guarded_doubles(t->shape.channels);
    random_array(gamma.data, t->shape.channels, t->seed + 1);
    random_array(beta.data, t->shape.channels, t->seed + 2);
    fill_tensor(x.data, t->dtype, t->shape, t->fill, t->seed);

    struct bn_norm norm = compute_statistics(t, x.data, &out);
    norm.gamma = affine ? gamma.data : NULL;
    norm.beta = affine ? beta.data : NULL;
    assert_int_equal(bn_normalize(out.y.data, x.data, t->dtype, t->shape, &norm, NULL), BN_OK);
    for (size_t c = 0; c < t->shape.channels; c++) {
        const struct truth truth = truth_of(x.data, t->dtype, t->shape, c);
        check_statistics(t, &truth, &norm, c);
        check_y(t, x.data, &truth, &norm, out.y.data, c);
    }
    assert_int_equal(bn_normalize(x.data, x.data, t->dtype, t->shape, &norm, NULL), BN_OK);
    if (memcmp(x.data, out.y.data, x.bytes) != 0) fail_case(t, "y in place of x differs");

    guarded_free(&gamma);
    guarded_free(&beta);
    guarded_free(&x);
    outputs_free(&out);
}

static void test_accuracy(void **state) {
    (void)state;
    uint64_t seed = 1;
    for (size_t s = 0; s < COUNT(shapes); s++) {
        for (enum fill fill = 0; fill < FILL_COUNT; fill++) {
            for (enum bn_dtype dtype = BN_F32; dtype <= BN_F64; dtype++) {
                const struct test_case t = {shapes[s], dtype, fill, seed, seed / 2 % 2 ? 1e-5 : 1e-45};
                check_case(&t, seed / 2 % 3 != 0);
                seed++;
            }
        }
    }
    for (enum bn_dtype dtype = BN_F32; getenv("TEST_VERBOSE") && dtype <= BN_F64; dtype++) {
        for (enum fill fill = 0; fill < FILL_COUNT; fill++)
            print_message("# f%d %-18s variance %.1Le mean %.1Le sigma, y %.2Lf ulp\n", dtype == BN_F32 ? 32 : 64,
                          fill_names[fill], worst.variance[dtype][fill], worst.mean[dtype][fill], worst.y[dtype][fill]);
    }
}

static void test_large_tensor(void **state) {
    (void)state;
    const enum fill fills[] = {FILL_NORMAL_1E6, FILL_OUTLIER_FIRST};
    for (size_t i = 0; i < COUNT(fills); i++) {
        check_case(&(struct test_case){{4, 3, 50176}, BN_F32, fills[i], 77 + i, 1e-5}, true);
        check_case(&(struct test_case){{200000, 3, 1}, BN_F32, fills[i], 88 + i, 1e-5}, true);
    }
}

// Exactly: mean, variance 0, and y = beta at any eps.
static void test_constant_channel(void **state) {
    (void)state;
    const double values[] = {0, -0.0, 1, 100.1, -1e6, 1e30, 1e-40, 16777217};
    const double epses[] = {1e-5, 1e-300};
    for (size_t i = 0; i < COUNT(values) * COUNT(shapes) * COUNT(epses) * 2; i++) {
        struct test_case t = {shapes[i / 2 / COUNT(values) / COUNT(epses)], i % 2 ? BN_F64 : BN_F32, FILL_CONSTANT, i,
                              epses[i / 2 / COUNT(values) % COUNT(epses)]};
        const double value = values[i / 2 % COUNT(values)];
        if (elements(t.shape) > 20000) continue;
        struct outputs out = outputs_new(&t);
        struct guarded beta = guarded_doubles(t.shape.channels);
        random_array(beta.data, t.shape.channels, i);
        for (size_t k = 0; k < elements(t.shape); k++) put(out.y.data, t.dtype, k, value);
        const double held = get(out.y.data, t.dtype, 0);
        struct bn_norm norm = compute_statistics(&t, out.y.data, &out);
        norm.beta = beta.data;
        assert_int_equal(bn_normalize(out.y.data, out.y.data, t.dtype, t.shape, &norm, NULL), BN_OK);
        for (size_t c = 0; c < t.shape.channels; c++) {
            if (norm.mean[c] != held || norm.mean_lo[c] != 0 || norm.var[c] != 0)
                fail_case(&t, "constant %g: mean %.17g + %g, variance %g", held, norm.mean[c], norm.mean_lo[c],
                          norm.var[c]);
            const double y = get(out.y.data, t.dtype, channel_index(t.shape, c, t.shape.outer * t.shape.inner - 1));
            if (y != (t.dtype == BN_F32 ? (double)(float)norm.beta[c] : norm.beta[c]))
                fail_case(&t, "constant %g: y %.17g, beta %.17g", held, y, norm.beta[c]);
        }
        guarded_free(&beta);
        outputs_free(&out);
    }
}

// A NaN or an infinity anywhere, the first value included, shows in its channel and in no other.
static void test_nonfinite(void **state) {
    (void)state;
    const double bad[] = {NAN, INFINITY, -INFINITY};
    uint64_t random = 5;
    for (size_t i = 0; i < 2000; i++) {
        const struct test_case t = {shapes[i % COUNT(shapes)], i % 2 ? BN_F64 : BN_F32, FILL_NORMAL, i, 1e-5};
        const size_t n = elements(t.shape);
        if (n > 20000) continue;
        struct outputs clean = outputs_new(&t), out = outputs_new(&t);
        fill_tensor(clean.y.data, t.dtype, t.shape, t.fill, t.seed);
        memcpy(out.y.data, clean.y.data, out.y.bytes);
        const size_t channel = random_bits(&random) % t.shape.channels;
        const size_t per_channel = t.shape.outer * t.shape.inner;
        const size_t at = channel_index(t.shape, channel, i % 4 == 0 ? 0 : random_bits(&random) % per_channel);
        put(out.y.data, t.dtype, at, bad[i % 3]);
        assert_int_equal(bn_first_nonfinite(clean.y.data, n, t.dtype), n);
        assert_int_equal(bn_first_nonfinite(out.y.data, n, t.dtype), at);
        const struct bn_norm before = compute_statistics(&t, clean.y.data, &clean);
        const struct bn_norm after = compute_statistics(&t, out.y.data, &out);
        for (size_t c = 0; c < t.shape.channels; c++) {
            if (c == channel && isfinite(after.mean[c]) && isfinite(after.var[c]))
                fail_case(&t, "%g at %zu, yet mean %g, variance %g", bad[i % 3], at, after.mean[c], after.var[c]);
            if (c != channel && (before.mean[c] != after.mean[c] || before.var[c] != after.var[c]))
                fail_case(&t, "%g at %zu changed channel %zu", bad[i % 3], at, c);
        }
        outputs_free(&clean);
        outputs_free(&out);
    }
}

// Squares out of range must leave an infinite m2, neither NaN nor a finite one.
static void test_f64_overflow(void **state) {
    (void)state;
    const double x[] = {1e200, -1e200, -1e200, 3e200};
    double mean, mean_lo, m2;
    struct bn_stats stats = {.mean = &mean, .mean_lo = &mean_lo, .m2 = &m2};
    assert_int_equal(bn_statistics(&stats, x, BN_F64, (struct bn_shape){4, 1, 1}, NULL), BN_OK);
    assert_true(isinf(m2) && m2 > 0);
    assert_near(mean / 1e200, 0.5, 1e-15);
}

static void test_empty_and_bad_shapes(void **state) {
    (void)state;
    double mean[3] = {7, 7, 7}, mean_lo[3] = {7, 7, 7}, m2[3] = {7, 7, 7};
    struct bn_stats stats = {.count = 7, .mean = mean, .mean_lo = mean_lo, .m2 = m2};
    const struct bn_norm norm = {.mean = mean, .var = m2, .eps = 1e-5};
    const struct bn_shape empty[] = {{0, 3, 5}, {5, 3, 0}, {0, 3, 1}, {0, 3, SIZE_MAX}};
    for (size_t i = 0; i < COUNT(empty); i++) {
        assert_int_equal(bn_statistics(&stats, NULL, BN_F32, empty[i], NULL), BN_OK);
        assert_int_equal(stats.count, 0);
        assert_true(mean[2] == 0 && mean_lo[2] == 0 && m2[2] == 0);
        assert_int_equal(bn_normalize(NULL, NULL, BN_F32, empty[i], &norm, NULL), BN_OK);
    }
    const struct bn_shape bad[] = {
        {1, 0, 1},
        {0, 0, 0},
        {SIZE_MAX, 1, 2},
        {1, SIZE_MAX, 1},
        {(size_t)1 << 31, (size_t)1 << 31, 1},
        {1, 1, PTRDIFF_MAX / 4 + 1},
        {(size_t)1 << 32, 1, (size_t)1 << 32},
        {1, PTRDIFF_MAX / 8 + 1, 0},
    };
    for (size_t i = 0; i < COUNT(bad); i++) {
        assert_int_equal(bn_statistics(&stats, NULL, BN_F32, bad[i], NULL), BN_BAD_SHAPE);
        assert_int_equal(bn_normalize(NULL, NULL, BN_F32, bad[i], &norm, NULL), BN_BAD_SHAPE);
    }
    assert_int_equal(bn_dtype_size(BN_F32), 4);
    assert_int_equal(bn_dtype_size(BN_F64), 8);
}

// Running statistics: any mean and variance, no mean_lo.
static void test_given_statistics(void **state) {
    (void)state;
    const float x[] = {1, 2, 3, -4};
    const double mean[] = {1, -2}, var[] = {4, 0}, gamma[] = {3, 0.5}, beta[] = {10, 20};
    const struct bn_norm norm = {.mean = mean, .var = var, .gamma = gamma, .beta = beta, .eps = 0.25};
    const double invstd = 1 / sqrt(4.25);
    float y[4];
    assert_int_equal(bn_normalize(y, x, BN_F32, (struct bn_shape){2, 2, 1}, &norm, NULL), BN_OK);
    assert_near(y[0], 10, 0);
    assert_near(y[1], 20 + 4 * 0.5 * 2, 0);
    assert_near(y[2], 10 + 2 * 3 * invstd, 1e-6);
    assert_near(y[3], 20 - 2 * 0.5 * 2, 0);
}

// BN(a * x + b) = BN(x) for a > 0 where eps does not count; integers keep a * x + b exact.
static void test_affine_equivariance(void **state) {
    (void)state;
    const struct test_case t = {{70, 3, 49}, BN_F32, FILL_NORMAL, 3, 1e-30};
    struct outputs one = outputs_new(&t), two = outputs_new(&t);
    uint64_t random = t.seed;
    for (size_t i = 0; i < elements(t.shape); i++) {
        const double x = (double)(random_bits(&random) % 2001) - 1000;
        put(one.y.data, t.dtype, i, x);
        put(two.y.data, t.dtype, i, 3 * x + 4096);
    }
    const struct bn_norm first = compute_statistics(&t, one.y.data, &one);
    const struct bn_norm second = compute_statistics(&t, two.y.data, &two);
    assert_int_equal(bn_normalize(one.y.data, one.y.data, t.dtype, t.shape, &first, NULL), BN_OK);
    assert_int_equal(bn_normalize(two.y.data, two.y.data, t.dtype, t.shape, &second, NULL), BN_OK);
    for (size_t i = 0; i < elements(t.shape); i++) {
        const double a = get(one.y.data, t.dtype, i), b = get(two.y.data, t.dtype, i);
        if (!(fabs(a - b) <= 2 * y_ulps * ulp(a, t.dtype) + 2 * mean_bound))
            fail_case(&t, "y[%zu] is %.9g and %.9g", i, a, b);
    }
    outputs_free(&one);
    outputs_free(&two);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accuracy),         cmocka_unit_test(test_large_tensor),
        cmocka_unit_test(test_constant_channel), cmocka_unit_test(test_nonfinite),
        cmocka_unit_test(test_f64_overflow),     cmocka_unit_test(test_empty_and_bad_shapes),
        cmocka_unit_test(test_given_statistics), cmocka_unit_test(test_affine_equivariance),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
