// SPDX-License-Identifier: Apache-2.0
#include "coding.h"

#include <limits.h>
#include <string.h>
#include <zlib.h>

const char *const coding_names[] = {[CODING_NONE] = "identity", [CODING_GZIP] = "gzip", [CODING_DEFLATE] = "deflate"};

#define STEP_LEAST ((size_t)16 * 1024) // and where the budget is almost full
#define STEP ((size_t)256 * 1024)      // by which output grows at least
#define SAMPLE ((size_t)128 * 1024)    // of the input, after which it must have been worth it so far
#define PIECE_MAX ((size_t)1 << 30)    // that zlib, whose sizes are unsigned, is given at a time
_Static_assert(PIECE_MAX <= UINT_MAX, "zlib's sizes");

// zlib's way to say which form it is to read or write.
static int window_bits(enum coding coding) {
    return coding == CODING_GZIP ? MAX_WBITS + 16 : MAX_WBITS;
}

// ---- decoding

static bool refuse(struct msg_error *error, enum coding coding, const char *what) {
    return msg_fail(error, MSG_MALFORMED_FILE, NULL, "the body is not %s: %s", coding_names[coding], what);
}

// Room for what comes next, but not for more than a byte over the limit.
static bool make_room(struct buffer *out, size_t limit) {
    if (out->capacity > out->size) return true;
    const size_t left = limit - out->size + 1, step = out->size > STEP ? out->size / 2 : STEP;
    return buffer_reserve(out, out->size + (step < left ? step : left)) ||
           buffer_grow(out, left < STEP_LEAST ? left : STEP_LEAST);
}

// One step of zlib: the status that it gives.
static int inflate_some(z_stream *stream, struct buffer *out) {
    const size_t room = out->capacity - out->size;
    stream->next_out = out->data + out->size;
    stream->avail_out = (unsigned)(room < PIECE_MAX ? room : PIECE_MAX);
    const unsigned given = stream->avail_out;
    const int status = inflate(stream, Z_NO_FLUSH);
    out->size += given - stream->avail_out;
    return status;
}

static bool inflate_all(z_stream *stream, struct buffer *out, const struct buffer *from, enum coding coding,
                        size_t limit, struct msg_error *error) {
    const size_t begin = out->size;
    size_t fed = 0;
    while (true) {
        if (stream->avail_in == 0) {
            const size_t left = from->size - fed;
            stream->next_in = from->data + fed;
            stream->avail_in = (unsigned)(left < PIECE_MAX ? left : PIECE_MAX);
            fed += stream->avail_in;
        }
        if (!make_room(out, begin + limit))
            return msg_fail(error, MSG_MEMORY_FULL, NULL,
                            "the decoded body does not fit what is left of the memory budget");
        const int status = inflate_some(stream, out);
        if (out->size - begin > limit)
            return msg_fail(error, MSG_BODY_TOO_LARGE, NULL, "the decoded body is larger than the limit of %zu bytes",
                            limit);
        const bool more = stream->avail_in > 0 || fed < from->size;
        if (status == Z_STREAM_END && !more) return true;
        // A file of gzip may have several members.
        if (status == Z_STREAM_END && (coding != CODING_GZIP || inflateReset(stream) != Z_OK))
            return refuse(error, coding, "bytes follow its end");
        if (status == Z_MEM_ERROR) return msg_fail(error, MSG_MEMORY_FULL, NULL, "out of memory");
        if (status != Z_OK && status != Z_STREAM_END && status != Z_BUF_ERROR)
            return refuse(error, coding, stream->msg != NULL ? stream->msg : "it is damaged");
        if (!more && out->size < out->capacity) return refuse(error, coding, "it ends too early");
    }
}

bool coding_decode(struct buffer *out, const struct buffer *from, enum coding coding, size_t limit,
                   struct msg_error *error) {
    z_stream stream = {.next_in = Z_NULL};
    if (inflateInit2(&stream, window_bits(coding)) != Z_OK)
        return msg_fail(error, MSG_MEMORY_FULL, NULL, "out of memory");
    const bool ok = inflate_all(&stream, out, from, coding, limit, error);
    inflateEnd(&stream);
    return ok;
}

// ---- encoding

static bool is_worth(size_t encoded, size_t plain) {
    return encoded <= plain - plain / 20;
}

// Gives zlib all of the bytes; `flush` at their end.
static bool deflate_piece(z_stream *stream, struct buffer *out, const unsigned char *data, size_t size, int flush) {
    size_t fed = 0;
    int status = Z_OK;
    do {
        const size_t left = size - fed, piece = left < SAMPLE ? left : SAMPLE;
        stream->next_in = (unsigned char *)(uintptr_t)(data + fed);
        stream->avail_in = (unsigned)piece;
        fed += piece;
        do {
            if (out->size == out->capacity && !buffer_grow(out, STEP)) return false;
            const size_t room = out->capacity - out->size;
            stream->next_out = out->data + out->size;
            stream->avail_out = (unsigned)(room < PIECE_MAX ? room : PIECE_MAX);
            const unsigned given = stream->avail_out;
            status = deflate(stream, fed == size ? flush : Z_NO_FLUSH);
            out->size += given - stream->avail_out;
            if (status == Z_STREAM_ERROR) return false;
        } while (stream->avail_out == 0 || stream->avail_in > 0);
        if (stream->total_in >= SAMPLE && !is_worth(stream->total_out, stream->total_in)) return false;
    } while (fed < size);
    return flush != Z_FINISH || status == Z_STREAM_END;
}

bool coding_encode(struct buffer *out, const struct msg_piece *pieces, size_t count, enum coding coding) {
    z_stream stream = {.next_in = Z_NULL};
    if (deflateInit2(&stream, Z_BEST_SPEED, Z_DEFLATED, window_bits(coding), 8, Z_DEFAULT_STRATEGY) != Z_OK)
        return false;
    bool ok = true;
    for (size_t i = 0; i < count && ok; i++)
        ok = deflate_piece(&stream, out, pieces[i].data, pieces[i].size, i + 1 < count ? Z_NO_FLUSH : Z_FINISH);
    ok = ok && is_worth(stream.total_out, stream.total_in);
    deflateEnd(&stream);
    return ok;
}
