"""A Datasette in a process of its own, for what cannot be seen from inside: signals, exit codes, other origins."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasette_vision.plugin.server.compatibility import IS_1_0


class Server:
    """A running `datasette serve`."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return self._log.read_text("utf-8", "replace")

    def get(self, path: str, **headers: str) -> bytes:
        """Fetch a path. Raises urllib.error.HTTPError for what is no success."""
        request = urllib.request.Request(self.address + path, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read()

    def ended(self, timeout_s: float = 60) -> int:
        """Wait for its end, and return its exit code."""
        return self.process.wait(timeout_s)


@contextlib.contextmanager
def serve(folder: Path, *arguments: str, plugins: str = "", config: dict[str, Any] | None = None) -> Iterator[Server]:
    """Start Datasette with what is under `plugins` of its configuration, and a plugin of this source; stop it after."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "datasette", "serve", "--memory", "--port", str(port), *arguments]
    if plugins:
        (folder / "plugins").mkdir(exist_ok=True)
        (folder / "plugins" / "under_test.py").write_text(plugins, "utf-8")
        command += ["--plugins-dir", str(folder / "plugins")]
    if config is not None:
        (folder / "metadata.json").write_text(json.dumps({"plugins": config}), "utf-8")
        command += ["--config" if IS_1_0 else "--metadata", str(folder / "metadata.json")]
    log = folder / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    server = Server(port, process, log)
    try:
        for _ in range(1200):
            with contextlib.suppress(ConnectionError, urllib.error.URLError):
                server.get("/-/versions.json")
                break
            assert process.poll() is None, server.log
            time.sleep(0.05)
        yield server
    except BaseException:
        print(f"exit code of the server: {process.poll()}; it wrote:\n{server.log[-4000:]}", file=sys.stderr)  # noqa: T201
        raise
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


@contextlib.contextmanager
def serving(folder: Path, *files: Path, **config: Any) -> Iterator[str]:
    """Start Datasette with databases, --cors and this configuration of the plugin; give its address."""
    with serve(folder, "--cors", *map(str, files), config={"datasette-vision": config}) as server:
        yield server.address
