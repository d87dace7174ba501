// SPDX-License-Identifier: Apache-2.0
//
// Statistics and normalization. Gradients are in gradient.c.
#include "bn.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "blocks.h"
#include "coefficients.h"
#include "tiers.h"

size_t bn_dtype_size(enum bn_dtype dtype) {
    return dtype == BN_F32 ? sizeof(float) : sizeof(double);
}

size_t bn_first_nonfinite(const void *x, size_t n, enum bn_dtype dtype) {
    return tier_slots(dtype)->first_nonfinite(x, n);
}

// One pass over x. Entries of delta and m2, [place in merge order][channel], describe the values of a channel in one
// block: delta is their mean less the channel's first value x0, m2 the sum of squared distances from their mean.
// Means are relative to x0 so that a common offset costs no bits.
struct statistics_pass {
    const struct bn_slots *slots;
    const void *x;
    enum bn_dtype dtype;
    struct bn_cut cut;
    double *delta;
    double *m2;
};

// Index of the first value of a channel, in any shape.
static size_t first_of(const struct bn_cut *cut, size_t channel) {
    return channel * cut->shape.inner;
}

// Q - S * S / n, where rounding does not make it negative and overflow leaves no NaN behind.
static double centered(double sum, double sumsq, double n) {
    const double square = sum * (sum / n);
    if (!isfinite(square) || !isfinite(sumsq)) return square + sumsq;
    return fmax(sumsq - square, 0);
}

static void statistics_of_block(void *context, const struct bn_block *block) {
    const struct statistics_pass *const pass = context;
    const void *const x = bn_element(pass->x, pass->dtype, block->offset);
    double *const delta = pass->delta + block->partial;
    double *const m2 = pass->m2 + block->partial;
    size_t channels = 1;
    double n;
    if (pass->cut.columns) {
        channels = block->length;
        n = (double)block->planes;
        pass->slots->sums_columns(delta, m2, x, block->planes, channels, pass->cut.stride);
    } else {
        double sums[2];
        n = (double)(block->planes * block->length);
        pass->slots->sums_run(sums, x, bn_block_run(&pass->cut, block), bn_value(x, pass->dtype, 0));
        delta[0] = sums[0];
        m2[0] = sums[1];
    }
    for (size_t j = 0; j < channels; j++) {
        const double pivot = bn_value(x, pass->dtype, j);
        const double x0 = bn_value(pass->x, pass->dtype, first_of(&pass->cut, block->channel + j));
        m2[j] = centered(delta[j], m2[j], n);
        delta[j] = (pivot - x0) + delta[j] / n;
    }
}

// Folds the blocks of every channel into place 0, in order: Chan, Golub, LeVeque, eq. 2.1b.
static void merge_blocks(const struct statistics_pass *pass) {
    const size_t channels = pass->cut.shape.channels;
    double n = (double)bn_cut_values(&pass->cut, 0);
    for (size_t place = 1; place < pass->cut.per_channel; place++) {
        const double *const delta = pass->delta + place * channels;
        const double *const m2 = pass->m2 + place * channels;
        const double more = (double)bn_cut_values(&pass->cut, place);
        const double weight = more / (n + more);
        for (size_t c = 0; c < channels; c++) {
            const double apart = delta[c] - pass->delta[c];
            pass->delta[c] += apart * weight;
            pass->m2[c] += m2[c] + apart * apart * (n * weight);
        }
        n += more;
    }
}

// hi + lo == a + b exactly. Source: Knuth, TAOCP 2, 4.2.2, theorem B.
static void two_sum(double *hi, double *lo, double a, double b) {
    const double sum = a + b;
    const double b_part = sum - a;
    *lo = (a - (sum - b_part)) + (b - b_part);
    *hi = sum;
}

enum bn_status bn_statistics(struct bn_stats *stats, const void *x, enum bn_dtype dtype, struct bn_shape shape,
                             struct bn_pool *pool) {
    if (!bn_shape_valid(shape, dtype)) return BN_BAD_SHAPE;
    const size_t channels = shape.channels;
    stats->count = bn_shape_elements(shape) / channels;
    if (stats->count == 0) {
        memset(stats->mean, 0, channels * sizeof(double));
        memset(stats->mean_lo, 0, channels * sizeof(double));
        memset(stats->m2, 0, channels * sizeof(double));
        return BN_OK;
    }
    struct statistics_pass pass = {
        .slots = tier_slots(dtype),
        .x = x,
        .dtype = dtype,
        .cut = bn_cut_sums(shape),
        .delta = stats->mean, // one block per channel: no scratch
        .m2 = stats->m2,
    };
    struct bn_room room;
    room.allocated = NULL;
    if (pass.cut.per_channel > 1) {
        if (!bn_room_take(&room, 2 * pass.cut.per_channel, channels)) return BN_NO_MEMORY;
        pass.delta = room.doubles;
        pass.m2 = room.doubles + pass.cut.per_channel * channels;
    }
    bn_cut_for(&pass.cut, pool, statistics_of_block, &pass);
    merge_blocks(&pass);
    for (size_t c = 0; c < channels; c++) {
        two_sum(&stats->mean[c], &stats->mean_lo[c], bn_value(x, dtype, first_of(&pass.cut, c)), pass.delta[c]);
        stats->m2[c] = pass.m2[c];
        // An infinity gives an infinite or a NaN mean by where it stands; m2 alone is infinite where finite values
        // overflow.
        if (!isfinite(stats->mean[c]) || isnan(stats->m2[c])) stats->mean[c] = stats->mean_lo[c] = stats->m2[c] = NAN;
    }
    bn_room_free(&room);
    return BN_OK;
}

struct normalize_pass {
    const struct bn_slots *slots;
    char *y;
    const void *x;
    enum bn_dtype dtype;
    struct bn_cut cut;
    struct bn_coefficients coefficients;
};

static void normalize_block(void *context, const struct bn_block *block) {
    const struct normalize_pass *const pass = context;
    const void *const x = bn_element(pass->x, pass->dtype, block->offset);
    void *const y = pass->y + block->offset * bn_dtype_size(pass->dtype);
    if (pass->cut.columns)
        pass->slots->normalize_columns(y, x, block->planes, block->length, pass->cut.stride, &pass->coefficients,
                                       block->channel);
    else
        pass->slots->normalize_run(y, x, bn_block_run(&pass->cut, block), &pass->coefficients, block->channel);
}

// With an eps below 1e-77 the scale of a constant channel leaves the range of float, and 0 * infinity is NaN where y is
// beta. Only batch statistics (they have mean_lo) say that a channel is constant; a running variance of 0 does not.
static double normalize_scale(const struct bn_norm *norm, enum bn_dtype dtype, size_t c) {
    const double scale = bn_scale(norm, c);
    const bool constant = norm->mean_lo != NULL && norm->var[c] == 0;
    return dtype == BN_F32 && constant && isfinite(scale) ? fmin(fmax(scale, -FLT_MAX), FLT_MAX) : scale;
}

enum bn_status bn_normalize(void *y, const void *x, enum bn_dtype dtype, struct bn_shape shape,
                            const struct bn_norm *norm, struct bn_pool *pool) {
    if (!bn_shape_valid(shape, dtype)) return BN_BAD_SHAPE;
    if (bn_shape_elements(shape) == 0) return BN_OK;
    struct bn_room room;
    if (!bn_room_take(&room, BN_COEFFICIENT_ROWS, shape.channels)) return BN_NO_MEMORY;
    struct normalize_pass pass = {
        .slots = tier_slots(dtype),
        .y = y,
        .x = x,
        .dtype = dtype,
        .cut = bn_cut_elementwise(shape),
        .coefficients = bn_room_coefficients(&room),
    };
    for (size_t c = 0; c < shape.channels; c++)
        pass.slots->set_coefficients(&pass.coefficients, c, norm->mean[c], bn_entry_or(norm->mean_lo, c, 0),
                                     normalize_scale(norm, dtype, c), bn_entry_or(norm->beta, c, 0), 0);
    bn_cut_for(&pass.cut, pool, normalize_block, &pass);
    bn_room_free(&room);
    return BN_OK;
}
