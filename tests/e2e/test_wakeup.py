#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Requests that become ready at the same moment are all served: libmicrohttpd alone sleeps on exactly 128 of them."""
import os
import select
import signal
import time

import harness
import wire

REQUEST = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"


def one_io_thread():
    """A server that sees one processor, so that all its connections are with one I/O thread."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        return harness.Server("--durability", "none")
    finally:
        os.sched_setaffinity(0, before)


def answered(sockets, seconds):
    waiting, end = set(sockets), time.monotonic() + seconds
    while waiting and time.monotonic() < end:
        for s in select.select(list(waiting), [], [], 0.1)[0]:
            assert s.recv(4096).startswith(b"HTTP/1.1 200")
            waiting.discard(s)
    return len(sockets) - len(waiting)


@harness.rows([("127", 127), ("128", 128), ("129", 129), ("256", 256)])
def test_ready_at_once(count):
    with one_io_thread() as server:
        sockets = [wire.connect(server, harness.seconds(30)) for _ in range(count)]
        for s in sockets:
            s.sendall(REQUEST)
        assert answered(sockets, harness.seconds(20)) == count
        os.kill(server.process.pid, signal.SIGSTOP)
        for s in sockets:
            s.sendall(REQUEST)
        os.kill(server.process.pid, signal.SIGCONT)
        got = answered(sockets, harness.seconds(5))
        for s in sockets:
            s.close()
        assert got == count, f"{got} of {count} were answered"


if __name__ == "__main__":
    harness.main()
