// SPDX-License-Identifier: Apache-2.0
//
// The table of routes against proto/openapi.yaml as it is compiled in, and the matching of paths.
#include "fixture.h"

#include "../../proto/openapi.h"
#include "../../server/routes.h"

static const char *const methods[] = {"get", "put", "post", "patch", "delete", "head", "options", "trace"};

static const struct route *row_of(const char *method, const char *path) {
    for (size_t i = 0; i < route_count; i++) {
        if (strcasecmp(routes[i].method, method) == 0 && strcmp(routes[i].path, path) == 0) return &routes[i];
    }
    return NULL;
}

// Calls each for every method in the file's `paths`, until another top-level key.
static size_t each_operation(void (*each)(const char *method, const char *path)) {
    char *const text = strndup(proto_openapi_text, proto_openapi_size());
    char *at = NULL;
    char path[200] = "";
    bool in_paths = false;
    size_t count = 0;
    for (char *line = strtok_r(text, "\n", &at); line != NULL; line = strtok_r(NULL, "\n", &at)) {
        if (line[0] != ' ' && line[0] != '#') in_paths = strcmp(line, "paths:") == 0;
        if (!in_paths) continue;
        char word[200] = "";
        int end = 0;
        if (sscanf(line, "  /%197[^:]:%n", word, &end) == 1 && end > 0) snprintf(path, sizeof path, "/%.190s", word);
        if (strncmp(line, "    ", 4) != 0 || line[4] == ' ' || sscanf(line, " %199[a-z]:%n", word, &end) != 1) continue;
        for (size_t i = 0; i < COUNT(methods); i++) {
            if (strcmp(word, methods[i]) != 0 || line[4 + strlen(word)] != ':') continue;
            each(word, path);
            count++;
        }
    }
    free(text);
    return count;
}

static bool described[100];

static void expect_route(const char *method, const char *path) {
    const struct route *const row = row_of(strcmp(method, "head") == 0 ? "get" : method, path);
    if (row == NULL) fail_msg("openapi.yaml has %s %s, which no route serves", method, path);
    described[row - routes] = true;
}

static void test_openapi(void **state) {
    (void)state;
    assert_true(route_count <= COUNT(described));
    assert_true(each_operation(expect_route) >= route_count);
    for (size_t i = 0; i < route_count; i++) {
        if (!described[i]) fail_msg("%s %s is not in openapi.yaml", routes[i].method, routes[i].path);
    }
}

static void test_rows(void **state) {
    (void)state;
    static const char *const types[] = {"application/json", "text/plain", "application/yaml"};
    const unsigned known_forms = (1u << CODEC_FORMS) - 1;
    for (size_t i = 0; i < route_count; i++) {
        const struct route *const row = &routes[i];
        assert_non_null(row->run);
        assert_ptr_equal(row_of(row->method, row->path), row); // given once
        if (i > 0) {                                           // sorted by path, then method
            const int order = strcmp(routes[i - 1].path, row->path);
            assert_true(order < 0 || (order == 0 && strcmp(routes[i - 1].method, row->method) < 0));
        }
        bool known = false;
        for (size_t k = 0; k < COUNT(types) && row->content_type != NULL; k++)
            known |= strcmp(types[k], row->content_type) == 0;
        assert_int_equal(known, row->content_type != NULL);
        const bool has_body = strcmp(row->method, "DELETE") != 0;
        assert_int_equal((row->writes != 0) + known, has_body); // forms, or a type
        const bool oip = strncmp(row->path, "/v2", 3) == 0, infer = oip && strstr(row->path, "/infer") != NULL;
        assert_int_equal((row->flags & ROUTE_OIP) != 0, oip);
        assert_int_equal((row->flags & ROUTE_CODED) != 0, infer);
        assert_int_equal(((row->reads | row->writes) & 1u << CODEC_OIP) != 0, infer);
        assert_int_equal((row->reads | row->writes) & ~known_forms, 0);
        const bool built = (row->flags & ROUTE_NOT_BUILT) == 0;
        const bool takes_body = row->method[0] == 'P' && built; // POST, PUT, PATCH
        assert_int_equal((row->flags & ROUTE_BODY) != 0, takes_body);
        assert_int_equal(row->reads != 0, takes_body);
        // What curl sends must be of some form.
        if (takes_body) assert_true((row->reads & (1u << CODEC_JSON | 1u << CODEC_OIP)) != 0);
        const bool call = infer || strstr(row->path, "}/inference") != NULL ||
                          strstr(row->path, "}/train-forward") != NULL || strstr(row->path, "}/backward") != NULL;
        assert_int_equal((row->flags & ROUTE_CALL) != 0, call);
        if ((row->flags & ROUTE_BIG_BODY) != 0) assert_true(takes_body);
        assert_int_equal((row->flags & ROUTE_HAS_NAME) != 0, strstr(row->path, "{name}") != NULL);
        if ((row->flags & ROUTE_NEEDS_LAYER) != 0) assert_true((row->flags & ROUTE_HAS_NAME) != 0);
        const bool versioned = strncmp(row->path, "/v1/", 4) == 0;
        const bool fact = strcmp(row->path, "/version") == 0 || strcmp(row->path, "/openapi.yaml") == 0;
        const bool health = strstr(row->path, "/health/") != NULL || strstr(row->path, "/ready") != NULL;
        assert_int_equal((row->flags & ROUTE_PROBE) != 0, oip ? health : !versioned && !fact);
        size_t given = 0;
        while (given < JOB_PARAMETERS_MAX && row->parameters[given] != NULL) given++;
        for (size_t k = given; k < JOB_PARAMETERS_MAX; k++) assert_null(row->parameters[k]);
        for (size_t k = 0; k < given; k++) {
            assert_true(row->parameters[k][0] != '\0');
            for (size_t l = 0; l < k; l++) assert_string_not_equal(row->parameters[k], row->parameters[l]);
        }
        if ((row->flags & ROUTE_PROBE) != 0) assert_int_equal(given, 0);
    }
}

// ---- finding

// The path of a row with a name in it.
static void path_with(char out[400], const char *pattern, const char *name) {
    size_t n = 0;
    for (const char *at = pattern; *at != '\0'; at++) {
        const char *const in = strncmp(at, "{name}", 6) == 0 ? name : strncmp(at, "{version}", 9) == 0 ? "1" : NULL;
        if (in != NULL) {
            n += (size_t)snprintf(out + n, 400 - n, "%s", in);
            at = strchr(at, '}');
        } else {
            out[n++] = *at;
        }
    }
    out[n] = '\0';
}

static void test_find_rows(void **state) {
    (void)state;
    char longest[MSG_NAME_MAX + 1] = "";
    memset(longest, 'x', MSG_NAME_MAX);
    const char *const names[][2] = {
        {"a", "a"},         {"0", "0"},        {"resnet50.layer1.0.bn1", "resnet50.layer1.0.bn1"},
        {"state", "state"}, {"a%2Eb", "a.b"},  {"%41%5a%7A", "AZz"},
        {"A-_.9", "A-_.9"}, {longest, longest}};
    for (size_t i = 0; i < route_count; i++) {
        for (size_t k = 0; k < COUNT(names); k++) {
            char path[400], name[MSG_NAME_MAX + 1] = "?";
            const struct route *route = NULL;
            path_with(path, routes[i].path, names[k][0]);
            assert_int_equal(route_find(&route, name, routes[i].method, path), ROUTE_FOUND);
            assert_ptr_equal(route, &routes[i]);
            if ((routes[i].flags & ROUTE_HAS_NAME) != 0) assert_string_equal(name, names[k][1]);
            const bool get = strcmp(routes[i].method, "GET") == 0;
            if (get) {
                assert_int_equal(route_find(&route, name, "HEAD", path), ROUTE_FOUND);
                assert_ptr_equal(route, &routes[i]);
            }
        }
    }
}

static void test_bad_names(void **state) {
    (void)state;
    char too_long[MSG_NAME_MAX + 2] = "", much_too_long[301] = "";
    memset(too_long, 'x', MSG_NAME_MAX + 1);
    memset(much_too_long, 'x', 300);
    const char *const names[] = {"%2F", "a%2Fb", "%2f..", "%00",      "a%00",   "%zz",   "a%",     "a%4",        "%4g",
                                 ".a",  "..",    ".",     "",         "-a",     "_a",    "%20",    "a%20b",      "a+b",
                                 "a~",  "a:b",   "a%3Fb", "\xc3\xa9", "%C3%A9", "%2541", too_long, much_too_long};
    for (size_t i = 0; i < route_count; i++) {
        if ((routes[i].flags & ROUTE_HAS_NAME) == 0) continue;
        for (size_t k = 0; k < COUNT(names); k++) {
            char path[400], name[MSG_NAME_MAX + 1];
            const struct route *route = &routes[0];
            path_with(path, routes[i].path, names[k]);
            const enum route_match match = route_find(&route, name, routes[i].method, path);
            if (match != ROUTE_BAD_NAME) fail_msg("%s: %d", path, (int)match);
            assert_null(route);
        }
    }
}

static void test_no_path(void **state) {
    (void)state;
    static const char *const paths[] = {"/",
                                        "",
                                        "/v1",
                                        "/v1/",
                                        "/v1/layers/a/",
                                        "/v1/layers/a/b",
                                        "/v1/layers/a/state/",
                                        "/v1/layersa",
                                        "/livez/",
                                        "/LIVEZ",
                                        "/V1/layers",
                                        "//livez",
                                        "/v1//layers",
                                        "/v1/snapshot/",
                                        "/v1/snapshot/a",
                                        "/v2x",
                                        "/v2//",
                                        "/v2/health",
                                        "/v2/health/live/",
                                        "/v2/models",
                                        "/v2/models/a/",
                                        "/v2/models/a/versions",
                                        "/v2/models/a/versions/1/",
                                        "/v2/models/a/generate",
                                        "/v2/models/a/b/infer",
                                        "/v2/repository/models/a",
                                        "/v2/logging",
                                        "/v2/systemsharedmemory/status",
                                        "/metrics/",
                                        "/v1/layers/a/train-forward/x",
                                        "/%6civez",
                                        "/v1/layers/a/%73tate"};
    for (size_t i = 0; i < COUNT(paths); i++) {
        char name[MSG_NAME_MAX + 1], allow[100] = "x";
        const struct route *route = &routes[0];
        const enum route_match match = route_find(&route, name, "GET", paths[i]);
        if (match != ROUTE_NO_PATH) fail_msg("%s: %d", paths[i], (int)match);
        assert_null(route);
        route_allow(allow, sizeof allow, paths[i]);
        assert_string_equal(allow, "");
    }
}

// Every method that a path does not have, and what Allow says of it.
static void test_methods(void **state) {
    (void)state;
    static const struct {
        const char *path, *allow;
    } rows[] = {
        {"/livez", "GET, HEAD"},
        {"/readyz", "GET, HEAD"},
        {"/version", "GET, HEAD"},
        {"/openapi.yaml", "GET, HEAD"},
        {"/metrics", "GET, HEAD"},
        {"/v2", "GET, HEAD"},
        {"/v2/", "GET, HEAD"},
        {"/v2/health/ready", "GET, HEAD"},
        {"/v2/models/a", "GET, HEAD"},
        {"/v2/models/stats", "GET, HEAD"},
        {"/v2/models/a/infer", "POST"},
        {"/v2/models/a/versions/1", "GET, HEAD"},
        {"/v2/models/a/versions/1/infer", "POST"},
        {"/v2/repository/index", "POST"},
        {"/v2/repository/models/a/unload", "POST"},
        {"/v1/layers", "GET, HEAD"},
        {"/v1/layers/a", "DELETE, GET, HEAD, PATCH, PUT"},
        {"/v1/layers/a/state", "GET, HEAD, PATCH, PUT"},
        {"/v1/layers/a/train-forward", "POST"},
        {"/v1/layers/a/inference", "POST"},
        {"/v1/layers/a/backward", "POST"},
        {"/v1/snapshot", "GET, HEAD, PUT"},
    };
    static const char *const all[] = {"GET",     "HEAD",  "PUT", "POST", "PATCH", "DELETE",
                                      "OPTIONS", "TRACE", "get", "X",    ""};
    for (size_t i = 0; i < COUNT(rows); i++) {
        char allow[100], wrapped[120];
        route_allow(allow, sizeof allow, rows[i].path);
        assert_string_equal(allow, rows[i].allow);
        snprintf(wrapped, sizeof wrapped, " %s,", allow);
        for (size_t k = 0; k < COUNT(all); k++) {
            char name[MSG_NAME_MAX + 1], word[20];
            const struct route *route = NULL;
            snprintf(word, sizeof word, " %s,", all[k]);
            const bool allowed = strstr(wrapped, word) != NULL;
            assert_int_equal(route_find(&route, name, all[k], rows[i].path), allowed ? ROUTE_FOUND : ROUTE_NO_METHOD);
            assert_int_equal(route != NULL, allowed);
        }
    }
    char *const small = malloc(7); // cut at a method, never behind its room
    route_allow(small, 7, "/v1/layers/a");
    assert_true(strlen(small) < 7);
    free(small);
}

// A layer has one version, and its name is found behind or before it.
static void test_versions(void **state) {
    (void)state;
    static const struct {
        const char *path;
        enum route_match match;
    } rows[] = {
        {"/v2/models/a/versions/1", ROUTE_FOUND},
        {"/v2/models/a/versions/1/ready", ROUTE_FOUND},
        {"/v2/models/a/versions/2", ROUTE_NO_VERSION},
        {"/v2/models/a/versions/01", ROUTE_NO_VERSION},
        {"/v2/models/a/versions/", ROUTE_NO_VERSION},
        {"/v2/models/a/versions/1.0/stats", ROUTE_NO_VERSION},
        {"/v2/models/a/versions/x/infer", ROUTE_NO_VERSION},
        {"/v2/models/a/versions/11/config", ROUTE_NO_VERSION},
        {"/v2/models/./versions/1", ROUTE_BAD_NAME},
        {"/v2/models/a/version/1", ROUTE_NO_PATH},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char name[MSG_NAME_MAX + 1] = "";
        const struct route *route = NULL;
        const enum route_match match = route_find(&route, name, "GET", rows[i].path);
        if (match != rows[i].match) fail_msg("%s: %d", rows[i].path, (int)match);
        if (match == ROUTE_FOUND || match == ROUTE_NO_VERSION) assert_string_equal(name, "a");
        assert_int_equal(route != NULL, match == ROUTE_FOUND);
    }
}

static void test_is_oip(void **state) {
    (void)state;
    static const char *const yes[] = {"/v2", "/v2/", "/v2/models/a/infer", "/v2/nothing"};
    static const char *const no[] = {"/v1/layers", "/v2x", "/v", "", "/version", "v2"};
    for (size_t i = 0; i < COUNT(yes); i++) assert_true(route_is_oip(yes[i]));
    for (size_t i = 0; i < COUNT(no); i++) assert_false(route_is_oip(no[i]));
}

static void test_unescape(void **state) {
    (void)state;
    static const struct {
        const char *text;
        bool query;
        size_t room;
        const char *expected; // NULL: malformed
    } rows[] = {
        {"", false, 1, ""},        {"abc", false, 4, "abc"},
        {"abc", false, 3, NULL},   {"a%2Fb", false, 4, "a/b"},
        {"a%2fb", false, 3, NULL}, {"%25%32%35", false, 4, "%25"},
        {"a+b", false, 9, "a+b"},  {"a+b", true, 9, "a b"},
        {"a%2Bb", true, 9, "a+b"}, {"%", false, 9, NULL},
        {"%4", false, 9, NULL},    {"%g1", false, 9, NULL},
        {"%1g", false, 9, NULL},   {"%00", false, 9, NULL},
        {"a%00b", true, 9, NULL},  {"%C3%A9", false, 3, "\xc3\xa9"},
        {"%ff", false, 9, "\xff"}, {"%-1", false, 9, NULL},
        {"% 1", false, 9, NULL},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        const size_t length = strlen(rows[i].text);
        char *const text = malloc(length + 1), *const out = malloc(rows[i].room); // exactly as much as is said
        memcpy(text, rows[i].text, length);
        char *const alone = realloc(text, length > 0 ? length : 1);
        const bool ok = route_unescape(out, rows[i].room, alone, length, rows[i].query);
        if (ok != (rows[i].expected != NULL)) fail_msg("row %zu", i);
        if (ok) assert_string_equal(out, rows[i].expected);
        free(alone);
        free(out);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_openapi),   cmocka_unit_test(test_rows),     cmocka_unit_test(test_find_rows),
        cmocka_unit_test(test_bad_names), cmocka_unit_test(test_no_path),  cmocka_unit_test(test_methods),
        cmocka_unit_test(test_unescape),  cmocka_unit_test(test_versions), cmocka_unit_test(test_is_oip),
    };
    return cmocka_run_group_tests_name("routes", tests, NULL, NULL);
}
