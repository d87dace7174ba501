// SPDX-License-Identifier: Apache-2.0
//
// Name -> layer. Readers get the state that was last published, with a reference, and never wait for a commit; the one
// writer thread (writer.h) prepares new states aside and publishes a batch of them at once.
//
// Locking: one read-write lock, held for the look-up or the swap of pointers only. It is a leaf: nothing is called
// under it that takes another lock.
#ifndef NORMD_SERVER_REGISTRY_H
#define NORMD_SERVER_REGISTRY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layer.h"

// How long calls on a layer took, in sum, since the process started; ns.
struct layer_times {
    _Atomic uint64_t successes, success_ns; // from the last byte of the body to the reply
    _Atomic uint64_t failures, failure_ns;
    _Atomic uint64_t queue_ns, input_ns, infer_ns, output_ns; // of success_ns: waiting, decoding, computing, encoding
    _Atomic uint64_t last_ms;                                 // when the last one ended, since 1970; 0: none yet
};

// A name that has, had or is about to have a state. Freed with its last reference.
struct layer {
    char name[MSG_NAME_MAX + 1];
    _Atomic unsigned refs;
    _Atomic uint64_t id;             // of the published state; 0: none
    const struct layer_state *state; // published; NULL: readers do not see the layer. Under the registry's lock
    struct layer_state *pending;     // the writer thread's: what the next publish makes of it, NULL: deleted
    bool changed;                    // the writer thread's: pending is valid
    bool unsaved;                    // the writer thread's: published, but not yet in the store
    _Atomic uint64_t train_forward, inference, backward, skipped; // calls answered, since the process started
    _Atomic uint64_t cache_bytes;
    struct layer_times times;
};

void layer_ref(struct layer *layer);
void layer_release(struct layer *layer); // NULL is allowed

struct registry;

struct registry *registry_new(void); // NULL: no memory
void registry_free(struct registry **registry);

// The layer and its state, both with a reference for the caller; NULL (and *state NULL) where there is none.
struct layer *registry_find(struct registry *registry, const char *name, const struct layer_state **state);

// A layer as readers saw it at one moment; both referenced.
struct registry_item {
    struct layer *layer;
    const struct layer_state *state;
};

// Layers whose names begin with `prefix` and come after `after` (NULL: from the first), by name, at most `limit`, all
// of one moment. *items is to be freed by registry_items_free. *more: there are further ones. False: no memory.
bool registry_list(struct registry *registry, const char *prefix, const char *after, size_t limit,
                   struct registry_item **items, size_t *count, bool *more);
void registry_items_free(struct registry_item **items, size_t count);

// The first layer whose name comes after `name` ("": of all) and its state, both with a reference for the caller; NULL
// (and *state NULL) where there is none. Takes no memory.
struct layer *registry_next(struct registry *registry, const char *name, const struct layer_state **state);

// ---- for the writer thread

// The slot of `name`, made invisible to readers where there is none yet; borrowed from the registry. NULL: no memory.
struct layer *registry_slot(struct registry *registry, const char *name);

// The slot of `name` or NULL, borrowed. A slot may hold neither a published nor a pending state.
struct layer *registry_peek(struct registry *registry, const char *name);

// Calls each(context, name) for every slot under the prefix whose newest state exists, by name. `each` must not insert.
void registry_each_slot(struct registry *registry, const char *prefix, void (*each)(void *context, const char *name),
                        void *context);

// Makes the pending states of these layers the published ones, all in one moment, and clears `changed`. Layers without
// a state after it leave the registry.
void registry_publish(struct registry *registry, struct layer *const *layers, size_t count);

// Drops the pending states instead.
void registry_discard(struct registry *registry, struct layer *const *layers, size_t count);

// Bytes of all published states.
size_t registry_state_bytes(const struct registry *registry);

// Layers with a published state.
size_t registry_count(struct registry *registry);

#endif
