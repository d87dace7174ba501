#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs test suites one after another and adds up what they report in TAP. Python 3.9, standard library only.

usage: run.py [--limit SECONDS] [--reports DIR] SUITE...

A suite is a program, or a Python script, that prints `ok N - name`, `not ok N - name`, `ok N - name # SKIP reason` and a
plan `1..N`, on stdout or stderr. That a suite crashed, ran longer than the limit, ended with a status other than its
results tell, or reported other than its plan says, is one more failure. What is still running of it is then killed.

DIR takes the reports of sanitizers, also those of servers that a test started and killed; each is one more failure.
"""
import argparse
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time

RESULT = re.compile(r"^(not ok|ok)\b[ \t]*\d*(?:[ \t]*-)?[ \t]*(.*)$")
SKIP = re.compile(r"^(.*?)[ \t]*#[ \t]*skip\S*[ \t]*(.*)$", re.IGNORECASE)
PLAN = re.compile(r"^1\.\.(\d+)(?:[ \t]*#[ \t]*skip\S*[ \t]*(.*))?[ \t]*$", re.IGNORECASE)


class Suite:
    """The results of one suite. `problems` are failures of the suite as a whole."""

    def __init__(self, command):
        self.command = command
        self.name = os.path.relpath(command)
        self.passed = self.failed = 0
        self.skips = []  # (name, reason)
        self.planned = None
        self.problems = []
        self.output = ()  # stdout, stderr
        self.seconds = 0.0

    def read(self, text):
        """Counts the results in one stream. A comment before a skip that gives no reason is the reason (cmocka)."""
        comment = ""
        for line in text.splitlines():
            plan = PLAN.match(line)
            if plan:
                self.planned = (self.planned or 0) + int(plan.group(1))
                if plan.group(1) == "0" and plan.group(2) is not None:
                    self.skips.append((self.name, plan.group(2)))
                continue
            result = RESULT.match(line)
            if not result:
                comment = line.lstrip("# ") if line.startswith("#") else ""
                continue
            skip = SKIP.match(result.group(2))
            if skip and not skip.group(1):  # cmocka writes `not ok 3 # SKIP name`
                self.skips.append((skip.group(2), comment or "no reason given"))
            elif skip:
                self.skips.append((skip.group(1), skip.group(2) or comment or "no reason given"))
            elif result.group(1) == "ok":
                self.passed += 1
            else:
                self.failed += 1
            comment = ""

    def judge(self, status, limit):
        """Adds what the exit status and the plan say beyond the single results. `status` None is a time-out."""
        reported = self.passed + self.failed + len(self.skips)
        if status is None:
            self.problems.append(f"still running after {limit:g} s: killed")
        elif status < 0:
            self.problems.append(f"killed by {signal.Signals(-status).name}")
        elif status != 0 and not self.failed:
            self.problems.append(f"exit status {status}, though no test reported a failure")
        if self.planned is None:
            self.problems.append("no plan (1..N)")
        elif self.planned not in (reported, 0) or (self.planned == 0 and reported != len(self.skips)):
            self.problems.append(f"{self.planned} tests planned, {reported} reported")
        elif reported == 0:
            self.problems.append("ran nothing")

    def failures(self):
        return self.failed + len(self.problems)


def run(command, limit):
    """Runs one suite in a process group of its own and returns its Suite."""
    suite = Suite(command)
    emulator = shlex.split(os.environ.get("NORMD_TEST_EMULATOR", ""))
    argv = [sys.executable, command] if command.endswith(".py") else [*emulator, os.path.abspath(command)]
    begin = time.monotonic()
    status = None
    # Files, not pipes: a server that outlives its test would hold a pipe open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
        except OSError as e:
            suite.problems.append(f"could not be started: {e.strerror}")
            return suite
        try:
            status = child.wait(limit)
        except subprocess.TimeoutExpired:
            pass
        finally:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()
        streams = []
        for stream in (out, err):
            stream.seek(0)
            streams.append(stream.read().decode("utf-8", "replace"))
    suite.output = tuple(streams)
    suite.seconds = time.monotonic() - begin
    for stream in streams:
        suite.read(stream)
    suite.judge(status, limit)
    return suite


def take_reports(suite, folder):
    """Moves what sanitizers wrote during the suite into its problems."""
    for path in sorted(folder.glob("san.*")) if folder else []:
        suite.problems.append(path.read_text(errors="replace").rstrip())
        path.unlink()


def show(suite):
    counts = f"{suite.passed} passed, {suite.failures()} failed"
    if suite.skips:
        counts += f", {len(suite.skips)} skipped"
    print(f"{'FAIL' if suite.failures() else 'ok  '} {suite.name}: {counts} ({suite.seconds:.1f} s)")
    for name, reason in suite.skips:
        print(f"     skipped: {name}: {reason}")
    if suite.failures():
        for problem in suite.problems:
            print("     " + problem.replace("\n", "\n     "))
        for stream in suite.output:
            for line in stream.splitlines():
                if not line.startswith("ok "):
                    print("     | " + line)
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(description="Runs test suites that print TAP and adds up their results.")
    parser.add_argument("--limit", type=float, default=600, metavar="SECONDS", help="for each suite (default 600)")
    parser.add_argument("--reports", type=pathlib.Path, metavar="DIR", help="where sanitizers write")
    parser.add_argument("suites", nargs="*", metavar="SUITE")
    args = parser.parse_args()

    os.environ["CMOCKA_MESSAGE_OUTPUT"] = "TAP"
    os.environ["PYTHONUNBUFFERED"] = "1"
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    if args.reports:
        args.reports.mkdir(parents=True, exist_ok=True)
        for old in args.reports.glob("san.*"):
            old.unlink()
        log = f"log_path={args.reports.resolve()}/san"
        for name, more in (("ASAN", "detect_stack_use_after_return=1"), ("UBSAN", "print_stacktrace=1"),
                           ("TSAN", "second_deadlock_stack=1"), ("LSAN", "")):
            variable = name + "_OPTIONS"
            os.environ[variable] = ":".join(filter(None, (os.environ.get(variable), more, log)))

    suites = []
    for command in args.suites:
        suite = run(command, args.limit)
        take_reports(suite, args.reports)
        show(suite)
        suites.append(suite)

    passed, failed = sum(s.passed for s in suites), sum(s.failures() for s in suites)
    skipped = sum(len(s.skips) for s in suites)
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed or passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
