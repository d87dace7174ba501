// SPDX-License-Identifier: Apache-2.0
//
// Every field of every message by table: right, of the wrong type, out of range, twice, unknown; and how much they may
// take.
#include "decoded.h"

// A field in a body that is otherwise good: `before` and what follows it closes the body.
static const struct field {
    enum kind kind;
    const char *before, *after, *parent, *name;
    const char *good, *wrong; // values, "|" between them
    const char *outside;      // of the right type, out of range
} fields[] = {
    {CONFIG, "{", "}", "", "num_features", "1|2|1048576|3.0|1e2", "null|1.5|\"1\"|[1]|{}|true",
     "0|-1|1048577|9223372036854775807"},
    {CONFIG, "{", "}", "", "convention", "\"pytorch\"|\"cs231n\"|\"onnx\"|\"keras\"|\"paper\"", "null|0|[]|{}|true",
     "\"\"|\"torch\"|\"Keras\""},
    {CONFIG, "{", "}", "", "momentum", "null|0|1|0.1|0.0|-0.0|1e-400", "\"0.1\"|[]|{}|true",
     "-0.1|1.1|2|-1e-300|1e300"},
    {CONFIG, "{", "}", "", "eps", "1|1e-5|5e-324|1e308", "null|\"1\"|[]|{}|true", "0|-1|0.0|-0.0|1e-400"},
    {CONFIG, "{", "}", "", "affine", "true|false", "null|0|1|\"true\"|[]|{}", ""},
    {CONFIG, "{", "}", "", "track_running_stats", "true|false", "null|0|1|\"true\"|[]|{}", ""},
    {CONFIG, "{", "}", "", "channel_axis", "-8|-1|0|1|7|-1.0", "null|1.5|\"1\"|[]|{}|true",
     "8|-9|9223372036854775807|-9223372036854775808"},
    {CONFIG, "{", "}", "", "dtype", "\"f32\"|\"f64\"", "null|32|[]|{}|true", "\"f16\"|\"bf16\"|\"F32\"|\"\""},
    {CONFIG, "{", "}", "", "init", "\"standard\"|\"first-batch\"", "null|0|[]|{}|true", "\"first_batch\"|\"\""},
    {CONFIG, "{", "}", "", "nonfinite", "\"reject\"|\"skip_update\"|\"propagate\"", "null|0|[]|{}|true",
     "\"skip\"|\"\""},
    {CONFIG, "{", "}", "", "single_value", "\"reject\"|\"beta\"", "null|0|[]|{}|true", "\"gamma\"|\"\""},
    {PATCH, "{", "}", "", "momentum", "null|0|1|0.1", "\"0.1\"|[]|{}|true", "-0.1|1.1"},
    {PATCH, "{", "}", "", "eps", "1|1e-5", "null|\"1\"|[]|{}|true", "0|-1"},
    {PATCH, "{", "}", "", "nonfinite", "\"reject\"|\"skip_update\"|\"propagate\"", "null|0|[]|{}|true", "\"skip\""},
    {PATCH, "{", "}", "", "single_value", "\"reject\"|\"beta\"", "null|0|[]|{}|true", "\"gamma\""},
    {TRAIN, "{", "}", "", "x", "[[1]]|[]|{\"shape\":[1,1],\"data\":[1]}", "1|null|\"a\"|true", ""},
    {TRAIN, "{" X ",", "}", "", "cache", "true|false", "null|0|\"true\"|[]|{}", ""},
    {TRAIN, "{" X ",", "}", "", "channel_axis", "-8|-1|0|7|1.0|-0.0", "null|1.5|\"1\"|[]|{}|true", "8|-9|1e300"},
    {TRAIN, "{" X ",", "}", "", "activation", "\"relu\"", "null|0|true|[]|{}", "\"none\"|\"ReLU\"|\"gelu\"|\"\""},
    {TRAIN, "{" X ",", "}", "", "residual", "[[1]]|[]|{\"shape\":[1,1],\"data\":[1]}", "1|null|\"a\"|true", ""},
    {INFERENCE, "{", "}", "", "x", "[[1]]|[]", "1|null|\"a\"|true", ""},
    {INFERENCE, "{" X ",", "}", "", "channel_axis", "-8|-1|0|7|1.0|-0.0", "null|1.5|\"1\"|[]|{}|true", "8|-9|1e300"},
    {INFERENCE, "{" X ",", "}", "", "activation", "\"relu\"", "null|0|true|[]|{}", "\"none\"|\"ReLU\"|\"gelu\"|\"\""},
    {INFERENCE, "{" X ",", "}", "", "residual", "[[1]]|[]|{\"shape\":[1,1],\"data\":[1]}", "1|null|\"a\"|true", ""},
    {BACKWARD, "{" DOUT ",", "}", "", "x", "[[1]]|[]", "1|null|\"a\"|true", ""},
    {BACKWARD, "{" X ",", "}", "", "dout", "[[1]]|[]", "1|null|\"a\"|true", ""},
    {BACKWARD, "{" DOUT ",", "}", "", "cache", "\"a\"|\"0123456789abcdef\"", "null|1|true|[]|{}", "\"\""},
    {BACKWARD, "{" X "," DOUT ",", "}", "", "channel_axis", "-8|-1|0|7|1.0|-0.0", "null|1.5|\"1\"|[]|{}|true",
     "8|-9|1e300"},
    {BACKWARD, "{" X "," DOUT ",", "}", "", "mode", "\"train\"|\"inference\"", "null|1|true|[]|{}", "\"eval\"|\"\""},
    {BACKWARD, "{" X "," DOUT ",", "}", "", "activation", "\"relu\"", "null|0|true|[]|{}",
     "\"none\"|\"ReLU\"|\"gelu\"|\"\""},
    {BACKWARD, "{" X "," DOUT ",", "}", "", "residual", "[[1]]|[]|{\"shape\":[1,1],\"data\":[1]}", "1|null|\"a\"|true",
     ""},
    {BACKWARD, "{" X "," DOUT ",", "}", "", "step", "{\"lr\":1}|{\"weight_decay\":0,\"lr\":1}", "null|1|true|[]|\"a\"",
     ""},
    {BACKWARD, "{" X "," DOUT ",\"step\":{", "}}", "/step", "lr", "0|0.1|1|-1|1e300", "null|\"1\"|true|[]|{}", ""},
    {BACKWARD, "{" X "," DOUT ",\"step\":{\"lr\":1,", "}}", "/step", "weight_decay", "0|0.1|1|-1",
     "null|\"1\"|true|[]|{}", ""},
    {STATE, "{", "}", "", "gamma", "null|[]|[1,-2]|[\"NaN\"]", "1|true|\"a\"|{}", ""},
    {STATE, "{", "}", "", "beta", "null|[]|[1,-2]", "1|true|\"a\"|{}", ""},
    {STATE, "{", "}", "", "running_mean", "null|[]|[1,-2]", "1|true|\"a\"|{}", ""},
    {STATE, "{", "}", "", "running_var", "null|[]|[1,-2]", "1|true|\"a\"|{}", ""},
    {STATE, "{", "}", "", "num_batches_tracked", "null|0|1|9007199254740993|9223372036854775807|2.0|1e3",
     "1.5|\"1\"|true|[]|{}", "-1|-9223372036854775808"},
    {STATE, "{", "}", "", "layer", "{}|{\"num_features\":3}", "null|1|\"a\"|true|[]", ""},
    {STATE, "{\"layer\":{", "}}", "/layer", "num_features", "1", "null|1.5", "0"},
    {STATE, "{", "}", "", "version", "1|null|\"any\"", "", ""},
    {SNAPSHOT, "{", "}", "", "layers", "{}|{\"a\":{}}", "null|1|\"a\"|true|[]", ""},
    {SNAPSHOT, "{\"layers\":{", "}}", "/layers", "a", "{}|{\"gamma\":null}", "null|1|\"a\"|true|[]", ""},
    {SNAPSHOT, "{\"layers\":{\"b\":{},\"a.b\":{", "}}}", "/layers/a.b", "gamma", "null|[1]", "1|{}", ""},
    {SNAPSHOT, "{\"layers\":{\"a\":{", "}}}", "/layers/a", "num_batches_tracked", "null|7", "1.5|\"a\"", "-1"},
    {SNAPSHOT, "{\"layers\":{\"a\":{\"layer\":{", "}}}}", "/layers/a/layer", "eps", "1", "null", "0"},
};

// Calls each with every value of the list in a body.
static void each_value(const struct field *field, const char *list, enum msg_code code) {
    char values[200], *at = NULL;
    snprintf(values, sizeof values, "%s", list);
    for (char *value = strtok_r(values, "|", &at); value != NULL; value = strtok_r(NULL, "|", &at)) {
        char text[400], pointer[100];
        snprintf(text, sizeof text, "%s\"%s\":%s%s", field->before, field->name, value, field->after);
        snprintf(pointer, sizeof pointer, "%s/%s", field->parent, field->name);
        expect_error(field->kind, text, code, code != MSG_OK ? pointer : NULL);
    }
}

static void test_field_values(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(fields); i++) {
        each_value(&fields[i], fields[i].good, MSG_OK);
        each_value(&fields[i], fields[i].outside, MSG_OUT_OF_RANGE);
        const bool tensor = strcmp(fields[i].name, "x") == 0 || strcmp(fields[i].name, "dout") == 0 ||
                            strcmp(fields[i].name, "residual") == 0;
        each_value(&fields[i], fields[i].wrong, MSG_WRONG_TYPE);
        if (tensor) each_value(&fields[i], "[1]", MSG_SHAPE_MISMATCH);
    }
}

// Twice, as written and with the name escaped, and beside a field that is not there.
static void test_fields_twice(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(fields); i++) {
        const struct field *const field = &fields[i];
        char value[200], text[600], pointer[100];
        snprintf(value, sizeof value, "%.*s", (int)strcspn(field->good, "|"), field->good);
        snprintf(pointer, sizeof pointer, "%s/%s", field->parent, field->name);
        // Within a configuration or a step the pointer is that of the whole.
        const size_t length = strlen(field->parent);
        const bool inner =
            (length >= 6 && strcmp(field->parent + length - 6, "/layer") == 0) || strcmp(field->parent, "/step") == 0;
        const char *const expected = inner ? field->parent : pointer;
        snprintf(text, sizeof text, "%s\"%s\":%s,\"%s\":%s%s", field->before, field->name, value, field->name, value,
                 field->after);
        expect_error(field->kind, text, MSG_DUPLICATE_FIELD, expected);
        snprintf(text, sizeof text, "%s\"%s\":%s,\"\\u%04x%s\":%s%s", field->before, field->name, value, field->name[0],
                 field->name + 1, value, field->after);
        expect_error(field->kind, text, MSG_DUPLICATE_FIELD, expected);
        if (field->kind == SNAPSHOT && strcmp(field->parent, "/layers") == 0) continue; // there any name is one
        snprintf(text, sizeof text, "%s\"%s\":%s,\"%s_\":%s%s", field->before, field->name, value, field->name, value,
                 field->after);
        snprintf(pointer, sizeof pointer, "%s/%s_", field->parent, field->name);
        expect_error(field->kind, text, MSG_UNKNOWN_FIELD, pointer);
    }
}

static void test_unknown_fields(void **state) {
    (void)state;
    static const char *const bases[KINDS] = {"\"num_features\":1", "\"eps\":1",    X, X, X "," DOUT,
                                             "\"gamma\":null",     "\"layers\":{}"};
    static const char *const names[] = {"",        "X",       "Eps", "a/b~c", "dou", "\\u0000", "gamma\\u0000",
                                        "\\ud800", "layers2", "name"};
    static const char *const pointers[] = {
        "/",        "/X",   "/Eps", "/a~1b~0c", "/dou", "/\xef\xbf\xbd", "/gamma\xef\xbf\xbd", "/\xef\xbf\xbd",
        "/layers2", "/name"};
    static const char *const values[] = {"1", "null", "[[1,2],[3]]", "{\"a\":[{}]}", "\"x\"", "[]"};
    for (size_t kind = 0; kind < KINDS; kind++) {
        for (size_t i = 0; i < COUNT(names); i++) {
            for (size_t v = 0; v < COUNT(values); v++) {
                char text[200];
                snprintf(text, sizeof text, "{%s,\"%s\":%s}", bases[kind], names[i], values[v]);
                expect_error((enum kind)kind, text, MSG_UNKNOWN_FIELD, pointers[i]);
            }
        }
    }
    // A tensor of one call is no field of another.
    expect_error(TRAIN, "{" X "," DOUT "}", MSG_UNKNOWN_FIELD, "/dout");
    expect_error(INFERENCE, "{" X ",\"cache\":true}", MSG_UNKNOWN_FIELD, "/cache");
    expect_error(TRAIN, "{" X ",\"mode\":\"train\"}", MSG_UNKNOWN_FIELD, "/mode");
    expect_error(TRAIN, "{" X ",\"step\":{\"lr\":1}}", MSG_UNKNOWN_FIELD, "/step");
}

// A long name of no field, cut within a character: unknown, not malformed.
static void test_long_unknown_fields(void **state) {
    (void)state;
    for (size_t before = 150; before < 170; before++) {
        char name[400] = "", text[500];
        memset(name, 'a', before);
        strcpy(name + before, "\xc3\xa9\xe2\x82\xac tail");
        snprintf(text, sizeof text, "{" X ",\"%s\":1}", name);
        struct decoded d = decode(TRAIN, text, strlen(text));
        if (d.error.code != MSG_UNKNOWN_FIELD)
            fail_msg("%zu bytes before: %s (%s)", before, msg_codes[d.error.code].name, d.error.detail);
        release(&d);
    }
}

// What is not tensors may take 64 KiB, in calls and in each layer of a snapshot; tensors may take what they like.
static void test_big_rest(void **state) {
    (void)state;
    static const struct {
        const char *before, *after;
        enum msg_code code; // of what still fits
    } rows[KINDS] = {
        {"{\"convention\":\"", "\"}", MSG_OUT_OF_RANGE},          {"{\"nonfinite\":\"", "\"}", MSG_OUT_OF_RANGE},
        {"{" X ",\"cache\":\"", "\"}", MSG_WRONG_TYPE},           {"{" X ",\"channel_axis\":\"", "\"}", MSG_WRONG_TYPE},
        {"{" X "," DOUT ",\"mode\":\"", "\"}", MSG_OUT_OF_RANGE}, {"{\"gamma\":null,\"version\":\"", "\"}", MSG_OK},
        {"{\"layers\":{\"a\":{\"version\":\"", "\"}}}", MSG_OK}};
    char *const text = malloc(JSON_REST_MAX * 2);
    assert_non_null(text);
    for (size_t kind = 0; kind < KINDS; kind++) {
        for (int over = 0; over < 2; over++) {
            char *at = stpcpy(text, rows[kind].before);
            const char *const colon = strrchr(text, ':');
            size_t quoted = 2; // of the name, with its quotes
            for (const char *c = colon - 2; *c != '"'; c--) quoted++;
            const size_t fill = JSON_REST_MAX - quoted - 2 + (size_t)over;
            memset(at, 'k', fill);
            at = stpcpy(at + fill, rows[kind].after);
            struct decoded d = decode((enum kind)kind, text, (size_t)(at - text));
            const enum msg_code expected = over ? MSG_BODY_TOO_LARGE : rows[kind].code;
            if (d.error.code != expected) fail_msg("kind %zu: %s", kind, msg_codes[d.error.code].name);
            release(&d);
        }
    }
    char *at = stpcpy(text, "{\"x\":[["); // a long tensor is no rest
    for (size_t i = 0; i < JSON_REST_MAX / 2; i++) at = stpcpy(at, i > 0 ? ",1" : "1");
    at = stpcpy(at, "]]}");
    struct decoded d = decode(INFERENCE, text, (size_t)(at - text));
    assert_true(d.ok);
    assert_int_equal(d.call.x.count, JSON_REST_MAX / 2);
    release(&d);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_field_values, fresh_budget),
        cmocka_unit_test_setup(test_fields_twice, fresh_budget),
        cmocka_unit_test_setup(test_unknown_fields, fresh_budget),
        cmocka_unit_test_setup(test_long_unknown_fields, fresh_budget),
        cmocka_unit_test_setup(test_big_rest, fresh_budget),
    };
    return cmocka_run_group_tests_name("json_fields", tests, NULL, NULL);
}
