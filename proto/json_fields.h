// SPDX-License-Identifier: Apache-2.0
//
// Private to the codecs that hold JSON: fields of messages by table, and the small rest of a body, which jansson
// parses.
#ifndef NORMD_PROTO_JSON_FIELDS_H
#define NORMD_PROTO_JSON_FIELDS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "json.h"
#include "message.h"
#include "scan.h"

// Reads the value of the member `key`, at whose value the scan stands. False: malformed.
typedef bool (*field_take)(void *context, struct scan *scan, const struct scan_key *key);

// Walks the members of the object at which the scan stands. False: malformed.
bool field_members(struct scan *scan, field_take take, void *context);

// Walks the members of a body that is an object.
bool field_walk(struct json_body body, field_take take, void *context, struct msg_error *error);

enum field_type {
    FIELD_BOOL,         // bool
    FIELD_INTEGER,      // int64_t in [low, high]
    FIELD_REAL,         // double in [low, high]
    FIELD_POSITIVE,     // double > 0, finite
    FIELD_REAL_OR_NULL, // double in [low, high]; null is NaN
    FIELD_WORD,         // int: `low` plus the index in `words`
    FIELD_CACHE_ID,     // char[MSG_CACHE_ID_MAX + 1]
    FIELD_READ_ONLY,    // what GET gives: taken, and ignored
    FIELD_APART,        // known here; whoever has the table reads and checks it apart
};

struct field {
    const char *name;
    enum field_type type;
    size_t offset; // within the message
    double low, high;
    const char *const *words; // ends with NULL
    unsigned bit;             // in the message's `given`
};

// The last row of a table.
#define FIELD_END                                                                                                      \
    { NULL, FIELD_BOOL, 0, 0, 0, NULL, 0 }

// The row of `name`, or NULL.
const struct field *field_find(const struct field *table, const char *name);

// Sets one field of the message from its value. False where `error` says why not, at `pointer`.
bool field_set(void *message, const struct field *field, const json_t *json, const char *pointer,
               struct msg_error *error);

// Sets all fields that the object has, and the bits of those in *given (may be NULL). Unknown ones are refused.
bool field_set_all(void *message, unsigned *given, const struct field *table, json_t *object, const char *parent,
                   struct msg_error *error);

// True where the number is whole, as 3 or 3.0. *fits: within int64_t, and then *value holds it.
bool field_whole(int64_t *value, bool *fits, const json_t *json);

// True where the value is this string; a string with NUL in it is no word.
bool field_is_word(const json_t *json, const char *word);

// The configuration of a layer from its object.
bool field_set_config(struct msg_config *config, json_t *object, const char *parent, struct msg_error *error);

// The fields of a call besides its tensors. Takes some out of the object.
bool field_set_call(struct msg_call *call, enum msg_call_kind kind, json_t *object, struct msg_error *error);

// Which tensors a call came with.
struct field_tensors {
    bool x, dout, residual;
};

// What must and must not be given together.
bool field_check_call(const struct msg_call *call, enum msg_call_kind kind, struct field_tensors given,
                      struct msg_error *error);

// The pointer of member `name` of the value at `parent`.
void field_pointer(char pointer[MSG_POINTER_MAX], const char *parent, const char *name);

// Members of an object that no tensor or vector claims. Empty with the tables of the fields that it may have, which the
// caller sets: any other is refused before its size counts.
struct rest {
    const struct field *known[2]; // NULL: no such table
    json_t *object;               // owned; NULL while empty
    size_t size;                  // bytes of text so far
};

// Parses the member's value, at which the scan stands, and keeps it. False where the text is malformed; what is wrong
// with the value otherwise is put into the scan's error.
bool rest_take(struct rest *rest, struct scan *scan, const struct scan_key *key);

// The whole body as one parsed object, for bodies without tensors. The rest is to be freed in any case.
bool rest_parse(struct rest *rest, struct json_body body, struct msg_error *error);

void rest_free(struct rest *rest);

#endif
