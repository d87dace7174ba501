# SPDX-License-Identifier: Apache-2.0
"""Node's own fetch against the server: starts one, and has fetch.mjs print its results."""
import os
import shutil
import subprocess
import sys

import foreign
from foreign import harness

OLDEST = 18  # the first with fetch


def node():
    """The program, where it is new enough."""
    path = shutil.which("node")
    if path is None:
        foreign.absent("node is not installed")
    done = subprocess.run([path, "--version"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
    version = done.stdout.decode().strip()
    if int(version.lstrip("v").split(".")[0]) < OLDEST:
        foreign.absent(f"node {version} has no fetch; {OLDEST} has")
    return path


def main():
    program = node()
    with harness.Server("--durability", "none") as server:
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fetch.mjs")
        done = subprocess.run([program, "--no-warnings", script, f"http://{server.host}:{server.port}"],
                              stdin=subprocess.DEVNULL, timeout=harness.seconds(120), check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
