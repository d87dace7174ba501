// SPDX-License-Identifier: Apache-2.0
#include "npy_options.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "number.h"

// Where options go: the call, and what concerns the file alone.
struct target {
    struct msg_call *call;
    struct npy_options *file;
    bool has_lr, has_weight_decay;
};

static bool bad(struct msg_error *error, const char *name, const char *what) {
    return msg_fail(error, MSG_BAD_PARAMETER, NULL, "%s is %s", name, what);
}

static bool take_keep(struct target *target, const struct msg_option *option, struct msg_error *error) {
    target->call->keep = strcmp(option->value, "true") == 0;
    return target->call->keep || strcmp(option->value, "false") == 0 || bad(error, option->name, "true or false");
}

static bool take_cache(struct target *target, const struct msg_option *option, struct msg_error *error) {
    const size_t length = strlen(option->value);
    if (length == 0) return bad(error, option->name, "empty");
    if (length > MSG_CACHE_ID_MAX)
        return msg_fail(error, MSG_CACHE_GONE, NULL, "no pass has such an id; send x instead");
    memcpy(target->call->cache, option->value, length + 1);
    return true;
}

static bool take_channel_axis(struct target *target, const struct msg_option *option, struct msg_error *error) {
    char *end = NULL;
    const long axis = strtol(option->value, &end, 10);
    const char first = option->value[0];
    if ((first != '-' && (first < '0' || first > '9')) || *end != '\0' || end == option->value ||
        axis < -TENSOR_MAX_RANK || axis >= TENSOR_MAX_RANK)
        return bad(error, option->name, "an integer from -8 to 7");
    target->call->channel_axis = axis;
    target->call->has_channel_axis = true;
    return true;
}

static bool take_activation(struct target *target, const struct msg_option *option, struct msg_error *error) {
    if (strcmp(option->value, "relu") != 0) return bad(error, option->name, "relu, or left out");
    target->call->activation = BN_RELU;
    return true;
}

static bool take_mode(struct target *target, const struct msg_option *option, struct msg_error *error) {
    const bool train = strcmp(option->value, "train") == 0;
    target->call->mode = train ? MSG_MODE_TRAIN : MSG_MODE_INFERENCE;
    return train || strcmp(option->value, "inference") == 0 || bad(error, option->name, "train or inference");
}

static bool take_real(double *value, const struct msg_option *option, struct msg_error *error) {
    const char *at = option->value, *const end = at + strlen(at);
    if (number_read_f64(value, &at, end) != NUMBER_OK || at != end) return bad(error, option->name, "a number");
    *value += 0.0; // minus zero is zero, as in JSON
    return true;
}

static bool take_lr(struct target *target, const struct msg_option *option, struct msg_error *error) {
    target->has_lr = true;
    target->call->has_step = true;
    return take_real(&target->call->lr, option, error);
}

static bool take_weight_decay(struct target *target, const struct msg_option *option, struct msg_error *error) {
    target->has_weight_decay = true;
    return take_real(&target->call->weight_decay, option, error);
}

static bool take_dtype(struct target *target, const struct msg_option *option, struct msg_error *error) {
    target->file->bf16 = strcmp(option->value, "bf16") == 0;
    return target->file->bf16 || bad(error, option->name, "bf16, or left out: the file says what it is else");
}

#define TRAIN (1u << MSG_TRAIN_FORWARD)
#define INFER (1u << MSG_INFERENCE)
#define BACK (1u << MSG_BACKWARD)

static const struct {
    const char *name;
    unsigned kinds;
    bool (*take)(struct target *target, const struct msg_option *option, struct msg_error *error);
} rows[] = {
    {"activation", TRAIN | INFER, take_activation},
    {"cache", TRAIN, take_keep},
    {"cache", BACK, take_cache},
    {"channel_axis", TRAIN | INFER | BACK, take_channel_axis},
    {"dtype", TRAIN | INFER | BACK, take_dtype},
    {"mode", BACK, take_mode},
    {"step_lr", BACK, take_lr},
    {"step_weight_decay", BACK, take_weight_decay},
};

static bool take_option(struct target *target, enum msg_call_kind kind, const struct msg_option *option,
                        struct msg_error *error) {
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if ((rows[i].kinds & 1u << kind) != 0 && strcmp(rows[i].name, option->name) == 0)
            return rows[i].take(target, option, error);
    }
    return msg_fail(error, MSG_BAD_PARAMETER, NULL, "there is no option \"%.60s\" here", option->name);
}

bool npy_take_options(struct msg_call *call, struct npy_options *taken, enum msg_call_kind kind,
                      const struct msg_options *options, struct msg_error *error) {
    struct target target = {.call = call, .file = taken};
    *taken = (struct npy_options){0};
    for (size_t i = 0; i < options->count; i++) {
        if (!take_option(&target, kind, &options->option[i], error)) return false;
    }
    if (target.has_weight_decay && !target.has_lr)
        return msg_fail(error, MSG_MISSING_FIELD, NULL, "step_weight_decay needs step_lr");
    if (kind == MSG_BACKWARD && call->cache[0] == '\0')
        return msg_fail(error, MSG_MISSING_FIELD, NULL, "cache is missing; backward from x takes safetensors or JSON");
    return true;
}
