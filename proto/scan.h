// SPDX-License-Identifier: Apache-2.0
//
// Walks a JSON text once, without building a tree: the caller asks for the members of an object one by one, and reads
// number arrays straight into tensors and vectors. What else a member holds is skipped, and its text handed out.
//
// Two kinds of failure. A text that is no JSON ends the walk: functions return false and the error is malformed_json,
// whatever was found before. A value that is JSON but not what was asked for is put into the error (the first one
// counts), the value is skipped, and the walk goes on, so that a malformed text is always called that.
#ifndef NORMD_PROTO_SCAN_H
#define NORMD_PROTO_SCAN_H

#include <stdbool.h>
#include <stddef.h>

#include "message.h"
#include "tensor.h"

// Values nested deeper than this are refused as malformed; no message of the API needs more than 12.
#define SCAN_MAX_DEPTH 64

// The longest key that is told apart, without NUL; a longer one is cut, which no known field is.
#define SCAN_KEY_MAX 160

struct ahead;

struct scan {
    const char *text, *at, *end;
    struct msg_error *error;       // borrowed
    struct budget *budget;         // what tensors are charged to; borrowed
    struct ahead *ahead;           // what was read of the arrays before the text was complete (ahead.h); NULL: nothing
    char pointer[MSG_POINTER_MAX]; // of the value at hand
    size_t pointer_length;
};

struct scan_span {
    const char *text;
    size_t length;
};

struct scan_key {
    char name[SCAN_KEY_MAX + 1]; // unescaped
    struct scan_span span;       // as written, quotes included
    size_t parent_length;        // of the pointer; scan_end_member needs it
};

void scan_start(struct scan *scan, const char *text, size_t length, struct budget *budget, struct msg_error *error);

// False where nothing but white space is allowed and something stands.
bool scan_finish(struct scan *scan);

// Skips white space; the first byte of the value at hand, 0 at the end.
char scan_peek(struct scan *scan);

// Steps into an object: then scan_member gives its members, one a call, until `*more` is false. After each the caller
// reads exactly one value and calls scan_end_member.
bool scan_object(struct scan *scan);
bool scan_member(struct scan *scan, struct scan_key *key, bool *more, bool first);
void scan_end_member(struct scan *scan, const struct scan_key *key);

// The same for arrays: scan_item counts the values that were read before. scan_end_item takes what it gave.
bool scan_array(struct scan *scan);
bool scan_item(struct scan *scan, size_t index, bool *more, size_t *parent_length);
void scan_end_item(struct scan *scan, size_t parent_length);

// Skips one value of any kind. span may be NULL.
bool scan_skip(struct scan *scan, struct scan_span *span);

// The text of a string that was skipped before: what stands between its quotes, in UTF-8. Cut as a key is; NUL and half
// a surrogate pair become U+FFFD, for no known word has them.
void scan_unescape(char out[SCAN_KEY_MAX + 1], struct scan_span span);

// Records what is wrong with the value at hand, and skips it.
__attribute__((format(printf, 3, 4))) bool scan_refuse(struct scan *scan, enum msg_code code, const char *format, ...);

// Ends the walk: what was expected where the text stands now. Returns false.
bool scan_malformed(struct scan *scan, const char *expected);

// Appends a token to the pointer (RFC 6901: ~ is ~0 and / is ~1; cut where it would not fit), and cuts it back.
void scan_push(struct scan *scan, const char *token);
void scan_pop(struct scan *scan, size_t length);

// Reads a tensor in one of the three JSON forms, its elements as `dtype`.
bool scan_tensor(struct scan *scan, struct tensor *tensor, enum bn_dtype dtype);

// Reads numbers in arrays, flat or nested: values, count and first_nonfinite of the tensor, and as rank (from 1 on) and
// dim how they are nested.
bool scan_numbers(struct scan *scan, struct tensor *tensor, enum bn_dtype dtype);

// Reads the shape of a tensor: rank, dim and count.
bool scan_shape(struct scan *scan, struct tensor *tensor);

// Reads the base64 text of a tensor (what stands between the quotes, which is JSON) whose shape and wire type are
// known. What is wrong with it is put into the error.
void scan_base64(struct scan *scan, struct tensor *tensor, struct scan_span text);

// The value of the four hexadecimal digits of a \uXXXX that was skipped before.
unsigned scan_hex4(const char *digits);

// Reads null or an array of numbers as double.
bool scan_vector(struct scan *scan, struct msg_vector *vector);

// The pointer of element `index` of a tensor that was read from the member `field` of the body.
void scan_tensor_pointer(char pointer[MSG_POINTER_MAX], const char *field, const struct tensor *tensor, size_t index);

#endif
