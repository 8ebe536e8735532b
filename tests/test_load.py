"""Many clients at once on a real server: the right answer, or 503. benchmarks/load.py measures the same."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from datasette_vision.engine.vision import Vision
from tests import pictures
from tests.servers import serving

CLIENTS, TURNS, PLACES = 80, 6, 24


@pytest.mark.asyncio
async def test_many_clients_get_the_right_answer_or_are_told_to_wait(tmp_path: Path, vision: Vision) -> None:
    texts = [f"number {number} of the cats" for number in range(CLIENTS)]
    images = [pictures.jpeg(320, 240, seed) for seed in range(CLIENTS)]
    of_texts = [vision.embed_text(text) for text in texts]
    of_images = [vision.embed_image(image) for image in images]
    statuses: Counter[int] = Counter()
    started = asyncio.Event()

    async def ask(client: httpx.AsyncClient, number: int, turn: int) -> tuple[Any, np.ndarray]:
        address = "/-/vision/embed"
        if (number + turn) % 3 == 0:
            return await client.get(address, params={"text": texts[number]}), of_texts[number]
        if (number + turn) % 3 == 1:
            return await client.post(address, files={"image": ("x.jpg", images[number])}), of_images[number]
        body = {"image": base64.b64encode(images[number]).decode(), "encoding_format": "base64"}
        return await client.post(address, json=body), of_images[number]

    async def visit(client: httpx.AsyncClient, number: int) -> None:
        await started.wait()
        for turn in range(TURNS):
            response, expected = await ask(client, number, turn)
            statuses[response.status_code] += 1
            if response.status_code == 503:
                assert int(response.headers["retry-after"]) >= 1
                assert "inputs are waiting already" in response.json()["error"]
                continue
            assert response.status_code == 200, response.text
            found = response.json()["results"][0]["embedding"]
            if isinstance(found, str):
                found = np.frombuffer(base64.b64decode(found), "<f4")
            assert np.allclose(found, expected, rtol=0, atol=1e-4)

    with serving(tmp_path, cache_mb=0, max_queue=PLACES, allow_metrics=True) as address:
        # uvicorn closes connections that were idle for 5 seconds, which may be when the next request is on its way.
        limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS, keepalive_expiry=1)
        async with httpx.AsyncClient(base_url=address, timeout=100, limits=limits) as client:
            visits = [asyncio.ensure_future(visit(client, number)) for number in range(CLIENTS)]
            started.set()
            await asyncio.gather(*visits)
            # What was refused was so because all places were taken, and all are free again.
            metrics = (await client.get("/-/vision/metrics")).text
            assert "vision_inputs_in_hand 0.0" in metrics
            assert "vision_body_bytes_in_hand 0.0" in metrics
            counted = 'vision_requests_total{method="GET",route="embed",status="200"}'
            assert counted in metrics
            last, expected = await ask(client, 0, 0)
            assert last.status_code == 200
            assert np.allclose(last.json()["results"][0]["embedding"], expected, rtol=0, atol=1e-4)
    assert set(statuses) <= {200, 503}
    assert statuses.total() == CLIENTS * TURNS
    assert statuses[200] >= PLACES
