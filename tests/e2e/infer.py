# SPDX-License-Identifier: Apache-2.0
"""Infer requests of the Open Inference Protocol, written and read with json and struct alone."""
import json
import math
import struct

import files
import harness
import reference
import wire

NUMBERS = {"FP32": ("f", 4), "FP64": ("d", 8), "FP16": ("e", 2), "BF16": (None, 2)}
X = [1.0, 2.5, -0.75, 4.0, 0.5, -3.0, 8.0, 0.25, -1.0, 2.0, 1.5, 6.0]  # exact in every type
DOUT = [0.5, -1.0, 2.0, 1.0, 0.0, 0.25, -0.5, 1.5, 3.0, -2.0, 1.0, 0.125]
SHAPE = [4, 3]
TOLERANCE = {"FP32": 2 ** -22, "FP64": 2 ** -22, "FP16": 2 ** -10, "BF16": 2 ** -7}  # of an f32 layer


def create(name="oip", **config):
    client = harness.shared().api()
    client.delete("/v1/layers/" + name)
    client.layer(name, **{"num_features": 3, **config})
    return client, f"/v2/models/{name}"


def pack(values, datatype):
    letter = NUMBERS[datatype][0]
    return files.bf16(values) if letter is None else struct.pack(f"<{len(values)}{letter}", *values)


def unpack(raw, datatype):
    letter, size = NUMBERS[datatype]
    assert len(raw) % size == 0, len(raw)
    return files.of_bf16(raw) if letter is None else list(struct.unpack(f"<{len(raw) // size}{letter}", raw))


def tensor(name, shape, values, datatype="FP32", binary=False, nested=False):
    """An input, and its bytes behind the JSON."""
    entry = {"name": name, "shape": shape, "datatype": datatype}
    if not binary:
        entry["data"] = reference.nest(values, shape) if nested else values
        return entry, b""
    raw = pack(values, datatype)
    entry["parameters"] = {"binary_data_size": len(raw)}
    return entry, raw


def request(inputs, pad=0, **members):
    """(body, headers) of an infer request of such inputs; pad: spaces at the end of its JSON."""
    text = json.dumps({"inputs": [entry for entry, _ in inputs], **members}).encode() + b" " * pad
    raw = b"".join(data for _, data in inputs)
    return text + raw, {"Inference-Header-Content-Length": str(len(text))} if raw else {}


def read(reply):
    """(JSON, {output: (datatype, shape, values)}), every byte accounted for."""
    assert reply.status == 200, reply
    header = reply.headers.get("inference-header-content-length")
    binary = header is not None
    assert reply.headers["content-type"] == ("application/octet-stream" if binary else "application/json"), reply
    length = int(header) if binary else len(reply.body)
    document, rest, outputs = json.loads(reply.body[:length]), reply.body[length:], {}
    for output in document["outputs"]:
        assert ("data" in output) != ("parameters" in output), output
        if "data" in output:
            values = output["data"]
        else:
            size = output["parameters"]["binary_data_size"]
            values, rest = unpack(rest[:size], output["datatype"]), rest[size:]
        assert len(values) == math.prod(output["shape"]), output
        outputs[output["name"]] = (output["datatype"], output["shape"], values)
    assert rest == b"", "bytes behind the last output"
    return document, outputs


def infer(client, model, inputs, headers=None, pad=0, **members):
    body, given = request(inputs, pad, **members)
    return read(client.post(model + "/infer", body, {"Content-Type": None, **given, **(headers or {})}))


def problem(reply, status, code, *words, pointer=None, layer="oip"):
    body = wire.problem(reply, status, code, pointer, oip=True)
    for word in (*words, f'"{layer}"'):
        assert word in body["detail"], f"no {word}: {body}"
    return body


def close(got, want, tolerance, floor=1e-6):
    assert len(got) == len(want), (len(got), len(want))
    for a, b in zip(got, want):
        assert abs(a - b) <= abs(b) * tolerance + floor, (a, b)
