// SPDX-License-Identifier: Apache-2.0
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/base64.h"

// Decodes a text that stands alone in memory into memory of just the size.
static bool decode(unsigned char **data, size_t *size, const char *text, size_t length, size_t *bad) {
    char *const copy = malloc(length > 0 ? length : 1);
    assert_non_null(copy);
    memcpy(copy, text, length);
    *data = NULL;
    const bool sized = base64_data_size(size, copy, length);
    assert_int_equal(sized, length % 4 == 0);
    if (sized) {
        *data = malloc(*size > 0 ? *size : 1);
        assert_non_null(*data);
    }
    const bool decoded = sized && base64_decode(*data, copy, length, bad);
    free(copy);
    return decoded;
}

static void expect_bad(const char *text, size_t expected) {
    unsigned char *data;
    size_t size;
    size_t bad = SIZE_MAX;
    if (decode(&data, &size, text, strlen(text), &bad)) fail_msg("\"%s\" is decoded", text);
    if (bad != expected) fail_msg("\"%s\": bad at %zu, expected %zu", text, bad, expected);
    free(data);
}

// RFC 4648, section 10, and the two last letters of the alphabet.
static void test_vectors(void **state) {
    (void)state;
    static const char *const rows[][2] = {
        {"", ""},
        {"f", "Zg=="},
        {"fo", "Zm8="},
        {"foo", "Zm9v"},
        {"foob", "Zm9vYg=="},
        {"fooba", "Zm9vYmE="},
        {"foobar", "Zm9vYmFy"},
        {"\xfb\xff\xfe", "+//+"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const size_t data_size = strlen(rows[i][0]);
        const size_t length = strlen(rows[i][1]);
        assert_int_equal(base64_text_size(data_size), length);
        char text[16];
        memset(text, '#', sizeof text);
        assert_ptr_equal(base64_encode(text, rows[i][0], data_size), text + length);
        assert_memory_equal(text, rows[i][1], length);
        assert_int_equal(text[length], '#');
        unsigned char *data;
        size_t size;
        size_t bad;
        assert_true(decode(&data, &size, rows[i][1], length, &bad));
        assert_int_equal(size, data_size);
        assert_memory_equal(data, rows[i][0], size);
        free(data);
    }
}

static void test_round_trip(void **state) {
    (void)state;
    unsigned char in[256];
    for (size_t i = 0; i < sizeof in; i++) in[i] = (unsigned char)(i * 167 + 13);
    for (size_t size = 0; size <= sizeof in; size++) {
        char text[348];
        char *const end = base64_encode(text, in, size);
        assert_int_equal(end - text, base64_text_size(size));
        unsigned char *data;
        size_t read;
        size_t bad;
        assert_true(decode(&data, &read, text, (size_t)(end - text), &bad));
        assert_int_equal(read, size);
        assert_memory_equal(data, in, size);
        free(data);
    }
}

static void test_length(void **state) {
    (void)state;
    size_t size;
    assert_false(base64_data_size(&size, "Z", 1));
    assert_false(base64_data_size(&size, "Zg", 2));
    assert_false(base64_data_size(&size, "Zg=", 3));
    assert_false(base64_data_size(&size, "Zm9vY", 5));
    assert_true(base64_data_size(&size, "", 0));
    assert_int_equal(size, 0);
    unsigned char data[3];
    size_t bad = 0;
    assert_false(base64_decode(data, "Zm9vY", 5, &bad));
    assert_int_equal(bad, 5);
}

// Each byte outside the alphabet, at each place of a text with a full and a padded group.
static void test_bad_bytes(void **state) {
    (void)state;
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    static const char *const texts[] = {"Zm9vYmFy", "Zm9vYmE=", "Zm9vYg=="};
    for (size_t t = 0; t < 3; t++) {
        const size_t filled = strcspn(texts[t], "=");
        for (size_t at = 0; at < filled; at++) {
            for (int c = 0; c < 256; c++) {
                char text[9];
                memcpy(text, texts[t], sizeof text);
                if (c == '=' && at == filled - 1) continue; // may be well-formed padding
                text[at] = (char)c;
                unsigned char *data;
                size_t size;
                size_t bad = SIZE_MAX;
                const bool decoded = decode(&data, &size, text, 8, &bad);
                if (c == 0 || strchr(alphabet, c) == NULL) {
                    assert_false(decoded);
                    assert_int_equal(bad, at);
                } else if (at < filled - 1) {
                    assert_true(decoded);
                }
                free(data);
            }
        }
    }
}

static void test_padding(void **state) {
    (void)state;
    expect_bad("====", 0);
    expect_bad("Z===", 1);
    expect_bad("=g==", 0);
    expect_bad("Zg=v", 2);
    expect_bad("Z=9v", 1);
    expect_bad("Zg==Zm9v", 2);
    expect_bad("Zm8=Zm9v", 3);
    expect_bad("Zm9v====", 4);
    expect_bad("Zm9v\nZm9", 4);
}

static void test_trailing_bits(void **state) {
    (void)state;
    expect_bad("Zh==", 1);
    expect_bad("Zv==", 1);
    expect_bad("Zm9=", 2);
    expect_bad("Zm+=", 2);
    expect_bad("Zm9vYh==", 5);
    expect_bad("Zm9vYmF=", 6);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors),   cmocka_unit_test(test_round_trip), cmocka_unit_test(test_length),
        cmocka_unit_test(test_bad_bytes), cmocka_unit_test(test_padding),    cmocka_unit_test(test_trailing_bits),
    };
    return cmocka_run_group_tests_name("base64", tests, NULL, NULL);
}
