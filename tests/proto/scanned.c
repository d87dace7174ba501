// SPDX-License-Identifier: Apache-2.0
#include "scanned.h"

void expect_outcome(const char *text, const struct msg_error *error, enum msg_code code, const char *pointer) {
    if (error->code != code) {
        fail_msg("%s: %s (%s), expected %s", text, msg_codes[error->code].name, error->detail, msg_codes[code].name);
    }
    if (code == MSG_OK) return;
    if (error->has_pointer != (pointer != NULL)) fail_msg("%s: pointer \"%s\"", text, error->pointer);
    if (pointer != NULL) assert_string_equal(error->pointer, pointer);
}
