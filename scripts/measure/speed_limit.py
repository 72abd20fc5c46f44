"""Compute how fast lossless drafting could be at best on this machine: an oracle chooses the lengths, and the loop costs nothing.

    python scripts/measure/speed_limit.py --pair PAIR [--per-family 8] [--json]

PAIR is a folder that scripts/measure/scale_pair.py wrote. Its texts are the bundled pair's, and its profile is the clock. At temperature 0
the oracle knows how many tokens of the drafter, and then of a copy from the text, the expert would write too. It never drafts a token
that is rejected, and cuts blocks so that the sum takes least. No lossless drafting with these two models can be faster at these costs.
The last column is the cost of reading: as if every token were read as a prompt is.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np
from peers import Question, questions
from rich.console import Console
from rich.table import Table

import speccascade_local as sc
from speccascade_local.decoding.lengths import LONGEST_BLOCK
from speccascade_local.decoding.ngram import NgramIndex
from speccascade_local.decoding.profile import Profile
from speccascade_local.tokens.prompt import shared_prefix_length


def limit(runtime: sc.Runtime, profile: Profile, question: Question, max_tokens: int) -> tuple[float, float]:
    """The expert alone's time for its answer over the oracle's, and over that of reading the answer as a prompt."""
    prompt = runtime.chat_ids(question.messages)
    text = runtime.generate(prompt, rule="strict", block_size=0, temperature=0, max_tokens=max_tokens).token_ids
    agreed, copied = agreements(runtime, prompt, text)
    single, depth = profile.expert.batch_s(1, len(prompt)), len(prompt)
    reading = profile.drafter.prompt_s * depth  # by the drafter, which the expert alone does without
    best = min(fastest(agreed, copied, profile, depth) + reading, fastest([0] * len(agreed), copied, profile, depth))
    return len(text) * single / best, single / profile.expert.prompt_s


def fastest(agreed: list[int], copied: list[int], profile: Profile, depth: int) -> float:
    """Return the seconds of the best way to cut the text into blocks: drafted tokens, then copied ones, all kept."""
    length, expert, step = len(agreed) - 1, profile.expert, profile.drafter.batch_s(1, depth)
    best = np.full(length + 1, np.inf)  # for all from place i on
    best[length] = 0
    for i in range(length - 1, -1, -1):
        for drafted in range(agreed[i] + 1):
            for guessed in range(copied[i + drafted] + 1):
                n = min(drafted + guessed, LONGEST_BLOCK)
                batch = expert.batch_s(1, depth) + n * expert.prompt_s if i == 0 else expert.batch_s(n + 1, depth)
                best[i] = min(best[i], drafted * step + batch + best[min(i + n + 1, length)])
    return float(best[0])


def agreements(runtime: sc.Runtime, prompt: list[int], text: list[int]) -> tuple[list[int], list[int]]:
    """At each place of the text, how many tokens from there on the drafter would write too, and how many a copy would. [len + 1] each"""
    drafter = runtime._drafter
    runtime.reset()
    known, own = [*prompt, *text], []
    for token in text:
        row = drafter.extend(known[len(drafter.tokens) : len(prompt) + len(own)], keep=1)
        own.append(int(np.argmax(row[0])) == token)
    runtime.reset()
    agreed, copied = [0] * (len(text) + 1), [0] * (len(text) + 1)
    for i in range(len(text) - 1, -1, -1):
        agreed[i] = agreed[i + 1] + 1 if own[i] else 0
    index = NgramIndex()
    index.begin(prompt)
    for i, token in enumerate(text):
        guess = index.guess(LONGEST_BLOCK).token_ids
        copied[i] = shared_prefix_length(guess, text[i : i + LONGEST_BLOCK])
        index.append([token])
    return agreed, copied


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", type=Path, required=True, help="folder with drafter.gguf and expert.gguf; their profile is the clock")
    parser.add_argument("--per-family", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with sc.load(drafter=chosen.pair / "drafter.gguf", expert=chosen.pair / "expert.gguf") as scaled:
        profile = scaled.profile()
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with sc.load(n_threads=1, profile=False) as bundled:
        for question in questions(chosen.per_family, chosen.max_tokens):
            found[question.family].append(limit(bundled, profile, question, chosen.max_tokens))
    rows = {family: [geometric_mean(column) for column in zip(*each)] for family, each in found.items()}
    rows["all"] = [geometric_mean(column) for column in zip(*(each for family in found.values() for each in family))]
    batches = {n: profile.expert.batch_s(n) / profile.expert.batch_s(1) for n in (1, 2, 4, 8, 16)}
    figures: dict[str, Any] = {
        "limits": rows,
        "v": batches,
        "drafter": profile.drafter.batch_s(1) / profile.expert.batch_s(1),
        "single_s": profile.expert.batch_s(1),
    }
    if chosen.json:
        print(json.dumps(figures, indent=1))
        return
    table = Table("family", "× the expert alone, oracle", "× if all were read as a prompt")
    for family, (oracle, reading) in rows.items():
        table.add_row(family, f"{oracle:.2f}", f"{reading:.2f}")
    Console().print(table)
    costs = ", ".join(f"{n}: {cost:.2f}" for n, cost in batches.items())
    print(f"a batch of n in single tokens: {costs}; a drafted one: {figures['drafter']:.3f}")


if __name__ == "__main__":
    main()
