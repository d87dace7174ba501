# SPDX-License-Identifier: Apache-2.0
"""Tensors on the wire: nested lists as nested JSON arrays, arrays as their bytes.

NumPy is never imported here before the caller has done so: an array can only come from one who did.
"""

import base64
import json
import math
import operator
import sys
from array import array
from dataclasses import dataclass
from typing import Any, Mapping, Optional, Tuple

# Nested lists (or tuples) of numbers, a NumPy array, or {"shape": [...], "data": [...]} with data in row-major order,
# which may be an array.array (or another buffer) of type "f" or "d".
Tensor = Any

_WIRE_DTYPES = {"float16": "f16", "float32": "f32", "float64": "f64"}
_ARRAY_DTYPES = {"f16": "<f2", "f32": "<f4", "f64": "<f8"}
_BUFFER_DTYPES = {"f": "f32", "d": "f64"}
_TYPECODES = {"f32": "f", "f64": "d"}


@dataclass(frozen=True)
class Raw:
    """A tensor as its bytes: dtype f16, f32 or f64, data a contiguous buffer, row-major and little-endian."""

    dtype: str
    shape: Tuple[int, ...]
    data: Any

    def tensor(self, numpy: bool) -> Tensor:
        """A writable copy for the caller: a NumPy array, or {"shape", "data": array.array}."""
        if not numpy:
            data: "array[float]" = array(_TYPECODES[self.dtype], bytes(self.data))
            return {"shape": list(self.shape), "data": _swapped(data)}
        import numpy as module

        return module.frombuffer(bytearray(self.data), dtype=_ARRAY_DTYPES[self.dtype]).reshape(self.shape)


@dataclass(frozen=True)
class JsonText:
    """A value that is written already: base64 of a large array need not be searched for characters to escape."""

    text: bytes


def is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def raw_of(value: Tensor) -> Optional[Raw]:
    """The bytes of an array; None for what has none.

    Arrays of integers or booleans go as f64; complex ones are refused.
    """
    if isinstance(value, Mapping):
        return _raw_of_buffer(value)
    if not is_array(value):
        return None
    if value.dtype.kind in "biu":
        value = value.astype("<f8")
    wire = _WIRE_DTYPES.get(value.dtype.name)
    if wire is None:
        raise TypeError(f"an array of {value.dtype} cannot be sent; float16, float32, float64 and integers can")
    return Raw(wire, value.shape, value.astype(_ARRAY_DTYPES[wire], order="C", copy=False))


def _raw_of_buffer(value: Mapping[str, Any]) -> Optional[Raw]:
    data = value.get("data")
    if set(value) != {"shape", "data"} or not isinstance(data, (array, memoryview)):
        return None
    view = memoryview(data)
    if view.format in ("B", "b", "c"):
        raise TypeError(f"a buffer of format {view.format!r} cannot be sent, for it does not say what its bytes are")
    if sys.byteorder == "little" and view.format in ("<f", "<d"):  # as ctypes names them; they cannot be cast
        view = memoryview(array(view.format[1], view.tobytes()))
    wire = _BUFFER_DTYPES.get(view.format)
    shape = _shape_of(value["shape"], view.nbytes // view.itemsize)
    if wire is None or shape is None:
        return None
    if sys.byteorder == "big" or not view.c_contiguous:
        view = memoryview(_swapped(array(view.format, view.tobytes())))
    return Raw(wire, shape, view)


def _shape_of(value: Any, count: int) -> Optional[Tuple[int, ...]]:
    """None for what is no shape of so many elements: as JSON the server can say what is wrong with it, a file cannot."""
    try:
        shape = tuple(operator.index(length) for length in value)
    except TypeError:
        return None
    return shape if min(shape, default=0) >= 0 and math.prod(shape) == count else None


def _swapped(data: "array[float]") -> "array[float]":
    """Native values as little-endian ones, or the reverse."""
    if sys.byteorder == "big":
        data.byteswap()
    return data


def encode(value: Tensor) -> Any:
    """What stands for the tensor in JSON."""
    raw = raw_of(value)
    if raw is None:
        return value
    shape = json.dumps(raw.shape).encode("ascii")
    text = base64.b64encode(raw.data)
    return JsonText(b'{"shape":%b,"dtype":"%b","base64":"%b"}' % (shape, raw.dtype.encode("ascii"), text))


def decode(value: Any, numpy: bool) -> Tensor:
    """The tensor that a reply holds: lists of floats, or a writable array where the request's tensor was one."""
    if isinstance(value, Raw):
        return value.tensor(numpy)
    if isinstance(value, Mapping):
        if "base64" not in value:
            return {"shape": value["shape"], "data": floats(value["data"])}
        return Raw(value["dtype"], tuple(value["shape"]), base64.b64decode(value["base64"])).tensor(numpy)
    return floats(value)


def floats(value: Any) -> Any:
    """The same nesting with every element a float; the strings "NaN", "Infinity" and "-Infinity" are floats too."""
    if not isinstance(value, list):
        return None if value is None else float(value)
    if value and not isinstance(value[0], list):
        return [float(v) for v in value]
    return [floats(v) for v in value]


def vector(value: Any, numpy: bool) -> Any:
    """One value per channel: a list, or an f64 array where the tensors of the call are NumPy's; None stays None."""
    if isinstance(value, Raw):
        return value.tensor(True) if numpy else value.tensor(False)["data"].tolist()
    values = floats(value)
    if values is None or not numpy:
        return values
    import numpy as module

    return module.array(values, dtype="<f8")


def dump(body: Mapping[str, Any]) -> bytes:
    """The body as JSON. Non-finite numbers become the strings that the server takes for them."""
    members = (json.dumps(name).encode("ascii") + b":" + dump_value(value) for name, value in body.items())
    return b"{" + b",".join(members) + b"}"


def dump_value(value: Any) -> bytes:
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
