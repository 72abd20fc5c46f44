"""GGUF weights, and a timeline over them: the only module that touches llama.cpp.

:class:`LlamaModel` is a file in memory: weights, vocabulary, chat template; loaded once and shared. :class:`LlamaSession` is one
sequence of tokens in a context of its own, that can grow (``extend``) and drop its tail (``rewind``). Both sit on the raw
``llama_*`` calls, check every return code, and free what they hold exactly once: batch, context, model, in that order.
Knows nothing of pairs, rules or sampling. One session must not be used by two threads at once.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NoReturn

import llama_cpp
import numpy as np
import psutil
from llguidance import LLTokenizer

from .errors import ContextOverflowError, ModelLoadError, PromptError, SessionError, SettingError
from .sampling import Array

log = logging.getLogger(__name__)

#: The most rows that one call of ``extend`` can return, and so one more than the longest draft.
MAX_ROWS = 65
BATCH_TOKENS = 512

_recent_complaints: deque[str] = deque(maxlen=8)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
    line = text.decode(errors="replace").rstrip()
    if line:
        log.debug("llama.cpp: %s", line)
        if level in (3, 4):  # GGML_LOG_LEVEL_WARN, GGML_LOG_LEVEL_ERROR
            _recent_complaints.append(line)


@lru_cache(maxsize=1)
def system_info() -> str:
    """llama.cpp's own line about the instruction sets of this build. Starts the backend when first called."""
    llama_cpp.llama_log_set(_on_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    info: bytes = llama_cpp.llama_print_system_info()
    return info.decode(errors="replace").strip()


def llama_cpp_version() -> str:
    """The version of the bindings, which fixes that of llama.cpp."""
    return str(llama_cpp.__version__)


def extra_buffers_are_safe(info: str) -> bool:
    """Whether weights may be repacked for this CPU.

    A GCC build with AMX dies with SIGSEGV at the first batch of two or more tokens of a quantized model, because the tile
    configuration is optimised away (llama.cpp issue 20824). The build itself says whether it has AMX, so nothing has to
    crash to find out.
    """
    return "AMX_INT8 = 1" not in info


def physical_cores() -> int:
    """Physical cores that this process may run on: more threads than that make llama.cpp slower."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return max(1, min(cores, allowed))


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
        _recent_complaints.clear()
        with _interrupts_noted(interruption):
            self._model = llama_cpp.llama_model_load_from_file(os.fsencode(self.path), params)
        if interruption:
            if self._model:
                llama_cpp.llama_model_free(self._model)
            raise interruption[0]
        if not self._model:
            raise ModelLoadError(
                f"{self.path}: llama.cpp cannot load this file: {_complaint()}. "
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


class LlamaSession:
    """One sequence of tokens over a model: the real :class:`~speccascade_local.drafting.Session`.

    n_ctx: how many tokens it can hold. n_threads: for single tokens and for batches alike (a draft is verified as a batch), until
    ``set_threads`` says otherwise; None for the model's default. n_vocab: crops the rows to fewer ids, for a partner with a slightly
    smaller vocabulary.

    Raises SessionError when the context cannot be made, which mostly means that memory is short.
    """

    def __init__(self, model: LlamaModel, *, n_ctx: int, n_threads: int | None = None, n_vocab: int | None = None) -> None:
        self.model = model
        self.n_vocab = n_vocab or model.n_vocab
        self.n_ctx = n_ctx  # llama.cpp rounds the size of a context up; what was asked for is the limit that users see
        self.tokens: list[int] = []
        self.named_threads = n_threads  # what the user asked for, if anything
        self._padding: Mapping[int, int] = {}
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        if not llama_cpp.llama_supports_gpu_offload():
            # On the CPU, flash attention rounds single tokens and batches differently, by enough to part strict from the expert
            # alone in long texts. Without it the attention matrix of a whole ubatch is held, so that is kept small.
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.n_ubatch = BATCH_TOKENS // 4
        params.n_threads = params.n_threads_batch = n_threads or model.default_threads
        log.info("%s: a context of %d tokens, threads: %d", model.path.name, n_ctx, params.n_threads)
        if hasattr(params, "n_outputs_max"):  # otherwise llama.cpp plans for a full row at every position of a batch
            params.n_outputs_max = MAX_ROWS
        _recent_complaints.clear()
        interruption: list[BaseException] = []
        with _interrupts_noted(interruption):
            self._ctx = llama_cpp.llama_init_from_model(model.handle, params)
        if interruption:
            if self._ctx:
                llama_cpp.llama_free(self._ctx)
            raise interruption[0]
        if not self._ctx:
            raise SessionError(
                f"{model.path.name}: llama.cpp cannot make a context of {n_ctx} tokens: {_complaint()}. "
                "Try a smaller context (--ctx) or a smaller model"
            )
        self._free_ctx = weakref.finalize(self, _free_context, self._ctx, model)
        try:
            self._prepare()
        except BaseException:
            self._free_ctx()  # now, not when collected: the caller may free the model first
            raise

    def _prepare(self) -> None:
        self._memory = llama_cpp.llama_get_memory(self._ctx)
        if not self._memory:
            raise ModelLoadError(
                f"{self.model.path}: this model keeps no memory of a text (an embedding model?); choose one that generates"
            )
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._free_batch = weakref.finalize(self, llama_cpp.llama_batch_free, self._batch)
        self._ids = np.ctypeslib.as_array(self._batch.token, (BATCH_TOKENS,))
        self._positions = np.ctypeslib.as_array(self._batch.pos, (BATCH_TOKENS,))
        self._wanted = np.ctypeslib.as_array(self._batch.logits, (BATCH_TOKENS,))
        np.ctypeslib.as_array(self._batch.n_seq_id, (BATCH_TOKENS,))[:] = 1
        for i in range(BATCH_TOKENS):
            self._batch.seq_id[i][0] = 0
        self._views: dict[tuple[int, int], Array] = {}  # by address and number of rows

    def __len__(self) -> int:
        return len(self.tokens)

    def close(self) -> None:
        """Free batch and context. Harmless when repeated; the model stays."""
        self._free_batch()
        self._free_ctx()

    @property
    def threads(self) -> int:
        """For single tokens."""
        self._require_open()
        return int(llama_cpp.llama_n_threads(self._ctx))

    @property
    def batch_threads(self) -> int:
        """For two tokens and more."""
        self._require_open()
        return int(llama_cpp.llama_n_threads_batch(self._ctx))

    def set_threads(self, single: int, batch: int) -> None:
        """Evaluate single tokens and batches by so many threads from now on. Raises SettingError below 1."""
        self._require_open()
        if min(single, batch) < 1:
            raise SettingError(f"threads are {single} and {batch}; at least 1 is needed of each")
        llama_cpp.llama_set_n_threads(self._ctx, single, batch)

    def pad_batches(self, sizes: Mapping[int, int]) -> None:
        """From now on evaluate n tokens as a batch of ``sizes[n]``, where a larger batch is the faster one; an empty mapping ends it.

        What is appended is dropped again at once: nobody sees it, and the real tokens, which stand before it, do not either. Where the
        context has no room for it, it is left out. Raises SettingError for a size below n or above 512.
        """
        for n, size in sizes.items():
            if not 1 <= n <= size <= BATCH_TOKENS:
                raise SettingError(f"a batch of {n} cannot be padded to {size}; the size must be from {n} (at least 1) to {BATCH_TOKENS}")
        self._padding = dict(sizes)

    def extend(self, tokens: list[int], keep: int) -> Array:
        """Append ``tokens``; the logits after each of the last ``keep`` of them, [keep, n_vocab] float32.

        The rows are a view into llama.cpp's buffer, valid until the next call. One llama_decode where the batch allows (512
        tokens), else several, the kept rows always within the last. If anything fails, or Ctrl-C arrives, the session holds
        what it held before.

        Raises SessionError for a closed session or a failed evaluation, PromptError for ids outside the vocabulary,
        ContextOverflowError when the context is too small, SettingError for a ``keep`` outside 1..min(len(tokens), 65).
        """
        self._require_open()
        if not 1 <= keep <= min(len(tokens), MAX_ROWS):
            raise SettingError(f"keep is {keep}; it must be between 1 and min(number of tokens, {MAX_ROWS}) = {min(len(tokens), MAX_ROWS)}")
        if not (min(tokens) >= 0 and max(tokens) < self.model.n_vocab):
            raise PromptError(f"token ids run from {min(tokens)} to {max(tokens)}; this vocabulary has 0 to {self.model.n_vocab - 1}")
        held = len(self.tokens)
        if held + len(tokens) > self.n_ctx:
            raise ContextOverflowError(
                f"{held} tokens held and {len(tokens)} more do not fit a context of {self.n_ctx}; "
                "shorten the text or load with a larger context (--ctx)"
            )
        try:
            done = 0
            while len(tokens) - done > BATCH_TOKENS:
                # The kept rows must come out of one llama_decode, so the chunk before the last one leaves enough of them.
                size = min(BATCH_TOKENS, len(tokens) - done - keep)
                self._decode(tokens[done : done + size], 0)
                done += size
            self._decode(tokens[done:], keep)
        except BaseException:
            self._drop(held)
            raise
        return self._logits(keep)

    def _logits(self, keep: int) -> Array:
        """The first ``keep`` rows of llama.cpp's buffer. The array over them is kept: making one takes longer than a small row is worth."""
        buffer = llama_cpp.llama_get_logits(self._ctx)
        place = ctypes.addressof(buffer.contents), keep
        if place not in self._views:
            rows: Array = np.ctypeslib.as_array(buffer, (keep, self.model.n_vocab))
            self._views[place] = rows[:, : self.n_vocab]
        return self._views[place]

    def _decode(self, tokens: list[int], keep: int) -> None:
        n, held = len(tokens), len(self.tokens)
        size = self._padding.get(n, n) if keep else n
        if held + size > self.n_ctx:
            size = n
        self.tokens += tokens  # first, so that an interruption right after llama_decode still knows what to drop
        self._ids[:n] = tokens
        self._ids[n:size] = tokens[-1]
        self._positions[:size] = np.arange(held, held + size)
        self._wanted[:size] = 0
        self._wanted[n - keep : n] = 1
        self._batch.n_tokens = size
        _recent_complaints.clear()
        code = llama_cpp.llama_decode(self._ctx, self._batch)
        if code != 0:
            meaning = {1: "no room in the cache", 2: "aborted", -1: "invalid batch"}.get(code, "evaluation failed")
            raise SessionError(
                f"{self.model.path.name}: llama_decode returned {code} ({meaning}) for {size} tokens at position {held}: {_complaint()}"
            )
        if size > n:
            self._drop(held + n)

    def rewind(self, length: int) -> None:
        """Forget everything after the first ``length`` tokens. Raises SessionError when the model cannot."""
        self._require_open()
        if not 0 <= length <= len(self.tokens):
            raise SettingError(f"cannot rewind to {length}; the session holds {len(self.tokens)} tokens")
        if length < len(self.tokens):
            self._drop(length)

    def _require_open(self) -> None:
        if not self._free_ctx.alive or self.model.closed:
            raise SessionError(f"{self.model.path.name}: this session is closed; load the pair again")

    def _drop(self, length: int) -> None:
        if not llama_cpp.llama_memory_seq_rm(self._memory, 0, length, -1):
            raise SessionError(
                f"{self.model.path.name}: llama.cpp cannot drop the tail of this model's memory "
                f"(from {len(self.tokens)} to {length} tokens); its architecture does not allow rejecting drafts"
            )
        del self.tokens[length:]


def _free_context(context: Any, _model: LlamaModel) -> None:
    """A finalizer that holds the model: even when both end up in a reference cycle, the weights are freed after the context."""
    llama_cpp.llama_free(context)


@contextmanager
def _interrupts_noted(noted: list[BaseException]) -> Iterator[None]:
    """Within the block Ctrl-C is appended to ``noted``.

    While llama.cpp loads a model or makes a context, Python runs only inside callbacks (progress, log), where ctypes would swallow a
    KeyboardInterrupt. An application's own handler is left alone.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda _signal, _frame: noted.append(KeyboardInterrupt()))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


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


def _complaint() -> str:
    """What llama.cpp warned of last, a few lines: the first tend to be the cause, the last say that it failed."""
    return "; ".join(dict.fromkeys(_recent_complaints)) or "no reason given"
