// SPDX-License-Identifier: Apache-2.0
//
// The memory of all rows: three tensors and four arrays of channels, in one shared mapping that the peers map too, so
// that all work on the same pages. Every page is touched before anything is timed.
//
// The mapping holds x, dout and y (or dx), `room` bytes each, then gamma, beta, mean and var as float[channels].
#ifndef NORMD_BENCH_TENSORS_H
#define NORMD_BENCH_TENSORS_H

#include <stdbool.h>
#include <stddef.h>

#include "rows.h"

struct tensors {
    int fd; // inherited by children
    size_t room;
    size_t channels;
    void *x;
    void *dout;
    void *y;
    float *gamma;
    float *beta;
    float *mean;
    float *var;
};

// Room for the largest of the rows. Returns false, with errno, where it cannot be had.
bool tensors_open(struct tensors *tensors, const struct rows *rows);
void tensors_close(struct tensors *tensors);

// Fills x and dout with numbers of mean 0.5 and standard deviation 1 or so, the same in every run.
void tensors_fill(struct tensors *tensors, enum bn_dtype dtype);

// The element at index i of a tensor.
double element_at(const void *tensor, enum bn_dtype dtype, size_t i);

#endif
