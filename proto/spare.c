// SPDX-License-Identifier: Apache-2.0
#include "spare.h"

#include <pthread.h>
#include <stdlib.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(memory, size) ((void)(memory), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(memory, size) ((void)(memory), (void)(size))
#endif

#define SLOTS 8
#define KEPT_NS UINT64_C(2000000000)

// Unused where memory is NULL.
struct block {
    void *memory;
    size_t size;
    uint64_t since_ns; // the first time that spare_expire met it; 0: not yet
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; // a leaf; guards all of this
static struct block blocks[SLOTS];
static size_t limit, held;

void spare_limit(size_t bytes) {
    pthread_mutex_lock(&lock);
    limit = bytes;
    pthread_mutex_unlock(&lock);
}

bool spare_give(void *memory, size_t size) {
    bool kept = false;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < SLOTS && !kept && held <= limit && size <= limit - held; i++) {
        if (blocks[i].memory != NULL) continue;
        ASAN_POISON_MEMORY_REGION(memory, size);
        blocks[i] = (struct block){memory, size, 0};
        held += size;
        kept = true;
    }
    pthread_mutex_unlock(&lock);
    return kept;
}

// The block leaves the table. Lock held.
static struct block release(struct block *block) {
    const struct block released = *block;
    *block = (struct block){0};
    held -= released.size;
    ASAN_UNPOISON_MEMORY_REGION(released.memory, released.size);
    return released;
}

size_t spare_take(void **memory, size_t least, size_t most) {
    struct block *best = NULL, taken = {0};
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < SLOTS; i++) {
        struct block *const block = &blocks[i];
        if (block->memory == NULL || block->size < least || block->size > most) continue;
        if (best == NULL || block->size < best->size) best = block;
    }
    if (best != NULL) taken = release(best);
    pthread_mutex_unlock(&lock);
    *memory = taken.memory;
    return taken.size;
}

// A block that is too old, or one without memory.
static struct block take_old(uint64_t now_ns) {
    struct block old = {0};
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < SLOTS && old.memory == NULL; i++) {
        struct block *const block = &blocks[i];
        if (block->memory == NULL) continue;
        if (block->since_ns == 0) block->since_ns = now_ns;
        if (now_ns - block->since_ns > KEPT_NS) old = release(block);
    }
    pthread_mutex_unlock(&lock);
    return old;
}

void spare_expire(uint64_t now_ns) {
    for (struct block old; (old = take_old(now_ns)).memory != NULL;) free(old.memory);
}
