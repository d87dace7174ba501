// SPDX-License-Identifier: Apache-2.0
//
// gzip and deflate: there and back, limits, budgets, and what is no such thing.
#include "fixture.h"

#include <zlib.h>

#include "../../server/coding.h"

static const enum coding codings[] = {CODING_GZIP, CODING_DEFLATE};

static struct budget budget = {.limit = (size_t)1 << 25};

static int fresh_budget(void **state) {
    (void)state;
    budget.used = 0;
    budget.limit = (size_t)1 << 25;
    return 0;
}

static struct buffer bytes_of(const void *data, size_t size) {
    struct buffer buffer = {.budget = &budget};
    assert_true(buffer_append(&buffer, data, size));
    return buffer;
}

// Text that becomes smaller.
static struct buffer text_of(size_t size) {
    struct buffer text = {.budget = &budget};
    uint64_t seed = 1;
    assert_true(buffer_reserve(&text, size + 1));
    for (; text.size < size; text.size++) text.data[text.size] = (unsigned char)('0' + random_bits(&seed) % 10);
    return text;
}

// As zlib has it.
static struct buffer coded(const struct buffer *plain, int bits) {
    struct buffer out = {.budget = &budget};
    z_stream stream = {.next_in = plain->data, .avail_in = (unsigned)plain->size};
    assert_int_equal(deflateInit2(&stream, 6, Z_DEFLATED, bits, 8, Z_DEFAULT_STRATEGY), Z_OK);
    assert_true(buffer_reserve(&out, deflateBound(&stream, plain->size)));
    stream.next_out = out.data;
    stream.avail_out = (unsigned)out.capacity;
    assert_int_equal(deflate(&stream, Z_FINISH), Z_STREAM_END);
    out.size = stream.total_out;
    deflateEnd(&stream);
    return out;
}

static int bits_for(enum coding coding) {
    return coding == CODING_GZIP ? 31 : 15;
}

static void expect_equal(const struct buffer *a, size_t skip, const struct buffer *b) {
    assert_int_equal(a->size - skip, b->size);
    if (b->size > 0) assert_memory_equal(a->data + skip, b->data, b->size);
}

static void expect_refused(const struct buffer *from, enum coding coding, size_t limit, enum msg_code code,
                           const char *word) {
    struct msg_error error = {0};
    struct buffer out = {.budget = &budget};
    assert_false(coding_decode(&out, from, coding, limit, &error));
    if (error.code != code || strstr(error.detail, word) == NULL)
        fail_msg("%s (%s), expected %s with \"%s\"", msg_codes[error.code].name, error.detail, msg_codes[code].name,
                 word);
    buffer_free(&out);
}

static void test_decode(void **state) {
    (void)state;
    static const size_t sizes[] = {0, 1, 1000, 262143, 262144, 262145, 3000000};
    for (size_t i = 0; i < COUNT(sizes); i++) {
        for (size_t k = 0; k < COUNT(codings); k++) {
            struct msg_error error = {0};
            struct buffer plain = text_of(sizes[i]), from = coded(&plain, bits_for(codings[k]));
            struct buffer out = bytes_of("before", 6);
            if (!coding_decode(&out, &from, codings[k], sizes[i], &error)) fail_msg("%s", error.detail);
            expect_equal(&out, 6, &plain);
            if (sizes[i] > 0) expect_refused(&from, codings[k], sizes[i] - 1, MSG_BODY_TOO_LARGE, "limit");
            buffer_free(&out);
            buffer_free(&from);
            buffer_free(&plain);
            assert_int_equal(budget.used, 0);
        }
    }
}

// A bomb costs no more than the limit.
static void test_bomb(void **state) {
    (void)state;
    const size_t size = (size_t)8 << 20, limit = (size_t)1 << 20;
    struct buffer zeros = {.budget = &budget};
    assert_true(buffer_reserve(&zeros, size));
    memset(zeros.data, 0, size);
    zeros.size = size;
    struct buffer from = coded(&zeros, 31);
    buffer_trim(&from);
    buffer_free(&zeros);
    budget.limit = budget.used + limit + 1024;
    expect_refused(&from, CODING_GZIP, limit, MSG_BODY_TOO_LARGE, "limit");
    for (size_t spare = 0; spare <= limit; spare += limit / 8) { // nor does it creep to the end of the budget
        budget.limit = budget.used + spare;
        expect_refused(&from, CODING_GZIP, limit, MSG_MEMORY_FULL, "budget");
    }
    buffer_free(&from);
}

static void test_members(void **state) {
    (void)state;
    struct msg_error error = {0};
    struct buffer plain = text_of(5000), from = coded(&plain, 31), out = {.budget = &budget};
    struct buffer second = coded(&plain, 31);
    assert_true(buffer_append(&from, second.data, second.size));
    assert_true(coding_decode(&out, &from, CODING_GZIP, 10000, &error));
    assert_int_equal(out.size, 10000);
    assert_memory_equal(out.data, plain.data, 5000);
    assert_memory_equal(out.data + 5000, plain.data, 5000);
    buffer_free(&out);
    buffer_free(&second);
    buffer_free(&from);
    from = coded(&plain, 15);
    assert_true(buffer_append(&from, "x", 1));
    expect_refused(&from, CODING_DEFLATE, 10000, MSG_MALFORMED_FILE, "follow");
    buffer_free(&from);
    buffer_free(&plain);
}

static void test_damaged(void **state) {
    (void)state;
    for (size_t k = 0; k < COUNT(codings); k++) {
        struct buffer plain = text_of(300), from = coded(&plain, bits_for(codings[k]));
        struct buffer raw = coded(&plain, -15);
        expect_refused(&raw, codings[k], 1000, MSG_MALFORMED_FILE, coding_names[codings[k]]);
        expect_refused(&plain, codings[k], 1000, MSG_MALFORMED_FILE, coding_names[codings[k]]);
        const size_t whole = from.size;
        for (from.size = 0; from.size < whole; from.size++)
            expect_refused(&from, codings[k], 1000, MSG_MALFORMED_FILE, "ends too early");
        from.data[whole - 2] ^= 1; // of the checksum or the length
        from.size = whole;
        expect_refused(&from, codings[k], 1000, MSG_MALFORMED_FILE, coding_names[codings[k]]);
        for (size_t i = 0; i < whole; i++) { // any answer but a crash
            struct msg_error error = {0};
            struct buffer out = {.budget = &budget};
            from.data[i] ^= 0x55;
            (void)!coding_decode(&out, &from, codings[k], 1000, &error);
            from.data[i] ^= 0x55;
            buffer_free(&out);
        }
        buffer_free(&raw);
        buffer_free(&from);
        buffer_free(&plain);
    }
    assert_int_equal(budget.used, 0);
}

static void test_encode(void **state) {
    (void)state;
    static const size_t sizes[] = {200, 131071, 131072, 1000000};
    for (size_t i = 0; i < COUNT(sizes); i++) {
        for (size_t k = 0; k < COUNT(codings); k++) {
            struct msg_error error = {0};
            struct buffer plain = text_of(sizes[i]), out = {.budget = &budget}, back = {.budget = &budget};
            const struct msg_piece pieces[] = {{plain.data, 100}, {plain.data, 0}, {plain.data + 100, sizes[i] - 100}};
            assert_true(coding_encode(&out, pieces, 3, codings[k]));
            assert_true(out.size < plain.size * 3 / 4);
            assert_true(coding_decode(&back, &out, codings[k], sizes[i], &error));
            expect_equal(&back, 0, &plain);
            buffer_free(&back);
            budget.limit = budget.used;
            buffer_free(&out);
            budget.limit = budget.used;
            assert_false(coding_encode(&out, pieces, 3, codings[k])); // no memory
            buffer_free(&out);
            budget.limit = (size_t)1 << 25;
            buffer_free(&plain);
            assert_int_equal(budget.used, 0);
        }
    }
}

// What does not become smaller is given up early.
static void test_not_worth_it(void **state) {
    (void)state;
    const size_t size = (size_t)4 << 20;
    struct buffer noise = {.budget = &budget}, out = {.budget = &budget};
    uint64_t seed = 7;
    assert_true(buffer_reserve(&noise, size));
    for (; noise.size < size; noise.size++) noise.data[noise.size] = (unsigned char)random_bits(&seed);
    const struct msg_piece piece = {noise.data, noise.size};
    assert_false(coding_encode(&out, &piece, 1, CODING_GZIP));
    assert_true(out.capacity < size / 4);
    buffer_free(&out);
    buffer_free(&noise);
}

#define TEST(name) cmocka_unit_test_setup(name, fresh_budget)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_decode),  TEST(test_bomb),   TEST(test_members),
        TEST(test_damaged), TEST(test_encode), TEST(test_not_worth_it),
    };
    return cmocka_run_group_tests_name("coding", tests, NULL, NULL);
}
