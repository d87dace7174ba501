// SPDX-License-Identifier: Apache-2.0
//
// The contract of a store, through struct backend alone, so that another backend runs it unchanged.
#include "stores.h"

#include <math.h>

// Writes the state, opens the store anew and fails the test where it comes back changed.
static void expect_round_trip(const char *where, const struct layer_state *state) {
    struct store *store = open_store(where, false);
    commit_one(store, "it", state);
    backend->close(&store);
    assert_null(store);
    store = open_store(where, false);
    struct layers *const layers = load(store);
    assert_int_equal(layers->count, 1);
    assert_string_equal(layers->names[0], "it");
    assert_true(same_state(layers->states[0], state));
    assert_int_equal(layers->states[0]->refs, 1);
    layers_free(layers);
    commit_one(store, "it", NULL);
    backend->close(&store);
}

static void test_kind(void **state) {
    (void)state;
    assert_string_equal(store_kind(), backend->kind);
}

static void test_empty(void **state) {
    (void)state;
    char *const where = folder_new();
    struct store *store = open_store(where, true);
    for (int i = 0; i < 2; i++) {
        struct layers *const layers = load(store);
        assert_int_equal(layers->count, 0);
        layers_free(layers);
        commit(store, NULL, 0);
        backend->close(&store);
        store = open_store(where, true);
    }
    backend->close(&store);
    backend->close(&store); // NULL is allowed
    folder_free(where);
}

static void test_config_fields(void **state) {
    (void)state;
    char *const where = folder_new();
    static const int lasts[] = {MSG_PAPER, true, true, BN_F64, MSG_INIT_FIRST_BATCH, MSG_PROPAGATE, MSG_SINGLE_BETA};
    for (size_t field = 0; field < COUNT(lasts); field++) {
        for (int value = 0; value <= lasts[field]; value++) {
            struct msg_config config = config_of(3, MSG_PYTORCH);
            bool *const flags[] = {NULL, &config.affine, &config.track_running_stats};
            int *const numbers[] = {&config.convention,  NULL, NULL, &config.dtype, &config.init, &config.nonfinite,
                                    &config.single_value};
            if (field == 1 || field == 2) {
                *flags[field] = value != 0;
            } else {
                *numbers[field] = value;
            }
            struct layer_state *const layer = state_of(&config, field);
            expect_round_trip(where, layer);
            layer_state_release(layer);
        }
    }
    folder_free(where);
}

static void test_config_numbers(void **state) {
    (void)state;
    char *const where = folder_new();
    static const double momenta[] = {NAN, 0, 5e-324, 0.1, 0.30000000000000004, 0x1.fffffffffffffp-1, 1};
    static const double epsilons[] = {5e-324, 2.2250738585072009e-308, 1e-5, 1, 1e15, 9007199254740992, 1e300};
    static const int64_t channels[] = {1, 2, 100, MSG_CHANNELS_MAX};
    for (size_t i = 0; i < COUNT(momenta); i++) {
        struct msg_config config = config_of(channels[i % 3], MSG_CS231N);
        config.momentum = momenta[i];
        config.eps = epsilons[i];
        config.channel_axis = (int64_t)i * 2 - 8;
        struct layer_state *const layer = state_of(&config, i);
        expect_round_trip(where, layer);
        layer_state_release(layer);
    }
    for (int64_t axis = -8; axis <= 7; axis++) {
        struct msg_config config = config_of(1, MSG_KERAS);
        config.channel_axis = axis;
        struct layer_state *const layer = state_of(&config, 1);
        expect_round_trip(where, layer);
        layer_state_release(layer);
    }
    struct layer_state *const wide = plain_state(MSG_CHANNELS_MAX, 2);
    expect_round_trip(where, wide);
    layer_state_release(wide);
    folder_free(where);
}

// -0.0 lies in [0, 1], so a client may give it.
static void test_minus_zero_momentum(void **state) {
    (void)state;
    char *const where = folder_new();
    struct msg_config config = config_of(1, MSG_PYTORCH);
    config.momentum = -0.0;
    struct layer_state *const layer = state_of(&config, 1);
    expect_round_trip(where, layer);
    layer_state_release(layer);
    folder_free(where);
}

static void test_hostile_values(void **state) {
    (void)state;
    static const double hostile[] = {NAN,
                                     -NAN,
                                     INFINITY,
                                     -INFINITY,
                                     0.0,
                                     -0.0,
                                     5e-324,
                                     -5e-324,
                                     2.2250738585072009e-308,
                                     1.7976931348623157e308,
                                     0.1,
                                     1,
                                     9007199254740993.0};
    char *const where = folder_new();
    struct layer_state *const layer = plain_state(COUNT(hostile), 1);
    memcpy(layer->gamma, hostile, sizeof hostile);
    memcpy(layer->beta, hostile, sizeof hostile);
    memcpy(layer->running_mean, hostile, sizeof hostile);
    memcpy(layer->running_var, hostile, sizeof hostile);
    expect_round_trip(where, layer);
    for (size_t i = 0; i < COUNT(hostile); i++) { // each alone, as a whole layer
        struct layer_state *const one = plain_state(1, 1);
        for (int k = 0; k < 4; k++) one->vectors[k] = hostile[i];
        expect_round_trip(where, one);
        layer_state_release(one);
    }
    static const uint64_t counts[] = {0, 1, INT64_MAX - 1, INT64_MAX};
    for (size_t i = 0; i < COUNT(counts); i++) {
        layer->num_batches_tracked = counts[i];
        layer->version = counts[COUNT(counts) - 1 - i];
        layer->normalizer = counts[i];
        layer->id = i == 0 ? UINT64_MAX : UINT64_C(1) << 63 >> i;
        expect_round_trip(where, layer);
    }
    layer_state_release(layer);
    folder_free(where);
}

static void test_names(void **state) {
    (void)state;
    char longest[MSG_NAME_MAX + 1] = "";
    memset(longest, 'z', MSG_NAME_MAX);
    const char *const names[] = {"0",   "A",  "B",  "a",  "a-", "a.",   "a..",
                                 "a.b", "a0", "aA", "a_", "b",  longest}; // in byte order
    char *const where = folder_new();
    struct store *store = open_store(where, false);
    struct layer_state *const layer = plain_state(2, 1);
    for (size_t i = 0; i < COUNT(names); i++) commit_one(store, names[(i * 5) % COUNT(names)], layer);
    struct layers *const layers = load(store);
    assert_int_equal(layers->count, COUNT(names));
    for (size_t i = 0; i < COUNT(names); i++) assert_string_equal(layers->names[i], names[i]);
    layers_free(layers);
    layer_state_release(layer);
    backend->close(&store);
    folder_free(where);
}

static void test_replace_and_delete(void **state) {
    (void)state;
    char *const where = folder_new();
    struct store *store = open_store(where, true);
    struct layer_state *const old = plain_state(4, 1), *const new = plain_state(9, 2), *const other = plain_state(1, 3);
    commit(store, (struct store_change[]){{"a", old}, {"b", old}, {"c", other}}, 3);
    commit(store, (struct store_change[]){{"a", new}, {"b", NULL}, {"never", NULL}}, 3);
    for (int i = 0; i < 2; i++) {
        struct layers *const layers = load(store);
        assert_int_equal(layers->count, 2);
        assert_true(strcmp(layers->names[0], "a") == 0 && strcmp(layers->names[1], "c") == 0);
        assert_true(same_state(layers->states[0], new) && same_state(layers->states[1], other));
        layers_free(layers);
        backend->close(&store);
        store = open_store(where, true);
    }
    commit(store, (struct store_change[]){{"b", old}, {"b", NULL}, {"c", NULL}, {"a", NULL}, {"a", old}},
           5); // in this order
    struct layers *const layers = load(store);
    assert_int_equal(layers->count, 1);
    assert_true(same_state(layers->states[0], old));
    layers_free(layers);
    layer_state_release(old);
    layer_state_release(new);
    layer_state_release(other);
    backend->close(&store);
    folder_free(where);
}

static void test_many(void **state) {
    (void)state;
    enum { MANY = 1000 };
    char *const where = folder_new();
    struct store *store = open_store(where, true);
    struct store_change *const changes = calloc(MANY, sizeof *changes);
    char(*const names)[16] = calloc(MANY, sizeof *names);
    assert_true(changes != NULL && names != NULL);
    for (size_t i = 0; i < MANY; i++) {
        snprintf(names[i], sizeof names[i], "layer%04zu", i);
        changes[i] = (struct store_change){names[i], plain_state((int64_t)(1 + i % 17), i)};
    }
    commit(store, changes, MANY);
    backend->close(&store);
    store = open_store(where, true);
    struct layers *const layers = load(store);
    assert_int_equal(layers->count, MANY);
    for (size_t i = 0; i < MANY; i++) {
        assert_string_equal(layers->names[i], names[i]);
        assert_true(same_state(layers->states[i], changes[i].state));
        layer_state_release(changes[i].state);
    }
    layers_free(layers);
    free(changes);
    free(names);
    backend->close(&store);
    folder_free(where);
}

static bool take_two(void *context, const char *name, struct layer_state *state) {
    (void)name;
    layer_state_release(state);
    return ++*(int *)context < 2;
}

static void test_load_ends(void **state) {
    (void)state;
    char *const where = folder_new();
    struct store *store = open_store(where, false);
    struct layer_state *const layer = plain_state(1, 1);
    commit(store, (struct store_change[]){{"a", layer}, {"b", layer}, {"c", layer}}, 3);
    int seen = 0;
    char why[STORE_WHY_MAX] = "";
    assert_false(backend->load(store, take_two, &seen, why));
    assert_int_equal(seen, 2);
    assert_true(why[0] != '\0');
    layer_state_release(layer);
    backend->close(&store);
    folder_free(where);
}

static void test_second_open(void **state) {
    (void)state;
    char *const where = folder_new();
    struct store *store = open_store(where, true), *second = NULL;
    for (int i = 0; i < 2; i++) {
        char why[STORE_WHY_MAX] = "";
        assert_false(backend->open(&second, where, true, why));
        assert_null(second);
        assert_non_null(strstr(why, where));
        assert_non_null(strstr(why, "in use"));
        struct layer_state *const layer = plain_state(1, 1);
        commit_one(store, "still-works", layer);
        layer_state_release(layer);
    }
    backend->close(&store);
    store = open_store(where, true);
    backend->close(&store);
    folder_free(where);
}

int main(void) {
    const struct CMUnitTest contract[] = {
        cmocka_unit_test(test_kind),
        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_config_fields),
        cmocka_unit_test(test_config_numbers),
        cmocka_unit_test(test_minus_zero_momentum),
        cmocka_unit_test(test_hostile_values),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_replace_and_delete),
        cmocka_unit_test(test_many),
        cmocka_unit_test(test_load_ends),
        cmocka_unit_test(test_second_open),
    };
    return cmocka_run_group_tests_name("store", contract, NULL, NULL);
}
