// SPDX-License-Identifier: Apache-2.0
//
// The state of one layer: read, replace, patch.
#include <string.h>

#include "ops.h"
#include "reply.h"
#include "restore.h"
#include "../proto/json.h"

static bool encode_state(struct job *job, const struct layer_state *state) {
    const struct msg_state_view view = layer_view(state);
    const size_t vectors = (state->gamma != NULL ? 2u : 0u) + (state->running_mean != NULL ? 2u : 0u);
    const size_t room = vectors * json_vector_room(view.channels) + JSON_REPLY_ROOM;
    return buffer_reserve(&job->reply.body, room) && json_encode_state(&job->reply.body, &view);
}

enum job_result ops_get_state(struct job *job) {
    const int status = reply_is_known(job, job->state) ? 304 : 200;
    return reply_with(job, status, encode_state(job, job->state));
}

static void finish_state(struct job *job) {
    reply_etag(job, job->outcome);
    reply_with(job, 200, encode_state(job, job->outcome));
}

static bool apply(struct change *change, struct txn *txn, bool whole) {
    struct job *const job = job_of_change(change);
    const struct layer_state *const state = reply_current(job, txn, true);
    if (state == NULL) return false;
    if (!restore_check_layer(&job->new_state, &state->config, "", &change->error)) return false;
    if (!restore_check_values(&job->new_state, &state->config, whole, "", &change->error)) return false;
    struct layer_state *const next = reply_edit(job, txn);
    if (next == NULL) return false;
    restore_values(next, &job->new_state);
    layer_state_release(job->outcome);
    job->outcome = layer_state_ref(next);
    return true;
}

static bool apply_put(struct change *change, struct txn *txn) {
    return apply(change, txn, true);
}

static bool apply_patch(struct change *change, struct txn *txn) {
    return apply(change, txn, false);
}

static enum job_result change_state(struct job *job, bool (*apply_change)(struct change *, struct txn *)) {
    if (!json_decode_state(&job->new_state, reply_request_body(job), &job->error)) return JOB_REPLY;
    const size_t room = 4 * json_vector_room((size_t)job->state->config.num_features) + JSON_REPLY_ROOM;
    if (!buffer_reserve(&job->reply.body, room)) return reply_failed(job);
    return reply_after_commit(job, apply_change, finish_state);
}

enum job_result ops_put_state(struct job *job) {
    return change_state(job, apply_put);
}

enum job_result ops_patch_state(struct job *job) {
    return change_state(job, apply_patch);
}
