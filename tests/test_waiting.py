"""Whose turn it is, as a property of any course of coming, taking and finishing."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speccascade_local.errors import EngineBusyError, EngineError
from speccascade_local.server.waiting import FairQueue


@dataclass(frozen=True)
class Item:
    line: str
    number: int
    ready: bool = True
    heavy: bool = False


courses = st.lists(st.sampled_from(["put a", "put b", "put c", "take", "take", "finish", "withdraw"]), max_size=60)


@given(courses, st.randoms(use_true_random=False))
def test_turns_are_fair_and_lines_keep_their_order(course: list[str], random) -> None:
    queue: FairQueue[Item] = FairQueue(8)
    waiting: list[Item] = []
    busy: list[Item] = []
    since: dict[str, set[str]] = {}  # lines that were served while this one could have been
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
            queue.finished(item, 1.0)
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
