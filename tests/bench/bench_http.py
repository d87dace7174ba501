#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Requests per second and latency of normd beside a bare libmicrohttpd server, on one machine and in one run.

Run by `make bench-http`; README.md says what the columns mean. Exit status 1: something broke; slowness is no error.
NORMD_BIN is the server, BUILD the folder of bare_mhd and of the results; ROUNDS and DURATION (seconds of one run) are
the effort.
"""
import http.client
import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import namedtuple

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.abspath(os.environ.get("BUILD") or os.path.join(ROOT, "build"))
NORMD = os.path.abspath(os.environ.get("NORMD_BIN") or os.path.join(BUILD, "normd"))
BARE = os.path.join(BUILD, "tests", "bench", "bare_mhd")
# Many short rounds rather than few long ones: what else the machine does then falls on both servers.
ROUNDS = int(os.environ.get("ROUNDS") or 9)
DURATION = int(os.environ.get("DURATION") or 1)

FEATURES = 8
LAYERS = 32
TICKS = os.sysconf("SC_CLK_TCK")

# '#' in a path counts through the layers. `writes`: every reply of normd acknowledges one durable update.
Workload = namedtuple("Workload", "name path layers rows connections writes")
WORKLOADS = (
    Workload("inference 1x8", "/v1/layers/bench#/inference", 1, 1, (1, 8, 32, 128), False),
    Workload("train-forward 4x8, 32 layers", "/v1/layers/bench#/train-forward", LAYERS, 4, (1, 32), True),
)
TARGET = {"workload": "inference 1x8", "connections": 32, "ratio": 0.60}


class Broken(Exception):
    """Something other than speed is wrong."""


class Server:
    """A process that prints `... ready http://HOST:PORT` when it listens."""

    def __init__(self, name, *command):
        self.name = name
        env = {k: v for k, v in os.environ.items() if not k.startswith("NORMD_") or k == "NORMD_CPU"}
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        found = re.search(r"ready (http://(.+):(\d+))$", line.rstrip())
        if not found:
            self.stop()
            raise Broken(f"{name} did not start: {line!r}")
        self.url, self.host, self.port = found.group(1), found.group(2), int(found.group(3))

    def call(self, method, path, value=None):
        """One request, its reply as text."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            body = None if value is None else value if isinstance(value, str) else json.dumps(value)
            connection.request(method, path, body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            text = reply.read().decode()
        finally:
            connection.close()
        if not 200 <= reply.status < 300:
            raise Broken(f"{self.name}: {method} {path}: {reply.status} {text}")
        return text

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as f:
            fields = f.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def stop(self):
        self.process.terminate()
        status = self.process.wait(30)
        self.process.stdout.close()
        return status


# ---- one run

def run_wrk(server, workload, connections, body):
    """wrk for DURATION seconds with one thread; returns its figures. Raises Broken at any error that it counts."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{DURATION}s", "-s", os.path.join(HERE, "request.lua"), server.url,
               "--", "POST", workload.path, str(workload.layers), body]
    before = server.cpu_seconds()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DURATION + 60,
                          check=False)
    cpu = server.cpu_seconds() - before
    if done.returncode != 0:
        raise Broken(f"wrk: exit status {done.returncode}: {done.stderr or done.stdout}")
    result = json.loads(done.stdout.rstrip().rpartition("\n")[2])
    errors = {k: v for k, v in result.items() if k.endswith(("_errors", "_statuses")) or k == "timeouts"}
    if any(errors.values()) or result["requests"] == 0:
        raise Broken(f"{server.name}, {workload.name}, {connections} connections: {result}")
    if cpu < 0.05 * DURATION:
        raise Broken(f"{server.name}, {workload.name}, {connections} connections: stalled, {result}")
    result["requests_per_s"] = result["requests"] / result["duration_us"] * 1e6
    result["cpu_us"] = cpu / result["requests"] * 1e6
    return result


def train_batches(normd):
    """Sum of num_batches_tracked over the layers."""
    states = json.loads(normd.call("GET", "/v1/snapshot?prefix=bench"))["layers"].values()
    return sum(state["num_batches_tracked"] for state in states)


def check_updates(before, after, acknowledged, connections):
    """wrk leaves without reading what is still under way, at most one request a connection."""
    if not acknowledged <= after - before <= acknowledged + connections:
        raise Broken(f"{acknowledged} updates were acknowledged, {after - before} were applied")


def measure(normd, bare, workload, connections, body):
    """ROUNDS rounds of both servers, the order turned round every time: {server's name: [result of each round]}."""
    results = {server.name: [] for server in (bare, normd)}
    for number in range(ROUNDS):
        for server in (bare, normd) if number % 2 == 0 else (normd, bare):
            writes = workload.writes and server is normd
            before = train_batches(normd) if writes else 0
            result = run_wrk(server, workload, connections, body)
            if writes:
                check_updates(before, train_batches(normd), result["requests"], connections)
            results[server.name].append(result)
    return results


def summary(workload, connections, name, rounds, bare_rounds):
    row = {"workload": workload.name, "connections": connections, "server": name}
    for key in ("requests_per_s", "p50_us", "p99_us", "cpu_us"):
        row[key] = statistics.median(r[key] for r in rounds)
    row["ratios"] = [r["requests_per_s"] / b["requests_per_s"] for r, b in zip(rounds, bare_rounds)]
    row["ratio"] = statistics.median(row["ratios"])
    row["p99_ratio"] = statistics.median(r["p99_us"] / b["p99_us"] for r, b in zip(rounds, bare_rounds))
    row["rounds"] = rounds
    return row


# ---- the whole

def tensor(rows):
    """Values as they come from sensors, four decimals, off centre."""
    source = random.Random(rows)
    return [[round(source.gauss(3.0 * c, 1.0 + c), 4) for c in range(FEATURES)] for _ in range(rows)]


def prepare(normd):
    """Layers with statistics of their own, so that y has all its digits."""
    for i in range(LAYERS):
        normd.call("PUT", f"/v1/layers/bench{i}", {"num_features": FEATURES})
        normd.call("POST", f"/v1/layers/bench{i}/train-forward", {"x": tensor(16)})


def run_workload(normd, workload):
    """Rows of one workload; the bare server answers with a reply that normd gave."""
    body = json.dumps({"x": tensor(workload.rows)}, separators=(",", ":"))
    reply = normd.call("POST", workload.path.replace("#", "0"), body)
    bare = Server("bare", BARE, reply)
    try:
        if bare.call("POST", "/", body) != reply:
            raise Broken("the bare server gives another reply")
        for connections in workload.connections:
            results = measure(normd, bare, workload, connections, body)
            for name, rounds in results.items():
                row = summary(workload, connections, name, rounds, results["bare"])
                row.update(request_bytes=len(body), reply_bytes=len(reply))
                print_row(row)
                yield row
    finally:
        bare.stop()


def sync_ms(folder):
    """Median of a 4 KiB append with fdatasync in the folder of the data."""
    times = []
    with tempfile.TemporaryFile(dir=folder) as f:
        for _ in range(100):
            began = time.perf_counter()
            os.write(f.fileno(), bytes(4096))
            os.fdatasync(f.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def cpu_name():
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        found = re.search(r"^model name\s*:\s*(.+)$", f.read(), re.MULTILINE)
    return found.group(1) if found else platform.machine()


def print_head(facts):
    print(f"{facts['cpu']}, {facts['processors']} processors shared with wrk (1 thread), load {facts['load']:.1f} at "
          f"the start; medians of {ROUNDS} rounds of {DURATION} s; fdatasync {facts['fdatasync_ms']:.2f} ms\n")
    print("| call | connections | server | requests/s | of bare | (least to most) | p50 ms | p99 ms | CPU us/request |")
    print("|---|--:|---|--:|--:|:-:|--:|--:|--:|", flush=True)


def print_row(row):
    bare = row["server"] == "bare"
    ratio = "" if bare else f"{row['ratio']:.0%}"
    spread = "" if bare else f"{min(row['ratios']):.0%} to {max(row['ratios']):.0%}"
    cells = (row["workload"], row["connections"], row["server"], f"{row['requests_per_s']:.0f}", ratio, spread,
             f"{row['p50_us'] / 1e3:.2f}", f"{row['p99_us'] / 1e3:.2f}", f"{row['cpu_us']:.1f}")
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def judge(rows):
    """The target with what was measured."""
    where = (TARGET["workload"], TARGET["connections"], "normd")
    row = next(r for r in rows if (r["workload"], r["connections"], r["server"]) == where)
    met = row["ratio"] >= TARGET["ratio"]
    print(f"\ntarget: {TARGET['workload']} at {TARGET['connections']} connections reaches {TARGET['ratio']:.0%} of "
          f"the bare server: {'met' if met else 'NOT MET'} in this run, {row['ratio']:.1%}")
    return dict(TARGET, measured=row["ratio"], met=met)


def bench(folder):
    facts = {"cpu": cpu_name(), "processors": len(os.sched_getaffinity(0)), "kernel": platform.release(),
             "load": os.getloadavg()[0], "fdatasync_ms": sync_ms(folder), "rounds": ROUNDS, "duration_s": DURATION}
    normd = Server("normd", NORMD, "--listen", "127.0.0.1:0", "--data", os.path.join(folder, "data"),
                   "--log-level", "warn")
    try:
        prepare(normd)
        print_head(facts)
        rows = [row for workload in WORKLOADS for row in run_workload(normd, workload)]
        facts["normd"] = json.loads(normd.call("GET", "/version"))
    finally:
        status = normd.stop()
    if status != 0:
        raise Broken(f"normd ended with status {status}")
    return dict(facts, target=judge(rows), results=rows)


def main():
    if shutil.which("wrk") is None:
        raise Broken("wrk is missing: deploy/deps bench")
    results = os.path.join(BUILD, "bench")
    os.makedirs(results, exist_ok=True)
    # Beside the build and not under /tmp, which may be memory: updates wait for a disk.
    with tempfile.TemporaryDirectory(dir=results) as folder:
        report = bench(folder)
    path = os.path.join(results, "http.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(report, f, indent=1)
    print(f"all figures: {os.path.relpath(path)}")


if __name__ == "__main__":
    try:
        main()
    except Broken as error:
        sys.exit(f"bench-http: {error}")
