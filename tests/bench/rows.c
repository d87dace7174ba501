// SPDX-License-Identifier: Apache-2.0
#include "rows.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// f64 is run on some shapes only.
static const struct shape {
    size_t dims[4];
    unsigned rank;
    bool f64;
} shapes[] = {
    // ResNet-50 at batch 50
    {{50, 64, 112, 112}, 4, false}, {{50, 256, 56, 56}, 4, true},
    {{50, 64, 56, 56}, 4, false},   {{50, 512, 28, 28}, 4, false},
    {{50, 128, 28, 28}, 4, false},  {{50, 1024, 14, 14}, 4, false},
    {{50, 256, 14, 14}, 4, false},  {{50, 2048, 7, 7}, 4, false},
    {{50, 512, 7, 7}, 4, true},     {{50, 100, 27, 27}, 4, false}, // multiples of no vector
    {{32, 256, 1024}, 3, false},    {{4, 4}, 2, false},            // 64 bytes of f32
    {{32, 64}, 2, false},           {{256, 1024}, 2, false},
    {{1024, 256}, 2, false},        {{4096, 64}, 2, false},
    {{4096, 1000}, 2, false},       {{4096, 1024}, 2, false},
    {{65536, 64}, 2, true},         {{65536, 100}, 2, false},
    {{4096, 4096}, 2, false},       {{4194304, 1}, 2, false},
    {{1, 64, 256, 256}, 4, false}, // one plane for each channel, and one channel
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static const enum bn_dtype dtypes[] = {BN_F32, BN_BF16, BN_F16, BN_F64};
enum { DTYPES = sizeof dtypes / sizeof dtypes[0] };

const char *call_name(enum call call) {
    static const char *const names[CALLS] = {"train-forward", "inference", "backward"};
    return names[call];
}

const char *dtype_name(enum bn_dtype dtype) {
    switch (dtype) {
    case BN_F32: return "f32";
    case BN_F64: return "f64";
    case BN_F16: return "f16";
    case BN_BF16: return "bf16";
    }
    return "?";
}

const char *row_layout_name(const struct row *row) {
    static const char *const names[LAYOUTS][2] = {{"ncl", "nchw"}, {"nlc", "nhwc"}, {"nc", "nc"}};
    return names[row->layout][row->rank == 4];
}

const char *row_dims_name(char room[32], const struct row *row) {
    const size_t *const d = row->dims;
    switch (row->rank) {
    case 2: snprintf(room, 32, "%zux%zu", d[0], d[1]); break;
    case 3: snprintf(room, 32, "%zux%zux%zu", d[0], d[1], d[2]); break;
    default: snprintf(room, 32, "%zux%zux%zux%zu", d[0], d[1], d[2], d[3]); break;
    }
    return room;
}

struct bn_shape row_shape(const struct row *row) {
    size_t plane = 1;
    for (unsigned i = 2; i < row->rank; i++) plane *= row->dims[i];
    if (row->layout == LAYOUT_FIRST) return (struct bn_shape){row->dims[0], row->dims[1], plane};
    return (struct bn_shape){row->dims[0] * plane, row->dims[1], 1};
}

size_t row_bytes(const struct row *row) {
    const struct bn_shape shape = row_shape(row);
    return shape.outer * shape.channels * shape.inner * bn_dtype_size(row->dtype);
}

size_t row_traffic(const struct row *row) {
    return row_bytes(row) * (row->call == CALL_BACKWARD ? 3 : 2);
}

static void set_name(struct row *row) {
    char dims[32];
    snprintf(row->name, sizeof row->name, "%s %s %s %s %ut", call_name(row->call), row_dims_name(dims, row),
             row_layout_name(row), dtype_name(row->dtype), row->threads);
}

static bool passes(const char *name, const char *filter) {
    char words[128];
    snprintf(words, sizeof words, "%s", filter != NULL ? filter : "");
    char *rest = words;
    for (const char *word; (word = strtok_r(rest, " ", &rest)) != NULL;) {
        if (strstr(name, word) == NULL) return false;
    }
    return true;
}

static void add(struct rows *rows, struct row row, const struct rows_choice *choice) {
    for (unsigned call = 0; call < CALLS; call++) {
        if (!(choice->calls & 1u << call)) continue;
        row.call = (enum call)call;
        for (unsigned t = 0; t < choice->thread_counts; t++) {
            row.threads = choice->threads[t];
            set_name(&row);
            if (passes(row.name, choice->filter)) rows->at[rows->count++] = row;
        }
    }
}

bool rows_make(struct rows *rows, const struct rows_choice *choice) {
    const size_t most = (size_t)DTYPES * SHAPES * 2 * CALLS * choice->thread_counts;
    *rows = (struct rows){.at = calloc(most, sizeof *rows->at)};
    if (rows->at == NULL) return false;
    for (unsigned t = 0; t < DTYPES; t++) {
        if (!(choice->dtypes & 1u << dtypes[t])) continue;
        for (unsigned s = 0; s < SHAPES; s++) {
            if (dtypes[t] == BN_F64 && !shapes[s].f64) continue;
            struct row row = {.rank = shapes[s].rank, .dtype = dtypes[t]};
            memcpy(row.dims, shapes[s].dims, sizeof row.dims);
            row.layout = row.rank == 2 ? LAYOUT_PLAIN : LAYOUT_FIRST;
            add(rows, row, choice);
            row.layout = LAYOUT_LAST;
            if (row.rank > 2) add(rows, row, choice);
        }
    }
    return true;
}

void rows_free(struct rows *rows) {
    free(rows->at);
    *rows = (struct rows){0};
}
