// SPDX-License-Identifier: Apache-2.0
//
// How many requests a client may make: each address has a bucket of one second's worth, which fills at the rate (the
// generic cell rate algorithm, ITU-T I.371, annex A, with one time for each address). A client is an IPv4 address, or
// the first 64 bits of an IPv6 address, for a host mostly has all of what follows.
#ifndef NORMD_SERVER_RATE_H
#define NORMD_SERVER_RATE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

struct rate;

// per_second: at least 1. NULL: no memory.
struct rate *rate_new(uint64_t per_second);

// Counts a request of the client at `now_ns`; false where it is one too many, which costs the client nothing, and
// within a second there is room again. Of more clients than a few thousand at once those are forgotten that used least.
// Any thread.
bool rate_take(struct rate *rate, const struct sockaddr *client, uint64_t now_ns);

// NULL is allowed.
void rate_free(struct rate **rate);

#endif
