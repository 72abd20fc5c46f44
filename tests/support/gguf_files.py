"""Tiny GGUF files with random weights, of every kind that the tests need: one layer, a few hundred kB, written in milliseconds.

    text_model(path)       Llama with a byte-level BPE vocabulary: CONTROLS, then the 256 bytes, then WORDS, then extra_0, extra_1, ...
    textless_model(path)   Llama with ids only (tokenizer.ggml.model = no_vocab)
    recurrent_model(path)  Mamba, whose memory cannot drop its tail
    embedding_model(path)  BERT, which has no rows of logits at all
    hollow_model(path)     Llama of any size, without its weights
    shaped_model(path)     Llama with ids only, of any size; quantized(source, target, ftype) writes a copy in fewer bits
    adapter(path)          a LoRA for the Llamas above; merged_model(path) writes a Llama with it already in its weights

Every function returns ``path``. The same ``seed`` and shape give the same weights.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Mapping
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

WIDTH = 32
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ENDOFTEXT, IM_START, IM_END = range(3)
WORDS = ("th", "he", "the", "Ġthe")  # merged from bytes by MERGES; Ġ is a space in the byte-level alphabet
MERGES = ("t h", "h e", "th e", "Ġ the")
BASE_VOCABULARY = len(CONTROLS) + 256 + len(WORDS)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_id(byte: int) -> int:
    """Return the id of the token of one byte."""
    return len(CONTROLS) + byte


def text_model(
    path: Path,
    *,
    n_vocab: int = BASE_VOCABULARY,
    texts: Mapping[int, str | bytes] | None = None,
    types: Mapping[int, gguf.TokenType] | None = None,
    kind: str = "gpt2",
    pre: str = "smollm",
    bos_id: int = IM_START,
    eos_id: int = IM_END,
    add_bos: bool = False,
    add_eos: bool = False,
    chat_template: str = "",
    n_ctx_train: int = 2048,
    heads: int = 2,
    seed: int = 0,
    loud_from: int | None = None,
) -> Path:
    """Write a Llama with text.

    Args:
        texts: other texts for some ids.
        types: other types for some ids.
        kind: ``tokenizer.ggml.model``; ``llama`` is SentencePiece.
        pre: ``tokenizer.ggml.pre``.
        loud_from: the first id with far larger output rows, so that nearly always one of these ids has the largest logit.
    """
    tokens: list[str | bytes] = [*CONTROLS, *_byte_alphabet(), *WORDS]
    tokens += [f"extra_{i}" for i in range(n_vocab - len(tokens))]
    for token, text in (texts or {}).items():
        tokens[token] = text
    writer = _llama(path, n_vocab, n_ctx_train, heads, seed, loud_from)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens[:n_vocab])
    kinds = [gguf.TokenType.CONTROL] * len(CONTROLS) + [gguf.TokenType.NORMAL] * (n_vocab - len(CONTROLS))
    for token, token_type in (types or {}).items():
        kinds[token] = token_type
    writer.add_token_types(kinds)
    writer.add_token_scores([0.0] * n_vocab)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(bos_id)
    writer.add_eos_token_id(eos_id)
    writer.add_add_bos_token(add_bos)
    writer.add_add_eos_token(add_eos)
    if chat_template:
        writer.add_chat_template(chat_template)
    return _finish(writer, path)


def textless_model(
    path: Path, *, n_vocab: int = 96, n_ctx_train: int = 2048, heads: int = 1, seed: int = 0, loud_from: int | None = None
) -> Path:
    """Write a Llama whose file holds token ids and no text for them."""
    writer = _llama(path, n_vocab, n_ctx_train, heads, seed, loud_from)
    writer.add_tokenizer_model("no_vocab")
    return _finish(writer, path)


def recurrent_model(path: Path, *, n_vocab: int = 96, seed: int = 0) -> Path:
    """Write a Mamba model with ids only."""
    inner, state, kernel, rank = 2 * WIDTH, 4, 4, 2
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(n_vocab)
    writer.add_tokenizer_model("no_vocab")
    shapes = {
        "token_embd.weight": (n_vocab, WIDTH),
        "output_norm.weight": (WIDTH,),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.ssm_in.weight": (2 * inner, WIDTH),
        "blk.0.ssm_conv1d.weight": (inner, kernel),
        "blk.0.ssm_conv1d.bias": (inner,),
        "blk.0.ssm_x.weight": (rank + 2 * state, inner),
        "blk.0.ssm_dt.weight": (inner, rank),
        "blk.0.ssm_dt.bias": (inner,),
        "blk.0.ssm_a": (inner, state),
        "blk.0.ssm_d": (inner,),
        "blk.0.ssm_out.weight": (WIDTH, inner),
    }
    _add_random(writer, shapes, seed)
    return _finish(writer, path)


def embedding_model(path: Path, *, n_vocab: int = 96, seed: int = 0) -> Path:
    """Write a BERT model with ids only."""
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-5)
    writer.add_causal_attention(False)
    writer.add_vocab_size(n_vocab)
    writer.add_tokenizer_model("no_vocab")
    writer.add_token_type_count(2)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (n_vocab, WIDTH),
        "token_types.weight": (2, WIDTH),
        "position_embd.weight": (128, WIDTH),
        "token_embd_norm.weight": (WIDTH,),
        "token_embd_norm.bias": (WIDTH,),
    }
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"):
        shapes[f"blk.0.{name}.weight"] = (WIDTH, WIDTH)
        shapes[f"blk.0.{name}.bias"] = (WIDTH,)
    for name in ("attn_output_norm", "layer_output_norm"):
        shapes[f"blk.0.{name}.weight"] = shapes[f"blk.0.{name}.bias"] = (WIDTH,)
    _add_random(writer, shapes, seed)
    return _finish(writer, path)


def hollow_model(path: Path, *, width: int, layers: int, ffn: int, vocab: int = 96, n_ctx_train: int = 8192) -> Path:
    """Write the header of a Llama, and a hole of the size of its weights, which takes no space on the disk."""
    writer = _llama_header(path, vocab, n_ctx_train, heads=width // 64, width=width, layers=layers, ffn=ffn)
    writer.add_tokenizer_model("no_vocab")
    shapes = {"token_embd": (vocab, width), "output": (vocab, width)}
    for i in range(layers):
        shapes |= {f"blk.{i}.attn_{part}": (width, width) for part in ("q", "k", "v", "output")}
        shapes |= {f"blk.{i}.ffn_gate": (ffn, width), f"blk.{i}.ffn_up": (ffn, width), f"blk.{i}.ffn_down": (width, ffn)}
    for name, shape in shapes.items():
        writer.add_tensor_info(f"{name}.weight", shape, np.dtype(np.float16), 2 * math.prod(shape))
    for name in ("output_norm", *(f"blk.{i}.{part}_norm" for i in range(layers) for part in ("attn", "ffn"))):
        writer.add_tensor_info(f"{name}.weight", (width,), np.dtype(np.float32), 4 * width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, path.stat().st_size + sum(2 * math.prod(shape) for shape in shapes.values()) + 4 * width * (2 * layers + 1) + 64)
    return path


def shaped_model(path: Path, *, width: int, layers: int, ffn: int, vocab: int, n_ctx_train: int = 2048, split: int = 0) -> Path:
    """Write a Llama with ids only, of any size, in 16 bits, which llama.cpp repacks for no processor.

    ``split``: most tensors in a file; 0 for all in one.
    """
    writer = _llama_header(path, vocab, n_ctx_train, heads=width // 64, width=width, layers=layers, ffn=ffn, split=split)
    writer.add_tokenizer_model("no_vocab")
    rng = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, (rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))).astype(np.float16))

    for name in ("output_norm", *(f"blk.{i}.{part}_norm" for i in range(layers) for part in ("attn", "ffn"))):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    for i in range(layers):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{part}.weight", width, width)
        for part, shape in (("ffn_gate", (ffn, width)), ("ffn_up", (ffn, width)), ("ffn_down", (width, ffn))):
            add(f"blk.{i}.{part}.weight", *shape)
    add("token_embd.weight", vocab, width)
    add("output.weight", vocab, width)
    return _finish(writer, path)


def quantized(source: Path, target: Path, ftype: int) -> Path:
    """Write a copy of a file in another quantization (llama.cpp's LLAMA_FTYPE_...), by llama.cpp's own tool."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = ftype, 1
    assert llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)) == 0
    return target


ADAPTED = ("blk.0.attn_q.weight", "blk.0.ffn_down.weight")


def adapter(
    path: Path, *, width: int = WIDTH, rank: int = 3, alpha: float = 6.0, architecture: str = "llama", kind: str = "lora", seed: int = 5
) -> Path:
    """Write a LoRA of two matrices."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", kind)
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, (a, b) in _lora(width, rank, seed).items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    return _finish(writer, path)


def merged_model(path: Path, *, scale: float = 1.0, rank: int = 3, alpha: float = 6.0, adapter_seed: int = 5, n_vocab: int = 96) -> Path:
    """Write what :func:`textless_model` writes, with what :func:`adapter` adds to its weights."""
    writer = _llama(path, n_vocab, 2048, 1, 0, None)
    writer.add_tokenizer_model("no_vocab")
    for name, (a, b) in _lora(WIDTH, rank, adapter_seed).items():
        tensor = next(tensors[name] for tensors in writer.tensors if name in tensors)
        tensor.tensor = (tensor.tensor + scale * alpha / rank * (b @ a)).astype(np.float32)
    return _finish(writer, path)


def overwrite(path: Path, key: str, number: int) -> Path:
    """Put another number in place of the 32-bit one under ``key``."""
    data = bytearray(path.read_bytes())
    place = data.index(key.encode()) + len(key) + 4
    data[place : place + 4] = (number % 2**32).to_bytes(4, "little")
    path.write_bytes(data)
    return path


def _lora(width: int, rank: int, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return a LoRA's factors of each matrix, [rank, width] and [width, rank]."""
    rng = np.random.default_rng(seed)
    return {name: tuple(rng.normal(size=shape).astype(np.float32) / 4 for shape in ((rank, width), (width, rank))) for name in ADAPTED}


def _llama_header(
    path: Path, n_vocab: int, n_ctx_train: int, heads: int, width: int = WIDTH, layers: int = 1, ffn: int = WIDTH, split: int = 0
) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split)
    writer.add_context_length(n_ctx_train)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(n_vocab)
    return writer


def _llama(path: Path, n_vocab: int, n_ctx_train: int, heads: int, seed: int, loud_from: int | None) -> gguf.GGUFWriter:
    writer = _llama_header(path, n_vocab, n_ctx_train, heads)
    shapes: dict[str, tuple[int, ...]] = {"output_norm.weight": (WIDTH,)}
    for name in ("attn_norm", "ffn_norm"):
        shapes[f"blk.0.{name}.weight"] = (WIDTH,)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        shapes[f"blk.0.{name}.weight"] = (WIDTH, WIDTH)
    shapes["token_embd.weight"] = (n_vocab, WIDTH)
    _add_random(writer, shapes, seed)
    output = np.random.default_rng(seed + 1).normal(size=(n_vocab, WIDTH)).astype(np.float32) / 2
    if loud_from is not None:
        output[loud_from:] *= 8
    writer.add_tensor("output.weight", output)
    return writer


def _add_random(writer: gguf.GGUFWriter, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
    """Add random tensors: norm weights near 1, all others scaled so that rows keep their size."""
    rng = np.random.default_rng(seed)
    for name, shape in shapes.items():
        values = rng.normal(size=shape)
        weights = 1 + values / 10 if name.endswith("norm.weight") else values / np.sqrt(shape[-1])
        writer.add_tensor(name, weights.astype(np.float32))


def _byte_alphabet() -> list[str]:
    """Return how byte-level BPE writes each byte: printable Latin-1 as itself, others as characters from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _finish(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
