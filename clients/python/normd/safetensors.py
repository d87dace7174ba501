# SPDX-License-Identifier: Apache-2.0
"""Calls as safetensors files: eight bytes of the header's length, a header in JSON, the bytes of the tensors."""

import json
from typing import Any, Dict, List, Mapping

from .tensor import Raw, dump, dump_value

MEDIA_TYPE = "application/vnd.safetensors"

_WIDTHS = {"f16": 2, "f32": 4, "f64": 8}


def is_file(body: bytes) -> bool:
    """False where the bytes can only be JSON text, which as a file would be longer than there is memory for."""
    return not body.lstrip().startswith(b"{") or int.from_bytes(body[:8], "little") <= len(body) - 8


def pack(tensors: Mapping[str, Raw], fields: Mapping[str, Any]) -> bytes:
    """A request: the tensors, and each other field as JSON text in the metadata."""
    metadata = {name: dump_value(value).decode("ascii") for name, value in fields.items()}
    header: Dict[str, Any] = {"__metadata__": metadata}
    pieces: List[Any] = []
    end = 0
    # The widest first, so that every tensor is aligned.
    for name, raw in sorted(tensors.items(), key=lambda item: -_WIDTHS[item[1].dtype]):
        begin, end = end, end + raw.data.nbytes
        header[name] = {"dtype": raw.dtype.upper(), "shape": list(raw.shape), "data_offsets": [begin, end]}
        pieces.append(raw.data)
    text = dump(header)
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *pieces])


def unpack(body: bytes) -> Dict[str, Any]:
    """The fields of a reply, its tensors as Raw."""
    start = 8 + int.from_bytes(body[:8], "little")
    header = json.loads(body[8:start])
    reply: Dict[str, Any] = {name: json.loads(text) for name, text in header.pop("__metadata__", {}).items()}
    view = memoryview(body)[start:]
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        reply[name] = Raw(entry["dtype"].lower(), tuple(entry["shape"]), view[begin:end])
    return reply
