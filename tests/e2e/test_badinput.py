# SPDX-License-Identifier: Apache-2.0
"""Hostile bodies and broken framing: every one is refused, changes nothing, executes nothing that it smuggles, leaves
the memory bounded, and the next request on a new connection works."""
import gzip
import json

import harness
import wire

BODY = b'{"x":[[1,2,3],[4,5,7]]}'
TRAIN = b"POST /v1/layers/victim/train-forward HTTP/1.1\r\n"
HOST = b"Host: a\r\n"
SMUGGLED = b"DELETE /v1/layers/victim HTTP/1.1\r\nHost: a\r\n\r\n"
ANY_ERROR = tuple(range(400, 418)) + (422, 431, 500, 501, 505)
MIB = 1 << 20


def victim():
    """The server and the state of a layer on it that nothing here may change."""
    server = harness.shared()
    client = server.api()
    client.put("/v1/layers/victim", {"num_features": 3})
    return server, client, picture(client)


def picture(client):
    return client.state("/v1/layers/victim"), client.ok("GET", "/v1/layers?limit=1000")


def peak_kib(server):
    """The largest resident size so far."""
    with open(f"/proc/{server.pid}/status", encoding="ascii") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM"))


def unharmed(server, before):
    client = server.api()
    assert client.get("/livez").status == 200
    after = picture(client)
    assert after[0] == before[0], "the state changed"
    assert [l["version"] for l in after[1]["layers"]] == [l["version"] for l in before[1]["layers"]]


# ---- bodies: cases 27 to 38

def deep(count, closed=True):
    return "[" * count + ("1" + "]" * count if closed else "")


@harness.rows([
    ("27 depth 2049", '{"x":%s}' % deep(2049), (400, 422)),
    ("27 depth 2049, bare", deep(2049), (400,)),
    ("27 depth 100000 in an unknown field", '{"y":%s}' % deep(100000), (400,)),
    ("27 depth 100000 of objects", '{"a":' * 100000 + "1" + "}" * 100000, (400,)),
    ("27 1 MB of brackets", '{"x":' + deep(MIB, False), (400, 422)),
    ("27 1 MB of brackets, bare", deep(MIB, False), (400,)),
    ("27 1 MB of braces", '{"x":' + '{"a":' * (MIB // 5), (400, 422)),
    ("28 1 MB of objects", '{"x":[[%s]]}' % ",".join(["{}"] * (MIB // 3)), (400, 413, 422)),
    ("28 1 MB of arrays", '{"x":[%s]}' % ",".join(["[]"] * (MIB // 3)), (200, 400, 413, 422)),
    ("28 1 MB of objects in an unknown field", '{"y":[%s]}' % ",".join(["{}"] * (MIB // 3)), (400, 413)),
    ("28 1 MB of fields", "{%s}" % ",".join(f'"f{i}":0' for i in range(MIB // 12)), (400, 413)),
    ("28 1 MB of text", '{"x":"%s"}' % ("a" * MIB), (413, 422)),
    ("28 1 MB in one number", '{"x":[[%s,1,1]]}' % ("1" * MIB), (413, 422)),
    ("28 a field name of 1 MB", '{"%s":1}' % ("n" * MIB), (400, 413)),
    ("29 duplicate keys", '{"x":[[1,2,3],[4,5,6]],"x":[[1,2,3],[4,5,6]]}', (400,)),
    ("29 duplicate keys inside", '{"x":{"shape":[1,3],"shape":[2,3],"data":[1,2,3,4,5,6]}}', (400,)),
    ("30 integer 2^63 as an axis", '{"x":[[1,2,3],[4,5,6]],"channel_axis":9223372036854775808}', (422,)),
    ("30 1e999", '{"x":[[1,2,1e999],[4,5,6]]}', (422,)),
    ("30 NaN", '{"x":[[1,2,NaN],[4,5,6]]}', (400,)),
    ("31 2^32 x 2^32", '{"x":{"shape":[4294967296,4294967296],"data":[1]}}', (422,)),
    ("31 2^32 x 3 x 2^32", '{"x":{"shape":[4294967296,3,4294967296],"data":[1,2,3]}}', (422,)),
    ("31 2^20 x 3 x 2^20, base64", '{"x":{"shape":[1048576,3,1048576],"dtype":"f32","base64":"AAAA"}}', (422,)),
    ("31 2^40 x 3, no data", '{"x":{"shape":[1099511627776,3],"data":[]}}', (422,)),
    ("32 ragged", '{"x":[[1,2,3],[4,5]]}', (422,)),
    ("32 no channels", '{"x":[[],[]]}', (422,)),
    ("34 one value per channel", '{"x":[[1,2,3]]}', (422,)),
    ("36 overflow of f32", '{"x":[[1,2,3],[4,5,1e39]]}', (422,)),
    ("37 unknown field", '{"x":[[1,2,3],[4,5,6]],"version":1}', (400,)),
    ("37 mass assignment", '{"x":[[1,2,3],[4,5,6]],"num_batches_tracked":0}', (400,)),
    ("bytes that are no text", b"\x80\x81\xff\x00", (400,)),
    ("UTF-16", '{"x":[[1,2,3]]}'.encode("utf-16"), (400,)),
    ("lone surrogate as a name", '{"\\ud800":1}', (400,)),
    ("NUL in a name", '{"x\\u0000":1}', (400,)),
    ("1 MB of spaces", " " * MIB, (400,)),
])
def test_body(body, accepted):
    server, client, before = victim()
    peak = peak_kib(server)
    reply = client.post("/v1/layers/victim/train-forward", body)
    assert reply.status in accepted, (reply.status, reply)
    if reply.status != 200:
        wire.problem(reply, reply.status)
        assert len(reply.body) < 4096, "the reply does not echo the body"
    grown = peak_kib(server) - peak
    assert grown < 64 * 1024 * harness.PATIENCE, f"{grown} KiB for a body of {len(body)} bytes"
    unharmed(server, before)


@harness.rows([
    ("30 num_features 2^63", '{"num_features":9223372036854775808}', 422), ("32 C=0", '{"num_features":0}', 422),
    ("33 eps 0", '{"num_features":3,"eps":0}', 422), ("33 eps negative", '{"num_features":3,"eps":-1}', 422),
    ("35 momentum 1.5", '{"num_features":3,"momentum":1.5}', 422),
    ("35 momentum -1", '{"num_features":3,"momentum":-1}', 422),
    ("37 state in the configuration", '{"num_features":3,"gamma":[1,1,1]}', 400),
    ("29 twice", '{"num_features":3,"num_features":3}', 400),
    ("27 depth", '{"num_features":%s}' % deep(3000), (400, 422)),
])
def test_configuration(body, status):
    server, client, before = victim()
    reply = client.put("/v1/layers/evil", body)
    assert reply.status in (status if isinstance(status, tuple) else (status,)), reply
    wire.problem(reply, reply.status)
    wire.problem(client.get("/v1/layers/evil"), 404)
    unharmed(server, before)


def test_32_empty_batch_is_no_error():
    server, client, before = victim()
    assert client.train("/v1/layers/victim", [])["updated"] is False
    unharmed(server, before)


def test_33_zero_variance_is_no_error():
    client = victim()[1]
    client.delete("/v1/layers/flat")
    path = client.layer("flat", num_features=1)
    assert client.train(path, [[7.1], [7.1]])["y"] == [[0], [0]]
    client.ok("PATCH", path + "/state", {"running_var": [0]})
    assert client.infer(path, [[1]])["version"] == 3
    client.delete(path)


def test_36_overflow_of_the_state():
    """The running statistics of an f64 layer would overflow: refused, nothing changes."""
    client = victim()[1]
    client.delete("/v1/layers/far")
    path = client.layer("far", num_features=1, dtype="f64")
    before = client.state(path)
    wire.problem(client.post(path + "/train-forward", {"x": [[1.5e308], [-1.5e308]]}), 422, "overflow")
    wire.problem(client.post(path + "/backward", {"x": [[1], [2]], "dout": [[1], [2]],
                                                  "step": {"lr": 1.7e308, "weight_decay": 1.7e308}}),
                 422, "overflow")
    assert client.state(path) == before
    client.delete(path)


def test_38_gzip():
    server, client, before = victim()
    for body in (gzip.compress(BODY), BODY, gzip.compress(b" " * (8 * MIB))):
        reply = client.post("/v1/layers/victim/train-forward", body, {"Content-Encoding": "gzip"})
        wire.problem(reply, 415, "unsupported_media_type")
    unharmed(server, before)


# ---- framing

def carrier(headers, body=BODY, line=TRAIN):
    return line + HOST + headers + b"\r\n" + body


CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
LENGTH = b"Content-Length: %d\r\n" % len(BODY)

FRAMES = [
    ("1 length, then chunked", carrier(LENGTH + b"Transfer-Encoding: chunked\r\n", CHUNKED), ANY_ERROR),
    ("1 chunked, then length", carrier(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"),
     ANY_ERROR),
    ("2 two lengths, equal", carrier(LENGTH + LENGTH), ANY_ERROR),
    ("2 two lengths, short one first", carrier(b"Content-Length: 0\r\n" + LENGTH), ANY_ERROR),
    ("2 two lengths, long one first", carrier(b"Content-Length: 4000\r\n" + LENGTH), ANY_ERROR),
    ("3 gzip, chunked", carrier(b"Transfer-Encoding: gzip, chunked\r\n", CHUNKED), ANY_ERROR),
    ("3 identity", carrier(b"Transfer-Encoding: identity\r\n"), ANY_ERROR),
    ("3 two codings", carrier(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", CHUNKED), ANY_ERROR),
    ("3 chunked twice", carrier(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", CHUNKED), ANY_ERROR),
    ("3 xchunked", carrier(b"Transfer-Encoding: xchunked\r\n", CHUNKED), ANY_ERROR),
    ("4 chunked on HTTP/1.0", carrier(b"Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n", CHUNKED,
                                      TRAIN.replace(b"1.1", b"1.0")), ANY_ERROR),
    ("5 space before the colon", carrier(b"Transfer-Encoding : chunked\r\n", CHUNKED), ANY_ERROR),
    ("5 space before the colon of the length", carrier(b"Content-Length : %d\r\n" % len(BODY)), ANY_ERROR),
    ("5 tab before the colon", carrier(b"Transfer-Encoding\t: chunked\r\n", CHUNKED), ANY_ERROR),
] + [
    (f"6 length {text!r}", carrier(b"Content-Length: " + text.encode() + b"\r\n"), ANY_ERROR)
    for text in ("+23", "-1", "0x17", "23, 23", "", "23 23", "2_3", "23a", "1e1", "023x")
] + [
    ("7 length 2^64-1", carrier(b"Content-Length: 18446744073709551615\r\n"), ANY_ERROR),
    ("7 length 2^64", carrier(b"Content-Length: 18446744073709551616\r\n"), ANY_ERROR),
    ("7 length 2^64+23", carrier(b"Content-Length: 18446744073709551639\r\n"), ANY_ERROR),
    ("8 chunk of 17 digits", carrier(b"Transfer-Encoding: chunked\r\n",
                                     b"10000000000000017\r\n" + BODY + b"\r\n0\r\n\r\n"), ANY_ERROR),
    ("8 negative chunk", carrier(b"Transfer-Encoding: chunked\r\n", b"-17\r\n" + BODY + b"\r\n0\r\n\r\n"), ANY_ERROR),
    ("8 chunk 0x17", carrier(b"Transfer-Encoding: chunked\r\n", b"0x17\r\n" + BODY + b"\r\n0\r\n\r\n"), ANY_ERROR),
    ("9 chunk extension of 100 KB", carrier(b"Transfer-Encoding: chunked\r\n",
                                            b"17;" + b"a" * 100000 + b"\r\n" + BODY + b"\r\n0\r\n\r\n"),
     ANY_ERROR),
    ("12 no Host", TRAIN + LENGTH + b"\r\n" + BODY, (400,)),
    ("12 two Hosts", carrier(HOST + LENGTH), (400,)),
    ("12 two different Hosts", carrier(b"Host: b\r\n" + LENGTH), (400,)),
    ("13 bare CR in a header", carrier(b"X-A: b\rc\r\n" + LENGTH), ANY_ERROR),
    ("14 header of 100 KB", carrier(b"X-A: " + b"a" * 100000 + b"\r\n" + LENGTH), (431,)),
    ("14 10000 headers", carrier(b"".join(b"X-%d: 1\r\n" % i for i in range(10000)) + LENGTH), (431,)),
    ("14 target of 100 KB", carrier(LENGTH, BODY,
                                    b"POST /v1/layers/victim/train-forward?" + b"a" * 100000 + b" HTTP/1.1\r\n"),
     (414,)),
    ("name with a space", carrier(b"Content Length: 5\r\n" + LENGTH), ANY_ERROR),
    ("empty name", carrier(b": value\r\n" + LENGTH), ANY_ERROR),
    ("line without a colon", carrier(b"nonsense\r\n" + LENGTH), ANY_ERROR),
    ("17 unknown method", carrier(LENGTH, BODY, TRAIN.replace(b"POST", b"BREW")), (405, 501)),
    ("HTTP/2.0", carrier(LENGTH, BODY, TRAIN.replace(b"1.1", b"2.0")), ANY_ERROR),
    ("absolute target of another scheme", carrier(LENGTH, BODY, TRAIN.replace(b" /", b" ftp://a/")), ANY_ERROR),
    ("asterisk", carrier(b"", b"", b"GET * HTTP/1.1\r\n"), ANY_ERROR),
]


@harness.rows(FRAMES)
def test_frame(data, accepted):
    server, client, before = victim()
    raw, closed = wire.exchange(server, data + SMUGGLED, harness.seconds(8))
    seen = wire.statuses(raw)
    assert closed, f"the connection stayed open after {raw[:300]!r}"
    assert not seen or seen[0] in accepted, f"{seen}: {raw[:300]!r}"
    assert 204 not in seen and 200 not in seen, f"the smuggled request was executed: {raw[:600]!r}"
    unharmed(server, before)


@harness.rows([("with a length", b"Content-Length: 5\r\n", b"hello"),
               ("chunked", b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
               ("a request as the body", b"Content-Length: %d\r\n" % len(SMUGGLED), SMUGGLED)])
def test_17_get_with_a_body(headers, body):
    server, client, before = victim()
    data = carrier(headers + b"Connection: close\r\n", body, b"GET /v1/layers HTTP/1.1\r\n")
    raw, _ = wire.exchange(server, data, harness.seconds(5))
    seen = wire.statuses(raw)
    assert seen and seen[0] == 400 and 204 not in seen and 200 not in seen, raw[:400]
    unharmed(server, before)


def test_13_nul_in_a_header():
    """libmicrohttpd 0.9 ends the value at the NUL before anybody sees it: refused or served, but one request only."""
    server, _, before = victim()
    data = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-A: b\x00c\r\n\r\n"
    raw, _ = wire.exchange(server, data, harness.seconds(5))
    assert len(wire.statuses(raw)) == 1, raw
    unharmed(server, before)


def test_16_unknown_expectation():
    server, client, before = victim()
    raw, closed = wire.exchange(server, carrier(b"Expect: bogus\r\nConnection: close\r\n" + LENGTH), harness.seconds(8))
    assert wire.statuses(raw)[:1] == [417], raw[:300]
    assert closed
    unharmed(server, before)


def test_16_expect_continue_over_the_limit():
    """The refusal comes before any byte of the body was sent, and not after a 100."""
    server, client, before = victim()
    with wire.connect(server) as s:
        s.sendall(carrier(b"Expect: 100-continue\r\nContent-Length: 4000000000\r\n", b""))
        raw, closed = wire.read_all(s, harness.seconds(8))
    assert wire.statuses(raw) == [413] and closed, raw[:300]
    unharmed(server, before)


def test_16_expect_continue():
    server, client, before = victim()
    with wire.connect(server) as s:
        s.sendall(carrier(b"Expect: 100-continue\r\n" + LENGTH, b"", TRAIN.replace(b"train-forward", b"inference")))
        s.settimeout(harness.seconds(8))
        assert s.recv(1000).startswith(b"HTTP/1.1 100"), "asks for the body"
        s.sendall(BODY)
        assert wire.read_reply(s, harness.seconds(8)).status == 200
    unharmed(server, before)


@harness.rows([("TLS", bytes.fromhex("16030100a50100") + bytes(160)),
               ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
               ("noise", bytes(range(255, -1, -1)) * 8 + b"\r\n\r\n"), ("one NUL line", b"\0\r\n\r\n"),
               ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n\r\n")])
def test_15_other_protocols(data):
    server, client, before = victim()
    raw, _ = wire.exchange(server, data, harness.seconds(2))
    assert 200 not in wire.statuses(raw), raw
    unharmed(server, before)


def test_18_end_in_the_middle_of_a_body():
    server, client, before = victim()
    for cut in (0, 1, len(BODY) - 1):
        for headers in (LENGTH, b"Transfer-Encoding: chunked\r\n"):
            body = BODY[:cut] if headers is LENGTH else b"17\r\n" + BODY[:cut]
            with wire.connect(server) as s:
                s.sendall(carrier(headers, body))
    unharmed(server, before)


def test_10_many_small_chunks():
    server, client, _ = victim()
    body = b'{"x":[[1,2,3],[4,5,7]]' + b" " * harness.scaled(200000) + b"}"
    pieces = b"".join(b"1\r\n%c\r\n" % c for c in body) + b"0\r\n\r\n"
    with wire.connect(server) as s:
        s.settimeout(harness.seconds(60))
        s.sendall(carrier(b"Transfer-Encoding: chunked\r\n", pieces, TRAIN.replace(b"train-forward", b"inference")))
        assert wire.read_reply(s, harness.seconds(60)).status == 200


def test_the_server_wrote_no_alarm():
    """Nothing above was an internal error."""
    server, client, before = victim()
    for line in server.stderr().splitlines():
        assert "internal" not in line.lower() and "assert" not in line.lower(), line
    assert json.loads(client.get("/v1/layers/victim").body)["version"] == before[0]["version"]


harness.main()
