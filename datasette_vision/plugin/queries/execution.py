"""Runs queries so that what their SQL functions compute is permitted, fair and bounded in time.

Datasette has no hook around a query. All reads go through Database.execute_fn (0.65) or Database._execute_fn (1.0), all
writes through the corresponding write methods. These are wrapped here, and so is Database.execute, which knows a
query's time limit.

A query of a request runs under a Caller (util/caller.py). When one of its functions is about to compute something that
is not in a cache, the query may need something that a SQL thread must not wait for: the permission, which only the
event loop can check; a model, which takes a second to load; or one of the places for queries that compute. There is one
place fewer than Datasette has threads for SQL, so that pages are served whatever such queries do. Other queries hold
threads as well: no client gets all of them (client_shares.py), nor all memory (row_memory.py). The query is then
paused: it is interrupted, its thread is freed, and it runs again from its start once it has what it needs. A SELECT can
be run again. A write cannot, so its permission is checked before it runs, and it has a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasette_vision.errors import Busy, DeadlineExceeded, NotPermitted
from datasette_vision.plugin.queries.client_shares import Shares
from datasette_vision.plugin.queries.deadlines import GRACE_S, Deadlines
from datasette_vision.plugin.queries.row_memory import Counted, Held, RowMemory
from datasette_vision.plugin.queries.sql_errors import explained
from datasette_vision.util.caller import Caller, acting
from datasette_vision.util.fair_queues import Turns

if TYPE_CHECKING:
    from sqlite3 import Connection

    from datasette.app import Datasette
    from datasette.database import Database
    from datasette.utils.asgi import Request

    from datasette_vision.plugin.server.activity import Application

# How long a query waits for a place, and for a model to load, before it fails with "try again".
PLACE_TIMEOUT_S = 10.0
LOAD_TIMEOUT_S = 60.0
# How many queries may wait for a place. More are refused.
MAX_WAITING_QUERIES = 200
# A query pauses once for each thing it needs: the permission, a place, and one load for each tower it uses.
MAX_PAUSES = 10
WRAPPED = ("_execute_fn", "_execute_write_fn"), ("execute_fn", "execute_write_fn")


@dataclass
class RequestState:
    """A request on its way through Datasette, and what is known about it. `may_infer` is None until it is checked.

    `held` is the memory that the results of its queries take, until its response has been sent.
    """

    request: Request | None = None
    may_infer: bool | None = None
    held: Held | None = None


@dataclass(frozen=True)
class Limit:
    """The arguments of Database.execute(): the SQL, its parameters, and its time limit in seconds."""

    sql: str
    parameters: Any
    seconds: float


@dataclass(frozen=True)
class Rules:
    """The rules for the queries of one Datasette.

    `client_of` returns the client of a request. `may_infer` says whether the actor may run a model. `charge(client,
    texts, images)` counts inputs against a client's rate, and raises if that is used up. `loads` runs functions that
    load models. `shares` limits the SQL threads of each client, `row_memory` the memory for results, and `deadlines`
    the time of queries.
    """

    client_of: Callable[[Request], str]
    may_infer: Callable[[Request], Awaitable[bool]]
    charge: Callable[[str, int, int], None]
    places: QuerySlots
    shares: Shares
    row_memory: RowMemory
    deadlines: Deadlines
    loads: Executor


_request: ContextVar[RequestState | None] = ContextVar("datasette_vision_request", default=None)
_limit: ContextVar[Limit | None] = ContextVar("datasette_vision_limit", default=None)
_thread = threading.local()


class Paused(DeadlineExceeded):
    """Ends a query that needs something first. It runs again when it has it. Clients never see this error."""


class QuerySlots:
    """Places for queries that compute, given in turn to the waiting clients. For one event loop."""

    def __init__(self, count: int, max_waiting: int = MAX_WAITING_QUERIES) -> None:
        self._free = count
        self._max_waiting = max_waiting
        self._waiting: Turns[asyncio.Future[None]] = Turns()

    @contextlib.asynccontextmanager
    async def hold(self, client: str, timeout_s: float = PLACE_TIMEOUT_S) -> AsyncIterator[None]:
        """Hold a place while the block runs. Raises Busy if none becomes free in time."""
        await self._take(client, timeout_s)
        try:
            yield
        finally:
            self._give()

    async def _take(self, client: str, timeout_s: float) -> None:
        if self._free:
            self._free -= 1
            return
        if len(self._waiting) >= self._max_waiting:
            raise Busy("too many queries are waiting for a model: try again in a moment")
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        caller = Caller(client)
        self._waiting.add(place, caller)
        try:
            await asyncio.wait([place], timeout=timeout_s)
        except BaseException:
            if not self._waiting.remove(place, caller):
                self._give()  # it was granted as this query gave up
            raise
        if self._waiting.remove(place, caller):
            raise Busy("other queries are waiting for a model: try again in a moment")

    def _give(self) -> None:
        place = self._waiting.pop()
        if place is None:
            self._free += 1
        else:
            place.set_result(None)


@dataclass
class Needs:
    """What a query needs before it can continue, and whether it has a place."""

    permission: bool = False
    load: Callable[[], object] | None = None
    place: bool = False
    has_place: bool = False

    def __bool__(self) -> bool:
        return self.permission or self.load is not None or self.place


@dataclass
class QueryRun:
    """One run of a query on a SQL thread."""

    connection: Connection
    stopped: DeadlineExceeded | None = None


def track_requests(application: Application) -> Application:
    """Wrap an ASGI application so that queries know which request they belong to."""

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        state = RequestState()
        token = _request.set(state)
        try:
            await application(scope, receive, send)
        finally:
            _request.reset(token)
            if state.held is not None:
                state.held.release()

    return watched


def note_request(request: Request) -> None:
    """Remember the request, to which Datasette adds the actor a moment later. Called by the hook
    actor_from_request().
    """
    state = _request.get()
    if state is not None:
        state.request = request


def current_request() -> Request | None:
    """Return the current request, or None if there is none, as in a background task of the server."""
    state = _request.get()
    return None if state is None else state.request


def stop(error: DeadlineExceeded) -> bool:
    """End the query on this thread as Datasette's own time limit does. Returns False if no query of ours runs here."""
    run: QueryRun | None = getattr(_thread, "run", None)
    if run is None:
        return False
    run.stopped = error
    run.connection.interrupt()
    return True


def bound_queries(rules_of: Callable[[Datasette], Rules]) -> None:
    """Wrap the methods that run queries. Does nothing the second time."""
    from datasette.database import Database

    private, public = WRAPPED
    read, write = private if hasattr(Database, private[0]) else public
    if hasattr(getattr(Database, read), "runs_for_callers"):
        return
    setattr(Database, read, _wrap_read(getattr(Database, read), rules_of))
    setattr(Database, write, _wrap_write(getattr(Database, write), rules_of))
    Database.execute = _wrap_execute(Database.execute)
    getattr(Database, read).runs_for_callers = True


def _wrap_execute(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(original)
    async def execute(
        self: Database,
        sql: str,
        params: Any = None,
        truncate: bool = False,
        custom_time_limit: Any = None,
        **named: Any,
    ) -> Any:
        limit_ms = min(custom_time_limit or self.ds.sql_time_limit_ms, self.ds.sql_time_limit_ms)
        token = _limit.set(Limit(sql, params, limit_ms / 1000))
        try:
            return await original(self, sql, params, truncate, custom_time_limit, **named)
        finally:
            _limit.reset(token)

    return execute


def _wrap_read(
    original: Callable[..., Awaitable[Any]], rules_of: Callable[[Datasette], Rules]
) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(original)
    async def execute_fn(self: Database, fn: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        state = _request.get()
        if state is None or state.request is None:
            return await original(self, explained(fn), *arguments, **named)
        limit = _limit.get()
        rules = rules_of(self.ds)
        client = rules.client_of(state.request)
        needs = Needs()
        admit = functools.partial(_admit, rules, state, client, needs)
        state.held = state.held or rules.row_memory.hold(client, state.request.scope.get("path", ""))
        held_rows = state.held

        @functools.wraps(fn)
        def run(connection: Connection, *inner: Any, **keywords: Any) -> Any:
            seconds = limit.seconds if limit else self.ds.sql_time_limit_ms / 1000
            caller = Caller(client, time.monotonic() + seconds, admit)
            # Only results of Database.execute() are kept in memory as a whole.
            given = Counted(connection, held_rows) if limit else connection
            query = functools.partial(explained(fn), given, *inner, **keywords)
            if limit is None:
                return _run(caller, needs, limit, connection, query)
            with rules.deadlines.within(seconds + GRACE_S, connection.interrupt):
                return _run(caller, needs, limit, connection, query)

        async with contextlib.AsyncExitStack() as held:
            for pauses in range(MAX_PAUSES):
                try:
                    async with rules.shares.hold(client, first=pauses > 0):
                        result = await original(self, run, *arguments, **named)
                    if not isinstance(result, Paused):
                        return result
                    await _provide(rules, state, client, needs, held)
                except Busy as error:
                    raise _sql_error(str(error)) from None
        raise _sql_error("the models for this query are unloaded again and again: try again in a moment")

    return execute_fn


def _run(caller: Caller, needs: Needs, limit: Limit | None, connection: Connection, query: Callable[[], Any]) -> Any:
    """Run a query on its thread. Returns Paused if it has to run again."""
    run = _thread.run = QueryRun(connection)
    try:
        with acting(caller):
            result = query()
    except Exception:
        if needs:
            return Paused()
        raise
    finally:
        _thread.run = None
    if needs:
        return Paused()
    if run.stopped is not None:  # the code that ran it ignored the interruption
        raise _interrupted(limit)
    return result


async def _provide(
    rules: Rules, state: RequestState, client: str, needs: Needs, held: contextlib.AsyncExitStack
) -> None:
    """Get what a paused query needs. Raises Busy on a timeout."""
    if needs.permission:
        await _ask(rules, state)
        needs.permission = False
    elif needs.load is not None:
        await held.aclose()  # others run meanwhile
        needs.has_place = False
        await _load(rules, needs.load)
        needs.load = None
    elif needs.place:
        await held.enter_async_context(rules.places.hold(client))
        needs.place, needs.has_place = False, True


def _wrap_write(
    original: Callable[..., Awaitable[Any]], rules_of: Callable[[Datasette], Rules]
) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(original)
    async def execute_write_fn(self: Database, fn: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        state = _request.get()
        if state is None or state.request is None:
            return await original(self, explained(fn), *arguments, **named)
        rules = rules_of(self.ds)
        await _ask(rules, state)
        client = rules.client_of(state.request)
        admit = functools.partial(_admit, rules, state, client, Needs(has_place=True))
        # The write thread may wait for a model.
        caller = Caller(client, None, lambda *, texts=0, images=0, load=None: admit(texts=texts, images=images))

        @functools.wraps(fn)
        def run(*inner: Any, **keywords: Any) -> Any:
            with acting(caller):
                return explained(fn)(*inner, **keywords)

        return await original(self, run, *arguments, **named)

    return execute_write_fn


def _admit(
    rules: Rules,
    state: RequestState,
    client: str,
    needs: Needs,
    *,
    texts: int = 0,
    images: int = 0,
    load: Callable[[], object] | None = None,
) -> None:
    """Let a query compute. Raises Paused if it needs something first, NotPermitted, or the rate limit's error."""
    inputs = texts + images
    if needs:
        raise Paused  # SQLite may call other functions before it notices that this run is over
    if inputs and state.may_infer is None:
        needs.permission = True
    elif inputs and not state.may_infer:
        raise NotPermitted("this query runs a model, which needs the permission vision-infer")
    elif load is not None:
        needs.load = load
    elif not needs.has_place:
        needs.place = True
    if needs:
        raise Paused
    if inputs:
        rules.charge(client, texts, images)


async def _ask(rules: Rules, state: RequestState) -> None:
    """Find out whether the actor may run a model."""
    if state.may_infer is None and state.request is not None:
        state.may_infer = await rules.may_infer(state.request)


async def _load(rules: Rules, load: Callable[[], object]) -> None:
    """Wait for a model to load. Raises Busy on a timeout. The query itself reports other errors."""
    loading = asyncio.wrap_future(rules.loads.submit(_quietly, load))
    try:
        await asyncio.wait_for(loading, LOAD_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise Busy("the model takes too long to load: try again later") from None


def _quietly(load: Callable[[], object]) -> None:
    with contextlib.suppress(Exception):
        load()


def _interrupted(limit: Limit | None) -> Exception:
    from datasette.database import QueryInterrupted

    error = _sql_error("interrupted")
    return QueryInterrupted(error, limit.sql, limit.parameters) if limit else error


def _sql_error(message: str) -> Exception:
    """Return the error that Datasette's pages expect from a failed query."""
    from datasette.utils.sqlite import sqlite3

    return sqlite3.OperationalError(message)
