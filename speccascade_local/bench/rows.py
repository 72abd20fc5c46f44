"""Rows on disk: one JSON object in each line, the first of them the setup of the run. Each is on disk before the next is measured."""

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

#: The version of the file format.
FORMAT = 1
Row = dict[str, Any]
#: Bytes of a file, for a hundred thousand answers.
MOST_BYTES = 512 << 20
#: The part of the setup that a resumed run takes from the file. A checksum shows whether the questions are the same.
TAKEN_FROM_FILE = {"profile", "learnt", "command", "asked"}


class Store:
    """A growing file of rows, as a context manager; ``setup`` and ``rows`` are its content.

    Args:
        path: The file.
        setup: The first line of a new file; that of an existing file must be the same.
        resume: Whether to continue an existing file; an incomplete last line is dropped.

    Raises:
        CatalogError: If the file cannot be read or written, or its setup differs.
    """

    def __init__(self, path: Path, setup: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        expected = {"format": FORMAT, **setup}
        check(path, resume=resume)
        try:
            if path.exists():
                self.setup, self.rows, size = _parse(path)
                _require_same(path, self.setup, expected)
                os.truncate(path, size)
            else:
                self.setup, self.rows = dict(expected), []
            self._file = path.open("ab")
            if not path.stat().st_size:
                self._write({"setup": self.setup})
        except OSError as error:
            raise CatalogError(f"{path}: cannot be written ({error.strerror})") from error

    def append(self, row: Row) -> None:
        """Add a row; it is on disk when this returns. On CatalogError the rows before it are complete."""
        try:
            self._write(row)
        except OSError as error:
            raise CatalogError(
                f"{self.path}: cannot be written ({error.strerror}); {len(self.rows)} rows are safe; make room and continue with --resume"
            ) from error
        self.rows.append(row)

    def _write(self, value: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(value).encode() + b"\n")  # ASCII, so that a line can be cut off anywhere and still be decoded
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the rows are on disk already; on a full disk the rest fails again here
            self._file.close()


def check(path: Path, *, resume: bool) -> None:
    """Raise CatalogError for a path that cannot hold rows."""
    check_writable(path)
    if path.exists() and not path.is_file():
        raise CatalogError(f"{path}: not a regular file; name another with --out")
    if path.suffix == ".gz":
        raise CatalogError(f"{path}: rows are written one by one; omit .gz in --out, and compress the complete file")
    if path.exists() and not resume:
        raise CatalogError(f"{path}: exists already; continue it with --resume, or name another file with --out")


def read(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Return setup and rows of a file, without an incomplete last line. Raises CatalogError."""
    setup, rows, _ = _parse(path)
    return setup, rows


def content(path: Path) -> bytes:
    """Return the bytes of a file, decompressed if its name ends in .gz. Raises CatalogError."""
    data = read_bytes(path, MOST_BYTES)
    if path.suffix != ".gz":
        return data
    try:
        with gzip.open(io.BytesIO(data)) as file:
            unpacked = file.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise CatalogError(f"{path}: not a complete gzip file ({error}); name the uncompressed file, or compress it again") from error
    if len(unpacked) > MOST_BYTES:
        raise CatalogError(f"{path}: decompresses to more than {MOST_BYTES >> 20} MiB; at most that is read; is it the right file?")
    return unpacked


def _parse(path: Path) -> tuple[dict[str, Any], list[Row], int]:
    """Return setup, rows, and the size of the complete lines in bytes."""
    lines = list(_complete_lines(path))
    if not lines or not isinstance(lines[0][0].get("setup"), dict):
        raise CatalogError(f"{path}: not the results of a benchmark; name a file that 'speccascade bench' wrote")
    setup: dict[str, Any] = lines[0][0]["setup"]
    if setup.get("format") != FORMAT:
        raise CatalogError(
            f"{path}: has format {setup.get('format')!r:.20}, and this version reads {FORMAT}; measure again, or use version "
            f"{setup.get('speccascade')!r:.20}, which wrote it"
        )
    return setup, [row for row, _ in lines[1:]], lines[-1][1]


def _complete_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each object with the offset after its line. Only the last line may be incomplete."""
    lines, end = content(path).split(b"\n"), 0  # as bytes, because an editor may have changed the line ends
    for number, line in enumerate(lines, start=1):
        end += len(line) + 1
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            if number >= len(lines) - 1 and not any(lines[number:]):
                return
            raise CatalogError(f"{path}, line {number}: not a row ({error}); remove the line") from error
        if number == len(lines):  # without its newline it may be cut off within a number
            return
        yield value, end


def _require_same(path: Path, setup: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name in sorted({*setup, *expected} - TAKEN_FROM_FILE):
        if setup.get(name) != expected.get(name):
            raise CatalogError(
                f"{path}: measured with {name} {setup.get(name)!r:.80}, but now it is {expected.get(name)!r:.80}; "
                "continue with the same, or name another file with --out"
            )


def describe_run(runtime: Runtime, questions: Sequence[Question], arms: Sequence[Arm], *, repetitions: int, seed: int) -> dict[str, Any]:
    """Return the setup for the first line of a file. A run can resume another only if both have the same."""
    models = runtime.models
    content_of_questions = json.dumps([question.model_dump(mode="json") for question in questions], sort_keys=True)
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
        "questions": {"n": len(questions), "sha256": hashlib.sha256(content_of_questions.encode()).hexdigest()[:16]},
        "asked": {question.id: {"prompt": question.plain, "reference": question.reference} for question in questions},
        "repetitions": repetitions,
        "first_seed": seed,
        "grid": [[arm.name, arm.settings.temperature] for arm in arms],
    }


def commit() -> str | None:
    """Return the commit of the checkout that this package runs from, "-dirty" with changes; None for an installed package."""
    top = PACKAGE.parent
    if not (top / ".git").exists():
        return None
    try:
        return _git(top, "rev-parse", "HEAD") + ("-dirty" if _git(top, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(top: Path, *command: str) -> str:
    """Run git without locks: a killed process must not leave one in the user's checkout."""
    whole = ["git", "--no-optional-locks", "-C", str(top), *command]
    return subprocess.run(whole, capture_output=True, text=True, check=True).stdout.strip()
