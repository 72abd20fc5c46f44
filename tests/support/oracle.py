"""The methods a second time, written from the formulas in plain Python, one token at a time, sharing no code with the package.

Slow on purpose: the package's own rows, masks and targets are held equal to this.
"""

from __future__ import annotations

import codecs
import math
import statistics
from collections.abc import Sequence
from typing import Any

PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "top_n_sigma": 0.0}


def softmax(row: Sequence[float], temperature: float = 1.0) -> list[float]:
    top = max(row)
    weights = [math.exp((x - top) / temperature) for x in row]
    total = sum(weights)
    return [w / total for w in weights]


def sampling_probs(
    row: Sequence[float], *, temperature: float, top_k: int, top_p: float, min_p: float, top_n_sigma: float = 0.0
) -> list[float]:
    """Temperature, top-n-sigma, top-k, top-p, min-p, in this order; temperature 0 is one-hot at the first largest."""
    if temperature == 0:
        first = max(range(len(row)), key=lambda v: (row[v], -v))
        return [1.0 if v == first else 0.0 for v in range(len(row))]
    probs = softmax(row, temperature)
    best = sorted(range(len(row)), key=lambda v: (-row[v], v))
    if top_n_sigma:
        reach = top_n_sigma * statistics.pstdev(x for x in row if x > -math.inf)
        best = [v for v in best if max(row) - row[v] <= reach]
    if top_k:
        best = best[:top_k]
    if top_p < 1:
        mass, within, kept = 0.0, sum(probs[v] for v in best), []
        for v in best:
            kept.append(v)
            mass += probs[v] / within
            if mass >= top_p:
                break
        best = kept
    floor = min_p * max(probs)
    allowed = {v for v in best if probs[v] > 0 and (probs[v] >= floor or not min_p)}
    total = sum(probs[v] for v in allowed)
    return [probs[v] / total if v in allowed else 0.0 for v in range(len(row))]


def entropy(probs: Sequence[float]) -> float:
    return -sum(x * math.log(x) for x in probs if x > 0)


def kl(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(x * math.log(x / y) if y > 0 else math.inf for x, y in zip(one, other) if x > 0)


def tv(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(max(0.0, x - y) for x, y in zip(one, other))


def mixture(trusted: set[int], q: Sequence[float], p: Sequence[float]) -> list[float]:
    eta = sum(q[v] for v in range(len(q)) if v not in trusted)
    return [(q[v] if v in trusted else 0.0) + eta * p[v] for v in range(len(q))]


def mentored(q: Sequence[float], p: Sequence[float], divergence: float) -> list[float]:
    """Two nested bisections: A by the divergence, B by the sum."""

    def clipped(a: float, b: float) -> list[float]:
        return [min(max(x, y / b), y / a) for x, y in zip(q, p)]

    def target(a: float) -> list[float]:
        low, high = 0.0, 700.0  # log B
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if sum(clipped(a, math.exp(middle))) > 1 else (low, middle)
        return clipped(a, math.exp(high))

    if divergence == 0:
        return list(p)
    low, high = -700.0, 0.0  # log A
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if kl(p, target(math.exp(middle))) <= divergence else (middle, high)
    return target(math.exp(high))


def trusted_tokens(
    name: str, dials: Sequence[float], q: Sequence[float], p: Sequence[float], qu: Sequence[float], pu: Sequence[float]
) -> set[int]:
    """The tokens (or all, or none) that a mask rule leaves to the drafter."""
    everything = set(range(len(q)))
    alpha = dials[0] if dials else 0.0
    best, doubt = max(pu), entropy(pu)
    middle = [(x + y) / 2 for x, y in zip(q, p)]
    position: dict[str, Any] = {
        "strict": lambda: False,
        "chow": lambda: max(qu) >= 1 - alpha,
        "token_cascade": lambda: max(qu) >= 1 - alpha,
        "chow_log": lambda: entropy(qu) <= alpha,
        "diff": lambda: max(qu) >= max(pu) - alpha,
        "diff_log": lambda: entropy(qu) <= entropy(pu) + alpha,
        "opt": lambda: max(qu) >= max(pu) - alpha * tv(p, q),
        "opt_log": lambda: entropy(qu) <= entropy(pu) + alpha * tv(p, q),
        "fuzzy": lambda: (kl(q, middle) + kl(p, middle)) / 2 < alpha,
        "decision_tokens": lambda: -sum(x * math.log(max(y, 1e-300)) for x, y in zip(qu, pu)) <= alpha,
    }
    token: dict[str, Any] = {
        "token_v1": lambda v: qu[v] >= best - alpha,
        "token_v2": lambda v: pu[v] >= best - alpha,
        "token_v3": lambda v: pu[v] >= (1 - alpha) * best,
        "bild": lambda v: pu[v] > 0 and -math.log(pu[v]) <= alpha,
        "typical": lambda v: pu[v] > min(dials[0], dials[1] * math.exp(-doubt)),
    }
    if name in position:
        return everything if position[name]() else set()
    return {v for v in everything if token[name](v)}


def target(
    name: str, dials: Sequence[Any], drafter_row: Sequence[float], expert_row: Sequence[float], settings: dict[str, Any]
) -> list[float]:
    """The distribution of the token that is emitted at a drafted position without a past."""
    q, p = sampling_probs(drafter_row, **settings), sampling_probs(expert_row, **settings)
    qu, pu = softmax(drafter_row), softmax(expert_row)
    warm = settings | {"temperature": settings["temperature"] or 1.0}
    allowed = {v for v, x in enumerate(sampling_probs(expert_row, **warm)) if x > 0}
    if name == "never":
        return q
    if name == "mentored":
        return mentored(q, p, dials[0])
    if name == "lenience":
        leniency = 1 - dials[0]
        if settings["temperature"] == 0:
            best = max(pu)
            return mixture({v for v in allowed if pu[v] >= leniency * best}, q, p)
        keep = [min(x, y / leniency) if leniency else (x if v in allowed else 0.0) for v, (x, y) in enumerate(zip(q, p))]
        residual = [max(0.0, y - x) for x, y in zip(q, p)]
        rest = max(0.0, 1 - sum(keep))
        mass = sum(residual)
        shares = [r / mass for r in residual] if mass else p
        return [k + rest * r for k, r in zip(keep, shares)]
    if name == "budget":
        limit, inner = dials
        ends = {"token_v3": (-1e-9, 1.0), "diff": (-1.0, 1.0), "lenience": (0.0, 1.0)}[inner]
        found = target(inner, [ends[0] + 0.5 * (ends[1] - ends[0])], drafter_row, expert_row, settings)
        return found if tv(found, p) <= limit else list(p)
    trusted = trusted_tokens(name, dials, q, p, qu, pu)
    return mixture(trusted if name == "token_cascade" else trusted & allowed, q, p)  # it does not ask where it keeps


def written_out(tokens: Sequence[bytes | str]) -> list[tuple[str, bool]]:
    """Each character of a text with its control tokens written out, and whether it is visible.

    tokens: visible bytes, or how a control token is written.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return [
        (character, isinstance(token, bytes))
        for token in tokens
        for character in (decoder.decode(token) if isinstance(token, bytes) else token)
    ]


def visible_until_stop(tokens: Sequence[bytes | str], stops: Sequence[str]) -> tuple[str, int | None]:
    """What is visible of a text, and which of its tokens completes a stop string.

    Token by token and character by character the text is read again from its beginning, with and without its control tokens.
    """
    for count in range(1, len(tokens) + 1):
        before, written = len(written_out(tokens[: count - 1])), written_out(tokens[:count])
        for end in range(before + 1, len(written) + 1):
            cuts = []
            for everything in (True, False) if written[end - 1][1] else (True,):
                places = [place for place in range(end) if everything or written[place][1]]
                text = "".join(written[place][0] for place in places)
                cuts += [places[len(text) - len(stop)] for stop in stops if text.endswith(stop)]
            if cuts:
                return "".join(character for character, seen in written[: min(cuts)] if seen), count - 1
    whole = b"".join(token for token in tokens if isinstance(token, bytes))
    return whole.decode(errors="replace"), None
