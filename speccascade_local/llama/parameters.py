"""What llama.cpp is told when it loads a model or makes a context: the same for a rehearsal as for the real thing.

Knows nothing of what becomes of either.
"""

from __future__ import annotations

from typing import Any

import llama_cpp

from ..models.placement import CACHE_TYPES, Placement
from ..tokens.rows import MAX_ROWS
from .backend import extra_buffers_are_safe, system_info
from .batch import BATCH_TOKENS
from .devices import has_gpu
from .rpc import holders

#: So many tokens back llama.cpp's own snapshots of a recurrent state reach: a usual draft. Each takes as much memory as the state itself.
SNAPSHOTS = 8
_GGML_TYPES = {name: getattr(llama_cpp, f"GGML_TYPE_{name.upper()}") for name in CACHE_TYPES}


def snapshots(role: str) -> int:
    """How many are worth their memory: those who judge drafts read them in one batch, those who only write do so token by token."""
    return SNAPSHOTS if role == "expert" else 0


def gpu_layers(placement: Placement) -> int:
    """How many llama.cpp is asked for; 0 without a GPU and other machines. What is ``"auto"`` is all, unless it was settled before."""
    if not (has_gpu() or placement.rpc):
        return 0
    return -1 if placement.gpu_layers == "auto" else placement.gpu_layers


def model_parameters(placement: Placement, *, weights: bool = True) -> Any:
    """``weights`` False: the file's header is read and everything planned, but no tensor is read or given memory.

    Raises SettingError for a device that there is not, and a server that does not answer.
    """
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = gpu_layers(placement)
    params.use_extra_bufts = extra_buffers_are_safe(system_info()) and not placement.exact  # repacked weights are rounded by batch size
    if placement.device is not None or placement.rpc:
        params.devices = holders(placement.rpc, placement.device)
    params.no_alloc = not weights
    if not weights or not placement.mapped:
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
    return params


def context_parameters(placement: Placement, *, n_ctx: int, n_timelines: int = 1, n_threads: int = 1, n_snapshots: int = 0) -> Any:
    """n_ctx: tokens of each timeline. n_snapshots: how many tokens a recurrent memory should be able to go back, where it keeps such."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = (n_ctx + placement.exact) * n_timelines  # a single token at the end may be padded, see llama/exactness.py
    params.n_seq_max = n_timelines
    # Else a batch of sessions that read different numbers of tokens is evaluated in several steps. Exact ones read one by one, and in a
    # cache of their own: in a common one attention sums in the order in which all have written.
    params.kv_unified = not placement.exact
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    params.type_k = params.type_v = _GGML_TYPES[placement.cache_type]
    flash = placement.wants_flash_attention
    if flash is None and not has_gpu():
        # On the CPU, flash attention rounds single tokens and batches differently, by enough to part strict from the expert
        # alone in long texts.
        flash = False
    if flash is not None:
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if flash is False:
        params.n_ubatch = BATCH_TOKENS // 4  # the attention matrix of a whole ubatch is held, so that is kept small
    params.n_threads = params.n_threads_batch = n_threads
    if hasattr(params, "n_outputs_max"):  # otherwise llama.cpp plans for a full row at every position of a batch
        params.n_outputs_max = MAX_ROWS * n_timelines
    if n_snapshots and hasattr(params, "n_rs_seq"):
        params.n_rs_seq = n_snapshots  # llama.cpp makes 0 of it for models that have none
    return params
