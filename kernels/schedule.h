// SPDX-License-Identifier: Apache-2.0
//
// When the blocks of a call are worked on, and by whom. A pass takes sums over every block, merges those of a channel
// in the order of places, finishes the channel, and applies what came of it to the elements. Where the values of a unit
// stay in a cache between the sums and the elements, one thread does all of a unit at once, and memory is read once;
// otherwise all sums come first. Either way gives the same bits. Internal to kernels/.
#ifndef NORMD_KERNELS_SCHEDULE_H
#define NORMD_KERNELS_SCHEDULE_H

#include <stdbool.h>
#include <stddef.h>

#include "blocks.h"
#include "bn.h"
#include "pool.h"

struct bn_pass {
    void *context; // of the functions, which run on any thread
    struct bn_cut cut;
    size_t bytes; // per element, of all tensors that both the sums and the elements read

    // Sums of a block, two doubles per channel, into a and b [block->channels]. NULL: there are no sums.
    void (*sums)(void *context, const struct bn_block *block, double *a, double *b);
    // Folds the sums of `more_n` values per channel into those of `n`.
    void (*merge)(double *a, double *b, double n, const double *more_a, const double *more_b, double more_n,
                  size_t channels);
    double *a, *b; // [channels]; the merged sums

    // Makes of the merged sums of some channels what apply needs. NULL: nothing to do.
    void (*finish)(void *context, size_t channel, size_t channels);
    // Works on the elements of rows of a unit. NULL: there is nothing to do with them.
    void (*apply)(void *context, const struct bn_block *block);
};

BN_MUST_CHECK enum bn_status bn_pass_run(const struct bn_pass *pass, struct bn_pool *pool);

#endif
