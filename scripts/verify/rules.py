"""Check every rule against its formula and its guarantees, and write the report.

    python scripts/verify/rules.py            # about two minutes on two CPU cores
    python scripts/verify/rules.py --drafter SMALL.gguf --expert LARGE.gguf      # rows of another pair for what is compared on rows

Writes docs/results/methods.json and docs/results/methods.txt: each rule against the slow reference of tests/support/oracle.py; the rules of
Google's notebook against its formulas (tests/support/notebook.py); the scores of decision_tokens, and its lam as the paper calibrates it;
the log-probabilities of every kind of token against fresh rows of both models; token-wise against block verification; the fidelity
budget; answers under a JSON schema. The tests check the same guarantees; this prints the figures.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jsonschema
import llama_cpp
import numpy as np
from rich.progress import track

import speccascade_local as sc
from speccascade_local.bench.rows import commit
from speccascade_local.decoding.draft import propose
from speccascade_local.decoding.generation import Generation
from speccascade_local.decoding.verify import Verification
from speccascade_local.llama.backend import physical_cores
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.session import LlamaSession
from speccascade_local.rules import registry
from speccascade_local.rules.combined import Budget
from speccascade_local.rules.evidence import Evidence
from speccascade_local.rules.lossy_acceptance import Fly
from speccascade_local.rules.registry import target_probs
from speccascade_local.rules.routes import Route
from speccascade_local.rules.rule import Decision, Rule
from speccascade_local.tokens.rows import Rows
from speccascade_local.tokens.sampler import Sampler

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "support"))

import notebook  # noqa: E402  # these lie beside the tests that use them
import oracle  # noqa: E402
from exact import expected_kept  # noqa: E402

RESULTS = ROOT / "docs" / "results"
HELD_OUT = [json.loads(line) for line in (Path(sc.__file__).parent / "demo" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()]
SETTINGS = [
    {"temperature": temperature, **filters}
    for temperature, filters in product(
        (0.0, 0.3, 1.0, 2.0),
        ({"top_k": 0, "top_p": 1.0, "min_p": 0.0}, {"top_k": 5, "top_p": 0.9, "min_p": 0.05}),
    )
]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["pilot", "engineer", "poet"]},
        "alive": {"type": "boolean"},
    },
    "required": ["name", "age", "kind", "alive"],
    "additionalProperties": False,
}


NOTEBOOK_TITLE = "targets, coins and residuals against the formulas of Google's notebook, T 0 (but for lenience), 0.5, 1 and 1.7"
SCORES_TITLE = "scores of decision_tokens on texts that the drafter writes at T 1; lam as the paper calibrates it: E[s | s > tau] / E[s]"
#: At which the rules are compared with the notebook's.
TEMPERATURES = (0.0, 0.5, 1.0, 1.7)
NOTEBOOK_RULES = (*notebook.RULES, "lenience")


def random_dials(rule: type[Rule], rng: random.Random) -> list[Any]:
    dials: list[Any] = []
    for dial in rule.dials.values():
        low, high = max(dial.low, -2.0), min(dial.high, 2.0)
        dials.append(rng.randint(1, 9) if dial.whole else max(rng.uniform(low, high), dial.low))
    return [*dials, rng.choice(["token_v3", "diff", "lenience"])] if rule is Budget else dials


def equality(rows: int = 400) -> dict[str, Any]:
    """The largest difference of any probability between the package and the reference, rule by rule."""
    found = {}
    for name, rule in registry.RULES.items():
        if rule is Fly:
            continue
        rng, np_rng = random.Random(name), np.random.default_rng(len(name))
        worst = 0.0
        for i in range(rows):
            width = rng.choice([2, 8, 40])
            drafter, expert = (rng.choice([0.5, 2, 6]) * np_rng.normal(size=(2, width))).astype(np.float32)
            drafter[np_rng.random(width) < 0.1] = -np.inf
            drafter[0] = 0.0
            dials, settings = random_dials(rule, rng), SETTINGS[i % len(SETTINGS)]
            ours = target_probs(rule(*dials), drafter, expert, **settings)[0]
            theirs = oracle.target(name, dials, drafter.tolist(), expert.tolist(), settings)
            worst = max(worst, float(np.abs(ours - theirs).max()))
        found[name] = {"rows": rows, "largest_difference": worst}
    return found


def notebook_alphas(name: str) -> list[float]:
    """Both ends of a rule's dial, or of what is usual of one without, and seven values between."""
    low, high = {"chow": (0, 1), "token_v3": (0, 1), "lenience": (0, 1), "opt": (-3, 3)}.get(name, (-1, 1))
    return np.linspace(low, high, 9).tolist()


def compared_with_notebook(name: str, rows: Sequence[np.ndarray], temperatures: Sequence[float]) -> dict[str, Any]:
    """Compare a rule with the notebook's formulas: target, coin and residual of every token, and which tokens the rule keeps alone.

    rows: pairs of raw logits, drafter and expert, [2, n_vocab] each. The coin of a token is weighed by how often it is drafted. Left out
    are the notebook's guard against dividing by 0, which ``tests/rules/test_notebook.py`` bounds, and lenience at temperature 0, which
    differs on purpose.
    """
    tiny = float(np.finfo(np.float64).tiny)
    worst, other, count = 0.0, 0, 0
    for (drafter, expert), temperature in product(rows, temperatures):
        place = notebook.Place.of(drafter, expert, temperature)
        evidence = Evidence(Rows.of(np.asarray(drafter)[None]), Rows.of(np.asarray(expert)[None]), Sampler(temperature))
        for alpha in notebook_alphas(name):
            if name == "lenience" and temperature == 0:
                continue
            count += 1
            decision = Decision(registry.RULES[name](alpha), evidence)
            ours = decision.target[0]
            if name == "lenience":
                coin, left = notebook.lossy_coin(alpha, place, tiny), notebook.residual(place.large, place.small)
                theirs = notebook.emitted(coin, left, place.small)
            else:
                theirs = notebook.target(name, alpha, place)
                coin, left = notebook.coin(theirs, place.small, least=tiny), notebook.residual(theirs, place.small)
                decided = notebook.trusted(name, alpha, place)
                other += int((decision.deferred[0] == decided)[np.isfinite(expert)].sum())
            q = evidence.drafter_probs[0]
            our_left = np.maximum(ours - q, 0.0)
            if name == "lenience" and left.sum():  # the residual of its target is weighed by how often it is drawn from
                left = left * (our_left.sum() / left.sum())
            for mine, of_the_notebook in ((ours, theirs), (np.minimum(q, ours), place.small * coin), (our_left, left)):
                worst = max(worst, float(np.abs(mine - of_the_notebook).max()))
    return {"comparisons": count, "largest_difference": worst, "other_decisions": other}


def pairs_of_rows(runtime: sc.Runtime, prompts: Iterable[list[int]], max_tokens: int = 40) -> Iterator[np.ndarray]:
    """Raw logits of drafter and expert, [2, n_vocab], at each place of texts that the drafter writes at temperature 1."""
    for seed, prompt in enumerate(prompts):
        written = runtime.generate(prompt, rule="never", temperature=1, seed=seed, max_tokens=max_tokens).token_ids
        yield from np.stack(fresh_rows(runtime, prompt + written, len(written)), axis=1)


def fresh_rows(runtime: sc.Runtime, text: list[int], keep: int) -> list[np.ndarray]:
    """What drafter and expert say before each of the last ``keep`` tokens of a text that they read from its beginning. [keep, n_vocab]"""
    found = []
    for session in (runtime._drafter, runtime._expert):
        reader = LlamaSession(LlamaContext(session.model, n_ctx=runtime.n_ctx, n_threads=1), n_vocab=runtime.n_vocab)
        found.append(reader.extend(text[:-1], keep=keep).copy())
        reader.context.close()
    return found


def on_rows(runtime: sc.Runtime, prompts: int = 30, every: int = 40) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both checks that read rows of a pair: the notebook's rules at every 40th place, and what decision_tokens scores at all of them."""
    some, figures = [], []
    for i, rows in enumerate(pairs_of_rows(runtime, asked(runtime, prompts))):
        if i % every == 0:
            some.append(rows.copy())
        evidence = Evidence(Rows.of(rows[:1]), Rows.of(rows[1:]), Sampler())
        figures.append([float(each[0]) for each in (evidence.cross_entropy, evidence.drafter_entropy, evidence.expert_entropy)])
    return {name: compared_with_notebook(name, some, TEMPERATURES) for name in NOTEBOOK_RULES}, decision_scores(*np.array(figures).T)


def decision_scores(scores: np.ndarray, drafter_entropy: np.ndarray, expert_entropy: np.ndarray) -> dict[str, Any]:
    """How often decision_tokens scores above a tau, and the lam that the paper calibrates for it; what the scores go with."""
    found: dict[str, Any] = {}
    for tau in (0.5, 1.0, 2.0, 3.0):
        above = scores[scores > tau]
        found[f"tau {tau}"] = {"places": len(scores), "above": len(above) / len(scores), "lam": float(above.mean() / scores.mean())}
    found["correlation"] = {
        f"with_the_{whose}s_entropy": float(np.corrcoef(scores, values)[0, 1])
        for whose, values in (("drafter", drafter_entropy), ("expert", expert_entropy))
    }
    return found


def asked(runtime: sc.Runtime, n: int) -> Iterator[list[int]]:
    for row in random.Random(0).sample(HELD_OUT, n):
        yield runtime.chat_ids([{"role": "user", "content": row["prompt"]}])


def logprobs(runtime: sc.Runtime, n: int = 60) -> dict[str, Any]:
    """Reported log-probabilities against a recomputation from raw rows, by origin.

    Twice: from the rows that the run itself was given, and from both models reading the finished text afresh. The second differs
    wherever llama.cpp rounds otherwise for another batch or cache.
    """
    counted: dict[str, int] = defaultdict(int)
    own: dict[str, float] = defaultdict(float)
    afresh: dict[str, list[float]] = defaultdict(list)
    settings = {"temperature": 0.8, "top_k": 40, "top_p": 0.95}
    sessions = (runtime._drafter, runtime._expert)
    for i, prompt in enumerate(track(list(asked(runtime, n)), "log-probabilities")):
        rule = ("token_v3:0.5", "opt:0.2", "lenience:0.3", "strict")[i % 4]
        runtime.reset()
        with recorded(sessions) as seen:
            reply = runtime.generate(prompt, rule=rule, logprobs=5, model_logprobs=True, max_tokens=40, seed=i, block_size=5, **settings)
        places = [len(prompt) + j for j in range(len(reply.tokens))]
        blank = np.zeros(runtime.n_vocab, np.float32)  # after an end of text the drafter is not asked; nothing is reported there
        given = [np.array([rows.get(place, blank) for place in places]) for rows in seen]
        fresh = fresh_rows(runtime, prompt + reply.token_ids, len(reply.tokens))
        for j, token in enumerate(reply.tokens):
            counted[token.origin] += 1
            own[token.origin] = max(own[token.origin], difference(token, rule, [rows[j : j + 1] for rows in given], settings))
            afresh[token.origin].append(difference(token, rule, [rows[j : j + 1] for rows in fresh], settings))
    return {
        origin: {
            "tokens": counted[origin],
            "largest_difference": own[origin],
            "largest_difference_afresh": max(afresh[origin]),
            "afresh_within_1e-4": sum(gap <= 1e-4 for gap in afresh[origin]) / len(afresh[origin]),
        }
        for origin in sorted(counted)
    }


@contextmanager
def recorded(sessions: Sequence[LlamaSession]) -> Iterator[list[dict[int, np.ndarray]]]:
    """The rows that each session returns, by how many tokens they follow; of a place that is evaluated again, the last one."""
    seen: list[dict[int, np.ndarray]] = [{} for _ in sessions]

    def recording(session: LlamaSession, rows: dict[int, np.ndarray]) -> Callable[[list[int], int], np.ndarray]:
        real = session.extend

        def extend(tokens: list[int], keep: int) -> np.ndarray:
            found = real(tokens, keep)
            rows.update({len(session.tokens) - keep + 1 + k: found[k].copy() for k in range(keep)})
            return found

        return extend

    with ExitStack() as stack:
        for session, rows in zip(sessions, seen):
            stack.enter_context(patch.object(session, "extend", recording(session, rows)))
        yield seen


def difference(token: sc.Token, rule: str, rows: Sequence[np.ndarray], settings: dict[str, Any]) -> float:
    """The largest gap between a token's reported log-probabilities and those that the two models' rows give."""
    drafter, expert = (Sampler(**settings).probs(each)[0] for each in rows)
    drawn_from = expert if token.origin in ("bonus", "expert") else target_probs(rule, *rows, **settings)[0]
    gaps = [0.0]
    for reported, probs in ((token.logprobs, drawn_from), (token.expert_logprobs, expert), (token.drafter_logprobs, drafter)):
        if reported is not None:
            said = [(token.id, reported.logprob), *((each.id, each.logprob) for each in reported.top)]
            gaps += [abs(value - float(np.log(probs[i]))) for i, value in said if probs[i] > 0 or np.isfinite(value)]
    return max(gaps)


def verification(runtime: sc.Runtime, places: int = 200, drafts: int = 8) -> dict[str, Any]:
    """Tokens that strict keeps of a draft, token-wise and by block verification: the same drafts and rows, exact over all coins."""
    found: dict[str, Any] = {}
    for temperature, block_size in product((1.0, 2.0), (3, 5, 8)):
        sampler = Sampler(temperature)
        kept: dict[Verification, list[float]] = {"token": [], "block": []}
        for seed, prompt in enumerate(asked(runtime, places)):
            answer = runtime.generate(prompt, rule="strict", block_size=0, temperature=1, seed=seed, max_tokens=60).token_ids
            text = prompt + answer[: seed % len(answer)]
            runtime.reset()
            generation = Generation(text, sampler, np.random.default_rng(seed), runtime._model.tokenizer.is_end)
            for _ in range(drafts):
                draft = propose(runtime._drafter, generation, block_size)
                scores = runtime._expert.extend(text[len(runtime._expert.tokens) :] + draft.token_ids, keep=len(draft.token_ids) + 1)
                for way, counts in kept.items():
                    counts.append(expected_kept(draft, Rows.of(scores[: len(draft.token_ids)]), sampler, way))
                for session in (runtime._drafter, runtime._expert):
                    session.roll_back(len(text) - 1)
        gain = np.array(kept["block"]) - np.array(kept["token"])
        row = {f"kept_{way}": float(np.mean(counts)) for way, counts in kept.items()}
        row |= {"gain": float(gain.mean()), "plus_or_minus": 1.96 * float(gain.std()) / len(gain) ** 0.5}
        found[f"T {temperature}, block_size {block_size}"] = row
    return found


def budgets(runtime: sc.Runtime, n: int = 200) -> dict[str, Any]:
    """What a budget allows, what was spent of it, and what it bought."""
    found = {}
    for limit, inner in product((0.0, 0.01, 0.02, 0.05, 0.1), ("token_v3", "diff")):
        spent, over, accepted, drafted = [], 0, 0, 0
        for i, prompt in enumerate(asked(runtime, n)):
            reply = runtime.generate(prompt, rule=f"budget:{limit},{inner}", temperature=1, seed=i, max_tokens=60, block_size=5)
            running = np.cumsum([token.tv for token in reply.tokens]) / np.arange(1, len(reply.tokens) + 1)
            over += bool((running > limit + 1e-12).any())
            spent.append(float(running[-1]))
            accepted, drafted = accepted + reply.stats.accepted, drafted + reply.stats.drafted
        found[f"{limit},{inner}"] = {
            "prompts": n,
            "over_at_any_token": over,
            "mean_tv": float(np.mean(spent)),
            "acceptance_rate": accepted / drafted,
        }
    return found


def schema(runtime: sc.Runtime, runs: int = 10) -> dict[str, Any]:
    """Answers under a JSON schema at temperature 1, method by method."""
    found = {}
    prompt = runtime.chat_ids([{"role": "user", "content": "Who is Ada Lovelace?"}])
    for spec in registry.examples():
        method = registry.parse(spec)
        temperature = 0 if isinstance(method, Fly) else 1
        settings = {"block_size": 10 if isinstance(method, Fly) else 5, "temperature": temperature}
        valid = accepted = drafted = 0
        for seed in range(runs):
            reply = runtime.generate(prompt, rule=spec, json_schema=SCHEMA, seed=seed, **settings)
            try:
                jsonschema.validate(json.loads(reply.text), SCHEMA)
                valid += reply.finish_reason == "stop"
            except (ValueError, jsonschema.ValidationError):
                pass
            if not isinstance(method, Route):
                accepted, drafted = accepted + reply.stats.accepted, drafted + reply.stats.drafted
        found[spec] = {"runs": runs, "valid": valid, "acceptance_rate": accepted / drafted if drafted else None}
    return found


def as_text(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = []
    for title, rows in report["checks"].items():
        lines.append(title)
        width = max(34, *map(len, rows))
        for name, row in rows.items():
            lines.append(f"  {name:{width}} " + ", ".join(f"{key.replace('_', ' ')} {_figure(value)}" for key, value in row.items()))
        lines.append("")
    return "\n".join(lines)


def _figure(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key.replace('_', ' ')} {_figure(inner)}" for key, inner in value.items()) + ")"
    return f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for model in ("drafter", "expert"):
        parser.add_argument(f"--{model}", type=Path, help=f"{model} of another pair, whose rows are looked at too")
    args = parser.parse_args()
    checks: dict[str, Callable[[sc.Runtime], dict[str, Any]]] = {
        "log-probabilities against a recomputation from raw rows (the run's own; afresh), T 0.8, top-k 40, top-p 0.95": logprobs,
        "tokens that strict keeps of a draft, token-wise and by block verification: 8 drafts at 200 held-out places": verification,
        "fidelity budgets, T 1, 200 held-out prompts": budgets,
        "answers under a JSON schema, T 1 (fly: T 0)": schema,
    }
    found: dict[str, Any] = {"targets against the slow reference, T 0, 0.3, 1 and 2, with and without filters": equality()}
    rng = np.random.default_rng(0)
    drawn = [rng.choice([0.5, 2, 6]) * rng.normal(size=(2, rng.choice([3, 40, 400]))) for _ in range(200)]
    compared = {"random rows": {name: compared_with_notebook(name, drawn, TEMPERATURES) for name in NOTEBOOK_RULES}}
    scored = {}
    pairs = {"bundled pair": {}}
    if args.drafter and args.expert:
        pairs[f"{args.drafter.stem} + {args.expert.stem}"] = {"drafter": args.drafter, "expert": args.expert}
    for pair, files in pairs.items():
        print(pair, file=sys.stderr)
        with sc.load(**files, n_threads=1) as runtime:
            compared[pair], scored[pair] = on_rows(runtime)
    for title, by_source in ((NOTEBOOK_TITLE, compared), (SCORES_TITLE, scored)):
        found[title] = {f"{row}, {source}": figures for source, rows in by_source.items() for row, figures in rows.items()}
    with sc.load(n_threads=1) as runtime:
        for title, check in checks.items():
            print(title, file=sys.stderr)
            found[title] = check(runtime)
    report = {
        "command": " ".join(
            ["python scripts/verify/rules.py", *(f"--{name} {path.name}" for name, path in vars(args).items() if path is not None)]
        ),
        "commit": commit(),
        "machine": f"{platform.machine()}, {physical_cores()} physical cores",
        "llama_cpp_python": llama_cpp.__version__,
        "quantization": "Q8_0",
        "checks": found,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "methods.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (RESULTS / "methods.txt").write_text(as_text(report), encoding="utf-8")
    print(as_text(report))


if __name__ == "__main__":
    main()
