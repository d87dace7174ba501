// SPDX-License-Identifier: Apache-2.0
#include "fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../server/connections.h"
#include "../../server/peer.h"

static const char timeout_reply[] = "HTTP/1.1 408 Request Timeout\r\n\r\n";

static const enum phase phases[] = {PHASE_NEW,     PHASE_IDLE, PHASE_HEAD, PHASE_BODY,
                                    PHASE_DISCARD, PHASE_WORK, PHASE_REPLY};

struct peer {
    int ours, theirs;
    struct connection *connection;
};

static struct peer connect_in(struct connections *all, enum phase phase, uint64_t deadline_ns) {
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    struct peer peer = {pair[0], pair[1], connections_add(all, pair[0], phase == PHASE_NEW ? deadline_ns : 0)};
    assert_non_null(peer.connection);
    if (phase != PHASE_NEW) assert_true(connections_enter(all, peer.connection, phase, deadline_ns));
    return peer;
}

static void disconnect(struct connections *all, struct peer *peer) {
    connections_remove(all, peer->connection);
    close(peer->ours);
    close(peer->theirs);
}

// What the peer reads until the end: -1 where there is no end yet.
static ssize_t received(const struct peer *peer, char text[200]) {
    ssize_t size = 0;
    for (;;) {
        const ssize_t n = recv(peer->theirs, text + size, (size_t)(199 - size), MSG_DONTWAIT);
        if (n < 0) return -1;
        text[size += n] = '\0';
        if (n == 0) return size;
    }
}

static void expect_alive(struct connections *all, struct peer *peer, enum phase phase) {
    char text[200];
    assert_int_equal(received(peer, text), -1);
    assert_true(connections_enter(all, peer->connection, phase, 0));
}

static void expect_cut(struct connections *all, struct peer *peer, const char *last_words) {
    char text[200] = "";
    assert_int_equal(received(peer, text), strlen(last_words));
    assert_string_equal(text, last_words);
    assert_false(connections_enter(all, peer->connection, PHASE_REPLY, UINT64_MAX));
    assert_false(connections_enter(all, peer->connection, PHASE_WORK, UINT64_MAX)); // and stays so
}

// One with words of its own says them, once it has them, and no longer than it does.
static void test_own_last_words(void **state) {
    (void)state;
    static const char own[] = "HTTP/1.1 408 Request Timeout\r\nX: y\r\n\r\n";
    struct connections *all = connections_new();
    for (int kind = 0; kind < 3; kind++) {
        struct peer peer = connect_in(all, PHASE_BODY, 1000);
        if (kind > 0) connections_on_timeout(all, peer.connection, own, strlen(own));
        if (kind == 2) connections_on_timeout(all, peer.connection, NULL, 0);
        connections_reap(all, 1000, timeout_reply, strlen(timeout_reply));
        expect_cut(all, &peer, kind == 1 ? own : timeout_reply);
        disconnect(all, &peer);
    }
    connections_on_timeout(all, NULL, own, strlen(own));
    connections_free(&all);
}

static void test_reap(void **state) {
    (void)state;
    struct connections *all = connections_new();
    struct peer peers[COUNT(phases)];
    for (size_t i = 0; i < COUNT(phases); i++) peers[i] = connect_in(all, phases[i], 1000);
    connections_reap(all, 999, timeout_reply, strlen(timeout_reply));
    char text[200];
    for (size_t i = 0; i < COUNT(phases); i++) assert_int_equal(received(&peers[i], text), -1);
    for (int again = 0; again < 2; again++)
        connections_reap(all, 1000, timeout_reply, strlen(timeout_reply)); // once is enough
    for (size_t i = 0; i < COUNT(phases); i++) {
        if (phases[i] == PHASE_WORK) {
            expect_alive(all, &peers[i], PHASE_WORK);
        } else {
            expect_cut(all, &peers[i], phases[i] == PHASE_BODY ? timeout_reply : "");
        }
    }
    assert_int_equal(connections_count(all), COUNT(phases)); // until their threads take them out
    for (size_t i = 0; i < COUNT(phases); i++) disconnect(all, &peers[i]);
    assert_int_equal(connections_count(all), 0);
    connections_free(&all);
    assert_null(all);
}

// What a refused body is answered with where it does not end: at its deadline or when the I/O thread has enough of it.
// A body whose peer has closed is cut once it has made no step for a second, and not while bytes of it are unread.
static void test_body_of_a_closed_peer(void **state) {
    (void)state;
    const uint64_t second = UINT64_C(1000000000);
    struct connections *all = connections_new();
    struct peer closed = connect_in(all, PHASE_BODY, UINT64_MAX), open = connect_in(all, PHASE_BODY, UINT64_MAX);
    struct peer unread = connect_in(all, PHASE_BODY, UINT64_MAX), working = connect_in(all, PHASE_WORK, 0);
    assert_int_equal(send(unread.theirs, "x", 1, 0), 1);
    shutdown(closed.theirs, SHUT_WR);
    shutdown(unread.theirs, SHUT_WR);
    shutdown(working.theirs, SHUT_WR);
    connections_reap(all, second, "", 0);
    connections_reap(all, 2 * second - 1, "", 0);
    expect_alive(all, &closed, PHASE_BODY); // a step
    assert_true(connections_enter(all, closed.connection, PHASE_BODY, UINT64_MAX));
    connections_reap(all, 2 * second, "", 0);
    connections_reap(all, 3 * second - 1, "", 0);
    assert_true(connections_enter(all, open.connection, PHASE_BODY, UINT64_MAX));
    connections_reap(all, 3 * second, "", 0);
    expect_cut(all, &closed, "");
    connections_reap(all, 5 * second, "", 0);
    expect_alive(all, &open, PHASE_BODY);
    expect_alive(all, &unread, PHASE_BODY);
    expect_alive(all, &working, PHASE_WORK);
    disconnect(all, &closed);
    disconnect(all, &open);
    disconnect(all, &unread);
    disconnect(all, &working);
    connections_free(&all);
}

static void test_refuse(void **state) {
    (void)state;
    static const char refusal[] = "HTTP/1.1 404 Not Found\r\n\r\n";
    for (int by_reaper = 0; by_reaper < 2; by_reaper++) {
        struct connections *all = connections_new();
        struct peer peer = connect_in(all, PHASE_BODY, 5);
        assert_true(connections_refuse(all, peer.connection, refusal, strlen(refusal), 10));
        connections_reap(all, 9, timeout_reply, strlen(timeout_reply));
        assert_false(connections_answered(all, peer.connection));
        if (by_reaper) {
            connections_reap(all, 10, timeout_reply, strlen(timeout_reply));
        } else {
            assert_true(connections_answer(all, peer.connection, 9));
        }
        assert_true(connections_answered(all, peer.connection));
        expect_cut(all, &peer, refusal);
        assert_true(send(peer.theirs, "more", 4, MSG_NOSIGNAL) == 4); // our side alone is closed, for a while
        assert_true(connections_answer(all, peer.connection, 11));    // once is enough
        connections_reap(all, UINT64_C(1000000008), timeout_reply, strlen(timeout_reply));
        assert_true(send(peer.theirs, "more", 4, MSG_NOSIGNAL) == 4);
        connections_reap(all, UINT64_C(1000000010), timeout_reply, strlen(timeout_reply));
        assert_true(send(peer.theirs, "more", 4, MSG_NOSIGNAL) < 0);
        assert_false(connections_answer(all, peer.connection, UINT64_C(1000000011)));
        disconnect(all, &peer);
        connections_free(&all);
    }
    struct connections *all = connections_new();
    struct peer peer = connect_in(all, PHASE_BODY, 5);
    assert_true(connections_refuse(all, peer.connection, refusal, strlen(refusal), 10));
    assert_true(connections_enter(all, peer.connection, PHASE_REPLY, 20)); // the body ended: the reply goes its way
    connections_reap(all, 19, timeout_reply, strlen(timeout_reply));
    expect_alive(all, &peer, PHASE_REPLY);
    disconnect(all, &peer);
    connections_free(&all);
}

// A connection over TCP, for which the system counts what the peer has taken.
static struct peer connect_tcp(struct connections *all) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    const int listening = socket(AF_INET, SOCK_STREAM, 0), theirs = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(listening, (const struct sockaddr *)&address, size), 0);
    assert_int_equal(listen(listening, 1), 0);
    assert_int_equal(getsockname(listening, (struct sockaddr *)&address, &size), 0);
    assert_int_equal(connect(theirs, (const struct sockaddr *)&address, size), 0);
    const int ours = accept(listening, NULL, NULL);
    close(listening);
    struct peer peer = {ours, theirs, connections_add(all, ours, 0)};
    assert_non_null(peer.connection);
    return peer;
}

// Sends as much as the sockets hold.
static void fill(const struct peer *peer) {
    static const char block[65536];
    struct pollfd writable = {.fd = peer->ours, .events = POLLOUT};
    while (poll(&writable, 1, 50) > 0 && send(peer->ours, block, sizeof block, MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {}
}

static bool can_send(const struct peer *peer) {
    return send(peer->ours, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1 || errno == EAGAIN;
}

// Reads until the system has noted it: it does so only where a share of the peer's buffer became free.
static void take(const struct peer *peer, uint64_t bytes) {
    static char block[65536];
    const uint64_t before = peer_taken(peer->ours);
    while (peer_taken(peer->ours) < before + bytes) {
        assert_true(recv(peer->theirs, block, sizeof block, 0) > 0);
        fill(peer);
    }
}

// A reply may take as long as it likes, as long as the peer takes enough of it in every window.
static void test_reply_progress(void **state) {
    (void)state;
    const uint64_t window = UINT64_C(1000000000);
    struct connections *all = connections_new();
    struct peer peer = connect_tcp(all);
    assert_true(connections_reply(all, peer.connection, 0, window));
    fill(&peer);
    connections_reap(all, window / 2, timeout_reply, 1); // the first look
    for (uint64_t i = 1; i <= 3; i++) {
        take(&peer, CONNECTION_MIN_RATE);
        connections_reap(all, i * window, timeout_reply, 1);
        assert_true(can_send(&peer));
    }
    connections_reap(all, 4 * window - 1, timeout_reply, 1);
    assert_true(can_send(&peer));
    connections_reap(all, 4 * window, timeout_reply, 1); // nothing was read in the last one
    assert_false(can_send(&peer));
    disconnect(all, &peer);
    connections_free(&all);
}

// A new phase has a deadline of its own, not that of the one before.
static void test_phases(void **state) {
    (void)state;
    struct connections *all = connections_new();
    struct peer peer = connect_in(all, PHASE_NEW, 10);
    assert_true(connections_enter(all, peer.connection, PHASE_HEAD, 20));
    connections_reap(all, 15, timeout_reply, 1);
    assert_true(connections_enter(all, peer.connection, PHASE_WORK, 0));
    connections_reap(all, UINT64_MAX, timeout_reply, 1);
    assert_true(connections_enter(all, peer.connection, PHASE_REPLY, 30));
    connections_reap(all, 29, timeout_reply, 1);
    expect_alive(all, &peer, PHASE_REPLY);
    for (int i = 0; i < 2; i++) connections_reap(all, 30, timeout_reply, 1); // the first one looks where the peer is
    expect_cut(all, &peer, "");
    disconnect(all, &peer);
    connections_free(&all);
}

static void test_cut_idle(void **state) {
    (void)state;
    struct connections *all = connections_new();
    struct peer peers[COUNT(phases)];
    for (size_t i = 0; i < COUNT(phases); i++) peers[i] = connect_in(all, phases[i], UINT64_MAX);
    connections_cut(all, false);
    for (size_t i = 0; i < COUNT(phases); i++) {
        if (phases[i] == PHASE_NEW || phases[i] == PHASE_IDLE) {
            expect_cut(all, &peers[i], "");
        } else {
            expect_alive(all, &peers[i], phases[i]);
        }
    }
    connections_cut(all, true);
    for (size_t i = 0; i < COUNT(phases); i++) expect_cut(all, &peers[i], "");
    for (size_t i = 0; i < COUNT(phases); i++) disconnect(all, &peers[i]);
    connections_free(&all);
}

// A peer that reads nothing does not hold up the others.
static void test_full_socket(void **state) {
    (void)state;
    struct connections *all = connections_new();
    struct peer deaf = connect_in(all, PHASE_BODY, 10), other = connect_in(all, PHASE_BODY, 10);
    char block[4096] = {0};
    while (send(deaf.ours, block, sizeof block, MSG_DONTWAIT) > 0) {}
    connections_reap(all, 10, timeout_reply, strlen(timeout_reply));
    expect_cut(all, &other, timeout_reply);
    assert_false(connections_enter(all, deaf.connection, PHASE_REPLY, 0));
    disconnect(all, &deaf);
    disconnect(all, &other);
    connections_free(&all);
}

static void test_order_of_removal(void **state) {
    (void)state;
    static const size_t orders[][3] = {{0, 1, 2}, {2, 1, 0}, {1, 0, 2}, {1, 2, 0}};
    for (size_t i = 0; i < COUNT(orders); i++) {
        struct connections *all = connections_new();
        struct peer peers[3];
        for (size_t k = 0; k < 3; k++) peers[k] = connect_in(all, PHASE_IDLE, 5);
        for (size_t k = 0; k < 3; k++) {
            assert_int_equal(connections_count(all), 3 - k);
            disconnect(all, &peers[orders[i][k]]);
            connections_reap(all, 0, "", 0);
        }
        connections_free(&all);
    }
    struct connections *all = connections_new();
    connections_remove(all, NULL);
    assert_true(connections_enter(all, NULL, PHASE_HEAD, 0)); // memory was short when it came
    struct peer left = connect_in(all, PHASE_IDLE, 5);
    connections_free(&all); // frees what is left
    close(left.ours);
    close(left.theirs);
    connections_free(&all);
}

// Connections come and go on their threads while the main loop reaps and cuts.
static void *come_and_go(void *context) {
    struct connections *const all = context;
    for (int i = 0; i < 300; i++) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) return all;
        struct connection *const connection = connections_add(all, pair[0], (uint64_t)i);
        for (size_t k = 1; k < COUNT(phases); k++) connections_enter(all, connection, phases[k], (uint64_t)i);
        connections_remove(all, connection);
        close(pair[0]);
        close(pair[1]);
    }
    return NULL;
}

static void test_threads(void **state) {
    (void)state;
    struct connections *all = connections_new();
    pthread_t threads[4];
    for (size_t i = 0; i < COUNT(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, come_and_go, all), 0);
    for (uint64_t now = 0; now < 300; now++) {
        connections_reap(all, now, timeout_reply, strlen(timeout_reply));
        connections_cut(all, now % 10 == 0);
    }
    for (size_t i = 0; i < COUNT(threads); i++) {
        void *result = NULL;
        pthread_join(threads[i], &result);
        assert_null(result);
    }
    assert_int_equal(connections_count(all), 0);
    connections_free(&all);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_body_of_a_closed_peer),
        cmocka_unit_test(test_refuse),
        cmocka_unit_test(test_reply_progress),
        cmocka_unit_test(test_reap),
        cmocka_unit_test(test_own_last_words),
        cmocka_unit_test(test_phases),
        cmocka_unit_test(test_cut_idle),
        cmocka_unit_test(test_full_socket),
        cmocka_unit_test(test_order_of_removal),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests_name("connections", tests, NULL, NULL);
}
