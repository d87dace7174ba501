// SPDX-License-Identifier: Apache-2.0
#include "coefficients.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "cpu.h"
#include "half.h"

// Doubles between rows, so that with a power of two of channels the coefficients, x and y do not all fall into the same
// cache sets.
enum { PADDING = 24 };

enum { STREAM_BYTES = 4 << 20 };

bool bn_room_take(struct bn_room *room, size_t rows, size_t channels) {
    size_t bytes;
    if (__builtin_add_overflow(channels, PADDING, &room->stride) ||
        __builtin_mul_overflow(room->stride, sizeof(double), &bytes) || __builtin_mul_overflow(bytes, rows, &bytes))
        return false;
    room->doubles = room->here.doubles;
    room->allocated = NULL;
    if (bytes <= sizeof room->here) return true;
    room->doubles = room->allocated = malloc(bytes);
    return room->allocated;
}

void bn_room_free(struct bn_room *room) {
    free(room->allocated);
}

bool bn_table_take(struct bn_table *table, enum bn_dtype dtype, size_t channels) {
    table->wide = dtype == BN_F64;
    return bn_room_take(&table->room, BN_COEFFICIENTS, channels);
}

void bn_table_free(struct bn_table *table) {
    bn_room_free(&table->room);
}

static double *table_row(const struct bn_table *table, enum bn_coefficient row) {
    return table->room.doubles + row * table->room.stride;
}

void bn_table_set(struct bn_table *table, enum bn_coefficient row, size_t channel, double value) {
    double *const values = table_row(table, row);
    if (table->wide) {
        values[channel] = value;
    } else {
        ((float *)(void *)values)[channel] = (float)value;
    }
}

void bn_table_set_mean(struct bn_table *table, size_t channel, double mean, double mean_lo) {
    const double mean_hi = table->wide ? mean : (double)(float)mean;
    bn_table_set(table, BN_MEAN_HI, channel, mean_hi);
    bn_table_set(table, BN_MEAN_LO, channel, (mean - mean_hi) + mean_lo);
}

struct bn_coefficients bn_table_of_block(const struct bn_table *table, unsigned count, const struct bn_cut *cut,
                                         const struct bn_block *block, struct bn_spread *spread) {
    const void *rows[BN_COEFFICIENTS] = {NULL};
    const size_t size = table->wide ? sizeof(double) : sizeof(float);
    for (unsigned i = 0; i < count; i++) {
        const void *const row = (const char *)table_row(table, (enum bn_coefficient)i) + block->channel * size;
        rows[i] = row;
        if (!bn_cut_spreads(cut)) continue;
        rows[i] = &spread->row[i];
        if (table->wide) {
            bn_spread_doubles(spread->row[i].wide, row, cut, block);
        } else {
            bn_spread_floats(spread->row[i].narrow, row, cut, block);
        }
    }
    return (struct bn_coefficients){
        .mean_hi = rows[BN_MEAN_HI],
        .mean_lo = rows[BN_MEAN_LO],
        .scale = rows[BN_SCALE],
        .beta = rows[BN_BETA],
        .shift = rows[BN_SHIFT],
        .slope = rows[BN_SLOPE],
    };
}

bool bn_streams(size_t elements, enum bn_dtype dtype) {
    return elements * bn_dtype_size(dtype) > STREAM_BYTES;
}

double bn_invstd(double var, double eps) {
    return 1 / sqrt(var + eps);
}

// With an eps below 1e-77 the scale of a constant channel leaves the range of float, and 0 * infinity is NaN where y is
// beta. Only a batch's own variance says that a channel is constant; a running variance of 0 does not.
double bn_scale(double gamma, double invstd, bool constant, enum bn_dtype dtype) {
    const double scale = gamma * invstd;
    return dtype != BN_F64 && constant && isfinite(scale) ? fmin(fmax(scale, -FLT_MAX), FLT_MAX) : scale;
}

void bn_table_set_forward(struct bn_table *table, enum bn_dtype dtype, const struct bn_norm *norm, size_t c,
                          double mean, double mean_lo, double var, bool constant) {
    const double gamma = bn_entry_or(norm->gamma, c, 1);
    bn_table_set_mean(table, c, mean, mean_lo);
    bn_table_set(table, BN_SCALE, c, bn_scale(gamma, bn_invstd(var, norm->eps), constant, dtype));
    bn_table_set(table, BN_BETA, c, bn_entry_or(norm->beta, c, 0));
}

void bn_table_set_norm(struct bn_table *table, enum bn_dtype dtype, const struct bn_norm *norm, size_t c) {
    const bool constant = norm->mean_lo != NULL && norm->var[c] == 0;
    bn_table_set_forward(table, dtype, norm, c, norm->mean[c], bn_entry_or(norm->mean_lo, c, 0), norm->var[c],
                         constant);
}

double bn_value(const void *x, enum bn_dtype dtype, size_t index) {
    switch (dtype) {
    case BN_F32: return (double)((const float *)x)[index];
    case BN_F64: return ((const double *)x)[index];
    case BN_F16: return (double)f16_to_float(((const uint16_t *)x)[index]);
    case BN_BF16: return (double)bf16_to_float(((const uint16_t *)x)[index]);
    }
    return NAN;
}

static void *element_out(void *y, enum bn_dtype dtype, size_t index) {
    return y ? (char *)y + index * bn_dtype_size(dtype) : NULL;
}

struct bn_operands bn_operands_at(const struct bn_operands *whole, enum bn_dtype dtype, size_t index) {
    struct bn_operands op = *whole;
    op.x = bn_element(op.x, dtype, index);
    op.z = bn_element(op.z, dtype, index);
    op.dy = bn_element(op.dy, dtype, index);
    op.y = element_out(op.y, dtype, index);
    op.dx = element_out(op.dx, dtype, index);
    op.dz = element_out(op.dz, dtype, index);
    return op;
}

void bn_operands_set_post(struct bn_operands *whole, const struct bn_post *post) {
    if (!post) return;
    whole->z = post->residual;
    whole->relu = post->activation == BN_RELU;
}
