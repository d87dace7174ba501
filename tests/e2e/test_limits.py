# SPDX-License-Identifier: Apache-2.0
"""Limits of size, memory, queue and time: the client sees the refusal, nothing changes, and the server goes on."""
import gzip
import json
import os
import re
import select
import shutil
import socket
import subprocess
import threading
import time

import files
import harness
import wire

MIB = 1 << 20
X = [[1, 2, 3], [4, 5, 7]]


def head(path, length, method="POST", more=b""):
    return b"%b %b HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n" % (
        method.encode(), path.encode(), length, more)


def big_body(features, size):
    """A valid train-forward body of about `size` bytes for a layer with that many channels, as (bytes, rows)."""
    row = b"[" + b",".join(b"%d.25" % (i % 7) for i in range(features)) + b"]"
    rows = max(2, size // (len(row) + 1))
    return b'{"x":[' + b",".join([row] * (rows - 1) + [row.replace(b"25", b"75")]) + b"]}", rows


def push(s, total, piece=b"x" * 65536):
    """Sends up to `total` bytes; returns how many were taken before the peer cut the connection."""
    sent = 0
    try:
        while sent < total:
            sent += s.send(piece[:total - sent])
    except (BrokenPipeError, ConnectionResetError):
        pass
    return sent


def refused(server, data, size, timeout=20.0):
    """Sends a request head and then the whole body, as a plain client does, before it reads the reply."""
    with wire.connect(server, harness.seconds(timeout)) as s:
        s.sendall(data)
        s.sendall(b" " * size)
        reply = wire.read_reply(s, harness.seconds(timeout))
        if reply.headers.get("connection", "").lower() == "close":
            assert wire.read_all(s, harness.seconds(5)) == (b"", True), "the connection is closed"
        return reply


# ---- size

def test_body_too_large():
    with harness.Server("--durability", "none", "--max-body", "1M") as server:
        client = server.api()
        path = client.layer("big")
        for _ in range(harness.scaled(50, 5)):
            reply = refused(server, head(path + "/train-forward", 8 * MIB), 8 * MIB)
            wire.problem(reply, 413, "body_too_large")
            assert reply.headers["connection"].lower() == "close", reply.headers
        exact = b'{"x":[[1,2,3],[4,5,7]]}'
        assert client.request("POST", path + "/train-forward", exact + b" " * (MIB - len(exact))).status == 200
        wire.problem(client.request("POST", path + "/train-forward", exact + b" " * (MIB + 1 - len(exact))), 413)
        assert client.version(path) == 2


def test_body_too_large_with_expect():
    with harness.Server("--durability", "none", "--max-body", "1M") as server:
        path = server.api().layer("big")
        with wire.connect(server) as s:
            start = time.monotonic()
            s.sendall(head(path + "/train-forward", MIB + 1, more=b"Expect: 100-continue\r\n"))
            raw, closed = wire.read_all(s, harness.seconds(5))
            assert wire.statuses(raw) == [413] and closed, raw[:200]
            assert time.monotonic() - start < harness.seconds(1.5), "at once"


def test_chunked_body_too_large():
    with harness.Server("--durability", "none", "--max-body", "1M") as server:
        client = server.api()
        path = client.layer("big")
        start = b"POST %b/train-forward HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % path.encode()
        with wire.connect(server) as s:
            s.sendall(start)
            for _ in range(6 * 16):
                s.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
            s.sendall(b"0\r\n\r\n")
            wire.problem(wire.read_reply(s, harness.seconds(10)), 413, "body_too_large")
            assert wire.read_all(s, harness.seconds(5))[1], "the connection is closed"
        with wire.connect(server) as s:  # one chunk that announces more than is allowed
            s.sendall(start + b"7fffffff\r\n")
            taken = push(s, 40 * MIB)
            assert taken < 36 * MIB, f"{taken} bytes were read"
        assert client.version(path) == 1


def test_what_is_thrown_away_is_bounded():
    """A refused body is read to 16 MiB and for 2 s at most, then the connection is cut."""
    with harness.Server("--durability", "none", "--max-body", "1M") as server:
        path = server.api().layer("big")
        with wire.connect(server, harness.seconds(30)) as s:
            s.sendall(head(path + "/train-forward", 1 << 40))
            taken = push(s, 200 * MIB)
            assert 2 * MIB < taken < 36 * MIB, f"{taken} bytes were taken"
        with wire.connect(server, harness.seconds(30)) as s:
            start = time.monotonic()
            s.sendall(head(path + "/train-forward", 64 * MIB))
            closed = threading.Event()

            def trickle():
                while not closed.wait(0.1):
                    if push(s, 100) == 0:
                        return

            feeder = threading.Thread(target=trickle)
            feeder.start()
            raw, ended = wire.read_all(s, harness.seconds(10))
            closed.set()
            feeder.join()
            took = time.monotonic() - start
            assert ended and took < harness.seconds(5), f"cut after {took:.1f} s"
            assert wire.statuses(raw) == [413], raw[:200]
        assert server.api().version(path) == 1


@harness.rows([
    ("too large", "POST", "/v1/layers/cut/train-forward", b"", 413), ("no such layer", "POST",
                                                                      "/v1/layers/none/inference", b"", 404),
    ("method", "DELETE", "/v1/layers/cut/inference", b"", 405),
    ("media type", "POST", "/v1/layers/cut/inference", b"Content-Type: a/b\r\n", 415),
])
def test_refusal_is_told_before_the_cut(method, path, header, status):
    """The body never comes, or is longer than what is thrown away: the reply comes all the same, then the end."""
    with harness.Server("--durability", "none", "--max-body", "1M", "--log-level", "debug") as server:
        client = server.api()
        client.layer("cut")
        start = b"%b %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%b\r\n" % (method.encode(), path.encode(), 1 << 30,
                                                                              header)
        with wire.connect(server) as s:
            s.sendall(start)
            reply = wire.read_reply(s, harness.seconds(20))
            wire.problem(reply, status)
            assert reply.headers["connection"] == "close" and ("allow" in reply.headers) == (status == 405), reply
            assert wire.read_all(s, harness.seconds(10)) == (b"", True), "the connection is closed"
        with wire.connect(server, harness.seconds(20)) as s:
            s.sendall(start)
            sent = 0  # as curl does: sends while there is nothing to read
            while not select.select([s], [], [], 0)[0] and sent < 24 * MIB:
                if select.select([s], [s], [], harness.seconds(20))[1]:
                    sent += s.send(b"x" * 65536)
            assert sent > 8 * MIB, f"the reply came after {sent} bytes"
            wire.problem(wire.read_reply(s, harness.seconds(20)), status)
        line = f"{method} /v1/layers/{{name}}/" if status != 405 else f"{method} - "
        harness.wait_until(lambda: sum(line in x and f" {status} " in x and x.endswith("(cut)")
                                       for x in server.stderr().splitlines()) == 2, 10, "both are logged by their status")
        assert client.version("/v1/layers/cut") == 1


def test_refused_upload_of_curl():
    if shutil.which("curl") is None:
        harness.skip("curl is not installed")
    server = harness.shared()
    data = os.path.join(harness.folder(), "body")
    with open(data, "wb") as f:
        f.truncate(30 * 1000 * 1000)
    url = f"http://{server.host}:{server.port}/v1/layers/none/inference"
    done = subprocess.run(["curl", "-sS", "-H", "Expect:", "-w", " %{http_code}", "--data-binary", "@" + data, url],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=harness.seconds(60), check=False)
    assert done.stdout.endswith(b" 404") and b"layer_not_found" in done.stdout, (done.stdout, done.stderr)


@harness.rows([
    ("no such layer", "POST", "/v1/layers/none/train-forward", b"", 404), ("no such path", "POST", "/v1/nothing", b"",
                                                                           404),
    ("method", "DELETE", "/v1/layers/early/inference", b"", 405), ("media type", "POST", "/v1/layers/early/inference",
                                                                   b"Content-Type: a/b\r\n", 415),
    ("later build", "POST", "/v1/layers/early/train-forward", b"Idempotency-Key: 1\r\n", 501),
    ("name", "PUT", "/v1/layers/-bad", b"", 400),
    ("precondition", "POST", "/v1/layers/early/train-forward", b'If-Match: "x"\r\n', 412),
    ("GET with a body", "GET", "/v1/layers", b"", 400), ("accept", "POST", "/v1/layers/early/inference",
                                                         b"Accept: a/b\r\n", 406),
    ("coding", "POST", "/v1/layers/early/inference", b"Content-Encoding: gzip\r\n", 415),
])
def test_early_refusal_is_seen(method, path, header, status):
    """The client sends 8 MiB, more than the sockets hold, before it reads."""
    server = harness.shared()
    client = server.api()
    client.put("/v1/layers/early", {"num_features": 3})
    kind = b"" if b"Content-Type" in header else b"Content-Type: application/json\r\n"
    data = b"%b %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%b%b\r\n" % (method.encode(), path.encode(), 8 * MIB,
                                                                             kind, header)
    for _ in range(harness.scaled(50, 5)):
        wire.problem(refused(server, data, 8 * MIB), status)
    assert client.version("/v1/layers/early") == 1


# ---- memory and queue

def readable(sockets):
    return select.select(sockets, [], [], 0)[0]


def test_memory_budget():
    """Calls whose bodies are almost there hold memory; with the budget full the next is refused, and served later."""
    with harness.Server("--durability", "none", "--memory-budget", "96M", "--max-body", "8M") as server:
        client = server.api()
        path = client.layer("full", num_features=64)
        body, _ = big_body(64, 7 * MIB)
        sockets = []
        for _ in range(24):
            sockets.append(wire.connect(server, harness.seconds(30)))
            try:
                sockets[-1].sendall(head(path + "/train-forward", len(body)) + body[:-1])
            except ConnectionError:
                pass
        # 96 MiB hold 13 bodies of 7 MiB. The refused ones are cut after 2 s, because they do not end.
        harness.wait_until(lambda: len(readable(sockets)) >= 11, 10, "11 of 24 calls are refused")
        counts = []  # (when, how many were cut); a slow server has refused some that it has yet to cut

        def settled():
            counts.append((time.monotonic(), len(readable(sockets))))
            first = next(when for when, count in counts if count == counts[-1][1])
            return counts[-1][0] - first > 2.5

        harness.wait_until(settled, 20, "no further call is cut")
        waiting = [s for s in sockets if s not in readable(sockets)]
        assert 1 <= len(waiting) <= 13, f"{len(waiting)} bodies of 7 MiB wait"
        for _ in range(harness.scaled(20, 3)):
            reply = client.request("POST", path + "/train-forward", body)
            wire.problem(reply, 503, "memory_full")
            assert int(reply.headers["retry-after"]) >= 1, reply.headers
        assert client.infer(path, [[1] * 64])["version"] == 1, "small calls go on"
        done = 0
        for s in waiting:
            start = time.monotonic()
            s.sendall(body[-1:])
            reply = wire.read_reply(s, harness.seconds(60))
            assert reply.status in (200, 503), reply
            assert time.monotonic() - start < harness.seconds(5), "a call that does not fit is refused soon"
            done += reply.status == 200
        for s in sockets:
            s.close()
        assert client.version(path) == 1 + done and client.state(path)["num_batches_tracked"] == done
        again = harness.wait_until(lambda: client.request("POST", path + "/train-forward", body).status == 200, 10,
                                   "the memory is free again")
        assert again and client.version(path) == 2 + done


def flat(rows):
    """A tensor of so many rows of four ones."""
    return b'{"shape":[%d,4],"data":[%b1]}' % (rows, b"1," * (4 * rows - 1))


@harness.rows([
    ("train-forward", "POST", "/v1/layers/wide/train-forward", lambda: b'{"x":[[' + b"1," * 1_400_000 + b"1]]}"),
    ("a little more than fits", "POST", "/v1/layers/wide/inference",
     lambda: b'{"x":%b}' % flat(57_500)),
    ("a little more of f64", "POST", "/v1/layers/wide64/train-forward",
     lambda: b'{"x":%b}' % flat(80_000)),
    ("a little more in two tensors", "POST", "/v1/layers/wide/backward",
     lambda: b'{"x":%b,"dout":%b}' % ((flat(85_000),) * 2)),
    ("backward", "POST", "/v1/layers/wide/backward",
     lambda: b'{"x":[[' + b"1," * 600_000 + b'1]],"dout":[[' + b"1," * 600_000 + b"1]]}"),
    ("residual", "POST", "/v1/layers/wide/train-forward", lambda: b'{"x":%b,"residual":%b}' % ((
        b'{"shape":[62500,4],"dtype":"f32","base64":"' + b"A" * (999_999 // 3 * 4) + b'AA=="}',) * 2)),
    ("state", "PUT", "/v1/layers/wide/state", lambda: b'{"gamma":[' + b"1," * 1_400_000 + b"1]}"),
    ("snapshot", "PUT", "/v1/snapshot", lambda: b'{"layers":{"a":{"gamma":[' + b"1," * 1_400_000 + b"1]}}}"),
    ("snapshot of many", "PUT", "/v1/snapshot",
     lambda: b'{"layers":{' + b",".join(b'"a%d":{}' % i for i in range(30_000)) + b"}}"),
    ("snapshot of few bytes", "PUT", "/v1/snapshot", lambda: b'{"layers":{' + b",".join(
        b'"a%d":{"gamma":null,"beta":null,"running_mean":null,"running_var":null,"num_batches_tracked":null,'
        b'"layer":{"num_features":1,"affine":false,"track_running_stats":false}}' % i for i in range(5_000)) + b"}}"),
    ("reply", "POST", "/v1/layers/wide/train-forward",
     lambda: b'{"x":{"shape":[100000,4],"dtype":"f32","base64":"' + b"A" * (1_600_000 // 3 * 4) + b'AA=="}}'),
])
def test_what_never_fits_is_not_asked_to_come_back(method, path, body):
    """The body is within its limit, but what it says takes more memory than there is."""
    with harness.Server("--durability", "none", "--memory-budget", "4M", "--max-body", "4M") as server:
        client = server.api()
        client.layer("wide", num_features=4)
        client.layer("wide64", num_features=4, dtype="f64")
        for _ in range(3):
            reply = client.request(method, path, body())
            wire.problem(reply, 413, "body_too_large")
            assert "retry-after" not in reply.headers and "budget" in reply.json["detail"], reply
        assert client.infer("/v1/layers/wide", [[1] * 4])["version"] == 1


def infer_json(count):
    return b'{"inputs":[{"name":"x","shape":[%d,4],"datatype":"FP32","data":[%b]}]}' % (
        count // 4, b",".join([b"1"] * count))


def infer_binary(count):
    text = json.dumps({"inputs": [{"name": "x", "shape": [count // 4, 4], "datatype": "FP32",
                                   "parameters": {"binary_data_size": 4 * count}}],
                       "parameters": {"binary_data_output": True}}).encode()
    return text + bytes(4 * count), {"Inference-Header-Content-Length": str(len(text))}


@harness.rows([
    ("infer", "/v2/models/wide/infer", lambda: (infer_json(1_400_000), {})),
    ("infer, coded", "/v2/models/wide/infer", lambda: (gzip.compress(infer_json(1_400_000)),
                                                       {"Content-Encoding": "gzip"})),
    ("infer, widened", "/v2/models/wide/infer", lambda: infer_binary(500_000)),
    ("npy in Fortran order", "/v1/layers/wide/inference", lambda: (files.npy([150_000, 4], [0.0] * 600_000, fortran=True),
                                                                   {"Content-Type": files.NPY})),
    ("base64 with escapes", "/v1/layers/wide/inference",
     lambda: (b'{"x":{"shape":[1,1],"dtype":"f32","base64":"\\u0041' + b"A" * 2_400_000 + b'"}}', {})),
])
def test_what_decoding_takes_beside_never_fits(path, request):
    """Memory that is given back before the call ends is counted as well."""
    with harness.Server("--durability", "none", "--memory-budget", "4M", "--max-body", "4M") as server:
        client = server.api()
        client.layer("wide", num_features=4, dtype="f64")
        body, headers = request()
        reply = client.post(path, body, headers)
        wire.problem(reply, 413, "body_too_large", oip=path.startswith("/v2"))
        assert "retry-after" not in reply.headers and "budget" in reply.json["detail"], reply
        assert client.infer("/v1/layers/wide", [[1] * 4])["version"] == 1


def test_what_fits_later_is_asked_to_come_back():
    """The same call is refused with 503 while others hold memory that it needs, and served when they are gone."""
    with harness.Server("--durability", "none", "--memory-budget", "4M", "--max-body", "4M") as server:
        client = server.api()
        client.layer("wide", num_features=4, dtype="f64")
        body, headers = infer_binary(200_000)
        with wire.connect(server) as s:
            s.sendall(head("/v1/layers/wide/inference", 2 * MIB) + b" " * (2 * MIB - 1))
            harness.wait_until(lambda: wire.all_read(server), 10, "the other body holds memory")
            reply = client.post("/v2/models/wide/infer", body, headers)
            wire.problem(reply, 503, "memory_full", oip=True)
            assert int(reply.headers["retry-after"]) >= 1, reply.headers
        harness.wait_until(lambda: client.post("/v2/models/wide/infer", body, headers).status == 200, 10, "room again")


def test_a_layer_that_never_fits():
    with harness.Server("--durability", "none", "--memory-budget", "4M") as server:
        client = server.api()
        reply = client.put("/v1/layers/huge", {"num_features": 200_000})
        wire.problem(reply, 422, "out_of_range", "/num_features")
        wire.problem(client.get("/v1/layers/huge"), 404)
        path = client.layer("large", num_features=100_000)
        reply = client.put("/v1/layers/second", {"num_features": 100_000})
        wire.problem(reply, 503, "memory_full")
        assert int(reply.headers["retry-after"]) >= 1, "there is room once the other is deleted"
        assert client.delete(path).status == 204
        client.layer("second", num_features=100_000)


@harness.rows([("with its length", False), ("in chunks", True)])
def test_a_body_may_fill_the_budget(chunked):
    """A body that grows does not need its old and its new memory at once."""
    with harness.Server("--durability", "none", "--memory-budget", "64M") as server:
        body = b'{"layers":{}}' + b" " * (63 * MIB - 13)
        with wire.connect(server, harness.seconds(60)) as s:
            if chunked:
                s.sendall(b"PUT /v1/snapshot HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
                for at in range(0, len(body), 100_000):
                    piece = body[at:at + 100_000]
                    s.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
                s.sendall(b"0\r\n\r\n")
            else:
                s.sendall(head("/v1/snapshot", len(body), "PUT") + body)
            reply = wire.read_reply(s, harness.seconds(60))
        assert reply.status == 200 and reply.json == {"layers": {}, "ignored": []}, reply


def test_queue():
    """Far more calls at once than the queue holds: each is answered 200 or 503 with Retry-After; only the 200 count."""
    with harness.Server("--durability", "none") as server:
        client = server.api()
        path = client.layer("queue", num_features=64)
        # Large calls first, more than there are workers; while those compute, the small ones can only wait. Of a coded
        # body nothing is read before a worker has it.
        numbers, rows = big_body(64, 16 * MIB)
        large = gzip.compress(
            b'{"parameters":{"mode":"train-forward"},"outputs":[{"name":"batch_mean"}],"inputs":[{"name":"x",'
            b'"datatype":"FP32","shape":[%d,64],"data":%b}]}' % (rows, numbers[5:-1]), 1)
        large = head("/v2/models/queue/infer", len(large), more=b"Content-Encoding: gzip\r\n") + large
        small = big_body(64, 20_000)[0]
        small = head(path + "/train-forward", len(small)) + small
        requests = [large] * 4 * max(2, os.cpu_count()) + [small] * 500
        calls = [(wire.connect(server, harness.seconds(60)), request) for request in requests]
        for s, data in calls:
            s.sendall(data[:-1])
        # Else the small ones, which take the fewest reads, would come first.
        harness.wait_until(lambda: wire.all_read(server), 60, "all but the last bytes have arrived")
        for s, data in calls:
            s.sendall(data[-1:])
        replies = [wire.read_reply(s, harness.seconds(60)) for s, _ in calls]
        for s, _ in calls:
            s.close()
        refused_by = set()
        for reply in (r for r in replies if r.status != 200):
            wire.problem(reply, 503, oip="error" in reply.json)
            refused_by.add(reply.json["code"])
            assert int(reply.headers["retry-after"]) >= 1, reply
        good = sum(r.status == 200 for r in replies)
        state = client.state(path)
        assert state["num_batches_tracked"] == good and state["version"] == 1 + good, (state["version"], good)
        assert "queue_full" in refused_by <= {"queue_full", "memory_full"}, f"{good} served, refused by {refused_by}"


def test_client_rate():
    """One address has so many requests a second; its probes, and other addresses, do not count."""
    with harness.Server("--durability", "none", "--client-rate", "5") as server:
        client = server.api()
        path = client.layer("rated")
        harness.wait_until(lambda: client.get(path).status == 429, 20, "a request too many")
        reply = client.post(path + "/train-forward", {"x": X})
        if reply.status == 200:  # the machine was slow
            reply = harness.wait_until(lambda: (lambda r: r if r.status == 429 else None)(
                client.post(path + "/inference", {"x": X})), 20, "one too many")
        wire.problem(reply, 429, "rate_limited")
        assert reply.headers["retry-after"] == "1", reply.headers
        for _ in range(20):
            assert client.get("/readyz").status == 200 and client.get("/v2/health/live").status == 200
        wire.problem(harness.wait_until(lambda: (lambda r: r if r.status == 429 else None)(
            client.get("/v2/models/rated")), 20, "one too many"), 429, "rate_limited", oip=True)
        body, _ = big_body(3, 2 * MIB)  # refused before it is sent, and the reply arrives all the same
        reply = harness.wait_until(lambda: (lambda r: r if r.status == 429 else None)(
            server.api().request("POST", path + "/train-forward", body)), 20, "a large one too many")
        wire.problem(reply, 429, "rate_limited")
        assert reply.headers["retry-after"] == "1", reply.headers
        harness.wait_until(lambda: client.get(path).status == 200, 20, "room again")


# ---- time

def test_deadline():
    with harness.Server("--durability", "none", "--request-timeout", "1ms") as server:
        client = server.api()
        reply = harness.wait_until(lambda: (lambda r: r if r.status == 201 else None)(
            client.put("/v1/layers/late", {"num_features": 64})), 10, "a small call is in time once")
        path = "/v1/layers/" + reply.json["name"]
        body, _ = big_body(64, 24 * MIB)
        reply = client.request("POST", path + "/train-forward", b'{"cache":true,' + body[1:])
        wire.problem(reply, 504, "deadline")
        wire.problem(client.request("POST", path + "/inference", body), 504, "deadline")
        got = harness.wait_until(lambda: (lambda r: r if r.status == 200 else None)(client.get(path + "/state")), 10,
                                 "a small call")
        assert got.json["version"] == 1 and got.json["num_batches_tracked"] == 0, got
        got = harness.wait_until(lambda: (lambda r: r if r.status == 200 else None)(client.get(path)), 10, "a small call")
        assert not any(got.json["counters"].values()) and got.json["memory"]["cache_bytes"] == 0, got


def test_body_that_stalls():
    with harness.Server("--durability", "none", "--request-timeout", "1s") as server:
        client = server.api()
        path = client.layer("slow")
        with wire.connect(server) as s:
            start = time.monotonic()
            s.sendall(head(path + "/train-forward", 1000) + b'{"x":')
            reply = wire.read_reply(s, harness.seconds(10))
            wire.problem(reply, 408, "body_timeout")
            took = time.monotonic() - start
            assert 0.8 < took < harness.seconds(5), f"{took:.1f} s"
            assert wire.read_all(s, harness.seconds(5))[1], "the connection is closed"
        with wire.connect(server) as s:  # a trickle is no progress
            start = time.monotonic()
            s.sendall(head(path + "/train-forward", 100000))
            try:
                while time.monotonic() - start < harness.seconds(10):
                    s.sendall(b" ")
                    s.settimeout(0.1)
                    try:
                        if s.recv(1, socket.MSG_PEEK) is not None:
                            break
                    except socket.timeout:
                        pass
            except ConnectionError:
                pass
            took = time.monotonic() - start
            assert took < harness.seconds(6), f"a trickle held the connection for {took:.1f} s"
        assert client.version(path) == 1


def test_header_that_stalls():
    with harness.Server("--durability", "none", "--request-timeout", "1s") as server:
        with wire.connect(server) as s:
            start = time.monotonic()
            s.sendall(b"GET /livez HTTP/1.1\r\n")
            try:
                while time.monotonic() - start < harness.seconds(15):
                    s.sendall(b"X")
                    s.settimeout(0.1)
                    try:
                        s.recv(1, socket.MSG_PEEK)
                        break
                    except socket.timeout:
                        pass
            except ConnectionError:
                pass
            took = time.monotonic() - start
            assert took < harness.seconds(12), f"a slow header held the connection for {took:.1f} s"
        assert server.api().get("/livez").status == 200


def test_many_slow_connections_do_not_stop_the_others():
    with harness.Server("--durability", "none") as server:
        client = server.api()
        path = client.layer("calm")
        slow = [wire.connect(server) for _ in range(harness.scaled(300, 50))]
        for i, s in enumerate(slow):
            s.sendall(b"POST %b/inference HTTP/1.1\r\nHost: a\r\n" % path.encode() + (b"Content-Length: 99\r\n\r\n{"
                                                                                      if i % 2 else b""))
        start = time.monotonic()
        for _ in range(100):
            assert client.infer(path, X)["version"] == 1
        assert time.monotonic() - start < harness.seconds(5)
        for s in slow:
            s.close()


# Calls of readers: in time for a slow build too, with replies that no socket's buffers hold (4 MiB).
READ_TIMEOUT, READ_SIZE = (2, 24 * MIB) if harness.SCALE >= 1 else (10, 9 * MIB)


def test_reader_that_never_reads():
    """Replies that nobody takes do not stop the others, and their connections are cut, whatever the replies' size."""
    with harness.Server("--durability", "none", "--request-timeout", f"{READ_TIMEOUT}s", "--log-level",
                        "debug") as server:
        client = server.api()
        path = client.layer("deaf", num_features=64)
        body, _ = big_body(64, READ_SIZE)
        deaf = []
        end = time.monotonic() + harness.seconds(60)
        while len(deaf) < 4:
            s = wire.connect(server, harness.seconds(60))
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            s.sendall(head(path + "/inference", len(body)) + body)
            if s.recv(12, socket.MSG_PEEK).endswith(b" 200"):
                deaf.append(s)
            assert time.monotonic() < end, "calls are too slow for their time-out"
        for _ in range(50):
            assert client.infer(path, [[1] * 64])["version"] == 1
        harness.wait_until(lambda: len(re.findall(r"inference 200 .*\(cut\)", server.stderr())) == 4, 30, "all are cut")
        for s in deaf:
            s.close()


def test_slow_reader_is_served():
    """Who takes the reply slowly, but above the least rate, gets all of it, long after --request-timeout."""
    timeout = READ_TIMEOUT
    with harness.Server("--durability", "none", "--request-timeout", f"{timeout}s") as server:
        client = server.api()
        path = client.layer("slow", num_features=64)
        body, _ = big_body(64, READ_SIZE)
        with wire.connect(server, harness.seconds(60)) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            s.sendall(head(path + "/inference", len(body)) + body)
            got, size, start = bytearray(s.recv(65536)), 0, time.monotonic()
            size = int(re.search(rb"(?i)content-length: (\d+)", got).group(1)) + got.index(b"\r\n\r\n") + 4
            assert size > READ_SIZE // 2, size
            while len(got) < size:
                due = size * (time.monotonic() - start) / (2.5 * timeout)  # bytes by now, at an even pace
                if len(got) > due:
                    select.select([], [], [], 0.02)
                    continue
                piece = s.recv(65536)
                assert piece, f"cut after {len(got)} of {size} bytes"
                got += piece
        assert time.monotonic() - start > 2 * timeout and got.rstrip().endswith(b"}"), bytes(got[-80:])


def resident_kib(server):
    with open(f"/proc/{server.pid}/status", encoding="ascii") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))


def test_bodies_that_break_off_give_their_memory_back():
    """What their parts were gathered in lies in heaps, in pieces."""
    if harness.SCALE < 1:
        harness.skip("sanitizers keep freed memory")
    with harness.Server("--durability", "none", "--memory-budget", "64M") as server:
        path = server.api().layer("parts", num_features=64)
        before = resident_kib(server)
        body, _ = big_body(64, 10 * MIB)
        for part, count in ((300_000, 100), (1_500_000, 40)) * 2:
            crowd_of = [wire.connect(server, harness.seconds(60)) for _ in range(count)]
            for s in crowd_of:
                push_some(s, head(path + "/inference", len(body)) + body[:part])
            for s in crowd_of:
                s.close()
        harness.wait_until(lambda: resident_kib(server) < before + 16 * 1024, 20,
                           f"{before} KiB resident before, {resident_kib(server)} after")


def push_some(s, data):
    """Sends it, unless the server answers and closes before."""
    try:
        s.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        pass


def test_freed_memory_goes_back():
    """After large calls on many connections the process is as small as before, but for a little."""
    if harness.SCALE < 1:
        harness.skip("sanitizers keep freed memory")
    with harness.Server("--durability", "none", "--memory-budget", "64M") as server:
        path = server.api().layer("back", num_features=64)
        before = resident_kib(server)
        row = b"[" + b",".join(b"%d.25371" % (i % 7) for i in range(64)) + b"]"

        def work():
            for size in (16, 1, 3, 2, 5, 4):
                rows = size * MIB // len(row)
                body = b'{"x":[' + b",".join([row] * (rows - 1) + [row.replace(b"2", b"7")]) + b"]}"
                assert server.api().request("POST", path + "/train-forward", body).status in (200, 503)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        harness.wait_until(lambda: resident_kib(server) < before + 32 * 1024, 10,
                           f"{before} KiB resident before, {resident_kib(server)} after")


def test_memory_stays_flat():
    """Thousands of calls of every kind, refused ones too, leave nothing behind."""
    if harness.SCALE < 1:
        harness.skip("sanitizers keep freed memory")
    with harness.Server("--durability", "none", "--cache-budget", "1M") as server:
        client = server.api()
        path = client.layer("flat")
        calls = [
            lambda: client.train(path, X, cache=True), lambda: client.infer(path, X),
            lambda: client.backward(path, X, x=X, step={"lr": 0.1}), lambda: client.get(path + "/state"),
            lambda: client.post(path + "/inference", '{"x":[[1,2,3],[4,5]]}'),
            lambda: client.post(path + "/inference", "{"),
            lambda: client.get("/v1/layers"), lambda: client.get("/v1/snapshot"), lambda: client.get("/v1/nothing"),
            lambda: client.put("/v1/layers/other", {"num_features": 2, "eps": 5}),
            lambda: client.delete("/v1/layers/other"),
            lambda: client.put("/v1/snapshot", {"layers": {"flat": client.state(path)}}),
            lambda: client.patch(path + "/state", {"gamma": [1, 2]}), lambda: wire.connect(server).close(),
        ]
        sizes = []
        for _ in range(3):
            for _ in range(300):
                for call in calls:
                    call()
            sizes.append(resident_kib(server))
        assert sizes[2] - sizes[0] < 4096, f"resident KiB after each third: {sizes}"
        assert len(os.listdir(f"/proc/{server.pid}/fd")) < 40, "file descriptors are given back"


harness.main()
