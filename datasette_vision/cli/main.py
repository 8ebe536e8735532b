"""The group `datasette vision` and its commands."""

from __future__ import annotations

import click

from datasette_vision.cli import bulk, files, models, search
from datasette_vision.cli.demo import demo

COMMANDS: tuple[click.Command, ...] = (
    demo,
    bulk.embed, bulk.load,
    search.search, search.index,
    models.install, models.models, models.verify, models.remove,
    files.embed_files, files.import_embeddings,
)  # fmt: skip


def vision_group(*others: click.Command) -> click.Group:
    """Return the group of these commands, and of others from higher layers."""
    return click.Group("vision", [*COMMANDS, *others], help="Image understanding: embeddings and classification.")
