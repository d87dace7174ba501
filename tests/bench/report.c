// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include <stdio.h>

#define OTHERS_MAX 0.1 // processors; more spoils what two threads do

static const char *const who_names[WHOS] = {"ours", "one_thread", "memcpy", "best_copy", "oneDNN", "PyTorch"};

void report_heading(const struct machine *machine, const struct peer peers[2]) {
    printf("CPU: %s, %u processors, caches %zu KiB, %zu KiB, %zu KiB; tier %s; load %.1f\n", machine->cpu,
           machine->threads, machine->cache[1] / 1024, machine->cache[2] / 1024, machine->cache[3] / 1024,
           bn_cpu_tier(), machine->load);
    for (unsigned i = 0; i < 2; i++) {
        if (peers[i].name != NULL) printf("%s %s\n", peers[i].name, peers[i].version);
    }
    printf("\n%-13s %-15s %-6s %-4s %3s %9s %6s %8s %13s %6s %8s", "call", "shape", "layout", "type", "thr", "ms",
           "GB/s", "x memcpy", "(quartiles)", "x best", "speedup");
    for (unsigned i = 0; i < 2; i++) {
        if (peers[i].name != NULL) printf(" %9s", i == 0 ? "x oneDNN" : "x PyTorch");
    }
    printf("\n");
    fflush(stdout);
}

static void print_figure(int width, bool is_there, double figure) {
    if (is_there) {
        printf(" %*.*f", width, figure < 0.1 ? 3 : 2, figure);
    } else {
        printf(" %*s", width, "-");
    }
}

void report_row(const struct result *result, const struct peer peers[2]) {
    const struct row *const row = &result->row;
    const double ns = result->ns[WHO_OURS];
    char dims[32], quartiles[32];
    snprintf(quartiles, sizeof quartiles, "(%.2f-%.2f)", result->low[WHO_MEMCPY], result->high[WHO_MEMCPY]);
    printf("%-13s %-15s %-6s %-4s %3u %9.*f %6.1f %8.2f %13s %6.2f", call_name(row->call), row_dims_name(dims, row),
           row_layout_name(row), dtype_name(row->dtype), row->threads, ns < 1e6 ? 6 : 3, ns / 1e6,
           (double)row_traffic(row) / ns, result->ratio[WHO_MEMCPY], quartiles, result->ratio[WHO_STREAMS]);
    const bool scaled = result->ns[WHO_ALONE] > 0;
    print_figure(8, scaled, scaled ? 1 / result->ratio[WHO_ALONE] : 0);
    for (unsigned i = 0; i < 2; i++) {
        const unsigned who = WHO_ONEDNN + i;
        if (peers[i].name != NULL) print_figure(9, result->ns[who] > 0, result->ratio[who]);
    }
    printf("\n");
    fflush(stdout);
}

static void print_verdict(const struct verdict *verdict) {
    if (verdict->rows == 0) {
        printf("  not measured  %s\n", verdict->text);
        return;
    }
    if (verdict->missed > 0) {
        printf("  MISSED %3zu/%-3zu %s: %.4g, by %.0f %%", verdict->missed, verdict->rows, verdict->text,
               verdict->worst,
               100 * (verdict->worst > verdict->limit ? verdict->worst / verdict->limit - 1
                                                      : 1 - verdict->worst / verdict->limit));
    } else {
        printf("  met    %7zu %s: %.4g", verdict->rows, verdict->text, verdict->worst);
    }
    if (verdict->row != NULL) printf(" (%s)", verdict->row->name);
    printf("\n");
}

static void print_means(const struct findings *findings) {
    static const enum bn_dtype dtypes[] = {BN_F32, BN_BF16, BN_F16, BN_F64};
    for (unsigned i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        for (unsigned threads = 1; threads <= findings->threads; threads++) {
            size_t rows;
            const double mean = mean_times_faster(&rows, findings, dtypes[i], threads);
            if (rows == 0) continue;
            printf("  %s, %u threads: %.2f times as fast as the faster peer, geometric mean of %zu rows\n",
                   dtype_name(dtypes[i]), threads, mean, rows);
        }
    }
}

void report_end(const struct verdict verdicts[VERDICTS], const struct findings *findings) {
    printf("\nTargets, f32 on %u threads; rows judged or missed, the worst figure and its row:\n", findings->threads);
    for (unsigned i = 0; i < VERDICTS; i++) print_verdict(&verdicts[i]);
    print_means(findings);
    printf("Other programs took %.2f of the %u processors meanwhile%s.\n", findings->others, findings->machine->threads,
           findings->others > OTHERS_MAX ? ": too much, nothing above can be judged" : "");
}

static void write_result(FILE *file, const struct result *result) {
    const struct row *const row = &result->row;
    fprintf(file,
            "{\"name\": \"%s\", \"call\": \"%s\", \"layout\": \"%s\", \"dtype\": \"%s\", \"threads\": %u, \"dims\": [",
            row->name, call_name(row->call), row_layout_name(row), dtype_name(row->dtype), row->threads);
    for (unsigned i = 0; i < row->rank; i++) fprintf(file, "%s%zu", i > 0 ? ", " : "", row->dims[i]);
    fprintf(file, "], \"bytes\": %zu, \"gb_per_s\": %.3f, \"rounds\": %u, \"ns\": {", row_bytes(row),
            (double)row_traffic(row) / result->ns[WHO_OURS], result->rounds);
    const char *comma = "";
    for (unsigned who = 0; who < WHOS; who++) {
        if (result->ns[who] <= 0) continue;
        fprintf(file, "%s\"%s\": %.2f", comma, who_names[who], result->ns[who]);
        comma = ", ";
    }
    fprintf(file, "}, \"multiple_of\": {");
    comma = "";
    for (unsigned who = WHO_ALONE; who < WHOS; who++) {
        if (result->ns[who] <= 0) continue;
        fprintf(file, "%s\"%s\": {\"median\": %.4f, \"quartiles\": [%.4f, %.4f]}", comma, who_names[who],
                result->ratio[who], result->low[who], result->high[who]);
        comma = ", ";
    }
    fprintf(file, "}}");
}

static void write_verdict(FILE *file, const struct verdict *verdict) {
    fprintf(file, "{\"target\": \"%s\", \"limit\": %g, \"rows\": %zu, \"missed\": %zu", verdict->text, verdict->limit,
            verdict->rows, verdict->missed);
    if (verdict->rows > 0) fprintf(file, ", \"worst\": %.6g", verdict->worst);
    if (verdict->row != NULL) fprintf(file, ", \"worst_row\": \"%s\"", verdict->row->name);
    fprintf(file, "}");
}

bool report_json(const char *path, const struct findings *findings, const struct verdict verdicts[VERDICTS],
                 const struct peer peers[2]) {
    FILE *const file = fopen(path, "w");
    if (file == NULL) return false;
    const struct machine *const machine = findings->machine;
    fprintf(file,
            "{\"cpu\": \"%s\", \"processors\": %u, \"caches\": [%zu, %zu, %zu], \"tier\": \"%s\", \"load\": %.2f,\n",
            machine->cpu, machine->threads, machine->cache[1], machine->cache[2], machine->cache[3], bn_cpu_tier(),
            machine->load);
    fprintf(file, "\"other_programs\": %.3f,\n\"peers\": {", findings->others);
    const char *comma = "";
    for (unsigned i = 0; i < 2; i++) {
        if (peers[i].name == NULL) continue;
        fprintf(file, "%s\"%s\": \"%s\"", comma, who_names[WHO_ONEDNN + i], peers[i].version);
        comma = ", ";
    }
    fprintf(file, "},\n\"pool_ns\": {\"awake\": %.1f, \"asleep\": %.1f},\n\"targets\": [", findings->pool->busy_ns,
            findings->pool->idle_ns);
    for (unsigned i = 0; i < VERDICTS; i++) {
        fprintf(file, i > 0 ? ",\n  " : "\n  ");
        write_verdict(file, &verdicts[i]);
    }
    fprintf(file, "],\n\"results\": [");
    for (size_t i = 0; i < findings->count; i++) {
        fprintf(file, i > 0 ? ",\n  " : "\n  ");
        write_result(file, &findings->results[i]);
    }
    fprintf(file, "]}\n");
    const bool good = !ferror(file);
    return fclose(file) == 0 && good;
}
