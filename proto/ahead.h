// SPDX-License-Identifier: Apache-2.0
//
// Reading ahead: the number arrays of a JSON text are read while the text arrives.
//
// The walk over a message (scan.h) wants the whole text, but nearly all of its time goes into arrays of numbers, and
// those can be read as far as they have come. Where the walk meets an array that was begun so, it goes on behind what
// was read. Nothing else depends on it: what is wrong in an array, or not of the type that the walk asks for, the walk
// reads again itself, and says what it is.
#ifndef NORMD_PROTO_AHEAD_H
#define NORMD_PROTO_AHEAD_H

#include <stdbool.h>
#include <stddef.h>

#include "buffer.h"
#include "scan.h"
#include "tensor.h"

// One text that arrives. One thread at a time.
struct ahead;
struct nest;
struct sink;

// The arrays are read as `dtype`, or as f64 where a datatype of the Open Inference Protocol says so just before.
// length: what the text will have; 0: not known. budget: what the values are charged to; borrowed. NULL: no memory.
struct ahead *ahead_new(enum bn_dtype dtype, size_t length, struct budget *budget);

// Reads on, as far as values are complete. `text` is the text from its start, of which `length` bytes have come; it may
// lie elsewhere than at the last call.
void ahead_read(struct ahead *ahead, const char *text, size_t length);

// Bytes of values that are charged to the budget. ahead NULL: 0.
size_t ahead_bytes(const struct ahead *ahead);

// If the array at scan->at was read ahead as the sink's type, moves its values and the state of its walk into sink and
// nest, and scan->at behind what was read. ahead NULL: false.
bool ahead_resume(struct ahead *ahead, struct scan *scan, struct nest *nest, struct sink *sink);

// Gives back the memory of what was read, all of which the walk will read; no more is read ahead. NULL is allowed.
void ahead_stop(struct ahead *ahead);

// NULL is allowed.
void ahead_free(struct ahead **ahead);

#endif
