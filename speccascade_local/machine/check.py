"""Whether a pair can answer as one, what speaks against it, what it takes and what it would bring: found before anything is loaded.

The files are rehearsed in a child process, so that no file can do harm; nothing is measured. Knows nothing of terminals and networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.filesize import decimal

from ..common.errors import ModelLoadError
from ..common.validation import whole_number
from ..llama.devices import Device, devices
from ..llama.parameters import gpu_layers
from ..models.gguf_header import Header, layers_of, read_header
from ..models.placement import DEFAULT_CONTEXT, Placement
from . import findings
from .dry_run import ModelPlan, dry_run_models
from .findings import Finding, Grade
from .memory import Need, choose_layers, free_memory, memory_need, require_fit
from .plan import ACCEPTANCE_RATES, MeasuredModel, Estimate, estimate_pair

Answer = Literal["yes", "yes, but", "no"]
EXIT_CODES: dict[Answer, int] = {"yes": 0, "yes, but": 1, "no": 2}
#: A pair that is not even so much faster at best is not worth its memory.
_WORTH_IT = 1.1
_LONGEST_CONTEXT = 2**31 - 1


@dataclass(frozen=True)
class PairReport:
    """What was found. needs: memory by role at ``n_ctx`` tokens, where all models can be used. free: bytes of memory by where. plan: None
    where nothing was measured.
    """

    name: str
    findings: tuple[Finding, ...]
    n_ctx: int | None = None
    models: Mapping[str, ModelPlan] | None = None
    needs: Mapping[str, Need] | None = None
    free: Mapping[str, int] | None = None
    plan: Estimate | None = None

    @property
    def answer(self) -> Answer:
        """No where anything forbids the pair; yes, but where anything is to be known."""
        grades = {finding.grade for finding in self.findings}
        return "no" if "no" in grades else "yes, but" if "warning" in grades else "yes"

    def of(self, grade: Grade) -> list[Finding]:
        """The findings of one grade."""
        return [finding for finding in self.findings if finding.grade == grade]

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        models = {role: asdict(model) | {"path": str(model.path)} for role, model in (self.models or {}).items()}
        needs = {role: {"own": dict(need.own), "gpu": dict(need.gpu)} for role, need in (self.needs or {}).items()}
        return {
            "pair": self.name,
            "answer": self.answer,
            "exit_code": EXIT_CODES[self.answer],
            "n_ctx": self.n_ctx,
            "findings": [asdict(finding) for finding in self.findings],
            "models": models,
            "memory": needs,
            "free": dict(self.free or {}),
            "plan": asdict(self.plan) if self.plan else None,
        }


def check(
    name: str,
    files: Mapping[str, Path],
    *,
    n_ctx: int | None = None,
    placements: Mapping[str, Placement] | None = None,
    known: Sequence[MeasuredModel] = (),
    must_fit: bool = True,
) -> PairReport:
    """files: by role, "expert" among them; without a drafter drafts are copied from the text. n_ctx: tokens of context. known: what was
    measured on this machine. must_fit: False makes too little memory a warning.

    Raises SettingError for a context or device that cannot be; what is wrong with the files is a finding.
    """
    if n_ctx is not None:
        whole_number("n_ctx (--ctx)", n_ctx, 1, _LONGEST_CONTEXT)
    wanted = {role: (placements or {}).get(role, Placement()) for role in files}
    try:
        models = dry_run_models(files, n_ctx=n_ctx, placements=wanted).models
        headers = {role: read_header(path) for role, path in files.items()}
        layers = {role: layers_of(path) for role, path in files.items()}
    except ModelLoadError as error:
        return PairReport(name, (Finding("no", "files", str(error)),))
    trained = min(model.n_ctx_train for model in models.values())
    size = min(n_ctx or DEFAULT_CONTEXT, trained)
    there = devices()
    placed = choose_layers(wanted, models, layers, size, there)
    usable = not any(model.refused for model in models.values())
    needs = {role: memory_need(model, size, layers[role], gpu_layers(placed[role])) for role, model in models.items() if usable}
    plan = estimate_pair(headers.get("drafter"), headers["expert"], known, size) if known else None
    found = [
        *_comparisons(models, headers, placed),
        *([_context_finding(n_ctx, trained)] if n_ctx and n_ctx > trained else []),
        *([_memory_finding(needs, placed, size, there, must_fit)] if usable else []),
        _speed_finding(plan),
    ]
    free = {"memory": free_memory()} | {device.name: device.free for device in there if device.is_gpu}
    return PairReport(name, tuple(found), size, models, needs, free, plan)


def _comparisons(models: Mapping[str, ModelPlan], headers: Mapping[str, Header], placements: Mapping[str, Placement]) -> Iterator[Finding]:
    expert = models["expert"]
    others = {role: model for role, model in models.items() if role != "expert"}
    if not others:
        yield Finding("well", "vocabulary", "drafts are copied from the text, so there is nothing to fit")
    for role, model in others.items():
        yield findings.vocabulary(role, model, expert)
        yield from findings.tokenizers(role, model, expert)
        yield findings.templates(role, model, expert)
        yield findings.size(role, headers[role].token_bytes, headers["expert"].token_bytes)
        yield from findings.cache(role, placements[role])
    for role, model in models.items():
        yield findings.rollback(role, model)
    yield from findings.experts(expert)


def _context_finding(n_ctx: int, trained: int) -> Finding:
    return Finding("no", "context", f"{n_ctx} tokens were asked for (--ctx), and the models were trained for {trained}; that is the most")


def _memory_finding(
    needs: Mapping[str, Need], placements: Mapping[str, Placement], n_ctx: int, there: Sequence[Device], must_fit: bool
) -> Finding:
    own = free_memory()
    try:
        require_fit(needs, placements, n_ctx, own, there)
    except ModelLoadError as error:
        return Finding("no" if must_fit else "warning", "memory", str(error))
    wanted, on_gpu = sum(need.own_bytes for need in needs.values()), sum(need.gpu_bytes for need in needs.values())
    gpu = f" and {decimal(on_gpu)} on the GPU" if on_gpu else ""
    return Finding("well", "memory", f"{decimal(wanted)}{gpu} at a context of {n_ctx} tokens; {decimal(own)} are free")


def _speed_finding(plan: Estimate | None) -> Finding:
    if plan is None:
        return Finding(
            "note", "speed", "nothing was measured on this machine; 'speccascade profile PAIR' does so, and any pair tells of the others"
        )
    low, high = plan.speedup
    text = f"{low:.1f} to {high:.1f} × as fast as the expert alone, where {ACCEPTANCE_RATES[0]:.0%} to {ACCEPTANCE_RATES[1]:.0%} of drafts are kept"
    return Finding("warning" if high < _WORTH_IT else "well", "speed", text)
