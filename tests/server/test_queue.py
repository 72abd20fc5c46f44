"""The queue is fair in any sequence of operations."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speccascade_local.common.errors import EngineBusyError, EngineError
from speccascade_local.server.request_queue import FairQueue


@dataclass(frozen=True)
class Item:
    line: str
    number: int
    ready: bool = True
    heavy: bool = False
    client: str | None = None


class Slow:
    """An item that may need preparation."""

    def __init__(self, line: str, number: int, *, ready: bool) -> None:
        self.line, self.number, self.ready, self.slow, self.heavy, self.client = line, number, ready, not ready, False, None


courses = st.lists(st.sampled_from(["put a", "put b", "put c", "take", "take", "finish", "withdraw"]), max_size=60)


@given(courses, st.randoms(use_true_random=False))
def test_turns_are_fair_and_lines_keep_their_order(course: list[str], random) -> None:
    queue: FairQueue[Item] = FairQueue(8)
    waiting: list[Item] = []
    busy: list[Item] = []
    since: dict[str, set[str]] = {}  # lines that were served while this one waited
    for number, step in enumerate(course):
        ready = list(dict.fromkeys(item.line for item in waiting if item.line not in {each.line for each in busy}))
        if step.startswith("put"):
            item = Item(step[-1], number)
            if len(waiting) == 8:
                with pytest.raises(EngineBusyError) as refused:
                    queue.put(item)
                assert refused.value.retry_after_s >= 1
            else:
                queue.put(item)
                waiting.append(item)
        elif step == "take" and ready:
            taken = queue.take()
            assert taken == next(item for item in waiting if item.line == taken.line), "first come, first served"
            assert taken.line in ready, "one at a time of each line"
            for line in set(ready) - {taken.line}:
                assert taken.line not in since.setdefault(line, set()), "no line is passed twice by the same other one"
                since[line].add(taken.line)
            since[taken.line] = set()
            waiting.remove(taken)
            busy.append(taken)
        elif step == "finish" and busy:
            item = busy.pop(random.randrange(len(busy)))
            queue.finish(item, 1.0)
            since[item.line] = set()
        elif step == "withdraw" and waiting:
            item = random.choice(waiting)
            assert queue.withdraw(item)
            assert not queue.withdraw(item)
            waiting.remove(item)
            if item.line not in {each.line for each in waiting}:
                since.pop(item.line, None)
        assert len(queue) == len(waiting)
    assert sorted(queue.close(), key=lambda item: item.number) == waiting
    assert queue.take() is None
    with pytest.raises(EngineError, match="closing"):
        queue.put(Item("a", 0))


@given(
    st.lists(
        st.sampled_from(["put plain", "put slow", "put slow", "prepare", "ready", "ready heavy", "take", "finish", "withdraw"]), max_size=80
    ),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_what_is_prepared_keeps_its_place_and_lets_others_pass(course: list[str], servers: int, random) -> None:
    """Compared with a model: lists of waiting, preparing and running items."""
    queue: FairQueue[Slow] = FairQueue(80, servers)
    waiting: list[Slow] = []
    preparing: list[Slow] = []
    busy: list[Slow] = []

    def may_go(item: Slow) -> bool:
        heads = {line: next(each for each in waiting if each.line == line) for line in {each.line for each in waiting}}
        room = not item.heavy or sum(each.heavy for each in busy) < max(1, servers - 1)
        return heads[item.line] is item and item.line not in {each.line for each in busy} and item.ready and room

    for number, step in enumerate(course):
        if step.startswith("put"):
            item = Slow(str(number % 4), number, ready=step == "put plain")
            queue.put(item)
            waiting.append(item)
        elif step == "prepare":
            held = len(preparing) + sum(each.ready and each.slow for each in waiting)
            heads = [item for item in waiting if not any(each.line == item.line and each.number < item.number for each in waiting)]
            able = [item for item in heads if not item.ready and item not in preparing]
            if held <= servers and able:
                item = queue.take_unready()
                assert item in able
                preparing.append(item)
        elif step.startswith("ready") and preparing:
            item = preparing.pop(random.randrange(len(preparing)))
            item.ready, item.heavy = True, step.endswith("heavy")
            queue.finish_preparing(item)
        elif step == "take" and any(map(may_go, waiting)):
            item = queue.take()
            assert may_go(item)
            waiting.remove(item)
            busy.append(item)
        elif step == "finish" and busy:
            queue.finish(busy.pop(random.randrange(len(busy))), 1.0)
        elif step == "withdraw" and waiting:
            item = random.choice(waiting)
            assert queue.withdraw(item)
            waiting.remove(item)
    assert len(queue) == len(waiting)
    assert sorted(queue.close(), key=lambda item: item.number) == waiting
    assert queue.take() is queue.take_unready() is None


@given(st.lists(st.sampled_from(["put a", "put b", "put c", "take", "take", "finish"]), max_size=80), st.integers(1, 4))
def test_no_client_keeps_another_out(course: list[str], servers: int) -> None:
    """Without conversations: each client gets a place in the queue, a server, and the next turn after any other's."""
    queue: FairQueue[Item] = FairQueue(8, servers)
    waiting: list[Item] = []
    running: list[Item] = []
    order: list[str | None] = []

    def may_go(client: str | None) -> bool:
        return sum(each.client == client for each in running) < max(1, servers - 1)

    for number, step in enumerate(course):
        if step.startswith("put"):
            item = Item(f"line {number}", number, client=step[-1])
            if len(waiting) == 8 or sum(each.client == item.client for each in waiting) == 4:
                with pytest.raises(EngineBusyError):
                    queue.put(item)
            else:
                queue.put(item)
                waiting.append(item)
        elif step == "take" and any(may_go(each.client) for each in waiting) and len(running) < servers:
            item = queue.take()
            assert may_go(item.client)
            others = {each.client for each in waiting if may_go(each.client)}
            recent = [client for client in dict.fromkeys(reversed(order)) if client in others]
            assert item.client in others - set(recent) or (item.client == recent[-1] and set(recent) == others)
            assert item == next(each for each in waiting if each.client == item.client)
            waiting.remove(item)
            running.append(item)
            order.append(item.client)
        elif step == "finish" and running:
            queue.finish(running.pop(0), 1.0)
    assert len(queue) == len(waiting)
