"""The operations of tasks over HTTP: a route for each operation."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from datasette_vision.models.tasks import Operation, operations
from datasette_vision.plugin.api.api import results_response
from datasette_vision.plugin.http import schemas
from datasette_vision.plugin.http.computing import outputs, take
from datasette_vision.plugin.http.context import Call
from datasette_vision.plugin.http.inputs import IMAGE, read_inputs
from datasette_vision.plugin.http.parameters import MODEL_PARAMETER
from datasette_vision.plugin.http.responses import dumps
from datasette_vision.plugin.http.routes import Route

if TYPE_CHECKING:
    from datasette.utils.asgi import Response


def operation_routes() -> list[Route]:
    """Return the routes of all operations."""
    return [
        Route(
            operation.name,
            f"/{operation.name.replace('_', '-')}",
            operation.summary,
            operation.description,
            functools.partial(_answer, operation),
            kinds=(IMAGE,),
            parameters=(MODEL_PARAMETER,),
            answer=schemas.results_schema(
                schemas.closed({operation.name: operation.schema}), model=schemas.ANSWERING_MODEL
            ),
        )
        for _, operation in operations()
    ]


async def _answer(operation: Operation, call: Call) -> Response:
    model, inputs = MODEL_PARAMETER.value(call.fields), read_inputs(call.fields, (IMAGE,))
    take(call, inputs)
    vision, inference = call.context.vision, call.context.inference
    service = await call.context.call(vision.services.for_operation, operation.name, model)
    name = service.manifest.name
    found = await outputs(call, [inference.ask(operation.name, item.content, name) for item in inputs])

    def write(output: Any) -> str:
        return dumps({operation.name: vision.answer(service, operation.name, output)})

    return await results_response(call, {"model": name}, found, write, on_thread=True)
