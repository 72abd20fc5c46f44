"""Invented rows of a benchmark, with every field that reports read."""

from __future__ import annotations

from typing import Any

from speccascade_local.bench.grid import BASE

ARMS = {BASE: (1.0, 1.0), "drafter alone": (0.2, 0.4), "token_v3:0.2, auto blocks": (0.6, 1.0), "token_v3:0.8, auto blocks": (0.5, 0.9)}
SETUP: dict[str, Any] = {
    "asked": {f"q{i}": {"prompt": f"What is <i>{i}</i>?", "reference": [f"a <reference> {i}"]} for i in range(20)},
    "format": 1,
    "speccascade": "0",
    "pair": "made <up>",
    "machine": "none",
    "max_tokens": 9,
    "command": "speccascade bench made",
}


def fake_row(question: int, arm: str, *, temperature: float = 0.0, repetition: int = 0, text: str | None = None) -> dict[str, Any]:
    """Return a row of an arm; its seconds and its share of right answers are those in ARMS."""
    wall, share = ARMS[arm]
    right = (question * 0.37) % 1 < share
    rule = arm.partition(",")[0]
    dial = rule.partition(":")[2]
    text = text if text is not None else f"{'right' if right else 'wrong'} <b>{question}</b>"
    drafted = arm != BASE
    return {
        "question": f"q{question}",
        "family": "f",
        "arm": arm,
        "rule": rule,
        "alpha": float(dial) if dial else None,
        "temperature": temperature,
        "block_size": "auto",
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "verification": "token",
        "bonus": "expert",
        "repetition": repetition,
        "seed": question,
        "text": text,
        "token_ids": [1] * len(text),
        "lengths": [1] * len(text),
        "origins": ("a" if drafted else "e") * len(text),
        "finish_reason": "stop",
        "quality": float(right),
        "wall_s": wall * (1 + question % 5),
        "first_s": 0.1,
        "draft_s": 0.1,
        "expert_s": 0.1,
        "verify_s": 0.1,
        "yields": [3, len(text) - 3] if drafted else [1] * len(text),
        "prompt_tokens": 5,
        "tokens": len(text),
        "blocks": 2 if drafted else len(text),
        "drafted": 4 * drafted,
        "guessed": 0,
        "tested": 4 * drafted,
        "accepted": 3 * drafted,
        "deferred": 1 * drafted,
        "rejected": 1 * drafted,
        "bonus_tokens": 1,
        "expert_calls": 2 if drafted else len(text),
        "drafter_calls": 4 * drafted,
        "fidelity": {"mean_tv": 0.1 * drafted, "expert_logprob": -0.5 * len(text), "judged": len(text)} if arm != "drafter alone" else None,
        "load_before": None,
    }


def fake_rows(questions: int = 12, temperatures: tuple[float, ...] = (0.0,)) -> list[dict[str, Any]]:
    """Return a row for every arm and question."""
    return [fake_row(i, arm, temperature=temperature) for temperature in temperatures for i in range(questions) for arm in ARMS]


def row(question, arm, *, wall=1.0, tokens=10, quality=1.0, repetition=0, temperature=0.0, tv=0.0, judged=None, **more):
    judged = tokens if judged is None else judged
    fidelity = {"mean_tv": tv if judged else None, "max_tv": tv, "expert_logprob": -0.5 * judged, "drafter_logprob": None,
                "judged": judged, "drafted": 0}  # fmt: skip
    counts = {"blocks": 5, "drafted": 0, "accepted": 0, "tested": 0, "deferred": 0, "expert_calls": 5}
    return {"question": question, "family": "f", "arm": arm, "temperature": temperature, "repetition": repetition, "wall_s": wall,
            "tokens": tokens, "quality": quality, "fidelity": fidelity, "first_s": wall / 4, "yields": [tokens // 5] * 5,
            "token_ids": [1] * tokens, **counts, **more}  # fmt: skip
