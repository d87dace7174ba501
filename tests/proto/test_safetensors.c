// SPDX-License-Identifier: Apache-2.0
//
// safetensors files in: headers good and hostile, tensors at every alignment, calls.
#include "files.h"

static void test_headers(void **state) {
    (void)state;
    static const char *const headers[] = {
        "{" X_OF_FOUR "}",
        "{" X_OF_FOUR "}     ",
        "{ " X_OF_FOUR " }\n",
        "{\"__metadata__\":{}," X_OF_FOUR "}",
        "{" X_OF_FOUR ",\"__metadata__\":{\"channel_axis\":\"-1\",\"format\":\"pt\"}}",
        "{\"x\":{\"data_offsets\":[0,16],\"shape\":[2,2],\"dtype\":\"F32\"}}",
        "{\"\\u0078\":{\"data_offsets\":[0,16],\"sha\\u0070e\":[2,2],\"dtype\":\"F32\"}}",
    };
    for (size_t i = 0; i < COUNT(headers); i++) {
        struct decoded d = decode_safetensors(safetensors_file(headers[i], four, sizeof four), INFERENCE, BN_F32);
        if (!d.ok) fail_msg("%s: %s", headers[i], d.error.detail);
        assert_int_equal(d.call.x.rank, 2);
        assert_int_equal(d.call.x.dim[0], 2);
        assert_int_equal(d.call.x.wire, WIRE_F32);
        for (size_t k = 0; k < 4; k++) assert_true(value_of(&d.call.x, k) == (double)four[k]);
        release(&d);
    }
}

// What no kind of message may be.
static void test_malformed(void **state) {
    (void)state;
    static const char *const headers[] = {
        "",
        "{",
        "}",
        "[]",
        " {}",
        "{}x",
        "null",
        "{\"x\"}",
        "{\"x\":}",
        "{\"x\":1}",
        "{\"x\":[]}",
        "{\"x\":{}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[2,2]}}",
        "{\"x\":{\"dtype\":\"F32\",\"data_offsets\":[0,16]}}",
        "{\"x\":{\"shape\":[2,2],\"data_offsets\":[0,16]}}",
        "{\"x\":{\"dtype\":1,\"shape\":[2,2],\"data_offsets\":[0,16]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":4,\"data_offsets\":[0,16]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":16}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,8,16]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16],\"more\":1}}",
        "{\"x\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,17]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[4,16]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[0,8]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[8,16]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[16,0]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[-16,0]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,1.6e1]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,18446744073709551616]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,16]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[4611686018427387905,4],\"data_offsets\":[0,16]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[9223372036854775807,2],\"data_offsets\":[0,16]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[9223372036854775808],\"data_offsets\":[0,16]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[-2,-2],\"data_offsets\":[0,16]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},}",
        "{\"x\":{\"dtype\":\"\xff\",\"shape\":[2,2],\"data_offsets\":[0,16]}}",
        "{" X_OF_FOUR ",\"__metadata__\":1}",
        "{" X_OF_FOUR ",\"__metadata__\":[]}",
        "{" X_OF_FOUR ",\"__metadata__\":{\"a\":1}}",
        "{" X_OF_FOUR ",\"__metadata__\":{\"a\":{}}}",
        "{\"__metadata__\":{}," X_OF_FOUR ",\"__metadata__\":{}}",
        "{" X_OF_FOUR ",\"y\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}",
        "{" X_OF_FOUR ",\"y\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[12,16]}}",
        "{" X_OF_FOUR ",\"y\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[8,8]}}",
    };
    for (enum kind kind = TRAIN; kind < KINDS; kind++) {
        for (size_t i = 0; i < COUNT(headers); i++)
            expect_safetensors(safetensors_file(headers[i], four, sizeof four), kind, MSG_MALFORMED_FILE, headers[i]);
    }
}

static void test_lengths(void **state) {
    (void)state;
    static const uint64_t lengths[] = {
        0, 1, 100, 100000000, 100000001, UINT64_MAX, UINT64_MAX - 7, UINT64_MAX - 8, (uint64_t)1 << 63};
    for (enum kind kind = TRAIN; kind < KINDS; kind++) {
        for (size_t i = 0; i < COUNT(lengths); i++) {
            struct buffer file = safetensors_file("{" X_OF_FOUR "}", four, sizeof four);
            memcpy(file.data, &lengths[i], sizeof lengths[i]);
            expect_safetensors(file, kind, MSG_MALFORMED_FILE, "length");
        }
        const struct buffer file = safetensors_file("{" X_OF_FOUR "}", four, sizeof four);
        for (size_t length = 0; length < file.size; length++) {
            struct buffer prefix = {.budget = &budget};
            assert_true(buffer_reserve(&prefix, length) && buffer_append(&prefix, file.data, length));
            struct decoded d = decode_safetensors(prefix, kind, BN_F32);
            assert_int_equal(d.error.code, MSG_MALFORMED_FILE);
            msg_call_free(&d.call);
            msg_state_free(&d.state);
            msg_snapshot_free(&d.snapshot);
        }
        struct buffer whole = file;
        buffer_free(&whole);
        assert_int_equal(budget.used, 0);
    }
}

// One byte changed to each of these: whatever comes of it, no memory is left and none is touched that is not ours.
static void test_changed_bytes(void **state) {
    (void)state;
    static const char bytes[] = "\0\"\\{}[],:0-9.e\xff ";
    static const char *const headers[KINDS] = {
        [TRAIN] = "{" X_OF_FOUR ",\"__metadata__\":{\"cache\":\"true\"}}",
        [INFERENCE] = "{" X_OF_FOUR "}",
        [BACKWARD] = "{\"dout\":{\"dtype\":\"F16\",\"shape\":[2,2],\"data_offsets\":[8,16]},"
                     "\"x\":{\"dtype\":\"BF16\",\"shape\":[2,2],\"data_offsets\":[0,8]},"
                     "\"__metadata__\":{\"step\":\"{\\\"lr\\\":1}\"}}",
        [STATE] = "{" BN_OF("it.") ",\"__metadata__\":{\"it\":\"{\\\"num_features\\\":1}\"}}",
        [SNAPSHOT] = "{" BN_OF("a.b.") ",\"__metadata__\":{\"a.b\":\"{\\\"num_features\\\":1}\"}}",
    };
    for (enum kind kind = TRAIN; kind < KINDS; kind++) {
        const bool call = kind < STATE;
        const void *const data = call ? (const void *)four : bn_data;
        const size_t size = call ? sizeof four : sizeof bn_data;
        struct decoded good = decode_safetensors(safetensors_file(headers[kind], data, size), kind, BN_F32);
        if (!good.ok) fail_msg("%s: %s", headers[kind], good.error.detail);
        release(&good);
        for (size_t i = 0; i < strlen(headers[kind]); i++) {
            for (size_t b = 0; b < sizeof bytes - 1; b++) {
                struct buffer file = safetensors_file(headers[kind], data, size);
                file.data[8 + i] = (unsigned char)bytes[b];
                struct decoded d = decode_safetensors(file, kind, BN_F32);
                release(&d);
            }
        }
    }
}

// ---- calls

static void test_calls(void **state) {
    (void)state;
    static const struct {
        enum kind kind;
        const char *more; // behind x
        enum msg_code code;
    } rows[] = {
        {TRAIN, "", MSG_OK},
        {TRAIN, ",\"__metadata__\":{\"cache\":\"true\",\"channel_axis\":\"0\",\"activation\":\"\\\"relu\\\"\"}",
         MSG_OK},
        {TRAIN, ",\"__metadata__\":{\"cache\":\"\\\"id\\\"\"}", MSG_WRONG_TYPE},
        {TRAIN, ",\"__metadata__\":{\"mode\":\"\\\"train\\\"\"}", MSG_UNKNOWN_FIELD},
        {TRAIN, ",\"__metadata__\":{\"cache\":\"\"}", MSG_MALFORMED_FILE},
        {TRAIN, ",\"__metadata__\":{\"cache\":\"yes\"}", MSG_MALFORMED_FILE},
        {TRAIN, ",\"__metadata__\":{\"cache\":\"true\",\"cache\":\"true\"}", MSG_DUPLICATE_FIELD},
        {TRAIN, ",\"__metadata__\":{\"x\":\"[[1]]\"}", MSG_UNKNOWN_FIELD},
        {TRAIN, ",\"y\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[16,16]}", MSG_UNKNOWN_FIELD},
        {TRAIN, ",\"x\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[16,16]}", MSG_DUPLICATE_FIELD},
        {TRAIN, ",\"dout\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[16,16]}", MSG_UNKNOWN_FIELD},
        {TRAIN, ",\"residual\":{\"dtype\":\"F32\",\"shape\":[0,2],\"data_offsets\":[16,16]}", MSG_OK},
        {TRAIN, ",\"residual\":{\"dtype\":\"I32\",\"shape\":[0,2],\"data_offsets\":[16,16]}", MSG_WRONG_TYPE},
        {TRAIN, ",\"residual\":{\"dtype\":\"F9\",\"shape\":[0,2],\"data_offsets\":[16,16]}", MSG_WRONG_TYPE},
        {TRAIN, ",\"residual\":{\"dtype\":\"F32\",\"shape\":[0,4611686018427387904],\"data_offsets\":[16,16]}",
         MSG_SHAPE_MISMATCH},
        {INFERENCE, ",\"__metadata__\":{\"cache\":\"true\"}", MSG_UNKNOWN_FIELD},
        {BACKWARD, "", MSG_MISSING_FIELD},
        {BACKWARD, ",\"dout\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[16,16]}", MSG_OK},
        {BACKWARD,
         ",\"dout\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[16,16]},"
         "\"__metadata__\":{\"cache\":\"\\\"id\\\"\"}",
         MSG_CONFLICTING_FIELDS},
        {BACKWARD,
         ",\"dout\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[16,16]},"
         "\"__metadata__\":{\"step\":\"{\\\"lr\\\": 0.5}\",\"mode\":\"\\\"inference\\\"\"}",
         MSG_OK},
        {BACKWARD,
         ",\"dout\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[16,16]},"
         "\"__metadata__\":{\"step\":\"{\\\"lr\\\": 0.5, \\\"lr\\\": 0.5}\"}",
         MSG_MALFORMED_FILE},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char header[600];
        snprintf(header, sizeof header, "{" X_OF_FOUR "%s}", rows[i].more);
        expect_safetensors(safetensors_file(header, four, sizeof four), rows[i].kind, rows[i].code, header);
    }
    const struct buffer no_x = safetensors_file("{}", "", 0);
    expect_safetensors(no_x, TRAIN, MSG_MISSING_FIELD, "nothing");
    struct buffer file = safetensors_file("{" X_OF_FOUR "}", four, sizeof four);
    struct codec_request request = {
        .body = &file, .budget = &budget, .options = {.option = {{"cache", "true"}}, .count = 1}};
    struct decoded d = {.ok = false};
    assert_false(safetensors_decode_call(&d.call, MSG_TRAIN_FORWARD, &request, BN_F32, &d.error));
    assert_int_equal(d.error.code, MSG_BAD_PARAMETER);
    buffer_free(&file);
    release(&d);
}

// There is no pointer into a file, so that the words name the field.
static void test_unknown_fields(void **state) {
    (void)state;
    static const struct {
        const char *metadata, *named;
    } rows[] = {
        {"\"channel_axes\":\"-1\"", "\"channel_axes\""},
        {"\"format\":\"pt\",\"cahce\":\"true\"", "\"cahce\""},
        {"\"step\":\"{\\\"lr\\\":0.5,\\\"momentum\\\":0.9}\"", "\"step/momentum\""},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char header[300];
        snprintf(header, sizeof header, "{" X_OF_FOUR ",\"__metadata__\":{%s}}", rows[i].metadata);
        struct decoded d = decode_safetensors(safetensors_file(header, four, sizeof four), BACKWARD, BN_F32);
        if (d.error.code != MSG_UNKNOWN_FIELD || strstr(d.error.detail, rows[i].named) == NULL)
            fail_msg("%s: %s (%s)", header, msg_codes[d.error.code].name, d.error.detail);
        release(&d);
    }
}

static void test_fields(void **state) {
    (void)state;
    struct decoded d =
        decode_safetensors(safetensors_file("{\"dout\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
                                            "\"__metadata__\":{\"cache\":\"\\\"abc\\\"\",\"channel_axis\":\"-2\","
                                            "\"step\":\"{\\\"weight_decay\\\":0.25,\\\"lr\\\":0.5}\"}}",
                                            four, sizeof four),
                           BACKWARD, BN_F32);
    assert_true(d.ok && d.call.has_step && d.call.has_channel_axis && d.call.dout.present && !d.call.x.present);
    assert_string_equal(d.call.cache, "abc");
    assert_true(d.call.lr == 0.5 && d.call.weight_decay == 0.25);
    assert_int_equal(d.call.channel_axis, -2);
    release(&d);
}

// Three tensors of every type, in every order, at every alignment: each keeps its values.
static void test_places(void **state) {
    (void)state;
    static const char *const types[] = {"F32", "F64", "F16", "BF16"};
    static const enum wire_dtype wires[] = {WIRE_F32, WIRE_F64, WIRE_F16, WIRE_BF16};
    static const char *const names[] = {"x", "dout", "residual"};
    static const size_t orders[][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    for (size_t combination = 0; combination < 64 * 6 * 8 * 2; combination++) {
        size_t rest = combination;
        const size_t *const order = orders[rest % 6];
        rest /= 6;
        const int padding = (int)(rest % 8);
        rest /= 8;
        const enum bn_dtype dtype = rest % 2 == 0 ? BN_F32 : BN_F64;
        rest /= 2;
        const size_t type[3] = {rest % 4, rest / 4 % 4, rest / 16};
        double values[3][3];
        unsigned char data[72];
        char header[400] = "{", *at = header + 1;
        size_t offset = 0;
        for (size_t i = 0; i < 3; i++) {
            const size_t k = order[i], size = 3 * wire_dtypes[wires[type[k]]].size;
            for (size_t v = 0; v < 3; v++) values[k][v] = (double)(k * 3 + v) + 0.5;
            tensor_to_wire(data + offset, wires[type[k]], values[k], BN_F64, 3);
            at += sprintf(at, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[1,3],\"data_offsets\":[%zu,%zu]}",
                          i > 0 ? "," : "", names[k], types[type[k]], offset, offset + size);
            offset += size;
        }
        sprintf(at, "}%*s", padding, "");
        struct decoded d = decode_safetensors(safetensors_file(header, data, offset), BACKWARD, dtype);
        if (!d.ok) fail_msg("%s: %s", header, d.error.detail);
        const struct tensor *const tensors[] = {&d.call.x, &d.call.dout, &d.call.residual};
        for (size_t k = 0; k < 3; k++) {
            assert_int_equal(tensors[k]->wire, wires[type[k]]);
            assert_int_equal((uintptr_t)tensors[k]->values.data % bn_dtype_size(dtype), 0);
            for (size_t v = 0; v < 3; v++) {
                if (value_of(tensors[k], v) != values[k][v]) fail_msg("%s: %s at %zu", header, names[k], v);
            }
        }
        release(&d);
    }
}

// Where the place of every tensor is as it should be, no memory is taken but the body's.
static void test_memory(void **state) {
    (void)state;
    struct decoded d = decode_safetensors(safetensors_file("{" X_OF_FOUR "}", four, sizeof four), INFERENCE, BN_F32);
    assert_true(d.ok);
    assert_null(d.call.x.values.memory);
    assert_int_equal(budget.used, d.call.body.capacity);
    release(&d);
    d = decode_safetensors(safetensors_file("{" X_OF_FOUR "}", four, sizeof four), INFERENCE, BN_F64);
    assert_true(d.ok);
    assert_int_equal(d.call.body.capacity, 0);
    release(&d);
    struct buffer file = safetensors_file("{" X_OF_FOUR "}", four, sizeof four);
    budget.limit = budget.used;
    d = decode_safetensors(file, INFERENCE, BN_F32);
    assert_int_equal(d.error.code, MSG_BODY_TOO_LARGE); // the table does not fit, and never will
    release(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_headers, fresh_budget), cmocka_unit_test_setup(test_malformed, fresh_budget),
        cmocka_unit_test_setup(test_lengths, fresh_budget), cmocka_unit_test_setup(test_changed_bytes, fresh_budget),
        cmocka_unit_test_setup(test_calls, fresh_budget),   cmocka_unit_test_setup(test_unknown_fields, fresh_budget),
        cmocka_unit_test_setup(test_fields, fresh_budget),  cmocka_unit_test_setup(test_places, fresh_budget),
        cmocka_unit_test_setup(test_memory, fresh_budget),
    };
    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
