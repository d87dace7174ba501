// SPDX-License-Identifier: Apache-2.0
//
// Memory for bodies, tensors and replies: growable, aligned for vector loads, and charged to a budget that many
// requests share. An allocation that would pass the budget fails; it never waits.
#ifndef NORMD_PROTO_BUFFER_H
#define NORMD_PROTO_BUFFER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#define BUFFER_ALIGNMENT 64

// A limit in bytes shared by threads. Zeroed but for `limit` is a fresh one.
struct budget {
    _Atomic size_t used;
    size_t limit;
    // Called, if set, where a charge does not fit: gives back what can be spared, at least `bytes` if possible, by
    // budget_release, and returns whether it gave back anything.
    bool (*reclaim)(void *context, size_t bytes);
    void *context;
};

// False where it does not fit, even after reclaim; then nothing is charged.
bool budget_charge(struct budget *budget, size_t bytes);
void budget_release(struct budget *budget, size_t bytes);

// From here on what this thread charges to the budget and releases is counted, beyond the bytes that it holds already:
// while it works on one request, that is what the request takes.
void budget_watch(const struct budget *budget, size_t held);

// What the request would take by now, had the last charge not failed; 0 where it did not. What is more than the whole
// budget never fits.
size_t budget_wanted(void);

// A zeroed buffer with `budget` set is an empty one. One owner at a time. A borrowed one (buffer_borrow) has data and
// size, which are another buffer's, but no capacity: nothing of it is freed, and where it grows it copies.
struct buffer {
    unsigned char *data; // NULL while capacity is 0, else aligned to BUFFER_ALIGNMENT; a borrowed one's may be anything
    size_t size;         // bytes in use
    size_t capacity;     // bytes charged to the budget
    size_t refused;      // where the last growth failed, the capacity that it asked for; else 0
    void *memory;        // the allocation that data lie in
    struct budget *budget; // NULL: not charged
};

// Makes room for at least `capacity` bytes in all, exactly that many where it must grow, or what a block that lies
// ready has: only the difference is charged. False where the budget or the system has no memory; but for `refused` the
// buffer is as it was then.
bool buffer_reserve(struct buffer *buffer, size_t capacity);

// The same out of a block that lies ready (spare.h) and has `least` to `most` bytes. False where there is none, or the
// budget has no room; the buffer is as it was then.
bool buffer_reserve_spare(struct buffer *buffer, size_t least, size_t most);

// Makes room for `more` bytes behind size, growing by half at least, or by less where the budget is almost full.
bool buffer_grow(struct buffer *buffer, size_t more);

// Appends. False as buffer_grow.
bool buffer_append(struct buffer *buffer, const void *data, size_t size);

// Appends zeros, BUFFER_ALIGNMENT at most. False as buffer_grow.
bool buffer_pad(struct buffer *buffer, size_t size);

// Appends a text of less than 512 bytes. False as buffer_grow, and where it is longer.
__attribute__((format(printf, 2, 3))) bool buffer_print(struct buffer *buffer, const char *format, ...);

// Gives back what is reserved beyond size, where that is worth it. Never fails, may move data.
void buffer_trim(struct buffer *buffer);

// The same whatever it is worth, but for less than an alignment.
void buffer_fit(struct buffer *buffer);

// The part [at, at + size) of a buffer that holds it, and outlives the result without growing.
struct buffer buffer_borrow(const struct buffer *from, size_t at, size_t size);

// Bytes that there is room for: the capacity, or the size of a borrowed one.
size_t buffer_room(const struct buffer *buffer);

// Takes over what the source holds; what `to` held is freed, the source is empty after and keeps its budget.
void buffer_move(struct buffer *to, struct buffer *from);

// Frees the memory and returns the charge; the buffer is empty after and keeps its budget.
void buffer_free(struct buffer *buffer);

#endif
