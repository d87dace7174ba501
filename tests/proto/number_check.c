// SPDX-License-Identifier: Apache-2.0
#include "number_check.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/number.h"

static uint64_t random_state = 0x9e3779b97f4a7c15;

uint64_t random_u64(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 0x2545f4914f6cdd1d;
}

int random_below(int limit) {
    return (int)((random_u64() >> 32) % (uint64_t)limit);
}

char *alone(const char *text, size_t size) {
    char *const copy = malloc(size > 0 ? size : 1);
    assert_non_null(copy);
    memcpy(copy, text, size);
    return copy;
}

char *followed(const char *text, size_t size) {
    char *const copy = malloc(size + sizeof FOLLOWING);
    assert_non_null(copy);
    memcpy(copy, text, size);
    memcpy(copy + size, FOLLOWING, sizeof FOLLOWING);
    return copy;
}

// `room` bytes may be read, of which the first `size` are the text.
static void check_read_of(const char *text, const char *copy, size_t size, size_t room) {
    const char *end = copy;
    double f64 = NAN;
    const double expected_f64 = strtod(text, NULL);
    const enum number_status status_f64 = number_read_f64(&f64, &end, copy + room);
    if (end != copy + size || bits_of_f64(f64) != bits_of_f64(expected_f64) ||
        status_f64 != (isinf(expected_f64) ? NUMBER_OVERFLOW : NUMBER_OK)) {
        fail_msg("f64 \"%s\": %a, expected %a, status %d", text, f64, expected_f64, (int)status_f64);
    }
    end = copy;
    float f32 = NAN;
    const float expected_f32 = strtof(text, NULL);
    const enum number_status status_f32 = number_read_f32(&f32, &end, copy + room);
    if (end != copy + size || bits_of_f32(f32) != bits_of_f32(expected_f32) ||
        status_f32 != (isinf(expected_f32) ? NUMBER_OVERFLOW : NUMBER_OK)) {
        fail_msg("f32 \"%s\": %a, expected %a, status %d", text, (double)f32, (double)expected_f32, (int)status_f32);
    }
}

void check_read(const char *text) {
    const size_t size = strlen(text);
    char *const copy = alone(text, size), *const longer = followed(text, size);
    check_read_of(text, copy, size, size);
    check_read_of(text, longer, size, size + strlen(FOLLOWING));
    free(copy);
    free(longer);
}
