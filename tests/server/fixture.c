// SPDX-License-Identifier: Apache-2.0
#include "fixture.h"

#include <ftw.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

uint64_t bits_of(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

uint64_t random_bits(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

struct msg_config config_of(int64_t num_features, enum msg_convention convention) {
    struct msg_error error = {0};
    struct msg_config config = {
        .given = MSG_NUM_FEATURES | MSG_CONVENTION, .num_features = num_features, .convention = (int)convention};
    assert_true(layer_config_complete(&config, "", &error));
    return config;
}

char *folder_new(void) {
    const char *const root = getenv("TMPDIR");
    char *folder = NULL;
    assert_true(asprintf(&folder, "%s/normd-test-XXXXXX", root != NULL ? root : "/tmp") > 0);
    assert_non_null(mkdtemp(folder));
    return folder;
}

static int remove_entry(const char *path, const struct stat *found, int kind, struct FTW *where) {
    (void)found;
    (void)kind;
    (void)where;
    return remove(path);
}

void folder_free(char *folder) {
    assert_int_equal(nftw(folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS), 0);
    free(folder);
}

char *read_file(const char *path, size_t *size) {
    FILE *const file = fopen(path, "rb");
    if (file == NULL) fail_msg("cannot open %s", path);
    char *text = NULL;
    FILE *const copy = open_memstream(&text, size);
    assert_non_null(copy);
    for (int c; (c = getc(file)) != EOF;) putc(c, copy);
    fclose(file);
    assert_int_equal(fclose(copy), 0);
    return text;
}

bool wait_until(bool (*holds)(void *context), void *context) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    const time_t deadline = now.tv_sec + 20;
    while (!holds(context)) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec > deadline) return false;
        poll(NULL, 0, 1);
    }
    return true;
}

void expect_error(const struct msg_error *error, enum msg_code code, const char *pointer) {
    if (error->code != code) {
        fail_msg("%s (%s), expected %s", msg_codes[error->code].name, error->detail, msg_codes[code].name);
    }
    assert_int_equal(error->has_pointer, pointer != NULL);
    if (pointer != NULL) assert_string_equal(error->pointer, pointer);
}
