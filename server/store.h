// SPDX-License-Identifier: Apache-2.0
//
// Where layers are kept across restarts: the contract of a store. What a commit returned STORE_OK for is there after a
// crash at any later moment, whole; what it did not is not there at all. One thread at a time uses a store.
#ifndef NORMD_SERVER_STORE_H
#define NORMD_SERVER_STORE_H

#include <stdbool.h>
#include <stddef.h>

#include "layer.h"

enum store_status {
    STORE_OK,
    STORE_FULL,      // no space; nothing was changed, a later commit may succeed
    STORE_NO_MEMORY, // nothing was changed, a later commit may succeed
    STORE_FAILED,    // the medium failed: what is on it is not known any more, the process must end
};

struct store_change {
    const char *name;
    const struct layer_state *state; // NULL: the layer is deleted
};

struct store;

#define STORE_WHY_MAX 1024

// Opens or creates the store in the folder `directory`, which is created too. With sync_writes false a commit survives
// the end of the process, but that of the system may undo the last ones; what is there is whole all the same. False
// where it cannot, is in use, damaged or newer than this build; `why` names the file and the reason.
bool store_open(struct store **store, const char *directory, bool sync_writes, char why[STORE_WHY_MAX]);

// Hands every layer to `each`, by name. It takes over `state`; false from it ends the load. False with `why` where a
// record is damaged or `each` failed.
bool store_load(struct store *store, bool (*each)(void *context, const char *name, struct layer_state *state),
                void *context, char why[STORE_WHY_MAX]);

// Writes all changes in one transaction. Blocks until they are on the medium. `why` is filled in unless STORE_OK.
enum store_status store_commit(struct store *store, const struct store_change *changes, size_t count,
                               char why[STORE_WHY_MAX]);

// Closes and sets *store to NULL; NULL is allowed.
void store_close(struct store **store);

// The kind of store, for /version.
const char *store_kind(void);

#endif
