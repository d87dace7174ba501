// SPDX-License-Identifier: Apache-2.0
//
// What is measured: one row is one call on one tensor, in one type and layout, on a number of threads.
#ifndef NORMD_BENCH_ROWS_H
#define NORMD_BENCH_ROWS_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/bn.h"

enum call { CALL_TRAIN, CALL_INFERENCE, CALL_BACKWARD, CALLS };
enum layout { LAYOUT_FIRST, LAYOUT_LAST, LAYOUT_PLAIN, LAYOUTS }; // plain: (N,C), where first and last are the same

struct row {
    size_t dims[4]; // N, C, then L, or H and W; always in this order
    unsigned rank;  // 2 to 4
    enum layout layout;
    enum bn_dtype dtype;
    enum call call;
    unsigned threads;
    char name[64]; // call, dimensions, layout, type and threads, as in "train-forward 50x256x56x56 nchw f32 2t"
};

struct rows {
    struct row *at;
    size_t count;
};

struct rows_choice {
    const char *filter;   // words that a name must hold, all of them; NULL: any name
    unsigned dtypes;      // bit 1 << enum bn_dtype
    unsigned calls;       // bit 1 << enum call
    unsigned threads[16]; // ascending
    unsigned thread_counts;
};

// Rows in the order in which they are to run: those of one type together. Returns false without memory.
bool rows_make(struct rows *rows, const struct rows_choice *choice);
void rows_free(struct rows *rows);

const char *call_name(enum call call);
const char *dtype_name(enum bn_dtype dtype);
const char *row_layout_name(const struct row *row);
// Returns room, which holds e.g. "50x256x56x56".
const char *row_dims_name(char room[32], const struct row *row);

struct bn_shape row_shape(const struct row *row);
size_t row_bytes(const struct row *row); // of one tensor
// Bytes that the call has to move at least: x, dout and dx of a backward, x and y of the others.
size_t row_traffic(const struct row *row);

#endif
