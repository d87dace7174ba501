// SPDX-License-Identifier: Apache-2.0
#include "encoded.h"

// The longest, shortest and oddest of both types, and the values that are strings.
const double f64_values[VALUES] = {-2.2250738585072011e-308,
                                   -1.7976931348623157e308,
                                   5e-324,
                                   -1.2345678901234567e-100,
                                   0.1,
                                   0,
                                   -0.0,
                                   1,
                                   9007199254740993.0,
                                   123456789012345680.0,
                                   1e21,
                                   1e22,
                                   1e23,
                                   -0.00012345678901234567,
                                   NAN,
                                   INFINITY,
                                   -INFINITY};
static const float f32_values[VALUES] = {-1.17549421e-38f,
                                         -3.40282347e38f,
                                         1e-45f,
                                         -1.23456794e-10f,
                                         0.1f,
                                         0,
                                         -0.0f,
                                         1,
                                         16777216,
                                         123456792,
                                         1e10f,
                                         1e21f,
                                         1e22f,
                                         -0.000123456791f,
                                         NAN,
                                         INFINITY,
                                         -INFINITY};

struct tensor tensor_of(enum tensor_form form, enum wire_dtype wire, enum bn_dtype dtype, int rank, const size_t *dim,
                        int only) {
    struct tensor t = {
        .form = form, .wire = wire, .dtype = dtype, .rank = rank, .present = true, .count = rank > 0 ? 1 : 0};
    for (int l = 0; l < rank; l++) t.count *= t.dim[l] = dim[l];
    for (size_t i = 0; i < t.count; i++) {
        const size_t k = only >= 0 ? (size_t)only : i % VALUES;
        const bool ok = dtype == BN_F32 ? buffer_append(&t.values, &f32_values[k], sizeof(float))
                                        : buffer_append(&t.values, &f64_values[k], sizeof(double));
        assert_true(ok);
    }
    return t;
}

json_t *parse(const struct buffer *out) {
    json_error_t why;
    assert_int_equal(out->data[out->size - 1], '\n');
    json_t *const json = json_loadb((const char *)out->data, out->size, JSON_REJECT_DUPLICATES, &why);
    if (json == NULL) fail_msg("%s: %.*s", why.text, (int)(out->size < 300 ? out->size : 300), (const char *)out->data);
    return json;
}

void expect_real(double value, double expected) {
    if (isnan(expected) ? !isnan(value) : bits_of_f64(value) != bits_of_f64(expected))
        fail_msg("%.17g, expected %.17g", value, expected);
}

static double real_of(const json_t *json) {
    const char *const special = json_string_value(json);
    if (special == NULL) return json_number_value(json);
    if (strcmp(special, "NaN") == 0) return NAN;
    assert_true(strcmp(special, "Infinity") == 0 || strcmp(special, "-Infinity") == 0);
    return special[0] == '-' ? (double)-INFINITY : (double)INFINITY;
}

void expect_vector(const json_t *json, const double *expected, size_t n) {
    if (expected == NULL) {
        assert_true(json_is_null(json));
        return;
    }
    assert_int_equal(json_array_size(json), n);
    for (size_t i = 0; i < n; i++) expect_real(real_of(json_array_get(json, i)), expected[i]);
}

void expect_integer(const json_t *object, const char *name, int64_t expected) {
    const json_t *const json = json_object_get(object, name);
    assert_true(json_is_integer(json));
    assert_int_equal(json_integer_value(json), expected);
}

void expect_word(const json_t *object, const char *name, const char *expected) {
    const char *const text = json_string_value(json_object_get(object, name));
    assert_non_null(text);
    assert_string_equal(text, expected);
}

void expect_names(const json_t *object, const char *expected) {
    char names[300] = "";
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, name, value) {
        assert_non_null(value);
        strcat(strcat(names, name), " ");
    }
    assert_string_equal(names, expected);
}

const struct msg_config any_config = {.given = ~0u,
                                      .num_features = MSG_CHANNELS_MAX,
                                      .convention = MSG_CS231N,
                                      .momentum = 0.30000000000000004,
                                      .eps = 5e-324,
                                      .affine = true,
                                      .track_running_stats = false,
                                      .channel_axis = -8,
                                      .dtype = BN_F64,
                                      .init = MSG_INIT_FIRST_BATCH,
                                      .nonfinite = MSG_SKIP_UPDATE,
                                      .single_value = MSG_SINGLE_BETA};

void expect_config(const json_t *json, const struct msg_config *c, double new_weight, int ddof) {
    expect_names(json, "num_features convention momentum eps affine track_running_stats channel_axis dtype init "
                       "nonfinite single_value new_weight "
                       "running_ddof ");
    expect_integer(json, "num_features", c->num_features);
    expect_word(json, "convention", msg_convention_words[c->convention]);
    if (isnan(c->momentum)) {
        assert_true(json_is_null(json_object_get(json, "momentum")));
    } else {
        expect_real(json_number_value(json_object_get(json, "momentum")), c->momentum);
    }
    expect_real(json_number_value(json_object_get(json, "eps")), c->eps);
    assert_int_equal(json_is_true(json_object_get(json, "affine")), c->affine);
    assert_int_equal(json_is_true(json_object_get(json, "track_running_stats")), c->track_running_stats);
    expect_integer(json, "channel_axis", c->channel_axis);
    expect_word(json, "dtype", msg_dtype_words[c->dtype]);
    expect_word(json, "init", msg_init_words[c->init]);
    expect_word(json, "nonfinite", msg_nonfinite_words[c->nonfinite]);
    expect_word(json, "single_value", msg_single_value_words[c->single_value]);
    assert_int_equal(json_is_null(json_object_get(json, "new_weight")), isnan(new_weight));
    if (!isnan(new_weight)) expect_real(json_number_value(json_object_get(json, "new_weight")), new_weight);
    expect_integer(json, "running_ddof", ddof);
}
