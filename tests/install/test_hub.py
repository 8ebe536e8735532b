"""install/hub.py: downloads against a server that speaks the hub's protocol, and all the ways in which they fail."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from datasette_vision.errors import DownloadFailed, InstallFailed, SourceNotFound, VisionError
from datasette_vision.install import hub as hubs
from datasette_vision.install.install import Installed, Installer
from datasette_vision.install.requests import Request
from tests import repositories
from tests.hubserver import COMMIT, Hub, serve

BIG = b"0123456789abcdef" * 4096


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server with owner/clip, as Xenova's; the cache of huggingface_hub is empty."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    repositories.xenova(tmp_path / "served")
    with serve(Hub({"owner/clip": tmp_path / "served"}, {"owner/clip": "mit"})) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


class Machine:
    """Installs into a models folder, and remembers what was said."""

    def __init__(self, root: Path) -> None:
        self.models_dir = root / "models"
        self.said: list[str] = []
        self.installer = Installer(self.models_dir, self.said.append)

    def install(self, source: str = "owner/clip", **wishes: object) -> Installed:
        return self.installer.install(Request(source, **wishes))  # type: ignore[arg-type]

    def fails(self, kind: type[VisionError], source: str = "owner/clip", **wishes: object) -> str:
        with pytest.raises(InstallFailed) as caught:
            self.install(source, **wishes)
        assert type(caught.value) is kind, caught.value
        assert self.nothing_half_installed()
        return str(caught.value)

    def nothing_half_installed(self) -> bool:
        names = {entry.name for entry in self.models_dir.iterdir()}
        return names <= {".locks", ".downloads"}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# What goes well


def test_an_install(hub: Hub, machine: Machine) -> None:
    manifest = machine.install().model.manifest
    assert (manifest.source.location, manifest.source.revision, manifest.source.licence) == (
        "owner/clip",
        COMMIT,
        "mit",
    )
    # Everything at the commit that "main" was, and nothing that is not needed.
    files = {path.rpartition(f"{COMMIT}/")[2] for _, path, _ in hub.log if "/resolve/" in path}
    assert all(f"/resolve/{COMMIT}/" in path for _, path, _ in hub.log if "/resolve/" in path)
    assert files == {
        "onnx/vision_model.onnx",
        "onnx/text_model.onnx",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
    }
    assert {entry.name for entry in machine.models_dir.iterdir()} == {"clip", ".locks", ".downloads"}
    assert list((machine.models_dir / ".downloads").iterdir()) == []


def test_a_revision(hub: Hub, machine: Machine) -> None:
    machine.install(revision="v1")
    assert hub.log[0][1] == "/api/models/owner/clip/revision/v1"
    assert machine.install(revision="v1").already_there
    assert machine.install(revision=COMMIT[:8]).already_there
    with pytest.raises(InstallFailed, match="clip is already installed"):
        machine.install(revision="abcdef0")


def test_progress_is_plain_lines_without_a_terminal(
    hub: Hub, machine: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    machine.install()
    assert capfd.readouterr() == ("", "")
    size = (hub.repositories["owner/clip"] / "onnx" / "vision_model.onnx").stat().st_size
    assert f"Asking {hub.url} for owner/clip (main)" in machine.said
    assert f"Downloading owner/clip/onnx/vision_model.onnx ({size / 1e3:.1f} kB)" in machine.said


def test_a_token(hub: Hub, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "secret"
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert machine.install().model.manifest.name == "clip"


def test_two_repositories_for_one_model(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    vision, text = repositories.qdrant(tmp_path / "served-too")
    hub.repositories |= {"q/clip-ViT-B-32-vision": vision, "q/clip-ViT-B-32-text": text}
    manifest = machine.install("q/clip-ViT-B-32-text").model.manifest
    assert manifest.source.location == "q/clip-ViT-B-32-vision + q/clip-ViT-B-32-text"
    assert manifest.source.revision == f"{COMMIT} + {COMMIT}"
    del hub.repositories["q/clip-ViT-B-32-text"]
    machine.installer.remove("clip-vit-b-32")
    assert "q/clip-ViT-B-32-text (main): not found" in machine.fails(SourceNotFound, "q/clip-ViT-B-32-vision")


def test_weights_of_one_format_are_downloaded_and_exported(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    hub.repositories["owner/weights"] = repositories.transformers(tmp_path / "weights")
    seen: set[str] = set()

    def bake(source: Path, staging: Path, **wishes: object) -> dict[str, object]:
        seen.update(path.name for path in source.iterdir())
        raise InstallFailed("far enough")

    installer = Installer(machine.models_dir, machine.said.append, bake)
    with pytest.raises(InstallFailed, match="far enough"):
        installer.install(Request("owner/weights"))
    assert "model.safetensors" in seen
    assert not seen & {"pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "README.md"}
    assert machine.nothing_half_installed()


# What huggingface_hub has already


def fill_cache(cache: Path, repository: str, root: Path) -> None:
    """Write huggingface_hub's cache as its documentation describes it."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "blobs").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    for path in root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            blob = folder / "blobs" / (hashlib.sha256(content).hexdigest() if path.suffix == ".onnx" else git)
            blob.write_bytes(content)
            pointer = folder / "snapshots" / COMMIT / path.relative_to(root)
            pointer.parent.mkdir(parents=True, exist_ok=True)
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))


def test_what_is_in_the_cache_is_not_downloaded(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    fill_cache(tmp_path / "cache", "owner/clip", hub.repositories["owner/clip"])
    machine.install()
    assert [path for _, path, _ in hub.log if "/resolve/" in path] == []


def test_a_cache_that_is_damaged_is_not_used(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    fill_cache(tmp_path / "cache", "owner/clip", hub.repositories["owner/clip"])
    blob = (tmp_path / "cache" / "models--owner--clip" / "snapshots" / COMMIT / "onnx" / "text_model.onnx").resolve()
    blob.write_bytes(b"damaged")
    machine.install()
    assert [path for _, path, _ in hub.log if "/resolve/" in path] == [
        f"/owner/clip/resolve/{COMMIT}/onnx/text_model.onnx"
    ]


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "no server"])
def test_offline_from_the_cache(
    hub: Hub, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = machine.fails(DownloadFailed)
    assert "To install without the hub: copy the repository's files to a folder on this machine" in found
    if how == "HF_HUB_OFFLINE":
        assert found.startswith("owner/clip (main) is not in the cache of huggingface_hub, and HF_HUB_OFFLINE is set. ")
    else:
        assert found.startswith("http://127.0.0.1:9: owner/clip (main): the download failed: ")
    fill_cache(tmp_path / "cache", "owner/clip", hub.repositories["owner/clip"])
    assert machine.install().model.manifest.source.revision == COMMIT
    assert hub.log == []


def test_offline_with_half_a_cache(hub: Hub, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_cache(tmp_path / "cache", "owner/clip", hub.repositories["owner/clip"])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "cache" / "models--owner--clip" / "snapshots" / COMMIT
    (snapshot / "tokenizer.json").resolve().write_bytes(b"damaged")
    assert "the content does not match its name" in machine.fails(DownloadFailed)
    (snapshot / "tokenizer.json").unlink()
    assert "expected tokenizer.json, found none" in machine.fails(InstallFailed)
    (snapshot / "onnx" / "text_model.onnx").unlink()
    expected = "owner/clip: found onnx/vision_model.onnx, but no onnx/text_model.onnx"
    assert machine.fails(InstallFailed) == expected


# What goes wrong


def test_an_interrupted_download_goes_on_by_itself(hub: Hub, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 50)
    hub.cut["onnx/vision_model.onnx"] = [100]
    machine.install()
    assert hub.ranges("onnx/vision_model.onnx") == [None, "bytes=100-"]


def test_a_line_that_breaks_again_and_again(hub: Hub, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 50)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.cut["onnx/vision_model.onnx"] = [100] * 6
    machine.install()
    assert hub.ranges("onnx/vision_model.onnx") == [None, *(f"bytes={100 * step}-" for step in range(1, 7))]


def test_an_interrupted_download_goes_on_at_the_next_install(hub: Hub, machine: Machine) -> None:
    (hub.repositories["owner/clip"] / "tokenizer.json").write_bytes(
        (hub.repositories["owner/clip"] / "tokenizer.json").read_bytes() + b" " * 100_000
    )
    partial = machine.models_dir / ".downloads"
    name = "tokenizer.json"
    key = next(each["blobId"] for each in hub.info("owner/clip")["siblings"] if each["rfilename"] == name)
    partial.mkdir(parents=True)
    # As a killed install leaves it: huggingface_hub itself would begin again.
    (partial / f"{key}.part").write_bytes((hub.repositories["owner/clip"] / name).read_bytes()[:60_000])
    machine.install()
    assert hub.ranges(name) == ["bytes=60000-"]
    assert any("resuming at 60.0 kB" in line for line in machine.said)


def test_a_server_that_fails_in_the_middle(hub: Hub, machine: Machine) -> None:
    hub.status["onnx/text_model.onnx"] = 500
    found = machine.fails(DownloadFailed)
    assert found.startswith(
        f"{hub.url}: owner/clip/onnx/text_model.onnx ({COMMIT}): the download failed: HTTP 500."
        " The partial download is kept: the next install resumes it."
    )
    del hub.status["onnx/text_model.onnx"]
    hub.log.clear()
    machine.install()
    assert hub.ranges("onnx/text_model.onnx") == [None]
    assert hub.ranges("onnx/vision_model.onnx") == []
    assert list((machine.models_dir / ".downloads").iterdir()) == []


@pytest.mark.parametrize("name", ["onnx/text_model.onnx", "tokenizer.json"])
def test_a_wrong_digest(hub: Hub, machine: Machine, name: str) -> None:
    content = (hub.repositories["owner/clip"] / name).read_bytes()
    hub.altered[name] = bytes([content[0] ^ 1]) + content[1:]
    found = machine.fails(DownloadFailed)
    assert found.startswith(f"owner/clip: {name}: expected the digest ")
    assert "the download was discarded" in found
    del hub.altered[name]
    assert machine.install().model.manifest.name == "clip"


@pytest.mark.parametrize("extra", [-10, 10])
def test_a_wrong_size(hub: Hub, machine: Machine, extra: int) -> None:
    content = (hub.repositories["owner/clip"] / "tokenizer.json").read_bytes()
    hub.altered["tokenizer.json"] = content[:extra] if extra < 0 else content + b"x" * extra
    assert "tokenizer.json" in machine.fails(DownloadFailed)
    del hub.altered["tokenizer.json"]
    assert machine.install().model.manifest.name == "clip"


def test_a_missing_file(hub: Hub, machine: Machine) -> None:
    (hub.repositories["owner/clip"] / "tokenizer.json").unlink()
    assert machine.fails(InstallFailed) == "owner/clip: expected tokenizer.json, found none"


def test_a_file_that_is_listed_and_not_there(hub: Hub, machine: Machine) -> None:
    hub.status["tokenizer.json"] = 404
    assert machine.fails(SourceNotFound).startswith(f"{hub.url}: owner/clip/tokenizer.json ({COMMIT}): ")


def test_names_that_lead_outside_are_not_there(hub: Hub, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    info = hub.info("owner/clip")
    info["siblings"] += [{"rfilename": name, "size": 1, "blobId": "0" * 40} for name in ("../x", "/x", "a/../../x.bin")]
    monkeypatch.setattr(Hub, "info", lambda self, repository: info)
    origin = hubs.open_repository("owner/clip", None, machine.models_dir, machine.said.append)
    assert not {name for name in origin.names if ".." in name or name.startswith("/")}
    with pytest.raises(SourceNotFound):
        origin.file("../x")


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        ((401, "RepoNotFound"), SourceNotFound, "not found, or not accessible: is HF_TOKEN right?"),
        ((401, ""), SourceNotFound, "not found, or not accessible: is HF_TOKEN right?"),
        ((404, "RepoNotFound"), SourceNotFound, "not found, or not accessible: is the name right?"),
        ((403, "GatedRepo"), DownloadFailed, "access is restricted: accept its terms on {url}/owner/clip, then set"),
        ((403, ""), DownloadFailed, "access is restricted: accept its terms on {url}/owner/clip, then set HF_TOKEN"),
        ((500, ""), DownloadFailed, "the download failed: HTTP 500"),
    ],
)
def test_a_repository_that_is_refused(
    hub: Hub, machine: Machine, answer: tuple[int, str], kind: type[VisionError], message: str
) -> None:
    hub.refused["owner/clip"] = answer
    found = machine.fails(kind)
    assert found.startswith(f"{hub.url}: owner/clip (main): {message.format(url=hub.url)}")


def test_no_such_repository_or_revision(hub: Hub, machine: Machine) -> None:
    assert machine.fails(SourceNotFound, "owner/other").startswith(f"{hub.url}: owner/other (main): not found")
    assert machine.fails(SourceNotFound, revision="v9") == f"{hub.url}: owner/clip (v9): there is no such revision"
    assert "is not the name of a repository" in machine.fails(SourceNotFound, "owner/-.git..", name="x")


def test_a_wrong_token(hub: Hub, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "secret"
    monkeypatch.setenv("HF_TOKEN", "wrong")
    found = machine.fails(SourceNotFound)
    assert "is HF_TOKEN right?" in found
    assert "wrong" not in found


def test_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hubs.endpoint() == huggingface_hub.constants.ENDPOINT
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert hubs.endpoint() == "https://mirror.example"
