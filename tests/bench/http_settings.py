# SPDX-License-Identifier: Apache-2.0
"""What the environment says; README.md explains it."""
import os
import re

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.abspath(os.environ.get("BUILD") or os.path.join(ROOT, "build"))
RESULTS = os.path.join(BUILD, "bench")
PROGRAMS = os.path.join(BUILD, "tests", "bench")
NORMD = os.path.abspath(os.environ.get("NORMD_BIN") or os.path.join(BUILD, "normd"))
VENV = os.path.join(RESULTS, "venv")
# Many short rounds rather than few long ones: what else the machine does then falls on all contenders.
ROUNDS = int(os.environ.get("ROUNDS") or 7)
DURATION = int(os.environ.get("DURATION") or 1)
ONLY = re.compile(os.environ.get("ONLY") or "")


class Broken(Exception):
    """Something other than speed is wrong."""


class Skipped(Exception):
    """Cannot be measured here; says why."""
