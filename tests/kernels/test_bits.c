// SPDX-License-Identifier: Apache-2.0
//
// Results have the same bits for pools of every size and for callers at the same time, and layouts agree.
#include <pthread.h>

#include "cases.h"
#include "oracle.h"

static const struct bn_shape large[] = {
    {50, 16, 196},  {3, 2, 12544}, {90, 30, 49},   {200, 5, 120}, {5, 3, 4097},  {2, 7, 9000},
    {1, 1, 100000}, {3000, 40, 1}, {513, 300, 1},  {70000, 1, 1}, {2, 50000, 1}, {20, 5000, 1},
    {40000, 2, 2},  {9, 4000, 3},  {1200, 129, 1}, {64, 64, 64},  {1, 9000, 20},
};

// All that a training step and a frozen gradient give.
struct results {
    double *mean, *mean_lo, *m2, *dgamma, *dbeta, *frozen_dgamma, *frozen_dbeta;
    unsigned char *y, *dx, *frozen_dx;
    unsigned char *memory;
    size_t bytes;
};

struct step {
    const struct test_case *t;
    const void *x, *dout;
};

static struct results run_step(const struct step *step, struct bn_pool *pool) {
    const struct test_case *const t = step->t;
    const size_t channels = t->shape.channels, row = channels * sizeof(double);
    const size_t tensor = elements(t->shape) * bn_dtype_size(t->dtype);
    struct results r = {.bytes = 7 * row + 3 * tensor};
    r.memory = malloc(r.bytes);
    double **const rows[] = {&r.mean, &r.mean_lo, &r.m2, &r.dgamma, &r.dbeta, &r.frozen_dgamma, &r.frozen_dbeta};
    for (size_t i = 0; i < COUNT(rows); i++) *rows[i] = (double *)(void *)(r.memory + i * row);
    r.y = r.memory + COUNT(rows) * row;
    r.dx = r.y + tensor;
    r.frozen_dx = r.dx + tensor;
    struct bn_stats stats = {.mean = r.mean, .mean_lo = r.mean_lo, .m2 = r.m2};
    double *const var = malloc(row);
    bool ok = bn_statistics(&stats, step->x, t->dtype, t->shape, pool) == BN_OK;
    for (size_t c = 0; c < channels; c++) var[c] = r.m2[c] / (double)stats.count;
    const struct bn_norm norm = {.mean = r.mean, .mean_lo = r.mean_lo, .var = var, .eps = t->eps};
    ok &= bn_normalize(r.y, step->x, t->dtype, t->shape, &norm, pool) == BN_OK;
    ok &= bn_backward(r.dx, r.dgamma, r.dbeta, step->dout, step->x, t->dtype, t->shape, &norm, pool) == BN_OK;
    ok &= bn_backward_frozen(r.frozen_dx, r.frozen_dgamma, r.frozen_dbeta, step->dout, step->x, t->dtype, t->shape,
                             &norm, pool) == BN_OK;
    free(var);
    if (!ok) memset(r.memory, 0xee, r.bytes); // differs from any right result
    return r;
}

static void expect_same(const struct test_case *t, const struct results *a, const struct results *b, unsigned threads) {
    for (size_t i = 0; i < a->bytes; i++) {
        if (a->memory[i] != b->memory[i]) fail_case(t, "byte %zu of the results differs with %u threads", i, threads);
    }
}

static void test_threads(void **state) {
    (void)state;
    const unsigned threads[] = {1, 2, 3, 4, 8};
    struct bn_pool *pools[COUNT(threads)];
    for (size_t i = 0; i < COUNT(threads); i++) {
        pools[i] = bn_pool_new(threads[i]);
        assert_non_null(pools[i]);
    }
    for (size_t s = 0; s < 2 * COUNT(large); s++) {
        const struct test_case t = {large[s / 2], s % 2 ? BN_F64 : BN_F32, s % 3 ? FILL_NORMAL : FILL_NARROW_1E6, s,
                                    1e-5};
        struct guarded x = guarded_tensor(t.dtype, t.shape), dout = guarded_tensor(t.dtype, t.shape);
        fill_tensor(x.data, t.dtype, t.shape, t.fill, t.seed);
        fill_tensor(dout.data, t.dtype, t.shape, FILL_NORMAL, t.seed + 1);
        const struct step step = {&t, x.data, dout.data};
        struct results alone = run_step(&step, NULL);
        for (size_t i = 0; i < COUNT(threads); i++) {
            struct results shared = run_step(&step, pools[i]);
            expect_same(&t, &alone, &shared, threads[i]);
            free(shared.memory);
        }
        free(alone.memory);
        guarded_free(&x);
        guarded_free(&dout);
    }
    for (size_t i = 0; i < COUNT(threads); i++) bn_pool_free(&pools[i]);
}

struct caller {
    pthread_t id;
    const struct step *step;
    struct bn_pool *pool;
    const struct results *expected;
    size_t differences;
};

static void *call_often(void *argument) {
    struct caller *const caller = argument;
    for (int i = 0; i < 10; i++) {
        struct results r = run_step(caller->step, caller->pool);
        caller->differences += memcmp(r.memory, caller->expected->memory, r.bytes) != 0;
        free(r.memory);
    }
    return NULL;
}

static void test_concurrent_callers(void **state) {
    (void)state;
    const struct test_case t = {{40, 40, 49}, BN_F32, FILL_NORMAL, 4, 1e-5};
    struct guarded x = guarded_tensor(t.dtype, t.shape), dout = guarded_tensor(t.dtype, t.shape);
    fill_tensor(x.data, t.dtype, t.shape, t.fill, t.seed);
    fill_tensor(dout.data, t.dtype, t.shape, FILL_NORMAL, t.seed + 1);
    const struct step step = {&t, x.data, dout.data};
    struct results alone = run_step(&step, NULL);
    struct bn_pool *pool = bn_pool_new(3);
    assert_non_null(pool);
    struct caller callers[4];
    for (size_t i = 0; i < COUNT(callers); i++) {
        callers[i] = (struct caller){.step = &step, .pool = pool, .expected = &alone};
        assert_int_equal(pthread_create(&callers[i].id, NULL, call_often, &callers[i]), 0);
    }
    for (size_t i = 0; i < COUNT(callers); i++) {
        pthread_join(callers[i].id, NULL);
        assert_int_equal(callers[i].differences, 0);
    }
    bn_pool_free(&pool);
    free(alone.memory);
    guarded_free(&x);
    guarded_free(&dout);
}

// Channels-last of a channels-first tensor: other blocks, so other bits, within both their bounds.
static void check_layouts(struct bn_shape first, enum fill fill, uint64_t seed) {
    const struct test_case t = {first, BN_F32, fill, seed, 1e-5};
    const struct test_case last = {{first.outer * first.inner, first.channels, 1}, BN_F32, fill, seed, 1e-5};
    struct guarded x = guarded_tensor(BN_F32, first), turned = guarded_tensor(BN_F32, first);
    fill_tensor(x.data, BN_F32, first, fill, seed);
    for (size_t c = 0; c < first.channels; c++) {
        for (size_t k = 0; k < first.outer * first.inner; k++)
            put(turned.data, BN_F32, k * first.channels + c, get(x.data, BN_F32, channel_index(first, c, k)));
    }
    struct results a = run_step(&(struct step){&t, x.data, x.data}, NULL);
    struct results b = run_step(&(struct step){&last, turned.data, turned.data}, NULL);
    for (size_t c = 0; c < first.channels; c++) {
        if (!(fabs(a.m2[c] - b.m2[c]) <= 2e-9 * a.m2[c]))
            fail_case(&t, "m2[%zu] is %.17g channels-first, %.17g channels-last", c, a.m2[c], b.m2[c]);
        for (size_t k = 0; k < first.outer * first.inner; k++) {
            const double y = get(a.y, BN_F32, channel_index(first, c, k));
            const double other = get(b.y, BN_F32, k * first.channels + c);
            if (!(fabs(y - other) <= 9 * ulp(y, BN_F32) + 2e-12))
                fail_case(&t, "y[%zu] of channel %zu is %.9g and %.9g", k, c, y, other);
        }
    }
    free(a.memory);
    free(b.memory);
    guarded_free(&x);
    guarded_free(&turned);
}

static void test_layouts(void **state) {
    (void)state;
    const struct bn_shape firsts[] = {{4, 8, 100}, {4, 1, 81}, {4, 9, 1}, {30, 20, 196}, {3, 5, 5000}, {700, 3, 2}};
    const enum fill fills[] = {FILL_NORMAL, FILL_NARROW_1E6, FILL_CONSTANT, FILL_SORTED};
    for (size_t i = 0; i < COUNT(firsts) * COUNT(fills); i++)
        check_layouts(firsts[i / COUNT(fills)], fills[i % COUNT(fills)], i);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_concurrent_callers),
        cmocka_unit_test(test_layouts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
