"""The state that the HTTP API keeps for each Datasette, and how a request passes through it."""

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
# For images of rows: threads that resize them, and the number of images in memory at a time.
IMAGE_THREADS = 2
IMAGES_HELD = 4


class RequestContext:
    """The HTTP API's state for one Datasette."""

    def __init__(self, datasette: Datasette) -> None:
        state = state_of(datasette)
        self._vision = state.vision
        self._inference: Lazy[Inference] = Lazy(self._make_inference)
        self.limits = Limits(state.config)
        self.clients = Clients(state.config.trusted_proxies)
        self.measures = Measures()
        # A request that reads the image of a row holds a slot. Requests that wait for one have read nothing yet.
        self.image_slots = asyncio.Semaphore(IMAGES_HELD)
        self._image_threads = ThreadPoolExecutor(IMAGE_THREADS, "datasette-vision-images")
        state.before_close.append(self.close)

    @property
    def vision(self) -> Vision:
        """The Vision of this Datasette, made at the first use."""
        return self._vision.get()

    @property
    def has_vision(self) -> bool:
        """Whether the Vision has been used yet."""
        return self._vision.loaded

    @property
    def inference(self) -> Inference:
        """The asynchronous interface to its queues."""
        return self._inference.get()

    def encoder(self, model: str | None) -> Manifest:
        """Return the manifest of a dual encoder, by default the configured one. Raises as Services does."""
        vision = self.vision
        return vision.services.dual_encoder(model or vision.config.default_model).manifest

    async def ready(self) -> None:
        """Initialise on first use, which takes a moment, without blocking the event loop."""
        if not self._inference.loaded:
            await asyncio.to_thread(self._inference.get)

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a blocking function, away from the event loop, on threads that are not Datasette's."""
        await self.ready()
        return await asyncio.wrap_future(self.inference.call(function, *arguments))

    async def render(self, function: Callable[..., T], *arguments: Any) -> T:
        """Process the image of a row, away from the event loop, on dedicated threads."""
        run = contextvars.copy_context().run  # with the same caller
        return await asyncio.get_running_loop().run_in_executor(self._image_threads, run, function, *arguments)

    def close(self) -> None:
        """Stop the threads."""
        self._image_threads.shutdown(wait=False)
        if self._inference.loaded:
            self.inference.close()

    def _make_inference(self) -> Inference:
        from datasette_vision.engine.inference import Inference  # heavy: NumPy

        return Inference(self.vision)


def context_of(datasette: Datasette) -> RequestContext:
    """Return the context of this Datasette, made on the first call. Raises ConfigError."""
    context = getattr(datasette, CONTEXT_ATTRIBUTE, None)
    if context is None:
        context = vars(datasette).setdefault(CONTEXT_ATTRIBUTE, RequestContext(datasette))
    return context


@dataclass(frozen=True)
class Call:
    """A request to the API."""

    datasette: Datasette
    request: Request
    context: RequestContext
    share: Share
    fields: Sequence[Field]
    route: str


async def outcomes(futures: Sequence[Future[T]]) -> list[T | VisionError]:
    """Wait until all futures are done, and return the result or VisionError of each. Raises Busy on a timeout.

    The event loop is woken once, however many there are. Other exceptions are raised. If the request is cancelled,
    inputs that are not being computed yet are cancelled too.
    """
    if not futures:
        return []
    loop = asyncio.get_running_loop()
    finished = loop.create_future()
    counted = itertools.count(1)

    def step(_: Future[T]) -> None:
        if next(counted) == len(futures):
            with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody is waiting
                loop.call_soon_threadsafe(_resolve, finished)

    for future in futures:
        future.add_done_callback(step)
    try:
        await asyncio.wait_for(finished, ANSWER_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise Busy(f"no answer within {ANSWER_TIMEOUT_S:.0f} seconds: try again later") from None
    finally:
        for future in futures:
            future.cancel()  # has no effect on one that is done
    from datasette_vision.engine.inference import outcome_of  # heavy: NumPy

    results: list[T | VisionError] = [outcome_of(future) for future in futures]
    return results


def _resolve(finished: asyncio.Future[None]) -> None:
    if not finished.done():
        finished.set_result(None)
