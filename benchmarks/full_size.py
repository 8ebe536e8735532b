"""Bake ViT-B/16, ResNet-50 and a SigLIP base at full size, with random weights, and fail unless each passes its proof.

python -m benchmarks.full_size [vit] [resnet] [siglip]

Needs the extra `bake`. The proof is bake's own: fp32 within a cosine of 0.99999 and 0.1 % of the norm of the original,
its pixels and tokens equal to those of transformers. Two minutes on two idle cores.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import transformers

from datasette_vision.models.bake import bake
from tests import tinytorch


def make_vit(folder: Path) -> None:
    model = tinytorch.spread(transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000)))
    model.save_pretrained(folder)
    tinytorch.ViTImageProcessorPil().save_pretrained(folder)


def make_resnet(folder: Path) -> None:
    model = tinytorch.spread(transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000)))
    model.save_pretrained(folder)
    tinytorch.ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=0.875).save_pretrained(folder)


def make_siglip(folder: Path) -> None:
    """The tiny one's tokenizer: random embeddings know no words."""
    tinytorch.make_siglip(folder)
    ends = {"pad_token_id": 1, "eos_token_id": 1, "bos_token_id": 2}
    config = transformers.SiglipConfig(text_config={"vocab_size": 32000, **ends})
    tinytorch.spread(transformers.SiglipModel(config)).save_pretrained(folder)
    tinytorch.SiglipImageProcessorPil(size={"height": 224, "width": 224}).save_pretrained(folder)


MAKERS = {"vit": make_vit, "resnet": make_resnet, "siglip": make_siglip}


def main() -> None:
    for name in sys.argv[1:] or MAKERS:
        with tempfile.TemporaryDirectory() as temporary:
            source, target = Path(temporary) / "source", Path(temporary) / "target"
            target.mkdir()
            MAKERS[name](source)
            started = time.perf_counter()
            manifest = bake(source, target)
            print(f"{name}: {manifest['precision']}, {time.perf_counter() - started:.0f} s")
            for tower in ("image", "text"):
                for row in manifest["parity"].get(tower, {}).get("candidates", []):
                    print(
                        f"  {tower} {row['name']:12s} {row['milliseconds']:8.1f} ms"
                        f"  worst cosine {row['worst_cosine']:.5f}  {row['size'] / 1e6:6.1f} MB"
                    )


if __name__ == "__main__":
    main()
