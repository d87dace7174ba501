// SPDX-License-Identifier: Apache-2.0
#include "binary.h"

#include <stdint.h>
#include <string.h>

// Where elements of this size are to lie that are at `at` now.
static size_t aligned_place(size_t at, size_t floor, size_t size) {
    return at % size == 0 ? at : (floor + size - 1) / size * size;
}

static bool take_apart(struct tensor *tensor, size_t size, struct budget *budget, struct msg_error *error) {
    tensor->values = (struct buffer){.budget = budget};
    if (!buffer_reserve(&tensor->values, tensor->count * size + 1))
        return msg_fail(error, MSG_MEMORY_FULL, NULL, "the values do not fit the memory budget");
    tensor->values.size = tensor->count * size;
    return true;
}

bool binary_take(struct tensor *tensor, const struct buffer *body, size_t at, size_t *floor, enum bn_dtype dtype,
                 const char *name, struct budget *budget, struct msg_error *error) {
    const size_t wire_size = wire_dtypes[tensor->wire].size, size = bn_dtype_size(dtype);
    const size_t bytes = tensor->count * wire_size, place = aligned_place(at, *floor, size);
    const unsigned char *raw = body->data + at;
    tensor->dtype = dtype;
    if (size > wire_size || place > at) {
        if (!take_apart(tensor, size > wire_size ? size : wire_size, budget, error)) return false;
    } else {
        tensor->values = buffer_borrow(body, place, bytes);
        if (place != at) raw = memmove(tensor->values.data, raw, bytes);
        *floor = place + bytes;
    }
    const size_t overflow = tensor_from_wire(tensor->values.data, dtype, raw, tensor->wire, tensor->count);
    if (overflow < tensor->count)
        return msg_fail(error, MSG_OVERFLOW, NULL, "element %zu of %s is too large for the layer's dtype", overflow,
                        name);
    tensor->first_nonfinite = bn_first_nonfinite(tensor->values.data, tensor->count, dtype);
    tensor->present = true;
    return true;
}

static void add_piece(struct msg_extra *extra, const void *data, size_t size) {
    if (size > 0) extra->piece[extra->pieces++] = (struct msg_piece){data, size};
}

void binary_send(struct msg_extra *extra, struct tensor *tensor) {
    unsigned char *const values = tensor->values.data;
    const size_t size = wire_dtypes[tensor->wire].size;
    tensor_to_wire(values, tensor->wire, values, tensor->dtype, tensor->count);
    if (tensor->swapped) binary_swap(values, size, tensor->count);
    add_piece(extra, values, tensor->count * size);
}

void binary_send_vector(struct msg_extra *extra, const double *values, size_t n) {
    add_piece(extra, values, n * sizeof *values);
}

static void swap2(unsigned char *raw) {
    uint16_t bits;
    memcpy(&bits, raw, sizeof bits);
    bits = __builtin_bswap16(bits);
    memcpy(raw, &bits, sizeof bits);
}

static void swap4(unsigned char *raw) {
    uint32_t bits;
    memcpy(&bits, raw, sizeof bits);
    bits = __builtin_bswap32(bits);
    memcpy(raw, &bits, sizeof bits);
}

static void swap8(unsigned char *raw) {
    uint64_t bits;
    memcpy(&bits, raw, sizeof bits);
    bits = __builtin_bswap64(bits);
    memcpy(raw, &bits, sizeof bits);
}

void binary_swap(unsigned char *raw, size_t size, size_t n) {
    for (size_t i = 0; i < n && size == 2; i++) swap2(raw + 2 * i);
    for (size_t i = 0; i < n && size == 4; i++) swap4(raw + 4 * i);
    for (size_t i = 0; i < n && size == 8; i++) swap8(raw + 8 * i);
}
