// SPDX-License-Identifier: Apache-2.0
//
// Every reply is parsed again, by jansson, and compared with what went in, bit for bit.
#include "encoded.h"

static void test_train(void **state) {
    (void)state;
    const size_t dim[] = {2, 3};
    struct tensor y = tensor_of(TENSOR_NESTED, WIRE_F32, BN_F32, 2, dim, -1);
    for (unsigned kind = 0; kind < 16; kind++) {
        const bool vectors = (kind & 1) != 0, tracks = (kind & 2) != 0, updated = (kind & 4) != 0;
        const char *const cache = (kind & 8) != 0 ? "0123456789abcdef0123456789abcdef" : NULL;
        const struct msg_train_reply reply = {vectors ? f64_values : NULL,
                                              vectors ? f64_values + 1 : NULL,
                                              16,
                                              INT64_MAX,
                                              tracks,
                                              INT64_MAX - 1,
                                              updated,
                                              INT64_MAX - 2,
                                              cache};
        struct buffer out = {0};
        assert_true(json_encode_train(&out, &reply, &y));
        json_t *const json = parse(&out);
        expect_names(json, cache != NULL ? "y batch_mean batch_var count num_batches_tracked updated version cache "
                                         : "y batch_mean batch_var count num_batches_tracked updated version ");
        expect_vector(json_object_get(json, "batch_mean"), reply.batch_mean, 16);
        expect_vector(json_object_get(json, "batch_var"), reply.batch_var, 16);
        expect_integer(json, "count", INT64_MAX);
        if (tracks) {
            expect_integer(json, "num_batches_tracked", INT64_MAX - 1);
        } else {
            assert_true(json_is_null(json_object_get(json, "num_batches_tracked")));
        }
        assert_true(json_object_get(json, "updated") == (updated ? json_true() : json_false()));
        expect_integer(json, "version", INT64_MAX - 2);
        if (cache != NULL) expect_word(json, "cache", cache);
        assert_true(out.size <= json_tensor_room(&y) + 2 * json_vector_room(16) + JSON_REPLY_ROOM);
        json_decref(json);
        buffer_free(&out);
    }
    tensor_free(&y);
}

static void test_backward(void **state) {
    (void)state;
    const size_t dim[] = {2, 3};
    struct tensor dx = tensor_of(TENSOR_FLAT, WIRE_F64, BN_F64, 2, dim, -1);
    struct tensor dresidual = tensor_of(TENSOR_NESTED, WIRE_F64, BN_F64, 2, dim, 7);
    for (int kind = 0; kind < 4; kind++) {
        const bool affine = (kind & 1) != 0, residual = (kind & 2) != 0;
        const struct msg_backward_reply reply = {affine ? f64_values : NULL, affine ? f64_values + 3 : NULL, 14, 17};
        struct buffer out = {0};
        assert_true(json_encode_backward(&out, &reply, &dx, residual ? &dresidual : NULL));
        json_t *const json = parse(&out);
        expect_names(json, residual ? "dx dresidual dgamma dbeta version " : "dx dgamma dbeta version ");
        const json_t *const rows = json_object_get(json, "dresidual");
        assert_int_equal(json_array_size(rows), residual ? 2 : 0);
        for (size_t i = 0; i < json_array_size(rows); i++)
            expect_vector(json_array_get(rows, i), (const double[]){1, 1, 1}, 3);
        expect_vector(json_object_get(json, "dgamma"), reply.dgamma, 14);
        expect_vector(json_object_get(json, "dbeta"), reply.dbeta, 14);
        expect_integer(json, "version", 17);
        json_decref(json);
        buffer_free(&out);
    }
    tensor_free(&dx);
    tensor_free(&dresidual);
}

static void expect_layer(const json_t *json, const struct msg_layer *layer) {
    expect_names(json, "name layer version counters memory ");
    expect_word(json, "name", layer->name);
    expect_config(json_object_get(json, "layer"), layer->config, layer->new_weight, layer->running_ddof);
    expect_integer(json, "version", (int64_t)layer->version);
    const json_t *const counters = json_object_get(json, "counters"), *const memory = json_object_get(json, "memory");
    expect_names(counters, "train_forward inference backward skipped ");
    expect_integer(counters, "train_forward", (int64_t)layer->train_forward);
    expect_integer(counters, "inference", (int64_t)layer->inference);
    expect_integer(counters, "backward", (int64_t)layer->backward);
    expect_integer(counters, "skipped", (int64_t)layer->skipped);
    expect_names(memory, "state_bytes cache_bytes ");
    expect_integer(memory, "state_bytes", (int64_t)layer->state_bytes);
    expect_integer(memory, "cache_bytes", (int64_t)layer->cache_bytes);
}

// Two layers with everything at its longest and at its simplest.
static void two_layers(struct msg_layer layers[2], struct msg_config *simple, char name[MSG_NAME_MAX + 1]) {
    memset(name, 'n', MSG_NAME_MAX);
    name[MSG_NAME_MAX] = '\0';
    *simple = any_config;
    simple->momentum = NAN;
    simple->affine = false;
    simple->track_running_stats = true;
    const uint64_t most = INT64_MAX;
    layers[0] =
        (struct msg_layer){name, &any_config, -1.7976931348623157e308, 1, most, most, most, most, most, most, most};
    layers[1] = (struct msg_layer){"a", simple, NAN, 0, 1, 2, 3, 4, 5, 6, 7};
}

static void test_layer(void **state) {
    (void)state;
    struct msg_layer layers[2];
    struct msg_config simple;
    char name[MSG_NAME_MAX + 1];
    two_layers(layers, &simple, name);
    for (size_t i = 0; i < 2; i++) {
        struct buffer out = {0};
        assert_true(json_encode_layer(&out, &layers[i]));
        assert_true(out.size <= JSON_REPLY_ROOM);
        json_t *const json = parse(&out);
        expect_layer(json, &layers[i]);
        json_decref(json);
        buffer_free(&out);
    }
}

static void test_list(void **state) {
    (void)state;
    struct msg_layer layers[2];
    struct msg_config simple;
    char name[MSG_NAME_MAX + 1];
    two_layers(layers, &simple, name);
    for (size_t count = 0; count <= 2; count++) {
        struct buffer out = {0};
        assert_true(json_begin_list(&out));
        for (size_t i = 0; i < count; i++) assert_true(json_list_layer(&out, &layers[i], i));
        assert_true(json_end_list(&out, count == 2 ? "bmV4dA==" : NULL));
        json_t *const json = parse(&out);
        expect_names(json, "layers next_cursor ");
        const json_t *const list = json_object_get(json, "layers");
        assert_int_equal(json_array_size(list), count);
        for (size_t i = 0; i < count; i++) expect_layer(json_array_get(list, i), &layers[i]);
        if (count == 2) {
            expect_word(json, "next_cursor", "bmV4dA==");
        } else {
            assert_true(json_is_null(json_object_get(json, "next_cursor")));
        }
        json_decref(json);
        buffer_free(&out);
    }
}

static void test_restored(void **state) {
    (void)state;
    for (size_t count = 0; count <= 2; count++) {
        struct buffer out = {0};
        assert_true(json_begin_restored(&out));
        if (count > 0) assert_true(json_restored_layer(&out, "a", INT64_MAX, 0));
        if (count > 1) assert_true(json_restored_layer(&out, "b.c", 2, 1));
        assert_true(json_begin_ignored(&out));
        static const char *const odd[] = {"plain.weight", "a\"b\\c\n", "\xc3\xa9", "\xff"};
        static const char *const shown[] = {"plain.weight", "a\"b\\c\n", "\xc3\xa9", "?"};
        for (size_t i = 0; i < 2 * count; i++) {
            const size_t before = out.size;
            assert_true(json_ignored_name(&out, odd[i], i));
            assert_true(out.size - before <= json_ignored_room(odd[i]));
        }
        assert_true(json_end_restored(&out));
        json_t *const json = parse(&out), *const layers = json_object_get(json, "layers");
        expect_names(json, "layers ignored ");
        assert_int_equal(json_object_size(layers), count);
        if (count > 0) expect_integer(layers, "a", INT64_MAX);
        const json_t *const ignored = json_object_get(json, "ignored");
        assert_int_equal(json_array_size(ignored), 2 * count);
        for (size_t i = 0; i < 2 * count; i++)
            assert_string_equal(json_string_value(json_array_get(ignored, i)), shown[i]);
        if (count > 1) expect_integer(layers, "b.c", 2);
        json_decref(json);
        buffer_free(&out);
    }
}

static void test_version(void **state) {
    (void)state;
    struct buffer out = {0};
    assert_true(json_encode_version(&out, "1.2.3", "avx2", 1024, "sqlite"));
    json_t *const json = parse(&out);
    expect_names(json, "version cpu threads store ");
    expect_word(json, "version", "1.2.3");
    expect_word(json, "cpu", "avx2");
    expect_integer(json, "threads", 1024);
    expect_word(json, "store", "sqlite");
    json_decref(json);
    buffer_free(&out);
}

// ---- errors

static json_t *encode_error(struct buffer *out, const struct msg_error *error) {
    *out = (struct buffer){0};
    assert_true(json_encode_error(out, error));
    return parse(out);
}

static void test_errors(void **state) {
    (void)state;
    for (size_t i = 1; i < msg_code_count; i++) {
        for (int pointed = 0; pointed < 2; pointed++) {
            struct msg_error error = {0};
            msg_fail(&error, msg_codes[i].code, pointed ? "/x/1/~1" : NULL, "what \"is\" wrong\n\\ %zu", i);
            struct buffer out;
            json_t *const json = encode_error(&out, &error);
            expect_names(json, pointed ? "type title status detail code pointer " : "type title status detail code ");
            char type[100];
            snprintf(type, sizeof type, "/problems/%s", msg_codes[i].name);
            expect_word(json, "type", type);
            expect_word(json, "title", msg_codes[i].title);
            expect_integer(json, "status", msg_codes[i].status);
            expect_word(json, "detail", error.detail);
            expect_word(json, "code", msg_codes[i].name);
            if (pointed) expect_word(json, "pointer", "/x/1/~1");
            json_decref(json);
            buffer_free(&out);
        }
    }
}

static void test_errors_not_utf8(void **state) {
    (void)state;
    static const char *const rows[][2] = {
        {"a\xff"
         "b",
         "a?b"},
        {"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"},
        {"cut \xc3", "cut ?"},
        {"cut \xe2\x82", "cut ??"},
        {"cut \xf0\x9f\x98", "cut ???"},
        {"\xc0\x80", "??"}, // overlong
        {"\xe0\x80\x80", "???"},
        {"\xed\xa0\x80", "???"},      // half of a surrogate pair
        {"\xf4\x90\x80\x80", "????"}, // behind U+10FFFF
        {"\xf8\x88\x80\x80\x80", "?????"},
        {"\x80\xbf", "??"},
        {"\xc3\xc3\xa9", "?\xc3\xa9"},
        {"\xe2\xc3\xa9x", "?\xc3\xa9x"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct msg_error error = {0};
        msg_fail(&error, MSG_UNKNOWN_FIELD, rows[i][0], "%s", rows[i][0]);
        struct buffer out;
        json_t *const json = encode_error(&out, &error);
        expect_word(json, "detail", rows[i][1]);
        expect_word(json, "pointer", rows[i][1]);
        json_decref(json);
        buffer_free(&out);
    }
    for (size_t shift = 0; shift < 4; shift++) { // cut by their own room
        char text[600];
        for (size_t i = 0; i < sizeof text - 1; i++) text[i] = "\xf0\x9f\x98\x80"[(i + 4 - shift) % 4];
        memset(text, 'x', shift);
        text[sizeof text - 1] = '\0';
        struct msg_error error = {0};
        msg_fail(&error, MSG_UNKNOWN_FIELD, text, "%s", text);
        struct buffer out;
        json_decref(encode_error(&out, &error));
        buffer_free(&out);
    }
}

// ---- memory

static bool encode_any(size_t which, struct buffer *out, const struct tensor *t) {
    const struct msg_train_reply train = {f64_values, f64_values, 17, 1, true, 1, true, 1, "id"};
    const struct msg_backward_reply backward = {f64_values, f64_values, 17, 1};
    const struct msg_layer layer = {.name = "a", .config = &any_config};
    const struct msg_error error = {.code = MSG_INTERNAL, .detail = "x"};
    switch (which) {
    case 0: return json_encode_train(out, &train, t);
    case 1: return json_encode_backward(out, &backward, t, t);
    case 2: return json_encode_inference(out, t, 1);
    case 3: return json_encode_layer(out, &layer);
    case 4: return json_encode_error(out, &error);
    case 5: return json_encode_version(out, "1", "scalar", 1, "sqlite");
    case 6:
        return json_begin_list(out) && json_list_layer(out, &layer, 0) && json_list_layer(out, &layer, 1) &&
               json_end_list(out, "next");
    default:
        return json_begin_restored(out) && json_restored_layer(out, "a", 1, 0) && json_restored_layer(out, "b", 1, 1) &&
               json_begin_ignored(out) && json_ignored_name(out, "x", 0) && json_end_restored(out);
    }
}

// With any budget a reply is whole or refused; what is charged is given back.
static void test_budgets(void **state) {
    (void)state;
    const size_t dim[] = {2, 4};
    for (int form = TENSOR_NESTED; form <= TENSOR_BASE64; form++) {
        struct tensor t = tensor_of((enum tensor_form)form, WIRE_F64, BN_F64, 2, dim, -1);
        for (size_t which = 0; which < 8; which++) {
            struct budget budget = {.limit = 0};
            size_t good = 0;
            for (; budget.limit < 12000; budget.limit += budget.limit < 600 ? 1 : 37) {
                struct buffer out = {.budget = &budget};
                const bool ok = encode_any(which, &out, &t);
                if (ok) json_decref(parse(&out));
                good += ok;
                assert_true(out.size <= out.capacity && out.capacity == budget.used);
                buffer_free(&out);
                assert_int_equal(budget.used, 0);
            }
            assert_true(good > 0);
        }
        tensor_free(&t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_train),  cmocka_unit_test(test_backward),        cmocka_unit_test(test_layer),
        cmocka_unit_test(test_list),   cmocka_unit_test(test_restored),        cmocka_unit_test(test_version),
        cmocka_unit_test(test_errors), cmocka_unit_test(test_errors_not_utf8), cmocka_unit_test(test_budgets),
    };
    return cmocka_run_group_tests_name("json_encode", tests, NULL, NULL);
}
