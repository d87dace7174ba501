// SPDX-License-Identifier: Apache-2.0
//
// The reply to an infer request, and errors.
#include "oip.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "binary.h"
#include "oip_inputs.h"

// Bytes of a reply apart from numbers in JSON, at most: the names of layer and id, some scalars, four outputs.
#define HEADER_MAX ((size_t)4096)

// What a reply may have, indexed by enum msg_output; a vector is NULL where the JSON form has null.
struct outputs {
    struct {
        struct tensor *tensor;
        const double *vector;
        size_t length; // of the vector
    } of[MSG_OUTPUTS];
};

// ---- numbers

static bool is_tensor(enum msg_output output) {
    return output == MSG_Y || output == MSG_DX || output == MSG_DRESIDUAL;
}

static size_t numbers_room(enum wire_dtype wire, size_t n) {
    return n * (wire == WIRE_F64 ? JSON_F64_ROOM : JSON_F32_ROOM) + NUMBER_SLACK;
}

size_t oip_reply_room(const struct msg_infer *infer, const struct tensor *like, size_t channels) {
    size_t room = HEADER_MAX;
    for (size_t i = 0; i < infer->output_count; i++) {
        if (infer->outputs[i].binary) continue;
        room += is_tensor(infer->outputs[i].name) ? numbers_room(like->wire, like->count)
                                                  : numbers_room(WIRE_F64, channels);
    }
    return room;
}

// The elements as binary data would have them, so each is rounded to its datatype first. The caller has made room.
static char *write_elements(char *at, const struct tensor *tensor) {
    enum { PIECE = 512 };
    unsigned char raw[PIECE * sizeof(double)];
    double f64[PIECE];
    float f32[PIECE];
    const bool wide = tensor->wire == WIRE_F64;
    for (size_t i = 0; i < tensor->count; i += PIECE) {
        const size_t n = tensor->count - i < PIECE ? tensor->count - i : PIECE;
        tensor_to_wire(raw, tensor->wire, tensor->values.data + i * bn_dtype_size(tensor->dtype), tensor->dtype, n);
        tensor_from_wire(wide ? (void *)f64 : (void *)f32, wide ? BN_F64 : BN_F32, raw, tensor->wire, n);
        if (i > 0) *at++ = ',';
        at = json_write_values(at, wide ? (const void *)f64 : (const void *)f32, wide ? BN_F64 : BN_F32, n);
    }
    return at;
}

static bool put_elements(struct buffer *out, const struct tensor *tensor) {
    if (!buffer_print(out, ",\"data\":[") || !buffer_grow(out, numbers_room(tensor->wire, tensor->count))) return false;
    if (tensor->count > 0) {
        char *const end = write_elements((char *)out->data + out->size, tensor);
        out->size = (size_t)((unsigned char *)end - out->data);
    }
    return buffer_print(out, "]");
}

// ---- outputs

static bool put_shape(struct buffer *out, const struct tensor *tensor) {
    if (!buffer_print(out, ",\"datatype\":\"%s\",\"shape\":[", oip_datatypes[tensor->wire])) return false;
    for (int l = 0; l < tensor->rank; l++) {
        if (!buffer_print(out, l > 0 ? ",%zu" : "%zu", tensor->dim[l])) return false;
    }
    return buffer_print(out, tensor->rank == 0 ? "0]" : "]");
}

static struct tensor vector_tensor(const double *values, size_t n) {
    const size_t count = values != NULL ? n : 0;
    return (struct tensor){.values = {.data = (unsigned char *)(uintptr_t)values},
                           .count = count,
                           .rank = 1,
                           .dim = {count},
                           .dtype = BN_F64,
                           .wire = WIRE_F64};
}

static bool put_output(struct buffer *out, struct msg_extra *extra, const struct outputs *outputs, enum msg_output name,
                       bool binary) {
    struct tensor *const given = outputs->of[name].tensor;
    const double *const values = outputs->of[name].vector;
    const struct tensor vector = vector_tensor(values, outputs->of[name].length);
    const struct tensor *const tensor = given != NULL ? given : &vector;
    if (!buffer_print(out, "{\"name\":\"%s\"", oip_output_names[name]) || !put_shape(out, tensor)) return false;
    if (!binary) return put_elements(out, tensor) && buffer_print(out, "}");
    const size_t size = tensor->count * wire_dtypes[tensor->wire].size;
    if (given != NULL) {
        given->swapped = false;
        binary_send(extra, given);
    } else {
        binary_send_vector(extra, values, tensor->count);
    }
    return buffer_print(out, ",\"parameters\":{\"binary_data_size\":%zu}}", size);
}

// dresidual is one only where there was a residual, unless it was asked for.
static bool is_there(const struct msg_infer *infer, const struct outputs *outputs, enum msg_output name) {
    return name != MSG_DRESIDUAL || infer->chosen || outputs->of[name].tensor != NULL;
}

static bool put_outputs(struct buffer *out, struct msg_extra *extra, const struct outputs *outputs) {
    const struct msg_infer *const infer = extra->infer;
    bool binary = false, first = true;
    if (!buffer_print(out, "},\"outputs\":[")) return false;
    for (size_t i = 0; i < infer->output_count; i++) {
        const enum msg_output name = infer->outputs[i].name;
        if (!is_there(infer, outputs, name)) continue;
        if (!buffer_print(out, "%s", first ? "" : ",") ||
            !put_output(out, extra, outputs, name, infer->outputs[i].binary))
            return false;
        binary = binary || infer->outputs[i].binary;
        first = false;
    }
    if (!buffer_print(out, "]}\n")) return false;
    if (!binary) return true;
    struct msg_head_field *const field = &extra->field[extra->fields++];
    field->name = "Inference-Header-Content-Length";
    snprintf(field->value, sizeof field->value, "%zu", out->size);
    extra->media_type = "application/octet-stream";
    return true;
}

static bool begin(struct buffer *out, const struct msg_infer *infer, uint64_t version) {
    const bool named = infer->id[0] != '\0';
    return buffer_print(out, "{\"model_name\":\"%s\",\"model_version\":\"" OIP_VERSION "\",", infer->model) &&
           buffer_print(out, "%s%s%s", named ? "\"id\":" : "", infer->id, named ? "," : "") &&
           buffer_print(out, "\"parameters\":{\"state_version\":%" PRIu64, version);
}

bool oip_encode_train(struct buffer *out, struct msg_extra *extra, const struct msg_train_reply *reply,
                      struct tensor *y) {
    const struct outputs outputs = {.of = {[MSG_Y] = {.tensor = y},
                                           [MSG_BATCH_MEAN] = {.vector = reply->batch_mean, .length = reply->channels},
                                           [MSG_BATCH_VAR] = {.vector = reply->batch_var, .length = reply->channels}}};
    if (!begin(out, extra->infer, reply->version) ||
        !buffer_print(out, ",\"count\":%" PRIu64 ",\"updated\":%s", reply->count, reply->updated ? "true" : "false"))
        return false;
    if (reply->tracks && !buffer_print(out, ",\"num_batches_tracked\":%" PRIu64, reply->num_batches_tracked))
        return false;
    if (reply->cache != NULL && !buffer_print(out, ",\"cache\":\"%s\"", reply->cache)) return false;
    return put_outputs(out, extra, &outputs);
}

bool oip_encode_inference(struct buffer *out, struct msg_extra *extra, struct tensor *y, uint64_t version) {
    const struct outputs outputs = {.of = {[MSG_Y] = {.tensor = y}}};
    return begin(out, extra->infer, version) && put_outputs(out, extra, &outputs);
}

bool oip_encode_backward(struct buffer *out, struct msg_extra *extra, const struct msg_backward_reply *reply,
                         struct tensor *dx, struct tensor *dresidual) {
    const struct outputs outputs = {.of = {[MSG_DX] = {.tensor = dx},
                                           [MSG_DGAMMA] = {.vector = reply->dgamma, .length = reply->channels},
                                           [MSG_DBETA] = {.vector = reply->dbeta, .length = reply->channels},
                                           [MSG_DRESIDUAL] = {.tensor = dresidual}}};
    return begin(out, extra->infer, reply->version) && put_outputs(out, extra, &outputs);
}

// ---- errors

bool oip_encode_error(struct buffer *out, const struct msg_error *error, const char *layer) {
    char detail[JSON_DETAIL_MAX];
    const bool placed = error->has_pointer && error->pointer[0] != '\0';
    char quoted[MSG_NAME_MAX + 3] = "";
    if (layer != NULL && layer[0] != '\0') snprintf(quoted, sizeof quoted, "\"%.*s\"", MSG_NAME_MAX, layer);
    const bool named = quoted[0] == '\0' || strstr(error->detail, quoted) != NULL;
    snprintf(detail, sizeof detail, "%s%s%s%s%s%s%s", named ? "" : "layer ", named ? "" : quoted, named ? "" : ": ",
             error->detail, placed ? " (" : "", placed ? error->pointer + 1 : "", placed ? ")" : "");
    return json_encode_problem(out, error, detail, true);
}
