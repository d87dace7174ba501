# SPDX-License-Identifier: Apache-2.0
"""npy and safetensors files, written and read with struct alone: what the server's own codecs are held against."""
import json
import math
import struct

NPY = "application/x-npy"
SAFETENSORS = "application/vnd.safetensors"
LETTERS = {"f2": "e", "f4": "f", "f8": "d"}
DTYPES = {"F16": ("e", 2), "F32": ("f", 4), "F64": ("d", 8), "I64": ("q", 8), "I32": ("i", 4), "U8": ("B", 1)}


def bf16(values):
    """Values that bf16 holds: the upper half of their f32."""
    return b"".join(struct.pack("<f", v)[2:] for v in values)


def of_bf16(raw):
    return [struct.unpack("<f", b"\0\0" + raw[i:i + 2])[0] for i in range(0, len(raw), 2)]


# ---- npy

def fortran_order(values, shape):
    """Row-major values, in the order in which the first index runs fastest."""
    strides = [math.prod(shape[i + 1:]) for i in range(len(shape))]
    out = []
    for i in range(len(values)):
        place = 0
        for length, stride in zip(shape, strides):
            place += i % length * stride
            i //= length
        out.append(values[place])
    return out


def npy(shape, values, descr="<f4", fortran=False, version=1, literal=None, align=64):
    """A file as numpy writes it; literal replaces its header's text."""
    if literal is None:
        tail = "," if len(shape) == 1 else ""
        literal = f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': ({', '.join(map(str, shape))}{tail}), }}"
    start = 10 if version == 1 else 12
    text = literal.encode()
    text += b" " * (-(start + len(text) + 1) % align) + b"\n"
    head = b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text
    if fortran:
        values = fortran_order(values, shape)
    return head + elements(values, descr)


def elements(values, descr):
    if descr.endswith("V2"):
        return bf16(values)
    return struct.pack(f"{descr[0]}{len(values)}{LETTERS[descr[1:]]}", *values)


def read_npy(data):
    """(descr, shape, values) of a file in C order, every byte of it accounted for."""
    assert data[:8] == b"\x93NUMPY\1\0", data[:8]
    length = struct.unpack("<H", data[8:10])[0]
    assert (10 + length) % 64 == 0 and data[9 + length:10 + length] == b"\n", data[:10 + length]
    header = eval(data[10:10 + length].decode(), {"__builtins__": {}})  # pylint: disable=eval-used
    assert set(header) == {"descr", "fortran_order", "shape"} and header["fortran_order"] is False, header
    raw, descr = data[10 + length:], header["descr"]
    if descr == "|V2":
        values = of_bf16(raw)
    else:
        values = list(struct.unpack(f"{descr[0]}{len(raw) // int(descr[2])}{LETTERS[descr[1:]]}", raw))
    assert len(values) == math.prod(header["shape"]), header
    return descr, list(header["shape"]), values


# ---- safetensors

def safetensors(tensors, metadata=None, pad=8, order=None):
    """A file of {name: (dtype, shape, values)}; order: that of the data, if not the dictionary's."""
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name in order or tensors:
        dtype, shape, values = tensors[name]
        raw = bf16(values) if dtype == "BF16" else struct.pack(f"<{len(values)}{DTYPES[dtype][0]}", *values)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return raw_safetensors(json.dumps(header), data, pad)


def raw_safetensors(text, data, pad=8):
    text = text.encode() if isinstance(text, str) else text
    text += b" " * (-len(text) % pad)
    return struct.pack("<Q", len(text)) + text + data


def read_safetensors(data):
    """({name: (dtype, shape, values)}, metadata), with the checks that the reference implementation makes."""
    length = struct.unpack("<Q", data[:8])[0]
    text, body = data[8:8 + length], data[8 + length:]
    assert len(text) == length and text[:1] == b"{" and length % 8 == 0, text[:100]
    header = json.loads(text)
    metadata = header.pop("__metadata__", {})
    assert all(isinstance(v, str) for v in metadata.values()), metadata
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        assert set(entry) == {"dtype", "shape", "data_offsets"}, entry
        begin, stop = entry["data_offsets"]
        assert begin == end, f"a hole or an overlap before {name}"
        end = stop
        raw = body[begin:stop]
        if entry["dtype"] == "BF16":
            values = of_bf16(raw)
        else:
            letter, size = DTYPES[entry["dtype"]]
            assert begin % size == 0, f"{name} is not aligned"
            values = list(struct.unpack(f"<{len(raw) // size}{letter}", raw))
        assert len(values) == math.prod(entry["shape"]), entry
        tensors[name] = (entry["dtype"], entry["shape"], values)
    assert end == len(body), "bytes behind the last tensor"
    return tensors, metadata
