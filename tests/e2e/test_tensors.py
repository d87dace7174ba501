# SPDX-License-Identifier: Apache-2.0
"""Tensors on the wire: three JSON forms, four base64 types, ranks 2 to 8, every channel axis, exact texts, and what is
refused with a pointer to it."""
import base64
import json
import math
import random
import re
import socket
import struct

import harness
import reference
import wire

PACK = {"f32": "f", "f64": "d", "f16": "e"}


def api():
    return harness.shared().api()


def create(name, **config):
    client = api()
    client.delete("/v1/layers/" + name)
    return client, client.layer(name, **config)


def pack(values, dtype):
    if dtype == "bf16":  # values that bf16 holds: the upper half of their f32
        return b"".join(struct.pack("<f", v)[2:] for v in values)
    return struct.pack(f"<{len(values)}{PACK[dtype]}", *values)


def unpack(raw, dtype):
    if dtype == "bf16":
        return [struct.unpack("<f", b"\0\0" + raw[i:i + 2])[0] for i in range(0, len(raw), 2)]
    return list(struct.unpack(f"<{len(raw) // struct.calcsize(PACK[dtype])}{PACK[dtype]}", raw))


def b64(shape, values, dtype):
    return {"shape": shape, "dtype": dtype, "base64": base64.b64encode(pack(values, dtype)).decode()}


def values_of(tensor):
    if isinstance(tensor, list):
        return reference.flatten(tensor)
    return tensor["data"] if "data" in tensor else unpack(base64.b64decode(tensor["base64"], validate=True),
                                                          tensor["dtype"])


SMALL = [1.0, 2.5, -0.75, 4.0, 0.5, -3.0]  # exact in every type


@harness.rows([("f32 layer", "f32"), ("f64 layer", "f64")])
def test_forms_agree(dtype):
    client, path = create("forms", num_features=3, dtype=dtype)
    nested = client.infer(path, reference.nest(SMALL, [2, 3]))["y"]
    assert reference.shape_of(nested) == [2, 3]
    flat = client.infer(path, {"shape": [2, 3], "data": SMALL})["y"]
    assert set(flat) == {"shape", "data"} and flat["shape"] == [2, 3], flat
    assert wire.bits(flat["data"]) == wire.bits(reference.flatten(nested))
    for kind in ("f32", "f64", "f16", "bf16"):
        y = client.infer(path, b64([2, 3], SMALL, kind))["y"]
        assert set(y) == {"shape", "dtype", "base64"} and y["shape"] == [2, 3] and y["dtype"] == kind, y
        got, exact = values_of(y), [wire.f32(v) if dtype == "f32" else v for v in flat["data"]]
        if kind in ("f64", dtype):
            assert got == exact, (kind, got)
        for a, b in zip(got, exact):
            assert abs(a - b) <= abs(b) * {"f64": 0, "f32": 2 ** -24, "f16": 2 ** -11,
                                           "bf16": 2 ** -8}[kind], (kind, a, b)


def test_backward_answers_in_the_form_of_dout():
    client, path = create("doutform", num_features=3)
    nested, flat = reference.nest(SMALL, [2, 3]), {"shape": [2, 3], "data": SMALL}
    base = b64([2, 3], SMALL, "f64")
    want = client.backward(path, nested, x=nested)
    for dout, x in ((flat, base), (base, nested), (nested, flat)):
        got = client.backward(path, dout, x=x)
        assert reference.shape_of(got["dgamma"]) == [3], "vectors are JSON arrays"
        assert type(got["dx"]) is type(dout) and (isinstance(dout, list) or set(got["dx"]) == set(dout)), got
        assert [wire.f32(v) for v in values_of(got["dx"])] == [wire.f32(v) for v in values_of(want["dx"])], got
        assert got["dgamma"] == want["dgamma"], got


def test_rounding_of_f16_and_bf16_replies():
    client, path = create("round", num_features=1, eps=1.0)
    client.ok("PATCH", path + "/state", {"running_var": [0], "gamma": [1], "beta": [0], "running_mean": [0]})  # y = x
    f16 = [1 + 2 ** -11, 1 + 3 * 2 ** -11, 2 ** -25, 2 ** -24 * 1.5, 65504, 65519]
    x = {"shape": [6, 1], "dtype": "f32", "base64": base64.b64encode(pack(f16, "f32")).decode()}
    assert values_of(client.infer(path, x)["y"]) == f16, "f32 passes through"
    got = values_of(client.infer(path, b64([3, 1], [1.0, 2 ** -24, 65504], "f16"))["y"])
    assert got == [1.0, 2 ** -24, 65504], got
    client.ok("PATCH", path + "/state", {"beta": [2 ** -11]})
    assert values_of(client.infer(path, b64([2, 1], [1.0, 1 + 2 ** -10],
                                            "f16"))["y"]) == [1.0, 1 + 2 ** -9], "ties to even"
    client.ok("PATCH", path + "/state", {"beta": [2 ** -8]})
    assert values_of(client.infer(path, b64([2, 1], [1.0, 1 + 2 ** -7],
                                            "bf16"))["y"]) == [1.0, 1 + 2 ** -6], "ties to even"
    client.ok("PATCH", path + "/state", {"beta": [65504]})
    wire.problem(client.post(path + "/inference", {"x": b64([1, 1], [65504], "f16")}), 422)


SHAPES = [[2, 3], [3, 2, 4], [2, 3, 2, 2], [2, 2, 3, 1, 2], [1, 2, 3, 2, 1, 2], [2, 1, 2, 1, 3, 1, 2],
          [2, 1, 1, 2, 1, 2, 1, 3]]


@harness.rows([(f"rank {len(shape)}, axis {axis}", shape, axis)
               for shape in SHAPES for axis in range(-len(shape), len(shape))])
def test_rank_and_axis(shape, axis):
    rng = random.Random(str(shape))
    x = reference.nest([wire.f32(rng.uniform(-2, 2)) for _ in range(math.prod(shape))], shape)
    channels = shape[axis]
    count = math.prod(shape) // channels
    client, path = create("rank", num_features=channels, channel_axis=axis, dtype="f64")
    y, means, variances = reference.train(x, axis)
    got = client.train(path, x)
    reference.close(got["y"], y, 1e-10, 1e-10, "y")
    reference.close(got["batch_mean"], means, 1e-13, 1e-15, "batch_mean")
    reference.close(got["batch_var"], variances, 1e-13, 1e-15, "batch_var")
    assert got["count"] == count, got
    client, other = create("rank.other", num_features=channels, dtype="f64")
    again = client.train(other, x, channel_axis=axis)
    assert wire.bits(again["y"]) == wire.bits(got["y"]), "channel_axis of the call overrides the layer's"


NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def reads_back(text, value, kind):
    try:
        return struct.pack(kind, float(text)) == struct.pack(kind, value)
    except OverflowError:
        return False


@harness.rows([("f32", "f32", "<f", "<I", 32), ("f64", "f64", "<d", "<Q", 64)])
def test_shortest_text(dtype, kind, integer, width):
    """y = x for this layer, so the texts of y must read back to the bits of x, and none of them can be shorter."""
    rng = random.Random(7)
    values = [0.1, 1 / 3, 1e21, 1e-7, 123456789.0, 5e-324 if dtype == "f64" else 1e-45, 0.3, -2.5, -0.0, 0.0]
    while len(values) < 300:
        v = struct.unpack(kind, struct.pack(integer, rng.getrandbits(width)))[0]
        if math.isfinite(v):
            values.append(v)
    values = [struct.unpack(kind, struct.pack(kind, v))[0] for v in values]
    client, path = create("shortest", num_features=1, eps=1.0, dtype=dtype)
    client.ok("PATCH", path + "/state", {"running_var": [0], "beta": [-0.0]})
    x = {"shape": [len(values), 1], "dtype": dtype, "base64": base64.b64encode(
        struct.pack(f"<{len(values)}{kind[1]}", *values)).decode()}
    assert values_of(client.infer(path, x)["y"]) == values, "the layer is the identity"
    reply = client.post(path + "/inference", {"x": {"shape": [len(values), 1], "data": values}})
    text = re.search(rb'"data":\s*\[([^\]]*)\]', reply.body).group(1).decode()
    parts = [p.strip() for p in text.split(",")]
    assert len(parts) == len(values)
    for part, v in zip(parts, values):
        assert NUMBER.fullmatch(part), part
        back = struct.unpack(kind, struct.pack(kind, float(part)))[0]
        assert struct.pack(kind, back) == struct.pack(kind, v), (part, v)
        digits = len(re.sub(r"[eE].*|[-.]", "", part).strip("0"))
        fewest = next(n for n in range(1, 18) if reads_back(f"{v:.{n - 1}e}", v, kind))
        assert digits <= max(fewest, 1), f"{part} has {digits} digits, {fewest} are enough"


def test_minus_zero():
    client, path = create("minuszero", num_features=2, eps=1.0)
    client.ok("PATCH", path + "/state", {"running_var": [0, 0], "beta": [-0.0, -0.0]})
    reply = client.post(path + "/inference", '{"x":[[-0.0,0.0],[-0,0]]}')
    assert re.search(rb'"y":\s*\[\[\s*-0\.0,\s*0(\.0)?\],\s*\[', reply.body), reply
    state = client.get(path + "/state")
    assert re.search(rb'"beta":\s*\[-0\.0,\s*-0\.0\]', state.body), state
    text = wire.bits(client.ok("PUT", path + "/state", state.body)["beta"])
    assert text == "[-0.0, -0.0]", text


# 2^-150, exactly between 0 and the least f32: to even, which is 0.
HALF_OF_LEAST = ("7.006492321624085354618647916449580656401309709382578858785341419448955413429303007433190941810607910"
                 "15625e-46")


def test_decimals_are_rounded_correctly():
    """Halfway cases of f32."""
    texts = ["1.00000005960464477539", "1.000000059604644775390625", "1.0000000596046447753906250000000000000000001",
             "16777217", "16777219", "3.4028235677973366e38", "1.401298464324817e-45", "7.006492321624085e-46",
             HALF_OF_LEAST, HALF_OF_LEAST.replace("e-46", "1e-46"), "1e-400", "-1e-400", "0.1",
             "123456789012345678901234567890"]
    client, path = create("decimals", num_features=1, eps=1.0)
    client.ok("PATCH", path + "/state", {"running_var": [0], "beta": [-0.0]})
    body = '{"x":{"shape":[%d,1],"data":[%s]}}' % (len(texts), ",".join(texts))
    got = client.ok("POST", path + "/inference", body)["y"]["data"]
    want = [1.0, 1.0, 1.0000001192092896, 16777216.0, 16777220.0, 3.4028234663852886e38, 2 ** -149, 0.0, 0.0, 2 ** -149,
            0.0, -0.0, 0.1, 1.2345679e29]
    for text, a, b in zip(texts, got, want):
        assert struct.pack("<f", a) == struct.pack("<f", b), (text, a, b)


def test_overflow_of_a_number():
    client, path = create("overflow", num_features=1)
    wire.problem(client.post(path + "/train-forward", '{"x":[[1],[1e39]]}'), 422, "overflow", "/x/1/0")
    wire.problem(client.post(path + "/train-forward", '{"x":[[-1e400],[1]]}'), 422, "overflow", "/x/0/0")
    wire.problem(client.post(path + "/inference", '{"x":{"shape":[2,1],"data":[1,1e39]}}'), 422, "overflow",
                 "/x/data/1")
    wire.problem(client.post(path + "/inference", {"x": b64([2, 1], [1.0, 1e39], "f64")}), 422)
    assert client.version(path) == 1
    client, path = create("overflow64", num_features=1, dtype="f64")
    client.infer(path, [[1e300]])
    wire.problem(client.post(path + "/inference", '{"x":[[1e309]]}'), 422, "overflow", "/x/0/0")


BAD = [
    ("missing", '{}', "missing_field", None),
    ("number", '{"x":1}', None, "/x"),
    ("text", '{"x":"1"}', None, "/x"),
    ("null", '{"x":null}', None, "/x"),
    ("rank 1", '{"x":[1,2,3]}', None, "/x"),
    ("rank 9", '{"x":[[[[[[[[[1]]]]]]]]]}', None, None),
    ("row too short", '{"x":[[1,2,3],[4,5]]}', "ragged", "/x/1"),
    ("row too long", '{"x":[[1,2,3],[4,5,6,7]]}', "ragged", ("/x/1", "/x/1/3")),
    ("number for a row", '{"x":[[1,2,3],4]}', "ragged", "/x/1"),
    ("row for a number", '{"x":[[1,2,3],[4,[5],6]]}', "ragged", "/x/1/1"),
    ("empty row", '{"x":[[1,2,3],[]]}', "ragged", "/x/1"),
    ("deep", '{"x":[[[1],[2],[3]],[[1],[2],[3,4]]]}', "ragged", ("/x/1/2", "/x/1/2/1")),
    ("text as a value", '{"x":[[1,2,"3"]]}', None, "/x/0/2"),
    ("null as a value", '{"x":[[1,2,null]]}', None, "/x/0/2"),
    ("true as a value", '{"x":[[1,true,3]]}', None, "/x/0/1"),
    ("object as a value", '{"x":[[1,{},3]]}', None, "/x/0/1"),
    ("channels", '{"x":[[1,2],[3,4]]}', "shape_mismatch", ("/x", "/x/0")),
    ("channels, flat", '{"x":{"shape":[3,2],"data":[1,2,3,4,5,6]}}', "shape_mismatch",
     ("/x", "/x/shape", "/x/shape/1")),
    ("no shape", '{"x":{"data":[1,2,3]}}', "missing_field", None),
    ("no data", '{"x":{"shape":[1,3]}}', "missing_field", None),
    ("data and base64", '{"x":{"shape":[1,3],"data":[1,2,3],"dtype":"f32","base64":"AAAAAAAAAAAAAAAA"}}', None, None),
    ("too little data", '{"x":{"shape":[2,3],"data":[1,2,3]}}', "shape_mismatch", ("/x", "/x/data")),
    ("too much data", '{"x":{"shape":[1,3],"data":[1,2,3,4]}}', "shape_mismatch", ("/x", "/x/data", "/x/data/3")),
    ("nested data", '{"x":{"shape":[1,3],"data":[[1,2,3]]}}', None, ("/x/data", "/x/data/0")),
    ("shape of rank 1", '{"x":{"shape":[3],"data":[1,2,3]}}', None, ("/x/shape", "/x")),
    ("shape of rank 9", '{"x":{"shape":[1,3,1,1,1,1,1,1,1],"data":[1,2,3]}}', None, ("/x/shape", "/x", "/x/shape/8")),
    ("negative size", '{"x":{"shape":[-1,3],"data":[1,2,3]}}', None, "/x/shape/0"),
    ("broken size", '{"x":{"shape":[1.5,3],"data":[1,2,3]}}', None, "/x/shape/0"),
    ("size as text", '{"x":{"shape":["1",3],"data":[1,2,3]}}', None, "/x/shape/0"),
    ("shape is a number", '{"x":{"shape":3,"data":[1,2,3]}}', None, "/x/shape"),
    ("product overflows", '{"x":{"shape":[4294967296,4294967296],"data":[]}}', None, None),
    ("product overflows to 0", '{"x":{"shape":[4294967296,3,4294967296],"data":[]}}', None, None),
    ("product wraps to the data", '{"x":{"shape":[9223372036854775809,3],"data":[1,2,3]}}', None, None),
    ("no dtype", '{"x":{"shape":[1,3],"base64":"AAAAAAAAAAAAAAAA"}}', "missing_field", None),
    ("unknown dtype", '{"x":{"shape":[1,3],"dtype":"i8","base64":"AAAA"}}', None, "/x/dtype"),
    ("too few bytes", '{"x":{"shape":[1,3],"dtype":"f32","base64":"AAAAAAAAAAA="}}', None, ("/x/base64", "/x")),
    ("too many bytes", '{"x":{"shape":[1,3],"dtype":"f32","base64":"AAAAAAAAAAAAAAAAAAAA"}}', None,
     ("/x/base64", "/x")),
    ("not the alphabet", '{"x":{"shape":[1,3],"dtype":"f32","base64":"AAAA*AAAAAAAAAAA"}}', None, "/x/base64"),
    ("no padding", '{"x":{"shape":[2,3],"dtype":"bf16","base64":"AAAAAAAAAAAAAAA"}}', None, "/x/base64"),
    ("white space", '{"x":{"shape":[1,3],"dtype":"f32","base64":"AAAAAAAA AAAAAAA"}}', None, "/x/base64"),
    ("number as base64", '{"x":{"shape":[1,3],"dtype":"f32","base64":5}}', None, "/x/base64"),
]


@harness.rows(BAD)
def test_refused(body, code, pointer):
    client = api()
    client.put("/v1/layers/refused", {"num_features": 3})
    for call in ("train-forward", "inference"):
        wire.problem(client.post("/v1/layers/refused/" + call, body), 422, code, pointer)
    counters = client.ok("GET", "/v1/layers/refused")
    assert counters["version"] == 1 and counters["counters"]["train_forward"] == 0, counters


@harness.rows([
    ("unknown field of a tensor", '{"x":{"shape":[1,3],"data":[1,2,3],"order":"C"}}', "unknown_field", "/x/order"),
    ("duplicate field of a tensor", '{"x":{"shape":[1,3],"data":[1,2,3],"data":[1,2,3]}}', "duplicate_field",
     "/x/data"),
    ("duplicate tensor", '{"x":[[1,2,3]],"x":[[1,2,3]]}', "duplicate_field", "/x"),
    ("plus sign", '{"x":[[+1,2,3]]}', "malformed_json", None),
    ("leading dot", '{"x":[[.5,2,3]]}', "malformed_json", None),
    ("trailing dot", '{"x":[[5.,2,3]]}', "malformed_json", None),
    ("hexadecimal", '{"x":[[0x10,2,3]]}', "malformed_json", None),
    ("empty exponent", '{"x":[[1e,2,3]]}', "malformed_json", None),
    ("leading zeros", '{"x":[[01,2,3]]}', "malformed_json", None),
    ("minus alone", '{"x":[[-,2,3]]}', "malformed_json", None),
    ("bare NaN", '{"x":[[NaN,2,3]]}', "malformed_json", None),
    ("bare Infinity", '{"x":[[-Infinity,2,3]]}', "malformed_json", None),
    ("comma too much", '{"x":[[1,2,3,]]}', "malformed_json", None),
    ("comma too few", '{"x":[[1,2 3]]}', "malformed_json", None),
    ("unclosed", '{"x":[[1,2,3]', "malformed_json", None),
])
def test_malformed(body, code, pointer):
    client = api()
    client.put("/v1/layers/refused", {"num_features": 3})
    wire.problem(client.post("/v1/layers/refused/train-forward", body), 400, code, pointer)
    assert client.version("/v1/layers/refused") == 1


def test_white_space_and_order_do_not_matter():
    client, path = create("spaces", num_features=2)
    plain = client.infer(path, [[1, 2]])
    for body in (' \r\n\t{ "x" : [ [ 1 , 2.0 ] ] } \n', '{"x":{"data":[10e-1,2E0],"shape":[1,2]}}',
                 '{"\\u0078":[[1,2]]}'):
        got = client.ok("POST", path + "/inference", body)
        assert values_of(got["y"]) == plain["y"][0], got


@harness.rows([
    ("nested", [], []), ("flat", {"shape": [0, 3, 2], "data": []}, {"shape": [0, 3, 2], "data": []}),
    ("flat, empty inside", {"shape": [2, 3, 0], "data": []}, {"shape": [2, 3, 0], "data": []}),
    ("base64", {"shape": [0, 3], "dtype": "f16", "base64": ""}, {"shape": [0, 3], "dtype": "f16", "base64": ""}),
    ("nested, empty inside", [[[], [], []]], [[[], [], []]]),
])
def test_empty_batch(x, y):
    client, path = create("empty", num_features=3)
    before = client.state(path)
    got = client.train(path, x)
    assert got == {"y": y, "batch_mean": None, "batch_var": None, "count": 0, "num_batches_tracked": 0,
                   "updated": False,
                   "version": 1}, got
    assert client.infer(path, x) == {"y": y, "version": 1}
    got = client.backward(path, x, x=x, step={"lr": 1})
    assert got == {"dx": y, "dgamma": [0, 0, 0], "dbeta": [0, 0, 0], "version": 1}, got
    assert client.state(path) == before


def test_large_reply_is_json():
    client, path = create("large", num_features=4)
    x = [[i, i + 1, i * 0.1, -i] for i in range(20000)]
    got = client.train(path, x)
    assert reference.shape_of(got["y"]) == [20000, 4] and len(json.dumps(got)) > 10 ** 5
    want, _, _ = reference.train([[wire.f32(v) for v in row] for row in x])
    reference.close(got["y"], want, 1e-6, 1e-6)


def post_in_pieces(path, body, piece, chunked):
    """Each piece as a write of its own, so that the server reads what has come before the rest does."""
    with wire.connect(harness.shared(), harness.seconds(60)) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
        s.sendall(b"POST %b HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % (path.encode(), length))
        for at in range(0, len(body), piece):
            part = body[at:at + piece]
            s.sendall(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
        if chunked:
            s.sendall(b"0\r\n\r\n")
        return wire.read_reply(s, harness.seconds(60))


@harness.rows([("with its length", False), ("in chunks", True)])
def test_body_in_pieces(chunked):
    """The arrays of a body are read while it arrives: the same bits, and the same errors, as of one that came at once."""
    client, path = create("pieces", num_features=4)
    random.seed(5)
    values = [random.gauss(3, 2) for _ in range(40_000)]
    nested, flat = reference.nest(values, [10_000, 4]), {"shape": [10_000, 4], "data": values}
    bodies = {path + "/inference": {"x": nested}, path + "/backward": {"dout": flat, "x": nested, "residual": flat}}
    inputs = [{"name": "x", "datatype": "FP32", "shape": [10_000, 4], "data": nested}]
    bodies["/v2/models/pieces/infer"] = {"inputs": inputs}
    for where, body in bodies.items():
        text = json.dumps(body, indent=1).encode()
        reply = post_in_pieces(where, text, 7919, chunked)
        assert reply.status == 200 and reply.body == client.post(where, text).body, where
    bad = json.dumps({"x": nested, "residual": flat}).encode()
    last = bad.rindex(b", ") + 2
    reply = post_in_pieces(path + "/inference", bad[:last] + b"true]}}", 7919, chunked)
    wire.problem(reply, 422, "wrong_type", "/residual/data/39999")
    reply = post_in_pieces(path + "/inference", bad[:last], 7919, chunked)
    wire.problem(reply, 400, "malformed_json")


def test_most_channels():
    """C = 1 048 576 in f64, through base64; vectors in the reply are JSON arrays."""
    channels = 1 << 20
    client, path = create("widest", num_features=channels, dtype="f64")
    raw = struct.pack("<d", 1.0) * channels + struct.pack("<d", 3.0) * channels
    x = {"shape": [2, channels], "dtype": "f64", "base64": base64.b64encode(raw).decode()}
    got = client.train(path, x)
    assert got["batch_mean"] == [2] * channels and got["batch_var"] == [1] * channels and got["count"] == 2
    y = values_of(got["y"])
    assert set(y[:channels]) == {-y[-1]} and set(y[channels:]) == {y[-1]} and abs(y[-1] - 1) < 1e-5
    client.delete(path)


harness.main()
