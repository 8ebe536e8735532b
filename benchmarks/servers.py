"""Starting a Datasette and asking it questions, for the other benchmarks."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasette_vision.plugin.server.compatibility import IS_1_0


class Server:
    """A running Datasette. One connection is kept open, as a notebook's browser keeps it."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def resident_mib(self) -> float:
        """Return its resident memory in MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))

    def resting_mib(self) -> float:
        """Return its resident memory in MiB once there has been nothing to do for a while."""
        time.sleep(3)
        return self.resident_mib()

    def cpu_seconds(self) -> float:
        """Return the processor time that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def query(self, sql: str, database: str = "_memory", **parameters: str) -> Any:
        """Run SQL and return its rows."""
        search = urllib.parse.urlencode({"sql": sql, "_shape": "array", **parameters})
        return self.get(f"/{database}.json?{search}")

    def get(self, path: str) -> Any:
        """Fetch a path as JSON, following Datasette 1.0's redirects of queries."""
        self._connection.request("GET", path)
        response = self._connection.getresponse()
        body = response.read()
        if response.status in (301, 302):
            return self.get(response.headers["Location"])
        if response.status != 200:
            sys.exit(f"{path}: {response.status} {body[:300]!r}")
        return json.loads(body)


@contextlib.contextmanager
def serve(*arguments: str, plugin: dict[str, Any] | None = None) -> Iterator[Server]:
    """Start `datasette serve --memory` with these arguments; `plugin` is the configuration of this plugin."""
    if plugin is not None:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"plugins": {"datasette-vision": plugin}}, file)
            file.flush()
            with serve(*arguments, "--config" if IS_1_0 else "--metadata", file.name) as server:
                yield server
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "datasette", "serve", "--memory", "--port", str(port), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            if process.poll() is not None:
                sys.exit(f"the server stopped by itself: {' '.join(command)}")
            with contextlib.suppress(ConnectionError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                connection.request("GET", "/-/versions.json")
                connection.getresponse().read()
                connection.close()
                break
            time.sleep(0.005)
        yield Server(port, process.pid)
    finally:
        process.terminate()
        process.wait(30)
