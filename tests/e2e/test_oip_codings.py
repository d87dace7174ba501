# SPDX-License-Identifier: Apache-2.0
"""Infer requests and replies in gzip and deflate: which are, which are not, damaged ones, and bombs."""
import gzip
import random
import zlib

import harness
import wire
from infer import SHAPE, X, create, problem, read, request, tensor

MIB = 1 << 20


def coded(data, coding):
    return gzip.compress(data) if coding == "gzip" else zlib.compress(data)


def decoded(reply):
    coding = reply.headers["content-encoding"]
    body = gzip.decompress(reply.body) if coding == "gzip" else zlib.decompress(reply.body)
    assert len(reply.body) < len(body), coding
    return wire.Reply(reply.status, reply.headers, body)


@harness.rows([(f"{asks or 'plain'} in, {takes or 'any'} out, {'binary' if binary else 'JSON'}", asks, takes, binary)
               for asks in (None, "gzip", "deflate") for takes in (None, "gzip", "deflate", "gzip, deflate")
               for binary in (True, False)])
def test_codings(asks, takes, binary):
    """The length of the JSON is that of the plain one, both ways."""
    client, model = create()
    rows = 6000
    values = [float(i % 7) for i in range(3 * rows)]
    body, headers = request([tensor("x", [rows, 3], values, "FP32", True)],
                            parameters={"binary_data_output": binary})
    want = read(client.post(model + "/infer", body, headers))
    if asks:
        headers, body = {**headers, "Content-Encoding": asks}, coded(body, asks)
    if takes:
        headers["Accept-Encoding"] = takes
    reply = client.post(model + "/infer", body, {"Content-Type": None, **headers})
    compressed = takes is not None and (takes in ("gzip", "deflate") or not binary)
    assert ("content-encoding" in reply.headers) == compressed, reply.headers
    if compressed:
        assert reply.headers["content-encoding"] == takes.split(",")[0], reply.headers
        assert reply.headers["vary"] == "Accept-Encoding", reply.headers
        reply = decoded(reply)
    assert read(reply) == want


@harness.rows([(takes, takes, coding) for takes, coding in (
    ("deflate, gzip;q=0.5", "deflate"), ("gzip;q=0", None), ("br, zstd", None), ("*", None), ("identity", None),
    ("br, gzip", "gzip"), ("", None))])
def test_accept_encoding(takes, coding):
    client, model = create()
    values = [float(i % 7) for i in range(15000)]
    body, headers = request([tensor("x", [5000, 3], values)])
    reply = client.post(model + "/infer", body, {**headers, "Accept-Encoding": takes})
    assert reply.headers.get("content-encoding") == coding, reply.headers
    assert len(read(decoded(reply) if coding else reply)[1]["y"][2]) == 15000


def test_nothing_else_is_compressed():
    client, model = create()
    for path in ("/v2", model, model + "/config", model + "/stats", "/v2/models/stats", "/v1/layers?limit=1000"):
        assert "content-encoding" not in client.get(path, {"Accept-Encoding": "gzip"}).headers, path
    reply = client.post(model + "/infer", b"{}", {"Accept-Encoding": "gzip"})
    assert "content-encoding" not in reply.headers and reply.status == 422, reply
    small = client.post(model + "/infer", *request([tensor("x", SHAPE, X)]))
    assert "content-encoding" not in small.headers, small.headers


def test_noise_is_sent_as_it_is():
    """Also to who asks for gzip: it would not become smaller."""
    client, model = create()
    rng = random.Random(3)
    values = [wire.f32(rng.gauss(0, 1) * 2.0 ** rng.randint(-9, 9)) for _ in range(30000)]
    body, headers = request([tensor("x", [10000, 3], values, binary=True)], parameters={"binary_data_output": True})
    reply = client.post(model + "/infer", body, {**headers, "Accept-Encoding": "gzip"})
    if "content-encoding" in reply.headers:
        assert len(reply.body) < 0.96 * len(decoded(reply).body)
    else:
        read(reply)


def test_other_codings_are_refused():
    client, model = create()
    body, headers = request([tensor("x", SHAPE, X)])
    for coding in ("br", "zstd", "gzip, gzip", "compress"):
        reply = client.post(model + "/infer", body, {**headers, "Content-Encoding": coding})
        problem(reply, 415, "unsupported_media_type", "gzip and deflate")
        assert reply.headers["accept-encoding"] == "gzip, deflate", reply.headers
    reply = client.post("/v2/repository/models/oip/load", gzip.compress(b"{}"), {"Content-Encoding": "gzip"})
    problem(reply, 415, "unsupported_media_type", "Content-Encoding")
    assert "accept-encoding" not in reply.headers, reply.headers
    for path in ("/v1/layers/oip/inference",):
        wire.problem(client.post(path, gzip.compress(b"{}"), {"Content-Encoding": "gzip"}), 415)


def test_damaged_codings():
    client, model = create()
    body, _ = request([tensor("x", SHAPE, X)])
    for coding in ("gzip", "deflate"):
        data = coded(body, coding)
        raw = zlib.compressobj(wbits=-15)
        for bad, word in ((data[:-1], "too early"), (data[:20], "too early"), (b"", "too early"), (body, "not " + coding),
                          (raw.compress(body) + raw.flush(), "not " + coding), (data[:-3] + b"abc", "not " + coding)):
            problem(client.post(model + "/infer", bad, {"Content-Encoding": coding}), 400, "malformed_file", word)
    problem(client.post(model + "/infer", zlib.compress(body) + b"x", {"Content-Encoding": "deflate"}), 400,
            "malformed_file", "bytes follow")
    read(client.post(model + "/infer", gzip.compress(body[:30]) + gzip.compress(body[30:]), {"Content-Encoding": "gzip"}))


def test_bombs():
    """What a body holds counts against --max-body and the memory budget, before it is all there."""
    bomb = gzip.compress(b'{"inputs":' + b" " * (harness.scaled(200, 20) * MIB))
    with harness.Server("--durability", "none", "--max-body", "1M") as server:
        client = server.api()
        client.layer("oip")
        problem(client.post("/v2/models/oip/infer", bomb, {"Content-Encoding": "gzip"}), 413, "body_too_large",
                "1048576")
        body, headers = request([tensor("x", [80000, 3], [1.0] * 240000, binary=True)], outputs=[{"name": "y"}])
        read(client.post("/v2/models/oip/infer", gzip.compress(body), {**headers, "Content-Encoding": "gzip"}))
    with harness.Server("--durability", "none", "--memory-budget", "4M") as server:
        client = server.api()
        client.layer("oip")
        reply = client.post("/v2/models/oip/infer", bomb, {"Content-Encoding": "gzip"})
        problem(reply, reply.status, "body_too_large" if reply.status == 413 else "memory_full")


if __name__ == "__main__":
    harness.main()
