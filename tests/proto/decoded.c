// SPDX-License-Identifier: Apache-2.0
#include "decoded.h"

const char *const rich[KINDS] = {
    "{\"num_features\":3,\"convention\":\"keras\",\"momentum\":null,\"eps\":1e-3,\"affine\":false,\"dtype\":\"f64\"}",
    "{\"momentum\":0.5,\"eps\":1e-3,\"nonfinite\":\"propagate\",\"single_value\":\"beta\"}",
    "{\"x\":[[1,2],[3,4]],\"cache\":true,\"channel_axis\":-1,\"activation\":\"relu\",\"residual\":[[5,6],[7,8]]}",
    "{\"channel_axis\":0,\"x\":{\"shape\":[2,1],\"data\":[1,2]}}",
    "{\"dout\":{\"shape\":[1,2],\"dtype\":\"f32\",\"base64\":\"AACAPwAAAMA=\"},\"x\":[[1,2]],\"mode\":\"train\","
    "\"residual\":{\"shape\":[1,2],\"data\":[3,4]},\"step\":{\"lr\":0.1,\"weight_decay\":0}}",
    "{\"gamma\":[1,2],\"beta\":null,\"running_mean\":[0.5,\"NaN\"],\"running_var\":[1,1],\"num_batches_tracked\":5,"
    "\"version\":3,\"layer\":{\"num_features\":2}}",
    "{\"layers\":{\"a\":{\"gamma\":[1],\"layer\":{\"num_features\":1}},\"b\":{\"running_var\":[2],\"num_batches_"
    "tracked\":null}}}",
};

struct budget budget = {.limit = 1 << 22};

int fresh_budget(void **state) {
    (void)state;
    budget.used = 0;
    budget.limit = 1 << 22;
    return 0;
}

struct decoded decode(enum kind kind, const char *text, size_t length) {
    char *const copy = alone(text, length);
    const struct json_body body = {copy, length, &budget, NULL};
    struct decoded d = {.ok = false};
    switch (kind) {
    case CONFIG: d.ok = json_decode_config(&d.config, body, "it", &d.error); break;
    case PATCH: d.ok = json_decode_config_patch(&d.config, body, &d.error); break;
    case TRAIN: d.ok = json_decode_call(&d.call, MSG_TRAIN_FORWARD, body, BN_F64, &d.error); break;
    case INFERENCE: d.ok = json_decode_call(&d.call, MSG_INFERENCE, body, BN_F64, &d.error); break;
    case BACKWARD: d.ok = json_decode_call(&d.call, MSG_BACKWARD, body, BN_F64, &d.error); break;
    case STATE: d.ok = json_decode_state(&d.state, body, &d.error); break;
    case SNAPSHOT: d.ok = json_decode_snapshot(&d.snapshot, body, &d.error); break;
    case KINDS: break;
    }
    free(copy); // nothing decoded may point into the body
    assert_int_equal(d.ok, d.error.code == MSG_OK);
    return d;
}

void release(struct decoded *d) {
    msg_call_free(&d->call);
    msg_state_free(&d->state);
    msg_snapshot_free(&d->snapshot);
    assert_int_equal(budget.used, 0);
}

struct decoded decode_good(enum kind kind, const char *text) {
    const struct decoded d = decode(kind, text, strlen(text));
    if (!d.ok) fail_msg("%s: %s (%s)", text, msg_codes[d.error.code].name, d.error.detail);
    return d;
}

void expect_error(enum kind kind, const char *text, enum msg_code code, const char *pointer) {
    struct decoded d = decode(kind, text, strlen(text));
    if (d.error.code != code || d.error.has_pointer != (pointer != NULL) ||
        (pointer != NULL && strcmp(d.error.pointer, pointer) != 0)) {
        fail_msg("%s: %s at \"%s\" (%s), expected %s at \"%s\"", text, msg_codes[d.error.code].name, d.error.pointer,
                 d.error.detail, msg_codes[code].name, pointer != NULL ? pointer : "");
    }
    assert_true(code == MSG_OK || d.error.detail[0] != '\0');
    release(&d);
}

double value_of(const struct tensor *t, size_t i) {
    float f32;
    double f64;
    if (t->dtype == BN_F64) {
        memcpy(&f64, t->values.data + i * sizeof f64, sizeof f64);
        return f64;
    }
    memcpy(&f32, t->values.data + i * sizeof f32, sizeof f32);
    return (double)f32;
}
