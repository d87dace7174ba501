// SPDX-License-Identifier: Apache-2.0
//
// Tensors in replies: within the room that is promised, and read back by our own scanner to the same bits.
#include "encoded.h"

#include "../../proto/base64.h"
#include "../../proto/scan.h"

static const size_t shapes[][TENSOR_MAX_RANK] = {{1, 1},
                                                 {3, 17},
                                                 {17, 3},
                                                 {2, 3, 4},
                                                 {1, 1, 1, 1, 1, 1, 1, 1},
                                                 {2, 2, 2, 2, 2, 2, 2, 2},
                                                 {2, 0},
                                                 {0, 5},
                                                 {3, 0, 2},
                                                 {4, 5, 0},
                                                 {1000, 1},
                                                 {1, 1000},
                                                 {600, 3}};
static const int ranks[] = {2, 2, 2, 3, 8, 8, 2, 2, 3, 3, 2, 2, 2};

// Encodes y within exactly the room that is promised, and reads it back from the text.
static void expect_tensor(const struct tensor *t) {
    const size_t room = json_tensor_room(t) + JSON_REPLY_ROOM;
    struct budget budget = {.limit = room};
    struct buffer out = {.budget = &budget};
    assert_true(buffer_reserve(&out, room));
    assert_true(json_encode_inference(&out, t, 3));
    assert_int_equal(out.capacity, room); // did not grow
    static const char begin[] = "{\"y\":", end[] = ",\"version\":3}\n";
    const size_t around = strlen(begin) + strlen(end);
    assert_memory_equal(out.data, begin, strlen(begin));
    assert_memory_equal(out.data + out.size - strlen(end), end, strlen(end));
    if (out.size - around > json_tensor_room(t))
        fail_msg("%zu bytes, room for %zu", out.size - around, json_tensor_room(t));

    struct msg_error error = {0};
    struct scan scan;
    struct tensor back = {0};
    scan_start(&scan, (const char *)out.data + strlen(begin), out.size - around, NULL, &error);
    assert_true(scan_tensor(&scan, &back, t->dtype) && scan_finish(&scan));
    if (error.code != MSG_OK) fail_msg("%s at %s", error.detail, error.pointer);
    assert_int_equal(back.form, t->form);
    assert_int_equal(back.count, t->count);
    const bool nested_empty = t->form == TENSOR_NESTED && t->count == 0; // its inner axes are not written
    if (!nested_empty) {
        assert_int_equal(back.rank, t->rank);
        for (int l = 0; l < t->rank; l++) assert_int_equal(back.dim[l], t->dim[l]);
    }
    const bool narrow = t->form == TENSOR_BASE64 && (t->wire != WIRE_F64 || t->dtype == BN_F32) &&
                        !(t->wire == WIRE_F32 && t->dtype == BN_F32);
    for (size_t i = 0; i < t->count && !narrow; i++) {
        if (t->dtype == BN_F32) {
            expect_real((double)((const float *)(const void *)back.values.data)[i],
                        (double)((const float *)(const void *)t->values.data)[i]);
        } else {
            expect_real(((const double *)(const void *)back.values.data)[i],
                        ((const double *)(const void *)t->values.data)[i]);
        }
    }
    tensor_free(&back);
    buffer_free(&out);
}

static void test_tensors(void **state) {
    (void)state;
    for (int form = TENSOR_NESTED; form <= TENSOR_FLAT; form++) {
        for (int dtype = BN_F32; dtype <= BN_F64; dtype++) {
            for (size_t s = 0; s < COUNT(shapes); s++) {
                for (int only = -1; only < VALUES; only++) {
                    const enum wire_dtype wire = dtype == BN_F32 ? WIRE_F32 : WIRE_F64;
                    struct tensor t =
                        tensor_of((enum tensor_form)form, wire, (enum bn_dtype)dtype, ranks[s], shapes[s], only);
                    expect_tensor(&t);
                    tensor_free(&t);
                }
            }
        }
    }
    const struct tensor empty = {.form = TENSOR_NESTED, .dtype = BN_F64, .present = true}; // [] of any rank
    expect_tensor(&empty);
}

static void test_base64(void **state) {
    (void)state;
    static const size_t counts[] = {0,    1,    2,    3,   1535,
                                    1536, 1537, 3072, 5000}; // around the pieces in which it is written
    for (int wire = WIRE_F32; wire <= WIRE_BF16; wire++) {
        for (int dtype = BN_F32; dtype <= BN_F64; dtype++) {
            for (size_t i = 0; i < COUNT(counts); i++) {
                const size_t dim[] = {counts[i], 1};
                struct tensor t = tensor_of(TENSOR_BASE64, (enum wire_dtype)wire, (enum bn_dtype)dtype, 2, dim,
                                            wire >= WIRE_F16 ? 7 : -1);
                if (dtype == BN_F64 && wire == WIRE_F32) { // values that fit
                    tensor_free(&t);
                    t = tensor_of(TENSOR_BASE64, WIRE_F32, BN_F64, 2, dim, 7);
                }
                expect_tensor(&t);
                struct buffer out = {0};
                assert_true(json_encode_inference(&out, &t, 1));
                json_t *const json = parse(&out), *const y = json_object_get(json, "y");
                expect_word(y, "dtype", wire_dtypes[wire].name);
                const char *const text = json_string_value(json_object_get(y, "base64"));
                size_t size = 0, bad = 0;
                assert_true(base64_data_size(&size, text, strlen(text)));
                assert_int_equal(size, t.count * wire_dtypes[wire].size);
                unsigned char *const raw = malloc(size + 4), *const expected = malloc(size + 4);
                assert_true(base64_decode(raw, text, strlen(text), &bad));
                tensor_to_wire(expected, t.wire, t.values.data, t.dtype, t.count);
                if (size > 0) assert_memory_equal(raw, expected, size);
                free(raw);
                free(expected);
                json_decref(json);
                buffer_free(&out);
                tensor_free(&t);
            }
        }
    }
}

static void test_huge_empty_shape(void **state) {
    (void)state;
    static const size_t dim[] = {9007199254740992, 0, 100, 1, 1, 1, 1, 1};
    for (int form = TENSOR_FLAT; form <= TENSOR_BASE64; form++) {
        struct tensor t = {
            .form = (enum tensor_form)form, .dtype = BN_F64, .wire = WIRE_F64, .rank = 8, .present = true};
        memcpy(t.dim, dim, sizeof dim);
        expect_tensor(&t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_base64),
        cmocka_unit_test(test_huge_empty_shape),
    };
    return cmocka_run_group_tests_name("json_tensors", tests, NULL, NULL);
}
