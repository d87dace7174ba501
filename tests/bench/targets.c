// SPDX-License-Identifier: Apache-2.0
#include "targets.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MB 1e6

enum {
    TRAIN = 1u << CALL_TRAIN,
    INFERENCE = 1u << CALL_INFERENCE,
    BACKWARD = 1u << CALL_BACKWARD,
    ALL_CALLS = TRAIN | INFERENCE | BACKWARD,
    FIRST = 1u << LAYOUT_FIRST,
    ELSEWHERE = 1u << LAYOUT_LAST | 1u << LAYOUT_PLAIN,
    ALL_LAYOUTS = FIRST | ELSEWHERE,
};

// The worst row is that with the highest figure, or with the lowest where the limit is one from below.
enum figure {
    OF_MEMCPY,    // time of ours / time of memcpy
    NS,           // of one call
    SPEEDUP,      // time on one thread / time, over the number of threads; from below
    TIMES_FASTER, // than the faster peer; from below
};

static const struct target {
    const char *text;
    double limit;
    enum figure figure;
    unsigned calls;
    unsigned layouts;
    size_t largest_plane; // 0: any
    double bytes_min;
    double bytes_max; // 0: any; negative: that of the L3 cache
} targets[] = {
    {"inference of 16 MB or more, times memcpy", 1.10, OF_MEMCPY, INFERENCE, ALL_LAYOUTS, 0, 16 * MB, 0},
    {"train of 16 MB or more, channels first, times memcpy", 1.35, OF_MEMCPY, TRAIN, FIRST, 0, 16 * MB, 0},
    {"train of 16 MB or more, elsewhere, times memcpy", 1.6, OF_MEMCPY, TRAIN, ELSEWHERE, 0, 16 * MB, 0},
    {"train, 7x7 and 14x14 planes, times memcpy", 1.1, OF_MEMCPY, TRAIN, FIRST, 14 * 14, 0, 0},
    {"backward of 16 MB or more, channels first, times memcpy", 1.9, OF_MEMCPY, BACKWARD, FIRST, 0, 16 * MB, 0},
    {"backward of 16 MB or more, elsewhere, times memcpy", 2.6, OF_MEMCPY, BACKWARD, ELSEWHERE, 0, 16 * MB, 0},
    {"part of the threads' ideal speedup, 1 MB to L3, train", 0.9, SPEEDUP, TRAIN, ALL_LAYOUTS, 0, MB, -1},
    {"part of the threads' ideal speedup, 1 MB to L3, inference", 0.9, SPEEDUP, INFERENCE, ALL_LAYOUTS, 0, MB, -1},
    {"part of the threads' ideal speedup, 1 MB to L3, backward", 0.9, SPEEDUP, BACKWARD, ALL_LAYOUTS, 0, MB, -1},
    {"64 bytes, ns of a call", 1000, NS, ALL_CALLS, ALL_LAYOUTS, 0, 64, 64},
    {"times as fast as the faster of oneDNN and PyTorch", 1, TIMES_FASTER, ALL_CALLS, ALL_LAYOUTS, 0, 0, 0},
};
enum { TARGETS = sizeof targets / sizeof targets[0] };
_Static_assert(TARGETS + 3 == VERDICTS, "a verdict for each target, the mean over the peers and the two of the pool");

static bool from_below(enum figure figure) {
    return figure == SPEEDUP || figure == TIMES_FASTER;
}

static bool is_judged(const struct target *target, const struct result *result, const struct findings *findings) {
    const struct row *const row = &result->row;
    const double bytes = (double)row_bytes(row);
    const double most = target->bytes_max < 0 ? (double)findings->machine->cache[3] : target->bytes_max;
    return row->dtype == BN_F32 && row->threads == findings->threads && (target->calls & 1u << row->call) &&
           (target->layouts & 1u << row->layout) && bytes >= target->bytes_min && (most <= 0 || bytes <= most) &&
           (target->largest_plane == 0 || row_shape(row).inner <= target->largest_plane);
}

double times_faster(const struct result *result) {
    double slower = 0;
    for (unsigned who = WHO_ONEDNN; who <= WHO_TORCH; who++) {
        if (result->ns[who] > 0 && result->ratio[who] > slower) slower = result->ratio[who];
    }
    return slower > 0 ? 1 / slower : 0;
}

// 0: not measured.
static double figure_of(enum figure figure, const struct result *result) {
    switch (figure) {
    case OF_MEMCPY: return result->ratio[WHO_MEMCPY];
    case NS: return result->ns[WHO_OURS];
    case SPEEDUP: return result->ns[WHO_ALONE] > 0 ? 1 / result->ratio[WHO_ALONE] / result->row.threads : 0;
    case TIMES_FASTER: return times_faster(result);
    }
    return 0;
}

static void judge(struct verdict *verdict, const struct target *target, const struct findings *findings) {
    const bool below = from_below(target->figure);
    *verdict = (struct verdict){.limit = target->limit};
    snprintf(verdict->text, sizeof verdict->text, "%s %s %g", target->text, below ? ">=" : "<=", target->limit);
    for (size_t i = 0; i < findings->count; i++) {
        const struct result *const result = &findings->results[i];
        const double figure = figure_of(target->figure, result);
        if (figure <= 0 || !is_judged(target, result, findings)) continue;
        verdict->missed += below ? figure < target->limit : figure > target->limit;
        if (verdict->rows++ == 0 || (below ? figure < verdict->worst : figure > verdict->worst)) {
            verdict->worst = figure;
            verdict->row = &result->row;
        }
    }
}

double mean_times_faster(size_t *count, const struct findings *findings, enum bn_dtype dtype, unsigned threads) {
    double logs = 0;
    *count = 0;
    for (size_t i = 0; i < findings->count; i++) {
        const struct result *const result = &findings->results[i];
        const double times = times_faster(result);
        if (times <= 0 || result->row.dtype != dtype || result->row.threads != threads) continue;
        logs += log(times);
        ++*count;
    }
    return *count > 0 ? exp(logs / (double)*count) : 0;
}

static void judge_mean(struct verdict *verdict, const struct findings *findings) {
    *verdict = (struct verdict){.limit = 2.5};
    snprintf(verdict->text, sizeof verdict->text, "the same, geometric mean >= %g", verdict->limit);
    verdict->worst = mean_times_faster(&verdict->rows, findings, BN_F32, findings->threads);
    verdict->missed = verdict->rows > 0 && verdict->worst < verdict->limit;
}

static void judge_pool(struct verdict *verdict, const char *state, double ns, const struct findings *findings) {
    *verdict = (struct verdict){.limit = 5000, .worst = ns, .rows = findings->threads > 1};
    snprintf(verdict->text, sizeof verdict->text, "a section of the pool, %s, ns for its caller <= %g", state,
             verdict->limit);
    verdict->missed = verdict->rows > 0 && ns > verdict->limit;
}

void targets_judge(struct verdict verdicts[VERDICTS], const struct findings *findings) {
    for (size_t i = 0; i < TARGETS; i++) judge(&verdicts[i], &targets[i], findings);
    judge_mean(&verdicts[TARGETS], findings);
    judge_pool(&verdicts[TARGETS + 1], "awake", findings->pool->busy_ns, findings);
    judge_pool(&verdicts[TARGETS + 2], "asleep", findings->pool->idle_ns, findings);
}
