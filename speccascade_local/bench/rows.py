"""Rows on disk: one JSON object in each line, the first of them the set-up, each written through before the next is measured.

Knows nothing of what the rows tell.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import subprocess
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import CatalogError
from ..common.files import PACKAGE, fingerprint, read_bytes
from ..common.plots import check_writable
from ..common.version import __version__
from ..llama.backend import llama_cpp_version, physical_cores, system_info
from ..machine.hardware import cpu_name
from ..runtime.runtime import Runtime
from .grid import Arm
from .questions import Question

#: Goes up when rows mean something else.
FORMAT = 1
Row = dict[str, Any]
#: Bytes of a file: a hundred thousand answers.
MOST_BYTES = 512 << 20
#: Of the set-up: what a run that goes on takes over from the one before; that the same is asked is told by a checksum.
KEPT = {"profile", "learnt", "command", "asked"}


class Store:
    """A file of rows that grows; use it as a context manager.

    A new file begins with ``setup``. With ``resume`` an earlier one is gone on with, which must have been measured with the same setup, and
    a line that was cut off is dropped. setup, rows: what stands in the file. Raises CatalogError.
    """

    def __init__(self, path: Path, setup: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        wanted = {"format": FORMAT, **setup}
        check(path, resume=resume)
        try:
            if path.exists():
                self.setup, self.rows, whole = _parse(path)
                _same(path, self.setup, wanted)
                os.truncate(path, whole)
            else:
                self.setup, self.rows = dict(wanted), []
            self._file = path.open("ab")
            if not path.stat().st_size:
                self._write({"setup": self.setup})
        except OSError as error:
            raise CatalogError(f"{path}: cannot be written ({error.strerror})") from error

    def append(self, row: Row) -> None:
        """Add a row; it is on the disk when this returns. Raises CatalogError, and what was there before is whole."""
        try:
            self._write(row)
        except OSError as error:
            raise CatalogError(
                f"{self.path}: cannot be written ({error.strerror}); {len(self.rows)} rows are safe, make room and go on by --resume"
            ) from error
        self.rows.append(row)

    def _write(self, value: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(value).encode() + b"\n")  # all ASCII, so that wherever a line is cut off it can be read
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # rows are on the disk already; what a full one did not take fails here once more
            self._file.close()


def check(path: Path, *, resume: bool) -> None:
    """Refuse what no rows could be kept in. Raises CatalogError."""
    check_writable(path)
    if path.exists() and not path.is_file():
        raise CatalogError(f"{path}: not a file that rows can be kept in; name another with --out")
    if path.suffix == ".gz":
        raise CatalogError(f"{path}: rows are written as they come; leave .gz away from --out, and pack the file when it is complete")
    if path.exists() and not resume:
        raise CatalogError(f"{path}: is there already; go on with it by --resume, or name another file with --out")


def read(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Setup and rows of a file; a last line that was cut off does not count. Raises CatalogError."""
    setup, rows, _ = _parse(path)
    return setup, rows


def content(path: Path) -> bytes:
    """What stands in a file, unpacked if its name ends in .gz. Raises CatalogError."""
    data = read_bytes(path, MOST_BYTES)
    if path.suffix != ".gz":
        return data
    try:
        with gzip.open(io.BytesIO(data)) as file:
            whole = file.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise CatalogError(f"{path}: not a whole gzip file ({error}); name the file before it was packed, or pack it again") from error
    if len(whole) > MOST_BYTES:
        raise CatalogError(f"{path}: unpacks to more than the {MOST_BYTES >> 20} MiB that are read of such a file; is it the right one?")
    return whole


def _parse(path: Path) -> tuple[dict[str, Any], list[Row], int]:
    """Setup, rows, and how many bytes of the file are whole lines."""
    found = list(_whole_lines(path))
    if not found or not isinstance(found[0][0].get("setup"), dict):
        raise CatalogError(f"{path}: no results of a benchmark; name a file that 'speccascade bench' wrote")
    setup: dict[str, Any] = found[0][0]["setup"]
    if setup.get("format") != FORMAT:
        raise CatalogError(
            f"{path}: written in format {setup.get('format')!r:.20}, and this version reads {FORMAT}; measure again, or use the version "
            f"that wrote it ({setup.get('speccascade')!r:.20})"
        )
    return setup, [row for row, _ in found[1:]], found[-1][1]


def _whole_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each object with the byte behind its line. Only the last line may be cut off."""
    lines, end = content(path).split(b"\n"), 0  # as bytes, because an editor may have given them other ends
    for number, line in enumerate(lines, start=1):
        end += len(line) + 1
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            if number >= len(lines) - 1 and not any(lines[number:]):
                return
            raise CatalogError(f"{path}, line {number}: not a row ({error}); take the line out") from error
        if number == len(lines):  # a whole object, but its newline is missing: it may be cut off within a number
            return
        yield value, end


def _same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in sorted({*found, *wanted} - KEPT):
        if found.get(name) != wanted.get(name):
            raise CatalogError(
                f"{path}: measured with {name} {found.get(name)!r:.80}, and now it is {wanted.get(name)!r:.80}; "
                "go on with the same, or name another file with --out"
            )


def describe_run(runtime: Runtime, questions: Sequence[Question], arms: Sequence[Arm], *, repetitions: int, seed: int) -> dict[str, Any]:
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
    top = PACKAGE.parent
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
