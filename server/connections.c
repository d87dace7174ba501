// SPDX-License-Identifier: Apache-2.0
#include "connections.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <uv.h>

struct connection {
    int fd;
    enum phase phase;
    uint64_t deadline_ns;
    bool cut;
    struct connection *next, *previous;
};

struct connections {
    uv_mutex_t lock; // guards all of it
    struct connection *first;
    size_t count;
};

struct connections *connections_new(void) {
    struct connections *const c = calloc(1, sizeof *c);
    if (c == NULL || uv_mutex_init(&c->lock) == 0) return c;
    free(c);
    return NULL;
}

void connections_free(struct connections **connections) {
    struct connections *const c = *connections;
    *connections = NULL;
    if (c == NULL) return;
    while (c->first != NULL) connections_remove(c, c->first);
    uv_mutex_destroy(&c->lock);
    free(c);
}

struct connection *connections_add(struct connections *connections, int fd, uint64_t deadline_ns) {
    struct connection *const connection = calloc(1, sizeof *connection);
    if (connection == NULL) return NULL;
    connection->fd = fd;
    connection->phase = PHASE_NEW;
    connection->deadline_ns = deadline_ns;
    uv_mutex_lock(&connections->lock);
    connection->next = connections->first;
    if (connections->first != NULL) connections->first->previous = connection;
    connections->first = connection;
    connections->count++;
    uv_mutex_unlock(&connections->lock);
    return connection;
}

void connections_remove(struct connections *connections, struct connection *connection) {
    if (connection == NULL) return;
    uv_mutex_lock(&connections->lock);
    *(connection->previous != NULL ? &connection->previous->next : &connections->first) = connection->next;
    if (connection->next != NULL) connection->next->previous = connection->previous;
    connections->count--;
    uv_mutex_unlock(&connections->lock);
    free(connection);
}

bool connections_enter(struct connections *connections, struct connection *connection, enum phase phase,
                       uint64_t deadline_ns) {
    if (connection == NULL) return true;
    uv_mutex_lock(&connections->lock);
    const bool alive = !connection->cut;
    connection->phase = phase;
    connection->deadline_ns = deadline_ns;
    uv_mutex_unlock(&connections->lock);
    return alive;
}

// Lock held. The I/O thread sees the end of the stream and closes.
static void cut(struct connection *connection) {
    connection->cut = true;
    shutdown(connection->fd, SHUT_RDWR);
}

void connections_reap(struct connections *connections, uint64_t now_ns, const char *timeout_reply, size_t size) {
    uv_mutex_lock(&connections->lock);
    for (struct connection *c = connections->first; c != NULL; c = c->next) {
        if (c->cut || c->phase == PHASE_WORK || now_ns < c->deadline_ns) continue;
        if (c->phase == PHASE_BODY && send(c->fd, timeout_reply, size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
            // The peer does not read either; it is cut all the same.
        }
        cut(c);
    }
    uv_mutex_unlock(&connections->lock);
}

void connections_cut_one(struct connections *connections, struct connection *connection) {
    uv_mutex_lock(&connections->lock);
    cut(connection);
    uv_mutex_unlock(&connections->lock);
}

void connections_cut(struct connections *connections, bool all) {
    uv_mutex_lock(&connections->lock);
    for (struct connection *c = connections->first; c != NULL; c = c->next) {
        if (!c->cut && (all || c->phase == PHASE_NEW || c->phase == PHASE_IDLE)) cut(c);
    }
    uv_mutex_unlock(&connections->lock);
}

size_t connections_count(struct connections *connections) {
    uv_mutex_lock(&connections->lock);
    const size_t count = connections->count;
    uv_mutex_unlock(&connections->lock);
    return count;
}
