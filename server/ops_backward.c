// SPDX-License-Identifier: Apache-2.0
#include <string.h>
#include <uv.h>

#include "batch.h"
#include "ops.h"
#include "reply.h"
#include "../proto/json.h"

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

static const double *gamma_of(const struct job *job) {
    if (job->pass == NULL) return job->state->gamma;
    return job->pass->affine ? pass_vector(job->pass, PASS_GAMMA) : NULL;
}

static const double *beta_of(const struct job *job) {
    if (job->pass == NULL) return job->state->beta;
    return job->pass->affine ? pass_vector(job->pass, PASS_BETA) : NULL;
}

// What takes dresidual: the residual of the call, which is of no use after, or room beside that of a pass.
static struct buffer *dresidual_of(struct job *job) {
    return job->pass != NULL ? &job->batch.y.values : &job->call.residual.values;
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

// How the forward call normalized x: with its statistics, which the pass has or which are taken here, or, in mode
// inference, the running ones of now. For a batch that is not empty.
static bool find_norm(struct job *job, struct bn_norm *norm) {
    const double *const gamma = gamma_of(job), *const beta = beta_of(job);
    if (job->call.mode == MSG_MODE_INFERENCE) {
        *norm = batch_running_norm(job->state, gamma, beta);
        return true;
    }
    if (job->pass == NULL) {
        *norm = batch_norm(&job->batch, job->state->config.eps, gamma, beta);
        return batch_statistics(job, &job->call.x);
    }
    *norm = (struct bn_norm){.mean = pass_vector(job->pass, PASS_MEAN),
                             .mean_lo = pass_vector(job->pass, PASS_MEAN_LO),
                             .var = pass_vector(job->pass, PASS_VAR),
                             .gamma = gamma,
                             .beta = beta,
                             .eps = job->pass->eps};
    return true;
}

// dx in the place of dout, dgamma and dbeta in the batch's vectors. dresidual cannot overflow: its values are of dout,
// or 0.
static bool compute(struct job *job) {
    struct batch *const batch = &job->batch;
    const struct tensor *const x = input_of(job);
    struct tensor *const dout = &job->call.dout;
    double *const dgamma = batch_vector(batch, BATCH_GAMMA), *const dbeta = batch_vector(batch, BATCH_BETA);
    const bool own = job->call.mode == MSG_MODE_TRAIN;
    struct bn_norm norm;
    if (batch->count == 0) {
        memset(dgamma, 0, 2 * batch->shape.channels * sizeof *dgamma);
        return true;
    }
    if (!find_norm(job, &norm)) return false;
    const struct bn_post post = post_of(job);
    const struct bn_gradients gradients = {.dx = dout->values.data,
                                           .dresidual = residual_of(job)->present ? dresidual_of(job)->data : NULL,
                                           .dgamma = dgamma,
                                           .dbeta = dbeta};
    const enum bn_status status = (own ? bn_backward : bn_backward_frozen)(
        &gradients, dout->values.data, x->values.data, x->dtype, batch->shape, &norm, &post, job->service->pool);
    const struct msg_config *const config = &job->state->config;
    // A finite call whose gradients overflow is as bad for gamma and beta as one that is not finite.
    const size_t channels = batch->shape.channels;
    const bool overflows = bn_first_nonfinite(dgamma, channels, BN_F64) < channels ||
                           bn_first_nonfinite(dbeta, channels, BN_F64) < channels;
    if (config->nonfinite == MSG_SKIP_UPDATE && overflows) batch->nonfinite = true;
    return reply_kernel_ok(&job->error, status) && batch_check_result(config, batch, "dout", dout, &job->error) &&
           batch_check_vector(config, batch, "dgamma", dgamma, &job->error) &&
           batch_check_vector(config, batch, "dbeta", dbeta, &job->error);
}

static bool apply_step(struct change *change, struct txn *txn) {
    struct job *const job = job_of_change(change);
    struct batch *const batch = &job->batch;
    const double *const dgamma = batch_vector(batch, BATCH_GAMMA), *const dbeta = batch_vector(batch, BATCH_BETA);
    const double lr = job->call.lr, weight_decay = job->call.weight_decay;
    const struct layer_state *const state = reply_current(job, txn, true);
    if (state == NULL) return false;
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
    const struct tensor *const dx = &job->call.dout;
    const struct tensor dresidual = tensor_like(dx, *dresidual_of(job));
    atomic_fetch_add(&job->layer->backward, 1);
    reply_with(job, 200,
               json_encode_backward(&job->reply.body, &reply, dx, residual_of(job)->present ? &dresidual : NULL));
}

static bool prepare(struct job *job) {
    struct batch *const batch = &job->batch;
    const struct tensor *const dout = &job->call.dout;
    const bool has_residual = residual_of(job)->present;
    const size_t tensors = has_residual ? 2 : 1;
    const size_t room =
        tensors * json_tensor_room(dout) + 2 * json_vector_room(batch->shape.channels) + JSON_REPLY_ROOM;
    if (!batch_allocate(batch, &job->error) || !buffer_reserve(&job->reply.body, room)) return false;
    if (!has_residual || job->pass == NULL) return true;
    return buffer_reserve(dresidual_of(job), dout->count * bn_dtype_size(dout->dtype) + 1);
}

enum job_result ops_backward(struct job *job) {
    struct batch *const batch = &job->batch;
    const struct msg_config *const config = &job->state->config;
    if (!json_decode_call(&job->call, JSON_BACKWARD, reply_request_body(job), (enum bn_dtype)config->dtype,
                          &job->error))
        return JOB_REPLY;
    if (!check_backward(job)) return JOB_REPLY;
    if (!prepare(job)) return reply_failed(job);
    if (!compute(job)) return JOB_REPLY;
    batch->version = job->state->version;
    const bool skip = batch->nonfinite && config->nonfinite == MSG_SKIP_UPDATE;
    if (job->call.has_step && batch->count > 0 && !skip) return reply_after_commit(job, apply_step, finish_backward);
    if (job->call.has_step && skip) atomic_fetch_add(&job->layer->skipped, 1);
    finish_backward(job);
    return JOB_REPLY;
}
