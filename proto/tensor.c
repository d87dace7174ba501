// SPDX-License-Identifier: Apache-2.0
#include "tensor.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

const struct wire_dtype_row wire_dtypes[] = {
    [WIRE_F32] = {"f32", WIRE_F32, 4},
    [WIRE_F64] = {"f64", WIRE_F64, 8},
    [WIRE_F16] = {"f16", WIRE_F16, 2},
    [WIRE_BF16] = {"bf16", WIRE_BF16, 2},
};
const size_t wire_dtype_count = sizeof wire_dtypes / sizeof wire_dtypes[0];

bool tensor_count(size_t *count, const size_t *dim, int rank) {
    const size_t limit = PTRDIFF_MAX / 8;
    size_t product = 1; // of the dimensions other than 0: a part of the shape must not overflow either
    bool empty = false;
    for (int i = 0; i < rank; i++) {
        if (dim[i] == 0) {
            empty = true;
        } else if (dim[i] > limit / product) {
            return false;
        } else {
            product *= dim[i];
        }
    }
    *count = empty ? 0 : product;
    return true;
}

// ---- Bits, little-endian on the wire ----

static uint16_t load_u16(const unsigned char *raw) {
    return (uint16_t)(raw[0] | raw[1] << 8);
}

static uint32_t load_u32(const unsigned char *raw) {
    return load_u16(raw) | (uint32_t)load_u16(raw + 2) << 16;
}

static uint64_t load_u64(const unsigned char *raw) {
    return load_u32(raw) | (uint64_t)load_u32(raw + 4) << 32;
}

static void store_u16(unsigned char *raw, uint16_t bits) {
    raw[0] = (unsigned char)bits;
    raw[1] = (unsigned char)(bits >> 8);
}

static void store_u32(unsigned char *raw, uint32_t bits) {
    store_u16(raw, (uint16_t)bits);
    store_u16(raw + 2, (uint16_t)(bits >> 16));
}

static void store_u64(unsigned char *raw, uint64_t bits) {
    store_u32(raw, (uint32_t)bits);
    store_u32(raw + 4, (uint32_t)(bits >> 32));
}

static float f32_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_of_f32(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static double f64_of_bits(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint64_t bits_of_f64(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// ---- Half precision ----

static float f32_of_f16(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    const uint32_t exponent = half >> 10 & 31;
    const uint32_t fraction = half & 0x3ff;
    if (exponent == 31) return f32_of_bits(sign | 0x7f800000 | fraction << 13);
    if (exponent > 0) return f32_of_bits(sign | (exponent + 127 - 15) << 23 | fraction << 13);
    const float magnitude = (float)fraction * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
}

static float f32_of_bf16(uint16_t bits) {
    return f32_of_bits((uint32_t)bits << 16);
}

struct half_format {
    int fraction_bits;
    int bias;
    uint16_t infinity;
};

static const struct half_format FORMAT_F16 = {10, 15, 0x7c00};
static const struct half_format FORMAT_BF16 = {7, 127, 0x7f80};

// bits >> drop, rounded to nearest even; 1 <= drop <= 53.
static uint64_t shift_to_even(uint64_t bits, int drop) {
    const uint64_t half = (uint64_t)1 << (drop - 1);
    return (bits + (half - 1) + (bits >> drop & 1)) >> drop;
}

// Rounds once, from f64: through f32 it would round twice.
static uint16_t narrow(double value, struct half_format format) {
    const uint64_t bits = bits_of_f64(value);
    const uint64_t magnitude = bits & INT64_MAX;
    const uint64_t sign = bits >> 63 << 15;
    const uint64_t infinity = (uint64_t)0x7ff << 52;
    if (magnitude > infinity) return (uint16_t)(sign | format.infinity | 1u << (format.fraction_bits - 1));
    const int drop = 52 - format.fraction_bits;
    const int exponent = (int)(magnitude >> 52) - 1023 + format.bias; // the field of the result
    if (exponent > 0) {
        // A carry runs into the exponent, and from the largest value to infinity.
        const uint64_t rebased = magnitude - ((uint64_t)(1023 - format.bias) << 52);
        const uint64_t rounded = shift_to_even(rebased, drop);
        return (uint16_t)(sign | (rounded < format.infinity ? rounded : format.infinity));
    }
    const int subnormal_drop = drop + 1 - exponent;
    if (subnormal_drop > 53) return (uint16_t)sign; // below half of the smallest
    const uint64_t significand = (magnitude & (((uint64_t)1 << 52) - 1)) | (uint64_t)1 << 52;
    return (uint16_t)(sign | shift_to_even(significand, subnormal_drop));
}

// ---- Tensors ----

// The least magnitude that rounds to infinity.
static const double overflow_from[] = {
    [WIRE_F32] = 0x1.ffffffp127,
    [WIRE_F64] = INFINITY,
    [WIRE_F16] = 65520,
    [WIRE_BF16] = 0x1.ffp127,
};

static bool is_same_layout(enum bn_dtype dtype, enum wire_dtype wire) {
    const bool little_endian = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
    return little_endian && wire == (dtype == BN_F32 ? WIRE_F32 : WIRE_F64);
}

static double load(const unsigned char *raw, enum wire_dtype from) {
    switch (from) {
    case WIRE_F32: return (double)f32_of_bits(load_u32(raw));
    case WIRE_F64: return f64_of_bits(load_u64(raw));
    case WIRE_F16: return (double)f32_of_f16(load_u16(raw));
    case WIRE_BF16: return (double)f32_of_bf16(load_u16(raw));
    }
    return NAN;
}

static void store(unsigned char *raw, enum wire_dtype to, double value) {
    switch (to) {
    case WIRE_F32: store_u32(raw, bits_of_f32((float)value)); break;
    case WIRE_F64: store_u64(raw, bits_of_f64(value)); break;
    case WIRE_F16: store_u16(raw, narrow(value, FORMAT_F16)); break;
    case WIRE_BF16: store_u16(raw, narrow(value, FORMAT_BF16)); break;
    }
}

// The two loops are compiled for each pair of types: inlined with constant ones.
#define INLINE __attribute__((always_inline)) static inline

INLINE size_t read_all(void *values, enum bn_dtype dtype, const unsigned char *raw, enum wire_dtype from, size_t n) {
    const size_t size = wire_dtypes[from].size;
    float *const f32 = values;
    double *const f64 = values;
    size_t overflow = n;
    for (size_t i = 0; i < n; i++) {
        const double value = load(raw + i * size, from);
        if (dtype == BN_F64) {
            f64[i] = value;
            continue;
        }
        f32[i] = (float)value;
        if (from == WIRE_F64 && fabs(value) >= overflow_from[WIRE_F32] && isfinite(value) && overflow == n)
            overflow = i;
    }
    return overflow;
}

INLINE void write_all(unsigned char *raw, enum wire_dtype to, const void *values, enum bn_dtype dtype, size_t n) {
    const size_t size = wire_dtypes[to].size;
    const float *const f32 = values;
    const double *const f64 = values;
    for (size_t i = 0; i < n; i++) store(raw + i * size, to, dtype == BN_F32 ? (double)f32[i] : f64[i]);
}

// From the last one on: in their own place they grow into what was read before.
static void widen_all(unsigned char *raw, const float *values, size_t n) {
    for (size_t i = n; i-- > 0;) store(raw + i * sizeof(double), WIRE_F64, (double)values[i]);
}

size_t tensor_from_wire(void *values, enum bn_dtype dtype, const void *raw, enum wire_dtype from, size_t n) {
    if (n == 0) return n;
    if (is_same_layout(dtype, from)) {
        memmove(values, raw, n * wire_dtypes[from].size);
        return n;
    }
    if (dtype == BN_F32) {
        switch (from) {
        case WIRE_F32: return read_all(values, BN_F32, raw, WIRE_F32, n);
        case WIRE_F64: return read_all(values, BN_F32, raw, WIRE_F64, n);
        case WIRE_F16: return read_all(values, BN_F32, raw, WIRE_F16, n);
        case WIRE_BF16: return read_all(values, BN_F32, raw, WIRE_BF16, n);
        }
    }
    switch (from) {
    case WIRE_F32: return read_all(values, BN_F64, raw, WIRE_F32, n);
    case WIRE_F64: return read_all(values, BN_F64, raw, WIRE_F64, n);
    case WIRE_F16: return read_all(values, BN_F64, raw, WIRE_F16, n);
    case WIRE_BF16: return read_all(values, BN_F64, raw, WIRE_BF16, n);
    }
    return n;
}

void tensor_to_wire(void *raw, enum wire_dtype to, const void *values, enum bn_dtype dtype, size_t n) {
    if (n == 0) return;
    if (is_same_layout(dtype, to)) {
        if (raw != values) memcpy(raw, values, n * wire_dtypes[to].size);
        return;
    }
    if (dtype == BN_F32) {
        switch (to) {
        case WIRE_F32: write_all(raw, WIRE_F32, values, BN_F32, n); return;
        case WIRE_F64: widen_all(raw, values, n); return;
        case WIRE_F16: write_all(raw, WIRE_F16, values, BN_F32, n); return;
        case WIRE_BF16: write_all(raw, WIRE_BF16, values, BN_F32, n); return;
        }
    }
    switch (to) {
    case WIRE_F32: write_all(raw, WIRE_F32, values, BN_F64, n); return;
    case WIRE_F64: write_all(raw, WIRE_F64, values, BN_F64, n); return;
    case WIRE_F16: write_all(raw, WIRE_F16, values, BN_F64, n); return;
    case WIRE_BF16: write_all(raw, WIRE_BF16, values, BN_F64, n); return;
    }
}

size_t tensor_first_overflow(const void *values, enum bn_dtype dtype, enum wire_dtype to, size_t n) {
    if (wire_dtypes[to].size >= bn_dtype_size(dtype)) return bn_first_nonfinite(values, n, dtype);
    const double limit = overflow_from[to];
    const float *const f32 = values;
    const double *const f64 = values;
    for (size_t i = 0; i < n; i++) {
        const double value = dtype == BN_F32 ? (double)f32[i] : f64[i];
        if (!(fabs(value) < limit)) return i; // also NaN
    }
    return n;
}

struct tensor tensor_like(const struct tensor *like, struct buffer values) {
    struct tensor t = *like;
    t.values = values;
    return t;
}

void tensor_move(struct tensor *to, struct tensor *from) {
    if (to == from) return;
    tensor_free(to);
    struct budget *const budget = from->values.budget;
    *to = *from;
    *from = (struct tensor){.values.budget = budget};
}

void tensor_free(struct tensor *t) {
    buffer_free(&t->values);
    *t = (struct tensor){.values.budget = t->values.budget};
}
