// SPDX-License-Identifier: Apache-2.0
//
// What the figures were measured on.
#ifndef NORMD_BENCH_MACHINE_H
#define NORMD_BENCH_MACHINE_H

#include <stddef.h>

struct machine {
    char cpu[128];    // as the kernel names it
    size_t cache[4];  // bytes of the data cache of levels 1 to 3 of the first processor; 0: none, or unknown
    unsigned threads; // processors that this process may use
    double load;      // of the last minute, before the bench
};

void machine_look(struct machine *machine);

// Nanoseconds that all processors have been busy with any program, or were taken from this machine by its host; to the
// hundredth of a second.
double machine_busy_ns(void);

#endif
