# SPDX-License-Identifier: Apache-2.0
"""What the end-to-end tests share: a TAP printer, temporary folders, and a running server.

A test is a function test_* of its module, or one row of a function marked with @rows; main() runs them in the order of
the file. NORMD_BIN names the binary (default build/normd). NORMD_TEST_SCALE (default 1) scales the counts of the tests
that repeat things; below 1 it also raises every deadline, because sanitizer builds are slow.
"""
import atexit
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import wire

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.path.abspath(os.environ.get("NORMD_BIN", os.path.join(ROOT, "build", "normd")))
SCALE = float(os.environ.get("NORMD_TEST_SCALE", "1"))
PATIENCE = min(10.0, max(1.0, 1.0 / SCALE))  # factor on deadlines


def scaled(count, least=1):
    """`count` repetitions at scale 1."""
    return max(least, int(count * SCALE))


def seconds(value):
    """A deadline in seconds, longer for slow builds."""
    return value * PATIENCE


class Skip(Exception):
    """Raised by a test that cannot run here; the text says why."""


def skip(reason):
    raise Skip(reason)


def rows(table):
    """Marks a test that runs once per row of `table`: (name, arguments...)."""
    def mark(function):
        function.rows = table
        return function
    return mark


def wait_until(condition, timeout=10.0, what="condition"):
    """Polls until condition() is true and returns its value; fails after the (scaled) timeout."""
    end = time.monotonic() + seconds(timeout)
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {seconds(timeout):.0f} s: {what}"
        time.sleep(0.01)


# ---- temporary folders and left-over processes

_folders = []
_servers = []
_shared = {}


def folder():
    """A new temporary folder, removed at exit."""
    path = tempfile.mkdtemp(prefix="normd-test-")
    _folders.append(path)
    return path


def _clean():
    for server in list(_servers):
        server.kill()
    for path in _folders:
        shutil.rmtree(path, ignore_errors=True)


atexit.register(_clean)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that _clean runs


# ---- the server

def environment(extra=None):
    """The process environment without settings of normd; NORMD_CPU stays."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("NORMD_") or k == "NORMD_CPU"}
    env.update(extra or {})
    return env


def run_binary(*arguments, env=None, timeout=20.0):
    """Runs the binary to its end; returns (exit status, stdout, stderr)."""
    done = subprocess.run([BIN, *arguments], env=environment(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=seconds(timeout), cwd=folder())
    return done.returncode, done.stdout.decode(), done.stderr.decode()


class Server:
    """normd on a port of its own. With `data` the caller keeps the folder, otherwise it is a temporary one.
    `prefix` is a command to start the binary with (it must exec, so that the process id is the server's)."""

    def __init__(self, *flags, data=None, env=None, listen="127.0.0.1:0", prefix=(), start_timeout=20.0):
        self.data = data or folder()
        self.flags = flags
        command = [*prefix, BIN]
        if listen is not None:
            command += ["--listen", listen]
        command += ["--data", self.data, *flags]
        self.stderr_path = os.path.join(folder(), "stderr")
        self.stdout_lines = []
        self._ready = threading.Event()
        started = time.monotonic()
        with open(self.stderr_path, "wb") as err:
            self.process = subprocess.Popen(command, env=environment(env), stdin=subprocess.DEVNULL,
                                            stdout=subprocess.PIPE,
                                            stderr=err, cwd=folder())
        _servers.append(self)
        self.pid = self.process.pid
        self._reader = threading.Thread(target=self._read_stdout, daemon=True)
        self._reader.start()
        self._ready.wait(seconds(start_timeout))
        self.start_seconds = time.monotonic() - started
        found = re.fullmatch(r"normd ready http://(.+):(\d+)", self.stdout_lines[0]) if self.stdout_lines else None
        if not found:
            self.kill()
            raise AssertionError(f"no ready line, stdout {self.stdout_lines!r}, stderr {self.stderr()[-2000:]!r}")
        self.host, self.port = found.group(1), int(found.group(2))

    def _read_stdout(self):
        for line in self.process.stdout:
            self.stdout_lines.append(line.decode().rstrip("\n"))
            self._ready.set()
        self._ready.set()

    def api(self, timeout=60.0):
        """A client with its own keep-alive connection."""
        return wire.Client(self.host, self.port, seconds(timeout))

    def stderr(self):
        with open(self.stderr_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def running(self):
        return self.process.poll() is None

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, timeout=20.0):
        """Waits for the end of the process and returns its exit status."""
        status = self.process.wait(seconds(timeout))
        self._forget()
        return status

    def stop(self, number=None, timeout=20.0):
        """Ends the server the polite way; anything but exit status 0 is a failure."""
        if self.process.poll() is None:
            self.signal(number or signal.SIGTERM)
        status = self.wait(timeout)
        assert status == 0, f"exit status {status}, stderr {self.stderr()[-2000:]!r}"

    def kill(self):
        """SIGKILL."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._forget()

    def _forget(self):
        self._reader.join(5)
        self.process.stdout.close()
        if self in _servers:
            _servers.remove(self)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None and self.process.poll() is None:
            self.stop()
        else:
            self.kill()


def shared(*flags):
    """One server per set of flags for all tests of the file, durability none; main() stops it and checks its exit."""
    if flags not in _shared or not _shared[flags].running():
        _shared[flags] = Server("--durability", "none", *flags)
    return _shared[flags]


# ---- TAP

def _print_result(number, name, error):
    if error is None:
        print(f"ok {number} - {name}", flush=True)
    elif isinstance(error, Skip):
        print(f"ok {number} - {name} # SKIP {error}", flush=True)
    else:
        print(f"not ok {number} - {name}")
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        for line in text.rstrip().split("\n"):
            print(f"# {line[:400]}")
        sys.stdout.flush()


def _run_one(function, arguments):
    try:
        function(*arguments)
    except (Exception, Skip) as error:  # pylint: disable=broad-except
        return error
    return None


def _stop_shared():
    while _shared:
        _, server = _shared.popitem()
        server.stop()


def main():
    """Runs the tests of the calling script; arguments are parts of names to choose by. Exit status 1: one failed."""
    module = sys.modules["__main__"]
    area = os.path.splitext(os.path.basename(module.__file__))[0][len("test_"):]
    tests = []
    for name, function in list(vars(module).items()):
        if name.startswith("test_") and callable(function):
            title = f"{area}: {name[len('test_'):].replace('_', ' ')}"
            for row in getattr(function, "rows", [None]):
                tests.append((title, function, ()) if row is None else (f"{title}: {row[0]}", function, row[1:]))
    chosen = [t for t in tests if all(part in t[0] for part in sys.argv[1:])]
    failed = 0
    for number, (title, function, arguments) in enumerate(chosen, 1):
        error = _run_one(function, arguments)
        failed += error is not None and not isinstance(error, Skip)
        _print_result(number, title.replace("#", "no. "), error)
    total = len(chosen)
    if _shared:
        total += 1
        error = _run_one(_stop_shared, ())
        failed += error is not None
        _print_result(total, f"{area}: shared servers stop with exit status 0", error)
    print(f"1..{total}", flush=True)
    sys.exit(1 if failed or not total else 0)
