// SPDX-License-Identifier: Apache-2.0
//
// A fixed set of threads and one primitive, the parallel for. Create and free are in bn.h.
#ifndef NORMD_KERNELS_POOL_H
#define NORMD_KERNELS_POOL_H

#include <stddef.h>

#include "bn.h"

// Runs task(context, i) once for every i in [0, n), in any order and on any thread of the pool, the caller included;
// returns when all have ended, and what they wrote is visible to the caller then. Where the pool is NULL, busy with
// another caller's section, or is called from inside a task, everything runs on the calling thread in index order.
// `context` must live until the return. Tasks must not block on each other.
void pool_for(struct bn_pool *pool, size_t n, void (*task)(void *context, size_t i), void *context);

#endif
