# SPDX-License-Identifier: Apache-2.0
"""proto/openapi.yaml holds for the server: every example is sent and gives the reply that the file shows, every reply
fits its schema, and the file is what the server serves."""
import os
import re

import harness
import openapi
import wire

PATH = os.path.join(harness.ROOT, "proto", "openapi.yaml")
SPEC = openapi.load(PATH)
METHODS = ("get", "put", "patch", "post", "delete")
# Differ from run to run or from machine to machine; their types are the schema's to check.
MASKED = {"cache", "cpu", "last_inference", "memory", "ns", "threads"}


class Operation:
    def __init__(self, path, method):
        self.path, self.method = path, method
        self.spec = SPEC["paths"][path][method]
        self.id = self.spec["operationId"]
        self.requests = {}
        body = self.spec.get("requestBody", {}).get("content", {}).get("application/json", {})
        self.request_schema = body.get("schema")
        self.requests = body.get("examples", {})

    def replies(self):
        """(status, response, media type, schema, name, example) of every response example."""
        for status, response in self.spec["responses"].items():
            response = openapi.resolve(SPEC, response)
            for media, content in response.get("content", {}).items():
                for name, example in content.get("examples", {}).items():
                    yield int(status), response, media, content["schema"], name, example

    def find(self, name):
        return next(reply for reply in self.replies() if reply[4] == name)


OPERATIONS = {op.id: op for op in (Operation(path, method) for path, item in SPEC["paths"].items()
                                   for method in METHODS if method in item)}
CASES = [(f"{op.id} {status} {name}", op, name)
         for op in OPERATIONS.values() for status, _, _, _, name, _ in op.replies()]


def send(api, op, name, cache):
    """Sends an example and checks the reply's status; `cache` holds the id of the last cached pass."""
    status, _, _, _, _, example = op.find(name)
    path = op.path.replace("{name}", example.get("x-name", SPEC["components"]["parameters"]["Name"]["example"]))
    path = path.replace("{version}", "1")
    if "x-query" in example:
        path += "?" + example["x-query"]
    body = op.requests[name]["value"] if op.requests else None
    if op.id == "backward" and "cache" in body and cache:
        body = {**body, "cache": cache[-1]}
    reply = api.request(op.method.upper(), path, body, example.get("x-headers"))
    assert reply.status == status, f"{op.id}/{name}: want {status}: {reply}"
    if op.id == "trainForward" and reply.status == 200 and "cache" in reply.json:
        cache.append(reply.json["cache"])
    return reply


def masked(value):
    if isinstance(value, dict):
        return {k: "..." if k in MASKED else masked(v) for k, v in value.items()}
    return [masked(v) for v in value] if isinstance(value, list) else value


@harness.rows(CASES)
def test_example(op, name):
    api = harness.shared().api()
    for layer in api.ok("GET", "/v1/layers?limit=1000")["layers"]:
        assert api.delete("/v1/layers/" + layer["name"]).status == 204
    status, response, media, schema, _, example = op.find(name)
    cache = []
    for before in example.get("x-before", []):
        send(api, OPERATIONS[before.split("/")[0]], before.split("/")[1], cache)
    reply = send(api, op, name, cache)
    assert reply.headers["content-type"].split(";")[0] == media, reply.headers
    for header, declared in response.get("headers", {}).items():
        optional = declared["$ref"].endswith("OfChange") or header.startswith("Normd-")  # of npy alone
        assert header.lower() in reply.headers or optional, f"no {header}"
    if status < 400 and op.requests:
        bad = openapi.errors(SPEC, op.request_schema, op.requests[name]["value"])
        assert not bad, f"the request: {bad}"
    got = reply.json if media.endswith("json") else reply.body.decode()
    assert not openapi.errors(SPEC, schema, got), openapi.errors(SPEC, schema, got)
    assert wire.bits(masked(got)) == wire.bits(masked(example["value"])), f"got {wire.bits(got)}"


def test_every_request_example_has_its_reply():
    for op in OPERATIONS.values():
        assert set(op.requests) <= {reply[4] for reply in op.replies()}, op.id


def test_every_operation_has_an_example():
    without = {op.id for op in OPERATIONS.values() if not list(op.replies())}
    assert without == {"openapi"}, without  # the file itself: the next test


def test_the_server_serves_the_file():
    reply = harness.shared().api().get("/openapi.yaml")
    with open(PATH, "rb") as f:
        assert reply.status == 200 and reply.body == f.read()
    assert reply.headers["content-type"].split(";")[0] == "application/yaml", reply.headers


@harness.rows([(path, path) for path in SPEC["paths"]])
def test_allow_names_the_documented_methods(path):
    documented = {m.upper() for m in METHODS if m in SPEC["paths"][path]}
    api = harness.shared().api()
    absent = next(m for m in ("DELETE", "PATCH", "POST") if m not in documented)
    reply = api.request(absent, path.replace("{name}", "people").replace("{version}", "1"))
    wire.problem(reply, 405, "method_not_allowed", oip=path.startswith("/v2"))
    allowed = {m.strip() for m in reply.headers["allow"].split(",")}
    assert documented <= allowed <= documented | {"HEAD", "OPTIONS"}, f"{allowed} for {documented}"


def test_unchanged_is_304_and_deleted_is_204():
    api = harness.shared().api()
    path = api.layer("openapi.etag")
    for resource in (path, path + "/state"):
        tag = api.get(resource).headers["etag"]
        reply = api.get(resource, {"If-None-Match": tag})
        assert (reply.status, reply.body, reply.headers["etag"]) == (304, b"", tag), reply
    reply = api.delete(path, {"If-Match": tag})
    assert (reply.status, reply.body) == (204, b""), reply


def test_codes_are_those_of_the_error_table():
    with open(os.path.join(harness.ROOT, "proto", "message.c"), encoding="utf-8") as f:
        table = re.findall(r'\{MSG_[A-Z_]+, (\d+), "(\w+)",', f.read())
    codes = [(int(status), code) for status, code in table if code != "ok"]
    schema = SPEC["components"]["schemas"]["Problem"]["properties"]["code"]
    assert schema["enum"] == [code for _, code in codes], "the enum"
    listed = []
    for status, names in re.findall(r"(\d+): ([a-z0-9_ ]+)\.", schema["description"]):
        listed += [(int(status), name) for name in names.split()]
    assert listed == codes, "the description"


if __name__ == "__main__":
    harness.main()
