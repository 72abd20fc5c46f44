"""Benchmarks our expert alone, strict and cascades against llama-cpp-python and llama.cpp's own server.

    python scripts/measure/scale_pair.py PAIR                          # cost-scaled demonstration models
    python scripts/measure/peers.py --pair PAIR --llama-server PATH/llama-server      # hours; --resume goes on after a break
    python scripts/measure/peers.py --report docs/results/peers.jsonl.gz --update-page   # table, picture and page; measures nothing

All arms answer one prompt before the next is asked. The arm that begins changes from prompt to prompt, so that a slow moment of the
machine falls on all. All arms get the same files, token ids, temperature, number of tokens, threads and context. Each starts every
prompt cold and stops at the end of generation only. A row is written and flushed after each answer.

Two things differ. Ours and the server draw other random numbers from one seed, so texts above temperature 0 differ; the server
drafts greedily there, ours draws drafts. Fidelity is off in all our arms, because peers do not compute it. ngram-mod remembers texts of
earlier requests, so its server is restarted and warmed up before each answer; that time is not counted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
from peers_arms import PYTHON, Arm, Record, Request, our_arm, python_arm, server_arm, server_options
from peers_report import key, read_rows, write_report
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import speccascade_local as sc
from speccascade_local.bench.questions import HELD_OUT, Question, Turn, built_in_questions
from speccascade_local.bench.rows import commit
from speccascade_local.common.errors import SpeccascadeError
from speccascade_local.llama.backend import extra_buffers_are_safe, physical_cores, system_info
from speccascade_local.tokens.chat_template import Message

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts" / "demo_pair"))

from questions import FAMILIES  # noqa: E402

COPIED = ("qa", "code", "translate")  # where answers are long enough for a copy to matter
OURS = "strict/7,strict/15,strict/auto,token_v3:0.8/7,token_v3:0.8/auto"
#: ``ngram-mod`` by its own defaults wants 24 known tokens and 48 to copy, more than most answers have; 8:2:16 gives it a fair chance.
SERVERS = "none,draft-simple:3,draft-simple:7,draft-simple:15,ngram-mod:8:2:16"


def chosen(known: Sequence[Question], per_family: int, repeats: Callable[[list[Message], str], bool]) -> list[Question]:
    """Return ``per_family`` questions of each family and as many copies, one of each in turn; always the same for the same file.

    In a copy the conversation holds the answer already. ``repeats`` says whether a model that is asked again repeats the answer
    that the conversation holds: only such copies count.
    """
    rng = random.Random(0)
    shuffled = {family: [i for i, question in enumerate(known) if question.family == family] for family in FAMILIES}
    for places in shuffled.values():
        rng.shuffle(places)
    groups = [[_named(known[i], f"{family}-{i}") for i in places[:per_family]] for family, places in shuffled.items()]
    copies: list[Question] = []
    for i in (i for turn in zip(*(shuffled[family][per_family:] for family in COPIED)) for i in turn):
        if len(copies) == per_family:
            break
        asked, answer = known[i].conversation, max(known[i].reference, key=len)
        if repeats([*asked, {"role": "assistant", "content": answer}, *asked], answer):
            said = [Turn(role="assistant", content=answer)]
            turns = [Turn.model_validate(turn) for turn in asked]
            copies.append(_named(known[i], f"copy-{i}", family="copy", prompt=None, messages=(*turns, *said, *turns)))
    groups.append(copies)
    if any(len(group) < per_family for group in groups):
        sys.exit(f"--per-family {per_family} is more than {HELD_OUT.name} has to choose from")
    return [question for turn in zip(*groups) for question in turn]


def _named(question: Question, name: str, **changes: Any) -> Question:
    return question.model_copy(update={"id": name, **changes})


def questions(per_family: int, max_tokens: int) -> list[Question]:
    """Return the benchmark's questions. The bundled pair, which answers as the cost-scaled one, decides what is repeated."""
    with sc.load(n_threads=1) as bundled:

        def repeats(messages: list[Message], answer: str) -> bool:
            reply = bundled.generate(bundled.chat_ids(messages), rule="strict", block_size=0, max_tokens=max_tokens)
            return reply.text.strip() == answer.strip()

        return chosen(built_in_questions(), per_family, repeats)


def planned(arms: Sequence[Arm], asked: Sequence[Question], temperatures: Sequence[float], passes: int) -> Iterator[tuple[Any, ...]]:
    """Yield everything to measure, in order: all arms of a prompt, beginning with another arm each time."""
    turn = 0
    for number in range(passes):
        for temperature in temperatures:
            for place, question in enumerate(asked):
                for i in range(len(arms)):
                    yield arms[(turn + i) % len(arms)], question, place, temperature, number
                turn += 1


def same_setup(rows: Sequence[Record], setup: Record, path: Path) -> None:
    """Refuse to continue a file that was measured otherwise. Only the commit may differ; each row has its own."""
    for name, value in setup.items():
        if name != "commit" and any(row.get(name) != value for row in rows):
            other = next(row.get(name) for row in rows if row.get(name) != value)
            sys.exit(f"{path}: measured with {name} = {other!r}, now it is {value!r}; use the same, or give another --out")


def measure(options: argparse.Namespace) -> None:
    """Fill options.out."""
    done = earlier_rows(options.out, resume=options.resume)
    asked = questions(options.per_family, options.max_tokens)[: options.limit]
    with ExitStack() as resources:
        files = {name: options.pair / f"{name}.gguf" for name in ("drafter", "expert")}
        runtime = resources.enter_context(sc.load(**files, n_threads=options.threads))
        setup = described_setup(options, runtime, files)
        same_setup(done, setup, options.out)
        logs = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="bench-peers-")))
        arms = all_arms(options, runtime, logs, resources)
        prompts = {question.id: runtime.chat_ids(question.conversation) for question in asked}
        for (
            arm
        ) in arms:  # the first evaluations of a process are slow; they are not counted, and they fail at once where an arm cannot be asked
            arm.ask(Request(prompts[asked[0].id], 0.0, 0, 2))
        seen = {key(row) for row in done}
        everything = list(planned(arms, asked, options.temperatures, options.passes))
        columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        file = resources.enter_context(options.out.open("a", encoding="utf-8"))
        progress = resources.enter_context(Progress(*columns, console=Console(stderr=True), auto_refresh=False))
        step = progress.add_task("", total=len(everything))
        for arm, question, place, temperature, number in everything:
            progress.update(step, description=arm.name, refresh=True)  # only between answers: drawing would cost an arm time
            row: Record = {**arm.described(), "prompt_id": question.id, "temperature": temperature, "pass": number}
            if key(row) not in seen:
                seed = options.seed + 1000 * number + place
                load = os.getloadavg()[0]
                answer = arm.ask(Request(prompts[question.id], temperature, seed, options.max_tokens))
                right = question.is_right(answer.text)
                row |= {"family": question.family, "seed": seed, "right": right, "tokens": len(answer.token_ids), **asdict(answer)}
                row |= {"prompt_tokens": len(prompts[question.id]), "load_before": load, **setup}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
            progress.update(step, advance=1, refresh=True)


def all_arms(options: argparse.Namespace, runtime: sc.Runtime, logs: Path, resources: ExitStack) -> list[Arm]:
    arms = [our_arm(runtime, "strict", 0)]
    if extra_buffers_are_safe(system_info()):
        arms.append(python_arm(options.pair / "expert.gguf", runtime, options.threads, resources))
    else:
        print(f"{PYTHON} is left out: it cannot switch weight repacking off, and crashes on this CPU with it", file=sys.stderr)
    for i, spec in enumerate(options.server_specs):
        flags = server_options(spec, options.pair, runtime, options.threads)
        arms.append(server_arm(options.llama_server, spec, flags, logs / f"{i}.log", resources))
    return arms + [our_arm(runtime, rule, length) for rule, length in options.ours]


def described_setup(options: argparse.Namespace, runtime: sc.Runtime, files: dict[str, Path]) -> Record:
    version = subprocess.run([options.llama_server, "--version"], capture_output=True, text=True) if options.server_specs else None
    name = gguf.GGUFReader(files["expert"]).fields.get("general.name")
    return {
        "models": name.contents() if name else "unnamed models",
        "quantization": {role: session.model.description for role, session in (("drafter", runtime._drafter), ("expert", runtime._expert))},
        "files": {role: hashlib.sha256(path.read_bytes()).hexdigest() for role, path in files.items()},
        "machine": f"{cpu_name()}, {physical_cores()} physical cores",
        "llama_cpp_python": llama_cpp.__version__,
        "llama_server": (version.stdout + version.stderr).strip().splitlines()[0] if version else None,
        "system_info": system_info(),
        "threads": options.threads,
        "n_ctx": runtime.n_ctx,
        "max_tokens": options.max_tokens,
        "first_seed": options.seed,
        "commit": commit(),
    }


def cpu_name() -> str:
    """Return the processor's name where Linux reports it, else the architecture."""
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.machine()


def earlier_rows(path: Path, *, resume: bool) -> list[Record]:
    """Return the rows of an earlier run. Close a half-written last line, so that the next row begins its own."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return []
    if not resume:
        sys.exit(f"{path} is there already; --resume continues it, --out names another")
    rows, complaints = read_rows(path)
    print(*complaints, sep="\n", end="\n" if complaints else "", file=sys.stderr)
    if not path.read_bytes().endswith(b"\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
    return rows


def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def split(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",") if part]

    return split


def parsed_arm(text: str) -> tuple[str, int | str]:
    rule, _, length = text.rpartition("/")
    return rule, int(length) if length.isdecimal() else length


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--pair", type=Path, help="folder with drafter.gguf and expert.gguf, such as scripts/measure/scale_pair.py writes")
    add("--llama-server", type=Path, help="the program, built from the llama.cpp of the installed llama-cpp-python")
    add("--threads", type=int, default=physical_cores(), help="of everyone; default the physical cores (%(default)s)")
    add("--temperatures", type=listed(float), default="0,1", help="default %(default)s")
    add("--passes", type=int, default=3, help="how often everything is asked; default %(default)s")
    add("--max-tokens", type=int, default=96, help="default %(default)s")
    add("--per-family", type=int, default=8, help="questions of each family, and as many copies; default %(default)s")
    add("--limit", type=int, help="the number of questions at most; the families take turns")
    add("--ours", type=listed(parsed_arm), default=OURS, help="rule/block size of each of our arms; default %(default)s")
    add("--server-specs", type=listed(str), default=SERVERS, help="arms of llama-server; default %(default)s")
    add("--seed", type=int, default=0, help="of the first prompt in the first pass; default %(default)s")
    add("--out", type=Path, default=ROOT / "docs" / "results" / "peers.jsonl", help="rows; .txt and .svg are written beside them")
    add("--resume", action="store_true", help="continue an existing file, skipping what it has")
    add("--report", type=Path, metavar="FILE.jsonl[.gz]", help="make table and picture from this file and measure nothing")
    add("--update-page", action="store_true", help="write the section about peers in docs/benchmarking.md")
    options = parser.parse_args(argv)
    if options.report is None and options.pair is None:
        parser.error("--pair says which models are measured (or --report which file is shown)")
    if options.report is None and options.server_specs and options.llama_server is None:
        parser.error("--llama-server says where the program is (--server-specs '' leaves the server out)")
    if options.report is None and options.out.suffix == ".gz":
        parser.error(f"--out {options.out}: rows are written as they come; omit .gz and gzip them afterwards")
    for name in ("threads", "passes", "max_tokens", "per_family", "limit"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    return options


def main() -> None:
    options = arguments()
    if options.report is None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else a killed run would leave its servers running
        try:
            measure(options)
        except (SpeccascadeError, OSError) as error:
            sys.exit(f"error: {error}")
    write_report(options.report or options.out, update_page=options.update_page)


if __name__ == "__main__":
    main()
