// SPDX-License-Identifier: Apache-2.0
#include "copies.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

enum { STREAMS = 8, STEP = 256, LINE = 64, SHARE = 64 * 1024 };

struct copy {
    enum copy_kind kind;
    unsigned char *to;
    const unsigned char *from;
    size_t bytes;
    unsigned parts;
};

struct helper {
    struct crew *crew;
    unsigned part;
    pthread_t thread;
};

struct part {
    _Alignas(LINE) atomic_bool open; // up to be copied, by whoever takes it first
};

struct crew {
    unsigned threads;
    unsigned started;
    struct helper *helpers; // threads - 1 of them
    struct part *parts;     // [threads]; the first is the caller's
    struct copy copy;       // written while the helpers sleep
    pthread_mutex_t lock;   // guards open and ending
    pthread_cond_t opened;
    bool open;
    bool ending;
    atomic_bool closing;
    _Alignas(LINE) atomic_uint copied; // parts of this copy
    _Alignas(LINE) atomic_uint awake;  // helpers that spin
};

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// On a machine that is busy with something else, whoever is waited for may not run.
static void await(const atomic_uint *count, unsigned value) {
    for (unsigned spins = 1; atomic_load_explicit(count, memory_order_acquire) != value; spins++) {
        relax();
        if (spins % 1024 == 0) sched_yield();
    }
}

// STEP bytes past the caches, where the compiler knows how.
#if defined(__SSE2__)
static void copy_step(unsigned char *to, const unsigned char *from) {
    for (size_t i = 0; i < STEP; i += sizeof(__m128i)) {
        const __m128i *const source = (const __m128i *)(const void *)(from + i);
        _mm_stream_si128((__m128i *)(void *)(to + i), _mm_loadu_si128(source));
    }
}
static void end_steps(void) {
    _mm_sfence();
}
#elif defined(__aarch64__)
static void copy_step(unsigned char *to, const unsigned char *from) {
    for (size_t i = 0; i < STEP; i += 32) {
        const uint8x16_t low = vld1q_u8(from + i), high = vld1q_u8(from + i + 16);
        __asm__ volatile("stnp %q0, %q1, [%2]" : : "w"(low), "w"(high), "r"(to + i) : "memory");
    }
}
static void end_steps(void) {}
#else
static void copy_step(unsigned char *to, const unsigned char *from) {
    memcpy(to, from, STEP);
}
static void end_steps(void) {}
#endif

static void copy_streams(unsigned char *to, const unsigned char *from, size_t bytes) {
    const size_t stream = bytes / STREAMS / STEP * STEP;
    for (size_t at = 0; at < stream; at += STEP) {
        for (size_t s = 0; s < STREAMS; s++) copy_step(to + s * stream + at, from + s * stream + at);
    }
    end_steps();
    memcpy(to + STREAMS * stream, from + STREAMS * stream, bytes - STREAMS * stream);
}

static void copy_part(const struct copy *copy, unsigned part) {
    const size_t share = copy->bytes / copy->parts / LINE * LINE;
    const size_t start = part * share, end = part + 1 == copy->parts ? copy->bytes : start + share;
    if (copy->kind == COPY_MEMCPY) {
        memcpy(copy->to + start, copy->from + start, end - start);
    } else {
        copy_streams(copy->to + start, copy->from + start, end - start);
    }
}

static void copy_open_parts(struct crew *crew, unsigned first) {
    for (unsigned i = 0; i < crew->threads; i++) {
        const unsigned part = (first + i) % crew->threads;
        atomic_bool *const open = &crew->parts[part].open;
        if (!atomic_load_explicit(open, memory_order_relaxed)) continue;
        if (!atomic_exchange_explicit(open, false, memory_order_acquire)) continue;
        copy_part(&crew->copy, part);
        atomic_fetch_add_explicit(&crew->copied, 1, memory_order_release);
    }
}

// Sleeps until the next timing. Returns false at the end.
static bool wait_opened(struct crew *crew) {
    pthread_mutex_lock(&crew->lock);
    while (!crew->open && !crew->ending) pthread_cond_wait(&crew->opened, &crew->lock);
    const bool open = !crew->ending;
    pthread_mutex_unlock(&crew->lock);
    return open;
}

static void *help(void *context) {
    const struct helper *const helper = context;
    struct crew *const crew = helper->crew;
    while (wait_opened(crew)) {
        atomic_fetch_add(&crew->awake, 1);
        for (unsigned spins = 1; !atomic_load_explicit(&crew->closing, memory_order_relaxed); spins++) {
            copy_open_parts(crew, helper->part);
            relax();
            if (spins % 1024 == 0) sched_yield();
        }
        atomic_fetch_sub(&crew->awake, 1);
    }
    return NULL;
}

static void set_open(struct crew *crew, bool open) {
    pthread_mutex_lock(&crew->lock);
    crew->open = open;
    atomic_store(&crew->closing, !open);
    pthread_cond_broadcast(&crew->opened);
    pthread_mutex_unlock(&crew->lock);
    await(&crew->awake, open ? crew->threads - 1 : 0);
}

static void copy_together(struct crew *crew) {
    atomic_store_explicit(&crew->copied, 0, memory_order_relaxed);
    for (unsigned part = 1; part < crew->threads; part++) {
        atomic_store_explicit(&crew->parts[part].open, true, memory_order_release);
    }
    copy_part(&crew->copy, 0);
    copy_open_parts(crew, 1);
    await(&crew->copied, crew->threads - 1);
}

static double time_alone(const struct crew *crew, unsigned long reps) {
    copy_part(&crew->copy, 0);
    const double start = clock_ns();
    for (unsigned long i = 0; i < reps; i++) {
        copy_part(&crew->copy, 0);
        __asm__ volatile("" : : : "memory");
    }
    return clock_ns() - start;
}

static double time_together(struct crew *crew, unsigned long reps) {
    set_open(crew, true);
    copy_together(crew);
    const double start = clock_ns();
    for (unsigned long i = 0; i < reps; i++) copy_together(crew);
    const double ns = clock_ns() - start;
    set_open(crew, false);
    return ns;
}

double crew_time_copies(struct crew *crew, enum copy_kind kind, void *to, const void *from, size_t bytes,
                        unsigned long reps) {
    const bool together = crew->threads > 1 && bytes >= (size_t)SHARE * crew->threads;
    crew->copy = (struct copy){kind, to, from, bytes, together ? crew->threads : 1};
    return together ? time_together(crew, reps) : time_alone(crew, reps);
}

struct crew *crew_new(unsigned threads) {
    struct crew *crew = aligned_alloc(LINE, sizeof *crew);
    struct part *const parts = aligned_alloc(LINE, threads * sizeof *parts);
    struct helper *const helpers = calloc(threads, sizeof *helpers);
    if (crew == NULL || parts == NULL || helpers == NULL) {
        free(crew);
        free(parts);
        free(helpers);
        return NULL;
    }
    memset(crew, 0, sizeof *crew);
    memset(parts, 0, threads * sizeof *parts);
    crew->threads = threads;
    crew->parts = parts;
    crew->helpers = helpers;
    pthread_mutex_init(&crew->lock, NULL);
    pthread_cond_init(&crew->opened, NULL);
    for (; crew->started + 1 < threads; crew->started++) {
        struct helper *const helper = &helpers[crew->started];
        *helper = (struct helper){.crew = crew, .part = crew->started + 1};
        if (pthread_create(&helper->thread, NULL, help, helper) != 0) {
            crew_free(&crew);
            return NULL;
        }
    }
    return crew;
}

void crew_free(struct crew **crew) {
    struct crew *const ended = *crew;
    *crew = NULL;
    if (ended == NULL) return;
    pthread_mutex_lock(&ended->lock);
    ended->ending = true;
    pthread_cond_broadcast(&ended->opened);
    pthread_mutex_unlock(&ended->lock);
    for (unsigned i = 0; i < ended->started; i++) pthread_join(ended->helpers[i].thread, NULL);
    pthread_mutex_destroy(&ended->lock);
    pthread_cond_destroy(&ended->opened);
    free(ended->helpers);
    free(ended->parts);
    free(ended);
}
