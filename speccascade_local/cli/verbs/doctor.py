"""``speccascade doctor``: check the installation, and print the command that fixes it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import typer
from rich.table import Table

from ...machine.diagnosis import Problem, diagnose, redact
from ...machine.inspection import Inspection, inspect_machine
from .. import options
from ..load import set_log_level
from ..terminal import for_tables, stderr, stdout, write


def run(as_json: options.Json = False, verbose: options.Verbose = 0) -> None:
    """Check this installation and this machine in seconds, and print what is wrong or could be better, and the command that fixes it.

    A child process loads the bundled pair and asks it a question. Exit code 1 if something is broken, 0 if there are only hints. --json
    is for bug reports: it omits home folder, user name, tokens and passwords.
    """
    set_log_level(verbose)
    with stderr.status("checking") as status:
        inspection = inspect_machine(lambda step: status.update(step))
    findings = diagnose(inspection)
    if as_json:
        report = {"broken": any(each.broken for each in findings), "findings": [asdict(each) for each in findings], **inspection.as_dict()}
        write(json.dumps(redact(report), ensure_ascii=False))
    else:
        table = Table("", "", box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        for name, value in _rows(inspection):
            table.add_row(name, value, style=None)
        for_tables().print(table, markup=False)
        _print_findings(findings)
    if any(each.broken for each in findings):
        raise typer.Exit(1)


def _rows(found: Inspection) -> Iterator[tuple[str, str]]:
    """Yield name and value of each line of the table."""
    build, processors, memory = found.build, found.processors, found.memory
    versions = dict(found.versions)
    yield "speccascade", f"{found.speccascade} on Python {versions.pop('python')}, {versions.pop('platform')}"
    yield "packages", ", ".join(f"{name} {version}" for name, version in versions.items())
    yield "llama.cpp", f"commit {build.commit or 'unknown'}; {', '.join(build.features)}"
    yield "", ", ".join(_with(name, there) for name, there in (("GPU", build.gpu), ("RPC", build.rpc), ("mmap", build.mmap)))
    yield "repacking", "on" if build.repacking else "off: this build has AMX, which crashes on batches (llama.cpp issue 20824)"
    yield "flash attention", "llama.cpp decides" if build.gpu else "off: on the CPU it rounds single tokens and batches differently"
    for device in found.devices:
        yield "device", f"{device.name} ({device.kind}): {device.description}, {_gb(device.total)}, {_gb(device.free)} free"
    yield "GPUs", ", ".join(found.graphics_cards) or "none found"
    quota = "" if processors.quota is None else f", limited to {processors.quota:g} by cgroup"
    load = "" if processors.load is None else f", load {processors.load:.1f}"
    yield (
        "processor",
        f"{processors.name}: {processors.physical} cores, {processors.logical} logical, {processors.allowed} allowed{quota}{load}",
    )
    yield "threads", f"{found.threads} at most"
    limit = "" if memory.limit is None else f", limited to {_gb(memory.limit)} by cgroup"
    swap = f"{_gb(memory.swap_used)} of {_gb(memory.swap_total)} swap used" if memory.swap_total else "no swap"
    yield "memory", f"{_gb(memory.total)}, {_gb(memory.available)} available{limit}, {swap}"
    for folder in found.folders:
        state = "does not exist yet" if not folder.exists else _gb(folder.size) if folder.size >= 1e8 else f"{folder.size / 1e6:.2g} MB"
        yield folder.use, f"{folder.path}: {state}, {'cannot be written' if folder.problem else 'can be written'}"
    if found.extras:
        yield "extras", ", ".join(_with(extra.name, not extra.missing) for extra in found.extras)
    if found.environment:
        yield "environment", ", ".join(f"{name}={value}" for name, value in found.environment.items())
    yield (
        "bundled pair",
        f"answers ({found.trial.seconds:.1f} s, including the start of Python)" if found.trial.works else "does not answer",
    )


def _print_findings(findings: Sequence[Problem]) -> None:
    stdout.print()
    for each in findings:
        name, style = ("broken", "bold red") if each.broken else ("hint", "yellow")
        stdout.print(name, style=style, end="")
        stdout.print(f": {each.what}", markup=False, soft_wrap=not stdout.is_terminal)
        if each.fix:
            stdout.print(f"  {each.fix}", markup=False, soft_wrap=True, style="bold")  # one line, to be copied
    if not any(each.broken for each in findings):
        stdout.print("all is well" if not findings else "nothing is broken", style="green")


def _with(name: str, there: bool) -> str:
    return name if there else f"no {name}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
