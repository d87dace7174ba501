// SPDX-License-Identifier: Apache-2.0
//
// Entity tags of layers, and the preconditions that carry them (RFC 9110, sections 8.8.3 and 13.1).
#ifndef NORMD_SERVER_ETAG_H
#define NORMD_SERVER_ETAG_H

#include <stdbool.h>

#include "layer.h"

#define FIELD_LINES_MAX 4

// The lines of a list field, which may stand in a head more than once. Values are borrowed.
struct field_lines {
    const char *values[FIELD_LINES_MAX];
    unsigned count;
};

#define ETAG_MAX 48

// Makes all tags others than those of a process with another salt. For stores that may lose acknowledged changes in a
// crash: a version that was given before may then be given again to another state. Once, before threads start; 0 until
// then, which is for stores that lose none.
void etag_start(uint64_t salt);

// "VERSION-ID" with its quotes, the salt in the id.
void etag_format(char etag[ETAG_MAX], const struct layer_state *state);

// True where the field value of If-Match or If-None-Match names this state: `*`, or its tag in the list. NULL state:
// there is no layer, nothing matches. `weak`: W/ tags compare too (If-None-Match).
bool etag_matches(const struct field_lines *lines, const struct layer_state *state, bool weak);

// True where each line is `*` or a list of tags (RFC 9110, section 8.8.3), and not all are empty.
bool etag_valid(const struct field_lines *lines);

// True where one of the lines is `*`, which names whatever exists.
bool etag_any(const struct field_lines *lines);

#endif
