"""Many callers, one queue: all waiting items are computed together, as one batch."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from statistics import median
from typing import Any, Generic, TypeVar

from datasette_vision.errors import Busy, DeadlineExceeded, EngineFailure, ModelCorrupt, VisionError
from datasette_vision.util import memory
from datasette_vision.util.caller import Caller, current
from datasette_vision.util.fair_queues import Turns, Waiting

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

ANSWER_TIMEOUT_S = 120.0
EXIT_TIMEOUT_S = 10.0
# After a burst, the C library keeps freed memory: with CLIP 150 of 430 MiB. On request, it returns this memory in 10
# ms.
BURST_ITEMS = 16
BURST_OVER_S = 1.0
# A batch's time is predicted from the median of this many before it: a machine may be slow for long, or for a moment.
MEASURED_BATCHES = 8

_open: weakref.WeakSet[Batcher[Any, Any]] = weakref.WeakSet()


@atexit.register
def _end_work() -> None:
    """Let running batches finish, and drop the rest, before the interpreter exits.

    A daemon thread that is inside ONNX Runtime when Python shuts the interpreter down aborts the whole process.
    """
    batchers = list(_open)
    for batcher in batchers:
        batcher.drop()
    for batcher in batchers:
        batcher.join(EXIT_TIMEOUT_S)


class _Queued(Waiting[Result], Generic[Item, Result]):
    """An item in the queue, and the future of its result. `keep` gets the result before those who wait for it."""

    def __init__(
        self,
        item: Item,
        keep: Callable[[Result], None] | None,
        caller: Caller,
        leave: Callable[[Waiting[Result]], None],
    ) -> None:
        super().__init__(caller, leave)
        self.item = item
        self.keep = keep


class Batcher(Generic[Item, Result]):
    """Runs `run(items) -> results` for callers on many threads.

    An idle batcher starts at once: it never waits for company. Items that arrive while it works become the next batch,
    with at most `max_batch_size` items, and no more than it can compute in `batch_s` seconds. This is a prediction: the
    time of an item is proportional to `size(item)`, and items are padded to the largest of the batch. If a batch fails,
    its items are tried separately, so that only bad ones fail.

    Items are taken in turns: clients first, then the callers of a client (caller.py), each in order of arrival. An item
    whose caller's deadline has passed is not computed. At most `max_queue` items wait. If the queue is full, a new item
    replaces the newest of the client with the most items, which fails with Busy; if the new item's own client has as
    many, the new item is refused with Busy. Bulk work (`offer`, `map`) gives way instead.

    `ahead` is how many items whoever makes them ready (decodes an image, say) should hold at a time, from then until
    they are computed: a batch for each worker, and the next one, unless fewer may wait. `room` has as many places, for
    those who share them.

    `load` is called before each batch, and its time does not count: it loads what `run` needs. `trim` is called when a
    burst is over. Worker threads start at the first item; one that dies fails the items it had and is replaced.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result]],
        *,
        max_batch_size: int = 32,
        max_queue: int = 1024,
        workers: int = 1,
        name: str = "batcher",
        batch_s: float | None = None,
        size: Callable[[Item], int] = lambda item: 1,
        load: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        burst_over_s: float = BURST_OVER_S,
        trim: Callable[[], object] = memory.trim,
    ) -> None:
        self._run = run
        self._answer_timeout_s = answer_timeout_s
        self._burst_over_s = burst_over_s
        self._trim = trim
        self._load = load
        self._clock = clock
        self._size = size
        self._batch_s = batch_s
        self._paces: deque[float] = deque(maxlen=MEASURED_BATCHES)  # seconds for an item of size 1
        self.max_batch_size = max_batch_size
        self.workers = workers
        self.ahead = min((workers + 1) * max_batch_size, max_queue)
        self.room = threading.Semaphore(self.ahead)
        self._max_queue = max_queue
        self._name = name
        self._waiting: Turns[_Queued[Item, Result]] = Turns()
        self._changed = threading.Condition()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._untrimmed = 0  # items since memory was returned
        self._closed = False
        # Statistics: batches by size, and the time they took.
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

    def submit(self, item: Item, keep: Callable[[Result], None] | None = None) -> Future[Result]:
        """Queue one item for the current caller. Raises Busy if the queue is full or closed.

        `keep` gets the result on the worker's thread, even if nobody waits for it any more.
        """
        return self._add(item, keep, crowding=True)

    def _add(self, item: Item, keep: Callable[[Result], None] | None, *, crowding: bool) -> Future[Result]:
        entry = _Queued(item, keep, current(), self._leave)
        crowded_out = None
        with self._changed:
            if self._closed:
                raise Busy("the server is shutting down")
            if len(self._waiting) >= self._max_queue:
                crowded_out = self._waiting.crowd_out(entry.caller.client) if crowding else None
                if crowded_out is None:
                    raise Busy(f"{self._max_queue:,} inputs are waiting already: try again in a moment")
            self._waiting.add(entry, entry.caller)
            try:
                if len(self._waiting) > self._idle:
                    self._start_worker()
            except RuntimeError as error:
                if not self._threads:
                    self._waiting.remove(entry, entry.caller)
                    logger.error("%s: no worker can be started: %s", self._name, error)
                    raise Busy("the system has no thread left for inference: try again in a moment") from None
            self._changed.notify()
        if crowded_out is not None:
            _fail(crowded_out, Busy("most of the waiting inputs are yours, and others wait too: try again in a moment"))
        return entry

    def _leave(self, entry: Waiting[Result]) -> None:
        """Free the place of a cancelled entry."""
        with self._changed:
            self._waiting.remove(entry, entry.caller)  # type: ignore[arg-type]

    def offer(self, item: Item, keep: Callable[[Result], None] | None = None) -> Future[Result] | None:
        """Queue one item for bulk work. If others fill the queue, wait for a moment and return None.

        Raises Busy if the batcher is closed.
        """
        try:
            return self._add(item, keep, crowding=False)
        except Busy:
            if self._closed:
                raise
            time.sleep(0.005)
            return None

    def __call__(self, item: Item, keep: Callable[[Result], None] | None = None) -> Result:
        """Queue one item and wait for its result. Raises DeadlineExceeded if the caller's time is up first."""
        return self._wait(self.submit(item, keep))

    def map(
        self, items: Iterable[Item], keep: Callable[[int, Result], None] | None = None
    ) -> Generator[Result | VisionError, None, None]:
        """Yield a result, or the error, for each item in order, holding at most `ahead` of the queue at a time.

        `keep` gets the position of an item and its result, as soon as it is computed. Raises DeadlineExceeded if the
        caller's time is up; items that are still in the queue are not computed.
        """
        pending: deque[Future[Result]] = deque()
        caller = current()
        try:
            for position, item in enumerate(items):
                kept = None if keep is None else functools.partial(keep, position)
                while (future := self.offer(item, kept)) is None:
                    caller.seconds_left(self._answer_timeout_s)
                    if pending:
                        yield self._outcome(pending.popleft())
                pending.append(future)
                if len(pending) >= self.ahead:
                    yield self._outcome(pending.popleft())
            while pending:
                yield self._outcome(pending.popleft())
        finally:
            for future in pending:  # the caller gave up half-way
                future.cancel()

    def close(self) -> None:
        """Refuse new items, compute the waiting ones, and stop the workers."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.join(self._answer_timeout_s)

    def drop(self) -> None:
        """Refuse new and waiting items; finish items that are being computed."""
        with self._changed:
            self._closed = True
            waiting = self._take_all()
            self._changed.notify_all()
        for entry in waiting:
            _fail(entry, Busy("the server is shutting down"))

    def join(self, timeout_s: float) -> None:
        """Wait until the workers of a closed batcher have stopped."""
        with self._changed:
            threads = list(self._threads)
        for thread in threads:
            thread.join(timeout_s)

    def _take_all(self) -> list[_Queued[Item, Result]]:
        """Empty the queue. Called with the lock held."""
        return [entry for entry in iter(self._waiting.pop, None) if entry is not None]

    def _wait(self, future: Future[Result]) -> Result:
        caller = current()
        try:
            return future.result(caller.seconds_left(self._answer_timeout_s))
        except FutureTimeout:
            future.cancel()
            caller.seconds_left(self._answer_timeout_s)  # raises if it was the caller's own time
            raise Busy(f"no answer within {self._answer_timeout_s:.0f} seconds: try again later") from None
        except DeadlineExceeded:
            future.cancel()
            raise

    def _outcome(self, future: Future[Result]) -> Result | VisionError:
        try:
            return self._wait(future)
        except DeadlineExceeded:
            raise
        except VisionError as error:
            return error

    def _start_worker(self) -> None:
        """Start one more worker if allowed. Called with the lock held."""
        if len(self._threads) < self.workers:
            thread = threading.Thread(target=self._work, name=f"datasette-vision-{self._name}", daemon=True)
            self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError:
                self._threads.discard(thread)
                raise

    def _work(self) -> None:
        batch: list[_Queued[Item, Result]] | None = None
        try:
            while (batch := self._take()) is not None:
                if batch:
                    self._answer(batch)
                else:
                    self._trim()
        except BaseException as error:
            # Not an error of the input (those are handled below), but the end of this thread.
            logger.exception("a worker of %s died", self._name)
            for entry in batch or ():
                _fail(entry, EngineFailure(f"an inference worker died ({type(error).__name__}) and is being replaced"))
        finally:
            with self._changed:
                self._threads.discard(threading.current_thread())
                if self._waiting:
                    self._replace()

    def _replace(self) -> None:
        """Start another worker for the waiting items, or fail them if that is impossible. Called with the lock held."""
        try:
            self._start_worker()
        except RuntimeError:
            if not self._threads:
                for entry in self._take_all():
                    _fail(entry, Busy("the system has no thread left for inference: try again in a moment"))

    def _take(self) -> list[_Queued[Item, Result]] | None:
        """Wait for work and take a batch of it. An empty list: a burst is over. None: the batcher is closed."""
        while True:
            late: list[_Queued[Item, Result]] = []
            with self._changed:
                if not self._wait_for_work():
                    self._untrimmed = 0
                    return []
                if not self._waiting:
                    return None
                batch = self._next_batch(late)
                self._untrimmed += len(batch)
            for entry in late:
                _fail(entry, DeadlineExceeded("the time for this query or request was up before its turn came"))
            if batch:
                return batch

    def _next_batch(self, late: list[_Queued[Item, Result]]) -> list[_Queued[Item, Result]]:
        """Take the items for the next batch; cancelled and expired ones go to `late`. Called with the lock held."""
        batch: list[_Queued[Item, Result]] = []
        largest, now = 0, time.monotonic()
        while len(batch) < self.max_batch_size and (entry := self._waiting.first()) is not None:
            deadline = entry.caller.deadline
            if deadline is not None and deadline <= now:
                late.append(entry)
            else:
                size = max(largest, self._size(entry.item))
                if batch and not self._in_time((len(batch) + 1) * size):
                    break
                if entry.set_running_or_notify_cancel():
                    largest = size
                    batch.append(entry)
            self._waiting.pop()
        return batch

    def _in_time(self, size: int) -> bool:
        """Whether a batch of this size, padding included, can be computed in time. Unknown, and so True, for the
        first.
        """
        return self._batch_s is None or (bool(self._paces) and median(self._paces) * size <= self._batch_s)

    def _wait_for_work(self) -> bool:
        """Wait until there is work or the batcher is closed. Returns False if nothing came after a burst. With the
        lock held.
        """
        self._idle += 1
        try:
            while not self._waiting and not self._closed:
                timed_out = not self._changed.wait(self._burst_over_s if self._untrimmed >= BURST_ITEMS else None)
                # Another worker may have handled it, or may still be working.
                all_idle = not self._waiting and self._idle == len(self._threads)
                if timed_out and all_idle and self._untrimmed >= BURST_ITEMS:
                    return False
            return True
        finally:
            self._idle -= 1

    def _answer(self, batch: list[_Queued[Item, Result]]) -> None:
        try:
            self._load()
            began = self._clock()
            results = self._run([entry.item for entry in batch])
            if len(results) != len(batch):
                raise EngineFailure(f"expected {len(batch)} results of a batch, found {len(results)}")
        except Exception as error:
            if len(batch) == 1 or isinstance(error, ModelCorrupt):
                for entry in batch:
                    _fail(entry, _translate(error))
                return
            for entry in batch:
                self._answer([entry])
            return
        took = self._clock() - began
        with self._changed:
            self.sizes[len(batch)] += 1
            self.seconds += took
            self._paces.append(took / (len(batch) * max(1, *(self._size(entry.item) for entry in batch))))
        for entry, result in zip(batch, results, strict=True):
            if entry.keep is not None:
                entry.keep(result)
            entry.set_result(result)


def _translate(error: Exception) -> VisionError:
    if isinstance(error, VisionError):
        return error
    logger.error("inference failed", exc_info=error)
    return EngineFailure("inference failed on this input; see the log")


def _fail(future: Future[Any], error: VisionError) -> None:
    with contextlib.suppress(InvalidStateError):  # it has a result already, or is cancelled
        future.set_exception(error)
