// SPDX-License-Identifier: Apache-2.0
#include "json_fields.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "json.h"

// ---- fields

const struct field *field_find(const struct field *table, const char *name) {
    while (table->name != NULL && strcmp(table->name, name) != 0) table++;
    return table->name != NULL ? table : NULL;
}

void field_pointer(char pointer[MSG_POINTER_MAX], const char *parent, const char *name) {
    struct scan scan = {.pointer_length = strlen(parent)};
    memcpy(scan.pointer, parent, scan.pointer_length + 1);
    scan_push(&scan, name);
    memcpy(pointer, scan.pointer, MSG_POINTER_MAX);
}

bool field_whole(int64_t *value, bool *fits, const json_t *json) {
    const double real = json_is_real(json) ? json_real_value(json) : 0;
    *fits = real >= -9223372036854775808.0 && real < 9223372036854775808.0;
    *value = json_is_integer(json) ? json_integer_value(json) : *fits ? (int64_t)real : 0;
    return json_is_integer(json) || (json_is_real(json) && real == floor(real));
}

static bool set_integer(int64_t *value, const struct field *field, const json_t *json, const char *pointer,
                        struct msg_error *error) {
    bool fits = false;
    if (!field_whole(value, &fits, json))
        return msg_fail(error, MSG_WRONG_TYPE, pointer, "%s is an integer", field->name);
    if (fits && *value >= (int64_t)field->low && *value <= (int64_t)field->high) return true;
    return msg_fail(error, MSG_OUT_OF_RANGE, pointer, "%s is from %.0f to %.0f", field->name, field->low, field->high);
}

static bool set_real(double *value, const struct field *field, const json_t *json, const char *pointer,
                     struct msg_error *error) {
    if (field->type == FIELD_REAL_OR_NULL && json_is_null(json)) {
        *value = NAN;
        return true;
    }
    if (!json_is_number(json)) return msg_fail(error, MSG_WRONG_TYPE, pointer, "%s is a number", field->name);
    *value = json_number_value(json) + 0.0; // minus zero is zero: the two are equal, so they must be stored alike
    if (field->type == FIELD_POSITIVE) {
        return *value > 0 || msg_fail(error, MSG_OUT_OF_RANGE, pointer, "%s is greater than 0", field->name);
    }
    if (*value >= field->low && *value <= field->high) return true;
    return msg_fail(error, MSG_OUT_OF_RANGE, pointer, "%s is from %g to %g", field->name, field->low, field->high);
}

bool field_is_word(const json_t *json, const char *word) {
    return json_string_length(json) == strlen(word) && memcmp(json_string_value(json), word, strlen(word)) == 0;
}

static bool set_word(int *value, const struct field *field, const json_t *json, const char *pointer,
                     struct msg_error *error) {
    if (!json_is_string(json)) return msg_fail(error, MSG_WRONG_TYPE, pointer, "%s is a string", field->name);
    char expected[MSG_DETAIL_MAX] = "";
    size_t n = 0;
    for (int i = 0; field->words[i] != NULL; i++) {
        if (field_is_word(json, field->words[i])) {
            *value = (int)field->low + i;
            return true;
        }
        n += (size_t)snprintf(expected + n, sizeof expected - n, "%s\"%s\"", i > 0 ? ", " : "", field->words[i]);
    }
    return msg_fail(error, MSG_OUT_OF_RANGE, pointer, "%s is one of %.200s", field->name, expected);
}

static bool set_cache_id(char *value, const struct field *field, const json_t *json, const char *pointer,
                         struct msg_error *error) {
    if (!json_is_string(json)) return msg_fail(error, MSG_WRONG_TYPE, pointer, "%s is a string", field->name);
    const size_t length = json_string_length(json);
    if (length == 0) return msg_fail(error, MSG_OUT_OF_RANGE, pointer, "%s is empty", field->name);
    if (length > MSG_CACHE_ID_MAX || strlen(json_string_value(json)) != length) // no id has a NUL
        return msg_fail(error, MSG_CACHE_GONE, pointer, "no pass has such an id; send x instead");
    memcpy(value, json_string_value(json), length + 1);
    return true;
}

bool field_set(void *message, const struct field *field, const json_t *json, const char *pointer,
               struct msg_error *error) {
    void *const at = (char *)message + field->offset;
    switch (field->type) {
    case FIELD_BOOL:
        if (!json_is_boolean(json)) return msg_fail(error, MSG_WRONG_TYPE, pointer, "%s is true or false", field->name);
        *(bool *)at = json_is_true(json);
        return true;
    case FIELD_INTEGER: return set_integer(at, field, json, pointer, error);
    case FIELD_REAL:
    case FIELD_POSITIVE:
    case FIELD_REAL_OR_NULL: return set_real(at, field, json, pointer, error);
    case FIELD_WORD: return set_word(at, field, json, pointer, error);
    case FIELD_CACHE_ID: return set_cache_id(at, field, json, pointer, error);
    case FIELD_READ_ONLY:
    case FIELD_APART: return true;
    }
    return true;
}

bool field_set_all(void *message, unsigned *given, const struct field *table, json_t *object, const char *parent,
                   struct msg_error *error) {
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value) {
        char pointer[MSG_POINTER_MAX];
        field_pointer(pointer, parent, name);
        const struct field *const field = field_find(table, name);
        if (field == NULL) return msg_fail(error, MSG_UNKNOWN_FIELD, pointer, "there is no such field here");
        if (!field_set(message, field, value, pointer, error)) return false;
        if (given != NULL) *given |= field->bit;
    }
    return true;
}

// ---- the small rest of a body

// The member of the object at hand whose value reaches to `position`, if it is an object, is put into the scan's
// pointer, and so on into that value. jansson says where in the text a number ended, but not of which field it was.
static void point_at(struct scan *scan, struct scan_span text, size_t position) {
    struct msg_error ignored = {0};
    struct scan inner;
    struct scan_key key;
    scan_start(&inner, text.text, text.length, NULL, &ignored);
    bool more = scan_peek(&inner) == '{' && scan_object(&inner);
    for (bool first = true; more && scan_member(&inner, &key, &more, first) && more; first = false) {
        struct scan_span value;
        if (!scan_skip(&inner, &value)) return;
        scan_end_member(&inner, &key);
        const size_t from = (size_t)(value.text - text.text);
        if (from + value.length < position) continue;
        scan_push(scan, key.name);
        point_at(scan, value, position - from);
        return;
    }
}

// The scanner has passed the grammar. What jansson refuses beyond it are characters, numbers and duplicates; anything
// else is a token that it had no memory for.
static bool value_failed(struct scan *scan, struct scan_span text, const json_error_t *why) {
    const enum json_error_code code = json_error_code(why);
    const size_t length = scan->pointer_length;
    if (code == json_error_invalid_utf8 || strncmp(why->text, "invalid Unicode", 15) == 0)
        return scan_malformed(scan, "a string holds half of a surrogate pair");
    if (code != json_error_duplicate_key && code != json_error_numeric_overflow && code != json_error_null_byte_in_key)
        return msg_fail(scan->error, MSG_MEMORY_FULL, NULL, "out of memory");
    if (code == json_error_duplicate_key) {
        msg_fail(scan->error, MSG_DUPLICATE_FIELD, scan->pointer, "a field in it is given twice");
    } else if (code == json_error_null_byte_in_key) {
        msg_fail(scan->error, MSG_UNKNOWN_FIELD, scan->pointer, "there is no such field here");
    } else {
        if (why->position > 0) point_at(scan, text, (size_t)why->position);
        msg_fail(scan->error, MSG_OVERFLOW, scan->pointer, "the number is too large");
    }
    scan_pop(scan, length);
    return false;
}

static const struct field *known_field(const struct rest *rest, const char *name) {
    const struct field *field = NULL;
    for (int i = 0; i < 2 && field == NULL; i++) {
        if (rest->known[i] != NULL) field = field_find(rest->known[i], name);
    }
    return field;
}

bool rest_take(struct rest *rest, struct scan *scan, const struct scan_key *key) {
    struct scan_span text;
    json_error_t why;
    const struct field *const field = known_field(rest, key->name);
    if (field == NULL) return scan_refuse(scan, MSG_UNKNOWN_FIELD, "there is no such field here");
    if (!scan_skip(scan, &text)) return false;
    rest->size += key->span.length + text.length;
    if (rest->size > JSON_REST_MAX) {
        msg_fail(scan->error, MSG_BODY_TOO_LARGE, NULL, "the fields besides tensors take more than %zu bytes",
                 JSON_REST_MAX);
        return true;
    }
    if (rest->object == NULL) rest->object = json_object();
    if (rest->object == NULL) {
        msg_fail(scan->error, MSG_MEMORY_FULL, NULL, "out of memory");
        return true;
    }
    if (json_object_get(rest->object, key->name) != NULL) {
        msg_fail(scan->error, MSG_DUPLICATE_FIELD, scan->pointer, "the field is given twice");
        return true;
    }
    json_t *const value =
        json_loadb(text.text, text.length, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
    if (value == NULL) return value_failed(scan, text, &why) || scan->error->code != MSG_MALFORMED_JSON;
    // A known field has a name in UTF-8, so this can only be memory.
    if (json_object_set_new(rest->object, key->name, value) != 0)
        msg_fail(scan->error, MSG_MEMORY_FULL, NULL, "out of memory");
    return true;
}

void rest_free(struct rest *rest) {
    json_decref(rest->object);
    *rest = (struct rest){0};
}
