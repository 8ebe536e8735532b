"""What is deployed: fly.toml as flyctl reads it, metadata.json as Datasette and its plugins do, and the Dockerfile."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette

import datasette_vision
from datasette_vision.config.settings import Config, RateLimits
from datasette_vision.plugin.server.compatibility import IS_1_0
from tests import pictures, repositories
from tests.paths import ROOT
from tests.servers import Server, serve
from tests.test_imports import MODULES, folder, own_imports

if sys.version_info >= (3, 11):
    import tomllib
else:  # Python 3.10: read by the test of workflows on later ones
    tomllib = pytest.importorskip("tomli")

METADATA = json.loads((ROOT / "metadata.json").read_text("utf-8"))
FLY = tomllib.loads((ROOT / "fly.toml").read_text("utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")


# fly.toml. The names are those of the structs in flyctl's internal/appconfig (config.go, service.go): flyctl passes
# over a name that it does not know without a word, so a slip would go unnoticed until a machine never sleeps.

DURATION = re.compile(r"(\d+h)?(\d+m)?(\d+s)?")
FLY_SHAPE: dict[str, Any] = {
    "app": str,
    "primary_region": str,
    "kill_signal": {"SIGINT", "SIGTERM", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGSTOP"},
    "kill_timeout": DURATION,
    "build": {"dockerfile": str, "args": dict, "build-target": str},
    "env": dict,
    "mounts": [{"source": str, "destination": str, "initial_size": str}],
    "services": [
        {
            "protocol": {"tcp", "udp"},
            "internal_port": int,
            "auto_start_machines": bool,
            "auto_stop_machines": {"off", "stop", "suspend"},
            "min_machines_running": int,
            "ports": [{"port": int, "handlers": list, "force_https": bool}],
            "concurrency": {"type": {"requests", "connections"}, "soft_limit": int, "hard_limit": int},
            "tcp_checks": [{"interval": DURATION, "timeout": DURATION, "grace_period": DURATION}],
        }
    ],
    "restart": [{"policy": {"always", "never", "on-failure"}, "retries": int}],
    "vm": [
        {"size": re.compile(r"(shared|performance)-cpu-\d+x|performance-\d+x"), "memory": re.compile(r"\d+(mb|gb)")}
    ],
}


def check(value: Any, shape: Any, where: str) -> None:
    """Fail where a value is not of the shape."""
    if isinstance(shape, dict):
        assert isinstance(value, dict), where
        for key, inner in value.items():
            assert key in shape, f"{where}: flyctl knows no {key}"
            check(inner, shape[key], f"{where}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), where
        for number, inner in enumerate(value):
            check(inner, shape[0], f"{where}[{number}]")
    elif isinstance(shape, set):
        assert value in shape, where
    elif isinstance(shape, re.Pattern):
        assert isinstance(value, str), where
        assert value, where
        assert shape.fullmatch(value), where
    else:
        assert type(value) is shape, where


def test_fly_toml_is_what_flyctl_reads() -> None:
    check(FLY, FLY_SHAPE, "fly.toml")


@pytest.mark.parametrize(
    "wrong",
    [{"kill_timeout": 30}, {"servces": []}, {"services": [{"auto_stop_machines": False}]}, {"vm": [{"memory": "512"}]}],
)
def test_the_check_of_fly_toml_can_fail(wrong: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        check(wrong, FLY_SHAPE, "fly.toml")


def test_fly_starts_it_and_it_stops_itself() -> None:
    (service,) = FLY["services"]
    assert service["auto_start_machines"]
    assert service["auto_stop_machines"] == "off"
    assert service["min_machines_running"] == 0
    assert service["tcp_checks"]
    assert "http_checks" not in service
    assert FLY["restart"] == [{"policy": "on-failure", "retries": 10}]
    assert {tuple(port["handlers"]) for port in service["ports"]} == {("http",), ("tls", "http")}


def test_fly_waits_for_what_the_server_finishes() -> None:
    assert (
        int(FLY["kill_timeout"].removesuffix("s")) > Config.from_mapping(deployed("datasette-vision")).shutdown_seconds
    )
    assert FLY["kill_signal"] == "SIGTERM"


def test_fly_asks_where_the_image_listens() -> None:
    assert command()[-2:] == ["--port", str(FLY["services"][0]["internal_port"])]
    assert FLY["vm"] == [{"size": "shared-cpu-1x", "memory": "512mb"}]


# metadata.json


def deployed(plugin: str) -> dict[str, Any]:
    return dict(METADATA["plugins"][plugin])


def test_metadata_is_what_the_plugins_accept() -> None:
    import datasette_scale_to_zero

    config = Config.from_mapping(deployed("datasette-vision"))
    assert config.preload == (config.default_model,)
    assert config.max_image_mb < Config().max_image_mb
    assert config.image_memory_mb is None  # a share of the memory that there is
    assert config.max_queue < Config().max_queue
    # 16 MB hold an image of max_image_mb as base64.
    assert config.max_image_mb * 4 / 3 <= config.max_request_mb < Config().max_request_mb
    assert config.rate_limit == RateLimits(images=600, texts=3600, burst_seconds=30)
    assert config.trusted_proxies == "fly"
    named = {"config": METADATA} if IS_1_0 else {"metadata": METADATA}
    assert datasette_scale_to_zero.get_config(Datasette(**named))["duration"] == 600


def test_settings_are_those_of_datasette() -> None:
    from datasette.app import DEFAULT_SETTINGS

    settings = json.loads((ROOT / "docker/settings.json").read_text("utf-8"))
    assert set(settings) <= set(DEFAULT_SETTINGS)
    for name, value in settings.items():
        assert type(value) is type(DEFAULT_SETTINGS[name]), name


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with metadata.json as deployed, the bundled model in the place of the baked one."""
    plugins = json.loads(json.dumps(METADATA["plugins"]).replace('"clip"', '"tiny-emoji"'))
    with serve(tmp_path_factory.mktemp("deployed"), "--cors", config=plugins) as server:
        yield server


def test_robots_are_blocked(server: Server) -> None:
    assert server.get("/robots.txt").split() == b"User-agent: * Disallow: /".split()


def test_the_deployed_configuration_answers(server: Server) -> None:
    path = "/_memory.json?_shape=array&sql=select+length(vision_embed('purple+and+gold'))+as+x"
    assert json.loads(server.get(path, Origin="https://observablehq.com")) == [{"x": 1024}]


# Dockerfile


def instructions() -> list[str]:
    """The instructions of the Dockerfile, each on one line."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def command() -> list[str]:
    """The command of the image."""
    (line,) = [line for line in instructions() if line.startswith("CMD ")]
    return list(json.loads(line.removeprefix("CMD ")))


def copied() -> set[str]:
    """What the Dockerfile copies from the checkout."""
    found = set()
    for line in instructions():
        words = shlex.split(line)
        if words[0] == "COPY" and not words[1].startswith("--from"):
            found |= set(words[1:-1])
    return found


def test_the_builder_gets_the_folders_that_baking_needs_and_no_other() -> None:
    """They are copied by name, so that a change of any other bakes nothing again."""
    given = {
        path.partition("/")[2].removesuffix("__init__.py").removesuffix(".py")
        for line in instructions()
        if line.startswith("COPY datasette_vision/") and "/build/" in line
        for path in shlex.split(line)[1:-1]
        if not path.endswith(".zip")
    }
    needed: set[str] = set()
    script = ast.parse((ROOT / "docker/bake.py").read_text("utf-8"))
    waiting = {module for module in MODULES if folder(module) in ("bake", "install")}
    for node in ast.walk(script):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("datasette_vision."):
            waiting.add(node.module.removeprefix("datasette_vision."))
    while waiting:
        module = waiting.pop()
        if module not in needed:
            needed.add(module)
            # The package itself names what is public, and imports it only when it is asked for.
            waiting |= {imported for imported, _ in own_imports(module)} if module else set()
    assert given == {folder(module) for module in needed}


def test_every_file_that_the_dockerfile_copies_is_let_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in ignored
    let_through = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    for path in copied():
        # The package is where it is imported from: in CI not in the checkout, but installed from the wheel.
        within = Path(datasette_vision.__file__).parent.parent if path.startswith("datasette_vision") else ROOT
        assert (within / path).exists(), path
        assert path.split("/")[0] in let_through, path


def stages() -> dict[str, list[str]]:
    """The instructions of each stage, by its name; the last one is the image's."""
    found: dict[str, list[str]] = {}
    for line in instructions():
        if line.startswith("FROM "):
            name = line.partition(" AS ")[2] or "the image"
            found[name] = []
        if found:
            found[name].append(line)
    return found


def test_the_image_ends_as_somebody_who_may_do_nothing() -> None:
    assert list(stages())[-1] == "the image"
    assert stages()["the image"][0] == "FROM server"
    assert not [line for line in stages()["the image"] if line.startswith(("USER", "RUN"))]
    users = [line for line in stages()["server"] if line.startswith("USER")]
    assert users == ["USER 10001:10001"]


def test_process_1_of_the_image_can_be_ended_at_once() -> None:
    """A SIGTERM that comes before Python has a handler for it is lost by process 1, unless that is an init."""
    (line,) = [line for line in instructions() if line.startswith("ENTRYPOINT ")]
    assert json.loads(line.removeprefix("ENTRYPOINT ")) == ["dumb-init", "--single-child", "--"]
    assert line in stages()["server"]
    installed = next(line for line in stages()["packages"] if "install" in line)
    assert installed.split()[-1] == "dumb-init"
    assert re.search(r"^dumb-init==", (ROOT / "docker/constraints.txt").read_text("utf-8"), re.MULTILINE)


@pytest.mark.skipif(not shutil.which("dumb-init") or not shutil.which("unshare"), reason="needs dumb-init and unshare")
def test_a_sigterm_before_there_are_handlers(tmp_path: Path) -> None:
    """In a namespace of processes as a container has it. Where that may not be made, there is nothing to see."""
    ready = tmp_path / "ready"
    program = f"open({str(ready)!r}, 'w').close(); import time; time.sleep(60)"  # no handler for SIGTERM
    alone = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("no namespace of processes can be made here")
    with subprocess.Popen([*alone, "dumb-init", "--single-child", "--", sys.executable, "-c", program]) as process:
        while not ready.exists():
            assert process.poll() is None
            time.sleep(0.05)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM


def test_what_changes_least_comes_first() -> None:
    """Packages, then models, then code; and models do not come from a stage that has the code in it."""
    server = " ".join(stages()["server"])
    assert server.index("--from=slim") < server.index("--from=baker") < server.index("--from=code")
    assert not [line for line in stages()["baker"] if line.startswith("COPY datasette_vision ")]
    assert "datasette vision verify" in server[server.index("--from=code") :]


def fill(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Run docker/fill.py as the builder does, the bundled model being the default one."""
    metadata = target.parent / "metadata.json"
    metadata.write_text(json.dumps({"plugins": {"datasette-vision": {"default_model": "tiny-emoji"}}}))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, str(ROOT / "docker/fill.py"), str(source), str(target), str(metadata)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_databases_and_pictures_are_baked_in(tmp_path: Path) -> None:
    """A database as it is, counted and without a log beside it; a folder of pictures as one that can be searched."""
    source, app = tmp_path / "source", tmp_path / "app"
    (source / "album").mkdir(parents=True)
    for number in range(3):
        (source / f"album/{number}.jpg").write_bytes(pictures.jpeg(seed=number))
    (source / "album/broken.jpg").write_bytes(pictures.jpeg()[:200])
    connection = sqlite3.connect(source / "plain.db")
    connection.execute("pragma journal_mode = wal")
    connection.execute("create table t (x)")
    connection.execute("insert into t values (1)")
    connection.commit()
    connection.close()
    done = fill(source, app)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "broken.jpg" in done.stderr
    databases = {path.name for path in app.iterdir() if path.is_file()}
    assert databases == {"album.db", "plain.db", "inspect-data.json"}
    assert [path.name for path in app.iterdir() if path.is_dir()] == ["album.db-vision"]  # the index
    counted = json.loads((app / "inspect-data.json").read_text())
    assert {found["file"] for found in counted.values()} == {"album.db", "plain.db"}
    assert counted["plain"]["tables"]["t"]["count"] == 1
    assert counted["album"]["tables"]["photos"]["count"] == 4
    sql = "select count(*) as n from json_each(vision_search('photos', 'a picture'))"
    path = "/album.json?" + urllib.parse.urlencode({"sql": sql, "_shape": "array"})
    if IS_1_0:
        path = path.replace("/album.json", "/album/-/query.json")
    for asked, expected in ((path, [{"n": 3}]), ("/-/databases.json", None)):
        served = [sys.executable, "-m", "datasette", str(app), "--get", asked]
        answer = subprocess.run(served, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        found = json.loads(answer.stdout)
        if expected is None:
            databases = found["databases"] if IS_1_0 else found
            assert {(each["name"], each["is_mutable"]) for each in databases} == {("album", False), ("plain", False)}
        else:
            assert found == expected


def test_what_is_no_database_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/notes.txt").write_text("x")
    done = fill(tmp_path / "source", tmp_path / "app")
    assert done.returncode == 1
    assert done.stderr.startswith("notes.txt: expected a database (.db, .sqlite, .sqlite3) or a folder of pictures")


def bake(target: Path, *wishes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "docker/bake.py"), str(target), "auto", *wishes]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_baked_model_is_proved(tmp_path: Path) -> None:
    done = bake(tmp_path / "models", f"mine={repositories.xenova(tmp_path / 'weights')}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "models/mine/manifest.json").exists()
    assert re.search(r"^mine: .*files", done.stdout, re.MULTILINE), done.stdout


def test_a_model_that_cannot_be_baked_ends_the_build(tmp_path: Path) -> None:
    weights = repositories.xenova(tmp_path / "weights")
    (weights / "onnx/text_model.onnx").write_bytes(b"broken")
    done = bake(tmp_path / "models", f"mine={weights}")
    assert done.returncode != 0
    assert "Error: mine=" in done.stdout
    assert not (tmp_path / "models/mine").exists()


def test_everything_that_is_installed_is_pinned() -> None:
    pinned = {
        normal(line.partition("==")[0])
        for line in (ROOT / "docker/constraints.txt").read_text("utf-8").splitlines()
        if not line.startswith("#")
    }
    sys.path.insert(0, str(ROOT / "docker"))
    try:
        from packages import stated  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    source = (ROOT / "setup.py").read_text("utf-8")
    wanted = {normal(re.split(r"[\[<>=!~; ]", line)[0]) for line in stated(source, ["deploy", "bake"])}
    assert {"datasette", "onnxruntime", "datasette-scale-to-zero", "torch"} <= wanted
    assert wanted - {"torch"} <= pinned  # torch is chosen by TORCH_SPEC


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# Workflows

WORKFLOWS = [*sorted((ROOT / ".github/workflows").glob("*.yml")), ROOT / ".ci/run"]
# A relative path: no URL, no option, no variable, nothing of an absolute path.
NAMED_PATH = re.compile(r"(?<![\w.:/$}@~-])(?:\./)?(\.?\w[\w.-]*(?:/[\w.*-]+)+)(?![\w/@])")
ACTION = re.compile(r"uses: (?!\./)")


def named_paths(text: str) -> set[str]:
    """The paths of this repository that a workflow or a script names: the folder they begin with is here."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#") and not ACTION.search(line)]
    found = {match[1] for line in lines for match in NAMED_PATH.finditer(line)}
    return {path for path in found if (ROOT / path.split("/")[0]).is_dir()}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_what_a_workflow_names_exists(workflow: Path) -> None:
    for path in named_paths(workflow.read_text("utf-8")):
        assert list(ROOT.glob(path)), f"{workflow.name} names {path}"


def test_paths_are_found_in_workflows() -> None:
    found = {path for workflow in WORKFLOWS for path in named_paths(workflow.read_text("utf-8"))}
    assert {"docker/check.py", "docker/**", "tests/bake/test_bake.py", ".github/workflows/test.yml"} <= found
    assert named_paths("run: docker/check.sh run x:y") == {"docker/check.sh"}
    assert named_paths("- uses: docker/login-action@v3\nimages: ghcr.io/docker/x\n# docker/gone.py") == set()
    assert named_paths('python "$work/tests/x.py" /tests/y.py https://tests/z.py') == set()
