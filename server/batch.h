// SPDX-License-Identifier: Apache-2.0
//
// What the three calls share between decoding and replying: the shape of a tensor against its layer, the vectors of a
// batch, and the rules on values (nonfinite, single_value, overflow). Functions return false with `error` set.
#ifndef NORMD_SERVER_BATCH_H
#define NORMD_SERVER_BATCH_H

#include "job.h"

// Vectors in job->batch.values, [channels] doubles each.
enum batch_vector {
    BATCH_MEAN,
    BATCH_MEAN_LO,
    BATCH_M2,
    BATCH_VAR,   // biased
    BATCH_GAMMA, // train-forward: of a first batch; backward: dgamma
    BATCH_BETA,  // train-forward: of a first batch; backward: dbeta
    BATCH_VECTORS,
};

double *batch_vector(const struct batch *batch, enum batch_vector vector);

// Makes room for all vectors; batch->shape must be set.
bool batch_allocate(struct batch *batch, struct msg_error *error);

// Decodes the body into job->call; its memory is given back, but for what tensors lie in.
bool batch_decode(struct job *job, enum msg_call_kind kind);

// Sees x as {outer, channels, inner} with the call's channel axis or the layer's, into job->batch.
bool batch_set_shape(struct job *job, const struct tensor *x);

// Refuses a tensor that has not the shape of x. [] has that of any empty one, if x is [] with the layer's channels.
bool batch_check_shape(struct job *job, const char *field, const struct tensor *tensor, const struct tensor *x);

// True where batch statistics of one value per channel are to be refused.
bool batch_refuses_single(const struct batch *batch, const struct msg_config *config);

// Under "reject", refuses a tensor with NaN or infinity; otherwise notes it in batch->nonfinite.
bool batch_check_finite(struct job *job, const char *field, const struct tensor *tensor);

// Under "reject", refuses a result (tensor, or n doubles) that is not finite in the type in which it is to be sent.
bool batch_check_result(const struct msg_config *config, const struct batch *batch, const char *field,
                        const struct tensor *result, struct msg_error *error);
bool batch_check_vector(const struct msg_config *config, const struct batch *batch, const char *name,
                        const double *values, struct msg_error *error);

// The statistics among the batch's vectors. Borrows.
struct bn_stats batch_stats(const struct batch *batch);

// Statistics of x into the batch's vectors (mean, mean_lo, m2, var).
bool batch_statistics(struct job *job, const struct tensor *x);

// Those of the call's x, and its y by the gamma, beta and eps of job->state. y may be the call's x.
bool batch_train_forward(struct job *job, struct tensor *y);

// What follows the normalization in a call with x. Borrows the residual.
struct bn_post batch_post(const struct msg_call *call);

// y = beta, then `post`, for one value per channel (single_value "beta"), whatever the value is. beta NULL: 0.
void batch_fill_beta(struct tensor *y, const double *beta, const struct bn_post *post);

// How x is normalized with the batch's own statistics; gamma and beta NULL: 1 and 0.
struct bn_norm batch_norm(const struct batch *batch, double eps, const double *gamma, const double *beta);

// How it is normalized with the running statistics of `state`.
struct bn_norm batch_running_norm(const struct layer_state *state, const double *gamma, const double *beta);

#endif
