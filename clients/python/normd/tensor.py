# SPDX-License-Identifier: Apache-2.0
"""Tensors on the wire: nested lists as nested JSON arrays, NumPy arrays as base64 of their bytes.

NumPy is never imported here before the caller has done so: an array can only come from one who did.
"""

import base64
import json
import math
import sys
from dataclasses import dataclass
from typing import Any, Mapping

# Nested lists (or tuples) of numbers, a NumPy array, or {"shape": [...], "data": [...]} with data in row-major order.
Tensor = Any

_WIRE_DTYPES = {"float16": "f16", "float32": "f32", "float64": "f64"}
_ARRAY_DTYPES = {"f16": "<f2", "f32": "<f4", "f64": "<f8"}


@dataclass(frozen=True)
class JsonText:
    """A value that is written already: base64 of a large array need not be searched for characters to escape."""

    text: bytes


def is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def encode(value: Tensor) -> Any:
    """What stands for the tensor in the request. Arrays of integers or booleans go as f64; complex ones are refused."""
    if not is_array(value):
        return value
    if value.dtype.kind in "biu":
        value = value.astype("<f8")
    wire = _WIRE_DTYPES.get(value.dtype.name)
    if wire is None:
        raise TypeError(f"an array of {value.dtype} cannot be sent; float16, float32, float64 and integers can")
    raw = value.astype(_ARRAY_DTYPES[wire], order="C", copy=False)
    shape = json.dumps(value.shape).encode("ascii")
    return JsonText(b'{"shape":%b,"dtype":"%b","base64":"%b"}' % (shape, wire.encode("ascii"), base64.b64encode(raw)))


def decode(value: Any) -> Tensor:
    """The tensor that a reply holds: lists of floats, or a writable array where the request's tensor was one."""
    if isinstance(value, Mapping):
        if "base64" not in value:
            return {"shape": value["shape"], "data": floats(value["data"])}
        import numpy

        raw = bytearray(base64.b64decode(value["base64"]))
        return numpy.frombuffer(raw, dtype=_ARRAY_DTYPES[value["dtype"]]).reshape(value["shape"])
    return floats(value)


def floats(value: Any) -> Any:
    """The same nesting with every element a float; the strings "NaN", "Infinity" and "-Infinity" are floats too."""
    if not isinstance(value, list):
        return None if value is None else float(value)
    if value and not isinstance(value[0], list):
        return [float(v) for v in value]
    return [floats(v) for v in value]


def vector(value: Any, as_array: bool) -> Any:
    """One value per channel: a list, or an f64 array where the tensors of the call are arrays; None stays None."""
    values = floats(value)
    if values is None or not as_array:
        return values
    import numpy

    return numpy.array(values, dtype="<f8")


def dump(body: Mapping[str, Any]) -> bytes:
    """The body as JSON. Non-finite numbers become the strings that the server takes for them."""
    members = (json.dumps(name).encode("ascii") + b":" + _dump_value(value) for name, value in body.items())
    return b"{" + b",".join(members) + b"}"


def _dump_value(value: Any) -> bytes:
    if isinstance(value, JsonText):
        return value.text
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"), default=_plain)
    except ValueError:
        text = json.dumps(_spell_nonfinite(value), allow_nan=False, separators=(",", ":"))
    return text.encode("ascii")


def _plain(value: Any) -> Any:
    """NumPy scalars, and arrays inside lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _spell_nonfinite(value: Any) -> Any:
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _spell_nonfinite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spell_nonfinite(v) for v in value]
    if value is None or isinstance(value, (str, int)):
        return value
    return _spell_nonfinite(_plain(value))
