from __future__ import annotations

import numpy as np
import pytest

from speccascade_local.rules.evidence import Evidence, Place
from speccascade_local.tokens.rows import Rows
from speccascade_local.tokens.sampler import Sampler
from speccascade_local.tokens.vocabulary import Vocabulary

PIECES = [b"a", b"7", b" 42", b"\xc3", b"\xa9", b"<eos>", b""]


def vocabulary() -> tuple[Vocabulary, list[int]]:
    asked: list[int] = []

    def piece(token: int) -> bytes:
        asked.append(token)
        return PIECES[token]

    return Vocabulary(len(PIECES), piece), asked


def is_number(text: str) -> bool:
    return text.strip().isdecimal()


def test_the_ids_that_a_predicate_holds_for_are_found_by_their_texts():
    mask = vocabulary()[0].where(is_number)
    assert mask.dtype == np.bool_
    assert np.flatnonzero(mask).tolist() == [1, 2]


def test_a_part_of_a_character_is_shown_to_a_predicate_as_a_replacement_and_joined_in_a_text():
    found, _ = vocabulary()
    assert np.flatnonzero(found.where("\ufffd".__eq__)).tolist() == [3, 4]
    assert found.bytes_of([0, 3, 4, 6]).decode() == "aé"


def test_each_piece_and_each_predicate_is_asked_once():
    found, asked = vocabulary()
    seen = []

    def predicate(text: str) -> bool:
        seen.append(text)
        return True

    assert found.where(predicate) is found.where(predicate)
    found.bytes_of([0, 1])
    assert len(seen) == len(PIECES)
    assert asked == [*range(len(PIECES))]


def test_a_mask_is_shared_and_so_cannot_be_written_to():
    mask = vocabulary()[0].where(is_number)
    with pytest.raises(ValueError, match="read-only"):
        mask |= True


def test_rules_reach_it_through_their_evidence():
    found, _ = vocabulary()
    rows = Rows.of(np.zeros((1, len(PIECES))))
    evidence = Evidence(rows, rows, Sampler(), Place(vocabulary=found))
    assert evidence.tokens_where(is_number) is found.where(is_number)


def test_the_demo_pair_knows_its_control_tokens_in_their_written_form(demo):
    pieces = demo._loaded.vocabulary.pieces
    assert len(pieces) == demo.n_vocab
    assert sum(piece.startswith(b"<|") and piece.endswith(b"|>") for piece in pieces) >= 2
    assert {str(digit).encode() for digit in range(10)} <= set(pieces)
