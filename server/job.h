// SPDX-License-Identifier: Apache-2.0
//
// The life of one request after its head was read: admission, the hand-over between the I/O thread, the workers and the
// writer, the deadline, the reply. A job is the one owner of everything that its request holds; job_free gives it back.
//
// Who touches a job: the I/O thread of its connection until job_start returns false, then the worker or the writer that
// has it, and from `resume` on the I/O thread again.
#ifndef NORMD_SERVER_JOB_H
#define NORMD_SERVER_JOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cache.h"
#include "coding.h"
#include "etag.h"
#include "registry.h"
#include "writer.h"
#include "../proto/ahead.h"
#include "../proto/buffer.h"
#include "../proto/codec.h"
#include "../proto/json.h"
#include "../proto/message.h"
#include "../proto/safetensors.h"

struct rate;
struct route;
struct job;

#define JOB_PARAMETERS_MAX 6
#define JOB_PARAMETER_SIZE 320

// What all jobs share. Borrowed by every job.
struct service {
    struct budget *memory;
    struct budget *sending; // what replies that are being sent hold on to
    struct bn_pool *pool;
    struct registry *registry;
    struct writer *writer;
    struct cache *cache;
    struct job_queue *queue;
    struct rate *rate; // of clients; NULL: no limit
    uint64_t request_timeout_ns;
    size_t max_body;
    unsigned threads;
    _Atomic bool draining;
};

struct reply {
    int status;
    const char *content_type;
    struct buffer body;
    struct msg_extra extra; // what follows `body`, from where it lies, and fields of the head
    const void *fixed_body; // static text instead of `body`; NULL: none
    size_t fixed_size;
    // Makes the next piece of a reply that is longer than `body`, in its place; false: there is none. NULL: body is
    // all. Called on the I/O thread while the reply is sent.
    bool (*more)(struct job *job);
    char etag[ETAG_MAX]; // empty: none
};

// The numbers of a train-forward or backward between its kernels and its reply; arrays in `values`, [channels].
struct batch {
    struct buffer values; // owned; see batch.h for what lies where
    struct bn_shape shape;
    int channel_axis; // not negative, but as given where x is []
    uint64_t count;
    struct tensor y;         // owned; backward with a step: room of dx
    struct buffer dresidual; // owned; where it cannot take the place of the residual
    uint64_t normalizer;     // of the state that y, or the gradients, were made with
    uint64_t computed;       // backward: the version of that state
    bool first_batch;        // y was made with the batch's own gamma and beta
    bool renormalized;       // y, or the gradients, were made with a state that may not have been published
    bool nonfinite;          // x, dout, the residual or what was computed from them is not finite
    bool updated;
    uint64_t version, num_batches_tracked;
    bool tracks;
};

struct stream_list;

// States, or a list of layers, on their way to the client; see stream.h.
struct stream {
    const struct stream_list *list;  // how layers are listed; NULL: states are sent
    char listed[MSG_NAME_MAX + 1];   // the last of them
    struct registry_item *items;     // of a snapshot: owned, each state until it was sent; NULL: one state
    size_t count, next;              // of one state: 0, and whether it was written in this pass; of a list: next alone
    const struct layer_state *state; // borrowed from the job
    struct json_progress progress;   // of the state at hand
    bool named;                      // its name was written
    bool complete;
    struct safetensors_states file; // in that form, which has all states in one pass after the other:
    int pass;
    size_t value;         // of the state at hand, the next one
    size_t held, charged; // bytes of states, and what of them is charged to service->sending
};

// In which form the body of a request comes, and that of its reply goes.
struct job_forms {
    enum codec_form reads, writes;
    // Where nothing says what the body is, it is JSON, unless it begins as a file of one of these forms does:
    unsigned may_be;                        // a bit each
    enum codec_form writes_if[CODEC_FORMS]; // and the form of the reply then
    bool bf16;                              // Content-Type has dtype=bf16
    // Of an infer request:
    bool has_header; // Inference-Header-Content-Length
    uint64_t header;
    size_t padding;                        // bytes before the body, of no meaning, which align what follows its header
    enum coding body_coding, reply_coding; // of the reply: what the client takes
    bool coding_wanted;                    // it takes nothing else: that is no default of its library
};

// Moments in the life of a job; see times.h.
enum job_mark { JOB_STARTED, JOB_RUNS, JOB_DECODED, JOB_COMPUTED, JOB_ENCODING, JOB_ENCODED, JOB_MARKS };

enum job_result {
    JOB_REPLY,  // reply or error are complete
    JOB_COMMIT, // `change` is to be submitted; `finish` makes the reply once it is committed
};

struct job {
    struct service *service;
    const struct route *route;
    char name[MSG_NAME_MAX + 1];                             // of the layer in the path
    char parameters[JOB_PARAMETERS_MAX][JOB_PARAMETER_SIZE]; // of the query, in the route's order; see job_parameter
    unsigned parameters_given;                               // bit i: parameters[i] was given
    struct field_lines if_match, if_none_match;              // borrowed from the connection
    struct job_forms forms;
    struct buffer body;
    size_t announced;    // length of the body by its head; 0: not said
    struct ahead *ahead; // what was read of it before it was complete; owned; NULL: nothing
    uint64_t deadline_ns;
    uint64_t marks[JOB_MARKS]; // 0: not come to pass
    bool oip;                  // the path is of the Open Inference Protocol, and so are errors

    struct msg_error error; // code MSG_OK: `reply` holds
    struct reply reply;

    struct layer *layer;             // the layer of the path as the job found it; referenced
    const struct layer_state *state; // and its state then; referenced
    struct change change;
    void (*finish)(struct job *job);

    // The operation's own.
    struct msg_call call;
    struct msg_config config;
    struct msg_state new_state;
    struct msg_snapshot snapshot;
    uint64_t *versions;                // of the restored layers, [snapshot.count]; owned
    const struct layer_state *outcome; // the state that the reply shows; referenced
    struct batch batch;
    struct pass *pass; // referenced
    struct stream stream;

    _Atomic uint64_t *counters[2]; // of the layer, to be raised once the reply is sure; NULL: none

    // Hand-over.
    void (*resume)(struct job *job);     // set by the server before job_start; called once after suspend, on any thread
    bool (*left)(const struct job *job); // likewise: whether the client has closed; on a worker, while suspended
    void *connection;
    bool heavy;     // runs on a worker
    bool committed; // waits for `finish`
    bool kept;      // its pass is in the cache: it is too late for a refusal
    uint64_t queued_ns;
    struct job *next;
};

// A job that holds nothing yet, or NULL.
struct job *job_new(struct service *service);
void job_free(struct job **job);

// The value of a query parameter of the route; NULL: not given.
const char *job_parameter(const struct job *job, const char *name);

// The job that a change is part of.
struct job *job_of_change(struct change *change);

// Where memory ran out (memory_full, which says: try again) though not even the whole budget would hold the bytes that
// the job wanted, says that instead (body_too_large).
void job_judge_memory(struct job *job, size_t wanted);

// False where If-Match, or If-None-Match on a method other than GET, does not hold for `state` (NULL: no layer).
bool job_precondition(const struct job *job, const struct layer_state *state, struct msg_error *error);

// Whether the deadline has passed; the error then says so.
bool job_too_late(struct job *job);

// Raises one of the layer's counters, if the job ends without an error. Twice at most.
void job_count(struct job *job, _Atomic uint64_t *counter);

// Finds the layer of the path, if the route has one, and checks If-Match, into layer, state and error; what was found
// before is let go. I/O thread; job_start does it again, for the layer may change while the body arrives.
void job_look_up(struct job *job);

// A piece was added to the body: reads of it what can be read already. I/O thread.
void job_read_ahead(struct job *job);

// Gives back what a body holds that nobody will read.
void job_drop_body(struct job *job);

// The body is complete: sets the deadline and starts the work. True: the reply is ready. False: it will be when
// `resume` is called, which may have happened already; `suspend` has been called before. I/O thread.
bool job_start(struct job *job, void (*suspend)(struct job *job));

// The body of an error reply, by the rules of the path.
bool job_encode_error(struct buffer *out, const struct job *job);

// Makes the reply of a job that was resumed, where that is still to do, and the body of an error; counts the job. Once
// for each job that was started, whether or not somebody takes the reply. I/O thread.
void job_finish(struct job *job);

// A bounded queue of jobs and the threads that work on it.
struct job_queue;
struct job_queue *job_queue_new(unsigned workers); // NULL: no memory or no thread
// Answers waiting jobs whose deadline has passed. Main thread.
void job_queue_expire(struct job_queue *queue, uint64_t now_ns);
// Answers all waiting jobs with 503: the drain has taken too long.
void job_queue_refuse(struct job_queue *queue);
// Finishes what runs and waits, ends the threads.
void job_queue_free(struct job_queue **queue);

#endif
