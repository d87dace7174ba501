# SPDX-License-Identifier: Apache-2.0
"""Life of the process: start, settings, what it says, and how it ends."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time

import harness
import wire

X = [[1, 2, 3], [4, 5, 7]]
MIB = 1 << 20


def large_call(path, features=64, size=24 * MIB):
    row = b"[" + b",".join(b"%d.125" % (i % 9) for i in range(features)) + b"]"
    rows = size // (len(row) + 1)
    body = b'{"x":[' + b",".join([row] * rows) + b"]}"
    return b"POST %b/train-forward HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)), body


def ended(s, timeout):
    """Whether the peer closes the connection without a word within the timeout."""
    raw, closed = wire.read_all(s, harness.seconds(timeout))
    return closed and not raw


def refuses_connections(server):
    try:
        wire.connect(server, 1).close()
        return False
    except OSError:
        return True


# ---- the end

@harness.rows([("SIGTERM", signal.SIGTERM), ("SIGINT", signal.SIGINT)])
def test_running_call_is_finished(number):
    server = harness.Server("--drain-timeout", "60s")
    client = server.api()
    path = client.layer("drained", num_features=64)
    head, body = large_call(path)
    with wire.connect(server, harness.seconds(60)) as s:
        # It runs from when the server asks for its body.
        s.sendall(head.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        asked = b""
        while not asked.endswith(b"\r\n\r\n"):
            asked += s.recv(1)
        assert asked.startswith(b"HTTP/1.1 100 "), asked
        s.sendall(body)
        server.signal(number)
        reply = wire.read_reply(s, harness.seconds(60))
    assert reply.status == 200 and reply.json["version"] == 2, reply
    assert server.wait() == 0, server.stderr()
    with harness.Server(data=server.data) as again:
        assert again.api().state(path)["num_batches_tracked"] == 1, "the acknowledged change is there"


def test_drain():
    """While a call runs: idle connections end at once, new ones are refused; the call is finished, then all ends."""
    server = harness.Server("--drain-timeout", "20s")
    client = server.api()
    path = client.layer("drained")
    idle = [wire.connect(server) for _ in range(10)]
    for s in idle[:5]:  # the others never sent anything
        s.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.read_reply(s, harness.seconds(10)).status == 200
    body = json.dumps({"x": X}).encode()
    with wire.connect(server, harness.seconds(60)) as s:
        head = b"POST %b/train-forward HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        s.sendall(head % (path.encode(), len(body)))
        s.settimeout(harness.seconds(10))
        assert s.recv(1000).startswith(b"HTTP/1.1 100"), "the call has begun"
        s.sendall(body[:-1])
        start = time.monotonic()
        server.signal(signal.SIGTERM)
        for other in idle:
            assert ended(other, 5)
            other.close()
        harness.wait_until(lambda: refuses_connections(server), 5, "new connections are refused")
        assert time.monotonic() - start < harness.seconds(2), "at once"
        assert server.running(), "a call still runs"
        s.sendall(body[-1:])
        reply = wire.read_reply(s, harness.seconds(20))
        assert reply.status == 200 and reply.json["version"] == 2, reply
        assert ended(s, 5), "then this connection ends too"
    assert server.wait() == 0, server.stderr()
    assert time.monotonic() - start < harness.seconds(5), "without waiting for the time-out"
    with harness.Server(data=server.data) as again:
        assert again.api().state(path)["num_batches_tracked"] == 1


def test_idle_server_ends_at_once():
    server = harness.Server("--drain-timeout", "30s")
    idle = [wire.connect(server) for _ in range(20)]
    client = server.api()
    client.layer("a")
    start = time.monotonic()
    server.stop()
    assert time.monotonic() - start < harness.seconds(1.5), time.monotonic() - start
    for s in idle:
        s.close()


def test_drain_timeout():
    """A call that does not end is given up after the drain time-out."""
    server = harness.Server("--drain-timeout", "1s")
    path = server.api().layer("stuck")
    with wire.connect(server) as s:
        head = b"POST %b/train-forward HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n"
        s.sendall(head % path.encode())
        s.settimeout(harness.seconds(10))
        assert s.recv(1000).startswith(b"HTTP/1.1 100"), "the call has begun"
        start = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0, server.stderr()
        took = time.monotonic() - start
        assert 0.7 < took < harness.seconds(4), f"{took:.1f} s"
    with harness.Server(data=server.data) as again:
        assert again.api().version(path) == 1


def test_second_signal_does_not_hurt():
    server = harness.Server()
    server.api().layer("a")
    server.signal(signal.SIGTERM)
    for _ in range(3):
        if server.running():
            server.signal(signal.SIGTERM)
    assert server.wait() == 0, server.stderr()


def test_ready_while_it_serves():
    with harness.Server() as server:
        assert server.api().get("/readyz").status == 200


# ---- what it says

def test_stdout_is_the_ready_line_and_a_curl_line():
    with harness.Server() as server:
        harness.wait_until(lambda: len(server.stdout_lines) >= 2, 5, "two lines on stdout")
        client = server.api()
        for _ in range(10):
            client.get("/livez")
    assert len(server.stdout_lines) == 2, server.stdout_lines
    assert server.stdout_lines[0] == f"normd ready http://127.0.0.1:{server.port}"
    assert server.stdout_lines[1].lstrip().startswith("curl ") and f"127.0.0.1:{server.port}" in server.stdout_lines[1]


def test_the_curl_line_works():
    if shutil.which("curl") is None:
        harness.skip("curl is not installed")
    with harness.Server() as server:
        harness.wait_until(lambda: len(server.stdout_lines) >= 2, 5, "two lines on stdout")
        line = server.stdout_lines[1].strip()
        done = subprocess.run(["sh", "-c", line.replace("curl ", "curl -sS -f ", 1)], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE,
                              timeout=harness.seconds(20), check=False)
        assert done.returncode == 0 and done.stdout, (line, done.stdout, done.stderr)


def test_no_log_line_per_request():
    with harness.Server() as server:
        client = server.api()
        path = client.layer("quiet")
        before = len(server.stderr().splitlines())
        for _ in range(200):
            client.train(path, X)
            client.post(path + "/inference", "nonsense")
        after = server.stderr().splitlines()
        assert len(after) - before < 5, after[before:before + 3]


@harness.rows([("error", "error"), ("warn", "warn"), ("info", "info"), ("debug", "debug")])
def test_json_log(level):
    server = harness.Server("--log-format", "json", "--log-level", level)
    client = server.api()
    path = client.layer("logged")
    client.train(path, X)
    client.get("/v1/layers/%1b%5b31m%0d%0aforged", {"User-Agent": "a\x1b[31mb"})
    server.stop()
    lines = server.stderr().splitlines()
    for line in lines:
        assert isinstance(json.loads(line), dict), line
    if level in ("info", "debug"):
        assert lines, "start and end are logged"
    if level == "error":
        assert not lines, lines


def test_text_log_has_no_control_characters():
    server = harness.Server("--log-level", "debug")
    client = server.api()
    client.get("/v1/layers/%1b%5b31m%0d%0aforged", {"User-Agent": "a\x1b[31mb"})
    client.get("/\x1b[31m".replace("\x1b", "%1b"))
    server.stop()
    text = server.stderr()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text), repr(text[:500])
    assert "\nforged" not in text, text


# ---- settings

GOOD = [
    ("listen", "127.0.0.1:0"), ("threads", "3"), ("durability", "none"), ("durability", "interval"), ("max-body", "1M"),
    ("max-body", "1048576"), ("memory-budget", "512M"), ("memory-budget", "2G"), ("cache-budget", "64K"),
    ("cache-budget", "0"),
    ("cache-ttl", "1s"), ("cache-ttl", "10m"), ("request-timeout", "500ms"), ("request-timeout", "1h"),
    ("drain-timeout", "2s"),
    ("log-level", "debug"), ("log-format", "json"),
]
BAD = [
    ("listen", "nonsense"), ("listen", "127.0.0.1"), ("listen", "127.0.0.1:99999"), ("listen", "127.0.0.1:-1"),
    ("listen", "127.0.0.1:x"),
    ("threads", "-1"), ("threads", "two"), ("threads", ""), ("threads", "1.5"), ("threads", "99999999999"),
    ("durability", "always"), ("durability", ""), ("max-body", "0"), ("max-body", "-1"), ("max-body", "1X"),
    ("max-body", "M"),
    ("max-body", "99999999999G"), ("memory-budget", "lots"), ("memory-budget", "0"), ("cache-budget", "-5"),
    ("cache-budget", "1.5M"),
    ("cache-ttl", "10y"), ("cache-ttl", "-1s"), ("cache-ttl", "s"), ("request-timeout", "0"),
    ("request-timeout", "soon"),
    ("request-timeout", "99999999999h"), ("drain-timeout", "x"), ("drain-timeout", "-1s"), ("log-level", "loud"),
    ("log-format", "xml"),
]


def variable(name):
    return "NORMD_" + name.upper().replace("-", "_")


def listen_unless(name):
    return None if name == "listen" else "127.0.0.1:0"


@harness.rows([(f"{name} {value}", name, value) for name, value in GOOD])
def test_setting(name, value):
    with harness.Server("--" + name, value, listen=listen_unless(name)) as server:
        assert server.api().get("/livez").status == 200
    with harness.Server(f"--{name}={value}", listen=listen_unless(name)) as server:
        assert server.api().get("/livez").status == 200
    with harness.Server(env={variable(name): value}, listen=listen_unless(name)) as server:
        assert server.api().get("/livez").status == 200


@harness.rows([(f"{name} {value!r}", name, value) for name, value in BAD])
def test_wrong_setting(name, value):
    data = harness.folder()
    ways = [(["--" + name, value], None, "--" + name), ([], {variable(name): value}, variable(name))]
    for arguments, env, named in ways if value else ways[:1]:
        base = ["--data", data] + ([] if name == "listen" else ["--listen", "127.0.0.1:0"])
        status, out, err = harness.run_binary(*base, *arguments, env=env)
        assert status == 2, (status, err)
        assert out == "" and err.count("\n") == 1, (out, err)
        assert named in err or "--" + name in err, err
    assert not os.listdir(data), "nothing was made"


@harness.rows([("unknown flag", ["--colour", "red"]), ("flag without a value", ["--threads"]), ("a word", ["start"]),
               ("one dash", ["-threads", "2"])])
def test_wrong_command_line(arguments):
    status, out, err = harness.run_binary(*arguments)
    assert status == 2 and out == "" and err.count("\n") == 1, (status, out, err)
    assert arguments[0] in err, err


@harness.rows([("version", ["--version", "x"]), ("help", ["--help", "--foo"]), ("before", ["--foo", "--help"])])
def test_wrong_argument_beside_help(arguments):
    status, out, err = harness.run_binary(*arguments)
    assert status == 2 and out == "" and err.count("\n") == 1, (status, out, err)
    assert harness.run_binary("--help", "--version", env={"NORMD_THREADS": "x"})[0] == 0


def test_variables():
    """An unknown one is named in a warning, without its value; an empty one is not set; one that a flag overrides is
    not looked at."""
    env = {"NORMD_THREAD": "secret", "NORMD_CACHE": "1", "NORMD_TEST_SCALE": "1", "NORMD_CPU": "", "NORMD_THREADS": "",
           "NORMD_MAX_BODY": "lots", "NORMD_DURABILITY": ""}
    with harness.Server("--max-body", "1M", env=env) as server:
        assert server.api().ok("GET", "/version")["threads"] == len(os.sched_getaffinity(0))
        warnings = [line for line in server.stderr().splitlines() if " warn " in line]
    assert len(warnings) == 1 and "NORMD_THREAD" in warnings[0] and "NORMD_CACHE" in warnings[0], warnings
    assert "NORMD_TEST" not in warnings[0] and "NORMD_CPU" not in warnings[0] and "secret" not in warnings[0], warnings
    with harness.Server() as server:
        assert " warn " not in server.stderr(), server.stderr()


def test_flag_beats_environment():
    with harness.Server("--threads", "2", env={"NORMD_THREADS": "3"}) as server:
        assert server.api().ok("GET", "/version")["threads"] == 2
    with harness.Server(env={"NORMD_THREADS": "3"}) as server:
        assert server.api().ok("GET", "/version")["threads"] == 3
    data = harness.folder()
    with harness.Server("--data", data, env={"NORMD_DATA": "/nonexistent/x"}) as server:
        server.api().layer("here")
    assert os.listdir(data)


def test_threads_by_default_are_the_processors_of_the_process():
    with harness.Server() as server:
        assert server.api().ok("GET", "/version")["threads"] == len(os.sched_getaffinity(0))
    one = str(min(os.sched_getaffinity(0)))
    if shutil.which("taskset"):
        with harness.Server(prefix=["taskset", "-c", one]) as server:
            assert server.api().ok("GET", "/version")["threads"] == 1


def test_max_body_takes_effect():
    for flags, env in ((["--max-body", "1K"], None), ([], {"NORMD_MAX_BODY": "1K"})):
        with harness.Server(*flags, env=env) as server:
            client = server.api()
            path = client.layer("a")
            wire.problem(client.post(path + "/inference", b'{"x":[[1,2,3]]}' + b" " * 1024), 413)
            assert client.infer(path, X)["version"] == 1


def test_help():
    status, out, err = harness.run_binary("--help")
    assert status == 0 and err == "", err
    for name in sorted({name for name, _ in GOOD} | {"data", "version"}):
        assert "--" + name in out, name
        if name != "version":
            assert variable(name) in out or "NORMD_" in out, name
    for default in ("64M", "1G", "256M", "10m", "30s", "10s", "sync", "info", "text"):
        assert default in out, default
    assert all(len(line) <= 120 for line in out.splitlines()), "fits a terminal"


def test_version():
    status, out, err = harness.run_binary("--version")
    assert status == 0 and err == "" and re.fullmatch(r"normd \d+\.\d+\.\d+\S*\n", out), (out, err)
    with harness.Server() as server:
        assert server.api().ok("GET", "/version")["version"] == out.split()[1]


def test_address_in_use():
    with harness.Server() as server:
        address = f"127.0.0.1:{server.port}"
        status, out, err = harness.run_binary("--listen", address, "--data", harness.folder())
        assert status not in (0, 2) and out == "", (status, out)
        assert address in err or str(server.port) in err, err
        assert server.api().get("/livez").status == 200


def test_listen_on_ipv6_and_names():
    try:
        with socket.socket(socket.AF_INET6) as s:
            s.bind(("::1", 0))
    except OSError:
        harness.skip("no IPv6 loopback here")
    with harness.Server(listen="[::1]:0") as server:
        assert server.stdout_lines[0].startswith("normd ready http://[::1]:"), server.stdout_lines
        with socket.create_connection(("::1", server.port), timeout=10) as s:
            s.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            assert wire.read_reply(s, harness.seconds(5)).status == 200


def test_healthcheck():
    server = harness.Server()
    address = f"127.0.0.1:{server.port}"
    status, _, err = harness.run_binary("healthcheck", "--listen", address)
    assert status == 0, err
    status, _, err = harness.run_binary("healthcheck", env={"NORMD_LISTEN": address})
    assert status == 0, err
    status, _, err = harness.run_binary("healthcheck", "--listen", address.replace("127.0.0.1", "0.0.0.0"))
    assert status == 0, "0.0.0.0 is asked on the loopback address: " + err
    server.stop()
    status, _, err = harness.run_binary("healthcheck", "--listen", address)
    assert status == 1 and err == f"normd: {address} is not ready: Connection refused\n", (status, err)
    with socket.socket() as s:  # listens, but never answers
        s.bind(("127.0.0.1", 0))
        s.listen()
        status, _, err = harness.run_binary("healthcheck", "--listen", f"127.0.0.1:{s.getsockname()[1]}", timeout=30)
        assert status == 1 and err.count("\n") == 1 and "within 3 s" in err, (status, err)


harness.main()
