// SPDX-License-Identifier: Apache-2.0
#include "scan.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool scan_malformed(struct scan *scan, const char *expected) {
    scan->error->code = MSG_OK;
    return msg_fail(scan->error, MSG_MALFORMED_JSON, NULL, "byte %zu: %s", (size_t)(scan->at - scan->text), expected);
}

static void skip_space(struct scan *scan) {
    while (scan->at < scan->end && (*scan->at == ' ' || *scan->at == '\n' || *scan->at == '\t' || *scan->at == '\r')) {
        scan->at++;
    }
}

char scan_peek(struct scan *scan) {
    skip_space(scan);
    return scan->at < scan->end ? *scan->at : '\0';
}

void scan_start(struct scan *scan, const char *text, size_t length, struct budget *budget, struct msg_error *error) {
    *scan = (struct scan){.text = text, .at = text, .end = text + length, .budget = budget, .error = error};
}

bool scan_finish(struct scan *scan) {
    skip_space(scan);
    return scan->at == scan->end || scan_malformed(scan, "expected the end of the text");
}

// ---- skipping

static bool skip_escape(struct scan *scan) {
    if (scan->at == scan->end) return scan_malformed(scan, "the text ends within a string");
    const char c = *scan->at++;
    if (c != 'u') return (c != '\0' && strchr("\"\\/bfnrt", c) != NULL) || scan_malformed(scan, "no such escape");
    for (int i = 0; i < 4; i++) {
        if (scan->at == scan->end) return scan_malformed(scan, "the text ends within a string");
        const char h = *scan->at++;
        const bool hex = (h >= '0' && h <= '9') || (h >= 'a' && h <= 'f') || (h >= 'A' && h <= 'F');
        if (!hex) return scan_malformed(scan, "\\u takes four hexadecimal digits");
    }
    return true;
}

// Bytes of the UTF-8 character beyond ASCII at `text`; 0 where there is none. RFC 3629, section 4.
static size_t character_length(const char *text, size_t room) {
    const unsigned char *const byte = (const unsigned char *)text;
    const unsigned char a = byte[0], b = room > 1 ? byte[1] : 0;
    const size_t length = a >= 0xc2 && a < 0xe0 ? 2 : a >= 0xe0 && a < 0xf0 ? 3 : a >= 0xf0 && a < 0xf5 ? 4 : 0;
    const bool longer = (a == 0xe0 && b < 0xa0) || (a == 0xf0 && b < 0x90); // than it must be
    const bool none = (a == 0xed && b >= 0xa0) || (a == 0xf4 && b >= 0x90); // surrogates, and past U+10FFFF
    if (length > room || longer || none) return 0;
    for (size_t i = 1; i < length; i++) {
        if ((byte[i] & 0xc0) != 0x80) return 0;
    }
    return length;
}

// The span is what stands between the quotes, escapes as written.
static bool skip_string(struct scan *scan, struct scan_span *span) {
    if (scan_peek(scan) != '"') return scan_malformed(scan, "expected a string");
    const char *const start = ++scan->at;
    while (scan->at < scan->end) {
        const unsigned char c = (unsigned char)*scan->at++;
        if (c == '"') {
            *span = (struct scan_span){start, (size_t)(scan->at - 1 - start)};
            return true;
        }
        if (c == '\\' && !skip_escape(scan)) return false;
        if (c >= 0x20 && c < 0x80) continue;
        if (c < 0x20) return scan_malformed(scan, "a control character within a string");
        scan->at--;
        const size_t length = character_length(scan->at, (size_t)(scan->end - scan->at));
        if (length == 0) return scan_malformed(scan, "not UTF-8");
        scan->at += length;
    }
    return scan_malformed(scan, "the text ends within a string");
}

static bool skip_word(struct scan *scan, const char *word) {
    const size_t length = strlen(word);
    if ((size_t)(scan->end - scan->at) < length || memcmp(scan->at, word, length) != 0) {
        return scan_malformed(scan, "expected a value");
    }
    scan->at += length;
    return true;
}

static bool skip_digits(struct scan *scan) {
    const char *const start = scan->at;
    while (scan->at < scan->end && *scan->at >= '0' && *scan->at <= '9') scan->at++;
    return scan->at > start || scan_malformed(scan, "expected a digit");
}

static bool skip_number(struct scan *scan) {
    if (*scan->at == '-') scan->at++;
    if (scan->at < scan->end && *scan->at == '0') {
        scan->at++;
    } else if (!skip_digits(scan)) {
        return false;
    }
    if (scan->at < scan->end && *scan->at == '.') {
        scan->at++;
        if (!skip_digits(scan)) return false;
    }
    if (scan->at < scan->end && (*scan->at == 'e' || *scan->at == 'E')) {
        scan->at++;
        if (scan->at < scan->end && (*scan->at == '+' || *scan->at == '-')) scan->at++;
        if (!skip_digits(scan)) return false;
    }
    return true;
}

static bool skip_scalar(struct scan *scan) {
    struct scan_span span;
    switch (scan_peek(scan)) {
    case '"': return skip_string(scan, &span);
    case 't': return skip_word(scan, "true");
    case 'f': return skip_word(scan, "false");
    case 'n': return skip_word(scan, "null");
    case '-':
    case '0':
    case '1':
    case '2':
    case '3':
    case '4':
    case '5':
    case '6':
    case '7':
    case '8':
    case '9': return skip_number(scan);
    default: return scan_malformed(scan, "expected a value");
    }
}

static bool skip_key(struct scan *scan) {
    struct scan_span span;
    if (!skip_string(scan, &span)) return false;
    if (scan_peek(scan) != ':') return scan_malformed(scan, "expected ':'");
    scan->at++;
    return true;
}

static bool skip_open(struct scan *scan, char closers[SCAN_MAX_DEPTH], int *depth) {
    if (*depth == SCAN_MAX_DEPTH) return scan_malformed(scan, "nested too deeply");
    const bool object = *scan->at++ == '{';
    closers[(*depth)++] = object ? '}' : ']';
    return true;
}

// An explicit stack instead of recursion: hostile nesting costs no C stack.
bool scan_skip(struct scan *scan, struct scan_span *span) {
    char closers[SCAN_MAX_DEPTH];
    int depth = 0;
    skip_space(scan);
    const char *const start = scan->at;
    do {
        const char c = scan_peek(scan);
        bool opened = false;
        if (c == '[' || c == '{') {
            if (!skip_open(scan, closers, &depth)) return false;
            opened = true;
        } else if (!skip_scalar(scan)) {
            return false;
        }
        while (depth > 0) {
            const char next = scan_peek(scan);
            if (next == closers[depth - 1]) {
                scan->at++;
                depth--;
                opened = false;
                continue;
            }
            const bool object = closers[depth - 1] == '}';
            if (!opened && next != ',')
                return scan_malformed(scan, object ? "expected ',' or '}'" : "expected ',' or ']'");
            if (!opened) scan->at++;
            if (object && !skip_key(scan)) return false;
            break;
        }
    } while (depth > 0);
    if (span != NULL) *span = (struct scan_span){start, (size_t)(scan->at - start)};
    return true;
}

bool scan_refuse(struct scan *scan, enum msg_code code, const char *format, ...) {
    char detail[MSG_DETAIL_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(detail, sizeof detail, format, arguments);
    va_end(arguments);
    msg_fail(scan->error, code, scan->pointer, "%s", detail);
    return scan_skip(scan, NULL);
}

// ---- objects

static void put_utf8(char *out, size_t *n, unsigned code) {
    char bytes[4];
    size_t count = 0;
    if (code == 0 || (code >= 0xd800 && code < 0xe000)) code = 0xfffd; // no known name has NUL or half a surrogate pair
    if (code < 0x80) {
        bytes[count++] = (char)code;
    } else if (code < 0x800) {
        bytes[count++] = (char)(0xc0 | code >> 6);
        bytes[count++] = (char)(0x80 | (code & 0x3f));
    } else {
        if (code >= 0x10000) bytes[count++] = (char)(0xf0 | code >> 18);
        bytes[count++] = (char)(code < 0x10000 ? 0xe0 | code >> 12 : 0x80 | (code >> 12 & 0x3f));
        bytes[count++] = (char)(0x80 | (code >> 6 & 0x3f));
        bytes[count++] = (char)(0x80 | (code & 0x3f));
    }
    if (*n + count > SCAN_KEY_MAX) return;
    memcpy(out + *n, bytes, count);
    *n += count;
}

unsigned scan_hex4(const char *digits) {
    unsigned code = 0;
    for (int i = 0; i < 4; i++) {
        const char c = digits[i];
        code = code << 4 | (unsigned)(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return code;
}

// The character of \uXXXX at `at` of the span, or of a pair of them; *length: bytes of text that it took.
static unsigned escaped_character(struct scan_span span, size_t at, size_t *length) {
    const unsigned code = scan_hex4(span.text + at + 2);
    *length = 6;
    const bool pair =
        code >= 0xd800 && code < 0xdc00 && at + 12 <= span.length && memcmp(span.text + at + 6, "\\u", 2) == 0;
    const unsigned low = pair ? scan_hex4(span.text + at + 8) : 0;
    if (low < 0xdc00 || low >= 0xe000) return code;
    *length = 12;
    return 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
}

void scan_unescape(char out[SCAN_KEY_MAX + 1], struct scan_span span) {
    static const char plain[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    size_t n = 0;
    for (size_t i = 0; i < span.length; i++) {
        if (span.text[i] != '\\') {
            if (n < SCAN_KEY_MAX) out[n++] = span.text[i];
        } else if (span.text[i + 1] == 'u') {
            size_t length = 0;
            put_utf8(out, &n, escaped_character(span, i, &length));
            i += length - 1;
        } else {
            put_utf8(out, &n, (unsigned char)meant[strchr(plain, span.text[i + 1]) - plain]);
            i += 1;
        }
    }
    out[n] = '\0';
}

void scan_push(struct scan *scan, const char *token) {
    size_t n = scan->pointer_length;
    const size_t room = sizeof scan->pointer - 1;
    if (n < room) scan->pointer[n++] = '/';
    for (const char *t = token; *t != '\0' && n + 2 <= room; t++) {
        const bool escape = *t == '~' || *t == '/';
        scan->pointer[n++] = escape ? '~' : *t;
        if (escape) scan->pointer[n++] = *t == '~' ? '0' : '1';
    }
    scan->pointer[n] = '\0';
    scan->pointer_length = n;
}

void scan_pop(struct scan *scan, size_t length) {
    scan->pointer_length = length;
    scan->pointer[length] = '\0';
}

bool scan_object(struct scan *scan) {
    if (scan_peek(scan) != '{') return scan_malformed(scan, "expected '{'");
    scan->at++;
    return true;
}

bool scan_member(struct scan *scan, struct scan_key *key, bool *more, bool first) {
    const char c = scan_peek(scan);
    *more = c != '}';
    if (!*more) {
        scan->at++;
        return true;
    }
    if (!first) {
        if (c != ',') return scan_malformed(scan, "expected ',' or '}'");
        scan->at++;
    }
    struct scan_span span;
    skip_space(scan);
    if (!skip_string(scan, &span)) return false;
    key->span = (struct scan_span){span.text - 1, span.length + 2};
    scan_unescape(key->name, span);
    if (scan_peek(scan) != ':') return scan_malformed(scan, "expected ':'");
    scan->at++;
    key->parent_length = scan->pointer_length;
    scan_push(scan, key->name);
    skip_space(scan);
    return true;
}

void scan_end_member(struct scan *scan, const struct scan_key *key) {
    scan_pop(scan, key->parent_length);
}

// ---- arrays

bool scan_array(struct scan *scan) {
    if (scan_peek(scan) != '[') return scan_malformed(scan, "expected '['");
    scan->at++;
    return true;
}

bool scan_item(struct scan *scan, size_t index, bool *more, size_t *parent_length) {
    char token[24];
    const char c = scan_peek(scan);
    *parent_length = scan->pointer_length;
    *more = c != ']';
    if (!*more) {
        scan->at++;
        return true;
    }
    if (index > 0) {
        if (c != ',') return scan_malformed(scan, "expected ',' or ']'");
        scan->at++;
    }
    snprintf(token, sizeof token, "%zu", index);
    scan_push(scan, token);
    skip_space(scan);
    return true;
}

void scan_end_item(struct scan *scan, size_t parent_length) {
    scan_pop(scan, parent_length);
}
