// SPDX-License-Identifier: Apache-2.0
//
// Conversions against definitions of the formats by ldexp, and rounding against a search among all values of a format.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/tensor.h"
#include "number_check.h"

struct half {
    enum wire_dtype wire;
    int fraction_bits;
    int bias;
    uint16_t infinity;
};

static const struct half f16 = {WIRE_F16, 10, 15, 0x7c00};
static const struct half bf16 = {WIRE_BF16, 7, 127, 0x7f80};

// The magnitude of finite bits, and for infinity what would come next.
static double magnitude_of(struct half format, uint16_t bits) {
    const int fraction = bits & ((1 << format.fraction_bits) - 1);
    const int field = bits >> format.fraction_bits;
    if (field == 0) return ldexp(fraction, 1 - format.bias - format.fraction_bits);
    return ldexp((1 << format.fraction_bits) + fraction, field - format.bias - format.fraction_bits);
}

// The bits of the nearest value, by search.
static uint16_t nearest_half(struct half format, double value) {
    const uint16_t sign = signbit(value) ? 0x8000 : 0;
    const double magnitude = fabs(value);
    if (magnitude >= magnitude_of(format, format.infinity)) return sign | format.infinity;
    uint16_t low = 0;
    uint16_t high = format.infinity;
    while (high - low > 1) {
        const uint16_t middle = (uint16_t)((low + high) / 2);
        *(magnitude_of(format, middle) <= magnitude ? &low : &high) = middle;
    }
    const double halfway = (magnitude_of(format, low) + magnitude_of(format, high)) / 2;
    const bool up = magnitude > halfway || (magnitude == halfway && low % 2 == 1);
    return (uint16_t)(sign | (up ? high : low));
}

static uint16_t write_half(struct half format, const void *value, enum bn_dtype dtype) {
    unsigned char raw[3] = {0};
    tensor_to_wire(raw + 1, format.wire, value, dtype, 1);
    return (uint16_t)(raw[1] | raw[2] << 8);
}

static void check_narrow_f64(struct half format, double value) {
    const uint16_t bits = write_half(format, &value, BN_F64);
    const uint16_t expected = nearest_half(format, value);
    if (bits != expected)
        fail_msg("f64 %a to dtype %d: 0x%04x, expected 0x%04x", value, (int)format.wire, bits, expected);
    const bool overflows = (expected & 0x7fff) == format.infinity;
    assert_int_equal(tensor_first_overflow(&value, BN_F64, format.wire, 1), overflows ? 0 : 1);
}

static void check_narrow_f32(struct half format, float value) {
    const uint16_t bits = write_half(format, &value, BN_F32);
    const uint16_t expected = nearest_half(format, (double)value);
    if (bits != expected) {
        fail_msg("f32 %a to dtype %d: 0x%04x, expected 0x%04x", (double)value, (int)format.wire, bits, expected);
    }
    const bool overflows = (expected & 0x7fff) == format.infinity;
    assert_int_equal(tensor_first_overflow(&value, BN_F32, format.wire, 1), overflows ? 0 : 1);
}

// All patterns at odd addresses, to both types and back.
static void check_all_patterns(struct half format) {
    unsigned char *const raw = malloc(2 * 65536 + 1);
    unsigned char *const back = malloc(2 * 65536 + 1);
    float *const f32 = malloc(65536 * sizeof *f32);
    double *const f64 = malloc(65536 * sizeof *f64);
    assert_true(raw != NULL && back != NULL && f32 != NULL && f64 != NULL);
    for (size_t i = 0; i < 65536; i++) {
        raw[1 + 2 * i] = (unsigned char)i;
        raw[2 + 2 * i] = (unsigned char)(i >> 8);
    }
    assert_int_equal(tensor_from_wire(f32, BN_F32, raw + 1, format.wire, 65536), 65536);
    assert_int_equal(tensor_from_wire(f64, BN_F64, raw + 1, format.wire, 65536), 65536);
    for (size_t i = 0; i < 65536; i++) {
        const uint16_t magnitude = i & 0x7fff;
        assert_int_equal(bits_of_f64(f64[i]), bits_of_f64((double)f32[i]));
        assert_int_equal(signbit(f64[i]) != 0, i >> 15);
        if (magnitude > format.infinity) {
            assert_true(isnan(f64[i]));
        } else {
            assert_true(fabs(f64[i]) ==
                        (magnitude == format.infinity ? (double)INFINITY : magnitude_of(format, magnitude)));
        }
    }
    for (int dtype = BN_F32; dtype <= BN_F64; dtype++) {
        tensor_to_wire(back + 1, format.wire, dtype == BN_F32 ? (void *)f32 : (void *)f64, (enum bn_dtype)dtype, 65536);
        for (size_t i = 0; i < 65536; i++) {
            const uint16_t bits = (uint16_t)(back[1 + 2 * i] | back[2 + 2 * i] << 8);
            if ((i & 0x7fff) > format.infinity) {
                assert_in_range(bits & 0x7fff, format.infinity + 1, 0x7fff);
            } else {
                assert_int_equal(bits, i);
            }
        }
    }
    free(raw);
    free(back);
    free(f32);
    free(f64);
}

static void test_all_patterns(void **state) {
    (void)state;
    check_all_patterns(f16);
    check_all_patterns(bf16);
}

// Every value, every point half-way to the next one, and the neighbours of these in the wider type. A halfway point's
// neighbour in f64 is what rounding by way of f32 gets wrong.
static void check_narrow(struct half format) {
    for (uint16_t i = 0; i < format.infinity; i++) {
        const double value = magnitude_of(format, i);
        const double halfway = (value + magnitude_of(format, (uint16_t)(i + 1))) / 2;
        const double sign = i % 3 == 0 ? -1 : 1;
        const double f64[] = {value,
                              halfway,
                              nextafter(halfway, 0),
                              nextafter(halfway, INFINITY),
                              nextafter(value, -1),
                              nextafter(value, INFINITY)};
        for (size_t k = 0; k < sizeof f64 / sizeof f64[0]; k++) check_narrow_f64(format, sign * f64[k]);
        const float half = (float)halfway;
        const float f32[] = {(float)value, half, nextafterf(half, 0), nextafterf(half, INFINITY)};
        for (size_t k = 0; k < sizeof f32 / sizeof f32[0]; k++) check_narrow_f32(format, (float)sign * f32[k]);
    }
    const double edges[] = {0.0, -0.0, 5e-324, DBL_MIN, FLT_MIN, FLT_MAX, DBL_MAX, -DBL_MAX, INFINITY, -INFINITY};
    for (size_t k = 0; k < sizeof edges / sizeof edges[0]; k++) check_narrow_f64(format, edges[k]);
    for (int k = 0; k < 100000; k++) {
        const double f64 = f64_of(random_u64());
        if (!isnan(f64)) check_narrow_f64(format, f64);
        const float f32 = f32_of((uint32_t)random_u64());
        if (!isnan(f32)) check_narrow_f32(format, f32);
        check_narrow_f64(format, ldexp((double)random_u64(), random_below(60) - 110));
    }
}

static void test_narrow_f16(void **state) {
    (void)state;
    check_narrow(f16);
    assert_int_equal(write_half(f16, &(double){0x1.002p0}, BN_F64), 0x3c00);
    assert_int_equal(write_half(f16, &(double){0x1.0020000000001p0}, BN_F64), 0x3c01);
    assert_int_equal(write_half(f16, &(double){65519.999999999993}, BN_F64), 0x7bff);
    assert_int_equal(write_half(f16, &(double){-65520}, BN_F64), 0xfc00);
    assert_int_equal(write_half(f16, &(double){0x1p-25}, BN_F64), 0);
    assert_int_equal(write_half(f16, &(double){0x1.0000000000001p-25}, BN_F64), 1);
}

static void test_narrow_bf16(void **state) {
    (void)state;
    check_narrow(bf16);
    assert_int_equal(write_half(bf16, &(float){0x1.01p0f}, BN_F32), 0x3f80);
    assert_int_equal(write_half(bf16, &(double){0x1.0100000000001p0}, BN_F64), 0x3f81);
    assert_int_equal(write_half(bf16, &(float){FLT_MAX}, BN_F32), 0x7f80);
}

static void test_nan(void **state) {
    (void)state;
    // Payloads whose bits that a narrower type keeps are all zero, quiet and signalling, of both signs.
    static const uint64_t f64[] = {0x7ff0000000000001, 0xfff0000000000001, 0x7ff8000000000000, 0xffffffffffffffff};
    static const uint32_t f32[] = {0x7f800001, 0xff800001, 0x7fc00000, 0xffffffff};
    for (size_t i = 0; i < 4; i++) {
        double value64;
        float value32;
        memcpy(&value64, &f64[i], sizeof value64);
        memcpy(&value32, &f32[i], sizeof value32);
        for (size_t to = 0; to < wire_dtype_count; to++) {
            unsigned char raw[8];
            double back = 0;
            tensor_to_wire(raw, (enum wire_dtype)to, &value64, BN_F64, 1);
            assert_int_equal(tensor_from_wire(&back, BN_F64, raw, (enum wire_dtype)to, 1), 1);
            assert_true(isnan(back));
            back = 0;
            tensor_to_wire(raw, (enum wire_dtype)to, &value32, BN_F32, 1);
            assert_int_equal(tensor_from_wire(&back, BN_F64, raw, (enum wire_dtype)to, 1), 1);
            assert_true(isnan(back));
            float back32 = 0;
            assert_int_equal(tensor_from_wire(&back32, BN_F32, raw, (enum wire_dtype)to, 1), 1);
            assert_true(isnan(back32));
            assert_int_equal(tensor_first_overflow(&value64, BN_F64, (enum wire_dtype)to, 1), 0);
            assert_int_equal(tensor_first_overflow(&value32, BN_F32, (enum wire_dtype)to, 1), 0);
        }
    }
}

// Bytes of known values, little-endian, at an odd address.
static void test_bytes(void **state) {
    (void)state;
    static const unsigned char f32_raw[] = {0xff, 0x00, 0x00, 0xc0, 0x3f, 0x00, 0x00, 0x00, 0x80};
    static const unsigned char f64_raw[] = {0xff, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0x80};
    float f32[2];
    double f64[2];
    const unsigned char *const raws[] = {f32_raw + 1, f64_raw + 1};
    for (int from = WIRE_F32; from <= WIRE_F64; from++) {
        assert_int_equal(tensor_from_wire(f32, BN_F32, raws[from], (enum wire_dtype)from, 2), 2);
        assert_int_equal(tensor_from_wire(f64, BN_F64, raws[from], (enum wire_dtype)from, 2), 2);
        assert_int_equal(bits_of_f32(f32[0]), 0x3fc00000);
        assert_int_equal(bits_of_f32(f32[1]), 0x80000000);
        assert_int_equal(bits_of_f64(f64[0]), 0x3ff8000000000000);
        assert_int_equal(bits_of_f64(f64[1]), 0x8000000000000000);
        const size_t size = 2 * wire_dtypes[from].size;
        unsigned char raw[17];
        tensor_to_wire(raw + 1, (enum wire_dtype)from, f32, BN_F32, 2);
        assert_memory_equal(raw + 1, raws[from], size);
        tensor_to_wire(raw + 1, (enum wire_dtype)from, f64, BN_F64, 2);
        assert_memory_equal(raw + 1, raws[from], size);
    }
}

// f64 to f32: overflow counts finite values only, the first one.
static void test_f64_to_f32(void **state) {
    (void)state;
    const double limit = 0x1.ffffffp127;
    const double in[] = {1,       INFINITY, NAN,      -INFINITY, nextafter(limit, 0), 0x1.0000010000001p0, -limit,
                         DBL_MAX, 0x1p-149, 0x1p-150, -1e-300};
    enum { COUNT = sizeof in / sizeof in[0] };
    float out[COUNT];
    assert_int_equal(tensor_from_wire(out, BN_F32, in, WIRE_F64, COUNT), 6);
    assert_int_equal(tensor_from_wire(out, BN_F32, in, WIRE_F64, 6), 6);
    assert_int_equal(tensor_from_wire(out, BN_F32, in, WIRE_F64, COUNT), 6);
    assert_true(out[1] == INFINITY && isnan(out[2]) && out[3] == -INFINITY && out[4] == FLT_MAX);
    assert_true(out[5] == 0x1.000002p0f && out[6] == -INFINITY && out[7] == INFINITY);
    assert_int_equal(bits_of_f32(out[8]), 1);
    assert_int_equal(bits_of_f32(out[9]), 0);
    assert_int_equal(bits_of_f32(out[10]), 0x80000000);
    float written[COUNT];
    tensor_to_wire(written, WIRE_F32, in, BN_F64, COUNT);
    assert_memory_equal(written, out, sizeof out);
    assert_int_equal(tensor_first_overflow(in, BN_F64, WIRE_F32, COUNT), 1);
    assert_int_equal(tensor_first_overflow(in + 4, BN_F64, WIRE_F32, COUNT - 4), 2);
    assert_int_equal(tensor_first_overflow(in + 6, BN_F64, WIRE_F64, COUNT - 6), COUNT - 6);
    assert_int_equal(tensor_first_overflow(out + 4, BN_F32, WIRE_F64, COUNT - 4), 2);
    assert_int_equal(tensor_first_overflow(in, BN_F64, WIRE_F16, 1), 1);
    assert_int_equal(tensor_first_overflow(in, BN_F64, WIRE_F16, 0), 0);
}

// The raw bytes as the tail of the room for the values.
static void test_in_place(void **state) {
    (void)state;
    enum { COUNT = 67 };
    float expected[COUNT];
    for (int i = 0; i < COUNT; i++) expected[i] = (float)(i - 30) / 4;
    for (size_t from = 0; from < wire_dtype_count; from++) {
        for (int dtype = BN_F32; dtype <= BN_F64; dtype++) {
            const size_t raw_size = COUNT * wire_dtypes[from].size;
            const size_t value_size = dtype == BN_F32 ? 4 : 8;
            const size_t room_size = raw_size > COUNT * value_size ? raw_size : COUNT * value_size;
            unsigned char *const room = malloc(room_size);
            assert_non_null(room);
            unsigned char *const raw = room + room_size - raw_size;
            tensor_to_wire(raw, (enum wire_dtype)from, expected, BN_F32, COUNT);
            assert_int_equal(tensor_from_wire(room, (enum bn_dtype)dtype, raw, (enum wire_dtype)from, COUNT), COUNT);
            for (int i = 0; i < COUNT; i++) {
                const double value = dtype == BN_F32 ? (double)((float *)(void *)room)[i] : ((double *)(void *)room)[i];
                assert_true(value == (double)expected[i]);
            }
            free(room);
        }
    }
}

static void test_count(void **state) {
    (void)state;
    const size_t limit = PTRDIFF_MAX / 8;
    static const struct {
        size_t dim[4];
        int rank;
        size_t count;
    } good[] = {
        {{2, 3}, 2, 6},
        {{2, 3, 4, 5}, 4, 120},
        {{0, 3}, 2, 0},
        {{3, 0, 5}, 3, 0},
        {{PTRDIFF_MAX / 8, 1}, 2, PTRDIFF_MAX / 8},
        {{0, PTRDIFF_MAX / 8}, 2, 0},
    };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        size_t count = 77;
        assert_true(tensor_count(&count, good[i].dim, good[i].rank));
        assert_int_equal(count, good[i].count);
    }
    size_t count;
    assert_false(tensor_count(&count, (size_t[]){limit + 1, 1}, 2));
    assert_false(tensor_count(&count, (size_t[]){2, limit}, 2));
    assert_false(tensor_count(&count, (size_t[]){SIZE_MAX, SIZE_MAX}, 2));
    assert_false(tensor_count(&count, (size_t[]){(size_t)1 << 32, (size_t)1 << 32}, 2));
    assert_false(tensor_count(&count, (size_t[]){0, (size_t)1 << 32, (size_t)1 << 32}, 3));
}

static void test_table(void **state) {
    (void)state;
    static const struct wire_dtype_row rows[] = {
        {"f32", WIRE_F32, 4}, {"f64", WIRE_F64, 8}, {"f16", WIRE_F16, 2}, {"bf16", WIRE_BF16, 2}};
    assert_int_equal(wire_dtype_count, 4);
    for (size_t i = 0; i < 4; i++) {
        assert_string_equal(wire_dtypes[rows[i].dtype].name, rows[i].name);
        assert_int_equal(wire_dtypes[rows[i].dtype].dtype, rows[i].dtype);
        assert_int_equal(wire_dtypes[rows[i].dtype].size, rows[i].size);
    }
}

static void test_ownership(void **state) {
    (void)state;
    struct budget budget = {.limit = 1000};
    struct tensor a = {.values.budget = &budget, .rank = 2, .dim = {2, 2}, .count = 4, .present = true};
    assert_true(buffer_reserve(&a.values, 16) && buffer_append(&a.values, "0123456789abcdef", 16));
    const unsigned char *const data = a.values.data;
    struct tensor b = {.values.budget = &budget, .present = true};
    assert_true(buffer_append(&b.values, "x", 1));
    tensor_move(&b, &a);
    assert_true(b.present && b.rank == 2 && b.count == 4);
    assert_ptr_equal(b.values.data, data);
    assert_int_equal(budget.used, 16);
    assert_true(!a.present && a.rank == 0 && a.count == 0 && a.values.data == NULL);
    assert_ptr_equal(a.values.budget, &budget);
    tensor_move(&b, &b);
    assert_ptr_equal(b.values.data, data);
    const struct tensor like = tensor_like(&b, a.values);
    assert_true(like.present && like.rank == 2 && like.dim[1] == 2 && like.count == 4 && like.values.data == NULL);
    tensor_free(&a);
    tensor_free(&b);
    assert_true(!b.present && b.values.data == NULL);
    assert_int_equal(budget.used, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_patterns), cmocka_unit_test(test_narrow_f16), cmocka_unit_test(test_narrow_bf16),
        cmocka_unit_test(test_nan),          cmocka_unit_test(test_bytes),      cmocka_unit_test(test_f64_to_f32),
        cmocka_unit_test(test_in_place),     cmocka_unit_test(test_count),      cmocka_unit_test(test_table),
        cmocka_unit_test(test_ownership),
    };
    return cmocka_run_group_tests_name("tensor", tests, NULL, NULL);
}
