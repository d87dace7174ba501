// SPDX-License-Identifier: Apache-2.0
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "../../kernels/pool.h"
#include "cases.h"

struct counts {
    struct bn_pool *inner; // for nested sections
    atomic_uint visits[1000];
    atomic_size_t sum;
};

static void visit(void *context, size_t i) {
    struct counts *const counts = context;
    atomic_fetch_add(&counts->visits[i], 1);
}

static void test_every_index_once(void **state) {
    (void)state;
    const size_t sizes[] = {0, 1, 2, 3, 7, 100, 1000};
    for (unsigned threads = 0; threads <= 8; threads++) {
        struct bn_pool *pool = bn_pool_new(threads);
        assert_non_null(pool);
        assert_int_equal(bn_pool_threads(pool), threads ? threads : 1);
        for (size_t s = 0; s < 20 * COUNT(sizes); s++) {
            const size_t n = sizes[s % COUNT(sizes)];
            struct counts *const counts = calloc(1, sizeof *counts);
            pool_for(pool, n, visit, counts);
            for (size_t i = 0; i < COUNT(counts->visits); i++) assert_int_equal(counts->visits[i], i < n);
            free(counts);
        }
        bn_pool_free(&pool);
        assert_null(pool);
    }
}

// What tasks write needs no atomics to be seen by the caller.
static void write_square(void *context, size_t i) {
    ((size_t *)context)[i] = i * i;
}

static void test_writes_are_visible(void **state) {
    (void)state;
    struct bn_pool *pool = bn_pool_new(4);
    for (int round = 0; round < 100; round++) {
        size_t squares[500] = {0};
        pool_for(pool, COUNT(squares), write_square, squares);
        for (size_t i = 0; i < COUNT(squares); i++) assert_int_equal(squares[i], i * i);
    }
    bn_pool_free(&pool);
}

struct order {
    pthread_t caller;
    size_t next;
    bool ok;
};

static void expect_next(void *context, size_t i) {
    struct order *const order = context;
    order->ok &= i == order->next++ && pthread_equal(pthread_self(), order->caller);
}

static void test_no_pool_runs_in_order(void **state) {
    (void)state;
    struct order order = {.caller = pthread_self(), .ok = true};
    pool_for(NULL, 100, expect_next, &order);
    assert_true(order.ok);
    assert_int_equal(order.next, 100);
    assert_int_equal(bn_pool_threads(NULL), 1);
    struct bn_pool *none = NULL;
    bn_pool_free(&none);
}

// A section inside a task, on whatever pool: on the thread of the task and in order.
static void run_nested(void *context, size_t i) {
    struct counts *const counts = context;
    struct order order = {.caller = pthread_self(), .ok = true};
    pool_for(counts->inner, 50, expect_next, &order);
    atomic_fetch_add(&counts->sum, order.ok && order.next == 50);
    (void)i;
}

static void test_nested_runs_inline(void **state) {
    (void)state;
    struct bn_pool *pool = bn_pool_new(3), *other = bn_pool_new(3);
    struct bn_pool *const outer[] = {pool, pool, NULL};
    struct bn_pool *const inner[] = {pool, other, other};
    for (size_t i = 0; i < COUNT(outer); i++) {
        struct counts *const counts = calloc(1, sizeof *counts);
        counts->inner = inner[i];
        pool_for(outer[i], 40, run_nested, counts);
        assert_int_equal(counts->sum, 40);
        free(counts);
    }
    // The thread is outside of tasks again.
    struct counts *const counts = calloc(1, sizeof *counts);
    pool_for(pool, 1000, visit, counts);
    assert_int_equal(counts->visits[999], 1);
    free(counts);
    bn_pool_free(&pool);
    bn_pool_free(&other);
}

// Runs inside a section of the pool on another thread, so that its own section finds the pool busy.
static void *find_busy(void *argument) {
    struct counts *const counts = argument;
    struct order order = {.caller = pthread_self(), .ok = true};
    pool_for(counts->inner, 50, expect_next, &order);
    counts->sum = order.ok && order.next == 50;
    return NULL;
}

static void call_from_elsewhere(void *context, size_t i) {
    if (i != 0) return;
    pthread_t id;
    if (pthread_create(&id, NULL, find_busy, context) == 0) pthread_join(id, NULL);
}

static void test_busy_pool_runs_inline(void **state) {
    (void)state;
    struct counts *const counts = calloc(1, sizeof *counts);
    counts->inner = bn_pool_new(2);
    pool_for(counts->inner, 2, call_from_elsewhere, counts);
    assert_int_equal(counts->sum, 1);
    bn_pool_free(&counts->inner);
    free(counts);
}

static void add_index(void *context, size_t i) {
    atomic_fetch_add((atomic_size_t *)context, i);
}

static void *call_often(void *argument) {
    size_t wrong = 0;
    for (size_t round = 0; round < 300; round++) {
        atomic_size_t sum = 0;
        const size_t n = round % 2 ? round % 60 : 3000; // long ones, so that callers overlap
        pool_for(argument, n, add_index, &sum);
        wrong += n > 0 && sum != n * (n - 1) / 2;
    }
    return (void *)wrong; // NOLINT: a count, not an address
}

static void test_concurrent_callers(void **state) {
    (void)state;
    struct bn_pool *pool = bn_pool_new(3);
    pthread_t callers[4];
    for (size_t i = 0; i < COUNT(callers); i++)
        assert_int_equal(pthread_create(&callers[i], NULL, call_often, pool), 0);
    for (size_t i = 0; i < COUNT(callers); i++) {
        void *wrong;
        pthread_join(callers[i], &wrong);
        assert_null(wrong);
    }
    bn_pool_free(&pool);
}

struct seen {
    pthread_t caller;
    atomic_bool by_caller, by_other;
};

static void see(void *context, size_t i) {
    struct seen *const seen = context;
    (void)i;
    atomic_store(pthread_equal(pthread_self(), seen->caller) ? &seen->by_caller : &seen->by_other, true);
}

// Threads wake up when they can, so sections are repeated until both have taken a task; 20 s is no speed limit.
static void test_caller_and_threads_take_part(void **state) {
    (void)state;
    struct bn_pool *pool = bn_pool_new(2);
    struct seen seen = {.caller = pthread_self()};
    const time_t deadline = time(NULL) + 20;
    while (!(seen.by_caller && seen.by_other) && time(NULL) < deadline) pool_for(pool, 100000, see, &seen);
    assert_true(seen.by_caller);
    assert_true(seen.by_other);
    bn_pool_free(&pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_index_once),
        cmocka_unit_test(test_writes_are_visible),
        cmocka_unit_test(test_no_pool_runs_in_order),
        cmocka_unit_test(test_nested_runs_inline),
        cmocka_unit_test(test_busy_pool_runs_inline),
        cmocka_unit_test(test_concurrent_callers),
        cmocka_unit_test(test_caller_and_threads_take_part),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
