// SPDX-License-Identifier: Apache-2.0
//
// HOST:PORT addresses: listening on one, and asking a server at one whether it is ready.
#ifndef NORMD_SERVER_ADDRESS_H
#define NORMD_SERVER_ADDRESS_H

#include <stdbool.h>
#include <stddef.h>

#define ADDRESS_MAX 300

// A listening, non-blocking socket at HOST:PORT or [V6]:PORT, or -1 with `why` filled in. `actual` gets the host as
// given and the port that was had, fit for a URL.
int address_listen(const char *address, char actual[ADDRESS_MAX], char *why, size_t why_size);

// True where the server at the address answers GET /readyz with 200 within 3 s; else `why` is filled in.
bool address_is_ready(const char *address, char *why, size_t why_size);

#endif
