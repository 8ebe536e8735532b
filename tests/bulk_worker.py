"""Embeds a table in a process of its own, to be killed: python -m tests.bulk_worker DATABASE MODELS LOG.

Each inference adds a byte to LOG, and takes a moment.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasette_vision.bulk.embed_table import embed_table
from datasette_vision.bulk.pipeline import config_for_bulk
from datasette_vision.config.settings import Config
from datasette_vision.engine.encoder import LoadSession, load_on
from datasette_vision.engine.vision import Vision
from datasette_vision.models.store import ModelStore
from datasette_vision.util import transactions

SECONDS = 0.002


def main(database: str, models: str, log: str) -> None:
    transactions.TRANSACTION_S, transactions.TRANSACTION_SHARE = 0.01, 1.0  # as often as the disk can
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def load(threads: int | None, providers: Sequence[str]) -> LoadSession:
        real = load_on(threads, providers)

        def open_counting(path: Path, inputs: tuple[str, ...], output: str) -> Any:
            session = real(path, inputs, output)

            class Counting:
                one_by_one = session.one_by_one

                def run(self, values: Mapping[str, Any]) -> np.ndarray:
                    answer = session.run(values)
                    time.sleep(SECONDS * len(answer))
                    os.write(descriptor, b"." * len(answer))
                    return answer

            return Counting()

        return open_counting

    config = config_for_bulk(Config(default_model="fake"), workers=1, batch_size=2)
    embed_table(database, "photos", vision=Vision(config, store=ModelStore(Path(models)), load=load))


if __name__ == "__main__":
    main(*sys.argv[1:])
