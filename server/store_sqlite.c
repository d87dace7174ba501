// SPDX-License-Identifier: Apache-2.0
//
// The embedded store: one SQLite file, one connection, write-ahead log, an exclusive lock for the life of the process.
// One connection, because SQLite before 3.51.3 can corrupt a file when the log is reset under a second one.
//
// To change the schema: raise SCHEMA_VERSION, and migrate older files in open_schema after a backup.
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "store.h"

#define SCHEMA_VERSION 1
#define APPLICATION_ID 0x6e6f726d // "norm"
#define FILE_NAME "normd.db"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "vectors are kept as they are in memory, little-endian");

// Columns in the order of the statements below. vectors: gamma, beta, running_mean, running_var, those that the layer
// has, as doubles. checksum: CRC-32 of all the others.
static const char schema[] =
    "CREATE TABLE layer ("
    "name TEXT NOT NULL PRIMARY KEY, id INTEGER NOT NULL, version INTEGER NOT NULL, "
    "normalizer INTEGER NOT NULL, num_batches_tracked INTEGER NOT NULL, "
    "num_features INTEGER NOT NULL, convention TEXT NOT NULL, momentum REAL, eps REAL NOT NULL, "
    "affine INTEGER NOT NULL, track_running_stats INTEGER NOT NULL, channel_axis INTEGER NOT NULL, "
    "dtype TEXT NOT NULL, init TEXT NOT NULL, nonfinite TEXT NOT NULL, single_value TEXT NOT NULL, "
    "vectors BLOB NOT NULL, checksum INTEGER NOT NULL)";

enum column {
    COL_NAME,
    COL_ID,
    COL_VERSION,
    COL_NORMALIZER,
    COL_BATCHES,
    COL_NUM_FEATURES,
    COL_CONVENTION,
    COL_MOMENTUM,
    COL_EPS,
    COL_AFFINE,
    COL_TRACK,
    COL_CHANNEL_AXIS,
    COL_DTYPE,
    COL_INIT,
    COL_NONFINITE,
    COL_SINGLE_VALUE,
    COL_VECTORS,
    COL_CHECKSUM,
};

static const char select_sql[] =
    "SELECT name, id, version, normalizer, num_batches_tracked, num_features, convention, momentum, "
    "eps, affine, track_running_stats, channel_axis, dtype, init, nonfinite, single_value, vectors, "
    "checksum FROM layer ORDER BY name";
// An update in place: REPLACE would give the row a new place, and dirty the pages of both.
static const char upsert_sql[] =
    "INSERT INTO layer VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (name) DO UPDATE SET id = excluded.id, "
    "version = excluded.version, normalizer = excluded.normalizer, num_batches_tracked = excluded.num_batches_tracked, "
    "num_features = excluded.num_features, convention = excluded.convention, momentum = excluded.momentum, eps = "
    "excluded.eps, "
    "affine = excluded.affine, track_running_stats = excluded.track_running_stats, channel_axis = "
    "excluded.channel_axis, "
    "dtype = excluded.dtype, init = excluded.init, nonfinite = excluded.nonfinite, single_value = "
    "excluded.single_value, "
    "vectors = excluded.vectors, checksum = excluded.checksum";
static const char delete_sql[] = "DELETE FROM layer WHERE name = ?";

struct store {
    sqlite3 *db;
    sqlite3_stmt *begin, *commit, *rollback, *upsert, *delete;
    char path[STORE_WHY_MAX / 2];
};

const char *store_kind(void) {
    return "sqlite";
}

static bool fail(const struct store *store, char why[STORE_WHY_MAX], const char *what) {
    snprintf(why, STORE_WHY_MAX, "%s: %s", store->path, what);
    return false;
}

static bool fail_sqlite(const struct store *store, char why[STORE_WHY_MAX], int rc) {
    switch (rc & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED: return fail(store, why, "in use by another server");
    case SQLITE_NOTADB: return fail(store, why, "damaged, or not a database of normd");
    case SQLITE_CORRUPT: return fail(store, why, "damaged (the database file is malformed)");
    default: return fail(store, why, sqlite3_errmsg(store->db));
    }
}

// ---- records

static uLong add_number(uLong crc, int64_t value) {
    return crc32_z(crc, (const unsigned char *)&value, sizeof value);
}

static uLong add_real(uLong crc, double value) {
    // SQLite keeps minus zero as zero.
    const double stored = value + 0.0;
    int64_t bits;
    memcpy(&bits, &stored, sizeof bits);
    return add_number(crc, isnan(value) ? -1 : bits);
}

static size_t vectors_bytes(const struct layer_state *state) {
    return layer_state_bytes(&state->config) - sizeof *state;
}

static int64_t checksum(const char *name, const struct layer_state *state) {
    const struct msg_config *const c = &state->config;
    uLong crc = crc32_z(0, (const unsigned char *)name, strlen(name));
    const int64_t numbers[] = {(int64_t)state->id,
                               (int64_t)state->version,
                               (int64_t)state->normalizer,
                               (int64_t)state->num_batches_tracked,
                               c->num_features,
                               c->convention,
                               c->affine,
                               c->track_running_stats,
                               c->channel_axis,
                               c->dtype,
                               c->init,
                               c->nonfinite,
                               c->single_value};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) crc = add_number(crc, numbers[i]);
    crc = add_real(add_real(crc, c->momentum), c->eps);
    return (int64_t)crc32_z(crc, (const unsigned char *)state->vectors, vectors_bytes(state));
}

// The index of the word in a column, -1 where it is none of them.
static int word_at(sqlite3_stmt *row, int column, const char *const *words) {
    const char *const text = (const char *)sqlite3_column_text(row, column);
    for (int i = 0; text != NULL && words[i] != NULL; i++) {
        if (strcmp(words[i], text) == 0) return i;
    }
    return -1;
}

static bool read_config(struct msg_config *config, sqlite3_stmt *row) {
    *config = (struct msg_config){
        .given = ~0u,
        .num_features = sqlite3_column_int64(row, COL_NUM_FEATURES),
        .convention = word_at(row, COL_CONVENTION, msg_convention_words),
        .momentum =
            sqlite3_column_type(row, COL_MOMENTUM) == SQLITE_NULL ? NAN : sqlite3_column_double(row, COL_MOMENTUM),
        .eps = sqlite3_column_double(row, COL_EPS),
        .affine = sqlite3_column_int(row, COL_AFFINE) != 0,
        .track_running_stats = sqlite3_column_int(row, COL_TRACK) != 0,
        .channel_axis = sqlite3_column_int64(row, COL_CHANNEL_AXIS),
        .dtype = word_at(row, COL_DTYPE, msg_dtype_words),
        .init = word_at(row, COL_INIT, msg_init_words),
        .nonfinite = word_at(row, COL_NONFINITE, msg_nonfinite_words),
        .single_value = word_at(row, COL_SINGLE_VALUE, msg_single_value_words),
    };
    return config->num_features >= 1 && config->num_features <= MSG_CHANNELS_MAX && config->convention >= 0 &&
           config->dtype >= 0 && config->init >= 0 && config->nonfinite >= 0 && config->single_value >= 0;
}

// The state of a row, or NULL where the row is damaged or there is no memory.
static struct layer_state *read_state(sqlite3_stmt *row, const char *name) {
    struct msg_config config;
    if (!read_config(&config, row)) return NULL;
    struct layer_state *const state = layer_state_new(&config, (uint64_t)sqlite3_column_int64(row, COL_ID));
    if (state == NULL) return NULL;
    state->version = (uint64_t)sqlite3_column_int64(row, COL_VERSION);
    state->normalizer = (uint64_t)sqlite3_column_int64(row, COL_NORMALIZER);
    state->num_batches_tracked = (uint64_t)sqlite3_column_int64(row, COL_BATCHES);
    const void *const vectors = sqlite3_column_blob(row, COL_VECTORS);
    const size_t size = vectors_bytes(state);
    const bool fits = (size_t)sqlite3_column_bytes(row, COL_VECTORS) == size;
    if (fits && size > 0) memcpy(state->vectors, vectors, size);
    if (fits && checksum(name, state) == sqlite3_column_int64(row, COL_CHECKSUM)) return state;
    layer_state_release(state);
    return NULL;
}

static int bind_state(sqlite3_stmt *s, const char *name, const struct layer_state *state) {
    const struct msg_config *const c = &state->config;
    const struct {
        enum column column;
        int64_t value;
    } numbers[] = {{COL_ID, (int64_t)state->id},
                   {COL_VERSION, (int64_t)state->version},
                   {COL_NORMALIZER, (int64_t)state->normalizer},
                   {COL_BATCHES, (int64_t)state->num_batches_tracked},
                   {COL_NUM_FEATURES, c->num_features},
                   {COL_AFFINE, c->affine},
                   {COL_TRACK, c->track_running_stats},
                   {COL_CHANNEL_AXIS, c->channel_axis},
                   {COL_CHECKSUM, checksum(name, state)}};
    const struct {
        enum column column;
        const char *word;
    } words[] = {{COL_NAME, name},
                 {COL_CONVENTION, msg_convention_words[c->convention]},
                 {COL_DTYPE, msg_dtype_words[c->dtype]},
                 {COL_INIT, msg_init_words[c->init]},
                 {COL_NONFINITE, msg_nonfinite_words[c->nonfinite]},
                 {COL_SINGLE_VALUE, msg_single_value_words[c->single_value]}};
    int rc = SQLITE_OK;
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0] && rc == SQLITE_OK; i++) {
        rc = sqlite3_bind_int64(s, (int)numbers[i].column + 1, numbers[i].value);
    }
    for (size_t i = 0; i < sizeof words / sizeof words[0] && rc == SQLITE_OK; i++) {
        rc = sqlite3_bind_text(s, (int)words[i].column + 1, words[i].word, -1, SQLITE_STATIC);
    }
    const bool cumulative = isnan(c->momentum);
    if (rc == SQLITE_OK && !cumulative) rc = sqlite3_bind_double(s, COL_MOMENTUM + 1, c->momentum);
    if (rc == SQLITE_OK && cumulative) rc = sqlite3_bind_null(s, COL_MOMENTUM + 1);
    if (rc == SQLITE_OK) rc = sqlite3_bind_double(s, COL_EPS + 1, c->eps);
    if (rc == SQLITE_OK)
        rc = sqlite3_bind_blob64(s, COL_VECTORS + 1, state->vectors, vectors_bytes(state), SQLITE_STATIC);
    return rc;
}

// ---- opening

static int read_pragma(struct store *store, const char *sql, int64_t *value) {
    sqlite3_stmt *statement = NULL;
    int rc = sqlite3_prepare_v2(store->db, sql, -1, &statement, NULL);
    if (rc == SQLITE_OK) rc = sqlite3_step(statement);
    if (rc == SQLITE_ROW) *value = sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    return rc == SQLITE_ROW ? SQLITE_OK : rc;
}

// A row of one short text, into char[16].
static int copy_text(void *text, int columns, char **values, char **names) {
    (void)names;
    if (columns == 1 && values[0] != NULL) snprintf(text, 16, "%s", values[0]);
    return 0;
}

static bool create_schema(struct store *store, char why[STORE_WHY_MAX]) {
    char sql[sizeof schema + 160];
    snprintf(sql, sizeof sql, "BEGIN; %s; PRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT", schema,
             APPLICATION_ID, SCHEMA_VERSION);
    const int rc = sqlite3_exec(store->db, sql, NULL, NULL, NULL);
    return rc == SQLITE_OK || fail_sqlite(store, why, rc);
}

// The checksums of records do not see a page whose cells were lost.
static bool check_pages(struct store *store, char why[STORE_WHY_MAX]) {
    char verdict[16] = "";
    const int rc = sqlite3_exec(store->db, "PRAGMA quick_check(1)", copy_text, verdict, NULL);
    if (rc != SQLITE_OK) return fail_sqlite(store, why, rc);
    return strcmp(verdict, "ok") == 0 || fail(store, why, "damaged (the database file is malformed)");
}

static bool open_schema(struct store *store, char why[STORE_WHY_MAX]) {
    int64_t application = 0, version = 0, tables = 0;
    int rc = read_pragma(store, "SELECT count(*) FROM sqlite_master", &tables);
    if (rc == SQLITE_OK) rc = read_pragma(store, "PRAGMA application_id", &application);
    if (rc == SQLITE_OK) rc = read_pragma(store, "PRAGMA user_version", &version);
    if (rc != SQLITE_OK) return fail_sqlite(store, why, rc);
    if (tables == 0 && application == 0 && version == 0) return create_schema(store, why);
    if (application != APPLICATION_ID) return fail(store, why, "not a database of normd");
    if (version == SCHEMA_VERSION) return check_pages(store, why);
    char what[128];
    snprintf(what, sizeof what, "written by a newer normd (schema %lld, this one knows up to %d)", (long long)version,
             SCHEMA_VERSION);
    return fail(store, why, what);
}

static bool prepare(struct store *store, char why[STORE_WHY_MAX]) {
    const struct {
        sqlite3_stmt **statement;
        const char *sql;
    } all[] = {{&store->begin, "BEGIN IMMEDIATE"},
               {&store->commit, "COMMIT"},
               {&store->rollback, "ROLLBACK"},
               {&store->upsert, upsert_sql},
               {&store->delete, delete_sql}};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        const int rc = sqlite3_prepare_v3(store->db, all[i].sql, -1, SQLITE_PREPARE_PERSISTENT, all[i].statement, NULL);
        if (rc != SQLITE_OK) return fail_sqlite(store, why, rc);
    }
    return true;
}

static bool open_database(struct store *store, bool sync_writes, char why[STORE_WHY_MAX]) {
    const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
    int rc = sqlite3_open_v2(store->path, &store->db, flags, NULL);
    if (rc != SQLITE_OK) return fail(store, why, store->db != NULL ? sqlite3_errmsg(store->db) : "out of memory");
    // NORMAL syncs at checkpoints only: a power cut may cost the last commits, but does not damage the file, as OFF
    // can.
    const char *const pragmas[] = {"PRAGMA locking_mode = EXCLUSIVE", "PRAGMA journal_mode = WAL",
                                   sync_writes ? "PRAGMA synchronous = FULL" : "PRAGMA synchronous = NORMAL",
                                   "PRAGMA wal_autocheckpoint = 4000", "PRAGMA journal_size_limit = 67108864"};
    for (size_t i = 0; i < sizeof pragmas / sizeof pragmas[0]; i++) {
        rc = sqlite3_exec(store->db, pragmas[i], NULL, NULL, NULL);
        if (rc != SQLITE_OK) return fail_sqlite(store, why, rc);
    }
    char mode[16] = "";
    rc = sqlite3_exec(store->db, "PRAGMA journal_mode", copy_text, mode, NULL);
    if (rc != SQLITE_OK) return fail_sqlite(store, why, rc);
    if (strcmp(mode, "wal") != 0) return fail(store, why, "the file system does not carry a write-ahead log");
    return open_schema(store, why) && prepare(store, why);
}

// A folder that was just made is only there after a power cut once its parent is on the medium.
static void sync_parent(const char *directory) {
    char path[STORE_WHY_MAX];
    snprintf(path, sizeof path, "%s/..", directory);
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

static bool make_one(const char *path) {
    if (mkdir(path, 0700) != 0) return errno == EEXIST;
    sync_parent(path);
    return true;
}

// Makes the folder and the ones above it that are missing.
static bool make_directory(const char *directory, char why[STORE_WHY_MAX]) {
    char path[STORE_WHY_MAX / 2];
    struct stat found;
    snprintf(path, sizeof path, "%s", directory);
    if (strlen(directory) >= sizeof path) {
        snprintf(why, STORE_WHY_MAX, "the path of the data folder is too long");
        return false;
    }
    bool made = true;
    for (char *slash = strchr(path + 1, '/'); slash != NULL && made; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        made = make_one(path);
        *slash = '/';
    }
    made = made && make_one(path);
    const char *reason = made ? NULL : strerror(errno);
    if (made && (stat(directory, &found) != 0 || !S_ISDIR(found.st_mode))) reason = "it is not a folder";
    if (reason == NULL && access(directory, W_OK | X_OK) != 0) reason = strerror(errno);
    if (reason == NULL) return true;
    snprintf(why, STORE_WHY_MAX, "%.400s: cannot use the data folder: %s", directory, reason);
    return false;
}

bool store_open(struct store **store, const char *directory, bool sync_writes, char why[STORE_WHY_MAX]) {
    *store = NULL;
    if (!make_directory(directory, why)) return false;
    struct store *s = calloc(1, sizeof *s);
    if (s == NULL) {
        snprintf(why, STORE_WHY_MAX, "out of memory");
        return false;
    }
    const int length = snprintf(s->path, sizeof s->path, "%s/%s", directory, FILE_NAME);
    const bool fits = length > 0 && (size_t)length < sizeof s->path;
    if (!fits) snprintf(why, STORE_WHY_MAX, "the path of the data folder is too long");
    if (fits && open_database(s, sync_writes, why)) {
        *store = s;
        return true;
    }
    store_close(&s);
    return false;
}

bool store_load(struct store *store, bool (*each)(void *context, const char *name, struct layer_state *state),
                void *context, char why[STORE_WHY_MAX]) {
    sqlite3_stmt *row = NULL;
    int rc = sqlite3_prepare_v2(store->db, select_sql, -1, &row, NULL);
    bool ok = rc == SQLITE_OK || fail_sqlite(store, why, rc);
    while (ok && (rc = sqlite3_step(row)) == SQLITE_ROW) {
        const char *const name = (const char *)sqlite3_column_text(row, COL_NAME);
        struct layer_state *const state =
            name != NULL && msg_name_valid(name, strlen(name)) ? read_state(row, name) : NULL;
        char what[MSG_NAME_MAX + 64];
        snprintf(what, sizeof what, "damaged (the record of layer \"%.128s\")", name != NULL ? name : "");
        ok = state != NULL ? each(context, name, state) || fail(store, why, "out of memory") : fail(store, why, what);
    }
    if (ok && rc != SQLITE_DONE) ok = fail_sqlite(store, why, rc);
    sqlite3_finalize(row);
    return ok;
}

// ---- committing

static int run(sqlite3_stmt *statement) {
    const int rc = sqlite3_step(statement);
    sqlite3_reset(statement);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

static int write_change(struct store *store, const struct store_change *change) {
    sqlite3_stmt *const statement = change->state != NULL ? store->upsert : store->delete;
    int rc = change->state != NULL ? bind_state(statement, change->name, change->state)
                                   : sqlite3_bind_text(statement, 1, change->name, -1, SQLITE_STATIC);
    if (rc == SQLITE_OK) rc = run(statement);
    sqlite3_clear_bindings(statement);
    return rc;
}

static enum store_status status_of(int rc) {
    switch (rc & 0xff) {
    case SQLITE_FULL: return STORE_FULL;
    case SQLITE_NOMEM: return STORE_NO_MEMORY;
    default: return STORE_FAILED;
    }
}

enum store_status store_commit(struct store *store, const struct store_change *changes, size_t count,
                               char why[STORE_WHY_MAX]) {
    int rc = run(store->begin);
    for (size_t i = 0; i < count && rc == SQLITE_OK; i++) rc = write_change(store, &changes[i]);
    if (rc == SQLITE_OK) rc = run(store->commit);
    if (rc == SQLITE_OK) return STORE_OK;
    fail_sqlite(store, why, rc);
    const bool rolled_back = sqlite3_get_autocommit(store->db) != 0 || run(store->rollback) == SQLITE_OK;
    return rolled_back ? status_of(rc) : STORE_FAILED;
}

void store_close(struct store **store) {
    struct store *const s = *store;
    *store = NULL;
    if (s == NULL) return;
    sqlite3_stmt *const statements[] = {s->begin, s->commit, s->rollback, s->upsert, s->delete};
    for (size_t i = 0; i < sizeof statements / sizeof statements[0]; i++) sqlite3_finalize(statements[i]);
    sqlite3_close(s->db);
    free(s);
}
