// SPDX-License-Identifier: Apache-2.0
#include "fixture.h"

#include "../../server/etag.h"

static struct layer_state *state_of(uint64_t version, uint64_t id) {
    const struct msg_config config = config_of(1, MSG_PYTORCH);
    struct layer_state *const state = layer_state_new(&config, id);
    assert_non_null(state);
    state->version = version;
    return state;
}

static void test_format(void **state) {
    (void)state;
    static const struct {
        uint64_t version, id;
        const char *etag;
    } rows[] = {{1, 0, "\"1-0000000000000000\""},
                {42, 0xabc, "\"42-0000000000000abc\""},
                {UINT64_MAX, UINT64_MAX, "\"18446744073709551615-ffffffffffffffff\""}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct layer_state *const layer = state_of(rows[i].version, rows[i].id);
        char etag[ETAG_MAX];
        etag_format(etag, layer);
        assert_string_equal(etag, rows[i].etag);
        layer_state_release(layer);
    }
}

// Another version, another id: another tag.
static void test_unlike(void **state) {
    (void)state;
    char etags[4][ETAG_MAX];
    for (size_t i = 0; i < 4; i++) {
        struct layer_state *const layer = state_of(1 + i % 2, 1 + i / 2);
        etag_format(etags[i], layer);
        layer_state_release(layer);
    }
    for (size_t i = 0; i < 4; i++) {
        for (size_t k = 0; k < i; k++) assert_string_not_equal(etags[i], etags[k]);
    }
}

// With another salt all tags are others, and all differ still.
static void test_salt(void **state) {
    (void)state;
    char etags[8][ETAG_MAX];
    for (size_t i = 0; i < 8; i++) {
        struct layer_state *const layer = state_of(1 + i % 2, 1 + i / 2 % 2);
        etag_start(i < 4 ? 0 : 0x123456789abcdef0);
        etag_format(etags[i], layer);
        assert_true(etag_matches(&(struct field_lines){{etags[i]}, 1}, layer, false));
        if (i >= 4) assert_false(etag_matches(&(struct field_lines){{etags[i - 4]}, 1}, layer, false));
        for (size_t k = 0; k < i; k++) assert_string_not_equal(etags[i], etags[k]);
        layer_state_release(layer);
    }
    etag_start(0);
}

#define TAG "\"3-00000000000000ff\""

static void test_matches(void **state) {
    (void)state;
    static const struct {
        const char *field;
        bool strong, weak;
    } rows[] = {
        {TAG, true, true},
        {" \t" TAG " ", true, true},
        {"*", true, true},
        {" * ", true, true},
        {"W/" TAG, false, true},
        {"\"other\", " TAG, true, true},
        {TAG ",\"other\"", true, true},
        {"\"other\"," TAG ",\"x\"", true, true},
        {"\"other\", W/" TAG, false, true},
        {"W/\"other\" ," TAG, true, true},
        {",, ," TAG, true, true},
        {"\"a,b\", " TAG, true, true},
        {"\"\", " TAG, true, true},
        {"", false, false},
        {" ", false, false},
        {",", false, false},
        {"\"other\"", false, false},
        {"\"3-00000000000000fe\"", false, false},
        {"\"4-00000000000000ff\"", false, false},
        {"\"13-00000000000000ff\"", false, false},
        {"\"3-00000000000000ff", false, false},
        {"3-00000000000000ff", false, false},
        {"'3-00000000000000ff'", false, false},
        {"\"3-00000000000000FF\"", false, false},
        {"w/" TAG, false, false},
        {"\"x" TAG, false, false},
    };
    struct layer_state *const layer = state_of(3, 255);
    for (size_t i = 0; i < COUNT(rows); i++) {
        const size_t size = strlen(rows[i].field) + 1;
        char *const field = malloc(size); // alone, for the sanitizer
        memcpy(field, rows[i].field, size);
        const struct field_lines lines[] = {{{field}, 1}, {{"", field}, 2}, {{"\"a\"", "x", "W/\"b\"", field}, 4}};
        for (size_t k = 0; k < COUNT(lines); k++) {
            if (etag_matches(&lines[k], layer, false) != rows[i].strong) fail_msg("If-Match: %s", field);
            if (etag_matches(&lines[k], layer, true) != rows[i].weak) fail_msg("If-None-Match: %s", field);
            assert_false(etag_matches(&lines[k], NULL, false));
            assert_false(etag_matches(&lines[k], NULL, true));
        }
        free(field);
    }
    assert_false(etag_matches(&(struct field_lines){.count = 0}, layer, true));
    layer_state_release(layer);
}

static void test_any(void **state) {
    (void)state;
    static const struct {
        const char *field;
        bool any;
    } rows[] = {{"*", true},   {" * ", true}, {"\t*", true},    {"", false},        {" ", false},
                {"**", false}, {"*,", false}, {"\"*\"", false}, {"\"a\", *", false}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        const struct field_lines lines[] = {{{rows[i].field}, 1}, {{"\"a\"", rows[i].field}, 2}};
        for (size_t k = 0; k < COUNT(lines); k++) assert_int_equal(etag_any(&lines[k]), rows[i].any);
    }
    assert_false(etag_any(&(struct field_lines){.count = 0}));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format),  cmocka_unit_test(test_unlike), cmocka_unit_test(test_salt),
        cmocka_unit_test(test_matches), cmocka_unit_test(test_any),
    };
    return cmocka_run_group_tests_name("etag", tests, NULL, NULL);
}
