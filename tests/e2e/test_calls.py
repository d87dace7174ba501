# SPDX-License-Identifier: Apache-2.0
"""train-forward, inference and backward: what is computed, what changes the state and what does not."""
import random

import harness
import reference
import wire

X = [[1.5, -2.0, 0.25], [3.0, 0.5, -1.0], [-0.5, 4.0, 2.0], [2.25, 1.0, 0.0]]
DOUT = [[0.5, -1.0, 2.0], [1.0, 0.25, -0.5], [-1.5, 0.75, 1.0], [0.0, 2.0, -2.5]]
GAMMA, BETA = [1.5, 0.5, -2.0], [0.25, -1.0, 3.0]
VECTORS = ("gamma", "beta", "running_mean", "running_var", "num_batches_tracked")


def create(name, **config):
    client = harness.shared().api()
    client.delete("/v1/layers/" + name)
    return client, client.layer(name, **config)


def affine(name, **config):
    """A layer of dtype f64 with gamma and beta set; version 2."""
    client, path = create(name, dtype="f64", **config)
    client.ok("PATCH", path + "/state", {"gamma": GAMMA, "beta": BETA})
    return client, path


# ---- train-forward

@harness.rows([(name, name, weight, ddof) for name, weight, ddof in (
    ("pytorch", 0.1, 1), ("cs231n", 0.1, 0), ("onnx", 0.1, 0), ("keras", 0.01, 0), ("paper", None, 1))])
def test_train(convention, weight, ddof):
    client, path = affine("train", convention=convention)
    layer = client.ok("GET", path)["layer"]
    state = client.state(path)
    mean, var = state["running_mean"], state["running_var"]
    for k in range(1, 5):
        x = [[v * k + k for v in row] for row in X]
        got = client.train(path, x)
        y, means, variances = reference.train(x, 1, layer["eps"], GAMMA, BETA)
        reference.close(got["y"], y, 1e-12, 1e-12, "y")
        reference.close(got["batch_mean"], means, 1e-14, 1e-15, "batch_mean")
        reference.close(got["batch_var"], variances, 1e-14, 1e-15, "batch_var")
        assert (got["count"], got["num_batches_tracked"], got["updated"], got["version"]) == (4, k, True, 2 + k), got
        assert set(got) == {"y", "batch_mean", "batch_var", "count", "num_batches_tracked", "updated", "version"}, got
        w = 1 / k if weight is None else weight
        mean = [(1 - w) * a + w * b for a, b in zip(mean, means)]
        var = [(1 - w) * a + w * b * 4 / (4 - ddof) for a, b in zip(var, variances)]
        state = client.state(path)
        reference.close(state["running_mean"], mean, 1e-13, 1e-15, "running_mean")
        reference.close(state["running_var"], var, 1e-13, 1e-15, "running_var")
        assert state["version"] == 2 + k and state["num_batches_tracked"] == k, state
    assert state["gamma"] == GAMMA and state["beta"] == BETA


def test_the_first_example_of_the_readme():
    client, path = create("people")
    x = [[150, 54, 26], [60, 18, 4], [160, 60, 48], [177, 53, 16], [180, 60, 24], [192, 90, 22], [172, 76, 38],
         [168, 83, 47],
         [172, 64, 17], [180, 90, 25]]
    got = client.train(path, x)
    reference.close(got["batch_mean"], [161.1, 64.8, 26.7], 1e-15)
    reference.close(got["y"], reference.train(x)[0], 1e-6, 1e-6)
    reference.close(client.state(path)["running_mean"], [16.11, 6.48, 2.67], 1e-14)


def test_not_affine():
    client, path = create("plain", affine=False, dtype="f64")
    reference.close(client.train(path, X)["y"], reference.train(X)[0], 1e-12, 1e-12)
    state = client.state(path)
    assert state["gamma"] is None and state["beta"] is None and state["num_batches_tracked"] == 1, state
    got = client.backward(path, DOUT, x=X)
    assert got["dgamma"] is None and got["dbeta"] is None and got["version"] == 2, got
    reference.close(got["dx"], reference.backward(X, DOUT)[0], 1e-11, 1e-12)
    wire.problem(client.post(path + "/backward", {"dout": DOUT, "x": X, "step": {"lr": 1}}), 422,
                 "not_supported_by_layer", "/step")
    wire.problem(client.patch(path + "/state", {"gamma": [1, 1, 1]}), 422, None, "/gamma")
    wire.problem(client.patch(path + "/state", {"beta": [1, 1, 1]}), 422, None, "/beta")
    assert client.version(path) == 2


def test_not_tracking():
    client, path = affine("untracked", track_running_stats=False)
    before = client.state(path)
    assert [before[k] for k in ("running_mean", "running_var", "num_batches_tracked")] == [None] * 3, before
    got = client.train(path, X)
    assert got["updated"] is False and got["num_batches_tracked"] is None and got["version"] == 2, got
    inferred = client.infer(path, X)
    assert wire.bits(inferred["y"]) == wire.bits(got["y"]), "inference uses the batch's own statistics"
    assert client.state(path) == before
    wire.problem(client.post(path + "/backward", {"dout": DOUT, "x": X, "mode": "inference"}), 422,
                 "not_supported_by_layer", "/mode")
    wire.problem(client.post(path + "/inference", {"x": [[1, 2, 3]]}), 422, "single_value")
    wire.problem(client.patch(path + "/state", {"running_mean": [1, 1, 1]}), 422, None, "/running_mean")
    wire.problem(client.patch(path + "/state", {"num_batches_tracked": 1}), 422, None, "/num_batches_tracked")
    assert client.backward(path, DOUT, x=X, step={"lr": 1})["version"] == 3, "a step is possible"


def test_first_batch_init():
    client, path = create("first", init="first-batch", dtype="f64")
    assert client.train(path, [])["updated"] is False
    got = client.train(path, X)
    reference.close(got["y"], X, 1e-14, 1e-14, "y is x")
    state = client.state(path)
    _, means, variances = reference.train(X)
    reference.close(state["beta"], means, 1e-14, 1e-15)
    reference.close(state["gamma"], [(v + 1e-5) ** 0.5 for v in variances], 1e-14)
    assert state["version"] == 2 and state["num_batches_tracked"] == 1, state
    twice = [[2 * v for v in row] for row in X]
    second = client.train(path, twice)
    reference.close(second["y"], reference.train(twice, 1, 1e-5, state["gamma"], state["beta"])[0], 1e-12, 1e-12)
    assert client.state(path)["gamma"] == state["gamma"], "only the first batch sets gamma"
    client.ok("PATCH", path + "/state", {"num_batches_tracked": 0})
    reference.close(client.train(path, twice)["y"], twice, 1e-13, 1e-13, "while num_batches_tracked is 0")


def test_single_value():
    client, path = affine("single")
    wire.problem(client.post(path + "/train-forward", {"x": [[1, 2, 3]]}), 422, "single_value", ("/x", None))
    wire.problem(client.post(path + "/backward", {"x": [[1, 2, 3]], "dout": [[1, 2, 3]]}), 422, "single_value")
    assert client.version(path) == 2 and client.ok("GET", path)["counters"]["train_forward"] == 0
    assert client.infer(path, [[1, 2, 3]])["version"] == 2, "running statistics are no batch statistics"
    client.ok("PATCH", path, {"single_value": "beta"})
    before = client.state(path)
    got = client.train(path, [[1, 2, 3]])
    assert got["y"] == [BETA] and got["updated"] is False and got["version"] == 3 and got["count"] == 1, got
    assert client.state(path) == before
    client, path = affine("single2", track_running_stats=False, single_value="beta")
    assert client.infer(path, [[5, 6, 7]])["y"] == [BETA]


def test_constant_channel_gives_beta():
    client, path = affine("constant")
    x = [[0.1, 7e8, -3.3]] * 9
    assert client.train(path, x)["y"] == [BETA] * 9
    assert client.train(path, x)["batch_var"] == [0, 0, 0]


# ---- non-finite values

def test_reject():
    client, path = affine("reject")
    for call in ("train-forward", "inference"):
        wire.problem(client.post(path + "/" + call, {"x": [[1, 2, 3], [4, "NaN", 6]]}), 422, "non_finite", "/x/1/1")
        wire.problem(client.post(path + "/" + call, {"x": {"shape": [2, 3], "data": [1, 2, 3, 4, "-Infinity", 6]}}),
                     422,
                     "non_finite", "/x/data/4")
        wire.problem(client.post(path + "/" + call,
                                 {"x": {"shape": [1, 3], "dtype": "f32", "base64": "AACAfwAAgD8AAIA/"}}), 422,
                     "non_finite")
    wire.problem(client.post(path + "/backward", {"x": X, "dout": [["Infinity", 0, 0]] + DOUT[1:]}), 422, "non_finite",
                 "/dout/0/0")
    wire.problem(client.post(path + "/backward", {"x": [["NaN", 0, 0]] + X[1:], "dout": DOUT}), 422, "non_finite",
                 "/x/0/0")
    wire.problem(client.post(path + "/inference", {"x": [["nan", 2, 3]]}), 422, None, "/x/0/0")
    assert client.version(path) == 2


def test_result_that_overflows_is_refused():
    client, path = create("toolarge", num_features=1)
    client.ok("PATCH", path + "/state", {"gamma": [1e38]})
    wire.problem(client.post(path + "/train-forward", {"x": [[1e5]] + [[0]] * 40}), 422, "overflow")
    wire.problem(client.post(path + "/inference", {"x": [[1e30]]}), 422, "overflow")
    wire.problem(client.post(path + "/backward", {"x": [[1e-3], [0]], "dout": [[1e5], [1]], "step": {"lr": 1}}), 422,
                 "overflow")
    state = client.state(path)
    assert state["version"] == 2 and state["num_batches_tracked"] == 0 and state["running_mean"] == [0], state


def test_skip_update():
    client, path = affine("skip", nonfinite="skip_update")
    before = client.state(path)
    got = client.train(path, [[1, 2, "NaN"], [3, 5, 6], [4, "Infinity", 1], [0, 0, 0]])
    assert got["updated"] is False and got["version"] == 2 and got["num_batches_tracked"] == 0, got
    y, _, _ = reference.train([[1], [3], [4], [0]], 1, 1e-5, GAMMA[:1], BETA[:1])
    reference.close([[row[0]] for row in got["y"]], y, 1e-12, 1e-12, "the finite channel")
    assert [row[2] for row in got["y"]] == ["NaN"] * 4, got
    assert got["batch_mean"][2] == "NaN" and got["batch_mean"][1] in ("Infinity", "NaN"), got
    assert client.state(path) == before
    got = client.backward(path, [["NaN", 0, 0]] + DOUT[1:], x=X, step={"lr": 1})
    assert got["version"] == 2 and got["dgamma"][0] == "NaN" and isinstance(got["dgamma"][1], float), got
    assert client.state(path) == before, "no step"
    assert client.ok("GET", path)["counters"]["skipped"] == 2
    assert client.train(path, X)["updated"] is True, "a finite batch is folded"
    got = client.infer(path, [["-Infinity", "NaN", "Infinity"]])
    assert got["y"] == [["-Infinity", "NaN", "-Infinity"]], "gamma of the last channel is negative"


def test_propagate():
    client, path = affine("propagate", nonfinite="propagate")
    got = client.train(path, [["NaN", 2, 3], [1, 2, 4], [1, 1, "-Infinity"]])
    assert got["updated"] is True and got["version"] == 3 and got["num_batches_tracked"] == 1, got
    state = client.state(path)
    assert state["running_mean"][0] == "NaN" and state["running_var"][0] == "NaN", state
    assert isinstance(state["running_mean"][1], float) and state["running_mean"][2] in ("-Infinity", "NaN"), state
    assert client.ok("PUT", path + "/state", state)["running_mean"] == state["running_mean"], "what GET gives PUT takes"
    body = {"shape": [1, 3], "dtype": "f64", "base64": "AAAAAAAA+H8AAAAAAADwPwAAAAAAAPA/"}
    assert client.infer(path, body)["y"]["dtype"] == "f64"
    got = client.backward(path, [[1, 1, 1], [0, 0, "NaN"]], x=[[1, 2, 3], [4, 5, 6]], step={"lr": 0.5})
    assert got["version"] == 5 and got["dgamma"][2] == "NaN", got
    assert client.state(path)["gamma"][2] == "NaN"


# ---- inference

def test_inference():
    client, path = affine("inference")
    client.train(path, X)
    state = client.state(path)
    got = client.infer(path, DOUT)
    want = reference.normalize(DOUT, 1, state["running_mean"], state["running_var"], 1e-5, GAMMA, BETA)
    reference.close(got["y"], want, 1e-13, 1e-13)
    assert set(got) == {"y", "version"} and got["version"] == 3, got
    one = [client.infer(path, [row])["y"][0] for row in DOUT]
    assert one == got["y"], "a row does not depend on its batch"
    assert client.state(path) == state


def test_channel_axis_of_a_call():
    client, path = affine("axis")
    cols = reference.permute(X, [1, 0])
    want = client.infer(path, X)["y"]
    for axis in (0, -2):
        assert client.infer(path, cols, channel_axis=axis)["y"] == reference.permute(want, [1, 0])
    for axis, code in ((2, 422), (-3, 422), (1.5, 422), ("0", 422), (None, 422), (8, 422), (2 ** 40, 422)):
        wire.problem(client.post(path + "/inference", {"x": X, "channel_axis": axis}), code, None, "/channel_axis")
    wire.problem(client.post(path + "/train-forward", {"x": cols}), 422, "shape_mismatch")


@harness.rows([(f"{call}: {name}", call, body, status, code, pointer) for call in ("train-forward", "inference")
               for name, body, status, code, pointer in (
                   ("unknown field", {"x": X, "y": 1}, 400, "unknown_field", "/y"),
                   ("dout", {"x": X, "dout": X}, 400, "unknown_field", "/dout"))
               ] + [
    ("cache is text", "train-forward", {"x": X, "cache": "yes"}, 422, "wrong_type", "/cache"),
    ("cache is null", "train-forward", {"x": X, "cache": None}, 422, "wrong_type", "/cache"),
    ("inference knows no cache", "inference", {"x": X, "cache": True}, 400, "unknown_field", "/cache"),
    ("no dout", "backward", {"x": X}, 422, "missing_field", None),
    ("neither cache nor x", "backward", {"dout": DOUT}, 422, None, None),
    ("both cache and x", "backward", {"dout": DOUT, "x": X, "cache": "a"}, 422, "conflicting_fields", None),
    ("unknown mode", "backward", {"dout": DOUT, "x": X, "mode": "eval"}, 422, None, "/mode"),
    ("mode is a number", "backward", {"dout": DOUT, "x": X, "mode": 1}, 422, "wrong_type", "/mode"),
    ("step is a number", "backward", {"dout": DOUT, "x": X, "step": 0.1}, 422, "wrong_type", "/step"),
    ("step without lr", "backward", {"dout": DOUT, "x": X, "step": {}}, 422, "missing_field", None),
    ("lr is text", "backward", {"dout": DOUT, "x": X, "step": {"lr": "1"}}, 422, "wrong_type", "/step/lr"),
    ("weight_decay is null", "backward", {"dout": DOUT, "x": X, "step": {"lr": 1, "weight_decay": None}}, 422,
     "wrong_type",
     "/step/weight_decay"),
    ("unknown field of step", "backward", {"dout": DOUT, "x": X, "step": {"lr": 1, "momentum": 0}}, 400,
     "unknown_field",
     "/step/momentum"),
    ("other shape of dout", "backward", {"dout": DOUT[:3], "x": X}, 422, "shape_mismatch", None),
    ("other rank of dout", "backward", {"dout": [DOUT], "x": X}, 422, "shape_mismatch", None),
    ("unknown cache", "backward", {"dout": DOUT, "cache": "0123456789abcdef"}, 410, "cache_gone", ("/cache", None)),
    ("endless cache id", "backward", {"dout": DOUT, "cache": "a" * 5000}, 410, "cache_gone", ("/cache", None)),
    ("cache is a number", "backward", {"dout": DOUT, "cache": 17}, 422, "wrong_type", "/cache"),
])
def test_refused(call, body, status, code, pointer):
    client = harness.shared().api()
    client.put("/v1/layers/calls", {"num_features": 3})
    before = client.state("/v1/layers/calls")
    reply = client.post("/v1/layers/calls/" + call, body)
    wire.problem(reply, status, code, pointer)
    assert client.state("/v1/layers/calls") == before


# ---- backward

@harness.rows([("train", "train"), ("inference", "inference")])
def test_backward(mode):
    client, path = affine("backward")
    client.train(path, DOUT)
    state = client.state(path)
    stats = (state["running_mean"], state["running_var"]) if mode == "inference" else None
    want = reference.backward(X, DOUT, 1, 1e-5, GAMMA, stats)
    got = client.backward(path, DOUT, x=X, mode=mode)
    for key, value in zip(("dx", "dgamma", "dbeta"), want):
        reference.close(got[key], value, 1e-11, 1e-12, key)
    assert set(got) == {"dx", "dgamma", "dbeta", "version"} and got["version"] == 3, got
    assert client.state(path) == state
    if mode == "inference":  # one value per channel is enough for constants
        assert client.backward(path, [[1, 1, 1]], x=[[1, 2, 3]], mode=mode)["dbeta"] == [1, 1, 1]


@harness.rows([("lr", 0.1, None), ("weight decay", 0.25, 0.01), ("lr 0", 0, 0.5), ("weight decay 0", 2, 0)])
def test_step(lr, decay):
    client, path = affine("step")
    step = {"lr": lr} if decay is None else {"lr": lr, "weight_decay": decay}
    got = client.backward(path, DOUT, x=X, step=step)
    assert got["version"] == 3, got
    state, d = client.state(path), decay or 0
    assert state["version"] == 3 and state["num_batches_tracked"] == 0, state
    for key, start, grad in (("gamma", GAMMA, got["dgamma"]), ("beta", BETA, got["dbeta"])):
        want = [p - lr * (g + d * p) for p, g in zip(start, grad)]
        reference.close(state[key], want, 1e-15, 1e-15, key)
    reference.close(got["dx"], reference.backward(X, DOUT, 1, 1e-5, GAMMA)[0], 1e-11, 1e-12, "dx of the old gamma")


def test_backward_from_cache():
    client, path = affine("pass")
    kept = client.train(path, X, cache=True)
    assert isinstance(kept["cache"], str) and kept["cache"], kept
    assert client.ok("GET", path)["memory"]["cache_bytes"] > 0
    assert "cache" not in client.train(path, X, cache=False)
    plain = client.backward(path, DOUT, x=X)
    first = client.backward(path, DOUT, cache=kept["cache"])
    assert first == plain, "the same bits as from x"
    assert client.backward(path, DOUT, cache=kept["cache"]) == first, "a pass is not consumed"
    client.ok("PATCH", path, {"eps": 0.5})
    client.ok("PATCH", path + "/state", {"gamma": [9, 9, 9]})
    later = client.backward(path, DOUT, cache=kept["cache"], step={"lr": 0.5})
    assert {k: later[k] for k in ("dx", "dgamma", "dbeta")} == {k: first[k] for k in ("dx", "dgamma",
                                                                                      "dbeta")}, "gamma of the pass"
    reference.close(client.state(path)["gamma"], [9 - 0.5 * g for g in later["dgamma"]], 1e-15, 0,
                    "the step is on gamma of now")
    wire.problem(client.post(path + "/backward", {"dout": DOUT[:2], "cache": kept["cache"]}), 422, "shape_mismatch")


def test_pass_keeps_its_channel_axis():
    client, path = affine("passaxis")
    kept = client.train(path, reference.permute(X, [1, 0]), cache=True, channel_axis=0)
    got = client.backward(path, reference.permute(DOUT, [1, 0]), cache=kept["cache"])
    want = reference.backward(X, DOUT, 1, 1e-5, GAMMA)
    reference.close(got["dx"], reference.permute(want[0], [1, 0]), 1e-11, 1e-12)
    reference.close(got["dgamma"], want[1], 1e-11, 1e-12)


def test_inference_mode_from_cache_uses_running_statistics_of_now():
    client, path = affine("frozen")
    kept = client.train(path, X, cache=True)
    client.ok("PATCH", path + "/state", {"running_mean": [1, 2, 3], "running_var": [4, 5, 6]})
    got = client.backward(path, DOUT, cache=kept["cache"], mode="inference")
    want = reference.backward(X, DOUT, 1, 1e-5, GAMMA, ([1, 2, 3], [4, 5, 6]))
    for key, value in zip(("dx", "dgamma", "dbeta"), want):
        reference.close(got[key], value, 1e-11, 1e-12, key)


def test_cache_dies_with_its_layer():
    client, path = affine("mortal")
    kept = client.train(path, X, cache=True)["cache"]
    client, other = affine("mortal.other")
    wire.problem(client.post(other + "/backward", {"dout": DOUT, "cache": kept}), 410, "cache_gone")
    assert "x" in wire.problem(client.post(other + "/backward", {"dout": DOUT, "cache": kept}), 410)["detail"]
    client.delete(path)
    client.layer("mortal", dtype="f64")
    wire.problem(client.post(path + "/backward", {"dout": DOUT, "cache": kept}), 410, "cache_gone")
    assert client.ok("GET", path)["memory"]["cache_bytes"] == 0


def test_cache_expires():
    with harness.Server("--durability", "none", "--cache-ttl", "1s") as server:
        client = server.api()
        path = client.layer("ttl")
        kept = client.train(path, X, cache=True)["cache"]
        assert client.backward(path, DOUT, cache=kept)["version"] == 2
        harness.wait_until(lambda: client.ok("GET", path)["memory"]["cache_bytes"] == 0, 10, "the pass expires unused")
        wire.problem(client.post(path + "/backward", {"dout": DOUT, "cache": kept}), 410, "cache_gone")


def test_cache_evicts_the_least_recently_used():
    x = [[random.Random(i).random() for _ in range(3)] for i in range(1000)]  # 12 kB of f32
    with harness.Server("--durability", "none", "--cache-budget", "64K") as server:
        client = server.api()
        path = client.layer("lru")
        first = client.train(path, x, cache=True)["cache"]
        ids = []
        for _ in range(20):
            ids.append(client.train(path, x, cache=True)["cache"])
            assert client.backward(path, x, cache=first)["version"] > 1, "used just now"
        assert client.ok("GET", path)["memory"]["cache_bytes"] <= 64 * 1024
        alive = [client.post(path + "/backward", {"dout": x, "cache": i}).status for i in ids]
        assert set(alive) == {200, 410} and alive == sorted(alive, reverse=True), alive
        assert alive.count(200) >= 2, alive
        version = client.version(path)
        wire.problem(client.post(path + "/train-forward", {"x": x * 6, "cache": True}), 422, "out_of_range", "/cache")
        assert client.version(path) == version, "a pass larger than the whole budget is refused"
        assert client.train(path, x * 6)["version"] == version + 1


def test_versions_have_no_gaps():
    client, path = create("gaps")
    changes = [
        lambda: client.train(path, X)["version"],
        lambda: client.backward(path, DOUT, x=X, step={"lr": 0.1})["version"],
        lambda: client.ok("PATCH", path, {"eps": 1e-3})["version"],
        lambda: client.ok("PATCH", path + "/state", {"gamma": [1, 1, 1]})["version"],
        lambda: client.ok("PUT", path + "/state", client.state(path))["version"],
        lambda: client.ok("PUT", "/v1/snapshot", {"layers": {"gaps": client.state(path)}})["layers"]["gaps"],
    ]
    version = 1
    for change in changes * 2:
        version += 1
        assert change() == version and client.version(path) == version
        client.infer(path, X)
        client.backward(path, DOUT, x=X)
        client.train(path, [])
        client.put(path, client.ok("GET", path)["layer"])
        assert client.version(path) == version, "these change nothing"


def test_empty_dout_has_the_channels_of_the_pass():
    """A pass of [] has no shape, but it has the layer's channels, on the axis that it was made with."""
    client, path = create("no.channels")
    kept = client.train(path, [], cache=True)["cache"]
    last = client.train(path, [], cache=True, channel_axis=-1)["cache"]
    for cache, shape, good in ((kept, [0, 3], True), (kept, [2, 3, 0], True), (kept, [0, 5], False),
                               (kept, [0, 4, 3], False), (last, [0, 4, 3], True), (last, [4, 3, 0], False)):
        for given in ({"cache": cache}, {"x": [], "channel_axis": -1 if cache == last else 1}):
            reply = client.post(path + "/backward", {"dout": {"shape": shape, "data": []}, **given})
            if good:
                assert reply.status == 200 and reply.json["dgamma"] == [0, 0, 0], (shape, given, reply)
            else:
                wire.problem(reply, 422, "shape_mismatch", "/dout")
    assert client.backward(path, [], cache=kept)["dx"] == []


harness.main()
