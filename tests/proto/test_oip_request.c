// SPDX-License-Identifier: Apache-2.0
//
// Infer requests of the Open Inference Protocol: JSON and binary inputs, raw ones, parameters, outputs.
#include "inferred.h"

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
            struct inferred d = infer_on(&layer, 0, rows[i].json, NULL, 0, NULL);
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
            infer_release(&d);
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
        struct inferred d = infer_on(&layer, 0, json, NULL, 0, NULL);
        if (!d.ok) fail_msg("%s: %s", json, d.error.detail);
        const double got = value_of(&d.call.x, 1);
        if (isnan(rows[i].value) ? !isnan(got) : got != rows[i].value) fail_msg("%s: %.17g", json, got);
        assert_int_equal(d.call.x.first_nonfinite, isfinite(rows[i].value) ? 2 : 1);
        infer_release(&d);
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
    struct inferred d = infer(json);
    assert_true(d.ok);
    for (size_t i = 0; i < 4000; i++) assert_true(value_of(&d.call.x, i) == (double)i + 0.5);
    infer_release(&d);
    char *const at = strstr(json, ",3000.5");
    memcpy(at, ",1e39  ", 7);
    d = infer(json);
    assert_int_equal(d.error.code, MSG_OVERFLOW);
    assert_string_equal(d.error.pointer, "/inputs/0/data/3000");
    infer_release(&d);
    free(json);
}

// ---- binary

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
        struct inferred d = infer_binary(jsons[i], f32, sizeof f32, BN_F32);
        if (!d.ok) fail_msg("%s", d.error.detail);
        expect_values(&d.call.x, four, 4);
        assert_true(in_body(&d.call, &d.call.x));
        assert_int_equal((uintptr_t)d.call.x.values.data % BUFFER_ALIGNMENT, 0);
        assert_int_equal(d.call.x.values.data - d.call.body.data, oip_padding(strlen(jsons[i])) + strlen(jsons[i]));
        assert_false(d.call.infer.inputs[MSG_INPUT_X].in_json);
        infer_release(&d);
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
                struct inferred d = infer_on(&layer, start, rows[i].json, rows[i].data, rows[i].size, &header);
                if (!d.ok) fail_msg("%s: %s", rows[i].json, d.error.detail);
                expect_values(&d.call.x, four, 4);
                assert_int_equal((uintptr_t)d.call.x.values.data % bn_dtype_size((enum bn_dtype)dtype), 0);
                infer_release(&d);
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
    struct inferred d = infer_binary(
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
    infer_release(&d);
}

static void test_empty(void **state) {
    (void)state;
    struct inferred d = infer("{\"inputs\":[{\"name\":\"x\",\"shape\":[0,2],\"datatype\":\"FP32\",\"data\":[]}]}");
    assert_true(d.ok && d.call.x.present && d.call.x.count == 0 && d.call.x.rank == 2);
    infer_release(&d);
    d = infer("{\"inputs\":[{\"name\":\"x\",\"shape\":[3,2,0],\"datatype\":\"FP64\",\"data\":[[],[],[]]}]}");
    assert_true(d.ok && d.call.x.present && d.call.x.count == 0 && d.call.x.rank == 3);
    infer_release(&d);
    d = infer_binary("{\"inputs\":[" INPUT("x", "[0,2]", "FP32", "0") "]}", NULL, 0, BN_F32);
    assert_true(d.ok && d.call.x.present && d.call.x.count == 0 && d.call.x.first_nonfinite == 0);
    infer_release(&d);
}

// A pass that is kept holds no more than its elements.
static void test_kept(void **state) {
    (void)state;
    static double values[40000];
    struct inferred d = infer_binary("{\"parameters\":{\"mode\":\"train-forward\",\"cache\":true},\"inputs\":[" INPUT(
                                         "x", "[20000,2]", "FP64", "320000") "]}",
                                     values, sizeof values, BN_F32);
    assert_true(d.ok && d.call.keep && d.kind == MSG_TRAIN_FORWARD);
    assert_true(d.call.body.capacity < sizeof values / 2 + 1000);
    assert_true(in_body(&d.call, &d.call.x));
    infer_release(&d);
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
        struct inferred d = infer_on(&layer, 0, "", data, rows[i].bytes, &header);
        if (d.error.code != rows[i].code) fail_msg("row %zu: %s", i, d.error.detail);
        assert_false(d.error.has_pointer);
        if (d.ok) {
            assert_memory_equal(d.call.x.dim, rows[i].dim, sizeof rows[i].dim);
            assert_int_equal(d.call.x.count, rows[i].dim[0] * rows[i].dim[1]);
            assert_int_equal(d.kind, MSG_INFERENCE);
            assert_true(d.call.infer.outputs[0].binary && d.call.infer.output_count == 1);
        }
        infer_release(&d);
    }
}

// ---- parameters and outputs

static void test_parameters(void **state) {
    (void)state;
    struct inferred d = infer("{\"parameters\":{\"mode\":\"train-forward\",\"cache\":true,\"channel_axis\":-1,"
                              "\"activation\":\"relu\",\"timeout\":250,\"priority\":0,\"sequence_id\":\"\","
                              "\"sequence_start\":false,\"sequence_end\":false},\"inputs\":[" INPUT_X "]}");
    if (!d.ok) fail_msg("%s", d.error.detail);
    assert_int_equal(d.kind, MSG_TRAIN_FORWARD);
    assert_true(d.call.keep && d.call.has_channel_axis && d.call.channel_axis == -1);
    assert_int_equal(d.call.activation, BN_RELU);
    assert_int_equal(d.call.infer.timeout_us, 250);
    infer_release(&d);
    d = infer("{\"parameters\":{\"mode\":\"backward\",\"cache\":\"abc\",\"frozen\":true,\"lr\":0.5,"
              "\"weight_decay\":2},\"inputs\":[" INPUT_DOUT "]}");
    if (!d.ok) fail_msg("%s", d.error.detail);
    assert_int_equal(d.call.mode, MSG_MODE_INFERENCE);
    assert_true(d.call.has_step && d.call.lr == 0.5 && d.call.weight_decay == 2);
    assert_string_equal(d.call.cache, "abc");
    infer_release(&d);
    d = infer("{\"inputs\":[" INPUT_X "]}");
    assert_true(d.ok && d.kind == MSG_INFERENCE && !d.call.has_channel_axis && !d.call.keep && !d.call.has_step);
    assert_int_equal(d.call.activation, BN_IDENTITY);
    assert_int_equal(d.call.mode, MSG_MODE_TRAIN);
    infer_release(&d);
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
        snprintf(json, sizeof json, "{%s\"inputs\":[" INPUT_X "]}", rows[i].members);
        struct inferred d = infer(json);
        if (!d.ok) fail_msg("%s: %s", json, d.error.detail);
        assert_int_equal(d.call.infer.output_count, rows[i].count);
        assert_int_equal(d.call.infer.chosen, rows[i].chosen);
        for (size_t k = 0; k < rows[i].count; k++) {
            assert_int_equal(d.call.infer.outputs[k].name, rows[i].names[k]);
            assert_int_equal(d.call.infer.outputs[k].binary, rows[i].binary[k]);
        }
        infer_release(&d);
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
        snprintf(json, sizeof json, "{\"id\":%s,\"inputs\":[" INPUT_X "]}", ids[i][0]);
        struct inferred d = infer(json);
        assert_true(d.ok);
        assert_string_equal(d.call.infer.id, ids[i][1]);
        infer_release(&d);
    }
    char json[700], longest[MSG_ID_MAX] = "";
    memset(longest, 'x', MSG_ID_MAX - 2);
    snprintf(json, sizeof json, "{\"id\":\"%s\",\"inputs\":[" INPUT_X "]}", longest);
    struct inferred d = infer(json);
    assert_true(d.ok && strlen(d.call.infer.id) == MSG_ID_MAX);
    infer_release(&d);
    snprintf(json, sizeof json, "{\"id\":\"%sx\",\"inputs\":[" INPUT_X "]}", longest);
    d = infer(json);
    assert_int_equal(d.error.code, MSG_OUT_OF_RANGE);
    infer_release(&d);
}

#define TEST(name) cmocka_unit_test_setup(name, fresh_budget)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_json),         TEST(test_json_rounding), TEST(test_json_long), TEST(test_binary_in_place),
        TEST(test_binary_types), TEST(test_mixed),         TEST(test_empty),     TEST(test_kept),
        TEST(test_raw),          TEST(test_parameters),    TEST(test_outputs),   TEST(test_id),
    };
    return cmocka_run_group_tests_name("oip_request", tests, NULL, NULL);
}
