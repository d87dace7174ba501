// SPDX-License-Identifier: Apache-2.0
#include "rounds.h"

#include <stdlib.h>

#include "clock.h"

#define TIMING_NS 1e6 // the shortest that is trusted
#define REPS_MAX 1000000ul

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double quantile(double *values, size_t n, double q) {
    qsort(values, n, sizeof *values, compare);
    return values[(size_t)(q * (double)(n - 1) + 0.5)];
}

double rounds_busy_ns(const struct rounds_plan *plan) {
    double sum = 0;
    for (size_t i = 0; i < plan->watched_count; i++) sum += clock_ns_of(plan->watched[i]);
    return sum;
}

static void await_quiet(const struct rounds_plan *plan) {
    const struct timespec pause = {.tv_nsec = 200 * 1000};
    double before = rounds_busy_ns(plan);
    for (unsigned i = 0; i < 250; i++) {
        nanosleep(&pause, NULL);
        const double now = rounds_busy_ns(plan);
        if (now - before < (double)pause.tv_nsec / 4) return;
        before = now;
    }
}

// Returns 0 where the contender broke.
static unsigned long calibrate(const struct contender *contender) {
    unsigned long reps = 1;
    for (;;) {
        const double ns = contender->time(contender->self, reps);
        if (ns < 0) return 0;
        if (ns >= TIMING_NS || reps == REPS_MAX) return reps;
        const double wanted = (double)reps * (ns > TIMING_NS / 10 ? 1.2 * TIMING_NS / ns : 10);
        reps = wanted < (double)REPS_MAX ? (unsigned long)wanted + 1 : REPS_MAX;
    }
}

static void summarize(struct result *result, double ns[WHOS][ROUNDS_MAX], enum who who) {
    const size_t n = result->rounds;
    double ratios[ROUNDS_MAX], times[ROUNDS_MAX];
    for (size_t r = 0; r < n; r++) {
        ratios[r] = ns[WHO_OURS][r] / ns[who][r];
        times[r] = ns[who][r];
    }
    result->ns[who] = quantile(times, n, 0.5);
    result->ratio[who] = quantile(ratios, n, 0.5);
    result->low[who] = quantile(ratios, n, 0.25);
    result->high[who] = quantile(ratios, n, 0.75);
}

// Every other round goes backwards, so that nobody is always the one after somebody.
static enum who run_round(double ns[WHOS][ROUNDS_MAX], unsigned round, const struct contender contenders[WHOS],
                          const unsigned long reps[WHOS], const struct rounds_plan *plan) {
    for (unsigned i = 0; i < WHOS; i++) {
        const enum who who = (enum who)(round % 2 == 0 ? i : WHOS - 1 - i);
        if (reps[who] == 0) continue;
        await_quiet(plan);
        const double total = contenders[who].time(contenders[who].self, reps[who]);
        if (total < 0) return who;
        ns[who][round] = total / (double)reps[who];
    }
    return WHOS;
}

enum who rounds_run(struct result *result, const struct contender contenders[WHOS], const struct rounds_plan *plan) {
    static double ns[WHOS][ROUNDS_MAX];
    unsigned long reps[WHOS] = {0};
    for (unsigned who = 0; who < WHOS; who++) {
        if (contenders[who].time == NULL) continue;
        reps[who] = calibrate(&contenders[who]);
        if (reps[who] == 0) return (enum who)who;
    }
    const double start = clock_ns();
    unsigned round = 0;
    for (; round < plan->rounds; round++) {
        if (round >= ROUNDS_MIN && clock_ns() - start > plan->seconds * 1e9) break;
        const enum who broken = run_round(ns, round, contenders, reps, plan);
        if (broken != WHOS) return broken;
    }
    result->rounds = round;
    for (unsigned who = 0; who < WHOS; who++) {
        if (reps[who] != 0) summarize(result, ns, (enum who)who);
    }
    return WHOS;
}
