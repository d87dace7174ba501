// SPDX-License-Identifier: Apache-2.0
//
// Private to the codec of the Open Inference Protocol: the inputs of an infer request, and the names that they have.
#ifndef NORMD_PROTO_OIP_INPUTS_H
#define NORMD_PROTO_OIP_INPUTS_H

#include <stdbool.h>
#include <stddef.h>

#include "message.h"
#include "scan.h"
#include "tensor.h"

// The names of the types that tensors have here, as BN_F32's "FP32"; indexed by enum wire_dtype.
extern const char *const oip_datatypes[];

// Indexed by enum msg_input.
extern const char *const oip_input_names[MSG_INPUTS];

struct oip_input {
    char name[SCAN_KEY_MAX + 1];
    struct tensor tensor; // shape and type
    bool has_name, has_shape, has_datatype, has_parameters, has_data, has_size;
    size_t size;           // binary_data_size
    struct scan_span text; // of data that stand before their datatype
    struct tensor numbers; // data as they are nested
};

struct oip_inputs {
    struct oip_input input[MSG_INPUTS];
    size_t count;
    bool given; // the request has the member `inputs`
};

// Reads the array of inputs, at which the scan stands; elements of JSON as `dtype`. False: malformed. What is wrong
// otherwise is put into the scan's error.
bool oip_take_inputs(struct oip_inputs *inputs, struct scan *scan, enum bn_dtype dtype);

// Gives the call its tensors. Those that are binary begin at `at` in call->body, one behind the other.
bool oip_place_inputs(struct oip_inputs *inputs, struct msg_call *call, enum msg_call_kind kind, size_t at,
                      enum bn_dtype dtype, struct budget *budget, struct msg_error *error);

// The body, from `at` on, as the one input x, whose shape is the layer's.
bool oip_place_raw(struct msg_call *call, size_t at, const struct msg_config *layer, struct budget *budget,
                   struct msg_error *error);

void oip_free_inputs(struct oip_inputs *inputs);

#endif
