// SPDX-License-Identifier: Apache-2.0
//
// bench_onednn FD ROOM CHANNELS: batch normalization by oneDNN 2, as a peer of bench_kernels. peers.h has the protocol,
// tensors.h the memory. Built where dnnl.h is.
//
// Tensors stay in the plain layouts that the caller has; oneDNN's own blocked ones would need a copy in and one out.
#include <dnnl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "clock.h"

#if DNNL_VERSION_MAJOR != 2
#error "bench_onednn.c knows the interface of oneDNN 2 only"
#endif

// Of libgomp, which libdnnl runs on; clang comes without omp.h.
void omp_set_num_threads(int threads);

#define EPS 1e-5f
#define AFFINE (dnnl_use_scale | dnnl_use_shift)

// Pointers to the mapping, but for the results per channel, which are of this process: of mean, variance, gamma, beta.
struct memory {
    void *x, *dout, *y;
    float *gamma, *beta, *mean, *var;
    float *out[4];
};

struct order {
    char call[32], layout[8], dtype[8];
    unsigned threads;
    dnnl_dims_t dims;
};

enum { ARGS_MAX = 9 };

static dnnl_engine_t engine;
static dnnl_stream_t stream;
static dnnl_primitive_t primitive;
static dnnl_exec_arg_t args[ARGS_MAX];
static int arg_count;

static bool map(struct memory *memory, int fd, size_t room, size_t channels) {
    const size_t bytes = 3 * room + 4 * channels * sizeof(float);
    unsigned char *const base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    float *const out = calloc(4 * channels, sizeof *out);
    if (base == MAP_FAILED || out == NULL) return false;
    *memory = (struct memory){.x = base, .dout = base + room, .y = base + 2 * room};
    memory->gamma = (float *)(void *)(base + 3 * room);
    memory->beta = memory->gamma + channels;
    memory->mean = memory->beta + channels;
    memory->var = memory->mean + channels;
    for (size_t i = 0; i < 4; i++) memory->out[i] = out + i * channels;
    return true;
}

static bool set_type(dnnl_data_type_t *type, const char *name) {
    if (strcmp(name, "f32") == 0)
        *type = dnnl_f32;
    else if (strcmp(name, "bf16") == 0)
        *type = dnnl_bf16;
    else if (strcmp(name, "f16") == 0)
        *type = dnnl_f16;
    else
        return false;
    return true;
}

static bool describe(dnnl_memory_desc_t *tensor, dnnl_memory_desc_t *channels, const struct order *order) {
    dnnl_data_type_t type;
    if (!set_type(&type, order->dtype)) return false;
    const dnnl_dims_t channel_dims = {order->dims[1]};
    const bool plain = order->dims[2] * order->dims[3] == 1;
    const dnnl_format_tag_t tag = plain ? dnnl_nc : strcmp(order->layout, "first") == 0 ? dnnl_nchw : dnnl_nhwc;
    return dnnl_memory_desc_init_by_tag(tensor, plain ? 2 : 4, order->dims, type, tag) == dnnl_success &&
           dnnl_memory_desc_init_by_tag(channels, 1, channel_dims, dnnl_f32, dnnl_x) == dnnl_success;
}

static bool add_arg(int arg, const dnnl_memory_desc_t *desc, void *data) {
    args[arg_count].arg = arg;
    return dnnl_memory_create(&args[arg_count].memory, desc, engine, data) == dnnl_success && arg_count++ < ARGS_MAX;
}

static void forget(void) {
    while (arg_count > 0) dnnl_memory_destroy(args[--arg_count].memory);
    if (primitive != NULL) dnnl_primitive_destroy(primitive);
    primitive = NULL;
}

static bool create_forward(dnnl_primitive_desc_t *pd, const dnnl_memory_desc_t *tensor, bool training) {
    dnnl_batch_normalization_desc_t desc;
    const unsigned flags = AFFINE | (training ? 0 : dnnl_use_global_stats);
    const dnnl_prop_kind_t kind = training ? dnnl_forward_training : dnnl_forward_inference;
    return dnnl_batch_normalization_forward_desc_init(&desc, kind, tensor, EPS, flags) == dnnl_success &&
           dnnl_primitive_desc_create(pd, &desc, NULL, engine, NULL) == dnnl_success;
}

static bool create_backward(dnnl_primitive_desc_t *pd, const dnnl_memory_desc_t *tensor) {
    dnnl_batch_normalization_desc_t desc;
    dnnl_primitive_desc_t forward;
    if (!create_forward(&forward, tensor, true)) return false;
    const bool good = dnnl_batch_normalization_backward_desc_init(&desc, dnnl_backward, tensor, tensor, EPS, AFFINE) ==
                          dnnl_success &&
                      dnnl_primitive_desc_create(pd, &desc, NULL, engine, forward) == dnnl_success;
    dnnl_primitive_desc_destroy(forward);
    return good;
}

static bool add_args(const struct memory *m, const dnnl_memory_desc_t *tensor, const dnnl_memory_desc_t *channels,
                     const char *call) {
    const bool training = strcmp(call, "train-forward") == 0;
    if (strcmp(call, "backward") == 0) {
        return add_arg(DNNL_ARG_SRC, tensor, m->x) && add_arg(DNNL_ARG_DIFF_DST, tensor, m->dout) &&
               add_arg(DNNL_ARG_DIFF_SRC, tensor, m->y) && add_arg(DNNL_ARG_MEAN, channels, m->mean) &&
               add_arg(DNNL_ARG_VARIANCE, channels, m->var) && add_arg(DNNL_ARG_SCALE, channels, m->gamma) &&
               add_arg(DNNL_ARG_SHIFT, channels, m->beta) && add_arg(DNNL_ARG_DIFF_SCALE, channels, m->out[2]) &&
               add_arg(DNNL_ARG_DIFF_SHIFT, channels, m->out[3]);
    }
    return add_arg(DNNL_ARG_SRC, tensor, m->x) && add_arg(DNNL_ARG_DST, tensor, m->y) &&
           add_arg(DNNL_ARG_MEAN, channels, training ? m->out[0] : m->mean) &&
           add_arg(DNNL_ARG_VARIANCE, channels, training ? m->out[1] : m->var) &&
           add_arg(DNNL_ARG_SCALE, channels, m->gamma) && add_arg(DNNL_ARG_SHIFT, channels, m->beta);
}

static bool call(void) {
    return dnnl_primitive_execute(primitive, stream, arg_count, args) == dnnl_success &&
           dnnl_stream_wait(stream) == dnnl_success;
}

// Returns NULL, or why not. oneDNN picks its kernel for the number of threads of this moment.
static const char *prepare(const struct memory *memory, const struct order *order) {
    dnnl_memory_desc_t tensor, channels;
    dnnl_primitive_desc_t pd;
    forget();
    omp_set_num_threads((int)order->threads);
    if (!describe(&tensor, &channels, order)) return "type";
    const bool created = strcmp(order->call, "backward") == 0
                             ? create_backward(&pd, &tensor)
                             : create_forward(&pd, &tensor, strcmp(order->call, "train-forward") == 0);
    if (!created) return "oneDNN has no kernel for it";
    const char *kernel = "?";
    dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &kernel);
    if (getenv("BENCH_VERBOSE") != NULL) {
        fprintf(stderr, "%s %s %s %u: %s\n", order->call, order->layout, order->dtype, order->threads, kernel);
    }
    const bool made = dnnl_primitive_create(&primitive, pd) == dnnl_success;
    dnnl_primitive_desc_destroy(pd);
    return made && add_args(memory, &tensor, &channels, order->call) && call() ? NULL : "failed";
}

static double run(unsigned long reps) {
    bool good = call();
    const double start = clock_ns();
    for (unsigned long i = 0; i < reps; i++) good = call() && good;
    return good ? clock_ns() - start : -1;
}

static bool parse(struct order *order, const char *line) {
    int64_t *const d = order->dims;
    return sscanf(line, "prepare %31s %7s %7s %u %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64, order->call,
                  order->layout, order->dtype, &order->threads, &d[0], &d[1], &d[2], &d[3]) == 8;
}

static void follow(const struct memory *memory) {
    char line[256];
    while (fgets(line, sizeof line, stdin) != NULL) {
        struct order order;
        if (parse(&order, line)) {
            const char *const refusal = prepare(memory, &order);
            printf(refusal == NULL ? "ok\n" : "no %s\n", refusal);
        } else if (strncmp(line, "run ", 4) == 0) {
            printf("%.0f\n", run(strtoul(line + 4, NULL, 10)));
        }
        fflush(stdout);
    }
}

int main(int argc, char **argv) {
    struct memory memory;
    if (argc != 4 || !map(&memory, atoi(argv[1]), strtoul(argv[2], NULL, 10), strtoul(argv[3], NULL, 10))) {
        fprintf(stderr, "usage: bench_onednn FD ROOM CHANNELS, started by bench_kernels\n");
        return 2;
    }
    if (dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success ||
        dnnl_stream_create(&stream, engine, dnnl_stream_default_flags) != dnnl_success) {
        return 1;
    }
    const dnnl_version_t *const version = dnnl_version();
    printf("ready %d.%d.%d\n", version->major, version->minor, version->patch);
    fflush(stdout);
    follow(&memory);
    forget();
    return 0;
}
