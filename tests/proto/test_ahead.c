// SPDX-License-Identifier: Apache-2.0
//
// A call decoded from a body that was read ahead, in pieces of every size, is the one decoded from the body alone.
#include "scanned.h"

#include "../../proto/ahead.h"
#include "../../proto/json.h"
#include "../../proto/scan_nest.h"
#include "../../proto/spare.h"

static const char *const bodies[] = {
    "{\"x\":[[1,2.5],[-3e1,4]]}",
    " { \"x\" : [ [ 1 , 2 ] ,\n\t[ 3 , 4 ] ] , \"channel_axis\" : 1 } ",
    "{\"x\":[[1,2],[3,4]],\"dout\":[[5,6],[7,8]],\"residual\":[[9,10],[11,12]]}",
    "{\"dout\":{\"shape\":[2,3],\"data\":[1,2,3,4,5,6]},\"x\":{\"data\":[6,5,4,3,2,1],\"shape\":[2,3]}}",
    "{\"x\":[[\"NaN\",\"Infinity\"],[\"-Infinity\",\"\\u004eaN\"]],\"dout\":[[0.1,0.2],[0.3,0.4]]}",
    "{\"x\":[[[1e-400,1],[2,3]],[[-0.0,123456789012345678901234567890],[1e30,5]]],\"dout\":[[[1,2]],[[3,4]]]}",
    "{\"x\":[],\"dout\":[]}",
    "{\"x\":[[],[]],\"dout\":[[],[]]}",
    "{\"activation\":\"x\\\":[1,2,3\",\"x\":[[1,2]],\"dout\":[[3,4]]}",
    "{\"cache\":\"a:[[1,2],[3\",\"dout\":[[3,4]]}",
    "{\"step\":{\"lr\":[1,2,3,4]},\"dout\":[[3,4]]}",
    "{\"x\":[[1,2],[3,4]],\"x\":[[1,2],[3,4]],\"dout\":[[1,2]]}",
    "{\"a\":[1,2],\"b\":[1,2],\"c\":[1,2],\"d\":[1,2],\"e\":[1,2],\"f\":[1,2],\"g\":[1,2],\"h\":[1,2],\"x\":[[1,2]]}",
    // What is wrong is found where it stands, whatever was read before.
    "{\"x\":[[1,2],[3]],\"dout\":[[1,2]]}",
    "{\"x\":[[1,2],[3,4],5],\"dout\":[[1,2]]}",
    "{\"x\":[[1,2],[3,[4]]],\"dout\":[[1,2]]}",
    "{\"x\":[[1,2],[3,1e999]],\"dout\":[[1,2]]}",
    "{\"x\":[[1,2],[3,true]],\"dout\":[[1,2]]}",
    "{\"x\":[[1,2],[3,\"a,b\"]],\"dout\":[[1,2]]}",
    "{\"x\":[[1,2],[3,01]],\"dout\":[[1,2]]}",
    "{\"x\":[[1,2],[3,,4]],\"dout\":[[1,2]]}",
    "{\"x\":[[1,2],[3,4,]],\"dout\":[[1,2]]}",
    "{\"x\":[[1,2],[3,4],\"dout\":[[1,2]]}",
    "{\"x\":[[1,2],[3,4]]],\"dout\":[[1,2]]}",
    "{\"x\":[1,2,3],\"dout\":[[1,2]]}",
    "{\"x\":[[[[[[[[[1,2]]]]]]]]],\"dout\":[[1,2]]}",
    "{\"x\":[[1,2],[3,4",
    "{\"x\":[[1,2],[3,4]],",
    "{\"x\":[{\"a\":[1,2]},3],\"dout\":[[1,2]]}",
};

static bool decode_call(struct msg_call *call, struct msg_error *error, const char *text, size_t length,
                        struct ahead *ahead, enum bn_dtype dtype) {
    *call = (struct msg_call){0};
    *error = (struct msg_error){0};
    return json_decode_call(call, MSG_BACKWARD, (struct json_body){text, length, &budget, ahead}, dtype, error);
}

static void check_tensor(const struct tensor *got, const struct tensor *want) {
    assert_int_equal(got->present, want->present);
    assert_int_equal(got->rank, want->rank);
    assert_int_equal(got->count, want->count);
    assert_int_equal(got->first_nonfinite, want->first_nonfinite);
    assert_memory_equal(got->dim, want->dim, sizeof want->dim[0] * (size_t)want->rank);
    assert_int_equal(got->values.size, want->values.size);
    if (want->values.size > 0) assert_memory_equal(got->values.data, want->values.data, want->values.size);
}

// Reads the text ahead in pieces of so many bytes, each time from another place, and decodes it.
static void check_pieces(const char *text, size_t piece, enum bn_dtype ahead_dtype, enum bn_dtype dtype) {
    const size_t length = strlen(text);
    struct ahead *ahead = ahead_new(ahead_dtype, length, &budget);
    for (size_t come = piece; come < length + piece; come += piece) {
        const size_t now = come < length ? come : length;
        char *const copy = alone(text, now);
        ahead_read(ahead, copy, now);
        free(copy);
    }
    struct msg_call got, want;
    struct msg_error got_error, want_error;
    char *const copy = alone(text, length);
    assert_int_equal(decode_call(&got, &got_error, copy, length, ahead, dtype),
                     decode_call(&want, &want_error, copy, length, NULL, dtype));
    free(copy);
    assert_int_equal(got_error.code, want_error.code);
    assert_string_equal(got_error.detail, want_error.detail);
    assert_string_equal(got_error.pointer, want_error.pointer);
    if (want_error.code == MSG_OK) {
        check_tensor(&got.x, &want.x);
        check_tensor(&got.dout, &want.dout);
        check_tensor(&got.residual, &want.residual);
    }
    msg_call_free(&got);
    msg_call_free(&want);
    ahead_free(&ahead);
    assert_null(ahead);
}

static void test_every_piece(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(bodies); i++) {
        for (size_t piece = 1; piece <= strlen(bodies[i]); piece++) {
            check_pieces(bodies[i], piece, BN_F32, BN_F32);
            check_pieces(bodies[i], piece, BN_F64, BN_F64);
            check_pieces(bodies[i], piece, BN_F32, BN_F64);
        }
    }
    assert_int_equal(budget.used, 0);
}

// Puts the scan at the text's array at `start` and takes what was read of it as `dtype`; the number of values.
static size_t resume_as(enum bn_dtype dtype, struct ahead *ahead, const char *text, size_t start,
                        struct buffer *values) {
    struct msg_error error = {0};
    struct scan scan;
    struct nest nest;
    scan_start(&scan, text, strlen(text), &budget, &error);
    scan.at += start;
    struct sink sink = scan_sink_start(&scan, values, dtype, 0);
    return ahead_resume(ahead, &scan, &nest, &sink) ? sink.count : 0;
}

static size_t resume(struct ahead *ahead, const char *text, size_t start, struct buffer *values) {
    return resume_as(BN_F32, ahead, text, start, values);
}

static void test_reads_what_has_come(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t come, start, count;
    } cases[] = {
        {"{\"x\":[[1,2],[3,45]]}", 13, 5, 2},                                   // up to the comma
        {"{\"x\":[[1,2],[3,45]]}", 17, 5, 3},                                   // 45 may go on
        {"{\"x\":[[1,2],[3,45]],\"dout\":[[1,2]]}", 21, 5, 4},                  // the whole array
        {"{\"x\":[[1,2],[3,45]],\"dout\":[[1,2],[3]]}", 35, 27, 2},             // and the next one
        {"{\"x\":[[1,2],true,[3,45]],\"dout\":[[1,2],[3,4]]}", 44, 5, 0},       // what is wrong is left to the walk,
        {"{\"x\":[[1,2],true,[3,45]],\"dout\":[[1,2],[3,4]]}", 44, 32, 3},      // which does not concern the next one
        {"{\"x\":{\"shape\":[2,2],\"data\":[1,2,3,4]},\"step\":1}", 42, 27, 4}, // behind its shape
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct buffer values = {.budget = &budget};
        struct ahead *ahead = ahead_new(BN_F32, 0, &budget);
        ahead_read(ahead, cases[i].text, cases[i].come);
        assert_int_equal(cases[i].text[cases[i].start], '[');
        const size_t count = resume(ahead, cases[i].text, cases[i].start, &values);
        if (count != cases[i].count) fail_msg("%s: %zu values of %zu bytes", cases[i].text, count, cases[i].come);
        assert_int_equal(values.size, cases[i].count * sizeof(float));
        buffer_free(&values);
        ahead_free(&ahead);
    }
    assert_int_equal(budget.used, 0);
}

// Where the values do not fit, the walk is the one to say so.
static void test_without_memory(void **state) {
    (void)state;
    struct budget small = {.limit = 4};
    static const char text[] = "{\"x\":[[1,2],[3,4]],\"dout\":[[1,2],[3,4]]}";
    struct ahead *ahead = ahead_new(BN_F32, sizeof text - 1, &small);
    ahead_read(ahead, text, sizeof text - 1);
    struct msg_call call;
    struct msg_error error;
    assert_true(decode_call(&call, &error, text, sizeof text - 1, ahead, BN_F32));
    assert_int_equal(call.x.count, 4);
    msg_call_free(&call);
    ahead_free(&ahead);
    assert_int_equal(small.used, 0);
    assert_int_equal(budget.used, 0);
}

// An input of another datatype than FP32 is rounded to it first, so that it is read as f64.
static void test_datatypes(void **state) {
    (void)state;
    static const struct {
        const char *text;
        enum bn_dtype dtype;
    } cases[] = {
        {"{\"datatype\":\"FP32\",\"data\":[1,2,3]}", BN_F32},
        {"{\"datatype\":\"FP64\",\"data\":[1,2,3]}", BN_F64},
        {"{\"datatype\": \"FP16\", \"data\": [1,2,3]}", BN_F64},
        {"{\"datatype\":\"BF16\",\"shape\":[3,1],\"data\":[1,2,3]}", BN_F64},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct ahead *ahead = ahead_new(BN_F32, 0, &budget);
        struct buffer values = {.budget = &budget};
        const size_t length = strlen(cases[i].text), start = (size_t)(strstr(cases[i].text, "[1,2") - cases[i].text);
        ahead_read(ahead, cases[i].text, length);
        assert_int_not_equal(ahead_bytes(ahead), 0);
        assert_int_equal(ahead_bytes(ahead), budget.used);
        assert_int_equal(resume_as(cases[i].dtype, ahead, cases[i].text, start, &values), 2);
        buffer_free(&values);
        ahead_free(&ahead);
    }
    assert_int_equal(budget.used, 0);
}

// Text that only looks like arrays is not worth more than a few trials.
static void test_refused_arrays(void **state) {
    (void)state;
    char text[400] = "{";
    for (int i = 0; i < 40; i++) strcat(text, "\"a\":[{");
    const size_t bait = strlen(text);
    strcat(text, "\"x\":[1,2,3,4]}");
    for (size_t from = bait; from > 0; from = from > 70 ? from - 70 : 0) {
        struct ahead *ahead = ahead_new(BN_F32, 0, &budget);
        struct buffer values = {.budget = &budget};
        ahead_read(ahead, text + from, strlen(text + from));
        const size_t start = (size_t)(strstr(text + from, "[1") - (text + from));
        const bool few = bait - from < 16 * 6;
        assert_int_equal(resume(ahead, text + from, start, &values), few ? 3 : 0);
        buffer_free(&values);
        ahead_free(&ahead);
    }
    assert_int_equal(budget.used, 0);
}

// A body of some MiB, whose values go into a block that lies ready, and one for whose values the memory ends midway.
static void test_large(void **state) {
    (void)state;
    enum { VALUES = 1000000 };
    for (int round = 0; round < 3; round++) {
        struct budget small = {.limit = round < 2 ? SIZE_MAX : VALUES};
        struct buffer text = {0};
        spare_limit(round == 1 ? (size_t)16 << 20 : 0);
        if (round == 1) {
            void *const block = malloc(((size_t)5 << 20) + BUFFER_ALIGNMENT);
            if (!spare_give(block, (size_t)5 << 20)) fail_msg("the block is not kept");
        }
        assert_true(buffer_print(&text, "{\"x\":[["));
        for (int i = 0; i < VALUES; i++) assert_true(buffer_print(&text, "%s%d", i > 0 ? "," : "", i * 7 % 1000003));
        assert_true(buffer_print(&text, "]],\"dout\":[[1]]}"));
        struct ahead *ahead = ahead_new(BN_F32, text.size, &small);
        for (size_t come = 0; come < text.size; come += 30011) ahead_read(ahead, (const char *)text.data, come);
        struct msg_call call;
        struct msg_error error;
        assert_int_equal(ahead_bytes(ahead) > VALUES, round < 2);
        assert_true(decode_call(&call, &error, (const char *)text.data, text.size, ahead, BN_F32));
        assert_int_equal(call.x.count, VALUES);
        for (int i = 0; i < VALUES; i++) {
            const float value = ((const float *)(const void *)call.x.values.data)[i];
            if (value != (float)(i * 7 % 1000003)) fail_msg("value %d is %g", i, (double)value);
        }
        msg_call_free(&call);
        ahead_free(&ahead);
        buffer_free(&text);
        assert_int_equal(small.used, 0);
    }
    spare_limit(0);
    spare_expire(UINT64_MAX / 2);
    spare_expire(UINT64_MAX);
}

static void test_stop(void **state) {
    (void)state;
    static const char text[] = "{\"x\":[[1,2],[3,4]],\"dout\":[[1,2],[3,4]]}";
    struct ahead *ahead = ahead_new(BN_F32, sizeof text - 1, &budget);
    ahead_read(ahead, text, 20);
    assert_int_not_equal(budget.used, 0);
    ahead_stop(ahead);
    assert_int_equal(budget.used, 0);
    ahead_read(ahead, text, sizeof text - 1);
    assert_int_equal(budget.used, 0);
    struct buffer values = {.budget = &budget};
    assert_int_equal(resume(ahead, text, 5, &values), 0);
    ahead_free(&ahead);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_piece),    cmocka_unit_test(test_reads_what_has_come),
        cmocka_unit_test(test_without_memory), cmocka_unit_test(test_datatypes),
        cmocka_unit_test(test_refused_arrays), cmocka_unit_test(test_large),
        cmocka_unit_test(test_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
