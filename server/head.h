// SPDX-License-Identifier: Apache-2.0
//
// The head of a request: what its fields say, and the checks that libmicrohttpd 0.9.75 does not make. It accepts two
// lengths, a length with chunks, codings that it does not know and names with spaces, and then serves what a sender hid
// behind them as the next request. Knows no HTTP library: fields come in one by one.
#ifndef NORMD_SERVER_HEAD_H
#define NORMD_SERVER_HEAD_H

#include <stdbool.h>
#include <stdint.h>

#include "etag.h"
#include "job.h"
#include "../proto/message.h"

struct route;

struct head {
    // Values are borrowed from the connection; NULL: not given.
    const char *content_type, *content_encoding, *transfer_encoding, *expect;
    const char *idempotency_key, *inference_header, *origin;
    struct field_lines accept, accept_encoding, if_match, if_none_match;
    int hosts, lengths, codings;
    bool has_length, bad_length;
    uint64_t length; // Content-Length; UINT64_MAX where it does not fit
    bool repeated;   // a field that may stand once stands twice, or a list field too often
    bool bad_field;  // a name that is no token, or a control character in a value
};

// Notes one field.
void head_add(struct head *head, const char *name, const char *value);

// False where the boundaries of the message cannot be trusted. `version` is "HTTP/1.1".
bool head_check_framing(const struct head *head, const char *path, const char *version, struct msg_error *error);

bool head_has_body(const struct head *head);
bool head_expects_continue(const struct head *head, const char *version);

// Sets the forms in which the body comes and the reply goes: what Accept weighs most, of equal ones that of the body,
// then that of the lower number. Those of /v2 do not depend on either. False where the request cannot be served by the
// route: body where there is none, media types, idempotency keys.
bool head_check(const struct head *head, const struct route *route, struct job_forms *forms, struct msg_error *error);

#endif
