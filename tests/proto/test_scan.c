// SPDX-License-Identifier: Apache-2.0
//
// The walk through JSON texts: grammar, keys and pointers.
#include "scanned.h"

// ---- grammar

static void expect_skip(const char *text, size_t length, bool good) {
    char *const copy = alone(text, length);
    struct msg_error error = {0};
    struct scan scan;
    struct scan_span span = {0};
    scan_start(&scan, copy, length, &budget, &error);
    const bool ok = scan_skip(&scan, &span) && scan_finish(&scan);
    if (ok != good) fail_msg("\"%.*s\": %s", (int)length, text, good ? error.detail : "is taken");
    expect_outcome(text, &error, good ? MSG_OK : MSG_MALFORMED_JSON, NULL);
    if (good) { // all but the white space around it
        assert_true(span.length > 0 && span.text >= copy && span.text + span.length <= copy + length);
        assert_null(memchr(" \t\r\n", span.text[0], 4));
        assert_null(memchr(" \t\r\n", span.text[span.length - 1], 4));
    }
    free(copy);
}

static const char *const good_texts[] = {
    "0",
    "-0",
    "1",
    "-1",
    "10",
    "1.5",
    "1e5",
    "1E+5",
    "1e-5",
    "-0.0e0",
    "123456789012345678901234567890",
    "1e999",
    "true",
    "false",
    "null",
    "\"\"",
    "\"a\"",
    "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"",
    "\"\\u0000\\uD83D\\uDE00\\uabCD\"",
    "\"\xc3\xa9\"",
    "\"\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf\"",
    "\"\x7f\"",
    "[]",
    "{}",
    "[ ]",
    "{ }",
    " \t\r\n[\n1\t,\r2 ]\n",
    "[1,2,3]",
    "[[],[[]],{}]",
    "{\"a\":1}",
    "{\"a\" : 1 , \"b\" : [ { } ]}",
    "{\"a\":{\"b\":{\"c\":[null,true,false]}}}",
    "{\"\":0}",
    "{\"a\":1,\"a\":2}",
    "[\"]\",\"}\",\"\\\"\"]",
};

static void test_good(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(good_texts); i++) expect_skip(good_texts[i], strlen(good_texts[i]), true);
}

static void test_bad(void **state) {
    (void)state;
    static const char *const texts[] = {
        "",
        " ",
        "+1",
        "01",
        "-",
        "-01",
        "00",
        "1.",
        ".5",
        "-.5",
        "1e",
        "1e+",
        "1.e5",
        "0x1",
        "1_0",
        "1 2",
        "NaN",
        "Infinity",
        "-Infinity",
        "nul",
        "nulll",
        "True",
        "TRUE",
        "tru",
        "'a'",
        "\"",
        "\"a",
        "\"\\",
        "\"\\\"",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u123g\"",
        "\"\\u\"",
        "\"\\U0041\"",
        "\"\x80\"",     // no first byte
        "\"\xc3\"",     // no second one
        "\"\xc1\xbf\"", // longer than it must be, as are the next two
        "\"\xe0\x9f\xbf\"",
        "\"\xf0\x8f\xbf\xbf\"",
        "\"\xed\xa0\x80\"",     // half a surrogate pair
        "\"\xf4\x90\x80\x80\"", // past U+10FFFF
        "\"\xf5\x80\x80\x80\"",
        "\"\xe2\x82\"",
        "\"\xe2\x82",
        "\"\xff\"",
        "{\"\xff\":1}",
        "\"\t\"",
        "\"\n\"",
        "\"\x01\"",
        "[",
        "]",
        "{",
        "}",
        "[}",
        "{]",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "[,]",
        "[1 2]",
        "[1,,2]",
        "[1]]",
        "[[1]",
        "[1;2]",
        "{\"a\"",
        "{\"a\":",
        "{\"a\":}",
        "{\"a\":1",
        "{\"a\":1,",
        "{\"a\":1,}",
        "{,\"a\":1}",
        "{\"a\" 1}",
        "{\"a\"=1}",
        "{a:1}",
        "{1:1}",
        "{\"a\":1 \"b\":2}",
        "{\"a\":1,,\"b\":2}",
        "{\"a\",\"b\"}",
        "{\"a\":1}{",
        "[1:2]",
        "{\"a\":[}",
        "//x\n1",
        "1//",
        "/**/1",
        "\xef\xbb\xbf"
        "1",
        "\x80",
        "[1]x",
        "\xc2\xa0"
        "1",
        "\v1",
    };
    for (size_t i = 0; i < COUNT(texts); i++) expect_skip(texts[i], strlen(texts[i]), false);
    static const char nul[] = "[1,\0]";
    expect_skip(nul, sizeof nul - 1, false);
    expect_skip("1\0", 2, false);
    expect_skip("\0", 1, false);
    expect_skip("\"\0\"", 3, false);
    expect_skip("\"\\\0\"", 4, false);
}

static void test_depth(void **state) {
    (void)state;
    for (int depth = 1; depth <= 3 * SCAN_MAX_DEPTH; depth++) {
        char text[16 * SCAN_MAX_DEPTH] = "", *at = text;
        for (int i = 0; i < depth; i++) at = stpcpy(at, i % 2 == 0 ? "[" : "{\"\":");
        *at++ = '0';
        for (int i = depth; i-- > 0;) *at++ = i % 2 == 0 ? ']' : '}';
        expect_skip(text, (size_t)(at - text), depth <= SCAN_MAX_DEPTH);
    }
    const size_t many = 1 << 20;
    char *const text = malloc(many);
    assert_non_null(text);
    memset(text, '[', many);
    expect_skip(text, many, false);
    free(text);
}

// No prefix is a text, and none is read behind its end.
static void test_prefixes(void **state) {
    (void)state;
    static const char varied[] =
        "{\"a\":[1,-2.5e+10,\"\\u00e9\\n\xc3\xa9\",{\"b\":null}],\"c\":{\"d\":true,\"e\":[[],{},"
        "false]},\"\\ud83d\\ude00\":0.5}";
    expect_skip(varied, sizeof varied - 1, true);
    for (size_t length = 0; length < sizeof varied - 1; length++) expect_skip(varied, length, false);
}

// ---- objects

static void test_keys(void **state) {
    (void)state;
    static const struct {
        const char *written, *name, *pointer;
    } rows[] = {
        {"a", "a", "/a"},
        {"", "", "/"},
        {"\\u0061\\u0062", "ab", "/ab"},
        {"\\\"\\\\\\/\\b\\f\\n\\r\\t", "\"\\/\b\f\n\r\t", "/\"\\~1\b\f\n\r\t"},
        {"a/b~c", "a/b~c", "/a~1b~0c"},
        {"~1", "~1", "/~01"},
        {"\\u00e9\\u20ac", "\xc3\xa9\xe2\x82\xac", "/\xc3\xa9\xe2\x82\xac"},
        {"\\ud83d\\ude00", "\xf0\x9f\x98\x80", "/\xf0\x9f\x98\x80"},
        {"\\uDBFF\\uDFFF", "\xf4\x8f\xbf\xbf", "/\xf4\x8f\xbf\xbf"},
        {"x\\u0000y", "x\xef\xbf\xbdy", "/x\xef\xbf\xbdy"}, // NUL would end the name early: "x" is another one
        {"\\ud83d", "\xef\xbf\xbd", "/\xef\xbf\xbd"},
        {"\\ude00", "\xef\xbf\xbd", "/\xef\xbf\xbd"},
        {"\\ud83dx", "\xef\xbf\xbdx", "/\xef\xbf\xbdx"},
        {"\\ud83d\\n", "\xef\xbf\xbd\n", "/\xef\xbf\xbd\n"},
        {"\\ud83d\\u0041",
         "\xef\xbf\xbd"
         "A",
         "/\xef\xbf\xbd"
         "A"},
        {"\\ud83d\\ud83d\\ude00", "\xef\xbf\xbd\xf0\x9f\x98\x80", "/\xef\xbf\xbd\xf0\x9f\x98\x80"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char text[100];
        const int length = snprintf(text, sizeof text, " { \"%s\" : 7 , \"next\":8}", rows[i].written);
        char *const copy = alone(text, (size_t)length);
        struct msg_error error = {0};
        struct scan scan;
        struct scan_key key;
        bool more = false;
        scan_start(&scan, copy, (size_t)length, &budget, &error);
        assert_true(scan_object(&scan) && scan_member(&scan, &key, &more, true) && more);
        assert_string_equal(key.name, rows[i].name);
        assert_string_equal(scan.pointer, rows[i].pointer);
        assert_int_equal(key.span.length, strlen(rows[i].written) + 2);
        assert_memory_equal(key.span.text + 1, rows[i].written, strlen(rows[i].written));
        assert_int_equal(scan_peek(&scan), '7');
        assert_true(scan_skip(&scan, NULL));
        scan_end_member(&scan, &key);
        assert_string_equal(scan.pointer, "");
        assert_true(scan_member(&scan, &key, &more, false) && more);
        assert_string_equal(scan.pointer, "/next");
        assert_true(scan_refuse(&scan, MSG_OUT_OF_RANGE, "not %d", 8));
        scan_end_member(&scan, &key);
        assert_true(scan_member(&scan, &key, &more, false) && !more && scan_finish(&scan));
        expect_outcome(text, &error, MSG_OUT_OF_RANGE, "/next");
        assert_string_equal(error.detail, "not 8");
        free(copy);
    }
}

// Keys and pointers of any length stay within their room.
static void test_long_keys(void **state) {
    (void)state;
    static const char *const units[] = {"a", "~", "\\u00e9", "\\ud83d\\ude00", "\xc3\xa9"};
    for (size_t u = 0; u < COUNT(units); u++) {
        for (size_t count = 1; count < 400; count += 3) {
            char text[6000] = "{\"", *at = text + 2;
            for (size_t i = 0; i < count; i++) at = stpcpy(at, units[u]);
            at = stpcpy(at, "\":{\"inner\":1}}");
            char *const copy = alone(text, (size_t)(at - text));
            struct msg_error error = {0};
            struct scan scan;
            struct scan_key key, inner;
            bool more = false;
            scan_start(&scan, copy, (size_t)(at - text), &budget, &error);
            assert_true(scan_object(&scan) && scan_member(&scan, &key, &more, true) && more);
            assert_true(strlen(key.name) <= SCAN_KEY_MAX);
            assert_true(scan_object(&scan) && scan_member(&scan, &inner, &more, true) && more);
            assert_true(strlen(scan.pointer) < MSG_POINTER_MAX && scan.pointer_length == strlen(scan.pointer));
            assert_true(scan_skip(&scan, NULL));
            scan_end_member(&scan, &inner);
            assert_true(scan_member(&scan, &inner, &more, false) && !more);
            scan_end_member(&scan, &key);
            assert_string_equal(scan.pointer, "");
            assert_true(scan_member(&scan, &key, &more, false) && !more && scan_finish(&scan));
            free(copy);
        }
    }
}

static void test_bad_objects(void **state) {
    (void)state;
    static const char *const texts[] = {
        "[", "{", "{1:2}", "{\"a\"}", "{\"a\":1,}", "{\"a\":1]", "{\"a\":1 \"b\":2}", "{,}", "{\"a\":}", "{\"a\":1}x"};
    for (size_t i = 0; i < COUNT(texts); i++) {
        struct msg_error error = {0};
        struct scan scan;
        struct scan_key key;
        bool more = true, ok = true;
        char *const copy = alone(texts[i], strlen(texts[i]));
        scan_start(&scan, copy, strlen(texts[i]), &budget, &error);
        ok = scan_object(&scan);
        for (bool first = true; ok && more; first = false) {
            ok = scan_member(&scan, &key, &more, first);
            if (ok && more) ok = scan_skip(&scan, NULL);
            if (ok && more) scan_end_member(&scan, &key);
        }
        assert_false(ok && scan_finish(&scan));
        expect_outcome(texts[i], &error, MSG_MALFORMED_JSON, NULL);
        free(copy);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),        cmocka_unit_test(test_bad),  cmocka_unit_test(test_depth),
        cmocka_unit_test(test_prefixes),    cmocka_unit_test(test_keys), cmocka_unit_test(test_long_keys),
        cmocka_unit_test(test_bad_objects),
    };
    return cmocka_run_group_tests_name("scan", tests, NULL, NULL);
}
