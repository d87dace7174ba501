// SPDX-License-Identifier: Apache-2.0
//
// Probes and facts about the server itself.
#include "ops.h"
#include "reply.h"
#include "version.h"
#include "../proto/json.h"
#include "../proto/openapi.h"

// Static, so that probes are answered even where the memory budget is full.
static enum job_result reply_ok(struct job *job) {
    static const char text[] = "ok\n";
    job->reply.fixed_body = text;
    job->reply.fixed_size = sizeof text - 1;
    return reply_with(job, 200, true);
}

enum job_result ops_livez(struct job *job) {
    return reply_ok(job);
}

enum job_result ops_readyz(struct job *job) {
    if (atomic_load(&job->service->draining)) {
        msg_fail(&job->error, MSG_DRAINING, NULL, "the server is shutting down");
        return JOB_REPLY;
    }
    if (writer_failed(job->service->writer)) {
        msg_fail(&job->error, MSG_STORE_FAILED, NULL, "the store failed");
        return JOB_REPLY;
    }
    return reply_ok(job);
}

enum job_result ops_version(struct job *job) {
    job->reply.body.budget = NULL;
    return reply_with(
        job, 200,
        json_encode_version(&job->reply.body, NORMD_VERSION, bn_cpu_tier(), job->service->threads, store_kind()));
}

enum job_result ops_openapi(struct job *job) {
    job->reply.fixed_body = proto_openapi_text;
    job->reply.fixed_size = proto_openapi_size();
    return reply_with(job, 200, true);
}

static enum job_result not_built(struct job *job, const char *what) {
    msg_fail(&job->error, MSG_NOT_BUILT, NULL, "this build does not have %s", what);
    return JOB_REPLY;
}

enum job_result ops_metrics(struct job *job) {
    return not_built(job, "metrics");
}
