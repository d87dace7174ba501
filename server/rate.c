// SPDX-License-Identifier: Apache-2.0
#include "rate.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#define SECOND UINT64_C(1000000000)

// A power of two.
#define SLOTS 4096

// Slots that a client may be in, from its own one on.
#define NEAR 8

// Free once full_at_ns has passed.
struct bucket {
    uint64_t client;
    uint64_t full_at_ns; // when its bucket is full again
};

struct rate {
    uint64_t interval_ns; // of requests
    uv_mutex_t lock;      // guards what follows; a leaf
    struct bucket buckets[SLOTS];
};

struct rate *rate_new(uint64_t per_second) {
    struct rate *const rate = calloc(1, sizeof *rate);
    if (rate == NULL) return NULL;
    rate->interval_ns = per_second < SECOND ? SECOND / per_second : 1;
    if (uv_mutex_init(&rate->lock) == 0) return rate;
    free(rate);
    return NULL;
}

// The same number for an IPv4 address and the IPv6 address that it is mapped to. UINT64_MAX: of another family, which
// is one client.
static uint64_t client_of(const struct sockaddr *address) {
    uint32_t four = 0;
    uint64_t six = 0;
    if (address != NULL && address->sa_family == AF_INET) {
        memcpy(&four, &((const struct sockaddr_in *)(const void *)address)->sin_addr, sizeof four);
        return UINT64_C(1) << 32 | four;
    }
    if (address == NULL || address->sa_family != AF_INET6) return UINT64_MAX;
    const struct in6_addr *const in6 = &((const struct sockaddr_in6 *)(const void *)address)->sin6_addr;
    if (IN6_IS_ADDR_V4MAPPED(in6)) {
        memcpy(&four, in6->s6_addr + 12, sizeof four);
        return UINT64_C(1) << 32 | four;
    }
    memcpy(&six, in6->s6_addr, sizeof six);
    return six;
}

// Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators" (2014), the finalizer.
static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

// The client's bucket, or the one that is full soonest, made its. Lock held.
static struct bucket *find(struct rate *rate, uint64_t client) {
    const uint64_t first = mix(client);
    struct bucket *soonest = NULL;
    for (uint64_t i = 0; i < NEAR; i++) {
        struct bucket *const bucket = &rate->buckets[(first + i) % SLOTS];
        if (bucket->client == client && bucket->full_at_ns != 0) return bucket;
        if (soonest == NULL || bucket->full_at_ns < soonest->full_at_ns) soonest = bucket;
    }
    *soonest = (struct bucket){client, 0};
    return soonest;
}

bool rate_take(struct rate *rate, const struct sockaddr *client, uint64_t now_ns) {
    uv_mutex_lock(&rate->lock);
    struct bucket *const bucket = find(rate, client_of(client));
    const uint64_t from = bucket->full_at_ns > now_ns ? bucket->full_at_ns : now_ns;
    const bool room = from + rate->interval_ns <= now_ns + SECOND;
    if (room) bucket->full_at_ns = from + rate->interval_ns;
    uv_mutex_unlock(&rate->lock);
    return room;
}

void rate_free(struct rate **rate) {
    struct rate *const r = *rate;
    *rate = NULL;
    if (r == NULL) return;
    uv_mutex_destroy(&r->lock);
    free(r);
}
