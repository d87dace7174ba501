// SPDX-License-Identifier: Apache-2.0
//
// Texts whose values are known: decimals of up to 20 digits in many forms, and such as lie half-way between two values
// or a hair beside, in all their digits.
#ifndef NORMD_TESTS_NUMBERS_TEXTS_H
#define NORMD_TESTS_NUMBERS_TEXTS_H

#include "exact.h"
#include "work.h"

// Of the longest: 767 digits, and some appended.
#define TEXT_SIZE 1300

// Writes the index-th random decimal and returns it.
struct decimal random_decimal(char text[static TEXT_SIZE], const struct work *work, uint64_t index);

// Whether the middle between the value and the next one up reads as the even one of the two, and a hair beside as the
// one on that side. The bits are those of a finite magnitude.
bool check_halfway_f64(uint64_t bits);
bool check_halfway_f32(uint32_t bits);

#endif
