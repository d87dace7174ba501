// SPDX-License-Identifier: Apache-2.0
//
// bare_mhd constant FILE: a libmicrohttpd server that reads every request to its end and answers with the file as JSON,
// whatever was asked. bare_mhd echo: sends every body back; it gathers it in one buffer of Content-Length bytes.
// What bench_http.py holds normd against, so its daemon is set up as in server/http.c, but that it cannot suspend and
// follows no connection. Listens on a free port of 127.0.0.1, prints `bare ready http://127.0.0.1:PORT`, and ends at
// SIGTERM or SIGINT.
#include <arpa/inet.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

// As in server/http.c and server/main.c.
#define CONNECTION_MEMORY (32 * 1024)
#define CONNECTIONS_MAX 10000
#define IO_THREADS_MAX 4

// libmicrohttpd 0.9.75 asks for 128 events, and where it gets exactly 128 it waits for more before it looks at them. If
// all clients that speak are among them, they stall until the connection time-out. This function is found before the
// one of libc, and never gives that many; the rest comes in the next round.
int epoll_wait(int epoll, struct epoll_event *events, int room, int timeout_ms) {
    return epoll_pwait(epoll, events, room > 1 ? room - 1 : room, timeout_ms, NULL);
}

// ---- one reply for all

static enum MHD_Result answer_constant(void *context, struct MHD_Connection *connection, const char *path,
                                       const char *method, const char *version, const char *data, size_t *size,
                                       void **request) {
    (void)path;
    (void)method;
    (void)version;
    (void)data;
    struct MHD_Response *const reply = context;
    if (*request == NULL) {
        // A reply to the head alone would close the connection.
        *request = context;
        return MHD_YES;
    }
    if (*size != 0) {
        *size = 0;
        return MHD_YES;
    }
    return MHD_queue_response(connection, MHD_HTTP_OK, reply);
}

// ---- the body as the reply

struct body {
    size_t size, room;
    char *data;
};

// NULL where Content-Length is missing, or more than there is memory for.
static struct body *body_new(struct MHD_Connection *connection) {
    const char *const length = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
    struct body *const body = length != NULL ? calloc(1, sizeof *body) : NULL;
    if (body == NULL) return NULL;
    body->room = strtoull(length, NULL, 10);
    body->data = malloc(body->room);
    if (body->data != NULL) return body;
    free(body);
    return NULL;
}

// The reply owns the data from here on, also where it cannot be sent.
static enum MHD_Result send_body(struct MHD_Connection *connection, struct body *body) {
    struct MHD_Response *const reply = MHD_create_response_from_buffer(body->size, body->data, MHD_RESPMEM_MUST_FREE);
    if (reply == NULL) return MHD_NO;
    body->data = NULL;
    MHD_add_response_header(reply, MHD_HTTP_HEADER_CONTENT_TYPE, "application/octet-stream");
    const enum MHD_Result queued = MHD_queue_response(connection, MHD_HTTP_OK, reply);
    MHD_destroy_response(reply);
    return queued;
}

static enum MHD_Result answer_echo(void *context, struct MHD_Connection *connection, const char *path,
                                   const char *method, const char *version, const char *data, size_t *size,
                                   void **request) {
    (void)context;
    (void)path;
    (void)method;
    (void)version;
    struct body *const body = *request;
    if (body == NULL) {
        *request = body_new(connection);
        return *request != NULL ? MHD_YES : MHD_NO;
    }
    if (*size == 0) return send_body(connection, body);
    if (*size > body->room - body->size) return MHD_NO;
    memcpy(body->data + body->size, data, *size);
    body->size += *size;
    *size = 0;
    return MHD_YES;
}

static void drop_body(void *context, struct MHD_Connection *connection, void **request,
                      enum MHD_RequestTerminationCode why) {
    (void)context;
    (void)connection;
    (void)why;
    struct body *const body = *request;
    if (body != NULL) free(body->data);
    free(body);
    *request = NULL;
}

// ---- the daemon

static unsigned io_threads(void) {
    cpu_set_t set;
    const unsigned available = sched_getaffinity(0, sizeof set, &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
    return available < IO_THREADS_MAX ? available : IO_THREADS_MAX;
}

// Echoes where there is no reply.
static struct MHD_Daemon *start(struct MHD_Response *reply) {
    const unsigned threads = io_threads();
    const unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_ITC | MHD_USE_ERROR_LOG;
    struct sockaddr_in loopback = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct MHD_OptionItem options[] = {
        {MHD_OPTION_SOCK_ADDR, 0, &loopback},
        {MHD_OPTION_CONNECTION_LIMIT, CONNECTIONS_MAX, NULL},
        {MHD_OPTION_CONNECTION_MEMORY_LIMIT, CONNECTION_MEMORY, NULL},
        {MHD_OPTION_CONNECTION_TIMEOUT, 120, NULL},
        {MHD_OPTION_NOTIFY_COMPLETED, reply != NULL ? 0 : (intptr_t)drop_body, NULL},
        {MHD_OPTION_STRICT_FOR_CLIENT, 1, NULL},
        {threads > 1 ? MHD_OPTION_THREAD_POOL_SIZE : MHD_OPTION_END, threads, NULL},
        {MHD_OPTION_END, 0, NULL},
    };
    return MHD_start_daemon(flags, 0, NULL, NULL, reply != NULL ? answer_constant : answer_echo, reply,
                            MHD_OPTION_ARRAY, options, MHD_OPTION_END);
}

static int serve(struct MHD_Response *reply) {
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    sigprocmask(SIG_BLOCK, &ends, NULL); // before the daemon's threads start, which inherit it
    struct MHD_Daemon *const daemon = start(reply);
    const union MHD_DaemonInfo *const info =
        daemon != NULL ? MHD_get_daemon_info(daemon, MHD_DAEMON_INFO_BIND_PORT) : NULL;
    if (info == NULL) {
        fprintf(stderr, "bare_mhd: cannot start the daemon\n");
        return 1;
    }
    printf("bare ready http://127.0.0.1:%u\n", (unsigned)info->port);
    fflush(stdout);
    int number = 0;
    sigwait(&ends, &number);
    MHD_stop_daemon(daemon);
    return 0;
}

// The file in memory; a reply from a file descriptor would be read anew for each request. NULL where it cannot be read.
static struct MHD_Response *load_reply(const char *path) {
    FILE *const file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) return NULL;
    const long size = ftell(file);
    rewind(file);
    char *const data = size > 0 ? malloc((size_t)size) : NULL;
    const bool ok = data != NULL && fread(data, 1, (size_t)size, file) == (size_t)size;
    fclose(file);
    struct MHD_Response *const reply =
        ok ? MHD_create_response_from_buffer((size_t)size, data, MHD_RESPMEM_MUST_FREE) : NULL;
    if (reply == NULL) {
        free(data);
        return NULL;
    }
    MHD_add_response_header(reply, MHD_HTTP_HEADER_CONTENT_TYPE, "application/json");
    return reply;
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "echo") == 0) return serve(NULL);
    if (argc != 3 || strcmp(argv[1], "constant") != 0) {
        fprintf(stderr, "usage: bare_mhd constant FILE | bare_mhd echo\n");
        return 2;
    }
    struct MHD_Response *const reply = load_reply(argv[2]);
    if (reply == NULL) {
        perror(argv[2]);
        return 1;
    }
    const int status = serve(reply);
    MHD_destroy_response(reply);
    return status;
}
