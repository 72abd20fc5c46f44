"""GGUF weights and their vocabulary: a file in memory, loaded once and shared by all contexts over it.

Checks every return code and frees the weights once. Knows nothing of texts in the making.
"""

from __future__ import annotations

import ctypes
import logging
import os
import weakref
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import llama_cpp
from llguidance import LLTokenizer

from .backend import complaint, extra_buffers_are_safe, forget_complaints, made, physical_cores, system_info
from .errors import ModelLoadError, PromptError, SessionError

log = logging.getLogger(__name__)

#: Below this size a model is evaluated faster than threads can meet: one thread is as fast, and does not crawl on a busy machine.
ONE_THREAD_BYTES = 8_000_000


class LlamaModel:
    """Weights and vocabulary of one GGUF file.

    n_gpu_layers: layers to put on the GPU, -1 for all; without a GPU build it has no effect. on_progress: called with 0..1 while
    loading; an exception raised in it, Ctrl-C included, ends the loading cleanly.

    Raises ModelLoadError for a file that is missing, no GGUF, truncated or refused by llama.cpp, or of an architecture that cannot be
    used here.
    """

    def __init__(self, path: str | os.PathLike[str], *, n_gpu_layers: int = -1, on_progress: Callable[[float], None] | None = None) -> None:
        self.path = Path(os.path.expanduser(path))
        _check_file(self.path)
        info = system_info()
        self.n_gpu_layers = n_gpu_layers if llama_cpp.llama_supports_gpu_offload() else 0
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        params.use_extra_bufts = extra_buffers_are_safe(info)
        log.info(
            "%s: weight repacking is %s",
            self.path.name,
            "on"
            if params.use_extra_bufts
            else "off, because this llama.cpp build has AMX, which crashes on batches (llama.cpp issue 20824)",
        )
        interruption: list[BaseException] = []

        @llama_cpp.llama_progress_callback  # type: ignore[untyped-decorator]
        def progress(fraction: float, _user_data: ctypes.c_void_p) -> bool:
            try:  # ctypes would swallow the exception; the interruption must reach the caller
                if on_progress:
                    on_progress(fraction)
            except BaseException as error:
                interruption.append(error)
            return not interruption

        params.progress_callback = progress
        forget_complaints()
        load, free = llama_cpp.llama_model_load_from_file, llama_cpp.llama_model_free
        self._model = made(lambda: load(os.fsencode(self.path), params), free, interruption)
        if not self._model:
            raise ModelLoadError(
                f"{self.path}: llama.cpp cannot load this file: {complaint()}. "
                "The file may be damaged or not fully downloaded; compare its size with the original's, or fetch it again"
            )
        self._free = weakref.finalize(self, llama_cpp.llama_model_free, self._model)
        unusable = self._unusable()
        if unusable:
            self.close()
            raise ModelLoadError(f"{self.path}: {unusable}; choose a decoder-only model with plain attention")
        self._vocab_pointer = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.n_ctx_train: int = llama_cpp.llama_model_n_ctx_train(self._model)
        log.info(
            "%s: %s, %d tokens in the vocabulary, trained for a context of %d",
            self.path.name,
            self.description,
            self.n_vocab,
            self.n_ctx_train,
        )

    def _unusable(self) -> str | None:
        if llama_cpp.llama_model_has_encoder(self._model) or not llama_cpp.llama_model_has_decoder(self._model):
            return "an encoder model cannot continue a text token by token"
        if llama_cpp.llama_model_is_diffusion(self._model):
            return "a diffusion model does not write from left to right"
        if llama_cpp.llama_model_is_recurrent(self._model) or llama_cpp.llama_model_is_hybrid(self._model):
            return "a recurrent or hybrid model cannot drop the tail of its memory, which rejecting a draft needs"
        return None

    def close(self) -> None:
        """Free the weights. Sessions over this model must be closed before. Harmless when repeated."""
        self._free()

    @property
    def closed(self) -> bool:
        """Whether the weights have been freed."""
        return not self._free.alive

    @property
    def handle(self) -> Any:
        """The ``llama_model`` pointer. Raises SessionError once the model is closed, where a use would crash the process."""
        if self.closed:
            self._refuse_closed()
        return self._model

    def _refuse_closed(self) -> NoReturn:
        raise SessionError(f"{self.path.name}: this model is closed; load the pair again")

    @property
    def _vocab(self) -> Any:
        if self.closed:
            self._refuse_closed()
        return self._vocab_pointer

    # ------------------------------------------------------------------ what the file says of itself

    @cached_property
    def description(self) -> str:
        """Architecture, size and quantization in llama.cpp's words, such as ``llama 1B Q8_0``."""
        buffer = ctypes.create_string_buffer(256)
        llama_cpp.llama_model_desc(self.handle, buffer, len(buffer))
        parameters = llama_cpp.llama_model_n_params(self.handle) / 1e6
        return buffer.value.decode(errors="replace").replace("?B", f"{parameters:.2f}M")  # llama.cpp knows the usual sizes only

    @cached_property
    def default_threads(self) -> int:
        """The physical cores; 1 for a model so small that more would not help."""
        return 1 if llama_cpp.llama_model_size(self.handle) < ONE_THREAD_BYTES else physical_cores()

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja source stored in the file, if any."""
        template = llama_cpp.llama_model_chat_template(self.handle, None)
        return template.decode(errors="replace") if template else None

    # ------------------------------------------------------------------ vocabulary

    @cached_property
    def vocab_type(self) -> int:
        """llama.cpp's ``llama_vocab_type``; 0 means that the file has ids and no text."""
        kind: int = llama_cpp.llama_vocab_type(self._vocab)
        return kind

    @property
    def has_text(self) -> bool:
        """Whether ids can be turned into text and back."""
        return self.vocab_type != 0

    @cached_property
    def bos_id(self) -> int | None:
        """The id that this model wants before every text, or None when it wants none."""
        return llama_cpp.llama_vocab_bos(self._vocab) if llama_cpp.llama_vocab_get_add_bos(self._vocab) else None

    @cached_property
    def eos_id(self) -> int | None:
        """The id that this model wants after every text it reads, or None when it wants none."""
        return llama_cpp.llama_vocab_eos(self._vocab) if llama_cpp.llama_vocab_get_add_eos(self._vocab) else None

    @cached_property
    def special_texts(self) -> dict[str, str]:
        """``bos_token`` and ``eos_token`` as chat templates know them; empty text where the vocabulary has none."""
        ids = {"bos_token": llama_cpp.llama_vocab_bos(self._vocab), "eos_token": llama_cpp.llama_vocab_eos(self._vocab)}
        return {name: self.token_text(token) if self.has_text and token >= 0 else "" for name, token in ids.items()}

    @cached_property
    def control_texts(self) -> frozenset[str]:
        """The written forms of all control tokens, such as ``<|im_start|>``."""
        if not self.has_text:
            return frozenset()
        control = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        return frozenset(
            self.token_text(token) for token in range(self.n_vocab) if llama_cpp.llama_vocab_get_attr(self._vocab, token) & control
        )

    def is_end(self, token: int) -> bool:
        """Whether this id ends a text or a turn."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def token_text(self, token: int) -> str:
        """The vocabulary's entry for an id, as stored in the file (byte-level alphabets are not decoded)."""
        text: bytes = llama_cpp.llama_vocab_get_text(self._vocab, token)
        return text.decode(errors="replace")

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Text -> ids. add_special: let the vocabulary add its BOS/EOS. parse_special: read ``<|...|>`` and the like as control tokens.

        Raises PromptError for a vocabulary without text.
        """
        if not self.has_text:
            raise PromptError(f"{self.path.name} has token ids but no text vocabulary; pass the prompt as a list of ids")
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the text holds {text[error.start]!r} at position {error.start}, which is no character; "
                "it was probably not UTF-8 where it came from"
            ) from error
        room = len(data) + 2
        for _ in range(2):
            ids = (llama_cpp.llama_token * room)()
            count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, parse_special)
            if count >= 0:
                break
            room = -count  # a vocabulary that normalises text may need more ids than bytes, and says how many
        if count < 0:
            raise PromptError(
                f"llama_tokenize returned {count} for a text of {len(data)} bytes; "
                "the vocabulary of this file is damaged or unusual, please report it"
            )
        return list(ids[:count])

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes that an id stands for, possibly only a part of a UTF-8 character. special: control tokens as they are written,
        otherwise they stand for nothing.
        """
        if not self.has_text:
            return b""
        buffer = ctypes.create_string_buffer(64)
        length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:length]

    @cached_property
    def grammar_tokenizer(self) -> LLTokenizer:
        """The vocabulary as grammars need it; made when first asked for. Raises PromptError for a vocabulary without text."""
        if not self.has_text:
            raise PromptError(f"{self.path.name} has token ids but no text vocabulary, so no text can be asked to follow a grammar")
        # As llguidance.llamacpp does (its own function calls what is deprecated): control tokens are marked by a byte that no text has.
        control = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL
        marks = [b"\xff" if llama_cpp.llama_vocab_get_attr(self._vocab, token) & control else b"" for token in range(self.n_vocab)]
        return LLTokenizer.from_llamacpp(  # type: ignore[attr-defined,no-any-return]  # missing from its stubs
            tokens=[mark + self.piece(token, special=True) for token, mark in enumerate(marks)],
            vocab_ptr=self._vocab,
            tokenize_fptr=ctypes.cast(llama_cpp.llama_cpp._lib.llama_tokenize, ctypes.c_void_p).value,
            eos_token=[token for token in range(self.n_vocab) if self.is_end(token)],
            slices=None,
        )


def _check_file(path: Path) -> None:
    """Refuse early, with a better reason than llama.cpp gives, what cannot be a GGUF file."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise ModelLoadError(f"{path}: no such file; check the path, or run 'speccascade models' to see what is present") from None
    except IsADirectoryError:
        raise ModelLoadError(f"{path}: a folder; name the .gguf file itself") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelLoadError(f"{path}: cannot be read ({reason}); check its name and permissions") from error
    if not magic:
        raise ModelLoadError(f"{path}: an empty file; fetch it again")
    if magic != b"GGUF":
        raise ModelLoadError(
            f"{path}: not a GGUF file: it begins with {magic!r}, not b'GGUF'; "
            "models in other formats must be converted first (llama.cpp's convert_hf_to_gguf.py)"
        )
