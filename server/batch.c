// SPDX-License-Identifier: Apache-2.0
#include "batch.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "reply.h"
#include "times.h"
#include "../proto/scan.h"

double *batch_vector(const struct batch *batch, enum batch_vector vector) {
    return (double *)(void *)batch->values.data + (size_t)vector * batch->shape.channels;
}

bool batch_allocate(struct batch *batch, struct msg_error *error) {
    const size_t bytes = batch->shape.channels * BATCH_VECTORS * sizeof(double);
    return buffer_reserve(&batch->values, bytes) ||
           msg_fail(error, MSG_MEMORY_FULL, NULL, "the call does not fit what is left of the memory budget");
}

// A binary tensor has no JSON form that the reply could take over: nested arrays.
static void show_as_numbers(struct msg_call *call) {
    struct tensor *const tensors[] = {&call->x, &call->dout, &call->residual};
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
        tensors[i]->form = TENSOR_NESTED;
        tensors[i]->wire = tensors[i]->dtype == BN_F32 ? WIRE_F32 : WIRE_F64;
        tensors[i]->swapped = false;
    }
}

bool batch_decode(struct job *job, enum msg_call_kind kind) {
    const enum bn_dtype dtype = (enum bn_dtype)job->state->config.dtype;
    const struct codec_request request = reply_request(job);
    const bool ok = reply_reader(job)->decode_call(&job->call, kind, &request, dtype, &job->error);
    ahead_free(&job->ahead);
    if (!ok) return false;
    buffer_free(&job->body);
    if (reply_reader(job)->binary && !reply_writer(job)->binary) show_as_numbers(&job->call);
    times_mark(job, JOB_DECODED);
    return true;
}

// The empty batch [] has any rank, so its axis stays as it was given.
static bool set_empty(struct job *job, int64_t axis) {
    job->batch.shape = (struct bn_shape){0, (size_t)job->state->config.num_features, 1};
    job->batch.channel_axis = (int)axis;
    job->batch.count = 0;
    return true;
}

bool batch_set_shape(struct job *job, const struct tensor *x) {
    const struct msg_config *const config = &job->state->config;
    const int64_t given = job->call.has_channel_axis ? job->call.channel_axis : config->channel_axis;
    struct batch *const batch = &job->batch;
    batch->tracks = config->track_running_stats;
    if (x->rank == 0) return set_empty(job, given);
    const int64_t axis = given < 0 ? given + x->rank : given;
    if (axis < 0 || axis >= x->rank) {
        const char *const pointer = job->call.has_channel_axis ? "/channel_axis" : "/x";
        return msg_fail(&job->error, MSG_SHAPE_MISMATCH, pointer, "x of rank %d has no channel axis %lld", x->rank,
                        (long long)given);
    }
    if (x->dim[axis] != (size_t)config->num_features) {
        return msg_fail(&job->error, MSG_SHAPE_MISMATCH, "/x", "x has %zu channels on axis %lld, the layer has %lld",
                        x->dim[axis], (long long)axis, (long long)config->num_features);
    }
    // An axis of length 0 makes the tensor empty, whatever the products of the others are.
    struct bn_shape shape = {.outer = x->count > 0, .channels = x->dim[axis], .inner = 1};
    for (int i = 0; i < x->rank && x->count > 0; i++) {
        if (i < axis) shape.outer *= x->dim[i];
        if (i > axis) shape.inner *= x->dim[i];
    }
    batch->shape = shape;
    batch->channel_axis = (int)axis;
    batch->count = shape.outer * shape.inner;
    return true;
}

// True where the tensor is empty, and of some rank with the channels that the batch [] has.
static bool is_empty_of(const struct batch *batch, const struct tensor *tensor) {
    const int axis = batch->channel_axis < 0 ? batch->channel_axis + tensor->rank : batch->channel_axis;
    if (tensor->count > 0 || tensor->rank == 0) return tensor->count == 0;
    return axis >= 0 && axis < tensor->rank && tensor->dim[axis] == batch->shape.channels;
}

static bool same_shape(const struct tensor *a, const struct tensor *b) {
    return a->rank == b->rank && memcmp(a->dim, b->dim, (size_t)a->rank * sizeof a->dim[0]) == 0;
}

bool batch_check_shape(struct job *job, const char *field, const struct tensor *tensor, const struct tensor *x) {
    const bool empty = x->count == 0 && tensor->rank == 0 && tensor->count == 0;
    if (empty || (x->rank == 0 ? is_empty_of(&job->batch, tensor) : same_shape(tensor, x))) return true;
    char pointer[MSG_POINTER_MAX];
    snprintf(pointer, sizeof pointer, "/%s", field);
    return msg_fail(&job->error, MSG_SHAPE_MISMATCH, pointer, "%s has not the shape of x", field);
}

bool batch_refuses_single(const struct batch *batch, const struct msg_config *config) {
    return batch->count == 1 && config->single_value == MSG_SINGLE_REJECT;
}

bool batch_check_finite(struct job *job, const char *field, const struct tensor *tensor) {
    if (tensor->first_nonfinite >= tensor->count) return true;
    job->batch.nonfinite = true;
    if (job->state->config.nonfinite != MSG_REJECT) return true;
    char pointer[MSG_POINTER_MAX];
    scan_tensor_pointer(pointer, field, tensor, tensor->first_nonfinite);
    return msg_fail(&job->error, MSG_NON_FINITE, pointer, "%s has a value that is not finite, which the layer rejects",
                    field);
}

bool batch_check_result(const struct msg_config *config, const struct batch *batch, const char *field,
                        const struct tensor *result, struct msg_error *error) {
    if (config->nonfinite != MSG_REJECT || batch->nonfinite) return true;
    const size_t bad = tensor_first_overflow(result->values.data, result->dtype, result->wire, result->count);
    if (bad >= result->count) return true;
    char pointer[MSG_POINTER_MAX];
    scan_tensor_pointer(pointer, field, result, bad);
    return msg_fail(error, MSG_OVERFLOW, pointer, "the result for this value is too large for %s",
                    wire_dtypes[result->wire].name);
}

bool batch_check_vector(const struct msg_config *config, const struct batch *batch, const char *name,
                        const double *values, struct msg_error *error) {
    if (config->nonfinite != MSG_REJECT || batch->nonfinite) return true;
    const size_t bad = bn_first_nonfinite(values, batch->shape.channels, BN_F64);
    if (bad >= batch->shape.channels) return true;
    return msg_fail(error, MSG_OVERFLOW, NULL, "%s of channel %zu overflows", name, bad);
}

struct bn_stats batch_stats(const struct batch *batch) {
    return (struct bn_stats){.count = batch->count,
                             .mean = batch_vector(batch, BATCH_MEAN),
                             .mean_lo = batch_vector(batch, BATCH_MEAN_LO),
                             .m2 = batch_vector(batch, BATCH_M2)};
}

static bool set_variance(struct job *job, const struct bn_stats *stats) {
    struct batch *const batch = &job->batch;
    double *const var = batch_vector(batch, BATCH_VAR);
    for (size_t c = 0; c < batch->shape.channels; c++) var[c] = stats->m2[c] / (double)stats->count;
    return batch_check_vector(&job->state->config, batch, "batch_var", var, &job->error);
}

bool batch_statistics(struct job *job, const struct tensor *x) {
    struct bn_stats stats = batch_stats(&job->batch);
    const enum bn_status status = bn_statistics(&stats, x->values.data, x->dtype, job->batch.shape, job->service->pool);
    return reply_kernel_ok(&job->error, status) && set_variance(job, &stats);
}

bool batch_train_forward(struct job *job, struct tensor *y) {
    struct batch *const batch = &job->batch;
    const struct layer_state *const state = job->state;
    const struct tensor *const x = &job->call.x;
    const struct bn_post post = batch_post(&job->call);
    struct bn_stats stats = batch_stats(batch);
    const enum bn_status status =
        bn_train_forward(y->values.data, &stats, x->values.data, x->dtype, batch->shape, state->gamma, state->beta,
                         state->config.eps, &post, job->service->pool);
    return reply_kernel_ok(&job->error, status) && set_variance(job, &stats) &&
           batch_check_result(&state->config, batch, "x", y, &job->error);
}

struct bn_post batch_post(const struct msg_call *call) {
    return (struct bn_post){(enum bn_activation)call->activation, call->residual.values.data};
}

static double activate(double value, enum bn_activation activation) {
    return activation == BN_RELU && value <= 0 ? 0 : value;
}

void batch_fill_beta(struct tensor *y, const double *beta, const struct bn_post *post) {
    float *const f32 = (float *)(void *)y->values.data;
    double *const f64 = (double *)(void *)y->values.data;
    const float *const residual32 = post->residual;
    const double *const residual64 = post->residual;
    for (size_t c = 0; c < y->count; c++) {
        const double value = beta != NULL ? beta[c] : 0;
        if (y->dtype == BN_F32) {
            const float sum = residual32 != NULL ? (float)value + residual32[c] : (float)value;
            f32[c] = (float)activate((double)sum, post->activation);
        } else {
            const double sum = residual64 != NULL ? value + residual64[c] : value;
            f64[c] = activate(sum, post->activation);
        }
    }
}

struct bn_norm batch_norm(const struct batch *batch, double eps, const double *gamma, const double *beta) {
    return (struct bn_norm){.mean = batch_vector(batch, BATCH_MEAN),
                            .mean_lo = batch_vector(batch, BATCH_MEAN_LO),
                            .var = batch_vector(batch, BATCH_VAR),
                            .gamma = gamma,
                            .beta = beta,
                            .eps = eps};
}

struct bn_norm batch_running_norm(const struct layer_state *state, const double *gamma, const double *beta) {
    return (struct bn_norm){
        .mean = state->running_mean, .var = state->running_var, .gamma = gamma, .beta = beta, .eps = state->config.eps};
}
