"""Rules made of rules: the budget's promise, the strict beginning, the thinking span."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from exact import chain
from hypothesis import example, given
from hypothesis import strategies as st
from loop_runs import run
from strategies import row_pairs
from toys import always_accepts, sometimes_accepts

import speccascade_local as sc
from speccascade_local import target_probs
from speccascade_local.decoding.fidelity import Recording
from speccascade_local.decoding.verify import Verdict
from speccascade_local.rules.combined import ADJUSTABLE, Budget, RegionalRule
from speccascade_local.rules.evidence import Evidence, Place
from speccascade_local.rules.position_rules import Never, Strict
from speccascade_local.rules.registry import combine, parse
from speccascade_local.rules.rule import Decision
from speccascade_local.rules.token_rules import TokenV3
from speccascade_local.tokens.rows import Rows
from speccascade_local.tokens.sampler import Sampler
from speccascade_local.tokens.vocabulary import Vocabulary

HELD_OUT = [
    json.loads(line)["prompt"] for line in (Path(sc.__file__).parent / "demo" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
]
QUESTION = [{"role": "user", "content": "Who is Ada Lovelace?"}]

modes = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.5, 1.0]),
        "block_size": st.integers(1, 6),
        "seed": st.integers(0, 50),
        "bonus": st.sampled_from(["expert", "cascade"]),
    }
)


def decoded(rule, **mode) -> tuple[list[int], list[Verdict]]:
    """A reply of 25 tokens and its verdicts, with an account of every token."""
    text, blocks, _ = run(sometimes_accepts(seed=mode["seed"]), rule, max_tokens=25, recording=Recording(), **mode)
    return text, [block.verdict for block in blocks]


def overdraft(tvs: Sequence[float], limit: float) -> int:
    """After how many tokens the running mean exceeds the limit; 0 for never."""
    return next((n for n in range(1, len(tvs) + 1) if sum(tvs[:n]) / n > limit), 0)


# ---------------------------------------------------------------------------------------------- budget


@given(st.floats(0, 1), st.sampled_from([*ADJUSTABLE]), st.integers(0, 3), st.sampled_from(["token", "block"]), modes)
@example(9.407586050705638e-19, "token_v3", 0, "token", {"temperature": 0.5, "block_size": 1, "seed": 0, "bonus": "expert"})
def test_the_mean_distance_is_within_the_budget_after_every_token(limit, inner, strict_first, verification, mode):
    rule = combine(Budget(limit, inner), strict_first, None)
    _, verdicts = decoded(rule, **mode, verification=verification)
    assert overdraft([entry.tv for verdict in verdicts for entry in verdict.entries], limit) == 0


@pytest.mark.parametrize("inner", ["token_v3", "diff"])
def test_a_budget_bounds_each_token_on_average_and_a_whole_reply_only_times_its_length(inner):
    """The exact distributions of all replies of six tokens: further from the expert's than the limit, and within the sum of all limits."""
    limit, length = 0.05, 6
    drafter, expert = (lambda text, row=row: np.log(row) for row in ([0.6, 0.4], [0.3, 0.7]))
    replies = list(product(range(2), repeat=length))
    ours, theirs = ([chain(rule, drafter, expert, Sampler(), reply) for reply in replies] for rule in (Budget(limit, inner), Strict()))
    apart = sum(max(0.0, one - other) for one, other in zip(ours, theirs))
    assert 1.5 * limit < apart <= length * limit


@given(st.sampled_from([*ADJUSTABLE]), modes)
def test_a_budget_of_nothing_writes_what_strict_writes(inner, mode):
    assert decoded(Budget(0, inner), **mode)[0] == decoded(Strict(), **mode)[0]
    texts = [run(always_accepts(), rule, max_tokens=25, **mode)[0] for rule in (Budget(0, inner), Strict())]  # coins where nothing costs
    assert texts[0] == texts[1]


@given(row_pairs(), st.floats(0, 1), st.sampled_from([*ADJUSTABLE]), st.lists(st.floats(0, 1), max_size=8))
def test_a_budget_never_costs_more_than_is_left_whatever_was_spent_before(rows, limit, inner, spent):
    drafter, expert = rows
    evidence = Evidence(Rows.of(drafter), Rows.of(expert), Sampler(), Place(emitted=len(spent), trace=spent))
    cost = float(Decision(Budget(limit, inner).at(evidence), evidence).tv[0])
    assert cost <= max(limit * (len(spent) + 1) - sum(spent), 0.0) + 1e-12


def test_savings_pay_for_a_part_of_what_the_account_cannot_pay_whole():
    """Saved over nine tokens: 0.9 of a limit of 0.1. The drafter's token costs nearly 1."""
    drafter, expert = np.array([[0.0, 20.0]]), np.array([[20.0, 0.0]])
    evidence = Evidence(Rows.of(drafter), Rows.of(expert), Sampler(), Place(emitted=9, trace=[0.0] * 9))
    assert Decision(Budget(0.09).at(evidence), evidence).target[0, 1] == pytest.approx(9 * 0.09, abs=1e-6)
    assert Decision(Budget(0.1).at(evidence), evidence).target[0, 1] == pytest.approx(1, abs=1e-6)
    greedy = Evidence(Rows.of(drafter), Rows.of(expert), Sampler(0), evidence.place)
    assert Budget(0.09).at(greedy) == Strict()


def test_the_dial_starts_half_way_rises_with_what_is_saved_and_returns_when_it_is_spent():
    same = np.zeros((1, 3))

    def alpha(emitted: int, *trace: float, limit: float = 0.1) -> float:
        place = Place(emitted=emitted, trace=trace)
        return Budget(limit, "chow").at(Evidence(Rows.of(same), Rows.of(same), Sampler(), place)).alpha

    assert alpha(0) == pytest.approx(alpha(10, 1.0)) == 0.5
    assert 0.5 < alpha(1) < alpha(2) <= alpha(100) == 1.0
    assert alpha(2, 0.1) == pytest.approx(alpha(1))
    assert alpha(1, limit=0.001) == pytest.approx(alpha(1)), "saved tokens count, however little each is worth"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("temperature", "inner", "limit", "least_spent"),
    [
        (1, "token_v3", 0.01, 0.3),
        (1, "diff", 0.02, 0.3),
        (1, "lenience", 0.1, 0.2),
        (0, "token_v3", 0.1, 0.1),
        (0, "diff", 0.02, 0.0),  # a token costs 1, and few of these replies have the 50 tokens that pay for it
    ],
)
def test_on_real_models_a_budget_holds_after_every_token_and_is_spent(demo, temperature, inner, limit, least_spent):
    shares, accepted, tested = [], {}, {}
    rules = {"budget": Budget(limit, inner), **({"strict": Strict()} if limit == 0.1 and temperature else {})}
    for seed, prompt in enumerate(HELD_OUT[::2][:200]):
        ids = demo.chat_ids([{"role": "user", "content": prompt}])
        for name, rule in rules.items():
            reply = demo.generate(ids, rule=rule, temperature=temperature, max_tokens=40, seed=seed, block_size=5)
            accepted[name] = accepted.get(name, 0) + reply.stats.accepted
            tested[name] = tested.get(name, 0) + reply.stats.tested
            if name == "budget":
                assert overdraft([token.tv for token in reply.tokens], limit) == 0
                assert reply.fidelity.mean_tv <= limit
                shares.append(reply.fidelity.mean_tv / limit)
    assert len(shares) == 200
    assert np.mean(shares) >= least_spent
    if "strict" in rules:
        assert accepted["budget"] / tested["budget"] > accepted["strict"] / tested["strict"]


# ---------------------------------------------------------------------------------------------- a strict beginning


@given(st.integers(1, 12), st.sampled_from(["token_v3:1.0", "lenience:1.0", "mentored:3.0", "budget:0.5"]), modes)
def test_the_first_tokens_are_those_of_strict_and_the_rule_holds_from_there_on(first, spec, mode):
    text, verdicts = decoded(combine(spec, first, None), **mode)
    assert text[:first] == decoded(Strict(), **mode)[0][:first]
    entries = [entry for verdict in verdicts for entry in verdict.entries]
    assert [entry.tv for entry in entries[:first]] == [0.0] * first
    emitted = 0
    for verdict in verdicts:
        for j, deferred in enumerate(verdict.deferred):
            assert deferred or emitted + j >= first
            assert not (deferred and emitted + j >= first and spec in ("token_v3:1.0", "lenience:1.0"))  # these keep every draft
        emitted += len(verdict.token_ids)


def test_on_real_models_the_beginning_is_strict_to_the_last_token_and_the_rest_is_not(demo):
    later = 0
    for seed, prompt in enumerate(HELD_OUT[::40]):
        ids = demo.chat_ids([{"role": "user", "content": prompt}])
        settings = {"temperature": 1.0, "max_tokens": 30, "seed": seed, "block_size": 5}
        guarded = demo.generate(ids, rule="chow:1", strict_first=8, **settings)
        assert guarded.token_ids[:8] == demo.generate(ids, rule="strict", **settings).token_ids[:8]
        assert all(token.tv == 0 for token in guarded.tokens[:8])
        assert "accepted" not in guarded.origins[:8]
        assert "matched" not in guarded.origins[8:]
        later += sum(token.tv > 0 for token in guarded.tokens[8:])
    assert later > 10


# ---------------------------------------------------------------------------------------------- thinking

PIECES = [b"<think>", b"</think>", b"<th", b"ink>", b"</", b"think>", b"a", b"<"]
TAGS = Vocabulary(len(PIECES), PIECES.__getitem__)
OPEN, CLOSE, TH, INK, SLASH, THINK, A, LESS = range(8)
THINKING = RegionalRule(Strict(), 0, TokenV3(1))  # strict outside, everything kept inside


def inside(text: Sequence[int]) -> bool:
    tags = re.findall(rb"</?think>", b"".join(PIECES[token] for token in text))
    return bool(tags) and tags[-1] == b"<think>"


def at(rule, text, drafted=(), position=0) -> sc.Rule:
    rows = Rows.of(np.zeros((1, len(PIECES))))
    place = Place(text=text, drafted=drafted, position=position, vocabulary=TAGS)
    return rule.at(Evidence(rows, rows, Sampler(), place))


@pytest.mark.parametrize(
    ("text", "drafted", "position", "thinks"),
    [
        ([], [], 0, False),
        ([A], [], 0, False),
        ([A, OPEN], [], 0, True),  # also where the prompt opens it
        ([OPEN, A, A], [], 0, True),
        ([OPEN, A, CLOSE], [], 0, False),
        ([OPEN, CLOSE, OPEN], [], 0, True),
        ([A, TH], [], 0, False),  # spelled over several tokens
        ([A, TH, INK, A], [], 0, True),
        ([LESS, THINK, A], [], 0, True),
        ([OPEN, A, SLASH], [], 0, True),
        ([OPEN, A, SLASH, THINK], [], 0, False),
        ([A], [OPEN, A, CLOSE, A], 0, False),  # in the drafted block
        ([A], [OPEN, A, CLOSE, A], 1, True),
        ([A], [OPEN, A, CLOSE, A], 2, True),
        ([A], [OPEN, A, CLOSE, A], 3, False),
        ([A, LESS], [THINK, A], 1, True),  # begun before it
    ],
)
def test_the_thinking_rule_holds_between_the_tags_and_nowhere_else(text, drafted, position, thinks):
    assert at(THINKING, text, drafted, position) == (TokenV3(1) if thinks else Strict())


def test_a_tag_is_found_however_it_is_cut_between_blocks():
    letters = Vocabulary(256, lambda token: bytes([token]))
    rows, spelled = Rows.of(np.zeros((1, 256))), b"a<think>b</think>c"
    for cut in range(len(spelled)):
        notes = {}
        found = []
        for length in (cut, *range(cut, len(spelled) + 1)):
            place = Place(text=list(spelled[:length]), vocabulary=letters, notes=notes)
            found.append(THINKING.at(Evidence(rows, rows, Sampler(), place)) == TokenV3(1))
        assert found[1:] == [8 <= length < 17 for length in range(cut, len(spelled) + 1)]


@given(st.lists(st.tuples(st.lists(st.integers(0, 7), max_size=4), st.lists(st.integers(0, 7), max_size=4)), max_size=8))
def test_a_text_that_grows_is_read_once_and_judged_as_if_read_again(blocks):
    looked_up = []
    counting = Vocabulary(len(PIECES), PIECES.__getitem__)
    counting.bytes_of = lambda tokens: looked_up.extend(tokens) or b"".join(PIECES[token] for token in tokens)
    text, notes, drafts = [], {}, 0
    rows = Rows.of(np.zeros((1, len(PIECES))))
    for committed, drafted in blocks:
        text += committed
        for position in range(len(drafted) + 1):
            place = Place(text=text, drafted=drafted, position=position, vocabulary=counting, notes=notes)
            thinks = THINKING.at(Evidence(rows, rows, Sampler(), place)) == TokenV3(1)
            assert thinks == inside([*text, *drafted[:position]])
            drafts += position
    assert len(looked_up) == len(text) + drafts


@given(st.lists(st.integers(0, 7), min_size=1, max_size=4), st.integers(0, 2), modes)
def test_along_a_whole_reply_each_position_follows_the_rule_of_its_region(prompt, first, mode):
    """Toys that write tags at random, whole and in parts: kept without a coin inside, left to the expert outside."""
    pair = sometimes_accepts(n_vocab=len(PIECES), seed=mode["seed"])
    _, blocks, _ = run(pair, combine("strict", first, "token_v3:1"), prompt=prompt, max_tokens=25, vocabulary=TAGS, **mode)
    text = list(prompt)
    for block in blocks:
        for j, deferred in enumerate(block.verdict.deferred):
            before = [*text, *block.draft.token_ids[:j]]
            assert deferred == (not inside(before) or len(before) - len(prompt) < first)
        text += block.verdict.token_ids


def test_a_rule_that_remembers_sees_the_whole_reply_whichever_rule_decided():
    mode = {"temperature": 1.0, "block_size": 4, "seed": 1}
    for rule in (RegionalRule(parse("decision_tokens:1.0"), 3, TokenV3(1)), RegionalRule(TokenV3(1), 3, parse("decision_tokens:1.0"))):
        _, blocks, stats = run(sometimes_accepts(n_vocab=8), rule, prompt=[OPEN], max_tokens=20, vocabulary=TAGS, **mode)
        assert sum(len(block.verdict.trace) for block in blocks) == stats.tested > 0
        assert all(value > 0 for block in blocks for value in block.verdict.trace)  # the cross entropy, and not the budget's distance


def test_the_demo_pair_thinks_where_its_prompt_opens_a_span(demo):
    settings = {"rule": "strict", "thinking_rule": "chow:1", "max_tokens": 12, "block_size": 5}
    assert set(demo.generate("<think>Tom has 3 apples and", **settings).origins) <= {"accepted", "bonus"}
    assert set(demo.generate("<think></think>Tom has 3 apples and", **settings).origins) <= {"matched", "corrected", "bonus"}


# ---------------------------------------------------------------------------------------------- what cannot be combined


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "never", "strict_first": 1}, "never"),
        ({"rule": "strict", "thinking_rule": "never"}, "never"),
        ({"rule": "margin:0.9", "strict_first": 1}, "verify blocks of drafts, and margin:0.9"),
        ({"rule": "token_cascade:0.2", "strict_first": 1}, "verify blocks of drafts, and token_cascade"),
        ({"rule": "strict", "thinking_rule": "chow_sum:-1"}, "verify blocks of drafts, and chow_sum"),
        ({"rule": "strict+strict_first:2", "strict_first": 3}, "are in the rule .strict.strict_first:2. already"),
        ({"rule": "strict", "thinking_rule": "opt:0.2+strict_first:2"}, "are in the rule .opt:0.2.strict_first:2. already"),
        ({"rule": "decision_tokens:1", "thinking_rule": "budget:0.1"}, "both look at their own past"),
        ({"rule": "budget:0.1", "thinking_rule": "chow:1"}, "holds for a whole reply"),
        ({"rule": "strict+strict_first:\u00b2"}, "strict_first is"),
        ({"rule": "strict+strict_first:" + "9" * 5000}, "strict_first is"),
        ({"rule": "strict+strict_first:x"}, "strict_first is 'x'"),
        ({"rule": "strict+strict_first:-1"}, "strict_first is '-1'"),
        ({"rule": "strict+strict_first:1+strict_first:2"}, "may each occur once"),
        ({"rule": "strict+thinking:"}, "unknown rule ''"),
        ({"rule": "strict", "strict_first": -1}, "strict_first is -1"),
        ({"rule": "strict", "strict_first": True}, "strict_first is True"),
        ({"rule": "fly:0.3", "strict_first": 2, "temperature": 1.0}, "temperature 0 only"),
        ({"rule": "strict", "thinking_rule": "fly:0.3", "block_size": 5}, "block_size is 5"),
        (
            {"rule": "budget:0.1,opt"},
            "a budget cannot move 'opt'; name one of token_v3, token_v2, token_v1, chow, diff, fuzzy, lenience, without a number",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_combined_is_refused_before_anything_is_evaluated(demo, settings, message):
    demo.reset()
    with pytest.raises(sc.SettingError, match=message):
        demo.stream(demo.chat_ids(QUESTION), **settings)


def test_two_rules_cannot_be_one_where_one_of_them_never_asks_the_expert():
    for rules in ((Never(), 1, None), (Strict(), 0, Never())):
        with pytest.raises(sc.SettingError, match="rule never never asks the expert"):
            RegionalRule(*rules)


def test_a_thinking_rule_says_that_rows_alone_do_not_tell_where_it_holds():
    with pytest.raises(sc.SettingError, match="only rows are given"):
        target_probs("strict+thinking:chow:0.5", np.zeros(3), np.zeros(3))
