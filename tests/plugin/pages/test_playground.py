"""The playground over HTTP."""

from __future__ import annotations

import base64
import html
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette

from datasette_vision.plugin.server.state import state_of
from tests import pictures
from tests.plugin.search.test_page import get, make

PAGE = "/-/vision"


@pytest.fixture
def datasette(demo_path: Path) -> Datasette:
    return make(demo_path)


async def emoji(datasette: Datasette, name: str) -> bytes:
    rows = (await datasette.get_database("demo").execute("select image from emoji where name = ?", [name])).rows
    return bytes(rows[0][0])


async def ask(datasette: Datasette, picture: bytes = b"", status: int = 200, **fields: str) -> str:
    files = {"picture": ("picture.webp", picture)}
    response = await datasette.client.post(PAGE, data=fields, files=files)
    assert response.status_code == status, response.text
    assert response.headers["cache-control"] == "no-store"
    return response.text


def answers(text: str) -> dict[str, list[tuple[str, str]]]:
    """The labels and scores under each heading."""
    sections = re.findall(r'<section class="vision-answer">(.*?)</section>', text, re.DOTALL)
    return {
        html.unescape(re.findall(r"<h2[^>]*>([^<]*)<", section)[0]): [
            (html.unescape(label), score)
            for label, score in re.findall(
                r'vision-bar-label">([^<]*)<.*?vision-bar-score">([^<]*)<', section, re.DOTALL
            )
        ]
        for section in sections
    }


@pytest.mark.asyncio
async def test_the_models_and_the_tables(datasette: Datasette) -> None:
    page = (await datasette.client.get(PAGE)).text
    assert '<th scope="row">tiny-emoji <span class="vision-tag">default</span></th>' in page
    assert "when needed" in page
    assert 'href="/-/vision/demo/emoji">demo: emoji</a>' in page
    await ask(datasette, await emoji(datasette, "pizza"))
    assert "when needed" not in (await datasette.client.get(PAGE)).text


@pytest.mark.asyncio
async def test_what_a_model_sees(datasette: Datasette) -> None:
    found = answers(await ask(datasette, await emoji(datasette, "red apple")))
    assert list(found) == ["tiny-emoji sees"]
    assert len(found["tiny-emoji sees"]) == 5
    assert found["tiny-emoji sees"][0][0] == "food-fruit"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "labels", ["fruit, animal,flag", "fruit\nanimal\r\nflag\n\nfruit", '["fruit", "animal", "flag"]']
)
async def test_labels_and_a_sentence(datasette: Datasette, labels: str) -> None:
    apple = await emoji(datasette, "red apple")
    found = answers(await ask(datasette, apple, labels=labels, sentence="a red apple"))
    assert list(found) == ["Your labels, by tiny-emoji", "tiny-emoji sees", "Similarity with “a red apple”"]
    assert sorted(label for label, _ in found["Your labels, by tiny-emoji"]) == ["animal", "flag", "fruit"]
    assert found["Your labels, by tiny-emoji"][0][0] == "fruit"
    vision = state_of(datasette).vision.get()
    cosine = float(vision.embed_image(apple) @ vision.embed_text("a red apple"))
    assert found["Similarity with “a red apple”"] == [("tiny-emoji", f"{cosine:.3f}")]


@pytest.mark.asyncio
async def test_classifiers_and_encoders_side_by_side(fake_models: Path) -> None:
    datasette = make(plugins={"datasette-vision": {"models_dir": str(fake_models), "default_model": "fake"}})
    found = answers(await ask(datasette, pictures.png(), labels="a, b", sentence="c"))
    assert {"fake-classifier sees", "fake-labels sees", "tiny-emoji sees"} <= set(found)
    assert {"Your labels, by fake", "Your labels, by fake-wide", "Your labels, by tiny-emoji"} <= set(found)
    assert len(found["Similarity with “c”"]) == 4


@pytest.mark.asyncio
async def test_a_damaged_model_does_not_silence_the_others(fake_models: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(fake_models, tmp_path / "models")
    for file in (tmp_path / "models" / "fake-classifier").glob("*.onnx"):
        file.write_bytes(b"damaged")
    datasette = make(plugins={"datasette-vision": {"models_dir": str(tmp_path / "models"), "default_model": "fake"}})
    text = await ask(datasette, pictures.png())
    assert "tiny-emoji sees" in answers(text)
    assert re.search(r'message-error">fake-classifier: ', text)


@pytest.mark.asyncio
async def test_more_can_be_asked_of_the_same_picture_without_a_script(datasette: Datasette) -> None:
    first = await ask(datasette, await emoji(datasette, "red apple"))
    kept = re.search(r'name="kept" form="vision-ask" value="([^"]+)"', first)
    assert kept
    assert base64.b64decode(kept.group(1)) == await emoji(datasette, "red apple")
    second = answers(await ask(datasette, kept=kept.group(1), labels="fruit, flag"))
    assert second["Your labels, by tiny-emoji"][0][0] == "fruit"
    large = await ask(datasette, pictures.large_jpeg())
    assert len(large) < 500_000


@pytest.mark.asyncio
async def test_it_leads_to_what_is_like_it(datasette: Datasette) -> None:
    text = await ask(datasette, await emoji(datasette, "pizza"))
    link = re.search(r'Find similar rows: <a href="([^"]+)">emoji</a>', text)
    assert link
    found = await get(datasette, html.unescape(link.group(1)))
    assert found.labels[0] == "pizza"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("picture", "fields", "message"),
    [
        (b"", {}, "choose an image first"),
        (b"this is no picture", {}, "not an image"),
        (pictures.png()[:60], {}, "truncated PNG image"),
        (b"", {"kept": "%"}, "the image in the page came back damaged: choose it again"),
    ],
)
async def test_mistakes(datasette: Datasette, picture: bytes, fields: dict[str, str], message: str) -> None:
    text = await ask(datasette, picture, 400, **fields)
    error = re.search(r'role="alert">([^<]*)<', text)
    assert error
    assert message in html.unescape(error.group(1))


@pytest.mark.asyncio
async def test_malformed_labels_are_told_beside_the_answers(datasette: Datasette) -> None:
    text = html.unescape(await ask(datasette, await emoji(datasette, "pizza"), labels='["a", "a"]'))
    assert "tiny-emoji: labels: 'a' occurs twice" in text


@pytest.mark.asyncio
async def test_too_large(demo_path: Path) -> None:
    datasette = make(demo_path, plugins={"datasette-vision": {"max_request_mb": 0.1}})
    assert "max_request_mb" in await ask(datasette, bytes(200_000), 413)
    page = await datasette.client.post(f"{PAGE}/demo/emoji", files={"picture": ("p.png", bytes(200_000))})
    assert page.status_code == 413
    assert "max_request_mb" in page.text


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "who", [{"allow": {"id": "root"}}, {"plugins": {"datasette-vision": {"allow": {"id": "root"}}}}]
)
async def test_those_who_may_not_compute(demo_path: Path, who: dict[str, Any]) -> None:
    datasette = make(demo_path, **who)
    assert (await datasette.client.get(PAGE)).status_code == 403
    refused = await datasette.client.post(PAGE, files={"picture": ("p.png", pictures.png())})
    assert refused.status_code == 403
    root = {"ds_actor": datasette.sign({"a": {"id": "root"}}, "actor")}
    assert (await datasette.client.get(PAGE, cookies=root)).status_code == 200


@pytest.mark.asyncio
async def test_pages_of_other_origins_cannot_post_with_cookies(datasette: Datasette) -> None:
    cookies = {"ds_actor": datasette.sign({"a": {"id": "root"}}, "actor")}
    for path in (PAGE, f"{PAGE}/demo/emoji"):
        files = {"picture": ("p.webp", await emoji(datasette, "pizza"))}
        for site, origin, status in (
            ("cross-site", "https://example.com", 403),
            ("same-origin", "http://localhost", 200 if path == PAGE else 303),
        ):
            response = await datasette.client.post(
                path, files=files, cookies=cookies, headers={"sec-fetch-site": site, "origin": origin}
            )
            assert response.status_code == status, (path, site)


@pytest.mark.asyncio
async def test_an_upload_on_the_search_page(datasette: Datasette) -> None:
    pizza = await emoji(datasette, "pizza")
    response = await datasette.client.post(
        f"{PAGE}/demo/emoji?q=cat&_like=1F34E&group_name=food-drink&_size=5", files={"picture": ("p.webp", pizza)}
    )
    assert response.status_code == 303
    location = response.headers["location"]
    assert "q=cat" not in location  # it is the picture that is searched for, among the same rows
    assert "_like" not in location
    page = await get(datasette, location)
    assert page.labels[0] == "pizza"
    assert page.similarities[0] == pytest.approx(1, abs=1e-4)
    assert len(page.labels) == 5
    assert page.heading.startswith("Closest to your image, where group_name")
    assert (await get(datasette, location)).labels == page.labels
    for body, message in ((b"", "choose an image first"), (b"this is no picture", "not an image")):
        wrong = await datasette.client.post(f"{PAGE}/demo/emoji?q=cat", files={"picture": ("p.webp", body)})
        assert wrong.status_code == 400
        assert message in wrong.text


@pytest.mark.asyncio
async def test_the_picture_is_stored_nowhere(demo_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    before = demo_path.read_bytes()
    datasette = make(demo_path)
    picture = pictures.large_jpeg()
    await ask(datasette, picture)
    await datasette.client.post(f"{PAGE}/demo/emoji", files={"picture": ("p.jpg", picture)})
    # Datasette 1.0 keeps a database of its own there.
    assert [file for file in place.iterdir() if not file.name.startswith("datasette_temp")] == []
    assert [file for file in place.iterdir() if picture[:1000] in file.read_bytes()] == []
    assert demo_path.read_bytes() == before
    assert [file for file in demo_path.parent.iterdir() if picture[:1000] in file.read_bytes()] == []
