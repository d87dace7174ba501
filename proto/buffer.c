// SPDX-License-Identifier: Apache-2.0
#include "buffer.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "spare.h"

// Below this, what a trim would give back is not worth moving the bytes for.
#define TRIM_WORTH ((size_t)16 * 1024)

static _Thread_local struct {
    const struct budget *budget;
    ptrdiff_t held; // negative where memory of others was released
    size_t wanted;
} watch;

static void charged(const struct budget *budget, size_t bytes) {
    if (budget != watch.budget) return;
    watch.held += (ptrdiff_t)bytes;
    watch.wanted = 0;
}

// Returns false.
static bool refuse(const struct budget *budget, size_t bytes) {
    const size_t held = watch.held > 0 ? (size_t)watch.held : 0;
    if (budget == watch.budget) watch.wanted = bytes > SIZE_MAX - held ? SIZE_MAX : held + bytes;
    return false;
}

static bool try_charge(struct budget *budget, size_t bytes) {
    size_t used = atomic_load_explicit(&budget->used, memory_order_relaxed);
    do {
        if (used > budget->limit || bytes > budget->limit - used) return false;
    } while (!atomic_compare_exchange_weak_explicit(&budget->used, &used, used + bytes, memory_order_relaxed,
                                                    memory_order_relaxed));
    return true;
}

// What is reclaimed was not of the request that is watched.
static bool reclaim(struct budget *budget, size_t bytes) {
    if (budget->reclaim == NULL) return false;
    const ptrdiff_t held = watch.held;
    const bool any = budget->reclaim(budget->context, bytes);
    watch.held = held;
    return any;
}

static bool charge(struct budget *budget, size_t bytes) {
    if (try_charge(budget, bytes)) return true;
    while (bytes <= budget->limit && reclaim(budget, bytes)) {
        if (try_charge(budget, bytes)) return true;
    }
    return false;
}

bool budget_charge(struct budget *budget, size_t bytes) {
    if (budget == NULL) return true;
    if (!charge(budget, bytes)) return refuse(budget, bytes);
    charged(budget, bytes);
    return true;
}

void budget_release(struct budget *budget, size_t bytes) {
    if (budget == NULL) return;
    atomic_fetch_sub_explicit(&budget->used, bytes, memory_order_relaxed);
    if (budget == watch.budget) watch.held -= (ptrdiff_t)bytes;
}

void budget_watch(const struct budget *budget, size_t held) {
    watch.budget = budget;
    watch.held = (ptrdiff_t)held;
    watch.wanted = 0;
}

size_t budget_wanted(void) {
    return watch.wanted;
}

// Where the data begin within an allocation, so that they are aligned.
static size_t offset_in(const void *memory) {
    return -(uintptr_t)memory % BUFFER_ALIGNMENT;
}

static void set_memory(struct buffer *buffer, unsigned char *memory, size_t capacity) {
    buffer->memory = memory;
    buffer->data = memory + offset_in(memory);
    buffer->capacity = capacity;
}

static void give_back(void *memory, size_t capacity) {
    if (capacity < SPARE_LEAST || !spare_give(memory, capacity)) free(memory);
}

// A fault for each page of a new block takes longer than to fill it. Where the system gives huge pages to who asks, it
// is asked; from this size on malloc maps each block apart, so that what it is asked for is all of a mapping, which can
// still grow and move as one.
#define HUGE_LEAST ((size_t)4 * 1024 * 1024)

static void ask_for_huge_pages(void *memory, size_t size) {
#ifdef MADV_HUGEPAGE
    const uintptr_t page = (uintptr_t)getpagesize(), at = (uintptr_t)memory;
    const uintptr_t start = at & ~(page - 1), end = (at + size + page - 1) & ~(page - 1);
    if (size >= HUGE_LEAST) madvise((void *)start, end - start, MADV_HUGEPAGE);
#else
    (void)memory;
    (void)size;
#endif
}

// realloc moves large blocks by their pages, not their bytes, so that old and new need not be there at once.
static bool resize(struct buffer *buffer, size_t capacity) {
    const size_t old = offset_in(buffer->memory);
    unsigned char *const memory = realloc(buffer->memory, capacity + BUFFER_ALIGNMENT - 1);
    if (memory == NULL) return false;
    if (capacity > buffer->capacity) ask_for_huge_pages(memory, capacity + BUFFER_ALIGNMENT - 1);
    const size_t new = offset_in(memory);
    if (new != old && buffer->size > 0) memmove(memory + new, memory + old, buffer->size);
    set_memory(buffer, memory, capacity);
    return true;
}

// Gives a borrowed buffer memory of its own.
static bool copy(struct buffer *buffer, size_t capacity) {
    const unsigned char *const lent = buffer->data;
    unsigned char *const memory = realloc(NULL, capacity + BUFFER_ALIGNMENT - 1);
    if (memory == NULL) return false;
    set_memory(buffer, memory, capacity);
    memcpy(buffer->data, lent, buffer->size);
    return true;
}

bool buffer_reserve_spare(struct buffer *buffer, size_t least, size_t most) {
    if (least < SPARE_LEAST || least <= buffer->capacity) return false;
    const struct buffer old = *buffer;
    void *memory;
    const size_t size = spare_take(&memory, least, most);
    if (size == 0) return false;
    if (!budget_charge(buffer->budget, size - old.capacity)) {
        give_back(memory, size);
        return false;
    }
    set_memory(buffer, memory, size);
    if (old.size > 0) memcpy(buffer->data, old.data, old.size);
    give_back(old.memory, old.capacity);
    return true;
}

bool buffer_reserve(struct buffer *buffer, size_t capacity) {
    if (capacity <= buffer->capacity || buffer_reserve_spare(buffer, capacity, capacity + capacity / 4)) return true;
    const size_t more = capacity - buffer->capacity;
    buffer->refused = capacity;
    if (capacity > PTRDIFF_MAX - BUFFER_ALIGNMENT) return refuse(buffer->budget, more);
    if (!budget_charge(buffer->budget, more)) return false;
    const bool borrowed = buffer->memory == NULL && buffer->size > 0;
    if (!(borrowed ? copy : resize)(buffer, capacity)) {
        budget_release(buffer->budget, more);
        return false;
    }
    buffer->refused = 0;
    return true;
}

// Grows by a share of what is there, or a long growth in small steps would be quadratic; by a smaller one where the
// budget does not have more.
bool buffer_grow(struct buffer *buffer, size_t more) {
    static const size_t shares[] = {2, 8, 64};
    if (buffer->size <= buffer->capacity && more <= buffer->capacity - buffer->size) return true;
    if (more > PTRDIFF_MAX - buffer->size) {
        buffer->refused = SIZE_MAX;
        return refuse(buffer->budget, more);
    }
    const size_t need = buffer->size + more;
    for (size_t i = 0; i < sizeof shares / sizeof shares[0]; i++) {
        const size_t capacity = buffer->capacity + buffer->capacity / shares[i] + (i == 0 ? BUFFER_ALIGNMENT : 0);
        if (buffer_reserve(buffer, capacity > need ? capacity : need)) return true;
        if (capacity <= need) break;
    }
    return false;
}

bool buffer_append(struct buffer *buffer, const void *data, size_t size) {
    if (!buffer_grow(buffer, size)) return false;
    if (size > 0) memcpy(buffer->data + buffer->size, data, size);
    buffer->size += size;
    return true;
}

bool buffer_pad(struct buffer *buffer, size_t size) {
    static const unsigned char zeros[BUFFER_ALIGNMENT] = {0};
    return buffer_append(buffer, zeros, size);
}

bool buffer_print(struct buffer *buffer, const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    const int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return length >= 0 && (size_t)length < sizeof text && buffer_append(buffer, text, (size_t)length);
}

void buffer_trim(struct buffer *buffer) {
    if (buffer->memory == NULL) return;
    const size_t spare = buffer->capacity - buffer->size;
    if (spare >= TRIM_WORTH && spare >= buffer->size / 8) buffer_fit(buffer);
}

void buffer_fit(struct buffer *buffer) {
    if (buffer->memory == NULL) return;
    const size_t spare = buffer->capacity - buffer->size;
    if (spare < BUFFER_ALIGNMENT) return;
    if (buffer->size == 0) {
        buffer_free(buffer);
        return;
    }
    if (resize(buffer, buffer->size)) budget_release(buffer->budget, spare);
}

struct buffer buffer_borrow(const struct buffer *from, size_t at, size_t size) {
    return (struct buffer){.data = from->data + at, .size = size, .budget = from->budget};
}

size_t buffer_room(const struct buffer *buffer) {
    return buffer->memory != NULL ? buffer->capacity : buffer->size;
}

void buffer_move(struct buffer *to, struct buffer *from) {
    if (to == from) return;
    buffer_free(to);
    *to = *from;
    *from = (struct buffer){.budget = from->budget};
}

void buffer_free(struct buffer *buffer) {
    give_back(buffer->memory, buffer->capacity);
    budget_release(buffer->budget, buffer->capacity);
    *buffer = (struct buffer){.budget = buffer->budget};
}
