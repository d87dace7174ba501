// SPDX-License-Identifier: Apache-2.0
//
// Conventions against the contract's table, folds against running statistics in long double.
#include "fixture.h"

#include <float.h>
#include <math.h>

#define CHANNELS 5

// The contract's table, and what it means: the weight of the new batch.
static const struct row {
    const char *name;
    double momentum; // NaN: null
    double new_weight;
    double eps;
    int ddof;
    double running_var;
} table[] = {
    {"pytorch", 0.1, 0.1, 1e-5, 1, 1},     {"cs231n", 0.9, 1 - 0.9, 1e-5, 0, 0}, {"onnx", 0.9, 1 - 0.9, 1e-5, 0, 1},
    {"keras", 0.99, 1 - 0.99, 1e-3, 0, 1}, {"paper", NAN, NAN, 1e-5, 1, 1},
};

static void test_conventions(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(table); i++) {
        assert_string_equal(msg_convention_words[i], table[i].name);
        const struct msg_config config = config_of(CHANNELS, (enum msg_convention)i);
        assert_int_equal(isnan(config.momentum), isnan(table[i].momentum));
        if (!isnan(config.momentum)) assert_true(config.momentum == table[i].momentum);
        assert_int_equal(isnan(layer_new_weight(&config)), isnan(table[i].new_weight));
        if (!isnan(config.momentum)) assert_true(layer_new_weight(&config) == table[i].new_weight);
        assert_true(config.eps == table[i].eps);
        assert_int_equal(layer_running_ddof(&config), table[i].ddof);
        struct layer_state *const layer = layer_state_new(&config, 77);
        assert_non_null(layer);
        assert_int_equal(layer->version, 1);
        assert_int_equal(layer->normalizer, 1);
        assert_int_equal(layer->id, 77);
        assert_int_equal(layer->num_batches_tracked, 0);
        for (size_t c = 0; c < CHANNELS; c++) {
            assert_int_equal(bits_of(layer->gamma[c]), bits_of(1));
            assert_int_equal(bits_of(layer->beta[c]), bits_of(0));
            assert_int_equal(bits_of(layer->running_mean[c]), bits_of(0));
            assert_int_equal(bits_of(layer->running_var[c]), bits_of(table[i].running_var));
        }
        layer_state_release(layer);
    }
    assert_null(msg_convention_words[COUNT(table)]);
}

// ---- configurations

static void test_complete_defaults(void **state) {
    (void)state;
    struct msg_error error = {0};
    struct msg_config config = {.given = MSG_NUM_FEATURES, .num_features = 3};
    assert_true(layer_config_complete(&config, "", &error));
    const struct msg_config pytorch = config_of(3, MSG_PYTORCH);
    assert_true(layer_config_equal(&config, &pytorch));
    assert_true(config.affine && config.track_running_stats);
    assert_int_equal(config.channel_axis, 1);
    assert_int_equal(config.dtype, BN_F32);
    assert_int_equal(config.init, MSG_INIT_STANDARD);
    assert_int_equal(config.nonfinite, MSG_REJECT);
    assert_int_equal(config.single_value, MSG_SINGLE_REJECT);
}

static void test_complete_keeps_given(void **state) {
    (void)state;
    struct msg_error error = {0};
    const struct msg_config given = {.given = ~0u,
                                     .num_features = 7,
                                     .convention = MSG_KERAS,
                                     .momentum = NAN,
                                     .eps = 3,
                                     .affine = false,
                                     .track_running_stats = false,
                                     .channel_axis = -1,
                                     .dtype = BN_F64,
                                     .init = MSG_INIT_STANDARD,
                                     .nonfinite = MSG_PROPAGATE,
                                     .single_value = MSG_SINGLE_BETA};
    struct msg_config config = given;
    assert_true(layer_config_complete(&config, "", &error));
    assert_true(layer_config_equal(&config, &given));
}

static void test_complete_refuses(void **state) {
    (void)state;
    const unsigned first = MSG_NUM_FEATURES | MSG_INIT;
    const struct {
        struct msg_config config;
        const char *parent;
        enum msg_code code;
        const char *pointer;
    } rows[] = {
        {{.given = 0}, "", MSG_MISSING_FIELD, "/num_features"},
        {{.given = MSG_EPS, .eps = 1}, "/layers/a/layer", MSG_MISSING_FIELD, "/layers/a/layer/num_features"},
        {{.given = first | MSG_AFFINE, .num_features = 1, .init = MSG_INIT_FIRST_BATCH},
         "",
         MSG_CONFLICTING_FIELDS,
         "/init"},
        {{.given = first | MSG_TRACK, .num_features = 1, .init = MSG_INIT_FIRST_BATCH},
         "/layer",
         MSG_CONFLICTING_FIELDS,
         "/layer/init"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct msg_error error = {0};
        struct msg_config config = rows[i].config;
        assert_false(layer_config_complete(&config, rows[i].parent, &error));
        expect_error(&error, rows[i].code, rows[i].pointer);
    }
    struct msg_error error = {0};
    struct msg_config good = {.given = first, .num_features = 1, .init = MSG_INIT_FIRST_BATCH};
    assert_true(layer_config_complete(&good, "", &error));
}

static void test_equality(void **state) {
    (void)state;
    const struct msg_config base = config_of(CHANNELS, MSG_PYTORCH);
    struct msg_config others[11];
    for (size_t i = 0; i < COUNT(others); i++) others[i] = base;
    others[0].num_features++;
    others[1].convention = MSG_ONNX;
    others[2].momentum = NAN;
    others[3].eps = nextafter(base.eps, 1);
    others[4].affine = false;
    others[5].track_running_stats = false;
    others[6].channel_axis = -1;
    others[7].dtype = BN_F64;
    others[8].init = MSG_INIT_FIRST_BATCH;
    others[9].nonfinite = MSG_PROPAGATE;
    others[10].single_value = MSG_SINGLE_BETA;
    for (size_t i = 0; i < COUNT(others); i++) {
        assert_true(layer_config_equal(&others[i], &others[i])); // NaN momentum included
        for (size_t k = 0; k < COUNT(others); k++) assert_int_equal(layer_config_equal(&others[i], &others[k]), i == k);
        assert_false(layer_config_equal(&base, &others[i]));
    }
    struct msg_config same = base;
    same.given = 0;
    assert_true(layer_config_equal(&base, &same));
}

// ---- folds

// One random batch and its statistics.
struct batch {
    long double mean[CHANNELS], m2[CHANNELS];
    double mean64[CHANNELS], mean_lo[CHANNELS], m2_64[CHANNELS];
    struct bn_stats stats;
};

static void make_batch(struct batch *batch, size_t n, uint64_t *seed) {
    double x[64];
    for (size_t c = 0; c < CHANNELS; c++) {
        long double sum = 0, m2 = 0;
        for (size_t i = 0; i < n; i++) {
            x[i] = (double)(random_bits(seed) >> 40) * 0x1p-20 - 4 + 100 * (double)c;
            sum += x[i];
        }
        for (size_t i = 0; i < n; i++) m2 += (x[i] - sum / n) * (x[i] - sum / n);
        batch->mean64[c] = (double)(batch->mean[c] = sum / n);
        batch->m2_64[c] = (double)(batch->m2[c] = m2);
        batch->mean_lo[c] = 0;
    }
    batch->stats = (struct bn_stats){n, batch->mean64, batch->mean_lo, batch->m2_64};
}

static void expect_near(double actual, long double expected) {
    const long double distance = fabsl(actual - expected), limit = 32 * DBL_EPSILON * fmaxl(fabsl(expected), 1e-3L);
    if (!(distance <= limit)) fail_msg("%.17g, expected %.17Lg", actual, expected);
}

static void fold_against_reference(const struct msg_config *config, const struct row *row, int batches) {
    uint64_t seed = 1;
    struct layer_state *const layer = layer_state_new(config, 1);
    assert_non_null(layer);
    long double mean[CHANNELS] = {0}, var[CHANNELS];
    for (size_t c = 0; c < CHANNELS; c++) var[c] = row->running_var;
    for (int k = 1; k <= batches; k++) {
        struct batch batch;
        const size_t n = 2 + (size_t)k % 60;
        make_batch(&batch, n, &seed);
        layer_fold(layer, &batch.stats);
        const bool weighs_old = strcmp(row->name, "pytorch") != 0 && strcmp(row->name, "paper") != 0;
        const long double weight = isnan(config->momentum) ? 1.0L / k
                                   : weighs_old            ? 1 - (long double)config->momentum
                                                           : config->momentum;
        for (size_t c = 0; c < CHANNELS; c++) {
            mean[c] = (1 - weight) * mean[c] + weight * batch.mean[c];
            var[c] = (1 - weight) * var[c] + weight * batch.m2[c] / (n - (size_t)row->ddof);
            expect_near(layer->running_mean[c], mean[c]);
            expect_near(layer->running_var[c], var[c]);
            assert_true(layer->gamma[c] == 1 && layer->beta[c] == 0);
        }
        assert_int_equal(layer->num_batches_tracked, k);
        assert_int_equal(layer->version, 1);
        assert_int_equal(layer->normalizer, 1);
    }
    layer_state_release(layer);
}

static void test_fold(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(table); i++) {
        struct msg_config config = config_of(CHANNELS, (enum msg_convention)i);
        fold_against_reference(&config, &table[i], 50);
        config.momentum = NAN;
        fold_against_reference(&config, &table[i], 50);
        config.momentum = 0.3;
        fold_against_reference(&config, &table[i], 50);
    }
}

// Cumulative: the plain mean over the batches.
static void test_fold_cumulative(void **state) {
    (void)state;
    const struct msg_config config = config_of(CHANNELS, MSG_PAPER);
    struct layer_state *const layer = layer_state_new(&config, 1);
    long double mean = 0, var = 0;
    uint64_t seed = 2;
    for (int k = 0; k < 20; k++) {
        struct batch batch;
        make_batch(&batch, 16, &seed);
        layer_fold(layer, &batch.stats);
        mean += batch.mean[3];
        var += batch.m2[3] / 15;
        if (k == 0) assert_int_equal(bits_of(layer->running_mean[3]), bits_of(batch.mean64[3]));
    }
    expect_near(layer->running_mean[3], mean / 20);
    expect_near(layer->running_var[3], var / 20);
    layer_state_release(layer);
}

// A weight of 0 or 1 takes one side, bit for bit, even where the other one is infinite.
static void test_fold_whole_weights(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(table); i++) {
        for (int m = 0; m <= 1; m++) {
            struct msg_config config = config_of(CHANNELS, (enum msg_convention)i);
            const bool weighs_new = i == MSG_PYTORCH || i == MSG_PAPER;
            const bool takes_batch = weighs_new == (m == 1);
            config.momentum = m;
            struct layer_state *const layer = layer_state_new(&config, 1);
            double mean[CHANNELS] = {0.1, -INFINITY, 7, INFINITY, 0}, lo[CHANNELS] = {0},
                   m2[CHANNELS] = {3, INFINITY, 0, 1, NAN};
            const double old_mean[CHANNELS] = {0.3, 5, INFINITY, -INFINITY, 1},
                         old_var[CHANNELS] = {2, 4, INFINITY, 0, 9};
            memcpy(layer->running_mean, old_mean, sizeof old_mean);
            memcpy(layer->running_var, old_var, sizeof old_var);
            layer_fold(layer, &(struct bn_stats){4, mean, lo, m2});
            for (size_t c = 0; c < CHANNELS; c++) {
                const double var = m2[c] / (4 - table[i].ddof);
                const double got = layer->running_var[c], expected = takes_batch ? var : old_var[c];
                assert_int_equal(bits_of(layer->running_mean[c]), bits_of(takes_batch ? mean[c] : old_mean[c]));
                assert_true(isnan(expected) ? isnan(got) : bits_of(got) == bits_of(expected));
            }
            assert_int_equal(layer->num_batches_tracked, 1);
            layer_state_release(layer);
        }
    }
}

static void test_first_batch(void **state) {
    (void)state;
    struct msg_config config = config_of(CHANNELS, MSG_PYTORCH);
    config.init = MSG_INIT_FIRST_BATCH;
    struct layer_state *const layer = layer_state_new(&config, 1);
    uint64_t seed = 3;
    struct batch batch;
    make_batch(&batch, 9, &seed);
    assert_true(layer_awaits_first_batch(layer));
    layer_fold(layer, &batch.stats);
    double gamma[CHANNELS], beta[CHANNELS];
    for (size_t c = 0; c < CHANNELS; c++) {
        expect_near(layer->gamma[c], sqrtl(batch.m2[c] / 9 + config.eps));
        assert_int_equal(bits_of(layer->beta[c]), bits_of(batch.mean64[c]));
    }
    memcpy(gamma, layer->gamma, sizeof gamma);
    memcpy(beta, layer->beta, sizeof beta);
    assert_false(layer_awaits_first_batch(layer));
    make_batch(&batch, 9, &seed);
    layer_fold(layer, &batch.stats);
    assert_memory_equal(layer->gamma, gamma, sizeof gamma);
    assert_memory_equal(layer->beta, beta, sizeof beta);
    layer->num_batches_tracked = 0; // as PUT of the state may
    assert_true(layer_awaits_first_batch(layer));
    layer_state_release(layer);
}

// The normalizer is a version that exists: the one in which gamma and beta changed. The writer has set the new version
// before it folds.
static void test_first_batch_normalizer(void **state) {
    (void)state;
    struct msg_config config = config_of(CHANNELS, MSG_PYTORCH);
    config.init = MSG_INIT_FIRST_BATCH;
    struct layer_state *const layer = layer_state_new(&config, 1);
    uint64_t seed = 4;
    struct batch batch;
    make_batch(&batch, 9, &seed);
    layer->version = 2;
    layer_fold(layer, &batch.stats);
    assert_int_equal(layer->version, 2);
    assert_int_equal(layer->normalizer, 2);
    layer->version = 3;
    layer_fold(layer, &batch.stats);
    assert_int_equal(layer->normalizer, 2);
    layer_state_release(layer);
}

static void test_batches_saturate(void **state) {
    (void)state;
    const struct msg_config config = config_of(CHANNELS, MSG_PAPER);
    struct layer_state *const layer = layer_state_new(&config, 1);
    uint64_t seed = 5;
    struct batch batch;
    make_batch(&batch, 4, &seed);
    layer->num_batches_tracked = INT64_MAX - 1;
    for (int i = 0; i < 3; i++) {
        layer_fold(layer, &batch.stats);
        assert_int_equal(layer->num_batches_tracked, INT64_MAX);
    }
    for (size_t c = 0; c < CHANNELS; c++) assert_true(isfinite(layer->running_mean[c]));
    layer_state_release(layer);
}

// ---- steps

static void test_step(void **state) {
    (void)state;
    const struct msg_config config = config_of(3, MSG_PYTORCH);
    struct layer_state *const layer = layer_state_new(&config, 1);
    const double gamma[] = {1, -2, 0.1}, dgamma[] = {0.5, 3, 0.7}, beta[] = {0, 4, -0.3}, dbeta[] = {-2, 1, 0.2};
    memcpy(layer->gamma, gamma, sizeof gamma);
    memcpy(layer->beta, beta, sizeof beta);
    layer_step(layer, dgamma, dbeta, 0.25, 0.5);
    const double stepped_gamma[] = {0.75, -2.5}, stepped_beta[] = {0.5, 3.25}; // p - lr * (grad + decay * p), exact
    assert_memory_equal(layer->gamma, stepped_gamma, sizeof stepped_gamma);
    assert_memory_equal(layer->beta, stepped_beta, sizeof stepped_beta);
    expect_near(layer->gamma[2], 0.1L - 0.25L * (0.7L + 0.5L * 0.1L));
    expect_near(layer->beta[2], -0.3L - 0.25L * (0.2L + 0.5L * -0.3L));
    assert_int_equal(layer->version, 1);
    layer_state_release(layer);
}

static void test_step_is_finite(void **state) {
    (void)state;
    const struct msg_config config = config_of(2, MSG_PYTORCH);
    struct layer_state *const layer = layer_state_new(&config, 1);
    const double small[] = {1, 1}, second[] = {1, 1e200}, nan[] = {1, NAN};
    const struct {
        const double *dgamma, *dbeta;
        double lr, decay;
        bool finite;
    } rows[] = {{small, small, 0.1, 0, true},     {small, small, 1e300, 0, true}, {second, small, 1e200, 0, false},
                {small, second, 1e200, 0, false}, {small, nan, 0.1, 0, false},    {small, small, 1e200, 1e200, false},
                {second, small, 1e100, 0, true}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        assert_int_equal(layer_step_is_finite(layer, rows[i].dgamma, rows[i].dbeta, rows[i].lr, rows[i].decay),
                         rows[i].finite);
    }
    assert_true(layer->gamma[0] == 1 && layer->gamma[1] == 1 && layer->beta[1] == 0); // only asked
    layer_state_release(layer);
}

// ---- states

static void test_vectors_exist(void **state) {
    (void)state;
    for (int i = 0; i < 4; i++) {
        struct msg_config config = config_of(CHANNELS, MSG_PYTORCH);
        config.affine = (i & 1) != 0;
        config.track_running_stats = (i & 2) != 0;
        struct layer_state *const layer = layer_state_new(&config, 1);
        const size_t vectors = (config.affine ? 2u : 0u) + (config.track_running_stats ? 2u : 0u);
        assert_int_equal(layer->gamma != NULL && layer->beta != NULL, config.affine);
        assert_int_equal(layer->running_mean != NULL && layer->running_var != NULL, config.track_running_stats);
        assert_int_equal(layer_state_bytes(&config), sizeof *layer + vectors * CHANNELS * sizeof(double));
        memset(layer->vectors, 0x55, vectors * CHANNELS * sizeof(double)); // a sanitizer sees a vector too short
        layer_state_release(layer);
    }
}

// One bad value at any place of the vectors that the layer has.
static void test_finite(void **state) {
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        struct msg_config config = config_of(CHANNELS, MSG_PYTORCH);
        config.affine = (kind & 1) != 0;
        config.track_running_stats = (kind & 2) != 0;
        struct layer_state *const layer = layer_state_new(&config, 1);
        assert_non_null(layer);
        assert_true(layer_state_is_finite(layer));
        const size_t count = (layer_state_bytes(&config) - sizeof *layer) / sizeof(double);
        for (size_t i = 0; i < count; i++) {
            const double before = layer->vectors[i];
            layer->vectors[i] = i % 2 == 0 ? NAN : -INFINITY;
            assert_false(layer_state_is_finite(layer));
            layer->vectors[i] = before;
        }
        assert_true(layer_state_is_finite(layer));
        layer_state_release(layer);
    }
}

static void test_clone(void **state) {
    (void)state;
    for (int i = 0; i < 4; i++) {
        struct msg_config config = config_of(CHANNELS, MSG_KERAS);
        config.affine = (i & 1) != 0;
        config.track_running_stats = (i & 2) != 0;
        struct layer_state *const layer = layer_state_new(&config, 99);
        const size_t bytes = layer_state_bytes(&config) - sizeof *layer;
        uint64_t seed = 6;
        for (size_t k = 0; k < bytes / sizeof(double); k++) layer->vectors[k] = (double)random_bits(&seed);
        layer->version = 12;
        layer->normalizer = 11;
        layer->num_batches_tracked = 10;
        struct layer_state *const copy = layer_state_clone(layer);
        assert_non_null(copy);
        assert_int_equal(copy->refs, 1);
        assert_true(layer_config_equal(&copy->config, &config));
        assert_true(copy->id == 99 && copy->version == 12 && copy->normalizer == 11 && copy->num_batches_tracked == 10);
        if (bytes > 0) assert_memory_equal(copy->vectors, layer->vectors, bytes);
        if (config.affine) assert_ptr_equal(copy->gamma, copy->vectors);
        if (config.track_running_stats) {
            copy->running_var[CHANNELS - 1] = -1;
            assert_true(layer->running_var[CHANNELS - 1] != -1);
        }
        layer_state_release(layer);
        layer_state_release(copy);
    }
}

static void test_references(void **state) {
    (void)state;
    const struct msg_config config = config_of(1, MSG_PYTORCH);
    struct layer_state *const layer = layer_state_new(&config, 1);
    assert_ptr_equal(layer_state_ref(layer), layer);
    assert_int_equal(layer->refs, 2);
    layer_state_release(layer);
    assert_int_equal(layer->refs, 1);
    assert_true(layer->gamma[0] == 1);
    layer_state_release(layer);
    layer_state_release(NULL);
}

static void test_view(void **state) {
    (void)state;
    struct msg_config config = config_of(CHANNELS, MSG_ONNX);
    struct layer_state *const layer = layer_state_new(&config, 1);
    layer->version = 4;
    layer->num_batches_tracked = 3;
    const struct msg_state_view view = layer_view(layer);
    assert_int_equal(view.channels, CHANNELS);
    assert_true(view.gamma == layer->gamma && view.beta == layer->beta && view.running_mean == layer->running_mean &&
                view.running_var == layer->running_var && view.layer == &layer->config);
    assert_true(view.tracks && view.num_batches_tracked == 3 && view.version == 4 && view.running_ddof == 0);
    assert_true(view.new_weight == 1 - 0.9);
    layer_state_release(layer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conventions),
        cmocka_unit_test(test_complete_defaults),
        cmocka_unit_test(test_complete_keeps_given),
        cmocka_unit_test(test_complete_refuses),
        cmocka_unit_test(test_equality),
        cmocka_unit_test(test_fold),
        cmocka_unit_test(test_fold_cumulative),
        cmocka_unit_test(test_fold_whole_weights),
        cmocka_unit_test(test_first_batch),
        cmocka_unit_test(test_first_batch_normalizer),
        cmocka_unit_test(test_batches_saturate),
        cmocka_unit_test(test_step),
        cmocka_unit_test(test_step_is_finite),
        cmocka_unit_test(test_vectors_exist),
        cmocka_unit_test(test_clone),
        cmocka_unit_test(test_finite),
        cmocka_unit_test(test_references),
        cmocka_unit_test(test_view),
    };
    return cmocka_run_group_tests_name("layer", tests, NULL, NULL);
}
