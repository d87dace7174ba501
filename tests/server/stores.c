// SPDX-License-Identifier: Apache-2.0
#include "stores.h"

#include <errno.h>
#include <math.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <unistd.h>

static const struct backend sqlite = {"sqlite", store_open, store_load, store_commit, store_close};
const struct backend *const backend = &sqlite;

struct store *open_store(const char *where, bool sync_writes) {
    char why[STORE_WHY_MAX] = "";
    struct store *store = NULL;
    if (!backend->open(&store, where, sync_writes, why)) fail_msg("open: %s", why);
    assert_non_null(store);
    return store;
}

void commit(struct store *store, const struct store_change *changes, size_t count) {
    char why[STORE_WHY_MAX] = "";
    if (backend->commit(store, changes, count, why) != STORE_OK) fail_msg("commit: %s", why);
}

void commit_one(struct store *store, const char *name, const struct layer_state *state) {
    commit(store, &(struct store_change){name, state}, 1);
}

bool take_layer(void *context, const char *name, struct layer_state *state) {
    struct layers *const layers = context;
    strcpy(layers->names[layers->count], name);
    layers->states[layers->count++] = state;
    return true;
}

struct layers *load(struct store *store) {
    char why[STORE_WHY_MAX] = "";
    struct layers *const layers = calloc(1, sizeof *layers);
    assert_non_null(layers);
    if (!backend->load(store, take_layer, layers, why)) fail_msg("load: %s", why);
    return layers;
}

void layers_free(struct layers *layers) {
    for (size_t i = 0; i < layers->count; i++) layer_state_release(layers->states[i]);
    free(layers);
}

static bool same_real(double a, double b) {
    return bits_of(a) == bits_of(b) || (isnan(a) && isnan(b));
}

bool same_state(const struct layer_state *a, const struct layer_state *b) {
    // A momentum of -0 may come back as 0: they weigh alike.
    if (!layer_config_equal(&a->config, &b->config) || !same_real(a->config.eps, b->config.eps) || a->id != b->id ||
        a->version != b->version || a->normalizer != b->normalizer ||
        a->num_batches_tracked != b->num_batches_tracked) {
        return false;
    }
    const size_t count = (layer_state_bytes(&a->config) - sizeof *a) / sizeof(double);
    for (size_t i = 0; i < count; i++) {
        if (!same_real(a->vectors[i], b->vectors[i])) return false;
    }
    return true;
}

struct layer_state *state_of(const struct msg_config *config, uint64_t seed) {
    struct layer_state *const state = layer_state_new(config, random_bits(&seed));
    assert_non_null(state);
    const size_t count = (layer_state_bytes(config) - sizeof *state) / sizeof(double);
    for (size_t i = 0; i < count; i++) state->vectors[i] = (double)(int64_t)random_bits(&seed) * 1e-18;
    state->version = 1 + random_bits(&seed) % 1000;
    state->normalizer = state->version;
    state->num_batches_tracked = random_bits(&seed) % 1000;
    return state;
}

struct layer_state *plain_state(int64_t channels, uint64_t seed) {
    const struct msg_config config = config_of(channels, MSG_PYTORCH);
    return state_of(&config, seed);
}

void expect_only(struct store *store, const char *name, const struct layer_state *state) {
    struct layers *const layers = load(store);
    assert_int_equal(layers->count, 1);
    assert_string_equal(layers->names[0], name);
    assert_true(same_state(layers->states[0], state));
    layers_free(layers);
}

// ---- a disk that fails, by SQLite's table of system calls

static atomic_int disk_error;
static atomic_long disk_room = -1;

static bool write_fails(size_t size) {
    errno = disk_error;
    if (disk_error != 0) return true;
    if (disk_room < 0) return false;
    errno = ENOSPC;
    if (disk_room < (long)size) return true;
    disk_room -= (long)size;
    return false;
}

static ssize_t disk_pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    return write_fails(size) ? -1 : pwrite64(fd, data, size, offset);
}

static ssize_t disk_pwrite(int fd, const void *data, size_t size, off_t offset) {
    return write_fails(size) ? -1 : pwrite(fd, data, size, offset);
}

static ssize_t disk_write(int fd, const void *data, size_t size) {
    return write_fails(size) ? -1 : write(fd, data, size);
}

static void set_system_call(const char *name, sqlite3_syscall_ptr call) {
    sqlite3_vfs *const vfs = sqlite3_vfs_find(NULL);
    const int rc = vfs->xSetSystemCall(vfs, name, call);
    assert_true(rc == SQLITE_OK || rc == SQLITE_NOTFOUND);
}

static void hook_disk(void) {
    set_system_call("pwrite64", (sqlite3_syscall_ptr)disk_pwrite64);
    set_system_call("pwrite", (sqlite3_syscall_ptr)disk_pwrite);
    set_system_call("write", (sqlite3_syscall_ptr)disk_write);
}

void disk_fail(int error) {
    hook_disk();
    disk_error = error;
}

void disk_limit(long bytes) {
    if (disk_room == -1) hook_disk();
    disk_room = bytes;
}
