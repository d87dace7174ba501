# SPDX-License-Identifier: Apache-2.0
"""The targets, and whether this run meets them. Missing one is no error."""
import statistics
from collections import namedtuple

from http_contests import LARGE, SMALL, TRAIN, UPDATES
from http_settings import Skipped

# `values` gives [(where, figure)] of a report; the worst of them is judged. `limit` is a least or a most.
Target = namedtuple("Target", "sense limit unit text values")
TRAIN_NUMBERS = TRAIN.rows * TRAIN.features
FAST_DISK_MS = 1.0


def row_of(report, workload, connections, server):
    for row in report["results"]:
        if (row["workload"], row["connections"], row["server"]) == (workload.name, connections, server):
            if "skipped" in row:
                raise Skipped(row["skipped"])
            return row
    raise Skipped("not measured in this run")


def beside(report, row, server):
    """The row of another contender of the same contest."""
    for other in report["results"]:
        if all(other[key] == row[key] for key in ("contest", "connections")) and other["server"] == server:
            if "skipped" in other:
                raise Skipped(other["skipped"])
            return other
    raise Skipped(f"there was no {server} beside it")


def paired(row, other, figure):
    """Median over the rounds."""
    return statistics.median(figure(a, b) for a, b in zip(row["rounds"], other["rounds"]))


def over(key):
    return lambda a, b: a[key] / b[key]


def ratio(workload, connections, server, other, key="requests_per_s"):
    """One value for each number of connections."""
    def values(report):
        rows = [row_of(report, workload, count, server) for count in connections]
        return [(f"{row['connections']} connections", paired(row, beside(report, row, other), over(key)))
                for row in rows]
    return values


def json_ns_per_number(report):
    rows = [row_of(report, TRAIN, count, "json") for count in (1, 8)]
    return [(f"{row['connections']} connections",
             paired(row, beside(report, row, "base64"), lambda a, b: (a["cpu_us"] - b["cpu_us"]) * 1e3 / TRAIN_NUMBERS))
            for row in rows]


def update_rate(report):
    if report["facts"]["fdatasync_ms"] >= FAST_DISK_MS:
        raise Skipped(f"fdatasync takes {report['facts']['fdatasync_ms']:.2f} ms here")
    return [("", row_of(report, UPDATES, 32, "json")["requests_per_s"])]


def memory_of(binary):
    def values(report):
        rows = [row for row in report["memory"] if row.get("binary") == binary]
        if not rows:
            raise Skipped("not measured in this run")
        return [(f"{row['call']}, {row['title']}", row["multiple"]) for row in rows]
    return values


def starvation_row(report, title, probe):
    rows = [row for row in report["starvation"] if (row["beside"], row["probe"]) == (title, probe)]
    if not rows:
        raise Skipped("not measured in this run")
    return rows[0]


def small_p99(report):
    return [("", starvation_row(report, "64 MB calls, a core left free", "inference 1x8")["p99_ms"])]


def storm_ratio(report):
    found = []
    for probe in ("inference 1x8", "train-forward 4x8"):
        one, spread = (starvation_row(report, title, probe)
                       for title in ("storm on one layer", "storm over 32 layers"))
        found.append((probe, one["p99_ms"] / spread["p99_ms"]))
    return found


LEAST, MOST = "least", "most"
SMALL_JSON = "inference 1x8 by JSON, 32 connections: "
TRAIN_JSON = "train-forward 256x1024 by JSON: "
LARGE_BY = "inference of 16 MiB by "
UPDATE_JSON = "durable train-forward, 32 connections, 32 layers: "
TARGETS = (
    Target(LEAST, 0.85, "x", SMALL_JSON + "requests/s of the bare server's", ratio(SMALL, (32,), "json", "constant")),
    Target(MOST, 2, "x", SMALL_JSON + "p99 of the bare server's", ratio(SMALL, (32,), "json", "constant", "p99_us")),
    Target(LEAST, 60, "x", SMALL_JSON + "requests/s of FastAPI's", ratio(SMALL, (32,), "json", "fastapi")),
    Target(LEAST, 60, "x", SMALL_JSON + "the same, typed", ratio(SMALL, (32,), "json", "fastapi-typed")),
    Target(LEAST, 25, "x", TRAIN_JSON + "requests/s of FastAPI's", ratio(TRAIN, (1, 8), "json", "fastapi")),
    Target(LEAST, 25, "x", TRAIN_JSON + "the same, typed", ratio(TRAIN, (1, 8), "json", "fastapi-typed")),
    Target(MOST, 65, " ns", TRAIN_JSON + "CPU time for a number of x and its y, beyond base64", json_ns_per_number),
    Target(LEAST, 0.8, "x", LARGE_BY + "npy: requests/s of the echo", ratio(LARGE, (1, 4), "npy", "echo")),
    Target(LEAST, 0.8, "x", LARGE_BY + "OIP binary: requests/s of the echo", ratio(LARGE, (1, 4), "oip", "echo")),
    Target(LEAST, 0.6, "x", UPDATE_JSON + "of SQLite's rows/s", ratio(UPDATES, (32,), "json", "sqlite")),
    Target(LEAST, 3000, "/s", UPDATE_JSON + "where fdatasync takes less than 1 ms", update_rate),
    Target(MOST, 1.2, "x", "memory of a call by JSON or base64, of body, tensors and reply", memory_of(False)),
    Target(MOST, 2.2, "x", "memory of a call by a binary form, of the body", memory_of(True)),
    Target(MOST, 10, " ms", "p99 of inference 1x8 beside 64 MB calls, a core left free", small_p99),
    Target(MOST, 2, "x", "p99 on another layer: storm on one layer / over 32 layers", storm_ratio),
)


def verdict(target, report):
    line = {"target": target.text, "sense": target.sense, "limit": target.limit, "unit": target.unit}
    try:
        values = target.values(report)
    except Skipped as why:
        return {**line, "verdict": "skipped", "why": str(why)}
    least = target.sense == LEAST
    where, worst = (min if least else max)(values, key=lambda value: value[1])
    met = worst >= target.limit if least else worst <= target.limit
    return {**line, "verdict": "met" if met else "MISSED", "figure": worst, "where": where,
            "figures": [{"where": w, "figure": v} for w, v in values]}


def judge(report):
    return [verdict(target, report) for target in TARGETS]
