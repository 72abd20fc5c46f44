"""The child process of machine/dry_run.py: loads files in llama.cpp without their weights, and reports what they need.

Input: one question as JSON. Output: a line of JSON for each model begun, done or refused. Everything else that is printed goes to stderr.
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
from ..llama import backend, parameters
from ..llama.devices import has_gpu
from ..llama.model import apply_adapters, metadata, read_adapter, refusal
from ..llama.parameters import context_parameters, model_parameters
from ..llama.rollback import snapshots_of
from ..llama.tokenizer import Tokenizer, shared_vocab_size
from ..models.placement import DEFAULT_CONTEXT, Placement
from ..tokens.rows import MAX_ROWS

_LEAST_MEMORY = 4 << 30
_MIB = 1 << 20
_OF_TOKENS = b"load: "
_NO_MEMORY: dict[str, Any] = {"cache": 0, "recurrent": 0, "compute": {}, "rollback": None}
_CACHE = re.compile(r"^llama_kv_cache\w*: size = +([\d.]+) MiB")
_RECURRENT = re.compile(r"^llama_memory_recurrent: size = +([\d.]+) MiB|rs_seq = \d+, layers = \d+, size = +([\d.]+) MiB")
_REORDERED = re.compile(r"_(REPACK|AMX|KLEIDIAI)\S* model buffer size")
_COMPUTE = re.compile(r"(\S+) compute buffer size = +([\d.]+) MiB")


class LogLines:
    """What llama.cpp logs, except lines about single tokens, which may be a million."""

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
        lines = LogLines()
        backend.listen(lines.take)
        _dry_run(question, lines, out)


def _dry_run(question: dict[str, Any], lines: LogLines, out: TextIO) -> None:
    def report(**what: Any) -> None:
        out.write(json.dumps(what) + "\n")
        out.flush()

    models: dict[str, LoadTrial] = {}
    facts: dict[str, dict[str, Any]] = {}
    for role, path in question["files"].items():
        report(role=role)
        given = question["placements"].get(role)
        try:
            models[role] = LoadTrial(Path(path), Placement.from_dict(given) if given else Placement(), lines)
            facts[role] = models[role].facts(question["n_ctx"], parameters.snapshots(role))
        except SpeccascadeError as error:
            report(role=role, error=str(error), kind=type(error).__name__)
            return
    tokenizers = {role: model.tokenizer for role, model in models.items()}
    for role in facts:
        report(role=role, facts={**facts[role], **_shared_vocab_size(role, tokenizers)})


def _shared_vocab_size(role: str, tokenizers: dict[str, Tokenizer]) -> dict[str, Any]:
    """Return the number of ids that a role shares with the expert, or the difference."""
    expert = tokenizers.get("expert")
    if expert is None or role == "expert":
        return {}
    try:
        return {"n_shared": shared_vocab_size(tokenizers[role], expert)}
    except PairError as error:
        return {"difference": str(error)}


class LoadTrial:
    """One file, loaded without weights. Nothing is freed: the process ends."""

    def __init__(self, path: Path, placement: Placement, lines: LogLines) -> None:
        self.path, self.placement, self.lines = path, placement, lines
        self.before, start = _resident(), len(lines)
        backend.forget_complaints()
        self.handle = llama_cpp.llama_model_load_from_file(os.fsencode(path), model_parameters(placement, weights=False))
        if not self.handle:
            raise ModelLoadError(
                f"{path}: llama.cpp cannot load this file: {backend.complaint()}. "
                "The file may be damaged or not fully downloaded; compare its size with the original, or fetch it again"
            )
        self.reordered = any(map(_REORDERED.search, lines.since(start)))
        self.adapters = [read_adapter(self.handle, adapter) for adapter, _ in placement.lora]
        self.vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self.tokenizer = Tokenizer(path.name, self.vocab, weakref.finalize(self, int))

    def facts(self, n_ctx: int | None, n_snapshots: int) -> dict[str, Any]:
        """Return the fields of a ModelPlan, for JSON."""
        trained = llama_cpp.llama_model_n_ctx_train(self.handle)
        size = max(1, min(DEFAULT_CONTEXT if n_ctx is None else n_ctx, trained))
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
        start = len(self.lines)
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
        lines = self.lines.since(start)
        compute: Counter[str] = Counter()
        for match in filter(None, map(_COMPUTE.search, lines)):
            compute[match[1]] += _bytes(match[2])
        snapshots = snapshots_of(context)
        recurrent = sum(_bytes(match[1] or match[2]) for match in filter(None, map(_RECURRENT.search, lines)))
        changing = llama_cpp.llama_model_is_recurrent(self.handle) or llama_cpp.llama_model_is_hybrid(self.handle)
        return {
            "cache": sum(_bytes(match[1]) for match in filter(None, map(_CACHE.search, lines))),
            "recurrent": recurrent,
            "state": recurrent // (1 + snapshots),
            "compute": dict(compute),
            "refused": None,
            "rollback": "snapshots" if snapshots else "checkpoints" if changing else "tail",
        }

    def _tokenizer_facts(self) -> dict[str, Any]:
        tokenizer, pointer = self.tokenizer, self.vocab
        special = {"bos_id": llama_cpp.llama_vocab_bos(pointer), "eos_id": llama_cpp.llama_vocab_eos(pointer)}
        ids = {name: token if token >= 0 else None for name, token in special.items()}
        ends = tokenizer.end_ids
        special_ids = {token for token in (*ends, *ids.values()) if token is not None} if tokenizer.has_text else set()
        return {
            "kind": tokenizer.kind,
            "pre": metadata(self.handle, "tokenizer.ggml.pre"),
            **ids,
            "adds_bos": bool(llama_cpp.llama_vocab_get_add_bos(pointer)),
            "adds_eos": bool(llama_cpp.llama_vocab_get_add_eos(pointer)),
            "end_ids": ends,
            "texts": {token: tokenizer.token_text(token) for token in sorted(special_ids)},
        }


def _resident() -> int:
    """Return the resident memory of this process, in bytes."""
    return int(psutil.Process().memory_info().rss)


def _bytes(mebibytes: str) -> int:
    return round(float(mebibytes) * _MIB)


@contextlib.contextmanager
def _reports_only() -> Any:
    """Yield stdout, for reports only: whatever else writes there goes to stderr."""
    own = os.dup(1)
    os.dup2(2, 1)
    with open(own, "w", encoding="utf-8") as out:
        yield out


def _limit_memory() -> None:
    """Limit this process's memory, and let Linux end it before others, so that no file can take the machine down."""
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
