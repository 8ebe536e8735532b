"""Embedding models for the llm tool that need no download; a pytest plugin, so that other projects' tests can use it.

`embed-demo` counts letters, sixteen words at most; `embed-key-demo` also shows the length of the key it was given, in
its last float. The tests of datasette-llm-embed expect models of these names, which behave so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import llm
import pytest
from llm.plugins import pm


class EmbedDemo(llm.EmbeddingModel):
    model_id = "embed-demo"
    batch_size = 10
    supports_binary = True

    def __init__(self) -> None:
        self.embedded: list[Any] = []

    def embed_batch(self, items: Iterable[Any]) -> Iterator[list[float]]:
        for item in items:
            self.embedded.append(item)
            lengths = [float(len(word)) for word in item.split()[:16]]
            yield lengths + [0.0] * (16 - len(lengths))


class EmbedKeyDemo(EmbedDemo):
    model_id = "embed-key-demo"
    needs_key = "embed-key-demo"

    def embed_batch(self, items: Iterable[Any]) -> Iterator[list[float]]:
        for vector in super().embed_batch(items):
            yield [*vector[:15], float(len(self.key or ""))]


class EmbedFails(EmbedDemo):
    model_id = "embed-fails"

    def embed_batch(self, items: Iterable[Any]) -> Iterator[list[float]]:
        raise RuntimeError("secret /etc/passwd")


class Plugin:
    __name__ = "DemoModels"

    def __init__(self) -> None:
        self.model = EmbedDemo()

    @llm.hookimpl
    def register_embedding_models(self, register: Any) -> None:
        register(self.model, aliases=("demo-alias",))
        register(EmbedKeyDemo())
        register(EmbedFails())


@pytest.fixture(autouse=True)
def demo_models() -> Iterator[EmbedDemo]:
    plugin = Plugin()
    pm.register(plugin, name="datasette-vision-tests")
    yield plugin.model
    pm.unregister(name="datasette-vision-tests")
