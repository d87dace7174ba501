// SPDX-License-Identifier: Apache-2.0
//
// Infer requests of the Open Inference Protocol: JSON and binary inputs, raw ones, parameters, outputs, every refusal
// with its place, truncations, memory.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/oip.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static struct budget budget = {.limit = 1 << 22};

static int fresh_budget(void **state) {
    (void)state;
    budget.used = 0;
    budget.limit = 1 << 22;
    return 0;
}

// ---- requests

struct decoded {
    struct msg_call call;
    enum msg_call_kind kind;
    struct msg_error error;
    bool ok;
};

static struct msg_config layer_of(int64_t channels, enum bn_dtype dtype, int64_t axis) {
    return (struct msg_config){.num_features = channels, .dtype = (int)dtype, .channel_axis = axis};
}

// A body that stands `start` bytes into its buffer, and ends with it, for sanitizers.
static struct decoded decode_on(const struct msg_config *layer, size_t start, const char *json, const void *data,
                                size_t size, const uint64_t *header) {
    struct buffer body = {.budget = &budget};
    const size_t length = strlen(json);
    char junk[64] = {0};
    assert_true(buffer_reserve(&body, start + length + size));
    assert_true(buffer_append(&body, junk, start) && buffer_append(&body, json, length));
    assert_true(buffer_append(&body, data, size));
    const struct oip_request request = {.body = &body,
                                        .start = start,
                                        .has_header = header != NULL,
                                        .header = header != NULL ? *header : 0,
                                        .budget = &budget,
                                        .model = "m",
                                        .layer = layer};
    struct decoded d = {.ok = false};
    d.ok = oip_decode(&d.call, &d.kind, &request, &d.error);
    assert_int_equal(d.ok, d.error.code == MSG_OK);
    assert_int_equal(body.capacity, 0); // taken over
    oip_place_error(&d.error, &d.call.infer);
    return d;
}

static struct decoded decode(const char *json) {
    const struct msg_config layer = layer_of(2, BN_F32, 1);
    return decode_on(&layer, 0, json, NULL, 0, NULL);
}

static struct decoded decode_binary(const char *json, const void *data, size_t size, enum bn_dtype dtype) {
    const struct msg_config layer = layer_of(2, dtype, 1);
    const uint64_t header = strlen(json);
    return decode_on(&layer, oip_padding(header), json, data, size, &header);
}

static void release(struct decoded *d) {
    msg_call_free(&d->call);
    assert_int_equal(budget.used, 0);
}

static void expect_error(struct decoded d, enum msg_code code, const char *pointer, const char *word,
                         const char *what) {
    const bool placed =
        pointer == NULL ? !d.error.has_pointer : d.error.has_pointer && strcmp(d.error.pointer, pointer) == 0;
    if (d.error.code != code || !placed || (word != NULL && strstr(d.error.detail, word) == NULL))
        fail_msg("%s: %s at \"%s\" (%s), expected %s at \"%s\" with \"%s\"", what, msg_codes[d.error.code].name,
                 d.error.pointer, d.error.detail, msg_codes[code].name, pointer != NULL ? pointer : "",
                 word != NULL ? word : "");
    release(&d);
}

static double value_of(const struct tensor *t, size_t i) {
    float f32;
    double f64;
    if (t->dtype == BN_F64) {
        memcpy(&f64, t->values.data + i * sizeof f64, sizeof f64);
        return f64;
    }
    memcpy(&f32, t->values.data + i * sizeof f32, sizeof f32);
    return (double)f32;
}

static void expect_values(const struct tensor *t, const double *values, size_t n) {
    assert_int_equal(t->count, n);
    assert_true(t->present);
    for (size_t i = 0; i < n; i++) {
        if (value_of(t, i) != values[i]) fail_msg("value %zu is %.17g, not %.17g", i, value_of(t, i), values[i]);
    }
}

static const double four[] = {1, 2.5, -0.75, 4};

// ---- JSON

static void test_json(void **state) {
    (void)state;
    static const struct {
        const char *json;
        enum wire_dtype wire;
        enum tensor_form form;
    } rows[] = {
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[2,2],\"datatype\":\"FP32\",\"data\":[1,2.5,-0.75,4]}]}", WIRE_F32,
         TENSOR_FLAT},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[2,2],\"datatype\":\"FP32\",\"data\":[[1,2.5],[-0.75,4]]}]}", WIRE_F32,
         TENSOR_NESTED},
        {" {\"inputs\" : [ { \"data\":[[1,2.5],[-0.75,4]] , \"datatype\":\"FP64\",\"shape\":[2,2.0],\"name\":\"x\" } ] "
         "} ",
         WIRE_F64, TENSOR_NESTED},
        {"{\"inputs\":[{\"shape\":[2,2],\"data\":[1,2.5,-7.5e-1,4],\"datatype\":\"FP16\",\"name\":\"\\u0078\"}]}",
         WIRE_F16, TENSOR_FLAT},
        {"{\"id\":\"\",\"parameters\":{},\"outputs\":[],\"inputs\":[{\"name\":\"x\",\"shape\":[2,2],"
         "\"datatype\":\"BF16\",\"parameters\":{},\"data\":[1,2.5,-0.75,4]}]}",
         WIRE_BF16, TENSOR_FLAT},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        for (int dtype = BN_F32; dtype <= BN_F64; dtype++) {
            const struct msg_config layer = layer_of(2, (enum bn_dtype)dtype, 1);
            struct decoded d = decode_on(&layer, 0, rows[i].json, NULL, 0, NULL);
            if (!d.ok) fail_msg("%s: %s", rows[i].json, d.error.detail);
            assert_int_equal(d.kind, MSG_INFERENCE);
            assert_int_equal(d.call.x.rank, 2);
            assert_int_equal(d.call.x.dim[0], 2);
            assert_int_equal(d.call.x.wire, rows[i].wire);
            assert_int_equal(d.call.x.dtype, dtype);
            assert_int_equal(d.call.x.form, rows[i].form);
            assert_int_equal(d.call.x.first_nonfinite, 4);
            assert_true(d.call.infer.inputs[MSG_INPUT_X].in_json);
            assert_int_equal(d.call.body.capacity, 0); // nothing lies in it
            expect_values(&d.call.x, four, 4);
            release(&d);
        }
    }
}

// Each number is rounded to the datatype, then to the layer's.
static void test_json_rounding(void **state) {
    (void)state;
    static const struct {
        const char *datatype;
        enum bn_dtype dtype;
        const char *number;
        double value;
    } rows[] = {
        {"FP32", BN_F32, "0.1", (double)0.1f},
        {"FP32", BN_F64, "0.1", (double)0.1f},
        {"FP64", BN_F32, "0.1", (double)0.1f},
        {"FP64", BN_F64, "0.1", 0.1},
        {"FP16", BN_F32, "0.1", 0x1.998p-4},
        {"FP16", BN_F64, "0.1", 0x1.998p-4},
        {"FP16", BN_F32, "65519", 65504},
        {"BF16", BN_F32, "0.1", 0x1.9ap-4},
        {"FP16", BN_F32, "1.00048828125", 1},                    // a tie, to even
        {"FP16", BN_F32, "1.000488281250000001", 1},             // within half a unit of f64
        {"FP16", BN_F32, "1.0004882812500002221", 1.0009765625}, // above it: once through f32 it would be the tie
        {"FP16", BN_F64, "1e-9", 0},
        {"FP32", BN_F32, "\"NaN\"", NAN},
        {"FP16", BN_F64, "\"-Infinity\"", -INFINITY},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char json[200];
        snprintf(json, sizeof json,
                 "{\"inputs\":[{\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"%s\",\"data\":[1,%s]}]}",
                 rows[i].datatype, rows[i].number);
        const struct msg_config layer = layer_of(2, rows[i].dtype, 1);
        struct decoded d = decode_on(&layer, 0, json, NULL, 0, NULL);
        if (!d.ok) fail_msg("%s: %s", json, d.error.detail);
        const double got = value_of(&d.call.x, 1);
        if (isnan(rows[i].value) ? !isnan(got) : got != rows[i].value) fail_msg("%s: %.17g", json, got);
        assert_int_equal(d.call.x.first_nonfinite, isfinite(rows[i].value) ? 2 : 1);
        release(&d);
    }
}

// More than is converted at a time.
static void test_json_long(void **state) {
    (void)state;
    char *json = NULL;
    size_t size = 0;
    FILE *const file = open_memstream(&json, &size);
    fprintf(file, "{\"inputs\":[{\"name\":\"x\",\"shape\":[2000,2],\"datatype\":\"FP64\",\"data\":[");
    for (int i = 0; i < 4000; i++) fprintf(file, "%s%d.5", i > 0 ? "," : "", i);
    fprintf(file, "]}]}");
    fclose(file);
    struct decoded d = decode(json);
    assert_true(d.ok);
    for (size_t i = 0; i < 4000; i++) assert_true(value_of(&d.call.x, i) == (double)i + 0.5);
    release(&d);
    char *const at = strstr(json, ",3000.5");
    memcpy(at, ",1e39  ", 7);
    expect_error(decode(json), MSG_OVERFLOW, "/inputs/0/data/3000", "FP64", "late overflow");
    free(json);
}

// ---- binary

#define INPUT(name, shape, datatype, size)                                                                             \
    "{\"name\":\"" name "\",\"shape\":" shape ",\"datatype\":\"" datatype                                              \
    "\",\"parameters\":{\"binary_data_size\":" size "}}"
#define MODE(word) "\"parameters\":{\"mode\":\"" word "\"},"

static bool in_body(const struct msg_call *call, const struct tensor *tensor) {
    const unsigned char *const at = tensor->values.data, *const body = call->body.data;
    return body != NULL && at >= body && at < body + call->body.capacity;
}

// Aligned by what stands before the request, a tensor stays where it arrived.
static void test_binary_in_place(void **state) {
    (void)state;
    static const float f32[] = {1, 2.5f, -0.75f, 4};
    const char *const jsons[] = {"{\"inputs\":[" INPUT("x", "[2,2]", "FP32", "16") "]}",
                                 "{\"inputs\":[" INPUT("x", "[2,2]", "FP32", "16") "]} ",
                                 "{\"id\":\"abc\",\"inputs\":[" INPUT("x", "[2,2]", "FP32", "16") "]}"};
    for (size_t i = 0; i < COUNT(jsons); i++) {
        struct decoded d = decode_binary(jsons[i], f32, sizeof f32, BN_F32);
        if (!d.ok) fail_msg("%s", d.error.detail);
        expect_values(&d.call.x, four, 4);
        assert_true(in_body(&d.call, &d.call.x));
        assert_int_equal((uintptr_t)d.call.x.values.data % BUFFER_ALIGNMENT, 0);
        assert_int_equal(d.call.x.values.data - d.call.body.data, oip_padding(strlen(jsons[i])) + strlen(jsons[i]));
        assert_false(d.call.infer.inputs[MSG_INPUT_X].in_json);
        release(&d);
    }
    for (uint64_t header = 0; header < 200; header++) assert_int_equal((oip_padding(header) + header) % 64, 0);
}

// At any place in the buffer, of any type, on either layer.
static void test_binary_types(void **state) {
    (void)state;
    static const float f32[] = {1, 2.5f, -0.75f, 4};
    static const uint16_t f16[] = {0x3c00, 0x4100, 0xba00, 0x4400}, bf16[] = {0x3f80, 0x4020, 0xbf40, 0x4080};
    static const struct {
        const char *json;
        const void *data;
        size_t size;
    } rows[] = {{"{\"inputs\":[" INPUT("x", "[2,2]", "FP32", "16") "]}", f32, sizeof f32},
                {"{\"inputs\":[" INPUT("x", "[2,2]", "FP64", "32") "]}", four, sizeof four},
                {"{\"inputs\":[" INPUT("x", "[2,2]", "FP16", "8") "]}", f16, sizeof f16},
                {"{\"inputs\":[" INPUT("x", "[2,2]", "BF16", "8") "]}", bf16, sizeof bf16}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        for (size_t start = 0; start < 16; start++) {
            for (int dtype = BN_F32; dtype <= BN_F64; dtype++) {
                const struct msg_config layer = layer_of(2, (enum bn_dtype)dtype, 1);
                const uint64_t header = strlen(rows[i].json);
                struct decoded d = decode_on(&layer, start, rows[i].json, rows[i].data, rows[i].size, &header);
                if (!d.ok) fail_msg("%s: %s", rows[i].json, d.error.detail);
                expect_values(&d.call.x, four, 4);
                assert_int_equal((uintptr_t)d.call.x.values.data % bn_dtype_size((enum bn_dtype)dtype), 0);
                release(&d);
            }
        }
    }
}

// Binary and JSON inputs side by side; binary ones follow each other in the order of `inputs`.
static void test_mixed(void **state) {
    (void)state;
    static const double dout[] = {5, 6, 7, 8};
    static const float x[] = {1, 2.5f, -0.75f, 4};
    unsigned char data[sizeof dout + sizeof x];
    memcpy(data, dout, sizeof dout);
    memcpy(data + sizeof dout, x, sizeof x);
    struct decoded d = decode_binary(
        "{" MODE("backward") "\"inputs\":[" INPUT(
            "dout", "[2,2]", "FP64",
            "32") ","
                  "{\"name\":\"residual\",\"shape\":[2,2],\"datatype\":\"FP16\",\"data\":[1,2,3,4]}," INPUT(
                      "x", "[2,2]", "FP32", "16") "]}",
        data, sizeof data, BN_F32);
    if (!d.ok) fail_msg("%s", d.error.detail);
    assert_int_equal(d.kind, MSG_BACKWARD);
    expect_values(&d.call.dout, dout, 4);
    expect_values(&d.call.x, four, 4);
    expect_values(&d.call.residual, (const double[]){1, 2, 3, 4}, 4);
    assert_int_equal(d.call.infer.inputs[MSG_INPUT_X].index, 2);
    assert_int_equal(d.call.infer.inputs[MSG_INPUT_RESIDUAL].index, 1);
    assert_true(d.call.infer.inputs[MSG_INPUT_RESIDUAL].in_json);
    release(&d);
}

static void test_empty(void **state) {
    (void)state;
    struct decoded d = decode("{\"inputs\":[{\"name\":\"x\",\"shape\":[0,2],\"datatype\":\"FP32\",\"data\":[]}]}");
    assert_true(d.ok && d.call.x.present && d.call.x.count == 0 && d.call.x.rank == 2);
    release(&d);
    d = decode("{\"inputs\":[{\"name\":\"x\",\"shape\":[3,2,0],\"datatype\":\"FP64\",\"data\":[[],[],[]]}]}");
    assert_true(d.ok && d.call.x.present && d.call.x.count == 0 && d.call.x.rank == 3);
    release(&d);
    d = decode_binary("{\"inputs\":[" INPUT("x", "[0,2]", "FP32", "0") "]}", NULL, 0, BN_F32);
    assert_true(d.ok && d.call.x.present && d.call.x.count == 0 && d.call.x.first_nonfinite == 0);
    release(&d);
}

// A pass that is kept holds no more than its elements.
static void test_kept(void **state) {
    (void)state;
    static double values[40000];
    struct decoded d = decode_binary("{\"parameters\":{\"mode\":\"train-forward\",\"cache\":true},\"inputs\":[" INPUT(
                                         "x", "[20000,2]", "FP64", "320000") "]}",
                                     values, sizeof values, BN_F32);
    assert_true(d.ok && d.call.keep && d.kind == MSG_TRAIN_FORWARD);
    assert_true(d.call.body.capacity < sizeof values / 2 + 1000);
    assert_true(in_body(&d.call, &d.call.x));
    release(&d);
}

// ---- raw

static void test_raw(void **state) {
    (void)state;
    static const struct {
        int64_t axis;
        enum bn_dtype dtype;
        size_t bytes, dim[2];
        enum msg_code code;
    } rows[] = {
        {1, BN_F32, 24, {2, 3}, MSG_OK},           {-1, BN_F32, 24, {2, 3}, MSG_OK},
        {0, BN_F32, 24, {3, 2}, MSG_OK},           {-2, BN_F32, 24, {3, 2}, MSG_OK},
        {1, BN_F64, 48, {2, 3}, MSG_OK},           {1, BN_F32, 0, {0, 3}, MSG_OK},
        {1, BN_F32, 25, {0}, MSG_MALFORMED_FILE},  {1, BN_F32, 20, {0}, MSG_MALFORMED_FILE},
        {1, BN_F64, 12, {0}, MSG_MALFORMED_FILE},  {2, BN_F32, 24, {0}, MSG_SHAPE_MISMATCH},
        {-3, BN_F32, 24, {0}, MSG_SHAPE_MISMATCH},
    };
    const uint64_t header = 0;
    unsigned char data[64] = {0};
    for (size_t i = 0; i < COUNT(rows); i++) {
        const struct msg_config layer = layer_of(3, rows[i].dtype, rows[i].axis);
        struct decoded d = decode_on(&layer, 0, "", data, rows[i].bytes, &header);
        if (d.error.code != rows[i].code) fail_msg("row %zu: %s", i, d.error.detail);
        assert_false(d.error.has_pointer);
        if (d.ok) {
            assert_memory_equal(d.call.x.dim, rows[i].dim, sizeof rows[i].dim);
            assert_int_equal(d.call.x.count, rows[i].dim[0] * rows[i].dim[1]);
            assert_int_equal(d.kind, MSG_INFERENCE);
            assert_true(d.call.infer.outputs[0].binary && d.call.infer.output_count == 1);
        }
        release(&d);
    }
}

// ---- parameters and outputs

#define X "{\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":[1,2]}"
#define DOUT "{\"name\":\"dout\",\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":[1,2]}"

static void test_parameters(void **state) {
    (void)state;
    struct decoded d = decode("{\"parameters\":{\"mode\":\"train-forward\",\"cache\":true,\"channel_axis\":-1,"
                              "\"activation\":\"relu\",\"timeout\":250,\"priority\":0,\"sequence_id\":\"\","
                              "\"sequence_start\":false,\"sequence_end\":false},\"inputs\":[" X "]}");
    if (!d.ok) fail_msg("%s", d.error.detail);
    assert_int_equal(d.kind, MSG_TRAIN_FORWARD);
    assert_true(d.call.keep && d.call.has_channel_axis && d.call.channel_axis == -1);
    assert_int_equal(d.call.activation, BN_RELU);
    assert_int_equal(d.call.infer.timeout_us, 250);
    release(&d);
    d = decode("{\"parameters\":{\"mode\":\"backward\",\"cache\":\"abc\",\"frozen\":true,\"lr\":0.5,"
               "\"weight_decay\":2},\"inputs\":[" DOUT "]}");
    if (!d.ok) fail_msg("%s", d.error.detail);
    assert_int_equal(d.call.mode, MSG_MODE_INFERENCE);
    assert_true(d.call.has_step && d.call.lr == 0.5 && d.call.weight_decay == 2);
    assert_string_equal(d.call.cache, "abc");
    release(&d);
    d = decode("{\"inputs\":[" X "]}");
    assert_true(d.ok && d.kind == MSG_INFERENCE && !d.call.has_channel_axis && !d.call.keep && !d.call.has_step);
    assert_int_equal(d.call.activation, BN_IDENTITY);
    assert_int_equal(d.call.mode, MSG_MODE_TRAIN);
    release(&d);
}

static void test_outputs(void **state) {
    (void)state;
    static const struct {
        const char *members;
        size_t count;
        enum msg_output names[4];
        bool binary[4], chosen;
    } rows[] = {
        {"", 1, {MSG_Y}, {false}, false},
        {"\"outputs\":[],\"parameters\":{\"binary_data_output\":true},", 1, {MSG_Y}, {true}, false},
        {MODE("train-forward"), 3, {MSG_Y, MSG_BATCH_MEAN, MSG_BATCH_VAR}, {false}, false},
        {"\"outputs\":[{\"name\":\"batch_var\",\"parameters\":{\"binary_data\":true}},{\"name\":\"y\"}]," MODE(
             "train-forward"),
         2,
         {MSG_BATCH_VAR, MSG_Y},
         {true, false},
         true},
        {"\"outputs\":[{\"name\":\"y\",\"parameters\":{\"binary_data\":false}},{\"name\":\"batch_mean\"}],"
         "\"parameters\":{\"mode\":\"train-forward\",\"binary_data_output\":true},",
         2,
         {MSG_Y, MSG_BATCH_MEAN},
         {false, true},
         true},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char json[500];
        snprintf(json, sizeof json, "{%s\"inputs\":[" X "]}", rows[i].members);
        struct decoded d = decode(json);
        if (!d.ok) fail_msg("%s: %s", json, d.error.detail);
        assert_int_equal(d.call.infer.output_count, rows[i].count);
        assert_int_equal(d.call.infer.chosen, rows[i].chosen);
        for (size_t k = 0; k < rows[i].count; k++) {
            assert_int_equal(d.call.infer.outputs[k].name, rows[i].names[k]);
            assert_int_equal(d.call.infer.outputs[k].binary, rows[i].binary[k]);
        }
        release(&d);
    }
}

static void test_id(void **state) {
    (void)state;
    static const char *const ids[][2] = {{"\"a\"", "\"a\""},
                                         {"\"\"", "\"\""},
                                         {"\"\\u0041\\n\\\"\\\\\"", "\"A\\n\\\"\\\\\""},
                                         {"\"\xc3\xa9\"", "\"\xc3\xa9\""},
                                         {"\"a\\u0000b\"", "\"a\\u0000b\""}};
    for (size_t i = 0; i < COUNT(ids); i++) {
        char json[300];
        snprintf(json, sizeof json, "{\"id\":%s,\"inputs\":[" X "]}", ids[i][0]);
        struct decoded d = decode(json);
        assert_true(d.ok);
        assert_string_equal(d.call.infer.id, ids[i][1]);
        release(&d);
    }
    char json[700], longest[MSG_ID_MAX] = "";
    memset(longest, 'x', MSG_ID_MAX - 2);
    snprintf(json, sizeof json, "{\"id\":\"%s\",\"inputs\":[" X "]}", longest);
    struct decoded d = decode(json);
    assert_true(d.ok && strlen(d.call.infer.id) == MSG_ID_MAX);
    release(&d);
    snprintf(json, sizeof json, "{\"id\":\"%sx\",\"inputs\":[" X "]}", longest);
    expect_error(decode(json), MSG_OUT_OF_RANGE, "/id", "256", "long id");
}

// ---- refusals

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *json;
        enum msg_code code;
        const char *pointer, *word;
    } rows[] = {
        {"", MSG_MALFORMED_JSON, NULL, "byte 0"},
        {"[]", MSG_NOT_AN_OBJECT, NULL, NULL},
        {"{", MSG_MALFORMED_JSON, NULL, NULL},
        {"{\"inputs\":[" X "]}x", MSG_MALFORMED_JSON, NULL, NULL},
        {"{\"inputs\":[" X ",]}", MSG_MALFORMED_JSON, NULL, NULL},
        {"{\"inputs\":[" X " " X "]}", MSG_MALFORMED_JSON, NULL, NULL},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":[1,NaN]}]}", MSG_MALFORMED_JSON,
         NULL, NULL},
        {"{}", MSG_MISSING_FIELD, "/inputs", "inputs"},
        {"{\"inputs\":[]}", MSG_MISSING_FIELD, "/inputs", "x is missing"},
        {"{\"inputs\":{}}", MSG_WRONG_TYPE, "/inputs", "array"},
        {"{\"inputs\":[" X "],\"inputs\":[]}", MSG_DUPLICATE_FIELD, "/inputs", NULL},
        {"{\"inputs\":[1]}", MSG_WRONG_TYPE, "/inputs/0", "object"},
        {"{\"inputs\":[" X "," X "]}", MSG_DUPLICATE_FIELD, "/inputs/1/name", "\"x\""},
        {"{\"inputs\":[" X "," DOUT "]}", MSG_UNKNOWN_FIELD, "/inputs/1/name", "\"dout\""},
        {"{\"inputs\":[" X "," X "," X "," X "]}", MSG_UNKNOWN_FIELD, "/inputs/3", "residual"},
        {"{\"inputs\":[{\"name\":\"z\",\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":[1,2]}]}", MSG_UNKNOWN_FIELD,
         "/inputs/0/name", "\"z\""},
        {"{\"inputs\":[{\"name\":1,\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":[1,2]}]}", MSG_WRONG_TYPE,
         "/inputs/0/name", "string"},
        {"{\"inputs\":[{\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":[1,2]}]}", MSG_MISSING_FIELD, "/inputs/0/name",
         "name"},
        {"{\"inputs\":[{\"name\":\"x\",\"datatype\":\"FP32\",\"data\":[1,2]}]}", MSG_MISSING_FIELD, "/inputs/0/shape",
         "shape"},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[1,2],\"data\":[1,2]}]}", MSG_MISSING_FIELD, "/inputs/0/datatype",
         "datatype"},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"FP32\"}]}", MSG_MISSING_FIELD, "/inputs/0/data",
         "data"},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":[1,2],\"Data\":1}]}",
         MSG_UNKNOWN_FIELD, "/inputs/0/Data", NULL},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[1,2],\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":[1,2]}]}",
         MSG_DUPLICATE_FIELD, "/inputs/0/shape", NULL},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"INT32\",\"data\":[1,2]}]}", MSG_OUT_OF_RANGE,
         "/inputs/0/datatype", "\"INT32\""},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"fp32\",\"data\":[1,2]}]}", MSG_OUT_OF_RANGE,
         "/inputs/0/datatype", "\"fp32\""},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[2],\"datatype\":\"FP32\",\"data\":[1,2]}]}", MSG_SHAPE_MISMATCH,
         "/inputs/0/shape", "1 axes"},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[-1,2],\"datatype\":\"FP32\",\"data\":[1,2]}]}", MSG_OUT_OF_RANGE,
         "/inputs/0/shape/0", NULL},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[1.5,2],\"datatype\":\"FP32\",\"data\":[1,2]}]}", MSG_OUT_OF_RANGE,
         "/inputs/0/shape/0", NULL},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[4294967296,4294967296],\"datatype\":\"FP32\",\"data\":[1]}]}",
         MSG_OUT_OF_RANGE, "/inputs/0/shape", "too many"},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":[1]}]}", MSG_SHAPE_MISMATCH,
         "/inputs/0/data", "1 numbers"},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[2,1],\"datatype\":\"FP32\",\"data\":[[1,2]]}]}", MSG_SHAPE_MISMATCH,
         "/inputs/0/data", "nested"},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[2,2],\"datatype\":\"FP32\",\"data\":[[1,2],[3]]}]}", MSG_RAGGED,
         "/inputs/0/data/1", NULL},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":7}]}", MSG_WRONG_TYPE,
         "/inputs/0/data", "array"},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":[1,\"a\"]}]}", MSG_WRONG_TYPE,
         "/inputs/0/data/1", NULL},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":[1,1e39]}]}", MSG_OVERFLOW,
         "/inputs/0/data/1", NULL},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"FP64\",\"data\":[[1,1e39]]}]}", MSG_OVERFLOW,
         "/inputs/0/data/0/1", "FP64"},
        {"{\"inputs\":[{\"data\":[1,65520],\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"FP16\"}]}", MSG_OVERFLOW,
         "/inputs/0/data/1", "FP16"},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"FP32\",\"parameters\":[],\"data\":[1,2]}]}",
         MSG_WRONG_TYPE, "/inputs/0/parameters", NULL},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"FP32\",\"parameters\":{\"shared_memory_region\":"
         "\"r\"},\"data\":[1,2]}]}",
         MSG_UNKNOWN_FIELD, "/inputs/0/parameters/shared_memory_region", NULL},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"FP32\",\"parameters\":{\"binary_data_size\":8},"
         "\"data\":[1,2]}]}",
         MSG_CONFLICTING_FIELDS, "/inputs/0", "one of"},
        {"{\"inputs\":[" INPUT("x", "[1,2]", "FP32", "-1") "]}", MSG_OUT_OF_RANGE,
         "/inputs/0/parameters/binary_data_size", NULL},
        {"{\"inputs\":[" INPUT("x", "[1,2]", "FP32", "\"8\"") "]}", MSG_WRONG_TYPE,
         "/inputs/0/parameters/binary_data_size", NULL},
        {"{\"inputs\":[" INPUT("x", "[1,2]", "FP32", "8") "]}", MSG_MALFORMED_FILE,
         "/inputs/0/parameters/binary_data_size", "Inference-Header-Content-Length"},
        {"{\"inputs\":[" INPUT("x", "[1,2]", "FP32", "4") "]}", MSG_SHAPE_MISMATCH,
         "/inputs/0/parameters/binary_data_size", "takes 8"},
        {"{\"model\":1,\"inputs\":[" X "]}", MSG_UNKNOWN_FIELD, "/model", NULL},
        {"{\"id\":7,\"inputs\":[" X "]}", MSG_WRONG_TYPE, "/id", "string"},
        {"{\"id\":\"a\",\"id\":\"b\",\"inputs\":[" X "]}", MSG_DUPLICATE_FIELD, "/id", NULL},
        {"{\"model_name\":\"n\",\"inputs\":[" X "]}", MSG_CONFLICTING_FIELDS, "/model_name", "\"m\""},
        {"{\"model_version\":\"2\",\"inputs\":[" X "]}", MSG_CONFLICTING_FIELDS, "/model_version", "\"1\""},
        {"{\"parameters\":[],\"inputs\":[" X "]}", MSG_WRONG_TYPE, "/parameters", "object"},
        {"{\"parameters\":{\"modes\":\"backward\"},\"inputs\":[" X "]}", MSG_UNKNOWN_FIELD, "/parameters/modes", NULL},
        {"{\"parameters\":{\"mode\":\"train\"},\"inputs\":[" X "]}", MSG_OUT_OF_RANGE, "/parameters/mode",
         "\"train-forward\""},
        {"{\"parameters\":{\"mode\":1},\"inputs\":[" X "]}", MSG_WRONG_TYPE, "/parameters/mode", NULL},
        {"{\"parameters\":{\"cache\":true},\"inputs\":[" X "]}", MSG_UNKNOWN_FIELD, "/parameters/cache", NULL},
        {"{\"parameters\":{\"mode\":\"train-forward\",\"cache\":\"a\"},\"inputs\":[" X "]}", MSG_WRONG_TYPE,
         "/parameters/cache", NULL},
        {"{\"parameters\":{\"mode\":\"train-forward\",\"lr\":1},\"inputs\":[" X "]}", MSG_UNKNOWN_FIELD,
         "/parameters/lr", NULL},
        {"{\"parameters\":{\"channel_axis\":9},\"inputs\":[" X "]}", MSG_OUT_OF_RANGE, "/parameters/channel_axis",
         NULL},
        {"{\"parameters\":{\"activation\":\"gelu\"},\"inputs\":[" X "]}", MSG_OUT_OF_RANGE, "/parameters/activation",
         "relu"},
        {"{\"parameters\":{\"timeout\":-1},\"inputs\":[" X "]}", MSG_OUT_OF_RANGE, "/parameters/timeout", NULL},
        {"{\"parameters\":{\"priority\":1},\"inputs\":[" X "]}", MSG_NOT_BUILT, "/parameters/priority", "priorities"},
        {"{\"parameters\":{\"sequence_id\":3},\"inputs\":[" X "]}", MSG_NOT_BUILT, "/parameters/sequence_id",
         "sequences"},
        {"{\"parameters\":{\"triton_x\":3},\"inputs\":[" X "]}", MSG_UNKNOWN_FIELD, "/parameters/triton_x", NULL},
        {"{\"parameters\":{\"binary_data_output\":1},\"inputs\":[" X "]}", MSG_WRONG_TYPE,
         "/parameters/binary_data_output", NULL},
        {"{" MODE("backward") "\"inputs\":[" X "]}", MSG_MISSING_FIELD, "/inputs", "dout"},
        {"{" MODE("backward") "\"inputs\":[" DOUT "]}", MSG_MISSING_FIELD, "/inputs", "cache"},
        {"{\"parameters\":{\"mode\":\"backward\",\"cache\":\"a\"},\"inputs\":[" DOUT "," X "]}", MSG_CONFLICTING_FIELDS,
         "/parameters/cache", NULL},
        {"{\"parameters\":{\"mode\":\"backward\",\"cache\":\"a\",\"activation\":\"relu\"},\"inputs\":[" DOUT "]}",
         MSG_CONFLICTING_FIELDS, "/parameters/activation", NULL},
        {"{\"parameters\":{\"mode\":\"backward\",\"weight_decay\":1},\"inputs\":[" DOUT "," X "]}", MSG_MISSING_FIELD,
         "/parameters/lr", NULL},
        {"{\"outputs\":{},\"inputs\":[" X "]}", MSG_WRONG_TYPE, "/outputs", "array"},
        {"{\"outputs\":[1],\"inputs\":[" X "]}", MSG_WRONG_TYPE, "/outputs/0", "object"},
        {"{\"outputs\":[{}],\"inputs\":[" X "]}", MSG_MISSING_FIELD, "/outputs/0/name", "name"},
        {"{\"outputs\":[{\"name\":\"z\"}],\"inputs\":[" X "]}", MSG_UNKNOWN_FIELD, "/outputs/0/name", "\"z\""},
        {"{\"outputs\":[{\"name\":\"batch_mean\"}],\"inputs\":[" X "]}", MSG_UNKNOWN_FIELD, "/outputs/0/name",
         "\"batch_mean\""},
        {"{\"outputs\":[{\"name\":\"y\"},{\"name\":\"y\"}],\"inputs\":[" X "]}", MSG_DUPLICATE_FIELD, "/outputs/1/name",
         "\"y\""},
        {"{\"outputs\":[{\"name\":\"y\",\"datatype\":\"FP32\"}],\"inputs\":[" X "]}", MSG_UNKNOWN_FIELD,
         "/outputs/0/datatype", NULL},
        {"{\"outputs\":[{\"name\":\"y\",\"parameters\":{\"classification\":2}}],\"inputs\":[" X "]}", MSG_UNKNOWN_FIELD,
         "/outputs/0/parameters/classification", NULL},
        {"{\"outputs\":[{\"name\":\"y\",\"parameters\":{\"binary_data\":1}}],\"inputs\":[" X "]}", MSG_WRONG_TYPE,
         "/outputs/0/parameters/binary_data", NULL},
    };
    for (size_t i = 0; i < COUNT(rows); i++)
        expect_error(decode(rows[i].json), rows[i].code, rows[i].pointer, rows[i].word, rows[i].json);
}

static void test_binary_refusals(void **state) {
    (void)state;
    static const char json[] = "{\"inputs\":[" INPUT("x", "[2,2]", "FP32", "16") "]}";
    static const double wide[] = {1, 2, 1e39, 3};
    const struct msg_config layer = layer_of(2, BN_F32, 1);
    unsigned char data[40] = {0};
    const uint64_t beyond = sizeof json + 100, largest = UINT64_MAX;
    expect_error(decode_binary(json, data, 17, BN_F32), MSG_MALFORMED_FILE, NULL, "1 bytes", "a byte too many");
    expect_error(decode_on(&layer, 0, json, data, 16, &beyond), MSG_MALFORMED_FILE, NULL, "Content-Length", "beyond");
    expect_error(decode_on(&layer, 0, json, data, 16, &largest), MSG_MALFORMED_FILE, NULL, "Content-Length", "largest");
    expect_error(decode_binary("{\"inputs\":[" INPUT("x", "[2,2]", "FP64", "32") "]}", wide, sizeof wide, BN_F32),
                 MSG_OVERFLOW, "/inputs/0", "element 2", "overflow");
}

// Every cut of a good request, in its JSON and in its tensors, with the header that it had and one that follows the cut.
static void test_truncations(void **state) {
    (void)state;
    static const char json[] = "{" MODE("backward") "\"id\":\"a\",\"outputs\":[{\"name\":\"dx\"}],\"inputs\":[" INPUT(
        "dout", "[2,2]", "FP16", "8") "," INPUT("x", "[2,2]", "FP32", "16") "]}";
    const struct msg_config layer = layer_of(2, BN_F32, 1);
    unsigned char data[24] = {0};
    const uint64_t whole = sizeof json - 1;
    char cut[sizeof json] = "";
    for (size_t size = 0; size <= sizeof data; size++) {
        struct decoded d = decode_on(&layer, oip_padding(whole), json, data, size, &whole);
        assert_int_equal(d.error.code, size == sizeof data ? MSG_OK : MSG_MALFORMED_FILE);
        release(&d);
    }
    for (size_t length = 1; length < whole; length++) { // 0 is a raw request
        const uint64_t header = length;
        memcpy(cut, json, length);
        struct decoded d = decode_on(&layer, 3, cut, data, 0, &whole);
        assert_int_equal(d.error.code, MSG_MALFORMED_FILE);
        release(&d);
        d = decode_on(&layer, 3, cut, data, sizeof data, &header);
        assert_false(d.ok);
        release(&d);
        d = decode_on(&layer, 3, json, data, sizeof data, &header); // the header cuts the JSON
        assert_false(d.ok);
        release(&d);
    }
}

// Whatever the budget, there is an answer, and nothing is lost.
static void test_memory(void **state) {
    (void)state;
    static const char json[] =
        "{\"inputs\":[" INPUT("x", "[20,20]", "FP16", "800") ",{\"name\":\"residual\",\"shape\":[1,3],"
                                                             "\"data\":[1,2,3],\"datatype\":\"FP64\"}]}";
    unsigned char data[800] = {0};
    const size_t body = sizeof json + sizeof data + 64;
    bool good = false;
    for (size_t limit = body; limit < body + 4000; limit += 50) {
        budget.limit = limit;
        struct decoded d = decode_binary(json, data, sizeof data, BN_F32);
        if (!d.ok) assert_int_equal(d.error.code, MSG_MEMORY_FULL);
        assert_true(d.ok || !good);
        good = d.ok;
        release(&d);
    }
    assert_true(good);
}

// ---- places

static void test_places(void **state) {
    (void)state;
    static const struct {
        const char *from, *to, *detail;
    } rows[] = {
        {"/x", "/inputs/2", "d"},
        {"/x/data/5", "/inputs/2/data/5", "d"},
        {"/x/1/0", "/inputs/2/data/1/0", "d"},
        {"/dout/data/5", "/inputs/0", "d (element 5)"},
        {"/dout", "/inputs/0", "d"},
        {"/residual", "/inputs", "d"},
        {"/cache", "/parameters/cache", "d"},
        {"/channel_axis", "/parameters/channel_axis", "d"},
        {"/step", "/parameters/lr", "d"},
        {"/mode", "/parameters/frozen", "d"},
        {"/activation", "/parameters/activation", "d"},
        {"/inputs/1/name", "/inputs/1/name", "d"},
        {"/xy", "/xy", "d"},
        {"", "", "d"},
    };
    const struct msg_infer infer = {.inputs = {[MSG_INPUT_X] = {true, true, 2}, [MSG_INPUT_DOUT] = {true, false, 0}}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct msg_error error = {0};
        msg_fail(&error, MSG_OVERFLOW, rows[i].from, "d");
        oip_place_error(&error, &infer);
        assert_string_equal(error.pointer, rows[i].to);
        assert_string_equal(error.detail, rows[i].detail);
    }
    const struct msg_infer raw = {.raw = true, .inputs = {[MSG_INPUT_X] = {.given = true}}};
    struct msg_error error = {0};
    msg_fail(&error, MSG_OVERFLOW, "/x/data/7", "d");
    oip_place_error(&error, &raw);
    assert_false(error.has_pointer);
    assert_string_equal(error.detail, "d (element 7)");
}

#define TEST(name) cmocka_unit_test_setup(name, fresh_budget)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_json),         TEST(test_json_rounding),   TEST(test_json_long),   TEST(test_binary_in_place),
        TEST(test_binary_types), TEST(test_mixed),           TEST(test_empty),       TEST(test_kept),
        TEST(test_raw),          TEST(test_parameters),      TEST(test_outputs),     TEST(test_id),
        TEST(test_refusals),     TEST(test_binary_refusals), TEST(test_truncations), TEST(test_memory),
        TEST(test_places),
    };
    return cmocka_run_group_tests_name("oip_request", tests, NULL, NULL);
}
