// SPDX-License-Identifier: Apache-2.0
//
// What the protocol tells of server, models and repository.
#include "oip.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "json_fields.h"
#include "oip_inputs.h"

// ---- models

int oip_shape(int64_t dim[TENSOR_MAX_RANK], const struct msg_config *layer) {
    const int axis = (int)layer->channel_axis, least = axis < 0 ? -axis : axis + 1;
    const int rank = least < TENSOR_MIN_RANK ? TENSOR_MIN_RANK : least;
    for (int l = 0; l < rank; l++) dim[l] = -1;
    dim[axis < 0 ? axis + rank : axis] = layer->num_features;
    return rank;
}

static const char *datatype_of(const struct msg_config *layer) {
    return oip_datatypes[layer->dtype == BN_F32 ? WIRE_F32 : WIRE_F64];
}

static bool put_shape(struct buffer *out, const struct msg_config *layer) {
    int64_t dim[TENSOR_MAX_RANK];
    const int rank = oip_shape(dim, layer);
    for (int l = 0; l < rank; l++) {
        if (!buffer_print(out, "%s%" PRId64, l > 0 ? "," : "[", dim[l])) return false;
    }
    return buffer_print(out, "]");
}

// What works, and nothing else.
bool oip_encode_server(struct buffer *out, const char *version) {
    return buffer_print(
        out,
        "{\"name\":\"normd\",\"version\":\"%s\",\"extensions\":[\"binary_tensor_data\",\"model_configuration\","
        "\"parameters\",\"statistics\"]}\n",
        version);
}

static bool put_tensor(struct buffer *out, const char *name, const struct msg_config *layer) {
    return buffer_print(out, "{\"name\":\"%s\",\"datatype\":\"%s\",\"shape\":", name, datatype_of(layer)) &&
           put_shape(out, layer) && buffer_print(out, "}");
}

bool oip_encode_model(struct buffer *out, const char *name, const struct msg_config *layer) {
    return buffer_print(out, "{\"name\":\"%s\",\"versions\":[\"" OIP_VERSION "\"],\"platform\":\"normd\",\"inputs\":[",
                        name) &&
           put_tensor(out, "x", layer) && buffer_print(out, "],\"outputs\":[") && put_tensor(out, "y", layer) &&
           buffer_print(out, "]}\n");
}

bool oip_encode_ready(struct buffer *out, const char *name) {
    return buffer_print(out, "{\"name\":\"%s\",\"ready\":true}\n", name);
}

static bool put_io(struct buffer *out, const char *name, const struct msg_config *layer) {
    return buffer_print(out, "[{\"name\":\"%s\",\"data_type\":\"TYPE_%s\",\"dims\":", name, datatype_of(layer)) &&
           put_shape(out, layer) && buffer_print(out, "}]");
}

bool oip_encode_config(struct buffer *out, const char *name, const struct msg_config *layer) {
    return buffer_print(
               out,
               "{\"name\":\"%s\",\"platform\":\"normd\",\"backend\":\"normd\",\"max_batch_size\":0,\"input\":", name) &&
           put_io(out, "x", layer) && buffer_print(out, ",\"output\":") && put_io(out, "y", layer) &&
           buffer_print(out, "}\n");
}

// ---- statistics

bool oip_begin_stats(struct buffer *out) {
    return buffer_print(out, "{\"model_stats\":[");
}

static bool put_duration(struct buffer *out, const char *name, struct oip_duration duration) {
    return buffer_print(out, "\"%s\":{\"count\":%" PRIu64 ",\"ns\":%" PRIu64 "}", name, duration.count, duration.ns);
}

// A call is executed by itself, so that there are as many executions as inferences, and batches are not told apart.
bool oip_put_stats(struct buffer *out, const struct oip_stats *stats, size_t index) {
    const struct {
        const char *name;
        struct oip_duration duration;
    } rows[] = {{"success", stats->success},     {"fail", stats->fail},           {"queue", stats->queue},
                {"compute_input", stats->input}, {"compute_infer", stats->infer}, {"compute_output", stats->output},
                {"cache_hit", {0, 0}},           {"cache_miss", {0, 0}}};
    if (!buffer_print(out, "%s{\"name\":\"%s\",\"version\":\"" OIP_VERSION "\",\"last_inference\":%" PRIu64,
                      index > 0 ? "," : "", stats->name, stats->last_ms) ||
        !buffer_print(out, ",\"inference_count\":%" PRIu64 ",\"execution_count\":%" PRIu64 ",\"inference_stats\":{",
                      stats->success.count, stats->success.count))
        return false;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (!buffer_print(out, "%s", i > 0 ? "," : "") || !put_duration(out, rows[i].name, rows[i].duration))
            return false;
    }
    return buffer_print(
        out, "},\"batch_stats\":[],\"memory_usage\":[{\"type\":\"CPU\",\"id\":0,\"byte_size\":%" PRIu64 "}]}",
        stats->bytes);
}

bool oip_end_stats(struct buffer *out) {
    return buffer_print(out, "]}\n");
}

// ---- the repository

static bool check_body(struct json_body body, const struct field *table, json_t **object, struct rest *rest,
                       struct msg_error *error) {
    *object = NULL;
    if (body.length == 0) return true;
    rest->known[0] = table;
    if (!rest_parse(rest, body, error)) return false;
    *object = rest->object;
    return true;
}

bool oip_check_index(struct json_body body, struct msg_error *error) {
    static const struct field fields[] = {{"ready", FIELD_BOOL, 0, 0, 0, NULL, 0}, FIELD_END};
    struct rest rest = {.size = 0};
    json_t *object = NULL;
    bool ready = false;
    const bool ok = check_body(body, fields, &object, &rest, error) &&
                    (object == NULL || field_set_all(&ready, NULL, fields, object, "", error));
    rest_free(&rest);
    return ok;
}

static bool check_load_parameters(const json_t *parameters, struct msg_error *error) {
    const char *name;
    json_t *value;
    if (parameters != NULL && !json_is_object(parameters))
        return msg_fail(error, MSG_WRONG_TYPE, "/parameters", "parameters are an object");
    json_object_foreach((json_t *)(uintptr_t)parameters, name, value) {
        char pointer[MSG_POINTER_MAX];
        field_pointer(pointer, "/parameters", name);
        if (strcmp(name, "config") == 0 || strncmp(name, "file:", 5) == 0)
            return msg_fail(error, MSG_NOT_SUPPORTED_BY_LAYER, pointer,
                            "a layer is configured by PUT and PATCH /v1/layers/NAME, not when it is loaded");
        return msg_fail(error, MSG_UNKNOWN_FIELD, pointer, "there is no such parameter here");
    }
    return true;
}

bool oip_check_load(struct json_body body, struct msg_error *error) {
    static const struct field fields[] = {{"parameters", FIELD_APART, 0, 0, 0, NULL, 0}, FIELD_END};
    struct rest rest = {.size = 0};
    json_t *object = NULL;
    const bool ok = check_body(body, fields, &object, &rest, error) &&
                    check_load_parameters(json_object_get(object, "parameters"), error);
    rest_free(&rest);
    return ok;
}

bool oip_begin_index(struct buffer *out) {
    return buffer_print(out, "[");
}

bool oip_put_index(struct buffer *out, const char *name, size_t index) {
    return buffer_print(out, "%s{\"name\":\"%s\",\"version\":\"" OIP_VERSION "\",\"state\":\"READY\",\"reason\":\"\"}",
                        index > 0 ? "," : "", name);
}

bool oip_end_index(struct buffer *out) {
    return buffer_print(out, "]\n");
}
