# SPDX-License-Identifier: Apache-2.0
"""The servers as processes: started, called once, looked at in /proc, stopped."""
import http.client
import json
import os
import re
import subprocess
import time
from collections import namedtuple

from http_settings import HERE, NORMD, PROGRAMS, VENV, Broken, Skipped

TICKS = os.sysconf("SC_CLK_TCK")
START_S = 60
STOP_S = 30

Reply = namedtuple("Reply", "status headers body wire_bytes")


def read_proc(pid, name):
    with open(f"/proc/{pid}/{name}", encoding="ascii", errors="replace") as f:
        return f.read()


class Server:
    """A process that writes the URL that it listens on, and its workers."""

    def __init__(self, name, command, log, env=None, ready=1):
        """`log` gets what it prints; it is up once `ready` lines there say so."""
        self.name = name
        clean = {k: v for k, v in os.environ.items() if not k.startswith("NORMD_") or k == "NORMD_CPU"}
        with open(log, "wb") as out:
            self.process = subprocess.Popen(command, env={**clean, **(env or {})}, stdin=subprocess.DEVNULL,
                                            stdout=out, stderr=out, cwd=HERE)
        try:
            self.url, self.host, self.port = self._wait(log, ready)
        except BaseException:
            self.stop()
            raise

    def _wait(self, log, ready):
        end = time.monotonic() + START_S
        while True:
            with open(log, encoding="utf-8", errors="replace") as f:
                text = f.read()
            found = re.search(r"(http://([\d.]+):(\d+))", text)
            if found and len(re.findall(r"\bready\b|startup complete", text)) >= ready:
                return found.group(1), found.group(2), int(found.group(3))
            if self.process.poll() is not None or time.monotonic() > end:
                raise Broken(f"{self.name} did not start: {text[-2000:]}")
            time.sleep(0.01)

    def call(self, method, path, body=None, headers=None):
        """One request. Raises Skipped where the server does not have the feature, Broken where it fails."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        try:
            connection.request(method, path, body, headers or {"Content-Type": "application/json"})
            reply = connection.getresponse()
            data = reply.read()
        finally:
            connection.close()
        if reply.status == 501:
            raise Skipped(f"501, {json.loads(data)['detail']}")
        if not 200 <= reply.status < 300:
            raise Broken(f"{self.name}: {method} {path}: {reply.status} {data[:300]!r}")
        head = len(f"HTTP/1.1 {reply.status} {reply.reason}") + 4
        head += sum(len(k) + len(v) + 4 for k, v in reply.getheaders())
        return Reply(reply.status, reply.headers, data, head + len(data))

    def pids(self):
        """The process and all below it."""
        found, new = [], [self.process.pid]
        while new:
            pid = new.pop()
            found.append(pid)
            for task in os.listdir(f"/proc/{pid}/task"):
                new += map(int, read_proc(pid, f"task/{task}/children").split())
        return found

    def cpu_seconds(self):
        total = 0
        for pid in self.pids():
            fields = read_proc(pid, "stat").rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def resident_bytes(self):
        """Pages that several processes share count once."""
        return 1024 * sum(int(re.search(r"^Pss:\s+(\d+)", read_proc(pid, "smaps_rollup"), re.MULTILINE).group(1))
                          for pid in self.pids())

    def settle(self, deadline_s=60):
        """Waits until what a client left behind is done, which would slow the next one: two ticks without work."""
        end = time.monotonic() + deadline_s
        before = self.cpu_seconds()
        while time.monotonic() < end:
            time.sleep(2.5 / TICKS)
            now = self.cpu_seconds()
            if now == before:
                return
            before = now
        raise Broken(f"{self.name} does not come to rest")

    def stop(self):
        """Its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Broken(f"{self.name} does not end") from None


def start_normd(folder, *options, name="normd"):
    os.makedirs(folder)
    data = os.path.join(folder, "data")
    command = [NORMD, "--listen", "127.0.0.1:0", "--data", data, "--log-level", "warn", *options]
    return Server(name, command, os.path.join(folder, "log"))


def start_bare(folder, *mode):
    os.makedirs(folder, exist_ok=True)
    return Server("bare " + mode[0], [os.path.join(PROGRAMS, "bare_mhd"), *mode], os.path.join(folder, "log"))


WORKERS = 2


def start_fastapi(folder, snapshot):
    """`snapshot` is the file with the layers that it serves."""
    python = os.path.join(VENV, "bin", "python")
    os.makedirs(folder)
    check = subprocess.run([python, "-c", "import fastapi, torch, uvicorn"], stdin=subprocess.DEVNULL, check=False,
                           capture_output=True, text=True) if os.path.exists(python) else None
    if check is None:
        raise Skipped("there is no Python environment for FastAPI; the output of make says why")
    if check.returncode != 0:
        raise Skipped(f"FastAPI or PyTorch is missing: {check.stderr.strip().rpartition(chr(10))[2]}")
    command = [python, "-m", "uvicorn", "fastapi_service:app", "--host", "127.0.0.1", "--port", "0", "--no-access-log",
               "--workers", str(WORKERS)]
    return Server("FastAPI", command, os.path.join(folder, "log"), {"BENCH_LAYERS": snapshot}, ready=WORKERS)
