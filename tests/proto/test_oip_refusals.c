// SPDX-License-Identifier: Apache-2.0
//
// Infer requests that are refused: every reason with its place, truncations, memory; and where later errors point.
#include "inferred.h"

static void expect_refused(struct inferred d, enum msg_code code, const char *pointer, const char *word,
                           const char *what) {
    const bool placed =
        pointer == NULL ? !d.error.has_pointer : d.error.has_pointer && strcmp(d.error.pointer, pointer) == 0;
    if (d.error.code != code || !placed || (word != NULL && strstr(d.error.detail, word) == NULL))
        fail_msg("%s: %s at \"%s\" (%s), expected %s at \"%s\" with \"%s\"", what, msg_codes[d.error.code].name,
                 d.error.pointer, d.error.detail, msg_codes[code].name, pointer != NULL ? pointer : "",
                 word != NULL ? word : "");
    infer_release(&d);
}

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
        {"{\"inputs\":[" INPUT_X "]}x", MSG_MALFORMED_JSON, NULL, NULL},
        {"{\"inputs\":[" INPUT_X ",]}", MSG_MALFORMED_JSON, NULL, NULL},
        {"{\"inputs\":[" INPUT_X " " INPUT_X "]}", MSG_MALFORMED_JSON, NULL, NULL},
        {"{\"inputs\":[{\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":[1,NaN]}]}", MSG_MALFORMED_JSON,
         NULL, NULL},
        {"{}", MSG_MISSING_FIELD, "/inputs", "inputs"},
        {"{\"inputs\":[]}", MSG_MISSING_FIELD, "/inputs", "x is missing"},
        {"{\"inputs\":{}}", MSG_WRONG_TYPE, "/inputs", "array"},
        {"{\"inputs\":[" INPUT_X "],\"inputs\":[]}", MSG_DUPLICATE_FIELD, "/inputs", NULL},
        {"{\"inputs\":[1]}", MSG_WRONG_TYPE, "/inputs/0", "object"},
        {"{\"inputs\":[" INPUT_X "," INPUT_X "]}", MSG_DUPLICATE_FIELD, "/inputs/1/name", "\"x\""},
        {"{\"inputs\":[" INPUT_X "," INPUT_DOUT "]}", MSG_UNKNOWN_FIELD, "/inputs/1/name", "\"dout\""},
        {"{\"inputs\":[" INPUT_X "," INPUT_X "," INPUT_X "," INPUT_X "]}", MSG_UNKNOWN_FIELD, "/inputs/3", "residual"},
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
        {"{\"inputs\":[" INPUT("x", "[1,2]", "FP32", "9007199254740993") "]}", MSG_OUT_OF_RANGE,
         "/inputs/0/parameters/binary_data_size", "from 0"},
        {"{\"inputs\":[" INPUT("x", "[1,2]", "FP32", "9223372036854775808") "]}", MSG_OVERFLOW,
         "/inputs/0/parameters/binary_data_size", "too large"},
        {"{\"inputs\":[" INPUT("x", "[1,2]", "FP32", "1e400") "]}", MSG_OVERFLOW,
         "/inputs/0/parameters/binary_data_size", "too large"},
        {"{\"inputs\":[" INPUT("x", "[1,2]", "FP32", "8.5") "]}", MSG_WRONG_TYPE,
         "/inputs/0/parameters/binary_data_size", "integer"},
        {"{\"inputs\":[" INPUT("x", "[1,2]", "FP32", "8,\"binary_data_size\":8") "]}", MSG_DUPLICATE_FIELD,
         "/inputs/0/parameters/binary_data_size", "twice"},
        {"{\"inputs\":[" INPUT("x", "[1,2]", "FP32", "{\"a\":1,\"a\":1}") "]}", MSG_DUPLICATE_FIELD,
         "/inputs/0/parameters/binary_data_size", "twice"},
        {"{\"inputs\":[" INPUT("x", "[1,2]", "FP32", "\"8\"") "]}", MSG_WRONG_TYPE,
         "/inputs/0/parameters/binary_data_size", NULL},
        {"{\"inputs\":[" INPUT("x", "[1,2]", "FP32", "8") "]}", MSG_MALFORMED_FILE,
         "/inputs/0/parameters/binary_data_size", "Inference-Header-Content-Length"},
        {"{\"inputs\":[" INPUT("x", "[1,2]", "FP32", "4") "]}", MSG_SHAPE_MISMATCH,
         "/inputs/0/parameters/binary_data_size", "takes 8"},
        {"{\"model\":1,\"inputs\":[" INPUT_X "]}", MSG_UNKNOWN_FIELD, "/model", NULL},
        {"{\"id\":7,\"inputs\":[" INPUT_X "]}", MSG_WRONG_TYPE, "/id", "string"},
        {"{\"id\":\"a\",\"id\":\"b\",\"inputs\":[" INPUT_X "]}", MSG_DUPLICATE_FIELD, "/id", NULL},
        {"{\"model_name\":\"n\",\"inputs\":[" INPUT_X "]}", MSG_CONFLICTING_FIELDS, "/model_name", "\"m\""},
        {"{\"model_version\":\"2\",\"inputs\":[" INPUT_X "]}", MSG_CONFLICTING_FIELDS, "/model_version", "\"1\""},
        {"{\"parameters\":[],\"inputs\":[" INPUT_X "]}", MSG_WRONG_TYPE, "/parameters", "object"},
        {"{\"parameters\":{\"modes\":\"backward\"},\"inputs\":[" INPUT_X "]}", MSG_UNKNOWN_FIELD, "/parameters/modes",
         NULL},
        {"{\"parameters\":{\"mode\":\"train\"},\"inputs\":[" INPUT_X "]}", MSG_OUT_OF_RANGE, "/parameters/mode",
         "\"train-forward\""},
        {"{\"parameters\":{\"mode\":1},\"inputs\":[" INPUT_X "]}", MSG_WRONG_TYPE, "/parameters/mode", NULL},
        {"{\"parameters\":{\"cache\":true},\"inputs\":[" INPUT_X "]}", MSG_UNKNOWN_FIELD, "/parameters/cache", NULL},
        {"{\"parameters\":{\"mode\":\"train-forward\",\"cache\":\"a\"},\"inputs\":[" INPUT_X "]}", MSG_WRONG_TYPE,
         "/parameters/cache", NULL},
        {"{\"parameters\":{\"mode\":\"train-forward\",\"lr\":1},\"inputs\":[" INPUT_X "]}", MSG_UNKNOWN_FIELD,
         "/parameters/lr", NULL},
        {"{\"parameters\":{\"channel_axis\":9},\"inputs\":[" INPUT_X "]}", MSG_OUT_OF_RANGE, "/parameters/channel_axis",
         NULL},
        {"{\"parameters\":{\"activation\":\"gelu\"},\"inputs\":[" INPUT_X "]}", MSG_OUT_OF_RANGE,
         "/parameters/activation", "relu"},
        {"{\"parameters\":{\"timeout\":-1},\"inputs\":[" INPUT_X "]}", MSG_OUT_OF_RANGE, "/parameters/timeout", NULL},
        {"{\"parameters\":{\"priority\":1},\"inputs\":[" INPUT_X "]}", MSG_NOT_BUILT, "/parameters/priority",
         "priorities"},
        {"{\"parameters\":{\"sequence_id\":3},\"inputs\":[" INPUT_X "]}", MSG_NOT_BUILT, "/parameters/sequence_id",
         "sequences"},
        {"{\"parameters\":{\"triton_x\":3},\"inputs\":[" INPUT_X "]}", MSG_UNKNOWN_FIELD, "/parameters/triton_x", NULL},
        {"{\"parameters\":{\"binary_data_output\":1},\"inputs\":[" INPUT_X "]}", MSG_WRONG_TYPE,
         "/parameters/binary_data_output", NULL},
        {"{" MODE("backward") "\"inputs\":[" INPUT_X "]}", MSG_MISSING_FIELD, "/inputs", "dout"},
        {"{" MODE("backward") "\"inputs\":[" INPUT_DOUT "]}", MSG_MISSING_FIELD, "/inputs", "cache"},
        {"{\"parameters\":{\"mode\":\"backward\",\"cache\":\"a\"},\"inputs\":[" INPUT_DOUT "," INPUT_X "]}",
         MSG_CONFLICTING_FIELDS, "/parameters/cache", NULL},
        {"{\"parameters\":{\"mode\":\"backward\",\"cache\":\"a\",\"activation\":\"relu\"},\"inputs\":[" INPUT_DOUT "]}",
         MSG_CONFLICTING_FIELDS, "/parameters/activation", NULL},
        {"{\"parameters\":{\"mode\":\"backward\",\"weight_decay\":1},\"inputs\":[" INPUT_DOUT "," INPUT_X "]}",
         MSG_MISSING_FIELD, "/parameters/lr", NULL},
        {"{\"outputs\":{},\"inputs\":[" INPUT_X "]}", MSG_WRONG_TYPE, "/outputs", "array"},
        {"{\"outputs\":[1],\"inputs\":[" INPUT_X "]}", MSG_WRONG_TYPE, "/outputs/0", "object"},
        {"{\"outputs\":[{}],\"inputs\":[" INPUT_X "]}", MSG_MISSING_FIELD, "/outputs/0/name", "name"},
        {"{\"outputs\":[{\"name\":\"z\"}],\"inputs\":[" INPUT_X "]}", MSG_UNKNOWN_FIELD, "/outputs/0/name", "\"z\""},
        {"{\"outputs\":[{\"name\":\"batch_mean\"}],\"inputs\":[" INPUT_X "]}", MSG_UNKNOWN_FIELD, "/outputs/0/name",
         "\"batch_mean\""},
        {"{\"outputs\":[{\"name\":\"y\"},{\"name\":\"y\"}],\"inputs\":[" INPUT_X "]}", MSG_DUPLICATE_FIELD,
         "/outputs/1/name", "\"y\""},
        {"{\"outputs\":[{\"name\":\"y\",\"datatype\":\"FP32\"}],\"inputs\":[" INPUT_X "]}", MSG_UNKNOWN_FIELD,
         "/outputs/0/datatype", NULL},
        {"{\"outputs\":[{\"name\":\"y\",\"parameters\":{\"classification\":2}}],\"inputs\":[" INPUT_X "]}",
         MSG_UNKNOWN_FIELD, "/outputs/0/parameters/classification", NULL},
        {"{\"outputs\":[{\"name\":\"y\",\"parameters\":{\"binary_data\":1}}],\"inputs\":[" INPUT_X "]}", MSG_WRONG_TYPE,
         "/outputs/0/parameters/binary_data", NULL},
    };
    for (size_t i = 0; i < COUNT(rows); i++)
        expect_refused(infer(rows[i].json), rows[i].code, rows[i].pointer, rows[i].word, rows[i].json);
}

static void test_binary_refusals(void **state) {
    (void)state;
    static const char json[] = "{\"inputs\":[" INPUT("x", "[2,2]", "FP32", "16") "]}";
    static const double wide[] = {1, 2, 1e39, 3};
    const struct msg_config layer = layer_of(2, BN_F32, 1);
    unsigned char data[40] = {0};
    const uint64_t beyond = sizeof json + 100, largest = UINT64_MAX;
    expect_refused(infer_binary(json, data, 17, BN_F32), MSG_MALFORMED_FILE, NULL, "1 bytes", "a byte too many");
    expect_refused(infer_on(&layer, 0, json, data, 16, &beyond), MSG_MALFORMED_FILE, NULL, "Content-Length", "beyond");
    // Of 2^64 and more the server hands the largest on.
    expect_refused(infer_on(&layer, 0, json, data, 16, &largest), MSG_MALFORMED_FILE, NULL, "more than the", "largest");
    expect_refused(infer_binary("{\"inputs\":[" INPUT("x", "[2,2]", "FP64", "32") "]}", wide, sizeof wide, BN_F32),
                   MSG_OVERFLOW, "/inputs/0", "element 2", "overflow");
}

// Every cut of a good request, in its JSON and in its tensors, with the header that it had and one that follows the
// cut.
static void test_truncations(void **state) {
    (void)state;
    static const char json[] = "{" MODE("backward") "\"id\":\"a\",\"outputs\":[{\"name\":\"dx\"}],\"inputs\":[" INPUT(
        "dout", "[2,2]", "FP16", "8") "," INPUT("x", "[2,2]", "FP32", "16") "]}";
    const struct msg_config layer = layer_of(2, BN_F32, 1);
    unsigned char data[24] = {0};
    const uint64_t whole = sizeof json - 1;
    char cut[sizeof json] = "";
    for (size_t size = 0; size <= sizeof data; size++) {
        struct inferred d = infer_on(&layer, oip_padding(whole), json, data, size, &whole);
        assert_int_equal(d.error.code, size == sizeof data ? MSG_OK : MSG_MALFORMED_FILE);
        infer_release(&d);
    }
    for (size_t length = 1; length < whole; length++) { // 0 is a raw request
        const uint64_t header = length;
        memcpy(cut, json, length);
        struct inferred d = infer_on(&layer, 3, cut, data, 0, &whole);
        assert_int_equal(d.error.code, MSG_MALFORMED_FILE);
        infer_release(&d);
        d = infer_on(&layer, 3, cut, data, sizeof data, &header);
        assert_false(d.ok);
        infer_release(&d);
        d = infer_on(&layer, 3, json, data, sizeof data, &header); // the header cuts the JSON
        assert_false(d.ok);
        infer_release(&d);
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
        struct inferred d = infer_binary(json, data, sizeof data, BN_F32);
        if (!d.ok) assert_int_equal(d.error.code, MSG_MEMORY_FULL);
        assert_true(d.ok || !good);
        good = d.ok;
        infer_release(&d);
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
        TEST(test_refusals), TEST(test_binary_refusals), TEST(test_truncations), TEST(test_memory), TEST(test_places),
    };
    return cmocka_run_group_tests_name("oip_refusals", tests, NULL, NULL);
}
