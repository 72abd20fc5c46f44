"""The verdict on a pair: whether it can answer as one, what speaks against it, how much memory it takes and how fast it may be.

The models are not loaded. Their files are dry run in a child process, so that a damaged or hostile file does no harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.filesize import decimal

from ..common.errors import ModelLoadError
from ..common.validation import whole_number
from ..llama.devices import Device, devices
from ..llama.parameters import gpu_layers
from ..models.gguf_header import layers_of, read_header
from ..models.placement import DEFAULT_CONTEXT, Placement
from . import findings
from .dry_run import ModelPlan, dry_run_models
from .findings import Finding, Grade
from .memory import MemoryNeed, choose_layers, free_memory, memory_need, require_fit
from .plan import Estimate, MeasuredModel, estimate_pair

Answer = Literal["yes", "yes, but", "no"]
EXIT_CODES: dict[Answer, int] = {"yes": 0, "yes, but": 1, "no": 2}
_MAX_CONTEXT = 2**31 - 1


@dataclass(frozen=True)
class NamedFile:
    """A model file: where it lies, and what messages call it. A header that was fetched alone is called by its place on the hub."""

    path: Path
    name: str


@dataclass(frozen=True)
class PairReport:
    """The verdict on a pair."""

    name: str
    findings: tuple[Finding, ...]  # what is well, what is to be known and what forbids the pair
    n_ctx: int | None = None  # tokens of context that memory and speed are estimated for
    models: Mapping[str, ModelPlan] | None = None  # the dry runs by role; None where a file cannot be read
    needs: Mapping[str, MemoryNeed] | None = None  # bytes of memory by role; empty where a model cannot be used
    free: Mapping[str, int] | None = None  # bytes of free memory by place: "memory", and each GPU's name
    plan: Estimate | None = None  # the estimated speed; None where nothing was measured on this machine

    @property
    def answer(self) -> Answer:
        """The answer: "no" where a finding forbids the pair, "yes, but" where one warns."""
        grades = {finding.grade for finding in self.findings}
        return "no" if "no" in grades else "yes, but" if "warning" in grades else "yes"

    def of(self, grade: Grade) -> list[Finding]:
        """Return the findings of one grade."""
        return [finding for finding in self.findings if finding.grade == grade]

    def as_dict(self) -> dict[str, Any]:
        """Return the whole report as JSON can hold it."""
        return {
            "pair": self.name,
            "answer": self.answer,
            "exit_code": EXIT_CODES[self.answer],
            "n_ctx": self.n_ctx,
            "findings": [asdict(finding) for finding in self.findings],
            "models": {role: asdict(model) | {"path": str(model.path)} for role, model in (self.models or {}).items()},
            "memory": {role: asdict(need) for role, need in (self.needs or {}).items()},
            "free": dict(self.free or {}),
            "plan": asdict(self.plan) if self.plan else None,
        }


def check(
    name: str,
    files: Mapping[str, NamedFile],
    *,
    n_ctx: int | None = None,
    placements: Mapping[str, Placement] | None = None,
    measured: Sequence[MeasuredModel] = (),
    must_fit: bool = True,
) -> PairReport:
    """Return the verdict on a pair. What is wrong with the files is a finding. Raises SettingError for an impossible context or device.

    Args:
        name: The pair's name, for the report.
        files: The files by role, "expert" among them. Without a drafter drafts are copied from the text.
        n_ctx: Tokens of context; None for 4096, or what the models were trained for where that is less.
        placements: Devices, layers on the GPU and type of the cache, by role.
        measured: The models whose speed on this machine is known.
        must_fit: Whether too little memory forbids the pair; False makes it a warning.
    """
    if n_ctx is not None:
        whole_number("n_ctx (--ctx)", n_ctx, 1, _MAX_CONTEXT)
    paths = {role: file.path for role, file in files.items()}
    placements = {role: (placements or {}).get(role, Placement()) for role in files}
    try:
        models = dry_run_models(paths, n_ctx=n_ctx, placements=placements)
        headers = {role: read_header(path) for role, path in paths.items()}
        layers = {role: layers_of(path) for role, path in paths.items()}
    except ModelLoadError as error:
        return PairReport(name, (Finding("no", "files", _describe_error(error, files.values())),))
    models = {role: replace(model, path=Path(files[role].name)) for role, model in models.items()}
    n_ctx_train = min(model.n_ctx_train for model in models.values())
    size = min(n_ctx or DEFAULT_CONTEXT, n_ctx_train)
    available = devices()
    free = {"memory": free_memory()} | {device.name: device.free for device in available if device.is_gpu}
    placements = choose_layers(placements, models, layers, size, available)
    usable = {} if any(model.refused for model in models.values()) else models
    needs = {role: memory_need(model, size, layers[role], gpu_layers(placements[role])) for role, model in usable.items()}
    estimate = estimate_pair(headers.get("drafter"), headers["expert"], measured, size) if measured else None
    lines = [*findings.compare_models(models, headers, placements), *findings.context(n_ctx or size, n_ctx_train)]
    if needs:
        lines.append(_check_memory(needs, placements, size, free["memory"], available, must_fit))
    lines.append(findings.speed(estimate))
    return PairReport(name, tuple(lines), size, models, needs, free, estimate)


def _describe_error(error: ModelLoadError, files: Iterable[NamedFile]) -> str:
    """Return the message with the file that it begins with called by its name."""
    message = str(error)
    name = next((file.name for file in files if message.startswith(f"{file.path}: ")), None)
    return f"{name}: {message.partition(': ')[2]}" if name else message


def _check_memory(
    needs: Mapping[str, MemoryNeed], placements: Mapping[str, Placement], n_ctx: int, free: int, available: Sequence[Device], must_fit: bool
) -> Finding:
    try:
        require_fit(needs, placements, n_ctx, free, available)
    except ModelLoadError as error:
        return Finding("no" if must_fit else "warning", "memory", str(error))
    own, gpu = sum(need.own_bytes for need in needs.values()), sum(need.gpu_bytes for need in needs.values())
    on_gpu = f" and {decimal(gpu)} on the GPU" if gpu else ""
    return Finding("well", "memory", f"{decimal(own)}{on_gpu} at a context of {n_ctx} tokens; {decimal(free)} are free")
