"""What a walk over a header finds is what the gguf package reads; what a header claims beyond its file is refused, and quickly."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import CHATML, recurrent_model, shaped_model, text_model, textless_model

import speccascade_local
from speccascade_local.common.errors import ModelLoadError
from speccascade_local.llama.model import LlamaModel
from speccascade_local.machine.dry_run import dry_run_models
from speccascade_local.models.gguf_header import check_gguf, layers_of, read_header
from speccascade_local.models.gguf_layout import TENSOR_TYPES, layout_of, shard_paths

DEMO = Path(speccascade_local.__file__).parent / "demo"
START = b"GGUF" + struct.pack("<I", 3)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def with_value(kind: int, value: bytes, key: bytes = b"some.key") -> bytes:
    return START + struct.pack("<QQ", 0, 1) + text(key) + struct.pack("<I", kind) + value


def with_tensor(*shape: int, kind: int = 0, offset: int = 0, name: bytes = b"t", n_dimensions: int | None = None) -> bytes:
    dimensions = struct.pack("<I", len(shape) if n_dimensions is None else n_dimensions) + struct.pack(f"<{len(shape)}Q", *shape)
    return START + struct.pack("<QQ", 1, 0) + text(name) + dimensions + struct.pack("<IQ", kind, offset) + bytes(64)


def test_tensor_types_are_those_of_the_gguf_package():
    assert {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()} == TENSOR_TYPES


@pytest.mark.parametrize("write", [text_model, textless_model, recurrent_model, None])
def test_tensors_and_values_are_those_that_the_gguf_package_reads(tmp_path, write):
    path = write(tmp_path / "m.gguf") if write else DEMO / "expert.gguf"
    found, read = layout_of(path), gguf.GGUFReader(path)
    expected = [(each.name, tuple(map(int, each.shape)), int(each.tensor_type), int(each.n_bytes)) for each in read.tensors]
    assert [(each.name, each.shape, each.kind, each.size) for each in found.tensors] == expected
    assert [found.data_start + each.offset for each in found.tensors] == [int(each.data_offset) for each in read.tensors]
    for name, field in read.fields.items():
        if not name.startswith("GGUF."):
            value = field.contents()
            assert found.values[name] == (len(value) if isinstance(value, list) else value), name


def test_layers_are_counted_once_and_an_embedding_that_is_the_output_too_counts_for_both(tmp_path):
    layers = layers_of(text_model(tmp_path / "m.gguf"))
    sizes = {each.name: each.size for each in layout_of(tmp_path / "m.gguf").tensors}
    assert layers.input == sizes["token_embd.weight"]
    assert layers.output == sizes["output.weight"] + sizes["output_norm.weight"]
    assert layers.blocks == (sum(sizes.values()) - layers.input - layers.output,)
    tied = layers_of(DEMO / "drafter.gguf")
    sizes = {each.name: each.size for each in layout_of(DEMO / "drafter.gguf").tensors}
    assert "output.weight" not in sizes
    assert tied.output == sizes["token_embd.weight"] + sizes["output_norm.weight"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (START + struct.pack("<QQ", 0, 2**40), "claims 1099511627776 keys"),
        (START + struct.pack("<QQ", 0, 60_000) + bytes(99), "claims 60000 keys, with 99 bytes left in the file"),
        (START + struct.pack("<QQ", 2**63, 0), "claims 9223372036854775808 tensors"),
        (START + struct.pack("<QQ", 0, 1) + bytes(64), "a key is empty"),
        (START + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 100_000_000) + bytes(64), "a key claims 100000000 bytes"),
        (with_value(8, struct.pack("<Q", 100_000_000)), "some.key claims 100000000 bytes, with 0 left in the file"),
        (with_value(8, struct.pack("<Q", 2**64 - 1) + bytes(16)), "claims 18446744073709551615 bytes"),
        (with_value(99, bytes(8)), "'some.key' is of type 99"),
        (with_value(9, struct.pack("<IQ", 9, 1) + bytes(64)), "'some.key' is of type 9"),
        (with_value(9, struct.pack("<IQ", 8, 2**40) + bytes(64)), "claims 1099511627776 texts of some.key"),
        (with_value(9, struct.pack("<IQ", 10, 2**61) + bytes(64)), "claims 2305843009213693952 numbers of some.key"),
        (with_value(4, struct.pack("<I", 24), b"general.alignment"), "general.alignment is 24; it must be a power of two"),
        (with_value(6, struct.pack("<f", float("nan")), b"llama.norm_epsilon"), "llama.norm_epsilon is nan"),
        (with_value(6, struct.pack("<f", -1), b"llama.norm_epsilon"), "llama.norm_epsilon is -1.0"),
        (with_tensor(2**31, 2**31, 2**31), "claims the shape 2147483648 x 2147483648 x 2147483648"),
        (with_tensor(0), "claims the shape 0"),
        (with_tensor(1, n_dimensions=5), "has 5 dimensions"),
        (with_tensor(1, offset=2**63), "cut off: tensor 't' ends at byte 92233720368547"),
        (with_tensor(1000), "cut off: tensor 't' ends at byte"),
        (with_tensor(4, name=b"n" * 64), "a tensor's name claims 64 bytes"),
        (b"GGUF" + struct.pack("<I", 99), "format version is 99, not known"),
        (b"GGUF" + struct.pack(">I", 3), "big-endian"),
        (b"GGUF\x03", "it ends inside its header, at byte 5"),
    ],
)
def test_what_cannot_be_true_is_refused_with_what_was_seen(tmp_path, data, said):
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(ModelLoadError, match=r"bad\.gguf: .*fetch it again") as error:
        check_gguf(tmp_path / "bad.gguf")
    assert said in str(error.value)


@pytest.mark.parametrize("size", [2**20, 2**34])
def test_a_large_file_of_nothing_is_refused_before_it_is_read(tmp_path, size):
    path = tmp_path / "zeros.gguf"
    with path.open("wb") as file:
        file.write(START + struct.pack("<QQ", 2**16, 2**16))
        file.truncate(size)  # a hole: takes no space
    with pytest.raises(ModelLoadError, match=r"zeros\.gguf"):
        check_gguf(path)


def test_no_prefix_of_a_header_is_taken_for_a_file(tmp_path):
    whole = text_model(tmp_path / "m.gguf", chat_template=CHATML).read_bytes()
    end = layout_of(tmp_path / "m.gguf").data_start
    for length in [*range(60), *np.random.default_rng(0).integers(60, end, 200), end, len(whole) - 1]:
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(ModelLoadError, match=r"cut\.gguf: "):
            check_gguf(tmp_path / "cut.gguf")


@pytest.mark.slow
def test_a_divided_model_is_the_whole_one(tmp_path):
    whole = textless_model(tmp_path / "m.gguf")
    shaped = {"width": 64, "layers": 2, "ffn": 64, "vocab": 96}
    shaped_model(tmp_path / "one.gguf", **shaped)
    shaped_model(tmp_path / "many.gguf", **shaped, split=7)
    first = tmp_path / "many-00001-of-00003.gguf"
    check_gguf(first)
    assert layers_of(first) == layers_of(tmp_path / "one.gguf") != layers_of(whole)
    found, one = (dry_run_models({"expert": path}, n_ctx=64)["expert"] for path in (first, tmp_path / "one.gguf"))
    assert (found.weights, found.cache) == (one.weights, one.cache)
    with closing(LlamaModel(first)) as model:
        assert model.n_bytes == one.weights


@pytest.mark.parametrize("name", ["m-00001-of-00000.gguf", "m-00000-of-00002.gguf", "m-00003-of-00002.gguf", "m-00001-of-99999.gguf"])
def test_a_name_that_counts_wrongly_is_a_name_like_any_other(tmp_path, name):
    path = textless_model(tmp_path / name)
    assert shard_paths(path) == [path]
    assert [layout.path for layout in check_gguf(path)] == [path]
    assert read_header(path).architecture == "llama"


def test_texts_that_stand_for_terabytes_are_refused_before_memory_is_set_aside(tmp_path):
    length, count = 20 << 20, 60
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:  # holes: it takes no space
        file.write(START + struct.pack("<QQ", 0, count))
        for number in range(count):
            file.write(text(f"key{number}".encode()) + struct.pack("<IQ", 8, length))
            file.seek(length, 1)
        file.truncate()
    tracemalloc.start()
    with pytest.raises(ModelLoadError, match="its names and texts are longer than"):
        check_gguf(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 30
    tracemalloc.stop()


def test_all_files_of_a_divided_model_are_looked_at(tmp_path):
    whole = textless_model(tmp_path / "m.gguf").read_bytes()
    first, second = tmp_path / "big-00001-of-00002.gguf", tmp_path / "big-00002-of-00002.gguf"
    assert shard_paths(first) == [first, second]
    assert shard_paths(tmp_path / "m.gguf") == [tmp_path / "m.gguf"]
    first.write_bytes(whole)
    with pytest.raises(ModelLoadError, match=r"big-00002-of-00002\.gguf: no such file, and the model has several shards"):
        check_gguf(first)
    second.write_bytes(whole[:-1])
    with pytest.raises(ModelLoadError, match=r"big-00002-of-00002\.gguf: cut off"):
        check_gguf(first)
    second.write_bytes(whole)
    check_gguf(first)
