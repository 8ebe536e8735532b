"""Packaging. Settings of tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
URL = "https://github.com/datasette-vision/datasette-vision"
readme = (here / "README.md").read_text("utf-8")
# What is relative to the repository has to be absolute on the package index.
readme = re.sub(r"(!\[[^\]]*)\]\((?![a-z]+:)([^)]+)\)", rf"\1]({URL}/raw/main/\2)", readme)
readme = re.sub(r"\]\((?![a-z]+:|#)([^)]+)\)", rf"]({URL}/blob/main/\1)", readme)
version = re.search(r'__version__ = "([^"]+)"', (here / "datasette_vision/__init__.py").read_text("utf-8"))

setup(
    name="datasette-vision",
    version=version.group(1),
    description="Image understanding in SQL: CLIP embeddings and image classification for Datasette",
    long_description=readme,
    long_description_content_type="text/markdown",
    url=URL,
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Framework :: Datasette",
        "Programming Language :: Python :: 3",
        "Topic :: Database",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["datasette_vision", "datasette_vision.*"]),
    package_data={
        "datasette_vision": [
            "demo/emoji.zip",
            "demo/queries.json",
            "models/bundled/*/*",
            "plugin/static/*",
            "plugin/templates/*",
            "py.typed",
        ]
    },
    entry_points={
        "datasette": ["vision = datasette_vision.plugin"],
        "llm": ["vision = datasette_vision.llm.plugin"],
    },
    install_requires=[
        # Of Datasette 1.0, what is tested begins with 1.0a40.
        "datasette>=0.65.4"
        ",!=1.0a0,!=1.0a1,!=1.0a2,!=1.0a3,!=1.0a4,!=1.0a5,!=1.0a6,!=1.0a7,!=1.0a8,!=1.0a9"
        ",!=1.0a10,!=1.0a11,!=1.0a12,!=1.0a13,!=1.0a14,!=1.0a15,!=1.0a16,!=1.0a17,!=1.0a18,!=1.0a19"
        ",!=1.0a20,!=1.0a21,!=1.0a22,!=1.0a23,!=1.0a24,!=1.0a25,!=1.0a26,!=1.0a27,!=1.0a28,!=1.0a29"
        ",!=1.0a30,!=1.0a31,!=1.0a32,!=1.0a33,!=1.0a34,!=1.0a35,!=1.0a36,!=1.0a37,!=1.0a38,!=1.0a39",
        # Both come with tokenizers; installing models uses them directly.
        "filelock>=3.10",
        "huggingface_hub>=0.25",
        "numkong>=7.5",
        "numpy>=1.24",
        "onnxruntime>=1.22",
        "pillow>=11.3",
        "platformdirs>=4",
        "prometheus_client>=0.20",
        # For uploads: Datasette 0.65 brings it, 1.0 does not.
        "python-multipart>=0.0.20",
        "tokenizers>=0.20",
    ],
    extras_require={
        "llm": ["llm>=0.33"],
        # Only to export PyTorch weights. Where CUDA is not wanted, install torch from PyTorch's CPU index first.
        "bake": [
            "onnx>=1.17",
            "protobuf>=4.25",
            "sentence-transformers>=5.4",
            "sentencepiece>=0.2",
            "torch>=2.4",
            "transformers>=5.0",
        ],
        # datasette-scale-to-zero imports httpx and does not require it: Datasette 0.65 brings it, 1.0 does not.
        # With httptools, uvicorn parses requests in C: 60,000 chunks of one byte keep nobody waiting for a second.
        "deploy": ["datasette-block-robots>=1.1", "datasette-scale-to-zero>=0.3.2", "httptools>=0.6", "httpx>=0.27,<1"],
        # For Datasette 1.0.
        "enrichments": ["datasette-enrichments>=0.6a0"],
        "parquet": ["pyarrow>=16"],
        "ray": ["pyarrow>=16", "ray[data]>=2.49"],
        "heif": ["pillow-heif>=0.18"],
        # For the tests in a browser and the screenshots, with Chromium of the system.
        "browser": ["axe-playwright-python>=0.1", "playwright>=1.40"],
        "test": [
            "cogapp>=3.4",
            "datasette-block-robots>=1.1",
            "datasette-scale-to-zero>=0.3.2",
            "httpx>=0.27,<1",
            "hypothesis>=6.100",
            "llm>=0.33",
            "mypy>=1.15",
            "onnx>=1.17",
            "openai>=1.50",
            "pandas>=2.0",
            "pillow-heif>=0.18",
            "pyarrow>=16",
            "pytest>=8.3",
            "pytest-asyncio>=0.25",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "sqlite-utils>=3.36",
            "sqlite-vec>=0.1",
        ],
    },
)
