// SPDX-License-Identifier: Apache-2.0
//
// What the kernels are to reach, and whether they do: f32 on the most threads of the run.
#ifndef NORMD_BENCH_TARGETS_H
#define NORMD_BENCH_TARGETS_H

#include <stddef.h>

#include "calls.h"
#include "machine.h"
#include "rounds.h"

struct verdict {
    char text[128];
    double limit;
    double worst;          // the figure furthest from the limit
    const struct row *row; // whose it is; NULL: of no single row
    size_t rows;           // judged; 0: nothing in this run tells
    size_t missed;
};

enum { VERDICTS = 14 };

// Everything that the run measured.
struct findings {
    const struct result *results;
    size_t count;
    const struct machine *machine;
    unsigned threads; // the most
    const struct pool_cost *pool;
    double others; // processors that other programs and the host took meanwhile
};

void targets_judge(struct verdict verdicts[VERDICTS], const struct findings *findings);

// The smaller of the times of the peers that ran, in times of ours: above 1, ours is faster. 0: none ran.
double times_faster(const struct result *result);

// Geometric mean of the above over the results of a type and number of threads; 0: none. *count is how many.
double mean_times_faster(size_t *count, const struct findings *findings, enum bn_dtype dtype, unsigned threads);

#endif
