// SPDX-License-Identifier: Apache-2.0
//
// bare_sqlite FOLDER ROWS BYTES SECONDS: how many rows SQLite commits durably, when ROWS of them share a transaction.
// What bench_http.py holds normd's updates against: a table of ROWS rows of BYTES bytes, all of them updated in place
// in each transaction, with the settings of server/store_sqlite.c. Prints one line of JSON.
#include <sqlite3.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "clock.h"

struct database {
    sqlite3 *db;
    sqlite3_stmt *begin, *update, *commit;
};

static bool run(sqlite3_stmt *statement) {
    const int rc = sqlite3_step(statement);
    sqlite3_reset(statement);
    return rc == SQLITE_DONE;
}

static bool prepare(struct database *d) {
    static const char update[] =
        "INSERT INTO layer VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    return sqlite3_prepare_v2(d->db, "BEGIN IMMEDIATE", -1, &d->begin, NULL) == SQLITE_OK &&
           sqlite3_prepare_v2(d->db, update, -1, &d->update, NULL) == SQLITE_OK &&
           sqlite3_prepare_v2(d->db, "COMMIT", -1, &d->commit, NULL) == SQLITE_OK;
}

static bool open_database(struct database *d, const char *folder) {
    static const char setup[] =
        "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; "
        "PRAGMA wal_autocheckpoint = 4000; PRAGMA journal_size_limit = 67108864; "
        "CREATE TABLE layer (name TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL)";
    char path[4096];
    snprintf(path, sizeof path, "%s/bare.db", folder);
    const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
    return sqlite3_open_v2(path, &d->db, flags, NULL) == SQLITE_OK &&
           sqlite3_exec(d->db, setup, NULL, NULL, NULL) == SQLITE_OK && prepare(d);
}

static void close_database(struct database *d) {
    sqlite3_finalize(d->begin);
    sqlite3_finalize(d->update);
    sqlite3_finalize(d->commit);
    sqlite3_close(d->db);
}

// One transaction. `value` changes, so that no page is the same as before.
static bool commit_rows(const struct database *d, int rows, char *value, int bytes, long long group) {
    memcpy(value, &group, sizeof group);
    bool ok = run(d->begin);
    for (int i = 0; i < rows && ok; i++) {
        char name[32];
        const int length = snprintf(name, sizeof name, "bench%d", i);
        ok = sqlite3_bind_text(d->update, 1, name, length, SQLITE_STATIC) == SQLITE_OK &&
             sqlite3_bind_blob(d->update, 2, value, bytes, SQLITE_STATIC) == SQLITE_OK && run(d->update);
    }
    return ok && run(d->commit);
}

static double cpu_us(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e6 +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

static bool measure(const struct database *d, int rows, char *value, int bytes, int seconds) {
    const double began_ns = clock_ns();
    double now_ns = began_ns;
    long long groups = 0;
    for (; now_ns - began_ns < seconds * 1e9; now_ns = clock_ns()) {
        if (!commit_rows(d, rows, value, bytes, ++groups)) return false;
    }
    printf("{\"requests\": %lld, \"duration_us\": %.0f, \"cpu_us\": %.0f}\n", groups * rows, (now_ns - began_ns) / 1e3,
           cpu_us());
    return true;
}

int main(int argc, char **argv) {
    const int rows = argc == 5 ? atoi(argv[2]) : 0, bytes = argc == 5 ? atoi(argv[3]) : 0;
    if (rows < 1 || bytes < (int)sizeof(long long)) {
        fprintf(stderr, "usage: bare_sqlite FOLDER ROWS BYTES SECONDS\n");
        return 2;
    }
    char *const value = calloc((size_t)bytes, 1);
    struct database d = {0};
    const bool ok = value != NULL && open_database(&d, argv[1]) && measure(&d, rows, value, bytes, atoi(argv[4]));
    if (!ok) fprintf(stderr, "bare_sqlite: %s\n", d.db != NULL ? sqlite3_errmsg(d.db) : "out of memory");
    close_database(&d);
    free(value);
    return ok ? 0 : 1;
}
