// SPDX-License-Identifier: Apache-2.0
//
// What the tests of proto/number.h share: random bits, and reading compared with libc, whose strtod and strtof are
// exact.
#ifndef NORMD_TESTS_PROTO_NUMBER_CHECK_H
#define NORMD_TESTS_PROTO_NUMBER_CHECK_H

#include <stddef.h>
#include <stdint.h>

#include "../bits.h"

// The same sequence in every run.
uint64_t random_u64(void);
int random_below(int limit);

// The text alone in memory, so that a sanitizer sees a read behind it. The caller frees it.
char *alone(const char *text, size_t size);

// The text with FOLLOWING and NUL behind it, as in the middle of an array: digits that are not the number's. The caller
// frees it.
#define FOLLOWING ",98765432109876543210.98765432109876543210e98765432109876543210"
char *followed(const char *text, size_t size);

// Reads all of `text` as either type, alone and followed; fails the test where the value, the status or the end is not
// as by libc.
void check_read(const char *text);

#endif
