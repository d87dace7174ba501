# SPDX-License-Identifier: Apache-2.0
"""The clients against the real server: the Python package, the cookbook, and the commands that the README prints. Where
a test needs a server that behaves badly, it is a few lines of socket code."""
import json
import math
import os
import re
import resource
import shlex
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

import harness

CLIENTS = os.path.join(harness.ROOT, "clients")
sys.path.insert(0, os.path.join(CLIENTS, "python"))
import normd  # noqa: E402  pylint: disable=wrong-import-position

PEOPLE = [[150, 54, 26], [60, 18, 4], [160, 60, 48], [177, 53, 16], [180, 60, 24], [192, 90, 22], [172, 76, 38],
          [168, 83, 47], [172, 64, 17], [180, 90, 25]]


def url(server):
    return f"http://{server.host}:{server.port}"


def client():
    return normd.Client(url(harness.shared()), timeout=harness.seconds(30))


def near(got, want, tolerance=1e-6):
    assert len(got) == len(want), (got, want)
    for g, w in zip(got, want):
        assert abs(g - w) <= tolerance * max(1.0, abs(w)), (got, want)


def raises(kind, function, *arguments, **more):
    try:
        result = function(*arguments, **more)
    except normd.NormdError as error:
        assert type(error) is kind, f"{type(error).__name__}: {error}"
        return error
    raise AssertionError(f"no {kind.__name__}, but {result!r}")


def numpy():
    try:
        import numpy as module  # pylint: disable=import-outside-toplevel
    except ImportError:
        harness.skip("NumPy is not installed")
    return module


# ---- the Python package: computing

def test_python_train_forward_state_and_inference():
    c = client()
    info = c.create_layer("py.people", 3, convention="cs231n")
    assert (info.name, info.version, info.config["eps"], info.config["channel_axis"]) == ("py.people", 1, 1e-5, 1)
    reply = c.train_forward("py.people", PEOPLE)
    near(reply.batch_mean, [161.1, 64.8, 26.7], 1e-12)
    near(reply.batch_var, [1255.29, 421.96, 175.01], 1e-12)
    near(reply.y[0], [-0.3132932, -0.5257607, -0.0529135])
    assert len(reply.y) == 10 and all(type(v) is float for row in reply.y for v in row)
    assert (reply.count, reply.num_batches_tracked, reply.updated, reply.version, reply.cache) == (10, 1, True, 2, None)
    state = c.state("py.people")
    near(state.running_mean, [16.11, 6.48, 2.67], 1e-12)
    assert (state.gamma, state.beta, state.num_batches_tracked, state.version) == ([1.0] * 3, [0.0] * 3, 1, 2)
    person = c.inference("py.people", [[175, 70, 30]])
    near(person.y[0], [(x - m) / math.sqrt(v + 1e-5)
                       for x, m, v in zip([175, 70, 30], state.running_mean, state.running_var)])
    assert person.version == 2 and c.layer("py.people").counters["inference"] == 1


def test_python_backward_from_cache_and_from_x_agree():
    c = client()
    c.create_layer("py.backward", 3, dtype="f64")
    dout = [[math.sin(3 * i + j) for j in range(3)] for i in range(10)]
    forward = c.train_forward("py.backward", PEOPLE, cache=True)
    cached = c.backward("py.backward", dout, cache=forward.cache)
    direct = c.backward("py.backward", dout, x=PEOPLE)
    assert (cached.dx, cached.dgamma, cached.dbeta) == (direct.dx, direct.dgamma, direct.dbeta)
    near(cached.dbeta, [sum(column) for column in zip(*dout)], 1e-12)
    near([sum(column) for column in zip(*cached.dx)], [0, 0, 0], 1e-9)
    assert cached.version == 2 and cached.etag is None
    step = c.backward("py.backward", dout, x=PEOPLE, step={"lr": 0.5, "weight_decay": 0.1})
    assert step.version == 3 and step.etag == c.layer("py.backward").etag
    near(c.state("py.backward").gamma, [1 - 0.5 * (g + 0.1) for g in step.dgamma], 1e-12)
    frozen = c.backward("py.backward", dout, x=PEOPLE, mode="inference")
    near(frozen.dbeta, cached.dbeta, 1e-12)
    assert frozen.dx != cached.dx


def test_python_activation_and_residual():
    c = client()
    c.create_layer("py.block", 2, dtype="f64")
    x, residual = [[1, 2], [3, 5], [8, 4]], [[0.5, -1], [-2, 0.25], [-0.5, 9]]
    plain = c.inference("py.block", x)
    sums = [[a + b for a, b in zip(*rows)] for rows in zip(plain.y, residual)]
    assert c.inference("py.block", x, residual=residual).y == sums
    assert c.inference("py.block", x, activation="relu", residual=residual).y == [[max(v, 0) for v in r] for r in sums]
    forward = c.train_forward("py.block", x, activation="relu", residual=residual, cache=True)
    dout = [[1, 2], [3, 4], [5, 6]]
    cached = c.backward("py.block", dout, cache=forward.cache)
    direct = c.backward("py.block", dout, x=x, activation="relu", residual=residual)
    assert (cached.dx, cached.dresidual, cached.dgamma) == (direct.dx, direct.dresidual, direct.dgamma)
    assert cached.dresidual == [[d if v > 0 else 0 for d, v in zip(*rows)] for rows in zip(dout, forward.y)]
    assert c.backward("py.block", dout, x=x).dresidual is None
    error = raises(normd.Invalid, c.backward, "py.block", dout, cache=forward.cache, residual=residual)
    assert (error.code, error.pointer) == ("conflicting_fields", "/residual"), error
    assert raises(normd.Invalid, c.inference, "py.block", x, activation="gelu").pointer == "/activation"
    np = numpy()
    array = c.backward("py.block", np.array(dout, dtype="f4"), x=x, activation="relu", residual=np.array(residual))
    assert array.dresidual.dtype == np.float32 and array.dresidual.tolist() == cached.dresidual


def test_python_channel_axis_of_a_call():
    c = client()
    c.create_layer("py.axis", 2, dtype="f64")
    first = c.train_forward("py.axis", [[[1, 2], [3, 5]], [[0, 1], [7, 9]]], channel_axis=-1)
    second = c.inference("py.axis", [[[1, 3, 0, 7], [2, 5, 1, 9]]], channel_axis=1)
    assert first.count == 4 and len(second.y[0]) == 2
    third = c.backward("py.axis", [[[1, 2], [3, 5]]], x=[[[1, 2], [3, 4]]], channel_axis=2)
    near(third.dbeta, [4, 7], 1e-12)


def test_python_flat_tensors_and_empty_batches():
    c = client()
    c.create_layer("py.flat", 2, dtype="f64")
    reply = c.train_forward("py.flat", {"shape": [2, 2], "data": [1, 2, 3, 4]})
    assert reply.y["shape"] == [2, 2]
    near(reply.y["data"], [-1, -1, 1, 1], 1e-5)
    empty = c.train_forward("py.flat", [])
    assert (empty.y, empty.batch_mean, empty.batch_var, empty.updated, empty.etag) == ([], None, None, False, None)


def test_python_nonfinite_values_both_ways():
    c = client()
    c.create_layer("py.nonfinite", 2, nonfinite="propagate", dtype="f64")
    c.patch_state("py.nonfinite", beta=[0, -0.0])
    y = c.inference("py.nonfinite", [[math.inf, math.nan], [-math.inf, -0.0]]).y
    assert y[0][0] == math.inf and math.isnan(y[0][1]) and y[1][0] == -math.inf
    assert y[1][1] == 0 and math.copysign(1, y[1][1]) == -1, y
    state = c.patch_state("py.nonfinite", running_mean=[math.nan, math.inf])
    assert math.isnan(state.running_mean[0]) and state.running_mean[1] == math.inf
    saved = json.dumps(c.snapshot("py.nonfinite"), allow_nan=False)
    c.restore(json.loads(saved))
    assert math.isnan(c.state("py.nonfinite").running_mean[0])


@harness.rows([(name, name, tolerance) for name, tolerance in (("f4", 1e-6), ("f8", 1e-6), ("f2", 2e-3))])
def test_python_arrays(dtype, tolerance):
    np = numpy()
    c = client()
    name = "py.array." + dtype
    c.create_layer(name, 3, dtype="f64" if dtype == "f8" else "f32")
    x = np.array(PEOPLE, dtype=dtype)
    forward = c.train_forward(name, x, cache=True)
    assert forward.y.dtype == x.dtype and forward.y.shape == x.shape and forward.batch_mean.dtype == np.float64
    wide = x.astype("f8")
    assert np.allclose(forward.y, (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5), atol=tolerance)
    assert np.allclose(forward.batch_var, wide.var(0), rtol=1e-12)
    dout = np.cos(np.arange(30.0)).reshape(10, 3).astype(dtype)
    back = c.backward(name, dout[::-1], cache=forward.cache)
    assert back.dx.dtype == x.dtype and back.dgamma.dtype == np.float64
    assert np.allclose(back.dbeta, dout.astype("f8").sum(0), rtol=1e-12)
    back.dx[0] += 1  # replies are the caller's to change


def test_python_arrays_of_other_kinds():
    np = numpy()
    c = client()
    c.create_layer("py.kinds", 3, dtype="f64")
    lists = c.inference("py.kinds", PEOPLE).y
    for x in (np.array(PEOPLE), np.array(PEOPLE, dtype=">f4"), np.asfortranarray(PEOPLE, dtype="f8")):
        y = c.inference("py.kinds", x).y
        assert np.allclose(y, lists, rtol=1e-6) and y.dtype.byteorder in "=<|", y.dtype
    assert c.inference("py.kinds", [np.array(row) for row in PEOPLE]).y == lists
    empty = c.train_forward("py.kinds", np.zeros((0, 3)))
    assert empty.y.shape == (0, 3) and empty.count == 0 and not empty.updated
    assert c.patch_state("py.kinds", gamma=np.array([1.5, 2.5, 3.5])).gamma == [1.5, 2.5, 3.5]
    try:
        c.inference("py.kinds", np.array(PEOPLE, dtype=complex))
    except TypeError:
        return
    raise AssertionError("complex numbers were sent")


def test_python_header_that_cannot_be_sent():
    """It is said as it is, nothing is sent, and the next call is as if nothing had been."""
    c = client()
    c.create_layer("py.header", 3)
    for tag in ('"\u2713"', '"a"\r\nX-Evil: 1', '"a"\n', "\0"):
        try:
            c.patch_layer("py.header", eps=1.0, if_match=tag)
        except ValueError as error:
            assert "If-Match" in str(error) and "header value" in str(error), error
        else:
            raise AssertionError("it was sent")
        assert c.layer("py.header").version == 1
    c.train_forward("py.header", PEOPLE)


def test_python_call_that_ends_half_built():
    """What was built of a request is not sent before the next one."""
    c = client()
    c.create_layer("py.half", 3)

    class Odd(str):
        """Passes for a header value, until it is written."""

        def encode(self, *_):
            raise KeyboardInterrupt

    try:
        c.patch_layer("py.half", eps=1.0, if_match=Odd('"a"'))
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("it was sent")
    assert c.layer("py.half").version == 1
    assert c.train_forward("py.half", PEOPLE).version == 2


# ---- the Python package: layers and state

def test_python_layers_are_listed_page_by_page():
    c = client()
    names = [f"py.list.{i:02d}" for i in range(25)]
    for name in names:
        c.create_layer(name, 1)
    assert [layer.name for layer in c.layers("py.list.", page_size=10)] == names
    assert {layer.name for layer in c.layers()} >= set(names)
    assert list(c.layers("py.none.")) == []


def test_python_configuration_comes_back_as_it_is():
    c = client()
    c.create_layer("py.config", 4, momentum=None, eps=1e-3, affine=False, track_running_stats=True, channel_axis=-1,
                   dtype="f64", nonfinite="skip_update", single_value="beta")
    config = c.layer("py.config").config
    assert config["momentum"] is None and config["new_weight"] is None and config["channel_axis"] == -1
    assert c.create_layer("py.config.copy", **config).config == config
    assert c.create_layer("py.config.copy", **config).version == 1
    assert c.patch_layer("py.config", momentum=0.25, nonfinite="propagate").config["momentum"] == 0.25
    c.delete_layer("py.config")
    assert raises(normd.NotFound, c.layer, "py.config").code == "layer_not_found"


def test_python_state_keeps_every_bit():
    c = client()
    c.create_layer("py.state", 3, dtype="f64")
    values = [-0.0, 5e-324, 1.7976931348623157e308]
    c.patch_state("py.state", beta=values, running_mean=[0.1, 1 / 3, -2e-308], num_batches_tracked=2**53 + 1)
    before = c.state("py.state")
    assert [v.hex() for v in before.beta] == [v.hex() for v in values] and before.num_batches_tracked == 2**53 + 1
    c.train_forward("py.state", [[1, 2, 3], [2, 3, 4]])
    after = c.put_state("py.state", before)
    assert after.version == before.version + 2
    for field in ("gamma", "beta", "running_mean", "running_var", "num_batches_tracked", "config"):
        assert repr(getattr(after, field)) == repr(getattr(before, field)), field
    c.create_layer("py.state.f32", 3)
    assert raises(normd.Conflict, c.put_state, "py.state.f32", before).code == "config_conflict"


def test_python_snapshot_and_restore():
    c = client()
    for name in ("py.snap.a", "py.snap.b"):
        c.create_layer(name, 3)
        c.train_forward(name, PEOPLE)
    saved = json.loads(json.dumps(c.snapshot("py.snap.")))
    before = c.state("py.snap.a")
    c.delete_layer("py.snap.a")
    c.create_layer("py.snap.c", 1)
    restored = c.restore(saved, prefix="py.snap.", delete_missing=True)
    assert set(restored.versions) == {"py.snap.a", "py.snap.b"} and restored.ignored == []
    assert [layer.name for layer in c.layers("py.snap.")] == ["py.snap.a", "py.snap.b"]
    assert c.state("py.snap.a").running_var == before.running_var
    saved["layers"]["py.snap.b"]["running_var"] = [1, -1, 1]
    error = raises(normd.Invalid, c.restore, saved)
    assert error.pointer == "/layers/py.snap.b/running_var/1", error
    assert c.layer("py.snap.a").version == restored.versions["py.snap.a"], "not all or nothing"


def test_python_if_match():
    c = client()
    tag = c.create_layer("py.tag", 1).etag
    new = c.train_forward("py.tag", [[1], [2]], if_match=tag).etag
    assert new == c.layer("py.tag").etag == c.state("py.tag").etag != tag
    assert raises(normd.PreconditionFailed, c.patch_state, "py.tag", gamma=[2], if_match=tag).status == 412
    assert raises(normd.PreconditionFailed, c.delete_layer, "py.tag", if_match=tag).status == 412
    c.delete_layer("py.tag", if_match=new)


def test_python_errors_carry_code_detail_and_pointer():
    c = client()
    c.create_layer("py.errors", 3)
    error = raises(normd.Invalid, c.train_forward, "py.errors", [[1, 2, 3], [1, 2]])
    assert (error.status, error.code, error.pointer) == (422, "ragged", "/x/1") and error.detail in str(error), error
    assert raises(normd.Invalid, c.train_forward, "py.errors", [[1, 2, math.nan]]).code == "non_finite"
    assert raises(normd.Conflict, c.create_layer, "py.errors", 4).status == 409
    assert raises(normd.CacheGone, c.backward, "py.errors", [[1, 2, 3]], cache="gone").status == 410
    assert raises(normd.BadRequest, c.layer, "../py.errors").code == "bad_name"
    assert raises(normd.NotFound, c.inference, "py.nobody", [[1]]).status == 404


def test_python_body_too_large():
    c = normd.Client(url(harness.shared("--max-body", "64K")), timeout=harness.seconds(30))
    c.create_layer("py.large", 3)
    for rows in (10_000, 300_000):
        assert raises(normd.TooLarge, c.inference, "py.large", [[1.5, 2.5, 3.5]] * rows).code == "body_too_large"
    assert len(c.inference("py.large", [[1.5, 2.5, 3.5]]).y) == 1


def test_python_probes_version_and_openapi():
    c = client()
    assert c.live() and c.ready()
    version = c.version()
    assert version.store == "sqlite" and version.threads >= 1 and version.cpu, version
    with open(os.path.join(harness.ROOT, "proto", "openapi.yaml"), encoding="utf-8") as f:
        assert c.openapi() == f.read()


# ---- the Python package: threads and connections

def test_python_one_client_for_many_threads():
    c = client()
    c.create_layer("py.threads", 3)
    versions, failures, lock = [], [], threading.Lock()

    def work():
        try:
            mine = [c.train_forward("py.threads", PEOPLE).version for _ in range(50)]
        except Exception as error:  # pylint: disable=broad-except
            failures.append(error)
            return
        with lock:
            versions.extend(mine)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    assert sorted(versions) == list(range(2, 402))


class BadServer:
    """Answers the n-th request by script[n] = (bytes to send or None, whether the connection stays open)."""

    def __init__(self, *script):
        self.script, self.requests = list(script), []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        self.closed = threading.Semaphore(0)  # released after each connection
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while self.script:
            connection, _ = self.listener.accept()
            with connection, connection.makefile("rb") as stream:
                while self.script and self._answer(connection, stream):
                    pass
            self.closed.release()
        self.listener.close()

    def _answer(self, connection, stream):
        line = stream.readline()
        if not line:
            return False
        size = 0
        while (header := stream.readline()) not in (b"\r\n", b""):
            if header.lower().startswith(b"content-length:"):
                size = int(header.split(b":")[1])
        stream.read(size)
        self.requests.append(line.split()[0].decode())
        answer, keep = self.script.pop(0)
        if answer is not None:
            connection.sendall(answer)
        return keep


def reply_bytes(status, kind, body, more=b""):
    return b"HTTP/1.1 %b\r\nContent-Type: %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, kind, more, len(body), body)


VERSION_REPLY = reply_bytes(b"200 OK", b"application/json",
                            b'{"version":"1","cpu":"scalar","threads":1,"store":"sqlite"}')
CALL_REPLY = reply_bytes(b"200 OK", b"application/json", b'{"y":[],"version":1}')
EMPTY_REPLY = reply_bytes(b"200 OK", b"application/json", b"{}")


def test_python_get_is_repeated_on_a_stale_connection():
    bad = BadServer((VERSION_REPLY, True), (None, False), (VERSION_REPLY, False))
    c = normd.Client(bad.url, timeout=harness.seconds(10))
    assert c.version().version == "1" and c.version().version == "1"
    assert bad.requests == ["GET", "GET", "GET"]


def test_python_post_is_never_repeated():
    bad = BadServer((VERSION_REPLY, True), (None, False), (CALL_REPLY, False))
    c = normd.Client(bad.url, timeout=harness.seconds(10))
    c.version()
    error = raises(normd.TransportError, c.inference, "people", [])
    assert error.sent and error.status == 0
    assert bad.requests == ["GET", "POST"]
    assert c.inference("people", []).version == 1  # the next call opens a new connection


def test_python_connection_closed_before_a_call_is_opened_anew():
    bad = BadServer((VERSION_REPLY, False), (CALL_REPLY, False))
    c = normd.Client(bad.url, timeout=harness.seconds(10))
    c.version()
    assert bad.closed.acquire(timeout=harness.seconds(10))  # pylint: disable=consider-using-with
    assert c.inference("people", []).version == 1
    assert bad.requests == ["GET", "POST"]


def test_python_above_1024_descriptors():
    client().create_layer("py.high", 3)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] != resource.RLIM_INFINITY and limits[1] < 1200:
        harness.skip(f"no more than {limits[1]} descriptors may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(1200, limits[0]), limits[1]))
    held = []
    try:
        while not held or held[-1] < 1024:
            held.append(os.dup(0))
        x = [[1.5, 2.5, 3.5]] * 100_000  # large enough to be announced
        c = client()
        for _ in range(2):
            assert len(c.inference("py.high", x).y) == len(x)
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_python_waits_for_half_an_answer_without_spinning():
    """The first bytes of the answer to Expect arrive, and the rest half a second later, or never."""
    x = [[1.5, 2.5, 3.5]] * 100_000
    for rest in (b" 413 Too Large\r\nContent-Length: 0\r\n\r\n", b" 100 Continue\r\n\r\n" + CALL_REPLY, None):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            c = normd.Client("http://127.0.0.1:%d" % listener.getsockname()[1], timeout=1.5)
            failures = []

            def call():
                try:
                    c.inference("people", x)
                except normd.NormdError as error:
                    failures.append(error)

            caller = threading.Thread(target=call)
            before = None
            caller.start()
            with listener.accept()[0] as connection, connection.makefile("rb") as stream:
                while stream.readline() not in (b"\r\n", b""):
                    pass
                connection.sendall(b"HTTP/1.1")
                before = time.process_time()
                time.sleep(0.5)  # it is the waiting that is tested
                used = time.process_time() - before
                if rest is not None:
                    connection.sendall(rest)
                    while rest.startswith(b" 100") and stream.read1(1 << 20).find(b"]]}") < 0:
                        pass
                caller.join(harness.seconds(20))
            assert not caller.is_alive() and used < 0.2, f"{used:.2f} s of processor time in 0.5 s"
            wanted = [] if rest and rest.startswith(b" 100") else [413] if rest else [0]
            assert [error.status for error in failures] == wanted, failures


def test_python_no_server_and_no_answer():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        c = normd.Client(f"http://127.0.0.1:{port}", timeout=0.2)
        assert raises(normd.TransportError, c.version).sent
        assert not c.live()
    error = raises(normd.TransportError, c.delete_layer, "people")
    assert not error.sent, error
    assert not c.ready()


def test_python_unavailable_says_when_to_come_back():
    body = b'{"type":"/problems/queue_full","title":"t","status":503,"detail":"d","code":"queue_full"}'
    bad = BadServer((reply_bytes(b"503 Busy", b"application/problem+json", body, b"Retry-After: 3\r\n"), True),
                    (reply_bytes(b"431 Too Large", b"text/html", b"<hm>"), False))
    c = normd.Client(bad.url, timeout=harness.seconds(10))
    error = raises(normd.Unavailable, c.inference, "people", [])
    assert (error.code, error.retry_after) == ("queue_full", 3.0)
    error = raises(normd.NormdError, c.inference, "people", [])
    assert (error.status, error.code, error.detail) == (431, "", "<hm>")


def test_python_store_failed_is_not_for_repeating():
    body = b'{"type":"/problems/store_failed","title":"t","status":503,"detail":"d","code":"store_failed"}'
    bad = BadServer((reply_bytes(b"503 Busy", b"application/problem+json", body), False))
    error = raises(normd.StoreFailed, normd.Client(bad.url, timeout=harness.seconds(10)).inference, "people", [])
    assert (error.status, error.code) == (503, "store_failed") and not isinstance(error, normd.Unavailable), error


def test_python_refuses_what_is_no_url():
    for text in ("127.0.0.1:8080", "ftp://host", "http://", "http://host?x=1"):
        try:
            normd.Client(text)
        except ValueError:
            continue
        raise AssertionError(text)


# ---- the cookbook and the README

def run_shell(command, address, folder):
    return subprocess.run(["sh", "-c", command], cwd=folder, env={**harness.environment(), "NORMD": address},
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                          timeout=harness.seconds(60), encoding="utf-8")


def test_cookbook():
    done = run_shell(f"sh {CLIENTS}/curl/cookbook.sh", url(harness.shared()), harness.folder())
    assert done.returncode == 0, done.stdout[-3000:]
    assert not [layer.name for layer in client().layers("cookbook.")], "left layers behind"


def test_cookbook_fails_loudly_on_a_wrong_reply():
    bad = BadServer(*[(EMPTY_REPLY, False)] * 100)
    done = run_shell(f"sh {CLIENTS}/curl/cookbook.sh", bad.url, harness.folder())
    assert done.returncode != 0 and "expected" in done.stdout, done.stdout[-2000:]


def whole_command(lines):
    """How many of the lines the command takes: until its quotes are closed."""
    for count in range(1, len(lines) + 1):
        try:
            shlex.split("\n".join(lines[:count]))
            return count
        except ValueError:
            continue
    raise AssertionError(f"a command without an end: {lines[0]}")


def readme_commands():
    """(command, the reply that the README shows) of each curl command in it, in order."""
    with open(os.path.join(harness.ROOT, "README.md"), encoding="utf-8") as f:
        text = f.read()
    found = []
    for block in re.findall(r"```console\n(.*?)```", text, re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            lines = part.split("\n")
            count = whole_command(lines)
            found.append(("\n".join(lines[:count]), "".join(line.strip() for line in lines[count:])))
    return found


def test_readme_commands_give_what_it_shows():
    commands = readme_commands()
    assert len(commands) >= 5, commands
    with harness.Server() as server:
        address = urllib.parse.urlsplit(url(server)).netloc
        for command, reply in commands:
            assert "127.0.0.1:8080" in command, command
            done = run_shell(command.replace("127.0.0.1:8080", address), url(server), harness.folder())
            pattern = ".*".join(re.escape(part) for part in reply.split("…"))
            assert re.fullmatch(pattern, done.stdout.strip(), re.S), f"{command}\ngave {done.stdout}, not {reply}"


if __name__ == "__main__":
    harness.main()
