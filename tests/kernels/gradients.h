// SPDX-License-Identifier: Apache-2.0
//
// The operands of a backward, and its results against the oracle, to the bounds that kernels/README.md states. The
// statistics are the oracle's too.
#ifndef NORMD_TESTS_KERNELS_GRADIENTS_H
#define NORMD_TESTS_KERNELS_GRADIENTS_H

#include "oracle.h"

// dx in ulps of the largest of |dx| and its three terms, f32 and f64. kernels/README.md counts them.
static const long double dx_ulps[] = {6, 21}, frozen_dx_ulps[] = {2, 5};

// dgamma and dbeta relative to the sum of absolute values of their terms.
static const long double sums_bound = 1e-11L;

static long double worst_dx[2], worst_dx_terms[2], worst_frozen_dx[2], worst_sums[2];

struct backward_tensors {
    struct guarded x, dout, z, dx, dz, mean, mean_lo, var, gamma, beta, dgamma, dbeta;
    struct truth *truth; // [channels]
};

static inline void fill_dout(const struct test_case *t, void *dout) {
    const enum fill fills[] = {FILL_NORMAL, FILL_NORMAL_1E3, FILL_NORMAL, FILL_OUTLIER_FIRST, FILL_WHOLE, FILL_SORTED};
    fill_tensor(dout, t->dtype, t->shape, fills[t->seed % COUNT(fills)], t->seed + 1);
}

static inline struct backward_tensors backward_tensors_new(const struct test_case *t) {
    const size_t channels = t->shape.channels;
    struct backward_tensors all = {
        .x = guarded_tensor(t->dtype, t->shape),
        .dout = guarded_tensor(t->dtype, t->shape),
        .z = guarded_tensor(t->dtype, t->shape),
        .dx = guarded_tensor(t->dtype, t->shape),
        .dz = guarded_tensor(t->dtype, t->shape),
        .mean = guarded_doubles(channels),
        .mean_lo = guarded_doubles(channels),
        .var = guarded_doubles(channels),
        .gamma = guarded_doubles(channels),
        .beta = guarded_doubles(channels),
        .dgamma = guarded_doubles(channels),
        .dbeta = guarded_doubles(channels),
        .truth = calloc(channels, sizeof *all.truth),
    };
    fill_tensor(all.x.data, t->dtype, t->shape, t->fill, t->seed);
    fill_tensor(all.z.data, t->dtype, t->shape, FILL_NORMAL, t->seed + 2);
    fill_dout(t, all.dout.data);
    fill_tensor(all.gamma.data, BN_F64, (struct bn_shape){channels, 1, 1}, FILL_NORMAL, t->seed + 3);
    fill_tensor(all.beta.data, BN_F64, (struct bn_shape){channels, 1, 1}, FILL_NORMAL, t->seed + 4);
    // A NaN is not flat: it lets dout through.
    if (t->seed % 3 == 0) put(all.z.data, t->dtype, t->seed % elements(t->shape), NAN);
    for (size_t c = 0; c < channels; c++) {
        all.truth[c] = truth_of(all.x.data, t->dtype, t->shape, c);
        ((double *)all.mean.data)[c] = truth_mean(&all.truth[c]);
        ((double *)all.mean_lo.data)[c] = truth_mean_lo(&all.truth[c]);
        ((double *)all.var.data)[c] = (double)all.truth[c].var;
    }
    return all;
}

static inline void backward_tensors_free(struct backward_tensors *all) {
    struct guarded *const each[] = {&all->x,       &all->dout, &all->z,     &all->dx,   &all->dz,     &all->mean,
                                    &all->mean_lo, &all->var,  &all->gamma, &all->beta, &all->dgamma, &all->dbeta};
    for (size_t i = 0; i < COUNT(each); i++) guarded_free(each[i]);
    free(all->truth);
}

static inline struct bn_norm backward_norm(const struct test_case *t, const struct backward_tensors *all) {
    return (struct bn_norm){.mean = all->mean.data,
                            .mean_lo = all->mean_lo.data,
                            .var = all->var.data,
                            .gamma = t->affine ? all->gamma.data : NULL,
                            .beta = t->affine ? all->beta.data : NULL,
                            .eps = t->eps};
}

// dout, or 0 where the activation was flat.
static inline double gradient_in(const struct test_case *t, const struct backward_tensors *all,
                                 const struct rounded *rounded, size_t i) {
    const void *const z = t->post & POST_RESIDUAL ? all->z.data : NULL;
    const bool flat = t->post & POST_RELU && rounded_v(rounded, t->dtype, get(all->x.data, t->dtype, i), z, i) <= 0;
    return flat ? 0 : get(all->dout.data, t->dtype, i);
}

struct gradient_truth {
    struct rounded rounded;
    long double invstd, gamma, dgamma, dbeta;
    long double dgamma_size, dbeta_size; // sums of absolute values
};

static inline struct gradient_truth gradient_of(const struct test_case *t, const struct backward_tensors *all,
                                                const struct bn_norm *norm, size_t c) {
    struct gradient_truth truth = {.rounded = rounded_of(norm, t->dtype, c),
                                   .invstd = 1 / sqrtl(all->truth[c].var + (long double)t->eps),
                                   .gamma = entry_or(norm->gamma, c, 1)};
    for (size_t o = 0; o < t->shape.outer; o++) {
        for (size_t i = index_of(t->shape, o, c, 0); i < index_of(t->shape, o, c, t->shape.inner); i++) {
            const long double g = gradient_in(t, all, &truth.rounded, i);
            const long double xhat = distance(&all->truth[c], get(all->x.data, t->dtype, i)) * truth.invstd;
            truth.dbeta += g;
            truth.dgamma += g * xhat;
            truth.dbeta_size += fabsl(g);
            truth.dgamma_size += fabsl(g * xhat);
        }
    }
    return truth;
}

static inline void check_gradient_sums(const struct test_case *t, const struct gradient_truth *truth, double dgamma,
                                       double dbeta, size_t c) {
    const long double beta_error = fabsl(dbeta - truth->dbeta), gamma_error = fabsl(dgamma - truth->dgamma);
    const long double slack = 8 * DBL_TRUE_MIN * truth->invstd * truth->dbeta_size; // of a mean that underflows
    if (!(beta_error <= sums_bound * truth->dbeta_size))
        fail_case(t, "dbeta[%zu] is %.17g, not %.20Lg", c, dbeta, truth->dbeta);
    if (!(gamma_error <= sums_bound * truth->dgamma_size + slack))
        fail_case(t, "dgamma[%zu] is %.17g, not %.20Lg", c, dgamma, truth->dgamma);
    if (truth->dgamma_size > 1e-280L)
        worst_sums[t->dtype] =
            fmaxl(worst_sums[t->dtype], fmaxl(beta_error / truth->dbeta_size, gamma_error / truth->dgamma_size));
}

// The three terms of dx, and what may be off besides ulps of the largest.
struct dx_truth {
    long double terms[3], slack;
};

static inline struct dx_truth dx_of(const struct test_case *t, const struct gradient_truth *truth, long double d,
                                    double g) {
    const long double n = (long double)(t->shape.outer * t->shape.inner), scale = truth->gamma * truth->invstd;
    struct dx_truth dx = {.terms = {scale * g}};
    if (t->frozen) return dx;
    const long double xhat = d * truth->invstd, least = ulp(0, t->dtype);
    dx.terms[1] = scale * (truth->dbeta / n);
    dx.terms[2] = scale * xhat * (truth->dgamma / n);
    // A mean or slope that underflows errs by some of the smallest subnormals.
    dx.slack = fabsl(scale * truth->dgamma / n) * 8 * least * truth->invstd + fabsl(scale * d) * least;
    // Sums may cancel to nothing but their own error.
    dx.slack += sums_bound * fabsl(scale) * (truth->dbeta_size + fabsl(xhat) * truth->dgamma_size) / n;
    return dx;
}

static inline void check_dx(const struct test_case *t, const struct backward_tensors *all,
                            const struct gradient_truth *truth, size_t c) {
    long double *const worst = t->frozen ? &worst_frozen_dx[t->dtype] : &worst_dx[t->dtype];
    const long double bound = (t->frozen ? frozen_dx_ulps : dx_ulps)[t->dtype];
    for (size_t o = 0; o < t->shape.outer; o++) {
        for (size_t i = index_of(t->shape, o, c, 0); i < index_of(t->shape, o, c, t->shape.inner); i++) {
            const double g = gradient_in(t, all, &truth->rounded, i);
            const long double d = distance(&all->truth[c], get(all->x.data, t->dtype, i));
            const struct dx_truth dx = dx_of(t, truth, d, g);
            const long double right = dx.terms[0] - dx.terms[1] - dx.terms[2];
            const long double largest = max3(dx.terms[0], dx.terms[1], dx.terms[2]);
            const long double unit = ulp(fmaxl(largest, fabsl(right)), t->dtype);
            const long double error = fabsl(get(all->dx.data, t->dtype, i) - right);
            if (!(error <= bound * unit + dx.slack))
                fail_case(t, "dx[%zu] of channel %zu is %.17g, not %.20Lg: %Lg ulp", i, c,
                          get(all->dx.data, t->dtype, i), right, error / unit);
            *worst = fmaxl(*worst, (error - dx.slack) / unit);
            worst_dx_terms[t->dtype] = fmaxl(worst_dx_terms[t->dtype], (error - dx.slack) / ulp(largest, t->dtype));
        }
    }
}

static inline void check_dresidual(const struct test_case *t, const struct backward_tensors *all,
                                   const struct gradient_truth *truth, size_t c) {
    for (size_t k = 0; k < t->shape.outer * t->shape.inner; k++) {
        const size_t i = channel_index(t->shape, c, k);
        const double g = gradient_in(t, all, &truth->rounded, i), dz = get(all->dz.data, t->dtype, i);
        if (dz != g || signbit(dz) != signbit(g)) fail_case(t, "dresidual[%zu] is %.17g, not %.17g", i, dz, g);
    }
}

#endif
