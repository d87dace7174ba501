// SPDX-License-Identifier: Apache-2.0
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "../../proto/message.h"
#include "number_check.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static void test_codes(void **state) {
    (void)state;
    // The contract's statuses, and 500 for what must not happen.
    static const int statuses[] = {400, 401, 403, 404, 405, 406, 408, 409, 410, 412, 413,
                                   414, 415, 417, 422, 429, 431, 500, 501, 503, 504, 507};
    assert_int_equal(msg_code_count, MSG_STORE_FULL + 1);
    for (size_t i = 0; i < msg_code_count; i++) {
        const struct msg_code_row *const row = &msg_codes[i];
        assert_int_equal(row->code, i);
        assert_true(row->name[0] != '\0' && strspn(row->name, "abcdefghijklmnopqrstuvwxyz_") == strlen(row->name));
        assert_true(row->title[0] >= 'A' && row->title[0] <= 'Z' && row->title[strlen(row->title) - 1] != '.');
        bool known = i == MSG_OK && row->status == 200;
        for (size_t k = 0; k < COUNT(statuses); k++) known |= i != MSG_OK && row->status == statuses[k];
        if (!known) fail_msg("%s has status %d", row->name, row->status);
        for (size_t k = 0; k < i; k++) {
            assert_string_not_equal(row->name, msg_codes[k].name);
            assert_string_not_equal(row->title, msg_codes[k].title);
            assert_true(i == MSG_OK || row->status >= msg_codes[k].status); // sorted
        }
    }
}

// The statuses that the contract names for this cause.
static void test_statuses(void **state) {
    (void)state;
    static const struct {
        enum msg_code code;
        int status;
    } rows[] = {
        {MSG_MALFORMED_JSON, 400},
        {MSG_NOT_AN_OBJECT, 400},
        {MSG_DUPLICATE_FIELD, 400},
        {MSG_UNKNOWN_FIELD, 400},
        {MSG_BAD_NAME, 400},
        {MSG_BAD_HEADER, 400},
        {MSG_NOT_FOUND, 404},
        {MSG_LAYER_NOT_FOUND, 404},
        {MSG_METHOD_NOT_ALLOWED, 405},
        {MSG_NOT_ACCEPTABLE, 406},
        {MSG_BODY_TIMEOUT, 408},
        {MSG_CONFIG_CONFLICT, 409},
        {MSG_CACHE_GONE, 410},
        {MSG_PRECONDITION_FAILED, 412},
        {MSG_BODY_TOO_LARGE, 413},
        {MSG_UNSUPPORTED_MEDIA_TYPE, 415},
        {MSG_MISSING_FIELD, 422},
        {MSG_WRONG_TYPE, 422},
        {MSG_OUT_OF_RANGE, 422},
        {MSG_SHAPE_MISMATCH, 422},
        {MSG_RAGGED, 422},
        {MSG_OVERFLOW, 422},
        {MSG_NON_FINITE, 422},
        {MSG_SINGLE_VALUE, 422},
        {MSG_NOT_BUILT, 501},
        {MSG_RATE_LIMITED, 429},
        {MSG_QUEUE_FULL, 503},
        {MSG_MEMORY_FULL, 503},
        {MSG_DEADLINE, 504},
        {MSG_STORE_FULL, 507},
    };
    for (size_t i = 0; i < COUNT(rows); i++) assert_int_equal(msg_codes[rows[i].code].status, rows[i].status);
}

static void test_words(void **state) {
    (void)state;
    static const struct {
        const char *const *words;
        const char *expected; // in the order of the enum
    } rows[] = {
        {msg_convention_words, "pytorch cs231n onnx keras paper "},
        {msg_dtype_words, "f32 f64 "},
        {msg_init_words, "standard first-batch "},
        {msg_nonfinite_words, "reject skip_update propagate "},
        {msg_single_value_words, "reject beta "},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char all[100] = "";
        for (size_t k = 0; rows[i].words[k] != NULL; k++) strcat(strcat(all, rows[i].words[k]), " ");
        assert_string_equal(all, rows[i].expected);
    }
}

static void test_names(void **state) {
    (void)state;
    static const char *const good[] = {"a",   "Z",  "0",  "9a", "a.b",  "a-b",
                                       "a_b", "a.", "a-", "a_", "a..b", "resnet50.layer1.0.bn1"};
    static const char *const bad[] = {"",    ".",  ".a",  "-a",  "_a",       "a b",   " a",  "a ", "a/b", "a%b",
                                      "a:b", "a~", "a+b", "a\n", "\xc3\xa9", "a\xff", "a@b", "[",  "`",   "{"};
    for (size_t i = 0; i < COUNT(good); i++) {
        char *const name = alone(good[i], strlen(good[i])); // needs no NUL
        assert_true(msg_name_valid(name, strlen(good[i])));
        free(name);
    }
    for (size_t i = 0; i < COUNT(bad); i++) {
        char *const name = alone(bad[i], strlen(bad[i]));
        if (msg_name_valid(name, strlen(bad[i]))) fail_msg("\"%s\" passes", bad[i]);
        free(name);
    }
    assert_false(msg_name_valid("a\0b", 3));
    assert_false(msg_name_valid("\0", 1));
    char longest[MSG_NAME_MAX + 1];
    memset(longest, 'x', sizeof longest);
    for (size_t length = 1; length <= MSG_NAME_MAX; length++) assert_true(msg_name_valid(longest, length));
    assert_false(msg_name_valid(longest, MSG_NAME_MAX + 1));
    // Every byte, first and later.
    for (int c = 0; c < 256; c++) {
        const char one[] = {(char)c, 'a'}, two[] = {'a', (char)c};
        const bool alnum = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
        assert_int_equal(msg_name_valid(one, 2), alnum);
        assert_int_equal(msg_name_valid(two, 2), alnum || c == '.' || c == '_' || c == '-');
    }
}

static void test_first_error_wins(void **state) {
    (void)state;
    struct msg_error error = {0};
    assert_false(msg_fail(&error, MSG_RAGGED, "/x/1", "row %d", 1));
    assert_false(msg_fail(&error, MSG_OVERFLOW, NULL, "later"));
    assert_int_equal(error.code, MSG_RAGGED);
    assert_true(error.has_pointer);
    assert_string_equal(error.pointer, "/x/1");
    assert_string_equal(error.detail, "row 1");
    error.code = MSG_OK; // used anew: nothing of the old one stays
    assert_false(msg_fail(&error, MSG_OVERFLOW, NULL, "new"));
    assert_false(error.has_pointer);
    assert_string_equal(error.pointer, "");
    assert_string_equal(error.detail, "new");
}

static void test_long_error(void **state) {
    (void)state;
    char text[1000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    struct msg_error error = {0};
    msg_fail(&error, MSG_INTERNAL, text, "%s", text);
    assert_int_equal(strlen(error.detail), MSG_DETAIL_MAX - 1);
    assert_int_equal(strlen(error.pointer), MSG_POINTER_MAX - 1);
}

static void test_releases(void **state) {
    (void)state;
    struct budget budget = {.limit = 10000};
    struct msg_call call = {
        .x.values.budget = &budget, .dout.values.budget = &budget, .residual.values.budget = &budget};
    assert_true(buffer_reserve(&call.x.values, 100) && buffer_reserve(&call.dout.values, 200));
    assert_true(buffer_reserve(&call.residual.values, 300));
    for (int i = 0; i < 2; i++) msg_call_free(&call); // twice does no harm
    assert_int_equal(budget.used, 0);
    struct msg_snapshot snapshot = {.storage.budget = &budget, .count = 2};
    const size_t size = 2 * sizeof *snapshot.entries;
    assert_true(buffer_reserve(&snapshot.storage, size));
    memset(snapshot.storage.data, 0, size);
    snapshot.entries = (struct msg_snapshot_entry *)(void *)snapshot.storage.data;
    for (size_t i = 0; i < 2; i++) {
        struct msg_state *const each = &snapshot.entries[i].state;
        struct msg_vector *const vectors[] = {&each->gamma, &each->beta, &each->running_mean, &each->running_var};
        for (size_t v = 0; v < COUNT(vectors); v++) {
            vectors[v]->values.budget = &budget;
            assert_true(buffer_reserve(&vectors[v]->values, 64));
        }
    }
    assert_int_equal(budget.used, size + 8 * 64);
    for (int i = 0; i < 2; i++) msg_snapshot_free(&snapshot);
    assert_int_equal(budget.used, 0);
    assert_true(snapshot.entries == NULL && snapshot.count == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_codes),    cmocka_unit_test(test_statuses),         cmocka_unit_test(test_words),
        cmocka_unit_test(test_names),    cmocka_unit_test(test_first_error_wins), cmocka_unit_test(test_long_error),
        cmocka_unit_test(test_releases),
    };
    return cmocka_run_group_tests_name("message", tests, NULL, NULL);
}
