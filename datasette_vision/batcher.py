"""Many callers, one queue: whoever is waiting is answered together, as one batch."""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Generic, TypeVar

from datasette_vision import memory
from datasette_vision.errors import Busy, EngineFailure, ModelCorrupt, VisionError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

ANSWER_TIMEOUT_S = 120.0
EXIT_TIMEOUT_S = 10.0
# A burst leaves freed memory behind that the system does not get back: with CLIP 150 of 430 MiB. Asked to when it is
# over, the C library gives it back in 10 ms.
BURST_ITEMS = 16
BURST_OVER_S = 1.0

_open: weakref.WeakSet[Batcher[Any, Any]] = weakref.WeakSet()


@atexit.register
def _end_work() -> None:
    """Let the batches in hand finish, and drop the rest, before the interpreter goes.

    A daemon thread that is inside ONNX Runtime when Python takes the interpreter down aborts the whole process.
    """
    batchers = list(_open)
    for batcher in batchers:
        batcher.drop()
    for batcher in batchers:
        batcher.join(EXIT_TIMEOUT_S)


class Batcher(Generic[Item, Result]):
    """Runs `run(items) -> results` for callers on many threads.

    An idle batcher starts at once: it never waits for company. What arrives while it works is taken as the next batch,
    at most `max_batch_size` items of it. When a batch fails, its items are tried alone, so that a bad one fails alone.
    More than `max_queue` waiting items are refused with Busy, at once. Worker threads start at the first item; one that
    dies fails the items it had and is replaced.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result]],
        *,
        max_batch_size: int = 32,
        max_queue: int = 1024,
        workers: int = 1,
        name: str = "batcher",
    ) -> None:
        self._run = run
        self.max_batch_size = max_batch_size
        self.workers = workers
        self._max_queue = max_queue
        self._name = name
        self._waiting: deque[tuple[Item, Future[Result]]] = deque()
        self._changed = threading.Condition()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._untrimmed = 0  # items since memory was given back
        self._closed = False
        # What was computed: batches by their size, and the time that took.
        self.sizes: Counter[int] = Counter()
        self.seconds = 0.0
        _open.add(self)

    @property
    def batches(self) -> int:
        """How many batches were computed."""
        return sum(self.sizes.values())

    @property
    def items(self) -> int:
        """How many items were computed."""
        return sum(size * count for size, count in self.sizes.items())

    @property
    def waiting(self) -> int:
        """How many items wait to be computed."""
        return len(self._waiting)

    def submit(self, item: Item) -> Future[Result]:
        """Queue one item. Raises Busy when the queue is full or closed."""
        future: Future[Result] = Future()
        with self._changed:
            if self._closed:
                raise Busy("the server is shutting down")
            if len(self._waiting) >= self._max_queue:
                raise Busy(f"{self._max_queue:,} inputs are waiting already: try again in a moment")
            self._waiting.append((item, future))
            try:
                if len(self._waiting) > self._idle:
                    self._start_worker()
            except RuntimeError as error:
                if not self._threads:
                    self._waiting.pop()
                    logger.error("%s: no worker can be started: %s", self._name, error)
                    raise Busy("the system has no thread left for inference: try again in a moment") from None
            self._changed.notify()
        return future

    def offer(self, item: Item) -> Future[Result] | None:
        """Queue one item; when others fill the queue, give way for a moment and return None: for bulk work.

        Raises Busy when the batcher is closed.
        """
        try:
            return self.submit(item)
        except Busy:
            if self._closed:
                raise
            time.sleep(0.005)
            return None

    def __call__(self, item: Item) -> Result:
        """Queue one item and wait for its result."""
        return self._wait(self.submit(item))

    def map(self, items: Iterable[Item]) -> Iterator[Result | VisionError]:
        """Yield a result, or the error, for each item in order, holding at most two batches of the queue at a time."""
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                while (future := self.offer(item)) is None:
                    if pending:
                        yield self._outcome(pending.popleft())
                pending.append(future)
                if len(pending) >= 2 * self.max_batch_size:
                    yield self._outcome(pending.popleft())
            while pending:
                yield self._outcome(pending.popleft())
        finally:
            for future in pending:  # the caller gave up half-way
                future.cancel()

    def close(self) -> None:
        """Refuse new items, answer those that wait, and end the workers."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.join(ANSWER_TIMEOUT_S)

    def drop(self) -> None:
        """Refuse new items and those that wait; what is being computed is finished."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = list(self._waiting), deque()
            self._changed.notify_all()
        for _, future in waiting:
            _fail(future, Busy("the server is shutting down"))

    def join(self, timeout_s: float) -> None:
        """Wait until the workers of a closed batcher have ended."""
        with self._changed:
            threads = list(self._threads)
        for thread in threads:
            thread.join(timeout_s)

    def _wait(self, future: Future[Result]) -> Result:
        try:
            return future.result(ANSWER_TIMEOUT_S)
        except FutureTimeout:
            future.cancel()
            raise Busy(f"no answer within {ANSWER_TIMEOUT_S:.0f} seconds: try again later") from None

    def _outcome(self, future: Future[Result]) -> Result | VisionError:
        try:
            return self._wait(future)
        except VisionError as error:
            return error

    def _start_worker(self) -> None:
        """Start one more worker when there may be more. Called with the lock held."""
        if len(self._threads) < self.workers:
            thread = threading.Thread(target=self._work, name=f"datasette-vision-{self._name}", daemon=True)
            self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError:
                self._threads.discard(thread)
                raise

    def _work(self) -> None:
        batch: list[tuple[Item, Future[Result]]] | None = None
        try:
            while (batch := self._take()) is not None:
                if batch:
                    self._answer(batch)
                else:
                    memory.trim()
        except BaseException as error:
            # Not an error of the input (those are answered below) but the end of this thread.
            logger.exception("a worker of %s died", self._name)
            for _, future in batch or ():
                _fail(future, EngineFailure(f"an inference worker died ({type(error).__name__}) and is being replaced"))
        finally:
            with self._changed:
                self._threads.discard(threading.current_thread())
                if self._waiting:
                    self._replace()

    def _replace(self) -> None:
        """Start another worker for what waits, or tell those who wait that there is none. Called with the lock held."""
        try:
            self._start_worker()
        except RuntimeError:
            if not self._threads:
                for _, future in self._waiting:
                    _fail(future, Busy("the system has no thread left for inference: try again in a moment"))
                self._waiting.clear()

    def _take(self) -> list[tuple[Item, Future[Result]]] | None:
        """Wait for work and take a batch of it. An empty list: a burst is over. None: the batcher is closed."""
        with self._changed:
            while True:
                if not self._wait_for_work():
                    self._untrimmed = 0
                    return []
                if not self._waiting:
                    return None
                batch: list[tuple[Item, Future[Result]]] = []
                while self._waiting and len(batch) < self.max_batch_size:
                    entry = self._waiting.popleft()
                    if entry[1].set_running_or_notify_cancel():
                        batch.append(entry)
                if batch:
                    self._untrimmed += len(batch)
                    return batch

    def _wait_for_work(self) -> bool:
        """Wait until there is work, or none to come; False: nothing came after a burst. Called with the lock held."""
        self._idle += 1
        try:
            while not self._waiting and not self._closed:
                timed_out = not self._changed.wait(BURST_OVER_S if self._untrimmed >= BURST_ITEMS else None)
                # Of several workers another may have seen to it, or still be at work.
                all_idle = not self._waiting and self._idle == len(self._threads)
                if timed_out and all_idle and self._untrimmed >= BURST_ITEMS:
                    return False
            return True
        finally:
            self._idle -= 1

    def _answer(self, batch: list[tuple[Item, Future[Result]]]) -> None:
        began = time.perf_counter()
        try:
            results = self._run([item for item, _ in batch])
            if len(results) != len(batch):
                raise EngineFailure(f"expected {len(batch)} results of a batch, found {len(results)}")
        except Exception as error:
            if len(batch) == 1 or isinstance(error, ModelCorrupt):
                for _, future in batch:
                    _fail(future, _translate(error))
                return
            for entry in batch:
                self._answer([entry])
            return
        took = time.perf_counter() - began
        with self._changed:
            self.sizes[len(batch)] += 1
            self.seconds += took
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)


def _translate(error: Exception) -> VisionError:
    if isinstance(error, VisionError):
        return error
    logger.error("inference failed", exc_info=error)
    return EngineFailure("inference failed on this input; the log says why")


def _fail(future: Future[Result], error: VisionError) -> None:
    if not future.done():
        future.set_exception(error)
