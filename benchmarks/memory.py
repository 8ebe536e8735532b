"""Resident memory of a whole Datasette server, as it is asked for more and more.

python benchmarks/memory.py [--model clip]

Prints MiB, of which shared with files on disk (weights are mapped: the system can drop and read those pages again).
The model is one that is installed (DATASETTE_VISION_MODELS), by default the bundled one.
"""

from __future__ import annotations

import argparse
import io
import json
import sqlite3
import tempfile
from pathlib import Path

from PIL import Image
from servers import serve

from datasette_vision.plugin.server.compatibility import IS_1_0

QUERIES = {
    "first text": "select length(vision_embed('purple and gold'))",
    "20 texts": "select sum(length(vision_embed('text number ' || value))) from generated",
    "first image, 640x480": "select length(vision_embed(content)) from images where name = 'small 0'",
    "20 images of 640x480": "select sum(length(vision_embed(content))) from images where name like 'small%'",
    "4 images of 12 megapixels": "select sum(length(vision_embed(content))) from images where name like 'large%'",
}


def write_database(path: Path) -> None:
    """Write 20 JPEGs of 640x480, 4 of 4000x3000, and the numbers from 1 to 20."""
    connection = sqlite3.connect(path)
    connection.execute("create table images (name text, content blob)")
    connection.execute("create table generated (value integer)")
    connection.executemany("insert into generated values (?)", [(number,) for number in range(20)])
    for kind, count, size in (("small", 20, (640, 480)), ("large", 4, (4000, 3000))):
        for number in range(count):
            picture = Image.effect_noise((size[0] // 8, size[1] // 8), 60 + number).resize(size).convert("RGB")
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=90)
            connection.execute("insert into images values (?, ?)", (f"{kind} {number}", file.getvalue()))
    connection.commit()
    connection.close()


def resident(pid: int) -> tuple[int, int]:
    """Return (resident, of which from files) in MiB."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return tuple(int(lines[key].split()[0]) // 1024 for key in ("VmRSS", "RssFile"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="tiny-emoji", help="name of an installed model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database, metadata = Path(folder) / "images.db", Path(folder) / "metadata.json"
        write_database(database)
        metadata.write_text(json.dumps({"plugins": {"datasette-vision": {"default_model": options.model}}}))
        arguments = [str(database), "--config" if IS_1_0 else "--metadata", str(metadata)]
        arguments += ["--setting", "sql_time_limit_ms", "60000"]
        with serve(*arguments) as server:
            for name, sql in {"started": "select 1", **QUERIES}.items():
                server.query(sql, "images")
                total, files = resident(server.pid)
                print(f"{name:28s} {total:5d} MiB, of which files {files:4d}")


if __name__ == "__main__":
    main()
