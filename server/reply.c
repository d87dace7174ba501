// SPDX-License-Identifier: Apache-2.0
#include "reply.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "routes.h"
#include "times.h"
#include "../proto/json.h"

struct json_body reply_request_body(struct job *job) {
    return (struct json_body){
        .text = (const char *)job->body.data, .length = job->body.size, .budget = job->service->memory};
}

struct codec_request reply_request(struct job *job) {
    struct codec_request request = {.body = &job->body, .budget = job->service->memory, .ahead = job->ahead};
    struct msg_options *const options = &request.options;
    bool has_dtype = false;
    for (unsigned i = 0; i < JOB_PARAMETERS_MAX && job->route->parameters[i] != NULL; i++) {
        if ((job->parameters_given & 1u << i) == 0) continue;
        const char *const name = job->route->parameters[i];
        options->option[options->count++] = (struct msg_option){name, job->parameters[i]};
        has_dtype = has_dtype || strcmp(name, "dtype") == 0;
    }
    if (job->forms.bf16 && !has_dtype) options->option[options->count++] = (struct msg_option){"dtype", "bf16"};
    return request;
}

const struct codec *reply_reader(const struct job *job) {
    return &codecs[job->forms.reads];
}

const struct codec *reply_writer(const struct job *job) {
    return &codecs[job->forms.writes];
}

enum job_result reply_failed(struct job *job) {
    msg_fail(&job->error, MSG_MEMORY_FULL, NULL, "the call does not fit what is left of the memory budget");
    return JOB_REPLY;
}

// ---- content codings

// Shorter replies are sent as they are.
#define CODING_LEAST ((size_t)4096)
#define SAMPLE ((size_t)64 * 1024)

static void add_field(struct msg_extra *extra, const char *name, const char *value) {
    struct msg_head_field *const field = &extra->field[extra->fields++];
    field->name = name;
    snprintf(field->value, sizeof field->value, "%s", value);
}

// Whether the start of the largest piece shrinks by a quarter. Elements as they are in memory mostly do not, and to
// find that out with all of them takes ten times as long as the call.
static bool shrinks(const struct msg_extra *extra, enum coding coding, struct budget *budget) {
    struct msg_piece sample = {NULL, 0};
    for (size_t i = 0; i < extra->pieces; i++) {
        if (extra->piece[i].size > sample.size) sample = extra->piece[i];
    }
    if (sample.size > SAMPLE) sample.size = SAMPLE;
    struct buffer coded = {.budget = budget};
    const bool shrinks = coding_encode(&coded, &sample, 1, coding) && coded.size <= sample.size / 4 * 3;
    buffer_free(&coded);
    return shrinks;
}

// On a worker only, for it takes its time. Binary elements are compressed only for a client that names nothing else;
// several codings are what its library takes, not a wish.
static void compress(struct job *job) {
    struct msg_extra *const extra = &job->reply.extra;
    const enum coding coding = job->forms.reply_coding;
    struct msg_piece pieces[1 + MSG_PIECES_MAX] = {{job->reply.body.data, job->reply.body.size}};
    size_t size = job->reply.body.size;
    if (coding == CODING_NONE || !job->heavy || (extra->pieces > 0 && !job->forms.coding_wanted)) return;
    if (extra->pieces > 0 && !shrinks(extra, coding, job->service->memory)) return;
    for (size_t i = 0; i < extra->pieces; i++) {
        pieces[i + 1] = extra->piece[i];
        size += extra->piece[i].size;
    }
    struct buffer coded = {.budget = job->service->memory};
    if (size < CODING_LEAST || !coding_encode(&coded, pieces, 1 + extra->pieces, coding)) {
        buffer_free(&coded);
        return;
    }
    buffer_move(&job->reply.body, &coded);
    extra->pieces = 0;
    add_field(extra, "Content-Encoding", coding_names[coding]);
    add_field(extra, "Vary", "Accept-Encoding");
}

// ---- endings

enum job_result reply_with(struct job *job, int status, bool encoded) {
    if (!encoded) return reply_failed(job);
    const char *const given = job->reply.extra.media_type, *const fixed = job->route->content_type;
    job->reply.status = status;
    job->reply.content_type = given != NULL ? given : fixed != NULL ? fixed : reply_writer(job)->media_type;
    if (status == 200 && (job->route->flags & ROUTE_CODED) != 0) compress(job);
    times_mark(job, JOB_ENCODED);
    return JOB_REPLY;
}

void reply_etag(struct job *job, const struct layer_state *state) {
    etag_format(job->reply.etag, state);
}

bool reply_is_known(struct job *job, const struct layer_state *state) {
    reply_etag(job, state);
    return etag_matches(&job->if_none_match, state, true);
}

enum job_result reply_after_commit(struct job *job, bool (*apply)(struct change *, struct txn *),
                                   void (*finish)(struct job *)) {
    if (!buffer_reserve(&job->reply.body, JSON_REPLY_ROOM)) return reply_failed(job);
    job->change.apply = apply;
    job->finish = finish;
    return JOB_COMMIT;
}

const struct layer_state *reply_current(struct job *job, struct txn *txn, bool same_layer) {
    const struct layer_state *const state = txn_state(txn, job->name);
    if (state == NULL || (same_layer && state->id != job->state->id)) {
        msg_fail(&job->change.error, MSG_LAYER_NOT_FOUND, NULL, "the layer was deleted or replaced while the call ran");
        return NULL;
    }
    if (!job_precondition(job, state, &job->change.error)) return NULL;
    return state;
}

struct layer_state *reply_edit(struct job *job, struct txn *txn) {
    struct layer_state *const next = txn_edit(txn, job->name);
    if (next == NULL) reply_no_memory(&job->change);
    return next;
}

bool reply_no_memory(struct change *change) {
    return msg_fail(&change->error, MSG_MEMORY_FULL, NULL, "out of memory; nothing was changed");
}

bool reply_kernel_ok(struct msg_error *error, enum bn_status status) {
    switch (status) {
    case BN_OK: return true;
    case BN_NO_MEMORY: return msg_fail(error, MSG_MEMORY_FULL, NULL, "out of memory");
    case BN_BAD_SHAPE: return msg_fail(error, MSG_SHAPE_MISMATCH, NULL, "the tensor is too large");
    }
    return msg_fail(error, MSG_INTERNAL, NULL, "a kernel failed");
}
