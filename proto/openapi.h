// SPDX-License-Identifier: Apache-2.0
//
// The text of openapi.yaml, part of the library.
#ifndef NORMD_PROTO_OPENAPI_H
#define NORMD_PROTO_OPENAPI_H

#include <stddef.h>

extern const char proto_openapi_text[]; // not a string: no NUL at its end

size_t proto_openapi_size(void);

#endif
