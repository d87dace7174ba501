// SPDX-License-Identifier: Apache-2.0
//
// Contenders that take turns. A ratio is that of two times of the same round, since the machine may do something else
// in another one; a result is the median over the rounds.
#ifndef NORMD_BENCH_ROUNDS_H
#define NORMD_BENCH_ROUNDS_H

#include <stdbool.h>
#include <stddef.h>
#include <time.h>

#include "rows.h"

enum who { WHO_OURS, WHO_ALONE, WHO_MEMCPY, WHO_STREAMS, WHO_ONEDNN, WHO_TORCH, WHOS }; // alone: ours with one thread
enum { ROUNDS_MAX = 999, ROUNDS_MIN = 5, WATCHED_MAX = 1 + WHOS };

struct contender {
    // Nanoseconds of `reps` calls, negative where it broke. NULL: does not take part.
    double (*time)(void *self, unsigned long reps);
    void *self;
};

struct rounds_plan {
    unsigned rounds; // ROUNDS_MIN to ROUNDS_MAX
    double seconds;  // no further round then, but for ROUNDS_MIN of them
    // Processor time of this process and of the peers: a timing starts when all threads of all of them sleep, since
    // OpenMP's spin on for a while.
    clockid_t watched[WATCHED_MAX];
    size_t watched_count;
};

struct result {
    struct row row;
    unsigned rounds;
    double ns[WHOS];    // of one call; 0: did not take part
    double ratio[WHOS]; // time of ours / time of theirs
    double low[WHOS];   // its quartiles
    double high[WHOS];
};

// Fills all but the row. Returns the contender that broke, or WHOS.
enum who rounds_run(struct result *result, const struct contender contenders[WHOS], const struct rounds_plan *plan);

// Nanoseconds of processor time that those watched have used.
double rounds_busy_ns(const struct rounds_plan *plan);

// Sorts the n values, at least one, and returns the one that the part q of them is below.
double quantile(double *values, size_t n, double q);

#endif
