from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from strategies import EVERY_RULE, JUDGED_RULES, all_rules
from toys import ToySession, always_accepts, certain, never_accepts, sometimes_accepts

from speccascade_local.acceptance import Fly
from speccascade_local.cascade import Block, decode
from speccascade_local.methods import target_probs
from speccascade_local.routing import TokenCascade
from speccascade_local.rules import Chow, Diff, Never, Opt, Strict, TokenV1, TokenV2, TokenV3
from speccascade_local.sampling import Sampler
from speccascade_local.stats import Stats

PAIRS = {"always accepts": always_accepts, "never accepts": never_accepts, "sometimes accepts": sometimes_accepts}


def run(pair, rule, *, prompt=(1, 2), temperature=1.0, block_size=4, max_tokens=12, seed=0, end=None, stops=None):
    """Decode to the end; returns the text, the blocks and the statistics."""
    drafter, expert = pair
    tokens, stats = list(prompt), Stats()
    ends = (lambda token: token == end) if end is not None else (lambda token: False)
    blocks = list(
        decode(tokens, drafter, expert, rule=rule, sampler=Sampler(temperature), rng=np.random.default_rng(seed),
               block_size=block_size, max_tokens=max_tokens, is_end=ends, stops=stops or ends, stats=stats)
    )  # fmt: skip
    return tokens[len(prompt) :], blocks, stats


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
@given(
    rule=all_rules,
    temperature=st.sampled_from([0.0, 1.0]),
    block_size=st.integers(1, 6),
    max_tokens=st.integers(1, 20),
    seed=st.integers(0, 9),
)
def test_between_blocks_both_caches_hold_the_committed_text_and_at_most_all_but_its_last_token(
    make, rule, temperature, block_size, max_tokens, seed
):
    drafter, expert = make()
    tokens = [1, 2]
    blocks = decode(tokens, drafter, expert, rule=rule, sampler=Sampler(temperature), rng=np.random.default_rng(seed),
                    block_size=block_size, max_tokens=max_tokens, is_end=lambda token: token == 5, stops=lambda token: token == 5,
                    stats=Stats())  # fmt: skip
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
        assert behind == 0 or (fully_kept and (behind == 1 or not block.draft.token_ids))
    assert 1 <= written - 2 <= max_tokens


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("block_size", [0, 1, 3, 8])
def test_strict_at_temperature_zero_writes_the_experts_own_text(make, block_size):
    alone, _, _ = run(make(), Strict(), temperature=0, block_size=0)
    together, _, _ = run(make(), Strict(), temperature=0, block_size=block_size)
    assert together == alone


@pytest.mark.parametrize("rule", [Chow(0), Diff(-1), Opt(-1e9), TokenV1(-1), TokenV2(-1), TokenV3(-1)], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_the_lossless_end_of_each_dial_gives_the_token_stream_of_strict(rule, seed):
    strict, _, strict_stats = run(sometimes_accepts(), Strict(), max_tokens=40, seed=seed)
    lossless, _, stats = run(sometimes_accepts(), rule, max_tokens=40, seed=seed)
    assert lossless == strict
    assert stats.counts() == strict_stats.counts()


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


@given(st.integers(1, 30), st.integers(0, 8))
def test_max_tokens_is_exact_wherever_in_a_block_it_falls(max_tokens, block_size):
    for make in PAIRS.values():
        text, blocks, stats = run(make(), Strict(), max_tokens=max_tokens, block_size=block_size)
        assert len(text) == stats.tokens == max_tokens
        assert [block.finish_reason for block in blocks] == [None] * (len(blocks) - 1) + ["length"]


@pytest.mark.parametrize("rule", [Strict(), Never()], ids=str)
@pytest.mark.parametrize("length", [1, 7, 15, 16])
def test_a_prompt_up_to_the_whole_context_is_continued_until_the_context_is_full(rule, length):
    """The last token needs no room of its own, so a context of 16 ends with 17 tokens of text."""
    text, blocks, _ = run(always_accepts(n_ctx=16), rule, prompt=[i % 7 for i in range(length)], max_tokens=100)
    assert length + len(text) == 17
    assert blocks[-1].finish_reason == "length"


@pytest.mark.parametrize("at", range(1, 8))
def test_text_ends_at_the_end_token_wherever_in_a_block_it_falls(at):
    """Tokens count up from the prompt, so the end token is the at-th one."""
    counting = certain(lambda text: text[-1] + 1, 20)
    drafter, expert = ToySession(counting, 20), ToySession(counting, 20)
    text, blocks, _ = run((drafter, expert), Strict(), prompt=[0], temperature=0, block_size=3, end=at)
    assert text == list(range(1, at + 1))
    assert blocks[-1].finish_reason == "stop"
    assert expert.tokens == list(range(at))


def test_a_stop_in_the_middle_of_a_kept_block_forgets_what_lies_behind_it():
    counting = certain(lambda text: text[-1] + 1, 20)
    drafter, expert = ToySession(counting, 20), ToySession(counting, 20)
    text, blocks, stats = run((drafter, expert), Strict(), prompt=[0], temperature=0, block_size=6, stops=lambda token: token == 3)
    assert text == [1, 2, 3]
    assert blocks[0].verdict.token_ids == (1, 2, 3)
    assert drafter.tokens == expert.tokens == [0, 1, 2]
    assert (stats.drafted, stats.tested, stats.accepted, stats.bonus) == (6, 3, 3, 0)


@pytest.mark.parametrize("rule", [Never(), *JUDGED_RULES], ids=str)
def test_three_tokens_written_in_blocks_follow_the_chain_of_targets(rule):
    """The whole path, drafts, coins, residuals and caches, against the product of the exact conditional distributions.

    With block size 3 and one token more than is looked at, both tokens are drafted ones in every course of events: after a
    rejection at the first, two tokens remain, so one is drafted again. (The last token would be the expert's own, as a bonus.)
    """
    n_vocab, n = 3, 5_000
    drafter_row, expert_row = (session.row_of for session in sometimes_accepts(n_vocab))
    counts = Counter(
        tuple(run(sometimes_accepts(n_vocab), rule, prompt=[0], block_size=3, max_tokens=2 + rule.asks_expert, seed=seed)[0][:2])
        for seed in range(n)
    )
    expected = {}
    for first, second in itertools.product(range(n_vocab), repeat=2):
        chance = 1.0
        for text, token in (([0], first), ([0, first], second)):
            chance *= target_probs(rule, drafter_row(text), expert_row(text))[0, token]
        expected[first, second] = n * chance
    observed = [counts[path] for path in expected]
    assert chisquare(observed, list(expected.values())).pvalue > 1e-4


def test_a_generator_dropped_at_any_block_leaves_both_caches_fit_to_go_on():
    whole, _, _ = run(sometimes_accepts(), Strict(), temperature=0, max_tokens=20)
    for blocks_read in range(1, 5):
        drafter, expert = sometimes_accepts()
        tokens = [1, 2]
        blocks = decode(tokens, drafter, expert, rule=Strict(), sampler=Sampler(0), rng=np.random.default_rng(0), block_size=4,
                        max_tokens=20, is_end=lambda _: False, stops=lambda _: False, stats=Stats())  # fmt: skip
        for _ in range(blocks_read):
            next(blocks)
        blocks.close()
        rest, _, _ = run((drafter, expert), Strict(), prompt=tokens, temperature=0, max_tokens=20 - (len(tokens) - 2))
        assert tokens[2:] + rest == whole


@given(all_rules, st.integers(0, 5), st.integers(0, 5))
def test_the_counters_add_up(rule, block_size, seed):
    if not rule.asks_expert and block_size == 0:
        block_size = 1
    drafter, expert = sometimes_accepts()
    text, blocks, stats = run((drafter, expert), rule, block_size=block_size, seed=seed, max_tokens=25)
    origins = Counter(origin for block in blocks for origin in block.verdict.origins)
    assert stats.tokens == len(text) == origins.total()
    assert stats.blocks == len(blocks)
    assert stats.accepted == origins["accepted"] + origins["matched"]
    assert stats.rejected == origins["corrected"]
    assert stats.bonus == origins["bonus"]
    assert stats.tested == stats.accepted + stats.rejected <= stats.drafted
    assert stats.deferred == sum(sum(block.verdict.deferred) for block in blocks) >= stats.rejected
    assert stats.expert_calls == len(expert.calls)
    assert stats.drafter_calls == len(drafter.calls) == stats.drafted


def test_a_block_carries_the_draft_that_it_judged():
    _, blocks, _ = run(sometimes_accepts(), Strict(), block_size=3)
    assert all(isinstance(block, Block) and len(block.draft.token_ids) <= 3 for block in blocks)
    for block in blocks:
        kept = sum(origin in ("accepted", "matched") for origin in block.verdict.origins)
        assert block.verdict.token_ids[:kept] == tuple(block.draft.token_ids[:kept])
