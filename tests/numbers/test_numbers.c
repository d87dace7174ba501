// SPDX-License-Identifier: Apache-2.0
//
// proto/number.h against exact integers. Without options a sample of a few seconds, the same in every run, as part of
// `make test`; `make test-numbers` runs all f32 there are, 10^9 random f64 and the cases that hard.py finds. Prints TAP
// and a last line of totals.
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "texts.h"
#include "work.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

struct options {
    uint64_t f32_stride; // one of so many f32 is checked
    uint64_t f64;        // so many random f64
    uint64_t decimals;   // so many random texts
    uint64_t halfway;    // so many middles of two values
    const char *hard;    // file of hard.py, or NULL
    uint64_t seed;
    int threads;
};

// ---- the checks of a value by its index

// Every one in 64 by libc too, and all around the powers of two.
static bool check_f32(const struct work *work, uint64_t index) {
    const uint64_t stride = *(const uint64_t *)work->data;
    const uint32_t bits = (uint32_t)(index * stride);
    const uint32_t fraction = bits & 0x7fffff;
    if (!isfinite(f32_of(bits))) return true;
    return check_write_f32(bits, index % 64 == 0 || fraction < 256 || fraction > 0x7fffff - 256);
}

// Bits at random, and one in eight the result of a computation with few digits.
static bool check_f64(const struct work *work, uint64_t index) {
    uint64_t bits = random_of(work, index, 0);
    if (index % 8 == 0) {
        static const double powers[] = {1, 10, 100, 1e3, 1e6, 1e9, 1e22};
        const double few = (double)(bits >> (20 + bits % 40));
        bits = bits_of_f64(few / powers[bits / 64 % COUNT(powers)]);
    }
    return !isfinite(f64_of(bits)) || check_write_f64(bits, index % 64 == 0);
}

static bool check_decimal(const struct work *work, uint64_t index) {
    char text[TEXT_SIZE];
    const struct decimal d = random_decimal(text, work, index);
    return check_read(text, d);
}

// Every other one is subnormal; the first ones are the ends of the ranges.
static bool check_halfway(const struct work *work, uint64_t index) {
    const uint64_t random = random_of(work, index, 0);
    const uint64_t ends_f64[] = {0, 1, 2, 0xffffffffffffe, 0xfffffffffffff, 0x10000000000000, 0x7fefffffffffffff};
    const uint32_t ends_f32[] = {0, 1, 2, 0x7ffffe, 0x7fffff, 0x800000, 0x7f7fffff};
    if (index < COUNT(ends_f64)) return check_halfway_f64(ends_f64[index]) && check_halfway_f32(ends_f32[index]);
    const bool f64 = check_halfway_f64(random % (index % 2 == 0 ? 0x7ff0000000000000 : 0x10000000000000));
    const bool f32 = check_halfway_f32((uint32_t)(random % (index % 2 == 0 ? 0x7f800000 : 0x800000)));
    return f64 && f32;
}

// ---- powers and their neighbours

#define AROUND 8
#define NEIGHBOURS (2 * AROUND + 1)
#define BINADES (2046 + 52)
#define DECADES (308 + 324 + 1)

// The value at a distance from the base, where there is one.
static bool check_around_f64(uint64_t base, int64_t distance) {
    const uint64_t bits = base + (uint64_t)distance;
    return bits >= 0x7ff0000000000000 || check_write_f64(bits, true);
}

static bool check_around_f32(uint32_t base, int64_t distance) {
    const uint32_t bits = base + (uint32_t)distance;
    return bits >= 0x7f800000 || check_write_f32(bits, true);
}

static bool check_power_of_2(const struct work *work, uint64_t index) {
    (void)work;
    const int64_t distance = (int64_t)(index % NEIGHBOURS) - AROUND;
    const double power = ldexp(1, (int)(index / NEIGHBOURS) - 1074);
    const bool f64 = check_around_f64(bits_of_f64(power), distance);
    return check_around_f32(bits_of_f32((float)power), distance) && f64;
}

static bool check_power_of_10(const struct work *work, uint64_t index) {
    (void)work;
    const int64_t distance = (int64_t)(index % NEIGHBOURS) - AROUND;
    char text[16];
    snprintf(text, sizeof text, "1e%d", (int)(index / NEIGHBOURS) - 324);
    const double power = strtod(text, NULL);
    const bool f64 = check_around_f64(bits_of_f64(power), distance);
    return check_around_f32(bits_of_f32((float)power), distance) && f64;
}

static bool check_smallest(const struct work *work, uint64_t index) {
    (void)work;
    const bool f64 = check_write_f64(index, true) && check_write_f64(bits_of_f64((double)index), true);
    return check_write_f32((uint32_t)index, true) && check_write_f32(bits_of_f32((float)index / 1000), true) && f64;
}

// ---- the cases of a file

// A line is `read64 TEXT BITS`, `read32 TEXT BITS` or `write64 BITS`.
static bool check_line(const struct work *work, uint64_t index) {
    const char *const line = ((char *const *)work->data)[index];
    char text[TEXT_SIZE];
    uint64_t bits;
    if (sscanf(line, "write64 %" SCNx64, &bits) == 1) return check_write_f64(bits, true);
    if (sscanf(line, "read64 %1200s %" SCNx64, text, &bits) == 2) return check_read_f64(text, bits);
    if (sscanf(line, "read32 %1200s %" SCNx64, text, &bits) == 2) return check_read_f32(text, (uint32_t)bits);
    wrong("not a case: %s", line);
    return false;
}

// The lines of a file, allocated for good, and how many.
static uint64_t read_lines(char ***lines, const char *path) {
    FILE *const file = fopen(path, "r");
    if (file == NULL) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        exit(2);
    }
    uint64_t count = 0;
    char *line = NULL;
    size_t room = 0;
    *lines = NULL;
    while (getline(&line, &room, file) > 0) {
        if ((count & (count - 1)) == 0) *lines = realloc(*lines, (count > 0 ? 2 * count : 1) * sizeof **lines);
        if (*lines == NULL) abort();
        line[strcspn(line, "\n")] = '\0';
        (*lines)[count++] = line;
        line = NULL;
        room = 0;
    }
    free(line);
    fclose(file);
    return count;
}

// ---- options

static const char usage[] =
    "usage: test_numbers [--all] [OPTION VALUE]...\n"
    "  --all             every f32, 1e9 random f64, 1e9 random texts, 2e6 middles; what follows may take less\n"
    "  --f32 STRIDE      one f32 in so many (0: none)\n"
    "  --f64 COUNT       random f64 to write and read back\n"
    "  --decimals COUNT  random texts to read\n"
    "  --halfway COUNT   middles of two values to read, in all their digits\n"
    "  --hard FILE       the cases in it, made by hard.py\n"
    "  --seed NUMBER     of what is random\n"
    "  --threads COUNT\n";

static uint64_t number_of(const char *text) {
    char *end = NULL;
    const double number = text == NULL ? -1 : strtod(text, &end);
    if (number < 0 || number > 1e18 || *end != '\0') {
        fputs(usage, stderr);
        exit(2);
    }
    return (uint64_t)number;
}

static void take_option(struct options *o, const char *name, const char *value) {
    const struct {
        const char *name;
        uint64_t *count;
    } counts[] = {{"--f32", &o->f32_stride},
                  {"--f64", &o->f64},
                  {"--decimals", &o->decimals},
                  {"--halfway", &o->halfway},
                  {"--seed", &o->seed}};
    for (size_t i = 0; i < COUNT(counts); i++) {
        if (strcmp(name, counts[i].name) == 0) {
            *counts[i].count = number_of(value);
            return;
        }
    }
    if (strcmp(name, "--hard") == 0 && value != NULL) {
        o->hard = value;
    } else {
        const uint64_t threads = strcmp(name, "--threads") == 0 ? number_of(value) : number_of(NULL);
        o->threads = threads < 256 ? (int)threads : 256;
    }
}

static struct options options_of(int argc, char **argv) {
    const char *const scale_text = getenv("NORMD_TEST_SCALE");
    const double scale = scale_text != NULL && atof(scale_text) > 0 ? atof(scale_text) : 1;
    struct options o = {.f32_stride = (uint64_t)(4001 / scale) | 1,
                        .f64 = (uint64_t)(1e6 * scale),
                        .decimals = (uint64_t)(1e6 * scale),
                        .halfway = (uint64_t)(2000 * scale),
                        .seed = 1,
                        .threads = (int)sysconf(_SC_NPROCESSORS_ONLN)};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--all") == 0) {
            o.f32_stride = 1;
            o.f64 = o.decimals = 1000000000;
            o.halfway = 2000000;
        } else {
            take_option(&o, argv[i], argv[i + 1]);
            i++;
        }
    }
    return o;
}

int main(int argc, char **argv) {
    const struct options o = options_of(argc, argv);
    char **lines = NULL;
    const uint64_t hard = o.hard != NULL ? read_lines(&lines, o.hard) : 0;
    const uint64_t f32 = o.f32_stride > 0 ? UINT32_MAX / o.f32_stride + 1 : 0;
    const struct work works[] = {
        {"powers of two and their neighbours", (uint64_t)BINADES * NEIGHBOURS, o.seed, NULL, check_power_of_2},
        {"powers of ten and their neighbours", (uint64_t)DECADES * NEIGHBOURS, o.seed, NULL, check_power_of_10},
        {"the smallest values", 10000, o.seed, NULL, check_smallest},
        {"middles of two values", o.halfway, o.seed, NULL, check_halfway},
        {"hard cases", hard, o.seed, lines, check_line},
        {"f32 written and read back", f32, o.seed, &o.f32_stride, check_f32},
        {"f64 written and read back", o.f64, o.seed, NULL, check_f64},
        {"decimals read", o.decimals, o.seed, NULL, check_decimal},
    };
    exact_start();
    printf("# seed %" PRIu64 ", %d threads\n", o.seed, o.threads);
    int failed = 0;
    int number = 0;
    for (size_t i = 0; i < COUNT(works); i++) {
        if (works[i].total == 0) continue;
        const uint64_t wrongs = work_run(&works[i], o.threads);
        failed += wrongs > 0;
        if (wrongs > 0) printf("# %" PRIu64 " wrong\n", wrongs);
        printf("%s %d - %s: %" PRIu64 "\n", wrongs > 0 ? "not ok" : "ok", ++number, works[i].name, works[i].total);
        fflush(stdout);
    }
    printf("1..%d\n%d passed, %d failed\n", number, number - failed, failed);
    return failed > 0;
}
