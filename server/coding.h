// SPDX-License-Identifier: Apache-2.0
//
// Content codings of bodies: gzip, and deflate, which is zlib's form of it (RFC 9110, section 8.4.1). Knows bytes and
// no HTTP; any thread.
#ifndef NORMD_SERVER_CODING_H
#define NORMD_SERVER_CODING_H

#include <stdbool.h>
#include <stddef.h>

#include "../proto/buffer.h"
#include "../proto/message.h"

enum coding { CODING_NONE, CODING_GZIP, CODING_DEFLATE };

// Their names in Content-Encoding and Accept-Encoding, indexed by enum coding; CODING_NONE is identity.
extern const char *const coding_names[];
#define CODING_ALL "gzip, deflate" // that are decoded

// Appends what `from` holds in this coding, as long as that is not more than `limit` bytes. False where `error` was
// filled in.
bool coding_decode(struct buffer *out, const struct buffer *from, enum coding coding, size_t limit,
                   struct msg_error *error);

// Appends the pieces, one behind the other, in this coding: fast rather than small. False where `out` cannot grow, or
// where it would not become smaller than the pieces by a twentieth at least; what it holds is then of no use.
bool coding_encode(struct buffer *out, const struct msg_piece *pieces, size_t count, enum coding coding);

#endif
