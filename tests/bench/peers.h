// SPDX-License-Identifier: Apache-2.0
//
// Other libraries, each in a process of its own, so that neither its threads nor its allocator are ours. The process
// maps the tensors of the bench and follows orders, line by line:
//
//   started as `COMMAND FD ROOM CHANNELS` (see tensors.h)  -> "ready VERSION", or ends
//   "prepare CALL LAYOUT DTYPE THREADS N C H W"            -> "ok", or "no REASON"; y holds the result of the call then
//   "run REPS"                                             -> nanoseconds of REPS calls, after one that is not timed
//
// CALL and DTYPE are as in a row's name, LAYOUT is "first" or "last"; H or H and W are 1 where the row has none.
#ifndef NORMD_BENCH_PEERS_H
#define NORMD_BENCH_PEERS_H

#include <stdbool.h>
#include <stdio.h>
#include <sys/types.h>
#include <time.h>

#include "rows.h"
#include "tensors.h"

struct peer {
    const char *name; // NULL: absent
    char version[64];
    pid_t pid;
    clockid_t clock; // its processor time
    FILE *orders;
    FILE *replies;
};

// Starts `command`, words for a shell, which the end of this process ends. Returns false where it does not get ready.
bool peer_start(struct peer *peer, const char *name, const char *command, const struct tensors *tensors);
void peer_stop(struct peer *peer);

enum peer_answer { PEER_OK, PEER_CANNOT, PEER_BROKEN };
enum peer_answer peer_prepare(struct peer *peer, const struct row *row);

// Negative where it broke.
double peer_time(struct peer *peer, unsigned long reps);

#endif
