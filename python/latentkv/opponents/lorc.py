"""LoRC, low-rank compression of the weights that make keys and values, with progressive ranks (arXiv 2410.03111).

As described: each layer's W = U S V^T is cut to its leading singular values, the latent U^T W x is stored and keys are
rotated after they are rebuilt. Ranks fall from the first layer to the last with the logarithm of the product of the
condition numbers of this layer's and all later weights.

Open, and chosen for the method: nothing is said of a quantizer, so latents have 16 bits (bfloat16 as the cache); the
largest and the smallest rank are shares of the full rank, of which the third pair is the paper's operating point (55 to
60 % removed). Without a window, but with raw sinks, of
which the paper says nothing: they halve SmolLM2's
divergence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .base import Calibration
from .weights import Columns, Projected, projections

SHARES = ((1.0, 0.8), (0.9, 0.5), (0.6, 0.25), (0.4, 0.1))  # Of the full rank: first layer, last layer.


class Lorc(Projected):
    """A setting is the share of the full rank in the first and in the last layer."""

    name = "LoRC"

    def fit(self, calibration: Calibration) -> None:
        del calibration  # The weights are all that it looks at.
        self._projections = projections(self._model)
        self._factors = [tuple(torch.linalg.svd(p.weight, full_matrices=False) for p in q) for q in self._projections]
        self._progress = progress([tuple(factor.S for factor in pair) for pair in self._factors])

    def settings(self) -> Sequence[str]:
        return [f"{first:g} to {last:g}" for first, last in SHARES]

    def bits(self, setting: str) -> int:
        del setting
        return 16

    def columns(self, setting: str) -> Sequence[Columns]:
        first, last = map(float, setting.split(" to "))
        result = []
        for pair, place in zip(self._factors, self._progress, strict=True):
            own = []
            for factor in pair:
                rank = max(1, round(len(factor.S) * (first - place * (first - last))))
                own.append(factor.U[:, :rank])
            result.append((own[0], own[1]))
        return result


def progress(singular: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
    """For each layer where its rank lies between the largest (0, for the first) and the smallest (1, the last)."""
    logs = [sum((one[0] / one[-1].clamp_min(1e-12)).log().item() for one in pair) for pair in singular]
    products = [sum(logs[layer:]) for layer in range(len(logs))]
    spread = max(products) - min(products)
    return [(max(products) - one) / spread if spread else 0.0 for one in products]
