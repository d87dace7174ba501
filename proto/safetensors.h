// SPDX-License-Identifier: Apache-2.0
//
// The safetensors codec: named tensors in one file, little-endian and in C order, behind a header in JSON.
// The format: https://github.com/huggingface/safetensors#format
//
// A call has the tensors x, dout and residual, of F32, F64, F16 or BF16; a reply y, dx and dresidual, of the dtype of
// the request's x (dout), and batch_mean, batch_var, dgamma and dbeta as F64. Other fields stand in __metadata__, each
// value the JSON text of the field; so does null for a vector that there is not. A state has the names of PyTorch,
// NAME.weight, .bias, .running_mean, .running_var as F64, .num_batches_tracked as I64 of shape [], and under NAME in
// __metadata__ the configuration of the layer.
//
// As all decoders and encoders (codec.h).
#ifndef NORMD_PROTO_SAFETENSORS_H
#define NORMD_PROTO_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "codec.h"

// Whether a body begins as a file does: the length of a header that fits into it, and an object. No JSON text does, for
// the last byte of the length of anything that fits into memory is 0, which stands in no text.
bool safetensors_begins(const unsigned char *data, size_t size);

bool safetensors_decode_call(struct msg_call *call, enum msg_call_kind kind, const struct codec_request *request,
                             enum bn_dtype dtype, struct msg_error *error);

// The names of the file are those of PyTorch with `name` and a point before them, or without.
bool safetensors_decode_state(struct msg_state *state, const char *name, const struct codec_request *request,
                              struct msg_error *error);

// A layer is each prefix that has running_mean and running_var, and each for which __metadata__ has a configuration.
// Other tensors are listed in the snapshot as ignored, other metadata are passed over. F32, F16 and BF16 are read too;
// a layer without num_batches_tracked, as old files have them, has counted 0.
bool safetensors_decode_snapshot(struct msg_snapshot *snapshot, const struct codec_request *request,
                                 struct msg_error *error);

// The most bytes of the header of a call's reply.
#define SAFETENSORS_HEADER_MAX ((size_t)2048)

bool safetensors_encode_train(struct buffer *out, struct msg_extra *extra, const struct msg_train_reply *reply,
                              struct tensor *y);
bool safetensors_encode_inference(struct buffer *out, struct msg_extra *extra, struct tensor *y, uint64_t version);
bool safetensors_encode_backward(struct buffer *out, struct msg_extra *extra, const struct msg_backward_reply *reply,
                                 struct tensor *dx, struct tensor *dresidual);

// States as one file, written piece by piece. Its header says how long it is and names every layer twice, before the
// values come: so the states are given in the same order four times, first to safetensors_measure, then after
// safetensors_begin for their metadata, after safetensors_begin_index for their tensors, and after
// safetensors_begin_data for their values. Zeroed, it is a new one.
struct safetensors_states {
    uint64_t header; // bytes so far
    uint64_t data;   // bytes of values so far, of the index at hand
    size_t layers;   // named so far
};

// A header may be this long; readers refuse a longer one.
#define SAFETENSORS_READABLE UINT64_C(100000000)

// Counts a layer in; afterwards header is what the header takes.
void safetensors_measure(struct safetensors_states *file, const char *name, const struct msg_state_view *state);

// Each writes no more than this.
#define SAFETENSORS_LAYER_MAX ((size_t)2560)
bool safetensors_begin(struct safetensors_states *file, struct buffer *out);
bool safetensors_metadata(struct safetensors_states *file, struct buffer *out, const char *name,
                          const struct msg_state_view *state);
bool safetensors_begin_index(struct safetensors_states *file, struct buffer *out);
bool safetensors_index(struct safetensors_states *file, struct buffer *out, const char *name,
                       const struct msg_state_view *state);
bool safetensors_begin_data(struct safetensors_states *file, struct buffer *out);

// Appends what comes next of the values of a state, as much as there is room for in `out`, which does not grow; *next,
// from 0 on, tells how far that is. True once they are complete. With room for 8 bytes something is always written.
bool safetensors_data(struct buffer *out, const struct msg_state_view *state, size_t *next);

#endif
