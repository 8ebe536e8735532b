"""The models that can be installed by name: plain data, one row each.

Sizes are those of the fp32 downloads; `auto` also downloads the int8 files, to compare them. The names and sizes were
read from the repositories' pages. Revisions are not pinned here: an install records its commit.
"""

from __future__ import annotations

from dataclasses import dataclass

from datasette_vision.models.tasks import DUAL_ENCODER, IMAGE_CLASSIFICATION

# exp(4.6052) = 100: CLIP's learnt temperature is clipped there, "to prevent scaling the logits by more than 100"
# (Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 2.5), and OpenAI's models reached it.
CLIP_LOGIT_SCALE = 100.0


@dataclass(frozen=True)
class CatalogRow:
    """A model: its source on the hub, and what a person needs to choose it.

    `source` holds ONNX graphs, unless `bakes` says that it holds PyTorch weights to export. `text_source` holds the
    text tower if that is in another repository. `original` is the PyTorch repository of the same weights.
    """

    name: str
    source: str
    original: str
    licence: str
    megabytes: int
    dimensions: int
    description: str
    task: str = DUAL_ENCODER
    text_source: str | None = None
    bakes: bool = False
    logit_scale: float | None = None
    logit_bias: float | None = None
    context_length: int | None = None


CATALOG = (
    CatalogRow(
        name="clip",
        source="Xenova/clip-vit-base-patch32",
        original="openai/clip-vit-base-patch32",
        licence="MIT",
        megabytes=606,
        dimensions=512,
        description="OpenAI CLIP ViT-B/32, the model of llm-clip: search photographs in English",
        logit_scale=CLIP_LOGIT_SCALE,
    ),
    CatalogRow(
        name="clip-b16",
        source="Xenova/clip-vit-base-patch16",
        original="openai/clip-vit-base-patch16",
        licence="MIT",
        megabytes=599,
        dimensions=512,
        description="OpenAI CLIP ViT-B/16: sees smaller details than clip, at four times the cost",
        logit_scale=CLIP_LOGIT_SCALE,
    ),
    CatalogRow(
        name="clip-l14",
        source="Xenova/clip-vit-large-patch14",
        original="openai/clip-vit-large-patch14",
        licence="MIT",
        megabytes=1711,
        dimensions=768,
        description="OpenAI CLIP ViT-L/14: the best of the three, and the slowest",
        logit_scale=CLIP_LOGIT_SCALE,
    ),
    CatalogRow(
        name="siglip2",
        source="onnx-community/siglip2-base-patch16-224-ONNX",
        original="google/siglip2-base-patch16-224",
        licence="Apache-2.0",
        megabytes=1537,
        dimensions=768,
        description="SigLIP 2 base: better than a CLIP of its size, in many languages",
        # exp(4.724453) and the bias of the published weights.
        logit_scale=112.668902,
        logit_bias=-16.771725,
    ),
    CatalogRow(
        name="mobileclip",
        source="Xenova/mobileclip_s1",
        original="apple/MobileCLIP-S1",
        licence="Apple's own",
        megabytes=340,
        dimensions=512,
        description="MobileCLIP-S1: as good as CLIP ViT-B/16 with the smallest image tower",
        logit_scale=CLIP_LOGIT_SCALE,
    ),
    CatalogRow(
        name="clip-multilingual",
        source="Xenova/clip-vit-base-patch32",
        text_source="canavar/clip-ViT-B-32-multilingual-v1-ONNX",
        original="sentence-transformers/clip-ViT-B-32-multilingual-v1",
        licence="MIT and Apache-2.0",
        megabytes=893,
        dimensions=512,
        description="clip with a text tower for over 50 languages; searches embeddings of clip",
        logit_scale=CLIP_LOGIT_SCALE,
        # max_seq_length of the sentence-transformers model that it was exported from.
        context_length=128,
    ),
    CatalogRow(
        name="resnet-50",
        source="Xenova/resnet-50",
        original="microsoft/resnet-50",
        licence="Apache-2.0",
        megabytes=102,
        dimensions=1000,
        description="ResNet-50 v1.5: the 1,000 classes of ImageNet, small and fast",
        task=IMAGE_CLASSIFICATION,
    ),
    CatalogRow(
        name="vit-base",
        source="Xenova/vit-base-patch16-224",
        original="google/vit-base-patch16-224",
        licence="Apache-2.0",
        megabytes=347,
        dimensions=1000,
        description="ViT-B/16: the 1,000 classes of ImageNet, more accurate",
        task=IMAGE_CLASSIFICATION,
    ),
    CatalogRow(
        name="food101",
        source="nateraw/food",
        original="nateraw/food",
        licence="Apache-2.0",
        megabytes=344,
        dimensions=101,
        description="ViT-B/16 on Food-101: names 101 dishes; needs the extra `bake`",
        task=IMAGE_CLASSIFICATION,
        bakes=True,
    ),
    CatalogRow(
        name="nsfw",
        source="AdamCodd/vit-base-nsfw-detector",
        original="AdamCodd/vit-base-nsfw-detector",
        licence="Apache-2.0",
        megabytes=345,
        dimensions=2,
        description="ViT-B/16 at 384 pixels: whether an image is safe for work",
        task=IMAGE_CLASSIFICATION,
    ),
)


def catalog_row(name: str) -> CatalogRow | None:
    """Return the row of this name."""
    return next((row for row in CATALOG if row.name == name), None)
