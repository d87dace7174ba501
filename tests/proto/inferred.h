// SPDX-License-Identifier: Apache-2.0
//
// Decoding infer requests in tests, with what they took from a budget accounted for.
#ifndef NORMD_TESTS_PROTO_INFERRED_H
#define NORMD_TESTS_PROTO_INFERRED_H

#include "decoded.h"

#include "../../proto/oip.h"

struct inferred {
    struct msg_call call;
    enum msg_call_kind kind;
    struct msg_error error;
    bool ok;
};

// Parts of requests.
#define INPUT(name, shape, datatype, size)                                                                             \
    "{\"name\":\"" name "\",\"shape\":" shape ",\"datatype\":\"" datatype                                              \
    "\",\"parameters\":{\"binary_data_size\":" size "}}"
#define MODE(word) "\"parameters\":{\"mode\":\"" word "\"},"

#define INPUT_X "{\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":[1,2]}"
#define INPUT_DOUT "{\"name\":\"dout\",\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":[1,2]}"

struct msg_config layer_of(int64_t channels, enum bn_dtype dtype, int64_t axis);

// A request that stands `start` bytes into its buffer, and ends with it; header NULL: not given. For infer_release.
struct inferred infer_on(const struct msg_config *layer, size_t start, const char *json, const void *data, size_t size,
                         const uint64_t *header);

// JSON alone, on an f32 layer of two channels; with tensors behind it, aligned as the server does it.
struct inferred infer(const char *json);
struct inferred infer_binary(const char *json, const void *data, size_t size, enum bn_dtype dtype);

// Frees what was decoded; fails the test where something is still charged then.
void infer_release(struct inferred *d);

#endif
