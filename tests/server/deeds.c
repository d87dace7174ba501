// SPDX-License-Identifier: Apache-2.0
#include "deeds.h"

#include <errno.h>
#include <time.h>

static void on_failure(void *context, const char *why) {
    struct bench *const bench = context;
    if (why[0] != '\0') bench->failures++;
}

void start_writer(struct bench *bench, enum durability durability, size_t memory_limit) {
    *bench = (struct bench){.where = folder_new(), .registry = registry_new()};
    bench->store = open_store(bench->where, durability != DURABILITY_NONE);
    bench->writer = writer_new(bench->store, bench->registry, durability, memory_limit, on_failure, bench);
    assert_non_null(bench->writer);
}

struct layers *stop_and_load(struct bench *bench) {
    assert_true(writer_free(&bench->writer));
    assert_null(bench->writer);
    assert_int_equal(bench->failures, 0);
    store_close(&bench->store);
    bench->store = open_store(bench->where, true);
    return load(bench->store);
}

void stop_writer(struct bench *bench) {
    writer_free(&bench->writer);
    store_close(&bench->store);
    registry_free(&bench->registry);
    folder_free(bench->where);
}

// ---- changes

static bool apply_deed(struct change *change, struct txn *txn) {
    struct deed *const deed = (struct deed *)(void *)change;
    deed->applied++;
    return deed->apply(deed, txn);
}

static void deed_done(struct change *change) {
    sem_post(&((struct deed *)(void *)change)->done);
}

struct deed deed_of(bool (*apply)(struct deed *deed, struct txn *txn), const char *first, const char *second) {
    return (struct deed){.change = {.deadline_ns = UINT64_MAX, .apply = apply_deed, .done = deed_done},
                         .names = {first, second},
                         .apply = apply};
}

void submit_deed(struct bench *bench, struct deed *deed) {
    sem_init(&deed->done, 0, 0);
    assert_true(writer_submit(bench->writer, &deed->change));
}

void await_deed(struct deed *deed) {
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += 60;
    while (sem_timedwait(&deed->done, &deadline) != 0) assert_int_equal(errno, EINTR);
    sem_destroy(&deed->done);
}

enum msg_code perform(struct bench *bench, struct deed deed) {
    submit_deed(bench, &deed);
    await_deed(&deed);
    return deed.change.error.code;
}

bool create_layers(struct deed *deed, struct txn *txn) {
    const struct msg_config config = config_of(4, MSG_PYTORCH);
    for (int i = 0; i < 2 && deed->names[i] != NULL; i++) {
        if (!txn_put(txn, deed->names[i], layer_state_new(&config, 7))) return false;
    }
    return true;
}

bool count_up(struct deed *deed, struct txn *txn) {
    for (int i = 0; i < 2 && deed->names[i] != NULL; i++) {
        struct layer_state *const state = txn_edit(txn, deed->names[i]);
        if (state == NULL) return false;
        for (size_t c = 0; c < 4; c++) state->gamma[c] += 1;
        state->num_batches_tracked++;
        deed->version = state->version;
    }
    return true;
}

bool delete_layer(struct deed *deed, struct txn *txn) {
    return txn_delete(txn, deed->names[0]);
}

bool refuse_change(struct deed *deed, struct txn *txn) {
    const bool exists = txn_state(txn, deed->names[0]) != NULL;
    return msg_fail(&deed->change.error, exists ? MSG_CONFIG_CONFLICT : MSG_LAYER_NOT_FOUND, "/layer", "no");
}

bool fail_change(struct deed *deed, struct txn *txn) {
    (void)deed;
    (void)txn;
    return false;
}

static bool is_applied(void *context) {
    int waiting = 0;
    sem_getvalue(context, &waiting);
    return waiting > 0;
}

static sem_t entered;

static bool enter_gate(struct deed *deed, struct txn *txn) {
    (void)txn;
    sem_post(&entered);
    while (sem_wait(deed->gate) != 0) {}
    return true;
}

void close_gate(struct gate *gate, struct bench *bench) {
    sem_init(&gate->open, 0, 0);
    sem_init(&entered, 0, 0);
    gate->deed = deed_of(enter_gate, NULL, NULL);
    gate->deed.gate = &gate->open;
    submit_deed(bench, &gate->deed);
    assert_true(wait_until(is_applied, &entered));
}

void open_gate(struct gate *gate) {
    sem_post(&gate->open);
    await_deed(&gate->deed);
    sem_destroy(&gate->open);
}

struct seen look(struct bench *bench, const char *name) {
    const struct layer_state *state = NULL;
    struct layer *const layer = registry_find(bench->registry, name, &state);
    struct seen seen = {.exists = layer != NULL};
    if (layer != NULL)
        seen = (struct seen){true, state->id, state->version, state->num_batches_tracked, state->gamma[3]};
    layer_state_release(state);
    layer_release(layer);
    return seen;
}

void expect_version(struct bench *bench, const char *name, uint64_t version) {
    const struct seen seen = look(bench, name);
    assert_int_equal(seen.exists, version > 0);
    assert_int_equal(seen.version, version);
    if (seen.exists && seen.id == 7) assert_true(seen.gamma == (double)version && seen.batches == version - 1);
}
