"""What two sequences of token ids share. Knows nothing of what they stand for."""

from __future__ import annotations


def shared_prefix_length(one: list[int], other: list[int]) -> int:
    """How many ids both begin with."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:  # nearly always, and quick
        return high
    while low < high:  # halving, because comparing slices is much quicker than a loop over tokens
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low
