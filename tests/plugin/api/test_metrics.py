"""The metrics, read by Prometheus' own parser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from datasette_vision.plugin.api.metrics import products
from datasette_vision.plugin.http.context import context_of
from tests.plugin.api.test_api import DATA_URI, Api, error


async def read(api: Api) -> dict[str, float]:
    """The metrics as {"name{label=value,…}": value}."""
    response = await api.get("metrics")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        f"{sample.name}{{{','.join(f'{key}={value}' for key, value in sorted(sample.labels.items()))}}}": sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


@pytest.mark.asyncio
async def test_what_is_counted(fake_models: Path) -> None:
    api = Api(fake_models, allow_metrics=True)
    before = await read(api)
    # Nothing is loaded in order to be measured.
    assert all(value == 0 for name, value in before.items() if name.startswith("vision_model_loaded"))
    assert not context_of(api.datasette)._inference.loaded
    await api.post("embed", {"text": ["a", "b", "c"]})
    await api.post("embed", {"text": ["a", "b", "c"]})
    await api.post("embed", {"inputs": [DATA_URI, {"image": "nonsense"}]})
    await api.get("embed", text="x", model="nope")
    await api.get("classify", image=DATA_URI)
    await api.datasette.client.request("BREW", "/-/vision/embed")
    found = await read(api)
    assert found["vision_requests_total{method=POST,route=embed,status=200}"] == 3
    assert found["vision_requests_total{method=GET,route=embed,status=404}"] == 1
    assert found["vision_requests_total{method=other,route=embed,status=405}"] == 1
    assert found["vision_requests_total{method=GET,route=metrics,status=200}"] == 1
    assert found["vision_request_seconds_count{route=embed}"] == 5
    assert found["vision_request_seconds_bucket{le=+Inf,route=embed}"] == 5
    assert found["vision_request_seconds_sum{route=embed}"] > 0
    assert found["vision_inputs_total{kind=text,route=embed}"] == 7
    assert found["vision_inputs_total{kind=image,route=embed}"] == 2
    assert found["vision_errors_total{class=InvalidImage,route=embed}"] == 1
    assert found["vision_errors_total{class=UnknownModel,route=embed}"] == 1
    assert found["vision_errors_total{class=RequestError,route=embed}"] == 1
    assert found["vision_inputs_in_hand{}"] == 0
    assert found["vision_body_bytes_in_hand{}"] == 0
    assert found["vision_model_loaded{model=fake,tower=text}"] == 1
    assert found["vision_model_loaded{model=fake,tower=image}"] == 1
    assert found["vision_model_loaded{model=fake-classifier,tower=image}"] == 1
    assert found["vision_queue_depth{model=fake,tower=text}"] == 0
    assert found["vision_batch_size_sum{model=fake,tower=text}"] == 3
    assert 1 <= found["vision_batch_size_count{model=fake,tower=text}"] <= 3
    assert found["vision_batch_size_bucket{le=+Inf,model=fake,tower=image}"] == 1
    assert found["vision_compute_seconds_total{model=fake,tower=text}"] > 0
    assert found["vision_cache_hits_total{}"] == 3
    assert found["vision_cache_misses_total{}"] >= 4
    assert found["vision_cache_bytes{}"] > 0
    assert found["vision_products_widened{}"] in {0, 1}


@pytest.mark.parametrize(("widened", "values"), [(None, []), (False, [0]), (True, [1])])
def test_how_products_are_computed(widened: bool | None, values: list[int]) -> None:
    assert [sample.value for metric in products(widened) for sample in metric.samples] == values


@pytest.mark.asyncio
async def test_who_may_read_them(fake_models: Path) -> None:
    api = Api(fake_models)
    assert error(await api.get("metrics"), 403) == "Permission denied: vision-metrics"
    api.datasette.root_enabled = True  # as --root does on Datasette 1.0
    cookies = {"ds_actor": api.datasette.sign({"a": {"id": "root"}}, "actor")}
    assert (await api.datasette.client.get("/-/vision/metrics", cookies=cookies)).status_code == 200


@pytest.mark.asyncio
async def test_the_registry_of_others_is_left_alone(fake_models: Path) -> None:
    one, other = Api(fake_models, allow_metrics=True), Api(fake_models, allow_metrics=True)
    await one.get("embed", text="x")
    await one.get("metrics")
    assert "vision_requests_total{method=GET,route=embed,status=200}" in await read(one)
    assert not any("route=embed" in name for name in await read(other))
    collected: list[Any] = list(REGISTRY.collect())
    assert not any(metric.name.startswith("vision_") for metric in collected)
