"""Prints the requirements that setup.py states, with those of the extras that are named.

python packages.py SETUP_PY [EXTRA…]

So the layers of packages do not depend on the code of this package: it changes without them being made anew.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any


def stated(source: str, extras: list[str]) -> list[str]:
    """Return the requirements in the source of a setup.py, in its order."""
    call = next(
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setup"
    )
    arguments: dict[str, Any] = {
        keyword.arg: ast.literal_eval(keyword.value)
        for keyword in call.keywords
        if keyword.arg in {"install_requires", "extras_require"}
    }
    return [*arguments["install_requires"], *(line for extra in extras for line in arguments["extras_require"][extra])]


if __name__ == "__main__":
    sys.stdout.write("\n".join(stated(Path(sys.argv[1]).read_text("utf-8"), sys.argv[2:])) + "\n")
