# SPDX-License-Identifier: Apache-2.0
"""Corners that were wrong once: each test here failed on the server before its fix."""
import json
import os
import signal
import threading

import harness
import wire

MIB = 1 << 20


def create(name, **config):
    client = harness.shared().api()
    client.delete("/v1/layers/" + name)
    return client, client.layer(name, **config)


def test_y_after_a_first_batch_is_of_the_newest_gamma():
    """A PATCH behind the first batch, while a large train-forward computes, must reach that call's y."""
    client, path = create("first", num_features=1, init="first-batch")
    rows = 400_000
    body = b'{"x":[' + b",".join([b"[1.5],[-1.5]"] * (rows // 2)) + b"]}"
    seen = []
    for _ in range(harness.scaled(6, 2)):
        client.delete(path)
        client.layer("first", num_features=1, init="first-batch")
        client.train(path, [[0], [2]])
        other = harness.shared().api()
        slow = threading.Thread(target=lambda: seen.append(other.request("POST", path + "/train-forward", body).json))
        slow.start()
        patched = client.ok("PATCH", path + "/state", {"gamma": [100], "beta": [0]})["version"]
        slow.join()
        got = seen[-1]
        if got["version"] == patched + 1:
            assert abs(got["y"][0][0] - 100) < 0.01, f"y {got['y'][0]} is not of gamma 100 (version {patched})"
        else:
            assert abs(got["y"][0][0] - 100) > 1, got["y"][0]


def test_heads_alone_hold_no_memory():
    with harness.Server("--durability", "none", "--memory-budget", "64M") as server:
        client = server.api()
        path = client.layer("calm")
        kept = client.train(path, [[1, 2, 3], [4, 5, 7]], cache=True)["cache"]
        heads = []
        for _ in range(16):
            s = wire.connect(server, harness.seconds(30))
            s.sendall(b"PUT /v1/snapshot HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (60 * MIB))
            heads.append(s)
        for _ in range(20):
            assert client.get("/livez").status == 200 and client.get("/version").status == 200
            client.train(path, [[1, 2, 3], [4, 5, 7]])
        client.backward(path, [[1, 0, 0], [0, 1, 0]], cache=kept)
        for s in heads:
            s.close()


def test_conditions_on_what_has_no_tag():
    client = harness.shared().api()
    wire.problem(client.put("/v1/snapshot", {"layers": {}}, {"If-Match": '"nope"'}), 412, "precondition_failed")
    assert client.put("/v1/snapshot", {"layers": {}}, {"If-Match": "*"}).status == 200
    assert client.get("/livez", {"If-Match": "*"}).status == 200


def test_conditions_over_several_lines():
    server = harness.shared()
    client, path = create("lines")
    tag = client.get(path).headers["etag"].encode()
    for header, value, want in ((b"If-Match", tag, 200), (b"If-None-Match", tag, 304), (b"Accept", b"application/json", 200)):
        for lines in ((value, b'"other"'), (b'"other"', value)):
            if header == b"Accept":
                lines = [b"text/plain" if line == b'"other"' else line for line in lines]
            with wire.connect(server, harness.seconds(10)) as s:
                s.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\n%b: %b\r\n%b: %b\r\nConnection: close\r\n\r\n" %
                          (path.encode(), header, lines[0], header, lines[1]))
                raw, _ = wire.read_all(s, harness.seconds(10))
            assert wire.statuses(raw) == [want], (header, lines, raw[:200])


def test_if_none_match_on_changes():
    client, path = create("none")
    wire.problem(client.put(path, {"num_features": 3}, {"If-None-Match": "*"}), 412)
    wire.problem(client.patch(path + "/state", {"gamma": [1, 1, 1]}, {"If-None-Match": "*"}), 412)
    assert client.version(path) == 1


def test_preconditions_of_a_snapshot():
    """It has no entity tag, but it exists, whatever layers there are."""
    client, _ = create("snap")
    snapshot = client.ok("GET", "/v1/snapshot?prefix=snap")
    for field, tag, status in (("If-None-Match", "*", 412), ("If-None-Match", '"a"', 200), ("If-Match", "*", 200),
                               ("If-Match", '"a"', 412)):
        assert client.put("/v1/snapshot", snapshot, {field: tag}).status == status, (field, tag)
    assert client.version("/v1/layers/snap") == 3


def test_304_has_the_length_of_the_200():
    client, path = create("length")
    for where in (path, path + "/state"):
        full = client.get(where)
        known = client.get(where, {"If-None-Match": full.headers["etag"]})
        assert known.status == 304 and known.body == b"", known
        assert known.headers.get("content-length") in (None, full.headers["content-length"]), known.headers


def test_large_fields_are_refused_for_their_name():
    client, path = create("large")
    big = [[0.5, 1.5, 2.5]] * 20_000
    wire.problem(client.post(path + "/train-forward", {"x": [[1, 2, 3], [4, 5, 7]], "X": big}), 400, "unknown_field", "/X")
    wire.problem(client.patch(path + "/state", {"gama": [0.5] * 20_000}), 400, "unknown_field", "/gama")


def test_skip_update_skips_a_step_that_overflows():
    client, path = create("skip", num_features=2, dtype="f64", nonfinite="skip_update")
    got = client.backward(path, [[1e308, 1], [1e308, 1]], x=[[1, 2], [3, 4]], step={"lr": 1})
    assert got["version"] == 1 and client.state(path)["gamma"] == [1, 1], got


def test_an_infinity_counts_alike_wherever_it_stands():
    client, path = create("infinite", num_features=1, nonfinite="propagate")
    for x in ([[1], ["Infinity"]], [["Infinity"], [1]], [["Infinity"], ["Infinity"]], [[1], [2], ["-Infinity"]]):
        got = client.train(path, x)
        assert (got["batch_mean"], got["batch_var"]) == (["NaN"], ["NaN"]), (x, got)


@harness.rows([("skip_update", "skip_update"), ("propagate", "propagate")])
def test_single_value_is_beta_for_any_value(policy):
    client, path = create("single", num_features=2, nonfinite=policy, single_value="beta")
    client.ok("PATCH", path + "/state", {"beta": [7, 8]})
    got = client.train(path, [["NaN", 2]])
    assert got["y"] == [[7, 8]] and got["updated"] is False and got["version"] == 2, got


def test_minus_zero_momentum_starts_again():
    with harness.Server() as server:
        client = server.api()
        path = client.layer("minus", momentum=-0.0)
        client.ok("PATCH", path, b'{"momentum": -1e-999}')
        server.kill()
        with harness.Server(data=server.data) as again:
            assert again.api().version(path) == 2


def test_a_restore_that_replaces_a_layer_drops_its_passes():
    client, path = create("replaced")
    kept = client.train(path, [[1, 2, 3], [4, 5, 7]], cache=True)["cache"]
    assert client.ok("GET", path)["memory"]["cache_bytes"] > 0
    state = {"gamma": [1] * 3, "beta": [0] * 3, "running_mean": [0] * 3, "running_var": [1] * 3, "num_batches_tracked": 0,
             "layer": {"num_features": 3, "eps": 0.5}}
    assert client.ok("PUT", "/v1/snapshot", {"layers": {"replaced": state}})["layers"] == {"replaced": 3}
    assert client.ok("GET", path)["memory"]["cache_bytes"] == 0
    wire.problem(client.post(path + "/backward", {"dout": [[1, 0, 0], [0, 1, 0]], "cache": kept}), 410, "cache_gone")


def test_a_file_that_may_not_grow():
    """RLIMIT_FSIZE raises a signal, which must not kill: the write fails, the server says so and ends, nothing is lost."""
    import resource
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
    try:
        server = harness.Server("--durability", "sync")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    client, kept, status = server.api(), 0, 201
    while status == 201 and kept < 100:
        reply = client.put(f"/v1/layers/w{kept}", {"num_features": 2000})
        status = reply.status
        kept += status == 201
    wire.problem(reply, 503, "store_failed")
    assert "retry-after" not in reply.headers and kept >= 1, (reply.headers, kept)
    assert server.wait() == 1 and "the store failed" in server.stderr(), server.stderr()
    with harness.Server(data=server.data) as again:
        assert len(again.api().ok("GET", "/v1/layers")["layers"]) == kept


def test_hangup_drains():
    server = harness.Server()
    server.api().layer("hup")
    os.kill(server.process.pid, signal.SIGHUP)
    assert server.wait() == 0, server.stderr()
    with harness.Server(data=server.data) as again:
        assert again.api().version("/v1/layers/hup") == 1


def test_a_hostile_snapshot_is_refused_soon():
    with harness.Server("--durability", "none", "--memory-budget", "64M") as server:
        body = json.dumps({"layers": {f"a{i}": {} for i in range(400_000)}})
        wire.problem(server.api().put("/v1/snapshot", body), 413, "body_too_large")
        with open(f"/proc/{server.process.pid}/status") as f:
            peak = next(int(line.split()[1]) for line in f if line.startswith("VmHWM"))
        assert peak < 160 * 1024 or "asan" in harness.BIN or "tsan" in harness.BIN, f"{peak} KiB"


harness.main()
