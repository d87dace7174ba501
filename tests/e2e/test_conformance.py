# SPDX-License-Identifier: Apache-2.0
"""All conformance cases on servers with one and with four kernel threads; the replies have equal bits."""
import os
import sys

import harness
import wire

sys.path.insert(0, os.path.join(harness.ROOT, "tests", "conformance"))
import run  # noqa: E402  pylint: disable=wrong-import-position

CASES = run.load()


def replies(threads, case):
    server = harness.shared("--threads", str(threads))
    one = run.Run(run.caller(server.host, server.port, harness.seconds(60)), case)
    one.run()
    return one.replies


@harness.rows([(case["name"], case) for case in CASES])
def test_case(case):
    assert [wire.bits(r) for r in replies(1, case)] == [wire.bits(r) for r in replies(4, case)], "bits differ"


def test_there_are_35_cases():
    assert len(CASES) == 35, len(CASES)


def test_threads_are_what_was_asked_for():
    for threads in (1, 4):
        assert harness.shared("--threads", str(threads)).api().ok("GET", "/version")["threads"] == threads


harness.main()
