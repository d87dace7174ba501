// SPDX-License-Identifier: Apache-2.0
//
// train-forward and inference.
#include <string.h>
#include <uv.h>

#include "batch.h"
#include "ops.h"
#include "reply.h"
#include "times.h"
#include "../proto/codec.h"

static bool is_finite(const double *values, size_t n) {
    return bn_first_nonfinite(values, n, BN_F64) == n;
}

// x and residual.
static bool check_tensors(struct job *job) {
    const struct tensor *const x = &job->call.x, *const residual = &job->call.residual;
    if (!batch_set_shape(job, x)) return false;
    if (residual->present && !batch_check_shape(job, "residual", residual, x)) return false;
    return batch_check_finite(job, "x", x) && batch_check_finite(job, "residual", residual);
}

// ---- train-forward

enum fold {
    FOLD,      // the batch is folded into the running statistics
    FOLD_NOT,  // the layer does not track, or there is nothing to fold
    FOLD_SKIP, // the layer's policy leaves this batch out
};

static enum fold fold_of(const struct batch *batch, const struct msg_config *config) {
    if (!config->track_running_stats || batch->count == 0) return FOLD_NOT;
    if (batch->count == 1) return FOLD_SKIP;
    return batch->nonfinite && config->nonfinite == MSG_SKIP_UPDATE ? FOLD_SKIP : FOLD;
}

// y of the job's x with the batch's statistics and the gamma, beta and eps of `state`.
static bool normalize(struct job *job, const struct layer_state *state, struct msg_error *error) {
    struct batch *const batch = &job->batch;
    const double *gamma = state->gamma, *beta = state->beta;
    batch->first_batch = layer_awaits_first_batch(state) && fold_of(batch, &state->config) == FOLD;
    if (batch->first_batch) {
        const struct bn_stats stats = batch_stats(batch);
        layer_first_affine(batch_vector(batch, BATCH_GAMMA), batch_vector(batch, BATCH_BETA), &state->config, &stats);
        gamma = batch_vector(batch, BATCH_GAMMA);
        beta = batch_vector(batch, BATCH_BETA);
    }
    batch->normalizer = state->normalizer;
    const struct bn_post post = batch_post(&job->call);
    if (batch->count == 1) {
        batch_fill_beta(&batch->y, beta, &post);
        return batch_check_result(&state->config, batch, "x", &batch->y, error);
    }
    const struct bn_norm norm = batch_norm(batch, state->config.eps, gamma, beta);
    const struct tensor *const x = &job->call.x;
    return reply_kernel_ok(error, bn_normalize(batch->y.values.data, x->values.data, x->dtype, batch->shape, &norm,
                                               &post, job->service->pool)) &&
           batch_check_result(&state->config, batch, "x", &batch->y, error);
}

// The batch's statistics, and y by the state that the job found: in one go, unless y is not of the layer's gamma and
// beta as they are.
static bool compute_train(struct job *job) {
    const struct layer_state *const state = job->state;
    struct batch *const batch = &job->batch;
    const bool first_batch = layer_awaits_first_batch(state) && fold_of(batch, &state->config) == FOLD;
    if (first_batch || batch->count == 1) {
        return batch_statistics(job, &job->call.x) && normalize(job, state, &job->error);
    }
    batch->normalizer = state->normalizer;
    return batch_train_forward(job, &batch->y);
}

// True where y was made with another gamma, beta or eps than those of `state`.
static bool is_stale(const struct batch *batch, const struct layer_state *state) {
    const bool first_batch = layer_awaits_first_batch(state) && fold_of(batch, &state->config) == FOLD;
    return batch->renormalized || batch->normalizer != state->normalizer || batch->first_batch != first_batch;
}

// What y was made with, of `state`.
static void fill_pass(struct job *job, const struct layer_state *state) {
    struct pass *const pass = job->pass;
    const struct batch *const batch = &job->batch;
    const double *const gamma = batch->first_batch ? batch_vector(batch, BATCH_GAMMA) : state->gamma;
    const double *const beta = batch->first_batch ? batch_vector(batch, BATCH_BETA) : state->beta;
    const size_t bytes = batch->shape.channels * sizeof(double);
    if (pass->layer == NULL) {
        layer_ref(job->layer);
        pass->layer = job->layer;
    }
    pass->layer_id = state->id;
    pass->eps = state->config.eps;
    pass->affine = gamma != NULL;
    pass->shape = batch->shape;
    pass->channel_axis = batch->channel_axis;
    pass->activation = (enum bn_activation)job->call.activation;
    if (gamma != NULL) memcpy(pass_vector(pass, PASS_GAMMA), gamma, bytes);
    if (beta != NULL) memcpy(pass_vector(pass, PASS_BETA), beta, bytes);
    if (batch->count == 0) return;
    memcpy(pass_vector(pass, PASS_MEAN), batch_vector(batch, BATCH_MEAN), bytes);
    memcpy(pass_vector(pass, PASS_MEAN_LO), batch_vector(batch, BATCH_MEAN_LO), bytes);
    memcpy(pass_vector(pass, PASS_VAR), batch_vector(batch, BATCH_VAR), bytes);
}

// Under a policy that was another one when the call was decoded.
static bool refuse_nonfinite(const struct job *job, struct msg_error *error) {
    const struct tensor *const x = &job->call.x, *const residual = &job->call.residual;
    const bool is_residual = residual->first_nonfinite < residual->count && x->first_nonfinite >= x->count;
    return msg_fail(error, MSG_NON_FINITE, is_residual ? "/residual" : "/x",
                    "%s has a value that is not finite, which the layer rejects", is_residual ? "residual" : "x");
}

static bool apply_train(struct change *change, struct txn *txn) {
    struct job *const job = job_of_change(change);
    struct batch *const batch = &job->batch;
    const struct layer_state *const state = reply_current(job, txn, true);
    if (state == NULL) return false;
    if (batch->nonfinite && state->config.nonfinite == MSG_REJECT) return refuse_nonfinite(job, &change->error);
    if (is_stale(batch, state)) {
        batch->renormalized = true;
        if (!normalize(job, state, &change->error)) return false;
    }
    if (job->pass != NULL) fill_pass(job, state);
    batch->updated = fold_of(batch, &state->config) == FOLD;
    batch->version = state->version;
    batch->num_batches_tracked = state->num_batches_tracked;
    if (!batch->updated) return true;
    struct layer_state *const next = reply_edit(job, txn);
    if (next == NULL) return false;
    const struct bn_stats stats = batch_stats(batch);
    layer_fold(next, &stats);
    batch->version = next->version;
    batch->num_batches_tracked = next->num_batches_tracked;
    etag_format(job->reply.etag, next);
    return true;
}

static void finish_train(struct job *job) {
    struct batch *const batch = &job->batch;
    const bool empty = batch->count == 0;
    const struct msg_train_reply reply = {
        .batch_mean = empty ? NULL : batch_vector(batch, BATCH_MEAN),
        .batch_var = empty ? NULL : batch_vector(batch, BATCH_VAR),
        .channels = batch->shape.channels,
        .count = batch->count,
        .tracks = batch->tracks,
        .num_batches_tracked = batch->num_batches_tracked,
        .updated = batch->updated,
        .version = batch->version,
        .cache = job->pass != NULL ? job->pass->id : NULL,
    };
    times_mark(job, JOB_ENCODING);
    const bool encoded = reply_writer(job)->encode_train(&job->reply.body, &job->reply.extra, &reply, &batch->y);
    if (job->pass != NULL) {
        tensor_move(&job->pass->x, &job->call.x);
        tensor_move(&job->pass->residual, &job->call.residual);
        buffer_move(&job->pass->body, &job->call.body);
        if (job->pass->activation == BN_IDENTITY) buffer_free(&job->pass->residual.values);
        cache_insert(job->service->cache, job->pass, uv_hrtime());
        job->kept = true;
    }
    job_count(job, &job->layer->train_forward);
    if (!batch->updated && fold_of(batch, &job->state->config) == FOLD_SKIP) job_count(job, &job->layer->skipped);
    reply_with(job, 200, encoded);
}

// Everything that could run short is had before the change is made, so that nothing fails after the commit.
static bool prepare_train(struct job *job) {
    struct batch *const batch = &job->batch;
    const struct tensor *const x = &job->call.x;
    const size_t channels = batch->shape.channels;
    batch->y = tensor_like(x, batch->y.values);
    const struct codec *const writer = reply_writer(job);
    if (!batch_allocate(batch, &job->error)) return false;
    if (!buffer_reserve(&batch->y.values, codec_values_room(writer, x))) return false;
    if (!buffer_reserve(&job->reply.body, writer->room(&job->reply.extra, x, 1, channels))) return false;
    if (!job->call.keep) return true;
    const size_t residual = job->call.activation != BN_IDENTITY ? job->call.residual.values.capacity : 0;
    const size_t bytes =
        x->values.capacity + residual + job->call.body.capacity + channels * PASS_VECTORS * sizeof(double);
    if (!cache_fits(job->service->cache, bytes)) {
        return msg_fail(&job->error, MSG_OUT_OF_RANGE, "/cache",
                        "a pass of %zu bytes is larger than the cache budget; send x to backward", bytes);
    }
    job->pass = pass_new(channels, job->service->memory);
    return job->pass != NULL;
}

enum job_result ops_train_forward(struct job *job) {
    return batch_decode(job, MSG_TRAIN_FORWARD) ? ops_run_train_forward(job) : JOB_REPLY;
}

enum job_result ops_run_train_forward(struct job *job) {
    const struct layer_state *const state = job->state;
    struct batch *const batch = &job->batch;
    if (!check_tensors(job)) return JOB_REPLY;
    if (batch_refuses_single(batch, &state->config)) {
        msg_fail(&job->error, MSG_SINGLE_VALUE, "/x", "x has one value per channel, which the layer rejects");
        return JOB_REPLY;
    }
    if (!prepare_train(job)) return reply_failed(job);
    if (batch->count > 0 && !compute_train(job)) return JOB_REPLY;
    // A finite batch whose statistics overflow is as bad for the state as one that is not finite.
    if (batch->count > 0 && !is_finite(batch_vector(batch, BATCH_VAR), batch->shape.channels)) batch->nonfinite = true;
    if (fold_of(batch, &state->config) == FOLD) return reply_after_commit(job, apply_train, finish_train);
    batch->version = state->version;
    batch->num_batches_tracked = state->num_batches_tracked;
    if (job->pass != NULL) fill_pass(job, state);
    finish_train(job);
    return JOB_REPLY;
}

// ---- inference

// y in the place of x, with the running statistics or the batch's own.
static bool infer(struct job *job, bool own) {
    const struct layer_state *const state = job->state;
    struct batch *const batch = &job->batch;
    struct tensor *const x = &job->call.x;
    const struct bn_post post = batch_post(&job->call);
    if (own && batch->count == 1) {
        batch_fill_beta(x, state->beta, &post);
        return batch_check_result(&state->config, batch, "x", x, &job->error);
    }
    if (own) return batch_allocate(batch, &job->error) && batch_train_forward(job, x);
    const struct bn_norm norm = batch_running_norm(state, state->gamma, state->beta);
    void *const values = x->values.data;
    return reply_kernel_ok(&job->error,
                           bn_normalize(values, values, x->dtype, batch->shape, &norm, &post, job->service->pool)) &&
           batch_check_result(&state->config, batch, "x", x, &job->error);
}

enum job_result ops_inference(struct job *job) {
    return batch_decode(job, MSG_INFERENCE) ? ops_run_inference(job) : JOB_REPLY;
}

enum job_result ops_run_inference(struct job *job) {
    const struct layer_state *const state = job->state;
    struct batch *const batch = &job->batch;
    struct tensor *const x = &job->call.x;
    if (!check_tensors(job)) return JOB_REPLY;
    const bool own = !batch->tracks;
    if (own && batch_refuses_single(batch, &state->config)) {
        msg_fail(&job->error, MSG_SINGLE_VALUE, "/x", "x has one value per channel, which the layer rejects");
        return JOB_REPLY;
    }
    if (batch->count > 0 && !infer(job, own)) return JOB_REPLY;
    job_count(job, &job->layer->inference);
    const struct codec *const writer = reply_writer(job);
    times_mark(job, JOB_ENCODING);
    return reply_with(job, 200,
                      buffer_reserve(&job->reply.body, writer->room(&job->reply.extra, x, 1, 0)) &&
                          writer->encode_inference(&job->reply.body, &job->reply.extra, x, state->version));
}
