"""Images as text: reading takes time and memory proportional to the text, whatever is in it.

The texts are those that made quadratic expressions, or an object of every third byte, of the code before. What would
hang does so with Python's lock held, where no timeout of a thread helps: hence processes of their own.
"""

from __future__ import annotations

import base64
import random
import re
import subprocess
import sys
import textwrap
import tracemalloc
import urllib.parse

import pytest

from datasette_vision.errors import InvalidImage
from datasette_vision.images import data_uri

ENOUGH_S = 120  # for what takes a second; before, it took minutes to weeks
# The most memory that reading a text may take, in multiples of its length.
MEMORY = 10

HOSTILE = {
    "spaces": "A{ }!",
    "plus signs": "A{+}!",
    "tabs": "A{\t}!",
    "line breaks": "A{\n}!",
    "lines of two": "{AB\n}!",
    "indented lines of two": "{AB\n }!",
    "lines of white space": "A{ \n}!",
    "wide spaces": "A{\u2003}!",
    "wide spaces and line breaks": "A{\u2003\n}!",
    "groups of two": "{AB }!",
    "groups of two sizes": "{A BC }!",
    "padding": "A{=}",
    "escapes": "data:,{%41}",
    "escapes of base64": "data:;base64,{%41}",
    "escapes of nothing": "data:,{%}",
    "spaces in base64": "data:;base64,A{ }!",
    "media type": "data:{x}",
    "spaces before": "{ }data:,",
}


def written(pattern: str, length: int) -> str:
    """A hostile text, with what is in braces repeated to a length."""
    before, rest = pattern.split("{", 1)
    repeated, after = rest.split("}", 1)
    return before + repeated * (length // len(repeated)) + after


def in_a_process(program: str) -> str:
    """What a program prints. Fails when it takes longer than ENOUGH_S."""
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, timeout=ENOUGH_S, capture_output=True, text=True, check=True).stdout


def test_reading_hostile_text_ends() -> None:
    program = """
        from datasette_vision.images import data_uri as imagetext
        from datasette_vision.errors import InvalidImage
        from tests.images.test_data_uri import HOSTILE, written

        for name, pattern in HOSTILE.items():
            try:
                imagetext.from_text(written(pattern, 2_000_000))
            except InvalidImage:
                pass
            print(name)
    """
    assert in_a_process(program).splitlines() == list(HOSTILE)


def test_a_server_answers_hostile_text_in_an_address_in_json_and_in_sql() -> None:
    program = """
        import asyncio
        from datasette.app import Datasette

        async def main():
            datasette = Datasette(memory=True)
            embed = "/-/vision/embed"
            print((await datasette.client.get(embed + "?image=A" + 60_000 * "+" + "!")).status_code)
            body = {"image": "A" + 1_000_000 * " " + "!"}
            print((await datasette.client.post(embed, json=body)).status_code)
            sql = "select vision_error('x'||printf('%.*c',400000,' ')||'!') as error"
            answer = await datasette.client.get("/_memory/-/query.json", params={"sql": sql, "_shape": "array"})
            if answer.status_code != 200:  # before Datasette 1.0
                answer = await datasette.client.get("/_memory.json", params={"sql": sql, "_shape": "array"})
            print(answer.json()[0]["error"][:25])

        asyncio.run(main())
    """
    assert in_a_process(program).splitlines() == ["400", "400", "this text is not an image"]


@pytest.mark.parametrize("name", HOSTILE)
def test_memory_is_proportional_to_the_text(name: str) -> None:
    text = written(HOSTILE[name], 1_000_000)
    tracemalloc.start()
    try:
        data_uri.from_text(text)
    except InvalidImage:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak <= MEMORY * len(text)


# What the rules say, as short as they can be written, and as slow.


def as_the_rules_say(text: str) -> bytes | None:
    """Bytes of base64 in either alphabet, or None."""
    text = re.sub(r"\s*[\r\n\t\f\v]\s*", "", text.strip())
    if " " in text:
        groups = text.split(" ")
        lengths = {len(group) for group in groups[:-1]}
        layout = len(lengths) == 1 and (len(groups) > 2 or len(text) % 4 == 1)
        text = text.replace(" ", "" if layout else "+")
    text = text.replace("-", "+").replace("_", "/")
    if not re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", text):
        return None
    text = text.rstrip("=")
    return None if len(text) % 4 == 1 else base64.b64decode(text + "=" * (-len(text) % 4))


def read(text: str) -> bytes | None:
    try:
        return data_uri.from_text("data:;base64," + text)
    except InvalidImage:
        return None


def test_base64_is_read_by_the_rules() -> None:
    random_ = random.Random(0)
    accepted = 0
    for alphabet in (" \nAB+=", " \n\t\r\x1c\xa0\u2003AbQ9+/-_=é"):
        for _ in range(20_000):
            text = "".join(random_.choices(alphabet, k=random_.randint(1, 14)))
            expected = as_the_rules_say(text)
            accepted += bool(expected)
            assert read(text) == expected, repr(text)
    assert accepted > 2_000


def test_groups_and_lost_plus_signs_are_told_apart() -> None:
    random_ = random.Random(0)
    for _ in range(2_000):
        text = base64.b64encode(random_.randbytes(random_.randint(1, 60))).decode()
        width = random_.choice((4, 5, 8))
        grouped = " ".join(text[start : start + width] for start in range(0, len(text), width))
        broken = list(text)
        for _ in range(random_.randint(0, 6)):
            broken.insert(random_.randint(0, len(broken)), random_.choice((" ", "\n", " \n", "  ")))
        for spelling in (grouped, "".join(broken), text.replace("+", " ")):
            assert read(spelling) == as_the_rules_say(spelling), repr(spelling)


@pytest.mark.parametrize("length", [1, 100, data_uri.PERCENT_PIECE - 13])
def test_escapes_are_read_as_urllib_does(length: int) -> None:
    random_ = random.Random(length)
    for _ in range(3_000 if length <= 100 else 20):  # the longest ends about where a piece does
        text = length * "x" + "".join(random_.choices("%4aF=é ", k=30))
        assert data_uri.from_text("data:," + text) == urllib.parse.unquote_to_bytes(text)


@pytest.mark.parametrize("before", range(data_uri.PERCENT_PIECE - 3, data_uri.PERCENT_PIECE + 1))
def test_no_escape_is_cut_where_a_piece_ends(before: int) -> None:
    for escapes in ("%4a", "%%4a", "%4%4a", "%4a%4a"):
        assert data_uri.from_text(f"data:,{before * 'x'}{escapes}x") == urllib.parse.unquote_to_bytes(
            before * "x" + escapes + "x"
        )


@pytest.mark.parametrize("piece", [1, 5, 1 << 16])
def test_lines_are_joined_without_the_spaces_at_their_ends(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the text is cut into pieces on the way."""
    monkeypatch.setattr(data_uri, "TEXT_PIECE", piece)
    draw = random.Random(1)
    for _ in range(3000):
        text = "".join(draw.choice("A \n\r\t ") for _ in range(draw.randrange(30)))
        lines = re.split("[\n\r\t]", text.strip())
        assert data_uri._without_line_breaks(text) == "".join(line.strip(" ") for line in lines)
