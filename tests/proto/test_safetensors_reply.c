// SPDX-License-Identifier: Apache-2.0
//
// Replies as safetensors files: their tensors, their fields, and the longest header.
#include "files.h"

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
    assert_memory_equal(elements_of(&r, "batch_mean", "F64", sizeof mean), mean, sizeof mean);
    assert_memory_equal(elements_of(&r, "batch_var", "F64", sizeof var), var, sizeof var);
    double wide[4];
    memcpy(wide, elements_of(&r, "y", "F64", sizeof wide), sizeof wide);
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
    elements_of(&r, "y", "BF16", 0);
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
    assert_memory_equal(elements_of(&r, "dgamma", "F64", sizeof dgamma), dgamma, sizeof dgamma);
    assert_memory_equal(elements_of(&r, "dbeta", "F64", sizeof dbeta), dbeta, sizeof dbeta);
    assert_memory_equal(elements_of(&r, "dx", "F16", 8), "\x00\x3c\x00\x41\x00\xba\x00\x44", 8);
    assert_memory_equal(elements_of(&r, "dresidual", "F32", sizeof four), four, sizeof four);
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
    assert_memory_equal(elements_of(&r, "y", "F32", sizeof four), four, sizeof four);
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_train_reply, fresh_budget),
        cmocka_unit_test_setup(test_empty_reply, fresh_budget),
        cmocka_unit_test_setup(test_backward_reply, fresh_budget),
        cmocka_unit_test_setup(test_longest_reply, fresh_budget),
    };
    return cmocka_run_group_tests_name("safetensors replies", tests, NULL, NULL);
}
