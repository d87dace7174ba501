// SPDX-License-Identifier: Apache-2.0
//
// States and snapshots as replies, whole and in pieces of every size, parsed again by jansson and by our own decoder.
#include "encoded.h"

static struct msg_state_view view_of(unsigned kind) {
    const bool affine = (kind & 1) != 0, tracks = (kind & 2) != 0;
    return (struct msg_state_view){13,
                                   affine ? f64_values : NULL,
                                   affine ? f64_values + 1 : NULL,
                                   tracks ? f64_values + 2 : NULL,
                                   tracks ? f64_values + 4 : NULL,
                                   tracks,
                                   INT64_MAX,
                                   21,
                                   &any_config,
                                   0.1,
                                   1};
}

static void expect_state(const json_t *json, const struct msg_state_view *view) {
    expect_names(json, "gamma beta running_mean running_var num_batches_tracked version layer ");
    expect_vector(json_object_get(json, "gamma"), view->gamma, view->channels);
    expect_vector(json_object_get(json, "beta"), view->beta, view->channels);
    expect_vector(json_object_get(json, "running_mean"), view->running_mean, view->channels);
    expect_vector(json_object_get(json, "running_var"), view->running_var, view->channels);
    if (view->tracks) {
        expect_integer(json, "num_batches_tracked", (int64_t)view->num_batches_tracked);
    } else {
        assert_true(json_is_null(json_object_get(json, "num_batches_tracked")));
    }
    expect_integer(json, "version", (int64_t)view->version);
    expect_config(json_object_get(json, "layer"), view->layer, view->new_weight, view->running_ddof);
}

// And what GET gives, our own decoder takes, bit for bit.
static void expect_decoded(const struct buffer *out, const struct msg_state_view *view) {
    struct msg_state back = {0};
    struct msg_error error = {0};
    assert_true(json_decode_state(&back, (struct json_body){(const char *)out->data, out->size, NULL, NULL}, &error));
    const struct msg_vector *const vectors[] = {&back.gamma, &back.beta, &back.running_mean, &back.running_var};
    const double *const expected[] = {view->gamma, view->beta, view->running_mean, view->running_var};
    for (size_t v = 0; v < 4; v++) {
        assert_int_equal(vectors[v]->null, expected[v] == NULL);
        for (size_t i = 0; i < vectors[v]->count; i++)
            expect_real(((const double *)(const void *)vectors[v]->values.data)[i], expected[v][i]);
    }
    assert_int_equal(back.null_num_batches_tracked, !view->tracks);
    if (view->tracks) assert_int_equal(back.num_batches_tracked, view->num_batches_tracked);
    assert_true(back.has_layer && bits_of_f64(back.layer.momentum) == bits_of_f64(any_config.momentum) &&
                bits_of_f64(back.layer.eps) == bits_of_f64(any_config.eps));
    msg_state_free(&back);
}

// Encodes a state in pieces of `room` bytes, which never grow, and joins them.
static size_t encode_pieces(struct buffer *out, const struct msg_state_view *view, size_t room) {
    struct json_progress progress = {0};
    struct buffer piece = {0};
    assert_true(buffer_reserve(&piece, room));
    size_t pieces = 0;
    for (bool complete = false; !complete; pieces++) {
        piece.size = 0;
        complete = json_state_piece(&piece, view, &progress);
        assert_int_equal(piece.capacity, room);
        assert_true(piece.size > 0);
        assert_true(buffer_append(out, piece.data, piece.size));
    }
    buffer_free(&piece);
    return pieces;
}

static void test_state(void **state) {
    (void)state;
    for (unsigned kind = 0; kind < 4; kind++) {
        const struct msg_state_view view = view_of(kind);
        const size_t most = 4 * json_vector_room(view.channels) + JSON_PIECE_MIN;
        struct buffer out = {0};
        assert_int_equal(encode_pieces(&out, &view, most), 1);
        assert_true(out.size <= most - JSON_PIECE_MIN + JSON_REPLY_ROOM);
        assert_true(json_end_state(&out));
        json_t *const json = parse(&out);
        expect_state(json, &view);
        expect_decoded(&out, &view);
        json_decref(json);
        buffer_free(&out);
    }
}

#define MANY 1000

// Wherever a piece ends, the joined text is the same.
static void test_pieces(void **state) {
    (void)state;
    double *const values = calloc(MANY, sizeof *values);
    assert_non_null(values);
    for (size_t i = 0; i < MANY; i++) values[i] = f64_values[i % VALUES];
    for (unsigned kind = 0; kind < 4; kind++) {
        for (size_t channels = 1; channels <= MANY; channels *= 10) {
            struct msg_state_view view = view_of(kind);
            view.channels = channels;
            const double **const vectors[] = {&view.gamma, &view.beta, &view.running_mean, &view.running_var};
            for (size_t v = 0; v < 4; v++) *vectors[v] = *vectors[v] != NULL ? values : NULL;
            struct buffer whole = {0};
            assert_int_equal(encode_pieces(&whole, &view, 4 * json_vector_room(channels) + JSON_PIECE_MIN), 1);
            for (size_t room = JSON_PIECE_MIN; room < JSON_PIECE_MIN + 300; room++) {
                struct buffer joined = {0};
                const size_t pieces = encode_pieces(&joined, &view, room);
                assert_true(kind == 0 || channels < MANY || pieces > whole.size / room);
                assert_int_equal(joined.size, whole.size);
                assert_memory_equal(joined.data, whole.data, whole.size);
                buffer_free(&joined);
            }
            buffer_free(&whole);
        }
    }
    free(values);
}

static void test_snapshot(void **state) {
    (void)state;
    static const char *const names[] = {"a", "b.c", "d", "e-f_g"};
    for (size_t count = 0; count <= COUNT(names); count++) {
        struct buffer out = {0};
        assert_true(json_begin_snapshot(&out));
        for (size_t i = 0; i < count; i++) {
            const struct msg_state_view view = view_of((unsigned)i);
            assert_true(json_snapshot_name(&out, names[i], i));
            encode_pieces(&out, &view, JSON_PIECE_MIN + i);
        }
        assert_true(json_end_snapshot(&out));
        json_t *const json = parse(&out), *const layers = json_object_get(json, "layers");
        expect_names(json, "layers ");
        assert_int_equal(json_object_size(layers), count);
        for (size_t i = 0; i < count; i++) {
            const struct msg_state_view view = view_of((unsigned)i);
            expect_state(json_object_get(layers, names[i]), &view);
        }
        struct msg_snapshot back = {0};
        struct msg_error error = {0};
        assert_true(
            json_decode_snapshot(&back, (struct json_body){(const char *)out.data, out.size, NULL, NULL}, &error));
        assert_int_equal(back.count, count);
        msg_snapshot_free(&back);
        json_decref(json);
        buffer_free(&out);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_state),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_snapshot),
    };
    return cmocka_run_group_tests_name("json_state", tests, NULL, NULL);
}
