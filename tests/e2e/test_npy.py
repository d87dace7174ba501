# SPDX-License-Identifier: Apache-2.0
"""npy bodies on the three calls: the same numbers as JSON, in every type, order and version; options in the query,
scalars in the head; hostile files; memory."""
import io
import os
import random
import subprocess

import files
import harness
import reference
import wire

NPY = {"Content-Type": files.NPY}
X = [1.0, 2.5, -0.75, 4.0, 0.5, -3.0, 8.0, 0.25, -1.0, 2.0, 1.5, 6.0]  # exact in every type
DOUT = [0.5, -1.0, 2.0, 1.0, 0.0, 0.25, -0.5, 1.5, 3.0, -2.0, 1.0, 0.125]
SHAPE = [4, 3]
MIB = 1 << 20


def create(name, **config):
    client = harness.shared().api()
    client.delete("/v1/layers/" + name)
    return client, client.layer(name, **config)


def post(client, path, body, headers=None, status=200):
    reply = client.post(path, body, {**NPY, **(headers or {})})
    assert reply.status == status, reply
    if status == 200:
        assert reply.headers["content-type"] == (headers or {}).get("Accept", files.NPY), reply.headers
    return reply


def close(got, want, tolerance):
    for a, b in zip(got, want):
        assert abs(a - b) <= abs(b) * tolerance + 1e-30, (a, b)


TYPES = [("<f2", 2 ** -11), ("<f4", 2 ** -24), ("<f8", 0), (">f2", 2 ** -11), (">f4", 2 ** -24), (">f8", 0),
         ("|V2", 2 ** -8)]


@harness.rows([(f"{descr}, {dtype} layer{', Fortran' if fortran else ''}", descr, dtype, fortran, tolerance)
               for descr, tolerance in TYPES for dtype in ("f32", "f64") for fortran in (False, True)])
def test_calls_agree_with_json(descr, dtype, fortran, tolerance):
    client, path = create("agree", num_features=3, dtype=dtype)
    query = "?dtype=bf16" if descr == "|V2" else ""
    if dtype == "f32":
        tolerance = max(tolerance, 2 ** -24)
    x = reference.nest(X, SHAPE)
    body = files.npy(SHAPE, X, descr, fortran)
    want = client.infer(path, x)
    got = files.read_npy(post(client, path + "/inference" + query, body).body)
    assert got[:2] == (descr, SHAPE), got
    close(got[2], reference.flatten(want["y"]), tolerance)
    want = client.train(path, x, cache=True)
    client.ok("PUT", path + "/state", {"gamma": [1] * 3, "beta": [0] * 3, "running_mean": [0] * 3,
                                       "running_var": [1] * 3, "num_batches_tracked": 0})
    reply = post(client, path + "/train-forward" + query + ("&" if query else "?") + "cache=true", body)
    got = files.read_npy(reply.body)
    assert got[:2] == (descr, SHAPE), got
    close(got[2], reference.flatten(want["y"]), tolerance)
    heads = {k: v for k, v in reply.headers.items() if k.startswith("normd-")}
    cache = heads.pop("normd-cache")
    assert heads == {"normd-version": "4", "normd-count": "4", "normd-updated": "true",
                     "normd-num-batches-tracked": "1"}, heads
    assert reply.headers["etag"].startswith('"4-'), reply.headers
    want = client.backward(path, reference.nest(DOUT, SHAPE), cache=want["cache"])
    body = files.npy(SHAPE, DOUT, descr, fortran)
    reply = post(client, f"{path}/backward{query}{'&' if query else '?'}cache={cache}", body)
    got = files.read_npy(reply.body)
    assert got[:2] == (descr, SHAPE) and reply.headers["normd-version"] == "4", got
    # dx is small beside what it is a difference of
    for a, b in zip(got[2], reference.flatten(want["dx"])):
        assert abs(a - b) <= abs(b) * tolerance + 1e-7, (a, b)


@harness.rows([(f"version {version}, header to {align}", version, align) for version in (1, 2, 3)
               for align in (1, 16, 64)])
def test_versions_and_alignments(version, align):
    client, path = create("versions", num_features=3)
    want = files.read_npy(post(client, path + "/inference", files.npy(SHAPE, X)).body)
    for literal in (None, "{'shape': (4,3), 'descr': '<f4', 'fortran_order': False}",
                    '{"fortran_order":False,"shape":(4L,3L,),"descr":"<f4"}'):
        body = files.npy(SHAPE, X, version=version, align=align, literal=literal)
        assert files.read_npy(post(client, path + "/inference", body).body) == want


def test_bits_are_those_of_base64():
    """npy and base64 carry the same bits, both ways."""
    import base64
    import struct
    rng = random.Random(5)
    values = [wire.f32(rng.uniform(-3, 3)) for _ in range(5 * 7 * 3)]
    client, path = create("bits", num_features=7)
    for call in ("inference", "train-forward"):
        raw = struct.pack(f"<{len(values)}f", *values)
        want = client.ok("POST", f"{path}/{call}", {"x": {"shape": [5, 7, 3], "dtype": "f32",
                                                          "base64": base64.b64encode(raw).decode()}})
        got = post(client, f"{path}/{call}", files.npy([5, 7, 3], values)).body
        assert got[-len(raw):] == base64.b64decode(want["y"]["base64"]), call


def test_options():
    client, path = create("options", num_features=2)
    x, shape = X, [2, 3, 2]
    nested = reference.nest(x, shape)
    body = files.npy(shape, x, "<f8")
    want = client.infer(path, nested, channel_axis=-1, activation="relu")["y"]
    got = files.read_npy(post(client, path + "/inference?channel_axis=-1&activation=relu", body).body)[2]
    assert [wire.f32(v) for v in got] == [wire.f32(v) for v in reference.flatten(want)], (got, want)
    reply = post(client, path + "/train-forward?channel_axis=2&cache=false", body)
    assert "normd-cache" not in reply.headers, reply.headers
    cache = post(client, path + "/train-forward?channel_axis=2&cache=true", body).headers["normd-cache"]
    before = client.state(path)
    post(client, f"{path}/backward?cache={cache}&step_lr=0.5&step_weight_decay=0.25", body)
    after = client.state(path)
    assert after["version"] == before["version"] + 1 and after["beta"] != before["beta"], after
    want = client.backward(path, nested, cache=cache, mode="inference")["dx"]
    got = files.read_npy(post(client, f"{path}/backward?cache={cache}&mode=inference", body).body)[2]
    assert [wire.f32(v) for v in got] == [wire.f32(v) for v in reference.flatten(want)], (got, want)


def test_residual_of_a_pass():
    """The pass has a residual: dx comes as npy, dresidual is left out."""
    client, path = create("residual", num_features=3)
    x = reference.nest(X, SHAPE)
    cache = client.train(path, x, residual=x, activation="relu", cache=True)["cache"]
    want = client.backward(path, reference.nest(DOUT, SHAPE), cache=cache)
    for descr in ("<f4", "<f8", ">f8"):
        reply = post(client, f"{path}/backward?cache={cache}", files.npy(SHAPE, DOUT, descr))
        got = files.read_npy(reply.body)
        assert got[1] == SHAPE and [wire.f32(v) for v in got[2]] == [wire.f32(v)
                                                                   for v in reference.flatten(want["dx"])], got


def test_a_layer_that_does_not_track():
    client, path = create("untracked", num_features=3, track_running_stats=False)
    reply = post(client, path + "/train-forward", files.npy(SHAPE, X))
    heads = {k: v for k, v in reply.headers.items() if k.startswith("normd-")}
    assert heads == {"normd-version": "1", "normd-count": "4", "normd-updated": "false"}, heads


@harness.rows([("(0, 3)", [0, 3]), ("(2, 3, 0)", [2, 3, 0]), ("(0,)", [0])])
def test_empty(shape):
    client, path = create("empty", num_features=3)
    for call in ("inference", "train-forward"):
        reply = post(client, f"{path}/{call}", files.npy(shape, []))
        assert files.read_npy(reply.body) == ("<f4", shape, []), reply
    assert reply.headers["normd-updated"] == "false" and client.version(path) == 1, reply.headers


# ---- media types

def test_without_content_type():
    """curl --data-binary @x.npy says that it is a form; the file says that it is none."""
    client, path = create("curl", num_features=3)
    body = files.npy(SHAPE, X)
    want = post(client, path + "/inference", body).body
    for kind in (None, "application/x-www-form-urlencoded"):
        reply = client.post(path + "/inference", body, {"Content-Type": kind})
        assert reply.status == 200 and reply.headers["content-type"] == files.NPY and reply.body == want, reply
        reply = client.post(path + "/inference", body, {"Content-Type": kind, "Accept": "application/json"})
        assert reply.status == 200 and reply.headers["content-type"] == "application/json", reply
        reply = client.post(path + "/inference", {"x": reference.nest(X, SHAPE)}, {"Content-Type": kind})
        assert reply.status == 200 and reply.headers["content-type"] == "application/json", reply
        wire.problem(client.post(path + "/inference", body, {"Content-Type": kind, "Origin": "http://a.example"}), 415)
    wire.problem(client.post(path + "/inference", body), 400, "malformed_json")  # labelled as JSON
    wire.problem(client.patch(path, body, {"Content-Type": None}), 400, "malformed_json")


@harness.rows([
    ("nothing", None, files.NPY), ("any", "*/*", files.NPY), ("range", "application/*", files.NPY),
    ("JSON", "application/json", "application/json"), ("npy", files.NPY, files.NPY),
    ("JSON rather", "application/x-npy;q=0.5, application/json", "application/json"),
    ("npy rather", "application/json;q=0.5, application/x-npy;q=0.8", files.NPY),
    ("both alike", "application/json, application/x-npy", files.NPY),
    ("anything but npy", "*/*, application/x-npy;q=0", "application/json"),
    ("HTML first", "text/html, */*;q=0.1", files.NPY), ("HTML", "text/html", None), ("none", "*/*;q=0", None),
])
def test_accept(accept, want):
    client, path = create("accept", num_features=3)
    headers = {**NPY, "Accept": accept}
    reply = client.post(path + "/inference", files.npy(SHAPE, X), headers)
    if want is None:
        wire.problem(reply, 406, "not_acceptable")
    else:
        assert reply.status == 200 and reply.headers["content-type"] == want, (reply, reply.headers)


def test_the_other_way_round():
    """JSON in, npy out, and npy in, JSON out, where there is room for everything."""
    client, path = create("other", num_features=3)
    x = reference.nest(X, SHAPE)
    want = client.infer(path, x)["y"]
    reply = client.post(path + "/inference", {"x": x}, {"Accept": files.NPY})
    assert files.read_npy(reply.body) == ("<f4", SHAPE, [wire.f32(v) for v in reference.flatten(want)]), reply
    for kind, descr in (("f64", "<f8"), ("f16", "<f2"), ("bf16", "|V2")):
        raw = {"f64": lambda v: files.elements(v, "<f8"), "f16": lambda v: files.elements(v, "<f2"),
               "bf16": files.bf16}[kind](X)
        import base64
        body = {"x": {"shape": SHAPE, "dtype": kind, "base64": base64.b64encode(raw).decode()}}
        for call in ("inference", "train-forward"):
            reply = client.post(f"{path}/{call}", body, {"Accept": files.NPY})
            want = base64.b64decode(client.ok("POST", f"{path}/{call}", body)["y"]["base64"])
            assert reply.body[-len(want):] == want and files.read_npy(reply.body)[0] == descr, (kind, call, reply)
    reply = client.post(path + "/inference", {"x": []}, {"Accept": files.NPY})
    assert files.read_npy(reply.body) == ("<f4", [0], []), reply
    want = client.train(path, x)
    for descr in ("<f4", "<f8", "<f2", ">f4"):
        reply = post(client, path + "/train-forward", files.npy(SHAPE, X, descr), {"Accept": "application/json"})
        got = reply.json
        assert {k: got[k] for k in ("y", "batch_mean", "batch_var", "count", "updated")} == \
            {k: want[k] for k in ("y", "batch_mean", "batch_var", "count", "updated")}, got
        assert not [k for k in reply.headers if k.startswith("normd-")], reply.headers


def test_bf16_by_content_type():
    client, path = create("bf16", num_features=3)
    body = files.npy(SHAPE, X, "|V2")
    want = post(client, path + "/inference?dtype=bf16", body).body
    for kind in ("application/x-npy; dtype=bf16", 'application/x-npy;dtype="bf16"', "application/x-npy; a=b;Dtype=BF16"):
        reply = client.post(path + "/inference", body, {"Content-Type": kind})
        assert reply.status == 200 and reply.body == want, (kind, reply)
    for kind in ("application/x-npy", "application/x-npy; dtype=bf161", "application/x-npy; xdtype=bf16"):
        wire.problem(client.post(path + "/inference", body, {"Content-Type": kind}), 422, "wrong_type")


# ---- refusals

def header(shape, descr="<f4", fortran="False"):
    return f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}"


@harness.rows([
    ("nothing", b"", 400, "malformed_file"),
    ("JSON", b'{"x": [[1, 2, 3]]}', 400, "malformed_file"),
    ("magic alone", b"\x93NUMPY", 400, "malformed_file"),
    ("a later version", files.npy(SHAPE, X, version=1).replace(b"\x01\x00", b"\x04\x00", 1), 400, "malformed_file"),
    ("header of 4 GiB", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", 400, "malformed_file"),
    ("truncated", files.npy(SHAPE, X)[:-1], 400, "malformed_file"),
    ("a byte too many", files.npy(SHAPE, X) + b"\0", 400, "malformed_file"),
    ("no header", files.npy(SHAPE, X, literal=""), 400, "malformed_file"),
    ("a header that is code", files.npy(SHAPE, X, literal="__import__('os').abort()"), 400, "malformed_file"),
    ("shape that overflows", files.npy(SHAPE, X, literal=header("(4611686018427387904, 3)")), 422, "shape_mismatch"),
    ("shape of 10^30", files.npy(SHAPE, X, literal=header("(1" + 30 * "0" + ", 3)")), 422, "shape_mismatch"),
    ("rank 0", files.npy([], [1.0], literal=header("()")), 422, "shape_mismatch"),
    ("rank 1", files.npy([3], [1.0, 2.0, 3.0]), 422, "shape_mismatch"),
    ("rank 9", files.npy([1] * 7 + [4, 3], X), 422, "shape_mismatch"),
    ("channels", files.npy([6, 2], X), 422, "shape_mismatch"),
    ("objects", files.npy(SHAPE, X, literal=header("(4, 3)", "|O")), 422, "wrong_type"),
    ("integers", files.npy(SHAPE, X, literal=header("(4, 3)", "<i4")), 422, "wrong_type"),
    ("bytes of a kind unknown", files.npy(SHAPE, X, "|V2"), 422, "wrong_type"),
    ("NaN", files.npy(SHAPE, [float("nan")] + X[1:]), 422, "non_finite"),
    ("f8 that f32 does not hold", files.npy(SHAPE, [1e39] + X[1:], "<f8"), 422, "overflow"),
    ("one value per channel", files.npy([1, 3], X[:3]), 422, "single_value"),
])
def test_bad_files(body, status, code):
    client, path = create("bad", num_features=3)
    problem = wire.problem(client.post(path + "/train-forward", body, NPY), status, code)
    assert "pointer" not in problem, problem
    assert client.version(path) == 1


@harness.rows([
    ("unknown", "train-forward", "?mode=train", 400, "bad_parameter"),
    ("cache", "train-forward", "?cache=yes", 400, "bad_parameter"),
    ("twice", "train-forward", "?cache=true&cache=true", 400, "bad_parameter"),
    ("axis", "inference", "?channel_axis=9", 400, "bad_parameter"),
    ("axis that x has not", "inference", "?channel_axis=2", 422, "shape_mismatch"),
    ("no value", "inference", "?channel_axis", 400, "bad_parameter"),
    ("cache of an inference", "inference", "?cache=true", 400, "bad_parameter"),
    ("nothing to go back to", "backward", "", 422, "missing_field"),
    ("gone", "backward", "?cache=gone", 410, "cache_gone"),
    ("decay alone", "backward", "?cache=gone&step_weight_decay=1", 422, "missing_field"),
    ("f4 as bf16", "inference", "?dtype=bf16", 422, "conflicting_fields"),
])
def test_bad_options(call, query, status, code):
    client, path = create("options", num_features=3)
    problem = wire.problem(client.post(f"{path}/{call}{query}", files.npy(SHAPE, X), NPY), status, code)
    assert "pointer" not in problem, problem


def test_options_are_not_for_json():
    client, path = create("json", num_features=3)
    for call, query in (("train-forward", "cache=true"), ("inference", "channel_axis=1"), ("backward", "cache=a")):
        wire.problem(client.post(f"{path}/{call}?{query}", {"x": reference.nest(X, SHAPE)}), 400, "bad_parameter")
    assert client.version(path) == 1


def test_other_routes_have_no_npy():
    client, path = create("routes", num_features=3)
    for method, target in (("PUT", path), ("PATCH", path), ("PUT", path + "/state"), ("PUT", "/v1/snapshot")):
        wire.problem(client.request(method, target, files.npy(SHAPE, X), NPY), 415, "unsupported_media_type")
    for target in (path, path + "/state", "/v1/snapshot", "/v1/layers"):
        wire.problem(client.get(target, {"Accept": files.NPY}), 406, "not_acceptable")


# ---- memory and size

@harness.rows([("f4", "<f4", "f32", False), ("big-endian f4", ">f4", "f32", False), ("f4, Fortran", "<f4", "f32", True),
               ("f8", "<f8", "f64", False), ("f8 narrowed", "<f8", "f32", False)])
def test_memory_is_twice_the_body(descr, dtype, fortran):
    """A train-forward fits a budget of 2.2 times its body, an inference hardly more than the body."""
    size, channels = harness.scaled(8 * MIB, MIB), 64
    rows = size // int(descr[2]) // channels
    literal = header(f"({rows}, {channels})", descr, str(fortran))
    body = files.npy([], [], descr, literal=literal) + os.urandom(0) + rows * channels * files.elements([1.5], descr)
    with harness.Server("--durability", "none", "--memory-budget", str(int(2.2 * len(body)))) as server:
        client = server.api()
        path = client.layer("big", num_features=channels, dtype=dtype)
        reply = post(client, path + "/train-forward", body)
        assert len(reply.body) == len(body) and reply.headers["normd-count"] == str(rows), reply.headers
        post(client, path + "/inference", body)
    if not fortran:
        with harness.Server("--durability", "none", "--memory-budget", str(int(1.2 * len(body)))) as server:
            client = server.api()
            path = client.layer("big", num_features=channels, dtype=dtype)
            post(client, path + "/inference", body)
            problem = wire.problem(client.post(path + "/train-forward", body, NPY), 413, "body_too_large")
            assert "pointer" not in problem, problem


def test_kept_passes_are_counted():
    """A kept pass holds its elements and not twice as much, and is dropped with its layer."""
    client, path = create("kept", num_features=4)
    values = [float(i % 7) for i in range(40000)]
    for descr, least in (("<f4", 4), ("<f8", 4), ("<f2", 4)):
        before = client.ok("GET", path)["memory"]["cache_bytes"]
        post(client, path + "/train-forward?cache=true", files.npy([10000, 4], values, descr))
        grown = client.ok("GET", path)["memory"]["cache_bytes"] - before
        assert least * 40000 <= grown <= 1.2 * least * 40000, (descr, grown)


# ---- other programs

def test_numpy():
    try:
        import numpy
    except ImportError:
        harness.skip("no numpy")
    client, path = create("numpy", num_features=5)
    rng = numpy.random.default_rng(3)
    base = rng.normal(size=(6, 5, 4, 3))
    for dtype in ("<f2", "<f4", "<f8", ">f2", ">f4", ">f8"):
        for order in "CF":
            x = numpy.asarray(base, dtype=dtype, order=order)
            out = io.BytesIO()
            numpy.save(out, x)
            y = numpy.load(io.BytesIO(post(client, path + "/train-forward", out.getvalue()).body))
            assert y.dtype == numpy.dtype(dtype) and y.shape == x.shape, (y.dtype, y.shape)
            wide = x.astype("f8")
            want = (wide - wide.mean((0, 2, 3), keepdims=True)) / numpy.sqrt(wide.var((0, 2, 3), keepdims=True) + 1e-5)
            assert numpy.abs(y.astype("f8") - want).max() < 3e-3 if "2" in dtype else 1e-5, dtype
    for version in ((1, 0), (2, 0), (3, 0)):
        out = io.BytesIO()
        numpy.lib.format.write_array(out, base.astype("f4"), version=version)
        assert numpy.load(io.BytesIO(post(client, path + "/inference", out.getvalue()).body)).shape == base.shape
    for bad in (numpy.array([[None]]), numpy.zeros((2, 5), "i8"), numpy.zeros((2, 5), [("a", "f4")])):
        out = io.BytesIO()
        numpy.save(out, bad, allow_pickle=True)
        wire.problem(client.post(path + "/inference", out.getvalue(), NPY), 422, "wrong_type")


def test_curl():
    server = harness.shared()
    client, path = create("curl", num_features=3)
    name = os.path.join(harness.folder(), "x.npy")
    with open(name, "wb") as f:
        f.write(files.npy(SHAPE, X))
    want = client.infer(path, reference.nest(X, SHAPE))["y"]
    for extra in ([], ["-H", "Content-Type: application/x-npy"]):
        out = subprocess.run(["curl", "-sSf", f"http://{server.host}:{server.port}{path}/inference", *extra,
                              "--data-binary", "@" + name], check=True, capture_output=True, timeout=harness.seconds(20))
        assert files.read_npy(out.stdout) == ("<f4", SHAPE, [wire.f32(v) for v in reference.flatten(want)]), out


if __name__ == "__main__":
    harness.main()
