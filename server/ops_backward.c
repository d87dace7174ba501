// SPDX-License-Identifier: Apache-2.0
#include <stdio.h>
#include <string.h>
#include <uv.h>

#include "batch.h"
#include "ops.h"
#include "reply.h"
#include "times.h"
#include "../proto/codec.h"

// The x that a backward is of, from the body or from the pass.
static const struct tensor *input_of(const struct job *job) {
    return job->pass != NULL ? &job->pass->x : &job->call.x;
}

static const struct tensor *residual_of(const struct job *job) {
    return job->pass != NULL ? &job->pass->residual : &job->call.residual;
}

static struct bn_post post_of(const struct job *job) {
    if (job->pass == NULL) return batch_post(&job->call);
    return (struct bn_post){job->pass->activation, job->pass->residual.values.data};
}

static const double *gamma_of(const struct job *job, const struct layer_state *state) {
    if (job->pass == NULL) return state->gamma;
    return job->pass->affine ? pass_vector(job->pass, PASS_GAMMA) : NULL;
}

static const double *beta_of(const struct job *job, const struct layer_state *state) {
    if (job->pass == NULL) return state->beta;
    return job->pass->affine ? pass_vector(job->pass, PASS_BETA) : NULL;
}

// Bytes that dx, and dresidual, need to be computed and sent in one place.
static size_t gradient_room(const struct job *job) {
    return codec_values_room(reply_writer(job), &job->call.dout);
}

// What takes dx: dout, which is of no use after, unless a step may need it again.
static struct buffer *dx_of(struct job *job) {
    return job->call.has_step ? &job->batch.y.values : &job->call.dout.values;
}

// What takes dresidual: the residual of the call, unless a step may need it again, or room beside it where it is that
// of a pass, or narrower than what is sent.
static struct buffer *dresidual_of(struct job *job) {
    struct buffer *const residual = &job->call.residual.values;
    const bool is_free = job->pass == NULL && !job->call.has_step;
    return is_free && buffer_room(residual) + 1 >= gradient_room(job) ? residual : &job->batch.dresidual;
}

static bool find_pass(struct job *job) {
    if (job->call.cache[0] == '\0') return true;
    job->pass = cache_find(job->service->cache, job->call.cache, job->state->id, uv_hrtime());
    if (job->pass == NULL) {
        return msg_fail(
            &job->error, MSG_CACHE_GONE, "/cache",
            "the pass is gone (expired, evicted, of another layer, or made before a restart); send x instead");
    }
    struct batch *const batch = &job->batch;
    const int64_t axis = job->call.channel_axis;
    const int rank = job->pass->x.rank;
    batch->shape = job->pass->shape;
    batch->channel_axis = job->pass->channel_axis;
    batch->count = batch->shape.outer * batch->shape.inner;
    batch->tracks = job->state->config.track_running_stats;
    if (job->call.has_channel_axis && rank > 0 && (axis < 0 ? axis + rank : axis) != batch->channel_axis) {
        return msg_fail(&job->error, MSG_CONFLICTING_FIELDS, "/channel_axis", "the cached pass has channel axis %d",
                        batch->channel_axis);
    }
    return true;
}

static bool check_backward(struct job *job) {
    const struct msg_config *const config = &job->state->config;
    const bool own = job->call.mode == MSG_MODE_TRAIN;
    if (!own && !config->track_running_stats) {
        return msg_fail(&job->error, MSG_NOT_SUPPORTED_BY_LAYER, "/mode", "the layer has no running statistics");
    }
    if (job->call.has_step && !config->affine) {
        return msg_fail(&job->error, MSG_NOT_SUPPORTED_BY_LAYER, "/step", "the layer has no gamma and beta to step");
    }
    if (!find_pass(job) || (job->pass == NULL && !batch_set_shape(job, &job->call.x))) return false;
    if (!batch_check_shape(job, "dout", &job->call.dout, input_of(job))) return false;
    if (job->call.residual.present && !batch_check_shape(job, "residual", &job->call.residual, &job->call.x))
        return false;
    if (own && job->pass == NULL && batch_refuses_single(&job->batch, config)) {
        return msg_fail(&job->error, MSG_SINGLE_VALUE, "/x", "x has one value per channel, which the layer rejects");
    }
    return batch_check_finite(job, "dout", &job->call.dout) && batch_check_finite(job, "x", input_of(job)) &&
           batch_check_finite(job, "residual", residual_of(job));
}

// What the forward call normalized with: its statistics, which the pass has or which are taken here, unless that was
// done before, or, in mode inference, the running ones. For a batch that is not empty.
static bool find_norm(struct job *job, const struct layer_state *state, bool again, struct bn_norm *norm,
                      struct msg_error *error) {
    const double *const gamma = gamma_of(job, state), *const beta = beta_of(job, state);
    if (job->call.mode == MSG_MODE_INFERENCE) {
        *norm = batch_running_norm(state, gamma, beta);
        return true;
    }
    if (job->pass == NULL) {
        *norm = batch_norm(&job->batch, state->config.eps, gamma, beta);
        if (!again) return batch_statistics(job, &job->call.x);
        return batch_check_vector(&state->config, &job->batch, "batch_var", norm->var, error);
    }
    *norm = (struct bn_norm){.mean = pass_vector(job->pass, PASS_MEAN),
                             .mean_lo = pass_vector(job->pass, PASS_MEAN_LO),
                             .var = pass_vector(job->pass, PASS_VAR),
                             .gamma = gamma,
                             .beta = beta,
                             .eps = job->pass->eps};
    return true;
}

static bool is_finite(const struct tensor *tensor) {
    return tensor->first_nonfinite >= tensor->count;
}

static bool is_finite_vector(const double *values, size_t n) {
    return bn_first_nonfinite(values, n, BN_F64) == n;
}

// dx, dgamma and dbeta by `state`, into dx_of and the batch's vectors. dresidual cannot overflow: its values are of
// dout, or 0. `again`: it was done before, by another state.
static bool compute(struct job *job, const struct layer_state *state, bool again, struct msg_error *error) {
    struct batch *const batch = &job->batch;
    const struct tensor *const x = input_of(job), *const dout = &job->call.dout;
    const struct msg_config *const config = &state->config;
    double *const dgamma = batch_vector(batch, BATCH_GAMMA), *const dbeta = batch_vector(batch, BATCH_BETA);
    const size_t channels = batch->shape.channels;
    const bool own = job->call.mode == MSG_MODE_TRAIN;
    struct bn_norm norm;
    batch->normalizer = state->normalizer;
    batch->computed = state->version;
    batch->nonfinite = !is_finite(dout) || !is_finite(x) || !is_finite(residual_of(job));
    if (batch->count == 0) {
        memset(dgamma, 0, 2 * channels * sizeof *dgamma);
        return true;
    }
    if (!find_norm(job, state, again, &norm, error)) return false;
    const struct bn_post post = post_of(job);
    const struct bn_gradients gradients = {.dx = dx_of(job)->data,
                                           .dresidual = residual_of(job)->present ? dresidual_of(job)->data : NULL,
                                           .dgamma = dgamma,
                                           .dbeta = dbeta};
    const enum bn_status status = (own ? bn_backward : bn_backward_frozen)(
        &gradients, dout->values.data, x->values.data, x->dtype, batch->shape, &norm, &post, job->service->pool);
    // A finite call whose gradients overflow is as bad for gamma and beta as one that is not finite.
    const bool overflows = !is_finite_vector(dgamma, channels) || !is_finite_vector(dbeta, channels);
    if (config->nonfinite == MSG_SKIP_UPDATE && overflows) batch->nonfinite = true;
    const struct tensor dx = tensor_like(dout, *dx_of(job));
    return reply_kernel_ok(error, status) && batch_check_result(config, batch, "dout", &dx, error) &&
           batch_check_vector(config, batch, "dgamma", dgamma, error) &&
           batch_check_vector(config, batch, "dbeta", dbeta, error);
}

// ---- the step

static bool skips(const struct batch *batch, const struct msg_config *config) {
    return batch->count == 0 || (batch->nonfinite && config->nonfinite == MSG_SKIP_UPDATE);
}

// True where the gradients, or what is refused of them, would be others by `state` than by that which they were made
// with.
static bool is_stale(const struct job *job, const struct layer_state *state) {
    const struct batch *const batch = &job->batch;
    const bool same_version = !batch->renormalized && batch->computed == state->version;
    if (same_version) return false;
    return batch->renormalized || job->call.mode == MSG_MODE_INFERENCE ||
           (job->pass == NULL && batch->normalizer != state->normalizer) ||
           job->state->config.nonfinite != state->config.nonfinite;
}

// Under policies that were others when the call was decoded.
static bool check_policies(const struct job *job, const struct msg_config *config, struct msg_error *error) {
    if (job->call.mode == MSG_MODE_TRAIN && job->pass == NULL && batch_refuses_single(&job->batch, config))
        return msg_fail(error, MSG_SINGLE_VALUE, "/x", "x has one value per channel, which the layer rejects");
    const struct tensor *const x = input_of(job);
    const char *const field = !is_finite(&job->call.dout) ? "dout" : !is_finite(x) ? "x" : "residual";
    if (config->nonfinite != MSG_REJECT || (is_finite(&job->call.dout) && is_finite(x) && is_finite(residual_of(job))))
        return true;
    char pointer[16];
    snprintf(pointer, sizeof pointer, "/%s", field);
    return msg_fail(error, MSG_NON_FINITE, pointer, "%s has a value that is not finite, which the layer rejects",
                    field);
}

static bool apply_step(struct change *change, struct txn *txn) {
    struct job *const job = job_of_change(change);
    struct batch *const batch = &job->batch;
    const double *const dgamma = batch_vector(batch, BATCH_GAMMA), *const dbeta = batch_vector(batch, BATCH_BETA);
    const double lr = job->call.lr, weight_decay = job->call.weight_decay;
    const struct layer_state *const state = reply_current(job, txn, true);
    if (state == NULL || !check_policies(job, &state->config, &change->error)) return false;
    if (is_stale(job, state)) {
        batch->renormalized = true;
        if (!compute(job, state, true, &change->error)) return false;
    }
    batch->version = state->version;
    batch->updated = !skips(batch, &state->config);
    job->reply.etag[0] = '\0';
    if (!batch->updated) return true;
    if (state->config.nonfinite != MSG_PROPAGATE && !layer_step_is_finite(state, dgamma, dbeta, lr, weight_decay)) {
        return msg_fail(&change->error, MSG_OVERFLOW, "/step",
                        "the step makes gamma or beta overflow; nothing was changed");
    }
    struct layer_state *const next = reply_edit(job, txn);
    if (next == NULL) return false;
    layer_step(next, dgamma, dbeta, lr, weight_decay);
    batch->version = next->version;
    etag_format(job->reply.etag, next);
    return true;
}

static void finish_backward(struct job *job) {
    struct batch *const batch = &job->batch;
    const bool affine = job->state->config.affine;
    const struct msg_backward_reply reply = {
        .dgamma = affine ? batch_vector(batch, BATCH_GAMMA) : NULL,
        .dbeta = affine ? batch_vector(batch, BATCH_BETA) : NULL,
        .channels = batch->shape.channels,
        .version = batch->version,
    };
    struct tensor dx = tensor_like(&job->call.dout, *dx_of(job));
    struct tensor dresidual = tensor_like(&dx, *dresidual_of(job));
    job_count(job, &job->layer->backward);
    times_mark(job, JOB_ENCODING);
    if (job->call.has_step && batch->count > 0 && !batch->updated) job_count(job, &job->layer->skipped);
    reply_with(job, 200,
               reply_writer(job)->encode_backward(&job->reply.body, &job->reply.extra, &reply, &dx,
                                                  residual_of(job)->present ? &dresidual : NULL));
}

static bool prepare(struct job *job) {
    struct batch *const batch = &job->batch;
    const struct tensor *const dout = &job->call.dout;
    const bool has_residual = residual_of(job)->present;
    const size_t room = reply_writer(job)->room(&job->reply.extra, dout, has_residual ? 2 : 1, batch->shape.channels);
    if (!batch_allocate(batch, &job->error) || !buffer_reserve(&job->reply.body, room)) return false;
    if (job->call.has_step && !buffer_reserve(dx_of(job), gradient_room(job))) return false;
    struct buffer *const dresidual = &batch->dresidual;
    return !has_residual || dresidual_of(job) != dresidual || buffer_reserve(dresidual, gradient_room(job));
}

enum job_result ops_backward(struct job *job) {
    return batch_decode(job, MSG_BACKWARD) ? ops_run_backward(job) : JOB_REPLY;
}

enum job_result ops_run_backward(struct job *job) {
    struct batch *const batch = &job->batch;
    const struct msg_config *const config = &job->state->config;
    if (!check_backward(job)) return JOB_REPLY;
    if (!prepare(job)) return reply_failed(job);
    if (!compute(job, job->state, false, &job->error)) return JOB_REPLY;
    batch->version = job->state->version;
    if (job->call.has_step && !skips(batch, config)) return reply_after_commit(job, apply_step, finish_backward);
    finish_backward(job);
    return JOB_REPLY;
}
