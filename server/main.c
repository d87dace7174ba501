// SPDX-License-Identifier: Apache-2.0
//
// Start, run, drain. The main thread owns the libuv loop: signals, and a tick for deadlines and expiry.
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
#include <uv.h>

#include "address.h"
#include "config.h"
#include "http.h"
#include "log.h"
#include "rate.h"
#include "store.h"
#include "version.h"
#include "../proto/spare.h"

#define TICK_MS 100
#define DRAIN_TICK_MS 5
#define IO_THREADS_MAX 4
#define ABANDON_NS UINT64_C(1000000000) // after the drain time-out
#define TRIM_LEAST ((size_t)8 * 1024 * 1024)
#define TRIM_IDLE_NS UINT64_C(2000000000)

enum exit_status { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_WRONG_SETTING = 2 };

struct server {
    struct config config;
    struct budget memory, sending;
    struct store *store;
    struct service service;
    struct http *http;
    uv_loop_t loop;
    uv_signal_t signals[3];
    uv_timer_t tick;
    uv_async_t failure; // the store has failed
    size_t most_used;   // of the memory budget since the heap was trimmed
    uint64_t busy_ns;   // when that, or more than half of it, was in use
    uint64_t drain_until_ns;
    bool refused;   // the drain took too long: what waited was answered with 503, connections were cut
    bool abandoned; // and something still runs, or waits for the store: the process ends without its reply
    int status;
};

// ---- starting

// glibc keeps what was freed for later, in an arena for each thread that ever had to wait, and moves the size from
// which a block goes back to the system up to 32 MiB: the process would grow far beyond its memory budget, which counts
// what is in use. Here blocks from 4 MiB on go back, those of bodies and tensors after a moment (see spare.h), and
// smaller ones come from few arenas. A lower limit costs time: each page of a block that is mapped anew is a fault.
#define MMAP_THRESHOLD (4 * 1024 * 1024)
#define ARENAS 2

// What of those blocks is kept for a moment, see spare.h: a part of the budget that they were charged to.
#define SPARE_MAX ((size_t)64 * 1024 * 1024)
#define SPARE_SHARE 8

static void bound_heap(size_t memory_budget) {
    const size_t share = memory_budget / SPARE_SHARE;
    spare_limit(share < SPARE_MAX ? share : SPARE_MAX);
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD);
    mallopt(M_TRIM_THRESHOLD, 2 * MMAP_THRESHOLD);
    mallopt(M_ARENA_MAX, ARENAS);
#endif
}

static unsigned processors(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
}

static bool take_layer(void *context, const char *name, struct layer_state *state) {
    struct registry *const registry = context;
    struct layer *const layer = registry_slot(registry, name);
    if (layer == NULL) {
        layer_state_release(state);
        return false;
    }
    layer->pending = state;
    layer->changed = true;
    registry_publish(registry, &layer, 1);
    return true;
}

// A tag must not come back after a crash that lost what it named.
static bool salt_etags(const struct config *config, char why[STORE_WHY_MAX]) {
    uint64_t salt = 0;
    if (config->durability != DURABILITY_SYNC && getrandom(&salt, sizeof salt, 0) != (ssize_t)sizeof salt) {
        snprintf(why, STORE_WHY_MAX, "no random numbers");
        return false;
    }
    etag_start(salt);
    return true;
}

static bool load(struct server *server, char why[STORE_WHY_MAX]) {
    const bool sync_writes = server->config.durability != DURABILITY_NONE;
    server->service.registry = registry_new();
    if (server->service.registry == NULL) {
        snprintf(why, STORE_WHY_MAX, "out of memory");
        return false;
    }
    return store_open(&server->store, server->config.data, sync_writes, why) &&
           store_load(server->store, take_layer, server->service.registry, why);
}

static void store_failed(void *context, const char *why) {
    struct server *const server = context;
    log_line(LOG_LEVEL_ERROR, "the store failed, nothing more is acknowledged: %s", why);
    uv_async_send(&server->failure);
}

static bool start_service(struct server *server) {
    const struct config *const config = &server->config;
    struct service *const service = &server->service;
    const unsigned available = processors();
    service->threads = config->threads != 0 ? (unsigned)config->threads : available;
    service->memory = &server->memory;
    service->sending = &server->sending;
    service->max_body = config->max_body;
    service->request_timeout_ns = config->request_timeout_ns;
    service->rate = config->client_rate > 0 ? rate_new(config->client_rate) : NULL;
    if (config->client_rate > 0 && service->rate == NULL) return false;
    service->pool = bn_pool_new(service->threads);
    service->cache = cache_new(config->cache_budget, config->cache_ttl_ns);
    service->queue = job_queue_new(available > 1 ? available : 2);
    if (service->pool == NULL || service->cache == NULL || service->queue == NULL) return false;
    server->memory.limit = server->sending.limit = config->memory_budget;
    server->memory.reclaim = cache_reclaim;
    server->memory.context = service->cache;
    service->writer = writer_new(server->store, service->registry, (enum durability)config->durability,
                                 config->memory_budget, store_failed, server);
    return service->writer != NULL;
}

// stdout carries these two lines and nothing else.
static void announce(const char *actual) {
    printf("normd ready http://%s\n", actual);
    printf("curl -s -X PUT http://%s/v1/layers/demo -d '{\"num_features\": 3}' && curl -s "
           "http://%s/v1/layers/demo/train-forward "
           "-d '{\"x\": [[150,54,26],[60,18,4],[160,60,48]]}'\n",
           actual, actual);
    fflush(stdout);
}

// ---- ending

// What was freed below malloc's own limit stays in its heaps. Gives it back once most of what was in use has been free
// for a while; it takes some milliseconds, and what is needed again faults in anew.
static void trim_heap(struct server *server, uint64_t now) {
    const size_t used = atomic_load(&server->memory.used);
    if (used > server->most_used) server->most_used = used;
    if (server->most_used < TRIM_LEAST || used > server->most_used / 2) server->busy_ns = now;
    if (now - server->busy_ns < TRIM_IDLE_NS) return;
    server->most_used = used;
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

static void on_tick(uv_timer_t *timer) {
    struct server *const server = timer->data;
    const uint64_t now = uv_hrtime();
    http_reap(server->http, now);
    job_queue_expire(server->service.queue, now);
    writer_expire(server->service.writer, now);
    cache_expire(server->service.cache, now);
    spare_expire(now);
    trim_heap(server, now);
    if (server->drain_until_ns == 0) return;
    http_cut_idle(server->http);
    if (http_connections(server->http) == 0) {
        uv_stop(&server->loop);
    } else if (now >= server->drain_until_ns && !server->refused) {
        log_line(LOG_LEVEL_WARN, "the drain time-out has passed; cutting %zu connections",
                 http_connections(server->http));
        server->refused = true;
        job_queue_refuse(server->service.queue);
        http_cut_all(server->http);
    } else if (now >= server->drain_until_ns + ABANDON_NS) {
        log_line(LOG_LEVEL_WARN,
                 "calls still run; ending without their replies: a change of theirs may be kept or not");
        server->abandoned = true;
        uv_stop(&server->loop);
    }
}

static void drain(struct server *server, const char *why) {
    if (server->drain_until_ns != 0) return;
    log_line(LOG_LEVEL_INFO, "%s: draining", why);
    server->drain_until_ns = uv_hrtime() + server->config.drain_timeout_ns;
    atomic_store(&server->service.draining, true);
    http_drain(server->http);
    uv_timer_start(&server->tick, on_tick, 0, DRAIN_TICK_MS);
}

static void on_signal(uv_signal_t *handle, int number) {
    drain(handle->data, number == SIGTERM ? "SIGTERM" : number == SIGINT ? "SIGINT" : "SIGHUP");
}

static void on_failure(uv_async_t *handle) {
    struct server *const server = handle->data;
    server->status = EXIT_FAILED;
    drain(server, "store failure");
}

// In the reverse order of the start; what a request holds goes with its connection, so HTTP ends before the rest.
static void stop(struct server *server) {
    struct service *const service = &server->service;
    if (server->abandoned) {
        // Threads still use what they were given, so nothing is taken from them but the store.
        if (!writer_finish(service->writer)) server->status = EXIT_FAILED;
        store_close(&server->store);
        return;
    }
    if (service->queue != NULL) job_queue_free(&service->queue);
    if (!writer_free(&service->writer)) server->status = EXIT_FAILED;
    http_stop(&server->http);
    cache_free(&service->cache);
    registry_free(&service->registry);
    store_close(&server->store);
    bn_pool_free(&service->pool);
    rate_free(&service->rate);
}

// ---- the whole

static void start_loop(struct server *server) {
    uv_loop_init(&server->loop);
    const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
    for (int i = 0; i < 3; i++) {
        uv_signal_init(&server->loop, &server->signals[i]);
        server->signals[i].data = server;
        uv_signal_start(&server->signals[i], on_signal, numbers[i]);
    }
    uv_async_init(&server->loop, &server->failure, on_failure);
    server->failure.data = server;
    uv_timer_init(&server->loop, &server->tick);
    server->tick.data = server;
    uv_timer_start(&server->tick, on_tick, TICK_MS, TICK_MS);
}

static int fail(const char *why) {
    fprintf(stderr, "normd: %s\n", why);
    return EXIT_FAILED;
}

// Serves until the loop ends, with everything started but HTTP.
static int serve(struct server *server, int listen_fd, const char *actual) {
    const unsigned available = processors();
    start_loop(server);
    server->http = http_start(&server->service, listen_fd, available < IO_THREADS_MAX ? available : IO_THREADS_MAX);
    if (server->http == NULL) return fail("cannot start the HTTP threads");
    log_line(LOG_LEVEL_INFO, "normd %s: %zu layers from %s, %s kernels, %u threads", NORMD_VERSION,
             registry_count(server->service.registry), server->config.data, bn_cpu_tier(), server->service.threads);
    announce(actual);
    // The loop's handles stay open to the end of the process: a signal that comes while the last changes are saved must
    // not find the default action, which would kill it.
    uv_run(&server->loop, UV_RUN_DEFAULT);
    return EXIT_OK;
}

static int run_server(const struct config *config) {
    static struct server server;
    char why[STORE_WHY_MAX] = "", actual[ADDRESS_MAX];
    server.config = *config;
    log_start((enum log_level)config->log_level, (enum log_format)config->log_format);
    char unknown[256];
    if (config_unknown_variables(unknown, sizeof unknown) > 0)
        log_line(LOG_LEVEL_WARN, "there is no such setting, so these are ignored: %s", unknown);
    // A closed connection is an error of the call that meets it. A file that may not grow is a failure of the store: it
    // is told and ends the process in order, not by a signal.
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    if (!salt_etags(config, why) || !load(&server, why)) {
        stop(&server);
        return fail(why);
    }
    const int listen_fd = address_listen(config->listen, actual, why, sizeof why);
    if (listen_fd < 0) {
        stop(&server);
        return fail(why);
    }
    const bool started = start_service(&server);
    const int status = started ? serve(&server, listen_fd, actual) : fail("out of memory");
    stop(&server);
    if (status != EXIT_OK) return status;
    log_line(LOG_LEVEL_INFO, server.status == EXIT_OK ? "stopped" : "stopped after a failure");
    if (server.abandoned) _exit(server.status);
    return server.status;
}

int main(int argc, char **argv) {
    struct config config;
    char why[512] = "";
    switch (config_read(&config, argc, argv, why, sizeof why)) {
    case CONFIG_RUN: bound_heap(config.memory_budget); return run_server(&config);
    case CONFIG_HEALTHCHECK: return address_is_ready(config.listen, why, sizeof why) ? EXIT_OK : fail(why);
    case CONFIG_HELP: config_help(stdout); return EXIT_OK;
    case CONFIG_HELP_MARKDOWN: config_markdown(stdout); return EXIT_OK;
    case CONFIG_VERSION: printf("normd %s\n", NORMD_VERSION); return EXIT_OK;
    case CONFIG_WRONG: fprintf(stderr, "normd: %s\n", why); return EXIT_WRONG_SETTING;
    }
    return EXIT_FAILED;
}
