"""The pages as people use them, in Chromium: with and without a script, with a mouse, a keyboard or a phone."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import browsers, servers
from tests.browsers import drop, paste, png, violations, watched

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SEARCH = "/-/vision/demo/emoji"
Picture = Callable[[str], bytes]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, demo_path: Path) -> Iterator[str]:
    """The address of a Datasette that serves the demo."""
    with servers.serving(tmp_path_factory.mktemp("server"), demo_path) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context(base_url=address, viewport={"width": 1200, "height": 900})
    with watched(context) as page:
        yield page
    context.close()


@pytest.fixture
def plain(browser: Browser, address: str) -> Iterator[Page]:
    """A page without JavaScript."""
    context = browser.new_context(base_url=address, java_script_enabled=False)
    with watched(context) as page:
        yield page
    context.close()


@pytest.fixture(scope="module")
def emoji(demo_path: Path) -> Picture:
    """The picture of an emoji, as a PNG."""
    connection = sqlite3.connect(demo_path, check_same_thread=False)

    def find(name: str) -> bytes:
        return png(connection.execute("select image from emoji where name = ?", (name,)).fetchone()[0])

    return find


def labels(page: Page) -> list[str]:
    return [text.strip() for text in page.locator(".vision-card:not([hidden]) .vision-label").all_inner_texts()]


def heading(page: Page, text: str) -> None:
    """Wait until the results are those of a search."""
    page.wait_for_function(
        "(text) => document.getElementById('vision-heading')?.textContent.toLowerCase().includes(text.toLowerCase())"
        " && !document.querySelector('#vision-page[aria-busy]')",
        arg=text,
    )


def no_reload(page: Page) -> None:
    """Mark the page, so that replaced() can tell whether it is still the same."""
    page.evaluate("window.theSame = true")


def same(page: Page) -> bool:
    return bool(page.evaluate("window.theSame === true"))


def test_type_and_see(page: Page) -> None:
    page.goto(SEARCH)
    no_reload(page)
    page.get_by_label("Looks like").fill("happy cat")
    page.get_by_role("button", name="Search", exact=True).click()
    heading(page, "happy cat")
    assert sum("cat" in label for label in labels(page)[:10]) >= 8
    assert page.url.endswith(f"{SEARCH}?q=happy+cat")
    assert page.title() == "demo: emoji: Closest to “happy cat”"
    assert same(page)
    assert "Closest to “happy cat”. Rows 1 to 24" in page.locator("#vision-status").inner_text()
    sizes = page.evaluate(
        "Promise.all([...document.querySelectorAll('.vision-card img')].slice(0, 5).map((image) =>"
        " image.decode().then(() => image.naturalWidth)))"
    )
    assert min(sizes) > 30


@pytest.mark.parametrize("how", ["drop", "paste", "choose"])
def test_a_picture_and_its_likes(page: Page, emoji: Picture, how: str) -> None:
    page.goto(f"{SEARCH}?q=happy+cat&group_name=food-drink")
    no_reload(page)
    picture = emoji("red apple")
    if how == "drop":
        drop(page, picture)
    elif how == "paste":
        paste(page, picture)
    else:
        page.get_by_label("Or like an image").set_input_files(
            files=[{"name": "apple.png", "mimeType": "image/png", "buffer": picture}]
        )
    heading(page, "your image")
    assert same(page)
    assert labels(page)[0] == "red apple"
    assert {"tomato", "peach", "tangerine"} & set(labels(page)[:6])
    assert "_embedding=" in page.url
    assert "group_name=food-drink" in page.url
    # The chip shows the picture, which only this browser knows.
    page.wait_for_function("document.querySelector('.vision-chip-picture').style.backgroundImage.startsWith('url(')")
    page.get_by_label("Remove your image").click()
    heading(page, "Images of emoji")


def test_what_is_no_picture(browser: Browser, address: str) -> None:
    context = browser.new_context(base_url=address)
    with watched(context, allowed=("400 (Bad Request)",)) as page:
        page.goto(f"{SEARCH}?q=happy+cat")
        drop(page, b"this is text", "notes.txt", "text/plain")
        assert labels(page)[0:1]
        assert page.url.endswith("q=happy+cat")
        drop(page, b"this is no picture")
        page.get_by_role("alert").wait_for()
        assert "not an image" in page.get_by_role("alert").inner_text()
        page.get_by_label("Looks like").fill("dog")
        page.keyboard.press("Enter")
        heading(page, "dog")
    context.close()


def test_less_like_this_changes_the_order_as_it_should(page: Page) -> None:
    page.goto(f"{SEARCH}?q=fruit&_size=100")
    before = labels(page)
    page.locator("#less-1F34E").click()
    heading(page, "less like red apple")
    after = labels(page)
    # What is like a red apple falls, the red apple itself the most; other fruit rises.
    fallen = {name: (after.index(name) if name in after else 100) - before.index(name) for name in before}
    assert fallen["red apple"] > 50
    assert fallen["green apple"] > 0
    assert max(fallen.values()) == fallen["red apple"] or "red apple" not in after
    assert min(fallen["kiwi fruit"], fallen["grapes"], fallen["pineapple"]) <= 0
    page.locator("select[name=_like]").select_option(label="more like")
    heading(page, "more like red apple")
    assert labels(page)[0] == "red apple"
    assert labels(page).index("tomato") < before.index("tomato")
    page.locator("select[name=_like]").select_option(label="remove")
    heading(page, "Closest to “fruit”")
    page.wait_for_function("!document.querySelector('select[name=_like]')")
    assert labels(page) == before


def test_the_shared_address_reproduces_the_page(page: Page, browser: Browser, address: str, emoji: Picture) -> None:
    page.goto(SEARCH)
    drop(page, emoji("pizza"))
    heading(page, "your image")
    page.locator("[id^=less-]").nth(2).click()
    heading(page, "less like")
    page.locator("#vision-options summary").click()
    page.get_by_label("Column").last.select_option("group_name")
    page.get_by_label("Value").last.fill("food-drink")
    page.get_by_role("button", name="Apply").click()
    heading(page, "group_name")
    page.locator("#vision-next").click()
    page.wait_for_function("document.querySelector('[aria-current=page]')?.textContent === 'Page 2'")
    expected = labels(page), page.locator("#vision-heading").inner_text(), page.locator("#vision-sql-text").inner_text()
    for javascript in (True, False):
        context = browser.new_context(java_script_enabled=javascript)
        with watched(context) as other:
            other.goto(page.url)
            found = labels(other), other.locator("#vision-heading").inner_text()
            assert (*found, other.locator("#vision-sql-text").inner_text()) == expected
        context.close()


def test_back_and_forth(page: Page) -> None:
    page.goto(f"{SEARCH}?q=cat")
    cats = labels(page)
    page.locator(".vision-actions a").first.click()
    heading(page, "more like")
    page.go_back()
    heading(page, "“cat”")
    assert labels(page) == cats
    assert page.get_by_label("Looks like").input_value() == "cat"
    page.go_forward()
    heading(page, "more like")


def test_the_shown_sql_returns_the_same_rows(page: Page) -> None:
    page.goto(f"{SEARCH}?q=fruit&_unlike=1F34E&_threshold=0.1&group_name=food-drink")
    expected = labels(page)
    assert len(expected) > 5
    page.get_by_role("link", name="View and edit SQL").click()
    page.wait_for_url("**sql=**")
    header = page.locator("table.rows-and-columns th").all_inner_texts()
    place = [text.strip() for text in header].index("name") + 1
    rows = page.locator(f"table.rows-and-columns tbody tr td:nth-child({place})").all_inner_texts()
    assert [text.strip() for text in rows] == expected
    assert page.locator("table.rows-and-columns img").count() == len(expected)


def test_the_slider_hides_at_once_and_searches_when_let_go(page: Page) -> None:
    page.goto(f"{SEARCH}?q=purple+heart")
    slider = page.get_by_label("Similarity at least")
    count = len(labels(page))
    slider.evaluate("(slider) => { slider.value = 0.4; slider.dispatchEvent(new Event('input', { bubbles: true })); }")
    few = len(labels(page))
    assert 0 < few < count
    assert page.locator("#vision-threshold-value").inner_text() == "0.40"
    slider.evaluate("(slider) => slider.dispatchEvent(new Event('change', { bubbles: true }))")
    page.wait_for_url("**_threshold=0.4")
    page.wait_for_function("document.getElementById('vision-summary').textContent.includes('at least 0.40')")
    assert len(labels(page)) == few


def test_the_keyboard_alone_is_enough(page: Page) -> None:
    page.goto(SEARCH)

    def tab_to(selector: str, most: int = 150) -> None:
        for _ in range(most):
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{selector} cannot be reached")

    tab_to("#vision-q")
    page.keyboard.type("fruit")
    page.keyboard.press("Enter")
    heading(page, "fruit")
    assert page.evaluate("document.activeElement.id") == "vision-q"  # the focus stays where it was
    tab_to("#vision-threshold")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    page.wait_for_url("**_threshold=0.1")
    heading(page, "fruit")
    assert page.evaluate("document.activeElement.id") == "vision-threshold"
    tab_to("#vision-options summary")
    page.keyboard.press("Enter")
    tab_to("#vision-not")
    page.keyboard.type("red")
    page.keyboard.press("Enter")
    heading(page, "not “red”")
    assert page.locator("#vision-options").get_attribute("open") is not None
    tab_to("#vision-file")
    tab_to(".vision-card .vision-picture")
    tab_to("[id^=less-]")
    less = page.evaluate("document.activeElement.id")
    page.keyboard.press("Enter")
    heading(page, "less like")
    # The row has gone from here, so the focus is at the head of what has come instead.
    assert page.evaluate("document.activeElement.id") in (less, "vision-heading")
    tab_to("#vision-next")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('[aria-current=page]')?.textContent === 'Page 2'")
    tab_to("#vision-sql-text")
    tab_to("#vision-query")
    page.keyboard.press("Enter")
    page.wait_for_url("**sql=**")


def test_focus_can_be_seen(page: Page) -> None:
    page.goto(f"{SEARCH}?q=cat")
    for selector in ("#vision-q", "#vision-threshold", ".vision-actions a", "#vision-next", "#vision-sql-text"):
        page.locator(selector).first.focus()
        page.keyboard.press("Shift")  # the last thing that happened was on the keyboard
        style = "getComputedStyle(document.activeElement)"
        assert page.evaluate(f"{style}.outlineStyle !== 'none' && parseFloat({style}.outlineWidth) >= 2"), selector


def test_without_a_script(plain: Page, emoji: Picture) -> None:
    plain.goto(SEARCH)
    plain.get_by_label("Looks like").fill("happy cat")
    plain.get_by_role("button", name="Search", exact=True).click()
    plain.get_by_role("heading", name="Closest to “happy cat”").wait_for()
    assert plain.url.endswith(f"{SEARCH}?q=happy+cat")
    assert sum("cat" in label for label in labels(plain)[:10]) >= 8
    plain.locator("[id^=less-]").first.click()
    plain.get_by_role("heading", name="less like").wait_for()
    plain.locator("select[name=_like]").select_option(label="much less like")
    plain.locator("#vision-options summary").click()
    plain.get_by_label("But not").fill("yellow")
    plain.get_by_label("Column").last.select_option("name")
    plain.get_by_label("Operation").last.select_option("contains")
    plain.get_by_label("Value").last.fill("face")
    plain.get_by_role("button", name="Apply").click()
    plain.get_by_role("heading", name="name contains").wait_for()
    assert re.search(r"\?q=happy\+cat&_not=yellow&_unlike=[0-9A-F]+%3A1&name__contains=face$", plain.url)
    assert all("face" in label for label in labels(plain))
    plain.locator("#vision-next").click()
    plain.locator(".vision-pages").get_by_text("Page 2").wait_for()
    plain.get_by_label("Or like an image").set_input_files(
        files=[{"name": "dog.png", "mimeType": "image/png", "buffer": emoji("dog face")}]
    )
    plain.get_by_role("button", name="Search by image").click()
    plain.get_by_role("heading", name="Closest to your image").wait_for()
    assert labels(plain)[0] == "dog face"


@pytest.mark.parametrize("script", [True, False], ids=["with a script", "without"])
def test_the_playground(browser: Browser, address: str, emoji: Picture, script: bool) -> None:
    context = browser.new_context(base_url=address, java_script_enabled=script)
    with watched(context) as page:
        page.goto("/-/vision")
        picture = emoji("violin")
        if script:
            drop(page, picture)
        else:
            page.get_by_label("Image", exact=True).set_input_files(
                files=[{"name": "violin.png", "mimeType": "image/png", "buffer": picture}]
            )
            page.get_by_role("button", name="Ask the models").click()
        page.get_by_role("heading", name="tiny-emoji sees").wait_for()
        assert page.locator(".vision-bar-label").first.inner_text() == "musical-instrument"
        page.get_by_label("Labels to choose from").fill("music, food, animal")
        page.get_by_label("Compare with a sentence").fill("a violin")
        page.get_by_role("button", name="Ask the models").click()
        page.get_by_role("heading", name="Your labels, by tiny-emoji").wait_for()
        assert page.locator(".vision-bar-label").first.inner_text() == "music"
        page.get_by_role("heading", name="Similarity with “a violin”").wait_for()
        page.get_by_role("link", name="emoji", exact=True).click()
        page.wait_for_url("**_embedding**")
        assert labels(page)[0] == "violin"
    context.close()


@pytest.mark.parametrize(
    "path",
    [
        SEARCH,
        f"{SEARCH}?q=happy+cat",
        f"{SEARCH}?q=fruit&_not=red&_like=1F34F&_unlike=1F34E&_threshold=0.2&group_name=food-drink&_page=2&_size=5",
        "/-/vision/demo/_vision_emoji",
        "/-/vision",
    ],
)
@pytest.mark.parametrize("width", [1200, 390])
def test_axe_finds_nothing_serious(browser: Browser, address: str, path: str, width: int) -> None:
    context = browser.new_context(base_url=address, viewport={"width": width, "height": 844})
    with watched(context) as page:
        page.goto(path)
        page.evaluate(
            "document.querySelectorAll('section.content details').forEach((details) => (details.open = true))"
        )
        assert violations(page) == []
        # Nothing is wider than the screen.
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_axe_of_answers_and_errors(browser: Browser, address: str, emoji: Picture) -> None:
    context = browser.new_context(base_url=address)
    with watched(context, allowed=("400 (Bad Request)",)) as page:
        page.goto("/-/vision")
        page.get_by_label("Labels to choose from").fill("music, food, animal")
        drop(page, emoji("violin"))
        page.get_by_role("heading", name="tiny-emoji sees").wait_for()
        assert violations(page) == []
        page.goto(f"{SEARCH}?_like=nope")
        page.get_by_role("alert").wait_for()
        assert violations(page) == []
    context.close()


def test_on_a_phone(browser: Browser, address: str, emoji: Picture) -> None:
    context = browser.new_context(
        base_url=address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, device_scale_factor=2
    )
    with watched(context) as page:
        page.goto(f"{SEARCH}?q=happy+cat")
        assert page.locator(".vision-card").nth(1).bounding_box()["x"] > 150  # type: ignore[index]
        for button in ("Search",):
            assert page.get_by_role("button", name=button, exact=True).bounding_box()["height"] >= 44  # type: ignore[index]
        page.locator("[id^=more-]").first.tap()
        heading(page, "more like")
        page.goto("/-/vision")
        camera = page.get_by_label("Or take a photo")
        assert camera.get_attribute("capture") == "environment"
        camera.set_input_files(files=[{"name": "photo.png", "mimeType": "image/png", "buffer": emoji("violin")}])
        page.get_by_role("heading", name="tiny-emoji sees").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_from_the_table_and_from_a_row(page: Page) -> None:
    page.goto("/demo/emoji/1F34E")
    page.get_by_role("link", name="find similar").click()
    page.wait_for_url("**_like=1F34E")
    assert labels(page)[0] == "red apple"
    page.locator(".vision-picture").first.click()
    page.wait_for_url("**/demo/emoji/1F34E")
    page.goto("/demo/emoji")
    page.locator("details.actions-menu-links > summary").click()
    page.locator(".dropdown-menu").get_by_text("Search by meaning").click()
    page.wait_for_url(f"**{SEARCH}")
