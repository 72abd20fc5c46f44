"""Print how right the answers under JSON schemas are, and how far from the expert's, for rules that look at confidence.

Each question has one right answer: one of a list, a whole number or a short text. The model is asked twice, without a word about JSON and
with it. Blocks have a fixed length, so that the figures do not depend on the machine.

    python scripts/measure/constrained.py DRAFTER.gguf EXPERT.gguf --rules strict chow:0.3 --temperatures 0 1
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import speccascade_local as sc


class Case(NamedTuple):
    """A question, what its field may hold, and its right answer."""

    question: str
    kind: str | tuple[str, ...]  # "integer", "string", or the texts of which it is one
    right: str


MOODS = ("GOOD", "BAD", "MIXED")
KINDS = ("animal", "plant", "mineral", "machine")
CASES = [
    Case("How does the writer feel? 'The film was a delight from start to end.'", MOODS, "GOOD"),
    Case("How does the writer feel? 'Cold food, rude waiters. Never again.'", MOODS, "BAD"),
    Case("How does the writer feel? 'Lovely rooms, but the noise kept us awake all night.'", MOODS, "MIXED"),
    Case("How does the writer feel? 'The best phone that I have ever had.'", MOODS, "GOOD"),
    Case("What is an oak?", KINDS, "plant"),
    Case("What is quartz?", KINDS, "mineral"),
    Case("What is a dolphin?", KINDS, "animal"),
    Case("What is a tractor?", KINDS, "machine"),
    Case("How many days has a leap year?", "integer", "366"),
    Case("What is 17 plus 25?", "integer", "42"),
    Case("In which year did the Second World War end?", "integer", "1945"),
    Case("How many legs has a spider?", "integer", "8"),
    Case("A shop has 12 apples and sells 5 of them. How many are left?", "integer", "7"),
    Case("What is 9 times 8?", "integer", "72"),
    Case("How many minutes are three hours?", "integer", "180"),
    Case("In which year did people first walk on the Moon?", "integer", "1969"),
    Case("What is the capital of Japan?", "string", "Tokyo"),
    Case("Who wrote the play Hamlet?", "string", "Shakespeare"),
    Case("Which planet is the largest of our solar system?", "string", "Jupiter"),
    Case("What is the chemical symbol of gold?", "string", "Au"),
    Case("Which language is spoken in Brazil?", "string", "Portuguese"),
    Case("Which ocean lies between Europe and America?", "string", "Atlantic"),
    Case("What is the Spanish word for water?", "string", "agua"),
    Case("Who painted the Mona Lisa?", "string", "Leonardo"),
]  # fmt: skip
STYLES: Mapping[str, Callable[[str], str]] = {
    "schema only": lambda question: question,
    "asked for JSON": lambda question: f'{question}\nAnswer as JSON: {{"answer": ...}}',
}


def schema(case: Case) -> dict[str, Any]:
    """An object with one field."""
    field = {"enum": list(case.kind)} if isinstance(case.kind, tuple) else {"type": case.kind}
    if case.kind == "string":
        field["maxLength"] = 40
    return {"type": "object", "properties": {"answer": field}, "required": ["answer"], "additionalProperties": False}


def is_right(case: Case, text: str) -> bool:
    """Whether the answer is there and right: equal, or for a text, part of it."""
    try:
        answer = json.loads(text)["answer"]
    except ValueError:  # cut off
        return False
    return case.right in answer if case.kind == "string" else str(answer) == case.right


def main() -> None:
    """Ask every question in every way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drafter")
    parser.add_argument("expert")
    parser.add_argument("--rules", nargs="+", required=True)
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.0])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(f"{len(CASES)} questions, {' and '.join(STYLES)}; blocks of 4")
    print(
        f"{'rule':14}{'temperature':>12}  {'style':16}{'right':>8}{'mean TV':>9}{'drafted tokens kept':>21}{'tokens per expert call':>24}"
    )
    with sc.load(drafter=options.drafter, expert=options.expert, n_ctx=512, n_threads=options.threads, profile=False) as runtime:
        for temperature in options.temperatures:
            for rule in options.rules:
                for style, ask in STYLES.items():
                    replies = [
                        runtime.chat(
                            [{"role": "user", "content": ask(case.question)}],
                            rule=rule,
                            temperature=temperature,
                            block_size=4,
                            max_tokens=40,
                            seed=number,
                            json_schema=schema(case),
                        )
                        for number, case in enumerate(CASES)
                    ]
                    right = sum(is_right(case, reply.text) for case, reply in zip(CASES, replies))
                    tvs = [token.tv for reply in replies for token in reply.tokens if token.tv is not None]
                    counts = [reply.stats for reply in replies]
                    drafted, kept, tokens, calls = (
                        sum(getattr(count, name) for count in counts) for name in ("drafted", "accepted", "tokens", "expert_calls")
                    )
                    figures = f"{right / len(CASES):7.0%} {sum(tvs) / len(tvs):8.3f}{kept / drafted:21.0%}{tokens / calls:24.2f}"
                    print(f"{rule:14}{temperature:12g}  {style:16}{figures}", flush=True)


if __name__ == "__main__":
    main()
