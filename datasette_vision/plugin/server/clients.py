"""Identifies clients: an actor of Datasette, or else an address that a client cannot forge.

The address is the other end of the connection. Behind a proxy that is the proxy's, and the client's is in a header,
which anybody can send. So a header counts only if `trusted_proxies` in the configuration says what wrote it.

By default, Uvicorn trusts X-Forwarded-For on connections from this machine, and from the addresses in
FORWARDED_ALLOW_IPS. The address that it passes on may come from that header, and is ignored unless the proxy is
trusted.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datasette_vision.config.values import FLY, Proxies

if TYPE_CHECKING:
    from datasette.utils.asgi import Request

FORWARDED_FOR = b"x-forwarded-for"
FLY_CLIENT = b"fly-client-ip"
# The address of a connection through a Unix socket, or from a proxy on this machine.
THIS_MACHINE = "127.0.0.1"
# Everything that comes through an untrusted proxy is one client.
FORWARDED = "forwarded"
# A network of IPv6 belongs to one client, who has all of its addresses.
IPV6_NETWORK = 64


class Clients:
    """Identifies the clients of one server."""

    def __init__(self, trusted: Proxies | None, environment: Mapping[str, str] = os.environ) -> None:
        # Only Fly's own proxy reaches a machine of Fly's, and it overwrites the header.
        self._fly = trusted == FLY and "FLY_APP_NAME" in environment
        self._hops = trusted if isinstance(trusted, int) else 0
        self._networks = [ipaddress.ip_network(name) for name in trusted] if isinstance(trusted, tuple) else []
        self._uvicorn_trusts_all = environment.get("FORWARDED_ALLOW_IPS", "").strip() == "*"

    def name(self, request: Request) -> str:
        """Return the client of a request: its actor, or else its address."""
        actor = request.actor or {}
        return f"actor {actor['id']}" if "id" in actor else self.address(request.scope)

    def address(self, scope: Mapping[str, Any]) -> str:
        """Return the address that a request comes from; for IPv6 its 64-bit network."""
        return f"address {_network(self._address(scope))}"

    def _address(self, scope: Mapping[str, Any]) -> str:
        if self._fly:
            values = _header(scope, FLY_CLIENT)
            if len(values) == 1 and _parsed(values[0]) is not None:
                return values[0]
        forwarded = _header(scope, FORWARDED_FOR)
        if self._hops and len(forwarded) >= self._hops:
            # Each proxy appends the address of its client. Anything before may be forged.
            return forwarded[-self._hops]
        peer = str((scope.get("client") or [THIS_MACHINE])[0])
        if self._networks and forwarded and (self._trusts(peer) or self._uvicorn_trusts_all):
            return next((host for host in reversed(forwarded) if not self._trusts(host)), forwarded[0])
        if peer in forwarded and not self._trusts(THIS_MACHINE):
            return FORWARDED
        return peer

    def _trusts(self, host: str) -> bool:
        address = _parsed(host)
        return address is not None and any(address in network for network in self._networks)


def _header(scope: Mapping[str, Any], wanted: bytes) -> Sequence[str]:
    """Return the values of a header that may be repeated and hold several values each, without ports."""
    values = [value for name, value in scope.get("headers", ()) if name.lower() == wanted]
    return [_without_port(host.strip()) for host in b",".join(values).decode("latin-1").split(",") if host.strip()]


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host


def _parsed(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _network(host: str) -> str:
    address = _parsed(host)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(address), IPV6_NETWORK), strict=False))
    return str(address or host[:100])
