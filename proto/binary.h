// SPDX-License-Identifier: Apache-2.0
//
// Tensors of the binary forms: read where they lie in the body, and sent from where they were computed. A file's header
// is its codec's (npy.h, safetensors.h); here is what becomes of the elements.
#ifndef NORMD_PROTO_BINARY_H
#define NORMD_PROTO_BINARY_H

#include <stdbool.h>
#include <stddef.h>

#include "buffer.h"
#include "message.h"
#include "tensor.h"

// Elements are taken and sent as they lie in memory, and the wire is little-endian.
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the binary forms need a little-endian machine");

// Makes a tensor, whose dim, rank, count and wire are set, of its elements at `at` in the body: in their place, or,
// where they are wider in `dtype`, in memory of its own that is charged to `budget`. Elements that are not aligned are
// moved down, but not below *floor: bytes from there on to `at` must be of no use any more. *floor is set to where in
// the body the tensor ends, if it lies there. False where `error` was filled in; `name` is what it calls the tensor.
bool binary_take(struct tensor *tensor, const struct buffer *body, size_t at, size_t *floor, enum bn_dtype dtype,
                 const char *name, struct budget *budget, struct msg_error *error);

// Turns the values of a tensor into elements of its wire type, in their place (see codec_values_room), and adds them to
// what is sent. The tensor keeps the memory and is of no other use after.
void binary_send(struct msg_extra *extra, struct tensor *tensor);

// Adds a vector to what is sent.
void binary_send_vector(struct msg_extra *extra, const double *values, size_t n);

// Reverses the bytes of n elements of this size, in their place.
void binary_swap(unsigned char *raw, size_t size, size_t n);

#endif
