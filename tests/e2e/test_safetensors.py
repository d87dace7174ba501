# SPDX-License-Identifier: Apache-2.0
"""safetensors bodies: the three calls, the state of a layer, and snapshots, from PyTorch and to it; hostile files."""
import json
import random
import struct

import files
import harness
import reference
import wire

KIND = {"Content-Type": files.SAFETENSORS}
WANTED = {"Accept": files.SAFETENSORS}
X = [1.0, 2.5, -0.75, 4.0, 0.5, -3.0, 8.0, 0.25, -1.0, 2.0, 1.5, 6.0]  # exact in every type
DOUT = [0.5, -1.0, 2.0, 1.0, 0.0, 0.25, -0.5, 1.5, 3.0, -2.0, 1.0, 0.125]
RESIDUAL = [0.25, 3.0, -1.0, 0.5, 1.0, 2.0, -4.0, 0.0, 1.0, -0.5, 0.75, 1.0]
SHAPE = [4, 3]
MIB = 1 << 20


def create(name, **config):
    client = harness.shared().api()
    client.delete("/v1/layers/" + name)
    return client, client.layer(name, **config)


def clear(client):
    for layer in client.ok("GET", "/v1/layers?limit=1000")["layers"]:
        assert client.delete("/v1/layers/" + layer["name"]).status == 204


def post(client, path, tensors, fields=None, headers=None, **how):
    """Sends a call and returns (tensors, fields) of its reply."""
    metadata = {k: json.dumps(v) for k, v in fields.items()} if fields is not None else None
    reply = client.post(path, files.safetensors(tensors, metadata, **how), {**KIND, **(headers or {})})
    assert reply.status == 200 and reply.headers["content-type"] == files.SAFETENSORS, (reply, reply.headers)
    got, texts = files.read_safetensors(reply.body)
    return got, {k: json.loads(v) for k, v in texts.items()}


def close(got, want, tolerance, floor=1e-30):
    assert len(got) == len(want), (got, want)
    for a, b in zip(got, want):
        assert abs(a - b) <= abs(b) * tolerance + floor, (a, b)


TOLERANCE = {"F16": 2 ** -11, "F32": 2 ** -24, "F64": 2 ** -24, "BF16": 2 ** -8}


# ---- calls

@harness.rows([(f"{dtype}, residual {other}, {layer} layer, header to {pad}", dtype, other, layer, pad)
               for dtype in TOLERANCE for other in TOLERANCE for layer in ("f32", "f64") for pad in (1, 8)])
def test_calls_agree_with_json(dtype, other, layer, pad):
    client, path = create("agree", num_features=3, dtype=layer)
    x, dout, residual = (reference.nest(v, SHAPE) for v in (X, DOUT, RESIDUAL))
    tensors = {"residual": (other, SHAPE, RESIDUAL), "x": (dtype, SHAPE, X)}
    tolerance, floor = TOLERANCE[dtype], 2 ** -25 if dtype == "F16" else 1e-30  # half of the least of f16
    want = client.infer(path, x, residual=residual, activation="relu")
    got, fields = post(client, path + "/inference", tensors, {"activation": "relu"}, pad=pad)
    assert set(got) == {"y"} and got["y"][:2] == (dtype, SHAPE) and fields == {"version": 1}, (got, fields)
    close(got["y"][2], reference.flatten(want["y"]), tolerance, floor)
    want = client.train(path, x, residual=residual, activation="relu", cache=True)
    client.ok("PUT", path + "/state", {"gamma": [1] * 3, "beta": [0] * 3, "running_mean": [0] * 3,
                                       "running_var": [1] * 3, "num_batches_tracked": 0})
    got, fields = post(client, path + "/train-forward", tensors, {"activation": "relu", "cache": True}, pad=pad)
    assert set(got) == {"y", "batch_mean", "batch_var"} and got["y"][:2] == (dtype, SHAPE), got
    close(got["y"][2], reference.flatten(want["y"]), tolerance, floor)
    for key in ("batch_mean", "batch_var"):
        assert got[key] == ("F64", [3], want[key]), (key, got[key])
    cache = fields.pop("cache")
    assert fields == {"count": 4, "num_batches_tracked": 1, "updated": True, "version": 4}, fields
    # the two passes hold the same
    want = client.backward(path, dout, cache=want["cache"])
    for more, given in (({}, {"cache": cache}), (tensors, {"activation": "relu"})):
        got, fields = post(client, path + "/backward", {"dout": (dtype, SHAPE, DOUT), **more}, given, pad=pad)
        assert set(got) == {"dx", "dresidual", "dgamma", "dbeta"} and fields == {"version": 4}, (got, fields)
        for key in ("dx", "dresidual"):
            assert got[key][:2] == (dtype, SHAPE), got
            close(got[key][2], reference.flatten(want[key]), tolerance, 1e-7)
        for key in ("dgamma", "dbeta"):
            assert got[key] == ("F64", [3], want[key]), (key, got[key])


@harness.rows([("none", None), ("that of curl --data-binary", "application/x-www-form-urlencoded")])
def test_without_content_type(kind):
    """A file that says what it is needs no label, and is answered like one that has it."""
    client, path = create("curl", num_features=3)
    label = {"Content-Type": kind}
    body = files.safetensors({"x": ("F32", SHAPE, X)})
    want = client.post(path + "/inference", body, KIND).body
    for accept, sent in ((None, files.SAFETENSORS), ("*/*", files.SAFETENSORS), ("application/json", "application/json"),
                         (files.NPY, files.NPY)):
        reply = client.post(path + "/inference", body, {**label, "Accept": accept})
        assert reply.status == 200 and reply.headers["content-type"] == sent, (accept, reply, reply.headers)
        assert reply.body == want or accept not in (None, "*/*"), accept
    state = client.get(path + "/state", WANTED).body
    for method in ("PUT", "PATCH"):
        reply = client.request(method, path + "/state", state, label)
        assert reply.status == 200 and reply.headers["content-type"] == files.SAFETENSORS, reply
    reply = client.put("/v1/snapshot", state, label)
    assert reply.status == 200 and reply.json["layers"] == {"curl": 4}, reply
    for cut in (1, 8, 9, 40):  # a file that is damaged, or no file yet
        reply = client.post(path + "/inference", body[:cut], label)
        assert reply.status == 400 and reply.json["code"] in ("malformed_json", "malformed_file"), (cut, reply)
    wire.problem(client.post(path + "/inference", body[:-1], label), 400, "malformed_file")
    for blanks in (b" " * 8, b"\t\n\r " * 2, b" " * 16):
        reply = client.post(path + "/inference", blanks + b'{"x":[[1,2,3]]}', label)
        assert reply.status == 200 and reply.headers["content-type"] == "application/json", (blanks, reply)
    wire.problem(client.post(path + "/inference", body, {**label, "Origin": "http://a.example"}), 415)
    wire.problem(client.post(path + "/inference", body, {"Content-Type": "application/json"}), 400, "malformed_json")
    wire.problem(client.put(path, body, label), 400, "malformed_json")


def test_any_order_of_tensors():
    client, path = create("order", num_features=3)
    tensors = {"x": ("F16", SHAPE, X), "dout": ("F32", SHAPE, DOUT), "residual": ("F64", SHAPE, RESIDUAL)}
    wants = None
    for order in (["x", "dout", "residual"], ["residual", "dout", "x"], ["dout", "x", "residual"]):
        for pad in (1, 2, 4, 8):
            got = post(client, path + "/backward", tensors, {"activation": "relu"}, order=order, pad=pad)
            wants = wants or got
            assert got == wants, order


def test_options_and_step():
    client, path = create("step", num_features=3)
    before = client.state(path)
    _, fields = post(client, path + "/backward", {"dout": ("F32", SHAPE, DOUT), "x": ("F32", SHAPE, X)},
                     {"step": {"lr": 0.5, "weight_decay": 0.25}, "mode": "inference", "channel_axis": -1})
    assert fields == {"version": 2}, fields
    assert client.state(path)["beta"] != before["beta"]
    got, fields = post(client, path + "/inference", {"x": ("F32", SHAPE, X)}, {"format": "pt"})
    assert fields == {"version": 2}, "the word that PyTorch's writers add is passed over"
    got, fields = post(client, path + "/inference", {"x": ("F32", [3, 4], X)}, {"channel_axis": 0})
    assert got["y"][1] == [3, 4], got


@harness.rows([(f"dout {a}, residual {b}", a, b) for a in TOLERANCE for b in TOLERANCE])
def test_step_through_a_residual(a, b):
    """A step keeps dout and residual until it is applied: dx and dresidual have room of their own, as wide as they are
    sent."""
    client, path = create("step.residual", num_features=3)
    got, fields = post(client, path + "/backward", {"dout": (a, SHAPE, DOUT), "x": ("F16", SHAPE, X),
                                                    "residual": (b, SHAPE, RESIDUAL)},
                       {"step": {"lr": 0.5}, "activation": "relu"})
    assert fields == {"version": 2} and client.version(path) == 2
    client.ok("PATCH", path + "/state", {"gamma": [1] * 3, "beta": [0] * 3})
    want = client.backward(path, reference.nest(DOUT, SHAPE), x=reference.nest(X, SHAPE),
                           residual=reference.nest(RESIDUAL, SHAPE), activation="relu")
    for key in ("dx", "dresidual"):
        assert got[key][:2] == (a, SHAPE), got
        close(got[key][2], reference.flatten(want[key]), TOLERANCE[a], 1e-7)


def test_nulls():
    client, path = create("nulls", num_features=3, affine=False, track_running_stats=False)
    got, fields = post(client, path + "/train-forward", {"x": ("F32", [0, 3], [])})
    assert got == {"y": ("F32", [0, 3], [])}, got
    assert fields == {"batch_mean": None, "batch_var": None, "count": 0, "num_batches_tracked": None,
                      "updated": False, "version": 1}, fields
    got, fields = post(client, path + "/backward", {"dout": ("F32", SHAPE, DOUT), "x": ("F32", SHAPE, X)})
    assert set(got) == {"dx"} and fields == {"dgamma": None, "dbeta": None, "version": 1}, (got, fields)


def test_all_forms_both_ways():
    client, path = create("forms", num_features=3)
    x = reference.nest(X, SHAPE)
    want = client.infer(path, x)["y"]
    bodies = {"application/json": json.dumps({"x": x}).encode(), files.NPY: files.npy(SHAPE, X),
              files.SAFETENSORS: files.safetensors({"x": ("F32", SHAPE, X)})}
    readers = {"application/json": lambda b: reference.flatten(json.loads(b)["y"]),
               files.NPY: lambda b: files.read_npy(b)[2],
               files.SAFETENSORS: lambda b: files.read_safetensors(b)[0]["y"][2]}
    for sent, body in bodies.items():
        for wanted, read in readers.items():
            reply = client.post(path + "/inference", body, {"Content-Type": sent, "Accept": wanted})
            assert reply.status == 200 and reply.headers["content-type"] == wanted, (sent, wanted, reply)
            assert [wire.f32(v) for v in read(reply.body)] == [wire.f32(v) for v in reference.flatten(want)], reply
    # big-endian is npy's alone
    reply = client.post(path + "/inference", files.npy(SHAPE, X, ">f4"), {"Content-Type": files.NPY, **WANTED})
    assert readers[files.SAFETENSORS](reply.body) == [wire.f32(v) for v in reference.flatten(want)], reply


def test_memory_is_twice_the_body():
    size, channels = harness.scaled(8 * MIB, MIB), 64
    rows = size // 4 // channels
    data = rows * channels * struct.pack("<f", 1.5)
    text = json.dumps({"x": {"dtype": "F32", "shape": [rows, channels], "data_offsets": [0, len(data)]}})
    body = files.raw_safetensors(text, data)
    with harness.Server("--durability", "none", "--memory-budget", str(int(2.2 * len(body)))) as server:
        client = server.api()
        path = client.layer("big", num_features=channels)
        for call in ("train-forward", "inference"):
            reply = client.post(f"{path}/{call}", body, KIND)
            assert reply.status == 200 and len(reply.body) >= len(data), reply
            assert files.read_safetensors(reply.body)[0]["y"][1] == [rows, channels]


# ---- hostile files

def one(shape=SHAPE, dtype="F32", offsets=(0, 48), extra=""):
    entry = {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}
    return '{"x":' + json.dumps(entry) + extra + "}"


DATA = struct.pack("<12f", *X)


@harness.rows([
    ("nothing", b"", 400, "malformed_file"),
    ("seven bytes", b"\0" * 7, 400, "malformed_file"),
    ("no header", struct.pack("<Q", 0) + DATA, 400, "malformed_file"),
    ("header of 2^64-1", struct.pack("<Q", 2 ** 64 - 1) + b"{}", 400, "malformed_file"),
    ("header of 2^63", struct.pack("<Q", 2 ** 63) + b"{}", 400, "malformed_file"),
    ("header of 100 000 001", struct.pack("<Q", 100000001) + b"{}", 400, "malformed_file"),
    ("header one byte too long", struct.pack("<Q", 3) + b"{}", 400, "malformed_file"),
    ("an array", files.raw_safetensors("[]", b""), 400, "malformed_file"),
    ("space before", files.raw_safetensors(" " + one(), DATA), 400, "malformed_file"),
    ("text behind", files.raw_safetensors(one() + "x", DATA), 400, "malformed_file"),
    ("not JSON", files.raw_safetensors('{"x":', b""), 400, "malformed_file"),
    ("deep", files.raw_safetensors('{"x":' + "[" * 100000, b""), 400, "malformed_file"),
    ("a hole before", files.raw_safetensors(one(offsets=(4, 52)), b"\0\0\0\0" + DATA), 400, "malformed_file"),
    ("bytes behind", files.raw_safetensors(one(), DATA + b"\0"), 400, "malformed_file"),
    ("too short", files.raw_safetensors(one(), DATA[:-1]), 400, "malformed_file"),
    ("offsets reversed", files.raw_safetensors(one(offsets=(48, 0)), DATA), 400, "malformed_file"),
    ("negative offset", files.raw_safetensors(one(offsets=(-48, 0)), DATA), 400, "malformed_file"),
    ("offset of 2^63", files.raw_safetensors(one(offsets=(0, 2 ** 63)), DATA), 400, "malformed_file"),
    ("shape that does not fit", files.raw_safetensors(one([5, 3]), DATA), 400, "malformed_file"),
    ("shape that overflows", files.raw_safetensors(one([2 ** 62, 2 ** 62, 3]), DATA), 400, "malformed_file"),
    ("shape that overflows beside 0", files.raw_safetensors(one([2 ** 62, 2 ** 62, 0], offsets=(0, 0)), b""), 400,
     "malformed_file"),
    ("negative length", files.raw_safetensors(one([-4, -3]), DATA), 400, "malformed_file"),
    ("real length", files.raw_safetensors(one([4.0, 3]), DATA), 400, "malformed_file"),
    ("shape of 5000 axes", files.raw_safetensors(one([1] * 5000), DATA), 400, "malformed_file"),
    ("more members", files.raw_safetensors('{"x":{"dtype":"F32","shape":[4,3],"data_offsets":[0,48],"a":1}}', DATA), 400,
     "malformed_file"),
    ("no dtype", files.raw_safetensors('{"x":{"shape":[4,3],"data_offsets":[0,48]}}', DATA), 400, "malformed_file"),
    ("a tensor that is a number", files.raw_safetensors('{"x":1}', b""), 400, "malformed_file"),
    ("metadata that is no object", files.raw_safetensors('{"__metadata__":1}', b""), 400, "malformed_file"),
    ("metadata that is no text", files.raw_safetensors('{"__metadata__":{"a":1}}', b""), 400, "malformed_file"),
    ("metadata twice", files.raw_safetensors('{"__metadata__":{},"__metadata__":{}}', b""), 400, "malformed_file"),
    ("value that is no JSON", files.safetensors({"x": ("F32", SHAPE, X)}, {"activation": "relu"}), 400,
     "malformed_file"),
    ("overlap", files.raw_safetensors(one(extra=',"residual":{"dtype":"F32","shape":[4,3],"data_offsets":[0,48]}'),
                                      DATA), 400, "malformed_file"),
    ("x twice", files.raw_safetensors(one(offsets=(0, 48), extra=',"\\u0078":{"dtype":"F32","shape":[0],'
                                          '"data_offsets":[48,48]}'), DATA), 400, "duplicate_field"),
    ("another tensor", files.safetensors({"x": ("F32", SHAPE, X), "z": ("F32", [1], [1.0])}), 400, "unknown_field"),
    ("dout of a forward", files.safetensors({"x": ("F32", SHAPE, X), "dout": ("F32", SHAPE, X)}), 400,
     "unknown_field"),
    ("another field", files.safetensors({"x": ("F32", SHAPE, X)}, {"momentum": "1"}), 400, "unknown_field"),
    ("long metadata", files.safetensors({"x": ("F32", SHAPE, X)}, {"activation": '"' + "x" * 70000 + '"'}), 413,
     "body_too_large"),
    ("integers", files.raw_safetensors(one(dtype="I32"), DATA), 422, "wrong_type"),
    ("a dtype of tomorrow", files.raw_safetensors(one(dtype="F4"), DATA), 422, "wrong_type"),
    ("rank 1", files.raw_safetensors(one([12]), DATA), 422, "shape_mismatch"),
    ("rank 0", files.raw_safetensors(one([], offsets=(0, 4)), DATA[:4]), 422, "shape_mismatch"),
    ("rank 9", files.raw_safetensors(one([1] * 7 + [4, 3]), DATA), 422, "shape_mismatch"),
    ("channels", files.raw_safetensors(one([6, 2]), DATA), 422, "shape_mismatch"),
    ("residual of another shape", files.safetensors({"x": ("F32", SHAPE, X), "residual": ("F32", [3, 4], X)}), 422,
     "shape_mismatch"),
    ("no x", files.safetensors({}), 422, "missing_field"),
    ("a word that is none", files.safetensors({"x": ("F32", SHAPE, X)}, {"activation": '"gelu"'}), 422,
     "out_of_range"),
    ("a type that is none", files.safetensors({"x": ("F32", SHAPE, X)}, {"cache": "1"}), 422, "wrong_type"),
    ("overflow", files.safetensors({"x": ("F64", SHAPE, [1e39] + X[1:])}), 422, "overflow"),
    ("NaN", files.safetensors({"x": ("F16", SHAPE, [float("nan")] + X[1:])}), 422, "non_finite"),
])
def test_bad_files(body, status, code):
    client, path = create("bad", num_features=3)
    problem = wire.problem(client.post(path + "/train-forward", body, KIND), status, code)
    assert "pointer" not in problem, problem
    assert client.version(path) == 1


def test_every_prefix_is_refused():
    client, path = create("prefix", num_features=3)
    body = files.safetensors({"x": ("F32", SHAPE, X), "residual": ("F16", SHAPE, X)}, {"cache": "false"})
    for length in range(0, len(body), 7):
        wire.problem(client.post(path + "/train-forward", body[:length], KIND), 400, "malformed_file")
    assert client.version(path) == 1


def test_backward_needs_one_of_cache_and_x():
    client, path = create("both", num_features=3)
    dout = {"dout": ("F32", SHAPE, DOUT)}
    for tensors, fields, code in ((dout, {}, "missing_field"), ({"x": ("F32", SHAPE, X)}, {}, "missing_field"),
                                  ({**dout, "x": ("F32", SHAPE, X)}, {"cache": '"a"'}, "conflicting_fields")):
        wire.problem(client.post(path + "/backward", files.safetensors(tensors, fields), KIND), 422, code)
    wire.problem(client.post(path + "/backward", files.safetensors(dout, {"cache": '"a"'}), KIND), 410, "cache_gone")
    wire.problem(client.post(path + "/backward?cache=a", files.safetensors(dout), KIND), 400, "bad_parameter")


# ---- the state of a layer

def state_tensors(name, c, value, dtype="F64"):
    """A state whose vectors are told apart."""
    at = (name + "." if name else "").__add__
    return {at("weight"): (dtype, [c], [value + i for i in range(c)]),
            at("bias"): (dtype, [c], [-value - i for i in range(c)]),
            at("running_mean"): (dtype, [c], [value / 2 + i for i in range(c)]),
            at("running_var"): (dtype, [c], [value / 4 + i for i in range(c)]),
            at("num_batches_tracked"): ("I64", [], [int(value)])}


def shown(state):
    return {k: v for k, v in state.items() if k not in ("version", "layer")}


def expected(c, value):
    return {"gamma": [value + i for i in range(c)], "beta": [-value - i for i in range(c)],
            "running_mean": [value / 2 + i for i in range(c)], "running_var": [value / 4 + i for i in range(c)],
            "num_batches_tracked": int(value)}


@harness.rows([(dtype, dtype) for dtype in ("F64", "F32", "F16", "BF16")])
def test_state(dtype):
    client, path = create("a.bn1", num_features=3)
    for prefix in ("a.bn1", ""):
        for pad in (1, 8):
            reply = client.put(path + "/state", files.safetensors(state_tensors(prefix, 3, 8.0, dtype), pad=pad), KIND)
            assert reply.status == 200 and reply.headers["content-type"] == files.SAFETENSORS, reply
            assert shown(client.state(path)) == expected(3, 8.0)
            tensors, metadata = files.read_safetensors(reply.body)
            assert tensors == state_tensors("a.bn1", 3, 8.0), tensors
            assert set(metadata) == {"a.bn1"} and json.loads(metadata["a.bn1"]) == client.ok("GET", path)["layer"]
            client.ok("PATCH", path + "/state", {"gamma": [0, 0, 0]})
    reply = client.get(path + "/state", WANTED)
    assert reply.headers["etag"] == client.get(path).headers["etag"] and reply.headers["vary"] == "Accept", reply
    assert "content-length" in reply.headers, "a small one tells its length"
    head = client.request("HEAD", path + "/state", headers=WANTED)
    assert head.headers["content-length"] == reply.headers["content-length"], head.headers
    same = client.get(path + "/state", {**WANTED, "If-None-Match": reply.headers["etag"]})
    assert (same.status, same.body) == (304, b""), same
    again = client.put(path + "/state", reply.body, {**KIND, "Accept": "application/json"})
    assert again.status == 200 and again.json == client.state(path), again


def test_patch_of_a_state():
    client, path = create("patched", num_features=2)
    before = client.state(path)
    reply = client.patch(path + "/state", files.safetensors({"patched.bias": ("F32", [2], [0.5, -0.0])}), KIND)
    assert reply.status == 200, reply
    after = client.state(path)
    assert wire.bits(after) == wire.bits({**before, "beta": [0.5, -0.0], "version": 2}), after


def test_hard_doubles_come_back():
    rng = random.Random(3)
    values = [5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 0.1, -0.0, 1 / 3]
    while len(values) < 20000:
        v = struct.unpack("<d", struct.pack("<Q", rng.getrandbits(64)))[0]
        if v == v and abs(v) != float("inf"):
            values.append(v)
    client, path = create("doubles", num_features=len(values))
    tensors = {"weight": ("F64", [len(values)], values), "bias": ("F64", [len(values)], values[::-1]),
               "running_mean": ("F64", [len(values)], values),
               "running_var": ("F64", [len(values)], [abs(v) for v in values]),
               "num_batches_tracked": ("I64", [], [2 ** 63 - 1])}
    reply = client.put(path + "/state", files.safetensors(tensors), KIND)
    assert reply.status == 200 and "content-length" not in reply.headers, "20 000 channels come in pieces"
    got, metadata = files.read_safetensors(reply.body)
    for key, (dtype, shape, want) in tensors.items():
        assert got["doubles." + key][:2] == (dtype, shape)
        assert struct.pack(f"<{len(want)}{'q' if dtype == 'I64' else 'd'}", *got["doubles." + key][2]) == \
            struct.pack(f"<{len(want)}{'q' if dtype == 'I64' else 'd'}", *want), key
    body = client.get("/v1/snapshot?prefix=doubles", WANTED).body
    assert body == reply.body, "a snapshot of one layer is its state"


def test_states_without_parts():
    client, path = create("bare", num_features=2, affine=False, track_running_stats=False)
    tensors, metadata = files.read_safetensors(client.get(path + "/state", WANTED).body)
    assert tensors == {} and json.loads(metadata["bare"])["affine"] is False, metadata
    assert client.put(path + "/state", client.get(path + "/state", WANTED).body, KIND).status == 200
    wire.problem(client.put(path + "/state", files.safetensors({"weight": ("F32", [2], [1.0, 1.0])}), KIND), 422,
                 "not_supported_by_layer")


@harness.rows([
    ("of another layer", state_tensors("other", 3, 8.0), None, 400, "unknown_field"),
    ("misspelt", {**state_tensors("", 3, 8.0), "wieght": ("F32", [3], [1.0] * 3)}, None, 400, "unknown_field"),
    ("with and without the name", {**state_tensors("", 3, 8.0), "refused.bias": ("F32", [3], [1.0] * 3)}, None, 400,
     "duplicate_field"),
    ("without a part", {k: v for k, v in state_tensors("", 3, 8.0).items() if k != "bias"}, None, 422,
     "missing_field"),
    ("length", state_tensors("", 4, 8.0), None, 422, "shape_mismatch"),
    ("rank 2", {**state_tensors("", 3, 8.0), "bias": ("F32", [1, 3], [1.0] * 3)}, None, 422, "shape_mismatch"),
    ("integers", {**state_tensors("", 3, 8.0), "bias": ("I32", [3], [1] * 3)}, None, 422, "wrong_type"),
    ("real counter", {**state_tensors("", 3, 8.0), "num_batches_tracked": ("F64", [], [1.0])}, None, 422,
     "wrong_type"),
    ("three counters", {**state_tensors("", 3, 8.0), "num_batches_tracked": ("I64", [3], [1, 2, 3])}, None, 422,
     "shape_mismatch"),
    ("negative counter", {**state_tensors("", 3, 8.0), "num_batches_tracked": ("I64", [], [-1])}, None, 422,
     "out_of_range"),
    ("negative variance", {**state_tensors("", 3, 8.0), "running_var": ("F32", [3], [1.0, -1.0, 1.0])}, None, 422,
     "out_of_range"),
    ("infinite", {**state_tensors("", 3, 8.0), "bias": ("F16", [3], [1.0, float("inf"), 1.0])}, None, 422,
     "non_finite"),
    ("another configuration", state_tensors("", 3, 8.0), {"refused": '{"num_features": 3, "eps": 0.5}'}, 409,
     "config_conflict"),
    ("unknown field of one", state_tensors("", 3, 8.0), {"refused": '{"num_features": 3, "epsilon": 0.5}'}, 400,
     "unknown_field"),
    ("wrong field of one", state_tensors("", 3, 8.0), {"refused": '{"num_features": 3, "eps": 0}'}, 422,
     "out_of_range"),
])
def test_bad_states(tensors, metadata, status, code):
    client, path = create("refused", num_features=3)
    problem = wire.problem(client.put(path + "/state", files.safetensors(tensors, metadata), KIND), status, code)
    assert "pointer" not in problem, problem
    assert client.version(path) == 1


# ---- snapshots

def test_snapshot_round_trip():
    """Every kind of layer: GET in one form, DELETE, PUT, and the states have the same bits in the other."""
    client = harness.shared().api()
    clear(client)
    configs = {"a": {"num_features": 3}, "a.b": {"num_features": 1, "dtype": "f64", "convention": "paper"},
               "c": {"num_features": 2, "affine": False}, "d": {"num_features": 2, "track_running_stats": False},
               "e": {"num_features": 4, "affine": False, "track_running_stats": False, "channel_axis": -1},
               "f": {"num_features": 3000, "nonfinite": "propagate", "convention": "keras"}}
    for name, config in configs.items():
        client.layer(name, **config)
    client.train("/v1/layers/a", reference.nest(X, SHAPE))
    client.ok("PATCH", "/v1/layers/f/state", {"running_mean": ["NaN", "-Infinity"] + [0.1] * 2998})
    want = client.get("/v1/snapshot").json
    reply = client.get("/v1/snapshot", WANTED)
    assert reply.headers["content-type"] == files.SAFETENSORS and reply.headers["vary"] == "Accept", reply.headers
    tensors, metadata = files.read_safetensors(reply.body)
    assert set(metadata) == set(configs), metadata
    for name, state in want["layers"].items():
        assert json.loads(metadata[name]) == state["layer"], name
        for field, part in (("gamma", "weight"), ("beta", "bias"), ("running_mean", "running_mean")):
            assert (state[field] is None) == (f"{name}.{part}" not in tensors), (name, field)
    clear(client)
    restored = client.put("/v1/snapshot", reply.body, KIND)
    assert restored.status == 200 and restored.json == {"layers": {name: 1 for name in configs}, "ignored": []}, restored
    got = client.get("/v1/snapshot").json
    for name, state in want["layers"].items():
        assert wire.bits({**got["layers"][name], "version": 0}) == wire.bits({**state, "version": 0}), name
    assert client.get("/v1/snapshot", WANTED).body == reply.body
    assert client.get("/v1/snapshot?prefix=a", WANTED).body != reply.body


def test_snapshot_of_nothing():
    client = harness.shared().api()
    clear(client)
    body = client.get("/v1/snapshot", WANTED).body
    assert files.read_safetensors(body) == ({}, {}), body
    client.layer("gone")
    reply = client.put("/v1/snapshot?delete_missing=true", body, KIND)
    assert reply.status == 200 and reply.json == {"layers": {}, "ignored": []}, reply
    assert client.ok("GET", "/v1/layers")["layers"] == []


@harness.rows([("as it is", ""), ("delete_missing", "?delete_missing=true")])
def test_a_checkpoint_without_layers(query):
    """Nothing would be restored, and with delete_missing everything deleted."""
    client = harness.shared().api()
    clear(client)
    client.layer("stays")
    for tensors in ({"fc.weight": ("F32", [1], [1.0]), "fc.bias": ("F32", [1], [1.0])},
                    {"bn.running_mean": ("F32", [1], [1.0]), "bn.weight": ("F32", [1], [1.0])}):
        reply = client.put("/v1/snapshot" + query, files.safetensors(tensors, {"format": "pt"}), KIND)
        got = wire.problem(reply, 422, "missing_field")
        assert "2 tensors" in got["detail"] and "running_var" in got["detail"] and "pointer" not in got, got
    assert client.version("/v1/layers/stays") == 1


def test_a_large_snapshot_comes_in_pieces():
    client = harness.shared().api()
    clear(client)
    count = harness.scaled(400, 100)
    layers = {f"layer{i}": {**expected(300, 8.0 * i), "layer": {"num_features": 300}} for i in range(1, count + 1)}
    assert client.put("/v1/snapshot", {"layers": layers}).status == 200
    reply = client.get("/v1/snapshot", WANTED)
    assert "content-length" not in reply.headers, reply.headers
    tensors, metadata = files.read_safetensors(reply.body)
    assert len(tensors) == 5 * count and len(metadata) == count
    for i in range(1, count + 1):
        for name, tensor in state_tensors(f"layer{i}", 300, 8.0 * i).items():
            assert tensors[name] == tensor, name
    assert client.put("/v1/snapshot", reply.body, KIND).json["layers"] == {name: 2 for name in layers}
    clear(client)


def test_checkpoint():
    """A PyTorch checkpoint as it is: convolutions are ignored, layers are made as PyTorch has them, or keep what they
    were."""
    client = harness.shared().api()
    clear(client)
    client.layer("layer1.0.bn1", num_features=3, convention="keras", momentum=0.5)
    client.layer("stays")
    tensors = {"conv1.weight": ("F32", [2, 3, 1, 1], [1.0] * 6), **state_tensors("bn1", 3, 8.0, "F32"),
               **state_tensors("layer1.0.bn1", 3, 16.0, "F16"), "layer1.0.conv1.weight": ("BF16", [1], [1.0]),
               "fc.weight": ("I64", [1], [1]), "fc.bias": ("F32", [], [1.0]), "step": ("I64", [], [7]),
               "plain.running_mean": ("F32", [2], [0.0, 1.0]), "plain.running_var": ("F32", [2], [1.0, 2.0]),
               "half.running_mean": ("F32", [2], [0.0, 1.0]), "half.weight": ("F32", [2], [0.0, 1.0]),
               "running_mean": ("F32", [1], [0.0]), "running_var": ("F32", [1], [0.0]),
               "_odd.running_mean": ("F32", [1], [0.0]), "_odd.running_var": ("F32", [1], [0.0]),
               'quo"te\\\n\u00e9': ("F32", [1], [0.0]), "x" * 300: ("F32", [1], [0.0])}
    reply = client.put("/v1/snapshot", files.safetensors(tensors, {"format": "pt", "epoch": "3", "note": "{}"}), KIND)
    assert reply.status == 200 and reply.headers["content-type"] == "application/json", reply
    got = reply.json
    assert got["layers"] == {"bn1": 1, "layer1.0.bn1": 2, "plain": 1}, got
    assert set(got["ignored"]) == {"conv1.weight", "layer1.0.conv1.weight", "fc.weight", "fc.bias", "step",
                                   "half.running_mean", "half.weight", "running_mean", "running_var",
                                   "_odd.running_mean", "_odd.running_var", 'quo"te\\\n\u00e9', "x" * 160}, got
    bn1 = client.ok("GET", "/v1/layers/bn1")["layer"]
    assert (bn1["convention"], bn1["affine"], bn1["num_features"], bn1["dtype"]) == ("pytorch", True, 3, "f32"), bn1
    assert client.ok("GET", "/v1/layers/layer1.0.bn1")["layer"]["momentum"] == 0.5
    assert client.ok("GET", "/v1/layers/plain")["layer"]["affine"] is False
    assert shown(client.state("/v1/layers/bn1")) == expected(3, 8.0)
    assert shown(client.state("/v1/layers/layer1.0.bn1")) == expected(3, 16.0)
    assert shown(client.state("/v1/layers/plain")) == {"gamma": None, "beta": None, "running_mean": [0, 1],
                                                       "running_var": [1, 2], "num_batches_tracked": 0}
    assert client.version("/v1/layers/stays") == 1
    clear(client)


@harness.rows([
    ("channels of a layer", state_tensors("bn", 4, 8.0), None, 422, "shape_mismatch"),
    ("a part that is missing", {k: v for k, v in state_tensors("new", 3, 8.0).items() if k != "new.bias"}, None, 422,
     "missing_field"),
    ("lengths that differ", {**state_tensors("new", 3, 8.0), "new.running_var": ("F32", [2], [1.0, 1.0])}, None, 422,
     "shape_mismatch"),
    ("no channels", state_tensors("new", 0, 8.0), None, 422, "out_of_range"),
    ("integers", {**state_tensors("new", 3, 8.0), "new.running_mean": ("I32", [3], [1, 1, 1])}, None, 422,
     "wrong_type"),
    ("a configuration of other channels", state_tensors("new", 3, 8.0), {"new": '{"num_features": 4}'}, 422,
     "shape_mismatch"),
    ("a configuration that is none", state_tensors("new", 3, 8.0), {"new": '{"num_features": 3, "x": 1}'}, 400,
     "unknown_field"),
    ("a configuration and nothing else", {}, {"new": '{"num_features": 3}'}, 422, "missing_field"),
    ("truncated", None, None, 400, "malformed_file"),
])
def test_bad_snapshots(tensors, metadata, status, code):
    """One bad layer, and none is restored."""
    client = harness.shared().api()
    clear(client)
    client.layer("bn")
    good = state_tensors("aaa", 2, 8.0)
    body = files.safetensors(good)[:-1] if tensors is None else files.safetensors({**good, **tensors}, metadata)
    problem = wire.problem(client.put("/v1/snapshot", body, KIND), status, code)
    assert "pointer" not in problem, problem
    if status == 422 and code != "out_of_range":
        assert "new" in problem["detail"] or "bn" in problem["detail"], problem
    assert [layer["name"] for layer in client.ok("GET", "/v1/layers")["layers"]] == ["bn"]
    assert client.version("/v1/layers/bn") == 1


def test_refused_forms():
    client, path = create("forms", num_features=3)
    body = files.safetensors({})
    wire.problem(client.put("/v1/snapshot", body, {**KIND, **WANTED}), 406, "not_acceptable")
    for method, target in (("PUT", path), ("PATCH", path)):
        wire.problem(client.request(method, target, body, KIND), 415, "unsupported_media_type")
    wire.problem(client.get(path, WANTED), 406, "not_acceptable")


def test_header_of_many_tensors_is_within_the_budget():
    """A header is charged to the budget as it is read, and many small tensors are not many bytes of memory."""
    count = 20000
    text = "{" + ",".join(f'"t{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(count)) + "}"
    body = files.raw_safetensors(text, b"")
    layer = text[:-1] + ',"bn.running_mean":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}' \
        ',"bn.running_var":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
    with harness.Server("--durability", "none", "--memory-budget", str(16 * MIB)) as server:
        reply = server.api().put("/v1/snapshot", files.raw_safetensors(layer, bytes(8)), KIND)
        assert reply.status == 200 and len(reply.json["ignored"]) == count, reply
    with harness.Server("--durability", "none", "--memory-budget", str(int(1.5 * len(body)))) as server:
        wire.problem(server.api().put("/v1/snapshot", body, KIND), 413, "body_too_large")
        assert server.api().get("/livez").status == 200


# ---- PyTorch

def test_torch():
    """A module's state goes in as it is, a snapshot comes back with load_state_dict(strict=True), and the two train
    alike."""
    try:
        import torch
    except ImportError:
        harness.skip("no torch")
    torch.manual_seed(1)
    client = harness.shared().api()
    clear(client)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4),
                              torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4, affine=False)))
    x = torch.randn(5, 4, 3, 3)
    net[1].train()(x)
    types = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}

    def tensors_of(module):
        return {f"net.{k}": (types[v.dtype], list(v.shape), v.flatten().tolist())
                for k, v in module.state_dict().items()}

    reply = client.put("/v1/snapshot", files.safetensors(tensors_of(net), {"format": "pt"}), KIND)
    assert reply.status == 200, reply
    assert reply.json == {"layers": {"net.1": 1, "net.2.0": 1, "net.2.1": 1}, "ignored": ["net.0.bias", "net.0.weight"]}
    for bn, name in ((net[1], "net.1"), (net[2][0], "net.2.0"), (net[2][1], "net.2.1")):
        want = bn.train()(x)
        got, _ = post(client, f"/v1/layers/{name}/train-forward",
                      {"x": ("F32", list(x.shape), x.flatten().tolist())})
        assert (torch.tensor(got["y"][2]).reshape(x.shape) - want).abs().max() < 1e-5
    tensors, _ = files.read_safetensors(client.get("/v1/snapshot?prefix=net.", WANTED).body)
    other = torch.nn.Sequential(torch.nn.Identity(), torch.nn.BatchNorm2d(4),
                                torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4, affine=False)))
    made = {name[4:]: torch.tensor(values, dtype={v: k for k, v in types.items()}[dtype]).reshape(shape)
            for name, (dtype, shape, values) in tensors.items()}
    other.load_state_dict(made, strict=True)
    for ours, theirs in ((other[1], net[1]), (other[2][0], net[2][0]), (other[2][1], net[2][1])):
        for key, value in theirs.state_dict().items():
            assert torch.allclose(ours.state_dict()[key], value, rtol=1e-5, atol=1e-6), key
    clear(client)


def test_the_reference_library():
    """Files of the safetensors package, and ours read by it."""
    try:
        import numpy
        import safetensors.numpy as package
    except ImportError:
        harness.skip("no safetensors package")
    client, path = create("package", num_features=3)
    x = numpy.array(X, "f4").reshape(SHAPE)
    reply = client.post(path + "/train-forward", package.save({"x": x}), KIND)
    got = package.load(reply.body)
    assert got["y"].dtype == numpy.float32 and got["y"].shape == (4, 3) and got["batch_mean"].shape == (3,), got
    saved = client.get(path + "/state", WANTED).body
    assert set(package.load(saved)) == {"package." + k for k in ("weight", "bias", "running_mean", "running_var",
                                                                 "num_batches_tracked")}
    assert client.put(path + "/state", package.save(package.load(saved)), KIND).status == 200


if __name__ == "__main__":
    harness.main()
