"""Solves the groups of a basis: prediction from tokens and earlier groups, then the transform of what it leaves.

In units where every channel is scaled by the square root of its weight, a group's channels are regressed on the
features of the tokens and on the leading latents of the groups before; the latents are the principal components of the
residual. docs/formats/basis.md has the formula that a reader computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from .cache import SINK_TOKENS, LoadedModel, channels
from .features import Embedding

LIVE_RATIO = 0.229  # Mean magnitude over step below which the codec codes no latent (codec/latent_model.cc).
_RIDGE = 30.0  # Added to sums over the calibration text: what little text says about a token is not believed.
_CHUNK = 8192  # Tokens at a time.
_SAMPLE = 6000  # Tokens; three for each channel of a group of five layers of SmolLM2.


@dataclass
class Group:
    """One group's matrices; own latents in descending scale. Whole numbers of at most 127 in decoder and rows."""

    first_layer: int
    last_layer: int
    mean: torch.Tensor
    weight: torch.Tensor
    sensitivity: torch.Tensor
    feature_scale: torch.Tensor
    feature_rows: torch.Tensor  # [features, channels]
    row_scale: torch.Tensor
    decoder: torch.Tensor  # [rank + inherited, channels]
    latent_scale: torch.Tensor  # [rank]
    encoder: torch.Tensor  # [channels, rank]

    @property
    def rank(self) -> int:
        return self.latent_scale.shape[0]

    def state(self) -> dict[str, Any]:
        """What `restored` takes, in main memory."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        # Clones: a part of a tensor would be written with the whole.
        return {name: one.cpu().clone() if torch.is_tensor(one) else one for name, one in values.items()}

    @staticmethod
    def restored(state: dict[str, Any], device: torch.device) -> Group:
        """The group of a state, on a device."""
        return Group(**{name: one.to(device) if torch.is_tensor(one) else one for name, one in state.items()})

    def predict(self, features: torch.Tensor, inherited: torch.Tensor, step: float) -> torch.Tensor:
        """What is expected of the channels, from features and inherited latents."""
        base = self.mean + self.feature_scale * (features @ self.feature_rows)
        return base + self.row_scale * step * (inherited @ self.decoder[self.rank :])


class Corpus:
    """The calibration text: its tokens and their channels, un-rotated, in bfloat16 in main memory or mapped from files,
    each document as it was read, each layer by itself, so that a group touches no more than its own."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._layers: list[list[torch.Tensor]] = []
        self._tokens: list[Sequence[int]] = []
        self._begins = [0]  # Of the documents without their sinks, and the end.

    def read(self, tokens: Sequence[int]) -> dict[str, Any]:
        """One document's channels without its sinks, as `add` takes them."""
        cache, layers = self._model.prefill(tokens), self._model.layers
        rows = [channels(cache, layers, i, i + 1)[SINK_TOKENS:].to(torch.bfloat16).cpu() for i in range(len(layers))]
        return {"layers": [one.contiguous() for one in rows]}

    def add(self, tokens: Sequence[int], document: dict[str, Any]) -> None:
        """Takes the next document in."""
        self._layers.append(document["layers"])
        self._tokens.append(tokens)
        self._begins.append(len(self) + len(tokens) - SINK_TOKENS)

    def __len__(self) -> int:
        return self._begins[-1]

    def rows(self, start: int, layers: tuple[int, int]) -> torch.Tensor:
        """float [chunk, channels of these layers] on the model's device."""
        rows = [
            torch.cat([one[piece] for one in self._layers[document][slice(*layers)]], dim=1)
            for document, piece in self._pieces(start, start + _CHUNK, 1)
        ]
        return torch.cat(rows).to(self._model.device).float()

    def sample(self) -> torch.Tensor:
        """float [some thousand tokens spread over the text, channels]."""
        stride = max(1, len(self) // _SAMPLE)
        rows = [
            torch.cat([one[piece] for one in self._layers[document]], dim=1)
            for document, piece in self._pieces(0, len(self), stride)
        ]
        return torch.cat(rows).to(self._model.device).float()

    def features(self, start: int, embedding: Embedding) -> torch.Tensor:
        """float [chunk, features] on the model's device."""
        pieces = self._pieces(start, start + _CHUNK, 1)
        return torch.cat([embedding.features(self._tokens[i])[SINK_TOKENS:][piece] for i, piece in pieces])

    @property
    def texts(self) -> Sequence[Sequence[int]]:
        """The documents' tokens, sinks included."""
        return self._tokens

    def document(self, number: int) -> torch.Tensor:
        """float [tokens behind the sinks, channels] on the model's device."""
        return torch.cat(list(self._layers[number]), dim=1).to(self._model.device).float()

    def starts(self) -> Iterator[int]:
        """Where chunks begin."""
        return iter(range(0, len(self), _CHUNK))

    def _pieces(self, start: int, end: int, stride: int) -> Iterator[tuple[int, slice]]:
        """Where every stride-th token of [start, end) lies: documents and slices of them."""
        for document, (begin, after) in enumerate(zip(self._begins, self._begins[1:], strict=False)):
            first = max(start, begin) - begin
            first += -(begin + first - start) % stride
            last = min(end, after) - begin
            if first < last:
                yield document, slice(first, last, stride)


@dataclass
class _Moments:
    """Sums over the corpus of products of regressors X and weighted channels Y."""

    xx: torch.Tensor
    xy: torch.Tensor
    yy: torch.Tensor


def _moments(
    corpus: Corpus, layers: tuple[int, int], mean: torch.Tensor, root: torch.Tensor, regressors
) -> _Moments:
    sums = None
    for start in corpus.starts():
        x, y = regressors(start), (corpus.rows(start, layers) - mean) * root
        parts = [part.double() for part in (x.T @ x, x.T @ y, y.T @ y)]
        sums = parts if sums is None else [total + part for total, part in zip(sums, parts, strict=True)]
    return _Moments(*sums)


def ridge(xx: torch.Tensor, xy: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """[regressors, targets] of a regression, from sums of products over the text and each regressor's variance."""
    return torch.linalg.solve(xx + torch.diag(_RIDGE * spread), xy)


def _int8(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers of at most 127 and the scale of each column."""
    if matrix.shape[0] == 0:
        return matrix, torch.ones(matrix.shape[1], device=matrix.device)
    scale = matrix.abs().amax(0).clamp_min(1e-30) / 127
    return (matrix / scale).round(), scale


def solving_bytes(channels_of_group: int, regressors: int, all_channels: int) -> int:
    """The most memory that solving takes besides weights and text: sums of products in three copies and what is made of
    them, a chunk of the text and what it becomes, and the sample of all channels, as it is and centred."""
    squares = regressors**2 + regressors * channels_of_group + channels_of_group**2
    chunk = 4 * _CHUNK * (2 * regressors + 5 * channels_of_group)
    return 8 * (3 * squares + 4 * channels_of_group**2) + chunk + 8 * _SAMPLE * all_channels


def solve_group(
    corpus: Corpus,
    embedding: Embedding,
    layers: tuple[int, int],
    sensitivity: torch.Tensor,
    inherited: torch.Tensor,
    step: float,
    finest: float,
    leading_count: int,
) -> tuple[Group, torch.Tensor]:
    """The basis of one group, and its own leading latents on the corpus at `step`, [tokens, leading_count].

    `inherited` are those of the groups before, side by side. Latents that are not coded at `finest` are left out.
    """
    device = sensitivity.device
    weight = sensitivity.double().clamp_min(1e-12).float()
    root = weight.sqrt()
    mean = sum(corpus.rows(s, layers).double().sum(0) for s in corpus.starts()).float() / len(corpus)

    def regressors(start: int) -> torch.Tensor:
        earlier = inherited[start : start + _CHUNK].to(device).float() * step
        return torch.cat([corpus.features(start, embedding), earlier], dim=1)

    moments = _moments(corpus, layers, mean, root, regressors)
    features = moments.xx.shape[0] - inherited.shape[1]
    # In units of each regressor's variance; a latent that is hardly ever there gets that of one step in a thousand.
    spread = (moments.xx.diagonal() / len(corpus)).clamp_min(step * step / 1000)
    coefficients = ridge(moments.xx, moments.xy, spread)
    feature_rows, feature_scale = _int8(coefficients[:features].float() / root)
    coefficients[:features] = (feature_rows * feature_scale * root).double()

    def residual() -> torch.Tensor:
        cross = coefficients.T @ moments.xy
        return (moments.yy - cross - cross.T + coefficients.T @ moments.xx @ coefficients) / len(corpus)

    values, vectors = torch.linalg.eigh(residual().float())
    # Of a latent with this variance the mean magnitude is at most its root.
    kept = vectors.flip(1)[:, : max(8, int((values.sqrt() > LIVE_RATIO * finest).sum()))]
    exact = torch.cat([kept.T, coefficients[features:].float()]) / root
    decoder, row_scale = _int8(exact)
    rank = kept.shape[1]
    dense = (decoder[:rank] * row_scale).double()
    # The weighted least-squares inverse, as the codec forms it: the rounding of the decoder costs nothing it need not.
    weighted = (dense * weight.double()).T
    encoder = torch.linalg.solve(dense @ weighted, weighted.T).T.float()
    group = Group(
        *layers, mean, weight, sensitivity.float(), feature_scale, feature_rows, row_scale, decoder,
        torch.ones(rank, device=device), encoder,
    )  # fmt: skip
    sums = torch.zeros(rank, dtype=torch.float64, device=device)
    leading = []
    for start in corpus.starts():
        rows, earlier = corpus.rows(start, layers), inherited[start : start + _CHUNK].to(device).float()
        latents = (rows - group.predict(corpus.features(start, embedding), earlier, step)) @ encoder
        sums += latents.abs().sum(0, dtype=torch.float64)
        leading.append(torch.round(latents / step).to(torch.int16).cpu())
    scale = (sums / len(corpus)).float()
    order = scale.argsort(descending=True)
    order = order[: max(8, int((scale[order] >= LIVE_RATIO * finest).sum()))]
    group.latent_scale, group.encoder = scale[order], encoder[:, order]
    group.decoder = torch.cat([decoder[order], decoder[rank:]])
    chosen = torch.zeros(len(corpus), leading_count, dtype=torch.int16)
    first = order[:leading_count].cpu()
    chosen[:, : len(first)] = torch.cat([latents[:, first] for latents in leading])
    return group, chosen
