// SPDX-License-Identifier: Apache-2.0
//
// Reading of proto/number_read.c against libc, and against values known by construction.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/number.h"
#include "number_check.h"

// Of a halfway value: 767 digits, and some appended.
#define TEXT_SIZE 1200

static void test_grammar(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t read;
        enum number_status status;
    } rows[] = {
        {"", 0, NUMBER_MALFORMED},
        {"-", 1, NUMBER_MALFORMED},
        {"+1", 0, NUMBER_MALFORMED},
        {".5", 0, NUMBER_MALFORMED},
        {"-.5", 1, NUMBER_MALFORMED},
        {"5.", 2, NUMBER_MALFORMED},
        {"5.e1", 2, NUMBER_MALFORMED},
        {"5.-1", 2, NUMBER_MALFORMED},
        {"01", 1, NUMBER_MALFORMED},
        {"-01.5", 2, NUMBER_MALFORMED},
        {"00", 1, NUMBER_MALFORMED},
        {"000000000001", 1, NUMBER_MALFORMED},
        {"1e", 2, NUMBER_MALFORMED},
        {"1e+", 3, NUMBER_MALFORMED},
        {"1E-", 3, NUMBER_MALFORMED},
        {"1e+-1", 3, NUMBER_MALFORMED},
        {"1e.5", 2, NUMBER_MALFORMED},
        {"--1", 1, NUMBER_MALFORMED},
        {"inf", 0, NUMBER_MALFORMED},
        {"-inf", 1, NUMBER_MALFORMED},
        {"nan", 0, NUMBER_MALFORMED},
        {"NaN", 0, NUMBER_MALFORMED},
        {" 1", 0, NUMBER_MALFORMED},
        {"e5", 0, NUMBER_MALFORMED},
        {"\xef\xbc\x91", 0, NUMBER_MALFORMED},
        {"0x10", 1, NUMBER_OK},
        {"1,2", 1, NUMBER_OK},
        {"1.5.3", 3, NUMBER_OK},
        {"12e3e4", 4, NUMBER_OK},
        {"1 ", 1, NUMBER_OK},
        {"1]", 1, NUMBER_OK},
        {"1f", 1, NUMBER_OK},
        {"12345678:", 8, NUMBER_OK},
        {"1234567/", 7, NUMBER_OK},
        {"0.1234567\x80", 9, NUMBER_OK},
        {"-1e400]", 6, NUMBER_OVERFLOW},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const size_t size = strlen(rows[i].text);
        char *const text = alone(rows[i].text, size);
        const char *end_f64 = text;
        const char *end_f32 = text;
        double f64;
        float f32;
        const enum number_status status_f64 = number_read_f64(&f64, &end_f64, text + size);
        const enum number_status status_f32 = number_read_f32(&f32, &end_f32, text + size);
        if (status_f64 != rows[i].status || status_f32 != rows[i].status || end_f64 != text + rows[i].read ||
            end_f32 != end_f64) {
            fail_msg("\"%s\": status %d, read %d bytes", rows[i].text, (int)status_f64, (int)(end_f64 - text));
        }
        char *const longer = followed(rows[i].text, size);
        const char *end = longer;
        assert_int_equal(number_read_f64(&f64, &end, longer + size + strlen(FOLLOWING)), rows[i].status);
        assert_int_equal(end - longer, rows[i].read);
        free(longer);
        free(text);
    }
}

static void test_read_hard(void **state) {
    (void)state;
    static const char *const texts[] = {
        "0",
        "-0",
        "0.0",
        "-0.0",
        "0e99999",
        "-0e-99999",
        "0.000e99999999999999999999",
        "1",
        "-1",
        "0.5",
        "0.1",
        "123",
        "1E5",
        "1e+5",
        "1.5e-0005",
        "1e0000000000000000000005",
        "5.000000000000000000e-01",
        "1.000000000000000000e+00",
        "0.50000000000000000000",
        "0.25",
        "9007199254740992",
        "9007199254740993",
        "9007199254740993.0000000001",
        "9007199254740992.99999999999999999999999",
        "9007199254740995",
        "9223372036854775807",
        "18446744073709551615",
        "18446744073709551616",
        "9999999999999999999",
        "99999999999999999999",
        "1234567890123456789012345678901234567890",
        "1e22",
        "1e23",
        "8.5e22",
        "1e308",
        "1.7976931348623157e308",
        "1.7976931348623158e308",
        "1.7976931348623159e308",
        "1.797693134862315807e308",
        "1.797693134862315808e308",
        "1e309",
        "1e324",
        "1e325",
        "1e400",
        "-1e400",
        "1e99999999999999999999",
        "1e-99999999999999999999",
        "4.9e-324",
        "5e-324",
        "2.4703282292062327e-324",
        "2.4703282292062328e-324",
        "2.4703282292062327208e-324",
        "2e-324",
        "3e-324",
        "1e-323",
        "1e-324",
        "1e-342",
        "18446744073709551615e-343",
        "1e-400",
        "-1e-400",
        "2.2250738585072014e-308",
        "2.2250738585072011e-308",
        "2.2250738585072012e-308",
        "2.225073858507201136057409796709131975934819546351645648e-308",
        "2.2250738585072009e-308",
        "6.631236846766476e-316",
        "8.109e-320",
        "3.2378839133029012895883524125015321748e-319",
        "1.00000017881393432617187499",
        "1.00000017881393432617187500",
        "1.00000017881393432617187501",
        "1.000000059604644775390625",
        "1.000000059604644775390624",
        "1.000000059604644775390626",
        "16777217",
        "16777219",
        "16777216.999999999",
        "16777217.00000000001",
        "33554435",
        "3.4028234663852886e38",
        "3.4028235e38",
        "3.4028235677973366e38",
        "3.40282356779733661637539395458142568447e38",
        "3.4028235677973367e38",
        "3.4028236e38",
        "1.1754943508222875e-38",
        "1.1754942e-38",
        "1.17549428e-38",
        "1.4e-45",
        "7.006492321624085e-46",
        "7.0064923216240853546186479164495806564013097093825788587853e-46",
        "7.0064923216240854e-46",
        "7e-46",
        "8e-46",
        "2.1019476964872256e-45",
        "1e-45",
        "1e-46",
        "0.000000000000000000000000000000000000000000001",
        "7.2057594037927933e16",
        "7205759403792793199999e-5",
        "7205759403792793200001e-5",
        "9214843084008499",
        "30078505129381147446200",
        "1090544144181609348671888949248",
        "1090544144181609348835077142190",
        "0.3e-22",
        "5708990770823839207320493820740630171355185152e-1",
        "89255e-22",
        "104308485241983990666713401708072175773165034278685",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) check_read(texts[i]);
}

static void test_read_known(void **state) {
    (void)state;
    static const struct {
        const char *text;
        uint64_t f64;
        uint32_t f32;
    } rows[] = {
        {"-0", 0x8000000000000000, 0x80000000},
        {"-1e-400", 0x8000000000000000, 0x80000000},
        {"1", 0x3ff0000000000000, 0x3f800000},
        {"0.1", 0x3fb999999999999a, 0x3dcccccd},
        {"9007199254740993", 0x4340000000000000, 0x5a000000},
        {"1.00000017881393432617187499", 0x3ff0000030000000, 0x3f800001}, // through f64 it would round twice
        {"1.00000017881393432617187500", 0x3ff0000030000000, 0x3f800002},
        {"-1e400", 0xfff0000000000000, 0xff800000},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const char *const end = rows[i].text + strlen(rows[i].text);
        const char *at = rows[i].text;
        double f64;
        number_read_f64(&f64, &at, end);
        assert_int_equal(bits_of_f64(f64), rows[i].f64);
        at = rows[i].text;
        float f32;
        number_read_f32(&f32, &at, end);
        assert_int_equal(bits_of_f32(f32), rows[i].f32);
    }
}

// Changes the last digit, which is not 0, to one less.
static void lessen_last(char *text) {
    char *const last = text + strcspn(text, "e") - 1;
    assert_in_range(*last, '1', '9');
    --*last;
}

// Inserts digits behind the last one.
static void insert_digits(char *text, const char *digits) {
    char *const exponent = text + strcspn(text, "e");
    memmove(exponent + strlen(digits), exponent, strlen(exponent) + 1);
    memcpy(exponent, digits, strlen(digits));
}

// All digits of a magnitude, without trailing zeros but for the first digit.
static void print_exactly(char text[TEXT_SIZE], long double value) {
    snprintf(text, TEXT_SIZE, "%.1100Le", value);
    char *const exponent = text + strcspn(text, "e");
    char *last = exponent - 1;
    while (*last == '0') last--;
    memmove(last + 1, exponent, strlen(exponent) + 1);
}

static void expect_f64(const char *text, double expected) {
    double value = NAN;
    const char *at = text;
    number_read_f64(&value, &at, text + strlen(text));
    if (bits_of_f64(value) != bits_of_f64(expected)) fail_msg("\"%s\": %a, expected %a", text, value, expected);
    check_read(text);
}

static void expect_f32(const char *text, float expected) {
    float value = NAN;
    const char *at = text;
    number_read_f32(&value, &at, text + strlen(text));
    if (bits_of_f32(value) != bits_of_f32(expected))
        fail_msg("\"%s\": %a, expected %a", text, (double)value, (double)expected);
    check_read(text);
}

// Half-way between low and the next value up, and a hair beside it on both sides. long double holds the middle exactly.
static void check_halfway_f64(double low) {
    const double high = nextafter(low, INFINITY);
    const long double middle = high < INFINITY ? ((long double)low + (long double)high) / 2 : 0x1.fffffffffffff8p1023L;
    char text[TEXT_SIZE];
    print_exactly(text, middle);
    expect_f64(text, bits_of_f64(low) % 2 == 0 ? low : high);
    char beside[TEXT_SIZE + 32];
    strcpy(beside, text);
    insert_digits(beside, "000000000000000000000000000001");
    expect_f64(beside, high);
    strcpy(beside, text);
    lessen_last(beside);
    expect_f64(beside, low);
    insert_digits(beside, "99999999999");
    expect_f64(beside, low);
}

static void check_halfway_f32(float low) {
    const float high = nextafterf(low, INFINITY);
    const double middle = high < INFINITY ? ((double)low + (double)high) / 2 : 0x1.ffffffp127;
    char text[TEXT_SIZE];
    print_exactly(text, (long double)middle);
    expect_f32(text, bits_of_f32(low) % 2 == 0 ? low : high);
    char beside[TEXT_SIZE + 32];
    strcpy(beside, text);
    insert_digits(beside, "000000000000000000000000000001");
    expect_f32(beside, high);
    strcpy(beside, text);
    lessen_last(beside);
    insert_digits(beside, "99999999999");
    expect_f32(beside, low);
}

static void test_read_halfway(void **state) {
    (void)state;
    static const double f64[] = {0, 5e-324, 1e-323, 0x1.ffffffffffffep-1023, DBL_MIN, 0x1.fffffffffffffp-1022,
                                 1, DBL_MAX};
    for (size_t i = 0; i < sizeof f64 / sizeof f64[0]; i++) check_halfway_f64(f64[i]);
    static const float f32[] = {0, 1e-45f, 3e-45f, 0x1.fffffcp-127f, FLT_MIN, 0x1.fffffep-126f, 1, FLT_MAX};
    for (size_t i = 0; i < sizeof f32 / sizeof f32[0]; i++) check_halfway_f32(f32[i]);
    for (int i = 0; i < 1000; i++) {
        check_halfway_f64(f64_of(random_u64() % bits_of_f64(DBL_MAX)));
        check_halfway_f64(f64_of(random_u64() % bits_of_f64(DBL_MIN)));
        check_halfway_f32(f32_of((uint32_t)(random_u64() % bits_of_f32(FLT_MAX))));
        check_halfway_f32(f32_of((uint32_t)(random_u64() % bits_of_f32(FLT_MIN))));
    }
}

// Digits and zeros by the thousand, before and behind the point, and the sticky digit far behind what a copy holds.
static void test_read_long(void **state) {
    (void)state;
    const size_t zeros = 100000;
    char *const text = malloc(zeros + 100);
    assert_non_null(text);
    const char *const halfway = "9007199254740993";
    for (int sticky = 0; sticky < 2; sticky++) {
        char *at = text + sprintf(text, "%s.", halfway);
        memset(at, '0', zeros);
        sprintf(at + zeros, "%d", sticky);
        expect_f64(text, sticky ? 9007199254740994 : 9007199254740992);
        at = text + sprintf(text, "%s", halfway);
        memset(at, '0', zeros);
        sprintf(at + zeros, "%d.0e-%zu", sticky, zeros + 1);
        expect_f64(text, sticky ? 9007199254740994 : 9007199254740992);
    }
    memcpy(text, "0.", 2);
    memset(text + 2, '0', zeros);
    sprintf(text + 2 + zeros, "125e%zu", zeros);
    expect_f64(text, 0.125);
    sprintf(text + 2 + zeros, "125e%zu", zeros + 400);
    check_read(text);
    memset(text, '9', zeros);
    text[zeros] = '\0';
    check_read(text);
    sprintf(text + zeros, "e-%zu", zeros);
    expect_f64(text, 1);
    free(text);
}

// No prefix of a number may be read behind its end: each stands alone at the end of its memory.
static void test_read_prefixes(void **state) {
    (void)state;
    static const char *const texts[] = {
        "-0.00012345678901234567890123456789e-0123",
        "123456789012345678901234567890.5E+17",
        "-9007199254740993.000000001",
        "1.00000017881393432617187500",
        "0.1234567812345678",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        for (size_t size = 0; size <= strlen(texts[i]); size++) {
            char *const text = alone(texts[i], size);
            const char *end = text;
            double value;
            const enum number_status status = number_read_f64(&value, &end, text + size);
            const bool whole = size > 0 && text[size - 1] >= '0' && text[size - 1] <= '9';
            assert_int_equal(status, whole ? NUMBER_OK : NUMBER_MALFORMED);
            assert_ptr_equal(end, text + size);
            if (whole) {
                char prefix[64];
                snprintf(prefix, sizeof prefix, "%.*s", (int)size, texts[i]);
                check_read(prefix);
            }
            free(text);
        }
    }
}

static void test_read_random(void **state) {
    (void)state;
    char text[128];
    for (int i = 0; i < 200000; i++) {
        char *at = text;
        if (random_below(4) == 0) *at++ = '-';
        const int digits = 1 + random_below(i % 8 == 0 ? 40 : 20);
        const int point = random_below(digits + 1);
        if (point == 0) *at++ = '0';
        for (int k = 0; k < digits; k++) {
            if (k == point) *at++ = '.';
            *at++ = (char)('0' + (k == 0 && point > 0 ? 1 + random_below(9) : random_below(10)));
        }
        *at = '\0';
        const int range = i % 3 == 0 ? 30 : i % 3 == 1 ? 80 : 700;
        if (random_below(8) != 0) sprintf(at, "e%d", random_below(range) - range / 2);
        check_read(text);
    }
}

// A run gives what its numbers give one by one, wherever the text ends.
static void test_read_runs(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t room, count, size; // how many are read, and of how many bytes
    } runs[] = {
        {"1,2,3]", 9, 3, 5},
        {"1,2,3]", 2, 2, 3},
        {"1,2,3]", 0, 0, 0},
        {"-1.5 ,\n\t2e3,\r 0.25 ]", 9, 3, 18},
        {"1,,2", 9, 1, 1},
        {"1,2,\"NaN\"", 9, 2, 3},
        {"1,2,01", 9, 2, 3},
        {"1,-,2", 9, 1, 1},
        {"1,1e999,2", 9, 1, 1},
        {"1e999", 9, 0, 0},
        {"\"NaN\",1", 9, 0, 0},
        {"]", 9, 0, 0},
        {" 1", 9, 0, 0},
        {"1 2", 9, 1, 1},
        {"0.12345678,-1.2345678,12.345,0.0001234567,255,0,-0.0,123456789012345678,0.12345678901234567,7]", 99, 10, 93},
    };
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        const size_t size = strlen(runs[i].text);
        char *const text = alone(runs[i].text, size);
        const char *at32 = text, *at64 = text, *at = text;
        float f32[100];
        double f64[100];
        assert_int_equal(number_read_run_f32(f32, runs[i].room, &at32, text + size), runs[i].count);
        assert_int_equal(number_read_run_f64(f64, runs[i].room, &at64, text + size), runs[i].count);
        assert_int_equal(at32 - text, runs[i].size);
        assert_int_equal(at64 - text, runs[i].size);
        for (size_t k = 0; k < runs[i].count; k++) {
            double value;
            const char *same = at;
            float narrow;
            assert_int_equal(number_read_f64(&value, &at, text + size), NUMBER_OK);
            assert_int_equal(number_read_f32(&narrow, &same, text + size), NUMBER_OK);
            assert_true(bits_of_f64(f64[k]) == bits_of_f64(value) && bits_of_f32(f32[k]) == bits_of_f32(narrow));
            at += strspn(at, ", \n\t\r");
        }
        free(text);
    }
}

static void test_read_run_ends(void **state) {
    (void)state;
    static const char text[] = "0.12345678, -1.2345678,12.345 ,0.0001234567,255,-0.0,12345678.5,0.12345678901234567,7";
    for (size_t size = 0; size < sizeof text; size++) {
        char *const copy = alone(text, size);
        const char *at = copy;
        double values[9];
        const size_t count = number_read_run_f64(values, 9, &at, copy + size);
        size_t expected = 0;
        for (const char *one = copy; one < copy + size; expected++) {
            double value;
            if (number_read_f64(&value, &one, copy + size) != NUMBER_OK) break;
            assert_true(expected < count && bits_of_f64(values[expected]) == bits_of_f64(value));
            while (one < copy + size && strchr(", ", *one) != NULL) one++;
        }
        assert_int_equal(count, expected);
        free(copy);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read_runs),  cmocka_unit_test(test_read_run_ends), cmocka_unit_test(test_grammar),
        cmocka_unit_test(test_read_known), cmocka_unit_test(test_read_hard),     cmocka_unit_test(test_read_halfway),
        cmocka_unit_test(test_read_long),  cmocka_unit_test(test_read_prefixes), cmocka_unit_test(test_read_random),
    };
    return cmocka_run_group_tests_name("number", tests, NULL, NULL);
}
