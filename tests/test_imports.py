"""Imports go downward only, the core is free of frameworks, and starting Datasette loads nothing heavy."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import datasette_vision

PACKAGE = "datasette_vision"
ROOT = Path(datasette_vision.__file__).parent

# The layers of the design; a module is placed by its own name or by that of a package above it.
LAYERS: dict[str, int] = {
    "": 0,
    "errors": 0,
    "lazy": 0,
    "caller": 0,
    "garbage": 0,
    "unfinished": 0,
    "vectors": 1,
    "imageformats": 1,
    "imagememory": 1,
    "imagemodes": 1,
    "imagetags": 1,
    "imagetext": 1,
    "images": 1,
    "preprocess": 1,
    "zeroshot": 1,
    "budget": 1,
    "decoding": 1,
    "models": 2,
    "runtime": 2,
    "tokenizer": 2,
    "encoder": 2,
    "classifier": 2,
    "fair": 2,
    "batcher": 2,
    "operators": 2,
    "cache": 2,
    "memory": 2,
    "cgroups": 0,
    "cores": 2,
    "eightbit": 2,
    "hnsw": 2,
    "index": 2,
    "indexfile": 2,
    "config": 3,
    "configvalues": 3,
    "serving": 3,
    "intake": 3,
    "vision": 3,
    "sqltable": 3,
    "sql": 3,
    "sqlfunctions": 3,
    "identifiers": 0,
    "generations": 3,
    "schema": 3,
    "known": 3,
    "places": 3,
    "parquet": 3,
    "sidetables": 3,
    "sidereader": 3,
    "hits": 3,
    "connections": 3,
    "indexentry": 3,
    "indexwork": 3,
    "indexes": 3,
    "search": 3,
    "recall": 3,
    "matching": 3,
    "importing": 3,
    "inputs": 3,
    "shipping": 3,
    "embed_files": 3,
    "exif": 1,
    "likeness": 1,
    "folders": 3,
    "photos": 3,
    "duplicates": 3,
    "phototable": 3,
    "conveyor": 3,
    "loading": 3,
    "pipeline": 3,
    "rows": 3,
    "files": 3,
    "columns": 3,
    "transactions": 3,
    "drift": 3,
    "keeping": 3,
    "jobs": 3,
    "demo": 3,
    "plugin": 4,
    "ray_job": 4,
    "ray_cluster": 4,
    "llm_models": 4,
    "llm_plugin": 4,
}
FRAMEWORKS = {"datasette", "click", "llm", "torch", "transformers", "ray"}
HEAVY = {"onnxruntime", "torch", "llm", "usearch", "tokenizers", "numpy", "PIL", "numkong", "pyarrow", "fsspec", "ray"}
HEAVY |= {"prometheus_client"}
# The only module that may import each, wherever in it.
ONE_PLACE = {
    "onnxruntime": "runtime models.bake.fuse models.bake.static",
    "tokenizers": "tokenizer models.bake.slow_tokenizers",
    "llm": "llm_models llm_plugin",
    "usearch": "hnsw",
    "ray": "ray_cluster ray_job",
}
# Turns PyTorch models into ours: may import torch, and nothing that serves may import it.
BAKE = "models.bake"

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in sorted(ROOT.rglob("*.py"))
}


def placed(module: str) -> int | None:
    """The layer of a module, given below the package: "models.store"; None when it has none yet."""
    return LAYERS[""] if not module else LAYERS.get(module, LAYERS.get(module.partition(".")[0]))


def layer(module: str) -> int:
    """The same, for a module that must have one."""
    found = placed(module)
    if found is None:
        pytest.fail(f"{module} has no layer: place it in LAYERS of tests/test_imports.py")
    return found


CORE = [module for module in MODULES if module and placed(module) != 4 and not module.startswith(BAKE + ".")]


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """(what a module imports, whether it does so as it is imported itself), wherever the statement stands."""
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    late = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        or (isinstance(outer, ast.If) and ast.unparse(outer.test) == "TYPE_CHECKING")
        for inner in ast.walk(outer)
    }
    package = f"{PACKAGE}.{module}".rstrip(".").split(".")
    if MODULES[module].name != "__init__.py":
        package.pop()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in late
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}".removeprefix(f"{PACKAGE}.")
                # `from datasette_vision import sql` is the module; `from datasette_vision.sql import register` too.
                yield f"{PACKAGE}.{inner}" if inner in MODULES else source, id(node) not in late


def own_imports(module: str) -> Iterator[tuple[str, bool]]:
    """The same, only of modules of this package, named below it."""
    for imported, at_once in imports(module):
        if imported == PACKAGE or imported.startswith(PACKAGE + "."):
            yield imported.removeprefix(PACKAGE).removeprefix("."), at_once


def python(code: str, without: Iterable[str] = ()) -> list[str]:
    """Run code in a fresh Python; return the names of the modules that are loaded at its end.

    To import one of `without` is an ImportError there: Datasette 0.65 itself takes NumPy along when it can.
    """
    code = "\n".join(
        [
            "import json, sys",
            f"sys.modules.update(dict.fromkeys({sorted(without)!r}))",
            textwrap.dedent(code),
            "print('\\n' + json.dumps(sorted(name for name, module in sys.modules.items() if module)))",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        env={**os.environ, "DATASETTE_LOAD_PLUGINS": "datasette-vision"},
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def loaded(names: set[str], modules: list[str]) -> set[str]:
    return names & {module.partition(".")[0] for module in modules}


# What the files say


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_layer(module: str) -> None:
    assert 0 <= layer(module) <= 4


def test_the_table_names_only_what_exists() -> None:
    assert set(LAYERS) <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downward(module: str) -> None:
    upward = [imported for imported, _ in own_imports(module) if layer(imported) > layer(module)]
    assert upward == []


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_no_framework(module: str) -> None:
    assert loaded(FRAMEWORKS, [imported for imported, _ in imports(module)]) == set()


def test_baking_is_apart() -> None:
    """Torch is imported where models are baked, and only the front of that package is seen outside of it."""
    users = {module for module in MODULES if loaded({"torch"}, [imported for imported, _ in imports(module)])}
    assert users
    assert all(module.startswith(BAKE + ".") for module in users)
    for module in CORE:
        seen = {imported for imported, at_once in own_imports(module) if at_once and imported.startswith(BAKE)}
        assert seen == set(), module
        if module != BAKE:
            assert {imported for imported, _ in own_imports(module) if imported.startswith(BAKE)} <= {BAKE}, module


@pytest.mark.parametrize("library", ONE_PLACE)
def test_one_place_imports_it(library: str) -> None:
    found = {module for module in MODULES if loaded({library}, [imported for imported, _ in imports(module)])}
    assert found == set(ONE_PLACE[library].split())


def test_no_module_needs_itself() -> None:
    """No circle of imports, not even one hidden inside functions: a package and its own modules apart."""
    needs = {module: {imported for imported, _ in own_imports(module)} for module in MODULES}
    remaining = dict(needs)
    while free := [module for module, wanted in remaining.items() if not (wanted - {module}) & set(remaining)]:
        for module in free:
            del remaining[module]
    assert remaining == {}


def test_the_parser_of_this_test_sees_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        textwrap.dedent(
            """
            import numpy as np, os.path
            from . import sql
            from .models import store
            from .vectors import encode
            from datasette_vision import images, __version__
            from datasette_vision.models.manifest import Manifest
            if TYPE_CHECKING:
                import llm
            def f():
                from click import echo
            """
        )
    )
    monkeypatch.setitem(MODULES, "x", path)
    assert list(imports("x")) == [
        ("numpy", True),
        ("os.path", True),
        ("datasette_vision.sql", True),
        ("datasette_vision.models.store", True),
        ("datasette_vision.vectors", True),
        ("datasette_vision.images", True),
        ("datasette_vision", True),
        ("datasette_vision.models.manifest", True),
        ("llm", False),
        ("click", False),
    ]


# What is loaded when it runs


def test_importing_the_package_loads_nothing() -> None:
    assert [module for module in python("import datasette_vision") if module.startswith(PACKAGE)] == [PACKAGE]


def test_the_core_loads_no_framework_and_no_engine() -> None:
    core = [f"{PACKAGE}.{module}" for module in CORE]
    modules = python("\n".join(f"import {module}" for module in core))
    assert set(core) <= set(modules)
    assert loaded(FRAMEWORKS | {"onnxruntime", "tokenizers", "usearch"}, modules) == set()


@pytest.mark.parametrize("module", ["config", "sql", "sqltable", "lazy", "errors", "schema", "sidetables"])
def test_what_runs_at_start_is_light(module: str) -> None:
    assert loaded(HEAVY | FRAMEWORKS, python(f"import {PACKAGE}.{module}")) == set()


def test_importing_the_plugin_loads_nothing_heavy() -> None:
    modules = python("import datasette.app, datasette_vision.plugin", without=HEAVY)
    assert "datasette_vision.plugin.hooks" in modules
    assert loaded(HEAVY, modules) == set()


START = """
    import asyncio, sqlite3, warnings
    warnings.simplefilter("default")  # Datasette's own affairs
    from datasette.app import Datasette

    async def start():
        datasette = Datasette(memory=True)
        await datasette.invoke_startup()
        answer = await datasette.client.get("/_memory.json?_shape=array&sql=" + SQL, follow_redirects=True)
        assert answer.status_code == 200, answer.text
        assert answer.json() == [{"x": EXPECTED}], answer.text

    asyncio.run(start())
"""


def test_starting_datasette_loads_nothing_heavy() -> None:
    """Startup, a connection with the functions on it, and a query that calls none of them."""
    modules = python("SQL, EXPECTED = 'select+1+as+x', 1" + textwrap.dedent(START), without=HEAVY)
    assert {"datasette_vision.plugin.state", "datasette_vision.sql"} <= set(modules)
    assert "datasette_vision.vision" not in modules


def test_arithmetic_of_vectors_loads_no_engine() -> None:
    sql = "select+vision_similarity(x'0000803f',x'0000803f')+as+x"
    modules = python(
        f'SQL, EXPECTED = "{sql}", 1.0' + textwrap.dedent(START), without=HEAVY - {"numpy", "PIL", "numkong"}
    )
    assert {"datasette_vision.vision", "numpy", "PIL"} <= set(modules)
