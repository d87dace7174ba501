// SPDX-License-Identifier: Apache-2.0
//
// Every call of bn.h that computes, on one tensor: all that a training step and its variants give.
#ifndef NORMD_TESTS_KERNELS_STEP_H
#define NORMD_TESTS_KERNELS_STEP_H

#include "cases.h"

struct inputs {
    struct guarded x, dout, z, gamma, beta;
};

static inline struct inputs inputs_new(const struct test_case *t) {
    struct inputs in = {guarded_tensor(t->dtype, t->shape), guarded_tensor(t->dtype, t->shape),
                        guarded_tensor(t->dtype, t->shape), guarded_doubles(t->shape.channels),
                        guarded_doubles(t->shape.channels)};
    fill_tensor(in.x.data, t->dtype, t->shape, t->fill, t->seed);
    fill_tensor(in.dout.data, t->dtype, t->shape, FILL_NORMAL, t->seed + 1);
    fill_tensor(in.z.data, t->dtype, t->shape, FILL_NORMAL, t->seed + 2);
    const struct bn_shape channels = {t->shape.channels, 1, 1};
    fill_tensor(in.gamma.data, BN_F64, channels, FILL_NORMAL, t->seed + 3);
    fill_tensor(in.beta.data, BN_F64, channels, FILL_NORMAL, t->seed + 4);
    return in;
}

static inline void inputs_free(struct inputs *in) {
    guarded_free(&in->x);
    guarded_free(&in->dout);
    guarded_free(&in->z);
    guarded_free(&in->gamma);
    guarded_free(&in->beta);
}

enum row {
    MEAN,
    MEAN_LO,
    M2,
    TRAIN_MEAN,
    TRAIN_MEAN_LO,
    TRAIN_M2,
    DGAMMA,
    DBETA,
    FROZEN_DGAMMA,
    FROZEN_DBETA,
    SUM_DY,
    SUM_DY_D,
    AFFINE_DGAMMA,
    AFFINE_DBETA,
    ROWS,
};

static const char *const row_names[ROWS] = {
    "mean",
    "mean_lo",
    "m2",
    "mean of train_forward",
    "mean_lo of train_forward",
    "m2 of train_forward",
    "dgamma",
    "dbeta",
    "frozen dgamma",
    "frozen dbeta",
    "sum of dy",
    "sum of dy * d",
    "affine dgamma",
    "affine dbeta",
};

enum step_tensor {
    Y,
    TRAIN_Y,
    DX,
    DRESIDUAL,
    FROZEN_DX,
    FROZEN_DRESIDUAL,
    APPLIED_DX,
    APPLIED_DRESIDUAL,
    CONSTANT_DX,
    CONSTANT_DRESIDUAL,
    TENSORS,
};

static const char *const tensor_names[TENSORS] = {
    "y",
    "y of train_forward",
    "dx",
    "dresidual",
    "frozen dx",
    "frozen dresidual",
    "applied dx",
    "applied dresidual",
    "dx of constants",
    "dresidual of constants",
};

// One piece of memory, rows of doubles first.
struct results {
    double *rows[ROWS];
    void *tensors[TENSORS];
    void *memory;
    size_t bytes;
};

static inline struct results results_new(const struct test_case *t) {
    const size_t row = t->shape.channels * sizeof(double), tensor = elements(t->shape) * dtype_size(t->dtype);
    struct results r = {.bytes = ROWS * row + TENSORS * tensor};
    char *const memory = r.memory = calloc(1, r.bytes);
    for (size_t i = 0; i < ROWS; i++) r.rows[i] = (double *)(void *)(memory + i * row);
    for (size_t i = 0; i < TENSORS; i++) r.tensors[i] = memory + ROWS * row + i * tensor;
    return r;
}

static inline void results_free(struct results *r) {
    free(r->memory);
}

static inline struct bn_gradients gradients_of(const struct results *r, enum step_tensor dx, enum row dgamma) {
    return (struct bn_gradients){r->tensors[dx], r->tensors[dx + 1], r->rows[dgamma], r->rows[dgamma + 1]};
}

static inline bool run_forward(const struct test_case *t, const struct inputs *in, struct results *r,
                               const struct bn_norm *norm, struct bn_pool *pool) {
    const struct bn_post post = post_of(t->post, in->z.data);
    const struct bn_post *const given = t->post == POST_NONE ? NULL : &post;
    struct bn_stats stats = {.mean = r->rows[MEAN], .mean_lo = r->rows[MEAN_LO], .m2 = r->rows[M2]};
    struct bn_stats train = {.mean = r->rows[TRAIN_MEAN], .mean_lo = r->rows[TRAIN_MEAN_LO], .m2 = r->rows[TRAIN_M2]};
    if (bn_statistics(&stats, in->x.data, t->dtype, t->shape, pool) != BN_OK) return false;
    for (size_t c = 0; c < t->shape.channels; c++) ((double *)norm->var)[c] = stats.m2[c] / (double)stats.count;
    if (bn_normalize(r->tensors[Y], in->x.data, t->dtype, t->shape, norm, given, pool) != BN_OK) return false;
    return bn_train_forward(r->tensors[TRAIN_Y], &train, in->x.data, t->dtype, t->shape, norm->gamma, norm->beta,
                            t->eps, given, pool) == BN_OK &&
           train.count == stats.count;
}

static inline bool run_backward(const struct test_case *t, const struct inputs *in, struct results *r,
                                const struct bn_norm *norm, struct bn_pool *pool) {
    const struct bn_post post = post_of(t->post, in->z.data);
    const struct bn_post *const given = t->post == POST_NONE ? NULL : &post;
    const void *const x = in->x.data, *const dout = in->dout.data;
    const struct bn_gradients own = gradients_of(r, DX, DGAMMA), frozen = gradients_of(r, FROZEN_DX, FROZEN_DGAMMA);
    const struct bn_gradients applied = {.dx = r->tensors[APPLIED_DX], .dresidual = r->tensors[APPLIED_DRESIDUAL]};
    const struct bn_gradients constant = {.dx = r->tensors[CONSTANT_DX], .dresidual = r->tensors[CONSTANT_DRESIDUAL]};
    struct bn_gradient_sums sums = {.dy = r->rows[SUM_DY], .dy_d = r->rows[SUM_DY_D]};
    if (bn_backward(&own, dout, x, t->dtype, t->shape, norm, given, pool) != BN_OK) return false;
    if (bn_backward_frozen(&frozen, dout, x, t->dtype, t->shape, norm, given, pool) != BN_OK) return false;
    if (bn_gradient_sums(&sums, dout, x, t->dtype, t->shape, norm, given, pool) != BN_OK) return false;
    bn_gradient_affine(r->rows[AFFINE_DGAMMA], r->rows[AFFINE_DBETA], &sums, norm, t->shape.channels);
    return bn_gradient_apply(&applied, dout, x, t->dtype, t->shape, norm, given, &sums, pool) == BN_OK &&
           bn_gradient_apply(&constant, dout, x, t->dtype, t->shape, norm, given, NULL, pool) == BN_OK;
}

// Calls that bn.h says give the same bits.
static inline bool consistent(const struct test_case *t, const struct results *r) {
    static const enum row same_rows[][2] = {{MEAN, TRAIN_MEAN},      {MEAN_LO, TRAIN_MEAN_LO}, {M2, TRAIN_M2},
                                            {DGAMMA, FROZEN_DGAMMA}, {DBETA, FROZEN_DBETA},    {DBETA, SUM_DY},
                                            {DGAMMA, AFFINE_DGAMMA}, {DBETA, AFFINE_DBETA}};
    static const enum step_tensor same[][2] = {{Y, TRAIN_Y},
                                               {DX, APPLIED_DX},
                                               {DRESIDUAL, APPLIED_DRESIDUAL},
                                               {FROZEN_DX, CONSTANT_DX},
                                               {DRESIDUAL, FROZEN_DRESIDUAL},
                                               {DRESIDUAL, CONSTANT_DRESIDUAL}};
    bool ok = true;
    for (size_t i = 0; i < COUNT(same_rows); i++) {
        const size_t c =
            first_difference(r->rows[same_rows[i][0]], r->rows[same_rows[i][1]], BN_F64, t->shape.channels);
        if (c < t->shape.channels)
            print_error("%s and %s differ at %zu\n", row_names[same_rows[i][0]], row_names[same_rows[i][1]], c);
        ok &= c == t->shape.channels;
    }
    for (size_t i = 0; i < COUNT(same); i++) {
        const size_t at =
            first_difference(r->tensors[same[i][0]], r->tensors[same[i][1]], t->dtype, elements(t->shape));
        if (at < elements(t->shape))
            print_error("%s and %s differ at %zu\n", tensor_names[same[i][0]], tensor_names[same[i][1]], at);
        ok &= at == elements(t->shape);
    }
    return ok;
}

// May be called from any thread. Where a call fails, all results are 0xee bytes, which no right result is.
static inline struct results run_step(const struct test_case *t, const struct inputs *in, struct bn_pool *pool) {
    struct results r = results_new(t);
    double *const var = malloc(t->shape.channels * sizeof *var);
    const struct bn_norm norm = {.mean = r.rows[MEAN],
                                 .mean_lo = r.rows[MEAN_LO],
                                 .var = var,
                                 .gamma = t->affine ? in->gamma.data : NULL,
                                 .beta = t->affine ? in->beta.data : NULL,
                                 .eps = t->eps};
    if (!run_forward(t, in, &r, &norm, pool) || !run_backward(t, in, &r, &norm, pool) || !consistent(t, &r))
        memset(r.memory, 0xee, r.bytes);
    free(var);
    return r;
}

static inline bool step_failed(const struct results *r) {
    const unsigned char *const bytes = r->memory;
    return bytes[0] == 0xee && memcmp(bytes, bytes + 1, r->bytes - 1) == 0;
}

#endif
