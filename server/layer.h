// SPDX-License-Identifier: Apache-2.0
//
// The state of one layer and what happens to it: conventions, the fold of batch statistics, the step on gamma and beta.
// No locks, no store, no names: a state is a plain value that its owner changes while nobody else sees it, and that is
// never changed again once it is published (registry.h). Any thread.
#ifndef NORMD_SERVER_LAYER_H
#define NORMD_SERVER_LAYER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../kernels/bn.h"
#include "../proto/message.h"

struct layer_state {
    _Atomic unsigned refs;
    struct msg_config config; // complete
    uint64_t id;              // random, given at creation, the same in every version
    uint64_t version;         // 1 at creation
    uint64_t normalizer;      // the version that last changed what y depends on: gamma, beta, eps
    uint64_t num_batches_tracked;
    double *gamma, *beta;               // [num_features]; NULL where the layer is not affine
    double *running_mean, *running_var; // [num_features]; NULL where it does not track
    double vectors[];
};

// Fills in the fields that are not given, by the convention. False where a field is missing or fields contradict.
// `parent` is the pointer of the configuration within the body.
bool layer_config_complete(struct msg_config *config, const char *parent, struct msg_error *error);

bool layer_config_equal(const struct msg_config *a, const struct msg_config *b);

// The weight of the new batch in the running statistics; NaN: cumulative, 1 / n.
double layer_new_weight(const struct msg_config *config);

// What is subtracted from n in the running variance: 1 unbiased, 0 biased.
int layer_running_ddof(const struct msg_config *config);

// Bytes of memory that a state of this configuration takes.
size_t layer_state_bytes(const struct msg_config *config);

// The same of a state that is there; NULL: 0.
size_t layer_state_size(const struct layer_state *state);

// False where a value of the state is infinite or NaN.
bool layer_state_is_finite(const struct layer_state *state);

// A layer as it is created: version 1, gamma 1, beta 0, the convention's running statistics. NULL: no memory.
struct layer_state *layer_state_new(const struct msg_config *config, uint64_t id);

// A copy with one reference. NULL: no memory.
struct layer_state *layer_state_clone(const struct layer_state *state);

const struct layer_state *layer_state_ref(const struct layer_state *state);

// Drops a reference; NULL is allowed. The last one frees.
void layer_state_release(const struct layer_state *state);

// True where the next train-forward that is applied sets gamma and beta from its batch (init "first-batch").
bool layer_awaits_first_batch(const struct layer_state *state);

// Gamma and beta that make y = x for this batch: sqrt(var + eps) and mean. Arrays [num_features].
void layer_first_affine(double *gamma, double *beta, const struct msg_config *config, const struct bn_stats *stats);

// Says that gamma, beta or eps changed with the version that the state now has.
void layer_touch(struct layer_state *state);

// Folds the statistics of one batch into the running ones, as the convention weighs them, and counts it; the first
// batch sets gamma and beta where the layer awaits that. Needs stats->count > running_ddof, and the version
// must be the new one already.
// Sources: PyTorch's BatchNorm (momentum weighs the new batch, unbiased), ONNX BatchNormalization 15 and Keras (weighs
// the old value, biased), arXiv 1502.03167, Algorithm 2, step 10 (mean over batches, unbiased).
void layer_fold(struct layer_state *state, const struct bn_stats *stats);

// One SGD step with weight decay, as torch.optim.SGD: p -= lr * (grad + weight_decay * p) on gamma and beta.
void layer_step(struct layer_state *state, const double *dgamma, const double *dbeta, double lr, double weight_decay);

// False where that step would make gamma or beta infinite or NaN.
bool layer_step_is_finite(const struct layer_state *state, const double *dgamma, const double *dbeta, double lr,
                          double weight_decay);

// The state as a reply shows it. Borrows from the state.
struct msg_state_view layer_view(const struct layer_state *state);

#endif
