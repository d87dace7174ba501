// SPDX-License-Identifier: Apache-2.0
#include "http.h"

#include <inttypes.h>
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
#include <uv.h>

#include "head.h"
#include "http_exchange.h"
#include "log.h"
#include "peer.h"
#include "rate.h"
#include "routes.h"

#define HEAD_NS (10 * SECOND_NS) // from the connect to the end of the request line, and from there to that of the head
#define IDLE_NS (75 * SECOND_NS) // from a reply to the end of the next request line
#define DISCARD_NS (2 * SECOND_NS) // for the rest of a refused body
#define DISCARD_MAX ((size_t)16 * 1024 * 1024)
#define LINGER_MAX ((size_t)8 * 1024 * 1024)  // of it that is read on after the refusal was written
#define FIRST_ROOM ((size_t)256 * 1024)       // of a body; it grows as the body arrives
#define CONNECTION_MEMORY ((size_t)32 * 1024) // libmicrohttpd clears all of it after each request
#define CONNECTIONS_MAX 10000

struct http {
    struct service *service;
    struct MHD_Daemon *daemon;
    MHD_socket listening; // once draining: ours to close
    struct connections *connections;
    struct buffer timeout_reply, oip_timeout_reply; // what a body that does not arrive is answered with
};

// ---- the head

static enum MHD_Result take_field(void *context, enum MHD_ValueKind kind, const char *name, const char *value) {
    (void)kind;
    head_add(context, name, value);
    return MHD_YES;
}

static enum MHD_Result take_parameter(void *context, enum MHD_ValueKind kind, const char *name, const char *value) {
    (void)kind;
    struct job *const job = context;
    const struct route *const route = job->route;
    char plain[64];
    if (!route_unescape(plain, sizeof plain, name, strlen(name), true)) plain[0] = '\0';
    for (unsigned i = 0; i < JOB_PARAMETERS_MAX && route->parameters[i] != NULL; i++) {
        if (strcmp(route->parameters[i], plain) != 0) continue;
        if ((job->parameters_given & 1u << i) != 0)
            msg_fail(&job->error, MSG_BAD_PARAMETER, NULL, "%s is given twice", plain);
        job->parameters_given |= 1u << i;
        if (value == NULL || route_unescape(job->parameters[i], JOB_PARAMETER_SIZE, value, strlen(value), true))
            return MHD_YES;
        msg_fail(&job->error, MSG_BAD_PARAMETER, NULL, "%s is malformed or too long", plain);
        return MHD_YES;
    }
    if ((route->flags & ROUTE_PROBE) == 0) {
        msg_fail(&job->error, MSG_BAD_PARAMETER, NULL, "there is no query parameter \"%.60s\" here", plain);
    }
    return MHD_YES;
}

static void find_route(struct exchange *exchange, const char *method, const char *path) {
    struct job *const job = exchange->job;
    switch (route_find(&job->route, job->name, method, path)) {
    case ROUTE_FOUND: return;
    case ROUTE_NO_PATH: msg_fail(&job->error, MSG_NOT_FOUND, NULL, "there is nothing at this path"); return;
    case ROUTE_BAD_NAME:
        msg_fail(&job->error, MSG_BAD_NAME, NULL,
                 "a layer's name has 1 to 128 of A-Z a-z 0-9 . _ - and begins with a letter or digit");
        return;
    case ROUTE_NO_VERSION: msg_fail(&job->error, MSG_NOT_FOUND, NULL, "a layer has the one version \"1\""); return;
    case ROUTE_NO_METHOD:
        route_allow(exchange->allow, sizeof exchange->allow, path);
        msg_fail(&job->error, MSG_METHOD_NOT_ALLOWED, NULL, "allowed here: %s", exchange->allow);
        return;
    }
}

static size_t body_limit(const struct job *job) {
    return (job->route->flags & ROUTE_BIG_BODY) != 0 ? job->service->memory->limit : job->service->max_body;
}

// What stands before a body; one in a coding is not yet the body that it aligns.
static size_t padding_of(const struct job *job) {
    return job->forms.body_coding == CODING_NONE ? job->forms.padding : 0;
}

// Memory follows what has arrived, not what a head announces, but for what lies ready: else a few idle sockets would
// hold all of it.
static void reserve_body(struct job *job, const struct head *head) {
    const size_t before = padding_of(job), limit = body_limit(job);
    if (head->has_length && head->length > limit) {
        msg_fail(&job->error, MSG_BODY_TOO_LARGE, NULL, "the body has %" PRIu64 " bytes, the limit is %zu",
                 head->length, limit);
        return;
    }
    job->announced = head->has_length ? (size_t)head->length : 0;
    const size_t whole = before + job->announced;
    const size_t first = before + (job->announced < FIRST_ROOM ? job->announced : FIRST_ROOM);
    const bool ready = buffer_reserve_spare(&job->body, whole, whole + whole / 4);
    if ((!ready && !buffer_reserve(&job->body, first)) || !buffer_pad(&job->body, before)) {
        msg_fail(&job->error, MSG_MEMORY_FULL, NULL, "the body does not fit what is left of the memory budget");
    }
}

// False where the client has made too many requests: it is told that, whatever else is wrong. A probe is none of those.
static bool in_rate(struct exchange *exchange) {
    struct job *const job = exchange->job;
    struct rate *const rate = job->service->rate;
    if (rate == NULL || (job->route != NULL && (job->route->flags & ROUTE_PROBE) != 0)) return true;
    const union MHD_ConnectionInfo *const info =
        MHD_get_connection_info(exchange->connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    if (rate_take(rate, info != NULL ? info->client_addr : NULL, exchange->began_ns)) return true;
    job->error = (struct msg_error){0};
    exchange->allow[0] = '\0';
    return msg_fail(&job->error, MSG_RATE_LIMITED, NULL, "this client has made too many requests in a second");
}

// All that can be said before the body is read, into the job's error.
static void check_request(struct exchange *exchange, const struct head *head, const char *method, const char *path) {
    struct job *const job = exchange->job;
    find_route(exchange, method, path);
    if (!in_rate(exchange) || job->route == NULL) return;
    if ((job->route->flags & ROUTE_NOT_BUILT) != 0) {
        job->route->run(job);
        return;
    }
    if (!head_check(head, job->route, &job->forms, &job->error)) return;
    MHD_get_connection_values(exchange->connection, MHD_GET_ARGUMENT_KIND, take_parameter, job);
    if ((job->route->flags & ROUTE_PROBE) == 0) {
        job->if_match = head->if_match;
        job->if_none_match = head->if_none_match;
    }
    // A layer that is not there, or not as expected, is worth saying before its tensors travel.
    if (job->error.code == MSG_OK && exchange->has_body) job_look_up(job);
    if (job->error.code == MSG_OK) reserve_body(job, head);
}

static void resume(struct job *job) {
    const struct exchange *const exchange = job->connection;
    MHD_resume_connection(exchange->connection);
}

static void suspend(struct job *job) {
    const struct exchange *const exchange = job->connection;
    MHD_suspend_connection(exchange->connection);
}

// libmicrohttpd does not look at the socket of a suspended connection, nor does it close it.
static bool left(const struct job *job) {
    const struct exchange *const exchange = job->connection;
    const union MHD_ConnectionInfo *const info =
        MHD_get_connection_info(exchange->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    return info != NULL && peer_closed(info->connect_fd);
}

static struct exchange *exchange_new(struct http *http, struct MHD_Connection *connection) {
    struct exchange *const exchange = calloc(1, sizeof *exchange);
    if (exchange == NULL) return NULL;
    exchange->job = job_new(http->service);
    if (exchange->job == NULL) {
        free(exchange);
        return NULL;
    }
    const union MHD_ConnectionInfo *const info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    exchange->connections = http->connections;
    exchange->connection = connection;
    exchange->deadline = info != NULL ? info->socket_context : NULL;
    if (exchange->deadline == NULL) { // no memory for its deadlines: it would have none
        job_free(&exchange->job);
        free(exchange);
        return NULL;
    }
    exchange->began_ns = uv_hrtime();
    exchange->job->resume = resume;
    exchange->job->left = left;
    exchange->job->connection = exchange;
    return exchange;
}

// ---- refused bodies

// From here on the body is thrown away, and the job's error is the reply: sent once the body is complete or, where it
// is too long or too slow for that, before the connection is cut.
static enum MHD_Result begin_discard(struct exchange *exchange) {
    struct buffer reply = {0};
    char fields[128];
    exchange_error_fields(fields, sizeof fields, exchange);
    const uint64_t end = uv_hrtime() + DISCARD_NS;
    const bool ok = exchange_write_error(&reply, exchange->job, fields, strcmp(exchange->method, "HEAD") != 0) &&
                    connections_refuse(exchange->connections, exchange->deadline, reply.data, reply.size, end);
    buffer_free(&reply);
    exchange->stage = STAGE_REFUSED;
    exchange->close = true;
    exchange->received = 0;
    job_drop_body(exchange->job);
    return ok ? MHD_YES : MHD_NO;
}

static enum MHD_Result discard(struct exchange *exchange, size_t size) {
    exchange->received += size;
    if (exchange->received <= DISCARD_MAX) return MHD_YES;
    if (exchange->received > DISCARD_MAX + LINGER_MAX) return MHD_NO;
    return connections_answer(exchange->connections, exchange->deadline, uv_hrtime()) ? MHD_YES : MHD_NO;
}

// ---- the start

// RFC 9112, section 3.2.2: a target in absolute form must be understood; what stands before its path is of no use here.
static const char *origin_form(const char *target) {
    if (strncasecmp(target, "http://", 7) != 0 && strncasecmp(target, "https://", 8) != 0) return target;
    const char *const path = strchr(strstr(target, "//") + 2, '/');
    return path != NULL ? path : "/";
}

static enum MHD_Result begin(struct http *http, struct MHD_Connection *connection, const char *path, const char *method,
                             const char *version, void **context) {
    struct exchange *const exchange = exchange_new(http, connection);
    if (exchange == NULL) return MHD_NO;
    *context = exchange;
    path = origin_form(path);
    struct job *const job = exchange->job;
    struct head head = {0};
    job->oip = route_is_oip(path);
    snprintf(exchange->method, sizeof exchange->method, "%s", method);
    MHD_get_connection_values(connection, MHD_HEADER_KIND, take_field, &head);
    exchange->has_body = head_has_body(&head);
    exchange->body_began_ns = exchange->began_ns;
    if (!head_check_framing(&head, path, version, &job->error)) {
        // Where the message ends is not known, so nothing behind its head is read: libmicrohttpd closes after this.
        exchange->close = true;
        return exchange_reply(exchange);
    }
    check_request(exchange, &head, method, path);
    const bool refused = job->error.code != MSG_OK;
    if (refused && exchange->has_body) {
        // A reply in this callback closes the socket on unread data, which destroys the reply for a client that sends;
        // one that waits for 100 Continue has sent nothing.
        exchange->close = true;
        return head_expects_continue(&head, version) ? exchange_reply(exchange) : begin_discard(exchange);
    }
    exchange->stage = refused ? STAGE_REFUSED : STAGE_BODY;
    const struct buffer *const late = &http->oip_timeout_reply;
    connections_on_timeout(http->connections, exchange->deadline, job->oip ? (const char *)late->data : NULL,
                           late->size);
    const uint64_t end = exchange->began_ns + http->service->request_timeout_ns;
    return connections_enter(http->connections, exchange->deadline, PHASE_BODY, end) ? MHD_YES : MHD_NO;
}

// ---- the body

// Time that so many bytes may take on the wire.
static uint64_t at_min_rate(uint64_t bytes) {
    return bytes / CONNECTION_MIN_RATE * SECOND_NS + bytes % CONNECTION_MIN_RATE * SECOND_NS / CONNECTION_MIN_RATE;
}

// The body comes before what was read of it.
static bool add_to_body(struct job *job, const char *data, size_t size) {
    if (buffer_append(&job->body, data, size)) return true;
    ahead_stop(job->ahead);
    return buffer_append(&job->body, data, size);
}

static enum MHD_Result take_body(struct exchange *exchange, const char *data, size_t size) {
    struct job *const job = exchange->job;
    if (exchange->stage != STAGE_BODY) return discard(exchange, size);
    const size_t limit = body_limit(job);
    if (size > limit + padding_of(job) - job->body.size) {
        msg_fail(&job->error, MSG_BODY_TOO_LARGE, NULL, "the body is larger than the limit of %zu bytes", limit);
        return begin_discard(exchange) == MHD_YES ? discard(exchange, size) : MHD_NO;
    }
    if (!add_to_body(job, data, size)) {
        msg_fail(&job->error, MSG_MEMORY_FULL, NULL, "the body does not fit what is left of the memory budget");
        job_judge_memory(job, job->body.refused);
        return begin_discard(exchange) == MHD_YES ? discard(exchange, size) : MHD_NO;
    }
    job_read_ahead(job);
    const uint64_t end =
        exchange->body_began_ns + exchange->job->service->request_timeout_ns + at_min_rate(job->body.size);
    if (connections_enter(exchange->connections, exchange->deadline, PHASE_BODY, end)) return MHD_YES;
    // It was answered with 408, or cut, while these bytes were on their way.
    exchange->stage = STAGE_REFUSED;
    exchange->received = DISCARD_MAX;
    job_drop_body(job);
    return discard(exchange, size);
}

static enum MHD_Result body_complete(struct exchange *exchange) {
    if (exchange->stage == STAGE_REFUSED || exchange->stage == STAGE_WORK) return exchange_reply(exchange);
    if (!connections_enter(exchange->connections, exchange->deadline, PHASE_WORK, 0)) return MHD_NO;
    exchange->stage = STAGE_WORK;
    return job_start(exchange->job, suspend) ? exchange_reply(exchange) : MHD_YES;
}

static enum MHD_Result handle(void *context, struct MHD_Connection *connection, const char *path, const char *method,
                              const char *version, const char *data, size_t *size, void **request) {
    struct http *const http = context;
    struct exchange *const exchange = *request;
    if (exchange == NULL) return begin(http, connection, path, method, version, request);
    if (exchange->stage == STAGE_REPLIED) return MHD_YES;
    if (*size == 0) return body_complete(exchange);
    const size_t given = *size;
    *size = 0;
    return take_body(exchange, data, given);
}

// ---- connections

static void completed(void *context, struct MHD_Connection *connection, void **request,
                      enum MHD_RequestTerminationCode why) {
    (void)connection;
    struct http *const http = context;
    struct exchange *const exchange = *request;
    *request = NULL;
    if (exchange == NULL) return;
    if (exchange->stage == STAGE_WORK) job_finish(exchange->job); // the client left before its reply could be made
    const uint64_t now = uv_hrtime();
    const struct route *const route = exchange->job->route;
    if (!connections_enter(http->connections, exchange->deadline, PHASE_IDLE, now + IDLE_NS) &&
        connections_answered(http->connections, exchange->deadline)) {
        const enum msg_code code = exchange->job->error.code;
        exchange->status = msg_codes[code != MSG_OK ? code : MSG_BODY_TIMEOUT].status;
    }
    log_line(LOG_LEVEL_DEBUG, "%s %s %d %.3f ms%s", exchange->method, route != NULL ? route->path : "-",
             exchange->status, (double)(now - exchange->began_ns) / 1e6,
             why == MHD_REQUEST_TERMINATED_COMPLETED_OK ? "" : " (cut)");
    job_free(&exchange->job);
    free(exchange);
}

static void notice(void *context, struct MHD_Connection *connection, void **socket_context,
                   enum MHD_ConnectionNotificationCode code) {
    struct http *const http = context;
    if (code == MHD_CONNECTION_NOTIFY_CLOSED) {
        connections_remove(http->connections, *socket_context);
        *socket_context = NULL;
        return;
    }
    const union MHD_ConnectionInfo *const info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    *socket_context = info != NULL ? connections_add(http->connections, info->connect_fd, uv_hrtime() + HEAD_NS) : NULL;
    // Without a deadline it could stay for ever: libmicrohttpd has no time-out of its own, which would cut what is slow
    // but in time.
    if (*socket_context == NULL && info != NULL) shutdown(info->connect_fd, SHUT_RDWR);
    // A connection that was accepted while the drain began is not in its count; it must not begin a request.
    const bool late = atomic_load(&http->service->draining);
    if (*socket_context != NULL && late) connections_cut_one(http->connections, *socket_context);
}

// Called when the request line is complete; its result is the first `*request`.
static void *line_read(void *context, const char *uri, struct MHD_Connection *connection) {
    (void)uri;
    struct http *const http = context;
    const union MHD_ConnectionInfo *const info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    if (info != NULL) connections_enter(http->connections, info->socket_context, PHASE_HEAD, uv_hrtime() + HEAD_NS);
    return NULL;
}

// Paths and queries are decoded by us: libmicrohttpd's own decoding cuts at %00 and makes %2F a slash.
static size_t keep_escapes(void *context, struct MHD_Connection *connection, char *text) {
    (void)context;
    (void)connection;
    return strlen(text);
}

__attribute__((format(printf, 2, 0))) static void log_library(void *context, const char *format, va_list arguments) {
    (void)context;
    char text[512];
    vsnprintf(text, sizeof text, format, arguments);
    text[strcspn(text, "\n")] = '\0';
    log_line(LOG_LEVEL_DEBUG, "libmicrohttpd: %s", text);
}

static bool make_timeout_reply(struct http *http, struct buffer *out, bool oip) {
    struct job *job = job_new(http->service);
    if (job == NULL) return false;
    job->oip = oip;
    msg_fail(&job->error, MSG_BODY_TIMEOUT, NULL, "the body did not arrive in time; nothing was changed");
    const bool ok = exchange_write_error(out, job, "", true);
    job_free(&job);
    return ok;
}

static bool make_timeout_replies(struct http *http) {
    return make_timeout_reply(http, &http->timeout_reply, false) &&
           make_timeout_reply(http, &http->oip_timeout_reply, true);
}

static void free_timeout_replies(struct http *http) {
    buffer_free(&http->timeout_reply);
    buffer_free(&http->oip_timeout_reply);
}

// As many connections as the process may have files, less some for the rest.
static unsigned connection_limit(void) {
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0) return 1000;
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    getrlimit(RLIMIT_NOFILE, &files);
    const rlim_t spare = 64;
    const rlim_t most = files.rlim_cur > 2 * spare ? files.rlim_cur - spare : spare;
    return most < CONNECTIONS_MAX ? (unsigned)most : CONNECTIONS_MAX;
}

struct http *http_start(struct service *service, int listen_fd, unsigned threads) {
    struct http *http = calloc(1, sizeof *http);
    if (http == NULL) {
        close(listen_fd);
        return NULL;
    }
    http->service = service;
    http->listening = MHD_INVALID_SOCKET;
    http->connections = make_timeout_replies(http) ? connections_new() : NULL;
    const unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ITC | MHD_USE_ERROR_LOG;
    struct MHD_OptionItem options[] = {
        {MHD_OPTION_EXTERNAL_LOGGER, (intptr_t)log_library, http},
        {MHD_OPTION_LISTEN_SOCKET, listen_fd, NULL},
        {MHD_OPTION_CONNECTION_LIMIT, connection_limit(), NULL},
        {MHD_OPTION_CONNECTION_MEMORY_LIMIT, (intptr_t)CONNECTION_MEMORY, NULL},
        {MHD_OPTION_NOTIFY_COMPLETED, (intptr_t)completed, http},
        {MHD_OPTION_NOTIFY_CONNECTION, (intptr_t)notice, http},
        {MHD_OPTION_URI_LOG_CALLBACK, (intptr_t)line_read, http},
        {MHD_OPTION_UNESCAPE_CALLBACK, (intptr_t)keep_escapes, http},
        {MHD_OPTION_STRICT_FOR_CLIENT, 1, NULL},
        {threads > 1 ? MHD_OPTION_THREAD_POOL_SIZE : MHD_OPTION_END, threads, NULL},
        {MHD_OPTION_END, 0, NULL},
    };
    if (http->connections != NULL) {
        http->daemon = MHD_start_daemon(flags, 0, NULL, NULL, handle, http, MHD_OPTION_ARRAY, options, MHD_OPTION_END);
    }
    if (http->daemon != NULL) return http;
    close(listen_fd);
    connections_free(&http->connections);
    free_timeout_replies(http);
    free(http);
    return NULL;
}

void http_reap(struct http *http, uint64_t now_ns) {
    connections_reap(http->connections, now_ns, (const char *)http->timeout_reply.data, http->timeout_reply.size);
}

void http_drain(struct http *http) {
    // An I/O thread may be about to accept on the socket, so its number must not become free yet: it is only shut down
    // here, which refuses whoever connects, and closed when the threads have ended.
    http->listening = MHD_quiesce_daemon(http->daemon);
    if (http->listening != MHD_INVALID_SOCKET) shutdown(http->listening, SHUT_RDWR);
}

void http_cut_idle(struct http *http) {
    connections_cut(http->connections, false);
}

size_t http_connections(struct http *http) {
    return connections_count(http->connections);
}

void http_cut_all(struct http *http) {
    connections_cut(http->connections, true);
}

void http_stop(struct http **http) {
    struct http *const h = *http;
    *http = NULL;
    if (h == NULL) return;
    MHD_stop_daemon(h->daemon);
    if (h->listening != MHD_INVALID_SOCKET) close(h->listening);
    connections_free(&h->connections);
    free_timeout_replies(h);
    free(h);
}
