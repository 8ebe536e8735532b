"""How commands fail: with the message of an error and its exit code."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import click

from datasette_vision.errors import VisionError


def vision_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """End a command that raises a VisionError with its message and its exit code."""

    @functools.wraps(command)
    def run(*arguments: Any, **named: Any) -> Any:
        try:
            return command(*arguments, **named)
        except VisionError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(error.exit_code)

    return run
