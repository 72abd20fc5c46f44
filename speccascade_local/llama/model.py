"""GGUF weights: a file in memory, loaded once and shared by all contexts over it. Every return code is checked."""

from __future__ import annotations

import ctypes
import logging
import os
import weakref
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp

from ..common.errors import ModelLoadError, SessionError
from ..common.files import expand_user
from ..models.gguf_header import check_gguf, check_model
from ..models.placement import Placement
from .backend import attribute_aborts_to, complaint, create, forget_complaints, free, physical_cores, require_own_process
from .parameters import model_parameters
from .tokenizer import Tokenizer

log = logging.getLogger(__name__)

#: Below this size one thread is as fast as several, which would wait for one another, and much faster on a busy machine.
ONE_THREAD_BYTES = 8_000_000


class LlamaModel:
    """Weights of one GGUF file, and their ``tokenizer``.

    Args:
        path: the file.
        placement: where its layers go, the type of its cache, its adapters.
        on_progress: called with 0..1 while loading; an exception in it, Ctrl-C included, ends the loading cleanly.

    Raises:
        ModelLoadError: the file is missing, no GGUF, truncated, refused by llama.cpp, or of an unsupported architecture.
        SettingError: an unknown device.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, placement: Placement | None = None, on_progress: Callable[[float], None] | None = None
    ) -> None:
        self.path = expand_user(path)
        self.placement = placement or Placement()
        check_model(self.path)
        params = model_parameters(self.placement)
        off = "off, because this llama.cpp build has AMX, which crashes on batches (llama.cpp issue 20824)"
        log.info("%s: weight repacking is %s", self.path.name, "on" if params.use_extra_bufts else off)
        interrupts: list[BaseException] = []

        @llama_cpp.llama_progress_callback  # type: ignore[untyped-decorator]
        def progress(fraction: float, _user_data: ctypes.c_void_p) -> bool:
            try:  # ctypes would swallow the exception; the interruption must reach the caller
                if on_progress:
                    on_progress(fraction)
            except BaseException as error:
                interrupts.append(error)
            return not interrupts

        params.progress_callback = progress
        forget_complaints()
        load, release = llama_cpp.llama_model_load_from_file, llama_cpp.llama_model_free
        with attribute_aborts_to(self.path):
            self._model = create(lambda: load(os.fsencode(self.path), params), release, interrupts)
        if not self._model:
            raise ModelLoadError(
                f"{self.path}: llama.cpp cannot load this file: {complaint()}. "
                "The file may be damaged or not fully downloaded; compare its size with the original, or fetch it again"
            )
        self._free = weakref.finalize(self, free, release, self._model)
        if reason := refusal(self._model):
            self.close()
            raise ModelLoadError(f"{self.path}: {reason}; choose a decoder-only model that writes from left to right")
        try:
            self.adapters = [read_adapter(self._model, expand_user(path)) for path, _ in self.placement.lora]
        except BaseException:
            self.close()
            raise
        self.tokenizer = Tokenizer(self.path.name, llama_cpp.llama_model_get_vocab(self._model), self._free)
        self.n_vocab = self.tokenizer.n_vocab
        self.n_ctx_train: int = llama_cpp.llama_model_n_ctx_train(self._model)
        facts = self.path.name, self.description, self.n_vocab, self.n_ctx_train
        log.info("%s: %s, %d tokens in the vocabulary, trained for a context of %d", *facts)

    def close(self) -> None:
        """Free the weights, after all sessions over them. Harmless when repeated."""
        self._free()

    @property
    def closed(self) -> bool:
        """Whether the weights have been freed."""
        return not self._free.alive

    @property
    def handle(self) -> Any:
        """The ``llama_model`` pointer. Raises SessionError where its use would crash the process: when closed, or in a fork."""
        require_own_process()
        if self.closed:
            raise SessionError(f"{self.path.name}: this model is closed; load the pair again")
        return self._model

    # ------------------------------------------------------------------ facts of the file

    @cached_property
    def description(self) -> str:
        """Architecture, size and quantization in llama.cpp's words, such as ``llama 1B Q8_0``."""
        buffer = ctypes.create_string_buffer(256)
        llama_cpp.llama_model_desc(self.handle, buffer, len(buffer))
        parameters = llama_cpp.llama_model_n_params(self.handle) / 1e6
        return buffer.value.decode(errors="replace").replace("?B", f"{parameters:.2f}M")  # llama.cpp knows the usual sizes only

    @cached_property
    def n_bytes(self) -> int:
        """The size of all weights."""
        return int(llama_cpp.llama_model_size(self.handle))

    @cached_property
    def is_recurrent(self) -> bool:
        """Whether some of its layers keep one state of the whole text instead of a cache with an entry per token."""
        return bool(llama_cpp.llama_model_is_recurrent(self.handle) or llama_cpp.llama_model_is_hybrid(self.handle))

    @cached_property
    def default_threads(self) -> int:
        """The physical cores; 1 for a tiny model."""
        return 1 if self.n_bytes < ONE_THREAD_BYTES else physical_cores()

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja source stored in the file, if any."""
        template = llama_cpp.llama_model_chat_template(self.handle, None)
        return template.decode(errors="replace") if template else None


def refusal(model: Any) -> str | None:
    """Return why a loaded ``llama_model`` cannot be used with drafts, or None."""
    if llama_cpp.llama_model_has_encoder(model) or not llama_cpp.llama_model_has_decoder(model):
        return "an encoder model cannot continue a text token by token"
    if llama_cpp.llama_model_is_diffusion(model):
        return "a diffusion model does not write from left to right"
    if metadata(model, f"{metadata(model, 'general.architecture')}.attention.causal") == "false":
        return "an embedding model reads a text both ways and writes none"
    return None


def metadata(model: Any, name: str) -> str:
    """Return the value of a key of a loaded ``llama_model``'s file; empty where it is missing."""
    buffer = ctypes.create_string_buffer(256)
    length = llama_cpp.llama_model_meta_val_str(model, name.encode(), buffer, len(buffer))
    return buffer.value.decode(errors="replace") if length >= 0 else ""


def read_adapter(model: Any, path: Path) -> Any:
    """Load an adapter for a loaded ``llama_model``. Raises ModelLoadError for a file that is none, or one of another model."""
    check_gguf(path)
    forget_complaints()
    adapter = llama_cpp.llama_adapter_lora_init(model, os.fsencode(path))
    if not adapter:
        raise ModelLoadError(
            f"{path}: llama.cpp cannot use this adapter: {complaint()}. It must be a LoRA in GGUF form, made for this model"
        )
    if llama_cpp.llama_adapter_get_alora_n_invocation_tokens(adapter):
        raise ModelLoadError(f"{path}: an adapter that works only after certain words (aLoRA); choose a plain LoRA")
    return adapter


def apply_adapters(context: Any, adapters: list[Any], scales: list[float]) -> None:
    """Use adapters in a context from now on. Raises SessionError."""
    handles = (llama_cpp.llama_adapter_lora_p_ctypes * len(adapters))(
        *(ctypes.cast(each, llama_cpp.llama_adapter_lora_p_ctypes) for each in adapters)
    )
    code = llama_cpp.llama_set_adapters_lora(context, handles, len(adapters), (ctypes.c_float * len(scales))(*scales))
    if code != 0:
        raise SessionError(f"llama_set_adapters_lora returned {code} for {len(adapters)} adapters: {complaint()}; load without them")
