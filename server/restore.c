// SPDX-License-Identifier: Apache-2.0
#include "restore.h"

#include <stdio.h>
#include <string.h>

// One vector of a state, for loops over the four.
struct field {
    const char *name;
    const struct msg_vector *from;
    bool exists; // in the layer
    bool not_negative;
};

#define FIELDS 4

static void fields_of(struct field fields[FIELDS], const struct msg_state *from, const struct msg_config *config) {
    const bool affine = config->affine, tracks = config->track_running_stats;
    const struct field all[FIELDS] = {{"gamma", &from->gamma, affine, false},
                                      {"beta", &from->beta, affine, false},
                                      {"running_mean", &from->running_mean, tracks, false},
                                      {"running_var", &from->running_var, tracks, true}};
    memcpy(fields, all, sizeof all);
}

static bool fail_at(struct msg_error *error, enum msg_code code, const char *parent, const char *field, size_t index,
                    bool indexed, const char *what) {
    char pointer[MSG_POINTER_MAX];
    const int n = snprintf(pointer, sizeof pointer, "%.180s/%s", parent, field);
    if (indexed) snprintf(pointer + n, sizeof pointer - (size_t)n, "/%zu", index);
    return msg_fail(error, code, pointer, "%s %s", field, what);
}

bool restore_check_layer(struct msg_state *from, const struct msg_config *config, const char *parent,
                         struct msg_error *error) {
    if (!from->has_layer) return true;
    char pointer[MSG_POINTER_MAX];
    snprintf(pointer, sizeof pointer, "%.200s/layer", parent);
    struct msg_config given = from->layer;
    if (!layer_config_complete(&given, pointer, error)) return false;
    if (layer_config_equal(&given, config)) return true;
    return msg_fail(error, MSG_CONFIG_CONFLICT, pointer, "the layer has another configuration");
}

static bool check_vector(const struct field *field, const struct msg_config *config, bool whole, const char *parent,
                         struct msg_error *error) {
    const struct msg_vector *const v = field->from;
    const size_t channels = (size_t)config->num_features;
    const bool absent = !v->given;
    if (!field->exists) {
        return absent || v->null ||
               fail_at(error, MSG_NOT_SUPPORTED_BY_LAYER, parent, field->name, 0, false,
                       "does not exist in this layer: give null");
    }
    if (absent) return !whole || fail_at(error, MSG_MISSING_FIELD, parent, field->name, 0, false, "is missing");
    if (v->null)
        return fail_at(error, MSG_WRONG_TYPE, parent, field->name, 0, false, "is an array in this layer, not null");
    if (v->count != channels) {
        char what[96];
        snprintf(what, sizeof what, "has %zu values, the layer has %zu channels", v->count, channels);
        return fail_at(error, MSG_SHAPE_MISMATCH, parent, field->name, 0, false, what);
    }
    if (v->first_nonfinite < v->count && config->nonfinite != MSG_PROPAGATE) {
        return fail_at(error, MSG_NON_FINITE, parent, field->name, v->first_nonfinite, true,
                       "has a value that is not finite");
    }
    if (field->not_negative && v->first_negative < v->count) {
        return fail_at(error, MSG_OUT_OF_RANGE, parent, field->name, v->first_negative, true, "has a negative value");
    }
    return true;
}

static bool check_batches(const struct msg_state *from, const struct msg_config *config, bool whole, const char *parent,
                          struct msg_error *error) {
    static const char name[] = "num_batches_tracked";
    const bool tracks = config->track_running_stats;
    if (!from->has_num_batches_tracked) {
        return !whole || !tracks || fail_at(error, MSG_MISSING_FIELD, parent, name, 0, false, "is missing");
    }
    if (from->null_num_batches_tracked == !tracks) return true;
    return tracks ? fail_at(error, MSG_WRONG_TYPE, parent, name, 0, false, "is an integer in this layer, not null")
                  : fail_at(error, MSG_NOT_SUPPORTED_BY_LAYER, parent, name, 0, false,
                            "does not exist in this layer: give null");
}

bool restore_check_values(const struct msg_state *from, const struct msg_config *config, bool whole, const char *parent,
                          struct msg_error *error) {
    struct field fields[FIELDS];
    fields_of(fields, from, config);
    for (int i = 0; i < FIELDS; i++) {
        if (!check_vector(&fields[i], config, whole, parent, error)) return false;
    }
    return check_batches(from, config, whole, parent, error);
}

static void set_vector(double *values, const struct msg_vector *from) {
    if (values != NULL && from->given && from->count > 0)
        memcpy(values, from->values.data, from->count * sizeof *values);
}

void restore_values(struct layer_state *state, const struct msg_state *from) {
    set_vector(state->gamma, &from->gamma);
    set_vector(state->beta, &from->beta);
    set_vector(state->running_mean, &from->running_mean);
    set_vector(state->running_var, &from->running_var);
    if (from->gamma.given || from->beta.given) layer_touch(state);
    if (from->has_num_batches_tracked && !from->null_num_batches_tracked)
        state->num_batches_tracked = from->num_batches_tracked;
}
