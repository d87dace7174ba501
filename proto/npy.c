// SPDX-License-Identifier: Apache-2.0
#include "npy.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "binary.h"
#include "npy_options.h"

#define MAGIC_SIZE 6
static const unsigned char magic[MAGIC_SIZE] = {0x93, 'N', 'U', 'M', 'P', 'Y'};

bool npy_begins(const unsigned char *data, size_t size) {
    return size >= MAGIC_SIZE && memcmp(data, magic, MAGIC_SIZE) == 0;
}

// ---- the header: a Python literal, {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }

struct header {
    size_t data; // where the elements begin
    char descr[8];
    bool fortran;
    int rank;
    size_t dim[TENSOR_MAX_RANK];
    bool has_descr, has_fortran, has_shape;
};

// The text that is left, and where errors go.
struct literal {
    const char *at, *end;
    struct msg_error *error;
};

static bool malformed(struct msg_error *error, const char *what) {
    return msg_fail(error, MSG_MALFORMED_FILE, NULL, "not an npy file: %s", what);
}

// Skips white space; the next character, 0 at the end.
static char peek(struct literal *text) {
    while (text->at < text->end && strchr(" \t\r\n\f", *text->at) != NULL && *text->at != '\0') text->at++;
    return text->at < text->end ? *text->at : '\0';
}

static bool take(struct literal *text, char c) {
    if (peek(text) != c || text->at == text->end) return false;
    text->at++;
    return true;
}

// A string in either kind of quotes, without escapes; one that does not fit is cut, which no known word is.
static bool take_string(struct literal *text, char *out, size_t room) {
    const char quote = peek(text);
    size_t n = 0;
    if (quote != '\'' && quote != '"') return false;
    for (text->at++; text->at < text->end && *text->at != quote; text->at++) {
        if (*text->at == '\\' || *text->at == '\0') return false;
        if (n + 1 < room) out[n++] = *text->at;
    }
    out[n] = '\0';
    return take(text, quote);
}

static bool take_word(struct literal *text, const char *word) {
    const size_t length = strlen(word);
    if (peek(text) != word[0] || (size_t)(text->end - text->at) < length) return false;
    if (memcmp(text->at, word, length) != 0) return false;
    text->at += length;
    return true;
}

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

// One length of a shape. Python 2 wrote longs as 3L.
static bool take_length(struct literal *text, size_t *value) {
    *value = 0;
    if (!is_digit(peek(text))) return malformed(text->error, "a shape holds lengths that are not negative");
    for (; text->at < text->end && is_digit(*text->at); text->at++) {
        if (__builtin_mul_overflow(*value, 10, value) ||
            __builtin_add_overflow(*value, (size_t)(*text->at - '0'), value))
            return msg_fail(text->error, MSG_SHAPE_MISMATCH, NULL, "a length of the shape is too large");
    }
    if (text->at < text->end && *text->at == 'L') text->at++;
    return true;
}

static bool take_shape(struct literal *text, struct header *header) {
    bool comma = true;
    if (!take(text, '(')) return malformed(text->error, "the shape is not a tuple");
    while (peek(text) != ')') {
        size_t length = 0;
        if (!comma) return malformed(text->error, "the shape is not a tuple");
        if (!take_length(text, &length)) return false;
        if (header->rank < TENSOR_MAX_RANK) header->dim[header->rank] = length;
        header->rank++;
        comma = take(text, ',');
    }
    text->at++;
    return (header->rank != 1 || comma) || malformed(text->error, "the shape is not a tuple");
}

static bool take_value(struct literal *text, struct header *header, const char *key) {
    const struct {
        const char *name;
        bool *seen;
    } keys[] = {{"descr", &header->has_descr}, {"fortran_order", &header->has_fortran}, {"shape", &header->has_shape}};
    size_t i = 0;
    while (i < 3 && strcmp(keys[i].name, key) != 0) i++;
    if (i == 3) return malformed(text->error, "its header has a key that there is not");
    if (*keys[i].seen) return malformed(text->error, "its header has a key twice");
    *keys[i].seen = true;
    if (i == 2) return take_shape(text, header);
    if (i == 1) {
        header->fortran = take_word(text, "True");
        return header->fortran || take_word(text, "False") || malformed(text->error, "fortran_order is True or False");
    }
    if (peek(text) == '[')
        return msg_fail(text->error, MSG_WRONG_TYPE, NULL, "an array of records is no tensor: use f2, f4 or f8");
    return take_string(text, header->descr, sizeof header->descr) || malformed(text->error, "descr is not a string");
}

static bool parse_literal(struct literal *text, struct header *header) {
    char key[16];
    if (!take(text, '{')) return malformed(text->error, "its header is not a dictionary");
    while (!take(text, '}')) {
        if (!take_string(text, key, sizeof key) || !take(text, ':'))
            return malformed(text->error, "its header is not a dictionary");
        if (!take_value(text, header, key)) return false;
        if (!take(text, ',') && peek(text) != '}') return malformed(text->error, "its header is not a dictionary");
    }
    if (peek(text) != '\0' || text->at != text->end) return malformed(text->error, "its header goes on");
    if (!header->has_descr || !header->has_fortran || !header->has_shape)
        return malformed(text->error, "its header lacks a key");
    return true;
}

static bool parse_header(struct header *header, const struct buffer *body, struct msg_error *error) {
    const unsigned char *const data = body->data;
    *header = (struct header){0};
    if (!npy_begins(data, body->size)) return malformed(error, "it does not begin with \\x93NUMPY");
    if (body->size < MAGIC_SIZE + 2) return malformed(error, "it ends within its header");
    const unsigned major = data[MAGIC_SIZE], minor = data[MAGIC_SIZE + 1];
    if (major < 1 || major > 3 || minor != 0)
        return msg_fail(error, MSG_MALFORMED_FILE, NULL, "npy has the versions 1.0, 2.0 and 3.0, not %u.%u", major,
                        minor);
    const size_t start = MAGIC_SIZE + 2 + (major == 1 ? 2 : 4);
    if (body->size < start) return malformed(error, "it ends within its header");
    size_t length = 0;
    for (size_t i = start; i-- > MAGIC_SIZE + 2;) length = length << 8 | data[i];
    if (length > body->size - start) return malformed(error, "it ends within its header");
    header->data = start + length;
    struct literal text = {(const char *)data + start, (const char *)data + start + length, error};
    return parse_literal(&text, header);
}

// ---- the tensor

static bool set_dtype(struct tensor *tensor, const struct header *header, const struct npy_options *options,
                      const char *name, struct msg_error *error) {
    static const struct {
        const char *descr; // behind the byte order
        enum wire_dtype wire;
    } types[] = {{"f2", WIRE_F16}, {"f4", WIRE_F32}, {"f8", WIRE_F64}};
    const char *const descr = header->descr;
    const bool raw = strcmp(descr, "|V2") == 0 || strcmp(descr, "<V2") == 0; // the latter: by the package ml_dtypes
    if (options->bf16 && raw) {
        tensor->wire = WIRE_BF16;
        return true;
    }
    if (options->bf16)
        return msg_fail(error, MSG_CONFLICTING_FIELDS, NULL, "dtype=bf16 is for elements of |V2; %s has %s", name,
                        descr);
    if (raw)
        return msg_fail(error, MSG_WRONG_TYPE, NULL,
                        "elements of %s may be anything; dtype=bf16 in the query or in "
                        "Content-Type says that they are bf16",
                        descr);
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (descr[0] == '\0' || strchr("<>=", descr[0]) == NULL || strcmp(descr + 1, types[i].descr) != 0) continue;
        tensor->wire = types[i].wire;
        tensor->swapped = descr[0] == '>';
        return true;
    }
    return msg_fail(error, MSG_WRONG_TYPE, NULL, "%s has elements of %s, not of f2, f4 or f8", name, descr);
}

// (0,) is what numpy makes of [], an empty batch of any rank.
static bool set_shape(struct tensor *tensor, const struct header *header, const char *name, struct msg_error *error) {
    const bool empty = header->rank == 1 && header->dim[0] == 0;
    if ((header->rank < TENSOR_MIN_RANK || header->rank > TENSOR_MAX_RANK) && !empty)
        return msg_fail(error, MSG_SHAPE_MISMATCH, NULL, "%s has rank %d, not 2 to 8", name, header->rank);
    tensor->rank = empty ? 0 : header->rank;
    for (int i = 0; i < tensor->rank; i++) tensor->dim[i] = header->dim[i];
    return empty || tensor_count(&tensor->count, tensor->dim, tensor->rank) ||
           msg_fail(error, MSG_SHAPE_MISMATCH, NULL, "%s is too large", name);
}

// From Fortran order, the first index fastest, to C order, the last one fastest; elements of so many bytes.
static void reorder(unsigned char *to, const unsigned char *from, const struct tensor *tensor, size_t size) {
    const int last = tensor->rank - 1;
    size_t index[TENSOR_MAX_RANK] = {0}, stride[TENSOR_MAX_RANK] = {size};
    for (int l = 1; l <= last; l++) stride[l] = stride[l - 1] * tensor->dim[l - 1];
    const unsigned char *row = from;
    for (size_t done = 0; done < tensor->count; done += tensor->dim[last]) {
        for (size_t i = 0; i < tensor->dim[last]; i++, to += size) memcpy(to, row + i * stride[last], size);
        int l = last - 1;
        row += stride[l];
        while (++index[l] == tensor->dim[l] && l > 0) {
            index[l] = 0;
            row -= stride[l] * tensor->dim[l];
            row += stride[--l];
        }
    }
}

// Makes the body one of elements in C order, with nothing before them.
static bool make_c_order(struct buffer *body, const struct tensor *tensor, size_t at, struct msg_error *error) {
    const size_t size = wire_dtypes[tensor->wire].size;
    struct buffer ordered = {.budget = body->budget};
    if (!buffer_reserve(&ordered, tensor->count * size))
        return msg_fail(error, MSG_MEMORY_FULL, NULL, "the values do not fit the memory budget");
    switch (size) { // so that each is compiled with a constant size
    case 2: reorder(ordered.data, body->data + at, tensor, 2); break;
    case 4: reorder(ordered.data, body->data + at, tensor, 4); break;
    default: reorder(ordered.data, body->data + at, tensor, 8); break;
    }
    ordered.size = tensor->count * size;
    buffer_move(body, &ordered);
    return true;
}

static bool take_elements(struct tensor *tensor, struct buffer *body, const struct header *header, enum bn_dtype dtype,
                          const char *name, struct budget *budget, struct msg_error *error) {
    const size_t size = wire_dtypes[tensor->wire].size;
    size_t at = header->data, floor = 0;
    if (body->size - at != tensor->count * size)
        return msg_fail(error, MSG_MALFORMED_FILE, NULL, "the file holds %zu bytes of elements, its shape asks for %zu",
                        body->size - at, tensor->count * size);
    if (tensor->swapped) binary_swap(body->data + at, size, tensor->count);
    if (header->fortran && tensor->count > 0) {
        if (!make_c_order(body, tensor, at, error)) return false;
        at = 0;
    }
    return binary_take(tensor, body, at, &floor, dtype, name, budget, error);
}

bool npy_decode_call(struct msg_call *call, enum msg_call_kind kind, const struct codec_request *request,
                     enum bn_dtype dtype, struct msg_error *error) {
    const bool backward = kind == MSG_BACKWARD;
    const char *const name = backward ? "dout" : "x";
    struct tensor *const tensor = backward ? &call->dout : &call->x;
    struct npy_options options;
    struct header header;
    buffer_move(&call->body, request->body);
    if (!parse_header(&header, &call->body, error) || !npy_take_options(call, &options, kind, &request->options, error))
        return false;
    if (!set_dtype(tensor, &header, &options, name, error) || !set_shape(tensor, &header, name, error)) return false;
    if (!take_elements(tensor, &call->body, &header, dtype, name, request->budget, error)) return false;
    if (tensor->values.memory != NULL) buffer_free(&call->body);
    msg_call_trim(call);
    return true;
}

// ---- replies

static bool put_header(struct buffer *out, const struct tensor *tensor) {
    static const char *const types[] = {[WIRE_F32] = "f4", [WIRE_F64] = "f8", [WIRE_F16] = "f2", [WIRE_BF16] = "V2"};
    const char order = tensor->wire == WIRE_BF16 ? '|' : tensor->swapped ? '>' : '<';
    char text[NPY_HEADER_MAX];
    memcpy(text, magic, MAGIC_SIZE);
    memcpy(text + MAGIC_SIZE, "\1\0", 2);
    size_t n = MAGIC_SIZE + 4;
    n += (size_t)snprintf(text + n, sizeof text - n, "{'descr': '%c%s', 'fortran_order': False, 'shape': (", order,
                          types[tensor->wire]);
    for (int l = 0; l < tensor->rank; l++)
        n += (size_t)snprintf(text + n, sizeof text - n, l > 0 ? ", %zu" : "%zu", tensor->dim[l]);
    n += (size_t)snprintf(text + n, sizeof text - n, "%s), }", tensor->rank == 0 ? "0," : "");
    for (; (n + 1) % 64 != 0; n++) text[n] = ' ';
    text[n++] = '\n';
    text[MAGIC_SIZE + 2] = (char)((n - MAGIC_SIZE - 4) & 0xff);
    text[MAGIC_SIZE + 3] = (char)((n - MAGIC_SIZE - 4) >> 8);
    return buffer_append(out, text, n);
}

__attribute__((format(printf, 3, 4))) static void put_field(struct msg_extra *extra, const char *name,
                                                            const char *format, ...) {
    struct msg_head_field *const field = &extra->field[extra->fields++];
    va_list arguments;
    field->name = name;
    va_start(arguments, format);
    vsnprintf(field->value, sizeof field->value, format, arguments);
    va_end(arguments);
}

static bool put_tensor(struct buffer *out, struct msg_extra *extra, struct tensor *tensor, uint64_t version) {
    put_field(extra, "Normd-Version", "%" PRIu64, version);
    binary_send(extra, tensor);
    return put_header(out, tensor);
}

bool npy_encode_train(struct buffer *out, struct msg_extra *extra, const struct msg_train_reply *reply,
                      struct tensor *y) {
    put_field(extra, "Normd-Count", "%" PRIu64, reply->count);
    put_field(extra, "Normd-Updated", "%s", reply->updated ? "true" : "false");
    if (reply->tracks) put_field(extra, "Normd-Num-Batches-Tracked", "%" PRIu64, reply->num_batches_tracked);
    if (reply->cache != NULL) put_field(extra, "Normd-Cache", "%s", reply->cache);
    return put_tensor(out, extra, y, reply->version);
}

bool npy_encode_inference(struct buffer *out, struct msg_extra *extra, struct tensor *y, uint64_t version) {
    return put_tensor(out, extra, y, version);
}

bool npy_encode_backward(struct buffer *out, struct msg_extra *extra, const struct msg_backward_reply *reply,
                         struct tensor *dx, struct tensor *dresidual) {
    (void)dresidual;
    return put_tensor(out, extra, dx, reply->version);
}
