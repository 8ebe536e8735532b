"""Counters of the HTTP API, as plain numbers. The library that publishes them is imported on request."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

# Upper bounds in seconds of the histogram's buckets. A text takes 3 ms with a small model.
LATENCY_BUCKETS_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)


class Latencies:
    """A histogram of durations in seconds."""

    def __init__(self) -> None:
        self.counts = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        self.sum_s += seconds


class Measures:
    """The counters of one server. Used on the event loop only."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()  # (route, method, status)
        self.latencies: dict[str, Latencies] = {}
        self.items: Counter[tuple[str, str]] = Counter()  # (route, kind of input)
        self.errors: Counter[tuple[str, str]] = Counter()  # (route, class of error)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a finished request."""
        self.requests[route, method, status] += 1
        self.latencies.setdefault(route, Latencies()).add(seconds)

    def error(self, route: str, error: BaseException) -> None:
        """Count an error: of a whole request, or of one of its inputs."""
        self.errors[route, type(error).__name__] += 1
