// SPDX-License-Identifier: Apache-2.0
#include "blocks.h"

#include "pool.h"

enum {
    RUN_ELEMENTS = 4096,     // of a block of runs, unless one plane is all it holds
    COLUMN_ROWS = 512,       // of a block of columns
    ELEMENTWISE_TILE = 8192, // the same for elements alone: whole rows, since pieces of rows halve the speed
    SHORT_PLANE = 32,        // elements; shorter planes are not worth a block of their own
    TASK_ELEMENTS = 16384,   // that a thread takes at a time, at least
    POOL_ELEMENTS = 65536,   // of the smallest tensor that is worth waking threads for
};

static size_t min(size_t a, size_t b) {
    return a < b ? a : b;
}

static size_t max(size_t a, size_t b) {
    return a > b ? a : b;
}

static size_t divide_up(size_t a, size_t b) {
    return a / b + (a % b != 0);
}

// *product *= factor; false where it exceeds PTRDIFF_MAX.
static bool multiply(size_t *product, size_t factor) {
    return !__builtin_mul_overflow(*product, factor, product) && *product <= PTRDIFF_MAX;
}

bool bn_shape_valid(struct bn_shape shape, enum bn_dtype dtype) {
    size_t bytes_per_channel_array = sizeof(double);
    if (shape.channels == 0 || !multiply(&bytes_per_channel_array, shape.channels)) return false;
    if (shape.outer == 0 || shape.inner == 0) return true;
    size_t bytes = bn_dtype_size(dtype);
    return multiply(&bytes, shape.outer) && multiply(&bytes, shape.channels) && multiply(&bytes, shape.inner);
}

size_t bn_shape_elements(struct bn_shape shape) {
    return shape.outer == 0 || shape.inner == 0 ? 0 : shape.outer * shape.channels * shape.inner;
}

static struct bn_cut cut_columns(struct bn_shape shape, size_t rows, size_t tile) {
    return (struct bn_cut){
        .shape = shape,
        .columns = true,
        .planes = rows,
        .length = tile,
        .stride = shape.channels,
        .across = divide_up(shape.channels, tile),
        .segments = 1,
        .per_channel = divide_up(shape.outer, rows),
    };
}

static struct bn_cut cut_runs(struct bn_shape shape, size_t planes) {
    const size_t segments = divide_up(shape.inner, RUN_ELEMENTS);
    return (struct bn_cut){
        .shape = shape,
        .columns = false,
        .planes = planes,
        .length = RUN_ELEMENTS,
        .stride = shape.channels * shape.inner,
        .across = shape.channels,
        .segments = segments,
        .per_channel = divide_up(shape.outer, planes) * segments,
    };
}

// A lone channel is one contiguous run, whatever its axes.
static struct bn_shape fold_lone_channel(struct bn_shape shape) {
    if (shape.channels != 1) return shape;
    return (struct bn_shape){.outer = 1, .channels = 1, .inner = shape.outer * shape.inner};
}

struct bn_cut bn_cut_sums(struct bn_shape shape) {
    shape = fold_lone_channel(shape);
    return shape.inner == 1 ? cut_columns(shape, COLUMN_ROWS, BN_COLUMN_TILE)
                            : cut_runs(shape, max(RUN_ELEMENTS / shape.inner, 1));
}

struct bn_cut bn_cut_elementwise(struct bn_shape shape) {
    shape = fold_lone_channel(shape);
    if (shape.inner > 1) return cut_runs(shape, shape.inner < SHORT_PLANE ? RUN_ELEMENTS / shape.inner : 1);
    const size_t tile = min(shape.channels, ELEMENTWISE_TILE);
    return cut_columns(shape, divide_up(TASK_ELEMENTS, tile), tile);
}

struct bn_block bn_cut_block(const struct bn_cut *cut, size_t i) {
    const struct bn_shape shape = cut->shape;
    const size_t place = i / cut->across;
    const size_t beside = i % cut->across;
    const size_t first_plane = place / cut->segments * cut->planes;
    const size_t first_element = place % cut->segments * cut->length;
    const size_t first_channel = cut->columns ? beside * cut->length : beside;
    return (struct bn_block){
        .offset = (first_plane * shape.channels + first_channel) * shape.inner + first_element,
        .planes = min(cut->planes, shape.outer - first_plane),
        .length = min(cut->length, cut->columns ? shape.channels - first_channel : shape.inner - first_element),
        .channel = first_channel,
        .partial = place * shape.channels + first_channel,
    };
}

size_t bn_cut_values(const struct bn_cut *cut, size_t place) {
    const struct bn_block block = bn_cut_block(cut, place * cut->across);
    return cut->columns ? block.planes : block.planes * block.length;
}

struct share {
    const struct bn_cut *cut;
    void (*task)(void *context, const struct bn_block *block);
    void *context;
    size_t blocks;
    size_t blocks_per_task;
};

static void run_share(void *context, size_t i) {
    const struct share *const share = context;
    const size_t first = i * share->blocks_per_task;
    const size_t end = min(first + share->blocks_per_task, share->blocks);
    for (size_t j = first; j < end; j++) {
        const struct bn_block block = bn_cut_block(share->cut, j);
        share->task(share->context, &block);
    }
}

void bn_cut_for(const struct bn_cut *cut, struct bn_pool *pool,
                void (*task)(void *context, const struct bn_block *block), void *context) {
    const size_t blocks = cut->per_channel * cut->across;
    const size_t elements = bn_shape_elements(cut->shape);
    const size_t blocks_per_task = elements < POOL_ELEMENTS ? blocks : divide_up(TASK_ELEMENTS, elements / blocks);
    struct share share = {cut, task, context, blocks, blocks_per_task};
    pool_for(pool, divide_up(blocks, blocks_per_task), run_share, &share);
}
