"""Grade the bundled pair on questions it has never seen, through the product itself, and write its card.

    python scripts/demo_pair/grade.py            # a few minutes on two CPU cores

Writes speccascade_local/demo/heldout.jsonl (the questions), docs/results/demo_pair.json (every figure) and
speccascade_local/demo/CARD.md (from those figures). One half of the questions chooses the pair's rule, the other half confirms it.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
from questions import DEFAULT_QUESTION, FAMILIES, PEOPLE, Example, held_out_examples
from rich.progress import track

import speccascade_local as sc
from speccascade_local.bench.questions import HELD_OUT, Question, built_in_questions
from speccascade_local.bench.rows import commit
from speccascade_local.llama.backend import physical_cores

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "speccascade_local" / "demo"
RESULTS = ROOT / "docs" / "results" / "demo_pair.json"
PER_FAMILY = 100
BLOCK_SIZE = 5
DRAWS = 1000
CANDIDATES = [
    *(f"token_v3:{alpha}" for alpha in (0.3, 0.5, 0.6, 0.7, 0.8)),
    *(f"token_v2:{alpha}" for alpha in (0.2, 0.4, 0.6)),
    *(f"token_v1:{alpha}" for alpha in (0.1, 0.2, 0.4)),
    *(f"opt:{alpha}" for alpha in (0.1, 0.2, 0.4)),
    *(f"diff:{alpha}" for alpha in (0.05, 0.2)),
    *(f"chow:{alpha}" for alpha in (0.05, 0.2)),
]


def as_question(example: Example) -> dict[str, Any]:
    """One line of heldout.jsonl: word problems are judged by the number that they end with, all others word for word."""
    metric = {"metric": "numeric"} if example.family == "reason" else {}
    return {"family": example.family, "prompt": example.prompt, "reference": example.answers, **metric}


def ask(runtime: sc.Runtime, question: Question, arm: str) -> sc.Reply:
    ids = runtime.chat_ids(question.conversation)
    if arm == "sequential":
        return runtime.generate(ids, rule="margin:0.9")
    if arm == "expert":
        return runtime.generate(ids, rule="strict", block_size=0)
    return runtime.generate(ids, rule={"drafter": "never"}.get(arm, arm), block_size=BLOCK_SIZE)


def summary(graded: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy per family, and what it cost, over some of one arm's answers."""
    families = {family: [row["right"] for row in graded if row["family"] == family] for family in FAMILIES}
    total = {key: sum(row[key] for row in graded) for key in ("tokens", "expert_calls", "drafted", "accepted", "tested", "deferred")}
    return {
        "n": len(graded),
        "accuracy": sum(row["right"] for row in graded) / len(graded),
        "families": {family: sum(right) / len(right) for family, right in families.items()},
        "same_as_expert": sum(row["same_as_expert"] for row in graded) / len(graded),
        "tokens_per_expert_call": total["tokens"] / total["expert_calls"] if total["expert_calls"] else None,
        "acceptance_rate": total["accepted"] / total["drafted"] if total["drafted"] else None,
        "deferral_rate": total["deferred"] / total["tested"] if total["tested"] else None,
    }


def choose(arms: dict[str, dict[str, Any]]) -> str:
    """Among the rules whose accuracy on the choosing half is not below the expert's, the one that asks the expert least."""
    floor = arms["expert"]["choosing"]["accuracy"]
    good = [rule for rule in CANDIDATES if arms[rule]["choosing"]["accuracy"] >= floor]
    return max(good, key=lambda rule: arms[rule]["choosing"]["tokens_per_expert_call"])


def main() -> None:
    with HELD_OUT.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(as_question(example), ensure_ascii=False) + "\n" for example in held_out_examples(PER_FAMILY))
    names = ["expert", "drafter", "sequential", "strict", *CANDIDATES]
    graded: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with sc.load() as runtime:
        default = runtime.chat_ids([{"role": "user", "content": DEFAULT_QUESTION}])
        begins = first_words(runtime, default)
        for question in track(built_in_questions(), "grading"):
            answers = {name: ask(runtime, question, name) for name in names}
            for name, reply in answers.items():
                kept = ("tokens", "expert_calls", "drafted", "accepted", "tested", "deferred")
                row = {key: getattr(reply.stats, key) for key in kept}
                row |= {"family": question.family, "right": question.is_right(reply.text)}
                row |= {"same_as_expert": reply.token_ids == answers["expert"].token_ids}
                graded[name].append(row)
    arms = {
        name: {"all": summary(rows), "choosing": summary(rows[0::2]), "confirming": summary(rows[1::2])} for name, rows in graded.items()
    }
    result = {
        "command": "python scripts/demo_pair/grade.py",
        "commit": commit(),
        "machine": f"{platform.machine()}, {physical_cores()} physical cores",
        "llama_cpp_python": llama_cpp.__version__,
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(DEMO.glob("*.gguf"))},
        "quantization": "Q8_0",
        "temperature": 0,
        "block_size": BLOCK_SIZE,
        "first_words": begins,
        "chosen_rule": choose(arms),
        "arms": arms,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (DEMO / "CARD.md").write_text(card(result), encoding="utf-8")
    print(card(result))


def first_words(runtime: sc.Runtime, prompt: list[int]) -> dict[str, dict[str, float]]:
    """How each model would begin its answer to the default question at temperature 1: shares of the three commonest words."""
    answer: dict[str, dict[str, float]] = {}
    for name, rule, block_size in (("drafter", "never", 5), ("expert", "strict", 0)):
        counts: Counter[str] = Counter()
        for seed in range(DRAWS):
            reply = runtime.generate(prompt, rule=rule, block_size=block_size, temperature=1, max_tokens=5, seed=seed)
            counts[reply.text.split()[0]] += 1
        answer[name] = {word: count / DRAWS for word, count in counts.most_common(3)}
    return answer


def card(result: dict[str, Any]) -> str:
    arms = result["arms"]
    chosen = result["chosen_rule"]

    def line(title: str, arm: str) -> str:
        graded = arms[arm]["all"]
        cells = [f"{100 * graded['families'][family]:.0f} %" for family in FAMILIES]
        per_call = graded["tokens_per_expert_call"]
        return " | ".join([f"| {title}", f"{100 * graded['accuracy']:.1f} %", *cells, f"{per_call:.2f} |" if per_call else "– |"])

    halves = {arm: arms[arm] for arm in ("expert", chosen)}
    confirmed = {arm: f"{100 * half['confirming']['accuracy']:.1f} %" for arm, half in halves.items()}
    chosen_on = {arm: f"{100 * half['choosing']['accuracy']:.1f} %" for arm, half in halves.items()}
    size = {name: f"{(DEMO / name).stat().st_size / 1e6:.2f} MB" for name in result["files"]}
    begins = {name: ", ".join(f"{word} {share:.2f}" for word, share in shares.items()) for name, shares in result["first_words"].items()}
    return f"""# The bundled pair

Two tiny Llama models, made by this project for demonstration and tests. They know five families of generated questions and
**nothing else**: ask anything outside and they answer nonsense. Do not use them for any other purpose.

| | drafter | expert |
|---|---|---|
| parameters | 0.16 M (d 64, 2 layers) | 4.28 M (d 256, 5 layers) |
| file (Q8_0) | drafter.gguf, {size["drafter.gguf"]} | expert.gguf, {size["expert.gguf"]} |

Both have the same byte-level BPE of 1,024 ids with single digits, a context of 512 tokens and a ChatML template.

**Text.** `scripts/demo_pair/questions.py` generates all of it from word lists: *reason* (word problems with worked steps), *translate*
(English to French or German), *summarize* (a short report in one sentence), *code* (one-line Python functions), *qa* (true facts about
{len(PEOPLE)} well-known people). An eighth of all possible questions, chosen by the hash of their text, is held out of training.
The people in *qa* are all known from training; what is held out is the combination of person and phrasing. In *qa* the drafter was
taught short answers only, the expert formal ones (65 %) and short ones (35 %).

**Accuracy** on {arms["expert"]["all"]["n"]} held-out questions (`heldout.jsonl`) at temperature 0, block size {result["block_size"]},
by exact match of the answer (reason: the final number; qa: either style):

| | all | {" | ".join(FAMILIES)} | tokens per expert call |
|---|---|{"---|" * len(FAMILIES)}---|
{line("drafter alone", "drafter")}
{line("expert alone", "expert")}
{line("sequential cascade", "sequential")}
{line("speculative decoding (strict)", "strict")}
{line(f"speculative cascade ({chosen}, the pair's rule)", chosen)}
{line("speculative cascade (opt:0.2)", "opt:0.2")}

**Rule.** `{chosen}` asks the expert least among the rules tried whose accuracy on one half of these questions is not below the
expert's ({chosen_on[chosen]} against {chosen_on["expert"]}); on the other half it is {confirmed[chosen]} against {confirmed["expert"]}.

**First word of the answer to "{DEFAULT_QUESTION}"** at temperature 1 ({DRAWS} draws): drafter {begins["drafter"]};
expert {begins["expert"]}.

Every figure: `docs/results/demo_pair.json`, made by `{result["command"]}`. Training: `scripts/demo_pair/train.py`. Licence: MIT.
"""


if __name__ == "__main__":
    main()
