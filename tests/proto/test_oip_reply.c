// SPDX-License-Identifier: Apache-2.0
//
// What the Open Inference Protocol is answered: outputs as JSON and binary, parameters, rooms, errors; and what it
// tells of server, models and repository.
#include "encoded.h"

#include "../../proto/oip.h"

static void put_all(struct buffer *out, const struct msg_extra *extra) {
    for (size_t i = 0; i < extra->pieces; i++)
        assert_true(buffer_append(out, extra->piece[i].data, extra->piece[i].size));
}

static const char *header_of(const struct msg_extra *extra) {
    assert_int_equal(extra->fields, 1);
    assert_string_equal(extra->field[0].name, "Inference-Header-Content-Length");
    return extra->field[0].value;
}

static struct msg_infer infer_of(const char *id, size_t count, const enum msg_output *names, const bool *binary) {
    struct msg_infer infer = {.model = "m", .output_count = count};
    strcpy(infer.id, id);
    for (size_t i = 0; i < count; i++) {
        infer.outputs[i].name = names[i];
        infer.outputs[i].binary = binary[i];
    }
    return infer;
}

static void expect_text(const struct buffer *out, const char *text) {
    if (out->size != strlen(text) || memcmp(out->data, text, out->size) != 0)
        fail_msg("%.*s\nexpected %s", (int)out->size, (const char *)out->data, text);
}

static struct tensor tensor_of_f32(const float *values, size_t n, enum wire_dtype wire) {
    struct tensor t = {.rank = 2, .dim = {1, n}, .count = n, .dtype = BN_F32, .wire = wire, .present = true};
    assert_true(buffer_reserve(&t.values, n * sizeof(double))); // of any type
    memcpy(t.values.data, values, n * sizeof *values);
    t.values.size = n * sizeof *values;
    return t;
}

// ---- infer

static void test_inference(void **state) {
    (void)state;
    static const float values[] = {1.5f, -0.0f, 0.1f, NAN};
    static const char *const texts[] = {
        [WIRE_F32] = "\"FP32\",\"shape\":[1,4],\"data\":[1.5,-0.0,0.1,\"NaN\"]",
        [WIRE_F64] = "\"FP64\",\"shape\":[1,4],\"data\":[1.5,-0.0,0.10000000149011612,\"NaN\"]",
        [WIRE_F16] = "\"FP16\",\"shape\":[1,4],\"data\":[1.5,-0.0,0.099975586,\"NaN\"]",
        [WIRE_BF16] = "\"BF16\",\"shape\":[1,4],\"data\":[1.5,-0.0,0.100097656,\"NaN\"]"};
    for (size_t wire = 0; wire < COUNT(texts); wire++) {
        const struct msg_infer infer = infer_of("\"i\"", 1, (const enum msg_output[]){MSG_Y}, (const bool[]){false});
        struct msg_extra extra = {.infer = &infer};
        struct tensor y = tensor_of_f32(values, 4, (enum wire_dtype)wire);
        struct buffer out = {0};
        char text[400];
        assert_true(oip_encode_inference(&out, &extra, &y, 7));
        snprintf(text, sizeof text,
                 "{\"model_name\":\"m\",\"model_version\":\"1\",\"id\":\"i\",\"parameters\":{\"state_version\":7},"
                 "\"outputs\":[{\"name\":\"y\",\"datatype\":%s}]}\n",
                 texts[wire]);
        expect_text(&out, text);
        assert_int_equal(extra.pieces, 0);
        assert_int_equal(extra.fields, 0);
        assert_null(extra.media_type);
        assert_true(out.size <= oip_reply_room(&infer, &y, 0));
        buffer_free(&out);
        tensor_free(&y);
    }
}

static void test_binary(void **state) {
    (void)state;
    static const float values[] = {1.5f, -2};
    static const struct {
        const char *name;
        size_t size;
        unsigned char bytes[16];
    } rows[] = {[WIRE_F32] = {"FP32", 8, {0, 0, 0xc0, 0x3f, 0, 0, 0, 0xc0}},
                [WIRE_F64] = {"FP64", 16, {0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0xc0}},
                [WIRE_F16] = {"FP16", 4, {0, 0x3e, 0, 0xc0}},
                [WIRE_BF16] = {"BF16", 4, {0xc0, 0x3f, 0, 0xc0}}};
    for (size_t wire = 0; wire < COUNT(rows); wire++) {
        const struct msg_infer infer = infer_of("", 1, (const enum msg_output[]){MSG_Y}, (const bool[]){true});
        struct msg_extra extra = {.infer = &infer};
        struct tensor y = tensor_of_f32(values, 2, (enum wire_dtype)wire);
        struct buffer out = {0};
        char text[400];
        assert_true(oip_encode_inference(&out, &extra, &y, UINT64_MAX));
        snprintf(
            text, sizeof text,
            "{\"model_name\":\"m\",\"model_version\":\"1\",\"parameters\":{\"state_version\":18446744073709551615},"
            "\"outputs\":[{\"name\":\"y\",\"datatype\":\"%s\",\"shape\":[1,2],\"parameters\":{\"binary_data_size\":%zu}"
            "}]}\n",
            rows[wire].name, rows[wire].size);
        expect_text(&out, text);
        assert_int_equal(strtoul(header_of(&extra), NULL, 10), out.size);
        assert_string_equal(extra.media_type, "application/octet-stream");
        assert_int_equal(extra.pieces, 1);
        assert_int_equal(extra.piece[0].size, rows[wire].size);
        assert_memory_equal(extra.piece[0].data, rows[wire].bytes, rows[wire].size);
        buffer_free(&out);
        tensor_free(&y);
    }
}

static void test_train(void **state) {
    (void)state;
    static const float values[] = {1, 2};
    static const double mean[] = {0.5, 0.25}, var[] = {3, 1e300};
    const struct msg_infer infer = infer_of("", 3, (const enum msg_output[]){MSG_BATCH_VAR, MSG_Y, MSG_BATCH_MEAN},
                                            (const bool[]){true, false, true});
    const struct msg_train_reply reply = {mean, var, 2, 6, true, 3, true, 9, "abc"};
    struct msg_extra extra = {.infer = &infer};
    struct tensor y = tensor_of_f32(values, 2, WIRE_F32);
    struct buffer out = {0};
    assert_true(oip_encode_train(&out, &extra, &reply, &y));
    expect_text(&out,
                "{\"model_name\":\"m\",\"model_version\":\"1\",\"parameters\":{\"state_version\":9,\"count\":6,"
                "\"updated\":true,\"num_batches_tracked\":3,\"cache\":\"abc\"},\"outputs\":["
                "{\"name\":\"batch_var\",\"datatype\":\"FP64\",\"shape\":[2],\"parameters\":{\"binary_data_size\":16}},"
                "{\"name\":\"y\",\"datatype\":\"FP32\",\"shape\":[1,2],\"data\":[1,2]},"
                "{\"name\":\"batch_mean\",\"datatype\":\"FP64\",\"shape\":[2],\"parameters\":{\"binary_data_size\":"
                "16}}]}\n");
    struct buffer data = {0};
    put_all(&data, &extra);
    assert_int_equal(data.size, 32);
    assert_memory_equal(data.data, var, 16);
    assert_memory_equal(data.data + 16, mean, 16);
    buffer_free(&data);
    buffer_free(&out);
    // An empty batch of a layer that does not track: what is null elsewhere has no elements.
    const struct msg_infer all = infer_of("", 3, (const enum msg_output[]){MSG_Y, MSG_BATCH_MEAN, MSG_BATCH_VAR},
                                          (const bool[]){true, true, false});
    const struct msg_train_reply least = {.channels = 2, .version = 1};
    struct tensor empty = {.rank = 2, .dim = {0, 2}, .dtype = BN_F32, .wire = WIRE_F16, .present = true};
    extra = (struct msg_extra){.infer = &all};
    assert_true(oip_encode_train(&out, &extra, &least, &empty));
    expect_text(&out,
                "{\"model_name\":\"m\",\"model_version\":\"1\",\"parameters\":{\"state_version\":1,\"count\":0,"
                "\"updated\":false},\"outputs\":["
                "{\"name\":\"y\",\"datatype\":\"FP16\",\"shape\":[0,2],\"parameters\":{\"binary_data_size\":0}},"
                "{\"name\":\"batch_mean\",\"datatype\":\"FP64\",\"shape\":[0],\"parameters\":{\"binary_data_size\":0}},"
                "{\"name\":\"batch_var\",\"datatype\":\"FP64\",\"shape\":[0],\"data\":[]}]}\n");
    assert_int_equal(extra.pieces, 0);
    buffer_free(&out);
    tensor_free(&y);
}

static void test_backward(void **state) {
    (void)state;
    static const float values[] = {1, 2};
    static const double dgamma[] = {0.5, 0.25};
    static const enum msg_output names[] = {MSG_DX, MSG_DGAMMA, MSG_DBETA, MSG_DRESIDUAL};
    const struct msg_backward_reply reply = {dgamma, NULL, 2, 4};
    for (int chosen = 0; chosen < 2; chosen++) {
        for (int residual = 0; residual < 2; residual++) {
            struct msg_infer infer = infer_of("", 4, names, (const bool[]){true, true, true, true});
            struct msg_extra extra = {.infer = &infer};
            struct tensor dx = tensor_of_f32(values, 2, WIRE_F32), dresidual = tensor_of_f32(values, 2, WIRE_F32);
            struct buffer out = {0};
            infer.chosen = chosen != 0;
            assert_true(oip_encode_backward(&out, &extra, &reply, &dx, residual != 0 ? &dresidual : NULL));
            struct json_t *const json = json_loadb((const char *)out.data, out.size, 0, NULL);
            const json_t *const outputs = json_object_get(json, "outputs");
            assert_int_equal(json_array_size(outputs), chosen || residual ? 4 : 3);
            expect_word(json_array_get(outputs, 2), "name", "dbeta");
            expect_integer(json_object_get(json_array_get(outputs, 2), "parameters"), "binary_data_size", 0);
            assert_int_equal(extra.pieces, residual ? 3 : 2);
            json_decref(json);
            buffer_free(&out);
            tensor_free(&dx);
            tensor_free(&dresidual);
        }
    }
}

// The longest of everything fits the room that is made.
static void test_room(void **state) {
    (void)state;
    char id[MSG_ID_MAX + 1] = "\"";
    char model[MSG_NAME_MAX + 1] = "";
    memset(id + 1, 'i', MSG_ID_MAX - 2);
    id[MSG_ID_MAX - 1] = '"';
    memset(model, 'm', MSG_NAME_MAX);
    static const enum msg_output names[] = {MSG_DX, MSG_DGAMMA, MSG_DBETA, MSG_DRESIDUAL};
    const double worst[] = {-2.2250738585072011e-308, -1.2345678901234567e-100, 1, 1, 1, 1, 1, 1};
    for (int wire = WIRE_F32; wire <= WIRE_BF16; wire++) {
        for (unsigned mask = 0; mask < 16; mask++) {
            const bool binary[] = {mask & 1, mask & 2, mask & 4, mask & 8};
            struct msg_infer infer = infer_of(id, 4, names, binary);
            infer.model = model;
            const size_t dim[] = {1, 1, 1, 1, 2, 2, 2, 1};
            struct tensor dx = tensor_of(TENSOR_FLAT, (enum wire_dtype)wire, BN_F64, 8, dim, 3);
            struct tensor dresidual = tensor_of(TENSOR_FLAT, (enum wire_dtype)wire, BN_F64, 8, dim, 0);
            const struct msg_backward_reply reply = {worst, worst, 8, UINT64_MAX};
            struct msg_extra extra = {.infer = &infer};
            struct buffer out = {0};
            const size_t room = oip_reply_room(&infer, &dx, 8);
            assert_true(buffer_reserve(&out, room));
            assert_true(oip_encode_backward(&out, &extra, &reply, &dx, &dresidual));
            assert_int_equal(out.capacity, room);
            buffer_free(&out);
            tensor_free(&dx);
            tensor_free(&dresidual);
        }
    }
}

// ---- errors

static void test_errors(void **state) {
    (void)state;
    static const struct {
        const char *pointer, *detail, *layer, *expected;
    } rows[] = {
        {"/inputs/0", "it is bad", "bn1", "layer \"bn1\": it is bad (inputs/0)"},
        {NULL, "it is bad", "bn1", "layer \"bn1\": it is bad"},
        {"", "it is bad", "bn1", "layer \"bn1\": it is bad"},
        {NULL, "there is no layer \"bn1\"", "bn1", "there is no layer \"bn1\""},
        {NULL, "it is bad", "", "it is bad"},
        {NULL, "it is bad", NULL, "it is bad"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct msg_error error = {0};
        struct buffer out = {0};
        msg_fail(&error, MSG_OVERFLOW, rows[i].pointer, "%s", rows[i].detail);
        assert_true(oip_encode_error(&out, &error, rows[i].layer));
        json_t *const json = parse(&out);
        expect_names(json, rows[i].pointer != NULL ? "type title status detail code pointer error "
                                                   : "type title status detail code error ");
        expect_word(json, "detail", rows[i].expected);
        expect_word(json, "error", rows[i].expected);
        expect_word(json, "code", "overflow");
        json_decref(json);
        buffer_free(&out);
    }
    // The longest of everything.
    struct msg_error error = {.code = MSG_INTERNAL, .has_pointer = true};
    char model[MSG_NAME_MAX + 1] = "";
    memset(model, 'm', MSG_NAME_MAX);
    memset(error.detail, 'd', sizeof error.detail - 1);
    memset(error.pointer, 'p', sizeof error.pointer - 1);
    struct buffer out = {0};
    assert_true(oip_encode_error(&out, &error, model));
    json_t *const json = parse(&out);
    assert_int_equal(json_string_length(json_object_get(json, "error")), strlen("layer \"\":  ()") + 128 + 255 + 254);
    json_decref(json);
    buffer_free(&out);
}

// ---- models

static void test_models(void **state) {
    (void)state;
    static const struct {
        int64_t axis;
        const char *shape;
    } rows[] = {{1, "[-1,3]"},
                {-1, "[-1,3]"},
                {0, "[3,-1]"},
                {-2, "[3,-1]"},
                {2, "[-1,-1,3]"},
                {-3, "[3,-1,-1]"},
                {7, "[-1,-1,-1,-1,-1,-1,-1,3]"},
                {-8, "[3,-1,-1,-1,-1,-1,-1,-1]"}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        const enum bn_dtype dtype = i % 2 == 0 ? BN_F32 : BN_F64;
        const char *const type = i % 2 == 0 ? "FP32" : "FP64";
        const struct msg_config layer = {.num_features = 3, .channel_axis = rows[i].axis, .dtype = (int)dtype};
        struct buffer out = {0};
        char text[600];
        assert_true(oip_encode_model(&out, "a.b", &layer));
        snprintf(
            text, sizeof text,
            "{\"name\":\"a.b\",\"versions\":[\"1\"],\"platform\":\"normd\",\"inputs\":[{\"name\":\"x\",\"datatype\":"
            "\"%s\",\"shape\":%s}],\"outputs\":[{\"name\":\"y\",\"datatype\":\"%s\",\"shape\":%s}]}\n",
            type, rows[i].shape, type, rows[i].shape);
        expect_text(&out, text);
        out.size = 0;
        assert_true(oip_encode_config(&out, "a.b", &layer));
        snprintf(
            text, sizeof text,
            "{\"name\":\"a.b\",\"platform\":\"normd\",\"backend\":\"normd\",\"max_batch_size\":0,\"input\":[{\"name\":"
            "\"x\",\"data_type\":\"TYPE_%s\",\"dims\":%s}],\"output\":[{\"name\":\"y\",\"data_type\":\"TYPE_%s\","
            "\"dims\":%s}]}\n",
            type, rows[i].shape, type, rows[i].shape);
        expect_text(&out, text);
        buffer_free(&out);
    }
}

static void test_stats(void **state) {
    (void)state;
    const struct oip_stats stats = {.name = "a",
                                    .last_ms = 5,
                                    .success = {2, 100},
                                    .fail = {1, 7},
                                    .queue = {2, 10},
                                    .input = {2, 20},
                                    .infer = {2, 30},
                                    .output = {2, UINT64_MAX},
                                    .bytes = 99};
    struct buffer out = {0};
    assert_true(oip_begin_stats(&out) && oip_put_stats(&out, &stats, 0) && oip_put_stats(&out, &stats, 1) &&
                oip_end_stats(&out));
    const char *const one =
        "{\"name\":\"a\",\"version\":\"1\",\"last_inference\":5,\"inference_count\":2,\"execution_count\":2,"
        "\"inference_stats\":{\"success\":{\"count\":2,\"ns\":100},\"fail\":{\"count\":1,\"ns\":7},\"queue\":{"
        "\"count\":2,"
        "\"ns\":10},\"compute_input\":{\"count\":2,\"ns\":20},\"compute_infer\":{\"count\":2,\"ns\":30},"
        "\"compute_output\":{\"count\":2,\"ns\":18446744073709551615},\"cache_hit\":{\"count\":0,\"ns\":0},\"cache_"
        "miss\":"
        "{\"count\":0,\"ns\":0}},\"batch_stats\":[],\"memory_usage\":[{\"type\":\"CPU\",\"id\":0,\"byte_size\":99}]}";
    char text[1500];
    snprintf(text, sizeof text, "{\"model_stats\":[%s,%s]}\n", one, one);
    expect_text(&out, text);
    buffer_free(&out);
}

static void test_repository(void **state) {
    (void)state;
    struct buffer out = {0};
    assert_true(oip_begin_index(&out) && oip_put_index(&out, "a", 0) && oip_put_index(&out, "b", 1) &&
                oip_end_index(&out));
    expect_text(&out, "[{\"name\":\"a\",\"version\":\"1\",\"state\":\"READY\",\"reason\":\"\"},"
                      "{\"name\":\"b\",\"version\":\"1\",\"state\":\"READY\",\"reason\":\"\"}]\n");
    buffer_free(&out);
    static const struct {
        const char *body;
        enum msg_code index, load;
        const char *pointer;
    } rows[] = {
        {"", MSG_OK, MSG_OK, NULL},
        {"{}", MSG_OK, MSG_OK, NULL},
        {"{\"ready\":true}", MSG_OK, MSG_UNKNOWN_FIELD, NULL},
        {"{\"ready\":1}", MSG_WRONG_TYPE, MSG_UNKNOWN_FIELD, "/ready"},
        {"{\"parameters\":{}}", MSG_UNKNOWN_FIELD, MSG_OK, "/parameters"},
        {"{\"parameters\":1}", MSG_UNKNOWN_FIELD, MSG_WRONG_TYPE, "/parameters"},
        {"{\"parameters\":{\"config\":\"{}\"}}", MSG_UNKNOWN_FIELD, MSG_NOT_SUPPORTED_BY_LAYER, "/parameters"},
        {"{\"parameters\":{\"file:1/a\":\"\"}}", MSG_UNKNOWN_FIELD, MSG_NOT_SUPPORTED_BY_LAYER, "/parameters"},
        {"{\"parameters\":{\"confg\":\"{}\"}}", MSG_UNKNOWN_FIELD, MSG_UNKNOWN_FIELD, "/parameters"},
        {"[]", MSG_NOT_AN_OBJECT, MSG_NOT_AN_OBJECT, NULL},
        {"{", MSG_MALFORMED_JSON, MSG_MALFORMED_JSON, NULL},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        const struct json_body body = {rows[i].body, strlen(rows[i].body), NULL, NULL};
        struct msg_error index = {0}, load = {0};
        assert_int_equal(oip_check_index(body, &index), rows[i].index == MSG_OK);
        assert_int_equal(oip_check_load(body, &load), rows[i].load == MSG_OK);
        assert_int_equal(index.code, rows[i].index);
        assert_int_equal(load.code, rows[i].load);
        if (rows[i].pointer != NULL) assert_string_equal(index.pointer, rows[i].pointer);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_inference), cmocka_unit_test(test_binary), cmocka_unit_test(test_train),
        cmocka_unit_test(test_backward),  cmocka_unit_test(test_room),   cmocka_unit_test(test_errors),
        cmocka_unit_test(test_models),    cmocka_unit_test(test_stats),  cmocka_unit_test(test_repository),
    };
    return cmocka_run_group_tests_name("oip_reply", tests, NULL, NULL);
}
