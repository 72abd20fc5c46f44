"""Measures the profile of a loaded pair.

The sessions themselves are timed, on random tokens. Rounds over all batch sizes take turns, so that a machine that slows down for a
while does not make one size look slow, and medians are taken. Knows nothing of where profiles are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from time import perf_counter

from .loop_cost import loop_cost
from .profile import FREE, Profile
from .session import LlamaSession
from .stopwatch import BUDGET_S, FEWEST_ROUNDS, USUAL_BATCH, Clock, TimedSession

MOST_ROUNDS = 9


def measure(
    drafter: LlamaSession | None,
    expert: LlamaSession,
    *,
    threads: int | None = None,
    key: Mapping[str, str | int] | None = None,
    budget_s: float = BUDGET_S,
    on_step: Callable[[float], None] = lambda _: None,
) -> Profile:
    """Measure now. Both sessions are empty afterwards, their batches unpadded, with the thread counts that were found to be best.

    threads: what the user asked for, which is kept. key: what the profile holds for. If anything fails, both are as they were before,
    but empty; what fails is raised on.
    """
    clock = Clock(budget_s, on_step)
    sessions = [session for session in (drafter, expert) if session is not None]
    found = [(context, context.threads, context.batch_threads, context.padding) for context in (session.context for session in sessions)]
    try:
        benches = [TimedSession(session, clock) for session in sessions]
        for bench in benches:
            bench.choose_threads(threads)
        rounds = _rounds(benches, clock)
        next(rounds)
        for bench in benches:  # amid the rounds at the lower depth, which they are compared with
            bench.measure_deep()
        for _ in rounds:
            pass
        overlap = 1.0 if drafter is None else _overlap(clock, *benches)
        speeds = [bench.speed() for bench in benches]
        profile = Profile(speeds[-1], FREE if drafter is None else speeds[0], overlap, key or {}, *loop_cost(drafter, expert))
    except BaseException:
        for context, single, batch, padding in found:
            context.set_threads(single, batch)
            context.pad_batches(padding)
        raise
    finally:
        for session in sessions:
            session.rewind(0)
    on_step(1.0)
    return profile


def _rounds(benches: Sequence[TimedSession], clock: Clock) -> Iterator[int]:
    """Round after round over all sizes of both models, until the budget is spent and enough is known of each."""
    for turn in range(MOST_ROUNDS):
        late = clock.spent > 1
        if turn and (clock.spent > 2 or (late and turn >= FEWEST_ROUNDS)):
            return
        for bench in benches:
            bench.batch_s(1)  # not counted: the other model's weights are in the processor's cache
            for n in bench.sizes:
                if turn < 2 or not late or bench.unsure(n):
                    bench.visit(n)
        yield turn


def _overlap(clock: Clock, drafter: TimedSession, expert: TimedSession) -> float:
    """How much of the shorter of two works is not hidden when they run side by side: the expert's batch, the drafter's single steps.

    What each takes alone is measured before there is a second thread: from then on the threads of both may hinder one another even
    where only one model works, and what the drafter loses by that counts too.
    """
    size = min(USUAL_BATCH, expert.sizes[-1])
    steps = max(1, min(round(expert.typical_s(size) / drafter.typical_s(1)), len(drafter.sizes)))
    alone = [(expert.batch_s(size), drafter.steps_s(steps)) for _ in range(FEWEST_ROUNDS)]
    batch, steps_alone = (median(each) for each in zip(*alone))
    lost = []
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(drafter.steps_s, 1).result()  # the first parallel region of a thread makes its helpers
        for _ in range(FEWEST_ROUNDS):
            started = perf_counter()
            beside = pool.submit(drafter.steps_s, steps)
            expert.batch_s(size)
            beside.result()
            together = perf_counter() - started
            afterwards = drafter.steps_s(steps)
            lost.append((together - max(batch, steps_alone) + afterwards - steps_alone) / min(batch, steps_alone))
            if clock.spent > 2:
                break
    share: float = median(lost)
    return min(1.0, max(0.0, share))
