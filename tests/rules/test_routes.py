"""Scores of the drafter's confidence, and the token-level cascade on toy sessions."""

from __future__ import annotations

import math
import statistics

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from strategies import logit_rows
from toys import ToySession, always_accepts, never_accepts, never_ends, one_by_one, random_rows, sometimes_accepts, writing

from speccascade_local.decoding.fidelity import Recording
from speccascade_local.decoding.loop import BlockLoop
from speccascade_local.decoding.stats import Stats
from speccascade_local.decoding.token_loop import token_cascade
from speccascade_local.rules import registry
from speccascade_local.rules.position_rules import Never, Strict
from speccascade_local.rules.registry import target_probs
from speccascade_local.rules.routes import ChowAverage, ChowQuantile, ChowSum, Margin, Route, Signals, TokenCascade
from speccascade_local.tokens.shaping import UNSHAPED, Penalties, Shaper

PAIRS = {"always accepts": always_accepts, "never accepts": never_accepts, "sometimes accepts": sometimes_accepts}


# --------------------------------------------------------------------------- scores


@st.composite
def answers(draw) -> tuple[list[int], np.ndarray]:
    """Some tokens and the rows that they could have been drawn from."""
    rows = draw(logit_rows(draw(st.integers(1, 6))))
    return [draw(st.sampled_from(np.flatnonzero(np.isfinite(row)).tolist())) for row in rows], rows


def signals_of(token_ids: list[int], logits: np.ndarray) -> Signals:
    return Signals.of(token_ids, one_by_one(logits))


def plain_scores(token_ids: list[int], rows: np.ndarray) -> dict[str, float]:
    """The scores from their formulas, in plain Python."""
    probs = [oracle.softmax(row) for row in rows.tolist()]
    logprobs = [math.log(row[token]) for row, token in zip(probs, token_ids)]
    margins = [best - (second[0] if second else 0.0) for best, *second in (sorted(row, reverse=True) for row in probs)]
    place = 0.25 * (len(logprobs) - 1)
    low, ranked = math.floor(place), sorted(logprobs)
    quarter = ranked[low] + (place - low) * (ranked[math.ceil(place)] - ranked[low])
    return {
        "chow_sum:0": math.fsum(logprobs),
        "chow_average:0": statistics.fmean(logprobs),
        "chow_quantile:0": min(logprobs),
        "chow_quantile:0,1": max(logprobs),
        "chow_quantile:0,0.25": quarter,
        "margin:0": statistics.fmean(margins),
    }


@given(answers())
def test_each_score_is_its_formula_over_the_raw_rows(answer):
    for spec, expected in plain_scores(*answer).items():
        assert registry.parse(spec).score(signals_of(*answer)) == pytest.approx(expected, abs=1e-9), spec


@given(answers(), st.integers(0, 6))
def test_an_answer_that_came_in_two_blocks_scores_as_in_one(answer, cut):
    token_ids, rows = answer
    blocks = [(ids, part) for ids, part in ((token_ids[:cut], rows[:cut]), (token_ids[cut:], rows[cut:])) if ids]
    whole, joined = signals_of(token_ids, rows), Signals.join([signals_of(*block) for block in blocks])
    np.testing.assert_array_equal(whole.logprobs, joined.logprobs)
    np.testing.assert_array_equal(whole.margins, joined.margins)


def test_rows_behind_the_end_of_an_answer_do_not_count():
    rows = np.random.default_rng(0).normal(size=(5, 4))
    np.testing.assert_array_equal(signals_of([1, 2], rows).margins, signals_of([1, 2], rows[:2]).margins)


@given(answers())
def test_no_score_passes_the_lossless_end_of_its_threshold_and_every_score_passes_the_other(answer):
    signals = signals_of(*answer)
    for route in (ChowSum, ChowAverage, ChowQuantile):
        assert -1e9 <= route(-1e9).score(signals) <= 0 < route(1e-9).threshold
    assert Margin(0).threshold <= Margin(0).score(signals) <= 1


def test_a_token_that_the_drafter_gives_no_mass_counts_as_very_unlikely_and_not_as_an_error():
    assert ChowSum(0).score(signals_of([1], np.array([[0.0, -1e4]]))) == -1e4


@pytest.mark.parametrize("route", [route for route in registry.ROUTES.values() if route.dials], ids=lambda route: route.name)
def test_a_route_is_written_as_it_is_read(route: type[Route]):
    parsed = registry.parse(f"{route.name}:{route.example}")
    assert registry.parse(str(parsed)) == parsed


# --------------------------------------------------------------------------- token by token


def cascade(pair, alpha, *, prompt=(1, 2), temperature=1.0, max_tokens=12, seed=0, stops=lambda token: False, shaper=None, recording=None):
    """Decode to the end; returns the reply, the blocks and the statistics. Both caches are checked after every token."""
    drafter, expert = pair
    tokens, stats, blocks = list(prompt), Stats(), []
    generation = writing(tokens, temperature, seed, shaper=shaper or UNSHAPED)
    more = {"max_tokens": max_tokens, "stops": stops, "stats": stats, "recording": recording}
    for block in token_cascade(generation, drafter, expert, rule=TokenCascade(alpha), **more):
        blocks.append(block)
        assert len(tokens) == len(prompt) + len(blocks), "what a block emits is committed before it is yielded"
        assert drafter.tokens == tokens[:-1]
        assert expert.tokens == tokens[: len(expert.tokens)] != tokens
        assert "expert" not in block.verdict.origins or len(expert.tokens) == len(tokens) - 1
    return tokens[len(prompt) :], blocks, stats


def looped(pair, rule, *, block_size, temperature=1.0, seed=0, max_tokens=12) -> list[int]:
    tokens = [1, 2]
    more = {"block_size": block_size, "max_tokens": max_tokens, "stops": never_ends, "stats": Stats()}
    blocks = BlockLoop(writing(tokens, temperature, seed), *pair, rule=rule, **more).decode()
    assert list(blocks)[-1].finish_reason == "length"
    return tokens[2:]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_at_alpha_0_the_text_is_the_experts_and_at_alpha_1_the_drafters_token_for_token(temperature, seed):
    shared = {"temperature": temperature, "seed": seed}
    alone, blocks, stats = cascade(sometimes_accepts(), 0, **shared)
    assert alone == looped(sometimes_accepts(), Strict(), block_size=0, **shared)
    assert {block.verdict.origins for block in blocks} == {("expert",)}
    assert (stats.expert_calls, stats.accepted) == (12, 0)
    pair = sometimes_accepts()
    drafted, blocks, stats = cascade(pair, 1, **shared)
    assert drafted == looped(sometimes_accepts(), Never(), block_size=5, **shared)
    assert {block.verdict.origins for block in blocks} == {("accepted",)}
    assert (stats.expert_calls, stats.accepted, pair[1].calls) == (0, 12, [])


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
@given(alpha=st.floats(0, 1), temperature=st.sampled_from([0.0, 1.0]), max_tokens=st.integers(1, 20), seed=st.integers(0, 9))
def test_the_drafter_writes_where_it_is_sure_and_the_expert_reads_once_what_it_missed(make, alpha, temperature, max_tokens, seed):
    drafter, expert = make()
    reply, blocks, stats = cascade((drafter, expert), alpha, temperature=temperature, max_tokens=max_tokens, seed=seed)
    text = [1, 2, *reply]
    origins = []
    for end in range(2, len(text)):
        doubt = 1 - max(oracle.softmax(drafter.row_of(text[:end]).astype(np.float32).tolist()))
        origins.append("expert" if doubt > alpha else "accepted")
    assert [block.verdict.origins for block in blocks] == [(origin,) for origin in origins]
    asked = [end for end, origin in enumerate(origins, start=2) if origin == "expert"]
    assert expert.calls == [end - before for before, end in zip([0, *asked], asked)]
    assert drafter.calls == [2] + [1] * (len(reply) - 1)
    assert (stats.tokens, stats.drafter_calls, stats.expert_calls) == (max_tokens, max_tokens, len(asked))
    assert stats.accepted == stats.drafted == max_tokens - len(asked)
    if temperature == 0:
        for end, origin in enumerate(origins, start=2):
            model = drafter if origin == "accepted" else expert
            assert text[end] == int(np.argmax(model.row_of(text[:end])))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.0, 0.45, 0.55, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_two_tokens_in_a_row_follow_the_target_of_chow(alpha, temperature):
    n_vocab, n = 4, 4_000
    rows = [random_rows(n_vocab, seed=seed, scale=1.0) for seed in (4, 5)]
    chow = f"chow:{alpha}"

    def target(text: list[int]) -> np.ndarray:
        return target_probs(chow, *(row(text).astype(np.float32) for row in rows), temperature=temperature)[0]

    joint = np.array([target([1, 2])[first] * target([1, 2, first]) for first in range(n_vocab)])
    counts, asked = np.zeros((n_vocab, n_vocab)), 0
    for seed in range(n):
        pair = [ToySession(row, n_vocab) for row in rows]
        (first, second), _, stats = cascade(pair, alpha, temperature=temperature, max_tokens=2, seed=seed)
        counts[first, second] += 1
        asked += stats.expert_calls
    assert (0 < asked < 2 * n) == (0 < alpha < 1), "in between, both models have written"
    assert chisquare(counts.ravel(), n * joint.ravel()).pvalue > 1e-4


@given(st.floats(0, 1), st.integers(0, 9), st.integers(1, 12))
def test_a_text_ends_after_the_token_that_stops_it(alpha, seed, length):
    whole, _, _ = cascade(sometimes_accepts(), alpha, seed=seed)
    fed = []

    def stops(token: int) -> bool:
        fed.append(token)
        return len(fed) == length

    reply, blocks, _ = cascade(sometimes_accepts(), alpha, seed=seed, stops=stops)
    assert reply == fed == whole[:length]
    assert [block.finish_reason for block in blocks] == [None] * (length - 1) + ["stop"]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_full_context_ends_the_text_and_a_prompt_that_fills_it_still_gets_one_token(alpha):
    reply, blocks, _ = cascade(sometimes_accepts(n_ctx=8), alpha, max_tokens=100)
    assert (len(reply), blocks[-1].finish_reason) == (7, "length")
    reply, blocks, _ = cascade(sometimes_accepts(n_ctx=2), alpha, max_tokens=100)
    assert (len(reply), blocks[-1].finish_reason) == (1, "length")


def test_a_smaller_context_of_either_model_is_the_limit():
    drafter, expert = sometimes_accepts()
    for pair in ((drafter, ToySession(expert.row_of, 7, 5)), (ToySession(drafter.row_of, 7, 5), ToySession(expert.row_of, 7))):
        drafter.roll_back(0)
        assert len(cascade(pair, 0.5, max_tokens=100)[0]) == 4


def test_penalties_hold_for_both_models_and_confidence_is_read_after_them():
    """A drafter that is sure of a token that the user forbids is as sure of its next choice (0.73 here) as if there was no other."""
    rows = np.array([5.0, 1.0, 0.0]), np.array([5.0, 0.0, 1.0])
    pair = [ToySession(lambda text, row=row: row, 3) for row in rows]
    for alpha, expected, origin in ((0.3, 1, "accepted"), (0.2, 2, "expert")):
        for session in pair:
            session.roll_back(0)
        shaper = Shaper(3, penalties=Penalties({0: -50.0}))
        reply, blocks, _ = cascade(pair, alpha, temperature=0, max_tokens=3, shaper=shaper)
        assert reply == [expected] * 3
        assert {block.verdict.origins for block in blocks} == {(origin,)}


@given(st.floats(0, 1), st.integers(0, 9))
def test_the_account_of_each_token_is_that_of_the_models_that_were_evaluated(alpha, seed):
    pair = sometimes_accepts()
    reply, blocks, _ = cascade(pair, alpha, seed=seed, recording=Recording(top=2, models=True))
    for end, (token, block) in enumerate(zip(reply, blocks), start=2):
        (entry,) = block.verdict.entries
        q, p = (oracle.softmax(session.row_of([1, 2, *reply][:end]).astype(np.float32).tolist()) for session in pair)
        asked = block.verdict.origins == ("expert",)
        assert entry.drafter_logprob == pytest.approx(math.log(q[token]))
        assert entry.expert_logprob == (pytest.approx(math.log(p[token])) if asked else None)
        assert entry.tv == (0.0 if asked else None)
        assert entry.logprobs.logprob == pytest.approx(math.log((p if asked else q)[token]))
        assert (entry.expert is None) == (not asked)
        assert entry.drafter.logprob == pytest.approx(math.log(q[token]))
