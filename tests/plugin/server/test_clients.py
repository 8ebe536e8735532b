"""plugin/server/clients.py: who asks cannot be made up, and one who has many addresses is one client."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasette_vision.config.values import Proxies
from datasette_vision.plugin.server.clients import Clients
from tests.servers import serving

ON_FLY = {"FLY_APP_NAME": "vision"}


def address(
    trusted: Proxies | None,
    peer: str | None,
    forwarded: str | list[str] | None = None,
    environment: dict[str, str] | None = None,
    **headers: str,
) -> str:
    lines = [forwarded] if isinstance(forwarded, str) else forwarded or []
    pairs = [("X-Forwarded-For", line) for line in lines] + list(headers.items())
    scope = {
        "client": None if peer is None else (peer, 0),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in pairs],
    }
    return Clients(trusted, environment or {}).address(scope).removeprefix("address ")


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "expected"),
    [
        # Nothing is trusted: the other end of the connection, or all that a proxy brought.
        (None, "5.6.7.8", None, "5.6.7.8"),
        (None, "5.6.7.8", "1.1.1.1", "5.6.7.8"),
        (None, "1.1.1.1", "1.1.1.1", "forwarded"),
        (None, "2.2.2.2", "1.1.1.1, 2.2.2.2:99", "forwarded"),
        (None, None, None, "127.0.0.1"),
        # So many proxies: each has added the address it was asked from.
        (1, "127.0.0.1", "5.6.7.8", "5.6.7.8"),
        (1, "127.0.0.1", "1.1.1.1, 5.6.7.8", "5.6.7.8"),
        (1, "127.0.0.1", ["1.1.1.1", "5.6.7.8"], "5.6.7.8"),
        (2, "127.0.0.1", "1.1.1.1, 5.6.7.8, 10.0.0.1", "5.6.7.8"),
        (1, None, "1.1.1.1, 5.6.7.8:4711", "5.6.7.8"),
        (1, None, "1.1.1.1, [2001:db8::5]:4711", "2001:db8::/64"),
        (2, "9.9.9.9", "5.6.7.8", "9.9.9.9"),  # past a proxy: not what it says of itself
        (2, "5.6.7.8", "5.6.7.8", "forwarded"),
        # Networks.
        (("10.0.0.0/8",), "10.0.0.1", "1.1.1.1, 5.6.7.8", "5.6.7.8"),
        (("10.0.0.0/8",), "10.0.0.1", "1.1.1.1, 5.6.7.8, 10.2.3.4", "5.6.7.8"),
        (("10.0.0.0/8",), "10.0.0.1", None, "10.0.0.1"),
        (("10.0.0.0/8",), "5.6.7.8", "1.1.1.1", "5.6.7.8"),
        (("10.0.0.0/8",), "10.0.0.1", "10.1.1.1, 10.2.3.4", "10.1.1.1"),
        (("10.0.0.0/8",), "1.1.1.1", "1.1.1.1", "forwarded"),
        # A proxy on this machine, of whose header Uvicorn has taken the last address already.
        (("127.0.0.1",), "5.6.7.8", "1.1.1.1, 5.6.7.8", "5.6.7.8"),
        (("127.0.0.1",), None, "1.1.1.1, 5.6.7.8", "5.6.7.8"),
        (("127.0.0.1", "10.0.0.0/8"), "10.0.0.1", "1.1.1.1, 5.6.7.8, 10.0.0.1", "5.6.7.8"),
        (("::1", "127.0.0.1"), "::ffff:127.0.0.1", "5.6.7.8", "5.6.7.8"),
        # A network of IPv6 is one client, and an address of IPv4 is one however it is written.
        (None, "2001:db8:1:2:3:4:5:6", None, "2001:db8:1:2::/64"),
        (None, "2001:db8:1:2:ffff::", None, "2001:db8:1:2::/64"),
        (None, "::ffff:5.6.7.8", None, "5.6.7.8"),
        (None, "fe80::1%eth0", None, "fe80::/64"),
    ],
)
def test_addresses(trusted: Proxies | None, peer: str | None, forwarded: Any, expected: str) -> None:
    assert address(trusted, peer, forwarded) == expected


def test_fly() -> None:
    assert address("fly", "172.16.0.1", "1.1.1.1", ON_FLY, Fly_Client_IP="5.6.7.8") == "5.6.7.8"
    # Elsewhere anybody can send that header.
    assert address("fly", "5.6.7.8", None, {}, Fly_Client_IP="1.1.1.1") == "5.6.7.8"
    assert address(None, "5.6.7.8", None, ON_FLY, Fly_Client_IP="1.1.1.1") == "5.6.7.8"
    assert address("fly", "172.16.0.1", None, ON_FLY) == "172.16.0.1"
    assert address("fly", "172.16.0.1", None, ON_FLY, Fly_Client_IP="nonsense") == "172.16.0.1"


def test_uvicorn_that_trusts_everybody() -> None:
    """It hands on the first address of the header then, which the client has written."""
    environment = {"FORWARDED_ALLOW_IPS": "*"}
    assert address(("127.0.0.1",), "1.1.1.1", "1.1.1.1, 5.6.7.8", environment) == "5.6.7.8"
    assert address(1, "1.1.1.1", "1.1.1.1, 5.6.7.8", environment) == "5.6.7.8"
    assert address(None, "1.1.1.1", "1.1.1.1, 5.6.7.8", environment) == "forwarded"


@given(st.text(st.characters(max_codepoint=255, blacklist_categories=("Cc",)), max_size=40), st.integers(0, 2))
def test_what_a_client_writes_changes_nothing(made_up: str, kind: int) -> None:
    trusted: Proxies = (1, ("127.0.0.1", "10.0.0.0/8"), "fly")[kind]
    if kind == 2:
        found = address(trusted, "172.16.0.1", made_up, ON_FLY, Fly_Client_IP="5.6.7.8")
    else:
        found = address(trusted, "10.0.0.1", f"{made_up}, 5.6.7.8")
    assert found == "5.6.7.8"


def test_a_rate_that_a_made_up_header_does_not_escape(tmp_path: Path) -> None:
    """At a real server, which believes X-Forwarded-For of whoever comes from this machine."""
    statuses = []
    with serving(tmp_path, rate_limit=3) as server:
        for number in range(6):
            request = urllib.request.Request(
                f"{server}/-/vision/embed",
                json.dumps({"text": str(number)}).encode(),
                {"Content-Type": "application/json", "X-Forwarded-For": f"1.1.1.{number}"},
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    statuses.append(response.status)
            except urllib.error.HTTPError as refusal:
                statuses.append(refusal.code)
    assert statuses == [200, 200, 200, 429, 429, 429]
