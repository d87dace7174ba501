// SPDX-License-Identifier: Apache-2.0
//
// Batch normalization over dense tensors in memory: statistics, normalization and gradients, on a thread pool. This is
// the public header of libnormd-kernels: it needs libc, libm and pthread, and knows nothing of JSON, HTTP or layers.
//
// A tensor of any rank is seen as [outer][channels][inner], row-major, where `outer` is the product of the axes before
// the channel axis and `inner` of those after it: (N,C) and channels-last are {N*H*W, C, 1}, NCHW is {N, C, H*W}.
// Statistics run over outer and inner; `outer * inner` is the number of values per channel.
//
// All tensors of a call have one type and one shape. Half precision is a type of memory only: elements are converted
// to float, exactly, computed with as those of BN_F32 are, and results are rounded once, to nearest even. Everything
// that has one value per channel (statistics, gamma, beta, gradients of them) is double. Pointers need the alignment
// of their element type and no more. Output and input tensors either are the same pointer or do not overlap. No
// function keeps a pointer after it returns.
//
// Threads: every function may be called from any number of threads at once, also with one pool; a call whose pool is
// busy, or whose tensor is small, runs on the calling thread alone. A NULL pool means the calling thread alone. The
// bits of every result depend on the shape and the values only: not on the pool, its size or what else runs on it, nor
// on the tier (the sign and payload of a NaN excepted), in the default floating-point environment. A call needs up to
// 224 KiB of the caller's stack.
#ifndef NORMD_KERNELS_BN_H
#define NORMD_KERNELS_BN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BN_MUST_CHECK __attribute__((warn_unused_result))

enum bn_status {
    BN_OK = 0,
    BN_BAD_SHAPE, // no channels, or the number of elements or bytes exceeds PTRDIFF_MAX
    BN_NO_MEMORY, // scratch memory (a few doubles per channel and block) could not be had; outputs are undefined
};

enum bn_dtype {
    BN_F32,
    BN_F64,
    BN_F16,  // IEEE 754 binary16
    BN_BF16, // the upper half of a binary32
};

struct bn_shape {
    size_t outer;    // 0 is an empty tensor
    size_t channels; // at least 1
    size_t inner;    // 0 is an empty tensor
};

// Batch statistics of each channel: a value that merges, so that they can be taken of parts of a batch (synchronized
// BN). The arrays [channels] belong to the caller.
// The mean is the unevaluated sum mean + mean_lo, where mean_lo is what rounding to double lost: y near the mean needs
// it. m2 is the sum of squared distances from the mean, so the biased variance is m2 / count and the unbiased one
// m2 / (count - 1). With count 0 all three are 0.
struct bn_stats {
    uint64_t count; // values per channel
    double *mean;
    double *mean_lo;
    double *m2;
};

// What a tensor is normalized with: y = (x - mean - mean_lo) * gamma / sqrt(var + eps) + beta. Arrays are [channels].
struct bn_norm {
    const double *mean;
    const double *mean_lo; // NULL: 0
    const double *var;     // >= 0; the biased batch variance, or a running variance
    const double *gamma;   // NULL: 1
    const double *beta;    // NULL: 0
    double eps;            // > 0, inside the square root
};

enum bn_activation {
    BN_IDENTITY,
    BN_RELU, // v where v > 0 or v is NaN, else +0
};

// What follows the normalization in the same pass: y = activation(bn(x) + residual). A NULL pointer in place of this
// struct means neither.
struct bn_post {
    enum bn_activation activation;
    const void *residual; // a tensor as x; NULL: none. May be y or dresidual
};

struct bn_pool;

// A pool whose parallel sections run on `threads` threads, the caller of the section being one of them; 0 counts as 1.
// Threads are created here and sleep when idle. Returns NULL where a thread or memory could not be had. A pool does
// not survive fork().
struct bn_pool *bn_pool_new(unsigned threads);

// Ends the threads and sets *pool to NULL. *pool may be NULL. No section may be running.
void bn_pool_free(struct bn_pool **pool);

// The number of threads that a section of the pool runs on; 1 for NULL.
unsigned bn_pool_threads(const struct bn_pool *pool);

// The name of the tier in use: "scalar", "avx2", "avx512" or "neon". Static storage.
const char *bn_cpu_tier(void);

// Bytes of one element: 4, 8, 2 or 2.
size_t bn_dtype_size(enum bn_dtype dtype);

// The index of the first NaN or infinity among the n elements at x, or n where all are finite.
size_t bn_first_nonfinite(const void *x, size_t n, enum bn_dtype dtype);

// Statistics of x over outer and inner for each channel, into the caller's arrays; stats->count is set too. One read of
// x: sums of d and d*d in double, with d = x - pivot and the first value of a block as its pivot; blocks are merged in
// their order. Source: shifted data algorithm and pairwise update of Chan, Golub, LeVeque, "Algorithms for Computing
// the Sample Variance" (1983), eq. 2.1b and 1.4. A channel that holds a NaN or an infinity has a NaN mean and m2,
// wherever it stands. f32: variance within 1e-9 relative for finite values. f64: m2 may overflow to infinity from |x|
// of about 1e154 on, and mean and m2 be NaN where a sum of distances overflows, from about 1e308 / count.
BN_MUST_CHECK enum bn_status bn_statistics(struct bn_stats *stats, const void *x, enum bn_dtype dtype,
                                           struct bn_shape shape, struct bn_pool *pool);

// Folds `more` into `into`, channel by channel: the statistics of both parts together (Chan, Golub, LeVeque, eq. 2.1b,
// with the mean in two parts). Merging the same parts in the same order gives the same bits. Either count may be 0.
void bn_stats_merge(struct bn_stats *into, const struct bn_stats *more, size_t channels);

// y[o][c][i] = ((x - mean_hi) - mean_lo) * scale + beta in the tensor's type, where mean_hi and mean_lo are the mean in
// two parts of that type and scale = gamma / sqrt(var + eps), computed in double and rounded once; then `post`. y may
// be x or the residual.
// Source: Ioffe and Szegedy, arXiv 1502.03167, Algorithm 1 (batch statistics) and Algorithm 2 (running ones).
BN_MUST_CHECK enum bn_status bn_normalize(void *y, const void *x, enum bn_dtype dtype, struct bn_shape shape,
                                          const struct bn_norm *norm, const struct bn_post *post, struct bn_pool *pool);

// bn_statistics of x, then bn_normalize with them (var = m2 / count) and gamma, beta, eps: the same bits, but x is read
// from memory once where the values of some channels stay in the cache between the two. gamma and beta as in bn_norm. y
// may be x or the residual.
BN_MUST_CHECK enum bn_status bn_train_forward(void *y, struct bn_stats *stats, const void *x, enum bn_dtype dtype,
                                              struct bn_shape shape, const double *gamma, const double *beta,
                                              double eps, const struct bn_post *post, struct bn_pool *pool);

// The sums that a backward takes over each channel, with g = dout, or 0 where the activation was flat: a value that
// merges by addition. Arrays [channels] are the caller's.
struct bn_gradient_sums {
    uint64_t count; // values per channel
    double *dy;     // sum of g
    double *dy_d;   // sum of g * (x - mean)
};

// Results of a backward. Arrays are the caller's; dx is a tensor as x.
struct bn_gradients {
    void *dx;        // may be dout or x
    void *dresidual; // g, the gradient of the residual; NULL: not wanted. May be dout or the residual, not dx
    double *dgamma;  // [channels]; written also where norm->gamma is NULL (gamma 1)
    double *dbeta;   // [channels]
};

// The sums of a part of a batch, for norm's mean, which is that of the whole batch. norm's var, gamma and beta and
// `post` tell where the activation was flat: v = bn(x) + residual <= 0; NaN is not flat. One read of dout and x.
BN_MUST_CHECK enum bn_status bn_gradient_sums(struct bn_gradient_sums *sums, const void *dout, const void *x,
                                              enum bn_dtype dtype, struct bn_shape shape, const struct bn_norm *norm,
                                              const struct bn_post *post, struct bn_pool *pool);

// Adds `more` to `into`.
void bn_gradient_sums_merge(struct bn_gradient_sums *into, const struct bn_gradient_sums *more, size_t channels);

// dx and dresidual of a part of a batch from the sums of the whole batch: with n = sums->count,
//   dx = gamma * invstd * (g - dy / n - (x - mean) * invstd^2 * dy_d / n).
// sums NULL: the mean and variance are constants, dx = gamma * invstd * g. dgamma and dbeta are neither read nor
// written; bn_gradient_affine makes them.
BN_MUST_CHECK enum bn_status bn_gradient_apply(const struct bn_gradients *gradients, const void *dout, const void *x,
                                               enum bn_dtype dtype, struct bn_shape shape, const struct bn_norm *norm,
                                               const struct bn_post *post, const struct bn_gradient_sums *sums,
                                               struct bn_pool *pool);

// dgamma = dy_d * invstd, dbeta = dy.
void bn_gradient_affine(double *dgamma, double *dbeta, const struct bn_gradient_sums *sums, const struct bn_norm *norm,
                        size_t channels);

// Gradients of bn_normalize with x's own batch statistics, which norm must hold (mean, mean_lo, var = m2 / count): they
// are functions of x and are differentiated too. With xhat = (x - mean) * invstd, n values per channel:
//   dbeta[c] = sum g;  dgamma[c] = sum g * xhat;  dx = gamma * invstd * (g - dbeta / n - xhat * dgamma / n).
// The bits of bn_gradient_sums and bn_gradient_apply. Sums are in double, dx in the tensor's type. An empty tensor
// gives zeros. norm->beta is read only where `post` has an activation.
// Source: arXiv 1502.03167, section 3, the chain rule, simplified as in PyTorch's batch_norm_backward.
BN_MUST_CHECK enum bn_status bn_backward(const struct bn_gradients *gradients, const void *dout, const void *x,
                                         enum bn_dtype dtype, struct bn_shape shape, const struct bn_norm *norm,
                                         const struct bn_post *post, struct bn_pool *pool);

// Gradients of bn_normalize where the mean and variance in norm are constants (frozen BN, running statistics):
//   dbeta[c] = sum g;  dgamma[c] = sum g * (x - mean) * invstd;  dx = g * gamma * invstd.
// Otherwise as bn_backward. Source: PyTorch's native_batch_norm_backward with train = false.
BN_MUST_CHECK enum bn_status bn_backward_frozen(const struct bn_gradients *gradients, const void *dout, const void *x,
                                                enum bn_dtype dtype, struct bn_shape shape, const struct bn_norm *norm,
                                                const struct bn_post *post, struct bn_pool *pool);

#endif
