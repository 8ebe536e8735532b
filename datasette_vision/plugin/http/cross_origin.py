"""Who may post to the plugin's addresses from a browser: its own pages, and strangers only as nobody in particular.

What a foreign page could abuse are a visitor's cookies and the passwords that a browser sends by itself. So a POST that
carries those has to come from our own origin, as Sec-Fetch-Site and Origin tell, which no page can forge
(https://words.filippo.io/csrf/). Clients that are no browsers send neither, and need no protection.

Datasette 1.0 decides so for everything, and strictly: it refuses what comes from another origin without cookies too,
unless there is a bearer token. With --cors the operator lets other origins read our answers, and asking changes nothing
on the server: so there, a stranger's request to the API is passed on without the headers that tell of a browser.

Datasette 0.65 wants a token in each form instead, which asgi-csrf looks for with a parser that newer releases of
python-multipart no longer have: any upload with a cookie ends there as an error 500. For addresses of ours it is told
to skip that, and the rule above is applied here.
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
    """Say whether an address of HTTP is one of the plugin's."""
    path = _path(datasette, scope)
    return path == ROUTE_PREFIX or path.startswith(ROUTE_PREFIX + "/")


def cross_origin_wrapper(datasette: Datasette, routes: Sequence[Route]) -> Callable[[Application], Application]:
    """Return what asgi_wrapper() gives to Datasette. `routes` are those that other origins may post to, with --cors."""
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
    """Say whether a browser sends a request for a page of another origin, by its headers, names in lower case."""
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
    """Whether a request carries what a browser sends by itself to tell who is asking."""
    authorization = headers.get(b"authorization")
    return b"cookie" in headers or (authorization is not None and not authorization.lower().startswith("bearer "))


def _path(datasette: Datasette, scope: Mapping[str, Any]) -> str:
    """Return the path below the base URL, not decoded: as the router sees it, so that both see the same."""
    raw = scope.get("raw_path")
    path = raw.decode("latin-1").partition("?")[0] if raw else str(scope["path"])
    base = datasette.setting("base_url")
    return "/" + path[len(base) :] if path.startswith(base) else path
