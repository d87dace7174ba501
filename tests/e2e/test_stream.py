#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Replies with states, and lists of all layers, are sent in pieces: they may be longer than the memory budget. States are
of one moment however slow the reader is, and what they hold on to is bounded and given back."""
import json
import signal
import time

import harness
import wire

MIB = 1 << 20
VECTORS = ("gamma", "beta", "running_mean", "running_var")


def long_state(channels, digit):
    """The text of a state whose values take 20 bytes each; `digit` makes them differ."""
    values = b"[" + b",".join([b"0.%d2345678901234567" % digit] * channels) + b"]"
    vectors = b",".join(b'"%s":%b' % (name.encode(), values) for name in VECTORS)
    return b"{%b,\"num_batches_tracked\":%d}" % (vectors, digit)


def create(client, name, channels, digit=1):
    path = client.layer(name, num_features=channels)
    client.ok("PUT", path + "/state", long_state(channels, digit))
    return path


def expect(state, channels, digit):
    for name in VECTORS:
        assert state[name] == [float(f"0.{digit}2345678901234567")] * channels, name
    assert (state["num_batches_tracked"], state["version"]) == (digit, 2), state["version"]


def peak_kib(server):
    with open(f"/proc/{server.pid}/status", encoding="ascii") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM"))


def joined(raw):
    """(head, body) of a reply in chunks."""
    at = raw.index(b"\r\n\r\n")
    head, body, at = raw[:at], [], at + 4
    while True:
        end = raw.index(b"\r\n", at)
        size = int(raw[at:end], 16)
        if size == 0:
            return head, b"".join(body)
        body.append(raw[end + 2:end + 2 + size])
        at = end + 2 + size + 2


# ---- longer than the budget

def test_snapshot_longer_than_the_budget():
    """6 layers, 3.8 MB of states, 9.6 MB of text; the budget is 4 MiB."""
    with harness.Server("--durability", "none", "--memory-budget", "4M") as server:
        client = server.api()
        for i in range(6):
            create(client, f"l{i}", 20_000, i)
        before = peak_kib(server)
        for _ in range(3):
            reply = client.get("/v1/snapshot")
            assert reply.status == 200 and len(reply.body) > 9 * MIB and "content-length" not in reply.headers, reply
        assert peak_kib(server) - before < 2048 or harness.SCALE < 1, f"{before} KiB, then {peak_kib(server)} KiB"
        layers = reply.json["layers"]
        assert list(layers) == [f"l{i}" for i in range(6)]
        for i in range(6):
            expect(layers[f"l{i}"], 20_000, i)
            assert client.state(f"/v1/layers/l{i}") == layers[f"l{i}"]
        one = client.ok("GET", "/v1/snapshot?prefix=l3")["layers"]
        assert one == {"l3": layers["l3"]}
        assert client.ok("GET", "/v1/snapshot?prefix=x") == {"layers": {}}
        # It comes back in parts.
        for i in range(6):
            part = client.get(f"/v1/snapshot?prefix=l{i}").body
            assert client.ok("PUT", "/v1/snapshot", part)["layers"] == {f"l{i}": 3}
        wire.problem(client.put("/v1/snapshot", reply.body), 413, "body_too_large")


def test_state_longer_than_the_budget():
    """PUT and PATCH reply with it too, when it is too late to fail."""
    with harness.Server("--durability", "none", "--memory-budget", "4M") as server:
        client = server.api()
        path = client.layer("wide", num_features=100_000)
        for i, name in enumerate(VECTORS):
            part = b'{"%s":[%b]}' % (name.encode(), b",".join([b"0.%d2345678901234567" % i] * 100_000))
            reply = client.patch(path + "/state", part)
            assert reply.status == 200 and reply.json["version"] == 2 + i, reply
        assert len(reply.body) > 7 * MIB and reply.headers["etag"] == client.get(path).headers["etag"], reply.headers
        state = client.state(path)
        assert state == reply.json
        for i, name in enumerate(VECTORS):
            assert state[name] == [float(f"0.{i}2345678901234567")] * 100_000, name
        reply = client.put(path + "/state", reply.body)
        wire.problem(reply, 413, "body_too_large")
        assert client.state(path) == state
        assert client.get(path + "/state", {"If-None-Match": "*"}).status == 304
        assert client.infer(path, [[1] * 100_000])["version"] == 5


def test_states_are_not_bound_by_max_body():
    """What GET of a state gives, PUT takes."""
    with harness.Server("--durability", "none", "--max-body", "64K") as server:
        client = server.api()
        path = create(client, "wide", 20_000, 3)
        text = client.get(path + "/state").body
        assert len(text) > MIB and client.ok("PUT", path + "/state", text)["version"] == 3
        assert client.ok("PATCH", path + "/state", text.replace(b',"layer"', b',"layer"'))["version"] == 4
        wire.problem(client.post(path + "/inference", b'{"x":[]}' + b" " * 65536), 413, "body_too_large")


def test_lists_longer_than_the_budget():
    """Statistics and index of 20 000 layers, some 12 and 4 MB; the budget is 4 MiB."""
    with harness.Server("--durability", "none", "--memory-budget", "4M") as server:
        client = server.api()
        names = [f"layer{i:05}.{'x' * 110}" for i in range(20_000)]
        state = {"gamma": None, "beta": None, "running_mean": None, "running_var": None, "num_batches_tracked": None,
                 "layer": {"num_features": 1, "affine": False, "track_running_stats": False}}
        for i in range(0, len(names), 2000):
            client.ok("PUT", "/v1/snapshot", {"layers": {name: state for name in names[i:i + 2000]}})
        before = peak_kib(server)
        for _ in range(3):
            stats = client.get("/v2/models/stats")
            assert stats.status == 200 and len(stats.body) > 8 * MIB and "content-length" not in stats.headers, stats
            index = client.post("/v2/repository/index", b"")
            assert index.status == 200 and len(index.body) > 3 * MIB, index
        assert peak_kib(server) - before < 2048 or harness.SCALE < 1, f"{before} KiB, then {peak_kib(server)} KiB"
        assert [entry["name"] for entry in stats.json["model_stats"]] == names
        assert [entry["name"] for entry in index.json] == names


def test_lists_that_change_meanwhile():
    """What is there all the time is listed once; what comes or goes may be."""
    with harness.Server("--durability", "none") as server:
        client = server.api()
        names = [f"layer{i:04}" for i in range(2000)]
        client.ok("PUT", "/v1/snapshot", {"layers": {name: {
            "gamma": [1], "beta": [0], "running_mean": [0], "running_var": [1], "num_batches_tracked": 0,
            "layer": {"num_features": 1}} for name in names}})
        with wire.connect(server, harness.seconds(60)) as s:
            s.sendall(b"GET /v2/models/stats HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            start = s.recv(1000)
            for name in names[1::2]:
                assert client.delete("/v1/layers/" + name).status == 204
            client.layer("alate")
            client.layer("zlate")
            _, body = joined(start + read_on(s))
        got = [entry["name"] for entry in json.loads(body)["model_stats"]]
        assert got == sorted(set(got)) and set(names[::2]) <= set(got) <= {*names, "alate", "zlate"}, len(got)


# ---- as HTTP has it

def test_short_ones_have_a_length():
    with harness.Server("--durability", "none") as server:
        client = server.api()
        path = create(client, "short", 1000)
        for target in (path + "/state", "/v1/snapshot", "/v2/models/stats"):
            got, head = client.get(target), client.request("HEAD", target)
            assert got.headers["content-length"] == head.headers["content-length"] == str(len(got.body)), got.headers


def test_head_old_clients_and_closing():
    server = harness.Server("--durability", "none")
    client = server.api()
    path = create(client, "long", 20_000)
    for target in (path + "/state", "/v1/snapshot"):
        whole = client.get(target).body
        request = target.encode() + b" HTTP/1.1\r\nHost: a\r\n"
        for more in (b"", b"Connection: close\r\n"):
            raw, closed = wire.exchange(server, b"HEAD " + request + more + b"\r\n", harness.seconds(5))
            assert raw.startswith(b"HTTP/1.1 200") and raw.endswith(b"\r\n\r\n") and raw.count(b"\r\n\r\n") == 1, raw
            assert b"content-length" not in raw.lower() and closed, "no length, and so nothing else may follow"
        raw, closed = wire.exchange(server, b"GET " + target.encode() + b" HTTP/1.0\r\n\r\n", harness.seconds(5))
        head, body = raw.split(b"\r\n\r\n", 1)
        assert closed and body == whole and b"chunked" not in head, head
        raw, closed = wire.exchange(server, b"GET " + request + b"Connection: close\r\n\r\n", harness.seconds(5))
        head, body = joined(raw)
        assert closed and body == whole and b"chunked" in head, head
        assert client.request("HEAD", target).status == 200 and client.get(target).body == whole, "and all goes on"
    raw, _ = wire.exchange(server, b"GET %b/state HTTP/1.1\r\nHost: a\r\nIf-None-Match: *\r\n\r\n" % path.encode(),
                           harness.seconds(5))
    assert raw.startswith(b"HTTP/1.1 304") and raw.endswith(b"\r\n\r\n") and raw.count(b"\r\n\r\n") == 1, raw
    assert b"content-length" not in raw.lower(), "a length that a 200 would not have"
    server.stop()


def test_pipelined():
    """What follows a reply in chunks on the same connection is answered in order."""
    with harness.Server("--durability", "none") as server:
        client = server.api()
        create(client, "long", 20_000)
        one = b"GET /v1/snapshot HTTP/1.1\r\nHost: a\r\n\r\n"
        with wire.connect(server, harness.seconds(30)) as s:
            s.sendall(one * 3 + b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            raw, closed = wire.read_all(s, harness.seconds(30))
        assert closed and wire.statuses(raw) == [200] * 4 and raw.endswith(b"ok\n"), wire.statuses(raw)


# ---- slow readers

class Crowd:
    """A server with 8 layers of 1.6 MB, whose snapshot of 32 MB no socket holds."""

    CHANNELS, LAYERS = 50_000, 8

    def __init__(self, *flags):
        self.server = harness.Server("--durability", "none", "--memory-budget", "16M", *flags)
        self.client = self.server.api()
        for i in range(self.LAYERS):
            create(self.client, f"l{i}", self.CHANNELS, i)
        self.client.layer("small")

    def begin(self):
        """A snapshot that has begun and is not read on."""
        s = wire.connect(self.server, harness.seconds(60))
        s.sendall(b"GET /v1/snapshot HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert s.recv(1000).startswith(b"HTTP/1.1 200")
        return s


def read_on(s):
    """The rest of a reply whose first 1000 bytes were taken."""
    raw, closed = wire.read_all(s, harness.seconds(60))
    assert closed
    return raw


def test_one_moment_for_a_slow_reader():
    crowd = Crowd()
    client = crowd.client
    s = wire.connect(crowd.server, harness.seconds(60))
    s.sendall(b"GET /v1/snapshot HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    start = s.recv(1000)
    for i in range(1, crowd.LAYERS):  # while it waits, every layer changes or goes
        path = f"/v1/layers/l{i}"
        if i % 2:
            assert client.delete(path).status == 204
        else:
            client.ok("PUT", path + "/state", long_state(crowd.CHANNELS, 9))
    client.layer("late")
    _, body = joined(start + read_on(s))
    s.close()
    layers = json.loads(body)["layers"]
    assert list(layers) == [f"l{i}" for i in range(crowd.LAYERS)] + ["small"], list(layers)
    for i in range(crowd.LAYERS):
        expect(layers[f"l{i}"], crowd.CHANNELS, i)
    assert len(client.ok("GET", "/v1/layers")["layers"]) == 6
    crowd.server.stop()


def test_what_is_held_is_bounded():
    crowd = Crowd()
    client = crowd.client
    slow = crowd.begin()
    for _ in range(3):
        reply = client.get("/v1/snapshot")
        wire.problem(reply, 503, "memory_full")
        assert int(reply.headers["retry-after"]) >= 1, reply.headers
    assert client.ok("GET", "/v1/snapshot?prefix=small")["layers"]["small"]["version"] == 1
    assert client.train("/v1/layers/small", [[1, 2, 3], [4, 5, 7]])["version"] == 2, "calls go on"
    assert client.state("/v1/layers/l0")["num_batches_tracked"] == 0, "there is room for one more layer"
    read_on(slow)
    slow.close()
    assert len(client.ok("GET", "/v1/snapshot")["layers"]) == crowd.LAYERS + 1
    for _ in range(harness.scaled(5, 2)):  # who leaves in the middle gives back what was held
        crowd.begin().close()
        harness.wait_until(lambda: client.get("/v1/snapshot?prefix=l").status == 200, 20, "room for a snapshot")
    crowd.server.stop()


def test_drain_while_sending():
    """A snapshot that is read is sent to its end; one that is not read is cut at the drain time-out."""
    crowd = Crowd("--drain-timeout", "30s")
    slow = crowd.begin()
    crowd.server.signal(signal.SIGTERM)
    assert read_on(slow).endswith(b"0\r\n\r\n")
    slow.close()
    assert crowd.server.wait() == 0, crowd.server.stderr()
    crowd = Crowd("--drain-timeout", "1s")
    slow = crowd.begin()
    start = time.monotonic()
    crowd.server.signal(signal.SIGTERM)
    assert crowd.server.wait() == 0, crowd.server.stderr()
    assert time.monotonic() - start < harness.seconds(5)
    assert not read_on(slow).endswith(b"0\r\n\r\n"), "the reader sees that it is not whole"
    slow.close()


if __name__ == "__main__":
    harness.main()
