"""Image understanding in SQL: CLIP embeddings and image classification for Datasette.

This is the public Python API (docs/python.md). The modules below it may change. Names are imported when they are first
used, so that Datasette starts without NumPy, Pillow or ONNX Runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasette_vision.bulk.embed_table import embed_table
    from datasette_vision.bulk.load import LoadSummary, load
    from datasette_vision.bulk.pipeline import config_for_bulk
    from datasette_vision.bulk.tally import Summary
    from datasette_vision.config.settings import Config
    from datasette_vision.engine.vision import Vision
    from datasette_vision.errors import (
        Busy,
        ConfigError,
        DeadlineExceeded,
        DimensionMismatch,
        DownloadFailed,
        EngineFailure,
        ExtraMissing,
        InstallFailed,
        InvalidArgument,
        InvalidImage,
        InvalidInput,
        InvalidLabels,
        InvalidText,
        InvalidVector,
        ModelCorrupt,
        NotEmbedded,
        NotPermitted,
        SourceNotFound,
        StorageFailed,
        UnknownModel,
        Unreadable,
        VisionError,
        WrongTask,
    )
    from datasette_vision.retrieval.hits import Hit
    from datasette_vision.retrieval.search import search
    from datasette_vision.sql.registration import register_functions as register

__version__ = "0.1.0"

# name -> (module, name in that module)
_PLACES = {
    "Config": ("config.settings", "Config"),
    "Hit": ("retrieval.hits", "Hit"),
    "LoadSummary": ("bulk.load", "LoadSummary"),
    "Summary": ("bulk.embed_table", "Summary"),
    "Vision": ("engine.vision", "Vision"),
    "config_for_bulk": ("bulk.pipeline", "config_for_bulk"),
    "embed_table": ("bulk.embed_table", "embed_table"),
    "load": ("bulk.load", "load"),
    "register": ("sql.registration", "register_functions"),
    "search": ("retrieval.search", "search"),
}

__all__ = [
    "Busy",
    "Config",
    "ConfigError",
    "DeadlineExceeded",
    "DimensionMismatch",
    "DownloadFailed",
    "EngineFailure",
    "ExtraMissing",
    "Hit",
    "InstallFailed",
    "InvalidArgument",
    "InvalidImage",
    "InvalidInput",
    "InvalidLabels",
    "InvalidText",
    "InvalidVector",
    "LoadSummary",
    "ModelCorrupt",
    "NotEmbedded",
    "NotPermitted",
    "SourceNotFound",
    "StorageFailed",
    "Summary",
    "UnknownModel",
    "Unreadable",
    "Vision",
    "VisionError",
    "WrongTask",
    "__version__",
    "config_for_bulk",
    "embed_table",
    "load",
    "register",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, inner = _PLACES.get(name, ("errors", name))
    value = getattr(importlib.import_module(f"{__name__}.{module}"), inner)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
