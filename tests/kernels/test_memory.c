// SPDX-License-Identifier: Apache-2.0
//
// What a call does without memory: it fails as a whole where scratch memory cannot be had, and needs no more of the
// stack than bn.h says.
#include <pthread.h>

#include "cases.h"

static unsigned allocations, failing; // failing: which one fails, from 1; 0: none

void *__wrap_malloc(size_t size);
void *__real_malloc(size_t size);

void *__wrap_malloc(size_t size) {
    return ++allocations == failing ? NULL : __real_malloc(size);
}

// Channels enough that the table of coefficients is not on the stack, and places enough that sums need memory too. The
// last one is worked on a unit at a time, whatever the caches are: that takes most of the stack.
static const struct bn_shape shapes[] = {{1100, 128, 1}, {600, 100, 2}, {6, 100, 300}, {1300, 100, 1}, {600, 50, 2}};

struct call {
    const char *name;
    enum bn_status (*run)(const struct call *call, struct bn_pool *pool);
    unsigned allocations; // at most, so that the test is known to meet each
    enum bn_dtype dtype;
    struct bn_shape shape;
    void *x, *y;
    double *channels[6];
};

static struct bn_norm norm_of(const struct call *call) {
    return (struct bn_norm){.mean = call->channels[0], .var = call->channels[1], .eps = 1};
}

static enum bn_status run_train(const struct call *call, struct bn_pool *pool) {
    struct bn_stats stats = {.mean = call->channels[2], .mean_lo = call->channels[3], .m2 = call->channels[4]};
    return bn_train_forward(call->y, &stats, call->x, call->dtype, call->shape, NULL, NULL, 1, NULL, pool);
}

static enum bn_status run_normalize(const struct call *call, struct bn_pool *pool) {
    const struct bn_norm norm = norm_of(call);
    return bn_normalize(call->y, call->x, call->dtype, call->shape, &norm, NULL, pool);
}

static enum bn_status run_statistics(const struct call *call, struct bn_pool *pool) {
    struct bn_stats stats = {.mean = call->channels[2], .mean_lo = call->channels[3], .m2 = call->channels[4]};
    return bn_statistics(&stats, call->x, call->dtype, call->shape, pool);
}

static enum bn_status run_backward(const struct call *call, struct bn_pool *pool) {
    const struct bn_norm norm = norm_of(call);
    const struct bn_post post = {.activation = BN_RELU, .residual = call->x};
    const struct bn_gradients gradients = {.dx = call->y, .dgamma = call->channels[2], .dbeta = call->channels[3]};
    return bn_backward(&gradients, call->x, call->x, call->dtype, call->shape, &norm, &post, pool);
}

static enum bn_status run_frozen(const struct call *call, struct bn_pool *pool) {
    const struct bn_norm norm = norm_of(call);
    const struct bn_gradients gradients = {.dx = call->y, .dgamma = call->channels[2], .dbeta = call->channels[3]};
    return bn_backward_frozen(&gradients, call->x, call->x, call->dtype, call->shape, &norm, NULL, pool);
}

static enum bn_status run_gradient_sums(const struct call *call, struct bn_pool *pool) {
    const struct bn_norm norm = norm_of(call);
    const struct bn_post post = {.activation = BN_RELU};
    struct bn_gradient_sums sums = {.dy = call->channels[2], .dy_d = call->channels[3]};
    return bn_gradient_sums(&sums, call->x, call->x, call->dtype, call->shape, &norm, &post, pool);
}

static const struct call calls[] = {
    {.name = "train-forward", .run = run_train, .allocations = 2},
    {.name = "normalize", .run = run_normalize, .allocations = 1},
    {.name = "statistics", .run = run_statistics, .allocations = 1},
    {.name = "backward", .run = run_backward, .allocations = 2},
    {.name = "frozen backward", .run = run_frozen, .allocations = 2},
    {.name = "gradient sums", .run = run_gradient_sums, .allocations = 2},
};

static struct call call_new(const struct call *of, struct bn_shape shape, enum bn_dtype dtype) {
    struct call call = *of;
    call.dtype = dtype;
    call.shape = shape;
    call.x = calloc(elements(shape), dtype_size(dtype));
    call.y = calloc(elements(shape), dtype_size(dtype));
    fill_tensor(call.x, dtype, shape, FILL_NORMAL, 1);
    for (size_t i = 0; i < COUNT(call.channels); i++) call.channels[i] = calloc(shape.channels, sizeof(double));
    for (size_t c = 0; c < shape.channels; c++) call.channels[1][c] = 1;
    return call;
}

static void call_free(struct call *call) {
    free(call->x);
    free(call->y);
    for (size_t i = 0; i < COUNT(call->channels); i++) free(call->channels[i]);
}

// The call succeeds, and its results are those in `expected`: y, then the channels' arrays.
static void check_results(const struct call *call, struct bn_pool *pool, const char *expected) {
    const size_t n = elements(call->shape) * dtype_size(call->dtype), row = call->shape.channels * sizeof(double);
    memset(call->y, 0x55, n);
    for (size_t i = 2; i < 5; i++) memset(call->channels[i], 0x55, row);
    allocations = 0;
    assert_int_equal(call->run(call, pool), BN_OK);
    if (expected == NULL) return;
    if (memcmp(call->y, expected, n) != 0) fail_msg("%s: y differs after a failure", call->name);
    for (size_t i = 2; i < 5; i++) {
        if (memcmp(call->channels[i], expected + n + (i - 2) * row, row) != 0)
            fail_msg("%s: array %zu differs after a failure", call->name, i);
    }
}

static char *results_of(const struct call *call) {
    const size_t n = elements(call->shape) * dtype_size(call->dtype), row = call->shape.channels * sizeof(double);
    char *const results = malloc(n + 3 * row);
    memcpy(results, call->y, n);
    for (size_t i = 2; i < 5; i++) memcpy(results + n + (i - 2) * row, call->channels[i], row);
    return results;
}

static void check_every_failure(const struct call *call, struct bn_pool *pool) {
    failing = 0;
    check_results(call, pool, NULL);
    const unsigned needed = allocations;
    char *const results = results_of(call);
    if (needed > call->allocations) fail_msg("%s allocates %u times", call->name, needed);
    for (unsigned i = 1; i <= needed; i++) {
        allocations = 0;
        failing = i;
        const enum bn_status status = call->run(call, pool);
        failing = 0;
        if (status != BN_NO_MEMORY) fail_msg("%s without allocation %u: status %d", call->name, i, status);
    }
    check_results(call, pool, results);
    free(results);
}

static void test_no_memory(void **state) {
    (void)state;
    struct bn_pool *pool = bn_pool_new(2);
    unsigned failures[COUNT(calls)] = {0};
    for (size_t i = 0; i < COUNT(calls) * COUNT(shapes) * 4; i++) {
        struct call call = call_new(&calls[i % COUNT(calls)], shapes[i / COUNT(calls) % COUNT(shapes)],
                                    (enum bn_dtype)(i / COUNT(calls) / COUNT(shapes)));
        check_every_failure(&call, pool);
        if (allocations > failures[i % COUNT(calls)]) failures[i % COUNT(calls)] = allocations;
        call_free(&call);
    }
    for (size_t i = 0; i < COUNT(calls); i++) assert_int_equal(failures[i], calls[i].allocations);
    bn_pool_free(&pool);
}

// 224 KiB, and a little for what the C library keeps at the end of a stack.
enum { STACK = (224 + 16) << 10 };

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

static void *run_all(void *argument) {
    (void)argument;
    for (size_t i = 0; i < COUNT(calls) * COUNT(shapes) * 4; i++) {
        struct call call = call_new(&calls[i % COUNT(calls)], shapes[i / COUNT(calls) % COUNT(shapes)],
                                    (enum bn_dtype)(i / COUNT(calls) / COUNT(shapes)));
        const enum bn_status status = call.run(&call, NULL);
        call_free(&call);
        if (status != BN_OK) return (void *)call.name;
    }
    return NULL;
}

static void test_small_stack(void **state) {
    (void)state;
    if (SANITIZED) {
        print_message("# skipped: sanitizers make frames larger\n");
        skip();
    }
    pthread_attr_t attributes;
    pthread_t id;
    void *failed = NULL;
    pthread_attr_init(&attributes);
    assert_int_equal(pthread_attr_setstacksize(&attributes, STACK), 0);
    assert_int_equal(pthread_create(&id, &attributes, run_all, NULL), 0);
    pthread_join(id, &failed);
    pthread_attr_destroy(&attributes);
    if (failed) fail_msg("%s failed", (const char *)failed);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_small_stack),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
