// SPDX-License-Identifier: Apache-2.0
//
// From a job's reply to what libmicrohttpd sends: fields, and the body whole or in pieces.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "http_exchange.h"
#include "routes.h"

#define WINDOW_MIN_NS SECOND_NS // a peer's rate is taken over --request-timeout, but not over less
#define JOINED_MAX ((size_t)16 * 1024)
#define BLOCK ((size_t)32 * 1024) // of a reply in pieces to a client that does not take chunks (HTTP/1.0)

static bool add_field(struct MHD_Response *response, const char *name, const char *value) {
    return MHD_add_response_header(response, name, value) == MHD_YES;
}

// Those that a codec gives, since the body has no place for them.
static bool add_own_fields(struct MHD_Response *response, const struct msg_extra *extra) {
    for (size_t i = 0; i < extra->fields; i++) {
        if (!add_field(response, extra->field[i].name, extra->field[i].value)) return false;
    }
    return true;
}

// What GET gives depends on Accept where there are several forms.
static bool varies(const struct job *job) {
    const unsigned forms = job->route != NULL ? job->route->writes : 0;
    return (forms & (forms - 1)) != 0 && strcmp(job->route->method, "GET") == 0;
}

bool exchange_tells_codings(const struct exchange *exchange) {
    const struct job *const job = exchange->job;
    return msg_codes[job->error.code].status == 415 && job->route != NULL && (job->route->flags & ROUTE_CODED) != 0;
}

static bool add_fields(struct MHD_Response *response, const struct exchange *exchange) {
    const struct reply *const reply = &exchange->job->reply;
    const bool has_body = reply->status != 204 && reply->status != 304;
    // A store that failed leaves open whether the change is kept: it must not be sent again without a look.
    const bool unknown = exchange->job->error.code == MSG_STORE_FAILED;
    const bool retry = (reply->status == 503 && !unknown) || reply->status == 429;
    return (!has_body || add_field(response, "Content-Type", reply->content_type)) &&
           (!varies(exchange->job) || add_field(response, "Vary", "Accept")) &&
           (reply->etag[0] == '\0' || add_field(response, "ETag", reply->etag)) &&
           (exchange->allow[0] == '\0' || add_field(response, "Allow", exchange->allow)) &&
           (!retry || add_field(response, "Retry-After", "1")) &&
           (!exchange_tells_codings(exchange) || add_field(response, "Accept-Encoding", CODING_ALL)) &&
           (!exchange->close || add_field(response, "Connection", "close")) && add_own_fields(response, &reply->extra);
}

// What libmicrohttpd sends next of a reply in pieces.
static ssize_t give(void *context, uint64_t position, char *out, size_t room) {
    (void)position;
    struct exchange *const exchange = context;
    struct job *const job = exchange->job;
    const struct buffer *const piece = &job->reply.body;
    if (exchange->given == piece->size) {
        if (!job->reply.more(job)) return MHD_CONTENT_READER_END_OF_STREAM;
        exchange->given = 0;
    }
    const size_t left = piece->size - exchange->given, size = left < room ? left : room;
    memcpy(out, piece->data + exchange->given, size);
    exchange->given += size;
    return (ssize_t)size;
}

// libmicrohttpd sends a body in parts by itself, behind the head: where it is small, one more call of the system costs
// more than to join it.
static struct MHD_Response *make_joined_response(const struct msg_extra *extra, const void *body, size_t size,
                                                 size_t total) {
    unsigned char *const joined = malloc(total);
    if (joined == NULL) return NULL;
    if (size > 0) memcpy(joined, body, size);
    for (size_t i = 0, at = size; i < extra->pieces; at += extra->piece[i++].size)
        if (extra->piece[i].size > 0) memcpy(joined + at, extra->piece[i].data, extra->piece[i].size);
    struct MHD_Response *const response = MHD_create_response_from_buffer(total, joined, MHD_RESPMEM_MUST_FREE);
    if (response == NULL) free(joined);
    return response;
}

// What a codec left in its place follows the body.
static struct MHD_Response *make_scattered_response(const struct msg_extra *extra, const void *body, size_t size) {
    struct MHD_IoVec parts[1 + MSG_PIECES_MAX] = {{body, size}};
    size_t total = size;
    for (size_t i = 0; i < extra->pieces; i++) {
        parts[i + 1] = (struct MHD_IoVec){extra->piece[i].data, extra->piece[i].size};
        total += extra->piece[i].size;
    }
    if (total > 0 && total <= JOINED_MAX) return make_joined_response(extra, body, size, total);
    return MHD_create_response_from_iovec(parts, (unsigned)extra->pieces + 1, NULL, NULL);
}

// The bytes stay where they are, and the job outlives the response.
static struct MHD_Response *make_response(struct exchange *exchange, const void *body, size_t size) {
    const struct msg_extra *const extra = &exchange->job->reply.extra;
    if (extra->pieces > 0) return make_scattered_response(extra, body, size);
    if (exchange->job->reply.more == NULL)
        return MHD_create_response_from_buffer(size, (void *)(uintptr_t)body, MHD_RESPMEM_PERSISTENT);
    struct MHD_Response *const response =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK, give, exchange, NULL);
    // libmicrohttpd 0.9.75 ends chunks that it must not send with an empty one, which would be read as the next reply.
    const bool head_alone = strcmp(exchange->method, "HEAD") == 0 || exchange->job->reply.status == 304;
    if (response != NULL && head_alone)
        MHD_set_response_options(response, MHD_RF_HTTP_1_0_COMPATIBLE_STRICT, MHD_RO_END);
    return response;
}

enum MHD_Result exchange_reply(struct exchange *exchange) {
    struct job *const job = exchange->job;
    job_finish(job);
    const bool is_error = job->error.code != MSG_OK;
    if (is_error) job->reply.etag[0] = '\0';
    exchange->close = exchange->close || atomic_load(&job->service->draining);
    exchange->stage = STAGE_REPLIED;
    exchange->status = job->reply.status;
    const void *const body = job->reply.fixed_body != NULL ? job->reply.fixed_body : job->reply.body.data;
    const size_t size = job->reply.fixed_body != NULL ? job->reply.fixed_size : job->reply.body.size;
    const uint64_t timeout = job->service->request_timeout_ns,
                   window = timeout > WINDOW_MIN_NS ? timeout : WINDOW_MIN_NS;
    if (!connections_reply(exchange->connections, exchange->deadline, uv_hrtime(), window)) return MHD_NO;
    struct MHD_Response *const response = make_response(exchange, body, size);
    if (response == NULL) return MHD_NO;
    enum MHD_Result result = MHD_NO;
    if (add_fields(response, exchange))
        result = MHD_queue_response(exchange->connection, (unsigned)job->reply.status, response);
    MHD_destroy_response(response);
    return result;
}

bool exchange_write_error(struct buffer *out, const struct job *job, const char *fields, bool with_body) {
    struct buffer body = {0};
    char head[512];
    const unsigned status = (unsigned)msg_codes[job->error.code].status;
    bool ok = job_encode_error(&body, job);
    const int length = snprintf(head, sizeof head,
                                "HTTP/1.1 %u %s\r\nContent-Type: application/problem+json\r\n"
                                "Content-Length: %zu\r\n%sConnection: close\r\n\r\n",
                                status, MHD_get_reason_phrase_for(status), body.size, fields);
    ok = ok && (size_t)length < sizeof head && buffer_append(out, head, (size_t)length) &&
         (!with_body || buffer_append(out, body.data, body.size));
    buffer_free(&body);
    return ok;
}

void exchange_error_fields(char *out, size_t room, const struct exchange *exchange) {
    const int status = msg_codes[exchange->job->error.code].status;
    const bool allow = exchange->allow[0] != '\0';
    snprintf(out, room, "%s%s%s%s%s", allow ? "Allow: " : "", exchange->allow, allow ? "\r\n" : "",
             status == 503 || status == 429 ? "Retry-After: 1\r\n" : "",
             exchange_tells_codings(exchange) ? "Accept-Encoding: " CODING_ALL "\r\n" : "");
}
