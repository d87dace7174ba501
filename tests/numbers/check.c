// SPDX-License-Identifier: Apache-2.0
#include "check.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/number.h"
#include "texts.h"
#include "work.h"

// A text taken apart. Zero has no digits.
struct written {
    struct decimal decimal; // without trailing zeros
    int count;              // of its digits
    int first;              // the exponent of the first digit
    bool negative;
    bool plain; // has no exponent
    bool valid; // is a number, of no more digits than 64 bits hold
};

static const char *take_digits(struct written *w, const char *p, const char *end, int *zeros) {
    for (; p < end && *p >= '0' && *p <= '9'; p++) {
        if (*p == '0') {
            *zeros += w->count > 0;
            continue;
        }
        for (; *zeros > 0; --*zeros, w->count++) w->decimal.digits *= 10;
        w->decimal.digits = w->decimal.digits * 10 + (uint64_t)(*p - '0');
        w->count++;
    }
    return p;
}

static int take_exponent(const char **p, const char *end) {
    const bool negative = *p < end && **p == '-';
    if (negative) ++*p;
    int exponent = 0;
    for (; *p < end && **p >= '0' && **p <= '9'; ++*p) exponent = exponent * 10 + (**p - '0');
    return negative ? -exponent : exponent;
}

static struct written take_apart(const char *p, const char *end) {
    struct written w = {.negative = *p == '-', .plain = true};
    int zeros = 0; // behind the last digit that is not zero
    if (w.negative) p++;
    const char *const whole = p;
    p = take_digits(&w, p, end, &zeros);
    w.valid = p > whole;
    w.decimal.exponent = zeros;
    if (p < end && *p == '.') {
        const char *const fraction = p + 1;
        zeros = w.count > 0 ? zeros : 0;
        p = take_digits(&w, fraction, end, &zeros);
        w.valid = w.valid && p > fraction;
        w.decimal.exponent = zeros - (int)(p - fraction);
    }
    if (p < end && *p == 'e') {
        p++;
        w.plain = false;
        w.decimal.exponent += take_exponent(&p, end);
    }
    w.first = w.decimal.exponent + w.count - 1;
    w.valid = w.valid && p == end && w.count < 20;
    return w;
}

static int digits_in(int x) {
    return x < 10 ? 1 : x < 100 ? 2 : 3;
}

// Whether a text of so many characters is laid out as number.h says.
static bool is_laid_out(const struct written *w, ptrdiff_t size) {
    if (w->count == 0) return size == (w->negative ? 4 : 1) && w->plain;
    const int e = w->first;
    const int scientific = w->count + (w->count > 1) + 1 + (e < 0) + digits_in(abs(e));
    const int point_inside = e < w->count - 1;
    const int plain = e < 0 ? 2 + (-e - 1) + w->count : point_inside ? w->count + 1 : e + 1;
    return w->plain == (plain <= scientific) && size == w->negative + (w->plain ? plain : scientific);
}

static bool is_written(const char *text, const char *end, struct binary value, bool negative) {
    const struct written w = take_apart(text, end);
    if (!w.valid || w.negative != negative || !is_laid_out(&w, end - text)) return false;
    return value.significand == 0 ? w.count == 0 : w.count > 0 && is_shortest(w.decimal, value);
}

// The same text in the middle of an array, whose other values must not matter, reads as the same: it takes another
// path.
static const char following[] = ",98765432109876543210.98765432109876543210e98765432109876543210";

static bool same_f32(const char *text, const char *end, enum number_status status, float value) {
    char longer[TEXT_SIZE + sizeof following];
    const size_t size = (size_t)(end - text);
    memcpy(longer, text, size);
    memcpy(longer + size, following, sizeof following);
    const char *at = longer;
    float again = NAN;
    const bool right = number_read_f32(&again, &at, longer + size + sizeof following - 1) == status &&
                       at == longer + size && bits_of_f32(again) == bits_of_f32(value);
    if (!right) wrong("\"%.*s\" in an array reads as f32 %a, not %a", (int)size, text, (double)again, (double)value);
    return right;
}

static bool same_f64(const char *text, const char *end, enum number_status status, double value) {
    char longer[TEXT_SIZE + sizeof following];
    const size_t size = (size_t)(end - text);
    memcpy(longer, text, size);
    memcpy(longer + size, following, sizeof following);
    const char *at = longer;
    double again = NAN;
    const bool right = number_read_f64(&again, &at, longer + size + sizeof following - 1) == status &&
                       at == longer + size && bits_of_f64(again) == bits_of_f64(value);
    if (!right) wrong("\"%.*s\" in an array reads as f64 %a, not %a", (int)size, text, again, value);
    return right;
}

bool check_write_f32(uint32_t bits, bool libc) {
    const uint32_t magnitude = bits & 0x7fffffff;
    char text[NUMBER_F32_MAX + NUMBER_SLACK];
    char *const end = number_write_f32(text, f32_of(bits));
    *end = '\0';
    const char *at = text;
    float back = NAN;
    const enum number_status status = number_read_f32(&back, &at, end);
    const bool right = end - text <= NUMBER_F32_MAX && status == NUMBER_OK && at == end && bits_of_f32(back) == bits &&
                       is_written(text, end, binary_of_f32(magnitude), magnitude != bits) &&
                       (!libc || bits_of_f32(strtof(text, NULL)) == bits);
    if (!right) wrong("f32 0x%08" PRIx32 ": \"%s\", reads as %a", bits, text, (double)back);
    return right && same_f32(text, end, status, back);
}

bool check_write_f64(uint64_t bits, bool libc) {
    const uint64_t magnitude = bits & INT64_MAX;
    char text[NUMBER_F64_MAX + NUMBER_SLACK];
    char *const end = number_write_f64(text, f64_of(bits));
    *end = '\0';
    const char *at = text;
    double back = NAN;
    const enum number_status status = number_read_f64(&back, &at, end);
    const bool right = end - text <= NUMBER_F64_MAX && status == NUMBER_OK && at == end && bits_of_f64(back) == bits &&
                       is_written(text, end, binary_of_f64(magnitude), magnitude != bits) &&
                       (!libc || bits_of_f64(strtod(text, NULL)) == bits);
    if (!right) wrong("f64 0x%016" PRIx64 ": \"%s\", reads as %a", bits, text, back);
    return right && same_f64(text, end, status, back);
}

// Whether status and end of a reading are those of the value.
static bool is_read(enum number_status status, bool infinite, const char *at, const char *end) {
    return at == end && status == (infinite ? NUMBER_OVERFLOW : NUMBER_OK);
}

bool check_read(const char *text, struct decimal decimal) {
    const char *const end = text + strlen(text);
    const char *at = text;
    double f64 = NAN;
    const enum number_status status_f64 = number_read_f64(&f64, &at, end);
    const bool right_f64 = is_read(status_f64, isinf(f64), at, end) && !isnan(f64) && !signbit(f64) &&
                           rounds_to(decimal, binary_of_f64(bits_of_f64(f64)));
    if (!right_f64) wrong("\"%s\" reads as f64 %a, status %d", text, f64, (int)status_f64);
    at = text;
    float f32 = NAN;
    const enum number_status status_f32 = number_read_f32(&f32, &at, end);
    const bool right_f32 = is_read(status_f32, isinf(f32), at, end) && !isnan(f32) && !signbit(f32) &&
                           rounds_to(decimal, binary_of_f32(bits_of_f32(f32)));
    if (!right_f32) wrong("\"%s\" reads as f32 %a, status %d", text, (double)f32, (int)status_f32);
    return right_f64 && right_f32 && same_f64(text, end, status_f64, f64) && same_f32(text, end, status_f32, f32);
}

bool check_read_f32(const char *text, uint32_t bits) {
    const char *const end = text + strlen(text);
    const char *at = text;
    float value = NAN;
    const enum number_status status = number_read_f32(&value, &at, end);
    const bool right = is_read(status, isinf(f32_of(bits)), at, end) && bits_of_f32(value) == bits;
    if (!right) wrong("\"%s\" reads as f32 %a, not %a", text, (double)value, (double)f32_of(bits));
    return right && same_f32(text, end, status, value);
}

bool check_read_f64(const char *text, uint64_t bits) {
    const char *const end = text + strlen(text);
    const char *at = text;
    double value = NAN;
    const enum number_status status = number_read_f64(&value, &at, end);
    const bool right = is_read(status, isinf(f64_of(bits)), at, end) && bits_of_f64(value) == bits;
    if (!right) wrong("\"%s\" reads as f64 %a, not %a", text, value, f64_of(bits));
    return right && same_f64(text, end, status, value);
}
