# SPDX-License-Identifier: Apache-2.0
"""What the tests of other people's programs share: the harness of ../e2e, and how to do without what is not there."""
import importlib
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "e2e"))
import files  # noqa: E402,F401  pylint: disable=wrong-import-position,unused-import
import harness  # noqa: E402  pylint: disable=wrong-import-position
import wire  # noqa: E402,F401  pylint: disable=wrong-import-position,unused-import


def require(*names):
    """The modules, or a skipped suite that says which cannot be imported and why."""
    try:
        modules = [importlib.import_module(name) for name in names]
    except Exception as error:  # pylint: disable=broad-except  # a broken library raises what it likes
        absent(f"{' and '.join(names)} cannot be imported: {error}")
    return modules[0] if len(modules) == 1 else modules


def absent(reason):
    """Ends the suite as skipped."""
    print(f"1..0 # SKIP {' '.join(str(reason).split())}", flush=True)
    sys.exit(0)


def create(name, **config):
    """A client and the path of a new layer on the shared server."""
    client = harness.shared().api()
    client.delete("/v1/layers/" + name)
    return client, client.layer(name, **config)
