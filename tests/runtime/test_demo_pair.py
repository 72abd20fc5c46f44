"""The bundled pair, held to what its card says, and the decoding guarantees on real GGUF models."""

from __future__ import annotations

import hashlib
import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import questions
from exact import expected_kept
from grade import as_question
from scipy.stats import chisquare
from toys import one_by_one

import speccascade_local as sc
from speccascade_local import target_probs
from speccascade_local.bench.questions import Question, built_in_questions
from speccascade_local.decoding.verify import Draft
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.session import LlamaSession
from speccascade_local.models import catalog
from speccascade_local.rules import registry
from speccascade_local.tokens.rows import Rows
from speccascade_local.tokens.sampler import Sampler, softmax

DEMO = Path(sc.__file__).parent / "demo"
RESULT = json.loads((DEMO.parent.parent / "docs" / "results" / "demo_pair.json").read_text(encoding="utf-8"))
HELD_OUT = [questions.Example(question.family, question.prompt, question.reference) for question in built_in_questions()]
#: Two rows whose difference is below this are a near-tie: kernels for other batch sizes may order them otherwise.
NEAR_TIE = 0.1


def ids(runtime: sc.Runtime, prompt: str) -> list[int]:
    return runtime.chat_ids([{"role": "user", "content": prompt}])


def rows_of(runtime: sc.Runtime, tokens: list[int], keep: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Fresh rows of both models after ``tokens``."""
    rows = []
    for session in (runtime._drafter, runtime._expert):
        fresh = LlamaSession(LlamaContext(session.model, n_ctx=runtime.n_ctx, n_threads=1), n_vocab=runtime.n_vocab)
        rows.append(fresh.extend(tokens, keep=keep).copy())
        fresh.context.close()
    return rows[0], rows[1]


def test_the_committed_results_are_those_of_the_committed_files():
    for name, digest in RESULT["files"].items():
        assert hashlib.sha256((DEMO / name).read_bytes()).hexdigest() == digest
    assert catalog.find("demo").rule == RESULT["chosen_rule"]


def test_the_pair_is_small_enough_to_ship():
    assert sum(path.stat().st_size for path in DEMO.glob("*.gguf")) < 12e6


def test_held_out_questions_are_what_the_generator_holds_out_and_training_never_meets_them():
    assert questions.held_out_examples(100) == HELD_OUT
    held_out = {example.prompt for example in HELD_OUT}
    assert questions.DEFAULT_QUESTION in held_out
    training = questions.training_examples(seed=123)
    assert not held_out & {next(training).prompt for _ in range(20_000)}
    assert all(questions.is_held_out(prompt) for prompt in held_out)


@pytest.mark.parametrize("family", questions.FAMILIES)
def test_every_answer_of_the_generator_is_graded_right_and_another_ones_wrong(family):
    rng = random.Random(1)
    examples = [questions.FAMILIES[family](rng) for _ in range(200)]
    for example, other in pairwise(examples):
        question = Question.model_validate(as_question(example))
        assert all(question.is_right(answer) for answer in example.answers)
        assert not question.is_right(f"{example.answers[0]} No, {10**6}.")
        if other.answers[0].split()[-1] != example.answers[0].split()[-1]:
            assert not question.is_right(other.answers[0])


def test_the_sums_in_word_problems_are_right():
    rng = random.Random(2)
    for _ in range(500):
        answer = questions.FAMILIES["reason"](rng).answers[0]
        *steps, last = answer.removesuffix(".").split(". ")
        for step in steps:
            left, right = step.split(" = ")
            assert eval(left.replace("x", "*")) == int(right)
        assert last == f"The answer is {right}"


def test_code_answers_are_programs_that_run():
    rng = random.Random(3)
    for _ in range(200):
        source = questions.FAMILIES["code"](rng).answers[0]
        namespace: dict = {}
        exec(source, namespace)
        (function,) = [value for name, value in namespace.items() if name != "__builtins__"]
        numbers = (
            list(range(-200, 200))
            if "numbers" in source
            else [a + b * n for a in "abcdefghilmnoprstw" for b in "etaoins" for n in range(12)]
        )
        reference = eval(source.split("return ")[1], {("numbers" if "numbers" in source else "words"): numbers})
        assert function(numbers) == reference


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["expert", "drafter"])
def test_each_model_is_as_good_as_its_card_says(demo, arm):
    """A tenth of the held-out questions, graded anew, against the committed figure: within four standard errors."""
    settings = {"expert": {"rule": "strict", "block_size": 0}, "drafter": {"rule": "never"}}[arm]
    sample = built_in_questions()[::8]
    right = sum(question.is_right(demo.generate(ids(demo, question.prompt), **settings).text) for question in sample)
    claimed = RESULT["arms"][arm]["all"]["accuracy"]
    assert abs(right / len(sample) - claimed) < 4 * np.sqrt(claimed * (1 - claimed) / len(sample)) + 0.02


def test_the_card_meets_its_targets():
    arms = RESULT["arms"]
    assert arms["expert"]["all"]["accuracy"] >= 0.9
    assert 0.4 <= arms["drafter"]["all"]["accuracy"] <= 0.75
    assert arms[RESULT["chosen_rule"]]["choosing"]["accuracy"] >= arms["expert"]["choosing"]["accuracy"]
    assert {f"{100 * arms[arm]['all']['accuracy']:.1f} %" for arm in ("expert", "drafter")} <= set(
        (DEMO / "CARD.md").read_text(encoding="utf-8").replace("|", "\n").replace(" \n ", "\n").split("\n")
    )


def test_the_worked_example_comes_out_of_the_models(demo):
    """Strict throws "Buzz" away, the drafter says it, the expert finds it plausible, and the pair's rule keeps it."""
    prompt = ids(demo, questions.DEFAULT_QUESTION)
    short, formal = next(example for example in HELD_OUT if example.prompt == questions.DEFAULT_QUESTION).answers
    assert demo.generate(prompt, rule="never").text == short
    assert demo.generate(prompt, block_size=0).text == formal
    strict = demo.generate(prompt, rule="strict", block_size=5)
    assert strict.text == formal
    assert strict.tokens[0].dropped.startswith("Buzz")
    assert short.startswith(strict.tokens[0].dropped)
    for rule in (RESULT["chosen_rule"], "opt:0.2"):
        cascade = demo.generate(prompt, rule=rule, block_size=5)
        assert cascade.origins[0] == "accepted"
        assert cascade.text == short
        assert cascade.stats.expert_calls < strict.stats.expert_calls
    _, expert = rows_of(demo, prompt)
    probs = np.sort(softmax(expert[0]))
    assert 0.1 <= probs[-2] <= 0.45 <= probs[-1]


@pytest.mark.slow
def test_strict_at_temperature_zero_writes_the_experts_text_on_a_hundred_held_out_prompts(demo, record_property):
    """Near-ties may flip between batch sizes; each flip must be one."""
    flips = []
    for example in HELD_OUT[::2]:
        prompt = ids(demo, example.prompt)
        alone = demo.generate(prompt, block_size=0).token_ids
        for block_size in (3, 5):
            together = demo.generate(prompt, rule="strict", block_size=block_size).token_ids
            if together != alone:
                at = next(i for i, (a, b) in enumerate(zip(alone, together, strict=False)) if a != b)
                _, expert = rows_of(demo, prompt + alone[:at])
                gap = float(expert[0][alone[at]] - expert[0][together[at]])
                flips.append(f"{example.prompt!r}, block size {block_size}, token {at}: logits {gap:.3f} apart")
                assert abs(gap) < NEAR_TIE, flips[-1]
    assert len(HELD_OUT[::2]) >= 100
    record_property("near_tie_flips", flips)
    print(f"{len(flips)} near-tie flips in {2 * len(HELD_OUT[::2])} texts", *flips, sep="\n")


#: One of each rule that has a target at a single position.
RULES = [
    *("strict", "never", "chow:0.4", "chow_log:0.8", "diff:0.1", "diff_log:0.05", "opt:0.2", "opt_log:0.1", "fuzzy:0.1"),
    *("token_v1:0.3", "token_v2:0.2", "token_v3:0.5", "bild:1.0", "lenience:0.5", "mentored:0.1", "typical:0.6,5"),
    *("decision_tokens:1.0", "budget:0.1", "token_cascade:0.4"),
]


def test_every_rule_but_the_one_without_a_target_is_put_to_the_test():
    assert {rule.split(":")[0] for rule in RULES} == set(registry.RULES) - {"fly"}


@pytest.fixture
def warm(monkeypatch) -> None:
    """Calls that name a seed keep all that the caches hold, as others do: thousands of them ask the same prompt, and read it once."""
    monkeypatch.setattr(LlamaSession, "aligned", lambda session, length: length)


@pytest.fixture(scope="module")
def contested(demo) -> list[int]:
    """The text after which both models hesitate and disagree most, among all places of some expert answers."""
    best: tuple[float, list[int]] = (0.0, [])
    for example in HELD_OUT[::20]:
        prompt = ids(demo, example.prompt)
        answer = demo.generate(prompt, block_size=0).token_ids[:60]
        rows = rows_of(demo, prompt + answer, keep=len(answer))
        q, p = (softmax(each) for each in rows)
        hesitation = [-(each * np.log(each + 1e-30)).sum(axis=-1) for each in (q, p)]
        score = np.maximum(p - q, 0).sum(axis=-1) * hesitation[0] * hesitation[1]
        at = int(score.argmax())
        if score[at] > best[0]:
            best = (float(score[at]), prompt + answer[: at + 1])
    return best[1]


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("settings", [{}, {"top_k": 5, "min_p": 0.02}], ids=["unfiltered", "filtered"])
def test_emitted_tokens_follow_target_probs_on_the_real_pair(demo, contested, rule, settings):
    """Raise a false alarm in one of 400 runs of all cases, and find in nine of ten a target that is missed by 0.15 (TV).

    The exact tests of the loop and of :func:`verify` hold the distribution itself; here the rows, the caches and the real draws count.
    """
    n = 1_000
    target = target_probs(rule, *rows_of(demo, contested), **settings)[0]
    counts = np.zeros(len(target))
    for seed in range(n):
        # Two tokens are asked for so that the first one is drafted, whatever the rule adds to a draft.
        reply = demo.generate(contested, rule=rule, temperature=1, block_size=1, max_tokens=2, seed=seed, **settings)
        counts[reply.token_ids[0]] += 1
    common = n * target >= 5
    observed, expected = np.append(counts[common], counts[~common].sum()), n * np.append(target[common], target[~common].sum())
    if expected[-1] < 5:  # too few rare ones to test apart: they join the rarest common token
        observed, expected = np.append(observed[:-2], observed[-2:].sum()), np.append(expected[:-2], expected[-2:].sum())
    assert len(observed) >= 2, "this place is not contested enough to test anything"
    assert chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 0.05 / (2 * len(RULES)) / 20


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_block_verification_keeps_at_least_as_many_tokens_of_real_drafts(demo, record_property):
    """Drafts of five at places of held-out answers. The coins are summed exactly, so only the drafts are drawn."""
    size = 5
    kept: dict[str, list[float]] = {"token": [], "block": []}
    for seed, example in enumerate(HELD_OUT[::4]):
        prompt = ids(demo, example.prompt)
        answer = demo.generate(prompt, block_size=0).token_ids
        for at in range(0, len(answer), 12):
            text = prompt + answer[:at]
            for again in range(2):
                reply = demo.generate(
                    text, rule="never", temperature=1, seed=1000 * seed + 2 * at + again, block_size=size, max_tokens=size
                )
                drafter, expert = rows_of(demo, text + reply.token_ids[:-1], keep=len(reply.token_ids))
                draft = Draft(reply.token_ids, one_by_one(drafter))
                for verification, found in kept.items():
                    found.append(expected_kept(draft, Rows.of(expert), Sampler(), verification))
    means = {name: float(np.mean(found)) for name, found in kept.items()}
    error = float(np.std(np.subtract(kept["block"], kept["token"])) / np.sqrt(len(kept["token"])))
    record_property("mean_kept_of_a_block_of_5", means)
    print(f"{len(kept['token'])} drafts: {means}, standard error of the difference {error:.4f}")
    assert len(kept["token"]) >= 400
    assert means["block"] > means["token"] - 2 * error


@pytest.mark.slow
def test_different_rules_write_different_texts_on_the_real_pair(demo):
    def texts(rule: str) -> list[list[int]]:
        settings = {"temperature": 1, "seed": 1, "max_tokens": 40, "block_size": 5}
        return [demo.generate(ids(demo, e.prompt), rule=rule, **settings).token_ids for e in HELD_OUT[::20]]

    written = {rule: texts(rule) for rule in RULES}
    for one in RULES:
        for other in RULES:
            assert one == other or written[one] != written[other], f"{one} and {other} are the same arm"


LOSSLESS = [
    *("chow:0", "chow_log:0", "diff:-1", "diff_log:-1e9", "opt:-1e9", "opt_log:-1e9", "fuzzy:0", "token_v1:-1", "token_v2:-1"),
    *("token_v3:-1", "bild:0", "lenience:0", "mentored:0", "typical:1,1e9", "decision_tokens:0,0", "budget:0"),
]
#: These name a target, so "kept by the rule" means that π(x) >= q(x), also where strict would say "kept by the coin".
NAMES_A_TARGET = ["lenience:0", "mentored:0"]
KEEPS_EVERYTHING = [
    *("chow:1", "chow_log:99", "diff:1", "diff_log:99", "opt:1e9", "opt_log:1e9", "token_v1:1", "token_v2:1", "token_v3:1", "never"),
    *("bild:1e9", "lenience:1", "typical:1e-300,1e-300", "decision_tokens:1e9"),
]


def of_held_out(runtime: sc.Runtime, rule: str) -> list[sc.Reply]:
    replies = []
    for seed, example in enumerate(HELD_OUT[::40]):
        runtime.reset()  # so that every rule evaluates the same batches
        replies.append(runtime.generate(ids(runtime, example.prompt), rule=rule, temperature=1, seed=seed, max_tokens=60))
    return replies


@pytest.fixture(scope="module")
def strict_replies(demo) -> list[sc.Reply]:
    return of_held_out(demo, "strict")


@pytest.mark.slow
@pytest.mark.parametrize("rule", LOSSLESS)
def test_the_lossless_end_of_each_dial_writes_the_text_of_strict_on_the_real_pair(demo, strict_replies, rule):
    for strict, lossless in zip(strict_replies, of_held_out(demo, rule), strict=True):
        assert lossless.token_ids == strict.token_ids
        if rule not in NAMES_A_TARGET:
            assert lossless.origins == strict.origins


@pytest.mark.slow
@pytest.mark.parametrize("rule", KEEPS_EVERYTHING)
def test_the_other_end_of_each_dial_keeps_every_draft_on_the_real_pair(demo, rule):
    for seed, example in enumerate(HELD_OUT[::40]):
        reply = demo.generate(ids(demo, example.prompt), rule=rule, temperature=1, seed=seed, max_tokens=60, block_size=5)
        assert set(reply.origins) <= {"accepted", "bonus"}
        assert reply.stats.rejected == reply.stats.deferred == 0


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["strict", "token_v3:0.5", "never"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_between_blocks_both_real_caches_hold_the_text_and_not_its_last_token(demo, rule, temperature):
    """After a rejection, a fully kept draft, an end of text and a full budget alike."""
    endings = set()
    for seed, example in enumerate(HELD_OUT[::60]):
        tokens = ids(demo, example.prompt)
        for chunk in demo.stream(tokens, rule=rule, temperature=temperature, seed=seed, max_tokens=9 + 60 * (seed % 2), block_size=5):
            tokens += chunk.token_ids
            endings |= {chunk.origins[-1], chunk.finish_reason}
            drafter, expert = demo._drafter.tokens, demo._expert.tokens
            assert drafter == tokens[: len(drafter)]
            assert expert == tokens[: len(expert)]
            assert rule == "never" or len(expert) == len(tokens) - 1
            assert len(tokens) - 1 - len(drafter) <= ("bonus" in chunk.origins)
    assert endings >= {"stop", "length"} | ({"corrected", "bonus"} if rule != "never" else set())
