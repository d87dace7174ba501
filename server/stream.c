// SPDX-License-Identifier: Apache-2.0
#include "stream.h"

#include <string.h>

#include "reply.h"
#include "../proto/json.h"
#include "../proto/safetensors.h"

// All pieces but the first are encoded on an I/O thread, between those of other connections: one to three
// milliseconds.
#define PIECE ((size_t)256 * 1024)

// Bytes that a state of this configuration takes in a reply at most, of either form, and where the last part of a file
// is not begun in a piece with less room.
static size_t state_room(const struct msg_config *config) {
    const size_t vectors = (config->affine ? 2u : 0u) + (config->track_running_stats ? 2u : 0u);
    return vectors * json_vector_room((size_t)config->num_features) + 2 * JSON_PIECE_MIN;
}

// Charges what is held on to from now on, or gives back the rest of the charge. Less never fails.
static bool hold(struct job *job, size_t bytes) {
    struct budget *const account = job->service->sending;
    struct stream *const stream = &job->stream;
    const size_t charge = bytes < account->limit ? bytes : account->limit;
    if (charge > stream->charged && !budget_charge(account, charge - stream->charged)) return false;
    if (charge < stream->charged) budget_release(account, stream->charged - charge);
    stream->held = bytes;
    stream->charged = charge;
    return true;
}

// Room for the reply, or for a piece of it and what it then holds on to.
static bool reserve(struct job *job, size_t room, size_t held) {
    if (!buffer_reserve(&job->reply.body, room < PIECE ? room : PIECE)) {
        reply_failed(job);
        return false;
    }
    return room <= PIECE || hold(job, held) ||
           msg_fail(&job->error, MSG_MEMORY_FULL, NULL, "other replies that are being sent hold too many states");
}

bool stream_reserve(struct job *job, const struct msg_config *config) {
    return reserve(job, state_room(config), layer_state_bytes(config));
}

// ---- pieces

static bool state_piece(struct job *job, const struct layer_state *state) {
    const struct msg_state_view view = layer_view(state);
    return json_state_piece(&job->reply.body, &view, &job->stream.progress);
}

// A state that was sent.
static void let_go(struct job *job, struct registry_item *item) {
    const size_t bytes = layer_state_size(item->state), held = job->stream.held;
    hold(job, held > bytes ? held - bytes : 0);
    layer_state_release(item->state);
    item->state = NULL;
}

static void snapshot_piece(struct job *job) {
    struct stream *const stream = &job->stream;
    struct buffer *const out = &job->reply.body;
    if (stream->next == stream->count) {
        json_end_snapshot(out);
        stream->complete = true;
        return;
    }
    struct registry_item *const item = &stream->items[stream->next];
    if (!stream->named) json_snapshot_name(out, item->layer->name, stream->next);
    stream->named = true;
    if (!state_piece(job, item->state)) return;
    let_go(job, item);
    stream->progress = (struct json_progress){0};
    stream->named = false;
    stream->next++;
}

static void json_piece(struct job *job) {
    struct buffer *const out = &job->reply.body;
    if (job->stream.items != NULL) {
        snapshot_piece(job);
    } else if (state_piece(job, job->stream.state)) {
        json_end_state(out);
        job->stream.complete = true;
    }
}

// ---- pieces of a list

static void list_piece(struct job *job) {
    struct stream *const stream = &job->stream;
    struct buffer *const out = &job->reply.body;
    const struct layer_state *state = NULL;
    struct layer *const layer = registry_next(job->service->registry, stream->listed, &state);
    if (layer == NULL) {
        stream->list->end(out);
        stream->complete = true;
        return;
    }
    stream->list->put(out, layer, state, stream->next++);
    memcpy(stream->listed, layer->name, sizeof stream->listed);
    layer_state_release(state);
    layer_release(layer);
}

// ---- pieces of a file, which has all the states in each of its parts

_Static_assert(SAFETENSORS_LAYER_MAX <= JSON_PIECE_MIN, "there is room for what is written at a time");

enum { PASS_BEGIN, PASS_METADATA, PASS_INDEX, PASS_DATA };

static size_t state_count(const struct stream *stream) {
    return stream->items != NULL ? stream->count : stream->state != NULL;
}

static const struct layer_state *state_at(const struct job *job, size_t index) {
    return job->stream.items != NULL ? job->stream.items[index].state : job->stream.state;
}

static const char *name_at(const struct job *job, size_t index) {
    return job->stream.items != NULL ? job->stream.items[index].layer->name : job->name;
}

// What stands before the states of a pass.
static void begin_pass(struct job *job) {
    struct stream *const stream = &job->stream;
    struct buffer *const out = &job->reply.body;
    stream->next = 0;
    switch (stream->pass++) {
    case PASS_BEGIN: safetensors_begin(&stream->file, out); break;
    case PASS_METADATA: safetensors_begin_index(&stream->file, out); break;
    case PASS_INDEX: safetensors_begin_data(&stream->file, out); break;
    default: stream->complete = true; break;
    }
}

static void file_piece(struct job *job) {
    struct stream *const stream = &job->stream;
    struct buffer *const out = &job->reply.body;
    if (stream->pass == PASS_BEGIN || stream->next == state_count(stream)) {
        begin_pass(job);
        return;
    }
    const char *const name = name_at(job, stream->next);
    const struct msg_state_view view = layer_view(state_at(job, stream->next));
    switch (stream->pass) {
    case PASS_METADATA: safetensors_metadata(&stream->file, out, name, &view); break;
    case PASS_INDEX: safetensors_index(&stream->file, out, name, &view); break;
    default:
        if (!safetensors_data(out, &view, &stream->value)) return;
        stream->value = 0;
        if (stream->items != NULL) let_go(job, &stream->items[stream->next]);
        break;
    }
    stream->next++;
}

// False where the file would be one that readers refuse.
static bool measure(struct job *job) {
    struct stream *const stream = &job->stream;
    if (job->forms.writes != CODEC_SAFETENSORS) return true;
    for (size_t i = 0; i < state_count(stream); i++) {
        const struct msg_state_view view = layer_view(state_at(job, i));
        safetensors_measure(&stream->file, name_at(job, i), &view);
    }
    return stream->file.header <= SAFETENSORS_READABLE - sizeof(uint64_t) ||
           msg_fail(&job->error, MSG_NOT_ACCEPTABLE, NULL,
                    "a safetensors file cannot name so many layers; take them in parts (prefix), or as JSON");
}

// ---- replies

static void write_next(struct job *job) {
    if (job->stream.list != NULL) {
        list_piece(job);
    } else if (job->forms.writes == CODEC_SAFETENSORS) {
        file_piece(job);
    } else {
        json_piece(job);
    }
}

// Fills the rest of the piece.
static void fill(struct job *job) {
    struct stream *const stream = &job->stream;
    struct buffer *const out = &job->reply.body;
    while (!stream->complete && out->capacity - out->size >= JSON_PIECE_MIN) write_next(job);
    if (stream->complete) stream_free(job);
}

static bool next_piece(struct job *job) {
    job->reply.body.size = 0;
    fill(job);
    return job->reply.body.size > 0;
}

static enum job_result reply(struct job *job, int status) {
    fill(job);
    job->reply.more = job->stream.complete ? NULL : next_piece;
    return reply_with(job, status, true);
}

enum job_result stream_state(struct job *job, const struct layer_state *state) {
    job->stream.state = state;
    return measure(job) ? reply(job, 200) : JOB_REPLY;
}

// A 304 may leave out the length that a 200 would have but must not tell another one, and libmicrohttpd leaves it out
// only where it closes the connection. A piece is encoded in less time than a client takes to connect anew.
enum job_result stream_unchanged(struct job *job, const struct layer_state *state) {
    job->stream.state = state;
    if (!measure(job)) return JOB_REPLY;
    if (state_room(&state->config) <= PIECE) return stream_reserve(job, &state->config) ? reply(job, 304) : JOB_REPLY;
    job->reply.more = next_piece;
    return reply_with(job, 304, true);
}

enum job_result stream_snapshot(struct job *job, const char *prefix) {
    struct stream *const stream = &job->stream;
    bool more = false;
    size_t room = JSON_PIECE_MIN;
    if (!registry_list(job->service->registry, prefix, NULL, SIZE_MAX, &stream->items, &stream->count, &more))
        return reply_failed(job);
    size_t held = stream->count * sizeof *stream->items;
    for (size_t i = 0; i < stream->count; i++) {
        room += state_room(&stream->items[i].state->config);
        held += layer_state_size(stream->items[i].state);
    }
    if (!measure(job) || !reserve(job, room, held)) return JOB_REPLY;
    if (job->forms.writes == CODEC_JSON) json_begin_snapshot(&job->reply.body);
    return reply(job, 200);
}

enum job_result stream_layers(struct job *job, const struct stream_list *list) {
    const size_t layers = registry_count(job->service->registry);
    job->stream.list = list;
    if (!reserve(job, layers * list->room + 2 * JSON_PIECE_MIN, 0)) return JOB_REPLY;
    list->begin(&job->reply.body);
    return reply(job, 200);
}

void stream_free(struct job *job) {
    struct stream *const stream = &job->stream;
    registry_items_free(&stream->items, stream->count);
    stream->count = 0;
    if (stream->charged > 0) hold(job, 0);
}
