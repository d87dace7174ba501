// SPDX-License-Identifier: Apache-2.0
//
// npy files in: headers as numpy and others write them, every type, order and place of the elements, hostile files.
#include "files.h"

// True where the values lie in the body.
static bool in_place(const struct msg_call *call) {
    const unsigned char *const at = call->x.values.data, *const body = call->body.data;
    return body != NULL && at >= body && at < body + call->body.capacity;
}

static void test_versions(void **state) {
    (void)state;
    for (int major = 0; major < 6; major++) {
        struct decoded d = decode_npy(npy_file(major, NPY_OF_FOUR " \n", four, sizeof four), INFERENCE, BN_F32, NULL);
        assert_int_equal(d.error.code, major >= 1 && major <= 3 ? MSG_OK : MSG_MALFORMED_FILE);
        for (size_t i = 0; i < 4 && d.ok; i++) assert_true(value_of(&d.call.x, i) == (double)four[i]);
        release(&d);
    }
    struct buffer minor = npy_file(1, NPY_OF_FOUR, four, sizeof four);
    minor.data[7] = 1;
    expect_npy(minor, MSG_MALFORMED_FILE, "version 1.1");
}

static void test_literals(void **state) {
    (void)state;
    static const struct {
        const char *literal;
        int rank;
        size_t dim[3];
    } rows[] = {
        {NPY_OF_FOUR, 2, {2, 2}},
        {NPY_OF_FOUR "\n", 2, {2, 2}},
        {NPY_OF_FOUR "            \n", 2, {2, 2}},
        {"{'shape': (2, 2), 'fortran_order': False, 'descr': '<f4'}\n", 2, {2, 2}},
        {"{\"fortran_order\":False,\"descr\":\"<f4\",\"shape\":(4,1)}", 2, {4, 1}},
        {" {\t'descr' :\n'<f4' , 'fortran_order' : False , 'shape' : ( 1 , 2 , 2 , ) , } ", 3, {1, 2, 2}},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 2L), }", 2, {2, 2}},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (02,2)}", 2, {2, 2}},
        {"{'descr': '=f4', 'fortran_order': False, 'shape': (2, 2), }", 2, {2, 2}},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct decoded d = decode_npy(npy_file(1, rows[i].literal, four, sizeof four), TRAIN, BN_F32, NULL);
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
            struct decoded d = decode_npy(npy_file(1, literal, "", 0), INFERENCE, BN_F32, NULL);
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
        expect_npy(npy_file(1, rows[i].literal, four, sizeof four), rows[i].code, rows[i].literal);
}

// No prefix passes, nor a byte too many, and a header that claims to be longer than the file is refused.
static void test_lengths(void **state) {
    (void)state;
    for (int major = 1; major <= 3; major++) {
        const size_t size = (major == 1 ? 10 : 12) + strlen(NPY_OF_FOUR) + sizeof four;
        for (size_t length = 0; length <= size + 1; length++) {
            struct buffer whole = npy_file(major, NPY_OF_FOUR, four, sizeof four), file = {.budget = &budget};
            assert_true(buffer_append(&whole, "x", 1));
            assert_true(length == 0 || (buffer_reserve(&file, length) && buffer_append(&file, whole.data, length)));
            buffer_free(&whole);
            expect_npy(file, length == size ? MSG_OK : MSG_MALFORMED_FILE, "prefix");
        }
    }
    static const unsigned char lengths[][4] = {{0xff, 0xff, 0xff, 0xff}, {0, 0, 0, 0x80}, {0xff, 0, 0, 0}};
    for (size_t i = 0; i < COUNT(lengths); i++) {
        struct buffer file = npy_file(2, NPY_OF_FOUR, four, sizeof four);
        memcpy(file.data + 8, lengths[i], 4);
        expect_npy(file, MSG_MALFORMED_FILE, "a long header");
    }
    struct buffer not_npy = {.budget = &budget};
    assert_true(buffer_append(&not_npy, "{\"x\": [[1]]}", 12));
    expect_npy(not_npy, MSG_MALFORMED_FILE, "JSON");
    assert_true(npy_begins((const unsigned char *)"\x93NUMPY", 6));
    assert_false(npy_begins((const unsigned char *)"\x93NUMPY", 5));
    assert_false(npy_begins((const unsigned char *)"\x93NUMPZ", 6));
    assert_false(npy_begins(NULL, 0));
}

// One byte changed to each of these: whatever comes of it, no memory is left and none is touched that is not ours.
static void test_changed_bytes(void **state) {
    (void)state;
    static const char bytes[] = "\0\"'{}[](),:0-9LfTV<>|\n\xff ";
    const size_t size = 10 + strlen(NPY_OF_FOUR);
    for (size_t i = 0; i < size; i++) {
        for (size_t b = 0; b < sizeof bytes - 1; b++) {
            struct buffer file = npy_file(1, NPY_OF_FOUR, four, sizeof four);
            file.data[i] = (unsigned char)bytes[b];
            struct decoded d = decode_npy(file, INFERENCE, BN_F64, NULL);
            release(&d);
        }
    }
}

// ---- elements

// Every type and byte order, at every alignment, in layers of both types; kept, too.
static void test_types(void **state) {
    (void)state;
    for (size_t type = 0; type < NPY_TYPES; type++) {
        for (size_t padding = 0; padding < 64; padding++) {
            for (int variant = 0; variant < 8; variant++) {
                const bool is_bf16 = npy_types[type].wire == WIRE_BF16, big = (variant & 1) != 0 && !is_bf16;
                const enum bn_dtype dtype = (variant & 2) != 0 ? BN_F64 : BN_F32;
                struct msg_options options = is_bf16 ? npy_bf16 : (struct msg_options){.count = 0};
                if ((variant & 4) != 0) options.option[options.count++] = (struct msg_option){"cache", "true"};
                struct decoded d = decode_npy(npy_typed_file(type,
                                                             big       ? '>'
                                                             : is_bf16 ? '|'
                                                                       : '<',
                                                             padding),
                                              TRAIN, dtype, &options);
                if (!d.ok) fail_msg("%s: %s", npy_types[type].descr, d.error.detail);
                const struct tensor *const x = &d.call.x;
                assert_int_equal(x->wire, npy_types[type].wire);
                assert_int_equal(x->swapped, big);
                assert_int_equal(x->dtype, dtype);
                assert_int_equal((uintptr_t)x->values.data % bn_dtype_size(dtype), 0);
                for (size_t i = 0; i < 4; i++) assert_true(value_of(x, i) == (double)four[i]);
                assert_int_equal(in_place(&d.call), npy_types[type].size >= bn_dtype_size(dtype));
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
    } rows[] = {{3, '|', &npy_bf16, MSG_OK},
                {3, '<', &npy_bf16, MSG_OK},
                {3, '>', &npy_bf16, MSG_CONFLICTING_FIELDS},
                {3, '|', NULL, MSG_WRONG_TYPE},
                {3, '<', NULL, MSG_WRONG_TYPE},
                {0, '<', &npy_bf16, MSG_CONFLICTING_FIELDS},
                {1, '<', &npy_bf16, MSG_CONFLICTING_FIELDS}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct decoded d =
            decode_npy(npy_typed_file(rows[i].type, rows[i].order, 0), INFERENCE, BN_F32, rows[i].options);
        if (d.error.code != rows[i].code) fail_msg("row %zu: %s", i, d.error.detail);
        release(&d);
    }
}

// Memory of a file whose elements are used in place is that of the file.
static void test_memory(void **state) {
    (void)state;
    struct decoded d = decode_npy(npy_typed_file(1, '<', 3), INFERENCE, BN_F32, NULL);
    assert_true(d.ok && in_place(&d.call));
    assert_int_equal(budget.used, d.call.body.capacity);
    release(&d);
    struct buffer file = npy_typed_file(0, '<', 0);
    budget.limit = budget.used + 8; // 17 are wanted
    d = decode_npy(file, INFERENCE, BN_F32, NULL);
    assert_int_equal(d.error.code, MSG_MEMORY_FULL);
    release(&d);
}

static void test_overflow(void **state) {
    (void)state;
    const double big[] = {1, -INFINITY, 0x1.ffffffp127, NAN};
    const char *const literal = "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 4)}";
    struct decoded d = decode_npy(npy_file(1, literal, big, sizeof big), INFERENCE, BN_F32, NULL);
    assert_int_equal(d.error.code, MSG_OVERFLOW);
    assert_non_null(strstr(d.error.detail, "element 2 of x"));
    release(&d);
    d = decode_npy(npy_file(1, literal, big, sizeof big), BACKWARD, BN_F64,
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
            struct decoded d = decode_npy(npy_file(1, literal, raw, count * (2u << type)), INFERENCE, BN_F64, NULL);
            if (!d.ok) fail_msg("%s: %s", literal, d.error.detail);
            for (size_t i = 0; i < count; i++) {
                if (value_of(&d.call.x, i) != (double)i) fail_msg("%s: %g at %zu", literal, value_of(&d.call.x, i), i);
            }
            release(&d);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_versions, fresh_budget), cmocka_unit_test_setup(test_literals, fresh_budget),
        cmocka_unit_test_setup(test_empty, fresh_budget),    cmocka_unit_test_setup(test_bad_literals, fresh_budget),
        cmocka_unit_test_setup(test_lengths, fresh_budget),  cmocka_unit_test_setup(test_changed_bytes, fresh_budget),
        cmocka_unit_test_setup(test_types, fresh_budget),    cmocka_unit_test_setup(test_bf16, fresh_budget),
        cmocka_unit_test_setup(test_memory, fresh_budget),   cmocka_unit_test_setup(test_overflow, fresh_budget),
        cmocka_unit_test_setup(test_fortran, fresh_budget),
    };
    return cmocka_run_group_tests_name("npy", tests, NULL, NULL);
}
