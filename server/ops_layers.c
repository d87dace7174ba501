// SPDX-License-Identifier: Apache-2.0
//
// Layers as resources: create, list, look at, change, delete.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "ops.h"
#include "reply.h"
#include "../proto/json.h"

#define LIST_DEFAULT 100
#define LIST_MAX 1000

static struct msg_layer describe(const struct layer *layer, const struct layer_state *state) {
    return (struct msg_layer){
        .name = layer->name,
        .config = &state->config,
        .new_weight = layer_new_weight(&state->config),
        .running_ddof = layer_running_ddof(&state->config),
        .version = state->version,
        .train_forward = atomic_load(&layer->train_forward),
        .inference = atomic_load(&layer->inference),
        .backward = atomic_load(&layer->backward),
        .skipped = atomic_load(&layer->skipped),
        .state_bytes = layer_state_bytes(&state->config),
        .cache_bytes = atomic_load(&layer->cache_bytes),
    };
}

// ---- GET

enum job_result ops_get_layer(struct job *job) {
    const int status = reply_is_known(job, job->state) ? 304 : 200;
    const struct msg_layer layer = describe(job->layer, job->state);
    return reply_with(job, status, json_encode_layer(&job->reply.body, &layer));
}

// The cursor is the last name of the page in hexadecimal: opaque, and still right after that layer is gone.
static void write_cursor(char *out, const char *name) {
    for (; *name != '\0'; name++, out += 2) snprintf(out, 3, "%02x", (unsigned char)*name);
}

static bool read_cursor(char name[MSG_NAME_MAX + 1], const char *cursor) {
    const size_t length = strlen(cursor);
    if (length % 2 != 0 || length / 2 > MSG_NAME_MAX || strspn(cursor, "0123456789abcdef") != length) return false;
    for (size_t i = 0; i < length / 2; i++) {
        unsigned byte = 0;
        sscanf(cursor + 2 * i, "%2x", &byte);
        name[i] = (char)byte;
    }
    name[length / 2] = '\0';
    return msg_name_valid(name, length / 2);
}

static bool read_limit(size_t *limit, const char *text) {
    if (strspn(text, "0123456789") != strlen(text) || text[0] == '\0' || strlen(text) > 4) return false;
    *limit = (size_t)strtoul(text, NULL, 10);
    return *limit >= 1 && *limit <= LIST_MAX;
}

static bool encode_list(struct job *job, const struct registry_item *items, size_t count, bool more) {
    struct buffer *const out = &job->reply.body;
    bool ok = json_begin_list(out);
    for (size_t i = 0; i < count && ok; i++) {
        const struct msg_layer layer = describe(items[i].layer, items[i].state);
        ok = json_list_layer(out, &layer, i);
    }
    char cursor[2 * MSG_NAME_MAX + 1] = "";
    if (more && count > 0) write_cursor(cursor, items[count - 1].layer->name);
    return ok && json_end_list(out, more ? cursor : NULL);
}

enum job_result ops_list_layers(struct job *job) {
    const char *const prefix = job_parameter(job, "prefix"), *const cursor = job_parameter(job, "cursor");
    const char *const limit_text = job_parameter(job, "limit");
    char after[MSG_NAME_MAX + 1];
    size_t limit = LIST_DEFAULT, count = 0;
    bool more = false;
    if (limit_text != NULL && !read_limit(&limit, limit_text)) {
        msg_fail(&job->error, MSG_BAD_PARAMETER, NULL, "limit is from 1 to %d", LIST_MAX);
        return JOB_REPLY;
    }
    if (cursor != NULL && !read_cursor(after, cursor)) {
        msg_fail(&job->error, MSG_BAD_PARAMETER, NULL, "cursor is not one that a list gave");
        return JOB_REPLY;
    }
    struct registry_item *items = NULL;
    const char *const from = cursor != NULL ? after : NULL;
    if (!registry_list(job->service->registry, prefix != NULL ? prefix : "", from, limit, &items, &count, &more))
        return reply_failed(job);
    const bool encoded = encode_list(job, items, count, more);
    registry_items_free(&items, count);
    return reply_with(job, 200, encoded);
}

// ---- PUT

static void finish_put(struct job *job) {
    // The layer may be gone again by now; its counters then show as a new one's.
    struct layer fresh = {.refs = 1};
    memcpy(fresh.name, job->name, sizeof fresh.name);
    const struct layer_state *now = NULL;
    struct layer *const layer = registry_find(job->service->registry, job->name, &now);
    const struct msg_layer view = describe(layer != NULL ? layer : &fresh, job->outcome);
    reply_etag(job, job->outcome);
    reply_with(job, job->reply.status, json_encode_layer(&job->reply.body, &view));
    layer_state_release(now);
    layer_release(layer);
}

static bool set_outcome(struct job *job, const struct layer_state *state, int status) {
    layer_state_release(job->outcome);
    job->outcome = layer_state_ref(state);
    job->reply.status = status;
    return true;
}

static bool same_or_conflict(struct job *job, const struct layer_state *state, struct msg_error *error) {
    if (layer_config_equal(&state->config, &job->config)) return set_outcome(job, state, 200);
    return msg_fail(error, MSG_CONFIG_CONFLICT, NULL, "layer \"%s\" exists with another configuration", job->name);
}

static bool apply_put(struct change *change, struct txn *txn) {
    struct job *const job = job_of_change(change);
    const struct layer_state *const existing = txn_state(txn, job->name);
    if (!job_precondition(job, existing, &change->error)) return false;
    if (existing != NULL) return same_or_conflict(job, existing, &change->error);
    if (!txn_has_room(txn, layer_state_bytes(&job->config))) {
        return msg_fail(&change->error, MSG_MEMORY_FULL, NULL, "the states of all layers would pass the memory budget");
    }
    uint64_t id = 0;
    if (getrandom(&id, sizeof id, 0) != (ssize_t)sizeof id)
        return msg_fail(&change->error, MSG_INTERNAL, NULL, "no random numbers");
    struct layer_state *const state = layer_state_new(&job->config, id);
    if (state == NULL) return reply_no_memory(change);
    set_outcome(job, state, 201);
    return txn_put(txn, job->name, state) || reply_no_memory(change);
}

// Memory that other layers have may become free; that a layer alone takes too much stays so.
static bool fits(struct job *job) {
    const size_t bytes = layer_state_bytes(&job->config), limit = job->service->memory->limit;
    return bytes <= limit || msg_fail(&job->error, MSG_OUT_OF_RANGE, "/num_features",
                                      "a layer of %lld channels takes %zu bytes, the memory budget is %zu",
                                      (long long)job->config.num_features, bytes, limit);
}

enum job_result ops_put_layer(struct job *job) {
    if (!json_decode_config(&job->config, reply_request_body(job), job->name, &job->error)) return JOB_REPLY;
    if (!layer_config_complete(&job->config, "", &job->error) || !fits(job)) return JOB_REPLY;
    if (job->state == NULL) return reply_after_commit(job, apply_put, finish_put);
    if (!same_or_conflict(job, job->state, &job->error)) return JOB_REPLY;
    finish_put(job);
    return JOB_REPLY;
}

// ---- PATCH, DELETE

// What GET of a state gives, PUT must take: a layer that does not propagate holds finite values alone.
static bool check_finite(const struct msg_config *patch, const struct layer_state *state, struct msg_error *error) {
    if ((patch->given & MSG_NONFINITE) == 0 || patch->nonfinite == MSG_PROPAGATE) return true;
    return layer_state_is_finite(state) || msg_fail(error, MSG_NON_FINITE, "/nonfinite",
                                                    "the state has a value that is not finite, which \"%s\" excludes",
                                                    msg_nonfinite_words[patch->nonfinite]);
}

static bool apply_patch(struct change *change, struct txn *txn) {
    struct job *const job = job_of_change(change);
    const struct msg_config *const patch = &job->config;
    const struct layer_state *const state = reply_current(job, txn, false);
    if (state == NULL || !check_finite(patch, state, &change->error)) return false;
    const bool new_eps = (patch->given & MSG_EPS) != 0 && patch->eps != state->config.eps;
    struct layer_state *const next = reply_edit(job, txn);
    if (next == NULL) return false;
    if ((patch->given & MSG_MOMENTUM) != 0) next->config.momentum = patch->momentum;
    if ((patch->given & MSG_EPS) != 0) next->config.eps = patch->eps;
    if ((patch->given & MSG_NONFINITE) != 0) next->config.nonfinite = patch->nonfinite;
    if ((patch->given & MSG_SINGLE_VALUE_POLICY) != 0) next->config.single_value = patch->single_value;
    if (new_eps) layer_touch(next);
    return set_outcome(job, next, 200);
}

enum job_result ops_patch_layer(struct job *job) {
    if (!json_decode_config_patch(&job->config, reply_request_body(job), &job->error)) return JOB_REPLY;
    return reply_after_commit(job, apply_patch, finish_put);
}

static bool apply_delete(struct change *change, struct txn *txn) {
    struct job *const job = job_of_change(change);
    const struct layer_state *const state = reply_current(job, txn, false);
    if (state == NULL) return false;
    set_outcome(job, state, 204);
    return txn_delete(txn, job->name) || reply_no_memory(change);
}

static void finish_delete(struct job *job) {
    cache_drop_stale(job->service->cache);
    reply_with(job, 204, true);
}

enum job_result ops_delete_layer(struct job *job) {
    return reply_after_commit(job, apply_delete, finish_delete);
}
