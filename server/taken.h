// SPDX-License-Identifier: Apache-2.0
//
// What the peer of a connection has taken of the bytes that were sent. A file of its own, since the system's struct is
// in a header that does not go with the C library's.
#ifndef NORMD_SERVER_TAKEN_H
#define NORMD_SERVER_TAKEN_H

#include <stdint.h>

// The bytes that the peer has acknowledged since it connected; 0 where that is not known. Any thread.
uint64_t taken_bytes(int fd);

#endif
