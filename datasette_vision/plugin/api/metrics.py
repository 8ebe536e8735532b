"""The server's metrics in the Prometheus format, at /-/vision/metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from datasette_vision.plugin.api.examples import RequestExample
from datasette_vision.plugin.http.context import Call, RequestContext
from datasette_vision.plugin.http.counters import LATENCY_BUCKETS_S
from datasette_vision.plugin.http.responses import respond
from datasette_vision.plugin.http.routes import GET, Route
from datasette_vision.plugin.server import permissions

if TYPE_CHECKING:
    from datasette.utils.asgi import Response

    from datasette_vision.engine.batcher import Batcher

# Upper bounds of the buckets in the histogram of batch sizes.
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MEDIA_TYPE = "text/plain"


class Collector:
    """Turns a server's counts into metrics, on request.

    Counts change on other threads meanwhile, so they are copied before iterating.
    """

    def __init__(self, context: RequestContext) -> None:
        self._context = context

    def collect(self) -> Iterator[Any]:
        """Yield the metrics, as prometheus_client's registries ask for them."""
        yield from self._requests()
        if self._context.has_vision:
            yield from self._models()
            yield from self._cache()

    def _requests(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        measures, limits = self._context.measures, self._context.limits
        requests = CounterMetricFamily(
            "vision_requests", "HTTP requests answered.", labels=["route", "method", "status"]
        )
        for (route, method, status), count in sorted(dict(measures.requests).items()):
            requests.add_metric([route, method, str(status)], count)
        yield requests
        latencies = HistogramMetricFamily(
            "vision_request_seconds", "Time from a request to its response.", labels=["route"]
        )
        for route, latency in sorted(dict(measures.latencies).items()):
            latencies.add_metric([route], _buckets(LATENCY_BUCKETS_S, latency.counts), latency.sum_s)
        yield latencies
        items = CounterMetricFamily("vision_inputs", "Inputs of HTTP requests.", labels=["route", "kind"])
        for (route, kind), count in sorted(dict(measures.items).items()):
            items.add_metric([route, kind], count)
        yield items
        errors = CounterMetricFamily(
            "vision_errors", "Errors over HTTP, of requests and of their inputs.", labels=["route", "class"]
        )
        for (route, name), count in sorted(dict(measures.errors).items()):
            errors.add_metric([route, name], count)
        yield errors
        yield GaugeMetricFamily("vision_inputs_in_hand", "Inputs of requests in progress.", limits.inputs)
        yield GaugeMetricFamily("vision_body_bytes_in_hand", "Bytes of bodies of requests in progress.", limits.bytes)

    def _models(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        from datasette_vision.engine import runtime  # with NumPy: not at start

        labels = ["model", "tower"]
        loaded = GaugeMetricFamily("vision_model_loaded", "1 when a tower is in memory.", labels=labels)
        waiting = GaugeMetricFamily("vision_queue_depth", "Inputs waiting to be computed.", labels=labels)
        batches = HistogramMetricFamily("vision_batch_size", "Inputs per batch.", labels=labels)
        seconds = CounterMetricFamily("vision_compute_seconds", "Time spent computing batches.", labels=labels)
        for name, service in sorted(self._context.vision.services.running().items()):
            in_memory = service.loaded()
            for tower, queue in service.queues.items():
                key = [name, tower]
                loaded.add_metric(key, 1 if tower in in_memory else 0)
                waiting.add_metric(key, queue.waiting)
                batches.add_metric(key, *_batches(queue))
                seconds.add_metric(key, queue.seconds)
        yield from (loaded, waiting, batches, seconds)
        yield from products(runtime.known_overflow())

    def _cache(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        cache = self._context.vision.cache
        yield CounterMetricFamily("vision_cache_hits", "Embeddings found in the cache.", cache.hits)
        yield CounterMetricFamily("vision_cache_misses", "Embeddings not found in the cache.", cache.misses)
        yield GaugeMetricFamily("vision_cache_bytes", "Memory used by the cache.", cache.bytes)


def products(widened: bool | None) -> Iterator[Any]:
    """Yield how 8-bit products are computed: nothing before a model was loaded."""
    from prometheus_client.core import GaugeMetricFamily

    if widened is not None:
        help = "1 when 8-bit products overflow on this processor, and exact but slower ones are computed."
        yield GaugeMetricFamily("vision_products_widened", help, int(widened))


def _buckets(bounds: tuple[float, ...], counts: list[int]) -> list[tuple[str, float]]:
    """Return (upper bound, count up to it) for counts, of which the last is for values beyond all bounds."""
    total = 0
    found = []
    for bound, count in zip((*map(str, map(float, bounds)), "+Inf"), counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found


def _batches(queue: Batcher[Any, Any]) -> tuple[list[tuple[str, float]], float]:
    counts = [0] * (len(BATCH_BUCKETS) + 1)
    sizes = queue.sizes.copy()
    for size, count in sizes.items():
        counts[sum(size > bound for bound in BATCH_BUCKETS)] += count
    return _buckets(BATCH_BUCKETS, counts), float(sum(size * count for size, count in sizes.items()))


def exposition(context: RequestContext) -> str:
    """Return all metrics of a server as text."""
    from prometheus_client import CollectorRegistry, generate_latest  # not needed at start

    # A separate registry: the global one holds what other plugins publish on their own routes.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(context))
    return generate_latest(registry).decode("utf-8")


async def metrics(call: Call) -> Response:
    """Return the metrics."""
    # On the event loop, where the counters change. It takes about a millisecond.
    return respond(call.datasette, exposition(call.context), f"{MEDIA_TYPE}; version=0.0.4; charset=utf-8")


ROUTES = (
    Route(
        "metrics",
        "/metrics",
        "Show the metrics",
        "Requests, inputs, batches, queues, latencies, the cache and errors, in the Prometheus format. Requires the"
        " permission `vision-metrics`: only root has it, unless `allow_metrics` in the configuration says otherwise.",
        metrics,
        methods=(GET,),
        action=permissions.METRICS,
        strict=False,
        answer={"type": "string"},
        media_type=MEDIA_TYPE,
        example=RequestExample(),
    ),
)
