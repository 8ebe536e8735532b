"""Downloads from the Hugging Face hub, or from another server that HF_ENDPOINT names.

Uses `huggingface_hub`, a dependency of `tokenizers`: its addresses, tokens, retries and cache. Files that are in its
cache are used from there. Others are downloaded to our own files, named by their expected content, so that a download
resumes where a killed one stopped (huggingface_hub itself starts again), and are checked against the hub's digest
before use.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from datasette_vision.errors import DownloadFailed, SourceNotFound
from datasette_vision.install.origins import UNKNOWN_LICENCE, LocalFolder, Origin
from datasette_vision.install.staging import exclusive
from datasette_vision.models import digests
from datasette_vision.models.manifest import is_inside
from datasette_vision.util.progress import OnProgress

CONNECT_SECONDS = 20
# Any of these files in the cache shows where its snapshot of a repository is.
LANDMARKS = ("config.json", "preprocessor_config.json", "tokenizer.json", "model.onnx", "modules.json", "manifest.json")


def endpoint() -> str:
    """Return the server: HF_ENDPOINT, by default https://huggingface.co."""
    from huggingface_hub import constants  # heavy: imported on install only

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def open_repository(repository: str, revision: str | None, downloads: Path, on_progress: OnProgress[str]) -> Origin:
    """List a repository at a revision, "main" by default, pinned to its current commit.

    With HF_HUB_OFFLINE, or if the server cannot be reached, uses huggingface_hub's cache. Raises SourceNotFound or
    DownloadFailed.
    """
    import huggingface_hub
    from huggingface_hub import constants

    wanted = revision or "main"
    if constants.HF_HUB_OFFLINE:
        return _cached(repository, wanted, "HF_HUB_OFFLINE is set")
    on_progress(f"Asking {endpoint()} for {repository} ({wanted})")
    api = huggingface_hub.HfApi(endpoint=endpoint())
    try:
        info = api.model_info(repository, revision=revision, files_metadata=True, timeout=CONNECT_SECONDS)
    except Exception as error:
        explained = explain(error, repository, wanted)
        if _status(error) is None and isinstance(explained, DownloadFailed):
            try:
                found = _cached(repository, wanted, "the network failed")
            except DownloadFailed:
                raise explained from None
            on_progress(f"{endpoint()} cannot be reached: using the cache of {repository}")
            return found
        raise explained from None
    return HubRepository(repository, info, downloads, on_progress)


class HubRepository:
    """A repository at one commit."""

    def __init__(self, repository: str, info: Any, downloads: Path, on_progress: OnProgress[str]) -> None:
        """`info` is huggingface_hub's ModelInfo with the metadata of files."""
        self.location = repository
        self.revision: str = info.sha
        self.licence = _licence(info)
        self._siblings = {sibling.rfilename: sibling for sibling in info.siblings or [] if is_inside(sibling.rfilename)}
        self.names = frozenset(self._siblings)
        self._downloads = downloads
        self._on_progress = on_progress
        self._used: list[Path] = []

    def forget(self) -> None:
        """Remove the downloads that were used: they are in the model's folder now."""
        for path in self._used:
            for other in (path, path.with_name(f"{path.name}.lock")):
                other.unlink(missing_ok=True)

    def file(self, name: str) -> Path:
        """Return the path of a file, downloaded if necessary, with its digest checked. Raises InstallFailed."""
        import huggingface_hub

        sibling = self._siblings.get(name)
        if sibling is None:
            raise SourceNotFound(f"{self.location} has no file {name} at {self.revision}")
        lfs = sibling.lfs["sha256"] if sibling.lfs else None
        cached = huggingface_hub.try_to_load_from_cache(self.location, name, revision=self.revision)
        if isinstance(cached, str) and _is_as_announced(Path(cached), lfs, sibling.blob_id):
            return Path(cached)
        key = lfs or sibling.blob_id or hashlib.sha256(f"{self.revision}/{name}".encode()).hexdigest()
        whole, partial = self._downloads / key, self._downloads / f"{key}.part"
        # Two installs may need the same file, such as an image tower that two models share.
        with exclusive(
            self._downloads / f"{key}.lock", f"{name} is being downloaded by another install", self._on_progress
        ):
            if not whole.exists():
                self._download(name, partial, sibling.size)
                if not _is_as_announced(partial, lfs, sibling.blob_id):
                    found = _digest(partial, lfs is None and sibling.blob_id is not None)
                    partial.unlink()
                    raise DownloadFailed(
                        f"{self.location}: {name}: expected the digest {(lfs or sibling.blob_id)[:12]}…, downloaded"
                        f" {found[:12]}…: the download was discarded. {ADVICE}"
                    )
                partial.replace(whole)
        self._used.append(whole)
        return whole

    def _download(self, name: str, partial: Path, size: int | None) -> None:
        """Download a file into `partial`, resuming at its end, and retrying as long as it grows."""
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

        if not sys.stderr.isatty():
            disable_progress_bars()
        partial.touch()
        had = partial.stat().st_size
        resumed = f", resuming at {_size(had)}" if had else ""
        self._on_progress(f"Downloading {self.location}/{name} ({_size(size)}{resumed})")
        while True:
            try:
                self._get(name, partial, size)
                return
            except Exception as error:
                now = partial.stat().st_size
                if size is not None and now > size:
                    partial.unlink()
                # Versions of huggingface_hub differ in what they retry by themselves.
                elif _status(error) is None and now > had:
                    had = now
                    self._on_progress(f"  interrupted at {_size(now)}: resuming")
                    continue
                raise explain(error, self.location, self.revision, name) from None

    def _get(self, name: str, partial: Path, size: int | None) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        with partial.open("ab") as stream:
            if size is not None and stream.tell() == size:
                return
            http_get(
                hf_hub_url(self.location, name, revision=self.revision, endpoint=endpoint()),
                stream,
                resume_size=stream.tell(),
                headers=build_hf_headers(),
                expected_size=size,
                displayed_filename=name,
            )


def _cached(repository: str, revision: str, reason: str) -> Origin:
    """Return the snapshot of a revision in huggingface_hub's cache. Raises DownloadFailed."""
    import huggingface_hub

    for landmark in LANDMARKS:
        found = huggingface_hub.try_to_load_from_cache(repository, landmark, revision=revision)
        if isinstance(found, str):
            return Snapshot(repository, Path(found).parent)
    raise DownloadFailed(f"{repository} ({revision}) is not in the cache of huggingface_hub, and {reason}. {ADVICE}")


class Snapshot(LocalFolder):
    """A repository at one commit in huggingface_hub's cache."""

    def __init__(self, repository: str, folder: Path) -> None:
        super().__init__(folder)
        self.location = repository
        self.revision = folder.name  # type: ignore[assignment]

    def file(self, name: str) -> Path:
        """Return the path of a file. A blob in the cache is named by its digest, which is checked too."""
        if name not in self.names:
            raise DownloadFailed(
                f"{self.location}: {name} is not in the cache of huggingface_hub, and cannot be downloaded. {ADVICE}"
            )
        blob = (self.folder / name).resolve()
        lfs, git = (blob.name if len(blob.name) == length else None for length in (64, 40))
        if not _is_as_announced(blob, lfs, git):
            raise DownloadFailed(f"{blob}: the content does not match its name: remove it, and try again")
        return blob


ADVICE = (
    "To install without the hub: copy the repository's files to a folder on this machine, and pass the folder to"
    " `datasette vision install FOLDER --name NAME`"
)


def explain(error: Exception, repository: str, revision: str, name: str | None = None) -> Exception:
    """Turn errors of huggingface_hub into an error that says what was tried and what to do."""
    from huggingface_hub import errors

    what = f"{repository}/{name}" if name else repository
    tried = f"{endpoint()}: {what} ({revision})"
    status = _status(error)
    if isinstance(error, errors.HFValidationError):
        return SourceNotFound(f"{repository!r} is not the name of a repository: expected owner/name")
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return DownloadFailed(
            f"{tried}: access is restricted: accept its terms on {endpoint()}/{repository}, then set HF_TOKEN to a"
            f" token of yours. {ADVICE}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return SourceNotFound(f"{tried}: there is no such revision")
    if isinstance(error, errors.EntryNotFoundError):
        return SourceNotFound(f"{tried}: there is no such file")
    if isinstance(error, errors.RepositoryNotFoundError) or status in {401, 404}:
        # The hub returns 401 for a missing repository, so as not to reveal private ones.
        hint = "is HF_TOKEN right?" if status == 401 else "is the name right?"
        return SourceNotFound(
            f"{tried}: not found, or not accessible: {hint} A private repository needs HF_TOKEN. {ADVICE}"
        )
    if isinstance(error, OSError) and error.errno is not None and status is None and not _is_network(error):
        return DownloadFailed(f"{tried}: cannot be written: {error.strerror or error}")
    detail = f"HTTP {status}" if status else (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    kept = " The partial download is kept: the next install resumes it." if name else ""
    return DownloadFailed(f"{tried}: the download failed: {detail}.{kept} {ADVICE}")


def _is_network(error: OSError) -> bool:
    return isinstance(error, (ConnectionError, TimeoutError)) or not type(error).__module__.startswith("builtins")


def _status(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _licence(info: Any) -> str:
    card = getattr(info, "card_data", None)
    stated = getattr(card, "license", None) if card is not None else None
    tags = [tag.partition(":")[2] for tag in info.tags or [] if tag.startswith("license:")]
    found = stated or (tags[0] if tags else None)
    return ", ".join(map(str, found)) if isinstance(found, list) else str(found or UNKNOWN_LICENCE)


def _is_as_announced(path: Path, lfs: str | None, git: str | None) -> bool:
    """Whether a file matches the hub's digest: a SHA-256 for large files, git's SHA-1 for small ones."""
    if lfs is None and git is None:
        return True
    return _digest(path, lfs is None) == (lfs or git)


def _digest(path: Path, git: bool) -> str:
    return digests.git_blob(path) if git else digests.sha256(path)


def _size(size: int | None) -> str:
    if size is None:
        return "size unknown"
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size / 1e3:,.1f} kB"
