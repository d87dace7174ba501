// SPDX-License-Identifier: Apache-2.0
//
// Statistics and normalization against the oracle, to the bounds that kernels/README.md states.
#include "oracle.h"
#include "shapes.h"

// Error of the mean in sigmas, and of y beside its ulps in sigmas of y. What underflows adds a few times the smallest
// subnormal to the mean, and |scale| times that to y.
static const double mean_bound = 1e-12;
static const long double y_ulps = 4.5L, y_ulps_residual = 5; // the sum with a residual is rounded once more

// Of f32 and f64.
struct worst {
    long double variance[2][FILL_COUNT], mean[2][FILL_COUNT], y[2][FILL_COUNT];
};
static struct worst worst;

static void raise(long double *to, long double value) {
    if (value > *to) *to = value;
}

struct tensors {
    struct guarded x, z, y, y2, mean, mean_lo, m2, var, gamma, beta;
};

static struct guarded random_array(size_t n, uint64_t seed) {
    struct guarded g = guarded_doubles(n);
    for (size_t i = 0; i < n; i++) ((double *)g.data)[i] = i % 7 == 3 ? 0 : random_normal(&seed);
    return g;
}

// With y filled, x where only one of them is of use.
static struct tensors tensors_new(const struct test_case *t) {
    const size_t channels = t->shape.channels;
    struct tensors all = {
        .x = guarded_tensor(t->dtype, t->shape),
        .z = guarded_tensor(t->dtype, t->shape),
        .y = guarded_tensor(t->dtype, t->shape),
        .y2 = guarded_tensor(t->dtype, t->shape),
        .mean = guarded_doubles(channels),
        .mean_lo = guarded_doubles(channels),
        .m2 = guarded_doubles(channels),
        .var = guarded_doubles(channels),
        .gamma = random_array(channels, t->seed + 1),
        .beta = random_array(channels, t->seed + 2),
    };
    fill_tensor(all.x.data, t->dtype, t->shape, t->fill, t->seed);
    fill_tensor(all.z.data, t->dtype, t->shape, FILL_NORMAL, t->seed + 3);
    return all;
}

static void tensors_free(struct tensors *all) {
    struct guarded *const each[] = {&all->x,       &all->z,  &all->y,   &all->y2,    &all->mean,
                                    &all->mean_lo, &all->m2, &all->var, &all->gamma, &all->beta};
    for (size_t i = 0; i < COUNT(each); i++) guarded_free(each[i]);
}

static struct bn_stats stats_in(const struct tensors *all) {
    return (struct bn_stats){.mean = all->mean.data, .mean_lo = all->mean_lo.data, .m2 = all->m2.data};
}

static struct bn_norm compute_statistics(const struct test_case *t, const struct tensors *all) {
    struct bn_stats stats = stats_in(all);
    assert_int_equal(bn_statistics(&stats, all->x.data, t->dtype, t->shape, NULL), BN_OK);
    assert_int_equal(stats.count, t->shape.outer * t->shape.inner);
    for (size_t c = 0; c < t->shape.channels; c++) ((double *)all->var.data)[c] = stats.m2[c] / (double)stats.count;
    return (struct bn_norm){.mean = stats.mean,
                            .mean_lo = stats.mean_lo,
                            .var = all->var.data,
                            .gamma = t->affine ? all->gamma.data : NULL,
                            .beta = t->affine ? all->beta.data : NULL,
                            .eps = t->eps};
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
    if (sigma > 0) raise(&worst.mean[t->dtype][t->fill], off / sigma);
    if (truth->var > DBL_MIN) raise(&worst.variance[t->dtype][t->fill], error / truth->var);
}

static long double activated(long double v, enum post_kind post) {
    return post & POST_RELU && v <= 0 ? 0 : v;
}

static void check_y(const struct test_case *t, const struct tensors *all, const struct truth *truth,
                    const struct bn_norm *norm, enum post_kind post, size_t c) {
    const double beta = entry_or(norm->beta, c, 0);
    const long double scale = entry_or(norm->gamma, c, 1) / sqrtl(truth->var + (long double)t->eps);
    const long double slack = mean_bound * fabsl(scale) * sqrtl(truth->var) + 8 * fabsl(scale) * ulp(0, t->dtype);
    const long double bound = post & POST_RESIDUAL ? y_ulps_residual : y_ulps;
    for (size_t o = 0; o < t->shape.outer; o++) {
        for (size_t i = index_of(t->shape, o, c, 0); i < index_of(t->shape, o, c, t->shape.inner); i++) {
            const long double apart = distance(truth, get(all->x.data, t->dtype, i)) * scale;
            const long double z = post & POST_RESIDUAL ? get(all->z.data, t->dtype, i) : 0;
            const double y = get(all->y.data, t->dtype, i);
            const long double error = fabsl(y - activated(apart + beta + z, post));
            const long double unit = ulp(max3(apart, beta, max3(apart + beta, apart + beta + z, 0)), t->dtype);
            const long double more = slack + (t->dtype == BN_F64 ? variance_bound(t->fill) / 2 * fabsl(apart) : 0);
            if (!(error <= bound * unit + more))
                fail_case(t, "y[%zu] of channel %zu is %.17g, not %.20Lg: %Lg ulp", i, c, y, apart + beta + z,
                          error / unit);
            raise(&worst.y[t->dtype][t->fill], (error - more) / unit);
        }
    }
}

static void expect_same_y(const struct test_case *t, const struct tensors *all, const void *y, const char *what) {
    const size_t i = first_difference(y, all->y.data, t->dtype, elements(t->shape));
    if (i < elements(t->shape))
        fail_case(t, "%s: y[%zu] is %.17g, otherwise %.17g", what, i, get(y, t->dtype, i),
                  get(all->y.data, t->dtype, i));
}

// bn_normalize in place of x and of the residual.
static void check_in_place(const struct test_case *t, struct tensors *all, const struct bn_norm *norm) {
    struct bn_post post = post_of(t->post, all->z.data);
    memcpy(all->y2.data, all->x.data, all->x.bytes);
    assert_int_equal(bn_normalize(all->y2.data, all->y2.data, t->dtype, t->shape, norm, &post, NULL), BN_OK);
    expect_same_y(t, all, all->y2.data, "in place of x");
    if (!(t->post & POST_RESIDUAL)) return;
    memcpy(all->y2.data, all->z.data, all->z.bytes);
    post.residual = all->y2.data;
    assert_int_equal(bn_normalize(all->y2.data, all->x.data, t->dtype, t->shape, norm, &post, NULL), BN_OK);
    expect_same_y(t, all, all->y2.data, "in place of the residual");
}

// bn_train_forward: the bits of bn_statistics and bn_normalize, also in place of x or, next time, of the residual.
static void check_train_forward(const struct test_case *t, struct tensors *all, struct bn_pool *pool) {
    struct guarded kept[] = {guarded_copy(&all->mean, BN_F64), guarded_copy(&all->mean_lo, BN_F64),
                             guarded_copy(&all->m2, BN_F64)};
    struct bn_stats stats = stats_in(all);
    const void *const now[] = {stats.mean, stats.mean_lo, stats.m2};
    const double *const gamma = t->affine ? all->gamma.data : NULL, *const beta = t->affine ? all->beta.data : NULL;
    for (size_t place = 0; place < 3; place++) {
        struct bn_post post = post_of(t->post, all->z.data);
        const void *x = all->x.data;
        if (place == 1) x = memcpy(all->y2.data, all->x.data, all->x.bytes);
        if (place == 2)
            post.residual = t->post & POST_RESIDUAL ? memcpy(all->y2.data, all->z.data, all->z.bytes) : NULL;
        memset(stats.mean, 0xee, all->mean.bytes);
        assert_int_equal(
            bn_train_forward(all->y2.data, &stats, x, t->dtype, t->shape, gamma, beta, t->eps, &post, pool), BN_OK);
        assert_int_equal(stats.count, t->shape.outer * t->shape.inner);
        expect_same_y(t, all, all->y2.data, place == 0 ? "train_forward" : "train_forward in place");
        for (size_t i = 0; i < COUNT(kept); i++) {
            const size_t c = first_difference(now[i], kept[i].data, BN_F64, t->shape.channels);
            if (c < t->shape.channels) fail_case(t, "train_forward: statistics of channel %zu differ", c);
        }
    }
    for (size_t i = 0; i < COUNT(kept); i++) guarded_free(&kept[i]);
}

static void check_case(const struct test_case *t, struct bn_pool *pool) {
    struct tensors all = tensors_new(t);
    const struct bn_norm norm = compute_statistics(t, &all);
    const struct bn_post post = post_of(t->post, all.z.data);
    assert_int_equal(bn_normalize(all.y.data, all.x.data, t->dtype, t->shape, &norm,
                                  t->post == POST_NONE && t->seed % 2 ? NULL : &post, pool),
                     BN_OK);
    for (size_t c = 0; c < t->shape.channels; c++) {
        const struct truth truth = truth_of(all.x.data, t->dtype, t->shape, c);
        check_statistics(t, &truth, &norm, c);
        check_y(t, &all, &truth, &norm, t->post, c);
    }
    check_in_place(t, &all, &norm);
    check_train_forward(t, &all, pool);
    tensors_free(&all);
}

static int report_worst(void **state) {
    (void)state;
    if (!getenv("TEST_VERBOSE")) return 0;
    for (enum bn_dtype dtype = BN_F32; dtype <= BN_F64; dtype++) {
        for (enum fill fill = 0; fill < FILL_COUNT; fill++)
            print_message("# %s %-18s variance %.1Le mean %.1Le sigma, y %.2Lf ulp\n", dtype_names[dtype],
                          fill_names[fill], worst.variance[dtype][fill], worst.mean[dtype][fill], worst.y[dtype][fill]);
    }
    return 0;
}

static void test_accuracy(void **state) {
    (void)state;
    struct bn_pool *pool = bn_pool_new(2);
    uint64_t seed = 1;
    for (size_t i = 0; i < COUNT(shapes) * FILL_COUNT * 2; i++, seed++) {
        const struct test_case t = {.shape = shapes[i / 2 / FILL_COUNT],
                                    .dtype = i % 2 ? BN_F64 : BN_F32,
                                    .fill = i / 2 % FILL_COUNT,
                                    .seed = seed,
                                    .eps = seed / 2 % 2 ? 1e-5 : 1e-45,
                                    .post = seed / 3 % POST_COUNT,
                                    .affine = seed / 4 % 3 != 0};
        if (chosen(seed, elements(t.shape), 5000)) check_case(&t, seed % 3 ? NULL : pool);
    }
    bn_pool_free(&pool);
}

static void test_large_tensors(void **state) {
    (void)state;
    const enum fill fills[] = {FILL_NORMAL_1E6, FILL_OUTLIER_FIRST, FILL_NORMAL};
    for (size_t i = 0; i < COUNT(large_shapes); i++) {
        const struct test_case t = {.shape = large_shapes[i],
                                    .dtype = i % 4 == 3 ? BN_F64 : BN_F32,
                                    .fill = fills[i % COUNT(fills)],
                                    .seed = i,
                                    .eps = 1e-5,
                                    .post = i % POST_COUNT,
                                    .affine = true};
        if (chosen(i, 1, 1)) check_case(&t, NULL);
    }
}

// Exactly: mean, variance 0, and y = beta at any eps.
static void check_constant(const struct test_case *t, double value) {
    struct tensors all = tensors_new(t);
    for (size_t i = 0; i < elements(t->shape); i++) put(all.x.data, t->dtype, i, value);
    const double held = round_to(t->dtype, value);
    const struct bn_norm norm = compute_statistics(t, &all);
    assert_int_equal(bn_normalize(all.y.data, all.x.data, t->dtype, t->shape, &norm, NULL, NULL), BN_OK);
    for (size_t c = 0; c < t->shape.channels; c++) {
        if (norm.mean[c] != held || norm.mean_lo[c] != 0 || norm.var[c] != 0)
            fail_case(t, "constant %g: mean %.17g + %g, variance %g", held, norm.mean[c], norm.mean_lo[c], norm.var[c]);
        const double beta = round_to(t->dtype, entry_or(norm.beta, c, 0));
        for (size_t o = 0; o < t->shape.outer; o++) {
            const double y = get(all.y.data, t->dtype, index_of(t->shape, o, c, t->shape.inner - 1));
            if (y != beta) fail_case(t, "constant %g: y %.17g, beta %.17g", held, y, beta);
        }
    }
    check_train_forward(t, &all, NULL);
    tensors_free(&all);
}

static void test_constant_channel(void **state) {
    (void)state;
    const double values[] = {0, -0.0, 1, 100.1, -1e6, 1e30, 1e-40, 16777217, 65504, 1e200};
    uint64_t seed = 1;
    for (size_t i = 0; i < COUNT(values) * COUNT(shapes) * DTYPES; i++, seed++) {
        const struct test_case t = {.shape = shapes[i / DTYPES / COUNT(values)],
                                    .dtype = i % DTYPES,
                                    .fill = FILL_CONSTANT,
                                    .seed = seed,
                                    .eps = seed / 3 % 2 ? 1e-5 : 1e-300,
                                    .affine = seed % 7 > 0};
        const double value = values[i / DTYPES % COUNT(values)];
        if (isfinite(round_to(t.dtype, value)) && chosen(seed, elements(t.shape), 1000)) check_constant(&t, value);
    }
}

// Whether channels other than `odd` kept their statistics and y, and that one has NaN in all of them.
static void check_poison(const struct test_case *t, const struct tensors *clean, const struct tensors *all,
                         size_t odd) {
    const double *const before[] = {clean->mean.data, clean->mean_lo.data, clean->m2.data};
    const double *const after[] = {all->mean.data, all->mean_lo.data, all->m2.data};
    for (size_t c = 0; c < t->shape.channels; c++) {
        if (c == odd && !(isnan(after[0][c]) && isnan(after[2][c])))
            fail_case(t, "channel %zu: mean %g, m2 %g", c, after[0][c], after[2][c]);
        for (size_t i = 0; i < COUNT(before) && c != odd; i++) {
            if (before[i][c] != after[i][c]) fail_case(t, "channel %zu changed with channel %zu", c, odd);
        }
        for (size_t k = 0; k < t->shape.outer * t->shape.inner; k++) {
            const size_t i = channel_index(t->shape, c, k);
            const double y = get(all->y.data, t->dtype, i);
            if (c == odd && !isnan(y)) fail_case(t, "y[%zu] is %g in channel %zu, not NaN", i, y, c);
            if (c != odd && y != get(clean->y.data, t->dtype, i))
                fail_case(t, "y[%zu] changed with channel %zu", i, odd);
        }
    }
}

static void train(const struct test_case *t, const struct tensors *all) {
    const struct bn_post post = {.activation = t->post & POST_RELU ? BN_RELU : BN_IDENTITY};
    struct bn_stats stats = stats_in(all);
    assert_int_equal(
        bn_train_forward(all->y.data, &stats, all->x.data, t->dtype, t->shape, NULL, NULL, t->eps, &post, NULL), BN_OK);
}

// A NaN or an infinity anywhere, the first value included, shows in its channel and in no other.
static void test_nonfinite(void **state) {
    (void)state;
    const double bad[] = {NAN, INFINITY, -INFINITY};
    uint64_t random = 5;
    for (size_t i = 0; i < 20 * COUNT(shapes); i++) {
        const struct test_case t = {.shape = shapes[i % COUNT(shapes)],
                                    .dtype = i / COUNT(shapes) % DTYPES,
                                    .seed = i,
                                    .eps = 1e-5,
                                    .post = i % 2};
        const size_t n = elements(t.shape), values = t.shape.outer * t.shape.inner;
        const size_t channel = random_bits(&random) % t.shape.channels;
        const size_t odd = channel_index(t.shape, channel, i % 4 == 0 ? 0 : random_bits(&random) % values);
        if (!chosen(i, n, 2000)) continue;
        struct tensors clean = tensors_new(&t), all = tensors_new(&t);
        put(all.x.data, t.dtype, odd, bad[i % 3]);
        assert_int_equal(bn_first_nonfinite(clean.x.data, n, t.dtype), n);
        assert_int_equal(bn_first_nonfinite(all.x.data, n, t.dtype), odd);
        train(&t, &clean);
        train(&t, &all);
        check_poison(&t, &clean, &all, channel);
        tensors_free(&clean);
        tensors_free(&all);
    }
}

// A NaN in the residual alone passes through relu; an infinity is only as large as it is.
static void test_nonfinite_residual(void **state) {
    (void)state;
    for (enum bn_dtype dtype = 0; dtype < BN_BF16 + 1; dtype++) {
        const struct test_case t = {.shape = {2, 3, 1}, .dtype = dtype, .eps = 1e-5};
        struct tensors all = tensors_new(&t);
        const double z[] = {NAN, INFINITY, -INFINITY, -100, -0.0, 100};
        for (size_t i = 0; i < COUNT(z); i++) put(all.z.data, dtype, i, z[i]);
        const struct bn_norm norm = compute_statistics(&t, &all);
        const struct bn_post post = post_of(POST_BOTH, all.z.data);
        assert_int_equal(bn_normalize(all.y.data, all.x.data, dtype, t.shape, &norm, &post, NULL), BN_OK);
        assert_true(isnan(get(all.y.data, dtype, 0)));
        assert_true(get(all.y.data, dtype, 1) == (double)INFINITY);
        for (size_t i = 2; i < 4; i++)
            assert_true(get(all.y.data, dtype, i) == 0 && !signbit(get(all.y.data, dtype, i)));
        tensors_free(&all);
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
    for (size_t i = 0; i < COUNT(empty) * DTYPES * 2; i++) {
        const enum bn_dtype dtype = i % DTYPES;
        const struct bn_shape shape = empty[i / DTYPES / 2];
        mean[2] = mean_lo[2] = m2[2] = 7;
        stats.count = 7;
        if (i / DTYPES % 2)
            assert_int_equal(bn_statistics(&stats, NULL, dtype, shape, NULL), BN_OK);
        else
            assert_int_equal(bn_train_forward(NULL, &stats, NULL, dtype, shape, NULL, NULL, 1, NULL, NULL), BN_OK);
        assert_int_equal(stats.count, 0);
        assert_true(mean[2] == 0 && mean_lo[2] == 0 && m2[2] == 0);
        assert_int_equal(bn_normalize(NULL, NULL, dtype, shape, &norm, NULL, NULL), BN_OK);
        assert_int_equal(bn_first_nonfinite(NULL, 0, dtype), 0);
    }
    const struct bn_shape bad[] = {
        {1, 0, 1},
        {0, 0, 0},
        {SIZE_MAX, 1, 2},
        {1, SIZE_MAX, 1},
        {(size_t)1 << 31, (size_t)1 << 31, 2},
        {1, 1, PTRDIFF_MAX / 2 + 1},
        {(size_t)1 << 32, 1, (size_t)1 << 32},
        {1, PTRDIFF_MAX / 8 + 1, 0},
    };
    for (size_t i = 0; i < COUNT(bad) * DTYPES; i++) {
        const enum bn_dtype dtype = i % DTYPES;
        const struct bn_shape shape = bad[i / DTYPES];
        assert_int_equal(bn_statistics(&stats, NULL, dtype, shape, NULL), BN_BAD_SHAPE);
        assert_int_equal(bn_normalize(NULL, NULL, dtype, shape, &norm, NULL, NULL), BN_BAD_SHAPE);
        assert_int_equal(bn_train_forward(NULL, &stats, NULL, dtype, shape, NULL, NULL, 1, NULL, NULL), BN_BAD_SHAPE);
    }
    for (enum bn_dtype dtype = 0; dtype < BN_BF16 + 1; dtype++)
        assert_int_equal(bn_dtype_size(dtype), dtype_size(dtype));
}

// Running statistics: any mean and variance, no mean_lo.
static void test_given_statistics(void **state) {
    (void)state;
    const float x[] = {1, 2, 3, -4};
    const double mean[] = {1, -2}, var[] = {4, 0}, gamma[] = {3, 0.5}, beta[] = {10, 20};
    const struct bn_norm norm = {.mean = mean, .var = var, .gamma = gamma, .beta = beta, .eps = 0.25};
    const double invstd = 1 / sqrt(4.25);
    float y[4];
    assert_int_equal(bn_normalize(y, x, BN_F32, (struct bn_shape){2, 2, 1}, &norm, NULL, NULL), BN_OK);
    assert_near((double)y[0], 10, 0);
    assert_near((double)y[1], 20 + 4 * 0.5 * 2, 0);
    assert_near((double)y[2], 10 + 2 * 3 * invstd, 1e-6);
    assert_near((double)y[3], 20 - 2 * 0.5 * 2, 0);
}

// BN(a * x + b) = BN(x) for a > 0 where eps does not count; integers keep a * x + b exact.
static void test_affine_equivariance(void **state) {
    (void)state;
    const struct test_case t = {.shape = {70, 3, 49}, .seed = 3, .eps = 1e-30};
    struct tensors one = tensors_new(&t), two = tensors_new(&t);
    uint64_t random = t.seed;
    for (size_t i = 0; i < elements(t.shape); i++) {
        const double x = (double)(random_bits(&random) % 2001) - 1000;
        put(one.x.data, t.dtype, i, x);
        put(two.x.data, t.dtype, i, 3 * x + 4096);
    }
    train(&t, &one);
    train(&t, &two);
    for (size_t i = 0; i < elements(t.shape); i++) {
        const double a = get(one.y.data, t.dtype, i), b = get(two.y.data, t.dtype, i);
        if (!(fabs(a - b) <= (double)(2 * y_ulps * ulp(a, t.dtype)) + 2 * mean_bound))
            fail_case(&t, "y[%zu] is %.9g and %.9g", i, a, b);
    }
    tensors_free(&one);
    tensors_free(&two);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accuracy),
        cmocka_unit_test(test_large_tensors),
        cmocka_unit_test(test_constant_channel),
        cmocka_unit_test(test_nonfinite),
        cmocka_unit_test(test_nonfinite_residual),
        cmocka_unit_test(test_f64_overflow),
        cmocka_unit_test(test_empty_and_bad_shapes),
        cmocka_unit_test(test_given_statistics),
        cmocka_unit_test(test_affine_equivariance),
    };
    return cmocka_run_group_tests(tests, NULL, report_worst);
}
