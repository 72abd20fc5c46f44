"""How sure the models are, as rules, scores and the controller see it: among what grammar, bias and penalties let them say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop_runs import run
from strategies import logit_rows, rules_of, sampler_settings
from toys import ToySession, sometimes_accepts

from speccascade_local.decoding.auto_length import AutoLength
from speccascade_local.decoding.fidelity import Recording
from speccascade_local.decoding.history import AcceptanceHistory
from speccascade_local.decoding.ngram import NOTHING, NgramSession
from speccascade_local.decoding.profile import SIZES, Profile, Speed
from speccascade_local.rules import registry
from speccascade_local.rules.evidence import Evidence, Place
from speccascade_local.rules.lossy_acceptance import Fly
from speccascade_local.rules.position_rules import Chow, Diff, Opt
from speccascade_local.rules.routes import Signals
from speccascade_local.rules.rule import Decision, Rule
from speccascade_local.rules.token_rules import TokenV3
from speccascade_local.tokens.rows import Rows
from speccascade_local.tokens.sampler import Mask, Sampler
from speccascade_local.tokens.shaping import Penalties, Shaper


class Only:
    """A grammar that lets the same ids follow everywhere."""

    def __init__(self, n_vocab: int, *ids: int) -> None:
        self._mask = np.isin(np.arange(n_vocab), ids)

    def allowed(self, reply: Sequence[int]) -> Mask:
        return self._mask


@st.composite
def banned_rows(draw, n_rows: int = 1) -> tuple[list[Rows], list[Rows]]:
    """Both models' rows under one ban: as the loop makes them, and as if the models themselves gave the banned ids -inf."""
    width = draw(st.integers(1, 7))
    allowed = draw(st.sets(st.integers(0, width - 1), min_size=1))
    shaped, own = [], []
    for _ in range(2):
        logits = draw(logit_rows(n_rows, width, masked=False))
        shaped.append(Shaper(width, grammar=Only(width, *allowed)).rows(logits, [], [0] * (n_rows - 1)))
        own.append(Rows.of(np.where(np.isin(np.arange(width), list(allowed)), logits, -np.inf)))
    return shaped, own


@pytest.mark.parametrize("name", registry.RULES)
@given(st.data(), sampler_settings)
def test_under_a_ban_every_rule_decides_as_on_models_that_never_say_what_is_banned(name, data, settings):
    rule: type[Rule] = registry.RULES[name]
    n_rows = 8 if rule is Fly else 1  # it looks at the rest of a block
    settings |= {"temperature": 0.0} if rule is Fly else {}
    chosen, pairs = data.draw(rules_of(rule)), data.draw(banned_rows(n_rows))
    found = []
    for drafter, expert in pairs:
        place = Place(drafted=[int(token) for token in drafter.best], expert=expert)
        evidence = Evidence(drafter.row(0), expert.row(0), Sampler(**settings), place)
        decision = Decision(chosen.at(evidence), evidence)
        found.append((decision.deferred, decision.target, decision.tv))
    for shaped, own in zip(*found):
        np.testing.assert_array_equal(shaped, own)


@pytest.mark.parametrize("spec", ["chow_sum:0", "chow_average:0", "chow_quantile:0", "margin:0"])
@given(banned_rows(3))
def test_under_a_ban_every_score_is_that_of_a_drafter_that_never_says_what_is_banned(spec, pairs):
    route = registry.parse(spec)
    (shaped, _), (own, _) = pairs
    scores = [route.score(Signals.of(rows.best.tolist(), [rows.row(j) for j in range(3)])) for rows in (shaped, own)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("rule", [Chow(0.5), Diff(0.2), Opt(0.2)], ids=str)
def test_a_drafter_that_is_sure_of_a_banned_token_only_is_not_believed(rule):
    rows = np.array([9.0, 0.1, 0.0, 0.0, 0.0]), np.array([9.0, 0.0, 4.0, 0.0, 0.0])
    pair = [ToySession(lambda text, row=row: row, 5) for row in rows]
    _, believed, _ = run(pair, rule, temperature=0)
    assert {origin for block in believed for origin in block.verdict.origins} <= {"accepted", "bonus"}
    for session in pair:
        session.roll_back(0)
    text, blocks, _ = run(pair, rule, temperature=0, shaper=Shaper(5, grammar=Only(5, 1, 2, 3, 4)))
    assert "accepted" not in {origin for block in blocks for origin in block.verdict.origins}
    assert set(text) == {2}, "the expert's choice among allowed tokens"


@pytest.mark.parametrize(
    "shaper", [Shaper(7, grammar=Only(7, *range(7))), Shaper(7, penalties=Penalties({3: 0.0}))], ids=["grammar", "bias"]
)
@given(st.sampled_from([Chow(0.4), Diff(0.1), Opt(0.3), TokenV3(0.4)]), st.sampled_from([0.0, 0.7, 1.0]), st.integers(0, 9))
def test_what_forbids_nothing_changes_no_decision_and_no_account(shaper, rule, temperature, seed):
    wanted = Recording(top=3, models=True)
    plain, shaped = (
        run(sometimes_accepts(), rule, temperature=temperature, seed=seed, recording=wanted, shaper=each) for each in (Shaper(7), shaper)
    )
    assert shaped[0] == plain[0]
    assert [block.verdict for block in shaped[1]] == [block.verdict for block in plain[1]]


def test_rows_that_nothing_shapes_have_one_distribution_at_temperature_1():
    rows = Rows.of(np.array([[0.0, 1.0, 3.0]], np.float32))
    assert rows.plain is rows.raw
    assert rows.probs(Sampler()) is rows.plain.probs
    assert rows.plain_logprob(1) == rows.logprob(1)


def test_the_account_keeps_each_models_own_probability_under_a_grammar():
    """Log-probabilities are the models' own, whatever is allowed."""
    pair = sometimes_accepts(5)
    text, blocks, _ = run(pair, Chow(0.5), shaper=Shaper(5, grammar=Only(5, 1, 2)), recording=Recording(top=5, models=True))
    entries = [entry for block in blocks for entry in block.verdict.entries]
    for at, (token, entry) in enumerate(zip(text, entries), start=2):
        q, p = (session.row_of([1, 2, *text][:at]).astype(np.float32).astype(float) for session in pair)
        assert entry.expert_logprob == pytest.approx(p[token] - np.logaddexp.reduce(p))
        assert entry.drafter_logprob == pytest.approx(q[token] - np.logaddexp.reduce(q))
        assert {id_ for id_, _ in entry.expert.top} == {1, 2}


@pytest.mark.parametrize(("allowed", "log_odds"), [((0, 1, 2), 8.687), ((1, 2), 1.0)], ids=["everything", "all but its favorite"])
def test_automatic_lengths_see_the_drafters_confidence_among_allowed_tokens(allowed, log_odds):
    flat = Speed(1, 1, (0,), ((1.0,) * len(SIZES),), 0.01)
    lengths = AutoLength(Profile(flat, flat, 1.0, {}), AcceptanceHistory())
    lengths.begin(5, 10, first=False, bonus=False)
    row = Shaper(3, grammar=Only(3, *allowed)).rows(np.array([[10.0, 1.0, 0.0]]), [], [])
    assert lengths.wants_row(NOTHING)
    assert lengths.wants_token(row)
    assert lengths._plan.log_odds == [pytest.approx(log_odds, abs=0.01)]


@pytest.mark.parametrize("rule", ["chow:1", "token_v3:0.5"])
def test_without_a_bonus_automatic_lengths_leave_no_token_of_the_bundled_pairs_to_the_expert_alone(demo, rule):
    ids = demo.chat_ids([{"role": "user", "content": "Who is Ada Lovelace?"}])
    for seed in range(3):
        reply = demo.generate(ids, rule=rule, bonus="cascade", temperature=1, seed=seed, max_tokens=30)
        assert {token.origin for token in reply.tokens} <= {"accepted", "matched", "corrected"}


@pytest.mark.parametrize("bonus", ["expert", "cascade"])
def test_an_index_whose_copy_is_banned_knows_nothing_and_is_no_error(bonus):
    _, expert = sometimes_accepts(5)
    prompt = [1, 2, 3, 4, 1]  # 2 would be copied
    index = NgramSession(5, 64)
    assert Shaper(5, grammar=Only(5, 0, 3, 4)).shape(index.extend(prompt, 1)[0], []).tolist() == [0, -np.inf, -np.inf, 0, 0]
    index.roll_back(0)
    for shaper in (Shaper(5, grammar=Only(5, 0, 3, 4)), Shaper(5, penalties=Penalties({1: -np.inf, 2: -np.inf}))):
        text, _, _ = run((index, expert), Chow(0.5), prompt=prompt, shaper=shaper, bonus=bonus)
        assert set(text) <= {0, 3, 4}
        index.roll_back(0)
        expert.roll_back(0)
