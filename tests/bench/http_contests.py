# SPDX-License-Identifier: Apache-2.0
"""Who is measured beside whom, and the rounds: each contest is a table of rows, one for each contender."""
import contextlib
import json
import os
import statistics
import subprocess
from collections import namedtuple

import http_forms
from http_load import Load, run_wrk
from http_servers import start_bare, start_fastapi, start_normd
from http_settings import DURATION, ONLY, PROGRAMS, ROUNDS, Broken, Skipped

# `durable`: a reply of normd acknowledges an update, which is counted afterwards.
Workload = namedtuple("Workload", "name call rows features decimals layers durable")
SMALL = Workload("inference 1x8", "inference", 1, 8, 4, 1, False)
MEDIUM = Workload("inference 256x1024", "inference", 256, 1024, None, 1, False)
LARGE = Workload("inference 4096x1024", "inference", 4096, 1024, None, 1, False)
TRAIN = Workload("train-forward 256x1024", "train-forward", 256, 1024, None, 1, True)
UPDATES = Workload("train-forward 4x8, 32 layers", "train-forward", 4, 8, 4, 32, True)

# The first contender is the base that the others are divided by. Those of a contest are neighbours in time.
Contest = namedtuple("Contest", "workload connections contenders")
FASTAPI = ("fastapi", "fastapi-typed")
CONTESTS = (
    Contest(SMALL, (1, 8, 32, 128, 1000), ("constant", "json", *FASTAPI)),
    Contest(SMALL, (32,), ("constant", "base64", "npy", "safetensors", "oip")),
    Contest(MEDIUM, (1, 8), ("constant", "json", "base64", *FASTAPI)),
    Contest(MEDIUM, (1, 8), ("echo", "npy", "safetensors", "oip")),
    Contest(TRAIN, (1, 8), ("constant", "json", "base64", *FASTAPI)),
    Contest(TRAIN, (1, 8), ("echo", "npy", "safetensors", "oip")),
    Contest(LARGE, (1, 4), ("echo", "npy", "oip", "safetensors")),
    Contest(UPDATES, (1, 32), ("constant", "json", "sqlite", "fastapi")),
)
TITLES = {"constant": "bare, constant", "echo": "bare, echo", "sqlite": "SQLite alone", "fastapi": "FastAPI",
          "fastapi-typed": "FastAPI, typed"}
TITLES.update((name, f"normd, {form.title}") for name, form in http_forms.FORMS.items())
FASTAPI_PATHS = {"fastapi": "/layers/{layer}/{call}", "fastapi-typed": "/typed/{layer}/{call}"}
# Calls of FastAPI that take a quarter of a second need a longer run to be counted.
SLOW_FACTOR = 3
SLOW_NUMBERS = 100_000
# What a row of such a layer takes in normd's database, by SQLite's dbstat.
SQLITE_ROW_BYTES = 340


def prepare(normd, features, layers):
    """Layers bench0, bench1, ... with statistics of their own, so that y has all its digits."""
    body, headers = http_forms.encode(http_forms.FORMS["json"], "train-forward",
                                      {"x": http_forms.tensor(16, features, 4)})
    for i in range(layers):
        normd.call("PUT", f"/v1/layers/bench{i}", json.dumps({"num_features": features}))
        normd.call("POST", f"/v1/layers/bench{i}/train-forward", body, headers)


def write(folder, name, data):
    path = os.path.join(folder, name)
    with open(path, "wb") as f:
        f.write(data)
    return path


class Http:
    """A contender that wrk loads."""

    least_cpu = 0.02  # of a processor: one that takes less while it is loaded has stalled

    def __init__(self, server, load, slow=False):
        self.server, self.load = server, load
        self.seconds = DURATION * (SLOW_FACTOR if slow else 1)

    def run(self, connections):
        result = run_wrk(self.server, self.load, connections, self.seconds)
        self.server.settle()
        if result["cpu_us"] * result["requests"] < self.least_cpu * result["duration_us"]:
            raise Broken(f"{self.server.name}, {connections} connections: the server slept: {result}")
        return result


class Durable(Http):
    """Counts the updates: all that were acknowledged, and no more than were sent."""

    least_cpu = 0  # it waits for the disk

    def __init__(self, server, load):
        super().__init__(server, load)
        self.first = self.applied()
        self.acknowledged = self.under_way = 0

    def applied(self):
        layers = json.loads(self.server.call("GET", "/v1/snapshot?prefix=bench").body)["layers"].values()
        return sum(layer["num_batches_tracked"] for layer in layers)

    def run(self, connections):
        result = super().run(connections)
        self.acknowledged += result["requests"]
        self.under_way += connections * result["attempts"]  # wrk does not read what is under way when it ends
        applied = self.applied() - self.first
        if not self.acknowledged <= applied <= self.acknowledged + self.under_way:
            raise Broken(f"{self.acknowledged} updates were acknowledged, {applied} were applied")
        return result


class Sqlite:
    """As many rows in a transaction as there are connections, each run in a new database."""

    def __init__(self, folder):
        self.folder, self.runs = folder, 0

    def run(self, connections):
        folder = os.path.join(self.folder, str(self.runs))
        self.runs += 1
        os.makedirs(folder)
        done = subprocess.run([os.path.join(PROGRAMS, "bare_sqlite"), folder, str(connections), str(SQLITE_ROW_BYTES),
                               str(DURATION)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                              timeout=DURATION + 60)
        if done.returncode != 0:
            raise Broken(f"bare_sqlite: {done.stderr}")
        result = json.loads(done.stdout)
        result["requests_per_s"] = result["requests"] / result["duration_us"] * 1e6
        result["cpu_us"] /= result["requests"]
        return result


class Stage:
    """The servers of one contest, with what they are asked and must answer."""

    def __init__(self, contest, folder, stack):
        self.workload, self.folder, self.stack = contest.workload, folder, stack
        self.x = http_forms.tensor(self.workload.rows, self.workload.features, self.workload.decimals)
        self.snapshot = self.state = self.first = None
        os.makedirs(folder)

    def place(self, name):
        return os.path.join(self.folder, name)

    def started(self, server):
        """It is stopped with the contest, and must end well then; uvicorn ends by the signal."""
        def stop():
            status = server.stop()
            if status != 0 and server.name != "FastAPI":
                raise Broken(f"{server.name} ended with status {status}")
        self.stack.callback(stop)
        return server

    def request(self, form, path):
        body, headers = http_forms.encode(form, self.workload.call, {"x": self.x})
        return path.format(layer="bench#", call=self.workload.call), body, headers

    def load(self, name, server, request, form=None, expected=None):
        """Asks once, compares, and notes the length of the reply."""
        path, body, headers = request
        reply = server.call("POST", path.replace("#", "0"), body, headers)
        if form is not None:
            http_forms.check(TITLES[name], form.decode(reply, "y"),
                             http_forms.normalized(self.workload.call, self.x, self.state))
        elif reply.body != expected:
            raise Broken(f"{TITLES[name]} gives another reply")
        file = write(self.folder, name + ".body", body)
        slack = 0 if form is None else 64  # version and counters, in the head and in the body
        load = Load(path, self.workload.layers, file, headers, len(body), reply.wire_bytes, len(reply.body), slack)
        return load, reply

    def normd(self, name):
        form = http_forms.FORMS[name]
        server = self.started(start_normd(self.place(name), name=TITLES[name]))
        prepare(server, self.workload.features, self.workload.layers)
        self.state = json.loads(server.call("GET", "/v1/layers/bench0/state").body)
        if self.snapshot is None:
            self.snapshot = write(self.folder, "snapshot", server.call("GET", "/v1/snapshot").body)
        load, reply = self.load(name, server, self.request(form, form.path), form)
        self.first = self.first or (load, reply)
        return Durable(server, load) if self.workload.durable else Http(server, load)

    def base(self, name):
        """The bare server: with the first form's reply, or with its body."""
        load, reply = self.first
        with open(load.file, "rb") as f:
            request = (load.path, f.read(), load.headers)
        mode = (name,) if name == "echo" else (name, write(self.folder, "reply", reply.body))
        server = self.started(start_bare(self.place(name), *mode))
        return Http(server, self.load(name, server, request, expected=request[1] if name == "echo" else reply.body)[0])

    def fastapi(self, name):
        form = http_forms.FORMS["json"]
        server = self.started(start_fastapi(self.place(name), self.snapshot))
        load, _ = self.load(name, server, self.request(form, FASTAPI_PATHS[name]), form)
        return Http(server, load, slow=self.x.size > SLOW_NUMBERS)

    def contender(self, name):
        """Raises Skipped where it cannot be had."""
        if name in http_forms.FORMS:
            return self.normd(name)
        if name in FASTAPI_PATHS:
            return self.fastapi(name)
        return Sqlite(self.place(name)) if name == "sqlite" else self.base(name)


def rounds(contenders, connections):
    """{name: [result of each round]}; the order is turned round every time."""
    results = {name: [] for name in contenders}
    for number in range(ROUNDS):
        for name in list(contenders) if number % 2 == 0 else reversed(contenders):
            results[name].append(contenders[name].run(connections))
    return results


MEDIANS = ("requests_per_s", "p50_us", "p99_us", "mb_per_s", "cpu_us", "cpu_s_per_gb", "resident_bytes")


def head_of(contest, connections, name):
    """`contest` tells rows apart that were not measured side by side."""
    return {"contest": CONTESTS.index(contest), "workload": contest.workload.name, "connections": connections,
            "server": name, "title": TITLES[name]}


def summary(contest, connections, name, results):
    base = contest.contenders[0]
    row = head_of(contest, connections, name)
    for key in MEDIANS:
        if key in results[name][0]:
            row[key] = statistics.median(r[key] for r in results[name])
    if name != base:
        row["base"] = base
        row["ratios"] = [r["requests_per_s"] / b["requests_per_s"] for r, b in zip(results[name], results[base])]
        row["ratio"] = statistics.median(row["ratios"])
    row["rounds"] = results[name]
    return row


def build(stage, names):
    """{name: contender} in the order of the table, {name: why not}. The base repeats normd, so it is made last."""
    made, skipped = {}, {}
    for name in (*names[1:], names[0]):
        try:
            made[name] = stage.contender(name)
        except Skipped as why:
            skipped[name] = str(why)
    return {name: made[name] for name in names if name in made}, skipped


def run_contest(contest, folder):
    """Its rows, one after the other as they are measured."""
    with contextlib.ExitStack() as stack:
        contenders, skipped = build(Stage(contest, folder, stack), contest.contenders)
        for connections in contest.connections:
            results = rounds(contenders, connections)
            for name in contest.contenders:
                if name in skipped:
                    yield {**head_of(contest, connections, name), "skipped": skipped[name]}
                else:
                    yield summary(contest, connections, name, results)


def chosen():
    """Those whose name, `inference 1x8: constant json fastapi`, ONLY finds."""
    return [c for c in CONTESTS if ONLY.search(f"{c.workload.name}: {' '.join(c.contenders)}")]
