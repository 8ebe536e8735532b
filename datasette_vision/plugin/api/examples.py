"""Example requests: shown as curl commands in the documentation, and run by the tests."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class RequestExample:
    """A request with a query string, a form, or JSON. "@name" in a form is a file."""

    path: str = ""
    query: Pairs = ()
    form: Pairs = ()
    json: Mapping[str, Any] = field(default_factory=dict)

    def address(self, path: str) -> str:
        """Return the address on a server, given the path of the route."""
        query = urlencode(list(self.query))
        return (self.path or path) + (f"?{query}" if query else "")

    def curl(self, server: str, path: str) -> str:
        """Return the curl command for a server."""
        address = shlex.quote(server + self.address(path))
        if self.form:
            fields = [f"-F {shlex.quote(f'{name}={value}')}" for name, value in self.form]
            return " ".join(["curl", address, *fields])
        if self.json:
            return f"curl {address} --json {shlex.quote(json.dumps(self.json))}"
        return f"curl {address}"
