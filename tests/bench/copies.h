// SPDX-License-Identifier: Apache-2.0
//
// The yardsticks: memcpy of a tensor, and the fastest copy known here: 8 streams with non-temporal stores. Threads
// share a copy in equal parts; the caller also takes a part whose thread does not get to run. Helpers spin from the
// first copy of a timing to the last, so that a copy is not charged for waking them, and sleep otherwise. A copy of
// less than 64 KiB for each thread is made by the caller alone, which is faster.
#ifndef NORMD_BENCH_COPIES_H
#define NORMD_BENCH_COPIES_H

#include <stddef.h>

enum copy_kind { COPY_MEMCPY, COPY_STREAMS };

struct crew;

// Returns NULL where a thread or memory cannot be had. `threads` counts the caller.
struct crew *crew_new(unsigned threads);
void crew_free(struct crew **crew);

// Nanoseconds of `reps` copies one after the other, after one that is not timed. Pointers are aligned to 64 bytes.
double crew_time_copies(struct crew *crew, enum copy_kind kind, void *to, const void *from, size_t bytes,
                        unsigned long reps);

#endif
