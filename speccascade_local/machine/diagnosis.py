"""What is wrong with an installation or could be better, and the command that fixes it: from the facts of machine/inspection.py."""

from __future__ import annotations

import getpass
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..common.pip import pip, rebuild
from .inspection import Inspection

#: llama.cpp's name of an instruction set, and Linux's.
_INSTRUCTIONS = {"AVX": "avx", "AVX2": "avx2", "FMA": "fma", "F16C": "f16c", "AVX512": "avx512f", "DOTPROD": "asimddp", "SVE": "sve"}
_CARD_FLAGS = {"NVIDIA": "-DGGML_CUDA=on", "AMD": "-DGGML_HIP=on", "Apple": "-DGGML_METAL=on"}
_NATIVE = "-DGGML_NATIVE=on"
_MAX_SWAP = 256 << 20


@dataclass(frozen=True)
class Problem:
    """A problem of an installation."""

    broken: bool  # True where something does not work; False where it works and could be better
    what: str  # the problem in words
    fix: str = ""  # a command that fixes it; empty where there is none


def diagnose(facts: Inspection) -> tuple[Problem, ...]:
    """Return all problems, what is broken first."""
    problems = (*_find_faults(facts), *_check_build(facts), *_check_machine(facts), *_check_folders(facts))
    return tuple(sorted(problems, key=lambda problem: not problem.broken))


def _find_faults(facts: Inspection) -> Iterator[Problem]:
    if facts.missing:
        yield Problem(True, f"needed and not installed: {', '.join(facts.missing)}", pip("install", *facts.missing))
    if facts.catalog_problem:
        yield Problem(True, facts.catalog_problem)
    trial = facts.trial
    if trial.works:
        return
    cause = {
        "SIGILL": "; this build uses instructions that this processor does not have",
        "SIGSEGV": "; this build of llama.cpp is at fault",
        "SIGABRT": "; this build of llama.cpp is at fault",
        "SIGKILL": "; the system ends processes that take more memory than there is",
    }.get(trial.crash, "")
    fix = "" if trial.crash == "SIGKILL" else rebuild(_NATIVE)
    yield Problem(True, f"the bundled pair does not answer: {trial.reason}{cause}", fix)


def _check_build(facts: Inspection) -> Iterator[Problem]:
    features = facts.build.features
    unused = [name for name, flag in _INSTRUCTIONS.items() if flag in facts.processors.features and name not in features]
    if unused and features:
        yield Problem(False, f"this processor has {', '.join(unused)}, which this build of llama.cpp does not use", rebuild(_NATIVE))
    if not facts.build.gpu:
        for card in facts.graphics_cards:
            what = f"there is a graphics card ({card}), and this build of llama.cpp runs on the processor only"
            yield Problem(False, f"{what}; a prebuilt package may do too (docs/install.md)", rebuild(_CARD_FLAGS[card]))


def _check_machine(facts: Inspection) -> Iterator[Problem]:
    quota, memory = facts.processors.quota, facts.memory
    if quota is not None and facts.threads > max(1, quota):
        what = f"a control group allows {quota:g} processors' time, and {facts.threads} threads would be used and wait for it"
        yield Problem(False, what, f"speccascade run --threads {max(1, int(quota))} ...")
    load = facts.processors.load
    if load is not None and load > facts.processors.logical:
        what = f"this machine is busy (load {load:.1f} on {facts.processors.logical} processors): measurements come out too slow"
        yield Problem(False, f"{what}; once it is idle, measure pairs again", "speccascade profile --refresh")
    limit = facts.environment.get("OMP_THREAD_LIMIT", "")
    if limit.isdigit() and int(limit) < facts.threads:
        yield Problem(False, f"OMP_THREAD_LIMIT is {limit}, and {facts.threads} threads could be used", "unset OMP_THREAD_LIMIT")
    if memory.swap_used > _MAX_SWAP:
        what = f"{memory.swap_used / 1e9:.1f} GB are swapped out: models that do not fit are read from the disk for each token"
        yield Problem(False, f"{what}; close other programs, or choose smaller models")


def _check_folders(facts: Inspection) -> Iterator[Problem]:
    for folder in facts.folders:
        if folder.problem:
            elsewhere = "" if sys.platform == "win32" else ", or set XDG_CACHE_HOME, XDG_CONFIG_HOME or HF_HOME to another folder"
            yield Problem(False, f"{folder.use}: {folder.path} cannot be written ({folder.problem}); change its permissions{elsewhere}")
    for extra in facts.extras:
        if extra.missing:
            what = f"the optional part {extra.name!r} is not installed: {', '.join(extra.missing)}"
            yield Problem(False, what, pip("install", *extra.missing))


HIDDEN = "***"
_SECRET_NAMES = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
_SECRETS = re.compile(r"\bhf_\w{8,}|(?<=://)[^/\s@]+(?=@)")  # a token of Hugging Face; user and password in a URL
_MIN_SECRET = 6  # a shorter value may be a word of the text


def redact(value: Any, environment: Mapping[str, str] = os.environ) -> Any:
    """Return a copy of JSON data without secrets, home folder and user name, in keys too."""
    if isinstance(value, str):
        return _redact_text(value, environment)
    if isinstance(value, Mapping):
        return {redact(key, environment): redact(each, environment) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(each, environment) for each in value]
    return value


def _redact_text(text: str, environment: Mapping[str, str]) -> str:
    for name, secret in environment.items():
        if _SECRET_NAMES.search(name) and len(secret) >= _MIN_SECRET:
            text = text.replace(secret, HIDDEN)
    text = _SECRETS.sub(HIDDEN, text)
    for home in sorted({os.path.expanduser("~"), os.path.realpath(os.path.expanduser("~"))}, key=len, reverse=True):
        if len(home) > 1:  # a service's may be /
            text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    user = _user()
    return re.sub(rf"(?<=[/\\]){re.escape(user)}(?=[/\\]|$)", HIDDEN, text) if user else text


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user id without a name
        return ""
