"""What a reader knows of a token without being sent it: rows of its embedding, cut to their leading dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .cache import LoadedModel
from .statistics import decoder_layers

DIMS = 192  # Most of what predicts survives in 128 dimensions; 192 cost 9 MB of basis at a vocabulary of 49152.
HISTORY = 2  # A token and the one before it.


@dataclass
class Embedding:
    """int8 values as float [vocabulary, dims]: the features of a token are its row and those of the tokens before."""

    rows: torch.Tensor
    history: int

    def features(self, tokens: Sequence[int]) -> torch.Tensor:
        """[tokens, history * dims]; the first tokens of a sequence miss the rows before them."""
        own = self.rows[torch.tensor(list(tokens), device=self.rows.device)]
        parts = [own]
        for back in range(1, self.history):
            parts.append(torch.cat([torch.zeros_like(own[:back]), own[:-back]]) if len(own) > back else own * 0)
        return torch.cat(parts, dim=1)


def make_embedding(model: LoadedModel, documents: Sequence[Sequence[int]]) -> Embedding:
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
    leading = rows @ vectors.flip(1)[:, :DIMS].float()
    scale = leading.abs().amax(0).clamp_min(1e-30) / 127
    return Embedding((leading / scale).round(), HISTORY)
