// SPDX-License-Identifier: Apache-2.0
//
// f16 and bf16: every call gives the results of f32 on the same values, rounded once. And half.h, which judges that, is
// judged itself.
#include "../bits.h"
#include "shapes.h"
#include "step.h"

static const struct {
    enum bn_dtype dtype;
    struct half_format format;
    double largest, least; // by IEEE 754 and by the upper half of a binary32
} formats[] = {
    {BN_F16, {10, 15}, 65504, 0x1p-24},
    {BN_BF16, {7, 127}, 0x1.fep127, 0x1p-133},
};

static void test_values(void **state) {
    (void)state;
    for (size_t f = 0; f < COUNT(formats); f++) {
        const struct half_format format = formats[f].format;
        const uint16_t infinity = (uint16_t)((2 * format.bias + 1) << format.fraction);
        assert_true(half_value(format, 0) == 0 && !signbit(half_value(format, 0)));
        assert_true(half_value(format, 0x8000) == 0 && signbit(half_value(format, 0x8000)));
        assert_true((double)half_value(format, 1) == formats[f].least);
        assert_true(half_value(format, (uint16_t)(format.bias << format.fraction)) == 1);
        assert_true((double)half_value(format, infinity - 1) == formats[f].largest);
        assert_true(isinf(half_value(format, infinity)) && isnan(half_value(format, infinity + 1)));
        for (uint32_t i = 0; i < 0x10000; i++) {
            const uint16_t bits = (uint16_t)i, size = bits & 0x7fff;
            const float value = half_value(format, bits);
            assert_int_equal(isnan(value), size > infinity);
            if (isnan(value)) continue;
            assert_int_equal(half_round(format, value), bits);
            if (size > 0) assert_true(fabsf(value) > fabsf(half_value(format, bits - 1)));
        }
    }
}

// A bf16 is the upper half of a float.
static void test_bf16_bits(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 0x10000; i++) {
        const float value = f32_of(i << 16);
        const float ours = half_value(bf16_format, (uint16_t)i);
        assert_true(isnan(value) ? isnan(ours) : memcmp(&value, &ours, sizeof value) == 0);
    }
}

static void test_rounding(void **state) {
    (void)state;
    for (size_t f = 0; f < COUNT(formats); f++) {
        const struct half_format format = formats[f].format;
        const uint16_t infinity = (uint16_t)((2 * format.bias + 1) << format.fraction);
        for (uint16_t bits = 0; bits < infinity; bits++) {
            const double low = (double)half_value(format, bits);
            const double step = bits + 1 == infinity ? low - (double)half_value(format, bits - 1)
                                                     : (double)half_value(format, bits + 1) - low;
            const float tie = (float)(low + step / 2);
            assert_true((double)tie == low + step / 2);
            assert_int_equal(half_round(format, tie), bits + (bits & 1));
            assert_int_equal(half_round(format, nextafterf(tie, 0)), bits);
            assert_int_equal(half_round(format, nextafterf(tie, INFINITY)), bits + 1);
            assert_int_equal(half_round(format, -tie), 0x8000 + bits + (bits & 1));
        }
        assert_int_equal(half_round(format, 3.4028234663852886e38F), infinity);
        assert_int_equal(half_round(format, -INFINITY), 0x8000 | infinity);
        assert_true(isnan(half_value(format, half_round(format, NAN))));
    }
}

static struct guarded to_float(const struct guarded *half, enum bn_dtype dtype) {
    const size_t n = half->bytes / dtype_size(dtype);
    struct guarded g = guarded_values(BN_F32, n);
    for (size_t i = 0; i < n; i++) put(g.data, BN_F32, i, get(half->data, dtype, i));
    return g;
}

static void expect_rounded(const struct test_case *t, const struct results *half, const struct results *single) {
    const size_t n = elements(t->shape);
    for (size_t row = 0; row < ROWS; row++) {
        const size_t c = first_difference(half->rows[row], single->rows[row], BN_F64, t->shape.channels);
        if (c < t->shape.channels)
            fail_case(t, "%s[%zu] is %.17g, of the same floats %.17g", row_names[row], c, half->rows[row][c],
                      single->rows[row][c]);
    }
    uint16_t *const expected = calloc(n, sizeof *expected);
    for (size_t tensor = 0; tensor < TENSORS; tensor++) {
        for (size_t i = 0; i < n; i++) put(expected, t->dtype, i, get(single->tensors[tensor], BN_F32, i));
        const size_t i = first_difference(half->tensors[tensor], expected, t->dtype, n);
        if (i < n)
            fail_case(t, "%s[%zu] is %.9g, of the same floats %.9g", tensor_names[tensor], i,
                      get(half->tensors[tensor], t->dtype, i), get(single->tensors[tensor], BN_F32, i));
    }
    free(expected);
}

static void check_case(const struct test_case *t, bool odd_values) {
    struct inputs inputs = inputs_new(t);
    if (odd_values) sprinkle(inputs.x.data, t->dtype, elements(t->shape), t->seed);
    if (odd_values) sprinkle(inputs.z.data, t->dtype, elements(t->shape), t->seed + 1);
    struct test_case single = *t;
    single.dtype = BN_F32;
    struct inputs floats = {to_float(&inputs.x, t->dtype), to_float(&inputs.dout, t->dtype),
                            to_float(&inputs.z, t->dtype), guarded_copy(&inputs.gamma, BN_F64),
                            guarded_copy(&inputs.beta, BN_F64)};
    struct results half_results = run_step(t, &inputs, NULL), float_results = run_step(&single, &floats, NULL);
    if (step_failed(&half_results) || step_failed(&float_results)) fail_case(t, "a call failed");
    expect_rounded(t, &half_results, &float_results);
    results_free(&half_results);
    results_free(&float_results);
    inputs_free(&inputs);
    inputs_free(&floats);
}

static void test_results_are_those_of_f32(void **state) {
    (void)state;
    uint64_t seed = 1;
    for (size_t s = 0; s < COUNT(shapes); s++) {
        for (enum fill fill = 0; fill < FILL_COUNT; fill++, seed++) {
            const struct test_case t = {.shape = shapes[s],
                                        .dtype = seed / 2 % 2 ? BN_F16 : BN_BF16,
                                        .fill = fill,
                                        .seed = seed,
                                        .eps = seed % 3 ? 1e-5 : 1e-45,
                                        .post = seed % POST_COUNT,
                                        .affine = seed / 4 % 2};
            if (chosen(seed, elements(t.shape), 3000)) check_case(&t, seed % 7 == 0);
        }
    }
    // Past the size from which results bypass caches.
    for (enum bn_dtype dtype = BN_F16; dtype <= BN_BF16; dtype++) {
        const struct test_case t = {.shape = {14, 199, 784}, .dtype = dtype, .eps = 1e-5, .post = POST_BOTH};
        if (chosen(dtype, 1, 1)) check_case(&t, false);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_bf16_bits),
        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_results_are_those_of_f32),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
