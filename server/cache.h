// SPDX-License-Identifier: Apache-2.0
//
// Passes that train-forward keeps for backward: a budget in bytes, least recently used out first, a time to live from
// the last use. Ids are random, so that nobody's guess finds another client's pass.
//
// Locking: one mutex, a leaf. Passes are reference counted: one that is evicted while a backward reads it lives on
// until that ends.
#ifndef NORMD_SERVER_CACHE_H
#define NORMD_SERVER_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "registry.h"
#include "../kernels/bn.h"
#include "../proto/buffer.h"
#include "../proto/tensor.h"

#define PASS_ID_LENGTH 32

// What a backward needs of the forward. Read-only once it is in the cache.
struct pass {
    char id[PASS_ID_LENGTH + 1];
    _Atomic unsigned refs;
    struct layer *layer; // referenced
    uint64_t layer_id;   // of the layer's state
    double eps;          // that y was made with
    bool affine;         // gamma and beta are among the vectors
    struct tensor x;     // owned
    enum bn_activation activation;
    struct tensor residual; // owned; its values are kept only where there is an activation, whose gradient needs them
    struct buffer body;     // owned; the two may lie in it
    struct bn_shape shape;
    int channel_axis;      // of x, not negative, but as given where x is []
    struct buffer vectors; // owned: mean, mean_lo, var, gamma, beta, [channels] doubles each

    struct pass *hash_next; // under the cache's lock, as is the rest
    struct pass *newer, *older;
    uint64_t used_ns;
};

struct cache;

// budget: bytes that passes may hold in all; ttl_ns: how long an unused one lives. NULL: no memory.
struct cache *cache_new(size_t budget, uint64_t ttl_ns);
void cache_free(struct cache **cache);

// A pass with one reference, a fresh id, and room for its vectors charged to `budget`. NULL: no memory.
struct pass *pass_new(size_t channels, struct budget *budget);
void pass_release(struct pass *pass); // NULL is allowed

// The vectors of a pass, [channels].
double *pass_vector(const struct pass *pass, int index);
#define PASS_MEAN 0
#define PASS_MEAN_LO 1
#define PASS_VAR 2
#define PASS_GAMMA 3
#define PASS_BETA 4
#define PASS_VECTORS 5

// True where a pass of so many bytes can be kept at all.
bool cache_fits(const struct cache *cache, size_t bytes);

// Keeps the pass (takes a reference of its own) and evicts older ones for it; not where its layer is gone by now.
void cache_insert(struct cache *cache, struct pass *pass, uint64_t now_ns);

// The pass, referenced, if `id` names one of that layer, or NULL.
struct pass *cache_find(struct cache *cache, const char *id, uint64_t layer_id, uint64_t now_ns);

// Drops every pass whose layer was deleted, or replaced by another of its name.
void cache_drop_stale(struct cache *cache);

// Drops what has expired.
void cache_expire(struct cache *cache, uint64_t now_ns);

// Drops least recently used passes until `bytes` are given back or none are left; false where none was. The reclaim
// hook of the memory budget; context is the cache.
bool cache_reclaim(void *context, size_t bytes);

#endif
