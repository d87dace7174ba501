// SPDX-License-Identifier: Apache-2.0
//
// What of a call is kept with its pass: its elements, and no more of the body that they lie in.
#include <string.h>

#include "message.h"

static size_t bytes_of(const struct tensor *tensor) {
    return tensor->count * bn_dtype_size(tensor->dtype);
}

static bool lies_in(const struct buffer *body, const struct tensor *tensor) {
    return body->data != NULL && tensor->present && tensor->count > 0 && tensor->values.memory == NULL;
}

static void take_out(struct tensor *tensor) {
    struct buffer own = {.budget = tensor->values.budget};
    if (!buffer_reserve(&own, bytes_of(tensor))) return;
    memcpy(own.data, tensor->values.data, bytes_of(tensor));
    tensor->values = own;
}

// Moves the elements down over what nobody needs, where that is much beside them. Returns their place in the body.
static size_t move_down(const struct buffer *body, const struct tensor *tensor, size_t floor) {
    const size_t at = (size_t)(tensor->values.data - body->data), bytes = bytes_of(tensor);
    const size_t place = (floor + BUFFER_ALIGNMENT - 1) / BUFFER_ALIGNMENT * BUFFER_ALIGNMENT;
    if (place >= at || at - place < bytes / 16) return at;
    memmove(body->data + place, tensor->values.data, bytes);
    return place;
}

static void trim_body(struct buffer *body, struct tensor *const tensors[], size_t count) {
    size_t places[2] = {0}, end = 0;
    for (size_t i = 0; i < count; i++) {
        places[i] = move_down(body, tensors[i], end);
        end = places[i] + bytes_of(tensors[i]);
    }
    body->size = end;
    buffer_fit(body);
    for (size_t i = 0; i < count; i++) tensors[i]->values = buffer_borrow(body, places[i], bytes_of(tensors[i]));
}

void msg_call_trim(struct msg_call *call) {
    struct tensor *const both[] = {&call->x, &call->residual};
    struct tensor *lying[2];
    size_t count = 0;
    if (!call->keep) return;
    if (call->activation == BN_IDENTITY && lies_in(&call->body, &call->residual)) take_out(&call->residual);
    for (size_t i = 0; i < 2; i++) {
        if (lies_in(&call->body, both[i])) lying[count++] = both[i];
        if (both[i]->values.memory == NULL) continue;
        both[i]->values.size = bytes_of(both[i]);
        buffer_fit(&both[i]->values);
    }
    if (count == 2 && lying[0]->values.data > lying[1]->values.data) {
        lying[0] = both[1];
        lying[1] = both[0];
    }
    trim_body(&call->body, lying, count);
}
