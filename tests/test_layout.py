"""Where things lie in a GGUF file: as the gguf package reads it, whole or piece by piece."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf_files import CHATML, recurrent_model, text_model
from hypothesis import given, settings
from hypothesis import strategies as st

import speccascade_local
from speccascade_local.errors import ModelLoadError
from speccascade_local.layout import IncompleteError, layout_of, read_layout

DEMO = Path(speccascade_local.__file__).parent / "demo"
NUMBERS = [
    (GGUFValueType.UINT8, st.integers(0, 2**8 - 1)),
    (GGUFValueType.INT8, st.integers(-(2**7), 2**7 - 1)),
    (GGUFValueType.UINT16, st.integers(0, 2**16 - 1)),
    (GGUFValueType.INT16, st.integers(-(2**15), 2**15 - 1)),
    (GGUFValueType.UINT32, st.integers(0, 2**32 - 1)),
    (GGUFValueType.INT32, st.integers(-(2**31), 2**31 - 1)),
    (GGUFValueType.UINT64, st.integers(0, 2**64 - 1)),
    (GGUFValueType.INT64, st.integers(-(2**63), 2**63 - 1)),
    (GGUFValueType.FLOAT32, st.floats(width=32, allow_nan=False)),
    (GGUFValueType.FLOAT64, st.floats(allow_nan=False)),
    (GGUFValueType.BOOL, st.booleans()),
    (GGUFValueType.STRING, st.text(st.characters(codec="utf-8"), max_size=20)),
]
one_value = st.sampled_from(NUMBERS).flatmap(lambda kind: st.tuples(st.just(kind[0]), kind[1]))
many_values = st.sampled_from(NUMBERS).flatmap(lambda kind: st.tuples(st.just(kind[0]), st.lists(kind[1], min_size=1, max_size=6)))


def written(path: Path, keys: list) -> Path:
    writer = GGUFWriter(path, "llama")
    for i, (kind, value) in enumerate(keys):
        if isinstance(value, list):
            writer.add_key_value(f"key.{i}", value, GGUFValueType.ARRAY, sub_type=kind)
        else:
            writer.add_key_value(f"key.{i}", value, kind)
    writer.add_tensor("blk.0.weight", np.zeros((2, 3), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@given(keys=st.lists(one_value | many_values, max_size=6))
@settings(max_examples=40)
def test_every_kind_of_value_is_read_as_it_was_written(tmp_path_factory, keys):
    path = written(tmp_path_factory.mktemp("layout") / "m.gguf", keys)
    layout = layout_of(path)
    for i, (_, value) in enumerate(keys):
        if isinstance(value, list):
            assert layout.entries(f"key.{i}") == [entry.encode() if isinstance(entry, str) else entry for entry in value]
        else:
            assert layout.values[f"key.{i}"] == value


@pytest.mark.parametrize("make", ["demo drafter", "demo expert", "text", "recurrent"])
def test_a_model_is_read_as_the_gguf_package_reads_it(tmp_path, make):
    path = {
        "demo drafter": lambda: DEMO / "drafter.gguf",
        "demo expert": lambda: DEMO / "expert.gguf",
        "text": lambda: text_model(tmp_path / "m.gguf", chat_template=CHATML),
        "recurrent": lambda: recurrent_model(tmp_path / "m.gguf"),
    }[make]()
    layout, reader = layout_of(path), GGUFReader(path)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert layout.values.keys() | layout.lists.keys() == fields.keys()
    assert layout.values == {name: field.contents() for name, field in fields.items() if name in layout.values}
    for name in layout.lists:
        read = [entry.decode() if isinstance(entry, bytes) else entry for entry in layout.entries(name)]
        assert read == fields[name].contents()
    assert [(each.name, each.n_values, each.kind) for each in layout.tensors] == [
        (each.name, each.n_elements, each.tensor_type) for each in reader.tensors
    ]
    offset = reader.data_offset
    assert [offset + each.offset for each in layout.tensors] == [each.data_offset for each in reader.tensors]
    assert -(-layout.end // 32) * 32 == offset


def test_starts_are_where_the_texts_of_a_list_lie(tmp_path):
    data = text_model(tmp_path / "m.gguf").read_bytes()
    layout = read_layout(data)
    starts = layout.starts("tokenizer.ggml.tokens")
    texts = layout.entries("tokenizer.ggml.tokens")
    assert len(starts) == len(texts) + 1
    for start, end, text in zip(starts, starts[1:], texts):
        assert data[start + 8 : end] == text


def test_reading_may_stop_at_a_key_of_which_only_the_place_is_wanted(tmp_path):
    path = text_model(tmp_path / "m.gguf", n_vocab=300)
    layout = layout_of(path, until="tokenizer.ggml.tokens")
    assert layout.lists["tokenizer.ggml.tokens"].count == 300
    assert layout.values["tokenizer.ggml.model"] == "gpt2"
    assert "tokenizer.ggml.merges" not in layout.lists
    assert layout.tensors == ()
    assert layout_of(path, until="no.such.key").tensors == layout_of(path).tensors


# --------------------------------------------------------------------------- a part of a file


def test_every_part_of_a_header_says_that_it_goes_on_and_the_whole_of_it_does_not(tmp_path):
    data = text_model(tmp_path / "m.gguf", chat_template=CHATML).read_bytes()
    whole = read_layout(data)
    for there in [*range(60), *range(60, whole.end, 97), whole.end - 1]:
        with pytest.raises(IncompleteError) as raised:
            read_layout(data[:there])
        assert there < raised.value.needed <= whole.end
    assert read_layout(data[: whole.end]).tensors == whole.tensors


# --------------------------------------------------------------------------- what is none

HEADER = read_layout((DEMO / "drafter.gguf").read_bytes()).end


@given(changes=st.lists(st.tuples(st.integers(0, HEADER - 1), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=150)
def test_a_damaged_header_is_a_reason_never_a_crash(tmp_path_factory, changes):
    data = bytearray((DEMO / "drafter.gguf").read_bytes()[:HEADER])
    for place, byte in changes:
        data[place] = byte
    path = tmp_path_factory.mktemp("damaged") / "m.gguf"
    path.write_bytes(data)
    try:
        layout = layout_of(path)
    except ModelLoadError as error:
        assert "m.gguf: its header cannot be read (" in str(error)  # noqa: PT017  # either of the two may come of it
    else:
        assert layout.end <= HEADER


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GGML" + bytes(20), "does not begin with GGUF"),
        (b"GGUF\x01\0\0\0" + bytes(16), "version 1, known are 2 and 3"),
        (b"GGUF\0\0\0\x03" + bytes(16), "version 50331648"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 8 + bytes(8), "claims to have 18446744073709551615 tensors"),
        (b"GGUF\x03\0\0\0" + bytes(8) + b"\xff" * 8, "claims to have 18446744073709551615 keys"),
        (b"GGUF\x03\0\0\0" + bytes(8) + b"\x01" + bytes(7) + bytes(8) + b"\x63\0\0\0", "unknown kind 99"),
        (b"GGUF\x03\0\0\0" + b"\x01" + bytes(7) + bytes(8) + bytes(8) + b"\xff" * 4, "claims to have 4294967295 dimensions"),
    ],
)
def test_what_is_no_header_is_refused_with_the_reason(tmp_path, data, reason):
    with pytest.raises(ValueError, match=reason):
        read_layout(data)
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(ModelLoadError, match=rf"m\.gguf: .*{reason}.*damaged"):
        layout_of(tmp_path / "m.gguf")


def test_an_empty_file_and_one_that_is_not_there_are_refused(tmp_path):
    (tmp_path / "m.gguf").touch()
    for name in ("m.gguf", "none.gguf"):
        with pytest.raises(ModelLoadError, match=name):
            layout_of(tmp_path / name)
