"""What methods that work on the projections' weights share: the weights, their Fisher information, low-rank latents."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from ..cache import LayerCache, LoadedModel, rotate, rounded
from ..geometry import Layer
from ..statistics import attentions
from .base import NotApplicable, Prefix, SinksApart, Stored
from .quantize import affine

_FISHER_DOCUMENTS = 8
_FISHER_TOKENS = 512


@dataclass(frozen=True)
class Projection:
    """Makes the keys, or the values, of a layer: weight [channels, width], then a bias and a norm if it has them."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    norm: torch.nn.Module | None

    def finish(self, rows: torch.Tensor, layer: Layer) -> torch.Tensor:
        """[tokens, heads, head_dim], not rotated, of rows [tokens, channels] that the weight gave."""
        heads = (rows if self.bias is None else rows + self.bias).reshape(-1, layer.kv_heads, layer.head_dim)
        return heads if self.norm is None else self.norm(heads)


def projections(model: LoadedModel) -> list[tuple[Projection, Projection]]:
    """Of keys and values, for each layer; NotApplicable if they are made otherwise."""
    found = []
    for attention in attentions(model):
        pair = []
        for name in ("k", "v"):
            linear = getattr(attention, f"{name}_proj", None)
            if linear is None:
                raise NotApplicable(f"{type(attention).__name__} has no {name}_proj")
            pair.append(Projection(linear.weight, linear.bias, getattr(attention, f"{name}_norm", None)))
        found.append((pair[0], pair[1]))
    return found


def finished(
    rows: Sequence[tuple[torch.Tensor, torch.Tensor]],
    made_by: Sequence[tuple[Projection, Projection]],
    layers: Sequence[Layer],
    first: int,
) -> LayerCache:
    """The cache, from position `first` on, of what the weights of each layer gave for keys and for values."""
    cache = []
    for (keys, values), (key, value), layer in zip(rows, made_by, layers, strict=True):
        rotated = rotate(key.finish(keys, layer), layer, first, 1)
        cache.append((rounded(rotated, layer.dtype), rounded(value.finish(values, layer), layer.dtype)))
    return cache


def fisher(model: LoadedModel, documents: Sequence[Sequence[int]]) -> torch.Tensor:
    """[layers, 2]: the mean squared gradient of the loss in the weights that make keys, and values."""
    pairs = projections(model)
    weights = [one.weight for pair in pairs for one in pair]
    energy = torch.zeros(len(weights), dtype=torch.float64)
    every = max(1, len(documents) // _FISHER_DOCUMENTS)
    with torch.enable_grad():
        for weight in weights:
            weight.requires_grad_(True)
        try:
            for document in documents[::every][:_FISHER_DOCUMENTS]:
                ids = torch.tensor([list(document[:_FISHER_TOKENS])], device=model.device)
                logits = model.model(ids, use_cache=False).logits[0, :-1]
                loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
                gradients = torch.autograd.grad(loss, weights)
                energy += torch.stack([one.square().mean() for one in gradients]).double().cpu()
        finally:
            for weight in weights:
                weight.requires_grad_(False)
    return energy.reshape(-1, 2)


def ranks_by(share: float, importance: Sequence[float], full: int, multiple: int) -> list[int]:
    """Ranks that keep `share` of `full` on average, by importance, each a multiple and at most full.

    What the cap takes from the important ones goes to the others.
    """
    total, ranks = share * full * len(importance), [0.0] * len(importance)
    free = set(range(len(importance)))
    while free:
        weight = sum(importance[i] for i in free)
        left = total - sum(full for i in range(len(ranks)) if i not in free)
        for index in free:
            ranks[index] = left * importance[index] / weight
        over = {index for index in free if ranks[index] > full}
        if not over:
            break
        free -= over
        for index in over:
            ranks[index] = full
    return [min(full, max(multiple, round(rank / multiple) * multiple)) for rank in ranks]


@lru_cache(maxsize=512)
def _turn(rank: int, device: torch.device) -> torch.Tensor:
    """A random rotation, which spreads outliers over the latents; from a fixed seed, it costs no bytes."""
    generator = torch.Generator().manual_seed(rank)
    return torch.linalg.qr(torch.randn(rank, rank, generator=generator)).Q.to(device)


def quantized(latents: torch.Tensor, bits: int) -> tuple[torch.Tensor, int]:
    """Latents [tokens, rank] at 16 bits, or fewer with a scale and a least value a token: as restored, and bytes."""
    if bits == 16:
        return latents.bfloat16().float(), 2 * latents.numel()
    turn = _turn(latents.shape[1], latents.device)
    restored, size = affine(latents @ turn, bits, latents.shape[1])
    return restored @ turn.T, size


# Of one layer: orthonormal columns [channels, rank] of keys and of values.
Columns = tuple[torch.Tensor, torch.Tensor]


class Projected(SinksApart):
    """Stores the coordinates of what the projections give in some directions, the same for all tokens of a layer."""

    needs_hidden = True

    def __init__(self, model: LoadedModel) -> None:
        super().__init__(model)
        self._projections: list[tuple[Projection, Projection]] = []

    @abstractmethod
    def columns(self, setting: str) -> Sequence[Columns]:
        """Of every layer."""

    @abstractmethod
    def bits(self, setting: str) -> int:
        """Of a latent."""

    def basis_bytes(self, setting: str) -> int:
        return sum(2 * part.numel() for pair in self.columns(setting) for part in pair)

    def restore_body(self, body: Prefix, setting: str) -> Stored:
        rows, total = [], 0
        for hidden, made_by, columns in zip(body.hidden, self._projections, self.columns(setting), strict=True):
            pair = []
            for projection, own in zip(made_by, columns, strict=True):
                latents, size = quantized(hidden @ projection.weight.T @ own, self.bits(setting))
                pair.append(latents @ own.T)
                total += size
            rows.append((pair[0], pair[1]))
        return Stored(finished(rows, self._projections, self._model.layers, body.first), lambda: total)
