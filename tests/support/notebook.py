"""Google's notebook a second time: its formulas in numpy, sharing no code with it or with the package.

The notebook is ``speculative_cascades/speculative_cascades_gemma.ipynb`` of google-research/google-research, beside Narasimhan et al.
2405.19261. It drafts one token x ~ q at a time and keeps it with probability min(1, π(x) / q(x)), π being a rule's target. Otherwise it
draws from max(0, π - q). Its ``lenience`` is alpha here. It has no filters, penalties or grammars, so the comparison has none.

Where the package differs from it on purpose, :func:`lossy_coin` says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: The notebook puts this in place of a smaller q(x), so as not to divide by 0.
LEAST = 1e-10
#: The package's names of the notebook's deferral rules.
RULES = ("chow", "diff", "opt", "token_v1", "token_v2", "token_v3")


@dataclass(frozen=True)
class Place:
    """Both models at one position: ``raw`` is at temperature 1, the others are what is sampled from. Each [n_vocab]."""

    raw_small: np.ndarray
    raw_large: np.ndarray
    small: np.ndarray
    large: np.ndarray

    @classmethod
    def of(cls, logits_small: np.ndarray, logits_large: np.ndarray, temperature: float) -> Place:
        both = [np.asarray(logits, np.float64) for logits in (logits_small, logits_large)]
        return cls(*(_warmed(logits, 1.0) for logits in both), *(_warmed(logits, temperature) for logits in both))


def _warmed(logits: np.ndarray, temperature: float) -> np.ndarray:
    if temperature == 0:
        hot = np.zeros(len(logits))
        hot[int(logits.argmax())] = 1.0
        return hot
    weights = np.exp((logits - logits.max()) / temperature)
    return weights / weights.sum()


def trusted(rule: str, alpha: float, place: Place) -> np.ndarray:
    """Which tokens are the small model's to say: equations 2, 5 and 10 (all or none), 13, 14 and 15 of the paper. [n_vocab] bool"""
    small, large = place.raw_small, place.raw_large
    if rule == "chow":
        found = small.max() >= 1 - alpha
    elif rule == "diff":
        found = small.max() >= large.max() - alpha
    elif rule == "opt":
        found = small.max() >= large.max() - alpha * np.clip(place.small - place.large, 0, None).sum()
    elif rule == "token_v1":
        found = small >= large.max() - alpha
    elif rule == "token_v2":
        found = large >= large.max() - alpha
    else:
        found = large >= (1 - alpha) * large.max()
    return np.broadcast_to(found, small.shape)


def target(rule: str, alpha: float, place: Place) -> np.ndarray:
    """π = q where trusted, and the rest of q's mass handed to p over every token. [n_vocab]"""
    kept = np.where(trusted(rule, alpha, place), place.small, 0.0)
    return kept + (1 - kept.sum()) * place.large


def coin(wanted: np.ndarray, small: np.ndarray, lenience: float = 0.0, least: float = LEAST) -> np.ndarray:
    """The chance that each token is kept once it is drafted. [n_vocab]"""
    return np.minimum(1.0, wanted / np.maximum((1 - lenience) * small, least))


def residual(wanted: np.ndarray, small: np.ndarray) -> np.ndarray:
    """What is drawn from in place of a dropped token, not normalised. [n_vocab]"""
    return np.clip(wanted - small, 0, None)


def lossy_coin(alpha: float, place: Place, least: float = LEAST) -> np.ndarray:
    """Its lossy speculative decoding, which the package calls ``lenience``; dropped tokens are replaced from max(0, p - q). [n_vocab]

    At temperature 0 the notebook compares one-hot distributions, so it keeps nothing but the expert's favourite. The package compares
    raw probabilities there, as appendix A.5 of Leviathan et al. 2211.17192 does.
    """
    return coin(place.large, place.small, alpha, least)


def emitted(kept: np.ndarray, left: np.ndarray, small: np.ndarray) -> np.ndarray:
    """The distribution of the token that comes out: drafted and kept, or drawn in place of a dropped one. [n_vocab]"""
    dropped = 1 - (small * kept).sum()
    return small * kept + (dropped * left / left.sum() if left.sum() > 0 else 0.0)
