// SPDX-License-Identifier: Apache-2.0
//
// Bodies that are no messages, what is decoded from those that are, and memory. Fields by table are in
// test_json_fields.c.
#include "decoded.h"

#include <jansson.h>

static void test_no_objects(void **state) {
    (void)state;
    static const char *const texts[] = {"1", "null", "[]", "[{}]", "\"{}\"", "true", " [1,2] ", "1e5"};
    static const char *const malformed[] = {"",      " ",          "{",       "}",       "{}}",
                                            "{},",   "[",          "tru",     "{\"x\"}", "{\"x\":}",
                                            "{x:1}", "{\"a\":1,}", "{'a':1}", "nul",     "\xff"};
    for (size_t kind = 0; kind < KINDS; kind++) {
        for (size_t i = 0; i < COUNT(texts); i++) expect_error((enum kind)kind, texts[i], MSG_NOT_AN_OBJECT, NULL);
        for (size_t i = 0; i < COUNT(malformed); i++)
            expect_error((enum kind)kind, malformed[i], MSG_MALFORMED_JSON, NULL);
    }
}

// No prefix passes, none is read behind its end, and none leaves memory behind.
static void test_prefixes(void **state) {
    (void)state;
    for (size_t kind = 0; kind < KINDS; kind++) {
        struct decoded whole = decode_good((enum kind)kind, rich[kind]);
        release(&whole);
        for (size_t length = 0; length < strlen(rich[kind]); length++) {
            struct decoded d = decode((enum kind)kind, rich[kind], length);
            if (d.error.code != MSG_MALFORMED_JSON)
                fail_msg("%.*s: %s", (int)length, rich[kind], msg_codes[d.error.code].name);
            release(&d);
        }
    }
}

// One byte changed to each of these: whatever comes of it, no memory is left and none is touched that is not ours.
static void test_changed_bytes(void **state) {
    (void)state;
    static const char bytes[] = "\0\"\\{}[],:0-e.n\xff ";
    for (size_t kind = 0; kind < KINDS; kind++) {
        char text[300];
        strcpy(text, rich[kind]);
        const size_t length = strlen(text);
        for (size_t i = 0; i < length; i++) {
            for (size_t b = 0; b < sizeof bytes - 1; b++) {
                text[i] = bytes[b];
                struct decoded d = decode((enum kind)kind, text, length);
                release(&d);
            }
            text[i] = rich[kind][i];
        }
    }
}

// Malformed is malformed, whatever was wrong before it.
static void test_malformed_wins(void **state) {
    (void)state;
    static const struct {
        enum kind kind;
        const char *text;
    } rows[] = {
        {CONFIG, "{\"unknown\":1,\"eps\":0,}"},
        {CONFIG, "{\"eps\":1,\"eps\":2"},
        {TRAIN, "{\"x\":[[1],[2,3]],\"y\":01}"},
        {TRAIN, "{\"x\":1,\"x\":2,\"cache\":tru}"},
        {BACKWARD, "{\"dout\":[[1e400]],nope}"},
        {STATE, "{\"gamma\":[[1]],\"beta\":[1}"},
        {SNAPSHOT, "{\"layers\":{\".\":1,\"a\":}}"},
        {SNAPSHOT, "{\"layers\":1,\"layers\":{\"a\":{]}}"},
        {CONFIG, "{\"eps\":1e999} {}"},
        {TRAIN, "{\"x\":[[1]],\"cache\":\"\xff\"}"},
        {TRAIN, "{\"x\":[[1]],\"\xff\":1}"},
        {TRAIN, "{\"x\":[[\"\xff\"]]}"},
        {TRAIN, "{\"x\":{\"shape\":[1,1],\"dtype\":\"f32\",\"base64\":\"AAAA\xc3==\"}}"},
        {TRAIN, "{\"x\":[[1]],\"more\":[\"\xed\xa0\x80\"]}"},
        {CONFIG, "{\"convention\":\"\\ud800\"}"},
        {TRAIN, "{\"x\":[[1],[2,3]],\"cache\":\"\xc3\"}"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) expect_error(rows[i].kind, rows[i].text, MSG_MALFORMED_JSON, NULL);
}

// ---- what is decoded

static void test_config(void **state) {
    (void)state;
    struct decoded d = decode_good(CONFIG, "{}");
    assert_int_equal(d.config.given, 0);
    d = decode_good(CONFIG, "{\"num_features\":7,\"convention\":\"paper\",\"momentum\":0.25,\"eps\":0.5,\"affine\":"
                            "true,\"track_running_stats\":false,"
                            "\"channel_axis\":-3,\"dtype\":\"f64\",\"init\":\"first-batch\",\"nonfinite\":\"skip_"
                            "update\",\"single_value\":\"beta\"}");
    assert_int_equal(d.config.given, (1 << 11) - 1);
    assert_int_equal(d.config.num_features, 7);
    assert_int_equal(d.config.convention, MSG_PAPER);
    assert_true(d.config.momentum == 0.25 && d.config.eps == 0.5);
    assert_true(d.config.affine && !d.config.track_running_stats);
    assert_int_equal(d.config.channel_axis, -3);
    assert_int_equal(d.config.dtype, BN_F64);
    assert_int_equal(d.config.init, MSG_INIT_FIRST_BATCH);
    assert_int_equal(d.config.nonfinite, MSG_SKIP_UPDATE);
    assert_int_equal(d.config.single_value, MSG_SINGLE_BETA);
    d = decode_good(CONFIG, "{\"momentum\":null,\"version\":5,\"new_weight\":null,\"running_ddof\":\"any\"}");
    assert_int_equal(d.config.given, MSG_MOMENTUM);
    assert_true(isnan(d.config.momentum));
    d = decode_good(PATCH, "{\"eps\":2,\"momentum\":1,\"nonfinite\":\"propagate\",\"single_value\":\"reject\"}");
    assert_int_equal(d.config.given, MSG_EPS | MSG_MOMENTUM | MSG_NONFINITE | MSG_SINGLE_VALUE_POLICY);
    assert_true(d.config.eps == 2 && d.config.momentum == 1 && d.config.nonfinite == MSG_PROPAGATE);
}

// What GET of a layer gives, PUT takes.
static void test_representation(void **state) {
    (void)state;
    struct decoded d = decode_good(
        CONFIG, "{\"name\":\"it\",\"layer\":{\"num_features\":3,\"new_weight\":0.1,\"running_ddof\":1},\"version\":4,"
                "\"counters\":{\"train_forward\":1},\"memory\":{\"state_bytes\":9}}");
    assert_int_equal(d.config.given, MSG_NUM_FEATURES);
    assert_int_equal(d.config.num_features, 3);
    expect_error(CONFIG, "{\"layer\":{\"num_features\":3}}", MSG_OK, NULL);
    expect_error(CONFIG, "{\"name\":\"other\",\"layer\":{}}", MSG_CONFLICTING_FIELDS, "/name");
    expect_error(CONFIG, "{\"name\":7,\"layer\":{}}", MSG_WRONG_TYPE, "/name");
    expect_error(CONFIG, "{\"name\":\"a\\u0000\",\"layer\":{}}", MSG_CONFLICTING_FIELDS, "/name");
    expect_error(CONFIG, "{\"layer\":[]}", MSG_WRONG_TYPE, "/layer");
    expect_error(CONFIG, "{\"layer\":{},\"num_features\":3}", MSG_UNKNOWN_FIELD, "/num_features");
    expect_error(CONFIG, "{\"layer\":{\"eps\":0}}", MSG_OUT_OF_RANGE, "/layer/eps");
    expect_error(CONFIG, "{\"layer\":{\"epsilon\":1}}", MSG_UNKNOWN_FIELD, "/layer/epsilon");
    expect_error(CONFIG, "{\"name\":\"it\"}", MSG_UNKNOWN_FIELD, "/name");
}

static void test_patch_fixed(void **state) {
    (void)state;
    static const char *const fixed[] = {"num_features", "convention", "affine", "track_running_stats",
                                        "channel_axis", "dtype",      "init"};
    for (size_t i = 0; i < COUNT(fixed); i++) {
        char text[100], pointer[50];
        snprintf(text, sizeof text, "{\"eps\":1,\"%s\":1}", fixed[i]);
        snprintf(pointer, sizeof pointer, "/%s", fixed[i]);
        expect_error(PATCH, text, MSG_NOT_SUPPORTED_BY_LAYER, pointer);
    }
    expect_error(PATCH, "{}", MSG_OK, NULL);
}

static void test_calls(void **state) {
    (void)state;
    struct decoded d = decode_good(TRAIN, "{\"cache\":true,\"x\":[[1,2],[3,4]],\"channel_axis\":-2}");
    assert_true(d.call.keep && d.call.x.present && !d.call.dout.present && d.call.has_channel_axis &&
                d.call.channel_axis == -2);
    assert_int_equal(d.call.x.count, 4);
    assert_int_equal(d.call.x.dtype, BN_F64);
    release(&d);
    d = decode_good(TRAIN, "{" X "}");
    assert_true(!d.call.keep && !d.call.has_channel_axis && d.call.cache[0] == '\0');
    release(&d);
    d = decode_good(
        BACKWARD,
        "{\"cache\":\"abc\",\"dout\":[[5]],\"mode\":\"inference\",\"step\":{\"lr\":0.5,\"weight_decay\":0.25}}");
    assert_string_equal(d.call.cache, "abc");
    assert_true(d.call.mode == MSG_MODE_INFERENCE && d.call.has_step && d.call.lr == 0.5 &&
                d.call.weight_decay == 0.25);
    assert_true(d.call.dout.present && !d.call.x.present);
    release(&d);
    d = decode_good(BACKWARD, "{" X "," DOUT ",\"step\":{\"lr\":-2}}");
    assert_true(d.call.mode == MSG_MODE_TRAIN && d.call.has_step && d.call.lr == -2 && d.call.weight_decay == 0);
    release(&d);
    expect_error(TRAIN, "{}", MSG_MISSING_FIELD, "/x");
    expect_error(INFERENCE, "{\"channel_axis\":1}", MSG_MISSING_FIELD, "/x");
    expect_error(BACKWARD, "{" X "}", MSG_MISSING_FIELD, "/dout");
    expect_error(BACKWARD, "{}", MSG_MISSING_FIELD, "/dout");
    expect_error(BACKWARD, "{" DOUT "}", MSG_MISSING_FIELD, "/x");
    expect_error(BACKWARD, "{" DOUT "," X ",\"cache\":\"a\"}", MSG_CONFLICTING_FIELDS, "/cache");
    expect_error(BACKWARD, "{" DOUT "," X ",\"step\":{}}", MSG_MISSING_FIELD, "/step/lr");
    expect_error(BACKWARD, "{" DOUT "," X ",\"step\":{\"weight_decay\":1}}", MSG_MISSING_FIELD, "/step/lr");
    expect_error(BACKWARD, "{" DOUT "," X ",\"step\":{\"lr\":1,\"momentum\":1}}", MSG_UNKNOWN_FIELD, "/step/momentum");
    expect_error(BACKWARD, "{" DOUT "," X ",\"step\":{\"lr\":1e999}}", MSG_OVERFLOW, "/step/lr");
    expect_error(BACKWARD, "{" DOUT "," X ",\"step\": { \"lr\" : 1 , \"weight_decay\": -1e999 }}", MSG_OVERFLOW,
                 "/step/weight_decay");
    expect_error(BACKWARD, "{" DOUT "," X ",\"step\":{\"lr\":1,\"a\\u0000\":1}}", MSG_UNKNOWN_FIELD, "/step");
    expect_error(BACKWARD, "{" DOUT ",\"cache\":\"\\u0000\"}", MSG_CACHE_GONE, "/cache");
    expect_error(BACKWARD, "{" DOUT ",\"cache\":\"a\\u0000b\"}", MSG_CACHE_GONE, "/cache");
    expect_error(BACKWARD, "{" DOUT "," X ",\"mode\":\"train\\u0000\"}", MSG_OUT_OF_RANGE, "/mode");
}

static void test_activation_and_residual(void **state) {
    (void)state;
    static const struct {
        enum kind kind;
        const char *base;
    } calls[] = {{TRAIN, X}, {INFERENCE, X}, {BACKWARD, X "," DOUT}};
    for (size_t i = 0; i < COUNT(calls); i++) {
        char text[200];
        snprintf(text, sizeof text,
                 "{%s,\"activation\":\"relu\",\"residual\":{\"shape\":[1,1],\"dtype\":\"f16\",\"base64\":\"AHw=\"}}",
                 calls[i].base);
        struct decoded d = decode_good(calls[i].kind, text);
        const struct tensor *const residual = &d.call.residual;
        assert_int_equal(d.call.activation, BN_RELU);
        assert_true(residual->present && residual->count == 1 && residual->first_nonfinite == 0);
        assert_true(residual->dtype == BN_F64 && residual->form == TENSOR_BASE64 && residual->wire == WIRE_F16);
        release(&d);
        snprintf(text, sizeof text, "{%s}", calls[i].base);
        d = decode_good(calls[i].kind, text);
        assert_true(d.call.activation == BN_IDENTITY && !d.call.residual.present);
        release(&d);
        snprintf(text, sizeof text, "{%s,\"residual\":[[1],[\"a\"]]}", calls[i].base);
        expect_error(calls[i].kind, text, MSG_WRONG_TYPE, "/residual/1/0");
        snprintf(text, sizeof text, "{%s,\"residual\":{\"shape\":[1,1],\"data\":[1e999]}}", calls[i].base);
        expect_error(calls[i].kind, text, MSG_OVERFLOW, "/residual/data/0");
    }
    // They are the pass's.
    expect_error(BACKWARD, "{" DOUT ",\"cache\":\"a\",\"activation\":\"relu\"}", MSG_CONFLICTING_FIELDS, "/activation");
    expect_error(BACKWARD, "{" DOUT ",\"cache\":\"a\",\"residual\":[[1]]}", MSG_CONFLICTING_FIELDS, "/residual");
}

static void test_cache_ids(void **state) {
    (void)state;
    for (size_t length = MSG_CACHE_ID_MAX - 1; length <= MSG_CACHE_ID_MAX + 2; length++) {
        char text[200], id[100];
        memset(id, 'f', sizeof id);
        snprintf(text, sizeof text, "{" DOUT ",\"cache\":\"%.*s\"}", (int)length, id);
        struct decoded d = decode(BACKWARD, text, strlen(text));
        assert_int_equal(d.error.code, length <= MSG_CACHE_ID_MAX ? MSG_OK : MSG_CACHE_GONE);
        if (d.ok) assert_int_equal(strlen(d.call.cache), length);
        if (!d.ok) assert_non_null(strstr(d.error.detail, "no pass has such an id"));
        release(&d);
    }
}

static void test_state(void **state) {
    (void)state;
    struct decoded d = decode_good(STATE, rich[STATE]);
    const struct msg_state *const s = &d.state;
    assert_true(s->gamma.given && !s->gamma.null && s->gamma.count == 2 && s->beta.given && s->beta.null);
    assert_true(((const double *)(const void *)s->gamma.values.data)[1] == 2);
    assert_int_equal(s->running_mean.first_nonfinite, 1);
    assert_true(s->has_num_batches_tracked && !s->null_num_batches_tracked && s->num_batches_tracked == 5);
    assert_true(s->has_layer && s->layer.given == MSG_NUM_FEATURES && s->layer.num_features == 2);
    release(&d);
    d = decode_good(STATE, "{}");
    assert_true(!d.state.gamma.given && !d.state.has_num_batches_tracked && !d.state.has_layer);
    d = decode_good(STATE, "{\"num_batches_tracked\":null}");
    assert_true(d.state.has_num_batches_tracked && d.state.null_num_batches_tracked);
    d = decode_good(STATE, "{\"num_batches_tracked\":9223372036854775807}");
    assert_int_equal(d.state.num_batches_tracked, INT64_MAX);
    expect_error(STATE, "{\"num_batches_tracked\":9223372036854775808}", MSG_OVERFLOW, "/num_batches_tracked");
    expect_error(STATE, "{\"num_batches_tracked\":9223372036854775808.0}", MSG_OUT_OF_RANGE, "/num_batches_tracked");
    expect_error(STATE, "{\"layer\":{\"momentum\":0,\"eps\":1e999}}", MSG_OVERFLOW, "/layer/eps");
    expect_error(STATE, "{\"gamma\":[1,1e999]}", MSG_OVERFLOW, "/gamma/1");
    expect_error(STATE, "{\"gamma\":[1,[2]]}", MSG_RAGGED, "/gamma/1");
}

static void test_snapshot(void **state) {
    (void)state;
    struct decoded d = decode_good(SNAPSHOT, rich[SNAPSHOT]);
    assert_int_equal(d.snapshot.count, 2);
    assert_string_equal(d.snapshot.entries[0].name, "a");
    assert_string_equal(d.snapshot.entries[1].name, "b");
    assert_int_equal(d.snapshot.entries[0].state.gamma.count, 1);
    assert_true(d.snapshot.entries[0].state.has_layer && !d.snapshot.entries[1].state.has_layer);
    assert_true(d.snapshot.entries[1].state.null_num_batches_tracked);
    assert_true(((const double *)(const void *)d.snapshot.entries[1].state.running_var.values.data)[0] == 2);
    release(&d);
    expect_error(SNAPSHOT, "{\"layers\":{}}", MSG_OK, NULL);
    expect_error(SNAPSHOT, "{}", MSG_MISSING_FIELD, "/layers");
    static const char *const names[] = {"", ".a", "a b", "a/b", "\\u0000", "a\\u0000", "\\u00e9"};
    static const char *const pointers[] = {"/layers/",        "/layers/.a",           "/layers/a b",
                                           "/layers/a~1b",    "/layers/\xef\xbf\xbd", "/layers/a\xef\xbf\xbd",
                                           "/layers/\xc3\xa9"};
    for (size_t i = 0; i < COUNT(names); i++) {
        char text[100];
        snprintf(text, sizeof text, "{\"layers\":{\"%s\":{}}}", names[i]);
        expect_error(SNAPSHOT, text, MSG_BAD_NAME, pointers[i]);
    }
    for (size_t length = MSG_NAME_MAX; length <= MSG_NAME_MAX + 40; length += 20) {
        char text[300], name[200];
        memset(name, 'n', sizeof name);
        snprintf(text, sizeof text, "{\"layers\":{\"%.*s\":{}}}", (int)length, name);
        d = decode(SNAPSHOT, text, strlen(text));
        assert_int_equal(d.error.code, length <= MSG_NAME_MAX ? MSG_OK : MSG_BAD_NAME);
        release(&d);
    }
    // Far apart, the same name is found twice.
    char text[3000], *at = stpcpy(text, "{\"layers\":{");
    for (int i = 0; i < 100; i++) at += sprintf(at, "\"l%d\":{\"gamma\":[%d]},", i, i);
    strcpy(at, "\"l\\u0037\":{}}}");
    expect_error(SNAPSHOT, text, MSG_DUPLICATE_FIELD, "/layers/l7");
    strcpy(at, "\"last\":{}}}");
    d = decode_good(SNAPSHOT, text);
    assert_int_equal(d.snapshot.count, 101);
    for (size_t i = 0; i < d.snapshot.count; i++) {
        const struct msg_snapshot_entry *const entry = &d.snapshot.entries[i];
        if (strcmp(entry->name, "last") == 0) continue;
        assert_int_equal(entry->state.gamma.count, 1);
        assert_true(((const double *)(const void *)entry->state.gamma.values.data)[0] == strtod(entry->name + 1, NULL));
    }
    release(&d);
}

// ---- memory

// With any budget: good, or memory_full and nothing kept.
static void test_budgets(void **state) {
    (void)state;
    for (size_t kind = TRAIN; kind < KINDS; kind++) {
        size_t good = 0;
        for (budget.limit = 0; budget.limit < 5000; budget.limit++) {
            struct decoded d = decode((enum kind)kind, rich[kind], strlen(rich[kind]));
            if (!d.ok && d.error.code != MSG_MEMORY_FULL)
                fail_msg("%zu: %s", budget.limit, msg_codes[d.error.code].name);
            good += d.ok;
            release(&d);
        }
        assert_in_range(good, 1, 4999);
    }
}

static long allocations_left;

static void *few_malloc(size_t size) {
    return allocations_left-- > 0 ? malloc(size) : NULL;
}

static int give_memory_back(void **state) {
    json_set_alloc_funcs(malloc, free);
    return fresh_budget(state);
}

// The N-th allocation of jansson fails.
static void test_jansson_without_memory(void **state) {
    (void)state;
    for (size_t kind = 0; kind < KINDS; kind++) {
        bool ok = false;
        for (long n = 0; !ok; n++) {
            assert_true(n < 1000);
            allocations_left = n;
            json_set_alloc_funcs(few_malloc, free);
            struct decoded d = decode((enum kind)kind, rich[kind], strlen(rich[kind]));
            json_set_alloc_funcs(malloc, free);
            ok = d.ok;
            if (!ok && d.error.code != MSG_MEMORY_FULL) {
                fail_msg("kind %zu, allocation %ld: %s (%s)", kind, n, msg_codes[d.error.code].name, d.error.detail);
            }
            release(&d);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_no_objects, fresh_budget),
        cmocka_unit_test_setup(test_prefixes, fresh_budget),
        cmocka_unit_test_setup(test_changed_bytes, fresh_budget),
        cmocka_unit_test_setup(test_malformed_wins, fresh_budget),
        cmocka_unit_test_setup(test_config, fresh_budget),
        cmocka_unit_test_setup(test_representation, fresh_budget),
        cmocka_unit_test_setup(test_patch_fixed, fresh_budget),
        cmocka_unit_test_setup(test_calls, fresh_budget),
        cmocka_unit_test_setup(test_activation_and_residual, fresh_budget),
        cmocka_unit_test_setup(test_cache_ids, fresh_budget),
        cmocka_unit_test_setup(test_state, fresh_budget),
        cmocka_unit_test_setup(test_snapshot, fresh_budget),
        cmocka_unit_test_setup(test_budgets, fresh_budget),
        cmocka_unit_test_setup_teardown(test_jansson_without_memory, fresh_budget, give_memory_back),
    };
    return cmocka_run_group_tests_name("json_decode", tests, NULL, NULL);
}
