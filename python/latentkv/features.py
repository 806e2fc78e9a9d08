"""What a reader knows of a token without being sent it: its row of a table, made from the model's embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .cache import LoadedModel
from .statistics import decoder_layers


@dataclass(frozen=True)
class Prediction:
    """What a group is predicted from. Each part pays for itself (docs/performance.md, bench/prediction.py)."""

    dims: int = 192  # Of each token: 9 MB at a vocabulary of 49152. 256 take 3 % more bytes away.
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
        return with_history(self.rows[torch.tensor(list(tokens), device=self.rows.device)], self.history)


def with_history(rows: torch.Tensor, history: int) -> torch.Tensor:
    """[tokens, history * dims]: each row and those before it, zeros where there are none."""
    parts = [rows]
    for back in range(1, history):
        parts.append(torch.cat([torch.zeros_like(rows[:back]), rows[:-back]]) if len(rows) > back else rows * 0)
    return torch.cat(parts, dim=1)


@dataclass
class Vocabulary:
    """What the first layer reads of every token, centred, and which dimensions say most of it in the text."""

    rows: torch.Tensor  # [vocabulary, width], of unit variance over the text.
    directions: torch.Tensor  # [width, width], principal ones first.

    @staticmethod
    def of(model: LoadedModel, documents: Sequence[Sequence[int]]) -> Vocabulary:
        """Each token counts as often as it occurs in the documents; those that do not occur, for a little."""
        table = model.model.get_input_embeddings().weight.float()
        norm = getattr(decoder_layers(model)[0], "input_layernorm", None)
        with torch.inference_mode():
            rows = norm(table) if norm is not None else torch.nn.functional.normalize(table, dim=1)
        counts = torch.bincount(
            torch.tensor([token for tokens in documents for token in tokens], device=rows.device),
            minlength=rows.shape[0],
        )
        share = (counts + 0.05)[:, None].float()
        share = share / share.sum()
        rows = rows - (rows * share).sum(0)
        rows = rows / (rows.square() * share).sum(0).mean().sqrt()
        vectors = torch.linalg.eigh(((rows * share).T @ rows).double()).eigenvectors
        return Vocabulary(rows, vectors.flip(1).float())

    def principal(self, prediction: Prediction) -> Embedding:
        """The leading dimensions."""
        return Embedding(as_int8(self.rows @ self.directions[:, : prediction.dims]), prediction.history)


def as_int8(rows: torch.Tensor) -> torch.Tensor:
    """Whole numbers of at most 127, a scale a column."""
    return (rows / (rows.abs().amax(0).clamp_min(1e-30) / 127)).round()
