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

// Channels enough that no scratch array is on the stack, and places enough that sums need an array too.
static const struct bn_shape shapes[] = {{1100, 600, 1}, {1100, 400, 2}, {9, 400, 300}, {3000, 500, 1}};

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
    const struct bn_post post = {.activation = BN_RELU};
    const struct bn_gradients gradients = {.dx = call->y, .dgamma = call->channels[2], .dbeta = call->channels[3]};
    return bn_backward(&gradients, call->x, call->x, call->dtype, call->shape, &norm, &post, pool);
}

static const struct call calls[] = {
    {.name = "train-forward", .run = run_train, .allocations = 2},
    {.name = "normalize", .run = run_normalize, .allocations = 1},
    {.name = "statistics", .run = run_statistics, .allocations = 1},
    {.name = "backward", .run = run_backward, .allocations = 2},
};

static struct call call_new(const struct call *of, struct bn_shape shape, enum bn_dtype dtype) {
    struct call call = *of;
    call.dtype = dtype;
    call.shape = shape;
    call.x = calloc(elements(shape), dtype_size(dtype));
    call.y = calloc(elements(shape), dtype_size(dtype));
    for (size_t i = 0; i < COUNT(call.channels); i++) call.channels[i] = calloc(shape.channels, sizeof(double));
    return call;
}

static void call_free(struct call *call) {
    free(call->x);
    free(call->y);
    for (size_t i = 0; i < COUNT(call->channels); i++) free(call->channels[i]);
}

static void check_every_failure(const struct call *call, struct bn_pool *pool) {
    allocations = failing = 0;
    assert_int_equal(call->run(call, pool), BN_OK);
    const unsigned needed = allocations;
    if (needed > call->allocations) fail_msg("%s allocates %u times", call->name, needed);
    for (unsigned i = 1; i <= needed; i++) {
        allocations = 0;
        failing = i;
        const enum bn_status status = call->run(call, pool);
        failing = 0;
        if (status != BN_NO_MEMORY) fail_msg("%s without allocation %u: status %d", call->name, i, status);
    }
    allocations = 0;
    assert_int_equal(call->run(call, pool), BN_OK);
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
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    print_message("# skipped: sanitizers make frames larger\n");
    skip();
#else
    pthread_attr_t attributes;
    pthread_t id;
    void *failed = NULL;
    pthread_attr_init(&attributes);
    assert_int_equal(pthread_attr_setstacksize(&attributes, STACK), 0);
    assert_int_equal(pthread_create(&id, &attributes, run_all, NULL), 0);
    pthread_join(id, &failed);
    pthread_attr_destroy(&attributes);
    if (failed) fail_msg("%s failed", (const char *)failed);
#endif
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_small_stack),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
