"""What a calibration measures of a model besides its cache: energies of its queries, and how much noise in each layer's
keys and values costs. Forward passes only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .cache import SINK_TOKENS, LayerCache, LoadedModel, divergence, rotate
from .geometry import PAIRING_NONE, Layer
from .progress import Progress

_NOISE = 0.3  # Standard deviations of a channel.
PROBE_BATCH = 6  # Caches with noise at a time.


class QueryEnergy:
    """Mean squares of the queries of every layer while it is attached, the sinks' tokens left out."""

    def __init__(self, model: LoadedModel) -> None:
        self._device = model.device
        self._sums = [torch.zeros(0)] * len(model.layers)
        self._count = self._tokens = 0
        self._handles = []
        for index, block in enumerate(decoder_layers(model)):
            attention = block.self_attn
            source = getattr(attention, "q_norm", None) or attention.q_proj
            self._handles.append(attention.q_proj.register_forward_hook(self._count_tokens))
            self._handles.append(source.register_forward_hook(self._hook(index, model.layers[index])))

    def _count_tokens(self, module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        del module, inputs
        self._tokens = output.shape[1]

    def _hook(self, index: int, layer: Layer):
        def record(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
            del module, inputs
            # [1, tokens, heads * dim], or heads apart behind a norm: before the tokens (Gemma 3) or after (Qwen 3).
            output = output if output.shape[1] == self._tokens else output.transpose(1, 2)
            queries = output.reshape(self._tokens, -1, layer.head_dim)[SINK_TOKENS:]
            total = queries.square().sum(0, dtype=torch.float64)
            self._sums[index] = total if self._sums[index].numel() == 0 else self._sums[index] + total
            self._count += queries.shape[0] if index == 0 else 0

        return record

    def state(self) -> dict[str, Any]:
        """What was recorded so far."""
        return {"sums": [total.cpu() for total in self._sums], "count": self._count}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self._sums = [total.to(self._device) for total in state["sums"]]
        self._count = state["count"]

    def detach(self) -> None:
        """Stops recording."""
        for handle in self._handles:
            handle.remove()

    def of(self, index: int, layer: Layer) -> torch.Tensor:
        """[kv_heads, head_dim]: averaged over rotary pairs, summed over the query heads that share a KV head."""
        energy = self._sums[index] / max(self._count, 1)
        energy = energy.reshape(layer.kv_heads, -1, layer.head_dim).sum(1)
        if layer.pairing != PAIRING_NONE:
            half = layer.rotary_dim // 2
            pair = (energy[:, :half] + energy[:, half : 2 * half]) / 2
            energy = torch.cat([pair, pair, energy[:, 2 * half :]], dim=1)
        return energy


def decoder_layers(model: LoadedModel) -> Sequence[torch.nn.Module]:
    """The transformer's blocks; ValueError if the model is not built the usual way."""
    decoder = model.model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if layers is None or not all(hasattr(getattr(block, "self_attn", None), "o_proj") for block in layers):
        name = type(model.model).__name__
        raise ValueError(f"{name} keeps its attention elsewhere than layers[i].self_attn: cannot calibrate")
    return layers


def value_energy(attention: torch.nn.Module, layer: Layer) -> torch.Tensor:
    """[kv_heads, head_dim]: squared column norms of the output projection, summed over the query heads."""
    columns = attention.o_proj.weight.double().square().sum(0)
    return columns.reshape(layer.kv_heads, -1, layer.head_dim).sum(1)


def sensitivities(
    model: LoadedModel,
    energy: QueryEnergy,
    probes: Sequence[tuple[LayerCache, Sequence[int]]],
    deviations: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each layer, of keys and of values: [kv_heads, head_dim] nats a token for each unit of squared error.

    The shape within a layer is closed form; its height is probed: noise on that layer's keys (or values) of a prefix,
    and what it does to the next tokens' distributions.
    """
    generator = torch.Generator().manual_seed(7)
    blocks = decoder_layers(model)
    shapes = [
        (
            energy.of(i, layer).float().to(model.device),
            value_energy(blocks[i].self_attn, layer).float().to(model.device),
        )
        for i, layer in enumerate(model.layers)
    ]
    targets = [(layer, part) for layer in range(len(model.layers)) for part in (0, 1)]
    cost = dict.fromkeys(targets, 0.0)
    progress = Progress("probing the layers", len(probes) * -(-len(targets) // PROBE_BATCH))
    for cache, following in probes:
        reference = model.logits_after(cache, following)
        for start in range(0, len(targets), PROBE_BATCH):
            batch = targets[start : start + PROBE_BATCH]
            noisy = [_with_noise(cache, model.layers, target, deviations, generator) for target in batch]
            loss = divergence(reference[None], model.logits_after_each(noisy, following)).mean(-1)
            for target, value in zip(batch, loss.tolist(), strict=True):
                cost[target] += value / len(probes)
            progress.step()
    result = []
    for index, pair in enumerate(shapes):
        noise = [(pair[part] * (_NOISE * deviations[index][part]).square()).sum() for part in (0, 1)]
        result.append(tuple(pair[part] * (max(cost[index, part], 1e-9) / noise[part]) for part in (0, 1)))
    return result


def _with_noise(
    cache: LayerCache,
    layers: Sequence[Layer],
    target: tuple[int, int],
    deviations: Sequence[tuple[torch.Tensor, torch.Tensor]],
    generator: torch.Generator,
) -> LayerCache:
    index, part = target
    pair = list(cache[index])
    noise = torch.randn(pair[part].shape, generator=generator).to(pair[part].device)
    noise = noise * _NOISE * deviations[index][part][None]
    noise[:SINK_TOKENS] = 0
    pair[part] = pair[part] + (rotate(noise, layers[index], 0, 1) if part == 0 else noise)
    return [*cache[:index], tuple(pair), *cache[index + 1 :]]
