// SPDX-License-Identifier: Apache-2.0
//
// Large blocks of memory that lie ready for the next buffer: those that come anew from the system cost a fault for each
// page, which takes longer than to read a body into them. A few are kept, for a short time, and charged to nobody. Any
// thread.
#ifndef NORMD_PROTO_SPARE_H
#define NORMD_PROTO_SPARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Smaller blocks are left to malloc.
#define SPARE_LEAST ((size_t)1024 * 1024)

// The most bytes to keep; 0, as it is at the start: none.
void spare_limit(size_t bytes);

// Keeps a block that malloc gave, of so many usable bytes, to be taken again or freed. False: it stays the caller's.
bool spare_give(void *memory, size_t size);

// The smallest block of `least` to `most` bytes that is kept, now the caller's; returns its size, 0 where there is
// none.
size_t spare_take(void **memory, size_t least, size_t most);

// Frees what was not needed for a while; to be called now and then, with a clock that goes on.
void spare_expire(uint64_t now_ns);

#endif
