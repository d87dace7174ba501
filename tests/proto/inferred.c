// SPDX-License-Identifier: Apache-2.0
#include "inferred.h"

struct msg_config layer_of(int64_t channels, enum bn_dtype dtype, int64_t axis) {
    return (struct msg_config){.num_features = channels, .dtype = (int)dtype, .channel_axis = axis};
}

// A body that stands `start` bytes into its buffer, and ends with it, for sanitizers.
struct inferred infer_on(const struct msg_config *layer, size_t start, const char *json, const void *data, size_t size,
                         const uint64_t *header) {
    struct buffer body = {.budget = &budget};
    const size_t length = strlen(json);
    char junk[64] = {0};
    assert_true(buffer_reserve(&body, start + length + size));
    assert_true(buffer_append(&body, junk, start) && buffer_append(&body, json, length));
    assert_true(buffer_append(&body, data, size));
    const struct oip_request request = {.body = &body,
                                        .start = start,
                                        .has_header = header != NULL,
                                        .header = header != NULL ? *header : 0,
                                        .budget = &budget,
                                        .model = "m",
                                        .layer = layer};
    struct inferred d = {.ok = false};
    d.ok = oip_decode(&d.call, &d.kind, &request, &d.error);
    assert_int_equal(d.ok, d.error.code == MSG_OK);
    assert_int_equal(body.capacity, 0); // taken over
    oip_place_error(&d.error, &d.call.infer);
    return d;
}

struct inferred infer(const char *json) {
    const struct msg_config layer = layer_of(2, BN_F32, 1);
    return infer_on(&layer, 0, json, NULL, 0, NULL);
}

struct inferred infer_binary(const char *json, const void *data, size_t size, enum bn_dtype dtype) {
    const struct msg_config layer = layer_of(2, dtype, 1);
    const uint64_t header = strlen(json);
    return infer_on(&layer, oip_padding(header), json, data, size, &header);
}

void infer_release(struct inferred *d) {
    msg_call_free(&d->call);
    assert_int_equal(budget.used, 0);
}
