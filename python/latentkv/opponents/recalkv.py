"""ReCalKV, low-rank latents of reordered key heads and calibrated values (arXiv 2505.24357).

As described: ranks by Fisher information over the layers; weights whitened by the Cholesky factor of the second moment
of what the projection reads; key heads grouped by their similarity (CKA), at most four together, each group with its
own SVD; values with one SVD a layer, its two factors then calibrated in turns by least squares; keys rotated after they
are rebuilt; optionally 4 or 3 bits a latent, a scale a token, after a random rotation.

Open, and chosen for the method:

- The whitening is by the symmetric root of the second moment, which gives the same directions as its Cholesky factor
  and always exists; sinks, whose activations would outweigh all others, are left out of it.
- A model with fewer than four key heads has one group; groups take as many heads as are left.
- The calibration in turns changes nothing here: a whitened SVD already is the optimum of the same error (a test shows
  that a turn keeps it), so it is not run.
- The rotation is a random orthogonal matrix where the paper has a randomized Hadamard one, whose size must be a power
  of 2. Latents have orthonormal rows to rebuild from, so that what quantizing adds is not amplified.
- No window, which the paper does not have either; raw sinks, of which it says nothing: they leave a fifth to a
  half of SmolLM2's divergence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..cache import SINK_TOKENS
from .base import Calibration
from .weights import Columns, Projected, fisher, projections, ranks_by

SETTINGS = {"0.7": 16, "0.5": 16, "0.3": 16, "0.7, 4 bit": 4, "0.5, 4 bit": 4, "0.5, 3 bit": 3, "0.3, 4 bit": 4}
_GROUP_HEADS = 4
_RANK_MULTIPLE = 8


class ReCalKv(Projected):
    """A setting is the share of the rank that is kept, and the bits of a latent."""

    name = "ReCalKV"

    def fit(self, calibration: Calibration) -> None:
        self._projections = projections(self._model)
        moments = self._moments(calibration)
        self._importance = fisher(self._model, calibration.documents)
        self._groups = []
        for pair, moment, layer in zip(self._projections, moments, self._model.layers, strict=True):
            whitened = [(one.weight.double() @ whitener(moment)).float() for one in pair]
            heads = whitened[0].reshape(layer.kv_heads, layer.head_dim, -1)
            groups = grouped(similarity(heads), _GROUP_HEADS)
            rows = torch.arange(layer.kv_heads * layer.head_dim).reshape(layer.kv_heads, layer.head_dim)
            keys = [(rows[group].flatten(), _directions(heads[group].flatten(0, 1))) for group in groups]
            self._groups.append((keys, [(rows.flatten(), _directions(whitened[1]))]))
        self._columns = {share: self._cut(float(share)) for share in {_share(one) for one in SETTINGS}}

    def _moments(self, calibration: Calibration) -> list[torch.Tensor]:
        sums = [0.0] * len(self._projections)
        for prefix in calibration.prefixes(with_hidden=True):
            hidden = [rows[SINK_TOKENS:] for rows in prefix.hidden]
            sums = [total + (rows.T @ rows).double() for total, rows in zip(sums, hidden, strict=True)]
        return sums

    def _cut(self, share: float) -> list[Columns]:
        result: list[list[torch.Tensor]] = [[] for _ in self._groups]
        for part in (0, 1):
            full = self._projections[0][part].weight.shape[0]
            ranks = ranks_by(share, self._importance[:, part].tolist(), full, _RANK_MULTIPLE)
            for layer, rank in enumerate(ranks):
                blocks = []
                for rows, directions in self._groups[layer][part]:
                    own = max(1, round(rank * len(rows) / full))
                    block = torch.zeros(full, own, device=directions.device)
                    block[rows.to(directions.device)] = directions[:, :own]
                    blocks.append(block)
                result[layer].append(torch.cat(blocks, dim=1))
        return [(keys, values) for keys, values in result]

    def settings(self) -> Sequence[str]:
        return list(SETTINGS)

    def bits(self, setting: str) -> int:
        return SETTINGS[setting]

    def columns(self, setting: str) -> Sequence[Columns]:
        return self._columns[_share(setting)]


def _share(setting: str) -> str:
    return setting.split(",")[0]


def _directions(whitened: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svd(whitened, full_matrices=False).U


def whitener(moment: torch.Tensor) -> torch.Tensor:
    """The symmetric root of a second moment; what rounding made negative counts as nearly nothing."""
    energies, vectors = torch.linalg.eigh(moment)
    return (vectors * energies.clamp_min(1e-6 * energies.mean()).sqrt()) @ vectors.T


def similarity(heads: torch.Tensor) -> torch.Tensor:
    """[heads, heads]: linear CKA of heads [heads, head_dim, width], whose samples are the width's dimensions."""
    centred = heads - heads.mean(-1, keepdim=True)
    cross = torch.einsum("adx,bex->abde", centred, centred).square().sum((2, 3))
    own = cross.diagonal().sqrt()
    return cross / (own[:, None] * own[None])


def grouped(alike: torch.Tensor, size: int) -> list[list[int]]:
    """Heads in groups of at most `size`: the most similar pairs first, what is left fills up."""
    count = alike.shape[0]
    pairs = sorted(((alike[i, j].item(), i, j) for i in range(count) for j in range(i)), reverse=True)
    groups: list[list[int]] = []
    place: dict[int, list[int]] = {}
    groups_max = -(-count // size)
    for _, a, b in pairs:
        if a not in place and b not in place:
            if len(groups) < groups_max and size > 1:
                groups.append([a, b])
                place[a] = place[b] = groups[-1]
        elif (a in place) != (b in place):
            group, other = (place[a], b) if a in place else (place[b], a)
            if len(group) < size:
                group.append(other)
                place[other] = group
    for head in range(count):
        if head not in place:
            group = next((one for one in groups if len(one) < size), None)
            if group is None:
                groups.append(group := [])
            group.append(head)
            place[head] = group
    return groups
