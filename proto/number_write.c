// SPDX-License-Identifier: Apache-2.0
#include <endian.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "number.h"
#include "number_format.h"
#include "powers.h"

struct shortest {
    uint64_t digits; // the magnitude is digits * 10^exponent; zeros may trail
    int exponent;
    bool negative; // the value
};

// condition ? a : b, without a branch.
static uint64_t either(bool condition, uint64_t a, uint64_t b) {
    return b ^ ((a ^ b) & (0 - (uint64_t)condition));
}

// floor(g * x / 2^128), with its last bit set where that is not exact but for the error of g.
static uint64_t scale_f64(struct power g, uint64_t x) {
    const uint128 product = (uint128)g.hi * x + high_half((uint128)g.lo * x);
    return high_half(product) | ((uint64_t)product > 1);
}

// The same with 64 bits of g, which is enough for x below 2^32: the error of g is then below 2^-32 of a unit, and no
// multiple of a unit of floats is so near to another.
static uint64_t scale_f32(struct power g, uint64_t x) {
    const uint128 product = (uint128)g.hi * x;
    return high_half(product) | ((uint64_t)product >> 32 != 0);
}

// The shortest decimal of those that round to significand * 2^exponent, and the closest of these. With `narrow` the
// significand is that of a float.
// Source: Giulietti, "The Schubfach way to render doubles" (2020), section 9.
ALWAYS_INLINE struct shortest find_shortest(uint64_t significand, int exponent, bool closer_below, bool narrow) {
    uint64_t (*const scale)(struct power g, uint64_t x) = narrow ? scale_f32 : scale_f64;
    // 10^k <= the width of the interval < 10^(k+1): it holds a multiple of 10^k, and at most one of 10^(k+1).
    const int k = (exponent * 1262611 - (closer_below ? 524031 : 0)) >> 22;
    const int shift = exponent + floor_log2_pow10(-k) + 1;
    struct power g = number_powers[-k - POWER_FIRST];
    const bool exact = -k >= POWER_EXACT_FIRST && -k <= POWER_EXACT_LAST;
    if (narrow)
        g.hi += !exact || g.lo != 0;
    else
        g.lo += !exact;
    // Four times the value and the interval's bounds, in units of 10^k. Bounds belong to it where they round to even.
    const uint64_t odd = significand & 1;
    const uint64_t v = scale(g, (4 * significand) << shift);
    const uint64_t lower = scale(g, (4 * significand - 2 + closer_below) << shift) + odd;
    const uint64_t upper = scale(g, (4 * significand + 2) << shift) - odd;

    // Which of them it is cannot be predicted, so nothing branches on it.
    const uint64_t s = v / 4, tens = s / 10;
    const bool below_10 = lower <= 40 * tens, above_10 = 40 * tens + 40 <= upper;
    const bool below = lower <= 4 * s, above = 4 * s + 4 <= upper;
    const uint64_t middle = 4 * s + 2;
    const bool up = (v > middle) | ((v == middle) & s);
    const uint64_t ones = s + either(below != above, above, up);
    const bool short_one = (s >= 10) & (below_10 != above_10);
    return (struct shortest){either(short_one, 10 * (tens + above_10), ones), k, false};
}

// Digits as text, "d" and "ddd...": 17 of them, the last ones zeros. Registers, for memory that is written in small
// pieces and read in large ones is slow.
struct text {
    char first;
    uint128 rest; // 16 characters, the next one lowest
    int count;    // up to the last digit that is not zero; at least 1
    int exponent; // the value is d.ddd * 10^exponent
};

#define EIGHT_ZEROS UINT64_C(0x3030303030303030)

// The digits of x < 10^8, each a byte of its value, the first one lowest: halves, quarters and single ones side by
// side.
ALWAYS_INLINE uint64_t split_eight(uint32_t x) {
    uint64_t v = x / 10000 | (uint64_t)(x % 10000) << 32;
    const uint64_t hundreds = v * 10486 >> 20 & 0x7f0000007f;
    v = hundreds | (v - hundreds * 100) << 16;
    const uint64_t tens = v * 103 >> 10 & 0x000f000f000f000f;
    return tens | (v - tens * 10) << 8;
}

// How many digits x has, 0 < x < 10^17. Those of normal values, which are most, lie within 2^23 and 10 * 2^24 where
// narrow, else within 2^52 and 10 * 2^53.
ALWAYS_INLINE int decimal_length(uint64_t x, bool narrow) {
    if (narrow && x >= 1000000) return 7 + (x >= 10000000) + (x >= 100000000);
    if (!narrow && x >= 1000000000000000) return 16 + (x >= 10000000000000000);
    const int least = (64 - __builtin_clzll(x)) * 1233 >> 12;
    return least + (x >= powers_of_10[least]);
}

// Up to the last that is not 0. The first one is lowest.
ALWAYS_INLINE int count_bytes(uint64_t x) {
    return x == 0 ? 0 : 8 - __builtin_ctzll(__builtin_bswap64(x)) / 8;
}

ALWAYS_INLINE struct text text_of(struct shortest decimal, bool narrow) {
    const int count = decimal_length(decimal.digits, narrow), most = narrow ? 9 : 17;
    struct text text = {.exponent = decimal.exponent + count - 1};
    uint64_t digits = decimal.digits * powers_of_10[most - count], low = 0;
    if (!narrow) {
        low = split_eight((uint32_t)(digits % 100000000));
        digits /= 100000000;
    }
    const uint64_t high = split_eight((uint32_t)(digits % 100000000));
    text.first = (char)('0' + digits / 100000000);
    text.rest = (high | EIGHT_ZEROS) | (uint128)(low | EIGHT_ZEROS) << 64;
    text.count = 1 + (low != 0 ? 8 + count_bytes(low) : count_bytes(high));
    return text;
}

// Sixteen characters, of which those after the eighth are zeros where narrow.
ALWAYS_INLINE void put_sixteen(char *out, uint128 characters, bool narrow) {
    const uint64_t halves[2] = {htole64((uint64_t)characters), narrow ? EIGHT_ZEROS : htole64(high_half(characters))};
    memcpy(out, halves, sizeof halves);
}

// d.ddd * 10^e without exponent, -5 < e < 24. On which side of the point the digits begin is hard to predict too: every
// layout is the digits behind zeros, then what follows the point again, one byte on, then the point. A whole number
// ends before that.
ALWAYS_INLINE char *write_plain(char *out, struct text text, bool narrow) {
    const int e = text.exponent;
    const unsigned small = (unsigned)(e >> 31), zeros = (unsigned)(1 - e) & small, whole = (unsigned)e & ~small;
    const unsigned count = (unsigned)text.count;
    memcpy(out, "0.000000", 8);
    out[zeros] = text.first;
    put_sixteen(out + zeros + 1, text.rest, narrow);
    memcpy(out + 17, "00000000", 8);
    if (whole >= count - 1 && small == 0) return out + whole + 1;
    // Fewer of those before the point than count - 1: with nine digits that is less than eight.
    const uint128 behind = narrow ? (uint64_t)text.rest >> 8 * whole : text.rest >> 8 * whole;
    put_sixteen(out + zeros + whole + 1 + (1 & ~small), behind, narrow);
    out[whole + 1] = '.';
    return out + zeros + count + (1 & ~small);
}

static char *write_scientific(char *out, struct text text) {
    out[0] = text.first;
    out[1] = '.';
    put_sixteen(out + 2, text.rest, false);
    out += text.count > 1 ? text.count + 1 : 1;
    *out++ = 'e';
    if (text.exponent < 0) *out++ = '-';
    const unsigned e = (unsigned)abs(text.exponent);
    if (e >= 100) *out++ = (char)('0' + e / 100);
    if (e >= 10) *out++ = (char)('0' + e / 10 % 10);
    *out++ = (char)('0' + e % 10);
    return out;
}

ALWAYS_INLINE char *write_decimal(char *out, struct shortest decimal, bool narrow) {
    *out = '-';
    out += decimal.negative;
    if (decimal.digits == 0) {
        memcpy(out, "0.0", 3);
        return out + (decimal.negative ? 3 : 1);
    }
    const struct text text = text_of(decimal, narrow);
    const int e = text.exponent, count = text.count;
    if (-3 < e && e < count - 1) return write_plain(out, text, narrow); // as what follows would find
    const int size_of_e = abs(e) < 10 ? 1 : abs(e) < 100 ? 2 : 3;
    const int scientific = count + (count > 1) + 1 + (e < 0) + size_of_e;
    const int plain = e < 0 ? count + 1 - e : e < count - 1 ? count + 1 : e + 1;
    return plain <= scientific ? write_plain(out, text, narrow) : write_scientific(out, text);
}

// `bits` are those of a finite magnitude.
ALWAYS_INLINE struct shortest shortest_of(uint64_t bits, struct format format) {
    const bool narrow = format.precision == FORMAT_F32.precision;
    const uint64_t hidden = (uint64_t)1 << (format.precision - 1);
    const int field = (int)(bits / hidden);
    const uint64_t fraction = bits % hidden;
    const int lowest = format.min_exponent - (format.precision - 1);
    if (bits == 0) return (struct shortest){0, 0, false};
    if (field == 0) return find_shortest(fraction, lowest, false, narrow);
    const bool closer_below = fraction == 0 && field > 1;
    return find_shortest(fraction + hidden, lowest + field - 1, closer_below, narrow);
}

ALWAYS_INLINE struct shortest shortest_of_f32(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    struct shortest decimal = shortest_of(bits & 0x7fffffff, FORMAT_F32);
    decimal.negative = bits >> 31 != 0;
    return decimal;
}

ALWAYS_INLINE struct shortest shortest_of_f64(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    struct shortest decimal = shortest_of(bits & INT64_MAX, FORMAT_F64);
    decimal.negative = bits >> 63 != 0;
    return decimal;
}

char *number_write_f32(char *out, float value) {
    return write_decimal(out, shortest_of_f32(value), true);
}

char *number_write_f64(char *out, double value) {
    return write_decimal(out, shortest_of_f64(value), false);
}

// ---- runs

// A value's way to its text is long, each step needs the one before, and it fills most of what a processor looks ahead.
// In two halves, for some values at a time, several of them are on their way at once.
#define AT_ONCE 16

ALWAYS_INLINE char *write_run(char *out, const struct shortest *decimals, size_t n, bool first, bool narrow) {
    for (size_t i = 0; i < n; i++) {
        *out = ',';
        out = write_decimal(out + !(first && i == 0), decimals[i], narrow);
    }
    return out;
}

char *number_write_run_f32(char *out, const float *values, size_t n) {
    struct shortest decimals[AT_ONCE];
    for (size_t i = 0; i < n; i += AT_ONCE) {
        const size_t count = n - i < AT_ONCE ? n - i : AT_ONCE;
        for (size_t k = 0; k < count; k++) decimals[k] = shortest_of_f32(values[i + k]);
        out = write_run(out, decimals, count, i == 0, true);
    }
    return out;
}

char *number_write_run_f64(char *out, const double *values, size_t n) {
    struct shortest decimals[AT_ONCE];
    for (size_t i = 0; i < n; i += AT_ONCE) {
        const size_t count = n - i < AT_ONCE ? n - i : AT_ONCE;
        for (size_t k = 0; k < count; k++) decimals[k] = shortest_of_f64(values[i + k]);
        out = write_run(out, decimals, count, i == 0, false);
    }
    return out;
}
