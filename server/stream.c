// SPDX-License-Identifier: Apache-2.0
#include "stream.h"

#include "reply.h"
#include "../proto/json.h"

// All pieces but the first are encoded on an I/O thread, between those of other connections: about a millisecond.
#define PIECE ((size_t)256 * 1024)

// Bytes that a state of this configuration takes in a reply at most.
static size_t state_room(const struct msg_config *config) {
    const size_t vectors = (config->affine ? 2u : 0u) + (config->track_running_stats ? 2u : 0u);
    return vectors * json_vector_room((size_t)config->num_features) + JSON_PIECE_MIN;
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
    const size_t bytes = layer_state_size(item->state);
    hold(job, stream->held > bytes ? stream->held - bytes : 0);
    layer_state_release(item->state);
    item->state = NULL;
    stream->progress = (struct json_progress){0};
    stream->named = false;
    stream->next++;
}

// Fills the rest of the piece.
static void fill(struct job *job) {
    struct stream *const stream = &job->stream;
    struct buffer *const out = &job->reply.body;
    while (!stream->complete && out->capacity - out->size >= JSON_PIECE_MIN) {
        if (stream->items != NULL) {
            snapshot_piece(job);
        } else if (state_piece(job, stream->state)) {
            json_end_state(out);
            stream->complete = true;
        }
    }
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
    return reply(job, 200);
}

// A 304 may leave out the length that a 200 would have but must not tell another one, and libmicrohttpd leaves it out
// only where it closes the connection. A piece is encoded in less time than a client takes to connect anew.
enum job_result stream_unchanged(struct job *job, const struct layer_state *state) {
    job->stream.state = state;
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
    if (!reserve(job, room, held)) return JOB_REPLY;
    json_begin_snapshot(&job->reply.body);
    return reply(job, 200);
}

void stream_free(struct job *job) {
    struct stream *const stream = &job->stream;
    registry_items_free(&stream->items, stream->count);
    stream->count = 0;
    if (stream->charged > 0) hold(job, 0);
}
