"""Embeds 5,000 JPEGs of up to 12 megapixels, 50 of them broken, while it is killed ten times; and once in one go.

DATASETTE_VISION_MODELS=… python benchmarks/bulk_resume.py [--model clip] [--count 5000] [--broken 50] [--kills 10]

Fails unless the two databases are equal, the broken files are the ones that are named, and at most 5 % of the
inferences were made twice.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from generated import write_pictures

from datasette_vision.bulk.embed_table import embed_table
from datasette_vision.bulk.pipeline import config_for_bulk
from datasette_vision.engine.encoder import LoadSession, load_on
from datasette_vision.engine.vision import Vision


def work(database: Path, folder: Path, model: str, log: Path) -> None:
    """Embed, adding a byte to the log for each inference: what is written so survives a kill."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def load(threads: int | None, providers: Any) -> LoadSession:
        real = load_on(threads, providers)

        def open_counting(path: Path, inputs: tuple[str, ...], output: str) -> Any:
            session = real(path, inputs, output)

            class Counting:
                def run(self, values: Any) -> Any:
                    answer = session.run(values)
                    os.write(descriptor, b"." * len(answer))
                    return answer

            return Counting()

        return open_counting

    vision = Vision(config_for_bulk(), load=load)
    print(embed_table(database, "photos", vision=vision, model=model, base=folder), flush=True)


def make_database(path: Path, folder: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("create table photos (path text primary key)")
    names = ((file.relative_to(folder).as_posix(),) for file in sorted(folder.rglob("*.jpg")))
    connection.executemany("insert into photos values (?)", names)
    connection.commit()
    connection.close()


def contents(path: Path) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    columns = "path, source_column, model, content_hash, embedding, error"
    return connection.execute(f"select {columns} from _vision_photos order by 1, 2, 3").fetchall()


def done(path: Path) -> int:
    connection = sqlite3.connect(path, timeout=60)
    try:
        return int(connection.execute("select count(*) from _vision_photos").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        connection.close()


def run(database: Path, folder: Path, model: str, log: Path) -> subprocess.Popen[bytes]:
    arguments = ["--work", str(database), "--folder", str(folder), "--model", model, "--log", str(log)]
    return subprocess.Popen([sys.executable, __file__, *arguments])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="clip")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--broken", type=int, default=50)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where the pictures are made, and stay")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.folder, options.model, options.log)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "pictures"
        broken = write_pictures(folder, options.count, options.broken)
        whole, killed = Path(temporary) / "whole.db", Path(temporary) / "killed.db"
        for database in (whole, killed):
            make_database(database, folder)
        assert run(whole, folder, options.model, whole.with_suffix(".log")).wait() == 0
        # At random, in the sense of where in the work: each at a point of its own part of it.
        source = random.Random(options.count)
        log = killed.with_suffix(".log")
        for kill in range(options.kills):
            at = options.count * (kill + source.random()) / options.kills
            process = run(killed, folder, options.model, log)
            while done(killed) < at and process.poll() is None:
                time.sleep(0.002)
            time.sleep(source.random() * 0.3)  # anywhere between two transactions
            process.send_signal(signal.SIGKILL)
            process.wait()
            print(f"killed with {done(killed):,} rows written, {log.stat().st_size:,} inferences made", flush=True)
        assert run(killed, folder, options.model, log).wait() == 0
        expected, found = contents(whole), contents(killed)
        named = [row[0] for row in found if row[5] is not None]
        inferences, least = log.stat().st_size, whole.with_suffix(".log").stat().st_size
        twice = inferences / least - 1
        print(
            f"{len(found):,} rows, {len(named)} of them broken; equal to those of a run in one go: {found == expected}"
        )
        print(f"{inferences:,} inferences instead of {least:,}: {100 * twice:.1f} % twice")
        if found != expected or named != sorted(broken) or twice > 0.05 or len(found) != options.count:
            sys.exit("FAILED")


if __name__ == "__main__":
    main()
