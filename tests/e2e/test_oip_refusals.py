# SPDX-License-Identifier: Apache-2.0
"""Infer requests that are refused, each with the contract's status, the place and the layer's name; cuts and changes."""
import json
import random

import harness
import reference
import wire
from infer import DOUT, SHAPE, X, create, problem, request, tensor


def bad(title, status, code, pointer, word, /, **members):
    return title, status, code, pointer, word, json.dumps({"inputs": [tensor("x", SHAPE, X)[0]], **members}), {}


def bad_input(title, status, code, pointer, word, /, **members):
    return title, status, code, pointer, word, json.dumps({"inputs": [{**tensor("x", SHAPE, X)[0], **members}]}), {}


@harness.rows([
    ("no JSON", 400, "malformed_json", None, "byte 0", b"x", {}),
    ("nothing", 400, "malformed_json", None, "byte 0", b"", {}),
    ("an array", 400, "not_an_object", None, "object", b"[]", {}),
    ("NaN", 400, "malformed_json", None, "byte", b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[NaN,1,1]}]}',
     {}),
    ("no inputs", 422, "missing_field", "/inputs", "inputs", b"{}", {}),
    ("no x", 422, "missing_field", "/inputs", "x is missing", b'{"inputs":[]}', {}),
    ("header that is no number", 400, "bad_header", None, "Inference-Header-Content-Length", b"{}",
     {"Inference-Header-Content-Length": "x"}),
    ("negative header", 400, "bad_header", None, "Inference-Header-Content-Length", b"{}",
     {"Inference-Header-Content-Length": "-1"}),
    ("header beyond the body", 400, "malformed_file", None, "Inference-Header-Content-Length", b"{}",
     {"Inference-Header-Content-Length": "3"}),
    ("header of 2^64", 400, "malformed_file", None, "Inference-Header-Content-Length", b"{}",
     {"Inference-Header-Content-Length": "18446744073709551616"}),
    bad("unknown member", 400, "unknown_field", "/input", "input", input=1),
    bad("member x", 400, "unknown_field", "/x", "(x)", x=[[1, 2, 3]]),
    bad("member mode", 400, "unknown_field", "/mode", "(mode)", mode="backward"),
    bad("member step", 400, "unknown_field", "/step", "(step)", step={"lr": 1}),
    bad("member residual", 400, "unknown_field", "/residual", "(residual)", residual=[[1, 2, 3]]),
    bad("id that is no string", 422, "wrong_type", "/id", "string", id=3),
    bad("long id", 422, "out_of_range", "/id", "256", id="x" * 300),
    bad("another model", 422, "conflicting_fields", "/model_name", "model_name", model_name="other"),
    bad("unknown parameter", 400, "unknown_field", "/parameters/moed", "moed", parameters={"moed": "backward"}),
    bad("mode", 422, "out_of_range", "/parameters/mode", "train-forward", parameters={"mode": "train"}),
    bad("cache of an inference", 400, "unknown_field", "/parameters/cache", "cache", parameters={"cache": True}),
    bad("sequence", 501, "not_built", "/parameters/sequence_id", "sequences", parameters={"sequence_id": 7}),
    bad("priority", 501, "not_built", "/parameters/priority", "priorities", parameters={"priority": 2}),
    bad("axis", 422, "out_of_range", "/parameters/channel_axis", "channel_axis", parameters={"channel_axis": 8}),
    bad("axis that x has not", 422, "shape_mismatch", "/parameters/channel_axis", "rank 2", parameters={"channel_axis": 2}),
    bad("unknown output", 400, "unknown_field", "/outputs/1/name", '"z"', outputs=[{"name": "y"}, {"name": "z"}]),
    bad("output of another mode", 400, "unknown_field", "/outputs/0/name", '"dx"', outputs=[{"name": "dx"}]),
    bad("output twice", 400, "duplicate_field", "/outputs/1/name", '"y"', outputs=[{"name": "y"}, {"name": "y"}]),
    bad("classification", 400, "unknown_field", "/outputs/0/parameters/classification", "classification",
        outputs=[{"name": "y", "parameters": {"classification": 1}}]),
    bad("output in shared memory", 400, "unknown_field", "/outputs/0/parameters/shared_memory_region", "shared_memory",
        outputs=[{"name": "y", "parameters": {"shared_memory_region": "r"}}]),
    bad("backward without dout", 422, "missing_field", "/inputs", "dout", parameters={"mode": "backward"}),
    bad_input("unknown input", 400, "unknown_field", "/inputs/0/name", '"X"', name="X"),
    bad_input("dout of an inference", 400, "unknown_field", "/inputs/0/name", '"dout"', name="dout"),
    bad_input("datatype", 422, "out_of_range", "/inputs/0/datatype", '"INT8"', datatype="INT8"),
    bad_input("channels", 422, "shape_mismatch", "/inputs/0", "4 channels", shape=[3, 4]),
    bad_input("rank 1", 422, "shape_mismatch", "/inputs/0/shape", "1 axes", shape=[12]),
    bad_input("rank 9", 422, "shape_mismatch", "/inputs/0/shape", "9 axes", shape=[4, 3] + [1] * 7),
    bad_input("a variable shape", 422, "out_of_range", "/inputs/0/shape/0", "whole", shape=[-1, 3]),
    bad_input("a shape that overflows", 422, "out_of_range", "/inputs/0/shape", "too many", shape=[2 ** 40, 2 ** 40]),
    bad_input("too few numbers", 422, "shape_mismatch", "/inputs/0/data", "11 numbers", data=X[:-1]),
    bad_input("ragged", 422, "ragged", "/inputs/0/data/1", "row", data=[[1, 2, 3], [4, 5]]),
    bad_input("nested otherwise", 422, "shape_mismatch", "/inputs/0/data", "nested", data=reference.nest(X, [3, 4])),
    bad_input("a word", 422, "wrong_type", "/inputs/0/data/1", "number", data=[1, "x"] + X[2:]),
    bad_input("infinite", 422, "non_finite", "/inputs/0/data/2", "not finite", data=X[:2] + ["Infinity"] + X[3:]),
    bad_input("FP16 overflow", 422, "overflow", "/inputs/0/data/0", "FP16", datatype="FP16", data=[65520] + X[1:]),
    bad_input("f32 overflow", 422, "overflow", "/inputs/0/data/0", "FP64", datatype="FP64", data=[1e39] + X[1:]),
    bad_input("data and size", 422, "conflicting_fields", "/inputs/0", "not both", parameters={"binary_data_size": 48}),
    bad_input("unknown member of an input", 400, "unknown_field", "/inputs/0/dtype", "dtype", dtype="FP32"),
    bad_input("shared memory", 400, "unknown_field", "/inputs/0/parameters/shared_memory_region", "shared_memory",
              parameters={"shared_memory_region": "r"}),
])
def test_refusals(status, code, pointer, word, body, headers):
    """The status of the contract, the field by name, the layer by name."""
    client, model = create()
    got = problem(client.post(model + "/infer", body, headers), status, code, word)
    assert got.get("pointer") == pointer, got
    if pointer:
        assert pointer[1:] in got["detail"], got
    assert client.version("/v1/layers/oip") == 1


def test_binary_refusals():
    client, model = create()
    body, headers = request([tensor("x", SHAPE, X, binary=True)])
    for wrong, word in ((body + b"\0", "1 bytes"), (body[:-1], '"x"')):
        problem(client.post(model + "/infer", wrong, headers), 400, "malformed_file", word)
    without = {k: v for k, v in headers.items() if "Inference" not in k}
    problem(client.post(model + "/infer", body, without), 400, "malformed_json")
    header = int(headers["Inference-Header-Content-Length"])
    problem(client.post(model + "/infer", body[:header]), 400, "malformed_file", "Inference-Header-Content-Length",
            pointer="/inputs/0/parameters/binary_data_size")
    wrong = tensor("x", SHAPE, X, binary=True)
    wrong[0]["parameters"]["binary_data_size"] -= 4
    problem(client.post(model + "/infer", *request([wrong])), 422, "shape_mismatch", "takes 48",
            pointer="/inputs/0/parameters/binary_data_size")
    wide = [1e39] + X[1:]
    problem(client.post(model + "/infer", *request([tensor("x", SHAPE, wide, "FP64", True)])), 422, "overflow",
            "element 0", pointer="/inputs/0")


def test_every_cut_and_many_changes():
    """No cut and no changed byte of a good request does more than be refused."""
    server = harness.shared()
    client, model = create()
    body, headers = request([tensor("dout", SHAPE, DOUT, "FP16", True), tensor("x", SHAPE, X, "FP32", True)],
                            parameters={"mode": "backward"}, id="a")
    step = 1 if harness.SCALE >= 1 else 7
    for size in range(0, len(body), step):
        reply = client.post(model + "/infer", body[:size], headers)
        assert reply.status == 400, (size, reply)
        wire.problem(reply, 400, oip=True)
    rng = random.Random(9)
    for _ in range(harness.scaled(600, 40)):
        changed = bytearray(body)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(changed))] = rng.choice([0, 34, 44, 48, 57, 91, 93, 123, 125, 255, rng.randrange(256)])
        head = dict(headers)
        if rng.random() < 0.3:
            head["Inference-Header-Content-Length"] = str(rng.choice([0, 1, len(body), rng.randrange(2 * len(body))]))
        reply = client.post(model + "/infer", bytes(changed), head)
        assert reply.status in (200, 400, 422, 501), reply
        if reply.status != 200:
            wire.problem(reply, reply.status, oip=True)
    assert server.running() and client.version("/v1/layers/oip") == 1


if __name__ == "__main__":
    harness.main()
