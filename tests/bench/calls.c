// SPDX-License-Identifier: Apache-2.0
#include "calls.h"

#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "kernels/pool.h"
#include "rounds.h"

bool call_arrays_open(struct call_arrays *arrays, const struct tensors *tensors) {
    const size_t channels = tensors->channels;
    double *at = calloc(9 * channels, sizeof *at);
    if (at == NULL) return false;
    *arrays = (struct call_arrays){at, at + channels, at + 2 * channels, at + 3 * channels, at + 4 * channels, {0}};
    for (size_t i = 0; i < 4; i++) arrays->out[i] = at + (5 + i) * channels;
    for (size_t c = 0; c < channels; c++) {
        arrays->gamma[c] = (double)tensors->gamma[c];
        arrays->beta[c] = (double)tensors->beta[c];
    }
    return true;
}

void call_arrays_close(struct call_arrays *arrays) {
    free(arrays->gamma);
    *arrays = (struct call_arrays){0};
}

static bool take_statistics(struct call_arrays *arrays, const struct kernel_call *call) {
    const struct tensors *const tensors = call->tensors;
    struct bn_stats stats = {.mean = arrays->mean, .mean_lo = arrays->mean_lo, .m2 = arrays->var};
    if (bn_statistics(&stats, tensors->x, call->dtype, call->shape, call->pool) != BN_OK) return false;
    for (size_t c = 0; c < call->shape.channels; c++) {
        arrays->var[c] /= (double)stats.count;
        tensors->mean[c] = (float)arrays->mean[c];
        tensors->var[c] = (float)arrays->var[c];
    }
    return true;
}

bool call_prepare(struct kernel_call *call, struct call_arrays *arrays, const struct row *row,
                  const struct tensors *tensors, struct bn_pool *pool) {
    *call = (struct kernel_call){
        .call = row->call,
        .dtype = row->dtype,
        .shape = row_shape(row),
        .tensors = tensors,
        .pool = pool,
        .norm = {arrays->mean, arrays->mean_lo, arrays->var, arrays->gamma, arrays->beta, CALLS_EPS},
        .stats = {.mean = arrays->out[0], .mean_lo = arrays->out[1], .m2 = arrays->out[2]},
        .dgamma = arrays->out[0],
        .dbeta = arrays->out[1],
    };
    if (row->call == CALL_INFERENCE) call->norm.mean_lo = NULL;
    return take_statistics(arrays, call);
}

static enum bn_status run(const struct kernel_call *call) {
    const struct tensors *const t = call->tensors;
    struct bn_stats stats = call->stats;
    const struct bn_gradients gradients = {.dx = t->y, .dgamma = call->dgamma, .dbeta = call->dbeta};
    switch (call->call) {
    case CALL_TRAIN:
        return bn_train_forward(t->y, &stats, t->x, call->dtype, call->shape, call->norm.gamma, call->norm.beta,
                                call->norm.eps, NULL, call->pool);
    case CALL_INFERENCE: return bn_normalize(t->y, t->x, call->dtype, call->shape, &call->norm, NULL, call->pool);
    default: return bn_backward(&gradients, t->dout, t->x, call->dtype, call->shape, &call->norm, NULL, call->pool);
    }
}

double call_time(const struct kernel_call *call, unsigned long reps) {
    if (run(call) != BN_OK) return -1;
    bool good = true;
    const double start = clock_ns();
    for (unsigned long i = 0; i < reps; i++) good = run(call) == BN_OK && good;
    const double ns = clock_ns() - start;
    return good ? ns : -1;
}

static void nothing(void *context, size_t i) {
    (void)context;
    (void)i;
}

static double section_ns(struct bn_pool *pool, unsigned reps) {
    const double start = clock_ns();
    for (unsigned i = 0; i < reps; i++) pool_for(pool, bn_pool_threads(pool), nothing, NULL);
    return (clock_ns() - start) / reps;
}

struct pool_cost pool_cost_measure(struct bn_pool *pool) {
    enum { TIMINGS = 301, REPS = 100 };
    const struct timespec pause = {.tv_nsec = 500 * 1000};
    double idle[TIMINGS], busy[TIMINGS];
    for (unsigned i = 0; i < TIMINGS; i++) {
        nanosleep(&pause, NULL);
        idle[i] = section_ns(pool, 1);
        busy[i] = section_ns(pool, REPS);
    }
    return (struct pool_cost){quantile(busy, TIMINGS, 0.5), quantile(idle, TIMINGS, 0.5)};
}
