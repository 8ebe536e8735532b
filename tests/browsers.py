"""A real browser on a real server: Debian's Chromium, driven by Playwright. Tests skip where one of them is missing."""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
# Datasette 0.65's base.html has no lang, and its own colours and links are not ours to judge.
OURS = "section.content"
TRANSFER = """([name, type, content]) => {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type }));
    return transfer;
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser, or skip the test."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def watched(context: BrowserContext, allowed: tuple[str, ...] = ()) -> Iterator[Page]:
    """Open a page whose every complaint, but for those with one of the `allowed` words, is a failure."""
    page = context.new_page()
    complaints: list[str] = []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.set_default_timeout(20_000)
    yield page
    page.close()
    unexpected = [each for each in complaints if not any(word in each for word in allowed)]
    if unexpected:
        pytest.fail(f"the browser complains: {unexpected}")


def png(picture: bytes) -> bytes:
    """Return a picture as a PNG, which is how people have them."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGBA").save(buffer, "PNG")
    return buffer.getvalue()


def drop(page: Page, picture: bytes, name: str = "picture.png", media_type: str = "image/png") -> None:
    """Drop a file on the page, as a person does."""
    content = [name, media_type, base64.b64encode(picture).decode()]
    transfer = page.evaluate_handle(TRANSFER, content)
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("body", event, {"dataTransfer": transfer})


def paste(page: Page, picture: bytes) -> None:
    """Paste a picture into the page."""
    transfer = page.evaluate_handle(TRANSFER, ["image.png", "image/png", base64.b64encode(picture).decode()])
    page.evaluate(
        "(transfer) => document.activeElement.dispatchEvent("
        "new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true, cancelable: true }))",
        transfer,
    )


def violations(page: Page, within: str = OURS) -> list[str]:
    """Return what axe-core finds to be serious or worse, each with the elements it is about."""
    axe = pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python")
    page.add_script_tag(content=(resources.files(axe) / "axe.min.js").read_text("utf-8"))
    found: dict[str, Any] = page.evaluate("(within) => axe.run(within)", within)
    assert found["passes"]
    return [
        f"{violation['id']}: {', '.join(str(node['target']) for node in violation['nodes'])}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
    ]
