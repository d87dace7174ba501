# SPDX-License-Identifier: Apache-2.0
"""The Python package's arrays: calls as safetensors files, with NumPy and without it, and checkpoints."""
import ctypes
import json
import math
import os
import subprocess
import sys
from array import array

import files
import harness
import wire
from test_clients import CLIENTS, PEOPLE, BadServer, client, normd, numpy, raises, reply_bytes, url

KINDS = [("array f, f32", "f", "f32"), ("array d, f64", "d", "f64"), ("array d, f32 layer", "d", "f32")]


def flat(rows, code="f"):
    return {"shape": [len(rows), len(rows[0])], "data": array(code, [v for row in rows for v in row])}


def rows_of(tensor):
    width = tensor["shape"][1]
    data = tensor["data"].tolist()
    return [data[i:i + width] for i in range(0, len(data), width)]


def f32_of(rows):
    """What the texts of f32 in JSON, read as Python reads them, stand for."""
    return [[wire.f32(v) for v in row] for row in rows]


@harness.rows(KINDS)
def test_calls_without_numpy(code, dtype):
    """The same bits as by lists."""
    c = client()
    plain, listed = f"arrays.plain.{code}.{dtype}", f"arrays.lists.{code}.{dtype}"
    c.create_layer(plain, 3, dtype=dtype)
    c.create_layer(listed, 3, dtype=dtype)
    exact = f32_of if dtype == "f32" else list
    x, dout, residual = PEOPLE, [[1, 2, 3]] * 9 + [[4, 5, 6]], [[0.5, -1, 0]] * 10
    options = {"activation": "relu", "cache": True}
    got = c.train_forward(plain, flat(x, code), residual=flat(residual, code), **options)
    want = c.train_forward(listed, x, residual=residual, **options)
    assert got.y["shape"] == [10, 3] and got.y["data"].typecode == code and rows_of(got.y) == exact(want.y)
    for field in ("batch_mean", "batch_var", "count", "num_batches_tracked", "updated", "version"):
        assert getattr(got, field) == getattr(want, field) and type(getattr(got, field)) is type(getattr(want, field))
    assert got.etag == c.layer(plain).etag and got.cache != want.cache
    for more in ({"cache": got.cache}, {"x": flat(x, code), "residual": flat(residual, code), "activation": "relu"}):
        back = c.backward(plain, flat(dout, code), **more)
        lists = c.backward(listed, dout, cache=want.cache)
        assert (rows_of(back.dx), rows_of(back.dresidual)) == (exact(lists.dx), exact(lists.dresidual))
        assert (back.dgamma, back.dbeta, back.version, back.etag) == (lists.dgamma, lists.dbeta, 2, None)
    step = c.backward(plain, flat(dout, code), cache=got.cache, step={"lr": 0.5}, mode="train")
    c.backward(listed, dout, cache=want.cache, step={"lr": 0.5})
    assert step.version == 3 and c.state(plain).gamma == c.state(listed).gamma
    y = c.inference(plain, flat(x, code), channel_axis=-1).y
    assert rows_of(y) == exact(c.inference(listed, x, channel_axis=-1).y)
    y["data"][0] += 1  # replies are the caller's to change


def test_numpy_is_not_imported_for_it():
    harness.shared().api().layer("arrays.bare", num_features=2)
    program = ("import sys, normd; from array import array; "
               f"y = normd.Client({url(harness.shared())!r}).inference('arrays.bare', "
               "{'shape': [1, 2], 'data': array('f', [1, 2])}).y; "
               "assert y['data'].typecode == 'f' and 'numpy' not in sys.modules; print(list(y['data']))")
    done = subprocess.run([sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, check=False,
                          env={**os.environ, "PYTHONPATH": os.path.join(CLIENTS, "python")}, encoding="utf-8")
    assert done.returncode == 0 and json.loads(done.stdout) == [wire.f32(v / math.sqrt(1 + 1e-5)) for v in (1, 2)], done


def test_buffers_of_other_kinds():
    c = client()
    c.create_layer("arrays.kinds", 2, dtype="f64")
    want = c.inference("arrays.kinds", [[1, 3], [5, 7]]).y
    of_ctypes = memoryview((ctypes.c_double * 4)(1, 3, 5, 7))
    assert rows_of(c.inference("arrays.kinds", {"shape": (2, 2), "data": of_ctypes}).y) == want
    try:
        c.inference("arrays.kinds", {"shape": [2, 2], "data": memoryview(b"\x01\x03\x05\x07")})
        raise AssertionError("bytes are taken for numbers")
    except TypeError:
        pass
    every_other = memoryview(array("d", [1, 2, 3, 4, 5, 6, 7, 8]))[::2]
    assert rows_of(c.inference("arrays.kinds", {"shape": (2, 2), "data": every_other}).y) == want
    # Integers are numbers in JSON, as ever, and so is what comes back.
    assert c.inference("arrays.kinds", {"shape": [2, 2], "data": array("i", [1, 3, 5, 7])}).y["data"] == sum(want, [])
    empty = c.train_forward("arrays.kinds", {"shape": [0, 2], "data": array("d")})
    assert (empty.y, empty.batch_mean, empty.updated) == ({"shape": [0, 2], "data": array("d")}, None, False)


def test_arrays_beside_lists():
    """Each as its own kind, by JSON."""
    c = client()
    c.create_layer("arrays.mixed", 3)
    residual = [[1, 2, 3]] * 10
    both = c.inference("arrays.mixed", flat(PEOPLE), residual=flat(residual)).y
    assert c.inference("arrays.mixed", flat(PEOPLE), residual=residual).y == both
    assert f32_of(c.inference("arrays.mixed", PEOPLE, residual=flat(residual)).y) == rows_of(both)
    np = numpy()
    y = c.inference("arrays.mixed", np.array(PEOPLE, "f4"), residual=flat(residual)).y
    assert y.dtype == np.float32 and y.tolist() == rows_of(both)


def test_errors_are_what_they_are_for_lists():
    c = client()
    c.create_layer("arrays.errors", 3)
    assert raises(normd.Invalid, c.inference, "arrays.errors", flat([[1, 2]])).code == "shape_mismatch"
    assert raises(normd.Invalid, c.train_forward, "arrays.errors", flat([[1, 2, math.nan]] * 2)).code == "non_finite"
    three = array("f", [1, 2, 3])
    for shape, code in (([2, 2], "shape_mismatch"), ([], "shape_mismatch"), ([1, -3], "out_of_range"),
                        ([1, 1.5], "out_of_range"), (3, "wrong_type"), (None, "wrong_type")):
        for data in (three, memoryview(three), list(three)):
            error = raises(normd.Invalid, c.inference, "arrays.errors", {"shape": shape, "data": data})
            assert error.code == code and error.pointer.startswith("/x"), (shape, error.code, error)
    assert raises(normd.NotFound, c.inference, "arrays.nobody", flat([[1, 2, 3]])).code == "layer_not_found"
    assert raises(normd.CacheGone, c.backward, "arrays.errors", flat([[1, 2, 3]]), cache="gone").status == 410
    tag = c.layer("arrays.errors").etag
    c.train_forward("arrays.errors", flat(PEOPLE), if_match=tag)
    assert raises(normd.PreconditionFailed, c.train_forward, "arrays.errors", flat(PEOPLE), if_match=tag).status == 412


def test_what_is_sent():
    """A file with the widest tensor first and every field as JSON text; nothing in base64."""
    answer = files.safetensors({"y": ("F32", [1, 2], [1.5, -0.0])}, {"version": "7"})
    bad = BadServer((reply_bytes(b"200 OK", files.SAFETENSORS.encode(), answer), False))
    sent = []
    c = normd.Client(bad.url, timeout=harness.seconds(10))
    exchange = c._connections.exchange  # pylint: disable=protected-access
    c._connections.exchange = lambda *a: (sent.append(a), exchange(*a))[1]  # pylint: disable=protected-access
    reply = c.inference("a", flat([[1, 2]]), residual=flat([[3, 4]], "d"), activation="relu", channel_axis=-1)
    assert reply.version == 7 and reply.y == {"shape": [1, 2], "data": array("f", [1.5, -0.0])}, reply
    _, _, body, headers = sent[0]
    assert headers["Content-Type"] == headers["Accept"] == files.SAFETENSORS, headers
    tensors, fields = files.read_safetensors(body)
    assert list(tensors.items()) == [("residual", ("F64", [1, 2], [3, 4])), ("x", ("F32", [1, 2], [1, 2]))], tensors
    assert fields == {"activation": '"relu"', "channel_axis": "-1"}, fields


def test_large_arrays_are_announced_and_come_back():
    c = client()
    c.create_layer("arrays.large", 4)
    values = array("f", range(1 << 20))
    y = c.inference("arrays.large", {"shape": [1 << 18, 4], "data": values}).y
    assert len(y["data"]) == 1 << 20 and y["data"][-1] == wire.f32(values[-1] / math.sqrt(1 + 1e-5))


def test_checkpoints():
    c = client()
    for name in ("arrays.check.a", "arrays.check.b"):
        c.create_layer(name, 3, momentum=0.25)
        c.train_forward(name, PEOPLE)
    saved = c.checkpoint("arrays.check.")
    tensors, metadata = files.read_safetensors(saved)
    before = c.state("arrays.check.a")
    assert tensors["arrays.check.a.running_mean"] == ("F64", [3], before.running_mean)
    assert json.loads(metadata["arrays.check.b"])["momentum"] == 0.25
    c.delete_layer("arrays.check.a")
    c.create_layer("arrays.check.c", 1)
    restored = c.restore(saved, prefix="arrays.check.", delete_missing=True)
    assert set(restored.versions) == {"arrays.check.a", "arrays.check.b"} and restored.ignored == []
    after = c.state("arrays.check.a")
    for field in ("running_mean", "running_var", "num_batches_tracked", "config"):
        assert getattr(after, field) == getattr(before, field), field
    foreign = files.safetensors({"arrays.torch.running_mean": ("F32", [2], [1, 2]), "fc.weight": ("F32", [1], [1]),
                                 "arrays.torch.running_var": ("F32", [2], [3, 4])})
    assert c.restore(foreign).ignored == ["fc.weight"] and c.state("arrays.torch").running_var == [3.0, 4.0]


def test_restore_takes_any_bytes():
    """A file or JSON text, in whatever holds bytes."""
    c = client()
    c.create_layer("arrays.bytes", 2, momentum=0.25)
    text = json.dumps(c.snapshot("arrays.bytes")).encode()
    file = c.checkpoint("arrays.bytes")
    for body in (text, b" \n" + text, file):
        for kind in (bytes, bytearray, memoryview, lambda raw: array("B", raw)):
            restored = c.restore(kind(body))
            assert set(restored.versions) == {"arrays.bytes"} and restored.ignored == [], restored
    wide = array("H")
    wide.frombytes(file + b" " * (len(file) % 2))
    assert set(c.restore(memoryview(wide)).versions) == {"arrays.bytes"}
    error = raises(normd.Invalid, c.restore, b"{}")
    assert (error.code, error.pointer) == ("missing_field", "/layers"), error
    assert raises(normd.BadRequest, c.restore, b"{").code == "malformed_json"
    for body in (b"", b"\x93NUMPY", file[:20]):
        assert raises(normd.BadRequest, c.restore, body).code == "malformed_file", body


if __name__ == "__main__":
    harness.main()
