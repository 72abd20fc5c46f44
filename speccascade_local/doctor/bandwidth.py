"""How fast this machine's memory is, by copying: each token of a text reads all weights, so this bounds tokens per second.

Knows nothing of models.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_LEAST, _MOST = 64 << 20, 1 << 30


def memory_bandwidth(threads: int, cache: int, available: int, seconds: float = 1.0) -> float | None:
    """Bytes per second, read and written, of the best of several copies that no cache can hold: a lower bound of what the memory can do.

    cache, available: bytes of the largest cache and of free memory. None where memory is too short to tell.
    """
    size = min(max(_LEAST, 4 * cache), _MOST) // threads * threads
    if 4 * size > available:
        return None
    source, target = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    source.fill(1)  # zeros alone are no memory yet
    target.fill(1)
    parts = list(zip(np.split(source, threads), np.split(target, threads)))
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            list(pool.map(lambda part: np.copyto(part[1], part[0]), parts))  # without Python's lock
            best = min(best, time.perf_counter() - start)
    return 2 * size / best
