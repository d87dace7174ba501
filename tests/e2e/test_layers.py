# SPDX-License-Identifier: Apache-2.0
"""Layers: create, read, list, change and delete; every field of the configuration with good and bad values."""
import harness
import wire

DEFAULTS = {"num_features": 3, "convention": "pytorch", "momentum": 0.1, "eps": 1e-5, "affine": True,
            "track_running_stats": True, "channel_axis": 1, "dtype": "f32", "init": "standard", "nonfinite": "reject",
            "single_value": "reject", "new_weight": 0.1, "running_ddof": 1}
# convention, momentum, eps, new_weight, running_ddof, running_var at the start
CONVENTIONS = [
    ("pytorch", 0.1, 1e-5, 0.1, 1, 1.0),
    ("cs231n", 0.9, 1e-5, 0.1, 0, 0.0),
    ("onnx", 0.9, 1e-5, 0.1, 0, 1.0),
    ("keras", 0.99, 1e-3, 0.01, 0, 1.0),
    ("paper", None, 1e-5, None, 1, 1.0),
]
NAME = "/v1/layers/bad"


def api():
    return harness.shared().api()


def create(name, **config):
    client = api()
    client.delete("/v1/layers/" + name)
    return client, client.layer(name, **config)


def test_defaults_are_filled_in():
    client = api()
    client.delete("/v1/layers/plain")
    reply = client.put("/v1/layers/plain", {"num_features": 3})
    assert reply.status == 201, reply
    body = reply.json
    assert set(body) == {"name", "layer", "version", "counters", "memory"}, body
    assert body["name"] == "plain" and body["layer"] == DEFAULTS and body["version"] == 1, body
    assert body["counters"] == {"train_forward": 0, "inference": 0, "backward": 0, "skipped": 0}, body
    assert set(body["memory"]) == {"state_bytes", "cache_bytes"}, body
    assert body["memory"]["state_bytes"] >= 4 * 3 * 8 and body["memory"]["cache_bytes"] == 0, body
    assert client.ok("GET", "/v1/layers/plain") == body


@harness.rows([(row[0], *row) for row in CONVENTIONS])
def test_convention(name, momentum, eps, new_weight, ddof, var):
    client, path = create("convention", num_features=2, convention=name)
    layer = client.ok("GET", path)["layer"]
    assert (layer["momentum"], layer["eps"], layer["running_ddof"]) == (momentum, eps, ddof), layer
    if new_weight is None:
        assert layer["new_weight"] is None, layer
    else:
        assert abs(layer["new_weight"] - new_weight) < 1e-15, layer
    state = client.state(path)
    assert state["running_var"] == [var, var] and state["running_mean"] == [0, 0], state
    assert state["gamma"] == [1, 1] and state["beta"] == [0, 0] and state["num_batches_tracked"] == 0, state


@harness.rows([
    ("momentum null", {"momentum": None, "new_weight": None}),
    ("momentum 0", {"momentum": 0, "new_weight": 0}),
    ("momentum 1", {"momentum": 1, "new_weight": 1}),
    ("momentum of the old value", {"convention": "onnx", "momentum": 0.75, "new_weight": 0.25, "running_ddof": 0}),
    ("eps", {"eps": 1e-300}),
    ("not affine", {"affine": False}),
    ("not tracking", {"track_running_stats": False}),
    ("last axis", {"channel_axis": -1}),
    ("axis 7", {"channel_axis": 7}),
    ("axis -8", {"channel_axis": -8}),
    ("f64", {"dtype": "f64"}),
    ("first batch", {"init": "first-batch"}),
    ("skip_update", {"nonfinite": "skip_update"}),
    ("propagate", {"nonfinite": "propagate"}),
    ("single value", {"single_value": "beta"}),
    ("most channels", {"num_features": 1048576}),
])
def test_field(wanted):
    given = {k: v for k, v in wanted.items() if k not in ("new_weight", "running_ddof")}
    client, path = create("field", **given)
    assert client.ok("GET", path)["layer"] == {**DEFAULTS, **wanted}
    client.delete(path)


BAD_FIELDS = [
    ("num_features", v) for v in (0, -1, 1048577, 1.5, "3", None, True, [3], {}, 2 ** 63, 10 ** 30)
] + [
    ("convention", v) for v in ("tensorflow", "PyTorch", "", 1, None, ["pytorch"])
] + [
    ("momentum", v) for v in (-0.1, 1.0000001, 2, "0.1", True, [])
] + [
    ("eps", v) for v in (0, -1e-5, None, "1e-5", False, {})
] + [
    ("affine", v) for v in (1, 0, "true", None)
] + [
    ("track_running_stats", v) for v in (1, "false", None)
] + [
    ("channel_axis", v) for v in (8, -9, 1.5, "1", None, True, 2 ** 62)
] + [
    ("dtype", v) for v in ("f16", "bf16", "float32", 32, None)
] + [
    ("init", v) for v in ("ones", None, 1)
] + [
    ("nonfinite", v) for v in ("ignore", None, False)
] + [
    ("single_value", v) for v in ("zero", None, 0)
]


@harness.rows([(f"{field} {value!r}", field, value) for field, value in BAD_FIELDS])
def test_bad_value(field, value):
    client = api()
    wire.problem(client.put(NAME, {"num_features": 3, field: value}), 422, pointer="/" + field)
    wire.problem(client.get(NAME), 404, "layer_not_found")


@harness.rows([
    ("missing num_features", "{}", 422, "missing_field", None),
    ("eps underflows to 0", '{"num_features":3,"eps":1e-400}', 422, None, "/eps"),
    ("eps overflows", '{"num_features":3,"eps":1e400}', 422, None, "/eps"),
    ("momentum overflows", '{"num_features":3,"momentum":1e400}', 422, None, "/momentum"),
    ("first batch, not affine", '{"num_features":3,"init":"first-batch","affine":false}', 422, None,
     ("/init", "/affine")),
    ("first batch, not tracking", '{"num_features":3,"init":"first-batch","track_running_stats":false}', 422, None,
     ("/init", "/track_running_stats")),
    ("unknown field", '{"num_features":3,"momentun":0.1}', 400, "unknown_field", "/momentun"),
    ("unknown field to escape", '{"num_features":3,"a/b~c":0.1}', 400, "unknown_field", "/a~1b~0c"),
    ("activation is a field of calls", '{"num_features":3,"activation":"relu"}', 400, "unknown_field", "/activation"),
    ("duplicate field", '{"num_features":3,"eps":1e-5,"eps":1e-5}', 400, "duplicate_field", "/eps"),
    ("duplicate field by escape", '{"num_features":3,"eps":1e-5,"\\u0065ps":1e-5}', 400, "duplicate_field", "/eps"),
    ("array", "[1]", 400, "not_an_object", None),
    ("number", "3", 400, "not_an_object", None),
    ("null", "null", 400, "not_an_object", None),
    ("empty body", "", 400, None, None),
    ("half an object", '{"num_features":3', 400, "malformed_json", None),
    ("text behind the object", '{"num_features":3} x', 400, "malformed_json", None),
    ("two objects", '{"num_features":3}{}', 400, "malformed_json", None),
    ("NaN", '{"num_features":3,"eps":NaN}', 400, "malformed_json", None),
    ("single quotes", "{'num_features':3}", 400, "malformed_json", None),
    ("comma at the end", '{"num_features":3,}', 400, "malformed_json", None),
    ("leading zero", '{"num_features":03}', 400, "malformed_json", None),
    ("byte order mark", b'\xef\xbb\xbf{"num_features":3}', 400, "malformed_json", None),
    ("bad UTF-8", b'{"num_features":3,"dtype":"\xff"}', 400, "malformed_json", None),
    ("NUL", b'{"num_features":3}\x00', 400, "malformed_json", None),
])
def test_bad_body(body, status, code, pointer):
    client = api()
    wire.problem(client.put(NAME, body), status, code, pointer)
    wire.problem(client.get(NAME), 404, "layer_not_found")


def test_put_again():
    client, path = create("again", num_features=3, momentum=0.2)
    client.train(path, [[1, 2, 3], [4, 5, 7]])
    before = client.ok("GET", path), client.state(path)
    reply = client.put(path, {"momentum": 0.2, "num_features": 3, "eps": 1e-5})
    assert reply.status == 200 and reply.json == before[0], reply
    reply = client.put(path, before[0]["layer"])
    assert reply.status == 200 and reply.json == before[0], reply
    for other in ({"num_features": 4, "momentum": 0.2}, {"num_features": 3}, {"num_features": 3, "momentum": 0.2,
                                                                              "dtype": "f64"},
                  {"num_features": 3, "momentum": 0.2, "channel_axis": -1}):
        wire.problem(client.put(path, other), 409, "config_conflict")
    assert (client.ok("GET", path), client.state(path)) == before


def test_read_only_fields_are_ignored():
    client, path = create("readonly", num_features=3)
    layer = dict(client.ok("GET", path)["layer"], new_weight=0.7, running_ddof=0)
    reply = client.put(path, layer)
    assert reply.status == 200 and reply.json["layer"] == DEFAULTS, reply


def test_patch():
    client, path = create("patch", num_features=3)
    client.train(path, [[1, 2, 3], [4, 5, 7]])
    before = client.state(path)
    changes = {"momentum": None, "eps": 0.5, "nonfinite": "propagate", "single_value": "beta"}
    version = before["version"]
    for field, value in changes.items():
        body = client.ok("PATCH", path, {field: value})
        version += 1
        assert body["version"] == version and body["layer"][field] == value, body
    assert body["layer"] == {**DEFAULTS, **changes, "new_weight": None}, body
    again = client.ok("PATCH", path, {"eps": 0.5})
    assert again["version"] == version + 1, "equal values count as a change"
    after = client.state(path)
    for field in ("gamma", "beta", "running_mean", "running_var", "num_batches_tracked"):
        assert after[field] == before[field], field
    assert client.put(path, {"num_features": 3}).status == 409, "PUT compares with the changed configuration"


@harness.rows([
    ("momentum", '{"momentum":1.5}', (422,), "/momentum"),
    ("eps", '{"eps":0}', (422,), "/eps"),
    ("nonfinite", '{"nonfinite":"no"}', (422,), "/nonfinite"),
    ("single_value", '{"single_value":1}', (422,), "/single_value"),
    ("second of two", '{"momentum":0.5,"eps":-1}', (422,), "/eps"),
    ("a fixed field", '{"num_features":4}', (400, 422), "/num_features"),
    ("another fixed field", '{"dtype":"f64"}', (400, 422), "/dtype"),
    ("unknown", '{"epsilon":1}', (400,), "/epsilon"),
    ("not an object", "[]", (400,), None),
])
def test_bad_patch(body, accepted, pointer):
    client = api()
    client.put("/v1/layers/badpatch", {"num_features": 3})
    before = client.ok("GET", "/v1/layers/badpatch")
    reply = client.patch("/v1/layers/badpatch", body)
    assert reply.status in accepted, reply
    wire.problem(reply, reply.status, None, pointer)
    assert client.ok("GET", "/v1/layers/badpatch") == before


def test_delete():
    client, path = create("gone", num_features=3)
    etag = client.get(path).headers["etag"]
    reply = client.delete(path)
    assert reply.status == 204 and reply.body == b"", reply
    for method, suffix, body in (("GET", "", None), ("DELETE", "", None), ("PATCH", "", {"eps": 1}),
                                 ("GET", "/state", None),
                                 ("PUT", "/state", {}), ("PATCH", "/state", {}), ("POST", "/train-forward",
                                                                                  {"x": [[1, 2, 3]]}),
                                 ("POST", "/inference", {"x": [[1, 2, 3]]}),
                                 ("POST", "/backward", {"dout": [[1, 2, 3]]})):
        wire.problem(client.request(method, path + suffix, body), 404, "layer_not_found")
    client.layer("gone", num_features=3)
    assert client.get(path).headers["etag"] != etag, "the random part is new"


@harness.rows([
    ("128 characters", "a" * 128, 201), ("129 characters", "a" * 129, 400), ("dots", "resnet50.layer1.0.bn1", 201),
    ("one digit", "0", 201), ("all kinds", "A-b_c.9", 201), ("leading dot", ".a", 400), ("leading dash", "-a", 400),
    ("leading underscore", "_a", 400), ("space", "a%20b", 400), ("slash, encoded", "a%2Fb", 400), ("NUL", "a%00b", 400),
    ("dots, encoded", "%2e%2e", 400), ("path, encoded", "..%2F..%2Fetc", 400), ("control", "a%0d%0ab", 400),
    ("not ASCII", "%C3%A9t%C3%A9", 400), ("bad escape", "a%zz", 400), ("cut escape", "a%2", 400),
    ("300 bytes", "b" * 300, 400),
])
def test_name(name, status):
    client = api()
    before = len(client.ok("GET", "/v1/layers?limit=1000")["layers"])
    reply = client.put("/v1/layers/" + name, {"num_features": 1})
    if status == 201:
        assert reply.status == 201 and reply.json["name"] == name, reply
        assert client.delete("/v1/layers/" + name).status == 204
    else:
        wire.problem(reply, status, "bad_name")
        wire.problem(client.get("/v1/layers/" + name), status, "bad_name")
    assert len(client.ok("GET", "/v1/layers?limit=1000")["layers"]) == before


def test_escaped_name_is_the_same_layer():
    client, path = create("abc", num_features=1)
    assert client.ok("GET", "/v1/layers/%61bc") == client.ok("GET", path)


def names_of(page):
    return [layer["name"] for layer in page["layers"]]


def test_list():
    with harness.Server("--durability", "none") as server:
        client = server.api()
        assert client.ok("GET", "/v1/layers") == {"layers": [], "next_cursor": None}
        names = [f"n{i:03}" for i in range(120)] + ["Z", "a", "a.b", "a-b", "a_b", "aa", "0"]
        for name in names:
            client.layer(name, num_features=2)
        names.sort(key=str.encode)
        page = client.ok("GET", "/v1/layers")
        assert names_of(page) == names[:100], "default limit, order by name"
        assert page["layers"][0] == client.ok("GET", "/v1/layers/" + names[0])
        rest = client.ok("GET", "/v1/layers?cursor=" + page["next_cursor"])
        assert names_of(rest) == names[100:] and rest["next_cursor"] is None
        assert names_of(client.ok("GET", "/v1/layers?limit=1000")) == names
        assert names_of(client.ok("GET", "/v1/layers?prefix=a")) == [n for n in names if n.startswith("a")]
        assert names_of(client.ok("GET", "/v1/layers?prefix=a.")) == ["a.b"]
        assert client.ok("GET", "/v1/layers?prefix=zz") == {"layers": [], "next_cursor": None}
        seen, query = [], "/v1/layers?limit=7&prefix=n"
        page = client.ok("GET", query)
        while True:
            seen += names_of(page)
            if page["next_cursor"] is None:
                break
            assert len(page["layers"]) == 7, page
            client.delete("/v1/layers/" + seen[-1])  # a cursor survives the end of its layer
            page = client.ok("GET", query + "&cursor=" + page["next_cursor"])
        assert seen == [n for n in names if n.startswith("n")]
        exact = client.ok("GET", "/v1/layers?prefix=a&limit=5")
        assert len(exact["layers"]) == 5 and exact["next_cursor"] is None, "a full last page has no successor"


@harness.rows([(q, q) for q in ("limit=0", "limit=1001", "limit=-1", "limit=x", "limit=", "limit=1.5",
                                "limit=99999999999999999999",
                                "cursor=%25%25", "cursor=!", "page=2", "limit=1&limit=2")])
def test_bad_query(query):
    wire.problem(api().get("/v1/layers?" + query), 400)


def test_counters():
    client, path = create("counted", num_features=1, nonfinite="skip_update")
    client.train(path, [[1], [2]])
    client.train(path, [["NaN"], [2]])
    client.infer(path, [[1]])
    client.infer(path, [[1]])
    client.backward(path, [[1], [1]], x=[[1], [2]])
    wire.problem(client.post(path + "/train-forward", {"x": [[1, 2]]}), 422)
    counters = client.ok("GET", path)["counters"]
    assert counters["inference"] == 2 and counters["backward"] == 1 and counters["skipped"] == 1, counters
    assert counters["train_forward"] in (1, 2), counters


harness.main()
