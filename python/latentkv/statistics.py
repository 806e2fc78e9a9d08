"""What a calibration measures of a model besides its cache: energies of its queries, and how much noise in each layer's
keys and values costs. Forward passes only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .cache import SINK_TOKENS, LayerCache, LoadedModel, divergence, pairs, rotate
from .geometry import PAIRING_NEIGHBOURS, PAIRING_NONE, Layer
from .progress import Progress

_NOISE = 0.3  # Standard deviations of a channel.
PROBE_BATCH = 6  # Caches with noise at a time.
_QUERIES = ("q_proj", "qkv_proj", "query_key_value")  # What makes queries, by the names that models have for it.
_REPEATED = 5  # Any token.
_ROTATION_TOKENS = 512
_ROTATION_ERROR_MAX = 0.01  # Of the energy. Rounding to bfloat16 leaves 1e-5, a wrong pairing half.


class QueryEnergy:
    """Mean squares of the queries of every layer while it is attached, the sinks' tokens left out."""

    def __init__(self, model: LoadedModel) -> None:
        self._device = model.device
        self._sums = [torch.zeros(0)] * len(model.layers)
        self._count = self._tokens = 0
        self._handles = []
        for index, attention in enumerate(attentions(model)):
            projection = _part(attention, *_QUERIES)
            source = _part(attention, "q_norm", "q_layernorm") or projection
            self._handles.append(projection.register_forward_hook(self._count_tokens))
            self._handles.append(source.register_forward_hook(self._hook(index, model.layers[index], attention)))

    def _count_tokens(self, module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        del module, inputs
        self._tokens = output.shape[1]

    def _hook(self, index: int, layer: Layer, attention: torch.nn.Module):
        width = output_projection(attention).weight.shape[1]

        def record(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
            del inputs
            if module is _part(attention, "qkv_proj"):  # Queries, keys and values.
                output = output[..., :width]
            elif module is _part(attention, "query_key_value"):  # The three of each head.
                output = output.unflatten(-1, (-1, 3 * layer.head_dim))[..., : layer.head_dim]
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
            mean = sum(pairs(energy[:, : layer.rotary_dim], layer)) / 2
            both = mean.repeat_interleave(2, 1) if layer.pairing == PAIRING_NEIGHBOURS else torch.cat([mean, mean], 1)
            energy = torch.cat([both, energy[:, layer.rotary_dim :]], dim=1)
        return energy


def decoder_layers(model: LoadedModel) -> Sequence[torch.nn.Module]:
    """The transformer's blocks; ValueError if the model is not built the usual way."""
    layers = getattr(model.model.get_decoder(), "layers", None)
    if layers is None:
        raise ValueError(f"{type(model.model).__name__} keeps its blocks elsewhere than in layers: cannot calibrate")
    return layers


def attentions(model: LoadedModel) -> list[torch.nn.Module]:
    """The attention of each block; ValueError if the model is not built the usual way."""
    found = [_part(block, "self_attn", "attention") for block in decoder_layers(model)]
    for index, attention in enumerate(found):
        if attention is None or output_projection(attention) is None or _part(attention, *_QUERIES) is None:
            name = type(model.model).__name__
            raise ValueError(f"{name} builds the attention of layer {index} in an unknown way: cannot calibrate")
    return found


def output_projection(attention: torch.nn.Module) -> torch.nn.Module | None:
    """What takes the values that all heads have read, side by side."""
    return _part(attention, "o_proj", "dense")


def _part(module: torch.nn.Module, *names: str) -> torch.nn.Module | None:
    """The first of these that it has."""
    return next((part for part in (getattr(module, name, None) for name in names) if part is not None), None)


def check_rotation(model: LoadedModel) -> None:
    """ValueError if keys are rotated otherwise than the layers say: a basis for them would be large and of no use.

    A token that is repeated leaves the same in every position of every layer, but for the rotation of its keys.
    """
    cache = model.prefill([_REPEATED] * _ROTATION_TOKENS)
    for index, ((keys, _), layer) in enumerate(zip(cache, model.layers, strict=True)):
        taken_back = rotate(keys, layer, 0, -1)[SINK_TOKENS:]
        spread = (taken_back - taken_back.mean(0)).square().sum()
        if spread > _ROTATION_ERROR_MAX * taken_back.square().sum():
            raise ValueError(
                f"layer {index} of {type(model.model).__name__} rotates its keys otherwise than {layer.rotary_dim} "
                f"channels in pairing {layer.pairing}, as its configuration was understood: not supported"
            )


def value_energy(attention: torch.nn.Module, layer: Layer) -> torch.Tensor:
    """[kv_heads, head_dim]: squared column norms of the output projection, summed over the query heads."""
    columns = output_projection(attention).weight.double().square().sum(0)
    return columns.reshape(layer.kv_heads, -1, layer.head_dim).sum(1)


@dataclass(frozen=True)
class Probe:
    """A prefix, and tokens behind it whose distributions count from number `first` on."""

    cache: LayerCache
    following: Sequence[int]
    first: int = 0


def sensitivities(
    model: LoadedModel,
    energy: QueryEnergy,
    probes: Sequence[Sequence[Probe]],
    deviations: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each layer, of keys and of values: [kv_heads, head_dim] nats a token for each unit of squared error.

    The shape within a layer is closed form; its height is probed: noise on that layer's keys (or values) of a prefix,
    and what it does to the next tokens' distributions. `probes` are of several kinds, each of which has an equal say;
    nats are those of the first kind.
    """
    generator = torch.Generator().manual_seed(7)
    blocks = attentions(model)
    shapes = [
        (
            energy.of(i, layer).float().to(model.device),
            value_energy(blocks[i], layer).float().to(model.device),
        )
        for i, layer in enumerate(model.layers)
    ]
    targets = [(layer, part) for layer in range(len(model.layers)) for part in (0, 1)]
    progress = Progress("probing the layers", sum(map(len, probes)) * -(-len(targets) // PROBE_BATCH))

    def losses(probe: Probe) -> torch.Tensor:
        """[targets]"""
        reference, found = model.logits_after(probe.cache, probe.following), []
        for start in range(0, len(targets), PROBE_BATCH):
            batch = targets[start : start + PROBE_BATCH]
            noisy = [_with_noise(probe.cache, model.layers, target, deviations, generator) for target in batch]
            loss = divergence(reference[None], model.logits_after_each(noisy, probe.following))
            found.append(loss[:, probe.first :].mean(-1).cpu())
            progress.step()
        return torch.cat(found)

    by_kind = [sum(losses(probe) for probe in kind) / len(kind) for kind in probes]
    mean = sum(kind / kind.sum() for kind in by_kind) / len(by_kind) * by_kind[0].sum()
    cost = dict(zip(targets, mean.tolist(), strict=True))
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
