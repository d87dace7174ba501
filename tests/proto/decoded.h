// SPDX-License-Identifier: Apache-2.0
//
// Decoding bodies in tests: each message by its kind, with what it took from a budget accounted for.
#ifndef NORMD_TESTS_PROTO_DECODED_H
#define NORMD_TESTS_PROTO_DECODED_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/json.h"
#include "number_check.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

// Members of calls.
#define X "\"x\":[[1]]"
#define DOUT "\"dout\":[[1]]"

// Every message that there is.
enum kind { CONFIG, PATCH, TRAIN, INFERENCE, BACKWARD, STATE, SNAPSHOT, KINDS };

struct decoded {
    struct msg_config config;
    struct msg_call call;
    struct msg_state state;
    struct msg_snapshot snapshot;
    struct msg_error error;
    bool ok;
};

// What decoding charges.
extern struct budget budget;

// For the setup of a test: one that failed leaves its memory behind.
int fresh_budget(void **state);

// A body of each kind with much in it.
extern const char *const rich[KINDS];

// For release. The body stands alone in memory and is gone after.
struct decoded decode(enum kind kind, const char *text, size_t length);

// Frees what was decoded; fails the test where something is still charged then.
void release(struct decoded *d);

// Fails the test where the body is refused; for release.
struct decoded decode_good(enum kind kind, const char *text);

// Fails the test unless decoding gives this code (MSG_OK too), at this pointer; NULL: at none.
void expect_error(enum kind kind, const char *text, enum msg_code code, const char *pointer);

// The i-th value of either type.
double value_of(const struct tensor *t, size_t i);

#endif
