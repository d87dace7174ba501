# SPDX-License-Identifier: Apache-2.0
"""activation and residual: y = relu(bn(x) + residual) on the three calls, and the gradients through it."""
import base64
import math
import random
import struct
import threading

import harness
import reference
import wire

X = [[1.5, -2.0, 0.25], [3.0, 0.5, -1.0], [-0.5, 4.0, 2.0], [2.25, 1.0, 0.0]]
DOUT = [[0.5, -1.0, 2.0], [1.0, 0.25, -0.5], [-1.5, 0.75, 1.0], [0.25, 2.0, -2.5]]
R = [[-1.0, 2.0, -4.0], [0.5, -0.25, 3.0], [2.0, -3.0, 0.25], [-2.5, 1.5, -1.0]]
GAMMA, BETA = [1.5, 0.5, -2.0], [0.25, -1.0, 3.0]
FIXED = {"gamma": GAMMA, "beta": BETA, "running_mean": [0.5, 1.0, -0.25], "running_var": [2.0, 3.5, 0.75],
         "num_batches_tracked": 5}
RELU, RESIDUAL, BOTH = {"activation": "relu"}, {"residual": R}, {"activation": "relu", "residual": R}
POSTS = [("relu", RELU), ("residual", RESIDUAL), ("relu of the sum", BOTH)]
DTYPES = (("f32", 1e-5), ("f64", 1e-12))


def create(name, **config):
    client = harness.shared().api()
    client.delete("/v1/layers/" + name)
    return client, client.layer(name, **config)


def affine(name, **config):
    """A layer with gamma, beta and running statistics set; version 2."""
    client, path = create(name, **{"dtype": "f64", **config})
    client.ok("PUT", path + "/state", FIXED)
    return client, path


def base64_of(values, shape, dtype):
    kind = {"f64": "d", "f32": "f", "f16": "e", "bf16": "f"}[dtype]
    raw = struct.pack(f"<{len(values)}{kind}", *values)
    if dtype == "bf16":  # the upper half of an f32, exact for the values here
        raw = b"".join(raw[i + 2:i + 4] for i in range(0, len(raw), 4))
    return {"shape": shape, "dtype": dtype, "base64": base64.b64encode(raw).decode()}


def forms_of(values, shape):
    return [reference.nest(values, shape), {"shape": shape, "data": values}] + [
        base64_of(values, shape, dtype) for dtype in ("f64", "f32", "f16", "bf16")]


# ---- forward

@harness.rows([(f"{name}, {dtype}", post, dtype, tight) for name, post in POSTS for dtype, tight in DTYPES])
def test_train(post, dtype, tight):
    client, path = affine("train", dtype=dtype)
    client, plain = affine("train.plain", dtype=dtype)
    got, want = client.train(path, X, **post), client.train(plain, X)
    reference.close(got["y"], reference.post(reference.train(X, 1, 1e-5, GAMMA, BETA)[0], **post), tight, tight, "y")
    assert {**got, "y": 0} == {**want, "y": 0}, "statistics and reply are those of x alone"
    assert client.state(path) == client.state(plain)
    if "activation" in post:
        assert any(v == 0 for v in reference.flatten(got["y"])), "the test is of something"
        assert "-0.0" not in wire.bits(got["y"]), "flat is +0"


@harness.rows([(f"{name}, {kind}", post, kind) for name, post in POSTS for kind in ("running", "own", "plain")])
def test_inference(post, kind):
    """With running statistics, with the batch's own, and without gamma and beta."""
    client, path = create("infer", dtype="f64", track_running_stats=kind != "own", affine=kind != "plain")
    gamma, beta = (GAMMA, BETA) if kind != "plain" else (None, None)
    has = {"gamma", "beta"} if kind == "own" else {"running_mean", "running_var"} if kind == "plain" else set(FIXED)
    client.ok("PATCH", path + "/state", {k: v for k, v in FIXED.items() if k in has})
    before = client.state(path)
    y = reference.normalize(X, 1, FIXED["running_mean"], FIXED["running_var"], 1e-5, gamma, beta)
    if kind == "own":
        y = reference.train(X, 1, 1e-5, gamma, beta)[0]
    got = client.infer(path, X, **post)
    reference.close(got["y"], reference.post(y, **post), 1e-12, 1e-12, "y")
    assert set(got) == {"y", "version"} and client.state(path) == before, got
    if kind == "own":
        assert wire.bits(got["y"]) == wire.bits(client.train(path, X, **post)["y"]), "train-forward's bits"


@harness.rows([(f"{shape}, {dtype}", shape, dtype) for shape in ([40, 300], [3, 70, 9], [50, 3, 4], [2, 3, 3000])
               for dtype, _ in DTYPES])
def test_inference_with_own_statistics_is_train_forward(shape, dtype):
    """In the place of x: the same bits as beside it."""
    rng = random.Random(3)
    client, path = create("own", num_features=shape[1], dtype=dtype, track_running_stats=False)
    x, residual = ({"shape": shape, "data": [wire.f32(rng.gauss(5, 2)) for _ in range(math.prod(shape))]} for _ in "xr")
    for post in ({}, {"activation": "relu", "residual": residual}):
        assert wire.bits(client.infer(path, x, **post)["y"]) == wire.bits(client.train(path, x, **post)["y"])


def test_channels_last_and_other_ranks():
    rng = random.Random(1)
    client, path = affine("rank", channel_axis=-1)
    shape = [2, 3, 2, 3]
    x, dout, residual = (reference.nest([rng.gauss(0, 2) for _ in range(36)], shape) for _ in range(3))
    y = reference.train(x, -1, 1e-5, GAMMA, BETA)[0]
    post = {"activation": "relu", "residual": residual}
    reference.close(client.train(path, x, **post)["y"], reference.post(y, **post), 1e-11, 1e-11)
    got, masked = client.backward(path, dout, x=x, **post), reference.masked(dout, y, **post)
    reference.close(got["dx"], reference.backward(x, masked, -1, 1e-5, GAMMA)[0], 1e-10, 1e-11)
    assert got["dresidual"] == masked
    order = [0, 3, 1, 2]
    first = {"activation": "relu", "residual": reference.permute(residual, order)}
    moved = client.train(path, reference.permute(x, order), channel_axis=1, **first)["y"]
    reference.close(moved, reference.permute(reference.post(y, **post), order), 1e-11, 1e-11)


def test_first_batch_and_single_value():
    client, path = create("first", dtype="f64", init="first-batch")
    kept = client.train(path, X, cache=True, **BOTH)
    reference.close(kept["y"], reference.post(X, **BOTH), 1e-13, 1e-13, "bn(x) is x")
    got = client.backward(path, DOUT, cache=kept["cache"])
    assert got["dresidual"] == reference.masked(DOUT, X, **BOTH), got
    client, path = affine("single", single_value="beta")
    one = {"activation": "relu", "residual": [[-0.25, -1.0, 3.5]]}
    got = client.train(path, [[7, 8, 9]], cache=True, **one)
    assert got["y"] == [[0, 0, 6.5]] and got["updated"] is False and "-0.0" not in wire.bits(got["y"]), got
    assert client.train(path, [[7, 8, 9]], residual=[[1, 2, 3]])["y"] == [[1.25, 1, 6]]
    assert client.train(path, [[7, 8, 9]], activation="relu")["y"] == [[0.25, 0, 3]]
    back = client.backward(path, [[1, 2, 3]], cache=got["cache"])
    assert (back["dx"], back["dresidual"], back["dbeta"]) == ([[0] * 3], [[0, 0, 3]], [0, 0, 3]), back
    client, path = create("single32", track_running_stats=False, single_value="beta")
    client.ok("PATCH", path + "/state", {"beta": [0.1, -0.0, 1]})
    assert client.infer(path, [[1, 2, 3]], residual=[[0.2, -0.0, -1]])["y"] == [[0.3, -0.0, 0]], "the sum is of f32"


@harness.rows([("nested", []), ("flat", {"shape": [0, 3, 2], "data": []}),
               ("base64", {"shape": [0, 3], "dtype": "f16", "base64": ""})])
def test_empty_batch(x):
    client, path = create("empty")
    for residual in (x, []):
        got = client.train(path, x, activation="relu", residual=residual, cache=True)
        assert got["y"] == x and got["count"] == 0 and got["updated"] is False, got
        assert client.infer(path, x, residual=residual)["y"] == x
        zeros = {"dx": x, "dresidual": x, "dgamma": [0] * 3, "dbeta": [0] * 3, "version": 1}
        assert client.backward(path, x, x=x, residual=residual, step={"lr": 1}) == zeros
        assert client.backward(path, x, cache=got["cache"]) == zeros


# ---- backward

@harness.rows([(f"{name}, {mode}", post, mode) for name, post in POSTS for mode in ("train", "inference")])
def test_backward(post, mode):
    client, path = affine("backward")
    stats = (FIXED["running_mean"], FIXED["running_var"]) if mode == "inference" else None
    y = (reference.normalize(X, 1, *stats, 1e-5, GAMMA, BETA) if stats else reference.train(X, 1, 1e-5, GAMMA, BETA)[0])
    masked = reference.masked(DOUT, y, **post)
    want = reference.backward(X, masked, 1, 1e-5, GAMMA, stats)
    got = client.backward(path, DOUT, x=X, mode=mode, **post)
    for key, value in zip(("dx", "dgamma", "dbeta"), want):
        reference.close(got[key], value, 1e-11, 1e-12, key)
    assert set(got) == {"dx", "dgamma", "dbeta", "version"} | ({"dresidual"} if "residual" in post else set()), got
    if "residual" in post:
        assert got["dresidual"] == masked and "-0.0" not in wire.bits(got["dresidual"]), got
    stepped = client.backward(path, DOUT, x=X, mode=mode, step={"lr": 0.5}, **post)
    assert wire.bits({**stepped, "version": 2}) == wire.bits(got) and stepped["version"] == 3, stepped
    reference.close(client.state(path)["gamma"], [g - 0.5 * d for g, d in zip(GAMMA, got["dgamma"])], 1e-15, 1e-15)
    reference.close(client.state(path)["beta"], [b - 0.5 * d for b, d in zip(BETA, got["dbeta"])], 1e-15, 1e-15)


@harness.rows([(f"{name}, {dtype}", post, dtype) for name, post in POSTS for dtype, _ in DTYPES])
def test_cache_gives_the_bits_of_x(post, dtype):
    client, path = affine("pass", dtype=dtype)
    kept = client.train(path, X, cache=True, **post)["cache"]
    client.ok("PUT", path + "/state", FIXED)
    for mode in ("train", "inference"):
        plain = client.backward(path, DOUT, x=X, mode=mode, **post)
        for _ in range(2):  # a pass is not consumed
            assert wire.bits(client.backward(path, DOUT, cache=kept, mode=mode)) == wire.bits(plain)
    first = client.backward(path, DOUT, cache=kept)
    client.ok("PATCH", path, {"eps": 0.5})
    client.ok("PATCH", path + "/state", {"gamma": [9, 9, 9], "beta": [-9, -9, -9]})
    later = client.backward(path, DOUT, cache=kept)
    assert wire.bits({**later, "version": 0}) == wire.bits({**first, "version": 0}), "gamma, beta and eps of the pass"
    client, path = create("pass.plain", dtype=dtype, affine=False)
    kept = client.train(path, X, cache=True, **post)["cache"]
    assert wire.bits(client.backward(path, DOUT, cache=kept)) == wire.bits(client.backward(path, DOUT, x=X, **post))


@harness.rows([(f"{name}, {mode}", post, mode) for name, post in POSTS for mode in ("train", "inference")])
def test_gradient_against_finite_differences(post, mode):
    """d(sum(y*w))/dx, /dresidual, /dgamma and /dbeta by central differences of the forward call, in f64."""
    client, path = affine("gradient")
    call = client.train if mode == "train" else client.infer
    h = 1e-6
    y = reference.train(X, 1, 1e-5, GAMMA, BETA)[0]
    if mode == "inference":
        y = reference.normalize(X, 1, FIXED["running_mean"], FIXED["running_var"], 1e-5, GAMMA, BETA)
    sums = reference.flatten(reference.post(y, None, post.get("residual")))
    assert min(abs(v) for v in sums) > 0.01, "no kink within reach"
    assert len({v > 0 for v in sums}) == 2, "some of it flat"

    def loss(values):
        client.ok("PUT", path + "/state", {**FIXED, "gamma": values["gamma"], "beta": values["beta"]})
        tensors = {k: reference.nest(values[k], [4, 3]) for k in ("x", "residual") if k in values}
        got = call(path, **tensors, **{k: v for k, v in post.items() if k == "activation"})["y"]
        return math.fsum(a * b for a, b in zip(reference.flatten(got), reference.flatten(DOUT)))

    def slope(values, name, i):
        moved = [{**values, name: values[name][:i] + [values[name][i] + d] + values[name][i + 1:]} for d in (h, -h)]
        return (loss(moved[0]) - loss(moved[1])) / (2 * h)

    at = {"x": reference.flatten(X), "gamma": GAMMA, "beta": BETA}
    if "residual" in post:
        at["residual"] = reference.flatten(R)
    want = {name: [slope(at, name, i) for i in range(len(values))] for name, values in at.items()}
    client.ok("PUT", path + "/state", FIXED)
    got = client.backward(path, DOUT, x=X, mode=mode, **post)
    for name, values in want.items():
        reference.close(reference.flatten(got["d" + name]), values, 1e-6, 1e-7, "d" + name)


# ---- forms

@harness.rows([(dtype, dtype) for dtype, _ in DTYPES])
def test_a_residual_has_any_form_of_its_own(dtype):
    client, path = affine("forms", dtype=dtype)
    values = reference.flatten(R)  # exact in every type
    want = client.infer(path, X, **BOTH)["y"]
    grads = client.backward(path, DOUT, x=X, **BOTH)
    for residual in forms_of(values, [4, 3]):
        post = {"activation": "relu", "residual": residual}
        assert wire.bits(client.infer(path, X, **post)["y"]) == wire.bits(want)
        assert wire.bits(client.backward(path, DOUT, x=X, **post)) == wire.bits(grads), "in the form of dout"


def test_dresidual_has_the_form_of_dout():
    client, path = affine("doutform", dtype="f32")
    want = reference.flatten(client.backward(path, DOUT, x=X, **BOTH)["dresidual"])
    kept = client.train(path, X, cache=True, activation="relu", residual=base64_of(reference.flatten(R), [4, 3], "f64"))
    client.ok("PUT", path + "/state", FIXED)
    for dout in forms_of(reference.flatten(DOUT), [4, 3]):
        for source in ({"x": X, **BOTH}, {"cache": kept["cache"]}):
            got = client.backward(path, dout, **source)["dresidual"]
            if isinstance(dout, list):
                assert got == reference.nest(want, [4, 3]), got
            elif "data" in dout:
                assert got == {"shape": [4, 3], "data": want}, got
            else:
                assert got == base64_of(want, [4, 3], dout["dtype"]), got


def test_large_tensors():
    """Computed on a worker, with the pool; a value here and there is compared."""
    rng = random.Random(2)
    client, path = create("large", num_features=7, dtype="f64")
    shape = [harness.scaled(900, 90), 7, 5]
    x, residual, dout = ([rng.gauss(0, 1) for _ in range(math.prod(shape))] for _ in range(3))
    post = {"activation": "relu", "residual": {"shape": shape, "data": residual}}
    flat = {"shape": shape, "data": x}
    kept = client.train(path, flat, cache=True, **post)
    y = reference.train(reference.nest(x, shape))[0]
    want = reference.flatten(reference.post(y, "relu", reference.nest(residual, shape)))
    reference.close(kept["y"]["data"], want, 1e-10, 1e-10)
    masked = [d if v > 0 else 0 for d, v in zip(dout, want)]
    got = client.backward(path, {"shape": shape, "data": dout}, cache=kept["cache"])
    assert got["dresidual"]["data"] == masked
    again = client.backward(path, {"shape": shape, "data": dout}, x=flat, **post)
    assert wire.bits(again) == wire.bits(got)


# ---- refused

SHORT, RAGGED, TEXT = R[:3], R[:3] + [[1, 2]], [["a", 2, 3]] + R[1:]


@harness.rows([(f"{call}: {name}", call, post, status, code, pointer)
               for call in ("train-forward", "inference", "backward")
               for name, post, status, code, pointer in (
                   ("unknown word", {"activation": "gelu"}, 422, "out_of_range", "/activation"),
                   ("none is no word", {"activation": "none"}, 422, "out_of_range", "/activation"),
                   ("activation is null", {"activation": None}, 422, "wrong_type", "/activation"),
                   ("activation is an object", {"activation": {}}, 422, "wrong_type", "/activation"),
                   ("residual is null", {"residual": None}, 422, "wrong_type", "/residual"),
                   ("residual is a number", {"residual": 0}, 422, "wrong_type", "/residual"),
                   ("one row less", {"residual": SHORT}, 422, "shape_mismatch", "/residual"),
                   ("another rank", {"residual": [R]}, 422, "shape_mismatch", "/residual"),
                   ("of one channel", {"residual": [[1]] * 4}, 422, "shape_mismatch", "/residual"),
                   ("empty", {"residual": []}, 422, "shape_mismatch", "/residual"),
                   ("ragged", {"residual": RAGGED}, 422, "ragged", "/residual/3"),
                   ("text in it", {"residual": TEXT}, 422, "wrong_type", "/residual/0/0"),
                   ("overflow in it", {"residual": {"shape": [4, 3], "data": [1] * 11 + [1e39]}}, 422, "overflow",
                    "/residual/data/11"),
                   ("not finite", {"residual": R[:3] + [[0, "NaN", 0]]}, 422, "non_finite", "/residual/3/1"),
                   ("dresidual is no field", {"dresidual": R}, 400, "unknown_field", "/dresidual"))])
def test_refused(call, post, status, code, pointer):
    client = harness.shared().api()
    client.put("/v1/layers/refused", {"num_features": 3})
    before = client.state("/v1/layers/refused")
    body = {"x": X, **({"dout": DOUT} if call == "backward" else {}), **post}
    wire.problem(client.post("/v1/layers/refused/" + call, body), status, code, pointer)
    assert client.state("/v1/layers/refused") == before


def test_they_come_from_the_pass():
    client, path = affine("conflict")
    kept = client.train(path, X, cache=True, **BOTH)["cache"]
    for more, pointer in ((RELU, "/activation"), (RESIDUAL, "/residual"), (BOTH, ("/activation", "/residual"))):
        wire.problem(client.post(path + "/backward", {"dout": DOUT, "cache": kept, **more}), 422, "conflicting_fields",
                     pointer)
    wire.problem(client.put(path, {"num_features": 3, "activation": "relu"}), 400, "unknown_field", "/activation")


def test_a_field_given_twice():
    client, path = affine("twice")
    for field, value in (("activation", '"relu"'), ("residual", "[[1,2,3]]")):
        body = b'{"x":[[1,2,3]],"%b":%b,"%b":%b}' % ((field.encode(), value.encode()) * 2)
        wire.problem(client.post(path + "/inference", body), 400, "duplicate_field", "/" + field)


def test_result_that_overflows_is_refused():
    client, path = create("toolarge", num_features=1)
    half = [[3e38], [0]]
    client.ok("PATCH", path + "/state", {"gamma": [3e38]})
    for call in ("train-forward", "inference"):
        wire.problem(client.post(path + "/" + call, {"x": [[1], [-1]], "residual": half}), 422, "overflow")
        assert client.post(path + "/" + call, {"x": [[-1], [1]], "residual": half}).status == 200
    client.ok("PATCH", path + "/state", {"gamma": [1]})
    x = base64_of([60000.0, 0.0], [2, 1], "f16")
    wire.problem(client.post(path + "/inference", {"x": x, "residual": [[60000], [0]]}), 422, "overflow", "/x/base64")
    assert client.post(path + "/inference", {"x": x, "residual": [[-70000], [0]], "activation": "relu"}).status == 200
    before = client.state(path)
    x, dout = [[1e-3], [0], [0]], [[3e38], [1], [1]]
    wire.problem(client.post(path + "/backward", {"x": x, "dout": dout, "step": {"lr": 1}, "residual": [[1]] * 3}), 422,
                 "overflow")
    masked = client.backward(path, dout, x=x, residual=[[-9], [9], [9]], activation="relu")
    assert masked["dresidual"] == [[0], [1], [1]], "what is masked cannot overflow"
    assert client.state(path) == before


# ---- values that are not finite

def test_skip_update():
    client, path = affine("skip", nonfinite="skip_update")
    before = client.state(path)
    spoilt = {"activation": "relu", "residual": [["NaN", "-Infinity", "Infinity"]] + R[1:]}
    got = client.train(path, X, cache=True, **spoilt)
    assert got["updated"] is False and got["version"] == 2 and got["y"][0] == ["NaN", 0, "Infinity"], got
    assert isinstance(got["batch_mean"][0], float) and client.state(path) == before, "the statistics are of x"
    for source in ({"x": X, **spoilt}, {"cache": got["cache"]}):
        back = client.backward(path, DOUT, step={"lr": 1}, **source)
        assert back["dresidual"][0] == [DOUT[0][0], 0, DOUT[0][2]], "NaN is not flat"
        assert back["version"] == 2 and client.state(path) == before, "no step"
    assert client.ok("GET", path)["counters"]["skipped"] == 3
    assert client.train(path, X, **BOTH)["updated"] is True


def test_propagate():
    client, path = affine("propagate", nonfinite="propagate")
    spoilt = {"activation": "relu", "residual": [["NaN", "-Infinity", "Infinity"]] + R[1:]}
    got = client.train(path, X, **spoilt)
    assert got["updated"] is True and got["version"] == 3 and got["y"][0] == ["NaN", 0, "Infinity"], got
    assert client.infer(path, [["NaN", 1, 1]], activation="relu")["y"][0][0] == "NaN", "relu keeps NaN"
    dout = [["NaN", 1, "Infinity"]] + DOUT[1:]
    back = client.backward(path, dout, x=X, step={"lr": 1}, **spoilt)
    assert back["dresidual"][0] == ["NaN", 0, "Infinity"] and back["version"] == 4, back
    assert client.state(path)["gamma"][0] == "NaN"


# ---- passes, and changes behind a call

def test_memory_of_a_pass():
    client, path = create("memory", num_features=4)
    x = base64_of([float(i) for i in range(4000)], [1000, 4], "f32")
    sizes = {}
    for name, post in (("plain", {}), ("relu", RELU), ("residual", {"residual": x}),
                       ("both", {"activation": "relu", "residual": x})):
        before = client.ok("GET", path)["memory"]["cache_bytes"]
        client.train(path, x, cache=True, **post)
        sizes[name] = client.ok("GET", path)["memory"]["cache_bytes"] - before
    assert sizes["relu"] == sizes["plain"] == sizes["residual"], f"a sum needs no residual in its gradient: {sizes}"
    assert sizes["both"] - sizes["plain"] >= 16000, sizes


def test_a_pass_dies_by_eviction_and_restart():
    x = [[float(i % 7 + j) for j in range(3)] for i in range(1000)]  # 12 kB of f32
    post = {"activation": "relu", "residual": x}
    with harness.Server("--durability", "none", "--cache-budget", "64K") as server:
        client = server.api()
        path = client.layer("lru")
        first = client.train(path, x, cache=True, **post)["cache"]
        assert client.post(path + "/backward", {"dout": x, "cache": first}).status == 200
        last = [client.train(path, x, cache=True, **post)["cache"] for _ in range(5)][-1]
        wire.problem(client.post(path + "/backward", {"dout": x, "cache": first}), 410, "cache_gone")
        assert client.post(path + "/backward", {"dout": x, "cache": last}).status == 200
        assert client.ok("GET", path)["memory"]["cache_bytes"] <= 64 * 1024
        more = {"x": x * 3, "cache": True}  # fits alone, but not with its residual
        assert client.post(path + "/train-forward", {**more, "residual": x * 3}).status == 200
        wire.problem(client.post(path + "/train-forward", {**more, "residual": x * 3, "activation": "relu"}), 422,
                     "out_of_range", "/cache")
    with harness.Server() as server:
        client = server.api()
        path = client.layer("restart")
        kept, state = client.train(path, X, cache=True, **BOTH)["cache"], client.state(path)
        server.kill()
        with harness.Server(data=server.data) as again:
            client = again.api()
            assert client.state(path) == state
            wire.problem(client.post(path + "/backward", {"dout": DOUT, "cache": kept}), 410, "cache_gone")


def test_y_is_made_again_whole():
    """gamma and beta change while a large call computes: activation and residual are applied to the new y too."""
    rows = 100_000
    body = b'{"x":[%b],"activation":"relu","residual":[%b],"cache":true}' % (
        b",".join([b"[1],[-1]"] * (rows // 2)), b",".join([b"[-2.25],[7]"] * (rows // 2)))
    with harness.Server("--durability", "none") as server:
        client, seen = server.api(), []
        path = client.layer("stale", num_features=1)
        for _ in range(harness.scaled(4, 1)):
            slow = threading.Thread(
                target=lambda: seen.append(server.api().ok("POST", path + "/train-forward", body)))
            gammas = {client.version(path): client.state(path)["gamma"][0]}
            slow.start()
            while slow.is_alive():
                gamma = len(gammas) % 9 + 1
                gammas[client.ok("PATCH", path + "/state", {"gamma": [gamma], "beta": [0.5]})["version"]] = gamma
            slow.join()
            got = seen[-1]
            gamma = gammas[got["version"] - 1]
            sums = [gamma + 0.5 - 2.25, -gamma + 0.5 + 7]
            reference.close(got["y"][:2], [[max(v, 0)] for v in sums], 1e-3, 1e-3, f"gamma {gamma}")
            back = client.backward(path, [[1]] * rows, cache=got["cache"])
            assert back["dresidual"][:2] == [[int(v > 0)] for v in sums], f"gamma {gamma}: {back['dresidual'][:2]}"


harness.main()
