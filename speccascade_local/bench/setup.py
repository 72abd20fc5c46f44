"""What a run was made with, so that its figures mean something to others: files, machine, build, questions, settings.

Knows nothing of rows.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..backend import llama_cpp_version, physical_cores, system_info
from ..checks import fingerprint
from ..machine import cpu_name
from ..runtime import Runtime
from .grid import Arm
from .questions import Question


def described(runtime: Runtime, questions: Sequence[Question], arms: Sequence[Arm], *, repetitions: int, seed: int) -> dict[str, Any]:
    """For the first line of a file of rows. Two runs that may be joined have the same."""
    models = runtime.models
    asked = json.dumps([question.model_dump(mode="json") for question in questions], sort_keys=True)
    return {
        "speccascade": __version__,
        "commit": commit(),
        "pair": runtime.pair.name,
        "models": {role: model.description for role, model in models.items()},
        "files": {role: fingerprint(model.path) for role, model in models.items()},
        "machine": f"{cpu_name()}, {physical_cores()} physical cores",
        "llama_cpp_python": llama_cpp_version(),
        "build": system_info(),
        "threads": {role: list(counts) for role, counts in runtime.threads.items()},
        "n_ctx": runtime.n_ctx,
        "max_tokens": arms[0].settings.max_tokens,
        "questions": {"n": len(questions), "sha256": hashlib.sha256(asked.encode()).hexdigest()[:16]},
        "asked": {question.id: {"prompt": question.plain, "reference": question.reference} for question in questions},
        "repetitions": repetitions,
        "first_seed": seed,
        "grid": [[arm.name, arm.settings.temperature] for arm in arms],
    }


def commit() -> str | None:
    """Of the checkout that this package is run from, "-dirty" where it has changes; None for an installed package."""
    top = Path(__file__).parent.parent.parent
    if not (top / ".git").exists():
        return None
    try:
        return _git(top, "rev-parse", "HEAD") + ("-dirty" if _git(top, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(top: Path, *command: str) -> str:
    """Without locks: a process that is killed must not leave one behind in the user's checkout."""
    whole = ["git", "--no-optional-locks", "-C", str(top), *command]
    return subprocess.run(whole, capture_output=True, text=True, check=True).stdout.strip()
