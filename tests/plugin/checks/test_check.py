"""`datasette vision check`: each item of the checklist, what it makes of a deployment, and the command."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from datasette.cli import cli

from datasette_vision.config.settings import Config
from datasette_vision.plugin.checks import checklist
from datasette_vision.plugin.checks.checklist import ADVICE, ITEMS, OK, PROBLEM, ItemResult
from datasette_vision.plugin.checks.deployment import Access, DatabaseFile, Deployment, read_deployment
from datasette_vision.plugin.server.compatibility import IS_1_0
from tests import fakes
from tests.paths import ROOT

SETTINGS = {
    "sql_time_limit_ms": 1000,
    "num_sql_threads": 3,
    "max_returned_rows": 1000,
    "max_csv_mb": 100,
    "allow_csv_stream": True,
    "allow_facet": True,
    "suggest_facets": True,
    "facet_time_limit_ms": 200,
    "trace_debug": False,
    "template_debug": False,
}
OPEN = Access(instance=True, infer=True, visible=["d/photos"], sql=["d", "_memory"])
HIDING = dataclasses.replace(OPEN, hidden=["d/hidden"], sql=[])
CLOSED = Access(hidden=["d/photos"])
GIGABYTE = 1_000_000_000
LIMITED = Config.from_mapping({"rate_limit": 600})
SLEEPS = {"plugins": frozenset({"datasette-scale-to-zero"})}


def sleeping(duration: object, **changes: Any) -> dict[str, Any]:
    return {**SLEEPS, "plugin_config": {"datasette-scale-to-zero": {"duration": duration}}, **changes}


def trusting(proxies: object) -> Config:
    return Config.from_mapping({"trusted_proxies": proxies})


def settings(**changes: Any) -> dict[str, Any]:
    return {"settings": SETTINGS | changes}


def file(*, writable: bool, mutable: bool) -> dict[str, Any]:
    return {"files": [DatabaseFile(Path("d.db"), writable, mutable)]}


# (item, what is changed of an open deployment, level, a part of what is found)
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("configuration", {}, OK, "can be read"),
    ("configuration", {"config_error": "cache_mb: expected a number"}, PROBLEM, "cache_mb"),
    ("databases", {}, OK, "0 database files can be read"),
    ("databases", file(writable=True, mutable=True), OK, "1 database file can be read"),
    ("databases", {"unreadable": [("d", "file is not a database")]}, PROBLEM, "d cannot be read: file is not"),
    ("hidden-by-sql", {}, OK, "nothing is hidden"),
    ("hidden-by-sql", {"access": HIDING}, OK, "nobody without an actor may run SQL where"),
    ("hidden-by-sql", {"access": dataclasses.replace(HIDING, sql=["other"])}, OK, "d/hidden"),
    ("hidden-by-sql", {"access": dataclasses.replace(HIDING, sql=["d"])}, PROBLEM, "d/hidden"),
    ("crossdb", {}, OK, "not joined"),
    ("crossdb", {"serve": {"crossdb": True}}, OK, "nothing is hidden"),
    ("crossdb", {"serve": {"crossdb": True}, "access": HIDING}, OK, "nothing is hidden from those who may"),
    (
        "crossdb",
        {"serve": {"crossdb": True}, "access": dataclasses.replace(HIDING, sql=["_memory"])},
        PROBLEM,
        "d/hidden",
    ),
    ("download", {}, OK, "no database can be downloaded"),
    ("download", {"access": dataclasses.replace(OPEN, downloads=["d"])}, OK, "nothing is hidden"),
    ("download", {"access": dataclasses.replace(HIDING, downloads=["other"])}, OK, "may download other"),
    ("download", {"access": dataclasses.replace(HIDING, downloads=["d"])}, PROBLEM, "d/hidden"),
    ("default-deny", {}, OK, "everything is public"),
    ("default-deny", {"access": HIDING, "is_1_0": True}, ADVICE, "added later is public"),
    ("default-deny", {"access": HIDING, "is_1_0": False}, ADVICE, "0.65 has no other way"),
    ("default-deny", {"access": HIDING, "serve": {"default_deny": True}}, OK, "is denied"),
    ("default-deny", {"access": CLOSED}, OK, "is denied"),
    ("originals", {}, OK, "no table"),
    ("originals", {"originals": ["d/photos"]}, ADVICE, "d/photos"),
    ("originals", {"originals": ["d/hidden"], "access": HIDING}, OK, "no table"),
    ("places", {}, OK, "no table"),
    ("places", {"located": ["d/photos"]}, ADVICE, "d/photos"),
    ("places", {"located": ["d/hidden"], "access": HIDING}, OK, "no table"),
    ("who-computes", {}, OK, "anyone may run models"),
    ("who-computes", {"access": CLOSED}, OK, "nobody without an actor"),
    ("rate-limit", {}, PROBLEM, "one client"),
    ("rate-limit", {"config": LIMITED}, OK, "600 inputs a minute"),
    (
        "rate-limit",
        {"config": Config.from_mapping({"rate_limit": {"images": 600, "texts": 3600}})},
        OK,
        "600 images and 3,600 texts a minute",
    ),
    ("rate-limit", {"config": Config.from_mapping({"rate_limit": {"images": 6}})}, PROBLEM, "any number of texts"),
    ("rate-limit", {"config": Config.from_mapping({"rate_limit": {"texts": 6}})}, PROBLEM, "any number of images"),
    ("rate-limit", {"access": CLOSED}, OK, "nobody without an actor"),
    ("proxies", {}, OK, "no header changes it"),
    ("proxies", {"config": LIMITED}, ADVICE, "one rate"),
    ("proxies", {"config": LIMITED, "access": CLOSED}, OK, "no header changes it"),
    ("proxies", {"config": LIMITED, "serve": {"host": "0.0.0.0"}}, OK, "no header changes it"),
    ("proxies", {"config": LIMITED, "serve": {"host": "0.0.0.0", "uds": "/run/x"}}, ADVICE, "one rate"),
    ("proxies", {"config": LIMITED, "serve": {"host": "::"}, "environ": {"FLY_APP_NAME": "x"}}, ADVICE, "one rate"),
    ("proxies", {"config": trusting("fly")}, OK, "no header counts but on Fly.io"),
    ("proxies", {"config": trusting("fly"), "environ": {"FLY_APP_NAME": "x"}}, OK, "Fly.io says"),
    ("proxies", {"config": trusting(["10.0.0.0/8", "0.0.0.0/0"])}, PROBLEM, "trusts every address"),
    ("proxies", {"config": trusting(["::/0"])}, PROBLEM, "trusts every address"),
    ("proxies", {"config": trusting(["10.0.0.0/8"])}, OK, "trusted proxies"),
    ("proxies", {"config": trusting(1)}, OK, "trusted proxies"),
    ("proxies", {"config": trusting(1), "serve": {"host": "0.0.0.0"}}, ADVICE, "without the proxies"),
    ("metrics", {}, OK, "nobody"),
    ("metrics", {"access": dataclasses.replace(OPEN, metrics=True)}, ADVICE, "anyone may read the metrics"),
    ("other-models", {}, OK, "only the models"),
    ("other-models", {"weights": {"tiny-emoji": 1, "clip": 2}}, OK, "by name: clip"),
    ("other-models", {"weights": dict.fromkeys(["tiny-emoji", *"abcde"], 1)}, OK, "by name: a, b, c, d, e"),
    ("other-models", {"weights": dict.fromkeys(["tiny-emoji", *"abcdef"], 1)}, OK, "a, b, c, d, e and 1 more"),
    ("other-models", {"weights": {"tiny-emoji": 1, "clip": GIGABYTE}}, PROBLEM, "1,130 MB of the 1,000 MB"),
    ("other-models", {"weights": {"tiny-emoji": 1, "clip": GIGABYTE}, "access": CLOSED}, OK, "nobody may"),
    ("memory", {}, OK, "678 MB are left"),
    ("memory", {"memory_bytes": None}, ADVICE, "--memory-mb"),
    ("memory", {"memory_bytes": 322_000_000}, OK, "0 MB are left"),
    ("memory", {"memory_bytes": 321_999_999}, PROBLEM, "322 MB together"),
    ("memory", {"weights": {"tiny-emoji": GIGABYTE}}, PROBLEM, "the models named 1,000 MB"),
    ("cache", {}, OK, "64 MB at most"),
    ("cache", {"memory_bytes": 256_000_000}, OK, "64 MB"),
    ("cache", {"memory_bytes": 255_999_999}, ADVICE, "64 MB of 256 MB"),
    ("sql-time", {}, OK, "1 s at most"),
    ("sql-time", settings(sql_time_limit_ms=5001), ADVICE, "5.001 s"),
    ("sql-time", settings(sql_time_limit_ms=10_001), PROBLEM, "10.001 s"),
    ("sql-time", settings(sql_time_limit_ms=0), PROBLEM, "forever"),
    ("sql-time", {**settings(sql_time_limit_ms=0), "access": CLOSED}, OK, "nobody"),
    ("sql-threads", {}, OK, "3 threads"),
    ("sql-threads", settings(num_sql_threads=1), ADVICE, "one SQL thread"),
    ("sql-threads", settings(num_sql_threads=0), PROBLEM, "no other request is answered"),
    ("rows", {}, OK, "1,000 rows"),
    ("rows", settings(max_returned_rows=10_000), OK, "10,000 rows"),
    ("rows", settings(max_returned_rows=10_001), ADVICE, "10,001 rows"),
    ("rows", settings(max_csv_mb=0), ADVICE, "any size"),
    ("rows", settings(max_csv_mb=0, allow_csv_stream=False), OK, "1,000 rows"),
    ("facets", {}, OK, "200 ms"),
    ("facets", {"embedded": ["d/photos"]}, ADVICE, "tries which"),
    ("facets", {"embedded": ["d/photos"], **settings(suggest_facets=False)}, OK, "200 ms"),
    ("facets", settings(facet_time_limit_ms=1001), ADVICE, "1.001 s"),
    ("facets", settings(facet_time_limit_ms=1001, allow_facet=False), OK, "only the facets that are configured"),
    ("debug", {}, OK, "no page"),
    ("debug", settings(trace_debug=True), PROBLEM, "trace_debug shows"),
    ("debug", settings(template_debug=True), OK, "no page"),
    ("debug", {**settings(template_debug=True), "access": HIDING}, PROBLEM, "template_debug shows"),
    ("secret", {}, ADVICE, "no secret"),
    ("secret", {"serve": {"secret": "x" * 15}}, PROBLEM, "15 characters"),
    ("secret", {"serve": {"secret": "x" * 16}}, OK, "is set"),
    ("cors", {}, OK, "may not read"),
    ("cors", {"serve": {"cors": True}}, OK, "no cookie"),
    ("cors", {"serve": {"cors": True}, "access": HIDING}, ADVICE, "a token"),
    ("robots", {}, ADVICE, "crawlers follow"),
    ("robots", {"plugins": frozenset({"datasette-block-robots"})}, OK, "asked to stay away"),
    ("robots", {"access": CLOSED}, OK, "see nothing"),
    ("user", {}, OK, "not run as root"),
    ("user", {"superuser": True}, ADVICE, "as root"),
    ("models-dir", {}, OK, "no folder"),
    ("models-dir", {"models_dir": ROOT, "models_dir_writable": True}, ADVICE, "may write to"),
    ("models-dir", {"models_dir": ROOT}, OK, "may only read"),
    ("files", {}, OK, "no database can be written to"),
    ("files", file(writable=True, mutable=True), ADVICE, "d.db"),
    ("files", file(writable=False, mutable=True), OK, "no database can be written to"),
    ("files", file(writable=True, mutable=False), OK, "no database can be written to"),
    (
        "files",
        {**file(writable=True, mutable=True), "config": Config.from_mapping({"auto_embed": True})},
        OK,
        "auto_embed writes",
    ),
    ("auto-embed", {}, OK, "nothing is embedded automatically"),
    (
        "auto-embed",
        {**file(writable=True, mutable=True), "config": Config.from_mapping({"auto_embed": True})},
        OK,
        "people who may add rows",
    ),
    (
        "auto-embed",
        {**file(writable=True, mutable=False), "config": Config.from_mapping({"auto_embed": True})},
        ADVICE,
        "cannot be written to: d.db",
    ),
    ("shutdown", {}, OK, "9 s to finish"),
    ("shutdown", {"kill_after_s": 9.0}, PROBLEM, "shutdown_seconds is 9, and the platform kills the process 9 s"),
    ("shutdown", {"kill_after_s": 9.1}, OK, "waits 9.1 s"),
    ("shutdown", {"environ": {"K_SERVICE": "x"}}, OK, "waits 10 s"),
    (
        "shutdown",
        {"environ": {"K_SERVICE": "x"}, "config": Config.from_mapping({"shutdown_seconds": 10})},
        PROBLEM,
        "kills the process 10 s",
    ),
    ("unload", {}, OK, "stay in memory"),
    ("unload", {"config": Config.from_mapping({"unload_after": 600})}, OK, "600 s after its last use"),
    (
        "unload",
        sleeping("10m", config=Config.from_mapping({"unload_after": 600})),
        ADVICE,
        "after 600 s without requests",
    ),
    ("unload", sleeping("10m", config=Config.from_mapping({"unload_after": 599})), OK, "599 s"),
    ("sleep", {}, OK, "not installed"),
    ("sleep", SLEEPS, OK, "not configured"),
    ("sleep", sleeping("10m"), OK, "600 s"),
    ("sleep", sleeping("2h"), OK, "7200 s"),
    ("sleep", sleeping("59s"), ADVICE, "59 s"),
    ("sleep", sleeping("ten"), PROBLEM, "'ten'"),
    ("sleep", sleeping(600), PROBLEM, "'600'"),
    ("sleep", sleeping("10m", environ={"K_SERVICE": "x"}), PROBLEM, "does not expect"),
    ("sleep", sleeping("10m", environ={"INVOCATION_ID": "x"}), PROBLEM, "does not expect"),
]


def deployment(**changes: Any) -> Deployment:
    """An open instance on a machine with a gigabyte."""
    given: dict[str, Any] = {"serve": {}, "settings": SETTINGS, "access": OPEN, "memory_bytes": GIGABYTE}
    return Deployment(**(given | changes))


@pytest.mark.parametrize(("name", "changes", "level", "found"), CASES)
def test_an_item(name: str, changes: dict[str, Any], level: str, found: str) -> None:
    (item,) = [item for item in ITEMS if item.name == name]
    line = ItemResult(item, *item.check(deployment(**changes)))
    assert line.level == level, line.found
    assert found in line.found


def test_every_item_has_its_cases() -> None:
    assert {case[0] for case in CASES} == {item.name for item in ITEMS}
    assert len({item.name for item in ITEMS}) == len(ITEMS)
    assert {OK, ADVICE, PROBLEM} == {case[2] for case in CASES}


def test_of_a_configuration_that_cannot_be_used_nothing_else_is_said() -> None:
    lines = list(checklist.evaluate(deployment(config_error="a mistake")))
    assert [(line.item.name, line.level) for line in lines] == [("configuration", PROBLEM)]


# With Datasette


def vision_check(*arguments: object, code: int | None = None) -> Result:
    result = CliRunner().invoke(cli, ["vision", "check", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    if code is not None:
        assert result.exit_code == code, result.output
    return result


def levels(*arguments: object) -> dict[str, str]:
    return {line["name"]: line["level"] for line in json.loads(vision_check("--json", *arguments).stdout)}


def found(*arguments: object) -> dict[str, str]:
    return {line["name"]: line["found"] for line in json.loads(vision_check("--json", *arguments).stdout)}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "pub.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "create table shown (id integer primary key); create table hidden (id integer primary key);"
            "create table _vision_hidden (id integer primary key, source_column text not null, model text not null,"
            " content_hash text not null, embedding blob, error text, embedded_at text not null);"
        )
    return path


def write(folder: Path, config: dict[str, Any]) -> list[str]:
    """Write a configuration, and return the arguments that name it."""
    path = folder / "configuration.json"
    path.write_text(json.dumps(config))
    return ["--config" if IS_1_0 else "--metadata", str(path)]


HIDDEN = {"databases": {"pub": {"tables": {"hidden": {"allow": {"id": "alice"}}}}}}


def test_a_hidden_table_that_sql_reads(database: Path, tmp_path: Path) -> None:
    arguments = [database, *write(tmp_path, HIDDEN)]
    assert found(*arguments)["hidden-by-sql"] == (
        "anyone may run SQL on the database of pub/hidden, and so read what is hidden"
    )
    assert levels(*arguments)["default-deny"] == ADVICE
    assert levels(*arguments, "--setting", "default_allow_sql", "off")["hidden-by-sql"] == OK
    closed = {"databases": {"pub": {**HIDDEN["databases"]["pub"], "allow_sql": {"id": "*"}}}}
    assert levels(database, *write(tmp_path, closed))["hidden-by-sql"] == OK
    assert levels(database)["hidden-by-sql"] == OK


@pytest.mark.skipif(not IS_1_0, reason="Datasette 1.0 has permissions: and --default-deny")
def test_the_other_ways_of_1_0(database: Path, tmp_path: Path) -> None:
    closed = {**HIDDEN, "permissions": {"execute-sql": {"id": "root"}}}
    assert levels(database, *write(tmp_path, closed), "--setting", "default_allow_sql", "off")["hidden-by-sql"] == OK
    assert levels(database, "--default-deny")["default-deny"] == OK
    assert found(database, "--default-deny")["who-computes"] == "nobody without an actor may run models"


def test_crossdb_and_download(database: Path, tmp_path: Path) -> None:
    closed = {"databases": {"pub": {**HIDDEN["databases"]["pub"], "allow_sql": False}}}
    arguments = write(tmp_path, closed)
    assert levels(database, *arguments, "--memory", "--crossdb")["crossdb"] == PROBLEM
    assert levels(database, *arguments, "--memory")["crossdb"] == OK
    assert levels("-i", database, *arguments)["download"] == PROBLEM
    assert levels("-i", database, *arguments, "--setting", "allow_download", "off")["download"] == OK
    assert levels(database, *arguments)["download"] == OK


def test_photos_of_load(tmp_path: Path) -> None:
    path = tmp_path / "photos.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "create table _visionloads (name text primary key, base not null, pictures text not null);"
            "insert into _visionloads values ('photos', '/x', 'originals'), ('gone', '/y', 'originals');"
            "create table photos (id integer primary key, latitude real); insert into photos values (1, 52.5)"
        )
    result = found(path)
    assert result["originals"].startswith("photos/photos holds files")
    assert result["places"] == "anyone may read in photos/photos where photos were taken"
    assert levels(path, *write(tmp_path, {"databases": {"photos": {"allow": False}}}))["places"] == OK


def test_a_closed_instance(database: Path, tmp_path: Path) -> None:
    result = found(database, *write(tmp_path, {"allow": {"id": "alice"}}))
    assert result["who-computes"] == "nobody without an actor may run models"
    assert result["default-deny"] == "what is not allowed is denied"
    assert result["sql-time"] == "nobody without an actor may run SQL"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"cash_mb": 1}, 'plugins.datasette-vision: unknown key "cash_mb"; did you mean cache_mb?'),
        ({"default_model": "none"}, "installed are: tiny-emoji"),
    ],
)
def test_a_mistake_in_the_configuration(tmp_path: Path, config: dict[str, Any], expected: str) -> None:
    result = vision_check("--memory", *write(tmp_path, {"plugins": {"datasette-vision": config}}), code=1)
    assert "problem  configuration" in result.stdout
    assert expected in " ".join(result.stdout.split())


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "garbage.db"
    path.write_bytes(b"no database" * 1000)
    result = vision_check(path, code=1)
    assert "garbage cannot be read: file is not a database" in " ".join(result.stdout.split())


def test_models_and_memory(tmp_path: Path, database: Path) -> None:
    fakes.make_dual_encoder(tmp_path / "models", "other")
    arguments = [
        database,
        *write(tmp_path, {"plugins": {"datasette-vision": {"models_dir": str(tmp_path / "models")}}}),
    ]
    assert found(*arguments)["other-models"] == "anyone may load these too, by name: other"
    assert levels(*arguments)["models-dir"] == ADVICE
    assert levels("--memory-mb", "300", *arguments)["memory"] == PROBLEM
    assert levels("--memory-mb", "500", *arguments)["memory"] == OK
    assert levels("--kill-after", "5", *arguments)["shutdown"] == PROBLEM


def test_what_it_prints_and_how_it_ends(database: Path, tmp_path: Path) -> None:
    result = vision_check(database, code=1)
    assert "problem  rate-limit      one client may keep all cores busy" in result.stdout
    assert "→ `rate_limit`" in result.stdout
    printed = result.stdout.replace(str(tmp_path), "/srv")  # its length differs from run to run
    assert all(len(line) <= 100 for line in printed.splitlines())
    limited = write(tmp_path, {"plugins": {"datasette-vision": {"rate_limit": 600}}})
    result = vision_check("serve", database, *limited, "--cors", "--memory-mb", "1000", code=0)
    assert "\n0 problems, " in result.stdout
    assert vision_check("serve", "none.db", code=1).output == (
        "Error: Invalid value for '[FILES]...': Path 'none.db' does not exist.\n"
    )
    assert "--no-such-option" in vision_check("--no-such-option", code=2).output


def test_nothing_is_loaded_and_nothing_written(database: Path, tmp_path: Path) -> None:
    config = {"plugins": {"datasette-vision": {"preload": ["tiny-emoji"], "rate_limit": 1}}}
    arguments = write(tmp_path, config)
    before = {entry.name: entry.stat().st_mtime_ns for entry in tmp_path.iterdir()}
    assert read_deployment([str(database), *arguments]).config.preload == ("tiny-emoji",)
    assert {entry.name: entry.stat().st_mtime_ns for entry in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("user", "is_root"), [(0, True), (1, False), (1000, False)])
def test_root_is_user_0(user: int, is_root: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user, raising=False)
    assert read_deployment(["--memory"]).superuser == is_root


def test_the_configuration_that_we_ship(tmp_path: Path) -> None:
    """With a model in the place of clip: on the machine of fly.toml, nothing is a problem."""
    config = json.loads((ROOT / "metadata.json").read_text("utf-8"))
    config["plugins"]["datasette-vision"] |= {"default_model": "tiny-emoji", "preload": ["tiny-emoji"]}
    (tmp_path / "metadata.json").write_text(json.dumps(config))
    (tmp_path / "settings.json").write_text((ROOT / "docker/settings.json").read_text("utf-8"))
    result = levels(tmp_path, "--memory", "--cors", "--host", "0.0.0.0", "--memory-mb", "512", "--kill-after", "30")
    assert PROBLEM not in result.values()
