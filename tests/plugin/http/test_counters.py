"""plugin/http/counters.py: what the HTTP API counts."""

from __future__ import annotations

from datasette_vision.plugin.http.counters import LATENCY_BUCKETS_S, Latencies, Measures


def test_a_duration_counts_into_the_first_bucket_that_holds_it() -> None:
    latencies = Latencies()
    for seconds in (0.0, LATENCY_BUCKETS_S[0], 0.003, LATENCY_BUCKETS_S[-1], 1000.0):
        latencies.add(seconds)
    assert latencies.counts == [2, 1, *[0] * (len(LATENCY_BUCKETS_S) - 3), 1, 1]
    assert latencies.sum_s == 0.0025 + 0.003 + 120.0 + 1000.0


def test_requests_and_errors_are_counted_by_their_route() -> None:
    measures = Measures()
    for _ in range(2):
        measures.request("embed", "POST", 200, 0.5)
        measures.error("embed", ValueError())
    measures.request("embed", "POST", 400, 0.25)
    measures.error("search", ValueError())
    assert measures.requests == {("embed", "POST", 200): 2, ("embed", "POST", 400): 1}
    assert measures.errors == {("embed", "ValueError"): 2, ("search", "ValueError"): 1}
    assert measures.latencies["embed"].sum_s == 1.25
