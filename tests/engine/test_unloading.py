"""Models leave memory when nobody asks for them, and come back when somebody does."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from datasette_vision.config.settings import Config, ModelConfig
from datasette_vision.engine.vision import Vision
from datasette_vision.models.store import ModelStore
from datasette_vision.util import memory
from tests import fakes, pictures
from tests.paths import ROOT


def wait_until_empty(vision: Vision, name: str) -> None:
    for _ in range(1200):
        if not vision.services.loaded(name):
            return
        time.sleep(0.05)
    pytest.fail(f"{name} did not leave memory")


def test_an_idle_model_is_unloaded_and_loaded_again(fake_models: Path, counting: fakes.CountingLoads) -> None:
    config = Config(default_model="fake", models={"fake": ModelConfig(unload_after=0.2)}, cache_mb=0)
    vision = Vision(config, store=ModelStore(fake_models), load=counting)
    before = vision.embed_text("cat")
    vision.embed_text("cat", "fake-wide")
    vision.embed_image(pictures.png())
    wait_until_empty(vision, "fake")
    assert vision.services.loaded("fake-wide") == ["text"]  # unload_after is the other model's
    np.testing.assert_array_equal(vision.embed_text("cat"), before)
    assert counting.loads.count("text.onnx") == 3
    vision.close()


def test_unloading_does_not_disturb_callers(fake_models: Path, counting: fakes.CountingLoads) -> None:
    config = Config(default_model="fake", unload_after=0.001, cache_mb=0)
    vision = Vision(config, store=ModelStore(fake_models), load=counting)
    expected = vision.embed_text("cat")
    for _ in range(40):
        np.testing.assert_array_equal(vision.embed_text("cat"), expected)
        time.sleep(0.002)
    assert len(counting.loads) > 5
    vision.close()


@pytest.mark.skipif(not memory.STATUS.exists(), reason="needs a system that tells resident memory")
def test_unloading_gives_the_memory_back(tmp_path: Path) -> None:
    """A model with 100 MB of weights, in a process of its own."""
    script = """
    import sys, time
    from pathlib import Path
    from datasette_vision.util import memory
    from datasette_vision.config.settings import Config
    from datasette_vision.models.store import ModelStore
    from datasette_vision.engine.vision import Vision
    from tests import fakes

    folder = fakes.make_dual_encoder(Path(sys.argv[1]), "large", 100_000)
    vision = Vision(Config(default_model="large", unload_after=0.5, cache_mb=0), store=ModelStore(folder.parent))
    vision.embed_text("warm", "tiny-emoji")
    memory.give_back()
    before = memory.resident_mib()
    vision.embed_text("cat")
    during = memory.resident_mib()
    while vision.services.loaded("large"):
        time.sleep(0.05)
    time.sleep(0.5)
    print(before, during, memory.resident_mib())
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    before, during, after = map(float, result.stdout.split())
    assert during - before > 80
    assert after - before < 20
