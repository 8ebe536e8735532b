"""JSON responses in Datasette's format: {"ok": true, …}, or {"ok": false, "error", "errors", "status"}.

Every response of the HTTP API is made here, so that each has the CORS headers, and each error its Retry-After.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from datasette_vision.errors import Busy, StorageFailed, VisionError

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request, Response

logger = logging.getLogger(__name__)

Handler = Callable[["Datasette", "Request"], Awaitable["Response"]]

BUSY_RETRY_S = 1.0


class RequestError(Exception):
    """A request that fails for a reason specific to HTTP. Raised by handlers."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


def too_large(message: str) -> RequestError:
    """Return the 413 for a request that is too large."""
    return RequestError(413, message)


def too_many(message: str, retry_after_s: float) -> RequestError:
    """Return the 429 for a client that exceeds its rate."""
    return RequestError(429, message, {"retry-after": str(max(1, math.ceil(retry_after_s)))})


def answer(datasette: Datasette, body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response. A `body` of type str is JSON already."""
    text = body if isinstance(body, str) else dumps(body)
    return respond(datasette, text, "application/json; charset=utf-8", status, headers)


def respond(
    datasette: Datasette, body: str, content_type: str, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response of any kind, with the CORS headers of `datasette --cors`."""
    from datasette.utils.asgi import Response

    # A str would be held in memory beside its bytes while the response is sent.
    return Response(body.encode(), status, {**cors_headers(datasette), **(headers or {})}, content_type)


def dumps(value: object) -> str:
    """Write JSON without white space. NaN and infinity are errors: JSON has none."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def error_body(messages: list[str], status: int) -> dict[str, Any]:
    """Return the body of an error, in the format of Datasette 1.0, which clients of 0.65 understand too."""
    return {"ok": False, "error": "; ".join(messages), "errors": messages, "status": status}


def status_of(error: Exception) -> tuple[int, dict[str, str]]:
    """Return the HTTP status of an error and its headers."""
    if isinstance(error, RequestError):
        return error.status, error.headers
    if isinstance(error, Busy):
        return error.http_status, {"retry-after": str(math.ceil(BUSY_RETRY_S))}
    if isinstance(error, VisionError):
        return error.http_status, {}
    if _is_unreadable(error):
        return StorageFailed.http_status, {}
    status = getattr(error, "status", None)  # Datasette's NotFound, Forbidden and BadRequest
    return (status if isinstance(status, int) else 500), {}


def message_of(error: Exception) -> str:
    """Return the message of an error for the client. Unexpected errors go to the log instead."""
    if isinstance(error, (VisionError, RequestError)) or status_of(error)[0] != 500:
        return f"the database cannot be read: {error}" if _is_unreadable(error) else str(error)
    return "internal error; see the server's log"


def _is_unreadable(error: Exception) -> bool:
    """Say whether SQLite raised an error because a file is damaged, not a database, or missing."""
    from datasette.utils.sqlite import sqlite3 as datasette_sqlite3

    if type(error) in (sqlite3.DatabaseError, datasette_sqlite3.DatabaseError):
        return True  # SQLITE_NOTADB and SQLITE_CORRUPT; the rest have classes below this one
    is_operational = isinstance(error, (sqlite3.OperationalError, datasette_sqlite3.OperationalError))
    return is_operational and str(error) in ("disk I/O error", "unable to open database file")


def error_answer(datasette: Datasette, error: Exception) -> Response:
    """Return the response for an error."""
    status, headers = status_of(error)
    return answer(datasette, error_body([message_of(error)], status), status, headers)


def page_error(datasette: Datasette, error: Exception) -> Response:
    """Return the response for an error of a page, as text. Raises errors for which Datasette has a page."""
    if not isinstance(error, (VisionError, RequestError)):
        raise error
    status, headers = status_of(error)
    return respond(datasette, message_of(error), "text/plain; charset=utf-8", status, headers)


def guarded(handler: Handler, refused: Callable[[Datasette, Exception], Response] = error_answer) -> Handler:
    """Wrap a handler so that `refused` turns any exception into a JSON response. Unexpected ones are logged."""

    @functools.wraps(handler)
    async def run(datasette: Datasette, request: Request) -> Response:
        try:
            return await handler(datasette, request)
        except Exception as error:
            if status_of(error)[0] == 500 or _is_unreadable(error):
                logger.error("%s %s failed", request.method, request.path, exc_info=error)
            return refused(datasette, error)

    return run


def cors_headers(datasette: Datasette) -> dict[str, str]:
    """Return the headers that `datasette --cors` adds, or none without it.

    They are those of Datasette 1.0, and allow any header: 0.65's do not allow JSON from another origin, and OpenAI's
    clients send a dozen headers of their own.
    """
    if not datasette.cors:
        return {}
    return {
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, *",
        "Access-Control-Expose-Headers": "Link, Retry-After",
        "Access-Control-Allow-Methods": "GET, POST, HEAD, OPTIONS",
        "Access-Control-Max-Age": "3600",
    }
