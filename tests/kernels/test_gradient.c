// SPDX-License-Identifier: Apache-2.0
//
// Gradients against the oracle, to the bounds that kernels/README.md states, and against finite differences.
#include "cases.h"
#include "oracle.h"

// dx in ulps of its largest term: with u half of one, rounding shift, dy - shift, d * slope, their difference and the
// product with scale costs at most 1 + 2 + 4 + 3 + 6 u where all three terms are as large as that.
static const long double dx_ulps = 8;
static const long double frozen_dx_ulps = 2;

// dgamma and dbeta relative to the sum of absolute values of their terms.
static long double sums_bound(enum fill fill) {
    return fill == FILL_OUTLIER_FIRST ? 1e-9L : 1e-11L;
}

// What the errors of the statistics add to f64's dx, relative to its largest term.
static long double f64_bound(enum fill fill) {
    return fill == FILL_OUTLIER_FIRST ? 1e-9L : 1e-12L;
}

static long double worst_dx[2], worst_sums[2];

struct tensors {
    struct guarded x, dout, dx, mean, mean_lo, var, gamma, dgamma, dbeta;
};

static struct tensors tensors_new(const struct test_case *t) {
    const size_t channels = t->shape.channels;
    struct tensors all = {
        .x = guarded_tensor(t->dtype, t->shape),
        .dout = guarded_tensor(t->dtype, t->shape),
        .dx = guarded_tensor(t->dtype, t->shape),
        .mean = guarded_doubles(channels),
        .mean_lo = guarded_doubles(channels),
        .var = guarded_doubles(channels),
        .gamma = guarded_doubles(channels),
        .dgamma = guarded_doubles(channels),
        .dbeta = guarded_doubles(channels),
    };
    fill_tensor(all.x.data, t->dtype, t->shape, t->fill, t->seed);
    uint64_t random = t->seed + 1;
    for (size_t i = 0; i < elements(t->shape); i++)
        put(all.dout.data, t->dtype, i, random_normal(&random) + (t->seed % 5 == 0 ? 100 : 0));
    for (size_t c = 0; c < channels; c++) ((double *)all.gamma.data)[c] = random_normal(&random);
    return all;
}

static void tensors_free(struct tensors *all) {
    struct guarded *const each[] = {&all->x,   &all->dout,  &all->dx,     &all->mean, &all->mean_lo,
                                    &all->var, &all->gamma, &all->dgamma, &all->dbeta};
    for (size_t i = 0; i < COUNT(each); i++) guarded_free(each[i]);
}

static struct bn_norm own_statistics(const struct test_case *t, const struct tensors *all) {
    struct bn_stats stats = {.mean = all->mean.data, .mean_lo = all->mean_lo.data, .m2 = all->var.data};
    assert_int_equal(bn_statistics(&stats, all->x.data, t->dtype, t->shape, NULL), BN_OK);
    for (size_t c = 0; c < t->shape.channels; c++) stats.m2[c] /= (double)stats.count;
    return (struct bn_norm){.mean = stats.mean, .mean_lo = stats.mean_lo, .var = stats.m2, .eps = t->eps};
}

struct gradient_truth {
    long double invstd, dgamma, dbeta;
    long double dgamma_size, dbeta_size; // sums of absolute values
};

static struct gradient_truth gradient_of(const struct test_case *t, const struct tensors *all,
                                         const struct truth *truth, size_t c) {
    struct gradient_truth g = {.invstd = 1 / sqrtl(truth->var + (long double)t->eps)};
    for (size_t k = 0; k < t->shape.outer * t->shape.inner; k++) {
        const size_t i = channel_index(t->shape, c, k);
        const long double dy = get(all->dout.data, t->dtype, i);
        const long double xhat = distance(truth, get(all->x.data, t->dtype, i)) * g.invstd;
        g.dbeta += dy;
        g.dgamma += dy * xhat;
        g.dbeta_size += fabsl(dy);
        g.dgamma_size += fabsl(dy * xhat);
    }
    return g;
}

static void check_sums(const struct test_case *t, const struct tensors *all, const struct gradient_truth *g, size_t c) {
    const double dgamma = ((double *)all->dgamma.data)[c], dbeta = ((double *)all->dbeta.data)[c];
    const long double beta_error = fabsl(dbeta - g->dbeta), gamma_error = fabsl(dgamma - g->dgamma);
    const long double bound = sums_bound(t->fill);
    const long double slack = 8 * DBL_TRUE_MIN * g->invstd * g->dbeta_size; // of a mean that underflows
    if (!(beta_error <= bound * g->dbeta_size)) fail_case(t, "dbeta[%zu] is %.17g, not %.20Lg", c, dbeta, g->dbeta);
    if (!(gamma_error <= bound * g->dgamma_size + slack))
        fail_case(t, "dgamma[%zu] is %.17g, not %.20Lg", c, dgamma, g->dgamma);
    if (t->fill != FILL_SUBNORMAL && g->dgamma_size > 0)
        worst_sums[t->dtype] =
            fmaxl(worst_sums[t->dtype], fmaxl(beta_error / g->dbeta_size, gamma_error / g->dgamma_size));
}

static void check_dx(const struct test_case *t, const struct tensors *all, const struct bn_norm *norm,
                     const struct truth *truth, const struct gradient_truth *g, bool frozen, size_t c) {
    const size_t n = t->shape.outer * t->shape.inner;
    const long double scale = (norm->gamma ? norm->gamma[c] : 1) * g->invstd;
    // A mean or slope that underflows errs by some of the smallest subnormals.
    const long double mean_slack = 8 * ulp(0, t->dtype) * g->invstd;
    for (size_t k = 0; k < n; k++) {
        const size_t i = channel_index(t->shape, c, k);
        const long double d = distance(truth, get(all->x.data, t->dtype, i));
        const long double first = scale * get(all->dout.data, t->dtype, i);
        const long double second = frozen ? 0 : scale * (g->dbeta / (long double)n);
        const long double third = frozen ? 0 : scale * (d * g->invstd) * (g->dgamma / (long double)n);
        const long double largest = max3(first, second, third);
        const long double slack = (t->dtype == BN_F64 ? f64_bound(t->fill) * largest : 0) +
                                  (frozen ? 0 : fabsl(scale * g->dgamma / (long double)n) * mean_slack) +
                                  (frozen ? 0 : fabsl(scale * d) * ulp(0, t->dtype));
        const double dx = get(all->dx.data, t->dtype, i);
        const long double error = fabsl(dx - (first - second - third));
        if (!(error <= (frozen ? frozen_dx_ulps : dx_ulps) * ulp(largest, t->dtype) + slack))
            fail_case(t, "%sdx[%zu] of channel %zu is %.17g, not %.20Lg: %Lg ulp", frozen ? "frozen " : "", i, c, dx,
                      first - second - third, error / ulp(largest, t->dtype));
        worst_dx[t->dtype] = fmaxl(worst_dx[t->dtype], (error - slack) / ulp(largest, t->dtype));
    }
}

typedef enum bn_status backward(void *, double *, double *, const void *, const void *, enum bn_dtype, struct bn_shape,
                                const struct bn_norm *, struct bn_pool *);

// dx in place of x, then of dout: the same bits.
static void check_in_place(const struct test_case *t, struct tensors *all, const struct bn_norm *norm, backward *run) {
    double *const dgamma = all->dgamma.data, *const dbeta = all->dbeta.data;
    const double dgamma0 = dgamma[0], dbeta0 = dbeta[0];
    struct guarded copy = guarded_tensor(t->dtype, t->shape);
    memcpy(copy.data, all->x.data, copy.bytes);
    assert_int_equal(run(copy.data, dgamma, dbeta, all->dout.data, copy.data, t->dtype, t->shape, norm, NULL), BN_OK);
    if (memcmp(copy.data, all->dx.data, copy.bytes) != 0) fail_case(t, "dx in place of x differs");
    assert_int_equal(run(all->dout.data, dgamma, dbeta, all->dout.data, all->x.data, t->dtype, t->shape, norm, NULL),
                     BN_OK);
    if (memcmp(all->dout.data, all->dx.data, copy.bytes) != 0) fail_case(t, "dx in place of dout differs");
    assert_true(dgamma[0] == dgamma0 && dbeta[0] == dbeta0);
    guarded_free(&copy);
}

static void check_case(const struct test_case *t, bool affine, bool frozen) {
    struct tensors all = tensors_new(t);
    backward *const run = frozen ? bn_backward_frozen : bn_backward;
    struct bn_norm norm = own_statistics(t, &all);
    norm.gamma = affine ? all.gamma.data : NULL;
    assert_int_equal(
        run(all.dx.data, all.dgamma.data, all.dbeta.data, all.dout.data, all.x.data, t->dtype, t->shape, &norm, NULL),
        BN_OK);
    for (size_t c = 0; c < t->shape.channels; c++) {
        const struct truth truth = truth_of(all.x.data, t->dtype, t->shape, c);
        const struct gradient_truth g = gradient_of(t, &all, &truth, c);
        check_sums(t, &all, &g, c);
        check_dx(t, &all, &norm, &truth, &g, frozen, c);
    }
    check_in_place(t, &all, &norm, run);
    tensors_free(&all);
}

static void test_accuracy(void **state) {
    (void)state;
    uint64_t seed = 1;
    for (size_t s = 0; s < COUNT(shapes); s++) {
        for (enum fill fill = 0; fill < FILL_COUNT; fill++) {
            for (enum bn_dtype dtype = BN_F32; dtype <= BN_F64; dtype++) {
                const struct test_case t = {shapes[s], dtype, fill, seed, seed / 2 % 2 ? 1e-5 : 1e-45};
                check_case(&t, seed / 2 % 3 != 0, seed / 2 % 5 < 2);
                seed++;
            }
        }
    }
    if (getenv("TEST_VERBOSE"))
        print_message("# dx %.2Lf ulp f32, %.2Lf f64; dgamma, dbeta %.1Le f32, %.1Le f64\n", worst_dx[0], worst_dx[1],
                      worst_sums[0], worst_sums[1]);
}

// The sum of weight * y over the tensor, y normalized with x's own statistics or with those in `given`.
static double loss(const double *x, const double *weight, struct bn_shape shape, struct bn_norm given, bool frozen) {
    double mean[8], mean_lo[8], m2[8], y[64];
    struct bn_stats stats = {.mean = mean, .mean_lo = mean_lo, .m2 = m2};
    if (!frozen) {
        assert_int_equal(bn_statistics(&stats, x, BN_F64, shape, NULL), BN_OK);
        for (size_t c = 0; c < shape.channels; c++) m2[c] /= (double)stats.count;
        given.mean = mean;
        given.mean_lo = mean_lo;
        given.var = m2;
    }
    assert_int_equal(bn_normalize(y, x, BN_F64, shape, &given, NULL), BN_OK);
    double sum = 0;
    for (size_t i = 0; i < elements(shape); i++) sum += weight[i] * y[i];
    return sum;
}

// d loss / d *at by a central difference.
static double difference(double *at, const double *x, const double *weight, struct bn_shape shape,
                         const struct bn_norm *norm, bool frozen) {
    const double h = 1e-5, before = *at;
    *at = before + h;
    const double above = loss(x, weight, shape, *norm, frozen);
    *at = before - h;
    const double below = loss(x, weight, shape, *norm, frozen);
    *at = before;
    return (above - below) / (2 * h);
}

static void check_differences(struct bn_shape shape, uint64_t seed, bool frozen) {
    double x[64], weight[64], dx[64], mean[8], mean_lo[8] = {0}, var[8], gamma[8], beta[8], dgamma[8], dbeta[8];
    for (size_t i = 0; i < elements(shape); i++) {
        x[i] = 3 + random_normal(&seed);
        weight[i] = random_normal(&seed);
    }
    for (size_t c = 0; c < shape.channels; c++) {
        mean[c] = 2 + random_unit(&seed);
        var[c] = 0.5 + random_unit(&seed);
        gamma[c] = random_normal(&seed);
        beta[c] = random_normal(&seed);
    }
    struct bn_stats stats = {.mean = mean, .mean_lo = mean_lo, .m2 = var};
    if (!frozen) assert_int_equal(bn_statistics(&stats, x, BN_F64, shape, NULL), BN_OK);
    for (size_t c = 0; c < shape.channels && !frozen; c++) var[c] /= (double)stats.count;
    const struct bn_norm norm = {
        .mean = mean, .mean_lo = frozen ? NULL : mean_lo, .var = var, .gamma = gamma, .beta = beta, .eps = 1e-3};
    backward *const run = frozen ? bn_backward_frozen : bn_backward;
    assert_int_equal(run(dx, dgamma, dbeta, weight, x, BN_F64, shape, &norm, NULL), BN_OK);
    for (size_t i = 0; i < elements(shape); i++)
        assert_near(dx[i], difference(&x[i], x, weight, shape, &norm, frozen), 1e-8);
    for (size_t c = 0; c < shape.channels; c++) {
        assert_near(dgamma[c], difference(&gamma[c], x, weight, shape, &norm, frozen), 1e-8);
        assert_near(dbeta[c], difference(&beta[c], x, weight, shape, &norm, frozen), 1e-8);
    }
}

static void test_finite_differences(void **state) {
    (void)state;
    const struct bn_shape small[] = {{4, 5, 3}, {12, 3, 1}, {1, 2, 20}, {20, 1, 2}, {2, 3, 4}};
    for (size_t i = 0; i < 2 * COUNT(small); i++) check_differences(small[i / 2], i, i % 2);
}

static void test_absent_mean_lo(void **state) {
    (void)state;
    const struct test_case t = {{6, 300, 1}, BN_F32, FILL_NORMAL, 9, 1e-5};
    struct tensors all = tensors_new(&t);
    struct bn_norm norm = own_statistics(&t, &all);
    double *const dgamma = all.dgamma.data, *const dbeta = all.dbeta.data;
    memset(all.mean_lo.data, 0, all.mean_lo.bytes);
    assert_int_equal(bn_backward(all.dx.data, dgamma, dbeta, all.dout.data, all.x.data, t.dtype, t.shape, &norm, NULL),
                     BN_OK);
    double *const kept = malloc(all.dgamma.bytes);
    memcpy(kept, dgamma, all.dgamma.bytes);
    norm.mean_lo = NULL;
    assert_int_equal(
        bn_backward(all.dout.data, dgamma, dbeta, all.dout.data, all.x.data, t.dtype, t.shape, &norm, NULL), BN_OK);
    assert_memory_equal(all.dout.data, all.dx.data, all.dx.bytes);
    assert_memory_equal(kept, dgamma, all.dgamma.bytes);
    free(kept);
    tensors_free(&all);
}

static void test_empty_and_bad_shapes(void **state) {
    (void)state;
    backward *const runs[] = {bn_backward, bn_backward_frozen};
    for (size_t i = 0; i < COUNT(runs); i++) {
        double dgamma[2] = {7, 7}, dbeta[2] = {7, 7};
        const struct bn_norm norm = {.mean = NULL, .var = NULL, .eps = 1e-5};
        const struct bn_shape empty = {0, 2, 3}, bad = {1, SIZE_MAX, 2};
        assert_int_equal(runs[i](NULL, dgamma, dbeta, NULL, NULL, BN_F32, bad, &norm, NULL), BN_BAD_SHAPE);
        assert_true(dgamma[0] == 7 && dbeta[1] == 7);
        assert_int_equal(runs[i](NULL, dgamma, dbeta, NULL, NULL, BN_F32, empty, &norm, NULL), BN_OK);
        assert_true(dgamma[0] == 0 && dgamma[1] == 0 && dbeta[0] == 0 && dbeta[1] == 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accuracy),
        cmocka_unit_test(test_finite_differences),
        cmocka_unit_test(test_absent_mean_lo),
        cmocka_unit_test(test_empty_and_bad_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
