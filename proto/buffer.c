// SPDX-License-Identifier: Apache-2.0
#include "buffer.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// Below this, what a trim would give back is not worth moving the bytes for.
#define TRIM_WORTH ((size_t)16 * 1024)

static bool try_charge(struct budget *budget, size_t bytes) {
    size_t used = atomic_load_explicit(&budget->used, memory_order_relaxed);
    do {
        if (used > budget->limit || bytes > budget->limit - used) return false;
    } while (!atomic_compare_exchange_weak_explicit(&budget->used, &used, used + bytes, memory_order_relaxed,
                                                    memory_order_relaxed));
    return true;
}

bool budget_charge(struct budget *budget, size_t bytes) {
    if (budget == NULL || try_charge(budget, bytes)) return true;
    if (bytes > budget->limit || budget->reclaim == NULL) return false;
    while (budget->reclaim(budget->context, bytes)) {
        if (try_charge(budget, bytes)) return true;
    }
    return false;
}

void budget_release(struct budget *budget, size_t bytes) {
    if (budget != NULL) atomic_fetch_sub_explicit(&budget->used, bytes, memory_order_relaxed);
}

static bool move_to(struct buffer *buffer, size_t capacity) {
    void *data = NULL;
    if (posix_memalign(&data, BUFFER_ALIGNMENT, capacity) != 0) return false;
    if (buffer->size > 0) memcpy(data, buffer->data, buffer->size);
    free(buffer->data);
    buffer->data = data;
    buffer->capacity = capacity;
    return true;
}

bool buffer_reserve(struct buffer *buffer, size_t capacity) {
    if (capacity <= buffer->capacity) return true;
    if (capacity > PTRDIFF_MAX) return false;
    // While the bytes move, both the old and the new memory are there.
    const size_t old = buffer->capacity;
    if (!budget_charge(buffer->budget, capacity)) return false;
    const bool moved = move_to(buffer, capacity);
    budget_release(buffer->budget, moved ? old : capacity);
    return moved;
}

bool buffer_grow(struct buffer *buffer, size_t more) {
    if (more <= buffer->capacity - buffer->size) return true;
    if (more > PTRDIFF_MAX - buffer->size) return false;
    const size_t need = buffer->size + more;
    const size_t least = buffer->capacity + buffer->capacity / 8; // less would make a long growth quadratic
    const size_t generous = buffer->capacity + buffer->capacity / 2 + BUFFER_ALIGNMENT;
    return (generous > need && buffer_reserve(buffer, generous)) || buffer_reserve(buffer, need > least ? need : least);
}

bool buffer_append(struct buffer *buffer, const void *data, size_t size) {
    if (!buffer_grow(buffer, size)) return false;
    if (size > 0) memcpy(buffer->data + buffer->size, data, size);
    buffer->size += size;
    return true;
}

void buffer_trim(struct buffer *buffer) {
    const size_t spare = buffer->capacity - buffer->size;
    if (spare < TRIM_WORTH || spare < buffer->size / 8) return;
    if (buffer->size == 0) {
        buffer_free(buffer);
        return;
    }
    if (move_to(buffer, buffer->size)) budget_release(buffer->budget, spare);
}

void buffer_free(struct buffer *buffer) {
    free(buffer->data);
    budget_release(buffer->budget, buffer->capacity);
    buffer->data = NULL;
    buffer->size = 0;
    buffer->capacity = 0;
}
