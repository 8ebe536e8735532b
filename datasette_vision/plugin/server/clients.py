"""Who asks: an actor of Datasette, or else an address that a client cannot make up.

An address is the other end of the connection. Behind a proxy that is the proxy's, and the client's stands in a header,
which anybody can send. So a header counts only where `trusted_proxies` of the configuration says what wrote it.

Uvicorn trusts X-Forwarded-For by itself when a connection comes from this machine, and whatever FORWARDED_ALLOW_IPS
names: the address that it hands on may be one out of that header, and then tells nothing unless the proxy is trusted.
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
# What a connection through a Unix socket, or from a proxy on this machine, comes from.
THIS_MACHINE = "127.0.0.1"
# All that came through a proxy that is not trusted: one client.
FORWARDED = "forwarded"
# A network of IPv6 belongs to one client, who has all of its addresses.
IPV6_NETWORK = 64


class Clients:
    """Names the clients of one server."""

    def __init__(self, trusted: Proxies | None, environment: Mapping[str, str] = os.environ) -> None:
        # Only Fly's own proxy reaches a machine of Fly's, and it overwrites the header.
        self._fly = trusted == FLY and "FLY_APP_NAME" in environment
        self._hops = trusted if isinstance(trusted, int) else 0
        self._networks = [ipaddress.ip_network(name) for name in trusted] if isinstance(trusted, tuple) else []
        self._uvicorn_trusts_all = environment.get("FORWARDED_ALLOW_IPS", "").strip() == "*"

    def name(self, request: Request) -> str:
        """Name whom a request comes from: its actor, or else its address."""
        actor = request.actor or {}
        return f"actor {actor['id']}" if "id" in actor else self.address(request.scope)

    def address(self, scope: Mapping[str, Any]) -> str:
        """Name the address that a request comes from; of IPv6 its network of 64 bits."""
        return f"address {_network(self._address(scope))}"

    def _address(self, scope: Mapping[str, Any]) -> str:
        if self._fly:
            values = _header(scope, FLY_CLIENT)
            if len(values) == 1 and _parsed(values[0]) is not None:
                return values[0]
        forwarded = _header(scope, FORWARDED_FOR)
        if self._hops and len(forwarded) >= self._hops:
            # Each proxy adds the address that it was asked from; what stands before may be made up.
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
    """Return the values of a header that may come more than once, and hold several each, without their ports."""
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
