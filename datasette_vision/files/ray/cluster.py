"""Connects to a Ray cluster, or starts one on this machine, and translates its errors."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import ray
from ray.data import DataContext

from datasette_vision.errors import VisionError
from datasette_vision.util.cores import available_cores

CONNECT_TIMEOUT_S = 10.0


# Images in Parquet files are read by tasks, which wait forever if workers hold every CPU.
SPARE_CPUS = 1


@contextlib.contextmanager
def cluster(address: str | None, quiet: bool) -> Iterator[int]:
    """Connect to a cluster or start one, unless the process has done so, and disconnect at the end.

    Yields how many of its CPUs are left for tasks. For a cluster that we start, one CPU more than there are is
    declared.
    """
    if ray.is_initialized():
        with _progress(quiet):
            yield 0
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"log_to_driver": not quiet, "logging_level": logging.WARNING}
    if address == "local":
        settle()
        options |= {"include_dashboard": False, "num_cpus": available_cores() + SPARE_CPUS}
    try:
        _reach(address)
        ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise VisionError(f"Ray at {address}: {error}") from None
    try:
        with _progress(quiet):
            yield SPARE_CPUS if address == "local" else 0
    finally:
        ray.shutdown()


def settle() -> None:
    """Set up the environment for a cluster that we start: no usage reports, and no early end of idle processes."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # By default, processes above the number of cores end after a second. With few cores, each written file would start
    # one, which takes two seconds of a core.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")


def _reach(address: str) -> None:
    """Check that something listens at HOST:PORT: Ray itself would wait for minutes. Raises OSError."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[None]:
    """Leave the progress to Ray, which shows it on a terminal and writes lines elsewhere; or disable it."""
    context, logger = DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, logger.level
    if quiet:
        context.enable_progress_bars = False
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        logger.setLevel(before[1])


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Raise our errors from the cluster as their original class."""
    context = DataContext.get_current()
    before, context.raise_original_map_exception = context.raise_original_map_exception, True
    try:
        yield
    except ray.exceptions.RayError as error:
        # Ray makes a class that is both its own error and ours, with the whole log as its text.
        cause = getattr(error, "cause", None)
        if isinstance(cause, VisionError):
            raise cause from None
        raise VisionError(f"Ray failed: {error}") from error
    finally:
        context.raise_original_map_exception = before
