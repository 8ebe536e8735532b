"""Who may post to the plugin's addresses from a browser: the plugin's own pages, and other sites only as anonymous
clients.

A foreign page could abuse a visitor's cookies and the passwords that a browser sends by itself. So a POST with these
must come from our own origin, according to Sec-Fetch-Site and Origin, which a page cannot forge
(https://words.filippo.io/csrf/). Clients that are not browsers send neither header, and need no protection.

Datasette 1.0 applies this rule to everything, and strictly: it also refuses requests from another origin without
cookies, unless they have a bearer token. With --cors the operator lets other origins read our responses, and our API
changes nothing on the server. So another site's request to the API is passed on without the headers that identify a
browser.

Datasette 0.65 requires a token in each form instead. asgi-csrf looks for it with a parser that newer releases of
python-multipart do not have, so any upload with a cookie would fail with an error 500. For our addresses it is told to
skip this, and the rule above is applied here.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from datasette_vision.plugin.http.responses import error_body
from datasette_vision.plugin.http.routes import POST, ROUTE_PREFIX, Route
from datasette_vision.plugin.server.compatibility import IS_1_0

if TYPE_CHECKING:
    from datasette.app import Datasette

Application = Callable[[Any, Any, Any], Awaitable[None]]

BROWSER = (b"origin", b"sec-fetch-site")
REFUSAL = "this request comes with cookies or a password, and from a page of another origin"


def is_ours(datasette: Datasette, scope: Mapping[str, Any]) -> bool:
    """Say whether a request posts to an address of the plugin."""
    return scope["type"] == "http" and scope["method"] == POST and is_own_path(datasette, scope)


def is_own_path(datasette: Datasette, scope: Mapping[str, Any]) -> bool:
    """Say whether an HTTP request is to an address of the plugin."""
    path = _path(datasette, scope)
    return path == ROUTE_PREFIX or path.startswith(ROUTE_PREFIX + "/")


def cross_origin_wrapper(datasette: Datasette, routes: Sequence[Route]) -> Callable[[Application], Application]:
    """Return the wrapper for asgi_wrapper(). `routes` are those that other origins may post to, with --cors."""
    patterns = [re.compile(route.pattern) for route in routes if POST in route.methods]

    def wrap(application: Application) -> Application:
        async def run(scope: Any, receive: Any, send: Any) -> None:
            if is_ours(datasette, scope):
                headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
                credentials = _has_credentials(headers)
                if credentials and not IS_1_0 and is_foreign(headers):
                    from datasette.utils.asgi import Response

                    await Response.json(error_body([REFUSAL], 403), status=403).asgi_send(send)
                    return
                if not credentials and IS_1_0 and datasette.cors:
                    path = _path(datasette, scope)
                    if any(pattern.match(path) for pattern in patterns):
                        kept = [pair for pair in scope["headers"] if pair[0].lower() not in BROWSER]
                        scope = {**scope, "headers": kept}
            await application(scope, receive, send)

        return run

    return wrap


def is_foreign(headers: Mapping[bytes, str]) -> bool:
    """Say whether a request comes from a page of another origin, judging by its headers (names in lower case)."""
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is not None:
        return site not in ("same-origin", "none")
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc.lower() != headers.get(b"host", "").lower()
    except ValueError:
        return True


def _has_credentials(headers: Mapping[bytes, str]) -> bool:
    """Say whether a request carries credentials that a browser sends by itself."""
    authorization = headers.get(b"authorization")
    return b"cookie" in headers or (authorization is not None and not authorization.lower().startswith("bearer "))


def _path(datasette: Datasette, scope: Mapping[str, Any]) -> str:
    """Return the path below the base URL, not decoded, so that it is the same as in the router."""
    raw = scope.get("raw_path")
    path = raw.decode("latin-1").partition("?")[0] if raw else str(scope["path"])
    base = datasette.setting("base_url")
    return "/" + path[len(base) :] if path.startswith(base) else path
