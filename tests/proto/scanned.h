// SPDX-License-Identifier: Apache-2.0
//
// What the tests of the scanner share.
#ifndef NORMD_TESTS_PROTO_SCANNED_H
#define NORMD_TESTS_PROTO_SCANNED_H

#include "../../proto/scan.h"
#include "decoded.h"

// A text that is to be refused: with which code, and which pointer (NULL: none).
struct bad_text {
    const char *text;
    enum msg_code code;
    const char *pointer;
};

// Fails, naming the text, unless the error is that code with that pointer.
void expect_outcome(const char *text, const struct msg_error *error, enum msg_code code, const char *pointer);

#endif
