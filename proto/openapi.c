// SPDX-License-Identifier: Apache-2.0
#include "openapi.h"

// .incbin is understood by gcc's and clang's assemblers alike; the Makefile makes this file depend on the YAML one.
__asm__(".section .rodata\n"
        ".global proto_openapi_text\n"
        ".hidden proto_openapi_text\n"
        "proto_openapi_text:\n"
        ".incbin \"proto/openapi.yaml\"\n"
        ".hidden proto_openapi_end\n"
        ".global proto_openapi_end\n"
        "proto_openapi_end:\n"
        ".previous\n");

extern const char proto_openapi_end[];

size_t proto_openapi_size(void) {
    return (size_t)(proto_openapi_end - proto_openapi_text);
}
