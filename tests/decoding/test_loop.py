from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from exact import chain, courses, decisions_along
from hypothesis import given
from hypothesis import strategies as st
from loop_runs import run
from scipy.stats import chisquare
from strategies import EVERY_RULE, JUDGED_RULES, all_rules
from toys import ToySession, always_accepts, certain, never_accepts, never_ends, sometimes_accepts, writing

from speccascade_local.decoding.fidelity import Recording
from speccascade_local.decoding.loop import Block, BlockLoop
from speccascade_local.decoding.stats import Stats
from speccascade_local.rules import registry
from speccascade_local.rules.combined import Budget
from speccascade_local.rules.lossy_acceptance import DecisionTokens, Fly, Lenience, Mentored
from speccascade_local.rules.position_rules import Chow, Diff, Never, Opt, Strict
from speccascade_local.rules.registry import target_probs
from speccascade_local.rules.routes import TokenCascade
from speccascade_local.rules.token_rules import TokenV1, TokenV2, TokenV3
from speccascade_local.tokens.sampler import Sampler, Softmax
from speccascade_local.tokens.shaping import Penalties, Shaper

PAIRS = {"always accepts": always_accepts, "never accepts": never_accepts, "sometimes accepts": sometimes_accepts}
#: Every way to settle a block, and what may follow it.
MODES = [
    {"verification": "token", "bonus": "expert"},
    {"verification": "block", "bonus": "expert"},
    {"verification": "token", "bonus": "cascade"},
    {"verification": "block", "bonus": "cascade"},
]
every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(mode.values()))
#: Two rules whose past matters on the toys, which the typical dials do not make sure of.
REMEMBERING = [DecisionTokens(0.0, 1.0), Budget(0.1, "diff")]


@given(seed=st.integers(0, 20), block_size=st.integers(1, 5))
def test_a_fixed_length_is_drafted_each_time_until_the_text_ends(seed, block_size):
    _, blocks, _ = run(sometimes_accepts(seed=seed), Strict(), block_size=block_size, max_tokens=30, seed=seed)
    written = 0
    for block in blocks:
        assert len(block.draft.token_ids) == min(block_size, 30 - written - 1)  # one token of a block is the expert's
        written += len(block.verdict.token_ids)


@given(seed=st.integers(0, 20), block_size=st.integers(1, 5))
def test_under_penalties_strict_writes_at_temperature_zero_what_the_expert_alone_writes(seed, block_size):
    def text(size: int) -> list[int]:
        drafter, expert = sometimes_accepts(seed=seed)
        generation = writing([1, 2], 0, shaper=Shaper(7, [1, 2], Penalties({3: 0.5}, presence=1.0, frequency=0.8, repetition=1.2)))
        more = {"block_size": size, "max_tokens": 12, "stops": never_ends, "stats": Stats()}
        for _ in BlockLoop(generation, drafter, expert, rule=Strict(), **more).decode():
            pass
        return generation.reply

    assert text(block_size) == text(0)


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
@given(
    rule=all_rules,
    temperature=st.sampled_from([0.0, 1.0]),
    block_size=st.integers(1, 6),
    max_tokens=st.integers(1, 20),
    seed=st.integers(0, 9),
    mode=st.sampled_from(MODES),
)
def test_between_blocks_both_caches_hold_the_committed_text_and_at_most_all_but_its_last_token(
    make, rule, temperature, block_size, max_tokens, seed, mode
):
    drafter, expert = make()
    tokens = [1, 2]
    generation = writing(tokens, temperature, seed, lambda token: token == 5)
    more = {"block_size": block_size, "max_tokens": max_tokens, "stops": generation.is_end, "stats": Stats()}
    blocks = BlockLoop(generation, drafter, expert, rule=rule, **more, **mode).decode()
    written = 2
    for block in blocks:
        written += len(block.verdict.token_ids)
        assert len(tokens) == written, "what a block emits is committed before it is yielded"
        assert drafter.tokens == tokens[: len(drafter.tokens)]
        assert expert.tokens == tokens[: len(expert.tokens)]
        if rule.asks_expert:
            assert len(expert.tokens) == len(tokens) - 1
        behind = len(tokens) - 1 - len(drafter.tokens)
        fully_kept = "bonus" in block.verdict.origins or block.draft.token_ids == []
        if mode["bonus"] == "cascade":
            assert not fully_kept, "every token was drafted and settled"
        assert behind == 0 or (fully_kept and (behind == 1 or not block.draft.token_ids))
    assert 1 <= written - 2 <= max_tokens


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("block_size", [0, 1, 3, 8])
@every_mode
def test_strict_at_temperature_zero_writes_the_experts_own_text(make, block_size, mode):
    alone, _, _ = run(make(), Strict(), temperature=0, block_size=0)
    together, _, _ = run(make(), Strict(), temperature=0, block_size=block_size, **mode)
    assert together == alone


@every_mode
@pytest.mark.parametrize("rule", JUDGED_RULES, ids=str)
def test_at_temperature_zero_both_verifications_write_the_same_text_in_the_same_blocks(rule, mode):
    one = run(sometimes_accepts(), rule, temperature=0, max_tokens=40, **mode | {"verification": "token"})
    other = run(sometimes_accepts(), rule, temperature=0, max_tokens=40, **mode | {"verification": "block"})
    assert [block.verdict for block in one[1]] == [block.verdict for block in other[1]]


LOSSLESS = [
    registry.parse(spec)
    for spec in (
        *("chow:0", "chow_log:0", "diff:-1", "diff_log:-1e9", "opt:-1e9", "opt_log:-1e9", "fuzzy:0", "token_v1:-1", "token_v2:-1"),
        *("token_v3:-1", "bild:0", "lenience:0", "mentored:0", "typical:1,1e9", "decision_tokens:0,0", "budget:0"),
    )
]


@pytest.mark.parametrize("rule", LOSSLESS, ids=str)
@every_mode
def test_the_lossless_end_of_each_dial_gives_the_token_stream_of_strict(rule, mode):
    for seed in range(4):
        strict, _, strict_stats = run(sometimes_accepts(), Strict(), max_tokens=40, seed=seed, **mode)
        lossless, _, stats = run(sometimes_accepts(), rule, max_tokens=40, seed=seed, **mode)
        assert lossless == strict
        assert (stats.accepted, stats.rejected, stats.bonus) == (strict_stats.accepted, strict_stats.rejected, strict_stats.bonus)


@pytest.mark.parametrize("rule", [Never(), Chow(1), Diff(1), Opt(1e9), TokenV1(1), TokenV2(1), TokenV3(1)], ids=str)
def test_the_drafter_only_end_of_each_dial_accepts_everything(rule):
    _, blocks, stats = run(sometimes_accepts(), rule, max_tokens=40)
    assert stats.acceptance_rate == 1.0
    assert stats.deferral_rate == 0.0
    assert {origin for block in blocks for origin in block.verdict.origins} <= {"accepted", "bonus"}


def test_different_rules_write_different_texts():
    settings = [rule for rule in EVERY_RULE if not isinstance(rule, Fly | TokenCascade)]
    texts = [tuple(run(sometimes_accepts(n_ctx=256), rule, max_tokens=200)[0]) for rule in settings]
    assert len(set(texts)) == len(settings)


def test_never_leaves_the_expert_asleep():
    drafter, expert = sometimes_accepts()
    text, _, stats = run((drafter, expert), Never())
    assert expert.calls == []
    assert stats.expert_calls == 0
    assert len(text) == 12


def test_block_size_zero_is_the_expert_alone_and_leaves_the_drafter_asleep():
    drafter, expert = sometimes_accepts()
    _, blocks, stats = run((drafter, expert), Strict(), block_size=0)
    assert drafter.calls == []
    assert {origin for block in blocks for origin in block.verdict.origins} == {"expert"}
    assert stats.expert_calls == stats.tokens == 12


def test_the_expert_scores_each_block_in_one_batch_and_no_model_reads_a_kept_token_twice():
    drafter, expert = always_accepts()
    run((drafter, expert), Strict(), block_size=4, max_tokens=15, temperature=0)
    assert expert.calls == [2 + 4, 5, 5]
    assert drafter.calls == [2, 1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1]  # after a fully kept block it reads two tokens at once


@given(st.integers(1, 30), st.integers(0, 8), st.sampled_from(MODES))
def test_max_tokens_is_exact_wherever_in_a_block_it_falls(max_tokens, block_size, mode):
    for make in PAIRS.values():
        text, blocks, stats = run(make(), Strict(), max_tokens=max_tokens, block_size=block_size, **mode)
        assert len(text) == stats.tokens == max_tokens
        assert [block.finish_reason for block in blocks] == [None] * (len(blocks) - 1) + ["length"]


@pytest.mark.parametrize("rule", [Strict(), Never()], ids=str)
@pytest.mark.parametrize("length", [1, 7, 15, 16])
@every_mode
@pytest.mark.parametrize("wanted", [None, Recording(1, models=True)], ids=["plain", "looking ahead"])
def test_a_prompt_up_to_the_whole_context_is_continued_until_the_context_is_full(rule, length, mode, wanted):
    """The last token needs no room of its own, so a context of 16 ends with 17 tokens of text."""
    text, blocks, _ = run(always_accepts(n_ctx=16), rule, prompt=[i % 7 for i in range(length)], max_tokens=100, recording=wanted, **mode)
    assert length + len(text) == 17
    assert blocks[-1].finish_reason == "length"


@pytest.mark.parametrize("at", range(1, 8))
@every_mode
def test_text_ends_at_the_end_token_wherever_in_a_block_it_falls(at, mode):
    """Tokens count up from the prompt, so the end token is the at-th one."""
    counting = certain(lambda text: text[-1] + 1, 20)
    drafter, expert = ToySession(counting, 20), ToySession(counting, 20)
    text, blocks, _ = run((drafter, expert), Strict(), prompt=[0], temperature=0, block_size=3, end=at, **mode)
    assert text == list(range(1, at + 1))
    assert blocks[-1].finish_reason == "stop"
    assert expert.tokens == list(range(at))


@every_mode
@pytest.mark.parametrize(("end", "read"), [(2, [2]), (9, [1 + 3])])
def test_no_row_is_asked_for_behind_a_drafted_end_of_text(end, read, mode):
    counting = certain(lambda text: text[-1] + 1, 20)
    drafter, expert = ToySession(counting, 20), ToySession(counting, 20)
    _, blocks, _ = run((drafter, expert), Strict(), prompt=[0], temperature=0, block_size=3, end=end, max_tokens=4, **mode)
    assert expert.calls == read
    assert ("bonus" in blocks[0].verdict.origins) == (end == 9 and mode["bonus"] == "expert")


def test_a_stop_in_the_middle_of_a_kept_block_forgets_what_lies_behind_it():
    counting = certain(lambda text: text[-1] + 1, 20)
    drafter, expert = ToySession(counting, 20), ToySession(counting, 20)
    text, blocks, stats = run((drafter, expert), Strict(), prompt=[0], temperature=0, block_size=6, stops=lambda token: token == 3)
    assert text == [1, 2, 3]
    assert blocks[0].verdict.token_ids == (1, 2, 3)
    assert drafter.tokens == expert.tokens == [0, 1, 2]
    assert (stats.drafted, stats.tested, stats.accepted, stats.bonus) == (6, 3, 3, 0)


def goodness(rule, tokens: int, n: int, **settings) -> float:
    """p-value of the first ``tokens`` tokens of ``n`` texts over three ids against the product of the rule's targets."""
    drafter_row, expert_row = (session.row_of for session in sometimes_accepts(3))
    texts = (run(sometimes_accepts(3), rule, prompt=[0], seed=seed, **settings)[0] for seed in range(n))
    counts = Counter(tuple(text[:tokens]) for text in texts)
    paths = list(itertools.product(range(3), repeat=tokens))
    expected = [n * chain(rule, drafter_row, expert_row, Sampler(), path, prompt=[0]) for path in paths]
    return chisquare([counts[path] for path in paths], expected).pvalue


@pytest.mark.slow
@pytest.mark.parametrize("rule", [Never(), *JUDGED_RULES, *REMEMBERING], ids=str)
def test_three_tokens_written_in_blocks_follow_the_chain_of_targets(rule):
    """The whole path, drafts, coins, residuals and caches, against the product of the exact conditional distributions.

    With block size 3 and one token more than is looked at, both tokens are drafted ones in every course of events: after a
    rejection at the first, two tokens remain, so one is drafted again. (The last token would be the expert's own, as a bonus.)
    """
    assert goodness(rule, tokens=2, n=2_000, block_size=3, max_tokens=2 + rule.asks_expert) > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("rule", [Strict(), Opt(0.2), TokenV3(0.5), Lenience(0.5), Mentored(0.1), *REMEMBERING], ids=str)
@every_mode
def test_every_way_to_settle_blocks_follows_the_chain_of_targets(rule, mode):
    """Without a bonus all three tokens are the rule's, also the one after a draft that was kept whole."""
    settled = mode["bonus"] == "cascade"
    assert goodness(rule, tokens=3 if settled else 2, n=1_200, block_size=1 if settled else 2, max_tokens=3, **mode) > 1e-5


@pytest.mark.parametrize("rule", [*JUDGED_RULES, *REMEMBERING], ids=str)
@every_mode
def test_summed_over_every_draft_coin_and_draw_a_text_has_exactly_the_product_of_targets(rule, mode):
    """No luck: the loop itself follows every course of events. With a bonus, the last of its tokens is not looked at."""
    settled = mode["bonus"] == "cascade"
    rows = [session.row_of for session in sometimes_accepts(3)]
    found = Counter()
    ways = courses(
        lambda rng: run(
            sometimes_accepts(3), rule, prompt=[0], rng=rng, block_size=1 if settled else 2, max_tokens=2 + (not settled), **mode
        )
    )
    for chance, (text, blocks, _) in ways:
        found[tuple(text[:2])] += chance
        assert not settled or {origin for block in blocks for origin in block.verdict.origins} <= {"accepted", "matched", "corrected"}
    for path in itertools.product(range(3), repeat=2):
        assert found[path] == pytest.approx(chain(rule, *rows, Sampler(), path, prompt=[0]), abs=1e-9)


@pytest.mark.parametrize("rule", [Strict(), Opt(0.2), TokenV3(0.5), *REMEMBERING], ids=str)
@pytest.mark.parametrize("verification", ["token", "block"])
def test_the_token_after_a_kept_block_is_exactly_the_rules_own_where_it_takes_the_bonus_place(rule, verification):
    """Three tokens in blocks of two drafted ones: the third stands where the bonus would have been drawn by the expert alone."""
    rows = [session.row_of for session in sometimes_accepts(3)]
    found = Counter()
    for chance, (text, _, _) in courses(
        lambda rng: run(
            sometimes_accepts(3), rule, prompt=[0], rng=rng, block_size=1, max_tokens=3, verification=verification, bonus="cascade"
        )
    ):
        found[tuple(text)] += chance
    for path in itertools.product(range(3), repeat=3):
        assert found[path] == pytest.approx(chain(rule, *rows, Sampler(), path, prompt=[0]), abs=1e-9)


@pytest.mark.parametrize("bonus", ["expert", "cascade"])
def test_the_loop_settles_whole_blocks_where_it_is_told_to_and_keeps_more_of_them(bonus):
    """Exact: the mean of the tokens kept of the first block."""

    def kept(verification: str) -> float:
        size = {"expert": {"block_size": 2, "max_tokens": 3}, "cascade": {"block_size": 1, "max_tokens": 2}}[bonus]  # two drafted tokens
        mode = {"verification": verification, "bonus": bonus}
        ways = courses(lambda rng: run(sometimes_accepts(3), Strict(), prompt=[0], rng=rng, **size, **mode)[1][0].verdict)
        return sum(chance * sum(origin == "matched" for origin in verdict.origins) for chance, verdict in ways)

    assert kept("block") > kept("token") + 1e-6


@pytest.mark.parametrize("rule", REMEMBERING, ids=str)
def test_on_these_toys_the_past_of_such_a_rule_matters(rule):
    """Or the tests above would not see whether the loop hands it on."""
    rows = [session.row_of for session in sometimes_accepts(3)]
    paths = list(itertools.product(range(3), repeat=3))
    with_past = [decisions_along(rule, *rows, Sampler(), path, prompt=[0])[2].target for path in paths]
    without = [target_probs(rule, *(row([0, *path[:2]]) for row in rows)) for path in paths]
    assert not np.allclose(with_past, without, atol=1e-3)


@every_mode
def test_the_drafter_alone_has_no_blocks_to_settle_so_nothing_changes_for_it(mode):
    assert run(sometimes_accepts(), Never(), **mode)[0] == run(sometimes_accepts(), Never())[0]


def test_after_a_kept_block_without_a_bonus_both_caches_are_one_token_behind_and_read_it_once():
    drafter, expert = always_accepts()
    run((drafter, expert), Strict(), block_size=4, max_tokens=15, bonus="cascade")
    assert expert.calls == [2 + 4, 5, 5]
    assert drafter.calls == [2] + [1] * 14
    assert len(drafter.tokens) == len(expert.tokens) == 2 + 15 - 1


@given(all_rules, st.sampled_from(MODES), st.integers(0, 5), st.integers(0, 9), st.builds(Recording, st.sampled_from([None, 0, 3])))
def test_keeping_an_account_changes_neither_text_nor_counters(rule, mode, block_size, seed, wanted):
    block_size = block_size if rule.asks_expert else max(block_size, 1)
    plain, blocks, stats = run(sometimes_accepts(), rule, seed=seed, block_size=block_size, **mode)
    text, recorded, recorded_stats = run(sometimes_accepts(), rule, seed=seed, block_size=block_size, recording=wanted, **mode)
    assert text == plain
    assert recorded_stats.counts() == stats.counts()
    assert [block.verdict.origins for block in recorded] == [block.verdict.origins for block in blocks]
    assert all(len(block.verdict.entries) == len(block.verdict.token_ids) for block in recorded)
    assert not any(block.verdict.entries for block in blocks)


@given(all_rules, st.sampled_from(MODES), st.integers(0, 5), st.integers(0, 9))
def test_knowing_both_models_at_every_token_costs_drafter_calls_and_nothing_else(rule, mode, block_size, seed):
    block_size = block_size if rule.asks_expert else max(block_size, 1)
    plain, _, stats = run(sometimes_accepts(), rule, seed=seed, block_size=block_size, **mode)
    pair = sometimes_accepts()
    text, blocks, told = run(pair, rule, seed=seed, block_size=block_size, recording=Recording(2, models=True), **mode)
    assert text == plain
    assert told.counts() | {"drafter_calls": 0} == stats.counts() | {"drafter_calls": 0}
    assert told.drafter_calls == len(pair[0].calls) >= stats.drafter_calls
    for block in blocks:
        for entry in block.verdict.entries:
            assert entry.drafter is not None
            assert (entry.expert is not None) == rule.asks_expert


def test_a_generator_dropped_at_any_block_leaves_both_caches_fit_to_go_on():
    whole, _, _ = run(sometimes_accepts(), Strict(), temperature=0, max_tokens=20)
    for blocks_read in range(1, 5):
        drafter, expert = sometimes_accepts()
        tokens = [1, 2]
        more = {"block_size": 4, "max_tokens": 20, "stops": never_ends, "stats": Stats()}
        blocks = BlockLoop(writing(tokens, 0), drafter, expert, rule=Strict(), **more).decode()
        for _ in range(blocks_read):
            next(blocks)
        blocks.close()
        rest, _, _ = run((drafter, expert), Strict(), prompt=tokens, temperature=0, max_tokens=20 - (len(tokens) - 2))
        assert tokens[2:] + rest == whole


@given(all_rules, st.integers(0, 5), st.integers(0, 5), st.sampled_from(MODES))
def test_the_counters_add_up(rule, block_size, seed, mode):
    if not rule.asks_expert and block_size == 0:
        block_size = 1
    drafter, expert = sometimes_accepts()
    text, blocks, stats = run((drafter, expert), rule, block_size=block_size, seed=seed, max_tokens=25, **mode)
    origins = Counter(origin for block in blocks for origin in block.verdict.origins)
    assert stats.tokens == len(text) == origins.total()
    assert stats.blocks == len(blocks)
    assert stats.accepted == origins["accepted"] + origins["matched"]
    assert stats.rejected == origins["corrected"]
    assert stats.bonus == origins["bonus"]
    assert stats.tested == stats.accepted + stats.rejected <= stats.drafted
    assert stats.deferred == sum(sum(block.verdict.deferred) for block in blocks)
    assert stats.deferred >= stats.rejected or mode["verification"] == "block", "a block's coins may drop what the rule trusted"
    assert stats.expert_calls == len(expert.calls)
    assert stats.drafter_calls == len(drafter.calls) == stats.drafted


def test_a_rule_is_told_where_in_the_reply_it_stands_and_finds_its_notes_again():
    told = []

    class Noting(Strict):
        remembers = True

        def defer(self, evidence):
            place = evidence.place
            place.notes["asked"] = place.notes.get("asked", 0) + 1
            told.append((place.tokens, place.emitted, len(place.trace), place.notes["asked"], place.vocabulary))
            return super().defer(evidence)

    words, expected, at = object(), [], 0
    text, blocks, stats = run(sometimes_accepts(), Noting(), prompt=[1, 2], block_size=3, max_tokens=30, vocabulary=words)
    for block in blocks:
        for j in range(len(block.verdict.deferred)):
            past = len(expected)
            expected.append(([1, 2, *text[:at], *block.draft.token_ids[:j]], at + j, past, past + 1, words))
        at += len(block.verdict.token_ids)
    assert told == expected
    assert len(told) == stats.tested > len(blocks) > 5


def test_a_block_carries_the_draft_that_it_judged():
    _, blocks, _ = run(sometimes_accepts(), Strict(), block_size=3)
    assert all(isinstance(block, Block) and len(block.draft.token_ids) <= 3 for block in blocks)
    for block in blocks:
        kept = sum(origin in ("accepted", "matched") for origin in block.verdict.origins)
        assert block.verdict.token_ids[:kept] == tuple(block.draft.token_ids[:kept])


@pytest.mark.parametrize("rule", [Strict(), Chow(0.5), TokenV3(0.3)], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_row_goes_through_a_softmax_twice(rule, temperature, monkeypatch):
    """Drafted from, judged, accounted for and drawn from, with nothing shaped or filtered: one softmax."""
    seen = []
    of = Softmax.of
    monkeypatch.setattr(Softmax, "of", lambda logits, best=None: seen.append(len(logits)) or of(logits, best))
    _, blocks, stats = run(sometimes_accepts(), rule, temperature=temperature, max_tokens=20, recording=Recording())
    rows = sum(len(block.draft.token_ids) for block in blocks) + stats.tokens
    assert len(seen) <= rows
    assert set(seen) == {1}
