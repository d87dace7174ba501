// SPDX-License-Identifier: Apache-2.0
//
// Vectors in JSON: values, null, errors with their pointers.
#include "scanned.h"

static bool read_vector(struct msg_vector *vector, struct msg_error *error, const char *text, size_t length) {
    char *const copy = alone(text, length);
    struct scan scan;
    *vector = (struct msg_vector){0};
    scan_start(&scan, copy, length, &budget, error);
    scan_push(&scan, "v");
    const bool ok = scan_vector(&scan, vector) && scan_finish(&scan);
    free(copy);
    return ok;
}

static void test_vectors(void **state) {
    (void)state;
    static const struct {
        const char *text;
        bool null;
        size_t count;
        double values[4];
        size_t nonfinite, negative;
    } rows[] = {
        {"null", true, 0, {0}, 0, 0},
        {"[]", false, 0, {0}, 0, 0},
        {"[1]", false, 1, {1}, 1, 1},
        {" [ 1 , -2 , 3e-5 ] ", false, 3, {1, -2, 3e-5}, 3, 1},
        {"[-0.0,0,1]", false, 3, {-0.0, 0, 1}, 3, 3},
        {"[1,\"NaN\",-1,\"Infinity\"]", false, 4, {1, NAN, -1, INFINITY}, 1, 2},
        {"[1,1,\"-Infinity\"]", false, 3, {1, 1, -INFINITY}, 2, 2},
        {"[1.7976931348623157e308,5e-324]", false, 2, {1.7976931348623157e308, 5e-324}, 2, 2},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct msg_error error = {0};
        struct msg_vector vector;
        assert_true(read_vector(&vector, &error, rows[i].text, strlen(rows[i].text)));
        expect_outcome(rows[i].text, &error, MSG_OK, NULL);
        assert_true(vector.given);
        assert_int_equal(vector.null, rows[i].null);
        assert_int_equal(vector.count, rows[i].count);
        assert_int_equal(vector.first_nonfinite, rows[i].nonfinite);
        assert_int_equal(vector.first_negative, rows[i].negative);
        const double *const values = (const double *)(const void *)vector.values.data;
        for (size_t k = 0; k < vector.count; k++) {
            assert_true(isnan(rows[i].values[k]) ? isnan(values[k])
                                                 : bits_of_f64(values[k]) == bits_of_f64(rows[i].values[k]));
        }
        buffer_free(&vector.values);
        assert_int_equal(budget.used, 0);
    }
}

static void test_bad_vectors(void **state) {
    (void)state;
    static const struct bad_text rows[] = {
        {"1", MSG_WRONG_TYPE, "/v"},           {"true", MSG_WRONG_TYPE, "/v"},
        {"{}", MSG_WRONG_TYPE, "/v"},          {"\"NaN\"", MSG_WRONG_TYPE, "/v"},
        {"[[1]]", MSG_WRONG_TYPE, "/v"},       {"[[]]", MSG_WRONG_TYPE, "/v"},
        {"[[],1]", MSG_WRONG_TYPE, "/v"},      {"[1,[2]]", MSG_RAGGED, "/v/1"},
        {"[1,null]", MSG_WRONG_TYPE, "/v/1"},  {"[1,\"x\"]", MSG_WRONG_TYPE, "/v/1"},
        {"[1,2,1e309]", MSG_OVERFLOW, "/v/2"}, {"[1,{\"a\":[]}]", MSG_WRONG_TYPE, "/v/1"},
        {"nul", MSG_MALFORMED_JSON, NULL},     {"none", MSG_MALFORMED_JSON, NULL},
        {"[1,]", MSG_MALFORMED_JSON, NULL},    {"[1e309,]", MSG_MALFORMED_JSON, NULL},
        {"[1", MSG_MALFORMED_JSON, NULL},      {"", MSG_MALFORMED_JSON, NULL},
        {"[01]", MSG_MALFORMED_JSON, NULL},    {"[1]]", MSG_MALFORMED_JSON, NULL},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct msg_error error = {0};
        struct msg_vector vector;
        const bool ok = read_vector(&vector, &error, rows[i].text, strlen(rows[i].text));
        assert_int_equal(ok, rows[i].code != MSG_MALFORMED_JSON);
        if (strcmp(rows[i].text, "[[],1]") != 0) expect_outcome(rows[i].text, &error, rows[i].code, rows[i].pointer);
        assert_int_not_equal(error.code, MSG_OK);
        buffer_free(&vector.values);
        assert_int_equal(budget.used, 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_vectors, fresh_budget),
        cmocka_unit_test_setup(test_bad_vectors, fresh_budget),
    };
    return cmocka_run_group_tests_name("scan_vector", tests, NULL, NULL);
}
