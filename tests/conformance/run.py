#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the conformance cases against a normd that is already listening.

usage: run.py HOST:PORT [NAME-PART]      exit status 0 where every case holds
"""
import http.client
import json
import math
import os
import sys

CASES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cases")
STATE_VECTORS = ("gamma", "beta", "running_mean", "running_var")
# Sums over a batch: their error is measured against the largest value of the vector, so that atol does not decide.
REDUCED = ("dx", "dgamma", "dbeta", "running_mean", "running_var", "batch_mean", "batch_var")


class Mismatch(Exception):
    pass


def load(part=""):
    """All cases whose file name contains `part`, in the order of names."""
    cases = []
    for name in sorted(os.listdir(CASES)):
        if name.endswith(".json") and part in name:
            with open(os.path.join(CASES, name), encoding="utf-8") as f:
                cases.append(json.load(f))
    return cases


def shape_of(value):
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def flat(value, shape):
    """The numbers of nested lists; fails where a row has another length than `shape` says."""
    if not shape:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise Mismatch(f"{value!r} is not a finite number")
        return [value]
    if not isinstance(value, list) or len(value) != shape[0]:
        raise Mismatch(f"a row is not {shape[0]} long: {value!r:.80}")
    return [v for row in value for v in flat(row, shape[1:])]


def compare(key, got, want, tolerance):
    """Fails where got is not want: numbers in arrays within the tolerance, everything else exactly."""
    if not isinstance(want, list):
        if isinstance(got, bool) != isinstance(want, bool) or got != want:
            raise Mismatch(f"{key}: {got!r:.80}, want {want!r:.80}")
        return
    shape = shape_of(want)
    values, wanted = flat(got, shape), flat(want, shape)
    unit = max([1.0] + [abs(v) for v in wanted]) if key in REDUCED else 1.0
    for i, (a, b) in enumerate(zip(values, wanted)):
        if abs(a - b) > tolerance["atol"] * unit + tolerance["rtol"] * abs(b):
            raise Mismatch(f"{key}: value {i} of shape {shape} is {a!r}, want {b!r}")


class Run:
    """One case on one layer. `call(method, path, body)` gives (status, decoded body); `replies` keeps every body."""

    def __init__(self, call, case):
        self.call, self.case = call, case
        self.path = "/v1/layers/case." + case["name"]
        self.features = case["layer"]["num_features"]
        self.version, self.batches, self.cache = 1, 0, None
        self.tracks = case["layer"].get("track_running_stats", True)
        self.affine = case["layer"].get("affine", True)
        self.replies = []

    def expect(self, status, method, path, body=None):
        got, reply = self.call(method, path, body)
        if got != status:
            raise Mismatch(f"{method} {path}: status {got}, want {status}: {reply!r:.300}")
        if reply is not None:
            self.replies.append({k: v for k, v in reply.items() if k != "cache"})
        return reply

    def keys(self, reply, wanted):
        if set(reply) != set(wanted):
            raise Mismatch(f"the reply has {sorted(reply)}, want {sorted(wanted)}")

    def count(self, x):
        total = math.prod(shape_of(x))
        return total // self.features

    def train_forward(self, step):
        body = {"x": step["x"]}
        if step.get("cache"):
            body["cache"] = True
        reply = self.expect(200, "POST", self.path + "/train-forward", body)
        fields = ["y", "batch_mean", "batch_var", "count", "num_batches_tracked", "updated", "version"]
        self.keys(reply, fields + ["cache"] * bool(step.get("cache")))
        self.version += self.tracks
        self.batches += 1
        compare("count", reply["count"], self.count(step["x"]), None)
        compare("updated", reply["updated"], self.tracks, None)
        compare("num_batches_tracked", reply["num_batches_tracked"], self.batches if self.tracks else None, None)
        self.cache = reply.get("cache", self.cache)
        return reply

    def inference(self, step):
        reply = self.expect(200, "POST", self.path + "/inference", {"x": step["x"]})
        self.keys(reply, ["y", "version"])
        return reply

    def backward(self, step):
        body = {k: step[k] for k in ("x", "dout", "step", "mode") if k in step}
        if step["use"] == "cache":
            body["cache"] = self.cache
        reply = self.expect(200, "POST", self.path + "/backward", body)
        self.keys(reply, ["dx", "dgamma", "dbeta", "version"])
        self.version += "step" in step
        compare("shape of dx", shape_of(reply["dx"]), shape_of(step["dout"]), {"atol": 0, "rtol": 0})
        return reply

    def get_state(self, _):
        reply = self.expect(200, "GET", self.path + "/state")
        self.keys(reply, [*STATE_VECTORS, "num_batches_tracked", "version", "layer"])
        for key in STATE_VECTORS:
            has = self.affine if key in ("gamma", "beta") else self.tracks
            if shape_of(reply[key]) != ([self.features] if has else []):
                raise Mismatch(f"{key} has shape {shape_of(reply[key])}")
        return reply

    def put_state(self, step):
        reply = self.expect(200, "PATCH", self.path + "/state", step["state"])
        self.version += 1
        for key, want in step["state"].items():
            compare(key, reply[key], want, {"atol": 0, "rtol": 0})
        return reply

    def step(self, step):
        reply = getattr(self, step["op"].replace("-", "_"))(step)
        compare("version", reply["version"], self.version, None)
        for key, want in step.get("expect", {}).items():
            if key not in reply:
                raise Mismatch(f"{key} is absent")
            compare(key, reply[key], want, self.case["tolerance"])

    def run(self):
        """Raises Mismatch where the case does not hold; leaves no layer behind."""
        self.call("DELETE", self.path, None)
        reply = self.expect(201, "PUT", self.path, self.case["layer"])
        compare("version", reply["version"], 1, None)
        for key, want in self.case["layer"].items():
            compare("layer." + key, reply["layer"][key], want, None)
        for i, step in enumerate(self.case["steps"]):
            try:
                self.step(step)
            except Mismatch as error:
                raise Mismatch(f"step {i} {step['op']}: {error}") from None
        self.expect(204, "DELETE", self.path)
        self.expect(404, "GET", self.path)


def caller(host, port, timeout=60.0):
    """A call function over one keep-alive connection."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)

    def call(method, path, body):
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        response = connection.getresponse()
        raw = response.read()
        if response.will_close:
            connection.close()
        return response.status, json.loads(raw) if raw else None

    return call


def main():
    if len(sys.argv) not in (2, 3) or ":" not in sys.argv[1]:
        sys.exit(__doc__)
    host, port = sys.argv[1].rsplit(":", 1)
    failed, cases = 0, load(sys.argv[2] if len(sys.argv) > 2 else "")
    for number, case in enumerate(cases, 1):
        try:
            Run(caller(host, int(port)), case).run()
            print(f"ok {number} - {case['name']}")
        except Mismatch as error:
            failed += 1
            print(f"not ok {number} - {case['name']}\n# {error}")
    print(f"1..{len(cases)}")
    sys.exit(1 if failed or not cases else 0)


if __name__ == "__main__":
    main()
