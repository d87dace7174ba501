// SPDX-License-Identifier: Apache-2.0
//
// Tensors as messages carry them: the shape, the form and element type on the wire, and the values in the type that the
// layer computes in.
#ifndef NORMD_PROTO_TENSOR_H
#define NORMD_PROTO_TENSOR_H

#include <stdbool.h>
#include <stddef.h>

#include "buffer.h"
#include "../kernels/bn.h"

#define TENSOR_MIN_RANK 2
#define TENSOR_MAX_RANK 8

// Element types on the wire.
enum wire_dtype { WIRE_F32, WIRE_F64, WIRE_F16, WIRE_BF16 };

// How a JSON tensor is written: nested arrays, {"shape","data"}, {"shape","dtype","base64"}.
enum tensor_form { TENSOR_NESTED, TENSOR_FLAT, TENSOR_BASE64 };

struct tensor {
    struct buffer values; // `count` elements of `dtype`, row-major; owned
    size_t count;         // the product of dim
    size_t dim[TENSOR_MAX_RANK];
    int rank;            // 0: absent, or the nested form [], an empty batch whose rank is the layer's to say
    enum bn_dtype dtype; // the layer's
    enum tensor_form form;
    enum wire_dtype wire;   // of the base64 form and the binary ones; the other forms: the layer's dtype
    bool swapped;           // big-endian on the wire: npy has that
    size_t first_nonfinite; // index of the first NaN or infinity; count where there is none
    bool present;
};

struct wire_dtype_row {
    const char *name; // on the wire: "f32"
    enum wire_dtype dtype;
    size_t size; // bytes of an element
};

extern const struct wire_dtype_row wire_dtypes[]; // indexed by enum wire_dtype
extern const size_t wire_dtype_count;

// count = product of dim[0..rank). False where that is more than PTRDIFF_MAX / 8, or would be without the axes of
// length 0.
bool tensor_count(size_t *count, const size_t *dim, int rank);

// Converts n little-endian elements of type `from`, at any alignment, to the compute type, rounding once to nearest
// even where that is narrower. Returns the index of the first finite value that overflows it (n: none). values and raw
// either do not overlap, or raw is the tail of values' room, or begins where they do and is not narrower, so that no
// element is overwritten before it is read.
size_t tensor_from_wire(void *values, enum bn_dtype dtype, const void *raw, enum wire_dtype from, size_t n);

// The reverse, for replies: rounds once to nearest even; finite values that overflow become infinities. raw may begin
// where values do.
void tensor_to_wire(void *raw, enum wire_dtype to, const void *values, enum bn_dtype dtype, size_t n);

// The index of the first of n values that is not finite, or would not be after rounding to `to`; n where there is none.
size_t tensor_first_overflow(const void *values, enum bn_dtype dtype, enum wire_dtype to, size_t n);

// A tensor of the shape, form and types of `like` with these values, which stay with their owner.
struct tensor tensor_like(const struct tensor *like, struct buffer values);

// Takes over the source's values; what `to` held is freed, the source is absent after and keeps its budget.
void tensor_move(struct tensor *to, struct tensor *from);

// Gives the values back; the tensor is absent after. A zeroed tensor is absent.
void tensor_free(struct tensor *t);

#endif
