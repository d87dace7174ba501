// SPDX-License-Identifier: Apache-2.0
//
// States and snapshots as safetensors files: of ours and of others in, and out in pieces of every size.
#include "files.h"

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
        struct decoded d = decode_safetensors(safetensors_file(headers[i], bn_data, sizeof bn_data), STATE, BN_F32);
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
        expect_safetensors(safetensors_file(rows[i].header, four, 4), STATE, rows[i].code, rows[i].header);
    static const unsigned char negative[8] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    expect_safetensors(
        safetensors_file("{\"num_batches_tracked\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]}}", negative,
                         8),
        STATE, MSG_OUT_OF_RANGE, "negative");
    expect_safetensors(
        safetensors_file("{\"num_batches_tracked\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[0,8]}}", negative,
                         8),
        STATE, MSG_SHAPE_MISMATCH, "two");
}

static void test_unknown_field(void **state) {
    (void)state;
    struct decoded d = decode_safetensors(
        safetensors_file("{\"__metadata__\":{\"it\":\"{\\\"num_features\\\":1,\\\"momentun\\\":1}\"}}", "", 0), STATE,
        BN_F32);
    assert_int_equal(d.error.code, MSG_UNKNOWN_FIELD);
    assert_non_null(strstr(d.error.detail, "\"it\""));
    assert_non_null(strstr(d.error.detail, "\"momentun\""));
    release(&d);
}

// ---- snapshots

static void test_snapshot(void **state) {
    (void)state;
    struct decoded d = decode_safetensors(
        safetensors_file(
            "{" BN_OF(
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
    struct decoded d = decode_safetensors(
        safetensors_file("{\"a.running_mean\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
                         "\"a.running_var\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}",
                         four, sizeof four),
        SNAPSHOT, BN_F32);
    assert_true(d.ok);
    const struct msg_snapshot_entry *const entry = d.snapshot.entries;
    assert_true(entry->state.has_num_batches_tracked && entry->has_guess && !entry->guess.affine);
    assert_int_equal(entry->state.num_batches_tracked, 0);
    assert_int_equal(entry->guess.num_features, 2);
    release(&d);
    expect_safetensors(safetensors_file("{\"a.running_mean\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},"
                                        "\"a.running_var\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}",
                                        "", 0),
                       SNAPSHOT, MSG_OUT_OF_RANGE, "no channels");
    expect_safetensors(safetensors_file("{}", "", 0), SNAPSHOT, MSG_OK, "nothing");
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
    assert_memory_equal(elements_of(&r, "a.b.running_var", "F64", sizeof vector), vector, sizeof vector);
    assert_memory_equal(elements_of(&r, "a.b.num_batches_tracked", "I64", 8), "\xff\xff\xff\xff\xff\xff\xff\x7f", 8);
    assert_int_equal(json_object_size(r.metadata), LAYERS);
    json_t *const config = json_loads(json_string_value(json_object_get(r.metadata, "c")), 0, NULL);
    assert_int_equal(json_integer_value(json_object_get(config, "num_features")), 5);
    assert_true(json_is_null(json_object_get(config, "momentum")));
    json_decref(config);
    free_read(&r);
    struct decoded d = decode_safetensors(reference, SNAPSHOT, BN_F32);
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
    d = decode_safetensors(empty, SNAPSHOT, BN_F32);
    assert_true(d.ok && d.snapshot.count == 0);
    release(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_state, fresh_budget),
        cmocka_unit_test_setup(test_bad_states, fresh_budget),
        cmocka_unit_test_setup(test_unknown_field, fresh_budget),
        cmocka_unit_test_setup(test_snapshot, fresh_budget),
        cmocka_unit_test_setup(test_old_snapshot, fresh_budget),
        cmocka_unit_test_setup(test_written_states, fresh_budget),
    };
    return cmocka_run_group_tests_name("safetensors states", tests, NULL, NULL);
}
