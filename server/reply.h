// SPDX-License-Identifier: Apache-2.0
//
// Endings of operations: what a job's reply and change are filled in with.
#ifndef NORMD_SERVER_REPLY_H
#define NORMD_SERVER_REPLY_H

#include "job.h"

// The body as the request holds it, for a decoder of JSON.
struct json_body reply_request_body(struct job *job);

// The same for the decoder of any form, and how the reply is written.
struct codec_request reply_request(struct job *job);
const struct codec *reply_reader(const struct job *job);
const struct codec *reply_writer(const struct job *job);

// Ends the operation with a reply whose body was encoded into job->reply.body, or with 503 where `encoded` is false.
enum job_result reply_with(struct job *job, int status, bool encoded);

// Sets the entity tag of `state`.
void reply_etag(struct job *job, const struct layer_state *state);

// Sets the entity tag too. True where If-None-Match names the state: the status is then 304, whose body is not sent, at
// most its length.
bool reply_is_known(struct job *job, const struct layer_state *state);

// Ends the operation with the job's error, or with 503 where there is none: memory was short.
enum job_result reply_failed(struct job *job);

// Ends the operation with a change. `finish` makes the reply after the commit, when it is too late to fail: memory for
// more than JSON_REPLY_ROOM bytes of it must be in job->reply.body before.
enum job_result reply_after_commit(struct job *job, bool (*apply)(struct change *, struct txn *),
                                   void (*finish)(struct job *));

// For apply: the newest state of the job's layer, checked against If-Match. NULL with the change's error set where
// there is none or it does not match. same_layer: it must also be the layer that the job began with, not one made anew
// under its name.
const struct layer_state *reply_current(struct job *job, struct txn *txn, bool same_layer);

// For apply: the newest state of the job's layer, which exists, to be changed in place (txn_edit). NULL with the
// change's error set where there is no memory.
struct layer_state *reply_edit(struct job *job, struct txn *txn);

// For apply: there is no memory for the change. Returns false.
bool reply_no_memory(struct change *change);

// A kernel's status: false, with the error set, where it failed.
bool reply_kernel_ok(struct msg_error *error, enum bn_status status);

#endif
