"""What the HTTP API keeps for each Datasette, and how a request passes through it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from datasette_vision.errors import Busy, VisionError
from datasette_vision.plugin.http.bodies import Field
from datasette_vision.plugin.http.counters import Measures
from datasette_vision.plugin.http.limits import Limits, Share
from datasette_vision.plugin.server.clients import Clients
from datasette_vision.plugin.server.state import state_of
from datasette_vision.util.lazy import Lazy

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    from datasette_vision.engine.inference import Inference
    from datasette_vision.engine.vision import Vision
    from datasette_vision.models.manifest import Manifest

T = TypeVar("T")

CONTEXT_ATTRIBUTE = "_datasette_vision_context"
ANSWER_TIMEOUT_S = 120.0
# Pictures of rows: how many are read and made smaller at a time, and how many are in memory meanwhile.
IMAGE_THREADS = 2
IMAGES_HELD = 4


class RequestContext:
    """The API's part of one Datasette."""

    def __init__(self, datasette: Datasette) -> None:
        state = state_of(datasette)
        self._vision = state.vision
        self._inference: Lazy[Inference] = Lazy(self._make_inference)
        self.limits = Limits(state.config)
        self.clients = Clients(state.config.trusted_proxies)
        self.measures = Measures()
        # Whoever reads the picture of a row holds one of these places: those who wait have read nothing yet.
        self.image_slots = asyncio.Semaphore(IMAGES_HELD)
        self._image_threads = ThreadPoolExecutor(IMAGE_THREADS, "datasette-vision-images")
        state.before_close.append(self.close)

    @property
    def vision(self) -> Vision:
        """The Vision of this Datasette, made at the first use."""
        return self._vision.get()

    @property
    def has_vision(self) -> bool:
        """Whether anything was asked of the Vision yet."""
        return self._vision.loaded

    @property
    def inference(self) -> Inference:
        """The way to its queues."""
        return self._inference.get()

    def encoder(self, model: str | None) -> Manifest:
        """Return the manifest of a dual encoder, by default that of the configuration. Raises as Services does."""
        vision = self.vision
        return vision.services.dual_encoder(model or vision.config.default_model).manifest

    async def ready(self) -> None:
        """Make what is made at the first use, which takes a moment, without stopping the event loop."""
        if not self._inference.loaded:
            await asyncio.to_thread(self._inference.get)

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run something that blocks, away from the event loop, on threads that are not Datasette's."""
        await self.ready()
        return await asyncio.wrap_future(self.inference.call(function, *arguments))

    async def render(self, function: Callable[..., T], *arguments: Any) -> T:
        """Look at the picture of a row, away from the event loop, on threads that do nothing else."""
        run = contextvars.copy_context().run  # for the same caller
        return await asyncio.get_running_loop().run_in_executor(self._image_threads, run, function, *arguments)

    def close(self) -> None:
        """End the threads."""
        self._image_threads.shutdown(wait=False)
        if self._inference.loaded:
            self.inference.close()

    def _make_inference(self) -> Inference:
        from datasette_vision.engine.inference import Inference  # heavy: NumPy

        return Inference(self.vision)


def context_of(datasette: Datasette) -> RequestContext:
    """Return the context of this Datasette, made at the first call. Raises ConfigError."""
    context = getattr(datasette, CONTEXT_ATTRIBUTE, None)
    if context is None:
        context = vars(datasette).setdefault(CONTEXT_ATTRIBUTE, RequestContext(datasette))
    return context


@dataclass(frozen=True)
class Call:
    """A request on its way through the API."""

    datasette: Datasette
    request: Request
    context: RequestContext
    share: Share
    fields: Sequence[Field]
    route: str


async def outcomes(futures: Sequence[Future[T]]) -> list[T | VisionError]:
    """Wait until all futures are done: for each what came of it. Raises Busy when that takes too long.

    The event loop is woken once, however many there are. What is no VisionError is raised. When nobody waits any more,
    what is not being computed yet never is.
    """
    if not futures:
        return []
    loop = asyncio.get_running_loop()
    finished = loop.create_future()
    counted = itertools.count(1)

    def step(_: Future[T]) -> None:
        if next(counted) == len(futures):
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_resolve, finished)

    for future in futures:
        future.add_done_callback(step)
    try:
        await asyncio.wait_for(finished, ANSWER_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise Busy(f"no answer within {ANSWER_TIMEOUT_S:.0f} seconds: try again later") from None
    finally:
        for future in futures:
            future.cancel()  # which changes nothing for one that is done
    from datasette_vision.engine.inference import outcome_of  # heavy: NumPy

    results: list[T | VisionError] = [outcome_of(future) for future in futures]
    return results


def _resolve(finished: asyncio.Future[None]) -> None:
    if not finished.done():
        finished.set_result(None)
