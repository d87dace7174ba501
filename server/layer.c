// SPDX-License-Identifier: Apache-2.0
#include "layer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// What a convention means where the configuration does not say otherwise.
struct convention {
    double momentum; // NaN: cumulative
    bool weighs_old; // momentum is the weight of the old value, not of the new batch
    double eps;
    int running_ddof;
    double running_var; // at creation
};

// Indexed by enum msg_convention. CS231n's running variance starts at 0, as its assignment code does.
static const struct convention conventions[] = {
    [MSG_PYTORCH] = {0.1, false, 1e-5, 1, 1}, [MSG_CS231N] = {0.9, true, 1e-5, 0, 0},
    [MSG_ONNX] = {0.9, true, 1e-5, 0, 1},     [MSG_KERAS] = {0.99, true, 1e-3, 0, 1},
    [MSG_PAPER] = {NAN, false, 1e-5, 1, 1},
};

static bool first_batch_allowed(const struct msg_config *config, const char *parent, struct msg_error *error) {
    if (config->init != MSG_INIT_FIRST_BATCH || (config->affine && config->track_running_stats)) return true;
    char pointer[MSG_POINTER_MAX];
    snprintf(pointer, sizeof pointer, "%.200s/init", parent);
    return msg_fail(error, MSG_CONFLICTING_FIELDS, pointer, "\"first-batch\" needs affine and track_running_stats");
}

bool layer_config_complete(struct msg_config *config, const char *parent, struct msg_error *error) {
    const unsigned given = config->given;
    if ((given & MSG_NUM_FEATURES) == 0) {
        char pointer[MSG_POINTER_MAX];
        snprintf(pointer, sizeof pointer, "%.200s/num_features", parent);
        return msg_fail(error, MSG_MISSING_FIELD, pointer, "num_features is missing");
    }
    if ((given & MSG_CONVENTION) == 0) config->convention = MSG_PYTORCH;
    const struct convention *const convention = &conventions[config->convention];
    if ((given & MSG_MOMENTUM) == 0) config->momentum = convention->momentum;
    if ((given & MSG_EPS) == 0) config->eps = convention->eps;
    if ((given & MSG_AFFINE) == 0) config->affine = true;
    if ((given & MSG_TRACK) == 0) config->track_running_stats = true;
    if ((given & MSG_CHANNEL_AXIS) == 0) config->channel_axis = 1;
    if ((given & MSG_DTYPE) == 0) config->dtype = BN_F32;
    if ((given & MSG_INIT) == 0) config->init = MSG_INIT_STANDARD;
    if ((given & MSG_NONFINITE) == 0) config->nonfinite = MSG_REJECT;
    if ((given & MSG_SINGLE_VALUE_POLICY) == 0) config->single_value = MSG_SINGLE_REJECT;
    config->given = ~0u;
    return first_batch_allowed(config, parent, error);
}

static bool equal_or_both_nan(double a, double b) {
    return a == b || (isnan(a) && isnan(b));
}

bool layer_config_equal(const struct msg_config *a, const struct msg_config *b) {
    return a->num_features == b->num_features && a->convention == b->convention &&
           equal_or_both_nan(a->momentum, b->momentum) && a->eps == b->eps && a->affine == b->affine &&
           a->track_running_stats == b->track_running_stats && a->channel_axis == b->channel_axis &&
           a->dtype == b->dtype && a->init == b->init && a->nonfinite == b->nonfinite &&
           a->single_value == b->single_value;
}

double layer_new_weight(const struct msg_config *config) {
    return conventions[config->convention].weighs_old ? 1 - config->momentum : config->momentum;
}

int layer_running_ddof(const struct msg_config *config) {
    return conventions[config->convention].running_ddof;
}

static size_t vector_count(const struct msg_config *config) {
    return (config->affine ? 2u : 0u) + (config->track_running_stats ? 2u : 0u);
}

size_t layer_state_bytes(const struct msg_config *config) {
    return sizeof(struct layer_state) + vector_count(config) * (size_t)config->num_features * sizeof(double);
}

size_t layer_state_size(const struct layer_state *state) {
    return state != NULL ? layer_state_bytes(&state->config) : 0;
}

bool layer_state_is_finite(const struct layer_state *state) {
    const size_t count = vector_count(&state->config) * (size_t)state->config.num_features;
    return bn_first_nonfinite(state->vectors, count, BN_F64) == count;
}

static struct layer_state *allocate(const struct msg_config *config) {
    struct layer_state *const state = malloc(layer_state_bytes(config));
    if (state == NULL) return NULL;
    const size_t n = (size_t)config->num_features;
    *state = (struct layer_state){.refs = 1, .config = *config};
    double *next = state->vectors;
    if (config->affine) {
        state->gamma = next;
        state->beta = next + n;
        next += 2 * n;
    }
    if (config->track_running_stats) {
        state->running_mean = next;
        state->running_var = next + n;
    }
    return state;
}

static void fill(double *values, size_t n, double value) {
    for (size_t i = 0; values != NULL && i < n; i++) values[i] = value;
}

struct layer_state *layer_state_new(const struct msg_config *config, uint64_t id) {
    struct layer_state *const state = allocate(config);
    if (state == NULL) return NULL;
    const size_t n = (size_t)config->num_features;
    state->id = id;
    state->version = 1;
    state->normalizer = 1;
    fill(state->gamma, n, 1);
    fill(state->beta, n, 0);
    fill(state->running_mean, n, 0);
    fill(state->running_var, n, conventions[config->convention].running_var);
    return state;
}

struct layer_state *layer_state_clone(const struct layer_state *state) {
    struct layer_state *const copy = allocate(&state->config);
    if (copy == NULL) return NULL;
    copy->id = state->id;
    copy->version = state->version;
    copy->normalizer = state->normalizer;
    copy->num_batches_tracked = state->num_batches_tracked;
    memcpy(copy->vectors, state->vectors, layer_state_bytes(&state->config) - sizeof *state);
    return copy;
}

const struct layer_state *layer_state_ref(const struct layer_state *state) {
    atomic_fetch_add_explicit(&((struct layer_state *)(uintptr_t)state)->refs, 1, memory_order_relaxed);
    return state;
}

void layer_state_release(const struct layer_state *state) {
    struct layer_state *const owned = (struct layer_state *)(uintptr_t)state;
    if (owned == NULL || atomic_fetch_sub_explicit(&owned->refs, 1, memory_order_acq_rel) != 1) return;
    free(owned);
}

bool layer_awaits_first_batch(const struct layer_state *state) {
    return state->config.init == MSG_INIT_FIRST_BATCH && state->num_batches_tracked == 0;
}

void layer_first_affine(double *gamma, double *beta, const struct msg_config *config, const struct bn_stats *stats) {
    for (size_t c = 0; c < (size_t)config->num_features; c++) {
        gamma[c] = sqrt(stats->m2[c] / (double)stats->count + config->eps);
        beta[c] = stats->mean[c];
    }
}

void layer_touch(struct layer_state *state) {
    state->normalizer = state->version;
}

// A weight of 0 leaves its term out, so that an infinity in it (nonfinite "propagate") is not made a NaN.
static double blend(double old_weight, double old, double new_weight, double batch) {
    if (new_weight == 0) return old;
    if (old_weight == 0) return batch;
    return old_weight * old + new_weight * batch;
}

void layer_fold(struct layer_state *state, const struct bn_stats *stats) {
    const struct msg_config *const config = &state->config;
    const struct convention *const convention = &conventions[config->convention];
    if (layer_awaits_first_batch(state)) {
        layer_first_affine(state->gamma, state->beta, config, stats);
        layer_touch(state);
    }
    if (state->num_batches_tracked < INT64_MAX) state->num_batches_tracked++;
    double old_weight = convention->weighs_old ? config->momentum : 1 - config->momentum;
    double new_weight = convention->weighs_old ? 1 - config->momentum : config->momentum;
    if (isnan(config->momentum)) {
        new_weight = 1 / (double)state->num_batches_tracked;
        old_weight = 1 - new_weight;
    }
    const double degrees = (double)(stats->count - (uint64_t)convention->running_ddof);
    for (size_t c = 0; c < (size_t)config->num_features; c++) {
        state->running_mean[c] = blend(old_weight, state->running_mean[c], new_weight, stats->mean[c]);
        state->running_var[c] = blend(old_weight, state->running_var[c], new_weight, stats->m2[c] / degrees);
    }
}

static double stepped(double value, double gradient, double lr, double weight_decay) {
    return value - lr * (gradient + weight_decay * value);
}

void layer_step(struct layer_state *state, const double *dgamma, const double *dbeta, double lr, double weight_decay) {
    layer_touch(state);
    for (size_t c = 0; c < (size_t)state->config.num_features; c++) {
        state->gamma[c] = stepped(state->gamma[c], dgamma[c], lr, weight_decay);
        state->beta[c] = stepped(state->beta[c], dbeta[c], lr, weight_decay);
    }
}

bool layer_step_is_finite(const struct layer_state *state, const double *dgamma, const double *dbeta, double lr,
                          double weight_decay) {
    for (size_t c = 0; c < (size_t)state->config.num_features; c++) {
        if (!isfinite(stepped(state->gamma[c], dgamma[c], lr, weight_decay))) return false;
        if (!isfinite(stepped(state->beta[c], dbeta[c], lr, weight_decay))) return false;
    }
    return true;
}

struct msg_state_view layer_view(const struct layer_state *state) {
    return (struct msg_state_view){
        .channels = (size_t)state->config.num_features,
        .gamma = state->gamma,
        .beta = state->beta,
        .running_mean = state->running_mean,
        .running_var = state->running_var,
        .tracks = state->config.track_running_stats,
        .num_batches_tracked = state->num_batches_tracked,
        .version = state->version,
        .layer = &state->config,
        .new_weight = layer_new_weight(&state->config),
        .running_ddof = layer_running_ddof(&state->config),
    };
}
