// SPDX-License-Identifier: Apache-2.0
#include "etag.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static uint64_t salt_of_process;

void etag_start(uint64_t salt) {
    salt_of_process = salt;
}

void etag_format(char etag[ETAG_MAX], const struct layer_state *state) {
    snprintf(etag, ETAG_MAX, "\"%" PRIu64 "-%016" PRIx64 "\"", state->version, state->id ^ salt_of_process);
}

bool etag_any(const struct field_lines *lines) {
    for (unsigned i = 0; i < lines->count; i++) {
        const char *const word = lines->values[i] + strspn(lines->values[i], " \t");
        if (word[0] == '*' && word[1 + strspn(word + 1, " \t")] == '\0') return true;
    }
    return false;
}

// The end of the tag, and of the white space behind it; NULL where there is none.
static const char *tag_end(const char *at) {
    if (strncmp(at, "W/", 2) == 0) at += 2;
    if (*at++ != '"') return NULL;
    while (*at != '"' && (unsigned char)*at > ' ' && *at != 0x7f) at++;
    if (*at++ != '"') return NULL;
    at += strspn(at, " \t");
    return *at == ',' || *at == '\0' ? at : NULL;
}

bool etag_valid(const struct field_lines *lines) {
    bool any = lines->count == 0;
    for (unsigned i = 0; i < lines->count; i++) {
        const char *at = lines->values[i] + strspn(lines->values[i], " \t,");
        if (*at == '*') {
            if (at[1 + strspn(at + 1, " \t,")] != '\0') return false;
            any = true;
            continue;
        }
        for (; *at != '\0'; at += strspn(at, " \t,")) {
            at = tag_end(at);
            if (at == NULL) return false;
            any = true;
        }
    }
    return any;
}

static bool line_matches(const char *field, const char *etag, bool weak) {
    const size_t length = strlen(etag);
    for (const char *at = field;;) {
        at += strspn(at, " \t,");
        if (*at == '\0') return false;
        if (*at == '*') return true;
        const bool is_weak = strncmp(at, "W/", 2) == 0;
        if (is_weak) at += 2;
        if ((weak || !is_weak) && strncmp(at, etag, length) == 0) return true;
        const char *const close = *at == '"' ? strchr(at + 1, '"') : NULL;
        if (close == NULL) return false;
        at = close + 1;
    }
}

bool etag_matches(const struct field_lines *lines, const struct layer_state *state, bool weak) {
    char etag[ETAG_MAX];
    if (state == NULL || lines->count == 0) return false;
    etag_format(etag, state);
    for (unsigned i = 0; i < lines->count; i++) {
        if (line_matches(lines->values[i], etag, weak)) return true;
    }
    return false;
}
