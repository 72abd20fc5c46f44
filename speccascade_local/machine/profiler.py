"""Measures the profile of a pair: how long batches of each size take, at two depths of the KV cache, and with how many threads.

The tokens are random, and every figure is a median.
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

#: About how many seconds a pair is measured. A large model takes longer, because each size is measured at least once.
BUDGET_S = 6.0
MIN_ROUNDS, MAX_ROUNDS = 3, 9
#: The size of the batch that a draft is usually scored in.
USUAL_BATCH = 8
#: Tokens in the KV cache when batches are measured.
SHALLOW, DEEP, LESS_DEEP = 32, 512, 272
#: llama.cpp reads its cache in steps of 256 tokens, so depths that are closer than this would not differ.
_MIN_DEPTH_DIFFERENCE = 128
_DEEP_SIZES = (1, 4, 8, 16)
#: Two measurements that differ by no more than this share need no third.
_TOLERANCE = 0.05
#: A visit repeats a batch for this many seconds, and at most this many times.
_VISIT_S, _MAX_REPEATS = 0.01, 5

Samples = dict[int, list[float]]


def depths_in(n_ctx: int) -> tuple[int, ...]:
    """Return the depths at which batches are measured in a context of ``n_ctx`` tokens: two, or one where there is no room."""
    shallow = min(SHALLOW, n_ctx // 4)
    deep = min(DEEP, n_ctx - SHALLOW)
    return (shallow, deep) if deep >= shallow + _MIN_DEPTH_DIFFERENCE else (shallow,)


def fewest_threads(seconds: Mapping[int, float]) -> int:
    """Return the fewest threads within 5 % of the fastest, from the seconds of each thread count."""
    best = min(seconds.values())
    return min(threads for threads, time in seconds.items() if time <= 1.05 * best)


def extrapolate(known: Mapping[int, float]) -> tuple[float, ...]:
    """Return seconds for all ``SIZES`` from those for 1..k, all that a tiny context has room for: beyond k a straight line. [17]"""
    last = max(known)
    slope = max(0.0, (known[last] - known[1]) / (last - 1)) if last > 1 else known[1]
    return tuple(known[n] if n in known else known[last] + (n - last) * slope for n in SIZES)


def scale(shallow: Sequence[float], deep: Mapping[int, float]) -> tuple[float, ...]:
    """Return seconds for all ``SIZES`` at a deeper cache where a few were measured, from those of a shallow one; never less. [17]"""
    sizes = sorted(deep)
    ratios = [max(1.0, deep[n] / shallow[n - 1]) for n in sizes]
    return tuple(float(seconds * np.interp(n, sizes, ratios)) for n, seconds in zip(SIZES, shallow))


class Budget:
    """The time that a measurement may take, and the progress that it reports."""

    def __init__(self, budget_s: float, on_step: Callable[[float], None]) -> None:
        self.budget_s, self._on_step = budget_s, on_step
        self._started = perf_counter()

    @property
    def spent(self) -> float:
        """The time that is spent, as a share of the budget."""
        return (perf_counter() - self._started) / self.budget_s if self.budget_s > 0 else float("inf")

    def tick(self) -> None:
        """Report the progress. A large model exceeds the budget, and the bar still moves."""
        self._on_step(1 - 0.5 ** (2 * self.spent))


class SessionProfiler:
    """Measures one session. The session is filled to the shallow depth, and every measurement leaves it so."""

    def __init__(self, session: LlamaSession, budget: Budget) -> None:
        self._session, self._budget = session, budget
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
        for n in (self.sizes[-1], 1):  # the first batch of a kind finds cold weights and allocates its buffers
            self.batch_s(n)

    def batch_s(self, n: int) -> float:
        """Return the seconds of one batch of n tokens, which are rolled back."""
        session = self._session
        held = len(session.tokens)
        started = perf_counter()
        session.extend(self._ids[held : held + n], keep=n)
        seconds = perf_counter() - started
        session.roll_back(held)
        self._budget.tick()
        return seconds

    def steps_s(self, n: int) -> float:
        """Return the seconds of n single tokens one after the other, which are rolled back."""
        session = self._session
        held = len(session.tokens)
        started = perf_counter()
        for token in self._ids[held : held + n]:
            session.extend([token], keep=1)
        seconds = perf_counter() - started
        session.roll_back(held)
        return seconds

    def choose_threads(self, threads: int | None) -> None:
        """Set the fastest of 1, 2, 4, ... physical cores for single tokens and for batches.

        ``threads`` is the user's choice, which is kept; a tiny model keeps its one thread.
        """
        if threads is not None:
            self._session.context.set_threads(threads, threads)
        elif self._session.model.default_threads > 1:
            cores = physical_cores()
            candidates = [*(2**i for i in range(cores.bit_length()) if 2**i < cores), cores]
            single, batch = self._best_threads(1, candidates), self._best_threads(min(USUAL_BATCH, self.sizes[-1]), candidates)
            self._session.context.set_threads(single, batch)
            self.batch_s(1)

    def _best_threads(self, n: int, candidates: Sequence[int]) -> int:
        samples: Samples = {threads: [] for threads in candidates}
        for turn in range(MIN_ROUNDS):
            for threads, times in samples.items():
                self._session.context.set_threads(threads, threads)
                self._visit(n, times)
            best = min(min(times) for times in samples.values())
            samples = {threads: times for threads, times in samples.items() if min(times) <= 1.5 * best}
            if len(samples) == 1 or (turn and self._budget.spent > 1):
                break
        return fewest_threads({threads: median(times) for threads, times in samples.items()})

    def visit(self, n: int) -> None:
        """Measure batches of n tokens for the profile: once, or a few times where that is quick."""
        self._visit(n, self._samples[n])

    def _visit(self, n: int, samples: list[float]) -> None:
        end = perf_counter() + _VISIT_S
        for _ in range(_MAX_REPEATS):
            samples.append(self.batch_s(n))
            if perf_counter() > end:
                break

    def is_noisy(self, n: int) -> bool:
        """Return whether the measurements of n tokens disagree so far."""
        return max(self._samples[n]) > (1 + _TOLERANCE) * min(self._samples[n])

    def typical_s(self, n: int) -> float:
        """Return the median for n tokens so far."""
        return median(self._samples[n])

    def measure_deep(self) -> None:
        """Measure a few sizes with a fuller cache; how full it is depends on how long filling it takes."""
        if self._deep is None:
            return
        per_token = self.typical_s(self.sizes[-1]) / self.sizes[-1]
        if per_token * self._deep > self._budget.budget_s / 3:
            self._deep = min(self._deep, LESS_DEEP)
        if per_token * self._deep > self._budget.budget_s:
            self._deep = None
            return
        started, filled = perf_counter(), len(self._session.tokens)
        self._fill(self._deep)
        self._prompt_s = (perf_counter() - started) / (self._deep - filled)
        self._deep_samples = {n: [] for n in _DEEP_SIZES}
        for _ in range(MIN_ROUNDS - 1):
            for n, samples in self._deep_samples.items():
                self._visit(n, samples)
        self._session.roll_back(self.depth)

    def _fill(self, depth: int) -> None:
        missing = self._ids[len(self._session.tokens) : depth]
        if missing:
            self._session.extend(missing, keep=1)

    def speed(self) -> Speed:
        """Return the speed from all measurements."""
        shallow = extrapolate({n: median(samples) for n, samples in self._samples.items()})
        rows = {self.depth: shallow}
        if self._deep is not None:
            rows[self._deep] = scale(shallow, {n: median(samples) for n, samples in self._deep_samples.items()})
        # Where a context is too small for a prompt, a token takes as long as in the largest batch.
        prompt_s = self._prompt_s or shallow[-1] / SIZES[-1]
        return Speed(self._session.context.threads, self._session.context.batch_threads, tuple(rows), tuple(rows.values()), prompt_s)


def measure(
    drafter: LlamaSession | None,
    expert: LlamaSession,
    *,
    threads: int | None = None,
    key: Mapping[str, str | int] | None = None,
    budget_s: float = BUDGET_S,
    on_step: Callable[[float], None] = lambda _: None,
) -> Profile:
    """Measure the profile of a pair.

    Both sessions are empty afterwards, their batches unpadded, with the thread counts of the profile. Where an exception ends the
    measurement, threads and padding are as before.

    Args:
        drafter: None where drafts are copied from the text.
        expert: The expert's session.
        threads: The thread count that the user asked for; None to choose the fastest.
        key: What the profile holds for.
        budget_s: About how many seconds to measure.
        on_step: Called with the progress, 0..1.
    """
    budget = Budget(budget_s, on_step)
    sessions = [session for session in (drafter, expert) if session is not None]
    settings = [(context, context.threads, context.batch_threads, context.padding) for context in (session.context for session in sessions)]
    try:
        profilers = [SessionProfiler(session, budget) for session in sessions]
        for each in profilers:
            each.choose_threads(threads)
        rounds = _rounds(profilers, budget)
        next(rounds)
        for each in profilers:  # between the shallow rounds, which they are compared with
            each.measure_deep()
        for _ in rounds:
            pass
        overlap = 1.0 if drafter is None else _overlap(budget, *profilers)
        speeds = [each.speed() for each in profilers]
        profile = Profile(speeds[-1], FREE if drafter is None else speeds[0], overlap, key or {}, *loop_cost(drafter, expert))
    except BaseException:
        for context, single, batch, padding in settings:
            context.set_threads(single, batch)
            context.pad_batches(padding)
        raise
    finally:
        for session in sessions:
            session.roll_back(0)
    on_step(1.0)
    return profile


def _rounds(profilers: Sequence[SessionProfiler], budget: Budget) -> Iterator[int]:
    """Measure all sizes of both models, round after round, until the budget is spent and each size is measured well enough."""
    for turn in range(MAX_ROUNDS):
        late = budget.spent > 1
        if turn and (budget.spent > 2 or (late and turn >= MIN_ROUNDS)):
            return
        for each in profilers:
            each.batch_s(1)  # not counted: the other model's weights are in the processor's cache
            for n in each.sizes:
                if turn < 2 or not late or each.is_noisy(n):
                    each.visit(n)
        yield turn


def _overlap(budget: Budget, drafter: SessionProfiler, expert: SessionProfiler) -> float:
    """Return the share of the shorter work that is not hidden when both run at once: the expert's batch, the drafter's single steps.

    Each is measured alone before a second thread exists. From then on the threads of both may slow each other down even while only one
    model works, and what the drafter loses by that counts too.
    """
    size = min(USUAL_BATCH, expert.sizes[-1])
    steps = max(1, min(round(expert.typical_s(size) / drafter.typical_s(1)), len(drafter.sizes)))
    times = [(expert.batch_s(size), drafter.steps_s(steps)) for _ in range(MIN_ROUNDS)]
    batch, steps_alone = (median(each) for each in zip(*times))
    losses = []
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(drafter.steps_s, 1).result()  # the first parallel region of a thread starts its workers
        for _ in range(MIN_ROUNDS):
            started = perf_counter()
            steps_together = pool.submit(drafter.steps_s, steps)
            expert.batch_s(size)
            steps_together.result()
            together = perf_counter() - started
            afterwards = drafter.steps_s(steps)
            losses.append((together - max(batch, steps_alone) + afterwards - steps_alone) / min(batch, steps_alone))
            if budget.spent > 2:
                break
    share: float = median(losses)
    return min(1.0, max(0.0, share))
