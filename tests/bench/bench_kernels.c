// SPDX-License-Identifier: Apache-2.0
//
// bench_kernels: the calls of kernels/ beside copies of the same memory, and beside other libraries. README.md says
// what the columns mean. Exit status 1: something broke, or a peer computes something else; slowness is no error.
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calls.h"
#include "clock.h"
#include "copies.h"
#include "machine.h"
#include "peers.h"
#include "report.h"
#include "rounds.h"
#include "rows.h"
#include "targets.h"
#include "tensors.h"

enum { PEERS = 2, THREADS_MAX = 256, SAMPLES = 4096 };

static const char usage[] =
    "usage: bench_kernels [OPTION...]\n"
    "  --filter WORDS       only rows whose names hold all of them, e.g. 'inference nhwc f32 2t'\n"
    "  --dtype LIST         of f32, bf16, f16, f64 (all)\n"
    "  --call LIST          of train-forward, inference, backward (all)\n"
    "  --threads LIST       of numbers and 'all' (1,all)\n"
    "  --rounds N           at most so many of a row (15)\n"
    "  --seconds S          no further round of a row after this time, but for 5 of them (0.5)\n"
    "  --tier NAME          at most this tier, as by NORMD_CPU\n"
    "  --onednn COMMAND     a peer, see peers.h\n"
    "  --torch COMMAND      the other\n"
    "  --json FILE          write the results there too\n";

struct options {
    struct rows_choice choice;
    struct rounds_plan plan;
    const char *commands[PEERS];
    const char *json;
};

// What rows share.
struct bench {
    struct rounds_plan plan;
    struct tensors tensors;
    struct call_arrays arrays;
    struct peer peers[PEERS];
    struct bn_pool *pools[THREADS_MAX + 1]; // by their number of threads; made when first needed, but for 1
    struct crew *crews[THREADS_MAX + 1];
    double samples[SAMPLES]; // of the result of ours
};

static _Noreturn void die(const char *what, const char *about) {
    fprintf(stderr, "bench_kernels: %s%s%s\n", what, *about != '\0' ? ": " : "", about);
    exit(1);
}

// Bits of the names in a list with commas; 0 where one of them is none.
static unsigned bits_of(const char *list, const char *const names[], unsigned count) {
    char words[128];
    snprintf(words, sizeof words, "%s", list);
    unsigned bits = 0;
    char *rest = words;
    for (const char *word; (word = strtok_r(rest, ",", &rest)) != NULL;) {
        unsigned i = 0;
        while (i < count && strcmp(word, names[i]) != 0) i++;
        if (i == count) return 0;
        bits |= 1u << i;
    }
    return bits;
}

static unsigned dtype_bits(const char *list) {
    const char *names[4];
    for (unsigned i = 0; i < 4; i++) names[i] = dtype_name((enum bn_dtype)i);
    return bits_of(list, names, 4);
}

static unsigned call_bits(const char *list) {
    const char *names[CALLS];
    for (unsigned i = 0; i < CALLS; i++) names[i] = call_name((enum call)i);
    return bits_of(list, names, CALLS);
}

static void add_threads(struct rows_choice *choice, unsigned threads) {
    unsigned at = 0;
    while (at < choice->thread_counts && choice->threads[at] < threads) at++;
    if (at < choice->thread_counts && choice->threads[at] == threads) return;
    if (choice->thread_counts == sizeof choice->threads / sizeof choice->threads[0]) return;
    memmove(&choice->threads[at + 1], &choice->threads[at], (choice->thread_counts - at) * sizeof choice->threads[0]);
    choice->threads[at] = threads;
    choice->thread_counts++;
}

static bool set_threads(struct rows_choice *choice, const char *list, unsigned all) {
    char words[128];
    snprintf(words, sizeof words, "%s", list);
    choice->thread_counts = 0;
    char *rest = words;
    for (const char *word; (word = strtok_r(rest, ",", &rest)) != NULL;) {
        char *end;
        const unsigned long threads = strcmp(word, "all") == 0 ? all : strtoul(word, &end, 10);
        if (threads < 1 || threads > THREADS_MAX) return false;
        add_threads(choice, (unsigned)threads);
    }
    return choice->thread_counts > 0;
}

static bool set_rounds(struct rounds_plan *plan, const char *number) {
    const unsigned long rounds = strtoul(number, NULL, 10);
    plan->rounds = (unsigned)rounds;
    return rounds >= ROUNDS_MIN && rounds <= ROUNDS_MAX;
}

static bool set_option(struct options *options, int option, const char *value, unsigned processors) {
    switch (option) {
    case 'f': options->choice.filter = value; return true;
    case 'd': return (options->choice.dtypes = dtype_bits(value)) != 0;
    case 'c': return (options->choice.calls = call_bits(value)) != 0;
    case 't': return set_threads(&options->choice, value, processors);
    case 'r': return set_rounds(&options->plan, value);
    case 's': return (options->plan.seconds = strtod(value, NULL)) >= 0;
    case 'T': return setenv("NORMD_CPU", value, 1) == 0;
    case 'o': options->commands[0] = *value != '\0' ? value : NULL; return true;
    case 'p': options->commands[1] = *value != '\0' ? value : NULL; return true;
    case 'j': options->json = value; return true;
    default: return false;
    }
}

static bool parse(struct options *options, int argc, char **argv, unsigned processors) {
    static const struct option names[] = {
        {"filter", 1, NULL, 'f'}, {"dtype", 1, NULL, 'd'},   {"call", 1, NULL, 'c'}, {"threads", 1, NULL, 't'},
        {"rounds", 1, NULL, 'r'}, {"seconds", 1, NULL, 's'}, {"tier", 1, NULL, 'T'}, {"onednn", 1, NULL, 'o'},
        {"torch", 1, NULL, 'p'},  {"json", 1, NULL, 'j'},    {NULL, 0, NULL, 0},
    };
    *options = (struct options){.choice = {.dtypes = ~0u, .calls = ~0u}, .plan = {.rounds = 15, .seconds = 0.5}};
    set_threads(&options->choice, "1,all", processors < THREADS_MAX ? processors : THREADS_MAX);
    for (int option; (option = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        if (!set_option(options, option, optarg, processors)) return false;
    }
    return optind == argc;
}

static void watch(struct rounds_plan *plan, clockid_t clock) {
    plan->watched[plan->watched_count++] = clock;
}

static void open_bench(struct bench *bench, const struct options *options, const struct rows *rows) {
    static const char *const names[PEERS] = {"oneDNN", "PyTorch"};
    bench->plan = options->plan;
    if (!tensors_open(&bench->tensors, rows)) die("no memory for the tensors", strerror(errno));
    if (!call_arrays_open(&bench->arrays, &bench->tensors)) die("no memory", "");
    watch(&bench->plan, CLOCK_PROCESS_CPUTIME_ID);
    for (unsigned i = 0; i < PEERS; i++) {
        if (options->commands[i] == NULL) continue;
        if (peer_start(&bench->peers[i], names[i], options->commands[i], &bench->tensors)) {
            watch(&bench->plan, bench->peers[i].clock);
        } else {
            fprintf(stderr, "bench_kernels: without %s, which does not start\n", names[i]);
        }
    }
}

static void close_bench(struct bench *bench) {
    for (unsigned i = 0; i < PEERS; i++) peer_stop(&bench->peers[i]);
    for (unsigned i = 0; i <= THREADS_MAX; i++) {
        bn_pool_free(&bench->pools[i]);
        crew_free(&bench->crews[i]);
    }
    call_arrays_close(&bench->arrays);
    tensors_close(&bench->tensors);
}

static void need_threads(struct bench *bench, unsigned threads) {
    if (bench->crews[threads] == NULL) bench->crews[threads] = crew_new(threads);
    if (threads > 1 && bench->pools[threads] == NULL) bench->pools[threads] = bn_pool_new(threads);
    if (bench->crews[threads] == NULL || (threads > 1 && bench->pools[threads] == NULL)) die("no threads", "");
}

static size_t sample_index(const struct row *row, size_t sample) {
    const size_t elements = row_bytes(row) / bn_dtype_size(row->dtype);
    return elements <= SAMPLES ? sample % elements : (size_t)((double)sample * (double)(elements - 1) / (SAMPLES - 1));
}

static void take_samples(struct bench *bench, const struct row *row) {
    for (size_t i = 0; i < SAMPLES; i++) {
        bench->samples[i] = element_at(bench->tensors.y, row->dtype, sample_index(row, i));
    }
}

// Results are of a few units at most. Statistics in f32 cost a peer 1e-4 and more of them.
static void compare_samples(const struct bench *bench, const struct row *row, const char *peer) {
    const double tolerance = row->dtype == BN_BF16 ? 0.1 : 0.02;
    for (size_t i = 0; i < SAMPLES; i++) {
        const double theirs = element_at(bench->tensors.y, row->dtype, sample_index(row, i));
        if (fabs(theirs - bench->samples[i]) <= tolerance) continue;
        fprintf(stderr, "%s: at %zu ours is %g, theirs %g\n", row->name, sample_index(row, i), bench->samples[i],
                theirs);
        die("another result", peer);
    }
}

// Contenders; self is what each of them points to.
struct copy_contender {
    const struct bench *bench;
    const struct row *row;
    enum copy_kind kind;
};

static double time_copy(void *self, unsigned long reps) {
    const struct copy_contender *const copy = self;
    const struct tensors *const tensors = &copy->bench->tensors;
    return crew_time_copies(copy->bench->crews[copy->row->threads], copy->kind, tensors->y, tensors->x,
                            row_bytes(copy->row), reps);
}

static double time_ours(void *self, unsigned long reps) {
    return call_time(self, reps);
}

static double time_peer(void *self, unsigned long reps) {
    return peer_time(self, reps);
}

static void add_peers(struct contender contenders[WHOS], struct bench *bench, const struct row *row) {
    for (unsigned i = 0; i < PEERS; i++) {
        struct peer *const peer = &bench->peers[i];
        if (peer->name == NULL) continue;
        memset(bench->tensors.y, 0, row_bytes(row));
        const enum peer_answer answer = peer_prepare(peer, row);
        if (answer == PEER_BROKEN) die("broke down", peer->name);
        if (answer == PEER_CANNOT) continue;
        compare_samples(bench, row, peer->name);
        contenders[WHO_ONEDNN + i] = (struct contender){time_peer, peer};
    }
}

static void measure(struct result *result, struct bench *bench, const struct row *row) {
    need_threads(bench, row->threads);
    struct kernel_call ours;
    if (!call_prepare(&ours, &bench->arrays, row, &bench->tensors, bench->pools[row->threads]))
        die(row->name, "refused");
    if (call_time(&ours, 0) < 0) die(row->name, "failed");
    take_samples(bench, row);
    struct kernel_call alone = ours;
    alone.pool = NULL;
    struct copy_contender copies[2] = {{bench, row, COPY_MEMCPY}, {bench, row, COPY_STREAMS}};
    struct contender contenders[WHOS] = {
        [WHO_OURS] = {time_ours, &ours},
        [WHO_ALONE] = {row->threads > 1 ? time_ours : NULL, &alone},
        [WHO_MEMCPY] = {time_copy, &copies[0]},
        [WHO_STREAMS] = {time_copy, &copies[1]},
    };
    add_peers(contenders, bench, row);
    *result = (struct result){.row = *row};
    const enum who broken = rounds_run(result, contenders, &bench->plan);
    if (broken != WHOS) die(row->name, "a contender broke down");
}

static double others_ns(const struct bench *bench) {
    return machine_busy_ns() - rounds_busy_ns(&bench->plan);
}

static void run(struct bench *bench, const struct rows *rows, const struct machine *machine,
                const struct options *options) {
    struct result *const results = calloc(rows->count, sizeof *results);
    if (results == NULL) die("no memory", "");
    report_heading(machine, bench->peers);
    const double start = clock_ns(), others_start = others_ns(bench);
    for (size_t i = 0; i < rows->count; i++) {
        const struct row *const row = &rows->at[i];
        if (i == 0 || row->dtype != rows->at[i - 1].dtype) tensors_fill(&bench->tensors, row->dtype);
        measure(&results[i], bench, row);
        report_row(&results[i], bench->peers);
    }
    const unsigned threads = options->choice.threads[options->choice.thread_counts - 1];
    need_threads(bench, threads);
    const struct pool_cost pool = pool_cost_measure(bench->pools[threads]);
    const double others = (others_ns(bench) - others_start) / (clock_ns() - start);
    const struct findings findings = {results, rows->count, machine, threads, &pool, others};
    struct verdict verdicts[VERDICTS];
    targets_judge(verdicts, &findings);
    report_end(verdicts, &findings);
    if (options->json != NULL && !report_json(options->json, &findings, verdicts, bench->peers)) {
        die(options->json, strerror(errno));
    }
    free(results);
}

int main(int argc, char **argv) {
    static struct bench bench;
    struct machine machine;
    struct options options;
    struct rows rows;
    signal(SIGPIPE, SIG_IGN); // a peer that died is a result
    machine_look(&machine);
    if (!parse(&options, argc, argv, machine.threads)) {
        fputs(usage, stderr);
        return 2;
    }
    if (!rows_make(&rows, &options.choice)) die("no memory", "");
    if (rows.count == 0) die("no row has such a name", options.choice.filter != NULL ? options.choice.filter : "");
    open_bench(&bench, &options, &rows);
    run(&bench, &rows, &machine, &options);
    close_bench(&bench);
    rows_free(&rows);
    return 0;
}
