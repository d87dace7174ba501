// SPDX-License-Identifier: Apache-2.0
//
// Batch normalization over dense tensors in memory: statistics, normalization and gradients, on a thread pool. This is
// the public header of libnormd-kernels: it needs libc, libm and pthread, and knows nothing of JSON, HTTP or layers.
//
// A tensor of any rank is seen as [outer][channels][inner], row-major, where `outer` is the product of the axes before
// the channel axis and `inner` of those after it: (N,C) and channels-last are {N*H*W, C, 1}, NCHW is {N, C, H*W}.
// Statistics run over outer and inner; `outer * inner` is the number of values per channel.
//
// Tensors are BN_F32 or BN_F64. Everything that has one value per channel (statistics, gamma, beta, gradients of them)
// is double. Pointers need the alignment of their element type and no more. Output and input tensors either are the
// same pointer or do not overlap. No function keeps a pointer after it returns.
//
// Threads: every function may be called from any number of threads at once, also with one pool; a call whose pool is
// busy, or whose tensor is small, runs on the calling thread alone. A NULL pool means the calling thread alone. The
// bits of every result depend on the shape and the values only: not on the pool, its size or what else runs on it, nor
// on the tier (the sign and payload of a NaN excepted).
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

enum bn_dtype { BN_F32, BN_F64 };

struct bn_shape {
    size_t outer;    // 0 is an empty tensor
    size_t channels; // at least 1
    size_t inner;    // 0 is an empty tensor
};

// Batch statistics of each channel. The arrays [channels] belong to the caller.
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

struct bn_pool;

// A pool whose parallel sections run on `threads` threads, the caller of the section being one of them; 0 counts as 1.
// Threads are created here and sleep when idle. Returns NULL where a thread or memory could not be had. A pool does
// not survive fork().
struct bn_pool *bn_pool_new(unsigned threads);

// Ends the threads and sets *pool to NULL. *pool may be NULL. No section may be running.
void bn_pool_free(struct bn_pool **pool);

// The number of threads that a section of the pool runs on; 1 for NULL.
unsigned bn_pool_threads(const struct bn_pool *pool);

// The name of the tier in use: "scalar", later "avx2", "avx512" or "neon". Static storage.
const char *bn_cpu_tier(void);

// Bytes of one element: 4 or 8.
size_t bn_dtype_size(enum bn_dtype dtype);

// The index of the first NaN or infinity among the n elements at x, or n where all are finite.
size_t bn_first_nonfinite(const void *x, size_t n, enum bn_dtype dtype);

// Statistics of x over outer and inner for each channel, into the caller's arrays; stats->count is set too. One read of
// x: sums of d and d*d in double, with d = x - pivot and the first value of a block as its pivot; blocks are merged in
// their order. Source: shifted data algorithm and pairwise update of Chan, Golub, LeVeque, "Algorithms for Computing
// the Sample Variance" (1983), eq. 2.1b and 1.4. A channel that holds a NaN or an infinity has a NaN mean and m2,
// wherever it stands. f32: variance within 1e-9 relative for finite values. f64: m2 may overflow to infinity from |x|
// of about 1e154 on.
BN_MUST_CHECK enum bn_status bn_statistics(struct bn_stats *stats, const void *x, enum bn_dtype dtype,
                                           struct bn_shape shape, struct bn_pool *pool);

// y[o][c][i] = ((x - mean_hi) - mean_lo) * scale + beta in the tensor's type, where mean_hi and mean_lo are the mean in
// two parts of that type and scale = gamma / sqrt(var + eps), computed in double and rounded once. y may be x.
// Source: Ioffe and Szegedy, arXiv 1502.03167, Algorithm 1 (batch statistics) and Algorithm 2 (running ones).
BN_MUST_CHECK enum bn_status bn_normalize(void *y, const void *x, enum bn_dtype dtype, struct bn_shape shape,
                                          const struct bn_norm *norm, struct bn_pool *pool);

// Gradients of bn_normalize with x's own batch statistics, which norm must hold (mean, mean_lo, var = m2 / count): they
// are functions of x and are differentiated too. With xhat = (x - mean) * invstd, n values per channel:
//   dbeta[c] = sum dy;  dgamma[c] = sum dy * xhat;  dx = gamma * invstd * (dy - dbeta / n - xhat * dgamma / n).
// dgamma and dbeta [channels] are always written, also where norm->gamma is NULL (gamma 1). dx may be dout or x.
// Sums are in double, dx in the tensor's type. Of norm, beta is not read. An empty tensor gives zeros.
// Source: arXiv 1502.03167, section 3, the chain rule, simplified as in PyTorch's batch_norm_backward.
BN_MUST_CHECK enum bn_status bn_backward(void *dx, double *dgamma, double *dbeta, const void *dout, const void *x,
                                         enum bn_dtype dtype, struct bn_shape shape, const struct bn_norm *norm,
                                         struct bn_pool *pool);

// Gradients of bn_normalize where the mean and variance in norm are constants (frozen BN, running statistics):
//   dbeta[c] = sum dy;  dgamma[c] = sum dy * (x - mean) * invstd;  dx = dy * gamma * invstd.
// Otherwise as bn_backward. Source: PyTorch's native_batch_norm_backward with train = false.
BN_MUST_CHECK enum bn_status bn_backward_frozen(void *dx, double *dgamma, double *dbeta, const void *dout,
                                                const void *x, enum bn_dtype dtype, struct bn_shape shape,
                                                const struct bn_norm *norm, struct bn_pool *pool);

#endif
