"""What one hostile client can send a server, by name: each attack is a list of requests, or a script on raw sockets.

`ATTACKS` is the one table. benchmarks/attack.py runs all of them against the shipped configuration and measures what
everybody else notices; tests/test_attacks.py runs a few cheap ones. `write_database()` makes the database that the
requests name.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import random
import socket
import sqlite3
import struct
import threading
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import quote, urlencode

import numpy as np
from PIL import Image

from datasette_vision.plugin.server.compatibility import IS_1_0
from datasette_vision.tables.schema import SideTable, SideTableRow, content_hash
from tests import hostile, pictures

DATABASE = "gallery"
JSON, FORM = "application/json", "application/x-www-form-urlencoded"
BOUNDARY = "a-boundary-of-no-file"
# What came of a request that no status tells of.
CLOSED, TIMED_OUT, REFUSED = "closed", "timed out", "refused"
SERVER_FAULTS = frozenset({"500", "501", "505"})
EMBED, ZERO_SHOT, CLASSIFY = "/-/vision/embed", "/-/vision/zero-shot", "/-/vision/classify"
OPENAI = "/-/vision/v1/embeddings"
SEARCH = f"/-/vision/search/{DATABASE}/photos"


@dataclass(frozen=True)
class Site:
    """The server that is attacked, and the limits of its configuration, so that attacks can stay just below them."""

    port: int
    model: str
    other_models: tuple[str, ...] = ()
    max_labels: int = 1000
    max_text_chars: int = 100_000
    max_inputs: int = 1000
    max_request_bytes: int = 32_000_000
    # How long attacks go on that have no end of their own.
    seconds: float = 10.0
    # After this long an attacker hangs up.
    patience_s: float = 60.0
    host: str = "127.0.0.1"


@dataclass(frozen=True)
class Request:
    """A request. `name` tells it from the others of its attack in a report."""

    path: str
    body: bytes | None = None
    content_type: str = JSON
    method: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Answer:
    """What came back: a status, or CLOSED, TIMED_OUT, REFUSED; and the first of the body."""

    name: str
    status: str
    seconds: float
    body: bytes = b""


@dataclass
class Attacker:
    """One attacking client: where it comes from, the how-manieth it is, and what it got."""

    site: Site
    source: str = "127.0.0.1"
    turn: int = 0
    answers: list[Answer] = field(default_factory=list)
    kept_bytes: int = 4000

    def send(self, request: Request) -> Answer:
        """Send a request on a connection of its own, and keep the answer."""
        began = time.perf_counter()
        status, body = self._exchange(request)
        answer = Answer(request.name or request.path[:60], status, time.perf_counter() - began, body[: self.kept_bytes])
        self.answers.append(answer)
        return answer

    def connect(self) -> socket.socket:
        """Return a connection for what no HTTP client sends."""
        return socket.create_connection((self.site.host, self.site.port), self.site.patience_s, (self.source, 0))

    def note(self, name: str, status: str, seconds: float = 0.0) -> None:
        """Keep what came of something that is no request of send()."""
        self.answers.append(Answer(name, status, seconds))

    def _exchange(self, request: Request) -> tuple[str, bytes]:
        site = self.site
        connection = http.client.HTTPConnection(
            site.host, site.port, timeout=site.patience_s, source_address=(self.source, 0)
        )
        try:
            method = request.method or ("GET" if request.body is None else "POST")
            headers = dict(request.headers)
            if request.body is not None:
                headers = {"Content-Type": request.content_type, **headers}
            # It may be refused before all was sent: the answer is there all the same.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, request.path, request.body, headers)
            response = connection.getresponse()
            return str(response.status), response.read()
        except TimeoutError:
            return TIMED_OUT, b""
        except ConnectionRefusedError:
            return REFUSED, b""
        except (OSError, http.client.HTTPException, AttributeError):
            return CLOSED, b""
        finally:
            connection.close()


Requests = Callable[[Site, int], Sequence[Request]]
Script = Callable[[Attacker], None]
Judge = Callable[[Sequence[Answer]], "str | None"]


@dataclass(frozen=True)
class Attack:
    """One way to attack. `item` is the kind of thing that it attacks.

    `requests(site, turn)` makes what the attacker of that number sends, all at once unless `in_turn`; a `script` does
    as it likes. `judge` says what is wrong with the answers, where more than the absence of a 500 is asked for.
    """

    name: str
    item: str
    meaning: str
    requests: Requests | None = None
    script: Script | None = None
    in_turn: bool = False
    judge: Judge = lambda answers: None
    faults: frozenset[str] = SERVER_FAULTS

    def prepare(self, site: Site, turn: int) -> Sequence[Request]:
        """Make the requests before time is taken: large bodies take a while to make."""
        return [] if self.requests is None else list(self.requests(site, turn))

    def run(self, attacker: Attacker, prepared: Sequence[Request]) -> None:
        """Attack, until all answers are there."""
        if self.script is not None:
            self.script(attacker)
        elif self.in_turn or len(prepared) == 1:
            for request in prepared:
                attacker.send(request)
        else:
            threads = [threading.Thread(target=attacker.send, args=(request,)) for request in prepared]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def wrong(self, answers: Sequence[Answer]) -> str | None:
        """Say what is wrong with the answers that the attacker got, or None."""
        faults = [answer for answer in answers if answer.status in self.faults]
        if faults:
            return f"{faults[0].name}: {faults[0].status} {faults[0].body[:200]!r}"
        return self.judge(answers)


def statuses(answers: Iterable[Answer]) -> Counter[str]:
    """Count the answers of each status."""
    return Counter(answer.status for answer in answers)


# Bodies and addresses


def fresh() -> str:
    """Return a word that no cache holds."""
    return uuid.uuid4().hex[:12]


def as_json(path: str, value: object, **options: object) -> Request:
    """Return the post of a value as JSON."""
    return Request(path, json.dumps(value).encode(), **options)  # type: ignore[arg-type]


def sql(query: str, database: str = DATABASE, name: str = "", **parameters: str) -> Request:
    """Return the request that runs a query of one's own."""
    address = f"/{database}/-/query.json" if IS_1_0 else f"/{database}.json"
    search = urlencode({"sql": query, "_shape": "array", **parameters}, errors="surrogatepass")
    return Request(f"{address}?{search}", name=name or query[:60])


def multipart(parts: Iterable[tuple[str, bytes, bool]]) -> bytes:
    """Return a multipart body of (name, content, whether it is a file)."""
    body = bytearray()
    for name, content, is_file in parts:
        file = '; filename="x"' if is_file else ""
        body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        body += content + b"\r\n"
    return bytes(body + f"--{BOUNDARY}--\r\n".encode())


def upload(path: str, *files: bytes, name: str = "", **fields: str) -> Request:
    """Return the post of image files in a form."""
    parts = [("image", file, True) for file in files]
    parts += [(key, value.encode(), False) for key, value in fields.items()]
    return Request(path, multipart(parts), f"multipart/form-data; boundary={BOUNDARY}", name=name)


# Pictures that are small as files and large as pixels


@cache
def solid_png(width: int, height: int, depth: int = 8, colour_type: int = 2) -> bytes:
    """A PNG of one colour: a thousandth of its pixels' size."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    row = bytes(1 + (width * channels * depth + 7) // 8)
    stream = zlib.compressobj(9)
    pixels = b"".join([*(stream.compress(row) for _ in range(height)), stream.flush()])
    head = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunk = pictures.png_chunk
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND")


@cache
def solid_webp(width: int, height: int, seed: int = 0) -> bytes:
    """A lossless WebP of one colour, in 28 bytes: five prefix codes of one symbol each, and no bits for pixels.

    Where bits stand: https://developers.google.com/speed/webp/docs/webp_lossless_bitstream_specification
    """
    bits: list[int] = []

    def write(value: int, count: int) -> None:
        bits.extend(value >> place & 1 for place in range(count))

    write(width - 1, 14)
    write(height - 1, 14)
    write(0, 4)  # no alpha, version 0
    write(0, 3)  # no transform, no colour cache, no second layer of prefix codes
    for channel in range(5):
        write(1, 1)  # a simple code
        write(0, 1)  # of one symbol
        write(1, 1)  # of eight bits
        write(seed >> (8 * channel) & 0xFF if channel < 3 else 0, 8)
    bits += [0] * (-len(bits) % 8)
    packed = bytes(sum(bit << place for place, bit in enumerate(bits[at : at + 8])) for at in range(0, len(bits), 8))
    chunk = b"\x2f" + packed
    chunk += b"\0" * (len(chunk) % 2)
    content = b"WEBPVP8L" + struct.pack("<I", len(chunk)) + chunk
    return b"RIFF" + struct.pack("<I", len(content)) + content


@cache
def float_tiff(width: int = 4000, height: int = 4000) -> bytes:
    """A TIFF of float32 zeros, deflated: 16 megapixels in less than 100 kB."""
    tags = {
        256: (4, (width,)), 257: (4, (height,)), 258: (3, (32,)), 259: (3, (8,)), 262: (3, (1,)), 277: (3, (1,)),
        278: (4, (height,)), 339: (3, (3,)),
    }  # fmt: skip
    return pictures.raw_tiff(tags, zlib.compress(bytes(4 * width * height), 9))


@cache
def encoded(image_format: str, width: int, height: int, **options: object) -> bytes:
    """A smooth picture of this size."""
    return pictures.encode(pictures.scene(width, height), image_format, **options)


@cache
def solid_gif(width: int = 4000, height: int = 4000) -> bytes:
    """A GIF of one colour."""
    return pictures.encode(Image.new("P", (width, height)), "GIF")


@cache
def cmyk_jpeg(width: int = 4000, height: int = 4000) -> bytes:
    """A progressive JPEG of four channels, which a decoder has to hold whole."""
    return pictures.encode(Image.new("CMYK", (width, height)), "JPEG", progressive=True)


def changed(data: bytes, turn: int) -> bytes:
    """Return a file with something after its end that makes it new to caches."""
    return data + turn.to_bytes(4, "big") + fresh().encode()


LARGE_PICTURES: dict[str, Callable[[], bytes]] = {
    "tiff_float32": float_tiff,
    "webp_lossy": lambda: encoded("WEBP", 4000, 4000, quality=80, method=0),
    "avif": lambda: encoded("AVIF", 4000, 4000, speed=10, quality=60),
    "png_16_bit_alpha": lambda: solid_png(4000, 4000, 16, 6),
    "png_palette": lambda: solid_png(4000, 4000, 8, 0),
    "gif": solid_gif,
    "jpeg_progressive_cmyk": cmyk_jpeg,
    "jpeg_64_megapixels": lambda: encoded("JPEG", 8000, 8000, quality=50),
}


# The database


def write_database(path: Path, model: str, dimensions: int, *, giants: int = 0, many: int = 0, rows: int = 100) -> None:
    """Write the database that is attacked.

    `photos` (so many `rows`) is embedded with `model`, and so is `secret`, which the configuration has to hide; `wide`
    has so `many` embeddings and no pictures; `giants` so many pictures of 16 to 100 megapixels. The embeddings are
    random: nothing here depends on what they say.
    """
    generator = np.random.default_rng(0)

    def embeddings(count: int) -> list[bytes]:
        values = generator.standard_normal((count, dimensions)).astype("<f4")
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        return [value.tobytes() for value in values]

    connection = sqlite3.connect(path)
    with connection:
        for table, count in (("photos", rows), ("secret", 20)):
            connection.execute(f"create table {table} (id integer primary key, name text, image blob)")
            files = [pictures.jpeg(320, 240, number) for number in range(min(count, 20))]
            stored = [(number, f"{table} {number}", files[number % len(files)]) for number in range(count)]
            connection.executemany(f"insert into {table} values (?, ?, ?)", stored)
            side = SideTable(table, ("id",))
            side.create(connection)
            side.write(
                connection,
                [
                    SideTableRow((number,), "image", model, content_hash(image), embedding)
                    for (number, _, image), embedding in zip(stored, embeddings(count), strict=True)
                ],
            )
        if many:
            connection.execute("create table wide (id integer primary key, name text)")
            connection.executemany(
                "insert into wide values (?, ?)", [(number, f"row {number}") for number in range(many)]
            )
            side = SideTable("wide", ("id",))
            side.create(connection)
            side.write(
                connection,
                [
                    SideTableRow((n,), "name", model, content_hash(b"%d" % n), value)
                    for n, value in enumerate(embeddings(many))
                ],
            )
        connection.execute("create table giants (id integer primary key, image blob)")
        connection.executemany("insert into giants values (?, ?)", enumerate(_giants(giants)))
    connection.close()


HIDDEN = {DATABASE: {"tables": {"secret": {"allow": {"id": "alice"}}}}}


def _giants(count: int) -> list[bytes]:
    kinds: list[Callable[[], bytes]] = [
        lambda: solid_png(10_000, 10_000),
        lambda: solid_webp(10_000, 10_000),
        float_tiff,
        lambda: encoded("WEBP", 4000, 4000, quality=80, method=0),
    ]
    return [kinds[number % len(kinds)]() for number in range(count)]


# Item 1: a run of spaces


def _spaces(count: int) -> str:
    return "A" + " " * count + "!"


def _spaces_sql(site: Site, turn: int) -> list[Request]:
    return [
        sql(f"select {function}('x'||printf('%.*c',80000,' ')||'!')", name=function)
        for function in ("vision_error", "vision_embed_image", "vision_from_base64", "vision_info")
    ]


# Item 2: failing queries, then a model that was not used yet


def _new_model(site: Site, turn: int) -> list[Request]:
    failing = [
        "select vision_embed(1, 2, 3, 4)",
        "select vision_embed('x', 'no-such-model')",
        "select no_such_function()",
    ]
    names = site.other_models or (site.model,)
    return [
        *(sql(query) for query in failing * 3),
        *(sql(f"select length(vision_embed('{fresh()}', '{name}'))") for name in names),
        *(Request(f"/{DATABASE}/photos?_size=5") for _ in range(3)),
    ]


# Item 3: what is hidden

_SECRET = ("_vision_secret", "secret")


def _hidden(site: Site, turn: int) -> list[Request]:
    addresses = [
        f"/{DATABASE}/{table}{suffix}" for table in _SECRET for suffix in ("", ".json", ".csv", "?_shape=array")
    ]
    addresses += [
        f"/{DATABASE}/secret/1",
        f"/{DATABASE}/_vision_secret/1,image,{quote(site.model)}",
        f"/-/vision/search/{DATABASE}/secret?_like=1",
        f"/-/vision/{DATABASE}/secret?_like=1",
        f"/-/vision/picture/{DATABASE}/secret/image/1",
        f"/-/vision/search/{DATABASE}/_vision_secret",
    ]
    return [Request(address) for address in addresses]


def _nothing_shown(answers: Sequence[Answer]) -> str | None:
    shown = [answer for answer in answers if answer.status == "200"]
    return f"{shown[0].name} shows what is hidden: {shown[0].body[:100]!r}" if shown else None


# Item 4: pictures


def _one_picture(kind: str) -> Requests:
    return lambda site, turn: [upload(EMBED, changed(LARGE_PICTURES[kind](), turn), name=kind)]


def _every_picture(site: Site, turn: int) -> list[Request]:
    return [
        upload(path, changed(make(), turn), name=f"{kind} {path}")
        for kind, make in LARGE_PICTURES.items()
        for path in (EMBED, CLASSIFY)
    ]


def _webp_bombs(site: Site, turn: int) -> list[Request]:
    return [upload(EMBED, solid_webp(4000, 4000, random.getrandbits(24))) for _ in range(8)]


def _stored_giants(site: Site, turn: int) -> list[Request]:
    sizes = ("", "?_size=96", "?_size=576")
    return [Request(f"/-/vision/picture/{DATABASE}/giants/image/{number}{sizes[number % 3]}") for number in range(12)]


def _giants_in_sql(function: str) -> Requests:
    return lambda site, turn: [
        sql(f"select length({function}) from giants where id % 3 = {part}", name=function) for part in range(3)
    ]


def _playground(site: Site, turn: int) -> list[Request]:
    fields = {"labels": "cat,dog", "sentence": fresh()}
    return [upload("/-/vision", changed(make(), turn), name=kind, **fields) for kind, make in LARGE_PICTURES.items()]


# Items 5 and 6: bodies


def _form_of_escapes(site: Site, turn: int) -> list[Request]:
    return [Request(EMBED, b"text=" + b"%41" * (30_000_000 // 3), FORM)]


def _million_values(value: object, count: int, path: str = EMBED, name: str = "inputs") -> Requests:
    @cache
    def body() -> bytes:
        return json.dumps({name: [value] * count, "labels": ["cat", "dog"]}).encode()

    return lambda site, turn: [Request(path, body())]


def _dripping(attacker: Attacker) -> None:
    """Send most of two large bodies at once, and then a byte now and then."""
    size = attacker.site.max_request_bytes
    sockets = []
    for _ in range(2):
        connection = attacker.connect()
        connection.sendall(
            f"POST {EMBED} HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\nContent-Length: {size}\r\n\r\n".encode()
        )
        try:
            connection.sendall(b'{"text": "' + b"a" * (size - 20))
        except OSError:
            attacker.note("drip", CLOSED)
        sockets.append(connection)
    _drip(attacker, sockets, b"a", 2.0)


def _drip(attacker: Attacker, sockets: list[socket.socket], what: bytes, every_s: float) -> None:
    """Send a little on each socket now and then, and keep what the server says to it."""
    began = time.perf_counter()
    open_ = list(sockets)
    while open_ and time.perf_counter() - began < attacker.site.seconds:
        time.sleep(min(every_s, attacker.site.seconds / 4))
        for connection in list(open_):
            try:
                connection.setblocking(False)
                connection.send(what)
                answer: bytes | None = connection.recv(4096)
            except BlockingIOError:
                answer = None
            except OSError:
                answer = b""
            if answer is not None:
                open_.remove(connection)
                attacker.note("drip", answer[9:12].decode("latin-1") if answer else CLOSED)
    for _ in open_:
        attacker.note("drip", "held to the end")
    for connection in sockets:
        connection.close()


# Items 7 and 8: computing

_ENDLESS = "with recursive n(i) as (select 1 union all select i + 1 from n) "
_NUMBERS = "with recursive n(i) as (select 1 union all select i + 1 from n where i < {count}) "


def _fresh_labels_in_sql(site: Site, turn: int) -> list[Request]:
    """Three addresses with a thousand fresh labels each, in sets as large as they may be."""
    sets = max(1, 1000 // site.max_labels)
    count = min(1000, site.max_labels)
    query = (
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < :count),"
        " s(j) as (select 1 union all select j + 1 from s where j < :sets)"
        " select vision_label((select embedding from _vision_photos limit 1),"
        " (select json_group_array(:word || j || ' ' || i) from n)) from s"
    )
    return [sql(query, count=str(count), sets=str(sets), word=fresh(), name="fresh labels") for _ in range(3)]


def _labels_of_10_kb(site: Site, turn: int) -> list[Request]:
    literally = [f"{fresh()} " + "long label " * 900 for _ in range(1000)]
    allowed = [label[: site.max_text_chars] for label in literally[: site.max_labels]]
    embedding = base64.b64encode(_unit(site)).decode()
    return [
        as_json(ZERO_SHOT, {"embedding": embedding, "labels": labels}, name=name)
        for name, labels in (("literally", literally), ("as far as allowed", allowed))
    ]


def _unit(site: Site) -> bytes:
    """An embedding of a length that most models have: where it does not fit, the refusal is cheap."""
    value = np.zeros(512, dtype="<f4")
    value[0] = 1
    return value.tobytes()


def _long_texts(site: Site, turn: int) -> list[Request]:
    word = fresh()
    literally = [f"{word} {number} " + "purple and gold " * 6000 for number in range(300)]
    allowed = [text[: site.max_text_chars] for text in literally[: site.max_inputs]]
    return [as_json(EMBED, {"text": texts}, name=name) for name, texts in (("29 MB", literally), ("allowed", allowed))]


# Item 10: more than a person asks for


def _flood(attacker: Attacker, headers: Callable[[], tuple[tuple[str, str], ...]] = lambda: ()) -> None:
    """Ask for fresh texts one after the other on eight connections, as fast as they are answered."""
    ends = time.perf_counter() + attacker.site.seconds / 2

    def ask() -> None:
        while time.perf_counter() < ends:
            answer = attacker.send(as_json(EMBED, {"text": [f"{fresh()} text"] * 8}, headers=headers(), name="flood"))
            if answer.status == REFUSED:
                time.sleep(0.05)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _made_up() -> tuple[tuple[str, str], ...]:
    address = ".".join(str(random.randrange(1, 255)) for _ in range(4))
    names = "X-Forwarded-For", "X-Real-IP", "Fly-Client-IP", "CF-Connecting-IP", "True-Client-IP"
    return (*((name, address) for name in names), ("Forwarded", f"for={address}"))


# Item 12


def _through(site: Site, turn: int) -> list[Request]:
    values = [
        "{",
        "[]",
        "1",
        '"x"',
        "null",
        "{}",
        '{"table": 1, "column": 2, "value": 3}',
        '{"table": "nope"}',
        "\0",
        "[" * 9000,
    ]
    paths = (f"/-/vision/search/{DATABASE}/photos", f"/-/vision/{DATABASE}/photos", f"/{DATABASE}/photos.json")
    return [
        Request(f"{path}?_through={quote(value)}", name=f"{path} {value[:20]}")
        for path in paths[:2]
        for value in values
    ]


def _openai(site: Site, turn: int) -> list[Request]:
    address = {"input": f"https://example.org/{fresh()}.jpg", "modality": "image"}
    return [as_json(OPENAI, address, name="address as an image")]


def _address_refused(answers: Sequence[Answer]) -> str | None:
    taken = [answer for answer in answers if answer.status == "200"]
    return f"{taken[0].name}: an address was embedded as a text" if taken else None


# Connections


def _slow_headers(attacker: Attacker) -> None:
    """Fifty connections that never finish their headers."""
    sockets = [attacker.connect() for _ in range(50)]
    for connection in sockets:
        connection.sendall(b"GET /-/versions.json HTTP/1.1\r\nHost: x\r\n")
    _drip(attacker, sockets, b"X-a: b\r\n", 0.5)


def _slow_readers(attacker: Attacker) -> None:
    """Thirty connections that ask for much and read nothing."""
    sockets = []
    query = sql("select hex(randomblob(900000)) from photos limit 5").path
    for _ in range(30):
        connection = attacker.connect()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(f"GET {query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        sockets.append(connection)
    time.sleep(attacker.site.seconds)
    for connection in sockets:
        attacker.note("unread", "held to the end")
        connection.close()


def _idle(attacker: Attacker) -> None:
    """Five hundred connections on which nothing is said."""
    sockets = []
    for _ in range(500):
        try:
            sockets.append(attacker.connect())
        except OSError:
            attacker.note("idle", REFUSED)
            break
    time.sleep(attacker.site.seconds)
    attacker.note(f"{len(sockets)} idle", "held to the end")
    for connection in sockets:
        connection.close()


def _hang_ups(attacker: Attacker) -> None:
    """Ask for what takes long, and hang up at once: 300 times, or for as long as attacks go on."""
    picture = multipart([("image", changed(encoded("JPEG", 4000, 3000, quality=50), attacker.turn), True)])
    query = sql("with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n").path
    ends = time.perf_counter() + attacker.site.seconds
    for _ in range(150):
        if time.perf_counter() > ends:
            break
        for content in (
            f"GET {query} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
            f"POST {EMBED} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
            f"Content-Length: {len(picture)}\r\n\r\n".encode()
            + picture,
        ):
            try:
                with attacker.connect() as connection:
                    connection.sendall(content)
            except OSError:
                attacker.note("hang up", REFUSED)
                time.sleep(0.05)
            else:
                attacker.note("hang up", "hung up")


def _pipelined(attacker: Attacker) -> None:
    """A thousand requests on one connection before the first answer is read."""
    began = time.perf_counter()
    one = f"GET {EMBED}?text={fresh()} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    try:
        with attacker.connect() as connection:
            connection.sendall(one * 1000)
            connection.settimeout(attacker.site.seconds)
            received = 0
            while received < 1000 and time.perf_counter() - began < attacker.site.seconds:
                data = connection.recv(65536)
                if not data:
                    break
                received += data.count(b"HTTP/1.1 ")
        attacker.note("pipelined", "answered" if received else CLOSED, time.perf_counter() - began)
    except OSError:
        attacker.note("pipelined", CLOSED)


RAW_REQUESTS: dict[str, bytes] = {
    "header_of_a_megabyte": b"GET / HTTP/1.1\r\nHost: x\r\nX-a: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "100000_headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 100_000 + b"\r\n",
    "address_of_a_megabyte": b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "address_of_60000_tildes": b"GET /" + b"~" * 60_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "address_of_60000_slashes": b"GET /" + b"/" * 60_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "cookies_of_60000": b"GET /-/vision HTTP/1.1\r\nHost: x\r\nCookie: " + b"a=b; " * 12_000 + b"\r\n\r\n",
    "cookie_that_is_no_actor": b"GET /-/vision HTTP/1.1\r\nHost: x\r\nCookie: ds_actor=" + b"a.b" * 9000 + b"\r\n\r\n",
    "bearer_of_60000": b"GET /-/vision HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer dstok_"
    + b"e" * 60_000
    + b"\r\n\r\n",
    "no_host": b"GET /-/vision/embed?text=x HTTP/1.1\r\n\r\n",
    "evil_host": b'GET /-/vision/search/gallery/photos HTTP/1.1\r\nHost: evil"><script>\r\n\r\n',
    "both_lengths": b"POST /-/vision/embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    "negative_length": b"POST /-/vision/embed HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "huge_length": b"POST /-/vision/embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
    + b"9" * 30
    + b"\r\n\r\n{}",
    "length_of_arabic_digits": b"POST /-/vision/embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: \xd9\xa5\r\n\r\n{}",
    "chunk_of_a_terabyte": b"POST /-/vision/embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nffffffffff\r\n{}",
    "chunks_of_one_byte": b"POST /-/vision/embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 200_000 + b"0\r\n\r\n",
    "expects_continue": b"POST /-/vision/embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b'Content-Length: 12\r\nExpect: 100-continue\r\n\r\n{"text":"x"}',
    "gzip": b"POST /-/vision/embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n"
    b"Content-Length: 20\r\n\r\n" + zlib.compress(b"{}" * 100)[:20].ljust(20),
    "websocket": b"GET /-/vision/embed HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "http_2_preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100),
    "tls_hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "method_of_60000": b"A" * 60_000 + b" / HTTP/1.1\r\nHost: x\r\n\r\n",
    "trace": b"TRACE /-/vision/embed HTTP/1.1\r\nHost: x\r\n\r\n",
    "connect": b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "absolute_address": b"GET http://example.org/-/vision/models HTTP/1.1\r\nHost: x\r\n\r\n",
    "zero_in_address": b"GET /-/vision/search/gallery/\x00photos HTTP/1.1\r\nHost: x\r\n\r\n",
    "bytes_in_address": b"GET /-/vision/search/gallery/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "line_feeds": b"\r\n" * 50_000 + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "random": random.Random(0).randbytes(100_000),
}


def _raw(attacker: Attacker) -> None:
    """What no HTTP client sends."""
    for name, content in RAW_REQUESTS.items():
        began = time.perf_counter()
        try:
            with attacker.connect() as connection:
                connection.settimeout(2)
                with contextlib.suppress(OSError):  # refused before all was sent
                    connection.sendall(content)
                answer = connection.recv(4096)
            status = answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.") else CLOSED
        except TimeoutError:
            answer, status = b"", "hung up"
        except OSError:
            answer, status = b"", CLOSED
        attacker.answers.append(Answer(name, status, time.perf_counter() - began, answer))


# Addresses


def _search_addresses(site: Site, turn: int) -> list[Request]:
    many = "&".join(f"_like={number}" for number in range(32))
    arguments = {
        "32_likes": many,
        "2000_likes": "&".join(f"_like={number}" for number in range(2000)),
        "likes_nowhere": "_like=nope&_like=~~~&_like=1,2,3&_like=",
        "like_weights": "_like=1:nan&_like=2:inf&_like=3:1e308",
        "q_long": f"q={fresh()}+" + "word+" * 9000,
        "q_surrogates": "q=%ED%A0%80%FF%00",
        "size_huge": f"q={fresh()}&_size=99999999999999999999",
        "size_max": f"q={fresh()}&_size=max",
        "size_arabic": "_size=%D9%A1%D9%A2",
        "page_huge": f"q={fresh()}&_page=1000000&_size=max",
        "page_beyond": f"q={fresh()}&_page=9999999999",
        "threshold_nan": f"q={fresh()}&_threshold=nan",
        "embedding_long": "_embedding=" + "A" * 50_000,
        "embedding_broken": "_embedding=%00%FF",
        "model_nowhere": "q=x&_model=../../etc/passwd",
        "column_quoted": 'q=x&_column="; drop table photos; --',
        "where_broken": "q=x&_where=((((",
        "where_many": "&".join(f"_where=id>{number}" for number in range(500)),
        "where_slow": f"q={fresh()}&_where="
        + quote("(with recursive n(i) as (select 1 union all select i+1 from n) select count(*) from n)"),
        "filters_many": "&".join(f"name__contains={number}" for number in range(500)),
        "filter_nowhere": "nope__exact=1&name__nope=1&__=1&=1",
        "like_pattern": "name__like=" + "%25a" * 8000,
        "glob_pattern": "name__glob=" + "*a" * 8000,
        "search_broken": "_search=%22",
        "sort_nowhere": "_sort=nope&_sort_desc=nope",
        "everything": "_facet=name&_facet_array=name&_trace=1&_ttl=0&_nl=1&_labels=on&_extra=count",
    }
    pages = ("/-/vision/search", "/-/vision")
    return [
        Request(f"{page}/{DATABASE}/{table}?{argument.replace(' ', '+')}", name=f"{page} {table} {name}")
        for name, argument in arguments.items()
        for page in pages
        for table in ("photos", "wide")
    ]


def _paths(site: Site, turn: int) -> list[Request]:
    parts = [
        "..",
        "~2E~2E",
        "%2e%2e",
        "....//",
        "~00",
        "%00",
        "'",
        '"',
        "~22~3B",
        "a" * 3000,
        "~",
        "~2",
        "~ZZ",
        "%",
        "%zz",
        "~F0~9F",
    ]
    addresses = [f"/-/vision/{part}" for part in parts]
    addresses += [f"/-/vision/search/{part}/{other}" for part in parts for other in (part, "photos")]
    addresses += [f"/-/vision/search/{DATABASE}/{part}" for part in parts]
    addresses += [f"/-/vision/{DATABASE}/{part}" for part in parts]
    addresses += [f"/-/vision/picture/{DATABASE}/photos/{part}/1" for part in parts]
    addresses += [f"/-/vision/picture/{DATABASE}/photos/image/{part}" for part in parts]
    addresses += [f"/-/vision/picture/{DATABASE}/{part}/image/1" for part in parts]
    addresses += [f"/-/vision/v1/models/{part}" for part in parts]
    addresses += [
        f"/-/vision/picture/{DATABASE}/photos/image/1?_size={part}" for part in (*parts, "1000000", "-1", "96.0")
    ]
    addresses += [f"/-/static-plugins/datasette_vision/{part}/{part}/etc/passwd" for part in parts if len(part) < 99]
    return [Request(address) for address in addresses]


def _methods(site: Site, turn: int) -> list[Request]:
    addresses = (
        "/-/vision", EMBED, CLASSIFY, ZERO_SHOT, "/-/vision/similarity", "/-/vision/models", "/-/vision/jobs",
        "/-/vision/metrics", "/-/vision/openapi.json", "/-/vision/docs", OPENAI, "/-/vision/v1/models", SEARCH,
        f"/-/vision/{DATABASE}/photos", f"/-/vision/picture/{DATABASE}/photos/image/1",
    )  # fmt: skip
    headers = (
        (),
        (("If-None-Match", '"' * 9000),),
        (("Range", "bytes=0-0," * 3000),),
        (("Accept-Encoding", "gzip;q=" + "9" * 9000),),
        (("Origin", "https://evil.example"), ("Cookie", "ds_actor=x")),
        (("Origin", "null"), ("Access-Control-Request-Method", "POST")),
        (("Content-Type", "text/plain; charset=" + "x" * 9000),),
        (("X-Forwarded-Host", "evil.example"), ("X-Forwarded-Proto", "gopher")),
    )
    return [
        Request(address, None, method=method, headers=own, name=f"{method} {address}")
        for address in addresses
        for method in ("HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "FOO")
        for own in headers[:: 1 if method in ("HEAD", "OPTIONS") else 4]
    ]


# SQL


def _queries(*queries: str) -> Requests:
    return lambda site, turn: [
        sql(query.replace("$fresh", fresh()).replace("$model", site.model), name=query[:70]) for query in queries
    ]


def _every_model(site: Site, turn: int) -> list[Request]:
    """Have every installed model loaded, one after the other."""
    names = (site.model, *site.other_models)
    picture = pictures.jpeg()
    return [
        *(as_json(EMBED, {"text": fresh(), "model": name}) for name in names),
        *(upload(EMBED, changed(picture, turn), model=name) for name in names),
        *(upload(CLASSIFY, changed(picture, turn), model=name) for name in names),
    ]


# Hostile inputs


def _hostile_images(site: Site, turn: int) -> list[Request]:
    ways = [
        lambda name, data: upload(EMBED, data, name=name),
        lambda name, data: as_json(CLASSIFY, {"image": base64.b64encode(data).decode()}, name=name),
        lambda name, data: upload(SEARCH, data, name=name),
    ]
    found = [ways[(place + turn) % 3](name, data) for place, (name, data) in enumerate(hostile.HOSTILE_IMAGES.items())]
    return _shuffled(found, turn)


def _hostile_images_in_sql(site: Site, turn: int) -> list[Request]:
    functions = ("vision_error", "vision_embed_image", "vision_info", "vision_classify", "vision_label")
    found = []
    for place, (name, data) in enumerate(hostile.HOSTILE_IMAGES.items()):
        if len(data) < 30_000:  # the rest does not fit an address
            function = functions[(place + turn) % len(functions)]
            second = ", '[\"cat\"]'" if function == "vision_label" else ""
            found.append(sql(f"select {function}(:x{second})", x=base64.b64encode(data).decode(), name=name))
    return _shuffled(found, turn)


def _hostile_texts(site: Site, turn: int) -> list[Request]:
    found = []
    for name, text in hostile.HOSTILE_TEXTS.items():
        found += [
            as_json(EMBED, {"text": text}, name=name),
            as_json(OPENAI, {"input": text}, name=f"{name}, OpenAI"),
            as_json(ZERO_SHOT, {"image": text, "labels": [text]}, name=f"{name}, label"),
            as_json("/-/vision/similarity", {"query": text, "text": [text, text]}, name=f"{name}, similarity"),
        ]
        short = text[:15_000].encode("utf-8", "surrogatepass")
        found += [
            Request(f"{EMBED}?{urlencode({'text': short})}"[:60_000], name=f"{name}, address"),
            Request(f"{SEARCH}?{urlencode({'q': short})}"[:60_000], name=f"{name}, search"),
            sql("select vision_embed(:x)", x=text[:5_000], name=f"{name}, SQL"),
        ]
    return _shuffled(found, turn)


def _hostile_labels(site: Site, turn: int) -> list[Request]:
    embedding = base64.b64encode(_unit(site)).decode()
    found = []
    for name, labels in hostile.HOSTILE_LABELS.items():
        raw = b'{"embedding": "%b", "labels": %b}' % (embedding.encode(), labels.encode("utf-8", "surrogatepass"))
        found.append(Request(ZERO_SHOT, raw, name=name))
        form = urlencode({"embedding": embedding, "labels": labels}, errors="surrogatepass").encode()
        found.append(Request(ZERO_SHOT, form, FORM, name=f"{name}, form"))
        if len(labels) < 20_000:
            query = "select vision_zero_shot((select embedding from _vision_photos limit 1), :labels)"
            found.append(sql(query, labels=labels, name=f"{name}, SQL"))
    return _shuffled(found, turn)


def _hostile_embeddings(site: Site, turn: int) -> list[Request]:
    found = []
    for name, embedding in hostile.HOSTILE_EMBEDDINGS(512).items():
        coded = base64.b64encode(embedding).decode()
        found.append(as_json(ZERO_SHOT, {"embedding": coded, "labels": ["cat", "dog"]}, name=name))
        found.append(as_json(SEARCH, {"embedding": coded}, name=f"{name}, search"))
        if len(coded) < 30_000:
            found.append(Request(f"{SEARCH}?{urlencode({'_embedding': coded})}", name=f"{name}, address"))
            query = (
                "select vision_similarity(vision_from_base64(:x), vision_from_base64(:x)),"
                " vision_to_json(vision_from_base64(:x)), vision_search('photos', vision_from_base64(:x))"
            )
            found.append(sql(query, x=coded, name=f"{name}, SQL"))
    return _shuffled(found, turn)


_MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
_PART = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name="
_END = f"\r\n--{BOUNDARY}--\r\n"
_FILE = (_PART + '"image"; filename="x"\r\n\r\n').encode()
_FIELD = (_PART + '"text"\r\n\r\nx' + _END).encode()


@cache
def hostile_bodies() -> dict[str, tuple[str, bytes]]:
    """Return bodies that are not, or not quite, what their media type says: (media type, body), by name."""
    end = _END.encode()

    def field(name: str) -> bytes:
        return (_PART + name + "\r\n\r\nx" + _END).encode()

    headers = f"--{BOUNDARY}\r\n" + "X-a: b\r\n" * 10_000 + 'Content-Disposition: form-data; name="text"\r\n\r\nx'
    of_json = {
        "empty": b"",
        "truncated": b'{"text": "x',
        "array": b"[1, 2, 3]",
        "nan": b'{"text": NaN}',
        "huge_integer": b'{"text": ' + b"9" * 200_000 + b"}",
        "huge_exponent": b'{"k": 1e400000}',
        "nested": b'{"text": ' + b"[" * 1_000_000,
        "nested_objects": b'{"a":' * 500_000,
        "latin_1": b'{"text": "\xe9"}',
        "utf_16": '{"text": "x"}'.encode("utf-16"),
        "byte_order_mark": b"\xef\xbb\xbf{}",
        "same_key": b"{" + b'"text": "x", ' * 10_000 + b'"text": "x"}',
        "10000_keys": json.dumps({f"key {number}": number for number in range(10_000)}).encode(),
        "key_of_a_megabyte": b'{"' + b"k" * 1_000_000 + b'": 1}',
        "model_of_10_megabytes": b'{"text": "x", "model": "' + b"m" * 10_000_000 + b'"}',
        "escapes": b'{"text": "' + b"\\u0041" * 2_000_000 + b'"}',
        "lone_surrogate": b'{"text": "\\ud83d", "model": "\\ud83d"}',
    }
    of_forms = {
        "10000_fields": b"text=x&" * 10_000,
        "100000_fields": b"text=x&" * 100_000,
        "ampersands": b"&" * 20_000_000,
        "percents": b"text=" + b"%" * 20_000_000,
        "pluses": b"text=" + b"+" * 20_000_000,
        "latin_1": b"text=\xe9",
    }
    of_parts = {
        "10000_parts": multipart([("text", b"x", False)] * 10_000),
        "10001_parts": multipart([("text", b"x", False)] * 10_001),
        "100000_parts": multipart([("text", b"", False)] * 100_000),
        "empty": b"",
        "truncated": _FIELD[: -len(end)],
        "almost_boundaries": _FILE + f"\r\n--{BOUNDARY[:-1]}".encode() * 500_000 + end,
        "line_feeds_before": b"\r\n" * 5_000_000 + _FIELD,
        "line_feeds_after": _FIELD + b"\r\n" * 5_000_000,
        "line_feeds_inside": _FILE + b"\r\n" * 5_000_000 + end,
        "returns_inside": _FILE + b"\r" * 5_000_000 + end,
        "hyphens_inside": _FILE + b"\r\n--" * 5_000_000 + end,
        "10000_headers": (headers + _END).encode(),
        "header_of_10_megabytes": field('"' + "n" * 10_000_000 + '"'),
        "disposition_of_semicolons": field('"text"' + ";" * 5_000_000),
        "disposition_of_quotes": field('"' + '\\"' * 2_000_000 + '"'),
    }
    others = {
        "multipart_no_boundary": ("multipart/form-data", b"--x\r\n\r\n"),
        "multipart_boundary_of_60000": (f"multipart/form-data; boundary={'b' * 60_000}", b"x" * 100_000),
        "other_type": ("text/plain", b"text=x"),
        "type_of_semicolons": (JSON + ";" * 30_000, b'{"text": "x"}'),
    }
    return {
        **{f"json_{name}": (JSON, body) for name, body in of_json.items()},
        **{f"form_{name}": (FORM, body) for name, body in of_forms.items()},
        **{f"multipart_{name}": (_MULTIPART, body) for name, body in of_parts.items()},
        **others,
    }


def _hostile_bodies(site: Site, turn: int) -> list[Request]:
    paths = (EMBED, ZERO_SHOT, OPENAI, SEARCH, "/-/vision", f"/-/vision/{DATABASE}/photos")
    return _shuffled(
        [
            Request(paths[(place + turn) % len(paths)], body, kind, name=name)
            for place, (name, (kind, body)) in enumerate(hostile_bodies().items())
        ],
        turn,
    )


def _shuffled(requests: list[Request], turn: int) -> list[Request]:
    """Put the requests of each attacker but the first in an order of its own."""
    if turn:
        random.Random(turn).shuffle(requests)
    return requests


def _same_set(site: Site, turn: int) -> list[Request]:
    """Label sets that never repeat, each as large as it may be, with prompts that do: they cost memory, not time."""
    embedding = base64.b64encode(_unit(site)).decode()
    count = min(site.max_labels, 200)
    return [
        as_json(
            ZERO_SHOT,
            {
                "embedding": embedding,
                "labels": [{"label": f"{fresh()} {'x' * 5000}", "prompt": f"prompt {n}"} for n in range(count)],
            },
            name="label set",
        )
        for _ in range(20)
    ]


ATTACKS: tuple[Attack, ...] = (
    # Item 1
    Attack("spaces_get", "1", "60 kB of spaces in an image's base64, in an address",
           lambda site, turn: [Request(f"{EMBED}?image=A{'+' * 60_000}!")]),
    Attack("spaces_post", "1", "400 kB of spaces in an image's base64, in JSON, a form and a search",
           lambda site, turn: [
               as_json(EMBED, {"image": _spaces(400_000)}),
               as_json(EMBED, {"image": "data:image/png;base64," + _spaces(400_000)}),
               Request(EMBED, b"image=A" + b"+" * 400_000 + b"!", FORM),
               upload(EMBED, image=_spaces(400_000)),
               as_json(SEARCH, {"image": _spaces(400_000)}),
           ]),
    Attack("spaces_32_mb", "1", "32 MB of spaces in an image's base64",
           lambda site, turn: [as_json(EMBED, {"image": _spaces(site.max_request_bytes - 100)})]),
    Attack("line_breaks_32_mb", "1", "32 MB of tabs, line breaks and hyphens in an image's base64",
           lambda site, turn: [
               as_json(EMBED, {"image": "A" + "\t\n \r" * (site.max_request_bytes // 8) + "!"}),
               as_json(EMBED, {"image": "data:" + "%20" * (site.max_request_bytes // 4) + ",x"}),
           ]),
    Attack("spaces_sql", "1", "80 kB of spaces in an image's base64, in SQL", _spaces_sql),
    # Item 2
    Attack("new_model", "2", "failing queries, then the first use of another model in SQL", _new_model),
    # Item 3
    Attack("hidden", "3", "the embeddings and pictures of a hidden table", _hidden, judge=_nothing_shown),
    # Item 4
    *(Attack(f"picture_{kind}", "4", f"16 megapixels or more: {kind.replace('_', ' ')}", _one_picture(kind))
      for kind in LARGE_PICTURES),
    Attack("pictures_all", "4", "all of these at once, embedded and classified", _every_picture),
    Attack("webp_bombs", "4", "eight lossless WebPs of 28 bytes and 16 megapixels at once", _webp_bombs),
    Attack("stored_giants", "4", "twelve requests for stored pictures of up to 100 megapixels", _stored_giants),
    Attack("thumbnails_sql", "4", "vision_thumbnail() of stored giants", _giants_in_sql("vision_thumbnail(image, 9)")),
    Attack("errors_sql", "4", "vision_error() of stored giants", _giants_in_sql("vision_error(image)")),
    Attack("embeds_sql", "4", "vision_embed() of stored giants", _giants_in_sql("vision_embed(image)")),
    Attack("playground", "4", "large pictures, posted to the playground", _playground),
    # Items 5 and 6
    Attack("form_escapes", "5", "a form of 30 MB of escaped letters", _form_of_escapes),
    Attack("json_inputs", "5", "JSON of a million inputs", _million_values("a", 900_000)),
    Attack("json_texts", "5", "JSON of a million texts", _million_values("a", 900_000, EMBED, "text")),
    Attack("json_objects", "5", "JSON of half a million empty objects", _million_values({}, 490_000)),
    Attack("json_embedding", "5", "an embedding of a million numbers",
           _million_values(0.5, 900_000, ZERO_SHOT, "embedding")),
    Attack("dripping", "6", "two bodies of 32 MB that never end", script=_dripping),
    # Items 7 and 8
    Attack("labels_sql", "7", "three SQL addresses with a thousand fresh labels each", _fresh_labels_in_sql),
    Attack("labels_long", "7", "a thousand labels of 10 kB", _labels_of_10_kb),
    Attack("texts_long", "8", "300 long texts in 29 MB", _long_texts),
    # Item 10
    Attack("flood", "10", "fresh texts as fast as they are answered", script=_flood),
    Attack("flood_forwarded", "10", "the same, each from another X-Forwarded-For",
           script=lambda attacker: _flood(attacker, _made_up)),
    # Item 12
    Attack("through", "12", "a malformed _through", _through, in_turn=True),
    Attack("openai_modality", "12", "an address that is said to be an image", _openai, judge=_address_refused),
    # Connections
    Attack("slow_headers", "connections", "fifty connections that never finish their headers", script=_slow_headers),
    Attack("slow_readers", "connections", "thirty large answers that nobody reads", script=_slow_readers),
    Attack("idle", "connections", "five hundred connections on which nothing is said", script=_idle),
    Attack("hang_ups", "connections", "expensive requests that nobody waits for", script=_hang_ups),
    Attack("pipelined", "connections", "a thousand requests before the first answer is read", script=_pipelined),
    # Datasette 0.65 answers a method of 60,000 letters with 500.
    Attack("raw", "connections", "what no HTTP client sends", script=_raw, faults=SERVER_FAULTS - {"500"}),
    # Addresses
    Attack("search", "addresses", "searches that ask for too much, or for nonsense", _search_addresses, in_turn=True),
    Attack("paths", "addresses", "addresses of what is not there", _paths, in_turn=True),
    Attack("methods", "addresses", "every route with other methods and odd headers", _methods, in_turn=True,
           faults=frozenset({"500"})),
    # SQL
    Attack("search_k", "sql", "vision_search() for a huge number of rows", _queries(
        "select vision_search('photos', '$fresh', 9223372036854775807)",
        "select length(vision_search('wide', '$fresh', 100000000))",
        "select count(*) from photos, json_each(vision_search('wide', '$fresh' || id, 1000))",
    )),
    Attack("combine", "sql", "vision_combine() with as many arguments as there may be", lambda site, turn: [
        sql(f"select vision_combine({', '.join(['zeroblob(2048), 1'] * pairs)})") for pairs in (50, 63, 500, 1500)
    ]),
    Attack("labels_concat", "sql", "labels made of everything, concatenated", _queries(
        _NUMBERS.format(count=200_000) + "select vision_zero_shot((select embedding from _vision_photos limit 1),"
        " (select json_group_array('$fresh ' || i) from n))",
        _NUMBERS.format(count=2_000_000) + "select vision_zero_shot((select embedding from _vision_photos limit 1),"
        " (select group_concat('$fresh ' || i, char(10)) from n))",
        _NUMBERS.format(count=100) + "select vision_label(embedding, json_array('$fresh' || id, '$fresh' || i))"
        " from _vision_photos, n",
    )),
    Attack("embed_recursive", "sql", "a recursive query that embeds fresh texts without end", _queries(
        *[_ENDLESS + "select count(vision_embed('$fresh' || i)) from n"] * 3,
    )),
    Attack("embed_long_text_sql", "sql", "texts of 100 MB in SQL", _queries(
        "select vision_embed(printf('%.*c', 100000000, 'a'))",
        "select vision_embed('x', printf('%.*c', 100000000, 'a'))",
        "select vision_embed_image(printf('%.*c', 100000000, 'A'))",
        "select vision_error(printf('data:;base64,%.*c', 100000000, 'A'))",
        "select vision_label(zeroblob(2048), printf('[%.*c', 100000000, '['))",
        "select vision_from_json(printf('[%.*c', 100000000, '1'))",
        "select vision_search(printf('%.*c', 100000000, 'a'), 'x')",
    )),
    Attack("zeroblobs", "sql", "BLOBs of up to 1 GB as embeddings", _queries(
        "select length(vision_to_json(zeroblob(400000000)))",
        "select length(llm_embed_decode(zeroblob(400000000)))",
        "select vision_similarity(zeroblob(900000000), zeroblob(900000000))",
        "select vision_average(zeroblob(400000000 + 0 * id)) from photos",
        "select vision_combine(randomblob(400000000), 1, randomblob(400000000), -1)",
        "select vision_error(zeroblob(900000000))",
    )),
    Attack("rows_of_blobs", "sql", "more memory in the rows of an answer than there is", _queries(
        "select randomblob(20000000) from photos",
        "select hex(randomblob(10000000)) from photos",
        "select zeroblob(1000000000)",
    )),
    Attack("sorted_blobs", "sql", "more memory inside SQLite than there is", _queries(
        "select length(group_concat(hex(randomblob(1000000)))) from photos, photos",
        "select id from photos, (select 1 union select 2) order by randomblob(9000000) desc limit 1",
        "with recursive n(b) as (select zeroblob(9000000) union all select b || 'x' from n) select count(*) from n",
        "with recursive n(b) as (select zeroblob(9000000) union select b || 'x' from n) select count(*) from n",
    )),
    Attack("pragmas", "sql", "what a query must not be able to do", _queries(
        "attach database '/etc/passwd' as x", "pragma cache_size = 1000000000", "select load_extension('/tmp/x')",
        "select writefile('/tmp/x', 'y')", "select readfile('/etc/passwd')", "select edit('x')",
        "select * from pragma_database_list", "vacuum into '/tmp/x'", "insert into photos default values",
        "with x as (select 1) delete from photos", "select fts3_tokenizer('simple')",
        "select vision_search('sqlite_master', 'x')", "select vision_search('_vision_photos', 'x')",
        "select vision_search('secret', 'x')", "select vision_embed(x) from (select 1 as x) group by vision_models()",
    )),
    Attack("index_build", "sql", "searches of a large table that has no index yet", _queries(
        *["select vision_search('wide', '$fresh', 10)"] * 6
    )),
    # Models, caches, protocols
    Attack("every_model", "models", "every installed model in turn", _every_model),
    Attack("label_sets", "models", "large label sets that never repeat", _same_set, in_turn=True),
    Attack("openai_2048", "models", "2,048 inputs in OpenAI's protocol",
           lambda site, turn: [as_json(OPENAI, {"input": [f"{fresh()} {n}" for n in range(2048)]}),
                               as_json(OPENAI, {"input": [f"{fresh()} {n}" for n in range(site.max_inputs)]})]),
    # The hostile inputs of the tests
    Attack("hostile_images", "hostile", "every hostile image, posted", _hostile_images, in_turn=True),
    Attack("hostile_images_sql", "hostile", "every hostile image, in SQL", _hostile_images_in_sql, in_turn=True),
    Attack("hostile_texts", "hostile", "every hostile text, every way", _hostile_texts, in_turn=True),
    Attack("hostile_labels", "hostile", "every hostile label set", _hostile_labels, in_turn=True),
    Attack("hostile_embeddings", "hostile", "every hostile embedding", _hostile_embeddings, in_turn=True),
    Attack("hostile_bodies", "hostile", "every hostile body", _hostile_bodies, in_turn=True),
)  # fmt: skip
BY_NAME = {attack.name: attack for attack in ATTACKS}

# What a server answers to everybody who may see it.
ADDRESSES = (
    "/", "/-/versions.json", f"/{DATABASE}", f"/{DATABASE}/photos.json", "/-/vision", f"{EMBED}?text=x",
    f"{CLASSIFY}?image=x", f"{ZERO_SHOT}?image=x&labels=cat", "/-/vision/similarity?query=x&text=y", "/-/vision/models",
    "/-/vision/jobs", "/-/vision/metrics", "/-/vision/openapi.json", "/-/vision/docs", "/-/vision/v1/models",
    f"{SEARCH}?q=x", f"{SEARCH}?_like=1", f"/-/vision/{DATABASE}/photos?q=x",
    f"/-/vision/picture/{DATABASE}/photos/image/1",
)  # fmt: skip


def computing(site: Site) -> list[Request]:
    """Return requests of every kind that has a model compute."""
    picture = changed(pictures.jpeg(), 0)
    functions = (
        f"vision_embed('{fresh()}')",
        f"vision_embed_text('{fresh()}')",
        "vision_embed((select image from photos limit 1))",
        "vision_embed_image((select image from photos limit 1 offset 1))",
        f'vision_zero_shot((select embedding from _vision_photos limit 1), \'["{fresh()}", "{fresh()}"]\')',
        f'vision_label((select image from photos limit 1 offset 2), \'["{fresh()}", "{fresh()}"]\')',
        "vision_classify((select image from photos limit 1 offset 3))",
        f"vision_search('photos', '{fresh()}')",
        "vision_search('photos', (select image from photos limit 1 offset 4))",
        f"llm_embed('{site.model}', '{fresh()}')",
    )
    return [
        *(sql(f"select {function}") for function in functions),
        Request(f"{EMBED}?text={fresh()}"),
        upload(EMBED, picture),
        upload(CLASSIFY, picture),
        upload(ZERO_SHOT, picture, labels=json.dumps([fresh()])),
        as_json("/-/vision/similarity", {"query": fresh(), "text": [fresh()]}),
        as_json(OPENAI, {"input": fresh()}),
        Request(f"{SEARCH}?q={fresh()}"),
        Request(f"{SEARCH}?_like=1&_not={fresh()}"),
        upload(SEARCH, picture),
        Request(f"/-/vision/{DATABASE}/photos?q={fresh()}"),
        upload(f"/-/vision/{DATABASE}/photos", picture),
        upload("/-/vision", picture, sentence=fresh(), labels=fresh()),
    ]
