// SPDX-License-Identifier: Apache-2.0
//
// Private to the scan files: numbers in nested arrays, read one bracket or value at a time.
#ifndef NORMD_PROTO_SCAN_NEST_H
#define NORMD_PROTO_SCAN_NEST_H

#include <stdbool.h>
#include <stddef.h>

#include "buffer.h"
#include "scan.h"
#include "tensor.h"

// A run of values of one type that grows as it is read.
struct sink {
    struct buffer *values; // borrowed
    enum bn_dtype dtype;
    size_t guess; // how many values there may be: that much room is made as reading starts
    size_t count;
    size_t first_nonfinite; // SIZE_MAX: none so far
};

// The walk through nested arrays: index[l] is the position within the array open at level l, of which `level` are open.
struct nest {
    size_t index[TENSOR_MAX_RANK];
    size_t dim[TENSOR_MAX_RANK]; // SIZE_MAX: not known yet
    int level;
    int leaf; // the number of arrays around an element; 0: not known yet
};

enum nest_result {
    NEST_OK,
    NEST_MALFORMED, // the walk is over
    NEST_REFUSED,   // the error is set, the value at hand is not consumed
};

// How many values there may be in a text of so many bytes, as first guessed.
size_t scan_guess(size_t text);

// `values` are charged to the scan's budget from here on. guess may be 0.
struct sink scan_sink_start(const struct scan *scan, struct buffer *values, enum bn_dtype dtype, size_t guess);

// Makes room for about as many values out of a block that lies ready. False where there is none.
bool scan_sink_reserve_ready(struct sink *sink, size_t guess);

// Steps into the outermost array, whose bracket stands at scan->at.
enum nest_result scan_nest_open(struct scan *scan, struct nest *nest, struct sink *sink);

// Reads one value or bracket, with the comma that must stand before it. nest->level is 0 behind the last bracket.
enum nest_result scan_nest_step(struct scan *scan, struct nest *nest, struct sink *sink);

// Reads all of it. Where the arrays are refused, they are walked again from the start, for their grammar alone.
bool scan_nest_read(struct scan *scan, struct nest *nest, struct sink *sink);

// How deep the arrays are nested; their lengths are nest->dim.
int scan_nest_rank(const struct nest *nest);

#endif
