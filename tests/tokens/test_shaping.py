from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import logit_rows
from toys import ToySession, random_rows, writing

from speccascade_local.common.errors import SessionError, SettingError
from speccascade_local.decoding.draft import propose
from speccascade_local.tokens.sampler import Sampler
from speccascade_local.tokens.shaping import ForbiddenIds, Penalties, Shaper

WIDTH = 6
ids = st.integers(0, WIDTH - 1)
texts = st.lists(ids, max_size=8)
halves = st.integers(-4, 4).map(lambda n: n / 2)
penalties = st.builds(
    Penalties,
    st.dictionaries(ids, st.sampled_from([-np.inf, -100, -1.5, 0, 2, 100]), max_size=3),
    halves,
    halves,
    st.sampled_from([0.001, 0.5, 1, 1.3, 1000]),
)


class NoRepeats:
    """A grammar for tests: a token may not follow itself, and the last id may only stand at even places."""

    def __init__(self, n_vocab: int = WIDTH) -> None:
        self.n_vocab = n_vocab

    def allowed(self, reply: Sequence[int]) -> np.ndarray:
        mask = np.ones(self.n_vocab, dtype=bool)
        mask[reply[-1:]] = False
        mask[-1] &= len(reply) % 2 == 0
        return mask


grammars = st.sampled_from([None, NoRepeats(), ForbiddenIds(WIDTH, early=[1, 4], least=3, always=[5])])


def by_definition(
    row: Sequence[float], prompt: Sequence[int], reply: Sequence[int], penalties: Penalties, grammar: NoRepeats | None
) -> list[float]:
    """What the docstring of Penalties says, token by token."""
    counts, shaped = Counter(reply), []
    allowed = grammar.allowed(reply) if grammar else [True] * len(row)
    for token, logit in enumerate(map(float, row)):
        if token in counts or token in prompt:
            logit = logit / penalties.repetition if logit > 0 else logit * penalties.repetition
        if token in counts:
            logit -= penalties.presence
        for _ in range(counts[token]):
            logit -= penalties.frequency
        logit += penalties.logit_bias.get(token, 0)
        shaped.append(logit if allowed[token] else -np.inf)
    return shaped


@given(penalties, texts, texts, logit_rows(1, WIDTH, masked=False), grammars)
def test_a_row_is_shaped_as_the_definition_says_and_the_given_row_stays_as_it_was(penalties, prompt, reply, rows, grammar):
    before = rows.copy()
    shaped = Shaper(WIDTH, prompt, penalties, grammar).shape(rows[0], reply)
    np.testing.assert_allclose(shaped, by_definition(before[0], prompt, reply, penalties, grammar), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"presence": 1.5}, [4, 4 - 1.5, 4 - 1.5, -4, -4 - 1.5]),
        ({"frequency": 0.5}, [4, 4 - 0.5, 4 - 1.0, -4, -4 - 0.5]),
        ({"repetition": 2.0}, [2, 2, 2, -4, -8]),  # token 0 stands in the prompt only
        ({"logit_bias": {3: 7}}, [4, 4, 4, 3, -4]),
        ({"repetition": 2.0, "presence": 1.0}, [2, 2 - 1, 2 - 1, -4, -8 - 1]),
    ],
    ids=str,
)
def test_presence_and_frequency_look_at_the_reply_and_repetition_at_the_prompt_too(setting, expected):
    row = np.array([4, 4, 4, -4, -4], np.float32)
    shaped = Shaper(5, [0], Penalties(**setting)).shape(row, [1, 2, 2, 4])
    np.testing.assert_array_equal(shaped, expected)


@given(penalties, texts, logit_rows(1, WIDTH), st.lists(texts, min_size=1, max_size=6), grammars)
def test_a_row_is_shaped_the_same_whatever_was_asked_before(penalties, prompt, rows, replies, grammar):
    """Drafts that grow, are dropped and taken back leave no trace; a fresh shaper says the same."""
    rows[0, :3] = 0.0  # something is left whatever a grammar forbids
    used = Shaper(WIDTH, prompt, penalties, grammar)
    for reply in [*replies, *reversed(replies)]:
        np.testing.assert_array_equal(used.shape(rows[0], reply), Shaper(WIDTH, prompt, penalties, grammar).shape(rows[0], reply))


@given(penalties, texts, texts, texts, grammars, st.data())
def test_row_j_of_a_block_sees_the_reply_and_the_first_j_drafted_tokens(penalties, prompt, reply, drafted, grammar, data):
    logits = data.draw(logit_rows(data.draw(st.integers(0, len(drafted) + 1)), WIDTH, masked=False)).reshape(-1, WIDTH)
    shaper = Shaper(WIDTH, prompt, penalties, grammar)
    rows = shaper.rows(logits, reply, drafted)
    assert rows.shaped.shape == logits.shape
    assert rows.logits is logits
    for j, row in enumerate(logits):
        np.testing.assert_allclose(
            rows.shaped[j], by_definition(row, prompt, [*reply, *drafted[:j]], penalties, grammar), rtol=1e-12, atol=1e-12
        )


@given(penalties, texts, texts, st.integers(0, 5), st.booleans(), grammars)
def test_the_rows_of_drafter_and_expert_are_shaped_alike(penalties, prompt, reply, length, look_ahead, grammar):
    """A drafter that is the expert's twin: its rows, shaped as they are drafted, are the expert's, shaped as a block."""
    prompt = [0, *prompt]
    shaper = Shaper(WIDTH, prompt, penalties, grammar)
    drafter = ToySession(random_rows(WIDTH, seed=4), WIDTH)
    text = [*prompt, *reply]
    draft = propose(drafter, writing(text, shaper=shaper, reply=reply), length, look_ahead=look_ahead)
    expert = ToySession(random_rows(WIDTH, seed=4), WIDTH)
    rows = shaper.rows(expert.extend([*text, *draft.token_ids], keep=length + 1).copy(), reply, draft.token_ids)
    assert len(draft.rows) == length + look_ahead
    for j, row in enumerate(draft.rows):
        np.testing.assert_array_equal(row.logits[0], rows.logits[j])
        np.testing.assert_array_equal(row.shaped[0], rows.shaped[j])


@pytest.mark.parametrize("penalties", [None, Penalties(), Penalties({}, 0, 0, 1)])
def test_settings_that_change_nothing_give_the_very_rows_back(penalties):
    shaper, logits = Shaper(WIDTH, [1], penalties), np.zeros((2, WIDTH), np.float32)
    assert not shaper.active
    assert shaper.shape(logits[0], [1]).base is logits
    rows = shaper.rows(logits, [1], [2])
    assert rows.logits is rows.shaped is logits


@pytest.mark.parametrize("setting", [{"presence": 0.1}, {"frequency": -0.1}, {"repetition": 1.1}, {"logit_bias": {0: 1}}], ids=str)
def test_each_setting_alone_makes_a_shaper_active(setting):
    assert Shaper(WIDTH, (), Penalties(**setting)).active


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"presence": 2.1}, "presence_penalty is 2.1; it must be between -2 and 2"),
        ({"presence": float("nan")}, "presence_penalty is nan; it must be between -2 and 2"),
        ({"frequency": -2.1}, "frequency_penalty is -2.1; it must be between -2 and 2"),
        ({"frequency": "1"}, "frequency_penalty is '1'; it must be between -2 and 2"),
        ({"repetition": 0}, "repetition_penalty is 0; it must be between 0.001 and 1000; 1 is off"),
        ({"repetition": 1001}, "repetition_penalty is 1001; it must be between 0.001 and 1000; 1 is off"),
        ({"repetition": True}, "repetition_penalty is True; it must be between 0.001 and 1000; 1 is off"),
        ({"logit_bias": [(1, 2)]}, "logit_bias is [(1, 2)]; it must be a mapping from token ids to numbers"),
        ({"logit_bias": {-1: 0}}, "a token id in logit_bias is -1; it must be a whole number from 0 to 2147483647"),
        ({"logit_bias": {"7": 0}}, "a token id in logit_bias is '7'; it must be a whole number from 0 to 2147483647"),
        ({"logit_bias": {7: 100.5}}, "logit_bias of token 7 is 100.5; it must be between -100 and 100, or -inf for never"),
        ({"logit_bias": {7: None}}, "logit_bias of token 7 is None; it must be between -100 and 100, or -inf for never"),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused_by_name_with_the_value_and_the_range(setting, message):
    with pytest.raises(SettingError) as caught:
        Penalties(**setting)
    assert str(caught.value) == message


def test_a_bias_outside_the_vocabulary_is_refused_with_the_ids_that_there_are():
    with pytest.raises(SettingError, match=r"logit_bias names token id 6; the ids that both models have are 0 to 5"):
        Shaper(WIDTH, (), Penalties({2: 1, WIDTH: 1}))


@pytest.mark.parametrize("kind", [dict, MappingProxyType])
def test_biases_are_copied_so_that_a_later_change_goes_unseen(kind: type[Mapping]):
    given_biases = {1: 5}
    penalties = Penalties(kind(given_biases))
    given_biases[1] = 500
    assert penalties.logit_bias == {1: 5.0}


def test_numbers_of_any_kind_are_taken_for_what_they_are():
    odd = Penalties({np.int64(1): np.float32(5)}, Fraction(1, 2), np.float32(1), Fraction(3, 2))
    plain = Penalties({1: 5.0}, 0.5, 1.0, 1.5)
    row = np.array([3, 3, -3], np.float32)
    np.testing.assert_array_equal(Shaper(3, [0], odd).shape(row, [1, 2]), Shaper(3, [0], plain).shape(row, [1, 2]))


class OnlyTheLast(NoRepeats):
    def allowed(self, reply: Sequence[int]) -> np.ndarray:
        return np.arange(self.n_vocab) == self.n_vocab - 1


class Nothing(NoRepeats):
    def allowed(self, reply: Sequence[int]) -> np.ndarray:
        return np.zeros(self.n_vocab, dtype=bool)


def test_a_row_that_rules_out_the_one_token_that_may_follow_is_sure_of_it():
    row = np.zeros(WIDTH)
    row[-1] = -np.inf
    assert Shaper(WIDTH, (), None, OnlyTheLast()).shape(row, [1, 2, 3]).tolist() == [-np.inf] * (WIDTH - 1) + [0]


def test_a_text_that_nothing_may_follow_is_an_error_that_says_where():
    row = np.zeros(WIDTH)
    with pytest.raises(SettingError, match="after 3 tokens the grammar or schema allows nothing that this vocabulary can say"):
        Shaper(WIDTH, (), None, Nothing()).shape(row, [1, 2, 3])


def test_rows_that_are_no_numbers_are_the_models_fault_and_not_the_grammars():
    shaped = Shaper(WIDTH, (), None, OnlyTheLast()).shape(np.full(WIDTH, np.nan), [])
    with pytest.raises(SessionError, match="nan or inf as logits"):
        Sampler().probs(shaped)


def test_ends_are_forbidden_before_the_least_length_and_guesses_of_them_are_not_admitted():
    shaper = Shaper(WIDTH, grammar=ForbiddenIds(WIDTH, early=[1, 4], least=2, always=[5]))
    row = np.zeros(WIDTH, np.float32)
    assert np.flatnonzero(np.isneginf(shaper.shape(row, []))).tolist() == [1, 4, 5]
    assert np.flatnonzero(np.isneginf(shaper.shape(row, [0]))).tolist() == [1, 4, 5]
    assert np.flatnonzero(np.isneginf(shaper.shape(row, [0, 0]))).tolist() == [5]
    assert shaper.count_allowed([], [0, 1, 2]) == 1
    assert shaper.count_allowed([0], [0, 1, 2]) == 3
    assert shaper.count_allowed([0, 0], [0, 5]) == 1


def test_a_bias_of_minus_infinity_forbids_and_forbidding_everything_is_an_error_of_the_setting():
    shaper = Shaper(3, (), Penalties({0: -np.inf, 1: 100}))
    assert shaper.shape(np.array([np.inf, 1, 2], np.float32)[[1, 1, 2]], []).tolist() == [-np.inf, 101, 2]
    with pytest.raises(SettingError, match="logit_bias allows nothing"):
        Shaper(2, (), Penalties({0: -np.inf, 1: -np.inf})).shape(np.zeros(2, np.float32), [])
