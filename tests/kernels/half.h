// SPDX-License-Identifier: Apache-2.0
//
// Half precision in plain arithmetic: no shifts of a float's bits, no conversion of the compiler or the CPU. Checked
// in test_half.c.
#ifndef NORMD_TESTS_KERNELS_HALF_H
#define NORMD_TESTS_KERNELS_HALF_H

#include <math.h>
#include <stdint.h>

// A sign, 15 - fraction bits of exponent, and a fraction.
struct half_format {
    int fraction;
    int bias;
};

static const struct half_format f16_format = {10, 15}, bf16_format = {7, 127};

static inline float half_value(struct half_format format, uint16_t bits) {
    const int exponent = (bits & 0x7fff) >> format.fraction;
    const int fraction = bits & ((1 << format.fraction) - 1);
    double value;
    if (exponent == 2 * format.bias + 1)
        value = fraction ? (double)NAN : (double)INFINITY;
    else if (exponent == 0)
        value = ldexp(fraction, 1 - format.bias - format.fraction);
    else
        value = ldexp((1 << format.fraction) + fraction, exponent - format.bias - format.fraction);
    return (float)(bits & 0x8000 ? -value : value);
}

// To nearest, ties to even.
static inline uint16_t half_round(struct half_format format, float value) {
    const int infinity = (2 * format.bias + 1) << format.fraction;
    const int sign = signbit(value) ? 0x8000 : 0;
    if (isnan(value)) return (uint16_t)(sign | infinity | 1 << (format.fraction - 1));
    if (isinf(value)) return (uint16_t)(sign | infinity);
    const int least = 1 - format.bias;
    const int exponent = value == 0 || ilogbf(value) < least ? least : ilogbf(value);
    const int steps = (int)nearbyint(ldexp(fabs((double)value), format.fraction - exponent));
    const int bits = ((exponent - least) << format.fraction) + steps; // steps' upper bit adds 1 to the exponent
    return (uint16_t)(sign | (bits < infinity ? bits : infinity));
}

#endif
