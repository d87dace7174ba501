# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 over one kept-alive connection per thread, and what to do when the server has closed it."""

import http.client
import math
import os
import re
import select
import socket
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Mapping, Optional
from urllib.parse import urlsplit

from .errors import TransportError


# A body larger than this is announced first (Expect: 100-continue), so that a server that refuses it can say why: the
# reply to a body that is half sent is lost with the connection. A server that does not answer is not waited for longer.
EXPECT_ABOVE = 1 << 20
EXPECT_SECONDS = 1.0
PEEK_SECONDS = 0.01
CONTINUE = b"HTTP/1.1 100"

# RFC 9110, section 5.5.
_FIELD_VALUE = re.compile("[\t\x20-\x7e\x80-\xff]*")


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    content_type: str
    etag: Optional[str]
    retry_after: Optional[str]


class ConnectionPerThread:
    """Any number of threads may use one at the same time; each has its own socket. A forked child opens new ones.

    A server closes a connection that was idle for long, and the client sees it only when it uses it again. Before each
    call the socket is looked at, and opened anew where the server has closed it: nothing was sent on it, so this is
    safe for every method. Where the close crosses the request on the wire, a GET is repeated once on a new connection;
    any other method is not, because it may have been applied: that is a TransportError with `sent` True.
    """

    def __init__(self, base_url: str, timeout: Optional[float]) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"not the URL of a server: {base_url!r}")
        self._secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port
        self._prefix = parts.path.rstrip("/")
        self._timeout = timeout
        self._local = threading.local()
        self._open: "weakref.WeakSet[http.client.HTTPConnection]" = weakref.WeakSet()
        self._lock = threading.Lock()  # guards _open

    def close(self) -> None:
        """Closes the connections of all threads. A later call opens a new one."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            connection.close()

    def exchange(self, method: str, path: str, body: Optional[bytes], headers: Mapping[str, str]) -> Reply:
        for name, value in headers.items():
            if not _FIELD_VALUE.fullmatch(value):
                raise ValueError(f"{name} cannot be {value!r}: a header value is one line of ISO 8859-1")
        connection = self._connection()
        if connection.sock is not None and _closed_by_peer(connection):
            connection.close()
        reused = connection.sock is not None
        try:
            return self._try(connection, method, path, body, headers)
        except TransportError as error:
            stale = reused and isinstance(error.__cause__, (ConnectionResetError, BrokenPipeError))
            if method != "GET" or not stale:
                raise
        return self._try(connection, method, path, body, headers)

    def _connection(self) -> http.client.HTTPConnection:
        connection: Optional[http.client.HTTPConnection] = getattr(self._local, "connection", None)
        if connection is None or self._local.pid != os.getpid():
            kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
            connection = kind(self._host, self._port, timeout=self._timeout)
            self._local.connection, self._local.pid = connection, os.getpid()
            with self._lock:
                self._open.add(connection)
        return connection

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        body: Optional[bytes],
        headers: Mapping[str, str],
    ) -> None:
        if self._secure or body is None or len(body) <= EXPECT_ABOVE:
            connection.request(method, target, body=body, headers=dict(headers))
            return
        connection.putrequest(method, target)
        for name, value in {**headers, "Content-Length": str(len(body)), "Expect": "100-continue"}.items():
            connection.putheader(name, value)
        connection.endheaders()
        if not _is_refused(connection):
            connection.send(body)

    def _try(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Optional[bytes],
        headers: Mapping[str, str],
    ) -> Reply:
        sent = False
        try:
            if connection.sock is None:
                connection.connect()
            sent = True
            try:
                self._send(connection, method, self._prefix + path, body, headers)
            except (BrokenPipeError, ConnectionResetError):
                # The server may have refused the body half-way: its reply is then there to read, else reading fails.
                pass
            response = connection.getresponse()
            return Reply(
                status=response.status,
                body=response.read(),
                content_type=response.getheader("Content-Type", ""),
                etag=response.getheader("ETag"),
                retry_after=response.getheader("Retry-After"),
            )
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise TransportError(f"{method} {path}: {error or type(error).__name__}", sent) from error
        except BaseException:
            # KeyboardInterrupt and the like, half-way: the rest of the reply, and what was built of the request (which
            # close leaves in the object), must not meet the next call.
            connection.close()
            self._local.connection = None
            raise


def _is_refused(connection: http.client.HTTPConnection) -> bool:
    """Waits for the answer to Expect: True where it is a reply already, so that the body need not be sent."""
    sock = connection.sock
    deadline = time.monotonic() + EXPECT_SECONDS
    while (left := deadline - time.monotonic()) > 0 and _readable(sock, left):
        start = sock.recv(len(CONTINUE), socket.MSG_PEEK)
        if len(start) == len(CONTINUE) or not CONTINUE.startswith(start) or not start:
            return start != CONTINUE
        time.sleep(PEEK_SECONDS)  # the rest is on its way, and what is there would be readable at once again
    return False


def _closed_by_peer(connection: http.client.HTTPConnection) -> bool:
    """True where an idle connection has something to read: its end, or bytes that nobody asked for."""
    return _readable(connection.sock, 0)


def _readable(sock: socket.socket, seconds: float) -> bool:
    """Waits until there is something to read. poll, because select cannot take a descriptor above 1023."""
    if not hasattr(select, "poll"):
        return bool(select.select([sock], [], [], seconds)[0])
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(math.ceil(seconds * 1000)))
