"""/-/vision/jobs: the state of the tables that auto_embed keeps in sync."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from datasette_vision.plugin.api.examples import RequestExample
from datasette_vision.plugin.http import schemas
from datasette_vision.plugin.http.context import Call
from datasette_vision.plugin.http.responses import answer
from datasette_vision.plugin.http.routes import GET, Route
from datasette_vision.plugin.server import permissions
from datasette_vision.plugin.server.state import state_of

if TYPE_CHECKING:
    from datasette.utils.asgi import Response


async def jobs(call: Call) -> Response:
    """Return the tables that the actor may see. Those who may read the metrics also get the tables left out."""
    datasette, actor = call.datasette, call.request.actor
    state = state_of(datasette)
    settings, auto_embed = state.config.auto_embed, state.auto_embed
    tables = [
        {
            "database": database,
            "table": kept.source.table,
            "column": kept.column,
            "model": kept.model,
            **dataclasses.asdict(kept.report),
            "failures": [{"row": row, "error": error} for row, error in kept.report.failures],
        }
        for database, kept in auto_embed.kept()
        if await permissions.may_view_table(datasette, actor, database, kept.source.table)
    ]
    whole = {"ok": True, "auto_embed": settings is not None, "tables": tables}
    if await permissions.may(datasette, actor, permissions.METRICS):
        whole["left_out"] = [{"name": name, "reason": reason} for name, reason in auto_embed.left_out().items()]
    return answer(datasette, whole)


NUMBER: schemas.Schema = {"type": "integer", "minimum": 0}
TEXT: schemas.Schema = {"type": "string"}
KEPT_SCHEMA = schemas.closed(
    {
        **dict.fromkeys(("database", "table", "column", "model"), TEXT),
        "state": {"enum": ["in step", "embedding", "failed", "waiting"]},
        "queued": {**NUMBER, "description": "Rows that are known to be waiting."},
        "embedded": {**NUMBER, "description": "Rows embedded since the server started."},
        "removed": {**NUMBER, "description": "Embeddings of deleted rows, removed since the server started."},
        "failed": {**NUMBER, "description": "Rows with an error instead of an embedding."},
        "checked": {
            "type": "boolean",
            "description": "Every value has been read since the last change of the database.",
        },
        "error": {"type": ["string", "null"], "description": "Why the column is not kept in sync."},
        "failures": {
            "type": "array",
            "items": schemas.closed({"row": TEXT, "error": TEXT}),
            "description": "The first failed rows.",
        },
    }
)
JOBS = Route(
    "jobs",
    "/jobs",
    "Show the status of auto_embed",
    "The tables of `auto_embed` that the actor may see: rows that are waiting, done and failed. Actors who may read the"
    " metrics (`vision-metrics`) also see which tables are left out, and why.",
    jobs,
    methods=(GET,),
    action=permissions.VIEW_INSTANCE,
    answer=schemas.closed(
        {
            "ok": {"const": True},
            "auto_embed": {"type": "boolean", "description": "Whether auto_embed is configured."},
            "tables": {"type": "array", "items": KEPT_SCHEMA},
            "left_out": {"type": "array", "items": schemas.closed({"name": TEXT, "reason": TEXT})},
        },
        optional=("left_out",),
    ),
    example=RequestExample(),
)
ROUTES = (JOBS,)
