"""Fair queues: a client with much work does not keep the others waiting."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from datasette_vision.errors import Busy
from datasette_vision.util.caller import NOBODY, Caller, acting, current

Entry = TypeVar("Entry")
T = TypeVar("T")


class Turns(Generic[Entry]):
    """Waiting entries in a fair order: clients take turns, and so do the callers of a client. One caller's entries are
    in order.

    Entries are compared by hash. Not thread-safe: users hold a lock.
    """

    def __init__(self) -> None:
        self._clients: OrderedDict[str, OrderedDict[Caller, OrderedDict[Entry, None]]] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def count(self, client: str) -> int:
        """Return how many entries of a client are waiting."""
        return self._counts[client]

    def add(self, entry: Entry, caller: Caller) -> None:
        """Queue an entry behind the caller's others. A new caller or client comes last in the round."""
        self._clients.setdefault(caller.client, OrderedDict()).setdefault(caller, OrderedDict())[entry] = None
        self._counts[caller.client] += 1
        self._length += 1

    def first(self) -> Entry | None:
        """Return the entry that is next, None if there is none. It stays."""
        for callers in self._clients.values():
            return next(iter(next(iter(callers.values()))))
        return None

    def pop(self) -> Entry | None:
        """Take the entry that is next, None if there is none. Then it is the next client's turn."""
        entry = self.first()
        if entry is not None:
            client, callers = next(iter(self._clients.items()))
            caller = next(iter(callers))
            self.remove(entry, caller)
            if caller in callers:
                callers.move_to_end(caller)
            if client in self._clients:
                self._clients.move_to_end(client)
        return entry

    def remove(self, entry: Entry, caller: Caller) -> bool:
        """Remove an entry; return whether it was there."""
        callers = self._clients.get(caller.client)
        entries = None if callers is None else callers.get(caller)
        if callers is None or entries is None or entry not in entries:
            return False
        del entries[entry]
        self._length -= 1
        self._counts[caller.client] -= 1
        if not entries:
            del callers[caller]
        if not callers:
            del self._clients[caller.client]
            del self._counts[caller.client]
        return True

    def crowd_out(self, client: str) -> Entry | None:
        """Remove and return the newest entry of the client with the most, to make room for one of `client`; or return
        None.

        None if no client would have more than `client` afterwards. NOBODY's entries stay: they are few, and nobody
        would submit them again.
        """
        others = [name for name in self._clients if name != NOBODY.client]
        heaviest = max(others, key=self._counts.__getitem__, default=client)
        if self._counts[heaviest] <= self.count(client) + 1:
            return None
        caller, entries = max(self._clients[heaviest].items(), key=lambda pair: len(pair[1]))
        entry = next(reversed(entries))
        self.remove(entry, caller)
        return entry


class Waiting(Future[T]):
    """A future of a waiting entry. Cancelling it frees its place at once."""

    def __init__(self, caller: Caller, leave: Callable[[Waiting[T]], None]) -> None:
        super().__init__()
        self.caller = caller
        self._leave = leave

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            self._leave(self)
        return cancelled


class _Task(Waiting[Any]):
    call: Callable[[], Any]


class FairPool:
    """Threads that run functions in turns. The next one is chosen when a thread is free."""

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, name)
        self._turns: Turns[_Task] = Turns()
        self._lock = threading.Lock()

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Run a function on a thread, for the caller of this method. Raises Busy if the pool is closed."""
        task = _Task(current(), self._forget)
        task.call = lambda: function(*arguments)
        with self._lock:
            self._turns.add(task, task.caller)
        try:
            self._pool.submit(self._run_next)
        except RuntimeError as error:  # the pool is closed, or no thread is available
            self._forget(task)
            raise Busy(f"no more work can be accepted now ({error}): try again in a moment") from None
        return task

    def close(self) -> None:
        """Refuse new work. Waiting work is still run."""
        self._pool.shutdown(wait=False)

    def _run_next(self) -> None:
        with self._lock:
            task = self._turns.pop()
        if task is None or not task.set_running_or_notify_cancel():
            return  # cancelled meanwhile
        try:
            with acting(task.caller):
                result = task.call()
        except BaseException as error:
            task.set_exception(error)
        else:
            task.set_result(result)
        finally:
            del task.call  # together with what it holds

    def _forget(self, task: Waiting[Any]) -> None:
        with self._lock:
            self._turns.remove(task, task.caller)  # type: ignore[arg-type]
