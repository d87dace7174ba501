// SPDX-License-Identifier: Apache-2.0
//
// Calls.
#include "safetensors.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "binary.h"
#include "json.h"
#include "json_fields.h"
#include "safetensors_file.h"

bool safetensors_begins(const unsigned char *data, size_t size) {
    uint64_t header = 0;
    if (size <= sizeof header || data[sizeof header] != '{') return false;
    memcpy(&header, data, sizeof header);
    return header <= size - sizeof header;
}

// ---- requests

// One of the tensors that a call may have.
struct part {
    const char *name;
    struct tensor *tensor;
    bool *given;
    const struct file_tensor *from; // NULL: not given
};

#define PARTS 3

static bool find_parts(struct part parts[PARTS], size_t count, const struct safetensors_file *file,
                       struct msg_error *error) {
    for (size_t i = 0; i < file->tensor_count; i++) {
        size_t k = 0;
        while (k < count && strcmp(parts[k].name, file->tensors[i].name) != 0) k++;
        if (k == count)
            return msg_fail(error, MSG_UNKNOWN_FIELD, NULL, "there is no tensor \"%.100s\" here",
                            file->tensors[i].name);
        parts[k].from = &file->tensors[i];
        *parts[k].given = true;
    }
    return true;
}

static int by_place(const void *a, const void *b) {
    const struct file_tensor *const x = ((const struct part *)a)->from, *const y = ((const struct part *)b)->from;
    if (x == NULL || y == NULL) return (x == NULL) - (y == NULL);
    return x->at < y->at ? -1 : x->at > y->at;
}

// Elements that are not aligned move down over the header, so this comes last. False: the memory that the tensors of
// their own have is with the call.
static bool take_parts(struct part parts[PARTS], const struct buffer *body, enum bn_dtype dtype, struct budget *budget,
                       struct msg_error *error) {
    size_t floor = 0;
    for (size_t i = 0; i < PARTS && parts[i].from != NULL; i++) {
        if (!safetensors_tensor(parts[i].tensor, parts[i].from, error)) return false;
    }
    struct file_tensor from[PARTS]; // names may be overwritten, and places with them
    for (size_t i = 0; i < PARTS && parts[i].from != NULL; i++) from[i] = *parts[i].from;
    for (size_t i = 0; i < PARTS && parts[i].from != NULL; i++) {
        if (!binary_take(parts[i].tensor, body, from[i].at, &floor, dtype, parts[i].name, budget, error)) return false;
    }
    return true;
}

// The fields in __metadata__. The word that PyTorch's writers put there is none.
static bool take_fields(struct msg_call *call, enum msg_call_kind kind, const struct safetensors_file *file,
                        struct msg_error *error) {
    json_t *const object = json_object();
    size_t size = 0;
    bool ok = object != NULL || msg_fail(error, MSG_MEMORY_FULL, NULL, "out of memory");
    for (size_t i = 0; i < file->text_count && ok; i++) {
        const struct file_text *const text = &file->texts[i];
        if (strcmp(text->name, "format") == 0) continue;
        size += text->value.length;
        json_t *const value = size <= JSON_REST_MAX ? safetensors_value(text) : NULL;
        if (size > JSON_REST_MAX) {
            ok = msg_fail(error, MSG_BODY_TOO_LARGE, NULL, "__metadata__ takes more than %zu bytes", JSON_REST_MAX);
        } else if (value == NULL) {
            ok = msg_fail(error, MSG_MALFORMED_FILE, NULL,
                          "\"%.60s\" in __metadata__ is not the JSON text of a value; a word needs its quotes",
                          text->name);
        } else if (json_object_set_new(object, text->name, value) != 0) {
            ok = msg_fail(error, MSG_UNKNOWN_FIELD, NULL, "there is no field \"%.60s\" here", text->name);
        }
    }
    ok = ok && field_set_call(call, kind, object, error);
    if (!ok) safetensors_name_field(error);
    json_decref(object);
    return ok;
}

static bool in_body(const struct tensor *tensor) {
    return tensor->present && tensor->values.memory == NULL;
}

static bool decode_call(struct msg_call *call, enum msg_call_kind kind, const struct safetensors_file *file,
                        enum bn_dtype dtype, struct budget *budget, struct msg_error *error) {
    struct field_tensors given = {.x = false};
    struct part parts[PARTS] = {{"x", &call->x, &given.x, NULL},
                                {"residual", &call->residual, &given.residual, NULL},
                                {"dout", &call->dout, &given.dout, NULL}};
    if (!find_parts(parts, kind == MSG_BACKWARD ? 3 : 2, file, error) || !take_fields(call, kind, file, error) ||
        !field_check_call(call, kind, given, error))
        return false;
    qsort(parts, PARTS, sizeof parts[0], by_place);
    return take_parts(parts, &call->body, dtype, budget, error);
}

bool safetensors_decode_call(struct msg_call *call, enum msg_call_kind kind, const struct codec_request *request,
                             enum bn_dtype dtype, struct msg_error *error) {
    struct safetensors_file file;
    if (request->options.count > 0)
        return msg_fail(error, MSG_BAD_PARAMETER, NULL,
                        "%s is a field of __metadata__ here; in the query it is for npy",
                        request->options.option[0].name);
    buffer_move(&call->body, request->body);
    const bool ok = safetensors_open(&file, &call->body, request->budget, error) &&
                    decode_call(call, kind, &file, dtype, request->budget, error);
    safetensors_close(&file);
    error->has_pointer = false;
    if (ok && !in_body(&call->x) && !in_body(&call->dout) && !in_body(&call->residual)) buffer_free(&call->body);
    if (ok) msg_call_trim(call);
    return ok;
}

// ---- replies

// A header on its way: the metadata, then the tensors, in the order in which their values are sent.
struct head {
    char text[SAFETENSORS_HEADER_MAX];
    size_t length;
    uint64_t data;
    bool first;
};

__attribute__((format(printf, 2, 3))) static void put(struct head *head, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    head->length += (size_t)vsnprintf(head->text + head->length, sizeof head->text - head->length, format, arguments);
    va_end(arguments);
}

static void begin(struct head *head) {
    head->length = sizeof(uint64_t); // of the header, set at the end
    head->data = 0;
    head->first = true;
    put(head, "{\"__metadata__\":{");
}

static void put_field(struct head *head, const char *name) {
    put(head, "%s\"%s\":", head->first ? "" : ",", name);
    head->first = false;
}

static void put_number(struct head *head, const char *name, uint64_t value) {
    put_field(head, name);
    put(head, "\"%" PRIu64 "\"", value);
}

static void put_tensor(struct head *head, const char *name, const struct tensor *tensor) {
    static const char *const types[] = {
        [WIRE_F32] = "F32", [WIRE_F64] = "F64", [WIRE_F16] = "F16", [WIRE_BF16] = "BF16"};
    const uint64_t end = head->data + tensor->count * wire_dtypes[tensor->wire].size;
    put(head, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", name, types[tensor->wire]);
    for (int l = 0; l < tensor->rank; l++) put(head, l > 0 ? ",%zu" : "%zu", tensor->dim[l]);
    put(head, "%s],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", tensor->rank == 0 ? "0" : "", head->data, end);
    head->data = end;
}

static void put_vector(struct head *head, const char *name, const double *values, size_t n) {
    const struct tensor shape = {.rank = 1, .dim = {n}, .count = n, .wire = WIRE_F64};
    if (values != NULL) put_tensor(head, name, &shape);
}

static void put_null(struct head *head, const char *name, const void *values) {
    if (values != NULL) return;
    put_field(head, name);
    put(head, "\"null\"");
}

static bool end(struct head *head, struct buffer *out) {
    put(head, "}");
    while (head->length % sizeof(uint64_t) != 0) put(head, " ");
    const uint64_t length = head->length - sizeof length;
    memcpy(head->text, &length, sizeof length);
    return buffer_append(out, head->text, head->length);
}

static void send_vector(struct msg_extra *extra, const double *values, size_t n) {
    if (values != NULL) binary_send_vector(extra, values, n);
}

static void send_tensor(struct msg_extra *extra, struct tensor *tensor) {
    tensor->swapped = false;
    binary_send(extra, tensor);
}

// Vectors come first, so that all values are aligned.
bool safetensors_encode_train(struct buffer *out, struct msg_extra *extra, const struct msg_train_reply *reply,
                              struct tensor *y) {
    struct head head;
    begin(&head);
    put_number(&head, "count", reply->count);
    if (reply->tracks) put_number(&head, "num_batches_tracked", reply->num_batches_tracked);
    put_null(&head, "num_batches_tracked", reply->tracks ? reply : NULL);
    put_field(&head, "updated");
    put(&head, "\"%s\"", reply->updated ? "true" : "false");
    put_number(&head, "version", reply->version);
    if (reply->cache != NULL) {
        put_field(&head, "cache");
        put(&head, "\"\\\"%s\\\"\"", reply->cache);
    }
    put_null(&head, "batch_mean", reply->batch_mean);
    put_null(&head, "batch_var", reply->batch_var);
    put(&head, "}");
    put_vector(&head, "batch_mean", reply->batch_mean, reply->channels);
    put_vector(&head, "batch_var", reply->batch_var, reply->channels);
    put_tensor(&head, "y", y);
    send_vector(extra, reply->batch_mean, reply->channels);
    send_vector(extra, reply->batch_var, reply->channels);
    send_tensor(extra, y);
    return end(&head, out);
}

bool safetensors_encode_inference(struct buffer *out, struct msg_extra *extra, struct tensor *y, uint64_t version) {
    struct head head;
    begin(&head);
    put_number(&head, "version", version);
    put(&head, "}");
    put_tensor(&head, "y", y);
    send_tensor(extra, y);
    return end(&head, out);
}

bool safetensors_encode_backward(struct buffer *out, struct msg_extra *extra, const struct msg_backward_reply *reply,
                                 struct tensor *dx, struct tensor *dresidual) {
    struct head head;
    begin(&head);
    put_number(&head, "version", reply->version);
    put_null(&head, "dgamma", reply->dgamma);
    put_null(&head, "dbeta", reply->dbeta);
    put(&head, "}");
    put_vector(&head, "dgamma", reply->dgamma, reply->channels);
    put_vector(&head, "dbeta", reply->dbeta, reply->channels);
    put_tensor(&head, "dx", dx);
    if (dresidual != NULL) put_tensor(&head, "dresidual", dresidual);
    send_vector(extra, reply->dgamma, reply->channels);
    send_vector(extra, reply->dbeta, reply->channels);
    send_tensor(extra, dx);
    if (dresidual != NULL) send_tensor(extra, dresidual);
    return end(&head, out);
}
