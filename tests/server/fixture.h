// SPDX-License-Identifier: Apache-2.0
//
// What the tests of server/ share: cmocka with what it needs, temporary folders, configurations, conditions with a
// deadline.
#ifndef NORMD_TESTS_SERVER_FIXTURE_H
#define NORMD_TESTS_SERVER_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../server/layer.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

uint64_t bits_of(double value);

// splitmix64, the same sequence in every run.
uint64_t random_bits(uint64_t *state);

// A complete configuration with the convention's defaults.
struct msg_config config_of(int64_t num_features, enum msg_convention convention);

// A folder of its own, for folder_free to remove with all that is in it.
char *folder_new(void);
void folder_free(char *folder);

// The content of a file with a NUL behind it; fails the test where it cannot be read. The caller frees it.
char *read_file(const char *path, size_t *size);

// Asks until the answer is true; false after 20 s.
bool wait_until(bool (*holds)(void *context), void *context);

// Fails the test where the error is another one. pointer NULL: it has none.
void expect_error(const struct msg_error *error, enum msg_code code, const char *pointer);

#endif
