"""What is wrong with an installation, or could be better, and the command that fixes it.

Knows the facts from ``machine/inspection.py`` only, and asks nothing itself.
"""

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

#: What llama.cpp calls an instruction set, and what Linux does.
_INSTRUCTIONS = {"AVX": "avx", "AVX2": "avx2", "FMA": "fma", "F16C": "f16c", "AVX512": "avx512f", "DOTPROD": "asimddp", "SVE": "sve"}
_FOR_CARDS = {"NVIDIA": "-DGGML_CUDA=on", "AMD": "-DGGML_HIP=on", "Apple": "-DGGML_METAL=on"}
_NATIVE = "-DGGML_NATIVE=on"
_MUCH_SWAP = 256 << 20


@dataclass(frozen=True)
class Problem:
    """broken: nothing, or something, does not work; else it works, and could be better. fix: a command, empty where there is none."""

    broken: bool
    what: str
    fix: str = ""


def diagnose(found: Inspection) -> tuple[Problem, ...]:
    """What is broken first."""
    return tuple(sorted((*_broken(found), *_of_build(found), *_of_machine(found), *_of_places(found)), key=lambda each: not each.broken))


def _broken(found: Inspection) -> Iterator[Problem]:
    if found.missing:
        yield Problem(True, f"needed and not installed: {', '.join(found.missing)}", pip("install", *found.missing))
    if found.catalog_problem:
        yield Problem(True, found.catalog_problem)
    trial = found.trial
    if trial.works:
        return
    why = {
        "SIGILL": "; this build uses instructions that this processor does not have",
        "SIGSEGV": "; that is a fault of this build of llama.cpp",
        "SIGABRT": "; that is a fault of this build of llama.cpp",
        "SIGKILL": "; the system ends what takes more memory than there is",
    }.get(trial.crash, "")
    fix = "" if trial.crash == "SIGKILL" else rebuild(_NATIVE)
    yield Problem(True, f"the bundled pair does not answer: {trial.reason}{why}", fix)


def _of_build(found: Inspection) -> Iterator[Problem]:
    there, built = found.processors.features, found.build.features
    unused = [name for name, flag in _INSTRUCTIONS.items() if flag in there and name not in built]
    if unused and built:
        yield Problem(False, f"this processor has {', '.join(unused)}, which this build of llama.cpp does not use", rebuild(_NATIVE))
    if not found.build.gpu:
        for card in found.graphics_cards:
            what = f"there is a graphics card ({card}), and this build of llama.cpp runs on the processor only"
            yield Problem(False, f"{what}; a prebuilt one may do too (docs/install.md)", rebuild(_FOR_CARDS[card]))


def _of_machine(found: Inspection) -> Iterator[Problem]:
    quota, memory = found.processors.quota, found.memory
    if quota is not None and found.threads > max(1, quota):
        what = f"a control group allows {quota:g} processors' time, and {found.threads} threads would be used, which then wait"
        yield Problem(False, what, f"speccascade run --threads {max(1, int(quota))} ...")
    load = found.processors.load
    if load is not None and load > found.processors.logical:
        what = f"this machine is busy (load {load:.1f} on {found.processors.logical} processors): what is measured now comes out too slow"
        yield Problem(False, f"{what}; once it is idle, measure pairs again", "speccascade profile --refresh")
    limit = found.environment.get("OMP_THREAD_LIMIT", "")
    if limit.isdigit() and int(limit) < found.threads:
        yield Problem(False, f"OMP_THREAD_LIMIT is {limit}, and {found.threads} threads could be used", "unset OMP_THREAD_LIMIT")
    if memory.swap_used > _MUCH_SWAP:
        what = f"{memory.swap_used / 1e9:.1f} GB are swapped out: models that do not fit are read from the disk, token by token"
        yield Problem(False, f"{what}; close other programs, or choose smaller models")


def _of_places(found: Inspection) -> Iterator[Problem]:
    for folder in found.folders:
        if folder.problem:
            elsewhere = "" if sys.platform == "win32" else ", or set XDG_CACHE_HOME, XDG_CONFIG_HOME or HF_HOME to a folder that can"
            yield Problem(False, f"{folder.use}: {folder.path} cannot be written ({folder.problem}); let it be written{elsewhere}")
    for extra in found.extras:
        if extra.missing:
            yield Problem(
                False, f"the optional part {extra.name!r} is not there: {', '.join(extra.missing)}", pip("install", *extra.missing)
            )


HIDDEN = "***"
_SECRET_NAMES = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
_SECRETS = re.compile(r"\bhf_\w{8,}|(?<=://)[^/\s@]+(?=@)")  # of Hugging Face; and who logs in, within an address
_SHORTEST = 6  # a shorter value may be a word of the text


def redact(value: Any, environment: Mapping[str, str] = os.environ) -> Any:
    """The same with all texts in it redacted, keys of mappings too."""
    if isinstance(value, str):
        return _text(value, environment)
    if isinstance(value, Mapping):
        return {redact(key, environment): redact(each, environment) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(each, environment) for each in value]
    return value


def _text(text: str, environment: Mapping[str, str]) -> str:
    for name, secret in environment.items():
        if _SECRET_NAMES.search(name) and len(secret) >= _SHORTEST:
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
