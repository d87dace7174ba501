// SPDX-License-Identifier: Apache-2.0
#include "address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define BACKLOG 1024

// The addresses that HOST:PORT stands for, to be freed by freeaddrinfo, or NULL with the resolver's reason.
static struct addrinfo *resolve(const char *address, const char **why) {
    char host[ADDRESS_MAX];
    struct addrinfo *found = NULL;
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    const char *const colon = strrchr(address, ':');
    if (colon == NULL || (size_t)(colon - address) >= sizeof host) {
        *why = "not HOST:PORT";
        return NULL;
    }
    const bool bracketed = address[0] == '[' && colon > address + 1 && colon[-1] == ']';
    snprintf(host, sizeof host, "%.*s", (int)(colon - address) - (bracketed ? 2 : 0), address + (bracketed ? 1 : 0));
    int rc = getaddrinfo(host, colon + 1, &hints, &found);
    // RFC 6761, section 6.3: localhost is the loopback, also where no hosts file says so.
    if (rc != 0 && strcasecmp(host, "localhost") == 0) rc = getaddrinfo("127.0.0.1", colon + 1, &hints, &found);
    *why = rc != 0 ? gai_strerror(rc) : NULL;
    return rc == 0 ? found : NULL;
}

static unsigned port_of(int fd) {
    struct sockaddr_storage bound;
    socklen_t length = sizeof bound;
    if (getsockname(fd, (struct sockaddr *)&bound, &length) != 0) return 0;
    if (bound.ss_family == AF_INET6) return ntohs(((struct sockaddr_in6 *)(void *)&bound)->sin6_port);
    return ntohs(((struct sockaddr_in *)(void *)&bound)->sin_port);
}

static int listen_on(const struct addrinfo *to) {
    const int yes = 1;
    const int fd = socket(to->ai_family, to->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, to->ai_protocol);
    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(fd, to->ai_addr, to->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0) return fd;
    const int error = errno;
    close(fd);
    errno = error;
    return -1;
}

int address_listen(const char *address, char actual[ADDRESS_MAX], char *why, size_t why_size) {
    const char *reason = NULL;
    struct addrinfo *const found = resolve(address, &reason);
    int fd = -1;
    for (const struct addrinfo *to = found; to != NULL && fd < 0; to = to->ai_next) {
        fd = listen_on(to);
        if (fd < 0) reason = strerror(errno);
    }
    if (found != NULL) freeaddrinfo(found);
    if (fd < 0) {
        snprintf(why, why_size, "cannot listen on %.200s: %s", address, reason);
        return -1;
    }
    snprintf(actual, ADDRESS_MAX, "%.*s:%u", (int)(strrchr(address, ':') - address), address, port_of(fd));
    return fd;
}

#define STATUS_LINE (sizeof "HTTP/1.1 200 " - 1)

// What is wrong with a reply that begins so; NULL: nothing.
static const char *judge(const char reply[STATUS_LINE]) {
    static const char version[] = "HTTP/1.1 ";
    const size_t length = sizeof version - 1;
    if (memcmp(reply, version, length) != 0) return "what answers there is no normd";
    if (memcmp(reply + length, "503 ", 4) == 0) return "it says that it takes no calls now (503)";
    return memcmp(reply + length, "200 ", 4) == 0 ? NULL : "it does not answer /readyz with 200";
}

static const char *broken(void) {
    return errno == EAGAIN || errno == EINPROGRESS ? "it does not answer within 3 s" : strerror(errno);
}

// NULL: it is ready; else the reason why not.
static const char *ask(int fd) {
    static const char request[] = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    char reply[STATUS_LINE];
    size_t size = 0;
    if (send(fd, request, sizeof request - 1, MSG_NOSIGNAL) != (ssize_t)sizeof request - 1) return broken();
    while (size < sizeof reply) {
        const ssize_t n = recv(fd, reply + size, sizeof reply - size, 0);
        if (n < 0) return broken();
        if (n == 0) return "it closes the connection without an answer";
        size += (size_t)n;
    }
    return judge(reply);
}

static const char *ask_at(const struct addrinfo *to) {
    const struct timeval limit = {.tv_sec = 3};
    const int fd = socket(to->ai_family, to->ai_socktype | SOCK_CLOEXEC, to->ai_protocol);
    if (fd < 0) return strerror(errno);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    const char *const reason = connect(fd, to->ai_addr, to->ai_addrlen) == 0 ? ask(fd) : broken();
    close(fd);
    return reason;
}

bool address_is_ready(const char *address, char *why, size_t why_size) {
    const char *reason = NULL;
    struct addrinfo *const found = resolve(address, &reason);
    for (const struct addrinfo *to = found; to != NULL; to = to->ai_next) {
        reason = ask_at(to);
        if (reason == NULL) break;
    }
    if (found != NULL) freeaddrinfo(found);
    if (reason != NULL) snprintf(why, why_size, "%.200s is not ready: %s", address, reason);
    return reason == NULL;
}
