// SPDX-License-Identifier: Apache-2.0
//
// The JSON codec: decodes request bodies into messages and encodes replies. Tensors and vectors are read and written
// directly (scan.h, number.h); only the small rest of a body goes through jansson, under a limit of its own.
//
// Decoders return false where `error` was filled in; what they allocated is in the message all the same, for its
// msg_*_free. Encoders append to `out` and return false where it cannot grow. Any thread.
#ifndef NORMD_PROTO_JSON_H
#define NORMD_PROTO_JSON_H

#include <stdbool.h>
#include <stddef.h>

#include "buffer.h"
#include "message.h"
#include "number.h"

// What a body holds besides tensors and vectors may be this long; longer is 413.
#define JSON_REST_MAX ((size_t)64 * 1024)

struct ahead;

struct json_body {
    const char *text;
    size_t length;
    struct budget *budget; // what tensors are charged to
    struct ahead *ahead;   // what was read of it while it arrived (ahead.h); NULL: nothing
};

// PUT of a layer: the configuration, or what GET gives (its "layer"), in which `name` must be the layer's.
bool json_decode_config(struct msg_config *config, struct json_body body, const char *name, struct msg_error *error);
// PATCH of a layer: momentum, eps, nonfinite, single_value.
bool json_decode_config_patch(struct msg_config *config, struct json_body body, struct msg_error *error);

bool json_decode_call(struct msg_call *call, enum msg_call_kind kind, struct json_body body, enum bn_dtype dtype,
                      struct msg_error *error);
bool json_decode_state(struct msg_state *state, struct json_body body, struct msg_error *error);
bool json_decode_snapshot(struct msg_snapshot *snapshot, struct json_body body, struct msg_error *error);

// Bytes that encoding a tensor of this shape and form takes at most.
size_t json_tensor_room(const struct tensor *like);
// Bytes that a vector of n doubles takes at most.
size_t json_vector_room(size_t n);
// Writes n values with a comma between each two; those that are not finite are strings. The caller has made JSON_*_ROOM
// for each, and NUMBER_SLACK behind the last one.
char *json_write_values(char *at, const void *values, enum bn_dtype dtype, size_t n);
#define JSON_F32_ROOM (NUMBER_F32_MAX + 1)
#define JSON_F64_ROOM (NUMBER_F64_MAX + 1)

// Bytes that the rest of any reply takes at most, apart from names in lists.
#define JSON_REPLY_ROOM ((size_t)2048)

// Replies. `y`, `dx` and `dresidual` (NULL: no such field) hold the values and, by shape, form and wire, how they are
// written.
bool json_encode_train(struct buffer *out, const struct msg_train_reply *reply, const struct tensor *y);
bool json_encode_inference(struct buffer *out, const struct tensor *y, uint64_t version);
bool json_encode_backward(struct buffer *out, const struct msg_backward_reply *reply, const struct tensor *dx,
                          const struct tensor *dresidual);
bool json_encode_config(struct buffer *out, const struct msg_config *config, double new_weight, int running_ddof);
bool json_encode_layer(struct buffer *out, const struct msg_layer *layer);
bool json_encode_error(struct buffer *out, const struct msg_error *error);
// The same with another detail (cut at JSON_DETAIL_MAX), which stands in `error` too where that is wanted.
#define JSON_DETAIL_MAX (MSG_NAME_MAX + MSG_DETAIL_MAX + MSG_POINTER_MAX + 32)
bool json_encode_problem(struct buffer *out, const struct msg_error *error, const char *detail, bool in_error);

// {"layers": [...], "next_cursor": ...}: begin, each layer with its index, end. cursor NULL: null.
bool json_begin_list(struct buffer *out);
bool json_list_layer(struct buffer *out, const struct msg_layer *layer, size_t index);
bool json_end_list(struct buffer *out, const char *cursor);

// How much of a state was written; zeroed: nothing.
struct json_progress {
    int part;
    size_t next; // value of a vector
};

// A state is written piece by piece, so that a large one needs memory for a piece only: appends what comes next, as
// much as there is room for in `out`, which does not grow. True once the state is complete. With room for
// JSON_PIECE_MIN something is always written.
bool json_state_piece(struct buffer *out, const struct msg_state_view *state, struct json_progress *progress);
#define JSON_PIECE_MIN (2 * JSON_REPLY_ROOM)

// What follows a state that is the whole reply.
bool json_end_state(struct buffer *out);

// {"layers": {"NAME": state, ...}}: begin, each name with its index and its state, end. Of these, JSON_REPLY_ROOM takes
// one of each.
bool json_begin_snapshot(struct buffer *out);
bool json_snapshot_name(struct buffer *out, const char *name, size_t index);
bool json_end_snapshot(struct buffer *out);

// {"layers": {"NAME": version, ...}, "ignored": ["NAME", ...]}: layers, then what was ignored, whose names may be any
// text. Of the latter, each takes json_ignored_room.
bool json_begin_restored(struct buffer *out);
bool json_restored_layer(struct buffer *out, const char *name, uint64_t version, size_t index);
bool json_begin_ignored(struct buffer *out);
bool json_ignored_name(struct buffer *out, const char *name, size_t index);
bool json_end_restored(struct buffer *out);
size_t json_ignored_room(const char *name);

// {"version", "cpu", "threads", "store"}
bool json_encode_version(struct buffer *out, const char *version, const char *cpu, unsigned threads, const char *store);

#endif
