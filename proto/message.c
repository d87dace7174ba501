// SPDX-License-Identifier: Apache-2.0
#include "message.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const struct msg_code_row msg_codes[] = {
    {MSG_OK, 200, "ok", "OK"},
    {MSG_BAD_FRAMING, 400, "bad_framing", "The boundaries of the message are ambiguous"},
    {MSG_BAD_HEADER, 400, "bad_header", "A header field is malformed"},
    {MSG_BAD_NAME, 400, "bad_name", "Not the name of a layer"},
    {MSG_BAD_PARAMETER, 400, "bad_parameter", "A query parameter is unknown or malformed"},
    {MSG_UNEXPECTED_BODY, 400, "unexpected_body", "This method takes no body"},
    {MSG_MALFORMED_JSON, 400, "malformed_json", "The body is not well-formed JSON"},
    {MSG_MALFORMED_FILE, 400, "malformed_file", "The body is not a well-formed file of its media type"},
    {MSG_NOT_AN_OBJECT, 400, "not_an_object", "The body is not a JSON object"},
    {MSG_DUPLICATE_FIELD, 400, "duplicate_field", "A field is given twice"},
    {MSG_UNKNOWN_FIELD, 400, "unknown_field", "A field is unknown"},
    {MSG_NOT_FOUND, 404, "not_found", "There is no such resource"},
    {MSG_LAYER_NOT_FOUND, 404, "layer_not_found", "There is no such layer"},
    {MSG_METHOD_NOT_ALLOWED, 405, "method_not_allowed", "The resource does not have this method"},
    {MSG_NOT_ACCEPTABLE, 406, "not_acceptable", "No media type that Accept names can be given"},
    {MSG_BODY_TIMEOUT, 408, "body_timeout", "The body did not arrive in time"},
    {MSG_CONFIG_CONFLICT, 409, "config_conflict", "The layer exists with another configuration"},
    {MSG_CACHE_GONE, 410, "cache_gone", "The cached pass is gone"},
    {MSG_PRECONDITION_FAILED, 412, "precondition_failed", "The layer is not in the state that the request expects"},
    {MSG_BODY_TOO_LARGE, 413, "body_too_large", "The body is too large"},
    {MSG_UNSUPPORTED_MEDIA_TYPE, 415, "unsupported_media_type", "The body's media type is not supported here"},
    {MSG_EXPECTATION_FAILED, 417, "expectation_failed", "The only expectation that is met is 100-continue"},
    {MSG_MISSING_FIELD, 422, "missing_field", "A required field is missing"},
    {MSG_WRONG_TYPE, 422, "wrong_type", "A field has the wrong type"},
    {MSG_OUT_OF_RANGE, 422, "out_of_range", "A value is out of range"},
    {MSG_CONFLICTING_FIELDS, 422, "conflicting_fields", "Fields contradict each other"},
    {MSG_SHAPE_MISMATCH, 422, "shape_mismatch", "A shape does not fit"},
    {MSG_RAGGED, 422, "ragged", "The rows of a tensor are not equally long"},
    {MSG_OVERFLOW, 422, "overflow", "A number is too large for its type"},
    {MSG_NON_FINITE, 422, "non_finite", "A value is not finite"},
    {MSG_SINGLE_VALUE, 422, "single_value", "One value per channel has no variance"},
    {MSG_NOT_SUPPORTED_BY_LAYER, 422, "not_supported_by_layer", "The layer's configuration does not allow this"},
    {MSG_RATE_LIMITED, 429, "rate_limited", "Too many requests from one client"},
    {MSG_INTERNAL, 500, "internal", "Internal error"},
    {MSG_NOT_BUILT, 501, "not_built", "This build does not have the feature"},
    {MSG_QUEUE_FULL, 503, "queue_full", "Too many calls are waiting"},
    {MSG_MEMORY_FULL, 503, "memory_full", "The memory budget is full"},
    {MSG_DRAINING, 503, "draining", "The server is shutting down"},
    {MSG_STORE_FAILED, 503, "store_failed", "The store failed"},
    {MSG_DEADLINE, 504, "deadline", "The call's deadline passed; nothing was changed"},
    {MSG_STORE_FULL, 507, "store_full", "No space is left in the store"},
};

const size_t msg_code_count = sizeof msg_codes / sizeof msg_codes[0];

const char *const msg_convention_words[] = {"pytorch", "cs231n", "onnx", "keras", "paper", NULL};
const char *const msg_dtype_words[] = {"f32", "f64", NULL};
const char *const msg_init_words[] = {"standard", "first-batch", NULL};
const char *const msg_nonfinite_words[] = {"reject", "skip_update", "propagate", NULL};
const char *const msg_single_value_words[] = {"reject", "beta", NULL};

bool msg_fail(struct msg_error *error, enum msg_code code, const char *pointer, const char *format, ...) {
    if (error->code != MSG_OK) return false;
    error->code = code;
    error->has_pointer = pointer != NULL;
    snprintf(error->pointer, sizeof error->pointer, "%s", pointer != NULL ? pointer : "");
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->detail, sizeof error->detail, format, arguments);
    va_end(arguments);
    return false;
}

static bool is_alnum(char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

bool msg_name_valid(const char *name, size_t length) {
    if (length == 0 || length > MSG_NAME_MAX || !is_alnum(name[0])) return false;
    for (size_t i = 1; i < length; i++) {
        const char c = name[i];
        if (!is_alnum(c) && c != '.' && c != '_' && c != '-') return false;
    }
    return true;
}

size_t msg_first_negative(const double *values, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (values[i] < 0) return i;
    }
    return n;
}

void msg_state_free(struct msg_state *state) {
    buffer_free(&state->gamma.values);
    buffer_free(&state->beta.values);
    buffer_free(&state->running_mean.values);
    buffer_free(&state->running_var.values);
    buffer_free(&state->body);
}

void msg_snapshot_free(struct msg_snapshot *snapshot) {
    for (size_t i = 0; i < snapshot->count; i++) msg_state_free(&snapshot->entries[i].state);
    buffer_free(&snapshot->storage);
    buffer_free(&snapshot->body);
    buffer_free(&snapshot->ignored_names);
    snapshot->ignored = 0;
    snapshot->entries = NULL;
    snapshot->count = 0;
}

const char *msg_snapshot_ignored(const struct msg_snapshot *snapshot, size_t index) {
    const char *name;
    memcpy(&name, snapshot->ignored_names.data + index * sizeof name, sizeof name);
    return name;
}

void msg_call_free(struct msg_call *call) {
    tensor_free(&call->x);
    tensor_free(&call->dout);
    tensor_free(&call->residual);
    buffer_free(&call->body);
}
