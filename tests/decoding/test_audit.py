from __future__ import annotations

import logging
import threading
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorder import PROMPTS, Recorder, deviations, each_token, ids
from serving import events, serving
from toys import ToySession, never_ends, random_rows, writing

import speccascade_local as sc
from speccascade_local.bench import run
from speccascade_local.bench.grid import BASE, DRAFTER, grid
from speccascade_local.bench.questions import built_in_questions, in_turns
from speccascade_local.decoding import audit as auditing
from speccascade_local.decoding.audit import Audit
from speccascade_local.decoding.fidelity import Recording
from speccascade_local.decoding.loop import BlockLoop
from speccascade_local.decoding.stats import Stats
from speccascade_local.decoding.token_loop import token_cascade
from speccascade_local.rules.position_rules import Chow, Never
from speccascade_local.rules.routes import TokenCascade
from speccascade_local.runtime.compare import compare, few_arms
from speccascade_local.runtime.reply import Reply
from speccascade_local.runtime.settings import Settings
from speccascade_local.tokens.rows import MAX_ROWS
from speccascade_local.tokens.sampler import Sampler
from speccascade_local.tokens.shaping import ForbiddenIds, Penalties, Shaper

#: Each kind of way that writes tokens without the expert.
UNASKED = ["never", "margin:0", "chow_average:-99", "token_cascade:0.4"]
SHAPED = {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "logit_bias": {39: -3.0}}
LETTERS = 'root ::= [A-Za-z .,"]{10,40}'

# ---------------------------------------------------------------------- on toys, whose rows are exact


def toys(n_ctx: int = 200) -> list[ToySession]:
    return [ToySession(random_rows(7, seed), 7, n_ctx) for seed in (4, 5)]


def unended() -> ForbiddenIds:
    return ForbiddenIds(7, early=[3], least=5, always=[2])


def shapers() -> list[Shaper]:
    return [Shaper(7, [1, 2], Penalties({1: 1.0}, repetition=1.2, presence=0.3), unended()) for _ in range(2)]


def audited(blocks, prompt, sampler, shaper, wanted, expert):
    """The blocks, and the accounts of all their tokens."""
    it, stats, blocks = Audit(prompt, sampler, shaper, wanted), Stats(), list(blocks)
    for block in blocks:
        it.keep(block)
    entries = [entry for block in blocks for entry in block.verdict.entries]
    if it.due:
        for found in it.entries(expert, stats):
            for place, entry in found.items():
                assert entries[place].expert_logprob is None
                entries[place] = entry
    return blocks, entries, stats


@given(
    length=st.integers(1, 150),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_k=st.sampled_from([0, 3]),
    block=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_the_drafter_alone_has_the_account_of_a_cascade_that_keeps_every_draft(length, temperature, top_k, block, seed):
    """The same text, each token by the same numbers, where the rule lets the drafter say what the expert's filters deny."""
    sampler, wanted, accounts = Sampler(temperature, top_k=top_k), Recording(3, models=True), []
    for rule, shaper in zip((Chow(1), Never()), shapers()):
        drafter, expert = toys()
        generation = writing([1, 2], sampler, seed, shaper=shaper)
        more = {"stops": never_ends, "stats": Stats(), "recording": wanted, "max_tokens": length, "block_size": block}
        made = BlockLoop(generation, drafter, expert, rule=rule, bonus="cascade" if rule.in_blocks else "expert", **more).decode()
        _, entries, stats = audited(made, [1, 2], sampler, shaper, wanted, expert)
        assert stats.audited == (0 if rule.in_blocks else length)
        accounts.append((generation.reply, entries))
        assert expert.tokens == generation.tokens[:-1]
    (kept, expected), (written, found) = accounts
    assert len(found) == length
    for j, (one, other) in enumerate(zip(expected, found)):
        if kept[: j + 1] != written[: j + 1]:
            assert top_k
            break
        assert other.expert_logprob == pytest.approx(one.expert_logprob, abs=1e-9)
        assert other.drafter_logprob == pytest.approx(one.drafter_logprob, abs=1e-9)
        if top_k == 0:  # else the rule hands over what the expert's filters deny, and the drafter alone does not
            assert other.tv == pytest.approx(one.tv, abs=1e-9)
        for mine, its in zip(other[4 if top_k else 3 :], one[4 if top_k else 3 :]):  # of the target, the expert and the drafter
            assert [token for token, _ in mine.top] == [token for token, _ in its.top]
            assert mine.logprob == pytest.approx(its.logprob, abs=1e-9)


@given(st.floats(0, 1), st.integers(1, 150), st.integers(0, 9))
def test_every_token_of_a_token_cascade_is_judged_and_none_twice(alpha, length, seed):
    drafter, expert = toys()
    generation = writing([1, 2], 1.0, seed)
    more = {"rule": TokenCascade(alpha), "max_tokens": length, "stops": never_ends, "stats": Stats(), "recording": Recording()}
    blocks, entries, stats = audited(
        token_cascade(generation, drafter, expert, **more), [1, 2], generation.sampler, generation.shaper, Recording(), expert
    )
    assert all(entry.tv is not None and entry.expert_logprob is not None for entry in entries)
    assert stats.audited == sum(block.verdict.origins == ("accepted",) for block in blocks)
    assert expert.tokens == generation.tokens[: len(expert.tokens)]


def test_the_expert_reads_a_long_answer_once_in_batches_of_as_many_rows_as_one_gives():
    drafter, expert = toys()
    generation = writing([1, 2], 1.0, 0)
    more = {"stops": never_ends, "stats": Stats(), "recording": Recording(), "max_tokens": 150, "block_size": 5}
    made = BlockLoop(generation, drafter, expert, rule=Never(), **more).decode()
    audited(made, [1, 2], generation.sampler, generation.shaper, Recording(), expert)
    assert expert.calls == [2 + MAX_ROWS - 1, MAX_ROWS, 150 - 2 * MAX_ROWS]


# ---------------------------------------------------------------------- on the bundled pair


@pytest.mark.parametrize("rule", UNASKED)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("more", [{}, {"top_p": 0.9}], ids=str)
def test_every_number_is_what_the_rows_say_that_both_models_computed(demo, rule, temperature, more):
    settings, prompt = {"temperature": temperature, **more}, ids(demo, PROMPTS[0])
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(demo, patch)
        demo.reset()
        reply = demo.generate(prompt, rule=rule, seed=3, max_tokens=80, logprobs=5, model_logprobs=True, audit=True, **settings)
    assert reply.fidelity.judged == reply.fidelity.drafted == reply.fidelity.tokens == len(reply.tokens)
    assert reply.fidelity.mean_tv == pytest.approx(np.mean([token.tv for token in reply.tokens]))
    assert reply.stats.audited == reply.origins.count("accepted") > 0
    for token, *rows in each_token(reply, prompt, recorder.rows):
        if token.origin == "accepted":  # the expert's own have the account that they always have
            assert max(deviations(token, "never", *rows, settings)) < 1e-9


@pytest.mark.parametrize("shaping", [SHAPED, {"grammar": LETTERS}, SHAPED | {"min_tokens": 30}], ids=lambda each: "+".join(each))
def test_penalties_bias_and_grammar_hold_for_both_models_as_for_a_block_that_is_kept(demo, shaping):
    """At most of the places; a batch of another size may round another way."""
    more = {"seed": 2, "temperature": 0.8, "max_tokens": 60, "logprobs": 5, "model_logprobs": True, "block_size": 5, **shaping}
    alone = demo.generate(ids(demo, PROMPTS[0]), rule="never", audit=True, **more)
    kept = demo.generate(ids(demo, PROMPTS[0]), rule="chow:1", bonus="cascade", **more)
    pairs = []
    for one, other in zip(alone.tokens, kept.tokens):
        if one.id != other.id:
            break
        pairs += [(one.tv, other.tv), (one.expert_logprobs.logprob, other.expert_logprobs.logprob)]
    assert len(pairs) > 20
    assert np.mean([a == pytest.approx(b, abs=1e-4) for a, b in pairs]) > 0.85


@pytest.mark.parametrize("rule", [*UNASKED, "margin:1", "strict", "token_v3:0.8"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_audit_changes_nothing_but_the_account_and_comes_behind_the_text(demo, rule, temperature):
    def made(*, audit: bool) -> list[sc.Chunk]:
        demo.reset()
        more = {"temperature": temperature, "seed": 4, "max_tokens": 40, "block_size": 4, "audit": audit}
        return list(demo.stream(ids(demo, PROMPTS[0]), rule=rule, **more))

    bare, chunks = made(audit=False), made(audit=True)
    plain, reply = Reply.of(bare), Reply.of(chunks)
    assert (reply.text, reply.token_ids, reply.origins, reply.finish_reason) == (
        plain.text, plain.token_ids, plain.origins, plain.finish_reason
    )  # fmt: skip
    assert reply.stats.counts() | {"audited": 0} == plain.stats.counts()
    assert reply.fidelity.judged == len(reply.tokens)
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    later = chunks[len(bare) :]
    assert [(chunk.tokens, len(chunk.audited)) for chunk in later] == ([((), len(reply.tokens))] if rule in UNASKED else [])
    for chunk in later:
        assert chunk.stats.audited > 0 < chunk.stats.audit_s
        assert (chunk.stats.wall_s, chunk.stats.expert_s) == (chunks[-2].stats.wall_s, chunks[-2].stats.expert_s)
    assert all(chunk.stats.audit_s == 0 for chunk in chunks[: len(bare)])


def fresh(demo: sc.Runtime) -> Reply:
    return demo.generate(ids(demo, PROMPTS[1]), rule="token_v3:0.5", seed=1, max_tokens=30, block_size=4)


@pytest.mark.parametrize("rule", UNASKED)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("batch", [0, 1])
def test_an_audit_that_fails_leaves_a_runtime_that_answers_on_the_same(demo, rule, error, batch, monkeypatch):
    demo.reset()
    expected = fresh(demo)
    demo.reset()
    stream = demo.stream(ids(demo, PROMPTS[0]), rule=rule, temperature=1, seed=4, max_tokens=100, ignore_eos=True, audit=True)
    text = [next(stream)]
    while sum(len(chunk.tokens) for chunk in text) < 100:
        text.append(next(stream))
    extend, calls = demo._expert.extend, count()

    def failing(tokens, keep):
        rows = extend(tokens, keep)
        if next(calls) == batch:
            raise error
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(demo._expert, "extend", failing)
        with pytest.raises(error):
            next(stream)
    whole = [*ids(demo, PROMPTS[0]), *(token.id for chunk in text for token in chunk.tokens)]
    for session in (demo._drafter, demo._expert):
        assert session.tokens == whole[: len(session.tokens)] != whole
    assert fresh(demo).token_ids == expected.token_ids


def test_a_cancelled_audit_ends_the_reply_with_its_text_whole_and_its_distance_unknown(demo):
    cancel, seen = threading.Event(), []

    def on_chunk(chunk: sc.Chunk) -> None:
        seen.extend(chunk.tokens)
        if len(seen) == 100:
            cancel.set()

    more = {"rule": "never", "max_tokens": 100, "ignore_eos": True, "audit": True}
    reply = demo.generate(ids(demo, PROMPTS[0]), cancel=cancel, on_chunk=on_chunk, **more)
    assert (len(reply.tokens), reply.finish_reason, reply.fidelity.mean_tv) == (100, "cancelled", None)
    assert demo.generate(ids(demo, PROMPTS[0]), **more).fidelity.mean_tv is not None


def test_a_reply_is_cancelled_between_two_batches_of_its_audit(demo, monkeypatch):
    cancel, extend, calls = threading.Event(), demo._expert.extend, []

    def watched(tokens, keep):
        calls.append(len(tokens))
        cancel.set()
        return extend(tokens, keep)

    monkeypatch.setattr(demo._expert, "extend", watched)
    demo.reset()
    reply = demo.generate(ids(demo, PROMPTS[0]), rule="never", max_tokens=200, ignore_eos=True, audit=True, cancel=cancel)
    assert (len(reply.tokens), reply.finish_reason, len(calls)) == (200, "cancelled", 1)


def test_an_answer_whose_rows_would_take_too_much_memory_has_an_unknown_distance_and_a_warning(demo, monkeypatch, caplog):
    assert auditing.MOST_BYTES == 2**30
    monkeypatch.setattr(auditing, "MOST_BYTES", 20 * 4 * demo.n_vocab)
    more = {"rule": "never", "seed": 1, "ignore_eos": True, "audit": True}
    with caplog.at_level(logging.WARNING):
        assert demo.generate(ids(demo, PROMPTS[0]), max_tokens=20, **more).fidelity.mean_tv is not None
        assert not caplog.records
        long = demo.generate(ids(demo, PROMPTS[0]), max_tokens=40, **more)
    assert (long.fidelity.mean_tv, long.stats.audited, long.finish_reason) == (None, 0, "length")
    assert "this answer is not audited" in caplog.text


# ---------------------------------------------------------------------- where it is asked for


def test_bench_judges_all_tokens_of_every_arm_and_measures_no_audit(demo, monkeypatch):
    ticks = count()
    monkeypatch.setattr(run.time, "perf_counter", lambda: float(next(ticks)))
    question = in_turns(built_in_questions(), 1)[0]
    (prompt,) = run.prompts_of(demo, [question])
    names = set()
    for arm in grid([TokenCascade(0.5)], [4], [0.0], Settings(max_tokens=20)):
        names.add(arm.name)
        bare = replace(arm, settings=replace(arm.settings, fidelity=False))
        row, unaudited = (run.row_of(demo, question, prompt, each, repetition=0, seed=0, audit=True) for each in (arm, bare))
        assert row["fidelity"]["judged"] == row["tokens"] == sum(row["yields"]) == len(row["token_ids"])
        assert row["fidelity"]["mean_tv"] is not None
        assert (row["audited"] > 0) == (row["audit_s"] > 0) == (arm.name in (DRAFTER, "token_cascade:0.5"))
        assert (row["wall_s"], row["yields"]) == (unaudited["wall_s"], unaudited["yields"]), "ticks of this test's clock"
    assert {BASE, DRAFTER} < names


def test_compare_tells_a_distance_of_every_arm_and_its_times_leave_the_audit_out(demo):
    arms = few_arms(Settings(seed=0, max_tokens=20, block_size=4, audit=True), demo.rule, 0.0)
    for row in compare(demo, ids(demo, PROMPTS[0]), arms, repeat=1):
        assert row.reply.fidelity.mean_tv is not None
        assert row.wall_s == row.reply.stats.wall_s


def test_a_request_may_ask_for_an_audit_and_the_last_event_of_a_stream_has_it(demo):
    asked = {"model": "demo@never", "max_tokens": 30}
    with serving({"demo": demo}, slots=1) as served:
        plain = served.chat(**asked).json()["speccascade"]
        whole = served.chat(**asked, speccascade={"audit": True, "origins": True}).json()["speccascade"]
        told = events(served.chat(**asked, stream=True, speccascade={"audit": True, "origins": True}).text)
    assert (plain["fidelity"]["mean_tv"], plain["stats"]["audited"]) == (None, 0)
    assert whole["fidelity"]["judged"] == whole["fidelity"]["tokens"] == whole["stats"]["audited"] == len(whole["tokens"])
    last = told[-1]
    assert last["speccascade"]["fidelity"] == whole["fidelity"]
    assert last["speccascade"]["audited"] == whole["tokens"]
    assert [each["choices"][0]["finish_reason"] for each in told[:-1]] == [None] * (len(told) - 1)
