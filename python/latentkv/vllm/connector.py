"""LatentkvConnector: vLLM's two halves of a KV connector over the latentkv client.

vLLM makes one instance in the scheduler's process and one in the worker's. Neither ever raises into the engine: what
goes wrong is logged once and becomes a miss, which vLLM recomputes.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)

from latentkv.client import PageLayer, TensorParallel
from latentkv.tensors import check_device, current_stream
from latentkv.vllm.metrics import RestoreMetrics, RestoreStats
from latentkv.vllm.pages import (
    check_latent_layout,
    check_layout,
    device_page_layer,
    in_layer_order,
    latent_page_layer,
    page_count,
    page_layer,
)
from latentkv.vllm.plan import Planner, StepPlan
from latentkv.vllm.worker import Worker, log_once, logger


@dataclass
class StepMetadata(KVConnectorMetadata):
    """What travels from the scheduler to the worker."""

    plan: StepPlan = field(default_factory=StepPlan)


def _never_raises(default: Callable[[], Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(self: LatentkvConnector, *arguments: Any, **named: Any) -> Any:
            try:
                return method(self, *arguments, **named)
            except Exception as error:  # noqa: BLE001 - the contract of this module
                log_once(f"{method.__name__} failed: %r", error)
                return default()

        guarded.__name__, guarded.__doc__ = method.__name__, method.__doc__
        return guarded

    return wrap


def _nothing() -> None:
    return None


def _folder(model: Any) -> str:
    """Where the engine has the model's files: its folder, or the hub's snapshot of its name."""
    if os.path.isdir(model.model):
        return model.model
    from huggingface_hub import snapshot_download

    return snapshot_download(model.model, revision=model.revision, local_files_only=True)


class LatentkvConnector(KVConnectorBase_V1):
    """See README.md beside this file for kv_connector_extra_config."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._is_worker = role == KVConnectorRole.WORKER
        self._page_tokens = vllm_config.cache_config.block_size
        self._planner: Planner | None = None
        self._worker: Worker | None = None
        self._layer_index: dict[str, int] = {}
        self._client: Any = None
        self._options = self._kv_transfer_config.get_from_extra_config
        self._deadline_ms = int(self._options("deadline_ms", 10000))
        self._local: dict[str, int] = {}
        try:
            self._check_supported()
            self._client = self._open()
            if role == KVConnectorRole.SCHEDULER:
                asynchronous = self._options("load", "async") != "sync"
                self._planner = Planner(self._match, self._page_tokens, asynchronous)
                self._asynchronous = asynchronous
        except Exception as error:  # noqa: BLE001 - an engine without a cache still serves
            logger.error("latentkv is off, everything is computed: %s", error)

    def _check_supported(self) -> None:
        from latentkv.geometry import keeps_latents

        config = self._vllm_config
        self._latent = keeps_latents(config.model_config.hf_config)
        if self._kv_transfer_config.kv_load_failure_policy != "recompute":
            raise ValueError('kv_load_failure_policy must be "recompute": a damaged block would end a request')
        parallel = config.parallel_config
        self._ranks = int(getattr(parallel, "tensor_parallel_size", 1))
        # Others split layers or tokens, not heads.
        if parallel.world_size != self._ranks or getattr(parallel, "decode_context_parallel_size", 1) > 1:
            raise ValueError("of parallelism within an engine, only tensor parallelism is supported yet")
        groups = self._kv_cache_config.kv_cache_groups
        if len(groups) != 1:
            raise ValueError(f"models with {len(groups)} kinds of KV cache are not supported yet")
        # Other kinds let go of pages that the model no longer looks at, and would give us foreign ones in their place.
        kind = type(groups[0].kv_cache_spec).__name__
        known = "MLAAttentionSpec" if self._latent else "FullAttentionSpec"
        if kind != known:
            raise ValueError(f"a KV cache of kind {kind}, where {known} is known, is not supported yet")
        if self._page_tokens % 16:
            raise ValueError(f"block_size {self._page_tokens} is not a multiple of 16")
        if config.cache_config.cache_dtype not in ("auto", "bfloat16"):
            raise ValueError(f"a KV cache of {config.cache_config.cache_dtype} is not supported yet")

    def _layers(self) -> Any:
        from latentkv.geometry import layers_of

        model, dtype = self._vllm_config.model_config, self._vllm_config.cache_config.cache_dtype
        return layers_of(model.hf_config, str(model.dtype) if dtype == "auto" else dtype)

    def _open(self) -> Any:
        from latentkv import geometry
        from latentkv.client import Client

        model = self._vllm_config.model_config
        digest = self._options("model_digest", None)
        named = f"quantization={model.quantization}" if model.quantization else ""
        return Client(
            str(self._options("address", os.environ.get("LATENTKV_ADDRESS", "127.0.0.1:7430"))),
            self._layers(),
            bytes.fromhex(digest) if digest else geometry.model_digest(_folder(model), named),
            tenant=str(self._options("tenant", "")),
            salt=str(self._options("salt", "")),
            basis_path=self._options("basis", None),
            profile=self._options("profile", None),
            step=float(self._options("step", 0.0) or 0.0),
            tensor_parallel=self._place(),
        )

    def _place(self) -> TensorParallel | None:
        """The worker's rank. The scheduler's half only asks what is stored, which no rank has to do with."""
        if self._ranks == 1 or not self._is_worker:
            return None
        from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

        folder = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
        name = hashlib.sha256(str(self._kv_transfer_config.engine_id).encode()).hexdigest()[:16]
        return TensorParallel(get_tensor_model_parallel_rank(), self._ranks, f"{folder}/latentkv-{name}")

    @property
    def requires_kv_delivery(self) -> bool:
        """False: a store that is lost is a later miss, nothing to recompute for."""
        return False

    # The scheduler's half.

    def _match(self, tokens: Sequence[int], salt: str | None) -> int:
        try:
            deadline_ms = min(self._deadline_ms, int(self._options("match_deadline_ms", 500)))
            return self._client.match(tokens, lease_ms=10000, deadline_ms=deadline_ms, salt=salt)
        except Exception as error:  # noqa: BLE001 - a miss
            log_once("the daemon could not be asked: %s", error)
            return 0

    def _request_salt(self, request: Any) -> str | None:
        """None keeps the client's salt; the lengths keep ("a", "bc") and ("ab", "c") apart."""
        if request.cache_salt is None:
            return None
        own = str(self._options("salt", ""))
        return f"{len(own)}:{own}{len(request.cache_salt)}:{request.cache_salt}"

    @_never_raises(_nothing)
    def on_new_request(self, request: Any) -> None:
        """Admits text; images, prompt embeddings and adapters are computed by the engine alone for now."""
        if self._planner is None:
            return
        if request.mm_features or request.prompt_embeds is not None or request.lora_request is not None:
            log_once("requests with images, prompt embeddings or adapters are not cached")
            return
        self._planner.admit(request, self._request_salt(request))

    @_never_raises(lambda: (0, False))
    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        if self._planner is None:
            return 0, False
        tokens = self._planner.matched_tokens(request, num_computed_tokens)
        self._local[request.request_id] = num_computed_tokens
        return tokens, tokens > 0 and self._asynchronous

    @_never_raises(_nothing)
    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if self._planner is not None:
            local = self._local.get(request.request_id, 0)
            self._planner.allocated(request, blocks.get_block_ids()[0], num_external_tokens, local)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        if self._planner is None:
            return StepMetadata()
        counts = scheduler_output.num_scheduled_tokens
        # Apart from the stores, so that nothing can keep a load from its request, which would wait for ever.
        plan = self._planner.loads(idle=not counts)
        self._plan_stores(plan, scheduler_output)
        return StepMetadata(plan)

    @_never_raises(_nothing)
    def _plan_stores(self, plan: StepPlan, scheduler_output: Any) -> None:
        before = {new.req_id: new.num_computed_tokens for new in scheduler_output.scheduled_new_reqs}
        cached = scheduler_output.scheduled_cached_reqs
        before.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        blocks = scheduler_output.kv_connector_block_state
        for request_id, count in scheduler_output.num_scheduled_tokens.items():
            pages = blocks.get_block_ids(request_id)
            if pages is not None and request_id in before:
                self._planner.add_store(plan, request_id, before[request_id] + count, pages[0])

    @_never_raises(_nothing)
    def update_connector_output(self, connector_output: Any) -> None:
        if self._planner is not None and connector_output.invalid_block_ids:
            self._planner.failed(set(connector_output.invalid_block_ids))

    @_never_raises(lambda: (False, None))
    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Never holds blocks: the worker has copied what it stores before the step that computed it ended."""
        self._local.pop(request.request_id, None)
        if self._planner is not None:
            self._planner.finished(request.request_id)
        return False, None

    # The worker's half.

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        if self._client is None:
            return
        try:
            tensors = in_layer_order(kv_caches)
            if any(tensor.shape != tensors[0].shape for tensor in tensors):
                raise ValueError("layers with pages of different shapes are not supported yet")
            device, pages = tensors[0].device, page_count(tensors[0])
            check_device(device)
            layers, page_tokens = self._page_layers(kv_caches, tensors)
            self._client.register_pages(layers, page_tokens, pages)
            self._layer_index = {
                name: index
                for index, tensor in enumerate(tensors)
                for name, other in kv_caches.items()
                if other is tensor
            }
            self._kept = tensors  # The client holds addresses into them.
            self._worker = Worker(
                self._client, page_tokens, self._deadline_ms, lambda: current_stream(device), self._ranks
            )
            logger.info("latentkv is on: %d layers, %d pages of %d tokens", len(tensors), pages, page_tokens)
        except Exception as error:  # noqa: BLE001
            logger.error("latentkv is off, everything is computed: %s", error)

    def _page_layers(self, kv_caches: dict[str, Any], tensors: list[Any]) -> tuple[list[PageLayer], int]:
        """Where the tensors have keys and values, and the tokens of a page."""
        page_tokens, on_cpu = self._page_tokens, tensors[0].device.type == "cpu"
        # Of a model with fewer heads than ranks, each has one.
        shapes = [replace(shape, kv_heads=max(1, shape.kv_heads // self._ranks)) for shape in self._layers()]
        if len(tensors) != len(shapes):
            raise ValueError(f"pages of {len(tensors)} layers, of {len(shapes)} in the model: no drafts are supported")
        if self._latent and on_cpu:
            attention = self._vllm_config.compilation_config.static_forward_context[next(iter(kv_caches))]
            check_latent_layout(attention.impl.do_kv_cache_update, shapes[0], page_tokens, tensors[0].dtype)
        if self._latent or not on_cpu:
            of = latent_page_layer if self._latent else device_page_layer
            return [of(t, layer, page_tokens) for t, layer in zip(tensors, shapes, strict=True)], page_tokens
        check_layout(tensors[0], self._vllm_config.cache_config.cache_dtype)
        if tensors[0].shape[1] != shapes[0].kv_heads:
            raise ValueError(f"pages of {tensors[0].shape[1]} heads, where {shapes[0].kv_heads} should be")
        return [page_layer(tensor) for tensor in tensors], tensors[0].shape[2]

    def _plan(self) -> StepPlan:
        metadata = self._connector_metadata
        return metadata.plan if isinstance(metadata, StepMetadata) else StepPlan()

    def _off(self) -> Worker:
        """A worker that can do nothing, so that planned loads are reported as failed and none is waited for."""
        self._worker = Worker(_NoClient(), self._page_tokens, self._deadline_ms)
        return self._worker

    @_never_raises(_nothing)
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        (self._worker or self._off()).begin_step(self._plan())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Every layer of every step comes here: at once back where nothing is loaded synchronously."""
        if self._worker is not None and self._worker.loads_in_step:
            self._wait_for_layer_load(layer_name)

    @_never_raises(_nothing)
    def _wait_for_layer_load(self, layer_name: str) -> None:
        self._worker.wait_for_layer(self._layer_index.get(layer_name, -1))

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing: blocks are stored whole, in wait_for_save."""

    @_never_raises(_nothing)
    def wait_for_save(self) -> None:
        if self._worker is not None:
            self._worker.end_step(self._plan())

    @_never_raises(lambda: (None, None))
    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return None, (self._worker.take_finished() or None) if self._worker is not None else None

    @_never_raises(set)
    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._worker.take_bad_pages() if self._worker is not None else set()

    @_never_raises(_nothing)
    def shutdown(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()
        elif self._client is not None:
            self._client.close()
        self._client = None

    # Metrics.

    @_never_raises(_nothing)
    def get_kv_connector_stats(self) -> RestoreStats | None:
        counters = self._worker.take_counters() if self._worker is not None else {}
        return RestoreStats(counters) if counters else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> RestoreStats:
        return RestoreStats(data or {})

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: Any, metric_types: Any, labelnames: Any, per_engine_labelvalues: Any
    ) -> RestoreMetrics:
        return RestoreMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)


class _NoClient:
    """Stands where no client could be opened."""

    def load(self, *arguments: Any, **named: Any) -> Any:
        raise RuntimeError("latentkv is off")

    store = load

    def flush(self, timeout_ms: int) -> None:
        return

    def close(self) -> None:
        return
