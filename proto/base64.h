// SPDX-License-Identifier: Apache-2.0
//
// Base64 of RFC 4648, section 4: the standard alphabet, padding required, no line breaks. The tensor path's own,
// because decoding goes straight into the tensor's buffer. Any thread.
#ifndef NORMD_PROTO_BASE64_H
#define NORMD_PROTO_BASE64_H

#include <stdbool.h>
#include <stddef.h>

// Bytes of text for `size` bytes of data, without NUL. size must be at most PTRDIFF_MAX / 2.
size_t base64_text_size(size_t size);

// Writes base64_text_size(size) bytes at `text` and returns their end.
char *base64_encode(char *text, const void *data, size_t size);

// The number of data bytes that `length` bytes of well-formed text hold. False where the length is no multiple of 4.
bool base64_data_size(size_t *size, const char *text, size_t length);

// Decodes into `data`, which has room for base64_data_size bytes. False where a byte is not of the alphabet, padding is
// misplaced, or the bits behind the last byte are not zero; *bad is then the offset of the first such byte of the text.
bool base64_decode(void *data, const char *text, size_t length, size_t *bad);

#endif
