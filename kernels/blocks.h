// SPDX-License-Identifier: Apache-2.0
//
// How a tensor is cut into blocks, and how blocks are shared out among threads. The cut comes from the shape alone, so
// that results merged in block order have the same bits for every pool and tier. Internal to kernels/.
#ifndef NORMD_KERNELS_BLOCKS_H
#define NORMD_KERNELS_BLOCKS_H

#include <stdbool.h>
#include <stddef.h>

#include "bn.h"
#include "tiers.h"

// Channels of a block of columns that sums are taken over, at most. Changes no bits: every column has its own sums.
enum { BN_COLUMN_TILE = 128 };

// A block of a cut by runs is `planes` stretches of `length` elements, all of one channel: whole planes, or a segment
// of one plane. A block of a cut by columns (inner == 1) is `planes` rows of `length` channels side by side.
// Either way stretches are cut.stride elements apart.
struct bn_block {
    size_t offset; // of its first element in the tensor
    size_t planes;
    size_t length;
    size_t channel; // the first one
    size_t partial; // entry of that channel in arrays [cut.per_channel][channels]; further channels follow
};

struct bn_cut {
    struct bn_shape shape;
    bool columns;
    size_t planes; // of a block, at most
    size_t length; // of a block, at most
    size_t stride;
    size_t across;      // blocks side by side that share the place in merge order: channels, or tiles of columns
    size_t segments;    // that each plane is cut into; 1 where blocks have whole planes
    size_t per_channel; // blocks of each channel, in merge order
};

// Whether the shape has channels, and neither its elements of dtype nor a double per channel exceed PTRDIFF_MAX bytes.
bool bn_shape_valid(struct bn_shape shape, enum bn_dtype dtype);

// Elements of a valid shape.
size_t bn_shape_elements(struct bn_shape shape);

// The cut that sums are taken over. The shape is valid and not empty.
struct bn_cut bn_cut_sums(struct bn_shape shape);

// The cut for passes that handle each element alone, where bits do not depend on the cut. As above.
struct bn_cut bn_cut_elementwise(struct bn_shape shape);

// Block i of per_channel * across.
struct bn_block bn_cut_block(const struct bn_cut *cut, size_t i);

// Values per channel in the blocks at place `place` of the merge order.
size_t bn_cut_values(const struct bn_cut *cut, size_t place);

// Runs task(context, block) once for every block, on the threads of the pool where that pays; returns when all have
// ended. Any order.
void bn_cut_for(const struct bn_cut *cut, struct bn_pool *pool,
                void (*task)(void *context, const struct bn_block *block), void *context);

// The run of a block of a cut by runs.
static inline struct bn_run bn_block_run(const struct bn_cut *cut, const struct bn_block *block) {
    return (struct bn_run){.planes = block->planes, .length = block->length, .stride = cut->stride};
}

// Address of element `index` of a tensor.
static inline const void *bn_element(const void *x, enum bn_dtype dtype, size_t index) {
    return (const char *)x + index * bn_dtype_size(dtype);
}

static inline double bn_value(const void *x, enum bn_dtype dtype, size_t index) {
    return dtype == BN_F32 ? (double)((const float *)x)[index] : ((const double *)x)[index];
}

#endif
