# SPDX-License-Identifier: Apache-2.0
"""Whether some calls hold up others: small ones beside large ones, other layers beside a storm on one."""
import contextlib
import os
import statistics
from collections import namedtuple

import http_forms
from http_contests import prepare, write
from http_load import Background, Load, all_paced, percentile, request_bytes
from http_servers import start_normd
from http_settings import DURATION, ONLY, ROUNDS

JSON = http_forms.FORMS["json"]
FEATURES, LARGE_FEATURES = 8, 1024
LARGE_ROWS = 16000  # 64 MB and a little less than --max-body
STORM_ROWS, STORM_LAYERS, STORM_CONNECTIONS = 4, 32, 32
SECONDS = max(2, DURATION)  # fewer calls have no p99

# What is asked at fixed times: on the layer `small`, each on a connection of its own.
Probe = namedtuple("Probe", "name call rows")
INFERENCE = Probe("inference 1x8", "inference", 1)
UPDATE = Probe("train-forward 4x8", "train-forward", 4)
# A group's interval is longer than its calls take, else they would wait for each other.
Group = namedtuple("Group", "name probes interval_s")
LARGE = Group("small beside large", (INFERENCE,), 0.002)
STORM = Group("storm", (INFERENCE, UPDATE), 0.01)
# `background` is a method of Scene, or None; `idle` that its client takes no processor from anyone (http_load.py).
Case = namedtuple("Case", "group title options background idle")
CASES = (
    Case(LARGE, "nothing else", (), None, False),
    Case(LARGE, "64 MB calls, a core left free", ("--threads", "1"), "large", True),
    Case(LARGE, "64 MB calls, all cores", (), "large", False),
    Case(STORM, "storm over 32 layers", (), "storm_on_all", False),
    Case(STORM, "storm on one layer", (), "storm_on_one", False),
)


class Scene:
    """A normd with layers: small, which the paced client asks, large, and those of the storm."""

    def __init__(self, folder, case):
        self.server = start_normd(folder, *case.options)
        self.folder, self.case, self.background = folder, case, None
        prepare(self.server, FEATURES, STORM_LAYERS)
        for name, features in (("small", FEATURES), ("large", LARGE_FEATURES)):
            self.server.call("PUT", f"/v1/layers/{name}", f'{{"num_features": {features}}}')

    def request(self, probe):
        body, headers = http_forms.encode(JSON, probe.call, {"x": http_forms.tensor(probe.rows, FEATURES, 4)})
        return request_bytes(f"/v1/layers/small/{probe.call}", body, headers)

    def wrk_load(self, form, path, call, x, layers, slack):
        body, headers = http_forms.encode(http_forms.FORMS[form], call, {"x": x})
        reply = self.server.call("POST", path.replace("#", "0"), body, headers)
        return Load(path, layers, write(self.folder, "body", body), headers, len(body), reply.wire_bytes,
                    len(reply.body), slack)

    def large(self):
        x = http_forms.tensor(LARGE_ROWS, LARGE_FEATURES)
        return self.wrk_load("npy", "/v1/layers/large/inference", "inference", x, 1, 0), 1

    def storm_on(self, path, layers):
        x = http_forms.tensor(STORM_ROWS, FEATURES, 4)
        return self.wrk_load("json", path, "train-forward", x, layers, 64), STORM_CONNECTIONS

    def storm_on_one(self):
        return self.storm_on("/v1/layers/bench0/train-forward", 1)

    def storm_on_all(self):
        return self.storm_on("/v1/layers/bench#/train-forward", STORM_LAYERS)

    def prepare_background(self):
        if self.case.background is not None:
            self.background = getattr(self, self.case.background)()

    def measure(self):
        """{probe: latencies}, requests/s of the background."""
        group = self.case.group
        asked = self.server, {probe.name: self.request(probe) for probe in group.probes}, SECONDS, group.interval_s
        self.server.settle()
        if self.background is None:
            return all_paced(*asked), None
        load, connections = self.background
        with Background(self.server, load, connections, self.case.idle) as running:
            latencies = all_paced(*asked)
        return latencies, running.result["requests"] / running.result["duration_us"] * 1e6


def rows_of(case, results):
    """Medians of the rounds: a disk that stalls in one of them shows in `max_ms` alone."""
    rates = [rate for _, rate in results if rate is not None]
    for probe in case.group.probes:
        rounds = [latencies[probe.name] for latencies, _ in results]
        together = sum(rounds, [])
        figures = [{"p50_ms": percentile(ms, 0.5), "p99_ms": percentile(ms, 0.99)} for ms in rounds]
        yield {"group": case.group.name, "beside": case.title, "probe": probe.name, "calls": len(together),
               "background_per_s": statistics.median(rates) if rates else None,
               "p50_ms": statistics.median(of_round["p50_ms"] for of_round in figures),
               "p99_ms": statistics.median(of_round["p99_ms"] for of_round in figures), "max_ms": max(together),
               "rounds": figures}


def measure_group(cases, folder, stack):
    """[results of each round] of each case; they take turns."""
    scenes = []
    for number, case in enumerate(cases):
        scene = Scene(os.path.join(folder, f"{case.group.name} {number}"), case)
        stack.callback(scene.server.stop)
        scene.prepare_background()
        scenes.append(scene)
    results = [[] for _ in scenes]
    for number in range(ROUNDS):
        for i in range(len(scenes)) if number % 2 == 0 else reversed(range(len(scenes))):
            results[i].append(scenes[i].measure())
    return results


def run_starvation(folder):
    for group in (LARGE, STORM):
        if not ONLY.search(group.name):
            continue
        cases = [case for case in CASES if case.group is group]
        with contextlib.ExitStack() as stack:
            results = measure_group(cases, folder, stack)
        for case, of_case in zip(cases, results):
            yield from rows_of(case, of_case)
