# SPDX-License-Identifier: Apache-2.0
"""HTTP as the tests speak it: a keep-alive client for well-formed calls, raw sockets for the others, and the checks
that every problem reply must pass."""
import http.client
import json
import re
import socket
import struct
import time


class Reply:
    """Status, headers (names in lower case; the last of a kind) and body of one reply."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.body[:300]!r}"


def encode(body):
    """bytes and str as they are, everything else as JSON (NaN and infinities are refused)."""
    if body is None or isinstance(body, bytes):
        return body
    return body.encode() if isinstance(body, str) else json.dumps(body, allow_nan=False).encode()


class Client:
    """One keep-alive connection; reconnects when the server closed it between two calls."""

    def __init__(self, host, port, timeout):
        self.host, self.port, self.timeout = host, port, timeout
        self.connection = None

    def request(self, method, path, body=None, headers=None):
        data = encode(body)
        given = {"Content-Type": "application/json"} if data is not None else {}
        given.update(headers or {})
        given = {k: v for k, v in given.items() if v is not None}
        if self.connection is None:
            self.connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
        try:
            self.connection.request(method, path, body=data, headers=given)
            response = self.connection.getresponse()
            reply = Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        except Exception:
            self.close()
            raise
        if response.will_close:
            self.close()
        return reply

    def get(self, path, headers=None):
        return self.request("GET", path, headers=headers)

    def post(self, path, body, headers=None):
        return self.request("POST", path, body, headers)

    def put(self, path, body, headers=None):
        return self.request("PUT", path, body, headers)

    def patch(self, path, body, headers=None):
        return self.request("PATCH", path, body, headers)

    def delete(self, path, headers=None):
        return self.request("DELETE", path, headers=headers)

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    # ---- shorthands that insist on success and return the decoded reply

    def layer(self, name, **config):
        """Creates the layer and returns its path."""
        config.setdefault("num_features", 3)
        return self.layer_of(name, config)

    def layer_of(self, name, config):
        reply = self.put("/v1/layers/" + name, config)
        assert reply.status == 201, reply
        return "/v1/layers/" + name

    def ok(self, method, path, body=None, headers=None):
        reply = self.request(method, path, body, headers)
        assert reply.status == 200, f"{method} {path}: {reply}"
        return reply.json

    def train(self, path, x, **more):
        return self.ok("POST", path + "/train-forward", dict(x=x, **more))

    def infer(self, path, x, **more):
        return self.ok("POST", path + "/inference", dict(x=x, **more))

    def backward(self, path, dout, **more):
        return self.ok("POST", path + "/backward", dict(dout=dout, **more))

    def state(self, path):
        return self.ok("GET", path + "/state")

    def version(self, path):
        return self.ok("GET", path)["version"]


def sockets(port, established=True):
    """How many sockets the server has on the port: those that its peers have closed, and the established ones."""
    states = ("01", "08") if established else ("08",)
    with open("/proc/net/tcp", encoding="ascii") as f:
        fields = [line.split() for line in f.readlines()[1:]]
    return sum(f[1].endswith(f":{port:04X}") and f[3] in states for f in fields)


def problem(reply, status, code=None, pointer=None, oip=False):
    """Checks every member of a problem reply; pointer may be a tuple of the texts that would be right. On /v2 (oip) it
    has `error` too."""
    assert reply.status == status, f"want {status}: {reply}"
    kind = reply.headers.get("content-type", "")
    assert kind.split(";")[0].strip() == "application/problem+json", f"{kind}: {reply}"
    body = reply.json
    assert body["status"] == status and isinstance(body["title"], str) and body["title"], body
    assert isinstance(body["detail"], str) and body["detail"], body
    assert re.fullmatch(r"[a-z][a-z0-9_]*", body["code"]), body
    assert body["type"] == "/problems/" + body["code"], body
    assert body.pop("error", None) == (body["detail"] if oip else None), body
    assert set(body) <= {"type", "title", "status", "detail", "code", "pointer"}, body
    if code is not None:
        assert body["code"] == code, f"want {code}: {body}"
    if pointer is not None:
        wanted = pointer if isinstance(pointer, tuple) else (pointer,)
        assert body.get("pointer") in wanted, f"want pointer {wanted}: {body}"
    return body


def bits(value):
    """A decoded reply in a form where equal means equal bits: floats by repr (so -0.0 is not 0.0), keys sorted."""
    return json.dumps(value, sort_keys=True)


def f32(value):
    """The nearest f32, as a Python float."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


# ---- raw sockets

def connect(server, timeout=20.0):
    s = socket.create_connection((server.host, server.port), timeout=timeout)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


def all_read(server):
    """True where the server has taken everything that was sent to it."""
    with open("/proc/net/tcp", encoding="ascii") as f:
        fields = [line.split() for line in f.readlines()[1:]]
    return all(f[4].endswith(":00000000") for f in fields if f[1].endswith(f":{server.port:04X}") and f[3] != "0A")


def read_all(s, timeout):
    """Everything until the peer closes; returns (bytes, whether it closed within `timeout` seconds)."""
    got, end = bytearray(), time.monotonic() + timeout
    while True:
        left = end - time.monotonic()
        if left <= 0:
            return bytes(got), False
        s.settimeout(left)
        try:
            piece = s.recv(65536)
        except socket.timeout:
            return bytes(got), False
        except ConnectionError:
            return bytes(got), True
        if not piece:
            return bytes(got), True
        got += piece


def read_reply(s, timeout, head=False):
    """Reads one reply with Content-Length (or none) from the socket; fails where the connection ends before."""
    got, end = bytearray(), time.monotonic() + timeout
    while True:
        split = got.find(b"\r\n\r\n")
        if split >= 0:
            lines = got[:split].decode("latin-1").split("\r\n")
            status = int(lines[0].split(" ")[1])
            headers = {k.strip().lower(): v.strip() for k, v in (line.split(":", 1) for line in lines[1:])}
            size = 0 if head or status in (204, 304) or status < 200 else int(headers.get("content-length", 0))
            if len(got) >= split + 4 + size:
                return Reply(status, headers, bytes(got[split + 4:split + 4 + size]))
        left = end - time.monotonic()
        assert left > 0, f"no complete reply within {timeout:.0f} s, got {bytes(got[:200])!r}"
        s.settimeout(left)
        piece = s.recv(65536)
        assert piece, f"the connection was closed after {bytes(got[:200])!r}"
        got += piece


def exchange(server, data, timeout=3.0):
    """Sends bytes, half-closes nothing, and returns (all that came back, whether the server closed)."""
    with connect(server) as s:
        try:
            s.sendall(data)
        except ConnectionError:
            pass
        return read_all(s, timeout)


def statuses(data):
    """The status codes of all replies in a byte stream."""
    return [int(n) for n in re.findall(rb"HTTP/1\.[01] (\d{3})", data)]
