// SPDX-License-Identifier: Apache-2.0
//
// Powers of ten as 128 bits each, for number_read.c and number_write.c. powers.py makes powers.c, which
// compiles only where the bounds here are those of its table.
//
// 10^q = (hi * 2^64 + lo + d) * 2^(floor(log2(10^q)) - 127) with 0 <= d < 1, so hi has its top bit set and the fraction
// d is cut off. d is 0 for q from POWER_EXACT_FIRST to POWER_EXACT_LAST and nowhere else. No lo is UINT64_MAX, so that
// one can be added to round up.
#ifndef NORMD_PROTO_POWERS_H
#define NORMD_PROTO_POWERS_H

#include <stdint.h>

#define POWER_FIRST (-342)
#define POWER_LAST 324
#define POWER_EXACT_FIRST 0
#define POWER_EXACT_LAST 55

struct power {
    uint64_t hi;
    uint64_t lo;
};

// Of q from POWER_FIRST to POWER_LAST.
extern const struct power number_powers[POWER_LAST - POWER_FIRST + 1];

// Shifts of negative numbers to the right round down here and in number_write.c, as gcc and clang define them.
// powers.py checks the formulas with logarithms for all arguments that occur.
static inline int floor_log2_pow10(int q) {
    return (q * 217706) >> 16;
}

#endif
