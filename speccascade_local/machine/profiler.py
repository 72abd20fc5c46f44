"""A session under the stopwatch: how long its batches take, at two depths, and with which threads.

On random tokens, and medians throughout. Knows nothing of pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from time import perf_counter

import numpy as np

from ..decoding.profile import FREE, SIZES, Profile, Speed
from ..llama.backend import physical_cores
from ..llama.session import LlamaSession
from .loop_cost import loop_cost

#: About how many seconds measuring a pair may take; a large model takes longer, because each size is measured at least once.
BUDGET_S = 6.0
FEWEST_ROUNDS = 3
#: The batch that a draft is usually checked in.
USUAL_BATCH = 8
SHALLOW, DEEP, LESS_DEEP = 32, 512, 272
#: llama.cpp looks at its cache in steps of 256 tokens: less difference than this between two depths would show nothing.
_LEAST_DEEPER = 128
_DEEP_SIZES = (1, 4, 8, 16)
_AGREED = 0.05  # two measurements of one thing that differ by no more than this need no third
_QUICK_S, _AT_ONCE = 0.01, 5  # one visit repeats what is quick, up to so many times

Samples = dict[int, list[float]]


def depths_in(n_ctx: int) -> tuple[int, ...]:
    """How full the cache is when batches are measured in a context of this size: two depths, or one where there is no room."""
    shallow = min(SHALLOW, n_ctx // 4)
    deep = min(DEEP, n_ctx - SHALLOW)
    return (shallow, deep) if deep >= shallow + _LEAST_DEEPER else (shallow,)


def fewest_threads(seconds: Mapping[int, float]) -> int:
    """By thread count: the fewest of those within 5 % of the fastest."""
    best = min(seconds.values())
    return min(threads for threads, taken in seconds.items() if taken <= 1.05 * best)


def extrapolate(known: Mapping[int, float]) -> tuple[float, ...]:
    """Seconds for all SIZES from those for 1..k: beyond k, which is all that a tiny context has room for, a straight line."""
    last = max(known)
    slope = max(0.0, (known[last] - known[1]) / (last - 1)) if last > 1 else known[1]
    return tuple(known[n] if n in known else known[last] + (n - last) * slope for n in SIZES)


def scale(shallow: Sequence[float], deep: Mapping[int, float]) -> tuple[float, ...]:
    """Seconds for all SIZES at a depth where some were measured, from those at a lower one; a deeper cache is never cheaper."""
    sizes = sorted(deep)
    ratios = [max(1.0, deep[n] / shallow[n - 1]) for n in sizes]
    return tuple(float(seconds * np.interp(n, sizes, ratios)) for n, seconds in zip(SIZES, shallow))


class Budget:
    """How much of the budget is spent, and who wants to know."""

    def __init__(self, budget_s: float, on_step: Callable[[float], None]) -> None:
        self.budget_s, self._on_step = budget_s, on_step
        self._started = perf_counter()

    @property
    def spent(self) -> float:
        """As a share of the budget."""
        return (perf_counter() - self._started) / self.budget_s if self.budget_s > 0 else float("inf")

    def tick(self) -> None:
        """Something was measured."""
        self._on_step(1 - 0.5 ** (2 * self.spent))  # a large model goes beyond the budget; the bar still moves


class SessionProfiler:
    """One session under measurement. It is filled to the lower depth, and every measurement leaves it so."""

    def __init__(self, session: LlamaSession, clock: Budget) -> None:
        self._session, self._clock = session, clock
        self._ids = np.random.default_rng(1).integers(0, session.model.n_vocab, DEEP + SHALLOW).tolist()
        self.depth, *deeper = depths_in(session.n_ctx)
        self._deep = deeper[0] if deeper else None
        self.sizes = [n for n in SIZES if self.depth + n <= session.n_ctx]
        self._samples: Samples = {n: [] for n in self.sizes}
        self._deep_samples: Samples = {}
        session.roll_back(0)
        session.context.pad_batches({})
        self._prompt_s: float | None = None
        self._fill(self.depth)
        for n in (self.sizes[-1], 1):  # the first batch of a kind finds cold weights and makes its buffers
            self.batch_s(n)

    def batch_s(self, n: int) -> float:
        """Evaluate n tokens now and forget them again."""
        session = self._session
        held = len(session.tokens)
        started = perf_counter()
        session.extend(self._ids[held : held + n], keep=n)
        taken = perf_counter() - started
        session.roll_back(held)
        self._clock.tick()
        return taken

    def steps_s(self, n: int) -> float:
        """Evaluate n tokens one by one and forget them again."""
        session = self._session
        held = len(session.tokens)
        started = perf_counter()
        for token in self._ids[held : held + n]:
            session.extend([token], keep=1)
        taken = perf_counter() - started
        session.roll_back(held)
        return taken

    def choose_threads(self, named: int | None) -> None:
        """Of 1, 2, 4, ... physical cores, for single tokens and for batches apart; not where the user or the model's size has decided."""
        if named is not None:
            self._session.context.set_threads(named, named)
        elif self._session.model.default_threads > 1:
            cores = physical_cores()
            candidates = [*(2**i for i in range(cores.bit_length()) if 2**i < cores), cores]
            single, batch = self._best_threads(1, candidates), self._best_threads(min(USUAL_BATCH, self.sizes[-1]), candidates)
            self._session.context.set_threads(single, batch)
            self.batch_s(1)

    def _best_threads(self, n: int, candidates: Sequence[int]) -> int:
        samples: Samples = {threads: [] for threads in candidates}
        for turn in range(FEWEST_ROUNDS):
            for threads, taken in samples.items():
                self._session.context.set_threads(threads, threads)
                self._visit(n, taken)
            best = min(min(taken) for taken in samples.values())
            samples = {threads: taken for threads, taken in samples.items() if min(taken) <= 1.5 * best}
            if len(samples) == 1 or (turn and self._clock.spent > 1):
                break
        return fewest_threads({threads: median(taken) for threads, taken in samples.items()})

    def visit(self, n: int) -> None:
        """Measure batches of n for the profile, once or, if quick, a few times."""
        self._visit(n, self._samples[n])

    def _visit(self, n: int, samples: list[float]) -> None:
        until = perf_counter() + _QUICK_S
        for _ in range(_AT_ONCE):
            samples.append(self.batch_s(n))
            if perf_counter() > until:
                break

    def unsure(self, n: int) -> bool:
        """Whether what was measured of n so far disagrees."""
        return max(self._samples[n]) > (1 + _AGREED) * min(self._samples[n])

    def typical_s(self, n: int) -> float:
        """What was measured for n so far."""
        return median(self._samples[n])

    def measure_deep(self) -> None:
        """A few sizes with a fuller cache; how full depends on how long filling it takes."""
        if self._deep is None:
            return
        per_token = self.typical_s(self.sizes[-1]) / self.sizes[-1]
        if per_token * self._deep > self._clock.budget_s / 3:
            self._deep = min(self._deep, LESS_DEEP)
        if per_token * self._deep > self._clock.budget_s:
            self._deep = None
            return
        started, filled = perf_counter(), len(self._session.tokens)
        self._fill(self._deep)
        self._prompt_s = (perf_counter() - started) / (self._deep - filled)
        self._deep_samples = {n: [] for n in _DEEP_SIZES}
        for _ in range(FEWEST_ROUNDS - 1):
            for n, samples in self._deep_samples.items():
                self._visit(n, samples)
        self._session.roll_back(self.depth)

    def _fill(self, depth: int) -> None:
        missing = self._ids[len(self._session.tokens) : depth]
        if missing:
            self._session.extend(missing, keep=1)

    def speed(self) -> Speed:
        """What was found."""
        shallow = extrapolate({n: median(samples) for n, samples in self._samples.items()})
        rows = {self.depth: shallow}
        if self._deep is not None:
            rows[self._deep] = scale(shallow, {n: median(samples) for n, samples in self._deep_samples.items()})
        # A context too small to read a prompt in: as in the largest batch.
        prompt_s = self._prompt_s or shallow[-1] / SIZES[-1]
        return Speed(self._session.context.threads, self._session.context.batch_threads, tuple(rows), tuple(rows.values()), prompt_s)


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
    clock = Budget(budget_s, on_step)
    sessions = [session for session in (drafter, expert) if session is not None]
    found = [(context, context.threads, context.batch_threads, context.padding) for context in (session.context for session in sessions)]
    try:
        benches = [SessionProfiler(session, clock) for session in sessions]
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
            session.roll_back(0)
    on_step(1.0)
    return profile


def _rounds(benches: Sequence[SessionProfiler], clock: Budget) -> Iterator[int]:
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


def _overlap(clock: Budget, drafter: SessionProfiler, expert: SessionProfiler) -> float:
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
