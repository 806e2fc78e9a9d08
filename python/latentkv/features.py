"""What a reader knows of a token without being sent it: rows of its embedding, cut to their leading dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .cache import LoadedModel
from .statistics import decoder_layers


@dataclass(frozen=True)
class Prediction:
    """What a group is predicted from. Each part pays for itself (docs/performance.md, bench/prediction.py)."""

    dims: int = 192  # Of each token. Most of what predicts survives in 128; 192 take 9 MB at a vocabulary of 49152.
    history: int = 2  # A token and the one before it; 0: no token.
    inherited: int = 128  # Leading latents of each group before: 64 gain 5 % less, and each costs a row a group.


@dataclass
class Embedding:
    """int8 values as float [vocabulary, dims]: the features of a token are its row and those of the tokens before.

    `history` rows altogether, none if that is 0.
    """

    rows: torch.Tensor
    history: int

    def features(self, tokens: Sequence[int]) -> torch.Tensor:
        """[tokens, history * dims]; the first tokens of a sequence miss the rows before them."""
        if self.history == 0:
            return torch.zeros(len(tokens), 0, device=self.rows.device)
        own = self.rows[torch.tensor(list(tokens), device=self.rows.device)]
        parts = [own]
        for back in range(1, self.history):
            parts.append(torch.cat([torch.zeros_like(own[:back]), own[:-back]]) if len(own) > back else own * 0)
        return torch.cat(parts, dim=1)


def make_embedding(model: LoadedModel, documents: Sequence[Sequence[int]], prediction: Prediction) -> Embedding:
    """The principal dimensions of what the first layer reads, each token weighted by how often it occurs."""
    table = model.model.get_input_embeddings().weight.float()
    norm = getattr(decoder_layers(model)[0], "input_layernorm", None)
    with torch.inference_mode():
        rows = norm(table) if norm is not None else torch.nn.functional.normalize(table, dim=1)
    counts = torch.bincount(
        torch.tensor([token for tokens in documents for token in tokens], device=rows.device), minlength=rows.shape[0]
    )
    share = (counts + 0.05)[:, None].float()  # Tokens that the text lacks still count for a little.
    rows = rows - (rows * share).sum(0) / share.sum()
    vectors = torch.linalg.eigh(((rows * share).T @ rows / share.sum()).double()).eigenvectors
    leading = rows @ vectors.flip(1)[:, : prediction.dims].float()
    scale = leading.abs().amax(0).clamp_min(1e-30) / 127
    return Embedding((leading / scale).round(), prediction.history)
