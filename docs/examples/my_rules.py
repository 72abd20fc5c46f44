"""A rule of your own: trust the drafter on digits, not on names.

Run it from this folder (or any folder that holds this file, or with the folder on PYTHONPATH):

    echo "A baker makes 8 loaves every hour for 4 hours and sells 15 of them. How many loaves are left?" |
        speccascade run --rule "my_rules:TrustDigits(0.3)"

or name it in a models.yaml, as ``rule: my_rules:TrustDigits(0.3)``, or from Python:

    runtime.chat(messages, rule=TrustDigits(0.3))

A rule is any object with ``defer(evidence)``; no base class is needed. ``defer`` returns True where the expert decides. It is called for
one drafted position at a time, and returns a value for every token of the vocabulary, because it may not depend on the drafted token.
Tokens that the user's filters deny the expert are deferred in any case.
"""

from __future__ import annotations

from dataclasses import dataclass


def is_number(text: str) -> bool:
    """Return whether the text is digits and nothing else, with or without a space before them."""
    return text.removeprefix(" ").isdecimal()


def is_name(text: str) -> bool:
    """Return whether the text begins with an upper-case letter, with or without a space before it."""
    return text.removeprefix(" ")[:1].isupper()


@dataclass(frozen=True)  # so that results name it TrustDigits(alpha=0.3)
class TrustDigits:
    """Keep every digit that the drafter writes, leave every name to the expert, and judge the rest as token_v3 does.

    Args:
        alpha: How much less likely than the expert's favorite another token may be; 0 to 1.

    """

    alpha: float = 0.3

    trade = "the drafter's arithmetic for speed, and the expert's word on who and where"

    def defer(self, evidence):
        """Return True where the expert decides. [1, n_vocab]"""
        # tokens_where searches the vocabulary once for each function, so give it functions with names.
        numbers, names = evidence.tokens_where(is_number), evidence.tokens_where(is_name)
        # evidence.expert_plain: the expert's probabilities, [1, n_vocab]; evidence.expert_max: the largest of them, [1].
        unlikely = evidence.expert_plain < (1 - self.alpha) * evidence.expert_max[:, None]
        return (unlikely | names) & ~numbers
