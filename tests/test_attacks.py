"""Attacks of the one table, those that are cheap, against a real server: it answers as it should, and lives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from datasette_vision.engine.vision import Vision
from tests import attacks
from tests.attacks import ATTACKS, BY_NAME, Answer, Attack, Attacker, Site, statuses
from tests.servers import Server, serve

CHEAP = ("paths", "methods", "hostile_labels")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, vision: Vision) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("attacked")
    database = folder / f"{attacks.DATABASE}.db"
    attacks.write_database(
        database, "tiny-emoji", vision.services.dual_encoder("tiny-emoji").manifest.dimensions, rows=5
    )
    with serve(folder, str(database), config={"datasette-vision": {"max_labels": 50}}) as server:
        yield server


@pytest.fixture
def site(server: Server) -> Site:
    return Site(int(server.address.rpartition(":")[2]), "tiny-emoji", max_labels=50, seconds=1)


def attacked(attack: Attack, site: Site) -> list[Answer]:
    attacker = Attacker(site)
    attack.run(attacker, attack.prepare(site, 0))
    return attacker.answers


@pytest.mark.parametrize("name", CHEAP)
def test_a_server_answers_an_attack_and_lives(name: str, server: Server, site: Site) -> None:
    answers = attacked(BY_NAME[name], site)
    assert answers
    assert BY_NAME[name].wrong(answers) is None
    assert set(statuses(answers)) <= {"200", "204", "302", "304", "400", "403", "404", "405", "413", "415"}
    assert server.process.poll() is None
    good = Attacker(site).send(attacks.as_json(attacks.EMBED, {"text": "purple heart"}))
    assert (good.status, b'"embedding"' in good.body) == ("200", True)


def test_every_attack_has_a_name_of_its_own_and_something_to_do() -> None:
    assert len(BY_NAME) == len(ATTACKS)
    for attack in ATTACKS:
        assert attack.meaning
        assert (attack.requests is None) != (attack.script is None), attack.name


def test_an_attack_that_gets_a_fault_of_the_server_says_so() -> None:
    wrong = BY_NAME["paths"].wrong([Answer("fine", "404", 0.1), Answer("odd", "500", 0.1, b"Traceback")])
    assert wrong is not None
    assert wrong.startswith("odd: 500")


def test_what_is_hidden_must_not_be_shown() -> None:
    attack = BY_NAME["hidden"]
    assert attack.wrong([Answer("a", "403", 0.1), Answer("b", "404", 0.1)]) is None
    assert "shows what is hidden" in str(attack.wrong([Answer("a", "200", 0.1)]))


def test_the_large_pictures_are_small_files() -> None:
    assert len(attacks.solid_webp(4000, 4000)) == 34
    assert len(attacks.float_tiff()) < 100_000


def test_a_server_that_is_not_there_is_told_from_one_that_refuses() -> None:
    answer = Attacker(Site(9, "tiny-emoji", patience_s=5)).send(attacks.Request("/"))
    assert answer.status == attacks.REFUSED
