"""What the connector decides to load and to store, without an engine."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from latentkv.vllm.plan import Planner, StepPlan, Transfer
from latentkv.vllm.worker import Worker


@dataclass
class Request:
    request_id: str
    all_token_ids: list[int]
    num_preemptions: int = 0


@dataclass
class Daemon:
    """Answers how many tokens are stored."""

    tokens: int
    asked: list[tuple[int, str | None]] = field(default_factory=list)

    def __call__(self, tokens, salt) -> int:
        self.asked.append((len(tokens), salt))
        return min(self.tokens, len(tokens) // 64 * 64)


def planner(stored: int, page_tokens: int = 64, asynchronous: bool = True) -> tuple[Planner, Daemon]:
    daemon = Daemon(stored)
    return Planner(daemon, page_tokens, asynchronous), daemon


def step(plan: Planner, *scheduled: tuple[str, int, list[int]]) -> StepPlan:
    """One engine step; `scheduled`: request, tokens computed when it ends, its pages."""
    made = plan.loads(idle=not scheduled)
    for request_id, computed, pages in scheduled:
        plan.add_store(made, request_id, computed, pages)
    return made


def admitted(plan: Planner, tokens: int, name: str = "a") -> Request:
    request = Request(name, list(range(tokens)))
    plan.admit(request, None)
    return request


@pytest.mark.parametrize(
    ("stored", "prompt", "computed", "page_tokens", "expected"),
    [
        (640, 700, 0, 64, 640),
        (640, 640, 0, 64, 576),  # the last token is the engine's
        (640, 641, 0, 64, 640),
        (640, 700, 128, 64, 512),
        (640, 700, 640, 64, 0),
        (576, 700, 0, 128, 512),  # whole pages only
        (640, 700, 32, 32, 0),  # a local hit inside a block
        (640, 700, 64, 32, 576),
        (0, 700, 0, 64, 0),
        (64, 10, 0, 64, 0),
    ],
)
def test_a_match_is_cut_to_whole_blocks_and_pages(stored, prompt, computed, page_tokens, expected):
    plan, _ = planner(stored, page_tokens)
    request = admitted(plan, prompt)
    assert plan.matched_tokens(request, computed) == expected


def test_a_request_that_was_not_admitted_is_left_alone():
    plan, daemon = planner(640)
    request = Request("image", list(range(700)))
    assert plan.matched_tokens(request, 0) == 0
    assert daemon.asked == []
    assert step(plan, ("image", 640, list(range(11)))).stores == []


def test_loading_begins_where_the_engine_s_own_cache_ends():
    plan, _ = planner(640)
    request = admitted(plan, 700)
    assert plan.matched_tokens(request, 128) == 512
    plan.allocated(request, list(range(100, 111)), 512, 128)
    (load,) = step(plan).loads
    assert (load.first, load.count, len(load.tokens)) == (128, 512, 640)
    assert load.pages_from(load.first, 64) == list(range(102, 110))


def test_asking_twice_asks_the_daemon_once():
    plan, daemon = planner(640)
    request = admitted(plan, 700)
    plan.matched_tokens(request, 0)
    plan.matched_tokens(request, 0)
    assert daemon.asked == [(700, None)]


def test_blocks_are_stored_when_they_close_and_once():
    plan, _ = planner(0)
    request = admitted(plan, 200)
    plan.matched_tokens(request, 0)
    plan.allocated(request, [5, 6, 7, 8], 0, 0)
    first = step(plan, ("a", 100, [5, 6, 7, 8])).stores  # a chunk of the prompt
    assert [(t.first, t.count) for t in first] == [(0, 64)]
    second = step(plan, ("a", 200, [5, 6, 7, 8])).stores
    assert [(t.first, t.count) for t in second] == [(64, 128)]
    assert step(plan, ("a", 201, [5, 6, 7, 8])).stores == []


def test_a_block_closed_while_decoding_is_stored():
    plan, _ = planner(0)
    request = admitted(plan, 120)
    plan.matched_tokens(request, 0)
    step(plan, ("a", 120, [5, 6]))
    for computed in range(121, 128):
        request.all_token_ids.append(computed)
        assert step(plan, ("a", computed, [5, 6])).stores == []
    request.all_token_ids.append(999)
    (store,) = step(plan, ("a", 128, [5, 6])).stores
    assert (store.first, store.count, store.tokens[-1]) == (64, 64, 999)


def test_a_token_without_identity_closes_no_block():
    plan, _ = planner(0)
    admitted(plan, 127)
    (store,) = step(plan, ("a", 128, [5, 6])).stores
    assert (store.first, store.count) == (0, 64)


def test_what_was_restored_is_not_stored_again():
    plan, _ = planner(128)
    request = admitted(plan, 200)
    assert plan.matched_tokens(request, 0) == 128
    plan.allocated(request, [5, 6, 7, 8], 128, 0)
    step(plan)
    (store,) = step(plan, ("a", 200, [5, 6, 7, 8])).stores
    assert (store.first, store.count) == (128, 64)


def test_a_failed_load_is_not_tried_again_and_its_blocks_are_stored_afresh():
    plan, _ = planner(192)
    request = admitted(plan, 200)
    plan.matched_tokens(request, 0)
    plan.allocated(request, [5, 6, 7, 8], 192, 0)
    step(plan)
    plan.failed({6, 7})
    assert plan.matched_tokens(request, 64) == 0
    made = step(plan, ("a", 200, [5, 6, 7, 8]))
    assert made.recovered == {6, 7}
    assert [(t.first, t.count) for t in made.stores] == [(64, 128)]


def test_a_preempted_request_may_restore_again():
    plan, _ = planner(192)
    request = admitted(plan, 200)
    plan.matched_tokens(request, 0)
    plan.allocated(request, [5, 6, 7, 8], 192, 0)
    request.num_preemptions = 1
    assert plan.matched_tokens(request, 0) == 192


def test_what_is_still_on_its_way_to_the_daemon_is_not_stored_twice():
    now = [0.0]
    plan = Planner(Daemon(0), 64, True, clock=lambda: now[0])
    first = admitted(plan, 200)
    plan.matched_tokens(first, 0)
    step(plan, ("a", 200, [5, 6, 7, 8]))
    second = admitted(plan, 260, "b")
    assert plan.matched_tokens(second, 192) == 0
    (store,) = step(plan, ("b", 260, [5, 6, 7, 8, 9])).stores
    assert (store.first, store.count) == (192, 64)
    now[0] = 100.0  # never acknowledged: given up
    third = admitted(plan, 260, "c")
    plan.matched_tokens(third, 192)
    (store,) = step(plan, ("c", 260, [5, 6, 7, 8, 9])).stores
    assert (store.first, store.count) == (0, 256)


class Job:
    def __init__(self, token_count: int) -> None:
        self.token_count, self.frame_bytes, self.freed, self.ready = token_count, 1000, False, True

    def wait(self, layer: int, timeout_ms: int):
        return self if self.ready else None

    def free(self) -> None:
        self.freed = True


class Client:
    """Loads as many tokens as told, and notes stores."""

    def __init__(self, good: int | Exception) -> None:
        self.good, self.stores, self.jobs, self.streams = good, [], [], []

    def load(self, tokens, first, count, pages, deadline_ms, salt, stream):
        self.streams.append(stream)
        if isinstance(self.good, Exception):
            raise self.good
        self.jobs.append(Job(min(self.good, count)))
        return self.jobs[-1]

    def store(self, tokens, first, count, pages, salt, stream):
        self.streams.append(stream)
        self.stores.append((first, count, bool(pages)))


def load(first: int = 0, count: int = 192) -> Transfer:
    return Transfer("a", list(range(first + count)), None, first, count, [5, 6, 7, 8])


def test_an_asynchronous_load_ends_once_and_whole():
    worker = Worker(Client(192), 64, 1000)
    worker.begin_step(StepPlan(loads=[load()]))
    worker.end_step(StepPlan())
    assert worker.take_finished() == {"a"}
    assert worker.take_finished() == set()
    assert worker.take_bad_pages() == set()
    assert worker.take_counters()["restored_tokens"] == 192


def test_a_load_that_still_runs_is_not_finished():
    client = Client(192)
    worker = Worker(client, 64, 1000)
    worker.begin_step(StepPlan(loads=[load()]))
    client.jobs[0].ready = False
    assert worker.take_finished() == set()
    client.jobs[0].ready = True
    assert worker.take_finished() == {"a"}
    assert client.jobs[0].freed


@pytest.mark.parametrize(("good", "bad"), [(64, {6, 7}), (0, {5, 6, 7}), (100, {6, 7})])
def test_pages_that_stayed_unfilled_are_reported(good, bad):
    worker = Worker(Client(good), 64, 1000)
    worker.begin_step(StepPlan(loads=[load()]))
    assert worker.take_finished() == {"a"}
    assert worker.take_bad_pages() == bad
    assert worker.take_bad_pages() == set()


def test_a_load_that_cannot_begin_finishes_with_all_pages_bad():
    worker = Worker(Client(OSError("away")), 64, 1000)
    worker.begin_step(StepPlan(loads=[load(64, 128)]))
    assert worker.take_finished() == {"a"}
    assert worker.take_bad_pages() == {6, 7}


def test_nothing_computed_on_a_failed_page_is_stored_until_the_scheduler_knows():
    client = Client(64)
    worker = Worker(client, 64, 1000)
    store = Transfer("a", list(range(256)), None, 192, 64, [5, 6, 7, 8])
    plan = StepPlan(loads=[load()], stores=[store], asynchronous=False)
    worker.begin_step(plan)
    worker.wait_for_layer(0)
    worker.end_step(plan)
    assert worker.take_bad_pages() == {6, 7}
    worker.begin_step(StepPlan(stores=[store]))
    worker.end_step(StepPlan(stores=[store]))
    assert client.stores == []
    again = StepPlan(stores=[store], recovered={6, 7})
    worker.begin_step(again)
    worker.end_step(again)
    assert client.stores == [(192, 64, True)]


def test_of_several_ranks_one_whose_load_failed_takes_part_in_a_store_without_pages():
    client = Client(64)
    worker = Worker(client, 64, 1000, ranks=2)
    store = Transfer("a", list(range(256)), None, 192, 64, [5, 6, 7, 8])
    plan = StepPlan(loads=[load()], stores=[store], asynchronous=False)
    worker.begin_step(plan)
    worker.end_step(plan)
    assert client.stores == [(192, 64, False)]
    assert worker.take_counters().get("stored_tokens", 0) == 0
    again = StepPlan(stores=[store], recovered={6, 7})
    worker.begin_step(again)
    worker.end_step(again)
    assert client.stores[1:] == [(192, 64, True)]


def test_loads_and_stores_are_ordered_with_the_stream_that_the_engine_works_on_then():
    client = Client(192)
    streams = iter([11, 12])
    worker = Worker(client, 64, 1000, lambda: next(streams))
    store = Transfer("b", list(range(64)), None, 0, 64, [9])
    worker.begin_step(StepPlan(loads=[load()], stores=[store]))
    worker.end_step(StepPlan(stores=[store]))
    assert client.streams == [11, 12]
