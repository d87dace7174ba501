// SPDX-License-Identifier: Apache-2.0
#include "job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "log.h"
#include "routes.h"
#include "stream.h"
#include "times.h"
#include "../proto/npy.h"
#include "../proto/oip.h"
#include "../proto/safetensors.h"

// Calls that wait for a worker; beyond, they are told to come back. Each holds its body meanwhile.
#define QUEUE_MAX 256

// A wait after which clients are known to give up.
#define PATIENCE_NS UINT64_C(100000000)

// Bodies and layers up to here are computed on the I/O thread: less than the cost of waking a worker, about 0.2 ms.
#define INLINE_BODY ((size_t)16 * 1024)
#define INLINE_CHANNELS 2048

// First in, first out.
struct job_list {
    struct job *first, **last;
};

struct job_queue {
    uv_mutex_t lock; // guards what follows; a leaf
    uv_cond_t wake;
    struct job_list committed; // only need their reply, and hold their tensors until then: they go first
    struct job_list fresh;
    size_t waiting; // in both
    bool stop;
    unsigned workers;
    uv_thread_t threads[];
};

struct job *job_new(struct service *service) {
    struct job *const job = calloc(1, sizeof *job);
    if (job == NULL) return NULL;
    job->service = service;
    job->body.budget = service->memory;
    job->reply.body.budget = service->memory;
    job->batch.values.budget = service->memory;
    job->batch.y.values.budget = service->memory;
    job->batch.dresidual.budget = service->memory;
    return job;
}

void job_free(struct job **job) {
    struct job *const j = *job;
    *job = NULL;
    if (j == NULL) return;
    job_drop_body(j);
    buffer_free(&j->reply.body);
    buffer_free(&j->batch.values);
    tensor_free(&j->batch.y);
    buffer_free(&j->batch.dresidual);
    msg_call_free(&j->call);
    msg_state_free(&j->new_state);
    msg_snapshot_free(&j->snapshot);
    stream_free(j);
    free(j->versions);
    pass_release(j->pass);
    layer_state_release(j->outcome);
    layer_state_release(j->state);
    layer_release(j->layer);
    free(j);
}

// ---- steps

static void change_done(struct change *change);

bool job_too_late(struct job *job) {
    if (uv_hrtime() <= job->deadline_ns) return false;
    msg_fail(&job->error, MSG_DEADLINE, NULL, "the deadline passed before the work was done; nothing was changed");
    return true;
}

void job_judge_memory(struct job *job, size_t wanted) {
    const size_t limit = job->service->memory->limit;
    if (job->error.code != MSG_MEMORY_FULL || wanted <= limit) return;
    job->error.code = MSG_OK;
    msg_fail(&job->error, MSG_BODY_TOO_LARGE, NULL,
             "the call takes more memory than the whole budget, %zu bytes; send it in parts", limit);
}

void job_count(struct job *job, _Atomic uint64_t *counter) {
    job->counters[job->counters[0] != NULL] = counter;
}

// A call that ended with an error is not counted.
static void count(struct job *job) {
    for (int i = 0; i < 2; i++) {
        if (job->counters[i] != NULL && job->error.code == MSG_OK) atomic_fetch_add(job->counters[i], 1);
        job->counters[i] = NULL;
    }
}

static enum job_result run(struct job *job) {
    if (job->error.code != MSG_OK || job_too_late(job)) return JOB_REPLY;
    times_mark(job, JOB_RUNS);
    budget_watch(job->service->memory, job->body.capacity + ahead_bytes(job->ahead));
    const enum job_result result = job->route->run(job);
    if (result == JOB_COMMIT) times_mark(job, JOB_COMPUTED);
    job_judge_memory(job, budget_wanted());
    buffer_free(&job->body);
    if (!job->kept && job_too_late(job)) return JOB_REPLY;
    if (result == JOB_REPLY) count(job);
    return result;
}

// Hands the change to the writer, or leaves the error and returns false.
static bool submit(struct job *job) {
    job->change.deadline_ns = job->deadline_ns;
    job->change.done = change_done;
    if (writer_submit(job->service->writer, &job->change)) return true;
    return msg_fail(&job->error, MSG_QUEUE_FULL, NULL, "too many changes wait for the store");
}

static bool is_heavy(const struct job *job) {
    if ((job->route->flags & ROUTE_HEAVY) != 0 || job->body.size > INLINE_BODY) return true;
    if (job->forms.body_coding != CODING_NONE || job->forms.coding_wanted) return true;
    return job->state != NULL && job->state->config.num_features > INLINE_CHANNELS;
}

// ---- the queue

static void list_start(struct job_list *list) {
    list->first = NULL;
    list->last = &list->first;
}

static void list_add(struct job_list *list, struct job *job) {
    job->next = NULL;
    *list->last = job;
    list->last = &job->next;
}

// NULL: it is empty.
static struct job *list_take(struct job_list *list) {
    struct job *const job = list->first;
    if (job == NULL) return NULL;
    list->first = job->next;
    if (list->first == NULL) list->last = &list->first;
    return job;
}

// False where the queue is full. Jobs that were admitted once are always taken.
static bool enqueue(struct job *job) {
    struct job_queue *const queue = job->service->queue;
    uv_mutex_lock(&queue->lock);
    const bool room = job->committed || queue->waiting < QUEUE_MAX;
    if (room) {
        job->queued_ns = uv_hrtime();
        list_add(job->committed ? &queue->committed : &queue->fresh, job);
        queue->waiting++;
        uv_cond_signal(&queue->wake);
    }
    uv_mutex_unlock(&queue->lock);
    return room || msg_fail(&job->error, MSG_QUEUE_FULL, NULL, "too many calls are waiting");
}

// NULL: the queue is empty and ends.
static struct job *dequeue(struct job_queue *queue) {
    uv_mutex_lock(&queue->lock);
    while (queue->waiting == 0 && !queue->stop) uv_cond_wait(&queue->wake, &queue->lock);
    struct job *job = list_take(&queue->committed);
    if (job == NULL) job = list_take(&queue->fresh);
    if (job != NULL) queue->waiting--;
    uv_mutex_unlock(&queue->lock);
    return job;
}

// One that closes its sending side alone, to say that its request is complete, looks the same: it is answered all the
// same unless there was a long wait.
static bool has_left(const struct job *job) {
    const bool waited = uv_hrtime() - job->queued_ns > PATIENCE_NS;
    return waited && (job->route->flags & ROUTE_BODY) != 0 && job->left(job);
}

static void work_on(struct job *job) {
    if (job->committed) {
        job->committed = false;
        job->finish(job);
        count(job);
    } else if (has_left(job)) {
        msg_fail(&job->error, MSG_QUEUE_FULL, NULL,
                 "the client closed while the call waited for a worker; nothing was changed");
    } else if (run(job) == JOB_COMMIT && submit(job)) {
        return;
    }
    job->resume(job);
}

static void worker_main(void *argument) {
    struct job_queue *const queue = argument;
    for (struct job *job; (job = dequeue(queue)) != NULL;) work_on(job);
}

struct job *job_of_change(struct change *change) {
    return (struct job *)(void *)((char *)change - offsetof(struct job, change));
}

static void change_done(struct change *change) {
    struct job *const job = job_of_change(change);
    if (change->error.code != MSG_OK) {
        job->error = change->error;
    } else {
        job->committed = true;
        if (job->heavy && enqueue(job)) return;
    }
    job->resume(job);
}

struct job_queue *job_queue_new(unsigned workers) {
    struct job_queue *queue = calloc(1, sizeof *queue + workers * sizeof queue->threads[0]);
    if (queue == NULL) return NULL;
    list_start(&queue->committed);
    list_start(&queue->fresh);
    if (uv_mutex_init(&queue->lock) != 0 || uv_cond_init(&queue->wake) != 0) {
        free(queue);
        return NULL;
    }
    while (queue->workers < workers && uv_thread_create(&queue->threads[queue->workers], worker_main, queue) == 0) {
        queue->workers++;
    }
    if (queue->workers == 0) job_queue_free(&queue);
    return queue;
}

// Takes out waiting jobs that are not yet committed, all or those past their deadline.
static struct job *take_waiting(struct job_queue *queue, bool all, uint64_t now_ns) {
    struct job_list taken, kept;
    list_start(&taken);
    list_start(&kept);
    uv_mutex_lock(&queue->lock);
    for (struct job *job; (job = list_take(&queue->fresh)) != NULL;) {
        const bool take = all || now_ns > job->deadline_ns;
        list_add(take ? &taken : &kept, job);
        if (take) queue->waiting--;
    }
    for (struct job *job; (job = list_take(&kept)) != NULL;) list_add(&queue->fresh, job);
    uv_mutex_unlock(&queue->lock);
    return taken.first;
}

static void refuse(struct job *jobs, enum msg_code code, const char *why) {
    for (struct job *job = jobs, *next; job != NULL; job = next) {
        next = job->next; // resume may free the job
        msg_fail(&job->error, code, NULL, "%s", why);
        job->resume(job);
    }
}

void job_queue_expire(struct job_queue *queue, uint64_t now_ns) {
    refuse(take_waiting(queue, false, now_ns), MSG_DEADLINE,
           "the deadline passed while the call waited; nothing was changed");
}

void job_queue_refuse(struct job_queue *queue) {
    refuse(take_waiting(queue, true, 0), MSG_DRAINING, "the server is shutting down; nothing was changed");
}

void job_queue_free(struct job_queue **queue) {
    struct job_queue *const q = *queue;
    *queue = NULL;
    if (q == NULL) return;
    uv_mutex_lock(&q->lock);
    q->stop = true;
    uv_cond_broadcast(&q->wake);
    uv_mutex_unlock(&q->lock);
    for (unsigned i = 0; i < q->workers; i++) uv_thread_join(&q->threads[i]);
    uv_cond_destroy(&q->wake);
    uv_mutex_destroy(&q->lock);
    free(q);
}

// ---- the I/O thread's side

const char *job_parameter(const struct job *job, const char *name) {
    for (unsigned i = 0; i < JOB_PARAMETERS_MAX && job->route->parameters[i] != NULL; i++) {
        const bool given = (job->parameters_given & 1u << i) != 0;
        if (given && strcmp(job->route->parameters[i], name) == 0) return job->parameters[i];
    }
    return NULL;
}

bool job_precondition(const struct job *job, const struct layer_state *state, struct msg_error *error) {
    if (job->if_match.count > 0 && !etag_matches(&job->if_match, state, false)) {
        return msg_fail(error, MSG_PRECONDITION_FAILED, NULL, "If-Match does not name the layer's state");
    }
    if (strcmp(job->route->method, "GET") == 0 || !etag_matches(&job->if_none_match, state, true)) return true;
    return msg_fail(error, MSG_PRECONDITION_FAILED, NULL, "If-None-Match names the layer's state");
}

// What has no entity tag matches none, but it exists.
static void check_untagged(struct job *job) {
    if ((job->route->flags & ROUTE_BODY) == 0) return;
    if (job->if_match.count > 0 && !etag_any(&job->if_match))
        msg_fail(&job->error, MSG_PRECONDITION_FAILED, NULL, "the resource has no entity tag that If-Match could name");
    if (etag_any(&job->if_none_match))
        msg_fail(&job->error, MSG_PRECONDITION_FAILED, NULL, "If-None-Match is *, and the resource exists");
}

void job_look_up(struct job *job) {
    if ((job->route->flags & ROUTE_HAS_NAME) == 0) {
        check_untagged(job);
        return;
    }
    layer_state_release(job->state);
    layer_release(job->layer);
    job->layer = registry_find(job->service->registry, job->name, &job->state);
    if (job->layer == NULL && (job->route->flags & ROUTE_NEEDS_LAYER) != 0) {
        msg_fail(&job->error, MSG_LAYER_NOT_FOUND, NULL, "there is no layer \"%s\"", job->name);
    }
    job_precondition(job, job->state, &job->error);
}

static enum codec_form form_of(const struct buffer *body) {
    if (npy_begins(body->data, body->size)) return CODEC_NPY;
    return safetensors_begins(body->data, body->size) ? CODEC_SAFETENSORS : CODEC_JSON;
}

// A short body is complete before it is worth it, and in a coding there is nothing to be read yet.
static bool reads_ahead(const struct job *job) {
    const struct job_forms *const forms = &job->forms;
    const bool json = forms->reads == CODEC_JSON || (forms->reads == CODEC_OIP && !forms->has_header);
    return (job->route->flags & ROUTE_CALL) != 0 && json && forms->body_coding == CODING_NONE &&
           job->body.size > INLINE_BODY && job->state != NULL && form_of(&job->body) == CODEC_JSON;
}

void job_read_ahead(struct job *job) {
    if (!reads_ahead(job)) return;
    const size_t start = job->forms.reads == CODEC_OIP ? job->forms.padding : 0;
    const enum bn_dtype dtype = (enum bn_dtype)job->state->config.dtype;
    struct budget *const memory = job->service->memory;
    if (job->ahead == NULL) job->ahead = ahead_new(dtype, job->announced, memory);
    if (job->ahead == NULL) return;
    // A body may never be complete: then its values would keep others from theirs.
    if (atomic_load(&memory->used) > memory->limit / 2) ahead_stop(job->ahead);
    ahead_read(job->ahead, (const char *)job->body.data + start, job->body.size - start);
}

void job_drop_body(struct job *job) {
    buffer_free(&job->body);
    ahead_free(&job->ahead);
}

// curl --data-binary says of any file that it is a form. These files say what they are, and no JSON text begins so.
static void look_at_body(struct job *job) {
    struct job_forms *const forms = &job->forms;
    const enum codec_form form = form_of(&job->body);
    if ((forms->may_be & 1u << form) == 0) return;
    forms->reads = form;
    forms->writes = forms->writes_if[form];
}

bool job_start(struct job *job, void (*suspend)(struct job *job)) {
    times_mark(job, JOB_STARTED);
    job->deadline_ns = job->marks[JOB_STARTED] + job->service->request_timeout_ns;
    buffer_trim(&job->body);
    look_at_body(job);
    job_look_up(job);
    if (job->error.code != MSG_OK) return true;
    job->heavy = is_heavy(job);
    if (job->heavy) {
        suspend(job);
        if (!enqueue(job)) job->resume(job);
        return false;
    }
    if (run(job) == JOB_REPLY) return true;
    suspend(job);
    if (!submit(job)) job->resume(job);
    return false;
}

// There is nothing that a pointer could point into: the detail says what it would.
static void tell_without_pointer(struct msg_error *error) {
    char pointer[MSG_POINTER_MAX];
    if (!error->has_pointer || error->pointer[0] == '\0') return;
    error->has_pointer = false;
    memcpy(pointer, error->pointer + 1, sizeof pointer - 1);
    pointer[sizeof pointer - 1] = '\0';
    const size_t length = strlen(error->detail), room = sizeof error->detail - length;
    if (strlen(pointer) + 4 <= room) snprintf(error->detail + length, room, " (%s)", pointer);
}

bool job_encode_error(struct buffer *out, const struct job *job) {
    return job->oip ? oip_encode_error(out, &job->error, job->name) : json_encode_error(out, &job->error);
}

void job_finish(struct job *job) {
    if (job->committed) {
        job->committed = false;
        job->finish(job);
        count(job);
    }
    times_record(job);
    if (job->error.code == MSG_OK) return;
    // What is unknown was found in the request itself.
    if (job->forms.reads == CODEC_OIP && job->error.code != MSG_UNKNOWN_FIELD) {
        oip_place_error(&job->error, &job->call.infer);
    } else if (job->forms.reads != CODEC_JSON && job->forms.reads != CODEC_OIP) {
        tell_without_pointer(&job->error);
    }
    // An error is small and must be told even where the budget is full.
    buffer_free(&job->reply.body);
    job->reply.body.budget = NULL;
    job->reply.extra = (struct msg_extra){0};
    job->reply.fixed_body = NULL;
    job->reply.more = NULL;
    job->reply.status = msg_codes[job->error.code].status;
    job->reply.content_type = "application/problem+json";
    if (!job_encode_error(&job->reply.body, job)) log_line(LOG_LEVEL_ERROR, "out of memory for an error reply");
}
