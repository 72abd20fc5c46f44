"""The command, run as its users run it: a process of its own, with its own pipes, folder and environment.

Python's start and the imports take 0.7 seconds, so most of these processes are forks of one that has done both
(:mod:`multiprocessing`'s fork server). What depends on the start takes ``fresh=True``.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

COMMAND = [sys.executable, "-m", "speccascade_local"]

QUESTION = "Who is Ada Lovelace?"
TIMEOUT_S = 120


def speccascade(
    *arguments: object, stdin: bytes = b"", cwd: Path | None = None, fresh: bool = False, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end and return its exit code and what it wrote.

    Args:
        *arguments: The command line after ``speccascade``.
        stdin: All that it can read.
        cwd: Its folder (default: this process's).
        fresh: Start a new Python; so do variables for the encoding of text.
        **environment: What differs from this process's.
    """
    command = [*COMMAND, *map(str, arguments)]
    if fresh or not hasattr(os, "fork") or any(name.startswith(("PYTHONIO", "LC_", "LANG")) for name in environment):
        return subprocess.run(command, input=stdin, capture_output=True, cwd=cwd, env=os.environ | environment, timeout=TIMEOUT_S)
    with streams() as (source, out, err):
        source.write(stdin)
        source.flush()
        process = fork_server().Process(
            target=run_as_command,
            args=(command[3:], [file.name for file in (source, out, err)], str(cwd or Path.cwd()), dict(os.environ | environment)),
        )
        process.start()
        process.join(TIMEOUT_S)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, TIMEOUT_S, out.read(), err.read())
        return subprocess.CompletedProcess(command, process.exitcode, out.read(), err.read())


def output_of(*arguments: object, cwd: Path | None = None, **environment: str) -> str:
    """Run a command that succeeds and return what it writes to stdout; stderr stays empty."""
    finished = speccascade(*arguments, cwd=cwd, **environment)
    assert (finished.returncode, finished.stderr.decode()) == (0, "")
    return finished.stdout.decode()


def as_text(*arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the command as :func:`speccascade` does and return what it wrote as text."""
    done = speccascade(*arguments, **more)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@contextlib.contextmanager
def streams() -> Iterator[list[IO[bytes]]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(tempfile.NamedTemporaryFile()) for _ in range(3)]


def fork_server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["speccascade_local.cli.app", "speccascade_local.runtime.load", "typer.rich_utils", "gguf", "csv", "gzip"]
    )
    return context


def run_as_command(arguments: list[str], files: list[str], cwd: str, environment: dict[str, str]) -> None:
    """Be ``python -m speccascade_local`` in a fork: with these files as stdin, stdout and stderr."""
    for fd, (name, mode) in enumerate(zip(files, ("rb", "ab", "ab"), strict=True)):
        with open(name, mode) as file:
            os.dup2(file.fileno(), fd)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    follow_python_path()
    from speccascade_local.cli import terminal

    terminal.stdout.__init__()  # consoles read the environment when they are made
    terminal.stderr.__init__(stderr=True)
    sys.argv = ["speccascade_local", *arguments]
    code = 0
    try:
        runpy.run_module("speccascade_local", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def follow_python_path() -> None:
    """Do with PYTHONPATH what Python does at its start."""
    folders = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder and folder not in sys.path]
    sys.path[:0] = folders
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            runpy.run_path(str(Path(folder) / "sitecustomize.py"))
