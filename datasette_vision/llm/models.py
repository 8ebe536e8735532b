"""Embedding models of the llm tool, for llm_embed() with names that are not ours."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from datasette_vision.errors import EngineFailure, UnknownModel
from datasette_vision.vectors.embedding import Vector

if TYPE_CHECKING:
    import llm

logger = logging.getLogger(__name__)


class LlmModels:
    """Finds llm's models by name or alias, loads each once, and keeps it. Thread-safe.

    `keys` holds API keys by model id, as in datasette-llm-embed's configuration. `our_names` is called for the message
    about an unknown name.
    """

    def __init__(self, our_names: Callable[[], list[str]], keys: Mapping[str, str]) -> None:
        self._our_names = our_names
        self._keys = keys
        self._models: dict[str, tuple[llm.EmbeddingModel, threading.Lock]] = {}
        self._lock = threading.Lock()

    def embed(self, name: str, value: str | bytes) -> Vector:
        """Embed text or bytes: -> (d,) float32, as the model returns it.

        Raises UnknownModel, or EngineFailure if the model fails; the log has the details.
        """
        model, lock = self._find(name)
        try:
            with lock:  # llm makes no promise about threads, and several of its models are not thread-safe
                return np.asarray(model.embed(value), dtype=np.float32)
        except Exception as error:
            logger.error("llm model %s failed", name, exc_info=error)
            raise EngineFailure(
                f"the llm model {name[:64]!r} failed with {type(error).__name__}; see the server's log"
            ) from None

    def _find(self, name: str) -> tuple[Any, threading.Lock]:
        found = self._models.get(name)
        if found is None:
            with self._lock:
                found = self._models.get(name)
                if found is None:
                    found = self._models[name] = self._load(name), threading.Lock()
        return found

    def _load(self, name: str) -> Any:
        ours = ", ".join(self._our_names()) or "none"
        try:
            import llm  # optional, and heavy
        except ImportError:
            raise UnknownModel(
                f"no model {name[:64]!r} is installed; installed are: {ours} (llm, which has more, is not installed)"
            ) from None
        try:
            model = llm.get_embedding_model(name)
        except llm.UnknownModelError:
            raise UnknownModel(
                f"no model {name[:64]!r} is installed, and llm has none; installed are: {ours}"
            ) from None
        if model.model_id in self._keys:
            model.key = self._keys[model.model_id]
        return model
