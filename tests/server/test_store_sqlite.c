// SPDX-License-Identifier: Apache-2.0
//
// What only the SQLite store has: a folder and a file, damaged in every way, a full disk, and memory that runs out.
#include "stores.h"

#include <errno.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

static char *path_in(const char *where, const char *name) {
    char *path = NULL;
    assert_true(asprintf(&path, "%s/%s", where, name) > 0);
    return path;
}

static void write_file(const char *path, const void *data, size_t size) {
    FILE *const file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

static void execute(const char *path, const char *sql) {
    sqlite3 *db = NULL;
    char *why = NULL;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    if (sqlite3_exec(db, sql, NULL, NULL, &why) != SQLITE_OK) fail_msg("%s: %s", sql, why);
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

// Fails the test unless open refuses, naming the file and giving this reason.
static void expect_refused(const char *where, const char *file, const char *reason) {
    struct store *store = NULL;
    char why[STORE_WHY_MAX] = "";
    assert_false(store_open(&store, where, true, why));
    assert_null(store);
    if (strstr(why, file) == NULL || strstr(why, reason) == NULL)
        fail_msg("\"%s\" lacks \"%s\" or \"%s\"", why, file, reason);
}

static void test_folders(void **state) {
    (void)state;
    char *const root = folder_new();
    char *const deeper = path_in(root, "new"), *const two_deep = path_in(root, "no/new"),
                *const file = path_in(root, "file");
    struct store *store = open_store(deeper, true);
    store_close(&store);
    store = open_store(two_deep, true);
    store_close(&store);
    write_file(file, "x", 1);
    expect_refused(file, file, "not a folder");
    char longest[600];
    memset(longest, '/', sizeof longest);
    memcpy(longest, root, strlen(root));
    longest[sizeof longest - 1] = '\0';
    expect_refused(longest, "", "too long");
    free(deeper);
    free(two_deep);
    free(file);
    folder_free(root);
}

static void test_foreign_files(void **state) {
    (void)state;
    char *const where = folder_new();
    char *const path = path_in(where, "normd.db");
    char garbage[5000];
    for (size_t i = 0; i < sizeof garbage; i++) garbage[i] = (char)(i * 7 + 1);
    write_file(path, garbage, sizeof garbage);
    expect_refused(where, path, "not a database");
    size_t size = 0;
    char *const kept = read_file(path, &size);
    assert_int_equal(size, sizeof garbage);
    assert_memory_equal(kept, garbage, size); // refused, not overwritten
    free(kept);
    remove(path);
    execute(path, "CREATE TABLE other (x)");
    expect_refused(where, path, "not a database of normd");
    remove(path);
    write_file(path, "", 0); // what a crash before the first commit leaves
    struct store *store = open_store(where, true);
    store_close(&store);
    execute(path, "PRAGMA user_version = 2");
    expect_refused(where, path, "newer");
    free(path);
    folder_free(where);
}

static bool drop(void *context, const char *name, struct layer_state *state) {
    (void)context;
    (void)name;
    layer_state_release(state);
    return true;
}

static void expect_damaged(const char *where, const char *path, const char *how) {
    char why[STORE_WHY_MAX] = "";
    struct store *store = open_store(where, false);
    if (store_load(store, drop, NULL, why)) fail_msg("not noticed: %s", how);
    if (strstr(why, path) == NULL || strstr(why, "damaged") == NULL) fail_msg("%s: \"%s\"", how, why);
    store_close(&store);
}

static void test_damaged_columns(void **state) {
    (void)state;
    static const char *const changes[] = {
        "name = 'other'",
        "name = ''",
        "name = 'a/b'",
        "id = id + 1",
        "version = version + 1",
        "normalizer = normalizer + 1",
        "num_batches_tracked = num_batches_tracked + 1",
        "num_features = num_features - 1",
        "num_features = num_features + 1",
        "num_features = 0",
        "num_features = -3",
        "num_features = 1048577",
        "num_features = 9223372036854775807",
        "convention = 'onnx'",
        "convention = 'none'",
        "convention = x''",
        "momentum = 0.2",
        "momentum = NULL",
        "momentum = 1e999",
        "eps = eps * 2",
        "eps = 'text'",
        "affine = 0",
        "track_running_stats = 0",
        "channel_axis = 2",
        "dtype = 'f64'",
        "dtype = 'f16'",
        "init = 'first-batch'",
        "init = ''",
        "nonfinite = 'propagate'",
        "nonfinite = 'x'",
        "single_value = 'beta'",
        "single_value = 'x'",
        "vectors = x''",
        "vectors = zeroblob(length(vectors))",
        "vectors = substr(vectors, 2)",
        "vectors = vectors || x'00'",
        "checksum = checksum + 1",
        "checksum = 0",
    };
    char *const where = folder_new();
    char *const path = path_in(where, "normd.db");
    struct layer_state *const layer = plain_state(6, 1);
    for (size_t i = 0; i < COUNT(changes); i++) {
        struct store *store = open_store(where, false);
        commit_one(store, "it", layer);
        store_close(&store);
        char *sql = NULL;
        assert_true(asprintf(&sql, "UPDATE layer SET %s", changes[i]) > 0);
        execute(path, sql);
        expect_damaged(where, path, changes[i]);
        execute(path, "DELETE FROM layer");
        free(sql);
    }
    layer_state_release(layer);
    free(path);
    folder_free(where);
}

static void test_damaged_vectors(void **state) {
    (void)state;
    char *const where = folder_new();
    char *const path = path_in(where, "normd.db");
    struct layer_state *const layer = plain_state(3, 1);
    struct store *store = open_store(where, false);
    commit_one(store, "it", layer);
    store_close(&store);
    const size_t bytes = 4 * 3 * sizeof(double);
    for (size_t i = 0; i < bytes; i++) {
        sqlite3 *db = NULL;
        sqlite3_blob *blob = NULL;
        unsigned char byte;
        assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
        assert_int_equal(sqlite3_blob_open(db, "main", "layer", "vectors", 1, 1, &blob), SQLITE_OK);
        assert_int_equal(sqlite3_blob_bytes(blob), bytes);
        for (size_t k = i > 0 ? i - 1 : 0; k <= i; k++) { // the one before back again, then this one
            assert_int_equal(sqlite3_blob_read(blob, &byte, 1, (int)k), SQLITE_OK);
            byte ^= 0x10;
            assert_int_equal(sqlite3_blob_write(blob, &byte, 1, (int)k), SQLITE_OK);
        }
        assert_int_equal(sqlite3_blob_close(blob), SQLITE_OK);
        assert_int_equal(sqlite3_close(db), SQLITE_OK);
        expect_damaged(where, path, "a byte of the vectors");
    }
    layer_state_release(layer);
    free(path);
    folder_free(where);
}

struct damage {
    const char *where, *path;
    char *good, *text; // the file as it was written, and as it is now
    size_t size;
    struct layer_state *layer; // that it holds as a, b and c
    size_t refused;
};

static void setup_damage(struct damage *damage) {
    damage->where = folder_new();
    damage->path = path_in(damage->where, "normd.db");
    damage->layer = plain_state(20, 1);
    struct store *store = open_store(damage->where, false);
    commit(store, (struct store_change[]){{"a", damage->layer}, {"b", damage->layer}, {"c", damage->layer}}, 3);
    store_close(&store);
    damage->good = read_file(damage->path, &damage->size);
    damage->text = malloc(damage->size);
    assert_non_null(damage->text);
    damage->refused = 0;
}

static void teardown_damage(struct damage *damage) {
    free(damage->good);
    free(damage->text);
    layer_state_release(damage->layer);
    free((char *)(uintptr_t)damage->path);
    folder_free((char *)(uintptr_t)damage->where);
}

// With bits of byte i changed, the store refuses, or it gives exactly what was written.
static void flip(struct damage *damage, size_t i, int bits) {
    memcpy(damage->text, damage->good, damage->size);
    damage->text[i] = (char)(damage->text[i] ^ bits);
    write_file(damage->path, damage->text, damage->size);
    struct store *store = NULL;
    char why[STORE_WHY_MAX] = "";
    struct layers *const layers = calloc(1, sizeof *layers);
    assert_non_null(layers);
    if (store_open(&store, damage->where, false, why) && store_load(store, take_layer, layers, why)) {
        if (layers->count != 3) fail_msg("byte %zu: %zu of 3 layers are loaded, and nothing is said", i, layers->count);
        for (size_t k = 0; k < 3; k++) {
            if (!same_state(layers->states[k], damage->layer)) fail_msg("byte %zu: layer %zu is another one", i, k);
            assert_int_equal(layers->names[k][0], 'a' + (int)k);
        }
    } else {
        damage->refused++;
        if (strstr(why, damage->path) == NULL) fail_msg("byte %zu: \"%s\"", i, why);
    }
    store_close(&store);
    layers_free(layers);
    char *const wal = path_in(damage->where, "normd.db-wal");
    remove(wal);
    free(wal);
}

static void test_damaged_file(void **state) {
    (void)state;
    struct damage damage;
    setup_damage(&damage);
    for (size_t i = 1; i < damage.size; i += damage.good[i] != 0 ? 3 : 61) { // most of the file is empty pages
        flip(&damage, i, i % 2 == 0 ? 0x01 : 0xff);
    }
    assert_true(damage.refused > 100);
    teardown_damage(&damage);
}

// A cell count that is one too small hides a layer, if nobody adds up the page.
static void test_damaged_page_headers(void **state) {
    (void)state;
    struct damage damage;
    setup_damage(&damage);
    for (size_t page = 4096; page < damage.size; page += 4096) {
        for (size_t i = 0; i < 8; i++) flip(&damage, page + i, 0x01);
    }
    assert_true(damage.refused > 4);
    teardown_damage(&damage);
}

// A file cut short, as by a copy that was not finished.
static void test_short_file(void **state) {
    (void)state;
    char *const where = folder_new();
    char *const path = path_in(where, "normd.db");
    struct layer_state *const layer = plain_state(2000, 1);
    struct store *store = open_store(where, false);
    commit(store, (struct store_change[]){{"a", layer}, {"b", layer}}, 2);
    store_close(&store);
    size_t size = 0;
    char *const good = read_file(path, &size);
    for (size_t kept = size - 4096; kept > 0; kept -= kept > 8192 ? 8192 : kept) {
        write_file(path, good, kept);
        char why[STORE_WHY_MAX] = "";
        if (store_open(&store, where, false, why) && store_load(store, drop, NULL, why))
            fail_msg("%zu of %zu bytes pass", kept, size);
        assert_non_null(strstr(why, path));
        store_close(&store);
    }
    free(good);
    layer_state_release(layer);
    free(path);
    folder_free(where);
}

// ---- a disk that fails

static void test_full_disk(void **state) {
    (void)state;
    char *const where = folder_new();
    struct layer_state *const old = plain_state(5000, 1), *const new = plain_state(5000, 2);
    const struct store_change changes[] = {{"a", new}, {"b", new}};
    char why[STORE_WHY_MAX] = "";
    struct store *store = open_store(where, true);
    commit_one(store, "a", old);
    for (int i = 0; i < 3; i++) {
        disk_fail(ENOSPC);
        assert_int_equal(store_commit(store, changes, 2, why), STORE_FULL);
        assert_non_null(strstr(why, "normd.db"));
        expect_only(store, "a", old); // reads go on
        disk_fail(0);
    }
    commit_one(store, "a", new);
    expect_only(store, "a", new);
    disk_fail(ENOSPC);
    assert_int_equal(store_commit(store, &(struct store_change){"a", old}, 1, why), STORE_FULL);
    disk_fail(0);
    store_close(&store);
    store = open_store(where, true);
    expect_only(store, "a", new);
    store_close(&store);
    layer_state_release(old);
    layer_state_release(new);
    folder_free(where);
}

static void test_failing_disk(void **state) {
    (void)state;
    char *const where = folder_new();
    struct layer_state *const old = plain_state(10, 1), *const new = plain_state(10, 2);
    char why[STORE_WHY_MAX] = "";
    struct store *store = open_store(where, true);
    commit_one(store, "a", old);
    disk_fail(EIO);
    assert_int_equal(store_commit(store, &(struct store_change){"a", new}, 1, why), STORE_FAILED);
    disk_fail(0);
    store_close(&store);
    store = open_store(where, true);
    expect_only(store, "a", old); // no write went through
    store_close(&store);
    layer_state_release(old);
    layer_state_release(new);
    folder_free(where);
}

// ---- memory that runs out, by SQLite's table of allocation functions

static sqlite3_mem_methods libc_memory;
static long allocations_left = -1; // -1: no end

static bool out_of_memory(void) {
    if (allocations_left == 0) return true;
    if (allocations_left > 0) allocations_left--;
    return false;
}

static void *few_malloc(int size) {
    return out_of_memory() ? NULL : libc_memory.xMalloc(size);
}

static void *few_realloc(void *data, int size) {
    return out_of_memory() ? NULL : libc_memory.xRealloc(data, size);
}

static int count_allocations(void **state) {
    (void)state;
    if (sqlite3_shutdown() != SQLITE_OK || sqlite3_config(SQLITE_CONFIG_GETMALLOC, &libc_memory) != SQLITE_OK)
        return -1;
    sqlite3_mem_methods few = libc_memory;
    few.xMalloc = few_malloc;
    few.xRealloc = few_realloc;
    return sqlite3_config(SQLITE_CONFIG_LOOKASIDE, 0, 0) == SQLITE_OK &&
                   sqlite3_config(SQLITE_CONFIG_MALLOC, &few) == SQLITE_OK
               ? 0
               : -1;
}

static bool count(void *context, const char *name, struct layer_state *state) {
    ++*(int *)context;
    return drop(NULL, name, state);
}

static void test_open_without_memory(void **state) {
    (void)state;
    char *const where = folder_new();
    char *const path = path_in(where, "normd.db");
    struct layer_state *const layer = plain_state(3, 1);
    struct store *store = open_store(where, false);
    commit_one(store, "a", layer);
    store_close(&store);
    bool opened = false;
    for (long n = 0; !opened; n++) {
        assert_true(n < 10000);
        char why[STORE_WHY_MAX] = "";
        int seen = 0;
        allocations_left = n;
        const bool open = store_open(&store, where, false, why);
        opened = open && store_load(store, count, &seen, why);
        allocations_left = -1;
        if (!opened && why[0] == '\0') fail_msg("allocation %ld: no reason", n);
        if (!opened && strstr(why, "damaged") != NULL) fail_msg("allocation %ld: \"%s\"", n, why);
        if (opened) assert_int_equal(seen, 1);
        store_close(&store);
    }
    layer_state_release(layer);
    free(path);
    folder_free(where);
}

static void test_commit_without_memory(void **state) {
    (void)state;
    char *const where = folder_new();
    struct layer_state *const old = plain_state(3000, 1), *const new = plain_state(3000, 2);
    struct store *store = open_store(where, false);
    commit_one(store, "a", old);
    bool committed = false;
    long n = 0;
    for (; !committed; n++) {
        assert_true(n < 10000);
        char why[STORE_WHY_MAX] = "";
        allocations_left = n;
        const enum store_status status = store_commit(store, &(struct store_change){"a", new}, 1, why);
        allocations_left = -1;
        committed = status == STORE_OK;
        if (status != STORE_OK && status != STORE_NO_MEMORY)
            fail_msg("allocation %ld: status %d, \"%s\"", n, (int)status, why);
        expect_only(store, "a", committed ? new : old);
    }
    assert_true(n > 1); // some did fail
    store_close(&store);
    store = open_store(where, false);
    expect_only(store, "a", new);
    store_close(&store);
    layer_state_release(old);
    layer_state_release(new);
    folder_free(where);
}

// ---- syncing

static atomic_int syncs;

// Stands in for libc's, which SQLite calls.
int fdatasync(int fd) {
    syncs++;
    return (int)syscall(SYS_fdatasync, fd);
}

// With every commit, or else at checkpoints, as when the store is closed: a log that is copied into the file without a
// sync between them can leave a damaged file at a power cut.
static void test_syncs(void **state) {
    (void)state;
    for (int sync_writes = 0; sync_writes < 2; sync_writes++) {
        char *const where = folder_new();
        struct layer_state *const layer = plain_state(100, 1);
        struct store *store = open_store(where, sync_writes != 0);
        commit_one(store, "a", layer);
        syncs = 0;
        for (int i = 0; i < 3; i++) {
            layer->version++; // what is equal is not written
            commit_one(store, "a", layer);
        }
        assert_int_equal(syncs, sync_writes != 0 ? 3 : 0);
        syncs = 0;
        backend->close(&store);
        assert_true(syncs >= 2); // of the log, then of the file
        layer_state_release(layer);
        folder_free(where);
    }
}

int main(void) {
    const struct CMUnitTest file[] = {
        cmocka_unit_test(test_folders),         cmocka_unit_test(test_foreign_files),
        cmocka_unit_test(test_damaged_columns), cmocka_unit_test(test_damaged_vectors),
        cmocka_unit_test(test_damaged_file),    cmocka_unit_test(test_damaged_page_headers),
        cmocka_unit_test(test_short_file),      cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_failing_disk),    cmocka_unit_test(test_syncs),
    };
    const struct CMUnitTest memory[] = {
        cmocka_unit_test(test_open_without_memory),
        cmocka_unit_test(test_commit_without_memory),
    };
    const int failed = cmocka_run_group_tests_name("store_sqlite", file, NULL, NULL);
    return failed + cmocka_run_group_tests_name("store_sqlite without memory", memory, count_allocations, NULL);
}
