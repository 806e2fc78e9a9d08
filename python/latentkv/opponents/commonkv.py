"""CommonKV, one latent for keys and values of neighbouring layers, merged where layers agree (arXiv 2508.16134).

As described: the weights that make keys and values of a group of layers, stacked, = U S V^T; the latent of a token in a
layer is S^1/2 V^T x, cut to a rank; keys and values of every layer of the group are rebuilt from it. A token's latents
of the group are replaced by their weighted mean, weights by Fisher information, but for the share of tokens and groups
whose first and last layer agree least (cosine), found over the whole prefix, and for the 4 sinks. Keys are rotated
after they are rebuilt. Ranks by Fisher information over the groups.

Open, and chosen for the method:

- Groups of four layers, as published, and of two, which lose less.
- Sinks are stored as they are: as latents of a cut rank they ruin a prefix. Else what is not merged is stored as
  latents or, where that takes no more bytes, as the keys and values themselves, which then are exact.
- The 128 newest tokens, not merged in the paper, are treated like the others.
- A bit a token and group says what is merged. Latents have 16 bits, or 4 with a scale a token after a random rotation
  (the paper quantizes on top and gives no figures of that alone).
- The published code ranks by numbers for one model, whose origin is not told; Fisher information of the loss in the
  weights, as the paper's text has it, is computed anew here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..cache import LoadedModel
from .base import Calibration, NotApplicable, Prefix, SinksApart, Stored, value_bytes
from .weights import finished, fisher, projections, quantized, ranks_by

_RANK_MULTIPLE = 32


@dataclass(frozen=True)
class Setting:
    """Layers a group, rank over the width of the model, share of tokens and groups not merged, bits of a latent."""

    layers: int
    rank: float
    apart: float
    bits: int = 16

    def __str__(self) -> str:
        bits = "" if self.bits == 16 else f", {self.bits} bit"
        return f"{self.layers} layers, rank {self.rank:g}, {self.apart:g} apart{bits}"


SETTINGS = (
    Setting(2, 0.9, 0.4), Setting(2, 0.7, 0.4), Setting(2, 0.7, 0.0), Setting(4, 0.8, 0.4), Setting(4, 0.7, 0.2),
    Setting(4, 0.6, 0.0), Setting(2, 0.9, 0.4, 4), Setting(2, 0.7, 0.0, 4),
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Layers that share latents, the two factors of their weights, whole, and the weights of the mean."""

    first: int
    last: int
    encode: torch.Tensor  # [rank, width]
    decode: torch.Tensor  # [2 * channels * layers, rank]: for each layer keys, then values.
    merge: torch.Tensor  # [layers]


class CommonKv(SinksApart):
    """The method."""

    name = "CommonKV"
    needs_hidden = True

    def __init__(self, model: LoadedModel, settings: Sequence[Setting] = SETTINGS) -> None:
        super().__init__(model)
        self._settings = {str(setting): setting for setting in settings}
        self._groups: dict[int, list[Group]] = {}
        self._ranks: dict[str, list[int]] = {}

    def fit(self, calibration: Calibration) -> None:
        self._projections = projections(self._model)
        if len({pair[0].weight.shape for pair in self._projections}) > 1:
            raise NotApplicable("its layers' keys have different widths")
        importance = fisher(self._model, calibration.documents).sum(1)
        for size in {setting.layers for setting in self._settings.values()}:
            self._groups[size] = self._solve(size, importance)
        for name, setting in self._settings.items():
            groups = self._groups[setting.layers]
            energy = [importance[one.first : one.last].sum().item() for one in groups]
            full = groups[0].encode.shape[0]
            share = min(1.0, setting.rank * groups[0].encode.shape[1] / full)
            ranks = ranks_by(share, energy, full, _RANK_MULTIPLE)
            self._ranks[name] = [min(rank, one.encode.shape[0]) for rank, one in zip(ranks, groups, strict=True)]

    def _solve(self, size: int, importance: torch.Tensor) -> list[Group]:
        groups = []
        for first in range(0, len(self._projections), size):
            last = min(first + size, len(self._projections))
            stacked = torch.cat([one.weight for pair in self._projections[first:last] for one in pair])
            u, s, v = torch.linalg.svd(stacked, full_matrices=False)
            merge = (importance[first:last] / importance[first:last].sum()).float().to(u.device)
            groups.append(Group(first, last, s.sqrt()[:, None] * v, u * s.sqrt(), merge))
        return groups

    def settings(self) -> Sequence[str]:
        return list(self._settings)

    def layers_of(self, setting: str) -> int:
        return self._settings[setting].layers

    def basis_bytes(self, setting: str) -> int:
        groups = self._groups[self._settings[setting].layers]
        pairs = zip(groups, self._ranks[setting], strict=True)
        return sum(2 * rank * (group.encode.shape[1] + group.decode.shape[0]) for group, rank in pairs)

    def restore_body(self, body: Prefix, setting: str) -> Stored:
        chosen = self._settings[setting]
        groups = self._groups[chosen.layers]
        latents = []
        for group, rank in zip(groups, self._ranks[setting], strict=True):
            hidden = torch.stack(body.hidden[group.first : group.last])
            latents.append(hidden @ group.encode[:rank].T)
        apart = least_alike(latents, chosen.apart)
        rows, total = [], len(groups) * -(-len(body) // 8)
        raw: list[torch.Tensor] = []
        for group, own, lone in zip(groups, latents, apart, strict=True):
            merged, size = quantized((group.merge[:, None, None] * own[:, ~lone]).sum(0), chosen.bits)
            own[:, ~lone] = merged[None]
            total += size + self._store_apart(own, lone, group, chosen.bits)
            decoded = own @ group.decode[:, : own.shape[2]].reshape(len(own), -1, own.shape[2]).transpose(1, 2)
            rows += [tuple(one.chunk(2, dim=1)) for one in decoded]
            raw += [lone & self._stored_raw(group, own.shape[2], chosen.bits)] * len(own)
        cache = finished(rows, self._projections, self._model.layers, body.first)
        for pair, exact, is_raw in zip(cache, body.cache, raw, strict=True):
            for part, values in zip(pair, exact, strict=True):
                part[is_raw] = values[is_raw]
        return Stored(cache, lambda: total)

    def _stored_raw(self, group: Group, rank: int, bits: int) -> bool:
        layers = group.last - group.first
        return layers * rank * bits >= 8 * value_bytes(self._model.layers) * group.decode.shape[0]

    def _store_apart(self, own: torch.Tensor, lone: torch.Tensor, group: Group, bits: int) -> int:
        """Quantizes in place what is not merged; its bytes."""
        if self._stored_raw(group, own.shape[2], bits):
            return int(lone.sum()) * value_bytes(self._model.layers) * group.decode.shape[0]
        restored, size = quantized(own[:, lone].flatten(0, 1), bits)
        own[:, lone] = restored.reshape(len(own), -1, own.shape[2])
        return size


def least_alike(latents: Sequence[torch.Tensor], share: float) -> list[torch.Tensor]:
    """Of each group the tokens that are not merged: the share of all whose first and last layer differ most.

    latents: of each group [layers, tokens, rank].
    """
    alike = torch.stack([torch.nn.functional.cosine_similarity(own[0], own[-1], dim=-1) for own in latents])
    apart = torch.zeros_like(alike, dtype=torch.bool)
    count = int(share * alike.numel())
    if count:
        apart.view(-1)[alike.flatten().argsort()[:count]] = True
    return list(apart)
