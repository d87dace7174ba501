// SPDX-License-Identifier: Apache-2.0
//
// The Open Inference Protocol: a layer as a model. An infer request is one of the three calls, in another form.
#include <stdint.h>

#include "batch.h"
#include "ops.h"
#include "reply.h"
#include "stream.h"
#include "times.h"
#include "version.h"
#include "../proto/oip.h"

// ---- server and models

static enum job_result reply_fixed(struct job *job, const char *text, size_t size) {
    job->reply.fixed_body = text;
    job->reply.fixed_size = size;
    return reply_with(job, 200, true);
}

enum job_result ops_oip_server(struct job *job) {
    return reply_with(job, 200, oip_encode_server(&job->reply.body, NORMD_VERSION));
}

enum job_result ops_oip_live(struct job *job) {
    static const char text[] = "{\"live\":true}\n";
    return reply_fixed(job, text, sizeof text - 1);
}

enum job_result ops_oip_ready(struct job *job) {
    static const char text[] = "{\"ready\":true}\n";
    ops_readyz(job);
    return job->error.code == MSG_OK ? reply_fixed(job, text, sizeof text - 1) : JOB_REPLY;
}

// Told even where the memory budget is full, as by every probe.
enum job_result ops_oip_model_ready(struct job *job) {
    ops_readyz(job);
    if (job->error.code != MSG_OK) return JOB_REPLY;
    job->reply.fixed_body = NULL;
    job->reply.body.budget = NULL;
    return reply_with(job, 200, oip_encode_ready(&job->reply.body, job->name));
}

enum job_result ops_oip_model(struct job *job) {
    return reply_with(job, 200, oip_encode_model(&job->reply.body, job->name, &job->state->config));
}

enum job_result ops_oip_config(struct job *job) {
    return reply_with(job, 200, oip_encode_config(&job->reply.body, job->name, &job->state->config));
}

// ---- statistics

static uint64_t load(const _Atomic uint64_t *value) {
    return atomic_load_explicit(value, memory_order_relaxed);
}

static struct oip_stats describe(const struct layer *layer, const struct layer_state *state) {
    const struct layer_times *const times = &layer->times;
    const uint64_t count = load(&times->successes);
    return (struct oip_stats){
        .name = layer->name,
        .last_ms = load(&times->last_ms),
        .success = {count, load(&times->success_ns)},
        .fail = {load(&times->failures), load(&times->failure_ns)},
        .queue = {count, load(&times->queue_ns)},
        .input = {count, load(&times->input_ns)},
        .infer = {count, load(&times->infer_ns)},
        .output = {count, load(&times->output_ns)},
        .bytes = layer_state_bytes(&state->config) + load(&layer->cache_bytes),
    };
}

enum job_result ops_oip_stats(struct job *job) {
    struct buffer *const out = &job->reply.body;
    const struct oip_stats stats = describe(job->layer, job->state);
    return reply_with(job, 200, oip_begin_stats(out) && oip_put_stats(out, &stats, 0) && oip_end_stats(out));
}

static bool put_stats(struct buffer *out, const struct layer *layer, const struct layer_state *state, size_t index) {
    const struct oip_stats stats = describe(layer, state);
    return oip_put_stats(out, &stats, index);
}

_Static_assert(OIP_LISTED_MAX <= JSON_PIECE_MIN, "there is room for what is written at a time");

enum job_result ops_oip_all_stats(struct job *job) {
    static const struct stream_list list = {oip_begin_stats, put_stats, oip_end_stats, OIP_LISTED_MAX};
    return stream_layers(job, &list);
}

// ---- the repository

static bool put_index(struct buffer *out, const struct layer *layer, const struct layer_state *state, size_t index) {
    (void)state;
    return oip_put_index(out, layer->name, index);
}

enum job_result ops_oip_index(struct job *job) {
    static const struct stream_list list = {oip_begin_index, put_index, oip_end_index, OIP_LISTED_MAX};
    return oip_check_index(reply_request_body(job), &job->error) ? stream_layers(job, &list) : JOB_REPLY;
}

// A layer that is there is loaded.
enum job_result ops_oip_load(struct job *job) {
    static const char text[] = "{}\n";
    if (!oip_check_load(reply_request_body(job), &job->error)) return JOB_REPLY;
    return reply_fixed(job, text, sizeof text - 1);
}

// Clients expect a model that was unloaded to be as before once it is loaded again; a layer that is deleted is gone.
enum job_result ops_oip_unload(struct job *job) {
    msg_fail(&job->error, MSG_NOT_BUILT, NULL,
             "layers are always loaded; DELETE /v1/layers/%.100s deletes one, with what it has learned", job->name);
    return JOB_REPLY;
}

// ---- infer

static bool decode_body(struct job *job) {
    const enum coding coding = job->forms.body_coding;
    struct buffer *const plain = &job->call.body;
    if (coding == CODING_NONE) return true;
    plain->budget = job->service->memory;
    if (!buffer_pad(plain, job->forms.padding))
        return msg_fail(&job->error, MSG_MEMORY_FULL, NULL, "the body does not fit what is left of the memory budget");
    if (!coding_decode(plain, &job->body, coding, job->service->max_body, &job->error)) return false;
    buffer_move(&job->body, plain);
    return true;
}

static bool decode(struct job *job, enum msg_call_kind *kind) {
    if (!decode_body(job)) return false;
    const struct oip_request request = {
        .body = &job->body,
        .start = job->forms.padding,
        .has_header = job->forms.has_header,
        .header = job->forms.header,
        .budget = job->service->memory,
        .ahead = job->ahead,
        .model = job->name,
        .layer = &job->state->config,
    };
    const bool ok = oip_decode(&job->call, kind, &request, &job->error);
    ahead_free(&job->ahead);
    if (!ok) return false;
    times_mark(job, JOB_DECODED);
    return true;
}

// The client's own deadline, where it is the earlier one.
static void shorten_deadline(struct job *job) {
    const uint64_t timeout = job->call.infer.timeout_us * 1000;
    const uint64_t deadline = job->marks[JOB_STARTED] + timeout;
    if (timeout > 0 && deadline < job->deadline_ns) job->deadline_ns = deadline;
}

enum job_result ops_oip_infer(struct job *job) {
    enum msg_call_kind kind;
    if (!decode(job, &kind)) return JOB_REPLY;
    job->reply.extra.infer = &job->call.infer;
    shorten_deadline(job);
    if (job_too_late(job)) return JOB_REPLY;
    switch (kind) {
    case MSG_TRAIN_FORWARD: return ops_run_train_forward(job);
    case MSG_INFERENCE: return ops_run_inference(job);
    case MSG_BACKWARD: return ops_run_backward(job);
    }
    return JOB_REPLY;
}
