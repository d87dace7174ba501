// SPDX-License-Identifier: Apache-2.0
//
// What tests of stores share: the backend under test, states with random values, and loading all that a store has.
#ifndef NORMD_TESTS_SERVER_STORES_H
#define NORMD_TESTS_SERVER_STORES_H

#include "fixture.h"
#include "../../server/store.h"

struct backend {
    const char *kind;
    bool (*open)(struct store **store, const char *where, bool sync_writes, char why[STORE_WHY_MAX]);
    bool (*load)(struct store *store, bool (*each)(void *context, const char *name, struct layer_state *state),
                 void *context, char why[STORE_WHY_MAX]);
    enum store_status (*commit)(struct store *store, const struct store_change *changes, size_t count,
                                char why[STORE_WHY_MAX]);
    void (*close)(struct store **store);
};

// The one that the functions below use.
extern const struct backend *const backend;

// They fail the test where they cannot.
struct store *open_store(const char *where, bool sync_writes);
void commit(struct store *store, const struct store_change *changes, size_t count);
void commit_one(struct store *store, const char *name, const struct layer_state *state);

#define LAYERS_MAX 5000

// What a store holds, in the order in which it gave it.
struct layers {
    size_t count;
    char names[LAYERS_MAX][MSG_NAME_MAX + 1];
    struct layer_state *states[LAYERS_MAX];
};

// Adds to a struct layers; for store_load.
bool take_layer(void *context, const char *name, struct layer_state *state);

// Everything, for layers_free; fails the test where it cannot be loaded.
struct layers *load(struct store *store);
void layers_free(struct layers *layers);

// Fails the test unless the store holds this one layer.
void expect_only(struct store *store, const char *name, const struct layer_state *state);

// A state whose vectors, version and counts are random.
struct layer_state *state_of(const struct msg_config *config, uint64_t seed);
struct layer_state *plain_state(int64_t channels, uint64_t seed);

// Equal bits throughout; any NaN equals any NaN.
bool same_state(const struct layer_state *a, const struct layer_state *b);

// From now on writes of SQLite fail with this errno; 0: they work.
void disk_fail(int error);

// From now on so many bytes can be written, then writes fail with ENOSPC; -1: no end.
void disk_limit(long bytes);

#endif
