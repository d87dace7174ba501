// SPDX-License-Identifier: Apache-2.0
//
// Decimal and binary numbers compared exactly, in integers as long as it takes: whether a text read or written by
// proto/number.h is right is decided here, with none of its tables and none of libc. Any thread may call; exact_start
// comes first.
#ifndef NORMD_TESTS_NUMBERS_EXACT_H
#define NORMD_TESTS_NUMBERS_EXACT_H

#include <stdbool.h>
#include <stdint.h>

// The largest |exponent| of ten that may occur.
#define EXACT_LAST 400

// digits * 10^exponent
struct decimal {
    uint64_t digits;
    int exponent;
};

// significand * 2^exponent, a magnitude as the bits of its type say. Infinity is the power of two behind the largest.
struct binary {
    uint64_t significand;
    int exponent;
    bool closer_below; // the next value below is half as far as the one above
    bool infinite;
};

// Computes the powers of five. Once, before all else.
void exact_start(void);

// Of the bits without the sign; no NaN.
struct binary binary_of_f32(uint32_t bits);
struct binary binary_of_f64(uint64_t bits);

// Whether the decimal rounds to the value: to nearest, ties to even.
bool rounds_to(struct decimal decimal, struct binary value);

// Whether the decimal, which has no trailing zero, rounds to the value, none with fewer digits does, and none with as
// many is closer. The value is finite and not zero.
bool is_shortest(struct decimal decimal, struct binary value);

#endif
