// SPDX-License-Identifier: Apache-2.0
//
// The state of one layer: read, replace, patch.
#include "ops.h"
#include "reply.h"
#include "restore.h"
#include "stream.h"
#include "../proto/codec.h"

enum job_result ops_get_state(struct job *job) {
    if (reply_is_known(job, job->state)) return stream_unchanged(job, job->state);
    return stream_reserve(job, &job->state->config) ? stream_state(job, job->state) : JOB_REPLY;
}

static void finish_state(struct job *job) {
    reply_etag(job, job->outcome);
    msg_state_free(&job->new_state); // its body may be as large as the reply, and is of no use while that is sent
    stream_state(job, job->outcome);
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
    const struct codec_request request = reply_request(job);
    if (!reply_reader(job)->decode_state(&job->new_state, job->name, &request, &job->error)) return JOB_REPLY;
    if (!stream_reserve(job, &job->state->config)) return JOB_REPLY;
    return reply_after_commit(job, apply_change, finish_state);
}

enum job_result ops_put_state(struct job *job) {
    return change_state(job, apply_put);
}

enum job_result ops_patch_state(struct job *job) {
    return change_state(job, apply_patch);
}
