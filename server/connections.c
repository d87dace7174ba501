// SPDX-License-Identifier: Apache-2.0
#include "connections.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <uv.h>

#include "peer.h"

#define LINGER_NS UINT64_C(1000000000)
#define LOOK_NS UINT64_C(1000000000)

struct connection {
    int fd;
    enum phase phase;
    uint64_t deadline_ns;
    bool cut, answered;
    // PHASE_BODY: what is said at its end; borrowed, NULL: what connections_reap is given.
    const char *late_reply;
    size_t late_size;
    uint64_t look_ns; // up to PHASE_BODY: when to look whether the peer has closed; 0: not yet known
    // PHASE_DISCARD: the last words; owned.
    void *refusal;
    size_t refusal_size;
    // PHASE_REPLY: bytes that the peer had taken when the window began, once that was looked at.
    uint64_t window_ns, taken;
    bool taken_known;
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
    free(connection->refusal);
    free(connection);
}

// Lock held. False where nothing may follow.
static bool enter(struct connection *connection, enum phase phase, uint64_t deadline_ns) {
    if (connection->cut || connection->answered) return false;
    free(connection->refusal);
    connection->refusal = NULL;
    connection->taken_known = false;
    connection->look_ns = 0;
    connection->phase = phase;
    connection->deadline_ns = deadline_ns;
    return true;
}

bool connections_enter(struct connections *connections, struct connection *connection, enum phase phase,
                       uint64_t deadline_ns) {
    if (connection == NULL) return true;
    uv_mutex_lock(&connections->lock);
    const bool alive = enter(connection, phase, deadline_ns);
    uv_mutex_unlock(&connections->lock);
    return alive;
}

void connections_on_timeout(struct connections *connections, struct connection *connection, const char *reply,
                            size_t size) {
    // The connection's own thread alone writes it, so it may look without the lock: mostly there is nothing to do.
    if (connection == NULL || connection->late_reply == reply) return;
    uv_mutex_lock(&connections->lock);
    connection->late_reply = reply;
    connection->late_size = size;
    uv_mutex_unlock(&connections->lock);
}

bool connections_refuse(struct connections *connections, struct connection *connection, const void *reply, size_t size,
                        uint64_t deadline_ns) {
    void *const copy = malloc(size + 1);
    if (copy == NULL) return false;
    memcpy(copy, reply, size);
    uv_mutex_lock(&connections->lock);
    const bool alive = enter(connection, PHASE_DISCARD, deadline_ns);
    if (alive) {
        connection->refusal = copy;
        connection->refusal_size = size;
    }
    uv_mutex_unlock(&connections->lock);
    if (!alive) free(copy);
    return alive;
}

bool connections_reply(struct connections *connections, struct connection *connection, uint64_t now_ns,
                       uint64_t window_ns) {
    uv_mutex_lock(&connections->lock);
    const bool alive = enter(connection, PHASE_REPLY, now_ns + window_ns);
    connection->window_ns = window_ns;
    uv_mutex_unlock(&connections->lock);
    return alive;
}

// Lock held. The I/O thread sees the end of the stream and closes.
static void cut(struct connection *connection) {
    connection->cut = true;
    shutdown(connection->fd, SHUT_RDWR);
}

// Lock held. A peer that does not read is cut later all the same.
static void answer(struct connection *connection, const void *reply, size_t size, uint64_t now_ns) {
    if (send(connection->fd, reply, size, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)size) {
        cut(connection);
        return;
    }
    shutdown(connection->fd, SHUT_WR);
    connection->answered = true;
    connection->phase = PHASE_LINGER;
    connection->deadline_ns = now_ns + LINGER_NS;
}

bool connections_answer(struct connections *connections, struct connection *connection, uint64_t now_ns) {
    uv_mutex_lock(&connections->lock);
    if (!connection->cut && !connection->answered) {
        if (connection->refusal != NULL) {
            answer(connection, connection->refusal, connection->refusal_size, now_ns);
        } else {
            cut(connection);
        }
    }
    const bool alive = !connection->cut;
    uv_mutex_unlock(&connections->lock);
    return alive;
}

bool connections_answered(struct connections *connections, const struct connection *connection) {
    uv_mutex_lock(&connections->lock);
    const bool answered = connection->answered;
    uv_mutex_unlock(&connections->lock);
    return answered;
}

// Lock held. In PHASE_REPLY: begins the first window, whose start is not worth a system call in each small reply, or
// the next one where the peer has taken enough in the last. While this phase lasts there is more to send than the
// socket takes, so a peer that takes little is slow itself. True where it is to be cut.
static bool takes_too_little(struct connection *connection, uint64_t now_ns) {
    if (connection->taken_known && now_ns < connection->deadline_ns) return false;
    const uint64_t taken = peer_taken(connection->fd);
    const uint64_t least = connection->window_ns / 1000000 * CONNECTION_MIN_RATE / 1000;
    const bool first = !connection->taken_known;
    const bool enough = first || taken - connection->taken >= (least > 0 ? least : 1);
    connection->taken = taken;
    connection->taken_known = true;
    if (now_ns >= connection->deadline_ns) connection->deadline_ns = now_ns + connection->window_ns;
    return !enough;
}

// Lock held. libmicrohttpd does not see the end of a stream that comes together with bytes which its buffer had more
// room for: it waits for an edge that was the last one, and holds the body until its deadline. So each second what has
// made no step and waits for the peer is looked after.
static bool has_lost_peer(struct connection *connection, uint64_t now_ns) {
    if (connection->phase > PHASE_BODY || now_ns < connection->look_ns) return false;
    const bool first = connection->look_ns == 0;
    connection->look_ns = now_ns + LOOK_NS;
    return !first && peer_closed(connection->fd);
}

// Lock held.
static void reap(struct connection *connection, uint64_t now_ns, const char *timeout_reply, size_t size) {
    if (connection->phase == PHASE_REPLY) {
        if (takes_too_little(connection, now_ns)) cut(connection);
    } else if (now_ns < connection->deadline_ns) {
        if (has_lost_peer(connection, now_ns)) cut(connection);
    } else if (connection->phase == PHASE_BODY) {
        const bool own = connection->late_reply != NULL;
        answer(connection, own ? connection->late_reply : timeout_reply, own ? connection->late_size : size, now_ns);
    } else if (connection->phase == PHASE_DISCARD && connection->refusal != NULL) {
        answer(connection, connection->refusal, connection->refusal_size, now_ns);
    } else {
        cut(connection);
    }
}

void connections_reap(struct connections *connections, uint64_t now_ns, const char *timeout_reply, size_t size) {
    uv_mutex_lock(&connections->lock);
    for (struct connection *c = connections->first; c != NULL; c = c->next) {
        if (!c->cut && c->phase != PHASE_WORK) reap(c, now_ns, timeout_reply, size);
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
