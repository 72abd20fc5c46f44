"""Dry runs of models: loads without weights, in a child process. They show what a model is, its memory, and whether it pairs.

A damaged or hostile file can end the process that gives it to llama.cpp. Here it ends the child, and the user reads an error. Only
headers are read, so a file may as well be a header that is stretched to the full size. The child is programs/dry_run.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

import platformdirs
from pydantic import TypeAdapter

from ..common.child_process import command
from ..common.errors import CatalogError, ModelLoadError, SettingError
from ..common.files import PACKAGE, expand_user, read_json, replace_file
from ..llama.backend import llama_cpp_version
from ..llama.batch import MAX_COPIES
from ..models.gguf_header import check_model
from ..models.gguf_layout import shard_paths
from ..models.placement import Placement

log = logging.getLogger(__name__)

#: The time limit for each file, on a busy machine; most files take less than a second.
SECONDS_PER_FILE = 60.0
#: Goes up when the facts, or how they are written, change.
FORMAT = 2
#: The child's report on a file has some kB, with a long chat template more.
_MAX_REPORT_BYTES = 64 << 20
_MAX_STDERR_BYTES = 2000
_BUILD_FOLDER = re.compile(r"\S+/(?=[\w.-]+:\d+: )")
CHILD = command("dry_run")


@dataclass(frozen=True)
class TokenizerFacts:
    """What decides whether two tokenizers agree."""

    kind: int  # llama.cpp's ``llama_vocab_type``; 0 for ids without text
    pre: str  # how text is split before merging, as the file names it
    bos_id: int | None  # as the file names it; None where it has none
    eos_id: int | None  # as the file names it; None where it has none
    adds_bos: bool  # whether every text begins with BOS
    adds_eos: bool  # whether every text ends with EOS
    end_ids: tuple[int, ...]  # the ids that end a text or a turn
    texts: Mapping[int, str]  # the texts of these special tokens, by id


@dataclass(frozen=True)
class ModelPlan:
    """A model as llama.cpp plans it. All sizes are in bytes."""

    path: Path
    n_ctx: int  # tokens of the context that is planned
    architecture: str
    description: str
    n_layers: int
    n_vocab: int
    n_ctx_train: int
    n_parameters: int
    n_experts: int
    weights: int  # all tensors
    cache: int  # the KV cache
    recurrent: int  # a recurrent memory, snapshots included
    compute: Mapping[str, int]  # the compute buffers, by device
    output: int  # the rows of logits
    other: int  # the vocabulary and the compute graph
    rollback: str | None  # how the memory forgets a rejected draft: "tail", "snapshots" or "checkpoints"; None where it cannot
    refused: str | None  # why this model cannot be used; None where it can
    chat_template: str | None
    tokenizer: TokenizerFacts
    state: int = 0  # one snapshot of a recurrent memory
    n_shared: int | None = None  # ids shared with the expert; None where there is no expert, or ``difference`` says why there are none
    difference: str | None = None  # the first difference from the expert's vocabulary
    reordered: bool = False  # whether llama.cpp stores weights in another order than the file, for this processor

    @property
    def copies(self) -> int:
        """The most that copies of a recurrent state take."""
        return MAX_COPIES * self.state

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.cache + self.recurrent + self.copies + sum(self.compute.values()) + self.output + self.other


def dry_run_models(
    files: Mapping[str, Path],
    *,
    n_ctx: int | None = None,
    placements: Mapping[str, Placement] | None = None,
    timeout_s: float | None = None,
) -> dict[str, ModelPlan]:
    """Load models without weights, each with a context, and compare their vocabularies with the expert's.

    Args:
        files: The files by role; with an "expert" among them the others are compared with it.
        n_ctx: Tokens of each context; None for 4096, or what a model was trained for where that is less.
        placements: Devices, type of the cache and adapters, by role.
        timeout_s: The time limit; None for ``SECONDS_PER_FILE`` for each file.

    Raises:
        ModelLoadError: A file is refused, or the child crashes, hangs or reports nothing.
        SettingError: A device does not exist.
    """
    for path in files.values():
        check_model(path)
    question = {
        "files": {role: _absolute(path) for role, path in files.items()},
        "n_ctx": n_ctx,
        "placements": {role: _with_absolute_paths(placement).as_dict() for role, placement in (placements or {}).items()},
    }
    return _Child(files).ask(json.dumps(question), SECONDS_PER_FILE * len(files) if timeout_s is None else timeout_s)


def plan_models(files: Mapping[str, Path], *, n_ctx: int | None, placements: Mapping[str, Placement]) -> dict[str, ModelPlan]:
    """Return each model as :func:`dry_run_models` does, from the cache where it can. Vocabularies are not compared."""
    paths = {role: _cache_file(path, n_ctx, placements[role]) for role, path in files.items()}
    plans = {role: plan for role, path in paths.items() if (plan := _read(path))}
    unknown = {role: path for role, path in files.items() if role not in plans}
    if unknown:
        for role, plan in dry_run_models(unknown, n_ctx=n_ctx, placements=placements).items():
            plans[role] = plan
            _write(paths[role], plan)
    return plans


# --------------------------------------------------------------------------- the child process


def _with_absolute_paths(placement: Placement) -> Placement:
    return replace(placement, lora=tuple((Path(_absolute(path)), scale) for path, scale in placement.lora))


def _absolute(path: Path) -> str:
    return os.path.abspath(expand_user(path))


@dataclass
class _Child:
    """A process that may do anything. current: the role that it reported last."""

    files: Mapping[str, Path]
    current: str | None = None
    plans: dict[str, ModelPlan] = field(default_factory=dict)

    def ask(self, question: str, timeout_s: float) -> dict[str, ModelPlan]:
        with tempfile.TemporaryFile() as file:  # writing to a pipe would block or fail where the child dies early
            file.write(question.encode())
            file.seek(0)
            child = self._start(file)
        stderr = _StderrReader(child.stderr)
        late = threading.Event()

        def give_up() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(timeout_s, give_up)
        timer.daemon = True
        timer.start()
        try:
            for line in iter(partial(child.stdout.readline, _MAX_REPORT_BYTES), b""):
                self._take(line)
            child.wait()
        finally:
            timer.cancel()
            child.kill()
            code = child.wait()
            stderr.join(5)
            child.stdout.close()
            child.stderr.close()
        missing = [role for role in self.files if role not in self.plans]
        if missing:
            path = self.files[self.current if self.current in missing else missing[0]]
            if late.is_set():
                raise ModelLoadError(f"{path}: not read within {timeout_s:g} seconds; the file is damaged, or this machine is very busy")
            end = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            raise ModelLoadError(
                f"{path}: llama.cpp aborted on this file ({end}): {stderr.last_lines()}. Fetch it again, or choose another"
            )
        return self.plans

    def _start(self, stdin: IO[bytes]) -> Any:
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}  # else llama.cpp starts a debugger where it aborts
        try:
            return subprocess.Popen(CHILD, env=environment, cwd=PACKAGE.parent, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except OSError as error:
            path = next(iter(self.files.values()))
            raise ModelLoadError(f"{path}: no process can be started to try it ({error.strerror}): {CHILD[0]}") from error

    def _take(self, line: bytes) -> None:
        try:
            report = json.loads(line)
            self.current = report["role"]
            if "error" in report:
                raise (SettingError if report["kind"] == "SettingError" else ModelLoadError)(report["error"])
            if "facts" in report:
                self.plans[report["role"]] = _adapter().validate_python(report["facts"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return  # not a report; what is missing in the end is an error then


@cache
def _adapter() -> TypeAdapter[ModelPlan]:
    return TypeAdapter(ModelPlan)


class _StderrReader(threading.Thread):
    """Reads a stream of any length to its end and keeps the last of it."""

    def __init__(self, stream: Any) -> None:
        super().__init__(daemon=True)
        self._stream, self._tail = stream, b""
        self.start()

    def run(self) -> None:
        while data := self._stream.read1(1 << 16):
            self._tail = (self._tail + data)[-_MAX_STDERR_BYTES:]

    def last_lines(self) -> str:
        """Return the last three lines as one, without the folder where llama.cpp was built."""
        lines = [line.strip() for line in self._tail.decode(errors="replace").splitlines() if line.strip()]
        return _BUILD_FOLDER.sub("", "; ".join(lines[-3:]))[-500:] or "no message"


# --------------------------------------------------------------------------- the cache


def _cache_file(path: Path, n_ctx: int | None, placement: Placement) -> Path | None:
    """Return the file for a dry run of this file, version of llama.cpp, context and placement; None where the model is missing."""
    try:
        states = [_file_state(each) for each in (*shard_paths(path), *(adapter for adapter, _ in placement.lora))]
    except (OSError, ValueError):
        return None
    key = json.dumps([FORMAT, llama_cpp_version(), os.path.abspath(path), states, n_ctx, placement.as_dict()])
    return platformdirs.user_cache_path("speccascade") / "dry_runs" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _file_state(path: Path) -> list[int]:
    """Return what changes with a file, even where its size and the time of its last change stay."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _read(path: Path | None) -> ModelPlan | None:
    if path is None or not path.exists():
        return None
    try:
        return _adapter().validate_python(read_json(path))
    except (CatalogError, ValueError) as error:
        log.info("%s: not the plan of a model (%s); trying the model again", path, error)
        return None


def _write(path: Path | None, plan: ModelPlan) -> None:
    if path is None:
        return
    facts = {**asdict(plan), "path": str(plan.path), "n_shared": None, "difference": None}
    try:
        replace_file(path, json.dumps(facts))
    except OSError as error:
        log.info("%s: cannot be written (%s); the model will be tried again next time", path, error.strerror or error)
