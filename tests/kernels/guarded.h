// SPDX-License-Identifier: Apache-2.0
//
// Memory that notices what its user must not touch: pages without access on both sides, so that a read or write there
// crashes, and guard bands between them and the data.
#ifndef NORMD_TESTS_KERNELS_GUARDED_H
#define NORMD_TESTS_KERNELS_GUARDED_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

enum { GUARD_BYTES = 256, GUARD_BYTE = 0xa5, FENCE_BYTES = 65536 };

// Where data lie in their room; every larger value is that many elements past a boundary of 64 bytes.
enum place { PLACE_AT_END, PLACE_AT_BEGIN, PLACE_INSIDE };

struct guarded {
    unsigned char *room; // between the fences
    size_t room_bytes;
    void *data;
    size_t bytes;
};

// Rooms of the smallest size, kept for the next use: making one takes longer than most calls. Not for several threads.
struct guarded_spares {
    unsigned char *rooms[64];
    size_t count;
};

static inline struct guarded_spares *guarded_spares(void) {
    static struct guarded_spares spares;
    return &spares;
}

static inline struct guarded guarded_room(size_t bytes) {
    struct guarded g = {.room_bytes = (bytes + 2 * GUARD_BYTES + FENCE_BYTES - 1) / FENCE_BYTES * FENCE_BYTES};
    struct guarded_spares *const spares = guarded_spares();
    if (g.room_bytes == FENCE_BYTES && spares->count > 0) {
        g.room = spares->rooms[--spares->count];
        return g;
    }
    unsigned char *const map =
        mmap(NULL, g.room_bytes + 2 * FENCE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(map != MAP_FAILED);
    g.room = map + FENCE_BYTES;
    assert_int_equal(mprotect(g.room, g.room_bytes, PROT_READ | PROT_WRITE), 0);
    return g;
}

static inline void guarded_place(struct guarded *g, size_t n, size_t element, size_t place) {
    unsigned char *const end = g->room + g->room_bytes;
    g->bytes = n * element;
    unsigned char *data = g->room;
    if (place == PLACE_AT_END) data = end - g->bytes;
    if (place >= PLACE_INSIDE) data = g->room + GUARD_BYTES / 2 + (place - PLACE_INSIDE) * element;
    assert_true(data + g->bytes <= end);
    g->data = data;
    if (g->room_bytes == FENCE_BYTES) memset(data, 0xee, g->bytes); // may be what an earlier use left
    const size_t before = (size_t)(data - g->room), after = (size_t)(end - data) - g->bytes;
    memset(data - (before < GUARD_BYTES ? before : GUARD_BYTES), GUARD_BYTE,
           before < GUARD_BYTES ? before : GUARD_BYTES);
    memset(data + g->bytes, GUARD_BYTE, after < GUARD_BYTES ? after : GUARD_BYTES);
}

// Whether nothing was written into the guard bands.
static inline bool guarded_intact(const struct guarded *g) {
    const unsigned char *const data = g->data, *const end = g->room + g->room_bytes;
    for (const unsigned char *p = data; p > g->room && data - p < GUARD_BYTES; p--) {
        if (p[-1] != GUARD_BYTE) return false;
    }
    for (const unsigned char *p = data + g->bytes; p < end && p - data < (ptrdiff_t)g->bytes + GUARD_BYTES; p++) {
        if (*p != GUARD_BYTE) return false;
    }
    return true;
}

static inline void guarded_free(struct guarded *g) {
    if (g->data) assert_true(guarded_intact(g));
    struct guarded_spares *const spares = guarded_spares();
    if (g->room_bytes == FENCE_BYTES && spares->count < sizeof spares->rooms / sizeof *spares->rooms)
        spares->rooms[spares->count++] = g->room;
    else
        munmap(g->room - FENCE_BYTES, g->room_bytes + 2 * FENCE_BYTES);
    *g = (struct guarded){0};
}

#endif
