// SPDX-License-Identifier: Apache-2.0
//
// Half precision, one value at a time, in integer arithmetic: the truth that tiers with instructions for it must equal.
// To float is exact; from float rounds once, to nearest even, and overflows to infinity. A NaN stays one.
#ifndef NORMD_KERNELS_HALF_H
#define NORMD_KERNELS_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float bits_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float f16_to_float(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00) return bits_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    if (rest >= 0x0400) return bits_float(sign | ((rest << 13) + ((127 - 15) << 23)));
    // A subnormal is rest * 2^-24.
    return bits_float(sign | float_bits((float)rest * 0x1p-24F));
}

static inline uint16_t float_to_f16(float value) {
    const uint32_t bits = float_bits(value), sign = bits >> 16 & 0x8000;
    uint32_t rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (rest >= 0x477ff000) return (uint16_t)(sign | 0x7c00); // half way from 65504 to 65536, and beyond
    if (rest < 0x38800000) {                                  // below 2^-14: adding 1/2 leaves value / 2^-24 in the end
        const float sum = bits_float(rest) + 0.5F;
        return (uint16_t)(sign | (float_bits(sum) - float_bits(0.5F)));
    }
    rest += 0x0fff + (rest >> 13 & 1);
    return (uint16_t)(sign | ((rest - ((127 - 15) << 23)) >> 13));
}

static inline float bf16_to_float(uint16_t half) {
    return bits_float((uint32_t)half << 16);
}

static inline uint16_t float_to_bf16(float value) {
    const uint32_t bits = float_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#endif
