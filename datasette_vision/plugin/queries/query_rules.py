"""The rules for the queries of one Datasette: their clients, permissions and limits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from datasette_vision.plugin.http.context import context_of
from datasette_vision.plugin.queries import row_memory
from datasette_vision.plugin.queries.client_shares import Shares
from datasette_vision.plugin.queries.deadlines import Deadlines
from datasette_vision.plugin.queries.execution import QuerySlots, Rules
from datasette_vision.plugin.server import permissions
from datasette_vision.plugin.server.state import state_of

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

RULES_ATTRIBUTE = "_datasette_vision_query_rules"
# One for each tower of a dual encoder.
LOAD_THREADS = 2


def rules_of(datasette: Datasette) -> Rules:
    """Return the rules for the queries of this Datasette, made on the first call."""
    rules = getattr(datasette, RULES_ATTRIBUTE, None)
    if rules is None:
        rules = vars(datasette).setdefault(RULES_ATTRIBUTE, _make(datasette))
    return rules


def _make(datasette: Datasette) -> Rules:
    async def may_infer(request: Request) -> bool:
        return await permissions.may(datasette, request.actor, permissions.INFER)

    def charge(client: str, texts: int, images: int) -> None:
        context_of(datasette).limits.charge(client, texts, images)

    loads = ThreadPoolExecutor(LOAD_THREADS, "datasette-vision-loads")
    state_of(datasette).before_close.append(lambda: loads.shutdown(wait=False))

    def client_of(request: Request) -> str:
        return context_of(datasette).clients.name(request)

    # All SQL threads except one, which is left for pages and other clients.
    most = max(1, datasette.setting("num_sql_threads") - 1)
    return Rules(
        client_of, may_infer, charge, QuerySlots(most), Shares(most), row_memory.of_this_process(), Deadlines(), loads
    )
