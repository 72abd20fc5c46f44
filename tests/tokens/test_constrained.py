"""Grammars, schemas, biases and penalties on the bundled pair, under every method."""

from __future__ import annotations

import json
import re
from itertools import cycle, product

import hypothesis
import jsonschema
import numpy as np
import pytest
from hypothesis import strategies as st

import speccascade_local as sc
from speccascade_local.decoding.auto_length import AutoLength
from speccascade_local.decoding.verify import VERIFICATIONS
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.session import LlamaSession
from speccascade_local.rules import registry
from speccascade_local.rules.routes import Route, TokenCascade
from speccascade_local.runtime.settings import Settings
from speccascade_local.tokens.grammar import Grammar
from speccascade_local.tokens.shaping import Shaper

QUESTIONS = ["Who is Ada Lovelace?", "What is 12 + 7?", "Name a colour."]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["person", "number", "colour"]},
        "count": {"type": "integer", "minimum": -5, "maximum": 120},
        "sure": {"type": "boolean"},
    },
    "required": ["name", "kind", "count", "sure"],
    "additionalProperties": False,
}
GBNF = 'root ::= ("yes" | "no") ", " name "."\nname ::= [A-Z] [a-z]{1,8} (" " name)?'
PATTERN = re.compile(r"(yes|no), [A-Z][a-z]{1,8}( [A-Z][a-z]{1,8})*\.")
EVERY_METHOD = list(registry.examples())
PENALTIES = {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.2, "logit_bias": {87: 3.0, 263: -5.0}}


def question(runtime: sc.Runtime, number: int = 0) -> list[int]:
    return runtime.chat_ids([{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}])


def temperature_of(spec: str) -> float:
    return 0.0 if spec.startswith("fly") else 1.0  # fly is defined at temperature 0 only


def has_blocks(spec: str) -> bool:
    """Whether an expert checks drafted blocks, so that verification and bonus mean something."""
    method = registry.parse(spec)
    return method.asks_expert and not isinstance(method, Route | TokenCascade)


def settings_of(spec: str, runs: int):
    """Both verifications and both bonuses in turn, with block sizes mixed; without blocks only the sizes."""
    modes = cycle(product(VERIFICATIONS, ("expert", "cascade")))
    sizes = (7, 8, 9, 12) if spec.startswith("fly") else (1, 2, 5, 8, 11)
    for seed, size in zip(range(runs), cycle(sizes)):
        verification, bonus = next(modes) if has_blocks(spec) else ("token", "expert")
        yield {
            "rule": spec,
            "temperature": temperature_of(spec),
            "seed": seed,
            "block_size": size,
            "verification": verification,
            "bonus": bonus,
        }


def assert_caches_are_true(runtime: sc.Runtime) -> None:
    """The next row is, from the cache, what it is from a fresh reading.

    In texts as odd as a constraint makes them, fresh readings in other batches differ by up to 0.2, one stale token by 0.5 and more.
    """
    for session in (runtime._drafter, runtime._expert):
        if session.tokens:
            held = list(session.tokens)
            session.roll_back(len(held) - 1)
            from_cache = session.extend(held[-1:], keep=1).copy()
            fresh = LlamaSession(LlamaContext(session.model, n_ctx=runtime.n_ctx, n_threads=1), n_vocab=runtime.n_vocab)
            np.testing.assert_allclose(from_cache, fresh.extend(held, keep=1), atol=0.3)
            fresh.context.close()


def complaint(text: str) -> str | None:
    try:
        jsonschema.validate(json.loads(text), SCHEMA)
    except (ValueError, jsonschema.ValidationError) as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def runs(demo) -> list[tuple[dict, sc.Reply]]:
    """Nine answers under the schema with each method."""
    return [
        (settings, demo.generate(question(demo, settings["seed"]), json_schema=SCHEMA, max_tokens=400, fidelity=False, **settings))
        for spec in EVERY_METHOD
        for settings in settings_of(spec, 9)
    ]


@pytest.mark.slow
def test_every_answer_under_a_schema_is_valid_whatever_the_method_block_size_and_mode(runs):
    assert sum(settings["temperature"] == 1 for settings, _ in runs) >= 200
    wrong = {str(settings): (reply.text, reply.finish_reason) for settings, reply in runs if complaint(reply.text)}
    assert wrong == {}
    assert {reply.finish_reason for _, reply in runs} == {"stop"}


@pytest.mark.slow
def test_under_a_schema_answers_vary_and_drafts_are_still_accepted(runs):
    warm = [reply.stats for settings, reply in runs if settings["temperature"] == 1]
    assert sum(stats.accepted for stats in warm) > 0.2 * sum(stats.tested for stats in warm)
    assert len({reply.text for _, reply in runs}) > 50
    origins = {origin for _, reply in runs for origin in reply.origins}
    assert origins == {"accepted", "matched", "corrected", "bonus", "expert"}


@pytest.mark.slow
@pytest.mark.parametrize("spec", EVERY_METHOD)
def test_under_a_grammar_every_answer_matches_it_and_both_caches_stay_true(demo, spec):
    for settings in settings_of(spec, 4):
        reply = demo.generate(question(demo, settings["seed"]), grammar=GBNF, max_tokens=400, **settings)
        assert PATTERN.fullmatch(reply.text)
        assert reply.finish_reason == "stop"
    assert_caches_are_true(demo)


CONSTRAINTS = [
    {"json_schema": SCHEMA},
    {"grammar": GBNF},
    {"presence_penalty": 1.5},
    {"frequency_penalty": -0.5},
    {"repetition_penalty": 1.3},
    {"logit_bias": {87: 12.0, 263: -20.0}},
    PENALTIES,
    {"json_schema": SCHEMA, **PENALTIES},
]


def distance_at_parting(runtime: sc.Runtime, ids: list[int], constraint: dict, one: list[int], other: list[int]) -> float:
    """How far apart the expert's shaped logits are for the two tokens at which two replies part."""
    place = next(i for i, (a, b) in enumerate(zip(one, other)) if a != b)
    settings = Settings(**constraint)
    tokenizer = runtime._model.tokenizer.for_grammars
    grammar = Grammar(tokenizer, settings.constraint, runtime.n_vocab) if settings.constraint else None
    session = LlamaSession(LlamaContext(runtime._model, n_ctx=runtime.n_ctx, n_threads=1), n_vocab=runtime.n_vocab)
    row = session.extend([*ids, *one[:place]], keep=1)[0].copy()
    session.context.close()
    shaped = Shaper(runtime.n_vocab, ids, settings.penalties, grammar).shape(row, one[:place])
    return float(abs(shaped[one[place]] - shaped[other[place]]))


@pytest.mark.slow
@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda constraint: " ".join(constraint))
def test_at_temperature_0_strict_says_what_the_expert_alone_says_under_the_same_constraint(demo, constraint):
    """But for near-ties, which batches of another size may decide otherwise; see assert_caches_are_true for how near."""
    equal = 0
    for number in range(len(QUESTIONS)):
        ids = question(demo, number)
        alone = demo.generate(ids, rule="strict", block_size=0, max_tokens=60, **constraint)
        assert alone.stats.drafted == 0
        for settings in settings_of("strict", 5):
            settings["temperature"] = 0.0
            reply = demo.generate(ids, max_tokens=60, **constraint, **settings)
            if reply.token_ids == alone.token_ids:
                assert reply.finish_reason == alone.finish_reason
                equal += 1
            else:
                assert distance_at_parting(demo, ids, constraint, reply.token_ids, alone.token_ids) < 0.3
    assert equal >= 5  # of 15
    assert_caches_are_true(demo)


@pytest.mark.slow
@pytest.mark.parametrize("constraint", [c for c in CONSTRAINTS if not {"grammar", "json_schema"} & c.keys()], ids=lambda c: " ".join(c))
def test_penalties_change_what_is_said(demo, constraint):
    free, shaped = (
        [
            demo.generate(question(demo, n), temperature=1, rule="strict", seed=n, max_tokens=60, block_size=5, **extra).token_ids
            for n in range(3)
        ]
        for extra in ({}, constraint)
    )
    assert free != shaped


@pytest.mark.slow
@pytest.mark.parametrize("spec", EVERY_METHOD)
def test_a_bias_of_minus_100_bans_a_token_and_one_of_plus_100_forces_it(demo, spec):
    ids = question(demo)
    space, end = demo._ids(" the")[0], [token for token in range(demo.n_vocab) if demo._model.tokenizer.is_end(token)]
    for settings in settings_of(spec, 4 if has_blocks(spec) else 2):
        usual = set(demo.generate(ids, max_tokens=24, **settings).token_ids) - set(end)
        banned = demo.generate(ids, max_tokens=24, logit_bias=dict.fromkeys(usual, -100), **settings)
        assert not usual & set(banned.token_ids)
        assert usual
        forced = demo.generate(ids, max_tokens=12, logit_bias={space: 100}, **settings)
        assert forced.token_ids == [space] * 12
    assert_caches_are_true(demo)


@pytest.mark.slow
@pytest.mark.parametrize("spec", EVERY_METHOD)
def test_the_finish_reason_shows_that_max_tokens_cut_a_schema_short(demo, spec):
    for settings in settings_of(spec, 4):
        reply = demo.generate(question(demo), json_schema=SCHEMA, max_tokens=6, **settings)
        assert (len(reply.token_ids), reply.finish_reason) == (6, "length")
        assert complaint(reply.text)
    assert_caches_are_true(demo)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["strict", "token_v3:0.3", "never", "token_cascade:0.2", "chow_sum:-2.0"])
def test_a_stop_string_ends_a_constrained_answer_before_it(demo, spec):
    for settings in settings_of(spec, 6):
        ids = question(demo, settings["seed"])
        reply = demo.generate(ids, json_schema=SCHEMA, max_tokens=400, stop=['"kind"'], **settings)
        assert reply.finish_reason == "stop"
        assert reply.text.startswith("{")
        assert '"name"' in reply.text
        assert '"kind"' not in reply.text
        assert complaint(reply.text)
    assert_caches_are_true(demo)


def test_a_schema_and_strings_that_stop_and_max_tokens_go_together(demo):
    """The stop string comes after the cut: the cut decides."""
    reply = demo.generate(question(demo), json_schema=SCHEMA, max_tokens=3, stop=['"sure"'])
    assert reply.finish_reason == "length"
    assert_caches_are_true(demo)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ({"grammar": "root ::= root"}, "no text satisfies the grammar"),
        ({"grammar": "root ::= ["}, "not valid GBNF"),
        ({"json_schema": False}, "schema is false"),
        ({"json_schema": "{"}, "not valid JSON"),
        ({"json_schema": {"type": "text"}}, "Invalid type: text"),
        ({"json_schema": True, "grammar": 'root ::= "a"'}, "omit the other"),
        ({"logit_bias": {1024: 1}}, "logit_bias names token id 1024; the ids that both models have are 0 to 1023"),
        ({"logit_bias": {1: 101}}, "logit_bias of token 1 is 101"),
        ({"presence_penalty": 3}, "presence_penalty is 3"),
    ],
    ids=str,
)
def test_a_constraint_that_cannot_be_used_is_refused_by_the_call_before_anything_is_evaluated(demo, constraint, message):
    demo.reset()
    with pytest.raises(sc.SettingError, match=re.escape(message)):
        demo.stream(question(demo), **constraint)
    assert demo._drafter.tokens == demo._expert.tokens == []


# ---------------------------------------------------------------------- guesses copied from the text

closed = st.text(alphabet='ab{}[]:", 1', min_size=1, max_size=14)


def repeated(runtime: sc.Runtime, answers: list[str], grammar: str, **chosen: object) -> sc.Reply:
    """Asked again behind a history in which the same question got these answers."""
    asked = {"role": "user", "content": QUESTIONS[0]}
    history = [turn for answer in answers for turn in (asked, {"role": "assistant", "content": answer})]
    return runtime.chat([*history, asked], grammar=grammar, max_tokens=120, **chosen)


def literal(text: str) -> str:
    return json.dumps(text)  # GBNF escapes quotes and backslashes as JSON does


@pytest.mark.slow
@hypothesis.settings(max_examples=40)
@hypothesis.given(
    texts=st.lists(closed, min_size=1, max_size=3),
    spec=st.sampled_from(["strict", "token_v3:0.3", "chow:0.5", "never"]),
    temperature=st.sampled_from([0.0, 1.0]),
    penalty=st.sampled_from([0.0, 1.0]),
    eager=st.booleans(),
)
def test_an_answer_under_a_closed_grammar_may_stand_in_the_history_already(demo, texts, spec, temperature, penalty, eager):
    """eager: all that can be copied is guessed, by the expert's batch and by the drafter's, whatever it costs."""
    with pytest.MonkeyPatch.context() as patch:
        if eager:
            patch.setattr(AutoLength, "count_reviewed", lambda self, guess: len(guess.token_ids))
            patch.setattr(AutoLength, "count_guesses", lambda self, guess: len(guess.token_ids))
        grammar = "root ::= " + " | ".join(map(literal, texts))
        reply = repeated(demo, texts, grammar, rule=spec, temperature=temperature, seed=1, presence_penalty=penalty)
    assert reply.text in texts
    assert reply.finish_reason == "stop"
    assert_caches_are_true(demo)
