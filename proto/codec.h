// SPDX-License-Identifier: Apache-2.0
//
// The forms in which requests and replies are written, one row each: what server/ knows of a codec. Each has a header
// of its own (json.h, npy.h, safetensors.h, oip.h), which says how it writes what; here is what they have in common.
//
// Decoders return false where `error` was filled in; what they allocated is in the message all the same. Encoders
// append to `out` what they write, put into `extra` what is sent from its place, and return false where `out` cannot
// grow. Only errors of the JSON form have a pointer. Any thread.
#ifndef NORMD_PROTO_CODEC_H
#define NORMD_PROTO_CODEC_H

#include <stdbool.h>
#include <stddef.h>

#include "buffer.h"
#include "message.h"

enum codec_form { CODEC_JSON, CODEC_NPY, CODEC_SAFETENSORS, CODEC_OIP };

#define CODEC_FORMS 4

struct codec_request {
    struct buffer *body; // the binary forms take it over, for tensors to lie in; it is empty after
    struct budget *budget;
    struct ahead *ahead; // what was read of a JSON body while it arrived (ahead.h); NULL: nothing
    struct msg_options options;
};

struct codec {
    const char *media_type;
    bool binary; // the values of tensors are sent from where they lie, changed in their place to what the wire has
    // NULL: the form has requests of its own, which say what call they are (oip.h).
    bool (*decode_call)(struct msg_call *call, enum msg_call_kind kind, const struct codec_request *request,
                        enum bn_dtype dtype, struct msg_error *error);
    // Bytes that a reply takes in `out` at most: so many tensors of this shape and form, and two vectors [channels].
    size_t (*room)(const struct msg_extra *extra, const struct tensor *like, size_t tensors, size_t channels);
    // y, dx and dresidual (NULL: no such field) must have codec_values_room.
    bool (*encode_train)(struct buffer *out, struct msg_extra *extra, const struct msg_train_reply *reply,
                         struct tensor *y);
    bool (*encode_inference)(struct buffer *out, struct msg_extra *extra, struct tensor *y, uint64_t version);
    bool (*encode_backward)(struct buffer *out, struct msg_extra *extra, const struct msg_backward_reply *reply,
                            struct tensor *dx, struct tensor *dresidual);
    // NULL: the form has no states.
    bool (*decode_state)(struct msg_state *state, const char *name, const struct codec_request *request,
                         struct msg_error *error);
    bool (*decode_snapshot)(struct msg_snapshot *snapshot, const struct codec_request *request,
                            struct msg_error *error);
};

extern const struct codec codecs[CODEC_FORMS]; // indexed by enum codec_form

// Bytes that the values of a tensor need to be computed and then sent in their place.
size_t codec_values_room(const struct codec *codec, const struct tensor *like);

#endif
