"""What makes a property of a test: generated inputs, a bound on the time and memory of each, and their count."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# For one input, generous on a busy machine: real costs are milliseconds.
CPU_S = 5.0
MEGABYTES = 300
# An input is interrupted, by a signal, after so many seconds of processor time or, where it only waits, by the clock.
# A loop in C may not notice: then the stack is written and the process ends.
INTERRUPT_CPU_S, INTERRUPT_S, END_S = 60.0, 600.0, 900.0
# The most address space that an input may ask for beyond what there is: it protects the machine, not the property.
MOST_BYTES = 4 << 30

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CAN_MEASURE = STATUS.exists() and CLEAR_REFS.exists() and os.access(CLEAR_REFS, os.W_OK)

# How many inputs each property was tried with in this process, by the name of its test.
TRIED: Counter[str] = Counter()
# Where the input at hand is kept, for when it ends the process.
LAST_INPUT = os.environ.get("FUZZ_LAST_INPUT")
# The descriptor on which a stack is written that ends the process; conftest.py knows a better one.
stderr = 2


def fuzz(
    *positional: Any,
    weight: float = 1,
    cpu_s: float = CPU_S,
    megabytes: int = MEGABYTES,
    **named: Any,
) -> Callable[[Callable[..., None]], Any]:
    """Make a property of a test: hypothesis.given(), with each input bounded and counted.

    `weight` multiplies the number of inputs: below 1 for slow properties. `cpu_s` and `megabytes` bound each input.
    """

    def decorate(test: Callable[..., None]) -> Any:
        @functools.wraps(test)
        def one(*arguments: Any, **keywords: Any) -> None:
            TRIED[os.environ.get("PYTEST_CURRENT_TEST", test.__name__).split(" ")[0]] += 1
            if LAST_INPUT:
                Path(LAST_INPUT).write_text(f"{test.__name__}\n{arguments!r}\n{keywords!r}\n", "utf-8", "replace")
            with bounded(cpu_s, megabytes):
                test(*arguments, **keywords)

        most = max(2, round(settings().max_examples * weight))
        return settings(max_examples=most)(given(*positional, **named)(one))

    return decorate


@contextlib.contextmanager
def bounded(cpu_s: float = CPU_S, megabytes: int = MEGABYTES) -> Iterator[None]:
    """Fail when the block takes more processor time or resident memory than this, or does not end."""
    with _ending(), _little_address_space():
        before = _resident("VmRSS", reset=True)
        began = time.process_time()
        yield
        used, grown = time.process_time() - began, (_resident("VmHWM") - before) / 1e6
    assert used <= cpu_s, f"this input took {used:.1f} s of processor time, more than {cpu_s:g} s"
    assert grown <= megabytes, f"this input took {grown:.0f} MB of memory, more than {megabytes} MB"


def assert_linear(work: Callable[[int], object], count: int, *, at_most: float = 30, floor_s: float = 0.25) -> None:
    """Fail when ten times the input takes more than `at_most` times the processor time.

    `work(n)` handles an input of n pieces. Below `floor_s` seconds nothing is compared.
    """

    def seconds(pieces: int) -> float:
        began = time.process_time()
        work(pieces)
        return time.process_time() - began

    large = seconds(10 * count)
    if large > floor_s:
        # Once more, when nothing else, such as a collection of garbage, happens to be in between.
        small, large = seconds(count), min(large, seconds(10 * count))
        assert large <= max(at_most * small, floor_s), (
            f"{count} pieces take {small:.3f} s, {10 * count} pieces {large:.3f} s: more than {at_most:g} times that"
        )


def _resident(name: str, reset: bool = False) -> int:
    """Return the bytes of resident memory, now (VmRSS) or at most since a reset (VmHWM); 0 where nobody counts."""
    if not CAN_MEASURE:
        return 0
    if reset:
        CLEAR_REFS.write_text("5")
    for line in STATUS.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        # Not an Exception, so that no code under test takes it for one of a decoder's.
        pytest.fail(f"this input was not done after {INTERRUPT_CPU_S:g} s of processor time, or {INTERRUPT_S:g} s")

    timers = {"SIGALRM": ("ITIMER_REAL", INTERRUPT_S), "SIGPROF": ("ITIMER_PROF", INTERRUPT_CPU_S)}

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    previous = {name: signal.signal(getattr(signal, name), interrupt) for name in timers}
    for timer, seconds in timers.values():
        signal.setitimer(getattr(signal, timer), seconds)
    faulthandler.dump_traceback_later(END_S, exit=True, file=stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        for timer, _ in timers.values():
            signal.setitimer(getattr(signal, timer), 0)
        for name, handler in previous.items():
            signal.signal(getattr(signal, name), handler)


@contextlib.contextmanager
def _little_address_space() -> Iterator[None]:
    if resource is None or not CAN_MEASURE:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = _resident("VmSize") + MOST_BYTES
    if before[1] != resource.RLIM_INFINITY:
        limit = min(limit, before[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
