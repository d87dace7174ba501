// SPDX-License-Identifier: Apache-2.0
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base64.h"
#include "json.h"
#include "scan.h"

// The longest special value with its quotes, "-Infinity".
#define SPECIAL_MAX 11

_Static_assert(JSON_F32_ROOM > SPECIAL_MAX, "a special value fits the room of a number");

// As buffer_print without conversions, which most of a reply is.
static bool put_text(struct buffer *out, const char *text) {
    return buffer_append(out, text, strlen(text));
}

static bool put_name(struct buffer *out, const char *name) {
    return put_text(out, "\"") && put_text(out, name) && put_text(out, "\":");
}

static char *write_special(char *at, double value) {
    const char *const text = isnan(value) ? "\"NaN\"" : value > 0 ? "\"Infinity\"" : "\"-Infinity\"";
    const size_t length = strlen(text);
    memcpy(at, text, length);
    return at + length;
}

static bool put_real(struct buffer *out, const char *name, double value) {
    char text[JSON_F64_ROOM + NUMBER_SLACK];
    char *const end = json_write_values(text, &value, BN_F64, 1);
    return buffer_print(out, "\"%s\":%.*s", name, (int)(end - text), text);
}

// ---- arrays

char *json_write_values(char *at, const void *values, enum bn_dtype dtype, size_t n) {
    const float *const f32 = values;
    const double *const f64 = values;
    for (size_t i = 0; i < n;) {
        const void *const rest = (const unsigned char *)values + i * bn_dtype_size(dtype);
        const size_t finite = bn_first_nonfinite(rest, n - i, dtype);
        if (i > 0) *at++ = ',';
        if (finite == 0) {
            at = write_special(at, dtype == BN_F32 ? (double)f32[i] : f64[i]);
        } else {
            at = dtype == BN_F32 ? number_write_run_f32(at, rest, finite) : number_write_run_f64(at, rest, finite);
        }
        i += finite > 0 ? finite : 1;
    }
    return at;
}

// Values [from, from + n) of a tensor.
static char *write_part(char *at, const struct tensor *t, size_t from, size_t n) {
    return json_write_values(at, t->values.data + from * bn_dtype_size(t->dtype), t->dtype, n);
}

size_t json_vector_room(size_t n) {
    return n * JSON_F64_ROOM + NUMBER_SLACK + 2;
}

static bool put_vector(struct buffer *out, const char *name, const double *values, size_t n) {
    if (values == NULL) return buffer_print(out, "\"%s\":null", name);
    if (!put_name(out, name) || !put_text(out, "[") || !buffer_grow(out, json_vector_room(n))) return false;
    char *const end = json_write_values((char *)out->data + out->size, values, BN_F64, n);
    out->size = (size_t)((unsigned char *)end - out->data);
    return buffer_append(out, "]", 1);
}

// Brackets of nested arrays: two for each array at each level.
static size_t bracket_room(const struct tensor *like) {
    size_t room = 4, arrays = 1;
    for (int l = 0; l + 1 < like->rank; l++) {
        arrays *= like->dim[l];
        room += 3 * arrays;
    }
    return room;
}

static size_t base64_room(const struct tensor *like) {
    return base64_text_size(like->count * wire_dtypes[like->wire].size) + 256;
}

size_t json_tensor_room(const struct tensor *like) {
    if (like->form == TENSOR_BASE64) return base64_room(like);
    const size_t values = like->count * (like->dtype == BN_F32 ? JSON_F32_ROOM : JSON_F64_ROOM);
    return values + NUMBER_SLACK + (like->form == TENSOR_NESTED ? bracket_room(like) : 256);
}

// Writes the arrays from axis `level` on, whose first element is number *next.
static char *write_nested(char *at, const struct tensor *t, int level, size_t *next) {
    const size_t length = t->dim[level];
    *at++ = '[';
    if (level == t->rank - 1) {
        at = write_part(at, t, *next, length);
        *next += length;
    } else {
        for (size_t i = 0; i < length; i++) {
            if (i > 0) *at++ = ',';
            at = write_nested(at, t, level + 1, next);
        }
    }
    *at++ = ']';
    return at;
}

static bool put_shape(struct buffer *out, const struct tensor *t) {
    if (!put_text(out, "{\"shape\":[")) return false;
    for (int l = 0; l < t->rank; l++) {
        if (!buffer_print(out, "%s%zu", l > 0 ? "," : "", t->dim[l])) return false;
    }
    return put_text(out, "]");
}

static bool put_base64(struct buffer *out, const struct tensor *t) {
    const struct wire_dtype_row *const wire = &wire_dtypes[t->wire];
    if (!put_shape(out, t) || !buffer_print(out, ",\"dtype\":\"%s\",\"base64\":\"", wire->name)) return false;
    if (!buffer_grow(out, base64_room(t))) return false;
    // Whole groups of three bytes at a time, so that the pieces join without padding between them.
    enum { PIECE = 1536 };
    unsigned char raw[PIECE * 8];
    char *at = (char *)out->data + out->size;
    for (size_t i = 0; i < t->count; i += PIECE) {
        const size_t n = t->count - i < PIECE ? t->count - i : PIECE;
        tensor_to_wire(raw, t->wire, t->values.data + i * bn_dtype_size(t->dtype), t->dtype, n);
        at = base64_encode(at, raw, n * wire->size);
    }
    out->size = (size_t)((unsigned char *)at - out->data);
    return put_text(out, "\"}");
}

static bool put_tensor(struct buffer *out, const char *name, const struct tensor *t) {
    if (!put_name(out, name)) return false;
    if (t->form == TENSOR_BASE64) return put_base64(out, t);
    if (t->form == TENSOR_NESTED && t->rank == 0) return put_text(out, "[]");
    if (t->form == TENSOR_FLAT && !(put_shape(out, t) && put_text(out, ",\"data\":["))) return false;
    if (!buffer_grow(out, json_tensor_room(t))) return false;
    char *at = (char *)out->data + out->size;
    size_t next = 0;
    at = t->form == TENSOR_FLAT ? write_part(at, t, 0, t->count) : write_nested(at, t, 0, &next);
    out->size = (size_t)((unsigned char *)at - out->data);
    return t->form == TENSOR_NESTED || put_text(out, "]}");
}

// ---- calls

bool json_encode_train(struct buffer *out, const struct msg_train_reply *reply, const struct tensor *y) {
    if (!put_text(out, "{") || !put_tensor(out, "y", y) || !put_text(out, ",")) return false;
    if (!put_vector(out, "batch_mean", reply->batch_mean, reply->channels) || !put_text(out, ",")) return false;
    if (!put_vector(out, "batch_var", reply->batch_var, reply->channels)) return false;
    if (!buffer_print(out, ",\"count\":%" PRIu64, reply->count)) return false;
    if (reply->tracks && !buffer_print(out, ",\"num_batches_tracked\":%" PRIu64, reply->num_batches_tracked))
        return false;
    if (!reply->tracks && !put_text(out, ",\"num_batches_tracked\":null")) return false;
    if (!buffer_print(out, ",\"updated\":%s,\"version\":%" PRIu64, reply->updated ? "true" : "false", reply->version))
        return false;
    if (reply->cache != NULL && !buffer_print(out, ",\"cache\":\"%s\"", reply->cache)) return false;
    return put_text(out, "}\n");
}

bool json_encode_inference(struct buffer *out, const struct tensor *y, uint64_t version) {
    return put_text(out, "{") && put_tensor(out, "y", y) && buffer_print(out, ",\"version\":%" PRIu64 "}\n", version);
}

bool json_encode_backward(struct buffer *out, const struct msg_backward_reply *reply, const struct tensor *dx,
                          const struct tensor *dresidual) {
    if (!put_text(out, "{") || !put_tensor(out, "dx", dx) || !put_text(out, ",")) return false;
    if (dresidual != NULL && !(put_tensor(out, "dresidual", dresidual) && put_text(out, ","))) return false;
    return put_vector(out, "dgamma", reply->dgamma, reply->channels) && put_text(out, ",") &&
           put_vector(out, "dbeta", reply->dbeta, reply->channels) &&
           buffer_print(out, ",\"version\":%" PRIu64 "}\n", reply->version);
}

// ---- layers

static const char *boolean(bool value) {
    return value ? "true" : "false";
}

static bool put_real_or_null(struct buffer *out, const char *name, double value) {
    return isnan(value) ? buffer_print(out, "\"%s\":null", name) : put_real(out, name, value);
}

static bool put_config(struct buffer *out, const struct msg_config *config, double new_weight, int running_ddof) {
    return buffer_print(out, "{\"num_features\":%" PRId64 ",\"convention\":\"%s\",", config->num_features,
                        msg_convention_words[config->convention]) &&
           put_real_or_null(out, "momentum", config->momentum) && put_text(out, ",") &&
           put_real(out, "eps", config->eps) &&
           buffer_print(out, ",\"affine\":%s,\"track_running_stats\":%s,\"channel_axis\":%" PRId64 ",\"dtype\":\"%s\"",
                        boolean(config->affine), boolean(config->track_running_stats), config->channel_axis,
                        msg_dtype_words[config->dtype]) &&
           buffer_print(out, ",\"init\":\"%s\",\"nonfinite\":\"%s\",\"single_value\":\"%s\",",
                        msg_init_words[config->init], msg_nonfinite_words[config->nonfinite],
                        msg_single_value_words[config->single_value]) &&
           put_real_or_null(out, "new_weight", new_weight) && buffer_print(out, ",\"running_ddof\":%d}", running_ddof);
}

bool json_encode_config(struct buffer *out, const struct msg_config *config, double new_weight, int running_ddof) {
    return put_config(out, config, new_weight, running_ddof);
}

static bool put_layer(struct buffer *out, const struct msg_layer *layer) {
    return buffer_print(out, "{\"name\":\"%s\",\"layer\":", layer->name) &&
           put_config(out, layer->config, layer->new_weight, layer->running_ddof) &&
           buffer_print(out,
                        ",\"version\":%" PRIu64 ",\"counters\":{\"train_forward\":%" PRIu64 ",\"inference\":%" PRIu64,
                        layer->version, layer->train_forward, layer->inference) &&
           buffer_print(out, ",\"backward\":%" PRIu64 ",\"skipped\":%" PRIu64 "},\"memory\":{\"state_bytes\":%" PRIu64,
                        layer->backward, layer->skipped, layer->state_bytes) &&
           buffer_print(out, ",\"cache_bytes\":%" PRIu64 "}}", layer->cache_bytes);
}

bool json_encode_layer(struct buffer *out, const struct msg_layer *layer) {
    return put_layer(out, layer) && put_text(out, "\n");
}

bool json_begin_list(struct buffer *out) {
    return put_text(out, "{\"layers\":[");
}

bool json_list_layer(struct buffer *out, const struct msg_layer *layer, size_t index) {
    return (index == 0 || put_text(out, ",")) && put_layer(out, layer);
}

bool json_end_list(struct buffer *out, const char *cursor) {
    return cursor != NULL ? buffer_print(out, "],\"next_cursor\":\"%s\"}\n", cursor)
                          : put_text(out, "],\"next_cursor\":null}\n");
}

// ---- state

// A state has a part for the opening and one for the values of each vector, and one for the rest.
#define VECTORS 4
#define PART_REST (2 * VECTORS)

static size_t room_of(const struct buffer *out) {
    return out->capacity - out->size;
}

// Writes the values from `next` on that there is room for, and the bracket behind the last one.
static bool put_values(struct buffer *out, const double *values, size_t n, size_t *next) {
    const size_t room = room_of(out), extra = 1 + NUMBER_SLACK, left = n - *next;
    const size_t fitting = room > extra ? (room - extra) / JSON_F64_ROOM : 0;
    const size_t count = fitting < left ? fitting : left;
    char *at = (char *)out->data + out->size;
    if (count > 0 && *next > 0) *at++ = ',';
    at = json_write_values(at, values + *next, BN_F64, count);
    *next += count;
    out->size = (size_t)((unsigned char *)at - out->data);
    return count == left && put_text(out, "]");
}

static bool put_state_rest(struct buffer *out, const struct msg_state_view *state) {
    if (state->tracks && !buffer_print(out, ",\"num_batches_tracked\":%" PRIu64, state->num_batches_tracked))
        return false;
    if (!state->tracks && !put_text(out, ",\"num_batches_tracked\":null")) return false;
    return buffer_print(out, ",\"version\":%" PRIu64 ",\"layer\":", state->version) &&
           put_config(out, state->layer, state->new_weight, state->running_ddof) && put_text(out, "}");
}

bool json_state_piece(struct buffer *out, const struct msg_state_view *state, struct json_progress *progress) {
    static const char *const openings[VECTORS] = {
        "{\"gamma\":", ",\"beta\":", ",\"running_mean\":", ",\"running_var\":"};
    const double *const vectors[VECTORS] = {state->gamma, state->beta, state->running_mean, state->running_var};
    while (progress->part < PART_REST) {
        const double *const values = vectors[progress->part / 2];
        if (progress->part % 2 == 0) {
            if (room_of(out) < JSON_REPLY_ROOM) return false;
            put_text(out, openings[progress->part / 2]);
            put_text(out, values != NULL ? "[" : "null");
            progress->next = 0;
        } else if (values != NULL && !put_values(out, values, state->channels, &progress->next)) {
            return false;
        }
        progress->part++;
    }
    if (room_of(out) < JSON_REPLY_ROOM) return false;
    put_state_rest(out, state);
    return true;
}

bool json_end_state(struct buffer *out) {
    return put_text(out, "\n");
}

bool json_begin_snapshot(struct buffer *out) {
    return put_text(out, "{\"layers\":{");
}

bool json_snapshot_name(struct buffer *out, const char *name, size_t index) {
    return buffer_print(out, "%s\"%s\":", index > 0 ? "," : "", name);
}

bool json_end_snapshot(struct buffer *out) {
    return put_text(out, "}}\n");
}

// A text may have been cut within a character, or quote bytes of the request: what is not UTF-8 becomes '?'.
static void make_utf8(char *text) {
    while (*text != '\0') {
        const unsigned char c = (unsigned char)*text;
        const int more = c < 0x80                ? 0
                         : c >= 0xc2 && c < 0xe0 ? 1
                         : (c & 0xf0) == 0xe0    ? 2
                         : c >= 0xf0 && c < 0xf5 ? 3
                                                 : -1;
        int i = 1;
        while (i <= more && ((unsigned char)text[i] & 0xc0) == 0x80) i++;
        json_t *const valid = more >= 0 && i > more ? json_stringn(text, (size_t)more + 1) : NULL;
        if (valid == NULL) *text = '?';
        text += valid == NULL ? 1 : more + 1;
        json_decref(valid);
    }
}

bool json_begin_restored(struct buffer *out) {
    return put_text(out, "{\"layers\":{");
}

bool json_restored_layer(struct buffer *out, const char *name, uint64_t version, size_t index) {
    return buffer_print(out, "%s\"%s\":%" PRIu64, index > 0 ? "," : "", name, version);
}

bool json_end_restored(struct buffer *out) {
    return put_text(out, "]}\n");
}

bool json_begin_ignored(struct buffer *out) {
    return put_text(out, "},\"ignored\":[");
}

static bool needs_escape(char c) {
    return c == '"' || c == '\\' || (unsigned char)c < 0x20;
}

size_t json_ignored_room(const char *name) {
    size_t room = 3;
    for (; *name != '\0'; name++) room += needs_escape(*name) ? 6 : 1;
    return room;
}

bool json_ignored_name(struct buffer *out, const char *name, size_t index) {
    char text[SCAN_KEY_MAX + 1];
    snprintf(text, sizeof text, "%s", name);
    make_utf8(text);
    if (!put_text(out, index > 0 ? ",\"" : "\"")) return false;
    for (const char *at = text; *at != '\0'; at++) {
        if (needs_escape(*at) ? !buffer_print(out, "\\u%04x", (unsigned char)*at) : !buffer_append(out, at, 1))
            return false;
    }
    return put_text(out, "\"");
}

// ---- the rest

// Takes over `object`.
static bool put_object(struct buffer *out, json_t *object) {
    char *const text = object != NULL ? json_dumps(object, JSON_COMPACT) : NULL;
    json_decref(object);
    const bool ok = text != NULL && buffer_append(out, text, strlen(text)) && buffer_append(out, "\n", 1);
    free(text);
    return ok;
}

bool json_encode_problem(struct buffer *out, const struct msg_error *error, const char *detail, bool in_error) {
    const struct msg_code_row *const row = &msg_codes[error->code];
    char type[64], text[JSON_DETAIL_MAX], pointer[MSG_POINTER_MAX];
    snprintf(type, sizeof type, "/problems/%s", row->name);
    snprintf(text, sizeof text, "%s", detail);
    memcpy(pointer, error->pointer, sizeof pointer);
    make_utf8(text);
    make_utf8(pointer);
    json_t *const problem = json_pack("{s:s, s:s, s:i, s:s, s:s}", "type", type, "title", row->title, "status",
                                      row->status, "detail", text, "code", row->name);
    if (problem != NULL && error->has_pointer) json_object_set_new(problem, "pointer", json_string(pointer));
    if (problem != NULL && in_error) json_object_set_new(problem, "error", json_string(text));
    return put_object(out, problem);
}

bool json_encode_error(struct buffer *out, const struct msg_error *error) {
    return json_encode_problem(out, error, error->detail, false);
}

bool json_encode_version(struct buffer *out, const char *version, const char *cpu, unsigned threads,
                         const char *store) {
    return put_object(out, json_pack("{s:s, s:s, s:i, s:s}", "version", version, "cpu", cpu, "threads", (int)threads,
                                     "store", store));
}
