// SPDX-License-Identifier: Apache-2.0
//
// What the system knows of a socket's peer. A file of its own, since one of its structs is in a header that does not go
// with the C library's. Any thread.
#ifndef NORMD_SERVER_PEER_H
#define NORMD_SERVER_PEER_H

#include <stdbool.h>
#include <stdint.h>

// The bytes that the peer has acknowledged since it connected; 0 where that is not known.
uint64_t peer_taken(int fd);

// Whether the peer has closed, or its sending side at least, and all that it sent was read.
bool peer_closed(int fd);

#endif
