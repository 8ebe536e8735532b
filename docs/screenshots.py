"""Makes the screenshots of docs/: run it with `python docs/screenshots.py` where Chromium and the extra `browser` are.

They show the demo on whichever Datasette is installed (1.0 in what is committed), and are small enough for a README.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).parent
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
MAX_BYTES = 200_000


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Serve the demo, and give its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "datasette", "vision", "demo", str(folder / "demo.db"), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(address, timeout=10).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def save(page: Page, name: str, **options: Any) -> None:
    """Write what the page shows as docs/<name>.webp."""
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(300)
    picture = Image.open(io.BytesIO(page.screenshot(**options)))
    path = DOCS / f"{name}.webp"
    picture.save(path, "WEBP", quality=82, method=6)
    assert path.stat().st_size < MAX_BYTES, path
    sys.stdout.write(f"{path.name}: {picture.width} by {picture.height}, {path.stat().st_size:,} bytes\n")


def main() -> None:
    """Make them all."""
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as address, sync_playwright() as playwright:
        connection = sqlite3.connect(Path(folder) / "demo.db")
        violin = connection.execute("select image from emoji where name = 'violin'").fetchone()[0]
        connection.close()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        desktop = browser.new_page(viewport={"width": 1200, "height": 860}, base_url=address)
        desktop.goto("/-/vision/demo/emoji?q=happy+cat")
        save(desktop, "search")
        desktop.goto("/-/vision/demo/emoji?q=fruit&_unlike=1F34E&group_name=food-drink&_size=14")
        save(desktop, "search-less-like", full_page=True)
        desktop.goto("/-/vision")
        desktop.get_by_label("Labels to choose from").fill("music, food, animal")
        desktop.get_by_label("Compare with a sentence").fill("a wooden instrument with strings")
        desktop.set_input_files("#vision-file", {"name": "violin.webp", "mimeType": "image/webp", "buffer": violin})
        desktop.get_by_role("heading", name="tiny-emoji sees").wait_for()
        desktop.evaluate("document.activeElement.blur()")
        save(desktop, "playground", full_page=True)
        phone = browser.new_page(
            viewport={"width": 390, "height": 844},
            base_url=address,
            is_mobile=True,
            has_touch=True,
            device_scale_factor=2,
        )
        phone.goto("/-/vision/demo/emoji?q=happy+cat")
        save(phone, "search-phone")
        browser.close()


if __name__ == "__main__":
    main()
