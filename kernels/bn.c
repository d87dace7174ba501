// SPDX-License-Identifier: Apache-2.0
//
// Statistics and normalization. Gradients are in gradient.c.
#include "bn.h"

#include <math.h>
#include <string.h>

#include "blocks.h"
#include "coefficients.h"
#include "schedule.h"
#include "tiers.h"

size_t bn_dtype_size(enum bn_dtype dtype) {
    static const unsigned char sizes[] = {[BN_F32] = 4, [BN_F64] = 8, [BN_F16] = 2, [BN_BF16] = 2};
    return sizes[dtype];
}

size_t bn_first_nonfinite(const void *x, size_t n, enum bn_dtype dtype) {
    return tier_slots(dtype)->first_nonfinite(x, n);
}

// A call. Until a channel is finished stats->mean holds its mean less its first value x0, so that a common offset costs
// no bits.
struct forward {
    const struct bn_slots *slots;
    enum bn_dtype dtype;
    struct bn_cut cut;
    const struct bn_stats *stats; // NULL: x is normalized with norm as it is
    struct bn_norm norm;          // with stats: gamma, beta and eps
    struct bn_operands whole;     // the tensors; y NULL: only statistics are wanted
    struct bn_table *table;
};

// ---- statistics

// Q - S * S / n, where rounding does not make it negative and overflow leaves no NaN behind.
static double centered(double sum, double sumsq, double n) {
    const double square = sum * (sum / n);
    if (!isfinite(square) || !isfinite(sumsq)) return square + sumsq;
    return fmax(sumsq - square, 0);
}

// The first value of a channel, in any shape.
static double first_value(const struct forward *f, size_t channel) {
    return bn_value(f->whole.x, f->dtype, channel * f->cut.shape.inner);
}

// One real per channel or column.
union reals {
    double wide[BN_UNIT_CHANNELS];
    float narrow[BN_UNIT_CHANNELS];
};

// The pivots of a block's channels, each its first value there, spread over columns.
static void set_pivots(union reals *pivots, const struct forward *f, const struct bn_block *block) {
    BN_SCRATCH union reals apart;
    union reals *const values = bn_cut_spreads(&f->cut) ? &apart : pivots;
    for (size_t c = 0; c < block->channels; c++) {
        const double pivot = bn_value(f->whole.x, f->dtype, block->offset + c * f->cut.shape.inner);
        if (f->dtype == BN_F64)
            values->wide[c] = pivot;
        else
            values->narrow[c] = (float)pivot;
    }
    if (!bn_cut_spreads(&f->cut)) return;
    if (f->dtype == BN_F64)
        bn_spread_doubles(pivots->wide, values->wide, &f->cut, block);
    else
        bn_spread_floats(pivots->narrow, values->narrow, &f->cut, block);
}

static void view_sums(const struct forward *f, const struct bn_view *view, const void *pivots, double *sum,
                      double *sumsq) {
    f->slots->sums_columns(sum, sumsq, bn_element(f->whole.x, f->dtype, view->offset), view->rows, pivots);
}

static void spread_sums(const struct forward *f, const struct bn_block *block, const void *pivots, double *sum,
                        double *sumsq) {
    BN_SCRATCH double columns[2][BN_SPREAD_COLUMNS], more[2][BN_JOINED_COLUMNS];
    struct bn_view views[2];
    const size_t count = bn_block_views(views, &f->cut, block);
    view_sums(f, &views[0], pivots, columns[0], columns[1]);
    if (count == 2) {
        view_sums(f, &views[1], pivots, more[0], more[1]);
        bn_add(columns[0], more[0], views[1].rows.length);
        bn_add(columns[1], more[1], views[1].rows.length);
    }
    bn_fold(sum, columns[0], &f->cut, block);
    bn_fold(sumsq, columns[1], &f->cut, block);
}

static void block_sums(const struct forward *f, const struct bn_block *block, double *sum, double *sumsq) {
    const void *const x = bn_element(f->whole.x, f->dtype, block->offset);
    if (f->cut.layout == BN_RUNS) {
        double sums[2];
        f->slots->sums_run(sums, x, block->rows, bn_value(x, f->dtype, 0));
        sum[0] = sums[0];
        sumsq[0] = sums[1];
        return;
    }
    // Row 0 is its own pivots, where its type is the one that is computed in.
    if (f->cut.layout == BN_COLUMNS && (f->dtype == BN_F32 || f->dtype == BN_F64)) {
        f->slots->sums_columns(sum, sumsq, x, block->rows, x);
        return;
    }
    BN_SCRATCH union reals pivots;
    set_pivots(&pivots, f, block);
    if (bn_cut_spreads(&f->cut))
        spread_sums(f, block, &pivots, sum, sumsq);
    else
        f->slots->sums_columns(sum, sumsq, x, block->rows, &pivots);
}

// Mean less x0, and m2, of each channel of a block.
static void statistics_of_block(void *context, const struct bn_block *block, double *delta, double *m2) {
    const struct forward *const f = context;
    const size_t apart = f->cut.layout == BN_RUNS ? 0 : f->cut.shape.inner; // from channel to channel
    const double n = (double)bn_block_values(block);
    block_sums(f, block, delta, m2);
    for (size_t c = 0; c < block->channels; c++) {
        const double pivot = bn_value(f->whole.x, f->dtype, block->offset + c * apart);
        m2[c] = centered(delta[c], m2[c], n);
        delta[c] = (pivot - first_value(f, block->channel + c)) + delta[c] / n;
    }
}

// Chan, Golub, LeVeque, eq. 2.1b.
static void merge_statistics(double *delta, double *m2, double n, const double *more_delta, const double *more_m2,
                             double more_n, size_t channels) {
    const double weight = more_n / (n + more_n);
    for (size_t c = 0; c < channels; c++) {
        const double apart = more_delta[c] - delta[c];
        delta[c] += apart * weight;
        m2[c] += more_m2[c] + apart * apart * (n * weight);
    }
}

// hi + lo == a + b exactly. Source: Knuth, TAOCP 2, 4.2.2, theorem B.
static void two_sum(double *hi, double *lo, double a, double b) {
    const double sum = a + b;
    const double b_part = sum - a;
    *lo = (a - (sum - b_part)) + (b - b_part);
    *hi = sum;
}

// An infinity gives an infinite or a NaN mean by where it stands; m2 alone is infinite where finite values overflow.
static void unify_nonfinite(const struct bn_stats *stats, size_t c) {
    if (!isfinite(stats->mean[c]) || isnan(stats->m2[c])) stats->mean[c] = stats->mean_lo[c] = stats->m2[c] = NAN;
}

void bn_stats_merge(struct bn_stats *into, const struct bn_stats *more, size_t channels) {
    if (more->count == 0) return;
    const double n = (double)into->count, more_n = (double)more->count;
    const double weight = more_n / (n + more_n);
    for (size_t c = 0; c < channels; c++) {
        const double apart = (more->mean[c] - into->mean[c]) + (more->mean_lo[c] - into->mean_lo[c]);
        // A part alone keeps its bits.
        const double step = into->count == 0 ? more->mean[c] : apart * weight + into->mean_lo[c];
        const double mean = into->count == 0 ? more->mean_lo[c] : into->mean[c];
        two_sum(&into->mean[c], &into->mean_lo[c], mean, step);
        into->m2[c] = into->count == 0 ? more->m2[c] : into->m2[c] + (more->m2[c] + apart * apart * (n * weight));
        unify_nonfinite(into, c);
    }
    into->count += more->count;
}

// ---- normalization

static void finish_statistics(void *context, size_t channel, size_t channels) {
    struct forward *const f = context;
    const struct bn_stats *const stats = f->stats;
    for (size_t c = channel; c < channel + channels; c++) {
        two_sum(&stats->mean[c], &stats->mean_lo[c], first_value(f, c), stats->mean[c]);
        unify_nonfinite(stats, c);
        const double var = stats->m2[c] / (double)stats->count;
        if (!f->whole.y) continue;
        bn_table_set_forward(f->table, f->dtype, &f->norm, c, stats->mean[c], stats->mean_lo[c], var, var == 0);
    }
}

static void set_given(void *context, size_t channel, size_t channels) {
    const struct forward *const f = context;
    for (size_t c = channel; c < channel + channels; c++) bn_table_set_norm(f->table, f->dtype, &f->norm, c);
}

static void normalize_block(void *context, const struct bn_block *block) {
    const struct forward *const f = context;
    BN_SCRATCH struct bn_spread spread;
    const struct bn_coefficients k = bn_table_of_block(f->table, BN_SHIFT, &f->cut, block, &spread);
    struct bn_view views[2];
    const size_t count = bn_block_views(views, &f->cut, block);
    for (size_t i = 0; i < count; i++) {
        const struct bn_operands op = bn_operands_at(&f->whole, f->dtype, views[i].offset);
        if (f->cut.layout == BN_RUNS)
            f->slots->normalize_run(&op, views[i].rows, &k);
        else
            f->slots->normalize_columns(&op, views[i].rows, &k);
    }
}

static enum bn_status run(struct forward *f, struct bn_shape shape, struct bn_pool *pool) {
    BN_SCRATCH struct bn_table table;
    f->table = &table;
    f->slots = tier_slots(f->dtype);
    f->cut = bn_cut_of(shape);
    f->whole.stream = bn_streams(bn_shape_elements(shape), f->dtype);
    if (f->whole.y && !bn_table_take(f->table, f->dtype, shape.channels)) return BN_NO_MEMORY;
    struct bn_pass pass = {
        .context = f,
        .cut = f->cut,
        .bytes = bn_dtype_size(f->dtype),
        .finish = f->stats ? finish_statistics : set_given,
        .apply = f->whole.y ? normalize_block : NULL,
    };
    if (f->stats) {
        pass.sums = statistics_of_block;
        pass.merge = merge_statistics;
        pass.a = f->stats->mean;
        pass.b = f->stats->m2;
    }
    const enum bn_status status = bn_pass_run(&pass, pool);
    if (f->whole.y) bn_table_free(f->table);
    return status;
}

// ---- the calls

// True where x is empty: all statistics are 0.
static bool set_count(struct bn_stats *stats, struct bn_shape shape) {
    stats->count = bn_shape_elements(shape) / shape.channels;
    if (stats->count > 0) return false;
    memset(stats->mean, 0, shape.channels * sizeof(double));
    memset(stats->mean_lo, 0, shape.channels * sizeof(double));
    memset(stats->m2, 0, shape.channels * sizeof(double));
    return true;
}

enum bn_status bn_statistics(struct bn_stats *stats, const void *x, enum bn_dtype dtype, struct bn_shape shape,
                             struct bn_pool *pool) {
    if (!bn_shape_valid(shape, dtype)) return BN_BAD_SHAPE;
    if (set_count(stats, shape)) return BN_OK;
    struct forward f = {.dtype = dtype, .stats = stats, .whole = {.x = x}};
    return run(&f, shape, pool);
}

enum bn_status bn_normalize(void *y, const void *x, enum bn_dtype dtype, struct bn_shape shape,
                            const struct bn_norm *norm, const struct bn_post *post, struct bn_pool *pool) {
    if (!bn_shape_valid(shape, dtype)) return BN_BAD_SHAPE;
    if (bn_shape_elements(shape) == 0) return BN_OK;
    struct forward f = {.dtype = dtype, .norm = *norm, .whole = {.x = x, .y = y}};
    bn_operands_set_post(&f.whole, post);
    return run(&f, shape, pool);
}

enum bn_status bn_train_forward(void *y, struct bn_stats *stats, const void *x, enum bn_dtype dtype,
                                struct bn_shape shape, const double *gamma, const double *beta, double eps,
                                const struct bn_post *post, struct bn_pool *pool) {
    if (!bn_shape_valid(shape, dtype)) return BN_BAD_SHAPE;
    if (set_count(stats, shape)) return BN_OK;
    struct forward f = {.dtype = dtype, .stats = stats, .norm = {.gamma = gamma, .beta = beta, .eps = eps}};
    f.whole.x = x;
    f.whole.y = y;
    bn_operands_set_post(&f.whole, post);
    return run(&f, shape, pool);
}
