// SPDX-License-Identifier: Apache-2.0
//
// npy files in and out: headers as numpy and others write them, every type, order and place of the elements, hostile
// files, options, and what a reply consists of.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "../../proto/binary.h"
#include "../../proto/npy.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static struct budget budget = {.limit = 1 << 22};

static int fresh_budget(void **state) {
    (void)state;
    budget.used = 0;
    budget.limit = 1 << 22;
    return 0;
}

// ---- files

// The file of a header's text, which is not padded, and elements.
static struct buffer file_of(int major, const char *literal, const void *data, size_t size) {
    struct buffer file = {.budget = &budget};
    const size_t length = strlen(literal);
    unsigned char start[12] = {0x93, 'N', 'U', 'M', 'P', 'Y', (unsigned char)major, 0};
    for (size_t i = 0; i < 4; i++) start[8 + i] = (unsigned char)(length >> 8 * i);
    assert_true(buffer_reserve(&file, 12 + length + size)); // no more than that, for sanitizers
    assert_true(buffer_append(&file, start, major == 1 ? 10 : 12) && buffer_append(&file, literal, length));
    assert_true(buffer_append(&file, data, size));
    return file;
}

struct decoded {
    struct msg_call call;
    struct msg_error error;
    bool ok;
};

static struct decoded decode(struct buffer file, enum msg_call_kind kind, enum bn_dtype dtype,
                             const struct msg_options *options) {
    struct codec_request request = {.body = &file, .budget = &budget};
    struct decoded d = {.ok = false};
    if (options != NULL) request.options = *options;
    d.ok = npy_decode_call(&d.call, kind, &request, dtype, &d.error);
    assert_int_equal(d.ok, d.error.code == MSG_OK);
    assert_false(d.error.has_pointer);
    assert_true(d.ok || d.error.detail[0] != '\0');
    assert_int_equal(file.capacity, 0); // taken over
    return d;
}

static void release(struct decoded *d) {
    msg_call_free(&d->call);
    assert_int_equal(budget.used, 0);
}

static void expect_code(struct buffer file, enum msg_code code, const char *what) {
    struct decoded d = decode(file, MSG_INFERENCE, BN_F32, NULL);
    if (d.error.code != code)
        fail_msg("%s: %s (%s), expected %s", what, msg_codes[d.error.code].name, d.error.detail, msg_codes[code].name);
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

// True where the values lie in the body.
static bool in_place(const struct msg_call *call) {
    const unsigned char *const at = call->x.values.data, *const body = call->body.data;
    return body != NULL && at >= body && at < body + call->body.capacity;
}

static const float four[] = {1, 2.5f, -0.75f, 4};
#define HEADER_2_2 "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }"

static void test_versions(void **state) {
    (void)state;
    for (int major = 0; major < 6; major++) {
        struct decoded d = decode(file_of(major, HEADER_2_2 " \n", four, sizeof four), MSG_INFERENCE, BN_F32, NULL);
        assert_int_equal(d.error.code, major >= 1 && major <= 3 ? MSG_OK : MSG_MALFORMED_FILE);
        for (size_t i = 0; i < 4 && d.ok; i++) assert_true(value_of(&d.call.x, i) == (double)four[i]);
        release(&d);
    }
    struct buffer minor = file_of(1, HEADER_2_2, four, sizeof four);
    minor.data[7] = 1;
    expect_code(minor, MSG_MALFORMED_FILE, "version 1.1");
}

static void test_literals(void **state) {
    (void)state;
    static const struct {
        const char *literal;
        int rank;
        size_t dim[3];
    } rows[] = {
        {HEADER_2_2, 2, {2, 2}},
        {HEADER_2_2 "\n", 2, {2, 2}},
        {HEADER_2_2 "            \n", 2, {2, 2}},
        {"{'shape': (2, 2), 'fortran_order': False, 'descr': '<f4'}\n", 2, {2, 2}},
        {"{\"fortran_order\":False,\"descr\":\"<f4\",\"shape\":(4,1)}", 2, {4, 1}},
        {" {\t'descr' :\n'<f4' , 'fortran_order' : False , 'shape' : ( 1 , 2 , 2 , ) , } ", 3, {1, 2, 2}},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 2L), }", 2, {2, 2}},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (02,2)}", 2, {2, 2}},
        {"{'descr': '=f4', 'fortran_order': False, 'shape': (2, 2), }", 2, {2, 2}},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct decoded d = decode(file_of(1, rows[i].literal, four, sizeof four), MSG_TRAIN_FORWARD, BN_F32, NULL);
        if (!d.ok) fail_msg("%s: %s", rows[i].literal, d.error.detail);
        assert_int_equal(d.call.x.rank, rows[i].rank);
        assert_memory_equal(d.call.x.dim, rows[i].dim, (size_t)rows[i].rank * sizeof(size_t));
        assert_int_equal(d.call.x.count, 4);
        assert_int_equal(d.call.x.first_nonfinite, 4);
        assert_true(d.call.x.present);
        for (size_t k = 0; k < 4; k++) assert_true(value_of(&d.call.x, k) == (double)four[k]);
        release(&d);
    }
}

static void test_empty(void **state) {
    (void)state;
    static const struct {
        const char *shape;
        int rank;
    } rows[] = {{"(0,)", 0}, {"(0, 3)", 2}, {"(2, 3, 0)", 3}, {"(0, 0)", 2}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        for (int fortran = 0; fortran < 2; fortran++) {
            char literal[100];
            snprintf(literal, sizeof literal, "{'descr': '<f8', 'fortran_order': %s, 'shape': %s, }",
                     fortran != 0 ? "True" : "False", rows[i].shape);
            struct decoded d = decode(file_of(1, literal, "", 0), MSG_INFERENCE, BN_F32, NULL);
            if (!d.ok) fail_msg("%s: %s", literal, d.error.detail);
            assert_int_equal(d.call.x.rank, rows[i].rank);
            assert_int_equal(d.call.x.count, 0);
            release(&d);
        }
    }
}

static void test_bad_literals(void **state) {
    (void)state;
    static const struct {
        const char *literal;
        enum msg_code code;
    } rows[] = {
        {"", MSG_MALFORMED_FILE},
        {" ", MSG_MALFORMED_FILE},
        {"[]", MSG_MALFORMED_FILE},
        {"{", MSG_MALFORMED_FILE},
        {"{}", MSG_MALFORMED_FILE},
        {"{,}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2)", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2)}}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2)} x", MSG_MALFORMED_FILE},
        {"{'descr': '<f4' 'fortran_order': False, 'shape': (2, 2)}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'fortran_order': False}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'shape': (2, 2)}", MSG_MALFORMED_FILE},
        {"{'fortran_order': False, 'shape': (2, 2)}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2, 2)}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), 'shape': (2, 2)}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), 'x': 1}", MSG_MALFORMED_FILE},
        {"{'descr_and_a_very_long_key': '<f4', 'fortran_order': False, 'shape': (2, 2)}", MSG_MALFORMED_FILE},
        {"{'descr': <f4, 'fortran_order': False, 'shape': (2, 2)}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4, 'fortran_order': False, 'shape': (2, 2)}", MSG_MALFORMED_FILE},
        {"{'descr': '<f\\x34', 'fortran_order': False, 'shape': (2, 2)}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 2)}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'fortran_order': false, 'shape': (2, 2)}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'fortran_order': Falsehood, 'shape': (2, 2)}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': [2, 2]}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': 4}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4)}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2 2)}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (,)}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,,2)}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -2)}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2.0, 2)}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}", MSG_MALFORMED_FILE}, // more than there is
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1)}", MSG_MALFORMED_FILE}, // less
        {"{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2)}", MSG_MALFORMED_FILE},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': ()}", MSG_SHAPE_MISMATCH},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}", MSG_SHAPE_MISMATCH},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,2,2)}", MSG_SHAPE_MISMATCH},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}", MSG_SHAPE_MISMATCH},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 1)}", MSG_SHAPE_MISMATCH},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 0)}", MSG_SHAPE_MISMATCH},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (18446744073709551616, 1)}", MSG_SHAPE_MISMATCH},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999, 1)}", MSG_SHAPE_MISMATCH},
        {"{'descr': '|O', 'fortran_order': False, 'shape': (2, 2)}", MSG_WRONG_TYPE},
        {"{'descr': '<i4', 'fortran_order': False, 'shape': (2, 2)}", MSG_WRONG_TYPE},
        {"{'descr': '<i8', 'fortran_order': False, 'shape': (2, 1)}", MSG_WRONG_TYPE},
        {"{'descr': '|b1', 'fortran_order': False, 'shape': (4, 4)}", MSG_WRONG_TYPE},
        {"{'descr': '<c8', 'fortran_order': False, 'shape': (2, 1)}", MSG_WRONG_TYPE},
        {"{'descr': '<f16', 'fortran_order': False, 'shape': (1, 1)}", MSG_WRONG_TYPE},
        {"{'descr': '|f4', 'fortran_order': False, 'shape': (2, 2)}", MSG_WRONG_TYPE},
        {"{'descr': '|V2', 'fortran_order': False, 'shape': (4, 2)}", MSG_WRONG_TYPE},
        {"{'descr': '|V4', 'fortran_order': False, 'shape': (2, 2)}", MSG_WRONG_TYPE},
        {"{'descr': '', 'fortran_order': False, 'shape': (2, 2)}", MSG_WRONG_TYPE},
        {"{'descr': '<f4 and more than there is room for', 'fortran_order': False, 'shape': (2, 2)}", MSG_WRONG_TYPE},
        {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 2)}", MSG_WRONG_TYPE},
    };
    for (size_t i = 0; i < COUNT(rows); i++)
        expect_code(file_of(1, rows[i].literal, four, sizeof four), rows[i].code, rows[i].literal);
}

// No prefix passes, nor a byte too many, and a header that claims to be longer than the file is refused.
static void test_lengths(void **state) {
    (void)state;
    for (int major = 1; major <= 3; major++) {
        const size_t size = (major == 1 ? 10 : 12) + strlen(HEADER_2_2) + sizeof four;
        for (size_t length = 0; length <= size + 1; length++) {
            struct buffer whole = file_of(major, HEADER_2_2, four, sizeof four), file = {.budget = &budget};
            assert_true(buffer_append(&whole, "x", 1));
            assert_true(length == 0 || (buffer_reserve(&file, length) && buffer_append(&file, whole.data, length)));
            buffer_free(&whole);
            expect_code(file, length == size ? MSG_OK : MSG_MALFORMED_FILE, "prefix");
        }
    }
    static const unsigned char lengths[][4] = {{0xff, 0xff, 0xff, 0xff}, {0, 0, 0, 0x80}, {0xff, 0, 0, 0}};
    for (size_t i = 0; i < COUNT(lengths); i++) {
        struct buffer file = file_of(2, HEADER_2_2, four, sizeof four);
        memcpy(file.data + 8, lengths[i], 4);
        expect_code(file, MSG_MALFORMED_FILE, "a long header");
    }
    struct buffer not_npy = {.budget = &budget};
    assert_true(buffer_append(&not_npy, "{\"x\": [[1]]}", 12));
    expect_code(not_npy, MSG_MALFORMED_FILE, "JSON");
    assert_true(npy_begins((const unsigned char *)"\x93NUMPY", 6));
    assert_false(npy_begins((const unsigned char *)"\x93NUMPY", 5));
    assert_false(npy_begins((const unsigned char *)"\x93NUMPZ", 6));
    assert_false(npy_begins(NULL, 0));
}

// One byte changed to each of these: whatever comes of it, no memory is left and none is touched that is not ours.
static void test_changed_bytes(void **state) {
    (void)state;
    static const char bytes[] = "\0\"'{}[](),:0-9LfTV<>|\n\xff ";
    const size_t size = 10 + strlen(HEADER_2_2);
    for (size_t i = 0; i < size; i++) {
        for (size_t b = 0; b < sizeof bytes - 1; b++) {
            struct buffer file = file_of(1, HEADER_2_2, four, sizeof four);
            file.data[i] = (unsigned char)bytes[b];
            struct decoded d = decode(file, MSG_INFERENCE, BN_F64, NULL);
            release(&d);
        }
    }
}

// ---- elements

// 1, 2.5, -0.75 and 4 in each type, little-endian.
static const struct {
    const char *descr;
    size_t size;
    unsigned char raw[32];
    enum wire_dtype wire;
} types[] = {
    {"f2", 2, {0, 0x3c, 0, 0x41, 0, 0xba, 0, 0x44}, WIRE_F16},
    {"f4", 4, {0, 0, 0x80, 0x3f, 0, 0, 0x20, 0x40, 0, 0, 0x40, 0xbf, 0, 0, 0x80, 0x40}, WIRE_F32},
    {"f8",
     8,
     {0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0, 0, 0, 0, 0, 0, 4,    0x40,
      0, 0, 0, 0, 0, 0, 0xe8, 0xbf, 0, 0, 0, 0, 0, 0, 0x10, 0x40},
     WIRE_F64},
    {"V2", 2, {0x80, 0x3f, 0x20, 0x40, 0x40, 0xbf, 0x80, 0x40}, WIRE_BF16},
};

static struct buffer typed_file(size_t type, char order, size_t padding) {
    unsigned char raw[32];
    char literal[300];
    const size_t size = types[type].size;
    for (size_t i = 0; i < 4 * size; i++) {
        const size_t from = order == '>' ? i / size * size + size - 1 - i % size : i;
        raw[i] = types[type].raw[from];
    }
    snprintf(literal, sizeof literal, "{'descr': '%c%s', 'fortran_order': False, 'shape': (2, 2)}%*s\n", order,
             types[type].descr, (int)padding, "");
    return file_of(1, literal, raw, 4 * size);
}

static const struct msg_options bf16 = {.option = {{"dtype", "bf16"}}, .count = 1};

// Every type and byte order, at every alignment, in layers of both types; kept, too.
static void test_types(void **state) {
    (void)state;
    for (size_t type = 0; type < COUNT(types); type++) {
        for (size_t padding = 0; padding < 64; padding++) {
            for (int variant = 0; variant < 8; variant++) {
                const bool is_bf16 = types[type].wire == WIRE_BF16, big = (variant & 1) != 0 && !is_bf16;
                const enum bn_dtype dtype = (variant & 2) != 0 ? BN_F64 : BN_F32;
                struct msg_options options = is_bf16 ? bf16 : (struct msg_options){.count = 0};
                if ((variant & 4) != 0) options.option[options.count++] = (struct msg_option){"cache", "true"};
                struct decoded d = decode(typed_file(type,
                                                     big       ? '>'
                                                     : is_bf16 ? '|'
                                                               : '<',
                                                     padding),
                                          MSG_TRAIN_FORWARD, dtype, &options);
                if (!d.ok) fail_msg("%s: %s", types[type].descr, d.error.detail);
                const struct tensor *const x = &d.call.x;
                assert_int_equal(x->wire, types[type].wire);
                assert_int_equal(x->swapped, big);
                assert_int_equal(x->dtype, dtype);
                assert_int_equal((uintptr_t)x->values.data % bn_dtype_size(dtype), 0);
                for (size_t i = 0; i < 4; i++) assert_true(value_of(x, i) == (double)four[i]);
                assert_int_equal(in_place(&d.call), types[type].size >= bn_dtype_size(dtype));
                if (!in_place(&d.call)) assert_int_equal(d.call.body.capacity, 0); // of no use any more
                release(&d);
            }
        }
    }
}

static void test_bf16(void **state) {
    (void)state;
    static const struct {
        size_t type;
        char order;
        const struct msg_options *options;
        enum msg_code code;
    } rows[] = {{3, '|', &bf16, MSG_OK},
                {3, '<', &bf16, MSG_OK},
                {3, '>', &bf16, MSG_CONFLICTING_FIELDS},
                {3, '|', NULL, MSG_WRONG_TYPE},
                {3, '<', NULL, MSG_WRONG_TYPE},
                {0, '<', &bf16, MSG_CONFLICTING_FIELDS},
                {1, '<', &bf16, MSG_CONFLICTING_FIELDS}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct decoded d = decode(typed_file(rows[i].type, rows[i].order, 0), MSG_INFERENCE, BN_F32, rows[i].options);
        if (d.error.code != rows[i].code) fail_msg("row %zu: %s", i, d.error.detail);
        release(&d);
    }
}

// Memory of a file whose elements are used in place is that of the file.
static void test_memory(void **state) {
    (void)state;
    struct decoded d = decode(typed_file(1, '<', 3), MSG_INFERENCE, BN_F32, NULL);
    assert_true(d.ok && in_place(&d.call));
    assert_int_equal(budget.used, d.call.body.capacity);
    release(&d);
    struct buffer file = typed_file(0, '<', 0);
    budget.limit = budget.used + 8; // 17 are wanted
    d = decode(file, MSG_INFERENCE, BN_F32, NULL);
    assert_int_equal(d.error.code, MSG_MEMORY_FULL);
    release(&d);
}

static void test_overflow(void **state) {
    (void)state;
    const double big[] = {1, -INFINITY, 0x1.ffffffp127, NAN};
    const char *const literal = "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 4)}";
    struct decoded d = decode(file_of(1, literal, big, sizeof big), MSG_INFERENCE, BN_F32, NULL);
    assert_int_equal(d.error.code, MSG_OVERFLOW);
    assert_non_null(strstr(d.error.detail, "element 2 of x"));
    release(&d);
    d = decode(file_of(1, literal, big, sizeof big), MSG_BACKWARD, BN_F64,
               &(struct msg_options){.option = {{"cache", "id"}}, .count = 1});
    assert_true(d.ok);
    assert_int_equal(d.call.dout.first_nonfinite, 1);
    release(&d);
}

// A value that tells its place, i in C order, at its place in Fortran order.
static void test_fortran(void **state) {
    (void)state;
    static const struct {
        int rank;
        size_t dim[8];
    } shapes[] = {{2, {2, 3}},
                  {2, {5, 1}},
                  {2, {1, 5}},
                  {3, {2, 3, 4}},
                  {3, {4, 1, 3}},
                  {4, {3, 2, 1, 4}},
                  {8, {2, 1, 2, 1, 3, 1, 2, 2}}};
    for (size_t s = 0; s < COUNT(shapes); s++) {
        const int rank = shapes[s].rank;
        const size_t *const dim = shapes[s].dim;
        char literal[200], shape[100] = "";
        size_t count = 1;
        for (int l = 0; l < rank; l++) {
            count *= dim[l];
            snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "%zu, ", dim[l]);
        }
        double values[100];
        for (size_t i = 0; i < count; i++) { // the place in C order of the i-th element in Fortran order
            size_t rest = i, place = 0;
            for (int l = 0; l < rank; l++) {
                size_t stride = 1;
                for (int k = l + 1; k < rank; k++) stride *= dim[k];
                place += rest % dim[l] * stride;
                rest /= dim[l];
            }
            values[i] = (double)place;
        }
        for (int type = 0; type < 3; type++) {
            unsigned char raw[800];
            static const enum wire_dtype wires[] = {WIRE_F16, WIRE_F32, WIRE_F64};
            tensor_to_wire(raw, wires[type], values, BN_F64, count);
            snprintf(literal, sizeof literal, "{'descr': '<f%d', 'fortran_order': True, 'shape': (%s)}", 2 << type,
                     shape);
            struct decoded d = decode(file_of(1, literal, raw, count * (2u << type)), MSG_INFERENCE, BN_F64, NULL);
            if (!d.ok) fail_msg("%s: %s", literal, d.error.detail);
            for (size_t i = 0; i < count; i++) {
                if (value_of(&d.call.x, i) != (double)i) fail_msg("%s: %g at %zu", literal, value_of(&d.call.x, i), i);
            }
            release(&d);
        }
    }
}

// ---- options

static void test_options(void **state) {
    (void)state;
    enum { T = 1 << MSG_TRAIN_FORWARD, I = 1 << MSG_INFERENCE, B = 1 << MSG_BACKWARD };
    static const struct {
        unsigned kinds; // of which this is an option
        const char *name, *value;
        enum msg_code code;
    } rows[] = {
        {T, "cache", "true", MSG_OK},
        {T, "cache", "false", MSG_OK},
        {T, "cache", "1", MSG_BAD_PARAMETER},
        {T, "cache", "", MSG_BAD_PARAMETER},
        {B, "cache", "", MSG_BAD_PARAMETER},
        {B, "cache", "0123456789012345678901234567890123456789012345678901234567890123", MSG_OK},
        {B, "cache", "01234567890123456789012345678901234567890123456789012345678901234", MSG_CACHE_GONE},
        {T | I | B, "channel_axis", "-1", MSG_OK},
        {T | I | B, "channel_axis", "7", MSG_OK},
        {T | I | B, "channel_axis", "-8", MSG_OK},
        {T | I | B, "channel_axis", "8", MSG_BAD_PARAMETER},
        {T | I | B, "channel_axis", "-9", MSG_BAD_PARAMETER},
        {T | I | B, "channel_axis", "99999999999999999999", MSG_BAD_PARAMETER},
        {T | I | B, "channel_axis", "1.0", MSG_BAD_PARAMETER},
        {T | I | B, "channel_axis", "", MSG_BAD_PARAMETER},
        {T | I | B, "channel_axis", " 1", MSG_BAD_PARAMETER},
        {T | I | B, "channel_axis", "+1", MSG_BAD_PARAMETER},
        {T | I | B, "channel_axis", "-", MSG_BAD_PARAMETER},
        {T | I, "activation", "relu", MSG_OK},
        {T | I, "activation", "gelu", MSG_BAD_PARAMETER},
        {B, "mode", "train", MSG_OK},
        {B, "mode", "inference", MSG_OK},
        {B, "mode", "Train", MSG_BAD_PARAMETER},
        {B, "step_lr", "0.1", MSG_OK},
        {B, "step_lr", "-1e-3", MSG_OK},
        {B, "step_lr", "1e999", MSG_BAD_PARAMETER},
        {B, "step_lr", "0.1x", MSG_BAD_PARAMETER},
        {B, "step_lr", "NaN", MSG_BAD_PARAMETER},
        {B, "step_lr", "", MSG_BAD_PARAMETER},
        {B, "step_weight_decay", "0.1", MSG_MISSING_FIELD},
        {T | I | B, "dtype", "bf16", MSG_CONFLICTING_FIELDS}, // the file has f4
        {T | I | B, "dtype", "f4", MSG_BAD_PARAMETER},
        {0, "residual", "x", MSG_BAD_PARAMETER},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        for (unsigned kind = 0; kind < 3; kind++) {
            struct msg_options options = {.option = {{rows[i].name, rows[i].value}}, .count = 1};
            const bool is_cache = strcmp(rows[i].name, "cache") == 0;
            if (kind == MSG_BACKWARD && !is_cache) options.option[options.count++] = (struct msg_option){"cache", "id"};
            const bool foreign = (rows[i].kinds & 1u << kind) == 0;
            if (foreign && is_cache && kind == MSG_BACKWARD) continue; // its value is an id there
            const enum msg_code code = foreign ? MSG_BAD_PARAMETER : rows[i].code;
            struct decoded d =
                decode(file_of(1, HEADER_2_2, four, sizeof four), (enum msg_call_kind)kind, BN_F32, &options);
            if (d.error.code != code)
                fail_msg("%s=%s, kind %u: %s (%s)", rows[i].name, rows[i].value, kind, msg_codes[d.error.code].name,
                         d.error.detail);
            release(&d);
        }
    }
}

static void test_option_values(void **state) {
    (void)state;
    const struct msg_options train = {.option = {{"cache", "true"}, {"channel_axis", "-2"}, {"activation", "relu"}},
                                      .count = 3};
    struct decoded d = decode(file_of(1, HEADER_2_2, four, sizeof four), MSG_TRAIN_FORWARD, BN_F32, &train);
    assert_true(d.ok && d.call.keep && d.call.has_channel_axis);
    assert_int_equal(d.call.channel_axis, -2);
    assert_int_equal(d.call.activation, BN_RELU);
    assert_false(d.call.dout.present);
    release(&d);
    const struct msg_options back = {
        .option = {{"cache", "id"}, {"mode", "inference"}, {"step_lr", "0.25"}, {"step_weight_decay", "1e-3"}},
        .count = 4};
    d = decode(file_of(1, HEADER_2_2, four, sizeof four), MSG_BACKWARD, BN_F32, &back);
    assert_true(d.ok && d.call.has_step && d.call.dout.present && !d.call.x.present);
    assert_string_equal(d.call.cache, "id");
    assert_int_equal(d.call.mode, MSG_MODE_INFERENCE);
    assert_true(d.call.lr == 0.25 && d.call.weight_decay == 1e-3);
    release(&d);
    d = decode(file_of(1, HEADER_2_2, four, sizeof four), MSG_BACKWARD, BN_F32, NULL);
    assert_int_equal(d.error.code, MSG_MISSING_FIELD);
    release(&d);
}

// ---- replies

static const char *field_of(const struct msg_extra *extra, const char *name) {
    const char *value = NULL;
    for (size_t i = 0; i < extra->fields; i++) {
        if (strcmp(extra->field[i].name, name) == 0) value = extra->field[i].value;
    }
    return value;
}

// What is sent, as one file, and as it is read again.
static struct buffer whole(const struct buffer *out, const struct msg_extra *extra) {
    struct buffer file = {.budget = &budget};
    assert_true(buffer_append(&file, out->data, out->size));
    for (size_t i = 0; i < extra->pieces; i++)
        assert_true(buffer_append(&file, extra->piece[i].data, extra->piece[i].size));
    return file;
}

// Every type and order comes back as it went in, in layers of both types.
static void test_round_trip(void **state) {
    (void)state;
    for (size_t type = 0; type < COUNT(types); type++) {
        for (int variant = 0; variant < 4; variant++) {
            const bool is_bf16 = types[type].wire == WIRE_BF16, big = (variant & 1) != 0 && !is_bf16;
            const enum bn_dtype dtype = (variant & 2) != 0 ? BN_F64 : BN_F32;
            const char order = big ? '>' : is_bf16 ? '|' : '<';
            struct decoded d = decode(typed_file(type, order, 0), MSG_INFERENCE, dtype, is_bf16 ? &bf16 : NULL);
            struct buffer out = {.budget = &budget};
            struct msg_extra extra = {.pieces = 0};
            assert_true(buffer_room(&d.call.x.values) + 1 >= codec_values_room(&codecs[CODEC_NPY], &d.call.x));
            assert_true(npy_encode_inference(&out, &extra, &d.call.x, 7));
            struct buffer sent = whole(&out, &extra), expected = typed_file(type, order, 0);
            const size_t size = 4 * types[type].size;
            assert_int_equal(out.size, 128); // as numpy writes it
            assert_int_equal(sent.size, 128 + size);
            assert_memory_equal(sent.data + 128, expected.data + expected.size - size, size);
            assert_string_equal(field_of(&extra, "Normd-Version"), "7");
            assert_int_equal(extra.fields, 1);
            buffer_free(&out);
            buffer_free(&expected);
            struct decoded again = decode(sent, MSG_INFERENCE, dtype, is_bf16 ? &bf16 : NULL);
            if (!again.ok) fail_msg("%s: %s", types[type].descr, again.error.detail);
            for (size_t i = 0; i < 4; i++) assert_true(value_of(&again.call.x, i) == (double)four[i]);
            msg_call_free(&d.call);
            release(&again);
        }
    }
}

static void test_headers(void **state) {
    (void)state;
    static const struct {
        int rank;
        size_t dim[8];
        const char *literal;
    } rows[] = {
        {0, {0}, "{'descr': '<f4', 'fortran_order': False, 'shape': (0,), }"},
        {2, {0, 3}, "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 3), }"},
        {8,
         {0, PTRDIFF_MAX, PTRDIFF_MAX, PTRDIFF_MAX, PTRDIFF_MAX, PTRDIFF_MAX, PTRDIFF_MAX, PTRDIFF_MAX},
         "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 9223372036854775807, 9223372036854775807, "
         "9223372036854775807, 9223372036854775807, 9223372036854775807, 9223372036854775807, 9223372036854775807), "
         "}"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct tensor y = {.rank = rows[i].rank, .dtype = BN_F32, .wire = WIRE_F32, .present = true};
        memcpy(y.dim, rows[i].dim, sizeof y.dim);
        struct buffer out = {.budget = &budget};
        struct msg_extra extra = {.pieces = 0};
        assert_true(npy_encode_inference(&out, &extra, &y, 1));
        assert_int_equal(out.size % 64, 0);
        assert_true(out.size <= NPY_HEADER_MAX);
        assert_int_equal(out.data[8] + 256 * out.data[9] + 10, out.size);
        assert_memory_equal(out.data, "\x93NUMPY\1\0", 8);
        assert_memory_equal(out.data + 10, rows[i].literal, strlen(rows[i].literal));
        for (size_t k = 10 + strlen(rows[i].literal); k + 1 < out.size; k++) assert_int_equal(out.data[k], ' ');
        assert_int_equal(out.data[out.size - 1], '\n');
        assert_int_equal(extra.pieces, 0);
        buffer_free(&out);
    }
}

static void test_fields(void **state) {
    (void)state;
    struct tensor y = {.rank = 2, .dim = {0, 1}, .dtype = BN_F32, .wire = WIRE_F32};
    const struct msg_train_reply full = {
        .count = 5, .tracks = true, .num_batches_tracked = UINT64_MAX, .updated = true, .version = 9, .cache = "abc"};
    const struct msg_train_reply least = {.count = 0, .version = 1};
    struct msg_extra extra = {.pieces = 0};
    struct buffer out = {.budget = &budget};
    assert_true(npy_encode_train(&out, &extra, &full, &y));
    assert_int_equal(extra.fields, 5);
    assert_string_equal(field_of(&extra, "Normd-Version"), "9");
    assert_string_equal(field_of(&extra, "Normd-Count"), "5");
    assert_string_equal(field_of(&extra, "Normd-Updated"), "true");
    assert_string_equal(field_of(&extra, "Normd-Num-Batches-Tracked"), "18446744073709551615");
    assert_string_equal(field_of(&extra, "Normd-Cache"), "abc");
    extra = (struct msg_extra){.pieces = 0};
    assert_true(npy_encode_train(&out, &extra, &least, &y));
    assert_int_equal(extra.fields, 3);
    assert_string_equal(field_of(&extra, "Normd-Updated"), "false");
    assert_null(field_of(&extra, "Normd-Num-Batches-Tracked"));
    assert_null(field_of(&extra, "Normd-Cache"));
    extra = (struct msg_extra){.pieces = 0};
    const struct msg_backward_reply back = {.version = 4};
    assert_true(npy_encode_backward(&out, &extra, &back, &y, &y));
    assert_int_equal(extra.fields, 1);
    assert_string_equal(field_of(&extra, "Normd-Version"), "4");
    buffer_free(&out);
    budget.limit = 0;
    struct buffer none = {.budget = &budget};
    extra = (struct msg_extra){.pieces = 0};
    assert_false(npy_encode_backward(&none, &extra, &back, &y, NULL));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_versions, fresh_budget),
        cmocka_unit_test_setup(test_literals, fresh_budget),
        cmocka_unit_test_setup(test_empty, fresh_budget),
        cmocka_unit_test_setup(test_bad_literals, fresh_budget),
        cmocka_unit_test_setup(test_lengths, fresh_budget),
        cmocka_unit_test_setup(test_changed_bytes, fresh_budget),
        cmocka_unit_test_setup(test_types, fresh_budget),
        cmocka_unit_test_setup(test_bf16, fresh_budget),
        cmocka_unit_test_setup(test_memory, fresh_budget),
        cmocka_unit_test_setup(test_overflow, fresh_budget),
        cmocka_unit_test_setup(test_fortran, fresh_budget),
        cmocka_unit_test_setup(test_options, fresh_budget),
        cmocka_unit_test_setup(test_option_values, fresh_budget),
        cmocka_unit_test_setup(test_round_trip, fresh_budget),
        cmocka_unit_test_setup(test_headers, fresh_budget),
        cmocka_unit_test_setup(test_fields, fresh_budget),
    };
    return cmocka_run_group_tests_name("npy", tests, NULL, NULL);
}
