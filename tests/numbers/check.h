// SPDX-License-Identifier: Apache-2.0
//
// One value written by proto/number.h, or one text read by it, held against exact.h.
#ifndef NORMD_TESTS_NUMBERS_CHECK_H
#define NORMD_TESTS_NUMBERS_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "../bits.h"
#include "exact.h"

// Each returns whether all is right and says what is not. The value is finite.
//
// The text is as number.h promises (the digits the closest of the fewest, the layout the shorter one), reads back to
// the same bits, and does so by libc too where that is asked for, which takes ten times as long.
bool check_write_f32(uint32_t bits, bool libc);
bool check_write_f64(uint64_t bits, bool libc);

// The text, which is `decimal` written in any way, reads as the nearest f64 and the nearest f32.
bool check_read(const char *text, struct decimal decimal);

// The text reads as these bits.
bool check_read_f32(const char *text, uint32_t bits);
bool check_read_f64(const char *text, uint64_t bits);

#endif
