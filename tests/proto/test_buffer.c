// SPDX-License-Identifier: Apache-2.0
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../proto/buffer.h"

// Sanitizers have a heap of their own.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { HEAP_REPLACED = 1 };
#else
enum { HEAP_REPLACED = 0 };
#endif

static bool no_memory;

void *__real_realloc(void *memory, size_t size);
void *__wrap_realloc(void *memory, size_t size);

// What buffer.c calls, by the linker's --wrap.
void *__wrap_realloc(void *memory, size_t size) {
    return no_memory ? NULL : __real_realloc(memory, size);
}

static void fill(struct buffer *buffer, size_t size) {
    unsigned char *const bytes = malloc(size);
    assert_non_null(bytes);
    for (size_t i = 0; i < size; i++) bytes[i] = (unsigned char)(buffer->size + i);
    assert_true(buffer_append(buffer, bytes, size));
    free(bytes);
}

static void expect_bytes(const struct buffer *buffer, size_t size) {
    assert_int_equal(buffer->size, size);
    for (size_t i = 0; i < size; i++) assert_int_equal(buffer->data[i], (unsigned char)i);
}

static void test_budget(void **state) {
    (void)state;
    struct budget budget = {.limit = 100};
    assert_true(budget_charge(&budget, 60));
    assert_false(budget_charge(&budget, 41));
    assert_int_equal(budget.used, 60);
    assert_false(budget_charge(&budget, SIZE_MAX));
    assert_false(budget_charge(&budget, SIZE_MAX - 59));
    assert_int_equal(budget.used, 60);
    assert_true(budget_charge(&budget, 40));
    assert_true(budget_charge(&budget, 0));
    assert_int_equal(budget.used, 100);
    budget.limit = 50;
    assert_false(budget_charge(&budget, 1));
    budget_release(&budget, 100);
    assert_int_equal(budget.used, 0);
    assert_true(budget_charge(NULL, SIZE_MAX));
    budget_release(NULL, SIZE_MAX);
}

struct spare {
    struct budget *budget;
    size_t bytes; // left to give back
    size_t step;  // given back per call
    size_t asked; // by the last call
    int calls;
};

static bool give_back(void *context, size_t bytes) {
    struct spare *const spare = context;
    spare->calls++;
    spare->asked = bytes;
    const size_t given = spare->bytes < spare->step ? spare->bytes : spare->step;
    spare->bytes -= given;
    budget_release(spare->budget, given);
    return given > 0;
}

static void test_reclaim(void **state) {
    (void)state;
    struct budget budget = {.limit = 100, .reclaim = give_back};
    struct spare spare = {.budget = &budget, .bytes = 30, .step = 10};
    budget.context = &spare;
    assert_true(budget_charge(&budget, 100));
    assert_int_equal(spare.calls, 0);
    assert_true(budget_charge(&budget, 20));
    assert_int_equal(spare.calls, 2);
    assert_int_equal(spare.asked, 20);
    assert_int_equal(budget.used, 100);
    assert_false(budget_charge(&budget, 20));
    assert_int_equal(spare.calls, 4);
    assert_int_equal(budget.used, 90);
    assert_false(budget_charge(&budget, 101));
    assert_int_equal(spare.calls, 4);
}

static void *charge_and_release(void *context) {
    struct budget *const budget = context;
    for (int i = 0; i < 20000; i++) {
        if (!budget_charge(budget, 40)) continue;
        if (atomic_load(&budget->used) > budget->limit) return budget;
        budget_release(budget, 40);
    }
    return NULL;
}

static void test_threads(void **state) {
    (void)state;
    struct budget budget = {.limit = 100};
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&threads[i], NULL, charge_and_release, &budget), 0);
    for (int i = 0; i < 4; i++) {
        void *result;
        assert_int_equal(pthread_join(threads[i], &result), 0);
        assert_null(result);
    }
    assert_int_equal(budget.used, 0);
}

static void test_growth(void **state) {
    (void)state;
    struct budget budget = {.limit = 100000};
    struct buffer buffer = {.budget = &budget};
    assert_true(buffer_append(&buffer, NULL, 0));
    assert_null(buffer.data);
    assert_true(buffer_reserve(&buffer, 100));
    assert_int_equal(buffer.capacity, 100);
    assert_int_equal(budget.used, 100);
    assert_int_equal((uintptr_t)buffer.data % BUFFER_ALIGNMENT, 0);
    assert_true(buffer_reserve(&buffer, 99));
    assert_int_equal(buffer.capacity, 100);
    fill(&buffer, 100);
    fill(&buffer, 1);
    assert_int_equal(buffer.capacity, 150 + BUFFER_ALIGNMENT);
    assert_int_equal(budget.used, 150 + BUFFER_ALIGNMENT);
    assert_true(buffer_grow(&buffer, 1000));
    assert_int_equal(buffer.capacity, 1101);
    assert_int_equal((uintptr_t)buffer.data % BUFFER_ALIGNMENT, 0);
    expect_bytes(&buffer, 101);
    buffer_free(&buffer);
    assert_null(buffer.data);
    assert_int_equal(buffer.size + buffer.capacity, 0);
    assert_ptr_equal(buffer.budget, &budget);
    assert_int_equal(budget.used, 0);
    buffer_free(&buffer);
}

// Only the difference is charged when a buffer grows, so that it can fill the budget. Near its end half as much again
// does not fit, but an eighth or a 64th does; less than that is refused, or a text that grows a value at a time would
// be copied once a value.
static void test_growth_at_limit(void **state) {
    (void)state;
    struct budget budget = {.limit = 1250};
    struct buffer buffer = {.budget = &budget};
    fill(&buffer, 1000);
    fill(&buffer, 5);
    assert_int_equal(buffer.capacity, 1125);
    assert_int_equal(budget.used, 1125);
    fill(&buffer, 120);
    assert_int_equal(buffer.capacity, 1125);
    assert_true(buffer_grow(&buffer, 10));
    assert_int_equal(buffer.capacity, 1125 + 1125 / 64);
    assert_int_equal(buffer.refused, 0);
    assert_true(buffer_grow(&buffer, 125)); // exactly what is left
    assert_int_equal(buffer.capacity, 1250);
    assert_int_equal(budget.used, 1250);
    assert_int_equal(buffer.refused, 0);
    assert_false(buffer_grow(&buffer, 200));
    assert_int_equal(buffer.refused, 1125 + 200);
    buffer.size = 1250;
    assert_false(buffer_grow(&buffer, 1));
    assert_int_equal(buffer.refused, 1250 + 1250 / 64);
    buffer.size = 1125;
    assert_int_equal(buffer.capacity, 1250);
    assert_int_equal(budget.used, 1250);
    expect_bytes(&buffer, 1125);
    buffer_free(&buffer);
    assert_int_equal(buffer.refused, 0);
    assert_int_equal(budget.used, 0);
}

// From a few bytes to many megabytes, through every way in which memory moves; aligned, and nothing lost.
static void test_long_growth(void **state) {
    (void)state;
    struct budget budget = {.limit = (size_t)48 << 20};
    struct buffer buffer = {.budget = &budget}, between = {0};
    size_t count = 0;
    for (; buffer_grow(&buffer, sizeof count); count++) {
        memcpy(buffer.data + buffer.size, &count, sizeof count);
        buffer.size += sizeof count;
        assert_int_equal((uintptr_t)buffer.data % BUFFER_ALIGNMENT, 0);
        if (count % 100003 == 0) fill(&between, 1000); // takes what lies behind
    }
    assert_int_equal(budget.used, buffer.capacity);
    assert_true(buffer.size + buffer.size / 32 > budget.limit); // and the budget is almost used up
    for (int trimmed = 0; trimmed < 2; trimmed++) {
        for (size_t i = 0; i < count; i++) assert_memory_equal(buffer.data + i * sizeof i, &i, sizeof i);
        count /= 3;
        buffer.size = count * sizeof count;
        buffer_trim(&buffer);
        assert_int_equal(buffer.capacity, buffer.size);
    }
    buffer_free(&buffer);
    buffer_free(&between);
    assert_int_equal(budget.used, 0);
}

static void test_no_memory(void **state) {
    (void)state;
    struct budget budget = {.limit = SIZE_MAX};
    struct buffer buffer = {.budget = &budget};
    fill(&buffer, 50000);
    const struct buffer before = buffer;
    const size_t used = budget.used;
    no_memory = true;
    static const size_t asked[] = {50001, PTRDIFF_MAX, (size_t)PTRDIFF_MAX + 1, SIZE_MAX};
    for (size_t i = 0; i < sizeof asked / sizeof asked[0]; i++) {
        assert_false(buffer_reserve(&buffer, asked[i]));
        assert_int_equal(buffer.refused, asked[i]);
        assert_false(buffer_grow(&buffer, asked[i] - 50000));
        assert_false(buffer_append(&buffer, "x", asked[i] - 50000));
    }
    assert_false(buffer_grow(&buffer, SIZE_MAX));
    assert_int_equal(buffer.refused, SIZE_MAX);
    assert_false(buffer_grow(&buffer, SIZE_MAX - 50000 + 1));
    buffer.size = 100;
    buffer_trim(&buffer);
    buffer.size = 50000;
    no_memory = false;
    buffer.refused = 0;
    assert_memory_equal(&buffer, &before, sizeof buffer);
    assert_int_equal(budget.used, used);
    expect_bytes(&buffer, 50000);
    buffer_free(&buffer);
    assert_int_equal(budget.used, 0);
}

static void test_trim(void **state) {
    (void)state;
    struct budget budget = {.limit = 1 << 20};
    struct buffer buffer = {.budget = &budget};
    fill(&buffer, 1000);
    assert_true(buffer_reserve(&buffer, 2000));
    buffer_trim(&buffer);
    assert_int_equal(buffer.capacity, 2000); // not worth it
    buffer_fit(&buffer);
    assert_int_equal(buffer.capacity, 1000);
    expect_bytes(&buffer, 1000);
    assert_true(buffer_reserve(&buffer, 1000 + BUFFER_ALIGNMENT - 1));
    buffer_fit(&buffer);
    assert_int_equal(buffer.capacity, 1000 + BUFFER_ALIGNMENT - 1); // not worth that
    assert_true(buffer_reserve(&buffer, 100000));
    buffer_trim(&buffer);
    assert_int_equal(buffer.capacity, 1000);
    assert_int_equal(budget.used, 1000);
    expect_bytes(&buffer, 1000);
    assert_true(buffer_reserve(&buffer, 100000));
    buffer.size = 0;
    buffer_trim(&buffer);
    assert_null(buffer.data);
    assert_int_equal(buffer.capacity, 0);
    assert_int_equal(budget.used, 0);
    buffer_trim(&buffer);
}

static void test_uncharged(void **state) {
    (void)state;
    struct buffer buffer = {0};
    fill(&buffer, 10);
    fill(&buffer, 300);
    assert_int_equal(buffer.size, 310);
    assert_int_equal(buffer.data[10], 10);
    buffer_free(&buffer);
}

static void test_borrowed(void **state) {
    (void)state;
    struct budget budget = {.limit = 1 << 20};
    struct buffer buffer = {.budget = &budget};
    fill(&buffer, 1000);
    const size_t used = budget.used;
    struct buffer part = buffer_borrow(&buffer, 100, 50);
    assert_ptr_equal(part.data, buffer.data + 100);
    assert_int_equal(buffer_room(&part), 50);
    assert_int_equal(buffer_room(&buffer), buffer.capacity);
    buffer_trim(&part);
    assert_ptr_equal(part.data, buffer.data + 100);
    assert_int_equal(budget.used, used);
    assert_true(buffer_append(&part, "x", 1)); // a copy from now on
    assert_true(budget.used > used);
    assert_int_equal(part.size, 51);
    assert_memory_equal(part.data, buffer.data + 100, 50);
    assert_int_equal(part.data[50], 'x');
    assert_ptr_not_equal(part.data, buffer.data + 100);
    buffer_free(&part);
    assert_int_equal(budget.used, used);
    part = buffer_borrow(&buffer, 0, 1000);
    buffer_free(&part);
    assert_null(part.data);
    assert_int_equal(budget.used, used);
    expect_bytes(&buffer, 1000);
    buffer_free(&buffer);
}

static void test_move(void **state) {
    (void)state;
    struct budget budget = {.limit = 1 << 20};
    struct buffer from = {.budget = &budget}, to = {.budget = &budget};
    fill(&from, 1000);
    fill(&to, 500);
    buffer_move(&from, &from);
    expect_bytes(&from, 1000);
    buffer_move(&to, &from);
    expect_bytes(&to, 1000);
    assert_null(from.data);
    assert_int_equal(from.size + from.capacity, 0);
    assert_int_equal(budget.used, to.capacity);
    buffer_free(&to);
    assert_int_equal(budget.used, 0);
}

// Whether the mapping that holds `data` asks for huge pages, and how long it is.
static bool is_huge(const void *data, size_t *size) {
    FILE *const file = fopen("/proc/self/smaps", "r");
    char line[512];
    bool huge = false, mine = false;
    assert_non_null(file);
    while (fgets(line, sizeof line, file) != NULL) {
        uintptr_t start, end;
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &start, &end) == 2) {
            mine = start <= (uintptr_t)data && (uintptr_t)data < end;
            if (mine) *size = end - start;
        } else if (mine && strncmp(line, "VmFlags:", 8) == 0) {
            huge = strstr(line, " hg") != NULL;
        }
    }
    fclose(file);
    return huge;
}

// A large block asks for huge pages as one mapping, so that it can grow without a copy.
static void test_huge_pages(void **state) {
    (void)state;
    if (HEAP_REPLACED || access("/sys/kernel/mm/transparent_hugepage", F_OK) != 0) {
        print_message("# skipped: this heap, or this system, has no huge pages\n");
        skip();
    }
    struct buffer buffer = {0};
    size_t size = 0;
    fill(&buffer, 1000000);
    assert_false(is_huge(buffer.data, &size));
    for (size_t capacity = (size_t)8 << 20; capacity <= (size_t)32 << 20; capacity *= 2) {
        assert_true(buffer_reserve(&buffer, capacity));
        assert_true(is_huge(buffer.data, &size) && is_huge(buffer.data + capacity - 1, &size));
        assert_true(size >= capacity);
    }
    for (size_t k = 0; k < buffer.size; k++) assert_int_equal(buffer.data[k], (unsigned char)k);
    buffer_free(&buffer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_reclaim),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_growth),
        cmocka_unit_test(test_growth_at_limit),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_trim),
        cmocka_unit_test(test_uncharged),
        cmocka_unit_test(test_long_growth),
        cmocka_unit_test(test_borrowed),
        cmocka_unit_test(test_move),
        cmocka_unit_test(test_huge_pages),
    };
    return cmocka_run_group_tests_name("buffer", tests, NULL, NULL);
}
