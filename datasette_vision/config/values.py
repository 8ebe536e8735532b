"""Reads the values of the configuration: each function returns the value, or raises ValueError."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeAlias

# An allow block of Datasette: everybody, nobody, or actors whose properties match.
Allow: TypeAlias = bool | Mapping[str, Any]
# Which headers to trust for a client's address: of so many proxies, of networks, or Fly.io's.
FLY: Final = "fly"
Proxies: TypeAlias = int | tuple[str, ...] | Literal["fly"]


class Reader(NamedTuple):
    """Reads a value: `expected` in words, and a function that raises ValueError for anything else."""

    expected: str
    read: Callable[[Any], Any]


def whole(minimum: int, maximum: int) -> Reader:
    """Return a reader of whole numbers from `minimum` to `maximum`."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise ValueError
        return value

    return Reader(f"a whole number from {minimum} to {maximum}", read)


def positive(maximum: int) -> Reader:
    """Return a reader of numbers above 0, up to `maximum`."""

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= maximum:
            raise ValueError
        return value

    return Reader(f"a number above 0, at most {maximum}", read)


def shutdown_seconds(value: Any) -> float:
    """Read the number of seconds that a shutdown may take."""
    if positive(3600).read(value) <= 2:  # two of them are for closing
        raise ValueError
    return float(value)


def name(value: Any) -> str:
    """Read a text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def names(value: Any) -> tuple[str, ...]:
    """Read a list of them."""
    if not isinstance(value, list):
        raise ValueError
    return tuple(name(entry) for entry in value)


def allow(value: Any) -> Allow:
    """Read an allow block."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError
    return MappingProxyType(dict(value))


def proxies(value: Any) -> Proxies:
    """Read which proxies are trusted."""
    if value == FLY:
        return FLY
    if not isinstance(value, list):
        return whole(1, 10).read(value)
    networks = names(value)
    if not networks:
        raise ValueError
    for network in networks:
        ipaddress.ip_network(network)
    return networks
