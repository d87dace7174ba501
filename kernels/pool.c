// SPDX-License-Identifier: Apache-2.0
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

// A section is one call of pool_for. The caller opens it, takes indices like every other thread until none is left,
// closes it and waits for the threads that had joined. A thread that wakes up after that finds it closed and sleeps
// again, so that a slow wake-up costs the caller nothing.
struct section {
    void (*task)(void *context, size_t i);
    void *context;
    size_t n;
    atomic_size_t next; // may run past n by as many as there are threads
};

// To sleep and to be woken costs some 10 us each; who waits looks this many times before, some 20 us, for the sections
// of a call follow each other closely.
enum { LOOKS = 500 };

// A thread that is woken is often put on the processor of who wakes it, above all in virtual machines, where an idle
// processor looks as if it were taken; both then share it for longer than most calls take. So the threads may run
// anywhere but where the last section's caller did. To change that takes two system calls for each of them: not where
// they are many.
enum { NOWHERE = -1, MOST_KEPT_OFF = 8 };

// Lock order: `busy` is taken first and by trying only, then `lock`.
struct bn_pool {
    unsigned threads;     // the caller included
    atomic_bool busy;     // a section is open; its caller owns `section`
    pthread_mutex_t lock; // guards the fields below, and opening and closing
    pthread_cond_t opened;
    pthread_cond_t left;
    struct section section;
    int kept_off; // processor that the threads may not use, or NOWHERE. Its owner is that of `section`
    bool open;
    atomic_bool stop;          // read without the lock by who looks
    _Atomic uint64_t sections; // opened so far: a thread joins each at most once. Likewise
    atomic_uint joined;        // threads at work in the section, not counting its caller. Likewise
    pthread_t ids[];           // [threads - 1]
};

// Set while the thread runs a task of any pool: what it starts from there runs inline.
static _Thread_local bool inside_task;

static void run_tasks(struct section *section) {
    inside_task = true;
    for (;;) {
        const size_t i = atomic_fetch_add_explicit(&section->next, 1, memory_order_relaxed);
        if (i >= section->n) break;
        section->task(section->context, i);
    }
    inside_task = false;
}

static void pause_a_little(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

static void look_for_section(struct bn_pool *pool, uint64_t seen) {
    for (int i = 0; i < LOOKS && pool->sections == seen && !pool->stop; i++) pause_a_little();
}

static void *pool_thread(void *argument) {
    struct bn_pool *const pool = argument;
    uint64_t seen = 0;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        pthread_mutex_unlock(&pool->lock);
        look_for_section(pool, seen);
        pthread_mutex_lock(&pool->lock);
        while (!pool->stop && !(pool->open && pool->sections != seen)) pthread_cond_wait(&pool->opened, &pool->lock);
        if (pool->stop) break;
        seen = pool->sections;
        pool->joined++;
        pthread_mutex_unlock(&pool->lock);
        run_tasks(&pool->section);
        pthread_mutex_lock(&pool->lock);
        if (--pool->joined == 0) pthread_cond_signal(&pool->left);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

// What the system refuses costs speed only.
static void keep_off(struct bn_pool *pool, int processor) {
    if (processor < 0 || processor >= CPU_SETSIZE || processor == pool->kept_off || pool->threads - 1 > MOST_KEPT_OFF)
        return;
    for (unsigned i = 0; i < pool->threads - 1; i++) {
        cpu_set_t set;
        if (pthread_getaffinity_np(pool->ids[i], sizeof set, &set) != 0) return;
        if (pool->kept_off != NOWHERE) CPU_SET((size_t)pool->kept_off, &set);
        // Some have to share where processors are fewer than threads, and the system knows best which.
        if ((unsigned)CPU_COUNT(&set) < pool->threads) return;
        CPU_CLR((size_t)processor, &set);
        pthread_setaffinity_np(pool->ids[i], sizeof set, &set);
    }
    pool->kept_off = processor;
}

static void open_section(struct bn_pool *pool, size_t n, void (*task)(void *context, size_t i), void *context) {
    pthread_mutex_lock(&pool->lock);
    pool->section.task = task;
    pool->section.context = context;
    pool->section.n = n;
    atomic_store_explicit(&pool->section.next, 0, memory_order_relaxed);
    pool->open = true;
    pool->sections++;
    const size_t helpers = pool->threads - 1u;
    for (size_t i = 0; i < helpers && i < n - 1; i++) pthread_cond_signal(&pool->opened);
    pthread_mutex_unlock(&pool->lock);
}

static void close_section(struct bn_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    pool->open = false;
    pthread_mutex_unlock(&pool->lock);
    for (int i = 0; i < LOOKS && pool->joined > 0; i++) pause_a_little();
    pthread_mutex_lock(&pool->lock);
    while (pool->joined > 0) pthread_cond_wait(&pool->left, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}

static void run_inline(size_t n, void (*task)(void *context, size_t i), void *context) {
    const bool nested = inside_task;
    inside_task = true;
    for (size_t i = 0; i < n; i++) task(context, i);
    inside_task = nested;
}

void pool_for(struct bn_pool *pool, size_t n, void (*task)(void *context, size_t i), void *context) {
    if (!pool || pool->threads == 1 || n <= 1 || inside_task) {
        run_inline(n, task, context);
        return;
    }
    if (atomic_exchange_explicit(&pool->busy, true, memory_order_acquire)) {
        run_inline(n, task, context);
        return;
    }
    keep_off(pool, sched_getcpu());
    open_section(pool, n, task, context);
    run_tasks(&pool->section);
    close_section(pool);
    atomic_store_explicit(&pool->busy, false, memory_order_release);
}

unsigned bn_pool_threads(const struct bn_pool *pool) {
    return pool ? pool->threads : 1;
}

// Ends the first `started` threads and frees the pool.
static void stop_threads(struct bn_pool *pool, unsigned started) {
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->opened);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < started; i++) pthread_join(pool->ids[i], NULL);
    pthread_cond_destroy(&pool->left);
    pthread_cond_destroy(&pool->opened);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

// More than any task needs (some 200 KiB), whatever the system's default is.
enum { STACK_BYTES = 1 << 20 };

// Returns how many of the pool's threads could be started. They block every signal: signals are the program's.
static unsigned start_threads(struct bn_pool *pool) {
    sigset_t all, before;
    sigfillset(&all);
    if (pthread_sigmask(SIG_SETMASK, &all, &before) != 0) return 0;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    unsigned started = 0;
    while (started < pool->threads - 1 && pthread_create(&pool->ids[started], &attributes, pool_thread, pool) == 0) {
        started++;
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

struct bn_pool *bn_pool_new(unsigned threads) {
    if (threads == 0) threads = 1;
    struct bn_pool *const pool = calloc(1, sizeof *pool + (threads - 1) * sizeof pool->ids[0]);
    if (!pool) return NULL;
    pool->threads = threads;
    pool->kept_off = NOWHERE;
    // With default attributes glibc's and musl's initializers cannot fail.
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->opened, NULL);
    pthread_cond_init(&pool->left, NULL);
    const unsigned started = start_threads(pool);
    if (started == threads - 1) return pool;
    stop_threads(pool, started);
    return NULL;
}

void bn_pool_free(struct bn_pool **pool) {
    if (!*pool) return;
    stop_threads(*pool, (*pool)->threads - 1);
    *pool = NULL;
}
