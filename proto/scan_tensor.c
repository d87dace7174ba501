// SPDX-License-Identifier: Apache-2.0
//
// The number arrays of a JSON text: tensors in their three forms, and vectors.
#include <stdio.h>
#include <string.h>

#include "scan_nest.h"

// A tensor is most of its body, so its size can be guessed from what is left of the text.
static struct sink sink_start_tensor(const struct scan *scan, struct tensor *tensor) {
    return scan_sink_start(scan, &tensor->values, tensor->dtype, scan_guess((size_t)(scan->end - scan->at)));
}

static void finish_values(struct tensor *tensor, const struct sink *sink) {
    tensor->count = sink->count;
    tensor->first_nonfinite = sink->first_nonfinite == SIZE_MAX ? sink->count : sink->first_nonfinite;
    tensor->present = true;
}

static bool read_nested_tensor(struct scan *scan, struct tensor *tensor) {
    struct nest nest;
    struct sink sink = sink_start_tensor(scan, tensor);
    if (!scan_nest_read(scan, &nest, &sink)) return false;
    if (scan->error->code != MSG_OK) return true;
    const int rank = scan_nest_rank(&nest);
    if (rank == 1 && sink.count > 0) {
        msg_fail(scan->error, MSG_SHAPE_MISMATCH, scan->pointer, "the tensor has rank 1, not 2 to 8");
        return true;
    }
    tensor->rank = rank == 1 ? 0 : rank;
    memcpy(tensor->dim, nest.dim, sizeof tensor->dim);
    finish_values(tensor, &sink);
    return true;
}

bool scan_numbers(struct scan *scan, struct tensor *tensor, enum bn_dtype dtype) {
    struct nest nest;
    tensor->dtype = dtype;
    if (scan_peek(scan) != '[') return scan_refuse(scan, MSG_WRONG_TYPE, "expected an array of numbers");
    struct sink sink = sink_start_tensor(scan, tensor);
    if (!scan_nest_read(scan, &nest, &sink)) return false;
    if (scan->error->code != MSG_OK) return true;
    tensor->rank = scan_nest_rank(&nest);
    memcpy(tensor->dim, nest.dim, sizeof tensor->dim);
    finish_values(tensor, &sink);
    return true;
}

// Reads a flat array of numbers into the sink. *refused: the error is set, the values are not to be used.
static bool read_flat(struct scan *scan, struct sink *sink, bool *refused) {
    struct nest nest;
    const bool had_error = scan->error->code != MSG_OK;
    if (scan_peek(scan) != '[') {
        *refused = true;
        return scan_refuse(scan, MSG_WRONG_TYPE, "expected an array of numbers");
    }
    if (!scan_nest_read(scan, &nest, sink)) return false;
    *refused = !had_error && scan->error->code != MSG_OK;
    if (!*refused && scan_nest_rank(&nest) > 1) {
        *refused = true;
        msg_fail(scan->error, MSG_WRONG_TYPE, scan->pointer, "expected an array of numbers, not of arrays");
    }
    return true;
}

bool scan_vector(struct scan *scan, struct msg_vector *vector) {
    vector->given = true;
    if (scan_peek(scan) == 'n') {
        vector->null = true;
        return scan_skip(scan, NULL);
    }
    struct sink sink = scan_sink_start(scan, &vector->values, BN_F64, 0);
    bool refused = false;
    if (!read_flat(scan, &sink, &refused)) return false;
    vector->count = sink.count;
    vector->first_nonfinite = sink.first_nonfinite == SIZE_MAX ? sink.count : sink.first_nonfinite;
    vector->first_negative = msg_first_negative((const double *)(const void *)vector->values.data, sink.count);
    return true;
}

// ---- {"shape", "data"} and {"shape", "dtype", "base64"}

struct tensor_members {
    bool shape, data, dtype, base64;
    struct scan_span text; // of base64, between the quotes
    size_t escapes;        // backslashes in it
};

bool scan_shape(struct scan *scan, struct tensor *tensor) {
    struct buffer values = {.budget = scan->budget};
    struct sink sink = scan_sink_start(scan, &values, BN_F64, 0);
    bool refused = false;
    if (!read_flat(scan, &sink, &refused)) {
        buffer_free(&values);
        return false;
    }
    const double *const dims = (const double *)(const void *)values.data;
    if (!refused && (sink.count < TENSOR_MIN_RANK || sink.count > TENSOR_MAX_RANK)) {
        msg_fail(scan->error, MSG_SHAPE_MISMATCH, scan->pointer, "the shape has %zu axes, not 2 to 8", sink.count);
        refused = true;
    }
    for (size_t i = 0; !refused && i < sink.count; i++) {
        char token[24];
        const size_t length = scan->pointer_length;
        snprintf(token, sizeof token, "%zu", i);
        scan_push(scan, token);
        if (!(dims[i] >= 0) || dims[i] != __builtin_floor(dims[i]) || dims[i] > 9007199254740992.0) {
            msg_fail(scan->error, MSG_OUT_OF_RANGE, scan->pointer, "an axis has a whole number of elements, 0 to 2^53");
            refused = true;
        } else {
            tensor->dim[i] = (size_t)dims[i];
        }
        scan_pop(scan, length);
    }
    if (!refused) {
        tensor->rank = (int)sink.count;
        if (!tensor_count(&tensor->count, tensor->dim, tensor->rank)) {
            msg_fail(scan->error, MSG_OUT_OF_RANGE, scan->pointer, "the shape has too many elements");
        }
    }
    buffer_free(&values);
    return true;
}

static bool read_string(struct scan *scan, struct scan_span *text) {
    if (scan_peek(scan) != '"') return scan_refuse(scan, MSG_WRONG_TYPE, "expected a string");
    if (!scan_skip(scan, text)) return false;
    text->text++;
    text->length -= 2;
    return true;
}

static bool read_wire_dtype(struct scan *scan, struct tensor *tensor) {
    struct scan_span name = {0};
    if (!read_string(scan, &name)) return false;
    if (name.text == NULL) return true; // it is refused already
    char text[SCAN_KEY_MAX + 1];
    scan_unescape(text, name);
    for (size_t i = 0; i < wire_dtype_count; i++) {
        if (strcmp(text, wire_dtypes[i].name) == 0) {
            tensor->wire = wire_dtypes[i].dtype;
            return true;
        }
    }
    msg_fail(scan->error, MSG_OUT_OF_RANGE, scan->pointer, "expected \"f32\", \"f64\", \"f16\" or \"bf16\"");
    return true;
}

static bool read_data(struct scan *scan, struct tensor *tensor, size_t *count) {
    struct sink sink = sink_start_tensor(scan, tensor);
    bool refused = false;
    if (!read_flat(scan, &sink, &refused)) return false;
    *count = sink.count;
    tensor->first_nonfinite = sink.first_nonfinite;
    return true;
}

static bool read_tensor_member(struct scan *scan, const char *name, struct tensor *tensor, struct tensor_members *seen,
                               size_t *data_count) {
    const struct {
        const char *name;
        bool *seen;
    } known[] = {{"shape", &seen->shape}, {"data", &seen->data}, {"dtype", &seen->dtype}, {"base64", &seen->base64}};
    size_t i = 0;
    while (i < 4 && strcmp(name, known[i].name) != 0) i++;
    if (i == 4) return scan_refuse(scan, MSG_UNKNOWN_FIELD, "a tensor has shape with data, or shape, dtype and base64");
    if (*known[i].seen) return scan_refuse(scan, MSG_DUPLICATE_FIELD, "the field is given twice");
    *known[i].seen = true;
    switch (i) {
    case 0: return scan_shape(scan, tensor);
    case 1: return read_data(scan, tensor, data_count);
    case 2: return read_wire_dtype(scan, tensor);
    default: return read_string(scan, &seen->text);
    }
}

static bool read_tensor_object(struct scan *scan, struct tensor *tensor) {
    struct tensor_members seen = {0};
    struct scan_key key;
    size_t data_count = 0;
    bool more = true;
    if (!scan_object(scan)) return false;
    for (bool first = true; scan_member(scan, &key, &more, first); first = false) {
        if (!more) break;
        if (!read_tensor_member(scan, key.name, tensor, &seen, &data_count)) return false;
        scan_end_member(scan, &key);
    }
    if (scan->error->code != MSG_OK) return scan->error->code != MSG_MALFORMED_JSON;
    if (seen.data == seen.base64) {
        msg_fail(scan->error, seen.data ? MSG_CONFLICTING_FIELDS : MSG_MISSING_FIELD, scan->pointer,
                 "a tensor object has one of data and base64");
    } else if (!seen.shape || (seen.base64 && !seen.dtype)) {
        msg_fail(scan->error, MSG_MISSING_FIELD, scan->pointer, "%s is missing", seen.shape ? "dtype" : "shape");
    } else if (seen.data && seen.dtype) {
        msg_fail(scan->error, MSG_CONFLICTING_FIELDS, scan->pointer,
                 "dtype goes with base64; data is of the layer's dtype");
    } else if (seen.data && data_count != tensor->count) {
        const size_t length = scan->pointer_length;
        scan_push(scan, "data");
        msg_fail(scan->error, MSG_SHAPE_MISMATCH, scan->pointer, "data has %zu numbers, the shape asks for %zu",
                 data_count, tensor->count);
        scan_pop(scan, length);
    } else if (seen.base64) {
        tensor->form = TENSOR_BASE64;
        scan_base64(scan, tensor, seen.text);
    } else {
        tensor->form = TENSOR_FLAT;
        if (tensor->first_nonfinite == SIZE_MAX) tensor->first_nonfinite = tensor->count;
        tensor->present = true;
    }
    return true;
}

bool scan_tensor(struct scan *scan, struct tensor *tensor, enum bn_dtype dtype) {
    tensor->dtype = dtype;
    tensor->wire = dtype == BN_F32 ? WIRE_F32 : WIRE_F64;
    tensor->form = TENSOR_NESTED;
    switch (scan_peek(scan)) {
    case '[': return read_nested_tensor(scan, tensor);
    case '{': return read_tensor_object(scan, tensor);
    default: return scan_refuse(scan, MSG_WRONG_TYPE, "expected a tensor: nested arrays or an object");
    }
}

void scan_tensor_pointer(char pointer[MSG_POINTER_MAX], const char *field, const struct tensor *tensor, size_t index) {
    size_t n = (size_t)snprintf(pointer, MSG_POINTER_MAX, "/%s", field);
    if (tensor->form == TENSOR_FLAT) snprintf(pointer + n, MSG_POINTER_MAX - n, "/data/%zu", index);
    if (tensor->form == TENSOR_BASE64) snprintf(pointer + n, MSG_POINTER_MAX - n, "/base64");
    if (tensor->form != TENSOR_NESTED) return;
    size_t stride = tensor->count;
    for (int l = 0; l < tensor->rank && n < MSG_POINTER_MAX; l++) {
        stride /= tensor->dim[l];
        n += (size_t)snprintf(pointer + n, MSG_POINTER_MAX - n, "/%zu", index / stride);
        index %= stride;
    }
}
