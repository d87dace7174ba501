// SPDX-License-Identifier: Apache-2.0
//
// What number_read.c and number_write.c share besides the powers of ten: the types as formats, small powers, and
// products of 128 bits.
#ifndef NORMD_PROTO_NUMBER_FORMAT_H
#define NORMD_PROTO_NUMBER_FORMAT_H

#include <stdint.h>

typedef unsigned __int128 uint128;

// A binary floating-point type. Its values are handled as the bits of the magnitude: an integer that counts the values
// from zero up.
struct format {
    int precision;     // bits of the significand, the hidden one included
    int min_exponent;  // of the smallest normal value: 2^min_exponent
    uint64_t infinity; // its bits
};

static const struct format FORMAT_F32 = {24, -126, 0x7f800000};
static const struct format FORMAT_F64 = {53, -1022, 0x7ff0000000000000};

// For what is written once and compiled into several functions.
#define ALWAYS_INLINE static inline __attribute__((always_inline))

static const uint64_t powers_of_10[] = {1,
                                        10,
                                        100,
                                        1000,
                                        10000,
                                        100000,
                                        1000000,
                                        10000000,
                                        100000000,
                                        1000000000,
                                        10000000000,
                                        100000000000,
                                        1000000000000,
                                        10000000000000,
                                        100000000000000,
                                        1000000000000000,
                                        10000000000000000,
                                        100000000000000000};

static inline uint64_t high_half(uint128 x) {
    return (uint64_t)(x >> 64);
}

#endif
