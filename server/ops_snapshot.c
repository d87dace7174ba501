// SPDX-License-Identifier: Apache-2.0
//
// All layers at one moment: read, and restore, all or nothing.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "ops.h"
#include "reply.h"
#include "restore.h"
#include "stream.h"
#include "../proto/json.h"

enum job_result ops_get_snapshot(struct job *job) {
    const char *const prefix = job_parameter(job, "prefix");
    return stream_snapshot(job, prefix != NULL ? prefix : "");
}

// ---- PUT

static void pointer_of(char pointer[MSG_POINTER_MAX], const struct msg_snapshot_entry *entry) {
    snprintf(pointer, MSG_POINTER_MAX, "/layers/%s", entry->name);
}

// The configuration that the entry's layer will have: its own, or that of the layer as it is.
static bool config_of(struct msg_config *config, const struct msg_snapshot_entry *entry,
                      const struct layer_state *existing, struct msg_error *error) {
    char pointer[MSG_POINTER_MAX];
    pointer_of(pointer, entry);
    if (entry->state.has_layer) {
        strncat(pointer, "/layer", sizeof pointer - strlen(pointer) - 1);
        *config = entry->state.layer;
        return layer_config_complete(config, pointer, error);
    }
    if (existing == NULL && entry->has_guess) {
        *config = entry->guess;
        return layer_config_complete(config, pointer, error);
    }
    if (existing == NULL)
        return msg_fail(error, MSG_MISSING_FIELD, pointer, "layer is missing, and there is no such layer yet");
    *config = existing->config;
    return true;
}

// A layer that keeps its configuration keeps its id; another configuration makes another layer of it, whose version
// goes on from the old one's.
static struct layer_state *new_state(const struct msg_snapshot_entry *entry, const struct msg_config *config,
                                     const struct layer_state *existing) {
    uint64_t id = 0;
    const bool same = existing != NULL && layer_config_equal(&existing->config, config);
    if (same) id = existing->id;
    if (!same && getrandom(&id, sizeof id, 0) != (ssize_t)sizeof id) return NULL;
    struct layer_state *const state = layer_state_new(config, id);
    if (state == NULL) return NULL;
    if (existing != NULL) state->version = existing->version + 1;
    layer_touch(state);
    restore_values(state, &entry->state);
    return state;
}

// All the states that the snapshot makes, in its order, or NULL with `error` set. For the caller to free, with each
// state that it does not pass on.
static struct layer_state **build(struct job *job, struct txn *txn, struct msg_error *error) {
    const struct msg_snapshot *const snapshot = &job->snapshot;
    struct layer_state **const states = calloc(snapshot->count + 1, sizeof *states);
    size_t bytes = 0, more = 0; // of all its states, and beyond those that they replace
    for (size_t i = 0; i < snapshot->count && states != NULL; i++) {
        const struct msg_snapshot_entry *const entry = &snapshot->entries[i];
        const struct layer_state *const existing = txn_state(txn, entry->name);
        struct msg_config config;
        char pointer[MSG_POINTER_MAX];
        pointer_of(pointer, entry);
        if (!config_of(&config, entry, existing, error) ||
            !restore_check_values(&entry->state, &config, true, pointer, error))
            break;
        states[i] = new_state(entry, &config, existing);
        if (states[i] == NULL) break;
        const size_t old = layer_state_size(existing), new = layer_state_bytes(&config);
        bytes += new;
        if (new > old) more += new - old;
        if (bytes > job->service->memory->limit) {
            msg_fail(error, MSG_BODY_TOO_LARGE, NULL, "the states of the snapshot take more than the memory budget");
            break;
        }
        if (txn_has_room(txn, more)) continue;
        msg_fail(error, MSG_MEMORY_FULL, pointer, "the states of all layers would pass the memory budget");
        break;
    }
    if (states == NULL || (snapshot->count > 0 && states[snapshot->count - 1] == NULL))
        msg_fail(error, MSG_MEMORY_FULL, NULL, "out of memory");
    if (error->code == MSG_OK) return states;
    for (size_t i = 0; states != NULL && i < snapshot->count; i++) layer_state_release(states[i]);
    free(states);
    return NULL;
}

// ---- delete_missing

struct doomed {
    const struct msg_snapshot *snapshot; // sorted by name
    char (*names)[MSG_NAME_MAX + 1];
    size_t count, capacity;
    bool failed;
};

static int compare_entry(const void *name, const void *entry) {
    return strcmp(name, ((const struct msg_snapshot_entry *)entry)->name);
}

static void doom(void *context, const char *name) {
    struct doomed *const doomed = context;
    const struct msg_snapshot *const snapshot = doomed->snapshot;
    if (bsearch(name, snapshot->entries, snapshot->count, sizeof snapshot->entries[0], compare_entry) != NULL) return;
    if (doomed->count == doomed->capacity) {
        const size_t capacity = doomed->capacity * 2 + 64;
        char(*const larger)[MSG_NAME_MAX + 1] = reallocarray(doomed->names, capacity, sizeof *larger);
        doomed->failed = doomed->failed || larger == NULL;
        if (larger == NULL) return;
        doomed->names = larger;
        doomed->capacity = capacity;
    }
    memcpy(doomed->names[doomed->count++], name, strlen(name) + 1);
}

// The names that the restore deletes, before it changes anything.
static struct doomed find_doomed(struct job *job, struct txn *txn) {
    struct doomed doomed = {.snapshot = &job->snapshot};
    const char *const delete_missing = job_parameter(job, "delete_missing"), *const prefix =
                                                                                 job_parameter(job, "prefix");
    if (delete_missing != NULL && strcmp(delete_missing, "true") == 0) {
        txn_names(txn, prefix != NULL ? prefix : "", doom, &doomed);
    }
    return doomed;
}

// Takes over the states. Where it fails midway, the writer takes the whole batch back.
static bool restore_all(struct job *job, struct txn *txn, struct layer_state *const *states,
                        const struct doomed *doomed) {
    const struct msg_snapshot *const snapshot = &job->snapshot;
    bool ok = true;
    for (size_t i = 0; i < snapshot->count; i++) {
        job->versions[i] = states[i]->version;
        if (ok) {
            ok = txn_put(txn, snapshot->entries[i].name, states[i]);
        } else {
            layer_state_release(states[i]);
        }
    }
    for (size_t i = 0; i < doomed->count && ok; i++) ok = txn_delete(txn, doomed->names[i]);
    return ok;
}

static bool apply_restore(struct change *change, struct txn *txn) {
    struct job *const job = job_of_change(change);
    struct layer_state **const states = build(job, txn, &change->error);
    if (states == NULL) return false;
    struct doomed doomed = find_doomed(job, txn);
    const bool ok = !doomed.failed && restore_all(job, txn, states, &doomed);
    for (size_t i = 0; doomed.failed && i < job->snapshot.count; i++) layer_state_release(states[i]);
    free(doomed.names);
    free(states);
    return ok || reply_no_memory(change);
}

static void finish_restore(struct job *job) {
    struct buffer *const out = &job->reply.body;
    bool ok = json_begin_restored(out);
    for (size_t i = 0; i < job->snapshot.count && ok; i++) {
        ok = json_restored_layer(out, job->snapshot.entries[i].name, job->versions[i], i);
    }
    ok = ok && json_begin_ignored(out);
    for (size_t i = 0; i < job->snapshot.ignored && ok; i++) {
        ok = json_ignored_name(out, msg_snapshot_ignored(&job->snapshot, i), i);
    }
    cache_drop_stale(job->service->cache);
    reply_with(job, 200, ok && json_end_restored(out));
    msg_snapshot_free(&job->snapshot);
}

// Tensors, but no layer among them: not what its sender takes it for. With delete_missing it would delete all there is.
static bool has_layers(struct job *job) {
    const struct msg_snapshot *const snapshot = &job->snapshot;
    return snapshot->count > 0 || snapshot->ignored == 0 ||
           msg_fail(&job->error, MSG_MISSING_FIELD, NULL,
                    "none of the %zu tensors is of a batch normalization layer, which has NAME.running_mean and "
                    "NAME.running_var",
                    snapshot->ignored);
}

enum job_result ops_put_snapshot(struct job *job) {
    const char *const missing = job_parameter(job, "delete_missing");
    struct msg_snapshot *const snapshot = &job->snapshot;
    if (missing != NULL && strcmp(missing, "true") != 0 && strcmp(missing, "false") != 0) {
        msg_fail(&job->error, MSG_BAD_PARAMETER, NULL, "delete_missing is true or false");
        return JOB_REPLY;
    }
    if (missing == NULL && job_parameter(job, "prefix") != NULL) {
        msg_fail(&job->error, MSG_BAD_PARAMETER, NULL,
                 "prefix chooses what delete_missing deletes, not what is restored; it needs delete_missing");
        return JOB_REPLY;
    }
    const struct codec_request request = reply_request(job);
    if (!reply_reader(job)->decode_snapshot(snapshot, &request, &job->error) || !has_layers(job)) return JOB_REPLY;
    job->versions = calloc(snapshot->count + 1, sizeof *job->versions);
    size_t room = snapshot->count * (MSG_NAME_MAX + 24) + JSON_REPLY_ROOM;
    for (size_t i = 0; i < snapshot->ignored; i++) room += json_ignored_room(msg_snapshot_ignored(snapshot, i));
    if (job->versions == NULL || !buffer_reserve(&job->reply.body, room)) return reply_failed(job);
    return reply_after_commit(job, apply_restore, finish_restore);
}
