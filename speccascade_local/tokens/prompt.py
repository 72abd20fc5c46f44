"""Prompts as token ids, and checks of what cannot be a prompt."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Protocol

from ..common.errors import ContextOverflowError, PromptError

Prompt = str | Sequence[int]
#: Text, and whether control tokens are read in it.
Part = tuple[str, bool]


class Tokenizer(Protocol):
    """The part of :class:`~speccascade_local.llama.tokenizer.Tokenizer` that prompts need."""

    @property
    def bos_id(self) -> int | None: ...

    @property
    def special_texts(self) -> dict[str, str]: ...

    def is_end(self, token: int) -> bool: ...

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    def piece(self, token: int, *, special: bool = False) -> bytes: ...


def prompt_ids(prompt: Prompt, tokenizer: Tokenizer, *, n_vocab: int, n_ctx: int, n_ctx_trained: int) -> list[int]:
    """Return the ids of a raw prompt: a text, in which control tokens are read, or ids. ``n_vocab``: how many ids both models have.

    A text gets the model's BOS unless it begins with it; ids stay as given. Raises PromptError where the prompt is empty, no text or list
    of ids, or holds an unknown id, and ContextOverflowError where it is longer than the context.
    """
    if isinstance(prompt, str):
        ids = tokenizer.tokenize(prompt, add_special=True, parse_special=True) if prompt else []
        if tokenizer.bos_id is not None and ids[:2] == [tokenizer.bos_id] * 2:  # the text begins with the BOS
            del ids[0]
    else:
        try:
            if isinstance(prompt, (bytes, bytearray)) or any(isinstance(token, bool) for token in prompt):
                raise TypeError
            ids = [operator.index(token) for token in prompt]
        except TypeError:
            raise PromptError(f"the prompt is {prompt!r:.80}; it must be a text or a list of token ids") from None
    if not ids:
        raise PromptError("the prompt is empty; give at least one token of text")
    if not 0 <= min(ids) <= max(ids) < n_vocab:
        wrong = next(token for token in ids if not 0 <= token < n_vocab)
        raise PromptError(f"the prompt holds token id {wrong}; the ids that both models have are 0 to {n_vocab - 1}")
    if len(ids) > n_ctx:
        more = " or load with a larger context (--ctx)" if n_ctx < n_ctx_trained else "; the models were trained for no more"
        raise ContextOverflowError(f"the prompt has {len(ids)} tokens and the context holds {n_ctx}; shorten the prompt{more}")
    return ids


def encode_parts(parts: Sequence[Part], tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a rendered chat template."""
    parts = parts or [("", True)]
    bos, bos_id = tokenizer.special_texts["bos_token"], tokenizer.bos_id
    has_bos = bool(bos) and parts[0][1] and parts[0][0].startswith(bos)  # many templates write the BOS themselves
    ids = [] if bos_id is None or has_bos else [bos_id]
    for text, may_hold_control in parts:
        ids += tokenizer.tokenize(text, add_special=False, parse_special=may_hold_control)
    return ids


def shared_prefix_length(one: list[int], other: list[int]) -> int:
    """Return how many ids both sequences begin with."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:  # nearly always, and quick
        return high
    while low < high:  # bisection: comparing slices is much quicker than a loop over tokens
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low
