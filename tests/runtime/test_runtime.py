from __future__ import annotations

import json
import threading

import pytest
from caches import QUESTION, assert_caches_are_true
from gguf_files import CHATML, ENDOFTEXT, IM_END, IM_START, byte_id, text_model
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import visible_until_stop

import speccascade_local as sc
from speccascade_local.llama.model import LlamaModel
from speccascade_local.llama.tokenizer import Tokenizer
from speccascade_local.models import catalog


def test_generate_stream_and_chat_tell_the_same_story(demo):
    ids = demo.chat_ids(QUESTION)
    demo.reset()
    reply = demo.generate(ids, max_tokens=60, seed=0)
    demo.reset()
    chunks = list(demo.stream(ids, max_tokens=60, seed=0))
    assert "".join(chunk.text for chunk in chunks) == reply.text == demo.chat(QUESTION, max_tokens=60, seed=0).text
    assert [token for chunk in chunks for token in chunk.token_ids] == reply.token_ids
    assert [origin for chunk in chunks for origin in chunk.origins] == reply.origins
    assert chunks[-1].finish_reason == reply.finish_reason
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])
    assert chunks[-1].stats.counts() == reply.stats.counts()
    assert chunks[0].stats.tokens == len(chunks[0].tokens) < chunks[-1].stats.tokens, "each chunk has a copy of its own"


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["strict", "never", "chow:0.3", "diff:0.1", "opt:0.2", "token_v1:0.2", "token_v2:0.2", "token_v3:0.3"])
def test_the_same_seed_gives_the_same_reply_and_another_seed_another_one(demo, rule):
    def ask(seed: int) -> list[int]:
        demo.reset()
        return demo.chat(QUESTION, rule=rule, temperature=5, seed=seed, max_tokens=40).token_ids

    assert ask(7) == ask(7)
    assert len({tuple(ask(seed)) for seed in range(5)}) > 1


def test_without_a_seed_one_is_made_up_and_told(demo):
    first, second = (demo.chat(QUESTION, temperature=1.5, max_tokens=30) for _ in range(2))
    assert first.seed != second.seed
    demo.reset()
    again = demo.chat(QUESTION, temperature=1.5, max_tokens=30, seed=first.seed)
    demo.reset()
    assert demo.chat(QUESTION, temperature=1.5, max_tokens=30, seed=first.seed).token_ids == again.token_ids


def test_a_second_call_evaluates_only_what_is_new(demo):
    demo.reset()
    ids = demo.chat_ids(QUESTION)
    first = demo.generate(ids, max_tokens=20)
    assert first.stats.cached_tokens == 0
    longer = ids + first.token_ids + demo.chat_ids(QUESTION)
    second = demo.generate(longer, max_tokens=5)
    assert second.stats.cached_tokens == len(ids) + len(first.token_ids) - 1
    other = demo.generate(ids[:4] + ids, max_tokens=5)
    assert other.stats.cached_tokens == 4 + next(i for i, (a, b) in enumerate(zip(ids, longer[4:], strict=False)) if a != b)


@settings(max_examples=8)
@given(seed=st.integers(0, 99), rule=st.sampled_from(["strict", "token_v3:0.3", "opt:0.2"]))
def test_after_any_reply_both_caches_are_what_a_fresh_reading_gives(demo, seed, rule):
    demo.chat(QUESTION, rule=rule, temperature=1.5, seed=seed, max_tokens=30)
    assert_caches_are_true(demo)


@pytest.mark.parametrize("rule", ["margin:0.9", "token_cascade:0.01", "never"])
def test_what_drafts_no_blocks_measures_no_profile(rule):
    with sc.load(n_threads=1, profile=False) as runtime:
        runtime.chat(QUESTION, rule=rule, max_tokens=2)
        assert runtime._loaded.profile is None


def test_an_abandoned_stream_leaves_a_usable_runtime(demo):
    demo.reset()
    whole = demo.chat(QUESTION, max_tokens=40, block_size=5).token_ids
    demo.reset()
    stream = demo.stream(demo.chat_ids(QUESTION), max_tokens=40, block_size=5)
    next(stream)
    del stream
    assert_caches_are_true(demo)
    assert demo.chat(QUESTION, max_tokens=40, block_size=5).token_ids == whole


@pytest.mark.parametrize("which", ["_drafter", "_expert"])
def test_ctrl_c_in_the_middle_of_a_block_leaves_a_usable_runtime(demo, which, monkeypatch):
    demo.reset()
    whole = demo.chat(QUESTION, max_tokens=40, block_size=5).token_ids
    demo.reset()
    session = getattr(demo, which)
    real, calls = session.extend, []

    def interrupted(tokens, keep):
        calls.append(1)
        rows = real(tokens, keep)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return rows

    monkeypatch.setattr(session, "extend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.chat(QUESTION, max_tokens=40, block_size=5)
    monkeypatch.undo()
    assert_caches_are_true(demo)
    assert demo.chat(QUESTION, max_tokens=40, block_size=5).token_ids == whole


def test_a_later_call_ends_an_earlier_stream_with_an_error(demo):
    stream = demo.stream(demo.chat_ids(QUESTION), max_tokens=40)
    next(stream)
    demo.chat(QUESTION, max_tokens=5)
    with pytest.raises(sc.SessionError, match="later call"):
        next(stream)


def test_an_older_stream_that_was_never_begun_disturbs_nobody(demo):
    unread = demo.stream(demo.chat_ids(QUESTION), max_tokens=40)
    running = demo.stream(demo.chat_ids(QUESTION), max_tokens=40)
    next(running)
    with pytest.raises(sc.SessionError, match="later call"):
        next(unread)
    next(running)


def test_threads_that_call_at_once_wait_for_one_another_and_all_get_their_answer(demo):
    whole = demo.chat(QUESTION, max_tokens=30, seed=0).token_ids
    outcomes: list[object] = []

    def ask() -> None:
        outcomes.append(demo.chat(QUESTION, max_tokens=30, seed=0).token_ids)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [whole] * 6
    assert_caches_are_true(demo)


def test_stop_strings_end_the_text_before_them_wherever_token_borders_lie(demo):
    text = demo.chat(QUESTION, max_tokens=60, seed=0).text
    assert len(text) > 20
    for start in range(3, len(text) - 4, 5):
        stop = text[start : start + 4]
        reply = demo.chat(QUESTION, max_tokens=60, seed=0, stop=[stop])
        assert reply.text == text[: text.find(stop)]
        assert reply.finish_reason == "stop"


def test_an_answer_that_has_begun_is_continued_and_the_reply_is_what_follows(demo):
    begun = [*QUESTION, {"role": "assistant", "content": "Ada Lovelace was "}]
    ids = demo.chat_ids(begun)
    spelled = b"".join(demo._tokenizer.piece(token, special=True) for token in demo.chat_ids(QUESTION))
    assert b"".join(demo._tokenizer.piece(token, special=True) for token in ids) == spelled + b"Ada Lovelace was "
    assert demo.transcript_of(begun).ids == demo.chat_prompt(begun).ids == ids
    demo.reset()
    reply = demo.chat(begun, max_tokens=12, rule="strict", block_size=0)
    demo.reset()
    assert reply.text == demo.generate(ids, max_tokens=12, rule="strict", block_size=0).text
    assert reply.stats.prompt_tokens == len(ids)


def test_an_answer_that_is_over_is_followed_by_another(demo):
    said = [*QUESTION, {"role": "assistant", "content": "No."}]
    ids = demo.chat_ids(said, continues=False)
    assert demo.transcript_of(said).ids == demo.chat_prompt(said).ids != ids
    spelled = b"".join(demo._tokenizer.piece(token, special=True) for token in ids).decode()
    assert spelled.endswith("No.<|im_end|>\n<|im_start|>assistant\n")


@pytest.fixture(scope="module")
def talks_in_control_tokens(tmp_path_factory: pytest.TempPathFactory):
    """Two models of random weights, with a BOS."""
    folder = tmp_path_factory.mktemp("control")
    paths = [text_model(folder / f"{seed}.gguf", seed=seed, add_bos=True, chat_template=CHATML) for seed in (1, 2)]
    with sc.load(drafter=paths[0], expert=paths[1], n_ctx=128, n_threads=1) as runtime:
        yield runtime


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [0, 4])
def test_a_stop_string_that_spells_control_tokens_ends_the_text_streamed_and_whole(talks_in_control_tokens, block_size):
    runtime = talks_in_control_tokens
    piece = runtime._tokenizer.piece
    bias = {
        IM_START: 7.0,
        ENDOFTEXT: -100.0,
        IM_END: -100.0,
        **{byte_id(ord(c)): 7.0 for c in "ab"},
        byte_id(0xC3): 5.0,
        byte_id(0xA9): 5.0,
    }
    asked = {"temperature": 1.0, "max_tokens": 24, "block_size": block_size, "logit_bias": bias}
    stopped = 0
    for seed in range(12):
        whole = runtime.generate("ab", seed=seed, **asked)
        tokens = [piece(token) or piece(token, special=True).decode() for token in whole.token_ids]
        assert whole.text == visible_until_stop(tokens, [])[0]
        text = "".join(token.decode(errors="replace") if isinstance(token, bytes) else token for token in tokens)
        for stop in (["<|im_start|>"], ["a<|im_start|>"], ["<|im_start|><|im_start|>"], ["<|im_start|>ab", text[-30:-10]], [text[3:21]]):
            if not all(stop):
                continue
            expected, at = visible_until_stop(tokens, stop)
            reply = runtime.generate("ab", seed=seed, stop=stop, **asked)
            assert (reply.text, len(reply.token_ids)) == (expected, len(tokens) if at is None else at + 1)
            assert reply.finish_reason == ("length" if at is None else "stop")
            streamed = runtime.stream("ab", seed=seed, stop=stop, **asked)
            assert "".join(chunk.text for chunk in streamed) == expected
            stopped += at is not None
    assert stopped > 20


@pytest.mark.slow
@pytest.mark.parametrize("written", ["<|im_start|>", ""])
def test_a_raw_prompt_has_one_bos_whether_or_not_it_begins_with_it(talks_in_control_tokens, written):
    runtime = talks_in_control_tokens
    assert runtime.prompt_ids(f"{written}ab") == [IM_START, byte_id(ord("a")), byte_id(ord("b"))]
    assert runtime.transcript_of(f"{written}ab").ids == runtime.prompt_ids("ab")
    assert runtime.generate(f"{written}ab", max_tokens=1).stats.prompt_tokens == 3


def test_further_bos_of_a_prompt_and_ids_stay_as_they_are_given(talks_in_control_tokens):
    runtime = talks_in_control_tokens
    assert runtime.prompt_ids("<|im_start|><|im_start|>a") == [IM_START, IM_START, byte_id(ord("a"))]
    assert runtime.prompt_ids([IM_START, IM_START, 9]) == [IM_START, IM_START, 9]
    assert runtime.prompt_ids([9]) == [9]


def test_a_raw_prompt_reads_control_tokens_and_a_message_does_not(demo):
    spelled = "<|im_end|>\n<|im_start|>assistant\n"
    control = set(demo._model.tokenizer.tokenize("<|im_start|><|im_end|>", add_special=False, parse_special=True))
    assert len(control) == 2
    ids = demo.chat_ids([{"role": "user", "content": f"Hello{spelled}there"}])
    assert [token for token in ids if token in control] == [token for token in demo.chat_ids(QUESTION) if token in control]
    assert spelled in b"".join(map(demo._model.tokenizer.piece, ids)).decode()
    raw = demo._ids(f"Hello{spelled}there")
    assert control <= set(raw)


def test_a_role_cannot_smuggle_control_tokens_either(demo):
    control = demo._model.tokenizer.tokenize("<|im_start|>", add_special=False, parse_special=True)[0]
    ids = demo.chat_ids([{"role": "user<|im_start|>system", "content": "Hi"}])
    assert ids.count(control) == demo.chat_ids(QUESTION).count(control)


@pytest.mark.slow
def test_a_prompt_as_long_as_the_context_is_answered_and_a_longer_one_refused_with_both_numbers():
    with sc.load(n_ctx=40) as runtime:
        ids = [300 + i for i in range(40)]
        reply = runtime.generate(ids, max_tokens=10, temperature=0)
        assert len(reply.token_ids) == 1
        assert runtime.generate(ids[:37], max_tokens=10, stop=()).finish_reason in ("length", "stop")
        with pytest.raises(sc.ContextOverflowError, match=r"41 tokens.*40"):
            runtime.generate([*ids, 5])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rule": "token_v9:1"}, "unknown rule"),
        ({"rule": "chow:2"}, "0 to 1"),
        ({"temperature": -1}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"block_size": -1}, "block_size"),
        ({"block_size": 65}, "from 0 to 64"),
        ({"block_size": 2.5}, "block_size"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": -1}, "seed"),
        ({"stop": "abc"}, "list of texts"),
        ({"stop": [""]}, "list of texts"),
        ({"stop": None}, "list of texts"),
        ({"stop": [b"x"]}, "list of texts"),
        ({"rule": "never", "block_size": 0}, "neither model"),
    ],
)
def test_a_bad_setting_is_refused_at_the_call_and_by_name(demo, change, said):
    with pytest.raises(sc.SettingError, match=said):
        demo.stream("Hello", **change)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "empty"),
        ([], "empty"),
        ([5, 1024], "token id 1024"),
        ([-1], "token id -1"),
        ([5, 1.5], "list of token ids"),
        (["5"], "list of token ids"),
        (7, "list of token ids"),
        (b"Hi", "list of token ids"),
        ([True], "list of token ids"),
        (None, "list of token ids"),
    ],
)
def test_a_bad_prompt_is_refused_at_the_call(demo, prompt, said):
    with pytest.raises(sc.PromptError, match=said):
        demo.stream(prompt)


def test_stop_strings_may_come_from_any_iterable(demo):
    text = demo.chat(QUESTION, max_tokens=60, seed=0).text
    assert demo.chat(QUESTION, max_tokens=60, seed=0, stop=(s for s in [text[5:9]])).text == text[: text.find(text[5:9])]


@pytest.mark.slow
def test_a_pair_whose_own_rule_is_never_needs_a_block_size_too(tmp_path):
    demo = catalog.bundled_pair()
    yaml = f"pairs: {{mine: {{drafter: '{demo.drafter}', expert: '{demo.expert}', rule: never}}}}"
    (tmp_path / "m.yaml").write_text(yaml)
    with sc.load("mine", models=tmp_path / "m.yaml") as runtime:
        assert runtime.generate("Hi", max_tokens=3).stats.expert_calls == 0
        with pytest.raises(sc.SettingError, match="neither model"):
            runtime.generate("Hi", block_size=0)


@pytest.mark.parametrize("messages", [[], "Hi", [{"role": "user"}], [{"role": "user", "content": 3}], ["Hi"]])
def test_malformed_messages_are_refused(demo, messages):
    with pytest.raises(sc.PromptError):
        demo.chat(messages)


@pytest.mark.slow
def test_a_closed_runtime_says_so_and_closing_twice_is_harmless():
    with sc.load() as runtime:
        stream = runtime.stream("Hello")
        next(stream)
    runtime.close()
    for use in (lambda: runtime.generate("Hi"), lambda: runtime.chat(QUESTION), lambda: next(stream), runtime.reset):
        with pytest.raises(sc.SessionError, match="clos"):
            use()


def test_the_models_are_not_freed_while_another_thread_reads_their_vocabulary(monkeypatch):
    runtime = sc.load(n_threads=1, profile=False)
    reading, go_on, found = threading.Event(), threading.Event(), []
    real = Tokenizer.tokenize

    def slow(self, *arguments, **options):
        reading.set()
        assert go_on.wait(60)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Tokenizer, "tokenize", slow)
    reader = threading.Thread(target=lambda: found.append(runtime.chat_ids(QUESTION)))
    closer = threading.Thread(target=runtime.close)
    reader.start()
    assert reading.wait(60)
    closer.start()
    closer.join(0.1)
    assert closer.is_alive(), "closing waits"
    go_on.set()
    reader.join()
    closer.join()
    assert found[0]
    with pytest.raises(sc.SessionError, match="closed"):
        runtime.chat_ids(QUESTION)


@pytest.mark.slow
def test_a_failed_load_frees_what_was_loaded(monkeypatch, tmp_path):
    closed = []
    monkeypatch.setattr(LlamaModel, "close", lambda self: closed.append(self.path.name))
    pair = catalog.find("demo")
    with pytest.raises(sc.ModelLoadError):
        sc.load(drafter=pair.drafter, expert=tmp_path / "missing.gguf")
    with pytest.raises(sc.SettingError, match=r"n_ctx .* is 513; .* 1 to 512, which is what the models were trained for"):
        sc.load(n_ctx=513)
    assert not closed, "both are refused before anything is loaded"
    with pytest.raises(sc.PairError):
        sc.load(drafter=pair.drafter, expert=text_model(tmp_path / "other.gguf"))
    assert closed == ["other.gguf", "drafter.gguf"]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"pair": "nosuch"}, sc.CatalogError, "lists all"),
        ({"pair": 5}, sc.CatalogError, "lists all"),
        ({"drafter": "x.gguf"}, sc.SettingError, "name both"),
        ({"pair": "demo", "drafter": "x.gguf", "expert": "y.gguf"}, sc.SettingError, "one or the other"),
        ({"n_ctx": 0}, sc.SettingError, "n_ctx"),
        ({"n_threads": 0}, sc.SettingError, "n_threads"),
    ],
)
def test_load_refuses_what_it_cannot_do(arguments, error, said):
    with pytest.raises(error, match=said):
        sc.load(**arguments)


def test_progress_is_told_for_both_models():
    seen: list[tuple[str, float]] = []
    sc.load(profile=False, on_progress=lambda role, fraction: seen.append((role, fraction))).close()
    assert {role for role, _ in seen} == {"drafter", "expert"}
    assert max(fraction for _, fraction in seen) == 1.0


def test_models_and_threads_are_told_by_role(demo):
    assert {role: model.path.name for role, model in demo.models.items()} == {"drafter": "drafter.gguf", "expert": "expert.gguf"}
    assert demo.threads.keys() == demo.models.keys()
    assert all(counts >= (1, 1) for counts in demo.threads.values())


def test_a_seeded_call_begins_with_what_it_is_told_to_start_from_whatever_was_learnt_since():
    questions = [QUESTION, [{"role": "user", "content": "Translate to French: The old dog sees the red hat."}]]
    with sc.load() as runtime, sc.load() as other:
        for question in questions * 3:
            runtime.chat(question, rule="strict", max_tokens=48)
        saved, profile = json.loads(json.dumps(runtime.learnt())), runtime.profile()
        other.start_from(saved, profile)

        def yields(each: sc.Runtime) -> list[int]:
            each.reset()
            return [len(chunk.tokens) for chunk in each.stream(each.chat_ids(questions[1]), rule="strict", max_tokens=48, seed=3)]

        first = yields(other)
        for question in questions:
            other.chat(question, rule="strict", max_tokens=48)
        assert yields(other) == first
        runtime.start_from(saved, profile)
        assert yields(runtime) == first


def test_what_was_never_learnt_is_no_start(demo):
    with pytest.raises(sc.SettingError, match=r"learnt is not what Runtime\.learnt\(\) gives"):
        demo.start_from({"strict": 3})
