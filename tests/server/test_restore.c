// SPDX-License-Identifier: Apache-2.0
#include "fixture.h"

#include <math.h>

#include "../../server/restore.h"

#define CHANNELS 3

enum { GAMMA, BETA, MEAN, VAR, VECTORS };
static const char *const names[VECTORS] = {"gamma", "beta", "running_mean", "running_var"};

static struct msg_vector *vector_of(struct msg_state *state, int which) {
    struct msg_vector *const all[VECTORS] = {&state->gamma, &state->beta, &state->running_mean, &state->running_var};
    return all[which];
}

// As a decoder leaves it.
static void give(struct msg_vector *vector, const double *values, size_t count) {
    buffer_free(&vector->values);
    *vector = (struct msg_vector){.given = true, .count = count, .first_nonfinite = count, .first_negative = count};
    assert_true(buffer_append(&vector->values, values, count * sizeof *values));
    for (size_t i = count; i-- > 0;) {
        if (!isfinite(values[i])) vector->first_nonfinite = i;
        if (values[i] < 0) vector->first_negative = i;
    }
}

static void give_null(struct msg_vector *vector) {
    buffer_free(&vector->values);
    *vector = (struct msg_vector){.given = true, .null = true};
}

// All that the layer has, null what it has not.
static struct msg_state whole_state(const struct msg_config *config) {
    static const double values[CHANNELS] = {1, 2, 3};
    struct msg_state state = {.has_num_batches_tracked = true,
                              .null_num_batches_tracked = !config->track_running_stats,
                              .num_batches_tracked = 5};
    for (int v = 0; v < VECTORS; v++) {
        const bool exists = v <= BETA ? config->affine : config->track_running_stats;
        if (exists) {
            give(vector_of(&state, v), values, CHANNELS);
        } else {
            give_null(vector_of(&state, v));
        }
    }
    return state;
}

// Checks whole and in part, with two parents; code MSG_OK: taken.
static void expect(const struct msg_state *from, const struct msg_config *config, enum msg_code whole,
                   enum msg_code part, const char *pointer) {
    static const char *const parents[] = {"", "/layers/a"};
    for (int i = 0; i < 4; i++) {
        const enum msg_code code = i % 2 == 0 ? whole : part;
        const char *const parent = parents[i / 2];
        struct msg_error error = {0};
        char full[MSG_POINTER_MAX];
        snprintf(full, sizeof full, "%s%s", parent, pointer);
        assert_int_equal(restore_check_values(from, config, i % 2 == 0, parent, &error), code == MSG_OK);
        expect_error(&error, code, code != MSG_OK ? full : NULL);
    }
}

static struct msg_config config_with(int kind) {
    struct msg_config config = config_of(CHANNELS, MSG_PYTORCH);
    config.affine = (kind & 1) != 0;
    config.track_running_stats = (kind & 2) != 0;
    return config;
}

static void test_whole(void **state) {
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        const struct msg_config config = config_with(kind);
        struct msg_state from = whole_state(&config);
        expect(&from, &config, MSG_OK, MSG_OK, "");
        msg_state_free(&from);
        struct msg_state none = {0};
        const char *const first = config.affine ? "/gamma" : "/running_mean";
        expect(&none, &config, kind == 0 ? MSG_OK : MSG_MISSING_FIELD, MSG_OK, first);
    }
}

// Each vector: missing, null, too short, too long, not there in the layer.
static void test_vectors(void **state) {
    (void)state;
    static const double values[CHANNELS + 1] = {1, 2, 3, 4};
    for (int kind = 0; kind < 4; kind++) {
        for (int v = 0; v < VECTORS; v++) {
            const struct msg_config config = config_with(kind);
            const bool exists = v <= BETA ? config.affine : config.track_running_stats;
            struct msg_state from = whole_state(&config);
            struct msg_vector *const vector = vector_of(&from, v);
            char pointer[40];
            snprintf(pointer, sizeof pointer, "/%s", names[v]);
            buffer_free(&vector->values);
            *vector = (struct msg_vector){0};
            expect(&from, &config, exists ? MSG_MISSING_FIELD : MSG_OK, MSG_OK, pointer);
            give_null(vector);
            expect(&from, &config, exists ? MSG_WRONG_TYPE : MSG_OK, exists ? MSG_WRONG_TYPE : MSG_OK, pointer);
            for (size_t count = 0; count <= CHANNELS + 1; count++) {
                give(vector, values, count);
                const enum msg_code code = !exists             ? MSG_NOT_SUPPORTED_BY_LAYER
                                           : count == CHANNELS ? MSG_OK
                                                               : MSG_SHAPE_MISMATCH;
                expect(&from, &config, code, code, pointer);
            }
            msg_state_free(&from);
        }
    }
}

static void test_values(void **state) {
    (void)state;
    static const struct {
        double values[CHANNELS];
        bool var_only; // refused in running_var alone
        bool finite;
        const char *at;
    } rows[] = {
        {{0, 0, 0}, false, true, NULL},
        {{-0.0, 0, 5e-324}, false, true, NULL},
        {{1, NAN, 2}, false, false, "/1"},
        {{1, 2, INFINITY}, false, false, "/2"},
        {{-INFINITY, 2, NAN}, false, false, "/0"},
        {{1, -5e-324, -1}, true, true, "/1"},
        {{1, 2, -1}, true, true, "/2"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        for (int v = 0; v < VECTORS; v++) {
            for (int nonfinite = MSG_REJECT; nonfinite <= MSG_PROPAGATE; nonfinite++) {
                struct msg_config config = config_with(3);
                config.nonfinite = nonfinite;
                struct msg_state from = whole_state(&config);
                give(vector_of(&from, v), rows[i].values, CHANNELS);
                enum msg_code code = MSG_OK;
                const bool negative = vector_of(&from, v)->first_negative < CHANNELS;
                if (v == VAR && negative) code = MSG_OUT_OF_RANGE; // infinity is not below 0, minus infinity is
                if (!rows[i].finite && nonfinite != MSG_PROPAGATE) code = MSG_NON_FINITE;
                char pointer[40];
                snprintf(pointer, sizeof pointer, "/%s%s", names[v], rows[i].at != NULL ? rows[i].at : "");
                expect(&from, &config, code, code, pointer);
                msg_state_free(&from);
            }
        }
    }
}

static void test_batches(void **state) {
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        const struct msg_config config = config_with(kind);
        const bool tracks = config.track_running_stats;
        struct msg_state from = whole_state(&config);
        from.null_num_batches_tracked = tracks;
        const enum msg_code code = tracks ? MSG_WRONG_TYPE : MSG_NOT_SUPPORTED_BY_LAYER;
        expect(&from, &config, code, code, "/num_batches_tracked");
        from.has_num_batches_tracked = false;
        expect(&from, &config, tracks ? MSG_MISSING_FIELD : MSG_OK, MSG_OK, "/num_batches_tracked");
        msg_state_free(&from);
    }
}

static void test_layer(void **state) {
    (void)state;
    const struct msg_config config = config_of(CHANNELS, MSG_KERAS);
    struct msg_state from = {0};
    struct msg_error error = {0};
    assert_true(restore_check_layer(&from, &config, "", &error));
    from.has_layer = true;
    from.layer = config;
    assert_true(restore_check_layer(&from, &config, "", &error));
    from.layer = (struct msg_config){
        .given = MSG_NUM_FEATURES | MSG_CONVENTION, .num_features = CHANNELS, .convention = MSG_KERAS};
    assert_true(restore_check_layer(&from, &config, "", &error)); // defaults filled in
    from.layer = (struct msg_config){.given = MSG_NUM_FEATURES, .num_features = CHANNELS};
    assert_false(restore_check_layer(&from, &config, "", &error));
    expect_error(&error, MSG_CONFIG_CONFLICT, "/layer");
    error = (struct msg_error){0};
    from.layer = (struct msg_config){.given = MSG_CONVENTION, .convention = MSG_KERAS};
    assert_false(restore_check_layer(&from, &config, "/layers/a", &error));
    expect_error(&error, MSG_MISSING_FIELD, "/layers/a/layer/num_features");
}

static void test_set(void **state) {
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        for (unsigned given = 0; given < 32; given++) {
            const struct msg_config config = config_with(kind);
            struct layer_state *const layer = layer_state_new(&config, 1);
            layer->version = 9;
            layer->num_batches_tracked = 2;
            struct msg_state from = whole_state(&config);
            for (int v = 0; v < VECTORS; v++) vector_of(&from, v)->given = (given & 1u << v) != 0;
            from.has_num_batches_tracked = (given & 16) != 0;
            restore_values(layer, &from);
            const double *const vectors[VECTORS] = {layer->gamma, layer->beta, layer->running_mean, layer->running_var};
            static const double initial[VECTORS] = {1, 0, 0, 1};
            for (int v = 0; v < VECTORS; v++) {
                for (size_t c = 0; c < CHANNELS && vectors[v] != NULL; c++) {
                    assert_true(vectors[v][c] == ((given & 1u << v) != 0 ? (double)c + 1 : initial[v]));
                }
            }
            const bool counts = (given & 16) != 0 && config.track_running_stats;
            assert_int_equal(layer->num_batches_tracked, counts ? 5 : 2);
            assert_int_equal(layer->version, 9);
            if (config.affine) assert_int_equal(layer->normalizer, (given & 3) != 0 ? 9 : 1);
            layer_state_release(layer);
            msg_state_free(&from);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole),   cmocka_unit_test(test_vectors), cmocka_unit_test(test_values),
        cmocka_unit_test(test_batches), cmocka_unit_test(test_layer),   cmocka_unit_test(test_set),
    };
    return cmocka_run_group_tests_name("restore", tests, NULL, NULL);
}
