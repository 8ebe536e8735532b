"""The generated part of docs/security.md: the checklist that `datasette vision check` reads out."""

from __future__ import annotations

from datasette_vision.plugin.checks.checklist import ITEMS
from docs.readme import table


def checklist() -> str:
    """Write the table of what an operator sees to."""
    rows = [
        (f"`{item.name}`", item.wanted.replace("|", "\\|"), item.why.replace("|", "\\|"), item.setting)
        for item in ITEMS
    ]
    return "\n" + table(["", "what is to hold", "why", "what to set"], rows) + "\n\n"
