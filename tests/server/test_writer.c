// SPDX-License-Identifier: Apache-2.0
//
// The writer with a real store: order, atomicity, what readers see, batches.
#include "deeds.h"

#include <pthread.h>
#include <uv.h>

// ---- order and atomicity

#define SUBMITTERS 8
#define ROUNDS 200

struct submitter {
    struct bench *bench;
    const char *name;
    uint64_t versions[ROUNDS];
    bool ok;
};

static void *submit_rounds(void *context) {
    struct submitter *const submitter = context;
    submitter->ok = true;
    for (int i = 0; i < ROUNDS; i++) {
        struct deed deed = deed_of(count_up, submitter->name, NULL);
        sem_init(&deed.done, 0, 0);
        while (!writer_submit(submitter->bench->writer, &deed.change)) {}
        while (sem_wait(&deed.done) != 0) {}
        sem_destroy(&deed.done);
        submitter->versions[i] = deed.version;
        // Read your writes: who was answered sees the change.
        if (deed.change.error.code != MSG_OK || look(submitter->bench, submitter->name).version < deed.version)
            submitter->ok = false;
    }
    return NULL;
}

static void test_versions(void **state) {
    (void)state;
    static const char *const names[] = {"a", "b"};
    struct bench bench;
    start_writer(&bench, DURABILITY_SYNC, SIZE_MAX);
    assert_int_equal(perform(&bench, deed_of(create_layers, "a", "b")), MSG_OK);
    struct submitter submitters[SUBMITTERS];
    pthread_t threads[SUBMITTERS];
    for (int i = 0; i < SUBMITTERS; i++) {
        submitters[i] = (struct submitter){.bench = &bench, .name = names[i % 2]};
        assert_int_equal(pthread_create(&threads[i], NULL, submit_rounds, &submitters[i]), 0);
    }
    enum { EACH = SUBMITTERS / 2 * ROUNDS };
    bool given[2][EACH + 2] = {{false}};
    for (int i = 0; i < SUBMITTERS; i++) {
        pthread_join(threads[i], NULL);
        assert_true(submitters[i].ok);
        for (int k = 0; k < ROUNDS; k++) {
            const uint64_t version = submitters[i].versions[k];
            assert_in_range(version, 2, EACH + 1);
            assert_false(given[i % 2][version]); // each once, so none is left out
            assert_true(k == 0 || version > submitters[i].versions[k - 1]);
            given[i % 2][version] = true;
        }
    }
    for (int i = 0; i < 2; i++) expect_version(&bench, names[i], EACH + 1);
    struct layers *const layers = stop_and_load(&bench);
    assert_int_equal(layers->count, 2);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(layers->states[i]->version, EACH + 1);
        assert_int_equal(layers->states[i]->num_batches_tracked, EACH);
        assert_true(layers->states[i]->gamma[0] == EACH + 1);
    }
    layers_free(layers);
    stop_writer(&bench);
}

struct reader {
    struct bench *bench;
    atomic_bool stop;
    atomic_size_t looks, apart;
};

static void *read_pairs(void *context) {
    struct reader *const reader = context;
    do {
        struct registry_item *items = NULL;
        size_t count = 0;
        bool more = false;
        if (!registry_list(reader->bench->registry, "pair", NULL, 10, &items, &count, &more)) break;
        bool apart = count != 2;
        for (size_t i = 0; i < count; i++) {
            apart |= items[i].state->version != items[0].state->version;
            for (size_t c = 0; c < 4; c++) apart |= items[i].state->gamma[c] != (double)items[i].state->version;
        }
        if (apart) reader->apart++;
        reader->looks++;
        registry_items_free(&items, count);
    } while (!reader->stop);
    return NULL;
}

// Two layers that one change edits are never seen apart, and no state is seen half made.
static void test_one_moment(void **state) {
    (void)state;
    struct bench bench;
    start_writer(&bench, DURABILITY_NONE, SIZE_MAX);
    assert_int_equal(perform(&bench, deed_of(create_layers, "pair1", "pair2")), MSG_OK);
    struct reader reader = {.bench = &bench};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, read_pairs, &reader), 0);
    int rounds = 0;
    for (; rounds < 2000 || reader.looks < 100; rounds++) {
        assert_int_equal(perform(&bench, deed_of(count_up, "pair2", "pair1")), MSG_OK);
    }
    reader.stop = true;
    pthread_join(thread, NULL);
    assert_int_equal(reader.apart, 0);
    expect_version(&bench, "pair1", (uint64_t)rounds + 1);
    stop_writer(&bench);
}

static void test_pinned_states(void **state) {
    (void)state;
    struct bench bench;
    start_writer(&bench, DURABILITY_NONE, SIZE_MAX);
    assert_int_equal(perform(&bench, deed_of(create_layers, "a", NULL)), MSG_OK);
    const struct layer_state *pins[20];
    struct layer *layer = NULL;
    for (size_t i = 0; i < COUNT(pins); i++) {
        layer = registry_find(bench.registry, "a", &pins[i]);
        layer_release(layer);
        assert_int_equal(perform(&bench, deed_of(count_up, "a", NULL)), MSG_OK);
    }
    assert_int_equal(perform(&bench, deed_of(delete_layer, "a", NULL)), MSG_OK);
    for (size_t i = 0; i < COUNT(pins); i++) {
        assert_int_equal(pins[i]->version, i + 1);
        for (size_t c = 0; c < 4; c++) assert_true(pins[i]->gamma[c] == (double)(i + 1));
        layer_state_release(pins[i]);
    }
    stop_writer(&bench);
}

// ---- batches

static void test_refusals(void **state) {
    (void)state;
    struct bench bench;
    start_writer(&bench, DURABILITY_SYNC, SIZE_MAX);
    assert_int_equal(perform(&bench, deed_of(create_layers, "a", NULL)), MSG_OK);
    const struct layer_state *before = NULL, *after = NULL;
    struct layer *const layer = registry_find(bench.registry, "a", &before);
    assert_int_equal(perform(&bench, deed_of(refuse_change, "a", NULL)), MSG_CONFIG_CONFLICT);
    assert_int_equal(perform(&bench, deed_of(fail_change, "a", NULL)), MSG_INTERNAL);
    struct deed late = deed_of(count_up, "a", NULL);
    late.change.deadline_ns = uv_hrtime() - 1;
    submit_deed(&bench, &late);
    await_deed(&late);
    assert_int_equal(late.change.error.code, MSG_DEADLINE);
    assert_int_equal(late.applied, 0);
    layer_release(registry_find(bench.registry, "a", &after));
    assert_ptr_equal(after, before);
    layer_state_release(before);
    layer_state_release(after);
    layer_release(layer);
    struct layers *const layers = stop_and_load(&bench);
    assert_int_equal(layers->states[0]->version, 1);
    layers_free(layers);
    stop_writer(&bench);
}

// One batch: those that fail take nothing from the others, which see each other's work.
static void test_mixed_batch(void **state) {
    (void)state;
    struct bench bench;
    struct gate gate;
    start_writer(&bench, DURABILITY_SYNC, SIZE_MAX);
    assert_int_equal(perform(&bench, deed_of(create_layers, "a", "b")), MSG_OK);
    close_gate(&gate, &bench);
    struct deed deeds[] = {deed_of(count_up, "a", NULL), deed_of(refuse_change, "a", NULL),
                           deed_of(count_up, "a", "b"),  deed_of(count_up, "b", NULL),
                           deed_of(count_up, "a", NULL), deed_of(fail_change, "b", NULL),
                           deed_of(count_up, "a", NULL)};
    static const enum msg_code codes[] = {MSG_OK, MSG_CONFIG_CONFLICT, MSG_OK, MSG_DEADLINE,
                                          MSG_OK, MSG_INTERNAL,        MSG_OK};
    static const uint64_t versions[] = {2, 0, 2, 0, 4, 0, 5};
    deeds[3].change.deadline_ns = 0;
    for (size_t i = 0; i < COUNT(deeds); i++) submit_deed(&bench, &deeds[i]);
    expect_version(&bench, "a", 1);
    open_gate(&gate);
    for (size_t i = 0; i < COUNT(deeds); i++) {
        await_deed(&deeds[i]);
        assert_int_equal(deeds[i].change.error.code, codes[i]);
        assert_int_equal(deeds[i].version, versions[i]);
        assert_int_equal(deeds[i].applied, codes[i] != MSG_DEADLINE);
    }
    expect_version(&bench, "a", 5);
    expect_version(&bench, "b", 2);
    stop_writer(&bench);
}

static bool recreate(struct deed *deed, struct txn *txn) {
    const struct msg_config config = config_of(9, MSG_KERAS);
    if (txn_state(txn, deed->names[0]) != NULL)
        return msg_fail(&deed->change.error, MSG_CONFIG_CONFLICT, NULL, "exists");
    return txn_put(txn, deed->names[0], layer_state_new(&config, 8));
}

// Deleted and made anew within one batch: no reader finds it missing, and it is another layer.
static void test_delete_and_create(void **state) {
    (void)state;
    for (int durability = DURABILITY_SYNC; durability <= DURABILITY_NONE; durability++) {
        struct bench bench;
        struct gate gate;
        start_writer(&bench, (enum durability)durability, SIZE_MAX);
        assert_int_equal(perform(&bench, deed_of(create_layers, "a", "b")), MSG_OK);
        close_gate(&gate, &bench);
        struct deed deeds[] = {deed_of(delete_layer, "a", NULL), deed_of(recreate, "a", NULL),
                               deed_of(delete_layer, "b", NULL), deed_of(recreate, "c", NULL),
                               deed_of(count_up, "c", NULL),     deed_of(delete_layer, "c", NULL)};
        for (size_t i = 0; i < COUNT(deeds); i++) submit_deed(&bench, &deeds[i]);
        open_gate(&gate);
        for (size_t i = 0; i < COUNT(deeds); i++) {
            await_deed(&deeds[i]);
            assert_int_equal(deeds[i].change.error.code, MSG_OK);
        }
        const struct seen a = look(&bench, "a");
        assert_true(a.exists && a.id == 8 && a.version == 1);
        assert_false(look(&bench, "b").exists);
        assert_false(look(&bench, "c").exists);
        assert_int_equal(registry_count(bench.registry), 1);
        assert_int_equal(perform(&bench, deed_of(delete_layer, "a", NULL)),
                         MSG_OK); // and once more in a batch of its own
        assert_int_equal(perform(&bench, deed_of(recreate, "a", NULL)), MSG_OK);
        assert_int_equal(perform(&bench, deed_of(recreate, "b", NULL)), MSG_OK);
        struct layers *const layers = stop_and_load(&bench);
        assert_int_equal(layers->count, 2);
        assert_string_equal(layers->names[0], "a");
        assert_string_equal(layers->names[1], "b");
        assert_int_equal(layers->states[0]->config.num_features, 9);
        layers_free(layers);
        stop_writer(&bench);
    }
}

static char listed[100];

static void append(void *context, const char *name) {
    strcat(strcat(context, name), " ");
}

static bool list_names(struct deed *deed, struct txn *txn) {
    listed[0] = '\0';
    txn_names(txn, deed->names[0], append, listed);
    return true;
}

static void test_names(void **state) {
    (void)state;
    struct bench bench;
    struct gate gate;
    start_writer(&bench, DURABILITY_SYNC, SIZE_MAX);
    assert_int_equal(perform(&bench, deed_of(create_layers, "aa", "b")), MSG_OK);
    close_gate(&gate, &bench);
    struct deed deeds[] = {deed_of(delete_layer, "aa", NULL), deed_of(create_layers, "ab", "c"),
                           deed_of(list_names, "", NULL)};
    for (size_t i = 0; i < COUNT(deeds); i++) submit_deed(&bench, &deeds[i]);
    open_gate(&gate);
    for (size_t i = 0; i < COUNT(deeds); i++) await_deed(&deeds[i]);
    assert_string_equal(listed, "ab b c ");
    assert_int_equal(perform(&bench, deed_of(list_names, "a", NULL)), MSG_OK);
    assert_string_equal(listed, "ab ");
    stop_writer(&bench);
}

static bool ask_room(struct deed *deed, struct txn *txn) {
    return txn_has_room(txn, deed->bytes) || msg_fail(&deed->change.error, MSG_MEMORY_FULL, NULL, "no room");
}

static bool create_if_room(struct deed *deed, struct txn *txn) {
    return ask_room(deed, txn) && create_layers(deed, txn);
}

static void test_has_room(void **state) {
    (void)state;
    const struct msg_config config = config_of(4, MSG_PYTORCH);
    const size_t one = layer_state_bytes(&config);
    struct bench bench;
    struct gate gate;
    start_writer(&bench, DURABILITY_SYNC, 3 * one);
    struct deed asking = deed_of(ask_room, NULL, NULL);
    const struct {
        size_t bytes;
        enum msg_code code;
    } empty[] = {{0, MSG_OK}, {3 * one, MSG_OK}, {3 * one + 1, MSG_MEMORY_FULL}, {SIZE_MAX, MSG_MEMORY_FULL}};
    for (size_t i = 0; i < COUNT(empty); i++) {
        asking.bytes = empty[i].bytes;
        assert_int_equal(perform(&bench, asking), empty[i].code);
    }
    close_gate(&gate, &bench); // states of the same batch count
    struct deed deeds[] = {deed_of(create_if_room, "a", NULL), deed_of(create_if_room, "b", NULL),
                           deed_of(create_if_room, "c", NULL), deed_of(create_if_room, "d", NULL),
                           deed_of(count_up, "a", NULL),       deed_of(delete_layer, "b", NULL),
                           deed_of(create_if_room, "e", NULL), deed_of(create_if_room, "f", NULL)};
    static const enum msg_code codes[] = {MSG_OK, MSG_OK, MSG_OK, MSG_MEMORY_FULL,
                                          MSG_OK, MSG_OK, MSG_OK, MSG_MEMORY_FULL};
    for (size_t i = 0; i < COUNT(deeds); i++) {
        deeds[i].bytes = one;
        submit_deed(&bench, &deeds[i]);
    }
    open_gate(&gate);
    for (size_t i = 0; i < COUNT(deeds); i++) {
        await_deed(&deeds[i]);
        assert_int_equal(deeds[i].change.error.code, codes[i]);
    }
    assert_int_equal(registry_state_bytes(bench.registry), 3 * one);
    asking.bytes = 1;
    assert_int_equal(perform(&bench, asking), MSG_MEMORY_FULL);
    asking.bytes = 0;
    assert_int_equal(perform(&bench, asking), MSG_OK);
    stop_writer(&bench);
}

static void test_full_queue(void **state) {
    (void)state;
    enum { QUEUE = 8192 }; // as writer.c has it
    struct bench bench;
    struct gate gate;
    start_writer(&bench, DURABILITY_SYNC, SIZE_MAX);
    assert_int_equal(perform(&bench, deed_of(create_layers, "a", NULL)), MSG_OK);
    struct deed *const deeds = calloc(QUEUE + 1, sizeof *deeds);
    assert_non_null(deeds);
    close_gate(&gate, &bench);
    for (size_t i = 0; i <= QUEUE; i++) deeds[i] = deed_of(count_up, "a", NULL);
    for (size_t i = 0; i < QUEUE; i++) submit_deed(&bench, &deeds[i]);
    assert_false(writer_submit(bench.writer, &deeds[QUEUE].change));
    open_gate(&gate);
    for (size_t i = 0; i < QUEUE; i++) {
        await_deed(&deeds[i]);
        assert_int_equal(deeds[i].version, i + 2); // first come, first served
    }
    assert_int_equal(deeds[QUEUE].applied, 0);
    assert_int_equal(perform(&bench, deed_of(count_up, "a", NULL)), MSG_OK);
    expect_version(&bench, "a", QUEUE + 2);
    free(deeds);
    stop_writer(&bench);
}

// While the writer is busy, what waits for it is refused at its deadline, and only that; the rest keeps its order.
static void test_expiry(void **state) {
    (void)state;
    struct bench bench;
    struct gate gate;
    start_writer(&bench, DURABILITY_SYNC, SIZE_MAX);
    assert_int_equal(perform(&bench, deed_of(create_layers, "a", NULL)), MSG_OK);
    for (unsigned late = 0; late < 16; late++) { // every choice of four
        const uint64_t version = look(&bench, "a").version;
        uint64_t kept = 0;
        close_gate(&gate, &bench);
        struct deed deeds[4];
        for (unsigned i = 0; i < 4; i++) {
            deeds[i] = deed_of(count_up, "a", NULL);
            if ((late & 1u << i) != 0) deeds[i].change.deadline_ns = 1000;
            submit_deed(&bench, &deeds[i]);
        }
        writer_expire(bench.writer, 1000); // at its deadline it is not late yet
        for (unsigned i = 0; i < 4; i++) assert_int_equal(deeds[i].change.error.code, MSG_OK);
        writer_expire(bench.writer, 1001);
        for (unsigned i = 0; i < 4; i++) {
            if ((late & 1u << i) == 0) continue;
            await_deed(&deeds[i]); // with the gate closed
            expect_error(&deeds[i].change.error, MSG_DEADLINE, NULL);
            assert_int_equal(deeds[i].applied, 0);
        }
        struct deed behind = deed_of(count_up, "a", NULL); // the end of the queue is where it belongs
        submit_deed(&bench, &behind);
        open_gate(&gate);
        for (unsigned i = 0; i < 4; i++) {
            if ((late & 1u << i) != 0) continue;
            await_deed(&deeds[i]);
            assert_int_equal(deeds[i].change.error.code, MSG_OK);
            assert_int_equal(deeds[i].version, version + ++kept);
        }
        await_deed(&behind);
        assert_int_equal(behind.version, version + ++kept);
        expect_version(&bench, "a", version + kept);
    }
    writer_expire(bench.writer, UINT64_MAX);
    stop_writer(&bench);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_versions), cmocka_unit_test(test_one_moment),  cmocka_unit_test(test_pinned_states),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_mixed_batch), cmocka_unit_test(test_delete_and_create),
        cmocka_unit_test(test_names),    cmocka_unit_test(test_has_room),    cmocka_unit_test(test_full_queue),
        cmocka_unit_test(test_expiry),
    };
    return cmocka_run_group_tests_name("writer", tests, NULL, NULL);
}
