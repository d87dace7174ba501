// SPDX-License-Identifier: Apache-2.0
//
// Replies as npy files: what is sent, byte by byte, and the fields beside it.
#include "files.h"

#include "../../proto/binary.h"

static const char *field_of(const struct msg_extra *extra, const char *name) {
    const char *value = NULL;
    for (size_t i = 0; i < extra->fields; i++) {
        if (strcmp(extra->field[i].name, name) == 0) value = extra->field[i].value;
    }
    return value;
}

// Every type and order comes back as it went in, in layers of both types.
static void test_round_trip(void **state) {
    (void)state;
    for (size_t type = 0; type < NPY_TYPES; type++) {
        for (int variant = 0; variant < 4; variant++) {
            const bool is_bf16 = npy_types[type].wire == WIRE_BF16, big = (variant & 1) != 0 && !is_bf16;
            const enum bn_dtype dtype = (variant & 2) != 0 ? BN_F64 : BN_F32;
            const char order = big ? '>' : is_bf16 ? '|' : '<';
            struct decoded d = decode_npy(npy_typed_file(type, order, 0), INFERENCE, dtype, is_bf16 ? &npy_bf16 : NULL);
            struct buffer out = {.budget = &budget};
            struct msg_extra extra = {.pieces = 0};
            assert_true(buffer_room(&d.call.x.values) + 1 >= codec_values_room(&codecs[CODEC_NPY], &d.call.x));
            assert_true(npy_encode_inference(&out, &extra, &d.call.x, 7));
            struct buffer sent = sent_file(&out, &extra), expected = npy_typed_file(type, order, 0);
            const size_t size = 4 * npy_types[type].size;
            assert_int_equal(out.size, 128); // as numpy writes it
            assert_int_equal(sent.size, 128 + size);
            assert_memory_equal(sent.data + 128, expected.data + expected.size - size, size);
            assert_string_equal(field_of(&extra, "Normd-Version"), "7");
            assert_int_equal(extra.fields, 1);
            buffer_free(&out);
            buffer_free(&expected);
            struct decoded again = decode_npy(sent, INFERENCE, dtype, is_bf16 ? &npy_bf16 : NULL);
            if (!again.ok) fail_msg("%s: %s", npy_types[type].descr, again.error.detail);
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
        cmocka_unit_test_setup(test_round_trip, fresh_budget),
        cmocka_unit_test_setup(test_headers, fresh_budget),
        cmocka_unit_test_setup(test_fields, fresh_budget),
    };
    return cmocka_run_group_tests_name("npy replies", tests, NULL, NULL);
}
