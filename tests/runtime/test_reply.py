from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from speccascade_local.decoding.fidelity import Fidelity
from speccascade_local.decoding.stats import Stats
from speccascade_local.rules.position_rules import Strict
from speccascade_local.runtime.reply import Candidate, Chunk, Logprobs, Reply, Token

optional = st.none() | st.floats(-30, 0)
candidates = st.builds(Candidate, st.integers(0, 99), st.text(max_size=3), st.binary(max_size=3), st.floats(-30, 0))
logprobs = st.none() | st.builds(Logprobs, st.just(-math.inf) | st.floats(-30, 0), st.lists(candidates, max_size=3).map(tuple))
tokens = st.builds(
    Token,
    st.integers(0, 99),
    st.text(max_size=3),
    st.sampled_from(["accepted", "matched", "corrected", "bonus", "expert"]),
    tv=st.none() | st.floats(0, 1),
    expert_logprob=optional,
    drafter_logprob=optional,
    logprobs=logprobs,
    expert_logprobs=logprobs,
    drafter_logprobs=logprobs,
)
blocks = st.lists(st.lists(tokens, min_size=1, max_size=3).map(tuple), min_size=1, max_size=4)


def chunks_of(blocks) -> list[Chunk]:
    last = len(blocks) - 1
    return [Chunk(block, "stop" if i == last else None, Stats(blocks=i + 1), Strict(), 7) for i, block in enumerate(blocks)]


@given(blocks)
def test_a_reply_is_its_chunks_joined_with_what_the_last_one_says(blocks):
    chunks = chunks_of(blocks)
    reply = Reply.of(chunks)
    assert reply.token_ids == [token_id for chunk in chunks for token_id in chunk.token_ids]
    assert reply.origins == [origin for chunk in chunks for origin in chunk.origins]
    assert reply.text == "".join(chunk.text for chunk in chunks)
    assert (reply.finish_reason, reply.stats, reply.seed) == ("stop", chunks[-1].stats, 7)


@given(blocks)
def test_the_lists_for_json_have_one_element_per_token_and_nothing_that_json_lacks(blocks):
    for each in (*chunks_of(blocks), Reply.of(chunks_of(blocks))):
        told = json.loads(json.dumps(each.as_dict(), allow_nan=False))
        for name in ("token_ids", "origins", "tv", "expert_logprob", "drafter_logprob", "logprobs", "expert_logprobs", "drafter_logprobs"):
            assert name not in told or len(told[name]) == len(each.tokens)
        for name in ("logprobs", "expert_logprobs", "drafter_logprobs"):
            assert (name in told) == any(getattr(token, name) for token in each.tokens)
            for said, token in zip(told.get(name, []), each.tokens):
                kept = getattr(token, name)
                assert said == (kept and kept.as_dict())
                if kept:
                    assert said["logprob"] == (None if kept.logprob == -math.inf else kept.logprob)
                    assert [bytes(candidate["bytes"]) for candidate in said["top"]] == [candidate.bytes for candidate in kept.top]


@given(blocks)
def test_fidelity_is_told_where_any_token_has_an_account_and_none_otherwise(blocks):
    reply = Reply.of(chunks_of(blocks))
    recorded = any(token.expert_logprob is not None or token.drafter_logprob is not None for token in reply.tokens)
    assert reply.fidelity == (Fidelity.of(reply.tokens) if recorded else None)
    told = reply.as_dict()
    assert (told["fidelity"] is not None) == recorded
    assert ("tv" in told) == ("expert_logprob" in told) == ("drafter_logprob" in told) == recorded
