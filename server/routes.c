// SPDX-License-Identifier: Apache-2.0
#include "routes.h"

#include <stdio.h>
#include <string.h>

#include "ops.h"

#define JSON (1u << CODEC_JSON)
#define STATES (JSON | 1u << CODEC_SAFETENSORS)
#define TENSORS (STATES | 1u << CODEC_NPY)
#define LAYER (ROUTE_HAS_NAME | ROUTE_NEEDS_LAYER)
#define CALL (LAYER | ROUTE_BODY)
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
    {"PATCH", "/v1/layers/{name}", ops_patch_layer, CALL, NULL, JSON, JSON, {NULL}},
    {"PUT", "/v1/layers/{name}", ops_put_layer, ROUTE_HAS_NAME | ROUTE_BODY, NULL, JSON, JSON, {NULL}},
    {"POST", "/v1/layers/{name}/backward", ops_backward, CALL, NULL, TENSORS, TENSORS, BACKWARD_OPTIONS},
    {"POST", "/v1/layers/{name}/inference", ops_inference, CALL, NULL, TENSORS, TENSORS, INFERENCE_OPTIONS},
    {"GET", "/v1/layers/{name}/state", ops_get_state, LAYER, NULL, 0, STATES, {NULL}},
    {"PATCH", "/v1/layers/{name}/state", ops_patch_state, CALL | ROUTE_BIG_BODY, NULL, STATES, STATES, {NULL}},
    {"PUT", "/v1/layers/{name}/state", ops_put_state, CALL | ROUTE_BIG_BODY, NULL, STATES, STATES, {NULL}},
    {"POST", "/v1/layers/{name}/train-forward", ops_train_forward, CALL, NULL, TENSORS, TENSORS, TRAIN_OPTIONS},
    {"GET", "/v1/snapshot", ops_get_snapshot, ROUTE_HEAVY, NULL, 0, STATES, {"prefix"}},
    {"PUT", "/v1/snapshot", ops_put_snapshot, RESTORE, NULL, STATES, JSON, {"prefix", "delete_missing"}},
    {"GET", "/v2", ops_v2, LATER, "application/json", 0, 0, {NULL}},
    {"GET", "/v2/{path}", ops_v2, LATER, "application/json", 0, 0, {NULL}},
    {"POST", "/v2/{path}", ops_v2, LATER, "application/json", 0, 0, {NULL}},
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

// True where the path has the pattern's segments; *name is the raw segment at {name}.
static bool path_matches(const char *pattern, const char *path, const char **name, size_t *name_length) {
    const char *const hole = strstr(pattern, "{name}"), *const rest = strstr(pattern, "{path}");
    *name = NULL;
    if (rest != NULL) return strncmp(pattern, path, (size_t)(rest - pattern)) == 0;
    if (hole == NULL) return strcmp(pattern, path) == 0;
    const size_t before = (size_t)(hole - pattern);
    if (strncmp(pattern, path, before) != 0) return false;
    *name = path + before;
    *name_length = strcspn(*name, "/");
    return strcmp(*name + *name_length, hole + strlen("{name}")) == 0;
}

enum route_match route_find(const struct route **route, char *name, const char *method, const char *path) {
    const char *const wanted = strcmp(method, "HEAD") == 0 ? "GET" : method;
    enum route_match result = ROUTE_NO_PATH;
    *route = NULL;
    for (size_t i = 0; i < route_count; i++) {
        const char *raw = NULL;
        size_t length = 0;
        if (!path_matches(routes[i].path, path, &raw, &length)) continue;
        if (raw != NULL &&
            (!route_unescape(name, MSG_NAME_MAX + 1, raw, length, false) || !msg_name_valid(name, strlen(name)))) {
            return ROUTE_BAD_NAME;
        }
        result = ROUTE_NO_METHOD;
        if (strcmp(routes[i].method, wanted) != 0) continue;
        *route = &routes[i];
        return ROUTE_FOUND;
    }
    return result;
}

void route_allow(char *out, size_t room, const char *path) {
    size_t n = 0;
    out[0] = '\0';
    for (size_t i = 0; i < route_count; i++) {
        const char *raw = NULL;
        size_t length = 0;
        if (!path_matches(routes[i].path, path, &raw, &length)) continue;
        const bool get = strcmp(routes[i].method, "GET") == 0;
        const int written =
            snprintf(out + n, room - n, "%s%s%s", n > 0 ? ", " : "", routes[i].method, get ? ", HEAD" : "");
        if (written < 0 || (size_t)written >= room - n) return;
        n += (size_t)written;
    }
}
