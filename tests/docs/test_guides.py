"""docs/deploy.md: every command that can run here is run; the others are checked against the files that they use."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from datasette_vision.config.settings import Config
from datasette_vision.plugin.server.compatibility import IS_1_0
from tests import repositories
from tests.hubserver import Hub, serve
from tests.test_deploy import FLY_SHAPE, ROOT, check, tomllib

GUIDE = (ROOT / "docs/deploy.md").read_text("utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
# What a guide may call that is not here, or must not be called by a test; each has a check of its own below.
ELSEWHERE = {"docker", "flyctl", "gcloud", "sudo"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every command of the guide, each on one line."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def called(name: str) -> list[list[str]]:
    return [shlex.split(line) for line in commands() if line.split()[0] == name]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with what the guide takes for granted: a hub, and this checkout."""
    repositories.xenova(tmp_path / "served")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    with serve(Hub({"Xenova/clip-vit-base-patch32": tmp_path / "served"})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield work


def run(line: str, work: Path) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line], cwd=work, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def test_pip_and_its_commands(workplace: Path) -> None:
    """Run in their order, in an environment that is already what pip would make of it."""
    ran = []
    for line in commands():
        words = shlex.split(line)
        if words[0] in ELSEWHERE or "docker/" in line:
            continue
        if words[:3] == ["python3", "-m", "venv"]:
            programs = workplace / words[3] / "bin"
            programs.mkdir(parents=True)
            for name in ("python3", "datasette"):
                (programs / name).write_text(
                    f'#!/bin/sh\nexec {sys.executable} {"-m datasette" if name == "datasette" else ""} "$@"\n'
                )
                (programs / name).chmod(0o755)
        elif words[0].endswith("/pip"):
            assert words[1] == "install"
            extra = re.fullmatch(r"datasette-vision\[(\w+)\]", words[2])
            assert extra, line
            assert f'"{extra[1]}": [' in (ROOT / "setup.py").read_text("utf-8")
        else:
            run(line, workplace)
            ran.append(line)
    assert any("vision install clip" in line for line in ran)
    assert any("vision verify" in line for line in ran)
    assert (workplace / "models/clip/manifest.json").exists()


def served(words: list[str], work: Path) -> None:
    """Run the `datasette serve` of a container's command here, up to its first answer."""
    source = work / "photos.db"
    sqlite3.connect(source).execute("create table if not exists t (x)").connection.close()
    metadata = json.loads((ROOT / "metadata.json").read_text("utf-8"))
    metadata["plugins"]["datasette-vision"] |= {"default_model": "tiny-emoji", "preload": []}
    (work / "metadata.json").write_text(json.dumps(metadata))
    words = [word.replace("/data/", f"{work}/").replace("/app/", f"{work}/") for word in words]
    if IS_1_0:
        words = ["--config" if word == "--metadata" else word for word in words]
    done = subprocess.run(
        [sys.executable, "-m", *words, "--get", "/photos.json"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"t"' in done.stdout


def test_docker(tmp_path: Path) -> None:
    for words in called("docker"):
        for position, word in enumerate(words):
            if word == "--build-arg":
                assert f"\nARG {words[position + 1].partition('=')[0]}" in DOCKERFILE, words
            if word == "-p":
                assert words[position + 1].endswith(":8080")
        assert words[1] in {"build", "run"}
        if "serve" in words:
            served(words[words.index("serve") - 1 :], tmp_path)
    assert any("serve" in words for words in called("docker"))


def test_fly(tmp_path: Path) -> None:
    for source in blocks("toml"):
        changed = tomllib.loads(source)
        command = changed.pop("processes", {}).get("app")
        if isinstance(changed.get("mounts"), dict):
            changed["mounts"] = [changed["mounts"]]  # flyctl takes one as well as several
        check(changed, FLY_SHAPE, "docs/deploy.md")
        if command:
            served(shlex.split(command), tmp_path)
    assert {tuple(words[1:3]) for words in called("flyctl")} >= {("launch", "--copy-config"), ("scale", "count")}


def test_google_cloud_run_is_given_the_port_and_memory_of_the_image() -> None:
    (words,) = called("gcloud")
    assert words[words.index("--port") + 1] == "8080"
    assert words[words.index("--memory") + 1] == "512Mi"


def test_configurations_in_the_guide_are_accepted() -> None:
    for source in blocks("json"):
        Config.from_mapping(json.loads(source)["plugins"]["datasette-vision"])


UNIT = ROOT / "docker/datasette-vision.service"


def test_the_unit_of_systemd_is_accepted(tmp_path: Path) -> None:
    text = UNIT.read_text("utf-8")
    for words in called("sudo"):
        for word in words:
            assert not word.startswith("docker/") or (ROOT / word).exists(), word
    assert set(re.findall(r"--(?:metadata|host|port|memory|cors)", text)) == {
        *("--metadata", "--host", "--port", "--memory", "--cors")
    }
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze")
    program = tmp_path / "datasette"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("/srv/datasette-vision/venv/bin/datasette", str(program)))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line]
    assert ours == []
    assert "TimeoutStopSec=30" in text
    assert os.access(program, os.X_OK)


def test_the_check_of_the_unit_can_fail(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze")
    unit = tmp_path / "wrong.service"
    unit.write_text("[Service]\nExecStart=/bin/true\nRestrt=always\n")
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert "wrong.service" in done.stdout + done.stderr


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", GUIDE):
        if "://" not in target:
            assert (ROOT / "docs" / target).exists(), target
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^## (.*)", GUIDE, re.M)
    }
    anchors |= {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^### (.*)", GUIDE, re.M)
    }
    for anchor in re.findall(r"\]\(#([^)]+)\)", GUIDE):
        assert anchor in anchors, anchor
