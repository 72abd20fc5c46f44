"""Parameters with which llama.cpp loads a model or makes a context, the same for a dry run as for the real load."""

from __future__ import annotations

from typing import Any

import llama_cpp

from ..models.placement import CACHE_TYPES, Placement
from ..tokens.rows import MAX_ROWS
from .backend import extra_buffers_are_safe, system_info
from .batch import BATCH_TOKENS
from .devices import has_gpu
from .rpc import layer_devices

#: How many tokens back llama.cpp's snapshots of a recurrent state reach: a usual draft. Each takes as much memory as the state.
SNAPSHOTS = 8
_GGML_TYPES = {name: getattr(llama_cpp, f"GGML_TYPE_{name.upper()}") for name in CACHE_TYPES}


def snapshots(role: str) -> int:
    """Return the snapshots that are worth their memory: an expert reads drafts in batches, a drafter writes token by token."""
    return SNAPSHOTS if role == "expert" else 0


def gpu_layers(placement: Placement) -> int:
    """Return the number of layers for the GPU: 0 without a GPU and other machines; all for ``"auto"`` where no number was chosen."""
    if not (has_gpu() or placement.rpc):
        return 0
    return -1 if placement.gpu_layers == "auto" else placement.gpu_layers


def model_parameters(placement: Placement, *, weights: bool = True) -> Any:
    """Return ``llama_model_params``. Without ``weights`` llama.cpp plans everything from the header, and reads and allocates no tensor.

    Raises SettingError for an unknown device, or a server that does not answer.
    """
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = gpu_layers(placement)
    params.use_extra_bufts = extra_buffers_are_safe(system_info()) and not placement.exact  # repacked weights round by batch size
    if placement.device is not None or placement.rpc:
        params.devices = layer_devices(placement.rpc, placement.device)
    params.no_alloc = not weights
    if not weights or not placement.mapped:
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
    return params


def context_parameters(placement: Placement, *, n_ctx: int, n_timelines: int = 1, n_threads: int = 1, n_snapshots: int = 0) -> Any:
    """Return ``llama_context_params``. ``n_ctx``: tokens of each timeline. ``n_snapshots``: tokens that a recurrent state can roll back."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = (n_ctx + placement.exact) * n_timelines  # a single token at the end may be padded, see llama/exactness.py
    params.n_seq_max = n_timelines
    # In separate caches, a batch of sessions with different numbers of tokens takes several steps. Exact sessions read one by one, each in
    # its own cache: in a common one attention sums in the order in which all have written.
    params.kv_unified = not placement.exact
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    params.type_k = params.type_v = _GGML_TYPES[placement.cache_type]
    flash = placement.wants_flash_attention
    if flash is None and not has_gpu():
        # On a CPU flash attention rounds single tokens and batches differently, enough to part strict from the expert alone in long texts.
        flash = False
    if flash is not None:
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if flash is False:
        params.n_ubatch = BATCH_TOKENS // 4  # the attention matrix of a whole ubatch is allocated, so the ubatch is small
    params.n_threads = params.n_threads_batch = n_threads
    if hasattr(params, "n_outputs_max"):  # otherwise llama.cpp plans for a full row at every position of a batch
        params.n_outputs_max = MAX_ROWS * n_timelines
    if n_snapshots and hasattr(params, "n_rs_seq"):
        params.n_rs_seq = n_snapshots  # llama.cpp makes it 0 for models without snapshots
    return params
