"""The commands of `datasette vision` that install, list, check and remove models."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import click

from datasette_vision.cli.exit_codes import vision_errors
from datasette_vision.cli.options import models_dir_option, say
from datasette_vision.config.settings import BUNDLED_MODEL
from datasette_vision.errors import ModelCorrupt, VisionError

# How 8-bit products are computed, depending on whether those of this processor overflow.
PRODUCTS = {
    False: "native, exact on this processor",
    True: "widened, since this processor's own overflow: exact but slower",
}


@click.command()
@click.argument("source")
@click.option(
    "--name", help="Name of the model in SQL. By default the name in the catalogue, or one derived from SOURCE."
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "int8"]),
    default="auto",
    show_default=True,
    help="auto uses int8 if its results match fp32 with a cosine of at least 0.99.",
)
@click.option("--revision", help="Branch, tag or commit of a repository. By default main.")
@models_dir_option
@click.option("--force", is_flag=True, help="Replace an installed model of this name.")
@click.option(
    "--calibration",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of images for comparing precisions. By default synthetic images.",
)
@click.option(
    "--task",
    type=click.Choice(["dual-encoder", "image-classification"]),
    help="What the model does, if its files do not say.",
)
@click.option(
    "--labels",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Labels of a classifier: one per line, or JSON.",
)
@click.option("--preprocess", metavar="PRESET|FILE", help="imagenet, clip, siglip, half, unit, or a JSON file.")
@vision_errors
def install(source: str, models_dir: Path | None, **wishes: Any) -> None:
    """Install a model.

    SOURCE is a name in the catalogue (datasette vision models --all), a repository on the Hugging Face hub
    (owner/name), or a folder or .onnx file on this machine. ONNX graphs need nothing else. PyTorch weights are
    exported, which requires pip install 'datasette-vision[bake]'.

    A model is installed completely or not at all: you can stop an install at any time and run it again.
    """
    from datasette_vision.bake.bake import bake
    from datasette_vision.install.install import Installer
    from datasette_vision.install.requests import Request
    from datasette_vision.models.store import default_models_dir

    outcome = Installer(models_dir or default_models_dir(), say, bake).install(Request(source=source, **wishes))
    manifest = outcome.model.manifest
    if outcome.already_there:
        click.echo(f"{manifest.name} is already installed in {outcome.model.folder} (--force replaces it)")
        return
    size = sum(file.size for file in manifest.files)
    click.echo(f"{manifest.name} is installed in {outcome.model.folder}")
    click.echo(f"{manifest.task}, {manifest.dimensions} dimensions, {manifest.precision}, {_megabytes(size)}")
    function = "vision_embed('purple and gold'" if manifest.text else "vision_classify(image"
    click.echo(f"Use it in SQL: select {function}, '{manifest.name}')")


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@models_dir_option
@vision_errors
def verify(names: tuple[str, ...], models_dir: Path | None) -> None:
    """Check all installed models, or those named.

    Checks the SHA-256 of every file, then compares the results for a text and an image with those recorded at
    installation. The exit code is 5 if something is wrong, and the message names the file.
    """
    from datasette_vision.install import trial
    from datasette_vision.models.store import ModelStore

    store = ModelStore(models_dir)
    failed: VisionError | None = None
    for name in names or store.names():
        try:
            lines = trial.verify(store.find(name))
        except VisionError as error:
            click.echo(f"{name}: {error}", err=True)
            failed = error if failed is None or isinstance(error, ModelCorrupt) else failed
            continue
        click.echo(f"{name}: {'; '.join(lines)}")
    if failed is not None:
        sys.exit(failed.exit_code)


@click.command()
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@models_dir_option
@vision_errors
def remove(name: str, yes: bool, models_dir: Path | None) -> None:
    """Remove an installed model."""
    from datasette_vision.install.install import Installer, check_removable
    from datasette_vision.models.store import default_models_dir

    folder = check_removable(models_dir or default_models_dir(), name)
    if not yes:
        click.confirm(f"Remove {name}, in {folder}?", abort=True)
    Installer(models_dir or default_models_dir(), say).remove(name)
    click.echo(f"{name} is removed")


@click.command()
@click.option("--all", "catalogue", is_flag=True, help="List the catalogue: models that can be installed by name.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@models_dir_option
@vision_errors
def models(catalogue: bool, as_json: bool, models_dir: Path | None) -> None:
    """List the installed models, or those in the catalogue."""
    from datasette_vision.engine import runtime
    from datasette_vision.models.store import ModelStore

    store = ModelStore(models_dir)
    rows = _catalogue(set(store.names())) if catalogue else _installed(store, runtime.products_overflow())
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    if catalogue:
        columns = {"name": "", "task": "", "dimensions": "dim", "size_mb": "MB", "licence": "", "installed": "here"}
        _print_table(rows, columns, below="description")
        click.echo("\nInstall one with: datasette vision install NAME")
    else:
        columns = {"name": "", "task": "", "dimensions": "dim", "precision": "", "size_mb": "MB", "default": ""}
        _print_table(rows, columns, below="error")
        say(f"8-bit products: {PRODUCTS[runtime.products_overflow()]}")


def _installed(store: Any, products_overflow: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in store.names():
        try:
            model = store.find(name)
        except VisionError as error:
            rows.append({"name": name, "error": str(error)})
            continue
        manifest = model.manifest
        rows.append(
            {
                "name": name,
                "task": manifest.task,
                "dimensions": manifest.dimensions,
                "precision": manifest.precision,
                "products": "widened" if products_overflow else "native",
                "size_mb": round(sum(file.size for file in manifest.files) / 1e6, 1),
                "default": name == BUNDLED_MODEL,
                "source": manifest.source.location,
                "revision": manifest.source.revision,
                "licence": manifest.source.licence,
                "description": manifest.description,
                "folder": str(model.folder),
            }
        )
    return rows


def _catalogue(installed: set[str]) -> list[dict[str, Any]]:
    from datasette_vision.models.catalog import CATALOG

    return [
        {
            "name": row.name,
            "task": row.task,
            "dimensions": row.dimensions,
            "size_mb": row.megabytes,
            "licence": row.licence,
            "installed": row.name in installed,
            "source": row.source,
            "text_source": row.text_source,
            "original": row.original,
            "needs_bake": row.bakes,
            "description": row.description,
        }
        for row in CATALOG
    ]


def _print_table(rows: list[dict[str, Any]], columns: dict[str, str], below: str) -> None:
    """Print rows as a table, with a line of prose below each row that has one. 80 columns are enough."""
    cells = [[_cell(row.get(key)) for key in columns] for row in rows]
    heads = [head or key for key, head in columns.items()]
    widths = [max(len(line[index]) for line in [heads, *cells]) for index in range(len(heads))]
    numbers = {index for index, key in enumerate(columns) if key in {"dimensions", "size_mb"}}

    def line(values: list[str]) -> str:
        padded = [
            value.rjust(width) if index in numbers else value.ljust(width)
            for index, (value, width) in enumerate(zip(values, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    click.echo(line(heads))
    width = min(80, shutil.get_terminal_size().columns)
    for row, values in zip(rows, cells, strict=True):
        click.echo(line(values))
        if row.get(below):
            click.echo(textwrap.fill(row[below], width, initial_indent="    ", subsequent_indent="    "))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return f"{value:,}" if isinstance(value, (int, float)) else str(value or "")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
