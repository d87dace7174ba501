# SPDX-License-Identifier: Apache-2.0
"""State and snapshot of layers: exact bits out and in, all or nothing, and preconditions by ETag."""
import json
import random
import re
import struct

import harness
import wire

X = [[1.5, -2.0, 0.25], [3.0, 0.5, -1.0], [-0.5, 4.0, 2.0]]
FIELDS = {"gamma", "beta", "running_mean", "running_var", "num_batches_tracked", "version", "layer"}


def create(name, **config):
    client = harness.shared().api()
    client.delete("/v1/layers/" + name)
    return client, client.layer(name, **config)


def bits_of(state):
    return wire.bits({k: v for k, v in state.items() if k != "version"})


def test_get():
    client, path = create("get")
    reply = client.get(path + "/state")
    assert reply.json == {"gamma": [1, 1, 1], "beta": [0, 0, 0], "running_mean": [0, 0, 0], "running_var": [1, 1, 1],
                          "num_batches_tracked": 0, "version": 1, "layer": client.ok("GET", path)["layer"]}
    assert reply.headers["content-type"].split(";")[0] == "application/json", reply.headers


def test_hard_doubles_come_back():
    """GET then PUT restores the bits, and the texts are the shortest that read back."""
    rng = random.Random(3)
    values = [5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 0.1, -0.0, 1 / 3, 9007199254740993.0, 1e22, 1e23,
              1e-5]
    while len(values) < 500:
        v = struct.unpack("<d", struct.pack("<Q", rng.getrandbits(64)))[0]
        if v == v and abs(v) != float("inf"):
            values.append(v)
    client, path = create("doubles", num_features=len(values))
    put = {"gamma": values, "beta": values[::-1], "running_mean": values, "running_var": [abs(v) for v in values],
           "num_batches_tracked": 9007199254740993}
    got = client.ok("PUT", path + "/state", put)
    for key in ("gamma", "beta", "running_mean", "running_var"):
        assert struct.pack("<500d", *got[key]) == struct.pack("<500d", *put[key]), key
    assert got["num_batches_tracked"] == put["num_batches_tracked"]
    raw = client.get(path + "/state").body
    texts = re.search(rb'"gamma":\s*\[([^\]]*)\]', raw).group(1).decode().split(",")
    for text, v in zip(texts, values):
        digits = [len(re.sub(r"[eE].*|[-.]", "", t.strip()).strip("0")) for t in (text, repr(v))]
        assert digits[0] <= max(1, digits[1]), (text, v)
    again = client.ok("PUT", path + "/state", raw)
    assert bits_of(again) == bits_of(got) and again["version"] == 3, again["version"]


def test_put_replaces_whole():
    client, path = create("whole")
    client.train(path, X)
    want = {"gamma": [1, 2, 3], "beta": [4, 5, 6], "running_mean": [7, 8, 9], "running_var": [0, 1, 2],
            "num_batches_tracked": 77}
    got = client.ok("PUT", path + "/state", want)
    assert set(got) == FIELDS and {k: got[k] for k in want} == want and got["version"] == 3, got
    assert client.state(path) == got
    assert client.train(path, X)["num_batches_tracked"] == 78
    for missing in want:
        part = {k: v for k, v in want.items() if k != missing}
        wire.problem(client.put(path + "/state", part), 422, "missing_field")
    assert client.version(path) == 4


@harness.rows([(key, key) for key in ("gamma", "beta", "running_mean", "running_var")])
def test_patch_one_vector(key):
    client, path = create("vector")
    before = client.train(path, X) and client.state(path)
    got = client.ok("PATCH", path + "/state", {key: [0.5, 0.25, 3]})
    assert got == {**before, key: [0.5, 0.25, 3], "version": 3}, got


def test_patch_counter():
    client, path = create("counter")
    assert client.ok("PATCH", path + "/state", {"num_batches_tracked": 5})["num_batches_tracked"] == 5
    assert client.train(path, X)["num_batches_tracked"] == 6


def test_version_and_layer_of_a_body():
    client, path = create("same")
    state = client.train(path, X) and client.state(path)
    assert client.ok("PUT", path + "/state",
                     {**state, "version": 99})["version"] == 3, "version is read-only and ignored"
    other = dict(state, layer=dict(state["layer"], eps=0.5))
    wire.problem(client.put(path + "/state", other), 409, "config_conflict")
    minimal = dict(state, layer={"num_features": 3})
    assert client.ok("PUT", path + "/state", minimal)["version"] == 4, "defaults are filled in before the comparison"
    wire.problem(client.put(path + "/state", dict(state, layer={"num_features": 4})), 409, "config_conflict")
    wire.problem(client.put(path + "/state", dict(state, layer={"num_feature": 3})), 400, "unknown_field",
                 "/layer/num_feature")
    wire.problem(client.put(path + "/state", dict(state, layer={})), 422, "missing_field")
    assert client.version(path) == 4


BAD_STATE = [
    ("gamma too short", {"gamma": [1, 2]}, 422, ("/gamma",)),
    ("gamma too long", {"gamma": [1, 2, 3, 4]}, 422, ("/gamma", "/gamma/3")),
    ("gamma null", {"gamma": None}, 422, ("/gamma",)),
    ("beta number", {"beta": 1}, 422, ("/beta",)),
    ("beta nested", {"beta": [[1, 2, 3]]}, 422, ("/beta", "/beta/0")),
    ("beta text", {"beta": [1, "x", 3]}, 422, ("/beta/1",)),
    ("mean NaN", {"running_mean": [1, "NaN", 3]}, 422, ("/running_mean/1",)),
    ("mean infinite", {"running_mean": ["-Infinity", 1, 3]}, 422, ("/running_mean/0",)),
    ("var negative", {"running_var": [1, 2, -1e-300]}, 422, ("/running_var/2",)),
    ("counter negative", {"num_batches_tracked": -1}, 422, ("/num_batches_tracked",)),
    ("counter broken", {"num_batches_tracked": 1.5}, 422, ("/num_batches_tracked",)),
    ("counter text", {"num_batches_tracked": "1"}, 422, ("/num_batches_tracked",)),
    ("counter null", {"num_batches_tracked": None}, 422, ("/num_batches_tracked",)),
    ("counter too large", '{"num_batches_tracked":18446744073709551616}', 422, ("/num_batches_tracked",)),
    ("overflow", '{"gamma":[1,1e400,1]}', 422, ("/gamma/1",)),
    ("unknown", {"weight": [1, 2, 3]}, 400, ("/weight",)),
    ("duplicate", '{"beta":[1,2,3],"beta":[1,2,3]}', 400, ("/beta",)),
    ("good and bad", {"gamma": [5, 5, 5], "beta": [1]}, 422, ("/beta",)),
    ("array", [], 400, None),
]


@harness.rows(BAD_STATE)
def test_refused(body, status, pointer):
    client = harness.shared().api()
    client.put("/v1/layers/badstate", {"num_features": 3})
    before = client.state("/v1/layers/badstate")
    wire.problem(client.patch("/v1/layers/badstate/state", body), status, None, pointer)
    if isinstance(body, dict):
        whole = {k: v for k, v in before.items() if k not in ("version", "layer")}
        wire.problem(client.put("/v1/layers/badstate/state", {**whole, **body}), status, None, pointer)
    assert client.state("/v1/layers/badstate") == before


def test_negative_var_is_refused_also_where_nan_is_not():
    client, path = create("negative", nonfinite="propagate")
    assert client.ok("PATCH", path + "/state", {"running_var": ["NaN", "Infinity", 0]})["version"] == 2
    for value in (-1, "-Infinity"):
        wire.problem(client.patch(path + "/state", {"running_var": [value, 1, 1]}), 422, None, "/running_var/0")


@harness.rows([(f"{key} {value} {policy}", key, value, policy) for policy in ("reject", "skip_update")
               for key, value in (("gamma", "NaN"), ("beta", "Infinity"), ("running_mean", "-Infinity"),
                                  ("running_var", "Infinity"))])
def test_a_policy_that_the_state_contradicts_is_refused(key, value, policy):
    """Otherwise what GET gives would be refused by PUT."""
    client, path = create("policy", nonfinite="propagate")
    client.ok("PATCH", path + "/state", {key: [1, 2, value]})
    state = client.state(path)
    wire.problem(client.patch(path, {"nonfinite": policy, "eps": 1}), 422, "non_finite", "/nonfinite")
    assert client.state(path) == state
    client.ok("PATCH", path, {"nonfinite": "propagate", "eps": 1})
    client.ok("PATCH", path + "/state", {key: [1, 2, 3]})
    client.ok("PATCH", path, {"nonfinite": policy})
    client.ok("PUT", path + "/state", client.state(path))
    client.ok("PUT", "/v1/snapshot", client.ok("GET", "/v1/snapshot?prefix=policy"))


# ---- snapshot

def fresh(*names):
    """A server's client with layers of some history; deletes all others."""
    client = harness.shared("--threads", "2").api()
    for layer in client.ok("GET", "/v1/layers?limit=1000")["layers"]:
        client.delete("/v1/layers/" + layer["name"])
    for i, name in enumerate(names):
        path = client.layer(name, num_features=3, convention=("pytorch", "keras", "paper")[i % 3])
        for _ in range(i + 1):
            client.train(path, [[v * (i + 1) for v in row] for row in X])
    return client


def test_snapshot_and_restore():
    client = fresh("a.1", "a.2", "b")
    snapshot = client.ok("GET", "/v1/snapshot")
    assert set(snapshot) == {"layers"} and list(snapshot["layers"]) == ["a.1", "a.2", "b"], snapshot
    for name, state in snapshot["layers"].items():
        assert state == client.state("/v1/layers/" + name)
    assert set(client.ok("GET", "/v1/snapshot?prefix=a.")["layers"]) == {"a.1", "a.2"}
    assert client.ok("GET", "/v1/snapshot?prefix=zzz") == {"layers": {}}
    client.train("/v1/layers/b", X)
    client.delete("/v1/layers/a.1")
    client.layer("new")
    reply = client.put("/v1/snapshot", snapshot)
    assert reply.status == 200 and reply.json == {"layers": {"a.1": 1, "a.2": 4, "b": 6}, "ignored": []}, reply
    after = client.ok("GET", "/v1/snapshot")["layers"]
    assert set(after) == {"a.1", "a.2", "b", "new"}, "layers that it does not name stay"
    for name, state in snapshot["layers"].items():
        assert bits_of(after[name]) == bits_of(state), name
    with harness.Server("--durability", "none") as other:
        moved = other.api()
        assert moved.ok("PUT", "/v1/snapshot", snapshot) == {"layers": {"a.1": 1, "a.2": 1, "b": 1}, "ignored": []}
        for name, state in moved.ok("GET", "/v1/snapshot")["layers"].items():
            assert bits_of(state) == bits_of(snapshot["layers"][name]), name


def test_restore_replaces_the_configuration():
    client = fresh("conf")
    state = client.state("/v1/layers/conf")
    four = {"gamma": [1] * 4, "beta": [2] * 4, "running_mean": None, "running_var": None, "num_batches_tracked": None,
            "layer": {"num_features": 4, "track_running_stats": False, "dtype": "f64"}}
    got = client.ok("PUT", "/v1/snapshot", {"layers": {"conf": four}})
    assert got["layers"]["conf"] == state["version"] + 1, got
    layer = client.ok("GET", "/v1/layers/conf")["layer"]
    assert layer["num_features"] == 4 and layer["dtype"] == "f64" and layer["momentum"] == 0.1, layer
    assert client.infer("/v1/layers/conf", [[1, 2, 3, 4], [1, 2, 3, 4]])["y"] == [[2] * 4] * 2


def test_delete_missing():
    client = fresh("p.1", "p.2", "q.1")
    one = client.ok("GET", "/v1/snapshot?prefix=p.1")
    got = client.ok("PUT", "/v1/snapshot?delete_missing=true&prefix=p.", one)
    assert list(got["layers"]) == ["p.1"], got
    assert set(client.ok("GET", "/v1/snapshot")["layers"]) == {"p.1", "q.1"}, "only names under the prefix"
    client.ok("PUT", "/v1/snapshot?delete_missing=false", {"layers": {}})
    assert set(client.ok("GET", "/v1/snapshot")["layers"]) == {"p.1", "q.1"}
    client.ok("PUT", "/v1/snapshot?delete_missing=true", {"layers": {}})
    assert client.ok("GET", "/v1/snapshot") == {"layers": {}}


def test_restore_is_all_or_nothing():
    client = fresh("one", "two")
    before = client.ok("GET", "/v1/snapshot")
    good = before["layers"]["one"]

    def changed(**more):
        return {**{k: v for k, v in good.items()}, **more}

    cases = [
        ({"layers": {"one": good, "three": changed(gamma=[1, 2])}}, 422, "/layers/three/gamma"),
        ({"layers": {"three": good, "one": changed(running_var=[1, -1, 1])}}, 422, "/layers/one/running_var/1"),
        ({"layers": {"three": good, "one": changed(running_mean=[1, "NaN", 1])}}, 422, "/layers/one/running_mean/1"),
        ({"layers": {"three": good, "bad name": good}}, (400, 422), None),
        ({"layers": {"three": good, "four": {k: v for k, v in good.items() if k != "layer"}}}, 422, None),
        ({"layers": {"three": good, "four": changed(extra=1)}}, 400, "/layers/four/extra"),
        ({"layers": {"three": good, "four": changed(layer={"num_features": 0})}}, 422,
         "/layers/four/layer/num_features"),
        ({"layers": {"three": good, "four": 5}}, 422, "/layers/four"),
        ({"layers": {"three": good, "four": changed(gamma=None)}}, 422, "/layers/four/gamma"),
        ({"layers": []}, 422, "/layers"),
        ({}, 422, None),
        ({"layers": {"three": good}, "version": 1}, 400, "/version"),
        ('{"layers":{"three":%s,"three":%s}}' % (json.dumps(good), json.dumps(good)), 400, "/layers/three"),
        ('{"layers":{"three":%s' % json.dumps(good), 400, None),
    ]
    for body, status, pointer in cases:
        reply = client.put("/v1/snapshot?delete_missing=true", body)
        assert reply.status in (status if isinstance(status, tuple) else (status,)), (str(body)[:200], reply)
        wire.problem(reply, reply.status, None, pointer)
        assert client.ok("GET", "/v1/snapshot") == before, str(body)[:200]
    for query in ("delete_missing=maybe", "delete=true", "prefix=a"):
        wire.problem(client.put("/v1/snapshot?" + query, before), 400)
    assert client.ok("GET", "/v1/snapshot") == before


def test_snapshot_body_may_exceed_max_body():
    with harness.Server("--durability", "none", "--max-body", "64K", "--memory-budget", "256M") as server:
        client = server.api()
        path = client.layer("wide", num_features=20000)
        snapshot = client.get("/v1/snapshot")
        assert len(snapshot.body) > 64 * 1024
        assert client.ok("PUT", "/v1/snapshot", snapshot.body)["layers"] == {"wide": 2}
        assert client.ok("PUT", path + "/state", client.get(path + "/state").body)["version"] == 3
        wire.problem(client.post(path + "/inference", b'{"x":[]}' + b" " * 65536), 413, "body_too_large")


# ---- preconditions

def test_etag_follows_the_version():
    client, path = create("etag")
    first = client.get(path).headers["etag"]
    assert re.fullmatch(r'"[\x21\x23-\x7e]+"', first), first
    assert client.get(path + "/state").headers["etag"] == first, "one tag for layer and state"
    tags = [first]
    for method, suffix, body in (("POST", "/train-forward", {"x": X}),
                                 ("POST", "/backward", {"x": X, "dout": X, "step": {"lr": 1}}),
                                 ("PATCH", "", {"eps": 1}), ("PATCH", "/state", {"beta": [1, 2, 3]}),
                                 ("PUT", "/state", dict(client.state(path), layer={"num_features": 3, "eps": 1}))):
        tags.append(client.request(method, path + suffix, body).headers["etag"])
        assert client.get(path).headers["etag"] == tags[-1] == client.get(path + "/state").headers["etag"]
    assert len(set(tags)) == len(tags), tags
    created = client.request("PUT", "/v1/layers/etag2", {"num_features": 3})
    assert created.headers["etag"] == client.get("/v1/layers/etag2").headers["etag"]
    client.delete("/v1/layers/etag2")


@harness.rows([
    ("PATCH layer", "PATCH", "", {"eps": 0.5}), ("PUT state", "PUT", "/state", None), ("PATCH state", "PATCH", "/state",
                                                                                       {"beta": [1, 2, 3]}),
    ("train-forward", "POST", "/train-forward", {"x": X}), ("inference", "POST", "/inference", {"x": X}),
    ("backward", "POST", "/backward", {"x": X, "dout": X, "step": {"lr": 1}}),
    ("PUT layer", "PUT", "", {"num_features": 3}),
    ("DELETE", "DELETE", "", None),
])
def test_if_match(method, suffix, body):
    client, path = create("ifmatch")
    old = client.get(path).headers["etag"]
    client.train(path, X)
    state = client.state(path)
    if suffix == "/state" and method == "PUT":
        body = state
    for tag in (old, '"other"', '"a", "b"', "W/" + client.get(path).headers["etag"]):
        wire.problem(client.request(method, path + suffix, body, {"If-Match": tag}), 412, "precondition_failed")
        assert client.state(path) == state
    now = client.get(path).headers["etag"]
    reply = client.request(method, path + suffix, body, {"If-Match": f'"x" , {now}'})
    assert reply.status in (200, 204), reply
    if method != "DELETE":
        assert client.request(method, path + suffix, body, {"If-Match": "*"}).status == 200
    client.delete(path)
    reply = client.request("PUT", path, {"num_features": 3}, {"If-Match": "*"})
    wire.problem(reply, 412, "precondition_failed")
    wire.problem(client.get(path), 404)


def test_bad_if_match():
    client, path = create("ifmatch.bad")
    for tag in ("abc", '"abc', '"a" "b"', "", '"a",*', 'w/"a"', "W/a", '"a",b', '"a b"', "**", ","):
        reply = client.request("PATCH", path, {"eps": 0.5}, {"If-Match": tag})
        wire.problem(reply, 400, "bad_header")
        wire.problem(client.get(path, {"If-None-Match": tag}), 400, "bad_header")
    assert client.version(path) == 1


@harness.rows([("layer", ""), ("state", "/state")])
def test_if_none_match(suffix):
    client, path = create("ifnonematch")
    tag = client.get(path).headers["etag"]
    for given in (tag, "*", f'"zz", {tag}', "W/" + tag):
        reply = client.get(path + suffix, {"If-None-Match": given})
        assert reply.status == 304 and reply.body == b"" and reply.headers["etag"] == tag, reply
        assert client.request("HEAD", path + suffix, headers={"If-None-Match": given}).status == 304
    client.train(path, X)
    assert client.ok("GET", path + suffix, headers={"If-None-Match": tag})["version"] == 2


def test_tag_of_a_recreated_layer_never_matches():
    client, path = create("recreated")
    tag = client.get(path).headers["etag"]
    client.delete(path)
    client.layer("recreated")
    assert client.version(path) == 1
    wire.problem(client.patch(path, {"eps": 1}, {"If-Match": tag}), 412)
    assert client.get(path, {"If-None-Match": tag}).status == 200


harness.main()
