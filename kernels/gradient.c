// SPDX-License-Identifier: Apache-2.0
//
// Gradients of bn_normalize: one pass for the sums, one for dx.
#include <string.h>

#include "blocks.h"
#include "bn.h"
#include "coefficients.h"
#include "tiers.h"

// Arrays sum and sum_d are [place in merge order][channel]: sums of dy and of dy * (x - mean).
struct gradient_pass {
    const struct bn_slots *slots;
    char *dx;
    const void *dout;
    const void *x;
    enum bn_dtype dtype;
    const struct bn_norm *norm;
    struct bn_cut cut;
    double *sum;
    double *sum_d;
    struct bn_coefficients coefficients;
};

// Stands in for an absent mean_lo, one tile of columns at a time.
static const double zeros[BN_COLUMN_TILE];

static void sums_of_block(void *context, const struct bn_block *block) {
    const struct gradient_pass *const pass = context;
    const void *const dy = bn_element(pass->dout, pass->dtype, block->offset);
    const void *const x = bn_element(pass->x, pass->dtype, block->offset);
    double *const sum = pass->sum + block->partial;
    double *const sum_d = pass->sum_d + block->partial;
    const double *const mean = pass->norm->mean + block->channel;
    const double *const mean_lo = pass->norm->mean_lo ? pass->norm->mean_lo + block->channel : zeros;
    if (pass->cut.columns) {
        pass->slots->grad_sums_columns(sum, sum_d, dy, x, block->planes, block->length, pass->cut.stride, mean,
                                       mean_lo);
        return;
    }
    double sums[2];
    pass->slots->grad_sums_run(sums, dy, x, bn_block_run(&pass->cut, block), mean[0], mean_lo[0]);
    sum[0] = sums[0];
    sum_d[0] = sums[1];
}

// Adds the sums of every channel up into place 0, in order.
static void add_blocks(const struct gradient_pass *pass) {
    const size_t channels = pass->cut.shape.channels;
    for (size_t place = 1; place < pass->cut.per_channel; place++) {
        for (size_t c = 0; c < channels; c++) {
            pass->sum[c] += pass->sum[place * channels + c];
            pass->sum_d[c] += pass->sum_d[place * channels + c];
        }
    }
}

static void gradient_of_block(void *context, const struct bn_block *block) {
    const struct gradient_pass *const pass = context;
    const void *const dy = bn_element(pass->dout, pass->dtype, block->offset);
    const void *const x = bn_element(pass->x, pass->dtype, block->offset);
    void *const dx = pass->dx + block->offset * bn_dtype_size(pass->dtype);
    if (pass->cut.columns)
        pass->slots->grad_columns(dx, dy, x, block->planes, block->length, pass->cut.stride, &pass->coefficients,
                                  block->channel);
    else
        pass->slots->grad_run(dx, dy, x, bn_block_run(&pass->cut, block), &pass->coefficients, block->channel);
}

static void scale_block(void *context, const struct bn_block *block) {
    const struct gradient_pass *const pass = context;
    const void *const dy = bn_element(pass->dout, pass->dtype, block->offset);
    void *const dx = pass->dx + block->offset * bn_dtype_size(pass->dtype);
    if (pass->cut.columns)
        pass->slots->scale_columns(dx, dy, block->planes, block->length, pass->cut.stride, &pass->coefficients,
                                   block->channel);
    else
        pass->slots->scale_run(dx, dy, bn_block_run(&pass->cut, block), &pass->coefficients, block->channel);
}

// Sets dgamma, dbeta and the coefficients of dx from the sums of every channel.
static void finish_channels(const struct gradient_pass *pass, double *dgamma, double *dbeta, bool through_statistics) {
    const size_t channels = pass->cut.shape.channels;
    const double n = (double)(bn_shape_elements(pass->cut.shape) / channels);
    for (size_t c = 0; c < channels; c++) {
        const double invstd = bn_invstd(pass->norm, c);
        dbeta[c] = pass->sum[c];
        dgamma[c] = pass->sum_d[c] * invstd;
        // dgamma / n first: it has the size of dy at any scale of x, where invstd * invstd may leave the range.
        const double slope = through_statistics ? dgamma[c] / n * invstd : 0;
        const double shift = through_statistics ? dbeta[c] / n : 0;
        pass->slots->set_coefficients(&pass->coefficients, c, pass->norm->mean[c],
                                      bn_entry_or(pass->norm->mean_lo, c, 0), bn_scale(pass->norm, c), shift, slope);
    }
}

static enum bn_status backward(struct gradient_pass *pass, double *dgamma, double *dbeta, struct bn_shape shape,
                               struct bn_pool *pool, bool through_statistics) {
    if (!bn_shape_valid(shape, pass->dtype)) return BN_BAD_SHAPE;
    const size_t channels = shape.channels;
    if (bn_shape_elements(shape) == 0) {
        memset(dgamma, 0, channels * sizeof(double));
        memset(dbeta, 0, channels * sizeof(double));
        return BN_OK;
    }
    pass->slots = tier_slots(pass->dtype);
    pass->cut = bn_cut_sums(shape);
    const bool one_block = pass->cut.per_channel == 1; // whose sums the outputs can hold
    const size_t partials = one_block ? 0 : pass->cut.per_channel;
    struct bn_room room;
    if (!bn_room_take(&room, BN_COEFFICIENT_ROWS + 2 * partials, channels)) return BN_NO_MEMORY;
    double *const rest = room.doubles + BN_COEFFICIENT_ROWS * room.stride;
    pass->coefficients = bn_room_coefficients(&room);
    pass->sum = one_block ? dbeta : rest;
    pass->sum_d = one_block ? dgamma : rest + partials * channels;
    bn_cut_for(&pass->cut, pool, sums_of_block, pass);
    add_blocks(pass);
    finish_channels(pass, dgamma, dbeta, through_statistics);
    pass->cut = bn_cut_elementwise(shape);
    bn_cut_for(&pass->cut, pool, through_statistics ? gradient_of_block : scale_block, pass);
    bn_room_free(&room);
    return BN_OK;
}

enum bn_status bn_backward(void *dx, double *dgamma, double *dbeta, const void *dout, const void *x,
                           enum bn_dtype dtype, struct bn_shape shape, const struct bn_norm *norm,
                           struct bn_pool *pool) {
    struct gradient_pass pass = {.dx = dx, .dout = dout, .x = x, .dtype = dtype, .norm = norm};
    return backward(&pass, dgamma, dbeta, shape, pool, true);
}

enum bn_status bn_backward_frozen(void *dx, double *dgamma, double *dbeta, const void *dout, const void *x,
                                  enum bn_dtype dtype, struct bn_shape shape, const struct bn_norm *norm,
                                  struct bn_pool *pool) {
    struct gradient_pass pass = {.dx = dx, .dout = dout, .x = x, .dtype = dtype, .norm = norm};
    return backward(&pass, dgamma, dbeta, shape, pool, false);
}
