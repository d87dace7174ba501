// SPDX-License-Identifier: Apache-2.0
//
// Gradients of bn_normalize: sums over every channel, then the elements.
#include <string.h>

#include "blocks.h"
#include "bn.h"
#include "coefficients.h"
#include "schedule.h"
#include "tiers.h"

// A call.
struct backward {
    const struct bn_slots *slots;
    enum bn_dtype dtype;
    struct bn_cut cut;
    const struct bn_norm *norm;
    struct bn_operands whole; // the tensors; dx NULL: only sums are wanted
    bool given;               // sums are read, not taken
    struct bn_gradient_sums sums;
    struct bn_table *table;
};

// ---- sums

static void spread_sums(const struct backward *b, const struct bn_block *block, const struct bn_coefficients *k,
                        double *dy, double *dy_d) {
    BN_SCRATCH double mean[BN_SPREAD_COLUMNS], columns[2][BN_SPREAD_COLUMNS], more[2][BN_JOINED_COLUMNS];
    struct bn_view views[2];
    const size_t count = bn_block_views(views, &b->cut, block);
    bn_spread_doubles(mean, b->norm->mean + block->channel, &b->cut, block);
    struct bn_operands op = bn_operands_at(&b->whole, b->dtype, views[0].offset);
    b->slots->grad_sums_columns(columns[0], columns[1], &op, views[0].rows, mean, k);
    if (count == 2) {
        op = bn_operands_at(&b->whole, b->dtype, views[1].offset);
        b->slots->grad_sums_columns(more[0], more[1], &op, views[1].rows, mean, k);
        bn_add(columns[0], more[0], views[1].rows.length);
        bn_add(columns[1], more[1], views[1].rows.length);
    }
    bn_fold(dy, columns[0], &b->cut, block);
    bn_fold(dy_d, columns[1], &b->cut, block);
}

// Distances are taken from norm->mean; what mean_lo adds is put right when a channel is finished.
static void sums_of_block(void *context, const struct bn_block *block, double *dy, double *dy_d) {
    const struct backward *const b = context;
    const double *const mean = b->norm->mean + block->channel;
    const struct bn_operands op = bn_operands_at(&b->whole, b->dtype, block->offset);
    BN_SCRATCH struct bn_spread spread;
    struct bn_coefficients k = {0};
    if (op.relu) k = bn_table_of_block(b->table, BN_SHIFT, &b->cut, block, &spread);
    if (b->cut.layout == BN_RUNS) {
        double sums[2];
        b->slots->grad_sums_run(sums, &op, block->rows, mean[0], &k);
        dy[0] = sums[0];
        dy_d[0] = sums[1];
    } else if (bn_cut_spreads(&b->cut)) {
        spread_sums(b, block, &k, dy, dy_d);
    } else {
        b->slots->grad_sums_columns(dy, dy_d, &op, block->rows, mean, &k);
    }
}

static void add_sums(double *dy, double *dy_d, double n, const double *more_dy, const double *more_dy_d, double more_n,
                     size_t channels) {
    (void)n;
    (void)more_n;
    bn_add(dy, more_dy, channels);
    bn_add(dy_d, more_dy_d, channels);
}

void bn_gradient_sums_merge(struct bn_gradient_sums *into, const struct bn_gradient_sums *more, size_t channels) {
    into->count += more->count;
    add_sums(into->dy, into->dy_d, 0, more->dy, more->dy_d, 0, channels);
}

void bn_gradient_affine(double *dgamma, double *dbeta, const struct bn_gradient_sums *sums, const struct bn_norm *norm,
                        size_t channels) {
    for (size_t c = 0; c < channels; c++) {
        dgamma[c] = sums->dy_d[c] * bn_invstd(norm->var[c], norm->eps);
        dbeta[c] = sums->dy[c];
    }
}

// ---- elements

static void set_gradient(struct backward *b, size_t c) {
    const double n = (double)b->sums.count, invstd = bn_invstd(b->norm->var[c], b->norm->eps);
    // The gradient of gamma first: it has the size of dy at any scale of x, where invstd * invstd may leave the range.
    bn_table_set(b->table, BN_SLOPE, c, b->sums.dy_d[c] * invstd / n * invstd);
    bn_table_set(b->table, BN_SHIFT, c, b->sums.dy[c] / n);
}

static void finish_channels(void *context, size_t channel, size_t channels) {
    struct backward *const b = context;
    for (size_t c = channel; c < channel + channels; c++) {
        const double mean_lo = bn_entry_or(b->norm->mean_lo, c, 0);
        if (!b->given && mean_lo != 0) b->sums.dy_d[c] -= mean_lo * b->sums.dy[c]; // 0 times infinity is NaN
        if (b->whole.dx && !b->whole.frozen) set_gradient(b, c);
    }
}

static void gradient_of_block(void *context, const struct bn_block *block) {
    const struct backward *const b = context;
    BN_SCRATCH struct bn_spread spread;
    const struct bn_coefficients k =
        bn_table_of_block(b->table, b->whole.frozen ? BN_SHIFT : BN_COEFFICIENTS, &b->cut, block, &spread);
    struct bn_view views[2];
    const size_t count = bn_block_views(views, &b->cut, block);
    for (size_t i = 0; i < count; i++) {
        const struct bn_operands op = bn_operands_at(&b->whole, b->dtype, views[i].offset);
        if (b->cut.layout == BN_RUNS)
            b->slots->grad_run(&op, views[i].rows, &k);
        else
            b->slots->grad_columns(&op, views[i].rows, &k);
    }
}

// ---- the calls

static enum bn_status run(struct backward *b, struct bn_shape shape, struct bn_pool *pool) {
    b->slots = tier_slots(b->dtype);
    b->cut = bn_cut_of(shape);
    b->whole.stream = bn_streams(bn_shape_elements(shape), b->dtype);
    if (!b->whole.relu) b->whole.z = NULL; // it is of no use then
    BN_SCRATCH struct bn_table room;
    b->table = &room;
    const bool table = b->whole.dx || b->whole.relu;
    if (table && !bn_table_take(b->table, b->dtype, shape.channels)) return BN_NO_MEMORY;
    for (size_t c = 0; table && c < shape.channels; c++) bn_table_set_norm(b->table, b->dtype, b->norm, c);
    struct bn_pass pass = {
        .context = b,
        .cut = b->cut,
        .bytes = bn_dtype_size(b->dtype) * (b->whole.z ? 3 : 2),
        .finish = finish_channels,
        .apply = b->whole.dx ? gradient_of_block : NULL,
    };
    if (!b->given) {
        pass.sums = sums_of_block;
        pass.merge = add_sums;
        pass.a = b->sums.dy;
        pass.b = b->sums.dy_d;
    }
    const enum bn_status status = bn_pass_run(&pass, pool);
    if (table) bn_table_free(b->table);
    return status;
}

enum bn_status bn_gradient_sums(struct bn_gradient_sums *sums, const void *dout, const void *x, enum bn_dtype dtype,
                                struct bn_shape shape, const struct bn_norm *norm, const struct bn_post *post,
                                struct bn_pool *pool) {
    if (!bn_shape_valid(shape, dtype)) return BN_BAD_SHAPE;
    sums->count = bn_shape_elements(shape) / shape.channels;
    if (sums->count == 0) {
        memset(sums->dy, 0, shape.channels * sizeof(double));
        memset(sums->dy_d, 0, shape.channels * sizeof(double));
        return BN_OK;
    }
    struct backward b = {.dtype = dtype, .norm = norm, .whole = {.x = x, .dy = dout}, .sums = *sums};
    bn_operands_set_post(&b.whole, post);
    return run(&b, shape, pool);
}

enum bn_status bn_gradient_apply(const struct bn_gradients *gradients, const void *dout, const void *x,
                                 enum bn_dtype dtype, struct bn_shape shape, const struct bn_norm *norm,
                                 const struct bn_post *post, const struct bn_gradient_sums *sums,
                                 struct bn_pool *pool) {
    if (!bn_shape_valid(shape, dtype)) return BN_BAD_SHAPE;
    if (bn_shape_elements(shape) == 0) return BN_OK;
    struct backward b = {.dtype = dtype, .norm = norm, .given = true};
    b.whole = (struct bn_operands){
        .x = x, .dy = dout, .dx = gradients->dx, .dz = gradients->dresidual, .frozen = sums == NULL};
    if (sums) b.sums = *sums;
    bn_operands_set_post(&b.whole, post);
    return run(&b, shape, pool);
}

static enum bn_status backward(const struct bn_gradients *gradients, const void *dout, const void *x,
                               enum bn_dtype dtype, struct bn_shape shape, const struct bn_norm *norm,
                               const struct bn_post *post, struct bn_pool *pool, bool frozen) {
    if (!bn_shape_valid(shape, dtype)) return BN_BAD_SHAPE;
    const size_t channels = shape.channels;
    const struct bn_gradient_sums sums = {bn_shape_elements(shape) / channels, gradients->dbeta, gradients->dgamma};
    if (sums.count == 0) {
        memset(sums.dy, 0, channels * sizeof(double));
        memset(sums.dy_d, 0, channels * sizeof(double));
        return BN_OK;
    }
    struct backward b = {.dtype = dtype, .norm = norm, .sums = sums};
    b.whole =
        (struct bn_operands){.x = x, .dy = dout, .dx = gradients->dx, .dz = gradients->dresidual, .frozen = frozen};
    bn_operands_set_post(&b.whole, post);
    const enum bn_status status = run(&b, shape, pool);
    if (status == BN_OK) bn_gradient_affine(gradients->dgamma, gradients->dbeta, &sums, norm, channels);
    return status;
}

enum bn_status bn_backward(const struct bn_gradients *gradients, const void *dout, const void *x, enum bn_dtype dtype,
                           struct bn_shape shape, const struct bn_norm *norm, const struct bn_post *post,
                           struct bn_pool *pool) {
    return backward(gradients, dout, x, dtype, shape, norm, post, pool, false);
}

enum bn_status bn_backward_frozen(const struct bn_gradients *gradients, const void *dout, const void *x,
                                  enum bn_dtype dtype, struct bn_shape shape, const struct bn_norm *norm,
                                  const struct bn_post *post, struct bn_pool *pool) {
    return backward(gradients, dout, x, dtype, shape, norm, post, pool, true);
}
