// SPDX-License-Identifier: Apache-2.0
//
// Blocks that are kept for the next buffer: which one is taken, what is too much, what is too old; and buffers that
// live on them.
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/buffer.h"
#include "../../proto/spare.h"

#define MIB ((size_t)1024 * 1024)
#define SECOND UINT64_C(1000000000)

// Frees whatever is kept.
static int empty(void **state) {
    (void)state;
    spare_expire(1);
    spare_expire(UINT64_MAX);
    spare_limit(0);
    return 0;
}

static void *give(size_t size) {
    void *const memory = malloc(size + BUFFER_ALIGNMENT - 1);
    assert_true(spare_give(memory, size));
    return memory;
}

static void expect(size_t least, size_t most, const void *memory, size_t size) {
    void *taken;
    assert_int_equal(spare_take(&taken, least, most), size);
    assert_ptr_equal(taken, memory);
    free(taken);
}

static void test_smallest_that_fits(void **state) {
    (void)state;
    spare_limit(100 * MIB);
    void *const four = give(4 * MIB), *const two = give(2 * MIB), *const three = give(3 * MIB);
    expect(5 * MIB, 9 * MIB, NULL, 0);
    expect(MIB, 2 * MIB - 1, NULL, 0);
    expect(MIB, 9 * MIB, two, 2 * MIB);
    expect(3 * MIB, 3 * MIB, three, 3 * MIB);
    expect(MIB, 9 * MIB, four, 4 * MIB);
    expect(MIB, 9 * MIB, NULL, 0);
}

static void test_limits(void **state) {
    (void)state;
    void *const block = malloc(MIB);
    assert_false(spare_give(block, MIB)); // none, at the start
    spare_limit(5 * MIB);
    give(4 * MIB);
    assert_false(spare_give(block, MIB + 1));
    spare_limit(100 * MIB);
    for (int i = 0; i < 7; i++) give(MIB);
    assert_false(spare_give(block, MIB)); // the ninth
    free(block);
}

static void test_age(void **state) {
    (void)state;
    spare_limit(100 * MIB);
    void *const early = give(2 * MIB);
    spare_expire(SECOND);
    void *const late = give(3 * MIB);
    spare_expire(3 * SECOND); // the first has been there for just two seconds
    expect(2 * MIB, 2 * MIB, early, 2 * MIB);
    spare_expire(5 * SECOND);
    expect(3 * MIB, 3 * MIB, late, 3 * MIB);
    give(2 * MIB);
    spare_expire(6 * SECOND);
    spare_expire(9 * SECOND);
    expect(MIB, 9 * MIB, NULL, 0);
}

// The same bytes and charges whether a buffer grows out of malloc or out of what lies ready.
static void test_buffers(void **state) {
    (void)state;
    spare_limit(100 * MIB);
    struct budget budget = {.limit = 10 * MIB};
    void *const block = give(4 * MIB);
    struct buffer buffer = {.budget = &budget};
    assert_true(buffer_append(&buffer, "some bytes", 10));
    assert_false(
        buffer_reserve_spare(&buffer, 3 * MIB, 3 * MIB + 3 * MIB / 4)); // the block is more than a quarter larger
    assert_int_equal(buffer.size, 10);
    assert_true(buffer_reserve_spare(&buffer, 3500000, 4 * MIB));
    assert_ptr_equal(buffer.memory, block);
    assert_int_equal((uintptr_t)buffer.data % BUFFER_ALIGNMENT, 0);
    assert_int_equal(buffer.capacity, 4 * MIB);
    assert_int_equal(budget.used, 4 * MIB);
    assert_memory_equal(buffer.data, "some bytes", 10);
    memset(buffer.data, 1, buffer.capacity);
    buffer_free(&buffer);
    assert_int_equal(budget.used, 0);
    budget.limit = 4 * MIB - 1; // what lies ready does not fit, what was asked for does
    assert_true(buffer_reserve(&buffer, 3500000));
    assert_int_equal(budget.used, 3500000);
    void *const own = buffer.memory;
    assert_ptr_not_equal(own, block);
    buffer_free(&buffer);
    expect(4 * MIB, 4 * MIB, block, 4 * MIB);
    expect(3500000, 3500000, own, 3500000);
}

static void *take_and_give(void *argument) {
    uint64_t random = (uintptr_t)argument;
    for (int i = 0; i < 20000; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        const size_t wanted = MIB + (random >> 60) * 1024;
        void *memory;
        size_t size = spare_take(&memory, wanted, wanted + wanted / 4);
        if (size == 0) memory = malloc(size = wanted);
        *(uint64_t *)memory = random;
        ((uint64_t *)memory)[size / 8 - 1] = random;
        if (i % 64 == 0) spare_expire(random >> 20);
        const bool mine = *(uint64_t *)memory == random && ((uint64_t *)memory)[size / 8 - 1] == random;
        if (!spare_give(memory, size)) free(memory);
        if (!mine) return argument;
    }
    return NULL;
}

static void test_threads(void **state) {
    (void)state;
    pthread_t threads[4];
    spare_limit(6 * MIB);
    for (uintptr_t i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, take_and_give, (void *)(i + 1)), 0);
    for (size_t i = 0; i < 4; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_smallest_that_fits, empty),
        cmocka_unit_test_teardown(test_limits, empty),
        cmocka_unit_test_teardown(test_age, empty),
        cmocka_unit_test_teardown(test_buffers, empty),
        cmocka_unit_test_teardown(test_threads, empty),
    };
    return cmocka_run_group_tests_name("spare", tests, NULL, NULL);
}
