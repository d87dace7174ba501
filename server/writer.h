// SPDX-License-Identifier: Apache-2.0
//
// The one thread that changes layers. It takes whatever changes wait, applies them one by one in the order in which
// they came, commits the last state of each touched layer in one transaction, publishes those states at one moment, and
// only then releases the replies. A change is applied against the newest state, that of earlier changes of the same
// batch included, and it either happens whole or not at all.
#ifndef NORMD_SERVER_WRITER_H
#define NORMD_SERVER_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layer.h"
#include "registry.h"
#include "store.h"

enum durability {
    DURABILITY_SYNC,     // a reply means: on disk
    DURABILITY_INTERVAL, // on disk at least every 100 ms
    DURABILITY_NONE,     // handed to the system every 100 ms; synced now and then, so that the store stays whole
};

struct txn;

// Embedded in the request that asks for it; the writer borrows it from submit to done.
struct change {
    struct change *next;
    uint64_t deadline_ns; // uv_hrtime; passed before it is applied: MSG_DEADLINE
    // Checks first, then edits through txn; on false it has set `error` and edited nothing. Writer thread.
    bool (*apply)(struct change *change, struct txn *txn);
    // Called exactly once, with error.code MSG_OK where the change is committed. On the writer thread, or on the one
    // that calls writer_expire; must not block.
    void (*done)(struct change *change);
    struct msg_error error;
};

struct writer;

// Starts the thread. store and registry are borrowed and must outlive it. memory_limit bounds the bytes of all states.
// on_failure is called on the writer thread when the store has failed for good: nothing is acknowledged any more.
// NULL: no memory or no thread.
struct writer *writer_new(struct store *store, struct registry *registry, enum durability durability,
                          size_t memory_limit, void (*on_failure)(void *context, const char *why), void *context);

// Applies and commits what waits and ends the thread; what is submitted from then on is refused. False where the last
// commit failed.
bool writer_finish(struct writer *writer);

// Finishes, if that was not done, and sets *writer to NULL; NULL is allowed. No submit may be running or follow. False
// as writer_finish.
bool writer_free(struct writer **writer);

// Hands a change over; false where the queue is full, and the change is the caller's still. Does not block. Any thread.
bool writer_submit(struct writer *writer, struct change *change);

// Refuses what waits and is past its deadline (MSG_DEADLINE): behind a slow commit it would wait for its end. What the
// writer has taken already is the writer's. Does not block. Any thread.
void writer_expire(struct writer *writer, uint64_t now_ns);

// True where the store has failed.
bool writer_failed(const struct writer *writer);

// ---- for apply

// The newest state of a layer, or NULL where there is none. Borrowed until the layer is edited.
const struct layer_state *txn_state(struct txn *txn, const char *name);

// The newest state, with the next version number already set, to be changed in place; everybody who holds a reference
// to an earlier one keeps what they saw. NULL: no memory, nothing changed.
struct layer_state *txn_edit(struct txn *txn, const char *name);

// Makes `state` (taken over, on failure too) the newest one: creates the layer, or replaces it where it exists.
bool txn_put(struct txn *txn, const char *name, struct layer_state *state);

// Deletes a layer that exists.
bool txn_delete(struct txn *txn, const char *name);

// The newest state of every layer under the prefix: calls each(context, name). The callback must not edit.
void txn_names(struct txn *txn, const char *prefix, void (*each)(void *context, const char *name), void *context);

// False where states of `bytes` more would pass the memory limit.
bool txn_has_room(const struct txn *txn, size_t bytes);

#endif
