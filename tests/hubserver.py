"""A small server that speaks the hub's protocol, and fails as it is told to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHUNK = 1024


@dataclass
class Hub:
    """What the server serves and how it fails. `log` holds (method, path, Range) of each request."""

    repositories: dict[str, Path] = field(default_factory=dict)
    licences: dict[str, str] = field(default_factory=dict)
    # File name -> bytes it is cut off after, as often as the list is long.
    cut: dict[str, list[int]] = field(default_factory=dict)
    # File name -> status it is answered with.
    status: dict[str, int] = field(default_factory=dict)
    # File name -> other content than announced.
    altered: dict[str, bytes] = field(default_factory=dict)
    # Repository -> (status, X-Error-Code).
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    token: str | None = None
    seconds_per_chunk: float = 0
    log: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""

    def info(self, repository: str) -> dict[str, Any]:
        root = self.repositories[repository]
        siblings = []
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            content = path.read_bytes()
            sibling: dict[str, Any] = {"rfilename": path.relative_to(root).as_posix(), "size": len(content)}
            sibling["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if path.suffix in {".onnx", ".safetensors", ".bin"}:
                digest = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append(sibling)
        licence = self.licences.get(repository)
        return {
            "_id": "1",
            "id": repository,
            "modelId": repository,
            "sha": COMMIT,
            "private": False,
            "tags": [f"license:{licence}"] if licence else [],
            "downloads": 0,
            "siblings": siblings,
        }

    def ranges(self, name: str) -> list[str | None]:
        """The Range headers of the downloads of a file."""
        return [range_ for method, path, range_ in self.log if method == "GET" and path.endswith(f"/{name}")]


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append((self.command, path, self.headers.get("Range")))
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models").strip("/").split("/")
        repository = "/".join(parts[:2])
        if self.hub.token is not None and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.refuse(401, "RepoNotFound")
        if repository in self.hub.refused:
            return self.refuse(*self.hub.refused[repository])
        if repository not in self.hub.repositories:
            return self.refuse(401, "RepoNotFound")
        revision = parts[3] if len(parts) > 3 else "main"
        if revision not in {"main", "v1", COMMIT}:
            return self.refuse(404, "RevisionNotFound")
        if api:
            return self.answer(json.dumps(self.hub.info(repository)).encode(), {"Content-Type": "application/json"})
        return self.send_file(repository, "/".join(parts[4:]))

    do_HEAD = do_GET

    def send_file(self, repository: str, name: str) -> None:
        path = self.hub.repositories[repository] / name
        if name in self.hub.status:
            return self.refuse(self.hub.status[name], "")
        if not path.is_file():
            return self.refuse(404, "EntryNotFound")
        content = self.hub.altered.get(name, path.read_bytes())
        digest = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{digest}"'}
        headers |= {"X-Linked-Size": str(len(content)), "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if not wanted:
            return self.answer(content, headers, name=name)
        start = int(wanted.removeprefix("bytes=").split("-")[0])
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.answer(content[start:], headers, status=206, name=name)

    def refuse(self, status: int, code: str) -> None:
        self.answer(b'{"error": "refused"}', {"X-Error-Code": code} if code else {}, status=status)

    def answer(self, body: bytes, headers: dict[str, str], status: int = 200, name: str = "") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = self.hub.cut.get(name)
        if cuts:
            body = body[: cuts.pop(0)]
            self.close_connection = True
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(body), CHUNK):
                self.wfile.write(body[start : start + CHUNK])
                if name and self.hub.seconds_per_chunk:
                    self.wfile.flush()
                    time.sleep(self.hub.seconds_per_chunk)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve on a free port of this machine; `hub.url` is its address."""
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
