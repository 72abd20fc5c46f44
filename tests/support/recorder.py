"""Sessions that record what they evaluate, and the fidelity of each token computed again."""

from __future__ import annotations

import math

import numpy as np
import pytest

import speccascade_local as sc
from speccascade_local.rules.registry import target_probs
from speccascade_local.runtime.reply import Reply, Token
from speccascade_local.tokens.sampler import Sampler

PROMPTS = ["Count from 3 to 9 by 2.", "Write FizzBuzz for 15.", "What is 17 plus 25?"]


class Recorder:
    """The rows that a runtime's two models compute, by the text that they follow; the latest of each."""

    def __init__(self, runtime: sc.Runtime, patch: pytest.MonkeyPatch) -> None:
        self.rows: dict[str, dict[tuple[int, ...], np.ndarray]] = {"drafter": {}, "expert": {}}
        for role, session in (("drafter", runtime._drafter), ("expert", runtime._expert)):
            patch.setattr(session, "extend", self._recording(session, session.extend, self.rows[role]))

    @staticmethod
    def _recording(session, extend, rows):
        def recording(tokens, keep):
            found = extend(tokens, keep)
            for i, row in enumerate(found):
                rows[tuple(session.tokens[: len(session.tokens) - keep + i + 1])] = row.copy()
            return found

        return recording


def deviations(token: Token, rule: str, q_row, p_row, settings) -> list[float]:
    """By how much each number in the account of a token differs from what these rows say; asserts everything that is no number."""
    found = []
    p_row = None if token.expert_logprob is None else p_row
    target, p = expected(token, rule, q_row, p_row, settings)
    sides = [(token.logprobs, target)]
    if p is None:
        assert (token.tv, token.expert_logprobs) == (None, None)
    else:
        found += [token.tv - np.maximum(target - p, 0).sum(), token.expert_logprob - plain(p_row, token.id)]
        sides.append((token.expert_logprobs, p))
    assert (token.drafter_logprob is None) == (token.drafter_logprobs is None)
    if token.drafter_logprob is not None:
        found.append(token.drafter_logprob - plain(q_row, token.id))
        sides.append((token.drafter_logprobs, Sampler(**settings).probs(q_row)))
    for account, probs in sides:
        probs_of = np.zeros(len(probs))
        probs_of[[c.id for c in account.top]] = np.exp([c.logprob for c in account.top])
        best = -np.sort(-probs)[: len(account.top)]
        assert len(account.top) == min(5, np.count_nonzero(probs_of)) <= 5
        assert [c.logprob for c in account.top] == sorted((c.logprob for c in account.top), reverse=True)
        found.append(math.exp(account.logprob) - probs[token.id])  # may be 0 for a model that did not write it
        found += (np.exp([c.logprob for c in account.top]) - best).tolist()  # nothing better was left out
        found += [probs_of[c.id] - probs[c.id] for c in account.top]
        found.append(np.delete(probs, [c.id for c in account.top]).max() if len(account.top) < 5 else 0.0)
    return [abs(float(each)) for each in found]


def each_token(reply: Reply, prompt: list[int], rows):
    """Every token of a reply with the two rows that it follows, as far as they are known."""
    for j, token in enumerate(reply.tokens):
        text = (*prompt, *reply.token_ids[:j])
        yield token, rows["drafter"].get(text), rows["expert"].get(text)


def ids(runtime: sc.Runtime, prompt: str) -> list[int]:
    return runtime.chat_ids([{"role": "user", "content": prompt}])


def plain(row: np.ndarray, token: int) -> float:
    wide = row.astype(np.float64)
    return float(wide[token] - np.logaddexp.reduce(wide))


def expected(token: Token, rule: str, q_row, p_row, settings) -> tuple[np.ndarray, np.ndarray | None]:
    """What the token was drawn from, and the expert's own distribution where it was asked."""
    sampler = Sampler(**settings)
    p = None if p_row is None else sampler.probs(p_row)
    if token.origin in ("bonus", "expert"):
        return p, p
    if p is None:
        return sampler.probs(q_row), None
    return target_probs(rule, q_row, p_row, **settings)[0], p
