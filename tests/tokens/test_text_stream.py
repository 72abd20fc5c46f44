"""What may be shown of a text that arrives in bytes, and where a stop string ends it.

Where several stop strings could end a text, the one whose *last* character comes first does; of those that end at the same
character the longest. That is the only reading in which the text does not depend on where its tokens happen to end.
"""

from __future__ import annotations

import codecs
import itertools
import time

from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle import visible_until_stop, written_out

from speccascade_local.tokens.text_stream import TextStream

END = -1


def stream_over(chunks: list[bytes], stop: list[str] | tuple[str, ...] = ()) -> TextStream:
    """A stream for which token i stands for the bytes ``chunks[i]``, and END ends the text."""
    return TextStream(lambda token: chunks[token], lambda token: token == END, stop)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """``data`` cut at these places; equal places make empty chunks."""
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]


def decoded(chunks: list[bytes]) -> str:
    """The whole characters of some chunks."""
    return codecs.getincrementaldecoder("utf-8")().decode(b"".join(chunks))


def cut_at_stop(text: str, stops: list[str]) -> str:
    """The naive reference: read character by character, until some stop string is complete."""
    for end in range(1, len(text) + 1):
        beginnings = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if beginnings:
            return text[: min(beginnings)]
    return text


characters = "aabbc é€😀"
texts = st.text(characters, max_size=12)
stop_lists = st.lists(st.text(characters, min_size=1, max_size=4), max_size=3)
places = st.lists(st.integers(0, 40), max_size=8)


# --------------------------------------------------------------------------- TextStream


@given(texts, places, stop_lists)
@example("abcb", [], ["abcb", "c"])  # one token completes both: the one that is complete first wins
@example("abc", [], ["c", "bc"])  # both end at the same character: the longer one wins
@example("aab", [1, 2], ["ab"])
@settings(deadline=None)
def test_any_split_into_tokens_gives_the_text_up_to_the_stop_that_is_complete_first(text: str, cuts: list[int], stops: list[str]) -> None:
    chunks = split(text.encode(), cuts)
    stream = stream_over(chunks, stops)
    for token in range(len(chunks)):
        if stream.feed(token):
            break
    stream.finish()
    assert "".join(stream.pieces) == cut_at_stop(text, stops)


@given(texts, places, stop_lists)
@settings(deadline=None)
def test_a_stop_string_ends_the_text_with_the_very_token_that_completes_it(text: str, cuts: list[int], stops: list[str]) -> None:
    chunks = split(text.encode(), cuts)
    stream = stream_over(chunks, stops)
    for token in range(len(chunks)):
        complete = any(stop in decoded(chunks[: token + 1]) for stop in stops)
        assert stream.feed(token) == complete
        assert len(stream.pieces) == token + 1
        if complete:
            break


@given(texts, places, stop_lists)
@settings(deadline=None)
def test_exactly_what_could_still_become_a_stop_string_is_held_back(text: str, cuts: list[int], stops: list[str]) -> None:
    chunks = split(text.encode(), cuts)
    stream = stream_over(chunks, stops)
    for token in range(len(chunks)):
        if stream.feed(token):
            break
        so_far = decoded(chunks[: token + 1])
        beginnings = [stop[:n] for stop in stops for n in range(1, len(stop)) if so_far.endswith(stop[:n])]
        assert "".join(stream.pieces) == so_far[: len(so_far) - max(map(len, beginnings), default=0)]


@given(texts, places, stop_lists)
@settings(deadline=None)
def test_what_was_shown_is_never_taken_back(text: str, cuts: list[int], stops: list[str]) -> None:
    chunks = split(text.encode(), cuts)
    stream = stream_over(chunks, stops)
    shown: list[str] = []
    for token in range(len(chunks)):
        ended = stream.feed(token)
        assert stream.pieces[:-1] == shown
        shown = list(stream.pieces)
        if ended:
            break
    stream.finish()
    assert stream.pieces[:-1] == shown[:-1]
    assert stream.pieces[-1].startswith(shown[-1])


@given(st.binary(max_size=24) | texts.map(str.encode), places)
@settings(deadline=None)
def test_any_bytes_in_any_split_read_as_if_they_had_come_at_once(data: bytes, cuts: list[int]) -> None:
    chunks = split(data, cuts)
    stream = stream_over(chunks)
    for token in range(len(chunks)):
        assert not stream.feed(token)
    stream.finish()
    assert "".join(stream.pieces) == data.decode(errors="replace")
    assert len(stream.pieces) == len(chunks)


def test_a_character_of_four_bytes_appears_with_its_last_byte() -> None:
    chunks = [bytes([byte]) for byte in "😀".encode()]
    stream = stream_over(chunks)
    for token in range(4):
        stream.feed(token)
    assert stream.pieces == ["", "", "", "😀"]


def test_a_character_that_stays_incomplete_becomes_one_replacement_mark_at_the_end() -> None:
    stream = stream_over([b"a", "😀".encode()[:3]])
    stream.feed(0)
    stream.feed(1)
    assert stream.pieces == ["a", ""]
    stream.finish()
    assert stream.pieces == ["a", "\ufffd"]


def test_an_end_token_shows_nothing_and_releases_what_was_held_back() -> None:
    stream = stream_over([b"so <"], ["<end>"])
    assert not stream.feed(0)
    assert stream.feed(END)
    assert stream.pieces == ["so ", ""]
    stream.finish()
    assert stream.pieces == ["so ", "<"]


def test_what_follows_a_stop_string_inside_the_same_token_is_dropped() -> None:
    stream = stream_over([b"one", b" two; three " + "é".encode()[:1]], [";"])
    assert not stream.feed(0)
    assert stream.feed(1)
    stream.finish()
    assert stream.pieces == ["one", " two"]


def test_finishing_an_empty_stream_adds_nothing() -> None:
    stream = stream_over([])
    stream.finish()
    assert stream.pieces == []


# --------------------------------------------------------------------------- control tokens

#: What a token may be: visible bytes, perhaps half a character, or a control token, which shows nothing and is written as it stands here.
ORDINARY = [b"a", b"b", b"ab", b"<", b"<a", b">", b"a>", b"", "é".encode()[:1], "é".encode()[1:], "😀".encode()]
CONTROL = ["<a>", "<b>", "<", ""]
tokens = st.lists(st.sampled_from(ORDINARY) | st.sampled_from(CONTROL), max_size=12)
spelled_stops = st.lists(st.text("ab<>é", min_size=1, max_size=6), max_size=3)


def stream_with_controls(given_tokens: list[bytes | str], stop: list[str], ends: int | None = None) -> TextStream:
    def piece(token: int) -> bytes:
        entry = given_tokens[token]
        return entry if isinstance(entry, bytes) else b""

    def spelled(token: int) -> bytes:
        entry = given_tokens[token]
        return entry.encode() if isinstance(entry, str) else entry

    return TextStream(piece, lambda token: token == ends, stop, spelled)


@given(tokens, spelled_stops)
@example(["<a>"], ["<a>"])
@example([b"b", "<a>", b"b"], ["<a>b"])
@example([b"a", "<b>", b"b"], ["ab"])  # what is seen stops, whatever is hidden in it
@example([b"a", b"<", b"a", b">"], ["<a>"])  # spelled by ordinary tokens it stops as it always did
@example(["é".encode()[:1], "<a>", "é".encode()[1:], b"b"], ["éb"])
@example([b"a", "<a>", b"a", "<b>"], ["a<a>ab", "<b>"])
@settings(deadline=None, max_examples=400)
def test_a_stop_string_ends_what_is_shown_and_what_is_spelled_as_a_token_by_token_reading_says(
    given_tokens: list[bytes | str], stops: list[str]
) -> None:
    stream = stream_with_controls(given_tokens, stops)
    ended = next((token for token in range(len(given_tokens)) if stream.feed(token)), None)
    stream.finish()
    assert ("".join(stream.pieces), ended) == visible_until_stop(given_tokens, stops)


@given(tokens, spelled_stops)
@settings(deadline=None, max_examples=400)
def test_with_control_tokens_too_nothing_is_taken_back_and_exactly_the_beginnings_of_stops_are_held_back(
    given_tokens: list[bytes | str], stops: list[str]
) -> None:
    stream = stream_with_controls(given_tokens, stops)
    for token in range(len(given_tokens)):
        shown = list(stream.pieces)
        if stream.feed(token):
            assert stream.pieces[:-1] == shown
            return
        assert stream.pieces[:-1] == shown
        written = written_out(given_tokens[: token + 1])
        held = 0
        for reading in (written, [each for each in written if each[1]]):
            text = "".join(character for character, _ in reading)
            beginnings = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
            held = max([held, *(sum(seen for _, seen in reading[-n:]) for n in beginnings)])
        whole = "".join(character for character, seen in written if seen)
        assert "".join(stream.pieces) == whole[: len(whole) - held]


def test_a_control_token_that_no_stop_spells_shows_nothing_and_holds_nothing_back() -> None:
    stream = stream_with_controls([b"a", "<|x|>", b"b"], ["zz"])
    assert [stream.feed(token) for token in range(3)] == [False, False, False]
    assert stream.pieces == ["a", "", "b"]


def test_a_stop_that_ends_with_the_token_that_ends_the_text_takes_its_visible_beginning_away() -> None:
    stream = stream_with_controls([b"one", b" END", "<end>"], [" END<end>"], ends=2)
    assert [stream.feed(token) for token in range(3)] == [False, False, True]
    stream.finish()
    assert "".join(stream.pieces) == "one"


def test_sixteen_long_stops_that_nearly_match_at_every_character_are_looked_for_in_linear_time() -> None:
    stops = ["a" * (1000 - n) + "b" for n in range(16)]
    stream = stream_over([b"a" * 4], stops)
    begun = time.monotonic()
    for _ in range(5_000):
        assert not stream.feed(0)
    assert time.monotonic() - begun < 10
