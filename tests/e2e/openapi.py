# SPDX-License-Identifier: Apache-2.0
"""Reads proto/openapi.yaml, which keeps to a subset of YAML (its head says which), and checks values by its schemas."""
import json
import re


def load(path):
    with open(path, encoding="utf-8") as f:
        lines = [(number, line.rstrip("\n")) for number, line in enumerate(f, 1)]
    lines = [(number, line) for number, line in lines if line.strip() and not line.lstrip().startswith("#")]
    value, rest = _mapping(lines, 0)
    assert not rest, f"line {rest[0][0]}: indentation"
    return value


def _indent(line):
    return len(line) - len(line.lstrip(" "))


def _mapping(lines, indent):
    """The block mapping at the head of `lines`; returns it and the lines behind it."""
    mapping = {}
    while lines and _indent(lines[0][1]) == indent:
        number, line = lines[0]
        found = re.fullmatch(r'("[^"]*"|[^\s":#{\[][^:]*):(?: (.*))?', line[indent:])
        assert found, f"line {number}: not a key: {line}"
        key = found.group(1).strip('"')
        assert key not in mapping, f"line {number}: {key} twice"
        inner, lines = _inner(lines[1:], indent)
        mapping[key], left = _value(found.group(2), inner, indent + 2, number)
        assert not left, f"line {left[0][0]}: indentation"
    return mapping, lines


def _inner(lines, indent):
    """Splits off the lines that are indented deeper."""
    end = 0
    while end < len(lines) and _indent(lines[end][1]) > indent:
        end += 1
    return lines[:end], lines[end:]


def _value(text, inner, indent, number):
    if text is None:
        return _mapping(inner, indent)
    folded = " ".join(line.strip() for _, line in inner)
    if text == ">-":
        return folded, []
    if text[0] in '{["':
        try:
            return json.loads(f"{text} {folded}"), []
        except ValueError as error:
            raise AssertionError(f"line {number}: {error}") from None
    assert not inner and ": " not in text and " #" not in text, f"line {number}: plain text goes on or needs quotes"
    try:
        return json.loads(text), []
    except ValueError:
        return text, []


# ---- schemas

_TYPES = {
    "array": lambda v: isinstance(v, list),
    "boolean": lambda v: isinstance(v, bool),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "null": lambda v: v is None,
    "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    "object": lambda v: isinstance(v, dict),
    "string": lambda v: isinstance(v, str),
}
_NO_CHECK = {"$ref", "allOf", "anyOf", "contentEncoding", "default", "description", "example", "items", "properties",
             "propertyNames", "readOnly"}


def resolve(root, node):
    """The node itself, or what its $ref names."""
    while "$ref" in node:
        target = root
        for part in node["$ref"][2:].split("/"):
            target = target[part]
        node = target
    return node


def errors(root, schema, value, where=""):
    """What is wrong with the value, as a list of texts. Knows the keywords that the file uses, and no others."""
    found = []
    if "$ref" in schema:
        found += errors(root, resolve(root, schema), value, where)
    for part in schema.get("allOf", []):
        found += errors(root, part, value, where)
    if "anyOf" in schema and all(errors(root, part, value, where) for part in schema["anyOf"]):
        found.append(f"{where}: fits none of anyOf: {value!r:.80}")
    for keyword, limit in schema.items():
        if keyword not in _NO_CHECK and not _holds(keyword, limit, value, schema):
            found.append(f"{where}: {keyword} {limit!r:.80}: {value!r:.80}")
    if isinstance(value, list):
        for i, item in enumerate(value):
            found += errors(root, schema.get("items", {}), item, f"{where}/{i}")
    if isinstance(value, dict):
        more = schema.get("additionalProperties", {})
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key, more)
            found += errors(root, inner, item, f"{where}/{key}") if isinstance(inner, dict) else []
            found += errors(root, schema.get("propertyNames", {}), key, f"{where}/{key}")
    return found


def _holds(keyword, limit, value, schema):
    number = _TYPES["number"](value)
    if keyword == "type":
        return any(_TYPES[name](value) for name in ([limit] if isinstance(limit, str) else limit))
    if keyword == "enum":
        return value in limit
    if keyword == "required":
        return not isinstance(value, dict) or set(limit) <= set(value)
    if keyword == "additionalProperties":
        return limit is not False or not isinstance(value, dict) or set(value) <= set(schema["properties"])
    if keyword == "minimum":
        return not number or value >= limit
    if keyword == "maximum":
        return not number or value <= limit
    if keyword == "exclusiveMinimum":
        return not number or value > limit
    if keyword == "minLength":
        return not isinstance(value, str) or len(value) >= limit
    if keyword == "minItems":
        return not isinstance(value, list) or len(value) >= limit
    if keyword == "maxItems":
        return not isinstance(value, list) or len(value) <= limit
    if keyword == "pattern":
        return not isinstance(value, str) or re.search(limit, value) is not None
    raise AssertionError(f"unknown keyword {keyword}")
