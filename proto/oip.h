// SPDX-License-Identifier: Apache-2.0
//
// The Open Inference Protocol (KServe V2) with Triton's binary tensor extension: a layer is a model, its version always
// "1". An infer request is a call whose kind stands in its parameter `mode`: inference (the default), train-forward or
// backward. Inputs are x, dout and residual, outputs y, batch_mean and batch_var, or dx, dgamma, dbeta and dresidual;
// those with a value for each channel are FP64 of shape [C], and [0] where the JSON form has null. Other fields of a
// call are parameters: cache, channel_axis, activation, and of backward frozen (mode "inference" of the JSON form), lr
// and weight_decay. Scalars of a reply are parameters of it, the version of the state as state_version. The protocol:
// https://github.com/kserve/open-inference-protocol, and its extensions:
// https://github.com/triton-inference-server/server/tree/main/docs/protocol
//
// A tensor is JSON (`data`, flat or nested) or binary, each as its request says; y and dx have the datatype of x and
// dout. A binary input lies in the body and is read there: no copy, if it is aligned (see oip_padding).
//
// As all decoders and encoders (codec.h), but that its errors have a pointer, and say where they point in words too.
#ifndef NORMD_PROTO_OIP_H
#define NORMD_PROTO_OIP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "codec.h"
#include "json.h"

#define OIP_VERSION "1"

// ---- infer

// Indexed by enum msg_output.
extern const char *const oip_output_names[MSG_OUTPUTS];

struct oip_request {
    struct buffer *body;            // taken over; empty after
    size_t start;                   // bytes of it before the request
    bool has_header;                // whether Inference-Header-Content-Length was given,
    uint64_t header;                // and what it says; 0: the request is raw, x and nothing else
    struct budget *budget;          // what tensors are charged to
    struct ahead *ahead;            // what was read of the request while it arrived (ahead.h); NULL: nothing
    const char *model;              // the layer's name; borrowed by the call
    const struct msg_config *layer; // and its configuration
};

// The call, with what its reply is to have in call->infer; *kind says what to do.
bool oip_decode(struct msg_call *call, enum msg_call_kind *kind, const struct oip_request *request,
                struct msg_error *error);

// Bytes that are best put before a request whose header is that long, so that the tensors behind it are aligned.
size_t oip_padding(uint64_t header);

// What later steps say of a call is of the fields that all forms have. Makes the error one of an infer request: its
// pointer leads to the input or the parameter.
void oip_place_error(struct msg_error *error, const struct msg_infer *infer);

size_t oip_reply_room(const struct msg_infer *infer, const struct tensor *like, size_t channels);

// extra->infer must be set. Binary outputs are among the pieces, and their total makes the reply one of
// application/octet-stream with Inference-Header-Content-Length.
bool oip_encode_train(struct buffer *out, struct msg_extra *extra, const struct msg_train_reply *reply,
                      struct tensor *y);
bool oip_encode_inference(struct buffer *out, struct msg_extra *extra, struct tensor *y, uint64_t version);
bool oip_encode_backward(struct buffer *out, struct msg_extra *extra, const struct msg_backward_reply *reply,
                         struct tensor *dx, struct tensor *dresidual);

// A problem with the member `error`, its detail once more. The detail names the layer (NULL: there is none) and the
// place that the pointer leads to.
bool oip_encode_error(struct buffer *out, const struct msg_error *error, const char *layer);

// ---- models

// The shape of x as a model has it, of the least rank that the layer takes: -1 is any length. Returns the rank.
int oip_shape(int64_t dim[TENSOR_MAX_RANK], const struct msg_config *layer);

bool oip_encode_server(struct buffer *out, const char *version);
bool oip_encode_model(struct buffer *out, const char *name, const struct msg_config *layer);
bool oip_encode_ready(struct buffer *out, const char *name);
bool oip_encode_config(struct buffer *out, const char *name, const struct msg_config *layer);

struct oip_duration {
    uint64_t count, ns; // how many calls, and how long all of them took
};

// Of calls since the process started.
struct oip_stats {
    const char *name;
    uint64_t last_ms; // of the last call, since 1970; 0: none
    struct oip_duration success, fail, queue, input, infer, output;
    uint64_t bytes; // of memory that the layer takes
};

// A layer takes no more of either list.
#define OIP_LISTED_MAX ((size_t)1536)

// {"model_stats": [...]}: begin, each with its index, end.
bool oip_begin_stats(struct buffer *out);
bool oip_put_stats(struct buffer *out, const struct oip_stats *stats, size_t index);
bool oip_end_stats(struct buffer *out);

// ---- the repository

// The body of an index request: empty, or {"ready": bool}. Every layer is ready, so that it makes no difference.
bool oip_check_index(struct json_body body, struct msg_error *error);

// The body of a load request: empty, or an object; what it says must not ask for another model than there is.
bool oip_check_load(struct json_body body, struct msg_error *error);

// [...]: begin, each name with its index, end.
bool oip_begin_index(struct buffer *out);
bool oip_put_index(struct buffer *out, const char *name, size_t index);
bool oip_end_index(struct buffer *out);

#endif
