"""Session files: what was written is what is read, or nothing is."""

from __future__ import annotations

import json
import os
import stat
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speccascade_local.common.errors import CatalogError
from speccascade_local.llama.session import SavedState
from speccascade_local.runtime import session_file
from speccascade_local.runtime.session_file import ModelMark, SavedChat, read, write
from speccascade_local.tokens.transcript import Piece, Transcript

CHAT = SavedChat(
    [{"role": "user", "content": "é\n\ue000"}, {"role": "assistant", "content": ""}],
    "Be brief.",
    1,
    {"temperature": 0.5, "stop": ["x"], "logit_bias": {"7": -1.5}},
    Transcript((Piece((1, 2), (("a", True), ("b", False))), Piece((3,), None))),
    {"expert": ModelMark(name="e.gguf", fingerprint="00")},
    {"drafter": SavedState((1, 2, 3), bytes(range(256))), "expert": SavedState((), b"")},
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "a.chat"
    write(path, CHAT)
    return path.read_bytes()


ids = st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple)
parts = st.lists(st.tuples(st.text(max_size=5), st.booleans()), max_size=3).map(tuple)
chats = st.builds(
    SavedChat,
    messages=st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=8), max_size=2), max_size=3),
    system=st.none() | st.text(max_size=5),
    forgotten=st.integers(0, 99),
    settings=st.dictionaries(st.text(max_size=4), st.none() | st.booleans() | st.text(max_size=4) | st.integers(-5, 5), max_size=3),
    said=st.builds(Transcript, st.lists(st.builds(Piece, ids, st.none() | parts), max_size=3).map(tuple)),
    models=st.dictionaries(st.sampled_from(["drafter", "expert"]), st.builds(ModelMark, name=st.text(), fingerprint=st.text())),
    caches=st.dictionaries(st.sampled_from(["drafter", "expert"]), st.builds(SavedState, ids, st.binary(max_size=20))),
)


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_a_session_is_readable_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "a.chat"
    write(path, CHAT)
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


@given(chats)
@settings(max_examples=60, deadline=None)
def test_what_was_written_is_what_is_read(tmp_path_factory: pytest.TempPathFactory, chat: SavedChat) -> None:
    path = tmp_path_factory.mktemp("any") / "a.chat"
    write(path, chat)
    assert read(path) == chat


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_a_file_that_is_cut_off_or_changed_anywhere_is_refused(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("broken") / "a.chat"
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:place])
    else:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :])
    with pytest.raises(CatalogError, match=r"a\.chat: (no session file|cut off or damaged)"):
        read(path)


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_whatever_stands_in_a_file_with_a_right_checksum_is_a_clear_error(tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
    path = tmp_path_factory.mktemp("odd") / "a.chat"
    path.write_bytes(b"".join(session_file._add_checksum(iter([session_file._MAGIC, len(body).to_bytes(8, "big"), body]))))
    with pytest.raises(CatalogError, match="not a session that this version can read"):
        read(path)


def test_a_session_of_a_later_version_is_told_apart(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.chat"
    later = whole[:-32].replace(b'"version":1', b'"version":2')
    path.write_bytes(b"".join(session_file._add_checksum(iter([later]))))
    with pytest.raises(CatalogError, match=r"a session of version 2; this program reads version 1"):
        read(path)


def test_caches_that_end_before_their_header_says_so_are_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.chat"
    path.write_bytes(b"".join(session_file._add_checksum(iter([whole[:-32][:-1]]))))
    with pytest.raises(CatalogError, match="damaged"):
        read(path)


def as_file(path: Path, header: bytes, length: int | None = None, behind: bytes = b"") -> Path:
    """A session file with a right checksum, whatever its header is."""
    content = [session_file._MAGIC, (len(header) if length is None else length).to_bytes(8, "big"), header, behind]
    path.write_bytes(b"".join(session_file._add_checksum(iter(content))))
    return path


def header(**changed: object) -> bytes:
    return json.dumps(
        {"version": 1, "messages": [], "system": None, "forgotten": 0, "settings": {}, "said": [], "models": {}, "caches": {}} | changed
    ).encode()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header(settings={"a": None}).replace(b"null}", b"[" * 100_000), "not a session that this version can read"),
        (header(messages=[7] * 1_000_000), "messages.0: Input should be an object"),
        (header(said=[[[-1] * 1_000_000, None]]), "said.0.0.0: Input should be greater than or equal to 0"),
        (header(said=[[[2**31], None]]), "said.0.0.0: Input should be less than 2147483648"),
        (header(caches={"expert": {"tokens": ["a"] * 1_000_000, "n_bytes": 0}}), "caches.expert.tokens.0: Input should be a valid integer"),
        (header(caches={"expert": {"tokens": [], "n_bytes": 2**60}}), "cut off or damaged"),
        (header(caches={"expert": {"tokens": [], "n_bytes": -1}}), "caches.expert.n_bytes"),
        (header(forgotten=10**3000), "not a session that this version can read"),
        (b" " * (33 << 20), "34603008 bytes stand before its caches; at most 33554432"),
    ],
    ids=["deep", "messages", "ids", "large id", "tokens", "claims", "negative", "number", "long"],
)
def test_a_header_of_ill_will_is_refused_in_no_time_and_few_words(tmp_path: Path, content: bytes, said: str) -> None:
    tracemalloc.start()
    with pytest.raises(CatalogError, match=r"a\.chat: ") as refused:
        read(as_file(tmp_path / "a.chat", content))
    assert said in str(refused.value)
    assert len(str(refused.value)) < 400 + len(str(tmp_path))
    assert tracemalloc.get_traced_memory()[1] < 300 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("length", [2**64 - 1, 2**40, 10**6])
def test_lengths_that_a_file_does_not_have_are_not_set_aside(tmp_path: Path, length: int) -> None:
    with pytest.raises(CatalogError, match="cut off or damaged"):
        read(as_file(tmp_path / "a.chat", header(), length))


def test_a_large_file_is_not_held_twice_to_be_checked(tmp_path: Path) -> None:
    path = as_file(tmp_path / "a.chat", header(), behind=bytes(64 << 20))
    tracemalloc.start()
    with pytest.raises(CatalogError, match="cut off or damaged"):  # no cache is named that is so large
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_a_conversation_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="a session file holds"):
        write(tmp_path / "a.chat", SavedChat([{"role": "user", "content": "a" * (33 << 20)}]))
    assert not (tmp_path / "a.chat").exists()


@pytest.mark.parametrize("place", ["none.chat", "folder"])
def test_what_is_not_there_or_no_file_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(CatalogError, match=rf"{place}: cannot be read"):
        read(tmp_path / place)


def test_a_file_of_another_kind_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "thesis.txt"
    path.write_text("years of work")
    with pytest.raises(CatalogError, match="no session; choose another name"):
        write(path, CHAT)
    assert path.read_text() == "years of work"
    (tmp_path / "empty").touch()
    write(tmp_path / "empty", CHAT)
    write(tmp_path / "empty", SavedChat([]))
    assert read(tmp_path / "empty") == SavedChat([])


def test_a_session_is_written_whole_or_not_at_all(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.chat"
    path.write_bytes(whole)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CatalogError, match=r"a\.chat: cannot be written \(No space left on device\)"):
        write(path, SavedChat([]))
    assert path.read_bytes() == whole
    assert [each.name for each in tmp_path.iterdir()] == ["a.chat"]


def test_a_place_where_nothing_can_be_written_is_found_out_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    session_file.require_place(tmp_path / "new" / "a.chat")
    with pytest.raises(CatalogError, match="cannot be written"):
        session_file.require_place(tmp_path / "file" / "a.chat")


def test_a_model_that_is_gone_cannot_be_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="cannot be read"):
        ModelMark.of(tmp_path / "gone.gguf")
