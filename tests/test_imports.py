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
from tests.paths import ROOT as CHECKOUT

PACKAGE = "datasette_vision"
ROOT = Path(datasette_vision.__file__).parent

# The folders in order: each imports only from those before it. A module that stands alone is named as one.
FOLDERS = (
    "",
    "errors",
    "util",
    "config",
    "images",
    "vectors",
    "models",
    "engine",
    "install",
    "bake",
    "tables",
    "retrieval",
    "bulk",
    "files",
    "sql",
    "llm",
    "demo",
    "cli",
    "plugin",
)
# Where Datasette, click, llm, torch and Ray may be imported.
OUTSIDE_THE_CORE = ("bake", "files.ray", "llm", "cli", "plugin")
FRAMEWORKS = {"datasette", "click", "llm", "torch", "transformers", "ray"}
HEAVY = {"onnxruntime", "torch", "llm", "tokenizers", "numpy", "PIL", "numkong", "pyarrow", "fsspec", "ray"}
HEAVY |= {"prometheus_client"}
# The only modules that may import each, wherever in them.
ONE_PLACE = {
    "onnxruntime": "engine.runtime bake.fuse bake.static",
    "tokenizers": "engine.tokenizer bake.slow_tokenizers",
    "llm": "llm.models llm.plugin",
    "ray": "files.ray.cluster files.ray.job",
}
# Turns PyTorch models into ours: may import torch, and nothing that serves may import it. What others import is FRONT.
BAKE, FRONT = "bake", "bake.bake"

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in sorted(ROOT.rglob("*.py"))
}


def folder(module: str) -> str:
    """The folder of a module below the package: "plugin" for "plugin.http.bodies"."""
    return module.partition(".")[0]


def is_core(module: str) -> bool:
    return not any(module == outer or module.startswith(f"{outer}.") for outer in OUTSIDE_THE_CORE)


CORE = [module for module in MODULES if module and is_core(module)]


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
                # `from datasette_vision.sql import table` names a module, `… .sql.table import X` a thing in it.
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


def test_every_folder_has_its_place_and_says_what_belongs_there() -> None:
    assert {folder(module) for module in MODULES} == set(FOLDERS)
    packages = [path for path in MODULES.values() if path.name == "__init__.py"]
    assert len(packages) > 20
    for path in packages:
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path
    for path in ROOT.rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), path


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_to_folders_before_ones_own(module: str) -> None:
    if not module:  # the public API: it names what is below, and imports it when it is asked for
        assert [name for name, at_once in own_imports(module) if at_once] == []
        return
    place = FOLDERS.index(folder(module))
    assert [name for name, _ in own_imports(module) if FOLDERS.index(folder(name)) > place] == []


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_no_framework(module: str) -> None:
    assert loaded(FRAMEWORKS, [imported for imported, _ in imports(module)]) == set()


def test_baking_is_apart() -> None:
    """Torch is imported where models are baked, and only the front of that package is seen outside of it."""
    users = {module for module in MODULES if loaded({"torch"}, [imported for imported, _ in imports(module)])}
    assert users
    assert all(module.startswith(BAKE + ".") for module in users)
    for module in MODULES:
        if folder(module) != BAKE:
            seen = {(imported, at_once) for imported, at_once in own_imports(module) if folder(imported) == BAKE}
            assert seen <= {(FRONT, False)}, module


@pytest.mark.parametrize("library", ONE_PLACE)
def test_one_place_imports_it(library: str) -> None:
    found = {module for module in MODULES if loaded({library}, [imported for imported, _ in imports(module)])}
    assert found == set(ONE_PLACE[library].split())


def test_no_module_needs_itself() -> None:
    """No circle of imports, not even one hidden inside functions: a package and its own modules apart."""
    # The package itself names what is public, and imports it only when it is asked for.
    needs = {module: {imported for imported, _ in own_imports(module) if imported} for module in MODULES if module}
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
            from . import table
            from ..models import store
            from ..vectors.embedding import encode
            from datasette_vision.images import decode, __name__
            from datasette_vision import __version__
            from datasette_vision.models.manifest import Manifest
            if TYPE_CHECKING:
                import llm
            def f():
                from click import echo
            """
        )
    )
    monkeypatch.setitem(MODULES, "sql.x", path)
    assert list(imports("sql.x")) == [
        ("numpy", True),
        ("os.path", True),
        ("datasette_vision.sql.table", True),
        ("datasette_vision.models.store", True),
        ("datasette_vision.vectors.embedding", True),
        ("datasette_vision.images.decode", True),
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
    assert loaded(FRAMEWORKS | {"onnxruntime", "tokenizers"}, modules) == set()


@pytest.mark.parametrize(
    "module",
    ["config.settings", "sql.registration", "sql.table", "util.lazy", "errors", "tables.schema", "tables.side_tables"],
)
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
    assert {"datasette_vision.plugin.server.state", "datasette_vision.sql.registration"} <= set(modules)
    assert "datasette_vision.engine.vision" not in modules


def test_arithmetic_of_vectors_loads_no_engine() -> None:
    sql = "select+vision_similarity(x'0000803f',x'0000803f')+as+x"
    modules = python(
        f'SQL, EXPECTED = "{sql}", 1.0' + textwrap.dedent(START), without=HEAVY - {"numpy", "PIL", "numkong"}
    )
    assert {"datasette_vision.engine.vision", "numpy", "PIL"} <= set(modules)


def top_names(module: str) -> set[str]:
    """What a module defines or imports, by its text: for modules whose packages are not installed here."""
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return names


SCRIPTS = [path for folder in ("benchmarks", "docker", "docs", "training") for path in (CHECKOUT / folder).glob("*.py")]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_scripts_import_is_there(path: Path) -> None:
    """Most need more than the tests do, and are run by hand: a module that moves must not leave them behind."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(PACKAGE):
            continue
        module = str(node.module).removeprefix(PACKAGE).removeprefix(".")
        for alias in node.names:
            assert f"{module}.{alias.name}".lstrip(".") in MODULES or alias.name in top_names(module), alias.name
