"""The child process of machine/dry_run.py: gives files to llama.cpp without their weights, and reports what it makes of them.

Reads one JSON question from stdin and writes one JSON line for each model begun, done or refused. Whatever else is printed, by llama.cpp
or anyone, goes to stderr. Knows nothing of who asks.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import sys
import weakref
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

import llama_cpp
import psutil

from ..common.errors import ModelLoadError, PairError, SpeccascadeError
from ..llama import backend
from ..llama.devices import has_gpu
from ..llama.model import apply_adapters, metadata, read_adapter, refusal
from ..llama.parameters import context_parameters, model_parameters, snapshots
from ..llama.tokenizer import Tokenizer, shared_vocab_size
from ..models.placement import Placement
from ..tokens.rows import MAX_ROWS

_DEFAULT_CONTEXT = 4096
_LEAST_MEMORY = 4 << 30
_MIB = 1 << 20
_OF_TOKENS = b"load: "
_NO_MEMORY: dict[str, Any] = {"cache": 0, "recurrent": 0, "compute": {}, "rollback": None}
_CACHE = re.compile(r"^llama_kv_cache\w*: size = +([\d.]+) MiB")
_RECURRENT = re.compile(r"^llama_memory_recurrent: size = +([\d.]+) MiB|rs_seq = \d+, layers = \d+, size = +([\d.]+) MiB")
_REORDERED = re.compile(r"_(REPACK|AMX|KLEIDIAI)\S* model buffer size")
_COMPUTE = re.compile(r"(\S+) compute buffer size = +([\d.]+) MiB")


class Heard:
    """What llama.cpp logs, but for what it says of single tokens, which may be a million lines."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []

    def __len__(self) -> int:
        return len(self._lines)

    def take(self, line: bytes) -> None:
        if not line.startswith(_OF_TOKENS):
            self._lines.append(line)

    def since(self, start: int) -> list[str]:
        return [line.decode(errors="replace").rstrip() for line in self._lines[start:]]


def main() -> None:
    """Answer the question on stdin."""
    question = json.load(sys.stdin)
    with _reports_only() as out:
        _limit_memory()
        backend.system_info()
        heard = Heard()
        backend.listen(heard.take)
        _dry_run(question, heard, out)


def _dry_run(question: dict[str, Any], heard: Heard, out: TextIO) -> None:
    def report(**what: Any) -> None:
        out.write(json.dumps(what) + "\n")
        out.flush()

    models: dict[str, Trial] = {}
    facts: dict[str, dict[str, Any]] = {}
    for role, path in question["files"].items():
        report(role=role)
        given = question["placements"].get(role)
        try:
            models[role] = Trial(Path(path), Placement.from_dict(given) if given else Placement(), heard)
            facts[role] = models[role].facts(question["n_ctx"], snapshots(role))
        except SpeccascadeError as error:
            report(role=role, error=str(error), kind=type(error).__name__)
            return
    tokenizers = {role: model.tokenizer for role, model in models.items()}
    for role in facts:
        report(role=role, facts={**facts[role], **_shared_vocab_size(role, tokenizers)})


def _shared_vocab_size(role: str, tokenizers: dict[str, Tokenizer]) -> dict[str, Any]:
    """What this role's vocabulary has in common with the expert's."""
    judge = tokenizers.get("expert")
    if judge is None or role == "expert":
        return {}
    try:
        return {"n_shared": shared_vocab_size(tokenizers[role], judge, role)}
    except PairError as error:
        return {"difference": str(error)}


class Trial:
    """One file, loaded without weights. Nothing is freed: the process ends."""

    def __init__(self, path: Path, placement: Placement, heard: Heard) -> None:
        self.path, self.placement, self.heard = path, placement, heard
        self.before, start = _resident(), len(heard)
        backend.forget_complaints()
        self.handle = llama_cpp.llama_model_load_from_file(os.fsencode(path), model_parameters(placement, weights=False))
        if not self.handle:
            raise ModelLoadError(
                f"{path}: llama.cpp cannot load this file: {backend.complaint()}. "
                "The file may be damaged or not fully downloaded; compare its size with the original's, or fetch it again"
            )
        self.reordered = any(map(_REORDERED.search, heard.since(start)))
        self.adapters = [read_adapter(self.handle, adapter) for adapter, _ in placement.lora]
        self.vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self.tokenizer = Tokenizer(path.name, self.vocab, weakref.finalize(self, int))

    def facts(self, n_ctx: int | None, n_snapshots: int) -> dict[str, Any]:
        """A RehearsedModel's fields as JSON has them."""
        trained = llama_cpp.llama_model_n_ctx_train(self.handle)
        size = max(1, min(_DEFAULT_CONTEXT if n_ctx is None else n_ctx, trained))
        refused = refusal(self.handle)
        plan = _NO_MEMORY | {"refused": refused} if refused else self._context(size, n_snapshots)
        plan["other"] = max(0, _resident() - self.before - plan["recurrent"])
        description = ctypes.create_string_buffer(256)
        llama_cpp.llama_model_desc(self.handle, description, len(description))
        template = llama_cpp.llama_model_chat_template(self.handle, None)
        architecture = metadata(self.handle, "general.architecture")
        return {
            "path": str(self.path),
            "n_ctx": size,
            "architecture": architecture,
            "description": description.value.decode(errors="replace"),
            "n_layers": llama_cpp.llama_model_n_layer(self.handle),
            "n_vocab": self.tokenizer.n_vocab,
            "n_ctx_train": trained,
            "n_parameters": llama_cpp.llama_model_n_params(self.handle),
            "n_experts": int(metadata(self.handle, f"{architecture}.expert_count") or 0),
            "weights": llama_cpp.llama_model_size(self.handle),
            "reordered": self.reordered,
            "output": MAX_ROWS * self.tokenizer.n_vocab * 4,
            "chat_template": template.decode(errors="replace") if template else None,
            "tokenizer": self._tokenizer_facts(),
            **plan,
        }

    def _context(self, n_ctx: int, n_snapshots: int) -> dict[str, Any]:
        start = len(self.heard)
        backend.forget_complaints()
        params = context_parameters(self.placement, n_ctx=n_ctx, n_threads=backend.physical_cores(), n_snapshots=n_snapshots)
        context = llama_cpp.llama_init_from_model(self.handle, params)
        if not context:
            raise ModelLoadError(
                f"{self.path}: llama.cpp cannot make a context of {n_ctx} tokens: {backend.complaint()}. Try a smaller context (--ctx)"
            )
        if self.adapters:
            apply_adapters(context, self.adapters, [scale for _, scale in self.placement.lora])
        if not llama_cpp.llama_get_memory(context):
            return _NO_MEMORY | {"refused": "this model keeps no memory of a text (an embedding model?)"}
        lines = self.heard.since(start)
        compute: Counter[str] = Counter()
        for found in filter(None, map(_COMPUTE.search, lines)):
            compute[found[1]] += _bytes(found[2])
        kept = llama_cpp.llama_n_rs_seq(context) if hasattr(llama_cpp, "llama_n_rs_seq") else 0
        recurrent = sum(_bytes(found[1] or found[2]) for found in filter(None, map(_RECURRENT.search, lines)))
        changing = llama_cpp.llama_model_is_recurrent(self.handle) or llama_cpp.llama_model_is_hybrid(self.handle)
        return {
            "cache": sum(_bytes(found[1]) for found in filter(None, map(_CACHE.search, lines))),
            "recurrent": recurrent,
            "state": recurrent // (1 + kept),
            "compute": dict(compute),
            "refused": None,
            "rollback": "snapshots" if kept else "checkpoints" if changing else "tail",
        }

    def _tokenizer_facts(self) -> dict[str, Any]:
        tokenizer, pointer = self.tokenizer, self.vocab
        special = {"bos_id": llama_cpp.llama_vocab_bos(pointer), "eos_id": llama_cpp.llama_vocab_eos(pointer)}
        named = {name: token if token >= 0 else None for name, token in special.items()}
        ends = tokenizer.end_ids
        shown = {token for token in (*ends, *named.values()) if token is not None} if tokenizer.has_text else set()
        return {
            "kind": tokenizer.kind,
            "pre": metadata(self.handle, "tokenizer.ggml.pre"),
            **named,
            "adds_bos": bool(llama_cpp.llama_vocab_get_add_bos(pointer)),
            "adds_eos": bool(llama_cpp.llama_vocab_get_add_eos(pointer)),
            "end_ids": ends,
            "texts": {token: tokenizer.token_text(token) for token in sorted(shown)},
        }


def _resident() -> int:
    """Bytes of memory that this process has."""
    return int(psutil.Process().memory_info().rss)


def _bytes(mebibytes: str) -> int:
    return round(float(mebibytes) * _MIB)


@contextlib.contextmanager
def _reports_only() -> Any:
    """The process's stdout, for reports only: who else writes there, in whatever language, writes to stderr."""
    own = os.dup(1)
    os.dup2(2, 1)
    with open(own, "w", encoding="utf-8") as out:
        yield out


def _limit_memory() -> None:
    """A file that asks for more than the machine has must not take others down: where Linux runs out, this process goes first."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    if not sys.platform.startswith("linux") or has_gpu():
        return  # drivers of GPUs reserve far more addresses than they use
    import resource

    most = max(_LEAST_MEMORY, psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
