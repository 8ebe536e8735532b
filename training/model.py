"""The two towers: a small residual convolutional network for drawings, a small transformer for texts."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """The sizes of the model. `widths` are the channels after the stem and of the three stages."""

    dimensions: int = 256
    image_size: int = 64
    widths: tuple[int, int, int, int] = (32, 56, 112, 192)
    blocks: tuple[int, int, int] = (1, 2, 2)
    vocabulary: int = 8192
    context_length: int = 32
    text_width: int = 192
    text_heads: int = 4
    text_layers: int = 2

    def as_dict(self) -> dict[str, object]:
        """Plain data, for a checkpoint."""
        return asdict(self)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    """Two 3 x 3 convolutions around which the input is carried (He et al. 2015, https://arxiv.org/abs/1512.03385)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))
        nn.init.zeros_(self.second[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, h, w) -> the same."""
        return F.relu(x + self.second(self.first(x)))


class ImageTower(nn.Module):
    """(n, 3, 64, 64) -> (n, d). The mean and the maximum over the last 4 x 4 grid are both projected."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        stem, *widths = shape.widths
        layers: list[nn.Module] = [_convolution(3, stem, stride=2)]
        for before, width, blocks in zip(shape.widths, widths, shape.blocks, strict=False):
            layers += [_convolution(before, width, stride=2), *(Residual(width) for _ in range(blocks))]
        self.trunk = nn.Sequential(*layers)
        self.project = nn.Linear(2 * widths[-1], shape.dimensions, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (n, 3, h, w) float32 -> embedding (n, d), not of unit length."""
        grid = self.trunk(pixels)
        return self.project(torch.cat([grid.mean((2, 3)), grid.amax((2, 3))], dim=1))


class Layer(nn.Module):
    """A transformer layer, normalised first, whose attention skips padding."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.before_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """x: (n, length, width); hidden: (n, 1, 1, length), a large negative number where there is padding."""
        rows, length, width = x.shape
        parts = self.query_key_value(self.before_attention(x)).view(rows, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.transpose(-1, -2) * (width // self.heads) ** -0.5 + hidden
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(rows, length, width)
        x = x + self.out(mixed)
        return x + self.mlp(self.before_mlp(x))


class TextTower(nn.Module):
    """(n, length) token ids and mask -> (n, d): the mean over the tokens that are not padding, projected."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.text_width)
        self.positions = nn.Parameter(torch.zeros(shape.context_length, shape.text_width))
        self.layers = nn.ModuleList(Layer(shape.text_width, shape.text_heads) for _ in range(shape.text_layers))
        self.norm = nn.LayerNorm(shape.text_width)
        self.project = nn.Linear(shape.text_width, shape.dimensions, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.05)
        nn.init.normal_(self.positions, std=0.01)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids, attention_mask: (n, length) int64 -> embedding (n, d), not of unit length."""
        return self.encode(self.tokens(input_ids), attention_mask)

    def encode(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        """The same from the embeddings of the tokens, (n, length, width)."""
        mask = attention_mask.to(x.dtype)
        hidden = (mask - 1.0)[:, None, None, :] * 1e4
        x = x + self.positions[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, hidden)
        x = self.norm(x) * mask[:, :, None]
        return self.project(x.sum(1) / mask.sum(1, keepdim=True).clamp(min=1.0))


class DualEncoder(nn.Module):
    """Both towers, the learned scale of their cosines, and one prototype per class that only training uses."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        self.image = ImageTower(shape)
        self.text = TextTower(shape)
        self.log_scale = nn.Parameter(torch.tensor(16.0).log())
        # Short, so that a step of the optimiser turns them far enough.
        self.prototypes = nn.Parameter(torch.randn(classes, shape.dimensions) * 0.06)
