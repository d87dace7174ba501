// SPDX-License-Identifier: Apache-2.0
//
// The npy codec: a body is x (backward: dout) as a NumPy .npy file, the reply is y (dx) as one. Versions 1 to 3; f2, f4
// and f8 of either byte order, in C or Fortran order, and bf16 as raw V2 where the option dtype says so. The other
// fields of a call are options of the query, scalars of the reply are fields of its head, vectors are left out.
// The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
//
// As all decoders and encoders (codec.h). A reply is in C order, of the dtype of the request's tensor.
#ifndef NORMD_PROTO_NPY_H
#define NORMD_PROTO_NPY_H

#include <stdbool.h>
#include <stddef.h>

#include "codec.h"

// True where the bytes begin as an npy file does. No JSON text does.
bool npy_begins(const unsigned char *data, size_t size);

// Elements of an f32 layer that are '<f4', or of an f64 layer '<f8', stay where they are in the body; others are
// converted, in their place where they are not narrower.
bool npy_decode_call(struct msg_call *call, enum msg_call_kind kind, const struct codec_request *request,
                     enum bn_dtype dtype, struct msg_error *error);

// The most bytes of a header that is written.
#define NPY_HEADER_MAX ((size_t)320)

bool npy_encode_train(struct buffer *out, struct msg_extra *extra, const struct msg_train_reply *reply,
                      struct tensor *y);
bool npy_encode_inference(struct buffer *out, struct msg_extra *extra, struct tensor *y, uint64_t version);
// dresidual is left out.
bool npy_encode_backward(struct buffer *out, struct msg_extra *extra, const struct msg_backward_reply *reply,
                         struct tensor *dx, struct tensor *dresidual);

#endif
