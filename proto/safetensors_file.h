// SPDX-License-Identifier: Apache-2.0
//
// Private to the safetensors codec: the header of a file as two tables, of its tensors and of its metadata. The header
// is walked once; no tree is built of it, so that a long one costs what its tables do.
#ifndef NORMD_PROTO_SAFETENSORS_FILE_H
#define NORMD_PROTO_SAFETENSORS_FILE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "codec.h"
#include "scan.h"

struct file_dtype {
    const char *name; // in the file: "F32"
    size_t size;      // bytes of an element; 0: not known here
    int wire;         // enum wire_dtype; -1: no type of a tensor of the API
};

struct file_tensor {
    const char *name; // in the body, SCAN_KEY_MAX bytes at most
    const struct file_dtype *dtype;
    size_t at, size; // in the body
    size_t count;    // of elements
    int rank;
    size_t dim[TENSOR_MAX_RANK]; // of a higher rank: the first ones
    bool used;
};

struct file_text {
    const char *name;       // in the body
    struct scan_span value; // in the body: a JSON string
};

struct safetensors_file {
    struct buffer tensor_memory, text_memory; // owned
    struct file_tensor *tensors;              // sorted by name
    struct file_text *texts;                  // sorted by name
    size_t tensor_count, text_count;
};

// Reads the header of the body, which it writes names into. Checks lengths and offsets: every byte of the body belongs
// to one thing. The file is to be closed in any case. Errors have no pointer.
bool safetensors_open(struct safetensors_file *file, struct buffer *body, struct budget *budget,
                      struct msg_error *error);
void safetensors_close(struct safetensors_file *file);

// NULL: there is none of this name.
struct file_tensor *safetensors_find(const struct safetensors_file *file, const char *name);

// The JSON value that a text of the metadata holds, new; NULL where it holds none, or more than JSON_REST_MAX bytes.
json_t *safetensors_value(const struct file_text *text);

// An unknown field of such a value: names in words the field that the error, which is to lose its pointer, points to.
void safetensors_name_field(struct msg_error *error);

// Sets dim, rank, count and wire of a tensor of the API. `name`: what errors call it.
bool safetensors_tensor(struct tensor *tensor, const struct file_tensor *from, struct msg_error *error);

#endif
