// SPDX-License-Identifier: Apache-2.0
//
// The calls of kernels/ that are measured.
#ifndef NORMD_BENCH_CALLS_H
#define NORMD_BENCH_CALLS_H

#include <stdbool.h>

#include "kernels/bn.h"
#include "rows.h"
#include "tensors.h"

#define CALLS_EPS 1e-5

// One call on the tensors of the bench. Arrays are [channels]; they and the tensors are borrowed.
struct kernel_call {
    enum call call;
    enum bn_dtype dtype;
    struct bn_shape shape;
    const struct tensors *tensors;
    struct bn_pool *pool; // NULL: the calling thread alone
    struct bn_norm norm;  // of x's own statistics
    struct bn_stats stats;
    double *dgamma;
    double *dbeta;
};

// Double arrays for tensors->channels, in one allocation.
struct call_arrays {
    double *gamma, *beta, *mean, *mean_lo, *var;
    double *out[4];
};

bool call_arrays_open(struct call_arrays *arrays, const struct tensors *tensors);
void call_arrays_close(struct call_arrays *arrays);

// Sets up a row's call. Takes the statistics of x, into `arrays` and, for the peers, into tensors->mean and ->var.
// Returns false where the kernels refuse.
bool call_prepare(struct kernel_call *call, struct call_arrays *arrays, const struct row *row,
                  const struct tensors *tensors, struct bn_pool *pool);

// Nanoseconds of `reps` calls one after the other, after one that is not timed; negative where one failed.
double call_time(const struct kernel_call *call, unsigned long reps);

// Nanoseconds that a parallel section without work keeps its caller, the median of many: where the last one has just
// ended, and where the pool's threads have slept for a while.
struct pool_cost {
    double busy_ns;
    double idle_ns;
};
struct pool_cost pool_cost_measure(struct bn_pool *pool);

#endif
