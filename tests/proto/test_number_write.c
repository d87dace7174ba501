// SPDX-License-Identifier: Apache-2.0
//
// Writing of proto/number_write.c against libc; tests/numbers/ has all finite f32 values.
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

// The fewest digits with which printf's text reads back to the same bits.
static int fewest_digits(double value, bool is_f32, char text[64]) {
    for (int p = 1;; p++) {
        snprintf(text, 64, "%.*e", p - 1, value);
        if (is_f32 ? strtof(text, NULL) == (float)value : strtod(text, NULL) == value) return p;
    }
}

// Takes a text apart: the significant digits without zeros around them, and the exponent of the first one.
static int take_apart(char digits[32], int *exponent, const char *text) {
    int count = 0;
    int e = -1;
    bool point = false;
    bool begun = false;
    for (; *text != '\0' && *text != 'e'; text++) {
        if (*text == '.') {
            point = true;
        } else if (*text != '-') {
            begun = begun || *text != '0';
            if (begun) digits[count++] = *text;
            if (begun && !point) e++;
            if (!begun && point) e--;
        }
    }
    *exponent = e + (*text == 'e' ? atoi(text + 1) : 0);
    while (count > 0 && digits[count - 1] == '0') count--;
    digits[count] = '\0';
    return count;
}

// The layout that number.h promises for these digits.
static void lay_out(char out[520], const char *digits, int exponent, bool negative) {
    const int count = (int)strlen(digits);
    char scientific[64];
    char plain[512];
    snprintf(scientific, sizeof scientific, "%c%s%se%d", digits[0], count > 1 ? "." : "", digits + 1, exponent);
    if (exponent < 0) {
        snprintf(plain, sizeof plain, "0.%0*d%s", -exponent - 1, 0, digits);
        if (exponent == -1) snprintf(plain, sizeof plain, "0.%s", digits);
    } else if (exponent < count - 1) {
        snprintf(plain, sizeof plain, "%.*s.%s", exponent + 1, digits, digits + exponent + 1);
    } else {
        memset(plain, '0', (size_t)exponent + 1);
        memcpy(plain, digits, (size_t)count);
        plain[exponent + 1] = '\0';
    }
    sprintf(out, "%s%s", negative ? "-" : "", strlen(plain) <= strlen(scientific) ? plain : scientific);
}

static void check_digits(const char *text, double value, bool is_f32, bool closer_below) {
    char digits[32];
    int exponent;
    const int count = take_apart(digits, &exponent, text);
    char brute[64];
    const int fewest = fewest_digits(fabs(value), is_f32, brute);
    char brute_digits[32];
    int brute_exponent;
    take_apart(brute_digits, &brute_exponent, brute);
    // Where the gap below is half as wide, printf's closest may lie outside while one farther off, above, reads back.
    const bool same = strcmp(digits, brute_digits) == 0 && exponent == brute_exponent;
    if (!same && !(closer_below && count < fewest)) fail_msg("%a: \"%s\", by printf %s", value, text, brute);
    char expected[520];
    lay_out(expected, digits, exponent, value < 0);
    assert_string_equal(text, expected);
}

static void check_write_f64(double value) {
    char text[NUMBER_F64_MAX + NUMBER_SLACK + 1];
    memset(text, '#', sizeof text);
    char *const end = number_write_f64(text, value);
    assert_in_range(end - text, 1, NUMBER_F64_MAX);
    assert_int_equal(end[NUMBER_SLACK], '#');
    *end = '\0';
    if (bits_of_f64(strtod(text, NULL)) != bits_of_f64(value)) fail_msg("%a written as \"%s\"", value, text);
    check_read(text);
    if (value != 0) check_digits(text, value, false, bits_of_f64(value) << 12 == 0);
}

static void check_write_f32(float value) {
    char text[NUMBER_F32_MAX + NUMBER_SLACK + 1];
    memset(text, '#', sizeof text);
    char *const end = number_write_f32(text, value);
    assert_in_range(end - text, 1, NUMBER_F32_MAX);
    assert_int_equal(end[NUMBER_SLACK], '#');
    *end = '\0';
    if (bits_of_f32(strtof(text, NULL)) != bits_of_f32(value)) fail_msg("%a written as \"%s\"", (double)value, text);
    check_read(text);
    if (value != 0) check_digits(text, (double)value, true, bits_of_f32(value) << 9 == 0);
}

static void test_write_known(void **state) {
    (void)state;
    static const struct {
        double value;
        const char *f64;
        const char *f32;
    } rows[] = {
        {0, "0", "0"},
        {-0.0, "-0.0", "-0.0"},
        {1, "1", "1"},
        {-1, "-1", "-1"},
        {10, "10", "10"},
        {100, "100", "100"},
        {150, "150", "150"},
        {1000, "1e3", "1e3"},
        {1200, "1200", "1200"},
        {12000, "12000", "12000"},
        {120000, "1.2e5", "1.2e5"},
        {0.25, "0.25", "0.25"},
        {-0.5, "-0.5", "-0.5"},
        {0.0625, "0.0625", "0.0625"},
        {0x1p-10, "9.765625e-4", "9.765625e-4"},
        {16777216, "16777216", "16777216"},
        {1.5e10, "1.5e10", "1.5e10"},
        {2.5e-7, "2.5e-7", "2.5e-7"},
        {0.1, "0.1", "0.1"},
        {0.01, "0.01", "0.01"},
        {0.001, "1e-3", "1e-3"},
        {1e23, "1e23", "1e23"},
        {1.0 / 3, "0.3333333333333333", "0.33333334"},
        {5e-324, "5e-324", "0"},
        {DBL_MIN, "2.2250738585072014e-308", "0"},
        {0x1p-149, "1.401298464324817e-45", "1e-45"},
        {FLT_MAX, "3.4028234663852886e38", "3.4028235e38"},
        {9007199254740992, "9007199254740992", "9.007199e15"},
        {0x1p-44, "5.684341886080802e-14", "5.684342e-14"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char text[NUMBER_F64_MAX + NUMBER_SLACK];
        *number_write_f64(text, rows[i].value) = '\0';
        assert_string_equal(text, rows[i].f64);
        *number_write_f32(text, (float)rows[i].value) = '\0';
        assert_string_equal(text, rows[i].f32);
    }
}

static void test_write_edges(void **state) {
    (void)state;
    check_write_f64(-DBL_MAX);
    check_write_f32(-FLT_MAX);
    check_write_f32(-0x1.2ced3p-126f);
    for (int e = -1074; e <= 1023; e++) {
        const double power = ldexp(1, e);
        check_write_f64(nextafter(power, 0));
        check_write_f64(power);
        check_write_f64(-nextafter(power, INFINITY));
    }
    for (int e = -149; e <= 127; e++) {
        const float power = ldexpf(1, e);
        check_write_f32(nextafterf(power, 0));
        check_write_f32(power);
        check_write_f32(-nextafterf(power, INFINITY));
    }
    for (int e = -324; e <= 308; e++) {
        char text[16];
        snprintf(text, sizeof text, "1e%d", e);
        const double power = strtod(text, NULL);
        check_write_f64(nextafter(power, 0));
        check_write_f64(power);
        if (e <= 38) check_write_f32((float)power);
    }
    for (uint32_t bits = 0; bits < 2000; bits++) {
        check_write_f64(f64_of(bits));
        check_write_f32(f32_of(bits));
        check_write_f64(bits);
        check_write_f32((float)bits / 1000);
    }
}

static void test_write_random(void **state) {
    (void)state;
    for (int i = 0; i < 100000; i++) {
        const double f64 = f64_of(random_u64());
        if (isfinite(f64)) check_write_f64(f64);
        const float f32 = f32_of((uint32_t)random_u64());
        if (isfinite(f32)) check_write_f32(f32);
        check_write_f64((double)random_below(1000000) / 1000);
        check_write_f64(ldexp((double)(random_u64() >> 11), random_below(120) - 100));
    }
}

// A run is its values one by one, with commas; nothing is touched behind its room.
static void test_write_runs(void **state) {
    (void)state;
    enum { MOST = 40, ROOM = MOST * (NUMBER_F64_MAX + 1) + NUMBER_SLACK };
    for (size_t round = 0; round < 20000; round++) {
        const size_t n = round % (MOST + 1);
        float f32[MOST];
        double f64[MOST];
        char expected[ROOM + 1], text[ROOM + 1];
        for (size_t i = 0; i < n; i++) {
            do f32[i] = f32_of((uint32_t)random_u64());
            while (!isfinite(f32[i]));
            do f64[i] = f64_of(random_u64());
            while (!isfinite(f64[i]));
            if (random_below(8) == 0) f32[i] = (float)(f64[i] = random_below(3) - 1.0 + -0.0);
        }
        char *end = expected;
        for (size_t i = 0; i < n; i++) {
            if (i > 0) *end++ = ',';
            end = number_write_f32(end, f32[i]);
        }
        const size_t room32 = n * (NUMBER_F32_MAX + 1) + NUMBER_SLACK;
        memset(text, '#', sizeof text);
        assert_int_equal(number_write_run_f32(text, f32, n) - text, end - expected);
        assert_memory_equal(text, expected, (size_t)(end - expected));
        assert_int_equal(text[room32], '#');
        end = expected;
        for (size_t i = 0; i < n; i++) {
            if (i > 0) *end++ = ',';
            end = number_write_f64(end, f64[i]);
        }
        const size_t room64 = n * (NUMBER_F64_MAX + 1) + NUMBER_SLACK;
        memset(text, '#', sizeof text);
        assert_int_equal(number_write_run_f64(text, f64, n) - text, end - expected);
        assert_memory_equal(text, expected, (size_t)(end - expected));
        assert_int_equal(text[room64], '#');
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_write_runs),
        cmocka_unit_test(test_write_known),
        cmocka_unit_test(test_write_edges),
        cmocka_unit_test(test_write_random),
    };
    return cmocka_run_group_tests_name("number_write", tests, NULL, NULL);
}
