// SPDX-License-Identifier: Apache-2.0
#include "registry.h"

#include <stdlib.h>
#include <string.h>
#include <uv.h>

// Slots sorted by name: look-ups are a binary search, lists and prefixes a walk. An insert moves pointers, which for
// 100 000 layers costs less than the commit that it waits for.
struct registry {
    uv_rwlock_t lock;
    struct layer **slots;
    size_t count, capacity;
    _Atomic size_t state_bytes;
};

void layer_ref(struct layer *layer) {
    atomic_fetch_add_explicit(&layer->refs, 1, memory_order_relaxed);
}

void layer_release(struct layer *layer) {
    if (layer == NULL || atomic_fetch_sub_explicit(&layer->refs, 1, memory_order_acq_rel) != 1) return;
    layer_state_release(layer->state);
    layer_state_release(layer->pending);
    free(layer);
}

struct registry *registry_new(void) {
    struct registry *const registry = calloc(1, sizeof *registry);
    if (registry == NULL) return NULL;
    if (uv_rwlock_init(&registry->lock) != 0) {
        free(registry);
        return NULL;
    }
    return registry;
}

void registry_free(struct registry **registry) {
    struct registry *const r = *registry;
    *registry = NULL;
    if (r == NULL) return;
    for (size_t i = 0; i < r->count; i++) layer_release(r->slots[i]);
    free(r->slots);
    uv_rwlock_destroy(&r->lock);
    free(r);
}

// The index of the first slot whose name is not before `name`.
static size_t lower_bound(const struct registry *r, const char *name) {
    size_t low = 0, high = r->count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (strcmp(r->slots[middle]->name, name) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static struct layer *slot_of(const struct registry *r, const char *name) {
    const size_t i = lower_bound(r, name);
    return i < r->count && strcmp(r->slots[i]->name, name) == 0 ? r->slots[i] : NULL;
}

struct layer *registry_find(struct registry *registry, const char *name, const struct layer_state **state) {
    *state = NULL;
    uv_rwlock_rdlock(&registry->lock);
    struct layer *layer = slot_of(registry, name);
    if (layer != NULL && layer->state != NULL) {
        *state = layer_state_ref(layer->state);
        layer_ref(layer);
    } else {
        layer = NULL;
    }
    uv_rwlock_rdunlock(&registry->lock);
    return layer;
}

bool registry_list(struct registry *registry, const char *prefix, const char *after, size_t limit,
                   struct registry_item **items, size_t *count, bool *more) {
    const size_t prefix_length = strlen(prefix);
    *count = 0;
    *more = false;
    uv_rwlock_rdlock(&registry->lock);
    const size_t room = limit < registry->count ? limit : registry->count;
    *items = calloc(room + 1, sizeof **items);
    size_t i = lower_bound(registry, after != NULL && strcmp(after, prefix) > 0 ? after : prefix);
    for (; *items != NULL && i < registry->count; i++) {
        struct layer *const layer = registry->slots[i];
        if (strncmp(layer->name, prefix, prefix_length) != 0) break;
        if (layer->state == NULL || (after != NULL && strcmp(layer->name, after) <= 0)) continue;
        *more = *count == limit;
        if (*more) break;
        layer_ref(layer);
        (*items)[(*count)++] = (struct registry_item){layer, layer_state_ref(layer->state)};
    }
    uv_rwlock_rdunlock(&registry->lock);
    return *items != NULL;
}

void registry_items_free(struct registry_item **items, size_t count) {
    for (size_t i = 0; i < count; i++) {
        layer_release((*items)[i].layer);
        layer_state_release((*items)[i].state);
    }
    free(*items);
    *items = NULL;
}

struct layer *registry_next(struct registry *registry, const char *name, const struct layer_state **state) {
    struct layer *layer = NULL;
    *state = NULL;
    uv_rwlock_rdlock(&registry->lock);
    size_t i = lower_bound(registry, name);
    if (i < registry->count && strcmp(registry->slots[i]->name, name) == 0) i++;
    while (i < registry->count && registry->slots[i]->state == NULL) i++;
    if (i < registry->count) {
        layer = registry->slots[i];
        layer_ref(layer);
        *state = layer_state_ref(layer->state);
    }
    uv_rwlock_rdunlock(&registry->lock);
    return layer;
}

// The writer thread alone inserts and removes, so it may look without the lock.
struct layer *registry_peek(struct registry *registry, const char *name) {
    return slot_of(registry, name);
}

static bool grow(struct registry *registry) {
    if (registry->count < registry->capacity) return true;
    const size_t capacity = registry->capacity * 2 + 64;
    struct layer **const larger = reallocarray(registry->slots, capacity, sizeof *larger);
    if (larger == NULL) return false;
    registry->slots = larger;
    registry->capacity = capacity;
    return true;
}

struct layer *registry_slot(struct registry *registry, const char *name) {
    struct layer *layer = slot_of(registry, name);
    if (layer != NULL) return layer;
    layer = calloc(1, sizeof *layer);
    if (layer == NULL) return NULL;
    layer->refs = 1;
    memcpy(layer->name, name, strlen(name) + 1);
    uv_rwlock_wrlock(&registry->lock);
    const bool room = grow(registry);
    if (room) {
        const size_t i = lower_bound(registry, name);
        memmove(registry->slots + i + 1, registry->slots + i, (registry->count - i) * sizeof *registry->slots);
        registry->slots[i] = layer;
        registry->count++;
    }
    uv_rwlock_wrunlock(&registry->lock);
    if (room) return layer;
    free(layer);
    return NULL;
}

void registry_each_slot(struct registry *registry, const char *prefix, void (*each)(void *context, const char *name),
                        void *context) {
    const size_t length = strlen(prefix);
    for (size_t i = lower_bound(registry, prefix); i < registry->count; i++) {
        const struct layer *const layer = registry->slots[i];
        if (strncmp(layer->name, prefix, length) != 0) return;
        if (layer->changed ? layer->pending != NULL : layer->state != NULL) each(context, layer->name);
    }
}

// Counters and cached passes are the layer's, not the name's: a layer made anew under an old name starts at 0.
static void reset_counters(struct layer *layer) {
    atomic_store(&layer->train_forward, 0);
    atomic_store(&layer->inference, 0);
    atomic_store(&layer->backward, 0);
    atomic_store(&layer->skipped, 0);
    struct layer_times *const times = &layer->times;
    _Atomic uint64_t *const sums[] = {&times->successes,  &times->success_ns, &times->failures,
                                      &times->failure_ns, &times->queue_ns,   &times->input_ns,
                                      &times->infer_ns,   &times->output_ns,  &times->last_ms};
    for (size_t i = 0; i < sizeof sums / sizeof sums[0]; i++) atomic_store(sums[i], 0);
}

// Removes one slot in place. Lock held for writing.
static void unlink_slot(struct registry *registry, const struct layer *layer) {
    const size_t i = lower_bound(registry, layer->name);
    registry->count--;
    memmove(registry->slots + i, registry->slots + i + 1, (registry->count - i) * sizeof *registry->slots);
}

void registry_publish(struct registry *registry, struct layer *const *layers, size_t count) {
    uv_rwlock_wrlock(&registry->lock);
    for (size_t i = 0; i < count; i++) {
        struct layer *const layer = layers[i];
        const struct layer_state *const old = layer->state;
        const struct layer_state *const next = layer->pending;
        if (old != NULL && next != NULL && old->id != next->id) reset_counters(layer);
        layer->state = next;
        atomic_store(&layer->id, next != NULL ? next->id : 0);
        layer->pending = (struct layer_state *)(uintptr_t)old; // released below, outside of the lock
        layer->changed = false;
        atomic_fetch_add(&registry->state_bytes, layer_state_size(next) - layer_state_size(old));
        if (next == NULL) unlink_slot(registry, layer);
    }
    uv_rwlock_wrunlock(&registry->lock);
    for (size_t i = 0; i < count; i++) {
        struct layer *const layer = layers[i];
        const bool gone = layer->state == NULL;
        layer_state_release(layer->pending);
        layer->pending = NULL;
        if (gone) layer_release(layer);
    }
}

void registry_discard(struct registry *registry, struct layer *const *layers, size_t count) {
    for (size_t i = 0; i < count; i++) {
        struct layer *const layer = layers[i];
        layer_state_release(layer->pending);
        layer->pending = NULL;
        layer->changed = false;
        if (layer->state != NULL) continue;
        uv_rwlock_wrlock(&registry->lock);
        unlink_slot(registry, layer);
        uv_rwlock_wrunlock(&registry->lock);
        layer_release(layer);
    }
}

size_t registry_state_bytes(const struct registry *registry) {
    return atomic_load(&registry->state_bytes);
}

size_t registry_count(struct registry *registry) {
    size_t count = 0;
    uv_rwlock_rdlock(&registry->lock);
    for (size_t i = 0; i < registry->count; i++) count += registry->slots[i]->state != NULL;
    uv_rwlock_rdunlock(&registry->lock);
    return count;
}
