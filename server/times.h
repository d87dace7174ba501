// SPDX-License-Identifier: Apache-2.0
//
// How long calls take: moments are noted in the job on its way, and added up in its layer at the end. A moment costs a
// read of the clock, about 25 ns.
#ifndef NORMD_SERVER_TIMES_H
#define NORMD_SERVER_TIMES_H

#include "job.h"

// Notes that the moment is now. By whoever has the job.
void times_mark(struct job *job, enum job_mark mark);

// Adds the job, which is at its end, to the times of its layer; only calls count (ROUTE_CALL). Any thread.
void times_record(struct job *job);

#endif
