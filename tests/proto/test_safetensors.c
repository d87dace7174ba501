// SPDX-License-Identifier: Apache-2.0
//
// safetensors files in and out: headers good and hostile, tensors at every alignment, what a reply consists of, and
// states and snapshots in pieces of every size.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/safetensors.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static struct budget budget = {.limit = 1 << 22};

static int fresh_budget(void **state) {
    (void)state;
    budget.used = 0;
    budget.limit = 1 << 22;
    return 0;
}

// ---- files

static struct buffer file_of(const char *header, const void *data, size_t size) {
    struct buffer file = {.budget = &budget};
    const uint64_t length = strlen(header);
    assert_true(buffer_reserve(&file, sizeof length + length + size)); // no more than that, for sanitizers
    assert_true(buffer_append(&file, &length, sizeof length) && buffer_append(&file, header, length));
    assert_true(buffer_append(&file, data, size));
    return file;
}

struct decoded {
    struct msg_call call;
    struct msg_state state;
    struct msg_snapshot snapshot;
    struct msg_error error;
    bool ok;
};

enum kind { TRAIN = MSG_TRAIN_FORWARD, INFER = MSG_INFERENCE, BACK = MSG_BACKWARD, STATE, SNAPSHOT, KINDS };

static struct decoded decode(struct buffer file, enum kind kind, enum bn_dtype dtype) {
    const struct codec_request request = {.body = &file, .budget = &budget};
    struct decoded d = {.ok = false};
    if (kind == STATE) {
        d.ok = safetensors_decode_state(&d.state, "it", &request, &d.error);
    } else if (kind == SNAPSHOT) {
        d.ok = safetensors_decode_snapshot(&d.snapshot, &request, &d.error);
    } else {
        d.ok = safetensors_decode_call(&d.call, (enum msg_call_kind)kind, &request, dtype, &d.error);
    }
    assert_int_equal(d.ok, d.error.code == MSG_OK);
    assert_false(d.error.has_pointer);
    assert_true(d.ok || d.error.detail[0] != '\0');
    assert_int_equal(file.capacity, 0); // taken over
    return d;
}

static void release(struct decoded *d) {
    msg_call_free(&d->call);
    msg_state_free(&d->state);
    msg_snapshot_free(&d->snapshot);
    assert_int_equal(budget.used, 0);
}

static void expect_code(struct buffer file, enum kind kind, enum msg_code code, const char *what) {
    struct decoded d = decode(file, kind, BN_F32);
    if (d.error.code != code)
        fail_msg("%s, kind %d: %s (%s), expected %s", what, (int)kind, msg_codes[d.error.code].name, d.error.detail,
                 msg_codes[code].name);
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

static const float four[] = {1, 2.5f, -0.75f, 4};
#define X_OF_FOUR "\"x\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}"

// ---- headers

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
        struct decoded d = decode(file_of(headers[i], four, sizeof four), INFER, BN_F32);
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
            expect_code(file_of(headers[i], four, sizeof four), kind, MSG_MALFORMED_FILE, headers[i]);
    }
}

static void test_lengths(void **state) {
    (void)state;
    static const uint64_t lengths[] = {
        0, 1, 100, 100000000, 100000001, UINT64_MAX, UINT64_MAX - 7, UINT64_MAX - 8, (uint64_t)1 << 63};
    for (enum kind kind = TRAIN; kind < KINDS; kind++) {
        for (size_t i = 0; i < COUNT(lengths); i++) {
            struct buffer file = file_of("{" X_OF_FOUR "}", four, sizeof four);
            memcpy(file.data, &lengths[i], sizeof lengths[i]);
            expect_code(file, kind, MSG_MALFORMED_FILE, "length");
        }
        const struct buffer file = file_of("{" X_OF_FOUR "}", four, sizeof four);
        for (size_t length = 0; length < file.size; length++) {
            struct buffer prefix = {.budget = &budget};
            assert_true(buffer_reserve(&prefix, length) && buffer_append(&prefix, file.data, length));
            struct decoded d = decode(prefix, kind, BN_F32);
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

#define BN_OF(name)                                                                                                    \
    "\"" name "weight\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"" name                              \
    "bias\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[4,6]},\"" name                                          \
    "running_mean\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[6,8]},\"" name                                 \
    "running_var\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[8,16]},\"" name                                  \
    "num_batches_tracked\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[16,24]}"
static const unsigned char bn_data[24] = {0, 0, 0x80, 0x3f, 0, 0x41, 0x40, 0xbf, 0, 0, 0, 0, 0, 0, 0x10, 0x40, 5};

// One byte changed to each of these: whatever comes of it, no memory is left and none is touched that is not ours.
static void test_changed_bytes(void **state) {
    (void)state;
    static const char bytes[] = "\0\"\\{}[],:0-9.e\xff ";
    static const char *const headers[KINDS] = {
        "{" X_OF_FOUR ",\"__metadata__\":{\"cache\":\"true\"}}",
        "{" X_OF_FOUR "}",
        "{\"dout\":{\"dtype\":\"F16\",\"shape\":[2,2],\"data_offsets\":[8,16]},\"x\":{\"dtype\":\"BF16\",\"shape\":[2,"
        "2],"
        "\"data_offsets\":[0,8]},\"__metadata__\":{\"step\":\"{\\\"lr\\\":1}\"}}",
        "{" BN_OF("it.") ",\"__metadata__\":{\"it\":\"{\\\"num_features\\\":1}\"}}",
        "{" BN_OF("a.b.") ",\"__metadata__\":{\"a.b\":\"{\\\"num_features\\\":1}\"}}",
    };
    for (enum kind kind = TRAIN; kind < KINDS; kind++) {
        const bool call = kind < STATE;
        const void *const data = call ? (const void *)four : bn_data;
        const size_t size = call ? sizeof four : sizeof bn_data;
        struct decoded good = decode(file_of(headers[kind], data, size), kind, BN_F32);
        if (!good.ok) fail_msg("%s: %s", headers[kind], good.error.detail);
        release(&good);
        for (size_t i = 0; i < strlen(headers[kind]); i++) {
            for (size_t b = 0; b < sizeof bytes - 1; b++) {
                struct buffer file = file_of(headers[kind], data, size);
                file.data[8 + i] = (unsigned char)bytes[b];
                struct decoded d = decode(file, kind, BN_F32);
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
        {INFER, ",\"__metadata__\":{\"cache\":\"true\"}", MSG_UNKNOWN_FIELD},
        {BACK, "", MSG_MISSING_FIELD},
        {BACK, ",\"dout\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[16,16]}", MSG_OK},
        {BACK,
         ",\"dout\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[16,16]},"
         "\"__metadata__\":{\"cache\":\"\\\"id\\\"\"}",
         MSG_CONFLICTING_FIELDS},
        {BACK,
         ",\"dout\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[16,16]},"
         "\"__metadata__\":{\"step\":\"{\\\"lr\\\": 0.5}\",\"mode\":\"\\\"inference\\\"\"}",
         MSG_OK},
        {BACK,
         ",\"dout\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[16,16]},"
         "\"__metadata__\":{\"step\":\"{\\\"lr\\\": 0.5, \\\"lr\\\": 0.5}\"}",
         MSG_MALFORMED_FILE},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char header[600];
        snprintf(header, sizeof header, "{" X_OF_FOUR "%s}", rows[i].more);
        expect_code(file_of(header, four, sizeof four), rows[i].kind, rows[i].code, header);
    }
    const struct buffer no_x = file_of("{}", "", 0);
    expect_code(no_x, TRAIN, MSG_MISSING_FIELD, "nothing");
    struct buffer file = file_of("{" X_OF_FOUR "}", four, sizeof four);
    struct codec_request request = {
        .body = &file, .budget = &budget, .options = {.option = {{"cache", "true"}}, .count = 1}};
    struct decoded d = {.ok = false};
    assert_false(safetensors_decode_call(&d.call, MSG_TRAIN_FORWARD, &request, BN_F32, &d.error));
    assert_int_equal(d.error.code, MSG_BAD_PARAMETER);
    buffer_free(&file);
    release(&d);
}

static void test_fields(void **state) {
    (void)state;
    struct decoded d = decode(file_of("{\"dout\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
                                      "\"__metadata__\":{\"cache\":\"\\\"abc\\\"\",\"channel_axis\":\"-2\","
                                      "\"step\":\"{\\\"weight_decay\\\":0.25,\\\"lr\\\":0.5}\"}}",
                                      four, sizeof four),
                              BACK, BN_F32);
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
        struct decoded d = decode(file_of(header, data, offset), BACK, dtype);
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
    struct decoded d = decode(file_of("{" X_OF_FOUR "}", four, sizeof four), INFER, BN_F32);
    assert_true(d.ok);
    assert_null(d.call.x.values.memory);
    assert_int_equal(budget.used, d.call.body.capacity);
    release(&d);
    d = decode(file_of("{" X_OF_FOUR "}", four, sizeof four), INFER, BN_F64);
    assert_true(d.ok);
    assert_int_equal(d.call.body.capacity, 0);
    release(&d);
    struct buffer file = file_of("{" X_OF_FOUR "}", four, sizeof four);
    budget.limit = budget.used;
    d = decode(file, INFER, BN_F32);
    assert_int_equal(d.error.code, MSG_BODY_TOO_LARGE); // the table does not fit, and never will
    release(&d);
}

// ---- replies

struct read {
    json_t *header, *metadata;
    const unsigned char *data;
    struct buffer file;
};

// The reply as one file, with the checks that readers make.
static struct read read_reply(const struct buffer *out, const struct msg_extra *extra) {
    struct read r = {.file.budget = &budget};
    assert_true(buffer_append(&r.file, out->data, out->size));
    for (size_t i = 0; i < extra->pieces; i++)
        assert_true(buffer_append(&r.file, extra->piece[i].data, extra->piece[i].size));
    uint64_t length;
    memcpy(&length, r.file.data, sizeof length);
    assert_int_equal(length % 8, 0);
    assert_true(length <= r.file.size - 8);
    r.header = json_loadb((const char *)r.file.data + 8, (size_t)length, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(r.header);
    r.data = r.file.data + 8 + length;
    r.metadata = json_incref(json_object_get(r.header, "__metadata__"));
    json_object_del(r.header, "__metadata__");
    return r;
}

static void free_read(struct read *r) {
    json_decref(r->header);
    json_decref(r->metadata);
    buffer_free(&r->file);
}

static const void *tensor_of(const struct read *r, const char *name, const char *dtype, size_t bytes) {
    const json_t *const info = json_object_get(r->header, name), *const offsets = json_object_get(info, "data_offsets");
    assert_non_null(info);
    assert_string_equal(json_string_value(json_object_get(info, "dtype")), dtype);
    const size_t begin = (size_t)json_integer_value(json_array_get(offsets, 0));
    assert_int_equal(json_integer_value(json_array_get(offsets, 1)), begin + bytes);
    assert_true((size_t)(r->data - r->file.data) + begin + bytes <= r->file.size);
    return r->data + begin;
}

static void expect_field(const struct read *r, const char *name, const char *text) {
    const char *const got = json_string_value(json_object_get(r->metadata, name));
    if (text == NULL ? got != NULL : got == NULL || strcmp(got, text) != 0)
        fail_msg("%s: %s, expected %s", name, got != NULL ? got : "-", text != NULL ? text : "-");
}

static struct tensor tensor_with(const float *values, size_t n, enum wire_dtype wire) {
    struct tensor t = {.rank = 2, .dim = {1, n}, .count = n, .dtype = BN_F32, .wire = wire, .present = true};
    t.values.budget = &budget;
    assert_true(buffer_reserve(&t.values, codec_values_room(&codecs[CODEC_SAFETENSORS], &t)));
    if (n > 0) memcpy(t.values.data, values, n * sizeof *values);
    return t;
}

static void test_train_reply(void **state) {
    (void)state;
    const double mean[] = {0.1, -0.0, 3, 4}, var[] = {1e300, 5e-324, 0, 1};
    const struct msg_train_reply reply = {.batch_mean = mean,
                                          .batch_var = var,
                                          .channels = 4,
                                          .count = 10,
                                          .tracks = true,
                                          .num_batches_tracked = UINT64_MAX,
                                          .updated = true,
                                          .version = 7,
                                          .cache = "0123456789abcdef"};
    struct tensor y = tensor_with(four, 4, WIRE_F64); // widened in its place
    y.swapped = true;                                 // which is npy's alone
    struct buffer out = {.budget = &budget};
    struct msg_extra extra = {.pieces = 0};
    assert_true(safetensors_encode_train(&out, &extra, &reply, &y));
    assert_true(out.size <= SAFETENSORS_HEADER_MAX);
    struct read r = read_reply(&out, &extra);
    assert_int_equal(json_object_size(r.header), 3);
    assert_memory_equal(tensor_of(&r, "batch_mean", "F64", sizeof mean), mean, sizeof mean);
    assert_memory_equal(tensor_of(&r, "batch_var", "F64", sizeof var), var, sizeof var);
    double wide[4];
    memcpy(wide, tensor_of(&r, "y", "F64", sizeof wide), sizeof wide);
    for (size_t i = 0; i < 4; i++) assert_true(wide[i] == (double)four[i]);
    assert_int_equal(json_object_size(r.metadata), 5);
    expect_field(&r, "count", "10");
    expect_field(&r, "num_batches_tracked", "18446744073709551615");
    expect_field(&r, "updated", "true");
    expect_field(&r, "version", "7");
    expect_field(&r, "cache", "\"0123456789abcdef\"");
    free_read(&r);
    buffer_free(&out);
    tensor_free(&y);
    assert_int_equal(budget.used, 0);
}

static void test_empty_reply(void **state) {
    (void)state;
    struct tensor y = tensor_with(NULL, 0, WIRE_BF16);
    y.rank = 0; // [] in JSON
    const struct msg_train_reply reply = {.channels = 3, .version = 1};
    struct buffer out = {.budget = &budget};
    struct msg_extra extra = {.pieces = 0};
    assert_true(safetensors_encode_train(&out, &extra, &reply, &y));
    struct read r = read_reply(&out, &extra);
    assert_int_equal(json_object_size(r.header), 1);
    tensor_of(&r, "y", "BF16", 0);
    expect_field(&r, "batch_mean", "null");
    expect_field(&r, "batch_var", "null");
    expect_field(&r, "num_batches_tracked", "null");
    expect_field(&r, "updated", "false");
    expect_field(&r, "cache", NULL);
    free_read(&r);
    buffer_free(&out);
    tensor_free(&y);
}

static void test_backward_reply(void **state) {
    (void)state;
    const double dgamma[] = {1, 2, 3, 4}, dbeta[] = {5, 6, 7, 8};
    const struct msg_backward_reply reply = {.dgamma = dgamma, .dbeta = dbeta, .channels = 4, .version = 2};
    const struct msg_backward_reply bare = {.channels = 4, .version = 3};
    struct tensor dx = tensor_with(four, 4, WIRE_F16), dresidual = tensor_with(four, 4, WIRE_F32);
    struct buffer out = {.budget = &budget};
    struct msg_extra extra = {.pieces = 0};
    assert_true(safetensors_encode_backward(&out, &extra, &reply, &dx, &dresidual));
    struct read r = read_reply(&out, &extra);
    assert_int_equal(json_object_size(r.header), 4);
    assert_memory_equal(tensor_of(&r, "dgamma", "F64", sizeof dgamma), dgamma, sizeof dgamma);
    assert_memory_equal(tensor_of(&r, "dbeta", "F64", sizeof dbeta), dbeta, sizeof dbeta);
    assert_memory_equal(tensor_of(&r, "dx", "F16", 8), "\x00\x3c\x00\x41\x00\xba\x00\x44", 8);
    assert_memory_equal(tensor_of(&r, "dresidual", "F32", sizeof four), four, sizeof four);
    assert_int_equal(json_object_size(r.metadata), 1);
    expect_field(&r, "version", "2");
    free_read(&r);
    out.size = 0;
    extra = (struct msg_extra){.pieces = 0};
    dx.count = 0;
    assert_true(safetensors_encode_backward(&out, &extra, &bare, &dx, NULL));
    r = read_reply(&out, &extra);
    expect_field(&r, "dgamma", "null");
    expect_field(&r, "dbeta", "null");
    assert_int_equal(json_object_size(r.header), 1);
    free_read(&r);
    out.size = 0;
    extra = (struct msg_extra){.pieces = 0};
    assert_true(safetensors_encode_inference(&out, &extra, &dresidual, UINT64_MAX));
    r = read_reply(&out, &extra);
    expect_field(&r, "version", "18446744073709551615");
    assert_memory_equal(tensor_of(&r, "y", "F32", sizeof four), four, sizeof four);
    free_read(&r);
    buffer_free(&out);
    tensor_free(&dx);
    tensor_free(&dresidual);
    assert_int_equal(budget.used, 0);
}

// The longest of everything fits the room that is reserved before a commit.
static void test_longest_reply(void **state) {
    (void)state;
    struct tensor y = tensor_with(NULL, 0, WIRE_BF16), dresidual = tensor_with(NULL, 0, WIRE_BF16);
    y.rank = dresidual.rank = 8;
    for (int l = 1; l < 8; l++) y.dim[l] = dresidual.dim[l] = SIZE_MAX;
    char cache[MSG_CACHE_ID_MAX + 1] = "";
    memset(cache, 'f', MSG_CACHE_ID_MAX);
    const double vector[1] = {0};
    struct buffer out = {.budget = &budget};
    struct msg_extra extra = {.pieces = 0};
    const struct msg_train_reply reply = {.batch_mean = vector,
                                          .batch_var = vector,
                                          .channels = 0,
                                          .count = UINT64_MAX,
                                          .tracks = true,
                                          .num_batches_tracked = UINT64_MAX,
                                          .version = UINT64_MAX,
                                          .cache = cache};
    assert_true(safetensors_encode_train(&out, &extra, &reply, &y));
    assert_true(out.size <= SAFETENSORS_HEADER_MAX - 200);
    out.size = 0;
    const struct msg_backward_reply back = {.dgamma = vector, .dbeta = vector, .version = UINT64_MAX};
    assert_true(safetensors_encode_backward(&out, &extra, &back, &y, &dresidual));
    assert_true(out.size <= SAFETENSORS_HEADER_MAX - 200);
    buffer_free(&out);
    tensor_free(&y);
    tensor_free(&dresidual);
}

// ---- states

static void test_state(void **state) {
    (void)state;
    static const char *const headers[] = {
        "{" BN_OF("it.") "}",
        "{" BN_OF("") "}  ",
        "{" BN_OF("") ",\"__metadata__\":{\"it\":\"{\\\"num_features\\\":1}\"}}",
        "{" BN_OF(
            "") ",\"__metadata__\":{\"format\":\"pt\",\"it\":\"no configuration\",\"x\":\"{\\\"num_features\\\":0}\"}}",
    };
    for (size_t i = 0; i < COUNT(headers); i++) {
        struct decoded d = decode(file_of(headers[i], bn_data, sizeof bn_data), STATE, BN_F32);
        if (!d.ok) fail_msg("%s: %s", headers[i], d.error.detail);
        const struct msg_vector *const vectors[] = {&d.state.gamma, &d.state.beta, &d.state.running_mean,
                                                    &d.state.running_var};
        for (size_t v = 0; v < 4; v++) {
            static const double expected[] = {1, 2.5, -0.75, 4};
            double value;
            assert_true(vectors[v]->given && !vectors[v]->null);
            assert_int_equal(vectors[v]->count, 1);
            memcpy(&value, vectors[v]->values.data, sizeof value);
            assert_true(value == expected[v]);
            assert_int_equal(vectors[v]->first_negative, v == 2 ? 0 : 1);
            assert_int_equal(vectors[v]->first_nonfinite, 1);
        }
        assert_true(d.state.has_num_batches_tracked && !d.state.null_num_batches_tracked);
        assert_int_equal(d.state.num_batches_tracked, 5);
        assert_int_equal(d.state.has_layer, i == 2);
        if (i == 2) assert_int_equal(d.state.layer.num_features, 1);
        release(&d);
    }
}

static void test_bad_states(void **state) {
    (void)state;
    static const struct {
        const char *header;
        enum msg_code code;
    } rows[] = {
        {"{\"weight\":{\"dtype\":\"F32\",\"shape\":[1,1],\"data_offsets\":[0,4]}}", MSG_SHAPE_MISMATCH},
        {"{\"weight\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", MSG_SHAPE_MISMATCH},
        {"{\"weight\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[0,4]}}", MSG_WRONG_TYPE},
        {"{\"weight\":{\"dtype\":\"Q4\",\"shape\":[1],\"data_offsets\":[0,4]}}", MSG_WRONG_TYPE},
        {"{\"num_batches_tracked\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", MSG_WRONG_TYPE},
        {"{\"num_batches_tracked\":{\"dtype\":\"I32\",\"shape\":[],\"data_offsets\":[0,4]}}", MSG_OK},
        {"{\"num_batches_tracked\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[0,4]}}", MSG_OK},
        {"{\"it.gamma\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", MSG_UNKNOWN_FIELD},
        {"{\"it\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", MSG_UNKNOWN_FIELD},
        {"{\"itx.weight\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", MSG_UNKNOWN_FIELD},
        {"{\"it.it.weight\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", MSG_UNKNOWN_FIELD},
        {"{\"it.weight\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"weight\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[4,4]}}",
         MSG_DUPLICATE_FIELD},
        {"{\"weight\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"__metadata__\":{\"it\":\"{\\\"num_features\\\":0}\"}}",
         MSG_OUT_OF_RANGE},
        {"{\"weight\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"__metadata__\":{\"it\":\"{\\\"num_features\\\":1,\\\"x\\\":1}\"}}",
         MSG_UNKNOWN_FIELD},
    };
    for (size_t i = 0; i < COUNT(rows); i++)
        expect_code(file_of(rows[i].header, four, 4), STATE, rows[i].code, rows[i].header);
    static const unsigned char negative[8] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    expect_code(
        file_of("{\"num_batches_tracked\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]}}", negative, 8),
        STATE, MSG_OUT_OF_RANGE, "negative");
    expect_code(
        file_of("{\"num_batches_tracked\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[0,8]}}", negative, 8),
        STATE, MSG_SHAPE_MISMATCH, "two");
}

// ---- snapshots

static void test_snapshot(void **state) {
    (void)state;
    struct decoded d = decode(
        file_of("{" BN_OF(
                    "z.bn.") ",\"__metadata__\":{\"format\":\"pt\",\"a\":\"{\\\"num_features\\\":2,\\\"affine\\\":"
                             "false,\\\"track_running_stats\\\":false}\",\"-x\":\"{\\\"num_features\\\":0}\"},"
                             "\"fc.weight\":{\"dtype\":\"Q4\",\"shape\":[7,1,1,1,1,1,1,1,1],\"data_offsets\":[24,25]},"
                             "\"half.running_mean\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[25,25]},"
                             "\"-no.running_mean\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[25,25]},"
                             "\"-no.running_var\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[25,25]}}",
                "\0\0\x80\x3f\0\x41\x40\xbf\0\0\0\0\0\0\x10\x40\5\0\0\0\0\0\0\0q", 25),
        SNAPSHOT, BN_F32);
    if (!d.ok) fail_msg("%s", d.error.detail);
    assert_int_equal(d.snapshot.count, 2);
    const struct msg_snapshot_entry *const a = &d.snapshot.entries[0], *const z = &d.snapshot.entries[1];
    assert_string_equal(a->name, "a");
    assert_true(a->state.has_layer && !a->has_guess && !a->state.gamma.given && !a->state.has_num_batches_tracked);
    assert_string_equal(z->name, "z.bn");
    assert_true(!z->state.has_layer && z->has_guess && z->guess.affine);
    assert_int_equal(z->guess.num_features, 1);
    assert_int_equal(z->state.num_batches_tracked, 5);
    static const char *const ignored[] = {"-no.running_mean", "-no.running_var", "fc.weight", "half.running_mean"};
    assert_int_equal(d.snapshot.ignored, COUNT(ignored));
    for (size_t i = 0; i < COUNT(ignored); i++) assert_string_equal(msg_snapshot_ignored(&d.snapshot, i), ignored[i]);
    release(&d);
}

// As PyTorch before 0.4.1 wrote them, and a layer that is not affine.
static void test_old_snapshot(void **state) {
    (void)state;
    struct decoded d = decode(file_of("{\"a.running_mean\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
                                      "\"a.running_var\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}",
                                      four, sizeof four),
                              SNAPSHOT, BN_F32);
    assert_true(d.ok);
    const struct msg_snapshot_entry *const entry = d.snapshot.entries;
    assert_true(entry->state.has_num_batches_tracked && entry->has_guess && !entry->guess.affine);
    assert_int_equal(entry->state.num_batches_tracked, 0);
    assert_int_equal(entry->guess.num_features, 2);
    release(&d);
    expect_code(file_of("{\"a.running_mean\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},"
                        "\"a.running_var\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}",
                        "", 0),
                SNAPSHOT, MSG_OUT_OF_RANGE, "no channels");
    expect_code(file_of("{}", "", 0), SNAPSHOT, MSG_OK, "nothing");
}

#define LAYERS 3

// States as the server writes them, in pieces of so many bytes.
static struct buffer write_states(const char *const *names, const struct msg_state_view *views, size_t count,
                                  size_t piece) {
    struct safetensors_states file = {.header = 0};
    struct buffer whole = {.budget = &budget}, out = {.budget = &budget};
    assert_true(buffer_reserve(&out, piece));
    for (size_t i = 0; i < count; i++) safetensors_measure(&file, names[i], &views[i]);
    assert_true(safetensors_begin(&file, &whole));
    for (size_t i = 0; i < count; i++) assert_true(safetensors_metadata(&file, &whole, names[i], &views[i]));
    assert_true(safetensors_begin_index(&file, &whole));
    for (size_t i = 0; i < count; i++) {
        const size_t before = whole.size;
        assert_true(safetensors_index(&file, &whole, names[i], &views[i]));
        assert_true(whole.size - before <= SAFETENSORS_LAYER_MAX);
    }
    assert_true(safetensors_begin_data(&file, &whole));
    assert_int_equal(whole.size % 8, 0);
    for (size_t i = 0; i < count; i++) {
        size_t next = 0;
        for (bool complete = false; !complete;) {
            complete = safetensors_data(&out, &views[i], &next);
            assert_true(out.size > 0 || complete);
            assert_true(out.size <= piece && buffer_append(&whole, out.data, out.size));
            out.size = 0;
        }
    }
    buffer_free(&out);
    return whole;
}

static void test_written_states(void **state) {
    (void)state;
    const double vector[] = {0.1, -0.0, 5e-324, 1.7976931348623157e308, 2};
    const struct msg_config whole = {
        .num_features = 5, .eps = 1e-5, .momentum = 0.1, .affine = true, .track_running_stats = true};
    const struct msg_config bare = {.num_features = 5, .eps = 5e-324, .momentum = NAN};
    const struct msg_state_view views[LAYERS] = {
        {5, vector, vector, vector, vector, true, INT64_MAX, 9, &whole, 0.1, 1},
        {5, NULL, NULL, NULL, NULL, false, 0, 1, &bare, NAN, 0},
        {5, NULL, NULL, vector, vector, true, 3, 1, &whole, 0.1, 1},
    };
    char longest[MSG_NAME_MAX + 1] = "";
    memset(longest, 'x', MSG_NAME_MAX);
    const char *const names[LAYERS] = {"a.b", "c", longest};
    const struct buffer reference = write_states(names, views, LAYERS, 4096);
    static const size_t pieces[] = {8, 9, 16, 17, 40, 41, 48, 100};
    for (size_t i = 0; i < COUNT(pieces); i++) {
        struct buffer again = write_states(names, views, LAYERS, pieces[i]);
        assert_int_equal(again.size, reference.size);
        assert_memory_equal(again.data, reference.data, again.size);
        buffer_free(&again);
    }
    const struct msg_extra none = {.pieces = 0};
    struct read r = read_reply(&reference, &none);
    assert_int_equal(json_object_size(r.header), 5 + 0 + 3);
    assert_memory_equal(tensor_of(&r, "a.b.running_var", "F64", sizeof vector), vector, sizeof vector);
    assert_memory_equal(tensor_of(&r, "a.b.num_batches_tracked", "I64", 8), "\xff\xff\xff\xff\xff\xff\xff\x7f", 8);
    assert_int_equal(json_object_size(r.metadata), LAYERS);
    json_t *const config = json_loads(json_string_value(json_object_get(r.metadata, "c")), 0, NULL);
    assert_int_equal(json_integer_value(json_object_get(config, "num_features")), 5);
    assert_true(json_is_null(json_object_get(config, "momentum")));
    json_decref(config);
    free_read(&r);
    struct decoded d = decode(reference, SNAPSHOT, BN_F32);
    if (!d.ok) fail_msg("%s", d.error.detail);
    assert_int_equal(d.snapshot.count, LAYERS);
    for (size_t i = 0; i < LAYERS; i++) {
        const struct msg_snapshot_entry *const entry = &d.snapshot.entries[i];
        assert_string_equal(entry->name, names[i]);
        assert_true(entry->state.has_layer);
        assert_int_equal(entry->state.gamma.given, views[i].gamma != NULL);
        assert_int_equal(entry->state.running_var.given, views[i].running_var != NULL);
        assert_int_equal(entry->state.has_num_batches_tracked, views[i].tracks);
        assert_int_equal(entry->state.num_batches_tracked, views[i].num_batches_tracked);
        if (views[i].running_var == NULL) continue;
        assert_memory_equal(entry->state.running_var.values.data, vector, sizeof vector);
        assert_null(entry->state.running_var.values.memory); // in its place
    }
    release(&d);
    struct buffer empty = write_states(names, views, 0, 8);
    d = decode(empty, SNAPSHOT, BN_F32);
    assert_true(d.ok && d.snapshot.count == 0);
    release(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_headers, fresh_budget),
        cmocka_unit_test_setup(test_malformed, fresh_budget),
        cmocka_unit_test_setup(test_lengths, fresh_budget),
        cmocka_unit_test_setup(test_changed_bytes, fresh_budget),
        cmocka_unit_test_setup(test_calls, fresh_budget),
        cmocka_unit_test_setup(test_fields, fresh_budget),
        cmocka_unit_test_setup(test_places, fresh_budget),
        cmocka_unit_test_setup(test_memory, fresh_budget),
        cmocka_unit_test_setup(test_train_reply, fresh_budget),
        cmocka_unit_test_setup(test_empty_reply, fresh_budget),
        cmocka_unit_test_setup(test_backward_reply, fresh_budget),
        cmocka_unit_test_setup(test_longest_reply, fresh_budget),
        cmocka_unit_test_setup(test_state, fresh_budget),
        cmocka_unit_test_setup(test_bad_states, fresh_budget),
        cmocka_unit_test_setup(test_snapshot, fresh_budget),
        cmocka_unit_test_setup(test_old_snapshot, fresh_budget),
        cmocka_unit_test_setup(test_written_states, fresh_budget),
    };
    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
