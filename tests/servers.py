"""A real Datasette in a process of its own, for tests that ask it with real clients."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasette_vision.plugin.compatibility import IS_1_0


@contextlib.contextmanager
def serve(folder: Path, *files: Path, **config: Any) -> Iterator[str]:
    """Start Datasette with databases, --memory, --cors and this plugin configuration; give its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    path = folder / "config.json"
    path.write_text(json.dumps({"plugins": {"datasette-vision": config}}))
    option = "--config" if IS_1_0 else "--metadata"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "datasette", "serve", *map(str, files), "--memory", "--cors"),
            *(option, str(path), "--port", str(port)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(address + "/-/versions.json", timeout=10).close()
                break
            except (ConnectionError, urllib.error.URLError):
                assert process.poll() is None, "the server stopped by itself"
                time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(30)
