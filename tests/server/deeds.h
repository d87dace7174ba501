// SPDX-License-Identifier: Apache-2.0
//
// A writer with its store and registry, and changes that can be waited for, for the tests of writer.c.
#ifndef NORMD_TESTS_SERVER_DEEDS_H
#define NORMD_TESTS_SERVER_DEEDS_H

#include "stores.h"

#include <semaphore.h>
#include <stdatomic.h>

#include "../../server/writer.h"

struct bench {
    char *where;
    struct store *store;
    struct registry *registry;
    struct writer *writer;
    atomic_int failures;
};

void start_writer(struct bench *bench, enum durability durability, size_t memory_limit);
void stop_writer(struct bench *bench);

// What is in the store after the writer has ended, read by a new one.
struct layers *stop_and_load(struct bench *bench);

// A change whose `apply` is given, and that can be waited for.
struct deed {
    struct change change;
    const char *names[2]; // of the layers; NULL: none
    bool (*apply)(struct deed *deed, struct txn *txn);
    int applied; // how often
    uint64_t version;
    size_t bytes;
    sem_t *gate; // that apply waits for
    sem_t done;
};

// Without a deadline.
struct deed deed_of(bool (*apply)(struct deed *deed, struct txn *txn), const char *first, const char *second);
void submit_deed(struct bench *bench, struct deed *deed);
void await_deed(struct deed *deed);

// Submits it, waits, and returns its error.
enum msg_code perform(struct bench *bench, struct deed deed);

// For deed_of: creates its layers with id 7 and four channels.
bool create_layers(struct deed *deed, struct txn *txn);

// Adds one to all of gamma and counts it, in each of its layers.
bool count_up(struct deed *deed, struct txn *txn);
bool delete_layer(struct deed *deed, struct txn *txn);
bool refuse_change(struct deed *deed, struct txn *txn);

// Fails without saying why.
bool fail_change(struct deed *deed, struct txn *txn);

// While the gate is closed, what is submitted gathers into one batch.
struct gate {
    sem_t open;
    struct deed deed;
};

void close_gate(struct gate *gate, struct bench *bench);
void open_gate(struct gate *gate);

// What readers see of a layer.
struct seen {
    bool exists;
    uint64_t id, version, batches;
    double gamma;
};

struct seen look(struct bench *bench, const char *name);

// Fails the test unless readers see this version, 0: no such layer. One with id 7 has been counted up to it from
// creation.
void expect_version(struct bench *bench, const char *name, uint64_t version);

#endif
