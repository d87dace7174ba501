// SPDX-License-Identifier: Apache-2.0
#include "fixture.h"

#include "../../server/head.h"
#include "../../server/routes.h"

// "Name: value" lines, as many as there are.
#define FIELDS_MAX 6

static struct head head_of(const char *const fields[FIELDS_MAX]) {
    static char names[FIELDS_MAX][64];
    struct head head = {0};
    for (size_t i = 0; i < FIELDS_MAX && fields[i] != NULL; i++) {
        const char *const colon = strchr(fields[i], ':');
        snprintf(names[i], sizeof names[i], "%.*s", (int)(colon - fields[i]), fields[i]);
        head_add(&head, names[i], colon[1] == '\0' ? "" : colon + 2);
    }
    return head;
}

#define HOST "Host: x"

static void test_framing(void **state) {
    (void)state;
    static const struct {
        const char *fields[FIELDS_MAX];
        const char *path, *version;
        enum msg_code code;
    } rows[] = {
        {{HOST}, "/", "HTTP/1.1", MSG_OK},
        {{HOST, "Content-Length: 0"}, "/", "HTTP/1.1", MSG_OK},
        {{HOST, "content-length: 12"}, "/", "HTTP/1.1", MSG_OK},
        {{HOST, "Content-Length: 18446744073709551615"}, "/", "HTTP/1.1", MSG_OK},
        {{HOST, "Content-Length: 99999999999999999999999"}, "/", "HTTP/1.1", MSG_OK}, // too large, which is for 413
        {{HOST, "Transfer-Encoding: chunked"}, "/", "HTTP/1.1", MSG_OK},
        {{HOST, "transfer-encoding: Chunked"}, "/", "HTTP/1.1", MSG_OK},
        {{HOST, "X-Any!#$%&'*+-.^_`|~09: a\tb"}, "/", "HTTP/1.1", MSG_OK},
        {{HOST, "X: \xc3\xa9"}, "/", "HTTP/1.1", MSG_OK},
        {{"Host:"}, "/", "HTTP/1.1", MSG_OK},
        {{NULL}, "/", "HTTP/1.0", MSG_OK},
        {{"Content-Length: 5"}, "/", "HTTP/1.0", MSG_OK},
        {{NULL}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "host: y"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST}, "*", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST}, "http://x/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST}, "", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "Content-Length:"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "Content-Length: -1"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "Content-Length: +1"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "Content-Length: 0x10"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "Content-Length: 1 2"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "Content-Length: 5, 5"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "Content-Length: 5.0"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "Content-Length: 5", "Content-Length: 5"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "Content-Length: 5", "content-length: 6"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "Content-Length: x", "Content-Length: 5"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "Content-Length: 5", "Transfer-Encoding: chunked"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "Transfer-Encoding: chunked", "Content-Length: 5"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "Transfer-Encoding: chunked"}, "/", "HTTP/1.0", MSG_BAD_FRAMING},
        {{HOST, "Transfer-Encoding: gzip"}, "/", "HTTP/1.1", MSG_NOT_BUILT},
        {{HOST, "Transfer-Encoding: gzip, chunked"}, "/", "HTTP/1.1", MSG_NOT_BUILT},
        {{HOST, "Transfer-Encoding: identity"}, "/", "HTTP/1.1", MSG_NOT_BUILT},
        {{HOST, "Transfer-Encoding: chunked "}, "/", "HTTP/1.1", MSG_NOT_BUILT},
        {{HOST, "Transfer-Encoding:"}, "/", "HTTP/1.1", MSG_NOT_BUILT},
        {{HOST, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"}, "/", "HTTP/1.1", MSG_NOT_BUILT},
        {{HOST, "X Y: a"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "Content-Length : 5"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, ": a"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "X\xc3\xa9: a"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "X(: a"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "X: a\rb"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "X: a\nb"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "X: \x01"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "X: \x7f"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
        {{HOST, "X: \x1f"}, "/", "HTTP/1.1", MSG_BAD_FRAMING},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct msg_error error = {0};
        const struct head head = head_of(rows[i].fields);
        const bool ok = head_check_framing(&head, rows[i].path, rows[i].version, &error);
        if (ok != (rows[i].code == MSG_OK) || error.code != rows[i].code)
            fail_msg("row %zu: %s", i, msg_codes[error.code].name);
    }
}

static void test_length(void **state) {
    (void)state;
    static const struct {
        const char *field;
        uint64_t length;
        bool body;
    } rows[] = {{"X: y", 0, false},
                {"Content-Length: 0", 0, false},
                {"Content-Length: 007", 7, true},
                {"Content-Length: 18446744073709551615", UINT64_MAX, true},
                {"Content-Length: 18446744073709551616", UINT64_MAX, true},
                {"Transfer-Encoding: chunked", 0, true}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        const struct head head = head_of((const char *const[FIELDS_MAX]){HOST, rows[i].field});
        assert_int_equal(head.length, rows[i].length);
        assert_int_equal(head.has_length, strncmp(rows[i].field, "Content", 7) == 0);
        assert_int_equal(head_has_body(&head), rows[i].body);
    }
    struct head none = {0};
    head_add(&none, "X", NULL);
    assert_false(none.bad_field);
}

static void test_expect(void **state) {
    (void)state;
    const struct head none = {0}, given = {.expect = "100-Continue"}, other = {.expect = "200-ok"};
    const struct head blank = {.expect = "100-continue \t "}, two = {.expect = "100-continue, 100-continue"};
    assert_false(head_expects_continue(&none, "HTTP/1.1"));
    assert_true(head_expects_continue(&blank, "HTTP/1.1"));
    assert_false(head_expects_continue(&two, "HTTP/1.1"));
    assert_true(head_expects_continue(&given, "HTTP/1.1"));
    assert_false(head_expects_continue(&given, "HTTP/1.0"));
    assert_false(head_expects_continue(&other, "HTTP/1.1"));
}

static const struct route *find(const char *method, const char *path) {
    char name[MSG_NAME_MAX + 1];
    const struct route *route = NULL;
    assert_int_equal(route_find(&route, name, method, path), ROUTE_FOUND);
    return route;
}

static void check(const struct route *route, const char *const fields[FIELDS_MAX], enum msg_code code) {
    struct msg_error error = {0};
    const struct head head = head_of(fields);
    struct job_forms forms;
    const bool ok = head_check(&head, route, &forms, &error);
    if (ok == (code == MSG_OK) && error.code == code) return;
    fail_msg("%s %s, \"%s\", \"%s\": %s, expected %s", route->method, route->path, fields[0] != NULL ? fields[0] : "",
             fields[0] != NULL && fields[1] != NULL ? fields[1] : "", msg_codes[error.code].name, msg_codes[code].name);
}

static void test_body_types(void **state) {
    (void)state;
    static const struct {
        const char *fields[FIELDS_MAX];
        enum msg_code code;
    } rows[] = {
        {{NULL}, MSG_OK},
        {{"Content-Type: application/json"}, MSG_OK},
        {{"Content-Type: Application/JSON; charset=utf-8"}, MSG_OK},
        {{"Content-Type: application/json ;charset=utf-8"}, MSG_OK},
        {{"Content-Type: application/x-www-form-urlencoded"}, MSG_OK},
        {{"Content-Type:"}, MSG_OK},
        {{"Content-Type: application/json", "Content-Encoding: identity"}, MSG_OK},
        {{"Content-Type: application/json\t ", "Content-Encoding: identity \t"}, MSG_OK},
        {{"Content-Encoding: identity x"}, MSG_UNSUPPORTED_MEDIA_TYPE},
        {{"Content-Type: application/json", "Content-Encoding: gzip"}, MSG_UNSUPPORTED_MEDIA_TYPE},
        {{"Content-Encoding: br"}, MSG_UNSUPPORTED_MEDIA_TYPE},
        {{"Content-Type: text/plain"}, MSG_UNSUPPORTED_MEDIA_TYPE},
        {{"Content-Type: text/json"}, MSG_UNSUPPORTED_MEDIA_TYPE},
        {{"Content-Type: application/jsonl"}, MSG_UNSUPPORTED_MEDIA_TYPE},
        {{"Content-Type: multipart/form-data; boundary=x"}, MSG_UNSUPPORTED_MEDIA_TYPE},
        {{"Origin: http://a"}, MSG_UNSUPPORTED_MEDIA_TYPE},
        {{"Origin: null", "Content-Type:"}, MSG_UNSUPPORTED_MEDIA_TYPE},
        {{"Origin: http://a", "Content-Type: application/x-www-form-urlencoded"}, MSG_UNSUPPORTED_MEDIA_TYPE},
        {{"Origin: http://a", "Content-Type: text/plain"}, MSG_UNSUPPORTED_MEDIA_TYPE},
        {{"Origin: http://a", "Content-Type: application/json"}, MSG_OK},
        {{"Idempotency-Key: 1"}, MSG_NOT_BUILT},
        {{"idempotency-key:"}, MSG_NOT_BUILT},
        {{"Expect: 100-continue"}, MSG_OK},
        {{"Expect: 100-CONTINUE"}, MSG_OK},
        {{"Expect: 100-continue\t "}, MSG_OK},
        {{"Expect: else"}, MSG_EXPECTATION_FAILED},
        {{"Content-Length: 5"}, MSG_OK},
        {{"Transfer-Encoding: chunked"}, MSG_OK},
    };
    for (size_t i = 0; i < route_count; i++) { // every route that takes a body
        if ((routes[i].flags & ROUTE_BODY) == 0 || (routes[i].flags & ROUTE_OIP) != 0) continue;
        for (size_t k = 0; k < COUNT(rows); k++) check(&routes[i], rows[k].fields, rows[k].code);
    }
}

// Bodies of the Open Inference Protocol are what they are, whatever their label says.
static void test_oip_bodies(void **state) {
    (void)state;
    static const struct {
        const char *fields[FIELDS_MAX];
        enum msg_code code, infer;
    } rows[] = {
        {{NULL}, MSG_OK, MSG_OK},
        {{"Content-Type: application/json"}, MSG_OK, MSG_OK},
        {{"Content-Type: application/octet-stream"}, MSG_OK, MSG_OK},
        {{"Content-Type: application/x-www-form-urlencoded"}, MSG_OK, MSG_OK},
        {{"Content-Type: text/plain"}, MSG_OK, MSG_OK},
        {{"Content-Encoding: identity"}, MSG_OK, MSG_OK},
        {{"Content-Encoding:"}, MSG_OK, MSG_OK},
        {{"Content-Encoding: gzip"}, MSG_UNSUPPORTED_MEDIA_TYPE, MSG_OK},
        {{"Content-Encoding: X-GZIP"}, MSG_UNSUPPORTED_MEDIA_TYPE, MSG_OK},
        {{"Content-Encoding: deflate"}, MSG_UNSUPPORTED_MEDIA_TYPE, MSG_OK},
        {{"Content-Encoding: identity "}, MSG_OK, MSG_OK},
        {{"Content-Encoding: br"}, MSG_UNSUPPORTED_MEDIA_TYPE, MSG_UNSUPPORTED_MEDIA_TYPE},
        {{"Content-Encoding: gzip, gzip"}, MSG_UNSUPPORTED_MEDIA_TYPE, MSG_UNSUPPORTED_MEDIA_TYPE},
        {{"Origin: http://a"}, MSG_UNSUPPORTED_MEDIA_TYPE, MSG_UNSUPPORTED_MEDIA_TYPE},
        {{"Origin: http://a", "Content-Type: text/plain"}, MSG_UNSUPPORTED_MEDIA_TYPE, MSG_UNSUPPORTED_MEDIA_TYPE},
        {{"Origin: http://a", "Content-Type: application/json;charset=utf-8"}, MSG_OK, MSG_OK},
        {{"Origin: http://a", "Content-Type: application/octet-stream"}, MSG_OK, MSG_OK},
        {{"Idempotency-Key: 1"}, MSG_NOT_BUILT, MSG_NOT_BUILT},
        {{"Accept: */*"}, MSG_OK, MSG_OK},
        {{"Accept: application/json"}, MSG_OK, MSG_OK},
        {{"Accept: application/octet-stream"}, MSG_NOT_ACCEPTABLE, MSG_OK},
        {{"Inference-Header-Content-Length: 17"}, MSG_OK, MSG_OK},
        {{"Inference-Header-Content-Length: 99999999999999999999"}, MSG_OK, MSG_OK}, // for the body to refuse
        {{"Inference-Header-Content-Length: -1"}, MSG_OK, MSG_BAD_HEADER},
        {{"Inference-Header-Content-Length:"}, MSG_OK, MSG_BAD_HEADER},
        {{"Inference-Header-Content-Length: 1 2"}, MSG_OK, MSG_BAD_HEADER},
        {{"Inference-Header-Content-Length:  "}, MSG_OK, MSG_BAD_HEADER},
        {{"Inference-Header-Content-Length: 1", "Inference-Header-Content-Length: 1"}, MSG_BAD_HEADER, MSG_BAD_HEADER},
    };
    for (size_t i = 0; i < route_count; i++) {
        if ((routes[i].flags & ROUTE_BODY) == 0 || (routes[i].flags & ROUTE_OIP) == 0) continue;
        const bool infer = (routes[i].flags & ROUTE_CODED) != 0;
        for (size_t k = 0; k < COUNT(rows); k++)
            check(&routes[i], rows[k].fields, infer ? rows[k].infer : rows[k].code);
    }
}

// What an infer request says in its head.
static void test_infer(void **state) {
    (void)state;
    static const struct {
        const char *fields[FIELDS_MAX];
        enum coding body, reply;
        bool wanted, has_header;
        uint64_t header;
        size_t padding;
    } rows[] = {
        {{NULL}, CODING_NONE, CODING_NONE, false, false, 0, 0},
        {{"Inference-Header-Content-Length: 0"}, CODING_NONE, CODING_NONE, false, true, 0, 0},
        {{"Inference-Header-Content-Length: 1"}, CODING_NONE, CODING_NONE, false, true, 1, 63},
        {{"Inference-Header-Content-Length: 64"}, CODING_NONE, CODING_NONE, false, true, 64, 0},
        {{"Inference-Header-Content-Length: 64 \t"}, CODING_NONE, CODING_NONE, false, true, 64, 0},
        {{"Inference-Header-Content-Length: 18446744073709551616"},
         CODING_NONE,
         CODING_NONE,
         false,
         true,
         UINT64_MAX,
         1},
        {{"Content-Encoding: GZIP"}, CODING_GZIP, CODING_NONE, false, false, 0, 0},
        {{"Content-Encoding: deflate"}, CODING_DEFLATE, CODING_NONE, false, false, 0, 0},
        {{"Content-Encoding: x-gzip\t"}, CODING_GZIP, CODING_NONE, false, false, 0, 0},
        {{"Content-Encoding: deflate  "}, CODING_DEFLATE, CODING_NONE, false, false, 0, 0},
        {{"Accept-Encoding: gzip"}, CODING_NONE, CODING_GZIP, true, false, 0, 0},
        {{"Accept-Encoding: deflate"}, CODING_NONE, CODING_DEFLATE, true, false, 0, 0},
        {{"Accept-Encoding: gzip, deflate"}, CODING_NONE, CODING_GZIP, false, false, 0, 0},
        {{"Accept-Encoding: gzip;q=0.5, deflate"}, CODING_NONE, CODING_DEFLATE, false, false, 0, 0},
        {{"Accept-Encoding: br, zstd, deflate;q=0.1"}, CODING_NONE, CODING_DEFLATE, false, false, 0, 0},
        {{"Accept-Encoding: gzip;q=0, deflate"}, CODING_NONE, CODING_DEFLATE, true, false, 0, 0},
        {{"Accept-Encoding: gzip, identity"}, CODING_NONE, CODING_GZIP, true, false, 0, 0},
        {{"Accept-Encoding: gzip;q=0"}, CODING_NONE, CODING_NONE, false, false, 0, 0},
        {{"Accept-Encoding: br"}, CODING_NONE, CODING_NONE, false, false, 0, 0},
        {{"Accept-Encoding: *"}, CODING_NONE, CODING_NONE, false, false, 0, 0},
        {{"Accept-Encoding:"}, CODING_NONE, CODING_NONE, false, false, 0, 0},
        {{"Accept-Encoding: br", "Accept-Encoding: Gzip"}, CODING_NONE, CODING_GZIP, false, false, 0, 0},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct msg_error error = {0};
        struct job_forms forms;
        const struct head head = head_of(rows[i].fields);
        assert_true(head_check(&head, find("POST", "/v2/models/a/infer"), &forms, &error));
        if (forms.body_coding != rows[i].body || forms.reply_coding != rows[i].reply ||
            forms.coding_wanted != rows[i].wanted || forms.has_header != rows[i].has_header ||
            forms.header != rows[i].header || forms.padding != rows[i].padding || forms.reads != CODEC_OIP ||
            forms.writes != CODEC_OIP)
            fail_msg("row %zu: %d %d %d %d", i, (int)forms.body_coding, (int)forms.reply_coding, forms.coding_wanted,
                     forms.has_header);
    }
}

static void test_no_body(void **state) {
    (void)state;
    for (size_t i = 0; i < route_count; i++) {
        if ((routes[i].flags & ROUTE_BODY) != 0) continue;
        check(&routes[i], (const char *const[FIELDS_MAX]){"Content-Length: 1"}, MSG_UNEXPECTED_BODY);
        check(&routes[i], (const char *const[FIELDS_MAX]){"Transfer-Encoding: chunked"}, MSG_UNEXPECTED_BODY);
        check(&routes[i], (const char *const[FIELDS_MAX]){"Content-Length: 0"}, MSG_OK);
        check(&routes[i], (const char *const[FIELDS_MAX]){"Content-Type: text/plain", "Origin: http://a"}, MSG_OK);
    }
}

static void test_accept(void **state) {
    (void)state;
    static const struct {
        const char *accept;
        bool ok;
    } rows[] = {
        {"*/*", true},
        {"application/json", true},
        {"APPLICATION/JSON", true},
        {"application/*", true},
        {"text/html, application/json", true},
        {"text/html,*/*;q=0.8", true},
        {"application/json;q=0.001", true},
        {"application/json;charset=utf-8;q=1", true},
        {"*/*;q=0, application/json", true},
        {"application/*;q=0, application/json;q=0.1", true},
        {"", true},
        {" , ", true},
        {"text/html", false},
        {"text/*", false},
        {"application/problem+json", false},
        {"application/jso", false},
        {"application/json2", false},
        {"application/json;q=0", false},
        {"application/json;q=0.000", false},
        {"application/json; q=0.0", false},
        {"application/json ; Q=0", false},
        {"application/json;charset=x;q=0", false},
        {"application/json;q=0, */*", false},
        {"*/*, application/json;q=0", false},
        {"application/*;q=0, */*", false},
        {"*/*;q=0", false},
        {"application/x-npy", false},
    };
    const struct route *const get = find("GET", "/v1/layers/a"), *const post = find("PATCH", "/v1/layers/a");
    for (size_t i = 0; i < COUNT(rows); i++) {
        char field[100];
        snprintf(field, sizeof field, "Accept: %s", rows[i].accept);
        const char *const fields[FIELDS_MAX] = {rows[i].accept[0] != '\0' ? field : "Accept:"};
        check(get, fields, rows[i].ok ? MSG_OK : MSG_NOT_ACCEPTABLE);
        check(post, fields, rows[i].ok ? MSG_OK : MSG_NOT_ACCEPTABLE);
        check(find("GET", "/livez"), fields, MSG_OK); // a probe answers whatever it is asked for
    }
}

#define J CODEC_JSON
#define N CODEC_NPY
#define S CODEC_SAFETENSORS

// In which form a body is read and a reply written.
static void test_forms(void **state) {
    (void)state;
    static const struct {
        const char *fields[FIELDS_MAX];
        enum codec_form reads, writes;
        bool unlabelled;
        enum codec_form npy_writes; // where it is an npy file, and unlabelled
        bool bf16;
    } rows[] = {
        {{NULL}, J, J, true, N, false},
        {{"Content-Type:"}, J, J, true, N, false},
        {{"Content-Type: application/x-www-form-urlencoded"}, J, J, true, N, false},
        {{"Accept: application/json"}, J, J, true, J, false},
        {{"Accept: application/x-npy"}, J, N, true, N, false},
        {{"Content-Type: application/json"}, J, J, false, J, false},
        {{"Content-Type: application/x-npy"}, N, N, false, J, false},
        {{"Content-Type: Application/X-NPY ; a=b"}, N, N, false, J, false},
        {{"Content-Type: application/x-npy;dtype=bf16"}, N, N, false, J, true},
        {{"Content-Type: application/x-npy; a=b ;\tDTYPE=\"BF16\""}, N, N, false, J, true},
        {{"Content-Type: application/x-npy; dtype=bf16 ; a=b"}, N, N, false, J, true},
        {{"Content-Type: application/x-npy; dtype=bf16x"}, N, N, false, J, false},
        {{"Content-Type: application/x-npy; dtype=\"bf16"}, N, N, false, J, false},
        {{"Content-Type: application/x-npy; dtype="}, N, N, false, J, false},
        {{"Content-Type: application/x-npy; dtype"}, N, N, false, J, false},
        {{"Content-Type: application/x-npy;"}, N, N, false, J, false},
        {{"Content-Type: application/x-npy", "Accept: */*"}, N, N, false, J, false},
        {{"Content-Type: application/x-npy", "Accept: application/json"}, N, J, false, J, false},
        {{"Content-Type: application/x-npy", "Accept: application/json, application/x-npy"}, N, N, false, J, false},
        {{"Content-Type: application/x-npy", "Accept: application/json;q=0.9, */*;q=0.8"}, N, J, false, J, false},
        {{"Content-Type: application/x-npy", "Accept: application/json;q=0.05, */*;q=0.1"}, N, N, false, J, false},
        {{"Content-Type: application/x-npy", "Accept: application/x-npy;q=0, */*"}, N, J, false, J, false},
        {{"Content-Type: application/json", "Accept: application/x-npy;q=0.2, application/json;q=0.199"},
         J,
         N,
         false,
         J,
         false},
        {{"Content-Type: application/json", "Accept: application/x-npy;q=0.200, application/json;q=0.2"},
         J,
         J,
         false,
         J,
         false},
        {{"Content-Type: application/json", "Accept: application/x-npy;q=0.0001, application/json;q=0.001"},
         J,
         J,
         false,
         J,
         false},
        {{"Content-Type: application/json", "Accept: application/x-npy;q=x, application/json;q=0.9"},
         J,
         N,
         false,
         J,
         false}, // a malformed weight counts as 1
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct msg_error error = {0};
        struct job_forms forms;
        const struct head head = head_of(rows[i].fields);
        if (!head_check(&head, find("POST", "/v1/layers/a/inference"), &forms, &error))
            fail_msg("row %zu: %s", i, error.detail);
        if (forms.reads != rows[i].reads || forms.writes != rows[i].writes ||
            (forms.may_be != 0) != rows[i].unlabelled ||
            (rows[i].unlabelled && forms.writes_if[N] != rows[i].npy_writes) || forms.bf16 != rows[i].bf16)
            fail_msg("row %zu: %d %d %d %d %d", i, (int)forms.reads, (int)forms.writes, (int)forms.may_be,
                     (int)forms.writes_if[N], (int)forms.bf16);
    }
    struct msg_error error = {0};
    struct job_forms forms;
    const struct head head = head_of((const char *const[FIELDS_MAX]){"Content-Type: application/x-npy"});
    assert_false(head_check(&head, find("PUT", "/v1/layers/a"), &forms, &error));
    assert_int_equal(error.code, MSG_UNSUPPORTED_MEDIA_TYPE);
    assert_string_equal(error.detail, "the body must be application/json");
}

// What a body that nothing is said of may turn out to be, and the reply then.
static void test_unlabelled(void **state) {
    (void)state;
    static const struct {
        const char *method, *path, *field;
        unsigned may_be;
        enum codec_form npy, safetensors; // the form of the reply
    } rows[] = {
        {"POST", "/v1/layers/a/inference", NULL, 1u << N | 1u << S, N, S},
        {"POST", "/v1/layers/a/inference", "Content-Type: application/x-www-form-urlencoded", 1u << N | 1u << S, N, S},
        {"POST", "/v1/layers/a/backward", "Accept: application/json", 1u << N | 1u << S, J, J},
        {"POST", "/v1/layers/a/train-forward", "Accept: application/vnd.safetensors", 1u << N | 1u << S, S, S},
        {"PUT", "/v1/layers/a/state", NULL, 1u << S, J, S},
        {"PATCH", "/v1/layers/a/state", "Accept: application/json", 1u << S, J, J},
        {"PUT", "/v1/snapshot", NULL, 1u << S, J, J},
        {"PUT", "/v1/layers/a", NULL, 0, J, J},
        {"PUT", "/v1/snapshot", "Content-Type: application/json", 0, J, J},
        {"POST", "/v2/models/a/infer", NULL, 0, J, J},
        {"POST", "/v2/repository/index", NULL, 0, J, J},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct msg_error error = {0};
        struct job_forms forms;
        const struct head head = head_of((const char *const[FIELDS_MAX]){rows[i].field});
        assert_true(head_check(&head, find(rows[i].method, rows[i].path), &forms, &error));
        if (forms.may_be != rows[i].may_be || forms.writes_if[N] != rows[i].npy ||
            forms.writes_if[S] != rows[i].safetensors)
            fail_msg("row %zu: %x %d %d", i, forms.may_be, (int)forms.writes_if[N], (int)forms.writes_if[S]);
    }
}

// What may stand once stands twice, a list more often than there is room for.
static void test_repeated(void **state) {
    (void)state;
    static const char *const once[] = {"Content-Type: application/json", "Content-Encoding: identity",
                                       "Expect: 100-continue", "Origin: a", "Idempotency-Key: k"};
    const struct route *const put = find("PUT", "/v1/layers/a");
    for (size_t i = 0; i < COUNT(once); i++) {
        check(put, (const char *const[FIELDS_MAX]){once[i], once[i]}, MSG_BAD_HEADER);
        check(find("GET", "/livez"), (const char *const[FIELDS_MAX]){once[i], once[i]}, MSG_BAD_HEADER);
    }
    static const char *const lists[] = {"Accept: a/b", "If-Match: \"a\"", "If-None-Match: \"a\""};
    for (size_t i = 0; i < COUNT(lists); i++) {
        const char *const l = lists[i];
        check(put, (const char *const[FIELDS_MAX]){l, l, l, l}, i == 0 ? MSG_NOT_ACCEPTABLE : MSG_OK);
        check(put, (const char *const[FIELDS_MAX]){l, l, l, l, l}, MSG_BAD_HEADER);
    }
    check(put, (const char *const[FIELDS_MAX]){"Accept: text/html", "Accept: application/json"}, MSG_OK);
    check(put, (const char *const[FIELDS_MAX]){"Accept: */*", "Accept: application/json;q=0"}, MSG_NOT_ACCEPTABLE);
    check(put, (const char *const[FIELDS_MAX]){"Accept:", "Accept: text/html"}, MSG_NOT_ACCEPTABLE);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_framing),    cmocka_unit_test(test_length),  cmocka_unit_test(test_expect),
        cmocka_unit_test(test_body_types), cmocka_unit_test(test_no_body), cmocka_unit_test(test_accept),
        cmocka_unit_test(test_repeated),   cmocka_unit_test(test_forms),   cmocka_unit_test(test_unlabelled),
        cmocka_unit_test(test_oip_bodies), cmocka_unit_test(test_infer),
    };
    return cmocka_run_group_tests_name("head", tests, NULL, NULL);
}
