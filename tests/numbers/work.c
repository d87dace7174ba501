// SPDX-License-Identifier: Apache-2.0
#include "work.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

// Large enough that taking one costs nothing, small enough that threads end together.
#define BLOCK 65536
#define MOST_THREADS 256
#define MOST_WRONG 20
#define PROGRESS_SECONDS 5

struct run {
    const struct work *work;
    atomic_uint_fast64_t next; // index of the first value that no thread has taken
    atomic_uint_fast64_t failed;
    atomic_llong reported; // when progress was last told, in seconds
    long long began;
};

static atomic_int told_wrong;

void wrong(const char *format, ...) {
    if (atomic_fetch_add(&told_wrong, 1) >= MOST_WRONG) return;
    char text[2048];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    printf("# %s\n", text);
    fflush(stdout);
}

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (long long)time.tv_sec;
}

// Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014), the mixing of SplitMix.
static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

uint64_t random_of(const struct work *work, uint64_t index, uint64_t n) {
    return mix(mix(work->seed + 0x9e3779b97f4a7c15 * (index + 1)) + n);
}

static void tell_progress(struct run *run, uint64_t done) {
    const long long time = now();
    long long last = atomic_load(&run->reported);
    if (time - last < PROGRESS_SECONDS || !atomic_compare_exchange_strong(&run->reported, &last, time)) return;
    const double part = (double)done / (double)run->work->total;
    const double left = (double)(time - run->began) * (1 - part) / part;
    fprintf(stderr, "%s: %.1f %%, %.0f s left\n", run->work->name, 100 * part, left);
}

static void *work_on(void *argument) {
    struct run *const run = argument;
    const uint64_t total = run->work->total;
    for (;;) {
        const uint64_t first = atomic_fetch_add(&run->next, BLOCK);
        if (first >= total) return NULL;
        const uint64_t end = total - first < BLOCK ? total : first + BLOCK;
        uint64_t failed = 0;
        for (uint64_t i = first; i < end; i++) failed += !run->work->check(run->work, i);
        if (failed > 0) atomic_fetch_add(&run->failed, failed);
        tell_progress(run, end);
    }
}

uint64_t work_run(const struct work *work, int threads) {
    struct run run = {.work = work, .began = now(), .reported = now()};
    pthread_t others[MOST_THREADS];
    int started = 0;
    while (started < threads - 1 && started < MOST_THREADS &&
           pthread_create(&others[started], NULL, work_on, &run) == 0) {
        started++;
    }
    work_on(&run);
    for (int i = 0; i < started; i++) pthread_join(others[i], NULL);
    return atomic_load(&run.failed);
}
