// SPDX-License-Identifier: Apache-2.0
#include "routes.h"

#include <stdio.h>
#include <string.h>

#include "ops.h"
#include "../proto/oip.h"

#define JSON (1u << CODEC_JSON)
#define STATES (JSON | 1u << CODEC_SAFETENSORS)
#define TENSORS (STATES | 1u << CODEC_NPY)
#define LAYER (ROUTE_HAS_NAME | ROUTE_NEEDS_LAYER)
#define CHANGE (LAYER | ROUTE_BODY)
#define CALL (CHANGE | ROUTE_CALL)
#define MODEL (LAYER | ROUTE_OIP)
#define INFER (CALL | ROUTE_OIP | ROUTE_CODED)
#define INDEX (ROUTE_BODY | ROUTE_HEAVY | ROUTE_OIP)
#define OIP (1u << CODEC_OIP)
#define JSON_TYPE "application/json"
#define PROBE ROUTE_PROBE
#define LATER (ROUTE_PROBE | ROUTE_NOT_BUILT)
#define RESTORE (ROUTE_BODY | ROUTE_BIG_BODY | ROUTE_HEAVY)
#define BACKWARD_OPTIONS                                                                                               \
    { "cache", "channel_axis", "mode", "step_lr", "step_weight_decay", "dtype" }
#define INFERENCE_OPTIONS                                                                                              \
    { "channel_axis", "activation", "dtype" }
#define TRAIN_OPTIONS                                                                                                  \
    { "cache", "channel_axis", "activation", "dtype" }

// Sorted by path, then method.
const struct route routes[] = {
    {"GET", "/livez", ops_livez, PROBE, "text/plain", 0, 0, {NULL}},
    {"GET", "/metrics", ops_metrics, LATER, "text/plain", 0, 0, {NULL}},
    {"GET", "/openapi.yaml", ops_openapi, 0, "application/yaml", 0, 0, {NULL}},
    {"GET", "/readyz", ops_readyz, PROBE, "text/plain", 0, 0, {NULL}},
    {"GET", "/v1/layers", ops_list_layers, ROUTE_HEAVY, NULL, 0, JSON, {"prefix", "limit", "cursor"}},
    {"DELETE", "/v1/layers/{name}", ops_delete_layer, LAYER, NULL, 0, 0, {NULL}},
    {"GET", "/v1/layers/{name}", ops_get_layer, LAYER, NULL, 0, JSON, {NULL}},
    {"PATCH", "/v1/layers/{name}", ops_patch_layer, CHANGE, NULL, JSON, JSON, {NULL}},
    {"PUT", "/v1/layers/{name}", ops_put_layer, ROUTE_HAS_NAME | ROUTE_BODY, NULL, JSON, JSON, {NULL}},
    {"POST", "/v1/layers/{name}/backward", ops_backward, CALL, NULL, TENSORS, TENSORS, BACKWARD_OPTIONS},
    {"POST", "/v1/layers/{name}/inference", ops_inference, CALL, NULL, TENSORS, TENSORS, INFERENCE_OPTIONS},
    {"GET", "/v1/layers/{name}/state", ops_get_state, LAYER, NULL, 0, STATES, {NULL}},
    {"PATCH", "/v1/layers/{name}/state", ops_patch_state, CHANGE | ROUTE_BIG_BODY, NULL, STATES, STATES, {NULL}},
    {"PUT", "/v1/layers/{name}/state", ops_put_state, CHANGE | ROUTE_BIG_BODY, NULL, STATES, STATES, {NULL}},
    {"POST", "/v1/layers/{name}/train-forward", ops_train_forward, CALL, NULL, TENSORS, TENSORS, TRAIN_OPTIONS},
    {"GET", "/v1/snapshot", ops_get_snapshot, ROUTE_HEAVY, NULL, 0, STATES, {"prefix"}},
    {"PUT", "/v1/snapshot", ops_put_snapshot, RESTORE, NULL, STATES, JSON, {"prefix", "delete_missing"}},
    {"GET", "/v2", ops_oip_server, ROUTE_OIP, JSON_TYPE, 0, 0, {NULL}},
    {"GET", "/v2/", ops_oip_server, ROUTE_OIP, JSON_TYPE, 0, 0, {NULL}},
    {"GET", "/v2/health/live", ops_oip_live, PROBE | ROUTE_OIP, JSON_TYPE, 0, 0, {NULL}},
    {"GET", "/v2/health/ready", ops_oip_ready, PROBE | ROUTE_OIP, JSON_TYPE, 0, 0, {NULL}},
    {"GET", "/v2/models/stats", ops_oip_all_stats, ROUTE_HEAVY | ROUTE_OIP, JSON_TYPE, 0, 0, {NULL}},
    {"GET", "/v2/models/{name}", ops_oip_model, MODEL, JSON_TYPE, 0, 0, {NULL}},
    {"GET", "/v2/models/{name}/config", ops_oip_config, MODEL, JSON_TYPE, 0, 0, {NULL}},
    {"POST", "/v2/models/{name}/infer", ops_oip_infer, INFER, NULL, OIP, OIP, {NULL}},
    {"GET", "/v2/models/{name}/ready", ops_oip_model_ready, PROBE | MODEL, JSON_TYPE, 0, 0, {NULL}},
    {"GET", "/v2/models/{name}/stats", ops_oip_stats, MODEL, JSON_TYPE, 0, 0, {NULL}},
    {"GET", "/v2/models/{name}/versions/{version}", ops_oip_model, MODEL, JSON_TYPE, 0, 0, {NULL}},
    {"GET", "/v2/models/{name}/versions/{version}/config", ops_oip_config, MODEL, JSON_TYPE, 0, 0, {NULL}},
    {"POST", "/v2/models/{name}/versions/{version}/infer", ops_oip_infer, INFER, NULL, OIP, OIP, {NULL}},
    {"GET", "/v2/models/{name}/versions/{version}/ready", ops_oip_model_ready, PROBE | MODEL, JSON_TYPE, 0, 0, {NULL}},
    {"GET", "/v2/models/{name}/versions/{version}/stats", ops_oip_stats, MODEL, JSON_TYPE, 0, 0, {NULL}},
    {"POST", "/v2/repository/index", ops_oip_index, INDEX, JSON_TYPE, JSON, 0, {NULL}},
    {"POST", "/v2/repository/models/{name}/load", ops_oip_load, MODEL | ROUTE_BODY, JSON_TYPE, JSON, 0, {NULL}},
    {"POST", "/v2/repository/models/{name}/unload", ops_oip_unload, MODEL | ROUTE_BODY, JSON_TYPE, JSON, 0, {NULL}},
    {"GET", "/version", ops_version, 0, NULL, 0, JSON, {NULL}},
};

const size_t route_count = sizeof routes / sizeof routes[0];

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

bool route_unescape(char *out, size_t room, const char *text, size_t length, bool query) {
    size_t n = 0;
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        if (c == '%') {
            if (length - i < 3) return false;
            const int high = hex_digit(text[i + 1]), low = hex_digit(text[i + 2]);
            if (high < 0 || low < 0) return false;
            c = (char)(high * 16 + low);
            i += 2;
        } else if (query && c == '+') {
            c = ' ';
        }
        if (c == '\0' || n + 1 >= room) return false;
        out[n++] = c;
    }
    out[n] = '\0';
    return true;
}

// Raw segments of a path; NULL: its pattern has no such hole.
struct holes {
    const char *name, *version;
    size_t name_length, version_length;
};

// True where the path has the pattern's segments.
static bool path_matches(const char *pattern, const char *path, struct holes *holes) {
    *holes = (struct holes){.name = NULL};
    while (*pattern != '\0') {
        if (*pattern != '{') {
            if (*pattern++ != *path++) return false;
            continue;
        }
        const bool is_name = pattern[1] == 'n';
        const size_t length = strcspn(path, "/");
        *(is_name ? &holes->name : &holes->version) = path;
        *(is_name ? &holes->name_length : &holes->version_length) = length;
        path += length;
        pattern += strcspn(pattern, "}") + 1;
    }
    return *path == '\0';
}

static bool has_version(const struct holes *holes) {
    const size_t length = strlen(OIP_VERSION);
    return holes->version == NULL ||
           (holes->version_length == length && memcmp(holes->version, OIP_VERSION, length) == 0);
}

enum route_match route_find(const struct route **route, char *name, const char *method, const char *path) {
    const char *const wanted = strcmp(method, "HEAD") == 0 ? "GET" : method;
    enum route_match result = ROUTE_NO_PATH;
    *route = NULL;
    for (size_t i = 0; i < route_count; i++) {
        struct holes holes;
        if (!path_matches(routes[i].path, path, &holes)) continue;
        if (holes.name != NULL && (!route_unescape(name, MSG_NAME_MAX + 1, holes.name, holes.name_length, false) ||
                                   !msg_name_valid(name, strlen(name)))) {
            return ROUTE_BAD_NAME;
        }
        if (!has_version(&holes)) return ROUTE_NO_VERSION;
        result = ROUTE_NO_METHOD;
        if (strcmp(routes[i].method, wanted) != 0) continue;
        *route = &routes[i];
        return ROUTE_FOUND;
    }
    return result;
}

bool route_is_oip(const char *path) {
    return strncmp(path, "/v2", 3) == 0 && (path[3] == '\0' || path[3] == '/');
}

void route_allow(char *out, size_t room, const char *path) {
    size_t n = 0;
    out[0] = '\0';
    for (size_t i = 0; i < route_count; i++) {
        struct holes holes;
        if (!path_matches(routes[i].path, path, &holes)) continue;
        if (strstr(out, routes[i].method) != NULL) continue; // a path may be of two patterns
        const bool get = strcmp(routes[i].method, "GET") == 0;
        const int written =
            snprintf(out + n, room - n, "%s%s%s", n > 0 ? ", " : "", routes[i].method, get ? ", HEAD" : "");
        if (written < 0 || (size_t)written >= room - n) return;
        n += (size_t)written;
    }
}
