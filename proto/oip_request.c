// SPDX-License-Identifier: Apache-2.0
//
// An infer request: its JSON, parameters and outputs; and the places that errors point to.
#include "oip.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json_fields.h"
#include "oip_inputs.h"
#include "scan.h"

// Where tensors are to lie, for vector loads.
#define ALIGNMENT ((uint64_t)BUFFER_ALIGNMENT)

size_t oip_padding(uint64_t header) {
    return (size_t)((ALIGNMENT - header % ALIGNMENT) % ALIGNMENT);
}

// ---- parameters

static const char *const mode_words[] = {"train-forward", "inference", "backward", NULL}; // enum msg_call_kind's
static const char *const activation_words[] = {"relu", NULL};                             // enum bn_activation's

// What parameters say before it is in the call.
struct parameters {
    int mode, activation;
    bool keep, frozen, binary;
    char cache[MSG_CACHE_ID_MAX + 1];
    int64_t channel_axis, timeout_us;
    double lr, weight_decay;
};

enum parameter { GIVEN_AXIS = 1 << 0, GIVEN_LR = 1 << 1, GIVEN_DECAY = 1 << 2 };

#define AT(member) offsetof(struct parameters, member)
#define TIMEOUT_MAX_US 1e15 // 31 years

static const struct field train_fields[] = {
    {"activation", FIELD_WORD, AT(activation), BN_RELU, 0, activation_words, 0},
    {"binary_data_output", FIELD_BOOL, AT(binary), 0, 0, NULL, 0},
    {"cache", FIELD_BOOL, AT(keep), 0, 0, NULL, 0},
    {"channel_axis", FIELD_INTEGER, AT(channel_axis), -TENSOR_MAX_RANK, TENSOR_MAX_RANK - 1, NULL, GIVEN_AXIS},
    {"mode", FIELD_WORD, AT(mode), 0, 0, mode_words, 0},
    {"timeout", FIELD_INTEGER, AT(timeout_us), 0, TIMEOUT_MAX_US, NULL, 0},
    FIELD_END,
};

static const struct field inference_fields[] = {
    {"activation", FIELD_WORD, AT(activation), BN_RELU, 0, activation_words, 0},
    {"binary_data_output", FIELD_BOOL, AT(binary), 0, 0, NULL, 0},
    {"channel_axis", FIELD_INTEGER, AT(channel_axis), -TENSOR_MAX_RANK, TENSOR_MAX_RANK - 1, NULL, GIVEN_AXIS},
    {"mode", FIELD_WORD, AT(mode), 0, 0, mode_words, 0},
    {"timeout", FIELD_INTEGER, AT(timeout_us), 0, TIMEOUT_MAX_US, NULL, 0},
    FIELD_END,
};

static const struct field backward_fields[] = {
    {"activation", FIELD_WORD, AT(activation), BN_RELU, 0, activation_words, 0},
    {"binary_data_output", FIELD_BOOL, AT(binary), 0, 0, NULL, 0},
    {"cache", FIELD_CACHE_ID, AT(cache), 0, 0, NULL, 0},
    {"channel_axis", FIELD_INTEGER, AT(channel_axis), -TENSOR_MAX_RANK, TENSOR_MAX_RANK - 1, NULL, GIVEN_AXIS},
    {"frozen", FIELD_BOOL, AT(frozen), 0, 0, NULL, 0},
    {"lr", FIELD_REAL, AT(lr), -HUGE_VAL, HUGE_VAL, NULL, GIVEN_LR},
    {"mode", FIELD_WORD, AT(mode), 0, 0, mode_words, 0},
    {"timeout", FIELD_INTEGER, AT(timeout_us), 0, TIMEOUT_MAX_US, NULL, 0},
    {"weight_decay", FIELD_REAL, AT(weight_decay), -HUGE_VAL, HUGE_VAL, NULL, GIVEN_DECAY},
    FIELD_END,
};

// Indexed by enum msg_call_kind.
static const struct field *const tables[] = {train_fields, inference_fields, backward_fields};

// Parameters of extensions that there are not here. With these values they ask for nothing.
static bool is_neutral(const json_t *value) {
    return (json_is_integer(value) && json_integer_value(value) == 0) || json_is_false(value) ||
           (json_is_string(value) && json_string_length(value) == 0);
}

static bool drop_reserved(json_t *object, struct msg_error *error) {
    static const char *const names[] = {"priority", "sequence_id", "sequence_start", "sequence_end"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const json_t *const value = json_object_get(object, names[i]);
        char pointer[MSG_POINTER_MAX];
        field_pointer(pointer, "/parameters", names[i]);
        if (value != NULL && !is_neutral(value))
            return msg_fail(error, MSG_NOT_BUILT, pointer, "this build does not have %s: every call stands for itself",
                            i == 0 ? "priorities" : "sequences");
        json_object_del(object, names[i]);
    }
    return true;
}

static bool find_kind(enum msg_call_kind *kind, json_t *object, struct msg_error *error) {
    static const struct field field = {"mode", FIELD_WORD, 0, 0, 0, mode_words, 0};
    const json_t *const mode = json_object_get(object, "mode");
    int word = MSG_INFERENCE;
    if (mode != NULL && !field_set(&word, &field, mode, "/parameters/mode", error)) return false;
    *kind = (enum msg_call_kind)word;
    return true;
}

static bool set_call(struct msg_call *call, const struct parameters *p, unsigned given, struct msg_error *error) {
    call->activation = p->activation;
    call->keep = p->keep;
    call->mode = p->frozen ? MSG_MODE_INFERENCE : MSG_MODE_TRAIN;
    call->has_channel_axis = (given & GIVEN_AXIS) != 0;
    call->channel_axis = p->channel_axis;
    call->has_step = (given & GIVEN_LR) != 0;
    call->lr = p->lr;
    call->weight_decay = p->weight_decay;
    call->infer.timeout_us = (uint64_t)p->timeout_us;
    memcpy(call->cache, p->cache, sizeof call->cache);
    return call->has_step || (given & GIVEN_DECAY) == 0 ||
           msg_fail(error, MSG_MISSING_FIELD, "/parameters/lr", "weight_decay needs lr");
}

// `object` may be NULL. *binary: what outputs are unless they say themselves.
static bool take_parameters(struct msg_call *call, enum msg_call_kind *kind, bool *binary, json_t *object,
                            struct msg_error *error) {
    struct parameters p = {.mode = MSG_INFERENCE};
    unsigned given = 0;
    *kind = MSG_INFERENCE;
    if (object == NULL) return true;
    if (!json_is_object(object)) return msg_fail(error, MSG_WRONG_TYPE, "/parameters", "parameters are an object");
    if (!drop_reserved(object, error) || !find_kind(kind, object, error) ||
        !field_set_all(&p, &given, tables[*kind], object, "/parameters", error) || !set_call(call, &p, given, error))
        return false;
    *binary = p.binary;
    return true;
}

// ---- outputs

const char *const oip_output_names[MSG_OUTPUTS] = {
    [MSG_Y] = "y",           [MSG_BATCH_MEAN] = "batch_mean", [MSG_BATCH_VAR] = "batch_var", [MSG_DX] = "dx",
    [MSG_DGAMMA] = "dgamma", [MSG_DBETA] = "dbeta",           [MSG_DRESIDUAL] = "dresidual"};

// The outputs of each kind: `count` of them, from `first` on.
static const struct {
    enum msg_output first;
    size_t count;
    const char *names;
} outputs_of[] = {[MSG_TRAIN_FORWARD] = {MSG_Y, 3, "y, batch_mean and batch_var"},
                  [MSG_INFERENCE] = {MSG_Y, 1, "y"},
                  [MSG_BACKWARD] = {MSG_DX, 4, "dx, dgamma, dbeta and dresidual"}};

static void want_all(struct msg_infer *infer, enum msg_call_kind kind, bool binary) {
    infer->output_count = outputs_of[kind].count;
    for (size_t i = 0; i < infer->output_count; i++) {
        infer->outputs[i].name = (enum msg_output)((size_t)outputs_of[kind].first + i);
        infer->outputs[i].binary = binary;
    }
}

static bool find_output(enum msg_output *found, const struct msg_infer *infer, enum msg_call_kind kind,
                        const json_t *name, const char *pointer, struct msg_error *error) {
    if (!json_is_string(name))
        return msg_fail(error, name == NULL ? MSG_MISSING_FIELD : MSG_WRONG_TYPE, pointer,
                        "an output has a name, which is a string");
    for (size_t i = 0; i < outputs_of[kind].count; i++) {
        *found = (enum msg_output)((size_t)outputs_of[kind].first + i);
        if (!field_is_word(name, oip_output_names[*found])) continue;
        for (size_t k = 0; k < infer->output_count; k++) {
            if (infer->outputs[k].name == *found)
                return msg_fail(error, MSG_DUPLICATE_FIELD, pointer, "the output \"%s\" is asked for twice",
                                oip_output_names[*found]);
        }
        return true;
    }
    return msg_fail(error, MSG_UNKNOWN_FIELD, pointer, "there is no output \"%.60s\" in this mode, only %s",
                    json_string_value(name), outputs_of[kind].names);
}

static bool take_output(struct msg_infer *infer, enum msg_call_kind kind, bool binary, json_t *output, size_t index,
                        struct msg_error *error) {
    static const struct field members[] = {
        {"name", FIELD_APART, 0, 0, 0, NULL, 0}, {"parameters", FIELD_APART, 0, 0, 0, NULL, 0}, FIELD_END};
    static const struct field fields[] = {{"binary_data", FIELD_BOOL, 0, 0, 0, NULL, 0}, FIELD_END};
    char at[40], pointer[MSG_POINTER_MAX];
    enum msg_output found = MSG_Y;
    snprintf(at, sizeof at, "/outputs/%zu", index);
    if (!json_is_object(output)) return msg_fail(error, MSG_WRONG_TYPE, at, "an output is an object");
    if (!field_set_all(NULL, NULL, members, output, at, error)) return false;
    field_pointer(pointer, at, "name");
    if (!find_output(&found, infer, kind, json_object_get(output, "name"), pointer, error)) return false;
    field_pointer(pointer, at, "parameters");
    json_t *const parameters = json_object_get(output, "parameters");
    if (parameters != NULL && !json_is_object(parameters))
        return msg_fail(error, MSG_WRONG_TYPE, pointer, "parameters are an object");
    if (parameters != NULL && !field_set_all(&binary, NULL, fields, parameters, pointer, error)) return false;
    infer->outputs[infer->output_count].name = found;
    infer->outputs[infer->output_count++].binary = binary;
    return true;
}

// No outputs, or an empty array of them: all that there are.
static bool take_outputs(struct msg_infer *infer, enum msg_call_kind kind, bool binary, json_t *outputs,
                         struct msg_error *error) {
    if (outputs != NULL && !json_is_array(outputs))
        return msg_fail(error, MSG_WRONG_TYPE, "/outputs", "outputs are an array");
    infer->chosen = json_array_size(outputs) > 0;
    if (!infer->chosen) want_all(infer, kind, binary);
    for (size_t i = 0; i < json_array_size(outputs); i++) {
        if (!take_output(infer, kind, binary, json_array_get(outputs, i), i, error)) return false;
    }
    return true;
}

// ---- the request

static const struct field request_fields[] = {
    {"id", FIELD_APART, 0, 0, 0, NULL, 0},
    {"model_name", FIELD_APART, 0, 0, 0, NULL, 0},
    {"model_version", FIELD_APART, 0, 0, 0, NULL, 0},
    {"outputs", FIELD_APART, 0, 0, 0, NULL, 0},
    {"parameters", FIELD_APART, 0, 0, 0, NULL, 0},
    FIELD_END,
};

struct walk {
    enum bn_dtype dtype;
    struct oip_inputs inputs;
    struct rest rest;
};

static bool take_member_of(void *context, struct scan *scan, const struct scan_key *key) {
    struct walk *const walk = context;
    if (strcmp(key->name, "inputs") == 0) return oip_take_inputs(&walk->inputs, scan, walk->dtype);
    return rest_take(&walk->rest, scan, key);
}

// Kept as it is to be written again.
static bool take_id(struct msg_infer *infer, const json_t *id, struct msg_error *error) {
    if (id == NULL) return true;
    if (!json_is_string(id)) return msg_fail(error, MSG_WRONG_TYPE, "/id", "id is a string");
    char *const text = json_dumps(id, JSON_ENCODE_ANY);
    if (text == NULL) return msg_fail(error, MSG_MEMORY_FULL, NULL, "out of memory");
    const size_t length = strlen(text);
    if (length <= MSG_ID_MAX) memcpy(infer->id, text, length + 1);
    free(text);
    return length <= MSG_ID_MAX ||
           msg_fail(error, MSG_OUT_OF_RANGE, "/id", "the id takes more than %d bytes", MSG_ID_MAX);
}

// Some clients say again what the path says.
static bool check_word(json_t *object, const char *name, const char *word, struct msg_error *error) {
    const json_t *const value = json_object_get(object, name);
    char pointer[MSG_POINTER_MAX];
    field_pointer(pointer, "", name);
    if (value == NULL || json_is_null(value)) return true;
    if (!json_is_string(value)) return msg_fail(error, MSG_WRONG_TYPE, pointer, "%s is a string", name);
    return field_is_word(value, word) ||
           msg_fail(error, MSG_CONFLICTING_FIELDS, pointer, "%s is not that of the path, \"%s\"", name, word);
}

static bool take_rest(struct msg_call *call, enum msg_call_kind *kind, json_t *object, struct msg_error *error) {
    bool binary = false;
    return take_id(&call->infer, json_object_get(object, "id"), error) &&
           check_word(object, "model_name", call->infer.model, error) &&
           check_word(object, "model_version", OIP_VERSION, error) &&
           take_parameters(call, kind, &binary, json_object_get(object, "parameters"), error) &&
           take_outputs(&call->infer, *kind, binary, json_object_get(object, "outputs"), error);
}

static bool decode(struct msg_call *call, enum msg_call_kind *kind, const struct oip_request *request, size_t length,
                   struct msg_error *error) {
    struct walk walk = {.dtype = (enum bn_dtype)request->layer->dtype, .rest = {.known = {request_fields}}};
    const struct json_body body = {.text = (const char *)call->body.data + request->start,
                                   .length = length,
                                   .budget = request->budget,
                                   .ahead = request->ahead};
    const bool ok =
        field_walk(body, take_member_of, &walk, error) && take_rest(call, kind, walk.rest.object, error) &&
        (walk.inputs.given || msg_fail(error, MSG_MISSING_FIELD, "/inputs", "inputs are missing")) &&
        oip_place_inputs(&walk.inputs, call, *kind, request->start + length, walk.dtype, request->budget, error);
    rest_free(&walk.rest);
    oip_free_inputs(&walk.inputs);
    return ok;
}

static bool decode_raw(struct msg_call *call, const struct oip_request *request, struct msg_error *error) {
    want_all(&call->infer, MSG_INFERENCE, true);
    return oip_place_raw(call, request->start, request->layer, request->budget, error);
}

bool oip_decode(struct msg_call *call, enum msg_call_kind *kind, const struct oip_request *request,
                struct msg_error *error) {
    buffer_move(&call->body, request->body);
    call->infer.model = request->model;
    *kind = MSG_INFERENCE;
    if (request->has_header && request->header == 0) return decode_raw(call, request, error);
    const size_t whole = call->body.size - request->start;
    if (request->has_header && request->header > whole)
        return msg_fail(error, MSG_MALFORMED_FILE, NULL,
                        "Inference-Header-Content-Length is more than the %zu bytes of the body", whole);
    return decode(call, kind, request, request->has_header ? (size_t)request->header : whole, error);
}

// ---- errors

// What is left of `pointer` behind the member; NULL: it is of another one.
static const char *behind(const char *pointer, const char *member) {
    const size_t length = strlen(member);
    if (pointer[0] != '/' || strncmp(pointer + 1, member, length) != 0) return NULL;
    return pointer[1 + length] == '\0' || pointer[1 + length] == '/' ? pointer + 1 + length : NULL;
}

static void point_into_input(struct msg_error *error, const struct msg_infer *infer, enum msg_input which,
                             const char *rest) {
    static const char data[] = "/data/";
    char pointer[MSG_POINTER_MAX], element[MSG_POINTER_MAX];
    const size_t length = strlen(error->detail);
    const bool flat = strncmp(rest, data, sizeof data - 1) == 0;
    snprintf(element, sizeof element, "%s", rest);
    if (!infer->inputs[which].given || infer->raw) {
        snprintf(pointer, sizeof pointer, "%s", infer->raw ? "" : "/inputs");
    } else if (infer->inputs[which].in_json) {
        snprintf(pointer, sizeof pointer, "/inputs/%zu%s%.200s", infer->inputs[which].index,
                 flat || element[0] == '\0' ? "" : "/data", element);
    } else {
        snprintf(pointer, sizeof pointer, "/inputs/%zu", infer->inputs[which].index);
    }
    if (!infer->inputs[which].in_json && flat)
        snprintf(error->detail + length, sizeof error->detail - length, " (element %.20s)", element + sizeof data - 1);
    memcpy(error->pointer, pointer, sizeof pointer);
    error->has_pointer = pointer[0] != '\0';
}

void oip_place_error(struct msg_error *error, const struct msg_infer *infer) {
    static const struct {
        const char *field, *place;
    } parameters[] = {{"activation", "/parameters/activation"},
                      {"cache", "/parameters/cache"},
                      {"channel_axis", "/parameters/channel_axis"},
                      {"mode", "/parameters/frozen"},
                      {"step", "/parameters/lr"}};
    if (!error->has_pointer) return;
    for (size_t i = 0; i < MSG_INPUTS; i++) {
        const char *const rest = behind(error->pointer, oip_input_names[i]);
        if (rest == NULL) continue;
        point_into_input(error, infer, (enum msg_input)i, rest);
        return;
    }
    for (size_t i = 0; i < sizeof parameters / sizeof parameters[0]; i++) {
        if (behind(error->pointer, parameters[i].field) == NULL) continue;
        snprintf(error->pointer, sizeof error->pointer, "%s", parameters[i].place);
        return;
    }
}
