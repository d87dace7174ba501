// SPDX-License-Identifier: Apache-2.0
//
// Replies that consist of states, as JSON or as a safetensors file: encoded piece by piece while they are sent, so that
// a reply takes the memory of one piece whatever the size of the states. What fits one piece is a reply like others,
// with its length. So are lists of all layers, which hold on to nothing.
//
// States that are being sent stay in memory, though their layers may have moved on. For longer replies they are charged
// to an account of its own (service->sending), which is as large as the memory budget; when it is full, further ones
// are refused with 503. A reply that is alone always has room: its charge ends at the account's limit.
#ifndef NORMD_SERVER_STREAM_H
#define NORMD_SERVER_STREAM_H

#include "job.h"

// Makes sure that a state of this configuration can be replied: nothing fails then in stream_state. False with the
// job's error set.
bool stream_reserve(struct job *job, const struct msg_config *config);

// Replies with a state, for which was reserved. The job must hold a reference to it.
enum job_result stream_state(struct job *job, const struct layer_state *state);

// Replies with 304 for a state that the client has. One that is longer than a piece is not encoded for it.
enum job_result stream_unchanged(struct job *job, const struct layer_state *state);

// Replies with all states under the prefix as they are at this moment.
enum job_result stream_snapshot(struct job *job, const char *prefix);

// How layers are listed, each with its index: a function writes JSON_PIECE_MIN bytes at most.
struct stream_list {
    bool (*begin)(struct buffer *out);
    bool (*put)(struct buffer *out, const struct layer *layer, const struct layer_state *state, size_t index);
    bool (*end)(struct buffer *out);
    size_t room; // that `put` takes at most
};

// Replies with all layers, by name. Not of one moment: each is looked up when its turn comes. Borrows the list for as
// long as the job lives.
enum job_result stream_layers(struct job *job, const struct stream_list *list);

// Lets go of what the reply holds on to.
void stream_free(struct job *job);

#endif
