// SPDX-License-Identifier: Apache-2.0
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "json_fields.h"
#include "scan.h"

// ---- tables of fields

static const char *const mode_words[] = {"train", "inference", NULL};
static const char *const activation_words[] = {"relu", NULL}; // enum bn_activation's, from BN_RELU on

#define CONFIG(member) offsetof(struct msg_config, member)
static const struct field config_fields[] = {
    {"num_features", FIELD_INTEGER, CONFIG(num_features), 1, MSG_CHANNELS_MAX, NULL, MSG_NUM_FEATURES},
    {"convention", FIELD_WORD, CONFIG(convention), 0, 0, msg_convention_words, MSG_CONVENTION},
    {"momentum", FIELD_REAL_OR_NULL, CONFIG(momentum), 0, 1, NULL, MSG_MOMENTUM},
    {"eps", FIELD_POSITIVE, CONFIG(eps), 0, 0, NULL, MSG_EPS},
    {"affine", FIELD_BOOL, CONFIG(affine), 0, 0, NULL, MSG_AFFINE},
    {"track_running_stats", FIELD_BOOL, CONFIG(track_running_stats), 0, 0, NULL, MSG_TRACK},
    {"channel_axis", FIELD_INTEGER, CONFIG(channel_axis), -TENSOR_MAX_RANK, TENSOR_MAX_RANK - 1, NULL,
     MSG_CHANNEL_AXIS},
    {"dtype", FIELD_WORD, CONFIG(dtype), 0, 0, msg_dtype_words, MSG_DTYPE},
    {"init", FIELD_WORD, CONFIG(init), 0, 0, msg_init_words, MSG_INIT},
    {"nonfinite", FIELD_WORD, CONFIG(nonfinite), 0, 0, msg_nonfinite_words, MSG_NONFINITE},
    {"single_value", FIELD_WORD, CONFIG(single_value), 0, 0, msg_single_value_words, MSG_SINGLE_VALUE_POLICY},
    {"version", FIELD_READ_ONLY, 0, 0, 0, NULL, 0},
    {"new_weight", FIELD_READ_ONLY, 0, 0, 0, NULL, 0},
    {"running_ddof", FIELD_READ_ONLY, 0, 0, 0, NULL, 0},
    FIELD_END,
};

// What GET of a layer gives beside the configuration; "layer" holds it.
static const struct field representation_fields[] = {
    {"name", FIELD_READ_ONLY, 0, 0, 0, NULL, 0},    {"layer", FIELD_READ_ONLY, 0, 0, 0, NULL, 0},
    {"version", FIELD_READ_ONLY, 0, 0, 0, NULL, 0}, {"counters", FIELD_READ_ONLY, 0, 0, 0, NULL, 0},
    {"memory", FIELD_READ_ONLY, 0, 0, 0, NULL, 0},  FIELD_END,
};

static const struct field state_fields[] = {
    {"num_batches_tracked", FIELD_APART, 0, 0, 0, NULL, 0},
    {"version", FIELD_READ_ONLY, 0, 0, 0, NULL, 0},
    {"layer", FIELD_APART, 0, 0, 0, NULL, 0},
    FIELD_END,
};

static const struct field patch_fields[] = {
    {"momentum", FIELD_REAL_OR_NULL, CONFIG(momentum), 0, 1, NULL, MSG_MOMENTUM},
    {"eps", FIELD_POSITIVE, CONFIG(eps), 0, 0, NULL, MSG_EPS},
    {"nonfinite", FIELD_WORD, CONFIG(nonfinite), 0, 0, msg_nonfinite_words, MSG_NONFINITE},
    {"single_value", FIELD_WORD, CONFIG(single_value), 0, 0, msg_single_value_words, MSG_SINGLE_VALUE_POLICY},
    FIELD_END,
};

#define CALL(member) offsetof(struct msg_call, member)
// Fields of all calls that have a check of their own, besides the tables below.
static const struct field call_fields[] = {
    {"channel_axis", FIELD_APART, 0, 0, 0, NULL, 0},
    FIELD_END,
};

static const struct field train_fields[] = {
    {"cache", FIELD_BOOL, CALL(keep), 0, 0, NULL, 0},
    {"activation", FIELD_WORD, CALL(activation), BN_RELU, 0, activation_words, 0},
    FIELD_END,
};

static const struct field inference_fields[] = {
    {"activation", FIELD_WORD, CALL(activation), BN_RELU, 0, activation_words, 0},
    FIELD_END,
};

static const struct field backward_fields[] = {
    {"step", FIELD_APART, 0, 0, 0, NULL, 0},
    {"cache", FIELD_CACHE_ID, CALL(cache), 0, 0, NULL, 0},
    {"mode", FIELD_WORD, CALL(mode), 0, 0, mode_words, 0},
    {"activation", FIELD_WORD, CALL(activation), BN_RELU, 0, activation_words, 0},
    FIELD_END,
};

static const struct field step_fields[] = {
    {"lr", FIELD_REAL, CALL(lr), -HUGE_VAL, HUGE_VAL, NULL, 1},
    {"weight_decay", FIELD_REAL, CALL(weight_decay), -HUGE_VAL, HUGE_VAL, NULL, 2},
    FIELD_END,
};

// ---- walking a body

bool field_members(struct scan *scan, field_take take, void *context) {
    struct scan_key key;
    bool more = true;
    if (!scan_object(scan)) return false;
    for (bool first = true; scan_member(scan, &key, &more, first); first = false) {
        if (!more) return true;
        if (!take(context, scan, &key)) return false;
        scan_end_member(scan, &key);
    }
    return false;
}

bool field_walk(struct json_body body, field_take take, void *context, struct msg_error *error) {
    struct scan scan;
    scan_start(&scan, body.text, body.length, body.budget, error);
    scan.ahead = body.ahead;
    if (scan_peek(&scan) != '{') {
        if (!scan_skip(&scan, NULL) || !scan_finish(&scan)) return false;
        return msg_fail(error, MSG_NOT_AN_OBJECT, NULL, "the body is not a JSON object");
    }
    return field_members(&scan, take, context) && scan_finish(&scan) && error->code == MSG_OK;
}

static bool take_rest(void *context, struct scan *scan, const struct scan_key *key) {
    return rest_take(context, scan, key);
}

bool rest_parse(struct rest *rest, struct json_body body, struct msg_error *error) {
    if (!field_walk(body, take_rest, rest, error)) return false;
    if (rest->object == NULL) rest->object = json_object();
    return rest->object != NULL || msg_fail(error, MSG_MEMORY_FULL, NULL, "out of memory");
}

// ---- configuration

bool field_set_config(struct msg_config *config, json_t *object, const char *parent, struct msg_error *error) {
    *config = (struct msg_config){0};
    return field_set_all(config, &config->given, config_fields, object, parent, error);
}

static bool set_representation(struct msg_config *config, json_t *object, const char *name, struct msg_error *error) {
    if (!field_set_all(NULL, NULL, representation_fields, object, "", error)) return false;
    const json_t *const given_name = json_object_get(object, "name");
    if (given_name != NULL && !json_is_string(given_name))
        return msg_fail(error, MSG_WRONG_TYPE, "/name", "name is a string");
    if (given_name != NULL && !field_is_word(given_name, name)) {
        return msg_fail(error, MSG_CONFLICTING_FIELDS, "/name", "the name is not the one in the path");
    }
    json_t *const layer = json_object_get(object, "layer");
    if (!json_is_object(layer)) return msg_fail(error, MSG_WRONG_TYPE, "/layer", "layer is an object");
    return field_set_config(config, layer, "/layer", error);
}

static bool set_whole(struct msg_config *config, json_t *object, const char *name, struct msg_error *error) {
    const bool whole = json_object_get(object, "layer") != NULL;
    return whole ? set_representation(config, object, name, error) : field_set_config(config, object, "", error);
}

bool json_decode_config(struct msg_config *config, struct json_body body, const char *name, struct msg_error *error) {
    struct rest rest = {.known = {config_fields, representation_fields}};
    const bool ok = rest_parse(&rest, body, error) && set_whole(config, rest.object, name, error);
    rest_free(&rest);
    return ok;
}

// A field of the configuration that PATCH does not take is known all the same, and said to be fixed.
static bool set_patch(struct msg_config *config, json_t *object, struct msg_error *error) {
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value) {
        if (field_find(patch_fields, name) != NULL || field_find(config_fields, name) == NULL) continue;
        char pointer[MSG_POINTER_MAX];
        field_pointer(pointer, "", name);
        return msg_fail(error, MSG_NOT_SUPPORTED_BY_LAYER, pointer, "%s cannot be changed after creation", name);
    }
    *config = (struct msg_config){0};
    return field_set_all(config, &config->given, patch_fields, object, "", error);
}

bool json_decode_config_patch(struct msg_config *config, struct json_body body, struct msg_error *error) {
    struct rest rest = {.known = {config_fields}};
    const bool ok = rest_parse(&rest, body, error) && set_patch(config, rest.object, error);
    rest_free(&rest);
    return ok;
}

// ---- calls

struct call_walk {
    struct msg_call *call;
    enum msg_call_kind kind;
    enum bn_dtype dtype;
    struct field_tensors seen;
    struct rest rest;
};

static bool take_once(bool *seen, struct scan *scan) {
    if (*seen) msg_fail(scan->error, MSG_DUPLICATE_FIELD, scan->pointer, "the field is given twice");
    const bool again = *seen;
    *seen = true;
    return !again;
}

static bool take_call_member(void *context, struct scan *scan, const struct scan_key *key) {
    struct call_walk *const walk = context;
    struct msg_call *const call = walk->call;
    const struct {
        const char *name;
        struct tensor *tensor;
        bool *seen;
    } tensors[] = {{"x", &call->x, &walk->seen.x},
                   {"residual", &call->residual, &walk->seen.residual},
                   {"dout", &call->dout, &walk->seen.dout}};
    const size_t count = walk->kind == MSG_BACKWARD ? 3 : 2;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(key->name, tensors[i].name) != 0) continue;
        return take_once(tensors[i].seen, scan) ? scan_tensor(scan, tensors[i].tensor, walk->dtype)
                                                : scan_skip(scan, NULL);
    }
    return rest_take(&walk->rest, scan, key);
}

static bool set_step(struct msg_call *call, json_t *step, struct msg_error *error) {
    unsigned given = 0;
    if (!json_is_object(step)) return msg_fail(error, MSG_WRONG_TYPE, "/step", "step is an object");
    if (!field_set_all(call, &given, step_fields, step, "/step", error)) return false;
    if ((given & 1) == 0) return msg_fail(error, MSG_MISSING_FIELD, "/step/lr", "lr is missing");
    call->has_step = true;
    return true;
}

// Indexed by enum msg_call_kind.
static const struct field *const call_tables[] = {train_fields, inference_fields, backward_fields};

bool field_set_call(struct msg_call *call, enum msg_call_kind kind, json_t *object, struct msg_error *error) {
    static const struct field axis_field = {
        "channel_axis", FIELD_INTEGER, CALL(channel_axis), -TENSOR_MAX_RANK, TENSOR_MAX_RANK - 1, NULL, 0};
    const json_t *const axis = json_object_get(object, "channel_axis");
    if (axis != NULL) {
        if (!field_set(call, &axis_field, axis, "/channel_axis", error)) return false;
        call->has_channel_axis = true;
        json_object_del(object, "channel_axis");
    }
    json_t *const step = kind == MSG_BACKWARD ? json_object_get(object, "step") : NULL;
    if (step != NULL) {
        if (!set_step(call, step, error)) return false;
        json_object_del(object, "step");
    }
    return field_set_all(call, NULL, call_tables[kind], object, "", error);
}

bool field_check_call(const struct msg_call *call, enum msg_call_kind kind, struct field_tensors given,
                      struct msg_error *error) {
    const bool has_cache = call->cache[0] != '\0';
    if (kind != MSG_BACKWARD) return given.x || msg_fail(error, MSG_MISSING_FIELD, "/x", "x is missing");
    if (!given.dout) return msg_fail(error, MSG_MISSING_FIELD, "/dout", "dout is missing");
    if (given.x && has_cache)
        return msg_fail(error, MSG_CONFLICTING_FIELDS, "/cache", "give one of cache and x, not both");
    if (!given.x && !has_cache) return msg_fail(error, MSG_MISSING_FIELD, "/x", "one of x and cache is missing");
    if (has_cache && call->activation != BN_IDENTITY)
        return msg_fail(error, MSG_CONFLICTING_FIELDS, "/activation", "with a cache the activation is the pass's");
    if (has_cache && given.residual)
        return msg_fail(error, MSG_CONFLICTING_FIELDS, "/residual", "with a cache the residual is the pass's");
    return true;
}

bool json_decode_call(struct msg_call *call, enum msg_call_kind kind, struct json_body body, enum bn_dtype dtype,
                      struct msg_error *error) {
    struct call_walk walk = {
        .call = call, .kind = kind, .dtype = dtype, .rest = {.known = {call_fields, call_tables[kind]}}};
    const bool ok = field_walk(body, take_call_member, &walk, error) &&
                    (walk.rest.object == NULL || field_set_call(call, kind, walk.rest.object, error)) &&
                    field_check_call(call, kind, walk.seen, error);
    rest_free(&walk.rest);
    return ok;
}

// ---- state and snapshot

struct state_walk {
    struct msg_state *state;
    struct rest rest;
};

static bool take_state_member(void *context, struct scan *scan, const struct scan_key *key) {
    struct state_walk *const walk = context;
    const struct {
        const char *name;
        struct msg_vector *vector;
    } vectors[] = {{"gamma", &walk->state->gamma},
                   {"beta", &walk->state->beta},
                   {"running_mean", &walk->state->running_mean},
                   {"running_var", &walk->state->running_var}};
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        if (strcmp(key->name, vectors[i].name) != 0) continue;
        return take_once(&vectors[i].vector->given, scan) ? scan_vector(scan, vectors[i].vector)
                                                          : scan_skip(scan, NULL);
    }
    return rest_take(&walk->rest, scan, key);
}

static bool set_batches(struct msg_state *state, const json_t *value, const char *pointer, struct msg_error *error) {
    state->has_num_batches_tracked = true;
    state->null_num_batches_tracked = json_is_null(value);
    if (state->null_num_batches_tracked) return true;
    int64_t count = 0;
    bool fits = false;
    if (!field_whole(&count, &fits, value))
        return msg_fail(error, MSG_WRONG_TYPE, pointer, "num_batches_tracked is an integer or null");
    if (!fits || count < 0)
        return msg_fail(error, MSG_OUT_OF_RANGE, pointer, "num_batches_tracked is from 0 to 2^63 - 1");
    state->num_batches_tracked = (uint64_t)count;
    return true;
}

static bool set_state_rest(struct msg_state *state, json_t *object, const char *parent, struct msg_error *error) {
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value) {
        char pointer[MSG_POINTER_MAX];
        field_pointer(pointer, parent, name);
        if (strcmp(name, "version") == 0) continue;
        if (strcmp(name, "num_batches_tracked") == 0) {
            if (!set_batches(state, value, pointer, error)) return false;
        } else if (strcmp(name, "layer") == 0) {
            if (!json_is_object(value)) return msg_fail(error, MSG_WRONG_TYPE, pointer, "layer is an object");
            if (!field_set_config(&state->layer, value, pointer, error)) return false;
            state->has_layer = true;
        } else {
            return msg_fail(error, MSG_UNKNOWN_FIELD, pointer, "there is no such field here");
        }
    }
    return true;
}

bool json_decode_state(struct msg_state *state, struct json_body body, struct msg_error *error) {
    struct state_walk walk = {.state = state, .rest = {.known = {state_fields}}};
    const bool ok = field_walk(body, take_state_member, &walk, error) &&
                    (walk.rest.object == NULL || set_state_rest(state, walk.rest.object, "", error));
    rest_free(&walk.rest);
    return ok;
}

// Entries are charged to the budget: a layer takes seven bytes of text, but some hundred of memory.
static bool add_entry(struct msg_snapshot *snapshot) {
    const size_t size = sizeof *snapshot->entries;
    if (!buffer_grow(&snapshot->storage, size)) return false;
    memset(snapshot->storage.data + snapshot->storage.size, 0, size);
    snapshot->storage.size += size;
    snapshot->entries = (struct msg_snapshot_entry *)(void *)snapshot->storage.data;
    snapshot->count++;
    return true;
}

static bool take_snapshot_layer(void *context, struct scan *scan, const struct scan_key *key) {
    struct msg_snapshot *const snapshot = context;
    if (!msg_name_valid(key->name, strlen(key->name)))
        return scan_refuse(scan, MSG_BAD_NAME, "not the name of a layer");
    if (scan_peek(scan) != '{') return scan_refuse(scan, MSG_WRONG_TYPE, "a state is an object");
    if (scan->error->code != MSG_OK) return scan_skip(scan, NULL);
    if (!add_entry(snapshot)) return scan_refuse(scan, MSG_MEMORY_FULL, "the layers do not fit the memory budget");
    struct msg_snapshot_entry *const entry = &snapshot->entries[snapshot->count - 1];
    snprintf(entry->name, sizeof entry->name, "%.*s", MSG_NAME_MAX, key->name);
    struct state_walk walk = {.state = &entry->state, .rest = {.known = {state_fields}}};
    const bool ok = field_members(scan, take_state_member, &walk);
    if (ok && walk.rest.object != NULL) set_state_rest(&entry->state, walk.rest.object, scan->pointer, scan->error);
    rest_free(&walk.rest);
    return ok;
}

static bool take_snapshot_member(void *context, struct scan *scan, const struct scan_key *key) {
    struct msg_snapshot *const snapshot = context;
    if (strcmp(key->name, "layers") != 0) return scan_refuse(scan, MSG_UNKNOWN_FIELD, "there is no such field here");
    if (snapshot->entries != NULL) return scan_refuse(scan, MSG_DUPLICATE_FIELD, "the field is given twice");
    if (scan_peek(scan) != '{') return scan_refuse(scan, MSG_WRONG_TYPE, "layers is an object");
    snapshot->storage.budget = scan->budget;
    if (!buffer_reserve(&snapshot->storage, sizeof *snapshot->entries))
        return scan_refuse(scan, MSG_MEMORY_FULL, "out of memory");
    snapshot->entries = (struct msg_snapshot_entry *)(void *)snapshot->storage.data;
    return field_members(scan, take_snapshot_layer, snapshot);
}

static int compare_entries(const void *a, const void *b) {
    return strcmp(((const struct msg_snapshot_entry *)a)->name, ((const struct msg_snapshot_entry *)b)->name);
}

static bool sort_unique(struct msg_snapshot *snapshot, struct msg_error *error) {
    struct msg_snapshot_entry *const entries = snapshot->entries;
    qsort(entries, snapshot->count, sizeof *entries, compare_entries);
    for (size_t i = 1; i < snapshot->count; i++) {
        if (strcmp(entries[i - 1].name, entries[i].name) != 0) continue;
        char pointer[MSG_POINTER_MAX];
        field_pointer(pointer, "/layers", entries[i].name);
        return msg_fail(error, MSG_DUPLICATE_FIELD, pointer, "the layer is given twice");
    }
    return true;
}

bool json_decode_snapshot(struct msg_snapshot *snapshot, struct json_body body, struct msg_error *error) {
    if (!field_walk(body, take_snapshot_member, snapshot, error)) return false;
    if (snapshot->entries == NULL) return msg_fail(error, MSG_MISSING_FIELD, "/layers", "layers is missing");
    return sort_unique(snapshot, error);
}
