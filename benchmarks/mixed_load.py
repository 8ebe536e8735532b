"""A minute of everything at once, by 100 clients, while rows come and go: is any answer wrong?

python benchmarks/mixed_load.py [--model clip] [--models DIR] [--clients 100] [--seconds 60] [--rows 300] [--seed 0]

The clients embed texts and images in SQL and over HTTP, choose among labels, search by page, API and SQL, read pages of
a table and fetch pictures. A writer inserts, updates and deletes rows, which `auto_embed` follows. Every answer is
checked against what is true: embeddings against those computed here, rows against what the table held while the
request was under way, similarities against the embeddings of the pictures that the row had. Answers 429 and 503 are
allowed, and counted. In the end the table's embeddings have to be those of its rows.

Ends with exit code 1 when an answer was wrong.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from servers import Server, serve

from datasette_vision.config.settings import Config
from datasette_vision.engine.vision import Vision
from datasette_vision.tables.schema import SideTable, SideTableRow, content_hash
from tests import pictures
from tests.attacks import CLASSIFY, EMBED, OPENAI, ZERO_SHOT, Attacker, Request, Site, as_json, upload
from tests.attacks import sql as sql_request

DATABASE = "mixed"
IMAGES, TEXTS, LABEL_SETS = 40, 200, 10
# What the order of additions may make of the same input in batches of different sizes.
COSINE = 1 - 1e-5
# What it may make of the cosine of two such.
SIMILARITY = 2e-3
# A row keeps its old embedding until auto_embed gets to it: under this load, at most so long.
LAG_S = 45.0
K = 10
WAITING = ("429", "503")


@dataclass(frozen=True)
class State:
    """What a row was from one moment to another: the number of its picture, or None when it was not there."""

    since: float
    until: float
    image: int | None


class History:
    """What every row was, and when. A change counts as both, before and after, while it is being committed."""

    def __init__(self) -> None:
        self._rows: dict[int, list[State]] = {}
        self._lock = threading.Lock()

    def change(self, row: int, image: int | None, began: float, ended: float) -> None:
        """Keep that a row became something between two moments."""
        with self._lock:
            states = self._rows.setdefault(row, [State(0.0, float("inf"), None)])
            last = states.pop()
            states += [State(last.since, ended, last.image), State(began, float("inf"), image)]

    def images(self, row: int, began: float, ended: float) -> set[int | None]:
        """Return what a row was at any time between two moments."""
        with self._lock:
            states = self._rows.get(row, [State(0.0, float("inf"), None)])
            return {state.image for state in states if state.until >= began and state.since <= ended}

    def steady(self, began: float, ended: float) -> dict[int, int]:
        """Return the rows that were one thing, and there, all the time between two moments, with their pictures."""
        with self._lock:
            rows = list(self._rows)
        found = {row: self.images(row, began, ended) for row in rows}
        return {
            row: image
            for row, images in found.items()
            if len(images) == 1 and (image := next(iter(images))) is not None
        }

    def now(self) -> dict[int, int]:
        """Return the rows that are there, with their pictures."""
        return self.steady(time.monotonic(), time.monotonic())


@dataclass
class Truth:
    """What the answers have to be."""

    images: list[bytes]
    image_vectors: np.ndarray
    texts: list[str]
    text_vectors: np.ndarray
    labels: list[list[str]]
    label_vectors: list[np.ndarray]
    logit_scale: float
    history: History = field(default_factory=History)


@dataclass
class Tally:
    """What came back."""

    statuses: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: dict[str, float] = field(default_factory=dict)
    # How far from the truth a right answer was at most.
    cosine: float = 1.0
    similarity: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Wrong(Exception):
    """An answer that is not right."""


def picture(seed: int) -> bytes:
    """A smooth picture with grain, different for every seed."""
    generator = np.random.default_rng(seed)
    coarse = np.asarray(pictures.scene(320, 240, seed), dtype=np.int16)
    grain = generator.integers(-20, 21, coarse.shape, dtype=np.int16)
    file = io.BytesIO()
    Image.fromarray(np.clip(coarse + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def learn(vision: Vision) -> Truth:
    """Compute what is true."""
    images = [picture(seed) for seed in range(IMAGES)]
    texts = [f"a photograph of {number} cats on sofa number {number * 7}" for number in range(TEXTS)]
    labels = [[f"label {number} of set {place}" for number in range(3 + place)] for place in range(LABEL_SETS)]
    name = vision.config.default_model
    return Truth(
        images,
        np.stack([vision.embed_image(image) for image in images]),
        texts,
        vision.embed_texts(texts),
        labels,
        [vision.embed_texts(each) for each in labels],
        vision.services.dual_encoder(name).manifest.logit_scale,
    )


# The table


def write_database(path: Path, truth: Truth, model: str, rows: int) -> None:
    """Write the table, embedded."""
    connection = sqlite3.connect(path)
    connection.execute("pragma journal_mode = wal")
    with connection:
        connection.execute("create table photos (id integer primary key, name text, image blob)")
        side = SideTable("photos", ("id",))
        side.create(connection)
        for row in range(rows):
            image = row % IMAGES
            data = truth.images[image]
            connection.execute("insert into photos values (?, ?, ?)", (row, f"picture {image}", data))
            vector = truth.image_vectors[image].astype("<f4").tobytes()
            side.write(connection, [SideTableRow((row,), "image", model, content_hash(data), vector)])
            truth.history.change(row, image, 0.0, 0.0)
    connection.close()


def write(path: Path, truth: Truth, rows: int, stop: threading.Event, seed: int) -> int:
    """Insert, update and delete rows until told to stop; return how many changes that were."""
    generator = random.Random(seed)
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    there = {row: row % IMAGES for row in range(rows)}
    following, changes = rows, 0
    while not stop.wait(0.05):
        batch: list[tuple[int, int | None]] = []
        for _ in range(generator.randrange(1, 4)):
            kind = generator.random()
            image = generator.randrange(IMAGES)
            if kind < 0.4 or len(there) < rows // 2:
                batch.append((following, image))
                following += 1
            elif kind < 0.7:
                batch.append((generator.choice(list(there)), image))
            else:
                batch.append((generator.choice(list(there)), None))
        began = time.monotonic()
        connection.execute("begin immediate")
        for row, image in batch:
            if image is None:
                connection.execute("delete from photos where id = ?", (row,))
            else:
                connection.execute(
                    "insert into photos values (?, ?, ?)"
                    " on conflict (id) do update set name = excluded.name, image = excluded.image",
                    (row, f"picture {image}", truth.images[image]),
                )
        connection.execute("commit")
        ended = time.monotonic()
        for row, image in dict(batch).items():
            truth.history.change(row, image, began, ended)
            there.pop(row, None)
            if image is not None:
                there[row] = image
        changes += len(batch)
    connection.close()
    return changes


# The clients


class Client:
    """One of the clients: asks, and looks at each answer."""

    def __init__(self, site: Site, truth: Truth, tally: Tally, seed: int) -> None:
        self._http = Attacker(site, kept_bytes=50_000_000)
        self._truth = truth
        self._tally = tally
        self._random = random.Random(seed)
        self._kinds: list[Callable[[], None]] = [
            self.sql_text, self.sql_row, self.api_texts, self.api_images, self.openai, self.labels, self.similarity,
            self.search_page, self.search_api, self.search_like, self.vision_search, self.table_page, self.picture,
            self.thumbnail, self.classify,
        ]  # fmt: skip

    def run(self, ends: float) -> None:
        while time.monotonic() < ends:
            kind = self._random.choice(self._kinds)
            began = time.monotonic()
            try:
                kind()
            except Wrong as wrong:
                self._keep(f"{kind.__name__}: {wrong}")
            except Exception as error:
                self._keep(f"{kind.__name__}: {type(error).__name__}: {error}")
            with self._tally.lock:
                self._tally.kinds[kind.__name__] += 1
                took = time.monotonic() - began
                self._tally.slowest[kind.__name__] = max(took, self._tally.slowest.get(kind.__name__, 0))

    def _keep(self, wrong: str) -> None:
        with self._tally.lock:
            self._tally.wrong.append(wrong[:400])

    def _ask(self, request: Request, *allowed: str) -> tuple[bytes | None, float, float]:
        """Return (body, when asked, when answered); no body for an answer that says to wait, or an allowed status."""
        began = time.monotonic()
        answer = self._http.send(request)
        self._http.answers.clear()
        with self._tally.lock:
            self._tally.statuses[answer.status] += 1
        if answer.status in WAITING:
            time.sleep(0.1)
            return None, began, time.monotonic()
        if answer.status in allowed:
            return None, began, time.monotonic()
        if answer.status != "200":
            raise Wrong(f"{answer.status} {answer.body[:300]!r}")
        return answer.body, began, time.monotonic()

    def _check_vector(self, found: bytes, expected: np.ndarray) -> None:
        vector = np.frombuffer(found, "<f4")
        if vector.shape != expected.shape:
            raise Wrong(f"expected {expected.shape}, found {vector.shape}")
        cosine = float(vector @ expected)
        if not cosine >= COSINE:
            raise Wrong(f"the embedding of something else: cosine {cosine:.6f}")
        with self._tally.lock:
            self._tally.cosine = min(self._tally.cosine, cosine)

    def _check_similarity(self, found: float, expected: list[float], where: str) -> None:
        off = min((abs(found - each) for each in expected), default=float("inf"))
        if not off <= SIMILARITY:
            raise Wrong(f"{where}: similarity {found:.5f}, expected {[round(each, 5) for each in expected[:5]]}")
        with self._tally.lock:
            self._tally.similarity = max(self._tally.similarity, off)

    def _text(self) -> int:
        return self._random.randrange(TEXTS)

    def _image(self) -> int:
        return self._random.randrange(IMAGES)

    # What they ask for

    def sql_text(self) -> None:
        number = self._text()
        body, _, _ = self._ask(sql_request("select hex(vision_embed(:q)) as x", DATABASE, q=self._truth.texts[number]))
        if body is not None:
            self._check_vector(bytes.fromhex(json.loads(body)[0]["x"]), self._truth.text_vectors[number])

    def sql_row(self) -> None:
        row = self._row()
        query = "select name, hex(vision_embed(image)) as x from photos where id = :id"
        body, began, ended = self._ask(sql_request(query, DATABASE, id=str(row)))
        if body is not None:
            for found in json.loads(body):
                image = self._named(row, found["name"], began, ended)
                self._check_vector(bytes.fromhex(found["x"]), self._truth.image_vectors[image])

    def api_texts(self) -> None:
        numbers = [self._text() for _ in range(self._random.choice((1, 1, 5, 20)))]
        texts = [self._truth.texts[number] for number in numbers]
        body, _, _ = self._ask(as_json(EMBED, {"text": texts, "encoding_format": "base64"}))
        if body is not None:
            results = json.loads(body)["results"]
            self._check_count(len(results), len(numbers))
            for result, number in zip(results, numbers, strict=True):
                self._check_vector(base64.b64decode(result["embedding"]), self._truth.text_vectors[number])

    def api_images(self) -> None:
        numbers = [self._image() for _ in range(self._random.choice((1, 1, 3)))]
        files = [self._truth.images[number] for number in numbers]
        body, _, _ = self._ask(upload(EMBED, *files, encoding_format="base64"))
        if body is not None:
            results = json.loads(body)["results"]
            self._check_count(len(results), len(numbers))
            for result, number in zip(results, numbers, strict=True):
                self._check_vector(base64.b64decode(result["embedding"]), self._truth.image_vectors[number])

    def openai(self) -> None:
        text, image = self._text(), self._image()
        uri = "data:image/jpeg;base64," + base64.b64encode(self._truth.images[image]).decode()
        body, _, _ = self._ask(as_json(OPENAI, {"input": [self._truth.texts[text], uri], "encoding_format": "base64"}))
        if body is not None:
            first, second = json.loads(body)["data"]
            self._check_vector(base64.b64decode(first["embedding"]), self._truth.text_vectors[text])
            self._check_vector(base64.b64decode(second["embedding"]), self._truth.image_vectors[image])

    def labels(self) -> None:
        place, image = self._random.randrange(LABEL_SETS), self._image()
        names = self._truth.labels[place]
        embedding = base64.b64encode(self._truth.image_vectors[image].astype("<f4").tobytes()).decode()
        asked = {"labels": names, **({"embedding": embedding} if image % 2 else {})}
        if image % 2:
            request = as_json(ZERO_SHOT, asked)
        else:
            request = upload(ZERO_SHOT, self._truth.images[image], labels=json.dumps(names))
        body, _, _ = self._ask(request)
        if body is None:
            return
        found = {each["label"]: each["score"] for each in json.loads(body)["results"][0]["labels"]}
        if set(found) != set(names) or abs(sum(found.values()) - 1) > 1e-3:
            raise Wrong(f"labels: {found}")
        logits = self._truth.logit_scale * (self._truth.label_vectors[place] @ self._truth.image_vectors[image])
        for name, logit in zip(names, logits - np.logaddexp.reduce(logits), strict=True):
            if abs(np.log(max(found[name], 1e-12)) - logit) > 2 * SIMILARITY * self._truth.logit_scale and logit > -10:
                raise Wrong(f"label {name}: score {found[name]}, expected {np.exp(logit):.6f}")

    def similarity(self) -> None:
        text, others = self._text(), [self._text() for _ in range(3)]
        texts = [self._truth.texts[number] for number in others]
        body, _, _ = self._ask(as_json("/-/vision/similarity", {"query": self._truth.texts[text], "text": texts}))
        if body is not None:
            for result, number in zip(json.loads(body)["results"], others, strict=True):
                expected = float(self._truth.text_vectors[text] @ self._truth.text_vectors[number])
                self._check_similarity(result["similarity"], [expected], "texts")

    def search_page(self) -> None:
        text = self._truth.texts[self._text()]
        body, _, _ = self._ask(Request(f"/-/vision/{DATABASE}/photos?q={quote(text)}"))
        if body is not None and (text.encode() not in body or b"</html>" not in body):
            raise Wrong(f"not the page of this search: {body[:100]!r}")

    def search_api(self) -> None:
        number = self._text()
        asked = f"/-/vision/search/{DATABASE}/photos?q={quote(self._truth.texts[number])}&_size={K}"
        body, began, ended = self._ask(Request(asked))
        if body is not None:
            found = [(each["row"]["id"], each["row"]["name"], each["similarity"]) for each in json.loads(body)["rows"]]
            self._check_found(found, self._truth.text_vectors[number], began, ended)

    def search_like(self) -> None:
        row = self._row()
        asked = f"/-/vision/search/{DATABASE}/photos?_like={row}&_size={K}"
        body, began, ended = self._ask(Request(asked), "400")  # it may be gone, or not be embedded yet
        if body is not None:
            rows = json.loads(body)["rows"]
            vectors = [self._truth.image_vectors[image] for image in self._embedded(row, began, ended)]
            for each in rows:
                self._named(each["row"]["id"], each["row"]["name"], began, ended)
                images = self._embedded(each["row"]["id"], began, ended)
                expected = [float(self._truth.image_vectors[image] @ vector) for image in images for vector in vectors]
                self._check_similarity(each["similarity"], expected, f"like {row}")

    def vision_search(self) -> None:
        number = self._text()
        query = (
            "select photos.id, name, json_extract(value, '$.similarity') as similarity"
            f" from json_each(vision_search('photos', :q, {K}))"
            " join photos on photos.id = json_extract(value, '$.rowid')"
        )
        body, began, ended = self._ask(sql_request(query, DATABASE, q=self._truth.texts[number]))
        if body is not None:
            found = [(each["id"], each["name"], each["similarity"]) for each in json.loads(body)]
            self._check_found(found, self._truth.text_vectors[number], began, ended)

    def table_page(self) -> None:
        body, began, ended = self._ask(
            Request(f"/{DATABASE}/photos.json?_shape=array&_col=name&_size=50&_sort_desc=id&_nocount=1")
        )
        if body is not None:
            for each in json.loads(body):
                self._named(each["id"], each["name"], began, ended)

    def picture(self) -> None:
        row = self._row()
        body, began, ended = self._ask(Request(f"/-/vision/picture/{DATABASE}/photos/image/{row}"), "404")
        if body is not None:
            there = [self._truth.images[image] for image in self._images(row, began, ended)]
            if body not in there:
                raise Wrong(f"another picture than that of row {row}")

    def thumbnail(self) -> None:
        row = self._row()
        body, _, _ = self._ask(Request(f"/-/vision/picture/{DATABASE}/photos/image/{row}?_size=96"), "404")
        if body is not None and Image.open(io.BytesIO(body)).size != (96, 72):
            raise Wrong("a thumbnail of another size")

    def classify(self) -> None:
        # Without labels of its own the model cannot: the answer is the same every time.
        self._ask(upload(CLASSIFY, self._truth.images[self._image()]), "400")

    # What is true of rows

    def _row(self) -> int:
        now = list(self._truth.history.now())
        return self._random.choice(now) if now else 0

    def _images(self, row: int, began: float, ended: float) -> list[int]:
        return [image for image in self._truth.history.images(row, began, ended) if image is not None]

    def _embedded(self, row: int, began: float, ended: float) -> list[int]:
        """Return the pictures whose embedding a row may have had: auto_embed follows after a while."""
        return self._images(row, began - LAG_S, ended)

    def _named(self, row: int, name: str, began: float, ended: float) -> int:
        """Return the number of the picture that a row's name says. Raises Wrong when it was not so then."""
        images = self._images(row, began, ended)
        number = int(name.rpartition(" ")[2])
        if number not in images:
            raise Wrong(f"row {row} was {images} then, found {name}")
        return number

    def _check_found(self, found: list[tuple[int, str, float]], query: np.ndarray, began: float, ended: float) -> None:
        """Look at what a search found: rows that are there, right similarities, in order, and none left out."""
        similarities = [similarity for _, _, similarity in found]
        if similarities != sorted(similarities, reverse=True):
            raise Wrong(f"not in order: {similarities}")
        for row, name, similarity in found:
            self._named(row, name, began, ended)
            expected = [float(self._truth.image_vectors[image] @ query) for image in self._embedded(row, began, ended)]
            self._check_similarity(similarity, expected, f"row {row}")
        least = similarities[-1] if len(similarities) >= K else -1.0
        rows = {row for row, _, _ in found}
        for row, image in self._truth.history.steady(began - LAG_S, ended).items():
            similarity = float(self._truth.image_vectors[image] @ query)
            if row not in rows and similarity > least + SIMILARITY:
                raise Wrong(f"row {row} ({similarity:.5f}) was left out, although {least:.5f} is there")

    @staticmethod
    def _check_count(found: int, expected: int) -> None:
        if found != expected:
            raise Wrong(f"{found} results for {expected} inputs")


# In the end


def in_step(server: Server, path: Path, truth: Truth, timeout_s: float) -> list[str]:
    """Wait until the table is in step, and say what is wrong with its embeddings."""
    ends = time.monotonic() + timeout_s
    while True:
        wrong = differences(path, truth)
        if not wrong or time.monotonic() > ends:
            return wrong
        time.sleep(1)


def differences(path: Path, truth: Truth) -> list[str]:
    """Say which rows have no embedding, or a wrong one, and which embeddings have no row."""
    connection = sqlite3.connect(path, timeout=30)
    found = dict(connection.execute("select id, embedding from _vision_photos"))
    connection.close()
    wrong = [f"row {row} is gone, its embedding is not" for row in found if row not in truth.history.now()]
    for row, image in truth.history.now().items():
        embedding = found.get(row)
        if embedding is None:
            wrong.append(f"row {row} has no embedding")
        elif float(np.frombuffer(embedding, "<f4") @ truth.image_vectors[image]) < COSINE:
            wrong.append(f"row {row} has the embedding of something else")
    return wrong


def run(options: argparse.Namespace, folder: Path) -> list[str]:
    """Run the load, print what came of it, and return what is wrong."""
    own: dict[str, Any] = {"default_model": options.model}
    if options.models:
        own["models_dir"] = str(options.models)
    vision = Vision(Config.from_mapping(own))
    truth = learn(vision)
    vision.close()
    path = folder / f"{DATABASE}.db"
    write_database(path, truth, options.model, options.rows)
    tally, stop = Tally(), threading.Event()
    changes: list[int] = []
    plugin = {**own, "preload": [options.model], "auto_embed": [f"{DATABASE}/photos"]}
    with serve(str(path), "--setting", "sql_time_limit_ms", "20000", plugin=plugin) as server:
        site = Site(server.port, options.model, patience_s=180)
        before = server.resident_mib()
        ends = time.monotonic() + options.seconds
        clients = [Client(site, truth, tally, options.seed * 1000 + number) for number in range(options.clients)]
        threads = [threading.Thread(target=client.run, args=(ends,)) for client in clients]
        writer = threading.Thread(
            target=lambda: changes.append(write(path, truth, options.rows, stop, options.seed)), daemon=True
        )
        for thread in (writer, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - ends + options.seconds
        stop.set()
        writer.join(60)
        left = in_step(server, path, truth, 120)
        memory = server.resident_mib(), server.resting_mib()
        jobs = server.get("/-/vision/jobs")
    print(f"{options.clients} clients for {took:.0f} s, {options.model}; {changes[0] if changes else 0} rows changed")
    print(f"statuses  {dict(sorted(tally.statuses.items()))}")
    for kind, count in sorted(tally.kinds.items()):
        print(f"  {kind:16}{count:8}   slowest {tally.slowest[kind]:6.2f} s")
    print(f"furthest  cosine {tally.cosine:.7f} of {COSINE}, similarity off by {tally.similarity:.6f} of {SIMILARITY}")
    print(f"memory    {before:.0f} MiB before, {memory[0]:.0f} after, {memory[1]:.0f} at rest")
    print(f"in step   {json.dumps(jobs['tables'])[:300]}")
    print(f"wrong     {len(tally.wrong)}")
    wrong = [f"{count} x {text}" for text, count in Counter(tally.wrong).most_common(20)]
    return wrong + left[:10] + ([] if changes else ["the writer did not end"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="clip")
    parser.add_argument("--models", type=Path, help="folder of models; by default the user's")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wrong = run(options, Path(folder))
    if wrong:
        sys.exit("\n".join(["WRONG", *wrong]))
    print("no answer was wrong")


if __name__ == "__main__":
    main()
