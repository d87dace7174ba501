// SPDX-License-Identifier: Apache-2.0
//
// Decoded states against layers: what PUT and PATCH of a state and PUT of a snapshot check, and how they set values.
// Checks return false with `error` set; `parent` is the pointer of the state within the body.
#ifndef NORMD_SERVER_RESTORE_H
#define NORMD_SERVER_RESTORE_H

#include "layer.h"

// A configuration that the state carries must be that of the layer.
bool restore_check_layer(struct msg_state *from, const struct msg_config *config, const char *parent,
                         struct msg_error *error);

// Lengths, nulls, signs and finiteness against the configuration; `whole`: nothing that the layer has may be missing.
bool restore_check_values(const struct msg_state *from, const struct msg_config *config, bool whole, const char *parent,
                          struct msg_error *error);

// Sets the given values, which were checked. The version must be the new one already.
void restore_values(struct layer_state *state, const struct msg_state *from);

#endif
