# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol: every resource in both spellings, the three calls as infer requests in JSON and binary,
raw requests, memory, statistics, concurrency."""
import json
import math
import random
import signal
import threading
import time

import harness
import reference
import wire
from infer import DOUT, NUMBERS, SHAPE, TOLERANCE, X, close, create, infer, pack, problem, read, request, tensor

MIB = 1 << 20


# ---- server, models, repository

def test_server():
    client = harness.shared().api()
    for path in ("/v2", "/v2/"):
        got = client.ok("GET", path)
        assert got == {"name": "normd", "version": client.ok("GET", "/version")["version"],
                       "extensions": ["binary_tensor_data", "model_configuration", "parameters", "statistics"]}, got
    assert client.ok("GET", "/v2/health/live") == {"live": True}
    assert client.ok("GET", "/v2/health/ready") == {"ready": True}
    for path in ("/v2/health/live?a=b", "/v2/health/ready"):  # a probe cannot always choose what it sends
        assert client.get(path, {"Accept": "text/html"}).status == 200


@harness.rows([(f"{dtype}, axis {axis}", dtype, axis, shape) for dtype, axis, shape in (
    ("f32", 1, [-1, 3]), ("f64", -1, [-1, 3]), ("f32", 0, [3, -1]), ("f32", 2, [-1, -1, 3]), ("f64", -3, [3, -1, -1]))])
def test_models(dtype, axis, shape):
    client, model = create(dtype=dtype, channel_axis=axis)
    kind = {"f32": "FP32", "f64": "FP64"}[dtype]
    for base in (model, model + "/versions/1"):
        got = client.ok("GET", base)
        assert got == {"name": "oip", "versions": ["1"], "platform": "normd",
                       "inputs": [{"name": "x", "datatype": kind, "shape": shape}],
                       "outputs": [{"name": "y", "datatype": kind, "shape": shape}]}, got
        assert client.ok("GET", base + "/ready") == {"name": "oip", "ready": True}
        got = client.ok("GET", base + "/config")
        assert got == {"name": "oip", "platform": "normd", "backend": "normd", "max_batch_size": 0,
                       "input": [{"name": "x", "data_type": "TYPE_" + kind, "dims": shape}],
                       "output": [{"name": "y", "data_type": "TYPE_" + kind, "dims": shape}]}, got
        for path in (base, base + "/ready", base + "/config", base + "/stats"):
            got, head = client.get(path), client.request("HEAD", path)
            assert head.status == 200 and head.body == b"" and \
                head.headers["content-length"] == str(len(got.body)), (path, head)


@harness.rows([(path, path) for path in ("", "/versions/1", "/ready", "/config", "/stats", "/versions/1/ready")])
def test_no_such_model(path):
    client = harness.shared().api()
    problem(client.get("/v2/models/nobody" + path), 404, "layer_not_found", layer="nobody")
    assert client.request("HEAD", "/v2/models/nobody" + path).status == 404


@harness.rows([(path, path) for path in ("/versions/2", "/versions/0", "/versions/01", "/versions/1.0/ready",
                                         "/versions/2/config", "/versions/x/stats", "/versions/2/infer")])
def test_no_such_version(path):
    client, model = create()
    problem(client.request("POST" if "infer" in path else "GET", model + path), 404, "not_found", "version")


@harness.rows([(path, path, status, code) for path, status, code in (
    ("/v2/nothing", 404, "not_found"), ("/v2/health", 404, "not_found"), ("/v2/models", 404, "not_found"),
    ("/v2/models/.a", 400, "bad_name"), ("/v2/models/a%2Fb/ready", 400, "bad_name"), ("/v2/logging", 404, "not_found"),
    ("/v2/systemsharedmemory/status", 404, "not_found"), ("/v2?a=b", 400, "bad_parameter"))])
def test_errors_have_the_member_error(path, status, code):
    wire.problem(harness.shared().api().get(path), status, code, oip=True)


def test_more_errors_with_it():
    client, model = create()
    reply = client.get(model + "/infer")
    problem(reply, 405, "method_not_allowed")
    assert reply.headers["allow"] == "POST", reply.headers
    problem(client.get(model, {"Accept": "text/html"}), 406, "not_acceptable")
    wire.problem(client.post("/v2/repository/index", "{", {"Content-Type": None}), 400, "malformed_json", oip=True)
    # Refused before the body is read, so that the reply is written beside the HTTP library.
    problem(client.post("/v2/models/nobody/infer", b"x" * 4096), 404, "layer_not_found", layer="nobody")
    server = harness.shared()
    with wire.connect(server) as s:
        s.sendall(b"POST /v2/models/oip/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab")
        wire.problem(wire.read_reply(s, harness.seconds(10)), 400, "bad_framing", oip=True)


def test_a_body_that_does_not_come():
    """408 has the member too; what follows on another path does not."""
    with harness.Server("--durability", "none", "--request-timeout", "1s") as server:
        server.api().layer("oip")
        for path, oip in (("/v2/models/oip/infer", True), ("/v1/layers/oip/inference", False)):
            with wire.connect(server) as s:
                s.sendall(f"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\nPOST {path} HTTP/1.1\r\nHost: a\r\n"
                          "Content-Length: 9\r\n\r\n{".encode())
                got, closed = wire.read_all(s, harness.seconds(20))
                assert closed and wire.statuses(got) == [200, 408], got
                body = json.loads(got.split(b"\r\n\r\n")[-1])
                assert body["code"] == "body_timeout" and ("error" in body) == oip, body


def test_repository():
    client, model = create()
    names = [layer["name"] for layer in client.ok("GET", "/v1/layers?limit=1000")["layers"]]
    want = [{"name": name, "version": "1", "state": "READY", "reason": ""} for name in names]
    for body, kind in ((None, None), (b"", None), (b"{}", "application/octet-stream"), (b'{"ready":true}', "text/plain"),
                       (b'{"ready":false}', "application/json")):
        assert client.ok("POST", "/v2/repository/index", body, {"Content-Type": kind}) == want
    wire.problem(client.post("/v2/repository/index", b'{"Ready":true}'), 400, "unknown_field", "/Ready", oip=True)
    before = client.version("/v1/layers/oip")
    for body in (None, b"{}", b'{"parameters":{}}'):
        assert client.ok("POST", "/v2/repository/models/oip/load", body) == {}
    problem(client.post("/v2/repository/models/oip/load", {"parameters": {"config": "{}"}}), 422,
            "not_supported_by_layer", "PUT", pointer="/parameters/config")
    problem(client.post("/v2/repository/models/oip/load", {"parameters": {"confg": "{}"}}), 400, "unknown_field",
            pointer="/parameters/confg")
    problem(client.post("/v2/repository/models/oip/unload", {"parameters": {"unload_dependents": False}}), 501,
            "not_built", "DELETE")
    for action in ("load", "unload"):
        problem(client.post(f"/v2/repository/models/nobody/{action}", b"{}"), 404, "layer_not_found", layer="nobody")
    assert client.version("/v1/layers/oip") == before


def test_drain():
    """An infer request that is under way is finished."""
    body, headers = request([tensor("x", SHAPE, X, binary=True)], parameters={"mode": "train-forward"})
    head = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    with harness.Server("--drain-timeout", "20s") as server:
        server.api().layer("oip")
        with wire.connect(server) as s:
            s.sendall(f"POST /v2/models/oip/infer HTTP/1.1\r\nHost: a\r\n{head}Expect: 100-continue\r\n"
                      f"Content-Length: {len(body)}\r\n\r\n".encode())
            s.settimeout(harness.seconds(10))
            assert s.recv(1000).startswith(b"HTTP/1.1 100"), "the call has begun"
            server.signal(signal.SIGTERM)
            harness.wait_until(lambda: "draining" in server.stderr(), what="the drain")
            s.sendall(body)
            assert read(wire.read_reply(s, harness.seconds(10)))[0]["parameters"]["state_version"] == 2
        assert server.wait() == 0


# ---- the three calls

@harness.rows([(f"{datatype}, {dtype} layer, {'binary' if binary else 'nested' if nested else 'flat'} in, "
                f"{'binary' if out else 'JSON'} out", datatype, dtype, binary, nested, out)
               for datatype in NUMBERS for dtype in ("f32", "f64")
               for binary, nested in ((True, False), (False, False), (False, True)) for out in (True, False)])
def test_calls(datatype, dtype, binary, nested, out):
    """Against an independent computation, at any alignment of the tensors."""
    client, model = create(dtype=dtype)
    tolerance = TOLERANCE[datatype] if dtype == "f32" else {"FP64": 1e-14}.get(datatype, TOLERANCE[datatype])
    x = reference.nest(X, SHAPE)
    parameters = {"binary_data_output": out}
    for pad in range(4):
        document, outputs = infer(client, model, [tensor("x", SHAPE, X, datatype, binary, nested)], pad=pad,
                                  parameters=parameters, id=f"no. {pad}")
        assert {k: document[k] for k in ("model_name", "model_version", "id", "parameters")} == {
            "model_name": "oip", "model_version": "1", "id": f"no. {pad}", "parameters": {"state_version": 1}}, document
        assert list(outputs) == ["y"] and outputs["y"][:2] == (datatype, SHAPE), outputs
        want = reference.normalize(x, 1, [0] * 3, [1] * 3, 1e-5)
        close(outputs["y"][2], reference.flatten(want), tolerance)
    document, outputs = infer(client, model, [tensor("x", SHAPE, X, datatype, binary, nested)],
                              parameters={**parameters, "mode": "train-forward", "cache": True})
    y, mean, var = reference.train(x)
    cache = document["parameters"].pop("cache")
    assert document["parameters"] == {"state_version": 2, "count": 4, "updated": True, "num_batches_tracked": 1}, document
    assert "id" not in document and list(outputs) == ["y", "batch_mean", "batch_var"], document
    assert outputs["y"][:2] == (datatype, SHAPE), outputs
    close(outputs["y"][2], reference.flatten(y), tolerance)
    for name, values in (("batch_mean", mean), ("batch_var", var)):
        assert outputs[name][:2] == ("FP64", [3]), outputs
        close(outputs[name][2], values, 1e-15, 0)
    dx, dgamma, dbeta = reference.backward(x, reference.nest(DOUT, SHAPE))
    dout = tensor("dout", SHAPE, DOUT, datatype, binary, nested)
    for inputs, more in (([dout], {"cache": cache}), ([tensor("x", SHAPE, X, datatype, binary, nested), dout], {})):
        document, outputs = infer(client, model, inputs, parameters={**parameters, "mode": "backward", **more})
        assert document["parameters"] == {"state_version": 2} and list(outputs) == ["dx", "dgamma", "dbeta"], document
        assert outputs["dx"][:2] == (datatype, SHAPE) and outputs["dgamma"][:2] == ("FP64", [3]), outputs
        close(outputs["dx"][2], reference.flatten(dx), tolerance)
        close(outputs["dgamma"][2], dgamma, 1e-6)
        close(outputs["dbeta"][2], dbeta, 1e-6)


def test_the_numbers_are_those_of_v1():
    """To the last bit, and both count in the same counters and versions."""
    rng = random.Random(11)
    values = [wire.f32(rng.uniform(-3, 3)) for _ in range(50 * 3)]
    client, model = create()
    path, x = "/v1/layers/oip", reference.nest(values, [50, 3])
    want = client.infer(path, x)
    for binary in (True, False):
        _, outputs = infer(client, model, [tensor("x", [50, 3], values, "FP32", binary)],
                           parameters={"binary_data_output": binary})
        assert outputs["y"][2] == [wire.f32(v) for v in reference.flatten(want["y"])] or binary is False, binary
        assert [wire.f32(v) for v in outputs["y"][2]] == [wire.f32(v) for v in reference.flatten(want["y"])]
    client.train(path, x)
    first = client.state(path)
    client.ok("PUT", path + "/state", {"gamma": [1] * 3, "beta": [0] * 3, "running_mean": [0] * 3,
                                       "running_var": [1] * 3, "num_batches_tracked": 0})
    infer(client, model, [tensor("x", [50, 3], values, "FP32", True)], parameters={"mode": "train-forward"})
    second = client.state(path)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert wire.bits(first[name]) == wire.bits(second[name]), name
    assert second["version"] == 4, second
    counters = client.ok("GET", path)["counters"]
    assert counters == {"train_forward": 2, "inference": 3, "backward": 0, "skipped": 0}, counters


def test_any_axis_activation_and_residual():
    client, model = create()
    values, shape = X, [2, 2, 3]
    x, residual = reference.nest(values, shape), reference.nest(DOUT, shape)
    inputs = [tensor("residual", shape, DOUT, "FP64"), tensor("x", shape, values, binary=True)]
    parameters = {"channel_axis": -1, "activation": "relu"}
    _, outputs = infer(client, model, inputs, parameters=parameters)
    plain = reference.normalize(x, -1, [0] * 3, [1] * 3, 1e-5)
    close(outputs["y"][2], reference.flatten(reference.post(plain, "relu", residual)), 1e-6)
    y, _, _ = reference.train(x, -1)
    document, outputs = infer(client, model, inputs, parameters={**parameters, "mode": "train-forward", "cache": True})
    close(outputs["y"][2], reference.flatten(reference.post(y, "relu", residual)), 1e-6)
    masked = reference.masked(residual, y, "relu", residual)
    dx, dgamma, dbeta = reference.backward(x, masked, -1)
    dout = tensor("dout", shape, DOUT, "FP32", True)
    for more, pass_ in (([], {"cache": document["parameters"]["cache"]}), (inputs, parameters)):
        _, outputs = infer(client, model, [dout, *more], parameters={"mode": "backward", **pass_})
        assert list(outputs) == ["dx", "dgamma", "dbeta", "dresidual"], outputs
        close(outputs["dx"][2], reference.flatten(dx), 1e-5)
        close(outputs["dgamma"][2], dgamma, 1e-5)
        close(outputs["dbeta"][2], dbeta, 1e-5)
        assert outputs["dresidual"][2] == reference.flatten(masked), outputs


def test_frozen_and_step():
    client, model = create()
    path = "/v1/layers/oip"
    x, dout = reference.nest(X, SHAPE), reference.nest(DOUT, SHAPE)
    inputs = [tensor("x", SHAPE, X, binary=True), tensor("dout", SHAPE, DOUT)]
    _, outputs = infer(client, model, inputs, parameters={"mode": "backward", "frozen": True})
    dx, dgamma, dbeta = reference.backward(x, dout, stats=([0] * 3, [1] * 3))
    close(outputs["dx"][2], reference.flatten(dx), 1e-6)
    reply = client.post(model + "/infer", *request(inputs, parameters={"mode": "backward", "lr": 0.5,
                                                                       "weight_decay": 0.25, "frozen": True}))
    document, outputs = read(reply)
    assert document["parameters"] == {"state_version": 2} and reply.headers["etag"].startswith('"2-'), reply.headers
    state = client.state(path)
    close(state["gamma"], [1 - 0.5 * (g + 0.25) for g in dgamma], 1e-6)
    close(state["beta"], [-0.5 * b for b in dbeta], 1e-6)
    assert client.state(path)["version"] == 2


def test_outputs_are_those_asked_for():
    """A subset, in the order of the request, each in its own form."""
    client, model = create()
    _, outputs = infer(client, model, [tensor("x", SHAPE, X)], parameters={"mode": "train-forward",
                                                                           "binary_data_output": True},
                       outputs=[{"name": "batch_var"}, {"name": "y", "parameters": {"binary_data": False}}])
    assert list(outputs) == ["batch_var", "y"], outputs
    _, outputs = infer(client, model, [tensor("x", SHAPE, X), tensor("dout", SHAPE, DOUT)],
                       parameters={"mode": "backward"},
                       outputs=[{"name": "dresidual"}, {"name": "dbeta", "parameters": {"binary_data": True}}])
    assert outputs["dresidual"] == ("FP64", [0], []) and list(outputs) == ["dresidual", "dbeta"], outputs
    close(outputs["dbeta"][2], [sum(DOUT[c::3]) for c in range(3)], 1e-12)


def test_empty_and_single():
    client, model = create()
    for binary in (True, False):
        document, outputs = infer(client, model, [tensor("x", [0, 3], [], "FP16", binary)],
                                  parameters={"mode": "train-forward", "binary_data_output": binary})
        assert document["parameters"] == {"state_version": 1, "count": 0, "updated": False,
                                          "num_batches_tracked": 0}, document
        assert outputs == {"y": ("FP16", [0, 3], []), "batch_mean": ("FP64", [0], []),
                           "batch_var": ("FP64", [0], [])}, outputs
    reply = client.post(model + "/infer", *request([tensor("x", [1, 3], X[:3])], parameters={"mode": "train-forward"}))
    problem(reply, 422, "single_value", "one value per channel", pointer="/inputs/0")
    client, model = create("plain", affine=False)
    _, outputs = infer(client, model, [tensor("x", SHAPE, X), tensor("dout", SHAPE, DOUT)],
                       parameters={"mode": "backward"})
    assert outputs["dgamma"] == outputs["dbeta"] == ("FP64", [0], []), outputs


def test_values_that_are_not_finite():
    client, model = create(nonfinite="propagate")
    values = [1.0, 2.0, 3.0, 4.0, 5.0, "NaN", 7.0, "-Infinity", 9.0]
    _, outputs = infer(client, model, [tensor("x", [3, 3], values, "FP16")])
    assert [v for v in outputs["y"][2] if isinstance(v, str)] == ["NaN", "-Infinity"], outputs
    body, headers = request([tensor("x", [3, 3], [math.nan] * 9, binary=True)])
    assert all(v != v for v in infer(client, model, [tensor("x", [3, 3], [math.nan] * 9, binary=True)],
                                     parameters={"binary_data_output": True})[1]["y"][2])
    client, model = create()
    problem(client.post(model + "/infer", body, headers), 422, "non_finite", "element 0", pointer="/inputs/0")


def test_empty_id_and_repeated_path():
    client, model = create()
    document, _ = infer(client, model + "/versions/1", [tensor("x", SHAPE, X)], id="", model_name="oip",
                        model_version="1")
    assert document["id"] == "", document
    document, _ = infer(client, model, [tensor("x", SHAPE, X)], id='\u00e9"\\\n\U0001f600')
    assert document["id"] == '\u00e9"\\\n\U0001f600', document


def test_labels_do_not_matter():
    client, model = create()
    plain, binary = request([tensor("x", SHAPE, X)]), request([tensor("x", SHAPE, X, binary=True)])
    for kind in (None, "application/json", "application/octet-stream", "application/x-www-form-urlencoded", "text/plain",
                 "application/x-npy"):
        for body, headers in (plain, binary):
            read(client.post(model + "/infer", body, {**headers, "Content-Type": kind, "Accept": "text/html"}))
    # A page of another origin may send some labels without asking first.
    for kind in (None, "text/plain", "application/x-www-form-urlencoded"):
        problem(client.post(model + "/infer", plain[0], {"Content-Type": kind, "Origin": "http://a.example"}), 415,
                "unsupported_media_type", "Origin")
    for kind in ("application/json", "application/octet-stream"):
        read(client.post(model + "/infer", plain[0], {"Content-Type": kind, "Origin": "http://a.example"}))


def test_if_match_and_idempotency_key():
    client, model = create()
    body, headers = request([tensor("x", SHAPE, X)], parameters={"mode": "train-forward"})
    tag = client.get("/v1/layers/oip").headers["etag"]
    reply = client.post(model + "/infer", body, {**headers, "If-Match": tag})
    assert reply.status == 200 and reply.headers["etag"] != tag, reply
    problem(client.post(model + "/infer", body, {**headers, "If-Match": tag}), 412, "precondition_failed")
    for path in (model + "/infer", "/v2/repository/models/oip/load"):
        problem(client.post(path, body, {"Idempotency-Key": '"a"'}), 501, "not_built", "idempotency")
    assert client.version("/v1/layers/oip") == 2


def test_timeout():
    """A deadline of the client's own; nothing is changed after it."""
    client, model = create()
    values = [float(i % 5) for i in range(30000)]
    for parameters in ({}, {"cache": True}):
        body, headers = request([tensor("x", [10000, 3], values)],
                                parameters={"mode": "train-forward", "timeout": 1, **parameters})
        problem(client.post(model + "/infer", body, headers), 504, "deadline", "nothing was changed")
        layer = client.ok("GET", "/v1/layers/oip")
        assert layer["version"] == 1 and layer["memory"]["cache_bytes"] == 0, layer
    infer(client, model, [tensor("x", SHAPE, X)], parameters={"timeout": 60_000_000})


def test_gone():
    client, model = create()
    reply = client.post(model + "/infer", *request([tensor("dout", SHAPE, DOUT)],
                                                   parameters={"mode": "backward", "cache": "gone"}))
    problem(reply, 410, "cache_gone", "send x", pointer="/parameters/cache")


# ---- raw requests

@harness.rows([(f"axis {axis}, {dtype}", axis, dtype, shape) for axis, dtype, shape in (
    (1, "f32", [4, 3]), (-1, "f64", [4, 3]), (0, "f32", [3, 4]), (-2, "f64", [3, 4]))])
def test_raw(axis, dtype, shape):
    client, model = create(channel_axis=axis, dtype=dtype)
    kind = {"f32": "FP32", "f64": "FP64"}[dtype]
    head = {"Inference-Header-Content-Length": "0", "Content-Type": None}
    document, outputs = read(client.post(model + "/infer", pack(X, kind), head))
    assert document["parameters"] == {"state_version": 1} and outputs["y"][:2] == (kind, shape), document
    assert outputs == infer(client, model, [tensor("x", shape, X, kind, True)],
                            parameters={"binary_data_output": True})[1]
    assert read(client.post(model + "/infer", b"", head))[1]["y"][2] == []
    problem(client.post(model + "/infer", pack(X, kind)[:-1], head), 400, "malformed_file", "rows")


def test_raw_that_cannot_be():
    client, model = create(channel_axis=2)
    head = {"Inference-Header-Content-Length": "0"}
    problem(client.post(model + "/infer", pack(X, "FP32"), head), 422, "shape_mismatch", "2 axes")


# ---- memory, statistics, concurrency

@harness.rows([("FP32", "FP32", "f32"), ("FP64 narrowed", "FP64", "f32"), ("FP64", "FP64", "f64")])
def test_memory_is_about_the_body(datatype, dtype):
    """A binary inference needs hardly more than its body: it is computed and sent where it arrived."""
    channels, size = 64, harness.scaled(8 * MIB, MIB)
    rows = size // channels // NUMBERS[datatype][1]
    raw = pack([1.5], datatype) * (rows * channels)
    entry = {"name": "x", "shape": [rows, channels], "datatype": datatype,
             "parameters": {"binary_data_size": len(raw)}}
    body, headers = request([(entry, raw)], parameters={"binary_data_output": True})
    with harness.Server("--durability", "none", "--memory-budget", str(int(1.2 * len(body)))) as server:
        client = server.api()
        client.layer("big", num_features=channels, dtype=dtype)
        reply = client.post("/v2/models/big/infer", body, headers)
        assert reply.status == 200 and len(reply.body) >= len(raw), reply
        body, headers = request([(entry, raw)], parameters={"binary_data_output": True, "mode": "train-forward"})
        problem(client.post("/v2/models/big/infer", body, headers), 413, "body_too_large", layer="big")


def test_statistics():
    client, model = create()
    def stats():
        got = client.ok("GET", model + "/stats")["model_stats"]
        assert len(got) == 1 and got[0]["name"] == "oip" and got[0]["version"] == "1", got
        return got[0]
    first = stats()
    assert first["last_inference"] == first["inference_count"] == 0 and first["batch_stats"] == [], first
    assert all(v == {"count": 0, "ns": 0} for v in first["inference_stats"].values()), first
    assert set(first["inference_stats"]) == {"success", "fail", "queue", "compute_input", "compute_infer",
                                             "compute_output", "cache_hit", "cache_miss"}, first
    began = time.time()
    for _ in range(3):
        infer(client, model, [tensor("x", SHAPE, X)])
    client.train("/v1/layers/oip", reference.nest(X, SHAPE))
    client.backward("/v1/layers/oip", reference.nest(DOUT, SHAPE), x=reference.nest(X, SHAPE))
    for path in (model + "/infer", "/v1/layers/oip/inference"):
        assert client.post(path, b"{").status == 400
    for headers in ({"Origin": "http://a", "Content-Type": "text/plain"}, {"If-Match": '"other"'}):  # with the head
        assert client.post(model + "/infer", b"{", headers).status in (412, 415)
    spent = (time.time() - began) * 1e9
    second = stats()
    times = second["inference_stats"]
    assert second["inference_count"] == second["execution_count"] == 5, second
    assert [times[k]["count"] for k in ("success", "queue", "compute_input", "compute_infer", "compute_output")] == \
        [5] * 5, times
    assert times["fail"]["count"] == 2 and times["fail"]["ns"] > 0, times
    assert times["cache_hit"] == times["cache_miss"] == {"count": 0, "ns": 0}, times
    for name in ("success", "compute_input", "compute_infer", "compute_output"):
        assert times[name]["ns"] > 0, times
    parts = sum(times[k]["ns"] for k in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert parts <= times["success"]["ns"] <= spent, (parts, times, spent)
    assert began * 1000 - 1 <= second["last_inference"] <= time.time() * 1000 + 1, second
    memory = client.ok("GET", "/v1/layers/oip")["memory"]
    assert second["memory_usage"] == [{"type": "CPU", "id": 0, "byte_size": sum(memory.values())}], second
    everything = client.ok("GET", "/v2/models/stats")["model_stats"]
    assert second in everything and [s["name"] for s in everything] == sorted(s["name"] for s in everything)
    client, model = create()  # a new layer of the name begins at 0
    assert stats() == first


def test_a_layer_named_stats():
    client, model = create("stats")
    assert "model_stats" in client.ok("GET", model)
    assert client.ok("GET", model + "/versions/1")["name"] == "stats"
    client.delete("/v1/layers/stats")


def test_chunked():
    """curl sends chunks; the length of the JSON says where the tensors are."""
    server = harness.shared()
    client, _ = create()
    body, headers = request([tensor("x", SHAPE, X, binary=True)], parameters={"binary_data_output": True})
    head = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    with wire.connect(server) as s:
        s.sendall(f"POST /v2/models/oip/infer HTTP/1.1\r\nHost: a\r\n{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for i in range(0, len(body), 17):
            piece = body[i:i + 17]
            s.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        s.sendall(b"0\r\n\r\n")
        close(read(wire.read_reply(s, harness.seconds(10)))[1]["y"][2], X, 1e-4)


def test_the_limit_of_a_body():
    """A body of exactly --max-body is taken, whatever its JSON's length makes of its alignment."""
    with harness.Server("--durability", "none", "--max-body", "64K") as server:
        client = server.api()
        client.layer("oip")
        for extra in range(0, 3):
            body, headers = request([tensor("x", [5000, 3], [1.0] * 15000, binary=True)],
                                    parameters={"binary_data_output": True})
            spare = 65536 + extra - len(body)
            body, headers = request([tensor("x", [5000, 3], [1.0] * 15000, binary=True)], pad=spare,
                                    parameters={"binary_data_output": True})
            reply = client.post("/v2/models/oip/infer", body, headers)
            assert len(body) == 65536 + extra and reply.status == (200 if extra == 0 else 413), (extra, reply)


def test_concurrent_train_forwards():
    """Each is applied exactly once, in both spellings and beside those of /v1."""
    client, model = create()
    count, threads = harness.scaled(30, 5), 4
    versions, lock = [], threading.Lock()

    def work(number):
        own = harness.shared().api()
        for i in range(count):
            if (number + i) % 3 == 0:
                version = own.train("/v1/layers/oip", reference.nest(X, SHAPE))["version"]
            else:
                path = model + ("/versions/1" if i % 2 else "")
                document, _ = infer(own, path, [tensor("x", SHAPE, X, binary=i % 2 == 0)],
                                    parameters={"mode": "train-forward"})
                version = document["parameters"]["state_version"]
            with lock:
                versions.append(version)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(versions) == list(range(2, 2 + count * threads)), sorted(versions)
    assert client.state("/v1/layers/oip")["num_batches_tracked"] == count * threads


if __name__ == "__main__":
    harness.main()
