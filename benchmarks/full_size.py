"""Install models of full size, with random weights, from every kind of source, and compare each with its original.

python -m benchmarks.full_size [--clip FOLDER] [--precision fp32] [CASE …]

Needs the extra `bake`; about eight minutes for everything on two idle cores. A case is made, installed (fp32, and as
`auto` chooses), verified, and asked about 24 image files of different shapes and modes and 44 texts; the originals are
transformers' or sentence-transformers' own processors, tokenizers and models. It fails when fp32 is not the original
but for rounding (cosine 0.99999, norms within 0.1 %), or a quantised model's cosine is below 0.99.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from benchmarks import image_files
from datasette_vision.bake.bake import bake
from datasette_vision.bake.original import quiet
from datasette_vision.config.settings import Config
from datasette_vision.engine.vision import Vision
from datasette_vision.install import prove, samples, trial
from datasette_vision.install.install import Installer
from datasette_vision.install.requests import Request
from datasette_vision.vectors import embedding as vectors
from tests import tinytorch

TEXTS = (*samples.SAMPLE_TEXTS, "<|startoftext|> and <|endoftext|>", "tabs\tand\nlines", "x" * 500, "İstanbul ŒUVRE ẞ")
QUANTISED_COSINE = 0.99

Encode = Callable[[Any], np.ndarray]


@dataclass
class Case:
    """A source as a user has it, and what the model in it answers by its own code: an embedding, or centred logits."""

    source: Path
    image: Callable[[Image.Image], np.ndarray]
    text: Callable[[str], np.ndarray] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    precisions: Sequence[str] = ("fp32", "auto")


def of_transformers(folder: Path, **padding: Any) -> tuple[Encode, Encode]:
    """Return the original's way with an image and with a text."""
    with quiet():
        model = transformers.AutoModel.from_pretrained(folder).eval()
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def image(picture: Image.Image) -> np.ndarray:
        with torch.no_grad():
            return model.get_image_features(**processor(picture, return_tensors="pt")).pooler_output[0].numpy()

    def text(string: str) -> np.ndarray:
        inputs = tokenizer(string, truncation=True, return_tensors="pt", **padding)
        with torch.no_grad():
            return model.get_text_features(input_ids=inputs["input_ids"]).pooler_output[0].numpy()

    return image, text


def of_classifier(folder: Path) -> Encode:
    with quiet():
        model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")

    def image(picture: Image.Image) -> np.ndarray:
        with torch.no_grad():
            # Processors of classifiers expect three channels, which transformers' own pipelines give them.
            logits = model(**processor(picture.convert("RGB"), return_tensors="pt")).logits[0].numpy()
        return logits - logits.mean()

    return image


class Sources:
    """Makes the sources, each in a folder of its own. CLIP is the one given, or one of random weights."""

    def __init__(self, work: Path, clip: Path | None) -> None:
        self.work = work
        self._clip = clip

    def folder(self, name: str) -> Path:
        folder = self.work / name
        folder.mkdir(parents=True)
        return folder

    def clip_folder(self) -> Path:
        """CLIP ViT-B/32; where none was given, with the tokenizer of the tests."""
        if self._clip is None:
            self._clip = self.folder("clip-vit-base-patch32")
            tokenizer = tinytorch.clip_tokenizer()
            tokenizer.model_max_length = 77
            ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1}
            config = transformers.CLIPConfig(text_config=ends)
            tinytorch.spread(transformers.CLIPModel(config)).save_pretrained(self._clip)
            tokenizer.save_pretrained(self._clip)
            tinytorch.CLIPImageProcessorPil().save_pretrained(self._clip)
        return self._clip

    def clip_of_transformers(self) -> Case:
        folder = self.clip_folder()
        return Case(folder, *of_transformers(folder, max_length=77))

    def clip_of_sentence_transformers(self) -> Case:
        from sentence_transformers import SentenceTransformer

        folder = tinytorch.make_sentence_transformer(self.work / "sentence-transformers", self.clip_folder())
        original = SentenceTransformer(str(folder))
        return Case(folder, original.encode, original.encode)

    def siglip(self) -> Case:
        """SigLIP base, its tokenizer the tiny one of the tests: random embeddings know no words."""
        folder = tinytorch.make_siglip(self.work / "siglip")
        ends = {"pad_token_id": 1, "eos_token_id": 1, "bos_token_id": 2}
        config = transformers.SiglipConfig(text_config={"vocab_size": 32000, **ends})
        model = tinytorch.spread(transformers.SiglipModel(config))
        with torch.no_grad():
            model.logit_scale.fill_(4.7)
            model.logit_bias.fill_(-12.9)
        model.save_pretrained(folder)
        tinytorch.SiglipImageProcessorPil(size={"height": 224, "width": 224}).save_pretrained(folder)
        return Case(folder, *of_transformers(folder, padding="max_length", max_length=64))

    def vit(self) -> Case:
        folder = self.folder("vit")
        labels = {number: f"class {number}" for number in range(1000)}
        config = transformers.ViTConfig(id2label=labels)
        tinytorch.spread(transformers.ViTForImageClassification(config)).save_pretrained(folder)
        tinytorch.ViTImageProcessorPil().save_pretrained(folder)
        return Case(folder, of_classifier(folder))

    def resnet(self) -> Case:
        folder = self.folder("resnet")
        labels = {number: f"class {number}" for number in range(1000)}
        config = transformers.ResNetConfig(id2label=labels)
        tinytorch.spread(transformers.ResNetForImageClassification(config)).save_pretrained(folder)
        tinytorch.ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=0.875).save_pretrained(folder)
        return Case(folder, of_classifier(folder))

    def xenova(self) -> Case:
        """The ONNX towers of a CLIP, with quantised ones, as they stand on the hub: no torch to install them."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        clip = self.clip_folder()
        folder = self.folder("xenova")
        (folder / "onnx").mkdir()
        for name in ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(clip / name, folder / name)
        with quiet():
            vision = transformers.CLIPVisionModelWithProjection.from_pretrained(clip, attn_implementation="eager")
            text = transformers.CLIPTextModelWithProjection.from_pretrained(clip, attn_implementation="eager")
        towers = (
            (vision, "vision_model", "pixel_values", torch.zeros(1, 3, 224, 224), {0: "n"}, "image_embeds"),
            (text, "text_model", "input_ids", torch.full((1, 9), 5), {0: "n", 1: "length"}, "text_embeds"),
        )
        for module, name, given, example, axes, answer in towers:
            path = folder / "onnx" / f"{name}.onnx"
            export(_First(module.eval()), path, given, example, axes, answer)
            # As published: a scale a tensor, one for the whole of the activations.
            quantize_dynamic(path, path.with_stem(f"{name}_quantized"), weight_type=QuantType.QUInt8)
        return Case(folder, *of_transformers(clip, max_length=77))

    def bare_graph(self) -> Case:
        """One .onnx file of a classifier, with a file of labels and the settings of its preprocessing."""
        folder = self.folder("bare")
        config = transformers.ResNetConfig(num_labels=1000)
        model = tinytorch.spread(transformers.ResNetForImageClassification(config))
        model.save_pretrained(folder)
        tinytorch.ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=0.875).save_pretrained(folder)
        graph = self.folder("graph")
        export(_Logits(model), graph / "orchids.onnx", "input", torch.zeros(1, 3, 224, 224), {0: "batch"}, "scores")
        (graph / "labels.txt").write_text("".join(f"orchid {number}\n" for number in range(1000)))
        options = {
            "task": "image-classification",
            "labels": graph / "labels.txt",
            "preprocess": str(folder / "preprocessor_config.json"),
        }
        return Case(graph / "orchids.onnx", of_classifier(folder), None, options, ("fp32",))


CASES: dict[str, Callable[[Sources], Case]] = {
    "clip-transformers": Sources.clip_of_transformers,
    "clip-sentence-transformers": Sources.clip_of_sentence_transformers,
    "siglip": Sources.siglip,
    "vit": Sources.vit,
    "resnet": Sources.resnet,
    "xenova-onnx": Sources.xenova,
    "bare-onnx": Sources.bare_graph,
}


class _First(torch.nn.Module):
    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.module(given)[0]


class _Logits(_First):
    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.module(given).logits


def export(
    module: torch.nn.Module, path: Path, given: str, example: torch.Tensor, axes: dict[int, str], answer: str
) -> None:
    """Write a graph as exporters outside of this project do."""
    dynamic = {given: axes, answer: {0: "n"}}
    with torch.no_grad(), quiet():
        torch.onnx.export(
            module,
            (example,),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=[given],
            output_names=[answer],
            dynamic_axes=dynamic,
        )


def check(name: str, case: Case, precision: str, models: Path) -> bool:
    """Install a case, compare, print a line, and say whether it passed."""
    started = time.perf_counter()
    request = Request(str(case.source), name=name, precision=precision, force=True, **case.options)
    model = Installer(models, lambda line: None, bake).install(request).model
    seconds = time.perf_counter() - started
    trial.verify(model)
    vision = Vision(Config(models_dir=str(models), cache_mb=0))
    try:
        pairs = {"images": answers(vision, name, case)}
        if case.text is not None:
            pairs["texts"] = [(vision.embed_text(text, name, normalised=False), case.text(text)) for text in TEXTS]
    finally:
        vision.close()
    exact = model.manifest.precision == "fp32"
    line, passed = f"{name:27s} {precision:5s} {model.manifest.precision[:26]:27s} {seconds:5.0f} s", True
    for kind in ("images", "texts"):
        if kind not in pairs:
            continue
        cosines, norms = prove.compare(*(np.stack(side) for side in zip(*pairs[kind], strict=True)))
        norm = float(np.abs(norms - 1).max())
        line += f"  {len(cosines)} {kind}: cosine {cosines.min():.6f}, norms within {100 * norm:.3f} %"
        limit = prove.EXACT_COSINE if exact else QUANTISED_COSINE
        passed &= float(cosines.min()) >= limit and (not exact or norm <= prove.EXACT_NORM)
    print(line + ("" if passed else "  FAILED"), flush=True)
    return passed


def answers(vision: Vision, name: str, case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (ours, the original's) for every image file."""
    pairs = []
    for content in image_files.same().values():
        expected = case.image(Image.open(io.BytesIO(content)))
        if case.text is not None:
            pairs.append((vision.embed_image(content, name, normalised=False), expected))
            continue
        scores = vision.classify(content, name, k=None)
        assert abs(sum(float(entry["score"]) for entry in scores) - 1) < 1e-5  # of six digits each
        labels = [entry.label for entry in vision.store.find(name).manifest.labels]
        by_label = {entry["label"]: entry["score"] for entry in scores}
        # Back to the logits, up to what softmax forgets: what they are with random weights says nothing about scores.
        logits = np.log([float(by_label[label]) for label in labels])
        pairs.append((logits - logits.mean(), expected))
    return pairs


def differences(name: str, case: Case, models: Path) -> None:
    """Print how far we are from the original where we differ from it on purpose."""
    vision = Vision(Config(models_dir=str(models), cache_mb=0))
    try:
        for what, files in image_files.different().items():
            plain, ours = [], []
            for content, upright in files:
                theirs = vectors.normalise(case.image(Image.open(io.BytesIO(content))))
                wanted = vectors.normalise(case.image(upright))
                mine = vision.embed_image(content, name)
                plain.append(float(theirs @ wanted))
                ours.append(float(mine @ wanted))
            print(
                f"  {what:44s} cosine to the picture as people see it: ours {min(ours):.5f}, original {min(plain):.5f}"
            )
    finally:
        vision.close()


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--clip", type=Path, help="folder of a CLIP in transformers layout")
    parser.add_argument("--precision", choices=("fp32", "auto"), help="only this one")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"expected some of {', '.join(CASES)}, found {', '.join(sorted(unknown))}")
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        models = Path(temporary) / "models"
        sources = Sources(Path(temporary), options.clip)
        for name in options.cases or CASES:
            case = CASES[name](sources)
            for precision in case.precisions:
                if options.precision in (None, precision):
                    if not check(name, case, precision, models):
                        failed.append(f"{name} {precision}")
                    if (name, precision) == ("clip-transformers", "fp32"):
                        differences(name, case, models)
            shutil.rmtree(models / name)
    if failed:
        sys.exit(f"not as the original: {', '.join(failed)}")


if __name__ == "__main__":
    main()
