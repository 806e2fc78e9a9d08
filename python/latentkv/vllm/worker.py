"""The worker's half: loads into the engine's pages and stores out of them, as a StepPlan says."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from latentkv.vllm.plan import BLOCK_TOKENS, StepPlan, Transfer

logger = logging.getLogger("vllm.latentkv")

IDLE_WAIT_MS = 4
"""An engine with nothing to compute asks again and again; waiting here a little leaves the cores to the decoder."""


@dataclass
class _Load:
    transfer: Transfer
    job: Any  # None when the load could not even begin
    began: float


class Worker:
    """Carries out one StepPlan after the other. `client` is the open client whose pages are registered, `stream` gives
    the CUDA stream that the engine's thread works on, None for pages in host memory.

    Loads write behind what that stream had when they began; who waits for one may read on any stream. Stores take what
    the stream will have written when the step is over, and hold up what it is given later until they have read it.

    With several `ranks` this is one of them: what its load failed of, the others must not store either."""

    def __init__(
        self,
        client: Any,
        page_tokens: int,
        deadline_ms: int,
        stream: Callable[[], int | None] = lambda: None,
        ranks: int = 1,
    ) -> None:
        self._client = client
        self._page_tokens = page_tokens
        self._deadline_ms = deadline_ms
        self._stream = stream
        self._ranks = ranks
        self._running: dict[str, _Load] = {}  # asynchronous
        self._current: list[_Load] = []  # synchronous, of this step
        self._bad_pages: set[int] = set()  # failed, and the scheduler may not know yet
        self._unreported: set[int] = set()
        self._idle = False
        self.counters: dict[str, float] = {}

    def begin_step(self, plan: StepPlan) -> None:
        """Starts the plan's loads."""
        self._idle = plan.idle
        self._bad_pages -= plan.recovered
        for transfer in plan.loads:
            load = _Load(transfer, None, time.monotonic())
            try:
                load.job = self._client.load(
                    transfer.tokens,
                    transfer.first,
                    transfer.count,
                    transfer.pages,
                    deadline_ms=self._deadline_ms,
                    salt=transfer.salt,
                    stream=self._stream(),
                )
            except Exception as error:  # noqa: BLE001 - whatever it is, the engine recomputes
                log_once("a restore could not begin: %s", error)
            if plan.asynchronous:
                self._running[transfer.request_id] = load
            else:
                self._current.append(load)

    @property
    def loads_in_step(self) -> bool:
        """Whether this step has synchronous loads."""
        return bool(self._current)

    def wait_for_layer(self, layer: int) -> None:
        """Holds the forward pass until this step's synchronous loads have filled the layer, or failed."""
        for load in self._current:
            self._wait(load, layer, self._left_ms(load))

    def end_step(self, plan: StepPlan) -> None:
        """Settles synchronous loads, then stores what closed, except on pages whose load failed."""
        current, self._current = self._current, []
        for load in current:
            self._settle(load, self._wait(load, -1, self._left_ms(load)))
        for transfer in plan.stores:
            lacks = bool(self._bad_pages.intersection(transfer.pages_from(0, self._page_tokens)))
            if lacks and self._ranks == 1:
                continue
            try:
                self._client.store(
                    transfer.tokens,
                    transfer.first,
                    transfer.count,
                    [] if lacks else transfer.pages,
                    salt=transfer.salt,
                    stream=self._stream(),
                )
                if not lacks:
                    self._count("stored_tokens", transfer.count)
            except Exception as error:  # noqa: BLE001 - an unstored block is a later miss
                log_once("blocks could not be stored: %s", error)

    def take_finished(self) -> set[str]:
        """Requests whose asynchronous load is over, well or badly."""
        finished = set()
        for request_id, load in list(self._running.items()):
            wait_ms = IDLE_WAIT_MS if self._idle and not finished else 0
            result = self._wait(load, -1, wait_ms)
            if result is None and load.job is not None and self._left_ms(load) > 0:
                continue
            self._settle(load, result)
            del self._running[request_id]
            finished.add(request_id)
        return finished

    def take_bad_pages(self) -> set[int]:
        """Pages that stayed unfilled since the last call."""
        bad, self._unreported = self._unreported, set()
        return bad

    def take_counters(self) -> dict[str, float]:
        """Sums since the last call, by the names in metrics.py."""
        counters, self.counters = self.counters, {}
        return counters

    def close(self) -> None:
        """Stops loads, so that no page is written after the engine frees them, and gives stores a last moment."""
        for load in [*self._running.values(), *self._current]:
            if load.job is not None:
                load.job.free()
        self._running.clear()
        self._current.clear()
        self._client.flush(2000)
        self._client.close()

    def _left_ms(self, load: _Load) -> int:
        """What is left of a load's deadline, which the client keeps too: a second more is for its last blocks."""
        return max(0, int(1000 * (load.began - time.monotonic())) + self._deadline_ms + 1000)

    def _wait(self, load: _Load, layer: int, timeout_ms: int) -> Any:
        if load.job is None:
            return None
        try:
            return load.job.wait(layer, timeout_ms)
        except Exception as error:  # noqa: BLE001
            log_once("a restore failed: %s", error)
            load.job.free()
            load.job = None
            return None

    def _settle(self, load: _Load, result: Any) -> None:
        if load.job is not None:
            load.job.free()
        transfer = load.transfer
        good = 0 if result is None else min(result.token_count, transfer.count) // BLOCK_TOKENS * BLOCK_TOKENS
        if good:
            took = time.monotonic() - load.began
            self._count("restores", 1)
            self._count("restored_tokens", good)
            self._count("restored_bytes", result.frame_bytes)
            self._count("restore_seconds", took)
            logger.info(
                "latentkv restored %d tokens from %d bytes in %.0f ms (%s)",
                good, result.frame_bytes, took * 1000, transfer.request_id,
            )
        if good < transfer.count:
            self._count("failed_tokens", transfer.count - good)
            log_once("%d tokens could not be restored and are recomputed", transfer.count - good)
            bad = set(transfer.pages_from(transfer.first + good, self._page_tokens))
            self._bad_pages |= bad
            self._unreported |= bad

    def _count(self, name: str, value: float) -> None:
        self.counters[name] = self.counters.get(name, 0) + value


_logged: set[str] = set()


def log_once(message: str, *arguments: object) -> None:
    """Warns of each kind of trouble once, so that an outage does not fill the log."""
    if message not in _logged:
        _logged.add(message)
        logger.warning("latentkv: " + message + " (said once)", *arguments)
