"""Removes from an environment what a server never loads, and byte-compiles the rest: 100 MB of 300.

python slim.py SITE_PACKAGES

Each pattern has to match: when a new version moves things, the build says so instead of growing silently.
"""

from __future__ import annotations

import compileall
import shutil
import sys
from pathlib import Path
from py_compile import PycInvalidationMode

USELESS = (
    # Of the engine: a second copy of itself for C programs, and tools that change graphs.
    "onnxruntime/capi/libonnxruntime.so.*",
    "onnxruntime/backend",
    "onnxruntime/datasets",
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "onnxruntime/transformers",
    # Downloads from the hub, in an image that is offline.
    "hf_xet",
    "hf_xet-*.dist-info",
    # What installs packages.
    "pip",
    "pip-*.dist-info",
    "setuptools",
    "setuptools-*.dist-info",
    # What compiles extensions, and the tests of NumPy.
    "numpy/_core/include",
    "numpy/_core/lib",
    "numpy/f2py",
    "numpy/**/tests",
    "numpy/_core/_*_tests.*.so",
)


def remove(site_packages: Path) -> None:
    """Remove what no server loads. Ends with an error for a pattern that matches nothing."""
    for pattern in USELESS:
        found = list(site_packages.glob(pattern))
        if not found:
            sys.exit(f"slim.py: nothing matches {pattern}: what was it called before?")
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in list(site_packages.rglob("__pycache__")):
        shutil.rmtree(path)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    remove(folder)
    # Compiled files that are never compared with their source: nothing in the image changes.
    compileall.compile_dir(folder, quiet=1, workers=0, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
