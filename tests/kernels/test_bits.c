// SPDX-License-Identifier: Apache-2.0
//
// Results have the same bits on every tier, for pools of every size and for callers at the same time; and layouts
// agree.
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "oracle.h"
#include "step.h"

static const struct bn_shape large[] = {
    {50, 16, 196},  {3, 2, 12544}, {90, 30, 49},  {200, 5, 120}, {5, 3, 4097},  {2, 7, 9000},  {1, 1, 100000},
    {3000, 40, 1},  {513, 300, 1}, {70000, 1, 1}, {2, 50000, 1}, {20, 5000, 1}, {40000, 2, 2}, {9, 4000, 3},
    {1200, 129, 1}, {64, 64, 64},  {1, 9000, 20}, {16, 80, 861}, {2500, 4, 49}, {9000, 64, 1}, {300, 40, 7},
    {7, 33, 255},   {7, 33, 257},  {3, 40, 784},  {2, 9, 12544}, {30, 2048, 1}, {4, 1, 50000}, {40, 40, 1},
};

// The kind of fill, post and type that case number i has.
static struct test_case case_of(size_t i) {
    const enum fill fills[] = {FILL_NORMAL, FILL_NARROW_1E6, FILL_SUBNORMAL, FILL_WHOLE, FILL_OUTLIER_FIRST};
    return (struct test_case){.shape = large[i / DTYPES % COUNT(large)],
                              .dtype = i % DTYPES,
                              .fill = fills[i % COUNT(fills)],
                              .seed = i,
                              .eps = 1e-5,
                              .post = i / 3 % POST_COUNT,
                              .affine = i / 2 % 2};
}

enum { CASES = DTYPES * COUNT(large) };

// One that is written past the caches is always among them.
static bool selected(size_t i) {
    const struct test_case t = case_of(i);
    const size_t budget = t.dtype == BN_F32 && elements(t.shape) > 1100000 ? elements(t.shape) : 40000;
    return chosen(i, elements(t.shape), budget);
}

// The tensors of a case; one in three has odd values.
static struct inputs inputs_of(const struct test_case *t) {
    struct inputs in = inputs_new(t);
    if (t->seed % 3 == 0) sprinkle(in.x.data, t->dtype, 1 + elements(t->shape) / 1000, t->seed);
    if (t->seed % 3 == 0) sprinkle(in.z.data, t->dtype, 1 + elements(t->shape) / 100, t->seed);
    return in;
}

// A hash in which all NaNs are alike.
static uint64_t digest_of(const void *values, enum bn_dtype dtype, size_t n, uint64_t hash) {
    for (size_t i = 0; i < n; i++) {
        uint64_t bits = 0;
        memcpy(&bits, at(values, dtype, i), dtype_size(dtype));
        if (isnan(get(values, dtype, i))) bits = 0x7ff;
        hash = (hash ^ bits) * 0x100000001b3u;
        hash ^= hash >> 29;
    }
    return hash;
}

static uint64_t digest_results(const struct test_case *t, const struct results *r) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < ROWS; i++) hash = digest_of(r->rows[i], BN_F64, t->shape.channels, hash);
    for (size_t i = 0; i < TENSORS; i++) hash = digest_of(r->tensors[i], t->dtype, elements(t->shape), hash);
    return step_failed(r) ? 0 : hash;
}

// What a process capped at a tier computes.
struct report {
    char tier[16];
    uint64_t digests[CASES];
};

static void write_report(struct report *report) {
    snprintf(report->tier, sizeof report->tier, "%s", bn_cpu_tier());
    struct bn_pool *pool = bn_pool_new(2);
    for (size_t i = 0; i < CASES; i++) {
        const struct test_case t = case_of(i);
        if (!selected(i)) continue;
        struct inputs in = inputs_of(&t);
        struct results r = run_step(&t, &in, i % 2 ? pool : NULL);
        report->digests[i] = digest_results(&t, &r);
        results_free(&r);
        inputs_free(&in);
    }
    bn_pool_free(&pool);
}

static void fork_report(struct report *report, const char *cap) {
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if ((cap ? setenv("NORMD_CPU", cap, 1) : unsetenv("NORMD_CPU")) != 0) _exit(1);
        write_report(report);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

// Runs first: nothing in this process may have asked for the tier.
static void test_tiers(void **state) {
    (void)state;
    static const char *const caps[] = {"scalar", "avx2", NULL};
    struct report *const reports =
        mmap(NULL, COUNT(caps) * sizeof *reports, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(reports != MAP_FAILED);
    for (size_t i = 0; i < COUNT(caps); i++) {
        fork_report(&reports[i], caps[i]);
        for (size_t j = 0; j < CASES; j++) {
            const struct test_case t = case_of(j);
            if (reports[i].digests[j] != reports[0].digests[j])
                fail_case(&t, "tier %s: results differ from those of %s", reports[i].tier, reports[0].tier);
            if (reports[i].digests[j] == 0 && selected(j)) fail_case(&t, "a call failed");
        }
    }
    assert_string_equal(reports[0].tier, "scalar");
    const bool alone = strcmp(reports[COUNT(caps) - 1].tier, "scalar") == 0;
    munmap(reports, COUNT(caps) * sizeof *reports);
    if (alone) {
        print_message("# skipped: this CPU or build has no tier but scalar\n");
        skip();
    }
}

static void expect_same(const struct test_case *t, const struct results *a, const struct results *b, unsigned threads) {
    if (step_failed(a) || step_failed(b)) fail_case(t, "a call failed");
    for (size_t i = 0; i < ROWS; i++) {
        const size_t c = first_difference(a->rows[i], b->rows[i], BN_F64, t->shape.channels);
        if (c < t->shape.channels) fail_case(t, "%s[%zu] differs with %u threads", row_names[i], c, threads);
    }
    for (size_t i = 0; i < TENSORS; i++) {
        const size_t j = first_difference(a->tensors[i], b->tensors[i], t->dtype, elements(t->shape));
        if (j < elements(t->shape)) fail_case(t, "%s[%zu] differs with %u threads", tensor_names[i], j, threads);
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
    for (size_t s = 0; s < CASES; s++) {
        const struct test_case t = case_of(s);
        if (!selected(s)) continue;
        struct inputs in = inputs_of(&t);
        struct results alone = run_step(&t, &in, NULL);
        for (size_t i = 0; i < COUNT(threads); i++) {
            struct results shared = run_step(&t, &in, pools[i]);
            expect_same(&t, &alone, &shared, threads[i]);
            results_free(&shared);
        }
        results_free(&alone);
        inputs_free(&in);
    }
    for (size_t i = 0; i < COUNT(threads); i++) bn_pool_free(&pools[i]);
}

struct caller {
    pthread_t id;
    const struct test_case *t;
    const struct inputs *in;
    struct bn_pool *pool;
    const struct results *expected;
    size_t differences;
};

static void *call_often(void *argument) {
    struct caller *const caller = argument;
    for (int i = 0; i < 10; i++) {
        struct results r = run_step(caller->t, caller->in, caller->pool);
        caller->differences += memcmp(r.memory, caller->expected->memory, r.bytes) != 0;
        results_free(&r);
    }
    return NULL;
}

// Callers with tensors of different types share a pool.
static void test_concurrent_callers(void **state) {
    (void)state;
    struct bn_pool *pool = bn_pool_new(3);
    assert_non_null(pool);
    struct test_case cases[DTYPES];
    struct inputs inputs[DTYPES];
    struct results alone[DTYPES];
    struct caller callers[DTYPES];
    for (size_t i = 0; i < DTYPES; i++) {
        cases[i] = (struct test_case){
            .shape = {40, 40, 49}, .dtype = (enum bn_dtype)i, .seed = 4, .eps = 1e-5, .post = i % POST_COUNT};
        inputs[i] = inputs_new(&cases[i]);
        alone[i] = run_step(&cases[i], &inputs[i], NULL);
        assert_false(step_failed(&alone[i]));
        callers[i] = (struct caller){.t = &cases[i], .in = &inputs[i], .pool = pool, .expected = &alone[i]};
    }
    for (size_t i = 0; i < DTYPES; i++)
        assert_int_equal(pthread_create(&callers[i].id, NULL, call_often, &callers[i]), 0);
    for (size_t i = 0; i < DTYPES; i++) {
        pthread_join(callers[i].id, NULL);
        assert_int_equal(callers[i].differences, 0);
        results_free(&alone[i]);
        inputs_free(&inputs[i]);
    }
    bn_pool_free(&pool);
}

// Channels-last of a channels-first tensor: other blocks, so other bits, within both their bounds.
static void check_layouts(struct bn_shape first, enum fill fill, uint64_t seed) {
    const struct test_case t = {.shape = first, .dtype = BN_F32, .fill = fill, .seed = seed, .eps = 1e-5};
    struct test_case last = t;
    last.shape = (struct bn_shape){first.outer * first.inner, first.channels, 1};
    struct inputs in = inputs_new(&t), turned = inputs_new(&last);
    for (size_t c = 0; c < first.channels; c++) {
        for (size_t k = 0; k < first.outer * first.inner; k++)
            put(turned.x.data, BN_F32, k * first.channels + c, get(in.x.data, BN_F32, channel_index(first, c, k)));
    }
    struct results a = run_step(&t, &in, NULL), b = run_step(&last, &turned, NULL);
    for (size_t c = 0; c < first.channels; c++) {
        if (!(fabs(a.rows[M2][c] - b.rows[M2][c]) <= 2e-9 * a.rows[M2][c]))
            fail_case(&t, "m2[%zu] is %.17g channels-first, %.17g channels-last", c, a.rows[M2][c], b.rows[M2][c]);
        for (size_t k = 0; k < first.outer * first.inner; k++) {
            const double y = get(a.tensors[Y], BN_F32, channel_index(first, c, k));
            const double other = get(b.tensors[Y], BN_F32, k * first.channels + c);
            if (!(fabs(y - other) <= 9 * (double)ulp(y, BN_F32) + 2e-12))
                fail_case(&t, "y[%zu] of channel %zu is %.9g and %.9g", k, c, y, other);
        }
    }
    results_free(&a);
    results_free(&b);
    inputs_free(&in);
    inputs_free(&turned);
}

static void test_layouts(void **state) {
    (void)state;
    const struct bn_shape firsts[] = {{4, 8, 100}, {4, 1, 81}, {4, 9, 1}, {30, 20, 196}, {3, 5, 5000}, {700, 3, 2}};
    const enum fill fills[] = {FILL_NORMAL, FILL_NARROW_1E6, FILL_CONSTANT, FILL_SORTED};
    for (size_t i = 0; i < COUNT(firsts) * COUNT(fills); i++) {
        if (chosen(i, 1, 1)) check_layouts(firsts[i / COUNT(fills)], fills[i % COUNT(fills)], i);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiers),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_concurrent_callers),
        cmocka_unit_test(test_layouts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
