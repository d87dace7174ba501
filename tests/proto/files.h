// SPDX-License-Identifier: Apache-2.0
//
// npy and safetensors files in tests: written, decoded with what that took from the budget accounted for, and replies
// read as the files that they are.
#ifndef NORMD_TESTS_PROTO_FILES_H
#define NORMD_TESTS_PROTO_FILES_H

#include <jansson.h>

#include "decoded.h"

#include "../../proto/npy.h"
#include "../../proto/safetensors.h"

// The elements of most files, and headers that have them as x.
extern const float four[4];
#define NPY_OF_FOUR "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }"
#define X_OF_FOUR "\"x\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}"

// A file of the header's text, which is not padded, and elements. It has room for no more than that, for sanitizers.
struct buffer npy_file(int major, const char *header, const void *data, size_t size);
struct buffer safetensors_file(const char *header, const void *data, size_t size);

// The values of four in each type, little-endian.
#define NPY_TYPES 4
extern const struct npy_type {
    const char *descr;
    size_t size;
    unsigned char raw[32];
    enum wire_dtype wire;
} npy_types[NPY_TYPES];
extern const struct msg_options npy_bf16; // what a file of the last one needs

// A file of the index-th type, its header padded with so many spaces.
struct buffer npy_typed_file(size_t type, char order, size_t padding);

// A layer's five tensors behind a prefix, "a.bn.", in as many types, and their elements.
#define BN_OF(prefix)                                                                                                  \
    "\"" prefix "weight\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"" prefix                          \
    "bias\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[4,6]},\"" prefix                                        \
    "running_mean\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[6,8]},\"" prefix                               \
    "running_var\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[8,16]},\"" prefix                                \
    "num_batches_tracked\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[16,24]}"
extern const unsigned char bn_data[24];

// For release. They take the file over; options NULL: none; `kind` is a call's, for safetensors STATE and SNAPSHOT too.
struct decoded decode_npy(struct buffer file, enum kind kind, enum bn_dtype dtype, const struct msg_options *options);
struct decoded decode_safetensors(struct buffer file, enum kind kind, enum bn_dtype dtype);

// Fails the test, naming `what`, unless decoding the file (npy: as an inference) gives this code, MSG_OK too.
void expect_npy(struct buffer file, enum msg_code code, const char *what);
void expect_safetensors(struct buffer file, enum kind kind, enum msg_code code, const char *what);

// What is sent, as one file.
struct buffer sent_file(const struct buffer *out, const struct msg_extra *extra);

// A safetensors reply, read with the checks that readers make; for free_read.
struct read {
    json_t *header, *metadata;
    const unsigned char *data;
    struct buffer file;
};
struct read read_reply(const struct buffer *out, const struct msg_extra *extra);
void free_read(struct read *r);

// The elements of a tensor of that many bytes, which the reply must have.
const void *elements_of(const struct read *r, const char *name, const char *dtype, size_t bytes);

#endif
