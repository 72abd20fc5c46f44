"""Loading models without their weights, in a child process: what they are, what memory they would take, whether they pair.

A damaged or hostile file can end the process that gives it to llama.cpp; here it ends the child, and the user reads an error. Only
headers are read, so a file may as well be a header stretched to the full size. Knows nothing of what the child does (programs/dry_run.py).
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
from ..common.files import PACKAGE, read_json, replace_file
from ..llama.backend import llama_cpp_version
from ..llama.batch import MOST_COPIES
from ..models.gguf_header import check_model
from ..models.gguf_layout import shards_of
from ..models.placement import Placement

#: Seconds for each file, on a machine that is busy otherwise; a file of usual size takes less than one.
SECONDS_PER_FILE = 60.0
#: What the child reports of a file is some kB; a chat template can make it more.
_MOST_REPORTED = 64 << 20
_LAST_WORDS = 2000
_PLACE = re.compile(r"\S+/(?=[\w.-]+:\d+: )")  # the folder where llama.cpp was built
#: What is started for a rehearsal.
CHILD = command("dry_run")


@dataclass(frozen=True)
class TokenizerFacts:
    """kind: llama.cpp's ``llama_vocab_type``, 0 for ids without text. pre: how text is split before merging, as the file names it.

    bos_id, eos_id: as the file names them, None where it has none; adds_bos, adds_eos: whether every text gets them. end_ids: those that
    end a text or a turn. texts: how these special tokens are written.
    """

    kind: int
    pre: str
    bos_id: int | None
    eos_id: int | None
    adds_bos: bool
    adds_eos: bool
    end_ids: tuple[int, ...]
    texts: Mapping[int, str]


@dataclass(frozen=True)
class ModelPlan:
    """One model as llama.cpp plans it at ``n_ctx`` tokens. Sizes in bytes.

    weights: all tensors. cache: what attention keeps. recurrent: what a recurrent memory keeps, snapshots included; state: one of them.
    compute: by device, what an evaluation works in. output: rows of logits. other: the vocabulary and the plan of an evaluation.
    rollback: how its memory will forget a rejected draft, "tail", "snapshots" or "checkpoints"; None where it cannot be drafted for,
    ``refused`` says why. n_shared: ids shared with the expert; ``difference`` says why there are none. reordered: whether llama.cpp keeps
    weights in another order than the file's, for this processor.
    """

    path: Path
    n_ctx: int
    architecture: str
    description: str
    n_layers: int
    n_vocab: int
    n_ctx_train: int
    n_parameters: int
    n_experts: int
    weights: int
    cache: int
    recurrent: int
    compute: Mapping[str, int]
    output: int
    other: int
    rollback: str | None
    refused: str | None
    chat_template: str | None
    tokenizer: TokenizerFacts
    state: int = 0
    n_shared: int | None = None
    difference: str | None = None
    reordered: bool = False

    @property
    def copies(self) -> int:
        """What copies of a recurrent state take, at most."""
        return MOST_COPIES * self.state

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.recurrent + self.copies + sum(self.compute.values()) + self.output + self.other


@dataclass(frozen=True)
class PairPlan:
    """The models by role. n_vocab: how many ids all of them share with the expert; None where one does not pair, as ``difference`` says."""

    models: Mapping[str, ModelPlan]
    n_vocab: int | None
    difference: str | None


def dry_run_models(
    files: Mapping[str, Path],
    *,
    n_ctx: int | None = None,
    placements: Mapping[str, Placement] | None = None,
    seconds: float | None = None,
) -> PairPlan:
    """Load models by role without weights, each with a context over it, and compare the vocabularies with that of the role "expert".

    n_ctx: tokens of each context; None for 4096, or what a model was trained for where that is less. placements: by role.
    seconds: when to give up, by default ``SECONDS_PER_FILE`` for each file.

    Raises ModelLoadError, also where the child dies, hangs or talks nonsense; SettingError for a device that there is not.
    """
    for path in files.values():
        check_model(path)
    asked = {
        "files": {role: _absolute(path) for role, path in files.items()},
        "n_ctx": n_ctx,
        "placements": {role: _elsewhere(placement).as_dict() for role, placement in (placements or {}).items()},
    }
    limit = SECONDS_PER_FILE * len(files) if seconds is None else seconds
    return _Child(files).ask(json.dumps(asked), limit)


def _elsewhere(placement: Placement) -> Placement:
    """The same for a process in another folder."""
    return replace(placement, lora=tuple((Path(_absolute(path)), scale) for path, scale in placement.lora))


def _absolute(path: Path) -> str:
    return os.path.abspath(os.path.expanduser(path))


@dataclass
class _Child:
    """A process that may do anything. files: what it was asked about. begun: the last role that it named."""

    files: Mapping[str, Path]
    begun: str | None = None
    models: dict[str, ModelPlan] = field(default_factory=dict)

    def ask(self, question: str, seconds: float) -> PairPlan:
        with tempfile.TemporaryFile() as asked:  # not a pipe, which would have to be written to while the child may be dying
            asked.write(question.encode())
            asked.seek(0)
            child = self._start(asked)
        words = _Words(child.stderr)
        late = threading.Event()

        def give_up() -> None:
            late.set()
            child.kill()

        watch = threading.Timer(seconds, give_up)
        watch.daemon = True
        watch.start()
        try:
            for line in iter(partial(child.stdout.readline, _MOST_REPORTED), b""):
                self._take(line)
            child.wait()
        finally:
            watch.cancel()
            child.kill()
            code = child.wait()
            words.join(5)
            child.stdout.close()
            child.stderr.close()
        missing = [role for role in self.files if role not in self.models]
        if missing:
            path = self.files[self.begun if self.begun in missing else missing[0]]
            if late.is_set():
                raise ModelLoadError(f"{path}: not understood within {seconds:g} seconds; the file is damaged, or this machine very busy")
            raise ModelLoadError(
                f"{path}: llama.cpp gave up on this file ({_ending(code)}): {words.last()}. Fetch it again, or choose another"
            )
        return _compare(self.models)

    def _start(self, asked: IO[bytes]) -> Any:
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}  # else llama.cpp starts a debugger where it aborts
        folder = PACKAGE.parent
        try:
            return subprocess.Popen(CHILD, env=environment, cwd=folder, stdin=asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except OSError as error:
            path = next(iter(self.files.values()))
            raise ModelLoadError(f"{path}: no process can be started to try it ({error.strerror}): {CHILD[0]}") from error

    def _take(self, line: bytes) -> None:
        try:
            report = json.loads(line)
            self.begun = report["role"]
            if "error" in report:
                raise (SettingError if report["kind"] == "SettingError" else ModelLoadError)(report["error"])
            if "facts" in report:
                self.models[report["role"]] = from_facts(report["facts"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return  # not one of its reports: what is missing in the end is told then


def from_facts(facts: object) -> ModelPlan:
    """A model as JSON has it. Raises ValueError for what is none."""
    return _facts().validate_python(facts)


@cache
def _facts() -> TypeAdapter[ModelPlan]:
    return TypeAdapter(ModelPlan)


def _compare(models: Mapping[str, ModelPlan]) -> PairPlan:
    if "expert" not in models:
        return PairPlan(models, None, None)
    others = [model for role, model in models.items() if role != "expert"]
    difference = next((model.difference for model in others if model.difference), None)
    shared = min((model.n_shared or 0 for model in others), default=models["expert"].n_vocab)
    return PairPlan(models, None if difference else shared, difference)


class _Words(threading.Thread):
    """Reads a stream to its end, however much it is, and keeps the last of it."""

    def __init__(self, stream: Any) -> None:
        super().__init__(daemon=True)
        self._stream, self._kept = stream, b""
        self.start()

    def run(self) -> None:
        while read := self._stream.read1(1 << 16):
            self._kept = (self._kept + read)[-_LAST_WORDS:]

    def last(self) -> str:
        """The last lines, in one."""
        lines = [line.strip() for line in self._kept.decode(errors="replace").splitlines() if line.strip()]
        return _PLACE.sub("", "; ".join(lines[-3:]))[-500:] or "no last words"


def _ending(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


log = logging.getLogger(__name__)

#: Goes up when what is found, or how it is written, changes.
FORMAT = 2


def plan_models(files: Mapping[str, Path], *, n_ctx: int | None, placements: Mapping[str, Placement]) -> dict[str, ModelPlan]:
    """Each model by role as :func:`dry_run_models` finds it, without what it shares with others. Raises what that raises."""
    keys = {role: _key(path, n_ctx, placements[role]) for role, path in files.items()}
    found = {role: _read(key) for role, key in keys.items()}
    unknown = {role: path for role, path in files.items() if found[role] is None}
    if unknown:
        for role, model in dry_run_models(unknown, n_ctx=n_ctx, placements=placements).models.items():
            found[role] = model
            _write(keys[role], model)
    return {role: model for role, model in found.items() if model is not None}


def _key(path: Path, n_ctx: int | None, placement: Placement) -> str | None:
    """None for a file that is not there."""
    try:
        seen = [_file_state(each) for each in (*shards_of(path), *(adapter for adapter, _ in placement.lora))]
    except (OSError, ValueError):
        return None
    asked = [FORMAT, llama_cpp_version(), os.path.abspath(path), seen, n_ctx, placement.as_dict()]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]


def _file_state(path: Path) -> list[int]:
    """What changes with the file, even where whoever replaced it kept its size and the time of its last change."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _read(key: str | None) -> ModelPlan | None:
    if key is None:
        return None
    if not os.path.exists(_file(key)):
        return None
    try:
        return from_facts(read_json(_file(key)))
    except (CatalogError, ValueError) as error:
        log.info("%s: not what a rehearsal found (%s); trying the model again", _file(key), error)
        return None


def _write(key: str | None, model: ModelPlan) -> None:
    if key is None:
        return
    facts = {**asdict(model), "path": str(model.path), "n_shared": None, "difference": None}
    try:
        replace_file(_file(key), json.dumps(facts))
    except OSError as error:
        log.info("%s cannot be kept (%s); the model will be tried again next time", _file(key), error.strerror or error)


def _file(key: str) -> Path:
    return platformdirs.user_cache_path("speccascade") / "rehearsals" / f"{key}.json"
