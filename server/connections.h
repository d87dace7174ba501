// SPDX-License-Identifier: Apache-2.0
//
// Deadlines of connections. libmicrohttpd's own time-out counts inactivity only, so a peer that sends a byte now and
// then holds a connection for ever; here every phase of a connection has an end, and the main loop cuts what is past
// it.
//
// Locking: one mutex, a leaf. A socket is shut down under it and leaves the table under it before it is closed, so a
// number that was given to another file is never touched.
#ifndef NORMD_SERVER_CONNECTIONS_H
#define NORMD_SERVER_CONNECTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum phase {       // those up to PHASE_BODY wait for the peer
    PHASE_NEW,     // connected, nothing read yet
    PHASE_IDLE,    // kept alive between requests
    PHASE_HEAD,    // the request line was read
    PHASE_BODY,    // its end: 408 is sent before the cut
    PHASE_DISCARD, // a refused body is read and thrown away; its end: the refusal is sent before the cut
    PHASE_WORK,    // no end: the job has a deadline of its own
    PHASE_REPLY,   // its end is put off while the peer takes the reply at the minimum rate
    PHASE_LINGER,  // the last words were sent, and nothing more will be: time for the peer to read them
};

// Bytes a second that a peer must take of a reply, or give of a body, in the long run.
#define CONNECTION_MIN_RATE 4096

struct connections;
struct connection;

struct connections *connections_new(void); // NULL: no memory
void connections_free(struct connections **connections);

// Adds a connected socket. NULL: no memory.
struct connection *connections_add(struct connections *connections, int fd, uint64_t deadline_ns);

// Takes it out, before the socket is closed. NULL is allowed.
void connections_remove(struct connections *connections, struct connection *connection);

// Enters a phase that ends at deadline_ns (uv_hrtime; ignored for PHASE_WORK). False where the connection was cut
// already, or lingers: nothing may be sent on it any more.
bool connections_enter(struct connections *connections, struct connection *connection, enum phase phase,
                       uint64_t deadline_ns);

// What the peer is told, as it goes over the wire, at the end of PHASE_BODY of its next requests; it must outlive the
// connection. NULL: what connections_reap is given. By the thread that serves the connection.
void connections_on_timeout(struct connections *connections, struct connection *connection, const char *reply,
                            size_t size);

// Enters PHASE_DISCARD with the whole reply, as it goes over the wire, that is to be said before the cut. The bytes are
// copied. False as above, and where there is no memory.
bool connections_refuse(struct connections *connections, struct connection *connection, const void *reply, size_t size,
                        uint64_t deadline_ns);

// Enters PHASE_REPLY: a peer that takes the bytes at less than CONNECTION_MIN_RATE over any `window_ns` is cut. False
// as above.
bool connections_reply(struct connections *connections, struct connection *connection, uint64_t now_ns,
                       uint64_t window_ns);

// Says what connections_refuse left and ends our side: from then on the connection lingers, to be closed by the peer or
// at the end of that phase. A close while bytes of the peer are on their way would destroy what it has yet to read.
// False where it was cut already.
bool connections_answer(struct connections *connections, struct connection *connection, uint64_t now_ns);

// True where last words were sent, here or by connections_reap.
bool connections_answered(struct connections *connections, const struct connection *connection);

// Cuts what is past its deadline; those in PHASE_BODY are told `timeout_reply` or their own first, those in
// PHASE_DISCARD what they were refused with.
void connections_reap(struct connections *connections, uint64_t now_ns, const char *timeout_reply, size_t size);

// Cuts one, whatever its phase.
void connections_cut_one(struct connections *connections, struct connection *connection);

// Cuts what serves no request at the moment; with `all`, everything.
void connections_cut(struct connections *connections, bool all);

size_t connections_count(struct connections *connections);

#endif
