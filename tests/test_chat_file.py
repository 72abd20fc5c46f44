"""Session files: what was written is what is read, or nothing is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speccascade_local import chat_file
from speccascade_local.chat_file import ModelMark, SavedChat, read, write
from speccascade_local.errors import CatalogError
from speccascade_local.saved import Saved
from speccascade_local.transcript import Piece, Transcript

CHAT = SavedChat(
    [{"role": "user", "content": "é\n\ue000"}, {"role": "assistant", "content": ""}],
    "Be brief.",
    1,
    {"temperature": 0.5, "stop": ["x"], "logit_bias": {"7": -1.5}},
    Transcript((Piece((1, 2), (("a", True), ("b", False))), Piece((3,), None))),
    {"expert": ModelMark(name="e.gguf", fingerprint="00")},
    {"drafter": Saved((1, 2, 3), bytes(range(256))), "expert": Saved((), b"")},
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
    models=st.dictionaries(st.sampled_from(["small", "drafter", "expert"]), st.builds(ModelMark, name=st.text(), fingerprint=st.text())),
    caches=st.dictionaries(st.sampled_from(["small", "drafter", "expert"]), st.builds(Saved, ids, st.binary(max_size=20))),
)


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
    path.write_bytes(b"".join(chat_file._summed(iter([chat_file._MAGIC, len(body).to_bytes(8, "big"), body]))))
    with pytest.raises(CatalogError, match="not a session that this version can read"):
        read(path)


def test_a_session_of_a_later_version_is_told_apart(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.chat"
    later = whole[:-32].replace(b'"version":1', b'"version":2')
    path.write_bytes(b"".join(chat_file._summed(iter([later]))))
    with pytest.raises(CatalogError, match=r"a session of version 2; this program reads version 1"):
        read(path)


def test_caches_that_end_before_their_header_says_so_are_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.chat"
    path.write_bytes(b"".join(chat_file._summed(iter([whole[:-32][:-1]]))))
    with pytest.raises(CatalogError, match="damaged"):
        read(path)


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
    chat_file.require_place(tmp_path / "new" / "a.chat")
    with pytest.raises(CatalogError, match="cannot be written"):
        chat_file.require_place(tmp_path / "file" / "a.chat")


def test_a_model_that_is_gone_cannot_be_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="cannot be read"):
        ModelMark.of(tmp_path / "gone.gguf")
