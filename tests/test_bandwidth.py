"""The memory's bandwidth, by a clock that is not this machine's."""

from __future__ import annotations

import itertools

import pytest

from speccascade_local.doctor import bandwidth

GB = 1 << 30


@pytest.mark.parametrize(("threads", "cache"), [(1, 0), (2, 32 << 20), (3, 10 << 20), (4, 8 * GB)])
def test_it_is_what_was_read_and_written_over_the_best_time(monkeypatch, threads, cache):
    ticks = itertools.chain([0.0, 0.1, 1.0, 1.5, 2.0, 2.5, 4.5], itertools.repeat(1e9))  # copies of half a second, then of 2 s
    monkeypatch.setattr(bandwidth.time, "perf_counter", lambda: next(ticks))
    copied = []
    monkeypatch.setattr(bandwidth.np, "copyto", lambda target, source: copied.append((target.nbytes, source.nbytes)))
    found = bandwidth.memory_bandwidth(threads, cache, available=100 * GB, seconds=4.4)
    size = sum(target for target, _ in copied) // 2
    assert len(copied) == 2 * threads
    assert size >= min(4 * cache, GB) // threads * threads
    assert found == 2 * size / 0.5


def test_where_memory_is_short_nothing_is_taken():
    assert bandwidth.memory_bandwidth(1, 0, available=255 << 20) is None


def test_a_real_copy_copies(monkeypatch):
    found = bandwidth.memory_bandwidth(2, 0, available=GB, seconds=0.01)
    assert found is not None
    assert found > 1e6
