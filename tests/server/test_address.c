// SPDX-License-Identifier: Apache-2.0
#include "fixture.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../server/address.h"

static int listen_at(const char *address, char actual[ADDRESS_MAX]) {
    char why[400] = "";
    const int fd = address_listen(address, actual, why, sizeof why);
    if (fd < 0) fail_msg("%s", why);
    return fd;
}

static unsigned port_of(const char *actual) {
    return (unsigned)strtoul(strrchr(actual, ':') + 1, NULL, 10);
}

static void test_listen(void **state) {
    (void)state;
    static const char *const hosts[] = {"127.0.0.1", "localhost", "0.0.0.0"};
    for (size_t i = 0; i < COUNT(hosts); i++) {
        char address[100], actual[ADDRESS_MAX], expected[ADDRESS_MAX];
        snprintf(address, sizeof address, "%s:0", hosts[i]);
        const int fd = listen_at(address, actual);
        assert_in_range(port_of(actual), 1, 65535);
        snprintf(expected, sizeof expected, "%s:%u", hosts[i], port_of(actual)); // the host as given
        assert_string_equal(actual, expected);
        assert_true((fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
        assert_true((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
        const int client = socket(AF_INET, SOCK_STREAM, 0);
        const struct sockaddr_in to = {AF_INET, htons((uint16_t)port_of(actual)), {htonl(INADDR_LOOPBACK)}, {0}};
        assert_int_equal(connect(client, (const struct sockaddr *)&to, sizeof to), 0);
        close(client);
        close(fd);
    }
}

static void test_listen_v6(void **state) {
    (void)state;
    const struct sockaddr_in6 loopback = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    const int probe = socket(AF_INET6, SOCK_STREAM, 0);
    const bool has_v6 = probe >= 0 && bind(probe, (const struct sockaddr *)&loopback, sizeof loopback) == 0;
    if (probe >= 0) close(probe);
    if (!has_v6) {
        print_message("this machine has no IPv6 loopback\n");
        skip();
    }
    char actual[ADDRESS_MAX];
    const int fd = listen_at("[::1]:0", actual);
    assert_true(strncmp(actual, "[::1]:", 6) == 0 && port_of(actual) > 0);
    close(fd);
}

static void test_refused(void **state) {
    (void)state;
    static const char *const addresses[] = {
        "",       "8080",       "127.0.0.1", "127.0.0.1:http", "127.0.0.1:-1", "256.0.0.1:0", "no.such.invalid:0",
        "[::1:0", "192.0.2.1:0"};
    for (size_t i = 0; i < COUNT(addresses); i++) {
        char actual[ADDRESS_MAX], why[400] = "";
        const int fd = address_listen(addresses[i], actual, why, sizeof why);
        if (fd >= 0) fail_msg("listens on %s", addresses[i]);
        if (strncmp(why, "cannot listen on ", 17) != 0 || strstr(why, addresses[i]) == NULL ||
            strstr(why, "(null)") != NULL) {
            fail_msg("%s: %s", addresses[i], why);
        }
    }
    char longest[1000] = "", actual[ADDRESS_MAX], why[400];
    memset(longest, 'x', sizeof longest - 1);
    memcpy(longest + sizeof longest - 4, ":80", 3);
    assert_int_equal(address_listen(longest, actual, why, sizeof why), -1);
    assert_int_equal(address_listen("8080", actual, why, 10), -1);
    assert_int_equal(strlen(why), 9);
}

static void test_in_use(void **state) {
    (void)state;
    char actual[ADDRESS_MAX], again[ADDRESS_MAX], why[400] = "";
    const int fd = listen_at("127.0.0.1:0", actual);
    assert_int_equal(address_listen(actual, again, why, sizeof why), -1);
    assert_non_null(strstr(why, actual));
    assert_non_null(strstr(why, "in use"));
    close(fd);
    const int anew = listen_at(actual, again); // free at once after its end
    assert_string_equal(again, actual);
    close(anew);
}

// ---- readiness: a server that sends what it is told, in pieces

struct server {
    int fd;
    const char *reply;
    size_t piece;
    char request[300];
};

static void *serve_once(void *context) {
    struct server *const server = context;
    while (fcntl(server->fd, F_SETFL, 0) != 0) {}
    const int client = accept(server->fd, NULL, NULL);
    size_t got = 0;
    while (strstr(server->request, "\r\n\r\n") == NULL) {
        const ssize_t n = recv(client, server->request + got, sizeof server->request - 1 - got, 0);
        if (n <= 0) break;
        got += (size_t)n;
    }
    for (size_t sent = 0, size = strlen(server->reply); sent < size; sent += server->piece) {
        const size_t n = size - sent < server->piece ? size - sent : server->piece;
        if (send(client, server->reply + sent, n, MSG_NOSIGNAL) < 0) break;
    }
    close(client);
    return NULL;
}

static void test_ready(void **state) {
    (void)state;
    static const struct {
        const char *reply;
        const char *why; // in the reason; NULL: it is ready
    } rows[] = {
        {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", NULL},
        {"HTTP/1.1 200 OK\r\n\r\nready\n", NULL},
        {"HTTP/1.1 503 Service Unavailable\r\n\r\n", "503"},
        {"HTTP/1.1 2000 OK\r\n\r\n", "with 200"},
        {"HTTP/1.1 404 Not Found\r\n\r\n", "with 200"},
        {"HTTP/1.1 200", "without an answer"},
        {"", "without an answer"},
        {"SSH-2.0-OpenSSH_9.2\r\n", "no normd"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        for (size_t piece = 1; piece <= 1000; piece += 999) {
            char actual[ADDRESS_MAX], why[300] = "";
            struct server server = {.fd = listen_at("127.0.0.1:0", actual), .reply = rows[i].reply, .piece = piece};
            pthread_t thread;
            assert_int_equal(pthread_create(&thread, NULL, serve_once, &server), 0);
            assert_int_equal(address_is_ready(actual, why, sizeof why), rows[i].why == NULL);
            if (rows[i].why == NULL) assert_string_equal(why, "");
            if (rows[i].why != NULL && strstr(why, rows[i].why) == NULL) fail_msg("row %zu: %s", i, why);
            pthread_join(thread, NULL);
            assert_int_equal(strncmp(server.request, "GET /readyz HTTP/1.1\r\nHost: ", 28), 0);
            close(server.fd);
        }
    }
}

static void test_nobody_there(void **state) {
    (void)state;
    char actual[ADDRESS_MAX], why[300], want[400];
    close(listen_at("127.0.0.1:0", actual));
    assert_false(address_is_ready(actual, why, sizeof why));
    snprintf(want, sizeof want, "%s is not ready: Connection refused", actual);
    assert_string_equal(why, want);
    assert_false(address_is_ready("nonsense", why, sizeof why));
    assert_string_equal(why, "nonsense is not ready: not HOST:PORT");
    why[0] = '\0';
    assert_false(address_is_ready("no.such.invalid:80", why, sizeof why));
    assert_non_null(strstr(why, "no.such.invalid:80 is not ready: "));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_listen), cmocka_unit_test(test_listen_v6), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_in_use), cmocka_unit_test(test_ready),     cmocka_unit_test(test_nobody_there),
    };
    return cmocka_run_group_tests_name("address", tests, NULL, NULL);
}
