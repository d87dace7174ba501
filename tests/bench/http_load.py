# SPDX-License-Identifier: Apache-2.0
"""The two load generators: wrk, as fast as it goes; and a client that sends at fixed times."""
import concurrent.futures
import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import time
from collections import namedtuple

from http_settings import HERE, Broken

BACKGROUND_S = 120  # at most

# What wrk sends: '#' in `path` counts through `layers` layers. `reply_bytes` are those of a reply on the wire, head and
# body; replies whose counters grow may have up to `slack` more or less.
Load = namedtuple("Load", "path layers file headers body_bytes reply_bytes reply_body_bytes slack")


def wrk_command(server, load, connections, seconds):
    fields = [word for field in load.headers.items() for word in field]
    return ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", "-s",
            os.path.join(HERE, "request.lua"), server.url, "--", load.path, str(load.layers), load.file, *fields]


def check_wrk(result, load, connections, what):
    """No error, no other status, and as many bytes as so many replies have; the last ones may have come in part."""
    errors = {k: v for k, v in result.items() if k.endswith(("_errors", "_statuses")) or k == "timeouts"}
    least = result["requests"] * (load.reply_bytes - load.slack)
    most = (result["requests"] + connections) * (load.reply_bytes + load.slack)
    if any(errors.values()) or not least <= result["bytes"] <= most:
        raise Broken(f"{what}: replies of {load.reply_bytes} bytes were expected: {result}")


def parse_wrk(process_name, code, out, err):
    if code != 0:
        raise Broken(f"{process_name}: wrk: exit status {code}: {err or out}")
    return json.loads(out.rstrip().rpartition("\n")[2])


def run_once(server, load, connections, seconds):
    """wrk's figures, and the processor time of the server."""
    before = server.cpu_seconds()
    done = subprocess.run(wrk_command(server, load, connections, seconds), stdin=subprocess.DEVNULL, check=False,
                          capture_output=True, text=True, timeout=seconds + 120)
    cpu = server.cpu_seconds() - before
    what = f"{server.name}, {load.path}, {connections} connections"
    result = parse_wrk(what, done.returncode, done.stdout, done.stderr)
    check_wrk(result, load, connections, what)
    return result, cpu


def run_wrk(server, load, connections, seconds):
    """wrk with one thread, longer where no reply came in time: its figures, and what the server took for them."""
    for attempts, factor in enumerate((1, 3, 9), 1):
        result, cpu = run_once(server, load, connections, factor * seconds)
        if result["requests"] > 0:
            break
    else:
        raise Broken(f"{server.name}, {load.path}, {connections} connections: no reply in {factor * seconds} s")
    result["attempts"] = attempts
    bodies = load.body_bytes + load.reply_body_bytes
    result["requests_per_s"] = result["requests"] / result["duration_us"] * 1e6
    result["mb_per_s"] = result["requests_per_s"] * bodies / 1e6
    result["cpu_us"] = cpu / result["requests"] * 1e6
    result["cpu_s_per_gb"] = result["cpu_us"] * 1e3 / bodies
    result["resident_bytes"] = server.resident_bytes()
    return result


def set_policy(process, policy):
    """For all its threads."""
    for task in os.listdir(f"/proc/{process.pid}/task"):
        os.sched_setscheduler(int(task), policy, os.sched_param(0))


class Background:
    """wrk beside what stands in `with Background(...) as load:`; load.result has its figures afterwards."""

    def __init__(self, server, load, connections, idle=False):
        """With `idle` it runs only where a processor has nothing else to do, as if it were on another machine."""
        self.server, self.load, self.connections, self.idle = server, load, connections, idle
        self.process = self.result = None

    def __enter__(self):
        before = self.server.cpu_seconds()
        self.process = subprocess.Popen(wrk_command(self.server, self.load, self.connections, BACKGROUND_S),
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        text=True)
        end = time.monotonic() + BACKGROUND_S
        while self.server.cpu_seconds() < before + 0.02 and time.monotonic() < end:  # its first calls have come
            time.sleep(0.01)
        if self.idle:
            set_policy(self.process, os.SCHED_IDLE)
        return self

    def __exit__(self, kind, *_):
        if self.idle:
            with contextlib.suppress(PermissionError):  # then it takes its time to end on a busy machine
                set_policy(self.process, os.SCHED_OTHER)
        self.process.send_signal(signal.SIGINT)  # it ends as at its time, with its figures
        try:
            out, err = self.process.communicate(timeout=BACKGROUND_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise Broken("the machine is so busy that the background load does not end") from None
        if kind is None:
            what = f"background, {self.load.path}"
            self.result = parse_wrk(what, self.process.returncode, out, err)
            check_wrk(self.result, self.load, self.connections, what)


# ---- at fixed times

def request_bytes(path, body, headers):
    fields = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    return f"POST {path} HTTP/1.1\r\nHost: bench\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode() + body


def read_reply(connection):
    data = b""
    while b"\r\n\r\n" not in data:
        data += receive(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += receive(connection)
    if not head.startswith(b"HTTP/1.1 200 "):
        raise Broken(f"a paced call was answered {head[:60]!r} {body[:300]!r}")


def receive(connection):
    data = connection.recv(65536)
    if not data:
        raise Broken("the server closed the connection of the paced client")
    return data


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def paced(server, request, seconds, interval_s):
    """Sends the request once each interval: latencies in ms, from when it was due, so that a stall is charged for all
    that it held up."""
    times = []
    with socket.create_connection((server.host, server.port), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.perf_counter()
        for number in range(int(seconds / interval_s)):
            due = began + number * interval_s
            time.sleep(max(0, due - time.perf_counter()))
            connection.sendall(request)
            read_reply(connection)
            times.append((time.perf_counter() - due) * 1e3)
    return times


def all_paced(server, requests, seconds, interval_s):
    """{name: latencies} of {name: request}, each on a connection of its own."""
    with concurrent.futures.ThreadPoolExecutor(len(requests)) as threads:
        running = {name: threads.submit(paced, server, request, seconds, interval_s)
                   for name, request in requests.items()}
        return {name: future.result() for name, future in running.items()}
