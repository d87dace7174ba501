// SPDX-License-Identifier: Apache-2.0
//
// How a tensor is cut into blocks for sums. The cut comes from the shape alone, so that results merged in the order of
// places have the same bits for every pool, schedule and tier. Internal to kernels/.
//
// A unit is one channel or a few neighbours that are worked on together; the values of a unit lie in `places` blocks.
#ifndef NORMD_KERNELS_BLOCKS_H
#define NORMD_KERNELS_BLOCKS_H

#include <stdbool.h>
#include <stddef.h>

#include "bn.h"
#include "tiers.h"

enum {
    BN_UNIT_CHANNELS = 2048,  // of a unit, at most
    BN_SPREAD_COLUMNS = 1568, // elements side by side in a unit of planes, at most: 32 of 7 x 7, 8 of 14 x 14
    BN_JOINED_COLUMNS = 1024, // the same of joined rows
};
_Static_assert(BN_JOINED_COLUMNS <= BN_SPREAD_COLUMNS && BN_SPREAD_COLUMNS <= BN_UNIT_CHANNELS,
               "scratch for one has room for the next");

// For large scratch arrays: the build zeroes automatic variables, which would cost more than a small call does.
#if defined(__has_attribute) && __has_attribute(uninitialized)
#define BN_SCRATCH __attribute__((uninitialized))
#else
#define BN_SCRATCH
#endif

enum bn_layout {
    BN_RUNS,    // long planes: a unit is a channel, a row of a block is a segment of one plane
    BN_COLUMNS, // inner == 1: a unit is a tile of channels, each a column
    BN_PLANES,  // short planes: a unit is a group of channels, each position of their planes a column
    BN_JOINED,  // inner == 1, channels that do not fill lanes: `join` rows are one, a unit is all channels
};

struct bn_cut {
    struct bn_shape shape; // {1, 1, n} for a lone channel
    enum bn_layout layout;
    size_t unit_channels; // at most; the last unit may have fewer
    size_t units;
    size_t rows;     // of a block, at most
    size_t length;   // RUNS: of a stretch, at most
    size_t join;     // JOINED: rows of the tensor that are one row of columns; otherwise 1
    size_t segments; // RUNS: that each plane is cut into: each one stretch, but
    size_t stacked;  // so many, the first ones, are `rows` stretches of `length`, one after another. 0 with outer > 1
    size_t places;   // blocks of each unit, in merge order: after rows, then segments
};

struct bn_block {
    size_t offset; // of its first element in the tensor
    struct bn_rows rows;
    size_t channel; // the first one
    size_t channels;
};

// Whether the shape has channels, and neither its elements of dtype nor a double per channel exceed PTRDIFF_MAX bytes.
bool bn_shape_valid(struct bn_shape shape, enum bn_dtype dtype);

// Elements of a valid shape.
size_t bn_shape_elements(struct bn_shape shape);

// The cut of a shape that is valid and not empty.
struct bn_cut bn_cut_of(struct bn_shape shape);

// A block of a unit, place in [0, cut->places).
struct bn_block bn_cut_block(const struct bn_cut *cut, size_t unit, size_t place);

// Rows [first, first + rows) of a unit, whole.
struct bn_block bn_cut_rows(const struct bn_cut *cut, size_t unit, size_t first, size_t rows);

// Elements [first, first + length) of each row of a block of runs, or to the end of it.
struct bn_block bn_block_part(struct bn_block block, size_t first, size_t length);

// Values per channel in the blocks at `place`.
size_t bn_cut_values(const struct bn_cut *cut, size_t place);

// A block as slots see it. All but BN_JOINED have one view; joined rows may leave a rest, which is a row of its own and
// shares its columns with the first ones.
struct bn_view {
    size_t offset;
    struct bn_rows rows;
};

// Returns how many views there are, 1 or 2.
size_t bn_block_views(struct bn_view views[2], const struct bn_cut *cut, const struct bn_block *block);

// Whether a channel of a block has several columns, so that numbers of channels have to be spread over them and sums of
// columns folded into those of channels.
static inline bool bn_cut_spreads(const struct bn_cut *cut) {
    return cut->layout == BN_PLANES || cut->layout == BN_JOINED;
}

// columns[j] = the entry of column j's channel, for the first view of a block of a cut that spreads.
void bn_spread_floats(float *columns, const float *channels, const struct bn_cut *cut, const struct bn_block *block);
void bn_spread_doubles(double *columns, const double *channels, const struct bn_cut *cut, const struct bn_block *block);

// The reverse for sums. Planes: position i of a plane goes to lane i % BN_LANES, in order, and the lanes are added up
// as a tree. Joined rows: one after another.
void bn_fold(double *channels, const double *columns, const struct bn_cut *cut, const struct bn_block *block);

// Adds arrays.
static inline void bn_add(double *to, const double *from, size_t n) {
    for (size_t i = 0; i < n; i++) to[i] += from[i];
}

// Values per channel in a block.
static inline size_t bn_block_values(const struct bn_block *block) {
    return block->rows.rows * (block->rows.length / block->channels);
}

static inline size_t bn_min(size_t a, size_t b) {
    return a < b ? a : b;
}

static inline size_t bn_max(size_t a, size_t b) {
    return a > b ? a : b;
}

static inline size_t bn_divide_up(size_t a, size_t b) {
    return a / b + (a % b != 0);
}

#endif
