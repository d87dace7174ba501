// SPDX-License-Identifier: Apache-2.0
#include "safetensors_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "safetensors.h"

// What is told of one tensor may be this long.
#define INFO_MAX ((size_t)4096)

static const struct file_dtype dtypes[] = {
    {"F32", 4, WIRE_F32}, {"F64", 8, WIRE_F64}, {"F16", 2, WIRE_F16}, {"BF16", 2, WIRE_BF16},
    {"I64", 8, -1},       {"I32", 4, -1},       {"I16", 2, -1},       {"I8", 1, -1},
    {"U64", 8, -1},       {"U32", 4, -1},       {"U16", 2, -1},       {"U8", 1, -1},
    {"BOOL", 1, -1},      {"C64", 8, -1},       {"F8_E4M3", 1, -1},   {"F8_E5M2", 1, -1},
};
static const struct file_dtype unknown_dtype = {"a dtype that is not known here", 0, -1};

static bool malformed(struct msg_error *error, const char *what) {
    return msg_fail(error, MSG_MALFORMED_FILE, NULL, "not a safetensors file: %s", what);
}

// ---- one tensor

static bool take_size(size_t *size, const json_t *json) {
    if (!json_is_integer(json) || json_integer_value(json) < 0) return false;
    *size = (size_t)json_integer_value(json);
    return true;
}

static const struct file_dtype *find_dtype(const char *name) {
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        if (strcmp(dtypes[i].name, name) == 0) return &dtypes[i];
    }
    return &unknown_dtype;
}

// The product must not overflow, whatever stands beside a 0.
static bool take_shape(struct file_tensor *tensor, const json_t *shape, struct msg_error *error) {
    size_t product = 1;
    bool empty = false;
    for (size_t i = 0; i < json_array_size(shape); i++) {
        size_t length = 0;
        if (!take_size(&length, json_array_get(shape, i))) return malformed(error, "a length that is no integer");
        if (i < TENSOR_MAX_RANK) tensor->dim[i] = length;
        empty = empty || length == 0;
        if (length != 0 && __builtin_mul_overflow(product, length, &product))
            return malformed(error, "the product of a shape overflows");
    }
    tensor->rank = (int)json_array_size(shape);
    tensor->count = empty ? 0 : product;
    return true;
}

// `room`: bytes of values that the body has.
static bool take_info(struct file_tensor *tensor, const json_t *info, size_t room, struct msg_error *error) {
    const json_t *const shape = json_object_get(info, "shape"), *const offsets = json_object_get(info, "data_offsets");
    const char *const dtype = json_string_value(json_object_get(info, "dtype"));
    size_t begin = 0, end = 0, bytes = 0;
    if (dtype == NULL || !json_is_array(shape) || json_array_size(offsets) != 2 || json_object_size(info) != 3)
        return malformed(error, "a tensor has dtype, shape and data_offsets");
    tensor->dtype = find_dtype(dtype);
    if (!take_shape(tensor, shape, error)) return false;
    if (!take_size(&begin, json_array_get(offsets, 0)) || !take_size(&end, json_array_get(offsets, 1)) || begin > end ||
        end > room)
        return malformed(error, "data_offsets that do not lie within the file");
    if (tensor->dtype->size > 0 &&
        (__builtin_mul_overflow(tensor->count, tensor->dtype->size, &bytes) || bytes != end - begin))
        return malformed(error, "a tensor whose shape does not fit its data_offsets");
    tensor->at = begin;
    tensor->size = end - begin;
    return true;
}

// ---- the header

struct walk {
    struct safetensors_file *file;
    struct scan *scan;
    char *text;  // of the header, to write names into
    size_t room; // bytes of values
    bool has_texts;
};

// A table that cannot grow. Where not even the whole budget would hold body and table, trying again is of no use.
static bool no_memory(const struct walk *walk, const struct buffer *table) {
    const size_t body = walk->room + (size_t)(walk->scan->end - walk->scan->text), limit = walk->scan->budget->limit;
    if (table->refused > limit || body > limit - table->refused)
        return msg_fail(walk->scan->error, MSG_BODY_TOO_LARGE, NULL,
                        "the file with the table of its tensors takes more memory than the whole budget, %zu bytes",
                        limit);
    return msg_fail(walk->scan->error, MSG_MEMORY_FULL, NULL, "the header does not fit the memory budget");
}

// The unescaped name, in the place of the written one, which is not shorter and has quotes.
static const char *keep_name(const struct walk *walk, const struct scan_key *key) {
    char *const place = walk->text + (key->span.text - walk->scan->text);
    return memcpy(place, key->name, strlen(key->name) + 1);
}

static bool take_tensor(struct walk *walk, const struct scan_key *key) {
    struct scan_span span;
    if (scan_peek(walk->scan) != '{') return malformed(walk->scan->error, "what is told of a tensor is no object");
    if (!scan_skip(walk->scan, &span)) return false;
    if (span.length > INFO_MAX) return malformed(walk->scan->error, "what is told of a tensor is too long");
    struct file_tensor tensor = {.name = keep_name(walk, key)};
    json_t *const info = json_loadb(span.text, span.length, JSON_REJECT_DUPLICATES, NULL);
    const bool ok = info != NULL ? take_info(&tensor, info, walk->room, walk->scan->error)
                                 : malformed(walk->scan->error, "what is told of a tensor cannot be read");
    json_decref(info);
    return ok && (buffer_append(&walk->file->tensor_memory, &tensor, sizeof tensor) ||
                  no_memory(walk, &walk->file->tensor_memory));
}

static bool take_text(struct walk *walk, const struct scan_key *key) {
    struct file_text text;
    if (scan_peek(walk->scan) != '"') return malformed(walk->scan->error, "a value of __metadata__ is no string");
    if (!scan_skip(walk->scan, &text.value)) return false;
    text.name = keep_name(walk, key);
    return buffer_append(&walk->file->text_memory, &text, sizeof text) || no_memory(walk, &walk->file->text_memory);
}

static bool each_member(struct walk *walk, bool (*take)(struct walk *walk, const struct scan_key *key)) {
    struct scan_key key;
    bool more = true;
    if (!scan_object(walk->scan)) return false;
    for (bool first = true; scan_member(walk->scan, &key, &more, first); first = false) {
        if (!more) return true;
        if (!take(walk, &key)) return false;
        scan_end_member(walk->scan, &key);
    }
    return false;
}

static bool take_member(struct walk *walk, const struct scan_key *key) {
    if (strcmp(key->name, "__metadata__") != 0) return take_tensor(walk, key);
    if (walk->has_texts) return malformed(walk->scan->error, "__metadata__ is given twice");
    if (scan_peek(walk->scan) != '{') return malformed(walk->scan->error, "__metadata__ is no object");
    walk->has_texts = true;
    return each_member(walk, take_text);
}

// ---- order

static int by_place(const void *a, const void *b) {
    const struct file_tensor *const x = a, *const y = b;
    if (x->at != y->at) return x->at < y->at ? -1 : 1;
    return x->size < y->size ? -1 : x->size > y->size;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct file_tensor *)a)->name, ((const struct file_tensor *)b)->name);
}

static int by_text_name(const void *a, const void *b) {
    return strcmp(((const struct file_text *)a)->name, ((const struct file_text *)b)->name);
}

// No hole, no overlap, nothing behind.
static bool check_places(const struct safetensors_file *file, size_t room, struct msg_error *error) {
    size_t end = 0;
    if (file->tensor_count > 1) qsort(file->tensors, file->tensor_count, sizeof *file->tensors, by_place);
    for (size_t i = 0; i < file->tensor_count; i++) {
        if (file->tensors[i].at != end) return malformed(error, "its tensors overlap, or leave a hole");
        end += file->tensors[i].size;
    }
    return end == room || malformed(error, "it does not end where its last tensor does");
}

// Names that were cut are not compared: whatever they are, no layer has them.
static bool sort_by_name(const struct safetensors_file *file, struct msg_error *error) {
    if (file->tensor_count > 1) qsort(file->tensors, file->tensor_count, sizeof *file->tensors, by_name);
    if (file->text_count > 1) qsort(file->texts, file->text_count, sizeof *file->texts, by_text_name);
    for (size_t i = 1; i < file->tensor_count; i++) {
        const char *const name = file->tensors[i].name;
        if (strlen(name) < SCAN_KEY_MAX - 3 && strcmp(file->tensors[i - 1].name, name) == 0)
            return msg_fail(error, MSG_DUPLICATE_FIELD, NULL, "the tensor \"%.100s\" is given twice", name);
    }
    for (size_t i = 1; i < file->text_count; i++) {
        const char *const name = file->texts[i].name;
        if (strlen(name) < SCAN_KEY_MAX - 3 && strcmp(file->texts[i - 1].name, name) == 0)
            return msg_fail(error, MSG_DUPLICATE_FIELD, NULL, "__metadata__ has \"%.100s\" twice", name);
    }
    return true;
}

// ---- files

static bool read_header(struct safetensors_file *file, struct buffer *body, size_t length, struct budget *budget,
                        struct msg_error *error) {
    char *const text = (char *)body->data + sizeof(uint64_t);
    const size_t data = sizeof(uint64_t) + length, room = body->size - data;
    struct scan scan;
    struct walk walk = {.file = file, .scan = &scan, .text = text, .room = room};
    scan_start(&scan, text, length, budget, error);
    if (length == 0 || text[0] != '{') return malformed(error, "its header is not a JSON object");
    if (!each_member(&walk, take_member) || !scan_finish(&scan)) return false;
    file->tensors = (struct file_tensor *)(void *)file->tensor_memory.data;
    file->tensor_count = file->tensor_memory.size / sizeof *file->tensors;
    file->texts = (struct file_text *)(void *)file->text_memory.data;
    file->text_count = file->text_memory.size / sizeof *file->texts;
    if (!check_places(file, room, error) || !sort_by_name(file, error)) return false;
    for (size_t i = 0; i < file->tensor_count; i++) file->tensors[i].at += data;
    return true;
}

bool safetensors_open(struct safetensors_file *file, struct buffer *body, struct budget *budget,
                      struct msg_error *error) {
    *file = (struct safetensors_file){.tensor_memory.budget = budget, .text_memory.budget = budget};
    if (body->size < sizeof(uint64_t)) return malformed(error, "it is shorter than a length");
    uint64_t length = 0;
    for (size_t i = sizeof length; i-- > 0;) length = length << 8 | body->data[i];
    if (length > SAFETENSORS_READABLE) return malformed(error, "its header is longer than 100000000 bytes");
    if (length > body->size - sizeof length) return malformed(error, "it ends within its header");
    if (read_header(file, body, (size_t)length, budget, error)) return true;
    if (error->code == MSG_MALFORMED_JSON) {
        const struct msg_error why = *error;
        error->code = MSG_OK;
        msg_fail(error, MSG_MALFORMED_FILE, NULL, "not a safetensors file: its header, %.200s", why.detail);
    }
    return false;
}

void safetensors_close(struct safetensors_file *file) {
    buffer_free(&file->tensor_memory);
    buffer_free(&file->text_memory);
}

struct file_tensor *safetensors_find(const struct safetensors_file *file, const char *name) {
    const struct file_tensor key = {.name = name};
    if (file->tensor_count == 0) return NULL;
    return bsearch(&key, file->tensors, file->tensor_count, sizeof key, by_name);
}

json_t *safetensors_value(const struct file_text *text) {
    if (text->value.length > JSON_REST_MAX) return NULL;
    json_t *const string = json_loadb(text->value.text, text->value.length, JSON_DECODE_ANY, NULL);
    json_t *const value = json_loadb(string != NULL ? json_string_value(string) : "", json_string_length(string),
                                     JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, NULL);
    json_decref(string);
    return value;
}

void safetensors_name_field(struct msg_error *error) {
    if (error->code != MSG_UNKNOWN_FIELD || !error->has_pointer) return;
    snprintf(error->detail, sizeof error->detail, "there is no field \"%.60s\" here", error->pointer + 1);
}

bool safetensors_tensor(struct tensor *tensor, const struct file_tensor *from, struct msg_error *error) {
    const bool empty = from->rank == 1 && from->count == 0;
    if (from->dtype->wire < 0)
        return msg_fail(error, MSG_WRONG_TYPE, NULL, "%.100s is %s, not F32, F64, F16 or BF16", from->name,
                        from->dtype->name);
    if ((from->rank < TENSOR_MIN_RANK || from->rank > TENSOR_MAX_RANK) && !empty)
        return msg_fail(error, MSG_SHAPE_MISMATCH, NULL, "%.100s has rank %d, not 2 to 8", from->name, from->rank);
    tensor->rank = empty ? 0 : from->rank;
    for (int l = 0; l < tensor->rank; l++) tensor->dim[l] = from->dim[l];
    tensor->wire = (enum wire_dtype)from->dtype->wire;
    return tensor_count(&tensor->count, tensor->dim, tensor->rank) ||
           msg_fail(error, MSG_SHAPE_MISMATCH, NULL, "%.100s is too large", from->name);
}
