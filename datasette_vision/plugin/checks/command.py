"""`datasette vision check`: evaluates the checklist in docs/security.md for a deployment."""

from __future__ import annotations

import json
import sys
import textwrap
from collections import Counter

import click

from datasette_vision.cli.exit_codes import vision_errors

MEGABYTE = 1_000_000
WIDTH = 100
NAME_WIDTH = 15


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--json", "as_json", is_flag=True, help="Write JSON: a list of name, level, found, why and setting.")
@click.option(
    "--memory-mb", type=click.FloatRange(1), help="Memory that the server may use.  [default: as on this machine]"
)
@click.option(
    "--kill-after", type=click.FloatRange(0), metavar="SECONDS", help="How long the platform waits after SIGTERM."
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENTS OF DATASETTE SERVE]...")
@vision_errors
def check(as_json: bool, memory_mb: float | None, kill_after: float | None, arguments: tuple[str, ...]) -> None:
    """Check whether a server is ready for the public: what anonymous clients could read, stop or fill.

    Pass the arguments of `datasette serve`: databases, --metadata or --config, --setting, --cors. No server is started
    and no model loaded. Each item of the checklist in docs/security.md is ok, gets advice, or is a problem. The exit
    code is 1 if there is a problem.
    """
    from datasette_vision.plugin.checks import checklist, deployment
    from datasette_vision.util import memory

    available = memory.available_bytes() if memory_mb is None else int(memory_mb * MEGABYTE)
    found = deployment.read_deployment(arguments, memory_bytes=available, kill_after_s=kill_after)
    lines = list(checklist.evaluate(found))
    if as_json:
        click.echo(json.dumps([line.to_json() for line in lines], indent=2))
    else:
        for line in lines:
            click.echo(f"{line.level:8} {line.item.name:{NAME_WIDTH}} {_wrapped(line.found)}")
            if line.level != checklist.OK:
                for part in (line.item.why, f"→ {line.item.setting}"):
                    click.echo(f"{'':{9 + NAME_WIDTH}} {_wrapped(part)}")
        counts = Counter(line.level for line in lines)
        click.echo(
            f"\n{counts[checklist.PROBLEM]} problems, {counts[checklist.ADVICE]} with advice, {counts[checklist.OK]} ok"
        )
    if any(line.level == checklist.PROBLEM for line in lines):
        sys.exit(1)


def _wrapped(text: str) -> str:
    """Wrap a text, aligning its lines with the first."""
    indent = " " * (10 + NAME_WIDTH)
    return textwrap.fill(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ).lstrip()
