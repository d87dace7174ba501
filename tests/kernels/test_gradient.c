// SPDX-License-Identifier: Apache-2.0
//
// Gradients against the oracle, in place, and against finite differences.
#include "gradients.h"
#include "shapes.h"

typedef enum bn_status backward(const struct bn_gradients *, const void *, const void *, enum bn_dtype, struct bn_shape,
                                const struct bn_norm *, const struct bn_post *, struct bn_pool *);

static backward *call_of(const struct test_case *t) {
    return t->frozen ? bn_backward_frozen : bn_backward;
}

// Where dx and dresidual lie: by themselves, or in place of an input.
enum where { FRESH, OF_X, OF_DOUT, OF_RESIDUAL, NOWHERE };

static const struct {
    enum where dx, dz;
} places[] = {{OF_X, FRESH},   {OF_DOUT, FRESH},    {FRESH, OF_DOUT},       {FRESH, OF_RESIDUAL},
              {OF_X, OF_DOUT}, {OF_X, OF_RESIDUAL}, {OF_DOUT, OF_RESIDUAL}, {OF_DOUT, NOWHERE}};

// Runs again with copies of the operands and dx and dresidual in other places: the same bits.
static void check_in_place(const struct test_case *t, const struct backward_tensors *all, const struct bn_norm *norm,
                           enum where dx_place, enum where dz_place) {
    if (dz_place == OF_RESIDUAL && !(t->post & POST_RESIDUAL)) dz_place = FRESH;
    struct guarded x = guarded_copy(&all->x, t->dtype), dout = guarded_copy(&all->dout, t->dtype);
    struct guarded z = guarded_copy(&all->z, t->dtype);
    struct guarded dx = guarded_tensor(t->dtype, t->shape), dz = guarded_tensor(t->dtype, t->shape);
    struct guarded dgamma = guarded_copy(&all->mean, BN_F64), dbeta = guarded_copy(&all->mean, BN_F64);
    void *const targets[][2] = {
        {dx.data, dz.data}, {x.data, NULL}, {dout.data, dout.data}, {NULL, z.data}, {NULL, NULL}};
    const struct bn_gradients gradients = {targets[dx_place][0], targets[dz_place][1], dgamma.data, dbeta.data};
    const struct bn_post post = post_of(t->post, z.data);
    assert_int_equal(call_of(t)(&gradients, dout.data, x.data, t->dtype, t->shape, norm, &post, NULL), BN_OK);
    const size_t n = elements(t->shape);
    if (first_difference(gradients.dx, all->dx.data, t->dtype, n) < n)
        fail_case(t, "places %d %d: dx differs at %zu", dx_place, dz_place,
                  first_difference(gradients.dx, all->dx.data, t->dtype, n));
    if (gradients.dresidual && first_difference(gradients.dresidual, all->dz.data, t->dtype, n) < n)
        fail_case(t, "places %d %d: dresidual differs", dx_place, dz_place);
    if (first_difference(dgamma.data, all->dgamma.data, BN_F64, t->shape.channels) < t->shape.channels ||
        first_difference(dbeta.data, all->dbeta.data, BN_F64, t->shape.channels) < t->shape.channels)
        fail_case(t, "places %d %d: dgamma or dbeta differs", dx_place, dz_place);
    struct guarded *const each[] = {&x, &dout, &z, &dx, &dz, &dgamma, &dbeta};
    for (size_t i = 0; i < COUNT(each); i++) guarded_free(each[i]);
}

static void check_case(const struct test_case *t, struct bn_pool *pool) {
    struct backward_tensors all = backward_tensors_new(t);
    const struct bn_norm norm = backward_norm(t, &all);
    const struct bn_post post = post_of(t->post, all.z.data);
    const struct bn_gradients gradients = {all.dx.data, all.dz.data, all.dgamma.data, all.dbeta.data};
    assert_int_equal(call_of(t)(&gradients, all.dout.data, all.x.data, t->dtype, t->shape, &norm,
                                t->post == POST_NONE && t->seed % 2 ? NULL : &post, pool),
                     BN_OK);
    for (size_t c = 0; c < t->shape.channels; c++) {
        const struct gradient_truth truth = gradient_of(t, &all, &norm, c);
        check_gradient_sums(t, &truth, gradients.dgamma[c], gradients.dbeta[c], c);
        check_dx(t, &all, &truth, c);
        check_dresidual(t, &all, &truth, c);
    }
    for (uint64_t i = t->seed; i < t->seed + 2; i++)
        check_in_place(t, &all, &norm, places[i % COUNT(places)].dx, places[i % COUNT(places)].dz);
    backward_tensors_free(&all);
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
                                    .affine = seed / 4 % 3 != 0,
                                    .frozen = seed / 5 % 5 < 2};
        if (chosen(seed, elements(t.shape), 3000)) check_case(&t, seed % 3 ? NULL : pool);
    }
    bn_pool_free(&pool);
}

static void test_large_tensors(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(large_shapes); i++) {
        const struct test_case t = {.shape = large_shapes[i],
                                    .dtype = i % 4 == 3 ? BN_F64 : BN_F32,
                                    .fill = i % 2 ? FILL_NORMAL_1E6 : FILL_NORMAL,
                                    .seed = i,
                                    .eps = 1e-5,
                                    .post = i % POST_COUNT,
                                    .affine = true,
                                    .frozen = i % 3 == 2};
        if (elements(t.shape) < 700000 && chosen(i, 1, 1)) check_case(&t, NULL);
    }
}

// y as the loss sees it: with x's own statistics, or with those in `given`.
static void forward(double *y, const double *x, struct bn_shape shape, struct bn_norm given, const struct bn_post *post,
                    bool frozen) {
    double mean[8], mean_lo[8], m2[8];
    struct bn_stats stats = {.mean = mean, .mean_lo = mean_lo, .m2 = m2};
    if (frozen)
        assert_int_equal(bn_normalize(y, x, BN_F64, shape, &given, post, NULL), BN_OK);
    else
        assert_int_equal(bn_train_forward(y, &stats, x, BN_F64, shape, given.gamma, given.beta, given.eps, post, NULL),
                         BN_OK);
}

struct problem {
    struct bn_shape shape;
    bool frozen;
    double x[64], z[64], weight[64];
    double mean[8], mean_lo[8], var[8], gamma[8], beta[8];
    struct bn_norm norm;
    struct bn_post post;
};

// The sum of weight * y.
static double loss(const struct problem *p) {
    double y[64], sum = 0;
    forward(y, p->x, p->shape, p->norm, &p->post, p->frozen);
    for (size_t i = 0; i < elements(p->shape); i++) sum += p->weight[i] * y[i];
    return sum;
}

// d loss / d *at by a central difference.
static double difference(struct problem *p, double *at) {
    const double h = 1e-6, before = *at;
    *at = before + h;
    const double above = loss(p);
    *at = before - h;
    const double below = loss(p);
    *at = before;
    return (above - below) / (2 * h);
}

static void problem_fill(struct problem *p, enum post_kind post, uint64_t seed) {
    for (size_t i = 0; i < elements(p->shape); i++) {
        p->x[i] = 3 + random_normal(&seed);
        p->z[i] = random_normal(&seed);
        p->weight[i] = random_normal(&seed);
    }
    for (size_t c = 0; c < p->shape.channels; c++) {
        p->mean[c] = 2 + random_unit(&seed);
        p->var[c] = 0.5 + random_unit(&seed);
        p->gamma[c] = random_normal(&seed);
        p->beta[c] = random_normal(&seed);
        if (p->frozen) continue;
        const struct truth truth = truth_of(p->x, BN_F64, p->shape, c);
        p->mean[c] = truth_mean(&truth);
        p->mean_lo[c] = truth_mean_lo(&truth);
        p->var[c] = (double)truth.var;
    }
    p->norm = (struct bn_norm){p->mean, p->mean_lo, p->var, p->gamma, p->beta, 1e-3};
    p->post = post_of(post, p->z);
}

static void check_differences(struct bn_shape shape, enum post_kind post, bool frozen, uint64_t seed) {
    struct problem p = {.shape = shape, .frozen = frozen};
    double dx[64], dz[64], dgamma[8], dbeta[8];
    const struct bn_gradients gradients = {dx, dz, dgamma, dbeta};
    problem_fill(&p, post, seed);
    assert_int_equal(
        (frozen ? bn_backward_frozen : bn_backward)(&gradients, p.weight, p.x, BN_F64, shape, &p.norm, &p.post, NULL),
        BN_OK);
    for (size_t i = 0; i < elements(shape); i++) {
        assert_near(dx[i], difference(&p, &p.x[i]), 1e-7);
        if (p.post.residual) assert_near(dz[i], difference(&p, &p.z[i]), 1e-7);
    }
    for (size_t c = 0; c < shape.channels; c++) {
        assert_near(dgamma[c], difference(&p, &p.gamma[c]), 1e-7);
        assert_near(dbeta[c], difference(&p, &p.beta[c]), 1e-7);
    }
}

static void test_finite_differences(void **state) {
    (void)state;
    const struct bn_shape small[] = {{4, 5, 3}, {12, 3, 1}, {1, 2, 20}, {20, 1, 2}, {2, 3, 4}};
    for (size_t i = 0; i < 2 * POST_COUNT * COUNT(small); i++)
        check_differences(small[i / 2 / POST_COUNT], i / 2 % POST_COUNT, i % 2, i + 1);
}

// mean_lo NULL is mean_lo 0, and gradients without dresidual the same.
static void test_absent_arrays(void **state) {
    (void)state;
    const struct test_case t = {.shape = {6, 300, 1}, .seed = 10, .eps = 1e-5, .post = POST_RELU};
    struct backward_tensors all = backward_tensors_new(&t);
    struct bn_norm norm = backward_norm(&t, &all);
    const struct bn_post post = post_of(t.post, NULL);
    const struct bn_gradients gradients = {all.dx.data, all.dz.data, all.dgamma.data, all.dbeta.data};
    memset(all.mean_lo.data, 0, all.mean_lo.bytes);
    assert_int_equal(bn_backward(&gradients, all.dout.data, all.x.data, t.dtype, t.shape, &norm, &post, NULL), BN_OK);
    norm.mean_lo = NULL;
    check_in_place(&t, &all, &norm, FRESH, NOWHERE);
    backward_tensors_free(&all);
}

static void expect_status(enum bn_status expected, struct bn_shape shape, enum bn_dtype dtype, double rows[4][2]) {
    const struct bn_norm norm = {.eps = 1e-5};
    const struct bn_post post = {.activation = BN_RELU};
    const struct bn_gradients gradients = {.dgamma = rows[0], .dbeta = rows[1]};
    struct bn_gradient_sums sums = {.count = 7, .dy = rows[2], .dy_d = rows[3]};
    backward *const runs[] = {bn_backward, bn_backward_frozen};
    for (size_t i = 0; i < COUNT(runs); i++)
        assert_int_equal(runs[i](&gradients, NULL, NULL, dtype, shape, &norm, &post, NULL), expected);
    assert_int_equal(bn_gradient_apply(&gradients, NULL, NULL, dtype, shape, &norm, &post, &sums, NULL), expected);
    assert_int_equal(bn_gradient_apply(&gradients, NULL, NULL, dtype, shape, &norm, NULL, NULL, NULL), expected);
    assert_int_equal(bn_gradient_sums(&sums, NULL, NULL, dtype, shape, &norm, &post, NULL), expected);
    if (expected == BN_OK) assert_int_equal(sums.count, 0);
}

// A gradient that overflowed upstream: its channel's sums and dx say so, and other channels are not touched.
static void test_infinite_dout(void **state) {
    (void)state;
    const float x[] = {1, 2, 3, 4, 5, 7}, dout[] = {1, INFINITY, 1, 2, 1, 3};
    const double mean[] = {3, 13 / 3.0}, var[] = {8 / 3.0, 38 / 9.0}, zero[] = {0, 0};
    const double *const mean_los[] = {NULL, zero};
    for (size_t i = 0; i < COUNT(mean_los); i++) {
        const struct bn_norm norm = {.mean = mean, .mean_lo = mean_los[i], .var = var, .eps = 1e-5};
        float dx[6];
        double dgamma[2], dbeta[2];
        const struct bn_gradients gradients = {.dx = dx, .dgamma = dgamma, .dbeta = dbeta};
        assert_int_equal(bn_backward(&gradients, dout, x, BN_F32, (struct bn_shape){3, 2, 1}, &norm, NULL, NULL),
                         BN_OK);
        assert_true(dbeta[0] == 3 && dbeta[1] == INFINITY);
        assert_true(dgamma[0] == 0 && dgamma[1] == -INFINITY);
        assert_true(dx[0] == 0 && dx[2] == 0 && dx[4] == 0);
        assert_true(isnan(dx[1]) && !isfinite(dx[3]) && !isfinite(dx[5]));
    }
}

static void test_empty_and_bad_shapes(void **state) {
    (void)state;
    const struct bn_shape empty[] = {{0, 2, 3}, {3, 2, 0}, {0, 2, 1}};
    const struct bn_shape bad[] = {{1, SIZE_MAX, 2}, {1, 0, 1}, {(size_t)1 << 32, 1, (size_t)1 << 32}};
    for (enum bn_dtype dtype = 0; dtype <= BN_BF16; dtype++) {
        for (size_t i = 0; i < 3; i++) {
            double rows[4][2] = {{7, 7}, {7, 7}, {7, 7}, {7, 7}};
            expect_status(BN_BAD_SHAPE, bad[i], dtype, rows);
            for (size_t j = 0; j < 4; j++) assert_true(rows[j][0] == 7 && rows[j][1] == 7);
            expect_status(BN_OK, empty[i], dtype, rows);
            for (size_t j = 0; j < 4; j++) assert_true(rows[j][0] == 0 && rows[j][1] == 0);
        }
    }
}

static int report_worst(void **state) {
    (void)state;
    if (!getenv("TEST_VERBOSE")) return 0;
    for (enum bn_dtype dtype = BN_F32; dtype <= BN_F64; dtype++)
        print_message("# %s dx %.2Lf ulp, %.2Lf of the terms alone; frozen %.2Lf; dgamma, dbeta %.1Le\n",
                      dtype_names[dtype], worst_dx[dtype], worst_dx_terms[dtype], worst_frozen_dx[dtype],
                      worst_sums[dtype]);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accuracy),           cmocka_unit_test(test_large_tensors),
        cmocka_unit_test(test_finite_differences), cmocka_unit_test(test_absent_arrays),
        cmocka_unit_test(test_infinite_dout),      cmocka_unit_test(test_empty_and_bad_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, report_worst);
}
