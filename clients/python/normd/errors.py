# SPDX-License-Identifier: Apache-2.0
"""Exceptions: one class per status that a caller may want to tell apart, all of them NormdError."""

import json
from typing import Any, Dict, Optional, Type


class NormdError(Exception):
    """A call that was refused or failed. The server changed nothing, except that with TransportError and StoreFailed
    this is not known (see there).

    status   the HTTP status; 0 where there was no reply
    code     the machine-readable reason, as `shape_mismatch`; empty where the reply was not problem+json
    detail   one sentence for people
    pointer  JSON pointer (RFC 6901) to the offending part of the body, or None
    """

    def __init__(self, status: int, code: str, detail: str, pointer: Optional[str] = None) -> None:
        super().__init__(status, code, detail, pointer)
        self.status = status
        self.code = code
        self.detail = detail
        self.pointer = pointer

    def __str__(self) -> str:
        where = f" (at {self.pointer!r})" if self.pointer is not None else ""
        return f"{self.status} {self.code}: {self.detail}{where}"


class TransportError(NormdError):
    """No whole reply arrived: connection refused or lost, or the time-out passed.

    `sent` is False where the call cannot have reached the server, so that repeating it is safe. Where it is True, a
    call that changes state may or may not have been applied: compare the layer's version before repeating it.
    """

    def __init__(self, detail: str, sent: bool) -> None:
        super().__init__(0, "transport", detail)
        self.sent = sent

    def __reduce__(self) -> Any:
        return (type(self), (self.detail, self.sent))


class BadRequest(NormdError):
    """400: malformed JSON, an unknown or duplicate field, a bad name, header or query parameter."""


class NotFound(NormdError):
    """404: no such layer."""


class Conflict(NormdError):
    """409: the layer exists with another configuration."""


class CacheGone(NormdError):
    """410: the cached pass was evicted, has expired or was lost in a restart. Call backward with x instead."""


class PreconditionFailed(NormdError):
    """412: if_match does not name the layer's present state."""


class TooLarge(NormdError):
    """413: the body is larger than the server takes."""


class Invalid(NormdError):
    """422: well-formed but wrong: a type, range or shape, a non-finite value, one value per channel."""


class Unsupported(NormdError):
    """501: a feature that this build of the server does not have."""


class Unavailable(NormdError):
    """429 or 503: busy, out of its memory budget or shutting down. `retry_after` is in seconds, or None."""

    retry_after: Optional[float] = None


class StoreFailed(NormdError):
    """503 store_failed: the store failed, and the server ends. Not an Unavailable, for it is not safe to repeat: the
    change may or may not be kept. Compare the layer's version once the server runs again.
    """


class DeadlineExceeded(NormdError):
    """504: the call took longer than the server's request time-out."""


class StoreFull(NormdError):
    """507: no space is left in the store; reads go on."""


_CLASSES: Dict[int, Type[NormdError]] = {
    400: BadRequest,
    404: NotFound,
    409: Conflict,
    410: CacheGone,
    412: PreconditionFailed,
    413: TooLarge,
    422: Invalid,
    429: Unavailable,
    501: Unsupported,
    503: Unavailable,
    504: DeadlineExceeded,
    507: StoreFull,
}


def error_of(status: int, content_type: str, body: bytes, retry_after: Optional[str]) -> NormdError:
    """The exception for a reply that is not 2xx."""
    problem: Dict[str, Any] = {}
    if content_type.startswith("application/problem+json"):
        try:
            problem = json.loads(body)
        except ValueError:
            pass
    detail = problem.get("detail") or problem.get("title") or body[:200].decode("utf-8", "replace").strip()
    code = problem.get("code", "")
    kind = StoreFailed if code == "store_failed" else _CLASSES.get(status, NormdError)
    error = kind(status, code, detail, problem.get("pointer"))
    if isinstance(error, Unavailable) and retry_after is not None and retry_after.isdigit():
        error.retry_after = float(retry_after)
    return error
