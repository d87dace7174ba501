// SPDX-License-Identifier: Apache-2.0
#include <endian.h>
#include <float.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "number.h"
#include "number_format.h"
#include "powers.h"

// As many decimal digits always fit an uint64_t.
#define W_DIGITS 19

// A value half-way between two doubles has at most 767 significant digits: what follows 800 matters only by being zero
// or not.
#define COPIED_DIGITS 800

// Exponents saturate behind this, far from what the longest text could make up for with zeros.
#define EXPONENT_LIMIT ((int64_t)1 << 56)

struct decimal {
    uint64_t w;       // the first W_DIGITS significant digits
    int64_t exponent; // the magnitude is w * 10^exponent, where cut: in between w and w + 1
    bool cut;         // digits other than zero follow those in w
    bool negative;
    const char *digits;     // the text from the first digit
    const char *digits_end; // to the last one, with the point
};

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

// The number of eight digits, each a byte of its value, the first one lowest.
// Source: Lemire, "Number Parsing at a Gigabyte per Second" (2021), section 4.
ALWAYS_INLINE uint64_t eight_digits(uint64_t digits) {
    const uint64_t mask = 0x000000ff000000ff;
    digits = digits * 10 + (digits >> 8);
    return (((digits & mask) * 0x000f424000000064 + ((digits >> 16) & mask) * 0x0000271000000001) >> 32) & 0xffffffff;
}

// Eight characters, those of digits as their values.
ALWAYS_INLINE uint64_t load_eight(const char *p) {
    uint64_t text;
    memcpy(&text, p, sizeof text);
    return le64toh(text) ^ 0x3030303030303030;
}

// How many of eight characters come before the first that is no digit.
ALWAYS_INLINE int count_digits(uint64_t text) {
    // The top bit of each byte that is no digit; what a carry adds is above the first of them.
    const uint64_t others = (text | (text + 0x7676767676767676)) & 0x8080808080808080;
    return others != 0 ? __builtin_ctzll(others) / 8 : 8;
}

// Appends the digits at p to *w, modulo 2^64, and returns the end of them. Fewer than eight digits are shifted behind
// zeros and read as eight: how many there are is hard to predict, so nothing branches on it.
static const char *read_digits(uint64_t *w, const char *p, const char *end) {
    while (end - p >= 8) {
        const uint64_t text = load_eight(p);
        const int count = count_digits(text);
        if (count < 8) {
            const uint64_t digits = count > 0 ? text << (64 - 8 * count) : 0;
            *w = *w * powers_of_10[count] + eight_digits(digits);
            return p + count;
        }
        *w = *w * 100000000 + eight_digits(text);
        p += 8;
    }
    for (; p < end && is_digit(*p); p++) *w = *w * 10 + (uint64_t)(*p - '0');
    return p;
}

// Reads what follows the 'e'. False where it is no exponent; *text is then at the byte that does not fit.
static bool read_exponent(int64_t *exponent, const char **text, const char *end) {
    const char *p = *text;
    const bool negative = p < end && *p == '-';
    if (p < end && (*p == '-' || *p == '+')) p++;
    const char *const digits = p;
    int64_t e = 0;
    for (; p < end && is_digit(*p); p++) {
        if (e < EXPONENT_LIMIT) e = e * 10 + (*p - '0');
    }
    *exponent = negative ? -e : e;
    *text = p;
    return p > digits;
}

// Reads the digits again, as w has overflowed or might have.
static void cut_digits(struct decimal *d) {
    d->w = 0;
    int count = 0;
    for (const char *p = d->digits; p < d->digits_end; p++) {
        if (*p == '.') continue;
        if (count < W_DIGITS) {
            d->w = d->w * 10 + (uint64_t)(*p - '0');
            count += d->w != 0;
            continue;
        }
        d->exponent++;
        d->cut = d->cut || *p != '0';
    }
}

// Bytes that read_plain looks at: the window, and sixteen from any digit on that is found in it.
#define PLAIN_ROOM 48

// Which of 32 characters are digits: bit i for p[i].
ALWAYS_INLINE uint32_t find_digits(const char *p) {
#ifdef __SSE2__
    const __m128i zero = _mm_set1_epi8('0'), nine = _mm_set1_epi8(9);
    const __m128i a = _mm_sub_epi8(_mm_loadu_si128((const __m128i *)(const void *)p), zero);
    const __m128i b = _mm_sub_epi8(_mm_loadu_si128((const __m128i *)(const void *)(p + 16)), zero);
    return (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_min_epu8(a, nine), a)) |
           (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_min_epu8(b, nine), b)) << 16;
#else
    uint32_t found = 0;
    for (int i = 0; i < 32; i += 8) {
        const uint64_t text = load_eight(p + i), top = 0x8080808080808080;
        const uint64_t others = (text | ((text & ~top) + 0x7676767676767676)) & top;
        found |= (uint32_t)((((others ^ top) >> 7) * 0x0102040810204080) >> 56) << i;
    }
    return found;
#endif
}

ALWAYS_INLINE int trailing_ones(uint32_t bits) {
    return __builtin_ctzll(~(uint64_t)bits);
}

// The number of the first n of sixteen digits, 0 < n <= 16.
ALWAYS_INLINE uint64_t sixteen_digits(const char *p, int n) {
    const uint128 digits = ((uint128)load_eight(p + 8) << 64 | load_eight(p)) << (128 - 8 * n);
    return eight_digits((uint64_t)digits) * 100000000 + eight_digits(high_half(digits));
}

// Most numbers have up to seven digits before the point and up to 19 in all, no exponent, and stand far from the end of
// the text: of such a one all is found at once, however many digits it has. False for others, with *text as it was.
ALWAYS_INLINE bool read_plain(struct decimal *d, const char **text, const char *end) {
    if (end - *text < PLAIN_ROOM) return false;
    const bool negative = **text == '-';
    const uint32_t found = find_digits(*text) >> negative;
    const char *const begin = *text + negative, *p = begin;
    uint64_t w = (uint64_t)(*p - '0');
    int whole = 1, behind = 0;
    if ((found & 3) != 1) { // not one digit
        whole = trailing_ones(found);
        if (whole == 0 || whole > 7 || *p == '0') return false;
        w = eight_digits(load_eight(p) << (64 - 8 * whole));
    }
    p += whole;
    if (*p == '.') {
        p++;
        behind = trailing_ones(found >> (whole + 1));
        if (behind == 0 || whole + behind > W_DIGITS) return false;
        if (behind <= 16) {
            w = w * powers_of_10[behind] + sixteen_digits(p, behind);
        } else {
            w = w * powers_of_10[16] + sixteen_digits(p, 16);
            w = w * powers_of_10[behind - 16] + (eight_digits(load_eight(p + 16) << (64 - 8 * (behind - 16))));
        }
        p += behind;
    }
    if (*p == 'e' || *p == 'E') return false;
    *d = (struct decimal){.w = w, .exponent = -behind, .negative = negative, .digits = begin, .digits_end = p};
    *text = p;
    return true;
}

// False where the text is malformed. Moves *text as number_read_* do.
static bool read_any(struct decimal *d, const char **text, const char *end) {
    const char *p = *text;
    *d = (struct decimal){.negative = p < end && *p == '-'};
    if (d->negative) p++;
    d->digits = p;
    p = read_digits(&d->w, p, end);
    ptrdiff_t count = p - d->digits;
    const bool leading_zero = count > 1 && *d->digits == '0';
    *text = leading_zero ? d->digits + 1 : p;
    if (count == 0 || leading_zero) return false;
    if (p < end && *p == '.') {
        p++;
        *text = read_digits(&d->w, p, end);
        d->exponent = p - *text;
        if (*text == p) return false;
        count += *text - p;
        p = *text;
    }
    d->digits_end = p;
    if (p < end && (*p == 'e' || *p == 'E')) {
        ++*text;
        int64_t exponent;
        if (!read_exponent(&exponent, text, end)) return false;
        d->exponent += exponent;
    }
    if (count > W_DIGITS) cut_digits(d);
    return true;
}

// The bits nearest to (hi + f) * 2^exponent, ties to even. hi has its top bit set; 0 <= f < 1, f > 0 where sticky.
static uint64_t round_bits(struct format format, uint64_t hi, bool sticky, int exponent) {
    const int above = exponent + 63 - format.min_exponent; // negative: subnormal
    const int drop = 64 - format.precision - (above < 0 ? above : 0);
    if (drop > 64) return 0; // below half of the smallest
    const uint64_t kept = drop == 64 ? 0 : hi >> drop;
    const uint64_t half = (uint64_t)1 << (drop - 1);
    const bool beyond_half = (hi & (half - 1)) != 0 || sticky;
    const bool up = (hi & half) != 0 && (beyond_half || (kept & 1) != 0);
    // kept has the hidden bit, so the exponent's field starts one lower; a carry runs into it, and up to infinity.
    const uint64_t base = above > 0 ? (uint64_t)above << (format.precision - 1) : 0;
    const uint64_t bits = base + kept + up;
    return bits < format.infinity ? bits : format.infinity;
}

// As decimal_bits where the product may be a hair below a dyadic fraction, as for 5 * 10^-1: the table cuts 10^q off.
// False where it is not one.
static bool dyadic_bits(uint64_t *bits, struct format format, uint64_t w, int q) {
    for (int i = q; i < 0; i++) {
        if (w % 5 != 0) return false;
        w /= 5;
    }
    const int zeros = __builtin_clzll(w);
    *bits = round_bits(format, w << zeros, false, q - zeros);
    return true;
}

// The bits nearest to w * 10^exponent. False where the table's 128 bits of the power do not decide.
// Source: Lemire, "Number Parsing at a Gigabyte per Second" (2021), section 5, with the whole product of 192 bits.
static bool decimal_bits(uint64_t *bits, struct format format, uint64_t w, int64_t exponent) {
    *bits = 0;
    if (w == 0 || exponent < POWER_FIRST) return true;
    *bits = format.infinity;
    if (exponent > POWER_LAST) return true;
    const int q = (int)exponent;
    const bool exact = q >= POWER_EXACT_FIRST && q <= POWER_EXACT_LAST;
    const struct power power = number_powers[q - POWER_FIRST];
    const int zeros = __builtin_clzll(w);
    const uint128 low = (uint128)(w << zeros) * power.lo;
    const uint128 high = (uint128)(w << zeros) * power.hi + high_half(low);
    uint64_t hi = high_half(high);
    uint64_t mid = (uint64_t)high;
    // What the table cuts off adds less than 2^64 to the product: it reaches hi only through a mid of all ones.
    if (!exact && mid == UINT64_MAX) return dyadic_bits(bits, format, w, q);
    const bool narrow = hi >> 63 == 0;
    if (narrow) {
        hi = hi << 1 | mid >> 63;
        mid <<= 1;
    }
    const bool sticky = !exact || mid != 0 || (uint64_t)low != 0;
    *bits = round_bits(format, hi, sticky, floor_log2_pow10(q) + 1 - zeros - narrow);
    return true;
}

// Rounding is monotonic: where digits are cut off, both neighbours rounding to the same value decide.
static bool fast_bits(uint64_t *bits, const struct decimal *d, struct format format) {
    if (!decimal_bits(bits, format, d->w, d->exponent)) return false;
    if (!d->cut) return true;
    uint64_t above;
    return decimal_bits(&above, format, d->w + 1, d->exponent) && above == *bits;
}

#define COPY_SIZE (COPIED_DIGITS + 32)

// Writes the magnitude as digits and exponent, for strtod: without a point, which would depend on the locale.
static void copy_decimal(char copy[static COPY_SIZE], const struct decimal *d) {
    size_t count = 0;
    bool cut = false;
    for (const char *p = d->digits; p < d->digits_end; p++) {
        if (*p == '.' || (*p == '0' && count == 0)) continue;
        if (count < COPIED_DIGITS) {
            copy[count++] = *p;
        } else {
            cut = cut || *p != '0';
        }
    }
    if (cut) copy[count++] = '1';
    // d->exponent is that of the last digit in w.
    const int behind_w = count > W_DIGITS ? (int)count - W_DIGITS : 0;
    // fast_bits has dealt with exponents that do not fit an int.
    snprintf(copy + count, COPY_SIZE - count, "e%d", (int)d->exponent - behind_w);
}

// w * 10^exponent rounded once, where both are exact as doubles. Source: Clinger, "How to Read Floating Point Numbers
// Accurately" (1990), section 5.
ALWAYS_INLINE bool exact_operation(double *value, const struct decimal *d) {
    static const double exact_powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                          1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    if (d->cut || d->w > (uint64_t)1 << 53 || d->exponent < -22 || d->exponent > 22) return false;
    *value = (double)d->w;
    if (d->exponent < 0)
        *value /= exact_powers[-d->exponent];
    else
        *value *= exact_powers[d->exponent];
    return true;
}

// That double rounded to float is the decimal rounded to float, unless it lies half-way between two floats: then the
// decimal may lie on either side. Below FLT_MIN the half-way bits are others.
ALWAYS_INLINE bool exact_float(float *value, const struct decimal *d) {
    double wide;
    uint64_t bits;
    if (!exact_operation(&wide, d)) return false;
    memcpy(&bits, &wide, sizeof bits);
    *value = (float)wide;
    return (bits & 0x1fffffff) != 0x10000000 && (wide >= (double)FLT_MIN || wide == 0);
}

static enum number_status round_f32(float *value, struct decimal d) {
    uint64_t bits;
    float magnitude;
    if (fast_bits(&bits, &d, FORMAT_F32)) {
        const uint32_t low = (uint32_t)bits;
        memcpy(&magnitude, &low, sizeof magnitude);
    } else {
        char copy[COPY_SIZE];
        copy_decimal(copy, &d);
        magnitude = strtof(copy, NULL);
    }
    *value = d.negative ? -magnitude : magnitude;
    return magnitude <= FLT_MAX ? NUMBER_OK : NUMBER_OVERFLOW;
}

static enum number_status round_f64(double *value, struct decimal d) {
    uint64_t bits;
    double magnitude;
    if (fast_bits(&bits, &d, FORMAT_F64)) {
        memcpy(&magnitude, &bits, sizeof magnitude);
    } else {
        char copy[COPY_SIZE];
        copy_decimal(copy, &d);
        magnitude = strtod(copy, NULL);
    }
    *value = d.negative ? -magnitude : magnitude;
    return magnitude <= DBL_MAX ? NUMBER_OK : NUMBER_OVERFLOW;
}

// d is given on by value, so that what is common stays in registers.
ALWAYS_INLINE enum number_status read_f32(float *value, const char **text, const char *end) {
    struct decimal d;
    if (!read_plain(&d, text, end)) {
        struct decimal any;
        if (!read_any(&any, text, end)) return NUMBER_MALFORMED;
        d = any;
    }
    float magnitude;
    if (!exact_float(&magnitude, &d)) return round_f32(value, d);
    *value = d.negative ? -magnitude : magnitude;
    return NUMBER_OK;
}

ALWAYS_INLINE enum number_status read_f64(double *value, const char **text, const char *end) {
    struct decimal d;
    if (!read_plain(&d, text, end)) {
        struct decimal any;
        if (!read_any(&any, text, end)) return NUMBER_MALFORMED;
        d = any;
    }
    double magnitude;
    if (!exact_operation(&magnitude, &d)) return round_f64(value, d);
    *value = d.negative ? -magnitude : magnitude;
    return NUMBER_OK;
}

enum number_status number_read_f32(float *value, const char **text, const char *end) {
    return read_f32(value, text, end);
}

enum number_status number_read_f64(double *value, const char **text, const char *end) {
    return read_f64(value, text, end);
}

// ---- runs

static bool is_space(char c) {
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

// Moves behind a comma and the white space around it. False where none stands there, or nothing behind it.
ALWAYS_INLINE bool skip_comma(const char **text, const char *end) {
    const char *p = *text;
    while (p < end && is_space(*p)) p++;
    if (p == end || *p != ',') return false;
    do {
        p++;
    } while (p < end && is_space(*p));
    *text = p;
    return p < end;
}

size_t number_read_run_f32(float *values, size_t room, const char **text, const char *end) {
    const char *p = *text;
    size_t count = 0;
    while (count < room && read_f32(&values[count], &p, end) == NUMBER_OK) {
        count++;
        *text = p;
        if (!skip_comma(&p, end)) break;
    }
    return count;
}

size_t number_read_run_f64(double *values, size_t room, const char **text, const char *end) {
    const char *p = *text;
    size_t count = 0;
    while (count < room && read_f64(&values[count], &p, end) == NUMBER_OK) {
        count++;
        *text = p;
        if (!skip_comma(&p, end)) break;
    }
    return count;
}
