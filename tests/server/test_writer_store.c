// SPDX-License-Identifier: Apache-2.0
//
// The writer and its store: disks that are full or fail, and what is kept by each durability.
#include "deeds.h"

#include <errno.h>
#include <poll.h>
#include <sys/stat.h>
#include <time.h>

static void test_full_disk(void **state) {
    (void)state;
    struct bench bench;
    start_writer(&bench, DURABILITY_SYNC, SIZE_MAX);
    assert_int_equal(perform(&bench, deed_of(create_layers, "a", NULL)), MSG_OK);
    disk_fail(ENOSPC);
    assert_int_equal(perform(&bench, deed_of(count_up, "a", NULL)), MSG_STORE_FULL);
    assert_int_equal(perform(&bench, deed_of(create_layers, "new", NULL)), MSG_STORE_FULL);
    expect_version(&bench, "a", 1);
    expect_version(&bench, "new", 0);
    assert_false(writer_failed(bench.writer));
    disk_fail(0);
    assert_int_equal(perform(&bench, deed_of(count_up, "a", NULL)), MSG_OK);
    expect_version(&bench, "a", 2);
    struct layers *const layers = stop_and_load(&bench);
    assert_int_equal(layers->count, 1);
    assert_int_equal(layers->states[0]->version, 2);
    layers_free(layers);
    stop_writer(&bench);
}

// Every change starts with room for a megabyte on the disk.
static bool count_up_in_little_space(struct deed *deed, struct txn *txn) {
    disk_limit(1 << 20);
    return count_up(deed, txn);
}

static bool create_huge(struct deed *deed, struct txn *txn) {
    const struct msg_config config = config_of(1 << 16, MSG_PYTORCH);
    disk_limit(1 << 20);
    return txn_put(txn, deed->names[0], layer_state_new(&config, 8));
}

static void test_too_large_for_disk(void **state) {
    (void)state;
    struct bench bench;
    struct gate gate;
    start_writer(&bench, DURABILITY_SYNC, SIZE_MAX);
    assert_int_equal(perform(&bench, deed_of(create_layers, "a", "b")), MSG_OK);
    close_gate(&gate, &bench);
    struct deed deeds[] = {deed_of(count_up_in_little_space, "a", NULL), deed_of(create_huge, "huge", NULL),
                           deed_of(count_up_in_little_space, "a", "b"), deed_of(refuse_change, "a", NULL),
                           deed_of(count_up_in_little_space, "b", NULL)};
    static const enum msg_code codes[] = {MSG_OK, MSG_STORE_FULL, MSG_OK, MSG_CONFIG_CONFLICT, MSG_OK};
    for (size_t i = 0; i < COUNT(deeds); i++) submit_deed(&bench, &deeds[i]);
    open_gate(&gate);
    for (size_t i = 0; i < COUNT(deeds); i++) {
        await_deed(&deeds[i]);
        assert_int_equal(deeds[i].change.error.code, codes[i]);
        assert_int_equal(deeds[i].applied, 2); // with all, and then alone
    }
    disk_limit(-1);
    expect_version(&bench, "a", 3);
    expect_version(&bench, "b", 3);
    expect_version(&bench, "huge", 0);
    struct layers *const layers = stop_and_load(&bench);
    assert_int_equal(layers->count, 2);
    assert_int_equal(layers->states[0]->version, 3);
    layers_free(layers);
    stop_writer(&bench);
}

static void test_failed_store(void **state) {
    (void)state;
    struct bench bench;
    start_writer(&bench, DURABILITY_SYNC, SIZE_MAX);
    assert_int_equal(perform(&bench, deed_of(create_layers, "a", NULL)), MSG_OK);
    disk_fail(EIO);
    assert_int_equal(perform(&bench, deed_of(count_up, "a", NULL)), MSG_STORE_FAILED);
    disk_fail(0);
    assert_true(writer_failed(bench.writer));
    struct deed deed = deed_of(count_up, "a", NULL);
    submit_deed(&bench, &deed); // taken, and refused: it cannot be known what the medium holds
    await_deed(&deed);
    assert_int_equal(deed.change.error.code, MSG_STORE_FAILED);
    assert_int_equal(deed.applied, 0);
    assert_int_equal(bench.failures, 1);
    expect_version(&bench, "a", 1);
    assert_false(writer_free(&bench.writer));
    assert_int_equal(bench.failures, 1);
    stop_writer(&bench);
}

// ---- durability

static void test_durabilities(void **state) {
    (void)state;
    for (int durability = DURABILITY_SYNC; durability <= DURABILITY_NONE; durability++) {
        struct bench bench;
        start_writer(&bench, (enum durability)durability, SIZE_MAX);
        assert_int_equal(perform(&bench, deed_of(create_layers, "a", "b")), MSG_OK);
        for (int i = 0; i < 100; i++) assert_int_equal(perform(&bench, deed_of(count_up, "a", NULL)), MSG_OK);
        assert_int_equal(perform(&bench, deed_of(delete_layer, "b", NULL)), MSG_OK);
        expect_version(&bench, "a", 101);
        struct deed last = deed_of(count_up, "a", NULL); // the end waits for what waits
        submit_deed(&bench, &last);
        struct layers *const layers = stop_and_load(&bench);
        await_deed(&last);
        assert_int_equal(last.change.error.code, MSG_OK);
        assert_int_equal(layers->count, 1);
        assert_int_equal(layers->states[0]->version, 102);
        assert_true(layers->states[0]->gamma[3] == 102);
        layers_free(layers);
        stop_writer(&bench);
    }
}

struct growth {
    char path[300];
    off_t size;
};

static bool has_grown(void *context) {
    const struct growth *const growth = context;
    struct stat found;
    return stat(growth->path, &found) == 0 && found.st_size > growth->size;
}

// Without another change coming, what is unsaved is written all the same.
static void test_interval(void **state) {
    (void)state;
    for (int durability = DURABILITY_INTERVAL; durability <= DURABILITY_NONE; durability++) {
        struct bench bench;
        start_writer(&bench, (enum durability)durability, SIZE_MAX);
        struct growth growth;
        struct stat found;
        snprintf(growth.path, sizeof growth.path, "%s/normd.db-wal", bench.where);
        growth.size = stat(growth.path, &found) == 0 ? found.st_size : 0;
        assert_int_equal(perform(&bench, deed_of(create_layers, "a", NULL)), MSG_OK);
        assert_true(wait_until(has_grown, &growth));
        stop_writer(&bench);
    }
}

// The last commit fails: the end says so.
static void test_unsaved_at_end(void **state) {
    (void)state;
    struct bench bench;
    start_writer(&bench, DURABILITY_INTERVAL, SIZE_MAX);
    disk_fail(ENOSPC);
    assert_int_equal(perform(&bench, deed_of(create_layers, "a", NULL)), MSG_OK);
    assert_false(writer_free(&bench.writer));
    disk_fail(0);
    assert_int_equal(bench.failures, 1);
    stop_writer(&bench);
}

static bool has_failed(void *context) {
    return writer_failed(context);
}

static double cpu_seconds(void) {
    struct timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return (double)used.tv_sec + (double)used.tv_nsec * 1e-9;
}

// What is unsaved when the store fails is not tried again, nor does the writer wait for a moment that has passed.
static void test_failed_flush(void **state) {
    (void)state;
    for (int durability = DURABILITY_INTERVAL; durability <= DURABILITY_NONE; durability++) {
        struct bench bench;
        start_writer(&bench, (enum durability)durability, SIZE_MAX);
        disk_fail(EIO);
        assert_int_equal(perform(&bench, deed_of(create_layers, "a", NULL)), MSG_OK);
        assert_true(wait_until(has_failed, bench.writer));
        disk_fail(0);
        const double before = cpu_seconds();
        poll(NULL, 0, 300); // the finding is about time: nothing happens that could be waited for
        assert_true(cpu_seconds() - before < 0.03);
        assert_int_equal(perform(&bench, deed_of(count_up, "a", NULL)), MSG_STORE_FAILED);
        assert_false(writer_free(&bench.writer));
        assert_int_equal(bench.failures, 1);
        stop_writer(&bench);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full_disk),    cmocka_unit_test(test_too_large_for_disk),
        cmocka_unit_test(test_failed_store), cmocka_unit_test(test_durabilities),
        cmocka_unit_test(test_interval),     cmocka_unit_test(test_unsaved_at_end),
        cmocka_unit_test(test_failed_flush),
    };
    return cmocka_run_group_tests_name("writer_store", tests, NULL, NULL);
}
