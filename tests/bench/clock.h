// SPDX-License-Identifier: Apache-2.0
//
// The clock of all timings, ours and the peers'.
#ifndef NORMD_BENCH_CLOCK_H
#define NORMD_BENCH_CLOCK_H

#include <time.h>

// Nanoseconds of a clock, by itself or of a process.
static inline double clock_ns_of(clockid_t clock) {
    struct timespec now = {0};
    clock_gettime(clock, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static inline double clock_ns(void) {
    return clock_ns_of(CLOCK_MONOTONIC);
}

#endif
