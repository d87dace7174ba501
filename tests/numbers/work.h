// SPDX-License-Identifier: Apache-2.0
//
// Checks of many values, shared out among threads: what is checked depends on the seed alone, not on the threads.
#ifndef NORMD_TESTS_NUMBERS_WORK_H
#define NORMD_TESTS_NUMBERS_WORK_H

#include <stdbool.h>
#include <stdint.h>

struct work {
    const char *name;
    uint64_t total;
    uint64_t seed;
    const void *data; // what else the check needs
    // Whether the index-th value is right; says with wrong() what is not. 0 <= index < total.
    bool (*check)(const struct work *work, uint64_t index);
};

// Checks all of them on so many threads, says on stderr every few seconds how far it is, and returns how many were
// wrong.
uint64_t work_run(const struct work *work, int threads);

// Prints "# " and the text, of the first twenty only.
void wrong(const char *format, ...) __attribute__((format(printf, 1, 2)));

// The n-th random number of the index-th value.
uint64_t random_of(const struct work *work, uint64_t index, uint64_t n);

#endif
