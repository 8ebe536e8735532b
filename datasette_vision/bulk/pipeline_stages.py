"""The inside of the bulk pipeline: threads that read and decode, the queue that computes, and the connections
between them.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from datasette_vision.engine.services import BulkTower
from datasette_vision.errors import EngineFailure, InvalidInput, StorageFailed, Unreadable, VisionError

Item = TypeVar("Item")

# Items between reading and delivery: a 100-megapixel image takes seconds, and others continue meanwhile.
WINDOW = 512
# Results kept for duplicates that follow soon; `known` finds the others.
RECENT = 2048
JOIN_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Outcome(Generic[Item]):
    """The outcome of an item: a `vector`, an `error`, or neither if it is `unchanged`.

    `content_hash` is the SHA-256 of its content in hexadecimal, None if it could not be read. `computed` says that
    inference ran for this item, and not for another with the same content. `inspected` is the result of `inspect`.
    """

    item: Item
    content_hash: str | None
    vector: NDArray[Any] | None = None
    error: VisionError | None = None
    unchanged: bool = False
    computed: bool = False
    inspected: Any = None


@dataclass(frozen=True)
class Inspected:
    """A result of `inspect` together with what the tower's `prepare` returns for the same content."""

    value: Any
    prepared: Any


@dataclass(frozen=True)
class _Claim(Generic[Item]):
    """An item that waits for the result of its content."""

    position: int
    item: Item
    inspected: Any


@dataclass(eq=False, repr=False)
class Pipeline(Generic[Item]):
    """The items of one call of pipeline.embed_all(), which has the same arguments: tracks each item through the
    stages.
    """

    tower: BulkTower
    items: Iterator[Item]
    read: Callable[[Item], bytes]
    in_order: bool
    unchanged: Callable[[Item, str], bool] | None
    known: Callable[[str], NDArray[Any] | None] | None
    inspect: Callable[[Item, bytes], Any] | None

    def __post_init__(self) -> None:
        self._feeding = threading.Lock()
        self._changed = threading.Condition()  # guards everything below
        self._done: OrderedDict[int, Outcome[Item]] = OrderedDict()
        self._claims: dict[str, list[_Claim[Item]]] = {}
        self._recent: OrderedDict[str, NDArray[Any] | VisionError] = OrderedDict()
        self._futures: set[Future[Any]] = set()
        self._room = 0
        self._taken = 0
        self._delivered = 0
        self._exhausted = False
        self._stopped = False
        self._failure: BaseException | None = None

    def outcomes(self, workers: int, max_queued: int | None) -> Iterator[Outcome[Item]]:
        """Start the threads, yield the outcomes of the items, and stop the threads."""
        self._room = max_queued or self.tower.queue.ahead
        threads = [
            threading.Thread(target=self._work, name=f"datasette-vision-read-{number}", daemon=True)
            for number in range(workers)
        ]
        started = []
        try:
            for thread in threads:
                thread.start()
                started.append(thread)
            while (outcome := self._next()) is not None:
                yield outcome
        finally:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
                futures = list(self._futures)
            for future in futures:
                future.cancel()
            deadline = time.monotonic() + JOIN_TIMEOUT_S  # one may wait for a disk that does not respond
            for thread in started:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _next(self) -> Outcome[Item] | None:
        with self._changed:
            while True:
                if self._failure is not None:
                    raise self._failure
                position = self._delivered if self.in_order else next(iter(self._done), -1)
                outcome = self._done.pop(position, None)
                if outcome is not None:
                    self._delivered += 1
                    self._changed.notify_all()
                    return outcome
                if self._exhausted and self._delivered == self._taken:
                    return None
                self._changed.wait()

    # On the worker threads

    def _work(self) -> None:
        try:
            while (taken := self._take()) is not None:
                self._process(*taken)
        except BaseException as error:
            self._fail(error)

    def _take(self) -> tuple[int, Item] | None:
        with self._changed:
            while not self._stopped and self._taken - self._delivered >= WINDOW:
                self._changed.wait()
        with self._feeding:
            if self._stopped or self._exhausted:
                return None
            try:
                item = next(self.items)
            except StopIteration:
                with self._changed:
                    self._exhausted = True
                    self._changed.notify_all()
                return None
            with self._changed:
                position = self._taken
                self._taken += 1
            return position, item

    def _process(self, position: int, item: Item) -> None:
        digest = inspected = prepared = None
        try:
            content = self.read(item)
            digest = hashlib.sha256(content).hexdigest()
            if self.unchanged is not None and self.unchanged(item, digest):
                self._deliver(position, Outcome(item, digest, unchanged=True))
                return
            if self.inspect is not None:
                inspected = self.inspect(item, content)
                if isinstance(inspected, Inspected):
                    inspected, prepared = inspected.value, inspected.prepared
        except OSError as error:
            reason = Unreadable(f"cannot be read: {error.strerror or error}")
            self._deliver(position, Outcome(item, digest, error=reason))
        except (InvalidInput, StorageFailed) as error:
            self._deliver(position, Outcome(item, digest, error=_bare(error)))
        else:
            self._claim(digest, content, prepared, _Claim(position, item, inspected))

    def _claim(self, digest: str, content: bytes, prepared: Any, claim: _Claim[Item]) -> None:
        """Have the content's result delivered for this item: that of an identical one, or one that is computed now."""
        with self._changed:
            result = self._recent.get(digest)
            first = result is None and digest not in self._claims
            if result is None:
                self._claims.setdefault(digest, []).append(claim)
        if result is not None:
            self._deliver(claim.position, _outcome(claim, digest, result, False))
        elif first:
            found = self.known(digest) if self.known is not None else None
            if found is not None:
                self._settle(digest, found, False)
            else:
                self._compute(digest, content, prepared)

    def _compute(self, digest: str, content: bytes, prepared: Any) -> None:
        with self._changed:
            while not self._stopped and self._room <= 0:
                self._changed.wait()
            self._room -= 1
        try:
            prepared = self.tower.prepare(content) if prepared is None else prepared
            while not self._stopped:
                future = self.tower.queue.offer(prepared)
                if future is not None:
                    with self._changed:
                        self._futures.add(future)
                    future.add_done_callback(lambda done: self._answered(digest, done))
                    return
        except VisionError as error:
            self._free(None)
            self._settle(digest, error, False)

    # On the threads of the queue

    def _answered(self, digest: str, future: Future[Any]) -> None:
        self._free(future)
        if future.cancelled():
            return
        try:
            error = future.exception()
            if error is not None:
                raise error
            self._settle(digest, self.tower.finish(future.result()), True)
        except VisionError as error:
            self._settle(digest, error, False)
        except BaseException as error:
            self._fail(error)

    # On any of them

    def _free(self, future: Future[Any] | None) -> None:
        with self._changed:
            self._room += 1
            if future is not None:
                self._futures.discard(future)
            self._changed.notify_all()

    def _settle(self, digest: str, result: NDArray[Any] | VisionError, computed: bool) -> None:
        """Deliver a content's result for all items that wait for it."""
        if isinstance(result, VisionError) and not isinstance(result, (InvalidInput, EngineFailure)):
            self._fail(result)  # not because of this item: any other would fail too
            return
        if isinstance(result, VisionError):
            result = _bare(result)
        with self._changed:
            claims = self._claims.pop(digest)
            self._recent[digest] = result
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)
            for number, claim in enumerate(claims):
                self._deliver(claim.position, _outcome(claim, digest, result, computed and number == 0))

    def _deliver(self, position: int, outcome: Outcome[Item]) -> None:
        with self._changed:
            self._done[position] = outcome
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._stopped = True
            self._changed.notify_all()


def _outcome(claim: _Claim[Item], digest: str, result: NDArray[Any] | VisionError, computed: bool) -> Outcome[Item]:
    if isinstance(result, VisionError):
        return Outcome(claim.item, digest, error=result, inspected=claim.inspected)
    return Outcome(claim.item, digest, result, computed=computed, inspected=claim.inspected)


def _bare(error: VisionError) -> VisionError:
    """Return an error without its traceback, whose frames hold the image."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error
