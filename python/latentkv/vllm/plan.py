"""What the scheduler decides and the worker carries out: no engine, no library, only bookkeeping.

The scheduler's half of the connector asks `Planner` which tokens to load and which to store; the answers travel to the
worker as `StepPlan`. The classes know requests by the few attributes of vLLM's `Request` that they name.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

BLOCK_TOKENS = 64
"""Tokens of a stored block, the same in every version of the format."""
UNDER_WAY_SECONDS = 30.0
"""How long a block that was handed over counts as stored although the daemon does not know it yet."""


@dataclass
class Transfer:
    """Tokens [first, first + count) of a prompt and the pages that hold the whole prompt."""

    request_id: str
    tokens: list[int]
    salt: str | None
    first: int
    count: int
    pages: list[int]

    def pages_from(self, token: int, page_tokens: int) -> list[int]:
        """Pages that hold any of [token, first + count)."""
        return self.pages[token // page_tokens : math.ceil((self.first + self.count) / page_tokens)]


@dataclass
class StepPlan:
    """Work of one engine step. `recovered` are pages whose failed load the scheduler has taken note of."""

    loads: list[Transfer] = field(default_factory=list)
    stores: list[Transfer] = field(default_factory=list)
    asynchronous: bool = True
    idle: bool = False
    recovered: set[int] = field(default_factory=set)


@dataclass
class _Request:
    request: Any
    salt: str | None
    stored: int = 0  # Tokens that need no storing: in the daemon, or handed to the worker.
    matched: int = 0
    matched_at: float = -math.inf
    matched_tokens: int = -1
    tried: int = -1  # Value of num_preemptions at the last load: one try for each admission, or damage would loop.
    pages: list[int] = field(default_factory=list)


class Planner:
    """Decides loads and stores. `match(tokens, salt)` gives the stored prefix's length and never raises."""

    def __init__(
        self,
        match: Callable[[Sequence[int], str | None], int],
        page_tokens: int,
        asynchronous: bool,
        lease_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._match = match
        self._page_tokens = page_tokens
        self._unit = math.lcm(BLOCK_TOKENS, page_tokens)
        self._asynchronous = asynchronous
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._requests: dict[str, _Request] = {}
        self._starting: list[Transfer] = []
        self._recovered: set[int] = set()
        self._under_way: OrderedDict[int, float] = OrderedDict()  # chain hash of a block: when it was handed over

    def admit(self, request: Any, salt: str | None) -> None:
        """A new request whose blocks are worth caching. Others are simply never admitted."""
        self._requests.setdefault(request.request_id, _Request(request, salt))

    def matched_tokens(self, request: Any, computed: int) -> int:
        """Tokens beyond `computed` to load; repeatable. The last token is always left to the engine: it needs one to
        compute. A local hit that ends inside a block of 64 loads nothing, because loads begin on blocks."""
        state = self._requests.get(request.request_id)
        if state is None:
            return 0
        if state.tried == request.num_preemptions:
            return 0
        tokens = request.all_token_ids
        now = self._clock()
        # A request may wait for memory over many steps; asking again keeps the lease alive.
        if state.matched_tokens != len(tokens) or now - state.matched_at > self._lease_seconds / 2:
            state.matched = self._match(list(tokens), state.salt)
            state.matched_at, state.matched_tokens = now, len(tokens)
            state.stored = self._stored_or_under_way(state.request, state.salt, state.matched)
        if computed % BLOCK_TOKENS:
            return 0
        usable = min(state.matched, len(tokens) - 1) // self._unit * self._unit
        return max(0, usable - computed)

    def allocated(self, request: Any, pages: Sequence[int], external: int, computed: int) -> None:
        """Pages of the whole request are there; `external` tokens after the first `computed` are ours to load."""
        state = self._requests.get(request.request_id)
        if state is None:
            return
        state.pages = list(pages)
        if external <= 0:
            return
        state.tried = request.num_preemptions
        end = computed + external
        tokens = list(request.all_token_ids[:end])
        self._starting.append(Transfer(request.request_id, tokens, state.salt, computed, external, list(pages)))

    def loads(self, idle: bool) -> StepPlan:
        """The plan of the next step with the loads whose pages were allocated since the last."""
        plan = StepPlan(loads=self._starting, asynchronous=self._asynchronous, idle=idle, recovered=self._recovered)
        self._starting, self._recovered = [], set()
        return plan

    def add_store(self, plan: StepPlan, request_id: str, computed: int, pages: Sequence[int]) -> None:
        """Adds the blocks of a request that close in this step; `computed` is its tokens when the step ends."""
        state = self._requests.get(request_id)
        if state is None:
            return
        state.pages = list(pages)
        # Tokens still in flight (drafts, or samples that the scheduler has not seen) have no identity yet.
        end = min(computed, len(state.request.all_token_ids)) // BLOCK_TOKENS * BLOCK_TOKENS
        if end <= state.stored:
            return
        tokens = list(state.request.all_token_ids[:end])
        store = Transfer(request_id, tokens, state.salt, state.stored, end - state.stored, list(pages))
        plan.stores.append(store)
        state.stored = end
        now = self._clock()
        for block in self._chain(tokens, state.salt)[store.first // BLOCK_TOKENS :]:
            self._under_way[block] = now
            self._under_way.move_to_end(block)

    def _chain(self, tokens: Sequence[int], salt: str | None) -> list[int]:
        """Hashes that name the blocks of a prompt within this process; only storing twice depends on them."""
        chain, link = [], hash(salt)
        for first in range(0, len(tokens) // BLOCK_TOKENS * BLOCK_TOKENS, BLOCK_TOKENS):
            link = hash((link, tuple(tokens[first : first + BLOCK_TOKENS])))
            chain.append(link)
        return chain

    def _stored_or_under_way(self, request: Any, salt: str | None, matched: int) -> int:
        oldest = self._clock() - UNDER_WAY_SECONDS
        while self._under_way and next(iter(self._under_way.values())) < oldest:
            self._under_way.popitem(last=False)
        if not self._under_way:
            return matched
        stored = matched
        for block in self._chain(list(request.all_token_ids), salt)[matched // BLOCK_TOKENS :]:
            if block not in self._under_way:
                break
            stored += BLOCK_TOKENS
        return stored

    def failed(self, bad_pages: set[int]) -> None:
        """Pages that a load left unfilled. The engine recomputes them; what stands on them is stored afresh."""
        for state in self._requests.values():
            first = next((i for i, page in enumerate(state.pages) if page in bad_pages), None)
            if first is not None:
                good = first * self._page_tokens // BLOCK_TOKENS * BLOCK_TOKENS
                state.stored = min(state.stored, good)
                state.matched = min(state.matched, good)
        self._recovered |= bad_pages
        self._under_way.clear()  # Some of them were computed on those pages, and not stored.

    def finished(self, request_id: str) -> None:
        """Forgets the request."""
        self._requests.pop(request_id, None)
