"""Several turns: what is read per turn, what happens when the context is full, and what a session file brings back.

What is read is counted at the one place where tokens reach llama.cpp, ``Batch.decode``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf_files import CHATML, text_model

import speccascade_local as sc
from speccascade_local.common.errors import CatalogError, ContextOverflowError, PromptError, SessionError, SettingError
from speccascade_local.llama.batch import Batch
from speccascade_local.llama.session import SavedState
from speccascade_local.runtime import session_file
from speccascade_local.runtime.session_file import ModelMark, SavedChat
from speccascade_local.runtime.settings import Settings
from speccascade_local.tokens.transcript import Piece, Transcript

PEOPLE = ("Who is Ada Lovelace?", "Who is Buzz Aldrin?", "Who is Marie Curie?")
NO_THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('th')[-1] | trim }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def demo() -> Iterator[sc.Runtime]:
    """The bundled pair, not measured, so that no batch is padded."""
    with sc.load(n_threads=1, profile=False) as runtime:
        yield runtime


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[int]]:
    """The sizes of the batches that llama.cpp was given from here on, by the address of the context."""
    counted: dict[int, list[int]] = {}
    real = Batch.decode

    def decode(self: Batch, context: int, size: int) -> int:
        counted.setdefault(id(context), []).append(size)
        return real(self, context, size)

    monkeypatch.setattr(Batch, "decode", decode)
    return counted


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sc.Runtime]:
    """Two tiny models that write long nonsense; their context is short."""
    folder = tmp_path_factory.mktemp("pair")
    files = [text_model(folder / f"{name}.gguf", chat_template=CHATML, seed=seed) for name, seed in (("drafter", 1), ("expert", 2))]
    with sc.load(drafter=files[0], expert=files[1], n_ctx=256, n_threads=1, profile=False) as runtime:
        yield runtime


def alone(demo: sc.Runtime, conversation: sc.Conversation) -> sc.Reply:
    """The same question asked cold, with the whole history as messages."""
    demo.reset()
    return demo.chat(conversation.messages[:-1], block_size=0, rule="strict")


def test_each_turn_answers_as_the_whole_history_asked_at_once_would(demo: sc.Runtime) -> None:
    demo.reset()
    conversation = sc.Conversation(demo)
    for question in PEOPLE:
        reply = conversation.ask(question, block_size=0, rule="strict")
        assert conversation.messages[-2:] == [{"role": "user", "content": question}, {"role": "assistant", "content": reply.text}]
    assert reply.token_ids == alone(demo, conversation).token_ids


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [0, 4])
def test_the_expert_reads_in_each_turn_only_what_is_new(demo: sc.Runtime, read: dict[int, list[int]], block_size: int) -> None:
    demo.reset()
    conversation, context = sc.Conversation(demo, system="Be brief."), id(demo._expert.context._ctx)
    held = 0
    for question in PEOPLE:
        read.clear()
        reply = conversation.ask(question, block_size=block_size, rule="strict")
        stats = reply.stats
        assert stats.cached_tokens == held
        new = stats.prompt_tokens - held
        assert 0 <= read[context][0] - new <= block_size  # what is new, and the first draft
        assert all(size <= 1 + block_size for size in read[context][1:])
        assert len(read[context]) == stats.expert_calls
        held = stats.prompt_tokens + stats.tokens - 1  # all but the last token, which nobody has read yet
    behind = demo.chat_ids([{"role": "user", "content": PEOPLE[-1]}])
    assert new <= 1 + len(behind) + len("\n")  # the end of the last answer, which nobody had read, and what the template adds


def test_the_drafter_reads_only_what_is_new_too(demo: sc.Runtime, read: dict[int, list[int]]) -> None:
    demo.reset()
    conversation, context = sc.Conversation(demo), id(demo._drafter.context._ctx)
    first = conversation.ask(PEOPLE[0], rule="never", block_size=4)
    read.clear()
    second = conversation.ask(PEOPLE[1], rule="never", block_size=4)
    assert second.stats.cached_tokens == first.stats.prompt_tokens + first.stats.tokens - 1
    assert read[context][0] == second.stats.prompt_tokens - second.stats.cached_tokens
    assert set(read[context][1:]) == {1}


@pytest.mark.slow
def test_ids_that_were_generated_stay_in_the_next_prompt(pair: sc.Runtime) -> None:
    """Random models write texts that nobody would tokenize as they did."""
    conversation, differed = sc.Conversation(pair), False
    for number in range(4):
        before = conversation._said.ids
        seed = number if number < 3 else None  # with a seed the caches are read anew in part
        reply = conversation.ask(f"number {number}", temperature=1.0, seed=seed, max_tokens=20, block_size=3)
        said = conversation._said.ids
        assert said[: len(before)] == before
        assert said[-len(reply.token_ids) :] == reply.token_ids
        assert seed is not None or reply.stats.cached_tokens >= len(before) - 1
        differed |= pair.chat_ids(conversation.messages) != said
    assert differed


@pytest.mark.slow
def test_a_template_that_writes_answers_otherwise_gets_the_prompt_that_it_asks_for(tmp_path: Path) -> None:
    path = text_model(tmp_path / "m.gguf", chat_template=NO_THOUGHTS, seed=3)
    with sc.load(drafter=path, expert=path, n_ctx=512, n_threads=1, profile=False) as runtime:
        conversation = sc.Conversation(runtime)
        for number in range(3):
            conversation.ask("why", temperature=1.0, seed=number, max_tokens=30, block_size=0)
            messages = [*conversation.messages, {"role": "user", "content": "and"}]
            text = b"".join(runtime._tokenizer.piece(token, special=True) for token in conversation._render(messages).ids)
            plain = b"".join(runtime._tokenizer.piece(token, special=True) for token in runtime.chat_ids(messages))
            assert text.decode(errors="replace") == plain.decode(errors="replace")


# --------------------------------------------------------------------------- a full context


@pytest.mark.slow
def test_a_full_context_drops_the_oldest_turns_keeps_the_system_prompt_and_says_so(pair: sc.Runtime, caplog) -> None:
    conversation, dropped = sc.Conversation(pair, system="Be the one."), 0
    for number in range(12):
        caplog.clear()
        forgotten = conversation.forgotten
        with caplog.at_level(logging.WARNING):
            reply = conversation.ask(f"question {number}", max_tokens=24, temperature=1.0, seed=number, block_size=2)
        assert (conversation.forgotten > forgotten) == bool(caplog.records)
        dropped += bool(caplog.records)
        if caplog.records:
            assert f"the oldest {conversation.forgotten} turn" in caplog.text
            assert reply.stats.prompt_tokens <= pair.n_ctx // 2
        assert reply.finish_reason != "length" or len(reply.tokens) == 24
        text = b"".join(pair._tokenizer.piece(token, special=True) for token in conversation._said.ids).decode(errors="replace")
        assert "<|im_start|>system\nBe the one.<|im_end|>" in text
        for asked in range(number + 1):
            assert (f"question {asked}<|im_end|>" in text) == (asked >= conversation.forgotten)
    assert 0 < conversation.forgotten < 12
    assert dropped <= 4  # then there is room for a while
    assert len(conversation.messages) == 24


def test_a_question_that_no_context_holds_is_refused_and_nothing_is_lost(pair: sc.Runtime) -> None:
    conversation = sc.Conversation(pair)
    conversation.ask("short", max_tokens=5)
    before = list(conversation.messages)
    with pytest.raises(ContextOverflowError, match="shorten the prompt"):
        conversation.ask("long " * 300, max_tokens=5)
    assert (conversation.messages, conversation.forgotten) == (before, 0)
    assert conversation.ask("short again", max_tokens=5).stats.cached_tokens > 0


# --------------------------------------------------------------------------- answers that end early, and again


def test_an_answer_that_is_not_read_to_its_end_has_said_what_it_said(demo: sc.Runtime) -> None:
    demo.reset()
    conversation = sc.Conversation(demo)
    stream = conversation.stream(PEOPLE[0], block_size=2, rule="strict")
    seen = next(stream).text + next(stream).text
    stream.close()
    assert conversation.messages == [{"role": "user", "content": PEOPLE[0]}, {"role": "assistant", "content": seen}]
    reply = conversation.ask(PEOPLE[1], block_size=2, rule="strict")
    assert reply.text == alone(demo, conversation).text


def test_an_answer_that_breaks_off_within_a_character_keeps_its_ids_too(pair: sc.Runtime) -> None:
    conversation, broken_off = sc.Conversation(pair), 0
    for number in range(10):
        stream = conversation.stream("Hi", temperature=1.0, seed=number, block_size=0, max_tokens=40)
        prompt = conversation._render([*conversation.messages, {"role": "user", "content": "Hi"}]).ids
        tokens = [token for _ in range(5) for token in next(stream).tokens]
        stream.close()
        broken_off += not tokens[-1].text
        shown = [token.id for token in tokens]
        while shown and not tokens[len(shown) - 1].text:
            shown.pop()
        following = conversation._render([*conversation.messages, {"role": "user", "content": "Ho"}]).ids
        assert following[: len(prompt) + len(shown)] == prompt + shown
        conversation.reset()
    assert broken_off


def test_the_next_question_ends_an_answer_that_nobody_reads_any_more(demo: sc.Runtime) -> None:
    conversation = sc.Conversation(demo)
    stream = conversation.stream(PEOPLE[0], block_size=2)
    seen = next(stream).text
    conversation.ask(PEOPLE[1], block_size=2)
    assert [message["content"] for message in conversation.messages[:3]] == [PEOPLE[0], seen, PEOPLE[1]]
    assert list(stream) == []


def test_a_question_whose_answer_never_began_was_not_asked(demo: sc.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = sc.Conversation(demo)
    conversation.stream(PEOPLE[0], block_size=2)  # nothing is pulled
    monkeypatch.setattr(Batch, "decode", lambda *_: -3)
    demo.reset()
    with pytest.raises(SessionError):
        conversation.ask(PEOPLE[0], block_size=2)
    assert conversation.messages == []
    monkeypatch.undo()
    assert "Lovelace" in conversation.ask(PEOPLE[0], block_size=2).text


def test_bad_input_is_refused_by_the_call_itself(demo: sc.Runtime) -> None:
    conversation = sc.Conversation(demo)
    for text in ("", " \n", None, 3):
        with pytest.raises(PromptError, match="the question is"):
            conversation.stream(text)  # type: ignore[arg-type]
    with pytest.raises(SettingError):
        conversation.stream("Hi", temperature=-1)
    with pytest.raises(PromptError, match="ask something first"):
        conversation.retry()
    assert conversation.messages == []


def test_retry_replaces_the_last_answer(pair: sc.Runtime) -> None:
    conversation = sc.Conversation(pair)
    conversation.ask("one", max_tokens=8, temperature=1.0, seed=1)
    kept = list(conversation.messages)
    conversation.ask("two", max_tokens=8, temperature=1.0, seed=1)
    again = sc.Reply.of(list(conversation.retry(max_tokens=8, temperature=1.0, seed=2)))
    assert conversation.messages == [*kept, {"role": "user", "content": "two"}, {"role": "assistant", "content": again.text}]
    same = sc.Reply.of(list(conversation.retry(max_tokens=8, temperature=1.0, seed=2)))
    assert same.token_ids == again.token_ids
    other = sc.Reply.of(list(conversation.retry(max_tokens=8, temperature=1.0)))
    assert other.stats.cached_tokens == other.stats.prompt_tokens - 1  # the question had been read


def test_an_answer_stays_until_the_one_that_replaces_it_begins(pair: sc.Runtime) -> None:
    conversation = sc.Conversation(pair)
    conversation.ask("one", max_tokens=8)
    before = list(conversation.messages)
    conversation.retry(max_tokens=8)  # nothing is pulled
    with pytest.raises(SettingError):
        conversation.retry(temperature=-1)
    assert conversation.messages == before


def test_reset_forgets_the_turns_and_not_the_system_prompt(demo: sc.Runtime) -> None:
    conversation = sc.Conversation(demo, system="Be brief.")
    conversation.ask(PEOPLE[0], block_size=2)
    conversation.reset()
    assert (conversation.messages, conversation.system) == ([], "Be brief.")
    prompt = demo.chat_ids([{"role": "system", "content": "Be brief."}, {"role": "user", "content": PEOPLE[1]}])
    assert conversation.ask(PEOPLE[1], block_size=2).stats.prompt_tokens == len(prompt)


def test_a_runtime_that_was_closed_says_so(tmp_path: Path) -> None:
    path = text_model(tmp_path / "m.gguf", chat_template=CHATML)
    with sc.load(drafter=path, expert=path, n_ctx=64, n_threads=1, profile=False) as runtime:
        conversation = sc.Conversation(runtime)
        next(conversation.stream("Hi", max_tokens=20, block_size=1))
    with pytest.raises(SessionError, match="closed"):
        conversation.ask("Hi")


# --------------------------------------------------------------------------- session files


def test_a_session_goes_on_as_if_it_had_never_been_put_away(pair: sc.Runtime, read: dict[int, list[int]], tmp_path: Path) -> None:
    conversation = sc.Conversation(pair, system="Be odd.")
    for number in range(2):
        conversation.ask(f"number {number}", temperature=1.0, seed=number, max_tokens=12, block_size=3)
    biases = {7: -1.5, 8: -math.inf}
    settings = Settings(rule="opt:0.2", temperature=0.5, logit_bias=biases, stop=("x",), stop_token_ids=(9,), min_tokens=2, seed=4)
    conversation.save(tmp_path / "a.chat", settings)
    read.clear()
    expected = conversation.ask("then", temperature=1.0, seed=9, max_tokens=12, block_size=3)
    read_then = dict(read)
    pair.reset()
    other = sc.Conversation(pair)
    restored = other.load(tmp_path / "a.chat")
    assert (restored.settings, restored.notes) == (settings, ())
    assert other.system == "Be odd."
    read.clear()
    reply = other.ask("then", temperature=1.0, seed=9, max_tokens=12, block_size=3)
    assert reply.token_ids == expected.token_ids
    assert reply.stats.counts() == expected.stats.counts()
    assert read == read_then
    assert other.messages == conversation.messages


def test_what_was_forgotten_stays_forgotten(pair: sc.Runtime, tmp_path: Path) -> None:
    conversation = sc.Conversation(pair)
    for number in range(12):
        conversation.ask(f"question {number}", max_tokens=24, temperature=1.0, seed=number, block_size=2)
    conversation.save(tmp_path / "a.chat")
    other = sc.Conversation(pair)
    other.load(tmp_path / "a.chat")
    assert (other.forgotten, other._said.ids) == (conversation.forgotten, conversation._said.ids)


def test_other_models_read_the_conversation_again_and_say_so(demo: sc.Runtime, pair: sc.Runtime, tmp_path: Path) -> None:
    demo.reset()
    conversation = sc.Conversation(demo)
    conversation.ask(PEOPLE[0], block_size=2)
    conversation.save(tmp_path / "a.chat")
    other = sc.Conversation(pair)
    restored = other.load(tmp_path / "a.chat")
    assert [note.split(":")[0] for note in restored.notes] == [f"the {role} reads the conversation again" for role in ("drafter", "expert")]
    assert other.messages == conversation.messages
    assert other.ask("Hi", max_tokens=3).stats.cached_tokens == 0


def test_a_cache_that_llama_cpp_does_not_take_is_read_again(pair: sc.Runtime) -> None:
    conversation = sc.Conversation(pair)
    conversation.ask("one", max_tokens=5, block_size=2)
    saved = conversation.saved()
    ids = conversation._said.ids
    for spoilt in (
        SavedState(saved.caches["expert"].tokens, saved.caches["expert"].state[:-100]),
        SavedState((1, 2, 3), saved.caches["expert"].state),
    ):
        broken = SavedChat(saved.messages, said=saved.said, models=saved.models, caches=saved.caches | {"expert": spoilt})
        restored = conversation.restore(broken)
        assert len(restored.notes) == 1
        assert restored.notes[0].startswith("the expert reads the conversation again: expert.gguf: llama.cpp does not take")
        assert pair._expert.tokens == []
        reply = conversation.ask("two", max_tokens=5, block_size=2)
        assert reply.stats.cached_tokens == 0
        assert conversation._said.ids[: len(ids)] == ids
        conversation.restore(saved)


@pytest.mark.slow
def test_a_smaller_context_takes_the_messages_and_no_cache(pair: sc.Runtime, tmp_path: Path) -> None:
    conversation = sc.Conversation(pair)
    conversation.ask("word " * 12, max_tokens=60, temperature=1.0, seed=1, block_size=2)
    conversation.save(tmp_path / "a.chat")
    with sc.load(drafter=pair.pair.drafter, expert=pair.pair.expert, n_ctx=64, n_threads=1, profile=False) as small:
        other = sc.Conversation(small)
        notes = other.load(tmp_path / "a.chat").notes
        assert len(notes) == 2
        assert "tokens were saved and the context holds 64" in notes[1]
        other.ask("Hi", max_tokens=3)
        assert other.forgotten == 1


def test_code_that_a_session_names_is_not_run(pair: sc.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    restored = sc.Conversation(pair).restore(SavedChat([], settings={"rule": "evil:Rule()", "temperature": 0.5}))
    assert (restored.settings.rule, restored.settings.temperature) == (None, 0.5)
    assert "is code, which a session file may not run" in restored.notes[0]


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (SavedChat([{"role": "user", "content": "Hi"}]), "in turns"),
        (SavedChat([{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Hi"}]), "in turns"),
        (SavedChat([{"role": "user"}, {"role": "assistant", "content": "Hi"}]), "in turns"),
        (SavedChat([], settings={"temperature": -1}), "temperature"),
        (SavedChat([], settings={"warmth": 1}), "unknown settings warmth"),
        (SavedChat([], settings={"rule": "no_such"}), "no_such"),
        (SavedChat([], settings={"logit_bias": {"x": 1}}), "cannot be used"),
    ],
)
def test_a_session_that_makes_no_sense_is_refused_and_nothing_is_lost(pair: sc.Runtime, chat: SavedChat, message: str) -> None:
    conversation = sc.Conversation(pair)
    conversation.ask("one", max_tokens=5)
    before = list(conversation.messages)
    with pytest.raises(CatalogError, match=message):
        conversation.restore(chat)
    assert conversation.messages == before
    assert conversation.ask("two", max_tokens=5).stats.cached_tokens > 0


def test_a_file_that_cannot_be_used_leaves_everything_as_it_was(pair: sc.Runtime, tmp_path: Path) -> None:
    conversation = sc.Conversation(pair)
    conversation.ask("one", max_tokens=5)
    conversation.save(tmp_path / "a.chat")
    data = (tmp_path / "a.chat").read_bytes()
    (tmp_path / "cut.chat").write_bytes(data[:-1])
    before = list(conversation.messages)
    for name in ("cut.chat", "none.chat"):
        with pytest.raises(CatalogError, match=name):
            conversation.load(tmp_path / name)
    assert conversation.messages == before
    assert conversation.ask("two", max_tokens=5).stats.cached_tokens > 0


def test_ids_that_the_models_do_not_have_never_reach_llama_cpp(pair: sc.Runtime) -> None:
    marks = {role: ModelMark.of(model.path) for role, model in pair.models.items()}
    with pytest.raises(CatalogError, match="token ids"):
        sc.Conversation(pair).restore(SavedChat([], said=Transcript((Piece((10**6,), None),)), models=marks))


def test_a_model_that_has_changed_under_its_name_is_another_one(pair: sc.Runtime, tmp_path: Path) -> None:
    marks = {role: ModelMark.of(model.path) for role, model in pair.models.items()}
    assert marks["drafter"].fingerprint != marks["expert"].fingerprint
    conversation = sc.Conversation(pair)
    conversation.ask("one", max_tokens=5)
    saved = conversation.saved()
    changed = SavedChat(saved.messages, said=saved.said, models=marks | {"drafter": ModelMark(name="drafter.gguf", fingerprint="")})
    session_file.write(tmp_path / "b.chat", changed)
    assert sc.Conversation(pair).load(tmp_path / "b.chat").notes[0].startswith("the drafter reads the conversation again: ")
