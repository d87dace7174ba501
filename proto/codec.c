// SPDX-License-Identifier: Apache-2.0
#include "codec.h"

#include "json.h"
#include "npy.h"
#include "oip.h"
#include "safetensors.h"

// ---- JSON, which keeps everything in its body

static struct json_body json_body_of(const struct codec_request *request) {
    return (struct json_body){.text = (const char *)request->body->data,
                              .length = request->body->size,
                              .budget = request->budget,
                              .ahead = request->ahead};
}

// What stands in the query must not be passed over in silence.
static bool refuse_options(const struct codec_request *request, struct msg_error *error) {
    return request->options.count == 0 ||
           msg_fail(error, MSG_BAD_PARAMETER, NULL, "%s is a field of the body here; in the query it is for npy",
                    request->options.option[0].name);
}

static bool decode_json_call(struct msg_call *call, enum msg_call_kind kind, const struct codec_request *request,
                             enum bn_dtype dtype, struct msg_error *error) {
    if (!refuse_options(request, error) || !json_decode_call(call, kind, json_body_of(request), dtype, error))
        return false;
    msg_call_trim(call);
    return true;
}

static bool decode_json_state(struct msg_state *state, const char *name, const struct codec_request *request,
                              struct msg_error *error) {
    (void)name;
    return json_decode_state(state, json_body_of(request), error);
}

static bool decode_json_snapshot(struct msg_snapshot *snapshot, const struct codec_request *request,
                                 struct msg_error *error) {
    return json_decode_snapshot(snapshot, json_body_of(request), error);
}

static size_t json_room(const struct msg_extra *extra, const struct tensor *like, size_t tensors, size_t channels) {
    (void)extra;
    return tensors * json_tensor_room(like) + 2 * json_vector_room(channels) + JSON_REPLY_ROOM;
}

static bool encode_json_train(struct buffer *out, struct msg_extra *extra, const struct msg_train_reply *reply,
                              struct tensor *y) {
    (void)extra;
    return json_encode_train(out, reply, y);
}

static bool encode_json_inference(struct buffer *out, struct msg_extra *extra, struct tensor *y, uint64_t version) {
    (void)extra;
    return json_encode_inference(out, y, version);
}

static bool encode_json_backward(struct buffer *out, struct msg_extra *extra, const struct msg_backward_reply *reply,
                                 struct tensor *dx, struct tensor *dresidual) {
    (void)extra;
    return json_encode_backward(out, reply, dx, dresidual);
}

// ---- the table

static size_t npy_room(const struct msg_extra *extra, const struct tensor *like, size_t tensors, size_t channels) {
    (void)extra;
    (void)like;
    (void)tensors;
    (void)channels;
    return NPY_HEADER_MAX;
}

static size_t oip_room(const struct msg_extra *extra, const struct tensor *like, size_t tensors, size_t channels) {
    (void)tensors;
    return oip_reply_room(extra->infer, like, channels);
}

static size_t safetensors_room(const struct msg_extra *extra, const struct tensor *like, size_t tensors,
                               size_t channels) {
    (void)extra;
    (void)like;
    (void)tensors;
    (void)channels;
    return SAFETENSORS_HEADER_MAX;
}

const struct codec codecs[CODEC_FORMS] = {
    [CODEC_JSON] = {"application/json", false, decode_json_call, json_room, encode_json_train, encode_json_inference,
                    encode_json_backward, decode_json_state, decode_json_snapshot},
    [CODEC_NPY] = {"application/x-npy", true, npy_decode_call, npy_room, npy_encode_train, npy_encode_inference,
                   npy_encode_backward, NULL, NULL},
    [CODEC_SAFETENSORS] = {"application/vnd.safetensors", true, safetensors_decode_call, safetensors_room,
                           safetensors_encode_train, safetensors_encode_inference, safetensors_encode_backward,
                           safetensors_decode_state, safetensors_decode_snapshot},
    [CODEC_OIP] = {"application/json", true, NULL, oip_room, oip_encode_train, oip_encode_inference,
                   oip_encode_backward, NULL, NULL},
};

size_t codec_values_room(const struct codec *codec, const struct tensor *like) {
    const size_t computed = bn_dtype_size(like->dtype), sent = codec->binary ? wire_dtypes[like->wire].size : 0;
    return like->count * (sent > computed ? sent : computed) + 1;
}
