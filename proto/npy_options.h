// SPDX-License-Identifier: Apache-2.0
//
// Private to the npy codec: the fields of a call that stand in the query. Their names are those of the JSON fields,
// with step_lr and step_weight_decay for step, and dtype for how elements are to be read.
#ifndef NORMD_PROTO_NPY_OPTIONS_H
#define NORMD_PROTO_NPY_OPTIONS_H

#include <stdbool.h>

#include "message.h"

struct npy_options {
    bool bf16; // dtype=bf16: elements of |V2 are that
};

// Sets the call's fields. False where `error` says what is wrong with an option, or that one is missing.
bool npy_take_options(struct msg_call *call, struct npy_options *taken, enum msg_call_kind kind,
                      const struct msg_options *options, struct msg_error *error);

#endif
