// SPDX-License-Identifier: Apache-2.0
//
// bare_mhd REPLY: a libmicrohttpd server that reads every request to its end and answers REPLY as JSON, whatever was
// asked. What bench_http.py holds normd against, so its daemon is set up as in server/http.c, but that it cannot
// suspend and follows no connection. Listens on a free port of 127.0.0.1, prints `bare ready http://127.0.0.1:PORT`,
// ends at SIGTERM or SIGINT.
#include <arpa/inet.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
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

static enum MHD_Result handle(void *context, struct MHD_Connection *connection, const char *path, const char *method,
                              const char *version, const char *data, size_t *size, void **request) {
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

static unsigned io_threads(void) {
    cpu_set_t set;
    const unsigned available = sched_getaffinity(0, sizeof set, &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
    return available < IO_THREADS_MAX ? available : IO_THREADS_MAX;
}

static struct MHD_Daemon *start(struct MHD_Response *reply) {
    const unsigned threads = io_threads();
    const unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_ITC | MHD_USE_ERROR_LOG;
    struct sockaddr_in loopback = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct MHD_OptionItem options[] = {
        {MHD_OPTION_SOCK_ADDR, 0, &loopback},
        {MHD_OPTION_CONNECTION_LIMIT, CONNECTIONS_MAX, NULL},
        {MHD_OPTION_CONNECTION_MEMORY_LIMIT, CONNECTION_MEMORY, NULL},
        {MHD_OPTION_CONNECTION_TIMEOUT, 120, NULL},
        {MHD_OPTION_STRICT_FOR_CLIENT, 1, NULL},
        {threads > 1 ? MHD_OPTION_THREAD_POOL_SIZE : MHD_OPTION_END, threads, NULL},
        {MHD_OPTION_END, 0, NULL},
    };
    return MHD_start_daemon(flags, 0, NULL, NULL, handle, reply, MHD_OPTION_ARRAY, options, MHD_OPTION_END);
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

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: bare_mhd REPLY\n");
        return 2;
    }
    struct MHD_Response *const reply =
        MHD_create_response_from_buffer(strlen(argv[1]), argv[1], MHD_RESPMEM_PERSISTENT);
    if (reply == NULL || MHD_add_response_header(reply, "Content-Type", "application/json") != MHD_YES) return 1;
    const int status = serve(reply);
    MHD_destroy_response(reply);
    return status;
}
