// SPDX-License-Identifier: Apache-2.0
#include "writer.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "log.h"

#define QUEUE_MAX 8192
#define FLUSH_INTERVAL_NS (100u * UINT64_C(1000000))

// A growing list of slots, each with a reference.
struct layer_list {
    struct layer **items;
    size_t count, capacity;
};

struct txn {
    struct registry *registry;
    struct layer_list touched;
    size_t memory_limit;
    size_t pending_bytes;  // of states that the batch made
    size_t replaced_bytes; // of published states that they take the place of
    bool out_of_memory;    // an edit failed midway: nothing of the batch may be kept
};

struct writer {
    struct store *store;
    struct registry *registry;
    enum durability durability;
    size_t memory_limit;
    void (*on_failure)(void *context, const char *why);
    void *context;
    uv_thread_t thread;
    _Atomic bool failed;

    // The writer thread's alone.
    struct layer_list unsaved;   // published but not committed (not DURABILITY_SYNC)
    uint64_t flush_at_ns;        // when they must be; 0: none
    enum store_status committed; // how the last commit ended

    uv_mutex_t lock; // guards what follows; a leaf
    uv_cond_t wake;
    struct change *first, **last;
    size_t queued;
    bool stop;
};

static bool list_room(struct layer_list *list) {
    if (list->count < list->capacity) return true;
    const size_t capacity = list->capacity * 2 + 64;
    struct layer **const larger = reallocarray(list->items, capacity, sizeof *larger);
    if (larger == NULL) return false;
    list->items = larger;
    list->capacity = capacity;
    return true;
}

static void list_add(struct layer_list *list, struct layer *layer) {
    layer_ref(layer);
    list->items[list->count++] = layer;
}

static void list_clear(struct layer_list *list) {
    for (size_t i = 0; i < list->count; i++) layer_release(list->items[i]);
    list->count = 0;
}

// ---- txn

static const struct layer_state *newest(const struct layer *layer) {
    if (layer == NULL) return NULL;
    return layer->changed ? layer->pending : layer->state;
}

const struct layer_state *txn_state(struct txn *txn, const char *name) {
    return newest(registry_peek(txn->registry, name));
}

bool txn_has_room(const struct txn *txn, size_t bytes) {
    const size_t used = registry_state_bytes(txn->registry) + txn->pending_bytes - txn->replaced_bytes;
    return used <= txn->memory_limit && bytes <= txn->memory_limit - used;
}

// Makes `state` (taken over; NULL: deleted) the pending one.
static bool set_pending(struct txn *txn, struct layer *layer, struct layer_state *state) {
    if (!layer->changed && !list_room(&txn->touched)) {
        layer_state_release(state);
        txn->out_of_memory = true;
        return false;
    }
    if (layer->changed) {
        txn->pending_bytes -= layer_state_size(layer->pending);
    } else {
        list_add(&txn->touched, layer);
        txn->replaced_bytes += layer_state_size(layer->state);
    }
    txn->pending_bytes += layer_state_size(state);
    layer_state_release(layer->pending);
    layer->pending = state;
    layer->changed = true;
    return true;
}

struct layer_state *txn_edit(struct txn *txn, const char *name) {
    struct layer *const layer = registry_peek(txn->registry, name);
    const struct layer_state *const state = newest(layer);
    const bool own = layer->changed && atomic_load_explicit(&layer->pending->refs, memory_order_acquire) == 1;
    if (!own) {
        struct layer_state *const copy = layer_state_clone(state);
        if (copy == NULL || !set_pending(txn, layer, copy)) return NULL;
    }
    layer->pending->version++;
    return layer->pending;
}

bool txn_put(struct txn *txn, const char *name, struct layer_state *state) {
    struct layer *const layer = registry_slot(txn->registry, name);
    if (layer == NULL) {
        layer_state_release(state);
        txn->out_of_memory = true;
        return false;
    }
    return set_pending(txn, layer, state);
}

bool txn_delete(struct txn *txn, const char *name) {
    return set_pending(txn, registry_peek(txn->registry, name), NULL);
}

void txn_names(struct txn *txn, const char *prefix, void (*each)(void *context, const char *name), void *context) {
    registry_each_slot(txn->registry, prefix, each, context);
}

// ---- batches

static enum store_status commit_layers(struct writer *w, const struct layer_list *list, bool pending, char *why) {
    struct store_change *const changes = calloc(list->count + 1, sizeof *changes);
    if (changes == NULL) {
        strcpy(why, "out of memory");
        return STORE_NO_MEMORY;
    }
    for (size_t i = 0; i < list->count; i++) {
        struct layer *const layer = list->items[i];
        changes[i] = (struct store_change){layer->name, pending ? layer->pending : layer->state};
    }
    const enum store_status status = store_commit(w->store, changes, list->count, why);
    free(changes);
    return status;
}

static void store_lost(struct writer *w, const char *why) {
    if (!atomic_exchange(&w->failed, true)) w->on_failure(w->context, why);
}

// Says once that the store takes nothing, and once that it does again.
static void note_status(struct writer *w, enum store_status status, const char *why) {
    if (status != STORE_OK && w->committed == STORE_OK)
        log_line(LOG_LEVEL_ERROR, "changes cannot be saved, they are refused: %s", why);
    if (status == STORE_OK && w->committed != STORE_OK) log_line(LOG_LEVEL_INFO, "changes can be saved again");
    w->committed = status;
}

static void fail_status(struct msg_error *error, enum store_status status) {
    switch (status) {
    case STORE_OK: break;
    case STORE_FULL: msg_fail(error, MSG_STORE_FULL, NULL, "no space is left in the store; nothing was changed"); break;
    case STORE_NO_MEMORY: msg_fail(error, MSG_MEMORY_FULL, NULL, "out of memory; nothing was changed"); break;
    case STORE_FAILED:
        msg_fail(error, MSG_STORE_FAILED, NULL, "the store failed; whether the change is kept is not known");
        break;
    }
}

// Notes layers whose states are about to be published before the store has them. Where there is no memory for that, the
// batch must not be published.
static enum store_status note_unsaved(struct writer *w, const struct layer_list *touched, char *why) {
    for (size_t i = 0; i < touched->count; i++) {
        struct layer *const layer = touched->items[i];
        if (layer->unsaved) continue;
        if (!list_room(&w->unsaved)) {
            strcpy(why, "out of memory");
            return STORE_NO_MEMORY;
        }
        layer->unsaved = true;
        list_add(&w->unsaved, layer);
    }
    if (w->flush_at_ns == 0 && w->unsaved.count > 0) w->flush_at_ns = uv_hrtime() + FLUSH_INTERVAL_NS;
    return STORE_OK;
}

static enum store_status flush_unsaved(struct writer *w) {
    char why[STORE_WHY_MAX] = "";
    if (w->unsaved.count == 0) return STORE_OK;
    const enum store_status status = commit_layers(w, &w->unsaved, false, why);
    if (status == STORE_FAILED) store_lost(w, why);
    note_status(w, status, why);
    const bool again = status == STORE_FULL || status == STORE_NO_MEMORY; // a store that failed is not tried again
    w->flush_at_ns = again ? uv_hrtime() + FLUSH_INTERVAL_NS : 0;
    if (status != STORE_OK) return status;
    for (size_t i = 0; i < w->unsaved.count; i++) w->unsaved.items[i]->unsaved = false;
    list_clear(&w->unsaved);
    return STORE_OK;
}

// Makes what the batch did visible and kept, or takes it back.
static enum store_status settle(struct writer *w, const struct layer_list *touched) {
    char why[STORE_WHY_MAX] = "";
    enum store_status status = STORE_OK;
    if (touched->count == 0) return STORE_OK;
    if (w->durability == DURABILITY_SYNC) {
        status = commit_layers(w, touched, true, why);
        if (status == STORE_FAILED) store_lost(w, why);
        note_status(w, status, why);
    } else {
        status = note_unsaved(w, touched, why);
    }
    if (status == STORE_OK) {
        registry_publish(w->registry, touched->items, touched->count);
    } else {
        registry_discard(w->registry, touched->items, touched->count);
    }
    return status;
}

static void fail_late(struct change *change) {
    msg_fail(&change->error, MSG_DEADLINE, NULL, "the deadline passed before the change was made; nothing was changed");
}

static void apply_one(struct change *change, struct txn *txn) {
    change->error.code = MSG_OK;
    if (uv_hrtime() > change->deadline_ns) {
        fail_late(change);
        return;
    }
    if (!change->apply(change, txn)) msg_fail(&change->error, MSG_INTERNAL, NULL, "the change failed");
}

static enum store_status run_batch(struct writer *w, struct change *first) {
    struct txn txn = {.registry = w->registry, .memory_limit = w->memory_limit};
    for (struct change *change = first; change != NULL; change = change->next) apply_one(change, &txn);
    enum store_status status = STORE_NO_MEMORY;
    if (txn.out_of_memory) {
        registry_discard(w->registry, txn.touched.items, txn.touched.count);
    } else {
        status = settle(w, &txn.touched);
    }
    list_clear(&txn.touched);
    free(txn.touched.items);
    return status;
}

static void release(struct change *first, enum store_status status) {
    for (struct change *change = first, *next; change != NULL; change = next) {
        next = change->next; // done may free the change
        fail_status(&change->error, status);
        change->done(change);
    }
}

// Ends changes of which nothing was applied.
static void refuse(struct change *first, enum store_status status) {
    for (struct change *change = first; change != NULL; change = change->next) {
        change->error.code = MSG_OK;
        if (status == STORE_FAILED)
            msg_fail(&change->error, MSG_STORE_FAILED, NULL, "the store failed before; nothing was changed");
    }
    release(first, status);
}

// A change that the store has no room for must not fail its neighbours, so a batch that did not fit is done again, one
// by one. Applying again is allowed: nothing of it was published.
static void process(struct writer *w, struct change *first) {
    if (atomic_load(&w->failed)) {
        refuse(first, STORE_FAILED);
        return;
    }
    const bool due = w->flush_at_ns != 0 && uv_hrtime() >= w->flush_at_ns;
    if (due || (w->durability != DURABILITY_SYNC && w->committed != STORE_OK)) {
        const enum store_status status = flush_unsaved(w);
        if (status != STORE_OK) {
            refuse(first, status);
            return;
        }
    }
    const enum store_status status = run_batch(w, first);
    const bool again = (status == STORE_FULL || status == STORE_NO_MEMORY) && first->next != NULL;
    if (!again) {
        release(first, status);
        return;
    }
    for (struct change *change = first, *next; change != NULL; change = next) {
        next = change->next;
        change->next = NULL;
        release(change, run_batch(w, change));
    }
}

// ---- the thread

// What waits, or NULL at a time-out or at the end.
static struct change *take(struct writer *w, bool *stop) {
    uv_mutex_lock(&w->lock);
    while (w->first == NULL && !w->stop) {
        const uint64_t now = uv_hrtime();
        if (w->flush_at_ns == 0) {
            uv_cond_wait(&w->wake, &w->lock);
        } else if (now >= w->flush_at_ns || uv_cond_timedwait(&w->wake, &w->lock, w->flush_at_ns - now) != 0) {
            break;
        }
    }
    struct change *const batch = w->first;
    w->first = NULL;
    w->last = &w->first;
    w->queued = 0;
    *stop = w->stop;
    uv_mutex_unlock(&w->lock);
    return batch;
}

static void writer_main(void *argument) {
    struct writer *const w = argument;
    bool stop = false;
    for (;;) {
        struct change *const batch = take(w, &stop);
        if (batch != NULL) {
            process(w, batch);
        } else if (stop) {
            break;
        } else if (!atomic_load(&w->failed)) {
            flush_unsaved(w);
        }
    }
    if (!atomic_load(&w->failed) && flush_unsaved(w) != STORE_OK) store_lost(w, "the last changes could not be saved");
}

struct writer *writer_new(struct store *store, struct registry *registry, enum durability durability,
                          size_t memory_limit, void (*on_failure)(void *context, const char *why), void *context) {
    struct writer *const w = calloc(1, sizeof *w);
    if (w == NULL) return NULL;
    w->store = store;
    w->registry = registry;
    w->durability = durability;
    w->memory_limit = memory_limit;
    w->on_failure = on_failure;
    w->context = context;
    w->last = &w->first;
    if (uv_mutex_init(&w->lock) != 0 || uv_cond_init(&w->wake) != 0 ||
        uv_thread_create(&w->thread, writer_main, w) != 0) {
        free(w);
        return NULL;
    }
    return w;
}

bool writer_submit(struct writer *writer, struct change *change) {
    change->next = NULL;
    uv_mutex_lock(&writer->lock);
    const bool room = writer->queued < QUEUE_MAX && !writer->stop;
    if (room) {
        *writer->last = change;
        writer->last = &change->next;
        if (writer->queued++ == 0) uv_cond_signal(&writer->wake);
    }
    uv_mutex_unlock(&writer->lock);
    return room;
}

// Takes out of the queue what is past its deadline.
static struct change *take_expired(struct writer *w, uint64_t now_ns) {
    struct change *taken = NULL, **taken_last = &taken, **link = &w->first;
    uv_mutex_lock(&w->lock);
    while (*link != NULL) {
        struct change *const change = *link;
        if (now_ns <= change->deadline_ns) {
            link = &change->next;
            continue;
        }
        *link = change->next;
        change->next = NULL;
        *taken_last = change;
        taken_last = &change->next;
        w->queued--;
    }
    w->last = link;
    uv_mutex_unlock(&w->lock);
    return taken;
}

void writer_expire(struct writer *writer, uint64_t now_ns) {
    for (struct change *change = take_expired(writer, now_ns), *next; change != NULL; change = next) {
        next = change->next; // done may free the change
        change->error.code = MSG_OK;
        fail_late(change);
        change->done(change);
    }
}

bool writer_failed(const struct writer *writer) {
    return atomic_load(&writer->failed);
}

bool writer_finish(struct writer *writer) {
    uv_mutex_lock(&writer->lock);
    const bool running = !writer->stop;
    writer->stop = true;
    uv_cond_signal(&writer->wake);
    uv_mutex_unlock(&writer->lock);
    if (running) uv_thread_join(&writer->thread);
    return !atomic_load(&writer->failed);
}

bool writer_free(struct writer **writer) {
    struct writer *const w = *writer;
    *writer = NULL;
    if (w == NULL) return true;
    const bool ok = writer_finish(w);
    list_clear(&w->unsaved);
    free(w->unsaved.items);
    uv_cond_destroy(&w->wake);
    uv_mutex_destroy(&w->lock);
    free(w);
    return ok;
}
