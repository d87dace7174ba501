// SPDX-License-Identifier: Apache-2.0
//
// Replies in tests: values to write, and what jansson reads of the text.
#ifndef NORMD_TESTS_PROTO_ENCODED_H
#define NORMD_TESTS_PROTO_ENCODED_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/json.h"
#include "number_check.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define VALUES 17

// The longest, shortest and oddest doubles, and those that are strings.
extern const double f64_values[VALUES];

// Such values of its type by turns; only >= 0: all the same one. For tensor_free.
struct tensor tensor_of(enum tensor_form form, enum wire_dtype wire, enum bn_dtype dtype, int rank, const size_t *dim,
                        int only);

// The reply, which ends with its line; fails the test where it is not JSON. For json_decref.
json_t *parse(const struct buffer *out);

// They fail the test where it is otherwise. Equal bits; any NaN equals any NaN.
void expect_real(double value, double expected);
void expect_vector(const json_t *json, const double *expected, size_t n); // expected NULL: null
void expect_integer(const json_t *object, const char *name, int64_t expected);
void expect_word(const json_t *object, const char *name, const char *expected);
void expect_names(const json_t *object, const char *expected); // of its members in their order, a space behind each

// A configuration whose fields are all as long as they can be, and the check of one in a reply.
extern const struct msg_config any_config;
void expect_config(const json_t *json, const struct msg_config *c, double new_weight, int ddof);

#endif
