"""The arithmetic of a basis in PyTorch, without frames: what the codec's is held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from latentkv.cache import SINK_TOKENS, LayerCache, LoadedModel, channels, from_channels
from latentkv.features import Embedding
from latentkv.solve import LIVE_RATIO, Group


def _latents(group: Group, rest: torch.Tensor, step: float) -> torch.Tensor:
    """[tokens, rank] whole numbers of what prediction leaves; those that the codec does not code are 0."""
    live = int((group.latent_scale >= LIVE_RATIO * step).sum())
    result = torch.zeros(rest.shape[0], group.rank, device=rest.device)
    result[:, :live] = torch.round(rest @ group.encoder[:, :live] / step)
    return result


def restore_cache(
    model: LoadedModel, groups: Sequence[Group], embedding: Embedding, tokens: Sequence[int], cache: LayerCache,
    step: float,
) -> tuple[LayerCache, list[float]]:  # fmt: skip
    """The cache through the groups' latents as the codec restores it, and the expected loss of each token.

    The sinks stay as they are and count for nothing.
    """
    result: LayerCache = []
    features = embedding.features(tokens)
    loss = torch.zeros(len(features) - SINK_TOKENS, device=model.device)
    inherited = torch.zeros(len(features), 0, device=model.device)
    leading_count = (groups[-1].decoder.shape[0] - groups[-1].rank) // max(1, len(groups) - 1)
    for group in groups:
        rows = channels(cache, model.layers, group.first_layer, group.last_layer)
        predicted = group.predict(features, inherited, step)
        latents = _latents(group, rows - predicted, step)
        latents[:SINK_TOKENS] = 0
        restored = predicted + group.row_scale * step * (latents @ group.decoder[: group.rank])
        restored[:SINK_TOKENS] = rows[:SINK_TOKENS]
        loss += ((rows - restored).square() @ group.sensitivity)[SINK_TOKENS:]
        result += from_channels(restored, model.layers, group.first_layer, group.last_layer)
        own = torch.zeros(len(features), leading_count, device=model.device)
        own[:, : min(leading_count, group.rank)] = latents[:, :leading_count]
        inherited = torch.cat([inherited, own], dim=1)
    return result, loss.tolist()
