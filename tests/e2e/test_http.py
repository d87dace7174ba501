# SPDX-License-Identifier: Apache-2.0
"""HTTP itself: probes, methods, media types, HEAD, refusals, and the members of every problem."""
import json
import os
import re
import socket

import harness
import wire

X = [[1, 2, 3], [4, 5, 7]]


def create(name, **config):
    client = harness.shared().api()
    client.delete("/v1/layers/" + name)
    return client, client.layer(name, **config)


def test_probes():
    client = harness.shared().api()
    for path in ("/livez", "/readyz"):
        assert client.get(path).status == 200
    version = client.ok("GET", "/version")
    assert set(version) == {"version", "cpu", "threads", "store"}, version
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", version["version"]) and isinstance(version["threads"], int), version
    assert version["cpu"] in ("scalar", "avx2", "avx512", "neon") and version["store"] == "sqlite", version


def test_openapi_is_the_file():
    reply = harness.shared().api().get("/openapi.yaml")
    with open(os.path.join(harness.ROOT, "proto", "openapi.yaml"), "rb") as f:
        assert reply.status == 200 and reply.body == f.read()
    assert "yaml" in reply.headers["content-type"], reply.headers


@harness.rows([(path, path) for path in ("/livez", "/readyz", "/version", "/openapi.yaml", "/v1/layers",
                                         "/v1/layers/head",
                                         "/v1/layers/head/state", "/v1/snapshot?prefix=head")])
def test_head(path):
    client, _ = create("head")
    got, head = client.get(path), client.request("HEAD", path)
    assert head.status == 200 and head.body == b"", head
    for name in ("content-type", "content-length", "etag"):
        assert head.headers.get(name) == got.headers.get(name), (name, head.headers, got.headers)
    assert int(head.headers["content-length"]) == len(got.body)


@harness.rows([(path, path) for path in (
    "/", "/v1", "/v1/", "/v1/layer", "/v1/layers/", "/v1/layers/a/b", "/v1/layers/a/state/x", "/v1/snapshots", "/v3",
    "/livez/", "/V1/layers", "/favicon.ico", "/v1//layers", "/metrics/", "/v2x")])
def test_no_such_path(path):
    reply = harness.shared().api().get(path)
    assert reply.status in (404, 400), reply
    wire.problem(reply, reply.status)


@harness.rows([(f"{method} {path}", method, path) for method, path in (
    ("GET", "/metrics"), ("HEAD", "/metrics"), ("GET", "/metrics?x=1"))])
def test_path_of_a_later_build(method, path):
    """The reply says so from the head alone, whatever the request carries."""
    client = harness.shared().api()
    reply = client.request(method, path, None, {"Accept": "a/b", "Content-Type": "application/octet-stream"})
    assert reply.status == 501, reply
    if method != "HEAD":
        assert "metrics" in wire.problem(reply, 501, "not_built")["detail"], reply
    wire.problem(client.delete(path), 405, "method_not_allowed")


@harness.rows([(f"{method} {path}", method, path, set(allow.split())) for method, path, allow in (
    ("POST", "/v1/layers/m", "GET HEAD PUT PATCH DELETE"), ("DELETE", "/v1/layers", "GET HEAD"),
    ("POST", "/v1/layers", "GET HEAD"),
    ("GET", "/v1/layers/m/train-forward", "POST"), ("PUT", "/v1/layers/m/inference", "POST"),
    ("HEAD", "/v1/layers/m/backward", "POST"),
    ("DELETE", "/v1/layers/m/state", "GET HEAD PUT PATCH"), ("POST", "/v1/layers/m/state", "GET HEAD PUT PATCH"),
    ("PATCH", "/v1/snapshot", "GET HEAD PUT"), ("POST", "/livez", "GET HEAD"), ("PUT", "/version", "GET HEAD"),
    ("DELETE", "/openapi.yaml", "GET HEAD"), ("OPTIONS", "/v1/layers/m", "GET HEAD PUT PATCH DELETE"),
    ("BREW", "/readyz", "GET HEAD"),
    ("TRACE", "/v1/layers", "GET HEAD"))])
def test_method(method, path, allow):
    client, _ = create("m")
    reply = client.request(method, path)
    if method == "OPTIONS":
        assert reply.status in (200, 204, 405), reply
    elif method == "HEAD":
        assert reply.status == 405 and reply.body == b"", reply
    else:
        wire.problem(reply, 405, "method_not_allowed")
    given = {m.strip() for m in reply.headers["allow"].split(",")}
    assert given - {"OPTIONS"} == allow, reply.headers
    assert client.version("/v1/layers/m") == 1


@harness.rows([
    ("none", None, 200), ("JSON", "application/json", 200), ("JSON, charset", "application/json; charset=utf-8", 200),
    ("JSON, case", "Application/JSON", 200), ("form, what curl -d sends", "application/x-www-form-urlencoded", 200),
    ("text", "text/plain", 415), ("XML", "application/xml", 415), ("npy in its middle", "x/application/x-npy", 415),
    ("safetensors without their vendor", "application/safetensors", 415), ("nonsense", ";;;", 415),
    ("json prefix", "application/jsonx", 415),
    ("multipart", "multipart/form-data; boundary=x", 415),
])
def test_content_type(kind, status):
    client, path = create("kind")
    reply = client.post(path + "/train-forward", {"x": X}, {"Content-Type": kind})
    if status == 200:
        assert reply.status == 200 and reply.headers["content-type"].split(";")[0] == "application/json", reply
    else:
        assert reply.status == 415, reply
        wire.problem(reply, 415, "unsupported_media_type")
    assert client.version(path) == (2 if status == 200 else 1)


def test_form_with_origin_is_refused():
    client, path = create("origin")
    for kind in ("application/x-www-form-urlencoded", None):
        headers = {"Content-Type": kind, "Origin": "http://evil.example"}
        wire.problem(client.post(path + "/train-forward", {"x": X}, headers), 415, "unsupported_media_type")
    assert client.version(path) == 1
    got = client.post(path + "/train-forward", {"x": X}, {"Content-Type": "application/json",
                                                          "Origin": "http://a.example"})
    assert got.status == 200, "a labelled body is not refused"


@harness.rows([(coding, coding) for coding in ("gzip", "deflate", "br", "x-unknown")])
def test_content_encoding(coding):
    client, path = create("coding")
    wire.problem(client.post(path + "/train-forward", {"x": X}, {"Content-Encoding": coding}), 415)
    assert client.version(path) == 1


@harness.rows([
    ("any", "*/*", 200), ("JSON", "application/json", 200), ("range", "application/*", 200),
    ("list", "text/html, application/json;q=0.5", 200), ("browser", "text/html,application/xhtml+xml,*/*;q=0.8", 200),
    ("HTML alone", "text/html", 406), ("JSON at q=0", "application/json;q=0", 406), ("image", "image/*", 406),
    ("problems alone", "application/problem+json", 406),
    ("npy of Fortran", "application/x-npyf", 406),
])
def test_accept(accept, status):
    client, path = create("accept")
    reply = client.post(path + "/train-forward", {"x": X}, {"Accept": accept})
    if status == 200:
        assert reply.status == 200, reply
    else:
        wire.problem(reply, 406, "not_acceptable")
    assert client.version(path) == (2 if status == 200 else 1)
    reply = client.get(path, {"Accept": accept})
    assert reply.status == status, reply


@harness.rows([
    ("train-forward", "POST", "/train-forward", {"x": X}), ("inference", "POST", "/inference", {"x": X}),
    ("backward", "POST", "/backward", {"x": X, "dout": X, "step": {"lr": 1}}), ("PATCH", "PATCH", "", {"eps": 1}),
    ("PATCH state", "PATCH", "/state", {"gamma": [2, 2, 2]}), ("PUT layer", "PUT", ".new", {"num_features": 3}),
])
def test_idempotency_key_is_of_a_later_build(method, suffix, body):
    client, path = create("key")
    before = client.state(path)
    wire.problem(client.request(method, path + suffix, body, {"Idempotency-Key": '"k1"'}), 501, "not_built")
    assert client.state(path) == before
    wire.problem(client.get(path + ".new"), 404)


def test_idempotency_key_on_snapshot():
    client, path = create("key")
    snapshot = client.ok("GET", "/v1/snapshot?prefix=key")
    wire.problem(client.put("/v1/snapshot", snapshot, {"Idempotency-Key": "1"}), 501, "not_built")
    assert client.version(path) == 1


def test_body_where_none_belongs():
    client, path = create("nobody")
    for method, target in (("GET", path), ("GET", "/v1/layers"), ("DELETE", path), ("GET", "/livez"), ("HEAD", path)):
        reply = client.request(method, target, b'{"x":1}')
        assert reply.status == 400, (method, target, reply)
        if method != "HEAD":
            wire.problem(reply, 400, "unexpected_body")
    assert client.version(path) == 1


def test_no_body_where_one_belongs():
    client, path = create("empty")
    for method, suffix in (("POST", "/train-forward"), ("POST", "/inference"), ("POST", "/backward"), ("PATCH", ""),
                           ("PATCH", "/state"),
                           ("PUT", "/state")):
        wire.problem(client.request(method, path + suffix), 400)
    wire.problem(client.request("PUT", "/v1/layers/empty.new"), 400)
    assert client.version(path) == 1


def test_unknown_query_of_the_rest():
    client = harness.shared().api()
    for path in ("/livez", "/readyz"):
        assert client.get(path + "?x=1", {"Accept": "a/b"}).status == 200, "probes are lenient"
    for path in ("/version", "/openapi.yaml"):
        wire.problem(client.get(path + "?x=1"), 400, "bad_parameter")
        wire.problem(client.get(path, {"Accept": "a/b"}), 406, "not_acceptable")


@harness.rows([("HTML", "text/html"), ("problems alone", "application/problem+json"), ("JSON", "application/json")])
def test_accept_of_a_reply_without_a_body(accept):
    client, path = create("accept")
    assert client.delete(path, {"Accept": accept}).status == 204
    wire.problem(client.delete(path, {"Accept": accept}), 404, "layer_not_found")


def test_unknown_query_of_a_call():
    client, path = create("query")
    wire.problem(client.post(path + "/train-forward?cache=true", {"x": X}), 400)
    assert client.version(path) == 1


def test_head_of_nothing():
    client = harness.shared().api()
    reply = client.request("HEAD", "/v1/layers/nowhere")
    assert reply.status == 404 and reply.body == b"", reply
    assert client.get("/livez").status == 200, "the connection is in step"


def test_expect_is_refused_without_the_body():
    """Early refusals answer Expect: 100-continue at once, and never with a 100."""
    server = harness.shared()
    create("expect")
    for target, status in (("/v1/layers/nowhere/inference", 404), ("/v1/layers/-x/inference", 400),
                           ("/v1/layers", 405)):
        with wire.connect(server) as s:
            s.sendall(b"POST %b HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" % target.encode())
            s.sendall(b"Content-Length: 9\r\n\r\n")
            raw, closed = wire.read_all(s, harness.seconds(5))
        assert wire.statuses(raw) == [status] and closed, raw


@harness.rows([(field.split(":")[0], field.encode(), want) for field, want in (
    ("Expect: 100-continue \t", 200), ("Content-Encoding: identity ", 200), ("Content-Type: application/json\t", 200),
    ("If-Match: * ", 200), ("Accept: application/json ", 200), ("Content-Length: 15 ", 400),
    ("Transfer-Encoding: chunked ", 501))])
def test_blanks_behind_a_value(field, want):
    """They are no part of it. Where libmicrohttpd takes them for one, the request is refused, and does not hang."""
    create("blank", num_features=3)
    framing = b"" if field.startswith((b"Content-Length", b"Transfer-")) else b"Content-Length: 15\r\n"
    raw, _ = wire.exchange(harness.shared(), b"POST /v1/layers/blank/inference HTTP/1.1\r\nHost: a\r\nConnection: close"
                           b"\r\n%b%b\r\n\r\n{\"x\":[[1,2,3]]}" % (framing, field))
    assert wire.statuses(raw)[:1] == [want], raw


def test_connection_close_is_kept():
    server = harness.shared()
    for headers in (b"Connection: close\r\n", b"Connection: Keep-Alive, Close\r\n"):
        raw, closed = wire.exchange(server, b"GET /livez HTTP/1.1\r\nHost: a\r\n" + headers + b"\r\n",
                                    harness.seconds(5))
        assert closed and wire.statuses(raw) == [200] and b"onnection: close" in raw, raw


def test_query_is_decoded():
    client, _ = create("q.1")
    client.put("/v1/layers/q-2", {"num_features": 1})
    for query in ("prefix=q%2e", "prefix=%71."):
        assert [layer["name"] for layer in client.ok("GET", "/v1/layers?" + query)["layers"]] == ["q.1"], query
    assert client.ok("GET", "/v1/layers?prefix=q+")["layers"] == [], "plus is a space"
    wire.problem(client.get("/v1/layers?prefix=%zz"), 400)
    wire.problem(client.get("/v1/layers?prefix=%00"), 400)


def test_keep_alive_after_refusals():
    """Small refused bodies are read, and the connection goes on or is closed; never is a body taken for a request."""
    client, path = create("alive")
    for i in range(50):
        wire.problem(client.post("/v1/layers/nowhere/inference",
                                 {"x": X, "pad": "DELETE /v1/layers/alive HTTP/1.1\r\n\r\n"}), 404)
        wire.problem(client.post(path + "/inference", {"x": [[1]]}), 422)
        assert client.infer(path, X)["version"] == 1, i


def test_chunked_body():
    server = harness.shared()
    client, path = create("chunked")
    body = b'{"x":[[1,2,3],[4,5,7]]}'
    pieces = b"".join(b"%x\r\n%b\r\n" % (1, body[i:i + 1]) for i in range(len(body)))
    with wire.connect(server) as s:
        s.sendall(b"POST %b/train-forward HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % path.encode())
        s.sendall(pieces + b"0\r\n\r\n")
        reply = wire.read_reply(s, harness.seconds(10))
        assert reply.status == 200 and reply.json["version"] == 2, reply


def test_pipelined_requests_are_answered_in_order():
    server = harness.shared()
    client, path = create("pipeline")
    one = b"POST %b/train-forward HTTP/1.1\r\nHost: a\r\nContent-Length: 23\r\n\r\n" % path.encode()
    one += b'{"x":[[1,2,3],[4,5,7]]}'
    with wire.connect(server) as s:
        s.sendall(one * 20 + b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        raw, closed = wire.read_all(s, harness.seconds(20))
    assert closed and wire.statuses(raw) == [200] * 21, raw[-300:]
    assert [int(n) for n in re.findall(rb'"version":\s*(\d+)', raw)][:20] == list(range(2, 22))


def test_http_1_0():
    raw, closed = wire.exchange(harness.shared(), b"GET /livez HTTP/1.0\r\n\r\n", harness.seconds(5))
    assert closed and wire.statuses(raw) == [200], raw


def test_half_closed_clients_are_answered():
    """The end of the stream says that the request is complete, no more; large calls go by a worker."""
    server = harness.shared()
    _, path = create("half")
    body = json.dumps({"x": X * 4000}).encode()
    assert len(body) > 16384
    for target, text in ((path + "/inference", body), (path + "/inference", b'{"x":[[1,2,3]]}')):
        for _ in range(20):
            with wire.connect(server) as s:
                s.sendall(b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" %
                          (target.encode(), len(text)) + text)
                s.shutdown(socket.SHUT_WR)
                raw, _ = wire.read_all(s, harness.seconds(20))
            assert wire.statuses(raw) == [200], raw[:300]


def test_bodies_that_break_off_hold_nothing():
    """The close often comes together with the last bytes, which libmicrohttpd does not notice."""
    server = harness.shared()
    _, path = create("broken")
    for _ in range(30):
        with wire.connect(server) as s:
            s.sendall(b"POST %b/inference HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n" % path.encode() +
                      b" " * 1000000)
    harness.wait_until(lambda: wire.sockets(server.port, False) == 0, harness.seconds(20), "the sockets to be closed")


def test_nothing_of_the_server_leaks():
    client, path = create("leak")
    texts = [client.post(path + "/train-forward", "{").body, client.get("/v1/layers/leak2").body,
             client.get("/../../etc/passwd").body]
    for text in texts:
        for word in (b".c:", harness.shared().data.encode(), b"sqlite", b"SQLITE", b"errno", b"0x7f"):
            assert word not in text, text


harness.main()
