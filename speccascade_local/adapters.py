"""LoRA adapters: small files that change a model's weights while it computes. Read for one model, applied to its contexts.

llama.cpp frees them with the model. Knows nothing of where they were named.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import llama_cpp

from .backend import complaint, forget_complaints
from .errors import ModelLoadError, SessionError
from .header import check_gguf


def read_adapter(model: Any, path: Path) -> Any:
    """An adapter for a loaded ``llama_model``. Raises ModelLoadError for a file that is none, or one of another model."""
    check_gguf(path)
    forget_complaints()
    adapter = llama_cpp.llama_adapter_lora_init(model, os.fsencode(path))
    if not adapter:
        raise ModelLoadError(
            f"{path}: llama.cpp cannot use this adapter: {complaint()}. It must be a LoRA in GGUF form, made for this very model"
        )
    if llama_cpp.llama_adapter_get_alora_n_invocation_tokens(adapter):
        raise ModelLoadError(f"{path}: an adapter that works only after certain words (aLoRA); choose a plain LoRA")
    return adapter


def apply_adapters(context: Any, adapters: list[Any], scales: list[float]) -> None:
    """From now on this context computes with these. Raises SessionError."""
    handles = (llama_cpp.llama_adapter_lora_p_ctypes * len(adapters))(
        *(ctypes.cast(each, llama_cpp.llama_adapter_lora_p_ctypes) for each in adapters)
    )
    code = llama_cpp.llama_set_adapters_lora(context, handles, len(adapters), (ctypes.c_float * len(scales))(*scales))
    if code != 0:
        raise SessionError(f"llama_set_adapters_lora returned {code} for {len(adapters)} adapters: {complaint()}; load without them")
