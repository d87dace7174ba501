// SPDX-License-Identifier: Apache-2.0
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "../../server/rate.h"

#define SECOND UINT64_C(1000000000)

static struct sockaddr_storage address(const char *text) {
    struct sockaddr_storage storage = {0};
    struct sockaddr_in *const four = (struct sockaddr_in *)(void *)&storage;
    struct sockaddr_in6 *const six = (struct sockaddr_in6 *)(void *)&storage;
    if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
    } else {
        assert_int_equal(inet_pton(AF_INET6, text, &six->sin6_addr), 1);
        six->sin6_family = AF_INET6;
    }
    return storage;
}

// How many of n requests at one moment are let through.
static unsigned taken(struct rate *rate, const char *client, unsigned n, uint64_t now_ns) {
    const struct sockaddr_storage storage = address(client);
    unsigned count = 0;
    for (unsigned i = 0; i < n; i++) count += rate_take(rate, (const struct sockaddr *)(const void *)&storage, now_ns);
    return count;
}

static void test_bucket(void **state) {
    (void)state;
    struct rate *rate = rate_new(10);
    const uint64_t start = 5 * SECOND;
    assert_int_equal(taken(rate, "10.0.0.1", 25, start), 10);             // a second's worth at once
    assert_int_equal(taken(rate, "10.0.0.1", 5, start + SECOND / 20), 0); // not yet a tenth
    assert_int_equal(taken(rate, "10.0.0.1", 5, start + SECOND / 10), 1);
    assert_int_equal(taken(rate, "10.0.0.1", 9, start + SECOND / 2), 4);
    assert_int_equal(taken(rate, "10.0.0.1", 99, start + 60 * SECOND), 10); // no more than full
    rate_free(&rate);
    assert_null(rate);
}

static void test_clients(void **state) {
    (void)state;
    struct rate *rate = rate_new(2);
    static const struct {
        const char *client;
        unsigned taken;
    } rows[] = {
        {"10.0.0.1", 2},         {"10.0.0.2", 2},        {"10.0.0.1", 0},
        {"::ffff:10.0.0.3", 2},  {"10.0.0.3", 0},        {"2001:db8::1", 2},
        {"2001:db8::ffff:2", 0}, {"2001:db8:0:1::1", 2}, {"::1", 2},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        assert_int_equal(taken(rate, rows[i].client, 5, SECOND), rows[i].taken);
    assert_true(rate_take(rate, NULL, SECOND)); // what has no address is one client
    assert_true(rate_take(rate, NULL, SECOND));
    assert_false(rate_take(rate, NULL, SECOND));
    rate_free(&rate);
}

static void test_many_clients(void **state) {
    (void)state;
    struct rate *rate = rate_new(1);
    char text[32];
    for (unsigned i = 0; i < 20000; i++) {
        snprintf(text, sizeof text, "10.%u.%u.%u", i >> 16, i >> 8 & 255, i & 255);
        assert_int_equal(taken(rate, text, 2, SECOND + i), 1);
    }
    rate_free(&rate);
}

static void test_fast(void **state) {
    (void)state;
    struct rate *rate = rate_new(1000000);
    assert_int_equal(taken(rate, "10.0.0.1", 1100000, SECOND), 1000000);
    rate_free(&rate);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bucket),
        cmocka_unit_test(test_clients),
        cmocka_unit_test(test_many_clients),
        cmocka_unit_test(test_fast),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
