# SPDX-License-Identifier: Apache-2.0
"""Tensors, how each form carries them, and what a call must answer."""
import base64
import io
import json
from collections import namedtuple

import numpy

from http_settings import Broken

TILE = 256  # rows that differ; a longer tensor repeats them, since the text of millions of numbers takes Python long


def tensor(rows, features, decimals=None):
    """float32, off centre. With `decimals` as sensors give them, without with all digits as networks do."""
    source = numpy.random.default_rng(rows * features)
    channel = numpy.arange(features)
    tile = source.normal(3.0 * channel, 1.0 + channel, (min(rows, TILE), features))
    if decimals is not None:
        tile = tile.round(decimals)
    return numpy.resize(tile.astype("<f4"), (rows, features))


# ---- requests: fields {name: array} -> body, header fields

def json_text(array):
    rows = ["[" + ",".join(map(str, row)) + "]" for row in array[:TILE]]
    return "[" + ",".join(rows[i % TILE] for i in range(len(array))) + "]"


def encode_json(fields, _):
    return ("{" + ",".join(f'"{name}":{json_text(array)}' for name, array in fields.items()) + "}").encode(), {}


def encode_base64(fields, _):
    return json.dumps({name: {"shape": array.shape, "dtype": "f32", "base64": base64.b64encode(array).decode()}
                       for name, array in fields.items()}).encode(), {}


def encode_npy(fields, _):
    (array,) = fields.values()
    out = io.BytesIO()
    numpy.save(out, array)
    return out.getvalue(), {}


def encode_safetensors(fields, _):
    header, end = {}, 0
    for name, array in fields.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in fields.values()), {}


def encode_oip(fields, call):
    inputs = [{"name": name, "shape": array.shape, "datatype": "FP32", "parameters": {"binary_data_size": array.nbytes}}
              for name, array in fields.items()]
    parameters = {"binary_data_output": True}
    if call != "inference":
        parameters["mode"] = call
    text = json.dumps({"parameters": parameters, "inputs": inputs}).encode()
    return (text + b"".join(array.tobytes() for array in fields.values()),
            {"Inference-Header-Content-Length": str(len(text))})


# ---- replies: -> the tensor of that name

def decode_json(reply, name):
    return numpy.array(json.loads(reply.body)[name])


def decode_base64(reply, name):
    value = json.loads(reply.body)[name]
    return numpy.frombuffer(base64.b64decode(value["base64"]), "<f4").reshape(value["shape"])


def decode_npy(reply, _):
    return numpy.load(io.BytesIO(reply.body))


def decode_safetensors(reply, name):
    start = 8 + int.from_bytes(reply.body[:8], "little")
    entry = json.loads(reply.body[8:start])[name]
    first, end = entry["data_offsets"]
    return numpy.frombuffer(reply.body[start + first:start + end], "<f4").reshape(entry["shape"])


def decode_oip(reply, name):
    start = int(reply.headers["Inference-Header-Content-Length"])
    for output in json.loads(reply.body[:start])["outputs"]:
        end = start + output["parameters"]["binary_data_size"]
        if output["name"] == name:
            return numpy.frombuffer(reply.body[start:end], "<f4").reshape(output["shape"])
        start = end
    raise Broken(f"the reply has no {name}")


Form = namedtuple("Form", "name title path content_type encode decode binary")
LAYER_PATH = "/v1/layers/{layer}/{call}"
FORMS = {form.name: form for form in (
    Form("json", "JSON", LAYER_PATH, "application/json", encode_json, decode_json, False),
    Form("base64", "base64", LAYER_PATH, "application/json", encode_base64, decode_base64, False),
    Form("npy", "npy", LAYER_PATH, "application/x-npy", encode_npy, decode_npy, True),
    Form("safetensors", "safetensors", LAYER_PATH, "application/vnd.safetensors", encode_safetensors,
         decode_safetensors, True),
    Form("oip", "OIP binary", "/v2/models/{layer}/infer", "application/octet-stream", encode_oip, decode_oip, True),
)}


def encode(form, call, fields):
    """The body and the header fields of a request."""
    body, headers = form.encode(fields, call)
    headers["Content-Type"] = form.content_type
    if form.binary and form.name != "oip":
        headers["Accept"] = form.content_type
    return body, headers


# ---- what must come out

def normalized(call, x, state):
    """y in float64, by the definition. `state` is the layer's before the call."""
    wide = x.astype("f8")
    if call == "train-forward":
        mean, var = wide.mean(axis=0), wide.var(axis=0)
    else:
        mean, var = numpy.array(state["running_mean"]), numpy.array(state["running_var"])
    scale = numpy.array(state["gamma"]) / numpy.sqrt(var + state["layer"]["eps"])
    return (wide - mean) * scale + numpy.array(state["beta"])


def check(name, y, expected):
    if y.shape != expected.shape or not numpy.allclose(y, expected, rtol=1e-4, atol=1e-4):
        raise Broken(f"{name} answers something else than batch normalization")
