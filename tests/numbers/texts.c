// SPDX-License-Identifier: Apache-2.0
#include "texts.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "check.h"

static int put_digits(char *out, uint64_t x) {
    char room[20];
    int count = 0;
    do room[count++] = (char)('0' + x % 10);
    while ((x /= 10) > 0);
    for (int i = 0; i < count; i++) out[i] = room[count - 1 - i];
    return count;
}

static char *put_exponent(char *out, int exponent) {
    *out++ = 'e';
    if (exponent < 0) *out++ = '-';
    out += put_digits(out, (uint64_t)(exponent < 0 ? -exponent : exponent));
    *out = '\0';
    return out;
}

// digits * 10^exponent with a point behind the first `whole` digits, or with so many zeros in front or behind.
static void put_decimal(char *text, struct decimal d, uint64_t form, uint64_t amount) {
    char digits[20];
    const int count = put_digits(digits, d.digits);
    const int zeros = (int)(amount % 30);
    char *out = text;
    if (form % 4 == 1 && count > 1) {
        const int whole = 1 + (int)(amount % (uint64_t)(count - 1));
        memcpy(out, digits, (size_t)whole);
        out[whole] = '.';
        memcpy(out + whole + 1, digits + whole, (size_t)(count - whole));
        put_exponent(out + count + 1, d.exponent + count - whole);
        return;
    }
    if (form % 4 == 2) {
        memset(out, '0', (size_t)zeros + 2);
        out[1] = '.';
        memcpy(out + zeros + 2, digits, (size_t)count);
        put_exponent(out + zeros + 2 + count, d.exponent + zeros + count);
        return;
    }
    memcpy(out, digits, (size_t)count);
    const int behind = form % 4 == 3 ? zeros : 0;
    memset(out + count, '0', (size_t)behind);
    put_exponent(out + count + behind, d.exponent - behind);
}

struct decimal random_decimal(char text[static TEXT_SIZE], const struct work *work, uint64_t index) {
    // Where exact doubles suffice, where f32 ends, where f64 ends.
    static const struct { int first, count; } ranges[] = {{-45, 70}, {-70, 115}, {-365, 680}};
    const uint64_t how = random_of(work, index, 0);
    struct decimal d = {.digits = (random_of(work, index, 1) >> how % 64) | 1};
    const uint64_t range = how / 64 % 4 % 3;
    d.exponent = ranges[range].first + (int)(how / 256 % (uint64_t)ranges[range].count);
    put_decimal(text, d, how >> 32, how >> 40);
    return d;
}

// All digits of a magnitude, without trailing zeros but for the first digit.
static void print_exactly(char text[static TEXT_SIZE], long double value) {
    snprintf(text, TEXT_SIZE, "%.1100Le", value);
    char *const exponent = text + strcspn(text, "e");
    char *last = exponent - 1;
    while (*last == '0') last--;
    memmove(last + 1, exponent, strlen(exponent) + 1);
}

static char *exponent_of(char *text) {
    return text + strcspn(text, "e");
}

// Inserts digits behind the last one.
static void insert_digits(char *text, const char *digits) {
    char *const exponent = exponent_of(text);
    memmove(exponent + strlen(digits), exponent, strlen(exponent) + 1);
    memcpy(exponent, digits, strlen(digits));
}

// The texts of a middle and of what lies a hair above and below it. Its last digit is not 0.
struct around {
    char middle[TEXT_SIZE], above[TEXT_SIZE], below[TEXT_SIZE];
};

static void print_around(struct around *around, long double middle) {
    print_exactly(around->middle, middle);
    strcpy(around->above, around->middle);
    insert_digits(around->above, "000000000000000000000000000001");
    strcpy(around->below, around->middle);
    --exponent_of(around->below)[-1];
    insert_digits(around->below, "99999999999");
}

// long double holds the middles exactly; that behind the largest value is where infinity begins.
bool check_halfway_f64(uint64_t bits) {
    _Static_assert(LDBL_MANT_DIG > DBL_MANT_DIG && LDBL_MIN_EXP < DBL_MIN_EXP, "no type for the middle of two doubles");
    const double low = f64_of(bits);
    const double high = f64_of(bits + 1);
    struct around around;
    print_around(&around, isinf(high) ? 0x1.fffffffffffff8p1023L : ((long double)low + (long double)high) / 2);
    const bool middle = check_read_f64(around.middle, bits + bits % 2);
    const bool above = check_read_f64(around.above, bits + 1);
    const bool below = check_read_f64(around.below, bits);
    return middle && above && below;
}

bool check_halfway_f32(uint32_t bits) {
    const float low = f32_of(bits);
    const float high = f32_of(bits + 1);
    struct around around;
    print_around(&around, (long double)(isinf(high) ? 0x1.ffffffp127 : ((double)low + (double)high) / 2));
    const bool middle = check_read_f32(around.middle, bits + bits % 2);
    const bool above = check_read_f32(around.above, bits + 1);
    const bool below = check_read_f32(around.below, bits);
    return middle && above && below;
}
