// SPDX-License-Identifier: Apache-2.0
//
// The number arrays of a JSON text: tensors in their three forms, and vectors.
#include <stdio.h>
#include <string.h>

#include "number.h"
#include "scan.h"

// Text of a number in a tensor, separators included, as first guessed.
#define TEXT_PER_VALUE 8

static const char *const special_names[] = {"NaN", "Infinity", "-Infinity"};

// ---- values

// A run of values of one type that grows as it is read.
struct sink {
    struct buffer *values;
    enum bn_dtype dtype;
    size_t count;
    size_t first_nonfinite; // SIZE_MAX: none so far
    size_t first_negative;  // SIZE_MAX: none so far
};

static struct sink sink_start(struct scan *scan, struct buffer *values, enum bn_dtype dtype) {
    values->budget = scan->budget;
    return (struct sink){.values = values, .dtype = dtype, .first_nonfinite = SIZE_MAX, .first_negative = SIZE_MAX};
}

// A tensor is most of its body, so its size can be guessed from what is left of the text. Where the guess does not fit
// the budget, it grows as it is read.
static struct sink sink_start_tensor(struct scan *scan, struct tensor *tensor) {
    const struct sink sink = sink_start(scan, &tensor->values, tensor->dtype);
    const size_t guess = (size_t)(scan->end - scan->at) / TEXT_PER_VALUE + 8;
    if (!buffer_reserve(sink.values, guess * bn_dtype_size(sink.dtype))) sink.values->refused = 0;
    return sink;
}

static void sink_put(struct sink *sink, double value64, float value32) {
    if (sink->dtype == BN_F32) {
        memcpy(sink->values->data + sink->values->size, &value32, sizeof value32);
        sink->values->size += sizeof value32;
        if (value32 < 0 && sink->first_negative == SIZE_MAX) sink->first_negative = sink->count;
    } else {
        memcpy(sink->values->data + sink->values->size, &value64, sizeof value64);
        sink->values->size += sizeof value64;
        if (value64 < 0 && sink->first_negative == SIZE_MAX) sink->first_negative = sink->count;
    }
    sink->count++;
}

enum read_result {
    READ_OK,
    READ_MALFORMED, // the walk is over
    READ_REFUSED,   // the error is set, the value at hand is not consumed
};

// "NaN", "Infinity" and "-Infinity", with escapes too. READ_REFUSED, without an error set: the string is another one.
static enum read_result read_special(struct scan *scan, struct sink *sink) {
    static const float values[] = {__builtin_nanf(""), __builtin_inff(), -__builtin_inff()};
    const char *const start = scan->at;
    char text[SCAN_KEY_MAX + 1];
    struct scan_span span;
    if (!scan_skip(scan, &span)) return READ_MALFORMED;
    scan_unescape(text, (struct scan_span){span.text + 1, span.length - 2});
    for (int i = 0; i < 3; i++) {
        if (strcmp(text, special_names[i]) != 0) continue;
        if (sink->first_nonfinite == SIZE_MAX) sink->first_nonfinite = sink->count;
        sink_put(sink, values[i], values[i]);
        return READ_OK;
    }
    scan->at = start;
    return READ_REFUSED;
}

static enum read_result read_element(struct scan *scan, struct sink *sink) {
    if (!buffer_grow(sink->values, sizeof(double))) {
        msg_fail(scan->error, MSG_MEMORY_FULL, NULL, "the values do not fit the memory budget");
        return READ_REFUSED;
    }
    const char *const start = scan->at;
    double value64 = 0;
    float value32 = 0;
    const enum number_status status = sink->dtype == BN_F32 ? number_read_f32(&value32, &scan->at, scan->end)
                                                            : number_read_f64(&value64, &scan->at, scan->end);
    if (status == NUMBER_OK) {
        sink_put(sink, value64, value32);
        return READ_OK;
    }
    const char c = start < scan->end ? *start : '\0';
    if (status == NUMBER_OVERFLOW) {
        scan->at = start;
        msg_fail(scan->error, MSG_OVERFLOW, scan->pointer, "the number is too large for %s",
                 sink->dtype == BN_F32 ? "f32" : "f64");
        return READ_REFUSED;
    }
    if (c == '-' || (c >= '0' && c <= '9')) {
        scan_malformed(scan, "not a number");
        return READ_MALFORMED;
    }
    scan->at = start;
    const enum read_result special = c == '"' ? read_special(scan, sink) : READ_REFUSED;
    if (special != READ_REFUSED) return special;
    msg_fail(scan->error, MSG_WRONG_TYPE, scan->pointer, "expected a number%s",
             c == '"' ? ", \"NaN\", \"Infinity\" or \"-Infinity\"" : "");
    return READ_REFUSED;
}

// ---- nested arrays

// The walk through nested arrays: index[l] is the position within the array open at level l, of which `level` are open.
struct nest {
    size_t index[TENSOR_MAX_RANK];
    size_t dim[TENSOR_MAX_RANK]; // SIZE_MAX: not known yet
    int level;
    int leaf; // the number of arrays around an element; 0: not known yet
};

// Sets the scan's pointer to the place of the walk, `levels` deep.
static void point_into(struct scan *scan, const struct nest *nest, int levels) {
    char token[24];
    for (int l = 0; l < levels; l++) {
        snprintf(token, sizeof token, "%zu", nest->index[l]);
        scan_push(scan, token);
    }
}

static enum read_result refuse_here(struct scan *scan, const struct nest *nest, int levels, enum msg_code code,
                                    const char *what) {
    const size_t length = scan->pointer_length;
    point_into(scan, nest, levels);
    msg_fail(scan->error, code, scan->pointer, "%s", what);
    scan_pop(scan, length);
    return READ_REFUSED;
}

static enum read_result close_array(struct scan *scan, struct nest *nest) {
    scan->at++;
    const int l = nest->level - 1;
    const size_t length = nest->index[l];
    if (nest->dim[l] == SIZE_MAX) nest->dim[l] = length;
    if (nest->dim[l] != length)
        return refuse_here(scan, nest, l, MSG_RAGGED, "the row is shorter or longer than the first one");
    nest->level = l;
    if (l > 0) nest->index[l - 1]++;
    return READ_OK;
}

static enum read_result open_array(struct scan *scan, struct nest *nest) {
    if (nest->leaf > 0 && nest->level == nest->leaf) {
        return refuse_here(scan, nest, nest->level, MSG_RAGGED, "an array where the others have a number");
    }
    if (nest->level == TENSOR_MAX_RANK) {
        return refuse_here(scan, nest, 0, MSG_SHAPE_MISMATCH, "a tensor has a rank from 2 to 8");
    }
    scan->at++;
    nest->index[nest->level++] = 0;
    return READ_OK;
}

static enum read_result nest_element(struct scan *scan, struct nest *nest, struct sink *sink) {
    const bool beside_array = nest->level < TENSOR_MAX_RANK && nest->dim[nest->level] != SIZE_MAX;
    if (nest->leaf == 0) nest->leaf = nest->level;
    if (nest->level != nest->leaf || beside_array) {
        return refuse_here(scan, nest, nest->level, MSG_RAGGED, "a number where the others have an array");
    }
    const bool first_error = scan->error->code == MSG_OK;
    const enum read_result result = read_element(scan, sink);
    if (result == READ_OK) nest->index[nest->level - 1]++;
    if (result == READ_REFUSED && first_error && scan->error->has_pointer) {
        const size_t length = scan->pointer_length;
        point_into(scan, nest, nest->level);
        snprintf(scan->error->pointer, sizeof scan->error->pointer, "%s", scan->pointer);
        scan_pop(scan, length);
    }
    return result;
}

// One value or bracket, with the comma that must stand before it.
static enum read_result nest_step(struct scan *scan, struct nest *nest, struct sink *sink) {
    char c = scan_peek(scan);
    if (c == ']') return close_array(scan, nest);
    if (nest->index[nest->level - 1] > 0) {
        if (c != ',') {
            scan_malformed(scan, "expected ',' or ']'");
            return READ_MALFORMED;
        }
        scan->at++;
        c = scan_peek(scan);
        if (c == ']') {
            scan_malformed(scan, "expected a value");
            return READ_MALFORMED;
        }
    }
    return c == '[' ? open_array(scan, nest) : nest_element(scan, nest, sink);
}

static void start_nest(struct nest *nest) {
    *nest = (struct nest){.level = 0};
    for (int l = 0; l < TENSOR_MAX_RANK; l++) nest->dim[l] = SIZE_MAX;
}

// Reads arrays nested to any rank. Where they are refused, they are walked again from the start, for their grammar
// alone.
static bool read_nested(struct scan *scan, struct nest *nest, struct sink *sink) {
    const char *const start = scan->at;
    start_nest(nest);
    enum read_result result = open_array(scan, nest);
    while (result == READ_OK && nest->level > 0) result = nest_step(scan, nest, sink);
    if (result == READ_OK) buffer_trim(sink->values);
    if (result != READ_REFUSED) return result == READ_OK;
    scan->at = start;
    return scan_skip(scan, NULL);
}

static int nest_rank(const struct nest *nest) {
    int rank = 0;
    while (rank < TENSOR_MAX_RANK && nest->dim[rank] != SIZE_MAX) rank++;
    return rank;
}

static void finish_values(struct tensor *tensor, const struct sink *sink) {
    tensor->count = sink->count;
    tensor->first_nonfinite = sink->first_nonfinite == SIZE_MAX ? sink->count : sink->first_nonfinite;
    tensor->present = true;
}

static bool read_nested_tensor(struct scan *scan, struct tensor *tensor) {
    struct nest nest;
    struct sink sink = sink_start_tensor(scan, tensor);
    if (!read_nested(scan, &nest, &sink)) return false;
    if (scan->error->code != MSG_OK) return true;
    const int rank = nest_rank(&nest);
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
    if (!read_nested(scan, &nest, &sink)) return false;
    if (scan->error->code != MSG_OK) return true;
    tensor->rank = nest_rank(&nest);
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
    if (!read_nested(scan, &nest, sink)) return false;
    *refused = !had_error && scan->error->code != MSG_OK;
    if (!*refused && nest_rank(&nest) > 1) {
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
    struct sink sink = sink_start(scan, &vector->values, BN_F64);
    bool refused = false;
    if (!read_flat(scan, &sink, &refused)) return false;
    vector->count = sink.count;
    vector->first_nonfinite = sink.first_nonfinite == SIZE_MAX ? sink.count : sink.first_nonfinite;
    vector->first_negative = sink.first_negative == SIZE_MAX ? sink.count : sink.first_negative;
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
    struct sink sink = sink_start(scan, &values, BN_F64);
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
