// SPDX-License-Identifier: Apache-2.0
#include "head.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "routes.h"
#include "../proto/oip.h"

// ---- fields

static bool is_token(const char *name) {
    if (*name == '\0') return false;
    for (; *name != '\0'; name++) {
        const char c = *name;
        const bool alnum = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
        if (!alnum && strchr("!#$%&'*+-.^_`|~", c) == NULL) return false;
    }
    return true;
}

static bool has_control(const char *value) {
    for (; *value != '\0'; value++) {
        const unsigned char c = (unsigned char)*value;
        if ((c < 0x20 && c != '\t') || c == 0x7f) return true;
    }
    return false;
}

// A length without the blanks that end it. RFC 9110, section 5.5: those around a value are no part of it, and
// libmicrohttpd strips the ones before it.
static size_t trim(const char *value, size_t length) {
    while (length > 0 && (value[length - 1] == ' ' || value[length - 1] == '\t')) length--;
    return length;
}

static bool is_word(const char *value, const char *word) {
    const size_t length = strlen(word);
    return trim(value, strlen(value)) == length && strncasecmp(value, word, length) == 0;
}

static void add_length(struct head *head, const char *value) {
    head->lengths++;
    head->has_length = true;
    head->bad_length = head->bad_length || *value == '\0' || strspn(value, "0123456789") != strlen(value);
    if (!head->bad_length) head->length = strtoull(value, NULL, 10); // ULLONG_MAX where it does not fit
}

static void add_line(struct head *head, struct field_lines *lines, const char *value) {
    if (lines->count == FIELD_LINES_MAX) {
        head->repeated = true;
    } else {
        lines->values[lines->count++] = value;
    }
}

void head_add(struct head *head, const char *name, const char *value) {
    if (value == NULL) value = "";
    if (!is_token(name) || has_control(value)) head->bad_field = true;
    const struct {
        const char *name;
        const char **value;
    } known[] = {{"Content-Encoding", &head->content_encoding},
                 {"Content-Type", &head->content_type},
                 {"Expect", &head->expect},
                 {"Idempotency-Key", &head->idempotency_key},
                 {"Inference-Header-Content-Length", &head->inference_header},
                 {"Origin", &head->origin},
                 {"Transfer-Encoding", &head->transfer_encoding}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcasecmp(name, known[i].name) != 0) continue;
        head->repeated = head->repeated || *known[i].value != NULL;
        *known[i].value = value;
    }
    const struct {
        const char *name;
        struct field_lines *lines;
    } lists[] = {{"Accept", &head->accept},
                 {"Accept-Encoding", &head->accept_encoding},
                 {"If-Match", &head->if_match},
                 {"If-None-Match", &head->if_none_match}};
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        if (strcasecmp(name, lists[i].name) == 0) add_line(head, lists[i].lines, value);
    }
    if (strcasecmp(name, "Host") == 0) head->hosts++;
    if (strcasecmp(name, "Transfer-Encoding") == 0) head->codings++;
    if (strcasecmp(name, "Content-Length") == 0) add_length(head, value);
}

// ---- framing

bool head_check_framing(const struct head *head, const char *path, const char *version, struct msg_error *error) {
    const bool http11 = strcmp(version, "HTTP/1.1") == 0;
    if (path[0] != '/') return msg_fail(error, MSG_BAD_FRAMING, NULL, "the request target is not a path");
    if (head->bad_field)
        return msg_fail(error, MSG_BAD_FRAMING, NULL, "a field name is no token, or a value has control characters");
    if (http11 && head->hosts != 1) return msg_fail(error, MSG_BAD_FRAMING, NULL, "exactly one Host is needed");
    if (head->bad_length) return msg_fail(error, MSG_BAD_FRAMING, NULL, "Content-Length is not a decimal number");
    if (head->lengths > 1) return msg_fail(error, MSG_BAD_FRAMING, NULL, "Content-Length is given more than once");
    if (head->codings == 0) return true;
    if (head->lengths > 0)
        return msg_fail(error, MSG_BAD_FRAMING, NULL, "both Content-Length and Transfer-Encoding are given");
    if (!http11) return msg_fail(error, MSG_BAD_FRAMING, NULL, "Transfer-Encoding needs HTTP/1.1");
    // Not is_word: libmicrohttpd sees no chunks where a blank follows, and would wait for the end of the connection.
    if (head->codings == 1 && strcasecmp(head->transfer_encoding, "chunked") == 0) return true;
    return msg_fail(error, MSG_NOT_BUILT, NULL, "the only transfer coding is chunked");
}

bool head_has_body(const struct head *head) {
    return head->codings > 0 || head->length > 0;
}

bool head_expects_continue(const struct head *head, const char *version) {
    return head->expect != NULL && is_word(head->expect, "100-continue") && strcmp(version, "HTTP/1.1") == 0;
}

// ---- media types

// The length of a media type without its parameters and spaces.
static size_t type_length(const char *value) {
    return trim(value, strcspn(value, ";,"));
}

static bool is_type(const char *value, size_t length, const char *type) {
    return strlen(type) == length && strncasecmp(value, type, length) == 0;
}

// The thousandths that a weight says, "0.8": 800; a malformed one counts as 1.
static int thousandths(const char *text, size_t length) {
    int value = 0, digits = 0;
    size_t i = 1;
    if (length == 0 || text[0] != '0') return 1000;
    if (i < length && text[i] == '.') i++;
    for (; i < length && text[i] >= '0' && text[i] <= '9'; i++, digits++) {
        if (digits < 3) value = value * 10 + (text[i] - '0');
    }
    if (i < length && text[i] != ' ' && text[i] != ';' && text[i] != '\t') return 1000;
    for (; digits < 3; digits++) value *= 10;
    return value;
}

// The weight that the parameters of a media range give it, in thousandths.
static int weight_of(const char *range, size_t length) {
    for (size_t i = 0; i + 3 < length; i++) {
        if (range[i] != ';') continue;
        size_t at = i + 1;
        while (at < length && (range[at] == ' ' || range[at] == '\t')) at++;
        if (at + 2 >= length || (range[at] | 0x20) != 'q' || range[at + 1] != '=') continue;
        return thousandths(range + at + 2, length - at - 2);
    }
    return 1000;
}

// How closely a media range names the type: 3 itself, 2 its family, 1 anything, 0 not at all.
static int closeness(const char *range, size_t length, const char *type) {
    const size_t family = strcspn(type, "/") + 1;
    if (is_type(range, length, type)) return 3;
    if (length == family + 1 && range[family] == '*' && strncasecmp(range, type, family) == 0) return 2;
    return is_type(range, length, "*/*") ? 1 : 0;
}

// The weight of a media type, in thousandths; 0: not acceptable. RFC 9110, section 12.5.1: the closest range decides.
static int acceptance(const struct field_lines *lines, const char *type) {
    int best = 0, weight = 0;
    bool any = false;
    for (unsigned i = 0; i < lines->count; i++) {
        for (const char *at = lines->values[i] + strspn(lines->values[i], " \t,"); *at != '\0';
             at += strspn(at, " \t,")) {
            const size_t length = strcspn(at, ",");
            const int close = closeness(at, type_length(at), type), given = weight_of(at, length);
            any = true;
            if (close > best || (close > 0 && close == best && given > weight)) {
                best = close;
                weight = given;
            }
            at += length;
        }
    }
    return any ? weight : 1000;
}

// ---- forms

// "application/json or application/x-npy", of the forms in the set.
static void list_types(char *out, size_t room, unsigned forms) {
    size_t n = 0;
    out[0] = '\0';
    for (unsigned form = 0; form < CODEC_FORMS; form++) {
        if ((forms & 1u << form) == 0) continue;
        const bool last = forms >> form == 1;
        const int written = snprintf(out + n, room - n, "%s%s",
                                     n == 0 ? ""
                                     : last ? " or "
                                            : ", ",
                                     codecs[form].media_type);
        if (written < 0 || (size_t)written >= room - n) return;
        n += (size_t)written;
    }
}

// True where the parameters of Content-Type have dtype=bf16.
static bool has_bf16(const char *type) {
    for (const char *at = strchr(type, ';'); at != NULL; at = strchr(at, ';')) {
        at += 1 + strspn(at + 1, " \t");
        if (strncasecmp(at, "dtype=", 6) != 0) continue;
        at += 6;
        const bool quoted = *at == '"';
        const char *const word = at + quoted, *const end = word + 4;
        if (strncasecmp(word, "bf16", 4) == 0 && (quoted ? *end == '"' : strchr("; \t", *end) != NULL)) return true;
    }
    return false;
}

// The form of the set that Accept weighs most; `preferred` where it is among equals. False where it wants none.
static bool choose_form(enum codec_form *chosen, const struct field_lines *accept, unsigned forms,
                        enum codec_form preferred) {
    int best = 0;
    for (unsigned form = 0; form < CODEC_FORMS; form++) {
        const int weight = (forms & 1u << form) != 0 ? acceptance(accept, codecs[form].media_type) : 0;
        if (weight == 0 || weight < best || (weight == best && form != preferred)) continue;
        best = weight;
        *chosen = (enum codec_form)form;
    }
    return best > 0;
}

// ---- infer requests

static bool read_coding(enum coding *coding, const char *value, bool coded) {
    *coding = CODING_NONE;
    if (value == NULL || *value == '\0' || is_word(value, coding_names[CODING_NONE])) return true;
    const char *const name = is_word(value, "x-gzip") ? coding_names[CODING_GZIP] : value;
    for (int i = CODING_GZIP; i <= CODING_DEFLATE && coded; i++) {
        if (!is_word(name, coding_names[i])) continue;
        *coding = (enum coding)i;
        return true;
    }
    return false;
}

// The coding that the client weighs most, of those that there are; none where it weighs none more.
static void choose_coding(struct job_forms *forms, const struct field_lines *accept) {
    int best = 0, identity = 0, named = 0;
    for (unsigned i = 0; i < accept->count; i++) {
        for (const char *at = accept->values[i] + strspn(accept->values[i], " \t,"); *at != '\0';
             at += strspn(at, " \t,")) {
            const size_t length = strcspn(at, ",");
            const int weight = weight_of(at, length);
            const bool plain = is_type(at, type_length(at), coding_names[CODING_NONE]);
            if (plain && weight > identity) identity = weight;
            named += weight > 0 && !plain;
            for (int coding = CODING_GZIP; coding <= CODING_DEFLATE; coding++) {
                if (weight <= best || !is_type(at, type_length(at), coding_names[coding])) continue;
                best = weight;
                forms->reply_coding = (enum coding)coding;
            }
            at += length;
        }
    }
    if (identity > best) forms->reply_coding = CODING_NONE;
    forms->coding_wanted = named == 1 && forms->reply_coding != CODING_NONE;
}

static bool read_header_length(struct job_forms *forms, const char *value, struct msg_error *error) {
    forms->has_header = value != NULL;
    if (value == NULL) return true;
    const size_t length = trim(value, strlen(value));
    if (length == 0 || strspn(value, "0123456789") != length)
        return msg_fail(error, MSG_BAD_HEADER, NULL, "Inference-Header-Content-Length is not a decimal number");
    forms->header = strtoull(value, NULL, 10); // ULLONG_MAX where it does not fit: more than any body has
    forms->padding = oip_padding(forms->header);
    return true;
}

// Clients of the protocol label bodies as they like, so that labels are not looked at; only pages of a browser, which
// may send some without asking, must use one of those that they may not.
static bool check_oip(const struct head *head, const struct route *route, struct job_forms *forms,
                      struct msg_error *error) {
    const bool coded = (route->flags & ROUTE_CODED) != 0;
    const char *const type = head->content_type != NULL ? head->content_type : "";
    if (!read_coding(&forms->body_coding, head->content_encoding, coded))
        return msg_fail(error, MSG_UNSUPPORTED_MEDIA_TYPE, NULL, "Content-Encoding is not supported here%s",
                        coded ? ", but for gzip and deflate" : "");
    if (head->origin != NULL && !is_type(type, type_length(type), "application/json") &&
        !is_type(type, type_length(type), "application/octet-stream"))
        return msg_fail(error, MSG_UNSUPPORTED_MEDIA_TYPE, NULL,
                        "a request with Origin needs Content-Type: application/json or application/octet-stream");
    if (!coded) return true;
    forms->reads = forms->writes = CODEC_OIP;
    choose_coding(forms, &head->accept_encoding);
    return read_header_length(forms, head->inference_header, error);
}

// ---- all of them

// A body that nothing is said of: the forms that it may turn out to be of.
static void note_forms(const struct head *head, const struct route *route, struct job_forms *forms) {
    for (unsigned form = CODEC_NPY; form <= CODEC_SAFETENSORS; form++) {
        const bool reads = (route->reads & 1u << form) != 0;
        if (reads && choose_form(&forms->writes_if[form], &head->accept, route->writes, (enum codec_form)form))
            forms->may_be |= 1u << form;
    }
}

static bool check_body_type(const struct head *head, const struct route *route, struct job_forms *forms,
                            struct msg_error *error) {
    const char *const type = head->content_type;
    const size_t length = type != NULL ? type_length(type) : 0;
    if (head->content_encoding != NULL && !is_word(head->content_encoding, coding_names[CODING_NONE])) {
        return msg_fail(error, MSG_UNSUPPORTED_MEDIA_TYPE, NULL, "Content-Encoding is not supported here");
    }
    forms->bf16 = type != NULL && has_bf16(type);
    for (unsigned form = 0; form < CODEC_FORMS && type != NULL; form++) {
        if ((route->reads & 1u << form) == 0 || !is_type(type, length, codecs[form].media_type)) continue;
        forms->reads = (enum codec_form)form;
        return true;
    }
    const bool from_curl = type == NULL || *type == '\0' || is_type(type, length, "application/x-www-form-urlencoded");
    if (from_curl && head->origin == NULL) {
        note_forms(head, route, forms);
        return true;
    }
    char types[160];
    list_types(types, sizeof types, route->reads);
    if (from_curl)
        return msg_fail(error, MSG_UNSUPPORTED_MEDIA_TYPE, NULL, "a request with Origin needs Content-Type: %s", types);
    return msg_fail(error, MSG_UNSUPPORTED_MEDIA_TYPE, NULL, "the body must be %s", types);
}

static bool check_accept(const struct head *head, const struct route *route, struct job_forms *forms,
                         struct msg_error *error) {
    char types[160];
    const char *const fixed = route->content_type;
    if (forms->writes == CODEC_OIP) return true; // what the reply is stands in the body
    if (route->writes == 0 && (fixed == NULL || acceptance(&head->accept, fixed) > 0)) return true;
    if (choose_form(&forms->writes, &head->accept, route->writes, forms->reads)) return true;
    list_types(types, sizeof types, route->writes);
    return msg_fail(error, MSG_NOT_ACCEPTABLE, NULL, "the reply is %s", fixed != NULL ? fixed : types);
}

bool head_check(const struct head *head, const struct route *route, struct job_forms *forms, struct msg_error *error) {
    const bool takes_body = (route->flags & ROUTE_BODY) != 0;
    const bool probe = (route->flags & ROUTE_PROBE) != 0;
    *forms = (struct job_forms){.reads = CODEC_JSON, .writes = CODEC_JSON};
    if (head->repeated) return msg_fail(error, MSG_BAD_HEADER, NULL, "a field is given more often than it may be");
    if (head->expect != NULL && !is_word(head->expect, "100-continue")) {
        return msg_fail(error, MSG_EXPECTATION_FAILED, NULL, "Expect is not 100-continue");
    }
    if (!takes_body && head_has_body(head))
        return msg_fail(error, MSG_UNEXPECTED_BODY, NULL, "%s takes no body", route->method);
    if (takes_body && head->idempotency_key != NULL) {
        return msg_fail(error, MSG_NOT_BUILT, NULL, "this build does not have idempotency keys; nothing was changed");
    }
    const bool oip = (route->flags & ROUTE_OIP) != 0;
    if (takes_body && !(oip ? check_oip : check_body_type)(head, route, forms, error)) return false;
    if (!probe && (!etag_valid(&head->if_match) || !etag_valid(&head->if_none_match)))
        return msg_fail(error, MSG_BAD_HEADER, NULL, "If-Match and If-None-Match are * or entity tags in quotes");
    return probe || check_accept(head, route, forms, error);
}
