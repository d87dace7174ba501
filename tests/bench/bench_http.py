#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""normd over HTTP, side by side with what bounds it and with what one would write instead, in one run.

Run by `make bench-http`; README.md says what the columns mean. Exit status 1: something broke; slowness is no error.
"""
import itertools
import json
import os
import platform
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from http_contests import chosen, run_contest
from http_memory import run_memory
from http_settings import DURATION, NORMD, ONLY, RESULTS, ROUNDS, Broken
from http_starvation import run_starvation
from http_tables import CONTEST_COLUMNS, MEMORY_COLUMNS, STARVATION_COLUMNS, print_facts, print_table, print_targets
from http_targets import judge

CONNECTIONS_MOST = 1000


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


class OtherPrograms:
    """How many processors were lost to programs that are not of the bench. Its own are all waited for before end()."""

    def __init__(self):
        self.began, self.busy, self.own = time.monotonic(), self._busy(), sum(os.times()[:4])

    @staticmethod
    def _busy():
        """user, nice, system and stolen time, in seconds; interrupts serve the loopback of our own."""
        with open("/proc/stat", encoding="ascii") as f:
            ticks = list(map(int, f.readline().split()[1:]))
        return (ticks[0] + ticks[1] + ticks[2] + ticks[7]) / os.sysconf("SC_CLK_TCK")

    def processors(self):
        others = self._busy() - self.busy - (sum(os.times()[:4]) - self.own)
        return max(0.0, others / (time.monotonic() - self.began))


def allow_connections():
    """Twice as many files as connections, for the bench and what it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * CONNECTIONS_MOST + 100
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise Broken(f"{CONNECTIONS_MOST} connections need {wanted} open files, {hard} are allowed (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def facts_of(folder):
    done = subprocess.run([NORMD, "--version"], capture_output=True, text=True, check=False)
    return {"cpu": cpu_name(), "processors": len(os.sched_getaffinity(0)), "kernel": platform.release(),
            "normd": done.stdout.strip(), "load": os.getloadavg()[0], "fdatasync_ms": sync_ms(folder), "rounds": ROUNDS,
            "duration_s": DURATION, "only": ONLY.pattern}


def bench(folder):
    facts = facts_of(folder)
    print_facts(facts)
    others = OtherPrograms()
    contests = (run_contest(c, os.path.join(folder, str(number))) for number, c in enumerate(chosen()))
    report = {
        "facts": facts,
        "results": print_table(CONTEST_COLUMNS, itertools.chain.from_iterable(contests)),
        "starvation": print_table(STARVATION_COLUMNS, run_starvation(folder)),
        "memory": print_table(MEMORY_COLUMNS, run_memory(folder)),
    }
    report["targets"] = judge(report)
    print_targets(report["targets"])
    facts["other_programs"] = others.processors()
    facts["load_at_end"] = os.getloadavg()[0]
    print(f"other programs took {facts['other_programs']:.2f} processors meanwhile; load {facts['load_at_end']:.1f} "
          "at the end")
    return report


def main():
    if shutil.which("wrk") is None:
        raise Broken("wrk is missing: deploy/deps bench")
    allow_connections()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench-http: ended by SIGTERM"))  # the servers are stopped then
    os.makedirs(RESULTS, exist_ok=True)
    # Beside the build and not under /tmp, which may be memory: updates wait for a disk.
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        report = bench(folder)
    path = os.path.join(RESULTS, "http.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(report, f, indent=1)
    print(f"all figures: {os.path.relpath(path)}")


if __name__ == "__main__":
    try:
        main()
    except Broken as error:
        sys.exit(f"bench-http: {error}")
