// SPDX-License-Identifier: Apache-2.0
#include "blocks.h"

#include <string.h>

enum {
    SEGMENT = 4096,         // elements of a run's row, at most
    RUN_ROWS = 5,           // of a block of runs
    COLUMN_ROWS = 512,      // of a block of columns, planes or joined rows, at most
    COLUMN_BLOCK = 1 << 17, // elements of a block of columns that has no more than LEAST_ROWS
    LEAST_ROWS = 128,
    SHORT_PLANE = 256, // elements; planes up to here are columns
    JOINED_ROWS = 64,  // of a block, each of many of the tensor
};

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

static struct bn_cut cut_runs(struct bn_shape shape) {
    const size_t segments = bn_divide_up(shape.inner, SEGMENT);
    const size_t chunks = bn_divide_up(shape.inner, BN_CHUNK);
    return (struct bn_cut){
        .shape = shape,
        .layout = BN_RUNS,
        .unit_channels = 1,
        .units = shape.channels,
        .rows = RUN_ROWS,
        .length = bn_divide_up(chunks, segments) * BN_CHUNK, // alike, so that no short one is left
        .join = 1,
        .segments = segments,
        .places = bn_divide_up(shape.outer, RUN_ROWS) * segments,
    };
}

// The same where each channel has one plane. Rows that can be taken in turn are then stretches of it, RUN_ROWS of them
// one after another; what is left at its end is less than that.
static struct bn_cut cut_lone_planes(struct bn_shape shape) {
    const size_t least = bn_divide_up(shape.inner, RUN_ROWS * SEGMENT);
    struct bn_cut cut = cut_runs(shape);
    cut.length = shape.inner / (least * RUN_ROWS * BN_CHUNK) * BN_CHUNK;
    cut.stacked = shape.inner / (RUN_ROWS * cut.length);
    cut.segments = cut.stacked + bn_divide_up(shape.inner - cut.stacked * RUN_ROWS * cut.length, cut.length);
    cut.places = cut.segments;
    return cut;
}

static struct bn_cut cut_columns(struct bn_shape shape, enum bn_layout layout, size_t unit_channels, size_t rows) {
    return (struct bn_cut){
        .shape = shape,
        .layout = layout,
        .unit_channels = unit_channels,
        .units = bn_divide_up(shape.channels, unit_channels),
        .rows = rows,
        .join = 1,
        .segments = 1,
        .places = bn_divide_up(shape.outer, rows),
    };
}

// Rows of a tensor whose channels do not fill lanes, joined to longer ones: to a multiple of the lanes if there is one,
// so that every row begins with a whole vector of them.
static struct bn_cut cut_joined(struct bn_shape shape) {
    const size_t even = BN_LANES / (shape.channels & -shape.channels);
    size_t join = BN_JOINED_COLUMNS / shape.channels;
    if (join > even) join -= join % even;
    struct bn_cut cut = cut_columns(shape, BN_JOINED, shape.channels, JOINED_ROWS * join);
    cut.join = join;
    return cut;
}

struct bn_cut bn_cut_of(struct bn_shape shape) {
    // A lone channel is one plane, whatever its axes.
    const bool lone = shape.channels == 1;
    if (lone) shape = (struct bn_shape){1, 1, shape.outer * shape.inner};
    if (shape.outer == 1 && shape.inner > SEGMENT) return cut_lone_planes(shape);
    if (lone || shape.inner > SHORT_PLANE) return cut_runs(shape);
    if (shape.inner > 1) return cut_columns(shape, BN_PLANES, BN_SPREAD_COLUMNS / shape.inner, COLUMN_ROWS);
    if (shape.channels % BN_LANES != 0 && shape.channels <= BN_JOINED_COLUMNS / 2) return cut_joined(shape);
    const size_t tile = bn_min(shape.channels, BN_UNIT_CHANNELS);
    const size_t rows = bn_min(bn_max(COLUMN_BLOCK / tile, LEAST_ROWS), COLUMN_ROWS);
    return cut_columns(shape, BN_COLUMNS, tile, rows);
}

struct bn_block bn_cut_rows(const struct bn_cut *cut, size_t unit, size_t first, size_t rows) {
    const struct bn_shape shape = cut->shape;
    const size_t channel = unit * cut->unit_channels;
    const size_t channels = bn_min(cut->unit_channels, shape.channels - channel);
    return (struct bn_block){
        .offset = (first * shape.channels + channel) * shape.inner,
        .rows = {.rows = bn_min(rows, shape.outer - first),
                 .length = channels * shape.inner,
                 .stride = shape.channels * shape.inner},
        .channel = channel,
        .channels = channels,
    };
}

struct bn_block bn_block_part(struct bn_block block, size_t first, size_t length) {
    block.offset += first;
    block.rows.length = bn_min(length, block.rows.length - first);
    return block;
}

struct bn_block bn_cut_block(const struct bn_cut *cut, size_t unit, size_t place) {
    const struct bn_block rows = bn_cut_rows(cut, unit, place / cut->segments * cut->rows, cut->rows);
    if (cut->layout != BN_RUNS) return rows;
    const size_t segment = place % cut->segments, before = bn_min(segment, cut->stacked);
    const size_t first = (before * cut->rows + segment - before) * cut->length;
    struct bn_block block = bn_block_part(rows, first, cut->length);
    if (segment >= cut->stacked) return block;
    block.rows.rows = cut->rows;
    block.rows.stride = cut->length;
    return block;
}

size_t bn_cut_values(const struct bn_cut *cut, size_t place) {
    const struct bn_block block = bn_cut_block(cut, 0, place);
    return bn_block_values(&block);
}

size_t bn_block_views(struct bn_view views[2], const struct bn_cut *cut, const struct bn_block *block) {
    views[0] = (struct bn_view){block->offset, block->rows};
    if (cut->layout != BN_JOINED) return 1;
    const size_t channels = block->channels, joined = block->rows.rows / cut->join;
    const size_t length = cut->join * channels, rest = block->rows.rows % cut->join * channels;
    size_t count = 0;
    if (joined > 0) views[count++] = (struct bn_view){block->offset, {joined, length, length}};
    if (rest > 0) views[count++] = (struct bn_view){block->offset + joined * length, {1, rest, rest}};
    return count;
}

// Copies of the whole vector of channels one after another.
static size_t repeats(const struct bn_cut *cut, const struct bn_block *block) {
    return cut->layout == BN_JOINED ? bn_min(cut->join, block->rows.rows) : 1;
}

// Both kinds of numbers, as arrays of so many bytes each.
__attribute__((always_inline)) static inline void spread(char *columns, const char *channels, size_t size,
                                                         const struct bn_cut *cut, const struct bn_block *block) {
    const size_t n = block->channels, inner = cut->shape.inner, vectors = repeats(cut, block);
    if (inner == 1) {
        for (size_t r = 0; r < vectors; r++) memcpy(columns + r * n * size, channels, n * size);
        return;
    }
    for (size_t c = 0; c < n; c++) {
        for (size_t i = 0; i < inner; i++, columns += size) memcpy(columns, channels + c * size, size);
    }
}

void bn_spread_floats(float *columns, const float *channels, const struct bn_cut *cut, const struct bn_block *block) {
    spread((char *)columns, (const char *)channels, sizeof *columns, cut, block);
}

void bn_spread_doubles(double *columns, const double *channels, const struct bn_cut *cut,
                       const struct bn_block *block) {
    spread((char *)columns, (const char *)channels, sizeof *columns, cut, block);
}

static double fold_plane(const double *plane, size_t n) {
    double lanes[BN_LANES] = {0};
    size_t i = 0;
    for (; i + BN_LANES <= n; i += BN_LANES) {
        for (size_t j = 0; j < BN_LANES; j++) lanes[j] += plane[i + j];
    }
    for (size_t j = 0; i + j < n; j++) lanes[j] += plane[i + j];
    for (size_t width = BN_LANES / 2; width > 0; width /= 2) {
        for (size_t j = 0; j < width; j++) lanes[j] += lanes[j + width];
    }
    return lanes[0];
}

void bn_fold(double *channels, const double *columns, const struct bn_cut *cut, const struct bn_block *block) {
    const size_t inner = cut->shape.inner;
    for (size_t c = 0; c < block->channels; c++)
        channels[c] = cut->layout == BN_PLANES ? fold_plane(columns + c * inner, inner) : columns[c];
    const size_t vectors = repeats(cut, block);
    for (size_t r = 1; r < vectors; r++) {
        for (size_t c = 0; c < block->channels; c++) channels[c] += columns[r * block->channels + c];
    }
}
