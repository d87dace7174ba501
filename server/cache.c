// SPDX-License-Identifier: Apache-2.0
#include "cache.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <uv.h>

#define BUCKETS 4096

struct cache {
    size_t budget;
    uint64_t ttl_ns;
    uv_mutex_t lock; // guards what follows, and the links of passes
    size_t bytes;
    struct pass *newest, *oldest; // by last use
    struct pass *buckets[BUCKETS];
};

static size_t pass_bytes(const struct pass *pass) {
    return sizeof *pass + pass->x.values.capacity + pass->residual.values.capacity + pass->body.capacity +
           pass->vectors.capacity;
}

struct pass *pass_new(size_t channels, struct budget *budget) {
    struct pass *const pass = calloc(1, sizeof *pass);
    if (pass == NULL) return NULL;
    unsigned char random[PASS_ID_LENGTH / 2];
    pass->refs = 1;
    pass->shape.channels = channels;
    pass->vectors.budget = budget;
    const size_t bytes = channels * PASS_VECTORS * sizeof(double);
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random || !buffer_reserve(&pass->vectors, bytes)) {
        free(pass);
        return NULL;
    }
    for (size_t i = 0; i < sizeof random; i++) snprintf(pass->id + 2 * i, 3, "%02x", random[i]);
    return pass;
}

void pass_release(struct pass *pass) {
    if (pass == NULL || atomic_fetch_sub_explicit(&pass->refs, 1, memory_order_acq_rel) != 1) return;
    layer_release(pass->layer);
    tensor_free(&pass->x);
    tensor_free(&pass->residual);
    buffer_free(&pass->body);
    buffer_free(&pass->vectors);
    free(pass);
}

double *pass_vector(const struct pass *pass, int index) {
    return (double *)(void *)pass->vectors.data + (size_t)index * pass->shape.channels;
}

struct cache *cache_new(size_t budget, uint64_t ttl_ns) {
    struct cache *const cache = calloc(1, sizeof *cache);
    if (cache == NULL) return NULL;
    cache->budget = budget;
    cache->ttl_ns = ttl_ns;
    if (uv_mutex_init(&cache->lock) == 0) return cache;
    free(cache);
    return NULL;
}

// The id's first digits are random already.
static struct pass **bucket_of(struct cache *cache, const char *id) {
    unsigned hash = 0;
    for (int i = 0; i < 8 && id[i] != '\0'; i++) hash = hash * 31 + (unsigned char)id[i];
    return &cache->buckets[hash % BUCKETS];
}

// A clock read on another thread may lie a little before the last use.
static bool expired(const struct cache *cache, const struct pass *pass, uint64_t now_ns) {
    return now_ns > pass->used_ns && now_ns - pass->used_ns > cache->ttl_ns;
}

static bool is_stale(const struct pass *pass) {
    return atomic_load(&pass->layer->id) != pass->layer_id;
}

// ---- links, all with the lock held

static void link_newest(struct cache *cache, struct pass *pass) {
    pass->older = cache->newest;
    pass->newer = NULL;
    if (cache->newest != NULL) cache->newest->newer = pass;
    cache->newest = pass;
    if (cache->oldest == NULL) cache->oldest = pass;
}

static void unlink_use(struct cache *cache, struct pass *pass) {
    *(pass->newer != NULL ? &pass->newer->older : &cache->newest) = pass->older;
    *(pass->older != NULL ? &pass->older->newer : &cache->oldest) = pass->newer;
}

// Takes a pass out and puts it on the list of those to release once the lock is free.
static void take_out(struct cache *cache, struct pass *pass, struct pass **dead) {
    struct pass **link = bucket_of(cache, pass->id);
    while (*link != pass) link = &(*link)->hash_next;
    *link = pass->hash_next;
    unlink_use(cache, pass);
    const size_t bytes = pass_bytes(pass);
    cache->bytes -= bytes;
    atomic_fetch_sub(&pass->layer->cache_bytes, bytes);
    pass->hash_next = *dead;
    *dead = pass;
}

static void release_all(struct pass *dead) {
    while (dead != NULL) {
        struct pass *const next = dead->hash_next;
        pass_release(dead);
        dead = next;
    }
}

void cache_free(struct cache **cache) {
    struct cache *const c = *cache;
    *cache = NULL;
    if (c == NULL) return;
    struct pass *dead = NULL;
    while (c->oldest != NULL) take_out(c, c->oldest, &dead);
    release_all(dead);
    uv_mutex_destroy(&c->lock);
    free(c);
}

bool cache_fits(const struct cache *cache, size_t bytes) {
    return bytes <= cache->budget && sizeof(struct pass) <= cache->budget - bytes;
}

void cache_insert(struct cache *cache, struct pass *pass, uint64_t now_ns) {
    struct pass *dead = NULL;
    uv_mutex_lock(&cache->lock);
    if (is_stale(pass)) {
        uv_mutex_unlock(&cache->lock);
        return;
    }
    atomic_fetch_add_explicit(&pass->refs, 1, memory_order_relaxed);
    const size_t bytes = pass_bytes(pass);
    while (cache->oldest != NULL && cache->bytes + bytes > cache->budget) take_out(cache, cache->oldest, &dead);
    struct pass **const bucket = bucket_of(cache, pass->id);
    pass->hash_next = *bucket;
    *bucket = pass;
    pass->used_ns = now_ns;
    link_newest(cache, pass);
    cache->bytes += bytes;
    atomic_fetch_add(&pass->layer->cache_bytes, bytes);
    uv_mutex_unlock(&cache->lock);
    release_all(dead);
}

struct pass *cache_find(struct cache *cache, const char *id, uint64_t layer_id, uint64_t now_ns) {
    uv_mutex_lock(&cache->lock);
    struct pass *pass = *bucket_of(cache, id);
    while (pass != NULL && strcmp(pass->id, id) != 0) pass = pass->hash_next;
    if (pass != NULL && (pass->layer_id != layer_id || expired(cache, pass, now_ns))) pass = NULL;
    if (pass != NULL) {
        atomic_fetch_add_explicit(&pass->refs, 1, memory_order_relaxed);
        pass->used_ns = now_ns;
        unlink_use(cache, pass);
        link_newest(cache, pass);
    }
    uv_mutex_unlock(&cache->lock);
    return pass;
}

void cache_drop_stale(struct cache *cache) {
    struct pass *dead = NULL;
    uv_mutex_lock(&cache->lock);
    for (struct pass *pass = cache->oldest, *next; pass != NULL; pass = next) {
        next = pass->newer;
        if (is_stale(pass)) take_out(cache, pass, &dead);
    }
    uv_mutex_unlock(&cache->lock);
    release_all(dead);
}

void cache_expire(struct cache *cache, uint64_t now_ns) {
    struct pass *dead = NULL;
    uv_mutex_lock(&cache->lock);
    while (cache->oldest != NULL && expired(cache, cache->oldest, now_ns)) take_out(cache, cache->oldest, &dead);
    uv_mutex_unlock(&cache->lock);
    release_all(dead);
}

bool cache_reclaim(void *context, size_t bytes) {
    struct cache *const cache = context;
    struct pass *dead = NULL;
    size_t freed = 0;
    uv_mutex_lock(&cache->lock);
    while (cache->oldest != NULL && freed < bytes) {
        freed += pass_bytes(cache->oldest);
        take_out(cache, cache->oldest, &dead);
    }
    uv_mutex_unlock(&cache->lock);
    const bool any = dead != NULL;
    release_all(dead);
    return any;
}
