"""Fixtures. `fake…` ones are tiny models made on the fly; the bundled model is the real one."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import datasette.database
import pytest
from datasette.utils.sqlite import sqlite3 as datasette_sqlite3

from datasette_vision.config.settings import Config
from datasette_vision.demo import demo
from datasette_vision.engine.vision import Vision
from datasette_vision.models.store import ModelStore
from datasette_vision.sql import registration as sql
from tests import fakes

# Datasette has CPython print the traceback of every error in a SQL function, which pytest then takes for a defect.
assert datasette.database
datasette_sqlite3.enable_callback_tracebacks(False)


# A shell that starts the tests in the background has them ignore Ctrl-C, and so does every process they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def fake_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with a dual encoder, one of other dimensions, one with labels, and a classifier."""
    root = tmp_path_factory.mktemp("models")
    fakes.make_dual_encoder(root)
    fakes.make_dual_encoder(root, "fake-wide", 12)
    fakes.make_dual_encoder(
        root, "fake-labels", labels=[{"label": "x", "prompt": "an x"}, {"label": "y", "prompt": "a y", "group": "g"}]
    )
    fakes.make_classifier(root)
    return root


@pytest.fixture(autouse=True)
def _no_models_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests see the bundled model and what they make, never what is installed on the machine."""
    monkeypatch.setenv("DATASETTE_VISION_MODELS", str(tmp_path / "no-models"))


@pytest.fixture
def counting() -> fakes.CountingLoads:
    return fakes.CountingLoads()


@pytest.fixture
def fake_vision(fake_models: Path, counting: fakes.CountingLoads) -> Iterator[Vision]:
    """A Vision whose default model is the fake one."""
    vision = Vision(Config(default_model="fake"), store=ModelStore(fake_models), load=counting)
    yield vision
    vision.close()


@pytest.fixture(scope="session")
def vision() -> Iterator[Vision]:
    """A Vision on the bundled model."""
    vision = Vision()
    yield vision
    vision.close()


class Connection:
    """A database, in memory by default, with the SQL functions and the messages of their errors."""

    def __init__(self, vision: Vision, path: Path | str = ":memory:") -> None:
        self.messages: list[str] = []
        self.connection = sqlite3.connect(path, check_same_thread=False)
        sql.register(self.connection, lambda: vision, on_error=self.messages.append)

    def one(self, expression: str, *parameters: object) -> object:
        """The value of one SQL expression."""
        return self.connection.execute(f"select {expression}", parameters).fetchone()[0]

    def error(self, expression: str, *parameters: object) -> str:
        """The message of the error that an expression must raise."""
        self.messages.clear()
        with pytest.raises(sqlite3.OperationalError):
            self.one(expression, *parameters)
        assert len(self.messages) == 1, self.messages
        return self.messages[0]


@pytest.fixture
def fake_db(fake_vision: Vision) -> Iterator[Connection]:
    """SQL on the fake model."""
    connection = Connection(fake_vision)
    yield connection
    connection.connection.close()


@pytest.fixture
def db(vision: Vision) -> Iterator[Connection]:
    """SQL on the bundled model."""
    connection = Connection(vision)
    yield connection
    connection.connection.close()


@pytest.fixture(scope="session")
def demo_path(tmp_path_factory: pytest.TempPathFactory, vision: Vision) -> Path:
    """The demo database, made once."""
    path = tmp_path_factory.mktemp("demo") / "demo.db"
    demo.write_database(path, vision)
    return path


@pytest.fixture
def demo_connection(vision: Vision, demo_path: Path) -> Iterator[Connection]:
    """SQL on the demo database."""
    connection = Connection(vision, demo_path)
    yield connection
    connection.connection.close()
