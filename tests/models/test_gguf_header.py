"""What a file tells unloaded is what llama.cpp finds when it is loaded."""

from __future__ import annotations

import logging
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from gguf_files import CHATML, overwrite, recurrent_model, text_model

import speccascade_local
from speccascade_local.common.errors import ModelLoadError
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.model import LlamaModel
from speccascade_local.models.gguf_header import check_gguf, header_of_size, read_header
from speccascade_local.models.gguf_layout import layout_of

DEMO = Path(speccascade_local.__file__).parent / "demo"


@pytest.mark.parametrize("name", ["drafter.gguf", "expert.gguf"])
def test_sizes_are_those_of_the_loaded_model(name, caplog):
    header = read_header(DEMO / name)
    model = LlamaModel(DEMO / name)
    with caplog.at_level(logging.DEBUG):
        context = LlamaContext(model, n_ctx=256)
    held = sum(float(size) for size in re.findall(r"KV buffer size\s*=\s*([\d.]+) MiB", caplog.text))
    assert header.weights == model.n_bytes
    assert (header.n_vocab, header.n_ctx_train) == (model.n_vocab, model.n_ctx_train)
    assert header.architecture == "llama"
    assert header.quantization == "Q8_0"
    assert 256 * header.cache_bytes / 2**20 == pytest.approx(held, abs=0.02)
    assert 0 < header.token_bytes <= header.weights
    context.close()
    model.close()


def test_a_row_of_the_embedding_is_all_that_a_token_reads_of_it(tmp_path):
    header = read_header(text_model(tmp_path / "m.gguf", chat_template=CHATML))
    assert header.token_bytes < header.weights, "its output has weights of its own"


def test_of_a_mixture_of_experts_a_token_reads_those_in_use(tmp_path):
    path = tmp_path / "mixture.gguf"
    writer = GGUFWriter(path, "llama")
    for name, number in (("block_count", 1), ("embedding_length", 8), ("context_length", 64), ("attention.head_count", 2)):
        writer.add_uint32(f"llama.{name}", number)
    writer.add_uint32("llama.expert_count", 8)
    writer.add_uint32("llama.expert_used_count", 2)
    writer.add_token_list(["a"] * 10)
    shapes = {"token_embd.weight": (10, 8), "output.weight": (10, 8), "blk.0.ffn_up_exps.weight": (8, 4, 8), "blk.0.attn_q.weight": (8, 8)}
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(path)
    assert header.weights == 4 * (80 + 80 + 256 + 64)
    assert header.token_bytes == 4 * (80 + 256 * 2 // 8 + 64)


def test_a_model_without_attention_has_no_growing_cache(tmp_path):
    assert read_header(recurrent_model(tmp_path / "r.gguf")).cache_bytes == 0


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"", "empty"), (b"PK\x03\x04 zip", "not a GGUF file"), (b"GGUF\x03\x00\x00\x00" + b"\x01" * 40, "cannot be read")],
)
def test_what_is_no_whole_file_is_refused_with_its_name(tmp_path, data, said):
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(ModelLoadError, match=rf"bad\.gguf: .*{said}"):
        read_header(tmp_path / "bad.gguf")


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    whole = (DEMO / "expert.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelLoadError, match=r"cut\.gguf: cut off: tensor .* fetch it again"):
        read_header(tmp_path / "cut.gguf")


def test_lists_stand_where_the_gguf_package_finds_them(tmp_path):
    path = text_model(tmp_path / "m.gguf", chat_template=CHATML)
    fields = {name: field for name, field in GGUFReader(path).fields.items() if not name.startswith("GGUF.")}
    layout = layout_of(path)
    assert layout.values.keys() == fields.keys()
    for name, place in layout.lists.items():
        assert place.count == layout.values[name] == len(fields[name].data)
        if place.kind != 8:
            assert layout.numbers(name) == fields[name].contents()
        else:
            assert path.read_bytes()[place.start + 8 :].startswith(fields[name].contents()[0].encode())
    assert {name: value for name, value in layout.values.items() if name not in layout.lists} == {
        name: field.contents() for name, field in fields.items() if name not in layout.lists
    }


def test_reading_may_stop_at_a_list_whose_length_is_all_that_is_wanted(tmp_path):
    path = text_model(tmp_path / "m.gguf", n_vocab=300)
    layout = layout_of(path, until="tokenizer.ggml.tokens")
    assert layout.values["tokenizer.ggml.tokens"] == 300
    assert "tokenizer.ggml.merges" not in layout.values
    assert (layout.n_tensors, layout.tensors) == (len(layout_of(path).tensors), ())
    path.write_bytes(path.read_bytes()[: layout.lists["tokenizer.ggml.tokens"].start + 300 * 8])
    assert layout_of(path, until="tokenizer.ggml.tokens") == layout
    with pytest.raises(ModelLoadError):
        layout_of(path)


def test_a_number_for_each_layer_is_read_as_such(tmp_path):
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    for key, value in {"block_count": 3, "embedding_length": 64, "context_length": 9, "vocab_size": 8, "attention.head_count": 4}.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_array("llama.attention.head_count_kv", [4, 2, 0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert read_header(tmp_path / "m.gguf").cache_bytes == (4 + 2 + 0) * 2 * (64 // 4) * 2


@pytest.mark.parametrize(
    ("key", "number", "said"),
    [
        ("llama.block_count", 3 * 10**8, "allowed are whole numbers from 1 to 512"),
        ("llama.block_count", 2**32 - 1, "from 1 to 512"),
        ("llama.block_count", 0, "from 1 to 512"),
        ("llama.context_length", 2**32 - 1, "from 1 to 2147483647"),
        ("llama.context_length", 0, "from 1 to 2147483647"),
        ("llama.embedding_length", 2**32 - 1, "from 1 to 16777216"),
        ("llama.attention.head_count", 2**31 - 1, "from 0 to 65536"),
        ("llama.attention.head_count_kv", 2**32 - 1, "from 0 to 65536"),
        ("llama.vocab_size", 2**32 - 1, "from 0 to 2147483647"),
    ],
)
def test_a_number_that_no_model_has_is_refused_wherever_a_file_is_read(tmp_path, key, number, said):
    path = overwrite(text_model(tmp_path / "m.gguf"), key, number)
    tracemalloc.start()
    for read in (read_header, check_gguf, LlamaModel, layers_and_header):
        with pytest.raises(ModelLoadError, match=rf"m\.gguf: its header cannot be true: {key} is {number}; .*{said}"):
            read(path)
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


def layers_and_header(path: Path) -> None:
    speccascade_local.load(drafter=DEMO / "drafter.gguf", expert=path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("llama.attention.head_count_kv", [1] * 100_000, "a list of 100000; allowed is one number for each layer"),
        ("llama.attention.head_count_kv", ["1"], "a list of 1;"),
        ("llama.attention.head_count_kv", [-1], "is -1; allowed"),
        ("llama.attention.head_count_kv", 0.5, "is 0.5; allowed"),
        ("llama.block_count", True, "is True; allowed"),
        ("llama.block_count", "9" * 10_000, "is '999"),
        ("general.architecture", "l" * 10_000, "must be a short name"),
    ],
)
def test_values_of_another_kind_are_refused_in_few_words(tmp_path, key, value, said):
    writer = GGUFWriter(tmp_path / "m.gguf", "llama" if key.startswith("llama") else value)
    if key.startswith("llama"):
        kinds = {bool: writer.add_bool, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        kinds[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelLoadError, match=said) as refused:
        check_gguf(tmp_path / "m.gguf")
    assert len(str(refused.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "size"),
    [("4.9GB", 4_900_000_000), ("512 MiB", 2**29), ("7gb", 7_000_000_000), ("GB", None), ("4.9", None), ("big.gguf", None)],
)
def test_a_size_stands_for_a_file_that_is_not_there(text, size):
    found = header_of_size(Path(text))
    assert (found and (found.weights, found.token_bytes, found.cache_bytes)) == (size and (size, size, 0))


def test_a_file_whose_name_is_a_size_is_read(tmp_path):
    assert header_of_size(tmp_path / "1GB") is None, "a path is no size"
    (tmp_path / "1GB").write_bytes(b"")
    assert header_of_size(tmp_path / "1GB") is None
