// SPDX-License-Identifier: Apache-2.0
#include "times.h"

#include <time.h>
#include <uv.h>

#include "routes.h"

void times_mark(struct job *job, enum job_mark mark) {
    job->marks[mark] = uv_hrtime();
}

// From one moment to another; 0 where one of them did not come to pass.
static uint64_t between(const struct job *job, enum job_mark from, enum job_mark to) {
    const uint64_t begin = job->marks[from], end = job->marks[to];
    return begin != 0 && end > begin ? end - begin : 0;
}

static void add(_Atomic uint64_t *sum, uint64_t value) {
    atomic_fetch_add_explicit(sum, value, memory_order_relaxed);
}

void times_record(struct job *job) {
    if (job->layer == NULL || job->marks[JOB_STARTED] == 0 || (job->route->flags & ROUTE_CALL) == 0) return;
    struct layer_times *const times = &job->layer->times;
    const uint64_t whole = uv_hrtime() - job->marks[JOB_STARTED];
    if (job->error.code != MSG_OK) {
        add(&times->failures, 1);
        add(&times->failure_ns, whole);
        return;
    }
    // A commit lies between computing and encoding, and is of neither.
    const enum job_mark computed = job->marks[JOB_COMPUTED] != 0 ? JOB_COMPUTED : JOB_ENCODING;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    add(&times->successes, 1);
    add(&times->success_ns, whole);
    add(&times->queue_ns, between(job, JOB_STARTED, JOB_RUNS));
    add(&times->input_ns, between(job, JOB_RUNS, JOB_DECODED));
    add(&times->infer_ns, between(job, JOB_DECODED, computed));
    add(&times->output_ns, between(job, JOB_ENCODING, JOB_ENCODED));
    atomic_store_explicit(&times->last_ms, (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000,
                          memory_order_relaxed);
}
